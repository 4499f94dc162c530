//! Converts one row of the Python SDK's store to the request that the SDK would send for it (protocol dossier, sections
//! a and e).
//!
//! A row is a message type and a JSON text. The SDK parses the text into objects and serializes them again. Here the
//! members of the text are selected and renamed, and each value keeps its bytes: `NaN`, integers of any size, `-0.0`
//! and lone surrogates survive, two of which the SDK itself cannot send. One visible difference is intended: the SDK
//! rewrites strings under `start_time`, `end_time` and `last_updated_at` at any depth, user data included; we leave
//! them alone.
//!
//! Keys that no SDK sends are ignored: a newer SDK may store more. A row that cannot be converted is a [`RowFault`].
//!
//! This file is pure, as `protocol` is: no clock, socket, disk or log.

use thiserror::Error;
use uuid::Uuid;

use crate::message::MessageType;
use crate::protocol::json::{JsonKind, NotJson, Scanner};

/// Why a row cannot be converted to a request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RowFault {
    /// Its text is not JSON, not even JSON as the SDKs write it.
    #[error("its message_json is {0}")]
    NotJson(#[from] NotJson),
    /// No known SDK has such a message type.
    #[error("its message type {0:?} is unknown")]
    UnknownType(String),
    /// The text is JSON but not an object.
    #[error("its message_json is not an object")]
    NotAnObject,
    /// A member that the request requires is missing or null.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A member has another type than the SDK's.
    #[error("its {field} is not {expected}")]
    WrongKind {
        /// The member.
        field: &'static str,
        /// The SDK's type, in words.
        expected: &'static str,
    },
}

/// The content of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SdkRow {
    /// One request.
    Write(SdkWrite),
    /// An upload of a file on this machine.
    Attachment(SdkAttachment),
}

/// The request of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdkWrite {
    /// The type of the message.
    pub message_type: MessageType,
    /// The method, upper case.
    pub method: &'static str,
    /// Path below the server's base.
    pub path: String,
    /// The id in the path, for updates.
    pub path_id: Option<String>,
    /// The JSON body, not encoded.
    pub body: Vec<u8>,
}

/// The `Content-Type` of every [`SdkWrite`].
pub const CONTENT_TYPE: &str = "application/json";

/// The upload of a row. The SDK stores no bytes, only where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdkAttachment {
    /// The file, as the SDK names it.
    pub file_path: String,
    /// Its name on the server.
    pub file_name: String,
    /// Its media type, if the SDK knew it.
    pub mime_type: Option<String>,
    /// `trace` or `span`.
    pub entity_type: String,
    /// The id of that trace or span.
    pub entity_id: String,
    /// The project.
    pub project_name: Option<String>,
    /// Whether the file is a temporary copy that the SDK made, and would delete after the upload.
    pub delete_after_upload: bool,
    /// The base URL of the server that the SDK's client was configured for; `None` if it cannot be decoded.
    pub server: Option<String>,
}

/// Parses the base URL that the SDK stores in base64 (`encoded_url_override`; protocol dossier, section c).
fn decoded_url(encoded: Option<String>) -> Option<String> {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded?).ok()?;
    String::from_utf8(decoded).ok().filter(|url| url.starts_with("http://") || url.starts_with("https://"))
}

/// The JSON type of a member. Null means "not given" for every type.
#[derive(Clone, Copy)]
enum ValueKind {
    Any,
    Text,
    Uuid,
    Number,
    Object,
    List,
}

/// A member that is sent: its key in the row, its key in the request, its type, and whether it is required.
#[derive(Clone, Copy)]
struct MemberRule {
    stored: &'static str,
    sent: &'static str,
    holds: ValueKind,
    required: bool,
}

const fn same(key: &'static str, holds: ValueKind) -> MemberRule {
    MemberRule { stored: key, sent: key, holds, required: false }
}

const fn renamed(stored: &'static str, sent: &'static str, holds: ValueKind) -> MemberRule {
    MemberRule { stored, sent, holds, required: false }
}

const fn required(field: MemberRule) -> MemberRule {
    MemberRule { required: true, ..field }
}

