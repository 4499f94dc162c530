//! Every verb in one story, run on each engine.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use opik_offline::message::{Effect, EntityKind, Lane, MessageId, MessageStatus, MessageType, Sha256};
use opik_offline::store::attachment::{AttachmentReader, AttachmentWriter, PIECE_BYTES};
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{
    AgentRecord, BacklogSeen, Browse, Claim, ClaimLimits, Claimed, EncryptionKey, Filter, FullRecord, Hold, Keys,
    LastAnswer, Lease, Limits, Maintain, OpenMode, Outcome, Owner, Page, ReplayHold, ReplayRecord, SalvagedRow,
    Standing, Store, StoreError, WhenFull, Whose,
};

use crate::memory_store::MemoryStore;
use crate::messages::{about_trace, attachment, file, lane, touch};
use crate::model_store::ModelStore;

pub(crate) const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
const MINUTE: Duration = Duration::from_secs(60);
const NOW_MS: i64 = 1_800_000_000_000;
const MANY: ClaimLimits = ClaimLimits { messages_max: 100, bytes_max: 1 << 20 };

pub(crate) fn open(path: &Path) -> SqliteStore {
    open_with(path, &Keys::default())
}

pub(crate) fn open_with(path: &Path, keys: &Keys) -> SqliteStore {
    SqliteStore::open_with(path, OpenMode::CreateIfMissing, LIMITS, keys).expect("a store can be made in a new folder")
}

/// A key that only tests use.
pub(crate) fn key(byte: u8) -> EncryptionKey {
    EncryptionKey::parse(&format!("{byte:02x}{}", "5a".repeat(31)), "a test").expect("a key")
}

/// Seals with this key.
pub(crate) fn sealed_with(byte: u8) -> Keys {
    Keys { current: Some(key(byte)), previous: None }
}

#[test]
fn sqlite_keeps_every_promise_of_the_story() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(&folder.path().join("opik_messages.db"));
    story(&store);
    is_closed_for_good(&store);
}

#[test]
fn a_sealed_store_keeps_every_promise_of_the_story() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open_with(&folder.path().join("opik_messages.db"), &sealed_with(1));
    story(&store);
    is_closed_for_good(&store);
}

#[test]
fn the_model_keeps_every_promise_of_the_story() {
    let store = ModelStore::default();
    story(&store);
    is_closed_for_good(&store);
}

#[test]
fn the_engine_in_memory_keeps_every_promise_of_the_story() {
    let store = MemoryStore::default();
    story(&store);
    is_closed_for_good(&store);
}

fn ids(messages: &[Claimed]) -> Vec<i64> {
    messages.iter().map(|message| message.id.0).collect()
}

fn answer(status: u16, text: &str) -> LastAnswer {
    LastAnswer { status: Some(status), text: text.into(), at_ms: NOW_MS }
}

fn failed(next_attempt_at_ms: i64, counts: bool) -> Outcome {
    Outcome::Failed { next_attempt_at_ms, counts, answer: Some(answer(500, "later")) }
}

fn claim(store: &dyn Store, lease: &Lease, of: &Lane, limits: ClaimLimits) -> Vec<Claimed> {
    let lanes = store.lanes(&Filter::default(), NOW_MS).expect("lanes can be read");
    let Some(work) = lanes.into_iter().find(|work| work.lane == *of) else { return Vec::new() };
    store.claim(lease, work.id, &Filter::default(), limits, NOW_MS).expect("we have the lease").into_messages()
}

