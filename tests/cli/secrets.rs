//! No command prints a key, a token or a credential that came with a message, in any format, however talkative.

use serde_json::json;

use crate::sandbox::{API_KEY, CREDENTIAL, HEADER_SECRET, Sandbox, TOKEN};
use crate::support::agent::Agent;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::{PATIENCE, uuid7, wait_until};

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

/// Everything that a user's day writes, but for the store itself: standard output and error of an agent, of a wrapped
/// one and of every command, their log files, and what any user may read of a process.
#[test]
fn a_whole_session_leaves_no_key_outside_the_store() {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};

    // The agent is killed in between, so that what it leaves behind is looked at as well.
    const PROXY_PASSWORD: &str = "proxy-password-4718";
    let server = FakeOpik::start_new();
    server.keep_files_in(crate::support::fake_opik::FilesIn::ObjectStore);
    let mut agent = Agent::builder(&server.url())
        .impatient()
        .env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG")
        .env("OPIK_FILE_LOGGING_LEVEL", "DEBUG")
        .env("OPIK_LOGGING_FILE", "agent.log")
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .env("OPIK_API_KEY", API_KEY)
        .env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN)
        .start();
    let url = agent.url();
    let client = || {
        Client::new(&url)
            .with_header("Authorization", CREDENTIAL)
            .with_header("X-Opik-Offline-Token", TOKEN)
            .with_header("X-Private", HEADER_SECRET)
    };
    let trace = || json!({ "id": uuid7(), "start_time": "2026-01-02T03:04:05Z" });
    let seen_of = |pid: u32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&[read("cmdline"), read("comm"), read("status")].concat()).into_owned()
    };
    let mut written = seen_of(agent.pid());
    for then in [Then::status(401), Then::status(400), Then::status(500), Then::Reset, Then::garbage()] {
        let fault = server.script(When::write(), then);
        written += &client().post("/v1/private/traces", &trace()).text();
        fault.clear();
    }
    let upload =
        format!("/v1/private/attachment/upload?file_name=a.pdf&entity_type=trace&entity_id={}&project_name=p", uuid7());
    let file = crate::support::http::Request::new("PUT", &upload).bytes(vec![1; 1000]);
    written += &client().expect(&file).text();
    // An error describes the fault of a request, and must not repeat the request.
    let wrong = format!("{{\"key\": {API_KEY}}}");
    let bad = crate::support::http::Request::new("POST", "/v1/private/traces").bytes(wrong).header("Accept", "*/*");
    assert_eq!(client().expect(&bad).status, 400);
    server.stop();
    assert_eq!(client().post("/v1/private/traces", &trace()).status, 201);
    agent.kill9();
    let refused = server.script(When::write(), Then::status(401));
    server.start();
    agent.restart_on_same_port();
    // A lane is named by its key, shortened.
    wait_until("the agent says which lane is held", PATIENCE, || agent.stderr().contains(": held for"));
    refused.clear();
    let commands: [&[&str]; 14] = [
        &["status"],
        &["healthcheck"],
        &["healthcheck", "--smoke-test"],
        &["inspect"],
        &["inspect", "--all"],
        &["inspect", "1"],
        &["inspect", "--rejected"],
        &["replay", "--dry-run"],
        &["replay"],
        &["replay", "--rejected", "--verify", "--timeout", "5s"],
        &["purge", "--dry-run"],
        &["replay", "--from", "/nonexistent"],
        &["agent", "--listen", "nowhere"],
        &[
            "agent",
            "--flush-timeout",
            "1s",
            "--listen",
            "127.0.0.1:0",
            "--",
            "sh",
            "-c",
            "tr '\\0' ' ' < /proc/$PPID/cmdline; tr '\\0' ' ' < /proc/$$/cmdline",
        ],
    ];
    for arguments in commands {
        let mut command = agent.home().command(crate::sandbox::BINARY);
        let (own, wrapped) =
            arguments.split_at(arguments.iter().position(|part| *part == "--").unwrap_or(arguments.len()));
        command.args(own).arg("--db").arg(agent.db()).args(["--upstream", &server.url(), "--verbose"]).args(wrapped);
        command
            .env("OPIK_API_KEY", API_KEY)
            .env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN)
            .env("_OPIK_HTTP_PROXY", "")
            .env("HTTPS_PROXY", format!("http://me:{PROXY_PASSWORD}@127.0.0.1:9"))
            .env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG")
            .env("OPIK_FILE_LOGGING_LEVEL", "DEBUG")
            .env("OPIK_LOGGING_FILE", "commands.log")
            .env("RUST_LOG", "trace");
        let output = crate::support::process::run(&mut command);
        written += &format!("\n$ {arguments:?}\n{}\n{}", output.stdout, output.stderr);
    }
    written += &agent.stderr();
    // Help offers no way to give a key where every user of the machine could read it.
    for command in ["agent", "status", "replay", "inspect", "purge", "healthcheck"] {
        let help = agent.home().cli(&[command, "--help"]).stdout;
        assert!(!help.contains("--api-key") && !help.contains("--intake-token"), "{help}");
    }
    agent.terminate();
    let mut files = 0;
    let mut folders = vec![agent.home().path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.file_name().unwrap().to_string_lossy().starts_with("opik_messages.db") {
                written +=
                    &format!("\n{}\n{}", path.display(), String::from_utf8_lossy(&std::fs::read(&path).unwrap()));
                files += 1;
            }
        }
    }
    assert!(
        files >= 2 && written.contains("replay_manager") && written.contains("healthcheck"),
        "too little was written"
    );
    for secret in SECRETS.iter().chain(&[PROXY_PASSWORD]) {
        let encoded = [&STANDARD_NO_PAD, &STANDARD, &URL_SAFE].map(|engine| engine.encode(secret));
        // In the middle of a longer text base64 looks otherwise, by one byte or two.
        let shifted = ["x", "xx"].map(|before| STANDARD_NO_PAD.encode(format!("{before}{secret}"))[4..].to_owned());
        let shifted = shifted.map(|text| text[..text.len() - 2].to_owned());
        for form in [(*secret).to_owned()].iter().chain(&encoded).chain(&shifted) {
            let line = written.lines().find(|line| line.contains(form.as_str()));
            assert_eq!(line, None, "{secret} was written, as {form}");
        }
    }
    assert!(!written.contains("X-Amz-Signature"), "a presigned URL is a key, too");
}
