//! Whole stores that are moved into another one: in order, once, as they were, however often it is interrupted.
//!
//! `OPIK_OFFLINE_KILLS` sets how often a move is killed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use opik_offline::message::{
    Body, Credential, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageStatus, MessageType,
    Request, Server, Touch,
};
use opik_offline::store::attachment::AttachmentWriter;
use opik_offline::store::{
    self, ClaimLimits, Filter, LastAnswer, Limits, Listed, OpenMode, Outcome, Owner, Page, Store, WhenFull,
};
use rusqlite::Connection;

use crate::durability::Dice;
use crate::encryption::{KEYS, configure};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::ledger::ClientLedger;
use crate::support::process::Output;
use crate::support::{PATIENCE, tempdir, uuid7, wait_until};
use crate::writes::{Told, create, create_batch, delete, score, span, update};

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
pub(crate) const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
/// Nobody listens there.
pub(crate) const NO_SERVER: &str = "http://127.0.0.1:9/api";

pub(crate) fn cli(home: &Home, upstream: &str, args: &[&str]) -> Output {
    let db = home.db().to_string_lossy().into_owned();
    home.cli(&[args, &["--db", &db, "--upstream", upstream]].concat())
}

pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Moves one file in, and returns the outcome.
pub(crate) fn move_in(home: &Home, upstream: &str, source: &Path, more: &[&str]) -> Output {
    let source = text(source);
    cli(home, upstream, &[&["replay", "--from", &source, "--format", "json"], more].concat())
}

pub(crate) fn opened(path: &Path) -> Arc<dyn Store> {
    store::open(path, OpenMode::Existing, LIMITS).expect("messages were stored")
}

pub(crate) fn listed(store: &dyn Store) -> Vec<Listed> {
    store.list(&Filter::default(), &Page { after: None, limit: 100_000, newest_first: false }).expect("a list")
}

/// Returns the file to which a store was set aside.
pub(crate) fn aside(source: &Path) -> Option<PathBuf> {
    let name = format!("{}.moved-", source.file_name().expect("a name").to_string_lossy());
    let entries = fs::read_dir(source.parent().expect("a folder")).expect("a folder").flatten();
    let mut found = entries.map(|entry| entry.path()).filter(|path| {
        let found = path.file_name().expect("a name").to_string_lossy().into_owned();
        found.starts_with(&name) && !found.ends_with("-wal")
    });
    found.next()
}

/// Returns the bytes of a store's files, which must not change.
fn state(source: &Path) -> Vec<Option<Vec<u8>>> {
    ["", "-wal"].map(|end| fs::read(format!("{}{end}", source.display())).ok()).into()
}

pub(crate) fn assert_no_scratch(home: &Home) {
    let entries = fs::read_dir(home.path()).expect("a folder").flatten();
    let left: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    let is_scratch = |name: &&std::ffi::OsString| name.to_string_lossy().contains("db.moving-");
    assert_eq!(left.iter().filter(is_scratch).count(), 0, "a private copy is left behind: {left:?}");
}

pub(crate) fn lane(workspace: &str) -> Lane {
    Lane {
        server: Some(Server::new("http://127.0.0.1:9/api")),
        workspace: Some(workspace.into()),
        credential: Some(Credential::new("made-up-key-0123456789")),
    }
}

pub(crate) fn message(lane: &Lane, id: &str, effect: Effect, at: i64) -> Message {
    let (message_type, method, path) = match effect {
        Effect::Create => (MessageType::CreateTrace, "POST", "v1/private/traces".to_owned()),
        _ => (MessageType::UpdateTrace, "PATCH", format!("v1/private/traces/{id}")),
    };
    Message {
        lane: lane.clone(),
        message_type,
        request: Request {
            method: method.into(),
            path,
            headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
            body: Body::new(format!("{{\"id\":\"{id}\",\"at\":{at}}}"), Encoding::Identity),
        },
        touches: vec![Touch { key: EntityKey::new(EntityKind::Trace, id), effect }],
        items: 1,
        project: Some("project".into()),
        accepted_at_ms: at,
    }
}