fn story(store: &dyn Store) {
    let (team, other) = (lane("team"), Lane::default());

    // An outage: the team sends an update before its create, another client sends without workspace or key.
    assert_eq!(store.ahead(&team, &[]).unwrap().messages, 0);
    let stored = store
        .register(&[
            about_trace(&team, "a", Effect::Update, 10),   // 1: moves behind 3
            about_trace(&team, "b", Effect::Create, 11),   // 2
            about_trace(&team, "a", Effect::Create, 12),   // 3
            about_trace(&team, "a", Effect::Annotate, 13), // 4
            about_trace(&team, "b", Effect::Update, 14),   // 5
        ])
        .unwrap();
    assert_eq!(stored, (1..=5).map(MessageId).collect::<Vec<_>>());
    assert_eq!(store.register(&[about_trace(&other, "a", Effect::Create, 15)]).unwrap(), [MessageId(6)]);
    assert_eq!(store.register(&[]).unwrap(), []);
    assert_eq!((store.ahead(&team, &[]).unwrap().messages, store.ahead(&other, &[]).unwrap().messages), (5, 1));
    let no_key = Lane { credential: None, ..lane("team") };
    assert_eq!(store.ahead(&no_key, &[]).unwrap().messages, 0, "another key is another lane");

    // People look.
    let backlog = store.backlog(&Filter::default()).unwrap();
    assert_eq!((backlog.messages(), backlog.waiting(), backlog.rejected()), (6, 6, 0));
    assert_eq!(backlog.oldest_accepted_at_ms, Some(11), "the first in delivery order stands for its lane");
    let updates = Filter { types: vec![MessageType::UpdateTrace], ..Filter::default() };
    assert_eq!(store.backlog(&updates).unwrap().messages(), 2);
    let default = Filter { workspaces: vec!["default".into()], ..Filter::default() };
    assert_eq!(store.list(&default, &Page { after: None, limit: 9, newest_first: false }).unwrap()[0].lane, other);
    let about_a = Filter { entities: vec![touch(EntityKind::Trace, "a", Effect::Refer).key], ..Filter::default() };
    assert_eq!(store.backlog(&about_a).unwrap().messages(), 4);
    let page = Page { after: Some(MessageId(4)), limit: 2, newest_first: true };
    let listed = store.list(&Filter::default(), &page).unwrap();
    assert_eq!(listed.iter().map(|message| message.id.0).collect::<Vec<_>>(), [3, 2]);

    // The server is back. One replays, nobody else does.
    let (me, rival) = (Owner::this_process("agent"), Owner::this_process("replay"));
    let lease = store.acquire(&me, MINUTE).unwrap();
    assert!(matches!(store.acquire(&rival, MINUTE), Err(StoreError::LeaseHeld { owner }) if owner == me));
    store.renew(&lease, MINUTE).unwrap();
    assert_eq!(store.condition().unwrap().lease, Some(me));
    let lanes = store.lanes(&Filter::default(), NOW_MS).unwrap();
    assert_eq!(lanes.iter().map(|work| (&work.lane, work.failed)).collect::<Vec<_>>(), [(&team, 5), (&other, 1)]);
    assert!(lanes.iter().all(|work| work.due_at_ms <= NOW_MS && work.hold.is_none()));

    // The early update comes right after its create, before what came after it.
    let two = ClaimLimits { messages_max: 2, ..MANY };
    let first = claim(store, &lease, &team, two);
    assert_eq!(ids(&first), [2, 3]);
    assert_eq!(first[0].request, about_trace(&team, "b", Effect::Create, 11).request, "byte for byte");
    // Everything else is about a or b, which are in flight.
    assert_eq!(ids(&claim(store, &lease, &team, MANY)), Vec::<i64>::new());
    let work = &store.lanes(&Filter::default(), NOW_MS).unwrap()[0];
    assert_eq!((work.failed, work.due_at_ms), (3, i64::MAX), "nothing is due before something is settled");
    assert_eq!(store.ahead(&team, &[]).unwrap().messages, 5, "in flight is not on the server yet");

    // b is delivered; a failed and has to wait: so does everything about a, and 5 about b may go.
    let later = NOW_MS + 5_000;
    store.settle(&lease, &[(MessageId(2), Outcome::Delivered), (MessageId(3), failed(later, true))]).unwrap();
    assert_eq!(store.get(MessageId(2)).unwrap(), None);
    assert_eq!(store.get(MessageId(3)).unwrap().unwrap().listed.attempts, 1);
    assert_eq!(ids(&claim(store, &lease, &team, MANY)), [5]);
    store.settle(&lease, &[(MessageId(5), Outcome::Delivered)]).unwrap();
    assert_eq!(store.lanes(&Filter::default(), NOW_MS).unwrap()[0].due_at_ms, later);
    let team_id = store.lanes(&Filter::default(), NOW_MS).unwrap()[0].id;
    let claimed = store.claim(&lease, team_id, &Filter::default(), MANY, later).unwrap().into_messages();
    assert_eq!(ids(&claimed), [3, 1, 4]);

    // The server refuses 1; 3 and 4 get no answer and nobody settles them. Bytes limit a claim.
    let long = "ö".repeat(4000);
    store.settle(&lease, &[(MessageId(1), Outcome::Rejected { answer: answer(422, &long) })]).unwrap();
    let kept = store.get(MessageId(1)).unwrap().unwrap();
    assert_eq!(kept.listed.status, MessageStatus::Rejected);
    assert_eq!(kept.listed.answer.unwrap().text.len(), LastAnswer::TEXT_BYTES_MAX);
    assert_eq!(store.ahead(&team, &[]).unwrap().messages, 2, "a rejected message holds nothing back");
    let rejected = store.backlog(&Filter::default()).unwrap();
    assert_eq!(rejected.rejected_by_answer, [(Some(422), 1)]);
    let other_id = store.lanes(&Filter::default(), NOW_MS).unwrap()[0].id;
    let small = ClaimLimits { messages_max: 10, bytes_max: 1 };
    let too_large = store.claim(&lease, other_id, &Filter::default(), small, NOW_MS).unwrap();
    let Claim::TooLarge { bytes } = too_large else { panic!("more was claimed than was allowed: {too_large:?}") };
    assert_eq!(bytes, about_trace(&other, "a", Effect::Create, 15).request.body.bytes.len() as u64);
    assert_eq!(ids(&claim(store, &lease, &other, ClaimLimits { bytes_max: bytes, ..small })), [6]);

    // A lane is held.
    let other_id = store.lanes(&Filter::default(), NOW_MS).unwrap().iter().find(|w| w.lane == other).map(|w| w.id);
    assert_eq!(other_id, None, "it has nothing to claim");
    store.settle(&lease, &[(MessageId(6), failed(0, false))]).unwrap();
    let other_id = store.lanes(&Filter::default(), NOW_MS).unwrap()[0].id;
    let hold = Hold {
        until_ms: NOW_MS + 1000,
        reason: "the key was refused".into(),
        probe: true,
        status: Some(401),
        bucket: None,
    };
    store.hold(&lease, other_id, Some(&hold)).unwrap();
    let work = store.lanes(&Filter::default(), NOW_MS).unwrap().remove(0);
    assert_eq!((work.due_at_ms, work.hold.as_ref()), (NOW_MS + 1000, Some(&hold)));
    // It ends, and is still known until a message got through.
    let work = store.lanes(&Filter::default(), NOW_MS + 2000).unwrap().remove(0);
    assert_eq!((work.due_at_ms, work.hold.as_ref()), (NOW_MS + 2000, Some(&hold)));
    let probe = store.claim(&lease, other_id, &Filter::default(), MANY, NOW_MS + 2000).unwrap().into_messages();
    store.settle(&lease, &[(probe[0].id, Outcome::Delivered)]).unwrap();
    store.register(&[about_trace(&other, "c", Effect::Create, 20)]).unwrap(); // 7
    assert_eq!(store.lanes(&Filter::default(), NOW_MS + 2000).unwrap()[0].hold, None);

    // We are replaced: what we still write is refused, and what we left in flight waits again.
    store.release(&lease).unwrap();
    store.release(&lease).unwrap();
    assert_eq!(store.condition().unwrap().lease, None);
    let rivals = store.acquire(&rival, MINUTE).unwrap();
    assert!(rivals.epoch > lease.epoch);
    for refused in [
        store.renew(&lease, MINUTE),
        store.hold(&lease, other_id, None),
        store.settle(&lease, &[(MessageId(3), Outcome::Delivered)]),
        store.claim(&lease, team_id, &Filter::default(), MANY, later).map(|_| ()),
        store.return_in_flight(&lease).map(|_| ()),
    ] {
        assert!(matches!(refused, Err(StoreError::LeaseLost)), "{refused:?}");
    }
    store.release(&lease).unwrap();
    assert!(store.condition().unwrap().lease.is_some(), "only its owner releases a lease");

    // Flushing and intake see the same.
    let of_team = Whose::Lane(team.clone());
    assert_eq!(store.newest().unwrap(), MessageId(7));
    assert_eq!(store.interrupted(team_id).unwrap(), 0, "nothing was returned yet");
    let standing = store.standing(&of_team, MessageId(7)).unwrap();
    assert_eq!(standing, Standing { waits: true, waiting: 2, rejected: 1 });
    assert!(!store.standing(&of_team, MessageId(2)).unwrap().waits, "what was accepted later counts");
    let server = team.server.clone().expect("the lane has a server");
    let about_a_again = [touch(EntityKind::Trace, "a", Effect::Update)];
    let seen = store.backlog_seen(&server, &about_a_again).unwrap();
    assert_eq!(seen, BacklogSeen::Holds { waiting: true, conflicting: true });
    let about_z = [touch(EntityKind::Trace, "z", Effect::Update)];
    let seen = store.backlog_seen(&server, &about_z).unwrap();
    assert_eq!(seen, BacklogSeen::Holds { waiting: true, conflicting: false });

    // A user purges while 3 and 4 are in flight and 1 is rejected.
    assert_eq!(store.purge(&updates, 10).unwrap().messages, 1);
    assert_eq!(
        store.purge(&Filter { statuses: vec![MessageStatus::Registered], ..Filter::default() }, 10).unwrap().messages,
        0
    );
    assert_eq!(store.return_in_flight(&rivals).unwrap(), 2);
    assert_eq!(store.return_in_flight(&rivals).unwrap(), 0);
    assert_eq!(store.interrupted(team_id).unwrap(), 2, "these may have been in one request");
    assert_eq!(ids(&store.claim(&rivals, team_id, &Filter::default(), MANY, later).unwrap().into_messages()), [3, 4]);
    let refusals = [3, 4].map(|id| (MessageId(id), Outcome::Rejected { answer: answer(400, "no") }));
    store.settle(&rivals, &refusals).unwrap();
    assert_eq!(store.requeue(&Filter { ids: vec![MessageId(4)], ..Filter::default() }).unwrap(), 1);
    assert_eq!(store.get(MessageId(4)).unwrap().unwrap().listed.attempts, 0);
    assert_eq!(store.requeue(&Filter::default()).unwrap(), 1);
    assert_eq!(store.requeue(&Filter::default()).unwrap(), 0);

    // The rest goes, one step at a time.
    assert_eq!(store.purge(&Filter::default(), 2).unwrap().messages, 2);
    assert_eq!(store.purge(&Filter::default(), 2).unwrap().messages, 1);
    assert_eq!(store.purge(&Filter::default(), 2).unwrap(), Default::default());
    assert_eq!(store.backlog(&Filter::default()).unwrap(), Default::default());
    store.compact().unwrap();
    assert_eq!(store.register(&[about_trace(&team, "d", Effect::Create, 30)]).unwrap(), [MessageId(8)], "ids are new");

    // The running agent, and the last replay.
    let agent =
        AgentRecord { pid: std::process::id(), listen: "127.0.0.1:1".into(), upstream: "u".into(), started_at_ms: 1 };
    store.announce(Some(&agent)).unwrap();
    store.announce(Some(&agent)).unwrap();
    let record = ReplayRecord {
        role: "agent".into(),
        started_at_ms: 1,
        ended_at_ms: 2,
        delivered: 3,
        rejected: 1,
        remaining: 0,
    };
    store.note_replay(&record).unwrap();
    store.note_full(Some(5), 3).unwrap();
    store.note_full(None, 2).unwrap();
    assert_eq!(store.condition().unwrap().full_record, FullRecord { since_ms: None, refused: 5 });
    store.keep_room().unwrap();
    let hold = ReplayHold { until_ms: 9, since_ms: 5, by: "ana (uid 7 on host-a)".into() };
    assert_eq!(store.replay_hold().unwrap(), None);
    store.set_replay_hold(Some(&ReplayHold { until_ms: 7, ..hold.clone() })).unwrap();
    store.set_replay_hold(Some(&hold)).unwrap();
    assert_eq!(
        (store.replay_hold().unwrap().as_ref(), store.condition().unwrap().replay_hold.as_ref()),
        (Some(&hold), Some(&hold))
    );
    assert_eq!(store.check().unwrap(), Vec::<String>::new(), "its row is taken for damage");
    store.set_replay_hold(None).unwrap();
    assert_eq!((store.replay_hold().unwrap(), store.condition().unwrap().replay_hold), (None, None));
    assert_eq!(store.identity(), store.identity());
    let condition = store.condition().unwrap();
    assert_eq!((condition.agents, condition.last_replay), (vec![agent], Some(record)));
    store.announce(None).unwrap();
    assert_eq!(store.condition().unwrap().agents, []);
}

