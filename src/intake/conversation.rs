//! One connection of a client, from its first byte to its end, in the version of HTTP that the client speaks.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::Watcher;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tracing::debug;

use super::connections::{Connections, Seat};
use super::preface::{Spoken, spoken};
use super::wire::{Answering, Exchange, Wire};
use super::workers::Load;
use super::{HEAD_BYTES_MAX, HEADERS_MAX, Shared, handle, http2};
use crate::shutdown::Shutdown;

/// How much of a connection is read at most to tell what it speaks.
const BEGINNING_BYTES_MAX: usize = 4096;

/// A client that has connected, with all that is held for it.
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) connections: Arc<Connections>,
    pub(super) seat: Seat,
    pub(super) load: Load,
    /// Lets the stop of the agent wait for the connection.
    pub(super) watcher: Watcher,
    pub(super) shutdown: Shutdown,
}

impl Client {
    /// Serves the connection to its end, or until it has to make room for another.
    pub(super) async fn serve(self, mut stream: TcpStream) {
        let Self { shared, connections, seat, load, watcher, shutdown } = self;
        let timeout = shared.limits.client_timeout;
        let mut begun = BytesMut::new();
        let beginning = tokio::select! {
            beginning = tokio::time::timeout(timeout, begin(&mut stream, &mut begun)) => beginning,
            () = seat.asked_to_close() => Ok(Ok(None)),
            () = shutdown.requested() => Ok(Ok(None)),
        };
        match beginning {
            Ok(Ok(Some(Spoken::Http1))) => serve_http1(&shared, &seat, watcher, stream, begun).await,
            Ok(Ok(Some(Spoken::Http2))) => {
                let wire = Wire::unwatched(stream, begun.freeze(), timeout);
                http2::serve(&shared, &seat, &shutdown, wire).await;
                drop(watcher);
            }
            Err(_) if !begun.is_empty() => shared.over_limit("time for a head"),
            Ok(Err(error)) => debug!(target: "intake", "a connection ended: {error}"),
            Ok(Ok(None)) | Err(_) => {}
        }
        drop((seat, load));
        shared.metrics.intake_connections.set(connections.open() as f64);
    }
}

/// Reads until it is clear what a client speaks; `None` when it hangs up before.
async fn begin(stream: &mut TcpStream, begun: &mut BytesMut) -> io::Result<Option<Spoken>> {
    // A connection that is silent holds no buffer.
    stream.readable().await?;
    begun.reserve(BEGINNING_BYTES_MAX);
    loop {
        if stream.read_buf(begun).await? == 0 {
            // What has come may be the beginning of an odd request, whose parser has the answer.
            return Ok((!begun.is_empty()).then_some(Spoken::Http1));
        }
        if let Some(spoken) = spoken(begun) {
            return Ok(Some(spoken));
        }
    }
}

async fn serve_http1(shared: &Arc<Shared>, seat: &Seat, watcher: Watcher, stream: TcpStream, begun: BytesMut) {
    let exchange = Arc::new(Exchange::default());
    let service = {
        let (shared, marker, exchange) = (shared.clone(), seat.marker(), exchange.clone());
        let requests = AtomicU64::new(0);
        service_fn(move |request| {
            let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
            let (shared, busy, exchange) = (shared.clone(), marker.begin(), exchange.clone());
            let fault = exchange.fault_of(number);
            async move {
                let answer = handle(shared, fault, request).await;
                Ok::<_, Infallible>(answer.map(|body| Answering::on_http1(body, busy, exchange)))
            }
        })
    };
    let timeout = shared.limits.client_timeout;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let io = TokioIo::new(Wire::new(stream, begun.freeze(), exchange.clone(), timeout));
    let connection = watcher.watch(builder.serve_connection(io, service));
    let served = tokio::select! {
        served = connection => served,
        () = seat.asked_to_close() => Ok(()),
    };
    let Err(error) = served else { return };
    if error.is_parse_too_large() {
        shared.over_limit("bytes of a head");
    } else if error.is_timeout() && !exchange.is_between_requests() {
        shared.over_limit("time for a head");
    } else if innermost(&error).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
        shared.over_limit("time to take an answer");
    }
    debug!(target: "intake", "a connection ended: {error}");
}

/// Returns the system's error that a connection ended with, if it was one.
pub(super) fn innermost(error: &hyper::Error) -> Option<&io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}
