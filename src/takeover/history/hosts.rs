//! The hosts of a history: agents, replayers, and a person who purges. Each has threads that take orders, concurrently.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::super::feeder::{FeedProgress, FeedSettings, FeedState, Feeder};
use super::super::holdings::{HeadTiming, Holdings};
use super::super::importer::Importer;
use super::super::key_folder::KeyFolder;
use super::super::keys::FleetKeys;
use super::super::ledger::ReplayerLedger;
use super::super::objects::name_of;
use super::super::purging::{FleetPurge, FleetPurged, PurgeSelection};
use super::super::reading::StreamReader;
use super::super::record_sorter::RecordSorter;
use super::super::scratch::ScratchStore;
use super::super::selection::FleetReplaySelection;
use super::super::watch::HeadWatch;
use super::gate::pass;
use super::oracle::EntityOf;
use super::script::{Course, Order, SharedWorld};
use crate::depot::Depot;
use crate::fleet::head::{Head, HeadOwner, HeadState};
use crate::fleet::ledger::{AgentLedger, FleetSettings};
use crate::fleet::names::{ObjectName, StreamId};
use crate::fleet::orders::Person;
use crate::fleet::schedule::ShippingSettings;
use crate::fleet::seals::Seals;
use crate::fleet::shipper::Shipper;
use crate::fleet::spooled::Spooled;
use crate::fleet::stream_head::read_head;
use crate::fleet::stream_purge::StreamPurge;
use crate::fleet::takeover::TAKEOVER_AFTER;
use crate::message::{
    Body, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageId, MessageType, Request, Server,
    Touch,
};
use crate::replay::LEASE_TIME_TO_LIVE;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::sqlite::SqliteStore;
use crate::store::{
    ClaimLimits, Filter, Keys, Lease, Limits, OpenMode, Outcome, Owner, Store, StoreError, WhenFull, now_ms, since_boot,
};
use crate::telemetry::metrics::Metrics;

const LIMITS: Limits = Limits { size_max: 1 << 24, disk_reserve: 0, when_full: WhenFull::Refuse };
/// How long a lease suffices to begin requests (`replay::lease`), and how long a request may be on its way.
const LEASE_USE: Duration = Duration::from_secs(20);
const ON_ITS_WAY: Duration = Duration::from_secs(30);

fn server() -> Server {
    Server::new("http://opik.example/api")
}

pub(super) fn key_of(entity: u8) -> EntityKey {
    EntityKey::new(EntityKind::Trace, &format!("trace-{entity}"))
}

/// Returns the write that a body is of.
pub(super) fn write_in(body: &[u8]) -> usize {
    let text = std::str::from_utf8(body).ok().and_then(|text| text.strip_prefix("{\"write\":")?.strip_suffix('}'));
    text.and_then(|number| number.parse().ok()).expect("every body names its write")
}

fn message(agent: usize, (write, is_first): (usize, bool), entity: u8) -> Message {
    let (message_type, method, effect) = match is_first {
        true => (MessageType::CreateTrace, "POST", Effect::Create),
        false => (MessageType::UpdateTrace, "PATCH", Effect::Update),
    };
    Message {
        // Traces of several agents have nothing in common.
        lane: Lane { server: Some(server()), workspace: Some(format!("agent-{agent}")), credential: None },
        message_type,
        request: Request {
            method: method.into(),
            path: "v1/private/traces".into(),
            headers: HeaderSet::default(),
            body: Body::new(format!("{{\"write\":{write}}}"), Encoding::Identity),
        },
        touches: vec![Touch { key: key_of(entity), effect }],
        items: 1,
        project: None,
        accepted_at_ms: now_ms(),
    }
}

/// Sends what a store has, as [`crate::replay`] does, one request at a time.
struct ModelRound<'a> {
    store: &'a dyn Store,
    owner: &'a Owner,
    world: &'a SharedWorld,
    name: &'a str,
    /// Says who else owns the stream of a message, if somebody does.
    other_owner: &'a dyn Fn(MessageId) -> Option<String>,
}

