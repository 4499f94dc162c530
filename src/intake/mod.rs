//! Intake: the HTTP interface that clients take for the Opik server.
//!
//! The only room with asynchronous code. The seam to the blocking rest is small and in two places: a write is handed to
//! the committer with a callback ([`accept`]), and `Store::waiting` is called directly because it is one cheap look-up.
//!
//! - `http://agent/X` means `http://server/X` for every path but the agent's own; the API is also found under `/api`,
//!   `/opik/api` and no prefix ([`crate::protocol::target`]).
//! - Protected writes are forwarded or stored ([`accept`]); everything else streams through ([`forward`]).
//! - `is-alive/ping` answers for the agent itself, whatever the server's state: otherwise the Python SDK would park its
//!   messages in its own temporary store (protocol dossier, section b).
//! - A browser that follows a printed link is led on to the server's own page ([`mod@links`]).
//! - `/-/`, `/-/healthy`, `/-/ready`, `/-/status.json`, `/metrics` and `/` are the agent's own ([`status_page`]), and so is
//!   `/-/flush` ([`mod@flush`]); the rest of `/-/` is kept for it.
//!
//! # Limits
//!
//! | of | limit | past it |
//! | --- | --- | --- |
//! | connections | `max_connections`, fewer when the system allows fewer files | the longest idle is closed, else 503 ([`connections`]) |
//! | a request's head | [`HEAD_BYTES_MAX`], [`HEADERS_MAX`] | 431 |
//! | its URL | [`URL_BYTES_MAX`] | 414 |
//! | its framing | what can be read in one way only ([`framing`]) | 400 |
//! | requests at once on a connection of HTTP/2 | [`http2`] | refused there, and sent again by the client |
//! | its host, and the page that sends it | the agent's own ([`site`]) | 403 |
//! | its path | no segments that lead up, nothing that no server reads ([`crate::protocol::path`]) | 400 |
//! | its content type | what the server reads ([`crate::protocol::media`]) | 415 |
//! | time for the head, and between requests | `client_timeout` | closed |
//! | time for a piece of a body | `client_timeout`, and a kilobyte a second ([`wire`]) | 408 |
//! | time to take a piece of the answer | `client_timeout` | closed |
//! | bytes of a body that is kept, as sent and inflated | `max_body_size`, `max_inflated_size`, by default the server's own | streams through, else 413 |
//! | bytes of one that can't be divided | what memory is for one body ([`accept`]) | streams through, else 413 |
//! | bytes of all bodies on disk | `max_size`, and the free-disk reserve ([`spool`]) | streams through, else 413 or 503 |
//! | bytes of an attachment | `max_attachment_size` | 413 |
//! | bytes of all bodies that are held | `memory_budget` ([`crate::memory`]) | a large one waits, then 503 |
//!
//! What is too large for memory is on disk while it comes in and until the server or the store has it. What can't be kept
//! streams to the server while that is there and the write overtakes nothing.
//!
//! Each is counted when it is met (`opik_offline_intake_over_limit_total` and the two about connections) and logged. A
//! connection that is idle between requests costs no thread and no buffer beyond hyper's. What streams through is never
//! held, so it has no limit of size.

