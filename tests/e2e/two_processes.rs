//! Two agents on one store, and `replay` beside an agent: what one of them knows of a lane's trouble holds for both.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::support::agent::{Agent, AgentBuilder, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Received, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

fn agent(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s").arg("--forward-timeout").arg("500ms")
}

fn beside(server: &FakeOpik, first: &Agent) -> Agent {
    let db = first.db().display().to_string();
    agent(server).home(Home::new()).env("OPIK_OFFLINE_DB", &db).without_db().start()
}

fn pings(server: &FakeOpik) -> usize {
    server.requests_to("GET", "/is-alive/ping").len()
}

fn is_there(server: &FakeOpik, workspace: &str, id: &str) -> bool {
    server.entity(workspace, Kind::Trace, id).is_some_and(|entity| entity.record.is_some())
}

/// Runs `replay` on the agent's store, no more patient with a request than the agent is.
fn replay(server: &FakeOpik, agent: &Agent) -> Output {
    let mut command = agent.home().command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(["replay", "--quiet", "--timeout", "2s", "--upstream", &server.url(), "--db"]).arg(agent.db());
    run(command.env("OPIK_OFFLINE_FORWARD_TIMEOUT", "500ms"))
}

#[test]
fn a_second_agent_on_a_store_says_so_and_the_first_is_named() {
    let server = FakeOpik::start_new();
    let first = agent(&server).start();
    let said = format!("another agent uses this store as well: pid {} on 127.0.0.1:{}", first.pid(), first.port());
    let second = beside(&server, &first);
    assert!(second.stderr().contains(&said), "{}", second.stderr());
    assert!(!first.stderr().contains("another agent uses this store"), "{}", first.stderr());
}

#[test]
fn a_limit_that_one_agent_met_is_respected_by_the_other() {
    const LANES: usize = 12;
    let server = FakeOpik::start_new();
    let first = agent(&server).start();
    let second = beside(&server, &first);
    let ledger = ClientLedger::new();
    let limit = server.script(When::write().workspaces("limited-"), Then::rate_limited(600));
    for lane in 0..LANES {
        // Now by this door, now by that one; each lane only ever by one.
        let agent = if lane % 2 == 0 { &first } else { &second };
        let mut app = Told::new(&agent.url(), &ledger).in_workspace(&format!("limited-{lane}"));
        app.acknowledged(create(&uuid7()), 201);
        app.acknowledged(create(&uuid7()), 201);
    }
    let until = pings(&server) + 20;
    wait_until("both agents have pinged ten times", PATIENCE, || pings(&server) >= until);
    // The second create went as a batch, which counts in another bucket.
    assert!(limit.hits() <= 2 * LANES, "limited buckets were asked again before the server's ten minutes were over");
    for lane in 0..LANES {
        let asked = |request: &&Received| request.workspace == format!("limited-{lane}") && !request.writes.is_empty();
        let requests = server.requests();
        let paths: Vec<&str> = requests.iter().filter(asked).map(|request| request.route()).collect();
        let distinct: std::collections::HashSet<&str> = paths.iter().copied().collect();
        assert_eq!(distinct.len(), paths.len(), "lane {lane} asked a limited bucket twice: {paths:?}");
    }
    assert_eq!(first.backlog(), 2 * LANES as u64);
}

#[test]
fn a_replay_beside_the_agent_respects_rate_limits_and_passes_poison_messages() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let mut limited = Told::new(&agent.url(), &ledger).in_workspace("limited");
    let mut app = Told::new(&agent.url(), &ledger);
    limited.acknowledged(create(&uuid7()), 201);
    let stored: Vec<String> = (0..40).map(|_| uuid7()).collect();
    for id in &stored {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
    }
    let limit = server.script(When::write().workspace("limited"), Then::rate_limited(600));
    let poison = server.script(When::ids([&*stored[7]]), Then::Hang);
    server.start();
    wait_until("the limit is met", PATIENCE, || limit.hits() > 0);
    wait_until("all but the poison are delivered, with replays beside the agent", PATIENCE, || {
        let beside = replay(&server, &agent);
        assert!(beside.code().is_some_and(|code| [0, 1, 4].contains(&code)), "{:?} {}", beside.code(), beside.stderr);
        agent.backlog() == 3
    });
    // Once alone and once as a batch, which counts in another bucket.
    assert!(limit.hits() <= 2, "a replay asked the limited lane before its time");
    poison.clear();
    wait_until("the poison is mended", PATIENCE, || agent.backlog() == 1);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_update_before_create();
    assert!(stored.iter().all(|id| is_there(&server, "default", id)));
}