/// Makes a store with this many messages about few traces, and an attachment of this size behind every 100th.
pub(crate) fn make_store(path: &Path, messages: usize, file_bytes: usize) {
    let store = store::open(path, OpenMode::CreateIfMissing, LIMITS).expect("a new store");
    let lane = lane("team");
    let ids: Vec<String> = (0..20).map(|_| uuid7()).collect();
    for at in 0..messages {
        let id = &ids[at % ids.len()];
        let effect = if at < ids.len() { Effect::Create } else { Effect::Update };
        store.register(&[message(&lane, id, effect, 1_000 + at as i64)]).expect("there is room");
        if at % 100 == 99 && file_bytes > 0 {
            attach(&*store, &lane, id, &vec![at as u8; file_bytes]);
        }
    }
}

fn attach(store: &dyn Store, lane: &Lane, id: &str, bytes: &[u8]) {
    let mut upload = message(lane, id, Effect::Annotate, 5);
    (upload.message_type, upload.request.method) = (MessageType::CreateAttachment, "POST".into());
    upload.request.path = "v1/private/attachment/upload-start".into();
    let mut writer = AttachmentWriter::begin(store, Some(bytes.len() as u64)).expect("there is room");
    writer.write(bytes).expect("there is room");
    writer.register(&upload).expect("there is room");
}

#[test]
fn the_backlog_of_a_dead_agent_is_moved_once_and_delivered_in_order() {
    let server = FakeOpik::new_stopped();
    let ledger = ClientLedger::new();
    let mut agent = Agent::start(&server);
    let ids: Vec<String> = (0..30).map(|_| uuid7()).collect();
    for workspace in ["default", "team-a"] {
        let mut app = Told::new(&agent.url(), &ledger).in_workspace(workspace);
        app.client = app.client.with_header("authorization", "made-up-key-0123456789");
        app.acknowledged(create_batch(&ids[10..]), 204);
        for (n, id) in ids[..10].iter().enumerate() {
            app.acknowledged(create(id), 201);
            app.acknowledged(span(&uuid7(), id), 201);
            app.acknowledged(update(id, n as u64), 204);
            app.acknowledged(update(id, n as u64 + 100), 204);
            app.acknowledged(score(id, 0.5), 204);
        }
        app.acknowledged(delete(&ids[9]), 204);
    }
    agent.kill9();
    let source = agent.db();
    let messages = listed(&*opened(&source)).len() as u64;
    let before = state(&source);

    let home = Home::new();
    let dry = move_in(&home, &server.url(), &source, &["--dry-run"]);
    assert_eq!((dry.code(), dry.json()["sources"][0]["messages"].as_u64()), (Some(0), Some(messages)), "{dry:?}");
    assert!(!home.db().exists() && state(&source) == before, "a dry run changed something");
    // The server is away still: the messages are in the other store nevertheless.
    let moved = move_in(&home, &server.url(), &source, &[]);
    assert_eq!((moved.code(), moved.json()["sources"][0]["messages"].as_u64()), (Some(3), Some(messages)), "{moved:?}");
    let aside = aside(&source).expect("a store that was moved has another name");
    assert!(!source.exists(), "an agent that starts there would send everything again");
    assert_eq!(text(&aside), moved.json()["sources"][0]["set_aside"].as_str().unwrap_or_default());
    assert_eq!(state(&aside), before, "the source itself was changed");
    let lanes: Vec<Lane> = listed(&*opened(&home.db())).into_iter().map(|listed| listed.lane).collect();
    assert!(lanes.iter().all(|lane| lane.credential.as_ref().is_some_and(|key| key.reveal().len() == 22)), "{lanes:?}");

    server.start();
    let delivered = cli(&home, &server.url(), &["replay"]);
    assert_eq!(delivered.code(), Some(0), "{delivered:?}");
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_violations();

    let writes = || server.requests().iter().filter(|request| request.method != "GET").count();
    let sent = writes();
    let again = move_in(&home, &server.url(), &aside, &[]);
    assert_eq!((again.code(), again.json()["sources"][0]["known"].as_u64()), (Some(0), Some(messages)), "{again:?}");
    assert_eq!(writes(), sent, "a message was sent twice");
    let gone = move_in(&home, &server.url(), &source, &[]);
    assert!(gone.code() == Some(1) && gone.stderr.contains("was moved before"), "{gone:?}");
    assert_no_scratch(&home);
}

