//! Root spans of existing traces: how to deliver them without creating the trace again.
//!
//! # How the server processes a request (`OpenTelemetryService`, `OpenTelemetryMapper`, `TraceService`, `SpanService`)
//!
//! 1. Each OTel trace gets an Opik id: 48 bits of time and 80 bits of the SHA-256 of the OTel id. The time is the
//!    earliest start in the *first* request with that trace; an expiring cache keeps it per project.
//!    Span ids are derived in the same way, with the time of their trace.
//! 2. A span without a parent is a root, also one whose parent is its trace id (since 2.2.1). Each trace with a root is
//!    created by a *single* create, sequentially; since 2.2.1 once per trace, before that once per root.
//! 3. Then all spans, the roots included, are inserted by one batch, which is an upsert.
//!
//! For an existing trace, step 2 fails with 409 `Trace already exists`, and step 3 is skipped. So a retry of a root
//! whose first attempt was processed, or failed between 2 and 3, never stores a span; without roots a retry is
//! idempotent.
//!
//! # How the create is avoided
//!
//! A span with the attribute `opik.trace_id` (since April 2026; a UUIDv7) belongs to that trace and creates none.
//! Otherwise it is stored in the same way: its id comes from the same cache, and the attribute itself is dropped. So
//! the *whole* request is retried with that attribute in its roots ([`Roots::attach`]). The whole request, because the
//! server removes usage from parents whose children are in the same request, and derives the integration from all
//! scopes together.
//!
//! The Opik id of the trace can't be computed, only recognised: by its 80 bits ([`RootTrace::is`]), in a page of the
//! project's traces that start when the roots do ([`Roots::search`]), and if another root created the trace, by the
//! suffix of its id ([`RootTrace::search`]).

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Fields, Format, NotOtlp, OPIK_TRACE_ATTRIBUTE, REQUEST, SPAN_FIELDS, SPAN_MEMBERS, WireValue, attributes, check,
    json_attributes, put_varint,
};
use crate::protocol::json::{Kind, NotJson, Scanner};
use crate::protocol::readback::{EXCLUDED, PAGE_LIMIT, Read};

/// The attribute that names the parent; valid only together with [`OPIK_TRACE_ATTRIBUTE`].
const OPIK_PARENT_ATTRIBUTE: &str = "opik.parent_span_id";
/// The attribute that names the span itself.
const OPIK_SPAN_ATTRIBUTE: &str = "opik.span_id";
/// A parent that is not a UUID, which the server ignores: of duplicate attributes it uses the first.
const NO_PARENT: &str = "none";
/// The field of a span's attributes (`trace.proto`).
const ATTRIBUTES: u64 = 9;

/// The last 80 bits of an Opik id, derived from an OpenTelemetry id.
type Tail = [u8; 10];

/// The relevant parts of a span.
#[derive(Clone, Debug, Default)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    start_ms: u64,
    opik_trace: Option<Uuid>,
    opik_span: Option<Uuid>,
    names_parent: bool,
    /// In JSON: the span that an inserted attribute replaces, and the text around it.
    place: Option<InsertionPoint>,
}

#[derive(Clone, Debug)]
struct InsertionPoint {
    at: Range<usize>,
    before: &'static str,
    after: &'static str,
}

impl Span {
    fn is_root(&self) -> bool {
        let is_top = self.parent.is_empty() || self.parent == self.trace;
        is_top && self.opik_trace.is_none() && !self.trace.is_empty()
    }

    /// Records an attribute. The server uses the first one of a key with a text value.
    fn attribute(&mut self, key: &str, text: &str, seen: &mut (bool, bool)) {
        if text.trim().is_empty() {
            return;
        }
        let uuid = || Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7);
        match key {
            OPIK_TRACE_ATTRIBUTE if !std::mem::replace(&mut seen.0, true) => self.opik_trace = uuid(),
            OPIK_SPAN_ATTRIBUTE if !std::mem::replace(&mut seen.1, true) => self.opik_span = uuid(),
            OPIK_PARENT_ATTRIBUTE => self.names_parent = true,
            _ => {}
        }
    }
}

