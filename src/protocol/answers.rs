//! Answers as plain values: what the server said, what the agent says in its place, and what headers ask for.

use std::time::{Duration, SystemTime};

use serde_json::json;
use thiserror::Error;

use super::partial::Partial;
use super::recognise::Recognised;
use super::routes::Protected;
use crate::message::MessageType;

/// An answer of the server, read whole within a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// How long the server asked to wait, from its headers and capped; see [`asked_wait`].
    pub asked_wait: Option<Duration>,
    /// Where a redirect points.
    pub location: Option<String>,
    /// What the server's clock said, by `Date`, in milliseconds since the Unix epoch.
    pub date_ms: Option<i64>,
    /// The body's beginning as text, for people.
    pub text: String,
    /// What it says was thrown away of a request that was accepted.
    pub partial: Option<Box<Partial>>,
    /// Whose word it is.
    pub recognised: Recognised,
}

impl Answer {
    /// How much of an answer's body is read, in bytes.
    pub const TEXT_BYTES_MAX: usize = 4096;

    /// Returns Opik's answer with a status only.
    pub fn of_status(status: u16) -> Self {
        let recognised = if (200..300).contains(&status) { Recognised::Confirmed } else { Recognised::Refused };
        let text = String::new();
        Self { status, asked_wait: None, location: None, date_ms: None, text, partial: None, recognised }
    }

    /// Returns whether this is Opik's word that all was done.
    pub fn is_confirmed(&self) -> bool {
        self.recognised == Recognised::Confirmed
    }
}

/// Why there is no answer.
///
/// The difference matters for people and for what is counted, not for delivery: in every case the outcome is unknown or
/// nothing happened, and a repeat is harmless because ids come from the client (protocol dossier, section f, rule 8).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SendFailure {
    /// No connection: name not found, refused, unreachable, TLS failed.
    #[error("cannot connect to {url}: {reason}")]
    Connect {
        /// The server's base URL.
        url: String,
        /// What the system says.
        reason: String,
    },
    /// The connection broke before a whole answer came.
    #[error("the connection to {url} broke: {reason}")]
    Broken {
        /// The server's base URL.
        url: String,
        /// What the system says.
        reason: String,
    },
    /// No answer within the time.
    #[error("no answer from {url} within {} s", .after.as_secs_f64())]
    Timeout {
        /// The server's base URL.
        url: String,
        /// How long was waited.
        after: Duration,
    },
}

/// The longest wait that a server's answer can ask for. Longer ones are cut: a lane must not sleep for days by one header.
pub const ASKED_WAIT_MAX: Duration = Duration::from_secs(3600);

/// Returns how long the server asks to wait: `RateLimit-Reset` in seconds, then `Retry-After` in seconds or as a date.
///
/// That order because the Opik server sends `RateLimit-Reset` on a refusal by rate limit and the Python SDK reads nothing
/// else (protocol dossier, section b). Values that can't be read ask for nothing; longer ones than [`ASKED_WAIT_MAX`]
/// are cut to it. A date is compared with the server's own `Date` where the answer has one, so that a clock of ours that
/// is wrong by hours asks neither at once nor hours late.
pub fn asked_wait(
    ratelimit_reset: Option<&str>,
    retry_after: Option<&str>,
    date: Option<&str>,
    now: SystemTime,
) -> Option<Duration> {
    let now = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()).unwrap_or(now);
    let seconds = |value: &str| value.trim().parse::<u64>().ok().map(Duration::from_secs);
    let date = |value: &str| {
        let at = httpdate::parse_http_date(value.trim()).ok()?;
        Some(at.duration_since(now).unwrap_or(Duration::ZERO))
    };
    let asked = ratelimit_reset.and_then(seconds).or_else(|| retry_after.and_then(|v| seconds(v).or_else(|| date(v))));
    asked.map(|wait| wait.min(ASKED_WAIT_MAX))
}

/// Reads the time of a `Date` header, in milliseconds since the Unix epoch.
pub fn date_ms(date: &str) -> Option<i64> {
    let at = httpdate::parse_http_date(date.trim()).ok()?;
    i64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// An answer that the agent gives in the server's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// `Location`, where the endpoint has one.
    pub location: Option<String>,
    /// `Retry-After` in seconds.
    pub retry_after_seconds: Option<u64>,
    /// `Content-Type`, where there is one.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// Returns an answer with a status only.
    pub fn empty(status: u16) -> Self {
        Self { status, location: None, retry_after_seconds: None, content_type: None, body: String::new() }
    }
}

/// Returns the endpoint's normal success, for a write that was stored.
///
/// `base` is the URL under which the client reached the server's base, `id` the id of a single create. Statuses and the
/// `Location` of single creates are those of the OpenAPI file (protocol dossier, sections a and i). An OTLP request has an
/// answer of its own, see [`super::otlp::success`].
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

/// Returns a 503 in Opik's shape that tells the client when to come again.
pub fn unavailable(message: &str, retry_after: Duration) -> Reply {
    Reply { retry_after_seconds: Some(retry_after.as_secs().max(1)), ..error(503, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_from_the_header_that_the_server_means() {
        let now = httpdate::parse_http_date("Sun, 22 Nov 2026 18:00:00 GMT").expect("a date");
        let cases = [
            (Some("7"), Some("9"), Some(7)),
            (Some("soon"), Some("9"), Some(9)),
            (None, Some(" 9 "), Some(9)),
            (None, Some("Sun, 22 Nov 2026 18:00:30 GMT"), Some(30)),
            (None, Some("Sun, 22 Nov 2026 17:00:00 GMT"), Some(0)),
            (None, Some("-1"), None),
            (Some("99999999"), None, Some(3600)),
            (None, None, None),
        ];
        for (reset, after, expected) in cases {
            let wait = asked_wait(reset, after, None, now);
            assert_eq!(wait, expected.map(Duration::from_secs), "{reset:?} {after:?}");
        }
    }

    #[test]
    fn a_date_is_compared_with_the_servers_clock_when_ours_is_wrong() {
        let theirs = "Sun, 22 Nov 2026 18:00:00 GMT";
        let now = httpdate::parse_http_date(theirs).expect("a date");
        let six_hours = Duration::from_secs(6 * 3600);
        for ours in [now, now + six_hours, now - six_hours] {
            let wait = asked_wait(None, Some("Sun, 22 Nov 2026 18:00:30 GMT"), Some(theirs), ours);
            assert_eq!(wait, Some(Duration::from_secs(30)), "our clock says {ours:?}");
        }
        let wait = asked_wait(None, Some("Sun, 22 Nov 2026 18:00:30 GMT"), Some("yesterday"), now);
        assert_eq!(wait, Some(Duration::from_secs(30)), "a date that can't be read leaves our own clock");
    }

    #[test]
    fn stored_writes_are_acknowledged_as_the_server_would() {
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
