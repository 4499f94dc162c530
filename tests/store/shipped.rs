//! Copies in a depot: what the engines record about them, and that no message leaves a store before the depot has its
//! mark.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opik_offline::depot::model::{ModelDepot, ModelFault, Verb};
use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::bundle::BundleReader;
use opik_offline::fleet::finished::FinishedStream;
use opik_offline::fleet::fleet_file::FleetFile;
use opik_offline::fleet::head::{Head, HeadState};
use opik_offline::fleet::ledger::{Acknowledge, AgentLedger, FleetSettings, WhenDepotAway};
use opik_offline::fleet::loading::Loader;
use opik_offline::fleet::marks::{Fate, Mark, MarksReader};
use opik_offline::fleet::names::{ObjectName, StreamId};
use opik_offline::fleet::record::FleetRecord;
use opik_offline::fleet::schedule::ShippingSettings;
use opik_offline::fleet::seals::Seals;
use opik_offline::fleet::shipper::Shipper;
use opik_offline::fleet::spooled::Spooled;
use opik_offline::message::{Effect, MessageId};
use opik_offline::shutdown::Shutdown;
use opik_offline::store::slot::StoreSlot;
use opik_offline::store::{
    ClaimLimits, Claimed, Filter, LastAnswer, Lease, Outcome, Owner, Part, Store, StoreError, StreamRecord,
    StreamState, now_ms,
};
use opik_offline::telemetry::metrics::Metrics;
use uuid::Uuid;

use crate::memory_store::MemoryStore;
use crate::messages::{about_trace, lane};
use crate::model_store::ModelStore;
use crate::story::open;

const MINUTE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);
const MANY: ClaimLimits = ClaimLimits { messages_max: 100, bytes_max: 1 << 20 };

fn on_every_engine(check: impl Fn(&dyn Store)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    check(&open(&folder.path().join("opik_messages.db")));
    check(&ModelStore::default());
    check(&MemoryStore::default());
}

fn register(store: &dyn Store, trace: &str) -> MessageId {
    store.register(&[about_trace(&lane("team"), trace, Effect::Create, now_ms())]).expect("it is stored")[0]
}

fn record(name: u128) -> StreamRecord {
    StreamRecord {
        stream: Uuid::from_u128(name),
        depot: "file:///depot".into(),
        state: StreamState::Open,
        epoch: 1,
        next_bundle: 0,
        shipped_through: MessageId(0),
        began_at_ms: 5,
        is_outstanding: false,
    }
}

fn claim(store: &dyn Store, lease: &Lease, limits: ClaimLimits) -> Vec<Claimed> {
    let lanes = store.lanes(&Filter::default(), now_ms()).expect("lanes can be read");
    let Some(work) = lanes.into_iter().next() else { return Vec::new() };
    store.claim(lease, work.id, &Filter::default(), limits, now_ms()).expect("we have the lease").into_messages()
}

fn answer() -> LastAnswer {
    LastAnswer { status: Some(422), text: "no".into(), at_ms: 7 }
}

#[test]
fn a_choice_for_a_bundle_is_repeated_until_it_is_confirmed() {
    on_every_engine(|store| {
        let ids: Vec<MessageId> = ["a", "b", "c"].iter().map(|trace| register(store, trace)).collect();
        let stream = record(1);
        store.note_stream(&stream).expect("it is recorded");
        let two = ClaimLimits { messages_max: 2, ..MANY };
        assert_eq!(store.begin_bundle(stream.stream, two).expect("a choice"), ids[..2]);
        assert_eq!(
            store.unshipped().expect("it is counted").messages,
            3,
            "a bundle that may be missing counts as there"
        );
        assert_eq!(store.begin_bundle(stream.stream, MANY).expect("the same choice"), ids[..2]);
        assert_eq!(
            store.outstanding(&ids).expect("a look").len(),
            2,
            "a message that may be in the depot needs a mark"
        );
        store.withdraw_bundle(stream.stream).expect("nothing was put");
        assert_eq!(store.outstanding(&ids).expect("a look"), []);
        assert_eq!(store.begin_bundle(stream.stream, two).expect("a choice"), ids[..2]);
        store.confirm_bundle(stream.stream, 1).expect("it is there");
        assert_eq!(store.unshipped().expect("it is counted").messages, 1);
        assert_eq!(store.begin_bundle(stream.stream, MANY).expect("the rest"), ids[2..]);
        store.confirm_bundle(stream.stream, 2).expect("it is there");
        assert_eq!(store.unshipped().expect("it is counted"), Default::default());
        assert_eq!(store.begin_bundle(stream.stream, MANY).expect("nothing is left"), []);
        let noted = store.streams().expect("they can be read").remove(0);
        assert_eq!((noted.next_bundle, noted.shipped_through, noted.is_outstanding), (2, ids[2], true));
        store.end_stream(stream.stream).expect("it ends");
        assert_eq!(store.streams().expect("they can be read"), []);
        assert_eq!(
            store.unshipped().expect("it is counted").messages,
            3,
            "their copies count although the stream ended"
        );
    });
}

