//! Nothing overtakes a backlog that can be seen but not used: the store's key is wrong or missing, its schema is
//! another version's, its disk takes no write. Live writes that may conflict with what waits get 503 and `Retry-After`;
//! what provably conflicts with nothing passes. Once the store can be used again, every final state is right.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::encryption::{KEYS, configure};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request, Response};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, assert_error, create, create_batch, delete, score, span, update};

fn status(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/status.json").json()
}

fn ready(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/ready").json()
}

fn wait_until_usable(agent: &Agent, usable: bool) {
    wait_until("the agent notices how its store is", PATIENCE, || ready(agent)["store"]["usable"] == usable);
}

/// Asserts that a write was refused in the way that a client retries.
#[track_caller]
fn assert_refused(answer: &Response) {
    assert_error(answer, 503);
    assert!(answer.header("Retry-After").is_some_and(|wait| wait.parse::<u64>().is_ok_and(|wait| wait > 0)));
    assert!(answer.text().contains("message store"), "{}", answer.text());
}

/// The backlog of an outage: a trace with an update, and a trace that was created and deleted.
struct Backlog {
    updated: String,
    deleted: String,
}

impl Backlog {
    fn leave(app: &mut Told<'_>) -> Self {
        let backlog = Self { updated: uuid7(), deleted: uuid7() };
        app.acknowledged(create(&backlog.updated), 201);
        app.acknowledged(create(&backlog.deleted), 201);
        app.acknowledged(update(&backlog.updated, 1), 204);
        app.acknowledged(delete(&backlog.deleted), 204);
        backlog
    }

    /// Writes that must not pass it.
    fn conflicting(&self) -> Vec<Request> {
        let Self { updated, deleted } = self;
        vec![
            update(updated, 2),
            create(deleted),
            create_batch([&uuid7(), deleted]),
            score(updated, 0.5),
            // A span of the deleted trace would be there without it.
            span(&uuid7(), deleted),
            delete(updated),
        ]
    }
}

#[test]
fn a_wrong_or_a_missing_key_lets_nothing_overtake_what_waits() {
    for key in [Some(KEYS[1]), None] {
        let server = FakeOpik::new_stopped();
        let home = Home::new();
        configure(&home, Some(KEYS[0]), None);
        let mut agent = Agent::builder(&server.url()).impatient().home(home).start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let backlog = Backlog::leave(&mut app);
        agent.terminate();

        configure(agent.home(), key, None);
        server.start();
        agent.restart_on_same_port();
        wait_until_usable(&agent, false);
        let mut app = Told::new(&agent.url(), &ledger);
        for write in backlog.conflicting() {
            let answer = app.send(write.clone()).unwrap();
            assert_eq!(answer.status, 503, "{} {} passed what waits", write.method, write.path);
            assert_refused(&answer);
        }
        for id in [&backlog.updated, &backlog.deleted] {
            assert_eq!(server.sequence_for(id).len(), 0, "a later write reached the server first");
        }
        // Nothing waits about these.
        let other = uuid7();
        app.acknowledged(create(&other), 201);
        app.acknowledged(update(&other, 7), 204);
        app.acknowledged(span(&uuid7(), &other), 201);
        app.acknowledged(create_batch([&uuid7(), &uuid7()]), 204);
        assert!(server.entity("default", Kind::Trace, &other).is_some());
        assert_eq!(app.client.get(&format!("/v1/private/traces/{other}")).status, 200, "reads pass");
        // Another application with another key of the same server: nobody can read whose the messages are.
        let answer = Client::new(&agent.url()).expect(&update(&backlog.updated, 3).header("authorization", "other"));
        assert_refused(&answer);

        let refused = backlog.conflicting().len() as u64 + 1;
        let told = status(&agent);
        assert_eq!(told["store"]["live_writes"], "refused_if_conflicting", "{told}");
        assert_eq!(told["store"]["refused_while_unusable"], refused, "{told}");
        assert_eq!(ready(&agent)["store"]["live_writes"], "refused_if_conflicting");
        // An agent that can't use its store is recorded nowhere, so it is looked for where it should listen.
        let (db, listen) = (agent.db().display().to_string(), format!("127.0.0.1:{}", agent.port()));
        let mut command = agent.home().command(env!("CARGO_BIN_EXE_opik-offline"));
        command.args(["status", "--db", &db, "--upstream", &server.url()]).env("OPIK_OFFLINE_LISTEN", listen);
        let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(shown.contains("refuses live writes that may conflict"), "{shown}");
        let metrics = Client::new(&agent.origin()).get("/metrics").text();
        assert!(metrics.contains(&format!("opik_offline_intake_refused_total {refused}\n")), "{metrics}");
        let said = agent.stderr().matches("are refused with 503").count();
        assert_eq!(said, 1, "{}", agent.stderr());
        let page = Client::new(&agent.origin()).get("/").text();
        assert!(page.contains("refuses live writes that may conflict"), "{page}");

        // The client still has what was refused, and sends it again.
        agent.terminate();
        configure(agent.home(), Some(KEYS[0]), None);
        agent.restart_on_same_port();
        wait_until_usable(&agent, true);
        let mut app = Told::new(&agent.url(), &ledger);
        app.acknowledged(update(&backlog.updated, 2), 204);
        agent.wait_until_delivered();
        server.assert_equals(&ledger);
        server.assert_order(&ledger);
        server.assert_no_violations();
    }
}

