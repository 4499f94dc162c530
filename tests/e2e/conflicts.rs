//! A 409 for a batch says nothing of its good items, and a success that threw something away confirms only the rest.

use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Received, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{uuid7, wait_until};

const AT: &str = "2026-03-01T04:00:16Z";
const OTLP: &str = "/v1/private/otel/v1/traces";

fn away() -> (FakeOpik, Agent) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s").start();
    (server, agent)
}

#[track_caller]
fn accepted(agent: &Agent, request: &Request) {
    let answer = Client::new(&agent.url()).expect(request);
    assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
}

fn rejected(agent: &Agent) -> Vec<Value> {
    let listed = agent.cli(&["inspect", "--rejected", "--limit", "0", "--format", "json"]).json();
    listed["messages"].as_array().unwrap().clone()
}

fn metric(agent: &Agent, name: &str) -> u64 {
    let text = Client::new(&agent.origin()).get("/metrics").text();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect("the metric");
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

fn conflict(words: &str) -> Then {
    Then::Answer(Answer::json(409, &json!({ "errors": [words] })))
}

fn trace(id: &str) -> Value {
    json!({ "id": id, "name": "n", "start_time": AT, "last_updated_at": AT })
}

fn span(id: &str) -> Value {
    json!({ "id": id, "trace_id": uuid7(), "start_time": AT, "last_updated_at": AT })
}

fn experiment_item(id: &str) -> Value {
    json!({ "id": id, "experiment_id": uuid7(), "dataset_item_id": uuid7(), "trace_id": uuid7() })
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|_| uuid7()).collect()
}

#[test]
fn a_conflict_about_one_item_of_a_batch_costs_no_other() {
    type Item = fn(&str) -> Value;
    for (path, list, item, kind) in [
        ("traces/batch", "traces", trace as Item, Kind::Trace),
        ("spans/batch", "spans", span, Kind::Span),
        ("experiments/items", "experiment_items", experiment_item, Kind::ExperimentItem),
    ] {
        let (server, agent) = away();
        let all = ids(20);
        let items: Vec<Value> = all.iter().map(|id| item(id)).collect();
        accepted(&agent, &Request::new("POST", &format!("/v1/private/{path}")).json(&json!({ list: items })));
        server.script(When::ids([all[13].clone()]), conflict("already exists"));
        server.start();
        agent.wait_until_delivered();
        assert_eq!(server.count("default", kind), 19, "{path}: good items are lost");
        assert_eq!(rejected(&agent), Vec::<Value>::new(), "{path}");
        assert_eq!(metric(&agent, "opik_offline_items_already_there_total"), 1, "{path}");
        assert_eq!(metric(&agent, "opik_offline_messages_delivered_total"), 1, "{path}");
    }
}

#[test]
fn a_real_conflict_about_one_item_of_a_batch_is_kept_for_people() {
    for words in [
        "Project name and workspace name do not match the existing span",
        "trace_id does not match the existing span",
        "parent_span_id does not match the existing span",
    ] {
        let (server, agent) = away();
        let all = ids(20);
        let items: Vec<Value> = all.iter().map(|id| span(id)).collect();
        accepted(&agent, &Request::new("POST", "/v1/private/spans/batch").json(&json!({ "spans": items })));
        server.script(When::ids([all[4].clone()]), conflict(words));
        server.start();
        agent.wait_until_delivered();
        assert_eq!(server.count("default", Kind::Span), 19);
        let kept = rejected(&agent);
        assert_eq!((kept.len(), &kept[0]["items"]), (1, &json!(1)), "{kept:?}");
        assert!(kept[0]["answer"]["text"].as_str().unwrap().contains(words), "{kept:?}");
    }
}

#[test]
fn a_batch_that_conflicts_as_a_whole_only_is_delivered_in_pieces() {
    let (server, agent) = away();
    let all = ids(8);
    let items: Vec<Value> = all.iter().map(|id| trace(id)).collect();
    accepted(&agent, &Request::new("POST", "/v1/private/traces/batch").json(&json!({ "traces": items })));
    server.script_times(1, When::write(), conflict("a conflict of some kind"));
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 8);
    assert_eq!(rejected(&agent), Vec::<Value>::new());
}

