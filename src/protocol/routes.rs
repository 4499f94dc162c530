//! Method and path to what the agent does with a request.
//!
//! The table holds the protected writes of the dossier's section i. Everything that is not in it passes through: reads,
//! writes whose client uses the answer, and paths that a newer server may have.

use crate::message::MessageType;

/// What a request is to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `is-alive/ping`: answered by the agent for itself.
    Ping,
    /// A write that is forwarded while it can be and kept while it can't.
    Protected(Protected),
    /// The server's business: streamed through.
    PassThrough,
}

/// A protected write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// The SDK's type of it.
    pub message_type: MessageType,
    /// The id in the path, for updates of one entity.
    pub path_id: Option<String>,
}

struct Pattern {
    method: &'static str,
    /// Below `v1/private/`; `{}` stands for one segment, the id.
    path: &'static str,
    message_type: MessageType,
}

const fn pattern(method: &'static str, path: &'static str, message_type: MessageType) -> Pattern {
    Pattern { method, path, message_type }
}

/// The SDK's message types and their endpoints (protocol dossier, section a).
const PROTECTED: [Pattern; 12] = [
    pattern("POST", "traces", MessageType::CreateTrace),
    pattern("POST", "traces/batch", MessageType::CreateTraceBatch),
    pattern("PATCH", "traces/{}", MessageType::UpdateTrace),
    pattern("POST", "spans", MessageType::CreateSpan),
    pattern("POST", "spans/batch", MessageType::CreateSpansBatch),
    pattern("PATCH", "spans/{}", MessageType::UpdateSpan),
    pattern("PUT", "traces/feedback-scores", MessageType::AddTraceFeedbackScoresBatch),
    pattern("PUT", "spans/feedback-scores", MessageType::AddSpanFeedbackScoresBatch),
    pattern("PUT", "traces/threads/feedback-scores", MessageType::AddThreadsFeedbackScoresBatch),
    pattern("POST", "experiments/items", MessageType::CreateExperimentItemsBatch),
    pattern("POST", "guardrails", MessageType::GuardrailBatch),
    pattern("PUT", "assertion-results", MessageType::AddAssertionResultsBatch),
];

/// `PATCH traces/batch` and `PATCH spans/batch` are other operations than an update of the entity "batch".
const NOT_AN_ID: [&str; 1] = ["batch"];

/// Returns what a request is. `path` is below the server's base, without query and leading slash.
pub fn classify(method: &str, path: &str) -> Route {
    let path = path.trim_end_matches('/');
    if path == "is-alive/ping" && (method == "GET" || method == "HEAD") {
        return Route::Ping;
    }
    let Some(below) = path.strip_prefix("v1/private/") else { return Route::PassThrough };
    for pattern in PROTECTED.iter().filter(|pattern| pattern.method == method) {
        if pattern.path == below {
            return Route::Protected(Protected { message_type: pattern.message_type, path_id: None });
        }
        if let Some(id) = pattern.path.strip_suffix("{}").and_then(|fixed| below.strip_prefix(fixed))
            && !id.is_empty()
            && !id.contains('/')
            && !NOT_AN_ID.contains(&id)
        {
            return Route::Protected(Protected { message_type: pattern.message_type, path_id: Some(id.to_owned()) });
        }
    }
    Route::PassThrough
}

/// Splits a request's path into the prefix that the client's `url_override` has and the path below the server's base.
///
/// `/api/`, `/opik/api/` and no prefix all name the server (protocol dossier, section b).
pub fn split_prefix(path: &str) -> (&str, &str) {
    for prefix in ["/opik/api", "/api"] {
        if let Some(rest) = path.strip_prefix(prefix)
            && let Some(below) = rest.strip_prefix('/')
        {
            return (prefix, below);
        }
    }
    ("", path.strip_prefix('/').unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sdk_message_type_but_attachments_has_its_endpoint() {
        for message_type in MessageType::ALL {
            let found = PROTECTED.iter().any(|pattern| pattern.message_type == message_type);
            assert_eq!(found, message_type != MessageType::CreateAttachment, "{message_type}");
        }
    }

    #[test]
    fn requests_are_classified_by_method_and_path() {
        let id = "01a20445-0b55-7feb-b47d-9a6087614672";
        let update = |message_type| Route::Protected(Protected { message_type, path_id: Some(id.into()) });
        let plain = |message_type| Route::Protected(Protected { message_type, path_id: None });
        let trace_path = format!("v1/private/traces/{id}");
        let span_path = format!("v1/private/spans/{id}/");
        for (method, path, expected) in [
            ("GET", "is-alive/ping", Route::Ping),
            ("POST", "is-alive/ping", Route::PassThrough),
            ("GET", "is-alive/ver", Route::PassThrough),
            ("POST", "v1/private/traces", plain(MessageType::CreateTrace)),
            ("POST", "v1/private/traces/", plain(MessageType::CreateTrace)),
            ("GET", "v1/private/traces", Route::PassThrough),
            ("POST", "v1/private/traces/search", Route::PassThrough),
            ("POST", "v1/private/traces/batch", plain(MessageType::CreateTraceBatch)),
            ("PATCH", &trace_path, update(MessageType::UpdateTrace)),
            ("PATCH", &span_path, update(MessageType::UpdateSpan)),
            ("DELETE", &trace_path, Route::PassThrough),
            ("PATCH", "v1/private/traces/batch", Route::PassThrough),
            ("PATCH", "v1/private/traces/comments/1", Route::PassThrough),
            ("PUT", "v1/private/traces/threads/feedback-scores", plain(MessageType::AddThreadsFeedbackScoresBatch)),
            ("PUT", "v1/private/guardrails", Route::PassThrough),
            ("POST", "v2/private/traces", Route::PassThrough),
        ] {
            assert_eq!(classify(method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn every_prefix_of_a_client_is_known() {
        for (path, expected) in [
            ("/api/v1/private/traces", ("/api", "v1/private/traces")),
            ("/opik/api/is-alive/ping", ("/opik/api", "is-alive/ping")),
            ("/v1/private/traces", ("", "v1/private/traces")),
            ("/apis/x", ("", "apis/x")),
            ("/api", ("", "api")),
            ("/", ("", "")),
        ] {
            assert_eq!(split_prefix(path), expected);
        }
    }
}