#[test]
fn a_delivered_backlog_refuses_nothing() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let mut agent = Agent::builder(&server.url()).impatient().home(home).start();
    let ledger = ClientLedger::new();
    let backlog = Backlog::leave(&mut Told::new(&agent.url(), &ledger));
    agent.terminate();
    configure(agent.home(), None, None);
    server.start();
    agent.restart_on_same_port();
    wait_until_usable(&agent, false);
    let mut app = Told::new(&agent.url(), &ledger);
    assert_refused(&app.send(update(&backlog.updated, 2)).unwrap());

    // Another process delivers what waits; what is empty is seen as of now.
    let db = agent.db().display().to_string();
    let key = agent.home().path().join("encryption_key_file");
    let mut replay = agent.home().command(env!("CARGO_BIN_EXE_opik-offline"));
    replay.args(["replay", "--db", &db, "--upstream", &server.url()]).env("OPIK_OFFLINE_ENCRYPTION_KEY_FILE", key);
    assert!(replay.output().unwrap().status.success());
    app.acknowledged(update(&backlog.updated, 3), 204);
    app.acknowledged(delete(&backlog.updated), 204);
    server.assert_equals(&ledger);
    assert_eq!(status(&agent)["store"]["live_writes"], "passed_on");
}

fn set_version(db: &Path, version: i64) -> i64 {
    let connection = Connection::open(db).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    let before = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    connection.pragma_update(None, "user_version", version).unwrap();
    before
}

#[test]
fn a_newer_schema_under_a_running_agent_ends_its_use_at_once() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let backlog = Backlog::leave(&mut app);
    let known = set_version(&agent.db(), 9_999);
    server.start();
    // It is entirely unreadable, so anything may conflict with it.
    for write in backlog.conflicting().into_iter().chain([create(&uuid7())]) {
        assert_refused(&app.send(write).unwrap());
    }
    assert!(ready(&agent)["store"]["reason"].to_string().contains("schema version 9999"));
    assert_eq!(status(&agent)["store"]["live_writes"], "refused");
    wait_until("the server is seen again", PATIENCE, || ready(&agent)["server"]["connection"] == "available");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(server.count("default", Kind::Trace), 0, "an agent of an older version replays");
    assert_eq!(agent.stderr().matches("some network resiliency features were disabled").count(), 1);

    set_version(&agent.db(), known);
    wait_until_usable(&agent, true);
    app.acknowledged(update(&backlog.updated, 2), 204);
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

