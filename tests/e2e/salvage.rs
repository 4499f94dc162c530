//! Files that killed Python processes left: rows as the SDK would send them, salvaged once, by command and by the agent
//! itself.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use opik_offline::message::MessageStatus;
use opik_offline::sdk::file::SdkFile;
use opik_offline::sdk::rows::{SdkRow, convert};
use opik_offline::sdk::trust::FileOwner;
use opik_offline::shutdown::Shutdown;
use opik_offline::store::{self, Filter, Limits, OpenMode, Page, WhenFull};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::json::parse_lenient;
use crate::support::process::Output;
use crate::support::sdk::SdkApp;
use crate::support::{PATIENCE, tempdir, uuid7, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
/// Nobody listens there.
const NO_SERVER: &str = "http://127.0.0.1:9/api";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store").join(name)
}

/// Copies a fixture, for this user alone whatever the modes of the sources are.
fn copy_of(name: &str, path: &Path) {
    fs::copy(fixture(name), path).expect("a copy");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
}

fn cli(home: &Home, upstream: &str, args: &[&str]) -> Output {
    let db = home.db().to_string_lossy().into_owned();
    home.cli(&[args, &["--db", &db, "--upstream", upstream]].concat())
}

fn opened(home: &Home) -> std::sync::Arc<dyn store::Store> {
    store::open(&home.db(), OpenMode::Existing, LIMITS).expect("rows were stored")
}

/// Returns how many messages wait, and how many are rejected.
fn counts(home: &Home) -> (u64, u64) {
    let backlog = opened(home).backlog(&Filter::default()).expect("the store can be read");
    (backlog.waiting(), backlog.rejected())
}

/// Equal as JSON values are: `0` is `0.0`.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// Takes away what the SDK rewrites inside of user data, and we don't.
fn without_times_of_users(body: &mut Value, is_users: bool) {
    match body {
        Value::Array(items) => items.iter_mut().for_each(|item| without_times_of_users(item, is_users)),
        Value::Object(members) => {
            if is_users {
                members.retain(|key, _| !["start_time", "end_time", "last_updated_at"].contains(&key.as_str()));
            }
            for (key, value) in members.iter_mut() {
                without_times_of_users(value, is_users || ["input", "output", "metadata"].contains(&key.as_str()));
            }
        }
        _ => {}
    }
}

