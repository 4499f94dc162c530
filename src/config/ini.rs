//! `~/.opik.config`, parsed as Python's `configparser` parses it.
//!
//! The file belongs to the SDKs, so Python's parser defines its meaning:
//! `ConfigParser(interpolation=None)`, strict. The first `=` or `:` ends the key, keys have no case, `#` and `;` start
//! a comment at the beginning of a line only, a deeper indented line continues the value above it, `[DEFAULT]` fills
//! every section. A duplicate key or section is an error there and here. One exception: a byte order mark, on which
//! Python fails, is skipped.
//!
//! The crates were tried first. `configparser` strips inline comments (a `;` or `#` inside a key or URL would be lost)
//! and takes the last of two duplicate keys; `rust-ini` keeps the case of keys and reports neither duplicates nor a
//! missing section.

use std::collections::BTreeMap;

/// A parse error: a line that `configparser` would reject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct IniError {
    /// Counted from 1.
    pub line: usize,
    /// The cause.
    pub reason: IniReason,
}

/// The cause of a parse error. It does not quote the line, which may hold the API key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IniReason {
    #[error("expected a section such as [opik] before the first key")]
    NoSection,
    #[error("expected `key = value`")]
    NoDelimiter,
    #[error("no key before the delimiter")]
    NoKey,
    #[error("section [{0}] is a duplicate")]
    DuplicateSection(String),
    #[error("key {key} is a duplicate in section [{section}]")]
    DuplicateKey { section: String, key: String },
}

type Section = BTreeMap<String, Vec<String>>;

/// The section whose keys count for every other one.
const DEFAULTS: &str = "DEFAULT";

/// Parses the text and returns the keys, in lower case, and values of one section; empty if the section does not exist.
pub fn read_section(text: &str, section: &str) -> Result<BTreeMap<String, String>, IniError> {
    let mut sections = read(text)?;
    // As in Python: without the section itself, its defaults mean nothing.
    let Some(own) = sections.remove(section) else {
        return Ok(BTreeMap::new());
    };
    let mut keys = sections.remove(DEFAULTS).unwrap_or_default();
    keys.extend(own);
    let join = |lines: Vec<String>| lines.join("\n").trim().to_owned();
    Ok(keys.into_iter().map(|(key, lines)| (key, join(lines))).collect())
}

fn read(text: &str) -> Result<BTreeMap<String, Section>, IniError> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut section: Option<String> = None;
    let mut key: Option<String> = None;
    let mut indent = 0;
    for (number, line) in lines(text) {
        let fail = |reason| IniError { line: number, reason };
        let content = line.trim();
        if content.starts_with(['#', ';']) {
            continue;
        }
        let open_value = match (&section, &key) {
            (Some(section), Some(key)) => sections.get_mut(section).and_then(|keys| keys.get_mut(key)),
            _ => None,
        };
        if content.is_empty() {
            if let Some(value) = open_value {
                value.push(String::new());
            }
            continue;
        }
        let line_indent = line.chars().take_while(|c| c.is_whitespace()).count();
        if let Some(value) = open_value
            && line_indent > indent
        {
            value.push(content.to_owned());
            continue;
        }
        indent = line_indent;
        if let Some(header) = header(content) {
            if header != DEFAULTS && sections.contains_key(header) {
                return Err(fail(IniReason::DuplicateSection(header.to_owned())));
            }
            sections.entry(header.to_owned()).or_default();
            section = Some(header.to_owned());
            key = None;
            continue;
        }
        let Some(current) = &section else {
            return Err(fail(IniReason::NoSection));
        };
        let (name, value) = content.split_once(['=', ':']).ok_or_else(|| fail(IniReason::NoDelimiter))?;
        let name = name.trim().to_lowercase();
        if name.is_empty() {
            return Err(fail(IniReason::NoKey));
        }
        let keys = sections.entry(current.clone()).or_default();
        if keys.insert(name.clone(), vec![value.trim().to_owned()]).is_some() {
            return Err(fail(IniReason::DuplicateKey { section: current.clone(), key: name }));
        }
        key = Some(name);
    }
    Ok(sections)
}

/// Returns the lines with their numbers; `\n`, `\r\n` and `\r` end one, as in Python's text mode.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rest = Some(text);
    let lines = std::iter::from_fn(move || {
        let current = rest?;
        let Some(end) = current.find(['\n', '\r']) else {
            rest = None;
            // A trailing line end does not start another line.
            return (!current.is_empty()).then_some(current);
        };
        let ending = if current[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&current[end + ending..]);
        Some(&current[..end])
    });
    (1..).zip(lines)
}

