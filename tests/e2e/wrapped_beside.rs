//! Wrapped commands on a machine with an agent that stays: one store, one replayer at a time, one order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Request;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::wrapped::Running;
use crate::writes::{Told, create, update};

const CLIENTS: usize = 4;
const ENTITIES: usize = 3;

fn beside(agent: &Agent, server: &FakeOpik, name: &str) -> Running {
    Running::start(agent.home(), &agent.db(), &server.url(), &[], name)
}

/// Kills a wrapped agent as the out-of-memory killer would, and the command that it leaves behind.
fn kill(running: &mut Running) {
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), None);
    kill_process(Pid::from_raw(running.pid).unwrap(), Signal::KILL).expect("the command continues without its agent");
}

/// Sends a write by this agent, else by the next one, until one acknowledges it: a conflicting write is refused for a
/// moment, and one of the agents may have ended.
fn persist(urls: &[String], from: usize, ledger: &ClientLedger, request: &Request) {
    let mut turn = from;
    wait_until("an agent acknowledges a write", PATIENCE, || {
        let mut app = Told::new(&urls[turn % urls.len()], ledger);
        turn += 1;
        match app.try_send(request) {
            Ok(answer) if (200..300).contains(&answer.status) => true,
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{}", answer.text());
                false
            }
            Err(_) => false,
        }
    });
}

#[test]
fn agents_on_one_store_lose_nothing_and_keep_one_order_through_an_outage_and_a_kill() {
    let server = FakeOpik::start_new();
    let mut agent = Agent::start(&server);
    let mut running = ["first", "second", "third"].map(|name| beside(&agent, &server, name));
    let mut urls: Vec<String> = running.iter().map(|running| running.url.clone()).collect();
    urls.push(agent.url());
    let ledger = ClientLedger::new();
    let is_over = AtomicBool::new(false);
    let delivered = || server.requests().iter().filter(|request| request.processed).count();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (urls, ledger, is_over) = (&urls, &ledger, &is_over);
                scope.spawn(move || {
                    let ids: Vec<String> = (0..ENTITIES).map(|_| uuid7()).collect();
                    for (number, id) in ids.iter().enumerate() {
                        persist(urls, client + number, ledger, &create(id));
                    }
                    let mut round = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        round += 1;
                        for (number, id) in ids.iter().enumerate() {
                            let n = round as u64;
                            persist(urls, client + number + round, ledger, &update(id, n));
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    round
                })
            })
            .collect();
        wait_until("writes reach the server", PATIENCE, || delivered() > 60);
        server.stop();
        wait_until("writes are kept", PATIENCE, || agent.backlog() > 40);
        kill(&mut running[1]);
        let waiting = agent.backlog();
        wait_until("writes are kept after the kill", PATIENCE, || agent.backlog() > waiting + 20);
        server.start();
        let before = delivered();
        wait_until("the replay has begun", PATIENCE, || delivered() > before + 5);
        agent.kill9();
        agent.restart_on_same_port();
        wait_until("writes reach the server again", PATIENCE, || delivered() > before + 60);
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().expect("no client failed") > 3);
        }
    });
    for number in [0, 2] {
        assert_eq!(running[number].end(), Some(4), "{}", running[number].said());
        let said = running[number].said();
        assert!(said.contains("nothing waits to be delivered"), "{said}");
    }
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_violations();
    assert!(agent.terminate().success());
}

#[test]
fn a_wrapped_agent_delivers_though_the_agent_that_replayed_was_killed() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::start(&server);
    let mut running = beside(&agent, &server, "heir");
    let ledger = ClientLedger::new();
    for _ in 0..5 {
        let id = uuid7();
        Told::new(&agent.url(), &ledger).acknowledged(create(&id), 201);
        Told::new(&running.url, &ledger).acknowledged(update(&id, 1), 204);
    }
    let hang = server.script(When::write(), Then::Hang);
    server.start();
    wait_until("one of them replays", PATIENCE, || hang.hits() > 0);
    agent.kill9();
    hang.clear();
    assert_eq!(running.end(), Some(4), "{}", running.said());
    assert!(running.said().contains("nothing waits to be delivered"), "{}", running.said());
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

