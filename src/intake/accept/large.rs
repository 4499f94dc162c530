//! A batch that is too large for memory: read in pieces, forwarded as it arrived, and stored as several messages.
//!
//! ```text
//! spooled ─▶ surveyed (where the items are) ─▶ inspected, piece by piece ─▶ locks ─▶ admission ─┬─ forward: streamed
//!                                                                                               └─ register: piece by piece
//! ```
//!
//! To the server it goes byte for byte as it arrived. Into the store it goes in pieces of a few MiB, so that replay,
//! division and the memory budget handle nothing larger than usual; the client is answered once the last piece is
//! committed. If that fails halfway, the client is asked to retry, and what is stored by then is sent twice at most,
//! under the same ids.

use std::sync::Arc;

use bytes::Bytes;
use http::header;

use super::not_stored::NotStored;
use super::pieces::{BatchSummary, Content, FAILED, LargeBatch, LargeBodyError, Surveyed, survey};
use super::prepare::{WriteRequest, accept_whole};
use super::stream_through::stream_through;
use super::unkept::{PartialBody, Unkept};
use super::write::Write;
use crate::intake::body::Sizes;
use crate::intake::exchange::{encoding_of, kept_headers};
use crate::intake::forward::{self, ClientAnswer};
use crate::intake::spool::Payload;
use crate::memory::{Grant, Use};
use crate::message::{Body, Encoding, HeaderSet, Message, Request};
use crate::protocol::answers::{error, success};
use crate::protocol::inspection::{Inspection, inspect};
use crate::protocol::item_stream::Piece;

/// Accepts a write whose body is not read as a whole. `memory` is for its payload.
pub(super) async fn accept(request: WriteRequest, payload: Payload, memory: Option<Grant>) -> ClientAnswer {
    let shared = &request.exchange.shared;
    let encoding = match encoding_of(&request.exchange.head.headers) {
        Ok(encoding) => encoding,
        Err(reply) => return forward::own_answer(reply),
    };
    let content = Content { payload: payload.clone(), encoding, bytes_max: shared.limits.inflated_bytes_max };
    let (route, surveyed, sizes) = (request.route.clone(), content.clone(), Sizes::of(shared.memory.bytes()));
    let prepared = match blocking(move || survey(&route, surveyed, sizes)).await {
        Ok(Surveyed::Listed(batch)) => prepare(&request, batch).await,
        Ok(Surveyed::Other(bytes)) => return accept_undivided(request, content, bytes, memory).await,
        Err(error) => Err(error),
    };
    match prepared {
        Ok(write) => write.deliver(Arc::new(memory)).await,
        Err(LargeBodyError::Refused(reply)) => forward::own_answer(*reply),
        Err(LargeBodyError::Unkept(why)) => {
            stream_through(request, PartialBody { payload, memory, is_whole: true }, why).await
        }
    }
}

/// Accepts a large body that is not a list of items as any other: whole, if it fits into memory. `bytes` is its decoded
/// size.
async fn accept_undivided(request: WriteRequest, content: Content, bytes: u64, memory: Option<Grant>) -> ClientAnswer {
    let shared = &request.exchange.shared;
    let sizes = Sizes::of(shared.memory.bytes());
    let payload = content.payload.clone();
    let sent = payload.bytes();
    if bytes > sizes.whole_inflated || sent > sizes.whole {
        let why = Unkept::Indivisible(sizes.whole);
        return stream_through(request, PartialBody { payload, memory, is_whole: true }, why).await;
    }
    let memory = match memory {
        Some(memory) => memory,
        None => match shared.wait_for_memory(Use::Intake, sent).await {
            Ok(memory) => memory,
            Err(reply) => return forward::own_answer(reply),
        },
    };
    match blocking(move || content.read_whole()).await {
        Ok(body) => accept_whole(request, Bytes::from(body), Some(bytes), memory).await,
        Err(LargeBodyError::Refused(reply)) => forward::own_answer(*reply),
        Err(LargeBodyError::Unkept(_)) => forward::own_answer(error(500, FAILED)),
    }
}

/// Finds out what a batch is about, and gives ids to its creates that have none.
async fn prepare(request: &WriteRequest, batch: LargeBatch) -> Result<Write, LargeBodyError> {
    let (exchange, route) = (&request.exchange, request.route.clone());
    let lane = exchange.lane();
    let memory = exchange.shared.wait_for_memory(Use::Inspection, batch.memory()).await?;
    let spools = exchange.shared.spools.clone();
    let (batch, summary) = blocking(move || batch.inspect(&route, spools)).await?;
    drop(memory);
    let mut head = exchange.head.clone();
    if batch.encoding() == Encoding::Identity {
        head.headers.remove(header::CONTENT_ENCODING);
    }
    let message_request = Request {
        method: head.method.as_str().to_owned(),
        path: request.below.clone(),
        headers: kept_headers(&head.headers),
        // The body is in the batch.
        body: Body::new(Bytes::new(), Encoding::Identity),
    };
    let BatchSummary { touches, items, project, needs_answer } = summary;
    if let Some(needs) = needs_answer {
        tracing::debug!(target: "intake", message_type = %request.route.message_type, "never stored, because {}", needs.why);
    }
    let message = Message {
        lane,
        message_type: request.route.message_type,
        request: message_request,
        touches,
        items,
        project,
        accepted_at_ms: 0,
    };
    Ok(Write {
        shared: exchange.shared.clone(),
        client: exchange.client.clone(),
        route: request.route.clone(),
        head,
        id: None,
        message,
        needs_answer,
        acknowledged_as: None,
        large: Some(Arc::new(batch)),
    })
}

impl Write {
    /// Stores a large batch piece by piece, and acknowledges it once the last piece is committed.
    pub(super) async fn register_pieces(&self, batch: &Arc<LargeBatch>) -> Result<ClientAnswer, NotStored> {
        let Ok(_memory) = self.shared.wait_for_memory(Use::Inspection, batch.memory()).await else {
            return Err(NotStored::busy());
        };
        let headers = self.message.request.headers.iter();
        let headers = headers.filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
        let headers = HeaderSet::new(headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect());
        let mut pieces = batch.pieces();
        let mut stored = 0;
        loop {
            let route = self.route.clone();
            let next = tokio::task::spawn_blocking(move || {
                let next = pieces.next_piece().ok()?;
                let next = match next {
                    None => None,
                    Some(Piece { content, .. }) => Some((inspect(&route, &content).ok()?, content)),
                };
                Some((pieces, next))
            });
            // It was read before, so a failure is our disk's.
            let Ok(Some((rest, next))) = next.await else { return Err(NotStored::unreadable()) };
            pieces = rest;
            let (inspection, content) = match next {
                Some(next) => next,
                // A batch without items is stored as one message, as any other write that does nothing.
                None if stored == 0 => (Inspection::default(), batch.empty()),
                None => break,
            };
            let body = Body::new(content, Encoding::Identity);
            let request = Request { headers: headers.clone(), body, ..self.message.request.clone() };
            let message = Message {
                request,
                touches: inspection.touches,
                items: inspection.items,
                project: inspection.project,
                ..self.message.clone()
            };
            // Nothing may follow before all pieces are queued.
            self.commit(message, Vec::new(), || ()).await?;
            stored += 1;
        }
        tracing::debug!(target: "intake", pieces = stored, "a large batch is stored in pieces");
        Ok(forward::own_answer(success(&self.route, &self.client.base(), None)))
    }
}

/// Runs work that waits for the disk, on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LargeBodyError> + Send + 'static,
) -> Result<T, LargeBodyError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(error(500, FAILED).into()))
}
