//! `healthcheck`: a line for each thing that was looked at, and an exit code that means it.

use std::time::Duration;

use opik_offline::message::{Effect, EntityKind, MessageType};
use opik_offline::shutdown::Shutdown;
use opik_offline::upstream::{Upstream, UpstreamSettings};
use serde_json::json;

use crate::sandbox::{API_KEY, BINARY, Sandbox, TRACE, assert_text, create_trace, message, open, team, team_of};
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, FilesIn, Then, When};
use crate::support::http::Client;
use crate::support::process::run;
use crate::support::{PATIENCE, noise, wait_until};

#[test]
fn healthcheck_reports_every_check_and_the_origin_of_every_setting() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server).with_env("OPIK_API_KEY", API_KEY);
    std::fs::write(sandbox.home.path().join(".opik.config"), "[opik]\nworkspace = team\n").unwrap();
    let all = sandbox.run(&["healthcheck", "-v"]);
    for line in [
        "workspace                         team  ",
        "  ~/.opik.config\n",
        "retry_interval                    10s  ",
        "  environment OPIK_API_KEY\n",
    ] {
        assert!(all.contains(line), "{line:?} is not in\n{all}");
    }
    let well = sandbox.run(&["healthcheck"]);
    assert!(well.starts_with("ok file "), "checks come first: {well}");
    let (_, settings) = well.split_once("\n\nsetting ").expect("the settings come after the checks");
    assert!(settings.contains("\nworkspace ") && settings.contains("  ~/.opik.config\n"), "{well}");
    assert!(!settings.contains("retry_interval"), "a default is shown: {well}");
    assert!(settings.contains(" with the default value: `opik-offline healthcheck -v "), "{well}");
    assert_text(
        &sandbox.run(&["healthcheck", "-q"]),
        "
ok file          HOME/.opik.config was read
-- file          HOME/config/opik-offline/config.yaml does not exist, and is optional
ok configuration no known mistakes
ok server        SERVER answers in N ms, version 2.2.0
ok access        this key has access to workspace team
!! store         HOME/opik_messages.db: sound, SIZE
                 hint: widen UUID_VALIDATION_WINDOW on the Opik server (at most 45d), turn UUID_VALIDATION_ENABLED off, or add the workspace's id to OPIK_UUID_VALIDATION_BYPASS_WORKSPACES there
-- encryption    off
ok disk          N UNIT free, of which 256.0 MiB are reserved
-- agent         not running
                 hint: start it with `opik-offline agent --db HOME/opik_messages.db`, or in front of a command: `opik-offline agent --db HOME/opik_messages.db -- COMMAND`
xx messages      4 messages wait for SERVER, and no agent delivers them; 1 message was rejected
                 hint: start `opik-offline agent --db HOME/opik_messages.db`, or deliver them with `opik-offline replay --db HOME/opik_messages.db`; see `opik-offline inspect --rejected --db HOME/opik_messages.db`; then send it again with `opik-offline replay --rejected --db HOME/opik_messages.db`, or delete it with `opik-offline purge --rejected --db HOME/opik_messages.db`
--- exit 4
",
    );
}