mod accept;
mod ahead;
mod attachments;
mod connections;
mod conversation;
mod flush;
pub mod forward;
mod framing;
pub mod guard;
mod http2;
mod lanes;
mod links;
mod monitoring;
mod preface;
pub mod site;
pub mod spool;
mod status_page;
mod wire;
pub mod workers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Method;
use http::header::{self, HeaderValue};
use http_body_util::{BodyExt, Either};
use hyper::body::{Body as _, Incoming};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use crate::liveness::{Heartbeat, Liveness};
use crate::memory::Budget;
use crate::message::Server;
use crate::monitor::Availability;
use crate::monitor::connection::Connection;
use crate::overview::Collector;
use crate::protocol::answers::{Reply, SendFailure, error, unavailable};
use crate::protocol::media::unsupported;
use crate::protocol::routes::{Route, classify};
use crate::protocol::target::{ServerAddress, Target};
use crate::shutdown::Shutdown;
use crate::store::committer::Committer;
use crate::store::slot::StoreSlot;
use crate::telemetry::metrics::Metrics;
use crate::upstream::AGENT_HEADER;
use crate::upstream::forward::{ForwardBody, Forwarder};
use connections::{Admission, Connections};
use forward::ClientAnswer;
use monitoring::Monitoring;
use site::{Foreign, SitePolicy};
use spool::Spools;
use wire::Paced;
use workers::Workers;

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
    /// How long a client may be silent: between requests, within a request's head or body, and in taking its answer.
    pub client_timeout: Duration,
    /// How long the server may take to answer a forwarded write, before it is stored instead.
    pub forward_timeout: Duration,
    /// How often the server is asked whether it is back; what a client is told to wait for a read.
    pub ping_interval: Duration,
    /// How long a lane is held at most that the server limits without saying for how long.
    pub retry_interval: Duration,
}

/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a request's path and query at most. Servers and proxies take 8 KiB by default.
const URL_BYTES_MAX: usize = 16 * 1024;
/// How long a refused connection is kept, so that its client can read why.
const LINGER: Duration = Duration::from_secs(5);
/// Refused connections that are kept for that; the others are closed at once.
const LINGERING_MAX: usize = 64;
/// How long a warning that would come with every connection stays unsaid after it was said once.
const WARNING_PAUSE: Duration = Duration::from_secs(60);
/// How long a silent client is left alone before the system asks whether its machine is still there, and how often it
/// asks. A client whose machine is gone would otherwise be waited for, as long as its request is being answered.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBES: u32 = 4;
/// How long a server that was not there when last looked for may take to begin an answer that can't be given for it. It
/// may be back, so it is asked; if it hangs, the client is told soon.
const AWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often intake records a heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Headers of a request at most. nginx limits their bytes only.
const HEADERS_MAX: usize = 1024;
/// The methods that reach the server or the agent's pages.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// What a client without the right token is told.
const NO_TOKEN: &str = "this opik-offline agent asks for its intake token";

/// What intake needs from the rest of the agent.
pub struct Intake {
    /// The store, which may come and go.
    pub slot: Arc<StoreSlot>,
    /// Takes messages to the store.
    pub committer: Arc<Committer>,
    /// What is known of the server.
    pub connection: Arc<Connection>,
    /// The ways to the server, one for each worker.
    pub forwarders: Vec<Forwarder>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What may be used.
    pub limits: IntakeLimits,
    /// Memory for bodies.
    pub memory: Arc<Budget>,
    /// Where bodies are that are too large for it.
    pub spools: Arc<Spools>,
    /// The token that clients must show.
    pub token: Option<String>,
    /// The host that the agent was told to listen on.
    pub listen_host: String,
    /// Which web pages may send requests, and by which names.
    pub sites: SitePolicy,
    /// What names this process in [`AGENT_HEADER`].
    pub agent_mark: HeaderValue,
    /// Intake's own heartbeat.
    pub heartbeat: Arc<Heartbeat>,
    /// Whether every part of the agent is alive, for `/-/healthy`.
    pub liveness: Arc<Liveness>,
    /// How the agent stands, for `/`.
    pub collector: Arc<Collector>,
}

