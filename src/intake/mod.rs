//! Intake: the HTTP interface that clients take for the Opik server.
//!
//! The only room with asynchronous code. The seam to the blocking rest is small and in two places: a write is handed to
//! the committer with a callback ([`accept`]), and `Store::waiting` is called directly because it is one cheap look-up.
//!
//! - `/api/...`, `/opik/api/...` and no prefix all name the server's paths.
//! - Protected writes are forwarded or stored ([`accept`]); everything else streams through ([`forward`]).
//! - `is-alive/ping` answers for the agent itself, whatever the server's state: otherwise the Python SDK would park its
//!   messages in its own temporary store (protocol dossier, section b).
//! - `/-/healthy`, `/-/ready`, `/-/status.json`, `/metrics` and `/` are the agent's own ([`status_page`]).
//!
//! Limits: connections, header bytes and count, time to send a header or a piece of a body, bytes per body, bytes of all
//! bodies held at once. A connection that is idle between requests costs no thread and no buffer beyond hyper's.

mod accept;
mod attachments;
pub mod forward;
pub mod guard;
mod lanes;
pub mod status;
mod status_page;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use crate::monitor::Availability;
use crate::monitor::connection::Connection;
use crate::protocol::answers::{SendFailure, error, unavailable};
use crate::protocol::routes::{Route, classify, split_prefix};
use crate::pulse::{Beat, Pulses};
use crate::shutdown::Shutdown;
use crate::store::committer::Committer;
use crate::store::slot::StoreSlot;
use crate::telemetry::metrics::Metrics;
use crate::upstream::AGENT_HEADER;
use crate::upstream::forward::{ForwardBody, Forwarder};
use forward::ClientAnswer;
use status::Watch;

/// What intake may use.
#[derive(Clone, Copy, Debug)]
pub struct IntakeLimits {
    /// Connections at once.
    pub connections_max: usize,
    /// Bytes of one body as sent.
    pub body_bytes_max: u64,
    /// Bytes of one body when decoded.
    pub inflated_bytes_max: u64,
    /// Bytes of an attachment's file.
    pub attachment_bytes_max: u64,
    /// Bytes of all bodies of protected writes that are held at once.
    pub body_memory_bytes_max: usize,
    /// How long a client may take to send a request's head.
    pub header_read_timeout: Duration,
    /// How long a client may pause within a body.
    pub body_read_timeout: Duration,
    /// How long the server may take to answer a forwarded write, before it is stored instead.
    pub forward_timeout: Duration,
    /// How often the server is asked whether it is back; what a client is told to wait for a read.
    pub ping_interval: Duration,
    /// How long a lane is held at most that the server limits without saying for how long.
    pub retry_interval: Duration,
}

/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long a server that was not there when last looked for may take to begin an answer that can't be given for it. It
/// may be back, so it is asked; if it hangs, the client is told soon.
const AWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often intake gives a sign of life.
const BEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Headers of a request at most.
const HEADERS_MAX: usize = 128;

/// What intake needs from the rest of the agent.
pub struct Intake {
    /// The store, which may come and go.
    pub slot: Arc<StoreSlot>,
    /// Takes messages to the store.
    pub committer: Arc<Committer>,
    /// What is known of the server.
    pub connection: Arc<Connection>,
    /// The way to the server.
    pub forwarder: Forwarder,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What may be used.
    pub limits: IntakeLimits,
    /// The token that clients must show.
    pub token: Option<String>,
    /// The host that the agent was told to listen on.
    pub listen_host: String,
    /// What names this process in [`AGENT_HEADER`].
    pub agent_mark: HeaderValue,
    /// Intake's own sign of life.
    pub beat: Arc<Beat>,
    /// Whether every part of the agent is alive, for `/-/healthy`.
    pub pulses: Arc<Pulses>,
    /// How the agent stands, for `/`.
    pub watch: Arc<Watch>,
}