/// Returns the section's name: up to the last bracket, and what follows it is ignored, as in Python 3.8 to 3.12.
fn header(content: &str) -> Option<&str> {
    let inner = content.strip_prefix('[')?;
    let name = &inner[..inner.rfind(']')?];
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each expectation was taken from Python 3.11's `ConfigParser(interpolation=None)`, with outer space taken off.
    #[test]
    fn parsing_matches_configparser() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("[opik]\na = x ; y # z\n", &[("a", "x ; y # z")]),
            ("[opik]\n# c\n  ; d\na=1", &[("a", "1")]),
            ("[opik]\na = x\n  y\nb=1\n", &[("a", "x\ny"), ("b", "1")]),
            ("[opik]\na = x\n  # y\n  z\n", &[("a", "x\nz")]),
            ("[opik]\na = x\n\n  z\n", &[("a", "x\n\nz")]),
            ("[opik]\na = x\n  y\n\n\n  z\n\n", &[("a", "x\ny\n\n\nz")]),
            ("[opik]\n   a = x\n   b = y\n", &[("a", "x"), ("b", "y")]),
            ("[opik]\n  a = x\n    b = y\n", &[("a", "x\nb = y")]),
            ("[opik]\na = x\n  [foo]\n", &[("a", "x\n[foo]")]),
            ("[opik] junk\na=1\n", &[("a", "1")]),
            ("[DEFAULT]\na=1\nb=3\n[opik]\nb=2\n", &[("a", "1"), ("b", "2")]),
            ("[DEFAULT]\na=1\n", &[]),
            ("[Opik]\na=1\n", &[]),
            ("[opik]]\na=1\n", &[]),
            ("[opik]\na =\n  x\n", &[("a", "x")]),
            ("  [opik]\n  a=1\n", &[("a", "1")]),
            ("[opik]\r\na=1\r\nb=2", &[("a", "1"), ("b", "2")]),
            ("[opik]\ra=1\rb=2", &[("a", "1"), ("b", "2")]),
            ("[opik]\na: b=c\n", &[("a", "b=c")]),
            ("[opik]\na==b\n", &[("a", "=b")]),
            ("[opik]\nURL_Override = http://h:80/api\n", &[("url_override", "http://h:80/api")]),
            ("[opik]\na = \"x\"\n", &[("a", "\"x\"")]),
            ("[opik]\na = %(b)s\n", &[("a", "%(b)s")]),
            ("[other]\na=1\n[opik]\na=2\n", &[("a", "2")]),
            ("\u{feff}[opik]\na=1\n", &[("a", "1")]),
        ];
        for (text, expected) in cases {
            let read = read_section(text, "opik").unwrap_or_else(|e| panic!("{text:?}: line {}: {e}", e.line));
            let read: Vec<_> = read.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(read, *expected, "{text:?}");
        }
    }

    #[test]
    fn errors_of_configparser_are_rejected_with_their_line() {
        let duplicate_key = IniReason::DuplicateKey { section: "opik".into(), key: "a".into() };
        let cases = [
            ("a=1\n", 1, IniReason::NoSection),
            ("\n[opik\na=1\n", 2, IniReason::NoSection),
            ("[]\na=1", 1, IniReason::NoSection),
            ("[opik]\njust words\n", 2, IniReason::NoDelimiter),
            ("[opik]\n= x\n", 2, IniReason::NoKey),
            ("[opik]\na=1\nA=2\n", 3, duplicate_key),
            ("[opik]\na=1\n[x]\n\n[opik]\nb=2\n", 5, IniReason::DuplicateSection("opik".into())),
        ];
        for (text, line, reason) in cases {
            assert_eq!(read_section(text, "opik"), Err(IniError { line, reason }), "{text:?}");
        }
    }

    #[test]
    fn default_sections_are_merged() {
        let read = read_section("[DEFAULT]\na=1\n[DEFAULT]\nb=2\n[opik]\n", "opik").expect("Python reads it");
        assert_eq!(read.into_iter().collect::<Vec<_>>(), [("a".into(), "1".into()), ("b".into(), "2".into())]);
    }

    proptest! {
        #[test]
        fn output_of_configparser_round_trips(keys in prop::collection::btree_map("[a-z_]{1,12}", "[!-~]([ -~]{0,30}[!-~])?", 0..8)) {
            let mut text = "[opik]\n".to_owned();
            for (key, value) in &keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
            text.push('\n');
            prop_assert_eq!(read_section(&text, "opik"), Ok(keys));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "([\\[\\]=:#; \ta\n\r\u{feff}é]|\\PC){0,60}") {
            let _ = read_section(&text, "opik");
        }
    }
}