impl ModelRound<'_> {
    fn round(&self, most: usize) {
        let renewed = since_boot();
        let Ok(lease) = self.store.acquire(self.owner, LEASE_TIME_TO_LIVE) else { return };
        if let Err(error) = self.send(&lease, renewed, most) {
            self.world.tell(format!("{} cannot settle: {error}", self.name));
        }
        let _ = self.store.release(&lease);
    }

    fn send(&self, lease: &Lease, renewed: Duration, most: usize) -> Result<(), StoreError> {
        self.store.return_in_flight(lease)?;
        let filter = Filter::of_server(&server());
        for work in self.store.lanes(&filter, now_ms())? {
            let messages_max = most.max(self.store.interrupted(work.id)?);
            let limits = ClaimLimits { messages_max, bytes_max: 1 << 20 };
            let claimed = self.store.claim(lease, work.id, &filter, limits, now_ms())?.into_messages();
            let mut outcomes = Vec::new();
            for message in claimed {
                if since_boot().saturating_sub(renewed) >= LEASE_USE {
                    break;
                }
                let (write, outcome) = self.request(message.id, write_in(&message.request.body.bytes));
                // The rest stays in flight, and is retried by the next round.
                let has_failed = outcome != Outcome::Delivered;
                outcomes.push((message.id, (write, outcome)));
                if has_failed {
                    break;
                }
            }
            self.store
                .settle(lease, &outcomes.iter().map(|(id, (_, outcome))| (*id, outcome.clone())).collect::<Vec<_>>())?;
            let mut oracle = self.world.oracle();
            outcomes.iter().filter(|(_, (_, outcome))| *outcome == Outcome::Delivered).for_each(|(_, (write, _))| {
                oracle.is_final(*write, true);
            });
        }
        Ok(())
    }

    fn request(&self, id: MessageId, write: usize) -> (usize, Outcome) {
        let failed = Outcome::Failed { next_attempt_at_ms: 0, counts: false, answer: None };
        if let Some(other) = (self.other_owner)(id) {
            self.world.wrong(format!("{} sends write {write}, whose stream belongs to {other}", self.name));
        }
        let began = since_boot();
        let course = pass();
        let is_late = since_boot().saturating_sub(began) >= ON_ITS_WAY;
        if course != Course::Go || is_late || !self.world.is_server_up.load(Ordering::SeqCst) {
            return (write, failed);
        }
        self.world.oracle().receive(write, self.name);
        match pass() {
            Course::Go => (write, Outcome::Delivered),
            _ => (write, failed),
        }
    }
}

/// An agent's process.
pub(super) struct AgentHost {
    pub(super) world: Arc<SharedWorld>,
    pub(super) name: String,
    /// Which agent it is.
    pub(super) agent: usize,
    owner: Owner,
    store: Arc<dyn Store>,
    spooled: Arc<dyn Store>,
    shipper: Shipper,
}

