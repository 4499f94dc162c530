//! Replay: what is stored reaches the server, in order, and leaves the store when the server confirmed it.
//!
//! ```text
//! lease ─▶ lanes due ─▶ per lane: claim ─▶ coalesce ─▶ send ─▶ verdict ─▶ settle ─▶ pause
//! ```
//!
//! [`ReplayManager`] is the agent's loop; [`Replay::drain`] is one round of it and what the `replay` command calls. One
//! replayer at a time works on a store (the lease). Inside it lanes run side by side, so that none waits for another's slow
//! server, limit or poison. Order per entity is the order of the store, because a claim leaves out what must not overtake
//! anything that is in flight.
//!
//! A message is deleted by the settle that follows its confirmation, one commit per batch. A crash between the two sends
//! it again, which is an upsert; for the few messages where it would not be ([`MessageType::repeat_is_harmless`]), the
//! settle follows each single answer. And nothing is sent before everything is settled that it conflicts with, so that only
//! the newest write of each entity is ever repeated: a crash never puts an older one over a newer.
//!
//! # One sender
//!
//! Before each request, and before each part of an uploaded file, the sender looks whether more than [`LEASE_MARGIN`] of its
//! lease is left, on a clock that counts the time in which the process was stopped and in which the machine slept. One that
//! was stopped for longer and woken sends nothing more, its settle fails by the lease's epoch, and it begins a new round.
//!
//! What this promises: no request *begins* beside a successor's, unless the process is stopped in the instant between that
//! look and the system call that sends, or for the time of the request itself. No program can exclude either: what was
//! handed to the kernel is on its way, and a server can't see a lease. The successor then repeats what was in flight, from
//! the start, in order; the server sees an upsert twice, never a loss. A message that must not be repeated is the exception
//! that [`MessageType::repeat_is_harmless`] names.
//!
//! While a request hangs, another worker may go on with its lane: the store gives out nothing that must not overtake what
//! is in flight. Limits: [`LANES_MAX`] workers that get answers, [`LANES_MAX_WITH_SLOW`] and a few with those that wait
//! for one; [`CLAIM_BYTES_MAX`] of bodies in memory for each, less when they are many, and of all together what the budget
//! of the process allows ([`crate::memory`]): a worker takes memory before it claims. No lock is held over I/O.
//!
//! [`MessageType::repeat_is_harmless`]: crate::message::MessageType::repeat_is_harmless

mod attachment;
mod batch;
mod bounds;
mod context;
mod lane;
mod lease;
mod otlp;
pub mod reassign;
pub mod report;
mod round;
mod sender;
mod state;
mod throttle;
pub mod verify;
mod workers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};

pub use context::{DrainEnd, Observer, Replay, ReplaySettings};
pub use lease::LEASE_TIME_TO_LIVE;
pub use state::ReplayState;

use crate::delivery::id_window;
use crate::memory;
use crate::message::{Lane, MessageStatus};
use crate::monitor::connection::Connection;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{Filter, Owner, Store, StoreError, now_ms};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;
use round::has_held;

/// How often the agent checks the age of the oldest waiting create.
const AGE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Returns when the oldest create was accepted that waits for longer than [`id_window::WARN_AFTER`], if there is one.
///
/// # Errors
///
/// What the store says.
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
    /// The store, which may come and go.
    pub slot: &'a StoreSlot,
    /// Where the messages go.
    pub upstream: &'a Upstream,
    /// Starts a round when the server is available.
    pub connection: &'a Connection,
    /// How.
    pub settings: ReplaySettings,
    /// How often to look for work, `OPIK_REPLAY_TICK_INTERVAL`.
    pub tick_interval: Duration,
    /// Counts for whoever watches.
    pub metrics: &'a Metrics,
    /// Memory for the bodies that are on their way.
    pub memory: &'a Arc<memory::Budget>,
    /// Lanes that are replayed at once, at most: each has a connection to the server.
    pub workers_max: usize,
    /// Ends the loop.
    pub shutdown: &'a Shutdown,
    /// Who holds the lease while it replays.
    pub owner: Owner,
    /// The credential, server and workspace that refused lanes may go on with (`rekey_refused`); `None`: never.
    pub rekey: Option<Lane>,
}

impl ReplayManager<'_> {
    /// Replays whenever the server is available and something is due, until shutdown.
    pub fn run(&self) {
        /// After an error of the store the loop waits this long.
        const ERROR_PAUSE: Duration = Duration::from_secs(2);
        let mut pause = self.tick_interval;
        let mut reported = String::new();
        let state = ReplayState::default();
        let mut ages_checked: Option<Instant> = None;
        let mut warned = None;
        while !self.shutdown.sleep(pause) {
            self.shutdown.beat();
            pause = self.tick_interval;
            if ages_checked.is_none_or(|looked| looked.elapsed() >= AGE_CHECK_INTERVAL) {
                self.warn_near_id_window(&mut warned);
                ages_checked = Some(Instant::now());
            }
            if !self.connection.wait_until_available(self.tick_interval, self.shutdown) {
                continue;
            }
            // That the store is unusable is reported by whoever opens it.
            let Ok(store) = self.slot.get() else { continue };
            if let Some(own) = &self.rekey
                && let Err(error) = reassign::rekey_refused(store.as_ref(), &self.owner, own, self.shutdown)
            {
                debug!(target: "replay_manager", "refused lanes keep their key for now: {error}");
            }
            let round = match self.has_work(store.as_ref(), &state) {
                Ok(false) => continue,
                Ok(true) => Replay {
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
                    let error = Arc::new(error);
                    self.slot.report(&store, &error);
                    // Once per cause: a full disk stays full for a while.
                    if reported != error.to_string() {
                        reported = error.to_string();
                        error!(target: "replay_manager", "cannot replay: {error}");
                    }
                    pause = ERROR_PAUSE;
                }
            }
        }
    }

    /// Warns, once an hour, when the oldest create that waits comes near the age at which servers may refuse its id.
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
        let lanes = store.lanes(&self.settings.filter, now)?;
        if lanes.iter().any(|lane| lane.due_at_ms <= now) {
            return Ok(true);
        }
        // Messages that a killed process left in flight are in no lane's failed count; a round makes them failed again.
        let servers = self.settings.filter.servers.clone();
        let in_flight = Filter { statuses: vec![MessageStatus::Registered], servers, ..Filter::default() };
        if store.backlog(&in_flight)?.messages() > 0 {
            return Ok(true);
        }
        Ok(state.is_held_check_due(self.settings.held_interval()) && has_held(store, &self.settings.filter.servers)?)
    }
}
