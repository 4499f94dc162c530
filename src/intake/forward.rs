//! Rewrites requests and answers between a client and the server: hop-by-hop headers, `Host` and `Location`. Status,
//! body and all other headers pass untouched.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, Either, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, SizeHint};

use crate::printable;
use crate::protocol::answers::{Reply, asked_wait};
use crate::protocol::hub::{ANSWER_HEADER, EDGE_HEADER, HUB_HEADER, OWN_ANSWER};
use crate::protocol::target::is_api;
use crate::upstream::AGENT_HEADER;
use crate::upstream::forward::{BoxError, ForwardBody, ServerBody};

/// The body of an answer to a client.
pub(crate) type AnswerBody = BoxBody<Bytes, BoxError>;
/// An answer to a client.
pub(crate) type ClientAnswer = http::Response<AnswerBody>;

/// Headers that concern one connection and are not forwarded (RFC 9110, section 7.6.1).
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    // It announces fields after the last chunk, and the chunks end here.
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Returns whether a header concerns one connection, whatever `Connection` names.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Returns the headers that `Connection` names besides what nearly every client sends.
pub(crate) fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(str::trim);
    names.filter(|name| !["keep-alive", "close"].contains(name)).filter_map(|name| name.parse().ok()).collect()
}

/// Removes what concerns one connection: the hop-by-hop headers and those that `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most answers have none of them, and most requests only `Connection`.
    let mut found = [false; HOP_BY_HOP.len()];
    for name in headers.keys() {
        if let Some(at) = HOP_BY_HOP.iter().position(|hop| hop == name) {
            found[at] = true;
        }
    }
    if !found.contains(&true) {
        return;
    }
    let named = named_by_connection(headers);
    let found = HOP_BY_HOP.iter().zip(found).filter_map(|(name, is_found)| is_found.then_some(name));
    for name in named.iter().chain(found) {
        headers.remove(name);
    }
}

/// Returns the headers that go to the server: the client's, with the server's own `Host` and the agent's mark.
pub(crate) fn request_headers(mut headers: HeaderMap, uri: &http::Uri, agent: &HeaderValue) -> HeaderMap {
    strip_hop_by_hop(&mut headers);
    // The agent reads the body, and has told its sender to continue.
    headers.remove(header::EXPECT);
    headers.remove(super::guard::TOKEN_HEADER);
    headers.remove(EDGE_HEADER);
    headers.append(AGENT_HEADER, agent.clone());
    if let Some(host) = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        headers.insert(header::HOST, host);
    }
    headers
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerSource<'a> {
    /// The server's base URL.
    pub base_url: &'a str,
    /// Whether the server is a hub.
    pub is_hub: bool,
}

/// Returns the server's answer for the client: without the headers of the connection, and with a `Location` inside the
/// server's API rewritten to lead through the agent, under the URL that the client used (protocol dossier, section b).
pub(crate) fn client_answer(
    mut answer: http::Response<ServerBody>,
    source: AnswerSource<'_>,
    client_base: impl FnOnce() -> String,
) -> ClientAnswer {
    rewrite_for_client(&mut answer, source, client_base);
    answer.map(|body| body.map_err(Into::into).boxed())
}

/// The body of an answer whose beginning was read: all of it, mostly.
pub(crate) struct AnswerStart {
    /// The bytes that were read.
    pub beginning: Bytes,
    /// The rest, if any.
    rest: Option<ServerBody>,
}

impl AnswerStart {
    /// Returns whether the beginning is all of the body.
    pub(crate) fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    /// Reads a body to its end, or until it has `bytes_max` bytes.
    ///
    /// # Errors
    ///
    /// Fails if the body breaks off before that.
    pub(crate) async fn read(mut body: ServerBody, bytes_max: usize) -> Result<Self, hyper::Error> {
        let mut beginning = BytesMut::new();
        while beginning.len() < bytes_max {
            let Some(frame) = body.frame().await else { return Ok(Self { beginning: beginning.freeze(), rest: None }) };
            if let Ok(data) = frame?.into_data() {
                beginning.extend_from_slice(&data);
            }
        }
        Ok(Self { beginning: beginning.freeze(), rest: (!body.is_end_stream()).then_some(body) })
    }
}

impl Body for AnswerStart {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.beginning.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.beginning)))));
        }
        match &mut self.rest {
            None => Poll::Ready(None),
            Some(rest) => Pin::new(rest).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.beginning.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let beginning = self.beginning.len() as u64;
        let rest = self.rest.as_ref().map(Body::size_hint).unwrap_or_else(|| SizeHint::with_exact(0));
        let mut hint = SizeHint::new();
        hint.set_lower(beginning.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper() {
            hint.set_upper(beginning.saturating_add(upper));
        }
        hint
    }
}

/// Does the same as [`client_answer`] for an answer whose beginning was read.
pub(crate) fn begun_answer(
    head: http::response::Parts,
    body: AnswerStart,
    source: AnswerSource<'_>,
    client_base: impl FnOnce() -> String,
) -> ClientAnswer {
    let mut answer = http::Response::from_parts(head, body.boxed());
    rewrite_for_client(&mut answer, source, client_base);
    answer
}