#[test]
fn a_process_that_makes_no_marks_neither_delivers_nor_deletes_copied_messages() {
    on_every_engine(|store| {
        register(store, "a");
        let stream = record(1);
        store.note_stream(&stream).expect("it is recorded");
        store.acquire(&Owner::this_process("replay"), MINUTE).map(|lease| store.release(&lease)).unwrap().unwrap();
        store.begin_bundle(stream.stream, MANY).expect("a choice");
        let refused = |result: Result<(), StoreError>| {
            let error = result.expect_err("a successor would repeat it over newer writes");
            assert!(matches!(&error, StoreError::InDepot { depot, .. } if depot == "file:///depot"), "{error}");
        };
        refused(store.acquire(&Owner::this_process("replay"), MINUTE).map(drop));
        refused(store.purge(&Filter::default(), 10).map(drop));
        refused(store.expire(i64::MAX, 10).map(drop));
        store.makes_marks();
        store.acquire(&Owner::this_process("agent"), MINUTE).expect("it makes marks");
        assert_eq!(store.expire(i64::MAX, 10).expect("it makes marks"), 1);
        let gone = store.outstanding_and_gone(10).expect("they can be read");
        assert_eq!(gone.iter().map(|it| (it.origin, it.is_part)).collect::<Vec<_>>(), [(1, false)]);
        store.note_marked(&[gone[0].id]).expect("it is marked");
        assert_eq!(store.outstanding_and_gone(10).expect("they can be read"), []);
        assert!(!store.streams().expect("they can be read")[0].is_outstanding);
    });
}

#[test]
fn parts_of_a_shipped_message_are_outstanding_and_a_settled_one_is_not() {
    on_every_engine(|store| {
        let whole = register(store, "a");
        let stream = record(1);
        store.note_stream(&stream).expect("it is recorded");
        store.begin_bundle(stream.stream, MANY).expect("a choice");
        store.confirm_bundle(stream.stream, 1).expect("it is there");
        store.makes_marks();
        let lease = store.acquire(&Owner::this_process("agent"), MINUTE).expect("nobody replays");
        let claimed = claim(store, &lease, MANY);
        let part = |number: i64, rejected| {
            let message = about_trace(&lane("team"), &format!("a{number}"), Effect::Create, number);
            let (request, touches, items) = (message.request, message.touches, 1);
            Part { request, touches, items, rejected, held: None }
        };
        let parts = vec![part(1, None), part(2, Some(answer())), part(3, None)];
        store.settle(&lease, &[(claimed[0].id, Outcome::Divided { parts })]).expect("it is divided");
        let all: Vec<MessageId> = (1..=9).map(MessageId).collect();
        let left = store.outstanding(&all).expect("a look");
        assert_eq!(left.len(), 2, "a part that is rejected already waits for a mark: {left:?}");
        assert!(left.iter().all(|it| it.is_part && it.origin == whole.0 as u64 && it.id != whole), "{left:?}");
        assert_eq!(
            store.unshipped().expect("it is counted").messages,
            0,
            "a part has its copy in the mark of the whole"
        );
        let newer = register(store, "b");
        assert_eq!(
            store.begin_bundle(stream.stream, MANY).expect("a choice"),
            [newer],
            "a part is shipped a second time"
        );
        let parts = claim(store, &lease, MANY);
        let outcomes: Vec<_> = parts.iter().map(|it| (it.id, Outcome::Delivered)).collect();
        store.settle(&lease, &outcomes).expect("they are settled");
        assert!(store.outstanding(&all).expect("a look").is_empty(), "what is settled is outstanding");
    });
}

