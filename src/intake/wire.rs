//! The socket to a client: the framing of its requests is validated, and it times out when the client sends no head of
//! a request or takes no more of its answer.
//!
//! A client may close its sending side once its request is sent, and still wait for the answer (`nc -N`, programs that
//! use sockets directly). For hyper the end of input is the end of the connection. So that end is hidden from it until
//! the answers to all requests that arrived whole are written; meanwhile the operating system reports a client that is
//! gone.
//!
//! # Unusual heads
//!
//! hyper fills a table for as many headers as a head may have, twice for each request, which takes longer than parsing
//! a usual head. So it is given a small one at first. The rest of the first head that may not fit is held back here
//! until all requests before it are answered; then hyper starts over with a large table, and reads that head again
//! ([`ClientSocket::reread`]). So a client gets the same answers as if the table had been large from the beginning.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::answering::RequestTracker;
use super::deadline::Deadline;
use super::framing::UnusualHead;

/// How often the socket of a client that closed its sending side, and waits for an answer, is checked for errors.
const GONE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The socket to a client.
pub(super) struct ClientSocket {
    stream: TcpStream,
    /// Bytes that were read of it already.
    begun: Bytes,
    /// The request of an unusual head, with the rest of it and the bytes behind it, perhaps none so far; `None` if no head
    /// is held back.
    held: Option<(u64, Bytes)>,
    /// Whether the parser needs unusual heads held back.
    holds_back: bool,
    /// `None` for HTTP/2, whose frames say where every request ends.
    tracker: Option<Arc<RequestTracker>>,
    /// The timeout of a client that sends no head, or takes nothing of an answer.
    timeout: Duration,
    /// The head that is read next, by its number, and the end of the time for it.
    head: (u64, Instant),
    head_deadline: Deadline,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Set once the client has closed its sending side.
    gone_check: Option<Pin<Box<Sleep>>>,
}

impl ClientSocket {
    /// Returns an HTTP/1 connection of which something was read already.
    pub(super) fn http1(stream: TcpStream, mut begun: Bytes, tracker: Arc<RequestTracker>, timeout: Duration) -> Self {
        let held = tracker.received(&begun).map(|unusual| (unusual.request, begun.split_off(unusual.at)));
        Self { tracker: Some(tracker), held, holds_back: true, ..Self::http2(stream, begun, timeout) }
    }

    /// Returns the connection for a parser that takes every head: with these bytes, which another one read and did not
    /// parse, and then what is held back.
    pub(super) fn reread(mut self, unparsed: &[u8]) -> Self {
        let (_, held) = self.held.take().unwrap_or_default();
        self.holds_back = false;
        // Nothing is left of what was read before, unless nothing is held back.
        self.begun = [unparsed, &self.begun, &held].concat().into();
        if let Some(tracker) = &self.tracker {
            tracker.hold(0);
        }
        self
    }

    /// Returns an HTTP/2 connection, whose framing is not validated.
    pub(super) fn http2(stream: TcpStream, begun: Bytes, timeout: Duration) -> Self {
        Self {
            stream,
            begun,
            held: None,
            holds_back: false,
            tracker: None,
            timeout,
            head: (0, Instant::now()),
            head_deadline: Deadline::default(),
            stalled: None,
            gone_check: None,
        }
    }

    /// Notes that hyper has parsed all bytes before an unusual head, and waits for more.
    fn wait_for_parser(&self) -> Poll<io::Result<()>> {
        if let (Some(tracker), Some((request, _))) = (&self.tracker, &self.held) {
            tracker.hold(*request);
        }
        Poll::Pending
    }

