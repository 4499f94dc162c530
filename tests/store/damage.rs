//! Damage of every kind, in any place: what is whole is recovered exactly as it was stored, and nothing is invented.
//!
//! A message that was delivered may come back if its deletion is unreadable; delivering it again is an
//! upsert. Everything else has to be one of the messages that were stored, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use opik_offline::message::{Body, Effect, Encoding, Lane, Message, MessageId, MessageStatus, Sha256};
use opik_offline::store::attachment::{AttachmentReader, AttachmentWriter};
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{
    Browse, ClaimLimits, Filter, Intake, Keys, Maintain, OpenMode, Outcome, Owner, Page, Replay, Resealed, SalvagedRow,
    Store, StoreError, StoredMessage, now_ms, reseal,
};
use proptest::prelude::*;

use crate::messages::{about_trace, attachment, file, lane};
use crate::story::{LIMITS, open, open_with, sealed_with};

/// The messages of a store, by number.
type Stored = BTreeMap<i64, (StoredMessage, Option<Vec<u8>>)>;

/// The messages that are stored: small and large, plain and compressed by their client, of several lanes.
fn messages() -> Vec<Message> {
    let lanes = [lane("team"), lane("other"), Lane::default()];
    (0..200_i64)
        .map(|number| {
            let trace = format!("01a20440-760d-73a3-a0fd-{number:012}");
            let effect = if number % 7 == 3 { Effect::Update } else { Effect::Create };
            let mut message = about_trace(&lanes[number as usize % 3], &trace, effect, 1_000 + number);
            match number % 10 {
                4 => message.request.body = Body::new(file(number as u64, 9_000), Encoding::Gzip),
                5 => message.request.body = Body::new("{\"name\":\"a\"}".repeat(400), Encoding::Identity),
                _ => {}
            }
            message
        })
        .collect()
}

fn listed(store: &dyn Store) -> Stored {
    let page = Page { after: None, limit: 10_000, newest_first: false };
    let listed = store.list(&Filter::default(), &page).expect("recovered messages can be listed");
    listed
        .into_iter()
        .map(|listed| {
            let message = store.get(listed.id).expect("it can be read").expect("it is there");
            let file = message.listed.attachment.map(|file| {
                let mut bytes = Vec::new();
                let mut reader = AttachmentReader::new(store, listed.id, 0..file.bytes);
                std::io::Read::read_to_end(&mut reader, &mut bytes).expect("its bytes are there");
                bytes
            });
            (listed.id.0, (message, file))
        })
        .collect()
}

/// A store with 200 messages, some delivered, some in flight, one rejected, one with a file; its log still beside it.
struct Sample {
    keys: Keys,
    folder: tempfile::TempDir,
    stored: Stored,
    delivered: Stored,
}

impl Sample {
    fn path(&self) -> PathBuf {
        self.folder.path().join("opik_messages.db")
    }

    fn make(with_log: bool) -> Self {
        Self::make_with(Keys::default(), with_log)
    }

    fn make_with(keys: Keys, with_log: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let store = open_with(&path, &keys);
        for some in messages().chunks(20) {
            store.register(some).expect("they fit");
        }
        let mut writer = AttachmentWriter::begin(&store as &dyn Store, None).expect("it fits");
        writer.write(&file(1, 700_000)).expect("it fits");
        writer.register(&attachment(&lane("team"), "with-a-file", 1_500)).expect("it fits");
        if with_log {
            // Messages from here on are only in the log.
            store.compact().expect("it can be compacted");
        }
        let salvaged = about_trace(&lane("team"), "salvaged", Effect::Create, 1_600);
        let row = SalvagedRow::new(Sha256::new([7; 32]), salvaged, None);
        store.salvage(&[row]).expect("it fits");
        let before = listed(&store);
        let owner = Owner::this_process("replay");
        let lease = store.acquire(&owner, Duration::from_secs(600)).expect("nobody replays");
        let work = &store.lanes(&Filter::default(), now_ms()).expect("lanes can be read")[0];
        let limits = ClaimLimits { messages_max: 30, bytes_max: 1 << 24 };
        let claimed = store
            .claim(&lease, work.id, &Filter::default(), limits, now_ms())
            .expect("it can be claimed")
            .into_messages();
        let answer = opik_offline::store::LastAnswer { status: Some(422), text: "no".into(), at_ms: 5 };
        let outcomes: Vec<_> = claimed[..20]
            .iter()
            .enumerate()
            .map(|(place, message)| match place {
                0 => (message.id, Outcome::Rejected { answer: answer.clone() }),
                _ => (message.id, Outcome::Delivered),
            })
            .collect();
        store.settle(&lease, &outcomes).expect("it can be settled");
        let stored = listed(&store);
        let delivered = before.into_iter().filter(|(id, _)| !stored.contains_key(id)).collect();
        let copy = tempfile::tempdir().expect("a temporary folder");
        for suffix in ["", "-wal"] {
            let name = format!("opik_messages.db{suffix}");
            if with_log || suffix.is_empty() {
                if !with_log {
                    store.compact().expect("it can be compacted");
                }
                fs::copy(folder.path().join(&name), copy.path().join(&name)).expect("it can be copied");
            }
        }
        Self { keys, folder: copy, stored, delivered }
    }

