//! Prism, a mock server that nobody here wrote, as a check of everything that reaches the server.
//!
//! Prism reads Opik's own OpenAPI file and answers 422 to a request that does not fit it. Four things stand between the
//! two, and a small hop in front of Prism settles them, recording every request with Prism's answer:
//!
//! - Opik is served under `/api`, its OpenAPI file knows no prefix. The hop strips it.
//! - Prism does not decompress: a gzip body is `invalid_json`. The hop decompresses.
//! - The SDKs write nulls and `NaN` where the file says `string` or `number`. Opik's parser takes both; Prism takes
//!   neither. The hop drops the nulls of an object and of a batch's items, and writes 0 for values that are not JSON
//!   numbers. Deeper values are user data, and are not changed.
//! - Opik's file has patterns like `(?s)^...`, which JavaScript can't compile. Prism then checks *nothing* of a body
//!   that holds one, and says it is valid. They are replaced before Prism reads the file, and [`Prism::start`] sends
//!   one bad request of its own to prove that bodies are checked.

use std::io::{self, BufReader};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::Home;
use super::fake_opik::wire::{self, Head};
use super::fake_opik::{Answer, decompressed};
use super::http::{Client, Request, Response};
use super::json::parse_lenient;
use super::process::{Written, listening_port};
use super::{PATIENCE, reserve_port, tempdir, tools, wait_until};

/// The pattern that JavaScript can't compile, and what it means: not blank.
const PATTERN: (&str, &str) = (r"pattern: (?s)^\s*(\S.*\S|\S)\s*$", r"pattern: \S");

/// One request that went through to Prism, and what Prism said.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub method: String,
    pub path: String,
    /// As Prism got it.
    pub body: String,
    pub status: u16,
    pub answer: String,
}

impl Checked {
    /// Whether this is a request that changes something, in which a violation would lose data.
    pub(crate) fn is_write(&self) -> bool {
        self.method != "GET" && !self.path.ends_with("/search") && !self.path.ends_with("/retrieve")
    }
}

pub(crate) struct Prism {
    child: Child,
    hop: Arc<Hop>,
    port: u16,
    accepting: Option<JoinHandle<()>>,
    _home: Home,
    _spec: TempDir,
    _reservation: tokio::net::TcpSocket,
}

struct Hop {
    prism: String,
    running: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    checked: Mutex<Vec<Checked>>,
}

