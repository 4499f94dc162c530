//! Parses and divides OTLP/HTTP trace requests (protocol dossier, section d).
//!
//! Protobuf is parsed by a walker over the wire format with a table of the fields of OpenTelemetry's `trace.proto`:
//! generated code would need a schema compiler and copy every attribute of a request although we need only the ids.
//! The walker copies nothing and skips unknown fields, which newer exporters may send.

pub mod roots;

use std::collections::HashSet;
use std::ops::Range;

use base64::Engine;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::inspection::Inspection;
use super::json::{JsonKind, NotJson, Scanner};
use super::reply::Reply;
use crate::message::{Effect, EntityKey, EntityKind, Touch};

/// The header that names the project; the Python exporter sends it in lower case.
pub const PROJECT_HEADER: &str = "projectName";

/// The encoding of a request and of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/x-protobuf`
    Protobuf,
    /// `application/json`
    Json,
}

impl Format {
    /// Parses a `Content-Type`, ignoring its parameters. `None` for types that the endpoint rejects.
    pub fn from_content_type(value: &str) -> Option<Self> {
        let essence = value.split(';').next().unwrap_or("").trim();
        if essence.eq_ignore_ascii_case("application/x-protobuf") {
            Some(Self::Protobuf)
        } else if essence.eq_ignore_ascii_case("application/json") {
            Some(Self::Json)
        } else {
            None
        }
    }
}

/// Why a payload is not an OTLP request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotOtlp {
    /// The bytes are not a protobuf message.
    #[error("not a protobuf message")]
    Protobuf,
    /// The text is not JSON.
    #[error(transparent)]
    Json(#[from] NotJson),
}

/// Returns the success reply for a stored request: an empty `ExportTraceServiceResponse` in the request's encoding.
pub fn success(format: Format) -> Reply {
    match format {
        // A message without fields has no bytes.
        Format::Protobuf => Reply { content_type: Some("application/x-protobuf"), ..Reply::empty(200) },
        Format::Json => Reply { content_type: Some("application/json"), body: "{}".to_owned(), ..Reply::empty(200) },
    }
}

/// Parses the number of rejected spans and the error text of a protobuf `ExportTraceServiceResponse`; `None` if it
/// has neither. The response may be truncated.
pub(super) fn rejected_spans(content: &[u8]) -> Option<(u64, String)> {
    let fields = |content: &[u8], found: &mut dyn FnMut(u64, WireValue<'_>)| {
        let mut fields = Fields { rest: content };
        loop {
            let before = fields.rest;
            match fields.next_field() {
                Ok(Some((number, value))) => found(number, value),
                Ok(None) => return,
                Err(_) => {
                    // A truncated length-delimited field: its available part.
                    let mut cut = Fields { rest: before };
                    if let (Ok(tag), Ok(_)) = (cut.varint(), cut.varint())
                        && tag & 7 == 2
                    {
                        found(tag >> 3, WireValue::Bytes(cut.rest));
                    }
                    return;
                }
            }
        }
    };
    let mut said = None;
    fields(content, &mut |number, value| {
        let (1, WireValue::Bytes(partial_success)) = (number, value) else { return };
        let (rejected, words) = said.get_or_insert((0, String::new()));
        fields(partial_success, &mut |number, value| match (number, value) {
            (1, WireValue::Varint(count)) => *rejected = count,
            (2, WireValue::Bytes(text)) => *words = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        });
    });
    said
}

/// The contents of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Number of spans.
    pub spans: u32,
    /// Their OpenTelemetry traces, and the Opik traces that they name.
    pub touches: Vec<Touch>,
    /// `service.name` of its resources, deduplicated.
    pub services: Vec<String>,
}

impl Traces {
    /// Parses a request.
    ///
    /// # Errors
    ///
    /// [`NotOtlp`] if no server could parse it.
    pub fn read(format: Format, content: &[u8]) -> Result<Self, NotOtlp> {
        let mut traces = Self::default();
        match format {
            Format::Protobuf => traces.read_protobuf(content)?,
            Format::Json => traces.read_json(content)?,
        }
        traces.touches = Touch::distinct(traces.touches);
        let mut seen = HashSet::new();
        traces.services.retain(|service| seen.insert(service.clone()));
        Ok(traces)
    }

    /// Returns the attributes that delivery needs, for a request of this project.
    pub fn inspection(self, project: Option<String>) -> Inspection {
        Inspection { touches: self.touches, items: self.spans, project, ..Inspection::default() }
    }

    fn trace(&mut self, id: &[u8]) {
        // 16 bytes in every valid request; any other id is only ordered with itself.
        let key = match <[u8; 16]>::try_from(id) {
            Ok(id) => EntityKey::from_parts(EntityKind::OtelTrace, id),
            Err(_) => EntityKey::new(EntityKind::OtelTrace, &hex(id)),
        };
        self.touches.push(Touch { key, effect: Effect::Annotate });
    }