impl AgentHost {
    pub(super) fn start(
        world: &Arc<SharedWorld>,
        agent: usize,
        folder: &std::path::Path,
        depot: Arc<dyn Depot>,
    ) -> Self {
        let path = folder.join("opik_messages.db");
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS).expect("there is a disk"));
        let schedule =
            ShippingSettings { delay: Duration::ZERO, interval_min: Duration::ZERO, interval_max: Duration::ZERO };
        let settings = FleetSettings { is_plain: true, schedule, silence: TAKEOVER_AFTER, ..FleetSettings::default() };
        let metrics = Arc::new(Metrics::default());
        let ledger = Arc::new(AgentLedger::new(depot, settings, metrics.clone()));
        ledger.opened();
        let spooled: Arc<dyn Store> = Arc::new(Spooled::new(store.clone(), ledger.clone()));
        let slot = Arc::new(StoreSlot::holding(spooled.clone()));
        let shipper = Shipper { ledger, slot, stopping: Shutdown::new(), metrics, end_within: Duration::ZERO };
        // The process that was killed is known to be gone: its lease ends with it.
        let owner = Owner { nonce: format!("agent-{agent}"), ..Owner::this_process("agent") };
        Self { world: world.clone(), name: format!("agent {agent}"), agent, owner, store, spooled, shipper }
    }

    /// Accepts writes, delivers under a lease, retries.
    pub(super) fn serve(&self, order: Order) {
        match order {
            Order::Write { entity } => self.write(entity),
            Order::Deliver { most } => {
                let other_owner = |id| self.other_owner(id);
                let (store, owner, world) = (&*self.spooled, &self.owner, &*self.world);
                ModelRound { store, owner, world, name: &self.name, other_owner: &other_owner }.round(most);
            }
            _ => {}
        }
    }

    fn write(&self, entity: u8) {
        let (write, is_first) = self.world.oracle().begin(EntityOf { agent: self.agent, entity });
        let message = message(self.agent, (write, is_first), entity);
        let ahead = self.spooled.ahead(&message.lane, &message.touches).expect("the store can be read");
        if ahead.messages == 0 && self.world.is_server_up.load(Ordering::SeqCst) && self.forward(write) {
            return self.world.oracle().acknowledged(write);
        }
        self.spooled.register(&[message]).expect("there is room");
        let mut oracle = self.world.oracle();
        oracle.is_final(write, false);
        oracle.acknowledged(write);
    }

    /// Forwards a write, and returns whether the server confirmed it. Nobody repeats what is not stored.
    fn forward(&self, write: usize) -> bool {
        if pass() != Course::Go {
            return false;
        }
        let mut oracle = self.world.oracle();
        oracle.receive(write, &self.name);
        oracle.is_final(write, true);
        drop(oracle);
        pass() == Course::Go
    }

    fn other_owner(&self, id: MessageId) -> Option<String> {
        let shipped = self.store.outstanding(&[id]).expect("the store can be read").pop()?;
        let records = self.store.streams().expect("the store can be read");
        let record = records.iter().find(|record| record.stream == shipped.stream)?;
        match self.world.head(StreamId::new(record.stream)) {
            None if record.next_bundle == 0 => None,
            None => Some("no process".to_owned()),
            Some(head) if head.epoch != record.epoch || head.state != HeadState::Open => Some(head.owner.nonce),
            Some(_) => None,
        }
    }

    /// Ships until it is stopped.
    pub(super) fn ship(&self) -> impl FnMut(Order) + '_ {
        let mut turns = self.shipper.begin();
        move |order| match order {
            Order::Turn => {
                self.shipper.turn_reported(&mut turns);
                if let Some(problem) = self.shipper.ledger.standing().problem {
                    self.world.tell(format!("{} cannot ship: {problem}", self.name));
                }
            }
            Order::End => self.shipper.end(&mut turns, &Shutdown::new()),
            _ => {}
        }
    }

    /// Returns how many messages are in its store.
    pub(super) fn waiting(&self) -> u64 {
        self.store.backlog(&Filter::default()).map_or(0, |backlog| backlog.messages())
    }
}

/// Takes the orders of a thread.
type OrderTaker<'a> = &'a mut dyn FnMut(Order);

/// The process of a replayer.
pub(super) struct ReplayerHost {
    world: Arc<SharedWorld>,
    name: String,
    depot: Arc<dyn Depot>,
    owner: Owner,
    scratch: ScratchStore,
    holdings: Arc<Holdings>,
    ledger: Arc<ReplayerLedger>,
    spooled: Arc<dyn Store>,
    keys: FleetKeys,
    state: FeedState,
}

fn keys() -> FleetKeys {
    let folder = Arc::new(KeyFolder::none());
    FleetKeys { identities: Arc::new([]), seals: Seals::Plain, folder, fleet_recipients: Vec::new() }
}

fn owner_of_heads(name: &str) -> HeadOwner {
    HeadOwner { nonce: format!("{name} {}", uuid::Uuid::now_v7()), ..HeadOwner::default() }
}

impl ReplayerHost {
    pub(super) fn start(
        world: &Arc<SharedWorld>,
        name: String,
        folder: &std::path::Path,
        depot: Arc<dyn Depot>,
    ) -> Self {
        let scratch = ScratchStore::create(folder, LIMITS, &Keys::default()).expect("there is a disk");
        let timing = HeadTiming { takeover_after: TAKEOVER_AFTER };
        let holdings = Arc::new(Holdings::new(depot.clone(), owner_of_heads(&name), timing));
        let keys = keys();
        let ledger = Arc::new(ReplayerLedger::new(depot.clone(), holdings.clone(), &keys));
        let spooled: Arc<dyn Store> = Arc::new(Spooled::new(scratch.store().clone(), ledger.clone()));
        let (world, owner, state) = (world.clone(), Owner::this_process("replay"), FeedState::default());
        Self { world, name, depot, owner, scratch, holdings, ledger, spooled, keys, state }
    }

    /// Renews the heads.
    pub(super) fn keep(&self, order: Order) {
        if order == Order::Keep {
            self.holdings.renew_due();
        }
    }

    /// Delivers.
    pub(super) fn deliver(&self, order: Order) {
        let Order::Deliver { most } = order else { return };
        if self.holdings.may_send().is_err() || self.ledger.staged().messages == 0 {
            return;
        }
        let _round = self.state.round.lock().unwrap_or_else(PoisonError::into_inner);
        let other_owner = |id| self.other_owner(id);
        let (store, owner, world) = (&*self.spooled, &self.owner, &*self.world);
        ModelRound { store, owner, world, name: &self.name, other_owner: &other_owner }.round(most);
    }

