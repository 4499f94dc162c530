//! The server goes wrong in every way it can while the application writes: what was acknowledged arrives, once the
//! server is well again, and in the order in which it was accepted.

use serde_json::json;

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, create_batch, score, update};

fn agent(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--forward-timeout").arg("500ms")
}

/// Asserts that the server has what the clients were told, in their order.
#[track_caller]
fn assert_kept(server: &FakeOpik, agent: &Agent, ledger: &ClientLedger) {
    agent.wait_until_delivered();
    server.assert_equals(ledger);
    server.assert_order(ledger);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
}

#[test]
fn a_write_that_time_can_heal_is_stored_acknowledged_and_delivered() {
    for (what, then) in [
        ("reset before it was read", Then::ResetUnread),
        ("processed, then reset", Then::ProcessThenReset),
        ("processed, then closed", Then::ProcessThenClose),
        ("never answered", Then::Hang),
        ("processed and never answered", Then::ProcessThenHang),
        ("answered half", Then::Truncate),
        ("429", Then::rate_limited(1)),
        ("429 without a time", Then::status(429)),
        ("500", Then::status(500)),
        ("502", Then::status(502)),
        ("503", Then::status(503)),
        ("504", Then::status(504)),
    ] {
        let server = FakeOpik::start_new();
        let agent = agent(&server).arg("--retry-interval").arg("1s").start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let (single, batch) = (uuid7(), [uuid7(), uuid7()]);
        // The ping stays well: only writes go wrong.
        let fault = server.script(When::path("/v1/private/*"), then);
        let created = app.acknowledged(create(&single), 201);
        let location = format!("{}/v1/private/traces/{single}", agent.url());
        assert_eq!(created.header("Location"), Some(&*location), "{what}");
        app.acknowledged(update(&single, 1), 204);
        app.acknowledged(create_batch(&batch), 204);
        app.acknowledged(update(&batch[0], 1), 204);
        app.acknowledged(update(&batch[0], 2), 204);
        app.acknowledged(score(&single, 0.5), 204);
        assert!(agent.backlog() > 0, "{what}: an acknowledged write is nowhere");
        fault.clear();
        eprintln!("after: {what}");
        assert_kept(&server, &agent, &ledger);
    }
}

#[test]
fn a_server_that_is_not_there_costs_nothing() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let ids: Vec<String> = (0..30).map(|_| uuid7()).collect();
    for id in &ids {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
        app.acknowledged(score(id, 0.1), 204);
        app.acknowledged(score(id, 0.9), 204);
        app.acknowledged(update(id, 2), 204);
    }
    assert_eq!(agent.backlog(), 150);
    server.start();
    assert_kept(&server, &agent, &ledger);
    server.assert_no_overlaps();
}

#[test]
fn an_update_that_was_stored_before_its_create_goes_after_it() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let ids: Vec<String> = (0..3).map(|_| uuid7()).collect();
    for id in &ids {
        app.acknowledged(update(id, 1), 204);
    }
    app.acknowledged(create_batch(&ids), 204);
    server.start();
    assert_kept(&server, &agent, &ledger);
    for id in &ids {
        let record = server.entity("default", Kind::Trace, id).unwrap().record.unwrap();
        assert_eq!((&record.fields["name"], &record.fields["output"]), (&json!("chat"), &json!({ "n": 1 })));
    }
}

#[test]
fn while_a_backlog_drains_only_what_would_overtake_it_waits() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let mut other = Told::new(&agent.url(), &ledger).in_workspace("other");
    let id = uuid7();
    app.acknowledged(create(&id), 201);

    // The replay is on its way with the create and gets no answer yet.
    let hold = server.script(When::ids([&*id]), Then::Hold);
    server.start();
    wait_until("the create is on its way", PATIENCE, || hold.hits() == 1);
    let second = uuid7();
    app.acknowledged(update(&id, 1), 204);
    app.acknowledged(create(&second), 201);
    assert_eq!(hold.hits(), 1, "the update went past its create");
    assert!(
        server.entity("default", Kind::Trace, &second).is_some(),
        "live traffic waits for what it does not concern"
    );
    assert_eq!(agent.backlog(), 2);

    let elsewhere = uuid7();
    other.acknowledged(create(&elsewhere), 201);
    assert_eq!(server.count("other", Kind::Trace), 1, "another lane is forwarded at once");
    hold.clear();
    assert_kept(&server, &agent, &ledger);
    server.assert_no_overlaps();

    // Once nothing waits, the lane is forwarded again.
    let live = uuid7();
    app.acknowledged(create(&live), 201);
    assert!(server.entity("default", Kind::Trace, &live).is_some());
}

