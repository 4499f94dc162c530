//! Reads Rust files: their code with comments and strings separated, their imports, and what was found in them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Violations of a rule, reported together.
#[derive(Default)]
pub(crate) struct Findings(String);

impl Findings {
    pub(crate) fn add(&mut self, file: &Source, line: usize, rule: &str) {
        self.say(&format!("{}:{line}: {rule}", file.path));
    }

    pub(crate) fn say(&mut self, finding: &str) {
        writeln!(self.0, "{finding}").expect("a string is writable");
    }

    #[track_caller]
    pub(crate) fn report(self) {
        assert!(self.0.is_empty(), "against the house rules:\n{}", self.0);
    }
}

/// A source file with its code, strings and comments separated.
pub(crate) struct Source {
    /// Relative to the root of the repository.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with comments and the contents of strings blanked; its lines are those of the text.
    pub(crate) code: String,
    /// The contents of string literals as written, with the line they begin in.
    pub(crate) strings: Vec<(usize, String)>,
    /// Comments as written, with their line.
    pub(crate) comments: Vec<(usize, String)>,
}

impl Source {
    pub(crate) fn parse(path: String, text: String) -> Self {
        let Split { code, strings, comments } = split(&text);
        Self { path, text, code, strings, comments }
    }

    /// Returns the room that the file belongs to; `lib.rs` and `main.rs` belong to none.
    pub(crate) fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let room = inside.split('/').next()?.trim_end_matches(".rs");
        (!["lib", "main"].contains(&room)).then_some(room)
    }

    /// Returns the names of this list that the code uses, with their lines.
    pub(crate) fn named<'a>(&self, names: &[&'a str]) -> Vec<(usize, &'a str)> {
        let lines = self.code.lines().enumerate();
        lines
            .flat_map(|(number, line)| {
                names.iter().filter(move |name| has_name(line, name)).map(move |name| (number + 1, *name))
            })
            .collect()
    }

    pub(crate) fn line(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// Returns the code with every item under `#[cfg(test)]` blanked.
    pub(crate) fn without_tests(&self) -> String {
        let mut code = self.code.clone();
        while let Some(at) = code.find("#[cfg(test)]") {
            let end = at + item_end(&code[at..]);
            let blank: String = code[at..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            code = format!("{}{blank}{}", &code[..at], &code[end..]);
        }
        code
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns every Rust file below a folder of this repository.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("the folder is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is text");
                let path =
                    path.strip_prefix(root()).expect("it is below the root").to_string_lossy().replace('\\', "/");
                found.push(Source::parse(path, text));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

pub(crate) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns whether a line contains this name, and not only as a part of a longer one.
pub(crate) fn has_name(line: &str, name: &str) -> bool {
    line.match_indices(name)
        .any(|(at, _)| !line[..at].ends_with(is_name) && !line[at + name.len()..].starts_with(is_name))
}

/// Returns where the item that begins here ends: after its closing brace, or its semicolon.
pub(crate) fn item_end(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 && (c == '}' || c == ';') {
            return at + 1;
        }
    }
    code.len()
}

/// The parts of a text.
struct Split {
    code: String,
    strings: Vec<(usize, String)>,
    comments: Vec<(usize, String)>,
}

/// Separates code from comments and strings.
fn split(text: &str) -> Split {
    let (mut code, mut strings, mut comments) = (String::new(), Vec::new(), Vec::new());
    let mut rest = text;
    let mut line = 1;
    let blank = |text: &str| text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect::<String>();
    while let Some(c) = rest.chars().next() {
        let is_word = code.ends_with(is_name);
        let raw = (!is_word).then(|| raw_string(rest)).flatten();
        let (taken, inside) = if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            comments.push((line, rest[..end].to_owned()));
            (end, None)
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(rest.len(), |end| end + 2);
            comments.push((line, rest[..end].to_owned()));
            (end, None)
        } else if let Some((start, end, taken)) = raw {
            (taken, Some(&rest[start..end]))
        } else if c == '"' {
            let end = string_end(&rest[1..]) + 1;
            (end + 1, Some(&rest[1..end]))
        } else if c == '\'' {
            // A character, or a lifetime, which needs no blanking.
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
    Split { code, strings, comments }
}

/// Returns where the contents of a raw string begin and end, and the length of the whole literal.
fn raw_string(text: &str) -> Option<(usize, usize, usize)> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.chars().take_while(|c| *c == '#').count();
    after[hashes..].starts_with('"').then_some(())?;
    let start = text.len() - after.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = start + text[start..].find(&close)?;
    Some((start, end, end + close.len()))
}

/// Returns where a string ends, given the text after its opening quote.
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

#[test]
fn code_strings_and_comments_are_separated() {
    let text = "//! crate::cli\nfn f<'a>() { /* ureq */ g(\"ureq \\\" SELECT\", '\"', r#\"SELECT 1\"#); }\n";
    let file = Source::parse("src/intake/mod.rs".into(), text.into());
    assert_eq!(file.room(), Some("intake"));
    assert_eq!(file.named(&["ureq"]), []);
    assert_eq!(file.strings, [(2, "ureq \\\" SELECT".to_owned()), (2, "SELECT 1".to_owned())]);
    assert_eq!(file.comments, [(1, "//! crate::cli".to_owned()), (2, "/* ureq */".to_owned())]);
    assert_eq!(Source::parse("src/main.rs".into(), String::new()).room(), None);
}
