//! An agent and a replayer whose depot has a bad day: SeaweedFS behind a proxy that breaks things.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use opik_offline::fleet::names::ObjectName;

use crate::durability::Dice;
use crate::fleet_engines::{EngineFleet, assert_all_delivered, fleet_status, write_mixed};
use crate::support::agent::Agent;
use crate::support::depots::{BUCKET, SeaweedFs};
use crate::support::fake_opik::FakeOpik;
use crate::support::faulty::{DepotFault, DepotRequest, FaultyDepot};
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, wait_until};

fn metric(agent: &Agent, name: &str) -> f64 {
    let text = Client::new(&agent.origin()).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

/// Meets about one of `sides` requests with one of these faults, the same in every run with one request at a time.
fn sometimes(seed: u64, sides: u64, faults: Vec<DepotFault>) -> impl Fn(&DepotRequest) -> DepotFault + Send + Sync {
    let dice = std::sync::Mutex::new(Dice::new(seed));
    move |_| {
        let mut dice = dice.lock().unwrap();
        match dice.below(sides) {
            0 => faults[usize::try_from(dice.below(faults.len() as u64)).unwrap()].clone(),
            _ => DepotFault::Pass,
        }
    }
}

/// Whatever the depot answers, writes are acknowledged after the local commit, `status` tells why nothing is shipped, and
/// all of it is shipped once the depot is well.
#[test]
fn no_fault_of_a_depot_costs_an_answer_and_each_is_made_up_for() {
    let storage = SeaweedFs::start();
    let faults = [
        (DepotFault::Cut, ""),
        (DepotFault::Refuse(500, "InternalError"), "InternalError"),
        (DepotFault::Refuse(503, "SlowDown"), "it is busy"),
        (DepotFault::Refuse(403, "AccessDenied"), "AccessDenied"),
        (DepotFault::DoneUnanswered, ""),
    ];
    std::thread::scope(|scope| {
        for (number, (fault, said)) in faults.into_iter().enumerate() {
            let storage = &storage;
            scope.spawn(move || {
                let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
                let proxy = FaultyDepot::start(storage.port());
                let prefix = format!("faults/{number}");
                let fleet = EngineFleet::on_seaweedfs(storage, &prefix).through(&proxy.url(), false);
                let in_force = fault.clone();
                proxy.set(move |request| if request.writes() { in_force.clone() } else { DepotFault::Pass });
                let mut agent = fleet.agent(&server).start();
                write_mixed(&agent, &ledger, 2);
                if fault == DepotFault::DoneUnanswered {
                    // Heads and bundles are found again though no answer arrives.
                    wait_until("the agent meets the fault", PATIENCE, || proxy.hits() > 2);
                } else {
                    wait_until("nobody sees the fault", PATIENCE, || {
                        fleet_status(&agent)["problem"].as_str().is_some_and(|problem| problem.contains(said))
                    });
                    let unshipped = metric(&agent, "opik_offline_fleet_unshipped_messages");
                    assert!(unshipped > 0.0, "{unshipped} of 12 messages are said to be only here");
                    assert_eq!(fleet.names("v1/bundles"), Vec::<String>::new());
                }
                proxy.heal();
                wait_until("it is never shipped", PATIENCE, || fleet.shipped() == 12);
                wait_until("the problem stays", PATIENCE, || fleet_status(&agent)["problem"].is_null());
                agent.kill9();
                server.start();
                let report = fleet.replayed(&server, &[]);
                assert_eq!((&report["delivered"], &report["streams"]["finished"]), (&12.into(), &1.into()), "{report}");
                assert_eq!(fleet.left(), Vec::<String>::new(), "after {fault:?}");
                assert_all_delivered(&server, &ledger);
            });
        }
    });
}

#[test]
fn an_agent_and_its_successors_deliver_through_a_depot_that_fails_at_random() {
    let storage = SeaweedFs::start();
    let faults = vec![
        DepotFault::Cut,
        DepotFault::Refuse(500, "InternalError"),
        DepotFault::Refuse(503, "SlowDown"),
        DepotFault::DoneUnanswered,
        DepotFault::DoneUnanswered,
        DepotFault::Truncate,
    ];
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "random/prod").through(&proxy.url(), true);
    proxy.set(sometimes(7, 4, faults.clone()));
    let agents: Vec<Agent> = (0..3).map(|_| fleet.agent(&server).start()).collect();
    for agent in &agents {
        write_mixed(agent, &ledger, 3);
    }
    wait_until("it is never shipped", PATIENCE, || fleet.shipped() == 54);
    agents.into_iter().for_each(|mut agent| agent.kill9());
    assert!(proxy.hits() > 0, "the depot never failed");
    server.start();
    let tries = AtomicUsize::new(0);
    wait_until("replayers never get through", PATIENCE, || {
        let output = fleet.replay(&server, &["--batch-size", "5"]);
        let rounds = tries.fetch_add(1, Ordering::Relaxed);
        if rounds >= 5 {
            proxy.heal();
        }
        let code = output.code();
        // 1 and 3: it could not go on; 4: something was left, which the next one delivers.
        assert!(matches!(code, Some(0 | 1 | 3 | 4)), "{code:?}: {}{}", output.stdout, output.stderr);
        fleet.left().is_empty()
    });
    assert_all_delivered(&server, &ledger);
}

