//! The one session of an engine: one caller uses it at a time, and it is closed when idle.
//!
//! Ten thousand agents must not keep ten thousand connections: an agent ships every few seconds at most, and nothing at
//! all while the server is there.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::session::PostgresSession;

/// How long an unused session stays open: the next bundle of an outage that begins comes sooner.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Deadline for ending a session properly.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// Hands the session to one caller after the other.
#[derive(Default)]
pub(super) struct SessionDesk {
    state: Mutex<DeskState>,
    changed: Condvar,
}

#[derive(Default)]
struct DeskState {
    /// Whether a caller has the session, or opens one.
    is_taken: bool,
    /// The session that nobody uses, and since when.
    idle: Option<(PostgresSession, Instant)>,
    /// Whether a thread waits to close it.
    has_closer: bool,
}

impl SessionDesk {
    /// Waits until no other caller uses the session; `None` if that takes until `deadline`.
    pub(super) fn take(self: &Arc<Self>, deadline: Instant) -> Option<DeskTurn> {
        let mut state = self.lock();
        while state.is_taken {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_taken = true;
        let session = state.idle.take().map(|(session, _)| session);
        Some(DeskTurn { desk: self.clone(), session })
    }

    /// Closes an unused session.
    pub(super) fn close(&self) {
        let idle = self.lock().idle.take();
        self.changed.notify_all();
        if let Some((session, _)) = idle {
            session.close(Instant::now() + FAREWELL_MAX);
        }
    }

    /// Waits until the session was unused for [`IDLE_MAX`], and closes it.
    fn close_when_idle(&self) {
        let mut state = self.lock();
        loop {
            let since = match &state.idle {
                Some((_, since)) => *since,
                None if state.is_taken => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                None => break,
            };
            let left = (since + IDLE_MAX).saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.has_closer = false;
        drop(state);
        self.close();
    }

    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of one caller: ends when dropped. A session that is left in it is used again.
pub(super) struct DeskTurn {
    desk: Arc<SessionDesk>,
    pub(super) session: Option<PostgresSession>,
}

impl Drop for DeskTurn {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.is_taken = false;
        state.idle = self.session.take().map(|session| (session, Instant::now()));
        let needs_closer = state.idle.is_some() && !state.has_closer;
        state.has_closer |= needs_closer;
        drop(state);
        self.desk.changed.notify_all();
        if !needs_closer {
            return;
        }
        let desk = self.desk.clone();
        let closer = std::thread::Builder::new().name("depot-idle".to_owned()).spawn(move || desk.close_when_idle());
        if closer.is_err() {
            self.desk.lock().has_closer = false;
            self.desk.close();
        }
    }
}
