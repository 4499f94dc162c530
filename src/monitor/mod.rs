//! The connection monitor: is the server available?
//!
//! [`ConnectionMonitor`] is a state machine on ping results and send failures, with `now` as an argument; [`run`]
//! feeds it from a thread, and intake and replay read and wait on a [`connection::Connection`]. Terms are the SDK's
//! (`OpikConnectionMonitor`): a ping is *ok*, *failed*, or *restored* when it is the first good one after a bad one.
//!
//! Failed sends differ in what they tell about the server. No connection at all: the server is unavailable until a
//! ping succeeds. A timeout, or a 502 to 504: one message, one lane or a proxy in between may be to blame as well, so
//! this is a *doubt*, and the next ping decides it. If a timeout alone made the server unavailable, one poison message
//! that always times out would send every lane's traffic through the store, again and again. Lanes that fail although
//! the server is available are in [`failing_lanes::FailingLanes`].
//!
//! Either is followed by a ping at once instead of after the interval: an idle connection that the server closed then
//! costs milliseconds of extra latency through the store, not ten seconds. Such pings are throttled to one per
//! [`PING_DISTANCE_MIN`], so that a server that answers pings and fails writes is not pinged in a loop.
//!
//! While the server is unavailable, pings come sooner than its interval, unless the user set it: [`probing`]. Nothing but
//! a ping's answer, or the answer to a write that was tried, makes it available again: a connection alone proves nothing.
//!
//! A flapping server has to answer more than one ping before it counts as available again: as many as the times that
//! it was lost within [`STEADY_AFTER`] of its return, up to [`GOOD_PINGS_MAX`]. Unless the user set the interval, these
//! follow each other after [`probing::FIRST_WAIT`].

pub mod connection;
pub(crate) mod failing_lanes;
pub mod probing;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::protocol::recognise::Presence;
use crate::shutdown::Shutdown;
use crate::upstream::{Met, Upstream};
use connection::Connection;
pub use probing::{MonitorSettings, PING_DISTANCE_MIN};
use probing::{QUICK_CONNECT_TIMEOUT, Waits};

/// A server that was available for this long is steady: after its next outage one good ping is enough.
pub const STEADY_AFTER: Duration = Duration::from_secs(30);
/// The most consecutive good pings that a flapping server has to answer.
pub const GOOD_PINGS_MAX: u32 = 4;

/// Whether a ping or a failed send changed the server's availability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// No change.
    None,
    /// The server is available, for the first time or again.
    Restored,
    /// The server is unavailable.
    Lost,
}

/// Whether the server is available, as far as known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// No ping has a result yet.
    Unknown,
    /// The last ping was answered by Opik, or refused for its own key, and no send failed since.
    Available,
    /// The last ping or send failed.
    Unavailable,
}

/// The state machine of the server's availability.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionMonitor {
    settings: MonitorSettings,
    availability: Availability,
    last_ping: Option<Instant>,
    asked_early: bool,
    /// When a ping with the configured timeouts last began.
    last_regular_ping: Option<Instant>,
    /// How long to wait for the next ping while the server is unavailable.
    waits: Waits,
    /// Whether a request for the unavailable server arrived since the last ping began.
    is_wanted: bool,
    /// When it became unavailable.
    lost: Option<Instant>,
    /// When it became available.
    restored: Option<Instant>,
    /// How many outages have ended, without those of a flapping server.
    outages_ended: u64,
    /// How long the last outage took that ended.
    last_outage: Duration,
    /// How often it was lost soon after its return.
    flaps: u32,
    /// Consecutive good pings since it was lost.
    good_pings: u32,
}

impl ConnectionMonitor {
    /// Returns a monitor without any result, which pings at once.
    pub fn new(settings: MonitorSettings) -> Self {
        Self {
            settings,
            availability: Availability::Unknown,
            last_ping: None,
            asked_early: false,
            last_regular_ping: None,
            waits: Waits::regular(&settings),
            is_wanted: false,
            lost: None,
            restored: None,
            outages_ended: 0,
            last_outage: Duration::ZERO,
            flaps: 0,
            good_pings: 0,
        }
    }

    /// Returns the server's availability.
    pub fn availability(&self) -> Availability {
        self.availability
    }

