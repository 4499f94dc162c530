//! One lane's trouble, or one message's, is nobody else's: not its hanging, not its resets, not its limit, not its key.
//!
//! Nothing here looks at a clock. That a lane was not delayed is seen by what the server saw: its last message was
//! answered while the first request of the sick lane was still open.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Received, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, delete, score, span, update};

fn agent(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s")
}

fn is_there(server: &FakeOpik, workspace: &str, id: &str) -> bool {
    server.entity(workspace, Kind::Trace, id).is_some_and(|entity| entity.record.is_some())
}

fn rejected(agent: &Agent) -> u64 {
    agent.cli(&["status", "--format", "json"]).json()["rejected"]["messages"].as_u64().expect("a number")
}

fn writes(server: &FakeOpik, workspace: &str) -> Vec<Received> {
    let mut requests = server.requests();
    requests.retain(|request| !request.writes.is_empty() && request.workspace == workspace);
    requests
}

/// How often the agent said that the server is gone.
fn losses(agent: &Agent) -> usize {
    agent.stderr().matches("the Opik server is unavailable").count()
}

#[track_caller]
fn assert_kept(server: &FakeOpik, agent: &Agent, ledger: &ClientLedger) {
    agent.wait_until_delivered();
    server.assert_equals(ledger);
    server.assert_order(ledger);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    server.assert_no_overlaps();
    assert_eq!(rejected(agent), 0, "what was acknowledged was rejected");
}

#[test]
fn forty_lanes_that_hang_keep_no_other_waiting() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    for lane in 0..40 {
        let mut app = Told::new(&agent.url(), &ledger).in_workspace(&format!("hangs-{lane}"));
        for _ in 0..2 {
            let id = uuid7();
            app.acknowledged(create(&id), 201);
            app.acknowledged(update(&id, 1), 204);
        }
    }
    // The last in the store, and so the last that would get its turn.
    let stored: Vec<String> = (0..120).map(|_| uuid7()).collect();
    let mut healthy = Told::new(&agent.url(), &ledger).in_workspace("healthy");
    for id in &stored {
        healthy.acknowledged(create(id), 201);
        healthy.acknowledged(update(id, 1), 204);
    }
    let hanging = When::write().workspaces("hangs-");
    let hang = server.script(hanging.clone(), Then::Hold);
    server.start();
    wait_until("the healthy lane is delivered", PATIENCE, || {
        let records: Vec<_> = stored.iter().filter_map(|id| server.entity("healthy", Kind::Trace, id)).collect();
        let updated = |record: &crate::support::fake_opik::state::Record| record.fields.contains_key("output");
        records.iter().filter(|entity| entity.record.as_ref().is_some_and(updated)).count() == stored.len()
    });
    let first: Vec<Received> =
        server.requests().into_iter().filter(|request| request.workspace.starts_with("hangs-")).take(8).collect();
    let alive = server.open(&hanging.clone());
    assert!(
        alive > 0 && !first.is_empty() && first.iter().all(|request| request.answered_status.is_none()),
        "the healthy lane was delivered only after hanging requests had ended: {alive} open"
    );
    // Its live traffic passes, too.
    let live = uuid7();
    healthy.acknowledged(create(&live), 201);
    assert!(is_there(&server, "healthy", &live), "a live write was stored because of other lanes");
    assert!(server.open(&hanging) > 0);
    assert_eq!(losses(&agent), 1, "lanes that hang made the server look gone");
    hang.clear();
    assert_kept(&server, &agent, &ledger);
}

