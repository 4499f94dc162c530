//! The agent's own replies, in the server's place.

use std::time::Duration;

use serde_json::json;

use super::routes::Protected;
use crate::message::MessageType;

/// A response that the agent sends in the server's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// `Location`, if the endpoint has one.
    pub location: Option<String>,
    /// `Retry-After` in seconds.
    pub retry_after_seconds: Option<u64>,
    /// `Content-Type`, if there is one.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// Returns a reply with only a status.
    pub fn empty(status: u16) -> Self {
        Self { status, location: None, retry_after_seconds: None, content_type: None, body: String::new() }
    }
}

/// Returns the endpoint's success reply, for a stored write.
///
/// `base` is the URL under which the client reached the server's base, `id` the id of a single create. Statuses and the
/// `Location` of single creates are those of the OpenAPI file (protocol dossier, sections a and i). An OTLP request has
/// an reply of its own, see [`super::otlp::success`].
pub fn success(write: &Protected, base: &str, id: Option<&str>) -> Reply {
    let collection = match write.message_type {
        MessageType::CreateTrace => "traces",
        MessageType::CreateSpan => "spans",
        MessageType::CreateDataset => "datasets",
        MessageType::CreateExperiment => "experiments",
        MessageType::CreateOptimization | MessageType::PutOptimization => "optimizations",
        _ => return Reply::empty(204),
    };
    Reply { location: id.map(|id| format!("{base}/v1/private/{collection}/{id}")), ..Reply::empty(201) }
}

/// Returns an error in Opik's shape: `{"code": ..., "message": ...}` (OpenAPI: `ErrorMessage`).
pub fn error(status: u16, message: &str) -> Reply {
    let body = json!({ "code": status, "message": message }).to_string();
    Reply { content_type: Some("application/json"), body, ..Reply::empty(status) }
}

/// Returns a 503 in Opik's shape with the client's retry delay.
pub fn unavailable(message: &str, retry_after: Duration) -> Reply {
    Reply { retry_after_seconds: Some(retry_after.as_secs().max(1)), ..error(503, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_writes_get_the_servers_success_reply() {
        let write = |message_type| Protected { message_type, path_id: None };
        let created = success(&write(MessageType::CreateSpan), "http://127.0.0.1:6745/api", Some("x"));
        assert_eq!(created.status, 201);
        assert_eq!(created.location.as_deref(), Some("http://127.0.0.1:6745/api/v1/private/spans/x"));
        assert_eq!(success(&write(MessageType::CreateSpansBatch), "http://h", None), Reply::empty(204));
        assert_eq!(success(&write(MessageType::DeleteTrace), "http://h", None), Reply::empty(204));
        let dataset = success(&write(MessageType::CreateDataset), "http://h", Some("x"));
        assert_eq!(dataset.location.as_deref(), Some("http://h/v1/private/datasets/x"));
    }

    #[test]
    fn errors_have_opiks_shape() {
        let reply = unavailable("the \"server\" is away", Duration::from_millis(10));
        assert_eq!(reply.body, r#"{"code":503,"message":"the \"server\" is away"}"#);
        assert_eq!(reply.retry_after_seconds, Some(1));
    }
}
