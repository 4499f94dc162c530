//! A sealed store: nothing of what it holds can be read from its files, no key but its own opens it, and changing the
//! key loses nothing.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use opik_offline::message::{Body, Credential, Effect, Encoding, HeaderSet, Lane, Message, MessageId, Sha256};
use opik_offline::store::attachment::{AttachmentReader, AttachmentWriter};
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{
    Browse, ClaimLimits, Filter, Hold, Intake, KeyState, Keys, LastAnswer, Maintain, OpenMode, Outcome, Owner, Page,
    Resealed, SalvagedRow, Store, StoreError, reseal,
};
use rusqlite::Connection;

use crate::messages::{about_trace, attachment, lane};
use crate::story::{LIMITS, key, open, open_with, sealed_with};

const ALL: Page = Page { after: None, limit: 1000, newest_first: false };
const NO_KEY: Keys = Keys { current: None, previous: None };

/// Texts that must not be found in the files.
const SECRETS: [&str; 7] =
    ["BodyPlain", "BodyDeleted", "BodyRejected", "FileBytes", "HeaderValue", "QueryText", "AnswerText"];
const API_KEY: &str = "ApiKeySecret-0123456789abcdef";

fn secret_lane() -> Lane {
    Lane { credential: Some(Credential::new(API_KEY)), ..lane("team") }
}

fn message(trace: &str, text: &str) -> Message {
    let mut message = about_trace(&secret_lane(), trace, Effect::Create, 5);
    // Noise after it, so that the body is not compressed: a compressed secret would not be found anyway.
    let mut state = trace.len() as u64 + 1;
    let noise = std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let bytes: Vec<u8> = text.bytes().chain(noise.take(700)).collect();
    message.request.body = Body::new(bytes, Encoding::Gzip);
    message.request.headers = HeaderSet::new(vec![("x-secret".to_owned(), b"HeaderValue".to_vec())]);
    message.request.path = "v1/private/traces?project_name=QueryText".into();
    message
}

/// Fills a store with every kind of value that must be encrypted, and with deleted ones.
fn fill(store: &dyn Store) {
    let deleted: Vec<_> = (0..40).map(|n| message(&format!("d{n}"), "BodyDeleted")).collect();
    let ids = store.register(&deleted).expect("there is room");
    let kept: Vec<_> = (0..40).map(|n| message(&format!("k{n}"), "BodyPlain")).collect();
    store.register(&kept).expect("there is room");
    let mut writer = AttachmentWriter::begin(store, None).expect("there is room");
    writer.write(&b"FileBytes ".repeat(60_000)).expect("there is room");
    writer.register(&attachment(&secret_lane(), "k1", 7)).expect("there is room");
    let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(60)).expect("nobody replays");
    let lane = store.lanes(&Filter::default(), 0).expect("a lane")[0].id;
    let many = ClaimLimits { messages_max: 42, bytes_max: 1 << 30 };
    let claimed = store.claim(&lease, lane, &Filter::default(), many, 0).expect("we have the lease").into_messages();
    let answer = || LastAnswer { status: Some(400), text: "AnswerText: your input was ...".into(), at_ms: 9 };
    let outcomes: Vec<_> = claimed
        .iter()
        .map(|claimed| match ids.contains(&claimed.id) {
            true => (claimed.id, Outcome::Delivered),
            false => (claimed.id, Outcome::Rejected { answer: answer() }),
        })
        .collect();
    store.settle(&lease, &outcomes).expect("we have the lease");
    let hold = Hold {
        until_ms: i64::MAX / 2,
        reason: "the server answers 401".into(),
        probe: true,
        status: Some(401),
        bucket: None,
    };
    store.hold(&lease, lane, Some(&hold)).expect("we have the lease");
    store.release(&lease).expect("it is ours");
    let row = message("s", "BodyRejected");
    let rejected = Some(LastAnswer { status: None, text: "AnswerText".into(), at_ms: 9 });
    let row = SalvagedRow::new(Sha256::new([7; 32]), row, rejected);
    store.salvage(&[row]).expect("there is room");
}

/// Everything that a store has, in words.
fn everything(store: &dyn Store) -> Vec<String> {
    let listed = store.list(&Filter::default(), &ALL).expect("it can be listed");
    let whole = listed.iter().map(|listed| {
        let message = store.get(listed.id).expect("it can be read").expect("it is there");
        let file = store.attachment(listed.id).expect("it can be asked").map(|file| {
            let mut bytes = Vec::new();
            AttachmentReader::new(store, listed.id, 0..file.bytes).read_to_end(&mut bytes).expect("it can be read");
            bytes
        });
        format!("{message:?} {:?} {file:?}", message.request.body.bytes)
    });
    whole.collect()
}

