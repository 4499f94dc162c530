//! A single-pass JSON scanner for what Opik's clients really send, without building a tree.
//!
//! A strict parser would reject valid payloads: Python's `json.dumps` writes bare `NaN`, `Infinity` and `-Infinity`,
//! integers of any size and escaped lone surrogates, and the SDKs send them (protocol dossier, sections b and e). This
//! scanner accepts those, allocates nothing, needs no stack for nesting, and reports the spans of values, so that ids
//! can be read from a payload and an id can be inserted without changing another byte.
//!
//! Everything that it rejects, every JSON server rejects: broken structure, raw control characters in strings, invalid
//! UTF-8, anything after the value.

use std::borrow::Cow;
use std::ops::Range;

use thiserror::Error;

/// The text is not valid JSON, detected at this byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not JSON at byte {at}")]
pub struct NotJson {
    /// Offset of the first byte that can't be part of it.
    pub at: usize,
}

/// The kind of a value, known from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonKind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// `null`
    Null,
    /// Numbers, `NaN` and the infinities, `true`, `false`.
    Scalar,
}

/// Parses one JSON text from front to back.
#[derive(Clone, Debug)]
pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at the beginning of a text.
    ///
    /// # Errors
    ///
    /// [`NotJson`] if the text is not UTF-8.
    pub fn new(text: &'a [u8]) -> Result<Self, NotJson> {
        if let Err(error) = std::str::from_utf8(text) {
            return Err(NotJson { at: error.valid_up_to() });
        }
        // Jackson skips a byte order mark, so the server accepts such a payload.
        let at = if text.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        Ok(Self { text, at })
    }

    /// Returns the kind of the next value without reading it.
    pub fn peek(&mut self) -> Result<JsonKind, NotJson> {
        self.skip_space();
        match self.text.get(self.at) {
            Some(b'{') => Ok(JsonKind::Object),
            Some(b'[') => Ok(JsonKind::Array),
            Some(b'"') => Ok(JsonKind::String),
            Some(b'n') => Ok(JsonKind::Null),
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'N' | b'I') => Ok(JsonKind::Scalar),
            _ => Err(self.fault()),
        }
    }

    /// Parses an object: calls `member` with each key, to parse or skip its value. Returns the span of the object.
    pub fn object(
        &mut self,
        mut member: impl FnMut(&str, &mut Self) -> Result<(), NotJson>,
    ) -> Result<Range<usize>, NotJson> {
        self.skip_space();
        let start = self.at;
        self.expect(b'{')?;
        self.skip_space();
        if self.take(b'}') {
            return Ok(start..self.at);
        }
        loop {
            self.skip_space();
            let key = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            member(&key, self)?;
            self.skip_space();
            if self.take(b'}') {
                return Ok(start..self.at);
            }
            self.expect(b',')?;
        }
    }

    /// Parses an array: calls `item` at each value, to parse or skip it. Returns the span of the array.
    pub fn array(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), NotJson>) -> Result<Range<usize>, NotJson> {
        self.skip_space();
        let start = self.at;
        self.expect(b'[')?;
        self.skip_space();
        if self.take(b']') {
            return Ok(start..self.at);
        }
        loop {
            item(self)?;
            self.skip_space();
            if self.take(b']') {
                return Ok(start..self.at);
            }
            self.expect(b',')?;
        }
    }

    /// Parses a string and returns its text; an escaped lone surrogate, which is not valid text, becomes U+FFFD.
    pub fn string(&mut self) -> Result<Cow<'a, str>, NotJson> {
        self.skip_space();
        let start = self.at;
        let has_escapes = self.skip_string()?;
        let inner = &self.text[start + 1..self.at - 1];
        // `new` validated the text as UTF-8, and a string ends at ASCII quotes.
        let inner = std::str::from_utf8(inner).map_err(|_| NotJson { at: start })?;
        Ok(if has_escapes { Cow::Owned(unescape(inner)) } else { Cow::Borrowed(inner) })
    }

    /// Skips the next value of any kind; returns its span.
    pub fn skip_value(&mut self) -> Result<Range<usize>, NotJson> {
        self.skip_space();
        let start = self.at;
        // One flag per open bracket: true for an object. Iterative, so that nesting can't overflow the stack.
        let mut open: Vec<bool> = Vec::new();
        loop {
            match self.peek()? {
                JsonKind::Object => {
                    self.at += 1;
                    self.skip_space();
                    if !self.take(b'}') {
                        open.push(true);
                        self.key_and_colon()?;
                        continue;
                    }
                }
                JsonKind::Array => {
                    self.at += 1;
                    self.skip_space();
                    if !self.take(b']') {
                        open.push(false);
                        continue;
                    }
                }
                JsonKind::String => {
                    self.skip_string()?;
                }
                JsonKind::Null => self.literal(b"null")?,
                JsonKind::Scalar => self.skip_scalar()?,
            }
            // A value is complete: close the brackets that end here, or continue with the next member.
            loop {
                let Some(in_object) = open.last().copied() else { return Ok(start..self.at) };
                self.skip_space();
                if self.take(b',') {
                    if in_object {
                        self.skip_space();
                        self.key_and_colon()?;
                    }
                    break;
                }
                self.expect(if in_object { b'}' } else { b']' })?;
                open.pop();
            }
        }
    }

    /// Parses a number, `true` or `false` and returns its text.
    pub fn scalar(&mut self) -> Result<&'a str, NotJson> {
        if self.peek()? != JsonKind::Scalar {
            return Err(self.fault());
        }
        let start = self.at;
        self.skip_scalar()?;
        std::str::from_utf8(&self.text[start..self.at]).map_err(|_| NotJson { at: start })
    }

    /// Validates that only white space is left.
    pub fn end(&mut self) -> Result<(), NotJson> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.fault()) }
    }

    fn key_and_colon(&mut self) -> Result<(), NotJson> {
        self.skip_string()?;
        self.skip_space();
        self.expect(b':')
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let taken = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(taken);
        taken
    }

    fn expect(&mut self, byte: u8) -> Result<(), NotJson> {
        if self.take(byte) { Ok(()) } else { Err(self.fault()) }
    }

    fn fault(&self) -> NotJson {
        NotJson { at: self.at }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), NotJson> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.fault());
        }
        self.at += word.len();
        match self.text.get(self.at) {
            Some(b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.') => Err(self.fault()),
            _ => Ok(()),
        }
    }

    /// Skips a string; returns whether it has escapes.
    fn skip_string(&mut self) -> Result<bool, NotJson> {
        self.expect(b'"')?;
        let mut has_escapes = false;
        loop {
            let Some(next) = plain_length(&self.text[self.at..]) else {
                self.at = self.text.len();
                return Err(self.fault());
            };
            self.at += next;
            match self.text[self.at] {
                b'"' => {
                    self.at += 1;
                    return Ok(has_escapes);
                }
                b'\\' => {
                    has_escapes = true;
                    self.at += 1;
                    match self.text.get(self.at) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            let digits = self.text.get(self.at + 1..self.at + 5);
                            if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
                                return Err(self.fault());
                            }
                            self.at += 5;
                        }
                        _ => return Err(self.fault()),
                    }
                }
                _ => return Err(self.fault()),
            }
        }
    }

    fn skip_scalar(&mut self) -> Result<(), NotJson> {
        match self.text[self.at] {
            b't' => return self.literal(b"true"),
            b'f' => return self.literal(b"false"),
            b'N' => return self.literal(b"NaN"),
            b'I' => return self.literal(b"Infinity"),
            _ => {}
        }
        if self.take(b'-') && self.text.get(self.at) == Some(&b'I') {
            return self.literal(b"Infinity");
        }
        // No digit may follow a leading zero; the caller rejects one because it expects a delimiter.
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            if !self.take(b'+') {
                self.take(b'-');
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.text.get(self.at) {
            self.at += 1;
        }
        if self.at == start { Err(self.fault()) } else { Ok(()) }
    }
}