/// What the requests of one worker use; all but the forwarder is common to all workers.
struct Shared {
    slot: Arc<StoreSlot>,
    committer: Arc<Committer>,
    connection: Arc<Connection>,
    forwarder: Forwarder,
    metrics: Arc<Metrics>,
    limits: IntakeLimits,
    token: Option<String>,
    listen_host: String,
    sites: Arc<SitePolicy>,
    /// When a refused page was last logged.
    foreign_logged: Arc<Mutex<Option<Instant>>>,
    lanes: lanes::Lanes,
    /// Notes about updates that went ahead of their create.
    ahead_notes: ahead::AheadNotes,
    memory: Arc<Budget>,
    spools: Arc<Spools>,
    /// Writes without room in the store that find out whether the server is back.
    tries: Arc<accept::full::Tries>,
    uploads: Arc<attachments::Recent>,
    flushes: Arc<flush::Flushes>,
    /// This process's value of [`AGENT_HEADER`].
    agent_mark: HeaderValue,
    /// The server that accepted writes are for.
    server: Server,
    /// Its address, in parts.
    address: ServerAddress,
    started: Instant,
    liveness: Arc<Liveness>,
    collector: Arc<Collector>,
    /// Requested when forwarded writes have had their time to finish before the agent stops: they are stored instead.
    hurry: Shutdown,
}

impl Shared {
    /// Counts and logs a limit that a client met.
    fn over_limit(&self, limit: &str) {
        self.metrics.intake_over_limit.add(1);
        debug!(target: "intake", limit, "a request was over a limit");
    }

    /// Counts a request that a page of another site may have sent, logs one a minute, and returns its answer.
    fn foreign(&self, foreign: &Foreign) -> Reply {
        let counter =
            if foreign.is_host() { &self.metrics.intake_foreign_hosts } else { &self.metrics.intake_foreign_pages };
        counter.add(1);
        let mut logged = self.foreign_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| logged.elapsed() >= WARNING_PAUSE) {
            *logged = Some(Instant::now());
            warn!(target: "intake", "refused a request: {foreign}");
        }
        error(foreign.status(), &foreign.to_string())
    }

    /// Returns the answer to a client whose body comes too slowly.
    fn too_slow(&self) -> Reply {
        self.over_limit("time for a body");
        error(408, "the body did not arrive in time (client_timeout)")
    }

    /// How long the server may take to begin an answer that only it can give; no bound while it is there.
    fn patience(&self) -> Option<Duration> {
        (self.connection.availability() == Availability::Unavailable).then_some(AWAY_TIMEOUT)
    }

    /// What a client is told to wait when the server is away.
    fn retry_after(&self) -> Duration {
        self.limits.ping_interval
    }
}