struct Shared {
    slot: Arc<StoreSlot>,
    committer: Arc<Committer>,
    connection: Arc<Connection>,
    forwarder: Forwarder,
    metrics: Arc<Metrics>,
    limits: IntakeLimits,
    token: Option<String>,
    listen_host: String,
    lanes: lanes::Lanes,
    body_memory: Arc<Semaphore>,
    uploads: attachments::Recent,
    /// This process's value of [`AGENT_HEADER`].
    agent_mark: HeaderValue,
    started: Instant,
    pulses: Arc<Pulses>,
    watch: Arc<Watch>,
    /// Requested when forwarded writes have had their time to finish before the agent stops: they are stored instead.
    hurry: Shutdown,
}

impl Shared {
    /// How long the server may take to begin an answer that only it can give; no bound while it is there.
    fn patience(&self) -> Option<Duration> {
        (self.connection.availability() == Availability::Unavailable).then_some(AWAY_TIMEOUT)
    }

    /// What a client is told to wait when the server is away.
    fn retry_after(&self) -> Duration {
        self.limits.ping_interval
    }
}

/// The URL under which a client reached the server's base.
#[derive(Clone, Debug)]
struct ClientUrl {
    host: String,
    prefix: String,
}

impl ClientUrl {
    fn base(&self) -> String {
        format!("http://{}{}", self.host, self.prefix)
    }

    /// Returns the base that the client itself says it uses, if it leads to the host that its request names: it knows of
    /// TLS in front of the agent.
    fn seen_as(&self, client_url: Option<&str>) -> String {
        let seen = client_url.and_then(|url| {
            let uri: http::Uri = url.parse().ok()?;
            let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
            let is_here = uri.authority()?.as_str().eq_ignore_ascii_case(&self.host);
            (is_http && is_here && uri.query().is_none()).then(|| url.trim_end_matches('/').to_owned())
        });
        seen.unwrap_or_else(|| self.base())
    }
}

impl Intake {
    /// Serves until shutdown, then lets requests in progress finish for at most `grace`.
    ///
    /// Returns when the last of them has its answer or the time is over. A request cut off then was not acknowledged.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown, grace: Duration) {
        let shared = Arc::new(Shared {
            slot: self.slot,
            committer: self.committer,
            connection: self.connection,
            forwarder: self.forwarder,
            metrics: self.metrics,
            limits: self.limits,
            token: self.token,
            listen_host: self.listen_host,
            lanes: lanes::Lanes::default(),
            uploads: attachments::Recent::default(),
            body_memory: Arc::new(Semaphore::new(self.limits.body_memory_bytes_max)),
            agent_mark: self.agent_mark,
            started: Instant::now(),
            pulses: self.pulses,
            watch: self.watch,
            hurry: Shutdown::new(),
        });
        let connections = Arc::new(Semaphore::new(self.limits.connections_max));
        let graceful = GracefulShutdown::new();
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_read_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX);
        let mut beats = tokio::time::interval(BEAT_INTERVAL);
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                _ = beats.tick() => {
                    // From this loop to a worker: it shows that connections are taken and that requests are worked on.
                    let beat = self.beat.clone();
                    tokio::spawn(async move { beat.beat() });
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: it passes, and the listener stays.
                    warn!(target: "intake", "cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = connections.clone().try_acquire_owned() else {
                warn!(target: "intake", limit = self.limits.connections_max, "too many connections, one was closed");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                debug!(target: "intake", "cannot set TCP_NODELAY: {error}");
            }
            let service = {
                let shared = shared.clone();
                service_fn(move |request| handle(shared.clone(), peer, request))
            };
            let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    debug!(target: "intake", "a connection ended: {error}");
                }
                drop(permit);
            });
        }
        // Closed before the wait: whoever comes now is refused at once and knows it.
        drop(listener);
        let in_progress = self.limits.connections_max - connections.available_permits();
        info!(target: "intake", connections = in_progress, "no new requests are taken");
        let mut finished = std::pin::pin!(graceful.shutdown());
        if tokio::time::timeout(grace / 2, finished.as_mut()).await.is_ok() {
            return;
        }
        // Writes that still wait for the server are stored and acknowledged in the time that is left.
        shared.hurry.request();
        if tokio::time::timeout(grace / 2, finished).await.is_err() {
            warn!(target: "intake", "requests in progress did not finish in time and were cut off unacknowledged");
        }
    }
}