/// Another version's tables: a read that fails because of them does not mean damage, and the file stays in place.
#[test]
fn a_newer_schema_is_never_mistaken_for_corruption() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let backlog = Backlog::leave(&mut app);
    {
        let newer = Connection::open(agent.db()).unwrap();
        newer.busy_timeout(PATIENCE).unwrap();
        newer
            .execute_batch(
                "BEGIN IMMEDIATE; ALTER TABLE summary RENAME TO counts; ALTER TABLE updated_ahead RENAME TO notes;
                 UPDATE bodies SET body = x'00', codec = 99; PRAGMA user_version = 9999; COMMIT",
            )
            .unwrap();
    }
    server.start();
    assert_refused(&app.send(update(&backlog.updated, 2)).unwrap());
    wait_until_usable(&agent, false);
    std::thread::sleep(Duration::from_secs(4));
    assert!(ready(&agent)["store"]["reason"].to_string().contains("schema version 9999"), "{}", ready(&agent));
    let beside = fs::read_dir(agent.home().path()).unwrap().map(|entry| entry.unwrap().file_name());
    let aside: Vec<_> = beside.filter(|name| name.to_string_lossy().contains("damaged")).collect();
    assert!(aside.is_empty(), "the newer store was set aside: {aside:?}");
    let newer = Connection::open(agent.db()).unwrap();
    let condemned: i64 =
        newer.query_row("SELECT count(*) FROM messages WHERE status = 4", [], |row| row.get(0)).unwrap();
    assert_eq!(condemned, 0, "an older version rejected what it can't read");
}

/// An older version does not look at the schema again: it must not find tables that mean something else.
#[test]
fn a_store_is_not_upgraded_under_an_older_agent_and_is_once_that_has_ended() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores/version-8.db");
    fs::copy(fixture, home.db()).unwrap();
    fs::set_permissions(home.db(), fs::Permissions::from_mode(0o600)).unwrap();
    // All that an older agent is to others: an open file, and a row that names it.
    let older = Connection::open(home.db()).unwrap();
    let me = std::process::id();
    older
        .execute("INSERT OR REPLACE INTO agents VALUES (?1, '127.0.0.1:1', 'http://127.0.0.1:1/api', 1)", [me])
        .unwrap();
    let version = || older.pragma_query_value::<i64, _>(None, "user_version", |row| row.get(0)).unwrap();
    let agent = Agent::builder(&server.url()).impatient().home(home).start();
    wait_until_usable(&agent, false);
    let reason = ready(&agent)["store"]["reason"].to_string();
    assert!(reason.contains("older opik-offline") && reason.contains(&format!("pid {me}")), "{reason}");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    // Scores of a version 1 store are in no index: nothing about a trace is proven to be disjoint from them.
    let waits = "01a20440-760d-73a3-a0fd-1799bd005824";
    assert_refused(&app.send(update(waits, 2)).unwrap());
    let commands = agent.cli(&["status"]);
    assert!(commands.stderr.contains("older opik-offline") || commands.stdout.contains("older"), "{commands:?}");
    // Some rounds of retries later it is still the old one's.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(version(), 8, "the schema was changed under an older agent");
    assert_eq!(agent.stderr().matches("some network resiliency features were disabled").count(), 1);

    // The old agent stores one more, and ends.
    drop(older);
    wait_until_usable(&agent, true);
    assert_eq!(set_version(&agent.db(), 12), 12, "it was not brought up to date");
    agent.wait_until_delivered();
    assert!(!server.sequence_for(waits).is_empty(), "messages of the older version are lost");
}