const TRACE_UPDATE: [MemberRule; 10] = [
    same("project_name", ValueKind::Text),
    same("end_time", ValueKind::Text),
    same("input", ValueKind::Any),
    same("output", ValueKind::Any),
    same("metadata", ValueKind::Any),
    same("tags", ValueKind::List),
    same("error_info", ValueKind::Object),
    same("thread_id", ValueKind::Text),
    same("source", ValueKind::Text),
    same("environment", ValueKind::Text),
];

const SPAN_UPDATE: [MemberRule; 15] = [
    required(same("trace_id", ValueKind::Text)),
    same("parent_span_id", ValueKind::Text),
    same("project_name", ValueKind::Text),
    same("end_time", ValueKind::Text),
    same("input", ValueKind::Any),
    same("output", ValueKind::Any),
    same("metadata", ValueKind::Any),
    same("tags", ValueKind::List),
    same("usage", ValueKind::Object),
    same("model", ValueKind::Text),
    same("provider", ValueKind::Text),
    same("error_info", ValueKind::Object),
    renamed("total_cost", "total_estimated_cost", ValueKind::Number),
    same("source", ValueKind::Text),
    same("environment", ValueKind::Text),
];

/// The members of a create, in addition to those of an update.
const TRACE_CREATE: [MemberRule; 4] = [
    required(renamed("trace_id", "id", ValueKind::Text)),
    same("name", ValueKind::Text),
    required(same("start_time", ValueKind::Text)),
    same("last_updated_at", ValueKind::Text),
];

const SPAN_CREATE: [MemberRule; 5] = [
    required(renamed("span_id", "id", ValueKind::Text)),
    same("name", ValueKind::Text),
    same("type", ValueKind::Text),
    required(same("start_time", ValueKind::Text)),
    same("last_updated_at", ValueKind::Text),
];

const SCORE: [MemberRule; 7] = [
    required(same("id", ValueKind::Text)),
    same("project_name", ValueKind::Text),
    required(same("name", ValueKind::Text)),
    required(same("value", ValueKind::Number)),
    same("source", ValueKind::Text),
    same("reason", ValueKind::Text),
    same("category_name", ValueKind::Text),
];

const THREAD_SCORE: [MemberRule; 7] = [
    required(renamed("id", "thread_id", ValueKind::Text)),
    same("project_name", ValueKind::Text),
    required(same("name", ValueKind::Text)),
    required(same("value", ValueKind::Number)),
    same("source", ValueKind::Text),
    same("reason", ValueKind::Text),
    same("category_name", ValueKind::Text),
];

const GUARDRAIL: [MemberRule; 7] = [
    same("project_name", ValueKind::Text),
    required(same("entity_id", ValueKind::Text)),
    required(same("secondary_id", ValueKind::Text)),
    required(same("name", ValueKind::Text)),
    required(same("result", ValueKind::Text)),
    same("config", ValueKind::Object),
    same("details", ValueKind::Object),
];

const ASSERTION: [MemberRule; 6] = [
    required(same("entity_id", ValueKind::Text)),
    same("project_name", ValueKind::Text),
    required(same("name", ValueKind::Text)),
    required(same("status", ValueKind::Text)),
    same("source", ValueKind::Text),
    same("reason", ValueKind::Text),
];

const EXPERIMENT_ITEM: [MemberRule; 6] = [
    same("id", ValueKind::Text),
    required(same("experiment_id", ValueKind::Text)),
    required(same("trace_id", ValueKind::Text)),
    required(same("dataset_item_id", ValueKind::Text)),
    same("project_name", ValueKind::Text),
    same("execution_policy", ValueKind::Object),
];

