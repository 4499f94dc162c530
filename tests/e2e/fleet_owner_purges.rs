//! Purges of streams whose owner is alive: on the real engines of a depot, and while their messages are being sent.

use std::collections::BTreeSet;
use std::process::Child;
use std::time::Duration;

use opik_offline::depot::{Created, Depot, DepotError, Name, open};
use opik_offline::fleet::names::StreamId;
use opik_offline::fleet::stream_purge::StreamPurge;
use serde_json::Value;

use crate::fleet_engines::{EngineFleet, assert_all_delivered, write_mixed};
use crate::fleet_people::purge_beside;
use crate::fleet_streams::{TAKEOVER_AFTER, TestFleet};
use crate::postgres_servers::Servers;
use crate::support::agent::{Agent, Home};
use crate::support::depots::{Azurite, Person, SeaweedFs};
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::ledger::ClientLedger;
use crate::support::process::run;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

/// Writes about a few traces in one workspace.
fn write_in(workspace: &str, agent: &Agent, ledger: &ClientLedger, traces: usize) {
    let mut app = Told::new(&agent.url(), ledger).in_workspace(workspace);
    let ids: Vec<String> = (0..traces).map(|_| uuid7()).collect();
    ids.iter().for_each(|id| drop(app.acknowledged(create(id), 201)));
    for round in 0..2 {
        ids.iter().for_each(|id| drop(app.acknowledged(update(id, round), 204)));
    }
}

/// Starts an agent and writes in two workspaces, of which a person purges `scratch`; returns what has to be delivered.
fn agent_with_two_workspaces(fleet: &EngineFleet, server: &FakeOpik) -> (Agent, ClientLedger) {
    let (kept, selected) = (ClientLedger::new(), ClientLedger::new());
    let agent = fleet.agent(server).arg("--acknowledge").arg("fleet").start();
    for (workspace, ledger) in [("research", &kept), ("scratch", &selected)] {
        write_in(workspace, &agent, ledger, 4);
    }
    (agent, kept)
}

/// Purges the workspace `scratch`, of which an owner that is alive has 12 messages.
#[track_caller]
fn purge_scratch(fleet: &EngineFleet, server: &FakeOpik, takeover_after: &str) {
    let home = Home::new();
    let mut purge = fleet.command(&home, server, &["purge", "--workspace", "scratch", "--yes", "--format", "json"]);
    purge.arg("--identity").arg(fleet.identity()).env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", takeover_after);
    let output = run(&mut purge);
    assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    let report = output.json();
    assert_eq!((&report["messages"], report["owned"].as_array().map(Vec::len)), (&12.into(), Some(0)), "{report}");
    assert_eq!(fleet.names("v1/purges"), Vec::<String>::new(), "what was ordered is not withdrawn");
}

/// What a living agent was told to delete, its successor does not deliver either.
fn assert_an_agent_deletes_what_a_person_purges(fleet: &EngineFleet) {
    let server = FakeOpik::new_stopped();
    let (mut agent, kept) = agent_with_two_workspaces(fleet, &server);
    purge_scratch(fleet, &server, "90s");
    assert_eq!(fleet.names("v1/orders").len(), 1, "nobody can tell who deleted them");
    assert_eq!(agent.backlog(), 12);
    agent.kill9();
    server.start();
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_eq!((&report["streams"]["finished"], &report["delivered"]), (&1.into(), &12.into()), "{report}");
    assert_all_delivered(&server, &kept);
    assert_eq!(fleet.left(), Vec::<String>::new());
}

/// Stops a replayer at the end of a test, even one that fails.
struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn assert_a_replayer_releases_what_a_person_purges(fleet: &EngineFleet) {
    let server = FakeOpik::new_stopped();
    let (mut agent, kept) = agent_with_two_workspaces(fleet, &server);
    agent.kill9();
    let set_the_dial = |args: &[&str]| {
        let (home, args) = (Home::new(), [&["replay"], args].concat());
        let said = run(&mut fleet.command(&home, &server, &args));
        assert_eq!(said.code(), Some(0), "{}{}", said.stdout, said.stderr);
    };
    set_the_dial(&["--hold", "30m"]);
    server.start();
    let home = Home::new();
    let _replayer = Following(fleet.replayer(&home, &server, &["--follow"]).spawn().unwrap());
    let head = Name::new(&fleet.names("v1/heads")[0]).unwrap();
    wait_until("the replayer takes the stream", PATIENCE, || {
        let (bytes, _) = fleet.depot.get(&head).unwrap().expect("nobody deletes it in a hold");
        opik_offline::fleet::head::Head::decode(&bytes).unwrap().epoch == 2
    });
    purge_scratch(fleet, &server, TAKEOVER_AFTER);
    set_the_dial(&["--resume"]);
    wait_until("the rest is delivered", PATIENCE, || fleet.left().is_empty());
    assert_all_delivered(&server, &kept);
}