    fn copy(&self) -> (tempfile::TempDir, PathBuf) {
        let copy = tempfile::tempdir().expect("a temporary folder");
        for entry in fs::read_dir(self.folder.path()).expect("ours") {
            let entry = entry.expect("ours");
            fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("it can be copied");
        }
        let path = copy.path().join("opik_messages.db");
        (copy, path)
    }
}

fn damaged_files(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(path.parent().expect("a folder"))
        .expect("ours")
        .map(|entry| entry.expect("ours").path())
        .filter(|file| file.to_string_lossy().contains(".damaged-") && !file.to_string_lossy().ends_with("-wal"))
        .collect();
    files.sort();
    files
}

/// Opens the store as an agent does, and again after everything in it was looked at, as an agent does that meets
/// damage.
fn recovered(path: &Path) -> SqliteStore {
    recovered_with(path, &Keys::default())
}

fn recovered_with(path: &Path, keys: &Keys) -> SqliteStore {
    let store = SqliteStore::open_with(path, OpenMode::CreateIfMissing, LIMITS, keys).expect("an agent can continue");
    let page = Page { after: None, limit: 10_000, newest_first: false };
    let problems = store.check();
    let list = store.list(&Filter::default(), &page).and_then(|listed| {
        listed.iter().try_for_each(|listed| store.get(listed.id).map(drop))?;
        Ok(listed)
    });
    if matches!(&problems, Ok(problems) if problems.is_empty()) && list.is_ok() {
        return store;
    }
    drop(store);
    opik_offline::store::recover(path, "found by the test", LIMITS, keys).map(drop).expect("it can be recovered");
    SqliteStore::open_with(path, OpenMode::CreateIfMissing, LIMITS, keys).expect("an agent can continue")
}

/// Asserts that everything in the store is a message that was stored, as it was stored; returns which of them are gone.
fn missing(sample: &Sample, store: &SqliteStore) -> Vec<i64> {
    assert_eq!(store.check().expect("it can be read"), Vec::<String>::new(), "the new store is not sound");
    let found = listed(store);
    for (id, (message, file)) in &found {
        let Some((was, was_file)) = sample.stored.get(id).or(sample.delivered.get(id)) else {
            panic!("message {id} was invented");
        };
        assert!(message.request == was.request && message.touches == was.touches, "message {id} was changed");
        assert_eq!((&message.listed.lane, message.listed.items), (&was.listed.lane, was.listed.items), "message {id}");
        assert_eq!(message.listed.accepted_at_ms, was.listed.accepted_at_ms, "message {id}");
        assert!(file == was_file, "the file of message {id} was changed");
        assert_ne!(message.listed.status.code(), 2);
    }
    sample.stored.keys().filter(|id| !found.contains_key(id)).copied().collect()
}