    fn opik_trace(&mut self, id: &str) {
        self.touches.push(Touch { key: EntityKey::new(EntityKind::Trace, id), effect: Effect::Refer });
    }

    fn service(&mut self, name: &str) {
        // Most requests have a single one; deduplicated at the end to avoid quadratic comparisons.
        if self.services.last().is_none_or(|last| last != name) {
            self.services.push(name.to_owned());
        }
    }

    fn read_protobuf(&mut self, content: &[u8]) -> Result<(), NotOtlp> {
        check(&REQUEST, content, 0)?;
        for resource_spans in messages(content, 1) {
            for resource in messages(resource_spans, 1) {
                for (key, value) in attributes(resource, 1) {
                    if key == b"service.name" {
                        self.service(&String::from_utf8_lossy(value));
                    }
                }
            }
            for span in messages(resource_spans, 2).flat_map(|scope_spans| messages(scope_spans, 2)) {
                self.spans = self.spans.saturating_add(1);
                messages(span, 1).for_each(|id| self.trace(id));
                for (key, value) in attributes(span, 9) {
                    if key == OPIK_TRACE_ATTRIBUTE.as_bytes() {
                        self.opik_trace(&String::from_utf8_lossy(value));
                    }
                }
            }
        }
        Ok(())
    }

    fn read_json(&mut self, content: &[u8]) -> Result<(), NotOtlp> {
        let mut scanner = Scanner::new(content)?;
        if scanner.peek()? != JsonKind::Object {
            scanner.skip_value()?;
        } else {
            scanner.object(|key, scanner| match key {
                "resourceSpans" | "resource_spans" => {
                    objects(scanner, |_, key, scanner| self.json_resource(key, scanner))
                }
                _ => scanner.skip_value().map(drop),
            })?;
        }
        Ok(scanner.end()?)
    }

    fn json_resource(&mut self, key: &str, scanner: &mut Scanner<'_>) -> Result<(), NotJson> {
        match (key, scanner.peek()?) {
            ("resource", JsonKind::Object) => scanner
                .object(|key, scanner| match key {
                    "attributes" => json_attributes(scanner, |key, value| {
                        if key == "service.name" {
                            self.service(value);
                        }
                    }),
                    _ => scanner.skip_value().map(drop),
                })
                .map(drop),
            ("scopeSpans" | "scope_spans", _) => objects(scanner, |_, key, scanner| match key {
                "spans" => objects(scanner, |is_first, key, scanner| self.json_span(is_first, key, scanner)),
                _ => scanner.skip_value().map(drop),
            }),
            _ => scanner.skip_value().map(drop),
        }
    }

    fn json_span(&mut self, is_first: bool, key: &str, scanner: &mut Scanner<'_>) -> Result<(), NotJson> {
        if is_first {
            self.spans = self.spans.saturating_add(1);
        }
        match (key, scanner.peek()?) {
            ("traceId" | "trace_id", JsonKind::String) => {
                // Hexadecimal digits; EntityKey parses 32 of them as 16 bytes.
                let id = scanner.string()?;
                self.touches.push(Touch { key: EntityKey::new(EntityKind::OtelTrace, &id), effect: Effect::Annotate });
                Ok(())
            }
            ("attributes", _) => json_attributes(scanner, |key, value| {
                if key == OPIK_TRACE_ATTRIBUTE {
                    self.opik_trace(value);
                }
            }),
            _ => scanner.skip_value().map(drop),
        }
    }
}

// Pieces.

/// Field numbers on the path to the spans of a protobuf request: resource_spans, scope_spans, spans
/// (`trace.proto`).
const SPAN_FIELDS: [u64; 3] = [1, 2, 2];
/// The same path in OTLP's JSON, each member in its two spellings.
const SPAN_MEMBERS: [[&str; 2]; 3] =
    [["resourceSpans", "resource_spans"], ["scopeSpans", "scope_spans"], ["spans", "spans"]];

/// Returns the number of spans of a request, as counted by [`piece`].
///
/// # Errors
///
/// [`NotOtlp`] if no server could parse it.
pub fn span_count(format: Format, content: &[u8]) -> Result<usize, NotOtlp> {
    // Validation happens once here, and not for every piece.
    Traces::read(format, content)?;
    Ok(cut(format, content, &(0..0))?.1)
}

/// Returns a request with only these spans of another one, counted from 0 in document order.
///
/// Every span, resource and scope is byte for byte as the exporter sent it, and so is everything beside the spans:
/// schema URLs, and unknown fields of newer exporters. Resources and scopes without any of these spans are omitted.
///
/// # Errors
///
/// [`NotOtlp`] if no server could parse the whole request.
pub fn piece(format: Format, content: &[u8], spans: Range<usize>) -> Result<Vec<u8>, NotOtlp> {
    Ok(cut(format, content, &spans)?.0)
}

