//! Memory stays bounded for any backlog, any requests and any answers of the server: the most that a process ever had
//! (VmHWM) is compared with what it has when it is idle. Memory is not time, so a test may assert it; each limit has a
//! margin of about two over what was measured.
//!
//! `OPIK_OFFLINE_BACKLOG` sets how many messages wait (20,000).

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use opik_offline::message::{
    Body, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageType, Request as Stored, Touch,
};
use opik_offline::store::{self, Limits, OpenMode, Store, WhenFull};
use rustix::process::{Resource, Rlimit};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request, gzip};
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{create, trace};

const MIB: u64 = 1024 * 1024;

fn memory(pid: u32, what: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024)
}

/// The most memory that a process ever had, in bytes.
fn peak(pid: u32) -> u64 {
    memory(pid, "VmHWM:").expect("the process runs")
}

fn backlog() -> usize {
    std::env::var("OPIK_OFFLINE_BACKLOG").ok().and_then(|count| count.parse().ok()).unwrap_or(20_000)
}

/// Creates a store with a backlog of this many traces of 2 KB.
fn fill(path: &Path, count: usize) {
    let limits = Limits { size_max: 1 << 40, disk_reserve: 0, when_full: WhenFull::Refuse };
    let store: Arc<dyn Store> = store::open(path, OpenMode::CreateIfMissing, limits).expect("a new store");
    let text = noise(1800);
    let headers = HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]);
    let message = |number: usize| {
        let id = uuid7();
        let mut body = trace(&id, "chat");
        body["input"] = serde_json::json!({ "n": number, "text": text });
        Message {
            lane: Lane { workspace: Some("default".into()), ..Lane::default() },
            message_type: MessageType::CreateTrace,
            request: Stored {
                method: "POST".into(),
                path: "v1/private/traces".into(),
                headers: headers.clone(),
                body: Body::new(body.to_string(), Encoding::Identity),
            },
            touches: vec![Touch { key: EntityKey::new(EntityKind::Trace, &id), effect: Effect::Create }],
            items: 1,
            project: None,
            accepted_at_ms: 1_767_323_045_000 + number as i64,
        }
    };
    for start in (0..count).step_by(1000) {
        let messages: Vec<_> = (start..count.min(start + 1000)).map(message).collect();
        store.register(&messages).expect("there is room");
    }
}

/// A large backlog takes its time, most of it the fake server's.
#[track_caller]
fn wait_until_delivered(agent: &Agent) {
    wait_until("the agent's backlog is empty", PATIENCE * 10, || agent.backlog() == 0);
}

fn assert_bounded(what: &str, grown: u64, limit: u64) {
    eprintln!("{what}: {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < limit, "{what} took {:.1} MiB, more than {} MiB", grown as f64 / MIB as f64, limit / MIB);
}

/// Runs a command to its end and returns the most memory that it had.
fn peak_of_command(home: &Home, server: &FakeOpik, args: &[&str]) -> u64 {
    let mut command = home.command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(args).arg("--db").arg(home.db()).args(["--upstream", &server.url()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started");
    let mut most = 0;
    // The peak only grows, so the last look before its end is as good as any; a short command ends between two looks
    // with less.
    while child.try_wait().expect("a child can be waited for").is_none() {
        most = memory(child.id(), "VmHWM:").unwrap_or(most);
        std::thread::sleep(Duration::from_millis(2));
    }
    most
}

#[test]
fn a_large_backlog_takes_no_more_memory_than_a_small_one() {
    let count = backlog();
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    fill(&home.db(), count);
    for args in [
        &["inspect", "--limit", "100"][..],
        &["inspect", "--limit", "1000000", "--format", "jsonl"],
        &["status"],
        &["purge", "--dry-run"],
        &["replay", "--dry-run"],
        &["purge", "--yes", "--older-than", "100000d"],
    ] {
        assert_bounded(&format!("{args:?} of {count} messages"), peak_of_command(&home, &server, args), 36 * MIB);
    }
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_REPLAY_BATCH_SIZE", "1000");
    let agent = agent.env("OPIK_REPLAY_BATCH_REPLAY_DELAY", "0").home(home).start();
    let before = peak(agent.pid());
    server.start();
    wait_until_delivered(&agent);
    assert_bounded(&format!("replaying {count} messages"), peak(agent.pid()) - before, 96 * MIB);
}

#[test]
fn verifying_and_purging_a_large_backlog_is_bounded_too() {
    let count = backlog() / 10;
    let server = FakeOpik::start_new();
    let home = Home::new();
    fill(&home.db(), count);
    assert_bounded("replay --verify", peak_of_command(&home, &server, &["replay", "--verify"]), 96 * MIB);
    fill(&home.db(), count);
    assert_bounded("purge", peak_of_command(&home, &server, &["purge", "--yes"]), 96 * MIB);
}

#[test]
fn bodies_at_the_limit_from_many_clients_at_once_are_bounded() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--max-body-size").arg("8MiB").start();
    let before = peak(agent.pid());
    let text = noise(8_380_000);
    let body = |_| {
        let mut body = trace(&uuid7(), "chat");
        body["input"] = serde_json::json!({ "text": text });
        Request::new("POST", "/v1/private/traces").json(&body)
    };
    let requests: Vec<_> = (0..64).map(body).collect();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let sending: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(|| Client::new(&agent.url()).send(request).map_or(0, |answer| answer.status)))
            .collect();
        sending.into_iter().map(|sending| sending.join().expect("it did not panic")).collect()
    });
    let stored = statuses.iter().filter(|status| **status == 201).count();
    let refused = statuses.iter().filter(|status| **status == 503).count();
    assert_eq!(stored + refused, 64, "{statuses:?}");
    assert!(stored >= 16, "only {stored} of 64 were taken");
    assert_eq!(agent.backlog(), stored as u64);
    assert_bounded("64 bodies of 8 MiB at once", peak(agent.pid()) - before, 640 * MIB);
}