/// The URL under which a client reached the server's base, and where its request goes.
#[derive(Clone, Debug)]
struct ClientUrl {
    host: String,
    prefix: String,
    /// What it asks for, at the server, spelled as it came.
    uri: http::Uri,
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
    pub async fn serve(self, listener: TcpListener, workers: &Workers, shutdown: Shutdown, grace: Duration) {
        let lanes = lanes::Lanes::default();
        let uploads = Arc::<attachments::Recent>::default();
        let flushes = Arc::<flush::Flushes>::default();
        let tries = Arc::<accept::full::Tries>::default();
        let hurry = Shutdown::new();
        let sites = Arc::new(self.sites);
        let foreign_logged = Arc::<Mutex<Option<Instant>>>::default();
        let started = Instant::now();
        let per_worker = self.forwarders.into_iter().map(|forwarder| {
            Arc::new(Shared {
                server: Server::new(forwarder.base_url()),
                address: ServerAddress::new(forwarder.base_url()),
                slot: self.slot.clone(),
                committer: self.committer.clone(),
                connection: self.connection.clone(),
                forwarder,
                metrics: self.metrics.clone(),
                limits: self.limits,
                token: self.token.clone(),
                listen_host: self.listen_host.clone(),
                sites: sites.clone(),
                foreign_logged: foreign_logged.clone(),
                lanes: lanes.clone(),
                ahead_notes: ahead::AheadNotes::default(),
                tries: tries.clone(),
                uploads: uploads.clone(),
                flushes: flushes.clone(),
                memory: self.memory.clone(),
                spools: self.spools.clone(),
                agent_mark: self.agent_mark.clone(),
                started,
                liveness: self.liveness.clone(),
                collector: self.collector.clone(),
                hurry: hurry.clone(),
            })
        });
        let per_worker: Vec<Arc<Shared>> = per_worker.collect();
        let connections = Arc::new(Connections::new(self.limits.connections_max));
        let lingering = Arc::new(Semaphore::new(LINGERING_MAX));
        let graceful = GracefulShutdown::new();
        let mut heartbeats = tokio::time::interval(HEARTBEAT_INTERVAL);
        let mut warned: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                _ = heartbeats.tick() => {
                    // Through every worker: it shows that connections are taken and that requests are worked on.
                    let heartbeat = self.heartbeat.clone();
                    workers.when_all_are_through(move || heartbeat.beat());
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let (stream, _) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: it passes, and the listener stays.
                    warn!(target: "intake", "cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let mut warn_of = |what: &str| {
                if warned.is_none_or(|warned| warned.elapsed() >= WARNING_PAUSE) {
                    warned = Some(Instant::now());
                    warn!(target: "intake", limit = self.limits.connections_max, "too many connections: {what}");
                }
            };
            let seat = match connections.admit() {
                Admission::Taken(seat) => seat,
                Admission::TakenFromIdle(seat) => {
                    self.metrics.intake_connections_closed.add(1);
                    warn_of("the one that was idle for longest is closed for each new one (max_connections)");
                    seat
                }
                Admission::Full => {
                    self.metrics.intake_connections_refused.add(1);
                    warn_of("all are busy, and new ones get a 503 (max_connections)");
                    refuse_connection(stream, &lingering);
                    continue;
                }
            };
            self.metrics.intake_connections.set(connections.open() as f64);
            prepare(&stream);
            let stream = match stream.into_std() {
                Ok(stream) => stream,
                Err(error) => {
                    warn!(target: "intake", "cannot take a connection: {error}");
                    continue;
                }
            };
            let (watcher, shutdown) = (graceful.watcher(), shutdown.clone());
            let (connections, per_worker) = (connections.clone(), per_worker.clone());
            workers.give_connection(move |worker, load| {
                let Some(shared) = per_worker.get(worker).cloned() else { return };
                let stream = match TcpStream::from_std(stream) {
                    Ok(stream) => stream,
                    Err(error) => {
                        warn!(target: "intake", "cannot take a connection: {error}");
                        return;
                    }
                };
                let client = conversation::Client { shared, connections, seat, load, watcher, shutdown };
                tokio::spawn(client.serve(stream));
            });
        }
        // Closed before the wait: whoever comes now is refused at once and knows it.
        drop(listener);
        info!(target: "intake", connections = connections.open(), "no new requests are taken");
        let mut finished = std::pin::pin!(graceful.shutdown());
        if tokio::time::timeout(grace / 2, finished.as_mut()).await.is_ok() {
            return;
        }
        // Writes that still wait for the server are stored and acknowledged in the time that is left.
        hurry.request();
        if tokio::time::timeout(grace / 2, finished).await.is_err() {
            warn!(target: "intake", "requests in progress did not finish in time and were cut off unacknowledged");
        }
    }
}

/// Sets what a client's connection needs. Nothing of it is worth refusing the client for.
fn prepare(stream: &TcpStream) {
    use rustix::net::sockopt;
    let set = stream.set_nodelay(true).and_then(|()| {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(stream, PROBE_AFTER / PROBES)?;
        Ok(sockopt::set_tcp_keepcnt(stream, PROBES)?)
    });
    if let Err(error) = set {
        debug!(target: "intake", "cannot set the options of a connection: {error}");
    }
}

/// Tells a client that there is no place for it.
///
/// A connection that is closed while its client still sends is reset, and the client would see that instead of the
/// answer: so for a few of them what comes is read for a while.
fn refuse_connection(stream: TcpStream, lingering: &Arc<Semaphore>) {
    let reply = unavailable("opik-offline has as many busy connections as it may (max_connections)", LINGER);
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Retry-After: {}\r\nConnection: close\r\n\r\n",
        reply.body.len(),
        reply.retry_after_seconds.unwrap_or(1)
    );
    let answer = head + &reply.body;
    // Nothing was written to it before, so its buffer takes all of this at once or never will.
    if !matches!(stream.try_write(answer.as_bytes()), Ok(written) if written == answer.len()) {
        return;
    }
    let Ok(place) = lingering.clone().try_acquire_owned() else { return };
    tokio::spawn(async move {
        let mut stream = stream;
        let mut ignored = [0; 4096];
        let reading = async { while matches!(stream.read(&mut ignored).await, Ok(1..)) {} };
        // Whether the client has hung up by then changes nothing.
        let _ = tokio::time::timeout(LINGER, reading).await;
        drop(place);
    });
}

