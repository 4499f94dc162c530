//! The server's checks of a request, and the writes that it contains.
//!
//! [`writes`] turns a request to one of the message endpoints, or to one of the other writes whose state is kept, into
//! the [`Write`]s it asks for, one per entity, or returns why the server refuses it. Facts come from the protocol
//! dossier, sections a and f; unknown fields are
//! ignored as the server ignores them, and a null field means "not given".

use std::fmt;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::clock;

pub(crate) type Fields = Map<String, Value>;

/// Items that one batch may hold.
const BATCH_ITEMS_MAX: usize = 1_000;
const SCORE_VALUE_MAX: f64 = 1e9;
const UPDATE_TAGS_MAX: usize = 50;
const SPAN_TYPES: &[&str] = &["general", "tool", "llm", "guardrail"];
const SOURCES: &[&str] = &["sdk", "experiment", "playground", "optimization", "evaluator"];
const SCORE_SOURCES: &[&str] = &["ui", "sdk", "online_scoring"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Trace,
    Span,
    Thread,
    ExperimentItem,
    Experiment,
    Dataset,
    DatasetItem,
    /// A span of an OTLP request; its id is the trace's and its own.
    OtelSpan,
}

/// One entity of a workspace: the unit of order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub kind: Kind,
    pub id: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Trace => "trace",
            Kind::Span => "span",
            Kind::Thread => "thread",
            Kind::ExperimentItem => "experiment item",
            Kind::Experiment => "experiment",
            Kind::Dataset => "dataset",
            Kind::DatasetItem => "dataset item",
            Kind::OtelSpan => "OTel span",
        };
        write!(f, "{kind} {}", self.id)
    }
}

/// A change of one entity.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// A create on its own: leaves a full record alone.
    CreateOne(Fields),
    /// A create in a batch: the newest `last_updated_at` wins.
    CreateInBatch(Fields),
    Update(Fields),
    /// An update of something other than a trace or span: simply merged, and it must be there.
    Set(Fields),
    Delete,
    Score {
        name: String,
        fields: Fields,
    },
    Assertion {
        name: String,
        fields: Fields,
    },
    Guardrail(Fields),
}