#[test]
fn parts_of_a_message_divided_before_its_stream_keep_their_place() {
    on_every_engine(|store| {
        register(store, "a");
        let lease = store.acquire(&Owner::this_process("agent"), MINUTE).expect("nobody replays");
        let claimed = claim(store, &lease, MANY);
        let later = register(store, "a1");
        let message = about_trace(&lane("team"), "a1", Effect::Update, 1);
        let part = Part { request: message.request, touches: message.touches, items: 1, rejected: None, held: None };
        store.settle(&lease, &[(claimed[0].id, Outcome::Divided { parts: vec![part] })]).expect("it is divided");
        let stream = record(1);
        store.note_stream(&stream).expect("it is recorded");
        let chosen = store.begin_bundle(stream.stream, ClaimLimits { messages_max: 1, ..MANY }).expect("a choice");
        assert!(chosen[0] > later, "the older write is repeated over the newer one: {chosen:?}");
        store.confirm_bundle(stream.stream, 1).expect("it is there");
        let rest = store.begin_bundle(stream.stream, MANY).expect("a choice");
        assert!([&chosen[..], &rest[..]].concat().contains(&later), "a message was skipped: {chosen:?} {rest:?}");
    });
}

#[test]
fn a_stream_that_was_taken_over_is_not_delivered_and_keeps_its_place_in_the_order() {
    on_every_engine(|store| {
        let shipped = register(store, "a");
        let stream = record(1);
        store.note_stream(&stream).expect("it is recorded");
        store.begin_bundle(stream.stream, MANY).expect("a choice");
        store.confirm_bundle(stream.stream, 1).expect("it is there");
        store.makes_marks();
        assert_eq!(store.hand_over(stream.stream).expect("it is recorded"), [shipped]);
        let behind = store.register(&[about_trace(&lane("team"), "a", Effect::Update, 2)]).expect("it is stored")[0];
        let free = register(store, "b");
        let lease = store.acquire(&Owner::this_process("agent"), MINUTE).expect("nobody replays");
        let claimed: Vec<MessageId> = claim(store, &lease, MANY).iter().map(|it| it.id).collect();
        assert_eq!(claimed, [free], "{shipped} is delivered by a replayer, {behind} must not overtake it");
        store.settle(&lease, &[(free, Outcome::Delivered)]).expect("it is settled");
        store.purge(&Filter { ids: vec![shipped], ..Filter::default() }, 1).expect("its new owner has delivered it");
        store.end_stream(stream.stream).expect("it ends");
        let claimed: Vec<MessageId> = claim(store, &lease, MANY).iter().map(|it| it.id).collect();
        assert_eq!(claimed, [behind], "a message waits for one that was delivered");
    });
}

