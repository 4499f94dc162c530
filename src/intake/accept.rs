//! A protected write from admission to acknowledgement.
//!
//! ```text
//! body read ─▶ prepared (decoded, ids, entities) ─▶ its turn ─▶ admission ─┬─ forward ─▶ verdict ─▶ the server's answer
//!                                                                          └─ register ─▶ committed ─▶ acknowledged
//! ```
//!
//! What is too large for memory takes the same way, with its body on disk ([`large`]); what can't be kept streams through
//! ([`unkept`]).
//!
//! The crash between every two steps: before the answer or the commit nothing was acknowledged and the client still has
//! its data; after it, the server or the disk has it. Once the body is read the work goes on in a task of its own, so a
//! client that hangs up neither loses a write half-way nor frees its turn too early.

pub(super) mod full;
mod large;
mod receive;
mod unkept;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http::request::Parts;
use hyper::body::{Body as _, Incoming};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use uuid::Uuid;

use self::large::Large;
pub(super) use self::receive::Sizes;
use self::receive::{Decoded, Received};
use self::unkept::{Asked, Begun};
use super::forward::{self, ClientAnswer};
use super::spool::{Payload, Progress};
use super::wire::{Pace, TooSlow};
use super::{ClientUrl, Shared};
use crate::delivery::admission::{Admission, LaneState, Reachability, admit, forward_patience, unprotected};
use crate::delivery::backoff::lane_wait;
use crate::delivery::unprotected::{KnownBacklog, Passage, behind_moved, passage};
use crate::delivery::verdict::{ForwardVerdict, Trouble, forwarding, is_begun, rate_limited};
use crate::memory::{Grant, Use};
use crate::message::{
    Body, BodyFault, Bucket, Credential, Encoding, HeaderSet, Lane, Message, MessageType, Request, Server, Touch,
    workspace_of_headers,
};
use crate::monitor::lane_trouble::jitter;
use crate::monitor::{Availability, Change};
use crate::protocol::answers::{Reply, SendFailure, asked_wait, error, success, unavailable};
use crate::protocol::inspection::{Inspection, NeedsAnswer, inspect, with_ids};
use crate::protocol::otlp;
use crate::protocol::partial::{Partial, judge};
use crate::protocol::recognise::{Endpoint, Recognised, Seen, recognise};
use crate::protocol::routes::Protected;
use crate::store::committer::CommitError;
use crate::store::{Ahead, BacklogSeen, FullLimit, Hold, StoreError, now_ms};

/// Bodies up to this size are prepared where they arrive; larger ones on a thread that may take its time.
const PREPARE_INLINE_BYTES_MAX: usize = 16 * 1024;
/// The same of what they are inflated to.
const PREPARE_INLINE_CONTENT_BYTES_MAX: u64 = 256 * 1024;
/// How much of the server's answer to a write is read before it is judged. Its answers to writes are empty or a line
/// long; a longer one is no less an answer, and its rest streams to the client.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// What the server says of a trace that it has (`Trace already exists`).
const ALREADY: &[u8] = b"already exist";
/// How much of a refused body is read and thrown away, so that its client gets to read the answer.
const DISCARD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long a client may pause while it does, at the pace of any body.
const DISCARD_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A server that has not answered a write for so long is asked by a ping whether it is there.
const SILENCE_DOUBTED_AFTER: Duration = Duration::from_secs(5);
/// How often a write that waits for its answer looks whether that still makes sense.
const SILENCE_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What a client is told, and asked to wait, when other bodies take all the memory for bodies.
pub(super) const BUSY_TEXT: &str = "opik-offline holds too many bodies at once";
pub(super) const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a large body waits for memory before its client is told to come again.
const MEMORY_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a client may pause that has memory for its body, and how many bytes a second it has to send after that, while
/// others wait for memory or are refused it.
const AWAITED_PAUSE_MAX: Duration = Duration::from_secs(10);
const AWAITED_RATE_MIN: u64 = 256 * 1024;
/// How often a pause that is longer is looked at again.
const AWAITED_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Memory that a body takes at once which does not say how large it is, when it turns out to be a large one.
const GROWER_BYTES: u64 = 64 * 1024 * 1024;
/// What an id takes that is added to a body, with its key.
const ID_BYTES: u64 = 64;
/// What a client is asked to wait when the store is full or busy.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Headers that are not kept with a message: those of the connection, those that the lane carries, and what only this
/// exchange was about.
const NOT_KEPT: [header::HeaderName; 6] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::ACCEPT_ENCODING,
    header::AUTHORIZATION,
    header::DATE,
];

