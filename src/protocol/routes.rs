//! Routing: method and path to the handling of a request.
//!
//! [`super::operations`] lists the writes. Everything that is not protected passes through: reads, writes whose client
//! uses the response, and paths of newer servers.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::operations::{Class, OPERATIONS, Operation, Step};
use crate::message::MessageType;

/// How the agent handles a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `is-alive/ping`: answered by the agent for itself.
    Ping,
    /// A write that is forwarded if possible and stored otherwise.
    Protected(Protected),
    /// A step of an attachment's upload, which the agent handles itself while its store is usable.
    Upload(Step),
    /// Streamed through to the server.
    PassThrough,
}

/// A protected write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// The kind of write.
    pub message_type: MessageType,
    /// The id in the path, for writes about one entity.
    pub path_id: Option<String>,
}

/// Classifies a request. `path` is below the server's base, normalised ([`super::path`]), without query and leading
/// slash.
///
/// If two operations match, the more specific path wins: `PATCH traces/batch` is not an update of the trace "batch".
pub fn classify(method: &str, path: &str) -> Route {
    let path = path.trim_end_matches('/');
    if path == "is-alive/ping" && (method == "GET" || method == "HEAD") {
        return Route::Ping;
    }
    match find(method, path).map(|(operation, id)| (operation.class, id)) {
        Some((Class::Protected(message_type) | Class::Deferrable(message_type), id)) => {
            Route::Protected(Protected { message_type, path_id: id.map(str::to_owned) })
        }
        Some((Class::Upload(step), _)) => Route::Upload(step),
        Some((Class::NeedsAnswer, _)) | None => Route::PassThrough,
    }
}

/// Returns the operation of a write, if the agent knows it.
pub(super) fn operation(method: &str, path: &str) -> Option<&'static Operation> {
    find(method, path).map(|(operation, _)| operation)
}

/// Looks up the operation of a request, and the id in its path.
fn find<'path>(method: &str, path: &'path str) -> Option<(&'static Operation, Option<&'path str>)> {
    let fixed = INDEX.fixed.get(path).into_iter().flatten();
    if let Some(operation) = fixed.copied().find(|operation| operation.method == method) {
        return Some((operation, None));
    }
    let fitting = INDEX.with_ids.get(&path.split('/').count())?.iter();
    fitting.filter(|operation| operation.method == method).find_map(|operation| {
        let id = id_in(operation.path, path)?;
        Some((*operation, id))
    })
}

/// An index of the operations for the look-up of every request.
struct Index {
    /// Operations without an id in their path, by path.
    fixed: HashMap<&'static str, Vec<&'static Operation>>,
    /// The others, by the number of segments.
    with_ids: HashMap<usize, Vec<&'static Operation>>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index { fixed: HashMap::new(), with_ids: HashMap::new() };
    for operation in OPERATIONS {
        match operation.path.contains('{') {
            false => index.fixed.entry(operation.path).or_default().push(operation),
            true => index.with_ids.entry(operation.path.split('/').count()).or_default().push(operation),
        }
    }
    index
});

/// Matches a path against a pattern; returns the last segment that matches an id.
fn id_in<'path>(pattern: &str, path: &'path str) -> Option<Option<&'path str>> {
    let (mut wanted, mut found) = (pattern.split('/'), path.split('/'));
    let mut id = None;
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return Some(id),
            (Some(wanted), Some(found)) if wanted.starts_with('{') && !found.is_empty() => id = Some(found),
            (Some(wanted), Some(found)) if wanted == found => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_classified_by_method_and_path() {
        let id = "01a20445-0b55-7feb-b47d-9a6087614672";
        let update = |message_type| Route::Protected(Protected { message_type, path_id: Some(id.into()) });
        let plain = |message_type| Route::Protected(Protected { message_type, path_id: None });
        let trace_path = format!("v1/private/traces/{id}");
        let span_path = format!("v1/private/spans/{id}/");
        let comment_path = format!("v1/private/traces/comments/{id}");
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
            ("DELETE", &trace_path, update(MessageType::DeleteTrace)),
            ("PATCH", "v1/private/traces/batch", plain(MessageType::UpdateTraces)),
            ("PATCH", "v1/private/traces/threads/batch", plain(MessageType::UpdateThreads)),
            ("PATCH", &comment_path, update(MessageType::UpdateTraceComment)),
            ("POST", "v1/private/otel/v1/traces", plain(MessageType::OtlpTraces)),
            ("POST", "v1/private/traces//comments", Route::PassThrough),
            ("POST", "v1/private/attachment/upload-start", Route::Upload(Step::Start)),
            ("PUT", "v1/private/attachment/upload", Route::Upload(Step::Put)),
            ("POST", "v1/private/attachment/upload-complete", Route::Upload(Step::Complete)),
            ("GET", "v1/private/attachment/download", Route::PassThrough),
            ("POST", "v1/private/datasets/items/stream", Route::PassThrough),
            ("PUT", "v1/private/traces/threads/feedback-scores", plain(MessageType::AddThreadsFeedbackScoresBatch)),
            ("PUT", "v1/private/guardrails", Route::PassThrough),
            ("POST", "v2/private/traces", Route::PassThrough),
        ] {
            assert_eq!(classify(method, path), expected, "{method} {path}");
        }
    }
}
