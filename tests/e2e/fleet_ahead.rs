//! Updates that reached the server before their create, whose agent is gone: a batch create behind one would be dropped
//! by the server (Opik issue 8121).

use crate::fleet_streams::TestFleet;
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::uuid7;
use crate::writes::{Told, create_batch, update};

/// Returns an agent that acknowledges only what the depot has.
fn agent(fleet: &TestFleet, server: &FakeOpik) -> Agent {
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    agent.arg("--acknowledge").arg("fleet").start()
}

/// Ends the agent with its disk, and has its stream replayed.
fn replay_without(mut agent: Agent, fleet: &TestFleet, server: &FakeOpik) {
    agent.kill9();
    server.start();
    replay(fleet, server);
}

fn replay(fleet: &TestFleet, server: &FakeOpik) {
    fleet.close_all();
    fleet.replayed(server, &[]);
    assert_eq!(fleet.left(), Vec::<String>::new());
}

/// Returns the name of a trace, as its create said.
fn name(server: &FakeOpik, id: &str) -> Option<serde_json::Value> {
    server.entity("default", Kind::Trace, id)?.record?.fields.get("name").cloned()
}

#[test]
fn a_create_behind_an_update_that_its_agent_forwarded_is_not_dropped() {
    let (server, ledger, fleet) = (FakeOpik::start_new(), ClientLedger::new(), TestFleet::new());
    let agent = agent(&fleet, &server);
    let mut app = Told::new(&agent.url(), &ledger);
    let [ahead, other] = [(); 2].map(|()| uuid7());
    app.acknowledged(update(&ahead, 1), 204);
    server.stop();
    app.acknowledged(create_batch([&ahead, &other]), 204);
    drop(app);
    replay_without(agent, &fleet, &server);
    assert_eq!(name(&server, &ahead), Some("chat".into()), "the server dropped an acknowledged create");
    assert_eq!(name(&server, &other), Some("chat".into()));
    server.assert_equals(&ledger);
}

#[test]
fn a_create_behind_an_update_that_its_agent_replayed_is_not_dropped() {
    let (server, ledger, fleet) = (FakeOpik::new_stopped(), ClientLedger::new(), TestFleet::new());
    let agent = agent(&fleet, &server);
    let mut app = Told::new(&agent.url(), &ledger);
    let [ahead, other] = [(); 2].map(|()| uuid7());
    app.acknowledged(update(&ahead, 1), 204);
    server.start();
    agent.wait_until_delivered();
    server.stop();
    app.acknowledged(create_batch([&ahead, &other]), 204);
    drop(app);
    replay_without(agent, &fleet, &server);
    assert_eq!(name(&server, &ahead), Some("chat".into()), "the server dropped an acknowledged create");
    server.assert_equals(&ledger);
}

#[test]
fn a_create_behind_an_update_through_another_agent_is_not_dropped() {
    let (server, ledger, fleet) = (FakeOpik::new_stopped(), ClientLedger::new(), TestFleet::new());
    let mut agent = agent(&fleet, &server);
    let mut app = Told::new(&agent.url(), &ledger);
    let [ahead, other] = [(); 2].map(|()| uuid7());
    app.acknowledged(create_batch([&ahead, &other]), 204);
    drop(app);
    // The agent is lost with its disk. Its application goes on behind the next one, which forwards the update.
    agent.kill9();
    server.start();
    let next = Agent::start(&server);
    Told::new(&next.url(), &ledger).acknowledged(update(&ahead, 1), 204);
    replay(&fleet, &server);
    assert_eq!(name(&server, &ahead), Some("chat".into()), "the server dropped an acknowledged create");
    assert_eq!(name(&server, &other), Some("chat".into()));
}

/// Has an agent without a disk acknowledge traces in messages of one, kills it, and has the next agent forward updates of
/// the 7th and the 23rd; returns the ids of all and of these.
fn updated_behind_another(fleet: &TestFleet, server: &FakeOpik, ledger: &ClientLedger) -> (Vec<String>, Vec<String>) {
    let mut agent = agent(fleet, server);
    let ids: Vec<String> = (0..40).map(|_| uuid7()).collect();
    let mut app = Told::new(&agent.url(), ledger);
    ids.iter().for_each(|id| drop(app.acknowledged(create_batch([id]), 204)));
    drop(app);
    agent.kill9();
    server.start();
    let next = Agent::start(server);
    let updated = vec![ids[7].clone(), ids[23].clone()];
    let mut app = Told::new(&next.url(), ledger);
    updated.iter().for_each(|id| drop(app.acknowledged(update(id, 1), 204)));
    (ids, updated)
}

fn assert_all_named(server: &FakeOpik, ids: &[String]) {
    for id in ids {
        assert_eq!(name(server, id), Some("chat".into()), "the server dropped the acknowledged create of {id}");
    }
}

#[test]
fn creates_are_sent_in_batches_once_the_server_has_named_its_partial_rows() {
    let (server, ledger, fleet) = (FakeOpik::new_stopped(), ClientLedger::new(), TestFleet::new());
    let (ids, updated) = updated_behind_another(&fleet, &server, &ledger);
    replay(&fleet, &server);
    assert_all_named(&server, &ids);
    let singly = server.requests_to("POST", "/v1/private/traces");
    assert_eq!(singly.len(), updated.len(), "the limit for single requests holds up all creates");
    assert!(updated.iter().all(|id| singly.iter().any(|request| request.touches_id(id))));
    let batches = server.requests_to("POST", "/v1/private/traces/batch").len();
    assert!(batches < 20, "{batches} requests for 38 creates");
    let searches = server.requests_to("POST", "/v1/private/traces/search").len();
    assert!(searches < 20, "{searches} searches for 40 creates");
}

#[test]
fn creates_are_sent_singly_to_a_server_that_does_not_name_its_partial_rows() {
    let (server, ledger, fleet) = (FakeOpik::new_stopped(), ClientLedger::new(), TestFleet::new());
    let (ids, _) = updated_behind_another(&fleet, &server, &ledger);
    server.always(When::path("/v1/private/traces/search"), Then::status(400));
    replay(&fleet, &server);
    assert_all_named(&server, &ids);
    assert_eq!(server.requests_to("POST", "/v1/private/traces").len(), ids.len());
}