#[test]
fn bodies_that_inflate_a_thousandfold_are_bounded() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--max-inflated-size").arg("4MiB").start();
    let before = peak(agent.pid());
    // 16 bodies of some 3 KB, each 3 MB of spaces: without an id, so each is kept inflated with one, if at all; a bomb
    // beyond the limit; and one made of many small bombs.
    let spaces = |id: &str, bytes: usize| {
        let body = format!(r#"{{{id}"start_time": "2026-03-01T04:00:16Z", "name": "{}"}}"#, " ".repeat(bytes));
        gzip(body.as_bytes())
    };
    let id = || format!(r#""id": "{}", "#, uuid7());
    let (unnamed, named, bomb) = (spaces("", 3_000_000), spaces(&id(), 3_000_000), spaces(&id(), 8_000_000));
    let members = bomb.repeat(10);
    let post = |body: &[u8]| {
        Request::new("POST", "/v1/private/traces").header("Content-Encoding", "gzip").bytes(body.to_vec())
    };
    let requests: Vec<_> = (0..16)
        .map(|number| match number % 4 {
            0 | 1 => (post(&unnamed), [201, 503]),
            2 => (post(&named), [201, 503]),
            _ => (post(if number % 8 == 3 { &bomb } else { &members }), [413, 413]),
        })
        .collect();
    let url = agent.url();
    std::thread::scope(|scope| {
        for (request, expected) in &requests {
            let url = &url;
            scope.spawn(move || {
                let status = Client::new(url).send(request).map_or(0, |answer| answer.status);
                assert!(expected.contains(&status), "{status}, not one of {expected:?}");
            });
        }
    });
    assert_bounded("16 bodies that inflate to 3 MB and more", peak(agent.pid()) - before, 200 * MIB);
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201, "the agent is as well as before");
}

#[test]
fn what_the_server_answers_is_never_held_whole() {
    const BYTES: usize = 256 * 1024 * 1024;
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until("the agent knows its server", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == "available"
    });
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    let before = peak(agent.pid());
    let mut large = Answer::empty(201);
    large.body = vec![b'x'; BYTES];
    // Read: streamed, four times, a gigabyte in all.
    let reads = server.script(When::path("/v1/private/large"), Then::Answer(large.clone()));
    for _ in 0..4 {
        let mut answer = client.open(&Request::new("GET", "/v1/private/large")).expect("the head comes at once");
        let mut bytes = 0;
        while let Some(piece) = answer.next_piece().expect("it continues") {
            bytes += piece.len();
        }
        assert_eq!(bytes, BYTES);
    }
    reads.clear();
    assert_bounded("a gigabyte of answers to reads", peak(agent.pid()) - before, 32 * MIB);
    // To a write, forwarded and replayed: an answer to a write is one line, so the rest is unused.
    let writes = server.script(When::write(), Then::Answer(large));
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    server.stop();
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    server.start();
    wait_until("replay gets it, too", PATIENCE, || writes.hits() >= 2);
    agent.wait_until_delivered();
    writes.clear();
    // A head without end.
    let mut heads = Answer::error(400, "no");
    heads.headers.extend((0..2000).map(|number| (format!("X-{number}"), "x".repeat(2000))));
    let heads = server.script(When::write(), Then::Answer(heads));
    assert_eq!(client.expect(&create(&uuid7())).status, 201, "an unreadable answer does not count as an answer");
    wait_until("replay gets it, too", PATIENCE, || heads.hits() >= 2);
    heads.clear();
    agent.wait_until_delivered();
    assert_bounded("answers of 256 MiB and heads of 4 MB to writes", peak(agent.pid()) - before, 48 * MIB);
}

/// The same by the system's own means: what is not there can't be taken.
#[test]
fn an_agent_with_little_address_space_delivers_a_large_backlog() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient();
    let home = Home::new();
    fill(&home.db(), backlog() / 4);
    let agent = agent.home(home).start();
    // Threads reserve address space for their stacks and heaps without using it, so the limit is about what comes on
    // top.
    let size = memory(agent.pid(), "VmSize:").expect("the agent runs");
    let pid = rustix::process::Pid::from_raw(agent.pid() as i32);
    let limit = Rlimit { current: Some(size + 1024 * MIB), maximum: Some(size + 1024 * MIB) };
    rustix::process::prlimit(pid, Resource::As, limit).expect("our own child can be limited");
    wait_until_delivered(&agent);
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
}
