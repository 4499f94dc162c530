//! The edges of HTTP, as nginx takes them: what odd but honest clients and servers do works through the agent, too,
//! live and through an outage.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::trace;

const PATH: &str = "/v1/private/traces";
const JSON: &str = "Content-Type: application/json\r\n";
const CREATED: &[u8] = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";

pub(crate) fn wait_until_it_is(state: &str, agent: &Agent) {
    wait_until("the agent knows how its server is", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == state
    });
}

/// Sends these bytes, closes the sending side if asked to, and reads until the agent closes the connection.
pub(crate) fn raw(agent: &Agent, wire: &[u8], half_closes: bool) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(wire).unwrap();
    if half_closes {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.").skip(1).map(|answer| &answer[2..5]).collect()
}

fn post(headers: &[u8]) -> Vec<u8> {
    let body = trace(&uuid7(), "chat").to_string();
    let head = format!("POST /api{PATH} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {}\r\n", body.len());
    [head.as_bytes(), headers, b"\r\n", body.as_bytes()].concat()
}

fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}

/// A server whose answers and whose ears are plain bytes.
struct RawServer {
    port: u16,
    state: Arc<Mutex<RawState>>,
}

struct RawState {
    is_away: bool,
    /// The answer to a write.
    answer: Vec<u8>,
    /// Heads of the writes that came.
    heads: Vec<Vec<u8>>,
}

impl RawServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = RawState { is_away: false, answer: CREATED.to_vec(), heads: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { port, state }
    }

    fn agent(&self) -> Agent {
        let agent = Agent::builder(&format!("http://127.0.0.1:{}/api", self.port)).impatient();
        agent.env("OPIK_OFFLINE_RETRY_INTERVAL", "200ms").start()
    }

    fn go_away(&self, is_away: bool) {
        self.state.lock().unwrap().is_away = is_away;
    }

    fn answer_with(&self, answer: &[u8]) {
        self.state.lock().unwrap().answer = answer.to_vec();
    }

    /// Returns the values of a header of the last write, and forgets what came.
    fn values(&self, name: &str) -> Vec<Vec<u8>> {
        let heads = std::mem::take(&mut self.state.lock().unwrap().heads);
        let head = heads.last().cloned().unwrap_or_default();
        let lines = head.split(|byte| *byte == b'\n').map(<[u8]>::to_vec);
        let is_named = |line: &Vec<u8>| line.to_ascii_lowercase().starts_with(format!("{name}:").as_bytes());
        lines.filter(is_named).map(|line| line[name.len() + 1..].trim_ascii().to_vec()).collect()
    }
}

fn serve(stream: TcpStream, state: &Mutex<RawState>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
        }
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        if text.starts_with("post /api/early ") {
            // Answered before its body is read.
            reader.get_mut().write_all(CREATED).ok()?;
            reader.read_exact(&mut vec![0; length.unwrap_or(0)]).ok()?;
            let mut line = if length.is_some() { b"\r\n".to_vec() } else { Vec::new() };
            while line != b"\r\n" {
                line.clear();
                reader.read_until(b'\n', &mut line).ok().filter(|read| *read > 0)?;
            }
            continue;
        }
        reader.read_exact(&mut vec![0; length.unwrap_or(0)]).ok()?;
        let answer = {
            let mut state = state.lock().unwrap();
            if state.is_away {
                return None;
            }
            if text.starts_with("get /api/is-alive/ping") {
                let pong = r#"{"message":"Healthy Server","healthy":true}"#;
                format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: {}\r\n\r\n{pong}", pong.len()).into_bytes()
            } else {
                state.heads.push(head);
                state.answer.clone()
            }
        };
        reader.get_mut().write_all(&answer).ok()?;
        if answer.starts_with(b"HTTP/1.0") {
            return None;
        }
    }
}

