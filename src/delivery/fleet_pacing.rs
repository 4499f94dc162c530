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
const INCREASE_DIVISOR: u64 = 80;
/// After this time without backpressure the increase has doubled.
const CALM: Duration = Duration::from_secs(60);
/// The decrease of the rate after backpressure, as a divisor.
const DECREASE_DIVISOR: u64 = 4;
/// How much time one batch stands for: small enough to react, large enough to share a request.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(500);
/// The decrease after answers took longer and longer, as a divisor.
const SLOWED_DIVISOR: u64 = 2;
/// A latency of more than this many times the shortest one...
const LATENCY_FACTOR: u32 = 2;
/// ... and this much more is a sign of load: less is noise.
const LATENCY_NOISE: Duration = Duration::from_millis(100);
/// How slowly the shortest latency expires, as a divisor of what the present latency has more.
const LATENCY_DRIFT: u32 = 128;
/// Powers of two that the number of messages of a request may have.
const LATENCY_CLASSES: usize = 11;
/// The lowest rate: one message in ten seconds finds out whether the server is there.
const LOWEST: MessageRate = MessageRate(100_000);
/// The live rate that is assumed for an agent that is nearly idle.
const LIVE_MIN: MessageRate = MessageRate(1_000_000);
/// Faster than any server takes messages: no rate grows beyond it.
const HIGHEST: MessageRate = MessageRate(1_000_000_000_000);

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

/// The latency of a server without backpressure, as far as known: the shortest latency of requests, by the number of their
/// messages, since a larger payload takes longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct QuietLatency {
    shortest: [Duration; LATENCY_CLASSES],
    /// Whether that of the last batch had grown: one alone is a pause of the server, such as a merge.
    had_grown: bool,
}

impl QuietLatency {
    /// Takes the latency of requests with about this many messages each, and returns whether it has grown so much that
    /// the server must be near its capacity.
    fn has_grown(&mut self, latency: Duration, messages: usize) -> bool {
        let class = messages.max(1).ilog2() as usize;
        let quiet = &mut self.shortest[class.min(LATENCY_CLASSES - 1)];
        if quiet.is_zero() || latency <= *quiet {
            (*quiet, self.had_grown) = (latency, false);
            return false;
        }
        let has_grown = latency > quiet.saturating_mul(LATENCY_FACTOR).saturating_add(LATENCY_NOISE);
        // A server that has become slower for good is not taken for a loaded one for ever.
        *quiet += (latency - *quiet) / LATENCY_DRIFT;
        std::mem::replace(&mut self.had_grown, has_grown) && has_grown
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
    quiet: QuietLatency,
}

impl FleetRate {
    /// Returns the rate to start with.
    pub(super) fn start(pace: FleetPace) -> Self {
        let live = pace.live.clamp(LIVE_MIN, HIGHEST);
        Self { rate: live, increase: live.0 / INCREASE_DIVISOR, calm: Duration::ZERO, quiet: QuietLatency::default() }
    }

    /// Returns how many messages the next batch takes.
    pub(super) fn batch(&self) -> usize {
        self.rate.batch()
    }

    /// Returns how long to pause after this many messages, whether or not more wait.
    pub(super) fn pause_after(&self, messages: usize) -> Duration {
        self.rate.time_for(messages as u64)
    }

    /// Takes how long the requests of a batch took, each of about this many messages; returns whether that is a sign of
    /// backpressure.
    pub(super) fn timed(&mut self, latency: Duration, messages: usize) -> bool {
        self.quiet.has_grown(latency, messages)
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
            BatchEnd::Slowed => {
                let rate = MessageRate(self.rate.0 / SLOWED_DIVISOR).max(LOWEST);
                Self { rate, calm: Duration::ZERO, ..self }
            }
        }
    }
}

#[cfg(test)]
mod tests;
