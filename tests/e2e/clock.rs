//! The wall clock jumps by hours under running agents: no order changes, nothing waits for hours, nothing storms the
//! server.
//!
//! The clock is one that the test sets (`tests/faults/clock.c`), below the real binary.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::fleet_streams::TestFleet;
use crate::support::agent::{Agent, AgentBuilder, Home};
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::process::run;
use crate::support::{PATIENCE, tempdir, uuid7, wait_until};
use crate::writes::{Told, create, update};

const HOUR: i64 = 60 * 60;

/// A clock that a test sets, for the processes that are started with it.
struct Clock {
    folder: TempDir,
}

impl Clock {
    fn new() -> Self {
        let clock = Self { folder: tempdir() };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/clock.c");
        let built = run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(clock.library()).arg(source));
        assert!(built.status.success(), "the clock can't be built: {}", built.stderr);
        clock.set(0);
        clock
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// Sets the clock this many seconds before (negative) or after the machine's.
    fn set(&self, offset: i64) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, offset.to_string()).expect("a file can be written");
        std::fs::rename(&new, self.file()).expect("a file can be renamed");
    }

    fn under(&self, agent: AgentBuilder) -> AgentBuilder {
        agent
            .env("LD_PRELOAD", &self.library().display().to_string())
            .env("OPIK_TEST_CLOCK", &self.file().display().to_string())
    }
}

fn agent(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s")
}

/// The writes of an application before, between and after the jumps.
fn write_some(agents: &[&Agent], ledger: &ClientLedger, ids: &[String], n: u64) {
    for (number, id) in ids.iter().enumerate() {
        let agent = agents[number % agents.len()];
        let mut app = Told::new(&agent.url(), ledger);
        if n == 0 {
            app.acknowledged(create(id), 201);
        } else {
            app.acknowledged(update(id, n), 204);
        }
    }
}

fn pings(server: &FakeOpik) -> usize {
    server.requests_to("GET", "/is-alive/ping").len()
}

/// Waits until the agent has had every occasion to do what it should not.
fn let_it_look_around(server: &FakeOpik) {
    let until = pings(server) + 15;
    wait_until("the agent has pinged fifteen times more", PATIENCE, || pings(server) >= until);
}

fn wait_for_hits(what: &str, hits: impl Fn() -> usize, least: usize) {
    wait_until(what, PATIENCE, || hits() >= least);
}

#[test]
fn a_clock_that_jumps_by_hours_keeps_no_lane_waiting_and_asks_no_limited_server_again_and_again() {
    let server = FakeOpik::new_stopped();
    let clock = Clock::new();
    let agent = clock.under(agent(&server)).start();
    let ledger = ClientLedger::new();
    let ids: Vec<String> = (0..20).map(|_| uuid7()).collect();
    write_some(&[&agent], &ledger, &ids, 0);
    clock.set(-3 * HOUR);
    write_some(&[&agent], &ledger, &ids, 1);
    clock.set(3 * HOUR);
    write_some(&[&agent], &ledger, &ids, 2);

    let limit = server.script(When::write(), Then::rate_limited(600));
    server.start();
    wait_for_hits("the limit is met", || limit.hits(), 1);
    let_it_look_around(&server);
    let before = limit.hits();
    clock.set(-3 * HOUR);
    wait_for_hits(
        "the server is asked after the clock was set back by six hours, not six hours later",
        || limit.hits(),
        before + 1,
    );
    let_it_look_around(&server);
    // One request met the new limit; those that were on their way beside it may have, too.
    let asked_again = limit.hits() - before;
    assert!(asked_again <= 4, "{asked_again} requests to a limited server after one jump back");

    let before = limit.hits();
    clock.set(9 * HOUR);
    wait_for_hits("the hold is over after the clock was set forward", || limit.hits(), before + 1);
    let_it_look_around(&server);
    let asked_again = limit.hits() - before;
    assert!(asked_again <= 4, "{asked_again} requests to a limited server after one jump forward");

    limit.clear();
    write_some(&[&agent], &ledger, &ids, 3);
    clock.set(0);
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_update_before_create();
}

#[test]
fn messages_that_failed_are_tried_again_though_the_clock_was_set_back() {
    let server = FakeOpik::new_stopped();
    let clock = Clock::new();
    let agent = clock.under(agent(&server)).start();
    let ledger = ClientLedger::new();
    let ids: Vec<String> = (0..10).map(|_| uuid7()).collect();
    write_some(&[&agent], &ledger, &ids, 0);
    let broken = server.script(When::ids([&*ids[4]]), Then::status(500));
    server.start();
    wait_until("all but the one that the server fails on are delivered", PATIENCE, || agent.backlog() == 1);
    wait_for_hits("it is tried again", || broken.hits(), 2);
    clock.set(-6 * HOUR);
    broken.clear();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

#[test]
fn agents_whose_clocks_differ_by_hours_share_a_store_in_order() {
    let server = FakeOpik::new_stopped();
    let (early, late) = (Clock::new(), Clock::new());
    early.set(-6 * HOUR);
    late.set(6 * HOUR);
    let first = early.under(agent(&server)).start();
    let db = first.db().display().to_string();
    let second = late.under(agent(&server)).home(Home::new()).env("OPIK_OFFLINE_DB", &db).without_db().start();
    let ledger = ClientLedger::new();
    let ids: Vec<String> = (0..20).map(|_| uuid7()).collect();
    write_some(&[&first, &second], &ledger, &ids, 0);
    write_some(&[&second, &first], &ledger, &ids, 1);
    server.start();
    wait_until("some are delivered", PATIENCE, || first.backlog() < 40);
    // In the middle of a round, both ways: the lease is measured on another clock.
    early.set(6 * HOUR);
    late.set(-6 * HOUR);
    first.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_update_before_create();
}

/// What was accepted before the clock was set back is old enough for a copy by no clock of the wall.
#[test]
fn a_clock_that_jumps_by_hours_delays_no_copy_and_costs_no_stream() {
    let (fleet, clock, server) = (TestFleet::new(), Clock::new(), FakeOpik::new_stopped());
    let builder = agent(&server).arg("--fleet").arg(&fleet.url()).env("OPIK_OFFLINE_FLEET_INTERVAL_MAX", "1s");
    let agent = clock.under(builder.env("OPIK_OFFLINE_FLEET_DELAY", "5s")).start();
    let ledger = ClientLedger::new();
    let mut shipped = 0;
    // Back, far ahead and back again, each time between a write and its copy.
    for (jump, n) in [(-6 * HOUR, 1), (9 * HOUR, 2), (-2 * HOUR, 3)] {
        let ids = [uuid7(), uuid7()];
        write_some(&[&agent], &ledger, &ids, 0);
        clock.set(jump);
        write_some(&[&agent], &ledger, &ids, n);
        shipped += 4;
        wait_until("copies wait until the clock has caught up", PATIENCE, || fleet.shipped() >= shipped);
    }
    assert_eq!(fleet.names("v1/heads").len(), 1, "the agent lost its stream to nobody");
    server.start();
    agent.wait_until_delivered();
    wait_until("the depot fills up", PATIENCE, || fleet.left().is_empty());
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_violations();
}
