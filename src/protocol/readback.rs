//! Read-back: the entities that a delivered message leaves on the server, the requests that show them, and parsing the
//! responses.
//!
//! Sources: the OpenAPI file for every read, and the server's `FilterQueryBuilder.java` for what the file omits: the
//! filter operator `in` exists for enumerations and lists only, so no read takes a list of ids. Batches are therefore
//! pages of `POST traces/search` and `POST spans/search`, which belong to a project and continue after a cursor
//! (`last_retrieved_id`). A page only proves that an entity *exists*, so nothing depends on the server's sort order;
//! entities on no page are read by their ids.
//!
//! | kind | is expected after | read |
//! | --- | --- | --- |
//! | trace, span | create, update, score | `POST {traces,spans}/search`, then `GET {traces,spans}/{id}` |
//! | thread | score | `POST traces/threads/retrieve` |
//! | experiment | create with an id, update, finish | `GET experiments/{id}` |
//! | experiment item | create | `GET experiments/items/{id}` |
//! | dataset | create with an id | `GET datasets/{id}` |
//! | dataset item | put, update | `GET datasets/items/{itemId}` |
//! | optimization | create with an id, update | `GET optimizations/{id}` |
//!
//! Feedback scores are part of their trace, span or thread, by name. A deletion that is delivered later cancels the
//! expectation. Read-back verifies that an entity exists, not each of its fields: the server merges.
//!
//! Read-back does not cover OTLP spans (the server derives their ids), guardrail and assertion results, comments, queue
//! items and job logs (the server assigns their ids, or no read returns them), threads opened or closed, bulk uploads
//! of experiment items, and attachments (`GET attachment/list` requires the server's id of the project).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::json;
use uuid::Uuid;

use super::inspection::{ItemList, item_list};
use super::json::{Kind as Json, NotJson, Scanner};
use super::routes::{Route, classify};
use crate::message::{EntityKey, EntityKind, MessageType};

/// The kinds of entity that support read-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A trace.
    Trace,
    /// A span.
    Span,
    /// A thread, by its free string.
    Thread,
    /// An experiment.
    Experiment,
    /// An item of an experiment.
    ExperimentItem,
    /// A dataset.
    Dataset,
    /// An item of a dataset.
    DatasetItem,
    /// An optimization.
    Optimization,
}

impl Kind {
    /// Returns the word used in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Span => "span",
            Self::Thread => "thread",
            Self::Experiment => "experiment",
            Self::ExperimentItem => "experiment item",
            Self::Dataset => "dataset",
            Self::DatasetItem => "dataset item",
            Self::Optimization => "optimization",
        }
    }

    /// Returns whether this kind can be read in pages.
    pub fn has_pages(self) -> bool {
        matches!(self, Self::Trace | Self::Span)
    }
}

/// The effect of a delivered message on one entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its kind.
    pub kind: Kind,
    /// Its id: a UUID in lower case with hyphens, or the client's text verbatim.
    pub id: String,
    /// Its project according to the message.
    pub project: Option<String>,
    /// The trace of a span according to the message.
    pub trace: Option<String>,
    /// The expected state.
    pub what: What,
}

/// The expected state of an entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It exists.
    There,
    /// It exists with the data of its create: not as the partial record of an update that preceded the create.
    Made,
    /// It exists, with a score of this name.
    Scored(String),
    /// Its scores were deleted; others may be left.
    Unscored,
    /// It was deleted, and so were its children.
    Gone,
}

