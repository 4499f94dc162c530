//! What people are told about a depot: what can't be read, and who delivers the messages of a store.

use std::time::Duration;

use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::head::{Head, HeadState};
use opik_offline::fleet::names::ObjectName;
use opik_offline::fleet::stream_purge::{PurgeAnswer, StreamPurge};
use opik_offline::sealing::read_identities;
use serde_json::json;

use crate::fleet_selection::two_workspaces;
use crate::fleet_streams::{Outage, TAKEOVER_AFTER, TestFleet};
use crate::support::agent::{Agent, Home, program};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create};

#[test]
fn bundles_that_cannot_be_opened_are_an_error_that_names_keys_and_streams() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 2, 2);
    let (fleet, stranger, home) = (TestFleet::new(), TestFleet::new(), Home::new());
    let streams = outage.ship(&fleet, HeadState::Closed);
    let key_of = |fleet: &TestFleet| read_identities(&fleet.identity).unwrap()[0].recipient().to_string();
    let (url, wrong) = (fleet.url(), stranger.identity.display().to_string());
    let commands: [&[&str]; 4] = [
        &["inspect"],
        &["inspect", "--format", "json"],
        &["purge", "--dry-run", "--older-than", "0s"],
        &["purge", "--yes", "--older-than", "0s"],
    ];
    for command in commands {
        for identity in [&[][..], &["--identity", &wrong]] {
            let output = home.cli(&[command, &["--fleet", &url], identity].concat());
            let said = &output.stderr;
            assert_eq!(output.code(), Some(1), "{command:?}: {}{said}", output.stdout);
            assert!(said.contains("2 bundles of 2 streams"), "{command:?}: {said}");
            assert!(streams.iter().all(|stream| said.contains(&stream.to_string())), "{command:?}: {said}");
            assert!(said.contains(&key_of(&fleet)), "the key that is needed is not named: {said}");
            assert_eq!(said.contains(&key_of(&stranger)), !identity.is_empty(), "the key that was tried: {said}");
        }
    }
    let id = format!("{}/1", streams[0]);
    let one = home.cli(&["inspect", "--fleet", &url, "--identity", &wrong, &id]);
    assert!(one.code() == Some(1) && one.stderr.contains("1 bundle of 1 stream"), "{}", one.stderr);
    // What can be read is shown all the same.
    let right = fleet.identity.display().to_string();
    let listed = home.cli(&["inspect", "--fleet", &url, "--identity", &right]);
    assert!(listed.code() == Some(0) && listed.stdout.contains(&streams[1].to_string()), "{}", listed.stderr);
    let folder = crate::fleet_streams::bundle_folder(&fleet, streams[0]);
    let bundle = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&bundle, b"neither sealed nor a bundle").unwrap();
    let half = home.cli(&["inspect", "--fleet", &url, "--identity", &right]);
    assert_eq!(half.code(), Some(1), "a part of the list looks like all of it");
    assert!(half.stdout.contains(&format!("{}/", streams[1])), "{}", half.stdout);
    assert!(half.stderr.contains("1 bundle of 1 stream"), "{}", half.stderr);
    let has_remedy = half.stderr.contains("purge --fleet") && !half.stderr.contains("secret key");
    assert!(has_remedy, "another key does not mend what is damaged: {}", half.stderr);
}

