//! The binary of an earlier version beside the one under test, on one store: a rolling upgrade.
//!
//! `OPIK_OFFLINE_OLDER=PATH` names that binary; without it nothing is run, and the tests say so. The effects of an
//! earlier version on others (an open file, its statements) are simulated in `overtaking.rs`.
//! `OPIK_OFFLINE_VERSIONS=SEED:ROUNDS` makes it larger or repeats a run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use crate::chaos::Dice;
use crate::encryption::{KEYS, configure};
use crate::rotations::{Met, Writers, assert_nothing_overtaken};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, delete, update};

/// Entities of one backlog; three messages each.
const BACKLOG: usize = 300;

fn older(test: &str) -> Option<PathBuf> {
    let older = std::env::var_os("OPIK_OFFLINE_OLDER").map(PathBuf::from);
    if older.is_none() {
        println!("{test}: not run: OPIK_OFFLINE_OLDER names no binary of an earlier version");
    }
    older
}

fn seeds() -> impl Iterator<Item = u64> {
    let setting = std::env::var("OPIK_OFFLINE_VERSIONS").unwrap_or_else(|_| "1:2".into());
    println!("OPIK_OFFLINE_VERSIONS={setting}");
    let numbers: Vec<u64> = setting.split(':').map(|n| n.parse().expect("SEED:ROUNDS")).collect();
    let &[seed, rounds] = &numbers[..] else { panic!("OPIK_OFFLINE_VERSIONS is SEED:ROUNDS") };
    seed..seed + rounds
}

fn read(db: &Path, query: &str) -> i64 {
    // Only for one look: an open file would keep the new version from bringing the schema up to date.
    let connection = Connection::open(db).expect("the store can be opened");
    connection.busy_timeout(PATIENCE).expect("a time");
    connection.query_row(query, [], |row| row.get(0)).expect("the store can be read")
}

/// An agent of the version under test, or of an earlier one, on this store.
fn start(server: &FakeOpik, db: &Path, key: Option<&str>, older: Option<&Path>) -> Agent {
    let home = Home::new();
    configure(&home, key, None);
    let builder =
        Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &db.display().to_string());
    match older {
        Some(program) => builder.program(program).home(home).start(),
        None => builder.home(home).start(),
    }
}

/// Leaves about 900 messages: entities that were made, updated and some deleted.
fn leave_backlog(agent: &Agent, ledger: &ClientLedger) {
    let mut app = Told::new(&agent.url(), ledger);
    for n in 0..BACKLOG {
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, 1), 204);
        match n % 3 {
            0 => app.acknowledged(delete(&id), 204),
            _ => app.acknowledged(update(&id, 2), 204),
        };
    }
}

fn usable(agent: &Agent) -> bool {
    Client::new(&agent.origin()).get("/-/ready").json()["store"]["usable"] == true
}

fn waiting(db: &Path) -> i64 {
    read(db, "SELECT count(*) FROM messages WHERE status IN (1, 3)")
}

fn assert_none_condemned(db: &Path) {
    assert_eq!(read(db, "SELECT count(*) FROM messages WHERE status = 4"), 0, "messages were rejected");
    let beside = std::fs::read_dir(db.parent().expect("a folder")).expect("it can be read");
    let aside: Vec<_> = beside.flatten().map(|entry| entry.file_name()).collect();
    assert!(!aside.iter().any(|name| name.to_string_lossy().contains("damaged")), "set aside: {aside:?}");
}

/// One round: the older agent has a backlog when the new one comes, and both are there while the server is away and
/// comes back; agents are killed. Once the older one is gone for good, the new one delivers.
fn side_by_side(older: &Path, key: Option<&str>, seed: u64) {
    let mut dice = Dice::new(seed);
    let server = FakeOpik::new_stopped();
    let store = Home::new();
    let db = store.db();
    let (ledger, stop, met) = (ClientLedger::new(), AtomicBool::new(false), Met::default());
    let mut old = start(&server, &db, key, Some(older));
    leave_backlog(&old, &ledger);
    let mut new = start(&server, &db, key, None);
    let urls = [old.url(), new.url()];
    let pause = |dice: &mut Dice, ms: u64| std::thread::sleep(Duration::from_millis(50 + dice.below(ms)));
    std::thread::scope(|threads| {
        for writer in 0..2 {
            let writers = Writers { urls: &urls, ledger: &ledger, stop: &stop, met: &met };
            threads.spawn(move || writers.run(seed * 100 + writer));
        }
        for round in 0..3 {
            pause(&mut dice, 1500);
            // Alone with what both stored, the older one delivers it.
            let is_alone = round == 0 || dice.below(2) == 0;
            if is_alone {
                new.kill9();
            }
            server.start();
            pause(&mut dice, 1200);
            if is_alone {
                new.restart_on_same_port();
            }
            pause(&mut dice, 800);
            server.stop();
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("seed {seed}: schema {} while both run", read(&db, "PRAGMA user_version"));
    // The older one ends at an arbitrary point, and does not come back.
    server.start();
    pause(&mut dice, 200);
    match dice.below(2) {
        0 => old.kill9(),
        _ => drop(old.terminate()),
    }
    wait_until("the new agent uses the store", PATIENCE, || usable(&new));
    let (stop, after) = (AtomicBool::new(false), Met::default());
    let urls = [new.url()];
    std::thread::scope(|threads| {
        let writers = Writers { urls: &urls, ledger: &ledger, stop: &stop, met: &after };
        threads.spawn(move || writers.run(seed * 100 + 50));
        pause(&mut dice, 500);
        new.kill9();
        new.restart_on_same_port();
        pause(&mut dice, 500);
        stop.store(true, Ordering::Relaxed);
    });
    // The older one comes back, and is asked about what is new only: what it does with other writes is its own fault.
    old.restart_on_same_port();
    let (stop, urls) = (AtomicBool::new(false), [old.url()]);
    std::thread::scope(|threads| {
        let writers = Writers { urls: &urls, ledger: &ledger, stop: &stop, met: &after };
        threads.spawn(move || writers.run(seed * 100 + 60));
        pause(&mut dice, 1000);
        stop.store(true, Ordering::Relaxed);
    });
    wait_until("all is delivered", PATIENCE, || waiting(&db) == 0);
    assert_none_condemned(&db);
    assert_nothing_overtaken(&server, &ledger, &met);
}

#[test]
fn an_older_agent_that_runs_on_loses_and_condemns_nothing() {
    let Some(older) = older("an_older_agent_that_runs_on_loses_and_condemns_nothing") else { return };
    for seed in seeds() {
        side_by_side(&older, None, seed);
        side_by_side(&older, Some(KEYS[0]), seed);
    }
}
