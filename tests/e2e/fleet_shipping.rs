//! An agent with a depot: what it acknowledged outlives it, and nobody repeats what it delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use opik_offline::depot::folder::FolderDepot;
use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::bundle::BundleReader;
use opik_offline::fleet::head::{Head, HeadState};
use opik_offline::fleet::marks::{Mark, MarksReader};
use opik_offline::fleet::names::ObjectName;
use opik_offline::fleet::record::FleetRecord;
use opik_offline::sealing::{self, Identity};
use rustix::process::Signal;
use serde_json::json;

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request, Response};
use crate::support::{PATIENCE, tempdir, uuid7, wait_until};
use crate::writes::{create, create_batch, trace, update};

const KEY: &str = "canary-key-5d1f0c77";
const TEXT: &str = "canary text of a prompt 90210";

/// A depot in a folder, and the private key for what is in it.
struct Fleet {
    folder: tempfile::TempDir,
    identity: Identity,
}

/// The opened contents of a depot.
#[derive(Default)]
struct Copies {
    shipped: BTreeMap<(String, u64), FleetRecord>,
    marks: Vec<(String, Mark)>,
    heads: Vec<(Name, Head)>,
}

impl Copies {
    /// Messages that a successor would deliver.
    fn left(&self) -> Vec<&FleetRecord> {
        let is_marked = |(stream, message): &(String, u64)| {
            self.marks.iter().any(|(of, mark)| of == stream && mark.reference.message == *message)
        };
        self.shipped.iter().filter(|(key, _)| !is_marked(key)).map(|(_, record)| record).collect()
    }

    fn bodies(&self) -> BTreeSet<Vec<u8>> {
        self.left().iter().map(|record| record.message.request.body.bytes.to_vec()).collect()
    }
}

impl Fleet {
    fn new() -> Self {
        let folder = tempdir();
        fs::create_dir(folder.path().join("depot")).unwrap();
        Self { folder, identity: Identity::generate().expect("random numbers") }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("depot")
    }

    fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }

    fn agent(&self, server: &FakeOpik) -> AgentBuilder {
        let recipient = self.identity.recipient().to_string();
        let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&self.url());
        agent.arg("--fleet-recipients").arg(&recipient).env("OPIK_OFFLINE_FLEET_INTERVAL_MAX", "1s")
    }

    fn depot(&self) -> FolderDepot {
        FolderDepot::open(&self.path(), Duration::from_secs(10)).expect("the folder is there")
    }

    /// Returns everything that is in the depot. Objects that are deleted meanwhile are left out.
    fn copies(&self) -> Copies {
        let depot = self.depot();
        let mut copies = Copies::default();
        let all = depot.list(&Name::new("v1").unwrap(), None, 100_000).expect("it can be listed");
        for entry in all {
            let Some((bytes, _)) = depot.get(&entry.name).expect("it can be read") else { continue };
            let open = || sealing::open(std::slice::from_ref(&self.identity), &bytes).expect("it is sealed for us");
            match ObjectName::parse(entry.name.as_str()).expect("every name is one of the fleet's") {
                ObjectName::Bundle(stream, _) => {
                    for record in BundleReader::open(&open()).expect("it is whole") {
                        let record = record.expect("it is whole");
                        copies.shipped.insert((stream.to_string(), record.reference.message), record);
                    }
                }
                ObjectName::Marks { stream, .. } => {
                    let plain = open();
                    let marks = MarksReader::open(&plain).expect("it is whole");
                    copies.marks.extend(marks.map(|mark| (stream.to_string(), mark.expect("it is whole"))));
                }
                ObjectName::Head(_) => copies.heads.push((entry.name, Head::decode(&bytes).expect("a head"))),
                _ => {}
            }
        }
        copies
    }

    fn assert_nothing_is_readable(&self) {
        fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() { files(&entry, found) } else { found.push(entry) }
            }
        }
        let mut found = Vec::new();
        files(&self.path(), &mut found);
        assert!(!found.is_empty(), "nothing was shipped, so nothing was tested");
        for file in found {
            let bytes = fs::read(&file).unwrap();
            for canary in [KEY, TEXT] {
                let is_in = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
                assert!(!is_in, "{canary} lies readable in {}", file.display());
            }
        }
    }
}

