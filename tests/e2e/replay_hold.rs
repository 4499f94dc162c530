//! A person holds the replay of one store and lets it go on: its agent and every `replay` keep to that, and live writes
//! do not notice.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::process::run;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::wrapped::wrapping;
use crate::writes::{create, update};

/// How many writes the server got.
fn writes(server: &FakeOpik) -> usize {
    server.requests().iter().map(|request| request.writes.len()).sum()
}

/// Waits until the agent has found the server, and had time for much more.
fn wait_until_server_is_known(server: &FakeOpik) {
    let pings = || server.requests().iter().filter(|request| request.method == "GET").count();
    let before = pings();
    wait_until("the server is found again and again", PATIENCE, || pings() >= before + 20);
}

#[track_caller]
fn held(agent: &Agent, args: &[&str]) -> Value {
    let output = agent.cli(&[&["replay", "--format", "json"], args].concat());
    assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    output.json()
}

#[track_caller]
fn sent(agent: &Agent, request: &Request) {
    let answer = Client::new(&agent.url()).send(request).expect("an answer");
    assert!((200..300).contains(&answer.status), "{}", answer.text());
}

fn metric(agent: &Agent) -> bool {
    Client::new(&agent.origin()).get("/metrics").text().contains("\nopik_offline_replay_held 1\n")
}

#[test]
fn a_hold_keeps_what_waits_through_a_restart_until_it_is_resumed() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let traces: Vec<String> = (0..20).map(|_| uuid7()).collect();
    traces.iter().for_each(|trace| sent(&agent, &create(trace)));
    let set = held(&agent, &["--hold", "30m"]);
    let left = set["hold"]["seconds_left"].as_u64();
    assert!(left.is_some_and(|left| (1_700..=1_800).contains(&left)) && set["waiting"] == 20, "{set}");
    server.start();
    wait_until_server_is_known(&server);
    assert_eq!(writes(&server), 0, "held messages are delivered");

    // A write that waits for a held one is kept behind it, another one goes its way.
    traces.iter().for_each(|trace| sent(&agent, &update(trace, 1)));
    sent(&agent, &create(&uuid7()).header("Comet-Workspace", "team-b"));
    wait_until("the live write arrives", PATIENCE, || writes(&server) == 1);
    assert!(agent.terminate().success());
    agent.restart_on_same_port();
    wait_until_server_is_known(&server);
    assert_eq!(writes(&server), 1, "a restart ends the hold");
    assert_eq!(agent.stderr().matches("replay is held until").count(), 2, "once by each agent: {}", agent.stderr());

    let status = agent.cli(&["status", "--format", "json"]).json();
    let by = status["store"]["replay_hold"]["by"].as_str().expect("a person").to_owned();
    assert_eq!(by, set["hold"]["by"].as_str().expect("a person"));
    let verdict = &status["verdict"];
    assert!(
        verdict["text"].as_str().is_some_and(|text| text.contains("held until") && text.contains(&by)),
        "{verdict}"
    );
    assert!(verdict["command"].as_str().is_some_and(|command| command.contains("replay --resume")), "{verdict}");
    assert!(status["problems"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "replay_held")));
    assert_eq!((&status["eta"]["state"], metric(&agent)), (&"held".into(), true), "{status}");
    let page = Client::new(&agent.origin()).get("/-/").text();
    assert!(page.contains("held until") && page.contains("replay --resume --db "), "the page hides the hold: {page}");
    let told = Client::new(&agent.origin()).get("/-/status.json").json();
    assert_eq!(told["store"]["replay_hold"]["by"], by.as_str(), "{told}");

    assert_eq!(held(&agent, &["--resume"])["hold"], Value::Null);
    agent.wait_until_delivered();
    assert_eq!(writes(&server), 41);
    assert!(!metric(&agent));
    server.assert_no_violations();
    server.assert_no_update_before_create();
    assert!(agent.cli(&["replay", "--resume"]).stdout.starts_with("nothing was held"));
}

#[test]
fn a_hold_ends_by_itself() {
    const HOLD: Duration = Duration::from_secs(3);
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    sent(&agent, &create(&uuid7()));
    let began = Instant::now();
    held(&agent, &["--hold", "3s"]);
    server.start();
    agent.wait_until_delivered();
    let first = server.requests().iter().find(|request| !request.writes.is_empty()).map(|request| request.at);
    let after = first.expect("it is delivered") - began;
    assert!(after >= HOLD - Duration::from_millis(100), "delivered after {after:?}");
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["store"]["replay_hold"], Value::Null, "{status}");
}