#[test]
fn lanes_that_are_sick_in_every_way_delay_neither_replay_nor_live_traffic_of_others() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let sick = [
        ("hang", Then::Hang),
        ("reset-unread", Then::ResetUnread),
        ("reset", Then::Reset),
        ("garbage", Then::garbage()),
        ("limited", Then::rate_limited(600)),
        ("expired", Then::Answer(Answer::error(401, "API key expired"))),
        ("unpaid", Then::Answer(Answer::error(402, "plan exceeded"))),
        ("broken", Then::status(500)),
        ("proxy", Then::status(503)),
        ("cloud", Then::status(522)),
    ];
    for (name, _) in &sick {
        for lane in 0..4 {
            let mut app = Told::new(&agent.url(), &ledger).in_workspace(&format!("{name}-{lane}"));
            for _ in 0..3 {
                let id = uuid7();
                app.acknowledged(create(&id), 201);
                app.acknowledged(update(&id, 1), 204);
            }
        }
    }
    let stored: Vec<String> = (0..60).map(|_| uuid7()).collect();
    let mut healthy = Told::new(&agent.url(), &ledger).in_workspace("well");
    for id in &stored {
        healthy.acknowledged(create(id), 201);
    }
    let mut faults = Vec::new();
    for (name, then) in &sick {
        let prefix = format!("{name}-");
        // A reset before the body is read knows no writes, only the head.
        faults.push(server.script(When::path("/v1/private/*").workspaces(&prefix), then.clone()));
    }
    server.start();
    let hanging = When::any().workspaces("hang-");
    wait_until("the healthy lane is delivered", PATIENCE, || stored.iter().all(|id| is_there(&server, "well", id)));
    let first = writes(&server, "hang-0");
    assert!(first.iter().all(|request| request.answered_status.is_none()) && server.open(&hanging) > 0);
    // While every sick lane is tried again and again, live traffic of lanes that were there before and of new ones is
    // forwarded at once.
    let pings = || server.requests_to("GET", "/is-alive/ping").len();
    let mut round = 0;
    let until = pings() + 10;
    while pings() < until {
        let id = uuid7();
        let mut app = Told::new(&agent.url(), &ledger).in_workspace(if round % 2 == 0 { "well" } else { "new" });
        app.acknowledged(create(&id), 201);
        let workspace = if round % 2 == 0 { "well" } else { "new" };
        assert!(is_there(&server, workspace, &id), "live write {round} was stored because of other lanes");
        app.acknowledged(update(&id, round), 204);
        round += 1;
        wait_until("a sick lane is tried or the server pinged", PATIENCE, || server.requests().len() > round as usize);
    }
    assert_eq!(losses(&agent), 1, "sick lanes made the server look gone");
    for lane in 0..4 {
        // Once for each bucket: of batches and of single writes.
        let sent = writes(&server, &format!("limited-{lane}")).len();
        assert!(sent <= 2, "a limited lane was asked before its time");
    }
    for fault in faults {
        fault.clear();
    }
    // The limited ones wait for ten minutes more, and the test does not.
    wait_until("all but the limited lanes are delivered", PATIENCE, || agent.backlog() == 4 * 6);
    assert_eq!(rejected(&agent), 0, "a lane's trouble was counted against its messages");
    server.assert_order(&ledger);
    server.assert_no_overlaps();
    server.assert_no_update_before_create();
}

#[test]
fn a_message_that_is_poison_to_the_server_stops_nothing_but_itself() {
    for (what, then) in [
        ("it hangs", Then::Hang),
        ("it is reset", Then::Reset),
        ("a 503", Then::status(503)),
        ("a 500", Then::status(500)),
        ("garbage", Then::garbage()),
        ("a 504", Then::status(504)),
        ("a 520", Then::status(520)),
    ] {
        eprintln!("poison: {what}");
        let server = FakeOpik::new_stopped();
        let agent = agent(&server).arg("--forward-timeout").arg("500ms").start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let stored: Vec<String> = (0..30).map(|_| uuid7()).collect();
        for id in &stored {
            app.acknowledged(create(id), 201);
            app.acknowledged(update(id, 1), 204);
        }
        let poison = stored[11].clone();
        let fault = server.script(When::ids([&*poison]), then);
        server.start();
        let good: Vec<&String> = stored.iter().filter(|id| **id != poison).collect();
        wait_until("all others of its lane are delivered", PATIENCE, || agent.backlog() == 2);
        assert!(good.iter().all(|id| is_there(&server, "default", id)), "{what}");
        assert!(!is_there(&server, "default", &poison));
        assert_eq!(losses(&agent), 1, "{what}: one message made the server look gone");
        // A new lane is forwarded at once, again and again while the poison is tried.
        let tries = fault.hits();
        let mut other = Told::new(&agent.url(), &ledger).in_workspace("other");
        wait_until("the poison was tried twice more", PATIENCE, || {
            let id = uuid7();
            other.acknowledged(create(&id), 201);
            assert!(is_there(&server, "other", &id), "{what}: a live write of another lane was stored");
            fault.hits() >= tries + 2
        });
        // Other entities of its lane get through, in any way.
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&good[0].clone(), 2), 204);
        wait_until("a later write of the lane is delivered", PATIENCE, || is_there(&server, "default", &id));
        assert_eq!(losses(&agent), 1, "{what}: one message made the server look gone");
        assert_eq!(rejected(&agent), 0, "{what}");
        fault.clear();
        assert_kept(&server, &agent, &ledger);
    }
}

