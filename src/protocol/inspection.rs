//! Inspection of a protected write: parses its entities from the payload in one pass.

use std::ops::Range;

use super::json::{Kind, NotJson, Scanner};
use super::routes::Protected;
use crate::message::{Effect, EntityKey, EntityKind, MessageType, Touch};

/// The attributes of a payload that delivery needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Entities that it creates, changes or names; sorted and deduplicated.
    pub touches: Vec<Touch>,
    /// Number of items; 1 for single writes.
    pub items: u32,
    /// The project of the first item that has one.
    pub project: Option<String>,
    /// The id of a single create, verbatim.
    pub id: Option<String>,
    /// Why this write can't be stored: its client needs the server's response, or its meaning depends on its arrival
    /// time.
    pub needs_answer: Option<NeedsAnswer>,
    /// Creates without an id: the server would generate one, so a retry would not be idempotent.
    pub missing_ids: Vec<MissingId>,
}

/// Why a write can't be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsAnswer {
    /// For developers.
    pub why: &'static str,
    /// Its effect depends on all earlier writes, so it must not overtake messages queued in its lane: a deletion
    /// by filter would miss items that are still stored here and reach the server after it.
    pub follows_all: bool,
}

/// A create without an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingId {
    /// The object has no `id`; one can be inserted after its opening bracket.
    Absent {
        /// Offset after the bracket.
        at: usize,
        /// Whether other members follow.
        others_follow: bool,
    },
    /// The `id` is null; the span of that value.
    Null(Range<usize>),
}

/// The schema of an endpoint's payload (OpenAPI file).
#[derive(Clone, Copy)]
struct PayloadSchema {
    items: ItemsLocation,
    /// Entity kind and effect of the id in the path.
    path: Option<NamedEffect>,
    /// Members of each item that name entities.
    named: &'static [(&'static str, NamedEffect)],
    /// Members beside the items that name entities.
    beside: &'static [(&'static str, NamedEffect)],
    condition: Precondition,
}

/// A kind of entity, and the effect on it.
type NamedEffect = (EntityKind, Effect);

