//! Which room may import which, and which names only one room may use.

use std::path::Path;

use crate::source::{Findings, Source, has_name, is_name, sources};

/// Which room may import which. Everything else is forbidden: imports point down only, and siblings do not know each other.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("printable", &[]),
    ("hint", &[]),
    ("private_folder", &[]),
    ("message", &[]),
    ("protocol", &["message"]),
    ("delivery", &["figures", "protocol", "message"]),
    ("figures", &[]),
    ("diagnosis", &["delivery", "figures", "printable", "protocol"]),
    ("give_way", &[]),
    ("liveness", &[]),
    ("shutdown", &["liveness"]),
    ("signals", &["shutdown", "telemetry"]),
    ("terminal", &["hint", "printable", "figures", "signals"]),
    ("memory", &[]),
    ("config", &[]),
    ("telemetry", &["printable"]),
    ("sqlite_format", &[]),
    ("sealing", &[]),
    ("store", &["give_way", "hint", "printable", "sqlite_format", "message", "telemetry", "shutdown"]),
    ("sdk", &["store", "private_folder", "sqlite_format", "protocol", "message", "shutdown"]),
    (
        "fleet",
        &["depot", "hint", "sealing", "store", "delivery", "message", "printable", "figures", "shutdown", "telemetry"],
    ),
    ("moving", &["sealing", "sdk", "store", "private_folder", "message", "shutdown"]),
    ("upstream", &["protocol", "message", "telemetry", "shutdown"]),
    ("depot", &["upstream", "protocol"]),
    ("monitor", &["upstream", "protocol", "message", "telemetry", "shutdown"]),
    (
        "replay",
        &[
            "hint",
            "figures",
            "give_way",
            "monitor",
            "store",
            "upstream",
            "delivery",
            "protocol",
            "message",
            "telemetry",
            "shutdown",
            "memory",
        ],
    ),
    ("export", &["printable", "figures", "sdk", "replay", "store", "protocol", "message"]),
    (
        "takeover",
        &[
            "hint",
            "depot",
            "fleet",
            "sealing",
            "replay",
            "monitor",
            "store",
            "upstream",
            "message",
            "telemetry",
            "shutdown",
            "memory",
            "figures",
        ],
    ),
    (
        "health",
        &[
            "depot",
            "figures",
            "printable",
            "replay",
            "store",
            "upstream",
            "delivery",
            "protocol",
            "message",
            "shutdown",
        ],
    ),
    (
        "overview",
        &[
            "hint",
            "diagnosis",
            "figures",
            "printable",
            "replay",
            "monitor",
            "store",
            "upstream",
            "delivery",
            "protocol",
            "message",
            "telemetry",
            "shutdown",
        ],
    ),
    (
        "intake",
        &[
            "diagnosis",
            "hint",
            "printable",
            "overview",
            "monitor",
            "store",
            "upstream",
            "delivery",
            "protocol",
            "message",
            "telemetry",
            "shutdown",
            "liveness",
            "memory",
        ],
    ),
    (
        "agent",
        &[
            "hint",
            "takeover",
            "fleet",
            "sdk",
            "figures",
            "printable",
            "signals",
            "intake",
            "overview",
            "replay",
            "monitor",
            "store",
            "upstream",
            "protocol",
            "config",
            "telemetry",
            "shutdown",
            "liveness",
            "message",
            "memory",
            "depot",
        ],
    ),
    (
        "translate",
        &[
            "hint",
            "printable",
            "takeover",
            "fleet",
            "sealing",
            "depot",
            "sdk",
            "export",
            "agent",
            "intake",
            "replay",
            "monitor",
            "store",
            "upstream",
            "delivery",
            "protocol",
            "message",
            "config",
            "telemetry",
            "memory",
        ],
    ),
    (
        "report",
        &[
            "diagnosis",
            "hint",
            "sdk",
            "translate",
            "terminal",
            "printable",
            "figures",
            "agent",
            "overview",
            "replay",
            "store",
            "upstream",
            "delivery",
            "protocol",
            "message",
            "config",
            "telemetry",
            "fleet",
            "takeover",
            "export",
        ],
    ),
    ("completion", &["printable", "translate", "store", "config"]),
    (
        "failure",
        &[
            "hint",
            "agent",
            "config",
            "depot",
            "health",
            "moving",
            "protocol",
            "replay",
            "sdk",
            "sealing",
            "signals",
            "store",
            "takeover",
            "telemetry",
            "terminal",
            "translate",
            "upstream",
            "printable",
            "message",
        ],
    ),
    (
        "cli",
        &[
            "diagnosis",
            "hint",
            "failure",
            "depot",
            "sdk",
            "sealing",
            "moving",
            "completion",
            "report",
            "translate",
            "export",
            "health",
            "terminal",
            "printable",
            "figures",
            "signals",
            "agent",
            "intake",
            "overview",
            "replay",
            "monitor",
            "store",
            "upstream",
            "delivery",
            "protocol",
            "message",
            "config",
            "telemetry",
            "shutdown",
            "memory",
            "fleet",
            "takeover",
        ],
    ),
];