#[test]
fn a_bit_that_flips_on_its_way_costs_nothing_but_time() {
    let storage = SeaweedFs::start();
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "flip/prod").through(&proxy.url(), true);
    let agents: Vec<Agent> = (0..2).map(|_| fleet.agent(&server).arg("--acknowledge").arg("fleet").start()).collect();
    for agent in &agents {
        write_mixed(agent, &ledger, 2);
    }
    agents.into_iter().for_each(|mut agent| agent.kill9());
    let bundles = fleet.names("v1/bundles");
    let bad = bundles[0].clone();
    let is_bad = format!("/{BUCKET}/flip/prod/{bad}");
    proxy.set(move |request| {
        if request.method == "GET" && request.path.starts_with(&is_bad) { DepotFault::Flip } else { DepotFault::Pass }
    });
    server.start();
    let report = fleet.replayed(&server, &[]);
    let unreadable = &report["unreadable"]["objects"][0];
    assert_eq!(unreadable["object"], bad, "the bundle is not named: {report}");
    assert!(!unreadable["reason"].as_str().unwrap_or_default().is_empty(), "{report}");
    assert_eq!(report["streams"]["finished"], 1, "the other stream waits for a damaged one: {report}");
    assert!(fleet.names("v1/bundles").contains(&bad), "a bundle that was not read is gone");
    // It was the network, not the depot.
    proxy.heal();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    assert_eq!(fleet.left(), Vec::<String>::new());
    server.assert_equals(&ledger);
    server.assert_no_violations();
}

#[test]
fn bundles_that_a_listing_does_not_show_yet_are_waited_for_and_never_deleted() {
    let storage = SeaweedFs::start();
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "lag/prod").through(&proxy.url(), true);
    let mut agent = fleet.agent(&server).env("OPIK_OFFLINE_FLEET_INTERVAL_MAX", "1s").start();
    for written in [6, 12, 18] {
        write_mixed(&agent, &ledger, 1);
        wait_until("it is not shipped", PATIENCE, || fleet.shipped() == written);
    }
    assert!(agent.terminate().success(), "its head says how many bundles there are");
    let bundles = fleet.names("v1/bundles");
    assert!(bundles.len() > 2, "{bundles:?}");
    let hidden = bundles[1].clone();
    proxy.set(move |request| if request.lists() { DepotFault::Omit(hidden.clone()) } else { DepotFault::Pass });
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["streams"]["finished"], 0, "a stream with an undelivered bundle is gone: {report}");
    assert!(report["unreadable"]["objects"][0]["reason"].as_str().unwrap().contains("listing"), "{report}");
    assert!(fleet.names("v1/bundles").contains(&bundles[1]));
    // A listing that catches up while the replayer waits for it.
    let listed = AtomicUsize::new(0);
    let hidden = bundles[1].clone();
    proxy.set(move |request| {
        let is_of_stream = request.lists() && request.is_about("bundles%2F");
        match is_of_stream && listed.fetch_add(1, Ordering::Relaxed) < 3 {
            true => DepotFault::Omit(hidden.clone()),
            false => DepotFault::Pass,
        }
    });
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    assert!(proxy.hits() > 0, "no listing was looked at");
    assert_eq!(fleet.left(), Vec::<String>::new());
    server.assert_equals(&ledger);
    server.assert_no_violations();
}