#[test]
fn later_writes_wait_for_one_that_is_being_forwarded() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let id = uuid7();
    let hold = server.script(When::ids([&*id]), Then::Hold);
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| Told::new(&agent.url(), &ledger).acknowledged(create(&id), 201));
        wait_until("the create is on its way", PATIENCE, || hold.hits() == 1);
        // Its client is gone, and it still goes before the next one.
        let mut impatient = Client::new(&agent.url());
        drop(impatient.send_part(&update(&id, 7), update(&id, 7).body.len()).unwrap());
        impatient.disconnect();
        let updating = scope.spawn(|| Told::new(&agent.url(), &ledger).acknowledged(update(&id, 8), 204));
        let passing = uuid7();
        Told::new(&agent.url(), &ledger).acknowledged(create(&passing), 201);
        assert_eq!(hold.hits(), 1, "an update went past its create");
        hold.clear();
        creating.join().unwrap();
        updating.join().unwrap();
    });
    agent.wait_until_delivered();
    server.assert_no_update_before_create();
    server.assert_no_overlaps();
    assert_eq!(server.sequence_for(&id)[0].method, "POST");
}

#[test]
fn what_the_sdks_really_send_survives_the_store_byte_for_byte() {
    use crate::support::http::Request;
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let mut client =
        Client::new(&agent.url()).with_header("Authorization", "key").with_header("Comet-Workspace", "team");
    let id = uuid7();
    let body = format!(
        r#"{{"id": "{id}",  "start_time": "2026-03-01T04:00:16Z", "end_time": null,
            "input": {{"a": NaN, "b": [-Infinity, Infinity], "c": 123456789012345678901234567890, "d": "\ud83d", "e": 1e+22}}}}"#
    );
    let request = Request::new("POST", "/v1/private/traces?a=b%20c").header("X-Custom", "1").bytes(body.clone()).gzip();
    assert_eq!(client.expect(&request).status, 201);
    server.start();
    agent.wait_until_delivered();
    let arrived = &server.sequence_for(&id)[0];
    assert_eq!(&arrived.body[..], &request.body[..], "the body was written anew");
    assert_eq!((arrived.header("Content-Encoding"), arrived.header("X-Custom")), (Some("gzip"), Some("1")));
    assert_eq!((arrived.authorization.as_deref(), &*arrived.workspace), (Some("key"), "team"));
    assert_eq!(arrived.query.as_deref(), Some("a=b%20c"));
}

#[test]
fn a_create_without_an_id_is_not_doubled_by_its_repeat() {
    use crate::support::http::Request;
    let server = FakeOpik::start_new();
    let agent = agent(&server).start();
    let mut client = Client::new(&agent.url());
    let body = json!({ "name": "no id", "start_time": "2026-03-01T04:00:16Z" });
    let fault = server.script_times(1, When::write(), Then::ProcessThenReset);
    let answer = client.expect(&Request::new("POST", "/v1/private/traces").json(&body));
    assert_eq!(answer.status, 201);
    let id = answer.header("Location").and_then(|url| url.rsplit('/').next()).unwrap().to_owned();
    agent.wait_until_delivered();
    assert_eq!(fault.hits(), 1);
    assert_eq!(server.count("default", Kind::Trace), 1, "the repeat made a second trace");
    assert!(server.entity("default", Kind::Trace, &id).is_some());
}

#[test]
fn a_flapping_ping_does_not_hurt() {
    let server = FakeOpik::start_new();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for n in 0..6 {
        let down = server.script(When::path("/is-alive/ping"), Then::Answer(Answer::error(502, "proxy")));
        wait_until("a ping fails", PATIENCE, || down.hits() > 0);
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        down.clear();
        app.acknowledged(update(&id, n), 204);
    }
    assert_kept(&server, &agent, &ledger);
}
