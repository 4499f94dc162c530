//! Creates that are forwarded unread: neither inflated nor parsed, while everything goes well.
//!
//! ```text
//! received ─▶ may it go unread? ─┬─ no ──▶ as any other write
//!                                └─ yes ─▶ send ─┬─ answered ▶ the server's own answer
//!                                                └─ not ─────▶ read ▶ its turn ▶ register ▶ acknowledged
//! ```
//!
//! A batch create goes unread while the server is available, nothing of its lane is queued or refused, the lane is not
//! failing, and its connection has shown that its creates carry ids ([`crate::intake::evidence`]). Order, also with
//! writes that are read, is kept by [`crate::intake::unread`].
//!
//! A single create is always read: it removes the note about an update that came before it
//! ([`crate::intake::ahead_notes`]), and costs little.
//!
//! What no server could read is not refused by the agent here, but gets the server's own answer. A crash loses nothing:
//! nothing is acknowledged before the server answered or the commit is durable, as for any other write.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::held::{Held, unshared};
use super::prepare::{PREPARE_INLINE_BYTES_MAX, ReceivedWrite, WriteRequest, prepare};
use super::write::{Forwarded, WaitFor, Write};
use crate::delivery::admission::Reachability;
use crate::intake::evidence::CreateEvidence;
use crate::intake::exchange::{encoding_of, lane_of};
use crate::intake::forward::{self, ClientAnswer};
use crate::intake::unread::{Kept, MessageRead, ReadCreate, ReadFailure, Unread};
use crate::memory::{Grant, Use};
use crate::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request};
use crate::protocol::answers::Reply;

/// Bytes of a body that is forwarded unread, decoded. It may have to be read while others wait, and without memory that
/// was taken for it.
const CONTENT_BYTES_MAX: u64 = 256 * 1024;

/// A create whose body was not read.
pub(super) struct UnreadCreate {
    /// The write, with neither entities nor headers to store.
    write: Write,
    /// What its body decodes to.
    content_bytes: usize,
    evidence: Arc<CreateEvidence>,
    memory: Arc<Option<Grant>>,
    /// The same write once it was read, or the answer to a client whose write no server could read. What fails for now is
    /// tried again by the next one who asks.
    read: OnceCell<Result<Arc<Write>, Reply>>,
}

/// A received write that can't go unread.
pub(super) type NotUnread = Box<(WriteRequest, Bytes, Grant)>;

/// Returns a write that may go unread, as far as itself, its connection and the state of its lane show.
pub(super) fn candidate(request: WriteRequest, bytes: Bytes, memory: Grant) -> Result<Arc<UnreadCreate>, NotUnread> {
    match unread_lane(&request, &bytes) {
        Some((lane, encoding, content_bytes)) => {
            let body = Body::new(unshared(bytes), encoding);
            Ok(Arc::new(UnreadCreate::new(request, lane, (body, content_bytes), memory)))
        }
        None => Err(Box::new((request, bytes, memory))),
    }
}

/// Returns the lane, the encoding and the decoded size of a create that may be forwarded unread, as far as its head, its
/// connection and its lane show.
fn unread_lane(request: &WriteRequest, bytes: &Bytes) -> Option<(Lane, Encoding, usize)> {
    let WriteRequest { exchange, route, .. } = request;
    let (shared, headers) = (&exchange.shared, &exchange.head.headers);
    let is_batch = matches!(route.message_type, MessageType::CreateTraceBatch | MessageType::CreateSpansBatch);
    let may_pass = shared.listener.windows.are_open() && shared.reachability() == Reachability::Presumed;
    if !is_batch || !may_pass {
        return None;
    }
    let encoding = encoding_of(headers).ok()?;
    let content = Body::new(bytes.clone(), encoding).announced_bytes()?;
    if bytes.len() as u64 > CONTENT_BYTES_MAX || content > CONTENT_BYTES_MAX.min(shared.limits.inflated_bytes_max) {
        return None;
    }
    let lane = lane_of(&shared.server, headers);
    let is_free = !shared.connection.lanes().is_failing(&lane);
    // Last, because it counts.
    (is_free && exchange.evidence.is_trusted(route.message_type)).then_some((
        lane,
        encoding,
        usize::try_from(content).ok()?,
    ))
}

impl UnreadCreate {
    fn new(request: WriteRequest, lane: Lane, (body, content_bytes): (Body, usize), memory: Grant) -> Self {
        let ReceivedWrite { shared, head, client, evidence, route, below } = request.into();
        let method = head.method.as_str().to_owned();
        let message = Message {
            lane,
            message_type: route.message_type,
            request: Request { method, path: below, headers: HeaderSet::default(), body },
            touches: Vec::new(),
            items: 0,
            project: None,
            accepted_at_ms: 0,
        };
        let write = Write {
            shared,
            client,
            route,
            head,
            id: None,
            message,
            needs_answer: None,
            acknowledged_as: None,
            large: None,
        };
        Self { write, content_bytes, evidence, memory: Arc::new(Some(memory)), read: OnceCell::new() }
    }

