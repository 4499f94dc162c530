//! The server's responses as plain values, failures to get one, and the waits that headers ask for.

use std::time::{Duration, SystemTime};

use thiserror::Error;

use super::hub::Hub;
use super::partial::Partial;
use super::recognise::Recognised;
pub use super::reply::{Reply, error, success, unavailable};

/// A response of the server, buffered up to a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The wait that the server's headers ask for, capped; see [`asked_wait`].
    pub asked_wait: Option<Duration>,
    /// `Location` of a redirect.
    pub location: Option<String>,
    /// The server's clock from `Date`, in milliseconds since the Unix epoch.
    pub date_ms: Option<i64>,
    /// The beginning of the body as text, for people.
    pub text: String,
    /// The items that a partial success reports as discarded.
    pub partial: Option<Box<Partial>>,
    /// Who sent it: Opik, or a front.
    pub recognised: Recognised,
    /// The hub that sent it, if it describes itself: only in answers to pings.
    pub hub: Option<Box<Hub>>,
}

impl Answer {
    /// Limit of the response body that is read, in bytes.
    pub const TEXT_BYTES_MAX: usize = 4096;

    /// Returns an answer of Opik's with only a status.
    pub fn of_status(status: u16) -> Self {
        let recognised = if (200..300).contains(&status) { Recognised::Confirmed } else { Recognised::Refused };
        let text = String::new();
        Self { status, asked_wait: None, location: None, date_ms: None, text, partial: None, recognised, hub: None }
    }

    /// Returns whether Opik confirms the complete request.
    pub fn is_confirmed(&self) -> bool {
        self.recognised == Recognised::Confirmed
    }
}

/// Why there is no response.
///
/// The distinction matters for messages and metrics, not for delivery: in every case the outcome is unknown or
/// nothing happened, and a retry is idempotent because ids come from the client (protocol dossier, section f, rule 8).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SendFailure {
    /// No connection: DNS error, connection refused, unreachable, TLS failure.
    #[error("cannot connect to {url}{}: {reason}", tried_port(url, reason))]
    Connect {
        /// The server's base URL.
        url: String,
        /// The system's error.
        reason: String,
    },
    /// The connection broke before the response was complete.
    #[error("the connection to {url} broke: {reason}")]
    Broken {
        /// The server's base URL.
        url: String,
        /// The system's error.
        reason: String,
    },
    /// The response timed out.
    #[error("no answer from {url} within {} s", .after.as_secs_f64())]
    Timeout {
        /// The server's base URL.
        url: String,
        /// The timeout.
        after: Duration,
    },
}

/// Returns which port was tried, for people, if the URL names none and a connection was tried.
fn tried_port(url: &str, reason: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://").filter(|_| !reason.contains("resolve")) else {
        return String::new();
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let has_port = authority.rsplit_once(']').map_or(authority, |(_, after)| after).contains(':');
    match (scheme, has_port) {
        ("http", false) => " (port 80, as it names none)".to_owned(),
        ("https", false) => " (port 443, as it names none)".to_owned(),
        _ => String::new(),
    }
}

/// Upper bound of the wait that a response can ask for: one header must not suspend a lane for days.
pub const ASKED_WAIT_MAX: Duration = Duration::from_secs(3600);

/// Parses the wait that the server asks for: `RateLimit-Reset` in seconds, then `Retry-After` in seconds or as a date.
///
/// In this order because a rate-limited Opik server sends `RateLimit-Reset`, and the Python SDK reads nothing
/// else (protocol dossier, section b). Values that fail to parse are ignored; longer ones than [`ASKED_WAIT_MAX`]
/// are capped. A date is compared with the response's own `Date` if it has one, so that a local clock that
/// is wrong by hours neither skips nor prolongs the wait.
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

/// Parses a `Date` header, in milliseconds since the Unix epoch.
pub fn date_ms(date: &str) -> Option<i64> {
    let at = httpdate::parse_http_date(date.trim()).ok()?;
    i64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_parsed_from_the_header_with_precedence() {
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
    fn dates_are_compared_with_the_servers_clock() {
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
}