/// The location of a payload's items.
#[derive(Clone, Copy)]
enum ItemsLocation {
    /// The payload is not parsed.
    Unread,
    /// The body is the item.
    Whole,
    /// The body is an array of items.
    Array,
    /// Objects in the array of this member.
    Objects(&'static str),
    /// Ids in the array of this member; each names such an entity.
    Ids(&'static str, NamedEffect),
}

/// The precondition for storing a write: otherwise its meaning changes while it is queued, or the server assigns its
/// ids.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Precondition {
    None,
    /// The client supplies the id.
    OwnId,
    /// It selects entities by ids, not by a filter.
    IdsOnly,
    /// It copies no data of the server.
    NoCopy,
    /// The experiment, its traces and their spans have ids.
    AllIds,
}

const fn shape(message_type: MessageType) -> PayloadSchema {
    use Effect::{Annotate, Create, End, Refer, Update};
    use EntityKind::{
        AnnotationQueue, Comment, Dataset, DatasetItem, Experiment, ExperimentItem, Job, Optimization, Span, Thread,
        Trace,
    };
    use ItemsLocation::{Array, Ids, Objects, Unread, Whole};
    const PLAIN: PayloadSchema =
        PayloadSchema { items: Whole, path: None, named: &[], beside: &[], condition: Precondition::None };
    // A thread is created by its traces: they are unordered among themselves, and scores of the thread follow them.
    const TRACE: &[(&str, NamedEffect)] = &[("id", (Trace, Create)), ("thread_id", (Thread, Refer))];
    const SPAN: &[(&str, NamedEffect)] = &[("id", (Span, Create)), ("trace_id", (Trace, Refer))];
    // An upsert of a dataset item is not a create: updates accepted before it must stay before it.
    const DATASET_ITEM: &[(&str, NamedEffect)] =
        &[("id", (DatasetItem, Annotate)), ("trace_id", (Trace, Refer)), ("span_id", (Span, Refer))];
    // Datasets are referenced by id or by name; a create has both.
    const DATASET: &[(&str, NamedEffect)] =
        &[("dataset_id", (Dataset, Annotate)), ("dataset_name", (Dataset, Annotate))];
    const OPTIMIZATION: &[(&str, NamedEffect)] =
        &[("id", (Optimization, Create)), ("dataset_name", (Dataset, Annotate))];
    match message_type {
        MessageType::CreateTrace => PayloadSchema { named: TRACE, ..PLAIN },
        MessageType::CreateTraceBatch => PayloadSchema { items: Objects("traces"), named: TRACE, ..PLAIN },
        MessageType::UpdateTrace => {
            PayloadSchema { path: Some((Trace, Update)), named: &[("thread_id", (Thread, Refer))], ..PLAIN }
        }
        MessageType::CreateSpan => PayloadSchema { named: SPAN, ..PLAIN },
        MessageType::CreateSpansBatch => PayloadSchema { items: Objects("spans"), named: SPAN, ..PLAIN },
        MessageType::UpdateSpan => {
            PayloadSchema { path: Some((Span, Update)), named: &[("trace_id", (Trace, Refer))], ..PLAIN }
        }
        MessageType::AddTraceFeedbackScoresBatch => {
            PayloadSchema { items: Objects("scores"), named: &[("id", (Trace, Annotate))], ..PLAIN }
        }
        MessageType::AddSpanFeedbackScoresBatch => {
            PayloadSchema { items: Objects("scores"), named: &[("id", (Span, Annotate))], ..PLAIN }
        }
        MessageType::AddThreadsFeedbackScoresBatch => {
            PayloadSchema { items: Objects("scores"), named: &[("thread_id", (Thread, End))], ..PLAIN }
        }
        MessageType::GuardrailBatch => PayloadSchema {
            items: Objects("guardrails"),
            named: &[("entity_id", (Trace, Annotate)), ("secondary_id", (Span, Annotate))],
            ..PLAIN
        },
        // `entity_type` may name spans or threads; their ids differ from every trace's, so one kind is enough for
        // order.
        MessageType::AddAssertionResultsBatch => {
            PayloadSchema { items: Objects("assertion_results"), named: &[("entity_id", (Trace, Annotate))], ..PLAIN }
        }
        MessageType::CreateExperimentItemsBatch => PayloadSchema {
            items: Objects("experiment_items"),
            named: &[
                ("id", (ExperimentItem, Annotate)),
                ("experiment_id", (Experiment, Annotate)),
                ("trace_id", (Trace, Refer)),
                ("dataset_item_id", (DatasetItem, Refer)),
            ],
            ..PLAIN
        },
        MessageType::CreateAttachment | MessageType::OtlpTraces | MessageType::UnknownSdkRow => {
            PayloadSchema { items: Unread, ..PLAIN }
        }

        MessageType::UpdateTraces => {
            PayloadSchema { items: Ids("ids", (Trace, Update)), beside: &[("thread_id", (Thread, Annotate))], ..PLAIN }
        }
        MessageType::DeleteTrace => PayloadSchema { items: Unread, path: Some((Trace, End)), ..PLAIN },
        MessageType::DeleteTraces => PayloadSchema { items: Ids("ids", (Trace, End)), ..PLAIN },
        MessageType::ScoreTrace | MessageType::DeleteTraceScore => {
            PayloadSchema { path: Some((Trace, Annotate)), ..PLAIN }
        }
        MessageType::UpdateSpans => {
            PayloadSchema { items: Ids("ids", (Span, Update)), beside: &[("trace_id", (Trace, Refer))], ..PLAIN }
        }
        MessageType::DeleteSpan => PayloadSchema { items: Unread, path: Some((Span, End)), ..PLAIN },
        MessageType::ScoreSpan | MessageType::DeleteSpanScore => {
            PayloadSchema { path: Some((Span, Annotate)), ..PLAIN }
        }
        MessageType::UpdateTraceComment | MessageType::UpdateSpanComment | MessageType::UpdateThreadComment => {
            PayloadSchema { path: Some((Comment, Update)), ..PLAIN }
        }
        MessageType::DeleteTraceComments | MessageType::DeleteSpanComments | MessageType::DeleteThreadComments => {
            PayloadSchema { items: Ids("ids", (Comment, End)), ..PLAIN }
        }

        MessageType::OpenThread => PayloadSchema { named: &[("thread_id", (Thread, Update))], ..PLAIN },
        MessageType::CloseThreads | MessageType::DeleteThreads => {
            PayloadSchema { items: Ids("thread_ids", (Thread, End)), beside: &[("thread_id", (Thread, End))], ..PLAIN }
        }
        // These reference a thread by the id that the server assigned.
        MessageType::UpdateThread => PayloadSchema { path: Some((Thread, Update)), ..PLAIN },
        MessageType::UpdateThreads => PayloadSchema { items: Ids("ids", (Thread, Update)), ..PLAIN },
        MessageType::DeleteThreadScores => PayloadSchema { named: &[("thread_id", (Thread, Annotate))], ..PLAIN },

        MessageType::CreateDataset => PayloadSchema {
            named: &[("id", (Dataset, Create)), ("name", (Dataset, Create))],
            condition: Precondition::OwnId,
            ..PLAIN
        },
        MessageType::PutDatasetItems => PayloadSchema {
            items: Objects("items"),
            named: DATASET_ITEM,
            beside: DATASET,
            condition: Precondition::NoCopy,
            ..PLAIN
        },
        MessageType::UpdateDatasetItem => PayloadSchema { path: Some((DatasetItem, Update)), ..PLAIN },
        MessageType::UpdateDatasetItems => PayloadSchema {
            items: Ids("ids", (DatasetItem, Update)),
            beside: DATASET,
            condition: Precondition::IdsOnly,
            ..PLAIN
        },
        MessageType::DeleteDatasetItems => PayloadSchema {
            items: Ids("item_ids", (DatasetItem, End)),
            beside: DATASET,
            condition: Precondition::IdsOnly,
            ..PLAIN
        },

        MessageType::CreateExperiment => PayloadSchema {
            named: &[
                ("id", (Experiment, Create)),
                ("dataset_name", (Dataset, Annotate)),
                ("optimization_id", (Optimization, Refer)),
            ],
            condition: Precondition::OwnId,
            ..PLAIN
        },
        MessageType::UpdateExperiment => PayloadSchema { path: Some((Experiment, Update)), ..PLAIN },
        MessageType::UpdateExperiments | MessageType::FinishExperiments => {
            PayloadSchema { items: Ids("ids", (Experiment, Update)), ..PLAIN }
        }
        MessageType::DeleteExperiments => PayloadSchema { items: Ids("ids", (Experiment, End)), ..PLAIN },
        MessageType::PutExperimentItems => PayloadSchema {
            items: Objects("items"),
            named: &[("dataset_item_id", (DatasetItem, Refer))],
            beside: &[("experiment_id", (Experiment, Annotate)), ("dataset_name", (Dataset, Annotate))],
            condition: Precondition::AllIds,
            ..PLAIN
        },
        MessageType::DeleteExperimentItems => PayloadSchema { items: Ids("ids", (ExperimentItem, End)), ..PLAIN },

        MessageType::CreateOptimization | MessageType::PutOptimization => {
            PayloadSchema { named: OPTIMIZATION, condition: Precondition::OwnId, ..PLAIN }
        }
        MessageType::UpdateOptimization => PayloadSchema { path: Some((Optimization, Update)), ..PLAIN },
        MessageType::AddQueueItems | MessageType::RemoveQueueItems => {
            PayloadSchema { items: Ids("ids", (Trace, Refer)), path: Some((AnnotationQueue, Annotate)), ..PLAIN }
        }
        // The kind of the entity does not matter for order, so one kind covers both. An update, like uploads: they keep
        // their order, also where a create makes updates wait behind it.
        MessageType::DeleteAttachments => PayloadSchema {
            named: &[("entity_id", (Trace, Update)), ("entity_id", (Span, Update)), ("container_id", (Trace, Refer))],
            ..PLAIN
        },
        MessageType::AppendJobLogs => PayloadSchema { items: Array, path: Some((Job, Annotate)), ..PLAIN },
    }
}

/// Whether the server would generate the `id` of an item without one (OpenAPI: `id` of these is optional), and the
/// client does not read it back: we add one, so that retries are idempotent.
const fn gets_an_id(message_type: MessageType) -> bool {
    matches!(
        message_type,
        MessageType::CreateTrace
            | MessageType::CreateTraceBatch
            | MessageType::CreateSpan
            | MessageType::CreateSpansBatch
            | MessageType::CreateExperimentItemsBatch
            | MessageType::PutDatasetItems
    )
}

/// The location of a batch's items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemList {
    /// The body is the array.
    Body,
    /// The array in this member.
    Member(&'static str),
}

/// Returns the location of the items in messages of this type; `None` for messages with a single item.
pub fn item_list(message_type: MessageType) -> Option<ItemList> {
    match shape(message_type).items {
        ItemsLocation::Unread | ItemsLocation::Whole => None,
        ItemsLocation::Array => Some(ItemList::Body),
        ItemsLocation::Objects(member) | ItemsLocation::Ids(member, _) => Some(ItemList::Member(member)),
    }
}

/// Parses the entities of a payload. Members of an unexpected kind are skipped: the server validates them.
///
/// # Errors
///
/// [`NotJson`] if no server could parse the payload.
pub fn inspect(write: &Protected, content: &[u8]) -> Result<Inspection, NotJson> {
    let shape = shape(write.message_type);
    let mut found = Collector { message_type: write.message_type, shape, ..Collector::default() };
    if let (Some((kind, effect)), Some(id)) = (shape.path, &write.path_id) {
        found.touch(kind, effect, id);
    }
    if matches!(shape.items, ItemsLocation::Unread) {
        return Ok(found.finish());
    }

    let mut scanner = Scanner::new(content)?;
    match (shape.items, scanner.peek()?) {
        (ItemsLocation::Whole, Kind::Object) => found.item(&mut scanner)?,
        (ItemsLocation::Array, Kind::Array) => scanner.array(|scanner| found.item(scanner)).map(drop)?,
        (ItemsLocation::Objects(_) | ItemsLocation::Ids(..), Kind::Object) => {
            scanner.object(|key, scanner| found.member(key, scanner))?;
        }
        _ => {
            scanner.skip_value()?;
        }
    }
    scanner.end()?;
    Ok(found.finish())
}

struct Collector {
    message_type: MessageType,
    shape: PayloadSchema,
    inspection: Inspection,
    touches: Vec<Touch>,
    /// The write also selects entities by other means than ids: a filter, another dataset.
    has_selector: bool,
    /// The bulk upload names its experiment.
    has_experiment: bool,
    /// A nested trace or span of a bulk upload has no id.
    lacks_id: bool,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            message_type: MessageType::CreateAttachment,
            shape: shape(MessageType::CreateAttachment),
            inspection: Inspection::default(),
            touches: Vec::new(),
            has_selector: false,
            has_experiment: false,
            lacks_id: false,
        }
    }
}

