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
mod lane;
mod otlp;
mod probes;
pub mod reassign;
pub mod report;
pub mod salvage;
pub mod session;
pub mod verify;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use crate::delivery::id_window;
use crate::delivery::pacing::{Pace, PaceSettings};
use crate::memory;
use crate::message::{Lane, MessageType, Request};
use crate::monitor::Availability;
use crate::monitor::connection::Connection;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{Filter, LaneId, LaneWork, Lease, Owner, ReplayRecord, Store, StoreError, now_ms, since_boot};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;
use lane::{LaneEnd, LaneWorker};
pub use probes::Probes;

/// How many lanes are replayed side by side.
pub const LANES_MAX: usize = 24;
/// The same with those whose request has been open for longer than [`SLOW_AFTER`]: a server that hangs on some lanes must
/// not keep the others from being replayed.
pub const LANES_MAX_WITH_SLOW: usize = 48;
/// How many of these may be lanes whose last request failed.
const LANES_IN_TROUBLE_MAX: usize = 36;
/// A worker that is with its lane for so long waits for an answer: its turn is over after a second.
const SLOW_AFTER: Duration = Duration::from_secs(3);
/// How many workers a lane may have while its others wait for answers: what hangs holds back its own entities only.
const WORKERS_OF_A_LANE_MAX: usize = 4;
/// How many such workers there are in all.
const EXTRA_WORKERS_MAX: usize = 16;
/// Bytes of bodies that one claim takes at most, unless a single message is larger.
pub const CLAIM_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Bytes of bodies that all claims take together, about: with many workers each takes less.
const CLAIMS_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The least that a claim may take.
const CLAIM_BYTES_MIN: u64 = 512 * 1024;
/// How long a lease lives without being renewed: the longest time that a killed replayer keeps others out.
pub const LEASE_TIME_TO_LIVE: Duration = Duration::from_secs(30);
/// How often it is renewed.
const LEASE_RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// Nothing is sent with less than this left: a replayer that was stopped and woken must not send beside its successor.
const LEASE_MARGIN: Duration = Duration::from_secs(10);
/// How often the agent looks how old the oldest waiting create is.
const AGES_LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How often the coordinator looks for lanes that became due while others are being replayed.
const LANES_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How to replay.
#[derive(Clone, Debug)]
pub struct ReplaySettings {
    /// Which messages.
    pub filter: Filter,
    /// Messages at most, delivered and rejected together.
    pub limit: Option<u64>,
    /// The pace that the user asked for.
    pub pace: PaceSettings,
    /// How long a held lane waits when the server named no time.
    pub retry_interval: Duration,
    /// Attempts after which a message that fails alone is rejected.
    pub attempts_max: u32,
}

impl ReplaySettings {
    /// Returns how long the server is not asked again whether it takes held messages.
    pub fn held_interval(&self) -> Duration {
        self.retry_interval.saturating_mul(id_window::RETRY_FACTOR)
    }
}

/// Returns when the oldest create was accepted that waits for longer than [`id_window::WARN_AFTER`], if there is one.
///
/// # Errors
///
/// What the store says.
pub fn near_id_window(store: &dyn Store, now_ms: i64) -> Result<Option<i64>, StoreError> {
    use crate::message::MessageStatus::{Failed, Registered};
    let creates =
        Filter { statuses: vec![Failed, Registered], types: id_window::CREATES.to_vec(), ..Filter::default() };
    let after_ms = i64::try_from(id_window::WARN_AFTER.as_millis()).unwrap_or(i64::MAX);
    let oldest = store.backlog(&creates)?.oldest_accepted_at_ms;
    Ok(oldest.filter(|at_ms| now_ms.saturating_sub(*at_ms) >= after_ms))
}

/// Returns whether the store has held messages.
fn has_held(store: &dyn Store, servers: &[crate::message::Server]) -> Result<bool, StoreError> {
    let statuses = vec![crate::message::MessageStatus::Held];
    let held = Filter { statuses, servers: servers.to_vec(), ..Filter::default() };
    Ok(store.backlog(&held)?.messages() > 0)
}