    /// Reads the body; once, however many ask for it.
    ///
    /// # Errors
    ///
    /// The answer to its client: 500 and above if that fails for now, else no server could read it either.
    async fn read_once(&self) -> Result<Arc<Write>, Reply> {
        let read = self
            .read
            .get_or_try_init(|| async {
                let Write { shared, client, route, head, message, .. } = &self.write;
                let received = ReceivedWrite {
                    shared: shared.clone(),
                    head: head.clone(),
                    client: client.clone(),
                    evidence: self.evidence.clone(),
                    route: route.clone(),
                    below: message.request.path.clone(),
                };
                // The body is small, and whoever waits for it may hold memory that others wait for.
                match prepare(received, message.request.body.bytes.clone(), None, &mut None).await {
                    Err(reply) if is_temporary(&reply) => Err(reply),
                    read => Ok(read.map(Arc::new)),
                }
            })
            .await?;
        read.clone()
    }
}

impl UnreadCreate {
    /// Waits for the memory that it takes to read the body, as for any other write.
    ///
    /// # Errors
    ///
    /// The answer to a client that has timed out.
    async fn memory_to_read(&self) -> Result<Option<Grant>, Reply> {
        let Write { shared, message, .. } = &self.write;
        let body = &message.request.body;
        match body.is_encoded() && body.bytes.len() > PREPARE_INLINE_BYTES_MAX {
            true => shared.wait_for_memory(Use::Inspection, body.content_bytes_max()).await.map(Some),
            false => Ok(None),
        }
    }
}

impl Unread for UnreadCreate {
    fn read(self: Arc<Self>) -> MessageRead {
        Box::pin(async move {
            match self.read_once().await {
                Ok(write) => Ok(ReadCreate { message: Arc::new(write.message.clone()), memory: self.memory.clone() }),
                Err(reply) if is_temporary(&reply) => Err(ReadFailure::NotNow),
                Err(_) => Err(ReadFailure::Unreadable),
            }
        })
    }
}

/// Returns whether a body that gets this answer may be readable later.
fn is_temporary(reply: &Reply) -> bool {
    reply.status >= 500
}

/// Forwards the create unread, if its window allows it, and stores it if the server does not decide.
pub(super) async fn deliver(create: Arc<UnreadCreate>) -> ClientAnswer {
    let Write { shared, message, .. } = &create.write;
    let flights = shared.listener.windows.of(&message.lane);
    // It takes as much as it decodes to, if ids have to be added to it.
    let bytes = message.request.body.bytes.len().max(create.content_bytes);
    let kept = || (Kept::Unread(create.clone()), bytes);
    // In this order: the window lets nothing be stored from then on that this create could overtake.
    let flight = flights.begin_unread(kept).filter(|_| shared.is_lane_clear(&message.lane));
    let Some(flight) = flight else { return Box::pin(deliver_read(&create)).await };
    shared.listener.windows.note_unread();
    let mut held = Held { flight, ticket: None, memory: create.memory.clone() };
    match create.write.forward(WaitFor::AnswerOrOutage).await {
        Forwarded::Answered(answer) => match held.answered(answer.status(), message) {
            false => answer,
            true => Box::pin(store(&create, &mut held, Some(answer), None)).await,
        },
        Forwarded::Keep { fallback } => Box::pin(store(&create, &mut held, None, fallback)).await,
    }
}

/// Delivers a create as any other write.
async fn deliver_read(create: &UnreadCreate) -> ClientAnswer {
    let read = match create.memory_to_read().await {
        Ok(_memory) => create.read_once().await,
        Err(reply) => Err(reply),
    };
    match read {
        Ok(write) => write.deliver(create.memory.clone()).await,
        Err(reply) => forward::own_answer(reply),
    }
}

/// Stores a create that the server did not take, or `answered` and has to get again.
async fn store(
    create: &UnreadCreate,
    held: &mut Held,
    answered: Option<ClientAnswer>,
    fallback: Option<ClientAnswer>,
) -> ClientAnswer {
    // Nothing begins from now on that it would overtake.
    held.flight.keep();
    // Without memory, at shutdown and after a while, it is read all the same: others were delivered behind it.
    let memory = create.memory_to_read().await.ok();
    let read = create.read_once().await;
    drop(memory);
    let failure = match read {
        Ok(write) => match write.register(held).await {
            Ok(answer) => return answered.unwrap_or(answer),
            Err(not_stored) => Ok(not_stored),
        },
        Err(reply) => Err(reply),
    };
    match (answered, failure) {
        // What it had to follow was not stored either.
        (Some(answer), _) if !held.answered(answer.status(), &create.write.message) => answer,
        (_, Ok(not_stored)) => {
            let refusal = not_stored.refuse(&create.write.shared);
            fallback.unwrap_or(refusal)
        }
        (_, Err(reply)) => fallback.unwrap_or_else(|| forward::own_answer(reply)),
    }
}
