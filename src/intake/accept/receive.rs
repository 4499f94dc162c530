//! How the body of a protected write is received: into memory, spooled to disk, or streamed through because it can't be
//! kept.
//!
//! | body | as sent | goes |
//! | --- | --- | --- |
//! | of any write | up to [`Sizes::batch`] | into memory |
//! | of one entity, or OTLP | up to [`Sizes::whole`] | into memory, when there is some |
//! | of any write | up to `max_body_size` | to disk ([`crate::intake::spool`]), while there is room |
//! | all else | | through to the server while it is available ([`mod@super::stream_through`]), else 413 or 503 |
//!
//! A body that can't be divided is spooled as well before it streams through: a write that streams through locks its
//! whole lane, and a slow client must not cause head-of-line blocking there. While the server is unavailable it is
//! refused before it is read.
//!
//! A body that is small as sent may be large once it is decoded; the same sizes apply to that ([`measure`]).

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use hyper::body::Body as _;

use super::pieces::{Content, LargeBodyError};
use super::unkept::{PartialBody, Unkept};
use crate::intake::body::{BodyRead, Sizes, broken_body, check_length};
use crate::intake::exchange::Exchange;
use crate::intake::pace::{BodyPace, TooSlow};
use crate::intake::shared::Shared;
use crate::intake::spool::{PIECE_BYTES, Payload, Spool};
use crate::memory::{Grant, Use};
use crate::message::{Body, Encoding, MessageType};
use crate::monitor::Availability;
use crate::protocol::answers::{Reply, error};
use crate::protocol::inspection::item_list;

/// A body that was received, in full or in part.
pub(super) enum Received {
    /// All of it, in memory.
    InMemory(Bytes, Grant),
    /// All of it, on disk.
    Spooled(Payload),
    /// The part that arrived before it was known that it can't be kept.
    Unkept(PartialBody, Unkept),
}

/// Reads the body of a write as far as it can be kept.
///
/// # Errors
///
/// The answer to its client.
pub(super) async fn receive(exchange: &mut Exchange, message_type: MessageType) -> Result<Received, Reply> {
    let shared = &exchange.shared;
    let sizes = Sizes::of(shared.memory.bytes());
    let (limit, spooled_max) = (shared.limits.body_bytes_max, shared.spools.bytes_max());
    let is_batch = item_list(message_type).is_some();
    let in_memory_max = if is_batch { sizes.batch } else { sizes.whole }.min(limit);
    let why = |shared: &Shared, bytes: u64| match is_batch {
        _ if bytes > limit => Some(Unkept::Body(limit)),
        false if shared.connection.availability() == Availability::Unavailable => {
            Some(Unkept::Indivisible(in_memory_max))
        }
        _ if bytes > spooled_max => Some(Unkept::Store(spooled_max)),
        _ => None,
    };
    if let Some(announced) = exchange.body.size_hint().exact().filter(|bytes| *bytes > in_memory_max) {
        return match why(shared, announced) {
            Some(why) => Ok(Received::Unkept(PartialBody::unread(), why)),
            None => Box::pin(spool(exchange, Bytes::new(), None)).await,
        };
    }
    match exchange.read_up_to(in_memory_max).await? {
        BodyRead { bytes, memory, is_whole: true } => Ok(Received::InMemory(bytes, memory)),
        BodyRead { bytes, memory, is_whole: false } => match why(&exchange.shared, bytes.len() as u64) {
            Some(why) => {
                let payload = Payload::InMemory(bytes);
                Ok(Received::Unkept(PartialBody { payload, memory: Some(memory), is_whole: false }, why))
            }
            None => Box::pin(spool(exchange, bytes, Some(memory))).await,
        },
    }
}

