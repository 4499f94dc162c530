//! A write that is too large to be kept, or whose body finds no room: it streams to the server while that is there.
//!
//! ```text
//! the server counts as gone ──────────────▶ 413 if it can never be kept, 503 if it is a matter of the moment
//! something of its lane waits, or may ────▶ 503: its entities are unknown, so it must not overtake anything
//! else ─▶ the turn of the whole lane ─▶ streamed ─▶ the server's own answer
//! ```
//!
//! Its client has the data until the server has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use hyper::body::Incoming;
use tracing::debug;

use super::{
    ANSWER_BYTES_MAX, AWAITED_PAUSE_MAX, AWAITED_RATE_MIN, SILENCE_LOOK_INTERVAL, STORE_RETRY_AFTER, judge_answer,
    kept_headers, lane_of, refuse_with,
};
use crate::delivery::unprotected::{Passage, passage};
use crate::intake::forward::{self, ClientAnswer};
use crate::intake::spool::{NoSpool, Payload, Progress};
use crate::intake::wire::Paced;
use crate::intake::{ClientUrl, Shared};
use crate::memory::Grant;
use crate::message::{Body, Bucket, Encoding, Lane, Message, Request};
use crate::monitor::Availability;
use crate::protocol::answers::{Reply, SendFailure, error, unavailable};
use crate::protocol::inspection::inspect;
use crate::protocol::recognise::{Endpoint, Recognised};
use crate::protocol::routes::Protected;

/// Why a write can't be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unkept {
    /// Its body is larger than this as sent (`max_body_size`).
    Body(u64),
    /// Its body is larger than this when decoded (`max_inflated_size`).
    Inflated(u64),
    /// Its body is larger than this, which is what can be held of one that has no items to divide it by.
    Indivisible(u64),
    /// Its body is larger than the store may be (`max_size`).
    Store(u64),
    /// There is no room on the disk now.
    NoRoom,
    /// The disk refuses.
    NoDisk,
}

impl Unkept {
    /// Returns why a body is not spooled; spools may have this many bytes.
    pub(super) fn of(why: NoSpool, bytes_max: u64) -> Self {
        match why {
            NoSpool::TooLarge => Self::Store(bytes_max),
            NoSpool::Full => Self::NoRoom,
            NoSpool::Failed => Self::NoDisk,
        }
    }

    /// Returns what its client is told while the server is away: 413 when it can never be kept, and 503 otherwise.
    fn reply(self) -> Reply {
        let too_large = |text: String| error(413, &text);
        match self {
            Self::Body(limit) => {
                too_large(format!("the body is larger than {limit} bytes, opik-offline's limit (max_body_size)"))
            }
            Self::Inflated(limit) => too_large(format!(
                "the body is larger than {limit} bytes when decoded, opik-offline's limit (max_inflated_size)"
            )),
            Self::Indivisible(limit) => too_large(format!(
                "the body is larger than {limit} bytes, what opik-offline keeps of a body that it cannot divide, and the \
                 Opik server cannot be reached"
            )),
            Self::Store(limit) => too_large(format!(
                "the body is larger than {limit} bytes, the largest size of opik-offline's store (max_size), and the \
                 Opik server cannot be reached"
            )),
            Self::NoRoom => unavailable(
                "opik-offline has no room on its disk for this body now, and the Opik server cannot be reached",
                STORE_RETRY_AFTER,
            ),
            Self::NoDisk => unavailable(
                "opik-offline cannot write this body to its disk, and the Opik server cannot be reached",
                STORE_RETRY_AFTER,
            ),
        }
    }

    /// Returns the limit that was met, for the count of them.
    fn limit(self) -> Option<&'static str> {
        match self {
            Self::Body(_) => Some("bytes of a body"),
            Self::Inflated(_) => Some("bytes of an inflated body"),
            Self::Indivisible(_) => Some("bytes of a body that can't be divided"),
            Self::Store(_) | Self::NoRoom => Some("bytes of spooled bodies"),
            Self::NoDisk => None,
        }
    }
}

/// What was read of a body.
pub(super) struct Begun {
    pub(super) payload: Payload,
    /// Memory for it.
    pub(super) memory: Option<Grant>,
}

impl Begun {
    pub(super) fn nothing() -> Self {
        Self { payload: Payload::Held(Bytes::new()), memory: None }
    }
}

/// A request for a protected write.
pub(super) struct Asked {
    pub(super) write: Protected,
    pub(super) head: Parts,
    pub(super) below: String,
    pub(super) client: ClientUrl,
}

/// Lets the server take a write, or refuses it. `rest` is what its client still sends.
pub(super) async fn stream_through(
    shared: &Arc<Shared>,
    asked: Asked,
    begun: Begun,
    rest: Option<Incoming>,
    why: Unkept,
) -> ClientAnswer {
    if let Some(limit) = why.limit() {
        shared.over_limit(limit);
    }
    let lane = lane_of(&shared.server, &asked.head.headers);
    let turn = shared.lanes.turn_of_lane(&lane).await;
    if let Some(refusal) = shared.keeps_back(&lane, asked.write.message_type.bucket(), why) {
        drop(turn);
        return refused(refusal, &asked.head, rest).await;
    }
    let answer = send(shared, asked, lane, begun, rest, why).await;
    drop(turn);
    answer
}

