//! `agent -- COMMAND` where another agent is, or `opik-offline` is what the command runs.

use std::fs;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::process::{Output, run};
use crate::wrapped::{BINARY, wrapping};

/// Sends one trace to the server that `OPIK_URL_OVERRIDE` names.
const SEND: &str = r#"curl -sf -o /dev/null "$OPIK_URL_OVERRIDE/v1/private/traces" -H 'Content-Type: application/json' -d '{"start_time": "2026-01-02T03:04:05Z", "project_name": "demo"}'"#;

fn shell(home: &Home, server: &FakeOpik, variables: &[(&str, &str)], script: &str) -> Output {
    let mut command = wrapping(home, &home.db(), &server.url(), &[], &["sh", "-c", script]);
    run(command.env("BINARY", BINARY).envs(variables.iter().copied()))
}

fn traces(server: &FakeOpik) -> usize {
    server.count("default", Kind::Trace)
}

#[test]
fn opik_offline_inside_a_command_means_the_agents_server_and_store() {
    let (home, server) = (Home::new(), FakeOpik::new_stopped());
    let script = format!("{SEND}; $BINARY replay --quiet; echo replay: $?; $BINARY status --format json");
    let output = shell(&home, &server, &[], &script);
    assert!(output.stdout.starts_with("replay: 3\n"), "{}{}", output.stdout, output.stderr);
    let unreachable = format!("cannot connect to {}", server.url());
    assert!(output.stderr.contains(&unreachable), "{}", output.stderr);
    let status: serde_json::Value = serde_json::from_str(output.stdout.split_once('\n').unwrap().1).unwrap();
    assert_eq!(status["backlog"]["messages"], 1, "{status}");

    server.start();
    let script = "$BINARY replay --quiet; echo replay: $?; $BINARY healthcheck --format json";
    let output = shell(&home, &server, &[], script);
    assert!(output.stdout.starts_with("replay: 0\n"), "{}{}", output.stdout, output.stderr);
    assert_eq!(traces(&server), 1);
    assert!(output.stdout.contains(&server.url()), "{}", output.stdout);
}

#[test]
fn a_command_that_names_another_server_for_opik_offline_gets_it() {
    let (home, server, other) = (Home::new(), FakeOpik::start_new(), FakeOpik::start_new());
    let script =
        format!("OPIK_URL_OVERRIDE={} $BINARY agent -q -- sh -c '{}'", other.url(), SEND.replace('\'', r"'\''"));
    let output = shell(&home, &server, &[], &script);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert_eq!((traces(&server), traces(&other)), (0, 1));
}

#[test]
fn a_wrapped_agent_in_a_wrapped_command_keeps_and_delivers_each_message_once() {
    // The outer agent's address is not free for the inner one.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for variables in [&[][..], &[("OPIK_OFFLINE_LISTEN", &*free)], &[("OPIK_OFFLINE_INTAKE_TOKEN", "t/4711")]] {
        let (home, server) = (Home::new(), FakeOpik::new_stopped());
        let inner = format!("$BINARY agent -- sh -c '{}'", SEND.replace('\'', r"'\''"));
        let output = shell(&home, &server, variables, &inner);
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        let passes_on = format!("which forwards to {}\n", server.url());
        assert_eq!(output.stderr.matches(&passes_on).count(), 2, "{}", output.stderr);
        assert_eq!(output.stderr.matches("1 message stays safely stored in ").count(), 2, "{}", output.stderr);

        server.start();
        let output = shell(&home, &server, variables, &inner);
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        assert_eq!(output.stderr.matches("nothing waits to be delivered").count(), 2, "{}", output.stderr);
        assert_eq!(traces(&server), 2);
        let writes = server.requests().into_iter().filter(|request| !request.writes.is_empty());
        assert_eq!(writes.count(), 2, "a message took a detour");
    }
}

#[test]
fn an_address_that_an_agent_has_is_left_to_it_unless_a_flag_names_it() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let address = format!("127.0.0.1:{}", agent.port());
    let home = Home::new();
    let by_variable = shell(&home, &server, &[("OPIK_OFFLINE_LISTEN", &address)], SEND);
    assert_eq!(by_variable.code(), Some(0), "{}", by_variable.stderr);
    let note = format!(
        "{address} (environment OPIK_OFFLINE_LISTEN) is in use by another agent or program, so a free port is used"
    );
    assert!(by_variable.stderr.contains(&note), "{}", by_variable.stderr);

    let folder = home.path().join("config/opik-offline");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.yaml"), format!("listen: \"{address}\"\n")).unwrap();
    let by_file = shell(&home, &server, &[], SEND);
    assert_eq!(by_file.code(), Some(0), "{}", by_file.stderr);
    assert_eq!(traces(&server), 2);

    let by_flag = run(&mut wrapping(&home, &home.db(), &server.url(), &["--listen", &address], &["true"]));
    assert_eq!(by_flag.code(), Some(6), "{}", by_flag.stderr);
}

#[test]
fn a_wrapped_command_behind_another_agent_reports_who_took_its_writes() {
    let (home, server) = (Home::new(), FakeOpik::new_stopped());
    let mut agent = Agent::start(&server);
    // As in an environment that leads all applications of a machine to its agent.
    let url = agent.url();
    let address = format!("127.0.0.1:{}", agent.port());
    let through = |home: &Home| {
        let mut command = home.command(BINARY);
        command.args(["agent", "--", "sh", "-c", SEND]).env("OPIK_OFFLINE_LISTEN", &address);
        run(command.env("OPIK_URL_OVERRIDE", &url))
    };
    let output = through(&home);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    let took = format!("1 write went straight to the agent at {address}, which stores what its server does not accept");
    assert!(output.stderr.contains(&took), "{}", output.stderr);
    assert_eq!(agent.backlog(), 1);

    // While it is down, the address is still its own.
    assert!(agent.terminate().success());
    let output = through(&home);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert!(output.stderr.contains("1 message stays safely stored in "), "{}", output.stderr);
    agent.restart_on_same_port();
    server.start();
    let replayed = home.cli(&["replay"]);
    assert_eq!(replayed.code(), Some(0), "{}{}", replayed.stdout, replayed.stderr);
    agent.wait_until_delivered();
    assert_eq!(traces(&server), 2);
}
