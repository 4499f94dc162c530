//! `agent --background`: one agent for a user, a server and a store, however many start it and however it ends.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::json;

use crate::support::agent::{Home, program};
use crate::support::background::{BackgroundHome, pid_of, signal, wait_until_gone};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::Client;
use crate::support::process::run;
use crate::support::{PATIENCE, uuid7, wait_until};

const TRACES: &str = "/v1/private/traces/batch";

/// Sends a trace to an agent, which acknowledges it.
#[track_caller]
fn write(url: &str) {
    let trace = json!({ "id": uuid7(), "name": "t", "project_name": "p", "start_time": "2026-01-01T00:00:00Z" });
    let answer = Client::new(url).post(TRACES, &json!({ "traces": [trace] }));
    assert_eq!(answer.status, 204, "{}", answer.text());
}

#[test]
fn twenty_processes_that_start_at_once_get_one_agent() {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let start = || {
        let mut command = home.command(program());
        command.args(["agent", "--background", "--format", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    };
    let starters: Vec<Child> = (0..20).map(|_| start()).collect();
    let reports: Vec<serde_json::Value> = starters
        .into_iter()
        .map(|starter| {
            let output = starter.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice(&output.stdout).expect("a document")
        })
        .collect();
    let started = reports.iter().filter(|report| report["started"] == true).count();
    assert_eq!(started, 1, "more than one of them says that it started the agent");
    assert!(reports.iter().all(|report| report["pid"] == reports[0]["pid"] && report["url"] == reports[0]["url"]));
    assert_eq!(home.log().matches("listening on").count(), 1, "{}", home.log());

    // What one of them writes is kept while the server is away, and stopping says so.
    write(reports[7]["url"].as_str().expect("a URL"));
    let stopped = home.stop();
    assert_eq!((&stopped["stopped"], &stopped["waiting"]), (&json!(true), &json!(1)), "{stopped}");
    wait_until_gone(pid_of(&reports[0]));
    server.start();
    let again = home.launch(&[]);
    assert_eq!(again["url"], reports[0]["url"], "programs that have the address don't find the next agent");
    wait_until("the trace to be delivered", PATIENCE, || server.count("default", Kind::Trace) == 1);
}

#[test]
fn a_killed_agent_is_replaced_on_its_port_and_a_stranger_at_its_port_is_not_taken_for_it() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    let first = home.launch(&[]);
    signal(pid_of(&first), Signal::KILL);
    wait_until_gone(pid_of(&first));
    let second = home.launch(&[]);
    assert_eq!((&second["started"], &second["url"]), (&json!(true), &first["url"]), "{second}");

    signal(pid_of(&second), Signal::KILL);
    wait_until_gone(pid_of(&second));
    let address = first["url"].as_str().and_then(|url| url.strip_prefix("http://")?.strip_suffix("/api"));
    let (address, mut stranger) = (address.expect("an address"), None);
    // Another test may have got the port meanwhile.
    wait_until("the port is free", PATIENCE, || {
        stranger = TcpListener::bind(address).ok();
        stranger.is_some()
    });
    let stranger = stranger.expect("it was waited for");
    std::thread::spawn(move || {
        use std::io::{BufRead as _, BufReader, Write as _};
        for mut connection in stranger.incoming().flatten() {
            let head = BufReader::new(&connection).lines();
            head.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let proof = json!({ "proof": "00", "pid": 1, "is_closing": false, "problem": null }).to_string();
            let _ = write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{proof}", proof.len());
        }
    });
    let third = home.launch(&[]);
    assert_ne!(third["url"], first["url"], "traces and keys would go to a stranger");
    assert_eq!(third["started"], true);
    assert_eq!(home.launch(&[])["started"], false, "the new one is found");
}

#[test]
fn an_agent_ends_when_it_is_idle_and_never_with_messages_waiting() {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let report = home.launch(&["--idle-exit", "1s"]);
    write(report["url"].as_str().expect("a URL"));
    server.start();
    wait_until_gone(pid_of(&report));
    assert_eq!(server.count("default", Kind::Trace), 1, "it ended before it delivered");
    assert!(home.log().contains("idle"), "{}", home.log());
    assert_eq!(home.stop()["stopped"], false, "an agent that has ended is not there to be stopped");
}

#[test]
fn an_agent_that_cannot_start_or_store_is_reported_with_its_reason_and_left_behind_nowhere() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let failed = home.agent(&["--background", "--listen", &address]);
    assert_eq!(failed.code(), Some(6), "{}", failed.stderr);
    assert!(failed.stderr.contains("cannot listen on") && failed.stderr.contains(&address), "{}", failed.stderr);
    drop(taken);

    let blocked = home.home.path().join("file");
    std::fs::write(&blocked, "dear diary").expect("it can be written");
    let store = blocked.display().to_string();
    let failed = home.agent(&["--background", "--db", &store]);
    assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("NOT PROTECTED"), "{}", failed.stderr);
    let stopped = home.agent(&["--stop", "--db", &store]);
    assert!(stopped.stdout.contains("no background agent"), "an unprotected agent was left: {}", stopped.stdout);
}

#[test]
fn the_port_file_is_private_and_the_agent_serves_its_own_server_only() {
    let (server, other) = (FakeOpik::start_new(), FakeOpik::start_new());
    let home = BackgroundHome::new(&server.url());
    let report = home.launch(&[]);
    let folder = home.folder();
    let mode = |path: &std::path::Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for file in ["lock", "agent.json", "agent.log"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    let another = home.launch(&["--upstream", &other.url()]);
    assert_ne!(another["pid"], report["pid"], "messages would go to another server");
    // The shell that evaluates the output is led to the agent, and this program in it to the server.
    let output = home.agent(&["--background"]);
    let script = format!("{}\n\"$0\" agent --background --format json", output.stdout);
    let mut shell = home.command("sh");
    let inner = run(shell.arg("-c").arg(script).arg(program()));
    assert_eq!(inner.json()["pid"], report["pid"], "an agent in front of an agent: {}", inner.stderr);
    let printed = home.agent(&["--background", "--print-url"]);
    assert_eq!(printed.stdout.trim(), report["url"].as_str().expect("a URL"));
}

#[test]
fn a_folder_that_others_may_control_is_refused() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    let elsewhere = Home::new();
    let state = home.home.path().join("state/opik-offline");
    std::fs::create_dir_all(&state).expect("a folder");
    std::os::unix::fs::symlink(elsewhere.path(), state.join("agents")).expect("a link");
    let refused = home.agent(&["--background"]);
    assert_eq!(refused.code(), Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("cannot trust"), "{}", refused.stderr);
}
