//! Pacing: the throughput of a replay.
//!
//! The documented pace is 50 messages, then 0.5 s of pause, and if configured it is exact. Otherwise replay only
//! starts with it: while the server keeps up, the batch doubles and the pause halves; a sign of backpressure (a rate
//! limit, a failure) slows both down at once, but never below the documented pace, because the pauses for a backlog of
//! N messages must not exceed ceil(N/50) times 0.5 s.
//!
//! In a fleet there is no such floor, see [`super::fleet_pacing`].

use std::time::Duration;

use super::fleet_pacing::{FleetPace, FleetRate};

/// The documented batch, `OPIK_REPLAY_BATCH_SIZE`.
pub const BATCH_DEFAULT: usize = 50;
/// The documented pause after a full batch, `OPIK_REPLAY_BATCH_REPLAY_DELAY`.
pub const DELAY_DEFAULT: Duration = Duration::from_millis(500);
/// The largest batch of the automatic pace, in messages.
pub const BATCH_MAX: usize = 1000;
/// Shorter pauses are skipped.
const DELAY_MIN: Duration = Duration::from_millis(2);

/// The configured pace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PaceSettings {
    /// Messages per batch, when set.
    pub batch: Option<usize>,
    /// Pause after a full batch, when set.
    pub delay: Option<Duration>,
    /// The pace of a fleet instead of the automatic one; has no effect when batch or delay are set.
    pub fleet: Option<FleetPace>,
}

impl PaceSettings {
    /// Returns whether the pace is for all lanes and workers of a replay together: it was set, or is that of a fleet.
    pub fn is_shared(&self) -> bool {
        self.batch.is_some() || self.delay.is_some() || self.fleet.is_some()
    }

    /// Returns the pace of a fleet, if it has effect.
    fn fleet_pace(&self) -> Option<FleetPace> {
        self.fleet.filter(|_| self.batch.is_none() && self.delay.is_none())
    }
}

/// The result of a batch, as far as the pace depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchEnd {
    /// Every request was answered and none asked to slow down.
    KeptUp,
    /// The server asked to slow down, or failed.
    Strained,
    /// Its latency has grown: backpressure that only the pace of a fleet heeds.
    Slowed,
}

/// The pace in force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    settings: PaceSettings,
    batch: usize,
    delay: Duration,
    fleet: Option<FleetRate>,
}

impl Pace {
    /// Returns the pace to start with.
    pub fn start(settings: PaceSettings) -> Self {
        Self {
            settings,
            batch: settings.batch.unwrap_or(BATCH_DEFAULT),
            delay: settings.delay.unwrap_or(DELAY_DEFAULT),
            fleet: settings.fleet_pace().map(FleetRate::start),
        }
    }

    /// Returns whether it is the pace of a fleet: what it learned of the server outlives a round of replay.
    pub(crate) fn is_of_fleet(&self) -> bool {
        self.fleet.is_some()
    }

    /// Returns how many messages the next batch takes.
    pub fn batch(&self) -> usize {
        self.fleet.map_or(self.batch, |rate| rate.batch())
    }

    /// Returns how long to pause after a batch of this many messages: no pause after a batch that was not full, as in
    /// the SDK, because then the queue is empty. In a fleet every message counts.
    pub fn pause_after(&self, messages: usize) -> Duration {
        match self.fleet {
            Some(rate) => rate.pause_after(messages),
            None if messages < self.batch => Duration::ZERO,
            None => self.delay,
        }
    }

    /// Takes how long the requests of a batch took, each of about this many messages; returns whether that is a sign of
    /// backpressure. Only the pace of a fleet asks.
    pub fn timed(&mut self, latency: Duration, messages: usize) -> bool {
        self.fleet.as_mut().is_some_and(|rate| rate.timed(latency, messages))
    }

