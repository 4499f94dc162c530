//! One connection of a client, from its first byte to its end, in the version of HTTP that the client speaks.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::Watcher;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tracing::debug;

use super::answering::{Answering, RequestTracker};
use super::connections::{Connections, Seat};
use super::evidence::CreateEvidence;
use super::http2;
use super::limits::{HEAD_BYTES_MAX, HEADERS_MAX};
use super::preface::{HttpVersion, detect_version};
use super::router::handle;
use super::shared::Shared;
use super::wire::{ClientSocket, io_error};
use super::workers::Load;
use crate::shutdown::Shutdown;
use crate::upstream::forward::BoxError;

/// Bytes that are buffered at most to detect the version of HTTP.
const BEGINNING_BYTES_MAX: usize = 4096;

/// A client that has connected, with everything that is held for it.
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) connections: Arc<Connections>,
    pub(super) seat: Seat,
    pub(super) load: Load,
    /// Makes the agent's shutdown wait for the connection.
    pub(super) watcher: Watcher,
}

impl Client {
    /// Serves the connection until it ends, times out or is evicted.
    pub(super) async fn serve(self, mut stream: TcpStream) {
        let Self { shared, connections, seat, load, watcher } = self;
        let timeout = shared.limits.client_timeout;
        let mut begun = BytesMut::new();
        let version = tokio::select! {
            version = tokio::time::timeout(timeout, read_version(&mut stream, &mut begun)) => version,
            () = seat.asked_to_close() => Ok(Ok(None)),
            () = shared.ending.requested() => Ok(Ok(None)),
        };
        match version {
            Ok(Ok(Some(HttpVersion::Http1))) => {
                serve_http1(&shared, &seat, stream, begun.freeze()).await;
                drop(watcher);
            }
            Ok(Ok(Some(HttpVersion::Http2))) => {
                let socket = ClientSocket::http2(stream, begun.freeze(), timeout);
                http2::serve(&shared, &seat, socket).await;
                drop(watcher);
            }
            Err(_) if !begun.is_empty() => shared.count_over_limit("time for a head"),
            Ok(Err(error)) => debug!(target: "intake", "a connection ended: {error}"),
            Ok(Ok(None)) | Err(_) => {}
        }
        drop((seat, load));
        shared.metrics.intake_connections.set(connections.open() as f64);
    }
}

/// Reads until the version of HTTP is known; `None` when the client hangs up before.
async fn read_version(stream: &mut TcpStream, begun: &mut BytesMut) -> io::Result<Option<HttpVersion>> {
    // A silent connection costs no buffer.
    stream.readable().await?;
    begun.reserve(BEGINNING_BYTES_MAX);
    loop {
        if stream.read_buf(begun).await? == 0 {
            // These bytes may be the beginning of a malformed request, which hyper's parser answers.
            return Ok((!begun.is_empty()).then_some(HttpVersion::Http1));
        }
        if let Some(version) = detect_version(begun) {
            return Ok(Some(version));
        }
    }
}

async fn serve_http1(shared: &Arc<Shared>, seat: &Seat, stream: TcpStream, begun: Bytes) {
    let tracker = Arc::new(RequestTracker::default());
    let service = {
        let (shared, marker, tracker) = (shared.clone(), seat.marker(), tracker.clone());
        let (requests, evidence) = (AtomicU64::new(0), Arc::<CreateEvidence>::default());
        service_fn(move |request| {
            let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
            let (shared, busy, tracker) = (shared.clone(), marker.begin(), tracker.clone());
            let (fault, evidence) = (tracker.fault_of(number), evidence.clone());
            async move {
                let answer = handle(shared, fault, evidence, request).await;
                Ok::<_, Infallible>(answer.map(|body| Answering::on_http1(body, busy, tracker)))
            }
        })
    };
    let socket = ClientSocket::http1(stream, begun, tracker.clone(), shared.limits.client_timeout);
    let mut connection = parser(None).serve_connection(TokioIo::new(socket), service);
    let mut is_ending = false;
    let served = loop {
        match serve_until_asked(&mut connection, &tracker, seat, &shared.ending, &mut is_ending).await {
            Served::Over(served) => break served,
            Served::Held => {
                let parts = connection.into_parts();
                let socket = parts.io.into_inner().reread(&parts.read_buf);
                connection = parser(Some(HEADERS_MAX)).serve_connection(TokioIo::new(socket), parts.service);
            }
        }
    };
    let Err(error) = served else { return };
    if error.is_parse_too_large() {
        shared.count_over_limit("bytes of a head");
    } else if io_error(&error).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
        shared.count_over_limit(match tracker.is_awaited() {
            true => "time to take an answer",
            false => "time for a head",
        });
    }
    debug!(target: "intake", "a connection ended: {error}");
}

/// Returns the parser of requests. It takes as many headers as fit into its own small table, or this many.
fn parser(headers_max: Option<usize>) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // The socket's timeout takes the place of hyper's.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX);
    if let Some(headers_max) = headers_max {
        builder.max_headers(headers_max);
    }
    builder
}

/// Why a connection is no longer served.
enum Served {
    /// It has ended, or has to.
    Over(hyper::Result<()>),
    /// A head is held back for a parser that takes more headers.
    Held,
}

/// Serves a connection until it ends or is evicted, or the agent stops and its last answer is written.
async fn serve_until_asked<S, B>(
    connection: &mut http1::Connection<TokioIo<ClientSocket>, S>,
    tracker: &RequestTracker,
    seat: &Seat,
    shutdown: &Shutdown,
    is_ending: &mut bool,
) -> Served
where
    S: HttpService<Incoming, ResBody = B, Error = Infallible>,
    B: Body<Error: Into<BoxError>> + 'static,
{
    if *is_ending {
        std::pin::Pin::new(&mut *connection).graceful_shutdown();
    }
    loop {
        let served = poll_fn(|cx| match std::pin::Pin::new(&mut *connection).poll(cx) {
            Poll::Ready(served) => Poll::Ready(Served::Over(served)),
            Poll::Pending if tracker.is_held() => Poll::Ready(Served::Held),
            Poll::Pending => Poll::Pending,
        });
        tokio::select! {
            biased;
            served = served => return served,
            () = seat.asked_to_close() => return Served::Over(Ok(())),
            () = shutdown.requested(), if !*is_ending => {
                *is_ending = true;
                std::pin::Pin::new(&mut *connection).graceful_shutdown();
            }
        }
    }
}
