//! Few open files: the soft limit is raised, a wrapped command keeps its own, and what there is goes to clients first.

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request};
use crate::support::process::run;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, trace};

/// A command that starts another one with these limits.
fn limited(limits: &str) -> Vec<String> {
    ["sh", "-c", &format!("{limits} && exec \"$@\""), "sh"].map(str::to_owned).into()
}

fn soft_limit(pid: u32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("there is such a limit");
    line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX)
}

fn in_lane(lane: usize) -> Request {
    let body = trace(&uuid7(), "waiting");
    Request::new("POST", "/v1/private/traces").header("Comet-Workspace", &format!("lane-{lane}")).json(&body)
}

/// Clients with a connection of their own each write while many lanes are replayed: none is refused or cut off, and
/// nothing that fails looks like a server that is away.
fn clients_are_served_while_replay_runs(files: u64, clients: usize) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().within(&limited(&format!("ulimit -n {files}"))).start();
    let mut first = Client::new(&agent.url());
    for lane in 0..60 {
        assert_eq!(first.expect(&in_lane(lane)).status, 201);
    }
    drop(first);
    assert_eq!(soft_limit(agent.pid()), files);
    // All are connected before the first writes again.
    let mut connected: Vec<Client> = (0..clients).map(|_| Client::new(&agent.url())).collect();
    for client in &mut connected {
        assert_eq!(client.expect(&create(&uuid7())).status, 201);
    }
    server.start();
    let open = std::thread::scope(|scope| {
        for client in &mut connected {
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(client.expect(&create(&uuid7())).status, 201);
                }
            });
        }
        std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).map_or(0, Iterator::count) as u64
    });
    assert!(open < files, "{open} files are open of {files}");
    let metrics = Client::new(&agent.origin()).get("/metrics").text();
    for name in ["intake_connections_refused_total 0", "intake_connections_closed_total 0"] {
        assert!(metrics.contains(&format!("opik_offline_{name}")), "{name} is not so in {metrics}");
    }
    agent.wait_until_delivered();
    let lanes: usize = (0..60).map(|lane| server.count(&format!("lane-{lane}"), Kind::Trace)).sum();
    assert_eq!((lanes, server.count("default", Kind::Trace)), (60, clients * 6));
    let written = agent.stderr();
    assert_eq!(written.matches("limit on open files is low").count(), 1, "it is reported once: {written}");
    assert!(!written.contains("Too many open files") && !written.contains("os error 24"), "{written}");
    let status = agent.cli(&["status", "--format", "json"]).json();
    let problem = status["agent"]["files_problem"].as_str().unwrap_or_default();
    assert!(problem.contains(&format!("{files} open files")) && problem.contains("ulimit -Hn"), "{status}");
    let health = agent.cli(&["healthcheck", "--format", "json"]).json();
    let check = health["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["name"] == "agent"));
    assert!(
        check.is_some_and(|check| check["result"] == "warning" && check["hint"].to_string().contains("ulimit")),
        "{health}"
    );
}

#[test]
fn sixty_four_clients_are_served_with_256_files_while_replay_runs() {
    clients_are_served_while_replay_runs(256, 64);
}

#[test]
fn a_few_clients_are_served_with_64_files_while_replay_runs() {
    clients_are_served_while_replay_runs(64, 5);
}

#[test]
fn the_soft_limit_on_open_files_is_raised_as_far_as_the_hard_limit_allows() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().within(&limited("ulimit -Sn 256")).start();
    assert!(soft_limit(agent.pid()) > 1024, "{}", soft_limit(agent.pid()));
    let agent = Agent::builder(&server.url()).impatient().within(&limited("ulimit -Sn 256 && ulimit -Hn 512")).start();
    assert_eq!(soft_limit(agent.pid()), 512);
    wait_until("it is logged", PATIENCE, || agent.stderr().contains("limit on open files is low"));
}

#[test]
fn a_wrapped_command_keeps_the_soft_limit_that_the_agent_was_started_with() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let mut command = home.command("sh");
    let script = "ulimit -Sn 256 && exec \"$@\"";
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_opik-offline"), "agent", "--upstream", &server.url()]);
    command.arg("--db").arg(home.db());
    command.args(["--", "sh", "-c", "ulimit -Sn; ulimit -Hn; grep 'open files' /proc/$PPID/limits"]);
    let output = run(&mut command);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], "256", "the command has another limit than without the agent: {output:?}");
    assert_ne!(lines[1], "256");
    let of_the_agent: u64 = lines[2].split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(0);
    assert!(of_the_agent > 1024, "the agent did not raise its own: {output:?}");
}
