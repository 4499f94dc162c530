//! The server's answer to a write: how much of it is read, and whether it is Opik's.

use bytes::Bytes;
use http::header;
use http::response::Parts;

use super::forward::AnswerStart;
use super::shared::Shared;
use crate::message::{Body, Encoding};
use crate::protocol::answers::SendFailure;
use crate::protocol::hub::ANSWER_HEADER;
use crate::protocol::partial::{Partial, judge};
use crate::protocol::recognise::{Endpoint, Recognised, Seen, recognise};
use crate::upstream::forward::{ForwardBody, innermost};

/// Bytes of the server's answer to a write that are buffered before it is parsed and judged. Its answers to writes are
/// empty or a line long; the rest of a longer one streams to the client.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

impl Shared {
    /// Sends a write, and reads the start of its answer.
    pub(super) async fn send_write(
        &self,
        request: http::Request<ForwardBody>,
    ) -> Result<(Parts, AnswerStart), SendFailure> {
        let (head, body) = self.forwarder.send(request).await?.into_parts();
        let body = AnswerStart::read(body, ANSWER_BYTES_MAX).await.map_err(|error| SendFailure::Broken {
            url: self.forwarder.base_url().to_owned(),
            reason: innermost(&error),
        })?;
        Ok((head, body))
    }

    /// Returns the failure of a server that timed out after this long.
    pub(super) fn timed_out(&self, after: std::time::Duration) -> SendFailure {
        SendFailure::Timeout { url: self.forwarder.base_url().to_owned(), after }
    }
}

/// Returns whose answer this is, and which items it reports as rejected.
pub(super) fn judge_answer(
    endpoint: Endpoint,
    head: &Parts,
    body: &Bytes,
    is_cut: bool,
) -> (Recognised, Option<Partial>) {
    // The answer to nearly every write; no header can change its meaning.
    if head.status == http::StatusCode::NO_CONTENT {
        return (recognise(endpoint, &Seen { status: 204, ..Seen::default() }), None);
    }
    let header = |name: header::HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    // It is compressed if the client accepts that. An answer that can't be decoded is not recognised as Opik's.
    let decoded = match header(header::CONTENT_ENCODING).map(|named| Encoding::from_header(Some(named))) {
        None => Ok(body.clone()),
        Some(_) if body.is_empty() => Ok(body.clone()),
        Some(Some(encoding)) => Body::new(body.clone(), encoding).decode(ANSWER_BYTES_MAX as u64).map_err(drop),
        Some(None) => Err(()),
    };
    let seen = Seen {
        status: head.status.as_u16(),
        content_type: header(header::CONTENT_TYPE),
        location: header(header::LOCATION),
        body: decoded.as_deref().unwrap_or(b"(encoded)"),
        is_cut,
        is_hubs: head.headers.contains_key(ANSWER_HEADER),
    };
    judge(endpoint, &seen)
}