#[test]
fn healthcheck_ends_as_its_manual_says() {
    assert_text(
        &Sandbox::new().run(&["healthcheck", "-q", "--smoke-test"]),
        "
-- file          HOME/.opik.config does not exist, and is optional
-- file          HOME/config/opik-offline/config.yaml does not exist, and is optional
ok configuration no known mistakes
xx server        cannot connect to SERVER: connection refused
                 hint: start the server, check the network, or choose another server with --upstream
-- access        not checked without a server
!! store         HOME/opik_messages.db: there is no message store, named by environment OPIK_OFFLINE_DB
                 hint: check the path; an agent makes the file when it starts
-- encryption    off
ok disk          N UNIT free, of which 256.0 MiB are reserved
-- agent         not running
                 hint: start it with `opik-offline agent --db HOME/opik_messages.db`, or in front of a command: `opik-offline agent --db HOME/opik_messages.db -- COMMAND`
-- smoke test    not tried while a check fails
--- exit 3
",
    );
    let server = FakeOpik::start_new();
    let not_found = server.script(When::any(), Then::status(404));
    assert!(Sandbox::new().with_server(&server).run(&["healthcheck", "-q"]).ends_with("--- exit 3\n"));
    not_found.clear();
    server.script(When::path("/v1/private/auth"), Then::status(401));
    let refused = Sandbox::new().with_server(&server).run(&["healthcheck", "-q"]);
    assert!(refused.contains("xx access        the server answers 401 for workspace default\n"), "{refused}");
    assert!(refused.ends_with("--- exit 5\n"), "{refused}");
    for (status, mark, exit) in
        [(400, "xx", 5), (404, "--", 0), (409, "xx", 5), (429, "xx", 3), (500, "xx", 3), (503, "xx", 3)]
    {
        server.clear_script();
        server.script(When::path("/v1/private/auth"), Then::status(status));
        let found = Sandbox::new().with_server(&server).run(&["healthcheck", "-q"]);
        assert!(found.contains(&format!("{mark} access        the server ")), "{status}: {found}");
        assert!(found.ends_with(&format!("--- exit {exit}\n")), "{status}: {found}");
    }
    server.clear_script();
    let broken = Sandbox::new().with_server(&server);
    std::fs::write(broken.home.db(), "no database").unwrap();
    assert!(broken.run(&["healthcheck", "-q"]).ends_with("--- exit 1\n"));
    let malformed = Sandbox::new().with_server(&server).with_env("OPIK_REPLAY_BATCH_SIZE", "x");
    assert!(malformed.run(&["healthcheck", "-q"]).ends_with("--- exit 2\n"));
}

#[test]
fn a_disk_without_room_and_a_place_that_cannot_be_written_are_failures_before_anything_is_stored() {
    let server = FakeOpik::start_new();
    let full = Sandbox::new().with_server(&server).with_env("OPIK_OFFLINE_FREE_DISK_RESERVE", "1000000TiB");
    let found = full.run(&["healthcheck", "-q"]);
    assert!(found.contains(" are reserved: no new message can be stored\n"), "{found}");
    assert!(found.contains("hint: free disk space, ") && found.ends_with("--- exit 1\n"), "{found}");
    let nowhere = Sandbox::new().with_server(&server);
    std::fs::write(nowhere.home.path().join("file"), "").unwrap();
    let below = nowhere.home.path().join("file/opik.db");
    let found = nowhere.run(&["healthcheck", "-q", "--db", below.to_str().unwrap()]);
    assert!(found.contains("xx disk          this user cannot write to HOME/file\n"), "{found}");
    assert!(found.ends_with("--- exit 1\n"), "{found}");
    let holding = |characters| {
        let sandbox = Sandbox::new().with_server(&server).with_env("OPIK_OFFLINE_MAX_SIZE", "1MiB");
        let body = json!({ "id": TRACE, "input": noise(characters) });
        let touches = [(EntityKind::Trace, TRACE, Effect::Create)];
        let large = message(0, &team(), MessageType::CreateTrace, ("POST", "v1/private/traces"), &touches, &body);
        open(&sandbox.home.db()).register(&[large]).unwrap();
        sandbox.run(&["healthcheck", "-q"])
    };
    let found = holding(1_120_000);
    assert!(found.contains("!! store ") && found.contains("hint: replay or purge messages, or raise"), "{found}");
    assert!(found.ends_with("--- exit 4\n"), "it works still, and its message waits: {found}");
    let found = holding(1_200_000);
    assert!(found.contains("xx store ") && found.contains("`opik-offline replay --db "), "{found}");
    assert!(found.ends_with("--- exit 1\n"), "new messages are refused: {found}");
}