#[test]
fn each_of_two_agents_for_two_servers_delivers_its_own() {
    for trouble in [None, Some(Then::rate_limited(2)), Some(Then::status(401))] {
        let (server, other) = (FakeOpik::new_stopped(), FakeOpik::new_stopped());
        let mut agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s").start();
        let mut running = beside(&agent, &other, "other");
        let (ledger, of_other) = (ClientLedger::new(), ClientLedger::new());
        for _ in 0..5 {
            // One entity on both servers: they have nothing to do with each other.
            let id = uuid7();
            Told::new(&agent.url(), &ledger).acknowledged(create(&id), 201);
            Told::new(&running.url, &of_other).acknowledged(create(&id), 201);
            Told::new(&running.url, &of_other).acknowledged(update(&id, 2), 204);
            Told::new(&agent.url(), &ledger).acknowledged(update(&id, 1), 204);
        }
        if let Some(trouble) = trouble {
            let met = server.script(When::write(), trouble);
            server.start();
            wait_until("the agent has met the trouble", PATIENCE, || met.hits() > 0);
        }
        other.start();
        assert_eq!(running.end(), Some(4), "{}", running.said());
        assert!(running.said().contains("nothing waits to be delivered"), "{}", running.said());
        other.assert_equals(&of_other);
        other.assert_order(&of_other);
        assert_eq!(agent.backlog(), 10, "a message for the server that is in trouble waits");

        server.clear_script();
        server.start();
        agent.wait_until_delivered();
        server.assert_equals(&ledger);
        server.assert_order(&ledger);
        assert_eq!(server.count("default", Kind::Trace), 5);
        assert!(agent.terminate().success());
    }
}

#[test]
fn a_wrapped_command_is_told_that_another_agent_is_replaying_their_store() {
    let (server, other) = (FakeOpik::new_stopped(), FakeOpik::new_stopped());
    let mut agent = Agent::start(&server);
    let mut running = Running::start(agent.home(), &agent.db(), &other.url(), &["--flush-timeout", "500ms"], "other");
    let (ledger, of_other) = (ClientLedger::new(), ClientLedger::new());
    Told::new(&agent.url(), &ledger).acknowledged(create(&uuid7()), 201);
    Told::new(&running.url, &of_other).acknowledged(create(&uuid7()), 201);
    let hang = server.script(When::write(), Then::Hang);
    server.start();
    wait_until("the agent replays", PATIENCE, || hang.hits() > 0);
    other.start();
    assert_eq!(running.end(), Some(4), "{}", running.said());
    let told = format!("is over, and opik-offline agent (pid {}) is replaying this store", agent.pid());
    assert!(running.said().contains(&told), "{}", running.said());
    agent.kill9();
    let db = agent.db();
    let replay = ["replay", "--quiet", "--db", db.to_str().unwrap(), "--upstream", &other.url()];
    wait_until("the next replay delivers it", PATIENCE, || agent.home().cli(&replay).code() == Some(0));
    other.assert_equals(&of_other);
}

#[test]
fn a_wrapped_command_without_the_key_of_the_store_is_told_and_overtakes_nothing() {
    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_ENCRYPTION_KEY", KEY).start();
    let mut running = beside(&agent, &server, "keyless");
    let ledger = ClientLedger::new();
    let id = uuid7();
    Told::new(&agent.url(), &ledger).acknowledged(create(&id), 201);
    let refused = Told::new(&running.url, &ledger).send(update(&id, 2)).unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    server.start();
    agent.wait_until_delivered();
    assert_eq!(running.end(), Some(4), "{}", running.said());
    let said = running.said();
    assert!(said.contains("the agent refused 1 write") || said.contains("nothing could be stored"), "{said}");
    server.assert_equals(&ledger);
}