async fn handle(
    shared: Arc<Shared>,
    _peer: SocketAddr,
    request: http::Request<Incoming>,
) -> Result<ClientAnswer, Infallible> {
    Ok(answer(shared, request).await)
}

async fn answer(shared: Arc<Shared>, request: http::Request<Incoming>) -> ClientAnswer {
    let (head, body) = request.into_parts();
    let uri = head.uri.clone();
    let (token, path) = guard::split_token(uri.path());
    if let Some(page) = status_page::Page::of(&head.method, path) {
        return match guard::is_own_host(&head.headers, &shared.listen_host) {
            true => page.render(&shared),
            false => forward::own_answer(error(403, "the agent's own pages are shown to addresses and localhost only")),
        };
    }
    if let Some(fault) = guard::head_fault(&head) {
        return accept::refuse(error(400, fault), &head.headers, body).await;
    }
    if !guard::is_allowed(shared.token.as_deref(), token, &head.headers) {
        let reply = error(401, "this opik-offline agent asks for its intake token");
        return accept::refuse(reply, &head.headers, body).await;
    }
    let via = head.headers.get_all(AGENT_HEADER);
    if via.iter().any(|mark| *mark == shared.agent_mark) {
        return forward::own_answer(error(508, "this opik-offline agent's server is the agent itself: set --upstream"));
    }

    let (prefix, below) = split_prefix(path);
    let route = classify(head.method.as_str(), below);
    let below = match uri.query() {
        Some(query) => format!("{below}?{query}"),
        None => below.to_owned(),
    };
    // The token is for this agent; what goes into a Location must lead through it again.
    let prefix = match token {
        Some(token) => format!("{}{token}{prefix}", guard::TOKEN_PREFIX),
        None => prefix.to_owned(),
    };
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let client = ClientUrl { host: host.unwrap_or(&shared.listen_host).to_owned(), prefix };
    match route {
        Route::Ping => status_page::ping(),
        Route::Protected(write) => accept::accept(shared, write, head, below, client, body).await,
        Route::Upload(step) => attachments::upload(shared, step, head, below, client, body).await,
        Route::PassThrough => pass_through(&shared, head, &below, &client, http_body_util::Either::Right(body)).await,
    }
}

/// Streams a request to the server and its answer back.
async fn pass_through(
    shared: &Shared,
    mut head: http::request::Parts,
    below: &str,
    client: &ClientUrl,
    body: ForwardBody,
) -> ClientAnswer {
    let base_url = shared.forwarder.base_url();
    let Some(uri) = forward::upstream_uri(base_url, below) else {
        return forward::own_answer(error(400, "the path is not a valid URL"));
    };
    head.headers = forward::request_headers(head.headers, &uri, &shared.agent_mark);
    head.uri = uri;
    head.version = http::Version::HTTP_11;
    let request = http::Request::from_parts(head, body);
    let sending = shared.forwarder.send(request);
    let sent = match shared.patience() {
        None => sending.await,
        Some(patience) => tokio::time::timeout(patience, sending)
            .await
            .unwrap_or_else(|_| Err(SendFailure::Timeout { url: base_url.to_owned(), after: patience })),
    };
    match sent {
        Ok(answer) => {
            shared.metrics.requests_passed_through.add(1);
            forward::client_answer(answer, base_url, &client.base())
        }
        Err(failure) => {
            debug!(target: "intake", "passing through failed: {failure}");
            shared.metrics.intake_refused.add(1);
            let text = "the Opik server cannot be reached, and this request needs its answer";
            forward::own_answer(unavailable(text, shared.retry_after()))
        }
    }
}
