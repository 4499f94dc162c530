//! Rejected messages have a share of the store, and make room for live ones beyond it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use opik_offline::message::{Body, Effect, Encoding, EntityKind, MessageId, MessageStatus};
use opik_offline::store::rejected_room::{RejectedExport, RejectedRoom};
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{
    Browse, ClaimLimits, Filter, FullLimit, Intake, LastAnswer, Limits, OpenMode, Outcome, Owner, Page, Replay,
    StoreError, StoredMessage, WhenFull,
};

use crate::messages::{about_trace, lane, touch};

const NOW_MS: i64 = 1_800_000_000_000;
const SIZE_MAX: u64 = 8 << 20;

fn open(path: &Path, when_full: WhenFull, room: RejectedRoom) -> SqliteStore {
    let limits = Limits { size_max: SIZE_MAX, disk_reserve: 0, when_full };
    SqliteStore::open(path, OpenMode::CreateIfMissing, limits).expect("a new store").with_rejected_room(room)
}

/// Stores one message of 20 kB about a trace of its own.
fn store_one(store: &SqliteStore, number: usize, effect: Effect) -> Result<MessageId, StoreError> {
    let mut message = about_trace(&lane("team"), &format!("trace-{number}"), effect, number as i64);
    // A body that its client compressed is stored unchanged.
    message.request.body = Body::new(vec![b'x'; 20_000], Encoding::Gzip);
    store.register(&[message]).map(|ids| ids[0])
}

/// Stores creates until this many are there, and has the server refuse them.
fn reject(store: &SqliteStore, count: usize, held: bool) {
    for number in 0..count {
        store_one(store, number, Effect::Create).expect("there is room");
    }
    let lease = store.acquire(&Owner::this_process("test"), Duration::from_secs(60)).expect("nobody has it");
    loop {
        let lanes = store.lanes(&Filter::default(), NOW_MS).expect("lanes can be read");
        let Some(work) = lanes.first().filter(|work| work.due_at_ms <= NOW_MS) else { break };
        let limits = ClaimLimits { messages_max: 100, bytes_max: 1 << 24 };
        let claimed = store
            .claim(&lease, work.id, &Filter::default(), limits, NOW_MS)
            .expect("we have the lease")
            .into_messages();
        if claimed.is_empty() {
            break;
        }
        let answer = LastAnswer { status: Some(400), text: "no".into(), at_ms: NOW_MS };
        let outcome = if held { Outcome::Held { answer } } else { Outcome::Rejected { answer } };
        let outcomes: Vec<_> = claimed.iter().map(|message| (message.id, outcome.clone())).collect();
        store.settle(&lease, &outcomes).expect("we have the lease");
    }
    store.release(&lease).expect("it was ours");
}

fn line(message: StoredMessage) -> Result<String, String> {
    Ok(message.listed.id.to_string())
}

fn count(store: &SqliteStore, status: MessageStatus) -> u64 {
    let backlog = store.backlog(&Filter { statuses: vec![status], ..Filter::default() }).expect("it can be read");
    backlog.messages()
}

fn oldest(store: &SqliteStore, status: MessageStatus) -> Option<MessageId> {
    let filter = Filter { statuses: vec![status], ..Filter::default() };
    let page = Page { after: None, limit: 1, newest_first: false };
    store.list(&filter, &page).expect("it can be read").first().map(|listed| listed.id)
}

/// Stores live messages until one finds no room, and at most this many.
fn live(store: &SqliteStore, count: usize) -> (usize, Option<StoreError>) {
    for number in 0..count {
        if let Err(error) = store_one(store, 10_000 + number, Effect::Create) {
            return (number, Some(error));
        }
    }
    (count, None)
}

#[test]
fn rejected_messages_beyond_their_share_make_room_for_live_ones_the_oldest_first() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = open(&folder.path().join("opik_messages.db"), when_full, RejectedRoom::default());
        reject(&store, 370, false);
        assert_eq!(count(&store, MessageStatus::Rejected), 370);
        let (stored, error) = live(&store, 200);
        assert_eq!((stored, error.map(|error| error.to_string())), (200, None), "{when_full:?}");
        let condition = store.condition().expect("it can be read");
        let left = count(&store, MessageStatus::Rejected);
        assert_eq!(left + condition.rejected_dropped, 370, "{when_full:?}");
        assert_eq!(condition.dropped, 0, "{when_full:?}: a message that waits was dropped before rejected ones");
        assert_eq!(oldest(&store, MessageStatus::Rejected), Some(MessageId(condition.rejected_dropped as i64 + 1)));
        assert_eq!(store.check().expect("it can be read"), Vec::<String>::new());

        // Their share stays theirs: from here on live messages are refused, or drop each other.
        let (stored, error) = live(&store, 400);
        let left = count(&store, MessageStatus::Rejected);
        assert!((95..=115).contains(&left), "{when_full:?}: {left} of 20 kB are not about a quarter of 8 MiB");
        match when_full {
            WhenFull::Refuse => {
                let error = error.expect("it is full").to_string();
                assert!(stored < 200, "{stored}");
                assert!(error.contains("are rejected messages (opik-offline inspect --status rejected;"), "{error}");
            }
            WhenFull::DropOldest => {
                assert_eq!(stored, 400);
                assert!(store.condition().expect("it can be read").dropped > 100);
            }
        }
        assert_eq!(store.check().expect("it can be read"), Vec::<String>::new());
    }
}

