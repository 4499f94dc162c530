//! Pacing in a fleet: many agents drain into one server that has just come back.
//!
//! The documented pace of 100 messages a second is 20 times what an agent accepts that gets 5 a second. Two hundred of
//! those at once are an outage of their own. So in a fleet the pace has no floor. An agent starts at the rate at which it
//! accepted its backlog, which the server can stand as long as it has once more as much capacity; it probes for more by
//! additive increase, and falls to a quarter at the first sign of backpressure. The load of all agents together then stays
//! near the server's capacity, without any agent knowing of the others (AIMD, as in TCP).
//!
//! The increase grows with the square of the time without backpressure, as CUBIC's does: among many agents backpressure
//! is frequent, and the increase is nearly linear; an agent that is alone is soon as fast as the server allows.
//!
//! A person can set a ceiling for the whole fleet, see [`super::fleet_dial`].

use std::time::Duration;

use super::pacing::{BATCH_MAX, BatchEnd};

/// Increase for each second without backpressure, as a divisor of the rate at which the agent accepts messages.
const INCREASE_DIVISOR: u64 = 100;
/// After this time without backpressure the increase has doubled.
const CALM: Duration = Duration::from_secs(60);
/// The decrease of the rate after backpressure, as a divisor.
const DECREASE_DIVISOR: u64 = 4;
/// How much time one batch stands for: small enough to react, large enough to share a request.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(500);
/// The lowest rate: one message in ten seconds finds out whether the server is there.
const LOWEST: MessageRate = MessageRate(100_000);
/// The live rate that is assumed for an agent that is nearly idle.
const LIVE_MIN: MessageRate = MessageRate(1_000_000);
/// Faster than any server takes messages: no rate grows beyond it.
const HIGHEST: MessageRate = MessageRate(1_000_000_000_000);

/// How long after the server's return the agents of a fleet begin, at most, each at a random moment.
const START_SPREAD: Duration = Duration::from_secs(10);
/// The same in a fleet of more than [`LARGE_FLEET`] agents.
const START_SPREAD_LARGE: Duration = Duration::from_secs(60);
const LARGE_FLEET: u64 = 1000;

/// A number of messages in a time, in millionths of a message per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct MessageRate(u64);

impl MessageRate {
    /// Returns the rate of this many messages in this time; without time, the highest one.
    pub fn of(messages: u64, time: Duration) -> Self {
        let micros = time.as_micros().max(1);
        let rate = u128::from(messages).saturating_mul(1_000_000_000_000) / micros;
        Self(u64::try_from(rate).unwrap_or(u64::MAX)).min(HIGHEST)
    }

    /// Returns the rate of this many messages per second.
    pub fn per_second(messages: u64) -> Self {
        Self::of(messages, Duration::from_secs(1))
    }

    /// Returns the rate as a number of messages per second.
    pub fn as_per_second(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Returns a share of it: this many parts of so many.
    pub(super) fn share(self, parts: u64, of: u64) -> Self {
        let rate = u128::from(self.0).saturating_mul(parts.into()) / u128::from(of.max(1));
        Self(u64::try_from(rate).unwrap_or(u64::MAX).max(1)).min(HIGHEST)
    }

    /// Returns how many messages a batch takes at this rate.
    pub(super) fn batch(self) -> usize {
        let messages = u128::from(self.0) * BATCH_TIME.as_micros() / 1_000_000_000_000;
        usize::try_from(messages).unwrap_or(BATCH_MAX).clamp(1, BATCH_MAX)
    }

    /// Returns how long this many messages take at this rate.
    pub fn time_for(self, messages: u64) -> Duration {
        let micros = u128::from(messages).saturating_mul(1_000_000_000_000) / u128::from(self.0.max(1));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

/// Switches the pace of a fleet on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetPace {
    /// The rate at which the backlog was accepted: what the agent starts with.
    pub live: MessageRate,
}

impl FleetPace {
    /// Returns the pace of an agent with this many messages waiting, the oldest accepted this long ago.
    pub fn of_backlog(waiting: u64, oldest_age: Duration) -> Self {
        Self { live: MessageRate::of(waiting, oldest_age.max(Duration::from_secs(1))) }
    }
}

/// The rate in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FleetRate {
    rate: MessageRate,
    /// Increase for each second, in millionths of a message per second.
    increase: u64,
    /// Time without backpressure.
    calm: Duration,
}

impl FleetRate {
    /// Returns the rate to start with.
    pub(super) fn start(pace: FleetPace) -> Self {
        let live = pace.live.clamp(LIVE_MIN, HIGHEST);
        Self { rate: live, increase: live.0 / INCREASE_DIVISOR, calm: Duration::ZERO }
    }

    /// Returns how many messages the next batch takes.
    pub(super) fn batch(&self) -> usize {
        self.rate.batch()
    }

    /// Returns how long to pause after this many messages, whether or not more wait.
    pub(super) fn pause_after(&self, messages: usize) -> Duration {
        self.rate.time_for(messages as u64)
    }

    /// Returns the rate after a batch.
    pub(super) fn after(self, end: BatchEnd) -> Self {
        match end {
            BatchEnd::KeptUp => {
                let took = self.pause_after(self.batch()).min(Duration::from_secs(10));
                let calm = self.calm.saturating_add(took);
                let factor = 1.0 + (calm.as_secs_f64() / CALM.as_secs_f64()).powi(2);
                let more = (self.increase as f64 * took.as_secs_f64() * factor).ceil() as u64;
                let rate = MessageRate(self.rate.0.saturating_add(more)).min(HIGHEST);
                Self { rate, calm, ..self }
            }
            BatchEnd::Strained => {
                let rate = MessageRate(self.rate.0 / DECREASE_DIVISOR).max(LOWEST);
                Self { rate, calm: Duration::ZERO, ..self }
            }
        }
    }
}

/// Returns how long an agent waits after the server's return; `jitter` is a random number from 0 to 1.
pub fn start_delay(agents: u64, jitter: f64) -> Duration {
    let spread = if agents > LARGE_FLEET { START_SPREAD_LARGE } else { START_SPREAD };
    spread.mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
