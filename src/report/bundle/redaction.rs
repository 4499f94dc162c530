//! Takes secrets out of texts: those that this machine knows, and what parses as one.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::OFlags;
use serde_json::Value;

use crate::config::Config;
use crate::store::LaneListed;

const MASK: &str = "***";
/// How URLs may encode it as well: RFC 3986 leaves these unencoded.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// A shorter secret would be found in ordinary words.
const SECRET_BYTES_MIN: usize = 4;
/// How much of a file with secrets is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The secrets that must not be in a text.
pub(super) struct Redaction {
    /// The longest first: one may contain another.
    secrets: Vec<String>,
}

impl Redaction {
    /// Returns the redaction of the secrets of a configuration and of the lanes of a store.
    pub(super) fn of(config: &Config, lanes: &[LaneListed]) -> Self {
        let mut known = config.secrets();
        let files = [
            &config.client_key_file.value,
            &config.encryption_key_file.value,
            &config.encryption_previous_key_file.value,
            &config.fleet_identity_file.value,
            &config.hub_token_file.value,
            &config.upstream_headers_file.value,
        ];
        for path in files.into_iter().flatten() {
            known.extend(secrets_in(path));
        }
        for credential in lanes.iter().filter_map(|lane| lane.lane.credential.as_ref()) {
            known.push(String::from_utf8_lossy(credential.reveal()).into_owned());
        }
        Self::new(known)
    }

    fn new(known: Vec<String>) -> Self {
        let mut secrets = BTreeSet::new();
        for secret in known {
            // `Bearer KEY`, `Basic KEY`: the key alone is no less secret, nor is one without the address that it embeds.
            let alone = secret.rsplit(char::is_whitespace).next().unwrap_or_default().to_owned();
            let without_address = alone.split('*').next().unwrap_or_default().to_owned();
            for secret in [secret.trim().to_owned(), alone, without_address] {
                if secret.len() >= SECRET_BYTES_MIN {
                    secrets.insert(utf8_percent_encode(&secret, NON_ALPHANUMERIC).to_string());
                    secrets.insert(utf8_percent_encode(&secret, UNRESERVED).to_string());
                    secrets.insert(secret);
                }
            }
        }
        let mut secrets: Vec<String> = secrets.into_iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets }
    }

    /// Returns a document without secrets in its texts; its structure stays.
    pub(super) fn document(&self, document: Value) -> Value {
        match document {
            Value::String(text) => Value::String(self.text(&text).into_owned()),
            Value::Array(values) => values.into_iter().map(|value| self.document(value)).collect(),
            Value::Object(fields) => {
                let field = |(name, value): (String, Value)| (self.text(&name).into_owned(), self.document(value));
                Value::Object(fields.into_iter().map(field).collect())
            }
            other => other,
        }
    }

    /// Returns a text without secrets.
    pub(super) fn text<'text>(&self, text: &'text str) -> Cow<'text, str> {
        let mut clean = Cow::Borrowed(text);
        for secret in &self.secrets {
            if clean.contains(secret.as_str()) {
                clean = Cow::Owned(clean.replace(secret.as_str(), MASK));
            }
        }
        let masked = mask_tokens(&mask_credentials(&mask_user_info(&clean)));
        if masked == clean { clean } else { Cow::Owned(masked) }
    }
}

/// Returns the lines of a file with secrets, and what follows the names of headers in it.
fn secrets_in(path: &Path) -> Vec<String> {
    let mut text = Vec::new();
    // A pipe would block, and has no second reader.
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    if let Ok(file) = opened
        && file.metadata().is_ok_and(|facts| facts.is_file())
    {
        // A part of it is better than nothing.
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text.lines().map(str::trim).filter(|line| line.len() >= SECRET_BYTES_MIN && !line.starts_with('#'));
    let values = lines.clone().filter_map(|line| line.split_once([':', '=']).map(|(_, value)| value.trim().to_owned()));
    values.chain(lines.map(str::to_owned)).collect()
}

/// Masks what is between `://` and `@`.
fn mask_user_info(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        masked.push_str(before);
        let end = behind.find(|c: char| c.is_whitespace() || "/?#\"'<>`,;".contains(c)).unwrap_or(behind.len());
        rest = match behind[..end].rfind('@') {
            Some(sign) => {
                masked.push_str(MASK);
                &behind[sign..]
            }
            None => behind,
        };
    }
    masked + rest
}