/// A trace with roots in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootTrace {
    id: Vec<u8>,
    tails: Vec<Tail>,
    earliest_ms: u64,
    /// Start times of its first and last root.
    roots_ms: (u64, u64),
}

impl RootTrace {
    /// Returns whether this is the Opik id of the trace.
    pub fn is(&self, id: Uuid) -> bool {
        self.tails.iter().any(|tail| id.as_bytes()[6..] == tail[..])
    }

    /// Returns the OTel id of the trace in its request.
    pub fn key(&self) -> &[u8] {
        &self.id
    }

    /// Returns the searches for ids with the suffix of this trace.
    pub fn search(&self, project: &str) -> Vec<Read> {
        let end = |tail: &Tail| opik_id(0, tail).to_string()[UUID_TIME_CHARACTERS..].to_owned();
        let filter = |tail| json!([{ "field": "id", "operator": "ends_with", "value": end(tail) }]);
        self.tails.iter().map(|tail| search(project, filter(tail), None)).collect()
    }

    /// Returns the Opik id of the trace if this request was the first with that trace.
    pub fn likely_id(&self) -> Option<Uuid> {
        self.tails.first().map(|tail| opik_id(self.earliest_ms, tail))
    }
}

/// The root spans of a request.
#[derive(Clone, Debug)]
pub struct Roots {
    format: Format,
    spans: Vec<Span>,
    traces: Vec<RootTrace>,
}

impl Roots {
    /// Parses a request.
    ///
    /// # Errors
    ///
    /// [`NotOtlp`] if no server could parse the request.
    pub fn read(format: Format, content: &[u8]) -> Result<Self, NotOtlp> {
        let mut spans = Vec::new();
        match format {
            Format::Protobuf => {
                check(&REQUEST, content, 0)?;
                read_protobuf(&SPAN_FIELDS, content, &mut spans);
            }
            Format::Json => {
                let mut scanner = Scanner::new(content)?;
                if scanner.peek()? == Kind::Object {
                    read_json(&SPAN_MEMBERS, &mut scanner, content, &mut spans)?;
                    scanner.end()?;
                }
            }
        }
        let mut traces: Vec<RootTrace> = Vec::new();
        let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
        for root in spans.iter().filter(|span| span.is_root()) {
            let start = root.start_ms;
            let place = *places.entry(root.trace.clone()).or_insert_with(|| {
                let tails = tails(format, &root.trace);
                traces.push(RootTrace { id: root.trace.clone(), tails, earliest_ms: start, roots_ms: (start, start) });
                traces.len() - 1
            });
            let (first, last) = traces[place].roots_ms;
            traces[place].roots_ms = (first.min(start), last.max(start));
        }
        for span in &spans {
            if let Some(place) = places.get(&span.trace) {
                traces[*place].earliest_ms = traces[*place].earliest_ms.min(span.start_ms);
            }
        }
        Ok(Self { format, spans, traces })
    }

    /// Returns the number of all spans of the request.
    pub fn span_count(&self) -> usize {
        self.spans.len()
    }

    /// Returns the traces with roots.
    pub fn traces(&self) -> &[RootTrace] {
        &self.traces
    }

    /// Returns the request for a page of the traces that start when these roots do, after the cursor `after`.
    pub fn search(&self, project: &str, after: Option<&str>) -> Read {
        let first = self.traces.iter().map(|trace| trace.roots_ms.0).min().unwrap_or_default();
        let last = self.traces.iter().map(|trace| trace.roots_ms.1).max().unwrap_or_default();
        let time = |ms| humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string();
        let filters = json!([
            { "field": "start_time", "operator": ">=", "value": time(first.min(TIME_MAX_MS)) },
            { "field": "start_time", "operator": "<=", "value": time(last.saturating_add(1).min(TIME_MAX_MS)) },
        ]);
        search(project, filters, after)
    }

