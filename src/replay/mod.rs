//! Replay: stored messages reach the server, in order, and leave the store once the server confirmed them.
//!
//! ```text
//! lease ─▶ lanes due ─▶ per lane: claim ─▶ coalesce ─▶ send ─▶ verdict ─▶ settle ─▶ pause
//! ```
//!
//! | file | what it does |
//! | --- | --- |
//! | this one | the agent's loop: a round whenever the server is available and something is due |
//! | `round` | one round: takes the lease, gives due lanes to workers; what the `replay` command calls |
//! | `lane`, `batch` | one worker's turn with a lane; one claim, sent request by request |
//! | `sweep`, `lane_pages` | which lanes a round lists next; all lanes in pages |
//! | `small_lanes` | the same for lanes with a few messages each, many in a commit |
//! | `sender` | sends for one lane, and settles outcomes in the store |
//! | `lease`, `workers`, `throttle`, `bounds` | may a request still be sent; who works where; pauses and limits; memory |
//! | `outage` | ends the waits that an outage caused |
//! | `hold_watch` | a person's hold of the store |
//! | `state` | what is remembered between rounds, by lane: [`lane_health`](crate::delivery::lane_health) |
//! | `otlp`, `attachment` | requests that need more than one exchange |
//! | [`session`], [`verify`], [`report`], [`reassign`] | for the command line |
//!
//! # Invariants
//!
//! 1. *Order per entity is the order of the store*: a claim leaves out every message that conflicts with an earlier one
//!    that waits or is in flight.
//! 2. *A message is deleted only by the settle that follows its confirmation*, one commit per batch. A crash between
//!    the two sends it again, which is an idempotent upsert; for the few messages where it is not
//!    ([`MessageType::repeat_is_harmless`]), the settle follows each single answer.
//! 3. *A crash never applies an older write over a newer one*: a message is sent only after everything that it
//!    conflicts with is settled, so that only the newest write of each entity is ever repeated.
//! 4. *No lane waits for another's slow server, rate limit or poison message*: lanes are replayed concurrently.
//!
//! # One sender
//!
//! One replayer at a time works on a store (the lease; its epoch is the fencing token of every settle). Before each
//! request, and before each part of an uploaded file, the sender checks that enough of its lease is left, on a clock
//! that also counts the time in which the process was suspended and the machine slept. A replayer that was suspended
//! for longer sends nothing more when it wakes, its settle fails by the lease's epoch, and it begins a new round.
//!
//! This guarantees that no request *begins* beside a successor's, unless the process is suspended in the instant
//! between that check and the system call that sends, or for the time of the request itself. No program can exclude
//! either: once the kernel has the bytes they are in flight, and a server can't see a lease. The successor then repeats
//! what was in flight, from the start, in order; the server sees an upsert twice, never a loss. A message that must not
//! be repeated is the exception that [`MessageType::repeat_is_harmless`] names.
//!
//! While a request hangs, another worker may continue with its lane: the store gives out no message that must not
//! overtake one in flight. The number of workers is bounded (`workers`), and so are the bodies in memory, for each
//! claim and for all of them together ([`crate::memory`]): a worker takes memory before it claims. No lock is held over
//! I/O.
//!
//! [`MessageType::repeat_is_harmless`]: crate::message::MessageType::repeat_is_harmless

mod attachment;
mod batch;
mod bounds;
mod context;
mod hold_watch;
mod lane;
mod lane_pages;
mod lease;
mod otlp;
mod outage;
pub(crate) mod reassign;
pub(crate) mod report;
mod round;
mod sender;
pub(crate) mod session;
mod small_lanes;
mod state;
mod sweep;
mod throttle;
pub(crate) mod verify;
mod workers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};

pub use context::{DrainEnd, Observer, ReplaySettings, Replayer};
pub(crate) use hold_watch::held_text;
pub use lease::LEASE_TIME_TO_LIVE;
pub use state::ReplayState;

use crate::delivery::drain_delay::drain_delay;
use crate::delivery::id_window;
use crate::memory;
use crate::message::{Lane, MessageStatus};
use crate::monitor::connection::Connection;
use crate::monitor::jitter;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{Filter, Owner, Store, StoreError, now_ms};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;
use lane_pages::lane_pages;
use round::has_held;

