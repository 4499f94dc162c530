//! The rules of the house as a test: which room may use which, and what only one room may name.
//!
//! The rooms and the reasons are told at the head of `src/lib.rs` and in CONTRIBUTING.md. The code is read as text, with
//! comments and strings told apart, which is enough for rules about names.

#[path = "support/not_run.rs"]
mod not_run;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use not_run::not_run;

/// Who may import whom. What is not listed is forbidden: arrows point down only, and siblings don't know each other.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("printable", &[]),
    ("message", &[]),
    ("protocol", &["message"]),
    ("delivery", &["protocol", "message"]),
    ("figures", &[]),
    ("liveness", &[]),
    ("shutdown", &["liveness"]),
    ("signals", &["shutdown", "telemetry"]),
    ("terminal", &["printable", "figures", "signals"]),
    ("memory", &[]),
    ("config", &[]),
    ("telemetry", &["printable"]),
    ("sqlite_format", &[]),
    ("store", &["sqlite_format", "message", "telemetry", "shutdown"]),
    ("sdk", &["store", "sqlite_format", "protocol", "message", "shutdown"]),
    ("upstream", &["protocol", "message", "telemetry", "shutdown"]),
    ("monitor", &["upstream", "protocol", "message", "telemetry", "shutdown"]),
    (
        "replay",
        &[
            "figures",
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
    ("export", &["printable", "figures", "replay", "store", "protocol", "message"]),
    ("health", &["figures", "replay", "store", "upstream", "delivery", "protocol", "message", "shutdown"]),
    ("overview", &["replay", "monitor", "store", "delivery", "message", "telemetry", "shutdown"]),
    (
        "intake",
        &[
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
            "figures",
            "printable",
            "signals",
            "intake",
            "overview",
            "replay",
            "sdk",
            "monitor",
            "store",
            "upstream",
            "config",
            "telemetry",
            "shutdown",
            "liveness",
            "message",
            "memory",
        ],
    ),
    (
        "translate",
        &[
            "export",
            "agent",
            "intake",
            "replay",
            "sdk",
            "monitor",
            "store",
            "upstream",
            "delivery",
            "message",
            "config",
            "telemetry",
            "memory",
        ],
    ),
    ("completion", &["printable", "translate", "store", "config"]),
    (
        "cli",
        &[
            "completion",
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
        ],
    ),
];

/// Names that only some folders may use, and why.
const ONLY_IN: &[(&[&str], &[&str], &str)] = &[
    (
        &["rusqlite"],
        &["src/store/sqlite", "src/sdk/file"],
        "no row, no SQL and no error of an engine leaves the store: another engine is one more folder. (The file of a \
         Python SDK is an SQLite database as well, whatever engine our store has.)",
    ),
    (&["ureq"], &["src/upstream"], "upstream is the only room that opens connections to the server"),
    (
        &["hyper", "hyper_util", "http_body", "http_body_util"],
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
    (&["indicatif"], &["src/terminal/progress.rs"], "a bar writes to the terminal by itself: no name is part of it"),
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
            "src/intake",
            "src/monitor",
            "src/overview",
            "src/replay",
            "src/sdk/adoption.rs",
            "src/sdk/file",
            "src/sdk/trust.rs",
            "src/signals.rs",
            "src/store",
            "src/telemetry",
            "src/translate.rs",
            "src/upstream",
        ],
        "message, protocol, delivery and sqlite_format are pure: they log nothing",
    ),
];

/// What pure rooms and files may not use.
const IMPURE: &[&str] = &["SystemTime::now", "Instant::now", "std::fs", "std::net", "std::thread", "std::process"];
const PURE: &[&str] = &["src/message", "src/protocol", "src/delivery", "src/sqlite_format", "src/sdk/rows.rs"];

/// Names of modules whose noun nobody found.
const DRAWERS: &[&str] = &["utils", "util", "common", "misc", "types", "helpers"];

const SQL: &[&str] =
    &["SELECT ", "INSERT ", "UPDATE ", "DELETE FROM ", "CREATE ", "DROP ", "ALTER ", "PRAGMA ", "VACUUM"];

#[test]
fn rooms_import_only_what_lies_below_them() {
    let mut broken = Broken::default();
    for file in sources("src") {
        let Some(room) = file.room() else { continue };
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(known, _)| *known == room) else {
            broken.add(
                &file,
                1,
                &format!("{room} is not in the table of rooms: say in tests/tidy.rs whom it may import"),
            );
            continue;
        };
        for (line, other) in file.imports() {
            if other != room && !allowed.contains(&other.as_str()) {
                let why = "arrows point down only: ask who owns the noun, and move it there or into a lower room";
                broken.add(&file, line, &format!("{room} may not import {other}; {why}"));
            }
        }
    }
    broken.report();
}

