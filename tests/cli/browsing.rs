//! `inspect` exports, follows and is asked by shells; a store is carried to another machine.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use opik_offline::message::MessageType;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::sandbox::{BINARY, OTHER_TRACE, Sandbox, assert_text, create_trace, message, open, team};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::process::run;
use crate::support::pty::OnTerminal;
use crate::support::{PATIENCE, uuid7, wait_until};

fn db(sandbox: &Sandbox) -> std::path::PathBuf {
    sandbox.home.path().join("opik_messages.db")
}

#[test]
fn an_export_has_every_body_as_it_was_sent() {
    let sandbox = Sandbox::filled();
    let store = open(&db(&sandbox));
    let mut odd = message(9, &team(), MessageType::CreateTrace, ("POST", "v1/private/traces"), &[], &json!({}));
    odd.request.body.bytes = "{\"a\": 12345678901234567890123,\n \"b\": \"\\ud800\"}".into();
    let mut nan = odd.clone();
    nan.request.body.bytes = "{\"a\": NaN}".into();
    store.register(&[odd, nan]).unwrap();
    let lines = sandbox.output(&["inspect", "--limit", "0", "--format", "jsonl"]).stdout;
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 7, "a line for each message");
    assert!(lines[5].ends_with(r#","body":{"a":12345678901234567890123,"b":"\ud800"}}"#), "{}", lines[5]);
    let last: Value = serde_json::from_str(lines[6]).unwrap();
    assert_eq!(last["body_base64"], "eyJhIjogTmFOfQ==", "no tool could read a bare NaN");
    assert!(last.get("body").is_none());
    for format in ["json", "yaml"] {
        let whole = sandbox.output(&["inspect", "--limit", "0", "--format", format]).stdout;
        let whole: Value = serde_yaml::from_str(&whole).unwrap();
        assert_eq!((whole["messages"].as_array().unwrap().len(), &whole["selected"]), (7, &json!(7)));
        let none = sandbox.output(&["inspect", "--newer-than", "1s", "--format", format]).stdout;
        assert_eq!(serde_yaml::from_str::<Value>(&none).unwrap()["messages"], json!([]), "{none}");
    }
}

#[test]
fn following_shows_what_is_stored_from_now_on_until_interrupted() {
    let sandbox = Sandbox::filled();
    let mut command = sandbox.command(&["inspect", "--follow", "--format", "jsonl"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, seen) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| sender.send(line).unwrap()));
    let store = open(&db(&sandbox));
    let mut stored = 0;
    let mut first = None;
    // Messages that were stored before it started are not shown.
    wait_until("a message is shown", PATIENCE, || {
        stored = store.register(&[create_trace(50, &team(), &uuid7())]).unwrap()[0].0;
        first = seen.recv_timeout(std::time::Duration::from_secs(1)).ok();
        first.is_some()
    });
    let first: Value = serde_json::from_str(&first.unwrap()).unwrap();
    assert!(first["id"].as_i64().unwrap() > 5 && first["id"].as_i64().unwrap() <= stored, "{first}");
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    reader.join().unwrap();
}

