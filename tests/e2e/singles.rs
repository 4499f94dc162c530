//! An update that reached the server before its create leaves a partial row, which hides a later batch create and is
//! completed by a single one (Opik issue 8121): such a create is sent individually, no matter who sent the update, and
//! the others are still joined.

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, create_batch, delete, span, trace, update};

fn agent(server: &FakeOpik) -> Agent {
    Agent::builder(&server.url()).impatient().start()
}

fn forwarded(server: &FakeOpik, agent: &Agent, id: &str) {
    assert_eq!(Client::new(&agent.url()).expect(&update(id, 7)).status, 204);
    assert_eq!(server.early_updates().len(), 1, "the update was not forwarded at once");
}

/// Asserts that the server shows the create and the update of this trace.
#[track_caller]
fn assert_complete(server: &FakeOpik, id: &str) {
    let record = server.entity("default", Kind::Trace, id).and_then(|entity| entity.record).expect("it is there");
    assert!(!record.partial, "the create is hidden behind a partial row: {:?}", record.fields);
    assert_eq!(record.fields.get("name"), Some(&json!("chat")), "{:?}", record.fields);
    assert_eq!(record.fields.get("output"), Some(&json!({ "n": 7 })), "{:?}", record.fields);
}

fn singles(server: &FakeOpik) -> usize {
    server.requests_to("POST", "/v1/private/traces").len()
}

fn batches(server: &FakeOpik) -> usize {
    server.requests_to("POST", "/v1/private/traces/batch").len()
}

/// Stores 40 single creates by way of `url` while the server is away, this one among them, and waits until the agent's
/// store is empty.
#[track_caller]
fn store_and_deliver(server: &FakeOpik, url: &str, agent: &Agent, id: &str) {
    server.stop();
    let mut client = Client::new(url);
    for number in 0..40 {
        let create = if number == 20 { create(id) } else { create(&uuid7()) };
        assert_eq!(client.expect(&create).status, 201);
    }
    let before = singles(server);
    server.start();
    agent.wait_until_delivered();
    assert_complete(server, id);
    assert_eq!(server.count("default", Kind::Trace), 40);
    assert_eq!(singles(server) - before, 1, "creates without an update ahead are not joined");
    assert!(batches(server) > 0, "creates without an update ahead are not joined");
}

#[test]
fn an_update_forwarded_before_a_kill_is_remembered() {
    let server = FakeOpik::start_new();
    let mut agent = agent(&server);
    let id = uuid7();
    forwarded(&server, &agent, &id);
    agent.kill9();
    agent.restart_on_same_port();
    store_and_deliver(&server, &agent.url(), &agent, &id);
}

#[test]
fn an_update_that_was_replayed_before_its_create_is_remembered() {
    let server = FakeOpik::new_stopped();
    let mut agent = agent(&server);
    let id = uuid7();
    assert_eq!(Client::new(&agent.url()).expect(&update(&id, 7)).status, 204);
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.early_updates().len(), 1);
    agent.kill9();
    agent.restart_on_same_port();
    store_and_deliver(&server, &agent.url(), &agent, &id);
}

#[test]
fn an_update_that_another_agent_forwarded_is_remembered() {
    let server = FakeOpik::start_new();
    let first = agent(&server);
    let db = first.db().display().to_string();
    let second = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_DB", &db).without_db().start();
    let id = uuid7();
    forwarded(&server, &first, &id);
    store_and_deliver(&server, &second.url(), &first, &id);
}

#[test]
fn an_update_whose_answer_was_lost_is_remembered() {
    let server = FakeOpik::start_new();
    let mut agent = agent(&server);
    let id = uuid7();
    let _down = server.script(When::ids([&*id]), Then::status(503));
    let lost = server.script_times(1, When::ids([&*id]), Then::ProcessThenReset);
    assert_eq!(Client::new(&agent.url()).expect(&update(&id, 7)).status, 204);
    assert!(lost.hits() >= 1 && server.early_updates().len() == 1);
    agent.kill9();
    server.clear_script();
    server.stop();
    agent.restart_on_same_port();
    store_and_deliver(&server, &agent.url(), &agent, &id);
}

#[test]
fn an_item_of_a_clients_own_batch_is_taken_out() {
    let server = FakeOpik::start_new();
    let mut agent = agent(&server);
    let ids: Vec<String> = (0..20).map(|_| uuid7()).collect();
    forwarded(&server, &agent, &ids[9]);
    agent.kill9();
    server.stop();
    agent.restart_on_same_port();
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create_batch(&ids)).status, 204);
    assert_eq!(client.expect(&create_batch([&uuid7()])).status, 204);
    server.start();
    agent.wait_until_delivered();
    assert_complete(&server, &ids[9]);
    assert_eq!(server.count("default", Kind::Trace), 21);
    assert_eq!(singles(&server), 1, "more than the one item was taken out");
}

