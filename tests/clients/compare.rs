//! The results of a run, in a form in which two runs can be compared: ids, times and addresses differ from run to run.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::{Key, Kind};
use crate::support::fake_opik::state::Entity;

/// Values that differ between two runs of any client.
const VOLATILE: &[&str] =
    &["id", "trace_id", "parent_span_id", "start_time", "end_time", "last_updated_at", "duration"];
const OTEL_VOLATILE: &[&str] = &["traceId", "spanId", "parentSpanId", "startTimeUnixNano", "endTimeUnixNano"];

/// How values of one client are made comparable.
pub(crate) struct Scrubber {
    /// Members that differ from run to run.
    volatile: &'static [&'static str],
    /// Texts with what stands for them, such as addresses.
    replaced: Vec<(String, &'static str)>,
}

impl Scrubber {
    pub(crate) fn new(volatile: &'static [&'static str], replaced: Vec<(String, &'static str)>) -> Self {
        Self { volatile, replaced }
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(members) => Value::Object(self.object(members)),
            other => other.clone(),
        }
    }

    fn object(&self, members: &Map<String, Value>) -> Map<String, Value> {
        let stays = |name: &str| ![VOLATILE, OTEL_VOLATILE, self.volatile].iter().any(|list| list.contains(&name));
        let scrubbed = |name: &String, value: &Value| match stays(name) {
            true => (self.text(name), self.value(value)),
            // That it is there matters, its value does not.
            false => (name.clone(), json!(if value.is_null() { "null" } else { "..." })),
        };
        members.iter().map(|(name, value)| scrubbed(name, value)).collect()
    }

    /// Replaces addresses, and everything that looks like an id or a time.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (from, to) in &self.replaced {
            text = text.replace(from, to);
        }
        let belongs = |c: char| c.is_ascii_alphanumeric() || "-_:.+".contains(c);
        let (mut scrubbed, mut word) = (String::new(), String::new());
        for c in text.chars().chain(['\0']) {
            if belongs(c) {
                word.push(c);
                continue;
            }
            scrubbed.push_str(if varies(&word) { "<id>" } else { &word });
            word.clear();
            scrubbed.push(c);
        }
        scrubbed.pop();
        // Columns are as wide as what is in them, and a spinner stands still where it was at the end.
        let is_spinner = |c: char| ('\u{2800}'..='\u{28ff}').contains(&c);
        let words: Vec<&str> =
            scrubbed.split(|c: char| c == ' ' || is_spinner(c)).filter(|it| !it.is_empty()).collect();
        words.join(" ")
    }
}

/// Whether a word looks like an id, a time or a figure that was measured.
fn varies(word: &str) -> bool {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    let is_long = word.len() >= 8 || word.matches(':').count() == 2;
    let is_time = is_long && word.chars().all(|c| c.is_ascii_digit() || "-:.T+Z".contains(c));
    let is_hex = |part: &str| part.len() >= 8 && part.chars().all(|c| c.is_ascii_hexdigit());
    let has_id = word.split('-').any(|part| is_hex(part) && part.contains(|c: char| c.is_ascii_digit()));
    let is_own = word.starts_with("0x") || (word.starts_with("tmp") && word.len() > 8);
    (word.len() >= 16 && digits >= 4) || is_time || has_id || is_own
}

/// Returns everything that the server knows, one line for each trace with all that belongs to it, in a fixed order.
pub(crate) fn state(server: &FakeOpik, scrubber: &Scrubber) -> Vec<String> {
    let mut lines = Vec::new();
    for (workspace, entities) in server.state() {
        let mut tree = Tree { entities: &entities, scrubber, told: BTreeSet::new() };
        for key in entities.keys().filter(|key| key.kind == Kind::Trace) {
            lines.push(format!("{workspace}: {}", tree.trace(key)));
        }
        for (key, entity) in &entities {
            if !tree.told.contains(key) && key.kind != Kind::OtelSpan {
                lines.push(format!("{workspace}: {:?} {}", key.kind, tree.entity(entity)));
            }
        }
    }
    lines.extend(otel_spans(server, scrubber));
    lines.extend(recorded(server, scrubber));
    for ((workspace, _, name), file) in server.files() {
        let name = scrubber.text(&name);
        lines.push(format!("{workspace}: file {name} {} {}", file.bytes, file.sha256));
    }
    lines.sort();
    lines
}

struct Tree<'a> {
    entities: &'a BTreeMap<Key, Entity>,
    scrubber: &'a Scrubber,
    told: BTreeSet<Key>,
}

