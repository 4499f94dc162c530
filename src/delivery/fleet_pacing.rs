//! Pacing in a fleet: many agents drain into one server that has just come back.
//!
//! The documented pace of 100 messages a second is 20 times what an agent accepts that gets 5 a second. Two hundred of
//! those at once are an outage of their own. So in a fleet the pace has no floor. An agent starts at a quarter of the rate
//! at which it accepted its backlog and is at that rate within seconds; from there it probes for more, ever faster while
//! nothing speaks against it, and decreases at the first sign of backpressure: a refusal, or answers that take longer. The
//! load of all agents together then stays near the server's capacity, without any agent knowing of the others (AIMD, as
//! in TCP).
//!
//! After a decrease the rate returns soon to just below what was too much, and increases slowly from there, as CUBIC's
//! does. So queues before the server are short, which is what live writes wait in; see [`QuietLatency`].
//!
//! A person can set a ceiling for the whole fleet, see [`super::fleet_dial`].

use std::time::Duration;

use super::pacing::{BATCH_MAX, BatchEnd};

/// The rate to start with, as a divisor of the rate at which the agent accepted its backlog.
const START_DIVISOR: u64 = 4;
/// Below the rate at which the agent accepted its backlog, the rate grows e-fold in this time, until the first backpressure.
const START_TIME: f64 = 10.0;
/// Increase for each second without backpressure, as a divisor of the rate at which the agent accepted its backlog.
const INCREASE_DIVISOR: f64 = 100.0;
/// After this time without backpressure the increase has doubled; it grows with the cube of the time.
const CALM: f64 = 15.0;
/// The decrease of the rate after a refusal, as a divisor.
const STRAINED_DIVISOR: u64 = 4;
/// The share of the rate that stays after answers took longer.
const SLOWED_SHARE: f64 = 0.7;
/// The share of the rate before a refusal, and before answers took longer, to which the rate returns fast...
const STRAINED_TARGET: f64 = 0.5;
const SLOWED_TARGET: f64 = 0.95;
/// ... by all but an e-th part of the difference in this time.
const RETURN_TIME: f64 = 5.0;
/// After a decrease the latency has this long to shorten.
const SETTLING: f64 = 3.0;
/// No batch counts as more time than this.
const TOOK_MAX: f64 = 10.0;
/// How much time one batch stands for: small enough to react, large enough to share a request.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(500);
/// Latencies are compared with this much added, in seconds: differences of less are noise.
const LATENCY_FLOOR: f64 = 0.01;
/// A sign of load: the smoothed logarithm of the latency is above that of a quiet server by the first, and by the second
/// times its deviation.
const EXCESS: f64 = 0.10;
const EXCESS_DEVIATIONS: f64 = 1.4;
/// The share of that from which the increase slows down.
const EXCESS_NEAR: f64 = 0.6;
/// The share of the time without backpressure that still counts after each such batch.
const CALM_NEAR: f64 = 0.7;
/// Latencies that the excess is smoothed over.
const SMOOTHED: f64 = 4.0;
/// Latencies that the deviation is smoothed over, and the deviation that is assumed at first.
const DEVIATION_SMOOTHED: f64 = 16.0;
const DEVIATION_START: f64 = 0.3;
/// Latencies over which that of a quiet server follows a longer and a shorter one.
const QUIET_RISE: f64 = 256.0;
const QUIET_FALL: f64 = 8.0;
/// Latencies of requests of a new size that only tell what is usual for it.
const LEARNED: u32 = 8;
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

    fn times(self, factor: f64) -> Self {
        Self((self.0 as f64 * factor) as u64)
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

/// The latency of a server without load, as far as known, and how much longer answers take at present.
///
/// Latencies vary, also those of a quiet server, some by factors. So what counts is neither the shortest latency nor a
/// single one: their logarithms are smoothed, the quiet one follows them fast down and slowly up, and a sign of load is an
/// excess that is large beside their deviation. That is taken from consecutive latencies, whose differences hardly depend
/// on the load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct QuietLatency {
    /// By the number of messages of requests, since a larger payload takes longer.
    quiet: [LearnedLatency; LATENCY_CLASSES],
    /// The smoothed excess over it.
    excess: f64,
    /// The last excess.
    last: f64,
    /// The deviation; 0 before the first latency.
    deviation: f64,
}

/// The logarithm of the latency of requests of one size, without load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct LearnedLatency {
    log: f64,
    /// From how many latencies, up to [`LEARNED`].
    from: u32,
}

