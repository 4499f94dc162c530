//! One row of the Python SDK's own store to the request that the SDK would send for it (protocol dossier, sections a
//! and e).
//!
//! A row is a message type and a JSON text. The SDK reads the text into objects and writes them anew; here the members
//! of the text are picked and renamed, and every value keeps the bytes that it has in the row. So `NaN`, integers of
//! any size, `-0.0` and lone surrogates come through, two of which the SDK itself can't send. One visible difference is
//! meant: the SDK rewrites strings under `start_time`, `end_time` and `last_updated_at` at any depth, user data
//! included, and we leave them alone.
//!
//! Keys that no SDK sends are passed over: a newer one may keep more. What can't be made a request is a [`RowFault`].

use thiserror::Error;
use uuid::Uuid;

use super::json::{Kind, NotJson, Scanner};
use crate::message::MessageType;

/// Why a row can't be made a request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RowFault {
    /// Its text is not JSON, even by the measure of what the SDKs write.
    #[error("its message_json is {0}")]
    NotJson(#[from] NotJson),
    /// No SDK that we know has such a message type.
    #[error("its message type {0:?} is unknown")]
    UnknownType(String),
    /// The text is JSON but no object.
    #[error("its message_json is no object")]
    NotAnObject,
    /// A member that the request needs is missing or null.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A member is of another kind than the SDK's.
    #[error("its {field} is not {expected}")]
    WrongKind {
        /// The member.
        field: &'static str,
        /// What the SDK keeps there, in words.
        expected: &'static str,
    },
}

/// What a row asks for.
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
    /// What kind of write it is.
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
    /// Its media type, when the SDK knew it.
    pub mime_type: Option<String>,
    /// `trace` or `span`.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// The project.
    pub project_name: Option<String>,
    /// The file is a temporary copy that the SDK made, and would remove after the upload.
    pub delete_after_upload: bool,
    /// The base URL of the server that the SDK's client was configured for; `None` when it can't be read.
    pub server: Option<String>,
}

/// Reads the base URL that the SDK keeps in base64 (`encoded_url_override`; protocol dossier, section c).
fn decoded_url(encoded: Option<String>) -> Option<String> {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded?).ok()?;
    String::from_utf8(decoded).ok().filter(|url| url.starts_with("http://") || url.starts_with("https://"))
}

/// What a member may hold. Null means "not given" for every kind.
#[derive(Clone, Copy)]
enum Holds {
    Any,
    Text,
    Uuid,
    Number,
    Object,
    List,
}

/// A member that is sent: its key in the row, its key in the request, what it may hold, and whether it must be there.
#[derive(Clone, Copy)]
struct Field {
    stored: &'static str,
    sent: &'static str,
    holds: Holds,
    required: bool,
}

const fn same(key: &'static str, holds: Holds) -> Field {
    Field { stored: key, sent: key, holds, required: false }
}

const fn renamed(stored: &'static str, sent: &'static str, holds: Holds) -> Field {
    Field { stored, sent, holds, required: false }
}

const fn required(field: Field) -> Field {
    Field { required: true, ..field }
}

const TRACE_UPDATE: [Field; 10] = [
    same("project_name", Holds::Text),
    same("end_time", Holds::Text),
    same("input", Holds::Any),
    same("output", Holds::Any),
    same("metadata", Holds::Any),
    same("tags", Holds::List),
    same("error_info", Holds::Object),
    same("thread_id", Holds::Text),
    same("source", Holds::Text),
    same("environment", Holds::Text),
];

const SPAN_UPDATE: [Field; 15] = [
    required(same("trace_id", Holds::Text)),
    same("parent_span_id", Holds::Text),
    same("project_name", Holds::Text),
    same("end_time", Holds::Text),
    same("input", Holds::Any),
    same("output", Holds::Any),
    same("metadata", Holds::Any),
    same("tags", Holds::List),
    same("usage", Holds::Object),
    same("model", Holds::Text),
    same("provider", Holds::Text),
    same("error_info", Holds::Object),
    renamed("total_cost", "total_estimated_cost", Holds::Number),
    same("source", Holds::Text),
    same("environment", Holds::Text),
];

