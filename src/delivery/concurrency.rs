//! Concurrency within a lane: how many of its batches are in flight at once.
//!
//! While one batch waits for the server's answer, the next one is claimed and sent, as far as that hides the wait:
//! beside a server that answers sooner than a batch is claimed and settled, a second batch in flight gains nothing and
//! takes processor time from intake. Batches in flight never conflict, because the store gives out no message that
//! conflicts with one in flight.
//!
//! The batches in flight share one budget of messages ([`share_of`]): what a batch has in memory is the bodies as stored, as
//! they are joined, and as they are sent.
//!
//! It starts slowly, with one batch, and falls back to one at the first sign of backpressure
//! ([`lane_health`](super::lane_health)).

use std::time::Duration;

/// The most batches of a lane in flight. All that are in flight when a process is killed are claimed together
/// afterwards, so this bounds that claim, too.
pub(crate) const CONCURRENCY_MAX: usize = 4;
/// The most messages that several batches of a lane have in flight together.
const IN_FLIGHT_MAX: usize = 1_600;
/// A wait that is shorter than the work divided by this is not worth another batch.
const WORK_PER_WAIT: u32 = 4;

/// Returns how many messages a batch may have that could have `most` if it were alone, beside as many others in flight
/// as make `batches` with it.
pub(crate) fn share_of(most: usize, batches: usize) -> usize {
    if batches < 2 { most } else { most.min(IN_FLIGHT_MAX / batches) }
}

/// How long a batch took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchTime {
    /// From before its claim until it was settled.
    pub total: Duration,
    /// The part of it spent waiting for answers.
    pub waiting: Duration,
}

/// How many batches may be in flight at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Concurrency(usize);

impl Default for Concurrency {
    fn default() -> Self {
        Self(1)
    }
}

impl Concurrency {
    /// Returns how many.
    pub(crate) fn batches(self) -> usize {
        self.0
    }

    /// Returns the concurrency after a batch that was delivered: as many as keep one thread working while the others
    /// wait, but at most twice as many as before.
    pub(crate) fn after(self, batch: BatchTime) -> Self {
        let work = batch.total.saturating_sub(batch.waiting).max(Duration::from_micros(1));
        let hidden = if batch.waiting < work / WORK_PER_WAIT {
            0
        } else {
            usize::try_from(batch.waiting.as_nanos().div_ceil(work.as_nanos())).unwrap_or(usize::MAX)
        };
        Self(hidden.saturating_add(1).min(self.0 * 2).min(CONCURRENCY_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(before: usize, work_ms: u64, waiting_ms: u64) -> usize {
        let waiting = Duration::from_millis(waiting_ms);
        let batch = BatchTime { total: waiting + Duration::from_millis(work_ms), waiting };
        Concurrency(before).after(batch).batches()
    }

    #[test]
    fn batches_in_flight_share_one_budget() {
        for (most, batches, expected) in [
            (1_000, 0, 1_000),
            (5_000, 1, 5_000),
            (1_000, 2, 800),
            (1_000, 3, 533),
            (1_000, 4, 400),
            (50, 4, 50),
            (1, 4, 1),
        ] {
            assert_eq!(share_of(most, batches), expected, "{most} {batches}");
        }
    }

    #[test]
    fn concurrency_doubles_up_to_what_hides_the_wait() {
        for (before, work_ms, waiting_ms, expected, what) in [
            (1, 30, 2, 1, "the server answers at once"),
            (1, 30, 7, 1, "a wait too short to hide"),
            (1, 30, 20, 2, "one batch hides it"),
            (1, 2, 50, 2, "a slow start"),
            (2, 2, 50, 4, "that doubles"),
            (4, 2, 50, 4, "up to the bound"),
            (4, 30, 50, 3, "two others hide this wait"),
            (4, 30, 1, 1, "the server became faster"),
            (2, 0, 0, 1, "nothing to measure"),
            (2, 0, 50, 4, "no work at all"),
        ] {
            assert_eq!(after(before, work_ms, waiting_ms), expected, "{what}");
        }
    }
}