/// An agent whose depot does not answer at all sends no shipped message once its lease is over, and one whose depot is
/// back gets on.
#[test]
fn an_agent_that_is_cut_off_from_its_depot_sends_nothing_of_a_stream_that_was_taken_over() {
    let storage = SeaweedFs::start();
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "cut/prod").through(&proxy.url(), false);
    let agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    write_mixed(&agent, &ledger, 2);
    proxy.set(|_| DepotFault::Cut);
    // The agent is alive and its server is away until its lease is over.
    std::thread::sleep(std::time::Duration::from_secs(62));
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!((&report["delivered"], &report["streams"]["finished"]), (&12.into(), &1.into()), "{report}");
    wait_until("the agent says that its depot is away", PATIENCE, || fleet_status(&agent)["problem"].is_string());
    proxy.heal();
    wait_until("the agent gets on", PATIENCE, || agent.backlog() == 0);
    let sent: usize = server.requests().iter().map(|request| request.writes.len()).sum();
    assert_eq!(sent, 12, "two senders deliver one stream");
    assert_eq!(fleet.names("v1/heads"), Vec::<String>::new());
    let finished = fleet.names("v1/finished");
    assert!(matches!(ObjectName::parse(&finished[0]), Some(ObjectName::Finished(_))), "{finished:?}");
    assert_all_delivered(&server, &ledger);
}

#[test]
fn messages_whose_marks_a_listing_does_not_show_are_not_sent_again() {
    let storage = SeaweedFs::start();
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "marks/prod").through(&proxy.url(), true);
    let mut agent = fleet.agent(&server).start();
    for written in [6, 12, 18] {
        write_mixed(&agent, &ledger, 1);
        wait_until("it is not shipped", PATIENCE, || fleet.shipped() == written);
    }
    agent.kill9();
    // A bundle that can't be read keeps the stream in the depot, with marks of the others.
    let bad = format!("/{BUCKET}/marks/prod/{}", fleet.names("v1/bundles")[1]);
    proxy.set(move |request| {
        if request.method == "GET" && request.path.starts_with(&bad) { DepotFault::Flip } else { DepotFault::Pass }
    });
    server.start();
    let report = fleet.replayed(&server, &[]);
    let delivered = report["delivered"].as_u64().unwrap();
    assert!((1..18).contains(&delivered) && report["streams"]["finished"] == 0, "{report}");
    assert!(!fleet.names("v1/marks").is_empty(), "nothing is marked");
    // The first listing of marks shows none.
    let listed = AtomicUsize::new(0);
    proxy.set(move |request| {
        let is_first = request.lists() && request.is_about("marks%2F") && listed.fetch_add(1, Ordering::Relaxed) == 0;
        if is_first { DepotFault::Omit("v1/marks/".to_owned()) } else { DepotFault::Pass }
    });
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_eq!(proxy.hits(), 1, "no listing of marks was looked at");
    assert_eq!(
        (&report["delivered"], &report["streams"]["finished"]),
        (&(18 - delivered).into(), &1.into()),
        "{report}"
    );
    let sent: usize = server.requests().iter().map(|request| request.writes.len()).sum();
    assert_eq!(sent, 18, "delivered messages were sent again, over what may be newer");
    assert_eq!(fleet.left(), Vec::<String>::new());
    server.assert_equals(&ledger);
    server.assert_no_violations();
}

#[test]
fn a_bundle_that_arrives_by_halves_is_read_again() {
    let storage = SeaweedFs::start();
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "half/prod").through(&proxy.url(), true);
    let mut agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    write_mixed(&agent, &ledger, 2);
    agent.kill9();
    server.start();
    let read = AtomicUsize::new(0);
    proxy.set(move |request| {
        let is_bundle = request.method == "GET" && request.is_about("/v1/bundles/");
        match is_bundle && read.fetch_add(1, Ordering::Relaxed) < 5 {
            true => DepotFault::Truncate,
            false => DepotFault::Pass,
        }
    });
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_eq!((&report["delivered"], &report["streams"]["finished"]), (&12.into(), &1.into()), "{report}");
    assert_eq!(report["unreadable"]["objects"].as_array().map_or(0, Vec::len), 0, "half a bundle was used: {report}");
    assert_eq!(proxy.hits(), 5, "no half of a bundle arrived");
    assert_eq!(fleet.left(), Vec::<String>::new());
    assert_all_delivered(&server, &ledger);
}

