//! Results in YAML that every parser reads alike.
//!
//! `serde_yaml` writes a string without quotes if YAML 1.2 parses it as a string. Parsers of YAML 1.1, such as PyYAML,
//! parse `off`, `no` or `y` as booleans, and `2026-11-23`, `12:30:45` or `1_000` as dates and numbers
//! (<https://yaml.org/type/>): such ambiguous strings are quoted here.

use serde::Serialize;
use serde_yaml::{Mapping, Value};

use crate::printable::judged;

/// Returns a result as a YAML document.
///
/// # Errors
///
/// Fails if the result can't be serialized, such as a map with a key that is not a string.
pub(crate) fn to_string<T: Serialize>(result: &T) -> Result<String, serde_yaml::Error> {
    let mut value = serde_yaml::to_value(result)?;
    let mut placeholders = Placeholders { mark: format!("q{}q", uuid::Uuid::now_v7().simple()), texts: Vec::new() };
    placeholders.insert(&mut value);
    let document = serde_yaml::to_string(&value)?;
    Ok(placeholders.replace_in(&document))
}

/// Strings that have to be quoted. The serializer gets a unique placeholder for each, which needs no quotes.
struct Placeholders {
    mark: String,
    texts: Vec<String>,
}

impl Placeholders {
    fn insert(&mut self, value: &mut Value) {
        match value {
            Value::String(text) if is_ambiguous(text) => {
                let standing = format!("{}{}q", self.mark, self.texts.len());
                self.texts.push(std::mem::replace(text, standing));
            }
            Value::Sequence(values) => values.iter_mut().for_each(|value| self.insert(value)),
            Value::Mapping(mapping) => {
                let entries = std::mem::take(mapping).into_iter().map(|(mut key, mut value)| {
                    self.insert(&mut key);
                    self.insert(&mut value);
                    (key, value)
                });
                *mapping = entries.collect::<Mapping>();
            }
            Value::Tagged(tagged) => self.insert(&mut tagged.value),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Returns the document with the strings in their places, quoted as in JSON, which YAML parses the same.
    fn replace_in(&self, document: &str) -> String {
        let mut pieces = document.split(self.mark.as_str());
        let mut shown = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (number, rest) = piece.split_once('q').unwrap_or((piece, ""));
            let text = number.parse().ok().and_then(|number: usize| self.texts.get(number));
            shown.push_str(&quoted(text.map_or("", String::as_str)));
            shown.push_str(rest);
        }
        shown
    }
}

/// Returns a quoted string. YAML parses JSON strings, but some parsers read a surrogate pair as two characters.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for (c, is_safe) in judged(&serde_json::Value::from(text).to_string()) {
        match c {
            c if is_safe => quoted.push(c),
            c => quoted.push_str(&match u32::from(c) {
                code @ 0..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    quoted
}

/// Returns whether a string needs quotes: a YAML parser would parse it as another type, or it holds control characters.
/// The serializer itself quotes strings of several lines.
fn is_ambiguous(text: &str) -> bool {
    const WORDS: [&str; 12] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", "=", "<<"];
    if judged(text).any(|(c, is_safe)| !is_safe && !matches!(c, '\n' | '\t')) {
        return true;
    }
    let is_plain = !text.chars().any(char::is_control);
    let starts_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    is_plain && (starts_like_a_number || WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        let text = "a\u{1b}[8m\u{9b}\u{85}\u{202e}\u{2028}\u{7f}\u{e0041}\u{10ffff}\r\n\tä日";
        let result = serde_json::json!({ "name": text, text: [text], "lines": "1\n2\u{85}", "bidi": "a\u{202e}b", "flood": "\u{301}".repeat(9) });
        let document = to_string(&result).expect("YAML");
        assert!(judged(&document).all(|(c, is_safe)| is_safe || c == '\n'), "{document:?}");
        let back: serde_json::Value = serde_yaml::from_str(&document).expect("a document of this serializer");
        assert_eq!(back, result, "a parser reads something else from\n{document}");
    }

    #[test]
    fn strings_that_yaml_1_1_parses_as_another_type_are_quoted() {
        let result = serde_json::json!({
            "state": "off", "at": "2026-11-23T05:10:17Z", "workspace": "No", "project": "1_000", "took": "12:30:45",
            "on": "y", "quote": "1 \"and\" \\", "text": "off we go", "lines": "1\n2", "empty": "", "count": 3, "is": true,
            "none": null, "list": ["~", "a", ["0x1f", -4]],
        });
        let document = to_string(&result).expect("YAML");
        for line in [
            "state: \"off\"",
            "at: \"2026-11-23T05:10:17Z\"",
            "workspace: \"No\"",
            "project: \"1_000\"",
            "took: \"12:30:45\"",
            "\"on\": \"y\"",
            r#"quote: "1 \"and\" \\""#,
            "text: off we go",
            "count: 3",
            "is: true",
            "none: null",
            "- \"~\"",
            "\"0x1f\"",
            "- -4",
        ] {
            assert!(document.contains(line), "{line} is not in\n{document}");
        }
        let back: serde_json::Value = serde_yaml::from_str(&document).expect("a document of this serializer");
        assert_eq!(back, result, "a parser reads something else from\n{document}");
    }
}