/// How the body of a request is built from the row.
#[derive(Clone, Copy)]
enum BodyShape {
    /// One object, without the members that are null.
    Single(&'static [&'static [MemberRule]]),
    /// The same, sent to the entity whose id this member has.
    Update { id: &'static str, fields: &'static [&'static [MemberRule]] },
    /// The array `batch` under this key, its items unchanged: they have the shape of the request already.
    Ready(&'static str),
    /// The array `batch` under this key, its items built from these members; null is sent.
    Items { key: &'static str, fields: &'static [MemberRule], beside: &'static [MemberRule] },
    /// An upload, which has no body of its own.
    Upload,
}

const ENTITY_TYPE: [MemberRule; 1] = [required(same("entity_type", ValueKind::Text))];

/// Returns the method, path and body of a message type; `None` for types that no SDK stores.
const fn request_of(message_type: MessageType) -> Option<(&'static str, &'static str, BodyShape)> {
    Some(match message_type {
        MessageType::CreateTrace => ("POST", "v1/private/traces", BodyShape::Single(&[&TRACE_CREATE, &TRACE_UPDATE])),
        MessageType::UpdateTrace => {
            ("PATCH", "v1/private/traces", BodyShape::Update { id: "trace_id", fields: &[&TRACE_UPDATE] })
        }
        MessageType::CreateSpan => ("POST", "v1/private/spans", BodyShape::Single(&[&SPAN_CREATE, &SPAN_UPDATE])),
        MessageType::UpdateSpan => {
            ("PATCH", "v1/private/spans", BodyShape::Update { id: "span_id", fields: &[&SPAN_UPDATE] })
        }
        MessageType::CreateTraceBatch => ("POST", "v1/private/traces/batch", BodyShape::Ready("traces")),
        MessageType::CreateSpansBatch => ("POST", "v1/private/spans/batch", BodyShape::Ready("spans")),
        MessageType::AddTraceFeedbackScoresBatch => (
            "PUT",
            "v1/private/traces/feedback-scores",
            BodyShape::Items { key: "scores", fields: &SCORE, beside: &[] },
        ),
        MessageType::AddSpanFeedbackScoresBatch => {
            ("PUT", "v1/private/spans/feedback-scores", BodyShape::Items { key: "scores", fields: &SCORE, beside: &[] })
        }
        MessageType::AddThreadsFeedbackScoresBatch => (
            "PUT",
            "v1/private/traces/threads/feedback-scores",
            BodyShape::Items { key: "scores", fields: &THREAD_SCORE, beside: &[] },
        ),
        MessageType::GuardrailBatch => {
            ("POST", "v1/private/guardrails", BodyShape::Items { key: "guardrails", fields: &GUARDRAIL, beside: &[] })
        }
        MessageType::AddAssertionResultsBatch => (
            "PUT",
            "v1/private/assertion-results",
            BodyShape::Items { key: "assertion_results", fields: &ASSERTION, beside: &ENTITY_TYPE },
        ),
        MessageType::CreateExperimentItemsBatch => (
            "POST",
            "v1/private/experiments/items",
            BodyShape::Items { key: "experiment_items", fields: &EXPERIMENT_ITEM, beside: &[] },
        ),
        MessageType::CreateAttachment => ("POST", "v1/private/attachment/upload-start", BodyShape::Upload),
        _ => return None,
    })
}

/// Returns the SDK's type with this name, exactly as its `message_type` column has it.
pub fn sdk_type(name: &str) -> Option<MessageType> {
    MessageType::ALL[..MessageType::SDK_COUNT].iter().copied().find(|known| known.name() == name)
}

/// Converts a row to its request.
///
/// # Errors
///
/// [`RowFault`] for a row that neither the SDK nor we can send.
pub fn convert(message_type: &str, json: &[u8]) -> Result<SdkRow, RowFault> {
    let known = sdk_type(message_type).and_then(|known| Some((known, request_of(known)?)));
    let Some((message_type, (method, path, shape))) = known else {
        // Also if its JSON is invalid: which of two faults is reported matters little.
        return Err(RowFault::UnknownType(message_type.to_owned()));
    };
    let mut scanner = Scanner::new(json)?;
    if scanner.peek()? != JsonKind::Object {
        scanner.skip_value()?;
        scanner.end()?;
        return Err(RowFault::NotAnObject);
    }
    let members = RowMembers::read(&mut scanner, json)?;
    scanner.end()?;
    let mut body = ObjectWriter::default();
    let mut path_id = None;
    match shape {
        BodyShape::Single(fields) => {
            fields.iter().try_for_each(|fields| members.copy(fields, Nulls::Dropped, &mut body))?;
        }
        BodyShape::Update { id, fields } => {
            // It becomes part of the path, so it must be an id.
            path_id = Some(members.text(required(same(id, ValueKind::Uuid)))?.unwrap_or_default());
            fields.iter().try_for_each(|fields| members.copy(fields, Nulls::Dropped, &mut body))?;
        }
        BodyShape::Ready(key) => body.add(key, members.batch_of_objects()?),
        BodyShape::Items { key, fields, beside } => {
            members.copy(beside, Nulls::Dropped, &mut body)?;
            body.add(key, &items(members.batch()?, fields)?);
        }
        BodyShape::Upload => return members.attachment().map(SdkRow::Attachment),
    }
    let path = path_id.as_ref().map_or_else(|| path.to_owned(), |id| format!("{path}/{id}"));
    Ok(SdkRow::Write(SdkWrite { message_type, method, path, path_id, body: body.end() }))
}

const BATCH_FAULT: RowFault = RowFault::WrongKind { field: "batch", expected: "a list of objects" };

/// Builds the items of a batch, in their order.
fn items(batch: &[u8], fields: &[MemberRule]) -> Result<Vec<u8>, RowFault> {
    let mut sent = vec![b'['];
    let mut fault = None;
    let mut scanner = Scanner::new(batch)?;
    scanner.array(|scanner| {
        if fault.is_some() || scanner.peek()? != JsonKind::Object {
            fault.get_or_insert(BATCH_FAULT);
            return scanner.skip_value().map(drop);
        }
        let members = RowMembers::read(scanner, batch)?;
        let mut item = ObjectWriter::default();
        match members.copy(fields, Nulls::Sent, &mut item) {
            Ok(()) => {
                if sent.len() > 1 {
                    sent.push(b',');
                }
                sent.extend(item.end());
            }
            Err(wrong) => fault = Some(wrong),
        }
        Ok(())
    })?;
    sent.push(b']');
    fault.map_or(Ok(sent), Err)
}

/// How members that are null are treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    /// A null of a single write means "not given", never "clear".
    Dropped,
    /// Batches send them, except batches of traces and spans.
    Sent,
}

/// The members of an object: key and the bytes of the value.
struct RowMembers<'text>(Vec<(String, &'text [u8])>);

