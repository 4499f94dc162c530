//! Throttles a whole round: the pause that the user set, and the limit on the number of messages.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::state::lock;

/// Keeps every lane from sending for the pause that the user set: "50 messages, then 0.5 s" applies to the whole
/// replay.
#[derive(Default)]
pub(super) struct PauseGate {
    opens: Mutex<Option<Instant>>,
}

impl PauseGate {
    /// Closes the gate for this long.
    pub(super) fn close_for(&self, pause: Duration) {
        *lock(&self.opens) = Some(Instant::now() + pause);
    }

    /// Returns how long it stays closed.
    pub(super) fn opens_in(&self) -> Duration {
        lock(&self.opens).map_or(Duration::ZERO, |opens| opens.saturating_duration_since(Instant::now()))
    }
}

/// How many messages may still be claimed under the user's limit.
pub(super) struct MessageQuota {
    /// Negative after more were taken than were left, see [`MessageQuota::take`].
    left: Option<Mutex<i64>>,
}

impl MessageQuota {
    /// Returns a quota of this many messages; `None`: without limit.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { left: limit.map(|limit| Mutex::new(i64::try_from(limit).unwrap_or(i64::MAX))) }
    }

    /// Takes up to `wanted`, and returns how many. If any are left, these are `whole` at least, even beyond the limit:
    /// so many must not be divided.
    pub(super) fn take(&self, wanted: usize, whole: usize) -> usize {
        let Some(left) = &self.left else { return wanted.max(whole) };
        let mut left = lock(left);
        if *left <= 0 {
            return 0;
        }
        let taken = wanted.min(usize::try_from(*left).unwrap_or(usize::MAX)).max(whole);
        *left = left.saturating_sub_unsigned(taken as u64);
        taken
    }

    /// Returns unused messages to the quota.
    pub(super) fn give_back(&self, unused: usize) {
        if let Some(left) = &self.left {
            let mut left = lock(left);
            *left = left.saturating_add_unsigned(unused as u64);
        }
    }

    /// Returns whether the limit is reached.
    pub(super) fn is_spent(&self) -> bool {
        self.left.as_ref().is_some_and(|left| *lock(left) <= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_spent_once_its_messages_are_taken() {
        let quota = MessageQuota::new(Some(5));
        assert_eq!((quota.take(3, 0), quota.take(3, 0)), (3, 2));
        assert!(quota.is_spent());
        quota.give_back(1);
        assert!(!quota.is_spent());
        assert_eq!(MessageQuota::new(None).take(1000, 0), 1000, "no limit");
    }

    #[test]
    fn a_limit_does_not_divide_what_belongs_together() {
        let quota = MessageQuota::new(Some(5));
        assert_eq!((quota.take(3, 0), quota.take(1, 10)), (3, 10), "an older write alone would overwrite a newer one");
        assert_eq!((quota.is_spent(), quota.take(1, 10)), (true, 0), "nothing of it once the limit is reached");
        quota.give_back(8);
        assert!(quota.is_spent(), "two were taken in the end: all that were left");
        quota.give_back(1);
        assert_eq!(quota.take(3, 0), 1);
        assert_eq!(MessageQuota::new(None).take(1, 10), 10);
    }
}
