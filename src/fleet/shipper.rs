//! The loop of an agent that ships: makes bundles of what waits, and creates, renews and closes the head.
//!
//! ```text
//!  something waits for longer than the delay
//!        │
//!        ▼
//!  record the stream ─▶ create the head ─▶ record the choice ─▶ files ─▶ bundle ─▶ record that it is there ─┐
//!                                            ▲                                                              │
//!                                            └──────────────── 1 s, 2 s ... 30 s ◀──────────────────────────┘
//!  all shipped messages are settled: delete the objects, or close the head and leave them to a replayer
//! ```
//!
//! # Crashes
//!
//! Every step is recorded before the next one, so that the process that continues knows what may be in the depot:
//!
//! - *stream recorded, no head*: nothing is in the depot; the stream is forgotten.
//! - *choice recorded*: the bundle may be there. Its messages are put again; a reader takes each once.
//! - *bundle there, not recorded*: the same.
//!
//! # Ownership of a stream
//!
//! A process that continues with a store's stream raises the epoch, first in the store and then in the head. A head with
//! a higher epoch than the store's was taken over by a replayer: the stream is handed over. A head with the store's
//! epoch and another owner is that of another process that uses the same store; this one then only watches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};
use uuid::Uuid;

use self::purging::Purging;
use super::head::{Head, HeadState};
use super::ledger::{Acknowledge, AgentLedger, HeldStream};
use super::loading::{LoadError, Loaded, Loader};
use super::names::{ObjectName, StreamId, all_files_of, bundles_of, marks_of};
use super::object_names::{depot_name, folder_name};
use super::schedule::{ShipNext, ShippingSchedule, Unshipped, jitter};
use super::spooled::Removal;
use super::stream_head::{HeadRead, HeadWritten, StreamHead, read_head, this_process};
use super::stream_purge::PurgeAnswer;
use super::takeover::{Fence, RENEW_EVERY, TAKEOVER_AFTER};
use crate::depot::{Depot, DepotError};
use crate::message::MessageId;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{
    ClaimLimits, Filter, Page, Store, StoreError, StreamRecord, StreamState, UnshippedCount, now_ms, since_boot,
};
use crate::telemetry::metrics::Metrics;

/// How often the loop looks what waits, unless it is woken.
const TICK: Duration = Duration::from_millis(500);
/// How often marks of deleted messages are made up for.
const GONE_INTERVAL: Duration = Duration::from_secs(5);
/// How soon the depot is asked again for something that failed.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Messages and bytes of bodies of one choice: a bundle has room for the rest of the records.
const CHOICE: ClaimLimits = ClaimLimits { messages_max: 1000, bytes_max: 3 * 1024 * 1024 };
/// Objects that are listed or deleted at once.
const OBJECTS_STEP: usize = 500;
/// Messages that are deleted here at once.
const DELETE_STEP: usize = 500;

/// Why a step could not be done.
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Depot(#[from] DepotError),
    /// A replayer has taken the head.
    #[error("the stream was taken over")]
    Lost,
    /// Trying again can't help before somebody changes something.
    #[error("{0}")]
    Hopeless(String),
    /// The last failure, which was not tried again yet.
    #[error("{0}")]
    StillFailing(String),
}

/// The shipper of an agent.
pub struct Shipper {
    /// The state shared with replay and intake.
    pub ledger: Arc<AgentLedger>,
    /// The store, as it is used by all.
    pub slot: Arc<StoreSlot>,
    /// Requested when the agent begins to stop: from then on an outage's messages don't wait for company.
    pub stopping: Shutdown,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// How long the rest may take once everything else has stopped.
    pub end_within: Duration,
}

