//! Messages that wait with a create that the server refused: for any reason, or for the time in its id.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::Client;
use crate::support::{PATIENCE, uuid7, uuid7_of, wait_until};
use crate::writes::{create, create_batch, delete, score, span, update};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An agent whose server is away. A held message is tried again after 60 times the retry interval.
fn storing(retry_interval: &str) -> (FakeOpik, Agent) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient();
    let agent = agent.arg("--retry-interval").arg(retry_interval).arg("--max-attempts").arg("2").start();
    (server, agent)
}

fn status(agent: &Agent) -> Value {
    agent.cli(&["status", "--format", "json"]).json()
}

fn is_there(server: &FakeOpik, id: &str) -> bool {
    server.entity("default", Kind::Trace, id).is_some_and(|entity| entity.record.is_some())
}

/// Counts the updates and scores of these traces, and their spans, that reached the server.
fn followers(server: &FakeOpik, ids: &[String]) -> usize {
    let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
    let mut found = 0;
    for request in server.requests() {
        let route = request.route();
        if route.starts_with("/v1/private/spans") {
            let json = request.json.clone().unwrap_or_default();
            let spans = json["spans"].as_array().cloned().unwrap_or_else(|| vec![(*json).clone()]);
            found += spans.iter().filter(|span| span["trace_id"].as_str().is_some_and(|id| ids.contains(id))).count();
        } else if request.method != "POST" {
            found += usize::from(request.writes.iter().any(|write| ids.contains(&*write.key.id)));
        }
    }
    found
}

fn refused(server: &FakeOpik) -> usize {
    server.requests().iter().filter(|request| request.answered_status == Some(400)).count()
}

#[test]
fn a_backlog_older_than_the_servers_window_is_held_by_a_handful_of_requests_and_delivered_once_it_opens() {
    let (server, agent) = storing("50ms");
    server.set_id_window(Some(DAY), &[]);
    let mut client = Client::new(&agent.url());
    let old: Vec<String> = (0..4000).map(|n| uuid7_of(30 * HOUR - Duration::from_secs(n))).collect();
    let mut young = Vec::new();
    for (n, id) in old.iter().enumerate() {
        assert_eq!(client.expect(&create(id)).status, 201);
        if n % 40 == 0 {
            assert_eq!(client.expect(&update(id, n as u64)).status, 204);
            assert_eq!(client.expect(&score(id, 0.5)).status, 204);
            young.push(uuid7());
            assert_eq!(client.expect(&create(&young[young.len() - 1])).status, 201);
            assert_eq!(client.expect(&update(&young[young.len() - 1], n as u64)).status, 204);
        }
    }
    // One stored batch has items on both sides.
    let mixed: Vec<String> = (0..40).map(|n| if n % 2 == 0 { uuid7() } else { uuid7_of(26 * HOUR) }).collect();
    assert_eq!(client.expect(&create_batch(&mixed)).status, 204);
    server.start();
    let young: Vec<String> = young.into_iter().chain(mixed.iter().step_by(2).cloned()).collect();
    wait_until("all young ones are there", PATIENCE, || young.iter().all(|id| is_there(&server, id)));
    wait_until("all old ones are held", PATIENCE, || status(&agent)["held_ids"]["messages"] == 4001);
    let asked = refused(&server);
    assert!(asked <= 16, "{asked} requests were refused to find out what a few tell");
    let shown = status(&agent);
    assert_eq!(shown["rejected"]["messages"], 0, "{shown}");
    assert!(shown["stranded"][0]["messages"].as_u64().is_some_and(|messages| messages >= 200), "{shown}");
    assert!(
        shown["held_ids"]["remedy"].as_str().is_some_and(|text| text.contains("UUID_VALIDATION_WINDOW")),
        "{shown}"
    );
    assert_eq!(followers(&server, &old), 0, "updates and scores made nameless traces");

    // New writes also wait with their trace, even though the server is up.
    assert_eq!(client.expect(&update(&old[7], 7)).status, 204);
    assert_eq!(client.expect(&span(&uuid7(), &old[8])).status, 201);
    let beside = uuid7();
    assert_eq!(client.expect(&create(&beside)).status, 201);
    assert!(is_there(&server, &beside), "independent writes are forwarded at once");
    assert_eq!(followers(&server, &old), 0);

    server.set_id_window(None, &[]);
    wait_until("held messages are retried automatically", PATIENCE * 3, || old.iter().all(|id| is_there(&server, id)));
    agent.wait_until_delivered();
    assert_eq!(status(&agent)["held_ids"]["messages"], 0);
    assert!(mixed.iter().all(|id| is_there(&server, id)));
    server.assert_no_update_before_create();
    assert!(followers(&server, &old) >= 202);
}