async fn handle(shared: Arc<Shared>, fault: Option<&'static str>, request: http::Request<Incoming>) -> ClientAnswer {
    match fault {
        None => answer(shared, request).await,
        Some(fault) => {
            shared.over_limit("framing");
            let (head, body) = request.into_parts();
            let mut refusal = accept::refuse(error(400, fault), &head.headers, body).await;
            // Nobody knows where its next request would begin.
            refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            refusal
        }
    }
}

async fn answer(shared: Arc<Shared>, request: http::Request<Incoming>) -> ClientAnswer {
    let (head, body) = request.into_parts();
    let uri = head.uri.clone();
    if uri.path_and_query().is_some_and(|path| path.as_str().len() > URL_BYTES_MAX) {
        shared.over_limit("bytes of a URL");
        let text = format!("the URL is longer than {URL_BYTES_MAX} bytes, opik-offline's limit");
        return accept::refuse(error(414, &text), &head.headers, body).await;
    }
    if head.method == Method::CONNECT {
        let mut refusal =
            forward::own_answer(error(405, "opik-offline is no proxy: it makes no connections for others"));
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        return accept::refuse_with(refusal, &head.headers, body).await;
    }
    if let Some(fault) = guard::head_fault(&head) {
        return accept::refuse(error(400, fault), &head.headers, body).await;
    }
    let (token, path) = guard::split_token(uri.path(), shared.token.as_deref());
    let target = Target::of(path, &shared.address);
    let is_allowed = guard::is_allowed(shared.token.as_deref(), token, &head.headers);
    // Before anything else looks at the request, and whatever its path: nobody's page reads, writes or probes.
    let has_token = shared.token.is_some() && is_allowed;
    let judged = shared.sites.judge(&head, has_token, target.as_ref().is_ok_and(Target::is_link_target));
    let is_own_name = judged.is_ok();
    if let Err(foreign) = judged {
        let asks_for_token = shared.token.is_some();
        let monitoring = target.as_ref().ok().and_then(Target::own).and_then(|page| Monitoring::of(&head.method, page));
        if !monitoring.is_some_and(|of| shared.sites.is_open(of, &foreign, &head, asks_for_token)) {
            return accept::refuse(shared.foreign(&foreign), &head.headers, body).await;
        }
    }
    let target = match target {
        Ok(target) => target,
        Err(fault) => {
            shared.over_limit("spelling of a path");
            return accept::refuse(error(400, &fault.to_string()), &head.headers, body).await;
        }
    };
    // The token is for this agent; an address that leads to the agent again has it.
    let token_prefix = token.map_or_else(String::new, |token| format!("{}{token}", guard::TOKEN_PREFIX));
    if let Target::Own { path: page } = &target {
        return match status_page::OwnPage::of(&head.method, page) {
            // It makes the agent work, so it is for those who may send writes.
            Some(status_page::OwnPage::Flush) if !is_allowed => forward::own_answer(error(401, NO_TOKEN)),
            Some(status_page::OwnPage::Flush) => flush::flush(&shared, &head).await,
            Some(status_page::OwnPage::Overview) if links::leads_to_status_page(page, path, &head.headers) => {
                links::redirect(&format!("{token_prefix}{}", status_page::PATH))
            }
            Some(status_page::OwnPage::Ready) if !is_own_name => status_page::ready_alone(),
            Some(page) => page.render(&shared),
            // Nothing below /-/ is the server's.
            None => accept::refuse(error(404, "this opik-offline agent has no such page"), &head.headers, body).await,
        };
    }
    // Only the server's address is told, which the status page tells as well.
    if let Some(page) = links::page_of(&head, &target, &shared.address) {
        return links::redirect(&page);
    }
    if !is_allowed {
        return accept::refuse(error(401, NO_TOKEN), &head.headers, body).await;
    }
    let via = head.headers.get_all(AGENT_HEADER);
    if via.iter().any(|mark| *mark == shared.agent_mark) {
        return forward::own_answer(error(508, "this opik-offline agent's server is the agent itself: set --upstream"));
    }
    proxy(shared, head, target, &token_prefix, body).await
}

