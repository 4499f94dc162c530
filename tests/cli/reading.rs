//! `status` and `inspect`: what a person reads.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::sandbox::{BINARY, Sandbox, TRACE, assert_text, create_trace, open, team_of};
use crate::support::agent::{Agent, Home};
use crate::support::background::BackgroundHome;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::process::{Written, run};
use crate::support::{PATIENCE, wait_until};

#[test]
fn status_before_anything_was_stored() {
    assert_text(
        &Sandbox::without_store().run(&["status"]),
        "
nothing waits; the Opik server is unavailable, and no agent keeps new messages: `opik-offline agent`

xx the Opik server is unavailable: cannot connect to SERVER: connection refused
   start the server, check the network, or name another server with --upstream

server       SERVER, unavailable
agent        not running
store        HOME/data/opik-offline/opik_messages.db (nothing was stored yet)
waiting      nothing
--- exit 0
",
    );
}

/// `/dev/shm` is in memory where it is mounted, and a folder of the disk where it is not.
#[test]
fn status_and_healthcheck_agree_on_a_file_system_that_keeps_less_than_a_disk() {
    let sandbox = Sandbox::without_store();
    let folder = sandbox.home.path().join("config/opik-offline");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.yaml"), "db: /dev/shm/opik-offline-is-not-here/x.db\n").unwrap();
    let document = |command: &str| -> Value {
        let output = sandbox.output(&["--format", "json", command]);
        serde_json::from_str(&output.stdout).expect("one document")
    };
    let status = document("status");
    let health = document("healthcheck");
    let checks = health["checks"].as_array().expect("a list of checks");
    let found = checks.iter().find(|check| check["name"] == "file system").map(|check| check["text"].clone());
    let told = status["store"]["file_system_problem"].as_str();
    assert_eq!(told.is_some(), found.is_some(), "one of them keeps silent: {told:?}, {found:?}");
    if let (Some(told), Some(found)) = (told, found) {
        assert!(found.as_str().is_some_and(|found| found.ends_with(told)), "{told}: {found}");
    }
}

#[test]
fn status_of_a_backlog() {
    let server = FakeOpik::start_new();
    assert_text(
        &Sandbox::filled().with_server(&server).run(&["status"]),
        "
4 messages are safe on disk, and nobody delivers them: `opik-offline replay --db HOME/opik_messages.db`; 1 was rejected

!! a create was accepted AGE ago: servers with UUID_VALIDATION_ENABLED refuse ids older than 24h
   deliver it: `opik-offline replay --db HOME/opik_messages.db`
!! 1 message was rejected by the server: 1 x 400 start_time must not be null
   see why: `opik-offline inspect --rejected --db HOME/opik_messages.db`; when the cause is fixed: `opik-offline replay --rejected --db HOME/opik_messages.db`

server       SERVER, available (N ms)
agent        not running
store        HOME/opik_messages.db, SIZE
encryption   off
waiting      4 messages with 6 items (748 B), the oldest for AGE
workspaces   team 3 waiting, 1 rejected; default 1 waiting
rejected     1 message (1 x 400)
time to go   nobody delivers it: start the agent or `opik-offline replay --db HOME/opik_messages.db`
last replay  AGE ago: 7 delivered, 1 rejected, 4 remained then

status    type              workspace  messages  items   size
waiting   CreateTrace       default           1      1  121 B
waiting   CreateTrace       team              1      1  121 B
waiting   UpdateTrace       team              1      1   57 B
waiting   CreateSpansBatch  team              1      3  449 B
rejected  CreateTrace       team              1      1  121 B
--- exit 0
",
    );
}

const LOOK: &str = "hint: `opik-offline status --db HOME/opik_messages.db` shows what waits and why; without an agent `opik-offline replay --db HOME/opik_messages.db` delivers it\n";

#[test]
fn status_alerts_with_exit_4_and_says_nothing_more_when_quiet() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["status", "-q", "--fail-if-backlog", "3"]),
        &format!("--- stderr\nerror: 4 messages wait, more than 3\n{LOOK}--- exit 4\n"),
    );
    assert_text(
        &sandbox.run(&["status", "-q", "--fail-if-older-than", "1h"]),
        &format!("--- stderr\nerror: a message has been waiting for AGE, longer than 1h\n{LOOK}--- exit 4\n"),
    );
    assert_text(
        &sandbox.run(&["status", "-q", "--fail-if-backlog", "4", "--fail-if-older-than", "100000d"]),
        "--- exit 0\n",
    );
    assert_text(&Sandbox::without_store().run(&["status", "-q", "--fail-if-backlog", "0"]), "--- exit 0\n");
}

