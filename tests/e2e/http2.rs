//! HTTP/2 by prior knowledge: a client that speaks it is served, checked, bounded and given up like any other.

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;

use crate::http_compatibility::{raw, statuses, wait_until_it_is};
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, trace};

const PATH: &str = "/v1/private/traces";

/// A client that knows that its server speaks HTTP/2.
struct Http2 {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    port: u16,
    closed: tokio::task::JoinHandle<()>,
}

impl Http2 {
    fn connect(agent: &Agent) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let port = agent.port();
        let (sender, closed) = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            (sender, tokio::spawn(async move { drop(connection.await) }))
        });
        Self { runtime, sender, port, closed }
    }

    fn request(&self, method: &str, path: &str, body: impl Into<Bytes>) -> http::Request<Full<Bytes>> {
        let uri = format!("http://127.0.0.1:{}{path}", self.port);
        let request = http::Request::builder().method(method).uri(uri).header("content-type", "application/json");
        request.body(Full::new(body.into())).unwrap()
    }

    fn send(&self, request: http::Request<Full<Bytes>>) -> (u16, Bytes) {
        let mut sender = self.sender.clone();
        let exchange = async {
            let answer = sender.send_request(request).await.unwrap();
            let status = answer.status().as_u16();
            (status, answer.into_body().collect().await.unwrap().to_bytes())
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time") })
    }

    fn create(&self, id: &str) -> http::Request<Full<Bytes>> {
        self.request("POST", &format!("/api{PATH}"), trace(id, "chat").to_string())
    }

    fn wait_until_closed(self) {
        let Self { runtime, closed, sender: _sender, .. } = self;
        runtime.block_on(async { tokio::time::timeout(PATIENCE, closed).await.expect("it is closed").unwrap() });
    }
}

#[test]
fn an_exporter_that_speaks_grpc_is_named_once_in_the_log_and_in_status() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let problem = "an OpenTelemetry exporter sends over gRPC";
    let client = Http2::connect(&agent);
    client.send(client.create(&uuid7()));
    assert!(!agent.stderr().contains(problem), "a client of HTTP/2 is not one of gRPC: {}", agent.stderr());
    for _ in 0..2 {
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let mut export = client.request("POST", path, &b"\0\0\0\0\0"[..]);
        export.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        client.send(export);
    }
    wait_until("it is logged", PATIENCE, || agent.stderr().contains(problem));
    assert_eq!(agent.stderr().matches(problem).count(), 1, "{}", agent.stderr());
    assert!(agent.stderr().contains("set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"), "{}", agent.stderr());
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert!(status["agent"]["client_problem"].as_str().is_some_and(|said| said.contains(problem)), "{status}");
}

#[test]
fn a_client_of_http2_is_served_through_an_outage_like_any_other() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let client = Http2::connect(&agent);
    let ids: Vec<String> = (0..3).map(|_| uuid7()).collect();
    assert_eq!(client.send(client.create(&ids[0])).0, 201);
    let forwarded = &server.requests_to("POST", PATH)[0];
    assert_eq!(forwarded.header("host"), Some(server.url().split('/').nth(2).unwrap()), "it continues in HTTP/1.1");
    assert_eq!(client.send(client.request("GET", &format!("/api{PATH}/{}", ids[0]), "")).0, 200);
    assert_eq!(client.send(client.request("GET", "/-/healthy", "")).0, 200);
    let streamed: String = (0..30).map(|n| format!("chunk {n}\n")).collect();
    let answer = client.send(client.request("GET", "/api/v1/private/stream/30", ""));
    assert!(answer == (200, streamed.into()), "a long answer is passed on as it is: {}", answer.0);
    let mut large = trace(&ids[1], "chat");
    large["input"]["q"] = "x".repeat(5 << 20).into();
    assert_eq!(client.send(client.request("POST", &format!("/api{PATH}"), large.to_string())).0, 201);
    server.stop();
    wait_until_it_is("unavailable", &agent);
    assert_eq!(client.send(client.create(&ids[2])).0, 201);
    assert_eq!(agent.backlog(), 1);
    assert_eq!(client.send(client.request("GET", &format!("/api{PATH}/x"), "")).0, 503);
    server.start();
    agent.wait_until_delivered();
    for id in &ids {
        assert!(server.entity("default", Kind::Trace, id).is_some(), "{id} is lost");
    }
    server.assert_no_violations();
}

