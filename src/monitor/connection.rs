//! The state shared with intake and replay: whether the server is available, since when, and why not.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use super::failing_lanes::FailingLanes;
use super::{Availability, Change, ConnectionMonitor, GOOD_PINGS_MAX, MonitorSettings, jitter};
use crate::protocol::hub::Hub;
use crate::protocol::recognise::Foreign;
use crate::shutdown::Shutdown;
use crate::upstream::Met;

/// The server's availability, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Whether it is available.
    pub availability: Availability,
    /// Since when.
    pub since: SystemTime,
    /// Why it is unavailable, or what is unusual about its answers although it is available.
    pub reason: Option<String>,
}

/// The connection monitor's state, shared by threads. Critical sections are a few assignments long; no lock is held
/// over I/O.
pub struct Connection {
    state: Mutex<MonitorState>,
    changed: Condvar,
    /// A copy of the monitor's [`Availability`], which every request reads without the lock.
    availability: AtomicU8,
    /// Whether the user set the interval of pings.
    is_interval_set: bool,
    /// Whether a request for the unavailable server was noted since the last ping began.
    is_wanted: AtomicBool,
    lanes: FailingLanes,
    /// Whether [`MonitorState::foreign`] is set: checked after every write, at the cost of one load.
    is_foreign: AtomicBool,
    /// Answers to writes that were not Opik's.
    foreign_count: AtomicU64,
    /// Whether [`MonitorState::hub`] is set.
    is_hub: AtomicBool,
    /// The latency of the last ping that was answered, in microseconds; 0 before the first.
    latency_micros: AtomicU64,
}

struct MonitorState {
    monitor: ConnectionMonitor,
    since: SystemTime,
    reason: Option<String>,
    /// Notice about the last ping that was answered, if its answer was unusual.
    notice: Option<String>,
    /// The last answer to a write that was not Opik's, until a write is confirmed.
    foreign: Option<String>,
    ping_takes_at_most: Duration,
    /// The hub that answered the last ping that was answered.
    hub: Option<Hub>,
}

impl Connection {
    /// Returns a connection without any ping result.
    pub fn new(settings: MonitorSettings) -> Self {
        let state = MonitorState {
            monitor: ConnectionMonitor::new(settings),
            since: SystemTime::now(),
            reason: None,
            notice: None,
            foreign: None,
            ping_takes_at_most: settings.check_timeout,
            hub: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            availability: AtomicU8::new(Availability::Unknown as u8),
            is_interval_set: settings.is_interval_set,
            is_wanted: AtomicBool::new(false),
            lanes: FailingLanes::default(),
            is_foreign: AtomicBool::new(false),
            foreign_count: AtomicU64::new(0),
            is_hub: AtomicBool::new(false),
            latency_micros: AtomicU64::new(0),
        }
    }

    /// Notes how long the server took to answer a ping.
    pub(super) fn note_latency(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        self.latency_micros.store(micros, Ordering::Relaxed);
    }

