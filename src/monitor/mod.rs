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
//! A flapping server has to answer more than one ping before it counts as available again: as many as the times that
//! it was lost within [`STEADY_AFTER`] of its return, up to [`GOOD_PINGS_MAX`].

pub mod connection;
pub(crate) mod failing_lanes;

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::protocol::recognise::Presence;
use crate::shutdown::Shutdown;
use crate::upstream::Upstream;
use connection::Connection;

/// The shortest time between two pings, however many sends fail.
pub const PING_DISTANCE_MIN: Duration = Duration::from_millis(500);
/// A server that was available for this long is steady: after its next outage one good ping is enough.
pub const STEADY_AFTER: Duration = Duration::from_secs(30);
/// The most consecutive good pings that a flapping server has to answer.
pub const GOOD_PINGS_MAX: u32 = 4;

/// When to ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorSettings {
    /// Time between pings, `OPIK_CONNECTION_MONITOR_PING_INTERVAL`.
    pub ping_interval: Duration,
    /// How long a ping may take, `OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT`.
    pub check_timeout: Duration,
}

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
    /// When it became available.
    restored: Option<Instant>,
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
            restored: None,
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

    /// Takes the result of a ping that was sent at `now`.
    pub fn pinged(&mut self, answered: bool, now: Instant) -> Change {
        self.last_ping = Some(now);
        self.asked_early = false;
        if answered { self.found(now) } else { self.lose(now) }
    }

    /// Takes an answer of the server's own to a write that was sent although the server counts as unavailable: as good
    /// as a ping.
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

/// Returns a number in 0.0 to 1.0 that differs between calls and processes: with it, retries for the same reason are
/// spread over time.
pub fn jitter() -> f64 {
    let bytes = uuid::Uuid::now_v7().into_bytes();
    f64::from(u16::from_be_bytes([bytes[14], bytes[15]])) / f64::from(u16::MAX)
}

/// Pings until shutdown, and updates `connection` with each result.
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
            // Waiting messages have keys of their own: whether these are valid is checked lane by lane.
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
            // A new cause of the same state is a new problem to solve.
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
    fn the_first_good_ping_restores_and_so_does_the_first_after_a_bad_one() {
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
    fn pings_after_failed_sends_come_soon_and_are_throttled() {
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
    fn a_doubt_changes_nothing_until_a_ping_decides_it() {
        let now = Instant::now();
        let mut monitor = monitor();
        monitor.pinged(true, now);
        monitor.doubted();
        assert_eq!(monitor.availability(), Availability::Available);
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN);
        assert_eq!(monitor.pinged(true, now), Change::None, "one message's timeout is not the server's");
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
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10), "the next ping is due as before");
        for _ in 0..2 {
            assert_eq!(monitor.send_failed(now), Change::Lost);
            monitor.pinged(false, now);
            monitor.answered(now);
        }
        assert_eq!(monitor.availability(), Availability::Unavailable, "a flapping server is not trusted at once");
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN, "and is asked again soon");
    }

    #[test]
    fn a_flapping_server_has_to_answer_more_than_one_ping() {
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