/// Returns the number of bytes before the first special one: a quote, a backslash, a control character.
fn plain_length(text: &[u8]) -> Option<usize> {
    /// Bytes per iteration: the compiler vectorises a chunk of this size.
    const STEP: usize = 16;
    let means_something = |byte: u8| (byte == b'"') | (byte == b'\\') | (byte < 0x20);
    let (steps, _) = text.as_chunks::<STEP>();
    let plain =
        steps.iter().take_while(|step| !step.iter().fold(false, |any, byte| any | means_something(*byte))).count();
    let start = plain * STEP;
    text[start..].iter().position(|byte| means_something(*byte)).map(|next| start + next)
}

/// Returns JSON on one line, without white space between tokens, each token verbatim.
///
/// Returns `None` if the text is not JSON according to RFC 8259: servers parse a bare `NaN`, other tools don't.
pub fn compact(text: &str) -> Option<String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    let mut is_text = false;
    let mut is_escaped = false;
    let mut keep = |c: &char| {
        let kept = is_text || !c.is_ascii_whitespace();
        if *c == '"' && !is_escaped {
            is_text = !is_text;
        }
        is_escaped = is_text && *c == '\\' && !is_escaped;
        kept
    };
    Some(text.chars().filter(|c| keep(c)).collect())
}