#[test]
fn nothing_is_dropped_for_a_disk_that_would_be_full_all_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    reject(&open(&path, WhenFull::Refuse, RejectedRoom::default()), 50, false);
    // As when another program has filled the disk.
    let limits = Limits { size_max: SIZE_MAX, disk_reserve: 1 << 60, when_full: WhenFull::Refuse };
    let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, limits).expect("it is there");
    let (_, error) = live(&store, 1);
    assert!(matches!(error, Some(StoreError::Full { limit: FullLimit::DiskReserve, .. })), "{error:?}");
    assert_eq!(count(&store, MessageStatus::Rejected), 50, "rejected messages were dropped in vain");
}

#[test]
fn held_messages_are_not_dropped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(&folder.path().join("opik_messages.db"), WhenFull::Refuse, RejectedRoom::default());
    reject(&store, 370, true);
    let (_, error) = live(&store, 200);
    assert!(matches!(error, Some(StoreError::Full { limit: FullLimit::MaxSize, .. })), "{error:?}");
    assert_eq!(count(&store, MessageStatus::Held), 370);
}

#[test]
fn a_rejected_create_that_something_waits_for_is_never_dropped() {
    for (name, touches) in [
        ("an update", vec![touch(EntityKind::Trace, "trace-0", Effect::Update)]),
        // A reference is in no index.
        (
            "a span",
            vec![touch(EntityKind::Span, "span", Effect::Create), touch(EntityKind::Trace, "trace-0", Effect::Refer)],
        ),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let room = RejectedRoom { share_percent: 0, export: None };
        let store = open(&folder.path().join("opik_messages.db"), WhenFull::Refuse, room);
        reject(&store, 370, false);
        let mut follower = about_trace(&lane("team"), "trace-0", Effect::Update, 1);
        follower.touches = touches;
        store.register(&[follower]).expect("there is room");
        let (_, error) = live(&store, 1000);
        // All others went; this one is more than its share of nothing, and the reason explains why it stays.
        let error = error.expect("it is full in the end");
        assert_eq!(count(&store, MessageStatus::Rejected), 1, "{name}");
        assert_eq!(oldest(&store, MessageStatus::Rejected), Some(MessageId(1)), "{name}: its follower would go alone");
        assert!(matches!(error, StoreError::Full { limit: FullLimit::Rejected, .. }), "{name}: {error}");
        assert!(error.to_string().contains("messages that wait depend on them"), "{name}: {error}");
    }
}

#[test]
fn messages_are_exported_before_eviction_or_not_evicted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let export = folder.path().join("exported");
    let room = RejectedRoom { share_percent: 25, export: Some(RejectedExport { folder: export.clone(), line }) };
    let store = open(&folder.path().join("opik_messages.db"), WhenFull::Refuse, room.clone());
    reject(&store, 370, false);
    // Something else stands where the folder should be.
    fs::write(&export, "a file").expect("it can be written");
    let (_, error) = live(&store, 100);
    let error = error.expect("nothing makes room");
    assert!(matches!(error, StoreError::Full { limit: FullLimit::Rejected, .. }), "{error}");
    assert!(error.to_string().contains("cannot be exported (rejected_export)"), "{error}");
    assert!(!error.to_string().contains("exported/"), "clients read the path: {error}");
    assert_eq!(count(&store, MessageStatus::Rejected), 370, "a message was dropped without its export");

    drop(store);
    fs::remove_file(&export).expect("it can be removed");
    let limits = Limits { size_max: SIZE_MAX, disk_reserve: 0, when_full: WhenFull::Refuse };
    let path = folder.path().join("opik_messages.db");
    let store = SqliteStore::open(&path, OpenMode::Existing, limits).expect("it is there").with_rejected_room(room);
    let (stored, error) = live(&store, 100);
    assert_eq!((stored, error.map(|error| error.to_string())), (100, None));
    let mut exported: Vec<i64> = Vec::new();
    for entry in fs::read_dir(&export).expect("the folder was made") {
        let path = entry.expect("an entry").path();
        assert_eq!(path.extension().and_then(|name| name.to_str()), Some("jsonl"), "{}", path.display());
        let text = fs::read_to_string(path).expect("it can be read");
        exported.extend(text.lines().map(|line| line.parse::<i64>().expect("a whole line")));
    }
    exported.sort_unstable();
    let dropped = store.condition().expect("it can be read").rejected_dropped as i64;
    assert!(dropped > 0);
    assert_eq!(exported, (1..=dropped).collect::<Vec<_>>(), "not what was dropped is in the export");
}

#[test]
fn a_full_store_says_so_without_an_agent() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path, WhenFull::Refuse, RejectedRoom::default());
    let condition = store.condition().expect("it can be read");
    assert_eq!((condition.full, condition.full_record.since_ms), (None, None));
    assert!(condition.room_bytes > 7 << 20, "{}", condition.room_bytes);
    let (_, error) = live(&store, 1000);
    assert!(error.is_some());
    // There may be room for a smaller one.
    let small = about_trace(&lane("team"), "small", Effect::Create, 1);
    while store.register(std::slice::from_ref(&small)).is_ok() {}
    let condition = store.condition().expect("it can be read");
    assert_eq!(condition.full.map(|full| full.limit), Some(FullLimit::MaxSize));
    assert!(condition.room_bytes < 21_000, "{}", condition.room_bytes);
    store.note_full(Some(5), 90).expect("a full store takes a note");
    store.note_full(Some(5), 3).expect("a full store takes a note");
    let record = store.condition().expect("it can be read").full_record;
    assert_eq!((record.since_ms, record.refused), (Some(5), 93));
    store.note_full(None, 0).expect("a full store takes a note");
    let record = store.condition().expect("it can be read").full_record;
    assert_eq!((record.since_ms, record.refused), (None, 93));
}