    /// Returns the possible span ids of the first root in this Opik trace.
    pub fn span_ids(&self, trace: Uuid) -> Vec<Uuid> {
        let Some(root) = self.spans.iter().find(|span| span.is_root()) else { return Vec::new() };
        if let Some(id) = root.opik_span {
            return vec![id];
        }
        let time_ms = u64::from_be_bytes(std::array::from_fn(|at| if at < 2 { 0 } else { trace.as_bytes()[at - 2] }));
        tails(self.format, &root.id).iter().map(|tail| opik_id(time_ms, tail)).collect()
    }

    /// Returns the request with its roots attached to existing traces, so that those are not created again. `ids` has
    /// the Opik id of each of [`Roots::traces`], if known. All other bytes are unchanged.
    pub fn attach(&self, content: &[u8], ids: &[Option<Uuid>]) -> Vec<u8> {
        let known: HashMap<&[u8], Uuid> =
            self.traces.iter().zip(ids).filter_map(|(trace, id)| Some((&trace.id[..], (*id)?))).collect();
        let added = |span: &Span| {
            let id = known.get(&span.trace[..]).filter(|_| span.is_root())?;
            let parent = span.names_parent.then_some((OPIK_PARENT_ATTRIBUTE, NO_PARENT.to_owned()));
            Some([(OPIK_TRACE_ATTRIBUTE, id.to_string())].into_iter().chain(parent))
        };
        let mut attached = Vec::with_capacity(content.len() + 128 * self.spans.len());
        match self.format {
            Format::Protobuf => {
                let additions = self.spans.iter().map(|span| {
                    let mut fields = Vec::new();
                    for (key, text) in added(span).into_iter().flatten() {
                        let mut attribute = Vec::new();
                        put_field(&mut attribute, 1, key.as_bytes());
                        let mut value = Vec::new();
                        put_field(&mut value, 1, text.as_bytes());
                        put_field(&mut attribute, 2, &value);
                        put_field(&mut fields, ATTRIBUTES, &attribute);
                    }
                    fields
                });
                attach_protobuf(&SPAN_FIELDS, content, &mut additions.into_iter(), &mut attached);
            }
            Format::Json => {
                let mut copied = 0;
                for span in &self.spans {
                    let (Some(added), Some(InsertionPoint { at, before, after })) = (added(span), &span.place) else {
                        continue;
                    };
                    let objects: Vec<String> = added
                        .map(|(key, text)| json!({ "key": key, "value": { "stringValue": text } }).to_string())
                        .collect();
                    attached.extend_from_slice(&content[copied..at.start]);
                    attached.extend_from_slice(before.as_bytes());
                    attached.extend_from_slice(objects.join(",").as_bytes());
                    attached.extend_from_slice(after.as_bytes());
                    copied = at.end;
                }
                attached.extend_from_slice(&content[copied..]);
            }
        }
        attached
    }
}

fn search(project: &str, filters: Value, after: Option<&str>) -> Read {
    let mut body = json!({
        "project_name": project, "limit": PAGE_LIMIT, "truncate": true, "exclude": EXCLUDED, "filters": filters,
    });
    if let Some(after) = after {
        body["last_retrieved_id"] = after.into();
    }
    Read { method: "POST", path: "v1/private/traces/search".to_owned(), body: Some(body.to_string()) }
}

/// Characters of a UUIDv7's text that encode its time, hyphens included.
const UUID_TIME_CHARACTERS: usize = 14;
/// The maximum time in a filter: the end of the year 9999.
const TIME_MAX_MS: u64 = 253_402_300_799_999;