#[test]
fn owners_on_s3_delete_what_a_person_purges_with_pods_that_may_not_write_orders() {
    let storage = SeaweedFs::start();
    std::thread::scope(|scope| {
        let (agents, replayers) = ("agents/prod", "replayers/prod");
        scope.spawn(|| assert_an_agent_deletes_what_a_person_purges(&EngineFleet::on_seaweedfs(&storage, agents)));
        scope
            .spawn(|| assert_a_replayer_releases_what_a_person_purges(&EngineFleet::on_seaweedfs(&storage, replayers)));
    });
}

#[test]
fn owners_on_azure_delete_what_a_person_purges() {
    let storage = Azurite::start();
    std::thread::scope(|scope| {
        scope.spawn(|| assert_an_agent_deletes_what_a_person_purges(&EngineFleet::on_azurite(&storage, "agents")));
        scope
            .spawn(|| assert_a_replayer_releases_what_a_person_purges(&EngineFleet::on_azurite(&storage, "replayers")));
    });
}

#[test]
fn owners_on_postgresql_delete_what_a_person_purges_with_a_role_that_may_not_delete() {
    let Some(servers) = Servers::start_pair() else { return };
    let fleet = EngineFleet::on_postgresql(&servers);
    assert_an_agent_deletes_what_a_person_purges(&fleet);
    servers.sql("TRUNCATE depot_object");
    assert_a_replayer_releases_what_a_person_purges(&fleet);
}

/// The policy in docs/depots.md: a stranger with the credential of a pod deletes nothing of others and holds nobody.
#[test]
fn a_leaked_credential_of_a_pod_orders_no_purge_and_no_hold_where_its_policy_denies_that() {
    let storage = SeaweedFs::start();
    let fleet = EngineFleet::on_seaweedfs(&storage, "leaked/prod");
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    write_mixed(&agent, &ledger, 2);
    let stranger = open(&storage.settings(Person::Confined, "leaked/prod")).unwrap();
    let head = fleet.names("v1/heads").remove(0);
    let stream = StreamId::parse(head.rsplit('/').next().unwrap()).unwrap();
    let forged = StreamPurge::of_all(uuid::Uuid::now_v7(), "nobody".to_owned());
    let left = forged.leave(&*stranger, stream, Duration::ZERO);
    assert!(matches!(left, Err(DepotError::NotAuthorised { .. })), "a pod may delete what others have: {left:?}");
    for name in ["v1/orders/any", "v1/dial", "v1/fleet.json"] {
        let (name, made) = (Name::new(name).unwrap(), |depot: &dyn Depot, name: &Name| depot.create(name, b"forged"));
        let forged = made(&*stranger, &name);
        assert!(matches!(forged, Err(DepotError::NotAuthorised { .. })), "a pod may write {name}: {forged:?}");
    }
    let deleted = stranger.delete(&[Name::new(&head).unwrap()]);
    assert!(matches!(deleted, Err(DepotError::NotAuthorised { .. })), "a pod may delete a stream: {deleted:?}");
    // An agent reads what it may not write.
    assert_eq!(forged.leave(&*fleet.depot, stream, Duration::ZERO), Ok(true));
    assert_eq!(StreamPurge::read(&*stranger, stream), Ok(Some(forged)));
    StreamPurge::withdraw(&*fleet.depot, stream).unwrap();
    let usual = Name::new("v1/marks/any").unwrap();
    assert_eq!(stranger.create(&usual, b"any"), Ok(Created::New), "an agent can't ship with this policy");
    fleet.depot.delete(&[usual]).unwrap();
    server.start();
    agent.wait_until_delivered();
    assert_all_delivered(&server, &ledger);
}

/// Two streams of agents that are gone, each with two workspaces, and a replayer whose server is slow.
struct SlowDelivery {
    fleet: TestFleet,
    server: FakeOpik,
    /// The streams, the one that is purged first.
    streams: Vec<String>,
    kept: ClientLedger,
    selected: ClientLedger,
}

/// Of each workspace of each stream.
const MESSAGES: u64 = 18;

impl SlowDelivery {
    /// With the writes of the first stream as selected, or those of the workspace `scratch`.
    fn new(is_stream: bool) -> Self {
        let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
        let (kept, selected) = (ClientLedger::new(), ClientLedger::new());
        let mut streams = Vec::new();
        for number in 0..2 {
            let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
            let mut agent = agent.arg("--acknowledge").arg("fleet").start();
            for workspace in ["research", "scratch"] {
                let is_selected = if is_stream { number == 0 } else { workspace == "scratch" };
                write_in(workspace, &agent, if is_selected { &selected } else { &kept }, 6);
            }
            agent.kill9();
            let heads = fleet.names("v1/heads").into_iter().map(|name| name.rsplit('/').next().unwrap().to_owned());
            streams.extend(heads.filter(|stream| !streams.contains(stream)).collect::<Vec<_>>());
        }
        fleet.close_all();
        server.start();
        Self { fleet, server, streams, kept, selected }
    }