/// A piece of pretty-printed JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrettyPiece<'a> {
    /// Its text.
    pub text: &'a str,
    /// Whether it begins or ends within a string.
    pub is_cut: bool,
}

/// Pretty-prints JSON in pieces, every token verbatim: no more than a piece is buffered in addition to `text`. Values
/// nested deeper than `INDENT_MAX` stay on one line, so that brackets alone don't inflate to many times their size.
///
/// Returns `None`, and writes nothing, if the text is not valid JSON.
pub fn pretty_to<E>(text: &str, mut write: impl FnMut(PrettyPiece<'_>) -> Result<(), E>) -> Option<Result<(), E>> {
    const INDENT_MAX: usize = 40;
    const PIECE_BYTES: usize = 64 * 1024;
    let mut scanner = Scanner::new(text.as_bytes()).ok()?;
    let range = scanner.skip_value().and_then(|range| scanner.end().map(|()| range)).ok()?;
    let mut shown = String::new();
    let mut is_cut = false;
    let mut flush = |shown: &mut String, was_cut: &mut bool, is_in_string: bool| {
        let piece = PrettyPiece { text: shown, is_cut: *was_cut || is_in_string };
        let result = write(piece);
        *was_cut = is_in_string;
        shown.clear();
        result
    };
    let mut depth: usize = 0;
    let new_line = |shown: &mut String, indent: usize, depth: usize| {
        if depth <= INDENT_MAX {
            shown.push('\n');
            shown.extend(std::iter::repeat_n("  ", indent));
        }
    };
    let mut characters = text[range].chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                shown.push(character);
                while let Some(inside) = characters.next() {
                    shown.push(inside);
                    match inside {
                        '\\' => shown.extend(characters.next()),
                        '"' => break,
                        _ if shown.len() >= PIECE_BYTES => {
                            if let Err(error) = flush(&mut shown, &mut is_cut, true) {
                                return Some(Err(error));
                            }
                        }
                        _ => {}
                    }
                }
                continue;
            }
            '{' | '[' => {
                shown.push(character);
                while characters.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                match characters.next_if(|next| matches!(next, '}' | ']')) {
                    Some(closing) => shown.push(closing),
                    None => {
                        depth += 1;
                        new_line(&mut shown, depth, depth);
                    }
                }
            }
            '}' | ']' => {
                new_line(&mut shown, depth.saturating_sub(1), depth);
                depth = depth.saturating_sub(1);
                shown.push(character);
            }
            ',' => {
                shown.push(character);
                new_line(&mut shown, depth, depth);
            }
            ':' => shown.push_str(": "),
            space if space.is_ascii_whitespace() => {}
            other => {
                shown.push(other);
                continue;
            }
        }
        if shown.len() >= PIECE_BYTES
            && let Err(error) = flush(&mut shown, &mut is_cut, false)
        {
            return Some(Err(error));
        }
    }
    Some(if shown.is_empty() { Ok(()) } else { flush(&mut shown, &mut is_cut, false) })
}

/// Returns the output of [`pretty_to`].
pub fn pretty(text: &str) -> Option<String> {
    let mut shown = String::new();
    let written = pretty_to(text, |piece| {
        shown.push_str(piece.text);
        Ok::<(), std::convert::Infallible>(())
    });
    written.map(|_| shown)
}

/// Parses a string whose escapes were validated.
fn unescape(escaped: &str) -> String {
    let mut text = String::with_capacity(escaped.len());
    let mut units: Vec<u16> = Vec::new();
    let mut rest = escaped.chars();
    while let Some(character) = rest.next() {
        let unit = if character != '\\' {
            None
        } else {
            match rest.next() {
                Some('u') => {
                    let digits: String = rest.by_ref().take(4).collect();
                    u16::from_str_radix(&digits, 16).ok()
                }
                Some('b') => Some(8),
                Some('f') => Some(12),
                Some('n') => Some(10),
                Some('r') => Some(13),
                Some('t') => Some(9),
                Some(other) => u16::try_from(u32::from(other)).ok(),
                None => None,
            }
        };
        match unit {
            // Buffered, because a surrogate pair is written as two escapes.
            Some(unit) => units.push(unit),
            None => {
                flush_units(&mut units, &mut text);
                text.push(character);
            }
        }
    }
    flush_units(&mut units, &mut text);
    text
}