/// An agent's store, shipper and depot, without the agent.
struct Ship {
    depot: Arc<ModelDepot>,
    ledger: Arc<AgentLedger>,
    store: Arc<dyn Store>,
    stop: Shutdown,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ship {
    fn start(store: Arc<dyn Store>, depot: &Arc<ModelDepot>, settings: FleetSettings) -> Self {
        let (metrics, stop) = (Arc::new(Metrics::default()), Shutdown::new());
        let ledger = Arc::new(AgentLedger::new(depot.clone() as Arc<dyn Depot>, settings, metrics.clone()));
        ledger.opened();
        let store: Arc<dyn Store> = Arc::new(Spooled::new(store, ledger.clone()));
        let slot = Arc::new(StoreSlot::holding(store.clone()));
        let shipper =
            Shipper { ledger: ledger.clone(), slot, stopping: Shutdown::new(), metrics, end_within: PATIENCE };
        let requested = stop.clone();
        let thread = std::thread::spawn(move || shipper.run(&requested));
        Self { depot: depot.clone(), ledger, store, stop, thread: Some(thread) }
    }

    fn wait_until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < until, "{what}: {:?} {:?}", self.ledger.standing(), self.depot.names());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn acquire(&self) -> Lease {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.store.acquire(&Owner::this_process("agent"), MINUTE) {
                Ok(lease) => return lease,
                Err(error) => assert!(Instant::now() < until, "it never delivers again: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Ship {
    fn drop(&mut self) {
        self.stop.request();
        self.ledger.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn at_once() -> FleetSettings {
    let schedule = ShippingSettings {
        delay: Duration::ZERO,
        interval_min: Duration::from_millis(1),
        interval_max: Duration::from_millis(1),
    };
    FleetSettings { is_plain: true, schedule, ..FleetSettings::default() }
}

/// The contents of the depot: messages in bundles, marks, heads.
#[derive(Default)]
struct InDepot {
    shipped: BTreeMap<(String, u64), FleetRecord>,
    marks: Vec<(String, Mark)>,
    heads: Vec<Head>,
}

impl InDepot {
    fn of(depot: &ModelDepot) -> Self {
        let mut found = Self::default();
        for name in depot.names() {
            let bytes = depot.peek(&name).expect("it was listed");
            match ObjectName::parse(name.as_str()).expect("every name is one of the fleet's") {
                ObjectName::Bundle(stream, _) => {
                    for record in BundleReader::open(&bytes).expect("it is whole") {
                        let record = record.expect("it is whole");
                        found.shipped.insert((stream.to_string(), record.reference.message), record);
                    }
                }
                ObjectName::Marks { stream, .. } => {
                    let marks = MarksReader::open(&bytes).expect("it is whole");
                    found.marks.extend(marks.map(|mark| (stream.to_string(), mark.expect("it is whole"))));
                }
                ObjectName::Head(_) => found.heads.push(Head::decode(&bytes).expect("a head")),
                ObjectName::FleetFile | ObjectName::Finished(_) | ObjectName::Dial => {}
                other => panic!("{other} is not expected"),
            }
        }
        found
    }

    /// Messages that a successor would deliver.
    fn left(&self) -> BTreeSet<u64> {
        let is_marked = |(stream, message): &(String, u64)| {
            self.marks.iter().any(|(of, mark)| of == stream && mark.reference.message == *message)
        };
        self.shipped.keys().filter(|key| !is_marked(key)).map(|(_, message)| *message).collect()
    }
}

#[test]
fn no_message_leaves_the_store_before_the_depot_has_its_mark() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stores: [Arc<dyn Store>; 2] =
        [Arc::new(open(&folder.path().join("opik_messages.db"))), Arc::new(MemoryStore::default())];
    for store in stores {
        let depot = Arc::new(ModelDepot::new());
        depot.set(|faults| faults.refused = vec![Verb::List, Verb::Delete]);
        let ship = Ship::start(store, &depot, at_once());
        for trace in ["a", "b", "c"] {
            register(ship.store.as_ref(), trace);
        }
        ship.wait_until("nothing is shipped", |ship| InDepot::of(&ship.depot).shipped.len() == 3);
        let lease = ship.acquire();
        let claimed = claim(ship.store.as_ref(), &lease, MANY);
        let one = |at: usize, outcome: Outcome| [(claimed[at].id, outcome)];
        // The depot is away; its answer is lost, before and after the write.
        for fault in [ModelFault::Unreachable, ModelFault::NotDoneUnanswered, ModelFault::Full] {
            depot.fail_next(Verb::Create, fault);
            let error = ship.store.settle(&lease, &one(0, Outcome::Delivered)).expect_err("there is no mark");
            assert!(matches!(error, StoreError::DepotAway { .. }), "{error}");
            assert!(
                ship.store.get(claimed[0].id).unwrap().is_some(),
                "a successor repeats it over newer writes: {fault:?}"
            );
            assert!(InDepot::of(&depot).left().contains(&1), "{fault:?}");
        }
        depot.fail_next(Verb::Create, ModelFault::DoneUnanswered);
        assert!(ship.store.settle(&lease, &one(0, Outcome::Delivered)).is_err(), "nobody knows whether it is marked");
        ship.store.settle(&lease, &one(0, Outcome::Delivered)).expect("the depot is back");
        assert!(ship.store.get(claimed[0].id).unwrap().is_none());
        ship.store.settle(&lease, &one(1, Outcome::Rejected { answer: answer() })).expect("it is marked");
        let retry = Outcome::Failed { next_attempt_at_ms: 0, counts: true, answer: None };
        ship.store.settle(&lease, &one(2, retry)).expect("it needs no mark");
        let found = InDepot::of(&depot);
        assert_eq!(found.left(), BTreeSet::from([3]), "{:?}", found.marks);
        let rejected = |(_, mark): &(String, Mark)| mark.fate == Fate::Rejected(answer());
        assert!(found.marks.iter().any(rejected), "the server's answer is lost");
        drop(ship);
    }
}

#[test]
fn bundles_hold_what_was_stored_and_every_settled_message_of_them_has_a_mark() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let depot = Arc::new(ModelDepot::new());
    depot.set(|faults| faults.refused = vec![Verb::List, Verb::Delete]);
    let ship = Ship::start(Arc::new(open(&folder.path().join("opik_messages.db"))), &depot, at_once());
    let sent: Vec<_> = (0..400)
        .map(|number| about_trace(&lane("team"), &format!("trace-{number}"), Effect::Create, now_ms()))
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (number, message) in sent.iter().enumerate() {
                ship.store.register(std::slice::from_ref(message)).expect("it is stored");
                if number % 7 == 0 {
                    ship.ledger.wake();
                }
            }
        });
        // Replays while it is shipped.
        let lease = ship.acquire();
        let (mut settled, until) = (0, Instant::now() + PATIENCE);
        while settled < sent.len() {
            assert!(Instant::now() < until, "only {settled} were delivered");
            ship.ledger.wake();
            let claimed = claim(ship.store.as_ref(), &lease, ClaimLimits { messages_max: 5, ..MANY });
            let outcomes: Vec<_> = claimed.iter().map(|it| (it.id, Outcome::Delivered)).collect();
            ship.store.settle(&lease, &outcomes).expect("the depot is there");
            settled += outcomes.len();
        }
    });
    let found = InDepot::of(&depot);
    assert_eq!(found.left(), BTreeSet::new(), "a successor would repeat what was delivered");
    assert!(!found.shipped.is_empty(), "nothing was shipped, so nothing was tested");
    for ((_, id), record) in &found.shipped {
        let stored = &sent[*id as usize - 1];
        assert_eq!(record.message.request, stored.request, "message {id} is another one in the depot");
        assert_eq!((&record.message.lane, &record.message.touches), (&stored.lane, &stored.touches));
    }
}