/// Returns the possible suffixes of Opik ids derived from this id.
///
/// OTLP's JSON encodes ids as hexadecimal digits, and protobuf's own mapping decodes every byte field as base64: it is
/// unknown which of the two a server does, so both are recognised.
fn tails(format: Format, id: &[u8]) -> Vec<Tail> {
    match format {
        Format::Protobuf => vec![tail(id)],
        Format::Json => [from_hex(id), STANDARD.decode(id).ok()].into_iter().flatten().map(|id| tail(&id)).collect(),
    }
}

fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let pairs = digits.chunks_exact(2);
    let bytes = pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    digits.len().is_multiple_of(2).then(|| bytes.collect())?
}

fn tail(id: &[u8]) -> Tail {
    let hash = ring::digest::digest(&ring::digest::SHA256, id);
    let mut tail: Tail = std::array::from_fn(|at| hash.as_ref()[at]);
    // Version 7 and the variant bits.
    tail[0] = tail[0] & 0x0f | 0x70;
    tail[2] = tail[2] & 0x3f | 0x80;
    tail
}

fn opik_id(time_ms: u64, tail: &Tail) -> Uuid {
    let time = time_ms.to_be_bytes();
    Uuid::from_bytes(std::array::from_fn(|at| if at < 6 { time[at + 2] } else { tail[at - 6] }))
}

fn put_field(to: &mut Vec<u8>, number: u64, content: &[u8]) {
    put_varint(to, number << 3 | 2);
    put_varint(to, content.len() as u64);
    to.extend_from_slice(content);
}

/// Parses the spans of a validated message.
fn read_protobuf(fields: &[u64], content: &[u8], spans: &mut Vec<Span>) {
    let Some((field, deeper)) = fields.split_first() else { return };
    for (number, value) in (Fields { rest: content }) {
        match value {
            WireValue::Bytes(span) if number == *field && deeper.is_empty() => spans.push(protobuf_span(span)),
            WireValue::Bytes(inner) if number == *field => read_protobuf(deeper, inner, spans),
            _ => {}
        }
    }
}

fn protobuf_span(content: &[u8]) -> Span {
    let mut span = Span::default();
    for (number, value) in (Fields { rest: content }) {
        match (number, value) {
            (1, WireValue::Bytes(id)) => span.trace = id.to_vec(),
            (2, WireValue::Bytes(id)) => span.id = id.to_vec(),
            (4, WireValue::Bytes(id)) => span.parent = id.to_vec(),
            (7, WireValue::Fixed64(nanoseconds)) => span.start_ms = nanoseconds / 1_000_000,
            _ => {}
        }
    }
    let mut seen = (false, false);
    for (key, text) in attributes(content, ATTRIBUTES) {
        span.attribute(&String::from_utf8_lossy(key), &String::from_utf8_lossy(text), &mut seen);
    }
    span
}

/// Copies a message with a prefix inserted into each span.
fn attach_protobuf(
    fields: &[u64],
    content: &[u8],
    additions: &mut impl Iterator<Item = Vec<u8>>,
    attached: &mut Vec<u8>,
) {
    let Some((field, deeper)) = fields.split_first() else { return };
    let mut reader = Fields { rest: content };
    loop {
        let before = reader.rest;
        // It was parsed to its end before.
        let Ok(Some((number, value))) = reader.next_field() else { return };
        let whole = &before[..before.len() - reader.rest.len()];
        match value {
            WireValue::Bytes(inner) if number == *field => {
                let mut changed = Vec::new();
                if deeper.is_empty() {
                    changed = additions.next().unwrap_or_default();
                    changed.extend_from_slice(inner);
                } else {
                    attach_protobuf(deeper, inner, additions, &mut changed);
                }
                put_field(attached, number, &changed);
            }
            _ => attached.extend_from_slice(whole),
        }
    }
}

