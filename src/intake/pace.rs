//! Timeouts of bodies: the longest pause, and the minimum throughput.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use crate::upstream::forward::BoxError;

/// Bytes of a body per second, at least.
const RATE_MIN: u64 = 1024;

/// How slowly a body may arrive: with no pause longer than the client's timeout, and not slower than [`RATE_MIN`] once
/// that time is used up. Otherwise a client that sends a byte a minute would keep its connection for ever.
///
/// Only the time that is spent waiting for the client counts, not what the disk takes in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyPace {
    pause_max: Duration,
    waited: Duration,
    received: u64,
}

/// A body timed out.
#[derive(Debug)]
pub(super) struct TooSlow;

impl BodyPace {
    pub(super) fn new(pause_max: Duration) -> Self {
        Self { pause_max, waited: Duration::ZERO, received: 0 }
    }

    /// Waits for the next piece of a body; `None` at its end.
    pub(super) async fn next(&mut self, body: &mut Incoming) -> Result<Option<hyper::Result<Frame<Bytes>>>, TooSlow> {
        let mut next = std::pin::pin!(body.frame());
        // Mostly it is there already, and no timer is needed.
        let frame = match poll_once(next.as_mut()).await {
            Some(frame) => frame,
            None => {
                let began = Instant::now();
                let frame = tokio::time::timeout(self.timeout(), next).await.map_err(|_| TooSlow)?;
                self.waited += began.elapsed();
                frame
            }
        };
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.received += data.len() as u64;
        }
        Ok(frame)
    }

    /// Returns the timeout of the next piece.
    fn timeout(&self) -> Duration {
        self.timeout_at(RATE_MIN)
    }

    /// The same for another minimum of bytes per second.
    fn timeout_at(&self, rate_min: u64) -> Duration {
        let whole_max = self.pause_max.saturating_add(Duration::from_secs(self.received / rate_min));
        self.pause_max.min(whole_max.saturating_sub(self.waited))
    }
}

/// Polls a future once; returns what it is ready with.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A body that is streamed on while it arrives, and fails when its client times out.
pub(super) struct PacedBody<B> {
    body: B,
    pace: BodyPace,
    /// The minimum of bytes per second, if others wait for this body.
    rate_min: Option<u64>,
    waits_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Set when the body timed out, for the answer to its client.
    is_late: Arc<AtomicBool>,
}

impl<B> PacedBody<B> {
    pub(super) fn new(body: B, pause_max: Duration, is_late: Arc<AtomicBool>) -> Self {
        Self { body, pace: BodyPace::new(pause_max), rate_min: None, waits_since: None, timer: None, is_late }
    }

    /// Also fails when fewer bytes per second arrive than this, once its client has used up one longest pause.
    pub(super) fn at_least(self, rate_min: u64) -> Self {
        Self { rate_min: Some(rate_min), ..self }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for PacedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.timer = None;
            if let Some(since) = self.waits_since.take() {
                self.pace.waited += since.elapsed();
            }
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.pace.received += data.map_or(0, Bytes::len) as u64;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.waits_since.get_or_insert_with(Instant::now);
        let timeout = self.rate_min.map_or(self.pace.pause_max, |rate| self.pace.timeout_at(rate));
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        self.is_late.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err("the client's body did not arrive in time".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_pause_but_not_drip_for_ever() {
        let second = Duration::from_secs(1);
        for (waited, received, expected) in [
            (0, 0, 60),
            (30, 0, 30),
            (60, 0, 0),
            // A byte per second: as slow as nothing.
            (60, 60, 0),
            // Two pieces of 64 KiB earn their time.
            (60, 64 * 1024, 60),
            (100, 64 * 1024, 24),
            (3600, 1 << 30, 60),
        ] {
            let pace = BodyPace { pause_max: second * 60, waited: second * waited, received };
            assert_eq!(pace.timeout(), second * expected, "{waited} {received}");
        }
    }
}