fn files(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = path.parent().expect("a folder");
    let paths = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    paths.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(&path).expect("it can be read"))).collect()
}

fn found_in_files(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (file, bytes) in files(path) {
        for secret in SECRETS.iter().chain([&API_KEY]) {
            if bytes.windows(secret.len()).any(|window| window == secret.as_bytes()) {
                found.push(format!("{secret} in {}", file.display()));
            }
        }
    }
    found
}

fn state(path: &Path, keys: &Keys) -> opik_offline::store::Encryption {
    let store = SqliteStore::open_with(path, OpenMode::WithoutKey, LIMITS, keys).expect("it can be opened");
    store.condition().expect("it can be asked").encryption
}

fn refusal(path: &Path, mode: OpenMode, keys: &Keys) -> StoreError {
    match SqliteStore::open_with(path, mode, LIMITS, keys) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn go_on(_: opik_offline::store::Resealing) -> bool {
    true
}

#[test]
fn nothing_of_a_sealed_store_can_be_read_from_its_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    let store = open_with(&path, &sealed_with(1));
    fill(&store);
    assert_eq!(found_in_files(&path), Vec::<String>::new(), "while it is open");
    let all = everything(&store);
    assert!(all.iter().any(|message| message.contains("AnswerText")) && all.len() >= 40, "it holds what it was given");
    assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new());
    store.compact().expect("it can be compacted");
    drop(store);
    assert_eq!(found_in_files(&path), Vec::<String>::new(), "when it is closed");
    assert_eq!(everything(&open_with(&path, &sealed_with(1))), all);
    assert!(state(&path, &sealed_with(1)).is_complete, "a store that was sealed from the first needs nothing more");
}

#[test]
fn the_look_into_the_files_finds_what_is_not_sealed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    fill(&open(&path));
    let found = found_in_files(&path).join(" ");
    for secret in SECRETS.iter().chain([&API_KEY]) {
        assert!(found.contains(secret), "{secret} would never be found: {found}");
    }
}

#[test]
fn converting_a_store_leaves_no_plain_text_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    let running = open(&path);
    fill(&running);
    let before = everything(&running);
    // A store that stays open with both keys, like an agent's, and one without a key.
    let agent = SqliteStore::open_with(&path, OpenMode::Existing, LIMITS, &sealed_with(1)).expect("it is plain");
    assert_eq!(everything(&agent), before);
    let nobody = Lane { workspace: Some("nobody".into()), ..secret_lane() };
    for store in [&running, &agent] {
        assert!(store.is_clear(&nobody).expect("it is plain") && !store.is_clear(&secret_lane()).expect("it is plain"));
    }
    let done = reseal(&path, LIMITS, &sealed_with(1), &mut go_on).expect("it can be sealed");
    assert!(matches!(done, Resealed::Complete(done) if done.done > 80), "{done:?}");
    assert!(matches!(running.is_clear(&nobody), Err(StoreError::KeyMissing { .. })), "it remembers a plain store");
    assert!(
        agent.is_clear(&nobody).expect("it has the key") && !agent.is_clear(&secret_lane()).expect("it has the key")
    );
    assert_eq!(found_in_files(&path), Vec::<String>::new());
    assert_eq!(everything(&agent), before, "the agent continues with its key");
    let refused = running.register(&[message("late", "BodyPlain")]);
    assert!(
        matches!(refused, Err(StoreError::KeyMissing { .. })),
        "an agent without the key stored plain: {refused:?}"
    );
    assert!(matches!(running.ahead(&secret_lane(), &[]), Err(StoreError::KeyMissing { .. })), "it found no lane");
    let id = agent.register(&[message("late", "BodyPlain")]).expect("it has the key");
    assert_eq!(found_in_files(&path), Vec::<String>::new());
    assert_eq!(agent.lanes(&Filter::default(), 0).expect("lanes").len(), 1, "the lane was found by its digest");
    assert!(agent.get(id[0]).expect("it can be read").is_some());
    assert_eq!(agent.check().expect("it can be checked"), Vec::<String>::new());
    assert!(state(&path, &sealed_with(1)).is_complete);
    let again = reseal(&path, LIMITS, &sealed_with(1), &mut go_on).expect("it is sealed");
    assert!(matches!(again, Resealed::Complete(done) if done.done == 0), "{again:?}");

    // The key is changed, and at last taken away; each time under the agent that has the keys.
    drop((running, agent));
    let with_new = open_with(&path, &sealed_with(1));
    let after = everything(&with_new);
    let rotate = Keys { current: Some(key(2)), previous: Some(key(1)) };
    assert!(matches!(reseal(&path, LIMITS, &rotate, &mut go_on), Ok(Resealed::Complete(_))));
    assert!(matches!(with_new.get(id[0]), Err(StoreError::WrongKey { .. })), "the old key is no longer of use");
    assert_eq!(everything(&open_with(&path, &sealed_with(2))), after);
    assert_eq!(found_in_files(&path), Vec::<String>::new());
    let unseal = Keys { current: None, previous: Some(key(2)) };
    assert!(matches!(reseal(&path, LIMITS, &unseal, &mut go_on), Ok(Resealed::Complete(_))));
    let plain = open(&path);
    assert_eq!(everything(&plain), after);
    assert_eq!(plain.check().expect("it can be checked"), Vec::<String>::new());
    assert_eq!(plain.lanes(&Filter::default(), 0).expect("lanes").len(), 1);
}