/// What a create has beside the members of an update.
const TRACE_CREATE: [Field; 4] = [
    required(renamed("trace_id", "id", Holds::Text)),
    same("name", Holds::Text),
    required(same("start_time", Holds::Text)),
    same("last_updated_at", Holds::Text),
];

const SPAN_CREATE: [Field; 5] = [
    required(renamed("span_id", "id", Holds::Text)),
    same("name", Holds::Text),
    same("type", Holds::Text),
    required(same("start_time", Holds::Text)),
    same("last_updated_at", Holds::Text),
];

const SCORE: [Field; 7] = [
    required(same("id", Holds::Text)),
    same("project_name", Holds::Text),
    required(same("name", Holds::Text)),
    required(same("value", Holds::Number)),
    same("source", Holds::Text),
    same("reason", Holds::Text),
    same("category_name", Holds::Text),
];

const THREAD_SCORE: [Field; 7] = [
    required(renamed("id", "thread_id", Holds::Text)),
    same("project_name", Holds::Text),
    required(same("name", Holds::Text)),
    required(same("value", Holds::Number)),
    same("source", Holds::Text),
    same("reason", Holds::Text),
    same("category_name", Holds::Text),
];

const GUARDRAIL: [Field; 7] = [
    same("project_name", Holds::Text),
    required(same("entity_id", Holds::Text)),
    required(same("secondary_id", Holds::Text)),
    required(same("name", Holds::Text)),
    required(same("result", Holds::Text)),
    same("config", Holds::Object),
    same("details", Holds::Object),
];

const ASSERTION: [Field; 6] = [
    required(same("entity_id", Holds::Text)),
    same("project_name", Holds::Text),
    required(same("name", Holds::Text)),
    required(same("status", Holds::Text)),
    same("source", Holds::Text),
    same("reason", Holds::Text),
];

const EXPERIMENT_ITEM: [Field; 6] = [
    same("id", Holds::Text),
    required(same("experiment_id", Holds::Text)),
    required(same("trace_id", Holds::Text)),
    required(same("dataset_item_id", Holds::Text)),
    same("project_name", Holds::Text),
    same("execution_policy", Holds::Object),
];

