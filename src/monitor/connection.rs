//! The shared state that intake and replay read: is the server available, since when, and why not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use super::failing_lanes::FailingLanes;
use super::{Availability, Change, ConnectionMonitor, GOOD_PINGS_MAX, MonitorSettings};
use crate::protocol::recognise::Foreign;
use crate::shutdown::Shutdown;

/// What is known of the server, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Whether it is there.
    pub availability: Availability,
    /// Since when that is so.
    pub since: SystemTime,
    /// Why it is not there, or what is odd about its answers although it is.
    pub reason: Option<String>,
}

/// The connection monitor's state, shared. Critical sections are a few assignments long; nothing is held over I/O.
pub struct Connection {
    inner: Mutex<Inner>,
    changed: Condvar,
    lanes: FailingLanes,
    /// Whether [`Inner::foreign`] is set: asked after every write, for the price of a load.
    is_foreign: AtomicBool,
    /// Answers to writes that were not Opik's.
    foreign_count: AtomicU64,
}

struct Inner {
    monitor: ConnectionMonitor,
    since: SystemTime,
    reason: Option<String>,
    /// Why the ping that was answered is not quite well.
    notice: Option<String>,
    /// The last answer to a write that was not Opik's, until a write is confirmed.
    foreign: Option<String>,
    ping_takes_at_most: Duration,
}

impl Connection {
    /// Returns a connection of which nothing is known yet.
    pub fn new(settings: MonitorSettings) -> Self {
        let inner = Inner {
            monitor: ConnectionMonitor::new(settings),
            since: SystemTime::now(),
            reason: None,
            notice: None,
            foreign: None,
            ping_takes_at_most: settings.check_timeout,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            lanes: FailingLanes::default(),
            is_foreign: AtomicBool::new(false),
            foreign_count: AtomicU64::new(0),
        }
    }

    /// Returns the lanes that fail although the server is available.
    pub fn lanes(&self) -> &FailingLanes {
        &self.lanes
    }

    /// Returns what is known now.
    pub fn availability(&self) -> Availability {
        self.lock().monitor.availability()
    }

    /// Returns what is known now, for people.
    pub fn state(&self) -> ConnectionState {
        let inner = self.lock();
        let reason = inner.reason.as_ref().or(inner.foreign.as_ref()).or(inner.notice.as_ref()).cloned();
        ConnectionState { availability: inner.monitor.availability(), since: inner.since, reason }
    }

    /// Takes an answer to a write that was not Opik's.
    pub fn met_foreign(&self, foreign: &Foreign) {
        let text = format!("writes get an answer that is {foreign}; {}", foreign.hint());
        self.foreign_count.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        let is_news = inner.foreign.as_ref() != Some(&text);
        if is_news {
            warn!(target: "connection_monitor", "{text}; nothing is lost");
            inner.foreign = Some(text);
        }
        self.is_foreign.store(true, Ordering::Relaxed);
    }

    /// Takes a confirmation: what answers writes is Opik again.
    pub fn confirmed(&self) {
        if self.is_foreign.load(Ordering::Relaxed) {
            let mut inner = self.lock();
            inner.foreign = None;
            self.is_foreign.store(false, Ordering::Relaxed);
        }
    }

    /// Returns how many answers to writes were not Opik's.
    pub fn foreign_count(&self) -> u64 {
        self.foreign_count.load(Ordering::Relaxed)
    }

    /// Takes the result of a ping; `reason` says why it was not answered well.
    pub fn pinged(&self, answered: bool, reason: Option<String>, sent: Instant) -> Change {
        let mut inner = self.lock();
        let change = inner.monitor.pinged(answered, sent);
        inner.notice = reason.clone().filter(|_| answered);
        if change == Change::Restored {
            // What was in its place is gone, as far as anybody knows.
            inner.foreign = None;
        }
        self.changed(inner, change, reason.filter(|_| !answered))
    }

    /// Takes an answer of the server's own to a write that was tried although the server counts as gone.
    pub fn answered(&self) -> Change {
        let mut inner = self.lock();
        if inner.monitor.availability() != Availability::Unavailable {
            return Change::None;
        }
        let change = inner.monitor.answered(Instant::now());
        let reason = inner.reason.clone();
        if change == Change::Restored {
            inner.foreign = None;
        }
        self.changed(inner, change, reason)
    }

    /// Takes the failure of a send that could not even connect: the server is unavailable until a ping is answered.
    /// Returns whether that is news.
    pub fn send_failed(&self, reason: &str) -> Change {
        let mut inner = self.lock();
        let change = inner.monitor.send_failed(Instant::now());
        self.changed(inner, change, Some(reason.to_owned()))
    }