fn write(number: u64, known: &mut Vec<String>) -> Request {
    let request = match (number % 4, known.last()) {
        (1, Some(id)) => update(id, number),
        (2, _) => {
            let ids: Vec<String> = (0..3).map(|_| uuid7()).collect();
            create_batch(&ids).gzip()
        }
        _ => {
            let id = uuid7();
            known.push(id.clone());
            Request::new("POST", "/v1/private/traces").json(&trace(&id, &format!("{TEXT} {number}")))
        }
    };
    request.header("Authorization", KEY).header("Comet-Workspace", "team-a")
}

/// Sends writes, each of which must be acknowledged; returns their bodies.
fn acknowledged(agent: &Agent, count: u64) -> BTreeSet<Vec<u8>> {
    let (mut client, mut known, mut bodies) = (Client::new(&agent.url()), Vec::new(), BTreeSet::new());
    for number in 0..count {
        let request = write(number, &mut known);
        let answer = client.send(&request).expect("an answer");
        assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
        bodies.insert(request.body);
    }
    bodies
}

fn metric(agent: &Agent, name: &str) -> f64 {
    let text = Client::new(&agent.origin()).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

fn status(agent: &Agent) -> serde_json::Value {
    Client::new(&agent.origin()).get("/-/status.json").json()
}

#[test]
fn a_killed_agent_leaves_copies_of_all_that_it_acknowledged() {
    let (fleet, server) = (Fleet::new(), FakeOpik::new_stopped());
    let mut agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    let bodies = acknowledged(&agent, 40);
    agent.kill9();
    let copies = fleet.copies();
    let missing: Vec<_> = bodies.difference(&copies.bodies()).cloned().collect();
    assert_eq!(missing, Vec::<Vec<u8>>::new(), "{} acknowledged writes are lost with their machine", missing.len());
    for record in copies.left() {
        let lane = &record.message.lane;
        assert_eq!(lane.workspace.as_deref(), Some("team-a"));
        assert_eq!(lane.credential.as_ref().map(|key| key.reveal().to_vec()), Some(KEY.as_bytes().to_vec()));
    }
    fleet.assert_nothing_is_readable();

    // A process that makes no marks would deliver beside the replayer that takes the stream over.
    server.start();
    let replay = agent.cli(&["replay"]);
    let said = &replay.stderr;
    assert!(!replay.status.success() && said.contains(&fleet.url()) && said.contains("--fleet"), "{said}");
    let purge = agent.cli(&["purge", "--yes"]);
    assert!(!purge.status.success(), "a person believes that it is deleted");
    assert!(server.requests().iter().all(|request| request.method == "GET"), "two senders deliver one stream");
}

#[test]
fn an_agent_that_is_stopped_leaves_nothing_unshipped() {
    let (fleet, server) = (Fleet::new(), FakeOpik::new_stopped());
    let mut agent = fleet.agent(&server).env("OPIK_OFFLINE_FLEET_DELAY", "1h").start();
    let bodies = acknowledged(&agent, 60);
    assert_eq!(fleet.copies().shipped.len(), 0, "it is shipped before its time");
    assert!(agent.terminate().success(), "{}", agent.stderr());
    let copies = fleet.copies();
    assert!(copies.bodies().is_superset(&bodies), "acknowledged writes are lost with their machine");
    assert_eq!(copies.heads.len(), 1);
    assert_eq!(copies.heads[0].1.state, HeadState::Closed, "a replayer waits for a process that has ended");
}

#[test]
fn nothing_is_shipped_while_the_server_is_there() {
    let (fleet, server) = (Fleet::new(), FakeOpik::start_new());
    let mut agent = fleet.agent(&server).start();
    wait_until("the server is not found", PATIENCE, || status(&agent)["server"]["connection"] == "available");
    acknowledged(&agent, 40);
    assert!(agent.terminate().success());
    let copies = fleet.copies();
    assert!(copies.heads.is_empty() && copies.shipped.is_empty(), "normal operation costs a depot");
    server.assert_no_violations();
}

#[test]
fn a_depot_that_is_away_costs_no_answer_and_is_made_up_for() {
    let (fleet, server) = (Fleet::new(), FakeOpik::new_stopped());
    let agent = fleet.agent(&server).env("OPIK_OFFLINE_FLEET_DELAY", "0s").start();
    let away = fleet.folder.path().join("elsewhere");
    fs::rename(fleet.path(), &away).unwrap();
    let bodies = acknowledged(&agent, 20);
    wait_until("nobody sees that the depot is away", PATIENCE, || status(&agent)["fleet"]["problem"].is_string());
    let is_counted = || metric(&agent, "opik_offline_fleet_unshipped_messages") >= 20.0;
    wait_until("messages without a copy are not counted", PATIENCE, is_counted);
    let said = agent.cli(&["status"]).stdout;
    assert!(said.contains("depot") && said.contains("only in the local store"), "{said}");
    fs::rename(&away, fleet.path()).unwrap();
    wait_until("it is never shipped", PATIENCE, || fleet.copies().bodies().is_superset(&bodies));
    wait_until("the metric stays", PATIENCE, || metric(&agent, "opik_offline_fleet_unshipped_messages") == 0.0);
    assert!(status(&agent)["fleet"]["problem"].is_null(), "{}", status(&agent)["fleet"]);
    fleet.assert_nothing_is_readable();
}

#[test]
fn a_write_that_must_be_in_the_depot_is_refused_while_that_is_away() {
    let (fleet, server) = (Fleet::new(), FakeOpik::new_stopped());
    let agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").arg("--when-depot-away").arg("refuse").start();
    fs::rename(fleet.path(), fleet.folder.path().join("elsewhere")).unwrap();
    let refused: Response = Client::new(&agent.url()).send(&create(&uuid7())).expect("an answer");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some() && refused.text().contains("depot"), "{}", refused.text());
    fs::rename(fleet.folder.path().join("elsewhere"), fleet.path()).unwrap();
    let mut client = Client::new(&agent.url());
    wait_until("it never takes writes again", PATIENCE, || {
        client.send(&create(&uuid7())).is_ok_and(|answer| answer.status < 300)
    });
    assert_eq!(fleet.copies().left().len(), 1, "a write that was refused is delivered");
}