/// A closed store does nothing more, even for an owner that still holds it.
fn is_closed_for_good(store: &dyn Store) {
    assert_eq!(store.check().expect("the store can be read"), Vec::<String>::new());
    assert!(!store.has_to_be_reopened());
    store.close();
    let late = store.register(&[about_trace(&lane("team"), "e", Effect::Create, 31)]);
    assert!(matches!(late, Err(StoreError::Unproven { .. })), "{late:?}");
}

#[test]
fn attachments_live_as_long_as_their_message_on_every_engine() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sqlite = open(&folder.path().join("opik_messages.db"));
    let (model, memory) = (ModelStore::default(), MemoryStore::default());
    let stores: [&dyn Store; 3] = [&sqlite, &model, &memory];
    let (team, owner) = (lane("team"), Owner::this_process("agent"));
    let sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 17];
    for store in stores {
        store.register(&[about_trace(&team, "a", Effect::Create, 1)]).unwrap(); // 1
        for (seed, size) in sizes.into_iter().enumerate() {
            let bytes = file(seed as u64, size);
            let mut writer = AttachmentWriter::begin(store, Some(size as u64)).unwrap();
            // In portions of any size.
            bytes.chunks(100_003).for_each(|portion| writer.write(portion).unwrap());
            assert_eq!(store.list(&Filter::default(), &ALL).unwrap().len(), 1 + seed, "a message without its bytes");
            let id = writer.register(&attachment(&team, "a", 2 + seed as i64)).unwrap(); // 2 to 7
            assert_eq!(id, MessageId(2 + seed as i64));
            let kept = store.attachment(id).unwrap().expect("it was registered");
            assert_eq!((kept.bytes, read(store, id, 0..size as u64)), (size as u64, bytes.clone()));
            let part = size as u64 / 3..(size as u64).saturating_sub(1);
            assert_eq!(read(store, id, part.clone()), bytes[part.start as usize..part.end.max(part.start) as usize]);
            let listed = store.get(id).unwrap().unwrap().listed;
            let body = attachment(&team, "a", 2 + seed as i64).request.body.bytes.len();
            assert_eq!((listed.attachment, listed.body_bytes), (Some(kept), (size + body) as u64));
        }
        let sum: u64 = store.list(&Filter::default(), &ALL).unwrap().iter().map(|listed| listed.body_bytes).sum();
        let counted: u64 = store.backlog(&Filter::default()).unwrap().groups.iter().map(|g| g.body_bytes).sum();
        assert_eq!(counted, sum, "a file is not counted");
        assert_eq!(store.attachment(MessageId(1)).unwrap(), None);

        // An upload that ends without a message leaves nothing.
        let mut writer = AttachmentWriter::begin(store, None).unwrap();
        writer.write(&file(9, 2 * PIECE_BYTES)).unwrap();
        drop(writer);
        let gone = store.begin_attachment(None).unwrap();
        store.abandon_attachment(gone).unwrap();
        store.abandon_attachment(gone).unwrap();
        assert!(matches!(store.add_piece(gone, 0, b"late"), Err(StoreError::AttachmentGone)));
        // Nor can it be registered with bytes missing, or out of order.
        let short = store.begin_attachment(None).unwrap();
        let kept = store.attachment(MessageId(7)).unwrap().unwrap();
        let refused = store.register_attachment(short, &kept, &attachment(&team, "a", 9));
        assert!(matches!(refused, Err(StoreError::AttachmentGone)), "{refused:?}");
        assert!(matches!(store.add_piece(short, 1, b"too early"), Err(StoreError::AttachmentGone)));
        store.abandon_attachment(short).unwrap();

        // They go after what they belong to, and their bytes go with them.
        let lease = store.acquire(&owner, MINUTE).unwrap();
        let one = ClaimLimits { messages_max: 1, ..MANY };
        assert_eq!(ids(&claim(store, &lease, &team, one)), [1]);
        assert_eq!(ids(&claim(store, &lease, &team, MANY)), Vec::<i64>::new());
        store.settle(&lease, &[(MessageId(1), Outcome::Delivered)]).unwrap();
        let first = claim(store, &lease, &team, MANY);
        assert_eq!(ids(&first), [2, 3, 4], "a file counts in what a claim may take");
        store.settle(&lease, &[(MessageId(2), Outcome::Delivered), (MessageId(4), failed(0, true))]).unwrap();
        assert_eq!((store.attachment(MessageId(2)).unwrap(), store.piece(MessageId(2), 0).unwrap()), (None, None));
        assert_eq!(read(store, MessageId(4), 0..10), file(2, 10), "a message that waits keeps its bytes");
        store.return_in_flight(&lease).unwrap();
        store.settle(&lease, &[(MessageId(3), Outcome::Rejected { answer: answer(400, "no") })]).unwrap();
        assert_eq!(read(store, MessageId(3), 0..1), file(1, 1), "a rejected message keeps its bytes");
        store.release(&lease).unwrap();
        let purged = store.purge(&Filter::default(), 100).unwrap();
        assert_eq!(purged.messages, 5);
        assert!(purged.body_bytes > 6 * PIECE_BYTES as u64 - 10, "files are not counted: {}", purged.body_bytes);
        assert_eq!(store.piece(MessageId(7), 0).unwrap(), None);
    }
    assert_eq!(sqlite.check().expect("the store can be read"), Vec::<String>::new());
    let bytes = sqlite.compact().unwrap();
    assert!(bytes < 300_000, "{bytes} bytes are left of a store that holds nothing");
}