impl Collector {
    fn finish(mut self) -> Inspection {
        self.inspection.touches = Touch::distinct(self.touches);
        match self.shape.items {
            ItemsLocation::Unread | ItemsLocation::Whole => self.inspection.items = 1,
            ItemsLocation::Array | ItemsLocation::Objects(_) | ItemsLocation::Ids(..) => self.inspection.id = None,
        }
        let (is_kept, why, follows_all) = match self.shape.condition {
            Precondition::None => (true, "", false),
            Precondition::OwnId => (self.inspection.id.is_some(), "the server makes its id", false),
            Precondition::IdsOnly => {
                let names_ids = self.inspection.items > 0 && !self.has_selector;
                (names_ids, "the server finds out what it is about", true)
            }
            Precondition::NoCopy => (!self.has_selector, "it copies what the server has", true),
            Precondition::AllIds => (self.has_experiment && !self.lacks_id, "the server makes some of its ids", false),
        };
        self.inspection.needs_answer = (!is_kept).then_some(NeedsAnswer { why, follows_all });
        self.inspection
    }

    fn touch(&mut self, kind: EntityKind, effect: Effect, id: &str) {
        self.touches.push(Touch { key: EntityKey::new(kind, id), effect });
    }

    /// Parses a member beside or around the items.
    fn member(&mut self, key: &str, scanner: &mut Scanner<'_>) -> Result<(), NotJson> {
        let kind = scanner.peek()?;
        match (self.shape.items, kind) {
            (ItemsLocation::Objects(items), Kind::Array) if key == items => {
                return scanner.array(|scanner| self.item(scanner)).map(drop);
            }
            (ItemsLocation::Ids(items, names), Kind::Array) if key == items => {
                return scanner.array(|scanner| self.id(scanner, names)).map(drop);
            }
            // The fields that an update of many entities sets.
            (ItemsLocation::Ids(..), Kind::Object) if key == "update" => {
                return scanner.object(|key, scanner| self.beside(key, scanner)).map(drop);
            }
            _ => {}
        }
        let is_selector = matches!(key, "filters" | "copy_from_dataset_id" | "copy_from_version_id");
        if is_selector && kind != Kind::Null {
            let mut is_empty = kind == Kind::Array;
            match kind {
                Kind::Array => scanner.array(|scanner| {
                    is_empty = false;
                    scanner.skip_value().map(drop)
                })?,
                _ => scanner.skip_value()?,
            };
            self.has_selector |= !is_empty;
            return Ok(());
        }
        self.beside(key, scanner)
    }