#[test]
fn a_store_with_copies_says_which_depot_has_them_and_that_nobody_delivers_it() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let mut agent = agent.arg("--acknowledge").arg("fleet").start();
    assert_eq!(Client::new(&agent.url()).send(&create(&uuid7())).unwrap().status, 201);
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["copies"]["depot"], fleet.url().as_str(), "{status}");
    assert_eq!((&status["copies"]["messages"], &status["copies"]["is_delivered"]), (&1.into(), &true.into()));
    agent.kill9();
    server.start();
    let start = format!("opik-offline agent --db {} --fleet {}", agent.db().display(), fleet.url());
    let replay = agent.cli(&["replay"]);
    assert!(!replay.status.success() && replay.stderr.contains(&start), "not ready to paste: {}", replay.stderr);
    let text = agent.cli(&["status"]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let has = format!("{} has copies of 1 message; no agent runs", fleet.url());
    assert!(text.contains(&has) && text.contains(&start), "{text}");
    assert!(!text.contains("opik-offline replay`"), "a command is named that refuses: {text}");
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!((&status["copies"]["is_delivered"], &status["eta"]["seconds"]), (&false.into(), &().into()), "{status}");

    // An agent without the depot runs, and delivers none of it.
    let beside = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_DB", &agent.db().display().to_string());
    let beside = beside.without_db().start();
    wait_until("the agent that runs is not seen", PATIENCE, || {
        let said = agent.cli(&["status"]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        said.contains("the agent that runs does not use it") && said.contains("in place of the one that runs")
    });
    drop(beside);
}

#[test]
fn a_purge_deletes_what_its_dry_run_counted() {
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let (fleet, research, scratch) = two_workspaces(&server, &ledger);
    let identity = fleet.identity.display().to_string();
    let home = Home::new();
    let purge = |filter: &[&str], how: &str| {
        let args = ["purge", "--fleet", &fleet.url(), "--identity", &identity, how, "--format", "json"];
        let output = home.cli(&[&args[..], filter].concat());
        assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
        output.json()
    };
    let one = ["--trace", &research[0]];
    let filters: [(&[&str], u64); 4] = [
        (&["--type", "UpdateTrace", "--workspace", "scratch"], 4),
        (&one, 2),
        (&["--workspace", "scratch", "--older-than", "0s"], 4),
        (&["--workspace", "scratch"], 0),
    ];
    let mut recorded = Vec::new();
    for (filter, messages) in filters {
        let (dry, purged) = (purge(filter, "--dry-run"), purge(filter, "--yes"));
        recorded.extend((messages > 0).then(|| filter.join(" ")));
        assert_eq!((&dry["messages"], &purged["messages"]), (&messages.into(), &messages.into()), "{dry} {purged}");
        for same in ["groups", "items", "body_bytes", "streams", "owned", "unreadable"] {
            assert_eq!(dry[same], purged[same], "{same} of {filter:?}");
        }
    }
    let order = |name: &String| {
        let (bytes, _) = fleet.depot.get(&Name::new(name).unwrap()).unwrap().expect("it was listed");
        let order: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        order["filter"].as_str().expect("the flags").to_owned()
    };
    let orders: Vec<String> = fleet.names("v1/orders").iter().map(order).collect();
    assert_eq!(orders, recorded, "nobody can tell what was purged");
    server.start();
    assert_eq!(fleet.replayed(&server, &[])["delivered"], 6);
    let sent = |ids: &[String]| ids.iter().filter(|id| !server.sequence_for(id).is_empty()).count();
    assert_eq!((sent(&scratch), sent(&research)), (0, 3), "a deleted message was delivered, or another is gone");
}

/// Purges a part of a depot after a while.
fn purge_after(ms: u64, fleet: &TestFleet, filter: &[&str]) -> Output {
    std::thread::sleep(Duration::from_millis(ms));
    let (home, identity) = (Home::new(), fleet.identity.display().to_string());
    let mut purge = home.command(program());
    purge.args(["purge", "--fleet", &fleet.url(), "--identity", &identity, "--yes", "--format", "json"]).args(filter);
    run(purge.env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", TAKEOVER_AFTER))
}

/// Each message is deleted, or delivered: never both, and none is forgotten.
#[test]
fn a_purge_beside_two_replayers_reports_what_it_deleted() {
    let mut outcomes = Vec::new();
    for (purge_ms, replay_ms) in [(0, 500), (0, 250), (0, 0), (200, 0)] {
        let server = FakeOpik::new_stopped();
        let outage = Outage::new(&server, 6, 2);
        let fleet = TestFleet::new();
        outage.ship(&fleet, HeadState::Closed);
        server.start();
        let homes = [Home::new(), Home::new()];
        let (purged, replayers) = std::thread::scope(|scope| {
            let purging = scope.spawn(|| purge_after(purge_ms, &fleet, &[]));
            std::thread::sleep(Duration::from_millis(replay_ms));
            let replayers = homes.iter().map(|home| fleet.spawn(home, &server, &["--format", "json"]));
            let replayers: Vec<_> = replayers.collect();
            (purging.join().unwrap(), replayers)
        });
        assert_eq!(purged.code(), Some(0), "{}{}", purged.stdout, purged.stderr);
        let mut delivered = 0;
        for replayer in replayers {
            let output = replayer.wait_with_output().unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            delivered += report["delivered"].as_u64().unwrap();
        }
        delivered += fleet.replayed(&server, &[])["delivered"].as_u64().unwrap();
        let deleted = purged.json()["messages"].as_u64().unwrap();
        assert_eq!(deleted + delivered, outage.messages(), "{purge_ms}, {replay_ms}: {}", purged.stdout);
        let sent = outage.groups.iter().flatten().map(|id| server.sequence_for(id).len() as u64).sum::<u64>();
        assert!(deleted + sent <= outage.messages(), "{deleted} were deleted and {sent} were sent");
        assert_eq!(fleet.left(), Vec::<String>::new());
        outcomes.push((deleted, delivered));
    }
    println!("deleted and delivered: {outcomes:?}");
}

/// An agent comes back with its store while a person purges one of its workspaces.
#[test]
fn a_purge_beside_an_agent_that_returns_deletes_all_of_the_selection_or_nothing() {
    for (purge_ms, agent_ms) in [(0, 600), (0, 300), (0, 100), (100, 0)] {
        let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
        let fleet = TestFleet::new();
        let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
        let mut agent = agent.arg("--acknowledge").arg("fleet").start();
        let [kept, selected] = [(); 2].map(|()| (0..4).map(|_| uuid7()).collect::<Vec<String>>());
        for (workspace, ids) in [("research", &kept), ("scratch", &selected)] {
            let mut app = Told::new(&agent.url(), &ledger).in_workspace(workspace);
            ids.iter().for_each(|id| drop(app.acknowledged(create(id), 201)));
        }
        agent.kill9();
        fleet.close_all();
        server.start();
        let purged = std::thread::scope(|scope| {
            let purging = scope.spawn(|| purge_after(purge_ms, &fleet, &["--workspace", "scratch"]));
            std::thread::sleep(Duration::from_millis(agent_ms));
            agent.restart_on_same_port();
            purging.join().unwrap()
        });
        assert_eq!(purged.code(), Some(0), "{}{}", purged.stdout, purged.stderr);
        // What the purge took over, a replayer delivers.
        wait_until("the rest is delivered", PATIENCE, || {
            fleet.replayed(&server, &[]);
            kept.iter().all(|id| !server.sequence_for(id).is_empty())
        });
        agent.wait_until_delivered();
        let sent = selected.iter().filter(|id| !server.sequence_for(id).is_empty()).count() as u64;
        let deleted = purged.json()["messages"].as_u64().unwrap();
        assert_eq!(sent + deleted, 4, "{purge_ms}, {agent_ms}: {}{}", purged.stdout, purged.stderr);
        println!("{deleted} deleted, {sent} sent");
    }
}

/// Purges beside owners with the default timing, or these settings.
pub(crate) fn purge_beside(fleet: &TestFleet, env: &[(&str, &str)], args: &[&str]) -> Output {
    let (home, identity) = (Home::new(), fleet.identity.display().to_string());
    let mut purge = home.command(program());
    purge.args(["purge", "--fleet", &fleet.url(), "--identity", &identity, "--format", "json"]).args(args);
    let output = run(purge.envs(env.iter().copied()));
    assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    output
}

#[test]
fn a_living_agent_deletes_what_a_person_purges_in_the_depot() {
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let fleet = TestFleet::new();
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let agent = agent.arg("--acknowledge").arg("fleet").start();
    let [kept, selected] = [(); 2].map(|()| (0..40).map(|_| uuid7()).collect::<Vec<String>>());
    for (kept, selected) in kept.iter().zip(&selected) {
        for (workspace, id) in [("research", kept), ("scratch", selected)] {
            drop(Told::new(&agent.url(), &ledger).in_workspace(workspace).acknowledged(create(id), 201));
        }
    }
    let dry = purge_beside(&fleet, &[], &["--workspace", "scratch", "--dry-run"]).json();
    assert_eq!((&dry["messages"], &dry["owned"][0]["selected"]), (&40.into(), &40.into()), "{dry}");
    assert!(fleet.names("v1/purges").is_empty() && fleet.names("v1/orders").is_empty(), "a dry run ordered something");
    let purged = purge_beside(&fleet, &[], &["--workspace", "scratch", "--yes"]);
    let report = purged.json();
    assert_eq!((&report["messages"], report["owned"].as_array().map(Vec::len)), (&40.into(), Some(0)), "{report}");
    assert_eq!(fleet.names("v1/purges"), Vec::<String>::new(), "what was ordered is not withdrawn");
    assert_eq!(fleet.names("v1/orders").len(), 1, "nobody can tell who deleted them");
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["backlog"]["messages"], 40, "{status}");
    let left = purge_beside(&fleet, &[], &["--dry-run"]).json();
    assert_eq!(left["messages"], 40, "the depot does not know what its agent deleted: {left}");
    server.start();
    agent.wait_until_delivered();
    let sent = |ids: &[String]| ids.iter().filter(|id| !server.sequence_for(id).is_empty()).count();
    assert_eq!((sent(&selected), sent(&kept)), (0, 40), "a deleted message was delivered, or another is gone");
}

#[test]
fn a_stream_of_which_everything_is_purged_is_finished_by_its_agent() {
    let (server, ledger) = (FakeOpik::new_stopped(), ClientLedger::new());
    let fleet = TestFleet::new();
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let agent = agent.arg("--acknowledge").arg("fleet").start();
    let mut app = Told::new(&agent.url(), &ledger);
    (0..7).for_each(|_| drop(app.acknowledged(create(&uuid7()), 201)));
    let stream = fleet.names("v1/heads")[0].rsplit('/').next().unwrap().to_owned();
    // Without the key that its bundles are sealed for.
    let args = ["purge", "--fleet", &fleet.url(), "--stream", &stream, "--yes", "--format", "json"];
    let purged = Home::new().cli(&args).json();
    assert_eq!((&purged["messages"], purged["owned"].as_array().map(Vec::len)), (&7.into(), Some(0)), "{purged}");
    wait_until("the agent finishes its stream", PATIENCE, || fleet.left().is_empty());
    assert_eq!(agent.cli(&["status", "--format", "json"]).json()["backlog"]["messages"], 0);
    let later = uuid7();
    drop(app.acknowledged(create(&later), 201));
    server.start();
    wait_until("a later message is delivered", PATIENCE, || !server.sequence_for(&later).is_empty());
}

#[test]
fn a_replayer_releases_what_a_person_purges_and_delivers_the_rest() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let outage = Outage::new(&server, 2, 2);
    let streams = outage.ship(&fleet, HeadState::Closed);
    let hold = Home::new().cli(&["replay", "--fleet", &fleet.url(), "--hold", "30m"]);
    assert_eq!(hold.code(), Some(0), "{}", hold.stderr);
    server.start();
    let home = Home::new();
    let mut replayer = fleet.spawn(&home, &server, &["--follow"]);
    let is_taken = || streams.iter().all(|stream| fleet.head(*stream).is_some_and(|head| head.epoch == 2));
    wait_until("the replayer takes the streams", PATIENCE, is_taken);
    let env = [("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", TAKEOVER_AFTER)];
    let trace = &outage.groups[1][0];
    let purged = purge_beside(&fleet, &env, &["--trace", trace, "--yes"]).json();
    assert_eq!((&purged["messages"], purged["owned"].as_array().map(Vec::len)), (&8.into(), Some(0)), "{purged}");
    assert_eq!(fleet.names("v1/purges"), Vec::<String>::new(), "what was ordered is not withdrawn");
    let resume = Home::new().cli(&["replay", "--fleet", &fleet.url(), "--resume"]);
    assert_eq!(resume.code(), Some(0), "{}", resume.stderr);
    wait_until("the rest is delivered", PATIENCE, || fleet.left().is_empty());
    replayer.kill().unwrap();
    replayer.wait().unwrap();
    assert!(server.sequence_for(trace).is_empty(), "a deleted message was delivered");
    let mut others = outage.groups.iter().flatten().filter(|id| *id != trace);
    assert!(others.all(|id| !server.sequence_for(id).is_empty()), "a message that nobody purged is gone");
    server.assert_no_violations();
}

