//! Maintains the store: erases credentials that no message needs, and expires messages that are older than `max_age`.
//!
//! Ages follow the wall clock, which may be set. Setting it forward while the agent runs expires nothing: it is
//! trusted only as far as time has really passed since the agent started. Setting it back makes messages younger, so
//! they are kept longer. Both err on the side of keeping.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::shutdown::Shutdown;
use crate::store::now_ms;
use crate::store::slot::StoreSlot;

/// How often unneeded credentials are erased; also once at the start.
const ERASURE_INTERVAL: Duration = Duration::from_secs(5);
/// How often room is reserved on the disk, so that messages can still be delivered once the disk is full.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// How many messages expire in one commit.
const STEP: usize = 500;
const EXPIRY_INTERVAL_MIN: Duration = Duration::from_millis(200);
const EXPIRY_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// The clock by which messages age.
struct AgeClock {
    started_at_ms: i64,
    started: Instant,
}

impl AgeClock {
    fn start() -> Self {
        Self { started_at_ms: now_ms(), started: Instant::now() }
    }

    fn now_ms(&self) -> i64 {
        self.trusted(now_ms(), self.started.elapsed())
    }

    fn trusted(&self, wall_ms: i64, passed: Duration) -> i64 {
        let passed_ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        wall_ms.min(self.started_at_ms.saturating_add(passed_ms))
    }
}

/// Erases and expires until shutdown.
pub(super) fn run(max_age: Option<Duration>, slot: &StoreSlot, shutdown: &Shutdown) {
    let clock = AgeClock::start();
    let interval = max_age.map(|max_age| (max_age / 10).clamp(EXPIRY_INTERVAL_MIN, EXPIRY_INTERVAL_MAX));
    let mut erase_at = Instant::now();
    let mut room_at = Instant::now() + ROOM_INTERVAL;
    let mut expire_at = Instant::now() + interval.unwrap_or_default();
    loop {
        let now = Instant::now();
        if room_at <= now {
            if let Err(error) = slot.with(|store| store.keep_room()) {
                debug!(target: "db_manager", "cannot reserve room for a full disk: {error}");
            }
            room_at = now + ROOM_INTERVAL;
        }
        if erase_at <= now {
            // The slot reports an unusable store; the next turn erases what this one could not.
            if let Err(error) = slot.with(|store| store.erase_credentials()) {
                debug!(target: "db_manager", "cannot erase unneeded credentials yet: {error}");
            }
            erase_at = now + ERASURE_INTERVAL;
        }
        if let (Some(max_age), Some(interval)) = (max_age, interval)
            && expire_at <= now
        {
            expire(max_age, &clock, slot, shutdown);
            expire_at = now + interval;
        }
        let next = interval.map_or(erase_at, |_| erase_at.min(expire_at)).min(room_at);
        if shutdown.sleep(next.saturating_duration_since(Instant::now())) {
            return;
        }
    }
}

/// Expires the messages that are too old.
fn expire(max_age: Duration, clock: &AgeClock, slot: &StoreSlot, shutdown: &Shutdown) {
    let max_age_ms = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
    let mut dropped = 0;
    loop {
        let before_ms = clock.now_ms().saturating_sub(max_age_ms);
        // The slot reports an unusable store; messages that are too old now expire later.
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
            "{dropped} messages expired: they waited longer than max_age ({} s)",
            max_age.as_secs()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_forward_expires_nothing() {
        let clock = AgeClock { started_at_ms: 1_000_000, started: Instant::now() };
        for (wall_ms, passed_ms, expected) in [
            (1_005_000, 5_000, 1_005_000),
            // Set forward by a year.
            (31_536_000_000, 5_000, 1_005_000),
            // Set back.
            (500_000, 5_000, 500_000),
        ] {
            assert_eq!(clock.trusted(wall_ms, Duration::from_millis(passed_ms)), expected, "{wall_ms}");
        }
    }
}
