//! The connection monitor: is the server there?
//!
//! [`ConnectionMonitor`] is a state machine on ping results and send failures, with `now` passed in; [`run`] feeds it from
//! a thread, and [`connection::Connection`] is what intake and replay read and wait on. Terms are the SDK's
//! (`OpikConnectionMonitor`): a ping is *ok*, *failed*, or *restored* when it is the first good one after a bad one.
//!
//! What a failed send says about the server differs. No connection at all: the server is gone until a ping says otherwise.
//! An answer that never came, or a 502 to 504: one message, one lane or a proxy in between may be to blame as well, so
//! this is a *doubt*, and the next ping decides it. Were it taken for the whole, one message that always hangs would send
//! every lane's traffic through the store, again and again. What a lane has to wait for alone is in
//! [`lane_trouble::LaneTrouble`].
//!
//! Either is followed by a ping at once instead of after the interval: a connection that the server closed while it was
//! idle then costs milliseconds of detour through the store, not ten seconds. Such pings keep a distance of
//! [`PING_DISTANCE_MIN`], so that a server that answers pings and fails writes is not asked in a loop.
//!
//! A server that comes and goes has to answer more than one ping before it counts as there again: as many as the times
//! that it was lost within [`STEADY_AFTER`] of its return, up to [`GOOD_PINGS_MAX`].

pub mod connection;
pub mod lane_trouble;

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::protocol::recognise::Presence;
use crate::shutdown::Shutdown;
use crate::upstream::Upstream;
use connection::Connection;

/// The shortest time between two pings, however many sends fail.
pub const PING_DISTANCE_MIN: Duration = Duration::from_millis(500);
/// A server that was there for so long without a break is steady: one good ping is enough when it returns the next time.
pub const STEADY_AFTER: Duration = Duration::from_secs(30);
/// The most good pings in a row that a server which comes and goes has to answer.
pub const GOOD_PINGS_MAX: u32 = 4;

/// When to ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorSettings {
    /// Time between pings, `OPIK_CONNECTION_MONITOR_PING_INTERVAL`.
    pub ping_interval: Duration,
    /// How long a ping may take, `OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT`.
    pub check_timeout: Duration,
}

/// What a ping or a failed send changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that anyone waits for.
    None,
    /// The server is there, for the first time or again.
    Restored,
    /// The server is gone.
    Lost,
}

/// What is known of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// No ping was answered or failed yet.
    Unknown,
    /// The last ping was answered by Opik, or refused for its own key, and no send failed since.
    Available,
    /// The last ping or send failed.
    Unavailable,
}

/// The state machine.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionMonitor {
    settings: MonitorSettings,
    availability: Availability,
    last_ping: Option<Instant>,
    asked_early: bool,
    /// When it became available.
    restored: Option<Instant>,
    /// How often it was lost soon after it had returned.
    flaps: u32,
    /// Good pings in a row since it was lost.
    good_pings: u32,
}

impl ConnectionMonitor {
    /// Returns a monitor that knows nothing yet and wants to ping at once.
    pub fn new(settings: MonitorSettings) -> Self {
        Self {
            settings,
            availability: Availability::Unknown,
            last_ping: None,
            asked_early: false,
            restored: None,
            flaps: 0,
            good_pings: 0,
        }
    }

    /// Returns what is known.
    pub fn availability(&self) -> Availability {
        self.availability
    }

    /// Returns when the last ping that has a result was sent.
    pub fn last_ping(&self) -> Option<Instant> {
        self.last_ping
    }

    /// Says whether the server answers again and has yet to show that it stays.
    pub fn is_returning(&self) -> bool {
        self.availability == Availability::Unavailable && self.good_pings > 0
    }

    /// Takes the result of a ping that was sent at `now`.
    pub fn pinged(&mut self, answered: bool, now: Instant) -> Change {
        self.last_ping = Some(now);
        self.asked_early = false;
        if answered { self.found(now) } else { self.lose(now) }
    }

    /// Takes an answer of the server's own to a write that was sent although the server counts as gone: as good as a ping.
    pub fn answered(&mut self, now: Instant) -> Change {
        self.found(now)
    }

    fn found(&mut self, now: Instant) -> Change {
        self.good_pings += 1;
        let needed = self.flaps.clamp(1, GOOD_PINGS_MAX);
        if self.availability == Availability::Unavailable && self.good_pings < needed {
            self.asked_early = true;
            return Change::None;
        }
        if std::mem::replace(&mut self.availability, Availability::Available) == Availability::Available {
            return Change::None;
        }
        self.restored = Some(now);
        Change::Restored
    }

    /// Takes the failure of a send that could not even connect: the server is gone until a ping says otherwise, and one
    /// is due soon.
    pub fn send_failed(&mut self, now: Instant) -> Change {
        self.asked_early = true;
        self.lose(now)
    }

    /// Takes a failure that may be the server's or not: a ping is due soon.
    pub fn doubted(&mut self) {
        self.asked_early = true;
    }

    /// Returns how long to wait before the next ping.
    pub fn next_ping_in(&self, now: Instant) -> Duration {
        let Some(last) = self.last_ping else { return Duration::ZERO };
        let distance = if self.asked_early { PING_DISTANCE_MIN } else { self.settings.ping_interval };
        (last + distance.min(self.settings.ping_interval)).saturating_duration_since(now)
    }

    fn lose(&mut self, now: Instant) -> Change {
        self.good_pings = 0;
        if std::mem::replace(&mut self.availability, Availability::Unavailable) == Availability::Unavailable {
            return Change::None;
        }
        let was_there_for = self.restored.take().map(|restored| now.saturating_duration_since(restored));
        self.flaps = match was_there_for {
            Some(time) if time < STEADY_AFTER => self.flaps.saturating_add(1),
            _ => 0,
        };
        Change::Lost
    }
}

