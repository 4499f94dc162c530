//! The connection to a client: watched for how requests are framed, and given up when the client takes nothing more.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::connections::Busy;
use super::forward::AnswerBody;
use super::framing::Framing;
use crate::upstream::forward::BoxError;

/// What is known of a connection's framing, shared with the service that answers its requests.
pub(super) type SharedFraming = Arc<Mutex<Framing>>;

/// A client's connection.
pub(super) struct Wire {
    stream: TcpStream,
    framing: SharedFraming,
    /// How long the client may take nothing of an answer.
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, framing: SharedFraming, patience: Duration) -> Self {
        Self { stream, framing, patience, stalled: None }
    }

    /// Ends a write that has waited for the client for too long.
    fn unless_stalled<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let mut framing = self.framing.lock().unwrap_or_else(PoisonError::into_inner);
        framing.feed(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_stalled(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.unless_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer that keeps its connection busy until the client has it.
pub(super) struct Answering {
    body: AnswerBody,
    _busy: Busy,
}

impl Answering {
    pub(super) fn new(body: AnswerBody, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How slowly a body may come in: with no pause longer than the client's time, and not slower than [`RATE_MIN`] once
/// that time is over. Otherwise a client that sends a byte a minute would keep its place for ever.
///
/// Only the time that is spent waiting for the client counts, not what the disk takes in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pause_max: Duration,
    waited: Duration,
    received: u64,
}

/// Bytes of a body a second, at least.
const RATE_MIN: u64 = 1024;

/// A body that came too slowly.
#[derive(Debug)]
pub(super) struct TooSlow;

impl Pace {
    pub(super) fn new(pause_max: Duration) -> Self {
        Self { pause_max, waited: Duration::ZERO, received: 0 }
    }

    /// Waits for the next piece of a body; `None` at its end.
    pub(super) async fn next(&mut self, body: &mut Incoming) -> Result<Option<hyper::Result<Frame<Bytes>>>, TooSlow> {
        let began = Instant::now();
        let frame = tokio::time::timeout(self.patience(), body.frame()).await.map_err(|_| TooSlow)?;
        self.waited += began.elapsed();
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.received += data.len() as u64;
        }
        Ok(frame)
    }

    /// Returns how long the next piece may take.
    fn patience(&self) -> Duration {
        let whole_max = self.pause_max.saturating_add(Duration::from_secs(self.received / RATE_MIN));
        self.pause_max.min(whole_max.saturating_sub(self.waited))
    }
}

/// A body that is passed on while it comes in, and fails when its client pauses for too long.
pub(super) struct Paced<B> {
    body: B,
    pause_max: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Set when it was too slow, for the answer to its client.
    is_late: Arc<AtomicBool>,
}

impl<B> Paced<B> {
    pub(super) fn new(body: B, pause_max: Duration, is_late: Arc<AtomicBool>) -> Self {
        Self { body, pause_max, timer: None, is_late }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let pause_max = self.pause_max;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause_max)));
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
            // A byte a second: as slow as nothing.
            (60, 60, 0),
            // Two pieces of 64 KiB earn their time.
            (60, 64 * 1024, 60),
            (100, 64 * 1024, 24),
            (3600, 1 << 30, 60),
        ] {
            let pace = Pace { pause_max: second * 60, waited: second * waited, received };
            assert_eq!(pace.patience(), second * expected, "{waited} {received}");
        }
    }
}
