//! Any process delivers a message to the server that it was accepted for, and with no other server's key.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::agent::{Agent, AgentBuilder, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request};
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, trace, update};

const KEY_A: &str = "made-up-key-of-server-a";
const KEY_B: &str = "made-up-key-of-server-b";

/// An agent for this server on a store that several share.
fn agent_on(db: &Path, server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--db").arg(&db.display().to_string()).without_db()
}

fn written_with(url: &str, key: &str, request: Request, status: u16) {
    let answer = Client::new(url).expect(&request.header("Authorization", key));
    assert_eq!(answer.status, status, "{}", answer.text());
}

/// Runs a command on a store; the environment names no server.
fn cli_on(db: &Path, args: &[&str]) -> Output {
    run(Home::new().command(env!("CARGO_BIN_EXE_opik-offline")).args(args).arg("--db").arg(db))
}

/// Everything that a server was sent carries its own key.
#[track_caller]
fn assert_only_key(server: &FakeOpik, key: &str, whose: &str) {
    for request in server.requests().iter().filter(|request| !request.writes.is_empty()) {
        let sent = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        assert_eq!(sent.map(|(_, value)| value.as_str()), Some(key), "{whose} got a key that is not for it");
    }
}

fn has(server: &FakeOpik, id: &str) -> bool {
    server.entity("default", Kind::Trace, id).is_some_and(|entity| entity.record.is_some())
}

fn status(db: &Path, args: &[&str]) -> Value {
    cli_on(db, &[&["status", "--format", "json"], args].concat()).json()
}

#[test]
fn another_servers_agent_delivers_nothing_of_ours() {
    let shared = Home::new();
    let (a, b) = (FakeOpik::new_stopped(), FakeOpik::start_new());
    let stored: Vec<String> = (0..5).map(|_| uuid7()).collect();
    let mut first = agent_on(&shared.db(), &a).start();
    for id in &stored {
        written_with(&first.url(), KEY_A, create(id), 201);
        written_with(&first.url(), KEY_A, update(id, 1), 204);
    }
    first.terminate();

    let second = agent_on(&shared.db(), &b).start();
    let live = uuid7();
    written_with(&second.url(), KEY_B, create(&live), 201);
    wait_until("the second server has what is its own", PATIENCE, || has(&b, &live));
    b.stop();
    let kept = uuid7();
    written_with(&second.url(), KEY_B, create(&kept), 201);
    b.start();
    wait_until("the second server's outage is delivered", PATIENCE, || has(&b, &kept));
    assert!(second.stderr().contains(&format!("10 messages in this store are for {}", a.url())), "{}", second.stderr());
    let told = || Client::new(&second.origin()).get("/-/status.json").json();
    wait_until("the agent counts nothing of what it does not deliver", PATIENCE, || told()["store"]["waiting"] == 0);
    let told = told();
    assert_eq!(told["store"]["elsewhere"], json!([{ "server": a.url(), "waiting": 10, "rejected": 0 }]));
    let metrics = Client::new(&second.origin()).get("/metrics").text();
    assert!(metrics.contains("\nopik_offline_backlog_elsewhere_messages 10\n"), "{metrics}");
    assert_only_key(&b, KEY_B, "the second server");
    assert!(stored.iter().all(|id| !has(&b, id)), "the second server has the first one's traces");

    // A command for the second server leaves it alone, too, and reports it.
    let replay = cli_on(&shared.db(), &["replay", "--upstream", &b.url()]);
    assert_eq!(replay.code(), Some(0), "{}", replay.stderr);
    assert!(replay.stdout.contains("10 messages are for other servers"), "{}", replay.stdout);
    a.start();
    let third = agent_on(&shared.db(), &a).start();
    wait_until("the first server has everything", PATIENCE, || stored.iter().all(|id| has(&a, id)));
    assert_only_key(&a, KEY_A, "the first server");
    drop(third);
}

#[test]
fn a_replay_without_a_server_takes_each_lanes_own() {
    let shared = Home::new();
    let (a, b) = (FakeOpik::new_stopped(), FakeOpik::new_stopped());
    let (of_a, of_b) = (uuid7(), uuid7());
    for (server, key, id) in [(&a, KEY_A, &of_a), (&b, KEY_B, &of_b)] {
        let mut agent = agent_on(&shared.db(), server).start();
        written_with(&agent.url(), key, create(id), 201);
        agent.terminate();
    }
    let told = status(&shared.db(), &[]);
    let servers: Vec<_> = told["backlog"]["groups"].as_array().unwrap().iter().map(|group| &group["server"]).collect();
    assert_eq!(servers.len(), 2, "{told}");
    let shown = cli_on(&shared.db(), &["status"]).stdout;
    assert!(shown.contains("server") && shown.contains(&a.url()) && shown.contains(&b.url()), "{shown}");

    // One of them is away: the other gets what is its own, and nobody else's.
    b.start();
    let half = cli_on(&shared.db(), &["replay", "--format", "json"]);
    assert_eq!(half.code(), Some(3), "{}", half.stderr);
    assert_eq!((&half.json()["delivered"], &half.json()["remaining"]), (&json!(1), &json!(1)), "{}", half.stdout);
    assert!(has(&b, &of_b) && !has(&b, &of_a));
    a.start();
    let rest = cli_on(&shared.db(), &["replay"]);
    assert_eq!(rest.code(), Some(0), "{}", rest.stderr);
    assert!(has(&a, &of_a) && !has(&a, &of_b));
    assert_only_key(&a, KEY_A, "the first server");
    assert_only_key(&b, KEY_B, "the second server");
}

