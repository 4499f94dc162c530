//! `replay --verify` after an outage: a large backlog is read back in pages, and what was deleted is not missed.

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request};
use crate::support::uuid7;
use crate::writes::{create_batch, score, update};

/// Two workspaces' backlog of 3,000 traces, of which one is scored and one deleted, without an agent.
fn backlog() -> (FakeOpik, Agent, Vec<String>) {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let ids: Vec<String> = (0..3000).map(|_| uuid7()).collect();
    for (batch, ids) in ids.chunks(500).enumerate() {
        let workspace = if batch % 2 == 0 { "default" } else { "other" };
        let mut client = Client::new(&agent.url()).with_header("Comet-Workspace", workspace);
        assert_eq!(client.expect(&create_batch(ids)).status, 204);
    }
    let mut client = Client::new(&agent.url()).with_header("Comet-Workspace", "default");
    assert_eq!(client.expect(&score(&ids[0], 1.0)).status, 204);
    let delete = Request::new("POST", "/v1/private/traces/delete").json(&json!({ "ids": [ids[1]] }));
    assert_eq!(client.expect(&delete).status, 204);
    agent.terminate();
    server.start();
    (server, agent, ids)
}

fn reads(server: &FakeOpik) -> (usize, usize) {
    let pages = server.requests_to("POST", "/v1/private/traces/search").len();
    (pages, server.requests_to("GET", "/v1/private/traces/*").len())
}

#[test]
fn a_large_backlog_is_read_back_in_pages() {
    let (server, agent, _) = backlog();
    let output = agent.cli(&["replay", "--verify", "--format", "json"]);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    let verified = output.json()["verified"].clone();
    assert_eq!((&verified["shown"], &verified["missing"]), (&json!(2999), &json!([])), "{verified}");
    let (pages, singles) = reads(&server);
    assert!(pages <= 6 && singles == 0, "{pages} pages and {singles} single reads for 2,999 traces");
}

#[test]
fn one_swallowed_trace_of_a_large_backlog_is_found() {
    let (server, agent, ids) = backlog();
    server.swallow([&*ids[700]]);
    let output = agent.cli(&["replay", "--verify", "--verify-timeout", "200ms", "--format", "json"]);
    assert_eq!(output.code(), Some(4), "{}", output.stderr);
    let missing = output.json()["verified"]["missing"].clone();
    assert_eq!(missing.as_array().map(Vec::len), Some(1), "{missing}");
    assert_eq!((&missing[0]["id"], &missing[0]["workspace"]), (&json!(ids[700]), &json!("other")));
}

#[test]
fn more_than_is_kept_in_memory_at_once_is_read_back_on_the_way() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.url());
    for _ in 0..25 {
        let ids: Vec<String> = (0..1000).map(|_| uuid7()).collect();
        assert_eq!(client.expect(&create_batch(&ids)).status, 204);
    }
    agent.terminate();
    server.start();
    let output = agent.cli(&["replay", "--verify", "--format", "json"]);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert_eq!(output.json()["verified"]["shown"], 25_000);
    let before_the_last_write = server.requests().iter().rev().skip_while(|r| r.writes.is_empty()).count();
    let on_the_way = server.requests()[..before_the_last_write].iter().filter(|r| r.path.ends_with("/search")).count();
    assert!(on_the_way > 0, "everything that was delivered was kept until the end");
}

#[test]
fn a_partial_row_is_found_and_completed() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let ids: Vec<String> = (0..5).map(|_| uuid7()).collect();
    assert_eq!(Client::new(&agent.url()).expect(&create_batch(&ids)).status, 204);
    agent.terminate();
    server.start();
    // Past this agent, so nothing here knows of it.
    assert_eq!(Client::new(&server.url()).expect(&update(&ids[2], 7)).status, 204);
    let output = agent.cli(&["replay", "--verify", "--format", "json"]);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    let verified = output.json()["verified"].clone();
    assert_eq!((&verified["shown"], &verified["repaired"]), (&json!(5), &json!(1)), "{verified}");
    let record = server.entity("default", Kind::Trace, &ids[2]).and_then(|entity| entity.record).expect("it is there");
    assert!(!record.partial && record.fields.contains_key("name") && record.fields.contains_key("output"));
}
