//! Intake's limits for a client, at the boundary and one past it: connections, heads, bodies, time. Each limit that is
//! met is counted, and a client within them is served all the while.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::agent::Agent;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{assert_error, create, trace};

const PATH: &str = "/v1/private/traces";

fn metric(agent: &Agent, name: &str) -> u64 {
    let text = Client::new(&agent.origin()).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<f64>().unwrap() as u64
}

fn over_limit(agent: &Agent) -> u64 {
    metric(agent, "opik_offline_intake_over_limit_total")
}

fn connect(agent: &Agent) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads until the agent closes the connection, cleanly or with a reset.
fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection is not closed: {error}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    !matches!(peeked, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn wait_until_available(agent: &Agent) {
    wait_until("the agent knows its server", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == "available"
    });
}

#[test]
fn ten_thousand_idle_connections_keep_no_client_out() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_available(&agent);
    // After the agent has started: it must raise its own limit.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let mine = files.maximum.unwrap_or(u64::MAX);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let theirs = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let theirs: u64 = theirs.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(theirs >= (2 * 4096 + 256).min(mine), "the agent may open {theirs} files only");
    let allowed = ((theirs - 256) / 2).min(4096);
    // A machine that allows us fewer files gets as many as it allows, which are still more than the agent takes.
    let count = 10_000.min(mine.saturating_sub(1000)) as usize;
    assert!(count as u64 > allowed, "this machine allows {mine} open files, too few for this test: raise `ulimit -Hn`");

    let held = server.script(When::path("/v1/private/traces/held"), Then::Hold);
    let busy = std::thread::spawn({
        let mut client = Client::new(&agent.url());
        move || client.get("/v1/private/traces/held").status
    });
    wait_until("a request is on its way", PATIENCE, || held.hits() == 1);
    let mut live = Client::new(&agent.url());
    let mut idle = Vec::with_capacity(count);
    for number in 0..count {
        idle.push(connect(&agent));
        if number % 500 == 0 {
            // The live client works on one connection all the while, and is never the longest idle.
            assert_eq!(live.expect(&create(&uuid7())).status, 201, "after {number} idle connections");
        }
    }
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201, "a new client is kept out");
    assert!(is_closed(&idle[0]), "the longest idle connection is still open");
    assert!(!is_closed(&idle[count - 1]), "the newest connection was closed for an older one");
    let closed = metric(&agent, "opik_offline_intake_connections_closed_total");
    assert!(closed >= count as u64 - allowed, "{closed} connections were closed, and counted");
    assert_eq!(metric(&agent, "opik_offline_intake_connections_refused_total"), 0);
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count() as u64;
    assert!(open <= allowed + 256, "the agent has {open} files open, for {allowed} connections");
    assert!(agent.stderr().matches("too many connections").count() == 1, "it is reported, and not for each");
    held.clear();
    assert_eq!(busy.join().unwrap(), 404, "a connection with a request in progress was closed for an idle one");
    drop(idle);
    wait_until("the agent closes them", PATIENCE, || metric(&agent, "opik_offline_intake_connections") < 10);
}

#[test]
fn a_connection_beyond_all_busy_ones_gets_a_503_and_a_place_once_one_is_free() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--max-connections").arg("3").start();
    wait_until_available(&agent);
    let held = server.script(When::path("/v1/private/traces/held"), Then::Hold);
    let busy: Vec<_> = (0..3)
        .map(|_| {
            let mut client = Client::new(&agent.url());
            std::thread::spawn(move || client.get("/v1/private/traces/held").status)
        })
        .collect();
    wait_until("as many requests as allowed are on their way", PATIENCE, || held.hits() == 3);
    let refused = Client::new(&agent.url()).expect(&create(&uuid7()));
    assert_error(&refused, 503);
    assert!(refused.header("Retry-After").is_some(), "a refused client gets a time for its retry: {refused:?}");
    held.clear();
    let statuses: Vec<u16> = busy.into_iter().map(|client| client.join().unwrap()).collect();
    assert_eq!(statuses, [404; 3], "a busy connection was closed for a new one");
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    assert_eq!(metric(&agent, "opik_offline_intake_connections_refused_total"), 1);
}

#[test]
fn slow_and_idle_clients_are_disconnected() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--client-timeout").arg("300ms").start();
    let mut slow = connect(&agent);
    slow.write_all(b"POST /api/v1/private/traces HTTP/1.1\r\n").unwrap();
    // A byte now and then buys no time.
    for byte in b"X-Drop: by drop".iter().cycle() {
        if slow.write_all(&[*byte]).is_err() || is_closed(&slow) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(over_limit(&agent), 1);
    let mut idle = connect(&agent);
    assert_eq!(rest(&mut idle), "", "an idle connection is kept for ever");
    let mut idle = connect(&agent);
    idle.write_all(b"GET /api/is-alive/ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let answer = rest(&mut idle);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}: it is kept for ever, or closed without an answer");
    assert_eq!(over_limit(&agent), 1, "an idle client did nothing wrong");
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
}