#[test]
fn a_moved_server_gets_its_backlog_only_when_a_person_says_so() {
    let shared = Home::new();
    let (old, new) = (FakeOpik::new_stopped(), FakeOpik::start_new());
    let stored: Vec<String> = (0..3).map(|_| uuid7()).collect();
    let mut agent = agent_on(&shared.db(), &old).start();
    for id in &stored {
        written_with(&agent.url(), KEY_A, create(id), 201);
    }
    agent.terminate();
    let readdress = ["replay", "--readdress", &old.url(), "--upstream", &new.url()];

    let preview = cli_on(&shared.db(), &[&readdress[..], &["--dry-run"]].concat());
    assert_eq!(preview.code(), Some(0), "{}", preview.stderr);
    assert!(preview.stdout.contains("would give 3 messages another destination"), "{}", preview.stdout);
    let unasked = cli_on(&shared.db(), &readdress);
    assert_eq!(unasked.code(), Some(2), "a backlog was moved although nobody said yes: {}", unasked.stdout);
    assert!(stored.iter().all(|id| !has(&new, id)), "the new server got it before anybody said so");

    let moved = cli_on(&shared.db(), &[&readdress[..], &["--yes"]].concat());
    assert_eq!(moved.code(), Some(0), "{}", moved.stderr);
    assert!(stored.iter().all(|id| has(&new, id)), "the new server does not have everything");
    assert_eq!(status(&shared.db(), &[])["backlog"]["messages"], 0);
    let again = cli_on(&shared.db(), &[&readdress[..], &["--yes"]].concat());
    assert_eq!(again.code(), Some(2), "{}", again.stdout);
}

#[test]
fn what_an_earlier_version_stored_goes_to_the_first_server_and_to_no_default() {
    let shared = Home::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores/version-8.db");
    fs::copy(fixture, shared.db()).unwrap();
    // Nobody named a server: Opik Cloud, the default, is not offered what another server's clients wrote.
    let replay = cli_on(&shared.db(), &["replay"]);
    assert_eq!(replay.code(), Some(2), "{}", replay.stderr);
    assert!(replay.stderr.contains("did not record their server"), "{}", replay.stderr);

    let (a, b) = (FakeOpik::new_stopped(), FakeOpik::start_new());
    let mut first = agent_on(&shared.db(), &a).start();
    let said = "5 messages were stored by an earlier version, which did not record their server: they are for";
    wait_until("the agent says whose they are now", PATIENCE, || first.stderr().contains(said));
    first.terminate();
    let told = status(&shared.db(), &["--upstream", &a.url()]);
    assert_eq!(told["adopted"][0]["messages"], 5, "{told}");
    assert_eq!(told["adopted"][0]["server"], a.url(), "{told}");
    let second = agent_on(&shared.db(), &b).start();
    wait_until("the second server was asked", PATIENCE, || !b.requests_to("GET", "/is-alive/ping").is_empty());
    let replay = cli_on(&shared.db(), &["replay", "--upstream", &b.url()]);
    assert!(replay.stdout.contains("5 messages are for other servers"), "{}{}", replay.stdout, replay.stderr);
    assert!(b.requests().iter().all(|request| request.writes.is_empty()), "the second server got them");
    assert!(!second.stderr().contains(said), "they were given away twice");
}

/// The server that an SDK's file names is respected: its rows don't go to another one.
#[test]
fn an_sdk_file_of_another_server_is_refused_until_a_person_says_that_it_moved() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let folder = home.path().join("tmpabcdefgh");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("opik_messages.db");
    let id = uuid7();
    let attached = home.path().join("notes.txt");
    fs::write(&attached, "notes").unwrap();
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE messages (message_id INTEGER NOT NULL PRIMARY KEY, status INTEGER NOT NULL,
             message_type TEXT NOT NULL, message_json TEXT NOT NULL)",
        )
        .unwrap();
    let mut create = trace(&id, "chat");
    create["trace_id"] = create["id"].take();
    let url = "aHR0cDovL29sZC5leGFtcGxlOjUxNzMvYXBpLw==";
    let attachment = json!({ "file_path": attached, "file_name": "notes.txt", "mime_type": "text/plain",
        "entity_type": "trace", "entity_id": id, "project_name": "p", "encoded_url_override": url,
        "delete_after_upload": false });
    for (number, name, row) in [(0, "CreateTraceMessage", create), (1, "CreateAttachmentMessage", attachment)] {
        let sql = "INSERT INTO messages VALUES (?1, 3, ?2, ?3)";
        connection.execute(sql, rusqlite::params![number, name, row.to_string()]).unwrap();
    }
    drop(connection);
    let file = file.display().to_string();
    let refused = cli_on(&home.db(), &["replay", "--upstream", &server.url(), "--from", &file]);
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("is for http://old.example:5173/api"), "{}", refused.stderr);
    assert!(server.requests().iter().all(|request| request.writes.is_empty()), "it went to another server");

    let adopting = Agent::builder(&server.url()).impatient().arg("--adopt-orphans");
    let adopting = adopting.env("TMPDIR", &home.path().display().to_string()).start();
    wait_until("the agent has looked", PATIENCE, || adopting.stderr().contains("cannot salvage an orphaned store"));
    assert!(Path::new(&file).exists() && !has(&server, &id), "an orphan crossed servers");

    let moved = ["--readdress", "http://old.example:5173/api/", "--from", &file];
    let taken = cli_on(&home.db(), &[&["replay", "--upstream", &server.url()], &moved[..]].concat());
    assert_eq!(taken.code(), Some(0), "{}{}", taken.stdout, taken.stderr);
    assert!(has(&server, &id));
}
