//! Requests that no Opik server could ever accept are refused at once, in Opik's error format, with the server up or
//! down; none of it is stored.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request, gzip};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{assert_error, create, trace};

const PATH: &str = "/v1/private/traces";

fn limited(server: &FakeOpik) -> Agent {
    Agent::builder(&server.url())
        .impatient()
        .arg("--max-body-size")
        .arg("64KiB")
        .arg("--max-inflated-size")
        .arg("1MiB")
        .start()
}

/// Starts a limited agent that knows whether its server is there.
fn limited_with_server(away: bool) -> (FakeOpik, Agent) {
    let server = FakeOpik::start_new();
    let agent = limited(&server);
    let state = if away { "unavailable" } else { "available" };
    if away {
        server.stop();
    }
    wait_until("the agent knows how its server is", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == state
    });
    (server, agent)
}

/// Does it with the server there, and with the server away.
fn there_and_away(test: impl Fn(&FakeOpik, &Agent)) {
    for away in [false, true] {
        let (server, agent) = limited_with_server(away);
        eprintln!("the server is away: {away}");
        test(&server, &agent);
        assert_eq!(agent.backlog(), 0, "something that was refused is stored");
        assert!(server.requests().iter().all(|request| request.route() == "/is-alive/ping"), "it reached the server");
        // The agent is as well as before.
        assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    }
}

/// Sends these bytes, and no more when `ends`, and reads until the agent closes the connection.
fn raw(agent: &Agent, wire: &[u8], ends: bool) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(wire).unwrap();
    if ends {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer)
}

#[test]
fn a_body_that_no_server_could_read_is_refused() {
    there_and_away(|_, agent| {
        let mut client = Client::new(&agent.url());
        let good = trace(&uuid7(), "chat").to_string().into_bytes();
        let damaged = |cut: usize| {
            let mut body = gzip(&good);
            body.truncate(body.len() - cut);
            body
        };
        let flipped = {
            let mut body = gzip(&good);
            let at = body.len() - 6;
            body[at] ^= 0xff;
            body
        };
        let post = |body: &[u8]| Request::new("POST", PATH).header("Content-Type", "application/json").bytes(body);
        let mut cases = vec![
            (post(b"not json"), 400),
            (post(b""), 400),
            (post(b"   "), 400),
            (post(b"{"), 400),
            (post(b"{\"a\":1} trailing"), 400),
            (post(b"\xff\xfe{}"), 400),
            (post(b"plain").header("Content-Encoding", "gzip"), 400),
            (post(b"").header("Content-Encoding", "gzip"), 400),
            (post(&damaged(1)).header("Content-Encoding", "gzip"), 400),
            (post(&damaged(20)).header("Content-Encoding", "gzip"), 400),
            (post(&flipped).header("Content-Encoding", "gzip"), 400),
            (post(&good).header("Content-Encoding", "br"), 415),
            (post(&good).header("Content-Encoding", "gzip, gzip"), 415),
        ];
        for path in [
            "/v1/private/traces/batch",
            "/v1/private/spans",
            "/v1/private/spans/batch",
            "/v1/private/guardrails",
            "/v1/private/experiments/items",
        ] {
            cases.push((Request::new("POST", path).bytes(*b"[1,"), 400));
        }
        for (request, status) in cases {
            // A client that is cut off while it still writes would never see why.
            assert_error(&client.expect(&request), status);
        }
    });
}

/// Past its limits the agent can't keep a body, so it is the server that judges it; with the server away it is refused.
#[test]
fn a_body_past_the_limits_is_the_servers_to_judge_and_is_never_stored() {
    for away in [false, true] {
        let (server, agent) = limited_with_server(away);
        let post =
            |bytes| Request::new("POST", PATH).header("Content-Type", "application/json").bytes(vec![b' '; bytes]);
        let mut client = Client::new(&agent.url());
        for request in [
            post(65 * 1024),
            post(65 * 1024).chunked(1000),
            post(8 * 1024 * 1024),
            post(8 * 1024 * 1024).chunked(100_000),
            post(2 * 1024 * 1024).gzip(),
        ] {
            let before = server.requests_to("POST", PATH).len();
            // A client that is cut off while it still writes would never see why.
            assert_error(&client.expect(&request), if away { 413 } else { 400 });
            assert_eq!(server.requests_to("POST", PATH).len(), before + usize::from(!away));
        }
        assert_eq!(agent.backlog(), 0, "something that was refused is stored");
    }
}

#[test]
fn what_is_within_the_limits_is_taken() {
    let server = FakeOpik::new_stopped();
    let agent = limited(&server);
    let mut client = Client::new(&agent.url());
    let mut body = trace(&uuid7(), "large");
    body["input"] = json!("x".repeat(1024 * 1024 - 1024));
    assert_eq!(client.expect(&Request::new("POST", PATH).json(&body).gzip()).status, 201);
    body["id"] = json!(uuid7());
    body["input"] = json!("x".repeat(63 * 1024));
    assert_eq!(client.expect(&Request::new("POST", PATH).json(&body)).status, 201);
    body["id"] = json!(uuid7());
    assert_eq!(client.expect(&Request::new("POST", PATH).json(&body).chunked(999)).status, 201);
    server.start();
    agent.wait_until_delivered();
    server.assert_no_violations();
}

#[test]
fn a_request_that_is_framed_wrongly_is_refused() {
    there_and_away(|_, agent| {
        let body = trace(&uuid7(), "chat").to_string();
        let length = body.len();
        let post = |headers: &str, body: &str| {
            format!(
                "POST /api{PATH} HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\r\n{body}"
            )
            .into_bytes()
        };
        let chunks = format!("{length:x}\r\n{body}\r\n");
        let chunked = format!("{chunks}0\r\n\r\n");
        let lengths = format!("Host: 127.0.0.1\r\nContent-Length: {length}\r\nContent-Length: 5\r\n");
        for (what, ends, wire) in [
            ("more promised than sent", true, post("Host: 127.0.0.1\r\nContent-Length: 9999\r\n", &body)),
            ("two lengths", false, post(&lengths, &body)),
            ("a length that is none", false, post("Host: 127.0.0.1\r\nContent-Length: ten\r\n", &body)),
            (
                "broken chunks",
                false,
                post("Host: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n", "zz\r\nabc\r\n0\r\n\r\n"),
            ),
            ("chunks without an end", true, post("Host: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n", &chunks)),
            ("another coding", false, post("Host: 127.0.0.1\r\nTransfer-Encoding: chunked, gzip\r\n", &chunked)),
            ("no host", false, post(&format!("Content-Length: {length}\r\n"), &body)),
            ("two hosts", false, post(&format!("Host: 127.0.0.1\r\nHost: b\r\nContent-Length: {length}\r\n"), &body)),
            ("no HTTP", false, b"hello\r\n\r\n".to_vec()),
        ] {
            let (status, answer) = raw(agent, &wire, ends);
            assert_eq!(status, 400, "{what}: {answer:?}");
            assert!(!answer.contains(" 201 "), "{what}: {answer:?}");
        }
    });
}

#[test]
fn a_client_that_hangs_up_in_the_middle_leaves_nothing_behind() {
    there_and_away(|_, agent| {
        let mut client = Client::new(&agent.url());
        for bytes in [0, 1, 40] {
            client.send_part(&create(&uuid7()), bytes).unwrap().hang_up();
            client.send_part(&create(&uuid7()).chunked(7), bytes).unwrap().hang_up();
        }
        // Its place in the order is free again.
        let id = uuid7();
        client.send_part(&create(&id), 40).unwrap().hang_up();
    });
}
