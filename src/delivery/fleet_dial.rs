//! The dial of a fleet, as one sender keeps to it: a rate limit for all senders together, of which this one takes its
//! share, and a hold. It throttles what was stored; live traffic is not its concern.
//!
//! The share is the ceiling times the streams that this sender delivers, divided by those that all senders deliver. An agent
//! delivers one; a replayer as many as it has taken. Concurrent workers of one sender share a token bucket: a worker takes what a
//! batch costs *before* it claims it, so that their concurrency does not multiply the throughput.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fleet_pacing::{BATCH_TIME, MessageRate};

/// What a person has decided about the pace of a fleet, and how many streams share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DialForce {
    /// The most that all senders send together.
    pub ceiling: Option<MessageRate>,
    /// The streams that this sender delivers.
    pub streams: u64,
    /// The streams that all senders deliver, as far as known.
    pub draining: u64,
    /// The deadline until which nothing is sent, by the clock of the caller of [`FleetDial::take`]; then the hold expires.
    pub held_until: Option<Duration>,
}

impl DialForce {
    /// Returns this sender's share of the ceiling.
    pub fn share(&self) -> Option<MessageRate> {
        let streams = self.streams.max(1);
        Some(self.ceiling?.share(streams, self.draining.max(streams)))
    }
}

/// The answer to a worker that wants to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialTake {
    /// It may send this many messages now.
    May(usize),
    /// Nothing for this long; it may be less when the dial changes.
    Wait(Duration),
}

#[derive(Debug, Default)]
struct DialState {
    force: DialForce,
    /// When the next message may be sent.
    opens: Duration,
}

/// The dial that all workers of a sender keep to. It may change at any time.
#[derive(Debug, Default)]
pub struct FleetDial {
    state: Mutex<DialState>,
}

