//! The writes of applications that the server refused, by the status of its answer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Counts the writes that the server answered at once with a refusal. Concurrent requests share it.
#[derive(Debug, Default)]
pub struct RefusalCounter(Mutex<RefusalTally>);

#[derive(Debug, Default)]
struct RefusalTally {
    /// Bounded: there are fewer than a thousand statuses.
    by_status: BTreeMap<u16, u64>,
    last: Option<(u16, i64)>,
}

/// A snapshot of the writes of applications that the server refused since the agent started: they were told, and no
/// payload is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForwardedRefused {
    pub writes: u64,
    /// The status of the last of these answers.
    pub last_status: Option<u16>,
    /// When it came, in milliseconds since the Unix epoch.
    pub last_at_ms: Option<i64>,
    /// In the order of the statuses.
    pub by_status: Vec<RefusedStatus>,
}

/// The writes that were refused with one status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedStatus {
    pub status: u16,
    pub writes: u64,
}

impl RefusalCounter {
    /// Counts a refusal with this status.
    pub(crate) fn add(&self, status: u16, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let mut counted = self.counted();
        *counted.by_status.entry(status).or_default() += 1;
        counted.last = Some((status, now_ms));
    }

    /// Returns what was counted so far.
    pub(crate) fn get(&self) -> ForwardedRefused {
        let counted = self.counted();
        let by_status =
            counted.by_status.iter().map(|(status, writes)| RefusedStatus { status: *status, writes: *writes });
        let by_status: Vec<RefusedStatus> = by_status.collect();
        ForwardedRefused {
            writes: by_status.iter().map(|by| by.writes).sum(),
            last_status: counted.last.map(|(status, _)| status),
            last_at_ms: counted.last.map(|(_, at_ms)| at_ms),
            by_status,
        }
    }

    /// The invariant, that both fields are valid, is kept after every step.
    fn counted(&self) -> MutexGuard<'_, RefusalTally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ForwardedRefused {
    /// Returns the statuses for people: `2 x 400, 1 x 401`.
    pub(crate) fn statuses(&self) -> String {
        let each: Vec<String> = self.by_status.iter().map(|by| format!("{} x {}", by.writes, by.status)).collect();
        each.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn refusals_are_counted_by_status() {
        let counter = RefusalCounter::default();
        assert_eq!(counter.get(), ForwardedRefused::default());
        for (status, at_ms) in [(401, 1), (400, 2), (401, 3)] {
            counter.add(status, UNIX_EPOCH + Duration::from_millis(at_ms));
        }
        let found = counter.get();
        assert_eq!((found.writes, found.last_status, found.last_at_ms), (3, Some(401), Some(3)));
        assert_eq!(found.statuses(), "1 x 400, 2 x 401");
    }
}