#[test]
fn a_running_agent_keeps_its_store() {
    let server = FakeOpik::new_stopped();
    let ledger = ClientLedger::new();
    let agent = Agent::start(&server);
    Told::new(&agent.url(), &ledger).acknowledged(create(&uuid7()), 201);
    let home = Home::new();
    let refused = move_in(&home, &server.url(), &agent.db(), &[]);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains(&format!("in use by process {}", agent.pid())), "{refused:?}");
    assert!(agent.db().exists() && !home.db().exists());
    assert_eq!(agent.backlog(), 1, "the agent lost its message");
    let own = cli(agent.home(), &server.url(), &["replay", "--from", &text(&agent.db())]);
    assert!(own.code() == Some(1) && own.stderr.contains("hint: "), "{own:?}");
}

/// Locks a file as an agent in another container does, whose process cannot be seen.
#[test]
fn a_store_that_is_locked_from_elsewhere_is_left_alone() {
    let home = Home::new();
    let source = home.path().join("found/source.db");
    fs::create_dir(home.path().join("found")).expect("a folder");
    make_store(&source, 5, 0);
    let before = state(&source);
    // The parent of the process that tries: SQLite holds its lock as long as the connection reads.
    let held = Connection::open(&source).expect("a store");
    let _rows: i64 = held.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).expect("a store");
    let refused = move_in(&home, NO_SERVER, &source, &[]);
    assert!(refused.code() == Some(1) && refused.stderr.contains("in use by process"), "{refused:?}");
    assert!(state(&source)[0] == before[0] && source.exists());
    drop(held);
    let moved = move_in(&home, NO_SERVER, &source, &[]);
    assert_eq!(moved.json()["sources"][0]["messages"], 5, "{moved:?}");
}

#[test]
fn messages_are_moved_with_their_state_their_answers_and_their_files() {
    let home = Home::new();
    let source = home.path().join("found/source.db");
    fs::create_dir(home.path().join("found")).expect("a folder");
    let ids: Vec<String> = (0..6).map(|_| uuid7()).collect();
    let (team, other) = (lane("team"), Lane { credential: None, ..lane("other") });
    let file: Vec<u8> = (0..1_300_000_u32).map(|at| (at % 251) as u8).collect();
    let answer = |status, text: &str| LastAnswer { status: Some(status), text: text.into(), at_ms: 7 };
    let all: Vec<Message> = ids.iter().map(|id| message(&team, id, Effect::Create, 1)).collect();
    {
        let store = store::open(&source, OpenMode::CreateIfMissing, LIMITS).expect("a new store");
        let stored = store.register(&all[..5]).expect("there is room");
        attach(&*store, &other, &ids[5], &file);
        let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(60)).expect("nobody replays");
        let in_team = store.lanes(&Filter::default(), 10).expect("lanes");
        let in_team = in_team.iter().find(|work| work.lane == team).expect("it has messages").id;
        let limits = ClaimLimits { messages_max: 3, bytes_max: 1 << 20 };
        assert_eq!(store.claim(&lease, in_team, &Filter::default(), limits, 10).unwrap().into_messages().len(), 3);
        let outcomes = [
            (stored[0], Outcome::Rejected { answer: answer(400, "no such field") }),
            (stored[1], Outcome::Held { answer: answer(400, "id too old") }),
        ];
        store.settle(&lease, &outcomes).expect("they were claimed");
        // The third stays in flight, as of a killed replay.
    }
    let moved = move_in(&home, NO_SERVER, &source, &[]);
    let sources = &moved.json()["sources"][0];
    let counts = ["messages", "rejected", "held", "known", "unread"].map(|field| sources[field].as_u64());
    assert_eq!(counts, [Some(4), Some(1), Some(1), Some(0), Some(0)], "{moved:?}");

    let store = opened(&home.db());
    let found = listed(&*store);
    let statuses: Vec<MessageStatus> = found.iter().map(|listed| listed.status).collect();
    let failed = MessageStatus::Failed;
    assert_eq!(statuses, [MessageStatus::Rejected, MessageStatus::Held, failed, failed, failed, failed]);
    assert_eq!(
        found[0].answer.as_ref().map(|answer| (answer.status, &*answer.text)),
        Some((Some(400), "no such field"))
    );
    assert_eq!(found[1].answer.as_ref().map(|answer| (answer.status, &*answer.text)), Some((Some(400), "id too old")));
    for (listed, message) in found.iter().zip(&all[..5]) {
        let whole = store.get(listed.id).expect("it can be read").expect("it is there");
        assert_eq!((&whole.request, &whole.touches, &listed.lane), (&message.request, &message.touches, &team));
        assert_eq!(listed.accepted_at_ms, 1, "its age is another");
    }
    assert_eq!(found[5].lane, other);
    let stored = found[5].attachment.expect("its file was moved, too");
    let pieces: Vec<u8> =
        (0..3).filter_map(|number| store.piece(found[5].id, number).expect("readable")).flatten().collect();
    assert!(stored.bytes == file.len() as u64 && pieces == file, "the file is another");
    let in_team = store.lanes(&Filter::default(), 10).expect("lanes");
    let in_team = in_team.iter().find(|work| work.lane == team).expect("it has messages").id;
    assert_eq!(store.interrupted(in_team).expect("a count"), 1, "messages in flight together may be sent one by one");
    assert_eq!(store.check().expect("it can be read"), Vec::<String>::new());
}

