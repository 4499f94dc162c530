//! Stopping and dying: nothing acknowledged is lost, the lease is released, and the agent ends.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use opik_offline::store::{self, Condition, Limits, OpenMode, WhenFull};
use rustix::process::Signal;

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

/// An agent whose timeout for the server is much longer than the test's timeout for the agent.
fn patient(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--forward-timeout").arg("10m")
}

fn condition(agent: &Agent) -> Condition {
    let limits = Limits { size_max: u64::MAX, disk_reserve: 0, when_full: WhenFull::Refuse };
    store::open(&agent.db(), OpenMode::Existing, limits).unwrap().condition().unwrap()
}

/// Waits until the agent has begun to stop.
fn wait_until_stopping(agent: &Agent) {
    wait_until("the agent stops taking requests", PATIENCE, || agent.stderr().contains("no new requests"));
}

/// A create whose head the agent has read, and of whose body it has half.
struct HalfSent {
    connection: BufReader<TcpStream>,
    rest: Vec<u8>,
}

impl HalfSent {
    fn new(agent: &Agent, id: &str) -> Self {
        let body = create(id).body;
        let mut connection = BufReader::new(TcpStream::connect(("127.0.0.1", agent.port())).unwrap());
        connection.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST /api/v1/private/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.get_mut().write_all(head.as_bytes()).unwrap();
        // It sends "100 Continue" when it wants the body, so the request is in flight.
        let (mut line, mut empty) = (String::new(), String::new());
        connection.read_line(&mut line).unwrap();
        connection.read_line(&mut empty).unwrap();
        assert_eq!((&*line, &*empty), ("HTTP/1.1 100 Continue\r\n", "\r\n"));
        let (half, rest) = body.split_at(body.len() / 2);
        connection.get_mut().write_all(half).unwrap();
        Self { connection, rest: rest.to_vec() }
    }

    /// Sends the rest and returns the first line of the answer; an empty one when there is none.
    fn finish(mut self) -> String {
        let mut line = String::new();
        // Either fails when the agent has cut the connection.
        let _ = self.connection.get_mut().write_all(&self.rest);
        let _ = self.connection.read_line(&mut line);
        line
    }
}

#[track_caller]
fn assert_clean(agent: &Agent) {
    let left = condition(agent);
    assert_eq!(left.agents, [], "the agent's record is still in the store");
    assert_eq!(left.lease, None, "nobody else can replay");
}

#[test]
fn a_half_sent_write_finishes_and_new_ones_are_refused() {
    for away in [false, true] {
        let server = FakeOpik::start_new();
        let mut agent = patient(&server).start();
        if away {
            server.stop();
        }
        assert_eq!(condition(&agent).agents.len(), 1);
        let id = uuid7();
        let half = HalfSent::new(&agent, &id);
        agent.signal(Signal::TERM);
        wait_until_stopping(&agent);
        assert!(Client::new(&agent.url()).send(&create(&uuid7())).is_err(), "a stopping agent takes a new connection");
        assert_eq!(half.finish(), "HTTP/1.1 201 Created\r\n");
        assert!(agent.wait().success());
        assert_clean(&agent);
        server.start();
        agent.restart_on_same_port();
        agent.wait_until_delivered();
        assert!(server.entity("default", Kind::Trace, &id).is_some(), "an acknowledged write is lost");
    }
}

#[test]
fn a_write_that_hangs_at_the_server_is_stored_and_acknowledged() {
    let server = FakeOpik::start_new();
    let mut agent = patient(&server).arg("--shutdown-timeout").arg("2s").start();
    let ledger = ClientLedger::new();
    let ids: Vec<String> = (0..5).map(|_| uuid7()).collect();
    let hang = server.script(When::write(), Then::Hang);
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(|| {
                let mut app = Told::new(&agent.url(), &ledger);
                app.acknowledged(create(id), 201);
            });
        }
        wait_until("all hang", PATIENCE, || hang.hits() == ids.len());
        agent.signal(Signal::INT);
    });
    assert!(agent.wait().success());
    assert_clean(&agent);
    hang.clear();
    agent.restart_on_same_port();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

#[test]
fn a_replay_that_hangs_at_the_server_does_not_keep_the_agent() {
    let server = FakeOpik::new_stopped();
    let mut agent = patient(&server).arg("--shutdown-timeout").arg("1s").start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for _ in 0..20 {
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, 1), 204);
    }
    let hang = server.script(When::write(), Then::Hang);
    server.start();
    wait_until("the replay hangs", PATIENCE, || hang.hits() == 1);
    assert!(agent.terminate().success());
    assert_clean(&agent);
    hang.clear();
    // Nobody has to wait for a lease to run out.
    let replayed = agent.cli(&["replay", "--quiet"]);
    assert_eq!(replayed.code(), Some(0), "{}", replayed.stderr);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

#[test]
fn a_replay_in_the_middle_settles_what_it_sent() {
    let server = FakeOpik::new_stopped();
    let mut agent = patient(&server).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for _ in 0..60 {
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, 1), 204);
    }
    let seventh = server.script_times(7, When::write().method("PATCH"), Then::Delay(std::time::Duration::ZERO));
    server.start();
    wait_until("the replay is in the middle", PATIENCE, || seventh.hits() == 7);
    assert!(agent.terminate().success());
    assert_clean(&agent);
    agent.restart_on_same_port();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    let sent: usize = server.requests().iter().map(|request| request.writes.len()).sum();
    assert_eq!(sent, 120, "something that the server had confirmed was sent again");
}

#[test]
fn a_killed_replay_is_taken_up_by_the_next_agent() {
    let server = FakeOpik::new_stopped();
    let mut agent = patient(&server).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let ids: Vec<String> = (0..60).map(|_| uuid7()).collect();
    for id in &ids {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
    }
    let hold = server.script(When::ids([&*ids[30]]).method("PATCH"), Then::Hold);
    server.start();
    wait_until("the replay is in the middle", PATIENCE, || hold.hits() == 1);
    agent.kill9();
    hold.clear();
    agent.restart_on_same_port();
    // New writes queue behind it.
    for _ in 0..5 {
        let id = uuid7();
        app.client.disconnect();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, 1), 204);
    }
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    assert!(agent.terminate().success());
    assert_clean(&agent);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = FakeOpik::start_new();
    let mut agent = patient(&server).arg("--shutdown-timeout").arg("10m").start();
    let _half = HalfSent::new(&agent, &uuid7());
    agent.signal(Signal::TERM);
    wait_until_stopping(&agent);
    assert!(agent.is_running());
    assert_eq!(agent.interrupt().code(), Some(130));
}

#[test]
fn a_body_that_never_ends_keeps_the_agent_for_the_shutdown_timeout_only() {
    let server = FakeOpik::start_new();
    let mut agent = patient(&server).arg("--shutdown-timeout").arg("500ms").start();
    let half = HalfSent::new(&agent, &uuid7());
    assert!(agent.terminate().success());
    assert_eq!(half.finish(), "", "a cut-off request was answered");
    assert_clean(&agent);
    assert_eq!(agent.backlog(), 0);
}