/// Names that only some folders may use, with the reason.
const ONLY_IN: &[(&[&str], &[&str], &str)] = &[
    (
        &["rusqlite"],
        &["src/store/sqlite", "src/sdk/file"],
        "no row, no SQL and no error of an engine leaves the store: another engine is one more folder",
    ),
    (
        &["postgres_protocol", "fallible_iterator"],
        &["src/depot/postgres"],
        "one engine of depots speaks PostgreSQL's protocol; others see a Depot",
    ),
    (&["ureq"], &["src/upstream"], "upstream is the only room that opens connections to the server"),
    (
        &["hyper", "hyper_util", "http_body", "http_body_util", "httparse"],
        &["src/intake", "src/upstream"],
        "only the door and the way to the server speak HTTP; the rooms between them have plain values",
    ),
    (
        &["tokio", "async", "await"],
        &["src/intake", "src/upstream/forward.rs", "src/upstream/forward", "src/agent", "src/shutdown.rs"],
        "the door is asynchronous and nothing else is: store, replay and commands are plain blocking code",
    ),
    (&["clap"], &["src/cli"], "the library has no terminal: only the command line parses arguments and prints"),
    (
        &["comfy_table"],
        &["src/terminal/table.rs"],
        "a table takes harmless texts only, and a terminal gets its lines as `Shown`",
    ),
    (&["indicatif"], &["src/terminal/progress.rs"], "a bar writes to the terminal directly: no name is part of it"),
    (
        &["println!", "print!", "eprintln!", "eprint!", "io::stdout", "io::stderr", "stdout()", "stderr()"],
        &["src/terminal/mod.rs", "src/telemetry/log.rs"],
        "what came from elsewhere must drive no terminal: print a `Shown`, or a document through `Stream::machine`",
    ),
    (
        &["TransactionBehavior::Immediate"],
        &["src/store/sqlite/guard.rs", "src/store/sqlite/recovery", "src/store/sqlite/schema.rs"],
        "a write looks at the schema under the write lock: it begins in store/sqlite/guard.rs (a recovery fills a new \
         file, and a migration looks by itself)",
    ),
    (
        &["ExitCode", "process::exit"],
        &["src/cli", "src/main.rs"],
        "only the command line knows exit codes; everybody else returns an error",
    ),
    (
        &["env::var", "env::vars", "env::var_os", "env::vars_os"],
        &["src/config"],
        "only config reads the environment, so that every value knows where it came from",
    ),
    (
        &["tracing"],
        &[
            "src/agent",
            "src/cli",
            "src/config",
            "src/fleet/dial_reader.rs",
            "src/fleet/ledger.rs",
            "src/fleet/shipper",
            "src/fleet/shipper.rs",
            "src/intake",
            "src/monitor",
            "src/overview",
            "src/private_folder.rs",
            "src/replay",
            "src/sdk/adoption.rs",
            "src/sdk/file",
            "src/sdk/trust.rs",
            "src/signals.rs",
            "src/store",
            "src/takeover",
            "src/telemetry",
            "src/translate.rs",
            "src/upstream",
        ],
        "message, protocol and delivery are pure: they log nothing",
    ),
];

/// Names that pure rooms may not use.
const IMPURE: &[&str] = &["SystemTime::now", "Instant::now", "std::fs", "std::net", "std::thread", "std::process"];
const PURE: &[&str] = &[
    "src/message",
    "src/protocol",
    "src/delivery",
    "src/diagnosis",
    "src/sqlite_format",
    "src/sdk/rows.rs",
    "src/fleet/bloom.rs",
    "src/fleet/bundle.rs",
    "src/fleet/container.rs",
    "src/fleet/fleet_file.rs",
    "src/fleet/head.rs",
    "src/fleet/import.rs",
    "src/fleet/json.rs",
    "src/fleet/marks.rs",
    "src/fleet/names.rs",
    "src/fleet/record.rs",
    "src/fleet/reference.rs",
    "src/fleet/secret_header.rs",
    "src/fleet/schedule.rs",
    "src/fleet/takeover.rs",
];

/// Module names without a noun.
const DRAWERS: &[&str] = &["utils", "util", "common", "misc", "types", "helpers"];

/// Where SQL may be: each of these is the engine of a trait, and nobody else knows that there are rows.
const SQL_IN: &[&str] = &["src/store/sqlite", "src/sdk/file", "src/depot/postgres"];
const SQL: &[&str] =
    &["SELECT ", "INSERT ", "UPDATE ", "DELETE FROM ", "CREATE ", "DROP ", "ALTER ", "PRAGMA ", "VACUUM"];

