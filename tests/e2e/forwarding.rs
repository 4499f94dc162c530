//! The server is there: its own answers come back, streamed and unchanged, and nothing is stored.

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{assert_error, create, update};

/// Waits until the agent has had its first good ping.
fn wait_until_available(agent: &Agent) {
    wait_until("the agent sees the server", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == "available"
    });
}

#[test]
fn the_servers_own_answers_come_back_under_every_prefix() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_available(&agent);
    for prefix in ["/api", "/opik/api", ""] {
        let base = format!("{}{prefix}", agent.origin());
        let mut client = Client::new(&base);
        let id = uuid7();
        let created = client.expect(&create(&id));
        assert_eq!(created.status, 201);
        assert_eq!(created.header("Location"), Some(&*format!("{base}/v1/private/traces/{id}")));
        assert_eq!(client.expect(&update(&id, 1)).status, 204);
        assert_eq!(client.get(&format!("/v1/private/traces/{id}")).json()["output"], json!({ "n": 1 }));
        assert_error(&client.get(&format!("/v1/private/traces/{}", uuid7())), 404);

        // The Location leads back through the agent.
        let location = created.header("Location").unwrap().strip_prefix(&base).unwrap().to_owned();
        assert_eq!(client.get(&location).status, 200);
    }
    assert_eq!(agent.backlog(), 0);
    server.assert_no_violations();
}

#[test]
fn a_write_that_the_server_refuses_goes_back_to_its_client_and_is_not_stored() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_available(&agent);
    let mut client = Client::new(&agent.url());
    for status in [400, 401, 403, 404, 409, 413, 422] {
        let refused = Answer::error(status, "the server's own words").with("X-Opik-Deprecation", "use v2");
        let fault = server.script(When::write(), Then::Answer(refused));
        let answer = client.expect(&create(&uuid7()));
        assert_error(&answer, status);
        assert_eq!(answer.json()["message"], "the server's own words");
        assert_eq!(answer.header("X-Opik-Deprecation"), Some("use v2"));
        fault.clear();
    }
    assert_eq!(agent.backlog(), 0);
    assert_eq!(server.count("default", Kind::Trace), 0);
    // None of it made the agent think that the server is gone.
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    assert_eq!(server.count("default", Kind::Trace), 1, "the next write is forwarded before it is answered");
}

#[test]
fn reads_are_streamed_and_connections_are_kept() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    server.hold_streams_after(1);
    let mut answer = client.open(&Request::new("GET", "/v1/private/stream/3")).unwrap();
    assert_eq!(answer.next_piece().unwrap().unwrap(), b"chunk 0\n", "the first piece comes before the last is written");
    server.release_streams();
    assert_eq!(answer.finish().unwrap().text(), "chunk 1\nchunk 2\n");
    for _ in 0..20 {
        assert_eq!(client.get("/v1/private/stream/1").text(), "chunk 0\n");
        assert_eq!(client.expect(&create(&uuid7())).status, 201);
    }
}

#[test]
fn a_rate_limit_that_reaches_a_client_always_names_its_end() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let read = || Request::new("GET", "/v1/private/projects");
    // The Python SDK drops its data in silence when a 429 has no RateLimit-Reset.
    for (limited, reset) in [
        (Answer::error(429, "slow down"), "1"),
        (Answer::error(429, "slow down").with("Retry-After", "7"), "7"),
        (Answer::error(429, "slow down").with("RateLimit-Reset", "9").with("Retry-After", "7"), "9"),
    ] {
        let fault = server.script(When::path("/v1/private/projects"), Then::Answer(limited));
        let answer = client.expect(&read());
        assert_error(&answer, 429);
        assert_eq!(answer.header("RateLimit-Reset"), Some(reset));
        fault.clear();
    }
}

#[test]
fn writes_that_need_an_answer_get_an_error_during_an_outage() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    for request in [
        Request::new("GET", "/v1/private/projects"),
        Request::new("POST", "/v1/private/traces/search").json(&json!({})),
        Request::new("POST", "/v1/private/projects").json(&json!({"name": "p"})),
    ] {
        let answer = client.expect(&request);
        assert_error(&answer, 503);
        assert!(answer.header("Retry-After").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s >= 1)));
    }
    assert_eq!(agent.backlog(), 0);
}

#[test]
fn the_agents_own_pages_answer_whatever_the_server_does() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.origin());
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    for path in
        ["/is-alive/ping", "/api/is-alive/ping", "/opik/api/is-alive/ping", "/-/healthy", "/-/ready", "/metrics", "/"]
    {
        assert_eq!(client.get(path).status, 200, "{path}");
    }
    let ready = client.get("/-/ready").json();
    assert_eq!((&ready["ready"], &ready["server"]["connection"]), (&json!(true), &json!("unavailable")));
    assert_eq!((&ready["store"]["usable"], &ready["store"]["waiting"]), (&json!(true), &json!(1)));
    assert!(client.get("/metrics").text().contains("opik_offline_"));
    assert_error(&client.expect(&Request::new("POST", "/-/ready")), 405);

    // A name of somebody else's that points here is not shown the pages.
    let mut rebound = std::net::TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    let head = "GET /-/ready HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut rebound, head.as_bytes()).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut rebound, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