#[test]
fn a_client_that_closes_its_sending_side_gets_its_answers() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    assert_eq!(statuses(&raw(&agent, &post(b""), true)), ["201"], "a write that is forwarded");
    for page in ["/-/healthy", "/-/status.json", "/", "/api/is-alive/ping"] {
        assert_eq!(statuses(&raw(&agent, &get(page, ""), true)), ["200"], "{page}");
    }
    let all = [get("/api/v1/private/traces/x", ""), post(b""), get("/-/healthy", ""), post(b"")].concat();
    assert_eq!(statuses(&raw(&agent, &all, true)), ["404", "201", "200", "201"], "one after another");
    // One whose answer takes its time, read and written.
    for (request, status) in [(get("/api/v1/private/traces/x", ""), "404"), (post(b""), "201")] {
        let held = server.script(When::path("/v1/private/traces*"), Then::Hold);
        let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
        stream.write_all(&request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        wait_until("the request is on its way", PATIENCE, || held.hits() > 0);
        // Long enough for the end of its input to be seen.
        std::thread::sleep(Duration::from_millis(50));
        held.clear();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(statuses(&answer), [status], "{answer}");
    }
    // One that closes in the middle of its request has not sent it.
    let half = post(b"");
    assert_ne!(statuses(&raw(&agent, &half[..half.len() - 3], true)), ["201"]);
    server.stop();
    wait_until_it_is("unavailable", &agent);
    assert_eq!(statuses(&raw(&agent, &post(b""), true)), ["201"], "a write that is stored");
    assert_eq!(agent.backlog(), 1);
}

#[test]
fn a_disconnected_client_leaves_no_open_request_at_the_server() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let when = || When::path("/v1/private/traces/held");
    let held = server.script(when(), Then::Hang);
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.write_all(&get("/api/v1/private/traces/held", "")).unwrap();
    wait_until("the request is on its way", PATIENCE, || held.hits() == 1);
    // Killed, not finished: its system resets the connection.
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    wait_until("the agent closes the request", PATIENCE, || server.open(&when()) == 0);
}

#[test]
fn header_values_of_any_bytes_are_forwarded_and_replayed_as_they_came() {
    let server = RawServer::start();
    let agent = server.agent();
    for (name, lines, expected) in [
        ("comet-workspace", &b"Comet-Workspace: \xe9quipe\r\n"[..], &[&b"\xe9quipe"[..]][..]),
        ("comet-workspace", "Comet-Workspace: \u{e9}quipe\r\n".as_bytes(), &["\u{e9}quipe".as_bytes()]),
        ("comet-workspace", b"cOmEt-wOrKsPaCe:\r\n", &[b""]),
        ("comet-workspace", b"Comet-Workspace: a\tb\r\n", &[b"a\tb"]),
        ("comet-workspace", b"Comet-Workspace: a\r\nComet-Workspace: \x80\xff\r\n", &[b"a", b"\x80\xff"]),
        ("authorization", b"Authorization: k\xe9y\xff\r\n", &[b"k\xe9y\xff"]),
        ("authorization", "Authorization: k\u{e9}y\r\n".as_bytes(), &["k\u{e9}y".as_bytes()]),
        ("authorization", b"Authorization:\r\n", &[b""]),
        ("x-mine", b"X-Mine: \xe9\r\nX-Mine: b\r\n", &[b"\xe9", b"b"]),
    ] {
        let shown = String::from_utf8_lossy(lines);
        server.go_away(false);
        wait_until_it_is("available", &agent);
        let request = post(&[b"Connection: close\r\n", lines].concat());
        assert_eq!(statuses(&raw(&agent, &request, false)), ["201"], "{shown}");
        assert_eq!(server.values(name), expected, "forwarded: {shown}");
        server.go_away(true);
        wait_until_it_is("unavailable", &agent);
        assert_eq!(statuses(&raw(&agent, &request, false)), ["201"], "{shown}");
        assert_eq!(agent.backlog(), 1, "{shown}");
        let listed = agent.cli(&["inspect"]).stdout + &agent.cli(&["status"]).stdout;
        assert!(!listed.chars().any(|c| c.is_control() && c != '\n'), "{listed:?}");
        server.go_away(false);
        agent.wait_until_delivered();
        assert_eq!(server.values(name), expected, "replayed: {shown}");
    }
}