#[test]
fn a_store_without_its_first_page_loses_nothing() {
    for (keys, with_log) in
        [(Keys::default(), false), (Keys::default(), true), (sealed_with(1), false), (sealed_with(1), true)]
    {
        let sample = Sample::make_with(keys, with_log);
        let (_folder, path) = sample.copy();
        let mut bytes = fs::read(&path).expect("ours");
        bytes[..4096].fill(0);
        fs::write(&path, &bytes).expect("ours");
        let store = SqliteStore::open_with(&path, OpenMode::CreateIfMissing, LIMITS, &sample.keys)
            .expect("an agent can continue");
        assert_eq!(missing(&sample, &store), Vec::<i64>::new(), "whole messages were lost (log: {with_log})");
        let recoveries = store.condition().expect("it can be read").recoveries;
        assert_eq!(recoveries.len(), 1);
        assert_eq!(recoveries[0].lost, 0, "{recoveries:?}");
        let damaged = damaged_files(&path);
        assert_eq!(
            damaged.iter().map(Into::into).collect::<Vec<opik_offline::store::Location>>(),
            [recoveries[0].set_aside.clone()]
        );
        assert_eq!(fs::read(&damaged[0]).expect("it is kept"), bytes, "the evidence was changed");
        // Messages that were in flight wait again, and rejected messages are still rejected.
        let page = Page { after: None, limit: 1000, newest_first: false };
        for listed in store.list(&Filter::default(), &page).expect("it can be read") {
            assert_ne!(listed.status, MessageStatus::Registered);
        }
        assert!(store.is_salvaged(&Sha256::new([7; 32])).expect("it can be read"), "an SDK's row would be sent twice");
        let next = store.register(&[about_trace(&lane("team"), "next", Effect::Create, 9)]).expect("it continues");
        assert!(next[0].0 > *sample.stored.keys().next_back().expect("some"), "a number is used twice");
    }
}

#[test]
fn damaged_pages_of_one_tree_cost_only_their_contents() {
    every_page_costs_what_stands_in_it(&Sample::make(false));
}

#[test]
fn damaged_pages_of_an_encrypted_store_cost_only_their_contents() {
    every_page_costs_what_stands_in_it(&Sample::make_with(sealed_with(1), false));
}

/// The store was rewritten, so its trees are in other places than those of a new one.
#[test]
fn damaged_pages_of_a_later_encrypted_store_cost_only_their_contents() {
    let mut sample = Sample::make(false);
    sample.keys = sealed_with(1);
    drop(open_with(&sample.path(), &sample.keys));
    let done = reseal(&sample.path(), LIMITS, &sample.keys, &mut |_| true).expect("it can be sealed");
    assert!(matches!(done, Resealed::Complete(_)), "{done:?}");
    every_page_costs_what_stands_in_it(&sample);
}

fn every_page_costs_what_stands_in_it(sample: &Sample) {
    let whole = fs::read(sample.path()).expect("ours");
    let pages = whole.len() / 4096;
    let mut lost_most = 0;
    // The first pages hold the roots of all trees; of the rest some, because each is a recovery of the
    // whole store.
    for page in (0..32).chain((32..pages).step_by(if sample.keys.current.is_some() { 97 } else { 23 })) {
        let (_folder, path) = sample.copy();
        let mut bytes = whole.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0);
        fs::write(&path, &bytes).expect("ours");
        let store = recovered_with(&path, &sample.keys);
        let missing = missing(sample, &store);
        // A page holds some ten messages at most, or a piece of one.
        lost_most = lost_most.max(missing.len());
        assert!(missing.len() <= 45, "page {page} cost {} messages: {missing:?}", missing.len());
        let told: u64 = store.condition().expect("it can be read").recoveries.iter().map(|r| r.lost).sum();
        assert!(told >= missing.len() as u64, "page {page}: {} are lost, and {told} are reported", missing.len());
    }
    assert!(lost_most > 0, "no page holds a message");
}

#[test]
fn a_store_that_is_cut_off_keeps_what_is_left() {
    let sample = Sample::make(false);
    let whole = fs::read(sample.path()).expect("ours");
    for share in 1..8 {
        let (_folder, path) = sample.copy();
        fs::write(&path, &whole[..whole.len() * share / 8]).expect("ours");
        let store = recovered(&path);
        let left = sample.stored.len() - missing(&sample, &store).len();
        let told: u64 = store.condition().expect("it can be read").recoveries.iter().map(|r| r.recovered).sum();
        assert_eq!(told, left as u64, "{share} of 8");
    }
}

