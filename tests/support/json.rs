//! JSON as the SDKs really write it: bare `NaN` and `Infinity`, integers of any length, lone surrogate escapes.
//!
//! A value that `serde_json` can't hold becomes a marker that still compares by content, so that a test notices when
//! an agent wrote such a value anew and changed it: a number that neither an `i64`, a `u64` nor an `f64` holds exactly
//! is `{"$number": "<its text>"}`, a lone surrogate is the character U+FFFC followed by its four hex digits.

use serde_json::{Map, Number, Value};

/// How deep objects and arrays may be nested; Opik's own parser has the same limit.
const DEPTH_MAX: usize = 1_000;

/// Reads one JSON text leniently. The error describes the fault and its byte.
pub(crate) fn parse_lenient(text: &[u8]) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.wrong("end of text expected"));
    }
    Ok(value)
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn wrong(&self, what: &str) -> String {
        format!("{what} at byte {}", self.at)
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn takes(&mut self, word: &str) -> bool {
        let found = self.text[self.at..].starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(self.wrong("nested too deeply"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(_) => self.word(),
            None => Err(self.wrong("unexpected end of text")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut map = Map::new();
        self.space();
        if self.takes("}") {
            return Ok(Value::Object(map));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("a key expected"));
            }
            let key = self.string()?;
            self.space();
            if !self.takes(":") {
                return Err(self.wrong("':' expected"));
            }
            let value = self.value(depth + 1)?;
            map.insert(key, value);
            self.space();
            if self.takes("}") {
                return Ok(Value::Object(map));
            }
            if !self.takes(",") {
                return Err(self.wrong("',' or '}' expected"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.takes("]") {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.takes("]") {
                return Ok(Value::Array(items));
            }
            if !self.takes(",") {
                return Err(self.wrong("',' or ']' expected"));
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.wrong("unfinished string")),
                Some(b'"') => {
                    self.at += 1;
                    return String::from_utf8(bytes).map_err(|_| self.wrong("not UTF-8"));
                }
                Some(b'\\') => self.escape(&mut bytes)?,
                Some(byte) if byte < 0x20 => {
                    return Err(self.wrong("control character in a string"));
                }
                Some(byte) => {
                    bytes.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    fn escape(&mut self, into: &mut Vec<u8>) -> Result<(), String> {
        self.at += 1;
        let letter = self.peek().ok_or_else(|| self.wrong("unfinished escape"))?;
        self.at += 1;
        let byte = match letter {
            b'"' | b'\\' | b'/' => letter,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode(into),
            _ => return Err(self.wrong("unknown escape")),
        };
        into.push(byte);
        Ok(())
    }

    fn unicode(&mut self, into: &mut Vec<u8>) -> Result<(), String> {
        let first = self.hex4()?;
        let mut code = u32::from(first);
        if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex4()?;
            if (0xdc00..0xe000).contains(&second) {
                code = 0x10000 + ((u32::from(first) - 0xd800) << 10) + (u32::from(second) - 0xdc00);
            } else {
                self.at = back;
            }
        }
        match char::from_u32(code) {
            Some(letter) => into.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            None => into.extend_from_slice(format!("\u{fffc}{first:04x}").as_bytes()),
        }
        Ok(())
    }

    fn hex4(&mut self) -> Result<u16, String> {
        let digits = self.text.get(self.at..self.at + 4).and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|d| u16::from_str_radix(d, 16).ok());
        self.at += 4;
        code.ok_or_else(|| self.wrong("four hex digits expected"))
    }

    fn word(&mut self) -> Result<Value, String> {
        for (word, value) in [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))] {
            if self.takes(word) {
                return Ok(value);
            }
        }
        for word in ["NaN", "Infinity", "-Infinity"] {
            if self.takes(word) {
                return Ok(number_marker(word));
            }
        }
        let rest = &self.text[self.at..];
        let length = rest.iter().take_while(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')).count();
        let digits = std::str::from_utf8(&rest[..length]).expect("digits are ASCII");
        let value = number(digits).ok_or_else(|| self.wrong("a value expected"))?;
        self.at += length;
        Ok(value)
    }
}

fn number(text: &str) -> Option<Value> {
    let integer = !text.contains(['.', 'e', 'E']);
    if integer {
        if let Ok(small) = text.parse::<i64>() {
            return Some(small.into());
        }
        if let Ok(large) = text.parse::<u64>() {
            return Some(large.into());
        }
    }
    let float = text
        .parse::<f64>()
        .ok()
        .filter(|_| text.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']))?;
    // Seventeen significant digits always survive a float; what has more would be changed by one who writes it anew.
    let significant = text.split(['e', 'E']).next().unwrap_or("").bytes().filter(u8::is_ascii_digit).count();
    if integer || significant > 17 {
        return Some(number_marker(text));
    }
    Some(Number::from_f64(float).map_or_else(|| number_marker(text), Value::Number))
}

fn number_marker(text: &str) -> Value {
    serde_json::json!({ "$number": text })
}
