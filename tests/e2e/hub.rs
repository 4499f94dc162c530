//! A hub: an agent behind agents. An answer to an application stays true through two hops, whichever of them is away.
//!
//! `OPIK_OFFLINE_HUB_KILLS=SEED:KILLS:EDGES` makes the sweep larger or repeats a run; it is small by default.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::attachments::{begin, bytes, put, wait_for_files};
use crate::durability::Dice;
use crate::support::agent::{Agent, AgentBuilder, Home};
use crate::support::fake_opik::attachments::sha256;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer as OpikAnswer, FakeOpik, FilesIn, Received, Then, When};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::sdk::SdkApp;
use crate::support::{PATIENCE, noise, reserve_port, uuid7, wait_until};
use crate::writes::{Told, assert_error, create, create_batch, score, span, trace, update};

const TOKEN: &str = "the-hubs-made-up-token-4711";

fn hub(server: &FakeOpik) -> AgentBuilder {
    let builder = Agent::builder(&server.url()).impatient().arg("--hub").arg("--retry-interval").arg("1s");
    builder.env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN)
}

fn edge(hub_url: &str) -> AgentBuilder {
    let builder = Agent::builder(hub_url).impatient().arg("--retry-interval").arg("1s");
    builder.env("OPIK_OFFLINE_HUB_TOKEN", TOKEN)
}

fn both(server: &FakeOpik) -> (Agent, Agent) {
    let hub = hub(server).start();
    let edge = edge(&hub.url()).start();
    wait_until_available(&edge);
    (hub, edge)
}

fn ready(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/ready").json()
}

#[track_caller]
fn wait_until_available(agent: &Agent) {
    wait_until("the agent has a server", PATIENCE, || ready(agent)["server"]["connection"] == "available");
}

/// Waits until nothing waits, as the agent itself sees it, for as long as it becomes less.
#[track_caller]
fn wait_until_empty(agent: &Agent) {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    let mut is_empty = false;
    while !is_empty {
        let waiting = ready(agent)["store"]["waiting"].as_u64().unwrap_or(u64::MAX);
        if waiting < least {
            (least, since) = (waiting, Instant::now());
        }
        is_empty = waiting == 0;
        assert!(
            since.elapsed() < PATIENCE,
            "{least} messages wait at the agent, and none was delivered for {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn metric(agent: &Agent, name: &str) -> f64 {
    let text = Client::new(&agent.origin()).with_header("x-opik-offline-token", TOKEN).get("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Runs a command on an edge's store with the hub's token.
fn with_token(agent: &Agent, args: &[&str], hub_url: &str) -> crate::support::process::Output {
    let mut command = agent.home().command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(args).arg("--db").arg(agent.db()).args(["--upstream", hub_url]);
    crate::support::process::run(command.env("OPIK_OFFLINE_HUB_TOKEN", TOKEN))
}

/// A port whose connections lead to another one, which may change.
struct Relay {
    port: u16,
    target: Arc<AtomicU16>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU16::new(target)));
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (to, connections) = (target.clone(), open.clone());
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to.load(Ordering::Relaxed))) else { continue };
                connections.lock().expect("no panic").push(client.try_clone().unwrap());
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { port, target, open }
    }

    /// Leads elsewhere from now on; open connections end.
    fn lead_to(&self, target: u16) {
        self.target.store(target, Ordering::Relaxed);
        for connection in self.open.lock().expect("no panic").drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api", self.port)
    }
}

/// Writes of every kind about one trace.
fn work(app: &mut Told<'_>, n: u64) {
    let id = uuid7();
    app.acknowledged(create(&id), 201);
    app.acknowledged(span(&uuid7(), &id), 201);
    app.acknowledged(update(&id, n), 204);
    app.acknowledged(score(&id, n as f64), 204);
    let ids: Vec<String> = (0..3).map(|_| uuid7()).collect();
    app.acknowledged(create_batch(&ids).gzip(), 204);
}

fn otlp(trace: u8) -> Request {
    let span =
        json!({ "traceId": format!("{trace:02x}").repeat(16), "spanId": "00f067aa0ba902b7", "name": "s", "kind": 1 });
    let spans = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [span] }] }] });
    Request::new("POST", "/v1/private/otel/v1/traces").json(&spans)
}