const ALL: Page = Page { after: None, limit: 100, newest_first: false };

fn read(store: &dyn Store, message: MessageId, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    AttachmentReader::new(store, message, range).read_to_end(&mut bytes).expect("the bytes are there");
    bytes
}

#[test]
fn a_deletion_keeps_its_place_among_references_on_every_engine() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sqlite = open(&folder.path().join("opik_messages.db"));
    let (model, memory) = (ModelStore::default(), MemoryStore::default());
    let stores: [&dyn Store; 3] = [&sqlite, &model, &memory];
    let (team, owner) = (lane("team"), Owner::this_process("agent"));
    for store in stores {
        store
            .register(&[
                about_trace(&team, "a", Effect::Refer, 10),  // 1
                about_trace(&team, "a", Effect::End, 11),    // 2
                about_trace(&team, "a", Effect::Refer, 12),  // 3
                about_trace(&team, "b", Effect::Refer, 13),  // 4
                about_trace(&team, "a", Effect::Update, 14), // 5
                about_trace(&team, "a", Effect::Create, 15), // 6: the update does not move, an end waits
            ])
            .unwrap();
        let lease = store.acquire(&owner, MINUTE).unwrap();
        let one = ClaimLimits { messages_max: 1, ..MANY };
        let first = claim(store, &lease, &team, one);
        assert_eq!(ids(&first), [1]);
        // While a reference is in flight its entity can't be deleted, and what comes after the deletion waits with it.
        let free = claim(store, &lease, &team, MANY);
        assert_eq!(ids(&free), [4]);
        let settled: Vec<_> = first.iter().chain(&free).map(|message| (message.id, Outcome::Delivered)).collect();
        store.settle(&lease, &settled).unwrap();
        assert_eq!(ids(&claim(store, &lease, &team, MANY)), [2, 3, 5, 6]);
        // People find a deletion by what it deletes.
        let about_a = Filter { entities: vec![touch(EntityKind::Trace, "a", Effect::Refer).key], ..Filter::default() };
        assert_eq!(store.backlog(&about_a).unwrap().messages(), 4);
    }
    assert_eq!(sqlite.check().expect("the store can be read"), Vec::<String>::new());
}