#[test]
fn delivered_messages_are_marked_and_leave_the_depot() {
    let (fleet, server) = (Fleet::new(), FakeOpik::new_stopped());
    let agent = fleet.agent(&server).env("OPIK_OFFLINE_FLEET_DELAY", "0s").start();
    let bodies = acknowledged(&agent, 30);
    wait_until("it is not shipped", PATIENCE, || fleet.copies().bodies().is_superset(&bodies));
    server.start();
    agent.wait_until_delivered();
    assert!(fleet.copies().left().is_empty(), "a successor would repeat what was delivered");
    wait_until("the depot fills up", PATIENCE, || fleet.copies().heads.is_empty());
    let copies = fleet.copies();
    assert!(copies.shipped.is_empty() && copies.marks.is_empty(), "{:?}", copies.marks);
    server.assert_no_violations();
}

/// At any moment, a message is in the store, or it has a mark: a successor repeats no settled message.
#[test]
fn a_kill_between_delivery_mark_and_settle_leaves_no_settled_message_without_a_mark() {
    for round in 0..6 {
        let (fleet, server) = (Fleet::new(), FakeOpik::new_stopped());
        let mut agent = fleet.agent(&server).env("OPIK_OFFLINE_FLEET_DELAY", "0s").arg("--batch-size").arg("3").start();
        let bodies = acknowledged(&agent, 40);
        wait_until("it is not shipped", PATIENCE, || fleet.copies().bodies().is_superset(&bodies));
        server.start();
        let before = server.requests().len();
        wait_until("it never delivers", PATIENCE, || server.requests().len() > before + 2 * round);
        agent.kill9();
        let stored = {
            let connection = rusqlite::Connection::open(agent.db()).unwrap();
            let mut ids = connection.prepare("SELECT message_id FROM messages").unwrap();
            let ids = ids.query_map([], |row| row.get::<_, i64>(0)).unwrap();
            ids.map(|id| id.unwrap().unsigned_abs()).collect::<BTreeSet<u64>>()
        };
        let copies = fleet.copies();
        // Nothing is left once the last message is marked and the stream is deleted.
        let left: BTreeSet<u64> = copies.left().iter().map(|record| record.reference.message).collect();
        let repeated: Vec<_> = left.difference(&stored).collect();
        assert!(repeated.is_empty(), "settled and not marked, a successor repeats older writes: {repeated:?}");
        // The same store again: it delivers the rest, and the depot is empty.
        agent.restart_on_same_port();
        agent.wait_until_delivered();
        wait_until("the depot fills up", PATIENCE, || fleet.copies().heads.is_empty());
        server.assert_no_violations();
    }
}