#[test]
fn a_finished_stream_is_deleted_and_the_next_outage_has_another_one() {
    let depot = Arc::new(ModelDepot::new());
    let ship = Ship::start(Arc::new(MemoryStore::default()), &depot, at_once());
    let mut streams = BTreeSet::new();
    for trace in ["a", "b"] {
        register(ship.store.as_ref(), trace);
        ship.wait_until("nothing is shipped", |ship| !InDepot::of(&ship.depot).shipped.is_empty());
        streams.extend(InDepot::of(&depot).shipped.into_keys().map(|(stream, _)| stream));
        let lease = ship.acquire();
        let claimed = claim(ship.store.as_ref(), &lease, MANY);
        ship.store.settle(&lease, &[(claimed[0].id, Outcome::Delivered)]).expect("it is marked");
        ship.store.release(&lease).expect("it is ours");
        ship.wait_until("the depot fills up", |ship| ship.depot.names().is_empty());
    }
    assert_eq!(streams.len(), 2, "{streams:?}");
}

#[test]
fn an_acknowledgement_waits_for_the_depot_and_says_when_that_is_away() {
    let depot = Arc::new(ModelDepot::new());
    let refusing = FleetSettings { acknowledge: Acknowledge::Fleet, when_away: WhenDepotAway::Refuse, ..at_once() };
    let ship = Ship::start(Arc::new(MemoryStore::default()), &depot, refusing);
    let id = register(ship.store.as_ref(), "a");
    assert_eq!(InDepot::of(&depot).left(), BTreeSet::from([id.0 as u64]), "it was acknowledged before it was there");
    depot.set(|faults| faults.is_away = true);
    let refused = ship.store.register(&[about_trace(&lane("team"), "b", Effect::Create, 1)]);
    assert!(matches!(refused, Err(StoreError::DepotAway { .. })), "{refused:?}");
    assert_eq!(
        ship.store.backlog(&Filter::default()).unwrap().messages(),
        1,
        "a write that was refused is sent as well"
    );
    depot.set(|faults| faults.is_away = false);
    ship.wait_until("it never notices that the depot is back", |ship| ship.ledger.standing().problem.is_none());
    register(ship.store.as_ref(), "c");
    drop(ship);

    let depot = Arc::new(ModelDepot::new());
    depot.set(|faults| faults.is_away = true);
    let local = FleetSettings { acknowledge: Acknowledge::Fleet, ..at_once() };
    let ship = Ship::start(Arc::new(MemoryStore::default()), &depot, local);
    register(ship.store.as_ref(), "a");
    depot.set(|faults| faults.is_away = false);
    ship.wait_until("it is never shipped", |ship| InDepot::of(&ship.depot).shipped.len() == 1);
}