#[test]
fn every_row_becomes_the_request_that_the_sdk_itself_sent() {
    let mut expected: BTreeMap<i64, Value> = BTreeMap::new();
    for line in fs::read_to_string(fixture("all-types.expected.jsonl")).expect("a fixture").lines() {
        let line = parse_lenient(line.as_bytes()).expect("recorded requests are JSON");
        // Of an upload the first request stands for the row.
        expected.entry(line["message_id"].as_i64().expect("an id")).or_insert(line);
    }
    let scratch = tempdir();
    let path = scratch.path().join("all-types.db");
    copy_of("all-types.db", &path);
    let mut file = SdkFile::open(&path, scratch.path(), FileOwner::this_user(), &Shutdown::new()).expect("it is whole");
    let mut compared = 0;
    while let Some(row) = file.next_row().expect("it is whole") {
        let id = row.message_id;
        let expected = &expected[&id];
        assert_eq!(expected["message_type"], row.message_type.as_str());
        let json = row.json.as_deref().expect("a text");
        match convert(&row.message_type, json).unwrap_or_else(|fault| panic!("row {id} is lost: {fault}")) {
            // The one that the SDK can't send: a lone surrogate, which stays the escape that it is.
            SdkRow::Write(write) if id == 8 => {
                assert!(String::from_utf8_lossy(&write.body).contains(r#""bad \ud83d end""#), "user data was changed");
            }
            SdkRow::Write(write) => {
                assert_eq!(expected["method"], write.method, "row {id}");
                assert_eq!(expected["path"], format!("/api/{}", write.path), "row {id}");
                let mut sent = parse_lenient(&write.body).expect("a body is JSON");
                let mut body = expected["body"].clone();
                if [6, 24].contains(&id) {
                    without_times_of_users(&mut sent, false);
                    without_times_of_users(&mut body, false);
                }
                assert!(is_same(&sent, &body), "row {id}\nwe send   {sent}\nthe SDK   {body}");
            }
            SdkRow::Attachment(file) => {
                let body = &expected["body"];
                assert_eq!(body["file_name"], file.file_name.as_str());
                assert_eq!(body["mime_type"], file.mime_type.as_deref().unwrap_or_default());
                assert_eq!(body["entity_id"], file.entity_id.as_str());
                assert_eq!(body["entity_type"], file.entity_type.as_str());
                assert_eq!(body["project_name"], file.project_name.as_deref().unwrap_or_default());
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 25);
}

/// Makes a store as the SDK makes it, with these rows.
fn sdk_store(path: &Path, rows: impl IntoIterator<Item = (i64, String, String)>) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let mut connection = rusqlite::Connection::open(path).expect("a new file");
    connection
        .execute_batch(
            "CREATE TABLE messages (message_id INTEGER NOT NULL PRIMARY KEY, status INTEGER NOT NULL,
             message_type TEXT NOT NULL, message_json TEXT NOT NULL)",
        )
        .expect("a table");
    let all = connection.transaction().expect("a transaction");
    for (number, (status, message_type, json)) in rows.into_iter().enumerate() {
        all.execute(
            "INSERT INTO messages VALUES (?1, ?2, ?3, ?4)",
            rusqlite::params![number as i64, status, message_type, json],
        )
        .expect("a row");
    }
    all.commit().expect("a commit");
}

fn trace_row(number: usize) -> (i64, String, String) {
    let json = json!({ "trace_id": uuid7(), "project_name": "p", "name": format!("trace {number}"), "start_time": "2026-03-01T04:00:16Z",
        "input": { "text": "x".repeat(2000) }, "output": null, "source": "sdk", "message_id": number });
    (if number.is_multiple_of(2) { 3 } else { 1 }, "CreateTraceMessage".into(), json.to_string())
}

#[test]
fn salvaged_rows_are_delivered_once_and_deduplicated_in_a_copy() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let source = home.path().join("tmpabcdefgh/opik_messages.db");
    sdk_store(&source, (0..40).map(trace_row));
    let before =
        (fs::read(&source).expect("a file"), fs::metadata(&source).and_then(|m| m.modified()).expect("a time"));
    let from = source.to_string_lossy().into_owned();

    let dry = cli(&home, &server.url(), &["replay", "--from", &from, "--dry-run"]);
    assert_eq!(dry.code(), Some(0), "{dry:?}");
    assert!(dry.stdout.contains("would take 40 messages"), "{dry:?}");
    assert!(!home.db().exists(), "a dry run stores nothing");

    let listed = cli(&home, &server.url(), &["inspect", "--from", &from, "--format", "json", "--limit", "0"]).json();
    assert_eq!(listed["rows"].as_array().map(Vec::len), Some(40));
    // Of the default store, which is not there either.
    let status = home.cli(&["status", "--format", "json", "--upstream", &server.url()]).json();
    assert_eq!(status["orphans"][0]["rows"], 40, "{status}");

    let replayed = cli(&home, &server.url(), &["replay", "--from", &from, "--format", "json"]);
    assert_eq!(replayed.code(), Some(0), "{replayed:?}");
    assert_eq!(replayed.json()["delivered"], 40);
    assert_eq!(server.count("default", Kind::Trace), 40, "messages are lost");
    let writes = || server.requests().iter().filter(|request| request.method != "GET").count();
    let sent = writes();

    let copy = home.path().join("a-copy.db");
    fs::copy(&source, &copy).expect("a copy");
    for path in [&source, &copy] {
        let again = cli(&home, &server.url(), &["replay", "--from", &path.to_string_lossy(), "--format", "json"]);
        assert_eq!(again.json()["sources"][0]["known"], 40, "{again:?}");
    }
    assert_eq!(writes(), sent, "a message was sent twice");
    let after = (fs::read(&source).expect("a file"), fs::metadata(&source).and_then(|m| m.modified()).expect("a time"));
    assert!(before == after, "the original was changed before anybody asked for it");

    let removing = cli(&home, &server.url(), &["replay", "--from", &from, "--remove-source"]);
    assert_eq!(removing.code(), Some(0), "{removing:?}");
    assert!(!source.exists() && !source.parent().is_some_and(Path::exists), "the source and its folder stay");
    server.assert_no_violations();
}

#[test]
fn unsendable_rows_are_kept_with_a_reason_and_the_rest_is_delivered() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let source = home.path().join("tmpabcdefgh/opik_messages.db");
    let gone = json!({ "file_path": home.path().join("gone.txt"), "file_name": "gone.txt", "entity_type": "trace",
        "entity_id": uuid7(), "project_name": "p", "delete_after_upload": true });
    sdk_store(
        &source,
        [
            trace_row(0),
            (3, "CreateTraceMessage".into(), "{\"trace_id\": ".into()),
            (3, "NewMessage".into(), "{\"a\": 1}".into()),
            (3, "CreateTraceMessage".into(), json!({ "trace_id": 7, "start_time": "x" }).to_string()),
            (3, "CreateAttachmentMessage".into(), gone.to_string()),
            trace_row(5),
        ],
    );
    let replayed = cli(&home, &server.url(), &["replay", "--from", &source.to_string_lossy(), "--format", "json"]);
    assert_eq!(replayed.json()["delivered"], 2, "{replayed:?}");
    assert_eq!(replayed.json()["sources"][0]["rejected"], 4, "{replayed:?}");
    assert_eq!(counts(&home), (0, 4));

    let page = Page { after: None, limit: 10, newest_first: false };
    let kept = opened(&home).list(&Filter::default(), &page).expect("a list");
    let reasons: Vec<String> = kept.iter().filter_map(|kept| Some(kept.answer.as_ref()?.text.clone())).collect();
    for (reason, part) in reasons.iter().zip(["not JSON", "unknown", "trace_id is not a string", "gone.txt"]) {
        assert!(reason.contains(part), "{reason}");
    }
    let shown = cli(&home, &server.url(), &["inspect", &kept[1].id.to_string()]);
    assert!(shown.stdout.contains("NewMessage") && shown.stdout.contains("\"a\": 1"), "{shown:?}");

    let again = cli(&home, &server.url(), &["replay", "--rejected"]);
    assert!(again.code().is_some() && counts(&home) == (0, 4), "a row without a request was sent or lost: {again:?}");
}