/// The state of the loop between its turns.
pub(crate) struct Turns {
    nonce: String,
    schedule: ShippingSchedule,
    opened: u64,
    head: Option<StreamHead>,
    head_due: Duration,
    /// Since when something was seen that is not shipped.
    waiting_since: Option<Duration>,
    gone_due: Duration,
    watch_due: Duration,
    retry_due: Option<Duration>,
    /// Whether a bundle of the current choice may be in the depot.
    may_be_there: bool,
    shipped: u64,
    /// Streams of this store that another process of it owns: the version of the head, and since when it is unchanged.
    silent: Option<(String, Duration)>,
    said: String,
    is_announced: bool,
    /// Whether everything else has stopped: all waiting messages are shipped.
    is_ending: bool,
    /// Whether trying again can't help before somebody changes something.
    is_hopeless: bool,
    /// The purge of the stream that is in progress.
    purging: Option<Purging>,
    /// The answer to the last purge, and when the head had it.
    purged: Option<(PurgeAnswer, Duration)>,
}

impl Shipper {
    /// Ships until shutdown, and then what is left.
    pub fn run(&self, shutdown: &Shutdown) {
        let mut turns = self.begin();
        while !shutdown.is_requested() {
            shutdown.beat();
            self.turn_reported(&mut turns);
            self.ledger.wait_until_woken(TICK);
        }
        self.end(&mut turns, shutdown);
    }

    /// Returns the state before the first turn.
    pub(crate) fn begin(&self) -> Turns {
        Turns {
            nonce: Uuid::now_v7().simple().to_string(),
            schedule: ShippingSchedule::new(self.ledger.settings.schedule),
            opened: 0,
            head: None,
            head_due: Duration::ZERO,
            waiting_since: None,
            gone_due: Duration::ZERO,
            watch_due: Duration::ZERO,
            retry_due: None,
            may_be_there: true,
            shipped: 0,
            silent: None,
            said: String::new(),
            is_announced: false,
            is_ending: false,
            is_hopeless: false,
            purging: None,
            purged: None,
        }
    }

    /// Ships what is left, and closes the head.
    pub(crate) fn end(&self, turns: &mut Turns, shutdown: &Shutdown) {
        let until = Instant::now() + self.end_within;
        turns.is_ending = true;
        loop {
            shutdown.beat();
            turns.retry_due = None;
            self.turn_reported(turns);
            let left = self.ledger.standing().unshipped.messages;
            if left == 0 || turns.is_hopeless || Instant::now() >= until {
                break;
            }
            if self.ledger.standing().problem.is_some() {
                std::thread::sleep(Duration::from_millis(200).min(until.saturating_duration_since(Instant::now())));
            }
        }
        self.close(turns);
    }

    /// One turn; what fails is logged once, and tried again.
    pub(crate) fn turn_reported(&self, turns: &mut Turns) {
        let Ok(store) = self.slot.get() else { return };
        let is_waiting = turns.retry_due.is_some_and(|due| since_boot() < due);
        let problem = match is_waiting {
            true => Some(turns.said.clone()),
            false => self.turn_or_problem(&store, turns),
        };
        match (&problem, turns.said.is_empty()) {
            (Some(problem), _) if turns.said != *problem => {
                warn!(target: "fleet", "nothing can be shipped to the depot now, messages wait in the local store: {problem}");
                turns.said.clone_from(problem);
            }
            (None, false) => {
                info!(target: "fleet", "the depot {} can be used again", self.ledger.depot.describe());
                turns.said.clear();
            }
            (Some(_), _) | (None, true) => {}
        }
        let unshipped = store.unshipped().unwrap_or_default();
        self.metrics.fleet_unshipped_messages.set(unshipped.messages as f64);
        let age_ms = unshipped.oldest_accepted_at_ms.map_or(0, |at_ms| now_ms().saturating_sub(at_ms).max(0));
        self.metrics.fleet_unshipped_age_seconds.set(age_ms as f64 / 1000.0);
        self.ledger.change(|state| {
            state.problem = problem;
            state.standing.unshipped = unshipped;
            state.standing.stream = state.owned.as_ref().map(|owned| owned.stream.uuid());
        });
    }

