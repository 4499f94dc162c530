//! Bodies: decoded, read, converted; and the answers that come back.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use opik_offline::message::{Body, Encoding, MessageType, Touch};
use opik_offline::protocol::answers::{ASKED_WAIT_MAX, asked_wait};
use opik_offline::protocol::attachment::{Complete, Start, start_through};
use opik_offline::protocol::fallback::fallback;
use opik_offline::protocol::inspection::{inspect, item_list, with_ids};
use opik_offline::protocol::json::{compact, pretty};
use opik_offline::protocol::otlp::roots::Roots;
use opik_offline::protocol::otlp::{Format, Traces, piece, span_count, to_json};
use opik_offline::protocol::readback;
use opik_offline::protocol::routes::{Route, classify};
use opik_offline::sdk::rows::{SdkRow, convert, sdk_type};
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::shipping::items_of;
use super::{json_fault, protected};

/// More than an input has when decoded, mostly; bombs are cut here.
const CONTENT_BYTES_MAX: u64 = 1024 * 1024;

/// Bytes of a body in any encoding, or content to be encoded.
pub(crate) fn bodies(input: &[u8]) {
    for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Deflate] {
        let body = Body::new(input.to_vec(), encoding);
        let decoded = body.decode(CONTENT_BYTES_MAX);
        if let Ok(content) = &decoded {
            let bytes = content.len() as u64;
            assert!(bytes <= CONTENT_BYTES_MAX, "{bytes} bytes are held of a body that may have {CONTENT_BYTES_MAX}");
            assert_eq!(body.decode(bytes).as_ref(), Ok(content), "a body that just fits does not");
            assert!(bytes == 0 || body.decode(bytes - 1).is_err(), "a body that is one byte too large is taken");
        }
        if encoding == Encoding::Gzip {
            let mut expected = Vec::new();
            let mut reader = flate2::bufread::MultiGzDecoder::new(input).take(CONTENT_BYTES_MAX + 1);
            match reader.read_to_end(&mut expected) {
                Ok(_) if expected.len() as u64 <= CONTENT_BYTES_MAX => {
                    assert_eq!(decoded.as_deref(), Ok(&expected[..]), "a gzip body is read as something else");
                }
                Ok(_) => assert!(decoded.is_err(), "a bomb is held whole"),
                Err(_) => assert!(decoded.is_err(), "a damaged gzip body is decoded as {decoded:?}"),
            }
        }
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(input).expect("memory is written");
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(input).expect("memory is written");
    let (gzip, zlib) = (gzip.finish().expect("it ends"), zlib.finish().expect("it ends"));
    for (encoded, encoding) in [(gzip, Encoding::Gzip), (zlib, Encoding::Deflate)] {
        let bytes_max = input.len() as u64;
        let decoded = Body::new(encoded.clone(), encoding).decode(bytes_max);
        assert_eq!(decoded.as_deref(), Ok(input), "encoded data is decoded as something else");
        let short = Body::new(encoded[..encoded.len() - 1].to_vec(), encoding).decode(bytes_max);
        assert!(short.is_err(), "a body whose last byte is missing is accepted as complete");
    }
}

