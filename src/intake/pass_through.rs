//! Pass-through: a request streamed to the server, and its answer streamed back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::request::Parts;
use http_body_util::{BodyExt, Either};
use hyper::body::Incoming;
use tracing::debug;

use super::exchange::{ClientUrl, Exchange};
use super::forward::{self, ClientAnswer};
use super::pace::PacedBody;
use super::shared::Shared;
use crate::protocol::answers::{SendFailure, unavailable};
use crate::upstream::forward::ForwardBody;

impl Exchange {
    /// Streams the request to the server and its answer back.
    pub(super) async fn pass_through(self) -> ClientAnswer {
        let Self { shared, head, client, body, .. } = self;
        let body = OutgoingBody::streamed(&shared, body);
        pass_through(&shared, head, &client, body).await
    }
}

/// A body in flight to the server, and whether its client timed out.
pub(super) struct OutgoingBody {
    body: ForwardBody,
    is_late: Arc<AtomicBool>,
}

impl OutgoingBody {
    /// Streams a client's body as it arrives.
    pub(super) fn streamed(shared: &Shared, body: Incoming) -> Self {
        let is_late = Arc::<AtomicBool>::default();
        let body = PacedBody::new(body, shared.limits.client_timeout, is_late.clone());
        Self { body: Either::Right(body.boxed()), is_late }
    }
}

impl From<ForwardBody> for OutgoingBody {
    fn from(body: ForwardBody) -> Self {
        Self { body, is_late: Arc::default() }
    }
}

/// Streams a request with this body to the server and its answer back.
pub(super) async fn pass_through(
    shared: &Shared,
    mut head: Parts,
    client: &ClientUrl,
    OutgoingBody { body, is_late }: OutgoingBody,
) -> ClientAnswer {
    let base_url = shared.forwarder.base_url();
    head.headers = forward::request_headers(head.headers, &client.uri, &shared.agent_mark);
    head.uri = client.uri.clone();
    head.version = http::Version::HTTP_11;
    let request = http::Request::from_parts(head, body);
    let sending = shared.forwarder.send(request);
    let sent = match shared.answer_timeout() {
        None => sending.await,
        Some(timeout) => tokio::time::timeout(timeout, sending)
            .await
            .unwrap_or_else(|_| Err(SendFailure::Timeout { url: base_url.to_owned(), after: timeout })),
    };
    match sent {
        Ok(answer) => {
            shared.metrics.requests_passed_through.add(1);
            forward::client_answer(answer, shared.answer_source(), || client.base())
        }
        Err(_) if is_late.load(Ordering::Relaxed) => forward::own_answer(shared.refuse_slow()),
        Err(failure) => {
            debug!(target: "intake", "cannot pass a request through: {failure}");
            shared.metrics.intake_refused.add(1);
            let text = "the Opik server cannot be reached, and this request needs its answer";
            forward::own_answer(unavailable(text, shared.retry_after()))
        }
    }
}