/// The wait after an error of the store.
const ERROR_PAUSE: Duration = Duration::from_secs(2);
/// The interval between checks whether a person still holds the fleet, or this store.
const HELD_PAUSE: Duration = Duration::from_millis(500);
/// How often the agent checks the age of the oldest waiting create.
const AGE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Returns when the oldest create was accepted that has waited for longer than [`id_window::WARN_AFTER`], if any.
///
/// # Errors
///
/// The error that keeps the store from being read.
pub fn near_id_window(store: &dyn Store, now_ms: i64) -> Result<Option<i64>, StoreError> {
    use MessageStatus::{Failed, Registered};
    let creates =
        Filter { statuses: vec![Failed, Registered], types: id_window::CREATES.to_vec(), ..Filter::default() };
    let after_ms = i64::try_from(id_window::WARN_AFTER.as_millis()).unwrap_or(i64::MAX);
    let oldest = store.backlog(&creates)?.oldest_accepted_at_ms;
    Ok(oldest.filter(|at_ms| now_ms.saturating_sub(*at_ms) >= after_ms))
}

/// The agent's replay loop.
pub struct ReplayManager<'a> {
    /// The store, which may be replaced or unavailable.
    pub slot: &'a StoreSlot,
    /// Where the messages go.
    pub upstream: &'a Upstream,
    /// Starts a round when the server is available.
    pub connection: &'a Connection,
    /// How.
    pub settings: ReplaySettings,
    /// How often to check for work, `OPIK_REPLAY_TICK_INTERVAL`.
    pub tick_interval: Duration,
    /// Counters for the metrics endpoint.
    pub metrics: &'a Metrics,
    /// Memory for the bodies in flight.
    pub memory: &'a Arc<memory::Budget>,
    /// The most lanes that are replayed concurrently: each has a connection to the server.
    pub workers_max: usize,
    /// Ends the loop.
    pub shutdown: &'a Shutdown,
    /// The owner of the lease during a round.
    pub owner: Owner,
    /// The credential, server and workspace that refused lanes may continue with (`rekey_refused`); `None`: never.
    pub rekey: Option<Lane>,
}