#[test]
fn an_outage_behind_the_hub_leaves_nothing_at_the_edge_and_costs_nothing() {
    let server = FakeOpik::start_new();
    let (hub, edge) = both(&server);
    let ledger = ClientLedger::new();
    let mut app = Told::new(&edge.url(), &ledger);
    work(&mut app, 1);
    server.stop();
    (2..12).for_each(|n| work(&mut app, n));
    // The edge's pod may go now.
    wait_until_empty(&edge);
    assert!(ready(&hub)["store"]["waiting"].as_u64().is_some_and(|waiting| waiting >= 50), "the hub has the backlog");
    server.start();
    wait_until_empty(&hub);
    work(&mut app, 12);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
}

#[test]
fn files_and_otlp_spans_pass_both_hops_in_an_outage_of_either() {
    for files_in in [FilesIn::Itself, FilesIn::ObjectStore] {
        let server = FakeOpik::start_new();
        server.keep_files_in(files_in);
        let (mut hub, edge) = both(&server);
        let key = "made-up-key-0123456789";
        let mut client = Client::new(&edge.url()).with_header("Authorization", key);
        let mut sent = BTreeMap::new();
        for (n, phase) in ["online", "server away", "hub away"].into_iter().enumerate() {
            match phase {
                "server away" => server.stop(),
                "hub away" => hub.kill9(),
                _ => {}
            }
            for size in [10, (6 << 20) + 1] {
                let (entity, name) = (uuid7(), format!("{phase} {size}.pdf"));
                let file = bytes(1 + n as u64 + size as u64, size);
                let path = begin(&mut client, &edge, &entity, &name, size);
                assert_eq!(client.post("/v1/private/traces", &trace(&entity, "t")).status, 201);
                assert_eq!(put(&mut client, &path, &file).unwrap().status, 204);
                sent.insert((entity, name), sha256(&file));
            }
            let answer = client.expect(&otlp(0x10 + n as u8));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        hub.restart_on_same_port();
        server.start();
        wait_for_files(&server, &sent);
        wait_until_empty(&edge);
        wait_until_empty(&hub);
        assert_eq!(server.otel_spans("default").len(), 3, "an OTLP span is lost");
        assert!(server.files().values().all(|file| file.after_entity), "a file overtook its trace");
    }
}

#[test]
fn the_python_sdk_loses_nothing_while_server_and_hub_are_away_in_turn() {
    let server = FakeOpik::start_new();
    let (mut hub, edge) = both(&server);
    let mut app = SdkApp::start("hub", &edge.url());
    let all = |app: &mut SdkApp| {
        for command in ["traces 6", "manual 3", "update", "scores", "attach 2"] {
            app.run(command);
        }
    };
    all(&mut app);
    app.flush();
    server.stop();
    all(&mut app);
    app.flush();
    hub.kill9();
    all(&mut app);
    app.flush();
    hub.restart_on_same_port();
    server.start();
    app.wait_until_all_on(&server);
    wait_until_empty(&edge);
    wait_until_empty(&hub);
    app.quit();
    app.assert_all_on(&server);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
}

#[test]
fn a_refusal_of_the_hub_itself_stays_at_the_edge_and_is_delivered_later() {
    // A hub that takes a few messages, and none of more than a kilobyte.
    let server = FakeOpik::start_new();
    let hub = hub(&server).arg("--max-size").arg("1MiB").arg("--max-body-size").arg("1KiB").start();
    let edge = edge(&hub.url()).start();
    wait_until_available(&edge);
    server.stop();
    wait_until("the hub has lost its server", PATIENCE, || ready(&hub)["server"]["connection"] == "unavailable");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&edge.url(), &ledger);
    let ids: Vec<String> = (0..40).map(|_| uuid7()).collect();
    for (n, id) in ids.iter().enumerate() {
        let large = json!({ "id": id, "name": noise(4000), "start_time": "2026-03-01T04:00:16Z" });
        app.acknowledged(Request::new("POST", "/v1/private/traces").json(&large), 201);
        app.acknowledged(update(id, n as u64), 204);
    }
    let own = Client::new(&hub.url()).with_header("x-opik-offline-token", TOKEN).post(
        "/v1/private/traces",
        &json!({ "id": uuid7(), "name": noise(4000), "start_time": "2026-03-01T04:00:16Z" }),
    );
    assert_error(&own, 413);
    assert_eq!(own.header("x-opik-offline-answer"), Some("agent"), "an edge would take it for Opik's verdict");
    wait_until("the edge has tried several times", PATIENCE, || {
        metric(&edge, "opik_offline_replay_requests_total") >= 10.0
    });
    let status = edge.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["rejected"]["messages"], 0, "the hub's own refusal was treated as Opik's: {status}");
    server.start();
    wait_until_empty(&edge);
    wait_until_empty(&hub);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    assert_eq!(edge.cli(&["status", "--format", "json"]).json()["rejected"]["messages"], 0);
}