/// Takes a protected write and returns its client's answer.
pub(super) async fn accept(
    shared: Arc<Shared>,
    write: Protected,
    head: Parts,
    below: String,
    client: ClientUrl,
    body: Incoming,
) -> ClientAnswer {
    let mut body = body;
    let received = match receive::receive(&shared, write.message_type, &head.headers, &mut body).await {
        Ok(received) => received,
        Err(reply) => return refuse(reply, &head.headers, body).await,
    };
    let asked = Asked { write, head, below, client };
    let work = async move {
        match received {
            Received::Held(bytes, memory) => take(&shared, asked, bytes, memory).await,
            Received::Spooled(payload) => large::take(&shared, asked, payload, None).await,
            Received::Unkept(begun, why) => unkept::stream_through(&shared, asked, begun, Some(body), why).await,
        }
    };
    // Not tied to the connection: see the module's head.
    tokio::spawn(work).await.unwrap_or_else(|_| {
        forward::own_answer(error(500, "opik-offline failed to handle this request, which was not stored"))
    })
}

/// Takes a write whose body is in memory as it was sent.
async fn take(shared: &Arc<Shared>, asked: Asked, bytes: Bytes, memory: Grant) -> ClientAnswer {
    match receive::measure(shared, asked.write.message_type, &asked.head.headers, &bytes).await {
        Ok(Decoded::Whole(content_bytes)) => take_whole(shared, asked, bytes, content_bytes, memory).await,
        Ok(Decoded::Divided) => large::take(shared, asked, Payload::Held(bytes), Some(memory)).await,
        Ok(Decoded::Unkept(why)) => {
            let begun = Begun { payload: Payload::Held(bytes), memory: Some(memory) };
            unkept::stream_through(shared, asked, begun, None, why).await
        }
        Err(reply) => forward::own_answer(reply),
    }
}

/// Takes a write whose body is decoded in memory, to this many bytes if that is known.
async fn take_whole(
    shared: &Arc<Shared>,
    asked: Asked,
    bytes: Bytes,
    content_bytes: Option<u64>,
    memory: Grant,
) -> ClientAnswer {
    let Asked { write, head, below, client } = asked;
    let mut memory = Some(memory);
    let answer = Write::prepare(shared, write, head, below, (bytes, content_bytes), &mut memory).await;
    let answer = match answer {
        Ok(write) => write.deliver(shared, &client).await,
        Err(reply) => forward::own_answer(reply),
    };
    drop(memory);
    answer
}

/// Returns an answer of the agent's own after the rest of the body was read and thrown away.
///
/// A connection that is closed while its client still sends is reset, and the client would see that instead of the
/// answer. Bounded by [`DISCARD_BYTES_MAX`] and [`DISCARD_PAUSE_MAX`]; who asked before sending gets the answer at once.
pub(super) async fn refuse(reply: Reply, headers: &HeaderMap, body: Incoming) -> ClientAnswer {
    refuse_with(forward::own_answer(reply), headers, body).await
}

/// The same with an answer that is made already.
pub(super) async fn refuse_with(answer: ClientAnswer, headers: &HeaderMap, mut body: Incoming) -> ClientAnswer {
    // Nobody waits longer for a client that was refused for its slowness.
    let is_at_once = headers.contains_key(header::EXPECT) || answer.status() == http::StatusCode::REQUEST_TIMEOUT;
    let mut left = if is_at_once { 0 } else { DISCARD_BYTES_MAX };
    let mut pace = Pace::new(DISCARD_PAUSE_MAX);
    while left > 0 {
        match pace.next(&mut body).await {
            Ok(Some(Ok(frame))) => left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len)),
            Ok(Some(Err(_)) | None) | Err(TooSlow) => break,
        }
    }
    answer
}

