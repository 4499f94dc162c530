//! `replay --verify`: what was delivered is read back.

use opik_offline::message::{Effect, EntityKind, MessageType};
use serde_json::json;

use crate::sandbox::{OTHER_TRACE, SPANS, Sandbox, TRACE, assert_text, message, open, team_of};
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};

/// A backlog of two traces, three spans and a score.
fn backlog() -> (FakeOpik, Sandbox) {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    let body =
        json!({ "scores": [{ "id": TRACE, "name": "helpful", "value": 1, "source": "sdk", "project_name": "demo" }] });
    let (path, touches) = ("v1/private/traces/feedback-scores", [(EntityKind::Trace, TRACE, Effect::Annotate)]);
    let score =
        message(9, &team_of(&server.url()), MessageType::AddTraceFeedbackScoresBatch, ("PUT", path), &touches, &body);
    open(&sandbox.home.db()).register(&[score]).unwrap();
    (server, sandbox)
}

/// The output after the line with the time.
fn after_delivery(found: &str) -> &str {
    let rest = found.split_once('\n').map_or("", |(_, rest)| rest);
    rest.split_once("--- stderr").map_or(rest, |(stdout, _)| stdout)
}

fn code(found: &str) -> &str {
    found.rsplit("--- exit ").next().unwrap().trim()
}

#[test]
fn all_that_was_delivered_is_shown() {
    let (server, sandbox) = backlog();
    let found = sandbox.run(&["replay", "--verify"]);
    assert_text(after_delivery(&found), "verified  5 entities: the server shows all of them\n");
    assert_eq!(code(&found), "0");
    // Pages show everything except entities that are in another project than their message names.
    let singles = server.requests_to("GET", "/v1/private/*").len();
    assert!(singles <= SPANS.len(), "{singles} entities were read one by one");
    let mut report = sandbox.output(&["replay", "--verify", "--format", "json"]).json();
    assert_eq!(report["verified"].take(), json!(null), "nothing was replayed");
}

#[test]
fn what_the_server_swallowed_is_reported_with_4() {
    let (server, sandbox) = backlog();
    server.swallow([TRACE, SPANS[1]]);
    let found = sandbox.run(&["replay", "--verify", "--verify-timeout", "300ms"]);
    assert_text(
        after_delivery(&found),
        &format!(
            "missing   2 of 5 entities: the server does not show\n  trace {TRACE} (workspace team, project demo)\n  span {} (workspace team)\n",
            SPANS[1]
        ),
    );
    assert_eq!(code(&found), "4");
}

#[test]
fn programs_get_a_list_of_what_is_missing() {
    let (server, sandbox) = backlog();
    server.swallow([OTHER_TRACE]);
    let output = sandbox.output(&["replay", "--verify", "--verify-timeout", "100ms", "--format", "json"]);
    assert_eq!(output.code(), Some(4));
    let expected = json!({
        "shown": 4,
        "missing": [{ "kind": "trace", "id": OTHER_TRACE, "workspace": "default", "project": "demo" }],
        "unread": 0,
        "reasons": [],
        "not_readable": {},
        "delivered_elsewhere": 0,
    });
    assert_eq!(output.json()["verified"], expected);
}

#[test]
fn a_score_that_the_server_does_not_show_is_missing_from_its_trace() {
    let (server, sandbox) = backlog();
    // Confirmed and forgotten.
    server.script(When::path("/v1/private/traces/feedback-scores"), Then::Answer(Answer::empty(204)));
    let found = sandbox.run(&["replay", "--verify", "--verify-timeout", "100ms"]);
    assert_text(
        after_delivery(&found),
        &format!(
            "missing   1 of 5 entities: the server does not show\n  scores helpful of trace {TRACE} (workspace team, project demo)\n"
        ),
    );
    assert_eq!(code(&found), "4");
}

#[test]
fn what_is_shown_late_is_waited_for() {
    let (server, sandbox) = backlog();
    server.show_after(6, [TRACE, SPANS[0]]);
    let found = sandbox.run(&["replay", "--verify"]);
    assert_text(after_delivery(&found), "verified  5 entities: the server shows all of them\n");
    assert_eq!(code(&found), "0");
}

#[test]
fn a_server_that_can_not_be_read_is_no_loss_and_ends_it_with_3() {
    for (status, shown) in [(401, "the server answers reads with 401"), (500, "the server answers reads with 500")] {
        let (server, sandbox) = backlog();
        let reads = |request: &crate::support::fake_opik::Received| {
            request.path.ends_with("/search") || (request.method == "GET" && request.path.contains("/private/"))
        };
        server.script(When::any().and(reads), Then::status(status));
        let found = sandbox.run(&["replay", "--verify", "--verify-timeout", "300ms"]);
        let text = after_delivery(&found);
        assert!(text.starts_with("unread    5 entities\n") && text.contains(shown), "{found}");
        assert_eq!(code(&found), "3", "{found}");
    }
}

#[test]
fn a_rate_limit_on_reads_is_waited_for() {
    let (server, sandbox) = backlog();
    let limited = server.script_times(2, When::path("/v1/private/*/search"), Then::rate_limited(1));
    let found = sandbox.run(&["replay", "--verify"]);
    assert_text(after_delivery(&found), "verified  5 entities: the server shows all of them\n");
    assert_eq!((limited.hits(), code(&found)), (2, "0"));
}

#[test]
fn what_can_not_be_read_back_is_counted() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::new().with_server(&server);
    let guardrail = json!({ "guardrails": [{ "entity_id": TRACE, "secondary_id": SPANS[0], "project_name": "demo",
        "name": "PII", "result": "passed", "config": {}, "details": {} }] });
    let touches = [(EntityKind::Trace, TRACE, Effect::Annotate)];
    let path = ("POST", "v1/private/guardrails");
    let stored = message(1, &team_of(&server.url()), MessageType::GuardrailBatch, path, &touches, &guardrail);
    open(&sandbox.home.db()).register(&[stored]).unwrap();
    let found = sandbox.run(&["replay", "--verify"]);
    assert_text(
        after_delivery(&found),
        "verified  nothing: no delivered entity can be read back\n  1 GuardrailBatch request can't be read back\n",
    );
    assert_eq!(code(&found), "0");
}