/// The location of the entity ids in a message.
enum IdLocation {
    /// Each item, in this member.
    ParsedItem(&'static str),
    /// The array of ids.
    Ids,
    /// The path.
    Path,
}

/// The expectation after messages of a type: kind, location of the ids, and state.
fn table(message_type: MessageType) -> Option<(Kind, IdLocation, What)> {
    use IdLocation::{Ids, ParsedItem, Path};
    use MessageType as T;
    use What::{Gone, Made, There, Unscored};
    // The item supplies the name of the score.
    let scored = || What::Scored(String::new());
    Some(match message_type {
        T::CreateTrace | T::CreateTraceBatch => (Kind::Trace, ParsedItem("id"), Made),
        T::UpdateTrace => (Kind::Trace, Path, There),
        T::UpdateTraces => (Kind::Trace, Ids, There),
        T::DeleteTrace => (Kind::Trace, Path, Gone),
        T::DeleteTraces => (Kind::Trace, Ids, Gone),
        T::AddTraceFeedbackScoresBatch => (Kind::Trace, ParsedItem("id"), scored()),
        T::ScoreTrace => (Kind::Trace, Path, scored()),
        T::DeleteTraceScore => (Kind::Trace, Path, Unscored),
        T::CreateSpan | T::CreateSpansBatch => (Kind::Span, ParsedItem("id"), Made),
        T::UpdateSpan => (Kind::Span, Path, There),
        T::UpdateSpans => (Kind::Span, Ids, There),
        T::DeleteSpan => (Kind::Span, Path, Gone),
        T::AddSpanFeedbackScoresBatch => (Kind::Span, ParsedItem("id"), scored()),
        T::ScoreSpan => (Kind::Span, Path, scored()),
        T::DeleteSpanScore => (Kind::Span, Path, Unscored),
        T::AddThreadsFeedbackScoresBatch => (Kind::Thread, ParsedItem("thread_id"), scored()),
        T::DeleteThreadScores => (Kind::Thread, ParsedItem("thread_id"), Unscored),
        T::DeleteThreads => (Kind::Thread, Ids, Gone),
        T::CreateExperiment => (Kind::Experiment, ParsedItem("id"), There),
        T::UpdateExperiment => (Kind::Experiment, Path, There),
        T::UpdateExperiments | T::FinishExperiments => (Kind::Experiment, Ids, There),
        T::DeleteExperiments => (Kind::Experiment, Ids, Gone),
        T::CreateExperimentItemsBatch => (Kind::ExperimentItem, ParsedItem("id"), There),
        T::DeleteExperimentItems => (Kind::ExperimentItem, Ids, Gone),
        T::CreateDataset => (Kind::Dataset, ParsedItem("id"), There),
        T::PutDatasetItems => (Kind::DatasetItem, ParsedItem("id"), There),
        T::UpdateDatasetItem => (Kind::DatasetItem, Path, There),
        T::UpdateDatasetItems => (Kind::DatasetItem, Ids, There),
        T::DeleteDatasetItems => (Kind::DatasetItem, Ids, Gone),
        T::CreateOptimization | T::PutOptimization => (Kind::Optimization, ParsedItem("id"), There),
        T::UpdateOptimization => (Kind::Optimization, Path, There),
        T::CreateAttachment
        | T::OtlpTraces
        | T::GuardrailBatch
        | T::AddAssertionResultsBatch
        | T::UpdateTraceComment
        | T::UpdateSpanComment
        | T::UpdateThreadComment
        | T::DeleteTraceComments
        | T::DeleteSpanComments
        | T::DeleteThreadComments
        | T::OpenThread
        | T::CloseThreads
        | T::UpdateThread
        | T::UpdateThreads
        | T::PutExperimentItems
        | T::AddQueueItems
        | T::RemoveQueueItems
        | T::DeleteAttachments
        | T::AppendJobLogs
        | T::UnknownSdkRow => return None,
    })
}

/// Returns the effects of a delivered message; `None` if read-back does not cover it.
///
/// `path` is the message's, below the server's base.
pub fn facts(message_type: MessageType, method: &str, path: &str, content: &[u8]) -> Option<Vec<Fact>> {
    let (kind, names, what) = table(message_type)?;
    let path_id = match classify(method, path.split('?').next().unwrap_or_default()) {
        Route::Protected(write) => write.path_id,
        Route::Ping | Route::Upload(_) | Route::PassThrough => None,
    };
    let mut found = Vec::new();
    let read = read_items(message_type, content, |item| {
        let id = match (&names, &path_id) {
            (IdLocation::ParsedItem(member), _) => item.text(member),
            (IdLocation::Ids, _) => item.id.clone(),
            (IdLocation::Path, id) => id.clone(),
        };
        let what = match &what {
            What::Scored(_) => item.text("name").map(What::Scored),
            other => Some(other.clone()),
        };
        // Only threads have free-form ids; the server rejects other entities without a UUID.
        let id = id.filter(|id| kind == Kind::Thread || Uuid::try_parse(id).is_ok());
        if let (Some(id), Some(what)) = (id, what) {
            let (project, trace) = (item.text("project_name"), item.text("trace_id").map(|id| canonical(&id)));
            found.push(Fact { kind, id: canonical(&id), project, trace, what });
        }
    });
    match (read, names, path_id) {
        (Ok(()), _, _) => {}
        // A deletion by path has no body.
        (Err(_), IdLocation::Path, Some(id)) => {
            found.push(Fact { kind, id: canonical(&id), project: None, trace: None, what });
        }
        (Err(_), _, _) => return None,
    }
    Some(found)
}

/// Normalises the spelling of a UUID.
fn canonical(id: &str) -> String {
    Uuid::try_parse(id).map_or_else(|_| id.to_owned(), |uuid| uuid.to_string())
}

/// The entities of one lane that its delivered messages leave on the server and that were not verified yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations(BTreeMap<(Kind, String), Expected>);

/// An expected entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its project.
    pub project: Option<String>,
    /// The trace of a span.
    trace: Option<String>,
    /// Expected scores.
    pub scores: BTreeSet<String>,
    /// The server was queried by its id and did not return it, or not all of its scores.
    pub was_missing: bool,
    /// The entity was returned; scores are missing, or it is partial.
    pub was_shown: bool,
    /// A create of it was delivered.
    is_made: bool,
    /// It was returned as a partial record although its create was delivered.
    pub is_partial: bool,
}