fn flush_units(units: &mut Vec<u16>, text: &mut String) {
    text.extend(char::decode_utf16(units.drain(..)).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pretty_printing_keeps_tokens_verbatim() {
        let text = r#" {"a" : [1e+22,NaN, {} ,[ ]], "b":"x: {\"y\"}, z"} "#;
        let expected = "{\n  \"a\": [\n    1e+22,\n    NaN,\n    {},\n    []\n  ],\n  \"b\": \"x: {\\\"y\\\"}, z\"\n}";
        assert_eq!(pretty(text).as_deref(), Some(expected));
        assert_eq!(pretty("{"), None);
    }

    #[test]
    fn pretty_printing_is_bounded_by_pieces_and_depth() {
        let text = format!("{}\"{}\"{}", "[".repeat(100_000), "x\\\"".repeat(100_000), "]".repeat(100_000));
        let (mut shown, mut longest, mut cut) = (String::new(), 0, 0);
        let written = pretty_to(&text, |piece| {
            longest = longest.max(piece.text.len());
            cut += usize::from(piece.is_cut);
            shown.push_str(piece.text);
            Ok::<(), ()>(())
        });
        assert_eq!(written, Some(Ok(())));
        assert!(longest < 70_000 && shown.len() < text.len() + 10_000, "{longest} {}", shown.len());
        assert!((5..8).contains(&cut), "{cut} pieces are parts of a string");
        let tokens: String = shown.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        assert!(tokens == text, "a token was changed");
        assert_eq!(pretty_to(&text, |_| Err("full")), Some(Err("full")));
    }

    fn check(text: &[u8]) -> Result<(), NotJson> {
        let mut scanner = Scanner::new(text)?;
        scanner.skip_value()?;
        scanner.end()
    }

    #[test]
    fn what_the_sdks_send_is_accepted() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        for text in [
            "{}",
            "[]",
            " {\"a\": NaN, \"b\": [Infinity, -Infinity, -0.0, 1e+22, 18446744073709551616123]}\n",
            r#"{"s": "\ud83d", "pair": "\ud83d\ude00", "nul": "\u0000", "u": "Grüße \u2028"}"#,
            r#"{"a": 1, "a": 2}"#,
            r#"{"a":{"b":[{"c":null},true,false,""]}}"#,
            "\u{feff}{}",
            &deep,
        ] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{}", &text[..text.len().min(80)]);
        }
    }

    #[test]
    fn invalid_json_is_rejected_at_its_first_bad_byte() {
        for (text, at) in [
            (&b""[..], 0),
            (b"{", 1),
            (b"{\"a\"}", 4),
            (b"{\"a\":}", 5),
            (b"{\"a\":1,}", 7),
            (b"[1,]", 3),
            (b"[1 2]", 3),
            (b"{}x", 2),
            (b"nul", 0),
            (b"NaNa", 3),
            (b"-", 1),
            (b"01", 1),
            (b"1.", 2),
            (b"\"\\x\"", 2),
            (b"\"\\u12g4\"", 2),
            (b"\"a\nb\"", 2),
            (b"\"a", 2),
            (b"\"\xff\"", 1),
            (b"'a'", 0),
            (b"[}", 1),
        ] {
            assert_eq!(check(text), Err(NotJson { at }), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn strings_are_parsed_with_their_escapes() {
        let text = r#""a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\ud83d z""#;
        let read = Scanner::new(text.as_bytes()).and_then(|mut s| s.string().map(Cow::into_owned));
        assert_eq!(read.as_deref(), Ok("a\"\\/\u{8}\u{c}\n\r\té😀\u{fffd} z"));
    }

    proptest! {
        #[test]
        fn everything_a_strict_parser_accepts_is_accepted_with_exact_spans(value in arbitrary_json()) {
            let text = value.to_string();
            prop_assert_eq!(check(text.as_bytes()), Ok(()));
            let padded = format!("  {text}  ");
            let mut scanner = Scanner::new(padded.as_bytes()).expect("UTF-8");
            prop_assert_eq!(scanner.skip_value(), Ok(2..2 + text.len()));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_accepted_ones_are_json(bytes in "[\\[\\]{}\",:\\\\ntrue01.eE+-]{0,40}") {
            if check(bytes.as_bytes()).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&bytes).is_ok() || bytes.contains(['e', 'E']), "{}", bytes);
            }
        }
    }

    fn arbitrary_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".*".prop_map(serde_json::Value::String),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
                prop::collection::hash_map(".*", inner, 0..8)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn compact_json_keeps_tokens_verbatim_on_one_line() {
        let text = "{ \"a b\" : [1e999, 12345678901234567890123,\r\n \"\\ud800 \\\" \\\\\"], \"x\": {} }";
        let compact = compact(text).expect("JSON");
        assert_eq!(compact, "{\"a b\":[1e999,12345678901234567890123,\"\\ud800 \\\" \\\\\"],\"x\":{}}");
        assert_eq!(super::compact("[NaN]"), None, "other tools could not read it");
    }
}
