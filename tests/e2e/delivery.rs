//! The server's answers and the backlog: nothing is dropped for a cause that time or a person can fix, one bad
//! message never costs the others, and no lane waits for another.

use std::time::Duration;

use serde_json::json;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Received, Then, When};
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, create_batch, update};

/// An agent whose server is away, so that it stores what comes, with short waits and few attempts.
fn storing() -> (FakeOpik, Agent) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url())
        .impatient()
        .arg("--retry-interval")
        .arg("1s")
        .arg("--max-attempts")
        .arg("2")
        .start();
    (server, agent)
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|_| uuid7()).collect()
}

fn store_creates(agent: &Agent, ids: &[String]) {
    let mut client = Client::new(&agent.url());
    for id in ids {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
}

fn rejected(agent: &Agent) -> u64 {
    agent.cli(&["status", "--format", "json"]).json()["rejected"]["messages"].as_u64().expect("a number")
}

fn is_there(server: &FakeOpik, id: &str) -> bool {
    server.entity("default", Kind::Trace, id).is_some_and(|entity| entity.record.is_some())
}

fn writes(server: &FakeOpik) -> Vec<Received> {
    server.requests().into_iter().filter(|request| !request.writes.is_empty()).collect()
}

#[test]
fn an_expired_key_holds_its_lane_and_drops_nothing() {
    let (server, agent) = storing();
    let expired = ids(20);
    let mut client = Client::new(&agent.url()).with_header("Authorization", "expired");
    for id in &expired {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    let others = ids(5);
    store_creates(&agent, &others);
    let fault =
        server.script(When::any().authorization("expired"), Then::Answer(Answer::error(401, "API key expired")));
    server.start();
    wait_until("the other lane is delivered", PATIENCE, || others.iter().all(|id| is_there(&server, id)));
    wait_until("the key is tried again", PATIENCE, || fault.hits() >= 3);
    let status = agent.cli(&["status"]).stdout;
    assert!(status.contains("API key expired"), "the status does not show why the lane waits:\n{status}");
    let refused = writes(&server).into_iter().filter(|request| request.answered_status == Some(401));
    assert!(refused.skip(1).all(|request| request.writes.len() == 1), "a lane with a bad key is tried by one message");
    assert_eq!((agent.backlog(), rejected(&agent)), (20, 0));

    // New writes wait behind it, and the lane with the other key does not.
    let (behind, beside) = (uuid7(), uuid7());
    assert_eq!(client.expect(&create(&behind)).status, 201);
    store_creates(&agent, std::slice::from_ref(&beside));
    assert!(is_there(&server, &beside) && !is_there(&server, &behind));
    fault.clear();
    agent.wait_until_delivered();
    assert!(expired.iter().chain([&behind]).all(|id| is_there(&server, id)));
    server.assert_no_violations();
}

#[test]
fn a_rate_limit_is_waited_for_as_long_as_the_server_says() {
    let (server, agent) = storing();
    let stored = ids(5);
    // Batches only: single creates count in another bucket.
    assert_eq!(Client::new(&agent.url()).expect(&create_batch(&stored)).status, 204);
    let limited = server.script_times(1, When::write(), Then::rate_limited(2));
    server.start();
    agent.wait_until_delivered();
    assert_eq!(limited.hits(), 1);
    let sent = writes(&server);
    assert_eq!(sent[0].answered_status, Some(429));
    let gap = sent[1].at.duration_since(sent[0].at);
    assert!(gap >= Duration::from_millis(1990), "the server asked for 2 s and got {gap:?}");
    assert!(stored.iter().all(|id| is_there(&server, id)));
    assert_eq!(rejected(&agent), 0);
}

#[test]
fn a_message_that_the_server_fails_at_is_set_aside_and_the_rest_is_delivered() {
    let (server, agent) = storing();
    let stored = ids(30);
    store_creates(&agent, &stored);
    let poison = &stored[11];
    let fault = server.script(When::ids([&**poison]), Then::Answer(Answer::error(500, "it broke me")));
    server.start();
    agent.wait_until_delivered();
    assert!(stored.iter().all(|id| is_there(&server, id) == (id != poison)));
    assert_eq!(rejected(&agent), 1);
    let shown = agent.cli(&["inspect", "--rejected", "--format", "json"]).stdout;
    assert!(shown.contains("it broke me"), "{shown}");
    assert!(fault.hits() <= 8, "{} requests were spent on one bad message", fault.hits());
}

#[test]
fn several_bad_messages_with_nothing_left_beside_them_are_set_aside_too() {
    let (server, agent) = storing();
    let stored = ids(20);
    store_creates(&agent, &stored);
    let poison = &stored[4..12];
    server.script(When::ids(poison.iter()), Then::status(500));
    server.start();
    // Once the rest is delivered, nothing passes; this must not look like a server that fails at everything.
    agent.wait_until_delivered();
    assert!(stored.iter().all(|id| is_there(&server, id) != poison.contains(id)));
    assert_eq!(rejected(&agent), 8);
}

#[test]
fn an_outage_of_nothing_but_500s_rejects_nothing_not_even_a_lone_message() {
    let server = FakeOpik::new_stopped();
    let impatient = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("100ms");
    let agent = impatient.arg("--max-attempts").arg("2").start();
    let mut client = Client::new(&agent.url());
    let id = uuid7();
    assert_eq!(client.expect(&create(&id)).status, 201);
    assert_eq!(client.expect(&update(&id, 1)).status, 204);
    let fault = server.script(When::write(), Then::status(500));
    server.start();
    wait_until("the server has failed more often than a message may", PATIENCE, || fault.hits() >= 6);
    assert_eq!(rejected(&agent), 0, "an outage turned what was acknowledged into rejected messages");
    fault.clear();
    agent.wait_until_delivered();
    assert!(is_there(&server, &id));
    server.assert_no_update_before_create();
}

#[test]
fn what_a_killed_agent_put_back_in_an_outage_does_not_wait_for_its_time_when_the_server_is_back() {
    let server = FakeOpik::new_stopped();
    // Requeued messages are deferred for minutes.
    let mut agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("200s").start();
    let stored = ids(12);
    store_creates(&agent, &stored);
    let mut client = Client::new(&agent.url());
    for id in &stored {
        assert_eq!(client.expect(&update(id, 1)).status, 204);
    }
    let fault = server.script(When::write(), Then::status(500));
    server.start();
    let put_back = || {
        let listed = agent.cli(&["inspect", "--format", "json"]);
        listed.stdout.contains(r#""next_attempt_at": "2"#)
    };
    wait_until("a message makes room for others to try", PATIENCE, put_back);
    agent.kill9();
    fault.clear();
    agent.restart_on_same_port();
    agent.wait_until_delivered();
    server.assert_no_update_before_create();
}

#[test]
fn good_messages_get_through_behind_many_bad_ones() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("100ms").start();
    let stored = ids(40);
    store_creates(&agent, &stored);
    // Enough of them at the head of the lane that the server seems to fail at everything.
    let (bad, good) = stored.split_at(14);
    server.script(When::ids(bad.iter()), Then::status(500));
    server.start();
    wait_until("the good ones are delivered", PATIENCE, || good.iter().all(|id| is_there(&server, id)));
}

#[test]
fn a_refused_batch_loses_only_the_bad_message() {
    let (server, agent) = storing();
    let stored = ids(40);
    store_creates(&agent, &stored);
    let bad = [stored[0].clone(), stored[17].clone()];
    let fault = server.reject_ids(bad.iter());
    server.start();
    agent.wait_until_delivered();
    assert!(stored.iter().all(|id| is_there(&server, id) != bad.contains(id)));
    assert_eq!(rejected(&agent), 2);
    assert!(fault.hits() <= 2 * 7, "{} requests were spent on two bad messages of 40", fault.hits());
}

/// A backlog as the TypeScript SDK leaves it: batches without `last_updated_at`, then one update per trace.
fn store_batches_and_updates(agent: &Agent, batches: &[&[String]]) {
    let mut client = Client::new(&agent.url());
    for ids in batches {
        let trace = |id: &String| json!({ "id": id, "name": "chat", "start_time": "2026-03-01T04:00:16Z" });
        let batch = json!({ "traces": ids.iter().map(trace).collect::<Vec<_>>() });
        assert_eq!(client.post("/v1/private/traces/batch", &batch).status, 204);
    }
    for (n, id) in (0..).zip(batches.concat()) {
        assert_eq!(client.expect(&update(&id, n)).status, 204);
    }
}

fn output(server: &FakeOpik, id: &str) -> Option<serde_json::Value> {
    server.entity("default", Kind::Trace, id)?.record?.fields.get("output").cloned()
}

#[test]
fn updates_go_with_the_batch_that_makes_their_entities() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--batch-size").arg("1000").start();
    let stored = ids(40);
    store_batches_and_updates(&agent, &[&stored[..20], &stored[20..]]);
    server.start();
    agent.wait_until_delivered();
    for (n, id) in stored.iter().enumerate() {
        assert_eq!(output(&server, id), Some(json!({ "n": n })), "the update of trace {n} is lost");
    }
    let sent = writes(&server);
    // The first message may go alone, as the one that finds out whether the server is back.
    assert!(sent.len() <= 5, "{} requests for two batches whose updates fold", sent.len());
    assert_eq!(rejected(&agent), 0);
    server.assert_no_update_before_create();
    server.assert_no_violations();
}

#[test]
fn a_refused_update_that_was_folded_is_rejected_alone() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--batch-size").arg("1000").start();
    let stored = ids(12);
    store_batches_and_updates(&agent, &[&stored]);
    // 409 to a batch create alone would be a delivery.
    let fault = server.script(
        When::write().and(|request| request.json.as_ref().is_some_and(|json| json.to_string().contains(r#"{"n":7}"#))),
        Then::Answer(Answer::error(409, "another project")),
    );
    server.start();
    agent.wait_until_delivered();
    assert_eq!(fault.hits(), 2, "once folded, once alone");
    for (n, id) in stored.iter().enumerate() {
        let expected = (n != 7).then(|| json!({ "n": n }));
        assert_eq!(output(&server, id), expected, "the update of trace {n}");
        assert!(is_there(&server, id), "the refused update has cost trace {n}");
    }
    assert_eq!(rejected(&agent), 1);
    let shown = agent.cli(&["inspect", "--rejected", "--format", "json"]).stdout;
    assert!(shown.contains("UpdateTraceMessage") && shown.contains("another project"), "{shown}");
}

#[test]
fn too_large_a_batch_is_split_and_a_single_message_that_is_too_large_is_rejected() {
    let (server, agent) = storing();
    let stored = ids(20);
    store_creates(&agent, &stored);
    let giant = stored[5].clone();
    server.script(When::write().and(|request| request.writes.len() > 3), Then::status(413));
    server.script(When::ids([&*giant]), Then::status(413));
    server.start();
    agent.wait_until_delivered();
    assert!(stored.iter().all(|id| is_there(&server, id) == (*id != giant)));
    assert_eq!(rejected(&agent), 1);
}

#[test]
fn a_conflict_is_a_delivery_for_a_create_and_a_refusal_for_an_update() {
    let (server, agent) = storing();
    let (created, updated) = (uuid7(), uuid7());
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create(&created)).status, 201);
    assert_eq!(client.expect(&update(&updated, 1)).status, 204);
    let there = Answer::error(409, "already there");
    server.script_times(1, When::ids([&*created]), Then::Answer(there));
    server.script_times(1, When::ids([&*updated]), Then::Answer(Answer::error(409, "another project")));
    server.start();
    agent.wait_until_delivered();
    assert_eq!(rejected(&agent), 1);
    let shown = agent.cli(&["inspect", "--rejected", "--format", "json"]).stdout;
    assert!(shown.contains("another project") && !shown.contains("already there"), "{shown}");
}

#[test]
fn a_server_that_fails_at_everything_is_not_stormed_and_loses_nothing() {
    let (server, agent) = storing();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for id in &ids(40) {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
        app.acknowledged(update(id, 2), 204);
    }
    let fault = server.script(When::write(), Then::status(500));
    server.start();
    wait_until("the lane has been tried five times", PATIENCE, || {
        let at: Vec<_> = writes(&server).iter().map(|request| request.at).collect();
        at.windows(2).filter(|pair| pair[1] - pair[0] > Duration::from_millis(800)).count() >= 4
    });
    assert!(fault.hits() <= 12 + 6, "{} requests in five tries", fault.hits());
    assert_eq!((agent.backlog(), rejected(&agent)), (120, 0));
    fault.clear();
    agent.wait_until_delivered();
    assert_eq!(rejected(&agent), 0);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    server.assert_no_overlaps();
}

#[test]
fn a_redirect_holds_the_lane_and_says_what_to_do() {
    let (server, agent) = storing();
    let stored = ids(3);
    store_creates(&agent, &stored);
    let moved = Answer::empty(308).with("Location", "https://opik.example/api/");
    let fault = server.script(When::write(), Then::Answer(moved));
    server.start();
    wait_until("it was tried", PATIENCE, || fault.hits() >= 2);
    let status = agent.cli(&["status"]).stdout;
    assert!(status.contains("https://opik.example/api/") && status.contains("--upstream"), "{status}");
    assert_eq!((agent.backlog(), rejected(&agent)), (3, 0));
    fault.clear();
    agent.wait_until_delivered();
}

#[test]
fn a_workspace_that_hangs_fails_or_is_limited_keeps_no_other_waiting() {
    let (server, agent) = storing();
    let ledger = ClientLedger::new();
    let lanes: Vec<String> = (0..6).map(|n| format!("team-{n}")).collect();
    for workspace in ["slow", "broken", "limited"].into_iter().chain(lanes.iter().map(String::as_str)) {
        let mut app = Told::new(&agent.url(), &ledger).in_workspace(workspace);
        for id in ids(60) {
            app.acknowledged(create(&id), 201);
            app.acknowledged(update(&id, 1), 204);
        }
    }
    let hang = server.script(When::write().workspace("slow"), Then::Hold);
    let broken = server.script(When::write().workspace("broken"), Then::status(503));
    let limited = server.script(When::write().workspace("limited"), Then::rate_limited(600));
    server.start();
    wait_until("all other lanes are delivered", PATIENCE, || {
        lanes.iter().all(|workspace| server.count(workspace, Kind::Trace) == 60) && agent.backlog() == 3 * 120
    });
    assert_eq!(hang.hits(), 1, "the slow one is still at its first request");
    // Live traffic of the others continues, too.
    let live = uuid7();
    Told::new(&agent.url(), &ledger).in_workspace("team-0").acknowledged(create(&live), 201);
    wait_until("it is delivered", PATIENCE, || server.entity("team-0", Kind::Trace, &live).is_some());
    // Once for each bucket: of batches and of single creates.
    assert!(limited.hits() <= 2, "a limited workspace was asked again before its time");
    hang.clear();
    broken.clear();
    // Nothing of the limited one is dropped; it waits for ten minutes, and the test does not.
    wait_until("all but the limited one are delivered", PATIENCE, || agent.backlog() == 120);
    server.assert_no_overlaps();
    server.assert_order(&ledger);
    for workspace in ["slow", "broken"] {
        assert_eq!(server.count(workspace, Kind::Trace), 60);
    }
}

#[test]
fn a_batch_of_the_clients_own_arrives_whole() {
    let (server, agent) = storing();
    let traces = ids(1000);
    assert_eq!(Client::new(&agent.url()).expect(&create_batch(&traces).gzip()).status, 204);
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 1000);
    assert_eq!(writes(&server).len(), 1);
}

