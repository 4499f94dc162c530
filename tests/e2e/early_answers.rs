//! Answers that HTTP clients easily miss: one that comes before the request's body was sent, one with hundreds of
//! headers, and one with a body of many megabytes. Each is an answer, and is heard once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::{FakeOpik, Then, When, decompressed};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, noise, reserve_port, uuid7, wait_until};
use crate::writes::trace;

/// Bodies larger than this are refused by their head.
const BODY_MAX: usize = 1_000_000;
/// More than what waits in sockets between two processes.
const LARGE: usize = 10_000_000;

/// How the server ends the connection of a request that it refuses by its head.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// Closed at once, with the body unread: the client is sent a reset.
    Reset,
    /// The same, as `Connection: close` says.
    ResetAsSaid,
    /// As nginx does it: what comes is read and thrown away for a while.
    Lingers,
    /// Nothing is read, and the connection stays open for a while.
    Stalls,
}

#[derive(Clone, Debug)]
struct Plan {
    /// The head of the answer to a request that is too large, without the status line's end.
    refusal: &'static str,
    ending: Ending,
    /// Sent with every answer to a write that is taken.
    headers: usize,
    body_bytes: usize,
}

/// A server that speaks just enough HTTP, on a raw socket.
struct RawServer {
    port: u16,
    taken: Arc<Mutex<Vec<Value>>>,
    refused: Arc<Mutex<usize>>,
    stop: Arc<AtomicBool>,
}

impl RawServer {
    fn start(port: u16, plan: Plan) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let server = Self {
            port: listener.local_addr().expect("an address").port(),
            taken: Arc::default(),
            refused: Arc::default(),
            stop: Arc::default(),
        };
        let (taken, refused, stop) = (server.taken.clone(), server.refused.clone(), server.stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (taken, refused, plan) = (taken.clone(), refused.clone(), plan.clone());
                std::thread::spawn(move || serve(stream, &plan, &taken, &refused));
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api", self.port)
    }

    fn taken(&self) -> Vec<Value> {
        self.taken.lock().expect("no panic").clone()
    }

    fn refused(&self) -> usize {
        *self.refused.lock().expect("no panic")
    }

