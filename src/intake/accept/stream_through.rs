//! A write that is too large to be kept, or whose body finds no room: it streams to the server while that is available.
//!
//! ```text
//! the server is unavailable, by a ping sent now ──▶ 413 if it can never be kept, 503 if a retry may help
//! something of its lane is queued, or may be ─────▶ 503: its entities are unknown, so it must not overtake anything
//! else ─▶ the lock of the whole lane ─▶ streamed ─▶ the server's own answer
//! ```
//!
//! Its client keeps the data until the server has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::response;
use hyper::body::Incoming;
use tracing::debug;

use super::prepare::WriteRequest;
use super::send::SILENCE_CHECK_INTERVAL;
use super::unkept::{PartialBody, Unkept};
use crate::delivery::unprotected::{Passage, passage};
use crate::delivery::unread::{Concerns, Locked};
use crate::intake::body::{AWAITED_PAUSE_MAX, AWAITED_RATE_MIN};
use crate::intake::exchange::{ClientUrl, Exchange, kept_headers};
use crate::intake::forward::{self, AnswerStart, ClientAnswer};
use crate::intake::pace::PacedBody;
use crate::intake::server_answer::judge_answer;
use crate::intake::shared::{STORE_RETRY_AFTER, Shared};
use crate::intake::spool::SendProgress;
use crate::message::{Body, Bucket, Encoding, Lane, Message, Request};
use crate::monitor::Availability;
use crate::protocol::answers::{SendFailure, unavailable};
use crate::protocol::inspection::inspect;
use crate::protocol::recognise::{Endpoint, Recognised};
use crate::protocol::routes::Protected;
use crate::upstream::forward::ForwardBody;

/// Streams a write to the server, or refuses it.
pub(super) async fn stream_through(request: WriteRequest, begun: PartialBody, why: Unkept) -> ClientAnswer {
    let shared = request.exchange.shared.clone();
    if let Some(limit) = why.limit() {
        shared.count_over_limit(limit);
    }
    shared.try_server().await;
    let lane = request.exchange.lane();
    let ticket = shared.listener.entity_locks.lock_lane(&lane).await;
    let locked = Locked { concerns: Concerns::Lane, bars: true, is_final: true };
    let flight = shared.listener.windows.of(&lane).arrive(locked).await;
    shared.refresh_store().await;
    let answer = match shared.refusal_of_unkept(&lane, request.route.message_type.bucket(), why) {
        None => Streaming::new(request, lane, begun, why).run().await,
        Some(refusal) => {
            drop((flight, ticket));
            return match begun.is_whole {
                true => refusal,
                false => request.exchange.refuse_with(refusal).await,
            };
        }
    };
    drop((flight, ticket));
    answer
}

impl Shared {
    /// Returns the refusal of a write that can't be kept and may not be sent either. The caller holds the lock of the
    /// lane.
    fn refusal_of_unkept(&self, lane: &Lane, bucket: Bucket, why: Unkept) -> Option<ClientAnswer> {
        if self.connection.availability() == Availability::Unavailable {
            self.metrics.intake_refused.add(1);
            return Some(forward::own_answer(why.reply()));
        }
        // It may be about any entity, so it follows all of them.
        let passage = match self.slot.try_get() {
            _ if let Some(why) = self.behind_moved(&[], true) => Passage::Refuse(why),
            Err(_) => passage(self.backlog_known(&[]), true),
            Ok(_) => match self.must_not_overtake(lane, &[], bucket) {
                None => Passage::Pass,
                Some(behind) => {
                    self.metrics.intake_refused.add(1);
                    let text = format!("this body is too large to be kept, and was not sent on, because {behind}");
                    return Some(forward::own_answer(unavailable(&text, STORE_RETRY_AFTER)));
                }
            },
        };
        match passage {
            Passage::Pass => None,
            Passage::Refuse(why) => Some(self.refuse_unprotected(why)),
        }
    }
}

/// A write that streams to the server.
struct Streaming {
    shared: Arc<Shared>,
    route: Protected,
    head: Parts,
    client: ClientUrl,
    lane: Lane,
    begun: PartialBody,
    /// The part that its client still sends.
    rest: Option<Incoming>,
    /// The message that would be stored, as far as it is known without the body.
    unread: Message,
    why: Unkept,
}

