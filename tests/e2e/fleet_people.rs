//! What people are told about a depot: what can't be read, and who delivers the messages of a store.

use opik_offline::fleet::head::HeadState;
use opik_offline::sealing::read_identities;

use crate::fleet_streams::{Outage, TestFleet};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::create;

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
