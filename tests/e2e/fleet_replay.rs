//! Streams of agents that are gone: a replayer takes them over and delivers them, in order, even if it is killed.
//!
//! `OPIK_OFFLINE_KILLS` sets how often the replayer is killed, `OPIK_OFFLINE_STREAMS` how many streams are replayed for
//! the figures.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::head::{Head, HeadState};
use opik_offline::fleet::marks::{Fate, Mark, encode_marks};
use opik_offline::fleet::names::ObjectName;
use opik_offline::fleet::record::{FleetRecord, MessageRef};
use opik_offline::sealing::read_identities;

use crate::durability::Dice;
use crate::fleet_streams::{Outage, TestFleet, bundle_folder, synthetic};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::attachments::sha256;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create};

/// Checks that the server has everything, each entity in its order.
#[track_caller]
fn assert_delivered(server: &FakeOpik, outage: &Outage) {
    server.assert_equals(&outage.ledger);
    server.assert_order(&outage.ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
}

#[test]
fn streams_of_agents_that_are_gone_are_delivered_in_order_and_deleted() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 5, 6);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    server.start();
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_delivered(&server, &outage);
    assert_eq!(report["delivered"], outage.messages(), "{report}");
    assert_eq!(report["streams"]["finished"], 5, "{report}");
    assert_eq!(fleet.left(), Vec::<String>::new(), "delivered messages are kept and paid for");
}

#[test]
fn two_replayers_that_start_at_once_deliver_each_stream_once() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 12, 2);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    server.start();
    let homes = [Home::new(), Home::new()];
    let replayers: Vec<_> = homes.iter().map(|home| fleet.spawn(home, &server, &["--format", "json"])).collect();
    let (mut delivered, mut finished) = (0, 0);
    for replayer in replayers {
        let output = replayer.wait_with_output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
        assert!(output.status.success(), "{report}");
        delivered += report["delivered"].as_u64().unwrap();
        finished += report["streams"]["finished"].as_u64().unwrap();
    }
    assert_delivered(&server, &outage);
    server.assert_no_overlaps();
    assert_eq!((delivered, finished), (outage.messages(), 12), "a stream had two senders, or none");
    assert_eq!(fleet.left(), Vec::<String>::new());
}

#[test]
fn a_replayer_that_is_killed_loses_nothing_and_its_successor_keeps_the_order() {
    let kills = std::env::var("OPIK_OFFLINE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(4);
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 6, 6);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    server.start();
    let mut dice = Dice::new(20);
    let home = Home::new();
    for _ in 0..kills {
        let mut replayer = fleet.spawn(&home, &server, &["--follow", "--batch-size", "10", "--delay", "20ms"]);
        let enough = server.requests().len() + 3 + usize::try_from(dice.below(40)).unwrap();
        wait_until("the replayer is at work, or done", PATIENCE, || {
            server.requests().len() >= enough || fleet.left().is_empty()
        });
        replayer.kill().unwrap();
        replayer.wait().unwrap();
    }
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_delivered(&server, &outage);
    assert_eq!(fleet.left(), Vec::<String>::new(), "{report}");
}

#[test]
fn a_living_owner_keeps_its_stream_and_a_silent_one_loses_it() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 3);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Open)[0];
    server.start();
    let home = Home::new();
    let mut replayer = fleet.spawn(&home, &server, &["--fail-if-backlog", "--format", "json"]);
    // As an agent renews its head, until the replayer has seen that it is alive.
    let mut status = None;
    wait_until("the replayer leaves the stream to its owner", PATIENCE, || {
        fleet.renew(stream, |head| head);
        std::thread::sleep(Duration::from_millis(200));
        status = replayer.try_wait().unwrap();
        status.is_some()
    });
    let output = replayer.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!((report["delivered"].as_u64(), report["streams"]["owned"].as_u64()), (Some(0), Some(1)), "{report}");
    assert_eq!(status.and_then(|status| status.code()), Some(4), "a backlog was asked for");
    assert_eq!(fleet.head(stream).map(|head| head.epoch), Some(1), "a stream with a living owner was taken");
    // Now its owner is gone.
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    assert_delivered(&server, &outage);
}

