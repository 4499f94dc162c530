//! One request in flight through intake: its head, its body, and the state that it shares with others.
//!
//! Modelled on pingora's `Session`: functions take the exchange instead of its parts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::request::Parts;
use hyper::body::Incoming;

use super::evidence::CreateEvidence;
use super::forward::{self, ClientAnswer};
use super::pace::{BodyPace, TooSlow};
use super::shared::Shared;
use crate::message::{Credential, Encoding, HeaderSet, Lane, Server, workspace_of_headers};
use crate::protocol::answers::{Reply, error};
use crate::protocol::hub::EDGE_HEADER;

/// Bytes of a refused body that are read and discarded, so that its client gets to read the answer.
const DISCARD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The timeout for the next piece of such a body.
const DISCARD_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Headers that are not kept with a message: those of the connection, those that the lane carries, and those that only
/// concern this exchange.
static NOT_KEPT: [HeaderName; 9] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::ACCEPT_ENCODING,
    header::AUTHORIZATION,
    header::DATE,
    HeaderName::from_static("comet-workspace"),
    HeaderName::from_static(super::guard::TOKEN_HEADER),
    HeaderName::from_static(EDGE_HEADER),
];

/// One request that is for the server.
pub(super) struct Exchange {
    pub(super) shared: Arc<Shared>,
    /// The head as its client sent it.
    pub(super) head: Parts,
    pub(super) client: ClientUrl,
    /// What its connection has shown.
    pub(super) evidence: Arc<CreateEvidence>,
    /// The rest of its body, not read yet.
    pub(super) body: Incoming,
}

impl Exchange {
    /// Answers with this reply, once the rest of the body is discarded.
    pub(super) async fn refuse(self, reply: Reply) -> ClientAnswer {
        self.refuse_with(forward::own_answer(reply)).await
    }

    /// Gives this answer, once the rest of the body is discarded.
    pub(super) async fn refuse_with(self, answer: ClientAnswer) -> ClientAnswer {
        refuse_with(answer, &self.head.headers, self.body).await
    }

    /// Returns the lane of the request.
    pub(super) fn lane(&self) -> Lane {
        lane_of(&self.shared.server, &self.head.headers)
    }
}

/// The URL under which a client reached the server's base, and where its request goes.
#[derive(Clone, Debug)]
pub(super) struct ClientUrl {
    pub(super) host: String,
    pub(super) prefix: String,
    /// The URL at the server, spelled as the client spelled it.
    pub(super) uri: http::Uri,
}

impl ClientUrl {
    /// Returns the server's base URL as the client sees it.
    pub(super) fn base(&self) -> String {
        format!("http://{}{}", self.host, self.prefix)
    }

    /// Returns the base URL that the client itself claims to use, if it parses and has the host of the request: only
    /// the client knows whether a proxy in front of the agent terminates TLS.
    pub(super) fn base_or_claimed(&self, claimed: Option<&str>) -> String {
        let claimed = claimed.and_then(|url| {
            let uri: http::Uri = url.parse().ok()?;
            let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
            let is_same_host = uri.authority()?.as_str().eq_ignore_ascii_case(&self.host);
            (is_http && is_same_host && uri.query().is_none()).then(|| url.trim_end_matches('/').to_owned())
        });
        claimed.unwrap_or_else(|| self.base())
    }
}

/// Returns an answer once the rest of the body is read and discarded.
///
/// A connection that is closed while its client still sends is reset, and the client would see that instead of the
/// answer. Bounded by [`DISCARD_BYTES_MAX`] and [`DISCARD_PAUSE_MAX`]; a client that asked before sending (`Expect`)
/// gets the answer at once.
pub(super) async fn refuse_with(answer: ClientAnswer, headers: &HeaderMap, mut body: Incoming) -> ClientAnswer {
    // Not for a client that was refused because it is slow.
    let is_at_once = headers.contains_key(header::EXPECT) || answer.status() == http::StatusCode::REQUEST_TIMEOUT;
    let mut left = if is_at_once { 0 } else { DISCARD_BYTES_MAX };
    let mut pace = BodyPace::new(DISCARD_PAUSE_MAX);
    while left > 0 {
        match pace.next(&mut body).await {
            Ok(Some(Ok(frame))) => left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len)),
            Ok(Some(Err(_)) | None) | Err(TooSlow) => break,
        }
    }
    answer
}

/// Returns the lane of a request: this server, and the workspace and credential of its client.
pub(super) fn lane_of(server: &Server, headers: &HeaderMap) -> Lane {
    let workspaces = headers.get_all("comet-workspace").iter().map(header::HeaderValue::as_bytes);
    let credential = headers.get(header::AUTHORIZATION).map(|value| Credential::new(value.as_bytes()));
    Lane { server: Some(server.clone()), workspace: workspace_of_headers(workspaces), credential }
}

/// Returns the encoding of a body.
///
/// # Errors
///
/// The answer to a client that uses another one.
pub(super) fn encoding_of(headers: &HeaderMap) -> Result<Encoding, Reply> {
    let named = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("unreadable"));
    Encoding::from_header(named).ok_or_else(|| {
        let text = format!("Content-Encoding {} is not supported, use gzip, deflate or none", named.unwrap_or(""));
        error(415, &text)
    })
}

/// Returns the headers that are stored with a message and sent again by replay.
pub(super) fn kept_headers(headers: &HeaderMap) -> HeaderSet {
    let named = forward::named_by_connection(headers);
    let is_kept =
        |name: &HeaderName| !NOT_KEPT.contains(name) && !forward::is_hop_by_hop(name) && !named.contains(name);
    let kept = headers.iter().filter(|(name, _)| is_kept(name));
    HeaderSet::new(kept.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect())
}

/// Parses the `Content-Length` of a request.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_headers_of_the_exchange_are_not_kept_with_a_message() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "made-up-key"),
            ("proxy-authorization", "Basic x"),
            ("x-opik-offline-token", "made-up-token"),
            ("x-opik-offline-edge", "id=a1; host=mine"),
            ("comet-workspace", "team"),
            ("host", "localhost"),
            ("content-length", "5"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip"),
            ("date", "today"),
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("x-kept", "yes"),
        ] {
            headers.append(name, header::HeaderValue::from_static(value));
        }
        headers.append("authorization", header::HeaderValue::from_static("another key"));
        let kept = kept_headers(&headers);
        let mut names: Vec<&str> = kept.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-encoding", "content-type", "x-kept"]);
    }
}
