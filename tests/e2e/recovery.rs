//! The server is back: the agent finds it soon, without traffic and without a setting, and nothing that an outage left
//! behind delays the delivery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use opik_offline::delivery::pacing::PaceSettings;
use opik_offline::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request as StoredRequest, Server};
use opik_offline::monitor::connection::Connection;
use opik_offline::monitor::probing::FIRST_WAIT;
use opik_offline::monitor::{MonitorSettings, STEADY_AFTER};
use opik_offline::replay::{LEASE_TIME_TO_LIVE, ReplayManager, ReplaySettings};
use opik_offline::shutdown::Shutdown;
use opik_offline::store::slot::StoreSlot;
use opik_offline::store::{
    Browse as _, Claim, ClaimLimits, Filter, Hold, Intake as _, LastAnswer, Outcome, Owner, Store, now_ms,
};
use opik_offline::telemetry::metrics::Metrics;
use opik_offline::upstream::{Met, Upstream, UpstreamSettings};

use crate::model_store::ModelStore;
use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{Told, assert_error, create, trace};

/// An agent whose ping interval is the default.
fn agent(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url())
}

fn pings() -> When {
    When::path("/is-alive/ping")
}

fn wait_until_connection(agent: &Agent, state: &str) {
    wait_until(&format!("the server counts as {state}"), PATIENCE, || {
        Client::new(&agent.origin()).get("/-/status.json").json()["server"]["connection"] == state
    });
}

#[test]
fn a_server_that_returns_behind_its_front_is_found_without_traffic() {
    const FAILED: usize = 9;
    let server = FakeOpik::start_new();
    let agent = agent(&server).start();
    wait_until_connection(&agent, "available");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let front = server.script(When::write(), Then::status(502));
    let failing = server.script_times(FAILED, pings(), Then::status(502));
    app.acknowledged(create(&uuid7()), 201);
    assert!(front.hits() > 0);
    // With ten seconds between pings this would take longer than a test waits.
    wait_until("the front is asked often enough", PATIENCE, || failing.hits() == FAILED);
    front.clear();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_no_violations();
}

#[test]
fn writes_in_an_outage_cause_no_more_than_a_few_pings() {
    const WRITES: usize = 300;
    let server = FakeOpik::start_new();
    let front = server.script(When::any(), Then::status(502));
    let agent = agent(&server).start();
    wait_until_connection(&agent, "unavailable");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let sent = || server.requests_to("GET", "/is-alive/ping").len();
    let (started, before) = (Instant::now(), sent());
    for _ in 0..WRITES {
        app.acknowledged(create(&uuid7()), 201);
    }
    // One at a time, and none sooner than half of the shortest wait after the one before.
    let (caused, passed) = (sent() - before, started.elapsed());
    assert!(FIRST_WAIT / 2 * caused as u32 <= passed + FIRST_WAIT, "{caused} pings, {WRITES} writes in {passed:?}");
    front.clear();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

#[test]
fn an_interval_that_was_set_is_not_shortened_by_writes() {
    let server = FakeOpik::start_new();
    server.script(When::any(), Then::status(502));
    let agent = agent(&server).env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "600").start();
    wait_until_connection(&agent, "unavailable");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for _ in 0..200 {
        app.acknowledged(create(&uuid7()), 201);
    }
    assert_eq!(server.requests_to("GET", "/is-alive/ping").len(), 1);
}

#[test]
fn a_body_too_large_to_store_is_tried_once_the_server_is_back_however_rare_pings_are() {
    let server = FakeOpik::new_stopped();
    let agent =
        agent(&server).env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "600").arg("--max-body-size").arg("100KiB").start();
    wait_until_connection(&agent, "unavailable");
    let (id, mut client) = (uuid7(), Client::new(&agent.url()));
    let mut body = trace(&id, "large");
    body["input"] = noise(200_000).into();
    let large = Request::new("POST", "/v1/private/traces").json(&body);
    assert_error(&client.expect(&large), 413);
    server.start();
    assert_eq!(client.expect(&large).status, 201);
    assert_eq!(server.count("default", Kind::Trace), 1);
    assert_eq!(agent.backlog(), 0);
}