#[test]
fn inspect_lists_what_is_stored() {
    // 325d12h, and 325d in one hour of the day.
    let is_age =
        |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('d') && word.ends_with(['d', 'h']);
    let ages = |text: String| {
        let lines = text.lines().map(|line| {
            line.split_whitespace().map(|word| if is_age(word) { "AGE" } else { word }).collect::<Vec<_>>().join(" ")
                + "\n"
        });
        lines.collect::<String>()
    };
    let sandbox = Sandbox::filled();
    assert_text(
        &ages(sandbox.run(&["inspect"])),
        "
id status type workspace project size age last answer
1 rejected CreateTrace team demo 121 B AGE 400 start_time must not be null
2 waiting CreateTrace team demo 121 B AGE
3 waiting CreateSpansBatch team demo 449 B AGE
4 waiting UpdateTrace team demo 57 B AGE
5 waiting CreateTrace default demo 121 B AGE
--- exit 0
",
    );
    assert_text(
        &ages(sandbox.run(&["inspect", "--newest", "--limit", "2", "--workspace", "team"])),
        "
id status type workspace project size age last answer
4 waiting UpdateTrace team demo 57 B AGE
3 waiting CreateSpansBatch team demo 449 B AGE
2 of 4 messages; more with --limit, others with --newest or filters
--- exit 0
",
    );
    assert_text(
        &sandbox.run(&["inspect", "--workspace", "nobody"]),
        "no message of workspace nobody is stored; there are: default, team\n--- exit 0\n",
    );
    assert_text(&Sandbox::without_store().run(&["inspect"]), "no message is stored\n--- exit 0\n");
    let of_trace = sandbox.output(&["inspect", "--trace", TRACE, "--format", "jsonl"]).stdout;
    assert_eq!(of_trace.lines().count(), 2, "the trace and its update: {of_trace}");
}

#[test]
fn inspect_shows_one_message_whole() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["inspect", "1"]),
        r#"
id            1
status        rejected
type          CreateTraceMessage
name          question
trace         019b7c3f-5f20-7000-8000-000000000003
request       POST v1/private/traces
server        SERVER
workspace     team
project       demo
accepted      AGE ago
items         1
size          121 B
attempts      1
last answer   400, AGE ago
              {"code":400,"message":"start_time must not be null"}
what to do    when the cause is fixed: `opik-offline replay --id 1 --db HOME/opik_messages.db`
              to discard it: `opik-offline purge --id 1 --db HOME/opik_messages.db`
header        content-type: application/json
header        x-private: ***

{
  "id": "019b7c3f-5f20-7000-8000-000000000003",
  "name": "question",
  "project_name": "demo",
  "start_time": "2026-01-02T03:04:05Z"
}
--- exit 0
"#,
    );
    let utc = sandbox.output(&["inspect", "1", "--utc"]).stdout;
    assert!(utc.contains("accepted      2026-01-02T03:04:05Z\nitems "), "{utc}");
    assert!(utc.contains("last answer   400, at 2026-01-02T03:05:05Z\n"), "{utc}");
    assert_text(
        &sandbox.run(&["inspect", "99"]),
        "
--- stderr
error: there is no message 99 in HOME/opik_messages.db
hint: it was delivered or purged, or it is in another store (--db); `opik-offline inspect --db HOME/opik_messages.db` lists the stored messages
--- exit 1
",
    );
}

#[test]
fn a_running_agent_is_seen() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    // An agent tells of itself in its store once it has one.
    server.stop();
    Client::new(&agent.url()).post("/v1/private/traces", &json!({ "id": TRACE, "start_time": "2026-01-02T03:04:05Z" }));
    wait_until("the agent is seen", PATIENCE, || {
        let status = agent.cli(&["status", "--format", "json"]).json();
        status["agent"]["running"] == true && status["server"]["connection"] == "unavailable"
    });
    let status = agent.cli(&["status"]).stdout;
    let running = format!("agent        running on 127.0.0.1:{} for ", agent.port());
    assert!(status.contains(&running) && status.contains(&format!("(pid {})\n", agent.pid())), "{status}");
    assert!(status.contains("waiting      1 message with 1 item ("), "{status}");
    let health = agent.cli(&["healthcheck", "-q"]);
    assert!(
        health.stdout.contains(&format!(
            "!! agent         running on 127.0.0.1:{}, and does not reach {}: ",
            agent.port(),
            server.url()
        )),
        "{}",
        health.stdout
    );
    assert_eq!(health.code(), Some(3));
    let stored = format!("1 message waits for {}, and the agent delivers it once that server is back", server.url());
    assert!(health.stdout.contains(&stored), "{}", health.stdout);
    server.start();
    wait_until("it is delivered", PATIENCE, || agent.backlog() == 0);
    let health = agent.cli(&["healthcheck", "-q"]);
    let running = format!("ok agent         running on 127.0.0.1:{}, delivers to {}\n", agent.port(), server.url());
    assert!(health.stdout.contains(&running) && health.code() == Some(0), "{}", health.stdout);
}