impl Streaming {
    fn new(request: WriteRequest, lane: Lane, begun: PartialBody, why: Unkept) -> Self {
        let WriteRequest { exchange: Exchange { shared, head, client, body, .. }, route, below } = request;
        let unread = unread(&route, &head, below, lane.clone());
        let rest = (!begun.is_whole).then_some(body);
        Self { shared, route, head, client, lane, begun, rest, unread, why }
    }

    async fn run(self) -> ClientAnswer {
        let Self { shared, route, mut head, client, lane, begun, rest, unread, why } = self;
        let uri = client.uri.clone();
        let noting = shared.ahead_notes.begin_noting(&unread, shared.listener.windows.has_unread());
        head.headers = forward::request_headers(head.headers, &uri, &shared.agent_mark);
        head.uri = uri;
        head.version = http::Version::HTTP_11;
        let (is_late, progress) = (Arc::<AtomicBool>::default(), Arc::<SendProgress>::default());
        // Other writes of the lane wait for this one.
        let pause_max = shared.limits.client_timeout.min(AWAITED_PAUSE_MAX);
        let rest = rest.map(|body| PacedBody::new(body, pause_max, is_late.clone()).at_least(AWAITED_RATE_MIN));
        let body = begun.payload.body(rest, progress.clone());
        let result = wait_for_answer(&shared, http::Request::from_parts(head, body), &progress).await;
        if let Some(noting) = noting {
            let _ = noting.await;
        }
        drop(begun.memory);
        match result {
            Ok((head, body)) => answer_to_client(&shared, &route, &lane, (head, body), &client),
            Err(_) if is_late.load(Ordering::Relaxed) => forward::own_answer(shared.refuse_slow()),
            Err(failure) => {
                debug!(target: "intake", "the server did not accept a body that can't be kept: {failure}");
                // It may be the client that has hung up.
                shared.connection.doubted();
                shared.metrics.intake_refused.add(1);
                let text = "the connection to the Opik server broke, and opik-offline cannot keep this body";
                forward::own_answer(match failure {
                    SendFailure::Connect { .. } => why.reply(),
                    // A retry may well succeed.
                    _ => unavailable(text, shared.retry_after()),
                })
            }
        }
    }
}

/// Sends a request, and waits for its answer while the server takes more of its body.
async fn wait_for_answer(
    shared: &Shared,
    request: http::Request<ForwardBody>,
    progress: &SendProgress,
) -> Result<(response::Parts, AnswerStart), SendFailure> {
    let (mut answer, started) = (std::pin::pin!(shared.send_write(request)), Instant::now());
    loop {
        tokio::select! {
            result = answer.as_mut() => return result,
            () = tokio::time::sleep(SILENCE_CHECK_INTERVAL) => {}
        }
        let silence = progress.idle().unwrap_or_else(|| started.elapsed());
        if silence >= shared.limits.forward_timeout {
            return Err(shared.timed_out(silence));
        }
    }
}

/// Records what the server answered, and returns it. The success of a server that is not Opik's becomes a refusal.
fn answer_to_client(
    shared: &Shared,
    route: &Protected,
    lane: &Lane,
    (head, body): (response::Parts, AnswerStart),
    client: &ClientUrl,
) -> ClientAnswer {
    let endpoint = Endpoint::Write(route.message_type);
    let (recognised, _) = judge_answer(endpoint, &head, &body.beginning, !body.is_whole());
    match recognised {
        Recognised::Foreign(foreign) if head.status.is_success() => {
            shared.connection.met_foreign(&foreign);
            shared.metrics.intake_refused.add(1);
            let text = format!("the answer is {foreign}, and opik-offline cannot keep this body");
            return forward::own_answer(unavailable(&text, shared.retry_after()));
        }
        Recognised::Foreign(foreign) => shared.connection.met_foreign(&foreign),
        Recognised::Confirmed => {
            shared.connection.lanes().passed(lane);
            shared.connection.confirmed();
        }
        _ => {}
    }
    shared.metrics.answered_at_once(head.status);
    forward::begun_answer(head, body, shared.answer_source(), || client.base())
}

/// Returns what is known of a write whose body is not read: the entity that its path names.
fn unread(route: &Protected, head: &Parts, below: String, lane: Lane) -> Message {
    let inspection = inspect(route, b"{}").unwrap_or_default();
    let body = Body::new(Bytes::new(), Encoding::Identity);
    let method = head.method.as_str().to_owned();
    Message {
        lane,
        message_type: route.message_type,
        request: Request { method, path: below, headers: kept_headers(&head.headers), body },
        touches: inspection.touches,
        items: 1,
        project: None,
        accepted_at_ms: 0,
    }
}
