//! An agent's knowledge of its stream, shared between its replay, its intake and its shipper.
//!
//! The replay asks whether it may send, and makes marks before it settles. Intake waits for the depot where answers do
//! (`acknowledge: fleet`). The shipper ([`super::shipper`]) is the one that changes the stream.
//!
//! # A settle beside a bundle
//!
//! A message must not be settled without a mark while a bundle is made of it. So a settle looks up which of its messages
//! are outstanding and settles under a shared lock, and the shipper chooses messages for a bundle under the exclusive
//! one. Neither is held while the depot is waited for: marks are made between two look-ups.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tracing::debug;
use uuid::Uuid;

use super::mark_writer::MarkWriter;
use super::marks::{Fate, Mark};
use super::names::StreamId;
use super::record::MessageRef;
use super::reference::withhold_from_marks;
use super::schedule::ShippingSettings;
use super::seals::Seals;
use super::spooled::{Removal, ShippedLedger};
use super::takeover::Fence;
use crate::depot::{Depot, DepotError};
use crate::message::MessageId;
use crate::sealing::Recipient;
use crate::store::{
    Filter, Lease, Outcome, ShippedMessage, Store, StoreError, StreamRecord, StreamState, UnshippedCount, since_boot,
};
use crate::telemetry::metrics::Metrics;

/// How long an acknowledgement waits for the depot, beside what the depot itself needs to fail.
const ACKNOWLEDGEMENT_MAX: Duration = Duration::from_secs(45);
/// How many deleted messages are marked at once.
const GONE_STEP: usize = 1000;

/// When a write is acknowledged that was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// After the local commit.
    #[default]
    Local,
    /// Once its copy is in the depot.
    Fleet,
}

/// The policy for writes that wait for a depot which is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDepotAway {
    /// It is acknowledged after the local commit.
    #[default]
    Local,
    /// It is refused, so that the client keeps it.
    Refuse,
}

/// How an agent ships.
#[derive(Clone, Debug, Default)]
pub struct FleetSettings {
    /// For whom everything is sealed; none: for those that the depot's `fleet.json` names.
    pub recipients: Vec<Recipient>,
    /// Whether nothing needs to be sealed, if there are no recipients.
    pub is_plain: bool,
    /// Whether secrets are named by fingerprints instead of being shipped.
    pub is_by_reference: bool,
    /// When bundles are made.
    pub schedule: ShippingSettings,
    /// When writes are acknowledged.
    pub acknowledge: Acknowledge,
    /// The policy while the depot is away.
    pub when_away: WhenDepotAway,
    /// How long owners of streams have to be silent, by which everything in a fleet is timed.
    pub silence: Duration,
}

/// The depot of an agent, and how it ships.
#[derive(Clone)]
pub struct FleetUse {
    /// The depot.
    pub depot: Arc<dyn Depot>,
    /// How.
    pub settings: FleetSettings,
}

impl std::fmt::Debug for FleetUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { depot, settings } = self;
        f.debug_struct("FleetUse").field("depot", &depot.describe()).field("settings", settings).finish()
    }
}

/// The state of shipping, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetStanding {
    /// The depot's URL, without secrets.
    pub depot: String,
    /// Why nothing can be shipped now.
    pub problem: Option<String>,
    /// The stream that is shipped to.
    pub stream: Option<Uuid>,
    /// Streams that a replayer has taken over and not finished.
    pub handed_over: usize,
    /// The messages without a copy in the depot.
    pub unshipped: UnshippedCount,
}

/// The stream that this process owns.
#[derive(Clone, Debug)]
pub(super) struct HeldStream {
    pub(super) stream: StreamId,
    pub(super) epoch: u32,
    pub(super) fence: Fence,
}

#[derive(Default)]
pub(super) struct LedgerState {
    pub(super) seals: Option<Seals>,
    /// The fleet under whose id secrets are named; `None` where they are shipped.
    pub(super) names_secrets_in: Option<Uuid>,
    pub(super) owned: Option<HeldStream>,
    /// Whether the streams of the open store are ours, or handed over: until then none of their messages is sent.
    pub(super) is_resumed: bool,
    /// Every message up to this one that waits is in the depot.
    pub(super) confirmed_through: i64,
    /// Why nothing can be shipped now.
    pub(super) problem: Option<String>,
    /// Whether the shipper has to look at once.
    pub(super) is_woken: bool,
    /// The stream whose messages are being deleted here, because its new owner has delivered them.
    pub(super) clearing: Option<Uuid>,
    /// How often a store was opened.
    pub(super) opened: u64,
    pub(super) standing: FleetStanding,
}