/// `METHOD path body`, or a body alone.
pub(crate) fn inspection(input: &[u8]) {
    let body = protected(input).map_or_else(|| input.to_vec(), |(_, request)| request.body.bytes.to_vec());
    json(&body);
    let Some((write, request)) = protected(input) else { return };

    let is_read = inspect(&write, b"").is_err();
    let found = inspect(&write, &body);
    if is_read {
        assert_eq!(found.is_ok(), json_fault(&body).is_ok(), "it is JSON, and it is none");
    }
    // The readable part of a body must not depend on its being sound.
    let _ = readback::facts(write.message_type, &request.method, &request.path, &body);
    if let Some(other) = fallback(write.message_type, &request, 404, CONTENT_BYTES_MAX) {
        assert_eq!(json_fault(&other.body.bytes), Ok(()), "assertion results become a body that no server reads");
        let count = |path, content: &[u8]| match classify("PUT", path) {
            Route::Protected(write) => items_of(content, item_list(write.message_type).expect("a batch")).len(),
            _ => panic!("{path} is not a write"),
        };
        let (before, after) = (count(&request.path, &body), count(&other.path, &other.body.bytes));
        assert_eq!(before, after, "assertion results get lost");
    }
    let Ok(found) = found else { return };
    assert_eq!(found.touches, Touch::distinct(found.touches.clone()), "an entity is named twice");
    if !found.missing_ids.is_empty() {
        let mut number = 0;
        let filled = with_ids(&body, &found.missing_ids, || {
            number += 1;
            format!("01a20440-760d-73a3-a0fd-{number:012}")
        });
        assert_eq!(number, found.missing_ids.len(), "each create gets one id");
        let again = inspect(&write, &filled).expect("a body that was sound is broken by the ids that we add");
        assert!(again.missing_ids.is_empty(), "a create still has no id, and a repeat makes a second one");
        assert_eq!(again.items, found.items, "items come or go with the ids that we add");
    }
    if item_list(write.message_type).is_none() {
        assert_eq!(found.items, 1, "a single write carries one item");
    }
}

/// The scanner against a strict parser, and what people are shown.
fn json(content: &[u8]) {
    let found = json_fault(content);
    if let Err(fault) = &found {
        assert!(fault.at <= content.len(), "the fault is behind the text");
    }
    let Ok(text) = std::str::from_utf8(content) else {
        assert!(found.is_err(), "a text that is not UTF-8 is not JSON");
        return;
    };
    let strict = serde_json::from_str::<IgnoredAny>(text).is_ok();
    if strict {
        assert_eq!(found, Ok(()), "JSON that every server reads is refused");
    }
    let tokens = tokens(text.strip_prefix('\u{feff}').unwrap_or(text));
    let has_extension = text.starts_with('\u{feff}') || words(&tokens).contains(['N', 'I']);
    if found.is_ok() && !has_extension {
        assert!(strict, "JSON that no server reads is accepted");
    }
    assert_eq!(compact(text).is_some(), strict, "only JSON is exported");
    if let Some(compact) = compact(text) {
        assert_eq!(compact, tokens, "an export changes a token");
    }
    assert_eq!(pretty(text).is_some(), found.is_ok(), "JSON is shown as such");
    if let Some(shown) = pretty(text) {
        assert_eq!(self::tokens(&shown), tokens, "people are shown another token");
    }
}

/// Returns a text without the blanks outside its strings.
fn tokens(text: &str) -> String {
    let mut kept = String::new();
    walk(text, |character, is_inside| {
        if is_inside || !character.is_ascii_whitespace() {
            kept.push(character);
        }
    });
    kept
}

/// Returns what stands outside the strings.
fn words(text: &str) -> String {
    let mut outside = String::new();
    walk(text, |character, is_inside| outside.extend((!is_inside).then_some(character)));
    outside
}

fn walk(text: &str, mut see: impl FnMut(char, bool)) {
    let (mut is_inside, mut is_escaped) = (false, false);
    for character in text.chars() {
        see(character, is_inside);
        match (is_inside, is_escaped, character) {
            (true, true, _) => is_escaped = false,
            (true, false, '\\') => is_escaped = true,
            (_, _, '"') => is_inside = !is_inside,
            _ => {}
        }
    }
}