#[test]
fn a_suspended_agent_sends_nothing_of_a_stream_that_was_taken_over() {
    let (fleet, server) = (Fleet::new(), FakeOpik::new_stopped());
    let agent = fleet.agent(&server).env("OPIK_OFFLINE_FLEET_DELAY", "0s").start();
    let bodies = acknowledged(&agent, 20);
    wait_until("it is not shipped", PATIENCE, || fleet.copies().bodies().is_superset(&bodies));
    agent.signal(Signal::STOP);
    // A replayer, once it has waited: the head changes hands.
    let depot = fleet.depot();
    let (name, _) = fleet.copies().heads.remove(0);
    let (bytes, version) = depot.get(&name).unwrap().expect("a head");
    let taken = Head::decode(&bytes).unwrap().taken_by(Default::default());
    depot.swap(&name, Some(&version), &taken.encode()).expect("its owner is suspended");
    // Longer than its lease and its last renewal hold together.
    std::thread::sleep(Duration::from_secs(62));
    let seen = server.requests().len();
    server.start();
    agent.signal(Signal::CONT);
    wait_until("it does not notice", PATIENCE, || status(&agent)["fleet"]["handed_over"] == json!(1));
    let sent: Vec<_> = server.requests().into_iter().skip(seen).filter(|request| request.method != "GET").collect();
    assert!(sent.is_empty(), "two senders deliver one stream: {} requests", sent.len());
    // Writes that it accepts from now on are its own.
    let id = uuid7();
    let answer = Client::new(&agent.url()).send(&create(&id)).expect("an answer");
    assert!(answer.status < 300, "{}", answer.text());
    wait_until("newer writes wait for good", PATIENCE, || !server.sequence_for(&id).is_empty());
    // The replayer has delivered all of it.
    let stream = name.as_str().rsplit('/').next().unwrap().to_owned();
    let all = depot.list(&Name::new("v1").unwrap(), None, 100_000).unwrap();
    let all: Vec<Name> = all.into_iter().map(|it| it.name).filter(|name| name.as_str().contains(&stream)).collect();
    depot.create(&Name::new(&format!("v1/finished/{stream}")).unwrap(), b"{}").unwrap();
    depot.delete(&all).unwrap();
    wait_until("delivered messages stay for good", PATIENCE, || agent.backlog() == 0);
}

#[test]
fn acknowledging_in_a_fleet_needs_a_depot_and_a_public_key() {
    let server = FakeOpik::new_stopped();
    let refused = Agent::builder(&server.url()).arg("--acknowledge").arg("fleet").refused();
    let said = &refused.stderr;
    assert!(refused.status.code() == Some(2) && said.contains("--fleet"), "{said}");
    let fleet = Fleet::new();
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let agent = agent.env("OPIK_OFFLINE_FLEET_DELAY", "0s").start();
    acknowledged(&agent, 3);
    wait_until("the problem is not shown", PATIENCE, || {
        status(&agent)["fleet"]["problem"].as_str().is_some_and(|problem| problem.contains("fleet_recipients"))
    });
    assert_eq!(fleet.copies().heads.len(), 0, "everybody can read bodies and keys in the depot");
}
