//! Answers on their way to a client, and which requests of an HTTP/1 connection still wait for theirs.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::connections::BusyGuard;
use super::forward::AnswerBody;
use super::framing::{Framing, UnusualHead};
use super::streams::ActiveStream;
use crate::upstream::forward::BoxError;

/// The requests and answers of an HTTP/1 connection, shared between its socket and the service that answers.
#[derive(Debug, Default)]
pub(super) struct RequestTracker {
    framing: Mutex<Framing>,
    /// Answers that were written into hyper's buffer, or dropped.
    answered: AtomicU64,
    /// Whether some of the last one may still be in that buffer.
    is_unflushed: AtomicBool,
    /// The number of the request whose head is held back ([`super::wire`]), once hyper waits for it; 0 if none is.
    held: AtomicU64,
}

impl RequestTracker {
    /// Returns what is wrong with the framing of the request with this number; the first is 1.
    pub(super) fn fault_of(&self, request: u64) -> Option<&'static str> {
        self.framing().fault_of(request)
    }

    /// Returns the head that the client has to send next; `None` while its request is read or answered.
    pub(super) fn awaited_head(&self) -> Option<AwaitedHead> {
        let number = self.framing().awaited_head()?;
        let is_previous_answered = number == self.answered.load(Ordering::Relaxed) + 1;
        let is_answer_unflushed = self.is_unflushed.load(Ordering::Relaxed);
        is_previous_answered.then_some(AwaitedHead { number, is_answer_unflushed })
    }

    /// Returns whether a client that sends nothing more still waits for the answer to a request that it sent whole.
    pub(super) fn is_awaited(&self) -> bool {
        if self.is_unflushed.load(Ordering::Relaxed) {
            return true;
        }
        let framing = self.framing();
        framing.is_between_requests() && framing.requests() > self.answered.load(Ordering::Relaxed)
    }

    /// Validates the framing of bytes that the client sent. Returns the first head that turns out to be unusual.
    pub(super) fn received(&self, bytes: &[u8]) -> Option<UnusualHead> {
        self.framing().feed(bytes)
    }

    /// Notes that hyper waits for the head of this request, which is held back; 0 for none.
    pub(super) fn hold(&self, request: u64) {
        self.held.store(request, Ordering::Relaxed);
    }

    /// Returns whether hyper waits for a head that is held back, and all requests before it are answered.
    pub(super) fn is_held(&self) -> bool {
        let held = self.held.load(Ordering::Relaxed);
        held > 0 && self.answered.load(Ordering::Relaxed) + 1 == held && !self.is_unflushed.load(Ordering::Relaxed)
    }

    /// Notes that hyper's buffer has been written to the socket.
    pub(super) fn flushed(&self) {
        self.is_unflushed.store(false, Ordering::Relaxed);
    }

    fn framing(&self) -> MutexGuard<'_, Framing> {
        self.framing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of a request that has not arrived yet.
pub(super) struct AwaitedHead {
    /// The number of its request; the first is 1.
    pub(super) number: u64,
    /// Whether the previous answer is still being written.
    pub(super) is_answer_unflushed: bool,
}

/// The body of an answer. Its connection counts as busy until the client has taken it.
pub(super) struct Answering {
    body: AnswerBody,
    observer: AnswerObserver,
    _busy: BusyGuard,
}

/// Observes the progress of an answer.
enum AnswerObserver {
    Http1(Arc<RequestTracker>),
    Http2(ActiveStream),
}

impl Answering {
    pub(super) fn on_http1(body: AnswerBody, busy: BusyGuard, tracker: Arc<RequestTracker>) -> Self {
        Self { body, observer: AnswerObserver::Http1(tracker), _busy: busy }
    }

    pub(super) fn on_http2(body: AnswerBody, busy: BusyGuard, stream: ActiveStream) -> Self {
        stream.set_waiting_for_client(true);
        Self { body, observer: AnswerObserver::Http2(stream), _busy: busy }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let AnswerObserver::Http1(tracker) = &self.observer {
            tracker.is_unflushed.store(true, Ordering::Relaxed);
            tracker.answered.fetch_add(1, Ordering::Relaxed);
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
                // Trailers stop here, as at nginx: `Trailer`, which announces them, is a hop-by-hop header.
                Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {}
                frame => break frame,
            }
        };
        if let AnswerObserver::Http2(stream) = &self.observer {
            stream.set_waiting_for_client(frame.is_ready());
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
