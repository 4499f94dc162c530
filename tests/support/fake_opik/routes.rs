//! From a request to its answer.

use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};

use super::Shared;
use super::check::{self, Endpoint, Key, Kind};
use super::clock;
use super::front::resolved;
use super::log::{EarlyUpdate, Received, route};
use super::otlp::{Filter, Version};
use super::script::{Answer, glob_matches};
use super::state::{Effect, Entity};
use super::wire::Head;
use crate::support::json::parse_lenient;
use opik_offline::protocol::otlp;

/// Bytes of one body after decompression. The real server takes 512 MB; no test needs to send that much.
const INFLATED_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Writes that are taken without a look at their meaning.
const RECORDED: &[&str] = &[
    "/v1/private/annotation-queues/*/items/add",
    "/v1/private/annotation-queues/*/items/delete",
    "/v1/private/attachment/delete",
    "/v1/private/datasets/items/batch",
    "/v1/private/datasets/items/*-*-*",
    "/v1/private/experiments/batch",
    "/v1/private/experiments/items/bulk",
    "/v1/private/local-runners/jobs/*/logs",
    "/v1/private/optimizations",
    "/v1/private/optimizations/*",
    "/v1/private/spans/batch",
    "/v1/private/traces/batch",
    "/v1/private/traces/threads/*",
    "/v1/private/*/comments/*",
    "/v1/private/*/feedback-scores",
    "/v1/private/*/feedback-scores/delete",
];

/// The kind of a request.
pub(super) enum Reading {
    Write(Endpoint),
    Refused { status: u16, message: String },
    Other,
}

pub(super) fn received(head: &Head, body: Bytes) -> Received {
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (head.target.clone(), None),
    };
    Received {
        seq: 0,
        at: Instant::now(),
        method: head.method.clone(),
        resolved: resolved(&path).map_or_else(|| path.clone(), |path| path.trim_end_matches('/').to_owned()),
        path,
        query,
        workspace: head.header("Comet-Workspace").unwrap_or("default").to_owned(),
        authorization: head.header("Authorization").map(str::to_owned),
        headers: head.headers.clone(),
        body,
        json: None,
        writes: Vec::new(),
        answered_status: None,
        processed: false,
        began_step: 0,
        ended_step: None,
    }
}

/// Decodes the body, and checks it when it goes to a message endpoint.
pub(super) fn read(request: &mut Received) -> Reading {
    let endpoint = route(&request.resolved).and_then(|path| Endpoint::of(&request.method, path));
    let refused = |status, message| Reading::Refused { status, message };
    if request.method == "PUT"
        && (request.path.ends_with("/attachment/upload") || request.path.starts_with("/object-store/"))
    {
        return Reading::Other;
    }
    let body = match decompressed(request.header("Content-Encoding"), &request.body) {
        Ok(body) => body,
        Err((status, message)) => return refused(status, message),
    };
    // By class, `@Consumes(application/json)`.
    let essence = |value: &str| value.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let content_type = request.header("Content-Type").map(essence);
    let is_otlp = matches!(endpoint, Some(Endpoint::Otlp));
    if endpoint.is_some()
        && !is_otlp
        && content_type.as_ref().map_or(!request.body.is_empty(), |it| it != "application/json")
    {
        return refused(415, "HTTP 415 Unsupported Media Type".to_owned());
    }
    let json = match (&endpoint, request.header("Content-Type").unwrap_or("")) {
        (Some(Endpoint::Otlp), "application/x-protobuf") => {
            otlp::to_json(&body).ok_or_else(|| "no protobuf message".to_owned())
        }
        (Some(Endpoint::Otlp), "application/json") => parse_lenient(&body),
        (Some(Endpoint::Otlp), other) => return refused(415, format!("HTTP 415 Unsupported Media Type {other}")),
        // A deletion in the path has no body.
        (Some(Endpoint::DeleteOne(..)), _) => Ok(Value::Null),
        _ => parse_lenient(&body),
    };
    request.json = json.as_ref().ok().map(|json| Arc::new(json.clone()));
    let Some(endpoint) = endpoint else {
        return Reading::Other;
    };
    match json.map_err(|why| format!("Unable to process JSON: {why}")).and_then(|json| check::writes(&endpoint, &json))
    {
        Ok(writes) => {
            request.writes = writes;
            Reading::Write(endpoint)
        }
        Err(message) => refused(400, message),
    }
}