    fn beside(&mut self, key: &str, scanner: &mut Scanner<'_>) -> Result<(), NotJson> {
        if scanner.peek()? != Kind::String {
            return scanner.skip_value().map(drop);
        }
        let text = scanner.string()?;
        self.has_experiment |= key == "experiment_id";
        self.name(self.shape.beside, key, &text);
        Ok(())
    }

    /// Records the entity that a member names.
    fn name(&mut self, named: &[(&str, NamedEffect)], key: &str, text: &str) {
        for (_, (kind, effect)) in named.iter().filter(|(member, _)| *member == key) {
            self.touch(*kind, *effect, text);
        }
        if key == "project_name" && self.inspection.project.is_none() {
            self.inspection.project = Some(text.to_owned());
        }
    }

    fn id(&mut self, scanner: &mut Scanner<'_>, (kind, effect): NamedEffect) -> Result<(), NotJson> {
        self.inspection.items = self.inspection.items.saturating_add(1);
        if scanner.peek()? != Kind::String {
            return scanner.skip_value().map(drop);
        }
        let id = scanner.string()?;
        self.touch(kind, effect, &id);
        Ok(())
    }

    fn item(&mut self, scanner: &mut Scanner<'_>) -> Result<(), NotJson> {
        self.inspection.items = self.inspection.items.saturating_add(1);
        if scanner.peek()? != Kind::Object {
            scanner.skip_value()?;
            return Ok(());
        }
        let named = self.shape.named;
        let mut id = None;
        let mut null_id = None;
        let mut members = 0_u32;
        let mut has_result = false;
        let mut has_trace = false;
        let range = scanner.object(|key, scanner| {
            members += 1;
            let kind = scanner.peek()?;
            if key == "id" && kind == Kind::Null {
                null_id = Some(scanner.skip_value()?);
                return Ok(());
            }
            if self.shape.condition == Precondition::AllIds {
                has_result |= key == "evaluate_task_result" && kind != Kind::Null;
                match (key, kind) {
                    ("trace", Kind::Object) => {
                        has_trace = true;
                        return self.nested(scanner, EntityKind::Trace);
                    }
                    ("spans", Kind::Array) => {
                        return scanner.array(|scanner| self.nested(scanner, EntityKind::Span)).map(drop);
                    }
                    _ => {}
                }
            }
            let is_read = key == "id" || key == "project_name" || named.iter().any(|(member, _)| *member == key);
            if kind != Kind::String || !is_read {
                return scanner.skip_value().map(drop);
            }
            let text = scanner.string()?;
            self.name(named, key, &text);
            if key == "id" {
                id = Some(text.into_owned());
            }
            Ok(())
        })?;
        // Without a trace the server creates one for the result.
        self.lacks_id |= has_result || (self.shape.condition == Precondition::AllIds && !has_trace);
        if gets_an_id(self.message_type) && id.is_none() {
            self.inspection.missing_ids.push(match null_id {
                Some(range) => MissingId::Null(range),
                None => MissingId::Absent { at: range.start + 1, others_follow: members > 0 },
            });
        }
        self.inspection.id = id;
        Ok(())
    }