#[test]
fn a_refusal_of_opik_behind_the_hub_reaches_the_edges_client() {
    let server = FakeOpik::start_new();
    let (_hub, edge) = both(&server);
    let mut client = Client::new(&edge.url());
    for (status, name) in [(400, "bad"), (401, "locked"), (403, "closed"), (409, "there"), (422, "odd")] {
        let id = uuid7();
        let refused = server.script(When::ids([&*id]), Then::Answer(OpikAnswer::error(status, name)));
        let answer = client.expect(&create(&id));
        assert_error(&answer, status);
        assert_eq!(answer.header("x-opik-offline-answer"), None, "{status} is Opik's");
        refused.clear();
    }
    wait_until_empty(&edge);
    // Only a hub's mark is passed on.
    let marked = OpikAnswer::error(503, "resting").with("x-opik-offline-answer", "agent");
    let _shut = server.script(When::path("/v1/private/projects"), Then::Answer(marked));
    let answer = client.get("/v1/private/projects");
    assert_eq!((answer.status, answer.header("x-opik-offline-answer")), (503, None), "a read gets Opik's own answer");
}

#[test]
fn a_token_that_is_missing_or_wrong_costs_no_write_and_is_named() {
    let server = FakeOpik::start_new();
    let hub = hub(&server).start();
    let ledger = ClientLedger::new();
    for wrong in [None, Some("a-wrong-token-of-mine")] {
        let builder = Agent::builder(&hub.url()).impatient();
        let builder = wrong.into_iter().fold(builder, |builder, token| builder.env("OPIK_OFFLINE_HUB_TOKEN", token));
        let mut edge = builder.start();
        wait_until("the edge knows why", PATIENCE, || {
            ready(&edge)["server"]["reason"].as_str().is_some_and(|reason| reason.contains("OPIK_OFFLINE_HUB_TOKEN"))
        });
        work(&mut Told::new(&edge.url(), &ledger), 1);
        assert_eq!(ready(&edge)["store"]["waiting"], 5, "writes that the hub refuses are kept");
        let health = edge.cli(&["healthcheck"]);
        assert_eq!(health.code(), Some(5), "{}{}", health.stdout, health.stderr);
        assert!(health.stdout.contains("--hub-token-file"), "{}", health.stdout);
        // The same store with the right token, from a file.
        edge.terminate();
        let file = edge.home().path().join("hub-token");
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let path = file.display().to_string();
        let db = edge.db().display().to_string();
        let next = Agent::builder(&hub.url()).impatient().arg("--hub-token-file").arg(&path);
        let next = next.env("OPIK_OFFLINE_DB", &db).without_db().start();
        wait_until_empty(&next);
        assert!(!next.stderr().contains(TOKEN), "the token is in the log");
    }
    wait_until_empty(&hub);
    server.assert_equals(&ledger);
    for request in server.requests() {
        for name in ["x-opik-offline-token", "x-opik-offline-edge"] {
            assert_eq!(
                request.header(name),
                None,
                "{name} went beyond the hub, to {} {}",
                request.method,
                request.path
            );
        }
    }
    let unusable = Agent::builder(&hub.url()).arg("--hub-token-file").arg("/does/not/exist").refused();
    assert_eq!(unusable.code(), Some(2), "{}", unusable.stderr);
    assert!(
        unusable.stderr.contains("hub's token") && unusable.stderr.contains("/does/not/exist"),
        "{}",
        unusable.stderr
    );
}