/// Reads a body whole, if it may be held in memory.
pub(super) async fn read_body(
    shared: &Shared,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<(Bytes, Grant), Reply> {
    let limit = shared.limits.body_bytes_max.min(Sizes::of(shared.memory.bytes()).whole);
    let too_large = || {
        shared.over_limit("bytes of a body");
        error(413, &format!("the body is larger than {limit} bytes, opik-offline's limit (max_body_size)"))
    };
    if body.size_hint().exact().is_some_and(|bytes| bytes > limit) {
        return Err(too_large());
    }
    match read_up_to(shared, headers, body, limit).await? {
        Read { bytes, memory, is_whole: true } => Ok((bytes, memory)),
        Read { is_whole: false, .. } => Err(too_large()),
    }
}

/// What was read of a body.
struct Read {
    bytes: Bytes,
    memory: Grant,
    /// False for one that is larger than was asked for.
    is_whole: bool,
}

/// Returns how long a body is, as its head says.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body up to a size, and a little past it, within the memory for all bodies together.
///
/// A large body that says how large it is waits until there is memory for all of it, and is not read before: its client
/// is held back by its connection. Others take memory as they come. A client that has memory and sends nothing gives it
/// up when others need it.
async fn read_up_to(shared: &Shared, headers: &HeaderMap, body: &mut Incoming, limit: u64) -> Result<Read, Reply> {
    let announced = body.size_hint().exact();
    let reserved = announced.filter(|bytes| shared.memory.is_large(*bytes));
    let mut memory = match reserved {
        Some(bytes) => shared.wait_for_memory(Use::Intake, bytes).await?,
        None => shared.memory.try_take(Use::Intake, 0).ok_or_else(|| shared.busy())?,
    };
    let room = reserved.or(announced.map(|bytes| bytes.min(64 * 1024))).unwrap_or(0);
    let mut read = BytesMut::with_capacity(usize::try_from(room).unwrap_or(0));
    let mut pace = Pace::new(shared.limits.client_timeout);
    let began = Instant::now();
    loop {
        let mut next = std::pin::pin!(pace.next(body));
        let mut pause_max = AWAITED_PAUSE_MAX;
        let frame = loop {
            match tokio::time::timeout(pause_max, next.as_mut()).await {
                Ok(frame) => break frame,
                // Others wait for the memory that this one does not fill.
                Err(_) if memory.bytes() > 0 && shared.memory.is_awaited(Use::Intake) => break Err(TooSlow),
                Err(_) => pause_max = AWAITED_LOOK_INTERVAL,
            }
        };
        let frame = match frame {
            Err(TooSlow) => return Err(shared.too_slow()),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(error(400, "the body ended too early or is framed wrongly")),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let bytes = (read.len() + data.len()) as u64;
        if bytes > limit {
            // A frame is no larger than what a socket is read with.
            read.extend_from_slice(&data);
            return Ok(Read { bytes: read.freeze(), memory, is_whole: false });
        }
        if !memory.try_grow_up_to(bytes, announced.unwrap_or(limit.min(GROWER_BYTES))) {
            return Err(shared.busy());
        }
        if is_behind(bytes, began.elapsed()) && shared.memory.is_awaited(Use::Intake) {
            return Err(shared.too_slow());
        }
        if bytes > read.capacity() as u64 {
            // As much as was taken, so that nothing is copied again. What is not written to takes no memory.
            read.reserve(usize::try_from(memory.bytes()).unwrap_or(0).saturating_sub(read.len()));
        }
        read.extend_from_slice(&data);
    }
    if content_length(headers).is_some_and(|expected| expected != read.len() as u64) {
        return Err(error(400, "the body is shorter than its Content-Length"));
    }
    memory.shrink_to(read.len() as u64);
    Ok(Read { bytes: read.freeze(), memory, is_whole: true })
}

/// Returns whether a body comes more slowly than it may while others wait for memory.
fn is_behind(received: u64, elapsed: Duration) -> bool {
    elapsed > AWAITED_PAUSE_MAX && received / AWAITED_RATE_MIN < elapsed.as_secs()
}

/// A protected write, ready for its turn.
struct Write {
    route: Protected,
    /// The head as it goes to the server.
    head: Parts,
    id: Option<String>,
    message: Message,
    /// Why it may not be stored, if so.
    needs_answer: Option<NeedsAnswer>,
    /// How an OTLP exporter wants its answer.
    acknowledged_as: Option<otlp::Format>,
    /// Its body, when that is not in the message because it is too large.
    large: Option<Arc<Large>>,
}

impl Write {
    /// Decodes the body, reads what it is about and gives an id to creates that have none.
    ///
    /// Returns a reply for what no Opik server could ever accept.
    async fn prepare(
        shared: &Shared,
        route: Protected,
        mut head: Parts,
        below: String,
        (bytes, content_bytes): (Bytes, Option<u64>),
        memory: &mut Option<Grant>,
    ) -> Result<Self, Reply> {
        let encoding = encoding_of(&head.headers)?;
        let lane = lane_of(&shared.server, &head.headers);
        let body = Body::new(bytes, encoding);
        let inflated_max = shared.limits.inflated_bytes_max;
        let content_max = content_bytes.unwrap_or_else(|| body.content_bytes_max()).min(inflated_max);
        let is_small = body.bytes.len() <= PREPARE_INLINE_BYTES_MAX && content_max <= PREPARE_INLINE_CONTENT_BYTES_MAX;
        // What is inflated stands beside the body until it is read.
        let inflated = match body.is_encoded() && !is_small {
            true => Some(shared.wait_for_memory(Use::Inspection, content_max).await?),
            false => None,
        };
        let otlp = otlp_of(&route, &head.headers)?;
        let acknowledged_as = otlp.as_ref().map(|otlp| otlp.format);
        let inspected = if is_small {
            inspect_body(&route, otlp, body, inflated_max, memory.as_mut())
        } else {
            let (route, mut held) = (route.clone(), memory.take());
            let work = move || (inspect_body(&route, otlp, body, inflated_max, held.as_mut()), held);
            match tokio::task::spawn_blocking(work).await {
                Ok((inspected, held)) => {
                    *memory = held;
                    inspected
                }
                Err(_) => Err(error(500, "opik-offline failed to read this body, which was not stored")),
            }
        };
        drop(inflated);
        if let (Ok(inspected), Some(memory)) = (&inspected, memory.as_mut()) {
            memory.shrink_to(inspected.body.bytes.len() as u64);
        }
        let Inspected { inspection, body, id } = inspected.inspect_err(|reply| match reply.status {
            413 => shared.over_limit("bytes of an inflated body"),
            503 => shared.over_limit("bytes of all bodies"),
            _ => {}
        })?;
        if body.encoding == Encoding::Identity && encoding != Encoding::Identity {
            head.headers.remove(header::CONTENT_ENCODING);
        }
        let request = Request {
            method: head.method.as_str().to_owned(),
            path: below,
            headers: kept_headers(&head.headers),
            body,
        };
        if let Some(needs) = inspection.needs_answer {
            debug!(target: "intake", message_type = %route.message_type, "never kept, because {}", needs.why);
        }
        let message = Message {
            lane,
            message_type: route.message_type,
            request,
            touches: inspection.touches,
            items: inspection.items,
            project: inspection.project,
            accepted_at_ms: 0,
        };
        Ok(Self { route, head, id, message, needs_answer: inspection.needs_answer, acknowledged_as, large: None })
    }

    /// Takes its turn, then forwards or registers it.
    async fn deliver(self, shared: &Arc<Shared>, client: &ClientUrl) -> ClientAnswer {
        // What is not in memory is not compared with what others say.
        let says = self.large.is_none().then_some(&self.message.request);
        let turn = shared.lanes.turn(&self.message.lane, &self.message.touches, says).await;
        let reachability = shared.reachability();
        // While the server is away every write is stored, whatever waits: that is not worth a look into the store, which
        // costs more than reading the request.
        let lane = match reachability {
            Reachability::Unavailable if self.needs_answer.is_none() && shared.slot.get().is_ok() => LaneState::Clear,
            _ => shared.lane_state(&self.message),
        };
        let follows_all = self.needs_answer.is_some_and(|needs| needs.follows_all);
        if let Some(why) = shared.behind_moved(&self.message.touches, follows_all) {
            return shared.refuse_unprotected(why);
        }
        let admission = match self.needs_answer {
            None => admit(reachability, lane),
            Some(NeedsAnswer { follows_all, .. }) if let LaneState::StoreUnusable(known) = lane => {
                unprotected(known, follows_all)
            }
            Some(NeedsAnswer { follows_all: true, .. }) if matches!(lane, LaneState::Waiting | LaneState::Apart) => {
                shared.metrics.intake_refused.add(1);
                let text = "earlier writes still wait for the Opik server, and this request depends on all of them";
                return forward::own_answer(unavailable(text, shared.retry_after()));
            }
            Some(_) => Admission::ForwardOnly,
        };
        let answer = match admission {
            Admission::Register => match self.register(shared, client).await {
                Ok(answer) => answer,
                // The store broke under this write: what holds while it is away holds for this one, too.
                Err(_) if shared.slot.get().is_err() => {
                    match passage(shared.backlog_known(&self.message.touches), false) {
                        Passage::Refuse(why) => shared.refuse_unprotected(why),
                        Passage::Pass => self.forward_only(shared, client).await,
                    }
                }
                Err(not_stored) if not_stored.may_be_sent => self.send_unstored(shared, client, not_stored).await,
                Err(not_stored) => not_stored.refused(shared),
            },
            Admission::Forward => match self.forward(shared, client, true).await {
                Forwarded::Answered(answer) => answer,
                Forwarded::Keep { fallback } => match self.register(shared, client).await {
                    Ok(answer) => answer,
                    Err(not_stored) => {
                        let refusal = not_stored.refused(shared);
                        fallback.unwrap_or(refusal)
                    }
                },
            },
            Admission::ForwardOnly => self.forward_only(shared, client).await,
            Admission::Refuse(why) => shared.refuse_unprotected(why),
        };
        drop(turn);
        answer
    }

    /// Forwards a write that can't be kept; its client gets whatever comes of it.
    async fn forward_only(&self, shared: &Arc<Shared>, client: &ClientUrl) -> ClientAnswer {
        match self.forward(shared, client, false).await {
            Forwarded::Answered(answer) | Forwarded::Keep { fallback: Some(answer) } => answer,
            Forwarded::Keep { fallback: None } => {
                shared.metrics.intake_refused.add(1);
                let text = match self.needs_answer {
                    None => "the Opik server cannot be reached, and opik-offline cannot store this write",
                    Some(_) => "the Opik server cannot be reached, and this request needs its answer",
                };
                forward::own_answer(unavailable(text, shared.retry_after()))
            }
        }
    }

    /// Sends it to the server. One that can be stored does not wait out the server's silence once the server is known to
    /// be gone.
    async fn forward(&self, shared: &Arc<Shared>, client: &ClientUrl, storable: bool) -> Forwarded {
        let base_url = shared.forwarder.base_url();
        // As its client spelled it; what is stored has the one spelling that every front of a server reads alike.
        let uri = client.uri.clone();
        let progress = Arc::<Progress>::default();
        let mut request = http::Request::new(match &self.large {
            None => forward::whole(self.message.request.body.bytes.clone()),
            Some(large) => large.payload().body(None, progress.clone()),
        });
        *request.method_mut() = self.head.method.clone();
        *request.headers_mut() = forward::request_headers(self.head.headers.clone(), &uri, &shared.agent_mark);
        // Set by hyper from the body that is really sent: it differs when an id was added, and for chunked uploads.
        request.headers_mut().remove(header::CONTENT_LENGTH);
        *request.uri_mut() = uri;

        let timeout = match shared.patience() {
            Some(patience) if self.needs_answer.is_some() => patience.min(shared.limits.forward_timeout),
            _ => shared.limits.forward_timeout,
        };
        let started = Instant::now();
        let noting = shared.note_ahead(&self.message);
        let exchange = async {
            let (head, body) = shared.forwarder.send(request).await?.into_parts();
            let body = forward::Begun::read(body, ANSWER_BYTES_MAX).await.map_err(|error| SendFailure::Broken {
                url: base_url.to_owned(),
                reason: crate::upstream::forward::innermost(&error),
            })?;
            Ok((head, body))
        };
        let timed_out = |after| Err(SendFailure::Timeout { url: base_url.to_owned(), after });
        let mut exchange = std::pin::pin!(exchange);
        let mut is_doubted = false;
        // A large body takes its time: the server is silent when it takes no more of it.
        let silence = || progress.idle().unwrap_or_else(|| started.elapsed());
        let result: Result<_, SendFailure> = loop {
            let look = SILENCE_LOOK_INTERVAL.min(timeout.saturating_sub(silence()));
            tokio::select! {
                result = exchange.as_mut() => break result,
                () = shared.hurry.requested() => break timed_out(started.elapsed()),
                () = tokio::time::sleep(look) => {}
            }
            let elapsed = silence();
            let is_gone = storable && shared.connection.availability() == Availability::Unavailable;
            let (free, max) = shared.memory.free(Use::Intake);
            let is_over = elapsed >= if storable { forward_patience(timeout, free, max) } else { timeout };
            if is_over || is_gone {
                break timed_out(elapsed);
            }
            if elapsed >= SILENCE_DOUBTED_AFTER && !std::mem::replace(&mut is_doubted, true) {
                shared.connection.doubted();
            }
        };
        let mut thrown_away = None;
        let recognised = result.as_ref().map(|(head, body)| {
            let endpoint = Endpoint::Write(self.route.message_type);
            let (recognised, partial) = judge_answer(endpoint, head, &body.beginning, !body.is_whole());
            thrown_away = partial;
            (head.status.as_u16(), recognised)
        });
        let verdict = match &result {
            Ok((head, body)) if matches!(&recognised, Ok((_, said)) if self.is_begun(said, head.status, &body.beginning)) => {
                ForwardVerdict::Keep(Trouble::Begun)
            }
            _ => forwarding(recognised.as_ref().map(|(status, recognised)| (*status, recognised)).map_err(|e| *e)),
        };
        debug!(target: "intake", message_type = %self.route.message_type, ?verdict, elapsed = ?started.elapsed(), "forwarded");
        if let Some(noting) = noting {
            // Whatever the answer was, the update may have reached the server.
            let _ = noting.await;
        }
        if matches!(recognised, Ok((_, Recognised::Confirmed))) {
            shared.note_confirmed(&self.message);
        }
        match verdict {
            ForwardVerdict::Return => self.connection_passed(shared, &recognised),
            ForwardVerdict::Keep(trouble) => {
                if let Ok((_, Recognised::Foreign(foreign))) = &recognised {
                    shared.connection.met_foreign(foreign);
                }
                self.report(shared, trouble, &result).await;
            }
        }
        // A page's 200 would tell the client that its data is safe, when it can't be stored either.
        let is_false_success =
            self.needs_answer.is_none() && matches!(&recognised, Ok((200..=299, Recognised::Foreign(_))));
        match (verdict, result) {
            (ForwardVerdict::Return, Ok((head, body))) => {
                shared.metrics.requests_forwarded.add(1);
                if let Some(partial) = thrown_away {
                    self.note_partial(shared, head.status, &partial);
                }
                Forwarded::Answered(forward::whole_answer(head, body, base_url, &client.base()))
            }
            (ForwardVerdict::Keep(_), Ok(_)) if is_false_success => Forwarded::Keep { fallback: None },
            (ForwardVerdict::Keep(_), Ok((head, body))) => {
                Forwarded::Keep { fallback: Some(forward::whole_answer(head, body, base_url, &client.base())) }
            }
            (_, Err(_)) => Forwarded::Keep { fallback: None },
        }
    }

    /// Says whether the server has a part of this write from an earlier attempt.
    fn is_begun(&self, recognised: &Recognised, status: http::StatusCode, body: &[u8]) -> bool {
        // Nobody has to guess here: what is not said is the client's to hear.
        status == http::StatusCode::CONFLICT
            && is_begun(self.route.message_type, recognised, status.as_u16(), &String::from_utf8_lossy(body))
            && body.windows(ALREADY.len()).any(|words| words.eq_ignore_ascii_case(ALREADY))
    }

    /// Counts what the server threw away of a write that it accepted; its client has the answer.
    fn note_partial(&self, shared: &Shared, status: http::StatusCode, partial: &Partial) {
        shared.metrics.items_rejected_in_success.add(partial.rejected.unwrap_or(1));
        warn!(
            target: "intake", message_type = %self.route.message_type, status = status.as_u16(),
            "the Opik server took only a part of a write, its client was told: {partial}"
        );
    }

    fn connection_passed(&self, shared: &Shared, recognised: &Result<(u16, Recognised), &SendFailure>) {
        shared.connection.lanes().passed(&self.message.lane);
        if matches!(recognised, Ok((_, Recognised::Confirmed))) {
            shared.connection.confirmed();
        }
    }

    /// Tells replay and the connection monitor why this write was not taken.
    async fn report(
        &self,
        shared: &Arc<Shared>,
        trouble: Trouble,
        result: &Result<(http::response::Parts, forward::Begun), SendFailure>,
    ) {
        let lane = &self.message.lane;
        match (trouble, result) {
            (Trouble::Limited, Ok((head, _))) => {
                let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
                let (reset, after, date) = (header("ratelimit-reset"), header("retry-after"), header("date"));
                let asked = asked_wait(reset, after, date, SystemTime::now());
                shared.hold_limited(lane.clone(), self.message.message_type.bucket(), asked).await;
            }
            (Trouble::Begun, _) => {
                shared.connection.confirmed();
                shared.connection.lanes().passed(lane);
                info!(target: "intake", "the Opik server has a trace from an earlier attempt: replay brings the spans that are missing");
            }
            (Trouble::Limited | Trouble::Failed, _) => shared.connection.lanes().failed(lane),
            (Trouble::Unanswered, _) => {
                shared.connection.lanes().failed(lane);
                shared.connection.doubted();
            }
            (Trouble::Gone, result) => {
                let reason = result.as_ref().err().map_or_else(String::new, SendFailure::to_string);
                if shared.connection.send_failed(&reason) == Change::Lost {
                    warn!(target: "connection_monitor", "the Opik server is unavailable: {reason}");
                }
            }
        }
    }

    /// Stores the write and acknowledges it once it is committed, or says why it is not stored.
    async fn register(&self, shared: &Arc<Shared>, client: &ClientUrl) -> Result<ClientAnswer, NotStored> {
        shared.write_notes_left().await;
        if let Some(large) = &self.large {
            return self.register_pieces(shared, client, large).await;
        }
        // Copies no body: those bytes are shared.
        self.commit(shared, self.message.clone()).await?;
        Ok(forward::own_answer(match self.acknowledged_as {
            Some(format) => otlp::success(format),
            None => success(&self.route, &client.base(), self.id.as_deref()),
        }))
    }

    /// Stores a message, and returns once it is committed.
    async fn commit(&self, shared: &Arc<Shared>, message: Message) -> Result<(), NotStored> {
        let (done, committed) = oneshot::channel();
        let message = Message { accepted_at_ms: now_ms(), ..message };
        shared.committer.submit(
            message,
            // The receiver is gone only when the runtime is: then nobody is left to answer.
            Box::new(move |result| drop(done.send(result))),
        );
        match committed.await {
            Ok(Ok(_)) => {
                shared.metrics.messages_registered.add(1);
                Ok(())
            }
            Ok(Err(error)) => Err(NotStored::of(shared, &error)),
            Err(_) => {
                warn!(target: "intake", "the committer stopped before it answered");
                Err(NotStored { text: "opik-offline is stopping".to_owned(), full: None, may_be_sent: false })
            }
        }
    }
}

/// Returns what is seen of a backlog in the words of the policy.
fn known(seen: BacklogSeen) -> KnownBacklog {
    match seen {
        BacklogSeen::NeverWas => KnownBacklog::NeverWas,
        BacklogSeen::Empty => KnownBacklog::Empty,
        BacklogSeen::Holds { waiting, conflicting } => KnownBacklog::Holds { waiting, conflicting },
        BacklogSeen::Unknown => KnownBacklog::Unknown,
    }
}

/// Returns whose answer this is, and what it says was thrown away.
pub(super) fn judge_answer(
    endpoint: Endpoint,
    head: &http::response::Parts,
    body: &Bytes,
    is_cut: bool,
) -> (Recognised, Option<Partial>) {
    // What nearly every write is answered with: no header can make anything else of it.
    if head.status == http::StatusCode::NO_CONTENT {
        return (recognise(endpoint, &Seen { status: 204, ..Seen::default() }), None);
    }
    let header = |name: header::HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    // Compressed because the client said that it may be. What can't be read is nobody's word.
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
    };
    judge(endpoint, &seen)
}

enum Forwarded {
    /// The server has decided.
    Answered(ClientAnswer),
    /// The write has to be kept. The server's own answer, if there was one, is the client's when it can't be.
    Keep { fallback: Option<ClientAnswer> },
}

/// Why a write is not stored. Its client still has it.
pub(super) struct NotStored {
    text: String,
    /// The limit that the store has met.
    full: Option<FullLimit>,
    /// Whether the server may take it instead: the store works, and can be asked what the write would overtake.
    may_be_sent: bool,
}

impl NotStored {
    /// Other bodies take the memory that is needed to store this one.
    fn busy() -> Self {
        Self { text: BUSY_TEXT.to_owned(), full: None, may_be_sent: true }
    }

    /// The body can't be read from the disk where it waits.
    fn unreadable() -> Self {
        let text = "opik-offline cannot read this body from its disk".to_owned();
        Self { text, full: None, may_be_sent: false }
    }

    /// Takes the failure of the store, and lets those know who watch whether it is full.
    pub(super) fn of(shared: &Shared, failure: &CommitError) -> Self {
        let mut full = None;
        let text = match failure {
            CommitError::Busy => "opik-offline takes as many writes as its disk can".to_owned(),
            CommitError::Stopped => "opik-offline is stopping".to_owned(),
            CommitError::BehindMoved => failure.to_string(),
            CommitError::Store(error) => {
                full = shared.collector.full().found_no_room(error);
                match error.as_ref() {
                    StoreError::Full { reason, .. } => format!("opik-offline's store is full: {reason}"),
                    StoreError::Busy { .. } => "another process keeps opik-offline's store locked".to_owned(),
                    // Paths and the system's words are for the operator, in `status` and in the log.
                    _ => "opik-offline cannot store this write, and the Opik server cannot be reached".to_owned(),
                }
            }
        };
        let may_be_sent = match failure {
            CommitError::Busy => true,
            CommitError::Stopped | CommitError::BehindMoved => false,
            CommitError::Store(error) => matches!(**error, StoreError::Full { .. } | StoreError::Busy { .. }),
        };
        Self { text, full, may_be_sent }
    }

    /// Returns the answer to the client.
    pub(super) fn reply(&self) -> Reply {
        unavailable(&self.text, STORE_RETRY_AFTER)
    }

    /// Counts the write as refused.
    pub(super) fn count(&self, shared: &Shared) {
        shared.metrics.intake_refused.add(1);
        if let Some(limit) = self.full {
            shared.collector.full().refused(limit);
        }
    }
}

struct Inspected {
    inspection: Inspection,
    /// As sent, unless an id had to be added.
    body: Body,
    id: Option<String>,
}

/// Returns how a body is encoded.
fn encoding_of(headers: &HeaderMap) -> Result<Encoding, Reply> {
    let named = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("unreadable"));
    Encoding::from_header(named).ok_or_else(|| {
        let text = format!("Content-Encoding {} is not supported, use gzip, deflate or none", named.unwrap_or(""));
        error(415, &text)
    })
}