#[test]
fn an_update_that_is_ahead_of_its_create_is_known_in_the_other_store() {
    let home = Home::new();
    let source = home.path().join("found/source.db");
    fs::create_dir(home.path().join("found")).expect("a folder");
    let (noted, in_flight, lane) = (uuid7(), uuid7(), lane("team"));
    {
        let store = store::open(&source, OpenMode::CreateIfMissing, LIMITS).expect("a new store");
        let key = |id: &str| EntityKey::new(EntityKind::Trace, id);
        store.note_updates_ahead(&[(lane.clone(), key(&noted))], 0).expect("there is room");
        store.register(&[message(&lane, &in_flight, Effect::Update, 1)]).expect("there is room");
        let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(60)).expect("nobody replays");
        let work = store.lanes(&Filter::default(), 10).expect("lanes")[0].id;
        let limits = ClaimLimits { messages_max: 9, bytes_max: 1 << 20 };
        store.claim(&lease, work, &Filter::default(), limits, 10).expect("it is due");
        store.register(&[message(&lane, &noted, Effect::Create, 2)]).expect("there is room");
    }
    assert_eq!(move_in(&home, NO_SERVER, &source, &[]).code(), Some(3));
    let connection = Connection::open(home.db()).expect("a store");
    let notes: i64 = connection.query_row("SELECT count(*) FROM updated_ahead", [], |row| row.get(0)).expect("a count");
    assert_eq!(notes, 2, "a partial row on the server will hide the create");
}

#[test]
fn stores_of_every_released_schema_are_moved_and_not_migrated_in_place() {
    let server = FakeOpik::new_stopped();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores");
    let mut stores = 0;
    for entry in fs::read_dir(fixtures).expect("the fixtures").flatten() {
        // One each: their messages are the same to the millisecond, as those of copies are.
        let home = Home::new();
        let source = home.path().join("found").join(entry.file_name());
        fs::create_dir_all(home.path().join("found")).expect("a folder");
        fs::copy(entry.path(), &source).expect("a copy");
        fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let moved = move_in(&home, &server.url(), &source, &[]);
        let sources = &moved.json()["sources"][0];
        let messages = ["messages", "rejected", "held"].map(|field| sources[field].as_u64().unwrap_or(0));
        assert_eq!((messages.iter().sum::<u64>(), &sources["unread"]), (5, &0.into()), "{source:?}: {moved:?}");
        let aside = aside(&source).expect("it was moved");
        assert_eq!(fs::read(aside).ok(), fs::read(entry.path()).ok(), "the old store was changed");
        assert_eq!(listed(&*opened(&home.db())).len(), 5);
        stores += 1;
    }
    assert!(stores >= 3);
}