#[test]
fn a_purge_whose_command_was_killed_delays_a_replay_and_no_more() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let outage = Outage::new(&server, 1, 2);
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    let left = StreamPurge::of_all(uuid::Uuid::now_v7(), "ana (uid 1000 on host-a)".to_owned());
    fleet.put(&ObjectName::Purge(stream), &left.encode());
    server.start();
    assert_eq!(fleet.replayed(&server, &[])["delivered"], outage.messages(), "the stream stays for ever");
    assert_eq!((fleet.left(), fleet.names("v1/purges")), (Vec::new(), Vec::new()));
}

#[test]
fn a_purge_that_an_owner_has_not_carried_out_is_seen_with_its_person() {
    let (fleet, server, home) = (TestFleet::new(), FakeOpik::new_stopped(), Home::new());
    let outage = Outage::new(&server, 2, 2);
    let [asked, killed] = outage.ship(&fleet, HeadState::Open)[..] else { panic!("two streams") };
    let status = || home.cli(&["status", "--fleet", &fleet.url(), "--format", "json"]).json();
    assert_eq!(status()["purges"], json!([]), "a purge is seen that nobody has requested");
    let request = StreamPurge::of_all(uuid::Uuid::now_v7(), "ana (uid 1000 on host-a)".to_owned());
    fleet.put(&ObjectName::Purge(asked), &request.encode());
    let long_ago = uuid::Uuid::new_v7(uuid::Timestamp::from_unix_time(1_700_000_000, 0, 0, 0));
    fleet.put(&ObjectName::Purge(killed), &StreamPurge::of_all(long_ago, String::new()).encode());
    let seen = status();
    let purges = seen["purges"].as_array().expect("a list");
    let fields = |of: usize| [&purges[of]["stream"], &purges[of]["by"], &purges[of]["is_expired"]];
    assert_eq!(fields(0), [&json!(asked.to_string()), &json!("ana (uid 1000 on host-a)"), &json!(false)], "{seen}");
    assert_eq!(fields(1), [&json!(killed.to_string()), &json!(null), &json!(true)], "{seen}");
    assert_eq!(purges[1]["requested_at"], "2023-11-14T22:13:20Z", "{seen}");
    let text = home.cli(&["status", "--fleet", &fleet.url()]).stdout;
    let said = format!("purge      stream {asked}, requested ");
    let is_said =
        text.lines().any(|line| line.starts_with(&said) && line.contains(" ago by ana (uid 1000 on host-a): "));
    assert!(is_said && text.contains("expired"), "{text}");
    let answer = PurgeAnswer { order: request.order, deleted: 16, kept: 0 };
    fleet.renew(asked, |head| Head { purged: Some(answer), ..head });
    let left = status();
    assert_eq!(left["purges"].as_array().map(Vec::len), Some(1), "what is carried out seems to wait: {left}");
}

