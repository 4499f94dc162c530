//! One budget for bodies in memory, over intake, forward and replay together: many large messages wait in lanes of
//! their own, many large ones come at once, and the agent stays within the memory of its container.
//!
//! `OPIK_OFFLINE_BOUNDS=LANES:MEGABYTES:LIMIT_MIB` sets the size (12:16:128); the figures of the issue are `64:60:256`.

use std::time::{Duration, Instant};

use crate::support::agent::Agent;
use crate::support::cgroup::MemoryCgroup;
use crate::support::http::{Client, Request};
use crate::support::not_run::not_run;
use crate::support::sink::Sink;
use crate::support::{noise, uuid7, wait_until};

/// How many lanes, how large each one's message, and how much memory there is.
struct Size {
    lanes: usize,
    megabytes: usize,
    limit_mib: u64,
}

impl Size {
    fn get() -> Self {
        let given = std::env::var("OPIK_OFFLINE_BOUNDS").unwrap_or_else(|_| "12:16:128".into());
        let numbers: Vec<usize> = given.split(':').filter_map(|number| number.parse().ok()).collect();
        let [lanes, megabytes, limit_mib] = numbers[..] else { panic!("OPIK_OFFLINE_BOUNDS is not {given}") };
        Self { lanes, megabytes, limit_mib: limit_mib as u64 }
    }

    /// Makes the cgroup, or says why the machine does not allow it: then only the peak of the process is looked at.
    fn cgroup(&self) -> Option<MemoryCgroup> {
        MemoryCgroup::new(self.limit_mib << 20).inspect_err(|why| not_run(&format!("in a cgroup: {why}"))).ok()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60 + (self.lanes * self.megabytes / 8) as u64)
    }
}

/// A create of this many megabytes that does not get much smaller, with its id.
fn large(text: &str, lane: usize) -> (String, Request) {
    let id = uuid7();
    let start = "2026-03-01T04:00:16Z";
    let mut body = Vec::with_capacity(text.len() + 300);
    body.extend(
        format!(
            r#"{{"id":"{id}","name":"large","start_time":"{start}","last_updated_at":"{start}","input":{{"text":""#
        )
        .bytes(),
    );
    body.extend(text.bytes());
    body.extend(b"\"}}");
    let request = Request::new("POST", "/v1/private/traces").header("Content-Type", "application/json");
    (id, request.header("Comet-Workspace", &format!("lane-{lane}")).bytes(body))
}

/// Sends it until it is acknowledged, like a client that gets `Retry-After`.
fn post(url: &str, request: &Request, patience: Duration) {
    let started = Instant::now();
    loop {
        let answer = Client::new(url).send(request).map(|answer| answer.status);
        match answer {
            Ok(201) => return,
            Ok(503) | Err(_) if started.elapsed() < patience => std::thread::sleep(Duration::from_millis(300)),
            other => panic!("a write was not taken: {other:?}"),
        }
    }
}

fn start(sink: &Sink, cgroup: Option<&MemoryCgroup>) -> Agent {
    let agent = Agent::builder(&sink.url()).impatient().arg("--free-disk-reserve").arg("0");
    match cgroup {
        Some(cgroup) => agent.within(&cgroup.enter()).start(),
        None => agent.start(),
    }
}

fn peak_mib(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

#[track_caller]
fn assert_bounded(agent: &mut Agent, cgroup: Option<&MemoryCgroup>, size: &Size, what: &str) {
    let kills = cgroup.map_or(0, MemoryCgroup::kills);
    assert!(agent.is_running() && kills == 0, "{what}: the agent was killed for want of memory {kills} times");
    let peak = peak_mib(agent);
    eprintln!("{what}: {} lanes of {} MB, peak {peak} MiB of {} MiB", size.lanes, size.megabytes, size.limit_mib);
    assert!(peak < size.limit_mib, "{what} took {peak} MiB");
}

#[track_caller]
fn wait_until_taken(sink: &Sink, agent: &mut Agent, ids: &[String], patience: Duration) {
    wait_until("every message is delivered", patience, || {
        assert!(agent.is_running(), "the agent was killed: {} of {} are delivered", sink.taken().len(), ids.len());
        let taken = sink.taken();
        ids.iter().all(|id| taken.contains_key(id))
    });
}

#[test]
fn large_messages_in_many_lanes_are_replayed_within_the_memory_of_the_container() {
    let size = Size::get();
    let cgroup = size.cgroup();
    let sink = Sink::new_stopped();
    let mut agent = start(&sink, None);
    let text = noise(size.megabytes * 1_000_000);
    let ids: Vec<String> = (0..size.lanes)
        .map(|lane| {
            let (id, request) = large(&text, lane);
            post(&agent.url(), &request, size.patience());
            id
        })
        .collect();
    agent.kill9();
    // Each agent has a limit from its start, as in a container; what waits is there before it.
    agent = agent.again_within(cgroup.as_ref().map(MemoryCgroup::enter).unwrap_or_default());
    sink.be_slow(true);
    sink.start();
    let started = Instant::now();
    wait_until_taken(&sink, &mut agent, &ids, size.patience());
    eprintln!("replayed in {:.1} s", started.elapsed().as_secs_f64());
    assert_bounded(&mut agent, cgroup.as_ref(), &size, "replay");
}

#[test]
fn large_writes_of_many_clients_in_an_outage_stay_within_the_memory_of_the_container() {
    let size = Size::get();
    let cgroup = size.cgroup();
    let sink = Sink::new_stopped();
    let mut agent = start(&sink, cgroup.as_ref());
    let text = noise(size.megabytes * 1_000_000);
    let post_all = |agent: &Agent| -> Vec<String> {
        std::thread::scope(|scope| {
            let (url, text, size) = (agent.url(), &text, &size);
            let sending: Vec<_> = (0..size.lanes)
                .map(|lane| {
                    let url = url.clone();
                    scope.spawn(move || {
                        let (id, request) = large(text, lane);
                        post(&url, &request, size.patience());
                        id
                    })
                })
                .collect();
            sending.into_iter().map(|sending| sending.join().expect("it is taken in the end")).collect()
        })
    };
    let started = Instant::now();
    let mut ids = post_all(&agent);
    eprintln!("stored in {:.1} s", started.elapsed().as_secs_f64());
    assert_bounded(&mut agent, cgroup.as_ref(), &size, "intake in an outage");
    // Both at once: the server is back, and the clients continue.
    sink.be_slow(true);
    sink.start();
    ids.extend(post_all(&agent));
    wait_until_taken(&sink, &mut agent, &ids, size.patience());
    assert_bounded(&mut agent, cgroup.as_ref(), &size, "intake and replay at once");
}
