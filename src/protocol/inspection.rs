//! What a protected write is about, read from its body in one pass.

use std::ops::Range;

use super::json::{Kind, NotJson, Scanner};
use super::routes::Protected;
use crate::message::{Effect, EntityKey, EntityKind, MessageType, Touch};

/// What delivery needs to know of a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Entities that it creates, changes or names; sorted, each once.
    pub touches: Vec<Touch>,
    /// How many items it carries; 1 for single writes.
    pub items: u32,
    /// The project that the first item with one names.
    pub project: Option<String>,
    /// The id of a single create as the client wrote it.
    pub id: Option<String>,
    /// Where ids are missing: creates for which the server would invent one, so that a repeat would make another.
    pub missing_ids: Vec<MissingId>,
}

/// A create without an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingId {
    /// The object has no `id`; one fits right behind its opening bracket, which is here.
    Absent {
        /// Offset behind the bracket.
        at: usize,
        /// Whether other members follow.
        others_follow: bool,
    },
    /// The `id` is null, and its value stands here.
    Null(Range<usize>),
}

/// How the endpoint's body is built.
struct Shape {
    /// The member that holds the items; `None` when the body is the item.
    items: Option<&'static str>,
    /// The entity that each item is about: its member, kind and effect.
    subject: Option<(&'static str, EntityKind, Effect)>,
    /// Other entities that an item names.
    others: &'static [(&'static str, EntityKind, Effect)],
}

const fn shape(message_type: MessageType) -> Shape {
    use Effect::{Annotate, Create, Refer};
    use EntityKind::{DatasetItem, Experiment, Span, Thread, Trace};
    const TRACE_NAMES: &[(&str, EntityKind, Effect)] = &[("thread_id", Thread, Annotate)];
    const SPAN_NAMES: &[(&str, EntityKind, Effect)] = &[("trace_id", Trace, Refer)];
    match message_type {
        MessageType::CreateTrace => Shape { items: None, subject: Some(("id", Trace, Create)), others: TRACE_NAMES },
        MessageType::CreateTraceBatch => {
            Shape { items: Some("traces"), subject: Some(("id", Trace, Create)), others: TRACE_NAMES }
        }
        MessageType::UpdateTrace => Shape { items: None, subject: None, others: TRACE_NAMES },
        MessageType::CreateSpan => Shape { items: None, subject: Some(("id", Span, Create)), others: SPAN_NAMES },
        MessageType::CreateSpansBatch => {
            Shape { items: Some("spans"), subject: Some(("id", Span, Create)), others: SPAN_NAMES }
        }
        MessageType::UpdateSpan => Shape { items: None, subject: None, others: SPAN_NAMES },
        MessageType::AddTraceFeedbackScoresBatch => {
            Shape { items: Some("scores"), subject: Some(("id", Trace, Annotate)), others: &[] }
        }
        MessageType::AddSpanFeedbackScoresBatch => {
            Shape { items: Some("scores"), subject: Some(("id", Span, Annotate)), others: &[] }
        }
        MessageType::AddThreadsFeedbackScoresBatch => {
            Shape { items: Some("scores"), subject: Some(("thread_id", Thread, Annotate)), others: &[] }
        }
        MessageType::GuardrailBatch => Shape {
            items: Some("guardrails"),
            subject: Some(("entity_id", Trace, Annotate)),
            others: &[("secondary_id", Span, Annotate)],
        },
        // `entity_type` may name spans or threads; their ids differ from every trace's, so one kind is enough for order.
        MessageType::AddAssertionResultsBatch => {
            Shape { items: Some("assertion_results"), subject: Some(("entity_id", Trace, Annotate)), others: &[] }
        }
        MessageType::CreateExperimentItemsBatch => Shape {
            items: Some("experiment_items"),
            subject: Some(("experiment_id", Experiment, Annotate)),
            others: &[("trace_id", Trace, Refer), ("dataset_item_id", DatasetItem, Refer)],
        },
        MessageType::CreateAttachment => Shape { items: None, subject: None, others: &[] },
    }
}

/// Whether the server would invent the `id` of an item that has none (OpenAPI: `id` of these is optional).
const fn gets_an_id(message_type: MessageType) -> bool {
    matches!(
        message_type,
        MessageType::CreateTrace
            | MessageType::CreateTraceBatch
            | MessageType::CreateSpan
            | MessageType::CreateSpansBatch
            | MessageType::CreateExperimentItemsBatch
    )
}