/// The spans to copy, and the number of spans passed so far.
struct SpanSelection<'a> {
    content: &'a [u8],
    wanted: &'a Range<usize>,
    seen: usize,
}

impl SpanSelection<'_> {
    /// Passes the next span; returns whether it is wanted.
    fn takes_next(&mut self) -> bool {
        let is_wanted = self.wanted.contains(&self.seen);
        self.seen += 1;
        is_wanted
    }
}

/// Returns a request with only these spans, and the number of spans of the whole.
fn cut(format: Format, content: &[u8], wanted: &Range<usize>) -> Result<(Vec<u8>, usize), NotOtlp> {
    let mut piece = Vec::new();
    let mut selection = SpanSelection { content, wanted, seen: 0 };
    match format {
        Format::Protobuf => drop(cut_protobuf(&SPAN_FIELDS, content, &mut selection, &mut piece)?),
        Format::Json => {
            let mut scanner = Scanner::new(content)?;
            if scanner.peek()? == JsonKind::Object {
                cut_json(&SPAN_MEMBERS, &mut scanner, &mut selection, &mut piece)?;
            } else {
                // There are no spans to select, and the result must still be JSON.
                piece.extend_from_slice(content);
            }
        }
    }
    Ok((piece, selection.seen))
}

/// Copies a message with only the wanted spans, which are nested as deep as there are `fields`; returns whether it has
/// any.
fn cut_protobuf(
    fields: &[u64],
    content: &[u8],
    selection: &mut SpanSelection<'_>,
    piece: &mut Vec<u8>,
) -> Result<bool, NotOtlp> {
    let Some((field, deeper)) = fields.split_first() else { return Ok(false) };
    let mut has_any = false;
    let mut reader = Fields { rest: content };
    loop {
        let before = reader.rest;
        let Some((number, value)) = reader.next_field()? else { return Ok(has_any) };
        let whole = &before[..before.len() - reader.rest.len()];
        match value {
            WireValue::Bytes(_) if number == *field && deeper.is_empty() => {
                if selection.takes_next() {
                    piece.extend_from_slice(whole);
                    has_any = true;
                }
            }
            WireValue::Bytes(inner) if number == *field => {
                let mut kept = Vec::new();
                if cut_protobuf(deeper, inner, selection, &mut kept)? {
                    put_varint(piece, number << 3 | 2);
                    put_varint(piece, kept.len() as u64);
                    piece.append(&mut kept);
                    has_any = true;
                }
            }
            _ => piece.extend_from_slice(whole),
        }
    }
}