#[test]
fn a_stream_that_waits_for_one_that_was_left_out_names_it_and_the_command_that_replays_both() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let outage = Outage::new(&server, 2, 2);
    let [earlier, later] = outage.ship(&fleet, HeadState::Closed)[..] else { panic!("two streams") };
    fleet.renew(later, |head| Head { after: vec![earlier], ..head });
    server.start();
    let (first, second) = (earlier.to_string(), later.to_string());
    let only = ["--stream", &second, "--workspace", "default"];
    let waits = json!([{ "stream": second, "waits_for": [first], "are_selected": false, "messages": 16 }]);
    for dry_run in [&["--dry-run"][..], &[]] {
        let report = fleet.replayed(&server, &[&only, dry_run].concat());
        assert_eq!((&report["streams_behind"], &report["behind"]), (&waits, &16.into()), "{report}");
        assert_eq!(report["streams"]["taken"], 0, "{report}");
    }
    let said = fleet.replay(&server, &only).stdout;
    let named =
        format!("behind    16 messages of stream {second} wait for the earlier stream {first} of the same store");
    assert!(said.contains(&named), "nobody knows why it waits: {said}");
    let command = said.split("replay these together: `opik-offline ").nth(1).and_then(|rest| rest.split('`').next());
    let command = command.unwrap_or_else(|| panic!("no command: {said}"));
    assert!(command.contains("--workspace default"), "it replays more than was selected: {command}");
    let home = Home::new();
    let output = home.cli(&command.split(' ').collect::<Vec<_>>());
    assert_eq!(output.code(), Some(0), "it can't be pasted: {command}: {}", output.stderr);
    assert_eq!(fleet.left(), Vec::<String>::new(), "the next replay waits again");
    server.assert_equals(&outage.ledger);
}
