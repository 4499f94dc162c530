//! A store that is full: it is seen wherever people look, what it can't take is tried at the server, and messages that the
//! server refused do not keep live ones out.

use serde_json::Value;

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
    Request::new("PATCH", &format!("/v1/private/traces/{id}")).json(&serde_json::json!({ "output": noise(60_000) }))
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
    // A failed send asks for one ping, half a second later; the next one comes in ten minutes.
    std::thread::sleep(std::time::Duration::from_millis(2500));
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
