//! A rate limit is one bucket's: single creates and updates apart from batches (Opik pull request 2860).

use std::time::Duration;

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Received, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, create_batch, score, update};

/// Requests that count in the bucket of single creates and updates.
fn single() -> When {
    When::write().and(|request: &Received| {
        let path = request.route();
        let is_create = request.method == "POST" && matches!(path, "/v1/private/traces" | "/v1/private/spans");
        is_create || (request.method == "PATCH" && !path.ends_with("/batch"))
    })
}

/// Creates in batches, which count in the bucket of events.
fn batch() -> When {
    When::write().and(|request: &Received| request.route().ends_with("/batch"))
}

fn agent(server: &FakeOpik) -> Agent {
    Agent::builder(&server.url()).impatient().start()
}

fn span_batch(ids: &[String], trace: &str) -> Request {
    let start = "2026-03-01T04:00:16Z";
    let spans: Vec<_> =
        ids.iter().map(|id| json!({ "id": id, "trace_id": trace, "name": "call", "start_time": start })).collect();
    Request::new("POST", "/v1/private/spans/batch").json(&json!({ "spans": spans }))
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|_| uuid7()).collect()
}

#[test]
fn a_limit_on_single_writes_holds_no_batches_and_lets_nothing_overtake() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server);
    let mut client = Client::new(&agent.url());
    // More than one claim takes, so that the limit has to be known to the next one, too.
    let updated = ids(120);
    for id in &updated {
        assert_eq!(client.expect(&update(id, 1)).status, 204);
    }
    assert_eq!(client.expect(&score(&updated[2], 1.0)).status, 204);
    let (trace, spans) = (uuid7(), ids(60));
    for spans in spans.chunks(20) {
        assert_eq!(client.expect(&span_batch(spans, &trace)).status, 204);
    }
    let limit = server.script(single(), Then::rate_limited(600));
    server.start();
    wait_until("the batches are delivered beside the limit", PATIENCE, || {
        server.count("default", Kind::Span) == 60 && agent.backlog() == 121
    });
    let scored = server.requests_to("PUT", "/v1/private/traces/feedback-scores").len();
    assert_eq!((limit.hits(), scored), (1, 0), "the limited bucket was asked again, or a score overtook its update");
    let status = agent.cli(&["status", "--format", "json"]).json();
    let reason = status["held"][0]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("429") && reason.contains("single creates and updates"), "{status}");
    // A live write of another bucket, about something else, does not wait.
    assert_eq!(client.expect(&create_batch(&ids(3))).status, 204);
    assert_eq!((server.count("default", Kind::Trace), agent.backlog()), (3, 121));
    assert_eq!(client.expect(&score(&updated[2], 0.5)).status, 204);
    assert_eq!(agent.backlog(), 122, "a live score overtook the update of its trace");
    assert_eq!(limit.hits(), 1);
}

#[test]
fn a_limit_that_a_forwarded_update_met_is_kept_by_the_next_agent() {
    let server = FakeOpik::start_new();
    let mut agent = agent(&server);
    let limit = server.script(single(), Then::rate_limited(600));
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&update(&uuid7(), 1)).status, 204);
    assert_eq!(client.expect(&update(&uuid7(), 1)).status, 204);
    assert_eq!((limit.hits(), agent.backlog()), (1, 2));
    agent.kill9();
    agent.restart_on_same_port();
    let mut client = Client::new(&agent.url());
    let (trace, spans) = (uuid7(), ids(4));
    wait_until("live batches are forwarded beside the limit", PATIENCE, || {
        client.expect(&span_batch(&spans, &trace)).status == 204 && server.count("default", Kind::Span) == 4
    });
    assert_eq!(client.expect(&update(&uuid7(), 1)).status, 204);
    let pings = server.requests_to("GET", "/is-alive/ping").len();
    wait_until("the agent has pinged", PATIENCE, || server.requests_to("GET", "/is-alive/ping").len() > pings + 5);
    assert_eq!((limit.hits(), agent.backlog()), (1, 3), "the limit was forgotten");
}

#[test]
fn single_creates_go_as_a_batch_while_only_single_writes_are_limited() {
    let server = FakeOpik::start_new();
    let agent = agent(&server);
    let limit = server.script(single(), Then::rate_limited(600));
    let mut client = Client::new(&agent.url());
    let created = ids(3);
    for id in &created {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    // The server would stamp it in a batch, so it can't be joined, and waits.
    let odd = json!({ "id": uuid7(), "name": "chat", "start_time": "2026-03-01T04:00:16Z" });
    assert_eq!(client.expect(&Request::new("POST", "/v1/private/traces").json(&odd)).status, 201);
    wait_until("they are delivered as batches", PATIENCE, || server.count("default", Kind::Trace) == 3);
    wait_until("only the odd one waits", PATIENCE, || agent.backlog() == 1);
    assert_eq!(limit.hits(), 1);
}

#[test]
fn single_creates_go_one_by_one_while_batches_are_limited() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server);
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create_batch(&ids(5))).status, 204);
    for id in &ids(10) {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    let limit = server.script(batch(), Then::rate_limited(600));
    server.start();
    wait_until("the single creates are delivered", PATIENCE, || server.count("default", Kind::Trace) == 10);
    wait_until("only the batch waits", PATIENCE, || agent.backlog() == 1);
    assert_eq!(limit.hits(), 1, "the limited bucket was asked again");
}

#[test]
fn a_limited_bucket_is_asked_again_when_its_time_is_over() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server);
    let mut client = Client::new(&agent.url());
    for id in &ids(4) {
        assert_eq!(client.expect(&update(id, 1)).status, 204);
    }
    let limit = server.script_times(2, single(), Then::rate_limited(2));
    server.start();
    agent.wait_until_delivered();
    assert_eq!(limit.hits(), 2);
    let asked: Vec<_> = server.requests_to("PATCH", "/v1/private/traces/*").into_iter().map(|r| r.at).collect();
    for pair in asked[..3].windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(1900), "asked again after {:?}", pair[1] - pair[0]);
    }
}