#[test]
fn three_new_agents_wait_for_the_old_one_and_none_for_each_other() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores/version-8.db");
    let db = home.db();
    fs::copy(fixture, &db).unwrap();
    fs::set_permissions(&db, fs::Permissions::from_mode(0o600)).unwrap();
    let older = Connection::open(&db).unwrap();
    older.query_row("SELECT count(*) FROM messages", [], |row| row.get::<_, i64>(0)).unwrap();
    let name = db.display().to_string();
    let agents: Vec<Agent> = (0..3)
        .map(|_| Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &name).start())
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for agent in &agents {
            let stop = &stop;
            threads.spawn(move || {
                let mut client = Client::new(&agent.url());
                while !stop.load(Ordering::Relaxed) {
                    client.expect(&create(&uuid7()));
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        std::thread::sleep(Duration::from_secs(4));
        drop(older);
        for agent in &agents {
            wait_until_usable(agent, true);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(set_version(&db, 12), 12);
}

/// An intact message that an older version rejected is delivered by `replay --rejected`.
#[test]
fn messages_that_an_older_version_called_damaged_are_delivered_on_demand() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let mut agent = Agent::builder(&server.url()).impatient().home(home).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for _ in 0..20 {
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, 1), 204);
    }
    agent.terminate();
    // As an older version's claims leave them: rejected, with its words in the clear, and counted.
    let older = Connection::open(agent.db()).unwrap();
    older
        .execute_batch(
            "BEGIN; UPDATE messages SET status = 4, answer_at_ms = 1, answer_text = NULL;
             UPDATE summary SET status = 4; COMMIT",
        )
        .unwrap();
    drop(older);
    server.start();
    let replay = agent.cli(&["replay", "--rejected"]);
    assert_eq!(replay.code(), Some(0), "{replay:?}");
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_takes_no_write_lets_nothing_overtake_what_waits() {
    use rustix::process::{Pid, Resource, getrlimit, prlimit};
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let backlog = Backlog::leave(&mut app);
    let pid = Pid::from_raw(agent.pid() as i32);
    let unlimited = getrlimit(Resource::Fsize);
    let mut limited = unlimited;
    limited.current = Some(fs::metadata(format!("{}-wal", agent.db().display())).unwrap().len());
    prlimit(pid, Resource::Fsize, limited).unwrap();
    server.start();
    wait_until("the server is seen again", PATIENCE, || ready(&agent)["server"]["connection"] == "available");
    // The store is opened again now and then, and fails again: the rule is the same in every state.
    let until = std::time::Instant::now() + Duration::from_secs(7);
    let mut passed = 0;
    while std::time::Instant::now() < until {
        for write in backlog.conflicting() {
            assert_error(&app.send(write).unwrap(), 503);
        }
        let other = uuid7();
        passed += u32::from(app.send(create(&other)).unwrap().status == 201);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(passed > 10, "a write without a conflict does not pass: {passed}");
    for id in [&backlog.updated, &backlog.deleted] {
        assert_eq!(server.sequence_for(id).len(), 0, "a later write reached the server first");
    }
    prlimit(pid, Resource::Fsize, unlimited).unwrap();
    agent.wait_until_delivered();
    app.acknowledged(update(&backlog.updated, 2), 204);
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

/// Three agents of one store, whose key is changed one agent at a time, and writers that send each write to another of
/// them while the server comes and goes: the documented way to a new key.
#[test]
fn a_key_rotation_with_three_agents_lets_nothing_overtake() {
    const WRITERS: usize = 3;
    let server = FakeOpik::start_new();
    let store = Home::new();
    let db = store.db().display().to_string();
    let start = || {
        let home = Home::new();
        configure(&home, Some(KEYS[0]), None);
        Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &db).home(home).start()
    };
    let mut agents: Vec<Agent> = (0..3).map(|_| start()).collect();
    let urls: Vec<String> = agents.iter().map(Agent::url).collect();
    let ledger = ClientLedger::new();
    let (stop, sent, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for writer in 0..WRITERS {
            let (urls, ledger, stop, sent, refused) = (&urls, &ledger, &stop, &sent, &refused);
            threads.spawn(move || {
                let mut apps: Vec<Told<'_>> = urls.iter().map(|url| Told::new(url, ledger)).collect();
                let mut turn = writer;
                // As an SDK does: what is refused, or not answered because nobody listens, is sent again.
                let mut write = |request: Request| {
                    while !stop.load(Ordering::Relaxed) {
                        turn = turn.wrapping_mul(7).wrapping_add(3);
                        let at = turn % apps.len();
                        sent.fetch_add(1, Ordering::Relaxed);
                        match apps[at].try_send(&request) {
                            Ok(answer) if answer.status < 300 => return true,
                            Ok(_) => refused.fetch_add(1, Ordering::Relaxed),
                            Err(_) => 0,
                        };
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    false
                };
                while !stop.load(Ordering::Relaxed) {
                    let (kept, dropped) = (uuid7(), uuid7());
                    let done = write(create(&kept)) && write(create(&dropped)) && write(delete(&dropped));
                    if !(done && (1..6).all(|n| write(update(&kept, n)))) {
                        break;
                    }
                }
            });
        }
        let outage = |server: &FakeOpik| {
            server.stop();
            std::thread::sleep(Duration::from_millis(700));
            server.start();
            std::thread::sleep(Duration::from_millis(700));
        };
        outage(&server);
        for agent in &mut agents {
            // One after another: until the last of them has it, the others have the old key only.
            server.stop();
            std::thread::sleep(Duration::from_millis(300));
            agent.terminate();
            configure(agent.home(), Some(KEYS[1]), Some(KEYS[0]));
            agent.restart_on_same_port();
            std::thread::sleep(Duration::from_millis(300));
            server.start();
            std::thread::sleep(Duration::from_millis(800));
            outage(&server);
        }
        stop.store(true, Ordering::Relaxed);
    });
    wait_until("all is delivered", PATIENCE, || ready(&agents[0])["store"]["waiting"] == 0);
    let differences = server.differences(&ledger);
    println!(
        "{} writes sent, {} refused; {} differences to what clients were told about {} entities",
        sent.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
        differences.len(),
        ledger.entities().len()
    );
    let shown: Vec<&str> = differences.iter().take(10).map(String::as_str).collect();
    assert!(differences.is_empty(), "{} overtakings:\n{}", differences.len(), shown.join("\n"));
}

fn otlp(trace: u8, span: u8) -> Request {
    let (trace, span) = (format!("{trace:02x}").repeat(16), format!("{span:02x}").repeat(8));
    let span =
        json!({ "traceId": trace, "spanId": span, "name": "s", "startTimeUnixNano": "1", "endTimeUnixNano": "2" });
    let body = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [span] }] }] });
    Request::new("POST", "/v1/private/otel/v1/traces").json(&body)
}

