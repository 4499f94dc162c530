//! A full store: it is reported in every view, writes that it can't take are tried at the server, and messages that the
//! server refused do not keep live ones out.

use serde_json::{Value, json};

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{Told, assert_error, create, trace};

/// A body that does not get much smaller and shares no page with others.
fn large(id: &str) -> Request {
    let mut body = trace(id, "large");
    body["input"] = noise(60_000).into();
    Request::new("POST", "/v1/private/traces").json(&body)
}

fn large_update(id: &str) -> Request {
    Request::new("PATCH", &format!("/v1/private/traces/{id}")).json(&json!({ "output": noise(60_000) }))
}

/// An agent on a small store that pings once in ten minutes: what it knows of the server it has from sends.
fn patient(server: &FakeOpik) -> Agent {
    Agent::builder(&server.url())
        .env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "600")
        .env("OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", "1")
        .arg("--free-disk-reserve")
        .arg("0")
        .arg("--max-size")
        .arg("1MiB")
        .start()
}

/// Stores large messages until one is refused; returns the ids of those that are stored.
fn fill(app: &mut Told<'_>) -> Vec<String> {
    let mut stored = Vec::new();
    loop {
        let id = uuid7();
        match app.send(large(&id)).expect("an answer").status {
            201 => stored.push(id),
            503 => return stored,
            other => panic!("{other}"),
        }
        assert!(stored.len() < 100, "a mebibyte holds more than six");
    }
}

/// A failed send asks for one ping, half a second later; the next one comes in ten minutes.
fn wait_for_early_ping() {
    std::thread::sleep(std::time::Duration::from_millis(2000));
}

fn told(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/status.json").json()
}

#[test]
fn a_client_is_not_refused_once_the_server_is_back_however_rare_pings_are() {
    let server = FakeOpik::start_new();
    let agent = patient(&server);
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    app.acknowledged(create(&uuid7()), 201);
    server.stop();
    let stored = fill(&mut app);
    assert!(!stored.is_empty());
    wait_for_early_ping();
    server.start();
    assert_eq!(told(&agent)["server"]["connection"], "unavailable", "a ping has found the server: nothing is shown");

    let answer = app.send(large_update(&stored[0])).expect("an answer");
    assert_error(&answer, 503);
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    assert!(answer.text().contains("earlier"), "the reason is not named: {}", answer.text());

    app.acknowledged(large(&uuid7()), 201);
    wait_until("the agent has learnt from it that the server is there", PATIENCE, || {
        told(&agent)["server"]["connection"] == "available"
    });
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_no_update_before_create();
}