#[test]
fn without_an_agent_nothing_begins_when_the_server_is_back() {
    let status = Sandbox::filled().run(&["status"]);
    let begins = "time to go   begins when the server is back and `opik-offline agent --db HOME/opik_messages.db` or \
                  `opik-offline replay --db HOME/opik_messages.db` runs\n";
    assert!(status.contains(begins), "{status}");
}

#[test]
fn status_names_the_command_that_delivers_messages_for_another_server() {
    let (own, other) = (FakeOpik::start_new(), FakeOpik::start_new());
    let sandbox = Sandbox::new().with_server(&own);
    open(&sandbox.home.db()).register(&[create_trace(0, &team_of(&other.url()), TRACE)]).unwrap();
    let url = other.url();
    let verdict = format!(
        "1 message is safe on disk, for another server, {url}: `opik-offline replay --upstream {url} --db \
         HOME/opik_messages.db`\n"
    );
    for is_away in [false, true] {
        if is_away {
            own.stop();
        }
        let status = sandbox.run(&["status"]);
        assert!(status.starts_with(&verdict) && !status.contains("time to go"), "{is_away}: {status}");
    }
    let replayed = sandbox.run(&["replay", "--upstream", &url]);
    assert!(replayed.starts_with("delivered 1 message "), "{replayed}");
}

#[test]
fn a_server_that_refuses_every_write_is_not_all_well() {
    let server = FakeOpik::start_new();
    server.script(When::write(), Then::status(401));
    let agent = Agent::start(&server);
    let trace = json!({ "id": TRACE, "start_time": "2026-01-02T03:04:05Z" });
    for _ in 0..3 {
        assert_eq!(Client::new(&agent.url()).post("/v1/private/traces", &trace).status, 401);
    }
    let status = |args: &[&str]| {
        let mut command = agent.home().command(BINARY);
        command.args(["status", "--upstream", &server.url()]).args(args).arg("--db").arg(agent.db());
        run(command.env("OPIK_OFFLINE_LISTEN", format!("127.0.0.1:{}", agent.port())))
    };
    let refused = || status(&["--format", "json"]).json()["forwarded_refused"].clone();
    wait_until("it is told", PATIENCE, || refused()["writes"] == 3);
    assert_eq!(refused()["by_status"], json!([{ "status": 401, "writes": 3 }]));
    let text = status(&[]).stdout;
    assert!(
        text.starts_with("nothing waits, but the server refused 3 writes of applications: `opik-offline "),
        "{text}"
    );
    assert!(
        text.contains("!! the server refused 3 writes of applications since the agent started (last: 401 "),
        "{text}"
    );
    let told = Client::new(&format!("http://127.0.0.1:{}", agent.port())).get("/-/status.json").json();
    assert_eq!(told["forwarded_refused"]["last_status"], 401, "{told}");
}

#[test]
fn each_server_has_its_own_agent_on_one_store_and_a_stop_names_the_other() {
    let (one, two) = (FakeOpik::start_new(), FakeOpik::start_new());
    one.script(When::write(), Then::status(401));
    let home = BackgroundHome::new(&one.url());
    let first = home.launch(&[]);
    let write = |url: &Value| {
        let trace = json!({ "id": TRACE, "start_time": "2026-01-02T03:04:05Z" });
        Client::new(url.as_str().unwrap()).post("/v1/private/traces", &trace).status
    };
    assert_eq!(write(&first["url"]), 401);
    // An agent tells of itself in its store once it has one.
    one.stop();
    assert!((200..300).contains(&write(&first["url"])));
    let stop = || home.agent(&["--stop", "--upstream", &two.url()]).stdout;
    let (url, pid) = (one.url(), &first["pid"]);
    let named = format!(
        "the background agent for {url} (process {pid}) uses that store: `opik-offline agent --stop --upstream {url}` stops it\n"
    );
    wait_until("the agent that runs is named", PATIENCE, || stop().contains(&named));
    let second = home.launch(&["--upstream", &two.url()]);
    for (agent, server) in [(&first, &one), (&second, &two), (&first, &one)] {
        let ask = |args: &[&str]| run(home.command(BINARY).args(args).args(["--upstream", &server.url()]));
        let is_its_own = || ask(&["status", "--format", "json"]).json()["agent"]["pid"] == agent["pid"];
        wait_until("status shows the agent for this server", PATIENCE, is_its_own);
        let health = ask(&["healthcheck", "-q"]).stdout;
        assert!(!health.contains("another server than the one checked here"), "{health}");
    }
    assert_eq!(
        home.agent(&["--stop", "--upstream", &two.url(), "--format", "json"]).json()["forwarded_refused"]["writes"],
        0
    );
    let stopped = home.agent(&["--stop"]).stdout;
    assert!(stopped.contains("refused 1 write of applications (last: 401): they were told"), "{stopped}");
}