#[test]
fn an_agent_with_a_key_encrypts_new_messages_and_reports_the_rest() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    let without = open(&path);
    let first = without.register(&[message("a", "BodyPlain")]).expect("there is room");
    let agent = open_with(&path, &sealed_with(1));
    agent.register(&[message("b", "BodyRejected")]).expect("there is room");
    let waiting = agent.lanes(&Filter::default(), 0).expect("lanes");
    assert_eq!((waiting.len(), waiting[0].failed), (1, 2), "both are of one lane, in their order");
    let encryption = state(&path, &sealed_with(1));
    assert_eq!((encryption.sealed_with, encryption.is_complete), (Some(key(1).id()), false));
    assert!(!found_in_files(&path).join(" ").contains("BodyRejected"));
    assert!(agent.get(first[0]).expect("it can be read").is_some());
    // The next key before that was finished: three kinds would be in the store.
    let third = Keys { current: Some(key(2)), previous: Some(key(1)) };
    let rotated = SqliteStore::open_with(&path, OpenMode::CreateIfMissing, LIMITS, &third);
    assert!(rotated.is_ok(), "plain text needs no key, so that there are only two");
    let fourth = Keys { current: Some(key(3)), previous: Some(key(2)) };
    let refused = refusal(&path, OpenMode::CreateIfMissing, &fourth);
    assert!(matches!(refused, StoreError::WrongKey { .. } | StoreError::TooManyKeys { .. }), "{refused}");
    assert!(matches!(reseal(&path, LIMITS, &third, &mut go_on), Ok(Resealed::Complete(_))));
    drop((without, agent, rotated));
    assert_eq!(found_in_files(&path), Vec::<String>::new());
    assert!(SqliteStore::open_with(&path, OpenMode::CreateIfMissing, LIMITS, &fourth).is_ok(), "now it can");
}

#[test]
fn without_its_key_a_store_is_counted_and_purged_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    let backlog = {
        let store = open_with(&path, &sealed_with(1));
        fill(&store);
        store.backlog(&Filter::default()).expect("it can be counted")
    };
    let before = fs::read(&path).expect("the file can be read");
    for (keys, is_missing) in [(NO_KEY, true), (sealed_with(2), false)] {
        for mode in [OpenMode::Existing, OpenMode::CreateIfMissing] {
            match refusal(&path, mode, &keys) {
                StoreError::KeyMissing { needed, .. } if is_missing => assert_eq!(needed, key(1).id()),
                StoreError::WrongKey { needed, given, .. } => {
                    assert_eq!((needed, given), (key(1).id(), key(2).id()));
                }
                other => panic!("{other}"),
            }
        }
        assert!(reseal(&path, LIMITS, &keys, &mut go_on).is_err());
        assert!(fs::read(&path).expect("the file can be read") == before, "a wrong key changed the store");
        let log = fs::metadata(format!("{}-wal", path.display())).map_or(0, |log| log.len());
        assert_eq!(log, 0, "a wrong key wrote to the log");
        let store = SqliteStore::open_with(&path, OpenMode::WithoutKey, LIMITS, &keys).expect("it can be counted");
        assert_eq!(store.backlog(&Filter::default()).expect("it can be counted"), backlog);
        let condition = store.condition().expect("it can be asked");
        assert_eq!(condition.encryption.key, if is_missing { KeyState::Missing } else { KeyState::Wrong });
        assert_eq!(condition.held.len(), 1, "the hold of a lane is not a secret");
        assert!(store.get(MessageId(42)).is_err() && store.register(&[message("x", "y")]).is_err());
        assert_eq!(store.check().expect("the rest can be checked"), Vec::<String>::new());
        drop(store);
    }
    let store = SqliteStore::open_with(&path, OpenMode::WithoutKey, LIMITS, &NO_KEY).expect("it can be counted");
    assert_eq!(store.purge(&Filter::default(), 1000).expect("it can be purged").messages, backlog.messages());
    store.compact().expect("it can be compacted");
}