#[test]
fn sources_that_cannot_be_moved_are_explained_and_left_as_they_are() {
    let home = Home::new();
    let folder = home.path().join("found");
    fs::create_dir(&folder).expect("a folder");
    let made = |name: &str| {
        let path = folder.join(name);
        make_store(&path, 3, 0);
        path
    };
    let newer = made("newer.db");
    Connection::open(&newer).and_then(|file| file.pragma_update(None, "user_version", 99)).expect("a newer store");
    let open_to_others = made("open.db");
    fs::set_permissions(&open_to_others, fs::Permissions::from_mode(0o666)).expect("it is ours");
    let link = folder.join("link.db");
    std::os::unix::fs::symlink(made("linked.db"), &link).expect("a link");
    let mut bad = vec![
        (newer, "schema version 99"),
        (open_to_others, "other users can write"),
        (link, "symbolic link"),
        (folder.join("none.db"), "there is no file"),
    ];
    if fs::metadata(&folder).is_ok_and(|metadata| metadata.uid() == 0) {
        let foreign = made("foreign.db");
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            if entry.file_name().to_string_lossy().starts_with("foreign.db") {
                std::os::unix::fs::chown(entry.path(), Some(12_345), None).expect("root may");
            }
        }
        bad.push((foreign, "belongs to user 12345"));
    }
    for (source, reason) in &bad {
        let before = state(source);
        let refused = move_in(&home, NO_SERVER, source, &[]);
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        assert!(refused.stderr.contains(reason) && refused.stderr.contains("hint: "), "{source:?}: {refused:?}");
        assert!(refused.stderr.contains(&text(source)), "the message names another file: {refused:?}");
        assert!(state(source) == before && aside(source).is_none(), "{source:?} was changed");
    }
    let empty = folder.join("nothing.db");
    drop(store::open(&empty, OpenMode::CreateIfMissing, LIMITS).expect("a new store"));
    let moved = move_in(&home, NO_SERVER, &empty, &[]);
    assert_eq!((moved.code(), &moved.json()["sources"][0]["messages"]), (Some(0), &0.into()), "{moved:?}");
    // A folder means the stores in it: a good one is moved, and the bad ones cost it nothing.
    let good = made("good.db");
    let all = move_in(&home, NO_SERVER, &folder, &[]);
    assert!(all.code() == Some(1) && aside(&good).is_some(), "{all:?}");
    // Root can move the store of another user, by name.
    if let Some((foreign, _)) = bad.iter().find(|(source, _)| source.ends_with("foreign.db")) {
        let moved = move_in(&home, NO_SERVER, foreign, &["--owner", "12345"]);
        assert_eq!(moved.json()["sources"][0]["messages"], 3, "{moved:?}");
    }
    assert_no_scratch(&home);
}

#[test]
fn whole_messages_of_a_damaged_store_are_moved_and_the_losses_counted() {
    let home = Home::new();
    let folder = home.path().join("found");
    fs::create_dir(&folder).expect("a folder");
    for (name, broken) in [("pages.db", 60_000..90_000), ("head.db", 0..4096)] {
        let source = folder.join(name);
        make_store(&source, 400, 0);
        let mut bytes = fs::read(&source).expect("a store");
        assert!(bytes.len() > broken.end);
        bytes[broken].fill(0xa5);
        fs::write(&source, &bytes).expect("a damaged store");
        let moved = move_in(&home, NO_SERVER, &source, &["--remove-source"]);
        let sources = &moved.json()["sources"][0];
        let (messages, unread) = (sources["messages"].as_u64().unwrap_or(0), sources["unread"].as_u64().unwrap_or(0));
        assert!(messages > 100 && messages + unread >= 400, "{name}: {moved:?}");
        if unread > 0 {
            let aside = aside(&source).expect("a damaged store is never deleted");
            assert_eq!(fs::read(aside).ok(), Some(bytes), "{name} was changed");
        }
    }
    assert_no_scratch(&home);
}

