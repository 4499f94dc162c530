//! OTLP as the real server takes it: first the traces of its root spans, by single creates, then all its spans by one
//! insert. A trace that is there refuses the whole request with 409, and no span of it is stored.
//!
//! Facts: `OpenTelemetryService`, `OpenTelemetryMapper` and `TraceService` of the server, and its pull requests 6461
//! (`opik.trace_id`) and 7504 (one create for each trace).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};
use uuid::Uuid;

use super::Shared;
use super::check::{Key, Kind};
use super::clock;
use super::script::Answer;

/// Which server it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    /// Takes `opik.trace_id`, and makes one trace for all roots that share it.
    #[default]
    New,
    /// Before April 2026: passes that attribute over, and makes a trace for each root.
    Old,
    /// Old, and without any read: no server of Opik's, but what a stub may be.
    WithoutReads,
    /// New, and shows the traces of OTLP by their id only.
    WithoutSearch,
    /// New, and shows the traces of OTLP to no read, as a server that is late with them.
    Late,
}

impl Version {
    fn is_new(self) -> bool {
        matches!(self, Self::New | Self::WithoutSearch | Self::Late)
    }
}

/// A span as the server keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredSpan {
    pub id: Uuid,
    pub trace: Uuid,
    pub parent: Option<Uuid>,
}

#[derive(Debug)]
struct Trace {
    project: String,
    name: Value,
    start_ms: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Otlp {
    pub version: Version,
    /// The cache: workspace, project and OTel id.
    ids: HashMap<(String, String, String), Uuid>,
    traces: BTreeMap<(String, Uuid), Trace>,
    spans: BTreeMap<(String, String), StoredSpan>,
}

impl Otlp {
    pub(crate) fn forget(&mut self) {
        self.ids.clear();
    }

    pub(crate) fn spans_of(&self, workspace: &str) -> BTreeMap<String, StoredSpan> {
        let spans = self.spans.iter().filter(|((of, _), _)| of == workspace);
        spans.map(|((_, id), span)| (id.clone(), span.clone())).collect()
    }

    pub(crate) fn traces_of(&self, workspace: &str) -> usize {
        self.traces.keys().filter(|(of, _)| of == workspace).count()
    }

    /// Returns all that searches show of a workspace.
    pub(crate) fn found(&self, workspace: &str) -> Vec<(Key, Value)> {
        if self.version == Version::WithoutSearch { Vec::new() } else { self.all(workspace) }
    }

    /// Returns all that reads show of a workspace.
    pub(crate) fn all(&self, workspace: &str) -> Vec<(Key, Value)> {
        if matches!(self.version, Version::WithoutReads | Version::Late) {
            return Vec::new();
        }
        let of = |kind, id: Uuid| Key { kind, id: id.to_string() };
        let traces = self.traces.iter().filter(|((of, _), _)| of == workspace).map(|((_, id), trace)| {
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(trace.start_ms);
            let start_time = humantime::format_rfc3339_millis(at).to_string();
            let id = *id;
            let body = json!({ "id": id.to_string(), "name": trace.name, "project_name": trace.project, "start_time": start_time });
            (of(Kind::Trace, id), body)
        });
        let spans = self.spans.iter().filter(|((of, _), _)| of == workspace);
        let spans = spans.map(|(_, span)| {
            (of(Kind::Span, span.id), json!({ "id": span.id.to_string(), "trace_id": span.trace.to_string() }))
        });
        traces.chain(spans).collect()
    }

    pub(crate) fn as_read(&self, workspace: &str, kind: Kind, id: &str) -> Option<Value> {
        self.all(workspace).into_iter().find(|(key, _)| key.kind == kind && key.id == id).map(|(_, body)| body)
    }

    fn spans(&self, body: &Value) -> Vec<Span> {
        let list = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        let scopes = list(body, "resourceSpans").into_iter().flat_map(|resource| list(&resource, "scopeSpans"));
        scopes.flat_map(|scope| list(&scope, "spans")).map(|span| Span::of(&span, self.version)).collect()
    }
}

/// A span of a request.
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: Value,
    start_ms: u64,
    opik_trace: Option<Uuid>,
    opik_parent: Option<Uuid>,
    opik_span: Option<Uuid>,
}

impl Span {
    fn of(span: &Value, version: Version) -> Self {
        let text = |name: &str| span.get(name).and_then(Value::as_str).unwrap_or_default().to_lowercase();
        let attribute = |wanted: &str| {
            let attributes = span.get("attributes").and_then(Value::as_array)?;
            let first = attributes.iter().filter(|attribute| attribute["key"] == wanted).find_map(|attribute| {
                attribute["value"]["stringValue"].as_str().filter(|text| !text.trim().is_empty())
            })?;
            let id = Uuid::try_parse(first).ok().filter(|id| id.get_version_num() == 7);
            id.filter(|_| version.is_new())
        };
        let nanoseconds: u64 = text("startTimeUnixNano").parse().unwrap_or(0);
        Self {
            trace: text("traceId"),
            id: text("spanId"),
            parent: text("parentSpanId"),
            name: span.get("name").cloned().unwrap_or_default(),
            start_ms: nanoseconds / 1_000_000,
            opik_trace: attribute("opik.trace_id"),
            opik_parent: attribute("opik.parent_span_id"),
            opik_span: attribute("opik.span_id"),
        }
    }