    /// Times out the head of a request. The time begins when the previous answer is on its way.
    fn poll_head_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(awaited) = self.tracker.as_ref().and_then(|tracker| tracker.awaited_head()) {
            if awaited.number != self.head.0 {
                self.head = (awaited.number, Instant::now() + self.timeout);
            }
            ready!(self.head_deadline.poll_passed(cx, self.head.1));
            if !awaited.is_answer_unflushed {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client sends no head of a request"));
            }
            // The client still takes the previous answer, which has a timeout of its own.
            self.head.1 = Instant::now() + self.timeout;
        }
        Poll::Pending
    }

    /// Hides the end of input from hyper while the client waits for an answer.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tracker.as_ref().is_some_and(|tracker| tracker.is_awaited()) {
            // A client that is gone resets the connection once it is written to or probed.
            if let Some(error) = self.stream.take_error()? {
                return Poll::Ready(Err(error));
            }
            let check = self.gone_check.get_or_insert_with(|| Box::pin(tokio::time::sleep(GONE_CHECK_INTERVAL)));
            ready!(check.as_mut().poll(cx));
            self.gone_check = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Times out a write that waits for the client.
    fn unless_stalled<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let timeout = self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.begun.is_empty() {
            let taken = self.begun.len().min(buffer.remaining());
            buffer.put_slice(&self.begun.split_to(taken));
            return Poll::Ready(Ok(()));
        }
        if self.held.is_some() {
            // The connection is parsed anew once the requests before are answered. Also if the head was held at the end of
            // the bytes that had arrived: the small table must not get the rest. Not earlier than here: hyper may still have
            // some of the previous body, because a server may answer before it reads that.
            return self.wait_for_parser();
        }
        let before = buffer.filled().len();
        if Pin::new(&mut self.stream).poll_read(cx, buffer)?.is_pending() {
            return self.poll_head_timeout(cx).map(Err);
        }
        let read = &buffer.filled()[before..];
        if read.is_empty() && buffer.remaining() > 0 {
            return self.poll_end(cx);
        }
        let unusual = self.tracker.as_ref().and_then(|tracker| tracker.received(read));
        if let Some(UnusualHead { request, at }) = unusual.filter(|_| self.holds_back) {
            self.held = Some((request, Bytes::copy_from_slice(&read[at..])));
            buffer.set_filled(before + at);
            if at == 0 {
                return self.wait_for_parser();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientSocket {
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
        // hyper writes its own buffer before it flushes.
        if let Some(tracker) = &self.tracker {
            tracker.flushed();
        }
        // hyper doesn't read again before bytes arrive, so the time for the next head begins here.
        let _ = self.poll_head_timeout(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Returns the operating system's error that ended a connection, if one did.
pub(super) fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// A client whose first bytes end right behind the header that makes its head unusual would otherwise lose the
    /// request that is being answered, and its body would be read as another request.
    #[test]
    fn a_head_that_is_held_where_the_bytes_end_is_held() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let lines = format!("POST / HTTP/1.1\r\n{}", "A: b\r\n".repeat(64));
            let rest = "Content-Length: 2\r\n\r\n{}";
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let mut client =
                std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
            let (stream, _) = listener.accept().await.expect("a client");
            client.write_all(rest.as_bytes()).expect("it is connected");
            stream.readable().await.expect("the rest arrives");
            let tracker = Arc::new(RequestTracker::default());
            let begun = Bytes::from(lines.clone());
            let mut socket = ClientSocket::http1(stream, begun, tracker.clone(), Duration::from_secs(60));
            let mut read = vec![0; lines.len()];
            socket.read_exact(&mut read).await.expect("the bytes that had arrived");
            let mut byte = [0];
            let is_pending = poll_fn(|cx| {
                let mut buffer = ReadBuf::new(&mut byte);
                Poll::Ready(Pin::new(&mut socket).poll_read(cx, &mut buffer).is_pending())
            });
            assert!(is_pending.await, "the small table gets the rest of the head");
            assert!(tracker.is_held());
            let mut socket = socket.reread(&read);
            let mut all = vec![0; lines.len() + rest.len()];
            socket.read_exact(&mut all).await.expect("everything");
            assert_eq!(all, (lines + rest).into_bytes());
            assert!(!tracker.is_held());
        });
    }
}