fn rewrite_for_client<B>(
    answer: &mut http::Response<B>,
    source: AnswerSource<'_>,
    client_base: impl FnOnce() -> String,
) {
    // The version concerns one connection, too: a server that speaks HTTP/1.0 must not end the client's.
    *answer.version_mut() = http::Version::HTTP_11;
    strip_hop_by_hop(answer.headers_mut());
    if !source.is_hub {
        // Only a hub's refusal is not Opik's verdict. An edge would retry a marked one of Opik's forever.
        answer.headers_mut().remove(ANSWER_HEADER);
    }
    answer.headers_mut().remove(HUB_HEADER);
    rewrite_location(answer.headers_mut(), source.base_url, client_base);
    if answer.status() == http::StatusCode::TOO_MANY_REQUESTS {
        set_rate_limit_reset(answer.headers_mut());
    }
}

/// Ensures that a 429 has a `RateLimit-Reset`: without that header the Python SDK drops its data silently (protocol
/// dossier, section b).
fn set_rate_limit_reset(headers: &mut HeaderMap) {
    const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
    if headers.contains_key(RESET) {
        return;
    }
    let value = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let asked = asked_wait(None, value(header::RETRY_AFTER), value(header::DATE), SystemTime::now())
        .map_or(0, |wait| wait.as_secs());
    headers.insert(RESET, HeaderValue::from(asked.max(1)));
}

/// Rewrites only a `Location` inside the API: the server itself shows the pages of its UI.
fn rewrite_location(headers: &mut HeaderMap, server_base: &str, client_base: impl FnOnce() -> String) {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let below = location.and_then(|location| location.strip_prefix(server_base)?.strip_prefix('/'));
    let through = below.filter(|below| is_api(below)).map(|below| format!("{}/{below}", client_base()));
    if let Some(location) = through.and_then(|location| HeaderValue::from_str(&location).ok()) {
        headers.insert(header::LOCATION, location);
    }
}

/// Returns the agent's own answer.
pub(crate) fn own_answer(reply: Reply) -> ClientAnswer {
    // People read it with curl, and clients log it.
    let body = match reply.content_type {
        Some("application/json") => printable::json(&reply.body).into_owned(),
        _ => reply.body,
    };
    let mut answer = http::Response::new(full(body.into()));
    *answer.status_mut() = http::StatusCode::from_u16(reply.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let is_refusal = answer.status().as_u16() >= 400;
    let headers = answer.headers_mut();
    if is_refusal {
        // An agent that sends through this one must not take it for Opik's verdict.
        headers.insert(ANSWER_HEADER, HeaderValue::from_static(OWN_ANSWER));
    }
    if let Some(content_type) = reply.content_type {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if let Some(location) = reply.location.and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    if let Some(seconds) = reply.retry_after_seconds {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// Returns an answer's body of these bytes.
pub(crate) fn full(bytes: Bytes) -> AnswerBody {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// Returns a request's body of these bytes.
pub(crate) fn request_body(bytes: Bytes) -> ForwardBody {
    Either::Left(Full::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_are_not_forwarded() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("x-opik-deprecation", "old"),
        ] {
            headers.insert(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-opik-deprecation"]);
    }

    #[test]
    fn only_a_hubs_mark_is_passed_on() {
        for (is_hub, expected) in [(false, None), (true, Some("agent"))] {
            let mut answer = http::Response::new(());
            for (name, value) in [(ANSWER_HEADER, "agent"), (HUB_HEADER, "server=available")] {
                answer.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            let source = AnswerSource { base_url: "http://s/api", is_hub };
            rewrite_for_client(&mut answer, source, || "http://a/api".to_owned());
            let mark = answer.headers().get(ANSWER_HEADER).map(|mark| mark.to_str().expect("text"));
            assert_eq!(mark, expected, "a hub: {is_hub}");
            assert!(!answer.headers().contains_key(HUB_HEADER), "an edge would show another hub than its own");
        }
        assert!(own_answer(Reply::empty(503)).headers().contains_key(ANSWER_HEADER));
        assert!(!own_answer(Reply::empty(204)).headers().contains_key(ANSWER_HEADER), "that is an acknowledgement");
    }

    #[test]
    fn a_location_inside_the_api_leads_through_the_agent() {
        let bare = "http://s:5173";
        let cases = [
            (
                "http://s:5173/api",
                "http://s:5173/api/v1/private/traces/1",
                "http://a:6745/opik/api/v1/private/traces/1",
            ),
            (bare, "http://s:5173/v1/private/traces/1", "http://a:6745/opik/api/v1/private/traces/1"),
            // Not to the API: a page, an upload, another server.
            ("http://s:5173/api", "http://s:5173/default/projects/1", "http://s:5173/default/projects/1"),
            (bare, "http://s:5173/default/projects/1", "http://s:5173/default/projects/1"),
            (bare, "http://s:51730/v1/private/traces/1", "http://s:51730/v1/private/traces/1"),
            (bare, "https://elsewhere/x", "https://elsewhere/x"),
        ];
        for (server_base, location, expected) in cases {
            let mut headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static(location))]);
            rewrite_location(&mut headers, server_base, || "http://a:6745/opik/api".to_owned());
            assert_eq!(headers[header::LOCATION], expected);
        }
    }
}