impl Expectations {
    /// Applies the effect of a delivered message; messages are applied in the order of their confirmation.
    pub fn note(&mut self, fact: Fact) {
        let Fact { kind, id, project, trace, what } = fact;
        match what {
            What::Gone => {
                if kind == Kind::Trace {
                    // The spans of a deleted trace are deleted with it.
                    self.0.retain(|_, expected| expected.trace.as_ref() != Some(&id));
                }
                self.0.remove(&(kind, id));
            }
            What::Unscored => {
                if let Some(expected) = self.0.get_mut(&(kind, id)) {
                    expected.scores.clear();
                }
            }
            What::There | What::Made | What::Scored(_) => {
                let expected = self.0.entry((kind, id)).or_default();
                expected.project = expected.project.take().or(project);
                expected.trace = expected.trace.take().or(trace);
                expected.is_made |= what == What::Made;
                if let What::Scored(name) = what {
                    expected.scores.insert(name);
                }
            }
        }
    }

    /// Applies a response; returns whether the entity is completely verified.
    pub fn saw(&mut self, kind: Kind, shown: &Shown) -> bool {
        let key = (kind, shown.id.clone());
        let Some(expected) = self.0.get_mut(&key) else { return false };
        expected.was_shown = true;
        expected.is_partial = expected.is_made && shown.is_partial;
        if expected.is_partial {
            return false;
        }
        expected.scores.retain(|name| !shown.scores.contains(name));
        if expected.scores.is_empty() {
            self.0.remove(&key);
            return true;
        }
        false
    }

    /// Records that a query by id did not return everything expected of an entity.
    pub fn missed(&mut self, kind: Kind, id: &str) {
        if let Some(expected) = self.0.get_mut(&(kind, id.to_owned())) {
            expected.was_missing = true;
        }
    }

    /// Returns the expectation of an entity.
    pub fn get(&self, kind: Kind, id: &str) -> Option<&Expected> {
        self.0.get(&(kind, id.to_owned()))
    }

    /// Returns all expectations.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &str, &Expected)> {
        self.0.iter().map(|((kind, id), expected)| (*kind, id.as_str(), expected))
    }

    /// Returns the number of expected entities.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether no entity is expected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The parsed members of an item: the texts with one of these names.
#[derive(Default)]
struct ParsedItem {
    /// Of an array of ids.
    id: Option<String>,
    texts: Vec<(&'static str, String)>,
}

const MEMBERS: [&str; 5] = ["id", "thread_id", "trace_id", "project_name", "name"];

impl ParsedItem {
    fn text(&self, member: &str) -> Option<String> {
        // Of a duplicate member the last one counts, as in the server's parser.
        self.texts.iter().rev().find(|(name, _)| *name == member).map(|(_, text)| text.clone())
    }

