//! `POST /-/flush`: a client that must know that its writes are on the server, and not only safe, waits for it.

use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request, Response};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

/// Asks as an SDK would, with the headers of its writes.
fn flush(agent: &Agent, query: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request::new("POST", &format!("/-/flush{query}"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    Client::new(&agent.origin()).send(&request).expect("an answer")
}

/// An agent that asks a server that is away once in a quarter of an hour: a wait for the next ping is seen.
fn patient(server: &FakeOpik) -> Agent {
    Agent::builder(&server.url()).env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "900").start()
}

fn is_there(server: &FakeOpik, workspace: &str, id: &str) -> bool {
    server.entity(workspace, Kind::Trace, id).is_some_and(|entity| entity.record.is_some())
}

#[test]
fn a_flush_returns_when_all_is_delivered_and_makes_the_agent_look_for_the_server_at_once() {
    let server = FakeOpik::new_stopped();
    let agent = patient(&server);
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger).in_workspace("mine");
    let ids: Vec<String> = (0..30).map(|_| uuid7()).collect();
    for id in &ids {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
    }
    let mine = [("Comet-Workspace", "mine")];
    let away = flush(&agent, "?timeout=300ms", &mine);
    assert_eq!(away.status, 504, "{}", away.text());
    let told = away.json();
    assert_eq!((&told["delivered"], &told["remaining"]), (&false.into(), &60.into()), "{told}");
    assert!(told["reason"].as_str().is_some_and(|reason| reason.contains("unavailable")), "{told}");

    let slow = server.script(When::write(), Then::Delay(Duration::from_millis(20)));
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| flush(&agent, "?timeout=30s", &mine));
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!flushing.is_finished(), "it returned while the server was away");
        server.start();
        let answer = flushing.join().expect("no panic");
        assert_eq!(answer.status, 200, "it waited for the ping that was due: {}", answer.text());
        assert_eq!(answer.json()["delivered"], true);
        assert!(ids.iter().all(|id| is_there(&server, "mine", id)), "it returned before all was delivered");
    });
    slow.clear();
    assert_eq!(flush(&agent, "", &mine).json()["remaining"], 0, "nothing waits");
    assert_eq!(agent.backlog(), 0);
    server.assert_order(&ledger);
}

#[test]
fn a_flush_waits_for_its_own_lane_and_for_what_was_accepted_before_it() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--forward-timeout").arg("1s").start();
    let ledger = ClientLedger::new();
    let mut other = Told::new(&agent.url(), &ledger).in_workspace("other");
    (0..20).for_each(|_| drop(other.acknowledged(create(&uuid7()), 201)));
    let mut app = Told::new(&agent.url(), &ledger).in_workspace("mine");
    let (before, after) = (uuid7(), uuid7());
    app.acknowledged(create(&before), 201);
    let _others = server.script(When::write().workspace("other"), Then::Hang);
    let later = server.script(When::ids([&*after]), Then::Hang);
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| flush(&agent, "?timeout=30s", &[("Comet-Workspace", "mine")]));
        std::thread::sleep(Duration::from_millis(300));
        app.acknowledged(create(&after), 201);
        server.start();
        let answer = flushing.join().expect("no panic");
        assert_eq!(answer.status, 200, "{}", answer.text());
    });
    assert!(is_there(&server, "mine", &before));
    assert!(later.hits() > 0 || !is_there(&server, "mine", &after), "it waited for what came later");
    let all = flush(&agent, "?timeout=200ms", &[]);
    assert_eq!(all.status, 504, "without headers it waits for every lane: {}", all.text());
    let nobody = flush(&agent, "?timeout=5s", &[("Comet-Workspace", "mine"), ("Authorization", "another key")]);
    assert_eq!(nobody.status, 200, "a lane without messages has nothing to wait for: {}", nobody.text());
}

