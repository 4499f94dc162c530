//! The agent as a proxy: streams, large answers, and the corners of HTTP that clients use.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};

/// Sends raw bytes and reads until the other side closes the connection.
fn raw(agent: &Agent, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers and closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_stream_reaches_the_client_while_the_server_still_writes_it() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    server.hold_streams_after(2);
    let mut answer = client.open(&Request::new("GET", "/v1/private/stream/5")).expect("the head comes at once");
    assert_eq!(answer.head.status, 200);
    let mut begin = Vec::new();
    while begin.len() < b"chunk 0\nchunk 1\n".len() {
        begin.extend(answer.next_piece().expect("it continues").expect("it is not over"));
    }
    assert_eq!(begin, b"chunk 0\nchunk 1\n");
    server.release_streams();
    assert_eq!(answer.finish().expect("it ends").body, b"chunk 2\nchunk 3\nchunk 4\n");
}

/// The most memory that a process ever had, in bytes.
fn memory_peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux tells it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is among it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn large_downloads_and_uploads_pass_without_being_held() {
    const BYTES: usize = 150 * 1024 * 1024;
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let content: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
    let mut large = Answer::empty(200);
    large.body = content.clone();
    let _download = server.script(When::path("/v1/private/attachment/download"), Then::Answer(large));
    let _upload = server.script(When::path("/v1/private/datasets/items/from-csv"), Then::Answer(Answer::empty(204)));
    client.get("/is-alive/ver");
    let before = memory_peak(agent.pid());

    let answer = client.get("/v1/private/attachment/download");
    assert!(answer.status == 200 && answer.body == content, "the download was changed");
    let upload = Request::new("POST", "/v1/private/datasets/items/from-csv").bytes(content.clone()).chunked(64 * 1024);
    assert_eq!(client.expect(&upload).status, 204);
    let received = server.requests_to("POST", "/v1/private/datasets/items/from-csv");
    assert!(received[0].body[..] == content[..], "the upload was changed");

    let grown = memory_peak(agent.pid()) - before;
    assert!(grown < BYTES as u64 / 4, "the agent held {grown} bytes to pass {BYTES} on");
}

#[test]
fn expect_continue_is_answered() {
    for is_running in [true, false] {
        let server = FakeOpik::start_new();
        let agent = Agent::start(&server);
        if !is_running {
            server.stop();
        }
        let body = json!({ "id": uuid7(), "start_time": "2026-03-01T04:00:16Z" }).to_string();
        let head = format!(
            "POST /api/v1/private/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut told = [0; 25];
        stream.read_exact(&mut told).expect("it asks for the body");
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(body.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
        if !is_running {
            server.start();
            agent.wait_until_delivered();
        }
        let sent = &server.requests_to("POST", "/v1/private/traces")[0];
        assert_eq!(sent.header("Expect"), None, "nobody waits for that now");
        assert_eq!(&sent.body[..], body.as_bytes());
    }
}

#[test]
fn head_and_options_are_the_servers_to_answer() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_ALLOWED_HOSTS", "http://ui").start();
    let mut client = Client::new(&agent.url());
    let got = client.get("/is-alive/ver");
    let head = client.expect(&Request::new("HEAD", "/is-alive/ver"));
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("Content-Length"), got.header("Content-Length"));
    let options = client.expect(&Request::new("OPTIONS", "/v1/private/traces").header("Origin", "http://ui"));
    assert_eq!(options.status, 200);
    assert_eq!(options.header("Allow"), Some("GET, HEAD, POST, OPTIONS"));
    assert_eq!(server.requests_to("OPTIONS", "/v1/private/traces")[0].header("Origin"), Some("http://ui"));
    assert_eq!(client.expect(&Request::new("HEAD", "/is-alive/ping")).status, 200);
    // The connection is still good after answers without a body.
    assert_eq!(client.get("/is-alive/ver").json(), got.json());
}

#[test]
fn clients_of_http_1_0_are_served() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let answer = raw(&agent, "GET /api/is-alive/ver HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 ") || answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("version"), "{answer}");
    // They know no chunks: a stream ends with the connection.
    let stream = raw(&agent, "GET /api/v1/private/stream/3 HTTP/1.0\r\n\r\n");
    assert!(!stream.to_lowercase().contains("transfer-encoding"), "{stream}");
    assert!(stream.ends_with("\r\n\r\nchunk 0\nchunk 1\nchunk 2\n"), "{stream}");
    let body = json!({ "id": uuid7(), "start_time": "2026-03-01T04:00:16Z" }).to_string();
    let create = format!(
        "POST /api/v1/private/traces HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = raw(&agent, &create);
    assert!(answer.contains(" 201 Created"), "{answer}");
    server.stop();
    let answer = raw(&agent, &create);
    assert!(answer.contains(" 201 Created") && answer.to_lowercase().contains("location:"), "{answer}");
}

#[test]
fn one_connection_serves_forwarded_stored_and_refused_requests() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let create = || {
        let body = json!({ "id": uuid7(), "start_time": "2026-03-01T04:00:16Z" }).to_string();
        format!(
            "POST /api/v1/private/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let bad = "POST /api/v1/private/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{";
    let mut ask = |requests: &str, expected: &[&str]| {
        stream.write_all(requests.as_bytes()).expect("it reads");
        let mut answers = String::new();
        let mut piece = [0; 4096];
        while answers.matches("HTTP/1.1 ").count() < expected.len() || !answers.ends_with(['\n', '}']) {
            let read = stream.read(&mut piece).expect("it answers");
            assert!(read > 0, "the connection was closed after {answers}");
            answers += &String::from_utf8_lossy(&piece[..read]);
        }
        let found: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(found, expected);
    };
    ask(&create(), &["201"]);
    ask(bad, &["400"]);
    // Pipelined: answered in their order.
    ask(&format!("{}{bad}{}", create(), create()), &["201", "400", "201"]);
    server.stop();
    ask(&create(), &["201"]);
    ask("GET /api/v1/private/traces/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", &["503"]);
    ask(&create(), &["201"]);
    server.start();
    agent.wait_until_delivered();
}

#[test]
fn a_read_at_a_hanging_server_fails_soon() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let _hanging = server.hang_all();
    // A write notices nothing: it is stored as soon as the ping failed.
    wait_until("the agent takes the server to be away", PATIENCE, || agent.stderr().contains("is unavailable"));
    let answer = client.get("/v1/private/traces/x");
    assert_eq!(answer.status, 503, "{}", answer.text());
    let create = client.post("/v1/private/experiments", &json!({ "dataset_name": "d" }));
    assert_eq!(create.status, 503, "{}", create.text());
    assert_eq!(client.post("/v1/private/experiments", &json!({ "dataset_name": "d", "id": uuid7() })).status, 201);
}
