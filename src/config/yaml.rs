//! `config.yaml`, the agent's own settings. The only module that names `serde_yaml`.
//!
//! `serde_yaml` is archived: its author marked 0.9.34 deprecated and will release no more. It still reads YAML
//! correctly, is what this project was asked to use, and sees only a small local file that the user wrote, never
//! anything from the network. Deep nesting, which costs it time quadratic in the depth, is rejected before parsing. If
//! it has to be replaced, only this file changes.

use std::collections::BTreeMap;

use serde_yaml::Value;

/// A parse error: the text is not a flat mapping of settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct YamlError {
    /// Counted from 1.
    pub(super) line: Option<usize>,
    pub(super) reason: String,
}

/// Maximum nesting depth of brackets; settings need none.
const OPEN_BRACKETS_MAX: usize = 32;
/// Maximum size of the file in bytes; the parser allocates tens of bytes for each.
const BYTES_MAX: usize = 64 * 1024;

/// Returns why a text must not be parsed, if so. Brackets in quotes and comments count too: only
/// the parser could exclude them.
fn reject_before_parsing(text: &str) -> Option<YamlError> {
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

/// Parses keys and values as text; a key without a value (`null`) is skipped, an empty file has none.
///
/// Values are converted back to text so that all layers are parsed by the same code and fail with the same errors.
pub(super) fn read_mapping(text: &str) -> Result<BTreeMap<String, String>, YamlError> {
    if let Some(error) = reject_before_parsing(text) {
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
        // Does not quote the text, which may hold a token.
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
    fn scalars_are_converted_to_text() {
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
    fn nested_mappings_are_rejected_with_their_line() {
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