#[test]
fn what_belongs_to_one_room_is_named_nowhere_else() {
    let mut broken = Broken::default();
    for file in sources("src") {
        for (names, places, why) in ONLY_IN {
            if places.iter().any(|place| Path::new(&file.path).starts_with(place)) {
                continue;
            }
            for (line, name) in file.named(names) {
                broken.add(&file, line, &format!("{name} belongs to {}: {why}", places.join(", ")));
            }
        }
        if PURE.iter().any(|pure| Path::new(&file.path).starts_with(pure)) {
            for (line, name) in file.named(IMPURE) {
                broken.add(&file, line, &format!("{name} in a pure room: time and bytes come in as arguments"));
            }
        }
        if !["src/store/sqlite", "src/sdk/file"].iter().any(|place| Path::new(&file.path).starts_with(place)) {
            for (line, text) in &file.strings {
                let text = text.trim_start();
                if SQL.iter().any(|word| text.starts_with(word)) {
                    broken.add(
                        &file,
                        *line,
                        "SQL outside src/store/sqlite and src/sdk/file: give the Store trait a verb instead",
                    );
                }
            }
        }
    }
    broken.report();
}

#[test]
fn no_file_is_a_drawer_and_nothing_is_left_for_later() {
    let mut broken = Broken::default();
    // Written in two parts, or this file would find itself.
    let later = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    for file in sources("src").into_iter().chain(sources("tests")).chain(sources("benches")) {
        for part in Path::new(&file.path).components() {
            let name = part.as_os_str().to_string_lossy();
            if DRAWERS.contains(&name.trim_end_matches(".rs")) {
                broken.add(&file, 1, "a drawer without a name: find the noun of what is in it");
            }
        }
        for (number, line) in file.text.lines().enumerate() {
            if later.iter().any(|word| has_name(line, word)) {
                broken.add(&file, number + 1, "a note for later belongs in an issue");
            }
        }
    }
    broken.report();
}

#[test]
fn every_test_that_the_readme_promises_by_exists_and_is_run_by_its_command() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("there is a README");
    let (_, rest) = readme.split_once("<!-- promises -->\n").expect("the README marks where the promises begin");
    let (table, _) = rest.split_once("<!-- end of promises -->").expect("the README marks where the promises end");
    let mut faults = String::new();
    let mut seen = 0;
    for row in table.lines().skip(2) {
        let (promise, shown) = row.trim_matches(['|', ' ']).split_once(" | ").unwrap_or_else(|| panic!("{row}"));
        let (tests, command) =
            shown.split_once("<br>**run** ").unwrap_or_else(|| panic!("{promise}: no tests, or no command: {shown}"));
        let (run, filters) =
            command.trim_matches('`').split_once(" -- ").unwrap_or_else(|| panic!("{promise}: {command}"));
        for test in tests.split("<br>").map(|test| test.trim().trim_matches('`')) {
            seen += 1;
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{test} is no file.rs::name"));
            let is_unit = file.starts_with("src/");
            let path = if is_unit { root.join(file) } else { root.join("tests").join(file) };
            let text = fs::read_to_string(&path).unwrap_or_default();
            let is_there = (text.split("#[test]").skip(1))
                .any(|after| after.split_once("fn ").is_some_and(|(_, rest)| rest.starts_with(&format!("{name}("))));
            if !is_there {
                let _ = writeln!(faults, "{promise}: {test} is no test");
            }
            let (folder, module) = file.trim_end_matches(".rs").rsplit_once('/').unwrap_or(("", file));
            let target = if is_unit { "--lib".to_owned() } else { format!("--test {folder}") };
            let is_run = run.contains("cargo test --locked")
                && run.contains(&target)
                && filters.split(' ').any(|filter| format!("{module}::{name}").contains(filter));
            if !is_run {
                let _ = writeln!(faults, "{promise}: `{run} -- {filters}` does not run {test}");
            }
        }
    }
    assert!(seen > 50, "the table of promises is not read any more");
    assert!(faults.is_empty(), "the README promises what no test shows:\n{faults}");
}

