//! JSON and YAML are for programs: one document with its version, the same words in every command.

use std::process::Command;

use serde_json::Value;

use crate::sandbox::Sandbox;
use crate::support::process::run;

const COMMANDS: [&[&str]; 7] = [
    &["status"],
    &["healthcheck"],
    &["inspect"],
    &["inspect", "1"],
    &["replay", "--dry-run"],
    &["purge", "--dry-run"],
    &["purge", "--yes", "--workspace", "nobody"],
];

#[test]
fn every_result_is_one_document_with_its_version() {
    let sandbox = Sandbox::filled();
    for command in COMMANDS {
        let json = sandbox.output(&[command, &["--format", "json"]].concat()).json();
        assert_eq!(json["schema_version"], 1, "{command:?}: {json}");
        let yaml = sandbox.output(&[command, &["--format", "yaml"]].concat()).stdout;
        let yaml: Value = serde_yaml::from_str(&yaml).unwrap_or_else(|why| panic!("{command:?}: {why} in\n{yaml}"));
        assert_eq!(keys(&yaml), keys(&json), "{command:?}");
    }
    for line in sandbox.output(&["inspect", "--format", "jsonl"]).stdout.lines() {
        let line: Value = serde_json::from_str(line).expect("a line is a document");
        assert_eq!(line["schema_version"], 1);
        assert!(line["id"].is_i64() && line["accepted_at"].is_string(), "{line}");
    }
}

#[test]
fn a_document_comes_with_a_bad_end_too() {
    let output = Sandbox::filled().output(&["status", "--format", "json", "--fail-if-backlog", "1"]);
    assert_eq!(output.code(), Some(4));
    assert_eq!(output.json()["backlog"]["messages"], 4);

    let broken = Sandbox::new();
    std::fs::write(broken.home.db(), "no database").unwrap();
    let output = broken.output(&["status", "--format", "json"]);
    assert_eq!(output.code(), Some(1));
    let status = output.json();
    assert_eq!(status["store"]["state"], "unusable");
    assert!(status["backlog"].is_null(), "nobody knows what is in a store that can't be read: {status}");
}

#[test]
fn colours_are_for_terminals_only() {
    let sandbox = Sandbox::filled().with_env("CLICOLOR_FORCE", "1");
    for command in COMMANDS {
        let output = sandbox.output(command);
        assert!(
            !output.stdout.contains('\u{1b}') && !output.stderr.contains('\u{1b}'),
            "{command:?}: {}",
            output.stdout
        );
    }
}

/// A container's terminal or one of `script` in cron may have no size: 0 columns are not a width.
#[test]
fn a_terminal_without_a_size_breaks_no_row() {
    const IN_A_TERMINAL: &str = "import pty, sys; pty.spawn(sys.argv[1:])";
    let sandbox = Sandbox::filled().with_env("NO_COLOR", "1");
    for args in [&["inspect"][..], &["inspect", "--rejected"], &["status"], &["purge", "--dry-run"]] {
        let piped = sandbox.output(args).stdout;
        let inner = sandbox.command(args);
        let mut outer = Command::new("python3");
        outer.args(["-c", IN_A_TERMINAL]).arg(inner.get_program()).args(inner.get_args());
        outer.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let shown = run(outer.env("PATH", std::env::var_os("PATH").unwrap_or_default())).stdout;
        let rows = |text: &str| text.lines().filter(|line| line.contains("CreateTrace")).count();
        assert!(rows(&piped) > 0, "{args:?}: there is no row to be broken: {piped}");
        assert_eq!(rows(&shown), rows(&piped), "{args:?}: a row is broken or cut:\n{shown}");
    }
}

/// The keys of a document and of those inside it, which tell what a program can ask for.
fn keys(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let mut found: Vec<String> = fields
                .iter()
                .flat_map(|(key, value)| {
                    let inside = keys(value).into_iter().map(move |inner| format!("{key}.{inner}"));
                    std::iter::once(key.clone()).chain(inside)
                })
                .collect();
            found.sort();
            found
        }
        Value::Array(items) => items.first().map(keys).unwrap_or_default(),
        _ => Vec::new(),
    }
}

#[test]
fn no_color_holds_for_help_and_usage_errors_too() {
    // Colours, although this is not a terminal.
    let sandbox = Sandbox::new().with_env("CLICOLOR_FORCE", "1");
    for args in [&["status", "-h"][..], &["stauts"], &["inspect", "--type", "nonsense"]] {
        let shown = |args: &[&str]| {
            let output = sandbox.output(args);
            output.stdout + &output.stderr
        };
        assert!(shown(args).contains('\u{1b}'), "{args:?} has no colours to be turned off");
        let plain = shown(&[&["--no-color"], args].concat());
        assert!(!plain.contains('\u{1b}'), "{args:?} has colours that nobody wanted: {plain:?}");
    }
}