    /// Takes a failure that may be the server's or not: the next ping, which is due soon, decides.
    pub fn doubted(&self) {
        self.lock().monitor.doubted();
        self.changed.notify_all();
    }

    /// Takes such a failure and waits for the ping that decides; returns whether the server is there.
    ///
    /// Takes as long as a ping at most, and a moment; without anyone who pings, the answer is what was known before.
    pub fn is_there_after_all(&self, shutdown: &Shutdown) -> bool {
        let asked = Instant::now();
        let mut inner = self.lock();
        inner.monitor.doubted();
        self.changed.notify_all();
        let longest = inner.ping_takes_at_most + 2 * super::PING_DISTANCE_MIN;
        let is_undecided = |inner: &mut Inner| {
            inner.monitor.availability() != Availability::Unavailable
                && inner.monitor.last_ping().is_none_or(|sent| sent < asked)
                && !shutdown.is_requested()
        };
        let waited = self.changed.wait_timeout_while(inner, longest, is_undecided);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.monitor.availability() == Availability::Available
    }

    /// Asks for a ping now and waits for what it says, for this long at most; returns whether the server is there.
    ///
    /// One that comes and goes has to answer more than once, and is waited for as long as it answers.
    pub fn look_again(&self, timeout: Duration, shutdown: &Shutdown) -> bool {
        let asked = Instant::now();
        let mut inner = self.lock();
        inner.monitor.doubted();
        self.changed.notify_all();
        let longest = timeout.min(inner.ping_takes_at_most * GOOD_PINGS_MAX + 2 * super::PING_DISTANCE_MIN);
        let is_undecided = |inner: &mut Inner| {
            let is_fresh = inner.monitor.last_ping().is_some_and(|sent| sent >= asked);
            !shutdown.is_requested() && (!is_fresh || inner.monitor.is_returning())
        };
        let waited = self.changed.wait_timeout_while(inner, longest, is_undecided);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.monitor.availability() == Availability::Available
    }

    /// Waits until the server is available, shutdown is requested or the time is over; returns whether it is available.
    pub fn wait_until_available(&self, timeout: Duration, shutdown: &Shutdown) -> bool {
        let is_away =
            |inner: &mut Inner| inner.monitor.availability() != Availability::Available && !shutdown.is_requested();
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, is_away);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.monitor.availability() == Availability::Available
    }

    /// Waits until a ping is due or shutdown is requested.
    ///
    /// What is due is worked out under the lock that is given up by waiting, so a failed send can't slip in between.
    pub fn wait_for_ping(&self, shutdown: &Shutdown) {
        let mut inner = self.lock();
        while !shutdown.is_requested() {
            let wait = inner.monitor.next_ping_in(Instant::now());
            if wait.is_zero() {
                return;
            }
            inner = self.changed.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wakes whoever waits, after shutdown was requested.
    pub fn wake(&self) {
        // Whoever holds the lock has not seen the request yet and is about to wait: it must be waiting before we call.
        drop(self.lock());
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
        let shutdown = Shutdown::new();
        connection.send_failed("refused");
        assert_eq!(connection.state().reason.as_deref(), Some("refused"));
        assert!(!connection.wait_until_available(Duration::ZERO, &shutdown));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| connection.wait_until_available(Duration::from_secs(60), &shutdown));
            connection.pinged(true, None, Instant::now());
            assert!(waiter.join().expect("no panic"));
        });
        assert_eq!(connection.state().reason, None);
    }

    #[test]
    fn a_doubt_is_decided_by_the_ping_that_follows_it() {
        let settings =
            MonitorSettings { ping_interval: Duration::from_secs(600), check_timeout: Duration::from_secs(60) };
        for answered in [true, false] {
            let connection = Connection::new(settings);
            let shutdown = Shutdown::new();
            connection.pinged(true, None, Instant::now());
            std::thread::scope(|scope| {
                let doubter = scope.spawn(|| connection.is_there_after_all(&shutdown));
                connection.wait_for_ping(&shutdown);
                connection.pinged(answered, None, Instant::now());
                assert_eq!(doubter.join().expect("no panic"), answered);
            });
        }
    }

    #[test]
    fn shutdown_ends_every_wait_however_it_falls() {
        let settings =
            MonitorSettings { ping_interval: Duration::from_secs(600), check_timeout: Duration::from_secs(5) };
        for _ in 0..200 {
            let connection = Connection::new(settings);
            connection.pinged(false, None, Instant::now());
            let shutdown = Shutdown::new();
            std::thread::scope(|scope| {
                scope.spawn(|| connection.wait_for_ping(&shutdown));
                scope.spawn(|| connection.wait_until_available(Duration::from_secs(600), &shutdown));
                shutdown.request();
                connection.wake();
            });
        }
    }
}