#[test]
fn a_bundle_that_cannot_be_read_stays_and_the_others_are_delivered() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 2, 3);
    let fleet = TestFleet::new();
    let streams = outage.ship(&fleet, HeadState::Closed);
    let bundle = std::fs::read_dir(bundle_folder(&fleet, streams[0])).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&bundle, &bytes).unwrap();
    server.start();
    let report = fleet.replayed(&server, &[]);
    let unreadable = &report["unreadable"];
    let name = bundle.file_name().unwrap().to_string_lossy();
    assert!(unreadable["objects"][0]["object"].as_str().unwrap().ends_with(&*name), "it is not named: {report}");
    assert!(unreadable["messages"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    assert_eq!(std::fs::read(&bundle).unwrap(), bytes, "another version may be able to read it");
    let head = fleet.head(streams[0]).expect("its stream stays");
    assert_eq!(head.state, HeadState::Closed, "another replayer has to wait");
    assert!(report["delivered"].as_u64() >= Some(24), "the other stream waits for a damaged one: {report}");
}

#[test]
fn bundles_for_other_identities_and_with_unreadable_marks_stay() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 2, 2);
    let fleet = TestFleet::new();
    let streams = outage.ship(&fleet, HeadState::Closed);
    fleet.put_sealed(&ObjectName::Marks { stream: streams[1], epoch: 1, number: 0 }, b"marks of another program");
    let before = fleet.names("v1/bundles");
    server.start();
    let stranger = TestFleet::new();
    let own = fleet.replayed(&server, &[]);
    assert_eq!(own["streams"]["finished"], 1, "{own}");
    assert!(own["unreadable"]["objects"][0]["reason"].as_str().unwrap().contains("marks"), "{own}");
    let left = fleet.names("v1/bundles");
    assert!(
        !left.is_empty() && left.iter().all(|name| before.contains(name)),
        "a bundle with unreadable marks is gone"
    );
    let home = Home::new();
    let (identity, url) = (stranger.identity.display().to_string(), fleet.url());
    let args = ["replay", "--fleet", &url, "--identity", &identity, "--upstream", &server.url(), "--format", "json"];
    let wrong = home.cli(&args);
    assert_eq!(wrong.code(), Some(4), "{}", wrong.stderr);
    assert!(wrong.stdout.contains("sealed for age1"), "which key it needs is not said: {}", wrong.stdout);
    assert_eq!(fleet.names("v1/bundles"), left, "a bundle for another identity is gone");
}

#[test]
fn marked_messages_are_not_sent_again() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    // Its agent had delivered the first two messages, the creates, before it was killed.
    let marks: Vec<Mark> =
        [1, 2].map(|id| Mark { reference: MessageRef::whole(id), fate: Fate::Delivered }).into_iter().collect();
    fleet.put_sealed(&ObjectName::Marks { stream, epoch: 1, number: 0 }, &encode_marks(&marks));
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["delivered"], outage.messages() - 2, "{report}");
    assert!(server.requests_to("POST", "/v1/private/traces").is_empty(), "an older write was sent over a newer one");
    assert_eq!(fleet.left(), Vec::<String>::new());
}

#[test]
fn a_rejected_message_stays_readable_after_its_stream_is_deleted() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    let refused = server.script(When::write().method("PUT"), Then::status(400));
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert!(refused.hits() > 0);
    assert_eq!(report["rejected"], 2, "{report}");
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    assert_eq!(fleet.names("v1/rejected").len(), 2, "a rejected message is gone with its stream");
    let home = Home::new();
    let identity = fleet.identity.display().to_string();
    let listed =
        home.cli(&["inspect", "--fleet", &fleet.url(), "--identity", &identity, "--rejected", "--format", "json"]);
    let listed = listed.json();
    let message = &listed["messages"][0];
    assert_eq!(
        (message["status"].as_str(), message["answer"]["status"].as_u64()),
        (Some("rejected"), Some(400)),
        "{listed}"
    );
    let id = format!("{}/{}", message["stream"].as_str().unwrap(), message["id"]);
    let whole = home.cli(&["inspect", "--fleet", &fleet.url(), "--identity", &identity, &id]);
    assert!(whole.stdout.contains("feedback-scores"), "{}{}", whole.stdout, whole.stderr);
    let purged = home.cli(&[
        "purge",
        "--fleet",
        &fleet.url(),
        "--identity",
        &identity,
        "--rejected",
        "--yes",
        "--format",
        "json",
    ]);
    assert_eq!(purged.json()["messages"], 2, "{}", purged.stderr);
    assert_eq!(fleet.names("v1/rejected"), Vec::<String>::new());
    assert_eq!(fleet.names("v1/orders").len(), 1, "nobody can tell who deleted them");
}