impl Tree<'_> {
    fn trace(&mut self, key: &Key) -> Value {
        self.told.insert(key.clone());
        let mut line = self.entity(&self.entities[key]);
        line["spans"] = self.children(&|span| span["trace_id"] == *key.id && span["parent_span_id"].is_null());
        line
    }

    /// The spans that this holds for, with theirs, in a fixed order.
    fn children(&mut self, belongs: &dyn Fn(&Value) -> bool) -> Value {
        let fields = |entity: &Entity| entity.record.as_ref().map(|record| Value::Object(record.fields.clone()));
        let spans = self.entities.iter().filter(|(key, _)| key.kind == Kind::Span);
        let spans: Vec<_> = spans.filter(|(_, span)| fields(span).is_some_and(|span| belongs(&span))).collect();
        let mut lines = Vec::new();
        for (key, span) in spans {
            self.told.insert(key.clone());
            let mut line = self.entity(span);
            line["spans"] = self.children(&|span| span["parent_span_id"] == *key.id);
            lines.push(line);
        }
        lines.sort_by_key(Value::to_string);
        Value::Array(lines)
    }

    fn entity(&self, entity: &Entity) -> Value {
        let fields = entity.record.as_ref().map(|record| {
            let mut fields = self.scrubber.object(&record.fields);
            // Where a client gives none, the agent does, or else the server.
            fields.remove("id");
            fields
        });
        let each = |list: &BTreeMap<String, Map<String, Value>>| -> Vec<_> {
            list.values().map(|fields| self.scrubber.object(fields)).collect()
        };
        let guardrails: Vec<_> = entity.guardrails.iter().map(|fields| self.scrubber.object(fields)).collect();
        let partial = entity.record.as_ref().is_some_and(|record| record.partial);
        json!({ "fields": fields, "partial": partial, "scores": each(&entity.scores),
            "assertions": each(&entity.assertions), "guardrails": guardrails })
    }
}

/// The spans that came over OTLP, with their resources and their parents by name. A span that came twice counts once.
fn otel_spans(server: &FakeOpik, scrubber: &Scrubber) -> Vec<String> {
    let mut spans: BTreeMap<String, (Value, Value, String)> = BTreeMap::new();
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    for request in server.requests_to("POST", "/v1/private/otel/v1/traces") {
        let Some(body) = request.json.as_deref().filter(|_| request.processed) else { continue };
        let project = request.header("projectName").unwrap_or("Default Project").to_owned();
        for resource in list(body, "resourceSpans") {
            for span in list(&resource, "scopeSpans").iter().flat_map(|scope| list(scope, "spans")) {
                let id = span["spanId"].as_str().unwrap_or_default().to_owned();
                spans.insert(id, (span, resource["resource"].clone(), project.clone()));
            }
        }
    }
    let line = |(span, resource, project): &(Value, Value, String)| {
        let parent = spans.get(span["parentSpanId"].as_str().unwrap_or_default());
        let parent = parent.map_or(&Value::Null, |(parent, ..)| &parent["name"]);
        let (span, resource) = (scrubber.value(span), scrubber.value(resource));
        format!("otel span in {project} below {parent}: {span} of {resource}")
    };
    spans.values().map(line).collect()
}

/// Writes whose state the fake does not keep: each of them once.
fn recorded(server: &FakeOpik, scrubber: &Scrubber) -> BTreeSet<String> {
    let wrote = |method: &str| matches!(method, "POST" | "PUT" | "PATCH" | "DELETE");
    let requests = server.requests().into_iter();
    let requests = requests.filter(|request| {
        let is_read = ["/search", "/retrieve", "/stream", "/auth", "/is-alive", "/attachment/"];
        let is_write = wrote(&request.method) && !is_read.iter().any(|part| request.route().contains(part));
        is_write && request.writes.is_empty() && request.answered_status.is_some_and(|status| status < 300)
    });
    let line = |request: crate::support::fake_opik::Received| {
        let body = request.json.as_deref().map(|body| scrubber.value(body)).unwrap_or_default();
        format!("{} {} {body}", request.method, scrubber.text(request.route()))
    };
    requests.map(line).collect()
}

/// How many characters are shown on each side of the place where two lines part.
const SHOWN: usize = 200;
/// How many lines are shown of a difference.
const LINES: usize = 8;

/// Returns what only one of two lists holds, `None` when they hold the same lines.
pub(crate) fn difference(without: &[String], with: &[String]) -> Option<String> {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    without.iter().for_each(|line| *counts.entry(line).or_default() -= 1);
    with.iter().for_each(|line| *counts.entry(line).or_default() += 1);
    counts.retain(|_, count| *count != 0);
    let told = |line: &str, count: i64| {
        let side = if count < 0 { "only without the agent" } else { "only with it" };
        let others = counts.iter().filter(|(_, other)| (**other < 0) != (count < 0));
        let common = others.map(|(other, _)| line.chars().zip(other.chars()).take_while(|(a, b)| a == b).count());
        let parting = common.max().unwrap_or(0);
        let shown: String = line.chars().skip(parting.saturating_sub(SHOWN)).take(2 * SHOWN).collect();
        format!("{side} ({}): {shown}", count.abs())
    };
    let mut found: Vec<String> = counts.iter().take(LINES).map(|(line, count)| told(line, *count)).collect();
    if counts.len() > LINES {
        found.push(format!("and {} more lines", counts.len() - LINES));
    }
    (!found.is_empty()).then(|| found.join("\n"))
}
