//! How the body of a protected write comes in: held in memory, spooled to disk, or passed on because it can't be kept.
//!
//! | body | as sent | goes |
//! | --- | --- | --- |
//! | of any write | up to [`Sizes::batch`] | into memory |
//! | of one entity, or OTLP | up to [`Sizes::whole`] | into memory, when there is some |
//! | of any write | up to `max_body_size` | to disk ([`super::super::spool`]), while there is room |
//! | all else | | through to the server while it is there ([`super::unkept`]), else 413 or 503 |
//!
//! What can't be divided goes to disk as well before it streams through: whatever streams through has the turn of its whole
//! lane, which is not to wait for a slow client. While the server is away it is refused before it is read.
//!
//! A body that is small as sent may be large once it is decoded; the same sizes hold for that.

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use hyper::body::{Body as _, Incoming};

use super::unkept::{Begun, Unkept};
use super::{Read, content_length, read_up_to};
use crate::intake::Shared;
use crate::intake::spool::{PIECE_BYTES, Payload, Spool};
use crate::intake::wire::{Pace, TooSlow};
use crate::memory::{Grant, Use};
use crate::message::{Body, Encoding, MessageType};
use crate::monitor::Availability;
use crate::protocol::answers::{Reply, error};
use crate::protocol::inspection::item_list;

const MIB: u64 = 1 << 20;

/// What may be in memory of one body, by the budget for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::intake) struct Sizes {
    /// The items of one stored message, of a batch that is divided.
    pub(in crate::intake) piece: usize,
    /// A batch that is not divided.
    pub(in crate::intake) batch: u64,
    /// What can't be divided.
    pub(in crate::intake) whole: u64,
    /// The same once it is decoded.
    pub(in crate::intake) whole_inflated: u64,
}

impl Sizes {
    /// Returns the sizes for a budget of this many bytes. Pure.
    pub(in crate::intake) fn of(budget: u64) -> Self {
        Self {
            piece: usize::try_from((budget / 64).clamp(MIB / 4, 4 * MIB)).unwrap_or(usize::MAX),
            batch: (budget / 16).clamp(MIB, 64 * MIB),
            // It may be held alone, even where that exceeds the budget.
            whole: (budget / 2).max(64 * MIB),
            whole_inflated: (budget / 2).max(128 * MIB),
        }
    }

    fn held(self, message_type: MessageType) -> u64 {
        if item_list(message_type).is_some() { self.batch } else { self.whole }
    }
}

/// A body that came in, or began to.
pub(super) enum Received {
    /// All of it, in memory.
    Held(Bytes, Grant),
    /// All of it, on disk.
    Spooled(Payload),
    /// What of it came before it was seen that it can't be kept.
    Unkept(Begun, Unkept),
}