    fn read(scanner: &mut Scanner<'_>) -> Result<Self, NotJson> {
        let mut item = Self::default();
        match scanner.peek()? {
            Json::String => item.id = Some(scanner.string()?.into_owned()),
            Json::Object => {
                scanner.object(|key, scanner| {
                    match MEMBERS.iter().find(|member| **member == key) {
                        Some(member) if scanner.peek()? == Json::String => {
                            item.texts.push((member, scanner.string()?.into_owned()));
                        }
                        _ => {
                            scanner.skip_value()?;
                        }
                    }
                    Ok(())
                })?;
            }
            Json::Array | Json::Null | Json::Scalar => {
                scanner.skip_value()?;
            }
        }
        Ok(item)
    }
}

fn read_items(message_type: MessageType, content: &[u8], mut each: impl FnMut(&ParsedItem)) -> Result<(), NotJson> {
    let mut scanner = Scanner::new(content)?;
    match (item_list(message_type), scanner.peek()?) {
        (Some(ItemList::Member(member)), Json::Object) => scanner.object(|key, scanner| {
            if key != member || scanner.peek()? != Json::Array {
                return scanner.skip_value().map(drop);
            }
            scanner
                .array(|scanner| {
                    each(&ParsedItem::read(scanner)?);
                    Ok(())
                })
                .map(drop)
        })?,
        (Some(ItemList::Body), _) | (Some(ItemList::Member(_)), _) => scanner.skip_value()?,
        (None, _) => {
            each(&ParsedItem::read(&mut scanner)?);
            return Ok(());
        }
    };
    Ok(())
}

/// A read-only request to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path and query below the server's base.
    pub path: String,
    /// The body of a `POST`.
    pub body: Option<String>,
}

/// Returns the request for one entity; the project is ignored if the id is sufficient.
pub fn one(kind: Kind, id: &str, project: Option<&str>) -> Read {
    let get = |path: String| Read { method: "GET", path: format!("v1/private/{path}"), body: None };
    match kind {
        Kind::Trace => get(format!("traces/{id}?strip_attachments=true")),
        Kind::Span => get(format!("spans/{id}?strip_attachments=true")),
        Kind::Thread => {
            let mut body = json!({ "thread_id": id, "truncate": true });
            if let Some(project) = project {
                body["project_name"] = project.into();
            }
            let path = "v1/private/traces/threads/retrieve".to_owned();
            Read { method: "POST", path, body: Some(body.to_string()) }
        }
        Kind::Experiment => get(format!("experiments/{id}")),
        Kind::ExperimentItem => get(format!("experiments/items/{id}")),
        Kind::Dataset => get(format!("datasets/{id}")),
        Kind::DatasetItem => get(format!("datasets/items/{id}")),
        Kind::Optimization => get(format!("optimizations/{id}")),
    }
}

/// Returns the request for a trace or a span; `None` for any other entity.
pub fn of_trace_or_span(entity: &EntityKey) -> Option<Read> {
    let kind = match entity.kind()? {
        EntityKind::Trace => Kind::Trace,
        EntityKind::Span => Kind::Span,
        _ => return None,
    };
    Some(one(kind, &entity.uuid().to_string(), None))
}

/// Page size; the server's own limit is 2,000.
pub const PAGE_LIMIT: usize = 1000;

/// Fields excluded from a page to keep it cheap: everything except ids, starts and scores, of the fields that both
/// kinds have.
pub(super) const EXCLUDED: [&str; 13] = [
    "name",
    "end_time",
    "input",
    "output",
    "metadata",
    "tags",
    "error_info",
    "usage",
    "comments",
    "total_estimated_cost",
    "duration",
    "created_by",
    "last_updated_by",
];

/// Returns the request for a page of a project's traces or spans, after the cursor `after`; `None` for kinds without
/// pages.
pub fn page(kind: Kind, project: &str, after: Option<&str>) -> Option<Read> {
    let list = match kind {
        Kind::Trace => "traces",
        Kind::Span => "spans",
        Kind::Thread
        | Kind::Experiment
        | Kind::ExperimentItem
        | Kind::Dataset
        | Kind::DatasetItem
        | Kind::Optimization => return None,
    };
    let mut body = json!({ "project_name": project, "limit": PAGE_LIMIT, "truncate": true, "exclude": EXCLUDED });
    if let Some(after) = after {
        body["last_retrieved_id"] = after.into();
    }
    Some(Read { method: "POST", path: format!("v1/private/{list}/search"), body: Some(body.to_string()) })
}