#[test]
fn a_workspace_in_latin1_is_found_by_its_name() {
    let server = RawServer::start();
    server.go_away(true);
    let agent = server.agent();
    wait_until_it_is("unavailable", &agent);
    for workspace in [&b"\xe9quipe"[..], "\u{e9}quipe".as_bytes(), b"other"] {
        let request = post(&[b"Connection: close\r\nComet-Workspace: ", workspace, b"\r\n"].concat());
        assert_eq!(statuses(&raw(&agent, &request, false)), ["201"]);
    }
    let listed = agent.cli(&["inspect", "--workspace", "\u{e9}quipe", "--format", "jsonl"]).stdout;
    let workspaces: Vec<String> = listed
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["workspace"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(workspaces, ["\u{e9}quipe"; 2], "{listed}");
}

#[test]
fn odd_framing_of_an_answer_confirms_a_write_once() {
    let many: String = (0..900).map(|n| format!("X-{n}: v\r\n")).collect();
    let long = "x".repeat(300_000);
    for (what, answer) in [
        (
            "more than a thousand headers less a hundred",
            format!("HTTP/1.1 201 Created\r\n{many}Content-Length: 0\r\n\r\n"),
        ),
        ("a long header", format!("HTTP/1.1 201 Created\r\nX-Long: {long}\r\nContent-Length: 0\r\n\r\n")),
        (
            "early hints",
            "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        ("a word to go on", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n".into()),
        (
            "a word to go on with a header",
            "HTTP/1.1 100 Continue\r\nX-By: proxy\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        ("progress", "HTTP/1.1 102 Processing\r\n\r\n".repeat(3) + "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
        (
            "trailers",
            "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n0\r\nX-Sum: 1\r\n\r\n".into(),
        ),
        ("no words", "HTTP/1.1 201\r\nContent-Length: 0\r\n\r\n".into()),
        ("HTTP/1.0", "HTTP/1.0 201 Created\r\n\r\n".into()),
        ("bare line ends", "HTTP/1.1 201 Created\nContent-Length: 0\n\n".into()),
    ] {
        let server = RawServer::start();
        server.answer_with(answer.as_bytes());
        let agent = server.agent();
        wait_until_it_is("available", &agent);
        let live = raw(&agent, &post(b"Connection: close\r\n"), false);
        assert_eq!(statuses(&live), ["201"], "{what}: {live}");
        assert!(live.starts_with("HTTP/1.1 201"), "{what}: the version of the server's connection is not the client's");
        assert!(!live.to_lowercase().contains("x-sum"), "{what}: {live}");
        assert_eq!(agent.backlog(), 0, "{what}");
        server.go_away(true);
        wait_until_it_is("unavailable", &agent);
        assert_eq!(statuses(&raw(&agent, &post(b"Connection: close\r\n"), false)), ["201"], "{what}");
        server.state.lock().unwrap().heads.clear();
        server.go_away(false);
        agent.wait_until_delivered();
        assert_eq!(server.state.lock().unwrap().heads.len(), 1, "{what}: it was sent again");
    }
}

#[test]
fn odd_requests_are_taken_as_nginx_takes_them() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let close = "Connection: close\r\n";
    let headers: String = (0..1000).map(|n| format!("X-{n}: v\r\n")).collect();
    let chunked = |extra: &str, end: &str| {
        let body = trace(&uuid7(), "chat").to_string();
        let head =
            format!("POST /api{PATH} HTTP/1.1\r\nHost: localhost\r\n{JSON}Transfer-Encoding: chunked\r\n{extra}");
        format!("{head}\r\n{:x};a=\"b\"\r\n{body}\r\n0\r\n{end}\r\n", body.len()).into_bytes()
    };
    let as_http10 = |request: Vec<u8>| String::from_utf8(request).unwrap().replace("HTTP/1.1", "HTTP/1.0").into_bytes();
    let settings =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n";
    let last = get("/-/healthy", close);
    for (what, wire, expected) in [
        ("a thousand headers", get("/api/is-alive/ping", &format!("{close}{headers}")), &["200"][..]),
        ("trailers", chunked(&format!("{close}Trailer: X-Sum\r\n"), "X-Sum: 1\r\n"), &["201"]),
        ("a thousand trailers", chunked(close, &headers), &["201"]),
        ("two credentials", post(b"Connection: close\r\nAuthorization: a\r\nAuthorization: b\r\n"), &["400"]),
        (
            "an upgrade to HTTP/2, which nobody has to follow",
            [post(settings.as_bytes()), last.clone()].concat(),
            &["201", "200"],
        ),
        ("an expectation", post(b"Connection: close\r\nExpect: 100-continue\r\n"), &["100", "201"]),
        ("HTTP/1.0", as_http10(post(b"")), &["201"]),
        ("HTTP/1.0 that stays", as_http10([post(b"Connection: keep-alive\r\n"), post(b"")].concat()), &["201", "201"]),
        (
            "a target with its host",
            String::from_utf8(post(close.as_bytes())).unwrap().replacen(" /", " http://localhost/", 1).into_bytes(),
            &["201"],
        ),
        (
            "a pipeline",
            [post(b""), chunked("", ""), get("/api/v1/private/traces/x", ""), post(b""), last].concat(),
            &["201", "201", "404", "201", "200"],
        ),
    ] {
        let answers = raw(&agent, &wire, false);
        assert_eq!(statuses(&answers), expected, "{what}: {answers}");
    }
    server.assert_no_violations();
}

/// A head of this many headers and bytes, without its end.
fn long_head(path: &str, headers: usize, bytes: usize, body: &[u8]) -> Vec<u8> {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    (2..headers - 1).for_each(|n| head += &format!("X-{n}: v\r\n"));
    let padding = bytes - head.len() - "X: \r\n".len();
    head += &format!("X: {}\r\n", "p".repeat(padding));
    head.into_bytes()
}

#[test]
fn a_head_of_many_headers_is_parsed_once_wherever_it_is_cut() {
    let server = RawServer::start();
    let agent = server.agent();
    wait_until_it_is("available", &agent);
    let inside = b"POST /api/inside HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let rest = |more: usize| {
        let lines: String = (0..more).map(|n| format!("Y-{n}: v\r\n")).collect();
        lines + "Connection: close\r\n\r\n"
    };
    // The first bytes of a connection are read 4,096 at a time.
    for (headers, bytes, more) in [(64, 4096, 0), (64, 4096, 300), (64, 4095, 0), (64, 4097, 0), (63, 4096, 0)] {
        let what = format!("{headers} headers in {bytes} bytes, then {more}");
        let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = [long_head("/api/first", headers, bytes, inside), rest(more).into_bytes()].concat();
        stream.write_all(&head).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(inside).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(statuses(&answer), ["201"], "{what}: {answer}");
        let arrived = std::mem::take(&mut server.state.lock().unwrap().heads);
        let targets: Vec<_> = arrived.iter().map(|head| String::from_utf8_lossy(&head[..16]).into_owned()).collect();
        assert_eq!(targets, ["POST /api/first "], "{what}");
    }
}

#[test]
fn a_head_of_many_headers_interrupts_no_body_that_was_answered_early() {
    let server = RawServer::start();
    let agent = server.agent();
    wait_until_it_is("available", &agent);
    let chunks = "2\r\n{}\r\n".repeat(8_000) + "0\r\n\r\n";
    // Any part of it that is left could be a request.
    let requests = "POST /api/inside HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".repeat(1_000);
    let sized = format!("Content-Length: {}", requests.len());
    for (framing, body) in [("Transfer-Encoding: chunked", chunks), (&sized, requests)] {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(format!("POST /api/early HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n").as_bytes())
            .unwrap();
        let mut early = [0; 12];
        stream.read_exact(&mut early).unwrap();
        assert_eq!(&early, b"HTTP/1.1 201", "{framing}");
        let next = [long_head("/api/next", 90, 2_000, b""), b"Connection: close\r\n\r\n".to_vec()].concat();
        stream.write_all(&[body.as_bytes(), &next].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(statuses(&answer), ["201"], "{framing}: {answer}");
        let heads = std::mem::take(&mut server.state.lock().unwrap().heads);
        assert_eq!(heads.len(), 1, "{framing}: the next one arrives, and nothing else");
    }
}