#[test]
fn a_smoke_test_writes_a_trace_and_reads_it_back() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::new().with_server(&server).with_env("OPIK_API_KEY", API_KEY);
    let tried = sandbox.run(&["healthcheck", "-q", "--smoke-test"]);
    assert!(
        tried.ends_with(
            "ok smoke test    trace ID with a span and an image, written in N ms and read back after N ms, \
             project smoke-test-project\n--- exit 0\n"
        ),
        "{tried}"
    );
    assert_eq!((server.count("default", Kind::Trace), server.count("default", Kind::Span)), (1, 1));
    assert!(
        server.requests().iter().all(|request| {
            !request.path.contains("/private/") || request.authorization.as_deref() == Some(API_KEY)
        })
    );
    let files = server.files();
    assert_eq!(files.len(), 1);
    assert!(
        files
            .values()
            .all(|file| file.bytes == 70 && file.mime_type.as_deref() == Some("image/png") && file.after_entity),
        "{files:?}"
    );

    // The server keeps files elsewhere.
    server.keep_files_in(FilesIn::ObjectStore);
    assert!(sandbox.run(&["healthcheck", "-q", "--smoke-test"]).ends_with("--- exit 0\n"));
    assert_eq!(server.files().len(), 2);

    // The server writes late.
    let late = server.script_times(3, When::path("/v1/private/traces/*").method("GET"), Then::status(404));
    let json = sandbox.output(&["healthcheck", "--smoke-test", "--project-name", "mine", "--format", "json"]).json();
    assert_eq!(late.hits(), 3);
    late.clear();
    let id = json["smoke_test"]["trace_id"].as_str().unwrap();
    let fields = server.entity("default", Kind::Trace, id).unwrap().record.unwrap().fields;
    assert_eq!((&fields["project_name"], &json["smoke_test"]["project"]), (&"mine".into(), &"mine".into()));
    assert_eq!((&json["healthy"], &json["schema_version"]), (&true.into(), &1.into()));
    server.assert_no_violations();
}

#[test]
fn a_smoke_test_fails_with_the_servers_words_and_an_exit_code_that_means_it() {
    for (when, then, says, exit) in [
        (
            When::path("/v1/private/traces"),
            Then::status(403),
            "the server answers 403 to a trace: scripted by the test\n",
            5,
        ),
        (
            When::path("/v1/private/spans"),
            Then::status(400),
            "the server answers 400 to a span: scripted by the test\n",
            1,
        ),
        (
            When::path("/v1/private/attachment/upload-start"),
            Then::status(403),
            "the server answers 403 to an attachment: scripted by the test\n",
            5,
        ),
        (
            When::path("/v1/private/spans/*").method("GET"),
            Then::Answer(Answer::error(401, "no reader")),
            "the server answers 401 to a read of what it took: no reader\n",
            5,
        ),
        (When::path("/v1/private/traces"), Then::ResetUnread, "the connection to SERVER broke: ", 3),
    ] {
        let server = FakeOpik::start_new();
        server.script(when, then);
        let found = Sandbox::new().with_server(&server).run(&["healthcheck", "-q", "--smoke-test"]);
        assert!(found.contains(&format!("xx smoke test    {says}")), "{says}: {found}");
        assert!(found.contains("\n                 hint: "), "{found}");
        assert!(found.ends_with(&format!("--- exit {exit}\n")), "{found}");
        let json =
            Sandbox::new().with_server(&server).output(&["healthcheck", "--smoke-test", "--format", "json"]).json();
        assert_eq!((&json["healthy"], &json["smoke_test"]), (&false.into(), &serde_json::Value::Null));
    }

    // Taken, and never shown: only the time ends that.
    let server = FakeOpik::start_new();
    server.script(When::path("/v1/private/traces/*").method("GET"), Then::status(404));
    let upstream = Upstream::new(&UpstreamSettings::plain(server.url(), PATIENCE));
    let failure = upstream.smoke_test(&team(), "demo", Duration::ZERO, &Shutdown::new()).unwrap_err().to_string();
    assert!(failure.ends_with(", and does not show its trace within 0 s"), "{failure}");

    let alone = Sandbox::new().run(&["healthcheck", "--project-name", TRACE]);
    assert!(alone.contains("--smoke-test") && alone.ends_with("--- exit 2\n"), "{alone}");
}