    /// Returns when the last ping that has a result was sent.
    pub fn last_ping(&self) -> Option<Instant> {
        self.last_ping
    }

    /// Returns whether the server answers again and has to answer more pings before it counts as available.
    pub fn is_returning(&self) -> bool {
        self.availability == Availability::Unavailable && self.good_pings > 0
    }

    /// Returns how many outages have ended since the start. A return from a flap is not counted: what failed in it may
    /// have caused it.
    pub fn outages_ended(&self) -> u64 {
        self.outages_ended
    }

    /// Returns when the server last became available, and how long it had been unavailable before; zero for the start.
    pub fn last_return(&self) -> Option<(Instant, Duration)> {
        self.restored.map(|restored| (restored, self.last_outage))
    }

    /// Begins a ping at `now`, and returns the timeout of its connection attempt, if it is shorter than usual.
    ///
    /// A ping that comes before its regular time gives up an attempt that hangs. At least once per interval an attempt
    /// has all the time that it would have while the server is available: the way to it may be slow.
    pub fn begin_ping(&mut self, now: Instant) -> Option<Duration> {
        self.is_wanted = false;
        let is_regular = self.settings.is_interval_set
            || self.availability != Availability::Unavailable
            || self
                .last_regular_ping
                .is_none_or(|last| now.saturating_duration_since(last) >= self.settings.ping_interval);
        if is_regular {
            self.last_regular_ping = Some(now);
        }
        (!is_regular).then_some(QUICK_CONNECT_TIMEOUT.min(self.settings.check_timeout))
    }

    /// Takes the result of a ping that was sent at `now`. `jitter` in 0.0 to 1.0 shortens the wait for the next one.
    pub fn pinged(&mut self, result: Result<(), Met>, now: Instant, jitter: f64) -> Change {
        self.last_ping = Some(now);
        self.asked_early = false;
        match result {
            Ok(()) => self.found(now),
            Err(met) => {
                let change = self.lose(now);
                let outage = self.lost.map_or(Duration::ZERO, |lost| now.saturating_duration_since(lost));
                self.waits = Waits::after_failure(&self.settings, outage, met, jitter);
                change
            }
        }
    }

    /// Notes that a request for the server arrived while it is unavailable: the next ping is due sooner.
    pub fn wanted(&mut self) {
        self.is_wanted = true;
    }

    /// Takes an answer of the server's own to a write that was sent although the server counts as unavailable: as good
    /// as a ping.
    pub fn answered(&mut self, now: Instant) -> Change {
        self.found(now)
    }

    fn found(&mut self, now: Instant) -> Change {
        self.good_pings += 1;
        self.waits = Waits::regular(&self.settings);
        let needed = self.flaps.clamp(1, GOOD_PINGS_MAX);
        if self.availability == Availability::Unavailable && self.good_pings < needed {
            self.waits = Waits::returning(&self.settings);
            return Change::None;
        }
        let before = std::mem::replace(&mut self.availability, Availability::Available);
        if before == Availability::Unavailable {
            self.last_outage = self.lost.map_or(Duration::ZERO, |lost| now.saturating_duration_since(lost));
        }
        match before {
            Availability::Available => return Change::None,
            Availability::Unavailable if self.flaps == 0 => self.outages_ended += 1,
            Availability::Unavailable | Availability::Unknown => {}
        }
        self.restored = Some(now);
        Change::Restored
    }

    /// Takes the failure of a send that could not even connect: the server is unavailable until a ping succeeds, and
    /// one is due soon.
    pub fn send_failed(&mut self, now: Instant) -> Change {
        self.asked_early = true;
        self.lose(now)
    }

    /// Takes a failure that may be the server's or not, such as a timeout: a ping is due soon.
    pub fn doubted(&mut self) {
        self.asked_early = true;
    }

    /// Returns how long to wait before the next ping.
    pub fn next_ping_in(&self, now: Instant) -> Duration {
        let Some(last) = self.last_ping else { return Duration::ZERO };
        let wait = match self.availability {
            Availability::Unavailable if self.is_wanted => self.waits.wanted,
            Availability::Unavailable => self.waits.idle,
            Availability::Unknown | Availability::Available => self.settings.ping_interval,
        };
        let wait = if self.asked_early { wait.min(PING_DISTANCE_MIN) } else { wait };
        (last + wait).saturating_duration_since(now)
    }

