//! The context of a replay: store, server and settings; and how a round ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::ReplayState;
use crate::delivery::fleet_dial::FleetDial;
use crate::delivery::id_window;
use crate::delivery::lane_health::BreakerSettings;
use crate::delivery::pacing::PaceSettings;
use crate::memory;
use crate::message::{Lane, MessageType, Request};
use crate::monitor::connection::Connection;
use crate::shutdown::Shutdown;
use crate::store::{Filter, Store, since_boot};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;

/// The interval at which a pause checks for its end.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How to replay.
#[derive(Clone, Debug)]
pub struct ReplaySettings {
    /// Which messages.
    pub filter: Filter,
    /// The most messages to settle, delivered and rejected together.
    pub limit: Option<u64>,
    /// The pace that the user asked for.
    pub pace: PaceSettings,
    /// The decisions of people about the pace of the whole fleet.
    pub dial: Option<Arc<FleetDial>>,
    /// How long a held lane waits when the server named no time.
    pub retry_interval: Duration,
    /// Attempts after which a message that fails alone is rejected.
    pub attempts_max: u32,
}

impl ReplaySettings {
    /// Returns the shortest time between two probes of a lane's held messages.
    pub fn held_interval(&self) -> Duration {
        self.retry_interval.saturating_mul(id_window::RETRY_FACTOR)
    }

    /// Returns how long nothing is sent because a person holds the fleet.
    pub fn held_for(&self) -> Option<Duration> {
        self.dial.as_ref()?.held_for(since_boot())
    }

    /// Returns what the circuit breaker of a lane depends on.
    pub(super) fn breaker(&self) -> BreakerSettings {
        BreakerSettings { retry_interval: self.retry_interval, attempts_max: self.attempts_max }
    }
}

/// How a round of replay ended without an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// No message that the filter selects is waiting.
    Empty,
    /// The rest is not due: lanes are held or messages wait for their next attempt, the first until then.
    NotDue {
        /// Milliseconds since the Unix epoch.
        next_due_at_ms: i64,
    },
    /// The server became unavailable.
    Unavailable,
    /// The limit was reached.
    LimitReached,
    /// Shutdown was requested.
    Stopped,
    /// A person holds the fleet, or this store.
    Held,
}

/// Is notified of deliveries.
pub trait Observer: Sync {
    /// Notes that the server confirmed this request: a message, several in one, or a piece of one. Called by the lane's
    /// worker, in the order of the answers, before it sends the next.
    fn delivered(&self, lane: &Lane, message_type: MessageType, request: &Request);
}

/// One replayer's view of a store and a server.
pub struct Replayer<'a> {
    /// Where the messages are.
    pub store: &'a dyn Store,
    /// Where they go.
    pub upstream: &'a Upstream,
    /// Is notified when a send fails; ends the round when the server is unavailable.
    pub connection: &'a Connection,
    /// How.
    pub settings: &'a ReplaySettings,
    /// Counters for the metrics endpoint and for reports.
    pub metrics: &'a Metrics,
    /// Memory of earlier rounds: lanes and messages that failed.
    pub state: &'a ReplayState,
    /// Memory for the bodies in flight.
    pub memory: &'a Arc<memory::Budget>,
    /// The most lanes that are replayed concurrently: each has a connection to the server.
    pub workers_max: usize,
    /// Is notified of every request that the server confirmed.
    pub observer: Option<&'a dyn Observer>,
    /// Ends the round early.
    pub shutdown: &'a Shutdown,
}

impl Replayer<'_> {
    /// Returns how long nothing is sent because a person holds the fleet, or this store.
    pub(super) fn held_for(&self) -> Option<Duration> {
        self.settings.held_for().max(self.state.hold().held_for())
    }

    /// Returns whether no request may begin: shutdown is requested, or a person holds the fleet, or this store.
    pub(super) fn is_stopped(&self) -> bool {
        self.shutdown.is_requested() || self.held_for().is_some()
    }

    /// Pauses for this long, or until [`Self::is_stopped`]; returns whether it is.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let started = Instant::now();
        loop {
            let left = pause.saturating_sub(started.elapsed());
            if self.is_stopped() || left.is_zero() {
                return self.is_stopped();
            }
            self.shutdown.sleep(left.min(STOP_CHECK_INTERVAL));
        }
    }

    /// Returns whether a person limits what is sent: then each lane is sent alone, and every batch is taken from the
    /// dial.
    pub(super) fn is_limited(&self) -> bool {
        let dial = self.settings.dial.as_ref();
        dial.is_some_and(|dial| dial.is_limited(since_boot())) || self.state.hold().held_for().is_some()
    }
}