    fn other_owner(&self, id: MessageId) -> Option<String> {
        let store = &**self.scratch.store();
        let is_in = |stream: &StreamId| self.ledger.ids_of(*stream, store).is_ok_and(|ids| ids.contains(&id));
        let stream = self.world.streams().into_iter().find(is_in);
        match stream.and_then(|stream| self.world.head(stream)) {
            None => Some("no process".to_owned()),
            Some(head) => (!head.owner.nonce.starts_with(&self.name)).then_some(head.owner.nonce),
        }
    }

    /// Takes streams over until it is stopped.
    pub(super) fn feed(&self, next: &mut dyn FnMut(OrderTaker<'_>)) {
        let reader = StreamReader::new(self.depot.clone(), self.keys.identities.clone());
        let (store, server, selection) = (&**self.scratch.store(), server(), FleetReplaySelection::default());
        let importer = Importer {
            reader: reader.clone(),
            ledger: &self.ledger,
            store,
            sorter: RecordSorter { server: &server, max_age: None, selection: &selection, keys: &self.keys.folder },
        };
        let mut feeder = Some(Feeder {
            depot: &*self.depot,
            reader,
            holdings: &self.holdings,
            ledger: &self.ledger,
            importer,
            store,
            state: &self.state,
            settings: FeedSettings { stage_bytes: 1 << 20, takeover_after: TAKEOVER_AFTER },
            keys: &self.keys.folder,
            own: None,
            progress: FeedProgress::new(TAKEOVER_AFTER),
        });
        next(&mut |order| match order {
            Order::Feed => {
                let is_up = self.world.is_server_up.load(Ordering::SeqCst);
                let step = feeder.as_mut().map(|feeder| feeder.step(is_up));
                if let Some(Err(error)) = step {
                    self.world.tell(format!("{} cannot feed: {error}", self.name));
                }
            }
            Order::End => drop(feeder.take().map(Feeder::close)),
            _ => {}
        });
    }
}

/// A person who purges.
pub(super) struct PersonHost {
    world: Arc<SharedWorld>,
    purge: FleetPurge,
}

/// A purge that waits for the owner of a stream, and its writes.
struct RequestedPurge {
    stream: StreamId,
    purge: StreamPurge,
    writes: Vec<usize>,
}

impl PersonHost {
    pub(super) fn start(world: &Arc<SharedWorld>, folder: PathBuf, depot: Arc<dyn Depot>) -> Self {
        let limits = (LIMITS, &Keys::default());
        let browser = super::super::browse::FleetBrowser::new(depot.clone(), &keys(), &folder, limits);
        let purge = FleetPurge {
            depot,
            keys: keys(),
            browser: browser.expect("there is a disk"),
            owner: owner_of_heads("person"),
            person: Person { user: None, uid: 0, host: String::new() },
            order: uuid::Uuid::now_v7(),
            takeover_after: TAKEOVER_AFTER,
        };
        Self { world: world.clone(), purge }
    }

    /// Purges streams that are free, and requests it from the owners of the others: all messages, or those about an entity.
    pub(super) fn purge(&self) -> impl FnMut(Order) + '_ {
        let mut watch = HeadWatch::new(TAKEOVER_AFTER);
        let mut requested = Vec::new();
        move |order| {
            let Order::Purge { entity } = order else { return };
            self.read_answers(&mut requested);
            self.request(entity, &mut requested);
            let Ok(look) = watch.look(&*self.purge.depot, |_| false) else { return };
            for free in look.free {
                let selection = match entity {
                    None => PurgeSelection { streams: vec![free.stream], ..PurgeSelection::default() },
                    Some(entity) => PurgeSelection {
                        filter: Filter { entities: vec![key_of(entity)], ..Filter::default() },
                        ..PurgeSelection::default()
                    },
                };
                let confirmed = free.head.as_ref().map_or(0, |(head, _)| head.bundles);
                let found = self.selected(free.stream, entity, confirmed);
                let timing = HeadTiming { takeover_after: TAKEOVER_AFTER };
                let holdings = Holdings::new(self.purge.depot.clone(), self.purge.owner.clone(), timing);
                let mut purged = FleetPurged::default();
                let done = self.purge.purge_stream(&free, &holdings, &selection, &mut purged);
                if done.is_ok() && purged.streams > 0 {
                    self.world.oracle().purged(&found.iter().map(|found| found.write).collect::<Vec<_>>());
                }
            }
        }
    }