#[test]
fn healthcheck_waits_until_all_is_well() {
    let server = FakeOpik::new_stopped();
    let sandbox = Sandbox::new().with_server(&server);
    let (stdout, code) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let output = sandbox.output(&["healthcheck", "-q", "--wait", "60s"]);
            (output.stdout.clone(), output.code())
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!waiting.is_finished(), "the server is not there yet");
        server.start();
        waiting.join().unwrap()
    });
    assert_eq!(code, Some(0), "{stdout}");
    server.stop();
    assert_eq!(sandbox.output(&["healthcheck", "--wait", "100ms"]).code(), Some(3));
}

#[test]
fn an_agent_whose_own_server_is_away_is_not_healthy_beside_another_server() {
    let (away, healthy) = (FakeOpik::new_stopped(), FakeOpik::start_new());
    let agent = Agent::builder(&away.url()).impatient().start();
    open(&agent.db()).register(&[create_trace(0, &team_of(&away.url()), TRACE)]).unwrap();
    let check = || {
        let mut command = agent.home().command(BINARY);
        run(command.args(["healthcheck", "-q", "--upstream", &healthy.url(), "--db"]).arg(agent.db()))
    };
    let says = format!(
        "xx agent         running on 127.0.0.1:{}, and its server {} is unavailable: cannot connect to ",
        agent.port(),
        away.url()
    );
    wait_until("it is seen", PATIENCE, || check().stdout.contains(&says));
    let found = check();
    let waits = format!("!! messages      1 message waits for {}, and the agent delivers it once ", away.url());
    assert!(found.stdout.contains(&waits), "{}", found.stdout);
    assert!(found.stdout.contains("ok server        "), "{}", found.stdout);
    assert_eq!(found.code(), Some(3), "{}", found.stdout);
    away.start();
    let delivers = format!("delivers to {}, another server than the one checked here", away.url());
    wait_until("all is well", PATIENCE, || check().stdout.contains(&delivers));
    assert_eq!(check().code(), Some(0), "{}", check().stdout);
}

#[test]
fn messages_for_another_server_are_delivered_by_the_command_that_is_suggested() {
    let (own, other) = (FakeOpik::start_new(), FakeOpik::start_new());
    let sandbox = Sandbox::new().with_server(&own);
    open(&sandbox.home.db()).register(&[create_trace(0, &team_of(&other.url()), TRACE)]).unwrap();
    let found = sandbox.run(&["healthcheck", "-q"]);
    let way = format!("`opik-offline replay --upstream {} --db HOME/opik_messages.db`", other.url());
    assert!(found.contains(&way), "{found}");
    let replayed = sandbox.run(&["replay", "--upstream", &other.url()]);
    assert!(replayed.starts_with("delivered 1 message "), "{replayed}");
}

/// An agent with a stored trace, whose server is away.
fn agent_with_a_message(server: &FakeOpik) -> Agent {
    let agent = Agent::start(server);
    server.stop();
    let trace = json!({ "id": TRACE, "start_time": "2026-01-02T03:04:05Z" });
    assert_eq!(Client::new(&agent.url()).post("/v1/private/traces", &trace).status, 201);
    agent
}

#[test]
fn a_hold_is_named_and_nothing_is_called_delivered() {
    let server = FakeOpik::start_new();
    let mut agent = agent_with_a_message(&server);
    assert_eq!(agent.cli(&["replay", "--hold", "30m"]).code(), Some(0));
    server.start();
    let check = || agent.cli(&["healthcheck", "-q"]);
    wait_until("the agent finds the server", PATIENCE, || check().stdout.contains(", delivers to "));
    let found = check();
    assert_eq!(found.code(), Some(0), "{}", found.stdout);
    assert!(found.stdout.contains("!! messages      replay is held until "), "{}", found.stdout);
    assert!(found.stdout.contains("hint: `opik-offline replay --resume --db "), "{}", found.stdout);
    assert!(!found.stdout.contains("delivers it"), "{}", found.stdout);
    agent.terminate();
    let alone = agent.cli(&["healthcheck", "-q"]);
    assert_eq!(alone.code(), Some(4), "{}", alone.stdout);
    assert!(alone.stdout.contains("; 1 message waits for ") && alone.stdout.contains("no agent runs for it"));
    assert!(!alone.stdout.contains("deliver it with"), "{}", alone.stdout);
}