    /// Returns the ids of all traces that were taken, in that order.
    fn traces(&self) -> Vec<String> {
        let id = |trace: &Value| trace["id"].as_str().expect("an id").to_owned();
        let taken = self.taken();
        taken
            .iter()
            .flat_map(|body| match body["traces"].as_array() {
                Some(traces) => traces.iter().map(id).collect(),
                None => vec![id(body)],
            })
            .collect()
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// Serves one connection to its end.
fn serve(mut stream: TcpStream, plan: &Plan, taken: &Mutex<Vec<Value>>, refused: &Mutex<usize>) {
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let value =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        let length: usize = value("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
        if head.starts_with("get") {
            let body = r#"{"message":"Healthy Server","healthy":true}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
            continue;
        }
        if length > BODY_MAX {
            *refused.lock().expect("no panic") += 1;
            let said = if plan.ending == Ending::Reset { "" } else { "Connection: close\r\n" };
            let body = r#"{"code":413,"message":"too large"}"#;
            let answer = format!(
                "HTTP/1.1 {}\r\n{said}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                plan.refusal,
                body.len()
            );
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
            match plan.ending {
                Ending::Reset | Ending::ResetAsSaid => {
                    // Some of the body is there by now, unread.
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ending::Lingers => {
                    let _ = stream.shutdown(Shutdown::Write);
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                    let (until, mut ignored) = (Instant::now() + Duration::from_secs(5), [0; 64 * 1024]);
                    while Instant::now() < until && matches!(stream.read(&mut ignored), Ok(1..)) {}
                }
                Ending::Stalls => std::thread::sleep(Duration::from_secs(2)),
            }
            return;
        }
        if value("expect:").is_some() && stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return;
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let body = decompressed(value("content-encoding:").as_deref(), &body).expect("it can be decoded");
        taken.lock().expect("no panic").push(serde_json::from_slice(&body).expect("JSON"));
        let others: String = (0..plan.headers).map(|n| format!("X-Header-{n}: {}\r\n", "x".repeat(200))).collect();
        let status = if plan.body_bytes > 0 { "201 Created" } else { "204 No Content" };
        let length =
            if plan.body_bytes > 0 { format!("Content-Length: {}\r\n", plan.body_bytes) } else { String::new() };
        let mut answer = format!("HTTP/1.1 {status}\r\n{others}{length}\r\n").into_bytes();
        answer.resize(answer.len() + plan.body_bytes, b' ');
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

fn agent(url: &str) -> AgentBuilder {
    Agent::builder(url).impatient().arg("--retry-interval").arg("1s").arg("--connect-timeout").arg("2s")
}

/// An incompressible body with this many traces.
fn batch(ids: &[String], bytes_each: usize) -> Request {
    static NOISE: OnceLock<String> = OnceLock::new();
    let noise = NOISE.get_or_init(|| noise(LARGE));
    let traces: Vec<Value> = ids
        .iter()
        .map(|id| {
            let mut trace = trace(id, "chat");
            trace["input"] = json!({ "q": &noise[..bytes_each] });
            trace
        })
        .collect();
    Request::new("POST", "/v1/private/traces/batch").json(&json!({ "traces": traces }))
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|_| uuid7()).collect()
}

const TOO_LARGE: Plan = Plan { refusal: "413 Content Too Large", ending: Ending::Reset, headers: 0, body_bytes: 0 };

#[test]
fn a_413_before_the_body_was_sent_divides_a_stored_batch_and_rejects_what_is_too_large_alone() {
    for ending in [Ending::Reset, Ending::ResetAsSaid, Ending::Lingers, Ending::Stalls] {
        let reserved = reserve_port(0).expect("a port");
        let port = reserved.local_addr().expect("an address").port();
        let agent = agent(&format!("http://127.0.0.1:{port}/api")).arg("--forward-timeout").arg("5s").start();
        let mut client = Client::new(&agent.url());
        let (many, large) = (ids(24), ids(1));
        assert_eq!(client.send(&batch(&many, 300_000)).unwrap().status, 204);
        assert_eq!(client.send(&batch(&large, LARGE)).unwrap().status, 204);
        let last = ids(1);
        assert_eq!(client.send(&batch(&last, 10)).unwrap().status, 204);
        let server = RawServer::start(port, Plan { ending, ..TOO_LARGE });
        wait_until(&format!("{ending:?}: all is decided"), PATIENCE, || agent.backlog() == 0);
        let mut expected: Vec<String> = many.iter().chain(&last).cloned().collect();
        let mut taken = server.traces();
        expected.sort();
        taken.sort();
        assert_eq!(taken, expected, "{ending:?}: what fits is delivered, and once");
        let rejected = agent.cli(&["inspect", "--status", "rejected", "--format", "json"]);
        assert!(rejected.stdout.contains("413"), "{ending:?}: {}", rejected.stdout);
        eprintln!("{ending:?}: {} refusals, {} requests taken", server.refused(), server.taken().len());
        assert!(server.refused() < 100, "{ending:?}: refused {} times", server.refused());
    }
}

#[test]
fn a_413_before_the_body_was_sent_reaches_the_live_client_or_is_the_replays() {
    let endings = [Ending::Reset, Ending::ResetAsSaid, Ending::Lingers];
    // With a small budget the body is streamed from disk.
    for (ending, budget) in endings.into_iter().flat_map(|ending| [(ending, "256MiB"), (ending, "16MiB")]) {
        let server = RawServer::start(0, Plan { ending, ..TOO_LARGE });
        let agent = agent(&server.url()).arg("--memory-budget").arg(budget).start();
        let mut client = Client::new(&agent.url());
        wait_until("the server is there", PATIENCE, || client.send(&batch(&ids(1), 10)).unwrap().status == 204);
        wait_until("nothing waits", PATIENCE, || agent.backlog() == 0);
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.push(client.send(&batch(&ids(1), LARGE)).unwrap().status);
        }
        eprintln!("{ending:?}: {answers:?}");
        assert!(answers.iter().all(|status| [413, 204].contains(status)), "{ending:?}: {answers:?}");
        assert!(answers.contains(&413), "{ending:?}: no client heard of it: {answers:?}");
        wait_until("nothing is sent for ever", PATIENCE, || agent.backlog() == 0);
        let refused = server.refused();
        assert!(refused <= 12, "{ending:?}: refused {refused} times");
    }
}

#[test]
fn other_answers_before_the_body_was_sent_mean_what_they_always_mean() {
    for (refusal, word) in [
        ("401 Unauthorized", "401"),
        ("429 Too Many Requests\r\nRateLimit-Reset: 600", "429"),
        ("503 Service Unavailable", "503"),
    ] {
        for ending in [Ending::Reset, Ending::Lingers] {
            let reserved = reserve_port(0).expect("a port");
            let port = reserved.local_addr().expect("an address").port();
            let agent = agent(&format!("http://127.0.0.1:{port}/api")).start();
            let mut client = Client::new(&agent.url());
            assert_eq!(client.send(&batch(&ids(1), LARGE)).unwrap().status, 204);
            let server = RawServer::start(port, Plan { refusal, ending, ..TOO_LARGE });
            wait_until(&format!("the agent says {word} ({ending:?})"), PATIENCE, || {
                let status = agent.cli(&["status", "--format", "json"]).stdout;
                let waiting = agent.cli(&["inspect", "--format", "json"]).stdout;
                server.refused() > 0 && (status.contains(word) || waiting.contains(word))
            });
            assert_eq!(agent.backlog(), 1, "{word}: it is kept");
        }
    }
}

#[test]
fn an_answer_with_hundreds_of_headers_or_a_huge_body_confirms_once() {
    for (headers, body_bytes) in [(110, 0), (300, 0), (0, 30_000_000), (150, 30_000_000)] {
        let plan = Plan { headers, body_bytes, ..TOO_LARGE };
        let reserved = reserve_port(0).expect("a port");
        let port = reserved.local_addr().expect("an address").port();
        let agent = agent(&format!("http://127.0.0.1:{port}/api")).start();
        let mut client = Client::new(&agent.url());
        let stored = ids(3);
        for id in &stored {
            assert_eq!(client.send(&batch(std::slice::from_ref(id), 10)).unwrap().status, 204);
        }
        let server = RawServer::start(port, plan);
        wait_until(&format!("{headers} headers, {body_bytes} bytes: all is delivered"), PATIENCE, || {
            agent.backlog() == 0
        });
        assert_eq!(server.traces(), stored, "{headers} headers, {body_bytes} bytes: replayed more than once");
        let live = ids(1);
        let answer = client.send(&batch(&live, 10)).unwrap();
        let status = if body_bytes > 0 { 201 } else { 204 };
        assert_eq!((answer.status, answer.body.len()), (status, body_bytes), "the client gets the server's own answer");
        assert!(answer.headers.len() >= headers, "{} headers", answer.headers.len());
        assert_eq!(agent.backlog(), 0);
        assert_eq!(server.traces().len(), stored.len() + 1, "forwarded more than once");
    }
}

#[test]
fn a_message_that_needs_longer_than_others_is_confirmed_in_the_end() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server.url()).arg("--forward-timeout").arg("1s").start();
    let mut client = Client::new(&agent.url());
    let slow = uuid7();
    assert_eq!(client.send(&batch(std::slice::from_ref(&slow), 10)).unwrap().status, 204);
    let slowly = server.script(When::ids([&*slow]), Then::Delay(Duration::from_secs(3)));
    server.start();
    wait_until("the slow message is confirmed", PATIENCE, || agent.backlog() == 0);
    // One second, two, four.
    assert!(slowly.hits() <= 4, "it was sent {} times", slowly.hits());
}
