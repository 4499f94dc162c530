//! No command prints a key, a token or a credential that came with a message, in any format, however talkative.

use crate::sandbox::{API_KEY, CREDENTIAL, HEADER_SECRET, Sandbox, TOKEN};
use crate::support::fake_opik::{FakeOpik, Then, When};

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