#[test]
fn a_process_that_continues_with_a_store_owns_its_stream_and_one_that_lost_it_delivers_none_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let depot = Arc::new(ModelDepot::new());
    let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
    register(ship.store.as_ref(), "a");
    ship.wait_until("nothing is shipped", |ship| InDepot::of(&ship.depot).shipped.len() == 1);
    drop(ship);
    assert_eq!(InDepot::of(&depot).heads[0].state, HeadState::Closed, "a replayer has to wait for silence");

    // The same store again, while the depot is away: nobody knows whose the stream is.
    depot.set(|faults| faults.is_away = true);
    let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
    let error = ship.store.acquire(&Owner::this_process("agent"), MINUTE).expect_err("it may be somebody else's");
    assert!(matches!(error, StoreError::DepotAway { .. }), "{error}");
    depot.set(|faults| faults.is_away = false);
    let lease = ship.acquire();
    ship.store.release(&lease).expect("it is ours");
    assert_eq!(InDepot::of(&depot).heads[0].epoch, 2);
    drop(ship);

    let ship = taken_over(&depot, &path);
    register(ship.store.as_ref(), "b");
    let lease = ship.acquire();
    let claimed: Vec<i64> = claim(ship.store.as_ref(), &lease, MANY).iter().map(|it| it.id.0).collect();
    assert_eq!(claimed, [2], "two senders deliver one stream");
    ship.store.settle(&lease, &[(MessageId(2), Outcome::Delivered)]).expect("the depot is there");
    drop(ship);

    // The replayer has delivered it.
    let stream = only_head(&depot).as_str().rsplit('/').next().expect("a name").to_owned();
    let all: Vec<_> = depot.names().into_iter().filter(|name| name.as_str().contains(&stream)).collect();
    depot.create(&Name::new(&format!("v1/finished/{stream}")).expect("a name"), b"{}").expect("the depot is there");
    depot.delete(&all).expect("it is there");
    let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
    ship.wait_until("delivered messages stay for good", |ship| {
        ship.store.backlog(&Filter::default()).expect("it can be read").messages() == 0
    });
}

#[test]
fn a_choice_that_was_not_confirmed_is_not_handed_over() {
    on_every_engine(|store| {
        let first = register(store, "a");
        let stream = record(1);
        store.note_stream(&stream).expect("it is recorded");
        store.begin_bundle(stream.stream, MANY).expect("a choice");
        store.confirm_bundle(stream.stream, 1).expect("it is there");
        let second = register(store, "b");
        assert_eq!(store.begin_bundle(stream.stream, MANY).expect("a choice"), [second]);
        assert_eq!(store.hand_over(stream.stream).expect("it is recorded"), [first], "nobody would deliver the other");
        assert_eq!(store.unshipped().expect("it is counted").messages, 1);
    });
}

/// A process was ended between the write of a bundle, or before it, and its own commit: it does not know which.
#[test]
fn a_choice_that_was_not_confirmed_is_sent_by_whoever_has_it() {
    for (was_put, is_finished) in [(true, false), (false, false), (true, true), (false, true)] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let depot = Arc::new(ModelDepot::new());
        let put = |name: ObjectName, bytes: &[u8]| {
            let name = Name::new(&name.to_string()).expect("a name");
            depot.create(&name, bytes).expect("the depot is there");
        };
        put(ObjectName::FleetFile, &FleetFile { fleet: Uuid::from_u128(7), recipients: Vec::new() }.encode());
        let stream = StreamId::new(Uuid::from_u128(1));
        let store: Arc<dyn Store> = Arc::new(open(&path));
        let [first, second] = ["a", "b"].map(|trace| register(store.as_ref(), trace));
        store.note_stream(&StreamRecord { depot: depot.describe().url, ..record(1) }).expect("it is recorded");
        let chosen = store.begin_bundle(stream.uuid(), MANY).expect("a choice");
        assert_eq!(chosen, [first, second]);
        if was_put && !is_finished {
            let (store, depot, seals) = (store.as_ref(), depot.as_ref(), &Seals::Plain);
            let loader = Loader { store, depot, seals, stream, only_looks: false, names_secrets_in: None };
            assert_eq!(loader.load(&chosen, 0).expect("the depot is there").messages, 2);
        }
        drop(store);
        match is_finished {
            true => {
                put(ObjectName::Finished(stream), &FinishedStream::with(was_put.then_some((1, 2)).into_iter()).encode())
            }
            false => {
                let taken = Head::first(HeadState::Open, Default::default()).taken_by(Default::default());
                put(ObjectName::Head(stream), &taken.encode());
            }
        }
        let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
        let stored = |ship: &Ship| ship.store.backlog(&Filter::default()).expect("it can be read").messages();
        let is_decided = |ship: &Ship| {
            let streams = ship.store.streams().expect("they can be read");
            streams.iter().all(|it| it.stream != stream.uuid() || it.state == StreamState::HandedOver)
        };
        ship.wait_until("nobody knows whose it is", is_decided);
        let lost = "an acknowledged write is lost: nobody has delivered it";
        match (was_put, is_finished) {
            (true, true) => ship.wait_until("an old write is sent over newer ones", |ship| stored(ship) == 0),
            (true, false) => {
                let lease = ship.acquire();
                let claimed = claim(ship.store.as_ref(), &lease, MANY);
                assert!(claimed.is_empty() && stored(&ship) == 2, "two senders deliver one message: {claimed:?}");
            }
            (false, _) => {
                ship.wait_until("it has no copy again", |ship| InDepot::of(&ship.depot).shipped.len() == 2);
                let lease = ship.acquire();
                assert_eq!(claim(ship.store.as_ref(), &lease, MANY).len(), 2, "{lost}");
            }
        }
    }
}

