//! A depot that is replicated and ignores conditional writes: Garage with three nodes, of which some are killed.
//!
//! They run where `OPIK_OFFLINE_GARAGE` names the program, and report elsewhere that they did not.

use opik_offline::depot::{DepotSettings, ObjectService, open, prove};
use rustix::process::Signal;

use crate::fleet_engines::{EngineFleet, assert_all_delivered, fleet_status, write_mixed};
use crate::support::agent::{Agent, Home};
use crate::support::depots::{BUCKET, settings};
use crate::support::fake_opik::FakeOpik;
use crate::support::garage::Garage;
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::process::run;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::create;

const SINGLE: (&str, &str) = ("OPIK_OFFLINE_FLEET_SINGLE_REPLAYER", "true");

/// Pods and replayers reach the cluster through its first node.
fn fleet_on(garage: &Garage, prefix: &str) -> EngineFleet {
    let variables = garage.variables(0);
    let settings: DepotSettings = settings(ObjectService::S3, prefix, variables.clone());
    EngineFleet::new(&format!("s3://{BUCKET}/{prefix}"), variables.clone(), variables, open(&settings).unwrap())
}

fn unshipped(agent: &Agent) -> u64 {
    let status = Client::new(&agent.origin()).get("/-/status.json").json();
    status["fleet"]["unshipped_messages"].as_u64().unwrap_or_else(|| panic!("{}", status["fleet"]))
}

/// Replays as the only replayer.
#[track_caller]
fn replayed(fleet: &EngineFleet, server: &FakeOpik) -> serde_json::Value {
    let output = run(fleet.replayer(&Home::new(), server, &["--format", "json"]).env(SINGLE.0, SINGLE.1));
    assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    output.json()
}

#[test]
fn a_depot_that_ignores_conditions_takes_copies_and_is_replayed_by_one_only() {
    let Some(garage) = Garage::start() else { return };
    let fleet = fleet_on(&garage, "conditions/prod");
    let proofs = prove(fleet.depot.as_ref()).unwrap();
    assert!(!proofs.creates_kept && proofs.replaces_kept == Some(false), "Garage keeps conditions now: {proofs:?}");
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let mut agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    write_mixed(&agent, &ledger, 3);
    agent.kill9();
    server.start();
    let health = run(&mut fleet.command(&Home::new(), &server, &["healthcheck", "--quiet"]));
    assert!(health.stdout.contains("conditional writes are ignored"), "{}{}", health.stdout, health.stderr);
    let refused = fleet.replay(&server, &[]);
    let said = &refused.stderr;
    assert!(refused.code() == Some(2) && said.to_lowercase().contains("fleet_single_replayer"), "{said}");
    assert!(server.requests().iter().all(|request| request.writes.is_empty()), "it was replayed nonetheless");
    let report = replayed(&fleet, &server);
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    assert_all_delivered(&server, &ledger);
    assert_eq!(fleet.left(), Vec::<String>::new());
}

#[test]
fn one_node_of_three_after_the_other_may_die_and_two_cost_no_answer() {
    let Some(garage) = Garage::start() else { return };
    let fleet = fleet_on(&garage, "nodes/prod");
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let mut durable =
        fleet.agent(&server).arg("--acknowledge").arg("fleet").arg("--when-depot-away").arg("refuse").start();
    let mut local = fleet.agent(&server).start();
    write_mixed(&durable, &ledger, 2);
    garage.kill9(1);
    write_mixed(&durable, &ledger, 2);
    garage.revive(1);
    garage.kill9(2);
    write_mixed(&durable, &ledger, 2);
    // Two of three are away: nothing more is confirmed by the depot.
    garage.kill9(1);
    let request = create(&uuid7());
    let refused = Client::new(&durable.url()).expect(&request);
    // The one copy may come back.
    ledger.unanswered(&request.method, &request.path, &request.headers, &request.body);
    assert_eq!(refused.status, 503, "acknowledged with one copy of three: {}", refused.text());
    write_mixed(&local, &ledger, 2);
    wait_until("nobody sees that the depot is away", PATIENCE, || fleet_status(&local)["problem"].is_string());
    assert_eq!(unshipped(&local), 12);
    let said = local.cli(&["status"]).stdout;
    assert!(said.contains("depot") && said.contains("only in the local store"), "{said}");
    garage.revive(1);
    garage.revive(2);
    wait_until("it is never made up for", PATIENCE, || unshipped(&local) == 0);
    durable.kill9();
    local.kill9();
    server.start();
    let report = replayed(&fleet, &server);
    assert_eq!(report["streams"]["finished"], 2, "{report}");
    assert_all_delivered(&server, &ledger);
}

#[test]
fn the_node_that_agents_talk_to_may_die_and_what_they_kept_is_shipped_once_it_is_back() {
    let Some(garage) = Garage::start() else { return };
    let fleet = fleet_on(&garage, "endpoint/prod");
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let mut agent = fleet.agent(&server).start();
    write_mixed(&agent, &ledger, 2);
    wait_until("it is not shipped", PATIENCE, || fleet.shipped() == 12);
    garage.kill9(0);
    write_mixed(&agent, &ledger, 2);
    wait_until("nobody sees that the depot is away", PATIENCE, || fleet_status(&agent)["problem"].is_string());
    wait_until("nobody counts what is only here", PATIENCE, || unshipped(&agent) == 12);
    let said = agent.cli(&["status"]).stdout;
    assert!(said.contains("depot") && said.contains("only in the local store"), "{said}");
    write_mixed(&agent, &ledger, 1);
    garage.revive(0);
    wait_until("it is never made up for", PATIENCE, || unshipped(&agent) == 0);
    wait_until("the problem stays", PATIENCE, || fleet_status(&agent)["problem"].is_null());
    agent.kill9();
    server.start();
    let report = replayed(&fleet, &server);
    assert_eq!((&report["streams"]["finished"], &report["delivered"]), (&1.into(), &30.into()), "{report}");
    assert_all_delivered(&server, &ledger);
    assert_eq!(fleet.left(), Vec::<String>::new());
}

/// Time is all that fences such a depot: an agent that was suspended looks before it writes its head again.
#[test]
fn a_suspended_agent_does_not_write_over_its_successor_where_conditions_are_ignored() {
    let Some(garage) = Garage::start() else { return };
    let fleet = fleet_on(&garage, "suspended/prod");
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    write_mixed(&agent, &ledger, 2);
    agent.signal(Signal::STOP);
    // Longer than its lease and its last renewal hold together.
    std::thread::sleep(std::time::Duration::from_secs(62));
    server.start();
    let report = replayed(&fleet, &server);
    assert_eq!((&report["streams"]["finished"], &report["delivered"]), (&1.into(), &12.into()), "{report}");
    agent.signal(Signal::CONT);
    wait_until("the agent gets on", PATIENCE, || agent.backlog() == 0);
    let sent: usize = server.requests().iter().map(|request| request.writes.len()).sum();
    assert_eq!(sent, 12, "two senders deliver one stream");
    assert_all_delivered(&server, &ledger);
}
