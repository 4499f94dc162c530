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
    left: Option<Mutex<u64>>,
}

impl MessageQuota {
    /// Returns a quota of this many messages; `None`: without limit.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { left: limit.map(Mutex::new) }
    }

    /// Takes up to this many, and returns how many.
    pub(super) fn take(&self, wanted: usize) -> usize {
        let Some(left) = &self.left else { return wanted };
        let mut left = lock(left);
        let taken = wanted.min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= taken as u64;
        taken
    }

    /// Returns unused messages to the quota.
    pub(super) fn give_back(&self, unused: usize) {
        if let Some(left) = &self.left {
            *lock(left) += unused as u64;
        }
    }

    /// Returns whether the limit is reached.
    pub(super) fn is_spent(&self) -> bool {
        self.left.as_ref().is_some_and(|left| *lock(left) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_spent_once_its_messages_are_taken() {
        let quota = MessageQuota::new(Some(5));
        assert_eq!((quota.take(3), quota.take(3)), (3, 2));
        assert!(quota.is_spent());
        quota.give_back(1);
        assert!(!quota.is_spent());
        assert_eq!(MessageQuota::new(None).take(1000), 1000, "no limit");
    }
}