    /// Returns how long the server took to answer the last ping that it answered.
    pub fn latency(&self) -> Option<Duration> {
        let micros = self.latency_micros.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// Returns the lanes that fail although the server is available.
    pub fn lanes(&self) -> &FailingLanes {
        &self.lanes
    }

    /// Returns the server's availability.
    pub fn availability(&self) -> Availability {
        match self.availability.load(Ordering::Acquire) {
            available if available == Availability::Available as u8 => Availability::Available,
            unavailable if unavailable == Availability::Unavailable as u8 => Availability::Unavailable,
            _ => Availability::Unknown,
        }
    }

    /// Returns how many outages have ended; see [`ConnectionMonitor::outages_ended`].
    pub fn outages_ended(&self) -> u64 {
        self.lock().monitor.outages_ended()
    }

    /// Notes that a request arrived which the unavailable server would have got: the next ping comes sooner, unless the
    /// user set the interval. Costs one load for all but the first request after a ping.
    pub fn wanted(&self) {
        if self.is_interval_set || self.is_wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        self.is_wanted.store(true, Ordering::Relaxed);
        state.monitor.wanted();
        drop(state);
        self.changed.notify_all();
    }

    /// Begins a ping; returns the timeout of its connection attempt, if it is shorter than usual.
    pub fn begin_ping(&self, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        self.is_wanted.store(false, Ordering::Relaxed);
        state.monitor.begin_ping(now)
    }

    /// Returns the server's availability, for people.
    pub fn state(&self) -> ConnectionState {
        let state = self.lock();
        let reason = state.reason.as_ref().or(state.foreign.as_ref()).or(state.notice.as_ref()).cloned();
        ConnectionState { availability: state.monitor.availability(), since: state.since, reason }
    }

    /// Takes an answer to a write that was not Opik's.
    pub fn met_foreign(&self, foreign: &Foreign) {
        let text = format!("writes get an answer that is {foreign}; {}", foreign.hint());
        self.foreign_count.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        let is_news = state.foreign.as_ref() != Some(&text);
        if is_news {
            warn!(target: "connection_monitor", "{text}; nothing is lost");
            state.foreign = Some(text);
        }
        self.is_foreign.store(true, Ordering::Relaxed);
    }

    /// Takes a confirmation: it is Opik again that answers writes.
    pub fn confirmed(&self) {
        if self.is_foreign.load(Ordering::Relaxed) {
            let mut state = self.lock();
            state.foreign = None;
            self.is_foreign.store(false, Ordering::Relaxed);
        }
    }

    /// Returns how many answers to writes were not Opik's.
    pub fn foreign_count(&self) -> u64 {
        self.foreign_count.load(Ordering::Relaxed)
    }

    /// Takes who answered a ping: a hub, or not.
    pub fn met_hub(&self, hub: Option<Hub>) {
        let mut state = self.lock();
        self.is_hub.store(hub.is_some(), Ordering::Relaxed);
        let was = std::mem::replace(&mut state.hub, hub.clone());
        drop(state);
        match (was, hub) {
            (None, Some(hub)) => {
                let url = hub.server_url.as_deref().unwrap_or("an unknown server");
                info!(target: "connection_monitor", "the server is an opik-offline hub in front of {url}");
            }
            (Some(_), None) => info!(target: "connection_monitor", "the server is not an opik-offline hub any more"),
            _ => {}
        }
    }

    /// Returns the hub that answered the last ping that was answered, if it is one.
    pub fn hub(&self) -> Option<Hub> {
        self.lock().hub.clone()
    }

    /// Returns whether the server is a hub, at the cost of one load.
    pub fn is_hub(&self) -> bool {
        self.is_hub.load(Ordering::Relaxed)
    }

    /// Returns when a hub last returned and how long it had been away; `None` while it is away, and for a server that is
    /// not a hub.
    pub fn hub_return(&self) -> Option<(Instant, Duration)> {
        let state = self.lock();
        state.hub.as_ref().and_then(|_| state.monitor.last_return())
    }

    /// Returns when the server last returned and how long it had been away; `None` while it is away.
    pub fn last_return(&self) -> Option<(Instant, Duration)> {
        self.lock().monitor.last_return()
    }

    /// Takes the result of a ping: answered well, or what it met; `reason` is why it was not answered well.
    pub fn pinged(&self, result: Result<(), Met>, reason: Option<String>, sent: Instant) -> Change {
        let answered = result.is_ok();
        let mut state = self.lock();
        let change = state.monitor.pinged(result, sent, jitter());
        state.notice = reason.clone().filter(|_| answered);
        if change == Change::Restored {
            // The foreign answers were of the time of the outage, as far as known.
            state.foreign = None;
        }
        self.changed(state, change, reason.filter(|_| !answered))
    }

    /// Takes an answer of the server's own to a write that was tried although the server counts as unavailable.
    pub fn answered(&self) -> Change {
        let mut state = self.lock();
        if state.monitor.availability() != Availability::Unavailable {
            return Change::None;
        }
        let change = state.monitor.answered(Instant::now());
        let reason = state.reason.clone();
        if change == Change::Restored {
            state.foreign = None;
        }
        self.changed(state, change, reason)
    }

    /// Takes the failure of a send that could not even connect: the server is unavailable until a ping is answered.
    /// Returns whether that changes its availability.
    pub fn send_failed(&self, reason: &str) -> Change {
        let mut state = self.lock();
        let change = state.monitor.send_failed(Instant::now());
        self.changed(state, change, Some(reason.to_owned()))
    }

    /// Takes a failure that may be the server's or not, such as a timeout: the next ping, which is due soon, decides.
    pub fn doubted(&self) {
        self.lock().monitor.doubted();
        self.changed.notify_all();
    }

    /// Takes such a failure and waits for the ping that decides; returns whether the server is available.
    ///
    /// Waits for the timeout of a ping at most, and a moment; if no thread pings, returns the availability as it was.
    pub fn is_there_after_all(&self, shutdown: &Shutdown) -> bool {
        let asked = Instant::now();
        let mut state = self.lock();
        state.monitor.doubted();
        self.changed.notify_all();
        let longest = state.ping_takes_at_most + 2 * super::PING_DISTANCE_MIN;
        let is_undecided = |state: &mut MonitorState| {
            state.monitor.availability() != Availability::Unavailable
                && state.monitor.last_ping().is_none_or(|sent| sent < asked)
                && !shutdown.is_requested()
        };
        let waited = self.changed.wait_timeout_while(state, longest, is_undecided);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.monitor.availability() == Availability::Available
    }

    /// Returns whether a ping that was sent since then has a result.
    pub fn is_pinged_since(&self, then: Instant) -> bool {
        self.lock().monitor.last_ping().is_some_and(|sent| sent >= then)
    }

    /// Requests a ping now and waits for its result, up to `timeout`; returns whether the server is available.
    ///
    /// A flapping server has to answer more than once, and is waited for as long as it answers.
    pub fn look_again(&self, timeout: Duration, shutdown: &Shutdown) -> bool {
        let asked = Instant::now();
        let mut state = self.lock();
        state.monitor.doubted();
        self.changed.notify_all();
        let longest = timeout.min(state.ping_takes_at_most * GOOD_PINGS_MAX + 2 * super::PING_DISTANCE_MIN);
        let is_undecided = |state: &mut MonitorState| {
            let is_fresh = state.monitor.last_ping().is_some_and(|sent| sent >= asked);
            !shutdown.is_requested() && (!is_fresh || state.monitor.is_returning())
        };
        let waited = self.changed.wait_timeout_while(state, longest, is_undecided);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.monitor.availability() == Availability::Available
    }

    /// Waits until the server is available, shutdown is requested or the timeout expires; returns whether it is
    /// available.
    pub fn wait_until_available(&self, timeout: Duration, shutdown: &Shutdown) -> bool {
        let is_away = |state: &mut MonitorState| {
            state.monitor.availability() != Availability::Available && !shutdown.is_requested()
        };
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, is_away);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.monitor.availability() == Availability::Available
    }