#[test]
fn a_damaged_log_costs_what_its_damaged_frames_hold() {
    let sample = Sample::make(true);
    let log = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    let whole = fs::read(log(&sample.path())).expect("it has a log");
    assert!(whole.len() > 3 * 4120, "the log holds several pages");
    for at in [40, 100, whole.len() / 2, whole.len() - 2000] {
        let (_folder, path) = sample.copy();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(log(&path), &bytes).expect("ours");
        // SQLite itself takes everything behind that bit for unwritten, and says nothing.
        missing(&sample, &recovered(&path));
    }
    for garbage in [vec![0xa5; 50_000], Vec::new(), vec![0; 10_000]] {
        let (_folder, path) = sample.copy();
        fs::write(log(&path), &garbage).expect("ours");
        let store = recovered(&path);
        assert!(missing(&sample, &store).len() <= 3, "only what was in the log alone");
    }
}

#[test]
fn a_log_without_its_database_is_not_thrown_away() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = folder.path().join("opik_messages.db");
    let store = open(&whole);
    let ids = store.register(&messages()[..50]).expect("they fit");
    let before = listed(&store);
    for left in [None, Some(0), Some(50)] {
        let copy = tempfile::tempdir().expect("a temporary folder");
        let path = copy.path().join("opik_messages.db");
        fs::copy(folder.path().join("opik_messages.db-wal"), copy.path().join("opik_messages.db-wal")).expect("ours");
        if let Some(bytes) = left {
            fs::write(&path, &fs::read(&whole).expect("ours")[..bytes]).expect("ours");
        }
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS).expect("an agent can continue");
        let found = listed(&store);
        assert_eq!(found.len(), ids.len(), "messages in the log are lost ({left:?})");
        assert!(found == before, "messages in the log were changed ({left:?})");
    }
}

#[test]
fn reading_leaves_a_damaged_file_in_place() {
    let sample = Sample::make(false);
    let (folder, path) = sample.copy();
    let mut bytes = fs::read(&path).expect("ours");
    bytes[..4096].fill(0);
    fs::write(&path, &bytes).expect("ours");
    match SqliteStore::open(&path, OpenMode::Existing, LIMITS) {
        Err(StoreError::Damaged { .. }) => {}
        other => panic!("{:?}", other.map(drop)),
    }
    let names: Vec<_> =
        fs::read_dir(folder.path()).expect("ours").map(|entry| entry.expect("ours").file_name()).collect();
    assert_eq!(names, ["opik_messages.db"]);
    assert!(fs::read(&path).expect("ours") == bytes, "it was changed");
}

#[test]
fn an_interrupted_recovery_resumes_without_further_loss() {
    let sample = Sample::make(true);
    let rename = |path: &Path, from: &str, to: &str| {
        let name = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        fs::rename(name(from), name(to)).expect("ours");
    };
    // The pictures of the module's head, between its steps. The file is sound here, so nothing may be missing.
    for step in 0..4 {
        let (_folder, path) = sample.copy();
        let time = ".recovering-20261123T010203Z";
        rename(&path, "-wal", &format!("{time}-wal"));
        if step > 0 {
            rename(&path, "", time);
        }
        if step > 1 {
            fs::write(format!("{}.rebuilding", path.display()), vec![1; 9000]).expect("ours");
        }
        if step == 3 {
            // The new store stands, and the old one has not got its name yet.
            let copy = tempfile::tempdir().expect("a temporary folder");
            for suffix in ["", "-wal"] {
                fs::copy(
                    format!("{}{time}{suffix}", path.display()),
                    copy.path().join(format!("opik_messages.db{suffix}")),
                )
                .expect("ours");
            }
            drop(open(&copy.path().join("opik_messages.db")));
            fs::copy(copy.path().join("opik_messages.db"), &path).expect("ours");
        }
        assert!(
            matches!(SqliteStore::open(&path, OpenMode::Existing, LIMITS), Err(StoreError::Damaged { .. })),
            "somebody who only looks sees a store that is not complete (step {step})"
        );
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS).expect("it continues");
        assert_eq!(missing(&sample, &store), Vec::<i64>::new(), "step {step}");
        assert_eq!(damaged_files(&path).len(), 1, "step {step}");
    }
}