/// Returns a body without its compression, or the status and text with which the server refuses it.
pub(crate) fn decompressed(encoding: Option<&str>, body: &[u8]) -> Result<Vec<u8>, (u16, String)> {
    let mut plain = Vec::new();
    let limit = INFLATED_BYTES_MAX + 1;
    let read = match encoding {
        None | Some("identity" | "") => body.take(limit).read_to_end(&mut plain),
        Some("gzip") => MultiGzDecoder::new(body).take(limit).read_to_end(&mut plain),
        Some(other) => return Err((415, format!("unknown Content-Encoding {other:?}"))),
    };
    read.map_err(|why| (400, format!("broken gzip: {why}")))?;
    if plain.len() as u64 == limit {
        return Err((413, format!("the body has more than {INFLATED_BYTES_MAX} bytes")));
    }
    Ok(plain)
}

impl Shared {
    /// Does what a request asks for and returns the answer, without sending it.
    pub(super) fn process(&mut self, seq: usize, reading: &Reading) -> Answer {
        match reading {
            Reading::Refused { status, message } => Answer::error(*status, message),
            Reading::Write(endpoint) => self.write(seq, endpoint),
            Reading::Other => {
                if let Some(answer) = self.attachment(seq) {
                    return answer;
                }
                let request = self.requests[seq].clone();
                self.other(&request).unwrap_or_else(|| Answer::error(404, "HTTP 404 Not Found"))
            }
        }
    }

    fn write(&mut self, seq: usize, endpoint: &Endpoint) -> Answer {
        if *endpoint == Endpoint::Otlp
            && let Err(refused) = self.make_otel_traces(seq, None)
        {
            return refused;
        }
        let now = clock::now();
        if let Some(refusal) = self.id_window.as_ref().and_then(|window| window.refuses(&self.requests[seq])) {
            return refusal;
        }
        let request = &mut self.requests[seq];
        request.processed = true;
        let request = request.clone();
        let entities = self.state.entry(request.workspace.clone()).or_default();
        for write in &request.writes {
            match entities.entry(write.key.clone()).or_default().apply(&write.change, now) {
                Ok(Effect::Applied) => {}
                Ok(Effect::EarlyUpdate) => {
                    let (workspace, key) = (request.workspace.clone(), write.key.clone());
                    self.early_updates.push(EarlyUpdate { seq, workspace, key });
                }
                Err(message) => {
                    self.conflicts.push(format!("request {seq}, {}: {message}", write.key));
                    return Answer::error(409, &message);
                }
            }
        }
        if *endpoint == Endpoint::Otlp {
            self.store_otel_spans(seq);
        }
        match endpoint {
            Endpoint::CreateOne(_) => created(&request, &request.writes[0].key.id),
            _ => Answer::empty(endpoint.success_status()),
        }
    }

    fn other(&mut self, request: &Received) -> Option<Answer> {
        let path = route(&request.resolved)?;
        let method = if request.method == "HEAD" { "GET" } else { request.method.as_str() };
        match (method, path) {
            ("OPTIONS", _) => return Some(Answer::empty(200).with("Allow", "GET, HEAD, POST, OPTIONS")),
            ("GET", "/is-alive/ping") => {
                return Some(Answer::json(200, &json!({ "message": "Healthy Server", "healthy": true })));
            }
            ("GET", "/is-alive/ver") => {
                return Some(Answer::json(200, &json!({ "version": "2.2.0" })));
            }
            ("POST", "/v1/private/auth") => return Some(Answer::empty(204)),
            ("POST", "/v1/private/traces/search") => return Some(self.search(request, Kind::Trace)),
            ("POST", "/v1/private/spans/search") => return Some(self.search(request, Kind::Span)),
            ("POST", "/v1/private/traces/threads/retrieve") => {
                let id = request.json.as_ref().and_then(|json| json.get("thread_id")?.as_str().map(str::to_owned));
                return Some(match id {
                    Some(id) => self.one(request, Kind::Thread, &id),
                    None => Answer::error(400, "thread_id must not be blank"),
                });
            }
            // Writes that are recorded, and change no state that a test looks at.
            ("POST" | "PUT" | "PATCH", path) if RECORDED.iter().any(|glob| glob_matches(glob, path)) => {
                let id = request.json.as_ref().and_then(|json| json.get("id")).and_then(Value::as_str);
                return Some(match id.filter(|_| path.ends_with("/optimizations")) {
                    Some(id) => created(request, id),
                    None => Answer::empty(204),
                });
            }
            ("GET", _) => {}
            _ => return None,
        }
        let (list, id) = path.strip_prefix("/v1/private/")?.split_once('/')?;
        match list {
            "traces" => Some(self.one(request, Kind::Trace, id)),
            "spans" => Some(self.one(request, Kind::Span, id)),
            "experiments" => Some(match id.strip_prefix("items/") {
                Some(id) => self.one(request, Kind::ExperimentItem, id),
                None => self.one(request, Kind::Experiment, id),
            }),
            "datasets" => Some(match id.strip_prefix("items/") {
                Some(id) => self.one(request, Kind::DatasetItem, id),
                None => self.one(request, Kind::Dataset, id),
            }),
            "stream" => {
                let chunks = id.parse::<usize>().ok()?;
                Some(stream((0..chunks).map(|n| format!("chunk {n}\n").into_bytes()).collect()))
            }
            _ => None,
        }
    }