/// The list of mutations (`tests/mutations`) can be run: each line that it breaks is there, and once, and each test, too. And
/// no promise of the README is without one.
#[test]
fn every_promise_has_a_mutation_and_every_mutation_can_be_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (list, readme) = (read("tests/mutations/list.toml"), read("README.md"));
    let mut entries: Vec<(&str, &str)> = list.split("\n[[mutation]]\n").skip(1).map(|entry| ("", entry)).collect();
    let mut faults = String::new();
    let mut names = std::collections::BTreeSet::new();
    for (promise, entry) in &mut entries {
        let of = |key: &str| literal(entry, key).unwrap_or_default();
        let (name, file, from) = (of("name"), of("file"), of("from"));
        *promise = of("promise");
        let around = literal(entry, "within").unwrap_or(from);
        let text = read(file);
        if name.is_empty() || from.is_empty() || !names.insert(name) {
            let _ = writeln!(faults, "{name:?} has no name of its own, or no `from`");
        } else if text.matches(around).count() != 1 || around.matches(from).count() != 1 {
            let _ = writeln!(faults, "{name}: `from` is not there exactly once in {file}: the line moved or changed");
        }
        let tests = entry.split_once("\ntests = [").and_then(|(_, tests)| tests.split_once(']')).unwrap_or_default().0;
        let mut tests = tests.split('\'').skip(1).step_by(2).peekable();
        if tests.peek().is_none() {
            let _ = writeln!(faults, "{name} names no test");
        }
        for test in tests {
            let (target, path) = test.rsplit(' ').next().and_then(|path| path.split_once("::")).unwrap_or_default();
            let mut parts: Vec<&str> = path.split("::").filter(|part| *part != "tests").collect();
            let function = parts.pop().unwrap_or_default();
            let place = parts.join("/");
            let text = match target {
                "lib" => ["", "/mod", "/tests"].map(|file| read(&format!("src/{place}{file}.rs"))).concat(),
                target => read(&format!("tests/{target}/{place}.rs")),
            };
            if !text.contains(&format!("fn {function}(")) {
                let _ = writeln!(faults, "{name}: there is no test {test}");
            }
        }
    }
    let table = readme.split("<!-- promises -->\n").nth(1).and_then(|rest| rest.split("<!-- end").next());
    let promises = || table.unwrap_or_default().lines().skip(2).map(|row| row.trim_start_matches("| "));
    for promise in promises() {
        if !entries.iter().any(|(begins, _)| promise.starts_with(begins)) {
            let _ = writeln!(faults, "no mutation breaks the promise: {promise:.100}");
        }
    }
    for (begins, _) in entries.iter().filter(|(begins, _)| !promises().any(|promise| promise.starts_with(begins))) {
        let _ = writeln!(faults, "no promise begins with {begins:?}");
    }
    assert!(promises().count() > 40 && entries.len() > 40, "the lists are not read any more");
    assert!(faults.is_empty(), "tests/mutations/list.toml:\n{faults}");
}

/// Reads a literal string of TOML, of one line or of several.
fn literal<'entry>(entry: &'entry str, key: &str) -> Option<&'entry str> {
    let (_, after) = format!("\n{entry}").find(&format!("\n{key} = '")).map(|at| entry.split_at(at))?;
    let value = &after[key.len() + " = ".len()..];
    match value.strip_prefix("'''") {
        Some(lines) => lines.strip_prefix('\n').unwrap_or(lines).split_once("'''").map(|(text, _)| text),
        None => value.split('\'').nth(1),
    }
}