/// How a round of replay ended without an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// Nothing that the filter selects waits any more.
    Empty,
    /// What is left is not due: lanes are held or messages wait for their next attempt, the first until then.
    NotDue {
        /// Milliseconds since the Unix epoch.
        next_due_at_ms: i64,
    },
    /// The server went away.
    Unavailable,
    /// The limit was reached.
    LimitReached,
    /// Shutdown was requested.
    Stopped,
}

/// Whoever wants to know what was delivered.
pub trait Observer: Sync {
    /// Notes that the server confirmed this request: a message, several in one, or a piece of one. Called by the lane's
    /// worker, in the order of the answers, before it sends the next.
    fn delivered(&self, lane: &Lane, message_type: MessageType, request: &Request);
}

/// One replayer's view of a store and a server.
pub struct Replay<'a> {
    /// Where the messages are.
    pub store: &'a dyn Store,
    /// Where they go.
    pub upstream: &'a Upstream,
    /// Told when a send fails; ends the round when the server is gone.
    pub connection: &'a Connection,
    /// How.
    pub settings: &'a ReplaySettings,
    /// Counts for whoever watches.
    pub metrics: &'a Metrics,
    /// What earlier rounds learnt of lanes that fail.
    pub probes: &'a Probes,
    /// Memory for the bodies that are on their way.
    pub memory: &'a Arc<memory::Budget>,
    /// Lanes that are replayed at once, at most: each has a connection to the server.
    pub workers_max: usize,
    /// Told of every request that the server confirmed.
    pub observer: Option<&'a dyn Observer>,
    /// Ends the round early.
    pub shutdown: &'a Shutdown,
}