/// Pings until shutdown, and keeps `connection` true to what it learns.
pub fn run(connection: &Connection, upstream: &Upstream, settings: MonitorSettings, shutdown: &Shutdown) {
    let mut told: Option<String> = None;
    loop {
        shutdown.beat();
        connection.wait_for_ping(shutdown);
        shutdown.beat();
        if shutdown.is_requested() {
            return;
        }
        let sent = Instant::now();
        let (answered, reason) = match upstream.ping(settings.check_timeout).map(|pong| pong.presence) {
            // What waits has keys of its own: whether they are good is found out lane by lane.
            Ok(presence @ (Presence::There | Presence::Unauthorised(_))) => (true, presence.reason()),
            Ok(presence @ (Presence::Unhealthy(_) | Presence::Foreign(_))) => (false, presence.reason()),
            Err(failure) => (false, Some(failure.to_string())),
        };
        debug!(target: "connection_monitor", answered, "ping");
        let change = connection.pinged(answered, reason.clone(), sent);
        let is_news = reason != told;
        match (change, &reason) {
            (Change::Restored, None) => info!(target: "connection_monitor", "the Opik server is available"),
            (Change::Restored, Some(notice)) => {
                warn!(target: "connection_monitor", "the Opik server is available, but {notice}");
            }
            (Change::Lost, _) => warn!(
                target: "connection_monitor",
                "the Opik server is unavailable: {}", reason.as_deref().unwrap_or_default()
            ),
            // Another cause of the same state is another thing to mend.
            (Change::None, Some(reason)) if is_news => {
                let state = if answered { "available, but" } else { "still unavailable:" };
                warn!(target: "connection_monitor", "the Opik server is {state} {reason}");
            }
            (Change::None, _) => {}
        }
        told = reason;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor() -> ConnectionMonitor {
        ConnectionMonitor::new(MonitorSettings {
            ping_interval: Duration::from_secs(10),
            check_timeout: Duration::from_secs(5),
        })
    }

    #[test]
    fn the_first_good_ping_and_every_first_good_one_after_a_bad_one_restore() {
        let now = Instant::now();
        let mut monitor = monitor();
        assert_eq!(monitor.next_ping_in(now), Duration::ZERO);
        assert_eq!(monitor.pinged(true, now), Change::Restored);
        assert_eq!(monitor.pinged(true, now), Change::None);
        assert_eq!(monitor.pinged(false, now), Change::Lost);
        assert_eq!(monitor.pinged(false, now), Change::None);
        assert_eq!(monitor.pinged(true, now), Change::Restored);
        assert_eq!(monitor.availability(), Availability::Available);
    }

    #[test]
    fn a_failed_send_is_followed_by_a_ping_soon_and_not_by_a_storm() {
        let now = Instant::now();
        let mut monitor = monitor();
        monitor.pinged(true, now);
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10));
        assert_eq!(monitor.send_failed(now), Change::Lost);
        assert_eq!(monitor.send_failed(now), Change::None);
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN);
        assert_eq!(monitor.next_ping_in(now + Duration::from_secs(4)), Duration::ZERO);
        monitor.pinged(false, now);
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10));
    }

    #[test]
    fn a_doubt_changes_nothing_until_a_ping_has_decided_it() {
        let now = Instant::now();
        let mut monitor = monitor();
        monitor.pinged(true, now);
        monitor.doubted();
        assert_eq!(monitor.availability(), Availability::Available);
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN);
        assert_eq!(monitor.pinged(true, now), Change::None, "one message's trouble is not everyone's");
        monitor.doubted();
        assert_eq!(monitor.pinged(false, now), Change::Lost);
    }

    #[test]
    fn an_answered_write_is_as_good_as_a_ping_and_no_more() {
        let mut now = Instant::now();
        let mut monitor = monitor();
        monitor.pinged(true, now);
        now += STEADY_AFTER;
        assert_eq!(monitor.send_failed(now), Change::Lost);
        monitor.pinged(false, now);
        assert_eq!(monitor.answered(now), Change::Restored);
        assert_eq!(monitor.answered(now), Change::None);
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10), "a ping is due when it was");
        for _ in 0..2 {
            assert_eq!(monitor.send_failed(now), Change::Lost);
            monitor.pinged(false, now);
            monitor.answered(now);
        }
        assert_eq!(
            monitor.availability(),
            Availability::Unavailable,
            "a server that comes and goes is not trusted at once"
        );
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN, "and is asked again soon");
    }

    #[test]
    fn a_server_that_comes_and_goes_has_to_show_that_it_stays() {
        let mut now = Instant::now();
        let mut monitor = monitor();
        assert_eq!(monitor.pinged(true, now), Change::Restored);
        for flaps in 1..10 {
            now += Duration::from_secs(1);
            assert_eq!(monitor.send_failed(now), Change::Lost);
            for _ in 1..flaps.min(GOOD_PINGS_MAX) {
                assert_eq!(monitor.pinged(true, now), Change::None, "flap {flaps}");
                assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN, "the next one follows soon");
            }
            assert_eq!(monitor.pinged(true, now), Change::Restored, "flap {flaps}");
        }
        now += STEADY_AFTER;
        assert_eq!(monitor.pinged(false, now), Change::Lost);
        now += Duration::from_secs(3600);
        assert_eq!(monitor.pinged(true, now), Change::Restored, "after a plain outage the first good ping is enough");
    }
}