/// Compiled files name the paths of the machine that made them.
#[test]
fn no_committed_file_is_compiled() {
    const COMPILED: &[&str] = &["a", "class", "o", "pyc", "rlib", "so"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = match Command::new("git").args(["ls-files", "-z"]).current_dir(root).output() {
        Ok(listed) if listed.status.success() => String::from_utf8(listed.stdout).expect("our names are text"),
        _ => return not_run("this is no git repository"),
    };
    let is_compiled = |name: &&str| {
        let extension = Path::new(name).extension();
        extension.is_some_and(|extension| COMPILED.iter().any(|compiled| extension == *compiled))
    };
    let compiled: Vec<&str> = listed.split_terminator('\0').filter(is_compiled).collect();
    assert!(compiled.is_empty(), "take these out of the repository: {compiled:?}");
}

#[test]
fn the_reader_tells_code_from_words() {
    let file = Source::read(
        "src/intake/mod.rs".into(),
        "//! crate::cli\nuse crate::{agent, store::{Filter, slot}};\nfn f<'a>() { /* ureq */ g(\"ureq \\\" SELECT\", '\"', r#\"SELECT 1\"#); crate::replay::x() }\n".into(),
    );
    assert_eq!(file.room(), Some("intake"));
    assert_eq!(file.imports(), [(2, "agent".to_owned()), (2, "store".to_owned()), (3, "replay".to_owned())]);
    assert_eq!(file.named(&["ureq"]), []);
    assert_eq!(file.strings, [(3, "ureq \\\" SELECT".to_owned()), (3, "SELECT 1".to_owned())]);
    let main = Source::read("src/main.rs".into(), String::new());
    assert_eq!(main.room(), None);
    let up = Source::read("src/store/mod.rs".into(), "use super::cli::x;\nmod y { use super::x; }\n".into());
    assert_eq!(up.imports(), [(1, "cli".to_owned())]);
}

/// What was found, told all at once.
#[derive(Default)]
struct Broken(String);

impl Broken {
    fn add(&mut self, file: &Source, line: usize, rule: &str) {
        writeln!(self.0, "{}:{line}: {rule}", file.path).expect("a string can be written");
    }

    #[track_caller]
    fn report(self) {
        assert!(self.0.is_empty(), "the house has rules:\n{}", self.0);
    }
}

/// A source file, its code apart from its words.
struct Source {
    path: String,
    text: String,
    /// The text with comments and the insides of strings made blank, line by line as it was.
    code: String,
    /// String literals as they are written, with the line they begin in.
    strings: Vec<(usize, String)>,
}

impl Source {
    fn read(path: String, text: String) -> Self {
        let (code, strings) = split(&text);
        Self { path, text, code, strings }
    }

    /// Returns the room that the file belongs to; `lib.rs` and `main.rs` belong to none.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let room = inside.split('/').next()?.trim_end_matches(".rs");
        (!["lib", "main"].contains(&room)).then_some(room)
    }

    /// Returns the rooms that are named, with their lines.
    fn imports(&self) -> Vec<(usize, String)> {
        // From the head of a room, `super` is the whole crate.
        let is_head = self.path.matches('/').count() == 1
            || self.path.ends_with("/mod.rs") && self.path.matches('/').count() == 2;
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("crate::") {
            if self.code[..at].ends_with(is_name) || self.code[..at].ends_with('$') {
                continue;
            }
            found.extend(first_names(&self.code[at + "crate::".len()..]).map(|name| (self.line(at), name)));
        }
        for (at, _) in self.code.match_indices("use super::") {
            if is_head && (at == 0 || self.code[..at].ends_with('\n')) {
                found.extend(first_names(&self.code[at + "use super::".len()..]).map(|name| (self.line(at), name)));
            }
        }
        found.retain(|(_, name)| MAY_IMPORT.iter().any(|(room, _)| room == name));
        found.sort_by_key(|(line, _)| *line);
        found
    }

    /// Returns where the code uses one of these names.
    fn named<'a>(&self, names: &[&'a str]) -> Vec<(usize, &'a str)> {
        let lines = self.code.lines().enumerate();
        lines
            .flat_map(|(number, line)| {
                names.iter().filter(move |name| has_name(line, name)).map(move |name| (number + 1, *name))
            })
            .collect()
    }

    fn line(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }
}

/// Returns the first part of each path in `a::b`, `{a, b::{c, d}}`.
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

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Says whether a line has this name, not as a part of a longer one.
fn has_name(line: &str, name: &str) -> bool {
    line.match_indices(name)
        .any(|(at, _)| !line[..at].ends_with(is_name) && !line[at + name.len()..].starts_with(is_name))
}

/// Tells code from comments and strings.
fn split(text: &str) -> (String, Vec<(usize, String)>) {
    let mut code = String::new();
    let mut strings = Vec::new();
    let mut rest = text;
    let mut line = 1;
    let blank = |text: &str| text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect::<String>();
    while let Some(c) = rest.chars().next() {
        let is_word = code.ends_with(is_name);
        let raw = (!is_word).then(|| raw_string(rest)).flatten();
        let (taken, inside) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), None)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), None)
        } else if let Some((start, end, taken)) = raw {
            (taken, Some(&rest[start..end]))
        } else if c == '"' {
            let end = string_end(&rest[1..]) + 1;
            (end + 1, Some(&rest[1..end]))
        } else if c == '\'' {
            // A character, or the name of a lifetime, of which nothing needs to be blank.
            (character(rest), None)
        } else {
            code.push(c);
            line += usize::from(c == '\n');
            rest = &rest[c.len_utf8()..];
            continue;
        };
        let taken = taken.min(rest.len());
        strings.extend(inside.map(|inside| (line, inside.to_owned())));
        code.push_str(&blank(&rest[..taken]));
        line += rest[..taken].matches('\n').count();
        rest = &rest[taken..];
    }
    (code, strings)
}

/// Returns the inside of a raw string and the length of it all.
fn raw_string(text: &str) -> Option<(usize, usize, usize)> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.chars().take_while(|c| *c == '#').count();
    after[hashes..].starts_with('"').then_some(())?;
    let start = text.len() - after.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = start + text[start..].find(&close)?;
    Some((start, end, end + close.len()))
}

/// Returns where a string that has begun ends.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    text.len()
}

/// Returns the length of a character literal, or of the quote alone.
fn character(text: &str) -> usize {
    let inside = &text[1..];
    if inside.starts_with('\\') {
        return inside[2..].find('\'').map_or(1, |end| end + 4);
    }
    let Some(c) = inside.chars().next() else { return 1 };
    if inside[c.len_utf8()..].starts_with('\'') { c.len_utf8() + 2 } else { 1 }
}

/// Returns every Rust file below a folder of this repository.
fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is text");
                let path = path.strip_prefix(root).expect("it is below the root").to_string_lossy().replace('\\', "/");
                found.push(Source::read(path, text));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}