/// Masks the token in the URL of a hub, also where that is a part of another URL.
fn mask_tokens(text: &str) -> String {
    const BEFORE: [&str; 2] = ["/-/token/", "%2f-%2ftoken%2f"];
    // ASCII only, so that positions are the same.
    let lower = text.to_ascii_lowercase();
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(begin) = BEFORE.iter().filter_map(|before| Some(at + lower[at..].find(before)? + before.len())).min()
    {
        masked.push_str(&text[at..begin]);
        let ends = |c: char| c.is_whitespace() || "/?#\"'<>`,;)".contains(c);
        let end = begin + text[begin..].find(ends).unwrap_or(text.len() - begin);
        let end = lower[begin..end].find("%2f").map_or(end, |at| begin + at);
        if end > begin {
            masked.push_str(MASK);
        }
        at = end;
    }
    masked + &text[at..]
}

/// Masks what follows `Bearer` or `Basic`, and `Authorization:`.
fn mask_credentials(text: &str) -> String {
    const BEFORE: [&str; 5] = ["authorization: ", "authorization\":\"", "authorization=", "bearer ", "basic "];
    /// Words such as "basic understanding" are no credentials.
    const CREDENTIAL_CHARS_MIN: usize = 16;
    // ASCII only, so that positions are the same.
    let lower = text.to_ascii_lowercase();
    let mut masked = String::with_capacity(text.len());
    let mut from = 0;
    while let Some((at, word)) =
        BEFORE.iter().filter_map(|word| Some((lower[from..].find(word)? + from, *word))).min_by_key(|(at, _)| *at)
    {
        let begin = at + word.len();
        masked.push_str(&text[from..begin]);
        let ends_credential = |c: char| c.is_whitespace() || "\"'`,;()<>{}[]".contains(c);
        let end = text[begin..].find(ends_credential).map_or(text.len(), |length| begin + length);
        // `Authorization: Bearer KEY`: the scheme is found next.
        from = begin;
        if text[begin..end].chars().count() >= CREDENTIAL_CHARS_MIN {
            masked.push_str(MASK);
            from = end;
        }
    }
    masked + &text[from..]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn known_secrets_are_masked_wherever_they_are() {
        let redaction = Redaction::new(vec!["Bearer key/of a-client==".into(), "key/of".into(), "abc".into()]);
        let text = redaction.text("key/of Bearer key/of a-client== a-client== key%2Fof abc");
        assert_eq!(text, "*** *** *** *** abc");
        let in_url = Redaction::new(vec!["q8/Xk-0a".into()]);
        assert_eq!(in_url.text("http://h/q8%2FXk-0a q8%2FXk%2D0a q8/Xk-0a"), "http://h/*** *** ***");
        let document = redaction.document(json!({ "a key/of": ["key/of", 1, null, { "x": "see key/of!" }] }));
        assert_eq!(document, json!({ "a ***": ["***", 1, null, { "x": "see ***!" }] }));
    }

    #[test]
    fn redaction_masks_texts_that_look_like_secrets() {
        let redaction = Redaction::new(Vec::new());
        for (text, expected) in [
            ("http://user:word@host/a http://host/b@c", "http://***@host/a http://host/b@c"),
            ("Authorization: abcdefghijklmnop1 x", "Authorization: *** x"),
            ("got BEARER abcdefghijklmnop.1-2, then", "got BEARER ***, then"),
            ("Authorization: Bearer abcdefghijklmnop*12: x", "Authorization: Bearer *** x"),
            (r#"{"authorization":"bearer abcdefghijklmnop1"}"#, r#"{"authorization":"bearer ***"}"#),
            ("a basic understanding", "a basic understanding"),
            ("authorization: basic", "authorization: basic"),
            ("é bearer ü", "é bearer ü"),
            ("http://hub:6745/-/token/abc-1/api refused", "http://hub:6745/-/token/***/api refused"),
            ("--upstream 'http://hub/-/TOKEN/é%2Fx/api'", "--upstream 'http://hub/-/TOKEN/***%2Fx/api'"),
            ("to=http%3A%2F%2Fhub%2F-%2Ftoken%2Fabc%2Fapi", "to=http%3A%2F%2Fhub%2F-%2Ftoken%2F***%2Fapi"),
            ("/-/token/", "/-/token/"),
            ("", ""),
        ] {
            assert_eq!(redaction.text(text), expected);
        }
    }
}
