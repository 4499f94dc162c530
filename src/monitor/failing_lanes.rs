//! Failing lanes: what intake and replay of one process tell each other about a lane.
//!
//! The server may be available and yet limit, refuse or fail one workspace or one key. While a lane fails, its new
//! writes are stored behind its backlog instead of being forwarded: they would only time out, fail, or exceed a rate
//! limit. In memory only, for a new process observes it again; until when a lane is held is in the store, where other
//! processes see it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::message::Lane;

/// Lanes remembered at most. Beyond these, each failure looks like the first.
const REMEMBERED_MAX: usize = 10_000;

/// Lanes whose last request failed. The lock is never held over I/O, and while no lane fails it costs one load.
#[derive(Debug, Default)]
pub struct FailingLanes {
    lanes: Mutex<HashSet<Lane>>,
    count: AtomicUsize,
}

impl FailingLanes {
    /// Notes that a request of this lane failed transiently.
    pub fn failed(&self, lane: &Lane) {
        let mut lanes = self.lock();
        if lanes.len() < REMEMBERED_MAX && !lanes.contains(lane) {
            lanes.insert(lane.clone());
        }
        self.count.store(lanes.len(), Ordering::Relaxed);
    }

    /// Notes that a request of this lane passed.
    pub fn passed(&self, lane: &Lane) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut lanes = self.lock();
            lanes.remove(lane);
            self.count.store(lanes.len(), Ordering::Relaxed);
        }
    }

    /// Returns whether the last request of this lane failed.
    pub fn is_failing(&self, lane: &Lane) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.lock().contains(lane)
    }

    /// A panic elsewhere can't leave the set half changed.
    fn lock(&self) -> MutexGuard<'_, HashSet<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_fails_from_a_failure_to_its_next_success_and_no_other_does() {
        let lane = |name: &str| Lane { workspace: Some(name.to_owned()), ..Lane::default() };
        let failing = FailingLanes::default();
        assert!(!failing.is_failing(&lane("a")));
        failing.failed(&lane("a"));
        failing.failed(&lane("b"));
        assert!(failing.is_failing(&lane("a")) && failing.is_failing(&lane("b")));
        assert!(!failing.is_failing(&lane("c")));
        failing.passed(&lane("b"));
        assert!(failing.is_failing(&lane("a")) && !failing.is_failing(&lane("b")));
        failing.passed(&lane("a"));
        assert!(!failing.is_failing(&lane("a")));
    }
}