#[test]
fn a_depot_that_hangs_costs_no_answer_and_no_message() {
    let storage = SeaweedFs::start();
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "hang/prod").through(&proxy.url(), true);
    proxy.set(|_| DepotFault::Hang);
    let mut agent = fleet.agent(&server).start();
    write_mixed(&agent, &ledger, 2);
    wait_until("nobody sees that the depot hangs", PATIENCE, || fleet_status(&agent)["problem"].is_string());
    assert_eq!(metric(&agent, "opik_offline_fleet_unshipped_messages"), 12.0);
    let said = agent.cli(&["status"]).stdout;
    assert!(said.contains("only in the local store"), "{said}");
    write_mixed(&agent, &ledger, 1);
    proxy.heal();
    wait_until("it is never shipped", PATIENCE, || fleet.shipped() == 18);
    wait_until("the problem stays", PATIENCE, || fleet_status(&agent)["problem"].is_null());
    agent.kill9();
    // A replayer takes the stream over, and its next requests about it hang.
    let met = AtomicUsize::new(0);
    proxy.set(move |request| {
        let is_of_stream = request.is_about("/v1/bundles/") || request.is_about("/v1/marks/");
        match is_of_stream && met.fetch_add(1, Ordering::Relaxed) < 3 {
            true => DepotFault::Hang,
            false => DepotFault::Pass,
        }
    });
    server.start();
    wait_until("replayers never get through", PATIENCE, || {
        let output = fleet.replay(&server, &[]);
        let code = output.code();
        assert!(matches!(code, Some(0 | 1 | 3 | 4)), "{code:?}: {}{}", output.stdout, output.stderr);
        fleet.left().is_empty()
    });
    assert!(proxy.hits() > 0, "the depot never hung");
    assert_all_delivered(&server, &ledger);
}

/// While one request of the fourth hangs, nothing else of the depot is answered until the clients have their answers.
#[test]
fn a_depot_that_hangs_on_every_fourth_request_delays_no_answer_and_loses_no_pod() {
    let storage = SeaweedFs::start();
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let proxy = FaultyDepot::start(storage.port());
    let fleet = EngineFleet::on_seaweedfs(&storage, "fourth/prod").through(&proxy.url(), false);
    let (met, is_shut, is_over) =
        (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (shut, over) = (is_shut.clone(), is_over.clone());
    proxy.set(move |_| {
        let is_fourth = met.fetch_add(1, Ordering::SeqCst) % 4 == 3;
        shut.fetch_or(is_fourth, Ordering::SeqCst);
        let hangs = is_fourth || shut.load(Ordering::SeqCst) && !over.load(Ordering::SeqCst);
        if hangs { DepotFault::Hang } else { DepotFault::Pass }
    });
    let pods: Vec<Agent> = (0..4).map(|_| fleet.agent(&server).start()).collect();
    let write = || {
        std::thread::scope(|scope| {
            pods.iter().for_each(|pod| drop(scope.spawn(|| write_mixed(pod, &ledger, 2))));
        });
    };
    write();
    wait_until("a request hangs", PATIENCE, || is_shut.load(Ordering::SeqCst));
    write();
    let hung = proxy.hits();
    is_over.store(true, Ordering::SeqCst);
    // A request that hangs is given up after half a minute, and the next may hang as well.
    wait_until("it is never shipped", PATIENCE * 2, || fleet.shipped() == 96);
    assert!(proxy.hits() > hung, "no request hung afterwards");
    for mut pod in pods {
        // Its folder goes with it.
        pod.kill9();
    }
    server.start();
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_eq!((&report["delivered"], &report["streams"]["finished"]), (&96.into(), &4.into()), "{report}");
    assert_eq!(fleet.left(), Vec::<String>::new());
    assert_all_delivered(&server, &ledger);
}