/// The same for an object of OTLP's JSON. A duplicate array stays a duplicate: whichever one the server
/// parses, all pieces together contain what the whole request did.
fn cut_json(
    members: &[[&str; 2]],
    scanner: &mut Scanner<'_>,
    selection: &mut SpanSelection<'_>,
    piece: &mut Vec<u8>,
) -> Result<bool, NotJson> {
    let content = selection.content;
    let Some((names, deeper)) = members.split_first() else { return Ok(false) };
    let mut has_any = false;
    // Arrays of this object, and their replacements.
    let mut arrays: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    let object = scanner.object(|key, scanner| {
        if !names.contains(&key) || scanner.peek()? != JsonKind::Array {
            return scanner.skip_value().map(drop);
        }
        let mut kept = Vec::new();
        let array = scanner.array(|scanner| {
            let mut item = Vec::new();
            if deeper.is_empty() {
                let span = scanner.skip_value()?;
                if selection.takes_next() {
                    item.extend_from_slice(&content[span]);
                }
            } else if scanner.peek()? != JsonKind::Object {
                return scanner.skip_value().map(drop);
            } else if !cut_json(deeper, scanner, selection, &mut item)? {
                return Ok(());
            }
            if !item.is_empty() {
                if !kept.is_empty() {
                    kept.push(b',');
                }
                kept.append(&mut item);
                has_any = true;
            }
            Ok(())
        })?;
        arrays.push((array, kept));
        Ok(())
    })?;
    let mut copied = object.start;
    for (array, kept) in arrays {
        piece.extend_from_slice(&content[copied..array.start]);
        piece.push(b'[');
        piece.extend_from_slice(&kept);
        piece.push(b']');
        copied = array.end;
    }
    piece.extend_from_slice(&content[copied..object.end]);
    Ok(has_any)
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        to.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// The attribute that names the Opik trace of a span, instead of the one derived from its OTel trace.
const OPIK_TRACE_ATTRIBUTE: &str = "opik.trace_id";

/// Calls `member` with each member of each object of an array, and with whether it is the object's first.
fn objects(
    scanner: &mut Scanner<'_>,
    mut member: impl FnMut(bool, &str, &mut Scanner<'_>) -> Result<(), NotJson>,
) -> Result<(), NotJson> {
    if scanner.peek()? != JsonKind::Array {
        return scanner.skip_value().map(drop);
    }
    let item = |scanner: &mut Scanner<'_>| {
        if scanner.peek()? != JsonKind::Object {
            return scanner.skip_value().map(drop);
        }
        let mut is_first = true;
        scanner.object(|key, scanner| member(std::mem::take(&mut is_first), key, scanner)).map(drop)
    };
    scanner.array(item).map(drop)
}

/// Calls `attribute` with key and text of each attribute with a text value.
fn json_attributes(scanner: &mut Scanner<'_>, mut attribute: impl FnMut(&str, &str)) -> Result<(), NotJson> {
    let mut name = String::new();
    let mut text: Option<String> = None;
    objects(scanner, |is_first, key, scanner| {
        if is_first {
            (name, text) = (String::new(), None);
        }
        match (key, scanner.peek()?) {
            ("key", JsonKind::String) => name = scanner.string()?.into_owned(),
            ("value", JsonKind::Object) => {
                scanner.object(|key, scanner| {
                    if matches!(key, "stringValue" | "string_value") && scanner.peek()? == JsonKind::String {
                        text = Some(scanner.string()?.into_owned());
                        return Ok(());
                    }
                    scanner.skip_value().map(drop)
                })?;
            }
            _ => return scanner.skip_value().map(drop),
        }
        if let Some(text) = text.as_ref().filter(|_| !name.is_empty()) {
            attribute(&name, text);
        }
        Ok(())
    })
}

/// Converts a protobuf request to OTLP's JSON, for people; `None` if it is not a protobuf message.
pub fn to_json(content: &[u8]) -> Option<Value> {
    check(&REQUEST, content, 0).ok()?;
    Some(json_of(&REQUEST, content))
}

/// Returns whether a protobuf request has at most this many values: each may take one byte here and hundreds of bytes
/// in memory as JSON. A payload that is not a protobuf message has none.
pub fn has_at_most(values: usize, content: &[u8]) -> bool {
    fn count(message: &MessageSchema, content: &[u8], depth: usize, left: &mut usize) -> Option<()> {
        let mut fields = Fields { rest: content };
        while let Ok(Some((number, value))) = fields.next_field() {
            *left = left.checked_sub(1)?;
            let field = message.fields.iter().find(|field| field.number == number);
            if let (Some(FieldSchema { kind: Type::MessageSchema(inner), .. }), WireValue::Bytes(bytes)) =
                (field, value)
                && depth < DEPTH_MAX
            {
                count(inner, bytes, depth + 1, left)?;
            }
        }
        Some(())
    }
    count(&REQUEST, content, 0, &mut { values }).is_some()
}

// The wire format.

/// A value in wire format.
enum WireValue<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// Iterates over the fields of a message.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Returns the next field's number and value, `None` at the end.
    fn next_field(&mut self) -> Result<Option<(u64, WireValue<'a>)>, NotOtlp> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => WireValue::Varint(self.varint()?),
            1 => WireValue::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| NotOtlp::Protobuf)?;
                WireValue::Bytes(self.take(length)?)
            }
            5 => WireValue::Fixed32(u32::from_le_bytes(self.array()?)),
            // Groups, which OTLP does not use, and invalid wire types.
            _ => return Err(NotOtlp::Protobuf),
        };
        match tag >> 3 {
            0 => Err(NotOtlp::Protobuf),
            number => Ok(Some((number, value))),
        }
    }

    fn varint(&mut self) -> Result<u64, NotOtlp> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            // Bits past the 64th are dropped, as in protobuf's own parsers.
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(NotOtlp::Protobuf)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NotOtlp> {
        self.take(N)?.try_into().map_err(|_| NotOtlp::Protobuf)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], NotOtlp> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(NotOtlp::Protobuf)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Iterates over a validated message.
impl<'a> Iterator for Fields<'a> {
    type Item = (u64, WireValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.next_field().ok().flatten()
    }
}

/// Returns the values of a length-delimited field: messages, texts, bytes.
fn messages(content: &[u8], wanted: u64) -> impl Iterator<Item = &[u8]> {
    Fields { rest: content }.filter_map(move |(number, value)| match value {
        WireValue::Bytes(bytes) if number == wanted => Some(bytes),
        _ => None,
    })
}

/// Returns keys and texts of the attributes in this field.
fn attributes(content: &[u8], field: u64) -> impl Iterator<Item = (&[u8], &[u8])> {
    messages(content, field).filter_map(|attribute| {
        let key = messages(attribute, 1).last()?;
        let value = messages(attribute, 2).last()?;
        Some((key, messages(value, 1).last()?))
    })
}