    /// Returns the messages of a stream that a person selects. Those of unconfirmed bundles are delivered by their agent.
    fn selected(&self, stream: StreamId, entity: Option<u8>, confirmed: u32) -> Vec<ShippedWrite> {
        let mut found = self.world.shipped(stream);
        found.retain(|found| entity.is_none_or(|entity| self.world.oracle().entity(found.write) == entity));
        self.world.oracle().purging(&found.iter().map(|found| found.write).collect::<Vec<_>>());
        found.retain(|found| found.bundle < confirmed);
        found
    }

    /// Requests purges from the owners of streams.
    fn request(&self, entity: Option<u8>, requested: &mut Vec<RequestedPurge>) {
        for stream in self.world.streams() {
            let Some(head) = self.world.head(stream).filter(|head| head.state != HeadState::Closed) else { continue };
            let found = self.selected(stream, entity, head.bundles);
            let messages = found.iter().map(|found| found.message).collect();
            let (purge, _) = StreamPurge::of(uuid::Uuid::now_v7(), String::new(), &messages);
            if purge.leave(&*self.purge.depot, stream, Duration::ZERO) == Ok(true) {
                self.world.tell(format!("requested: the purge of {messages:?} from the owner of {stream}"));
                requested.push(RequestedPurge {
                    stream,
                    purge,
                    writes: found.iter().map(|found| found.write).collect(),
                });
            }
        }
    }

    /// Reads the answers of owners, and withdraws what they have answered, or what they have to answer no longer.
    fn read_answers(&self, requested: &mut Vec<RequestedPurge>) {
        requested.retain(|requested| {
            let head = match read_head(&*self.purge.depot, requested.stream) {
                Ok(read) => read.map(|read| read.head),
                Err(_) => return true,
            };
            let answer = head.as_ref().and_then(|head| head.purged).filter(|it| it.order == requested.purge.order);
            if answer.is_some_and(|answer| answer.kept == 0) {
                self.world.oracle().purged(&requested.writes);
            }
            let waits = answer.is_none() && head.is_some_and(|head| head.state != HeadState::Closed);
            waits || StreamPurge::withdraw(&*self.purge.depot, requested.stream).is_err()
        });
    }
}

/// A message in the depot.
pub(super) struct ShippedWrite {
    bundle: u32,
    /// Its id in the store of its agent.
    message: u64,
    /// The number of its write.
    write: usize,
}

impl SharedWorld {
    /// Returns the head of a stream as it is.
    pub(super) fn head(&self, stream: StreamId) -> Option<Head> {
        let bytes = self.depot.peek(&name_of(&ObjectName::Head(stream)))?;
        Some(Head::decode(&bytes).expect("every head can be read"))
    }

    /// Returns the streams that have a head.
    pub(super) fn streams(&self) -> Vec<StreamId> {
        let head = |name: &crate::depot::Name| match ObjectName::parse(name.as_str()) {
            Some(ObjectName::Head(stream)) => Some(stream),
            _ => None,
        };
        self.depot.names().iter().filter_map(head).collect()
    }

    /// Returns the messages of a stream that are in the depot.
    pub(super) fn shipped(&self, stream: StreamId) -> Vec<ShippedWrite> {
        let reader = StreamReader::new(self.depot.clone(), Arc::new([]));
        let mut found = Vec::new();
        for name in self.depot.names() {
            if let Some(ObjectName::Bundle(of, bundle)) = ObjectName::parse(name.as_str())
                && of == stream
                && let Some(bytes) = self.depot.peek(&name)
            {
                let records = reader.records_of(&name, bundle.messages.into(), &bytes).records;
                found.extend(records.iter().map(|it| ShippedWrite {
                    bundle: bundle.number,
                    message: it.reference.message,
                    write: write_in(&it.message.request.body.bytes),
                }));
            }
        }
        found
    }

    /// Returns the writes that are in the depot.
    pub(super) fn in_depot(&self) -> Vec<usize> {
        let stream = |name: &crate::depot::Name| match ObjectName::parse(name.as_str()) {
            Some(ObjectName::Bundle(stream, _)) => Some(stream),
            _ => None,
        };
        let streams: std::collections::BTreeSet<StreamId> = self.depot.names().iter().filter_map(stream).collect();
        streams.into_iter().flat_map(|stream| self.shipped(stream)).map(|found| found.write).collect()
    }
}