    fn one(&mut self, request: &Received, kind: Kind, id: &str) -> Answer {
        let key = Key { kind, id: id.to_owned() };
        let entity = self.state.get(&request.workspace).and_then(|entities| entities.get(&key));
        let body = entity.and_then(|entity| as_read(&key, entity));
        let body = body.or_else(|| self.otlp.as_read(&request.workspace, kind, id));
        match body.filter(|_| !self.is_hidden(id)) {
            Some(body) => Answer::json(200, &body),
            None => Answer::error(404, &format!("{key} not found")),
        }
    }

    /// Returns whether an entity is hidden from this read, and uses up one of the reads for which it is.
    fn is_hidden(&mut self, id: &str) -> bool {
        self.hidden.get_mut(id).is_some_and(|reads| {
            let hidden = *reads > 0;
            *reads = reads.saturating_sub(1);
            hidden
        })
    }

    /// The entities of the wanted project behind `last_retrieved_id`, newest first, one line each, `limit` at most.
    fn search(&mut self, request: &Received, kind: Kind) -> Answer {
        let asked = |name: &str| request.json.as_ref()?.get(name).filter(|value| !value.is_null()).cloned();
        let (project, behind) = (asked("project_name"), asked("last_retrieved_id"));
        let limit = asked("limit").and_then(|limit| limit.as_u64()).unwrap_or(500);
        let behind = behind.as_ref().and_then(Value::as_str);
        if kind == Kind::Trace && self.otlp.version == Version::WithoutReads {
            return Answer::error(404, "HTTP 404 Not Found");
        }
        let filters = asked("filters").and_then(|filters| filters.as_array().cloned()).unwrap_or_default();
        let filters: Option<Vec<_>> = filters.iter().map(Filter::of).collect();
        let Some(filters) = filters else { return Answer::error(400, "Invalid filters query parameter") };
        let entities = self.state.get(&request.workspace).into_iter().flatten();
        let entities = entities.filter_map(|(key, entity)| Some((key.clone(), as_read(key, entity)?)));
        let mut entities: Vec<(Key, Value)> = entities.chain(self.otlp.found(&request.workspace)).collect();
        entities.retain(|(_, body)| filters.iter().all(|filter| filter.meets(body)));
        entities.sort_by(|(a, _), (b, _)| b.cmp(a));
        let found = entities.iter();
        let found = found.filter(|(key, _)| key.kind == kind && behind.is_none_or(|behind| *key.id < *behind));
        let found = found.filter_map(|(key, body)| {
            let of_default = Value::from("Default Project");
            let own = body.get("project_name").unwrap_or(&of_default);
            let fits = project.as_ref().is_none_or(|project| own == project);
            fits.then(|| (key.id.clone(), format!("{body}\n").into_bytes()))
        });
        let mut found: Vec<_> = found.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect();
        found.retain(|(id, _)| !self.is_hidden(id));
        // A chunk a line would take a pause a line.
        stream(found.chunks(100).map(|lines| lines.iter().flat_map(|(_, line)| line.clone()).collect()).collect())
    }
}

/// The answer to a create of one entity.
fn created(request: &Received, id: &str) -> Answer {
    let host = request.header("Host").unwrap_or("localhost");
    Answer::empty(201).with("Location", &format!("http://{host}{}/{id}", request.resolved))
}

fn as_read(key: &Key, entity: &Entity) -> Option<Value> {
    let mut body = entity.record.as_ref()?.fields.clone();
    body.insert("id".into(), key.id.clone().into());
    let scores = entity.scores.values().cloned().map(Value::Object).collect();
    body.insert("feedback_scores".into(), Value::Array(scores));
    Some(Value::Object(body))
}

fn stream(chunks: Vec<Vec<u8>>) -> Answer {
    let answer = Answer { stream: Some(chunks), ..Answer::empty(200) };
    answer.with("Content-Type", "application/octet-stream")
}
