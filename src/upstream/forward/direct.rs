//! One write and its answer, without hyper: what nearly every exchange with the server is.
//!
//! The head and the body of the request are written at once, and the answer is parsed from what was read. hyper's client
//! fills 64 KiB of tables for 1,024 headers at each answer, which takes longer than parsing it.
//!
//! Every other exchange is left to hyper ([`Begun`]): it is given the same request and the bytes that were
//! read, and the connection passes over what was written already (`HalfOpen::go_on`). So every unusual answer and
//! every failure is parsed and worded in one place only, and an answer that is parsed here is one that hyper would
//! parse alike.
//!
//! [`parse`], which is pure, decides whether an answer is simple.

use std::future::poll_fn;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{Either, Full};
use hyper::body::Body as _;
use hyper::rt::{Read, ReadBuf, Write};

use super::super::fault::BoxError;
use super::super::half_open::Begun;

/// A request body: buffered, or streamed from the client.
pub(crate) type ForwardBody = Either<Full<Bytes>, BoxBody<Bytes, BoxError>>;

/// Bytes of an answer with its head; a larger one is read by hyper.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Headers of an answer; one with more is parsed by hyper.
const HEADERS_MAX: usize = 64;
/// Bytes that are read at once.
const PIECE_BYTES: usize = 4096;
/// Bytes of a body that is copied behind its head where two buffers can't be written at once.
const COPIED_BYTES_MAX: usize = 64 * 1024;

/// Headers of a request that mean something to hyper.
static SPECIAL: [HeaderName; 5] =
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::EXPECT, header::UPGRADE];

/// How an exchange went.
pub(super) enum Exchanged {
    /// The answer was read to its end, and the connection is ready for another request.
    Answered(Response<Bytes>),
    /// Hyper continues with the same request.
    Begun(Begun),
}

/// Sets the length of a request whose body is in memory, and returns the body; `None` for a request that is not sent
/// from here.
pub(super) fn prepare(request: &mut Request<ForwardBody>) -> Option<Bytes> {
    let is_write = [Method::POST, Method::PUT, Method::PATCH].contains(request.method());
    let is_special = SPECIAL.iter().any(|name| request.headers().contains_key(name));
    let is_plain = is_write && !is_special && request.version() == Version::HTTP_11;
    let Either::Left(body) = request.body() else { return None };
    let length = body.size_hint().exact().filter(|length| is_plain && *length > 0)?;
    // Cheap: the bytes are shared.
    let bytes = whole(body.clone())?;
    // As hyper does, which keeps it.
    request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Some(bytes)
}

/// Returns the bytes of a body that has all of them.
fn whole(mut body: Full<Bytes>) -> Option<Bytes> {
    let frame = Pin::new(&mut body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        _ => None,
    }
}

/// Returns whether an idle connection was closed, or the server sent something that nobody asked for.
pub(super) fn is_over<T: Read + Unpin>(stream: &mut T, cx: &mut Context<'_>) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    let mut piece = ReadBuf::uninit(&mut byte);
    Pin::new(stream).poll_read(cx, piece.unfilled()).is_ready()
}

/// Sends a request with this body, and reads the answer.
pub(super) async fn exchange<T: Read + Write + Unpin>(
    stream: &mut T,
    request: &Request<ForwardBody>,
    body: Bytes,
) -> Exchanged {
    let mut exchange = WriteExchange::new(head_of(request), body, stream.is_write_vectored());
    poll_fn(|cx| exchange.poll(stream, cx)).await
}