/// Returns the cursor of a page that begins at `id`: pages are in descending order of ids.
pub fn behind(id: &str) -> Option<String> {
    let uuid = Uuid::try_parse(id).ok()?;
    Some(Uuid::from_u128(uuid.as_u128().checked_add(1)?).to_string())
}

/// The project of entities without one (OpenAPI file: "If null, the default project is used").
pub const DEFAULT_PROJECT: &str = "Default Project";

/// One entity in a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// The names of its scores.
    pub scores: BTreeSet<String>,
    /// It has no start: the create of the trace or span is not visible (Opik issue 8121: its name, start and input are
    /// missing).
    pub is_partial: bool,
}

/// Returns what the answer to a read of [`one`] shows; `None` when it is no such answer.
pub fn shown(answer: &[u8]) -> Option<Shown> {
    let mut scanner = Scanner::new(answer).ok()?;
    let shown = read_shown(&mut scanner).ok()?;
    scanner.end().ok()?;
    Some(shown)
}

/// Returns what a [`page`] shows: one JSON text a line. Lines that are no entity, such as the error that the server may
/// end a stream with, show nothing.
pub fn shown_in_page(answer: &[u8]) -> Vec<Shown> {
    let lines: Vec<Range<usize>> = {
        let mut start = 0;
        let line = |line: &[u8]| {
            let range = start..start + line.len();
            start += line.len() + 1;
            range
        };
        answer.split(|byte| *byte == b'\n').map(line).collect()
    };
    lines.into_iter().filter_map(|line| shown(&answer[line])).filter(|shown| !shown.id.is_empty()).collect()
}