#[test]
fn bytes_of_attachments_are_taken_at_once_and_temporary_copies_removed_when_asked() {
    let home = Home::new();
    let source = home.path().join("tmpabcdefgh/opik_messages.db");
    let (temporary, own) = (home.path().join("tmpcopy.txt"), home.path().join("own/report.txt"));
    fs::create_dir(home.path().join("own")).expect("a folder");
    fs::write(&temporary, vec![b'a'; 1_300_000]).expect("a file");
    fs::write(&own, b"mine").expect("a file");
    let row = |path: &Path, delete: bool| {
        let json = json!({ "file_path": path, "file_name": "a.txt", "mime_type": "text/plain", "entity_type": "span",
            "entity_id": uuid7(), "project_name": "p", "encoded_url_override": "aHR0cA==", "delete_after_upload": delete });
        (3, "CreateAttachmentMessage".to_owned(), json.to_string())
    };
    sdk_store(&source, [row(&temporary, true), row(&own, true), row(&own, false)]);
    // A file elsewhere may be anyone's: its folder has to be named.
    let own_folder = home.path().join("own").to_string_lossy().into_owned();
    let from = source.to_string_lossy().into_owned();
    let args = ["replay", "--from", &from, "--remove-source", "--attachments-from", &own_folder];
    let replayed = cli(&home, NO_SERVER, &args);
    assert_eq!(replayed.code(), Some(3), "{replayed:?}");
    assert_eq!(counts(&home), (3, 0), "attachments are lost");
    let store = opened(&home);
    let first = store.list(&Filter::default(), &Page { after: None, limit: 10, newest_first: false }).expect("a list");
    let bytes: Vec<u64> = first.iter().map(|listed| listed.attachment.map_or(0, |file| file.bytes)).collect();
    assert_eq!(bytes, [1_300_000, 4, 4]);
    assert_eq!(store.piece(first[1].id, 0).expect("a piece").as_deref(), Some(&b"mine"[..]));
    assert!(!temporary.exists(), "the SDK's temporary copy stays");
    assert!(own.exists(), "a file of the user's own was removed");
}