/// The value of a sample of `/metrics`.
fn metric(agent: &Agent, name: &str) -> f64 {
    let text = Client::new(&agent.origin()).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

#[test]
fn refused_writes_are_reported_in_every_view() {
    let server = FakeOpik::new_stopped();
    let mut agent = patient(&server);
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    assert_eq!(told(&agent)["store"]["full"], Value::Null);
    assert_eq!(metric(&agent, "opik_offline_store_full"), 0.0);
    fill(&mut app);
    for _ in 1..93 {
        let answer = app.send(large(&uuid7())).expect("an answer");
        assert_error(&answer, 503);
        assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    }
    wait_until("a look is new", PATIENCE, || told(&agent)["store"]["full"]["refused_writes"] == 93);
    let store = &told(&agent)["store"];
    assert_eq!(store["usable"], true, "a full store still delivers");
    assert_eq!(store["full"]["limit"], "max_size", "{store}");
    assert!(store["full"]["since_ms"].as_i64().is_some_and(|since| since > 0), "{store}");
    assert_eq!(store["refused_writes"], 93, "{store}");
    assert!(store["full"]["remedies"].to_string().contains("opik-offline replay"), "{store}");

    let page = Client::new(&agent.origin()).get("/").text();
    assert!(page.contains("The store is full") && page.contains("93"), "{page}");
    assert_eq!(metric(&agent, "opik_offline_store_full"), 1.0);
    assert_eq!(metric(&agent, "opik_offline_store_refused_total{limit=\"max_size\"}"), 93.0);
    let status = agent.cli(&["status"]).stdout;
    assert!(status.contains("full") && status.contains("93 writes were refused"), "{status}");
    assert!(status.contains("opik-offline replay --db"), "no command that can be pasted: {status}");
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["store"]["full"]["refused_writes"], 93, "{status}");
    let health = agent.cli(&["healthcheck"]);
    assert!(health.stdout.contains("its store is full"), "{}", health.stdout);
    assert_ne!(health.code(), Some(0), "a full store is healthy");
    let log = agent.stderr();
    assert_eq!(log.matches("the message store is full").count(), 1, "not once: {log}");

    // Without an agent the command reads the store itself, with the limit of its own settings.
    assert!(agent.terminate().success());
    assert_eq!(
        agent.stderr().matches("93 writes were refused").count(),
        1,
        "the end does not say it: {}",
        agent.stderr()
    );
    let home = agent.home();
    let limited = |args: &[&str]| {
        let mut command = home.command(env!("CARGO_BIN_EXE_opik-offline"));
        command.args(args).arg("--db").arg(home.db()).args(["--upstream", &server.url()]);
        crate::support::process::run(command.env("OPIK_OFFLINE_FREE_DISK_RESERVE", "4096TiB"))
    };
    let status = limited(&["status"]).stdout;
    assert!(status.contains("the store is full and takes no more (since "), "{status}");
    assert!(status.contains("93 writes were refused"), "{status}");
    let health = limited(&["healthcheck"]);
    assert!(health.stdout.contains("it is full since 20"), "{}", health.stdout);
    assert_ne!(health.code(), Some(0), "{}", health.stdout);

    // It ends as messages are delivered, and that is reported once.
    agent.restart_on_same_port();
    let mut app = Told::new(&agent.url(), &ledger);
    fill(&mut app);
    server.start();
    app.acknowledged(large(&uuid7()), 201);
    agent.wait_until_delivered();
    wait_until("the state ends", PATIENCE, || told(&agent)["store"]["full"].is_null());
    let said = || agent.stderr().matches("the message store takes messages again").count();
    wait_until("the end of the state is logged", PATIENCE, || said() > 0);
    assert_eq!(said(), 1, "{}", agent.stderr());
    assert_eq!(told(&agent)["store"]["refused_writes"], 94);
    server.assert_equals(&ledger);
}

#[test]
fn a_server_that_never_answers_is_tried_by_one_write_at_a_time() {
    let server = FakeOpik::start_new();
    let agent = patient(&server);
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    server.stop();
    fill(&mut app);
    let hanging = server.hang_all();
    server.start();
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let answer = Client::new(&agent.url()).expect(&large(&uuid7()));
                assert_error(&answer, 503);
                assert!(answer.header("Retry-After").is_some(), "{answer:?}");
            });
        }
    });
    assert!(began.elapsed().as_secs() < 30, "refused writes waited {:?} for a dead server", began.elapsed());
    let at_once = server.open_at_once(&crate::support::fake_opik::When::write());
    assert_eq!(at_once, 1, "{at_once} writes hung on it at once");
    // It answers again: the next write finds that out.
    hanging.clear();
    app.acknowledged(large(&uuid7()), 201);
    agent.wait_until_delivered();
}