#[test]
fn sqlite_takes_salvaged_rows_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(&folder.path().join("opik_messages.db"));
    salvage_story(&store);
    assert_eq!(store.check().expect("the store can be read"), Vec::<String>::new());
}

#[test]
fn the_model_takes_salvaged_rows_once() {
    salvage_story(&ModelStore::default());
}

#[test]
fn the_engine_in_memory_takes_salvaged_rows_once() {
    salvage_story(&MemoryStore::default());
}

fn salvage_story(store: &dyn Store) {
    let row = |number: u8, rejected: bool| {
        let mut message = about_trace(&lane("team"), &format!("trace {number}"), Effect::Create, NOW_MS);
        message.request.body.bytes = format!("{{\"number\":{number}}}").into();
        if rejected {
            message.request.method.clear();
            message.request.path.clear();
        }
        let answer = rejected.then(|| LastAnswer { status: None, text: "it is not JSON".into(), at_ms: NOW_MS });
        SalvagedRow::new(Sha256::new([number; 32]), message, answer)
    };
    let first = store.salvage(&[row(1, false), row(2, true)]).expect("there is room");
    assert!(first.iter().all(Option::is_some));
    // The same rows out of a copy of the file, one new one among them, one twice.
    let again = store.salvage(&[row(2, true), row(3, false), row(1, false), row(3, false)]).expect("there is room");
    assert_eq!(again.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, false]);
    assert!(store.is_salvaged(&Sha256::new([3; 32])).expect("it can be read"));
    assert!(!store.is_salvaged(&Sha256::new([4; 32])).expect("it can be read"));
    let backlog = store.backlog(&Filter::default()).expect("it can be counted");
    assert_eq!((backlog.waiting(), backlog.rejected()), (2, 1));
    assert_eq!(store.requeue(&Filter::default()).expect("it can be asked"), 0, "a row without a request would be sent");
    // The message's outcome does not matter: its row is remembered forever.
    store.purge(&Filter::default(), 10).expect("it can be purged");
    assert_eq!(store.salvage(&[row(1, false)]).expect("there is room"), [None]);
    // Those between others that need more work keep their place, and get the ids of their own places.
    let rows =
        [row(10, false), row(11, false), row(12, true), row(13, false), row(11, false), row(14, true), row(15, false)];
    let ids = store.salvage(&rows).expect("there is room");
    let new: Vec<MessageId> = ids.iter().flatten().copied().collect();
    assert!(ids[4].is_none() && new.len() == 6 && new.is_sorted(), "stored in another order: {ids:?}");
    for (row, id) in rows.iter().zip(&ids).filter_map(|(row, id)| id.map(|id| (row, id))) {
        let stored = store.get(id).expect("it can be read").expect("it is there");
        assert_eq!(stored.listed.status, row.status().0);
        assert_eq!(stored.request.body, row.message.request.body, "the answer would count for another message");
    }
}
