//! Every promise names its tests, and every promise has a mutation that breaks it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The page with the table of promises.
const PROMISES: &str = "docs/promises.md";

#[test]
fn every_promise_names_existing_tests_and_a_command_that_runs_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join(PROMISES)).expect("docs/promises.md exists");
    let (_, rest) = page.split_once("<!-- promises -->\n").expect("a mark begins the table of promises");
    let (table, _) = rest.split_once("<!-- end of promises -->").expect("a mark ends the table of promises");
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
            let (file, name) =
                test.split_once("::").unwrap_or_else(|| panic!("{test} is not of the form file.rs::name"));
            let is_unit = file.starts_with("src/");
            let path = if is_unit { root.join(file) } else { root.join("tests").join(file) };
            let text = fs::read_to_string(&path).unwrap_or_default();
            let is_there = (text.split("#[test]").skip(1))
                .any(|after| after.split_once("fn ").is_some_and(|(_, rest)| rest.starts_with(&format!("{name}("))));
            if !is_there {
                let _ = writeln!(faults, "{promise}: {test} is not a test");
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
    assert!(seen > 50, "the table of promises was not parsed");
    assert!(faults.is_empty(), "{PROMISES} promises more than the tests show:\n{faults}");
}

/// The list of mutations (`tests/mutations`) can be run: each line that it breaks is there, and once, and each test,
/// too; and every promise has at least one.
#[test]
fn every_promise_has_a_mutation_and_every_mutation_can_be_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (list, page) = (read("tests/mutations/list.toml"), read(PROMISES));
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
    let table = page.split("<!-- promises -->\n").nth(1).and_then(|rest| rest.split("<!-- end").next());
    let promises = || table.unwrap_or_default().lines().skip(2).map(|row| row.trim_start_matches("| "));
    for promise in promises() {
        if !entries.iter().any(|(begins, _)| promise.starts_with(begins)) {
            let _ = writeln!(faults, "no mutation breaks the promise: {promise:.100}");
        }
    }
    for (begins, _) in entries.iter().filter(|(begins, _)| !promises().any(|promise| promise.starts_with(begins))) {
        let _ = writeln!(faults, "no promise begins with {begins:?}");
    }
    assert!(promises().count() > 40 && entries.len() > 40, "the lists were not parsed");
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