/// How the body of a type is made from the row.
#[derive(Clone, Copy)]
enum Shape {
    /// One object; members that are null are left out.
    Single(&'static [&'static [Field]]),
    /// The same, sent to the entity that this member names.
    Update { id: &'static str, fields: &'static [&'static [Field]] },
    /// The array `batch` under this key, its items as they are: they have the request's shape already.
    Ready(&'static str),
    /// The array `batch` under this key, its items made of these members; null is sent.
    Items { key: &'static str, fields: &'static [Field], beside: &'static [Field] },
    /// No request of its own.
    Upload,
}

const ENTITY_TYPE: [Field; 1] = [required(same("entity_type", Holds::Text))];

/// Returns method, path and shape of an SDK's type; `None` for the types that no SDK stores.
const fn request_of(message_type: MessageType) -> Option<(&'static str, &'static str, Shape)> {
    Some(match message_type {
        MessageType::CreateTrace => ("POST", "v1/private/traces", Shape::Single(&[&TRACE_CREATE, &TRACE_UPDATE])),
        MessageType::UpdateTrace => {
            ("PATCH", "v1/private/traces", Shape::Update { id: "trace_id", fields: &[&TRACE_UPDATE] })
        }
        MessageType::CreateSpan => ("POST", "v1/private/spans", Shape::Single(&[&SPAN_CREATE, &SPAN_UPDATE])),
        MessageType::UpdateSpan => {
            ("PATCH", "v1/private/spans", Shape::Update { id: "span_id", fields: &[&SPAN_UPDATE] })
        }
        MessageType::CreateTraceBatch => ("POST", "v1/private/traces/batch", Shape::Ready("traces")),
        MessageType::CreateSpansBatch => ("POST", "v1/private/spans/batch", Shape::Ready("spans")),
        MessageType::AddTraceFeedbackScoresBatch => {
            ("PUT", "v1/private/traces/feedback-scores", Shape::Items { key: "scores", fields: &SCORE, beside: &[] })
        }
        MessageType::AddSpanFeedbackScoresBatch => {
            ("PUT", "v1/private/spans/feedback-scores", Shape::Items { key: "scores", fields: &SCORE, beside: &[] })
        }
        MessageType::AddThreadsFeedbackScoresBatch => (
            "PUT",
            "v1/private/traces/threads/feedback-scores",
            Shape::Items { key: "scores", fields: &THREAD_SCORE, beside: &[] },
        ),
        MessageType::GuardrailBatch => {
            ("POST", "v1/private/guardrails", Shape::Items { key: "guardrails", fields: &GUARDRAIL, beside: &[] })
        }
        MessageType::AddAssertionResultsBatch => (
            "PUT",
            "v1/private/assertion-results",
            Shape::Items { key: "assertion_results", fields: &ASSERTION, beside: &ENTITY_TYPE },
        ),
        MessageType::CreateExperimentItemsBatch => (
            "POST",
            "v1/private/experiments/items",
            Shape::Items { key: "experiment_items", fields: &EXPERIMENT_ITEM, beside: &[] },
        ),
        MessageType::CreateAttachment => ("POST", "v1/private/attachment/upload-start", Shape::Upload),
        _ => return None,
    })
}

/// Returns the SDK's type with this name, exactly as its `message_type` column has it.
pub fn sdk_type(name: &str) -> Option<MessageType> {
    MessageType::ALL[..MessageType::SDK_COUNT].iter().copied().find(|known| known.name() == name)
}

/// Makes the request of a row.
///
/// # Errors
///
/// [`RowFault`], for a row that neither the SDK nor we can send.
pub fn convert(message_type: &str, json: &[u8]) -> Result<SdkRow, RowFault> {
    let known = sdk_type(message_type).and_then(|known| Some((known, request_of(known)?)));
    let Some((message_type, (method, path, shape))) = known else {
        // Said of broken JSON, too: which of two faults is named matters little.
        return Err(RowFault::UnknownType(message_type.to_owned()));
    };
    let mut scanner = Scanner::new(json)?;
    if scanner.peek()? != Kind::Object {
        scanner.skip_value()?;
        scanner.end()?;
        return Err(RowFault::NotAnObject);
    }
    let members = Members::read(&mut scanner, json)?;
    scanner.end()?;
    let write = |path: String, path_id, body| SdkRow::Write(SdkWrite { message_type, method, path, path_id, body });
    Ok(match shape {
        Shape::Single(fields) => {
            let mut body = Object::default();
            fields.iter().try_for_each(|fields| members.copy(fields, Nulls::Dropped, &mut body))?;
            write(path.to_owned(), None, body.end())
        }
        Shape::Update { id, fields } => {
            let mut body = Object::default();
            // It becomes a part of the path, so nothing but an id may stand there.
            let named = members.text(required(same(id, Holds::Uuid)))?.unwrap_or_default();
            fields.iter().try_for_each(|fields| members.copy(fields, Nulls::Dropped, &mut body))?;
            write(format!("{path}/{named}"), Some(named), body.end())
        }
        Shape::Ready(key) => {
            let batch = members.batch()?;
            let mut items = Scanner::new(batch)?;
            let mut all_objects = true;
            items.array(|item| {
                all_objects &= item.peek()? == Kind::Object;
                item.skip_value().map(drop)
            })?;
            if !all_objects {
                return Err(BATCH_FAULT);
            }
            let mut body = Object::default();
            body.add(key, batch);
            write(path.to_owned(), None, body.end())
        }
        Shape::Items { key, fields, beside } => {
            let mut body = Object::default();
            members.copy(beside, Nulls::Dropped, &mut body)?;
            body.add(key, &items(members.batch()?, fields)?);
            write(path.to_owned(), None, body.end())
        }
        Shape::Upload => SdkRow::Attachment(SdkAttachment {
            file_path: members.required_text("file_path")?,
            file_name: members.required_text("file_name")?,
            mime_type: members.text(same("mime_type", Holds::Text))?,
            entity_type: members.required_text("entity_type")?,
            entity_id: members.required_text("entity_id")?,
            project_name: members.text(same("project_name", Holds::Text))?,
            delete_after_upload: members.get("delete_after_upload") == Some(b"true"),
            server: decoded_url(members.text(same("encoded_url_override", Holds::Any)).unwrap_or_default()),
        }),
    })
}

const BATCH_FAULT: RowFault = RowFault::WrongKind { field: "batch", expected: "a list of objects" };

/// Makes the items of a batch, in their order.
fn items(batch: &[u8], fields: &[Field]) -> Result<Vec<u8>, RowFault> {
    let mut sent = vec![b'['];
    let mut fault = None;
    let mut scanner = Scanner::new(batch)?;
    scanner.array(|scanner| {
        if fault.is_some() || scanner.peek()? != Kind::Object {
            fault.get_or_insert(BATCH_FAULT);
            return scanner.skip_value().map(drop);
        }
        let members = Members::read(scanner, batch)?;
        let mut item = Object::default();
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

/// What happens to members that are null.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    /// A null of a single write means "not given", never "clear".
    Dropped,
    /// Batches other than those of traces and spans send them.
    Sent,
}

/// The members of an object: key and the bytes of the value.
struct Members<'text>(Vec<(String, &'text [u8])>);

impl<'text> Members<'text> {
    fn read(scanner: &mut Scanner<'_>, text: &'text [u8]) -> Result<Self, NotJson> {
        let mut members = Vec::new();
        scanner.object(|key, scanner| {
            let key = key.to_owned();
            members.push((key, &text[scanner.skip_value()?]));
            Ok(())
        })?;
        Ok(Self(members))
    }

    /// Returns a member's value; of two with one key the last counts, as for Python.
    fn get(&self, key: &str) -> Option<&'text [u8]> {
        self.0.iter().rev().find(|(found, _)| found == key).map(|(_, value)| *value)
    }

    /// Returns a member's value when it is given and of the kind that it must be.
    fn checked(&self, field: Field) -> Result<Option<&'text [u8]>, RowFault> {
        let value = self.get(field.stored).filter(|value| *value != b"null");
        let Some(value) = value else {
            return if field.required { Err(RowFault::Missing(field.stored)) } else { Ok(None) };
        };
        let first = value.first().copied().unwrap_or_default();
        let (is_such, expected) = match field.holds {
            Holds::Any => (true, ""),
            Holds::Text => (first == b'"', "a string"),
            Holds::Uuid => {
                let text = std::str::from_utf8(value).unwrap_or_default().trim_matches('"');
                (first == b'"' && Uuid::try_parse(text).is_ok(), "a UUID")
            }
            Holds::Number => (matches!(first, b'-' | b'0'..=b'9' | b'N' | b'I'), "a number"),
            Holds::Object => (first == b'{', "an object"),
            Holds::List => (first == b'[', "a list"),
        };
        if is_such { Ok(Some(value)) } else { Err(RowFault::WrongKind { field: field.stored, expected }) }
    }

    fn text(&self, field: Field) -> Result<Option<String>, RowFault> {
        let Some(value) = self.checked(field)? else { return Ok(None) };
        Ok(Some(Scanner::new(value)?.string()?.into_owned()))
    }

    fn required_text(&self, key: &'static str) -> Result<String, RowFault> {
        Ok(self.text(required(same(key, Holds::Text)))?.unwrap_or_default())
    }

    fn batch(&self) -> Result<&'text [u8], RowFault> {
        const BATCH: Field = required(same("batch", Holds::List));
        match self.checked(BATCH)? {
            Some(batch) => Ok(batch),
            None => Err(RowFault::Missing(BATCH.stored)),
        }
    }

    /// Adds these members to an object, under the keys that are sent.
    fn copy(&self, fields: &[Field], nulls: Nulls, into: &mut Object) -> Result<(), RowFault> {
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

/// An object being written.
#[derive(Default)]
struct Object(Vec<u8>);

impl Object {
    /// Adds a member; `value` is JSON, `key` needs no escapes.
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
    fn a_row_that_no_request_can_be_made_of_says_why() {
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
    fn every_type_of_the_sdk_has_its_request() {
        for message_type in &MessageType::ALL[..MessageType::SDK_COUNT] {
            assert!(request_of(*message_type).is_some(), "{message_type}");
        }
    }

    proptest! {
        #[test]
        fn any_json_under_a_users_key_comes_through_unchanged(value in arbitrary_json(), type_at in 0usize..13) {
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