#[test]
fn status_and_healthcheck_of_an_edge_see_both_hops_and_a_hub_sees_its_edges() {
    let server = FakeOpik::start_new();
    let (hub, edge) = both(&server);
    wait_until("the hub knows its edge", PATIENCE, || metric(&hub, "opik_offline_edges") == 1.0);
    assert_eq!(metric(&edge, "opik_offline_edges"), 0.0);
    let health = with_token(&edge, &["healthcheck", "--format", "json"], &hub.url());
    assert_eq!(health.code(), Some(0), "{}{}", health.stdout, health.stderr);
    let check = |health: &Value, name: &str| {
        let mut checks = health["checks"].as_array().unwrap().iter();
        checks.find(|check| check["name"] == name).cloned().unwrap_or_default()
    };
    let checks = health.json();
    assert!(check(&checks, "server")["text"].as_str().is_some_and(|text| text.contains("as a hub")), "{checks}");
    let behind = check(&checks, "hub's server");
    assert_eq!(behind["result"], "ok", "{checks}");
    assert!(behind["text"].as_str().is_some_and(|text| text.contains(&server.url())), "{checks}");

    server.stop();
    let mut client = Client::new(&edge.url());
    (0..3).for_each(|_| assert_eq!(client.expect(&create(&uuid7())).status, 201));
    wait_until("the edge sees the outage behind the hub", PATIENCE, || {
        let seen = &ready(&edge)["server"]["hub"];
        seen["connection"] == "unavailable" && seen["waiting"] == 3
    });
    let status = edge.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["server"]["connection"], "available", "the hub itself is there: {status}");
    assert_eq!(status["server"]["hub"]["server_url"], server.url(), "{status}");
    assert_eq!(status["server"]["hub"]["connection"], "unavailable", "{status}");
    let text = edge.cli(&["status"]).stdout;
    assert!(text.contains("behind it") && text.contains("3 messages wait there"), "{text}");
    let health = with_token(&edge, &["healthcheck", "--format", "json"], &hub.url());
    assert_eq!(health.code(), Some(0), "an outage that the hub bridges is not a failure: {}", health.stdout);
    assert_eq!(check(&health.json(), "hub's server")["result"], "warning", "{}", health.stdout);

    let status = hub.cli(&["status", "--format", "json"]).json();
    assert_eq!((&status["edges"]["known"], &status["edges"]["recent"]), (&json!(1), &json!(1)), "{status}");
    let seen = &status["edges"]["list"][0];
    assert_eq!(seen["version"], env!("CARGO_PKG_VERSION"), "{status}");
    assert!(seen["host"].as_str().is_some_and(|host| !host.is_empty()), "{status}");
    assert!(hub.cli(&["status"]).stdout.contains("1 known, 1 heard from"), "the edges are not shown");
    let page = Client::new(&hub.origin()).get("/-/").text();
    assert!(page.contains("1 edge heard from within 5 minutes"), "{page}");
}

#[test]
fn an_edge_that_lies_in_its_headers_changes_nothing_but_its_own_line() {
    let server = FakeOpik::start_new();
    let hub = hub(&server).start();
    let ping = |edge: &[u8], token: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", hub.port())).unwrap();
        let head = format!("GET /api/is-alive/ping HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", hub.port());
        let token = format!("x-opik-offline-token: {token}\r\n");
        let request =
            [head.as_bytes(), token.as_bytes(), b"X-Opik-Offline-Edge: ", edge, b"\r\nConnection: close\r\n\r\n"];
        std::io::Write::write_all(&mut stream, &request.concat()).unwrap();
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    assert!(
        ping(b"id=stranger; host=stranger", "no-token").contains(" 401 "),
        "a client without a token is not an edge"
    );
    let long = format!("id=long; host={}", "h".repeat(5000));
    for lie in [
        &b"id=a1; host=<script>alert(1)</script>; waiting=7"[..],
        b"id=a2; host=\x1b[2J\x1b[31m; version=\xff\xfe",
        b"id=a3; host=x; waiting=99999999999999999999999999",
        "id=a4; host=a\u{202e}b".as_bytes(),
        b"id=; host=nobody",
        long.as_bytes(),
    ] {
        let answer = ping(lie, TOKEN);
        // hyper refuses some of them; the others are answered like any ping.
        assert!(answer.contains(" 200 ") || answer.contains(" 400 "), "{lie:?}: {answer}");
    }
    (0..1200).for_each(|n| drop(ping(format!("id=flood{n}; host=flood{n}; waiting=1").as_bytes(), TOKEN)));
    assert!(metric(&hub, "opik_offline_edges") <= 1000.0, "edges take memory without a bound");
    let (status, page) = (hub.cli(&["status"]).stdout, Client::new(&hub.origin()).get("/-/").text());
    for text in [&status, &page] {
        assert!(!text.contains("<script>alert") && !text.contains('\u{202e}') && !text.contains("stranger"), "{text}");
    }
    assert!(!status.contains("\u{1b}[2J"), "{status}");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&hub.url(), &ledger);
    app.client = Client::new(&hub.url()).with_header("x-opik-offline-token", TOKEN);
    work(&mut app, 1);
    server.assert_equals(&ledger);
}