// The schema: opentelemetry-proto, `trace/v1/trace.proto` and its imports.

struct MessageSchema {
    fields: &'static [FieldSchema],
}

struct FieldSchema {
    number: u64,
    /// The name in OTLP's JSON.
    name: &'static str,
    kind: Type,
    is_repeated: bool,
}

enum Type {
    Text,
    /// Ids, hexadecimal digits in OTLP's JSON.
    Id,
    Bytes,
    Unsigned,
    Signed,
    Bool,
    Double,
    /// Times in nanoseconds, text in OTLP's JSON.
    Time,
    Flags,
    MessageSchema(&'static MessageSchema),
}

const fn one(number: u64, name: &'static str, kind: Type) -> FieldSchema {
    FieldSchema { number, name, kind, is_repeated: false }
}

const fn many(number: u64, name: &'static str, message: &'static MessageSchema) -> FieldSchema {
    FieldSchema { number, name, kind: Type::MessageSchema(message), is_repeated: true }
}

static REQUEST: MessageSchema = MessageSchema { fields: &[many(1, "resourceSpans", &RESOURCE_SPANS)] };
static RESOURCE_SPANS: MessageSchema = MessageSchema {
    fields: &[
        one(1, "resource", Type::MessageSchema(&RESOURCE)),
        many(2, "scopeSpans", &SCOPE_SPANS),
        one(3, "schemaUrl", Type::Text),
    ],
};
static RESOURCE: MessageSchema =
    MessageSchema { fields: &[many(1, "attributes", &KEY_VALUE), one(2, "droppedAttributesCount", Type::Unsigned)] };
static SCOPE_SPANS: MessageSchema = MessageSchema {
    fields: &[one(1, "scope", Type::MessageSchema(&SCOPE)), many(2, "spans", &SPAN), one(3, "schemaUrl", Type::Text)],
};
static SCOPE: MessageSchema = MessageSchema {
    fields: &[
        one(1, "name", Type::Text),
        one(2, "version", Type::Text),
        many(3, "attributes", &KEY_VALUE),
        one(4, "droppedAttributesCount", Type::Unsigned),
    ],
};
static SPAN: MessageSchema = MessageSchema {
    fields: &[
        one(1, "traceId", Type::Id),
        one(2, "spanId", Type::Id),
        one(3, "traceState", Type::Text),
        one(4, "parentSpanId", Type::Id),
        one(5, "name", Type::Text),
        one(6, "kind", Type::Unsigned),
        one(7, "startTimeUnixNano", Type::Time),
        one(8, "endTimeUnixNano", Type::Time),
        many(9, "attributes", &KEY_VALUE),
        one(10, "droppedAttributesCount", Type::Unsigned),
        many(11, "events", &EVENT),
        one(12, "droppedEventsCount", Type::Unsigned),
        many(13, "links", &LINK),
        one(14, "droppedLinksCount", Type::Unsigned),
        one(15, "status", Type::MessageSchema(&STATUS)),
        one(16, "flags", Type::Flags),
    ],
};
static EVENT: MessageSchema = MessageSchema {
    fields: &[
        one(1, "timeUnixNano", Type::Time),
        one(2, "name", Type::Text),
        many(3, "attributes", &KEY_VALUE),
        one(4, "droppedAttributesCount", Type::Unsigned),
    ],
};
static LINK: MessageSchema = MessageSchema {
    fields: &[
        one(1, "traceId", Type::Id),
        one(2, "spanId", Type::Id),
        one(3, "traceState", Type::Text),
        many(4, "attributes", &KEY_VALUE),
        one(5, "droppedAttributesCount", Type::Unsigned),
        one(6, "flags", Type::Flags),
    ],
};
static STATUS: MessageSchema =
    MessageSchema { fields: &[one(2, "message", Type::Text), one(3, "code", Type::Unsigned)] };
static KEY_VALUE: MessageSchema =
    MessageSchema { fields: &[one(1, "key", Type::Text), one(2, "value", Type::MessageSchema(&ANY_VALUE))] };
static ANY_VALUE: MessageSchema = MessageSchema {
    fields: &[
        one(1, "stringValue", Type::Text),
        one(2, "boolValue", Type::Bool),
        one(3, "intValue", Type::Signed),
        one(4, "doubleValue", Type::Double),
        one(5, "arrayValue", Type::MessageSchema(&ARRAY_VALUE)),
        one(6, "kvlistValue", Type::MessageSchema(&KEY_VALUE_LIST)),
        one(7, "bytesValue", Type::Bytes),
    ],
};
static ARRAY_VALUE: MessageSchema = MessageSchema { fields: &[many(1, "values", &ANY_VALUE)] };
static KEY_VALUE_LIST: MessageSchema = MessageSchema { fields: &[many(1, "values", &KEY_VALUE)] };

/// Maximum nesting depth, as in protobuf's own parsers.
const DEPTH_MAX: usize = 100;

/// Validates a message and its nested messages.
fn check(message: &MessageSchema, content: &[u8], depth: usize) -> Result<(), NotOtlp> {
    if depth > DEPTH_MAX {
        return Err(NotOtlp::Protobuf);
    }
    let mut fields = Fields { rest: content };
    while let Some((number, value)) = fields.next_field()? {
        let field = message.fields.iter().find(|field| field.number == number);
        if let (Some(FieldSchema { kind: Type::MessageSchema(inner), .. }), WireValue::Bytes(bytes)) = (field, value) {
            check(inner, bytes, depth + 1)?;
        }
    }
    Ok(())
}

/// Converts a validated message to JSON.
fn json_of(message: &MessageSchema, content: &[u8]) -> Value {
    let mut shown = Map::new();
    for (number, value) in (Fields { rest: content }) {
        let Some(field) = message.fields.iter().find(|field| field.number == number) else {
            // An unknown field of a newer exporter: shown by its number, because it is forwarded.
            let name = format!("unknownField{number}");
            if let Value::Array(values) = shown.entry(name).or_insert_with(|| json!([])) {
                values.push(match value {
                    WireValue::Varint(number) | WireValue::Fixed64(number) => json!(number),
                    WireValue::Fixed32(number) => json!(number),
                    WireValue::Bytes(bytes) => json!(base64::engine::general_purpose::STANDARD.encode(bytes)),
                });
            }
            continue;
        };
        let value = match (&field.kind, value) {
            (Type::MessageSchema(inner), WireValue::Bytes(bytes)) => json_of(inner, bytes),
            (Type::Text, WireValue::Bytes(bytes)) => json!(String::from_utf8_lossy(bytes)),
            (Type::Id, WireValue::Bytes(bytes)) => json!(hex(bytes)),
            (Type::Bytes, WireValue::Bytes(bytes)) => json!(base64::engine::general_purpose::STANDARD.encode(bytes)),
            (Type::Unsigned, WireValue::Varint(number)) => json!(number),
            (Type::Signed, WireValue::Varint(number)) => json!(number.cast_signed().to_string()),
            (Type::Bool, WireValue::Varint(number)) => json!(number != 0),
            (Type::Double, WireValue::Fixed64(bits)) => match f64::from_bits(bits) {
                number if number.is_finite() => json!(number),
                // JSON has no such numbers; protobuf's JSON mapping uses their names.
                number if number.is_nan() => json!("NaN"),
                number => json!(if number > 0.0 { "Infinity" } else { "-Infinity" }),
            },
            (Type::Time, WireValue::Fixed64(nanoseconds)) => json!(nanoseconds.to_string()),
            (Type::Flags, WireValue::Fixed32(bits)) => json!(bits),
            // The wire type differs from the schema: skipped like an unknown field.
            _ => continue,
        };
        match (field.is_repeated, shown.get_mut(field.name)) {
            (true, Some(Value::Array(values))) => values.push(value),
            (true, _) => drop(shown.insert(field.name.to_owned(), Value::Array(vec![value]))),
            (false, _) => drop(shown.insert(field.name.to_owned(), value)),
        }
    }
    Value::Object(shown)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Body, Encoding};