/// What the head of an OTLP request says about its body.
struct Otlp {
    format: otlp::Format,
    project: Option<String>,
}

/// Returns what is to be known of an OTLP request's head, and `None` for all other writes.
fn otlp_of(route: &Protected, headers: &HeaderMap) -> Result<Option<Otlp>, Reply> {
    if route.message_type != MessageType::OtlpTraces {
        return Ok(None);
    }
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
    let Some(format) = otlp::Format::from_content_type(content_type.unwrap_or("")) else {
        let text = format!(
            "Content-Type {} is not supported for OTLP traces, use application/x-protobuf or application/json",
            content_type.unwrap_or("(none)")
        );
        return Err(error(415, &text));
    };
    let project = headers.get(otlp::PROJECT_HEADER).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let project = project.map(str::trim).filter(|project| !project.is_empty());
    Ok(Some(Otlp { format, project: project.map(str::to_owned) }))
}

/// Reads what a body is about; the part of preparing that takes time.
fn inspect_body(
    route: &Protected,
    otlp: Option<Otlp>,
    body: Body,
    inflated_bytes_max: u64,
    memory: Option<&mut Grant>,
) -> Result<Inspected, Reply> {
    let content = body.decode(inflated_bytes_max).map_err(|fault| match fault {
        BodyFault::Damaged(_) => error(400, &format!("{fault}")),
        BodyFault::TooLarge(_) => error(413, &format!("{fault}, opik-offline's limit (max_inflated_size)")),
    })?;
    if let Some(Otlp { format, project }) = otlp {
        let traces =
            otlp::Traces::read(format, &content).map_err(|fault| error(400, &format!("the body is {fault}")))?;
        return Ok(Inspected { inspection: traces.inspection(project), body, id: None });
    }
    let read = |content: &[u8]| inspect(route, content).map_err(|fault| error(400, &format!("the body is {fault}")));
    let inspection = read(&content)?;
    if inspection.missing_ids.is_empty() {
        let id = inspection.id.clone();
        return Ok(Inspected { inspection, body, id });
    }
    // A body that ids are added to is kept inflated: a thousand times what was counted when it was read.
    let more = content.len() as u64 + inspection.missing_ids.len() as u64 * ID_BYTES;
    if memory.is_some_and(|memory| !memory.try_grow(more)) {
        return Err(unavailable(BUSY_TEXT, BUSY_RETRY_AFTER));
    }
    let filled = with_ids(&content, &inspection.missing_ids, || Uuid::now_v7().to_string());
    let inspection = read(&filled)?;
    let id = inspection.id.clone();
    Ok(Inspected { inspection, body: Body::new(filled, Encoding::Identity), id })
}