impl<'text> RowMembers<'text> {
    fn read(scanner: &mut Scanner<'_>, text: &'text [u8]) -> Result<Self, NotJson> {
        let mut members = Vec::new();
        scanner.object(|key, scanner| {
            let key = key.to_owned();
            members.push((key, &text[scanner.skip_value()?]));
            Ok(())
        })?;
        Ok(Self(members))
    }

    /// Returns the value of a member; if a key is repeated, its last value, as in Python.
    fn get(&self, key: &str) -> Option<&'text [u8]> {
        self.0.iter().rev().find(|(found, _)| found == key).map(|(_, value)| *value)
    }

    /// Returns the value of a member, if it is given and has the right type.
    fn checked(&self, field: MemberRule) -> Result<Option<&'text [u8]>, RowFault> {
        let value = self.get(field.stored).filter(|value| *value != b"null");
        let Some(value) = value else {
            return if field.required { Err(RowFault::Missing(field.stored)) } else { Ok(None) };
        };
        let first = value.first().copied().unwrap_or_default();
        let (is_such, expected) = match field.holds {
            ValueKind::Any => (true, ""),
            ValueKind::Text => (first == b'"', "a string"),
            ValueKind::Uuid => {
                let text = std::str::from_utf8(value).unwrap_or_default().trim_matches('"');
                (first == b'"' && Uuid::try_parse(text).is_ok(), "a UUID")
            }
            ValueKind::Number => (matches!(first, b'-' | b'0'..=b'9' | b'N' | b'I'), "a number"),
            ValueKind::Object => (first == b'{', "an object"),
            ValueKind::List => (first == b'[', "a list"),
        };
        if is_such { Ok(Some(value)) } else { Err(RowFault::WrongKind { field: field.stored, expected }) }
    }

    fn text(&self, field: MemberRule) -> Result<Option<String>, RowFault> {
        let Some(value) = self.checked(field)? else { return Ok(None) };
        Ok(Some(Scanner::new(value)?.string()?.into_owned()))
    }

    fn required_text(&self, key: &'static str) -> Result<String, RowFault> {
        Ok(self.text(required(same(key, ValueKind::Text)))?.unwrap_or_default())
    }

    fn batch(&self) -> Result<&'text [u8], RowFault> {
        const BATCH: MemberRule = required(same("batch", ValueKind::List));
        match self.checked(BATCH)? {
            Some(batch) => Ok(batch),
            None => Err(RowFault::Missing(BATCH.stored)),
        }
    }

    /// Returns the batch if its items are objects.
    fn batch_of_objects(&self) -> Result<&'text [u8], RowFault> {
        let batch = self.batch()?;
        let mut all_objects = true;
        Scanner::new(batch)?.array(|item| {
            all_objects &= item.peek()? == JsonKind::Object;
            item.skip_value().map(drop)
        })?;
        if all_objects { Ok(batch) } else { Err(BATCH_FAULT) }
    }

    fn attachment(&self) -> Result<SdkAttachment, RowFault> {
        Ok(SdkAttachment {
            file_path: self.required_text("file_path")?,
            file_name: self.required_text("file_name")?,
            mime_type: self.text(same("mime_type", ValueKind::Text))?,
            entity_type: self.required_text("entity_type")?,
            entity_id: self.required_text("entity_id")?,
            project_name: self.text(same("project_name", ValueKind::Text))?,
            delete_after_upload: self.get("delete_after_upload") == Some(b"true"),
            server: decoded_url(self.text(same("encoded_url_override", ValueKind::Any)).unwrap_or_default()),
        })
    }

    /// Adds these members to an object, under the keys that are sent.
    fn copy(&self, fields: &[MemberRule], nulls: Nulls, into: &mut ObjectWriter) -> Result<(), RowFault> {
        for field in fields {
            match (self.checked(*field)?, nulls) {
                (Some(value), _) => into.add(field.sent, value),
                (None, Nulls::Sent) if self.get(field.stored).is_some() => into.add(field.sent, b"null"),
                (None, _) => {}
            }
        }
        Ok(())
    }
}

