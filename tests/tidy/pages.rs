//! The documents: every link leads somewhere, and the README stays short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::not_run::not_run;
use crate::repository::committed;
use crate::source::{Findings, root};

const README_BYTES_MAX: usize = 15_000;

/// Pages that name files as they are now; the changelog and measurements name those of their time.
const CURRENT: &[&str] = &["README.md", "CONTRIBUTING.md", "docs/", "schemas/", "tests/"];
/// Folders of this repository that paths in backquotes begin with.
const FOLDERS: &[&str] = &["src/", "tests/", "docs/", "contrib/", "packaging/", "schemas/", "benches/", "fuzz/"];

/// Paths that a page names and that do not exist yet.
const PATHS_TODAY: &[&str] = &[];

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let Some(files) = committed() else { return not_run("this is not a git repository") };
    let mut findings = Findings::default();
    let mut seen = 0;
    for page in files.iter().filter(|name| name.ends_with(".md")) {
        let Ok(text) = fs::read_to_string(root().join(page)) else { continue };
        for (line, link) in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let folder = Path::new(page).parent().unwrap_or(Path::new(""));
            let target = if file.is_empty() { PathBuf::from(page) } else { normalised(&folder.join(file)) };
            if !root().join(&target).exists() {
                findings.say(&format!("{page}:{line}: {link}: there is no {}", target.display()));
            } else if let Some(anchor) = anchor {
                let text = fs::read_to_string(root().join(&target)).unwrap_or_default();
                if !anchors(&text).contains(anchor) {
                    findings.say(&format!("{page}:{line}: {link}: {} has no such heading", target.display()));
                }
            }
        }
    }
    assert!(seen > 20, "the links were not parsed");
    findings.report();
}

#[test]
fn every_path_that_a_page_names_exists() {
    let Some(files) = committed() else { return not_run("this is not a git repository") };
    let mut findings = Findings::default();
    let mut missing = BTreeSet::new();
    for page in files.iter().filter(|page| page.ends_with(".md")) {
        if !CURRENT.iter().any(|place| page.starts_with(place)) {
            continue;
        }
        let text = fs::read_to_string(root().join(page)).unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            for path in line.split('`').skip(1).step_by(2).filter(|code| is_path(code)) {
                // Of `man/*.1`, `version-N.db` and `corpus/TARGET/` the fixed beginning must exist.
                let fixed = path.find(|c: char| c == '*' || c == '{' || c.is_ascii_uppercase()).map(|at| &path[..at]);
                let fixed = fixed.map_or(path, |fixed| &fixed[..fixed.rfind('/').map_or(0, |at| at + 1)]);
                if root().join(fixed).exists() {
                    continue;
                }
                missing.insert(path.to_owned());
                if !PATHS_TODAY.contains(&path) {
                    findings.say(&format!("{page}:{}: there is no {path}", number + 1));
                }
            }
        }
    }
    for path in PATHS_TODAY.iter().filter(|path| !missing.contains(**path)) {
        findings.say(&format!("{path} exists now: remove it from PATHS_TODAY"));
    }
    findings.report();
}

/// Returns whether a piece of code is the path of a file or folder, not a command or the name of a test.
fn is_path(code: &str) -> bool {
    FOLDERS.iter().any(|folder| code.starts_with(folder)) && !code.contains([' ', ':'])
}

#[test]
fn the_readme_is_short() {
    let size = fs::metadata(root().join("README.md")).expect("README.md exists").len();
    let max = README_BYTES_MAX as u64;
    assert!(size <= max, "README.md has {size} bytes, at most {max} are allowed: move the details to docs/");
}

/// Returns the targets of links and pictures, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let (target, after) = after.split_once(')').unwrap_or((after, ""));
            found.push((number, target.to_owned()));
            rest = after;
        }
    }
    found
}

/// Returns the anchor of each heading, as GitHub makes it.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter_map(|(_, line)| {
        let heading = line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?.to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        Some(kept.map(|c| if c == ' ' { '-' } else { c }).collect())
    });
    headings.collect()
}

/// Returns the lines outside of fenced code, without what is in backquotes.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut is_fenced = false;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        if !is_fence && !is_fenced {
            let is_heading = line.starts_with('#');
            let parts = line.split('`').enumerate().filter(|(at, _)| is_heading || at % 2 == 0);
            found.push((number + 1, parts.map(|(_, part)| part).collect()));
        }
    }
    found
}

/// Resolves `..` without touching the disk.
fn normalised(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                found.pop();
            }
            std::path::Component::CurDir => {}
            part => found.push(part),
        }
    }
    found
}

#[test]
fn links_and_anchors_are_read_as_github_reads_them() {
    let text = "# The `a-b` page, again\n[x](y.md#z) `[no](no.md)` ![p](q.png)\n```\n[no](no.md)\n# no\n```\n";
    assert_eq!(links(text), [(2, "y.md#z".to_owned()), (2, "q.png".to_owned())]);
    assert_eq!(anchors(text), BTreeSet::from(["the-a-b-page-again".to_owned()]));
    assert_eq!(normalised(Path::new("docs/../README.md")), Path::new("README.md"));
}