    /// Encodes a length-delimited field.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let length = [(content.len() & 0x7f) as u8 | 0x80, (content.len() >> 7) as u8];
        [&[number << 3 | 2][..], &length, content].concat()
    }

    fn attribute(key: &str, text: &str) -> Vec<u8> {
        [field(1, key.as_bytes()), field(2, &field(1, text.as_bytes()))].concat()
    }

    fn span(trace: u8, name: &str) -> Vec<u8> {
        let start = [&[7 << 3 | 1][..], &1_700_000_000_000_000_000_u64.to_le_bytes()].concat();
        [field(1, &[trace; 16]), field(2, &[3; 8]), field(5, name.as_bytes()), start].concat()
    }

    fn request() -> Vec<u8> {
        let resource = field(1, &field(1, &attribute("service.name", "checkout")));
        let spans = field(2, &[field(2, &span(1, "a")), field(2, &span(2, "b"))].concat());
        field(1, &[resource, spans].concat())
    }

    fn otel_trace(byte: u8) -> Touch {
        Touch { key: EntityKey::from_parts(EntityKind::OtelTrace, [byte; 16]), effect: Effect::Annotate }
    }

    #[test]
    fn protobuf_requests_are_parsed() {
        let traces = Traces::read(Format::Protobuf, &request()).expect("a request");
        assert_eq!(traces.spans, 2);
        assert_eq!(traces.services, ["checkout"]);
        assert_eq!(traces.touches, Touch::distinct(vec![otel_trace(1), otel_trace(2)]));
        assert_eq!(Traces::read(Format::Protobuf, b""), Ok(Traces::default()));
    }

    #[test]
    fn json_requests_are_parsed_alike() {
        let id = "01".repeat(16);
        let opik = "01a20445-0b53-7443-881b-86277651b909";
        let content = format!(
            r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"checkout"}}}}]}},
            "scopeSpans":[{{"spans":[{{"traceId":"{id}","name":"a"}},
            {{"traceId":"{}","attributes":[{{"key":"opik.trace_id","value":{{"stringValue":"{opik}"}}}}]}}]}}]}}]}}"#,
            "02".repeat(16)
        );
        let traces = Traces::read(Format::Json, content.as_bytes()).expect("a request");
        assert_eq!(traces.spans, 2);
        assert_eq!(traces.services, ["checkout"]);
        let opik = Touch { key: EntityKey::new(EntityKind::Trace, opik), effect: Effect::Refer };
        assert_eq!(traces.touches, Touch::distinct(vec![otel_trace(1), otel_trace(2), opik]));
        assert_eq!(Traces::read(Format::Json, b"{}"), Ok(Traces::default()));
        assert!(Traces::read(Format::Json, b"").is_err());
    }

    #[test]
    fn unknown_fields_are_shown() {
        let shown = to_json(&[request(), field(9, b"new"), vec![10 << 3, 7], vec![10 << 3, 8]].concat());
        let shown = shown.expect("a request");
        assert_eq!(shown["unknownField9"], json!(["bmV3"]));
        assert_eq!(shown["unknownField10"], json!([7, 8]));
    }

    #[test]
    fn protobuf_is_converted_to_json() {
        let shown = to_json(&request()).expect("a request");
        assert_eq!(shown["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"], "checkout");
        let spans = &shown["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(spans[1]["name"], "b");
        assert_eq!(spans[1]["traceId"], "02".repeat(16));
        assert_eq!(spans[0]["startTimeUnixNano"], "1700000000000000000");
    }

    #[test]
    fn truncated_or_foreign_bytes_are_rejected() {
        let whole = request();
        for cut in [1, 2, 20, whole.len() - 1] {
            assert_eq!(Traces::read(Format::Protobuf, &whole[..cut]), Err(NotOtlp::Protobuf), "cut at {cut}");
        }
        // Also if only a nested message is corrupt.
        assert!(Traces::read(Format::Protobuf, &field(1, &field(2, b"\x0a\x7f"))).is_err());
        for content in [&b"not protobuf"[..], b"{}", b"\x00", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"] {
            assert_eq!(Traces::read(Format::Protobuf, content), Err(NotOtlp::Protobuf), "{content:?}");
        }
    }

    #[test]
    fn nesting_is_limited_as_in_protobufs_parsers() {
        let nested = |levels| (0..levels).fold(Vec::new(), |inner, _| field(5, &field(1, &inner)));
        assert_eq!(check(&ANY_VALUE, &nested(50), 0), Ok(()));
        assert_eq!(check(&ANY_VALUE, &nested(51), 0), Err(NotOtlp::Protobuf));
    }

    #[test]
    fn content_types_parse_without_case_and_parameters() {
        for (value, format) in [
            ("application/x-protobuf", Some(Format::Protobuf)),
            ("Application/JSON; charset=utf-8", Some(Format::Json)),
            ("application/protobuf", None),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(Format::from_content_type(value), format, "{value}");
        }
        assert_eq!(success(Format::Json).body, "{}");
        assert_eq!(success(Format::Protobuf).body, "");
    }

    /// Each span of a protobuf request as the server sees it: the bytes of its resource, of its scope, and its own,
    /// with everything beside them.
    fn spans_with_surroundings(content: &[u8]) -> Vec<[Vec<u8>; 4]> {
        let beside = |content: &[u8], field: u64| -> Vec<u8> {
            let mut found = Vec::new();
            let mut fields = Fields { rest: content };
            let mut before = content;
            while let Some((number, _)) = fields.next_field().expect("a message") {
                if number != field {
                    found.extend_from_slice(&before[..before.len() - fields.rest.len()]);
                }
                before = fields.rest;
            }
            found
        };
        let mut spans = Vec::new();
        for resource_spans in messages(content, 1) {
            for scope_spans in messages(resource_spans, 2) {
                for span in messages(scope_spans, 2) {
                    spans.push([beside(content, 1), beside(resource_spans, 2), beside(scope_spans, 2), span.to_vec()]);
                }
            }
        }
        spans
    }

    fn assert_pieces_are_the_whole(content: &[u8], size: usize) {
        let count = span_count(Format::Protobuf, content).expect("a request");
        let mut found = Vec::new();
        for start in (0..count).step_by(size) {
            let piece = piece(Format::Protobuf, content, start..count.min(start + size)).expect("a request");
            let spans = spans_with_surroundings(&piece);
            assert_eq!(spans.len(), size.min(count - start));
            assert_eq!(span_count(Format::Protobuf, &piece), Ok(spans.len()));
            found.extend(spans);
        }
        assert!(found == spans_with_surroundings(content), "spans are lost or are in another resource or scope");
    }

    #[test]
    fn pieces_contain_the_whole_request() {
        let captured = include_str!("../../tests/fixtures/http/otlp-http-python-1.45.2.jsonl");
        let mut spans_most = 0;
        for line in captured.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let body = line["body_base64"].as_str().expect("a body");
            let bytes = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
            let is_gzip = bytes.starts_with(&[0x1f, 0x8b]);
            let encoding = if is_gzip { Encoding::Gzip } else { Encoding::Identity };
            let content = Body::new(bytes, encoding).decode(1 << 20).expect("a body");
            let count = span_count(Format::Protobuf, &content).expect("a request");
            spans_most = spans_most.max(count);
            assert_eq!(count, Traces::read(Format::Protobuf, &content).expect("a request").spans as usize);
            assert_eq!(piece(Format::Protobuf, &content, 0..count).as_deref(), Ok(&content[..]));
            for size in [1, 2, 7, count] {
                assert_pieces_are_the_whole(&content, size);
            }
        }
        assert!(spans_most > 10, "no captured request has many spans: {spans_most}");
    }

    #[test]
    fn json_pieces_keep_resource_and_scope() {
        let content = concat!(
            r#" {"new": 1, "resourceSpans" : [ {"resource": {"x": NaN}, "scopeSpans": [{"scope":{"name":"s"}, "spans": [{"spanId":"a"} , {"spanId":"b"}],"#,
            r#""schemaUrl":"u"}, {"spans":[]}, {"spans":[{"spanId":"c"}]}]}, {"resource": 2, "scope_spans": [{"spans": [{"spanId":"d"}]}], "later":[]} ] } "#
        );
        let text = |spans| {
            String::from_utf8(piece(Format::Json, content.as_bytes(), spans).expect("a request")).expect("text")
        };
        assert_eq!(span_count(Format::Json, content.as_bytes()), Ok(4));
        assert_eq!(
            text(1..2),
            r#"{"new": 1, "resourceSpans" : [{"resource": {"x": NaN}, "scopeSpans": [{"scope":{"name":"s"}, "spans": [{"spanId":"b"}],"schemaUrl":"u"}]}] }"#
        );
        assert_eq!(
            text(2..4),
            r#"{"new": 1, "resourceSpans" : [{"resource": {"x": NaN}, "scopeSpans": [{"spans":[{"spanId":"c"}]}]},{"resource": 2, "scope_spans": [{"spans": [{"spanId":"d"}]}], "later":[]}] }"#
        );
        assert_eq!(span_count(Format::Json, b"[]"), Ok(0));
        assert_eq!(piece(Format::Json, b"[]", 0..0), Ok(b"[]".to_vec()), "a piece of JSON is JSON");
        assert!(span_count(Format::Json, b"{").is_err());
    }

    /// A request with random resources, scopes and spans, and unknown fields at every level.
    fn any_request() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::collection::vec(0_usize..5, 0..4), 0..4).prop_map(|resources| {
            let mut id = 0;
            let mut content = field(9, b"newer");
            for (number, scopes) in resources.into_iter().enumerate() {
                let mut resource_spans = field(1, &field(1, &attribute("service.name", &format!("service {number}"))));
                for (number, spans) in scopes.into_iter().enumerate() {
                    let mut scope_spans = field(1, &field(1, format!("scope {number}").as_bytes()));
                    for _ in 0..spans {
                        id += 1;
                        scope_spans.extend(field(2, &span(id, "s")));
                    }
                    scope_spans.extend(field(3, b"https://schema"));
                    scope_spans.extend(field(8, b"unknown"));
                    resource_spans.extend(field(2, &scope_spans));
                }
                resource_spans.extend(field(3, b"https://schema"));
                content.extend(field(1, &resource_spans));
            }
            content
        })
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_request(content in any_request(), size in 1_usize..9) {
            assert_pieces_are_the_whole(&content, size);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..60), flip in 0_usize..100, to: u8) {
            let _ = Traces::read(Format::Protobuf, &bytes);
            bytes = request();
            let at = flip % bytes.len();
            bytes[at] = to;
            if Traces::read(Format::Protobuf, &bytes).is_ok() {
                prop_assert!(to_json(&bytes).is_some());
            }
        }
    }
}