#[test]
fn an_encrypted_store_is_moved_with_its_key_into_one_with_another() {
    let away = Home::new();
    configure(&away, Some(KEYS[1]), None);
    let server = FakeOpik::new_stopped();
    let ledger = ClientLedger::new();
    let mut agent = Agent::builder(&server.url()).home(away).start();
    let id = uuid7();
    Told::new(&agent.url(), &ledger).acknowledged(create(&id), 201);
    agent.kill9();
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let before = state(&agent.db());
    let refused = move_in(&home, &server.url(), &agent.db(), &[]);
    assert!(
        refused.code() == Some(1) && refused.stderr.contains("OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY_FILE"),
        "{refused:?}"
    );
    assert!(state(&agent.db()) == before, "it was changed without its key");
    configure(&home, Some(KEYS[0]), Some(KEYS[1]));
    let moved = move_in(&home, &server.url(), &agent.db(), &[]);
    assert_eq!(moved.json()["sources"][0]["messages"], 1, "{moved:?}");
    // From here on only its own key is needed.
    configure(&home, Some(KEYS[0]), None);
    server.start();
    let delivered = cli(&home, &server.url(), &["replay"]);
    assert_eq!(delivered.code(), Some(0), "{delivered:?}");
    server.assert_equals(&ledger);
}

#[test]
fn a_move_that_is_killed_at_any_moment_loses_nothing_and_stores_nothing_twice() {
    const MESSAGES: usize = 2_000;
    let kills: u64 = std::env::var("OPIK_OFFLINE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6);
    let made = tempdir();
    let original = made.path().join("source.db");
    make_store(&original, MESSAGES, 700_000);
    let expected: Vec<_> = contents(&*opened(&original));
    let mut dice = Dice::new(7);
    let mut killed = 0;
    while killed < kills {
        let home = Home::new();
        let source = home.path().join("found/source.db");
        fs::create_dir(home.path().join("found")).expect("a folder");
        for end in ["", "-wal"] {
            let _ = fs::copy(format!("{}{end}", original.display()), format!("{}{end}", source.display()));
        }
        fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).expect("it is ours");
        // Each home sees several kills, so that a move is resumed at several points.
        for _ in 0..4 {
            let mut command = home.command(BINARY);
            command.args(["replay", "--upstream", NO_SERVER, "--from"]).arg(&source).arg("--db").arg(home.db());
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started");
            let until = dice.below(MESSAGES as u64 + 200) as usize;
            wait_until("some messages are stored", PATIENCE, || {
                let has_ended = child.try_wait().expect("a child can be waited for").is_some();
                has_ended || home.db().exists() && stored(&home.db()) >= until
            });
            let has_died = child.try_wait().expect("a child can be waited for").is_none();
            let _ = child.kill();
            child.wait().expect("a child can be waited for");
            killed += u64::from(has_died);
            assert!(
                source.exists() || stored(&home.db()) == expected.len(),
                "the source has another name before all of it was safe"
            );
        }
        if source.exists() {
            let moved = move_in(&home, NO_SERVER, &source, &[]);
            assert_eq!(moved.code(), Some(3), "{moved:?}");
        }
        assert!(aside(&source).is_some() && !source.exists());
        let store = opened(&home.db());
        assert!(contents(&*store) == expected, "lost, stored twice, or in another order");
        assert_eq!(store.check().expect("it can be read"), Vec::<String>::new());
        drop(store);
        // The next process removes what the killed ones left.
        make_store(&source, 1, 0);
        assert_eq!(move_in(&home, NO_SERVER, &source, &[]).code(), Some(3));
        assert_no_scratch(&home);
    }
}

fn stored(db: &Path) -> usize {
    let Ok(connection) = Connection::open(db) else { return 0 };
    let count = connection.query_row("SELECT count(*) FROM messages", [], |row| row.get::<_, i64>(0));
    count.map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

/// Returns of every message, in order, when it was accepted, its path, and the digest of its file.
pub(crate) fn contents(store: &dyn Store) -> Vec<(i64, String, Option<String>)> {
    let row = |listed: Listed| {
        let file = listed.attachment.map(|file| file.sha256.to_string());
        (listed.accepted_at_ms, listed.path, file)
    };
    listed(store).into_iter().map(row).collect()
}
