//! Files of a room do not import each other in circles.
//!
//! A file and its submodule may know each other; more than two files in a circle can only be understood together.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, is_name, sources};

/// The most files that may import each other.
const CIRCLE_MAX: usize = 2;

/// Larger circles of today, by their files below `src/`. A circle may lose files but not gain any.
const KNOWN: &[&[&str]] = &[];

#[test]
fn files_import_each_other_in_no_circle() {
    let files = sources("src");
    let modules: BTreeSet<Vec<String>> = files.iter().map(module_of).collect();
    let graph: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> =
        files.iter().map(|file| (module_of(file), imports(file, &modules))).collect();
    let (mut faults, mut met) = (String::new(), BTreeSet::new());
    for circle in circles(&graph).into_iter().filter(|circle| circle.len() > CIRCLE_MAX) {
        let names: Vec<String> = circle.iter().map(|module| module.join("/")).collect();
        match KNOWN.iter().position(|known| names.iter().all(|name| known.contains(&name.as_str()))) {
            Some(known) => {
                met.insert(known);
            }
            None => faults.push_str(&format!("a circle of {} files: {}\n", names.len(), names.join(", "))),
        }
    }
    for (at, known) in KNOWN.iter().enumerate().filter(|(at, _)| !met.contains(at)) {
        faults.push_str(&format!("circle {at} of KNOWN is gone, remove it: {}\n", known.join(", ")));
    }
    assert!(faults.is_empty(), "in src/:\n{faults}");
}

/// Returns the path of the module that a file is: `["store", "slot"]`.
fn module_of(file: &Source) -> Vec<String> {
    let path = file.path.trim_start_matches("src/").trim_end_matches(".rs");
    path.trim_end_matches("/mod").split('/').map(str::to_owned).collect()
}

/// Returns the files that a file imports.
///
/// `lib.rs` only declares the rooms and `main.rs` only calls one: neither takes part. Test modules do not count.
fn imports(file: &Source, modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let module = module_of(file);
    let mut found = BTreeSet::new();
    if file.room().is_none() || module.last().is_some_and(|name| name == "tests") {
        return found;
    }
    for path in paths(&file.without_tests()) {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let ups = names.iter().take_while(|name| **name == "super").count();
        let full: Vec<String> = match names.as_slice() {
            ["crate", rest @ ..] => owned(rest),
            ["self", rest @ ..] => [module.clone(), owned(rest)].concat(),
            ["super", ..] => [module[..module.len().saturating_sub(ups)].to_vec(), owned(&names[ups..])].concat(),
            [first, ..] if modules.contains(&[module.clone(), vec![(*first).to_owned()]].concat()) => {
                [module.clone(), owned(&names)].concat()
            }
            _ => continue,
        };
        let imported = (1..=full.len()).rev().map(|length| full[..length].to_vec()).find(|path| modules.contains(path));
        found.extend(imported.filter(|imported| *imported != module));
    }
    found
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Returns every path of a `use`, and every path that begins with `crate`, `super` or `self`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if !code[..at].ends_with(is_name) {
            let tree = code[at + "use ".len()..].split(';').next().unwrap_or_default();
            expand(&[], tree, &mut found);
        }
    }
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            // `pub(in crate::store)` imports nothing.
            let is_path =
                !code[..at].ends_with(|c| is_name(c) || c == ':' || c == '$') && !code[..at].ends_with("(in ");
            if is_path {
                let end = code[at..].find(|c| !is_name(c) && c != ':').map_or(code.len(), |end| at + end);
                // `super::{a, b}` is in a `use`, which was expanded.
                if code[end..].starts_with('{') && code[at..end].ends_with("::") {
                    continue;
                }
                found.push(code[at..end].split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect());
            }
        }
    }
    found
}

/// Adds every path of a tree of imports: `a::{b, c::{d, e}}` has three.
fn expand(before: &[String], tree: &str, found: &mut Vec<Vec<String>>) {
    let names = |path: &str| -> Vec<String> {
        let path = path.split(" as ").next().unwrap_or_default();
        let names = path.split("::").map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        before.iter().cloned().chain(names).collect()
    };
    let Some((head, group)) = tree.split_once('{') else { return found.push(names(tree)) };
    let head = names(head);
    let (mut depth, mut from) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if !group[from..at].trim().is_empty() {
                    expand(&head, &group[from..at], found);
                }
                from = at + 1;
                if c == '}' {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// Returns the strongly connected parts of a graph that have several nodes.
fn circles<Node: Ord + Clone>(graph: &BTreeMap<Node, BTreeSet<Node>>) -> Vec<BTreeSet<Node>> {
    let reach: BTreeMap<&Node, BTreeSet<&Node>> = graph.keys().map(|node| (node, reachable(graph, node))).collect();
    let mut found: Vec<BTreeSet<Node>> = Vec::new();
    for node in graph.keys() {
        if found.iter().any(|circle| circle.contains(node)) {
            continue;
        }
        let back = |other: &&Node| reach.get(other).is_some_and(|from_other| from_other.contains(node));
        let circle: BTreeSet<Node> = reach[node].iter().copied().filter(back).cloned().collect();
        if circle.len() > 1 {
            found.push(circle);
        }
    }
    found
}

/// Returns what can be reached from a node over one edge or more.
fn reachable<'graph, Node: Ord>(graph: &'graph BTreeMap<Node, BTreeSet<Node>>, from: &Node) -> BTreeSet<&'graph Node> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&Node> = graph.get(from).into_iter().flatten().collect();
    while let Some(node) = next.pop() {
        if found.insert(node) {
            next.extend(graph.get(node).into_iter().flatten());
        }
    }
    found
}

#[test]
fn a_circle_is_found_in_groups_paths_and_submodules() {
    let read = |path: &str, text: &str| Source::parse(path.into(), text.into());
    let files = [
        read("src/store/mod.rs", "mod slot;\nuse self::slot::Slot;\n"),
        read("src/store/slot.rs", "use super::{Page, lease::{self, Lease as Held}};\n"),
        read("src/store/lease.rs", "fn f() { crate::store::slot::g() }\n#[cfg(test)]\nmod tests { use crate::cli; }"),
        read("src/cli/mod.rs", "use crate::store::Page;\n"),
    ];
    let modules: BTreeSet<Vec<String>> = files.iter().map(module_of).collect();
    let graph = files.iter().map(|file| (module_of(file), imports(file, &modules))).collect();
    let found: Vec<Vec<String>> =
        circles(&graph).iter().map(|circle| circle.iter().map(|module| module.join("/")).collect()).collect();
    assert_eq!(found, [["store", "store/lease", "store/slot"]]);
}
