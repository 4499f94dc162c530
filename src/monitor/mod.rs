//! The connection monitor: is the server there?
//!
//! [`ConnectionMonitor`] is a state machine on ping results and send failures, with `now` passed in; [`run`] feeds it from
//! a thread, and [`connection::Connection`] is what intake and replay read and wait on. Terms are the SDK's
//! (`OpikConnectionMonitor`): a ping is *ok*, *failed*, or *restored* when it is the first good one after a bad one.
//!
//! A failed send is followed by a ping at once instead of after the interval: a connection that the server closed while
//! it was idle then costs milliseconds of detour through the store, not ten seconds. Such pings keep a distance of
//! [`PING_DISTANCE_MIN`], so that a server that answers pings and fails writes is not asked in a loop.

pub mod connection;

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::shutdown::Shutdown;
use crate::upstream::Upstream;
use connection::Connection;

/// The shortest time between two pings, however many sends fail.
pub const PING_DISTANCE_MIN: Duration = Duration::from_secs(1);

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
    /// The last ping was answered with 200, and no send failed since.
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
}

impl ConnectionMonitor {
    /// Returns a monitor that knows nothing yet and wants to ping at once.
    pub fn new(settings: MonitorSettings) -> Self {
        Self { settings, availability: Availability::Unknown, last_ping: None, asked_early: false }
    }

    /// Returns what is known.
    pub fn availability(&self) -> Availability {
        self.availability
    }

    /// Takes the result of a ping that was sent at `now`.
    pub fn pinged(&mut self, answered: bool, now: Instant) -> Change {
        self.last_ping = Some(now);
        self.asked_early = false;
        self.become_(if answered { Availability::Available } else { Availability::Unavailable })
    }

    /// Takes the failure of a send: the server is gone until a ping says otherwise, and one is due soon.
    pub fn send_failed(&mut self) -> Change {
        self.asked_early = true;
        self.become_(Availability::Unavailable)
    }

    /// Returns how long to wait before the next ping.
    pub fn next_ping_in(&self, now: Instant) -> Duration {
        let Some(last) = self.last_ping else { return Duration::ZERO };
        let distance = if self.asked_early { PING_DISTANCE_MIN } else { self.settings.ping_interval };
        (last + distance.min(self.settings.ping_interval)).saturating_duration_since(now)
    }

    fn become_(&mut self, availability: Availability) -> Change {
        let before = std::mem::replace(&mut self.availability, availability);
        match (before, availability) {
            (before, after) if before == after => Change::None,
            (_, Availability::Available) => Change::Restored,
            (_, Availability::Unavailable) => Change::Lost,
            (_, Availability::Unknown) => Change::None,
        }
    }
}

/// Pings until shutdown, and keeps `connection` true to what it learns.
pub fn run(connection: &Connection, upstream: &Upstream, settings: MonitorSettings, shutdown: &Shutdown) {
    loop {
        connection.wait_for_ping(shutdown);
        if shutdown.is_requested() {
            return;
        }
        let sent = Instant::now();
        let (answered, reason) = match upstream.ping(settings.check_timeout) {
            Ok(pong) if pong.status == 200 => (true, None),
            Ok(pong) => (false, Some(format!("the ping was answered with {}", pong.status))),
            Err(failure) => (false, Some(failure.to_string())),
        };
        debug!(target: "connection_monitor", answered, "ping");
        match connection.pinged(answered, reason.clone(), sent) {
            Change::Restored => info!(target: "connection_monitor", "the Opik server is available"),
            Change::Lost => warn!(
                target: "connection_monitor",
                "the Opik server is unavailable: {}", reason.unwrap_or_default()
            ),
            Change::None => {}
        }
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
        assert_eq!(monitor.send_failed(), Change::Lost);
        assert_eq!(monitor.send_failed(), Change::None);
        assert_eq!(monitor.next_ping_in(now), PING_DISTANCE_MIN);
        assert_eq!(monitor.next_ping_in(now + Duration::from_secs(4)), Duration::ZERO);
        monitor.pinged(false, now);
        assert_eq!(monitor.next_ping_in(now), Duration::from_secs(10));
    }
}
