//! Reads bodies into memory, within the memory for all bodies together.
//!
//! A large body that announces its size waits until there is memory for all of it, and is not read before: backpressure
//! stops its client. Other bodies take memory as they arrive. A client that holds memory and sends nothing times out
//! early when others need it.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use hyper::body::{Body as _, Frame, Incoming};

use super::exchange::{Exchange, content_length};
use super::pace::{BodyPace, TooSlow};
use super::shared::Shared;
use crate::memory::{Budget, Grant, Use};
use crate::protocol::answers::{Reply, error};

/// The timeout of a client that holds memory for its body, and the bytes per second that it has to send after that,
/// while others wait for memory or are refused it.
pub(super) const AWAITED_PAUSE_MAX: Duration = Duration::from_secs(10);
pub(super) const AWAITED_RATE_MIN: u64 = 256 * 1024;
/// How often a longer pause is checked again.
const AWAITED_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Memory that is taken at once for a body without a `Content-Length`, when it turns out to be a large one.
const GROWER_BYTES: u64 = 64 * 1024 * 1024;
/// The answer to a client whose body can't be read.
const BROKEN: &str = "the body ended too early or is framed wrongly";
const SHORT: &str = "the body is shorter than its Content-Length";

/// A body in memory, or its beginning.
pub(super) struct BodyRead {
    pub(super) bytes: Bytes,
    pub(super) memory: Grant,
    /// False for a body that is larger than the requested size.
    pub(super) is_whole: bool,
}

/// The size limits of one body in memory, derived from the budget for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The items of one stored message, of a batch that is divided.
    pub(super) piece: usize,
    /// A batch that is not divided.
    pub(super) batch: u64,
    /// A body that can't be divided.
    pub(super) whole: u64,
    /// The same once it is decoded.
    pub(super) whole_inflated: u64,
}

const MIB: u64 = 1 << 20;

impl Sizes {
    /// Returns the sizes for a budget of this many bytes. Pure.
    pub(super) fn of(budget: u64) -> Self {
        Self {
            piece: usize::try_from((budget / 64).clamp(MIB / 4, 4 * MIB)).unwrap_or(usize::MAX),
            batch: (budget / 16).clamp(MIB, 64 * MIB),
            // It may be held alone, even where that exceeds the budget.
            whole: (budget / 2).max(64 * MIB),
            whole_inflated: (budget / 2).max(128 * MIB),
        }
    }
}

/// Returns the failure of a body that breaks off.
pub(super) fn broken_body() -> Reply {
    error(400, BROKEN)
}

/// Validates the length of a body that was read to its end against its `Content-Length`.
pub(super) fn check_length(headers: &HeaderMap, bytes: u64) -> Result<(), Reply> {
    match content_length(headers).is_some_and(|expected| expected != bytes) {
        true => Err(error(400, SHORT)),
        false => Ok(()),
    }
}

impl Exchange {
    /// Reads the body whole, if it may be held in memory.
    ///
    /// # Errors
    ///
    /// The answer to the client.
    pub(super) async fn read_whole(&mut self) -> Result<(Bytes, Grant), Reply> {
        let limit = self.shared.limits.body_bytes_max.min(Sizes::of(self.shared.memory.bytes()).whole);
        let too_large = |shared: &Shared| {
            shared.count_over_limit("bytes of a body");
            error(413, &format!("the body is larger than {limit} bytes, opik-offline's limit (max_body_size)"))
        };
        if self.body.size_hint().exact().is_some_and(|bytes| bytes > limit) {
            return Err(too_large(&self.shared));
        }
        match self.read_up_to(limit).await? {
            BodyRead { bytes, memory, is_whole: true } => Ok((bytes, memory)),
            BodyRead { is_whole: false, .. } => Err(too_large(&self.shared)),
        }
    }

    /// Reads the body up to a size, and a little past it.
    ///
    /// # Errors
    ///
    /// The answer to the client.
    pub(super) async fn read_up_to(&mut self, limit: u64) -> Result<BodyRead, Reply> {
        let Self { shared, head, body, .. } = self;
        let announced = body.size_hint().exact();
        let reserved = announced.filter(|bytes| shared.memory.is_large(*bytes));
        let mut memory = match reserved {
            Some(bytes) => shared.wait_for_memory(Use::Intake, bytes).await?,
            None => shared.memory.try_take(Use::Intake, 0).ok_or_else(|| shared.refuse_busy())?,
        };
        let room = reserved.or(announced.map(|bytes| bytes.min(64 * 1024))).unwrap_or(0);
        let mut read = BytesMut::new();
        let mut pace = BodyPace::new(shared.limits.client_timeout);
        let began = Instant::now();
        loop {
            let frame = match next_frame(&mut pace, body, &memory, &shared.memory).await {
                Err(TooSlow) => return Err(shared.refuse_slow()),
                Ok(None) => break,
                Ok(Some(Err(_))) => return Err(broken_body()),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            let bytes = (read.len() + data.len()) as u64;
            if bytes > limit {
                // A frame is at most as large as one read of the socket.
                read.extend_from_slice(&data);
                return Ok(BodyRead { bytes: read.freeze(), memory, is_whole: false });
            }
            if !memory.try_grow_up_to(bytes, announced.unwrap_or(limit.min(GROWER_BYTES))) {
                return Err(shared.refuse_busy());
            }
            // A small body arrives in one piece: a part of the connection's buffer, which is free until the answer. The
            // streams of an HTTP/2 connection share one.
            if read.is_empty() && body.is_end_stream() && head.version != http::Version::HTTP_2 {
                check_length(&head.headers, bytes)?;
                memory.shrink_to(bytes);
                return Ok(BodyRead { bytes: data, memory, is_whole: true });
            }
            if is_behind(bytes, began.elapsed()) && shared.memory.is_awaited(Use::Intake) {
                return Err(shared.refuse_slow());
            }
            if bytes > read.capacity() as u64 {
                // All that was granted, so that nothing is copied again. Untouched pages take no memory.
                let granted = if read.is_empty() { room.max(bytes) } else { memory.bytes() };
                read.reserve(usize::try_from(granted).unwrap_or(0).saturating_sub(read.len()));
            }
            read.extend_from_slice(&data);
        }
        check_length(&head.headers, read.len() as u64)?;
        memory.shrink_to(read.len() as u64);
        Ok(BodyRead { bytes: read.freeze(), memory, is_whole: true })
    }
}

/// Waits for the next piece of a body. Times out early if the client holds memory that others wait for.
async fn next_frame(
    pace: &mut BodyPace,
    body: &mut Incoming,
    memory: &Grant,
    budget: &Budget,
) -> Result<Option<hyper::Result<Frame<Bytes>>>, TooSlow> {
    let mut next = std::pin::pin!(pace.next(body));
    let mut pause_max = AWAITED_PAUSE_MAX;
    loop {
        match tokio::time::timeout(pause_max, next.as_mut()).await {
            Ok(frame) => return frame,
            Err(_) if memory.bytes() > 0 && budget.is_awaited(Use::Intake) => return Err(TooSlow),
            Err(_) => pause_max = AWAITED_CHECK_INTERVAL,
        }
    }
}

/// Returns whether a body's throughput is too low while others wait for memory.
fn is_behind(received: u64, elapsed: Duration) -> bool {
    elapsed > AWAITED_PAUSE_MAX && received / AWAITED_RATE_MIN < elapsed.as_secs()
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