#[test]
fn rooms_import_only_lower_rooms() {
    let mut findings = Findings::default();
    for file in sources("src") {
        let Some(room) = file.room() else { continue };
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(known, _)| *known == room) else {
            findings.add(
                &file,
                1,
                &format!("{room} is not in the table of rooms: add it to tests/tidy/rooms.rs with its imports"),
            );
            continue;
        };
        for (line, other) in rooms_named_by(&file) {
            if other != room && !allowed.contains(&other.as_str()) {
                let why = "imports point down only: move the noun to the room that owns it, or to a lower one";
                findings.add(&file, line, &format!("{room} may not import {other}; {why}"));
            }
        }
    }
    findings.report();
}

#[test]
fn names_reserved_for_a_room_are_used_only_there() {
    let mut findings = Findings::default();
    for file in sources("src") {
        for (names, places, why) in ONLY_IN {
            if places.iter().any(|place| Path::new(&file.path).starts_with(place)) {
                continue;
            }
            for (line, name) in file.named(names) {
                findings.add(&file, line, &format!("{name} belongs to {}: {why}", places.join(", ")));
            }
        }
        if PURE.iter().any(|pure| Path::new(&file.path).starts_with(pure)) {
            for (line, name) in file.named(IMPURE) {
                findings.add(&file, line, &format!("{name} in a pure room: time and bytes come in as arguments"));
            }
        }
        if !SQL_IN.iter().any(|place| Path::new(&file.path).starts_with(place)) {
            for (line, text) in &file.strings {
                let text = text.trim_start();
                if SQL.iter().any(|word| text.starts_with(word)) {
                    findings.add(
                        &file,
                        *line,
                        "SQL outside src/store/sqlite, src/sdk/file and src/depot/postgres: give the trait (Store, Depot) \
                         a verb instead",
                    );
                }
            }
        }
    }
    findings.report();
}

#[test]
fn files_are_named_by_a_noun_and_contain_no_notes_for_later() {
    let mut findings = Findings::default();
    // In two parts, so that this file does not match itself.
    let later = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    for file in sources("src").into_iter().chain(sources("tests")).chain(sources("benches")) {
        for part in Path::new(&file.path).components() {
            let name = part.as_os_str().to_string_lossy();
            if DRAWERS.contains(&name.trim_end_matches(".rs")) {
                findings.add(&file, 1, "a module name without a noun: name it after what it contains");
            }
        }
        for (number, line) in file.text.lines().enumerate() {
            if later.iter().any(|word| has_name(line, word)) {
                findings.add(&file, number + 1, "a note for later belongs in an issue");
            }
        }
    }
    findings.report();
}

/// Returns the rooms that a file imports, with their lines.
fn rooms_named_by(file: &Source) -> Vec<(usize, String)> {
    // At the head of a room, `super` is the crate.
    let is_head =
        file.path.matches('/').count() == 1 || file.path.ends_with("/mod.rs") && file.path.matches('/').count() == 2;
    let code = &file.code;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(is_name) || code[..at].ends_with('$') {
            continue;
        }
        found.extend(first_names(&code[at + "crate::".len()..]).map(|name| (file.line(at), name)));
    }
    for (at, _) in code.match_indices("use super::") {
        if is_head && (at == 0 || code[..at].ends_with('\n')) {
            found.extend(first_names(&code[at + "use super::".len()..]).map(|name| (file.line(at), name)));
        }
    }
    found.retain(|(_, name)| MAY_IMPORT.iter().any(|(room, _)| room == name));
    found.sort_by_key(|(line, _)| *line);
    found
}

/// Returns the first part of each path in `a::b` or `{a, b::{c, d}}`.
fn first_names(code: &str) -> impl Iterator<Item = String> {
    let mut names = Vec::new();
    if let Some(group) = code.strip_prefix('{') {
        let mut depth = 0;
        let mut name = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                c if depth == 0 => name.push(c),
                _ => {}
            }
        }
        names.push(name);
    } else {
        names.push(code.to_owned());
    }
    names.into_iter().map(|name| name.trim_start().chars().take_while(|c| is_name(*c)).collect())
}

#[test]
fn imports_are_recognised_in_groups_paths_and_heads() {
    let rooms = |path: &str, text: &str| rooms_named_by(&Source::parse(path.into(), text.into()));
    let text = "//! crate::cli\nuse crate::{agent, store::{Filter, slot}};\nfn f() { crate::replay::x() }\n";
    let expected = [(2, "agent".to_owned()), (2, "store".to_owned()), (3, "replay".to_owned())];
    assert_eq!(rooms("src/intake/mod.rs", text), expected);
    let text = "use super::cli::x;\nmod y { use super::x; }\n";
    assert_eq!(rooms("src/store/mod.rs", text), [(1, "cli".to_owned())]);
}