/// The load, as far as latencies tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LatencySign {
    Quiet,
    /// Some of it.
    Near,
    /// The server must be near its capacity.
    Grown,
}

impl QuietLatency {
    /// Takes the latency of requests with about this many messages each.
    fn take(&mut self, latency: Duration, messages: usize) -> LatencySign {
        let class = messages.max(1).ilog2() as usize;
        let quiet = &mut self.quiet[class.min(LATENCY_CLASSES - 1)];
        let log = (latency.as_secs_f64() + LATENCY_FLOOR).ln();
        if quiet.from == 0 {
            quiet.log = log;
        }
        let excess = log - quiet.log;
        if self.deviation == 0.0 {
            self.deviation = DEVIATION_START;
        } else {
            // The mean difference of two values of a normal distribution is 2 / sqrt(pi) deviations.
            let deviation = (excess - self.last).abs() * std::f64::consts::PI.sqrt() / 2.0;
            self.deviation += (deviation - self.deviation) / DEVIATION_SMOOTHED;
        }
        self.last = excess;
        if quiet.from < LEARNED {
            quiet.from += 1;
            quiet.log += excess / f64::from(quiet.from);
            self.excess -= self.excess / SMOOTHED;
            return LatencySign::Quiet;
        }
        self.excess += (excess - self.excess) / SMOOTHED;
        // A server that has become slower for good is not taken for a loaded one for ever.
        let followed = self.excess / if self.excess < 0.0 { QUIET_FALL } else { QUIET_RISE };
        quiet.log += followed;
        self.excess -= followed;
        self.last -= followed;
        let sign = EXCESS + EXCESS_DEVIATIONS * self.deviation;
        match self.excess {
            excess if excess > sign => LatencySign::Grown,
            excess if excess > sign * EXCESS_NEAR => LatencySign::Near,
            _ => LatencySign::Quiet,
        }
    }
}

/// The rate in force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct FleetRate {
    rate: MessageRate,
    /// The rate at which the agent accepted its backlog.
    live: MessageRate,
    /// The rate to which it returns fast after a decrease; `None` before the first one.
    target: Option<MessageRate>,
    /// Time without backpressure, in seconds.
    calm: f64,
    /// Until when the latency may still be that from before a decrease, in seconds from now.
    settling: f64,
    quiet: QuietLatency,
}

impl FleetRate {
    /// Returns the rate to start with.
    pub(super) fn start(pace: FleetPace) -> Self {
        let live = pace.live.clamp(LIVE_MIN, HIGHEST);
        let rate = MessageRate(live.0 / START_DIVISOR);
        Self { rate, live, target: None, calm: 0.0, settling: 0.0, quiet: QuietLatency::default() }
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
        let sign = self.quiet.take(latency, messages);
        if sign != LatencySign::Quiet {
            self.calm *= CALM_NEAR;
        }
        sign == LatencySign::Grown
    }

    /// Returns the rate after a batch.
    pub(super) fn after(mut self, end: BatchEnd) -> Self {
        let took = self.pause_after(self.batch()).as_secs_f64().min(TOOK_MAX);
        match end {
            BatchEnd::KeptUp => {
                self.calm += took;
                self.settling -= took;
                self.increased(took)
            }
            BatchEnd::Slowed if self.settling > 0.0 => {
                self.settling -= took;
                self
            }
            BatchEnd::Slowed => {
                self.quiet.excess = 0.0;
                self.decreased(self.rate.times(SLOWED_SHARE), SLOWED_TARGET)
            }
            BatchEnd::Strained => self.decreased(MessageRate(self.rate.0 / STRAINED_DIVISOR), STRAINED_TARGET),
        }
    }

    fn increased(mut self, took: f64) -> Self {
        let steady = self.live.0 as f64 / INCREASE_DIVISOR * (1.0 + (self.calm / CALM).powi(3));
        let more = match self.target {
            None if self.rate < self.live => steady.max(self.rate.0 as f64 / START_TIME) * took,
            Some(target) if self.rate < target => {
                steady * took + (target.0 - self.rate.0) as f64 * (1.0 - (-took / RETURN_TIME).exp())
            }
            _ => steady * took,
        };
        self.rate = MessageRate(self.rate.0.saturating_add(more.ceil() as u64)).min(HIGHEST);
        self
    }

    fn decreased(mut self, rate: MessageRate, target: f64) -> Self {
        self.target = Some(self.rate.times(target));
        self.rate = rate.max(LOWEST);
        (self.calm, self.settling) = (0.0, SETTLING);
        self
    }
}

#[cfg(test)]
mod tests;