/// Returns where a write belongs: to this server, and to the client that sent it.
pub(super) fn lane_of(server: &Server, headers: &HeaderMap) -> Lane {
    let workspaces = headers.get_all("comet-workspace").iter().map(header::HeaderValue::as_bytes);
    let credential = headers.get(header::AUTHORIZATION).map(|value| Credential::new(value.as_bytes()));
    Lane { server: Some(server.clone()), workspace: workspace_of_headers(workspaces), credential }
}

/// Returns the headers that a replay sends again.
pub(super) fn kept_headers(headers: &HeaderMap) -> HeaderSet {
    let mut kept = headers.clone();
    forward::strip_hop_by_hop(&mut kept);
    for name in NOT_KEPT {
        kept.remove(name);
    }
    for name in ["comet-workspace", super::guard::TOKEN_HEADER] {
        kept.remove(name);
    }
    HeaderSet::new(kept.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect())
}

impl Shared {
    /// Waits for memory for a body; the reply is for a client that has waited for long enough.
    async fn wait_for_memory(&self, by: Use, bytes: u64) -> Result<Grant, Reply> {
        tokio::select! {
            memory = self.memory.take(by, bytes) => Ok(memory),
            () = tokio::time::sleep(MEMORY_WAIT_MAX) => Err(self.busy()),
            () = self.hurry.requested() => Err(self.busy()),
        }
    }