#[test]
fn a_key_that_opik_refuses_holds_its_lane_at_the_hub_and_no_other() {
    let server = FakeOpik::start_new();
    let (hub, edge) = both(&server);
    server.stop();
    let (bad, good) = (ClientLedger::new(), ClientLedger::new());
    let mut locked = Told::new(&edge.url(), &bad).in_workspace("locked");
    locked.client = Client::new(&edge.url()).with_header("Authorization", "an-expired-key-0123");
    let mut app = Told::new(&edge.url(), &good);
    app.client = Client::new(&edge.url()).with_header("Authorization", "a-valid-key-0123456");
    for n in 0..5 {
        work(&mut locked, n);
        work(&mut app, n);
    }
    wait_until_empty(&edge);
    let refused = server.script(When::write().authorization("an-expired-key-0123"), Then::status(401));
    server.start();
    wait_until("all but the locked lane is delivered", PATIENCE, || ready(&hub)["store"]["waiting"] == 25);
    let held = hub.cli(&["status", "--format", "json"]).json()["held"].clone();
    assert_eq!((&held[0]["workspace"], &held[0]["is_key_refused"]), (&json!("locked"), &json!(true)), "{held}");
    assert_eq!(server.count("locked", Kind::Trace), 0);
    refused.clear();
    wait_until_empty(&hub);
    server.assert_order(&bad);
    server.assert_order(&good);
    let keys: BTreeSet<_> = server
        .requests()
        .iter()
        .filter(|request| request.processed)
        .filter_map(|request| Some((request.workspace.clone(), request.header("Authorization")?.to_owned())))
        .collect();
    let expected = [("locked", "an-expired-key-0123"), ("default", "a-valid-key-0123456")];
    assert_eq!(
        keys,
        expected.map(|(workspace, key)| (workspace.to_owned(), key.to_owned())).into(),
        "keys were mixed up"
    );
}

#[test]
fn a_rate_limit_behind_the_hub_is_waited_for_by_the_hub() {
    let server = FakeOpik::start_new();
    let (hub, edge) = both(&server);
    let ledger = ClientLedger::new();
    let mut app = Told::new(&edge.url(), &ledger).in_workspace("limited");
    let limit = server.script_times(1, When::write().workspace("limited"), Then::rate_limited(2));
    (0..20).for_each(|n| work(&mut app, n));
    assert_eq!(limit.hits(), 1, "a limited bucket was asked again before its time");
    wait_until_empty(&edge);
    wait_until_empty(&hub);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

#[test]
fn a_flush_of_an_edge_means_that_opik_has_everything() {
    let server = FakeOpik::start_new();
    let (_hub, edge) = both(&server);
    server.stop();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&edge.url(), &ledger).in_workspace("mine");
    work(&mut app, 1);
    wait_until_empty(&edge);
    let flush = |timeout: &str| {
        let request = Request::new("POST", &format!("/-/flush?timeout={timeout}")).header("Comet-Workspace", "mine");
        Client::new(&edge.origin()).expect(&request)
    };
    let away = flush("500ms");
    assert_eq!(away.status, 504, "it counts as delivered what only the hub has: {}", away.text());
    let told = away.json();
    assert_eq!((&told["remaining"], &told["delivered"]), (&json!(5), &json!(false)), "{told}");
    assert!(told["reason"].as_str().is_some_and(|reason| reason.starts_with("at the hub: ")), "{told}");
    server.start();
    let done = flush("30s");
    assert_eq!(done.status, 200, "{}", done.text());
    server.assert_equals(&ledger);
}