impl Replay<'_> {
    /// Replays all that is due, until nothing is, and says how it ended.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseHeld`] while another process replays this store, [`StoreError::LeaseLost`] when it took over
    /// in the middle, and what else keeps the store from being used. Whatever was claimed is *failed* again, at once or
    /// at the next round's start.
    pub fn drain(&self, owner: &Owner) -> Result<DrainEnd, StoreError> {
        let keeper = LeaseKeeper::acquire(self.store, owner)?;
        self.probes.begin(self.store.identity(), keeper.lease.epoch);
        let started_at_ms = now_ms();
        let before = self.delivered_and_rejected();
        let result = self.store.return_in_flight(&keeper.lease).and_then(|returned| {
            if returned > 0 {
                self.probes.interrupted();
                info!(target: "replay_manager", returned, "messages that were in flight are failed again");
            }
            self.retry_held(&keeper)?;
            self.replay_lanes(&keeper)
        });
        let after = self.delivered_and_rejected();
        let (delivered, rejected) = (after.0 - before.0, after.1 - before.1);
        if delivered + rejected > 0 {
            self.note(owner, started_at_ms, delivered, rejected);
        }
        self.store.release(&keeper.lease)?;
        result
    }

    /// Lets one held message of each lane be tried again, when the last refusal is long enough ago.
    fn retry_held(&self, keeper: &LeaseKeeper<'_>) -> Result<(), StoreError> {
        // A person who selects messages means these and no others; an agent only names the servers that are its own.
        let selects = self.settings.filter != self.own();
        if selects || !self.probes.may_look_for_held(self.settings.held_interval()) {
            return Ok(());
        }
        let interval_ms = i64::try_from(self.settings.held_interval().as_millis()).unwrap_or(i64::MAX);
        let retried = match has_held(self.store, &self.settings.filter.servers)? {
            true => self.store.retry_held(&keeper.lease, now_ms().saturating_sub(interval_ms))?,
            false => Vec::new(),
        };
        self.probes.retries_held(&retried);
        Ok(())
    }

    fn delivered_and_rejected(&self) -> (u64, u64) {
        (self.metrics.messages_delivered.get(), self.metrics.messages_rejected.get())
    }

    /// Everything that is stored for the servers this replay delivers to.
    fn own(&self) -> Filter {
        Filter { servers: self.settings.filter.servers.clone(), ..Filter::default() }
    }

    fn note(&self, owner: &Owner, started_at_ms: i64, delivered: u64, rejected: u64) {
        let remaining = self.store.backlog(&self.own()).map_or(0, |backlog| backlog.waiting());
        let role = owner.role.clone();
        let round = ReplayRecord { role, started_at_ms, ended_at_ms: now_ms(), delivered, rejected, remaining };
        let record = self.probes.add_round(round);
        // A record for `status` only: that it can't be written must not hide how the replay itself went.
        if let Err(error) = self.store.note_replay(&record) {
            debug!(target: "replay_manager", %error, "the replay is not recorded");
        }
        info!(target: "replay_manager", delivered, rejected, remaining, "replayed");
    }

    /// Gives due lanes to workers until nothing is due and every worker came back.
    fn replay_lanes(&self, keeper: &LeaseKeeper<'_>) -> Result<DrainEnd, StoreError> {
        let gate = Gate::default();
        let budget = Budget::new(self.settings.limit);
        let mut paces: HashMap<LaneId, Pace> = HashMap::new();
        let (workers_max, answer_timeout) = (self.workers_max.max(1), self.upstream.answer_timeout());
        let mut busy = Busy { workers_max, answer_timeout, ..Busy::default() };
        let mut failed: Option<StoreError> = None;
        let mut lanes = VecDeque::new();
        let mut look_at = Instant::now();
        let mut next_due_at_ms = i64::MAX;
        let (done, finished) = mpsc::channel();
        std::thread::scope(|scope| {
            loop {
                self.shutdown.beat();
                if let Err(error) = keeper.renew_if_due() {
                    failed.get_or_insert(error);
                }
                let stop = failed.is_some() || self.stop_reason(&budget).is_some();
                // Looked for anew when there may be something else to see: with thousands of lanes a look takes long.
                if !stop && (busy.is_empty() || (lanes.is_empty() && look_at <= Instant::now())) {
                    let looked = Instant::now();
                    match self.lanes() {
                        Err(error) => failed = Some(error),
                        Ok(found) => lanes = found,
                    }
                    look_at = looked + LANES_LOOK_INTERVAL.max(looked.elapsed() * 4);
                    next_due_at_ms = i64::MAX;
                }
                let now = now_ms();
                // What finds no worker now is looked for again.
                while let Some(work) = lanes.pop_front().filter(|_| !stop && failed.is_none()) {
                    if work.due_at_ms > now {
                        next_due_at_ms = next_due_at_ms.min(work.due_at_ms);
                        continue;
                    }
                    let in_trouble = self.connection.lanes().is_in_trouble(&work.lane);
                    let is_extra = busy.has(work.id);
                    let Some(number) = busy.admit(&work, in_trouble, Instant::now()) else {
                        if is_extra {
                            continue;
                        }
                        lanes.push_front(work);
                        break;
                    };
                    let worker = LaneWorker {
                        replay: self,
                        keeper,
                        gate: &gate,
                        budget: &budget,
                        pace: paces.get(&work.id).copied().unwrap_or(Pace::start(self.settings.pace)),
                        claim_bytes_max: (CLAIMS_BYTES_MAX / busy.len() as u64).clamp(CLAIM_BYTES_MIN, CLAIM_BYTES_MAX),
                        is_extra,
                        has_made_due: false,
                        work,
                    };
                    let done = done.clone();
                    scope.spawn(move || {
                        // The receiver outlives the scope, so sending can't fail.
                        let _ = done.send((number, worker.run_caught()));
                    });
                }
                if busy.is_empty() {
                    return match failed.take() {
                        Some(error) => Err(error),
                        None => Ok(self.stop_reason(&budget).unwrap_or(match next_due_at_ms {
                            i64::MAX => DrainEnd::Empty,
                            next_due_at_ms => DrainEnd::NotDue { next_due_at_ms },
                        })),
                    };
                }
                let mut ended = finished.recv_timeout(LANES_LOOK_INTERVAL).ok();
                while let Some((number, LaneEnd { lane, pace, result })) = ended {
                    busy.remove(number);
                    paces.insert(lane, pace);
                    if let Err(error) = result {
                        failed.get_or_insert(error);
                    }
                    ended = finished.try_recv().ok();
                }
            }
        })
    }

    /// Returns the lanes with work, those in trouble last.
    fn lanes(&self) -> Result<VecDeque<LaneWork>, StoreError> {
        let mut lanes = self.store.lanes(&self.settings.filter, now_ms())?;
        lanes.sort_by_key(|work| self.connection.lanes().is_in_trouble(&work.lane));
        Ok(lanes.into())
    }

    /// Returns why no more is to be sent, if so.
    fn stop_reason(&self, budget: &Budget) -> Option<DrainEnd> {
        if self.shutdown.is_requested() {
            Some(DrainEnd::Stopped)
        } else if self.connection.availability() == Availability::Unavailable {
            Some(DrainEnd::Unavailable)
        } else if budget.is_spent() {
            Some(DrainEnd::LimitReached)
        } else {
            None
        }
    }
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
        let probes = Probes::default();
        let mut looked_at_ages: Option<Instant> = None;
        let mut warned = None;
        while !self.shutdown.sleep(pause) {
            self.shutdown.beat();
            pause = self.tick_interval;
            if looked_at_ages.is_none_or(|looked| looked.elapsed() >= AGES_LOOK_INTERVAL) {
                self.warn_near_id_window(&mut warned);
                looked_at_ages = Some(Instant::now());
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
            let round = match self.has_work(store.as_ref(), &probes) {
                Ok(false) => continue,
                Ok(true) => Replay {
                    store: store.as_ref(),
                    upstream: self.upstream,
                    connection: self.connection,
                    settings: &self.settings,
                    metrics: self.metrics,
                    probes: &probes,
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

    fn has_work(&self, store: &dyn Store, probes: &Probes) -> Result<bool, StoreError> {
        let now = now_ms();
        let lanes = store.lanes(&self.settings.filter, now)?;
        if lanes.iter().any(|lane| lane.due_at_ms <= now) {
            return Ok(true);
        }
        // Messages that a killed process left in flight are in no lane's failed count; a round makes them failed again.
        let servers = self.settings.filter.servers.clone();
        let in_flight =
            Filter { statuses: vec![crate::message::MessageStatus::Registered], servers, ..Filter::default() };
        if store.backlog(&in_flight)?.messages() > 0 {
            return Ok(true);
        }
        Ok(probes.may_look_for_held(self.settings.held_interval()) && has_held(store, &self.settings.filter.servers)?)
    }
}

/// The lease, renewed in time, and the answer to "may I still send?".
struct LeaseKeeper<'a> {
    store: &'a dyn Store,
    lease: Lease,
    /// A reading of [`since_boot`].
    renewed: Mutex<Duration>,
    lost: AtomicBool,
}

impl<'a> LeaseKeeper<'a> {
    fn acquire(store: &'a dyn Store, owner: &Owner) -> Result<Self, StoreError> {
        // Taken before the call: the lease may be longer than we think, never shorter.
        let renewed = since_boot();
        let lease = store.acquire(owner, LEASE_TIME_TO_LIVE)?;
        Ok(Self { store, lease, renewed: Mutex::new(renewed), lost: AtomicBool::new(false) })
    }

    /// Says whether enough of the lease is left to send one more request.
    fn may_send(&self) -> bool {
        !self.lost.load(Ordering::Relaxed) && suffices(*lock(&self.renewed), since_boot())
    }

    fn renew_if_due(&self) -> Result<(), StoreError> {
        let now = since_boot();
        if now.saturating_sub(*lock(&self.renewed)) < LEASE_RENEW_INTERVAL {
            return Ok(());
        }
        let renewed = self.store.renew(&self.lease, LEASE_TIME_TO_LIVE);
        match &renewed {
            Ok(()) => *lock(&self.renewed) = now,
            Err(_) => self.lost.store(true, Ordering::Relaxed),
        }
        renewed
    }
}

/// Says whether a lease that was renewed then has more than its margin left now, both by [`since_boot`].
fn suffices(renewed: Duration, now: Duration) -> bool {
    now.saturating_sub(renewed) < LEASE_TIME_TO_LIVE - LEASE_MARGIN
}

/// Who works on which lane.
#[derive(Default)]
struct Busy {
    /// Workers at most, however long they wait for answers.
    workers_max: usize,
    /// How long a request takes at most that is given no more time than others.
    answer_timeout: Duration,
    workers: Vec<Worker>,
    next_number: u64,
}

struct Worker {
    number: u64,
    lane: LaneId,
    since: Instant,
    in_trouble: bool,
    is_extra: bool,
}

impl Busy {
    /// Gives a due lane a worker if there may be one more, and returns its number.
    fn admit(&mut self, work: &LaneWork, in_trouble: bool, now: Instant) -> Option<u64> {
        let is_slow = |worker: &Worker| now.saturating_duration_since(worker.since) >= SLOW_AFTER;
        let count = |of: &dyn Fn(&Worker) -> bool| self.workers.iter().filter(|worker| of(worker)).count();
        let here = count(&|worker| worker.lane == work.id);
        let is_extra = here > 0;
        let may = if self.workers.len() >= self.workers_max {
            false
        } else if is_extra {
            // A lane that is tried with one message has nothing for a second worker, unless that message is given more
            // time than others: the lane may have recovered meanwhile.
            let is_patient = |worker: &Worker| now.saturating_duration_since(worker.since) > self.answer_timeout;
            here < WORKERS_OF_A_LANE_MAX
                && count(&|worker| worker.is_extra) < EXTRA_WORKERS_MAX
                && count(&|worker| worker.lane == work.id && !is_slow(worker)) == 0
                && (!work.hold.as_ref().is_some_and(|hold| hold.probe)
                    || count(&|worker| worker.lane == work.id && !is_patient(worker)) == 0)
        } else {
            count(&|worker| !worker.is_extra && !is_slow(worker)) < LANES_MAX
                && count(&|worker| !worker.is_extra) < LANES_MAX_WITH_SLOW
                && !(in_trouble && count(&|worker| worker.in_trouble) >= LANES_IN_TROUBLE_MAX)
        };
        may.then(|| {
            self.next_number += 1;
            let number = self.next_number;
            self.workers.push(Worker { number, lane: work.id, since: now, in_trouble, is_extra });
            number
        })
    }

    fn remove(&mut self, number: u64) {
        self.workers.retain(|worker| worker.number != number);
    }

    fn has(&self, lane: LaneId) -> bool {
        self.workers.iter().any(|worker| worker.lane == lane)
    }

    fn len(&self) -> usize {
        self.workers.len()
    }

    fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }
}

/// Holds every lane back for the pause that the user set: "50 messages, then 0.5 s" is said of the whole replay.
#[derive(Default)]
struct Gate {
    opens: Mutex<Option<Instant>>,
}

impl Gate {
    fn close_for(&self, pause: Duration) {
        *lock(&self.opens) = Some(Instant::now() + pause);
    }

    /// Returns how long it stays closed.
    fn opens_in(&self) -> Duration {
        lock(&self.opens).map_or(Duration::ZERO, |opens| opens.saturating_duration_since(Instant::now()))
    }
}

/// How many messages may still be claimed under a limit.
struct Budget {
    left: Option<Mutex<u64>>,
}

impl Budget {
    fn new(limit: Option<u64>) -> Self {
        Self { left: limit.map(Mutex::new) }
    }

    /// Takes up to this many.
    fn take(&self, wanted: usize) -> usize {
        let Some(left) = &self.left else { return wanted };
        let mut left = lock(left);
        let taken = wanted.min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= taken as u64;
        taken
    }

    /// Gives back what was taken and not used.
    fn give_back(&self, unused: usize) {
        if let Some(left) = &self.left {
            *lock(left) += unused as u64;
        }
    }

    fn is_spent(&self) -> bool {
        self.left.as_ref().is_some_and(|left| *lock(left) == 0)
    }
}

/// A panic elsewhere can't leave these values half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Limits, OpenMode, WhenFull};

    #[test]
    fn a_sender_that_was_stopped_past_its_lease_sends_no_more() {
        let renewed = Duration::from_secs(1000);
        for (later, expected) in [(0, true), (19, true), (20, false), (30, false), (100_000, false)] {
            assert_eq!(
                suffices(renewed, renewed + Duration::from_secs(later)),
                expected,
                "{later} s after the renewal"
            );
        }
    }

    #[test]
    fn a_keeper_of_a_lease_that_ran_out_sends_no_more() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let limits = Limits { size_max: 1 << 24, disk_reserve: 0, when_full: WhenFull::Refuse };
        let path = folder.path().join("opik_messages.db");
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, limits).expect("a new store");
        let keeper = LeaseKeeper::acquire(&store, &Owner::this_process("replay")).expect("nobody has it");
        assert!(keeper.may_send());
        // Asleep for as long as the lease lasts: another process may have it by now.
        *lock(&keeper.renewed) = since_boot().saturating_sub(LEASE_TIME_TO_LIVE);
        assert!(!keeper.may_send(), "it sends beside its successor");
    }
}