    /// Returns the pace after a batch. Configured values do not change.
    pub fn after(self, end: BatchEnd) -> Self {
        let (batch, delay) = match end {
            BatchEnd::KeptUp | BatchEnd::Slowed => {
                let delay = self.delay / 2;
                ((self.batch * 2).min(BATCH_MAX), if delay < DELAY_MIN { Duration::ZERO } else { delay })
            }
            BatchEnd::Strained => {
                ((self.batch / 4).max(BATCH_DEFAULT), (self.delay * 4).max(DELAY_DEFAULT / 16).min(DELAY_DEFAULT))
            }
        };
        Self {
            settings: self.settings,
            batch: self.settings.batch.unwrap_or(batch),
            delay: self.settings.delay.unwrap_or(delay),
            fleet: self.fleet.map(|rate| rate.after(end)),
        }
    }

    /// Returns how long a backlog of this many messages takes at most at this pace, pauses only.
    pub fn pauses_for(&self, messages: u64) -> Duration {
        if let Some(rate) = self.fleet {
            return rate.pause_after(usize::try_from(messages).unwrap_or(usize::MAX));
        }
        let full_batches = u32::try_from(messages / self.batch.max(1) as u64).unwrap_or(u32::MAX);
        self.delay.saturating_mul(full_batches)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pace_that_was_set_is_exact_whatever_the_server_does() {
        let settings = PaceSettings { batch: Some(200), delay: Some(Duration::from_millis(100)), fleet: None };
        let mut pace = Pace::start(settings);
        for end in [BatchEnd::KeptUp, BatchEnd::Strained, BatchEnd::KeptUp] {
            assert_eq!((pace.batch(), pace.pause_after(200)), (200, Duration::from_millis(100)));
            assert_eq!(pace.pause_after(199), Duration::ZERO);
            pace = pace.after(end);
        }
    }

    #[test]
    fn the_automatic_pace_speeds_up_to_no_pause() {
        let mut pace = Pace::start(PaceSettings::default());
        assert_eq!((pace.batch(), pace.pause_after(50)), (50, DELAY_DEFAULT));
        for _ in 0..10 {
            pace = pace.after(BatchEnd::KeptUp);
        }
        assert_eq!((pace.batch(), pace.pause_after(BATCH_MAX)), (BATCH_MAX, Duration::ZERO));
        pace = pace.after(BatchEnd::Strained);
        assert_eq!(pace.batch(), 250);
        assert!(pace.pause_after(250) > Duration::ZERO);
    }

    #[test]
    fn the_pace_of_a_fleet_starts_at_a_quarter_of_the_live_rate_and_has_no_floor() {
        let fleet = Some(FleetPace::of_backlog(18_000, Duration::from_secs(3600)));
        let mut pace = Pace::start(PaceSettings { fleet, ..PaceSettings::default() });
        assert_eq!((pace.batch(), pace.pause_after(1)), (1, Duration::from_millis(800)));
        assert_eq!(pace.pauses_for(50), Duration::from_secs(40), "a quarter of 5 messages a second");
        pace = pace.after(BatchEnd::Strained);
        assert_eq!(pace.pauses_for(50), Duration::from_secs(160), "a quarter of that");
        assert!(pace.after(BatchEnd::KeptUp).pauses_for(50) < Duration::from_secs(160));
        let set = PaceSettings { fleet, batch: Some(50), delay: None };
        assert_eq!(Pace::start(set).pause_after(50), DELAY_DEFAULT, "a pace that was set is exact in a fleet, too");
    }

    proptest! {
        #[test]
        fn the_automatic_pace_is_never_slower_than_the_documented_one(ends in prop::collection::vec(any::<bool>(), 0..40)) {
            let mut pace = Pace::start(PaceSettings::default());
            for kept_up in ends {
                pace = pace.after(if kept_up { BatchEnd::KeptUp } else { BatchEnd::Strained });
                prop_assert!(pace.batch() >= BATCH_DEFAULT && pace.batch() <= BATCH_MAX);
                prop_assert!(pace.pause_after(usize::MAX) <= DELAY_DEFAULT);
            }
        }
    }
}