#[test]
fn a_lane_whose_key_is_refused_is_not_healthy() {
    let server = FakeOpik::start_new();
    let agent = agent_with_a_message(&server);
    server.script(When::write(), Then::status(401));
    server.start();
    let check = || agent.cli(&["healthcheck", "-q"]);
    wait_until("the lane is held", PATIENCE, || check().code() == Some(5));
    let found = check().stdout;
    assert!(found.contains("xx messages      workspace default") && found.contains(" is held, retried "), "{found}");
    assert!(found.contains("401") && found.contains("`opik-offline replay --rekey "), "{found}");
    assert!(!found.contains("the agent delivers it"), "{found}");
}

#[test]
fn a_server_that_fails_is_not_blamed_on_its_url() {
    let server = FakeOpik::start_new();
    for answer in [Answer::error(500, "Not Healthy"), Answer::raw(502, "text/html", "<title>Bad Gateway</title>")] {
        server.clear_script();
        server.script(When::any(), Then::Answer(answer));
        for args in [&["healthcheck", "-q"][..], &["status"], &["replay"]] {
            let found = Sandbox::filled().with_server(&server).run(args);
            assert!(found.contains("Not Healthy") || found.contains("Bad Gateway"), "{args:?}: {found}");
            assert!(found.contains("check its log") || found.contains("check the server's log"), "{args:?}: {found}");
            assert!(!found.contains("--upstream"), "{args:?}: {found}");
        }
    }
    server.clear_script();
    server.status_all(404);
    let found = Sandbox::filled().with_server(&server).run(&["replay"]);
    assert!(found.contains("check that --upstream is the URL of the API"), "{found}");
}

/// Only hints of our own are completed with the options in force.
#[test]
fn a_command_in_the_words_of_a_server_stays_as_the_server_wrote_it() {
    let server = FakeOpik::start_new();
    server.script(When::any(), Then::Answer(Answer::error(500, "run `opik-offline purge --yes` now")));
    for (args, is_shown) in [
        (&["healthcheck", "-q"][..], true),
        (&["status"], true),
        (&["replay"], true),
        (&["agent", "--", "true"], false),
    ] {
        let sandbox = Sandbox::filled().with_server(&server).with_env("OPIK_OFFLINE_LISTEN", "127.0.0.1:0");
        let found = sandbox.run(args);
        assert!(!is_shown || found.contains("run `opik-offline purge --yes` now"), "{args:?}: {found}");
        assert!(!found.contains("purge --yes --db"), "it looks like a hint of ours: {args:?}: {found}");
        assert!(found.contains("`opik-offline replay --db HOME/") || args[0] == "replay", "{args:?}: {found}");
    }
}

#[test]
fn a_log_in_json_has_the_commands_that_a_log_in_text_has() {
    let server = FakeOpik::start_new();
    let command = "`opik-offline replay --upstream http://127.0.0.1:9/api --db HOME/opik_messages.db`";
    for format in ["text", "json"] {
        let sandbox = Sandbox::filled()
            .with_env("OPIK_OFFLINE_UPSTREAM", &server.url())
            .with_env("OPIK_OFFLINE_LISTEN", "127.0.0.1:0")
            .with_env("OPIK_OFFLINE_LOG_FORMAT", format);
        let found = sandbox.run(&["agent", "--", "true"]);
        assert!(
            found.contains("4 messages in this store are for http://127.0.0.1:9/api: ") || found.contains("SERVER: "),
            "{found}"
        );
        assert!(found.replace("SERVER", "http://127.0.0.1:9/api").contains(command), "{format}: {found}");
    }
}