#[test]
fn held_messages_are_tried_at_once_when_a_person_asks() {
    let (server, agent) = storing("10m");
    server.set_id_window(Some(DAY), &["other"]);
    let mut client = Client::new(&agent.url());
    let (old, new) = (uuid7_of(30 * HOUR), uuid7_of(Duration::ZERO));
    assert_eq!(client.expect(&create(&old)).status, 201);
    assert_eq!(client.expect(&update(&old, 1)).status, 204);
    assert_eq!(client.expect(&create(&new)).status, 201);
    let bypassed = uuid7_of(30 * HOUR);
    assert_eq!(client.expect(&create(&bypassed).header("Comet-Workspace", "other")).status, 201);
    server.start();
    wait_until("the old one is held", PATIENCE, || status(&agent)["held_ids"]["messages"] == 1);
    assert!(server.entity("other", Kind::Trace, &bypassed).is_some(), "a workspace with a bypass is served");
    let listed = agent.cli(&["inspect", "--status", "held", "--format", "json"]).stdout;
    assert!(listed.contains("too_old"), "the server's details are kept:\n{listed}");

    let still = agent.cli(&["replay", "--status", "held"]);
    assert_eq!(still.code(), Some(4), "{}\n{}", still.stdout, still.stderr);
    assert!(still.stdout.contains("UUID_VALIDATION_WINDOW"), "{}", still.stdout);
    server.set_id_window(Some(2 * DAY), &[]);
    let passed = agent.cli(&["replay", "--status", "held"]);
    assert_eq!(passed.code(), Some(0), "{}\n{}", passed.stdout, passed.stderr);
    agent.wait_until_delivered();
    assert!(is_there(&server, &old));
    server.assert_no_update_before_create();
}

#[test]
fn what_depends_on_a_refused_create_waits_with_it_whatever_the_reason() {
    for reason in [400, 404, 413, 422, 500] {
        let (server, agent) = storing("100ms");
        let mut client = Client::new(&agent.url());
        let (bad, good) = (uuid7(), uuid7());
        assert_eq!(client.expect(&create(&bad)).status, 201);
        assert_eq!(client.expect(&update(&bad, 1)).status, 204);
        assert_eq!(client.expect(&score(&bad, 0.5)).status, 204);
        // While the server only fails at a create, it may still accept it later: a span of it needs no order.
        let waiting = if reason == 500 { 2 } else { 3 };
        if reason != 500 {
            assert_eq!(client.expect(&span(&uuid7(), &bad)).status, 201);
        }
        for id in (0..5).map(|_| uuid7()).chain([good.clone()]) {
            assert_eq!(client.expect(&create(&id)).status, 201);
        }
        assert_eq!(client.expect(&update(&good, 1)).status, 204);
        let fault = server.refuse_creates_of(&bad, reason);
        server.start();
        wait_until("the create is rejected", PATIENCE, || status(&agent)["rejected"]["messages"] == 1);
        wait_until("the rest is delivered", PATIENCE, || is_there(&server, &good) && agent.backlog() == waiting);
        assert_eq!(followers(&server, std::slice::from_ref(&bad)), 0, "{reason}: a partial trace was made");

        // Live writes wait, too; others don't.
        assert_eq!(client.expect(&update(&bad, 2)).status, 204);
        assert_eq!(client.expect(&span(&uuid7(), &bad)).status, 201);
        assert_eq!(client.expect(&update(&good, 2)).status, 204);
        wait_until("only what depends on it waits", PATIENCE, || agent.backlog() == waiting + 2);
        assert_eq!(followers(&server, std::slice::from_ref(&bad)), 0, "{reason}: a partial trace was made");
        let replayed = agent.cli(&["replay"]);
        assert_eq!(replayed.code(), Some(4), "{}", replayed.stdout);
        assert!(replayed.stdout.contains("opik-offline inspect"), "the reason is not shown:\n{}", replayed.stdout);
        let shown = agent.cli(&["status"]).stdout;
        assert!(shown.contains("stranded"), "{shown}");

        fault.clear();
        agent.cli(&["replay", "--rejected"]);
        agent.wait_until_delivered();
        assert!(is_there(&server, &bad));
        assert_eq!(followers(&server, std::slice::from_ref(&bad)) as u64, waiting + 2, "{reason}");
        server.assert_no_update_before_create();
        server.assert_no_overlaps();
        server.assert_no_violations();
    }
}

#[test]
fn what_waits_goes_free_when_the_create_is_purged_and_a_restart_forgets_nothing() {
    let (server, mut agent) = storing("100ms");
    let mut client = Client::new(&agent.url());
    let bad = uuid7();
    assert_eq!(client.expect(&create(&bad)).status, 201);
    assert_eq!(client.expect(&update(&bad, 1)).status, 204);
    assert_eq!(client.expect(&delete(&bad)).status, 204);
    server.refuse_creates_of(&bad, 422);
    server.start();
    wait_until("the create is rejected", PATIENCE, || status(&agent)["rejected"]["messages"] == 1);
    agent.kill9();
    agent.restart_on_same_port();
    let beside = uuid7();
    wait_until("the agent is back", PATIENCE, || Client::new(&agent.url()).expect(&create(&beside)).status == 201);
    assert_eq!(Client::new(&agent.url()).expect(&update(&bad, 2)).status, 204);
    assert_eq!(agent.backlog(), 3);
    assert_eq!(followers(&server, std::slice::from_ref(&bad)), 0);
    agent.cli(&["purge", "--rejected", "--yes"]);
    agent.wait_until_delivered();
    assert_eq!(followers(&server, std::slice::from_ref(&bad)), 3);
}