/// The agent's ledger.
pub struct AgentLedger {
    pub(super) depot: Arc<dyn Depot>,
    pub(super) settings: FleetSettings,
    metrics: Arc<Metrics>,
    marks: MarkWriter,
    state: Mutex<LedgerState>,
    changed: Condvar,
    choosing: RwLock<()>,
}

impl AgentLedger {
    /// Returns the ledger of an agent that ships to this depot.
    pub fn new(depot: Arc<dyn Depot>, settings: FleetSettings, metrics: Arc<Metrics>) -> Self {
        let marks = MarkWriter::new(depot.clone());
        let standing = FleetStanding { depot: depot.describe().url, ..FleetStanding::default() };
        let state = Mutex::new(LedgerState { standing, ..LedgerState::default() });
        Self { depot, settings, metrics, marks, state, changed: Condvar::new(), choosing: RwLock::default() }
    }

    /// Records that a store was opened, whose streams have to be looked at before anything is sent.
    pub fn opened(&self) {
        let mut state = self.lock();
        state.is_resumed = false;
        state.owned = None;
        state.confirmed_through = 0;
        state.opened += 1;
        state.is_woken = true;
        drop(state);
        self.changed.notify_all();
    }

    /// Returns the state of shipping.
    pub fn standing(&self) -> FleetStanding {
        let state = self.lock();
        FleetStanding { problem: state.problem.clone(), ..state.standing.clone() }
    }

    /// Wakes the shipper.
    pub fn wake(&self) {
        self.lock().is_woken = true;
        self.changed.notify_all();
    }

    /// Waits until the shipper is woken, at most this long.
    pub(super) fn wait_until_woken(&self, at_most: Duration) {
        let state = self.lock();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, at_most, |state| !state.is_woken)
            .unwrap_or_else(PoisonError::into_inner);
        state.is_woken = false;
    }

    /// Changes the state, and lets those know who wait for it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut LedgerState) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_all();
        changed
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LedgerState> {
        // Every critical section leaves it consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps settles out while messages are chosen for a bundle.
    pub(super) fn choosing(&self) -> RwLockWriteGuard<'_, ()> {
        self.choosing.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn settling(&self) -> RwLockReadGuard<'_, ()> {
        self.choosing.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self, error: &DepotError) -> StoreError {
        StoreError::DepotAway { reason: format!("shipped messages wait for their depot: {error}") }
    }

    /// Makes marks of these messages durable.
    fn mark(&self, store: &dyn Store, marks: Vec<(Uuid, Mark)>) -> Result<(), StoreError> {
        let (seals, names_secrets_in) = {
            let state = self.lock();
            (state.seals.clone(), state.names_secrets_in)
        };
        let Some(seals) = seals else {
            let reason = format!("the depot {} was not asked yet for whom to seal", self.depot.describe().url);
            return Err(StoreError::DepotAway { reason });
        };
        let epochs: HashMap<Uuid, u32> = store.streams()?.iter().map(|it| (it.stream, it.epoch)).collect();
        let mut of_streams: Vec<(Uuid, Vec<Mark>)> = Vec::new();
        for (stream, mark) in marks {
            match of_streams.iter_mut().find(|(other, _)| *other == stream) {
                Some((_, marks)) => marks.push(mark),
                None => of_streams.push((stream, vec![mark])),
            }
        }
        let all = of_streams.into_iter().map(|(stream, mut marks)| {
            if let Some(fleet) = names_secrets_in {
                withhold_from_marks(fleet, &mut marks, |_| true);
            }
            ((StreamId::new(stream), epochs.get(&stream).copied().unwrap_or(0)), marks)
        });
        self.marks.mark_all(&seals, all.collect()).map_err(|error| self.away(&error))
    }

    /// Marks messages that were deleted without one.
    ///
    /// # Errors
    ///
    /// [`StoreError::DepotAway`] or an error of the store: what is not marked is marked later.
    pub(super) fn mark_gone(&self, store: &dyn Store, why: Removal) -> Result<(), StoreError> {
        loop {
            let clearing = self.lock().clearing;
            let mut gone = store.outstanding_and_gone(GONE_STEP)?;
            gone.retain(|message| Some(message.stream) != clearing);
            if gone.is_empty() {
                return Ok(());
            }
            let fate = || match why {
                Removal::Purged => Fate::Deleted,
                Removal::Expired => Fate::Expired,
            };
            let mark =
                |it: &ShippedMessage| (it.stream, Mark { reference: MessageRef::whole(it.origin), fate: fate() });
            self.mark(store, gone.iter().map(mark).collect())?;
            store.note_marked(&gone.iter().map(|it| it.id).collect::<Vec<_>>())?;
        }
    }
}

