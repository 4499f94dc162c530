//! Sizes and names: how long a function, a file and a list of parameters may be, and one type per name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::source::{Source, has_name, is_name, item_end, sources};

const LINES_MAX: usize = 80;
/// Without `self`.
const PARAMETERS_MAX: usize = 5;
/// Functions that a trait of the store may have.
const VERBS_MAX: usize = 12;

/// Functions that may be longer, with the reason.
const LONG: &[(&str, &str)] =
    &[("src/protocol/inspection.rs shape", "a flat table: one line for each endpoint, read from top to bottom")];

/// Longer functions of today.
const LONG_TODAY: &[&str] = &[];

/// Functions of today that take more parameters.
const PARAMETERS_TODAY: &[&str] = &[];

/// Type names of today that several files use.
const SHARED_TODAY: &[&str] = &[];

/// Files and folders with a limit of their own, in lines.
const SIZES: &[(&str, usize, &str)] = &[
    ("src/store/mod.rs", 400, "the traits and their promises: errors, work and views have files of their own"),
    ("src/cli", 4_500, "commands parse, call one room and print"),
];

/// Sizes of today that are larger.
const SIZES_TODAY: &[&str] = &[];

/// Traits of today in `src/store/` that have more functions, or a path in a signature.
const TRAITS_TODAY: &[&str] = &[];

/// Types and words that no trait of the store has in a signature: another engine has no files.
const FILE_TYPES: &[&str] = &["Path", "PathBuf", "OsStr", "OsString", "FileId", "Metadata", "File"];
const FILE_WORDS: &[&str] = &["path", "inode", "file_size"];

#[test]
fn no_function_is_too_long() {
    let found = functions().into_iter().filter(|function| function.lines > LINES_MAX);
    let exceptions: Vec<&str> = LONG.iter().map(|(name, _)| *name).chain(LONG_TODAY.iter().copied()).collect();
    let describe = |function: &Function| format!("{} has {} lines: split it", function.name, function.lines);
    compare(found.map(|function| (function.name.clone(), describe(&function))), &exceptions);
}

#[test]
fn no_function_takes_too_many_parameters() {
    let found = functions().into_iter().filter(|function| function.parameters > PARAMETERS_MAX);
    let describe = |function: &Function| {
        format!("{} takes {} parameters: pass what belongs together as one", function.name, function.parameters)
    };
    compare(found.map(|function| (function.name.clone(), describe(&function))), PARAMETERS_TODAY);
}

#[test]
fn a_name_belongs_to_one_type() {
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for found in src().iter() {
        for name in &found.types {
            files.entry(name.clone()).or_default().insert(found.path.clone());
        }
    }
    let shared = files.into_iter().filter(|(_, files)| files.len() > 1);
    let describe = |name: &str, files: BTreeSet<String>| {
        let files: Vec<String> = files.into_iter().collect();
        format!("{name} is a type in {}: name each after what it is outside its file", files.join(" and "))
    };
    compare(shared.map(|(name, files)| (name.clone(), describe(&name, files))), SHARED_TODAY);
}

#[test]
fn files_with_a_limit_stay_below_it() {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for file in sources("src") {
        for (place, _, _) in SIZES {
            if file.path == *place || file.path.starts_with(&format!("{place}/")) {
                *lines.entry(place).or_default() += file.text.lines().count();
            }
        }
    }
    let found = SIZES.iter().filter(|(place, max, _)| lines.get(place).is_some_and(|lines| lines >= max));
    let describe = |place: &str, max: usize, why: &str| {
        format!("{place} has {} lines, and may have fewer than {max}: {why}", lines[place])
    };
    compare(found.map(|(place, max, why)| ((*place).to_owned(), describe(place, *max, why))), SIZES_TODAY);
}

#[test]
fn the_traits_of_the_store_are_small_and_know_no_files() {
    let mut found = Vec::new();
    for file in sources("src/store").iter().filter(|file| file.path.matches('/').count() == 2) {
        let code = file.without_tests();
        for (at, name) in items(&code, &["trait"]) {
            let item = &code[at..at + item_end(&code[at..])];
            let name = format!("{} {name}", file.path);
            let verbs: Vec<(usize, &str)> = items(item, &["fn"]).collect();
            if verbs.len() > VERBS_MAX {
                found.push((name.clone(), format!("{name} has {} verbs: split it by caller", verbs.len())));
            }
            for (at, verb) in verbs {
                let signature = &item[at..at + item[at..].find(['{', ';']).unwrap_or(0)];
                let mut words = signature.split(|c| !is_name(c));
                let is_of_files =
                    |word: &&str| FILE_TYPES.contains(word) || FILE_WORDS.iter().any(|file| has_part(word, file));
                if let Some(word) = words.find(is_of_files) {
                    let about = format!("{name}::{verb} speaks of files ({word}): not every engine has them");
                    found.push((name.clone(), about));
                }
            }
        }
    }
    compare(found.into_iter(), TRAITS_TODAY);
}

