//! `replay --fleet` with filters: what they leave out stays, and nothing overtakes it; and rejected messages, once more.

use std::collections::BTreeMap;

use opik_offline::fleet::head::HeadState;

use crate::fleet_streams::{Outage, TestFleet};
use crate::support::agent::{Agent, Home, program};
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::process::run;
use crate::support::uuid7;
use crate::writes::{Told, create, update};

/// Returns a depot with what an agent had accepted in two workspaces, and the traces of each.
pub(crate) fn two_workspaces(server: &FakeOpik, ledger: &ClientLedger) -> (TestFleet, Vec<String>, Vec<String>) {
    let fleet = TestFleet::new();
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let mut agent = agent.arg("--acknowledge").arg("fleet").start();
    let traces = [(); 2].map(|()| (0..4).map(|_| uuid7()).collect::<Vec<String>>());
    for (workspace, traces) in ["research", "scratch"].iter().zip(&traces) {
        let mut app = Told::new(&agent.url(), ledger).in_workspace(workspace);
        for id in traces {
            app.acknowledged(create(id), 201);
            app.acknowledged(update(id, 1), 204);
        }
    }
    agent.kill9();
    fleet.close_all();
    let [research, scratch] = traces;
    (fleet, research, scratch)
}

#[test]
fn messages_outside_a_filter_stay_and_are_not_overtaken() {
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let (fleet, research, scratch) = two_workspaces(&server, &ledger);
    server.start();
    // Updates whose creates are not selected: they would be overtaken by them later.
    let updates = fleet.replayed(&server, &["--type", "UpdateTrace"]);
    assert_eq!((&updates["delivered"], &updates["behind"]), (&0.into(), &8.into()), "{updates}");
    assert_eq!(updates["unselected"], 8, "{updates}");
    let part = fleet.replay(&server, &["--workspace", "research", "--format", "json"]);
    let report = part.json();
    assert_eq!((part.code(), &report["delivered"]), (Some(0), &8.into()), "{report}{}", part.stderr);
    assert!(research.iter().all(|id| server.sequence_for(id).len() == 2), "selected messages are left");
    assert!(scratch.iter().all(|id| server.sequence_for(id).is_empty()), "messages were sent that nobody selected");
    assert!(!fleet.left().is_empty(), "what was left out is gone");
    let rest = fleet.replayed(&server, &[]);
    assert_eq!(rest["delivered"], 8, "what was delivered is sent again, or the rest is lost: {rest}");
    assert_eq!(fleet.left(), Vec::<String>::new());
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

#[test]
fn one_stream_is_replayed_and_the_others_are_not_taken() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 2, 2);
    let fleet = TestFleet::new();
    let streams = outage.ship(&fleet, HeadState::Closed);
    server.start();
    let report = fleet.replayed(&server, &["--stream", &streams[1].to_string()]);
    assert_eq!((&report["streams"]["taken"], &report["streams"]["finished"]), (&1.into(), &1.into()), "{report}");
    assert_eq!(fleet.head(streams[0]).map(|head| head.epoch), Some(1), "another stream was taken");
    assert!(outage.groups[0].iter().all(|id| server.sequence_for(id).is_empty()));
    fleet.replayed(&server, &[]);
    server.assert_equals(&outage.ledger);
    assert_eq!(fleet.left(), Vec::<String>::new());
}

#[test]
fn rejected_messages_are_sent_again_and_a_new_answer_replaces_the_old_one() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    let refused = server.script(When::write().method("PUT"), Then::status(400));
    server.start();
    let first = fleet.replayed(&server, &[]);
    assert_eq!((&first["rejected"], fleet.names("v1/rejected").len()), (&2.into(), 2), "{first}");
    refused.clear();
    let refused = server.script(When::write().method("PUT"), Then::status(422));
    let again = fleet.replay(&server, &["--rejected", "--format", "json"]);
    assert_eq!((again.code(), &again.json()["rejected"]), (Some(4), &2.into()), "{}{}", again.stdout, again.stderr);
    let names = fleet.names("v1/rejected");
    assert!(names.len() == 2 && names.iter().all(|name| name.contains(".422.")), "the old answers stay: {names:?}");
    refused.clear();
    let last = fleet.replay(&server, &["--rejected", "--format", "json"]);
    assert_eq!((last.code(), &last.json()["delivered"]), (Some(0), &2.into()), "{}{}", last.stdout, last.stderr);
    assert_eq!(fleet.names("v1/rejected"), Vec::<String>::new(), "a delivered message is still listed as rejected");
    assert_eq!(fleet.left(), Vec::<String>::new());
    server.assert_equals(&outage.ledger);
}

/// Their stream still exists, because what depends on them waits in it.
#[test]
fn a_rejected_create_is_sent_again_in_its_place_and_frees_what_waits_for_it() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    let id = outage.groups[0][0].clone();
    let refused = server.refuse_creates_of(&id, 400);
    server.start();
    let first = fleet.replayed(&server, &[]);
    assert_eq!(first["rejected"], 1, "{first}");
    assert!(fleet.head(stream).is_some(), "what waits for the create is gone");
    refused.clear();
    let again = fleet.replayed(&server, &["--rejected"]);
    assert_eq!((&again["delivered"], fleet.names("v1/rejected").len()), (&1.into(), 0), "{again}");
    let rest = fleet.replayed(&server, &[]);
    assert_eq!(rest["streams"]["finished"], 1, "{rest}");
    assert_eq!(fleet.left(), Vec::<String>::new());
    server.assert_equals(&outage.ledger);
    server.assert_no_update_before_create();
}