impl Prism {
    /// Installs Prism if need be, starts it and waits until it answers.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (home, folder) = (Home::new(), tempdir());
        let spec = folder.path().join("openapi.yaml");
        std::fs::write(&spec, spec_for_prism()).expect("a temporary file can be written");
        let mut command = home.command(tools::prism());
        command.args(["mock", "--errors", "--host", "127.0.0.1", "--port", "0"]).arg(&spec);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("prism can be started");
        let written = Written::default();
        drop(written.follow(child.stdout.take().expect("it is piped")));
        drop(written.follow(child.stderr.take().expect("it is piped")));
        let mut port = None;
        wait_until("prism listens", PATIENCE, || {
            let ended = child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "prism ended before it listened; it wrote:\n{}", written.text());
            port = listening_port(&written.text());
            port.is_some()
        });
        let prism = format!("http://127.0.0.1:{}", port.expect("it was found"));
        let reservation = reserve_port(0).expect("a loopback port is free");
        let port = reservation.local_addr().expect("a bound socket has an address").port();
        let hop = Hop { prism, running: false.into(), connections: Mutex::default(), checked: Mutex::default() };
        let (hop, accepting) = (Arc::new(hop), None);
        let mut started = Self { child, hop, port, accepting, _home: home, _spec: folder, _reservation: reservation };
        started.assert_it_checks_bodies();
        started.resume();
        started
    }

    /// Returns the base URL for clients and agents: `http://127.0.0.1:PORT/api`.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api", self.port)
    }

    /// Goes away as a killed server does.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.accepting.take() else { return };
        self.hop.running.store(false, Ordering::SeqCst);
        // Wakes the accepting thread; refused when it is already gone.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        thread.join().expect("the accepting thread did not panic");
        for connection in self.hop.connections.lock().expect("no thread panicked").drain(..) {
            // Fails only when the client was faster.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Comes back on the same port.
    pub(crate) fn resume(&mut self) {
        if self.accepting.is_some() {
            return;
        }
        let listener = TcpListener::bind(("127.0.0.1", self.port)).expect("the reserved port can be listened on");
        self.hop.running.store(true, Ordering::SeqCst);
        let hop = Arc::clone(&self.hop);
        self.accepting = Some(std::thread::spawn(move || hop.accept(&listener)));
    }

    /// Returns every request with Prism's answer, in the order of the answers.
    pub(crate) fn checked(&self) -> Vec<Checked> {
        self.hop.checked.lock().expect("no thread panicked").clone()
    }

    /// Checks that Prism has found every write so far to fit Opik's OpenAPI file, and that there was one.
    #[track_caller]
    pub(crate) fn assert_all_writes_valid(&self) {
        let writes: Vec<Checked> = self.checked().into_iter().filter(Checked::is_write).collect();
        assert!(!writes.is_empty(), "no write has reached prism");
        let refused = writes.iter().filter(|write| write.status >= 300);
        let lines: Vec<String> =
            refused.map(|w| format!("{} {} {}\n  {}\n  {}", w.status, w.method, w.path, w.body, w.answer)).collect();
        assert!(lines.is_empty(), "prism refused {} of {} writes:\n{}", lines.len(), writes.len(), lines.join("\n"));
    }

    fn assert_it_checks_bodies(&self) {
        let mut client = Client::new(&self.hop.prism);
        let answer =
            client.post("/v1/private/traces/batch", &json!({ "traces": [{ "project_name": "no start_time" }] }));
        assert_eq!(answer.status, 422, "prism took a trace without a start_time, so it checks nothing");
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        self.stop();
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hop {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().map_while(Result::ok) {
            if !self.running.load(Ordering::SeqCst) {
                return;
            }
            let Ok(handle) = stream.try_clone() else { continue };
            self.connections.lock().expect("no thread panicked").push(handle);
            let hop = Arc::clone(self);
            // An error here is a connection that broke, which the client sees as well.
            std::thread::spawn(move || hop.serve(stream));
        }
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(head) = wire::read_head(&mut reader)? {
            let body = wire::read_body(&mut reader, &head)?;
            let request = for_prism(&head, body);
            let answer = Client::new(&self.prism).send(&request)?;
            let checked = Checked {
                method: request.method,
                path: request.path,
                body: String::from_utf8_lossy(&request.body).into_owned(),
                status: answer.status,
                answer: answer.text(),
            };
            self.checked.lock().expect("no thread panicked").push(checked);
            wire::write_answer(reader.get_ref(), &passed_on(answer), head.method == "HEAD", head.wants_close())?;
            if head.wants_close() {
                break;
            }
        }
        Ok(())
    }
}

fn spec_for_prism() -> String {
    let spec = include_str!("../fixtures/openapi.yaml").replace(PATTERN.0, PATTERN.1);
    assert!(!spec.contains("(?"), "the OpenAPI file has another pattern that JavaScript may not compile");
    spec
}

fn for_prism(head: &Head, body: Vec<u8>) -> Request {
    let path = ["/opik/api", "/api"].iter().find_map(|prefix| head.target.strip_prefix(prefix));
    let json = head.header("Content-Type").is_some_and(|kind| kind.starts_with("application/json"));
    let body = decompressed(head.header("Content-Encoding"), &body).unwrap_or(body);
    let strict = if json { parse_lenient(&body).ok().map(|json| strict(&json).to_string().into_bytes()) } else { None };
    let mut request = Request::new(&head.method, path.unwrap_or(&head.target)).bytes(strict.unwrap_or(body));
    let own = ["host", "connection", "content-length", "content-encoding", "transfer-encoding", "expect"];
    for (name, value) in head.headers.iter().filter(|(name, _)| !own.contains(&&*name.to_lowercase())) {
        request = request.header(name, value);
    }
    request
}

fn passed_on(answer: Response) -> Answer {
    let own = ["connection", "keep-alive", "content-length", "transfer-encoding"];
    let mut passed = Answer::empty(answer.status);
    passed.headers = answer.headers.into_iter().filter(|(name, _)| !own.contains(&&*name.to_lowercase())).collect();
    passed.body = answer.body;
    passed
}

/// The same message in strict JSON and without the nulls that mean "not given".
fn strict(body: &Value) -> Value {
    let Some(object) = body.as_object() else { return numbers(body) };
    let given = object.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| {
        let value = match value.as_array().filter(|items| items.iter().all(Value::is_object)) {
            Some(items) if !matches!(&**name, "input" | "output" | "metadata") => items.iter().map(strict).collect(),
            _ => numbers(value),
        };
        (name.clone(), value)
    });
    Value::Object(given.collect())
}

fn numbers(value: &Value) -> Value {
    match value {
        Value::Object(object) if object.len() == 1 && object.contains_key("$number") => 0.into(),
        Value::Object(object) => object.iter().map(|(name, value)| (name.clone(), numbers(value))).collect(),
        Value::Array(items) => items.iter().map(numbers).collect(),
        other => other.clone(),
    }
}
