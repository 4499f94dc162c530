//! Connections of the streaming client that stay readable after a failed write.
//!
//! A server that rejects a request by its head may respond and close the connection while the body is still being sent.
//! hyper drops a connection when a write fails, and with it the unread response in the socket buffer. This wrapper
//! reports a failed write as done, so that the client continues to read: it gets the response, or the end of the
//! connection.
//!
//! An exchange that was begun without hyper can be left to it: [`HalfOpen::go_on`] passes over what was written, and
//! reads again what was read.
//!
//! Reads are limited to a small size. hyper doubles its read buffer as long as reads fill it, up to the limit
//! of a response's head: with many concurrent large responses that took 3.4 MiB for each of them.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

/// Upper bound of one read of a response.
const READ_BYTES_MAX: usize = 16 * 1024;

/// A connection that stays readable after a failed write.
#[derive(Debug)]
pub(super) struct HalfOpen<T> {
    inner: T,
    is_broken: bool,
    begun: Option<Box<Begun>>,
}

/// The part of an exchange that happened without hyper, which has read no whole answer.
#[derive(Debug)]
pub(super) struct Begun {
    /// Bytes of the request that were written.
    written: usize,
    /// The bytes that were read.
    read: Bytes,
    /// How reading or writing failed after that.
    failure: Option<io::Error>,
    /// Nothing is read before the request is written: a client expects no answer then.
    is_held: bool,
    /// The waker of the read that waits for that.
    held: Option<Waker>,
}

impl Begun {
    pub(super) fn new(written: usize, read: Bytes, failure: Option<io::Error>) -> Self {
        Self { written, read, failure, is_held: true, held: None }
    }

    /// Passes over up to this many bytes that were written already.
    fn pass_over(&mut self, bytes: usize) -> usize {
        self.is_held = false;
        if let Some(held) = self.held.take() {
            held.wake();
        }
        let passed = bytes.min(self.written);
        self.written -= passed;
        passed
    }

    /// Reads again; `None` once there is nothing left of it.
    fn poll_read(&mut self, cx: &Context<'_>, buf: &mut ReadBufCursor<'_>) -> Option<Poll<io::Result<()>>> {
        if self.is_held {
            self.held = Some(cx.waker().clone());
            return Some(Poll::Pending);
        }
        if !self.read.is_empty() {
            let bytes = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read[..bytes]);
            self.read.advance(bytes);
            return Some(Poll::Ready(Ok(())));
        }
        self.failure.take().map(|failure| Poll::Ready(Err(failure)))
    }
}

impl<T> HalfOpen<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, is_broken: false, begun: None }
    }

    /// Prepares the connection for one who writes the same request from its beginning.
    pub(super) fn go_on(&mut self, begun: Begun) {
        self.begun = Some(Box::new(begun));
    }

    /// Returns whether a write failed, so that the connection serves no other request.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Passes over up to this many bytes that were written already; `None` if there are none.
    fn pass_over(&mut self, bytes: usize) -> Option<usize> {
        let passed = self.begun.as_mut()?.pass_over(bytes);
        (passed > 0).then_some(passed)
    }

    /// Turns a failed write into a success; the client sees the failure when it reads.
    fn taken<N>(&mut self, written: Poll<io::Result<N>>, all: N) -> Poll<io::Result<N>> {
        match written {
            Poll::Ready(Err(_)) => {
                self.is_broken = true;
                Poll::Ready(Ok(all))
            }
            other => other,
        }
    }
}

impl<T: Read + Unpin> Read for HalfOpen<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut buf = buf;
        if let Some(begun) = &mut self.begun {
            match begun.poll_read(cx, &mut buf) {
                Some(read) => return read,
                None if begun.written == 0 => self.begun = None,
                None => {}
            }
        }
        if buf.remaining() <= READ_BYTES_MAX {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let mut bytes = [const { MaybeUninit::uninit() }; READ_BYTES_MAX];
        let mut piece = ReadBuf::uninit(&mut bytes);
        ready!(Pin::new(&mut self.inner).poll_read(cx, piece.unfilled()))?;
        buf.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for HalfOpen<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(passed) = self.pass_over(buf.len()) {
            return Poll::Ready(Ok(passed));
        }
        if self.is_broken {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.taken(written, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_broken {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.taken(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if let Some(passed) = self.pass_over(all) {
            return Poll::Ready(Ok(passed));
        }
        if self.is_broken {
            return Poll::Ready(Ok(all));
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.taken(written, all)
    }
}