/// An empty depot of a fleet that seals for nobody.
fn plain_fleet() -> Arc<ModelDepot> {
    let depot = Arc::new(ModelDepot::new());
    let fleet = FleetFile { fleet: Uuid::from_u128(7), recipients: Vec::new() };
    depot.create(&Name::new("v1/fleet.json").expect("a name"), &fleet.encode()).expect("an empty depot");
    depot
}

fn only_head(depot: &ModelDepot) -> Name {
    depot.names().into_iter().find(|name| name.as_str().starts_with("v1/heads/")).expect("a head")
}

/// Takes the only stream over, as a replayer does; returns its agent, which has learned of it.
fn taken_over(depot: &Arc<ModelDepot>, path: &Path) -> Ship {
    let head = only_head(depot);
    let (bytes, version) = depot.get(&head).expect("it is there").expect("a head");
    let taken = Head::decode(&bytes).expect("a head").taken_by(Default::default());
    depot.swap(&head, Some(&version), &taken.encode()).expect("nobody else wants it");
    let ship = Ship::start(Arc::new(open(path)), depot, at_once());
    ship.wait_until("it is not handed over", |ship| {
        ship.store.streams().expect("they can be read").iter().all(|it| it.state == StreamState::HandedOver)
    });
    ship
}

#[test]
fn messages_that_a_replayer_delivered_meanwhile_are_not_sent_again_unless_the_depot_lost_them() {
    for (is_finished, was_taken) in [(true, false), (false, false), (false, true)] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let depot = plain_fleet();
        let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
        register(ship.store.as_ref(), "a");
        ship.wait_until("nothing is shipped", |ship| InDepot::of(&ship.depot).shipped.len() == 1);
        drop(ship);
        let head = only_head(&depot);
        let stream = head.as_str().rsplit('/').next().expect("a name").to_owned();
        if was_taken {
            drop(taken_over(&depot, &path));
        }
        if is_finished {
            let record = Name::new(&format!("v1/finished/{stream}")).expect("a name");
            depot.create(&record, b"{}").expect("the depot is there");
        }
        let gone: Vec<Name> = depot.names().into_iter().filter(|name| name.as_str().contains(&stream)).collect();
        let gone: Vec<Name> = gone.into_iter().filter(|name| !name.as_str().starts_with("v1/finished/")).collect();
        depot.delete(&gone).expect("it is there");
        let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
        let stored = |ship: &Ship| ship.store.backlog(&Filter::default()).expect("it can be read").messages();
        match is_finished {
            true => ship.wait_until("an old write is sent over newer ones", |ship| stored(ship) == 0),
            false => {
                ship.wait_until("it has no copy again", |ship| InDepot::of(&ship.depot).shipped.len() == 1);
                assert_eq!(stored(&ship), 1, "an acknowledged write is lost: nobody has delivered it");
            }
        }
    }
}

/// A bundle that was on its way while a replayer finished the stream: nobody has read it.
#[test]
fn a_message_whose_bundle_arrived_after_its_stream_was_finished_stays_until_a_replayer_has_it() {
    for is_there in [true, false] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let depot = plain_fleet();
        let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
        register(ship.store.as_ref(), "a");
        register(ship.store.as_ref(), "b");
        ship.wait_until("nothing is shipped", |ship| InDepot::of(&ship.depot).shipped.len() == 2);
        drop(ship);
        let head = only_head(&depot);
        let stream = head.as_str().rsplit('/').next().expect("a name").to_owned();
        drop(taken_over(&depot, &path));
        // The replayer had the first message only.
        let finished = Name::new(&format!("v1/finished/{stream}")).expect("a name");
        let had = |last| FinishedStream::with(std::iter::once((1, last))).encode();
        depot.create(&finished, &had(1)).expect("the depot is there");
        let is_of_stream = |name: &Name| name.as_str().contains(&stream) && *name != finished;
        let gone = |name: &Name| is_of_stream(name) && !(is_there && name.as_str().starts_with("v1/bundles/"));
        depot.delete(&depot.names().into_iter().filter(gone).collect::<Vec<_>>()).expect("it is there");
        let mut ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
        let stored = |ship: &Ship| ship.store.backlog(&Filter::default()).expect("it can be read").messages();
        if is_there {
            ship.wait_until("no replayer learns of the bundle at once", |ship| {
                InDepot::of(&ship.depot).heads.iter().any(|head| head.state == HeadState::Closed)
            });
            let lease = ship.acquire();
            let claimed = claim(ship.store.as_ref(), &lease, MANY);
            assert_eq!((stored(&ship), claimed.len()), (2, 0), "it is deleted undelivered, or sent by two");
            drop(ship);
            let all = depot.names().into_iter().filter(|name| is_of_stream(name) || *name == finished);
            depot.delete(&all.collect::<Vec<_>>()).expect("it is there");
            depot.create(&finished, &had(2)).expect("the depot is there");
            ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
        }
        ship.wait_until("delivered messages stay for good", |ship| stored(ship) == 0);
        assert!(InDepot::of(&depot).heads.is_empty(), "a replayer is sent to a stream without bundles");
    }
}

