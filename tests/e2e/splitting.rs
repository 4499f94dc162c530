//! A client's own batch with bad items: the good ones arrive, each bad one is kept alone with the server's words, it
//! costs few requests, and a crash in the middle changes none of that.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::chaos::Dice;
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::Request;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create_batch, update};

const WORDS: &str = "traces[17].usage must not be negative";

fn storing() -> (FakeOpik, Agent) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s").start();
    (server, agent)
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|_| uuid7()).collect()
}

fn request(path: &str, list: &str, items: Vec<Value>) -> Request {
    let method = if path.ends_with("scores") { "PUT" } else { "POST" };
    Request::new(method, &format!("/v1/private/{path}")).json(&json!({ list: items }))
}

/// The rejected messages of the store: for each message its items and everything that it writes about.
fn rejected(agent: &Agent) -> Vec<(u64, Value, String)> {
    let listed = agent.cli(&["inspect", "--rejected", "--limit", "0", "--format", "json"]).json();
    let messages = listed["messages"].as_array().expect("a list").clone();
    let whole = messages.iter().map(|message| {
        let whole = agent.cli(&["inspect", &message["id"].to_string(), "--format", "json"]).json();
        let body = whole["body"].as_str().expect("a body").to_owned();
        (message["items"].as_u64().expect("a number"), message["answer"].clone(), body)
    });
    whole.collect()
}

#[track_caller]
fn assert_alone_with_the_servers_words(agent: &Agent, bad: &[String]) {
    let kept = rejected(agent);
    assert_eq!(kept.len(), bad.len(), "rejected messages for {} bad items", bad.len());
    for id in bad {
        let about: Vec<_> = kept.iter().filter(|(_, _, body)| body.contains(id.as_str())).collect();
        let [(items, answer, _)] = about[..] else { panic!("{id} is kept {} times", about.len()) };
        assert_eq!(*items, 1, "{id} is not kept alone");
        assert!(
            answer["status"] == 422 && answer["text"].as_str().is_some_and(|text| text.contains(WORDS)),
            "{answer}"
        );
    }
}

#[test]
fn a_stored_batch_of_a_thousand_loses_only_its_bad_items_and_costs_few_requests() {
    let at = "2026-03-01T04:00:16Z";
    let trace = |id: &str| json!({ "id": id, "name": "n", "start_time": at, "last_updated_at": at });
    let span = |id: &str| json!({ "id": id, "trace_id": uuid7(), "start_time": at, "last_updated_at": at });
    let score = |id: &str| json!({ "id": id, "name": "q", "value": 1, "source": "sdk" });
    type Item<'a> = &'a dyn Fn(&str) -> Value;
    for (path, list, item, gzip, places) in [
        ("traces/batch", "traces", &trace as Item<'_>, true, &[617][..]),
        ("traces/batch", "traces", &trace, false, &[0, 999]),
        ("spans/batch", "spans", &span, true, &[3, 4, 5, 500, 777]),
        ("traces/feedback-scores", "scores", &score, false, &[100, 200, 300, 400, 500, 600, 700, 800, 900, 950]),
    ] {
        let (server, agent) = storing();
        let all = ids(1000);
        let bad: Vec<String> = places.iter().map(|place| all[*place].clone()).collect();
        let batch = request(path, list, all.iter().map(|id| item(id)).collect());
        let batch = if gzip { batch.gzip() } else { batch };
        let ledger = ClientLedger::new();
        Told::new(&agent.url(), &ledger).acknowledged(batch, 204);
        server.script(When::ids(bad.iter()), Then::Answer(Answer::error(422, WORDS)));
        server.start();
        agent.wait_until_delivered();
        server.assert_equals(&ledger.without(&bad.iter().cloned().collect()));
        assert_alone_with_the_servers_words(&agent, &bad);
        let requests = server.requests().iter().filter(|request| !request.writes.is_empty()).count();
        let bound = bad.len() * 2 * 10 + 2;
        assert!(requests <= bound, "{path}: {requests} requests for {} bad items of 1,000, not {bound}", bad.len());
        server.assert_no_violations();
    }
}

#[test]
fn a_batch_that_is_too_large_for_the_server_arrives_in_pieces() {
    let (server, agent) = storing();
    let all = ids(1000);
    let ledger = ClientLedger::new();
    Told::new(&agent.url(), &ledger).acknowledged(create_batch(&all), 204);
    server.script(When::write().larger_than(20_000), Then::Answer(Answer::error(413, "too large")));
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    assert!(rejected(&agent).is_empty());
    let requests = server.requests().iter().filter(|request| !request.writes.is_empty()).count();
    assert!(requests <= 32, "{requests} requests for a body of 140 kB in pieces of 20 kB");
}

/// The agent is killed again and again while it divides a batch, at moments that a seed decides.
#[test]
fn a_kill_in_the_middle_of_a_division_loses_and_doubles_nothing() {
    for seed in 1..=5 {
        eprintln!("seed {seed}");
        let mut dice = Dice::new(seed);
        let (server, mut agent) = storing();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let all = ids(200);
        let mut bad = BTreeSet::new();
        while bad.len() < 4 {
            bad.insert(all[dice.below(200) as usize].clone());
        }
        app.acknowledged(create_batch(&all).gzip(), 204);
        // Updates of good ones wait behind it and must not be lost or go first.
        let updated: Vec<&String> = all.iter().filter(|id| !bad.contains(*id)).step_by(20).collect();
        for id in &updated {
            app.acknowledged(update(id, 1), 204);
        }
        // The newest fault decides: every request takes a moment, and those with a bad item are refused.
        let slow = server.script(When::write(), Then::Delay(Duration::from_millis(5)));
        server.script(When::ids(bad.iter()), Then::Answer(Answer::error(422, WORDS)));
        server.start();
        let sent = || server.requests().iter().filter(|request| !request.writes.is_empty()).count();
        for _ in 0..4 {
            let until = sent() + 1 + dice.below(25) as usize;
            wait_until("more pieces are sent, or all is done", PATIENCE, || sent() >= until || agent.backlog() == 0);
            agent.kill9();
            agent.restart_on_same_port();
        }
        slow.clear();
        agent.wait_until_delivered();
        server.assert_equals(&ledger.without(&bad));
        server.assert_order(&ledger.without(&bad));
        server.assert_no_update_before_create();
        server.assert_no_violations();
        let bad: Vec<String> = bad.into_iter().collect();
        assert_alone_with_the_servers_words(&agent, &bad);
        assert_eq!(server.count("default", Kind::Trace), 196);
        // At least once: a piece is repeated for each kill at most, never the whole again and again.
        assert!(sent() <= 5 * (4 * 2 * 8 + 2) + 5 * updated.len(), "{} requests", sent());
    }
}
