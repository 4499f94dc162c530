//! A store that is encrypted: an outage as without, what a wrong key does, and the change from plain to sealed beside
//! an agent at work, killed at any instant. Looked at from outside: the bytes in the files, and what reaches the
//! server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::process::Output;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, assert_error, create, trace, update};

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
const API_KEY: &str = "ApiKeyMarker-0123456789";
/// A text that must not be found in the files. Random enough that compression leaves it as it is.
const BODY: &str = "Body0x8f3aQzMarker";
pub(crate) const KEYS: [&str; 2] =
    ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "dHh8AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGx8="];

/// Writes the keys and the file that names them, for every process of this home.
pub(crate) fn configure(home: &Home, current: Option<&str>, previous: Option<&str>) {
    let folder = home.path().join("config/opik-offline");
    fs::create_dir_all(&folder).expect("a folder");
    let mut yaml = String::new();
    for (setting, key) in [("encryption_key_file", current), ("encryption_previous_key_file", previous)] {
        let Some(key) = key else { continue };
        let path = home.path().join(setting);
        fs::write(&path, format!("{key}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        yaml.push_str(&format!("{setting}: {}\n", path.display()));
    }
    fs::write(folder.join("config.yaml"), yaml).expect("a file");
}

fn marked(id: &str) -> Request {
    Request::new("POST", "/v1/private/traces?note=Query0x8f3aQzMarker")
        .header("authorization", API_KEY)
        .header("x-opik-note", "Header0x8f3aQzMarker")
        .json(&trace(id, BODY))
}

/// Names the markers that can be found in the files of the store, the log included.
fn found(db: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(db.parent().expect("a folder")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if !name.starts_with("opik_messages.db") && !name.starts_with("etilqs") {
            continue;
        }
        // SQLite's temporary files come and go.
        let Ok(bytes) = fs::read(&path) else { continue };
        for marker in ["x8f3aQzMarker", "ApiKeyMarker"] {
            if bytes.windows(marker.len()).any(|window| window == marker.as_bytes()) {
                found.push(format!("{marker} in {name}"));
            }
        }
    }
    found
}

fn encryption(agent: &Agent) -> Value {
    agent.cli(&["status", "--format", "json"]).json()["store"]["encryption"].clone()
}

fn ready(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/ready").json()
}

/// As `cli` of [`Agent`], without a server: it is not asked.
fn reseal(home: &Home) -> Output {
    let db = home.db().to_string_lossy().into_owned();
    home.cli(&["healthcheck", "--reseal", "--db", &db])
}

#[test]
fn an_outage_with_a_key_loses_nothing_and_shows_nothing() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let mut agent = Agent::builder(&server.url()).impatient().home(home).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let ids: Vec<String> = (0..30).map(|_| uuid7()).collect();
    for id in &ids {
        app.acknowledged(marked(id), 201);
        app.acknowledged(update(id, 1).header("authorization", API_KEY), 204);
    }
    assert_eq!(found(&agent.db()), Vec::<String>::new(), "the store shows what it holds");
    agent.kill9();
    assert_eq!(found(&agent.db()), Vec::<String>::new(), "the store shows what it holds");
    agent.restart_on_same_port();
    assert_eq!(agent.backlog(), 60);
    let told = encryption(&agent);
    assert_eq!((&told["state"], &told["key_state"]), (&json!("on"), &json!("usable")), "{told}");
    let shown = agent.cli(&["inspect", "1"]);
    assert!(shown.stdout.contains(BODY), "with the key, it is readable: {shown:?}");
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_violations();
    assert_eq!(found(&agent.db()), Vec::<String>::new(), "the store shows what it held");
}

#[test]
fn a_wrong_key_is_reported_and_loses_nothing() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let mut agent = Agent::builder(&server.url()).impatient().home(home).start();
    let ledger = ClientLedger::new();
    let id = uuid7();
    Told::new(&agent.url(), &ledger).acknowledged(marked(&id), 201);
    agent.terminate();
    let before = fs::read(agent.db()).expect("the store");

    for (key, words) in [(Some(KEYS[1]), "the key that is set is"), (None, "no key is set")] {
        configure(agent.home(), key, None);
        agent.restart_on_same_port();
        wait_until("the agent says what is wrong", PATIENCE, || ready(&agent)["store"]["usable"] == false);
        let reason = ready(&agent)["store"]["reason"].to_string();
        assert!(reason.contains("is encrypted with key") && reason.contains(words), "{reason}");
        assert_error(&Client::new(&agent.url()).expect(&create(&uuid7())), 503);
        for command in [&["inspect"][..], &["inspect", "1"], &["replay"]] {
            let refused = agent.cli(command);
            assert_eq!(refused.code(), Some(1), "{refused:?}");
            assert!(refused.stderr.contains(words) && refused.stderr.contains("hint: set "), "{refused:?}");
        }
        assert_eq!(agent.backlog(), 1, "status counts without the key");
        let dry = agent.cli(&["purge", "--dry-run"]);
        assert!(dry.stdout.contains("would delete 1 message"), "{dry:?}");
        let health = agent.cli(&["healthcheck", "--reseal"]);
        assert_eq!(health.code(), Some(1), "{health:?}");
        assert!(health.stdout.contains("xx encryption") && health.stdout.contains("the store needs key"), "{health:?}");
        agent.terminate();
        assert!(fs::read(agent.db()).expect("the store") == before, "a wrong key changed the store");
    }

    configure(agent.home(), Some("too short"), None);
    let refused = agent.cli(&["replay"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("encryption_key_file") && refused.stderr.contains("openssl rand"), "{refused:?}");
    assert!(!refused.stderr.contains("too short"), "a key is shown: {refused:?}");
    let started = agent.cli(&["agent", "--listen", "127.0.0.1:0"]);
    assert_eq!(started.code(), Some(2), "an agent without the key that was asked for: {started:?}");

    configure(agent.home(), Some(KEYS[0]), None);
    agent.restart_on_same_port();
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

#[test]
fn a_store_is_sealed_beside_its_agent_however_often_that_is_killed() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    {
        let mut app = Told::new(&agent.url(), &ledger);
        for _ in 0..200 {
            app.acknowledged(marked(&uuid7()), 201);
        }
    }
    assert!(!found(&agent.db()).is_empty(), "without a key the markers can be found");
    agent.terminate();
    configure(agent.home(), Some(KEYS[0]), None);
    agent.restart_on_same_port();
    assert_eq!(encryption(&agent)["state"], "changing");
    let health = agent.cli(&["healthcheck"]);
    assert!(health.stdout.contains("may still hold unencrypted older data"), "{health:?}");

    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let (agent, ledger, stop) = (&agent, &ledger, &stop);
        threads.spawn(move || {
            let mut app = Told::new(&agent.url(), ledger);
            let id = uuid7();
            app.acknowledged(create(&id), 201);
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                app.acknowledged(update(&id, n), 204);
            }
        });
        // As long as one takes that is let be, and less and less, in no order.
        for round in 0_u64..12 {
            let db = agent.db();
            let mut child = agent
                .home()
                .command(BINARY)
                .args(["healthcheck", "--reseal", "--quiet", "--db"])
                .arg(&db)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("it can be started");
            std::thread::sleep(Duration::from_millis((round * 37) % 90));
            child.kill().expect("our own child can be killed");
            child.wait().expect("it has ended");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let done = reseal(agent.home());
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert_eq!(encryption(&agent)["state"], "on");
    assert_eq!(found(&agent.db()), Vec::<String>::new(), "plain text is left in the files");
    assert!(agent.cli(&["healthcheck", "--full"]).stdout.contains(": sound"));

    // The key is changed while the agent has both; then the old one is of no use.
    agent.terminate();
    configure(agent.home(), Some(KEYS[1]), Some(KEYS[0]));
    agent.restart_on_same_port();
    assert_eq!(reseal(agent.home()).code(), Some(0));
    agent.terminate();
    configure(agent.home(), Some(KEYS[1]), None);
    agent.restart_on_same_port();
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_violations();
}

#[test]
fn orphaned_files_are_salvaged_into_an_encrypted_store() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let source = home.path().join("left/messages.db");
    fs::create_dir_all(source.parent().expect("a folder")).expect("a folder");
    let sdk = rusqlite::Connection::open(&source).expect("a new file");
    sdk.execute_batch(
        "CREATE TABLE messages (message_id INTEGER NOT NULL PRIMARY KEY, status INTEGER NOT NULL,
         message_type TEXT NOT NULL, message_json TEXT NOT NULL)",
    )
    .expect("a table");
    for number in 0..20 {
        let row = json!({ "trace_id": uuid7(), "project_name": "p", "name": BODY, "start_time": "2026-03-01T04:00:16Z",
            "input": { "text": BODY }, "output": null, "source": "sdk", "message_id": number });
        let row = rusqlite::params![number, row.to_string()];
        sdk.execute("INSERT INTO messages VALUES (?1, 3, 'CreateTraceMessage', ?2)", row).expect("a row");
    }
    drop(sdk);
    let (db, from) = (home.db().to_string_lossy().into_owned(), source.to_string_lossy().into_owned());
    let replay = |server: &FakeOpik| {
        home.cli(&["replay", "--from", &from, "--db", &db, "--upstream", &server.url(), "--format", "json"])
    };
    let away = replay(&server);
    assert_ne!(away.code(), Some(0), "{away:?}");
    assert_eq!(found(&home.db()), Vec::<String>::new(), "salvaged rows are in the files in the clear");
    let status = home.cli(&["status", "--db", &db, "--upstream", &server.url(), "--format", "json"]).json();
    assert_eq!(status["backlog"]["messages"], 20, "{status}");
    server.start();
    let there = replay(&server);
    assert_eq!(there.json()["sources"][0]["known"], 20, "{there:?}");
    assert_eq!(server.count("default", Kind::Trace), 20);
}
