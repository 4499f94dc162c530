//! An invalid command line or configuration is reported before anything is done: exit 2, naming key, value and source.

use std::fs;

use crate::sandbox::{Sandbox, assert_text};

#[test]
fn no_command_shows_the_help() {
    let output = Sandbox::new().output(&[]);
    assert_eq!(output.code(), Some(2));
    assert_eq!(output.stdout, "");
    assert!(output.stderr.contains("Usage: opik-offline [OPTIONS] <COMMAND>"), "{}", output.stderr);
    let help = Sandbox::new().output(&["help"]);
    assert_eq!((help.code(), &*help.stderr), (Some(0), ""));
    for word in ["Examples:", "Exit codes:", "130  Interrupted", "healthcheck", "Common options:"] {
        assert!(help.stdout.contains(word), "{word} is not in {}", help.stdout);
    }
    for command in ["agent", "healthcheck", "status", "replay", "inspect", "purge"] {
        let help = Sandbox::new().output(&["help", command]).stdout;
        assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
    }
    assert_text(
        &Sandbox::new().run(&["--version"]),
        concat!("opik-offline ", env!("CARGO_PKG_VERSION"), "\n--- exit 0\n"),
    );
}

#[test]
fn short_help_fits_on_a_screen_and_long_help_is_whole() {
    for command in ["agent", "healthcheck", "status", "replay", "inspect", "purge"] {
        // A terminal of 80 columns and 30 lines.
        let short = Sandbox::new().with_env("COLUMNS", "80").output(&[command, "-h"]).stdout;
        let widest = short.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{command} -h breaks in the middle of a word: {short}");
        let lines = short.lines().count();
        assert!(lines <= 30, "{command} -h scrolls away, it has {lines} lines: hide_short_help what is rarely wanted");
        assert!(short.contains("see more with '--help'"), "{short}");
    }
    for command in ["agent", "healthcheck", "status", "replay", "inspect", "purge"] {
        let long = Sandbox::new().with_env("COLUMNS", "80").output(&[command, "--help"]).stdout;
        let (_, codes) = long.split_once("\nExit codes:\n").expect("the manual has its exit codes");
        for line in codes.lines().take_while(|line| !line.is_empty()) {
            let code = line.trim_start().split(' ').next().unwrap_or_default();
            assert!(code.parse::<u8>().is_ok(), "{command} --help: a line of the exit codes is too long: {line}");
        }
    }
    let long = Sandbox::new().output(&["agent", "--help"]).stdout;
    assert!(long.contains("--retry-interval") && long.contains("--no-color"), "{long}");
    let long = Sandbox::new().output(&["purge", "--help"]).stdout;
    assert!(long.contains("AddThreadsFeedbackScoresBatch") && long.contains("--newer-than"), "{long}");
}

#[test]
fn a_slip_gets_a_suggestion() {
    assert_text(
        &Sandbox::new().run(&["stauts"]),
        "
--- stderr
error: unrecognized subcommand 'stauts'

  tip: a similar subcommand exists: 'status'

Usage: opik-offline [OPTIONS] <COMMAND>

For more information, try '--help'.
--- exit 2
",
    );
    let frmat = Sandbox::new().run(&["inspect", "--frmat", "json"]);
    assert!(frmat.contains("tip: a similar argument exists: '--format'"), "{frmat}");
}

#[test]
fn a_bad_value_of_a_filter_names_the_flag_and_what_is_expected() {
    for (args, said) in [
        (
            &["inspect", "--status", "done"][..],
            "'done' for '--status <STATUS>'\n  [possible values: waiting, sending, held, rejected]",
        ),
        (
            &["purge", "--type", "span"],
            "'span' for '--type <TYPE>'\n\n  tip: types with that in their name: CreateSpan, UpdateSpan,",
        ),
        (&["purge", "--type", "nonsense"], "tip: `opik-offline inspect --help` lists all types"),
        (&["replay", "--limit", "0"], "'0' for '--limit <N>': expected a whole number from 1"),
        (&["inspect", "--limit", "x"], "'x' for '--limit <N>': expected a whole number"),
        (&["inspect", "one"], "'one' for '[ID]': expected a number, as `opik-offline inspect` lists it"),
        (&["purge", "--older-than", "yesterday"], "'yesterday' for '--older-than <DURATION>': not a duration such as"),
        (&["inspect", "1", "--rejected"], "'[ID]' cannot be used with '--rejected'"),
        (&["replay", "--timeout", "5", "min"], "tip: write a duration as one word, such as 5min"),
        (&["replay", "--server", "127.0.0.1:21600"], "did you mean http://127.0.0.1:21600/api?"),
        (&["status", "-q", "-v"], "'--quiet' cannot be used with '--verbose'"),
        (&["status", "--format", "xml"], "[possible values: table, wide, json, jsonl, yaml]"),
        (&["status", "--format", "jsonl"], "--format jsonl is for lists, and this command has a single result"),
    ] {
        let found = Sandbox::new().run(args);
        assert!(found.contains(said), "{args:?}: {found}");
        assert!(found.starts_with("--- stderr\nerror: ") && found.ends_with("--- exit 2\n"), "{found}");
    }
}

