//! Lanes in trouble: what intake and replay of one process tell each other about a lane.
//!
//! The server may be there and yet limit, refuse or fail one workspace or one key. While a lane is in trouble its new
//! writes are not tried on the server past what waits: they would only hang, fail, or break a rate limit. It is in
//! memory only, for it is an observation that a new process makes again; what has to outlive the process (until when a
//! lane is held) is in the store, and replay puts it there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::message::Lane;

/// Lanes remembered at most. Of more than these each failure looks like the first.
const LANES_MAX: usize = 10_000;

/// Which lanes are in trouble. Nothing is held over I/O, and while no lane is, it costs one load.
#[derive(Debug, Default)]
pub struct LaneTrouble {
    lanes: Mutex<HashMap<Lane, Option<Limit>>>,
    in_trouble: AtomicUsize,
}

/// A wait that the server asked of a lane when it answered a forwarded write with 429.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How long the server asked to wait, if it said so.
    pub asked: Option<Duration>,
}

impl LaneTrouble {
    /// Notes that a request of this lane failed in a way that time may heal.
    pub fn failed(&self, lane: &Lane) {
        self.put(lane, None);
    }

    /// Notes that the server limits this lane; replay is to hold it ([`LaneTrouble::take_limit`]).
    pub fn limited(&self, lane: &Lane, limit: Limit) {
        self.put(lane, Some(limit));
    }

    /// Notes that a request of this lane passed.
    pub fn passed(&self, lane: &Lane) {
        if self.in_trouble.load(Ordering::Relaxed) > 0 {
            let mut lanes = self.lock();
            lanes.remove(lane);
            self.in_trouble.store(lanes.len(), Ordering::Relaxed);
        }
    }

    /// Says whether the last request of this lane failed.
    pub fn is_in_trouble(&self, lane: &Lane) -> bool {
        self.in_trouble.load(Ordering::Relaxed) > 0 && self.lock().contains_key(lane)
    }

    /// Returns the limit of a lane that replay does not know of yet, once. The lane stays in trouble until a request passes.
    pub fn take_limit(&self, lane: &Lane) -> Option<Limit> {
        if self.in_trouble.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.lock().get_mut(lane)?.take()
    }

    fn put(&self, lane: &Lane, limit: Option<Limit>) {
        let mut lanes = self.lock();
        if lanes.len() < LANES_MAX || lanes.contains_key(lane) {
            let known = lanes.entry(lane.clone()).or_default();
            // Of several limits the last one counts: its clock started last.
            *known = limit.or(known.take());
        }
        self.in_trouble.store(lanes.len(), Ordering::Relaxed);
    }

    /// A panic elsewhere can't leave the map half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<Lane, Option<Limit>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_in_trouble_from_a_failure_to_the_next_success_and_no_other_is() {
        let lane = |name: &str| Lane { workspace: Some(name.to_owned()), credential: None };
        let trouble = LaneTrouble::default();
        assert!(!trouble.is_in_trouble(&lane("a")));
        trouble.failed(&lane("a"));
        trouble.limited(&lane("b"), Limit { asked: Some(Duration::from_secs(7)) });
        trouble.failed(&lane("b"));
        assert!(trouble.is_in_trouble(&lane("a")) && trouble.is_in_trouble(&lane("b")));
        assert!(!trouble.is_in_trouble(&lane("c")));
        assert_eq!(trouble.take_limit(&lane("b")), Some(Limit { asked: Some(Duration::from_secs(7)) }));
        assert_eq!(trouble.take_limit(&lane("b")), None, "a limit is taken once");
        assert_eq!(trouble.take_limit(&lane("a")), None);
        trouble.passed(&lane("b"));
        assert!(trouble.is_in_trouble(&lane("a")) && !trouble.is_in_trouble(&lane("b")));
        trouble.passed(&lane("a"));
        assert!(!trouble.is_in_trouble(&lane("a")));
    }
}