#[test]
fn an_agent_without_a_usable_store_passes_on_and_says_so() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    std::fs::write(home.db(), "dear diary").unwrap();
    let agent = Agent::builder(&server.url()).impatient().home(home).start();
    let trace = json!({ "id": TRACE, "start_time": "2026-01-02T03:04:05Z" });
    assert_eq!(Client::new(&agent.url()).post("/v1/private/traces", &trace).status, 201);
    assert_eq!(server.count("default", Kind::Trace), 1);
    wait_until("it warns", PATIENCE, || agent.stderr().contains("some network resiliency features were disabled"));
    let listen = format!("127.0.0.1:{}", agent.port());
    let mut status = agent.home().command(BINARY);
    status.args(["status", "--upstream", &server.url(), "--db"]).arg(agent.db()).env("OPIK_OFFLINE_LISTEN", listen);
    let status = run(&mut status);
    assert_eq!(status.code(), Some(1));
    assert!(status.stdout.contains("it only passes writes on: "), "{}", status.stdout);
    assert!(status.stdout.contains("waiting      unknown: the store can't be read\n"), "{}", status.stdout);
    assert_eq!(std::fs::read(agent.db()).unwrap(), b"dear diary", "the file was not touched");
}

#[test]
fn a_watch_that_is_piped_writes_blocks_until_it_is_interrupted() {
    let sandbox = Sandbox::filled();
    let mut watch = sandbox.command(&["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let written = Written::default();
    let reading = written.follow(watch.stdout.take().unwrap());
    wait_until("it is shown twice", PATIENCE, || written.text().matches("\nbacklog ").count() == 2);
    kill_process(Pid::from_child(&watch), Signal::INT).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(130));
    reading.join().unwrap();
    let text = written.text();
    assert!(!text.contains('\u{1b}'), "piped output drives no terminal: {text}");
    assert_eq!(text.matches("\n\n4 messages are safe on disk").count(), 1, "blocks are apart: {text}");
    assert!(text.contains("backlog      _ ") || text.contains("backlog      # "), "ASCII without a locale: {text}");
}

#[test]
fn status_is_asked_in_the_words_that_people_read_and_in_those_of_programs() {
    let sandbox = Sandbox::filled();
    let rows = |status: &str| {
        let shown = sandbox.run(&["inspect", "--status", status]);
        shown.lines().filter(|line| line.contains(" waiting ")).count()
    };
    assert_eq!((rows("waiting"), rows("failed"), rows("WAITING")), (4, 4, 4));
    let purge = sandbox.run(&["purge", "--dry-run", "--status", "waiting"]);
    assert!(purge.starts_with("would delete 4 messages"), "{purge}");
    let replay = sandbox.run(&["replay", "--dry-run", "--status", "sending"]);
    assert!(replay.contains("--- exit 0"), "{replay}");
    let json = sandbox.output(&["inspect", "--status", "waiting", "--format", "json"]).json();
    assert_eq!(json["messages"][0]["status"], "failed", "programs read the same as before");
}

#[test]
fn inspect_finds_a_text_in_bodies() {
    let sandbox = Sandbox::filled();
    let found = sandbox.run(&["inspect", "--search", "end_time"]);
    assert_eq!(found.lines().filter(|line| line.contains("UpdateTrace")).count(), 1, "{found}");
    assert_eq!(found.lines().count(), 3, "heading, row and exit code: {found}");
    let newest = sandbox.run(&["inspect", "--search", "question", "--newest", "--limit", "1"]);
    assert!(
        newest.contains("\n 5 waiting ") || newest.contains("\n5   waiting") || newest.contains(" 5  waiting"),
        "{newest}"
    );
    assert!(newest.contains("the first 1 message with this text; more with --limit"), "{newest}");
    assert_text(&sandbox.run(&["inspect", "--search", "nowhere"]), "no selected body has this text\n--- exit 0\n");
    let json = sandbox.output(&["inspect", "--search", "step", "--format", "json"]).json();
    assert_eq!(
        (&json["selected"], &json["messages"][0]["message_type"]),
        (&json!(1), &json!("CreateSpansBatchMessage"))
    );
    let lines = sandbox.output(&["inspect", "--search", "question", "--limit", "0", "--format", "jsonl"]).stdout;
    assert_eq!(lines.lines().count(), 3, "{lines}");
    let beside = sandbox.run(&["inspect", "--search", "x", "--fleet", "file:///nowhere"]);
    assert!(beside.contains("--search") && beside.ends_with("--- exit 2\n"), "{beside}");
}

#[test]
fn inspect_shows_the_columns_that_are_asked_for() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["inspect", "--columns", "status,name,trace,items,attempts,accepted", "--limit", "3"]),
        "
