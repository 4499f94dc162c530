//! One value that every loop of the agent is given: when to stop, and where to record its heartbeat.
//!
//! [`Shutdown::is_requested`] only reads. A loop whose liveness is checked ([`crate::liveness`]) records a heartbeat at
//! every turn with [`Shutdown::beat`]; nothing else records one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::liveness::Heartbeat;

/// A request to stop. Clones share one state, which only ever goes from *not requested* to *requested*.
#[derive(Clone, Default)]
pub struct Shutdown {
    state: Arc<ShutdownState>,
}

#[derive(Default)]
struct ShutdownState {
    is_requested: Mutex<bool>,
    changed: Condvar,
    notify: tokio::sync::Notify,
    heartbeat: Heartbeat,
}

impl Shutdown {
    /// Returns a shutdown that is not requested yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every holder to stop.
    pub fn request(&self) {
        *self.lock() = true;
        self.state.changed.notify_all();
        self.state.notify.notify_waiters();
    }

    /// Returns whether shutdown was requested.
    pub fn is_requested(&self) -> bool {
        *self.lock()
    }

    /// Sleeps for this time, or until shutdown; returns whether shutdown was requested.
    pub fn sleep(&self, time: Duration) -> bool {
        let waited = self.state.changed.wait_timeout_while(self.lock(), time, |is_requested| !*is_requested);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for shutdown without blocking a thread.
    pub async fn requested(&self) {
        let mut notified = std::pin::pin!(self.state.notify.notified());
        // Enabled before the check: a request between the two would otherwise never wake us.
        notified.as_mut().enable();
        if !self.is_requested() {
            notified.await;
        }
    }

    /// Records a heartbeat of the loop that holds this value.
    pub fn beat(&self) {
        self.state.heartbeat.beat();
    }

    /// Returns the time since the loop's last heartbeat.
    pub fn silent_for(&self) -> Duration {
        self.state.heartbeat.silent_for()
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // The only change is one assignment, so the state is whole even after a panic elsewhere.
        self.state.is_requested.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_every_wait_early_and_for_good() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.sleep(Duration::ZERO));
        let clone = shutdown.clone();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| shutdown.sleep(Duration::from_secs(60)));
            clone.request();
            assert!(sleeper.join().expect("no panic"));
        });
        assert!(shutdown.is_requested());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(clone.requested());
    }

    #[test]
    fn only_a_beat_records_a_heartbeat() {
        let shutdown = Shutdown::new();
        let pause = Duration::from_millis(20);
        std::thread::sleep(pause);
        shutdown.is_requested();
        shutdown.sleep(Duration::ZERO);
        assert!(shutdown.silent_for() >= pause, "asking or sleeping hid that a loop has stalled");
        shutdown.clone().beat();
        assert!(shutdown.silent_for() < Duration::from_secs(60));
    }
}