fn message(server: &FakeOpik, workspace: &str) -> Message {
    Message {
        lane: Lane {
            server: Some(Server::new(&server.url())),
            workspace: Some(workspace.to_owned()),
            ..Lane::default()
        },
        message_type: MessageType::CreateTrace,
        request: StoredRequest {
            method: "POST".into(),
            path: "v1/private/traces".into(),
            headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
            body: Body::new(trace(&uuid7(), "chat").to_string(), Encoding::Identity),
        },
        touches: Vec::new(),
        items: 1,
        project: None,
        accepted_at_ms: 1,
    }
}

/// Defers the message of each lane for an answer with the first status, and holds the lane for one with the second.
fn hold_lanes(store: &dyn Store, lanes: &[(&str, Option<u16>, Option<u16>)]) {
    let lease = store.acquire(&Owner::this_process("agent"), LEASE_TIME_TO_LIVE).unwrap();
    let later = now_ms() + 3_600_000;
    for work in store.lanes(&Filter::default(), now_ms()).unwrap() {
        let limits = ClaimLimits { messages_max: 1, bytes_max: 1 << 20 };
        let Claim::Taken(claimed) = store.claim(&lease, work.id, &Filter::default(), limits, now_ms()).unwrap() else {
            panic!("a small message")
        };
        let workspace = work.lane.workspace.as_deref();
        let (_, answered, status) =
            lanes.iter().find(|(name, ..)| Some(*name) == workspace).expect("a lane of this test");
        let answer = Some(LastAnswer { status: *answered, text: "test".to_owned(), at_ms: now_ms() });
        let deferred = Outcome::Failed { next_attempt_at_ms: later, counts: false, answer };
        store.settle(&lease, &[(claimed[0].id, deferred)]).unwrap();
        let hold = Hold { until_ms: later, reason: "test".to_owned(), probe: true, status: *status, bucket: None };
        store.hold(&lease, work.id, Some(&hold)).unwrap();
    }
    store.release(&lease).unwrap();
}

#[test]
fn the_end_of_an_outage_ends_the_waits_that_it_caused_and_no_others() {
    let lanes = [
        ("silent", None, None),
        ("gateway", Some(502), Some(502)),
        ("key", None, Some(401)),
        ("error", None, Some(500)),
        ("poison", Some(500), None),
    ];
    let server = FakeOpik::start_new();
    let store = Arc::new(ModelStore::default());
    for (workspace, ..) in lanes {
        store.register(&[message(&server, workspace)]).unwrap();
    }
    hold_lanes(store.as_ref(), &lanes);
    let slot = StoreSlot::holding(store.clone());
    let upstream = Upstream::new(&UpstreamSettings::plain(server.url(), PATIENCE));
    let hour = Duration::from_secs(3600);
    let connection =
        Connection::new(MonitorSettings { ping_interval: hour, is_interval_set: true, check_timeout: hour });
    let started = Instant::now();
    connection.pinged(Ok(()), None, started);
    connection.pinged(Err(Met::Nobody), None, started + STEADY_AFTER);
    connection.pinged(Ok(()), None, started + STEADY_AFTER);
    let (metrics, shutdown) = (Metrics::default(), Shutdown::new());
    let memory = opik_offline::memory::Budget::new(64 << 20);
    let manager = ReplayManager {
        slot: &slot,
        upstream: &upstream,
        connection: &connection,
        settings: ReplaySettings {
            filter: Filter::default(),
            limit: None,
            pace: PaceSettings::default(),
            dial: None,
            retry_interval: hour,
            attempts_max: 10,
        },
        tick_interval: Duration::from_millis(20),
        metrics: &metrics,
        memory: &memory,
        workers_max: 64,
        shutdown: &shutdown,
        owner: Owner::this_process("agent"),
        rekey: None,
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| manager.run());
        wait_until("messages that waited for an absent server are delivered", PATIENCE, || {
            store.backlog(&Filter::default()).unwrap().waiting() == 3
        });
        shutdown.request();
        connection.wake();
        running.join().expect("no panic");
    });
    for (workspace, expected) in [("silent", 1), ("gateway", 1), ("key", 0), ("error", 0), ("poison", 0)] {
        assert_eq!(server.count(workspace, Kind::Trace), expected, "{workspace}");
    }
}