    /// One turn; returns why it failed, if it did.
    fn turn_or_problem(&self, store: &Arc<dyn Store>, turns: &mut Turns) -> Option<String> {
        let result = match self.turn(store.as_ref(), turns) {
            Err(ShipError::Lost) => self.lost(store.as_ref(), turns),
            result => result,
        };
        turns.is_hopeless = match &result {
            Err(ShipError::Hopeless(_)) => true,
            Err(ShipError::Depot(error)) => !error.is_passing(),
            Err(ShipError::StillFailing(_)) => turns.is_hopeless,
            Ok(()) | Err(ShipError::Store(_) | ShipError::Lost) => false,
        };
        turns.retry_due = match &result {
            Ok(()) | Err(ShipError::StillFailing(_)) => None,
            Err(_) => Some(since_boot() + RETRY_AFTER),
        };
        match result {
            Ok(()) => None,
            Err(ShipError::Store(error)) => {
                let problem = error.to_string();
                self.slot.report(store, &Arc::new(error));
                Some(problem)
            }
            Err(ShipError::Depot(error)) => Some(format!("{error}; {}", error.hint())),
            Err(error) => Some(error.to_string()),
        }
    }

    fn turn(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        let (opened, is_resumed) = {
            let state = self.ledger.lock();
            (state.opened, state.is_resumed)
        };
        if opened != turns.opened {
            (turns.opened, turns.head, turns.may_be_there) = (opened, None, true);
            (turns.silent, turns.purging, turns.purged) = (None, None, None);
        }
        let is_beside = || -> Result<bool, StoreError> {
            let is_owner = self.ledger.lock().owned.is_some();
            Ok(!is_owner && store.streams()?.iter().any(|it| it.state == StreamState::Open))
        };
        if is_resumed && is_beside()? {
            self.beside_another(turns);
        }
        if !self.ledger.lock().is_resumed {
            self.resume(store, turns)?;
        }
        if turns.head.as_ref().is_some_and(|head| head.written().is_some()) && since_boot() >= turns.head_due {
            self.renew(store, turns, HeadState::Open)?;
            self.look_for_purge(turns);
        }
        self.carry_out_purge(store, turns)?;
        let now = since_boot();
        if now >= turns.watch_due {
            turns.watch_due = now + RENEW_EVERY;
            self.watch_handed_over(store)?;
        }
        if now >= turns.gone_due && turns.head.is_some() {
            turns.gone_due = now + GONE_INTERVAL;
            self.ledger.mark_gone(store, Removal::Purged)?;
        }
        self.ship_if_due(store, turns)?;
        self.finish_if_settled(store, turns)
    }

    fn ship_if_due(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        // As long as the rest of what was counted fills bundles, it is not counted again: that reads all of it.
        let mut rest = UnshippedCount::default();
        loop {
            // Before the look: what is stored afterwards is not covered by it.
            let newest = store.newest()?;
            let unshipped = if fills_a_bundle(&rest) { rest } else { store.unshipped()? };
            if unshipped.messages == 0 {
                turns.waiting_since = None;
                self.ledger.change(|state| state.confirmed_through = state.confirmed_through.max(newest.0));
                return Ok(());
            }
            let age_ms = unshipped.oldest_accepted_at_ms.map_or(0, |at_ms| now_ms().saturating_sub(at_ms));
            let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
            // The clock may have been set back since the oldest was accepted.
            let seen = since_boot().saturating_sub(*turns.waiting_since.get_or_insert_with(since_boot));
            let waiting = Unshipped {
                oldest_age: Some(age.max(seen)),
                fills_a_bundle: fills_a_bundle(&unshipped),
                is_urgent: self.ledger.settings.acknowledge == Acknowledge::Fleet
                    || turns.is_ending
                    || turns.head.is_some() && self.stopping.is_requested(),
            };
            match turns.schedule.next(waiting, since_boot()) {
                ShipNext::Now => {}
                ShipNext::After(_) if !turns.said.is_empty() => {
                    return Err(ShipError::StillFailing(turns.said.clone()));
                }
                ShipNext::After(_) | ShipNext::Nothing => return Ok(()),
            }
            match self.ship(store, turns) {
                Ok(()) => {
                    turns.schedule.shipped(since_boot());
                    turns.waiting_since = None;
                    rest = rest_of(unshipped);
                }
                Err(error) => {
                    turns.schedule.failed(since_boot(), jitter());
                    return Err(error);
                }
            }
        }
    }