#[test]
fn a_hundred_streams_of_one_connection_are_answered_at_once() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let client = Http2::connect(&agent);
    let held = server.script(When::path(PATH).method("POST"), Then::Hold);
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (mut sender, request) = (client.sender.clone(), client.create(&uuid7()));
            client.runtime.spawn(async move { sender.send_request(request).await.unwrap().status().as_u16() })
        })
        .collect();
    wait_until("many are on their way", PATIENCE, || held.hits() >= 50);
    assert_eq!(client.send(client.request("GET", "/-/healthy", "")).0, 200, "none waits for the others");
    held.clear();
    for task in tasks {
        assert_eq!(client.runtime.block_on(task).unwrap(), 201);
    }
    assert_eq!(server.count("default", Kind::Trace), 100);
}

#[test]
fn the_same_checks_hold_for_http2() {
    const TOKEN: &str = "made-up-token-24680";
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN);
    let agent = agent.arg("--max-body-size").arg("1MiB").start();
    let client = Http2::connect(&agent);
    let with = |name: &'static str, value: &str| {
        let mut request = client.create(&uuid7());
        request.headers_mut().insert("x-opik-offline-token", TOKEN.parse().unwrap());
        request.headers_mut().append(name, value.parse().unwrap());
        client.send(request).0
    };
    assert_eq!(client.send(client.create(&uuid7())).0, 401, "without the token");
    assert_eq!(with("x-none", "1"), 201);
    assert_eq!(with("host", "evil.example"), 403);
    assert_eq!(with("origin", "http://evil.example"), 403);
    assert_eq!(with("sec-fetch-site", "cross-site"), 403);
    let mut other = client.create(&uuid7());
    *other.uri_mut() = format!("http://evil.example/api{PATH}").parse().unwrap();
    assert_eq!(client.send(other).0, 403, "another authority");
    let mut large = client.request("POST", &format!("/api{PATH}"), vec![b' '; 2 << 20]);
    large.headers_mut().insert("x-opik-offline-token", TOKEN.parse().unwrap());
    assert_eq!(client.send(large.clone()).0, 400, "the server judges a request that is too large to be kept");
    server.stop();
    assert_eq!(client.send(large).0, 413, "and the agent's while that is away");
    let mut long = client.create(&uuid7());
    *long.uri_mut() = format!("http://127.0.0.1:{}/{}", client.port, "x".repeat(20_000)).parse().unwrap();
    assert_eq!(client.send(long).0, 414);
}

#[test]
fn a_connection_of_http2_ends_when_it_is_idle_and_when_the_agent_stops() {
    let server = FakeOpik::start_new();
    let mut agent = Agent::builder(&server.url()).impatient().arg("--client-timeout").arg("500ms").start();
    let idle = Http2::connect(&agent);
    assert_eq!(idle.send(idle.request("GET", "/-/healthy", "")).0, 200);
    idle.wait_until_closed();
    // A preface that never ends, and one that only begins like HTTP/2.
    let mut begun = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    begun.set_read_timeout(Some(PATIENCE)).unwrap();
    begun.write_all(b"PRI * HTTP/2.0\r\n\r\nS").unwrap();
    assert_eq!(begun.read(&mut [0; 16]).unwrap(), 0, "it is closed");
    assert_eq!(statuses(&raw(&agent, b"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n", false)), ["400"]);

    wait_until_it_is("available", &agent);
    let held = server.script(When::path(PATH).method("POST"), Then::Hold);
    let busy = Http2::connect(&agent);
    let (mut sender, request) = (busy.sender.clone(), busy.create(&uuid7()));
    let answer = busy.runtime.spawn(async move { sender.send_request(request).await.unwrap().status().as_u16() });
    wait_until("the write is on its way", PATIENCE, || held.hits() == 1);
    agent.signal(rustix::process::Signal::TERM);
    wait_until("the agent stops taking requests", PATIENCE, || agent.stderr().contains("no new requests"));
    held.clear();
    assert_eq!(busy.runtime.block_on(answer).unwrap(), 201, "a request in progress is finished");
    busy.wait_until_closed();
    assert!(agent.wait().success());
}

#[test]
fn a_client_of_http2_that_takes_nothing_of_its_answer_is_given_up() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--client-timeout").arg("300ms").start();
    wait_until_it_is("available", &agent);
    // By hand: a client that gives its server no window at all.
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS: INITIAL_WINDOW_SIZE 0. HEADERS: GET, http, /, with `localhost` as the authority.
    wire.extend_from_slice(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00");
    wire.extend_from_slice(b"\x00\x00\x0e\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x09localhost");
    stream.write_all(&wire).unwrap();
    let mut answer = Vec::new();
    // Closed, or reset, as long as it ends.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.is_empty());
    wait_until("it is counted", PATIENCE, || {
        let metrics = Client::new(&agent.origin()).get("/metrics").text();
        metrics.contains("opik_offline_intake_over_limit_total 1\n")
    });
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    assert_eq!(Client::new(&agent.url()).expect(&Request::new("GET", "/is-alive/ping")).status, 200);
}