fn read_shown(scanner: &mut Scanner<'_>) -> Result<Shown, NotJson> {
    let mut shown = Shown { is_partial: true, ..Shown::default() };
    scanner.object(|key, scanner| {
        match (key, scanner.peek()?) {
            ("id", Json::String) => shown.id = canonical(&scanner.string()?),
            // An unset time is the epoch, in a column without nulls.
            ("start_time", Json::String) => shown.is_partial = scanner.string()?.starts_with("1970-01-01T00:00:00"),
            ("feedback_scores", Json::Array) => {
                scanner.array(|scanner| {
                    shown.scores.extend(ParsedItem::read(scanner)?.text("name"));
                    Ok(())
                })?;
            }
            _ => {
                scanner.skip_value()?;
            }
        }
        Ok(())
    })?;
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a20445-0b53-7443-881b-86277651b909";
    const OTHER: &str = "01a20445-0b53-7443-881b-86277651b910";

    fn fact(kind: Kind, id: &str, project: Option<&str>, what: What) -> Fact {
        Fact { kind, id: id.into(), project: project.map(Into::into), trace: None, what }
    }

    #[test]
    fn delivered_messages_have_expected_effects() {
        use MessageType as T;
        let path = |kind: &str| format!("v1/private/{kind}/{ID}");
        let scored = |name: &str| What::Scored(name.into());
        for (message_type, method, path, body, expected) in [
            (
                T::CreateTraceBatch,
                "POST",
                "v1/private/traces/batch".to_owned(),
                format!(
                    r#"{{"traces":[{{"id":"{}","x":NaN,"project_name":"p"}},{{"id":"{OTHER}"}}]}}"#,
                    ID.to_uppercase()
                ),
                vec![fact(Kind::Trace, ID, Some("p"), What::Made), fact(Kind::Trace, OTHER, None, What::Made)],
            ),
            (
                T::UpdateSpan,
                "PATCH",
                path("spans"),
                r#"{"project_name":"p"}"#.to_owned(),
                vec![fact(Kind::Span, ID, Some("p"), What::There)],
            ),
            (
                T::AddSpanFeedbackScoresBatch,
                "PUT",
                "v1/private/spans/feedback-scores".to_owned(),
                format!(r#"{{"scores":[{{"id":"{ID}","name":"a","value":1}},{{"id":"{ID}","value":1}}]}}"#),
                vec![fact(Kind::Span, ID, None, scored("a"))],
            ),
            (
                T::AddThreadsFeedbackScoresBatch,
                "PUT",
                "v1/private/traces/threads/feedback-scores".to_owned(),
                r#"{"scores":[{"thread_id":"chat 7","name":"a","project_name":"p"}]}"#.to_owned(),
                vec![fact(Kind::Thread, "chat 7", Some("p"), scored("a"))],
            ),
            (T::DeleteTrace, "DELETE", path("traces"), String::new(), vec![fact(Kind::Trace, ID, None, What::Gone)]),
            (
                T::DeleteTraces,
                "POST",
                "v1/private/traces/delete".to_owned(),
                format!(r#"{{"ids":["{ID}"]}}"#),
                vec![fact(Kind::Trace, ID, None, What::Gone)],
            ),
        ] {
            let found = facts(message_type, method, &path, body.as_bytes());
            assert_eq!(found.as_deref(), Some(&expected[..]), "{message_type} {body}");
        }
        assert_eq!(facts(T::OtlpTraces, "POST", "v1/private/otel/v1/traces", b"{}"), None);
        assert_eq!(facts(T::CreateTrace, "POST", "v1/private/traces", b"{"), None);
    }

    #[test]
    fn later_deletions_cancel_expectations() {
        let mut expected = Expectations::default();
        expected.note(fact(Kind::Trace, ID, Some("p"), What::There));
        expected.note(fact(Kind::Trace, ID, None, What::Scored("a".into())));
        expected.note(Fact { trace: Some(ID.into()), ..fact(Kind::Span, OTHER, None, What::There) });
        assert_eq!(expected.len(), 2);
        let scores = |scores: &[&str]| scores.iter().map(|s| (*s).to_owned()).collect();
        let shown = |names: &[&str]| Shown { id: ID.into(), scores: scores(names), is_partial: false };
        assert!(!expected.saw(Kind::Trace, &shown(&[])), "its score is missing");
        assert!(expected.get(Kind::Trace, ID).is_some_and(|trace| trace.was_shown && trace.project.is_some()));
        assert!(expected.clone().saw(Kind::Trace, &shown(&["a", "b"])));
        expected.note(fact(Kind::Trace, ID, None, What::Gone));
        assert!(expected.is_empty(), "a deleted trace or its span is reported as missing");
    }

    #[test]
    fn responses_are_parsed_for_ids_and_scores() {
        let line = format!(r#"{{"id":"{ID}","feedback_scores":[{{"name":"a","value":1}},{{"name":"b"}}],"more":[]}}"#);
        let expected = Shown { id: ID.into(), scores: ["a".to_owned(), "b".to_owned()].into(), is_partial: true };
        assert_eq!(shown(line.as_bytes()), Some(expected.clone()));
        let page =
            format!("{line}\n\r\n{{\"code\":500,\"message\":\"broken\"}}\n{{\"id\":\"{OTHER}\"}}\n{{\"id\":\"cut");
        let other = Shown { id: OTHER.into(), scores: BTreeSet::new(), is_partial: true };
        assert_eq!(shown_in_page(page.as_bytes()), [expected, other]);
        assert_eq!(shown(b"<html>"), None);
    }

    #[test]
    fn traces_without_start_are_partial_only_after_a_create() {
        for (what, answer, expected) in [
            (What::Made, r#""start_time":"2026-03-01T04:00:16Z""#, false),
            (What::Made, r#""output":{}"#, true),
            (What::Made, r#""start_time":null"#, true),
            (What::Made, r#""start_time":"1970-01-01T00:00:00Z""#, true),
            (What::There, r#""output":{}"#, false),
        ] {
            let mut expectations = Expectations::default();
            expectations.note(fact(Kind::Trace, ID, None, what.clone()));
            let answer = format!(r#"{{"id":"{ID}",{answer}}}"#);
            let is_whole = expectations.saw(Kind::Trace, &shown(answer.as_bytes()).expect("an entity"));
            assert_eq!(!is_whole, expected, "{what:?} {answer}");
            assert_eq!(expectations.get(Kind::Trace, ID).is_some_and(|trace| trace.is_partial), expected);
        }
    }

    #[test]
    fn pages_begin_with_the_requested_id() {
        assert_eq!(behind(ID).as_deref(), Some("01a20445-0b53-7443-881b-86277651b90a"));
        assert_eq!(behind("ffffffff-ffff-ffff-ffff-ffffffffffff"), None);
        assert_eq!(behind("chat 7"), None);
        let read = page(Kind::Span, "p", behind(ID).as_deref()).expect("spans have pages");
        assert_eq!(read.path, "v1/private/spans/search");
        assert!(read.body.is_some_and(|body| body.contains("b90a")));
        assert_eq!(page(Kind::Dataset, "p", None), None);
    }
}