#[test]
fn a_batch_of_the_one_item_that_was_updated_before_is_created_singly() {
    let server = FakeOpik::start_new();
    let agent = agent(&server);
    let id = uuid7();
    forwarded(&server, &agent, &id);
    server.stop();
    assert_eq!(Client::new(&agent.url()).expect(&create_batch([&id])).status, 204);
    server.start();
    agent.wait_until_delivered();
    assert_complete(&server, &id);
    assert_eq!((singles(&server), batches(&server)), (1, 0));
}

#[test]
fn a_refused_item_beside_one_that_was_updated_before_is_the_only_one_rejected() {
    let server = FakeOpik::start_new();
    let agent = agent(&server);
    let ids: Vec<String> = (0..8).map(|_| uuid7()).collect();
    forwarded(&server, &agent, &ids[3]);
    server.stop();
    server.reject_ids([&*ids[6]]);
    assert_eq!(Client::new(&agent.url()).expect(&create_batch(&ids)).status, 204);
    server.start();
    agent.wait_until_delivered();
    assert_complete(&server, &ids[3]);
    assert_eq!(server.count("default", Kind::Trace), 7);
}

#[test]
fn a_batch_update_that_waits_before_creates_of_spans_makes_them_single() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server);
    let (trace, spans): (String, Vec<String>) = (uuid7(), (0..10).map(|_| uuid7()).collect());
    let mut client = Client::new(&agent.url());
    // About two entities, so it does not move behind their creates.
    let both = json!({ "ids": [spans[2], spans[5]], "update": { "trace_id": trace, "output": { "n": 7 } } });
    let both = Request::new("PATCH", "/v1/private/spans/batch").json(&both);
    assert_eq!(client.expect(&both).status, 204);
    for id in &spans {
        assert_eq!(client.expect(&span(id, &trace)).status, 201);
    }
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Span), 10);
    let sent = server.requests_to("POST", "/v1/private/spans").len();
    assert_eq!(sent, 2, "the two spans that an earlier message updates were not created singly");
}

#[test]
fn an_update_after_its_create_writes_no_note_and_after_a_deletion_does() {
    let server = FakeOpik::start_new();
    let agent = agent(&server);
    let store = rusqlite::Connection::open(agent.db()).expect("the store can be opened");
    let notes = || -> i64 { store.query_row("SELECT count(*) FROM updated_ahead", [], |row| row.get(0)).unwrap() };
    let mut client = Client::new(&agent.url());
    let (one, other, third): (String, String, String) = (uuid7(), uuid7(), uuid7());
    assert_eq!(client.expect(&create(&one)).status, 201);
    assert_eq!(client.expect(&create_batch([&other])).status, 204);
    for id in [&one, &other] {
        assert_eq!(client.expect(&update(id, 1)).status, 204);
    }
    assert_eq!(notes(), 0, "the usual order costs a write");
    assert_eq!(client.expect(&update(&third, 1)).status, 204);
    assert_eq!(notes(), 1);
    assert_eq!(client.expect(&create(&third)).status, 201);
    assert_eq!(notes(), 0, "a single create that the server confirmed completes the row");
    assert_eq!(client.expect(&delete(&one)).status, 204);
    assert_eq!(client.expect(&update(&one, 2)).status, 204);
    assert_eq!(notes(), 1, "an update of a deleted trace makes a partial row again");
    wait_until("the agent is idle", PATIENCE, || agent.backlog() == 0);
}

#[test]
fn an_item_whose_create_had_arrived_before_its_update_stays_in_its_batch() {
    let server = FakeOpik::start_new();
    let mut agent = agent(&server);
    let id = uuid7();
    assert_eq!(Client::new(&agent.url()).expect(&create_batch([&id])).status, 204);
    agent.kill9();
    agent.restart_on_same_port();
    // This agent did not see the create, so it notes the update as one that may be ahead of it.
    assert_eq!(Client::new(&agent.url()).expect(&update(&id, 7)).status, 204);
    server.stop();
    let mut again = trace(&id, "created again");
    again["last_updated_at"] = "2126-03-01T04:00:16Z".into();
    let batch = json!({ "traces": [again, trace(&uuid7(), "chat")] });
    let batch = Request::new("POST", "/v1/private/traces/batch").json(&batch);
    assert_eq!(Client::new(&agent.url()).expect(&batch).status, 204);
    server.start();
    agent.wait_until_delivered();
    let record = server.entity("default", Kind::Trace, &id).and_then(|entity| entity.record).expect("it is there");
    assert_eq!(record.fields.get("name"), Some(&json!("created again")), "a single create was ignored by the server");
    assert_eq!(singles(&server), 0);
}