/// Reads the body of a write as far as it can be kept.
pub(super) async fn receive(
    shared: &Shared,
    message_type: MessageType,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<Received, Reply> {
    let sizes = Sizes::of(shared.memory.bytes());
    let (limit, spooled_max) = (shared.limits.body_bytes_max, shared.spools.bytes_max());
    let is_batch = item_list(message_type).is_some();
    let held_max = sizes.held(message_type).min(limit);
    let why = |bytes: u64| match is_batch {
        _ if bytes > limit => Some(Unkept::Body(limit)),
        false if shared.connection.availability() == Availability::Unavailable => Some(Unkept::Indivisible(held_max)),
        _ if bytes > spooled_max => Some(Unkept::Store(spooled_max)),
        _ => None,
    };
    if let Some(announced) = body.size_hint().exact().filter(|bytes| *bytes > held_max) {
        return match why(announced) {
            Some(why) => Ok(Received::Unkept(Begun::nothing(), why)),
            None => spool(shared, headers, Bytes::new(), None, body).await,
        };
    }
    match read_up_to(shared, headers, body, held_max).await? {
        Read { bytes, memory, is_whole: true } => Ok(Received::Held(bytes, memory)),
        Read { bytes, memory, is_whole: false } => match why(bytes.len() as u64) {
            Some(why) => Ok(Received::Unkept(Begun { payload: Payload::Held(bytes), memory: Some(memory) }, why)),
            None => spool(shared, headers, bytes, Some(memory), body).await,
        },
    }
}

/// Writes a body to disk while it comes in. `held` is the memory for what of it came before.
async fn spool(
    shared: &Shared,
    headers: &HeaderMap,
    begun: Bytes,
    mut held: Option<Grant>,
    body: &mut Incoming,
) -> Result<Received, Reply> {
    let memory = shared.memory.try_take(Use::Intake, 4 * PIECE_BYTES as u64).ok_or_else(|| shared.busy())?;
    let limit = shared.limits.body_bytes_max;
    let mut spool = Spool::new(shared.spools.clone());
    let mut gathered = BytesMut::from(begun);
    let mut pace = Pace::new(shared.limits.client_timeout);
    loop {
        let frame = match pace.next(body).await {
            Err(TooSlow) => return Err(shared.too_slow()),
            Ok(Some(Err(_))) => return Err(error(400, "the body ended too early or is framed wrongly")),
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
                return Ok(Received::Unkept(Begun { payload, memory: Some(memory) }, why));
            }
        }
        if is_last {
            break;
        }
    }
    if content_length(headers).is_some_and(|expected| expected != spool.bytes()) {
        return Err(error(400, "the body is shorter than its Content-Length"));
    }
    Ok(Received::Spooled(Payload::Spooled(spool.into())))
}

/// How a body that is in memory as it was sent goes on.
pub(super) enum Decoded {
    /// It is decoded in memory, to this many bytes if that is known already.
    Whole(Option<u64>),
    /// It is a batch that is read in pieces.
    Divided,
    /// It can't be kept.
    Unkept(Unkept),
}

/// Finds out how large a body is once it is decoded, without holding more than a piece of it.
pub(super) async fn measure(
    shared: &Shared,
    message_type: MessageType,
    headers: &HeaderMap,
    bytes: &Bytes,
) -> Result<Decoded, Reply> {
    let sizes = Sizes::of(shared.memory.bytes());
    let limit = shared.limits.inflated_bytes_max;
    let named = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("unreadable"));
    let Some(encoding) = Encoding::from_header(named) else { return Ok(Decoded::Whole(None)) };
    let body = Body::new(bytes.clone(), encoding);
    // Of what is not encoded, the size is known and allowed.
    if encoding == Encoding::Identity || body.content_bytes_max() <= sizes.batch.min(limit) {
        return Ok(Decoded::Whole(None));
    }
    let measured = match body.announced_bytes().filter(|bytes| *bytes <= limit) {
        Some(announced) => Ok(announced),
        None => {
            let content = super::large::Content { payload: Payload::Held(bytes.clone()), encoding, bytes_max: limit };
            let measured = tokio::task::spawn_blocking(move || content.bytes()).await;
            measured.map_err(|_| error(500, "opik-offline failed to read this body, which was not stored"))?
        }
    };
    Ok(match measured {
        Ok(bytes) if bytes <= sizes.batch => Decoded::Whole(Some(bytes)),
        Ok(_) if item_list(message_type).is_some() => Decoded::Divided,
        Ok(bytes) if bytes <= sizes.whole_inflated => Decoded::Whole(Some(bytes)),
        Ok(_) => Decoded::Unkept(Unkept::Indivisible(sizes.whole_inflated)),
        Err(super::large::Fault::Unkept(why)) => Decoded::Unkept(why),
        Err(super::large::Fault::Refused(reply)) => return Err(*reply),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_fit_into_the_budget() {
        for (budget, piece, batch, whole) in
            [(16, 0.25, 1, 64), (96, 1.5, 6, 64), (256, 4.0, 16, 128), (4096, 4.0, 64, 2048)]
        {
            let sizes = Sizes::of(budget * MIB);
            assert_eq!(sizes.piece as f64, piece * MIB as f64, "{budget}");
            assert_eq!((sizes.batch, sizes.whole), (batch * MIB, whole * MIB), "{budget}");
            assert!(sizes.piece as u64 * 2 <= budget * MIB / 16, "pieces wait for memory that others hold");
        }
    }
}