#[test]
fn a_body_that_stops_or_drips_is_given_up() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--client-timeout").arg("300ms").start();
    wait_until_available(&agent);
    let upload = format!("/v1/private/attachment/upload?file_name=a&entity_type=trace&entity_id={}", uuid7());
    let mut expected = 0;
    for (method, path) in [("POST", PATH), ("PUT", &*upload), ("POST", "/v1/private/datasets/items/from-csv")] {
        for drips in [false, true] {
            let mut stream = connect(&agent);
            let head = format!(
                "{method} /api{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 5000\r\n"
            );
            stream.write_all(format!("{head}\r\n{{").as_bytes()).unwrap();
            // Streamed through, so only a pause ends it: nothing is buffered.
            if drips && path != "/v1/private/datasets/items/from-csv" {
                while !is_closed(&stream) && stream.write_all(b" ").is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            let answer = rest(&mut stream);
            assert!(answer.starts_with("HTTP/1.1 408 "), "{path} {drips}: {answer:?}");
            expected += 1;
            assert_eq!(over_limit(&agent), expected, "{path} {drips}");
        }
    }
    assert_eq!(agent.backlog(), 0, "half a body is stored");
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
}

#[test]
fn a_client_that_takes_nothing_of_its_answer_is_given_up() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--client-timeout").arg("300ms").start();
    wait_until_available(&agent);
    let mut large = Answer::empty(200);
    large.body = vec![b'x'; 32 * 1024 * 1024];
    let _large = server.script(When::path("/v1/private/traces/large"), Then::Answer(large));
    let mut stream = connect(&agent);
    stream.write_all(b"GET /api/v1/private/traces/large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    wait_until("the agent gives it up", PATIENCE, || over_limit(&agent) == 1);
    let answer = rest(&mut stream);
    assert!(answer.len() < 32 * 1024 * 1024, "it was not given up");
}

#[test]
fn heads_are_taken_up_to_the_limits_of_bytes_headers_and_url() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_available(&agent);
    let ask = |target: &str, headers: &str| {
        let mut stream = connect(&agent);
        let head =
            format!("GET /api/is-alive/ping{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n");
        // Cut off while it still writes, it has seen the refusal too.
        let _ = stream.write_all(head.as_bytes());
        rest(&mut stream).get(9..12).unwrap_or("").to_owned()
    };
    let many = |count: usize| (0..count).map(|n| format!("X-{n}: 1\r\n")).collect::<String>();
    let long = |bytes: usize| format!("X-Long: {}\r\n", "x".repeat(bytes));
    let url = |bytes: usize| format!("?{}", "x".repeat(bytes - "/api/is-alive/ping?".len()));
    for (what, target, headers, status) in [
        ("as many headers as may be", "".to_owned(), many(1022), "200"),
        ("one more", "".to_owned(), many(1023), "431"),
        ("a long header", "".to_owned(), long(60 * 1024), "200"),
        ("too long a header", "".to_owned(), long(70 * 1024), "431"),
        ("too long a header by far", "".to_owned(), long(4 * 1024 * 1024), ""),
        ("as long a URL as may be", url(16 * 1024), "".to_owned(), "200"),
        ("a byte more", url(16 * 1024 + 1), "".to_owned(), "414"),
    ] {
        let before = over_limit(&agent);
        let answered = ask(&target, &headers);
        // The client of a head that is far too long may be cut off before it has read why.
        assert!(answered == status || (status.is_empty() && answered == "431"), "{what}: {answered}");
        let expected = before + u64::from(status != "200");
        wait_until("a limit that was met is counted", PATIENCE, || over_limit(&agent) == expected);
    }
}

#[test]
fn bodies_are_kept_up_to_the_limits_of_bytes_and_stream_through_past_them_while_the_server_is_there() {
    for away in [false, true] {
        let server = FakeOpik::start_new();
        let agent = Agent::builder(&server.url()).impatient().arg("--max-body-size").arg("64KiB");
        let agent = agent.arg("--max-inflated-size").arg("1MiB").start();
        wait_until_available(&agent);
        if away {
            server.stop();
            wait_until("the agent knows that its server is away", PATIENCE, || {
                Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == "unavailable"
            });
        }
        let past = if away { 413 } else { 201 };
        let sized = |bytes: usize| {
            let body = trace(&uuid7(), "chat").to_string();
            let body = format!("{body}{}", " ".repeat(bytes - body.len()));
            Request::new("POST", PATH).header("Content-Type", "application/json").bytes(body)
        };
        let mut client = Client::new(&agent.url());
        for (what, request, is_past) in [
            ("as sent", sized(64 * 1024), false),
            ("as sent, in chunks", sized(64 * 1024).chunked(1000), false),
            ("a byte more", sized(64 * 1024 + 1), true),
            ("a byte more, in chunks", sized(64 * 1024 + 1).chunked(1000), true),
            ("inflated", sized(1024 * 1024).gzip(), false),
            ("inflated, a byte more", sized(1024 * 1024 + 1).gzip(), true),
        ] {
            let before = over_limit(&agent);
            let answer = client.expect(&request);
            let status = if is_past { past } else { 201 };
            assert_eq!(answer.status, status, "{what}, server away: {away}: {}", answer.text());
            assert_eq!(over_limit(&agent), before + u64::from(is_past), "{what} is counted");
            if !away {
                let sent = server.requests_to("POST", PATH).pop().expect("it came");
                assert!(sent.json.is_some_and(|json| json["name"] == "chat"), "{what} is sent on");
            }
        }
    }
}