/// Encodes the head of a request as hyper does.
fn head_of(request: &Request<ForwardBody>) -> Vec<u8> {
    let headers = request.headers();
    let mut head = Vec::with_capacity(64 + 48 * headers.len());
    head.extend_from_slice(request.method().as_str().as_bytes());
    // Memory can be written.
    let _ = write!(head, " {} HTTP/1.1\r\n", request.uri());
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

struct WriteExchange {
    /// With the body, if that was copied behind it.
    head: Vec<u8>,
    body: Bytes,
    written: usize,
    is_flushed: bool,
    read: BytesMut,
}

impl WriteExchange {
    fn new(mut head: Vec<u8>, mut body: Bytes, is_vectored: bool) -> Self {
        if !is_vectored && body.len() <= COPIED_BYTES_MAX {
            head.extend_from_slice(&std::mem::take(&mut body));
        }
        Self { head, body, written: 0, is_flushed: false, read: BytesMut::new() }
    }

    fn poll<T: Read + Write + Unpin>(&mut self, stream: &mut T, cx: &mut Context<'_>) -> Poll<Exchanged> {
        if let Poll::Ready(Err(failure)) = self.poll_write(stream, cx) {
            return Poll::Ready(self.leave(Some(failure)));
        }
        let mut bytes = [const { MaybeUninit::uninit() }; PIECE_BYTES];
        loop {
            let mut piece = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut *stream).poll_read(cx, piece.unfilled()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(failure)) => return Poll::Ready(self.leave(Some(failure))),
                Poll::Ready(Ok(())) => {}
            }
            let is_end = piece.filled().is_empty();
            self.read.extend_from_slice(piece.filled());
            // A server that answers early may read no more.
            if is_end || !self.is_flushed {
                return Poll::Ready(self.leave(None));
            }
            match parse(&mut self.read) {
                Parsed::Answer(answer) => return Poll::Ready(Exchanged::Answered(*answer)),
                Parsed::Partial if self.read.len() < ANSWER_BYTES_MAX => {}
                Parsed::Partial | Parsed::Unusual => return Poll::Ready(self.leave(None)),
            }
        }
    }

    fn poll_write<T: Write + Unpin>(&mut self, stream: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(stream);
        while self.written < self.head.len() + self.body.len() {
            let head = self.head.get(self.written..).unwrap_or_default();
            let body = self.body.get(self.written.saturating_sub(self.head.len())..).unwrap_or_default();
            let written = match (head.is_empty(), stream.is_write_vectored()) {
                (false, true) => stream.as_mut().poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)]),
                (false, false) => stream.as_mut().poll_write(cx, head),
                (true, _) => stream.as_mut().poll_write(cx, body),
            };
            match std::task::ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        if !self.is_flushed {
            std::task::ready!(stream.poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Leaves the exchange to hyper.
    fn leave(&mut self, failure: Option<io::Error>) -> Exchanged {
        Exchanged::Begun(Begun::new(self.written, std::mem::take(&mut self.read).freeze(), failure))
    }
}

enum Parsed {
    /// The whole answer, and nothing behind it.
    Answer(Box<Response<Bytes>>),
    /// Something is missing.
    Partial,
    /// Hyper has to parse it.
    Unusual,
}

/// Parses an answer: one of HTTP/1.1 whose body is as long as its only `Content-Length` says or that has none, and after
/// which the connection stays open. Takes the bytes if it is one.
fn parse(read: &mut BytesMut) -> Parsed {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let head_bytes = match config.parse_response_with_uninit_headers(&mut parsed, read, &mut headers) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Unusual,
    };
    let Some((status, body_bytes)) = frame(&parsed) else { return Parsed::Unusual };
    match read.len().cmp(&head_bytes.saturating_add(body_bytes)) {
        std::cmp::Ordering::Less => return Parsed::Partial,
        std::cmp::Ordering::Equal => {}
        std::cmp::Ordering::Greater => return Parsed::Unusual,
    }
    let Some(headers) = header_map(parsed.headers) else { return Parsed::Unusual };
    let body = Bytes::copy_from_slice(&read[head_bytes..]);
    read.clear();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Parsed::Answer(Box::new(answer))
}

/// Returns the status of an answer and the length of its body, if it is a simple one.
fn frame(parsed: &httparse::Response<'_, '_>) -> Option<(StatusCode, usize)> {
    let status = StatusCode::from_u16(parsed.code?).ok()?;
    // Any other reason is kept by hyper.
    let is_simple =
        parsed.version == Some(1) && status.as_u16() >= 200 && parsed.reason? == status.canonical_reason()?;
    if !is_simple {
        return None;
    }
    let mut length = None;
    for header in parsed.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("transfer-encoding") || is("connection") && !header.value.eq_ignore_ascii_case(b"keep-alive") {
            return None;
        }
        if is("content-length") {
            let digits = std::str::from_utf8(header.value).ok()?;
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let bytes: usize = digits.parse().ok().filter(|bytes| is_number && *bytes <= ANSWER_BYTES_MAX)?;
            if length.replace(bytes).is_some() {
                return None;
            }
        }
    }
    match status {
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Some((status, 0)),
        _ => Some((status, length?)),
    }
}

fn header_map(parsed: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(parsed.len());
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    Some(headers)
}

#[cfg(test)]
mod tests;