#[test]
fn people_see_and_purge_what_nobody_owns() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 2, 2);
    let fleet = TestFleet::new();
    let streams = outage.ship(&fleet, HeadState::Closed);
    let home = Home::new();
    let (url, identity) = (fleet.url(), fleet.identity.display().to_string());
    let status = home.cli(&["status", "--fleet", &url, "--format", "json"]).json();
    assert_eq!(
        (&status["streams"]["closed"], &status["waiting"]["messages"]),
        (&2.into(), &outage.messages().into()),
        "{status}"
    );
    let exceeded = home.cli(&["status", "--fleet", &url, "--quiet", "--fail-if-backlog", "3"]);
    assert_eq!(exceeded.code(), Some(4), "{}", exceeded.stderr);
    let listed = home.cli(&[
        "inspect",
        "--fleet",
        &url,
        "--identity",
        &identity,
        "--trace",
        &outage.groups[0][0],
        "--format",
        "json",
    ]);
    assert_eq!(listed.json()["messages"].as_array().map(Vec::len), Some(8), "{}{}", listed.stdout, listed.stderr);
    let purge = ["purge", "--fleet", &url, "--identity", &identity, "--stream"];
    let stream = streams[0].to_string();
    let dry = home.cli(&[&purge[..], &[&stream, "--dry-run", "--format", "json"]].concat()).json();
    assert_eq!(fleet.names("v1/heads").len(), 2, "a dry run deleted something");
    let purged = home.cli(&[&purge[..], &[&stream, "--yes", "--format", "json"]].concat());
    assert_eq!(purged.json()["messages"], dry["messages"], "{}", purged.stderr);
    assert_eq!(fleet.names("v1/heads"), [ObjectName::Head(streams[1]).to_string()]);
    // A filter leaves the rest of the stream to be delivered.
    let trace = &outage.groups[1][0];
    let args = ["purge", "--fleet", &url, "--identity", &identity, "--trace", trace, "--yes", "--format", "json"];
    assert_eq!(home.cli(&args).json()["messages"], 8);
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["delivered"], 8, "{report}");
    assert!(server.sequence_for(trace).is_empty(), "a deleted message was delivered");
}

#[test]
fn a_stream_with_a_living_owner_is_not_purged() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 1);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Open)[0];
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                fleet.renew(stream, |head: Head| head);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let identity = fleet.identity.display().to_string();
        let home = Home::new();
        let mut command = home.command(crate::support::agent::program());
        command.args(["purge", "--fleet", &fleet.url(), "--identity", &identity, "--yes", "--format", "json"]);
        command.env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", "3s");
        let output = crate::support::process::run(&mut command);
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        let report = output.json();
        assert_eq!(report["owned"][0]["stream"], stream.to_string(), "it is not said that it was left: {report}");
    });
    assert!(fleet.head(stream).is_some_and(|head| head.epoch == 1), "an owner's messages were deleted under it");
}

#[test]
fn without_a_server_nothing_is_taken() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 1);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    let output = fleet.replay(&server, &[]);
    assert_eq!(output.code(), Some(3), "{}", output.stderr);
    assert_eq!(fleet.head(stream).map(|head| head.epoch), Some(1), "other replayers have to wait for this one");
    let missing = Home::new().cli(&["replay", "--fleet", "file:///nonexistent/depot", "--upstream", &server.url()]);
    assert_ne!(missing.code(), Some(0), "a depot that is not there was replayed");
}

#[test]
fn messages_for_another_server_stay() {
    let (server, other) = (FakeOpik::new_stopped(), FakeOpik::start_new());
    let outage = Outage::new(&server, 1, 1);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    let report = fleet.replayed(&other, &[]);
    assert_eq!(report["elsewhere"], outage.messages(), "{report}");
    assert!(other.requests().iter().all(|request| request.writes.is_empty()), "a message went to another server");
    assert_eq!(fleet.head(stream).map(|head| head.state), Some(HeadState::Closed));
    server.start();
    assert_eq!(fleet.replayed(&server, &[])["streams"]["finished"], 1);
    assert_delivered(&server, &outage);
}

#[test]
fn messages_that_a_killed_replayer_delivered_are_not_sent_again() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    // The scores hang, so that what was accepted before them is delivered and the stream is not finished.
    let hang = server.script(When::write().method("PUT"), Then::Hang);
    server.start();
    let home = Home::new();
    let mut replayer = fleet.spawn(&home, &server, &["--follow"]);
    let earlier = outage.messages() - 4;
    wait_until("writes before the scores are delivered and marked", PATIENCE, || fleet.marked(stream) == earlier);
    replayer.kill().unwrap();
    replayer.wait().unwrap();
    hang.clear();
    let requests = server.requests_to("PATCH", "/v1/private/traces/*").len();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["delivered"], 4, "older writes were sent again: {report}");
    assert!(server.requests_to("PATCH", "/v1/private/traces/*").len() <= requests + 2);
    assert_delivered(&server, &outage);
}