/// Reads what a body is about. Members of an unexpected kind are passed over: the server judges them.
///
/// # Errors
///
/// [`NotJson`] when no server could read the body.
pub fn inspect(write: &Protected, content: &[u8]) -> Result<Inspection, NotJson> {
    let shape = shape(write.message_type);
    let mut found = Found { inspection: Inspection::default(), touches: Vec::new() };
    match (write.message_type, &write.path_id) {
        (MessageType::UpdateTrace, Some(id)) => found.touch(EntityKind::Trace, Effect::Update, id),
        (MessageType::UpdateSpan, Some(id)) => found.touch(EntityKind::Span, Effect::Update, id),
        _ => {}
    }

    let mut scanner = Scanner::new(content)?;
    match (shape.items, scanner.peek()?) {
        (None, Kind::Object) => found.item(&mut scanner, &shape, write.message_type)?,
        (Some(items), Kind::Object) => {
            scanner.object(|key, scanner| {
                if key == items && scanner.peek()? == Kind::Array {
                    scanner.array(|scanner| found.item(scanner, &shape, write.message_type)).map(drop)
                } else {
                    scanner.skip_value().map(drop)
                }
            })?;
        }
        _ => {
            scanner.skip_value()?;
        }
    }
    scanner.end()?;

    found.inspection.touches = Touch::distinct(found.touches);
    if shape.items.is_some() {
        found.inspection.id = None;
    } else {
        found.inspection.items = 1;
    }
    Ok(found.inspection)
}

struct Found {
    inspection: Inspection,
    touches: Vec<Touch>,
}

impl Found {
    fn touch(&mut self, kind: EntityKind, effect: Effect, id: &str) {
        self.touches.push(Touch { key: EntityKey::new(kind, id), effect });
    }

    fn item(&mut self, scanner: &mut Scanner<'_>, shape: &Shape, message_type: MessageType) -> Result<(), NotJson> {
        self.inspection.items = self.inspection.items.saturating_add(1);
        if scanner.peek()? != Kind::Object {
            scanner.skip_value()?;
            return Ok(());
        }
        let mut id = None;
        let mut null_id = None;
        let mut members = 0_u32;
        let range = scanner.object(|key, scanner| {
            members += 1;
            let kind = scanner.peek()?;
            if key == "id" && kind == Kind::Null {
                null_id = Some(scanner.skip_value()?);
                return Ok(());
            }
            let subject = shape.subject.filter(|(member, _, _)| *member == key);
            let named = subject.or_else(|| shape.others.iter().copied().find(|(member, _, _)| *member == key));
            let is_project = key == "project_name" && self.inspection.project.is_none();
            if kind != Kind::String || (named.is_none() && !is_project && key != "id") {
                return scanner.skip_value().map(drop);
            }
            let text = scanner.string()?;
            if let Some((_, entity_kind, effect)) = named {
                self.touch(entity_kind, effect, &text);
            }
            if key == "id" {
                id = Some(text.into_owned());
            } else if is_project {
                self.inspection.project = Some(text.into_owned());
            }
            Ok(())
        })?;
        if gets_an_id(message_type) && id.is_none() {
            self.inspection.missing_ids.push(match null_id {
                Some(range) => MissingId::Null(range),
                None => MissingId::Absent { at: range.start + 1, others_follow: members > 0 },
            });
        }
        self.inspection.id = id;
        Ok(())
    }
}

