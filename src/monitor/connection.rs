//! The shared state that intake and replay read: is the server available, since when, and why not.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{Availability, Change, ConnectionMonitor, MonitorSettings};

/// What is known of the server, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Whether it is there.
    pub availability: Availability,
    /// Since when that is so.
    pub since: SystemTime,
    /// Why it is not there.
    pub reason: Option<String>,
}

/// The connection monitor's state, shared. Critical sections are a few assignments long; nothing is held over I/O.
pub struct Connection {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    monitor: ConnectionMonitor,
    since: SystemTime,
    reason: Option<String>,
}

impl Connection {
    /// Returns a connection of which nothing is known yet.
    pub fn new(settings: MonitorSettings) -> Self {
        let inner = Inner { monitor: ConnectionMonitor::new(settings), since: SystemTime::now(), reason: None };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Returns what is known now.
    pub fn availability(&self) -> Availability {
        self.lock().monitor.availability()
    }

    /// Returns what is known now, for people.
    pub fn state(&self) -> ConnectionState {
        let inner = self.lock();
        ConnectionState { availability: inner.monitor.availability(), since: inner.since, reason: inner.reason.clone() }
    }

    /// Takes the result of a ping.
    pub fn pinged(&self, answered: bool, reason: Option<String>, sent: Instant) -> Change {
        let mut inner = self.lock();
        let change = inner.monitor.pinged(answered, sent);
        self.changed(inner, change, reason)
    }

    /// Takes the failure of a send: the server is unavailable until a ping is answered. Returns whether that is news.
    pub fn send_failed(&self, reason: &str) -> Change {
        let mut inner = self.lock();
        let change = inner.monitor.send_failed();
        self.changed(inner, change, Some(reason.to_owned()))
    }

    /// Waits until the server is available or the time is over; returns whether it is.
    pub fn wait_until_available(&self, timeout: Duration) -> bool {
        let is_away = |inner: &mut Inner| inner.monitor.availability() != Availability::Available;
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, is_away);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.monitor.availability() == Availability::Available
    }

    /// Returns how long the monitor waits before its next ping.
    pub fn next_ping_in(&self, now: Instant) -> Duration {
        self.lock().monitor.next_ping_in(now)
    }

    /// Waits until a ping is due, something changed, or [`Connection::wake`] was called.
    pub fn wait_for_ping(&self, timeout: Duration) {
        let waited = self.changed.wait_timeout(self.lock(), timeout);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Wakes whoever waits, for shutdown.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    fn changed(&self, mut inner: MutexGuard<'_, Inner>, change: Change, reason: Option<String>) -> Change {
        if change != Change::None {
            inner.since = SystemTime::now();
        }
        inner.reason = reason.filter(|_| inner.monitor.availability() == Availability::Unavailable);
        drop(inner);
        // The monitor itself waits here too: a failed send brings its next ping forward.
        self.changed.notify_all();
        change
    }

    /// A panic elsewhere leaves a state that is still true: plain assignments can't be half done.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_the_server_is_woken_by_the_first_good_ping() {
        let settings =
            MonitorSettings { ping_interval: Duration::from_secs(10), check_timeout: Duration::from_secs(5) };
        let connection = Connection::new(settings);
        connection.send_failed("refused");
        assert_eq!(connection.state().reason.as_deref(), Some("refused"));
        assert!(!connection.wait_until_available(Duration::ZERO));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| connection.wait_until_available(Duration::from_secs(60)));
            connection.pinged(true, None, Instant::now());
            assert!(waiter.join().expect("no panic"));
        });
        assert_eq!(connection.state().reason, None);
    }
}