/// As object storage answers those who may not list: what is not there is refused.
#[test]
fn an_agent_that_may_not_list_learns_that_its_stream_was_finished_and_sends_nothing_while_it_does_not_know() {
    for is_finished in [true, false] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let depot = plain_fleet();
        depot.set(|faults| (faults.refuses_absent, faults.refused) = (true, vec![Verb::List, Verb::Delete]));
        let store: Arc<dyn Store> = Arc::new(open(&path));
        // Killed before its head was made.
        let abandoned = StreamRecord { depot: depot.describe().url, ..record(3) };
        store.note_stream(&abandoned).expect("it can be written");
        let ship = Ship::start(store, &depot, at_once());
        register(ship.store.as_ref(), "a");
        ship.wait_until("it waits for ever for a head that was never made", |ship| {
            InDepot::of(&ship.depot).shipped.len() == 1
        });
        drop(ship);
        let head = only_head(&depot);
        let stream = head.as_str().rsplit('/').next().expect("a name").to_owned();
        depot.set(|faults| faults.refused.clear());
        let gone: Vec<Name> = depot.names().into_iter().filter(|name| name.as_str().contains(&stream)).collect();
        depot.delete(&gone).expect("it is there");
        if is_finished {
            depot.create(&Name::new(&format!("v1/finished/{stream}")).expect("a name"), b"{}").expect("it is there");
        }
        let ship = Ship::start(Arc::new(open(&path)), &depot, at_once());
        let stored = |ship: &Ship| ship.store.backlog(&Filter::default()).expect("it can be read").messages();
        if is_finished {
            ship.wait_until("it waits for ever for a stream that was finished", |ship| stored(ship) == 0);
            continue;
        }
        // Its head may be there, and a replayer at work: nothing tells.
        ship.wait_until("nobody learns why it waits", |ship| {
            ship.ledger.standing().problem.is_some_and(|problem| problem.contains("allow this agent to list"))
        });
        assert_eq!(stored(&ship), 1, "an acknowledged write is lost");
        let sent = ship.store.acquire(&Owner::this_process("replay"), Duration::from_secs(1));
        assert!(sent.is_err(), "it delivers what its successor may have delivered long ago");
    }
}

#[test]
fn deleted_messages_are_marked_and_a_depot_without_recipients_gets_nothing() {
    let depot = Arc::new(ModelDepot::new());
    depot.set(|faults| faults.refused = vec![Verb::List, Verb::Delete]);
    let ship = Ship::start(Arc::new(MemoryStore::default()), &depot, at_once());
    register(ship.store.as_ref(), "a");
    register(ship.store.as_ref(), "b");
    ship.wait_until("nothing is shipped", |ship| InDepot::of(&ship.depot).shipped.len() == 2);
    let one = Filter { ids: vec![MessageId(1)], ..Filter::default() };
    assert_eq!(ship.store.purge(&one, 10).expect("a person asks").messages, 1);
    assert_eq!(InDepot::of(&depot).left(), BTreeSet::from([2]), "a message that a person deleted is delivered");
    assert_eq!(ship.store.expire(i64::MAX, 10).expect("it is old"), 1);
    let found = InDepot::of(&depot);
    assert_eq!(
        found.marks.iter().map(|(_, mark)| mark.fate.clone()).collect::<Vec<_>>(),
        [Fate::Deleted, Fate::Expired]
    );
    drop(ship);

    let depot = Arc::new(ModelDepot::new());
    let ship = Ship::start(Arc::new(MemoryStore::default()), &depot, FleetSettings { is_plain: false, ..at_once() });
    register(ship.store.as_ref(), "a");
    ship.wait_until("the problem is not shown", |ship| {
        ship.ledger.standing().problem.is_some_and(|it| it.contains("fleet_plain"))
    });
    assert_eq!(depot.names(), [], "everybody can read bodies and keys in the depot");
    ship.stop.request();
}