impl ReplayManager<'_> {
    /// Replays whenever the server is available and something is due, until shutdown.
    pub fn run(&self) {
        let mut pause = Duration::ZERO;
        let mut reported = String::new();
        let state = ReplayState::default();
        let mut ages_checked: Option<Instant> = None;
        let mut warned = None;
        let mut returned = None;
        while !self.shutdown.sleep(pause) {
            self.shutdown.beat();
            pause = self.tick_interval;
            if ages_checked.is_none_or(|looked| looked.elapsed() >= AGE_CHECK_INTERVAL) {
                self.warn_near_id_window(&mut warned);
                self.shutdown.beat();
                ages_checked = Some(Instant::now());
            }
            if !self.connection.wait_until_available(self.tick_interval, self.shutdown) {
                // The return of the server ends the wait, and a pause would only delay what follows.
                pause = Duration::ZERO;
                continue;
            }
            if let Some(delay) = self.drain_delay(&mut returned) {
                pause = delay;
                continue;
            }
            // The thread that opens the store reports why it is unavailable.
            let store = self.slot.get();
            // Opening may have taken longer than the liveness check allows.
            self.shutdown.beat();
            let Ok(store) = store else { continue };
            if let Some(held) = self.held_for(&store, &state, &mut reported) {
                pause = held;
                continue;
            }
            if let Some(own) = &self.rekey
                && let Err(error) = reassign::rekey_refused(store.as_ref(), &self.owner, own, self.shutdown)
            {
                debug!(target: "replay_manager", "cannot give refused lanes the configured key now: {error}");
            }
            let round = match self.has_work(store.as_ref(), &state) {
                Ok(false) => continue,
                Ok(true) => Replayer {
                    store: store.as_ref(),
                    upstream: self.upstream,
                    connection: self.connection,
                    settings: &self.settings,
                    metrics: self.metrics,
                    state: &state,
                    memory: self.memory,
                    workers_max: self.workers_max,
                    observer: None,
                    shutdown: self.shutdown,
                }
                .drain(&self.owner),
                Err(error) => Err(error),
            };
            match round {
                Ok(end) => {
                    debug!(target: "replay_manager", ?end, "round ended");
                    reported.clear();
                }
                Err(StoreError::LeaseHeld { owner }) => {
                    debug!(target: "replay_manager", %owner, "another process replays this store");
                }
                Err(StoreError::LeaseLost) => {
                    warn!(target: "replay_manager", "the replay lease was lost to another process");
                }
                Err(error) => {
                    self.report_failure(&store, error, &mut reported);
                    pause = ERROR_PAUSE;
                }
            }
        }
    }

    /// Returns how long to wait because a person holds the fleet or this store, or because the store can't be asked.
    fn held_for(&self, store: &Arc<dyn Store>, state: &ReplayState, reported: &mut String) -> Option<Duration> {
        if let Err(error) = state.hold().look(store.as_ref()) {
            self.report_failure(store, error, reported);
            return Some(ERROR_PAUSE);
        }
        let left = self.settings.held_for().max(state.hold().held_for())?;
        // It may end sooner than it says.
        Some(left.min(self.tick_interval.max(HELD_PAUSE)))
    }

    /// Returns how long to wait before a hub gets the backlog, or the server of a fleet, once for each return; `returned`
    /// is the last that was waited for.
    fn drain_delay(&self, returned: &mut Option<Instant>) -> Option<Duration> {
        let draining = self.settings.dial.as_ref().map(|dial| dial.force().draining);
        let (at, outage) = match draining {
            Some(_) => self.connection.last_return()?,
            None => self.connection.hub_return()?,
        };
        if returned.replace(at) == Some(at) {
            return None;
        }
        let delay = drain_delay(outage, draining.unwrap_or(0), jitter());
        debug!(target: "replay_manager", ?delay, "the server is back, and others may wait for it as well");
        (!delay.is_zero()).then_some(delay)
    }

    /// Logs why a round failed: once per cause, because a full disk stays full for a while.
    fn report_failure(&self, store: &Arc<dyn Store>, error: StoreError, reported: &mut String) {
        let text = error.to_string();
        let is_new = *reported != text;
        *reported = text;
        match (&error, is_new) {
            (StoreError::DepotAway { .. }, true) => {
                warn!(target: "replay_manager", "delivery waits for the depot: {error}");
            }
            (_, true) => error!(target: "replay_manager", "cannot replay: {error}"),
            (_, false) => {}
        }
        self.slot.report(store, &Arc::new(error));
    }

    /// Warns, once an hour, when the oldest waiting create comes near the age at which servers may refuse its id.
    fn warn_near_id_window(&self, last: &mut Option<Instant>) {
        const INTERVAL: Duration = Duration::from_secs(60 * 60);
        if last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        let Ok(Ok(Some(at_ms))) = self.slot.get().map(|store| near_id_window(store.as_ref(), now_ms())) else { return };
        *last = Some(Instant::now());
        let hours = now_ms().saturating_sub(at_ms) / (60 * 60 * 1000);
        warn!(
            target: "replay_manager",
            "a create has been waiting for {hours} h: an Opik server with UUID_VALIDATION_ENABLED refuses ids older than 24 h; \
             if yours does, {}", id_window::REMEDY
        );
    }

    fn has_work(&self, store: &dyn Store, state: &ReplayState) -> Result<bool, StoreError> {
        let now = now_ms();
        let ended = state.is_outage_ended(self.connection.outages_ended());
        for page in lane_pages(store, &self.settings.filter, now) {
            if page?.iter().any(|lane| lane.due_at_ms <= now || ended && outage::delays(lane, now).is_some()) {
                return Ok(true);
            }
            self.shutdown.beat();
        }
        // Messages that a killed process left in flight are in no lane's count; a round requeues them.
        let servers = self.settings.filter.servers.clone();
        let in_flight = Filter { statuses: vec![MessageStatus::Registered], servers, ..Filter::default() };
        if store.backlog(&in_flight)?.messages() > 0 {
            return Ok(true);
        }
        Ok(state.is_held_check_due(self.settings.held_interval()) && has_held(store, &self.settings.filter.servers)?)
    }
}
