//! `config.yaml`, the agent's own settings. The only module that names `serde_yaml`.
//!
//! `serde_yaml` is archived: its author marked 0.9.34 deprecated and will release no more. It still reads YAML
//! correctly, is what this project was asked to use, and sees only a small local file that the user wrote, never
//! anything from the network. What is nested deep, which costs it the square of the depth, is refused before. Should it have to go, this file is the one to replace.

use std::collections::BTreeMap;

use serde_yaml::Value;

/// Why the text is no flat mapping of settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct YamlError {
    /// Counted from 1.
    pub(super) line: Option<usize>,
    pub(super) reason: String,
}

/// Brackets that are open at once; settings need none.
const OPEN_BRACKETS_MAX: usize = 32;
/// Bytes of a file; the parser keeps tens of bytes for each.
const BYTES_MAX: usize = 64 * 1024;

/// Returns why a text is not given to the parser, if it is not. Brackets in quotes and comments count, too: to tell them is
/// the parser's work.
fn refuse(text: &str) -> Option<YamlError> {
    if text.len() > BYTES_MAX {
        return Some(YamlError { line: None, reason: "it is larger than 64KiB".to_owned() });
    }
    let mut open: usize = 0;
    let mut line = 1;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            b'\n' => line += 1,
            _ => {}
        }
        if open > OPEN_BRACKETS_MAX {
            return Some(YamlError { line: Some(line), reason: "too many brackets are open".to_owned() });
        }
    }
    None
}

/// Returns keys and values as text; a key without a value (`null`) is left out, an empty file has none.
///
/// Values become text again so that every layer is understood by the same code and fails with the same words.
pub(super) fn read_mapping(text: &str) -> Result<BTreeMap<String, String>, YamlError> {
    if let Some(error) = refuse(text) {
        return Err(error);
    }
    let document: Value = serde_yaml::from_str(text).map_err(|error| {
        let line = error.location().map(|location| location.line());
        // The position is already in `line`; the crate repeats it at the end of its message.
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or(&reason).to_owned();
        YamlError { line, reason }
    })?;
    let mapping = match document {
        Value::Mapping(mapping) => mapping,
        Value::Null => return Ok(BTreeMap::new()),
        // Said without the text, in which a token may stand.
        _ => return Err(YamlError { line: None, reason: "expected lines of the form `key: value`".to_owned() }),
    };
    let mut values = BTreeMap::new();
    for (key, value) in mapping {
        let Some(key) = scalar(&key) else {
            return Err(YamlError { line: None, reason: "a key is not plain text".to_owned() });
        };
        match scalar(&value) {
            Some(text) => {
                values.insert(key, text);
            }
            None if value.is_null() => {}
            None => {
                let reason = format!("{key}: expected a single value, found a list or mapping");
                return Err(YamlError { line: None, reason });
            }
        }
    }
    Ok(values)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_scalar_becomes_its_text() {
        let text = "listen: 127.0.0.1:6745\nmax_size: 10GiB\nmax_attempts: 7\nretry_interval: 0.5\ninsecure_listen: true\nshutdown_timeout:\n";
        let values = read_mapping(text).expect("valid");
        let values: Vec<_> = values.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = [
            ("insecure_listen", "true"),
            ("listen", "127.0.0.1:6745"),
            ("max_attempts", "7"),
            ("max_size", "10GiB"),
            ("retry_interval", "0.5"),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn an_empty_file_has_no_settings() {
        for text in ["", "# nothing\n", "---\n", "{}"] {
            assert_eq!(read_mapping(text), Ok(BTreeMap::new()), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_flat_mapping_is_refused_with_its_line() {
        let cases = [
            ("retry_interval: 7s\nlisten: [", true, "did not find"),
            ("- listen\n", false, "key: value"),
            ("just words", false, "key: value"),
            ("db: a\ndb: b\n", false, "duplicate entry"),
            ("db: {a: b}\n", false, "db: expected a single value"),
            ("? [a]\n: b\n", false, "a key is not plain text"),
            ("a: b\n---\nc: d\n", false, "more than one document"),
            (&format!("db: a\nlisten: {}", "[".repeat(200_000)), false, "larger than 64KiB"),
            (&format!("db: a\nlisten: {}", "[".repeat(33)), true, "brackets"),
            (&"{a: ".repeat(60_000 / 4), true, "brackets"),
            (&format!("db: {}", "- ".repeat(30_000)), true, ""),
        ];
        for (text, has_line, reason) in cases {
            let error = read_mapping(text).expect_err(text);
            assert!(error.reason.contains(reason), "{text:?}: {error:?}");
            assert!(error.line.is_some() || !has_line, "{text:?}: {error:?}");
        }
    }
}