#[test]
fn attachments_are_delivered_with_their_message() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.url());
    let (trace, bytes) = (uuid7(), vec![0x5a; 5_000_000]);
    client.expect(&create(&trace));
    let start = serde_json::json!({
        "file_name": "report.pdf", "num_of_file_parts": 1, "mime_type": "application/pdf", "project_name": "demo",
        "entity_type": "trace", "entity_id": trace, "path": STANDARD.encode(format!("{}/", agent.url())),
    });
    let answer = client.expect(&Request::new("POST", "/v1/private/attachment/upload-start").json(&start));
    let url = answer.json()["pre_sign_urls"][0].as_str().unwrap().to_owned();
    let path = url.strip_prefix(&agent.url()).expect("it leads through the agent").to_owned();
    assert_eq!(client.send(&Request::new("PUT", &path).bytes(bytes.clone())).unwrap().status, 204);
    agent.kill9();
    let fleet = TestFleet::new();
    fleet.ship_store(&agent.db(), HeadState::Closed, |_| 0);
    assert!(fleet.names("v1/files").len() > 1, "the file is in parts");
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    let files = server.files();
    let file = files.values().next().expect("the file is lost");
    assert_eq!(file.sha256, sha256(&bytes), "the file was altered on its way");
    assert_eq!(fleet.left(), Vec::<String>::new());
}

/// An agent with its disk comes back after its stream was finished, to a depot that nobody has set up for a fleet.
#[test]
fn an_agent_that_returns_after_its_stream_was_finished_repeats_nothing() {
    let server = FakeOpik::new_stopped();
    let fleet = TestFleet::new();
    fleet.depot.delete(&[Name::new("v1/fleet.json").unwrap()]).unwrap();
    let recipient = read_identities(&fleet.identity).unwrap()[0].recipient().to_string();
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let mut agent = agent.arg("--fleet-recipients").arg(&recipient).env("OPIK_OFFLINE_FLEET_DELAY", "0s").start();
    let ledger = ClientLedger::new();
    let id = uuid7();
    Told::new(&agent.url(), &ledger).acknowledged(create(&id), 201);
    wait_until("the write has a copy", PATIENCE, || !fleet.names("v1/bundles").is_empty());
    agent.kill9();
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["delivered"], 1, "{report}");
    assert_eq!(fleet.left(), Vec::<String>::new());
    agent.restart_on_same_port();
    agent.wait_until_delivered();
    assert_eq!(server.sequence_for(&id).len(), 1, "an old write was sent over what came after the takeover");
    server.assert_equals(&ledger);
}

/// A few streams here; the figures of the fleet's design with a release build that `OPIK_OFFLINE_BINARY` names:
/// `OPIK_OFFLINE_STREAMS=2000 OPIK_OFFLINE_REPLAYERS=2 cargo test --test e2e -- --nocapture a_large_fleet`.
#[test]
fn a_large_fleet_is_delivered() {
    let streams = std::env::var("OPIK_OFFLINE_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let server = Sink::new_stopped();
    let fleet = TestFleet::new();
    let mut traces = 0;
    for _ in 0..streams {
        let records: Vec<FleetRecord> = (1..=250).map(|id| synthetic(id, &server.url())).collect();
        traces += records.len();
        fleet.ship(&records, HeadState::Closed, 250);
    }
    let home = Home::new();
    let started = std::time::Instant::now();
    let status = home.cli(&["status", "--fleet", &fleet.url(), "--format", "json"]);
    eprintln!("status of {streams} streams: {:?}", started.elapsed());
    assert_eq!(status.json()["streams"]["closed"], streams, "{}", status.stderr);
    server.start();
    let started = std::time::Instant::now();
    let homes: Vec<Home> = (0..std::env::var("OPIK_OFFLINE_REPLAYERS").ok().and_then(|n| n.parse().ok()).unwrap_or(1))
        .map(|_| Home::new())
        .collect();
    let replayers: Vec<_> = homes
        .iter()
        .map(|home| {
            fleet
                .replayer(home, &server.url())
                .args(["--format", "json"])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for replayer in replayers {
        let output = replayer.wait_with_output().unwrap();
        eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{traces} messages in {seconds:.1} s: {:.0} a second", traces as f64 / seconds);
    assert_eq!(server.taken().len(), traces, "messages are lost");
    assert_eq!(fleet.left(), Vec::<String>::new());
}
