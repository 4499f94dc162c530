//! Three agents of one store whose keys are changed again and again in the documented way, while writers send each
//! write to another of them, the server comes and goes, and agents and `--reseal` are killed: nothing is overtaken or
//! lost.
//!
//! `OPIK_OFFLINE_ROTATIONS=SEED:ROTATIONS` makes it larger or repeats a run; it is small by default.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::durability::Dice;
use crate::encryption::{KEYS, configure};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, create_batch, delete, score, span, update};

const AGENTS: usize = 3;
const WRITERS: u64 = 3;

/// Answers that writers got.
#[derive(Default)]
pub(crate) struct Met {
    pub sent: AtomicU64,
    pub refused: AtomicU64,
    pub unanswered: AtomicU64,
}

/// Applications that send each write through any of some agents, until they are stopped.
pub(crate) struct Writers<'a> {
    pub urls: &'a [String],
    pub ledger: &'a ClientLedger,
    pub stop: &'a AtomicBool,
    pub met: &'a Met,
}

impl Writers<'_> {
    /// Writes about one entity after another.
    pub(crate) fn run(&self, seed: u64) {
        let mut dice = Dice::new(seed);
        let mut apps: Vec<Told<'_>> = self.urls.iter().map(|url| Told::new(url, self.ledger)).collect();
        while !self.stop.load(Ordering::Relaxed) {
            // About one that a write got no answer for, nothing more is known.
            let _ = life(&mut dice).into_iter().all(|write| self.write(&mut apps, &mut dice, &write));
        }
    }

    /// Returns whether it was acknowledged. As an SDK does: what is refused, or met nobody who listens, is sent again.
    fn write(&self, apps: &mut [Told<'_>], dice: &mut Dice, write: &Request) -> bool {
        while !self.stop.load(Ordering::Relaxed) {
            let app = &mut apps[dice.below(self.urls.len() as u64) as usize];
            self.met.sent.fetch_add(1, Ordering::Relaxed);
            match app.try_send(write) {
                Ok(answer) if answer.status < 300 => return true,
                Ok(answer) => {
                    assert_eq!(answer.status, 503, "{} {}: {}", write.method, write.path, answer.text());
                    self.met.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(why) if why.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(_) => {
                    app.client.disconnect();
                    self.met.unanswered.fetch_add(1, Ordering::Relaxed);
                    return false;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

/// The writes about a trace or two, from their making to their end.
fn life(dice: &mut Dice) -> Vec<Request> {
    let (kept, other) = (uuid7(), uuid7());
    let mut writes = match dice.below(4) {
        0 => vec![create(&kept), create(&other), delete(&other)],
        1 => vec![create_batch([&kept, &other]), delete(&other)],
        // An update that comes before its create.
        2 => vec![update(&kept, 100), create(&kept)],
        _ => vec![create(&kept), span(&uuid7(), &kept)],
    };
    for n in 1..2 + dice.below(5) {
        writes.push(update(&kept, n));
        if dice.below(3) == 0 {
            writes.push(score(&kept, n as f64));
        }
    }
    writes
}

/// Shows what is wrong, and fails when anything is.
#[track_caller]
pub(crate) fn assert_nothing_overtaken(server: &FakeOpik, ledger: &ClientLedger, met: &Met) {
    let differences = server.differences(ledger);
    println!(
        "{} writes sent, {} refused, {} not answered; {} differences to what clients were told about {} entities",
        met.sent.load(Ordering::Relaxed),
        met.refused.load(Ordering::Relaxed),
        met.unanswered.load(Ordering::Relaxed),
        differences.len(),
        ledger.entities().len()
    );
    let shown: Vec<&str> = differences.iter().take(20).map(String::as_str).collect();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), shown.join("\n"));
}

/// Stops or kills an agent and starts it again with these keys.
fn restart(agent: &mut Agent, dice: &mut Dice, current: Option<&str>, previous: Option<&str>) {
    match dice.below(3) {
        0 => agent.kill9(),
        _ => drop(agent.terminate()),
    }
    configure(agent.home(), current, previous);
    agent.restart_on_same_port();
}

/// Starts an agent of the store at `db` with a home, and so a configuration, of its own.
fn agent_with_keys(server: &FakeOpik, db: &str, current: Option<&str>, previous: Option<&str>) -> Agent {
    let home = Home::new();
    configure(&home, current, previous);
    Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", db).home(home).start()
}

/// Runs `healthcheck --reseal` with these keys until it has finished; some runs are killed.
fn reseal(db: &str, server: &FakeOpik, dice: &mut Dice, current: Option<&str>, previous: Option<&str>) {
    let home = Home::new();
    configure(&home, current, previous);
    let command = || {
        let mut command = home.command(crate::support::agent::program());
        command.args(["healthcheck", "--reseal", "--db", db, "--upstream", &server.url()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    for _ in 0..dice.below(3) {
        let mut child = command().spawn().expect("it starts");
        std::thread::sleep(Duration::from_millis(10 + dice.below(150)));
        child.kill().expect("our own child can be killed");
        child.wait().expect("it ends");
    }
    let mut said = String::new();
    wait_until("all is sealed under the new key", PATIENCE, || {
        let output = command().output().expect("it runs");
        said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        output.status.code().is_some_and(|code| code != 1)
    });
}

#[test]
fn keys_that_change_again_and_again_let_nothing_be_overtaken_or_lost() {
    let setting = std::env::var("OPIK_OFFLINE_ROTATIONS").unwrap_or_else(|_| "1:3".into());
    let numbers: Vec<u64> = setting.split(':').map(|n| n.parse().expect("SEED:ROTATIONS")).collect();
    let &[seed, rotations] = &numbers[..] else { panic!("OPIK_OFFLINE_ROTATIONS is SEED:ROTATIONS") };
    println!("OPIK_OFFLINE_ROTATIONS={setting}");

    let server = FakeOpik::start_new();
    let store = Home::new();
    let db = store.db().display().to_string();
    let mut key: Option<&str> = Some(KEYS[0]);
    let mut agents: Vec<Agent> = (0..AGENTS).map(|_| agent_with_keys(&server, &db, key, None)).collect();
    let urls: Vec<String> = agents.iter().map(Agent::url).collect();
    let (ledger, stop, met) = (ClientLedger::new(), AtomicBool::new(false), Met::default());
    let mut dice = Dice::new(seed);
    std::thread::scope(|threads| {
        for writer in 0..WRITERS {
            let writers = Writers { urls: &urls, ledger: &ledger, stop: &stop, met: &met };
            threads.spawn(move || writers.run(seed * 100 + writer));
        }
        let pause = |dice: &mut Dice, ms: u64| std::thread::sleep(Duration::from_millis(50 + dice.below(ms)));
        for rotation in 0..rotations {
            // Also on, off, and back to the key that is just left.
            let next = [None, Some(KEYS[0]), Some(KEYS[1])][dice.below(3) as usize];
            if next == key {
                continue;
            }
            println!("rotation {rotation}");
            for agent in &mut agents {
                if dice.below(2) == 0 {
                    server.stop();
                }
                pause(&mut dice, 400);
                restart(agent, &mut dice, next, key);
                pause(&mut dice, 400);
                server.start();
                pause(&mut dice, 600);
            }
            reseal(&db, &server, &mut dice, next, key);
            for agent in &mut agents {
                if dice.below(3) == 0 {
                    server.stop();
                }
                restart(agent, &mut dice, next, None);
                pause(&mut dice, 400);
                server.start();
                pause(&mut dice, 400);
            }
            key = next;
        }
        stop.store(true, Ordering::Relaxed);
    });
    wait_until("all is delivered", PATIENCE, || {
        agents.iter().any(|agent| {
            let ready = Client::new(&agent.origin()).get("/-/ready").json();
            ready["store"]["usable"] == true && ready["store"]["waiting"] == 0
        })
    });
    assert_nothing_overtaken(&server, &ledger, &met);
    server.assert_no_violations();
}

/// An update without its create leaves a partial row on the server, which hides a create that comes in a batch.
#[test]
fn an_update_that_an_agent_without_the_key_passes_on_hides_no_later_create() {
    for key in [None, Some(KEYS[1])] {
        let server = FakeOpik::new_stopped();
        let store = Home::new();
        let db = store.db().display().to_string();
        let start = |key| agent_with_keys(&server, &db, key, None);
        let (ledger, with_key) = (ClientLedger::new(), start(Some(KEYS[0])));
        Told::new(&with_key.url(), &ledger).acknowledged(create(&uuid7()), 201);
        let without_key = start(key);
        server.start();
        let ids: Vec<String> = (0..6).map(|_| uuid7()).collect();
        let mut app = Told::new(&without_key.url(), &ledger);
        for id in &ids[1..5] {
            wait_until("an update passes", PATIENCE, || {
                app.try_send(&update(id, 1)).is_ok_and(|told| told.status == 204)
            });
        }
        server.stop();
        let mut app = Told::new(&with_key.url(), &ledger);
        wait_until("writes are stored again", PATIENCE, || {
            app.try_send(&create(&ids[0])).is_ok_and(|told| told.status == 201)
        });
        // Also singles, which may be sent together.
        app.acknowledged(create(&ids[1]), 201);
        app.acknowledged(create(&ids[2]), 201);
        app.acknowledged(create_batch(&ids[3..]), 204);
        server.start();
        wait_until("all is delivered", PATIENCE, || {
            Client::new(&with_key.origin()).get("/-/ready").json()["store"]["waiting"] == 0
        });
        server.assert_equals(&ledger);
    }
}

/// A store after a disk error is proven by a process that has it alone: one that lacks its key must not keep it open.
#[test]
fn an_agent_with_an_outdated_key_does_not_block_the_check_of_an_unproven_store() {
    let server = FakeOpik::new_stopped();
    let store = Home::new();
    let db = store.db().display().to_string();
    let start = |current, previous| agent_with_keys(&server, &db, current, previous);
    let usable = |agent: &Agent| Client::new(&agent.origin()).get("/-/ready").json()["store"]["usable"] == true;
    let (ledger, left_behind) = (ClientLedger::new(), start(Some(KEYS[0]), None));
    let waits = uuid7();
    Told::new(&left_behind.url(), &ledger).acknowledged(create(&waits), 201);
    let rotated = start(Some(KEYS[1]), Some(KEYS[0]));
    wait_until("the other agent notices that it lacks the key", PATIENCE, || {
        drop(Told::new(&left_behind.url(), &ledger).send(update(&waits, 1)));
        !usable(&left_behind)
    });
    // As a process leaves it that met an error of the disk.
    std::fs::write(format!("{db}-unproven"), "a sync failed").expect("a file");
    wait_until("the store is seen to be unproven", PATIENCE, || !usable(&rotated));
    wait_until("the store is proven", PATIENCE, || usable(&rotated));
    let mut app = Told::new(&rotated.url(), &ledger);
    app.acknowledged(update(&waits, 2), 204);
    server.start();
    wait_until("all is delivered", PATIENCE, || {
        Client::new(&rotated.origin()).get("/-/ready").json()["store"]["waiting"] == 0
    });
    server.assert_equals(&ledger);
}

/// Its view of the store is current, even after all processes have closed the store and reopened it.
#[test]
fn an_agent_whose_key_was_changed_sees_what_others_store_after_they_came_again() {
    let server = FakeOpik::new_stopped();
    let store = Home::new();
    let db = store.db().display().to_string();
    let start = |current, previous| agent_with_keys(&server, &db, current, previous);
    let (ledger, left_behind) = (ClientLedger::new(), start(Some(KEYS[0]), None));
    let first = uuid7();
    Told::new(&left_behind.url(), &ledger).acknowledged(create(&first), 201);
    let mut rotated = start(Some(KEYS[1]), Some(KEYS[0]));
    // It tries to open the store again and again, which is in use and has a log.
    let until = std::time::Instant::now() + Duration::from_secs(8);
    while std::time::Instant::now() < until {
        Told::new(&rotated.url(), &ledger).acknowledged(create(&uuid7()), 201);
        assert_eq!(Told::new(&left_behind.url(), &ledger).send(update(&first, 1)).expect("an answer").status, 503);
        std::thread::sleep(Duration::from_millis(50));
    }
    rotated.terminate();
    rotated.restart_on_same_port();
    let later = uuid7();
    Told::new(&rotated.url(), &ledger).acknowledged(create(&later), 201);
    rotated.signal(Signal::STOP);
    server.start();
    wait_until("the server is seen again", PATIENCE, || {
        Client::new(&left_behind.origin()).get("/-/ready").json()["server"]["connection"] == "available"
    });
    let answer = Told::new(&left_behind.url(), &ledger).send(delete(&later)).expect("an answer");
    assert_eq!(answer.status, 503, "a deletion overtook the create that waits: {}", answer.text());
    rotated.signal(Signal::CONT);
    wait_until("all is delivered", PATIENCE, || {
        Client::new(&rotated.origin()).get("/-/ready").json()["store"]["waiting"] == 0
    });
    server.assert_equals(&ledger);
}