#[test]
fn single_creates_that_travelled_together_are_divided_by_a_conflict() {
    let (server, agent) = away();
    let all = ids(10);
    for id in &all {
        accepted(&agent, &Request::new("POST", "/v1/private/traces").json(&trace(id)));
    }
    let mismatch = "Project name and workspace name do not match the existing trace";
    server.script(When::ids([all[3].clone()]), conflict("Trace already exists"));
    server.script(When::ids([all[7].clone()]), conflict(mismatch));
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 8);
    let kept = rejected(&agent);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0]["answer"]["text"].as_str().unwrap().contains(mismatch), "{kept:?}");
    assert_eq!(metric(&agent, "opik_offline_items_already_there_total"), 1);
}

#[test]
fn an_update_that_conflicts_is_rejected() {
    let (server, agent) = away();
    let id = uuid7();
    accepted(&agent, &Request::new("PATCH", &format!("/v1/private/traces/{id}")).json(&json!({ "name": "m" })));
    server.script(When::write(), conflict("already exists"));
    server.start();
    agent.wait_until_delivered();
    assert_eq!(rejected(&agent).len(), 1);
}

/// An OTLP request of spans whose parent is elsewhere, and their ids as the server knows them.
fn spans(count: usize) -> (Value, Vec<String>) {
    let trace = "ab".repeat(16);
    let ids: Vec<String> = (1..=count).map(|number| format!("{number:016x}")).collect();
    let spans: Vec<Value> = ids
        .iter()
        .map(|id| json!({ "traceId": trace, "spanId": id, "parentSpanId": "00000000000000ff", "name": "s" }))
        .collect();
    let body = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": spans }] }] });
    (body, ids.iter().map(|id| format!("{trace}:{id}")).collect())
}

/// Throws away some spans, takes the others, and says so.
fn partial(server: &FakeOpik, bad: Vec<String>, answer: fn(usize) -> Answer) {
    for count in 1..=bad.len() {
        let bad = bad.clone();
        let has = move |request: &Received| {
            request.writes.iter().filter(|write| bad.contains(&write.key.id)).count() == count
        };
        server.script(When::path(OTLP).and(has), Then::Answer(answer(count)));
    }
}

#[test]
fn spans_that_a_success_threw_away_are_kept_as_rejected_alone() {
    let in_json: fn(usize) -> Answer = |count| {
        Answer::json(200, &json!({ "partialSuccess": { "rejectedSpans": count, "errorMessage": "too large" } }))
    };
    let in_protobuf: fn(usize) -> Answer = |count| {
        let body = [&[0x0a, 13, 0x08, count as u8, 0x12, 9][..], b"too large"].concat();
        let mut answer = Answer::empty(200).with("Content-Type", "application/x-protobuf");
        answer.body = body;
        answer
    };
    for answer in [in_json, in_protobuf] {
        let (server, agent) = away();
        let (body, ids) = spans(5);
        accepted(&agent, &Request::new("POST", OTLP).json(&body));
        partial(&server, vec![ids[1].clone(), ids[4].clone()], answer);
        server.start();
        agent.wait_until_delivered();
        let stored: Vec<bool> = ids.iter().map(|id| server.entity("default", Kind::OtelSpan, id).is_some()).collect();
        assert_eq!(stored, [true, false, true, true, false]);
        let kept = rejected(&agent);
        assert_eq!(kept.len(), 2, "{kept:?}");
        for message in &kept {
            assert_eq!(message["items"], 1, "{kept:?}");
            assert!(message["answer"]["text"].as_str().unwrap().contains("too large"), "{kept:?}");
        }
        assert_eq!(metric(&agent, "opik_offline_items_rejected_in_success_total"), 2);
    }
}

