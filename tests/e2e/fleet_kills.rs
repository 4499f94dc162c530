//! Pods that are killed with their folders at random moments, while their server comes and goes: every write that was
//! acknowledged (`acknowledge: fleet`) is delivered, each entity's in order.
//!
//! `OPIK_OFFLINE_FLEET_KILLS=SEED:KILLS:PODS` makes it larger or repeats a run; it is small by default.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::durability::Dice;
use crate::fleet_streams::TestFleet;
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::ledger::ClientLedger;
use crate::support::uuid7;
use crate::writes::{Told, create, create_batch, score, span, update};

/// Writes until the pod is killed; returns when its agent answers no more.
fn write_until_killed(url: &str, ledger: &ClientLedger, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut app = Told::new(url, ledger);
    let mut known: Vec<String> = Vec::new();
    for n in 0.. {
        let old = known.last().cloned();
        let request = match (dice.below(6), old) {
            (0, _) | (_, None) => {
                known.push(uuid7());
                create(&known[known.len() - 1])
            }
            (1, _) => {
                let ids: Vec<String> = (0..3).map(|_| uuid7()).collect();
                known.extend(ids.iter().cloned());
                create_batch(&ids).gzip()
            }
            (2, Some(id)) => span(&uuid7(), &id),
            (3, Some(id)) => score(&id, n as f64),
            (_, Some(id)) => update(&id, n),
        };
        std::thread::sleep(Duration::from_millis(dice.below(10)));
        // A request without an answer may have been taken or not; what it would have been told stays open.
        match app.try_send(&request) {
            Ok(answer) => assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text()),
            Err(_) => return,
        }
    }
}

/// Starts pods and kills them, one after the other.
fn live_and_die(fleet: &TestFleet, server: &FakeOpik, ledger: &ClientLedger, left: &AtomicU64, seed: u64) {
    let mut dice = Dice::new(seed);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
        let agent = agent.arg("--acknowledge").arg("fleet").env("OPIK_OFFLINE_FLEET_INTERVAL_MAX", "1s").start();
        let pid = i32::try_from(agent.pid()).ok().and_then(Pid::from_raw).expect("a process has a number");
        let moment = Duration::from_millis(dice.below(1500));
        std::thread::scope(|scope| {
            scope.spawn(|| write_until_killed(&agent.url(), ledger, dice.below(u64::from(u32::MAX))));
            std::thread::sleep(moment);
            kill_process(pid, Signal::KILL).expect("our own child can be killed");
        });
        // Its folder goes with it.
    }
}

#[test]
fn pods_that_are_killed_with_their_folders_lose_nothing_that_was_acknowledged() {
    let setting = std::env::var("OPIK_OFFLINE_FLEET_KILLS").unwrap_or_else(|_| "20:10:3".to_owned());
    let mut parts = setting.split(':').map(|part| part.parse::<u64>().expect("SEED:KILLS:PODS"));
    let (seed, kills, pods) = (parts.next().unwrap_or(20), parts.next().unwrap_or(10), parts.next().unwrap_or(3));
    let (server, ledger, fleet) = (FakeOpik::new_stopped(), ClientLedger::new(), TestFleet::new());
    let (left, is_over) = (AtomicU64::new(kills), AtomicBool::new(false));
    let home = Home::new();
    // With the time to take over that agents count on.
    let mut command = fleet.replayer(&home, &server.url());
    command.env_remove("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER").arg("--follow");
    let mut replayer = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice::new(seed);
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200 + dice.below(1500)));
                server.start();
                std::thread::sleep(Duration::from_millis(200 + dice.below(1500)));
                server.stop();
            }
        });
        let pods: Vec<_> = (0..pods)
            .map(|pod| {
                let (fleet, server, ledger, left) = (&fleet, &server, &ledger, &left);
                scope.spawn(move || live_and_die(fleet, server, ledger, left, seed.wrapping_mul(1_000) + pod))
            })
            .collect();
        let ended: Vec<_> = pods.into_iter().map(|pod| pod.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a pod refused a write");
    });
    kill_process(Pid::from_child(&replayer), Signal::TERM).unwrap();
    replayer.wait().unwrap();
    server.start();
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    eprintln!("{kills} kills, {} entities; the last replay: {report}", ledger.entities().len());
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
    assert_eq!(fleet.left(), Vec::<String>::new());
}