/// Returns whether a name has this part: `file_path` has `path`, `pathological` does not.
fn has_part(name: &str, part: &str) -> bool {
    format!("_{name}_").contains(&format!("_{part}_"))
}

/// Fails for each finding that is not an exception, and for each exception without a finding.
#[track_caller]
fn compare(found: impl Iterator<Item = (String, String)>, exceptions: &[&str]) {
    let (mut faults, mut met) = (String::new(), BTreeSet::new());
    for (name, finding) in found {
        if !exceptions.contains(&name.as_str()) {
            writeln!(faults, "{finding}").expect("a string is writable");
        }
        met.insert(name);
    }
    for exception in exceptions.iter().filter(|exception| !met.contains(**exception)) {
        writeln!(faults, "the exception {exception:?} is no longer needed: remove it").expect("a string is writable");
    }
    assert!(faults.is_empty(), "against the house rules:\n{faults}");
}

/// A function of `src/` outside of tests.
#[derive(Debug, PartialEq)]
struct Function {
    /// Its file and its name.
    name: String,
    /// From its signature to its closing brace.
    lines: usize,
    parameters: usize,
}

/// The definitions in a file of `src/`, without its tests.
struct Definitions {
    path: String,
    functions: Vec<Function>,
    types: Vec<String>,
}

fn src() -> Vec<Definitions> {
    let files = sources("src").into_iter().filter(|file| !file.path.ends_with("/tests.rs"));
    files.map(|file| Definitions::of(&file)).collect()
}

fn functions() -> Vec<Function> {
    src().into_iter().flat_map(|definitions| definitions.functions).collect()
}

impl Definitions {
    fn of(file: &Source) -> Self {
        let code = file.without_tests();
        let functions = items(&code, &["fn"]).filter_map(|(at, name)| {
            let signature = &code[at..];
            let body = signature.find(['{', ';']).filter(|end| signature[*end..].starts_with('{'))?;
            let lines = signature[..body + item_end(&signature[body..])].matches('\n').count() + 1;
            Some(Function { name: format!("{} {name}", file.path), lines, parameters: parameters(signature) })
        });
        // A type in a trait or an implementation is an associated one; those are indented.
        let is_associated = |at: usize| code[at..].starts_with("type") && code[..at].ends_with("    ");
        let types = items(&code, &["struct", "enum", "trait", "type", "union"]).filter(|(at, _)| !is_associated(*at));
        let types = types.map(|(_, name)| name.to_owned()).collect();
        Self { path: file.path.clone(), functions: functions.collect(), types }
    }
}

/// Returns the items of these kinds: where each begins, with its name.
fn items<'code>(code: &'code str, kinds: &'code [&str]) -> impl Iterator<Item = (usize, &'code str)> {
    let of_kind = move |kind: &'code &str| {
        code.match_indices(*kind).filter_map(move |(at, _)| {
            let after = &code[at + kind.len()..];
            let name = after.strip_prefix(' ')?;
            let name = &name[..name.find(|c| !is_name(c)).unwrap_or(name.len())];
            (!name.is_empty() && !code[..at].ends_with(is_name)).then_some((at, name))
        })
    };
    kinds.iter().flat_map(of_kind)
}

/// Counts the parameters of a signature, without `self`.
fn parameters(signature: &str) -> usize {
    let (mut depth, mut generic, mut count, mut parameter) = (0, 0, 0, String::new());
    let mut previous = ' ';
    for c in signature.chars() {
        match c {
            '<' => generic += 1,
            '>' if previous != '-' => generic -= 1,
            '(' | '[' if depth > 0 || generic == 0 => depth += 1,
            ')' | ']' if depth > 0 => depth -= 1,
            _ => {}
        }
        let is_end = c == ')' && depth == 0 && generic == 0;
        if is_end || c == ',' && depth == 1 && generic == 0 {
            count += usize::from(!parameter.trim().is_empty() && !has_name(&parameter, "self"));
            parameter.clear();
        } else if depth > 0 && !(depth == 1 && c == '(' && parameter.is_empty()) {
            parameter.push(c);
        }
        if is_end {
            break;
        }
        previous = c;
    }
    count
}

#[test]
fn definitions_are_counted_as_they_are_written() {
    let text = "struct A;\nimpl A {\n    type T = u8;\n    #[must_use]\n    fn f<F: Fn(u8) -> u8>(\n        &self,\n        \
                a: Vec<(u8, u8)>,\n    ) -> u8 {\n        a\n    }\n}\ntrait B { fn g(); fn h(a: u8, b: F<u8, u8>) \
                { struct C; } }\n#[cfg(test)]\nmod tests { struct D; fn i() {} }\n";
    let definitions = Definitions::of(&Source::parse("x.rs".into(), text.into()));
    let function = |name: &str, lines, parameters| Function { name: format!("x.rs {name}"), lines, parameters };
    assert_eq!(definitions.functions, [function("f", 6, 1), function("h", 1, 2)]);
    assert_eq!(definitions.types, ["A", "C", "B"]);
}