/// Writes a body to disk while it arrives. `begun` is what arrived before, and `held` the memory for it.
async fn spool(exchange: &mut Exchange, begun: Bytes, mut held: Option<Grant>) -> Result<Received, Reply> {
    let Exchange { shared, head, body, .. } = exchange;
    let memory = shared.memory.try_take(Use::Intake, 4 * PIECE_BYTES as u64).ok_or_else(|| shared.refuse_busy())?;
    let limit = shared.limits.body_bytes_max;
    let mut spool = Spool::new(shared.spools.clone());
    let mut gathered = BytesMut::from(begun);
    let mut pace = BodyPace::new(shared.limits.client_timeout);
    loop {
        let frame = match pace.next(body).await {
            Err(TooSlow) => return Err(shared.refuse_slow()),
            Ok(Some(Err(_))) => return Err(broken_body()),
            Ok(Some(Ok(frame))) => Some(frame),
            Ok(None) => None,
        };
        let is_last = frame.is_none();
        if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
            gathered.extend_from_slice(&data);
        }
        let is_over = spool.bytes() + gathered.len() as u64 > limit;
        if gathered.len() >= PIECE_BYTES || is_last || is_over {
            let now = gathered.split().freeze();
            let written = tokio::task::spawn_blocking(move || {
                let result = spool.write(&now);
                (spool, result)
            });
            drop(held.take());
            let result;
            (spool, result) = written.await.map_err(|_| error(500, "opik-offline failed to spool this body"))?;
            let why = match result {
                _ if is_over => Some(Unkept::Body(limit)),
                Ok(()) => None,
                Err(why) => Some(Unkept::of(why, shared.spools.bytes_max())),
            };
            if let Some(why) = why {
                let payload = Payload::Spooled(spool.into());
                return Ok(Received::Unkept(PartialBody { payload, memory: Some(memory), is_whole: false }, why));
            }
        }
        if is_last {
            break;
        }
    }
    check_length(&head.headers, spool.bytes())?;
    Ok(Received::Spooled(Payload::Spooled(spool.into())))
}

/// How a body is processed that is in memory as it was sent.
pub(super) enum Processing {
    /// It is decoded in memory, to this many bytes if that is known already.
    Whole(Option<u64>),
    /// It is a batch that is read in pieces.
    Divided,
    /// It can't be kept.
    Unkept(Unkept),
}

/// Finds out how large a body is once it is decoded, without holding more than a piece of it.
///
/// # Errors
///
/// The answer to its client.
pub(super) async fn measure(
    shared: &Shared,
    message_type: MessageType,
    headers: &HeaderMap,
    bytes: &Bytes,
) -> Result<Processing, Reply> {
    let sizes = Sizes::of(shared.memory.bytes());
    let limit = shared.limits.inflated_bytes_max;
    let named = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("unreadable"));
    let Some(encoding) = Encoding::from_header(named) else { return Ok(Processing::Whole(None)) };
    let body = Body::new(bytes.clone(), encoding);
    // The size of a body without an encoding is known and allowed.
    if encoding == Encoding::Identity || body.content_bytes_max() <= sizes.batch.min(limit) {
        return Ok(Processing::Whole(None));
    }
    let measured = match body.announced_bytes().filter(|bytes| *bytes <= limit) {
        Some(announced) => Ok(announced),
        None => {
            let content = Content { payload: Payload::InMemory(bytes.clone()), encoding, bytes_max: limit };
            let measured = tokio::task::spawn_blocking(move || content.bytes()).await;
            measured.map_err(|_| error(500, "opik-offline failed to read this body, which was not stored"))?
        }
    };
    Ok(match measured {
        Ok(bytes) if bytes <= sizes.batch => Processing::Whole(Some(bytes)),
        Ok(_) if item_list(message_type).is_some() => Processing::Divided,
        Ok(bytes) if bytes <= sizes.whole_inflated => Processing::Whole(Some(bytes)),
        Ok(_) => Processing::Unkept(Unkept::Indivisible(sizes.whole_inflated)),
        Err(LargeBodyError::Unkept(why)) => Processing::Unkept(why),
        Err(LargeBodyError::Refused(reply)) => return Err(*reply),
    })
}
