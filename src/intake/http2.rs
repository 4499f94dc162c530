//! HTTP/2 without TLS, for clients that know in advance that the server speaks it (prior knowledge). To the server the
//! agent still sends HTTP/1.1, as nginx does.
//!
//! A stream is a request like any other: the same validation, size limits and timeouts apply to it. A connection with
//! concurrent streams needs more:
//!
//! | of | limit | past it |
//! | --- | --- | --- |
//! | concurrent streams | [`STREAMS_MAX`] | refused, which a client reads as "not processed, retry" |
//! | a head, unpacked | `HEAD_BYTES_MAX` | 431 |
//! | heads in pieces, streams that are reset at once | as the `h2` crate bounds them | the connection is closed |
//! | bytes of bodies that were not read yet | [`STREAM_WINDOW_BYTES`], [`CONNECTION_WINDOW_BYTES`] | backpressure: the client waits |
//! | time without a request | `client_timeout` | closed |
//! | time to take a piece of an answer | `client_timeout` | no more streams; closed once the others have ended |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tracing::debug;

use super::answering::Answering;
use super::connections::Seat;
use super::evidence::CreateEvidence;
use super::limits::HEAD_BYTES_MAX;
use super::router::handle;
use super::shared::Shared;
use super::streams::{StreamHealth, Streams};
use super::wire::{ClientSocket, io_error};

/// Concurrent streams of a connection; nginx's number.
const STREAMS_MAX: u32 = 128;
/// Bytes of a body that a client may send ahead of its reader, and of all bodies of a connection.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;
/// Bytes of a stream's answer that are buffered for the client.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// How often within the client's timeout a connection is checked.
const CHECKS_PER_TIMEOUT: u32 = 4;

/// Serves a connection until it ends, times out or is evicted.
pub(super) async fn serve(shared: &Arc<Shared>, seat: &Seat, socket: ClientSocket) {
    let shutdown = &shared.ending;
    let timeout = shared.limits.client_timeout;
    let streams = Arc::new(Streams::new());
    let service = {
        let (shared, marker, streams) = (shared.clone(), seat.marker(), streams.clone());
        let evidence = Arc::<CreateEvidence>::default();
        service_fn(move |mut request: http::Request<_>| {
            let (shared, busy, stream) = (shared.clone(), marker.begin(), streams.begin());
            let evidence = evidence.clone();
            convert_to_http1(&mut request);
            async move {
                let answer = handle(shared, None, evidence, request).await;
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
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
    let mut checks = tokio::time::interval(timeout / CHECKS_PER_TIMEOUT);
    let mut is_ending = false;
    let served = loop {
        tokio::select! {
            served = connection.as_mut() => break served,
            () = seat.asked_to_close() => break Ok(()),
            () = shutdown.requested(), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = checks.tick() => match streams.health(Instant::now(), timeout) {
                StreamHealth::Healthy => {}
                StreamHealth::Idle if is_ending => break Ok(()),
                StreamHealth::Stalled => {
                    shared.count_over_limit("time to take an answer");
                    break Ok(());
                }
                StreamHealth::Idle | StreamHealth::PartlyStalled if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                StreamHealth::Idle | StreamHealth::PartlyStalled => {}
            },
        }
    };
    if let Err(error) = served {
        if io_error(&error).is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut) {
            shared.count_over_limit("time to take an answer");
        }
        debug!(target: "intake", "a connection ended: {error}");
    }
}

/// Gives a request the form that it has in HTTP/1.1: its host in `Host`, its cookies in one header (RFC 9113, sections
/// 8.3.1 and 8.2.3).
fn convert_to_http1<B>(request: &mut http::Request<B>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_converted_to_http1() {
        let mut request = http::Request::get("http://agent:6745/api/x");
        for piece in ["a=1", "b=2", "c=\u{e9}"] {
            request = request.header("cookie", piece);
        }
        let mut request = request.body(()).expect("a request");
        convert_to_http1(&mut request);
        assert_eq!(request.headers()["host"], "agent:6745");
        let cookies: Vec<&[u8]> = request.headers().get_all("cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, ["a=1; b=2; c=\u{e9}".as_bytes()]);
        let mut named = http::Request::get("http://agent/x").header("host", "other").body(()).expect("a request");
        convert_to_http1(&mut named);
        assert_eq!(named.headers()["host"], "other", "the site policy judges two names");
    }
}