    /// Ships one choice of messages.
    fn ship(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        let seals = self.seals()?;
        let stream = self.own_stream(store, turns)?;
        let chosen = {
            let _choosing = self.ledger.choosing();
            store.begin_bundle(stream.uuid(), CHOICE)?
        };
        let first = turns.head.as_ref().map_or(0, |head| head.head().bundles);
        let first = store.streams()?.iter().find(|it| it.stream == stream.uuid()).map_or(first, |it| it.next_bundle);
        let names_secrets_in = self.ledger.lock().names_secrets_in;
        let loader = Loader {
            store,
            depot: self.ledger.depot.as_ref(),
            seals: &seals,
            stream,
            only_looks: false,
            names_secrets_in,
        };
        match loader.load(&chosen, first) {
            Ok(loaded) => self.loaded(store, turns, stream, loaded),
            Err(LoadError::NotThere) => Ok(()),
            Err(LoadError::Store(error)) => {
                turns.may_be_there = true;
                Err(error.into())
            }
            Err(LoadError::Depot { error, may_be_there }) => {
                turns.may_be_there |= may_be_there;
                if !turns.may_be_there {
                    store.withdraw_bundle(stream.uuid())?;
                }
                Err(error.into())
            }
        }
    }

    fn loaded(&self, store: &dyn Store, turns: &mut Turns, stream: StreamId, loaded: Loaded) -> Result<(), ShipError> {
        // A process that was suspended while it wrote may have lost its stream, and a replayer have finished it without
        // this bundle.
        turns.may_be_there = true;
        self.make_sure(store, turns)?;
        store.confirm_bundle(stream.uuid(), loaded.next_bundle)?;
        turns.may_be_there = false;
        turns.shipped += loaded.messages;
        self.metrics.fleet_shipped_messages.add(loaded.messages);
        // All up to here is in the depot, unless it is settled.
        let through = store.streams()?.iter().find(|it| it.stream == stream.uuid()).map(|it| it.shipped_through.0);
        self.ledger.change(|state| state.confirmed_through = state.confirmed_through.max(through.unwrap_or(0)));
        if !turns.is_announced && loaded.messages > 0 {
            turns.is_announced = true;
            info!(
                target: "fleet",
                "{} messages are in the fleet's depot {}, stream {stream}: if this agent is gone, a replayer delivers them",
                loaded.messages, self.ledger.depot.describe()
            );
        }
        debug!(target: "fleet", messages = loaded.messages, bundles = loaded.next_bundle, "shipped");
        Ok(())
    }

    /// Returns the stream that this process owns, beginning one if there is none.
    fn own_stream(&self, store: &dyn Store, turns: &mut Turns) -> Result<StreamId, ShipError> {
        let owned = self.ledger.lock().owned.clone();
        let stream = match owned {
            Some(owned) => owned.stream,
            None => self.begin_stream(store, turns)?,
        };
        self.make_sure(store, turns)?;
        Ok(stream)
    }

    /// Renews the head, unless it is certain that nobody can have taken the stream.
    fn make_sure(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        let owned = self.ledger.lock().owned.clone();
        match owned.is_some_and(|owned| owned.fence.may_lease(since_boot())) {
            true => Ok(()),
            false => self.renew(store, turns, HeadState::Open),
        }
    }

    fn begin_stream(&self, store: &dyn Store, turns: &mut Turns) -> Result<StreamId, ShipError> {
        let stream = StreamId::new(Uuid::now_v7());
        let record = StreamRecord {
            stream: stream.uuid(),
            depot: self.ledger.depot.describe().url,
            state: StreamState::Open,
            epoch: 1,
            next_bundle: 0,
            shipped_through: MessageId(0),
            began_at_ms: now_ms(),
            is_outstanding: false,
        };
        store.note_stream(&record)?;
        // Another agent of this store may have begun one at the same time: the older one stays.
        let records = store.streams()?;
        if records.iter().find(|it| it.state == StreamState::Open).map(|it| it.stream) != Some(stream.uuid()) {
            store.end_stream(stream.uuid())?;
            return Err(self.beside_another(turns));
        }
        turns.head = Some(StreamHead::new(stream, self.first_head(turns), None)?);
        (turns.shipped, turns.may_be_there, turns.is_announced) = (0, false, false);
        (turns.purging, turns.purged) = (None, None);
        self.own(stream, 1);
        Ok(stream)
    }