#[test]
fn messages_that_the_server_refused_do_not_keep_live_ones_out() {
    for policy in ["refuse", "drop_oldest"] {
        let server = FakeOpik::start_new();
        let home = crate::support::agent::Home::new();
        let export = home.path().join("refused");
        let agent = Agent::builder(&server.url())
            .home(home)
            .impatient()
            .arg("--free-disk-reserve=0")
            .arg("--max-size=1MiB")
            .arg(&format!("--when-full={policy}"))
            .arg(&format!("--rejected-export={}", export.display()))
            .start();
        let mut app = Client::new(&agent.url());
        // A night of messages that the server does not take.
        server.stop();
        let refused: Vec<String> = (0..9).map(|_| uuid7()).collect();
        for id in &refused {
            assert_eq!(app.expect(&large(id)).status, 201);
        }
        let refusing = server.reject_ids(refused.clone());
        server.start();
        wait_until("they are rejected", PATIENCE, || told(&agent)["store"]["rejected"] == 9);
        assert!(told(&agent)["store"]["rejected_body_bytes"].as_u64().is_some_and(|bytes| bytes > 500_000));
        refusing.clear();

        server.stop();
        let live: Vec<String> = (0..3).map(|_| uuid7()).collect();
        for id in &live {
            let answer = app.expect(&large(id));
            assert_eq!(answer.status, 201, "{policy}: live protection has ended: {}", answer.text());
        }
        wait_until("a look is new", PATIENCE, || told(&agent)["store"]["rejected_dropped_messages"] != 0);
        let store = told(&agent)["store"].clone();
        let dropped = store["rejected_dropped_messages"].as_u64().expect("a count");
        assert_eq!(store["dropped_messages"], 0, "{policy}: live messages were dropped before rejected ones");
        assert_eq!(store["rejected"].as_u64().expect("a count") + dropped, 9, "{store}");
        assert_eq!(metric(&agent, "opik_offline_store_rejected_dropped_messages"), dropped as f64);
        assert!(agent.stderr().contains("rejected messages ("), "{}", agent.stderr());
        let status = agent.cli(&["status"]).stdout;
        assert!(status.contains("because rejected ones held more than rejected_share"), "{status}");

        // The oldest went first, each of them to the export, as `inspect` writes it.
        let mut lines = Vec::new();
        for entry in std::fs::read_dir(&export).expect("the folder was made") {
            let path = entry.expect("an entry").path();
            lines.extend(std::fs::read_to_string(path).expect("it can be read").lines().map(str::to_owned));
        }
        let mut exported: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str(line).expect("a document")).collect();
        exported.sort_by_key(|message| message["id"].as_i64());
        let ids: Vec<_> = exported.iter().map(|message| message["body"]["id"].as_str().expect("a body")).collect();
        assert_eq!(ids, refused[..ids.len()].iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ids.len() as u64, dropped);
        assert_eq!(exported[0]["answer"]["status"], 400, "{}", exported[0]);

        server.start();
        agent.wait_until_delivered();
        for id in &live {
            let kind = crate::support::fake_opik::check::Kind::Trace;
            assert!(server.entity("default", kind, id).is_some(), "{policy}: an acknowledged message is lost");
        }
    }
}

#[test]
fn every_write_without_room_is_tried_at_the_server() {
    let batch = || {
        let traces: Vec<Value> = (0..3).map(|_| trace(&uuid7(), &noise(30_000))).collect();
        Request::new("POST", "/v1/private/traces/batch").json(&json!({ "traces": traces }))
    };
    let deletion = || {
        let ids: Vec<String> = (0..2000).map(|_| uuid7()).collect();
        Request::new("POST", "/v1/private/traces/delete").json(&json!({ "ids": ids }))
    };
    let span = |trace: &str| {
        let time = "2026-03-01T04:00:16Z";
        let (id, name) = (uuid7(), noise(60_000));
        let body = json!({ "id": id, "trace_id": trace, "name": name, "start_time": time, "last_updated_at": time });
        Request::new("POST", "/v1/private/spans").json(&body)
    };
    type Make<'a> = &'a dyn Fn(&[String]) -> Request;
    let kinds: [(&str, Make<'_>, u16); 5] = [
        ("another workspace's", &|_| large(&uuid7()).header("Comet-Workspace", "other"), 201),
        ("a batch", &|_| batch(), 204),
        ("a span of a trace that waits", &|stored| span(&stored[0]), 201),
        // Nobody knows which of those that wait refer to them.
        ("a deletion", &|_| deletion(), 503),
        ("a change of what waits", &|stored| large_update(&stored[1]), 503),
    ];
    for (name, make, is_back) in kinds {
        let server = FakeOpik::start_new();
        let agent = patient(&server);
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        server.stop();
        let request = make(&fill(&mut app));
        let answer = app.client.expect(&request);
        assert_error(&answer, 503);
        assert!(answer.text().contains("store is full"), "{name}: {}", answer.text());
        wait_for_early_ping();
        server.start();
        let answer = app.client.expect(&request);
        assert_eq!(answer.status, is_back, "{name}: {}", answer.text());
    }
}
