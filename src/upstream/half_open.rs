//! Connections of the streaming client that are read to their end when they can't be written any more.
//!
//! A server that refuses a request by its head may answer and close the connection while the body is still being sent.
//! hyper gives a connection up when a write fails, and with it the answer that lies unread in the socket. Here a write that
//! fails is taken as done, so that the client goes on to read: it finds the answer, or the end of the connection.
//!
//! They are read in small pieces. hyper doubles what it reads at once for as long as that comes in full, up to the largest
//! head of an answer that it may hold: with many large answers at once that was 3.4 MiB for each of them.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower_service::Service;

/// What is read at once of an answer.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Makes connections that are read when they can't be written.
#[derive(Clone, Debug)]
pub(super) struct HalfOpen<C>(pub C);

impl<C> Service<Uri> for HalfOpen<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
{
    type Response = Stream<C::Response>;
    type Error = C::Error;
    type Future = Connecting<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Connecting(Box::pin(self.0.call(uri)))
    }
}

/// A connection that is being made.
#[derive(Debug)]
pub(super) struct Connecting<F>(Pin<Box<F>>);

impl<F: Future<Output = Result<T, E>>, T, E> Future for Connecting<F> {
    type Output = Result<Stream<T>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map_ok(|inner| Stream { inner, is_broken: false })
    }
}

/// A connection whose failed writes are no end.
#[derive(Debug)]
pub(super) struct Stream<T> {
    inner: T,
    is_broken: bool,
}

impl<T> Stream<T> {
    /// Takes the failure of a write as its success; the client learns of it where it reads.
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

impl<T: Read + Unpin> Read for Stream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut buf = buf;
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

impl<T: Write + Unpin> Write for Stream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
        if self.is_broken {
            return Poll::Ready(Ok(all));
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.taken(written, all)
    }
}

impl<T: Connection> Connection for Stream<T> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}