#[test]
fn live_poison_costs_its_own_entity_only() {
    for (what, then) in [("it hangs", Then::Hang), ("it is reset", Then::Reset), ("a 503", Then::status(503))] {
        eprintln!("live poison: {what}");
        let server = FakeOpik::start_new();
        let agent = agent(&server).arg("--forward-timeout").arg("500ms").start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let mut other = Told::new(&agent.url(), &ledger).in_workspace("other");
        let poison = uuid7();
        let fault = server.script(When::ids([&*poison]), then);
        for n in 0..5 {
            app.acknowledged(if n == 0 { create(&poison) } else { update(&poison, n) }, if n == 0 { 201 } else { 204 });
            let id = uuid7();
            other.acknowledged(create(&id), 201);
            assert!(is_there(&server, "other", &id), "{what}: a live write of another lane was stored");
        }
        assert_eq!(losses(&agent), 0, "{what}: one message made the server look gone");
        let mine = uuid7();
        app.acknowledged(create(&mine), 201);
        wait_until("another entity of the lane is delivered", PATIENCE, || is_there(&server, "default", &mine));
        fault.clear();
        assert_kept(&server, &agent, &ledger);
    }
}

#[test]
fn while_a_backlog_waits_only_what_must_not_overtake_it_waits_behind_it() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let (stored, scored) = (uuid7(), uuid7());
    app.acknowledged(create(&stored), 201);
    app.acknowledged(score(&scored, 0.1), 204);
    // The replay's requests stay open, so the lane is neither held nor in trouble: it drains.
    let hold = server.script(When::ids([&*stored, &*scored]), Then::Hold);
    server.start();
    wait_until("the replay sends", PATIENCE, || hold.hits() > 0);
    let (live, child) = (uuid7(), uuid7());
    app.acknowledged(create(&live), 201);
    app.acknowledged(update(&live, 1), 204);
    app.acknowledged(score(&live, 0.5), 204);
    assert!(is_there(&server, "default", &live), "a live write waited though nothing stored is about it");
    assert_eq!(agent.backlog(), 2, "live writes were stored behind what has nothing to do with them");
    app.acknowledged(update(&stored, 1), 204);
    app.acknowledged(update(&stored, 2), 204);
    app.acknowledged(score(&scored, 0.2), 204);
    app.acknowledged(span(&child, &stored), 201);
    let gone = uuid7();
    app.acknowledged(create(&gone), 201);
    app.acknowledged(delete(&stored), 204);
    let passed: BTreeSet<String> = server
        .requests()
        .iter()
        .filter(|request| request.processed)
        .flat_map(|request| request.writes.iter().map(|write| write.key.id.clone()))
        .collect();
    assert!(!passed.contains(&stored) && !passed.contains(&scored), "a live write overtook what is stored");
    hold.clear();
    assert_kept(&server, &agent, &ledger);
}

#[test]
fn a_rate_limit_is_respected_no_matter_which_request_met_it() {
    let retry_after = |value: &str| Then::Answer(Answer::error(429, "Too Many Requests").with("Retry-After", value));
    for (what, then, at_least) in [
        ("RateLimit-Reset", Then::rate_limited(2), 1990),
        ("Retry-After", retry_after("2"), 1990),
        // Whole seconds: what was three seconds away may be two when it is read.
        ("Retry-After, a date", Then::Hang, 1900),
        ("nothing said", Then::status(429), 900),
    ] {
        eprintln!("429 by {what}");
        let then = match then {
            Then::Hang => {
                let date = std::time::SystemTime::now() + Duration::from_secs(5);
                retry_after(&httpdate::fmt_http_date(date))
            }
            then => then,
        };
        let server = FakeOpik::start_new();
        let agent = agent(&server).start();
        let ledger = ClientLedger::new();
        let mut limited = Told::new(&agent.url(), &ledger).in_workspace("limited");
        let mut free = Told::new(&agent.url(), &ledger).in_workspace("free");
        // Forwarded: the client is never shown the limit.
        let ids: Vec<String> = (0..5).map(|_| uuid7()).collect();
        let _limit = server.script_times(1, When::write().workspace("limited"), then);
        for id in &ids {
            limited.acknowledged(create(id), 201);
            limited.acknowledged(update(id, 1), 204);
            let other = uuid7();
            free.acknowledged(create(&other), 201);
            assert!(is_there(&server, "free", &other), "{what}: another lane waits for this limit");
        }
        assert_kept(&server, &agent, &ledger);
        let sent = writes(&server, "limited");
        // Creates went as a batch meanwhile, which counts in another bucket.
        let is_single = |request: &&Received| !request.route().ends_with("/batch");
        let again = sent[1..].iter().find(is_single).expect("an update is sent alone");
        let gap = again.at.duration_since(sent[0].at);
        assert!(gap >= Duration::from_millis(at_least), "{what}: the bucket was quiet for {gap:?} only");
        assert!(sent[1..].iter().all(|request| request.answered_status.is_some_and(|status| status < 300)));
    }
}