    /// Parses a trace or span inside an item of a bulk upload.
    fn nested(&mut self, scanner: &mut Scanner<'_>, kind: EntityKind) -> Result<(), NotJson> {
        let mut id = None;
        if scanner.peek()? == Kind::Object {
            scanner.object(|key, scanner| {
                if scanner.peek()? != Kind::String || !matches!(key, "id" | "project_name") {
                    return scanner.skip_value().map(drop);
                }
                let text = scanner.string()?;
                self.name(&[], key, &text);
                if key == "id" {
                    id = Some(text.into_owned());
                }
                Ok(())
            })?;
        } else {
            scanner.skip_value()?;
        }
        match id {
            Some(id) => self.touch(kind, Effect::Create, &id),
            None => self.lacks_id = true,
        }
        Ok(())
    }
}

/// Inserts an id for every create without one; all other bytes are unchanged.
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
        use Effect::{Annotate, Create, End, Refer};
        use EntityKind::{DatasetItem, Experiment, ExperimentItem, Span, Thread, Trace};
        let cases = [
            (
                MessageType::CreateTrace,
                format!(r#"{{"project_name":"p","input":{{"id":"no"}},"id":"{TRACE}","thread_id":"t-1"}}"#),
                vec![touch(Trace, Create, TRACE), touch(Thread, Refer, "t-1")],
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
                vec![touch(Thread, End, "t-1")],
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
                vec![
                    touch(ExperimentItem, Annotate, "i"),
                    touch(Experiment, Annotate, "e"),
                    touch(Trace, Refer, TRACE),
                    touch(DatasetItem, Refer, "d"),
                ],
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
    fn updates_name_the_id_in_their_path() {
        let route = Protected { message_type: MessageType::UpdateSpan, path_id: Some(SPAN.into()) };
        let found = inspect(&route, format!(r#"{{"trace_id":"{TRACE}"}}"#).as_bytes()).expect("JSON");
        let expected =
            vec![touch(EntityKind::Span, Effect::Update, SPAN), touch(EntityKind::Trace, Effect::Refer, TRACE)];
        assert_eq!(found.touches, Touch::distinct(expected));
    }

    #[test]
    fn other_writes_name_their_entities() {
        use Effect::{Annotate, Create, End, Refer, Update};
        use EntityKind::{Dataset, DatasetItem, Experiment, ExperimentItem, Span, Thread, Trace};
        let with_path = |message_type| Protected { message_type, path_id: Some("p".into()) };
        let cases = [
            (with_path(MessageType::DeleteTrace), "", vec![touch(Trace, End, "p")], 1),
            (
                write(MessageType::DeleteTraces),
                r#"{"ids":["a","b"]}"#,
                vec![touch(Trace, End, "a"), touch(Trace, End, "b")],
                2,
            ),
            (with_path(MessageType::ScoreSpan), r#"{"name":"n","id":7}"#, vec![touch(Span, Annotate, "p")], 1),
            (
                write(MessageType::UpdateSpans),
                r#"{"ids":["a"],"update":{"trace_id":"t","name":"x"}}"#,
                vec![touch(Span, Update, "a"), touch(Trace, Refer, "t")],
                1,
            ),
            (
                write(MessageType::CloseThreads),
                r#"{"thread_id":"a","thread_ids":["b"]}"#,
                vec![touch(Thread, End, "a"), touch(Thread, End, "b")],
                1,
            ),
            (
                write(MessageType::PutDatasetItems),
                r#"{"dataset_name":"d","items":[{"id":"i","data":{"id":"no"},"trace_id":"t"}]}"#,
                vec![touch(Dataset, Annotate, "d"), touch(DatasetItem, Annotate, "i"), touch(Trace, Refer, "t")],
                1,
            ),
            (
                write(MessageType::CreateDataset),
                r#"{"id":"i","name":"d"}"#,
                vec![touch(Dataset, Create, "i"), touch(Dataset, Create, "d")],
                1,
            ),
            (write(MessageType::FinishExperiments), r#"{"ids":["e"]}"#, vec![touch(Experiment, Update, "e")], 1),
            (write(MessageType::DeleteExperimentItems), r#"{"ids":["i"]}"#, vec![touch(ExperimentItem, End, "i")], 1),
            (
                with_path(MessageType::AppendJobLogs),
                r#"[{"text":"a"},{"text":"b"}]"#,
                vec![touch(EntityKind::Job, Annotate, "p")],
                2,
            ),
        ];
        for (route, content, touches, items) in cases {
            let found = inspect(&route, content.as_bytes()).expect("JSON");
            assert_eq!(found.touches, Touch::distinct(touches), "{}", route.message_type);
            assert_eq!(found.items, items, "{}", route.message_type);
            assert_eq!(found.needs_answer, None, "{}", route.message_type);
        }
    }

    #[test]
    fn writes_that_depend_on_the_server_are_not_stored() {
        for (message_type, content, is_kept) in [
            (MessageType::CreateDataset, r#"{"name":"d"}"#, false),
            (MessageType::CreateExperiment, r#"{"dataset_name":"d","id":null}"#, false),
            (MessageType::CreateExperiment, r#"{"dataset_name":"d","id":"e"}"#, true),
            (MessageType::DeleteDatasetItems, r#"{"dataset_id":"d","filters":[]}"#, false),
            (MessageType::DeleteDatasetItems, r#"{"item_ids":["a"],"filters":[]}"#, true),
            (MessageType::DeleteDatasetItems, r#"{"item_ids":["a"],"filters":[{"field":"id"}]}"#, false),
            (MessageType::UpdateDatasetItems, r#"{"ids":["a"],"filters":null,"update":{}}"#, true),
            (MessageType::PutDatasetItems, r#"{"dataset_name":"d","items":[]}"#, true),
            (MessageType::PutDatasetItems, r#"{"dataset_name":"d","items":[],"copy_from_dataset_id":"x"}"#, false),
            (
                MessageType::PutExperimentItems,
                r#"{"experiment_id":"e","items":[{"dataset_item_id":"i","trace":{"id":"t"},"spans":[{"id":"s"}]}]}"#,
                true,
            ),
            (MessageType::PutExperimentItems, r#"{"items":[{"dataset_item_id":"i","trace":{"id":"t"}}]}"#, false),
            (
                MessageType::PutExperimentItems,
                r#"{"experiment_id":"e","items":[{"dataset_item_id":"i","trace":{"id":"t"},"spans":[{}]}]}"#,
                false,
            ),
            (
                MessageType::PutExperimentItems,
                r#"{"experiment_id":"e","items":[{"dataset_item_id":"i","evaluate_task_result":{}}]}"#,
                false,
            ),
        ] {
            let found = inspect(&write(message_type), content.as_bytes()).expect("JSON");
            assert_eq!(found.needs_answer.is_none(), is_kept, "{message_type} {content}");
        }
    }

    #[test]
    fn missing_ids_are_inserted_without_changing_other_bytes() {
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
    fn unexpected_json_is_left_to_the_server() {
        for content in ["[]", "7", r#"{"traces": {}}"#, r#"{"traces": [{"id": 7}]}"#, "{}"] {
            assert!(inspect(&write(MessageType::CreateTraceBatch), content.as_bytes()).is_ok(), "{content}");
        }
        assert!(inspect(&write(MessageType::CreateTraceBatch), b"{\"traces\": [").is_err());
    }
}
