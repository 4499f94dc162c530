//! Several batches of one lane are in flight at once: the same promises hold as for one after the other.

use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Received, Scripted, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

/// Traces in a backlog: more than the first two batches take.
const TRACES: usize = 400;
/// The number of creates between two updates of the one trace that all batches write.
const BETWEEN_UPDATES: usize = 20;
/// An answer that is waited for longer than a batch is worked on.
const SLOW: Duration = Duration::from_millis(700);

/// Creates that share a request.
fn batch() -> When {
    When::path("/v1/private/traces/batch").method("POST")
}

/// Stores a backlog of single creates, between which one trace is updated again and again. Returns that trace's id.
fn fill(agent: &Agent, ledger: &ClientLedger) -> String {
    let mut app = Told::new(&agent.url(), ledger);
    let hot = uuid7();
    app.acknowledged(create(&hot), 201);
    for at in 1..TRACES {
        app.acknowledged(create(&uuid7()), 201);
        if at % BETWEEN_UPDATES == 0 {
            app.acknowledged(update(&hot, (at / BETWEEN_UPDATES) as u64), 204);
        }
    }
    hot
}

/// Lets the first batch be delivered, and returns once two more are in flight, which meet `then`.
fn two_in_flight(server: &FakeOpik, then: Then) -> Scripted<'_> {
    let second = server.script(batch(), then);
    let _first = server.script_times(1, batch(), Then::Delay(SLOW));
    server.start();
    wait_until("two batches are in flight", PATIENCE, || server.open(&batch()) == 2);
    second
}

/// Delivers a backlog, and returns whether several batches of it were in flight at once.
fn deliver_a_backlog() -> bool {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let hot = fill(&agent, &ledger);
    let _slow = server.always(batch(), Then::Delay(SLOW));
    server.start();
    agent.wait_until_delivered();
    server.assert_no_overlaps();
    server.assert_no_violations();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    assert_eq!(server.sequence_for(&hot).len(), 1 + (TRACES - 1) / BETWEEN_UPDATES, "a write was repeated");
    server.open_at_once(&batch()) > 1
}

#[test]
fn batches_in_flight_at_once_never_write_one_entity() {
    // On a busy machine slow answers look like backpressure, and then there is one batch after the other.
    assert!((0..5).any(|_| deliver_a_backlog()), "one batch after the other");
}

#[test]
fn backpressure_beside_another_batch_leaves_one_request_at_a_time() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    fill(&agent, &ledger);
    let hang = two_in_flight(&server, Then::Hang);
    let fails = server.script_times(6, When::write(), Then::status(503));
    // Both get no answer, and what follows fails for a while.
    hang.clear();
    agent.wait_until_delivered();
    let failed = When::write().and(|request: &Received| request.answered_status == Some(503));
    assert_eq!((fails.hits(), server.open_at_once(&failed)), (6, 1), "a failing server got several requests at once");
    assert_eq!(server.count("default", Kind::Trace), TRACES);
    server.assert_no_overlaps();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

#[test]
fn a_crash_with_several_batches_in_flight_repeats_these_only() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let hot = fill(&agent, &ledger);
    let _hang = two_in_flight(&server, Then::ProcessThenHang);
    agent.kill9();
    let sent = server.requests_to("POST", "/v1/private/traces/batch");
    let (confirmed, unconfirmed): (Vec<_>, Vec<_>) = sent.iter().partition(|sent| sent.answered_status.is_some());
    server.clear_script();
    agent.restart_on_same_port();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    let times = |sent: &Received| -> Vec<usize> {
        sent.writes.iter().map(|write| server.sequence_for(&write.key.id).len()).collect()
    };
    let once = confirmed.iter().copied().flat_map(times).filter(|times| *times == 1).count();
    let all: usize = confirmed.iter().map(|sent| sent.writes.len()).sum();
    assert!(
        once + 1 >= all,
        "{once} of {all} confirmed creates were sent once: they were settled before more was claimed"
    );
    assert!(unconfirmed.iter().copied().flat_map(times).all(|times| times == 2), "unconfirmed ones are repeated");
    let newest: Vec<u64> =
        server.sequence_for(&hot).iter().filter_map(|request| request.json.as_ref()?["output"]["n"].as_u64()).collect();
    assert!(newest.is_sorted(), "an older write was applied over a newer one: {newest:?}");
}
