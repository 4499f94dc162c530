//! Reads of clients: routes that the fake server gets for them, and the data to be read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::support::fake_opik::check::{Key, Kind};
use crate::support::fake_opik::state::Entity;
use crate::support::fake_opik::{Answer, FakeOpik, Received, State, Then, When};
use crate::support::http::Client;
use crate::support::uuid7;

/// The project that is there before the client comes.
pub(crate) const SEEDED: &str = "seeded";
/// Something that any client may be told.
const PROJECT_ID: &str = "01900000-0000-7000-8000-000000000001";
/// Lists that are empty.
const EMPTY: &[&str] = &[
    "/v1/private/attachment/list",
    "/v1/private/datasets",
    "/v1/private/experiments",
    "/v1/private/optimizations",
    "/v1/private/prompts",
];

/// Adds the routes to a server.
pub(crate) fn serve(server: &FakeOpik) {
    server.always(When::any(), Then::respond(answer));
}

/// Gives a server two traces with their spans and scores.
pub(crate) fn seed(server: &FakeOpik) {
    let mut client = Client::new(&server.url());
    for number in 1..=2 {
        let (trace, span) = (uuid7(), uuid7());
        let (start, end) = ("2026-11-29T10:00:00Z", format!("2026-11-29T10:00:0{number}Z"));
        let common = |id: &str, name: &str| {
            json!({ "id": id, "name": format!("{name} {number}"), "project_name": SEEDED, "start_time": start,
                "end_time": end, "input": { "text": "Grüße 你好" }, "output": { "n": number }, "tags": ["seeded"] })
        };
        let mut inner = common(&span, "span");
        inner["trace_id"] = json!(trace);
        inner["type"] = json!("llm");
        inner["usage"] = json!({ "prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18 });
        client.post("/v1/private/traces/batch", &json!({ "traces": [common(&trace, "trace")] }));
        client.post("/v1/private/spans/batch", &json!({ "spans": [inner] }));
        let score = json!({ "id": trace, "name": "quality", "value": 0.5, "source": "sdk", "project_name": SEEDED });
        client.put("/v1/private/traces/feedback-scores", &json!({ "scores": [score] }));
    }
}

fn answer(request: &Received, state: &State) -> Option<Answer> {
    let path = request.route();
    let is_get = request.method == "GET";
    if request.path == "/guardrails/api/v1/guardrails/validations" {
        return Some(validated(request));
    }
    if path.starts_with("/v1/session/redirect/") {
        return Some(redirect(request));
    }
    if is_get && EMPTY.contains(&path) {
        return Some(page(Vec::new()));
    }
    let project = || json!({ "id": PROJECT_ID, "name": SEEDED, "created_at": "2026-11-29T09:00:00Z" });
    let answer = match (request.method.as_str(), path) {
        ("GET", "/v1/private/traces") => page(list(request, state, Kind::Trace)),
        ("GET", "/v1/private/spans") => page(list(request, state, Kind::Span)),
        ("GET", "/v1/private/projects") => page(vec![project()]),
        ("POST", "/v1/private/projects/retrieve") => Answer::json(200, &project()),
        ("POST", path) if path.ends_with("/metrics") => Answer::json(200, &metrics(request)),
        ("GET", "/rest/v2/account-details") => Answer::json(200, &json!({ "defaultWorkspaceName": "default" })),
        ("GET", "/rest/v2/workspaces") => Answer::json(200, &json!({ "workspaceNames": ["default"] })),
        ("GET", "/v1/private/workspace-permissions") => {
            Answer::json(200, &json!({ "userName": "user", "workspaceName": "default", "permissions": [] }))
        }
        _ => return None,
    };
    Some(answer)
}

fn page(content: Vec<Value>) -> Answer {
    Answer::json(200, &json!({ "page": 1, "size": content.len(), "total": content.len(), "content": content }))
}

/// The real server builds the address of its user interface from `path`, up to `/api`.
fn redirect(request: &Received) -> Answer {
    let value = |name: &str| query(request, name);
    let path = value("path").and_then(|path| STANDARD.decode(path).ok());
    let path = path.and_then(|path| String::from_utf8(path).ok());
    let Some(origin) = path.as_deref().and_then(|path| path.split("/api").next()) else {
        return Answer::error(400, "path must be the base64 of a URL");
    };
    let what = request.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let id = value("trace_id").or_else(|| value("dataset_id")).unwrap_or_default();
    Answer::empty(303).with("Location", &format!("{origin}/{}/redirect/{what}?id={id}", request.workspace))
}

fn query(request: &Received, name: &str) -> Option<String> {
    let query = request.query.as_deref()?;
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let value = value.replace('+', " ");
    percent_encoding::percent_decode_str(&value).decode_utf8().ok().map(Into::into)
}

/// The guardrails service is beside the API, not below it.
fn validated(request: &Received) -> Answer {
    let body = request.json.as_deref().cloned().unwrap_or_default();
    let passed = !body["text"].as_str().unwrap_or_default().contains("card number");
    let validations = body["validations"].as_array().cloned().unwrap_or_default();
    let one = |validation: Value| {
        json!({ "validation_passed": passed, "type": validation["type"], "validation_config": validation["config"],
            "validation_details": {} })
    };
    let validations: Vec<Value> = validations.into_iter().map(one).collect();
    Answer::json(200, &json!({ "validation_passed": passed, "validations": validations }))
}

/// One page of the entities of a project, newest first.
fn list(request: &Received, state: &State, kind: Kind) -> Vec<Value> {
    if query(request, "page").is_some_and(|page| page != "1") {
        return Vec::new();
    }
    let wanted = query(request, "project_name").unwrap_or_else(|| SEEDED.to_owned());
    let entities = state.get(&request.workspace).into_iter().flatten().rev();
    let of = |(key, entity): (&Key, &Entity)| {
        let fields: Map<String, Value> = entity.record.as_ref()?.fields.clone();
        let is_wanted = key.kind == kind && fields.get("project_name")?.as_str() == Some(&wanted);
        let mut body = Value::Object(fields);
        body["id"] = json!(key.id);
        body["project_id"] = json!(PROJECT_ID);
        body["feedback_scores"] = entity.scores.values().cloned().map(Value::Object).collect();
        is_wanted.then_some(body)
    };
    entities.filter_map(of).collect()
}

fn metrics(request: &Received) -> Value {
    let asked = |name: &str| request.json.as_ref().and_then(|json| json.get(name).cloned()).unwrap_or_default();
    let data = json!([{ "time": "2026-11-29T00:00:00Z", "value": 2 }]);
    json!({ "project_id": PROJECT_ID, "metric_type": asked("metric_type"), "interval": asked("interval"),
        "results": [{ "name": "traces", "data": data }] })
}
