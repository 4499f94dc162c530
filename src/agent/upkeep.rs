//! Drops messages that are older than the user wants to keep them (`max_age`).
//!
//! Ages are told by the wall clock, which may be set. A clock that is put forward while the agent runs ages nothing: it
//! is believed only as far as time has really passed since the agent started. One that is put back makes messages
//! younger, so they stay longer. Both err on the side of keeping.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::shutdown::Shutdown;
use crate::store::now_ms;
use crate::store::slot::StoreSlot;

/// Messages that are dropped in one commit.
const STEP: usize = 500;
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(200);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// The time since which an agent's messages age.
struct AgeClock {
    started_at_ms: i64,
    started: Instant,
}

impl AgeClock {
    fn start() -> Self {
        Self { started_at_ms: now_ms(), started: Instant::now() }
    }

    fn now_ms(&self) -> i64 {
        self.believed(now_ms(), self.started.elapsed())
    }

    fn believed(&self, wall_ms: i64, passed: Duration) -> i64 {
        let passed_ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        wall_ms.min(self.started_at_ms.saturating_add(passed_ms))
    }
}

/// Drops what is too old, until the shutdown.
pub(super) fn run(max_age: Duration, slot: &StoreSlot, shutdown: &Shutdown) {
    let clock = AgeClock::start();
    let max_age_ms = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
    let interval = (max_age / 10).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
    while !shutdown.sleep(interval) {
        let mut dropped = 0;
        loop {
            let before_ms = clock.now_ms().saturating_sub(max_age_ms);
            // A store that can't be used is reported by the slot, and what is old then is old later.
            match slot.with(|store| store.expire(before_ms, STEP)) {
                Ok(expired) if expired > 0 && !shutdown.is_requested() => dropped += expired,
                Ok(expired) => {
                    dropped += expired;
                    break;
                }
                Err(_) => break,
            }
        }
        if dropped > 0 {
            warn!(
                target: "db_manager",
                "{dropped} messages are dropped, because they waited longer than max_age ({} s)",
                max_age.as_secs()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ages_nothing() {
        let clock = AgeClock { started_at_ms: 1_000_000, started: Instant::now() };
        for (wall_ms, passed_ms, expected) in [
            (1_005_000, 5_000, 1_005_000),
            // Put forward by a year.
            (31_536_000_000, 5_000, 1_005_000),
            // Put back.
            (500_000, 5_000, 500_000),
        ] {
            assert_eq!(clock.believed(wall_ms, Duration::from_millis(passed_ms)), expected, "{wall_ms}");
        }
    }
}