#[test]
fn a_success_that_always_throws_something_away_confirms_nothing() {
    let (server, agent) = away();
    accepted(&agent, &Request::new("POST", OTLP).json(&spans(5).0));
    let answer = json!({ "partialSuccess": { "rejectedSpans": 2, "errorMessage": "too large" } });
    server.script(When::path(OTLP), Then::Answer(Answer::json(200, &answer)));
    server.start();
    agent.wait_until_delivered();
    let kept = rejected(&agent);
    assert_eq!((kept.len(), &kept[0]["items"]), (1, &json!(5)), "{kept:?}");
    assert_eq!(kept[0]["answer"]["text"], "accepted, but for 2 rejected: too large");
    assert_eq!(metric(&agent, "opik_offline_items_rejected_in_success_total"), 2);
}

#[test]
fn a_warning_in_a_success_rejects_nothing() {
    let (server, agent) = away();
    accepted(&agent, &Request::new("POST", OTLP).json(&spans(5).0));
    let answer = json!({ "partialSuccess": { "rejectedSpans": "0", "errorMessage": "use a newer exporter" } });
    server.script(When::path(OTLP), Then::Answer(Answer::json(200, &answer)));
    server.start();
    agent.wait_until_delivered();
    assert_eq!(rejected(&agent), Vec::<Value>::new());
    assert_eq!(server.requests_to("POST", OTLP).len(), 1);
}

#[test]
fn a_multi_status_and_errors_in_a_success_are_read_too() {
    let errors: fn() -> Answer = || Answer::json(202, &json!({ "errors": ["item: usage must not be negative"] }));
    let statuses: fn() -> Answer = || Answer::json(207, &json!({ "results": [{ "status": 204 }, { "status": 422 }] }));
    for answer in [errors, statuses] {
        let (server, agent) = away();
        let all = ids(9);
        let items: Vec<Value> = all.iter().map(|id| span(id)).collect();
        accepted(&agent, &Request::new("POST", "/v1/private/spans/batch").json(&json!({ "spans": items })));
        server.script(When::ids([all[2].clone()]), Then::Answer(answer()));
        server.start();
        agent.wait_until_delivered();
        assert_eq!(server.count("default", Kind::Span), 8);
        let kept = rejected(&agent);
        assert_eq!((kept.len(), &kept[0]["items"]), (1, &json!(1)), "{kept:?}");
    }
}

#[test]
fn unrepeatable_messages_are_kept_whole_if_a_part_was_discarded() {
    let (server, agent) = away();
    let guardrail = |id: &str| json!({ "entity_id": id, "secondary_id": uuid7(), "name": "PII", "result": "passed", "config": {}, "details": {} });
    let items: Vec<Value> = ids(3).iter().map(|id| guardrail(id)).collect();
    accepted(&agent, &Request::new("POST", "/v1/private/guardrails").json(&json!({ "guardrails": items })));
    server.script(When::write(), Then::Answer(Answer::json(207, &json!([{ "status": 204 }, { "status": 400 }]))));
    server.start();
    agent.wait_until_delivered();
    let kept = rejected(&agent);
    assert_eq!((kept.len(), &kept[0]["items"]), (1, &json!(3)), "{kept:?}");
    assert_eq!(server.requests_to("POST", "/v1/private/guardrails").len(), 1);
}

#[test]
fn discarded_items_of_a_forwarded_write_are_counted_and_reported_to_its_client() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().start();
    let answer = json!({ "partialSuccess": { "rejectedSpans": 2, "errorMessage": "too large" } });
    server.script(When::path(OTLP), Then::Answer(Answer::json(200, &answer)));
    let mut client = Client::new(&agent.url());
    // The first ones may be stored, before the agent knows that the server is there.
    wait_until("a write is forwarded", PATIENCE, || {
        let told = client.expect(&Request::new("POST", OTLP).json(&spans(5).0));
        assert_eq!(told.status, 200);
        told.json() == answer
    });
    assert!(metric(&agent, "opik_offline_items_rejected_in_success_total") >= 2);
}
