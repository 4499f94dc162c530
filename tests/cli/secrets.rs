//! No command prints a key, a token or a credential that came with a message, in any format, however talkative.

use serde_json::json;

use crate::sandbox::{API_KEY, CREDENTIAL, HEADER_SECRET, Sandbox, TOKEN};
use crate::support::agent::Agent;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::uuid7;

const SECRETS: [&str; 4] = [CREDENTIAL, HEADER_SECRET, API_KEY, TOKEN];

#[test]
fn no_secret_is_ever_printed() {
    let server = FakeOpik::start_new();
    server.script(When::write(), Then::status(401));
    let sandbox = Sandbox::filled()
        .with_server(&server)
        .with_env("OPIK_API_KEY", API_KEY)
        .with_env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN)
        .with_env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG");
    // The replay comes first: what it is refused for is then shown by the others.
    let commands: [&[&str]; 9] = [
        &["replay"],
        &["replay", "--dry-run"],
        &["status"],
        &["healthcheck"],
        &["inspect"],
        &["inspect", "1"],
        &["inspect", "2"],
        &["purge", "--dry-run"],
        &["agent", "--listen", "nowhere"],
    ];
    for command in commands {
        for format in ["table", "json", "yaml"] {
            for loud in ["--verbose", "--quiet", "--no-color"] {
                let output = sandbox.output(&[command, &["--format", format, loud]].concat());
                for secret in SECRETS {
                    let is_shown = output.stdout.contains(secret) || output.stderr.contains(secret);
                    assert!(!is_shown, "{command:?} {format} {loud}\n{}\n{}", output.stdout, output.stderr);
                }
            }
        }
    }
    let lines = sandbox.output(&["inspect", "--format", "jsonl"]).stdout;
    assert!(!lines.is_empty() && SECRETS.iter().all(|secret| !lines.contains(secret)), "{lines}");
}

#[test]
fn quiet_verbose_and_the_level_in_the_environment_agree_on_who_wins() {
    let server = FakeOpik::start_new();
    let lines = |level: Option<&str>, flags: &[&str]| {
        let sandbox = Sandbox::filled().with_server(&server);
        let sandbox = match level {
            Some(level) => sandbox.with_env("OPIK_CONSOLE_LOGGING_LEVEL", level),
            None => sandbox,
        };
        sandbox.output(&[&["replay"], flags].concat()).stderr
    };
    assert_eq!(lines(None, &[]), "", "a replay that goes well has nothing to log");
    assert!(lines(Some("INFO"), &[]).contains("replay_manager"), "the level that was asked for counts");
    assert!(lines(None, &["-v"]).contains("replay_manager"));
    assert!(lines(Some("CRITICAL"), &["-v"]).contains("replay_manager"), "a flag counts before the environment");
    assert_eq!(lines(Some("DEBUG"), &["-q"]), "", "a flag counts before the environment");
}

#[test]
fn a_malformed_secret_is_not_quoted_in_full() {
    for (name, value) in [
        ("OPIK_API_KEY", "key-with-a\u{7}bell-4713"),
        ("OPIK_OFFLINE_INTAKE_TOKEN", "token-with-a\u{7}bell-4714"),
        ("_OPIK_HTTP_PROXY", "ftp://user:password-4715@127.0.0.1:9"),
        ("OPIK_OFFLINE_UPSTREAM", "http://user:password-4715@127.0.0.1:9"),
    ] {
        let output = Sandbox::new().with_env(name, value).output(&["healthcheck"]);
        let all = output.stdout + &output.stderr;
        assert!(!all.contains("bell-471") && !all.contains("password-4715"), "{name}: {all}");
    }
    for format in ["table", "json", "yaml"] {
        let proxy = "http://user:password-4715@127.0.0.1:9";
        for name in ["_OPIK_HTTP_PROXY", "HTTP_PROXY", "http_proxy"] {
            let output = Sandbox::new().with_env(name, proxy).output(&["healthcheck", "--format", format]);
            let all = output.stdout + &output.stderr;
            assert!(!all.contains("password-4715"), "{name} {format}: {all}");
        }
    }
}

#[test]
fn an_agent_that_logs_everything_logs_no_secret_and_no_body() {
    const CONTENT: &str = "words-of-a-user-4716";
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url())
        .impatient()
        .env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG")
        .env("OPIK_FILE_LOGGING_LEVEL", "DEBUG")
        .env("OPIK_LOGGING_FILE", "agent.log")
        .env("OPIK_API_KEY", API_KEY)
        .env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN)
        .start();
    let mut client = Client::new(&agent.url())
        .with_header("Authorization", CREDENTIAL)
        .with_header("X-Opik-Offline-Token", TOKEN)
        .with_header("X-Private", HEADER_SECRET);
    let trace = || json!({ "id": uuid7(), "start_time": "2026-01-02T03:04:05Z", "input": { "text": CONTENT } });
    let mut statuses = vec![client.post("/v1/private/traces", &trace()).status];
    let unauthorized = server.script(When::write(), Then::status(401));
    statuses.push(client.post("/v1/private/traces", &trace()).status);
    unauthorized.clear();
    server.stop();
    statuses.push(client.post("/v1/private/traces", &trace()).status);
    let by_path = format!("{}/-/token/{TOKEN}/api", agent.origin());
    statuses.push(Client::new(&by_path).post("/v1/private/traces", &trace()).status);
    let mut pages = String::new();
    for page in ["", "-/ready", "-/healthy", "metrics"] {
        pages += &Client::new(&agent.origin()).get(&format!("/{page}")).text();
    }
    server.start();
    agent.wait_until_delivered();
    assert_eq!(statuses, [201, 401, 201, 201]);
    let log = std::fs::read_to_string(agent.home().path().join("agent.log")).unwrap();
    let all = agent.stderr() + &log + &pages;
    assert!(all.contains("replay_manager"), "{all}");
    for secret in SECRETS.iter().chain(&[CONTENT]) {
        assert!(!all.contains(secret), "{secret} is in\n{all}");
    }
}
