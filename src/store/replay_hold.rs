//! A person's decision that nothing that waits in a store is delivered for a while.
//!
//! It is kept in the store, so that every replayer respects it, also after a restart, and it ends by itself. It holds
//! replay only: live writes are forwarded as ever, unless they have to wait for an earlier message anyway.

use std::time::Duration;

/// The longest hold: a store that was forgotten delivers again by itself.
pub const REPLAY_HOLD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// A wall clock that is earlier than the hold's creation by more than this was set back since.
const CLOCK_STEP_MS_MAX: i64 = 60 * 1000;

/// A hold of a whole store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayHold {
    /// Its deadline, in milliseconds since the Unix epoch.
    pub until_ms: i64,
    /// When it was set.
    pub since_ms: i64,
    /// Who set it, harmless to print.
    pub by: String,
}

impl ReplayHold {
    /// Returns its deadline: never later than the longest hold allows.
    pub fn ends_at_ms(&self) -> i64 {
        let longest = i64::try_from(REPLAY_HOLD_MAX.as_millis()).unwrap_or(i64::MAX);
        self.until_ms.min(self.since_ms.saturating_add(longest))
    }

    /// Returns how long it still lasts; `None` if it is over.
    ///
    /// If the clock was set back to before it was set, how much of it has passed is unknown, and it counts as over. A
    /// step of less than [`CLOCK_STEP_MS_MAX`] is tolerated.
    pub fn left(&self, now_ms: i64) -> Option<Duration> {
        if self.since_ms.saturating_sub(now_ms) > CLOCK_STEP_MS_MAX {
            return None;
        }
        let left = u64::try_from(self.ends_at_ms().saturating_sub(now_ms)).ok()?;
        (left > 0).then(|| Duration::from_millis(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * 60 * 1000;

    #[test]
    fn a_hold_ends_by_itself_whatever_happens_to_the_clock() {
        let hold = |until_ms| ReplayHold { until_ms, since_ms: 100 * HOUR, by: "ana".to_owned() };
        let hours = |left: Option<Duration>| left.map(|left| left.as_millis() as i64 / HOUR);
        for (until, now, expected, situation) in [
            (103 * HOUR, 100 * HOUR, Some(3), "set just now"),
            (103 * HOUR, 101 * HOUR, Some(2), "set an hour ago"),
            (103 * HOUR, 103 * HOUR, None, "over"),
            (103 * HOUR, 200 * HOUR, None, "long over, or the clock was set forward"),
            (103 * HOUR, 100 * HOUR - 30_000, Some(3), "set back by half a minute, as time servers do"),
            (103 * HOUR, 99 * HOUR, None, "set back to before it was set"),
            (i64::MAX, 100 * HOUR, Some(168), "longer than any"),
            (i64::MAX, 268 * HOUR, None, "longer than any, and over"),
        ] {
            assert_eq!(hours(hold(until).left(now)), expected, "{situation}");
        }
    }
}