#[test]
fn a_malformed_setting_names_its_key_its_value_and_its_source() {
    assert_text(
        &Sandbox::new().run(&["replay", "--batch-size", "many"]),
        "
--- stderr
error: replay_batch_size: cannot use \"many\" from flag --batch-size: not a whole number
hint: replay_batch_size means: messages per replay batch; adaptive unless set; the default is 50
--- exit 2
",
    );
    assert_text(
        &Sandbox::new().with_env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "often").run(&["status"]),
        "
--- stderr
error: connection_monitor_ping_interval: cannot use \"often\" from environment OPIK_CONNECTION_MONITOR_PING_INTERVAL: not a duration such as 500ms, 10s, 7d or a number of seconds
hint: connection_monitor_ping_interval means: interval between pings; unless it is set, an unavailable server is pinged more often; the default is 10s
--- exit 2
",
    );
}

#[test]
fn a_malformed_file_names_the_file_and_the_line() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.home.path().join(".opik.config"), "[opik]\nreplay_batch_size = lots\n").unwrap();
    let found = sandbox.run(&["status"]);
    assert!(found.contains("error: replay_batch_size: cannot use \"lots\" from ~/.opik.config"), "{found}");
    assert!(found.ends_with("--- exit 2\n"), "{found}");

    fs::write(sandbox.home.path().join(".opik.config"), "[opik\n").unwrap();
    let found = sandbox.run(&["status"]);
    assert!(found.contains("~/.opik.config") && found.ends_with("--- exit 2\n"), "{found}");

    let sandbox = Sandbox::new();
    let folder = sandbox.home.path().join("config/opik-offline");
    fs::create_dir_all(&folder).unwrap();
    for (text, said) in [
        ("max_size: [", "config.yaml"),
        ("max_sise: 1GiB", "max_size"),
        ("max_size: big", "max_size: cannot use \"big\" from"),
        ("- max_size", "config.yaml"),
    ] {
        fs::write(folder.join("config.yaml"), text).unwrap();
        let found = sandbox.run(&["healthcheck"]);
        assert!(found.contains(said) && found.contains("~/config/opik-offline/config.yaml"), "{text}: {found}");
        assert!(found.ends_with("--- exit 2\n"), "{text}: {found}");
    }
}

#[test]
fn an_agent_that_cannot_start_reports_the_reason() {
    for (args, said) in [
        (&["agent", "--listen", "nowhere"][..], "listen: cannot use \"nowhere\" from flag --listen"),
        (&["agent", "--upstream", "ftp://x"], "upstream: cannot use \"ftp://x\" from flag --upstream"),
        (&["agent", "--when-full", "panic"], "when_full: cannot use \"panic\" from flag --when-full"),
        (&["agent", "--max-size", "1"], "max_size: cannot use \"1\" from flag --max-size"),
        (&["agent", "--listen", "0.0.0.0:0"], "OPIK_OFFLINE_INTAKE_TOKEN"),
        (
            &["agent", "--listen", "127.0.0.1:6745", "--upstream", "http://127.0.0.1:6745/api"],
            "--upstream or OPIK_OFFLINE_UPSTREAM",
        ),
    ] {
        let found = Sandbox::new().run(args);
        assert!(found.contains(said), "{args:?}: {found}");
        assert!(found.contains("\nhint: ") && found.ends_with("--- exit 2\n"), "{found}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let found = Sandbox::new().run(&["agent", "--listen", &taken.local_addr().unwrap().to_string()]);
    assert!(found.contains("another agent or program listens there") && found.ends_with("--- exit 6\n"), "{found}");
}

#[test]
fn a_mistake_about_a_depot_says_what_to_write_instead() {
    let (sandbox, folder) = (Sandbox::new(), tempfile::tempdir().unwrap());
    let url = format!("file://{}", folder.path().display());
    let (query, fragment) = (format!("{url}?fleet=prod"), format!("{url}#prod"));
    let missing = folder.path().join("key").display().to_string();
    let stream = "01a20445-0b55-7feb-b47d-0000000000ab";
    let cases: [(&[&str], &[&str]); 6] = [
        (&["status", "--fleet", &query], &["a folder has none", "%3F"]),
        (&["status", "--fleet", &fragment], &["a folder has none", "%23"]),
        (&["inspect", "--fleet", &url, stream], &["this is a stream", "STREAM/ID", "inspect --fleet URL"]),
        (&["inspect", "--fleet", &url, "--identity", &missing], &[&missing, "there is no such file", "--identity"]),
        (&["replay", "--to", "x", "--recipients-file", &missing], &[&missing, "there is no such file"]),
        (&["replay", "--make-identity", &format!("{missing}/x")], &["there is no such folder", "name a new file"]),
    ];
    for (command, expected) in cases {
        let output = sandbox.output(command);
        assert_eq!(output.code(), Some(2), "{command:?}: {}", output.stderr);
        for part in expected {
            assert!(output.stderr.contains(part), "{command:?} is a dead end without {part:?}: {}", output.stderr);
        }
    }
}