    /// Waits until a ping is due or shutdown is requested.
    ///
    /// Whether one is due is determined under the lock that waiting releases, so no failed send can be missed in
    /// between.
    pub fn wait_for_ping(&self, shutdown: &Shutdown) {
        let mut state = self.lock();
        while !shutdown.is_requested() {
            let wait = state.monitor.next_ping_in(Instant::now());
            if wait.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wakes all waiting threads, after shutdown was requested.
    pub fn wake(&self) {
        // A thread that holds the lock has not seen the request yet and is about to wait: it must be waiting before the
        // notification.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn changed(&self, mut state: MutexGuard<'_, MonitorState>, change: Change, reason: Option<String>) -> Change {
        if change != Change::None {
            state.since = SystemTime::now();
        }
        let availability = state.monitor.availability();
        state.reason = reason.filter(|_| availability == Availability::Unavailable);
        self.availability.store(availability as u8, Ordering::Release);
        drop(state);
        // The monitor itself waits here, too: a failed send brings its next ping forward.
        self.changed.notify_all();
        change
    }

    /// A panic elsewhere leaves a valid state: plain assignments can't be half done.
    fn lock(&self) -> MutexGuard<'_, MonitorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(ping_interval: Duration) -> MonitorSettings {
        MonitorSettings { ping_interval, is_interval_set: true, check_timeout: Duration::from_secs(60) }
    }

    #[test]
    fn the_first_good_ping_wakes_every_thread_that_waits_for_the_server() {
        let settings = settings(Duration::from_secs(10));
        let connection = Connection::new(settings);
        let shutdown = Shutdown::new();
        connection.send_failed("refused");
        assert_eq!(connection.state().reason.as_deref(), Some("refused"));
        assert!(!connection.wait_until_available(Duration::ZERO, &shutdown));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| connection.wait_until_available(Duration::from_secs(60), &shutdown));
            connection.pinged(Ok(()), None, Instant::now());
            assert!(waiter.join().expect("no panic"));
        });
        assert_eq!(connection.state().reason, None);
    }

    #[test]
    fn the_ping_after_a_doubt_decides_it() {
        let settings = settings(Duration::from_secs(600));
        for answered in [true, false] {
            let connection = Connection::new(settings);
            let shutdown = Shutdown::new();
            connection.pinged(Ok(()), None, Instant::now());
            std::thread::scope(|scope| {
                let doubter = scope.spawn(|| connection.is_there_after_all(&shutdown));
                connection.wait_for_ping(&shutdown);
                let result = if answered { Ok(()) } else { Err(Met::Somebody) };
                connection.pinged(result, None, Instant::now());
                assert_eq!(doubter.join().expect("no panic"), answered);
            });
        }
    }

    #[test]
    fn shutdown_ends_every_wait_at_any_moment() {
        let settings = settings(Duration::from_secs(600));
        for _ in 0..200 {
            let connection = Connection::new(settings);
            connection.pinged(Err(Met::Nobody), None, Instant::now());
            let shutdown = Shutdown::new();
            std::thread::scope(|scope| {
                scope.spawn(|| connection.wait_for_ping(&shutdown));
                scope.spawn(|| connection.wait_until_available(Duration::from_secs(600), &shutdown));
                shutdown.request();
                connection.wake();
            });
        }
    }

    #[test]
    fn requests_for_an_unavailable_server_are_noted_once_a_ping_unless_the_interval_is_set() {
        for is_interval_set in [false, true] {
            let connection = Connection::new(MonitorSettings { is_interval_set, ..settings(Duration::from_secs(10)) });
            connection.pinged(Err(Met::Nobody), None, Instant::now());
            let is_noted = || connection.is_wanted.load(Ordering::Relaxed);
            for _ in 0..2 {
                connection.wanted();
                connection.wanted();
                assert_eq!(is_noted(), !is_interval_set);
                connection.begin_ping(Instant::now());
                assert!(!is_noted(), "a request during the ping asks for another one");
            }
        }
    }
}