#[test]
fn bad_files_are_reported_and_left_alone_and_good_ones_are_salvaged() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let folder = home.path().join("found");
    fs::create_dir(&folder).expect("a folder");
    let held_path = folder.join("held.db");
    for (name, path) in [
        ("not-a-database.db", folder.join("text.db")),
        ("killed-mid-flight.db", held_path.clone()),
        ("truncated.db", folder.join("truncated.db")),
    ] {
        copy_of(name, &path);
    }
    let other = folder.join("other.db");
    rusqlite::Connection::open(&other).and_then(|c| c.execute_batch("CREATE TABLE t (a)")).expect("another program's");
    // Held open, as a living process holds its store.
    let held = fs::File::open(&held_path).expect("a file");
    let state = |path: &Path| (fs::read(path).expect("a file"), modified(path));
    let before: Vec<_> = [&held_path, &other, &folder.join("text.db")].map(|path| state(path)).into();

    for bad in [&held_path, &other, &folder.join("text.db"), &folder.join("none.db")] {
        let bad = bad.to_string_lossy();
        for args in [&["replay", "--from", &bad][..], &["inspect", "--from", &bad]] {
            let refused = cli(&home, &server.url(), args);
            assert_eq!(refused.code(), Some(1), "{refused:?}");
            assert!(refused.stderr.contains("error: ") && refused.stderr.contains("hint: "), "{refused:?}");
        }
    }
    assert!(!home.db().exists(), "nothing was there to store");
    let live = cli(&home, &server.url(), &["replay", "--from", &held_path.to_string_lossy()]);
    assert!(live.stderr.contains(&format!("in use by process {}", std::process::id())), "{live:?}");

    let mixed = cli(
        &home,
        &server.url(),
        &["replay", "--from", &folder.to_string_lossy(), "--remove-source", "--format", "json"],
    );
    assert_eq!(mixed.code(), Some(1), "{mixed:?}");
    let source = &mixed.json()["sources"][0];
    assert!(source["messages"].as_u64() > Some(350) && source["unread"].as_u64() > Some(300), "{source}");
    assert!(folder.join("truncated.db").exists(), "a damaged file may hold more than could be read");
    assert_eq!(counts(&home).0, 0, "readable rows were not delivered: {mixed:?}");
    let after: Vec<_> = [&held_path, &other, &folder.join("text.db")].map(|path| state(path)).into();
    assert!(before == after, "a file that is not taken was touched");
    drop(held);
    let pattern = folder.join("hel*.db").to_string_lossy().into_owned();
    assert_eq!(cli(&home, &server.url(), &["replay", "--from", &pattern]).code(), Some(0));
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|metadata| metadata.modified()).expect("a time")
}