fn upload_start(url: &str, entity: &str) -> Request {
    let path = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("{url}/"));
    Request::new("POST", "/v1/private/attachment/upload-start").json(&json!({
        "file_name": "a.pdf", "num_of_file_parts": 1, "mime_type": "application/pdf", "project_name": "demo",
        "entity_type": "trace", "entity_id": entity, "path": path,
    }))
}

fn upload(entity: &str) -> Request {
    let path = format!(
        "/v1/private/attachment/upload?file_name=a.pdf&mime_type=application/pdf&entity_type=trace&entity_id={entity}"
    );
    Request::new("PUT", &path).bytes(b"a file")
}

fn deletion_by_filter(dataset: &str) -> Request {
    let filters = json!([{ "field": "source", "operator": "=", "value": "sdk" }]);
    Request::new("POST", "/v1/private/datasets/items/delete")
        .json(&json!({ "dataset_id": dataset, "filters": filters }))
}

#[test]
fn spans_files_and_deletions_by_filter_overtake_nothing_either() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let mut agent = Agent::builder(&server.url()).impatient().home(home).start();
    let ledger = ClientLedger::new();
    let backlog = Backlog::leave(&mut Told::new(&agent.url(), &ledger));
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&otlp(7, 1)).status, 200);
    agent.terminate();
    configure(agent.home(), Some(KEYS[1]), None);
    server.start();
    agent.restart_on_same_port();
    wait_until_usable(&agent, false);
    let mut client = Client::new(&agent.url());
    let dataset = uuid7();
    for write in [
        otlp(7, 2),
        upload_start(&server.url(), &backlog.updated),
        upload(&backlog.updated),
        upload(&backlog.deleted),
        deletion_by_filter(&dataset),
    ] {
        assert_refused(&client.expect(&write));
    }
    // The same about what nothing waits for.
    for write in [otlp(8, 1), upload_start(&server.url(), &uuid7()), upload(&uuid7())] {
        let answer = client.expect(&write);
        assert!(answer.status < 300, "{} {}: {}", write.method, write.path, answer.text());
    }
}

#[test]
fn the_backlog_of_another_server_refuses_nothing() {
    let (first, second) = (FakeOpik::new_stopped(), FakeOpik::start_new());
    let home = Home::new();
    configure(&home, Some(KEYS[0]), None);
    let mut agent = Agent::builder(&first.url()).impatient().home(home).start();
    let ledger = ClientLedger::new();
    let backlog = Backlog::leave(&mut Told::new(&agent.url(), &ledger));
    agent.terminate();
    configure(agent.home(), Some(KEYS[1]), None);
    let db = agent.db().display().to_string();
    let home = Home::new();
    configure(&home, Some(KEYS[1]), None);
    let other = Agent::builder(&second.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &db).home(home).start();
    wait_until_usable(&other, false);
    let mut client = Client::new(&other.url());
    assert_eq!(client.expect(&create(&backlog.updated)).status, 201);
    assert_eq!(client.expect(&delete(&backlog.deleted)).status, 204);
    assert_eq!(status(&other)["store"]["live_writes"], "passed_on");
}
