//! Memory beyond the budget for bodies: no copy of a large body, no body that grows forever, no client that stalls.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::agent::Agent;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request, gzip};
use crate::support::{HANGS_AFTER, noise, uuid7};
use crate::writes::{create, trace};

const MIB: u64 = 1 << 20;

fn peak(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("there is a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn body(bytes: usize) -> Vec<u8> {
    let mut body = trace(&uuid7(), "large");
    body["input"] = serde_json::json!({ "text": noise(bytes) });
    serde_json::to_vec(&body).expect("it is JSON")
}

fn post(bytes: Vec<u8>) -> Request {
    Request::new("POST", "/v1/private/traces").header("Content-Type", "application/json").bytes(bytes)
}

#[test]
fn a_large_body_is_stored_and_delivered_without_a_copy_of_it() {
    const BYTES: usize = 24_000_000;
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.url());
    // One-time allocations are done.
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    let before = peak(&agent);
    assert_eq!(client.expect(&post(body(BYTES))).status, 201);
    let stored = peak(&agent) - before;
    eprintln!("storing {} MB took {:.1} MiB", BYTES / 1_000_000, stored as f64 / MIB as f64);
    assert!(stored < BYTES as u64 * 3 / 2, "storing a body of {BYTES} bytes took {stored}");
    server.start();
    agent.wait_until_delivered();
    let delivered = peak(&agent) - before;
    // The allocator may still hold what was just released.
    assert!(delivered < BYTES as u64 * 5 / 2, "delivering a body of {BYTES} bytes took {delivered}");
}

#[test]
fn a_large_body_that_its_client_compressed_is_delivered_as_it_was_sent() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.url());
    let packed = gzip(&body(9_000_000));
    assert!(packed.len() > 5_000_000, "{}", packed.len());
    let request = post(packed.clone()).header("Content-Encoding", "gzip");
    assert_eq!(client.expect(&request).status, 201);
    assert_eq!(client.expect(&post(body(6_000_000))).status, 201);
    server.start();
    agent.wait_until_delivered();
    let listed = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(listed["rejected"]["messages"], 0, "{listed}");
}

#[test]
fn large_answers_to_many_clients_at_once_are_passed_on_in_small_pieces() {
    const CLIENTS: u64 = 32;
    const BYTES: usize = 16_000_000;
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    let mut large = Answer::empty(200);
    large.body = vec![b'x'; BYTES];
    let _reads = server.script(When::path("/v1/private/large"), Then::Answer(large));
    let before = peak(&agent);
    let url = agent.url();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let request = Request::new("GET", "/v1/private/large");
                let mut client = Client::new(&url);
                let mut answer = client.open(&request).expect("the head comes at once");
                let mut bytes = 0;
                while let Some(piece) = answer.next_piece().expect("it continues") {
                    bytes += piece.len();
                }
                assert_eq!(bytes, BYTES);
            });
        }
    });
    let grown = peak(&agent) - before;
    eprintln!("{CLIENTS} answers at once took {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < CLIENTS * MIB, "{CLIENTS} answers at once took {grown} bytes");
}

/// Sends a body in chunks, and again when the agent asks for that.
fn post_in_chunks(origin: &str, bytes: &[u8], patience: Duration) -> Result<u32, String> {
    let started = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let status = (|| -> std::io::Result<u16> {
            let mut stream = TcpStream::connect(origin)?;
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(
                b"POST /api/v1/private/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n",
            )?;
            stream.write_all(b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")?;
            for chunk in bytes.chunks(64 * 1024) {
                stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                stream.write_all(chunk)?;
                stream.write_all(b"\r\n")?;
            }
            stream.write_all(b"0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0))
        })();
        match status {
            Ok(201) => return Ok(tries),
            Ok(503) | Err(_) if started.elapsed() < patience => std::thread::sleep(Duration::from_millis(500)),
            other => return Err(format!("{other:?} after {tries} tries")),
        }
    }
}

fn origin_of(agent: &Agent) -> String {
    agent.origin().trim_start_matches("http://").trim_end_matches('/').to_owned()
}

#[test]
fn chunked_bodies_that_exceed_memory_together_finish_one_by_one() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--memory-budget").arg("16MiB").start();
    let (origin, bytes) = (origin_of(&agent), 9_000_000);
    let bodies: Vec<Vec<u8>> = (0..8).map(|_| body(bytes)).collect();
    std::thread::scope(|scope| {
        let sending: Vec<_> =
            bodies.iter().map(|body| scope.spawn(|| post_in_chunks(&origin, body, Duration::from_secs(120)))).collect();
        for sending in sending {
            let tries = sending.join().expect("it did not panic");
            assert!(tries.is_ok(), "{tries:?}");
        }
    });
    assert_eq!(agent.backlog(), 8);
}

#[test]
fn clients_that_stall_half_way_do_not_keep_the_memory_from_others() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--memory-budget").arg("16MiB").start();
    let origin = origin_of(&agent);
    // More than clients may have together, none of them a large body.
    let stalled: Vec<TcpStream> = (0..120)
        .map(|_| {
            let mut stream = TcpStream::connect(&origin).expect("it listens");
            let head = "POST /api/v1/private/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 230000\r\n\r\n";
            stream.write_all(head.as_bytes()).expect("it is taken");
            stream.write_all(&[b' '; 200_000]).expect("it is taken");
            stream
        })
        .collect();
    let started = Instant::now();
    let (mut refused, mut taken) = (0, false);
    // At first they have not been read yet. The rest is too small for this one.
    while refused == 0 || !taken {
        match Client::new(&agent.url()).expect(&post(body(249_000))).status {
            201 => taken = refused > 0,
            503 => refused += 1,
            status => panic!("{status}"),
        }
        assert!(started.elapsed() < HANGS_AFTER, "taken: {taken}, refused {refused} times");
        std::thread::sleep(Duration::from_millis(300));
    }
    drop(stalled);
}