#[test]
fn poison_that_hangs_holds_up_neither_agent() {
    let server = FakeOpik::new_stopped();
    let first = agent(&server).start();
    let second = beside(&server, &first);
    let ledger = ClientLedger::new();
    let stored: Vec<String> = (0..30).map(|_| uuid7()).collect();
    for (n, id) in stored.iter().enumerate() {
        let (one, other) = if n % 2 == 0 { (&first, &second) } else { (&second, &first) };
        Told::new(&one.url(), &ledger).acknowledged(create(id), 201);
        Told::new(&other.url(), &ledger).acknowledged(update(id, 1), 204);
    }
    let poison = server.script(When::ids([&*stored[3]]), Then::Hang);
    server.start();
    wait_until("all others are delivered", PATIENCE, || first.backlog() == 2);
    let tries = poison.hits();
    wait_until("the poison is tried again", PATIENCE, || {
        for agent in [&first, &second] {
            let id = uuid7();
            Told::new(&agent.url(), &ledger).in_workspace("other").acknowledged(create(&id), 201);
            assert!(is_there(&server, "other", &id), "a live write of another lane was stored");
        }
        poison.hits() >= tries + 2
    });
    poison.clear();
    first.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_update_before_create();
}

#[test]
fn a_replay_with_a_timeout_ends_in_time_even_if_a_request_hangs() {
    let server = FakeOpik::new_stopped();
    let mut storing = agent(&server).start();
    let ledger = ClientLedger::new();
    Told::new(&storing.url(), &ledger).acknowledged(create(&uuid7()), 201);
    assert!(storing.terminate().success());
    let hang = server.script(When::write(), Then::Hang);
    server.start();
    let mut command = storing.home().command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(["replay", "--quiet", "--timeout", "1s", "--upstream", &server.url(), "--db"]).arg(storing.db());
    let mut replaying = command.env("OPIK_OFFLINE_FORWARD_TIMEOUT", "600s").spawn().expect("it can be started");
    let mut ended = None;
    // When it doesn't end, the server that goes away with the test ends it.
    wait_until("`replay --timeout 1s` has ended, though its request hangs", PATIENCE, || {
        ended = replaying.try_wait().expect("a child can be waited for");
        ended.is_some()
    });
    assert_eq!((ended.and_then(|status| status.code()), hang.hits()), (Some(4), 1));
    assert_eq!(storing.backlog(), 1, "an unconfirmed message is gone");
}

/// The process that replays this store now, by the store's own record.
fn replayer(agent: &Agent) -> Option<u32> {
    let store = rusqlite::Connection::open(agent.db()).expect("the store can be opened");
    let read = || store.query_row("SELECT pid FROM lease WHERE until_ms IS NOT NULL", [], |row| row.get(0));
    read().unwrap_or(None)
}

/// Returns whether others can write: a process that is stopped inside a commit keeps everybody out, which no store of
/// one file can help.
fn is_writable(agent: &Agent) -> bool {
    let store = rusqlite::Connection::open(agent.db()).expect("the store can be opened");
    store.busy_timeout(std::time::Duration::from_secs(3)).expect("a timeout can be set");
    store.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok()
}

