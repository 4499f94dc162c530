//! Lanes in trouble: what intake and replay of one process tell each other about a lane.
//!
//! The server may be there and yet limit, refuse or fail one workspace or one key. While a lane is in trouble its new
//! writes are not tried on the server past what waits: they would only hang, fail, or break a rate limit. It is in
//! memory only, for it is an observation that a new process makes again; until when a lane is held is in the store,
//! where other processes see it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::message::Lane;

/// Lanes remembered at most. Of more than these each failure looks like the first.
const LANES_MAX: usize = 10_000;

/// Which lanes are in trouble. Nothing is held over I/O, and while no lane is, it costs one load.
#[derive(Debug, Default)]
pub struct LaneTrouble {
    lanes: Mutex<HashSet<Lane>>,
    in_trouble: AtomicUsize,
}

impl LaneTrouble {
    /// Notes that a request of this lane failed in a way that time may heal.
    pub fn failed(&self, lane: &Lane) {
        let mut lanes = self.lock();
        if lanes.len() < LANES_MAX && !lanes.contains(lane) {
            lanes.insert(lane.clone());
        }
        self.in_trouble.store(lanes.len(), Ordering::Relaxed);
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
        self.in_trouble.load(Ordering::Relaxed) > 0 && self.lock().contains(lane)
    }

    /// A panic elsewhere can't leave the set half changed.
    fn lock(&self) -> MutexGuard<'_, HashSet<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a number in 0.0 to 1.0 that differs between calls and processes: with it, those who wait for the same thing
/// don't come back together.
pub fn jitter() -> f64 {
    let bytes = uuid::Uuid::now_v7().into_bytes();
    f64::from(u16::from_be_bytes([bytes[14], bytes[15]])) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_in_trouble_from_a_failure_to_the_next_success_and_no_other_is() {
        let lane = |name: &str| Lane { workspace: Some(name.to_owned()), ..Lane::default() };
        let trouble = LaneTrouble::default();
        assert!(!trouble.is_in_trouble(&lane("a")));
        trouble.failed(&lane("a"));
        trouble.failed(&lane("b"));
        assert!(trouble.is_in_trouble(&lane("a")) && trouble.is_in_trouble(&lane("b")));
        assert!(!trouble.is_in_trouble(&lane("c")));
        trouble.passed(&lane("b"));
        assert!(trouble.is_in_trouble(&lane("a")) && !trouble.is_in_trouble(&lane("b")));
        trouble.passed(&lane("a"));
        assert!(!trouble.is_in_trouble(&lane("a")));
    }
}
