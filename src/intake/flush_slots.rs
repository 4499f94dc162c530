//! How many clients may wait for a flush, and how often lanes are made due for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Concurrent clients at most.
pub(super) const WAITING_MAX: usize = 64;
/// How often an unavailable server is pinged, and lanes are made due.
pub(super) const PUSH_INTERVAL: Duration = Duration::from_secs(1);

/// The clients that wait for a flush.
pub(super) struct FlushSlots {
    slots: Arc<Semaphore>,
    /// When lanes were last made due.
    hastened: Mutex<Option<Instant>>,
}

impl Default for FlushSlots {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(WAITING_MAX)), hastened: Mutex::default() }
    }
}

impl FlushSlots {
    /// Returns a slot for one more client, freed when it is dropped; `None` when all are taken.
    pub(super) fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// Takes the right to make lanes due, at most once per [`PUSH_INTERVAL`]; returns whether it was free. Clients that
    /// flush all the time must not cancel every backoff.
    pub(super) fn try_hasten(&self) -> bool {
        let mut hastened = self.hastened.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = hastened.is_none_or(|hastened| hastened.elapsed() >= PUSH_INTERVAL);
        if is_free {
            *hastened = Some(Instant::now());
        }
        is_free
    }
}