/// An object that is being serialized.
#[derive(Default)]
struct ObjectWriter(Vec<u8>);

impl ObjectWriter {
    /// Appends a member; `value` is JSON, `key` needs no escapes.
    fn add(&mut self, key: &str, value: &[u8]) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.0.push(b'"');
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
        self.0.extend_from_slice(value);
    }

    fn end(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            self.0.push(b'{');
        }
        self.0.push(b'}');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "01a20437-862a-74a0-ac17-cbd00b74225b";

    fn body(message_type: &str, json: &str) -> Result<String, RowFault> {
        match convert(message_type, json.as_bytes())? {
            SdkRow::Write(write) => Ok(String::from_utf8(write.body).expect("it was UTF-8")),
            SdkRow::Attachment(attachment) => panic!("{attachment:?}"),
        }
    }

    #[test]
    fn values_keep_their_bytes_and_nulls_mean_not_given() {
        let row = format!(
            r#"{{"trace_id":"{ID}","start_time":"x","end_time":null,"input":{{"a":[NaN,-0.0,1e+22,36893488147419103232,"\ud83d",null]}},"newer":1,"message_id":3}}"#
        );
        let expected = format!(
            r#"{{"id":"{ID}","start_time":"x","input":{{"a":[NaN,-0.0,1e+22,36893488147419103232,"\ud83d",null]}}}}"#
        );
        assert_eq!(body("CreateTraceMessage", &row), Ok(expected));
    }

    #[test]
    fn updates_name_their_entity_in_the_path() {
        let row = format!(r#"{{"span_id":"{ID}","trace_id":"{ID}","total_cost":0.5}}"#);
        let Ok(SdkRow::Write(write)) = convert("UpdateSpanMessage", row.as_bytes()) else { panic!("{row}") };
        assert_eq!((write.method, write.path), ("PATCH", format!("v1/private/spans/{ID}")));
        assert_eq!(
            String::from_utf8_lossy(&write.body),
            format!(r#"{{"trace_id":"{ID}","total_estimated_cost":0.5}}"#)
        );
    }

    #[test]
    fn an_invalid_row_is_a_fault_with_its_reason() {
        let wrong = |field, expected| RowFault::WrongKind { field, expected };
        for (message_type, json, fault) in [
            ("CreateTraceMessage", "{", RowFault::NotJson(NotJson { at: 1 })),
            ("CreateTraceMessage", "[1]", RowFault::NotAnObject),
            ("CreateTraceMessage", "{}", RowFault::Missing("trace_id")),
            ("CreateTraceMessage", r#"{"trace_id":7}"#, wrong("trace_id", "a string")),
            ("CreateTraceMessage", r#"{"trace_id":"a","start_time":null}"#, RowFault::Missing("start_time")),
            ("UpdateTraceMessage", r#"{"trace_id":"../spans"}"#, wrong("trace_id", "a UUID")),
            ("CreateTraceBatchMessage", r#"{"batch":{}}"#, wrong("batch", "a list")),
            ("CreateTraceBatchMessage", r#"{"batch":[{},1]}"#, BATCH_FAULT),
            ("GuardrailBatchMessage", r#"{"batch":[1]}"#, BATCH_FAULT),
            (
                "AddTraceFeedbackScoresBatchMessage",
                r#"{"batch":[{"id":"a","name":"b","value":"c"}]}"#,
                wrong("value", "a number"),
            ),
            ("CreateAttachmentMessage", r#"{"file_name":"a"}"#, RowFault::Missing("file_path")),
            ("DeleteTraceMessage", "{}", RowFault::UnknownType("DeleteTraceMessage".into())),
            ("OtlpTraces", "{}", RowFault::UnknownType("OtlpTraces".into())),
        ] {
            assert_eq!(convert(message_type, json.as_bytes()).err(), Some(fault), "{message_type} {json}");
        }
        assert!(matches!(convert("CreateTraceMessage", b"{\"a\":\"\xff\"}"), Err(RowFault::NotJson(_))));
    }

    #[test]
    fn every_type_of_the_sdk_has_a_request() {
        for message_type in &MessageType::ALL[..MessageType::SDK_COUNT] {
            assert!(request_of(*message_type).is_some(), "{message_type}");
        }
    }

    proptest! {
        #[test]
        fn any_json_under_a_users_key_survives_unchanged(value in arbitrary_json(), type_at in 0usize..13) {
            let row = format!(r#"{{"batch":[{{"id":"a","input":{value}}}],"trace_id":"{ID}","span_id":"{ID}","start_time":"x","input":{value},"entity_type":"TRACE"}}"#);
            match convert(MessageType::ALL[type_at].name(), row.as_bytes()) {
                Ok(SdkRow::Write(write)) => {
                    let sent: serde_json::Value = serde_json::from_slice(&write.body).expect("it is JSON");
                    let expected: serde_json::Value = serde_json::from_str(&value.to_string()).expect("it is JSON");
                    let found = sent.get("input").or_else(|| sent.get("traces").or_else(|| sent.get("spans")).and_then(|items| items[0].get("input")));
                    let is_dropped = expected.is_null() && found.is_none();
                    prop_assert!(is_dropped || found == Some(&expected), "{sent}");
                }
                Ok(SdkRow::Attachment(_)) => prop_assert!(false, "it names no file"),
                Err(RowFault::Missing(_)) => {}
                Err(fault) => prop_assert!(false, "{fault}"),
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}\",:\\\\ntrue01.eE+-]{0,60}", type_at in 0usize..13) {
            let message_type = MessageType::ALL[type_at].name();
            for text in [text.clone(), format!(r#"{{"batch":{text}}}"#), format!(r#"{{"batch":[{{"id":{text}}}]}}"#)] {
                if let Ok(SdkRow::Write(write)) = convert(message_type, text.as_bytes()) {
                    let mut scanner = Scanner::new(&write.body).expect("UTF-8");
                    prop_assert!(scanner.skip_value().and_then(|_| scanner.end()).is_ok());
                }
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
}
