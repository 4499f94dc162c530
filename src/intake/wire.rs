//! The connection to a client: watched for how requests are framed, and given up when the client takes nothing more.
//!
//! A client may close its sending side once its request is sent, and still wait for the answer (`nc -N`, programs that
//! use sockets directly). hyper takes the end of what comes in for the end of the client. So that end is held back here
//! until the answers to all that came in whole are written; the system says meanwhile when the client is gone.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use super::http2::Stream;
use crate::upstream::forward::BoxError;

/// How often a client that sends nothing more, and waits for an answer, is looked at for whether it is still there.
const GONE_LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What is known of the requests and answers of a connection of HTTP/1, shared with the service that answers.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    framing: Mutex<Framing>,
    /// Answers that were written into hyper's buffer, or given up.
    answered: AtomicU64,
    /// Whether some of the last one may still be in that buffer.
    is_unflushed: AtomicBool,
}

impl Exchange {
    /// Returns what is wrong with the framing of the request of this number, of which the first is 1.
    pub(super) fn fault_of(&self, request: u64) -> Option<&'static str> {
        self.framing().fault_of(request)
    }

    /// Returns whether nothing of a next request has come.
    pub(super) fn is_between_requests(&self) -> bool {
        self.framing().is_between_requests()
    }

    /// Returns whether a client that sends nothing more still waits for an answer to what it sent whole.
    fn is_awaited(&self) -> bool {
        if self.is_unflushed.load(Ordering::Relaxed) {
            return true;
        }
        let framing = self.framing();
        framing.is_between_requests() && framing.requests() > self.answered.load(Ordering::Relaxed)
    }

    fn framing(&self) -> MutexGuard<'_, Framing> {
        self.framing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's connection.
pub(super) struct Wire {
    stream: TcpStream,
    /// What was read of it before, to tell what it speaks.
    begun: Bytes,
    /// `None` for HTTP/2, which says of itself where everything ends.
    exchange: Option<Arc<Exchange>>,
    /// How long the client may take nothing of an answer.
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Set once the client has closed its sending side.
    gone_look: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    /// Returns a connection of HTTP/1 of which something was read already.
    pub(super) fn new(stream: TcpStream, begun: Bytes, exchange: Arc<Exchange>, patience: Duration) -> Self {
        exchange.framing().feed(&begun);
        Self { exchange: Some(exchange), ..Self::unwatched(stream, begun, patience) }
    }

    /// Returns a connection whose framing is not watched.
    pub(super) fn unwatched(stream: TcpStream, begun: Bytes, patience: Duration) -> Self {
        Self { stream, begun, exchange: None, patience, stalled: None, gone_look: None }
    }

    /// Holds back the end of what the client sends for as long as it waits for an answer.
    fn end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.exchange.as_ref().is_some_and(|exchange| exchange.is_awaited()) {
            // A client that is gone resets the connection, once it is written to or probed.
            if let Some(error) = self.stream.take_error()? {
                return Poll::Ready(Err(error));
            }
            let look = self.gone_look.get_or_insert_with(|| Box::pin(tokio::time::sleep(GONE_LOOK_INTERVAL)));
            ready!(look.as_mut().poll(cx));
            self.gone_look = None;
        }
        Poll::Ready(Ok(()))
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
        if !self.begun.is_empty() {
            let taken = self.begun.len().min(buffer.remaining());
            buffer.put_slice(&self.begun.split_to(taken));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if read.is_empty() && buffer.remaining() > 0 {
            return self.end(cx);
        }
        if let Some(exchange) = &self.exchange {
            exchange.framing().feed(read);
        }
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
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // hyper flushes what it has in its buffer before.
        if let Some(exchange) = &self.exchange {
            exchange.is_unflushed.store(false, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer that keeps its connection busy until the client has it.
pub(super) struct Answering {
    body: AnswerBody,
    taken: Taken,
    _busy: Busy,
}

/// Who wants to know how far an answer is.
enum Taken {
    Http1(Arc<Exchange>),
    Http2(Stream),
}

impl Answering {
    pub(super) fn on_http1(body: AnswerBody, busy: Busy, exchange: Arc<Exchange>) -> Self {
        Self { body, taken: Taken::Http1(exchange), _busy: busy }
    }

    pub(super) fn on_http2(body: AnswerBody, busy: Busy, stream: Stream) -> Self {
        stream.waits_for_client(true);
        Self { body, taken: Taken::Http2(stream), _busy: busy }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Taken::Http1(exchange) = &self.taken {
            exchange.is_unflushed.store(true, Ordering::Relaxed);
            exchange.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                // Trailers end here, as they do at nginx: `Trailer`, which announces them, is of one connection only.
                Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {}
                frame => break frame,
            }
        };
        if let Taken::Http2(stream) = &self.taken {
            stream.waits_for_client(frame.is_ready());
        }
        frame
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
        self.patience_at(RATE_MIN)
    }

    /// The same for another least number of bytes a second.
    fn patience_at(&self, rate_min: u64) -> Duration {
        let whole_max = self.pause_max.saturating_add(Duration::from_secs(self.received / rate_min));
        self.pause_max.min(whole_max.saturating_sub(self.waited))
    }
}

/// A body that is passed on while it comes in, and fails when its client pauses for too long.
pub(super) struct Paced<B> {
    body: B,
    pace: Pace,
    /// Bytes a second that have to come, if that matters to others.
    rate_min: Option<u64>,
    waits_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Set when it was too slow, for the answer to its client.
    is_late: Arc<AtomicBool>,
}

impl<B> Paced<B> {
    pub(super) fn new(body: B, pause_max: Duration, is_late: Arc<AtomicBool>) -> Self {
        Self { body, pace: Pace::new(pause_max), rate_min: None, waits_since: None, timer: None, is_late }
    }

    /// Also fails when it comes more slowly than this many bytes a second, once its client has used up one longest pause.
    pub(super) fn at_least(self, rate_min: u64) -> Self {
        Self { rate_min: Some(rate_min), ..self }
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
            if let Some(since) = self.waits_since.take() {
                self.pace.waited += since.elapsed();
            }
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.pace.received += data.map_or(0, Bytes::len) as u64;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.waits_since.get_or_insert_with(Instant::now);
        let patience = self.rate_min.map_or(self.pace.pause_max, |rate| self.pace.patience_at(rate));
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
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