impl FleetDial {
    /// Returns a dial without a ceiling and without a hold.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, DialState> {
        // Every critical section leaves it consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a decision in force. What was taken before is paid for at the new rate: a change is no free batch.
    pub fn set(&self, force: DialForce, now: Duration) {
        let mut state = self.lock();
        let left = state.opens.saturating_sub(now);
        state.opens = match (state.force.share(), force.share()) {
            (Some(old), Some(new)) => {
                let seconds = left.as_secs_f64() * old.as_per_second() / new.as_per_second();
                now.saturating_add(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO))
            }
            (_, _) => now,
        };
        state.force = force;
    }

    /// Returns the decision in force.
    pub fn force(&self) -> DialForce {
        self.lock().force
    }

    /// Returns how long nothing may be sent; `None` while the fleet is not held.
    pub fn held_for(&self, now: Duration) -> Option<Duration> {
        let until = self.lock().force.held_until?;
        until.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Returns whether there is a ceiling or a hold: then every batch has to be taken from it.
    pub fn is_limited(&self, now: Duration) -> bool {
        self.lock().force.ceiling.is_some() || self.held_for(now).is_some()
    }

    /// Takes up to `wanted` messages out of this sender's share.
    pub fn take(&self, wanted: usize, now: Duration) -> DialTake {
        if let Some(left) = self.held_for(now) {
            return DialTake::Wait(left);
        }
        let mut state = self.lock();
        let Some(share) = state.force.share() else { return DialTake::May(wanted) };
        // A worker that was late by less than a batch makes up for it; one that had nothing to send does not.
        let late = now.saturating_sub(state.opens);
        let begins = if late <= BATCH_TIME { state.opens } else { now };
        if let Some(wait) = begins.checked_sub(now).filter(|wait| !wait.is_zero()) {
            return DialTake::Wait(wait);
        }
        let messages = wanted.min(share.batch());
        state.opens = begins.saturating_add(share.time_for(messages as u64));
        DialTake::May(messages)
    }

    /// Corrects what was [taken](Self::take) by what was claimed in the end: fewer messages, or more that belong
    /// together.
    pub fn correct(&self, taken: usize, claimed: usize) {
        let mut state = self.lock();
        let Some(share) = state.force.share() else { return };
        let time = share.time_for(taken.abs_diff(claimed) as u64);
        state.opens = match claimed > taken {
            true => state.opens.saturating_add(time),
            false => state.opens.saturating_sub(time),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn force(per_second: u64, streams: u64, draining: u64) -> DialForce {
        DialForce { ceiling: Some(MessageRate::per_second(per_second)), streams, draining, held_until: None }
    }

    /// Lets this many workers send as much as they may for ten seconds, and returns how many messages that was.
    fn sent_by(dial: &FleetDial, workers: usize) -> usize {
        let mut sent = 0;
        for tick in 0..10_000_u64 {
            let now = SECOND * 100 + Duration::from_millis(tick);
            for _ in 0..workers {
                if let DialTake::May(messages) = dial.take(1_000, now) {
                    sent += messages;
                }
            }
        }
        sent
    }

    #[test]
    fn all_workers_of_a_sender_together_keep_its_share() {
        for workers in [1, 4, 16] {
            for (per_second, streams, draining, expected) in [
                (20_000, 1, 1, 200_000),
                (20_000, 1, 200, 1_000),
                (20_000, 50, 200, 50_000),
                (100, 3, 2, 1_000),
                (100, 0, 0, 1_000),
            ] {
                let dial = FleetDial::new();
                dial.set(force(per_second, streams, draining), SECOND);
                let sent = sent_by(&dial, workers);
                let allowed = expected * 95 / 100..=expected * 105 / 100;
                assert!(allowed.contains(&sent), "{sent} instead of {expected} messages with {workers} workers");
            }
        }
    }

    #[test]
    fn a_hold_stops_everything_and_ends_by_itself() {
        let dial = FleetDial::new();
        assert_eq!((dial.take(7, SECOND), dial.is_limited(SECOND)), (DialTake::May(7), false));
        dial.set(DialForce { held_until: Some(SECOND * 10), ..force(1_000, 1, 1) }, SECOND);
        assert_eq!(dial.take(7, SECOND * 4), DialTake::Wait(SECOND * 6), "a held fleet sends");
        assert_eq!(dial.held_for(SECOND * 4), Some(SECOND * 6));
        assert_eq!(dial.take(7, SECOND * 10), DialTake::May(7), "the hold never ends");
        assert_eq!(dial.held_for(SECOND * 10), None);
        assert!(dial.is_limited(SECOND * 10), "the pace ended with the hold");
        dial.set(DialForce::default(), SECOND * 11);
        assert_eq!(dial.take(5_000, SECOND * 11), DialTake::May(5_000));
    }

    #[test]
    fn messages_taken_and_not_claimed_are_returned() {
        let dial = FleetDial::new();
        dial.set(force(100, 1, 1), SECOND);
        assert_eq!(dial.take(1_000, SECOND), DialTake::May(50));
        dial.correct(50, 10);
        assert_eq!(dial.take(1_000, SECOND), DialTake::Wait(Duration::from_millis(100)));
        dial.correct(0, 90);
        assert_eq!(dial.take(1_000, SECOND), DialTake::Wait(SECOND), "messages that belong together are free");
        dial.set(force(1_000, 1, 1), SECOND);
        assert_eq!(dial.take(1_000, SECOND), DialTake::Wait(SECOND / 10), "a higher pace waits for the lower one");
    }

    proptest! {
        #[test]
        fn no_decision_stops_a_sender_for_good(per_second in 1_u64..u64::MAX, streams: u64, draining: u64) {
            let dial = FleetDial::new();
            dial.set(force(per_second, streams, draining), SECOND);
            let now = SECOND * 100;
            let DialTake::May(messages) = dial.take(1_000, now) else { panic!("the first message waits") };
            prop_assert!((1..=1_000).contains(&messages));
            if let DialTake::Wait(wait) = dial.take(1_000, now) {
                prop_assert!(matches!(dial.take(1_000, now + wait), DialTake::May(_)));
            }
        }
    }
}
