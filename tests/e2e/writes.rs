//! The writes that the tests send, as small as the server takes them.

use serde_json::{Value, json};

use crate::support::http::{Client, Request, Response};
use crate::support::ledger::ClientLedger;

const START: &str = "2026-03-01T04:00:16Z";

pub(crate) fn trace(id: &str, name: &str) -> Value {
    json!({ "id": id, "name": name, "start_time": START, "last_updated_at": START, "input": { "q": name } })
}

pub(crate) fn create(id: &str) -> Request {
    Request::new("POST", "/v1/private/traces").json(&trace(id, "chat"))
}

pub(crate) fn create_batch<'a>(ids: impl IntoIterator<Item = &'a String>) -> Request {
    let traces: Vec<Value> = ids.into_iter().map(|id| trace(id, "chat")).collect();
    Request::new("POST", "/v1/private/traces/batch").json(&json!({ "traces": traces }))
}

pub(crate) fn update(id: &str, n: u64) -> Request {
    Request::new("PATCH", &format!("/v1/private/traces/{id}")).json(&json!({ "output": { "n": n } }))
}

pub(crate) fn score(id: &str, value: f64) -> Request {
    let score = json!({ "id": id, "name": "quality", "source": "sdk", "value": value });
    Request::new("PUT", "/v1/private/traces/feedback-scores").json(&json!({ "scores": [score] }))
}

pub(crate) fn span(id: &str, trace_id: &str) -> Request {
    let body = json!({ "id": id, "trace_id": trace_id, "name": "call", "start_time": START, "last_updated_at": START });
    Request::new("POST", "/v1/private/spans").json(&body)
}

pub(crate) fn delete(id: &str) -> Request {
    Request::new("DELETE", &format!("/v1/private/traces/{id}"))
}

/// A client that writes down what it was told.
pub(crate) struct Told<'a> {
    pub client: Client,
    ledger: &'a ClientLedger,
    workspace: Option<String>,
}

impl<'a> Told<'a> {
    pub(crate) fn new(url: &str, ledger: &'a ClientLedger) -> Self {
        Self { client: Client::new(url), ledger, workspace: None }
    }

    #[must_use]
    pub(crate) fn in_workspace(self, workspace: &str) -> Self {
        Self { workspace: Some(workspace.to_owned()), ..self }
    }

    /// Sends a write and notes the answer, or that there was none.
    pub(crate) fn send(&mut self, request: Request) -> std::io::Result<Response> {
        let request = match &self.workspace {
            Some(workspace) => request.header("Comet-Workspace", workspace),
            None => request,
        };
        let answer = self.client.send(&request);
        self.ledger.told(&request, &answer);
        answer
    }

    /// As [`Told::send`]; a refused connection does not count as an attempt, because nothing was sent.
    pub(crate) fn try_send(&mut self, request: &Request) -> std::io::Result<Response> {
        let mut request = request.clone();
        if let Some(workspace) = &self.workspace {
            request = request.header("Comet-Workspace", workspace);
        }
        let answer = self.client.send(&request);
        if !answer.as_ref().is_err_and(|why| why.kind() == std::io::ErrorKind::ConnectionRefused) {
            self.ledger.told(&request, &answer);
        }
        answer
    }

    /// Sends a write that has to be acknowledged with this status.
    #[track_caller]
    pub(crate) fn acknowledged(&mut self, request: Request, status: u16) -> Response {
        let answer = self.send(request).unwrap_or_else(|why| panic!("no answer: {why}"));
        assert_eq!(answer.status, status, "{}", answer.text());
        answer
    }
}

/// Asserts Opik's error shape with this status.
#[track_caller]
pub(crate) fn assert_error(answer: &Response, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["code"], status, "{body}");
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
}
