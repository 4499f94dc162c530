//! Partial success: a success response which reports that part of the request was discarded.
//!
//! Opik accepts or rejects a request as a whole; a front (an OpenTelemetry collector, a gateway) may accept
//! part of it. Shapes that are parsed:
//!
//! | response | discarded items |
//! | --- | --- |
//! | `ExportTraceServiceResponse`, protobuf or JSON | `partial_success`: number of rejected spans, and the reason |
//! | 2xx with a non-empty list `errors` | one per entry |
//! | 207 with statuses of items (`status`, `statusCode`, `code`, in any list) | those with 400 and above |
//! | 207 with anything else that is not a list | an unknown number |
//!
//! OTLP: a message without rejected spans is a warning; the whole request was accepted.

use serde_json::Value;

use super::otlp;
use super::recognise::{Endpoint, Recognised, Seen, recognise};

/// The items that a response reports as discarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Their number; `None` if unknown.
    pub rejected: Option<u64>,
    /// The server's error text.
    pub words: String,
}

impl std::fmt::Display for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rejected {
            Some(count) => write!(f, "accepted, but for {count} rejected: {}", self.words),
            None => write!(f, "accepted in part: {}", self.words),
        }
    }
}

/// Limit of the error text, in characters.
const WORDS_CHARACTERS_MAX: usize = 300;

/// Parses the discarded items of a success response; `None` if it reports none.
///
/// `body` may be truncated: then its readable part counts.
pub(crate) fn partial(status: u16, content_type: Option<&str>, body: &[u8]) -> Option<Partial> {
    if !(200..300).contains(&status) || body.is_empty() {
        return None;
    }
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/x-protobuf") {
        let (rejected, words) = otlp::rejected_spans(body)?;
        return said(rejected, words);
    }
    let text = String::from_utf8_lossy(body);
    let Ok(value) = serde_json::from_str::<Value>(&text) else {
        return (status == 207).then(|| unknown(&text));
    };
    let success = value.get("partialSuccess").or_else(|| value.get("partial_success"));
    if let Some(success) = success.filter(|success| success.is_object()) {
        let member = |names: [&str; 2]| names.into_iter().find_map(|name| success.get(name));
        let rejected = member(["rejectedSpans", "rejected_spans"]).and_then(number).unwrap_or(0);
        let words = member(["errorMessage", "error_message"]).and_then(Value::as_str).unwrap_or_default();
        return said(rejected, words.to_owned());
    }
    if let Some(errors) = value.get("errors").and_then(Value::as_array).filter(|errors| !errors.is_empty()) {
        return Some(Partial { rejected: Some(errors.len() as u64), words: short(&text) });
    }
    if status != 207 {
        return None;
    }
    match failed_items(&value) {
        Some(0) => None,
        Some(failed) => Some(Partial { rejected: Some(failed), words: short(&text) }),
        None => Some(unknown(&text)),
    }
}

/// Recognises the sender of a response and parses its discarded items: the only place that combines the two.
///
/// A response with discarded items is Opik's and not a confirmation; a partial success that discards nothing
/// is a confirmation.
pub(crate) fn judge(endpoint: Endpoint, seen: &Seen<'_>) -> (Recognised, Option<Partial>) {
    let recognised = recognise(endpoint, seen);
    let is_write = matches!(endpoint, Endpoint::Write(_));
    let thrown_away = if is_write { partial(seen.status, seen.content_type, seen.body) } else { None };
    match (recognised, thrown_away) {
        // An HTML page, or a front's error, reports no items.
        (Recognised::Foreign(foreign), Some(Partial { rejected: None, .. })) => (Recognised::Foreign(foreign), None),
        // A 200 with an error inside is a gateway's failure; a partial success has another status.
        (Recognised::Foreign(foreign), Some(_)) if seen.status == 200 => (Recognised::Foreign(foreign), None),
        (_, Some(partial)) => (Recognised::Partial, Some(partial)),
        (Recognised::Partial, None) => (Recognised::Confirmed, None),
        (recognised, None) => (recognised, None),
    }
}

