//! A server that flaps, or answers pings and nothing else, or fails at everything for a while: clients always have
//! their acknowledgement, nobody is stormed, people are not told the same thing a hundred times, and afterwards all is
//! there.

use std::time::Duration;

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, assert_error, create, create_batch, update};

fn agent(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s")
}

fn pings(server: &FakeOpik) -> usize {
    server.requests_to("GET", "/is-alive/ping").len()
}

/// How often the agent told people that the server is gone or there again.
fn changes(agent: &Agent) -> usize {
    let text = agent.stderr();
    text.matches("the Opik server is unavailable").count() + text.matches("the Opik server is available").count()
}

#[track_caller]
fn assert_kept(server: &FakeOpik, agent: &Agent, ledger: &ClientLedger) {
    agent.wait_until_delivered();
    server.assert_equals(ledger);
    server.assert_order(ledger);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    let rejected = &agent.cli(&["status", "--format", "json"]).json()["rejected"]["messages"];
    assert_eq!(*rejected, 0, "what was acknowledged was rejected");
}

#[test]
fn every_status_of_a_forwarded_write_is_kept_or_given_back_as_the_contract_says() {
    let server = FakeOpik::start_new();
    let kept = [408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 525, 526, 527, 530, 598, 599];
    let returned =
        [301, 302, 307, 308, 400, 401, 402, 403, 404, 405, 406, 409, 410, 411, 412, 413, 414, 415, 421, 422, 426]
            .into_iter()
            .chain([428, 431, 451, 499, 501, 505, 506, 508, 510, 511]);
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    for status in returned {
        let mut app = Told::new(&agent.url(), &ledger);
        let fault = server.script(When::write(), Then::Answer(Answer::error(status, "no")));
        let answer = app.send(create(&uuid7())).expect("an answer");
        if status >= 400 {
            assert_error(&answer, status);
        }
        assert_eq!(answer.status, status);
        assert_eq!((agent.backlog(), fault.hits()), (0, 1), "{status} was kept, though the client was told");
        fault.clear();
    }
    for status in kept {
        // A lane of its own: one status delays no other.
        let mut app = Told::new(&agent.url(), &ledger).in_workspace(&format!("team-{status}"));
        let fault = server.script(When::write(), Then::Answer(Answer::error(status, "later")));
        app.acknowledged(create(&uuid7()), 201);
        app.acknowledged(create_batch(&[uuid7(), uuid7()]), 204);
        assert!(agent.backlog() > 0, "{status}: what was acknowledged is nowhere");
        fault.clear();
    }
    assert_kept(&server, &agent, &ledger);
}

#[test]
fn a_server_that_answers_pings_and_fails_every_write_is_neither_stormed_nor_called_gone_again_and_again() {
    for (what, then) in [
        ("garbage", Then::garbage()),
        ("503", Then::status(503)),
        ("resets", Then::Reset),
        ("resets before reading", Then::ResetUnread),
        ("truncated answers", Then::Truncate),
    ] {
        eprintln!("every write: {what}");
        let server = FakeOpik::start_new();
        let agent = agent(&server).start();
        let ledger = ClientLedger::new();
        let mut apps: Vec<Told<'_>> =
            (0..5).map(|n| Told::new(&agent.url(), &ledger).in_workspace(&format!("team-{n}"))).collect();
        let fault = server.script(When::path("/v1/private/*"), then);
        let until = pings(&server) + 12;
        let mut sent = 0;
        while pings(&server) < until {
            let app = &mut apps[sent % 5];
            let id = uuid7();
            app.acknowledged(create(&id), 201);
            app.acknowledged(update(&id, 1), 204);
            sent += 1;
            std::thread::yield_now();
        }
        assert!(sent > 30, "the clients were held up: {sent} writes during 12 pings");
        let told = changes(&agent);
        assert!(told <= 3, "{what}: {told} changes were told during 12 pings of a server that was always there");
        let hits = fault.hits();
        let bound = 5 * 3 * 12 + 10;
        assert!(hits <= bound, "{what}: {hits} requests were spent on failing, for {sent} writes of five lanes");
        eprintln!("{what}: {sent} creates, {hits} requests, {told} changes");
        fault.clear();
        assert_kept(&server, &agent, &ledger);
    }
}