status    name      trace                                 items  attempts  accepted
rejected  question  019b7c3f-5f20-7000-8000-000000000003      1         1  2026-01-02T03:04:05Z
waiting   question  019b7c3f-5f20-7000-8000-000000000001      1         0  2026-01-02T03:04:06Z
waiting   step      019b7c3f-5f20-7000-8000-000000000001      3         0  2026-01-02T03:04:07Z
3 of 5 messages; more with --limit, others with --newest or filters
--- exit 0
",
    );
    let wide = sandbox.run(&["inspect", "-o", "wide"]);
    let head = wide.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(head, "id status type name trace workspace project items size attempts age next attempt last answer");
    assert!(sandbox.run(&["inspect", "--utc"]).contains("2026-01-02T03:04:05Z"));
    let unknown = sandbox.run(&["inspect", "--columns", "id,colour"]);
    assert!(unknown.contains("possible values: id, status") && unknown.ends_with("--- exit 2\n"), "{unknown}");
}

#[test]
fn inspect_counts_by_project_and_workspace() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["inspect", "--totals", "workspace"]),
        "
workspace  messages  waiting  rejected  held  items   size
team              4        3         1     0      6  748 B
default           1        1         0     0      1  121 B
all               5        4         1     0      7  869 B
--- exit 0
",
    );
    assert_text(
        &sandbox.run(&["inspect", "--totals", "project", "--rejected"]),
        "
project  messages  waiting  rejected  held  items   size
demo            1        0         1     0      1  121 B
--- exit 0
",
    );
    assert_text(
        &Sandbox::without_store().run(&["inspect", "--totals", "status"]),
        "no message is stored\n--- exit 0\n",
    );
}

#[test]
fn an_agent_with_another_store_is_named_with_what_waits_there() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    Client::new(&agent.url()).post("/v1/private/traces", &json!({ "id": TRACE, "start_time": "2026-01-02T03:04:05Z" }));
    wait_until("it is stored", PATIENCE, || agent.backlog() == 1);
    let db = agent.db().display().to_string();
    let other = || Sandbox::without_store().with_server(&server);
    let other = || other().with_env("OPIK_OFFLINE_LISTEN", &format!("127.0.0.1:{}", agent.port()));
    let named = format!(
        "the agent on 127.0.0.1:{} (pid {}) uses another store: 1 message waits there for SERVER, see `opik-offline status \
         --db {db}`",
        agent.port(),
        agent.pid()
    );
    let status = other().run(&["status"]);
    assert!(status.contains("agent        not running\n") && status.contains(&named), "{status}");
    assert!(status.contains("waiting      nothing\n"), "its own store: {status}");
    assert!(other().run(&["status", "--fail-if-backlog", "0"]).ends_with("--- exit 4\n"), "a false all-clear");
    let json = other().output(&["status", "--format", "json"]).json();
    assert_eq!((&json["agent"]["running"], &json["other_agent"]["waiting"]), (&false.into(), &1.into()), "{json}");
    assert_eq!(json["other_agent"]["db"], db);
    assert!(json["rates"].is_null() && json["eta"]["state"] != "server_away", "figures of the other store: {json}");
    let replay = other().run(&["replay"]);
    assert!(replay.starts_with("nothing to replay: nothing was stored in ") && replay.contains(&named), "{replay}");
    let health = other().run(&["healthcheck", "-q"]);
    assert!(health.contains("!! agent ") && health.contains("uses another store: 1 message waits"), "{health}");
    // With the agent's store, it is the agent.
    let own = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!((&own["agent"]["running"], &own["other_agent"]), (&true.into(), &Value::Null), "{own}");
}