    /// Another agent ships the messages of this store: this one only watches whether it still does.
    fn beside_another(&self, turns: &mut Turns) -> ShipError {
        self.ledger.change(|state| state.is_resumed = false);
        turns.silent.get_or_insert_default();
        ShipError::Hopeless("another agent ships the messages of this store".to_owned())
    }

    fn first_head(&self, turns: &Turns) -> Head {
        let silence_ms = u64::try_from(TAKEOVER_AFTER.as_millis()).unwrap_or(u64::MAX);
        Head { silence_ms, ..Head::first(HeadState::Open, this_process(&turns.nonce)) }
    }

    fn own(&self, stream: StreamId, epoch: u32) {
        let fence = Fence::new(TAKEOVER_AFTER);
        self.ledger.change(|state| state.owned = Some(HeldStream { stream, epoch, fence }));
    }

    /// Writes the head: that this process is there, and what it has shipped.
    fn renew(&self, store: &dyn Store, turns: &mut Turns, state: HeadState) -> Result<(), ShipError> {
        let Some(head) = &mut turns.head else { return Ok(()) };
        let backlog = store.backlog(&Filter::default())?;
        let stream = self.ledger.lock().owned.as_ref().map(|owned| owned.stream);
        let head_is_finished = || stream.is_some_and(|stream| self.is_known_finished(stream));
        let records = store.streams()?;
        let handed_over = records.iter().filter(|it| it.state == StreamState::HandedOver);
        let after: Vec<StreamId> = handed_over.map(|it| StreamId::new(it.stream)).collect();
        let record = records.into_iter().find(|it| Some(it.stream) == stream.as_ref().map(StreamId::uuid));
        // Those of a stream that is settled may be deleted from now on.
        let is_needed = |it: &StreamRecord| state == HeadState::Open || it.is_outstanding;
        let (shipped, bundles) = (turns.shipped, record.filter(is_needed).map_or(0, |it| it.next_bundle));
        let purged = turns.purged.map(|(answer, _)| answer);
        let written = head.write(self.ledger.depot.as_ref(), |head| {
            head.purged = purged.or(head.purged);
            head.after = after;
            head.state = state;
            head.bundles = bundles;
            head.shipped = head.shipped.max(shipped);
            head.waiting = backlog.waiting();
            head.oldest_ms = backlog.oldest_accepted_at_ms.and_then(|at_ms| u64::try_from(at_ms).ok());
            head.renewed_at_ms = u64::try_from(now_ms()).unwrap_or(0);
        });
        let began = match written {
            Ok((HeadWritten::Ours, began)) => began,
            Ok((HeadWritten::Lost, _)) => return Err(ShipError::Lost),
            // How a head that is gone looks to clients without a right to list.
            Err(DepotError::NotAuthorised { .. }) if head_is_finished() => return Err(ShipError::Lost),
            Err(error) => return Err(error.into()),
        };
        turns.head_due = began + RENEW_EVERY;
        self.ledger.change(|state| {
            if let Some(owned) = &mut state.owned {
                owned.fence.renewed(began);
            }
        });
        Ok(())
    }
}

/// Whether a choice finds as much as it may take.
fn fills_a_bundle(unshipped: &UnshippedCount) -> bool {
    unshipped.messages >= CHOICE.messages_max as u64 || unshipped.body_bytes >= CHOICE.bytes_max
}

/// Returns about how much is left once a choice was shipped: a choice of nothing is harmless.
fn rest_of(unshipped: UnshippedCount) -> UnshippedCount {
    UnshippedCount {
        messages: unshipped.messages.saturating_sub(CHOICE.messages_max as u64),
        body_bytes: unshipped.body_bytes.saturating_sub(CHOICE.bytes_max),
        ..unshipped
    }
}

mod ending;
mod purging;
mod resuming;
mod sealing;