#[test]
fn a_flush_tries_a_lane_that_waits_for_its_next_attempt_and_leaves_a_rate_limit_alone() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("10m").start();
    let ledger = ClientLedger::new();
    let (locked, limited) = (uuid7(), uuid7());
    Told::new(&agent.url(), &ledger).in_workspace("locked").acknowledged(create(&locked), 201);
    Told::new(&agent.url(), &ledger).in_workspace("limited").acknowledged(create(&limited), 201);
    let no_key = server.script(When::write().workspace("locked"), Then::status(401));
    let limit = server.script(When::write().workspace("limited"), Then::rate_limited(600));
    server.start();
    // The waits grow to ten minutes: after a few, a lane is held for long enough to tell.
    wait_until("the lanes are held", PATIENCE, || no_key.hits() >= 1 && limit.hits() >= 1);
    // Once as it came, and once joined: each kind of request has a limit of its own.
    wait_until("both ways of a single create are limited", PATIENCE, || limit.hits() >= 2);
    let tried = no_key.hits();
    let held = flush(&agent, "?timeout=1s", &[("Comet-Workspace", "locked")]);
    assert_eq!(held.status, 504, "{}", held.text());
    assert!(held.text().contains("401"), "it says why: {}", held.text());
    assert!(no_key.hits() > tried, "nothing was tried");
    no_key.clear();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(flush(&agent, "?timeout=30s", &[("Comet-Workspace", "locked")]).status, 200);
    let limited_flush = flush(&agent, "?timeout=1s", &[("Comet-Workspace", "limited")]);
    assert_eq!(limited_flush.status, 504, "{}", limited_flush.text());
    assert!(limited_flush.text().contains("429"), "{}", limited_flush.text());
    assert_eq!(limit.hits(), 2, "the server's own limit was not respected");
}

#[test]
fn a_flush_reports_rejections_and_requires_the_clients_key() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let ledger = ClientLedger::new();
    let bad = uuid7();
    Told::new(&agent.url(), &ledger).acknowledged(create(&bad), 201);
    let _refused = server.reject_ids([&*bad]);
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| flush(&agent, "?timeout=30s", &[]));
        std::thread::sleep(Duration::from_millis(300));
        server.start();
        let answer = flushing.join().expect("no panic");
        assert_eq!(answer.status, 422, "{}", answer.text());
        let told = answer.json();
        assert_eq!((&told["delivered"], &told["rejected"], &told["remaining"]), (&false.into(), &1.into(), &0.into()));
    });
    for (headers, query, status) in [
        (&[("Origin", "http://evil.example")][..], "", 403),
        (&[("Origin", "null")], "", 403),
        (&[], "?timeout=soon", 400),
        (&[], "?until=now", 400),
    ] {
        assert_eq!(flush(&agent, query, headers).status, status, "{headers:?} {query}");
    }
    let get = Client::new(&agent.origin()).send(&Request::new("GET", "/-/flush")).unwrap();
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    let guarded = Agent::builder(&server.url()).env("OPIK_OFFLINE_INTAKE_TOKEN", "secret").start();
    assert_eq!(flush(&guarded, "", &[]).status, 401);
    assert_eq!(flush(&guarded, "", &[("X-Opik-Offline-Token", "secret")]).status, 200);
}

#[test]
fn flushes_are_bounded_in_number_and_end_with_the_agent() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::start(&server);
    let ledger = ClientLedger::new();
    Told::new(&agent.url(), &ledger).acknowledged(create(&uuid7()), 201);
    let origin = agent.origin();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..80)
            .map(|_| {
                let origin = &origin;
                scope.spawn(move || {
                    Client::new(origin).send(&Request::new("POST", "/-/flush?timeout=10m")).map(|answer| answer.status)
                })
            })
            .collect();
        wait_until("those beyond the bound are refused", PATIENCE, || {
            waiting.iter().filter(|waiting| waiting.is_finished()).count() >= 16
        });
        assert!(agent.terminate().success());
        let answers: Vec<u16> =
            waiting.into_iter().map(|waiting| waiting.join().expect("no panic").expect("an answer")).collect();
        let count = |status| answers.iter().filter(|answer| **answer == status).count();
        assert_eq!((count(503), count(504)), (16, 64), "{answers:?}");
    });
}