#[test]
fn a_replay_beside_a_running_agent_sends_nothing_twice_at_once() {
    let (server, agent) = storing();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for id in &ids(100) {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
    }
    let slow = server.script(When::write(), Then::Delay(Duration::from_millis(5)));
    server.start();
    while agent.backlog() > 0 {
        let beside = agent.cli(&["replay", "--batch-size", "7", "--quiet"]);
        assert!(beside.code().is_some_and(|code| [0, 1, 4].contains(&code)), "{:?} {}", beside.code(), beside.stderr);
    }
    slow.clear();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    assert!(writes(&server).iter().all(|request| request.answered_status.is_some()));
    let sent: usize = writes(&server).iter().map(|request| request.writes.len()).sum();
    assert_eq!(sent, 200, "something was sent twice though every send was confirmed");
}

#[test]
fn two_agents_on_one_store_send_nothing_at_once_and_deliver_everything() {
    let (server, first) = storing();
    // Its own home, the same store.
    let second = Agent::builder(&server.url())
        .impatient()
        .home(Home::new())
        .env("OPIK_OFFLINE_DB", &first.db().display().to_string())
        .without_db()
        .start();
    let ledger = ClientLedger::new();
    let all: Vec<Vec<String>> = (0..2).map(|_| ids(60)).collect();
    for (agent, ids) in [&first, &second].into_iter().zip(&all) {
        let mut app = Told::new(&agent.url(), &ledger);
        for id in ids {
            app.acknowledged(create(id), 201);
        }
    }
    // Updates come in by the other door.
    for (agent, ids) in [&second, &first].into_iter().zip(&all) {
        let mut app = Told::new(&agent.url(), &ledger);
        for id in ids {
            app.acknowledged(update(id, 1), 204);
        }
    }
    server.start();
    for (agent, ids) in [&second, &first].into_iter().zip(&all) {
        let mut app = Told::new(&agent.url(), &ledger);
        for id in ids {
            app.acknowledged(update(id, 2), 204);
        }
    }
    first.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    server.assert_no_overlaps();
}