    fn selected_ids(&self) -> BTreeSet<String> {
        self.selected.entities().into_iter().map(|(_, key)| key.id).collect()
    }

    /// Returns how many writes of the selected messages the server has received.
    fn sent_of_selected(&self) -> u64 {
        let ids = self.selected_ids();
        let writes = self.server.requests().into_iter().flat_map(|request| request.writes);
        writes.filter(|write| ids.contains(&write.key.id)).count() as u64
    }

    /// Purges the selected messages; returns the report, and whether some were in flight when the owners learned of it.
    fn purged(&self, selection: &[&str]) -> (Value, bool) {
        let env = [("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", TAKEOVER_AFTER)];
        std::thread::scope(|scope| {
            let purging = scope.spawn(|| purge_beside(&self.fleet, &env, &[&["--yes"], selection].concat()).json());
            let mut was_in_flight = false;
            while !purging.is_finished() {
                let is_ordered = !self.fleet.names("v1/purges").is_empty();
                was_in_flight |= is_ordered && self.server.open(&When::ids(self.selected_ids())) > 0;
            }
            (purging.join().unwrap(), was_in_flight)
        })
    }

    /// Checks that everything that is not selected arrived once and in its order.
    fn assert_rest_delivered(&self) {
        let Self { server, kept, .. } = self;
        server.assert_equals_besides(kept, &self.selected_ids());
        server.assert_order(kept);
        server.assert_order(&self.selected);
        server.assert_no_update_before_create();
        server.assert_no_violations();
        let sent = server.requests().iter().map(|request| request.writes.len() as u64).sum::<u64>();
        assert_eq!(sent - self.sent_of_selected(), 2 * MESSAGES, "messages were sent twice");
    }
}

/// Each message is delivered once, or deleted: none of them is sent once its deletion was reported.
#[test]
fn a_purge_of_messages_that_are_being_sent_deletes_only_what_is_never_sent() {
    for is_stream in [true, false] {
        let slow = SlowDelivery::new(is_stream);
        let delay = slow.server.script(When::write(), Then::Delay(Duration::from_millis(500)));
        let home = Home::new();
        let _replayer = Following(slow.fleet.spawn(&home, &slow.server, &["--follow"]));
        wait_until("it is sent", PATIENCE, || slow.server.open(&When::ids(slow.selected_ids())) > 0);
        let selection = if is_stream { ["--stream", &slow.streams[0]] } else { ["--workspace", "scratch"] };
        let (report, was_in_flight) = slow.purged(&selection);
        let sent = slow.sent_of_selected();
        assert!(was_in_flight, "nothing was on its way when its owner was asked");
        delay.clear();
        wait_until("the rest is delivered", PATIENCE, || slow.fleet.left().is_empty());
        let deleted = report["messages"].as_u64().unwrap();
        assert_eq!(report["owned"].as_array().map(Vec::len), Some(0), "{report}");
        assert_eq!(slow.sent_of_selected(), sent, "a message was sent after its deletion was reported");
        assert_eq!((deleted + sent, deleted > 0), (2 * MESSAGES, true), "twice, or neither sent nor deleted: {report}");
        slow.assert_rest_delivered();
    }
}

/// The owner can't call a request back: a person learns that nothing was deleted, and everything is delivered.
#[test]
fn a_purge_whose_owner_waits_for_its_server_deletes_nothing_and_costs_nothing() {
    let slow = SlowDelivery::new(true);
    let held = slow.server.script(When::write(), Then::Hold);
    let home = Home::new();
    let _replayer = Following(slow.fleet.spawn(&home, &slow.server, &["--follow"]));
    wait_until("it is sent", PATIENCE, || slow.server.open(&When::ids(slow.selected_ids())) > 0);
    let (report, _) = slow.purged(&["--stream", &slow.streams[0]]);
    assert_eq!((&report["messages"], &report["owned"][0]["stream"]), (&0.into(), &slow.streams[0].as_str().into()));
    assert_eq!(slow.fleet.names("v1/purges"), Vec::<String>::new(), "what was ordered is not withdrawn");
    held.clear();
    wait_until("all is delivered", PATIENCE, || slow.fleet.left().is_empty());
    assert_eq!(slow.sent_of_selected(), 2 * MESSAGES, "messages were deleted or sent twice");
    slow.server
        .assert_equals_besides(&slow.selected, &slow.kept.entities().into_iter().map(|(_, key)| key.id).collect());
    slow.assert_rest_delivered();
}