    fn stored(&self, mapped: Uuid) -> StoredSpan {
        let time_ms = (mapped.as_u128() >> 80) as u64;
        let parent = match self.opik_trace {
            Some(_) => self.opik_parent,
            None if self.parent.is_empty() || self.parent == self.trace => None,
            None => Some(opik_id(&self.parent, time_ms)),
        };
        StoredSpan {
            id: self.opik_span.unwrap_or_else(|| opik_id(&self.id, time_ms)),
            trace: self.opik_trace.unwrap_or(mapped),
            parent,
        }
    }
}

/// Opik's id of something that OpenTelemetry knows by these digits: a time, and the beginning of a hash.
fn opik_id(digits: &str, time_ms: u64) -> Uuid {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(pair).collect();
    let bytes = bytes.unwrap_or_else(|| digits.as_bytes().to_vec());
    let hash = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let mut id = [0; 16];
    id[..6].copy_from_slice(&time_ms.to_be_bytes()[2..]);
    id[6..].copy_from_slice(&hash.as_ref()[..10]);
    id[6] = id[6] & 0x0f | 0x70;
    id[8] = id[8] & 0x3f | 0x80;
    Uuid::from_bytes(id)
}

impl Shared {
    /// Makes the traces of a request's root spans, `most` of them at most; the error is a 409.
    pub(super) fn make_otel_traces(&mut self, seq: usize, most: Option<usize>) -> Result<(), Answer> {
        let request = self.requests[seq].clone();
        let project = request.header("projectName").unwrap_or("Default Project").to_owned();
        let spans = self.otlp.spans(request.json.as_deref().unwrap_or(&Value::Null));
        let mut mapped: HashMap<String, Uuid> = HashMap::new();
        for span in &spans {
            let key = (request.workspace.clone(), project.clone(), span.trace.clone());
            let earliest = spans.iter().filter(|other| other.trace == span.trace).map(|other| other.start_ms).min();
            let made = opik_id(&span.trace, earliest.unwrap_or_default());
            mapped.insert(span.trace.clone(), *self.otlp.ids.entry(key).or_insert(made));
        }
        let stored: Vec<(&Span, StoredSpan)> =
            spans.iter().map(|span| (span, span.stored(mapped[&span.trace]))).collect();
        let attached: BTreeSet<Uuid> = spans.iter().filter_map(|span| span.opik_trace).collect();
        let mut seen = BTreeSet::new();
        let is_new = self.otlp.version.is_new();
        let mut roots: Vec<_> = stored.iter().filter(|(_, span)| span.parent.is_none()).collect();
        roots.retain(|(_, span)| !attached.contains(&span.trace) && (!is_new || seen.insert(span.trace)));
        for (root, span) in roots.into_iter().take(most.unwrap_or(usize::MAX)) {
            let key = (request.workspace.clone(), span.trace);
            if let Some(there) = self.otlp.traces.get(&key) {
                let words = match there.project == project {
                    true => "Trace already exists",
                    false => "Project name and workspace name do not match the existing trace",
                };
                return Err(Answer::json(409, &json!({ "errors": [words] })));
            }
            let (name, start_ms) = (root.name.clone(), root.start_ms);
            self.otlp.traces.insert(key, Trace { project: project.clone(), name, start_ms });
        }
        Ok(())
    }

    /// Stores the spans of a request whose traces are there.
    pub(super) fn store_otel_spans(&mut self, seq: usize) {
        let request = self.requests[seq].clone();
        let project = request.header("projectName").unwrap_or("Default Project").to_owned();
        for span in self.otlp.spans(request.json.as_deref().unwrap_or(&Value::Null)) {
            let key = (request.workspace.clone(), project.clone(), span.trace.clone());
            let stored = span.stored(self.otlp.ids[&key]);
            self.otlp.spans.insert((request.workspace.clone(), format!("{}:{}", span.trace, span.id)), stored);
        }
    }
}

/// A filter of a search, as far as tests use one.
pub(crate) enum Filter {
    From(clock::Stamp),
    To(clock::Stamp),
    Before(clock::Stamp),
    IdEnds(String),
}

impl Filter {
    pub(crate) fn of(filter: &Value) -> Option<Self> {
        let text = |name: &str| filter[name].as_str();
        match (text("field")?, text("operator")?, text("value")?) {
            ("start_time", ">=", time) => Some(Self::From(clock::parse(time)?)),
            ("start_time", "<=", time) => Some(Self::To(clock::parse(time)?)),
            ("start_time", "<", time) => Some(Self::Before(clock::parse(time)?)),
            ("id", "ends_with", end) => Some(Self::IdEnds(end.to_owned())),
            _ => None,
        }
    }

    pub(crate) fn meets(&self, body: &Value) -> bool {
        let start = || body.get("start_time").and_then(Value::as_str).and_then(clock::parse);
        match self {
            Self::From(time) => start().is_some_and(|start| start >= *time),
            Self::To(time) => start().is_some_and(|start| start <= *time),
            // The column has no nulls.
            Self::Before(time) => start().is_none_or(|start| start < *time),
            Self::IdEnds(end) => body["id"].as_str().is_some_and(|id| id.ends_with(end)),
        }
    }
}