#[test]
fn one_damaged_body_is_rejected_and_the_rest_is_delivered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    let ids = store.register(&messages()[..4]).expect("they fit");
    rusqlite::Connection::open(&path)
        .and_then(|other| {
            other.execute("UPDATE messages SET path = 'v1/private/tracez' WHERE message_id = 2", [])?;
            other.execute("UPDATE bodies SET body = CAST(replace(body, 'id', 'ix') AS BLOB) WHERE message_id = 1", [])
        })
        .expect("one letter each");
    let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(60)).expect("nobody replays");
    let mut sent = Vec::new();
    for work in store.lanes(&Filter::default(), now_ms()).expect("lanes can be read") {
        let limits = ClaimLimits { messages_max: 10, bytes_max: 1 << 20 };
        sent.extend(
            store.claim(&lease, work.id, &Filter::default(), limits, now_ms()).expect("it continues").into_messages(),
        );
    }
    let mut sent: Vec<MessageId> = sent.into_iter().map(|message| message.id).collect();
    sent.sort_unstable();
    assert_eq!(sent, ids[2..], "a damaged message was sent, or a whole one was not");
    for id in &ids[..2] {
        let kept = store.get(*id).expect("it can be read").expect("it is kept").listed;
        assert_eq!(kept.status, MessageStatus::Rejected);
        assert!(kept.answer.expect("the reason").text.contains("damaged"));
    }
}

#[test]
fn messages_that_are_too_old_are_dropped_and_counted_but_not_those_in_flight() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stores: [Box<dyn Store>; 2] =
        [Box::new(open(&folder.path().join("opik_messages.db"))), Box::new(crate::model_store::ModelStore::default())];
    for store in stores {
        let team = lane("team");
        let old: Vec<_> = (0..5).map(|n| about_trace(&team, &n.to_string(), Effect::Create, n)).collect();
        store.register(&old).expect("they fit");
        store.register(&[about_trace(&team, "young", Effect::Create, 1_000)]).expect("it fits");
        let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(60)).expect("nobody replays");
        let work = &store.lanes(&Filter::default(), now_ms()).expect("lanes can be read")[0];
        let one = ClaimLimits { messages_max: 1, bytes_max: 1 << 20 };
        let claimed =
            store.claim(&lease, work.id, &Filter::default(), one, now_ms()).expect("it can be claimed").into_messages();
        assert_eq!(store.expire(1_000, 3).expect("it can be written"), 3);
        assert_eq!(store.expire(1_000, 3).expect("it can be written"), 1);
        assert_eq!(store.expire(1_000, 3).expect("it can be written"), 0);
        store.settle(&lease, &[(claimed[0].id, Outcome::Delivered)]).expect("a message in flight is not dropped");
        let backlog = store.backlog(&Filter::default()).expect("it can be read");
        assert_eq!((backlog.waiting(), store.condition().expect("it can be read").expired), (1, 4));
        assert_eq!(store.check().expect("it can be read"), Vec::<String>::new());
    }
}

/// One injury of a file.
#[derive(Clone, Debug)]
enum Injury {
    Flip { at: f64, bit: u8 },
    Zero { at: f64, bytes: usize },
    Noise { at: f64, bytes: usize, seed: u64 },
    Cut { at: f64 },
}

fn injury() -> impl Strategy<Value = Injury> {
    prop_oneof![
        6 => (0.0..1.0, 0_u8..8).prop_map(|(at, bit)| Injury::Flip { at, bit }),
        2 => (0.0..1.0, 1_usize..9000).prop_map(|(at, bytes)| Injury::Zero { at, bytes }),
        2 => (0.0..1.0, 1_usize..9000, any::<u64>()).prop_map(|(at, bytes, seed)| Injury::Noise { at, bytes, seed }),
        1 => (0.3..1.0).prop_map(|at| Injury::Cut { at }),
    ]
}

