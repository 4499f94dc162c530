//! The streams of an HTTP/2 connection, and whether its client still takes their answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The streams of a connection that have a request in progress.
#[derive(Debug)]
pub(super) struct Streams {
    next_id: AtomicU64,
    open: Mutex<OpenStreams>,
}

#[derive(Debug)]
struct OpenStreams {
    /// Since when each waits for its client to take more of its answer; `None` while the client waits for the agent.
    streams: HashMap<u64, Option<Instant>>,
    /// Since when there has been none.
    idle_since: Instant,
}

/// Whether a connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamHealth {
    Healthy,
    /// It has timed out without a request.
    Idle,
    /// A client takes nothing of one answer, and others are in progress.
    PartlyStalled,
    /// A client takes nothing of any answer.
    Stalled,
}

impl Streams {
    pub(super) fn new() -> Self {
        let open = OpenStreams { streams: HashMap::new(), idle_since: Instant::now() };
        Self { next_id: AtomicU64::new(0), open: Mutex::new(open) }
    }

    /// Begins a request.
    pub(super) fn begin(self: &Arc<Self>) -> ActiveStream {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.lock().streams.insert(id, None);
        ActiveStream { streams: self.clone(), id }
    }

    fn lock(&self) -> MutexGuard<'_, OpenStreams> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the health of the connection. `timeout` is for its requests, and for clients that take nothing of an
    /// answer.
    pub(super) fn health(&self, now: Instant, timeout: Duration) -> StreamHealth {
        let open = self.lock();
        let is_over = |since: Instant| now.saturating_duration_since(since) >= timeout;
        if open.streams.is_empty() {
            return if is_over(open.idle_since) { StreamHealth::Idle } else { StreamHealth::Healthy };
        }
        match open.streams.values().filter(|since| since.is_some_and(is_over)).count() {
            0 => StreamHealth::Healthy,
            stalled if stalled == open.streams.len() => StreamHealth::Stalled,
            _ => StreamHealth::PartlyStalled,
        }
    }
}

/// A stream with a request in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct ActiveStream {
    streams: Arc<Streams>,
    id: u64,
}

impl ActiveStream {
    /// Notes whether the client has to take something before the answer can continue.
    pub(super) fn set_waiting_for_client(&self, is_waiting: bool) {
        self.streams.lock().streams.insert(self.id, is_waiting.then(Instant::now));
    }
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        open.streams.remove(&self.id);
        if open.streams.is_empty() {
            open.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn a_connection_ends_when_it_is_idle_or_its_client_takes_no_answer() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let streams = Arc::new(Streams::new());
        assert_eq!(streams.health(at(9), TIMEOUT), StreamHealth::Healthy);
        assert_eq!(streams.health(at(11), TIMEOUT), StreamHealth::Idle);
        let working = streams.begin();
        assert_eq!(streams.health(at(100), TIMEOUT), StreamHealth::Healthy, "its client waits for the agent");
        let stalled = streams.begin();
        stalled.set_waiting_for_client(true);
        assert_eq!(streams.health(at(9), TIMEOUT), StreamHealth::Healthy);
        assert_eq!(streams.health(at(11), TIMEOUT), StreamHealth::PartlyStalled);
        drop(working);
        assert_eq!(streams.health(at(11), TIMEOUT), StreamHealth::Stalled);
        stalled.set_waiting_for_client(false);
        assert_eq!(streams.health(at(11), TIMEOUT), StreamHealth::Healthy);
        drop(stalled);
        assert_eq!(streams.health(at(11), TIMEOUT), StreamHealth::Idle);
    }
}
