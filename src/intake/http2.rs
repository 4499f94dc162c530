//! HTTP/2 without TLS, for clients that know beforehand that a server speaks it. What goes to the server is HTTP/1.1 all
//! the same, as behind nginx.
//!
//! A stream is a request like any other: the same checks, limits of size and paces hold for it. What only a connection of
//! many streams needs is here:
//!
//! | of | limit | past it |
//! | --- | --- | --- |
//! | streams at once | [`STREAMS_MAX`] | refused, which a client takes as "not done, try again" |
//! | a head, unpacked | `HEAD_BYTES_MAX` | 431 |
//! | heads in pieces, streams that are reset at once | as the `h2` crate bounds them | the connection is closed |
//! | bytes of bodies that nobody has read yet | [`STREAM_WINDOW_BYTES`], [`CONNECTION_WINDOW_BYTES`] | the client waits |
//! | time without a request | `client_timeout` | closed |
//! | time to take a piece of an answer | `client_timeout` | no more streams; closed once the others have ended |

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tracing::debug;

use super::connections::Seat;
use super::wire::{Answering, Wire};
use super::{HEAD_BYTES_MAX, Shared, handle};
use crate::shutdown::Shutdown;

/// Streams of a connection at once; nginx's number.
const STREAMS_MAX: u32 = 128;
/// Bytes of a body that a client may send ahead of its reader, and of all bodies of a connection.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;
/// Bytes of a stream's answer that wait for the client.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// How often in the client's time a connection is looked at.
const LOOKS: u32 = 4;

/// Serves a connection until it ends, is idle for too long, or has to make room.
pub(super) async fn serve(shared: &Arc<Shared>, seat: &Seat, shutdown: &Shutdown, wire: Wire) {
    let timeout = shared.limits.client_timeout;
    let streams = Arc::new(Streams::new());
    let service = {
        let (shared, marker, streams) = (shared.clone(), seat.marker(), streams.clone());
        service_fn(move |mut request: http::Request<_>| {
            let (shared, busy, stream) = (shared.clone(), marker.begin(), Stream::open(&streams));
            as_of_http1(&mut request);
            async move {
                let answer = handle(shared, None, request).await;
                Ok::<_, Infallible>(answer.map(|body| Answering::on_http2(body, busy, stream)))
            }
        })
    };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(wire), service));
    let mut looks = tokio::time::interval(timeout / LOOKS);
    let mut is_ending = false;
    let served = loop {
        tokio::select! {
            served = connection.as_mut() => break served,
            () = seat.asked_to_close() => break Ok(()),
            () = shutdown.requested(), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = looks.tick() => match streams.judge(Instant::now(), timeout) {
                Standing::Fine => {}
                Standing::Done if is_ending => break Ok(()),
                Standing::Stalled => {
                    shared.over_limit("time to take an answer");
                    break Ok(());
                }
                Standing::Done | Standing::PartlyStalled if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                Standing::Done | Standing::PartlyStalled => {}
            },
        }
    };
    if let Err(error) = served {
        if super::conversation::innermost(&error).is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut) {
            shared.over_limit("time to take an answer");
        }
        debug!(target: "intake", "a connection ended: {error}");
    }
}

/// Gives a request the form that it has in HTTP/1.1: its host in `Host`, its cookies in one header (RFC 9113, sections
/// 8.3.1 and 8.2.3).
fn as_of_http1<B>(request: &mut http::Request<B>) {
    let named = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let headers = request.headers_mut();
    if let Some(named) = named.filter(|_| !headers.contains_key(header::HOST)) {
        headers.insert(header::HOST, named);
    }
    join_cookies(headers);
}

fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() < 2 {
        return;
    }
    if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

/// The streams of a connection that have a request in progress.
#[derive(Debug)]
pub(super) struct Streams {
    next: AtomicU64,
    inner: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    /// Since when each waits for its client to take more of its answer; `None` while the client waits for us.
    streams: HashMap<u64, Option<Instant>>,
    /// Since when there has been none.
    idle_since: Instant,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Fine,
    /// It has had no request for too long.
    Done,
    /// A client takes nothing of one answer, and others are in progress.
    PartlyStalled,
    /// A client takes nothing of any answer.
    Stalled,
}

impl Streams {
    fn new() -> Self {
        let inner = Open { streams: HashMap::new(), idle_since: Instant::now() };
        Self { next: AtomicU64::new(0), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, now: Instant, timeout: Duration) -> Standing {
        let open = self.lock();
        let is_over = |since: Instant| now.saturating_duration_since(since) >= timeout;
        if open.streams.is_empty() {
            return if is_over(open.idle_since) { Standing::Done } else { Standing::Fine };
        }
        match open.streams.values().filter(|since| since.is_some_and(is_over)).count() {
            0 => Standing::Fine,
            stalled if stalled == open.streams.len() => Standing::Stalled,
            _ => Standing::PartlyStalled,
        }
    }
}

/// A stream with a request in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct Stream {
    streams: Arc<Streams>,
    id: u64,
}

impl Stream {
    fn open(streams: &Arc<Streams>) -> Self {
        let id = streams.next.fetch_add(1, Ordering::Relaxed);
        streams.lock().streams.insert(id, None);
        Self { streams: streams.clone(), id }
    }

    /// Notes whether the client has to take something before the answer goes on.
    pub(super) fn waits_for_client(&self, waits: bool) {
        self.streams.lock().streams.insert(self.id, waits.then(Instant::now));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        open.streams.remove(&self.id);
        if open.streams.is_empty() {
            open.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn a_connection_ends_when_it_is_idle_or_nobody_takes_its_answers() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let streams = Arc::new(Streams::new());
        assert_eq!(streams.judge(at(9), TIMEOUT), Standing::Fine);
        assert_eq!(streams.judge(at(11), TIMEOUT), Standing::Done);
        let working = Stream::open(&streams);
        assert_eq!(streams.judge(at(100), TIMEOUT), Standing::Fine, "its client waits for us");
        let stalled = Stream::open(&streams);
        stalled.waits_for_client(true);
        assert_eq!(streams.judge(at(9), TIMEOUT), Standing::Fine);
        assert_eq!(streams.judge(at(11), TIMEOUT), Standing::PartlyStalled);
        drop(working);
        assert_eq!(streams.judge(at(11), TIMEOUT), Standing::Stalled);
        stalled.waits_for_client(false);
        assert_eq!(streams.judge(at(11), TIMEOUT), Standing::Fine);
        drop(stalled);
        assert_eq!(streams.judge(at(11), TIMEOUT), Standing::Done);
    }

    #[test]
    fn a_request_gets_the_form_of_http1() {
        let mut request = http::Request::get("http://agent:6745/api/x");
        for piece in ["a=1", "b=2", "c=\u{e9}"] {
            request = request.header("cookie", piece);
        }
        let mut request = request.body(()).expect("a request");
        as_of_http1(&mut request);
        assert_eq!(request.headers()["host"], "agent:6745");
        let cookies: Vec<&[u8]> = request.headers().get_all("cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, ["a=1; b=2; c=\u{e9}".as_bytes()]);
        let mut named = http::Request::get("http://agent/x").header("host", "other").body(()).expect("a request");
        as_of_http1(&mut named);
        assert_eq!(named.headers()["host"], "other", "two names are for the policy to judge");
    }
}