#[test]
fn a_server_that_comes_and_goes_is_told_of_a_few_times_only() {
    let server = FakeOpik::start_new();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let until = pings(&server) + 3;
    wait_until("the server is known", PATIENCE, || pings(&server) >= until);
    const FLAPS: usize = 16;
    for n in 0..FLAPS {
        // The loop paces itself by what the agent does: a write while the server is away, a ping when it is there.
        server.stop();
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, n as u64), 204);
        server.start();
        let before = pings(&server);
        wait_until("the server is pinged again", PATIENCE, || pings(&server) > before);
    }
    let told = changes(&agent);
    assert!(told <= FLAPS, "{told} changes were told for {FLAPS} flaps");
    assert_kept(&server, &agent, &ledger);
}

#[test]
fn writes_that_flap_while_pings_are_fine_are_all_acknowledged_and_arrive() {
    let server = FakeOpik::start_new();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let flap = server.script(When::path("/v1/private/*").flapping(Duration::from_millis(300)), Then::Reset);
    let until = pings(&server) + 10;
    let mut apps: Vec<Told<'_>> =
        (0..4).map(|n| Told::new(&agent.url(), &ledger).in_workspace(&format!("team-{n}"))).collect();
    while pings(&server) < until {
        for app in &mut apps {
            let id = uuid7();
            app.acknowledged(create(&id), 201);
            app.acknowledged(update(&id, 1), 204);
        }
    }
    assert!(flap.hits() > 0);
    assert!(changes(&agent) <= 3, "{} changes of a server whose pings were always answered", changes(&agent));
    flap.clear();
    assert_kept(&server, &agent, &ledger);
}

#[test]
fn a_thousand_lanes_that_wake_at_once_make_no_storm() {
    const LANES: usize = 1_000;
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    for lane in 0..LANES {
        Told::new(&agent.url(), &ledger).in_workspace(&format!("lane-{lane}")).acknowledged(create(&uuid7()), 201);
    }
    // The server is back and too weak for writes at first.
    let weak = server.script(When::write(), Then::status(503));
    server.start();
    let start = pings(&server);
    wait_until("the server was pinged ten times", PATIENCE, || pings(&server) >= start + 10);
    let failing = weak.hits();
    eprintln!("{failing} requests failed during ten pings");
    // It fails at every request: one request per lane is enough to find out.
    assert!(failing <= 2 * LANES, "{failing} requests were spent on a server that fails, for {LANES} lanes");
    weak.clear();
    let slow = server.script(When::write(), Then::Delay(Duration::from_millis(5)));
    wait_until("every lane is delivered", 2 * PATIENCE, || {
        let state = server.state();
        state.values().filter(|entities| !entities.is_empty()).count() == LANES
    });
    slow.clear();
    let most = server.open_at_once(&When::any());
    assert!(most <= 64, "{most} requests at once");
    let all = server.requests().iter().filter(|request| !request.writes.is_empty()).count();
    eprintln!("{all} requests, {most} at once");
    assert_kept(&server, &agent, &ledger);
}

#[test]
fn after_an_outage_of_500s_nobody_waits_for_minutes() {
    for then in [Then::status(500), Then::status(408), Then::status(502)] {
        let server = FakeOpik::new_stopped();
        let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("500ms").start();
        let ledger = ClientLedger::new();
        let mut apps: Vec<Told<'_>> =
            (0..3).map(|n| Told::new(&agent.url(), &ledger).in_workspace(&format!("team-{n}"))).collect();
        for app in &mut apps {
            for _ in 0..25 {
                let id = uuid7();
                app.acknowledged(create(&id), 201);
                app.acknowledged(update(&id, 1), 204);
            }
        }
        let fault = server.script(When::write(), then);
        server.start();
        let lanes = |workspace: &str| {
            let requests = server.requests();
            requests.iter().filter(|request| !request.writes.is_empty() && request.workspace == workspace).count()
        };
        wait_until("each lane was tried eight times", PATIENCE, || (0..3).all(|n| lanes(&format!("team-{n}")) >= 8));
        // Live traffic in the outage, too.
        let live = uuid7();
        apps[0].acknowledged(create(&live), 201);
        let spent = fault.hits();
        fault.clear();
        // The guard of a minute is what this test is about: no message may have been put off for longer than that.
        assert_kept(&server, &agent, &ledger);
        assert_eq!(server.count("team-0", Kind::Trace), 26);
        eprintln!("{spent} requests were spent in the outage");
    }
}