#[test]
fn a_limit_counts_against_no_message_however_often_it_is_met() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).arg("--max-attempts").arg("2").start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for _ in 0..5 {
        app.acknowledged(create(&uuid7()), 201);
    }
    let limit = server.script_times(4, When::write(), Then::rate_limited(1));
    server.start();
    wait_until("the limit was met four times", PATIENCE, || limit.hits() == 4);
    assert_kept(&server, &agent, &ledger);
}

#[test]
fn a_limit_of_a_year_is_cut_and_shown() {
    let server = FakeOpik::start_new();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let limit = server.script(When::write(), Then::rate_limited(31_536_000));
    Told::new(&agent.url(), &ledger).acknowledged(create(&uuid7()), 201);
    let mut held = Vec::new();
    wait_until("the limit of a forwarded write is shown as a hold of its lane", PATIENCE, || {
        held = agent.cli(&["status", "--format", "json"]).json()["held"].as_array().expect("a list").clone();
        !held.is_empty()
    });
    assert!(held[0]["reason"].as_str().is_some_and(|reason| reason.contains("429")), "{held:?}");
    let until = held[0]["until"].as_str().expect("a time");
    let hour = std::time::SystemTime::now() + Duration::from_secs(3700);
    let hour = hour.duration_since(std::time::UNIX_EPOCH).expect("past 1970").as_nanos() as i128;
    let until = crate::support::fake_opik::clock::parse(until).unwrap_or_else(|| panic!("{until} is not a time"));
    assert!(until <= hour, "the lane sleeps for longer than an hour by one header: {held:?}");
    // Once alone and once as a batch, which counts in another bucket.
    assert!(limit.hits() <= 2);
}

#[test]
fn an_expired_key_that_is_renewed_lets_everything_through_in_order() {
    for status in [401, 402, 403] {
        let server = FakeOpik::new_stopped();
        let agent = agent(&server).start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        app.client = crate::support::http::Client::new(&agent.url()).with_header("Authorization", "key");
        let stored: Vec<String> = (0..10).map(|_| uuid7()).collect();
        for id in &stored {
            app.acknowledged(create(id), 201);
        }
        let fault = server.script(When::any().authorization("key").and(|r| !r.writes.is_empty()), Then::status(status));
        server.start();
        let mut free = Told::new(&agent.url(), &ledger).in_workspace("free");
        wait_until("the key was tried three times", PATIENCE, || {
            let id = uuid7();
            free.acknowledged(create(&id), 201);
            fault.hits() >= 3
        });
        // While the lane is held its live writes wait behind what is stored, whichever entities they touch.
        for id in &stored {
            app.acknowledged(update(id, 1), 204);
        }
        let later = uuid7();
        app.acknowledged(create(&later), 201);
        fault.clear();
        assert_kept(&server, &agent, &ledger);
    }
}

#[test]
fn a_message_that_failed_before_travels_with_no_other() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let store = |app: &mut Told<'_>| {
        let ids: Vec<String> = (0..6).map(|_| uuid7()).collect();
        for id in &ids {
            app.acknowledged(create(id), 201);
        }
        ids
    };
    let first = store(&mut app);
    let poison = &*first[2];
    let fault = server.script(When::ids([poison]), Then::status(500));
    server.start();
    wait_until("a failure counts against the message", PATIENCE, || {
        let left = agent.cli(&["inspect", "--format", "json"]).json();
        left["messages"].as_array().is_some_and(|left| left.len() == 1 && left[0]["attempts"].as_u64() > Some(0))
    });
    server.stop();
    wait_until("the agent notices the outage", PATIENCE, || losses(&agent) > 0);
    let later = store(&mut app);
    let (before, tries) = (server.requests().len(), fault.hits());
    server.start();
    wait_until("the others are delivered", PATIENCE, || later.iter().all(|id| is_there(&server, "default", id)));
    wait_until("the message is tried again", PATIENCE, || fault.hits() > tries);
    for request in &server.requests()[before..] {
        let body = String::from_utf8_lossy(&request.body);
        let shares = body.contains(poison) && later.iter().any(|id| body.contains(&**id));
        assert!(!shares, "an earlier failure takes others with it: {body}");
    }
    fault.clear();
    assert_kept(&server, &agent, &ledger);
}