/// Returns every object of a depot, with its bytes.
fn objects(fleet: &TestFleet) -> BTreeMap<String, Vec<u8>> {
    let names = fleet.names("v1").into_iter();
    names.map(|name| (name.clone(), std::fs::read(fleet.root().join(name)).unwrap())).collect()
}

#[test]
fn a_dry_run_of_a_replay_counts_what_is_delivered_then_and_writes_nothing() {
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let (fleet, _, _) = two_workspaces(&server, &ledger);
    let steps: [(&[&str], u64); 4] =
        [(&["--type", "UpdateTrace"], 0), (&["--workspace", "research"], 8), (&[], 8), (&[], 0)];
    for (number, (filter, delivered)) in steps.into_iter().enumerate() {
        let before = objects(&fleet);
        let dry = fleet.replay(&server, &[filter, &["--dry-run", "--format", "json"]].concat());
        assert_eq!(dry.code(), Some(0), "it needs no server: {}", dry.stderr);
        assert_eq!(objects(&fleet), before, "a dry run wrote something");
        if number == 0 {
            server.start();
        }
        let (dry, real) = (dry.json(), fleet.replayed(&server, filter));
        assert_eq!((&dry["dry_run"], &real["dry_run"]), (&true.into(), &false.into()));
        assert_eq!((&dry["remaining"], &real["delivered"]), (&delivered.into(), &delivered.into()), "{dry} {real}");
        let sum =
            |of: &str| dry["groups"].as_array().unwrap().iter().map(|group| group[of].as_u64().unwrap()).sum::<u64>();
        assert_eq!(sum("messages"), delivered, "{dry}");
        assert_eq!(dry["oldest_accepted_at"].is_string(), delivered > 0, "{dry}");
        for same in ["behind", "unselected", "elsewhere", "held", "expired", "unreadable"] {
            assert_eq!(dry[same], real[same], "{same} of {filter:?}: {dry} {real}");
        }
        assert_eq!(dry["streams"]["taken"], real["streams"]["taken"]);
    }
    server.assert_equals(&ledger);
    assert_eq!(fleet.left(), Vec::<String>::new());
}

#[test]
fn a_dry_run_counts_rejected_messages_only_if_they_are_sent_again() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    let refused = server.script(When::write().method("PUT"), Then::status(400));
    server.start();
    assert_eq!(fleet.replayed(&server, &[])["rejected"], 2);
    refused.clear();
    let before = objects(&fleet);
    for (args, messages) in [(&[][..], 0), (&["--rejected"], 2)] {
        let dry = fleet.replay(&server, &[args, &["--dry-run", "--format", "json"]].concat());
        assert_eq!((dry.code(), &dry.json()["remaining"]), (Some(0), &messages.into()), "{}{}", dry.stdout, dry.stderr);
    }
    assert_eq!(objects(&fleet), before, "a dry run moved rejected messages");
    // Without the key it is not known.
    let home = Home::new();
    let mut command = home.command(program());
    command.args(["replay", "--dry-run", "--rejected", "--fleet", &fleet.url(), "--upstream", &server.url()]);
    let blind = run(&mut command);
    assert!(blind.code() == Some(1) && blind.stderr.contains("can't be read"), "{}{}", blind.stdout, blind.stderr);
    assert_eq!(fleet.replayed(&server, &["--rejected"])["delivered"], 2);
}

#[test]
fn a_limit_ends_a_replay_and_the_rest_is_for_the_next() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 2, 2);
    let fleet = TestFleet::new();
    let streams = outage.ship(&fleet, HeadState::Closed);
    server.start();
    for (args, code) in [(&["--limit", "5"][..], 0), (&["--limit", "5", "--fail-if-backlog"], 4)] {
        let output = fleet.replay(&server, &[args, &["--format", "json"]].concat());
        let report = output.json();
        assert_eq!((output.code(), &report["delivered"]), (Some(code), &5.into()), "{report}{}", output.stderr);
        assert_eq!(report["reasons"][0], "the limit was reached", "{report}");
    }
    let closed = |stream: &_| fleet.head(*stream).is_some_and(|head| head.state == HeadState::Closed);
    assert!(streams.iter().all(closed), "the next replay has to wait until its streams are silent");
    let rest = fleet.replayed(&server, &["--limit", "1000"]);
    assert_eq!(rest["delivered"], outage.messages() - 10, "{rest}");
    assert_eq!(fleet.left(), Vec::<String>::new());
    server.assert_equals(&outage.ledger);
    server.assert_order(&outage.ledger);
    for refused in [&["--limit", "5", "--follow"][..], &["--dry-run", "--follow"], &["--dry-run", "--hold", "1m"]] {
        assert_eq!(fleet.replay(&server, refused).code(), Some(2), "{refused:?}");
    }
}
