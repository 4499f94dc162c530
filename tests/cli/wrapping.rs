//! `agent -- COMMAND`: the agent's lines around the command's own output.

use crate::sandbox::{Sandbox, assert_text};
use crate::support::fake_opik::{FakeOpik, Then, When};

const SEND: &str = r#"curl -sf -o /dev/null "$OPIK_URL_OVERRIDE/v1/private/traces" -H 'Content-Type: application/json' -d '{"start_time": "2026-01-02T03:04:05Z", "project_name": "demo"}'; exit 3"#;

fn sandbox(server: &FakeOpik) -> Sandbox {
    Sandbox::new().with_server(server).with_env("OPIK_OFFLINE_LISTEN", "127.0.0.1:0")
}

#[test]
fn a_wrapped_command_is_framed_by_a_line_at_each_end() {
    let server = FakeOpik::start_new();
    assert_text(
        &sandbox(&server).run(&["agent", "--", "sh", "-c", "echo its own output"]),
        "
its own output
--- stderr
opik-offline: sh sends to http://127.0.0.1:PORT/api, which forwards to SERVER
opik-offline: sh sent nothing to Opik, and nothing waits to be delivered
--- exit 0
",
    );
    assert_text(
        &sandbox(&server).run(&["agent", "--", "sh", "-c", SEND]),
        "
--- stderr
opik-offline: sh sends to http://127.0.0.1:PORT/api, which forwards to SERVER
opik-offline: nothing waits to be delivered: 1 write went straight to SERVER
--- exit 3
",
    );
    assert_text(&sandbox(&server).run(&["agent", "-q", "--", "sh", "-c", SEND]), "--- exit 3\n");
}

/// `curl -f` fails at the same answers.
#[test]
fn writes_that_the_server_refused_are_counted_apart() {
    for status in [400, 401, 404] {
        let server = FakeOpik::start_new();
        server.script(When::path("/v1/private/traces"), Then::status(status));
        let found = sandbox(&server).run(&["agent", "--", "sh", "-c", SEND]);
        let says = format!(
            "opik-offline: nothing waits to be delivered\n\
             opik-offline: SERVER refused 1 write (1 x {status}), as sh was told; it is not stored\n--- exit 3\n"
        );
        assert!(found.ends_with(&says), "{status}: {found}");
        server.clear_script();
        server.script_times(1, When::path("/v1/private/traces"), Then::status(status));
        let twice = format!("({SEND}); {SEND}");
        let found = sandbox(&server).run(&["agent", "--", "sh", "-c", &twice]);
        assert!(
            found.contains("nothing waits to be delivered: 1 write went straight to SERVER\n"),
            "{status}: {found}"
        );
        let says = format!("SERVER refused 1 write (1 x {status}), as sh was told");
        assert!(found.contains(&says), "{status}: {found}");
    }
}

#[test]
fn an_answer_of_5xx_while_nothing_can_be_stored_is_no_success() {
    let server = FakeOpik::start_new();
    server.script(When::path("/v1/private/traces"), Then::status(500));
    let sandbox = sandbox(&server).with_env("OPIK_CONSOLE_LOGGING_LEVEL", "CRITICAL");
    std::fs::write(sandbox.home.db(), "dear diary").unwrap();
    let found = sandbox.run(&["agent", "--", "sh", "-c", SEND]);
    assert!(found.contains("opik-offline: 0 writes went straight to SERVER; "), "{found}");
    assert!(
        found.contains("opik-offline: SERVER refused 1 write (1 x 500), as sh was told; it is not stored\n"),
        "{found}"
    );
}

#[test]
fn remaining_messages_are_reported_with_reason_and_next_step() {
    let server = FakeOpik::new_stopped();
    let sandbox = sandbox(&server).with_env("OPIK_CONSOLE_LOGGING_LEVEL", "ERROR");
    assert_text(
        &sandbox.run(&["agent", "--", "sh", "-c", SEND]),
        "
--- stderr
opik-offline: sh sends to http://127.0.0.1:PORT/api, which forwards to SERVER
opik-offline: 1 message stays safely stored in HOME/opik_messages.db: the Opik server is away (cannot connect to SERVER: connection refused)
opik-offline: deliver later with `opik-offline replay --db HOME/opik_messages.db`, or with an agent for that server
--- exit 3
",
    );
    server.start();
    let replayed = sandbox.run(&["replay"]);
    assert!(replayed.starts_with("delivered 1 message in "), "{replayed}");
}

#[test]
fn a_command_that_cannot_be_started_is_named() {
    let server = FakeOpik::start_new();
    assert_text(
        &sandbox(&server).run(&["agent", "--", "no-such-program", "--flag"]),
        "
--- stderr
error: cannot start no-such-program: no such program
hint: check the spelling and PATH; after -- comes a program with its arguments
--- exit 127
",
    );
    let found = sandbox(&server).run(&["agent", "--", "/"]);
    assert!(found.contains("error: cannot start /: ") && found.ends_with("--- exit 126\n"), "{found}");
    let found = sandbox(&server).run(&["agent", "python", "app.py"]);
    assert!(
        found.contains("\n  tip: put a command to run after two dashes: opik-offline agent -- python app.py\n"),
        "{found}"
    );
    assert!(found.ends_with("--- exit 2\n"), "{found}");
    let found = sandbox(&server).run(&["--db", "my store.db", "python", "my app.py"]);
    let tip =
        "\n  tip: put a command to run after two dashes: opik-offline --db 'my store.db' agent -- python 'my app.py'\n";
    assert!(found.contains(tip) && found.ends_with("--- exit 2\n"), "{found}");
    let found = sandbox(&server).run(&["agent", "--flush-timeout", "5s"]);
    assert!(found.contains("-- <COMMAND>...") && found.ends_with("--- exit 2\n"), "{found}");
}