#[test]
fn a_salvage_that_is_killed_anywhere_loses_nothing_and_stores_nothing_twice() {
    const ROWS: usize = 3000;
    let home = Home::new();
    let source = home.path().join("tmpabcdefgh/opik_messages.db");
    sdk_store(&source, (0..ROWS).map(trace_row));
    let run = || {
        let mut command = home.command(BINARY);
        command.args(["replay", "--upstream", NO_SERVER, "--remove-source", "--from"]).arg(&source);
        command.arg("--db").arg(home.db()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("it can be started")
    };
    for kill_at in [1, 500, 1500, 2800] {
        let mut child = run();
        wait_until("some rows are stored", PATIENCE, || {
            let has_ended = child.try_wait().expect("a child can be waited for").is_some();
            has_ended
                || home.db().exists()
                    && store::open(&home.db(), OpenMode::Existing, LIMITS).is_ok_and(|_| counts(&home).0 >= kill_at)
        });
        // Fails only if it has already ended.
        let _ = child.kill();
        child.wait().expect("a child can be waited for");
        assert!(source.exists() || counts(&home).0 == ROWS as u64, "the source is gone before all of it was safe");
    }
    run().wait().expect("a child can be waited for");
    assert_eq!(counts(&home), (ROWS as u64, 0), "lost, or stored twice");
    assert!(!source.exists());
    let store = opened(&home);
    assert_eq!(store.check().expect("it can be read"), Vec::<String>::new());
    let listed =
        store.list(&Filter::default(), &Page { after: None, limit: ROWS, newest_first: false }).expect("a list");
    assert!(listed.iter().all(|listed| listed.status == MessageStatus::Failed));
    let leftovers = fs::read_dir(home.path()).expect("a folder").flatten();
    let copies = leftovers.filter(|entry| entry.file_name().to_string_lossy().starts_with("opik-offline-"));
    assert!(copies.count() <= 4, "private copies stay behind");
}

/// A Python process whose server is away is killed, and an agent that adopts orphans delivers what it left.
fn adopted_after(signal: Signal) {
    let server = FakeOpik::new_stopped();
    let mut app = SdkApp::start_impatient("orphan", &server.url());
    app.run("traces 6");
    app.run("manual 2");
    app.run("attach 2");
    app.run("flush");
    app.run("scores");
    app.run("flush");
    let stores = app.stores();
    assert!(!stores.is_empty(), "the SDK keeps no store");
    let temp = app.home().path().to_string_lossy().into_owned();

    let agent = Agent::builder(&server.url()).impatient().arg("--adopt-orphans").env("TMPDIR", &temp).start();
    for store in &stores {
        let live = cli(agent.home(), &server.url(), &["replay", "--from", &store.to_string_lossy()]);
        assert_eq!(live.code(), Some(1), "{live:?}");
        assert!(live.stderr.contains(&format!("process {}", app.pid())), "{live:?}");
    }
    assert_eq!(agent.backlog(), 0, "a store was taken whose process lives");
    app.kill(signal);
    wait_until("the agent adopts what the process left", PATIENCE, || app.stores().is_empty());
    assert!(agent.backlog() > 0);
    server.start();
    app.wait_until_all_on(&server);
    agent.wait_until_delivered();
    server.assert_no_violations();
    server.assert_no_update_before_create();
}

#[test]
fn the_file_of_a_killed_python_process_is_adopted_and_delivered() {
    adopted_after(Signal::KILL);
}

#[test]
fn the_file_of_a_terminated_python_process_is_adopted_and_delivered() {
    adopted_after(Signal::TERM);
}

#[test]
fn messages_in_flight_when_a_python_process_was_killed_are_sent_again() {
    let server = FakeOpik::start_new();
    let hanging = server.script(When::write(), Then::Hang);
    let mut app = SdkApp::start("online", &server.url());
    app.run("traces 6");
    wait_until("a write of the SDK waits for its answer", PATIENCE, || hanging.hits() > 0);
    let stores = app.stores();
    app.kill(Signal::KILL);
    hanging.clear();
    let home = Home::new();
    let mut rows = 0;
    for store in &stores {
        let listed = cli(&home, &server.url(), &["inspect", "--from", &store.to_string_lossy(), "--format", "json"]);
        rows += listed.json()["rows"].as_array().map_or(0, Vec::len);
    }
    assert!(rows > 0, "the SDK was sending and did not keep it");
    let from: Vec<String> = stores.iter().map(|store| store.to_string_lossy().into_owned()).collect();
    let args: Vec<&str> = ["replay", "--format", "json", "--remove-source", "--from"]
        .into_iter()
        .chain(from.iter().map(String::as_str))
        .collect();
    let replayed = cli(&home, &server.url(), &args);
    assert_eq!(replayed.json()["delivered"], rows, "rows that were being sent are lost: {replayed:?}");
    assert!(app.stores().is_empty());
    server.assert_no_violations();
}

#[test]
fn an_upload_that_was_under_way_when_its_process_was_killed_is_done_again() {
    let server = FakeOpik::start_new();
    let mut app = SdkApp::start("upload", &server.url());
    let hanging = server.script(When::path("/v1/private/attachment/*"), Then::Hang);
    app.run("attach 2");
    wait_until("an upload of the SDK is under way", PATIENCE, || hanging.hits() > 0);
    let stores = app.stores();
    app.kill(Signal::KILL);
    hanging.clear();
    let home = Home::new();
    let mut uploads = 0;
    for store in &stores {
        let listed = cli(&home, &server.url(), &["inspect", "--from", &store.to_string_lossy(), "--format", "json"]);
        let listed = listed.json();
        let rows = listed["rows"].as_array().expect("a list");
        uploads += rows.iter().filter(|row| row["message_type"] == "CreateAttachmentMessage").count();
    }
    assert!(uploads > 0, "the SDK was uploading and did not keep it");
    let from: Vec<String> = stores.iter().map(|store| store.to_string_lossy().into_owned()).collect();
    let args = ["replay", "--format", "json", "--remove-source", "--from"];
    let args: Vec<&str> = args.into_iter().chain(from.iter().map(String::as_str)).collect();
    let replayed = cli(&home, &server.url(), &args);
    assert_eq!(counts(&home), (0, 0), "files are lost: {replayed:?}");
    let done = server.requests_to("PUT", "/v1/private/attachment/upload").len();
    assert!(done >= uploads, "{uploads} uploads were under way, and {done} were done: {replayed:?}");
    assert!(app.stores().is_empty());
    server.assert_no_violations();
}