    /// Returns the answer to a client for whose body there is no memory.
    pub(super) fn busy(&self) -> Reply {
        self.over_limit("bytes of all bodies");
        unavailable(BUSY_TEXT, BUSY_RETRY_AFTER)
    }

    /// Holds a bucket that the server limits, in the store, before the write that met the limit is registered there.
    async fn hold_limited(self: &Arc<Self>, lane: Lane, bucket: Bucket, asked: Option<Duration>) {
        let time = lane_wait(1, jitter(), asked, self.limits.retry_interval);
        let until_ms = now_ms().saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        let reason = rate_limited(bucket);
        warn!(target: "intake", "{lane}: held for {:.1} s: {reason}", time.as_secs_f64());
        let hold = Hold { until_ms, reason, probe: false, status: Some(429), bucket: Some(bucket) };
        let shared = self.clone();
        let held = tokio::task::spawn_blocking(move || shared.slot.with(|store| store.limit(&lane, &hold))).await;
        if let Ok(Err(error)) = held {
            // Replay meets the limit itself then, with one request.
            debug!(target: "intake", "the limit is not recorded: {error}");
        }
    }

    fn reachability(&self) -> Reachability {
        match self.connection.availability() {
            Availability::Unavailable => Reachability::Unavailable,
            Availability::Unknown | Availability::Available => Reachability::Presumed,
        }
    }