    fn lose(&mut self, now: Instant) -> Change {
        self.good_pings = 0;
        if std::mem::replace(&mut self.availability, Availability::Unavailable) == Availability::Unavailable {
            return Change::None;
        }
        self.lost = Some(now);
        self.waits = Waits::regular(&self.settings);
        let was_there_for = self.restored.take().map(|restored| now.saturating_duration_since(restored));
        self.flaps = match was_there_for {
            Some(time) if time < STEADY_AFTER => self.flaps.saturating_add(1),
            _ => 0,
        };
        Change::Lost
    }
}

/// Returns a number in 0.0 to 1.0 that differs between calls and processes: with it, retries for the same reason are
/// spread over time.
pub fn jitter() -> f64 {
    // Its keys are random in each thread and differ in each call, without a system call.
    let hash = RandomState::new().build_hasher().finish();
    f64::from((hash >> 32) as u32) / f64::from(u32::MAX)
}

/// Reasons that were logged in one state are not logged again, if they are among the first of this number.
const TOLD_MAX: usize = 16;

/// Pings until shutdown, and updates `connection` with each result.
pub fn run(connection: &Connection, upstream: &Upstream, settings: MonitorSettings, shutdown: &Shutdown) {
    let mut told: Vec<String> = Vec::new();
    loop {
        shutdown.beat();
        connection.wait_for_ping(shutdown);
        shutdown.beat();
        if shutdown.is_requested() {
            return;
        }
        let sent = Instant::now();
        let connect_timeout = connection.begin_ping(sent);
        let pong = upstream.ping_within(connect_timeout, settings.check_timeout);
        let pong = pong.map(|pong| {
            connection.note_latency(pong.latency);
            if pong.presence == Presence::There {
                connection.met_hub(pong.hub.map(|hub| *hub));
            }
            pong.presence
        });
        let (result, reason) = match pong {
            // Waiting messages have keys of their own: whether these are valid is checked lane by lane.
            Ok(presence @ (Presence::There | Presence::Unauthorised(_))) => (Ok(()), presence.reason()),
            Ok(presence @ (Presence::Unhealthy(..) | Presence::Foreign(_))) => (Err(Met::Somebody), presence.reason()),
            Err(failed) => (Err(failed.met), Some(failed.failure.to_string())),
        };
        let answered = result.is_ok();
        debug!(target: "connection_monitor", answered, "ping");
        let change = connection.pinged(result, reason.clone(), sent);
        if change != Change::None || reason.is_none() {
            told.clear();
        }
        let is_news = reason.as_ref().is_some_and(|reason| !told.contains(reason));
        match (change, &reason) {
            (Change::Restored, None) => info!(target: "connection_monitor", "the Opik server is available"),
            (Change::Restored, Some(notice)) => {
                warn!(target: "connection_monitor", "the Opik server is available, but {notice}");
            }
            (Change::Lost, _) => warn!(
                target: "connection_monitor",
                "the Opik server is unavailable: {}", reason.as_deref().unwrap_or_default()
            ),
            // A new cause of the same state is a new problem to solve. Two that alternate are logged once each.
            (Change::None, Some(reason)) if is_news => {
                let state = if answered { "available, but" } else { "still unavailable:" };
                warn!(target: "connection_monitor", "the Opik server is {state} {reason}");
            }
            (Change::None, _) => {}
        }
        if let Some(reason) = reason.filter(|_| is_news && told.len() < TOLD_MAX) {
            told.push(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Result<(), Met> = Ok(());
    const REFUSED: Result<(), Met> = Err(Met::Nobody);

    fn monitor() -> ConnectionMonitor {
        ConnectionMonitor::new(MonitorSettings {
            ping_interval: Duration::from_secs(10),
            is_interval_set: true,
            check_timeout: Duration::from_secs(5),
        })
    }

    /// A monitor whose interval the user did not set.
    fn quick_monitor() -> ConnectionMonitor {
        ConnectionMonitor::new(MonitorSettings { is_interval_set: false, ..monitor().settings })
    }

    #[test]
    fn the_first_good_ping_restores_and_so_does_the_first_after_a_bad_one() {
        let now = Instant::now();
        let mut monitor = monitor();
        assert_eq!(monitor.next_ping_in(now), Duration::ZERO);
        assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::Restored);
        assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::None);
        assert_eq!(monitor.pinged(REFUSED, now, 0.0), Change::Lost);
        assert_eq!(monitor.pinged(REFUSED, now, 0.0), Change::None);
        assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::Restored);
        assert_eq!(monitor.availability(), Availability::Available);
    }

    #[test]
    fn the_length_of_the_last_outage_is_known_after_the_return() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let mut monitor = monitor();
        assert_eq!(monitor.last_return(), None);
        monitor.pinged(GOOD, now, 0.0);
        assert_eq!(monitor.last_return(), Some((now, Duration::ZERO)), "the start follows no outage");
        monitor.pinged(REFUSED, now, 0.0);
        monitor.pinged(REFUSED, now + minute / 2, 0.0);
        assert_eq!(monitor.last_return(), None);
        monitor.pinged(GOOD, now + minute, 0.0);
        assert_eq!(monitor.last_return(), Some((now + minute, minute)), "edges would stampede the hub");
    }

    #[test]
    fn pings_after_failed_sends_come_soon_and_are_throttled() {
        let now = Instant::now();
        let mut monitor = monitor();
        monitor.pinged(GOOD, now, 0.0);
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10));
        assert_eq!(monitor.send_failed(now), Change::Lost);
        assert_eq!(monitor.send_failed(now), Change::None);
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN);
        assert_eq!(monitor.next_ping_in(now + Duration::from_secs(4)), Duration::ZERO);
        monitor.pinged(REFUSED, now, 0.0);
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10));
    }

    #[test]
    fn a_doubt_changes_nothing_until_a_ping_decides_it() {
        let now = Instant::now();
        let mut monitor = monitor();
        monitor.pinged(GOOD, now, 0.0);
        monitor.doubted();
        assert_eq!(monitor.availability(), Availability::Available);
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN);
        assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::None, "one message's timeout is not the server's");
        monitor.doubted();
        assert_eq!(monitor.pinged(REFUSED, now, 0.0), Change::Lost);
    }

    #[test]
    fn an_answered_write_is_as_good_as_a_ping_and_no_more() {
        let mut now = Instant::now();
        let mut monitor = monitor();
        monitor.pinged(GOOD, now, 0.0);
        now += STEADY_AFTER;
        assert_eq!(monitor.send_failed(now), Change::Lost);
        monitor.pinged(REFUSED, now, 0.0);
        assert_eq!(monitor.answered(now), Change::Restored);
        assert_eq!(monitor.answered(now), Change::None);
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10), "the next ping is due as before");
        for _ in 0..2 {
            assert_eq!(monitor.send_failed(now), Change::Lost);
            monitor.pinged(REFUSED, now, 0.0);
            monitor.answered(now);
        }
        assert_eq!(monitor.availability(), Availability::Unavailable, "a flapping server is not trusted at once");
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN, "and is asked again soon");
    }

    #[test]
    fn a_flapping_server_has_to_answer_more_than_one_ping() {
        let mut now = Instant::now();
        let mut monitor = monitor();
        assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::Restored);
        for flaps in 1..10 {
            now += Duration::from_secs(1);
            assert_eq!(monitor.send_failed(now), Change::Lost);
            for _ in 1..flaps.min(GOOD_PINGS_MAX) {
                assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::None, "flap {flaps}");
                assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN, "the next one follows soon");
            }
            assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::Restored, "flap {flaps}");
        }
        now += STEADY_AFTER;
        assert_eq!(monitor.pinged(REFUSED, now, 0.0), Change::Lost);
        now += Duration::from_secs(3600);
        assert_eq!(
            monitor.pinged(GOOD, now, 0.0),
            Change::Restored,
            "after a plain outage the first good ping is enough"
        );
    }

    #[test]
    fn an_unavailable_server_is_pinged_soon_unless_the_user_set_the_interval() {
        let now = Instant::now();
        let mut exact = monitor();
        let mut quick = quick_monitor();
        for monitor in [&mut exact, &mut quick] {
            monitor.pinged(GOOD, now, 0.0);
            assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10), "an available one is pinged as before");
            monitor.pinged(REFUSED, now, 0.0);
            monitor.wanted();
        }
        assert_eq!(exact.next_ping_in(now), Duration::from_secs(10));
        assert_eq!(quick.next_ping_in(now), probing::FIRST_WAIT);
        let later = now + Duration::from_secs(3600);
        quick.begin_ping(later);
        quick.pinged(REFUSED, later, 0.0);
        let idle = quick.next_ping_in(later);
        quick.wanted();
        let wanted = quick.next_ping_in(later);
        assert!(wanted < idle && idle < PING_DISTANCE_MIN * 4, "{wanted:?} {idle:?}");
        quick.begin_ping(later);
        assert_eq!(quick.next_ping_in(later), idle, "a write hastens one ping");
        assert_eq!(quick.pinged(GOOD, later, 0.0), Change::Restored);
        assert_eq!(quick.next_ping_in(later), Duration::from_secs(10));
    }

    #[test]
    fn a_server_that_answers_pings_and_refuses_writes_is_not_pinged_in_a_loop() {
        let mut now = Instant::now();
        let mut monitor = quick_monitor();
        monitor.pinged(REFUSED, now, 1.0);
        for _ in 0..10 {
            assert!(monitor.next_ping_in(now) <= PING_DISTANCE_MIN);
            now += PING_DISTANCE_MIN;
            monitor.pinged(GOOD, now, 1.0);
            assert_ne!(monitor.send_failed(now), Change::Restored);
            monitor.wanted();
            assert!(monitor.next_ping_in(now) >= probing::FIRST_WAIT);
        }
    }

    #[test]
    fn a_flapping_server_answers_as_many_pings_sooner() {
        let mut now = Instant::now();
        let mut monitor = quick_monitor();
        monitor.pinged(GOOD, now, 0.0);
        for flaps in 1..10 {
            now += Duration::from_secs(1);
            assert_eq!(monitor.pinged(REFUSED, now, 0.0), Change::Lost);
            for _ in 1..flaps.min(GOOD_PINGS_MAX) {
                assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::None, "flap {flaps}");
                assert_eq!(monitor.next_ping_in(now), probing::FIRST_WAIT);
            }
            assert_eq!(monitor.pinged(GOOD, now, 0.0), Change::Restored, "flap {flaps}");
        }
    }

    #[test]
    fn once_per_interval_a_connection_may_take_its_time() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut monitor = quick_monitor();
        assert_eq!(monitor.begin_ping(start), None, "the first ping");
        monitor.pinged(REFUSED, start, 0.0);
        for at in 1..10 {
            assert_eq!(monitor.begin_ping(start + second * at), Some(QUICK_CONNECT_TIMEOUT), "{at}");
        }
        assert_eq!(monitor.begin_ping(start + second * 10), None, "a slow way is found as before");
        assert_eq!(monitor.begin_ping(start + second * 11), Some(QUICK_CONNECT_TIMEOUT));
        monitor.pinged(GOOD, start + second * 11, 0.0);
        assert_eq!(monitor.begin_ping(start + second * 12), None, "an available server");
        let mut exact = self::monitor();
        exact.pinged(REFUSED, start, 0.0);
        assert_eq!((exact.begin_ping(start), exact.begin_ping(start + second)), (None, None));
    }

    #[test]
    fn only_the_end_of_an_outage_counts_as_one() {
        let mut now = Instant::now();
        let mut monitor = quick_monitor();
        monitor.pinged(GOOD, now, 0.0);
        assert_eq!(monitor.outages_ended(), 0, "the start of an agent is not one");
        now += STEADY_AFTER;
        monitor.pinged(REFUSED, now, 0.0);
        monitor.pinged(REFUSED, now, 0.0);
        monitor.pinged(GOOD, now, 0.0);
        monitor.pinged(GOOD, now, 0.0);
        assert_eq!(monitor.outages_ended(), 1);
        monitor.pinged(REFUSED, now, 0.0);
        monitor.pinged(GOOD, now, 0.0);
        assert_eq!((monitor.availability(), monitor.outages_ended()), (Availability::Available, 1), "a flap");
    }
}