impl Change {
    /// Returns whether both ask for the same, however they travelled: a create keeps its meaning in a batch.
    pub(crate) fn same_content(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::CreateOne(a) | Self::CreateInBatch(a), Self::CreateOne(b) | Self::CreateInBatch(b)) => a == b,
            _ => self == other,
        }
    }

    pub(crate) fn is_create(&self) -> bool {
        matches!(self, Self::CreateOne(_) | Self::CreateInBatch(_))
    }

    pub(crate) fn is_update(&self) -> bool {
        matches!(self, Self::Update(_))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateOne(_) => write!(f, "create"),
            Self::CreateInBatch(_) => write!(f, "create in a batch"),
            Self::Update(fields) => write!(f, "update of {:?}", fields.keys().collect::<Vec<_>>()),
            Self::Set(fields) => write!(f, "change to {fields:?}"),
            Self::Delete => write!(f, "deletion"),
            Self::Score { name, fields } => write!(f, "score {name:?} = {}", fields["value"]),
            Self::Assertion { name, .. } => write!(f, "assertion result {name:?}"),
            Self::Guardrail(_) => write!(f, "guardrail result"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Write {
    pub key: Key,
    pub change: Change,
    /// The client gave no id, so the server made this one up: a repeat would make a second record.
    pub id_invented: bool,
}

/// One of the message endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Endpoint {
    CreateOne(Kind),
    CreateBatch(Kind),
    Update(Kind, String),
    Scores(Kind),
    Guardrails,
    AssertionResults,
    ExperimentItems,
    DeleteOne(Kind, String),
    /// Ids in the array of this member.
    DeleteMany(Kind, &'static str),
    /// Threads are named, and their status becomes this.
    Threads(&'static str),
    DatasetItems,
    FinishExperiments,
    UpdateExperiment(String),
    Otlp,
}

impl Endpoint {
    /// Finds the endpoint by method and by the path after the prefix.
    pub(crate) fn of(method: &str, path: &str) -> Option<Self> {
        let path = path.strip_prefix("/v1/private/")?;
        Some(match (method, path) {
            ("POST", "traces") => Self::CreateOne(Kind::Trace),
            ("POST", "spans") => Self::CreateOne(Kind::Span),
            ("POST", "traces/batch") => Self::CreateBatch(Kind::Trace),
            ("POST", "spans/batch") => Self::CreateBatch(Kind::Span),
            ("PUT", "traces/feedback-scores") => Self::Scores(Kind::Trace),
            ("PUT", "spans/feedback-scores") => Self::Scores(Kind::Span),
            ("PUT", "traces/threads/feedback-scores") => Self::Scores(Kind::Thread),
            ("POST", "guardrails") => Self::Guardrails,
            ("PUT", "assertion-results") => Self::AssertionResults,
            ("POST", "experiments/items") => Self::ExperimentItems,
            ("POST", "traces/delete") => Self::DeleteMany(Kind::Trace, "ids"),
            ("PUT", "traces/threads/close") => Self::Threads("closed"),
            ("PUT", "traces/threads/open") => Self::Threads("open"),
            ("POST", "datasets") => Self::CreateOne(Kind::Dataset),
            ("PUT", "datasets/items") => Self::DatasetItems,
            ("POST", "datasets/items/delete") => Self::DeleteMany(Kind::DatasetItem, "item_ids"),
            ("POST", "experiments") => Self::CreateOne(Kind::Experiment),
            ("POST", "experiments/finish") => Self::FinishExperiments,
            ("POST", "experiments/delete") => Self::DeleteMany(Kind::Experiment, "ids"),
            ("POST", "experiments/items/delete") => Self::DeleteMany(Kind::ExperimentItem, "ids"),
            ("POST", "otel/v1/traces") => Self::Otlp,
            ("DELETE", _) => match path.split_once('/')? {
                ("traces", id) => Self::DeleteOne(Kind::Trace, id.to_owned()),
                ("spans", id) => Self::DeleteOne(Kind::Span, id.to_owned()),
                _ => return None,
            },
            ("PATCH", _) if path.starts_with("experiments/") && !path.ends_with("/batch") => {
                Self::UpdateExperiment(path.strip_prefix("experiments/")?.to_owned())
            }
            ("PATCH", _) => {
                let (kind, id) = match path.split_once('/')? {
                    ("traces", id) => (Kind::Trace, id),
                    ("spans", id) => (Kind::Span, id),
                    _ => return None,
                };
                (!id.is_empty() && !id.contains('/') && id != "batch").then(|| Self::Update(kind, id.to_owned()))?
            }
            _ => return None,
        })
    }

    pub(crate) fn success_status(&self) -> u16 {
        match self {
            Self::CreateOne(_) => 201,
            Self::Otlp => 200,
            _ => 204,
        }
    }
}

/// Returns what a request asks for, or why the server refuses it.
pub(crate) fn writes(endpoint: &Endpoint, body: &Value) -> Result<Vec<Write>, String> {
    match endpoint {
        Endpoint::CreateOne(kind @ (Kind::Dataset | Kind::Experiment)) => Ok(vec![named(*kind, body)?]),
        Endpoint::CreateOne(kind) => Ok(vec![create(*kind, body, false)?]),
        Endpoint::CreateBatch(kind) => {
            let list = if *kind == Kind::Trace { "traces" } else { "spans" };
            each(body, list, |item| create(*kind, item, true))
        }
        Endpoint::Update(kind, id) => Ok(vec![update(*kind, id, body)?]),
        Endpoint::Scores(kind) => each(body, "scores", |item| score(*kind, item)),
        Endpoint::Guardrails => each(body, "guardrails", guardrail),
        Endpoint::AssertionResults => {
            let kind = match body.get("entity_type").and_then(Value::as_str) {
                Some("TRACE") => Kind::Trace,
                Some("SPAN") => Kind::Span,
                Some("THREAD") => Kind::Thread,
                _ => return Err("entity_type must be TRACE, SPAN or THREAD".into()),
            };
            each(body, "assertion_results", |item| assertion(kind, item))
        }
        Endpoint::ExperimentItems => each(body, "experiment_items", experiment_item),
        Endpoint::DeleteOne(kind, id) => Ok(vec![change(*kind, uuid7(id)?, Change::Delete)]),
        Endpoint::DeleteMany(kind, list) => {
            ids(body, list)?.into_iter().map(|id| Ok(change(*kind, uuid7(&id)?, Change::Delete))).collect()
        }
        Endpoint::Threads(status) => {
            let one = body.get("thread_id").and_then(Value::as_str).map(str::to_owned);
            let many = if body.get("thread_ids").is_some() { ids(body, "thread_ids")? } else { Vec::new() };
            let threads: Vec<String> = one.into_iter().chain(many).collect();
            if threads.is_empty() {
                return Err("thread_id or thread_ids must be given".into());
            }
            let set = Fields::from_iter([("status".to_owned(), Value::from(*status))]);
            Ok(threads.into_iter().map(|id| change(Kind::Thread, id, Change::Set(set.clone()))).collect())
        }
        Endpoint::DatasetItems => {
            if body.get("dataset_name").is_none() && body.get("dataset_id").is_none() {
                return Err("dataset_name or dataset_id must be given".into());
            }
            each(body, "items", dataset_item)
        }
        Endpoint::FinishExperiments => {
            let set = Fields::from_iter([("status".to_owned(), Value::from("finished"))]);
            let ids = ids(body, "ids")?.into_iter();
            ids.map(|id| Ok(change(Kind::Experiment, uuid7(&id)?, Change::Set(set.clone())))).collect()
        }
        Endpoint::UpdateExperiment(id) => Ok(vec![change(Kind::Experiment, uuid7(id)?, Change::Set(given(body)?))]),
        Endpoint::Otlp => Ok(otel_spans(body)),
    }
}

fn each(body: &Value, list: &str, read: impl Fn(&Value) -> Result<Write, String>) -> Result<Vec<Write>, String> {
    let items = body.get(list).and_then(Value::as_array).ok_or_else(|| format!("{list} must be an array"))?;
    if items.is_empty() || items.len() > BATCH_ITEMS_MAX {
        return Err(format!("{list} size must be between 1 and {BATCH_ITEMS_MAX}, it is {}", items.len()));
    }
    items.iter().enumerate().map(|(at, item)| read(item).map_err(|why| format!("{list}[{at}]: {why}"))).collect()
}

fn change(kind: Kind, id: String, change: Change) -> Write {
    Write { key: Key { kind, id }, change, id_invented: false }
}

fn ids(body: &Value, list: &str) -> Result<Vec<String>, String> {
    let items = body.get(list).and_then(Value::as_array).ok_or_else(|| format!("{list} must be an array"))?;
    if items.is_empty() || items.len() > BATCH_ITEMS_MAX {
        return Err(format!("{list} size must be between 1 and {BATCH_ITEMS_MAX}"));
    }
    items.iter().map(|id| id.as_str().map(str::to_owned).ok_or_else(|| format!("{list} must hold texts"))).collect()
}

/// A dataset or an experiment.
fn named(kind: Kind, item: &Value) -> Result<Write, String> {
    let fields = given(item)?;
    let (id, id_invented) = own_id(&fields)?;
    required(&fields, if kind == Kind::Dataset { "name" } else { "dataset_name" })?;
    Ok(Write { key: Key { kind, id }, change: Change::CreateOne(fields), id_invented })
}

fn dataset_item(item: &Value) -> Result<Write, String> {
    let fields = given(item)?;
    let (id, id_invented) = own_id(&fields)?;
    required(&fields, "source")?;
    fields.get("data").filter(|data| data.is_object()).ok_or("data must be an object")?;
    Ok(Write { key: Key { kind: Kind::DatasetItem, id }, change: Change::CreateInBatch(fields), id_invented })
}

/// The spans of an OTLP request in OTLP's JSON.
fn otel_spans(body: &Value) -> Vec<Write> {
    let list = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let scopes = list(body, "resourceSpans").into_iter().flat_map(|resource| list(&resource, "scopeSpans"));
    let spans = scopes.flat_map(|scope| list(&scope, "spans"));
    let text = |span: &Value, name: &str| span.get(name).and_then(Value::as_str).unwrap_or_default().to_lowercase();
    let write = |span: Value| {
        let id = format!("{}:{}", text(&span, "traceId"), text(&span, "spanId"));
        let fields = Fields::from_iter([("name".to_owned(), span.get("name").cloned().unwrap_or_default())]);
        change(Kind::OtelSpan, id, Change::CreateInBatch(fields))
    };
    spans.map(write).collect()
}

fn create(kind: Kind, item: &Value, batch: bool) -> Result<Write, String> {
    let fields = given(item)?;
    let (id, id_invented) = own_id(&fields)?;
    required_time(&fields, "start_time")?;
    time(&fields, "last_updated_at")?;
    entity_fields(kind, &fields)?;
    let change = if batch { Change::CreateInBatch(fields) } else { Change::CreateOne(fields) };
    Ok(Write { key: Key { kind, id }, change, id_invented })
}

fn update(kind: Kind, id: &str, item: &Value) -> Result<Write, String> {
    let fields = given(item)?;
    if kind == Kind::Span {
        required_uuid(&fields, "trace_id")?;
    }
    entity_fields(kind, &fields)?;
    for tags in ["tags", "tags_to_add", "tags_to_remove"] {
        if fields.get(tags).and_then(Value::as_array).is_some_and(|tags| tags.len() > UPDATE_TAGS_MAX) {
            return Err(format!("{tags} size must be between 0 and {UPDATE_TAGS_MAX}"));
        }
    }
    Ok(Write { key: Key { kind, id: uuid7(id)? }, change: Change::Update(fields), id_invented: false })
}

/// The common part of creates and updates of traces and spans.
fn entity_fields(kind: Kind, fields: &Fields) -> Result<(), String> {
    project(fields)?;
    time(fields, "end_time")?;
    one_of(fields, "source", SOURCES)?;
    for name in ["name", "thread_id", "environment", "model", "provider"] {
        optional(fields, name, "a string", Value::is_string)?;
    }
    optional(fields, "tags", "an array of strings", |tags| {
        tags.as_array().is_some_and(|tags| tags.iter().all(Value::is_string))
    })?;
    optional(fields, "error_info", "an object", Value::is_object)?;
    if kind == Kind::Span {
        one_of(fields, "type", SPAN_TYPES)?;
        uuid_if_given(fields, "trace_id")?;
        uuid_if_given(fields, "parent_span_id")?;
        optional(fields, "usage", "an object of whole numbers", |usage| {
            usage.as_object().is_some_and(|usage| usage.values().all(|n| n.is_i64() || n.is_u64()))
        })?;
    }
    Ok(())
}

fn score(kind: Kind, item: &Value) -> Result<Write, String> {
    let fields = given(item)?;
    let id = if kind == Kind::Thread { required(&fields, "thread_id")? } else { uuid7(&required(&fields, "id")?)? };
    let name = required(&fields, "name")?;
    project(&fields)?;
    required(&fields, "source")?;
    one_of(&fields, "source", SCORE_SOURCES)?;
    let value = fields.get("value").and_then(Value::as_f64).ok_or("value must be a number")?;
    if value.abs() > SCORE_VALUE_MAX {
        return Err("value is out of range".into());
    }
    Ok(Write { key: Key { kind, id }, change: Change::Score { name, fields }, id_invented: false })
}

fn guardrail(item: &Value) -> Result<Write, String> {
    let fields = given(item)?;
    let id = uuid7(&required(&fields, "entity_id")?)?;
    required_uuid(&fields, "secondary_id")?;
    project(&fields)?;
    for (name, allowed) in [("name", ["TOPIC", "PII"]), ("result", ["passed", "failed"])] {
        required(&fields, name)?;
        one_of(&fields, name, &allowed)?;
    }
    for name in ["config", "details"] {
        fields.get(name).ok_or_else(|| format!("{name} must not be null"))?;
    }
    Ok(Write { key: Key { kind: Kind::Trace, id }, change: Change::Guardrail(fields), id_invented: false })
}

fn assertion(kind: Kind, item: &Value) -> Result<Write, String> {
    let fields = given(item)?;
    let id = required(&fields, "entity_id")?;
    let id = if kind == Kind::Thread { id } else { uuid7(&id)? };
    let name = required(&fields, "name")?;
    project(&fields)?;
    required(&fields, "status")?;
    one_of(&fields, "status", &["passed", "failed"])?;
    required(&fields, "source")?;
    Ok(Write { key: Key { kind, id }, change: Change::Assertion { name, fields }, id_invented: false })
}

fn experiment_item(item: &Value) -> Result<Write, String> {
    let fields = given(item)?;
    let (id, id_invented) = own_id(&fields)?;
    for name in ["experiment_id", "dataset_item_id", "trace_id"] {
        required_uuid(&fields, name)?;
    }
    project(&fields)?;
    let key = Key { kind: Kind::ExperimentItem, id };
    Ok(Write { key, change: Change::CreateInBatch(fields), id_invented })
}

/// The fields of an object that are not null.
fn given(item: &Value) -> Result<Fields, String> {
    let object = item.as_object().ok_or("an object is expected")?;
    Ok(object.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect())
}

fn own_id(fields: &Fields) -> Result<(String, bool), String> {
    match fields.get("id") {
        None => Ok((Uuid::now_v7().to_string(), true)),
        Some(id) => Ok((uuid7(id.as_str().ok_or("id must be a UUID")?)?, false)),
    }
}

fn uuid7(text: &str) -> Result<String, String> {
    let id = Uuid::parse_str(text).map_err(|_| format!("{text:?} is not a UUID"))?;
    if id.get_version_num() != 7 {
        return Err(format!("{text} must be a version 7 UUID"));
    }
    Ok(id.to_string())
}

fn required(fields: &Fields, name: &str) -> Result<String, String> {
    let text = fields.get(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    text.map(str::to_owned).ok_or_else(|| format!("{name} must not be blank"))
}

fn required_uuid(fields: &Fields, name: &str) -> Result<(), String> {
    required(fields, name)?;
    uuid_if_given(fields, name)
}

fn uuid_if_given(fields: &Fields, name: &str) -> Result<(), String> {
    optional(fields, name, "a UUID", |id| id.as_str().is_some_and(|id| Uuid::parse_str(id).is_ok()))
}

fn required_time(fields: &Fields, name: &str) -> Result<(), String> {
    required(fields, name)?;
    time(fields, name)
}

fn time(fields: &Fields, name: &str) -> Result<(), String> {
    optional(fields, name, "a time with an offset", |at| at.as_str().and_then(clock::parse).is_some())
}

fn project(fields: &Fields) -> Result<(), String> {
    optional(fields, "project_name", "not blank", |name| name.as_str().is_some_and(|name| !name.trim().is_empty()))
}

fn one_of(fields: &Fields, name: &str, allowed: &[&str]) -> Result<(), String> {
    optional(fields, name, &format!("one of {allowed:?}"), |v| v.as_str().is_some_and(|v| allowed.contains(&v)))
}

fn optional(fields: &Fields, name: &str, what: &str, valid: impl Fn(&Value) -> bool) -> Result<(), String> {
    match fields.get(name) {
        Some(value) if !valid(value) => Err(format!("{name} must be {what}")),
        _ => Ok(()),
    }
}