/// Injures a file; returns which pages of it were touched.
fn injure(bytes: &mut Vec<u8>, injuries: &[Injury]) {
    for injury in injuries {
        let place = |at: f64| ((bytes.len() as f64 * at) as usize).min(bytes.len().saturating_sub(1));
        match *injury {
            Injury::Flip { at, bit } => {
                let place = place(at);
                bytes[place] ^= 1 << bit;
            }
            Injury::Zero { at, bytes: length } => {
                let place = place(at);
                let end = (place + length).min(bytes.len());
                bytes[place..end].fill(0);
            }
            Injury::Noise { at, bytes: length, seed } => {
                let place = place(at);
                let end = (place + length).min(bytes.len());
                let noise = file(seed, end - place);
                bytes[place..end].copy_from_slice(&noise);
            }
            Injury::Cut { at } => {
                let place = place(at);
                bytes.truncate(place);
            }
        }
    }
}

#[test]
fn no_damage_makes_a_store_invent_messages_or_stop_the_agent() {
    let samples = [Sample::make(false), Sample::make(true)];
    let cases = std::env::var("OPIK_OFFLINE_DAMAGE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let injuries = prop::collection::vec(injury(), 1..6);
    let result = proptest::test_runner::TestRunner::new(config).run(
        &(injuries, any::<bool>(), any::<bool>()),
        |(injuries, with_log, in_log)| {
            let sample = &samples[usize::from(with_log)];
            let (_folder, path) = sample.copy();
            let suffix = if with_log && in_log { "-wal" } else { "" };
            let name = format!("{}{suffix}", path.display());
            let mut bytes = fs::read(&name).expect("ours");
            injure(&mut bytes, &injuries);
            fs::write(&name, &bytes).expect("ours");
            match SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS) {
                // A newer version may have written it, and a file that tells nothing of itself is left alone.
                Err(StoreError::NewerSchema { .. } | StoreError::NotAStore { .. }) => return Ok(()),
                Err(error) => panic!("the agent can't continue: {error}"),
                Ok(_) => {}
            }
            let store = recovered(&path);
            let gone = missing(sample, &store);
            let told: u64 = store.condition().expect("it can be read").recoveries.iter().map(|r| r.recovered).sum();
            if told > 0 && gone.is_empty() {
                prop_assert!(told >= sample.stored.len() as u64);
            }
            Ok(())
        },
    );
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn a_sealed_store_is_recovered_with_its_key_only() {
    let sample = Sample::make_with(sealed_with(1), true);
    let (folder, path) = sample.copy();
    let mut bytes = fs::read(&path).expect("ours");
    bytes[..4096].fill(0);
    fs::write(&path, &bytes).expect("ours");
    let lock = |keys: &Keys| match SqliteStore::open_with(&path, OpenMode::CreateIfMissing, LIMITS, keys) {
        Err(error @ (StoreError::KeyMissing { .. } | StoreError::WrongKey { .. })) => error.to_string(),
        other => panic!("{:?}", other.map(drop)),
    };
    lock(&Keys::default());
    lock(&sealed_with(2));
    let files: Vec<_> = fs::read_dir(folder.path()).expect("ours").map(|entry| entry.expect("ours").path()).collect();
    assert!(files.iter().any(|file| fs::read(file).expect("ours") == bytes), "the file was changed: {files:?}");
    let store =
        SqliteStore::open_with(&path, OpenMode::CreateIfMissing, LIMITS, &sealed_with(1)).expect("it has the key");
    assert_eq!(missing(&sample, &store), Vec::<i64>::new(), "whole messages were lost");
    let encryption = store.condition().expect("it can be read").encryption;
    assert!(encryption.is_complete && encryption.sealed_with == sealed_with(1).current.map(|key| key.id()));
}

#[test]
fn a_sealed_message_that_does_not_open_is_rejected_and_the_others_are_sent() {
    let sample = Sample::make_with(sealed_with(1), false);
    let (_folder, path) = sample.copy();
    let store = SqliteStore::open_with(&path, OpenMode::CreateIfMissing, LIMITS, &sample.keys).expect("it is sound");
    let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(600));
    let lease = lease.or_else(|_| {
        // The one who made the sample had it.
        rusqlite::Connection::open(&path)
            .and_then(|other| other.execute("UPDATE lease SET nonce = NULL", []))
            .expect("ours");
        store.acquire(&Owner::this_process("replay"), Duration::from_secs(600))
    });
    let lease = lease.expect("nobody replays");
    store.return_in_flight(&lease).expect("we have the lease");
    let page = Page { after: None, limit: 10_000, newest_first: false };
    let all = store.list(&Filter::default(), &page).expect("it can be read");
    let waiting: Vec<i64> =
        all.iter().filter(|listed| listed.status == MessageStatus::Failed).map(|listed| listed.id.0).collect();
    let other = rusqlite::Connection::open(&path).expect("another program");
    // A byte of the content, the name of the key, a body that is cut off, and an entity that was changed.
    let tampered = [waiting[3], waiting[60], waiting[110], waiting[150]];
    for (place, id) in tampered.iter().enumerate() {
        let (column, table) = if place == 3 { ("touches", "messages") } else { ("body", "bodies") };
        let select = format!("SELECT {column} FROM {table} WHERE message_id = ?1");
        let mut bytes: Vec<u8> = other.query_row(&select, [id], |row| row.get(0)).expect("it is there");
        match place {
            0 => bytes[40] ^= 1,
            1 => bytes[3] ^= 1,
            2 => bytes.truncate(5),
            _ => bytes[8] ^= 1,
        }
        let update = format!("UPDATE {table} SET {column} = ?2 WHERE message_id = ?1");
        other.execute(&update, rusqlite::params![id, bytes]).expect("it is written");
    }
    let problems = store.check().expect("it can be checked");
    assert!(problems.iter().filter(|problem| problem.starts_with("message ")).count() == 4, "{problems:?}");
    let mut sent = Vec::new();
    for lane in store.lanes(&Filter::default(), now_ms()).expect("lanes can be read") {
        let limits = ClaimLimits { messages_max: 10_000, bytes_max: 1 << 30 };
        let claimed = store
            .claim(&lease, lane.id, &Filter::default(), limits, now_ms())
            .expect("one body is no reason")
            .into_messages();
        for message in claimed {
            assert!(message.request == sample.stored[&message.id.0].0.request, "message {} was changed", message.id);
            sent.push(message.id.0);
        }
    }
    sent.sort_unstable();
    let intact: Vec<i64> = waiting.iter().filter(|id| !tampered.contains(id)).copied().collect();
    assert_eq!(sent, intact, "an intact message is not sent, or a damaged one is");
    for id in tampered {
        let listed = store.list(&Filter { ids: vec![MessageId(id)], ..Filter::default() }, &page).expect("it is there");
        assert_eq!(listed[0].status, MessageStatus::Rejected, "message {id} blocks its lane");
        let answer = listed[0].answer.as_ref().map_or("", |answer| &answer.text);
        assert!(answer.contains("damaged in the message store"), "{answer}");
    }
    assert_eq!(damaged_files(&path), Vec::<PathBuf>::new(), "one message costs the whole file");
}