fn said(rejected: u64, words: String) -> Option<Partial> {
    (rejected > 0).then(|| Partial { rejected: Some(rejected), words: short(&words) })
}

fn unknown(text: &str) -> Partial {
    Partial { rejected: None, words: short(text) }
}

fn short(text: &str) -> String {
    let words = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS_CHARACTERS_MAX);
    words.collect::<String>().trim().to_owned()
}

/// Parses a number, or the text that protobuf's JSON mapping uses for 64-bit numbers.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// Returns the number of failed items in a multi-status response; `None` without a list of item statuses.
fn failed_items(value: &Value) -> Option<u64> {
    let lists: Vec<&Vec<Value>> = match value {
        Value::Array(list) => vec![list],
        Value::Object(members) => members.values().filter_map(Value::as_array).collect(),
        _ => Vec::new(),
    };
    let status =
        |item: &Value| ["status", "statusCode", "status_code", "code"].iter().find_map(|n| number(item.get(n)?));
    let mut statuses = lists.into_iter().flatten().filter_map(status).peekable();
    statuses.peek()?;
    Some(statuses.filter(|status| *status >= 400).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Option<&str> = Some("application/json; charset=utf-8");
    const PROTOBUF: Option<&str> = Some("application/x-protobuf");

    #[test]
    fn discarded_items_are_parsed_from_every_shape() {
        let two = |words: &str| Some(Partial { rejected: Some(2), words: words.to_owned() });
        let protobuf = b"\x0a\x0d\x08\x02\x12\x09too large";
        type Case<'a> = (u16, Option<&'a str>, &'a [u8], Option<Partial>);
        let cases: [Case<'_>; 22] = [
            (200, JSON, br#"{"partialSuccess":{"rejectedSpans":2,"errorMessage":"too large"}}"#, two("too large")),
            (200, JSON, br#"{"partialSuccess":{"rejectedSpans":"2","errorMessage":"too large"}}"#, two("too large")),
            (202, None, br#"{"partial_success":{"rejected_spans":2,"error_message":"too large"}}"#, two("too large")),
            (200, JSON, br#"{"partialSuccess":{"rejectedSpans":0,"errorMessage":"sampling is on"}}"#, None),
            (200, JSON, br#"{"partialSuccess":{}}"#, None),
            (200, JSON, br#"{"partialSuccess":null}"#, None),
            (200, JSON, b"{}", None),
            (200, PROTOBUF, protobuf, two("too large")),
            // Truncated in the middle of the message.
            (200, PROTOBUF, &protobuf[..12], two("too large").map(|cut| Partial { words: "too la".into(), ..cut })),
            (200, PROTOBUF, b"\x0a\x05\x12\x03low", None),
            (200, PROTOBUF, b"", None),
            (200, PROTOBUF, b"\x0a\x00", None),
            (200, PROTOBUF, b"<html>", None),
            (202, JSON, br#"{"errors":["a","b"]}"#, two(r#"{"errors":["a","b"]}"#)),
            (200, JSON, br#"{"errors":[]}"#, None),
            (400, JSON, br#"{"errors":["a","b"]}"#, None),
            (
                207,
                JSON,
                br#"[{"status":201},{"status":409},{"status":"500"}]"#,
                two(r#"[{"status":201},{"status":409},{"status":"500"}]"#),
            ),
            (207, JSON, br#"{"results":[{"statusCode":201},{"statusCode":204}]}"#, None),
            (207, JSON, br#"{"message":"some"}"#, Some(unknown(r#"{"message":"some"}"#))),
            (207, JSON, br#"{"results":[{"status":2"#, Some(unknown(r#"{"results":[{"status":2"#))),
            (207, None, b"", None),
            (204, None, b"", None),
        ];
        for (status, content_type, body, expected) in cases {
            let shown = String::from_utf8_lossy(body);
            assert_eq!(partial(status, content_type, body), expected, "{status} {content_type:?} {shown}");
        }
    }
}