#[test]
fn a_hold_stops_a_replay_that_runs() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    (0..40).for_each(|_| sent(&agent, &create(&uuid7())));
    agent.terminate();
    server.start();
    std::thread::scope(|scope| {
        let replaying = scope.spawn(|| agent.cli(&["replay", "--batch-size", "1", "--delay", "300ms"]));
        wait_until("it delivers", PATIENCE, || writes(&server) > 0);
        held(&agent, &["--hold", "10m"]);
        let ended = replaying.join().expect("no panic");
        assert_eq!(ended.code(), Some(4), "{}{}", ended.stdout, ended.stderr);
        assert!(ended.stdout.contains("replay is held until") && ended.stdout.contains("--resume"), "{}", ended.stdout);
    });
    let before = writes(&server);
    assert!((1..40).contains(&before), "{before} were delivered");
    let home = Home::new();
    let again = home.cli(&["replay", "--db", &agent.db().display().to_string()]);
    assert_eq!((again.code(), writes(&server)), (Some(4), before), "{}{}", again.stdout, again.stderr);
    held(&agent, &["--resume"]);
    assert_eq!(agent.cli(&["replay"]).code(), Some(0));
    assert_eq!(writes(&server), 40);
}

#[test]
fn a_hold_takes_effect_between_the_requests_of_a_batch() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().start();
    let traces: Vec<String> = (0..40).map(|_| uuid7()).collect();
    traces.iter().for_each(|trace| sent(&agent, &create(trace)));
    agent.wait_until_delivered();
    server.stop();
    traces.iter().for_each(|trace| sent(&agent, &update(trace, 1)));
    let before = writes(&server);
    // All of them are one batch.
    server.script(When::write(), Then::Delay(Duration::from_millis(500)));
    server.start();
    wait_until("it delivers", PATIENCE, || writes(&server) > before);
    held(&agent, &["--hold", "10m"]);
    wait_until("it is held", PATIENCE, || agent.stderr().contains("replay is held until"));
    let then = writes(&server);
    std::thread::sleep(Duration::from_secs(4));
    let after = writes(&server);
    assert!(after <= then + 2 && after < before + 40, "{} more were sent while replay was held", after - then);
    server.clear_script();
    held(&agent, &["--resume"]);
    agent.wait_until_delivered();
    server.assert_no_violations();
}

#[test]
fn a_hold_ends_the_pause_of_a_replay() {
    const PAUSE: Duration = Duration::from_secs(300);
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    (0..4).for_each(|_| sent(&agent, &create(&uuid7())));
    agent.terminate();
    server.start();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let replaying = scope.spawn(|| agent.cli(&["replay", "--batch-size", "1", "--delay", "300s"]));
        wait_until("it delivers", PATIENCE, || writes(&server) > 0);
        held(&agent, &["--hold", "10m"]);
        let ended = replaying.join().expect("no panic");
        assert_eq!(ended.code(), Some(4), "{}{}", ended.stdout, ended.stderr);
    });
    assert!(began.elapsed() < PAUSE, "it ended after its pause");
    assert_eq!(writes(&server), 1);
}

#[test]
fn nobody_waits_for_the_delivery_of_a_held_store() {
    const TIMEOUT: Duration = Duration::from_secs(300);
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    sent(&agent, &create(&uuid7()));
    held(&agent, &["--hold", "1h"]);
    server.start();
    wait_until_server_is_known(&server);
    let began = Instant::now();
    let flush = Request::new("POST", "/-/flush?timeout=300s");
    let answer = Client::new(&agent.origin()).send(&flush).expect("an answer");
    assert_eq!(answer.status, 504, "{}", answer.text());
    let reason = answer.json()["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.starts_with("replay is held until ") && reason.contains("replay --resume"), "{reason}");
    assert_eq!(answer.json()["remaining"], 1);
    agent.terminate();
    let (home, db) = (agent.home(), agent.db());
    let ended = run(&mut wrapping(home, &db, &server.url(), &["--flush-timeout", "300s"], &["true"]));
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains(": replay is held until ") && ended.stderr.contains("replay --resume"));
    assert!(!ended.stderr.contains("deliver later with"), "{}", ended.stderr);
    assert!(began.elapsed() < TIMEOUT, "it waited for what could not happen");
    assert_eq!(writes(&server), 0);
}