#[test]
fn a_replayer_that_is_stopped_past_its_lease_and_woken_sends_nothing_beside_its_successor() {
    let server = FakeOpik::new_stopped();
    let first = agent(&server).start();
    let ledger = ClientLedger::new();
    let stored: Vec<String> = (0..200).map(|_| uuid7()).collect();
    let mut app = Told::new(&first.url(), &ledger);
    for id in &stored {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
    }
    // Its replay is caught with a request open, and more of the lane behind it.
    let hang = server.script(When::write(), Then::Hang);
    server.start();
    wait_until("the first agent replays", PATIENCE, || hang.hits() > 0 && replayer(&first) == Some(first.pid()));
    first.signal(Signal::STOP);
    while !is_writable(&first) {
        first.signal(Signal::CONT);
        wait_until("the first agent replays again", PATIENCE, || replayer(&first) == Some(first.pid()));
        first.signal(Signal::STOP);
    }
    // Its requests are no longer in progress at the server; it does not know that yet.
    hang.clear();

    // Its successors under live load: another agent and three replays, over and over.
    let second = beside(&server, &first);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Set however this ends: the others end with it.
        let _end = OnDrop(&over);
        for client in 0..2 {
            let (ledger, over, second) = (&ledger, &over, &second);
            scope.spawn(move || {
                let mut app = Told::new(&second.url(), ledger).in_workspace(&format!("live-{client}"));
                while !over.load(Ordering::Relaxed) {
                    let id = uuid7();
                    app.acknowledged(create(&id), 201);
                    app.acknowledged(update(&id, 1), 204);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            });
        }
        for _ in 0..3 {
            let (server, over, first) = (&server, &over, &first);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let beside = replay(server, first);
                    assert!(
                        beside.code().is_some_and(|code| [0, 1, 4].contains(&code)),
                        "{:?} {}",
                        beside.code(),
                        beside.stderr
                    );
                }
            });
        }
        // The lease of a process that is only stopped expires.
        let patience = 2 * PATIENCE;
        wait_until("another process took over", patience, || replayer(&first).is_some_and(|pid| pid != first.pid()));
        first.signal(Signal::CONT);
        wait_until("the woken agent sees that it lost its lease", PATIENCE, || {
            first.stderr().contains("the replay lease was lost to another process")
        });
        wait_until("all are delivered once the woken one works beside the others", PATIENCE, || {
            server.count("default", Kind::Trace) == stored.len() && second.backlog() == 0
        });
        let mut app = Told::new(&first.url(), &ledger).in_workspace("woken");
        app.acknowledged(create(&uuid7()), 201);
    });
    first.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_update_before_create();
    assert!(stored.iter().all(|id| is_there(&server, "default", id)), "a stored trace never arrived");
}

/// The same with the command: it is stopped with a request open, another process takes over, and it continues as if no
/// time had passed.
#[test]
fn a_replay_command_that_is_stopped_past_its_lease_and_woken_sends_nothing_beside_its_successor() {
    let server = FakeOpik::new_stopped();
    // A small batch at a time, so that there is work left when the command wakes.
    let mut storing = agent(&server).arg("--batch-size").arg("5").start();
    let ledger = ClientLedger::new();
    let stored: Vec<String> = (0..200).map(|_| uuid7()).collect();
    let mut app = Told::new(&storing.url(), &ledger);
    for id in &stored {
        app.acknowledged(create(id), 201);
        app.acknowledged(update(id, 1), 204);
    }
    assert!(storing.terminate().success());

    let hang = server.script(When::write(), Then::Hang);
    server.start();
    let mut command = storing.home().command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(["replay", "--quiet", "--batch-size", "5", "--upstream", &server.url(), "--db"]).arg(storing.db());
    command.env("OPIK_OFFLINE_FORWARD_TIMEOUT", "500ms").env("OPIK_REPLAY_BATCH_REPLAY_DELAY", "0");
    let mut stopped = Stopped(command.spawn().expect("it can be started"));
    wait_until("the command replays", PATIENCE, || hang.hits() > 0 && replayer(&storing) == Some(stopped.0.id()));
    stopped.signal(Signal::STOP);
    while !is_writable(&storing) {
        stopped.signal(Signal::CONT);
        wait_until("the command replays again", PATIENCE, || replayer(&storing) == Some(stopped.0.id()));
        stopped.signal(Signal::STOP);
    }
    // Its requests are no longer in progress at the server; it does not know that yet.
    hang.clear();
    storing.restart_on_same_port();
    wait_until("the agent took over", 2 * PATIENCE, || replayer(&storing) == Some(storing.pid()));
    stopped.signal(Signal::CONT);
    // Writes about what is stored, by the door that is open.
    let mut app = Told::new(&storing.url(), &ledger);
    for id in &stored {
        app.acknowledged(update(id, 2), 204);
    }
    let mut ended = None;
    wait_until("the command has ended", PATIENCE, || {
        ended = stopped.0.try_wait().expect("a child can be waited for");
        ended.is_some()
    });
    let code = ended.and_then(|status| status.code());
    assert!(code.is_some_and(|code| [0, 1, 4].contains(&code)), "{code:?}");
    storing.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_update_before_create();
    assert!(stored.iter().all(|id| is_there(&server, "default", id)), "a stored trace never arrived");
}

/// A command of ours that may be stopped; it does not outlive its test.
struct Stopped(std::process::Child);

impl Stopped {
    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).expect("it is our own child");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