#[test]
fn agents_in_a_ring_refuse_what_has_come_round() {
    let reservation = reserve_port(0).unwrap();
    let first = reservation.local_addr().unwrap().port();
    let third = Agent::builder(&format!("http://127.0.0.1:{first}/api")).impatient().start();
    let second = Agent::builder(&third.url()).impatient().start();
    drop(reservation);
    let first = Agent::builder(&second.url()).impatient().on_port(first).start();
    let ring = [&first, &second, &third];
    ring.into_iter().for_each(wait_until_available);
    for agent in ring {
        let mut client = Client::new(&agent.url());
        assert_error(&client.get("/v1/private/projects"), 508);
        let answer = client.expect(&create(&uuid7()));
        assert_error(&answer, 508);
        let flush = Client::new(&agent.origin()).expect(&Request::new("POST", "/-/flush?timeout=500ms"));
        assert_eq!(flush.status, 504, "nobody delivers in a ring: {}", flush.text());
    }
    assert!(ring.into_iter().all(|agent| ready(agent)["store"]["waiting"] == 0), "a write goes round and round");
}

#[test]
fn a_second_hub_on_a_store_is_refused_and_the_next_one_is_not() {
    let server = FakeOpik::start_new();
    let mut first = hub(&server).start();
    let second = |home: Home| {
        let db = first.db().display().to_string();
        hub(&server).home(home).env("OPIK_OFFLINE_DB", &db).without_db()
    };
    let refused = second(Home::new()).refused();
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("process {}", first.pid())), "{}", refused.stderr);
    assert!(refused.stderr.contains("another hub") && refused.stderr.contains("hint: "), "{}", refused.stderr);
    assert_eq!(ready(&first)["ready"], true, "the first continues");
    let other = hub(&server).start();
    assert_eq!(ready(&other)["ready"], true, "another store is another hub's");
    let next = second(Home::new());
    first.kill9();
    assert_eq!(ready(&next.start())["ready"], true, "a killed hub keeps its store locked");
}

#[test]
fn an_edge_goes_on_when_its_hub_becomes_an_opik_server_and_the_other_way_round() {
    let server = FakeOpik::start_new();
    let hub = hub(&server).start();
    let relay = Relay::to(hub.port());
    let edge = edge(&relay.url()).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&edge.url(), &ledger);
    let is_hub = |edge: &Agent| ready(edge)["server"]["hub"].is_object();
    for (target, expected) in [(hub.port(), true), (server.port(), false), (hub.port(), true)] {
        work(&mut app, 1);
        relay.lead_to(target);
        work(&mut app, 2);
        wait_until("the edge knows who its server is", PATIENCE, || is_hub(&edge) == expected);
        let known = server.requests().len();
        work(&mut app, 3);
        let named = |request: &Received| request.header("x-opik-offline-edge").is_some();
        assert!(!server.requests()[known..].iter().any(named), "an Opik server learns the name of this machine");
    }
    wait_until_empty(&edge);
    wait_until_empty(&hub);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

/// `OPIK_OFFLINE_OLDER=PATH` names the binary of an earlier version, which sends and marks nothing of this.
#[test]
fn a_hub_and_an_edge_of_different_versions_cost_nothing() {
    let Some(older) = std::env::var_os("OPIK_OFFLINE_OLDER").map(std::path::PathBuf::from) else {
        return println!("not run: OPIK_OFFLINE_OLDER names no binary of an earlier version");
    };
    for is_hub_older in [false, true] {
        let server = FakeOpik::start_new();
        let (mut hub, edge) = if is_hub_older {
            let hub = Agent::builder(&server.url()).impatient().program(&older).start();
            let edge = edge(&hub.url()).start();
            (hub, edge)
        } else {
            let hub = hub(&server).start();
            // It sends a token in the URL only.
            let url = format!("{}/-/token/{TOKEN}/api", hub.origin());
            let edge = Agent::builder(&url).impatient().program(&older).start();
            (hub, edge)
        };
        wait_until_available(&edge);
        let ledger = ClientLedger::new();
        let mut app = Told::new(&edge.url(), &ledger);
        work(&mut app, 1);
        server.stop();
        (2..6).for_each(|n| work(&mut app, n));
        wait_until_empty(&edge);
        hub.kill9();
        (6..10).for_each(|n| work(&mut app, n));
        hub.restart_on_same_port();
        server.start();
        wait_until_empty(&edge);
        wait_until_empty(&hub);
        server.assert_equals(&ledger);
        server.assert_order(&ledger);
        server.assert_no_violations();
        assert!(server.requests().iter().all(|request| request.header("x-opik-offline-token").is_none()));
    }
}