fn read_json(
    members: &[[&str; 2]],
    scanner: &mut Scanner<'_>,
    content: &[u8],
    spans: &mut Vec<Span>,
) -> Result<(), NotJson> {
    let Some((names, deeper)) = members.split_first() else { return Ok(()) };
    let member = |key: &str, scanner: &mut Scanner<'_>| {
        if !names.contains(&key) || scanner.peek()? != Kind::Array {
            return scanner.skip_value().map(drop);
        }
        let item = |scanner: &mut Scanner<'_>| {
            if scanner.peek()? != Kind::Object {
                scanner.skip_value().map(drop)
            } else if deeper.is_empty() {
                spans.push(json_span(scanner, content)?);
                Ok(())
            } else {
                read_json(deeper, scanner, content, spans)
            }
        };
        scanner.array(item).map(drop)
    };
    scanner.object(member).map(drop)
}

fn json_span(scanner: &mut Scanner<'_>, content: &[u8]) -> Result<Span, NotJson> {
    let mut span = Span::default();
    let object = scanner.object(|key, scanner| {
        let text = |scanner: &mut Scanner<'_>| scanner.string().map(|text| text.into_owned().into_bytes());
        match (key, scanner.peek()?) {
            ("traceId" | "trace_id", Kind::String) => span.trace = text(scanner)?,
            ("spanId" | "span_id", Kind::String) => span.id = text(scanner)?,
            ("parentSpanId" | "parent_span_id", Kind::String) => span.parent = text(scanner)?,
            ("startTimeUnixNano" | "start_time_unix_nano", Kind::String) => {
                span.start_ms = scanner.string()?.trim().parse().unwrap_or(0_u64) / 1_000_000;
            }
            ("startTimeUnixNano" | "start_time_unix_nano", Kind::Scalar) => {
                let digits = std::str::from_utf8(&content[scanner.skip_value()?]);
                span.start_ms = digits.ok().and_then(|digits| digits.parse().ok()).unwrap_or(0_u64) / 1_000_000;
            }
            ("attributes", Kind::Null) => {
                let at = scanner.skip_value()?;
                span.place = Some(InsertionPoint { at, before: "[", after: "]" });
            }
            ("attributes", Kind::Array) => {
                // Of a duplicate list the last one counts.
                (span.opik_trace, span.opik_span, span.names_parent) = (None, None, false);
                let mut seen = (false, false);
                json_attributes(&mut scanner.clone(), |key, text| span.attribute(key, text, &mut seen))?;
                let mut is_empty = true;
                let array = scanner.array(|scanner| {
                    is_empty = false;
                    scanner.skip_value().map(drop)
                })?;
                let at = array.start + 1;
                span.place = Some(InsertionPoint { at: at..at, before: "", after: if is_empty { "" } else { "," } });
            }
            _ => return scanner.skip_value().map(drop),
        }
        Ok(())
    })?;
    // An object that names its trace is not empty, so a comma is needed.
    let at = object.start + 1;
    span.place.get_or_insert(InsertionPoint { at: at..at, before: "\"attributes\":[", after: "]," });
    Ok(span)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Traces, to_json};
    use super::*;

    const OPIK: &str = "01a20445-0b53-7443-881b-86277651b909";
    const START: u64 = 1_794_800_000_123;

    /// A span to encode in either encoding.
    #[derive(Clone, Debug)]
    struct Given {
        trace: u8,
        id: u8,
        parent: Option<Vec<u8>>,
        start_ms: u64,
        attributes: Option<Vec<(&'static str, &'static str)>>,
    }

    fn given(trace: u8, id: u8, parent: Option<u8>) -> Given {
        let parent = parent.map(|parent| vec![parent; 8]);
        Given { trace, id, parent, start_ms: START + u64::from(id), attributes: None }
    }

    fn hex(bytes: &[u8]) -> String {
        super::super::hex(bytes)
    }

    fn protobuf(spans: &[Given]) -> Vec<u8> {
        let mut list = Vec::new();
        for span in spans {
            let mut bytes = Vec::new();
            put_field(&mut bytes, 1, &[span.trace; 16]);
            put_field(&mut bytes, 2, &[span.id; 8]);
            if let Some(parent) = &span.parent {
                put_field(&mut bytes, 4, parent);
            }
            put_field(&mut bytes, 5, b"a name");
            put_varint(&mut bytes, 7 << 3 | 1);
            bytes.extend_from_slice(&(span.start_ms * 1_000_000).to_le_bytes());
            for (key, text) in span.attributes.iter().flatten() {
                let (mut attribute, mut value) = (Vec::new(), Vec::new());
                put_field(&mut attribute, 1, key.as_bytes());
                put_field(&mut value, 1, text.as_bytes());
                put_field(&mut attribute, 2, &value);
                put_field(&mut bytes, 9, &attribute);
            }
            put_field(&mut bytes, 99, b"newer");
            put_field(&mut list, 2, &bytes);
        }
        let (mut scope, mut request) = (Vec::new(), Vec::new());
        put_field(&mut scope, 2, &list);
        put_field(&mut scope, 3, b"https://schema");
        put_field(&mut request, 1, &scope);
        put_field(&mut request, 9, b"newer");
        request
    }

    fn json_request(spans: &[Given]) -> Vec<u8> {
        let span = |span: &Given| {
            let mut text = format!(
                r#"{{ "traceId":"{}", "spanId" : "{}","startTimeUnixNano":"{}" , "x":NaN"#,
                hex(&[span.trace; 16]),
                hex(&[span.id; 8]),
                span.start_ms * 1_000_000
            );
            if let Some(parent) = &span.parent {
                text += &format!(r#","parentSpanId":"{}""#, hex(parent));
            }
            if let Some(attributes) = &span.attributes {
                let attributes: Vec<String> = attributes
                    .iter()
                    .map(|(key, text)| format!(r#"{{"key":"{key}","value":{{"stringValue":"{text}"}}}}"#))
                    .collect();
                text += &format!(r#","attributes": [ {} ]"#, attributes.join(" , "));
            }
            text + "}"
        };
        let spans: Vec<String> = spans.iter().map(span).collect();
        format!(
            r#" {{"resourceSpans":[{{"scopeSpans":[{{"scope":{{}}, "spans":[{}]}}]}}], "new":1}} "#,
            spans.join(" , ")
        )
        .into_bytes()
    }

    fn both(spans: &[Given]) -> [(Format, Vec<u8>); 2] {
        [(Format::Protobuf, protobuf(spans)), (Format::Json, json_request(spans))]
    }

    fn root_count(format: Format, content: &[u8]) -> usize {
        Roots::read(format, content).expect("a request").spans.iter().filter(|span| span.is_root()).count()
    }

    #[test]
    fn derived_ids_match_the_server() {
        let roots = Roots::read(Format::Protobuf, &protobuf(&[given(1, 9, None)])).expect("a request");
        let id = roots.traces()[0].likely_id().expect("an id");
        let hash = ring::digest::digest(&ring::digest::SHA256, &[1; 16]);
        let hash = hash.as_ref();
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(u64::try_from(id.as_u128() >> 80), Ok(START + 9), "its time is the earliest start");
        assert_eq!((id.as_bytes()[7], &id.as_bytes()[9..]), (hash[1], &hash[3..10]));
        assert!(roots.traces()[0].is(id) && !roots.traces()[0].is(Uuid::nil()));
        // The span has the time of its trace.
        let other = opik_id(77, &tail(&[1; 16]));
        let span = roots.span_ids(other)[0];
        assert_eq!(u64::try_from(span.as_u128() >> 80), Ok(77));
        assert_eq!(span, opik_id(77, &tail(&[9; 8])));
    }

    #[test]
    fn json_ids_are_recognised_as_digits_and_as_base64() {
        let roots = Roots::read(Format::Json, &json_request(&[given(1, 9, None)])).expect("a request");
        let as_base64 = STANDARD.decode(hex(&[1; 16])).expect("hexadecimal digits are base64, too");
        for bytes in [vec![1; 16], as_base64] {
            assert!(roots.traces()[0].is(opik_id(5, &tail(&bytes))));
        }
        assert_eq!(roots.traces()[0].search("p").len(), 2);
    }

    #[test]
    fn roots_are_spans_without_parent_and_without_opik_trace() {
        let with = |attributes| Given { attributes: Some(attributes), ..given(1, 1, None) };
        let parent_is_trace = Given { parent: Some(vec![1; 16]), ..given(1, 1, None) };
        for (span, roots) in [
            (given(1, 1, None), 1),
            (given(1, 1, Some(2)), 0),
            (Given { parent: Some(Vec::new()), ..given(1, 1, None) }, 1),
            // Eight zero bytes are a parent as well: the server checks only the length.
            (given(1, 1, Some(0)), 0),
            (parent_is_trace, 1),
            (with(vec![]), 1),
            (with(vec![("opik.trace_id", OPIK)]), 0),
            (with(vec![("opik.trace_id", "no uuid")]), 1),
            (with(vec![("opik.trace_id", "no uuid"), ("opik.trace_id", OPIK)]), 1),
            (with(vec![("opik.trace_id", " "), ("opik.trace_id", OPIK)]), 0),
            (with(vec![("opik.trace_id", "6c84fb90-12c4-11e1-840d-7b25c5ee775a")]), 1),
            (with(vec![("other", "x")]), 1),
        ] {
            for (format, content) in both(std::slice::from_ref(&span)) {
                assert_eq!(root_count(format, &content), roots, "{format:?} {span:?}");
            }
        }
    }

    #[test]
    fn attached_spans_are_no_longer_roots_and_all_else_is_unchanged() {
        let id = Uuid::try_parse(OPIK).expect("a UUID");
        let attributes = |attributes| Given { attributes: Some(attributes), ..given(1, 4, None) };
        let spans = [
            given(1, 1, Some(2)),
            given(1, 2, None),
            attributes(vec![]),
            attributes(vec![("opik.trace_id", "no uuid"), ("opik.parent_span_id", OPIK), ("a", "b")]),
            given(2, 5, None),
        ];
        for (format, content) in both(&spans) {
            let roots = Roots::read(format, &content).expect("a request");
            assert_eq!(roots.traces().len(), 2);
            let attached = roots.attach(&content, &[Some(id), None]);
            let after = Roots::read(format, &attached).expect("a request");
            assert_eq!(after.traces().len(), 1, "the trace that is not known is made");
            assert_eq!(after.traces()[0].key(), roots.traces()[1].key());
            assert_eq!(
                after.spans.iter().map(|span| span.opik_trace).collect::<Vec<_>>(),
                [None, Some(id), Some(id), Some(id), None]
            );
            let traces = |content: &[u8]| Traces::read(format, content).expect("a request").spans;
            assert_eq!(traces(&attached), traces(&content));
            assert_eq!(roots.attach(&content, &[None, None]), content, "{format:?}");
        }
    }

    #[test]
    fn attaching_in_json_inserts_only_the_attribute() {
        let id = Uuid::try_parse(OPIK).expect("a UUID");
        let attribute = format!(r#"{{"key":"opik.trace_id","value":{{"stringValue":"{OPIK}"}}}}"#);
        for (before, after) in [
            (r#"{"traceId":"01", "x":NaN}"#, format!(r#"{{"attributes":[{attribute}],"traceId":"01", "x":NaN}}"#)),
            (
                r#"{"traceId":"01","attributes" : [ ] }"#,
                format!(r#"{{"traceId":"01","attributes" : [{attribute} ] }}"#),
            ),
            (r#"{"attributes":null,"trace_id":"01"}"#, format!(r#"{{"attributes":[{attribute}],"trace_id":"01"}}"#)),
            (
                r#"{"traceId":"01","attributes":[ {"key":"a"}]}"#,
                format!(r#"{{"traceId":"01","attributes":[{attribute}, {{"key":"a"}}]}}"#),
            ),
        ] {
            let around = |span: &str| format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[ {span} ]}}]}}]}}"#);
            let content = around(before);
            let roots = Roots::read(Format::Json, content.as_bytes()).expect("a request");
            let attached = roots.attach(content.as_bytes(), &[Some(id)]);
            assert_eq!(String::from_utf8_lossy(&attached), around(&after));
        }
    }

    #[test]
    fn searches_filter_by_the_suffix_of_the_trace() {
        let spans = [given(1, 200, None), given(2, 3, None), given(2, 1, Some(3))];
        let roots = Roots::read(Format::Protobuf, &protobuf(&spans)).expect("a request");
        let body = |read: Read| -> Value { serde_json::from_str(&read.body.expect("a body")).expect("JSON") };
        let page = body(roots.search("p", Some(OPIK)));
        assert_eq!((&page["project_name"], &page["last_retrieved_id"]), (&json!("p"), &json!(OPIK)));
        let time = |index: usize| page["filters"][index]["value"].as_str().expect("a time").to_owned();
        assert_eq!((time(0), time(1)), ("2026-11-16T03:33:20.126Z".into(), "2026-11-16T03:33:20.324Z".into()));
        let one = body(roots.traces()[1].search("p").remove(0));
        let end = one["filters"][0]["value"].as_str().expect("an end").to_owned();
        let id = roots.traces()[1].likely_id().expect("an id").to_string();
        assert!(id.ends_with(&end) && end.len() == 22, "{end}");
        // Times out of range don't break the filter.
        let late = Given { start_ms: u64::MAX / 1_000_000, ..given(1, 1, None) };
        Roots::read(Format::Protobuf, &protobuf(&[late])).expect("a request").search("p", None);
    }

    proptest! {
        #[test]
        fn attaching_changes_no_other_span(
            spans in prop::collection::vec((1_u8..4, 1_u8..9, any::<bool>(), 0_usize..3), 1..12),
            known in prop::collection::vec(any::<bool>(), 4),
        ) {
            let given: Vec<Given> = spans
                .iter()
                .map(|(trace, id, is_root, attributes)| {
                    let attributes = (*attributes > 0).then(|| vec![("k", "v"); attributes - 1]);
                    Given { attributes, ..given(*trace, *id, (!is_root).then_some(77)) }
                })
                .collect();
            let id = Uuid::try_parse(OPIK).expect("a UUID");
            for (format, content) in both(&given) {
                let roots = Roots::read(format, &content).expect("a request");
                let ids: Vec<Option<Uuid>> =
                    roots.traces().iter().zip(&known).map(|(_, known)| known.then_some(id)).collect();
                let attached = roots.attach(&content, &ids);
                let after = Roots::read(format, &attached).expect("a request");
                prop_assert_eq!(after.spans.len(), given.len());
                for (before, after) in roots.spans.iter().zip(&after.spans) {
                    let place = roots.traces().iter().position(|trace| trace.id == before.trace);
                    let wanted = place.filter(|_| before.is_root()).and_then(|place| ids[place]);
                    prop_assert_eq!(after.opik_trace, wanted);
                    prop_assert_eq!((&after.trace, &after.id, &after.parent), (&before.trace, &before.id, &before.parent));
                }
                if format == Format::Protobuf {
                    prop_assert!(to_json(&attached).is_some());
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), flip in 0_usize..200, to: u8) {
            let _ = Roots::read(Format::Protobuf, &bytes);
            let _ = Roots::read(Format::Json, &bytes);
            let id = Uuid::try_parse(OPIK).expect("a UUID");
            for (format, mut content) in both(&[given(1, 1, None), given(2, 2, Some(1))]) {
                let at = flip % content.len();
                content[at] = to;
                if let Ok(roots) = Roots::read(format, &content) {
                    let ids = vec![Some(id); roots.traces().len()];
                    let attached = roots.attach(&content, &ids);
                    prop_assert!(Roots::read(format, &attached).is_ok());
                }
            }
        }
    }
}