/// Returns the mark of a final outcome; `None` if the message still has to be delivered.
fn fate_of(outcome: &Outcome) -> Option<Fate> {
    match outcome {
        Outcome::Delivered => Some(Fate::Delivered),
        Outcome::Rejected { answer } => Some(Fate::Rejected(answer.clone())),
        Outcome::Divided { parts } if parts.is_empty() => Some(Fate::Delivered),
        Outcome::Divided { parts } => Some(Fate::Divided(parts.clone())),
        Outcome::Failed { .. } | Outcome::Held { .. } => None,
    }
}

/// Returns how the depot names a message, or `None` if that is gone.
fn reference(store: &dyn Store, message: &ShippedMessage) -> Result<Option<MessageRef>, StoreError> {
    let whole = MessageRef::whole(message.origin);
    if !message.is_part {
        return Ok(Some(whole));
    }
    Ok(store.get(message.id)?.map(|stored| whole.part(&stored.request)))
}

impl ShippedLedger for AgentLedger {
    fn may_send(&self, store: &dyn Store) -> Result<(), StoreError> {
        let owned = self.lock().owned.clone();
        let now = since_boot();
        let is_ours = |record: &StreamRecord| {
            let is_it = |owned: &&HeldStream| (owned.stream.uuid(), owned.epoch) == (record.stream, record.epoch);
            owned.as_ref().filter(is_it).is_some_and(|owned| owned.fence.may_lease(now))
        };
        let waits = |record: &&StreamRecord| record.state == StreamState::Open && record.is_outstanding;
        match store.streams()?.iter().filter(waits).all(is_ours) {
            true => Ok(()),
            false => {
                let depot = self.depot.describe();
                let reason =
                    format!("nothing that was shipped is sent until the depot {depot} has confirmed whose it is");
                Err(StoreError::DepotAway { reason })
            }
        }
    }

    fn settle(&self, store: &dyn Store, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let fates: HashMap<MessageId, Fate> =
            outcomes.iter().filter_map(|(id, outcome)| Some((*id, fate_of(outcome)?))).collect();
        let ids: Vec<MessageId> = fates.keys().copied().collect();
        let mut marked: HashSet<MessageId> = HashSet::new();
        loop {
            let outstanding = {
                let _settling = self.settling();
                let mut outstanding = store.outstanding(&ids)?;
                outstanding.retain(|message| !marked.contains(&message.id));
                if outstanding.is_empty() {
                    return store.settle(lease, outcomes);
                }
                outstanding
            };
            let mut marks = Vec::with_capacity(outstanding.len());
            for message in &outstanding {
                if let (Some(reference), Some(fate)) = (reference(store, message)?, fates.get(&message.id)) {
                    marks.push((message.stream, Mark { reference, fate: fate.clone() }));
                }
            }
            self.mark(store, marks)?;
            marked.extend(outstanding.iter().map(|message| message.id));
        }
    }

    fn registered(&self, store: &dyn Store, ids: &[MessageId]) -> Result<(), StoreError> {
        let (Acknowledge::Fleet, Some(last)) = (self.settings.acknowledge, ids.iter().max()) else { return Ok(()) };
        let until = Instant::now() + ACKNOWLEDGEMENT_MAX;
        let mut state = self.lock();
        state.is_woken = true;
        self.changed.notify_all();
        let problem = loop {
            if state.confirmed_through >= last.0 {
                break None;
            }
            if let Some(problem) = &state.problem {
                break Some(problem.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Some(format!("the depot {} did not confirm in time", self.depot.describe().url));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        match (problem, self.settings.when_away) {
            (None, _) => Ok(()),
            (Some(_), WhenDepotAway::Local) => {
                self.metrics.fleet_acknowledged_locally.add(ids.len() as u64);
                Ok(())
            }
            (Some(problem), WhenDepotAway::Refuse) => {
                // The client keeps them. One that is being sent already is delivered twice, which is harmless.
                store.purge(&Filter { ids: ids.to_vec(), ..Filter::default() }, ids.len())?;
                self.wake();
                Err(StoreError::DepotAway { reason: format!("it is not in the depot: {problem}") })
            }
        }
    }

    fn deleted(&self, store: &dyn Store, why: Removal) {
        if let Err(error) = self.mark_gone(store, why) {
            debug!(target: "fleet", %error, "the deleted messages are marked later");
            self.wake();
        }
    }
}