/// Answers a request that is the server's business, of a client that may ask.
async fn proxy(
    shared: Arc<Shared>,
    head: http::request::Parts,
    target: Target,
    token_prefix: &str,
    body: Incoming,
) -> ClientAnswer {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(&shared.listen_host);
    let url = target.url(&shared.address).map(|url| links::with_query(url, &target, &head, host, &shared.address));
    let Some(uri) = url.and_then(|url| url.parse().ok()) else {
        return accept::refuse(error(400, "the path is not a valid URL"), &head.headers, body).await;
    };
    let (prefix, below) = match target {
        Target::Api { prefix, path, .. } => (prefix, Some(path)),
        Target::Origin { .. } | Target::Own { .. } => (String::new(), None),
    };
    let client = ClientUrl { host: host.to_owned(), prefix: format!("{token_prefix}{prefix}"), uri };
    let Some(below) = below else {
        let body = streamed(&shared, body);
        return pass_through(&shared, head, &client, body).await;
    };
    let route = classify(head.method.as_str(), &below);
    let content_types = head.headers.get_all(header::CONTENT_TYPE).iter().map(|value| value.to_str().ok());
    if let Some(fault) = unsupported(head.method.as_str(), &below, !body.is_end_stream(), content_types) {
        return accept::refuse(error(415, &fault), &head.headers, body).await;
    }
    let below = match head.uri.query() {
        Some(query) => format!("{below}?{query}"),
        None => below,
    };
    match route {
        Route::Ping => status_page::ping(),
        Route::Protected(write) => accept::accept(shared, write, head, below, client, body).await,
        Route::Upload(step) => attachments::upload(shared, step, head, client, body).await,
        Route::PassThrough => {
            let body = streamed(&shared, body);
            pass_through(&shared, head, &client, body).await
        }
    }
}

/// A body to pass on, and whether its client has let it wait for too long.
struct PassedBody {
    body: ForwardBody,
    is_late: Arc<AtomicBool>,
}

impl From<ForwardBody> for PassedBody {
    fn from(body: ForwardBody) -> Self {
        Self { body, is_late: Arc::default() }
    }
}

/// Returns a client's body to pass on as it comes.
fn streamed(shared: &Shared, body: Incoming) -> PassedBody {
    let is_late = Arc::<AtomicBool>::default();
    let body = Paced::new(body, shared.limits.client_timeout, is_late.clone());
    PassedBody { body: Either::Right(body.boxed()), is_late }
}

/// Streams a request to the server and its answer back.
async fn pass_through(
    shared: &Shared,
    mut head: http::request::Parts,
    client: &ClientUrl,
    PassedBody { body, is_late }: PassedBody,
) -> ClientAnswer {
    let base_url = shared.forwarder.base_url();
    head.headers = forward::request_headers(head.headers, &client.uri, &shared.agent_mark);
    head.uri = client.uri.clone();
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
        Err(_) if is_late.load(Ordering::Relaxed) => forward::own_answer(shared.too_slow()),
        Err(failure) => {
            debug!(target: "intake", "passing through failed: {failure}");
            shared.metrics.intake_refused.add(1);
            let text = "the Opik server cannot be reached, and this request needs its answer";
            forward::own_answer(unavailable(text, shared.retry_after()))
        }
    }
}