/// An OTLP request in either format.
pub(crate) fn otlp(input: &[u8]) {
    if let Some(shown) = to_json(input) {
        assert!(Traces::read(Format::Protobuf, input).is_ok(), "people are shown {shown}, which no server reads");
    }
    for format in [Format::Protobuf, Format::Json] {
        let Ok(whole) = Traces::read(format, input) else {
            assert!(span_count(format, input).is_err(), "an unreadable item is counted");
            continue;
        };
        if format == Format::Json {
            assert_eq!(json_fault(input), Ok(()), "a text that is not JSON is accepted");
        } else {
            assert!(to_json(input).is_some(), "a request that is kept can't be shown");
        }
        let roots = Roots::read(format, input).expect("it was read");
        let attached = roots.attach(input, &vec![Some(Uuid::now_v7()); roots.traces().len()]);
        let spans = Traces::read(format, &attached).expect("an attached request is one").spans;
        assert_eq!(spans, whole.spans, "attaching changes the number of spans");
        assert!(Roots::read(format, &attached).expect("it was read").traces().is_empty(), "a root is left");
        let count = span_count(format, input).expect("it was read");
        assert!(count >= whole.spans as usize, "{} spans, of which {count} can be sent alone", whole.spans);
        let all = piece(format, input, 0..count).expect("it was read");
        let read = |content: &[u8]| Traces::read(format, content).expect("a piece of a request can be read");
        assert_eq!(read(&all).touches, whole.touches, "a request cut into one piece is about something else");
        assert_eq!(span_count(format, &all), Ok(count), "spans get lost");
        let halves = [0..count / 2, count / 2..count].map(|half| (half.len(), piece(format, input, half)));
        let (mut touches, mut spans) = (Vec::new(), 0);
        for (expected, half) in halves {
            let half = half.expect("it was read");
            assert_eq!(span_count(format, &half), Ok(expected), "a half has more or fewer spans than it was to have");
            let half = read(&half);
            spans += half.spans;
            touches.extend(half.touches);
        }
        assert_eq!(spans, whole.spans, "the halves together are not the whole");
        assert_eq!(Touch::distinct(touches), whole.touches, "the halves together are about something else");
    }
}

/// A message type and a row's text behind it, on a line of its own or not.
pub(crate) fn sdk_rows(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (name, json) = (&input[..end], &input[(end + 1).min(input.len())..]);
    let name = String::from_utf8_lossy(name);
    match convert(&name, json) {
        Ok(SdkRow::Write(write)) => {
            assert_eq!(sdk_type(&name), Some(write.message_type), "a row becomes another write");
            assert_eq!(json_fault(&write.body), Ok(()), "a row becomes a body that no server reads");
            let Route::Protected(route) = classify(write.method, &write.path) else {
                panic!("{} {} is not a protected write", write.method, write.path)
            };
            assert_eq!(
                (route.message_type, &route.path_id),
                (write.message_type, &write.path_id),
                "a row becomes another write"
            );
            assert!(inspect(&route, &write.body).is_ok(), "a row becomes a body that can't be read");
            let values = strings(json);
            for text in strings(&write.body).difference(&values) {
                let is_key = text.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'"'));
                assert!(is_key, "a text is invented: {text:?}");
            }
        }
        Ok(SdkRow::Attachment(_)) => {
            assert_eq!(sdk_type(&name), Some(MessageType::CreateAttachment), "a row becomes an upload");
        }
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
}

/// Returns the texts of a JSON value, keys included, as they are written.
fn strings(content: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut current = String::new();
    walk(&String::from_utf8_lossy(content), |character, is_inside| {
        if is_inside {
            current.push(character);
        } else if !current.is_empty() {
            found.insert(std::mem::take(&mut current));
        }
    });
    found.insert(current);
    found
}

/// `RateLimit-Reset`, `Retry-After` and a body of an answer, on lines of their own.
pub(crate) fn answers(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.splitn(3, '\n');
    let (reset, after) = (lines.next(), lines.next());
    // The server's own date can be anything, too.
    let dates = [None, reset, Some("Sun, 22 Nov 2026 20:00:00 GMT")];
    for now in [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_370_400)] {
        for (reset, after) in [(reset, after), (None, after), (reset, None), (None, reset)] {
            for date in dates {
                let wait = asked_wait(reset, after, date, now);
                assert!(wait.is_none_or(|wait| wait <= ASKED_WAIT_MAX), "a lane sleeps for {wait:?} by one header");
            }
        }
    }
    let body = lines.next().unwrap_or_default().as_bytes();
    let _ = readback::shown(body);
    let shown = readback::shown_in_page(body);
    assert!(shown.len() <= body.len(), "a page shows more than it has");
    if let Some(changed) = start_through(body, "http://server", "http://client") {
        assert_eq!(json_fault(&changed), Ok(()), "an upload's answer is broken on its way");
    }
    let _ = (Start::read(body), Complete::read(body));
}