async fn refused(answer: ClientAnswer, head: &Parts, rest: Option<Incoming>) -> ClientAnswer {
    match rest {
        Some(body) => refuse_with(answer, &head.headers, body).await,
        None => answer,
    }
}

impl Shared {
    /// Returns the refusal of a write that can't be kept and may not be sent either. The caller has the turn of the lane.
    fn keeps_back(&self, lane: &Lane, bucket: Bucket, why: Unkept) -> Option<ClientAnswer> {
        if self.connection.availability() == Availability::Unavailable {
            self.metrics.intake_refused.add(1);
            return Some(forward::own_answer(why.reply()));
        }
        // It may be about any entity, so it follows all of them.
        let passage = match self.slot.get() {
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

async fn send(
    shared: &Arc<Shared>,
    asked: Asked,
    lane: Lane,
    begun: Begun,
    rest: Option<Incoming>,
    why: Unkept,
) -> ClientAnswer {
    let base_url = shared.forwarder.base_url();
    let Asked { write, mut head, below, client } = asked;
    let uri = client.uri.clone();
    let noting = shared.note_ahead(&unread(&write, &head, below, lane.clone()));
    head.headers = forward::request_headers(head.headers, &uri, &shared.agent_mark);
    head.uri = uri;
    head.version = http::Version::HTTP_11;
    let (is_late, progress) = (Arc::<AtomicBool>::default(), Arc::<Progress>::default());
    // Others of the lane wait for it.
    let pause_max = shared.limits.client_timeout.min(AWAITED_PAUSE_MAX);
    let rest = rest.map(|body| Paced::new(body, pause_max, is_late.clone()).at_least(AWAITED_RATE_MIN));
    let body = begun.payload.body(rest, progress.clone());
    let exchange = async {
        let (head, body) = shared.forwarder.send(http::Request::from_parts(head, body)).await?.into_parts();
        let body = forward::Begun::read(body, ANSWER_BYTES_MAX).await.map_err(|error| SendFailure::Broken {
            url: base_url.to_owned(),
            reason: crate::upstream::forward::innermost(&error),
        })?;
        Ok((head, body))
    };
    let (mut exchange, started) = (std::pin::pin!(exchange), Instant::now());
    let result = loop {
        tokio::select! {
            result = exchange.as_mut() => break result,
            () = tokio::time::sleep(SILENCE_LOOK_INTERVAL) => {}
        }
        let silence = progress.idle().unwrap_or_else(|| started.elapsed());
        if silence >= shared.limits.forward_timeout {
            break Err(SendFailure::Timeout { url: base_url.to_owned(), after: silence });
        }
    };
    if let Some(noting) = noting {
        let _ = noting.await;
    }
    drop(begun.memory);
    let (head, body) = match result {
        Ok(answer) => answer,
        Err(_) if is_late.load(Ordering::Relaxed) => return forward::own_answer(shared.too_slow()),
        Err(failure) => {
            debug!(target: "intake", "a body that can't be kept was not taken by the server: {failure}");
            // Its client may be the one that has hung up.
            shared.connection.doubted();
            shared.metrics.intake_refused.add(1);
            let text = "the connection to the Opik server broke, and opik-offline cannot keep this body";
            return forward::own_answer(match failure {
                SendFailure::Connect { .. } => why.reply(),
                // The next try may well pass.
                _ => unavailable(text, shared.retry_after()),
            });
        }
    };
    let endpoint = Endpoint::Write(write.message_type);
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
            shared.connection.lanes().passed(&lane);
            shared.connection.confirmed();
        }
        _ => {}
    }
    shared.metrics.requests_forwarded.add(1);
    forward::whole_answer(head, body, base_url, &client.base())
}

/// Returns what is known of a write whose body is not read: what its path names.
fn unread(write: &Protected, head: &Parts, below: String, lane: Lane) -> Message {
    let inspection = inspect(write, b"{}").unwrap_or_default();
    let body = Body::new(Bytes::new(), Encoding::Identity);
    let method = head.method.as_str().to_owned();
    Message {
        lane,
        message_type: write.message_type,
        request: Request { method, path: below, headers: kept_headers(&head.headers), body },
        touches: inspection.touches,
        items: 1,
        project: None,
        accepted_at_ms: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_to_come_again_only_where_that_can_help() {
        for (why, status, names) in [
            (Unkept::Body(7), 413, "max_body_size"),
            (Unkept::Inflated(7), 413, "max_inflated_size"),
            (Unkept::Indivisible(7), 413, "cannot divide"),
            (Unkept::Store(7), 413, "max_size"),
            (Unkept::NoRoom, 503, "no room"),
            (Unkept::NoDisk, 503, "disk"),
        ] {
            let reply = why.reply();
            assert_eq!((reply.status, reply.retry_after_seconds.is_some()), (status, status == 503), "{why:?}");
            assert!(reply.body.contains(names), "{why:?}: {}", reply.body);
        }
    }
}
