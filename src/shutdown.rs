//! One value handed to every loop: stop now, please.
//!
//! A loop that lives asks at least as often as it waits, so the value also knows when it was asked last: the agent takes
//! that for the loop's sign of life ([`crate::pulse`]).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Says whether the process is to stop. Clones share one state, which only ever goes from *no* to *yes*.
#[derive(Clone, Default)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    notify: tokio::sync::Notify,
}

struct State {
    requested: bool,
    asked: Instant,
}

impl Default for State {
    fn default() -> Self {
        Self { requested: false, asked: Instant::now() }
    }
}

impl State {
    fn ask(&mut self) -> bool {
        self.asked = Instant::now();
        self.requested
    }
}

impl Shutdown {
    /// Returns a shutdown that nobody asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every holder to stop.
    pub fn request(&self) {
        self.state().requested = true;
        self.inner.changed.notify_all();
        self.inner.notify.notify_waiters();
    }

    /// Says whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.state().ask()
    }

    /// Returns how long nobody has asked.
    pub fn unasked_for(&self) -> Duration {
        self.state().asked.elapsed()
    }

    /// Sleeps for this time, or until shutdown; returns whether shutdown was requested.
    pub fn sleep(&self, time: Duration) -> bool {
        let waited = self.inner.changed.wait_timeout_while(self.state(), time, |state| !state.ask());
        waited.unwrap_or_else(PoisonError::into_inner).0.ask()
    }

    /// Waits for shutdown, without a thread.
    pub async fn requested(&self) {
        let mut notified = std::pin::pin!(self.inner.notify.notified());
        // Enabled before the check: a request between the two would otherwise never wake us.
        notified.as_mut().enable();
        if !self.is_requested() {
            notified.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment, so a panic elsewhere left it whole.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
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
}
