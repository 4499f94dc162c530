//! An agent that replays the fleet, too: it delivers the streams of agents that are gone beside its own messages.

use std::time::Duration;

use opik_offline::fleet::head::HeadState;
use opik_offline::fleet::names::StreamId;
use serde_json::Value;

use crate::fleet_streams::{Outage, TAKEOVER_AFTER, TestFleet};
use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

/// Returns an agent that ships to this depot.
fn agent(fleet: &TestFleet, server: &FakeOpik) -> AgentBuilder {
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    agent.env("OPIK_OFFLINE_FLEET_DELAY", "0s").env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", TAKEOVER_AFTER)
}

/// Returns an agent that replays it as well.
fn member(fleet: &TestFleet, server: &FakeOpik) -> AgentBuilder {
    let identity = fleet.identity.display().to_string();
    agent(fleet, server).arg("--fleet-replay").env("OPIK_OFFLINE_FLEET_IDENTITY_FILE", &identity)
}

fn status(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/status.json").json()["fleet"].clone()
}

fn metric(agent: &Agent, name: &str) -> u64 {
    let text = Client::new(&agent.origin()).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

/// Returns the stream that an agent ships to, once all that it stored is shipped.
fn stream_of(agent: &Agent) -> StreamId {
    let mut stream = None;
    wait_until("the agent has shipped all of its messages", PATIENCE, || {
        let status = status(agent);
        stream = status["stream"].as_str().and_then(StreamId::parse);
        stream.is_some() && status["unshipped_messages"] == 0
    });
    stream.expect("it has a stream")
}

/// Sends traces with updates, each of which must be acknowledged.
fn write(agent: &Agent, ledger: &ClientLedger, traces: u64) {
    let mut app = Told::new(&agent.url(), ledger);
    for n in 0..traces {
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, n), 204);
    }
}

#[test]
fn an_agent_delivers_the_streams_of_killed_agents_while_it_serves_its_clients() {
    let (fleet, server, ledger) = (TestFleet::new(), FakeOpik::new_stopped(), ClientLedger::new());
    let mut killed = [agent(&fleet, &server).start(), agent(&fleet, &server).start()];
    for agent in &mut killed {
        write(agent, &ledger, 10);
        stream_of(agent);
        agent.kill9();
    }
    fleet.close_all();
    // Its own messages wait as well, so it has a stream of its own.
    let mut member = member(&fleet, &server).start();
    write(&member, &ledger, 5);
    let own = stream_of(&member);
    assert_eq!(fleet.names("v1/heads").len(), 3);
    server.start();
    let replayed = || status(&member)["replay"]["delivered"].as_u64();
    wait_until("the streams of both are delivered", PATIENCE, || {
        // Its clients are served meanwhile.
        write(&member, &ledger, 1);
        replayed() == Some(40) && fleet.left().is_empty()
    });
    member.wait_until_delivered();
    let said = member.stderr();
    assert_eq!(said.matches("took a stream over").count(), 2, "{said}");
    assert!(!said.contains("was taken over by"), "it has taken its own stream {own}: {said}");
    let shown = member.cli(&["status"]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("replays agents that are gone: 0 streams held, 40 messages delivered"), "{shown}");
    let counted = ["opik_offline_fleet_replayed_messages_total", "opik_offline_messages_delivered_total"];
    let [of_others, own] = counted.map(|name| metric(&member, name));
    assert_eq!(of_others, 40);
    assert!(own >= 10 && own == metric(&member, "opik_offline_messages_registered_total"), "counted twice, or lost");
    assert!(member.terminate().success());
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
}

#[test]
fn an_agent_that_stops_releases_its_streams_and_another_replayer_continues_at_once() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 3, 3);
    let fleet = TestFleet::new();
    let streams = outage.ship(&fleet, HeadState::Closed);
    let slow = ["--batch-size", "1", "--delay", "50ms"];
    let mut member = slow.iter().fold(member(&fleet, &server), |agent, arg| agent.arg(arg)).start();
    // A message of its own that stays: its stream is closed when it stops, and is not its own replay's.
    let own_id = uuid7();
    let refused = server.script(When::ids([own_id.clone()]), Then::status(503));
    Told::new(&member.url(), &outage.ledger).acknowledged(create(&own_id), 201);
    let own = stream_of(&member);
    server.start();
    wait_until("it delivers streams of others", PATIENCE, || {
        status(&member)["replay"]["delivered"].as_u64() >= Some(3)
    });
    assert!(member.terminate().success(), "{}", member.stderr());
    let left: Vec<_> = streams.iter().filter_map(|stream| fleet.head(*stream)).collect();
    assert!(!left.is_empty(), "it was not stopped at work");
    assert!(left.iter().all(|head| head.state == HeadState::Closed), "another replayer has to wait: {left:?}");
    let own_head = fleet.head(own).expect("its own stream stays");
    assert_eq!((own_head.state, own_head.epoch), (HeadState::Closed, 1), "it took its own stream: {own_head:?}");
    refused.clear();
    // Nothing is silent for the time to take over, which agents count on.
    let report = fleet.replayed(&server, &["--fail-if-backlog", "--timeout", "60s"]);
    assert_eq!(report["streams"]["owned"], 0, "{report}");
    assert_eq!(fleet.left(), Vec::<String>::new(), "{report}");
    server.assert_equals(&outage.ledger);
    server.assert_order(&outage.ledger);
    server.assert_no_violations();
}

#[test]
fn an_agent_without_an_identity_or_a_depot_refuses_to_replay() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let without = agent(&fleet, &server).arg("--fleet-replay").refused();
    assert_eq!(without.code(), Some(2), "{}", without.stderr);
    assert!(without.stderr.contains("OPIK_OFFLINE_FLEET_IDENTITY_FILE"), "{}", without.stderr);
    let missing = fleet.root().join("no-such-file").display().to_string();
    let missing =
        agent(&fleet, &server).arg("--fleet-replay").env("OPIK_OFFLINE_FLEET_IDENTITY_FILE", &missing).refused();
    assert!(missing.code() == Some(2) && missing.stderr.contains("no-such-file"), "{}", missing.stderr);
    let alone = Agent::builder(&server.url()).env("OPIK_OFFLINE_FLEET_REPLAY", "true").refused();
    assert!(alone.code() == Some(2) && alone.stderr.contains("no depot is named"), "{}", alone.stderr);
}

#[test]
fn an_agent_whose_depot_is_away_serves_and_replays_once_it_is_there() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    server.start();
    // Every request fails, as those to a bucket that is away.
    let (objects, away) = (fleet.root().join("v1"), fleet.root().with_file_name("elsewhere"));
    std::fs::rename(&objects, &away).unwrap();
    std::os::unix::fs::symlink("v1", &objects).unwrap();
    let member = member(&fleet, &server).start();
    wait_until("it says that the depot is away", PATIENCE, || status(&member)["replay"]["problem"].is_string());
    assert_eq!(Client::new(&member.url()).send(&create(&uuid7())).unwrap().status, 201, "clients wait for the depot");
    let shown = member.cli(&["status"]).stdout;
    assert!(shown.contains("streams of other agents are not replayed"), "{shown}");
    // It tries again, and says it once.
    std::thread::sleep(Duration::from_millis(1500));
    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&away, &objects).unwrap();
    wait_until("the stream is delivered", PATIENCE, || fleet.left().is_empty());
    let said = member.stderr();
    assert_eq!(said.matches("streams of other agents are not replayed").count(), 1, "{said}");
    wait_until("the problem stays", PATIENCE, || status(&member)["replay"]["problem"].is_null());
    server.assert_no_violations();
}