/// Returns the content with an id for every create that has none, and not another byte changed.
pub fn with_ids(content: &[u8], missing: &[MissingId], mut fresh_id: impl FnMut() -> String) -> Vec<u8> {
    let mut filled = Vec::with_capacity(content.len() + missing.len() * 48);
    let mut copied = 0;
    for gap in missing {
        let (upto, after, text) = match gap {
            MissingId::Absent { at, others_follow } => {
                (*at, *at, format!("\"id\":\"{}\"{}", fresh_id(), if *others_follow { "," } else { "" }))
            }
            MissingId::Null(range) => (range.start, range.end, format!("\"{}\"", fresh_id())),
        };
        filled.extend_from_slice(&content[copied..upto]);
        filled.extend_from_slice(text.as_bytes());
        copied = after;
    }
    filled.extend_from_slice(&content[copied..]);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "01a20445-0b53-7443-881b-86277651b909";
    const SPAN: &str = "01a20445-0b55-7feb-b47d-9a6087614672";

    fn write(message_type: MessageType) -> Protected {
        Protected { message_type, path_id: None }
    }

    fn touch(kind: EntityKind, effect: Effect, id: &str) -> Touch {
        Touch { key: EntityKey::new(kind, id), effect }
    }

    #[test]
    fn each_message_type_names_its_entities() {
        use Effect::{Annotate, Create, Refer};
        use EntityKind::{DatasetItem, Experiment, Span, Thread, Trace};
        let cases = [
            (
                MessageType::CreateTrace,
                format!(r#"{{"project_name":"p","input":{{"id":"no"}},"id":"{TRACE}","thread_id":"t-1"}}"#),
                vec![touch(Trace, Create, TRACE), touch(Thread, Annotate, "t-1")],
                1,
            ),
            (
                MessageType::CreateSpansBatch,
                format!(
                    r#"{{"spans":[{{"id":"{SPAN}","trace_id":"{TRACE}","project_name":"p"}},{{"id":"x","trace_id":"{TRACE}"}}]}}"#
                ),
                vec![touch(Span, Create, SPAN), touch(Trace, Refer, TRACE), touch(Span, Create, "x")],
                2,
            ),
            (
                MessageType::AddThreadsFeedbackScoresBatch,
                r#"{"scores":[{"thread_id":"t-1","project_name":"p","name":"n","value":NaN}]}"#.into(),
                vec![touch(Thread, Annotate, "t-1")],
                1,
            ),
            (
                MessageType::GuardrailBatch,
                format!(r#"{{"guardrails":[{{"entity_id":"{TRACE}","secondary_id":"{SPAN}","project_name":"p"}}]}}"#),
                vec![touch(Trace, Annotate, TRACE), touch(Span, Annotate, SPAN)],
                1,
            ),
            (
                MessageType::AddAssertionResultsBatch,
                format!(
                    r#"{{"entity_type":"TRACE","assertion_results":[{{"entity_id":"{TRACE}","project_name":"p"}}]}}"#
                ),
                vec![touch(Trace, Annotate, TRACE)],
                1,
            ),
            (
                MessageType::CreateExperimentItemsBatch,
                format!(
                    r#"{{"experiment_items":[{{"id":"i","project_name":"p","experiment_id":"e","trace_id":"{TRACE}","dataset_item_id":"d"}}]}}"#
                ),
                vec![touch(Experiment, Annotate, "e"), touch(Trace, Refer, TRACE), touch(DatasetItem, Refer, "d")],
                1,
            ),
        ];
        for (message_type, content, touches, items) in cases {
            let found = inspect(&write(message_type), content.as_bytes()).expect("JSON");
            assert_eq!(found.touches, Touch::distinct(touches), "{message_type}");
            assert_eq!(found.items, items, "{message_type}");
            assert_eq!(found.project.as_deref(), Some("p"), "{message_type}");
            assert_eq!(found.missing_ids, [], "{message_type}");
        }
    }

    #[test]
    fn an_update_is_about_the_id_in_its_path() {
        let route = Protected { message_type: MessageType::UpdateSpan, path_id: Some(SPAN.into()) };
        let found = inspect(&route, format!(r#"{{"trace_id":"{TRACE}"}}"#).as_bytes()).expect("JSON");
        let expected =
            vec![touch(EntityKind::Span, Effect::Update, SPAN), touch(EntityKind::Trace, Effect::Refer, TRACE)];
        assert_eq!(found.touches, Touch::distinct(expected));
    }

    #[test]
    fn creates_without_an_id_get_one_and_keep_every_other_byte() {
        let content =
            r#"{"traces": [ { }, {"name": "ü", "input": {"id": null}}, {"id" : null,"a":1e+22}, {"id":"kept"} , 7]}"#;
        let found = inspect(&write(MessageType::CreateTraceBatch), content.as_bytes()).expect("JSON");
        assert_eq!(found.missing_ids.len(), 3);
        assert_eq!(found.items, 5);
        let mut count = 0;
        let filled = with_ids(content.as_bytes(), &found.missing_ids, || {
            count += 1;
            format!("id-{count}")
        });
        let expected = r#"{"traces": [ {"id":"id-1" }, {"id":"id-2","name": "ü", "input": {"id": null}}, {"id" : "id-3","a":1e+22}, {"id":"kept"} , 7]}"#;
        assert_eq!(String::from_utf8_lossy(&filled), expected);
    }

    #[test]
    fn json_of_another_shape_is_the_servers_to_judge() {
        for content in ["[]", "7", r#"{"traces": {}}"#, r#"{"traces": [{"id": 7}]}"#, "{}"] {
            assert!(inspect(&write(MessageType::CreateTraceBatch), content.as_bytes()).is_ok(), "{content}");
        }
        assert!(inspect(&write(MessageType::CreateTraceBatch), b"{\"traces\": [").is_err());
    }
}