#[test]
fn a_body_that_was_changed_or_swapped_in_the_file_is_named_and_not_sent() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    let store = open_with(&path, &sealed_with(1));
    let ids = store.register(&[message("a", "BodyPlain"), message("b", "BodyPlain")]).expect("there is room");
    let other = Connection::open(&path).expect("another program");
    let body = |id: MessageId| -> Vec<u8> {
        other.query_row("SELECT body FROM bodies WHERE message_id = ?1", [id.0], |row| row.get(0)).expect("a body")
    };
    let (first, second) = (body(ids[0]), body(ids[1]));
    let put = |id: MessageId, body: &[u8]| {
        other
            .execute("UPDATE bodies SET body = ?2 WHERE message_id = ?1", rusqlite::params![id.0, body])
            .expect("it is written");
    };
    put(ids[0], &second);
    put(ids[1], &first);
    for id in &ids {
        let error = store.get(*id).expect_err("it is another message's").to_string();
        assert!(error.contains(&format!("body of message {id}")), "{error}");
    }
    put(ids[1], &second);
    let mut changed = first.clone();
    changed[60] ^= 1;
    put(ids[0], &changed);
    assert!(store.get(ids[0]).is_err(), "a changed body was read");
    assert!(store.get(ids[1]).expect("it is its own").is_some());
    let problems = store.check().expect("it can be checked").join("; ");
    assert!(problems.contains(&format!("body of message {}", ids[0])), "{problems}");
    // One that does not open keeps the others from being left behind, and the user gets a report.
    let unseal = Keys { current: None, previous: Some(key(1)) };
    let refused = reseal(&path, LIMITS, &unseal, &mut go_on).expect_err("one body is damaged").to_string();
    assert!(refused.contains(&format!("body of message {}", ids[0])), "{refused}");
    store.purge(&Filter { ids: vec![ids[0]], ..Filter::default() }, 1).expect("it can be purged");
    assert!(matches!(reseal(&path, LIMITS, &unseal, &mut go_on), Ok(Resealed::Complete(_))));
    assert!(open(&path).get(ids[1]).expect("it can be read").is_some());
}

#[test]
fn a_conversion_may_end_anywhere_and_be_done_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    fill(&open(&path));
    let before = everything(&open(&path));
    for step in 1.. {
        let mut steps = 0;
        let mut on_progress = |_| {
            steps += 1;
            steps < step
        };
        match reseal(&path, LIMITS, &sealed_with(1), &mut on_progress).expect("it can be sealed") {
            Resealed::Stopped(_) => assert_eq!(everything(&open_with(&path, &sealed_with(1))), before, "step {step}"),
            Resealed::Complete(_) => break,
            other @ Resealed::Remnants { .. } => panic!("{other:?}"),
        }
    }
    assert_eq!(everything(&open_with(&path, &sealed_with(1))), before);
    assert_eq!(found_in_files(&path), Vec::<String>::new());
}

/// Every step looks at the schema again: the tables of a newer version may mean something else.
#[test]
fn a_conversion_stops_at_once_when_a_newer_version_has_changed_the_schema() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    fill(&open(&path));
    let sealed_bodies = || -> i64 {
        let connection = Connection::open(&path).expect("it can be opened");
        connection.query_row("SELECT count(*) FROM bodies WHERE codec >= 16", [], |row| row.get(0)).expect("a count")
    };
    let newer = Connection::open(&path).expect("it can be opened");
    let mut steps = 0;
    let result = reseal(&path, LIMITS, &sealed_with(1), &mut |_| {
        steps += 1;
        newer.pragma_update(None, "user_version", 9_999).expect("it is written");
        true
    });
    assert!(matches!(result, Err(StoreError::NewerSchema { found: 9_999, .. })), "{result:?}");
    assert_eq!((steps, sealed_bodies()), (1, 0), "it continued under the newer schema");
}