/// Sends a write until it is answered; an edge always answers.
fn insist(app: &mut Told<'_>, request: &Request) {
    loop {
        match app.try_send(request) {
            Ok(answer) => {
                assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
                return;
            }
            Err(why) if why.kind() == ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => app.client.disconnect(),
        }
    }
}

fn client_of(edge_url: &str, ledger: &ClientLedger, seed: u64, on: &AtomicBool) {
    let mut dice = Dice::new(seed);
    let workspaces = ["default", "team-a", "team-b"];
    let mut app = Told::new(edge_url, ledger).in_workspace(workspaces[dice.below(3) as usize]);
    let mut known: Vec<String> = Vec::new();
    let mut n = 0;
    while on.load(Ordering::Relaxed) {
        n += 1;
        let old = known.len().checked_sub(1 + dice.below(5) as usize).map(|at| known[at].clone());
        match (dice.below(6), old) {
            (0 | 1, _) | (_, None) => {
                let id = uuid7();
                insist(&mut app, &create(&id));
                known.push(id);
            }
            (2, _) => {
                let ids: Vec<String> = (0..=dice.below(4)).map(|_| uuid7()).collect();
                insist(&mut app, &create_batch(&ids).gzip());
                known.extend(ids);
            }
            (3, Some(id)) => insist(&mut app, &score(&id, n as f64)),
            (_, Some(id)) => insist(&mut app, &update(&id, n)),
        }
        std::thread::sleep(Duration::from_millis(5 + dice.below(20)));
    }
}

struct OffAtEnd<'a>(&'a AtomicBool);

impl Drop for OffAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_hub_that_is_killed_again_and_again_under_its_edges_loses_and_reorders_nothing() {
    let setting = std::env::var("OPIK_OFFLINE_HUB_KILLS").unwrap_or_else(|_| "1:5:3".into());
    let numbers: Vec<u64> = setting.split(':').map(|n| n.parse().expect("SEED:KILLS:EDGES")).collect();
    let &[seed, kills, edges] = &numbers[..] else { panic!("OPIK_OFFLINE_HUB_KILLS is SEED:KILLS:EDGES") };
    eprintln!("OPIK_OFFLINE_HUB_KILLS={setting}");
    let server = FakeOpik::start_new();
    let mut hub = hub(&server).start();
    let mut edges: Vec<Agent> = (0..edges).map(|_| edge(&hub.url()).start()).collect();
    let (ledger, on) = (ClientLedger::new(), AtomicBool::new(true));
    let urls: Vec<String> = edges.iter().map(Agent::url).collect();
    let mut dice = Dice::new(seed);
    let mut restarts = Vec::new();
    std::thread::scope(|scope| {
        let _ends = OffAtEnd(&on);
        for (n, url) in urls.iter().enumerate() {
            let (ledger, on) = (&ledger, &on);
            scope.spawn(move || client_of(url, ledger, seed * 1000 + n as u64, on));
        }
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(50 + dice.below(400)));
            match dice.below(4) {
                0 => server.stop(),
                1 | 2 => server.start(),
                _ => {
                    // A pod of an edge that is killed at random, and comes back with its store.
                    let one = dice.below(edges.len() as u64) as usize;
                    edges[one].kill9();
                    edges[one].restart_on_same_port();
                }
            }
            if dice.below(5) == 0 {
                let began = Instant::now();
                assert!(hub.terminate().success());
                hub.restart_on_same_port();
                restarts.push(began.elapsed());
            } else {
                hub.kill9();
                std::thread::sleep(Duration::from_millis(dice.below(300)));
                hub.restart_on_same_port();
            }
        }
    });
    server.clear_script();
    server.start();
    edges.iter().for_each(wait_until_empty);
    // A killed replay's lease expires, which takes 30 seconds.
    wait_until_empty(&hub);
    eprintln!(
        "{} entities, {} requests at the server; graceful restarts took {restarts:?}",
        ledger.entities().len(),
        server.requests().len()
    );
    assert!(ledger.entities().len() > edges.len(), "the clients got nothing done");
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
}