    /// Asks the store whether earlier messages stand before this one. The one place where the asynchronous side calls it
    /// directly: the answer is an indexed look-up, cheaper than changing threads for it.
    fn lane_state(&self, message: &Message) -> LaneState {
        let lane = &message.lane;
        // The second time it may be another store, or none: a failure that is reported can change that.
        for _ in 0..2 {
            match self.slot.with(|store| store.ahead(lane, &message.touches)) {
                Ok(Ahead { messages: 0, conflicting: false, .. }) => return LaneState::Clear,
                Ok(Ahead { conflicting: true, .. } | Ahead { held: true, .. }) => return LaneState::Waiting,
                Ok(ahead) if ahead.limited.contains(message.message_type.bucket()) => return LaneState::Waiting,
                // What names no entity has no order to be proven.
                Ok(_) if message.touches.is_empty() => return LaneState::Waiting,
                Ok(_) if self.connection.lanes().is_in_trouble(lane) => return LaneState::Waiting,
                Ok(_) => return LaneState::Apart,
                Err(error) => match self.slot.get() {
                    Ok(_) => warn!(target: "db_manager", "cannot ask the store for what waits: {error}"),
                    Err(_) => return LaneState::StoreUnusable(self.backlog_known(&message.touches)),
                },
            }
        }
        // What waits unseen must not be overtaken.
        LaneState::Waiting
    }

    /// Returns what is known of the messages in a store that can't be used; asked where [`Store::ahead`] is.
    ///
    /// [`Store::ahead`]: crate::store::Store::ahead
    pub(super) fn backlog_known(&self, touches: &[Touch]) -> KnownBacklog {
        known(self.slot.backlog_seen(&self.server, touches))
    }

    /// Returns why a write has to wait for what is in a store that was moved away, if so; asked after the slot was.
    fn behind_moved(&self, touches: &[Touch], follows_all: bool) -> Option<&'static str> {
        behind_moved(known(self.slot.seen_in_moved(&self.server, touches)?), follows_all)
    }

    /// Refuses a write that may conflict with what waits in a store that can't be used: its client still has it.
    pub(super) fn refuse_unprotected(&self, why: &str) -> ClientAnswer {
        self.metrics.intake_refused.add(1);
        self.slot.note_refused();
        forward::own_answer(unavailable(why, STORE_RETRY_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_keys_nor_what_belongs_to_the_exchange_are_kept_with_a_message() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "made-up-key"),
            ("proxy-authorization", "Basic x"),
            ("x-opik-offline-token", "made-up-token"),
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