#[test]
fn a_shell_completes_what_is_stored() {
    let sandbox = Sandbox::filled();
    let script = format!("{}/completions/opik-offline.bash", env!("CARGO_MANIFEST_DIR"));
    let complete = |words: &[&str]| {
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let ask = format!(
            "source {script}; COMP_WORDS=({BINARY} {}); COMP_CWORD={}; cur='{}'; _opik__offline {BINARY} \"$cur\" '{}'; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            words.len(),
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let mut bash = Command::new("bash");
        bash.env("PATH", "/usr/bin:/bin").env("HOME", sandbox.home.path()).env("OPIK_OFFLINE_DB", db(&sandbox));
        let found = run(bash.args(["--norc", "-c", &ask]));
        assert_eq!(found.stderr, "");
        found.stdout
    };
    assert_eq!(complete(&["inspect", "--workspace", ""]), "default\nteam\n");
    assert_eq!(complete(&["purge", "--workspace", "t"]), "team\n");
    assert_eq!(complete(&["replay", "--project", ""]), "demo\n");
    assert!(complete(&["inspect", "--id", ""]).contains("5\n"));
    assert!(complete(&["inspect", ""]).contains("5\n"), "inspect takes an id");
    assert!(complete(&["inspect", "--rej"]).contains("--rejected\n"));
    let elsewhere = sandbox.home.path().join("nowhere.db");
    assert_eq!(complete(&["inspect", "--db", elsewhere.to_str().unwrap(), "--workspace", ""]), "\n");
    assert!(!elsewhere.exists(), "pressing a key must not make a store");
}

#[test]
fn a_copied_store_is_delivered_from_another_machine() {
    let server = FakeOpik::start_new();
    let here = Sandbox::filled().with_server(&server);
    let there = Sandbox::new().with_server(&server);
    let copy = there.home.path().join("copy.db");
    std::fs::copy(db(&here), &copy).unwrap();
    let copy = copy.to_str().unwrap();
    let preview = there.run(&["--db", copy, "replay", "--dry-run"]);
    assert!(preview.starts_with("would replay 4 messages"), "{preview}");
    let replayed = there.run(&["--db", copy, "replay", "--verify"]);
    assert!(replayed.starts_with("delivered 4 messages") && replayed.ends_with("--- exit 0\n"), "{replayed}");
    assert_eq!((server.count("team", Kind::Span), server.count("default", Kind::Trace)), (3, 1), "{OTHER_TRACE}");
    // Delivering the same copy again, before the purge at home, duplicates nothing.
    std::fs::copy(db(&here), there.home.path().join("again.db")).unwrap();
    let again = there.home.path().join("again.db");
    let replayed = there.run(&["--db", again.to_str().unwrap(), "replay"]);
    assert!(replayed.starts_with("delivered 4 messages"), "{replayed}");
    assert_eq!((server.count("team", Kind::Span), server.count("default", Kind::Trace)), (3, 1), "a copy is doubled");
    assert!(here.run(&["purge", "--yes"]).ends_with("--- exit 0\n"));
}

#[test]
fn unknown_variables_warn_but_do_not_fail() {
    assert_text(
        &Sandbox::without_store().with_env("OPIK_OFFLINE_UPSTREEM", "http://127.0.0.1:1").run(&["inspect"]),
        "
no message is stored
--- stderr
warning: unknown variable OPIK_OFFLINE_UPSTREEM is ignored; did you mean OPIK_OFFLINE_UPSTREAM?
--- exit 0
",
    );
}

#[test]
fn following_begins_with_a_heading() {
    let sandbox = Sandbox::filled();
    let mut child = sandbox.command(&["inspect", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let heading = lines.next().unwrap().unwrap();
    let words: Vec<&str> = heading.split_whitespace().collect();
    assert_eq!(words, ["accepted", "id", "status", "type", "size", "workspace", "project"]);
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_wide_list_has_one_row_for_each_message_on_every_terminal() {
    let sandbox = Sandbox::filled();
    for columns in [80, 200] {
        let args = ["inspect", "-o", "wide", "--no-pager", "--no-color"];
        let (status, text) = OnTerminal::start(&mut sandbox.command(&args), columns).finish();
        assert_eq!(status.code(), Some(0), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= columns.into()), "{columns}: {text}");
        let rows = text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(rows.count(), 5, "{text}");
        assert_eq!(text.contains("rows are cut at the edge of the terminal: --columns"), columns == 80, "{text}");
    }
    let piped = sandbox.run(&["inspect", "-o", "wide"]);
    assert!(piped.contains("400 start_time must not be null") && !piped.contains("rows are cut"), "{piped}");
}

#[test]
fn one_command_completes_in_every_shell() {
    let sandbox = Sandbox::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("completions");
    for (shell, file) in [
        ("bash", "opik-offline.bash"),
        ("zsh", "_opik-offline"),
        ("fish", "opik-offline.fish"),
        ("powershell", "_opik-offline.ps1"),
        ("elvish", "opik-offline.elv"),
    ] {
        let script = std::fs::read_to_string(folder.join(file)).unwrap();
        let joined = format!("--completions={shell}");
        for args in
            [&["--completions", shell][..], &[&joined], &["-q", "--completions", shell], &[&joined, "--no-color"]]
        {
            let found = sandbox.output(args);
            assert_eq!((found.stdout == script, found.code()), (true, Some(0)), "{args:?}: {}", found.stderr);
        }
    }
    assert!(sandbox.run(&["--help"]).contains("      --completions <SHELL>\n"), "the help shows it");
    let mut bash = Command::new("bash");
    let source = format!(". <({BINARY} --completions bash) && complete -p opik-offline");
    let found = run(bash.env("PATH", "/usr/bin:/bin").args(["--norc", "-c", &source]));
    assert!(found.code() == Some(0) && found.stdout.contains("_opik"), "{}{}", found.stdout, found.stderr);
    for (wrong, says) in [
        (&["--completions"][..], "bash, zsh, fish, powershell, elvish"),
        (&["--completions", "tcsh"], "bash, zsh, fish, powershell, elvish"),
        (&["--completions", "bash", "status"], "leave the command out"),
        (&["-q"], "requires a subcommand"),
    ] {
        let found = sandbox.run(wrong);
        assert!(found.contains(says) && found.ends_with("--- exit 2\n"), "{wrong:?}: {found}");
    }
}
