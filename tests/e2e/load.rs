//! Many clients at once and much to keep: as many messages as a long outage brings, with the agent's memory limited by
//! the system and the agent killed in between. The count at the end is the point: accepted by a client = on the server.
//!
//! `OPIK_OFFLINE_LOAD` sets how many messages (3,000).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

const MIB: u64 = 1024 * 1024;
const CLIENTS: usize = 8;
/// Memory that an agent may use beyond its start, for any backlog.
const GROWTH_MAX: u64 = 96 * MIB;

fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("the system tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Limits what the agent may write to of its own memory (no system limits the resident part by a resource limit), and
/// returns what it has resident now.
fn bound(agent: &Agent) -> u64 {
    let most = Some(memory(agent.pid(), "VmData:") + 2 * GROWTH_MAX);
    let pid = Pid::from_raw(agent.pid().cast_signed());
    prlimit(pid, Resource::Data, Rlimit { current: most, maximum: most }).expect("our own child can be limited");
    memory(agent.pid(), "VmRSS:")
}

/// Stores this many messages by several clients at once, half of them updates of the others. Returns how many traces.
fn store(agent: &Agent, ledger: &ClientLedger, messages: usize) -> usize {
    let begun = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut app = Told::new(&agent.url(), ledger);
                while begun.fetch_add(1, Ordering::Relaxed) < messages / 2 {
                    let id = uuid7();
                    app.acknowledged(create(&id), 201);
                    app.acknowledged(update(&id, 1), 204);
                }
            });
        }
    });
    messages / 2
}

#[test]
fn what_many_clients_store_in_limited_memory_is_counted_again_on_the_server() {
    let count = std::env::var("OPIK_OFFLINE_LOAD").ok().and_then(|count| count.parse().ok()).unwrap_or(3_000);
    let server = FakeOpik::new_stopped();
    let builder = Agent::builder(&server.url()).impatient().env("OPIK_REPLAY_BATCH_SIZE", "1000");
    let mut agent = builder.env("OPIK_REPLAY_BATCH_REPLAY_DELAY", "0").start();
    let ledger = ClientLedger::new();
    let start = Instant::now();
    let mut idle = bound(&agent);
    let mut traces = store(&agent, &ledger, count / 2);
    let storing = memory(agent.pid(), "VmHWM:").saturating_sub(idle);
    agent.kill9();
    agent.restart_on_same_port();
    idle = bound(&agent);
    traces += store(&agent, &ledger, count / 2);
    assert_eq!(agent.backlog(), 2 * traces as u64, "an acknowledged message is not stored");
    let stored = start.elapsed();
    // And while it is delivered, as much comes again.
    server.start();
    traces += store(&agent, &ledger, count / 4);
    wait_until("all are delivered", PATIENCE + Duration::from_millis(20) * count as u32, || agent.backlog() == 0);
    let grown = memory(agent.pid(), "VmHWM:").saturating_sub(idle);
    eprintln!(
        "{count} messages stored in {stored:.1?}, delivered {:.1?} later; the agent grew by {:.1} MiB storing, {:.1} MiB in all",
        start.elapsed() - stored,
        storing as f64 / MIB as f64,
        grown as f64 / MIB as f64
    );
    assert!(storing.max(grown) < GROWTH_MAX, "the agent grew by {} MiB", storing.max(grown) / MIB);
    assert_eq!(server.count("default", Kind::Trace), traces, "accepted by a client is not what is on the server");
    server.assert_equals(&ledger);
    server.assert_no_update_before_create();
}