#[test]
fn a_recovered_store_sends_creates_singly_whose_note_may_be_lost() {
    for has_note in [true, false] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let (old, new) = ("01a20440-760d-73a3-a0fd-000000000001", "ffffffff-ffff-7fff-a0fd-000000000002");
        let create = |id| about_trace(&lane("team"), id, Effect::Create, 1);
        let store = open(&path);
        store.register(&[create(old), create(new)]).expect("there is room");
        if has_note {
            let other = about_trace(&lane("team"), "01a20440-760d-73a3-a0fd-000000000003", Effect::Update, 1);
            store.note_updates_ahead(&[(lane("team"), other.touches[0].key)], 0).expect("it is noted");
        }
        store.compact().expect("it can be compacted");
        drop(store);
        let mut bytes = fs::read(&path).expect("ours");
        bytes[..4096].fill(0);
        fs::write(&path, &bytes).expect("ours");
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS).expect("an agent can continue");
        let lease =
            store.acquire(&Owner::this_process("agent"), Duration::from_secs(600)).expect("nobody else replays");
        let work = store.lanes(&Filter::default(), now_ms()).expect("lanes can be read");
        let limits = ClaimLimits { messages_max: 10, bytes_max: 1 << 20 };
        let claimed = store
            .claim(&lease, work[0].id, &Filter::default(), limits, now_ms())
            .expect("we have the lease")
            .into_messages();
        let single: Vec<bool> = claimed.iter().map(|message| !message.ahead.is_empty()).collect();
        assert_eq!(single, [has_note, false], "an old create may have lost its note, and no other has");
    }
}
