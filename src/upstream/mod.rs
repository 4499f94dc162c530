//! The only room that opens connections, above all to the Opik server.
//!
//! Two clients, for two jobs, with one set of TLS and proxy settings ([`tls`]):
//!
//! - [`Upstream`] is blocking (ureq), for callers with a thread of their own: replay, the connection monitor, the
//!   commands. It sends one request and reads one response of bounded size.
//! - [`forward::Forwarder`] is asynchronous (hyper), for intake: it streams requests and responses.
//!
//! Neither follows redirects (a redirect would send the key to another host), neither interprets responses, and
//! neither retries, except for a truncated request ([`heard`]).

mod dial;
mod error;
mod fault;
pub(crate) mod forward;
mod half_open;
mod handshake;
mod heard;
mod ping;
pub(crate) mod route;
pub(crate) mod smoke;
pub(crate) mod tls;
pub(crate) mod upload;
pub(crate) mod web;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use ureq::unversioned::resolver::DefaultResolver;

use self::dial::{Dialer, Unresolved};
pub use self::error::UpstreamError;
use self::fault::{ConnectFault, words};
pub use self::ping::{Met, PingFailure};
use self::route::Proxies;
use self::tls::{TlsSettings, TlsSource};
use crate::message::{Lane, Request};
use crate::protocol::answers::{Answer, SendFailure, asked_wait, date_ms};
use crate::protocol::hub::{ANSWER_HEADER, Edge, HUB_HEADER, Hub};
use crate::protocol::partial::judge;
use crate::protocol::readback::Read;
use crate::protocol::recognise::{Endpoint, Presence, Seen, presence};

/// Grace period after a request's deadline: an in-flight request may still be answered within it.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(1);

/// Connection settings of a server.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// The server's base URL without a slash at its end: `http://127.0.0.1:5173/api`.
    pub base_url: String,
    /// TLS settings.
    pub tls: TlsSettings,
    /// Rules that select the proxy.
    pub proxies: Proxies,
    /// The operator's additional headers for every request to this server.
    pub headers: http::HeaderMap,
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Timeout for a response, from the first byte sent to the last byte read.
    pub answer_timeout: Duration,
}

impl UpstreamSettings {
    /// Returns settings without proxy, certificates or additional headers; both timeouts are `timeout`.
    pub fn plain(base_url: impl Into<String>, timeout: Duration) -> Self {
        Self {
            base_url: base_url.into(),
            tls: TlsSettings { check_certificate: true, ..TlsSettings::default() },
            proxies: Proxies::none(),
            headers: http::HeaderMap::new(),
            connect_timeout: timeout,
            answer_timeout: timeout,
        }
    }

    /// Validates the settings: reads the certificates.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`] for an unusable file.
    pub fn check(&self) -> Result<(), UpstreamError> {
        let needs_tls = self.base_url.starts_with("https:") || !self.tls.has_only_folders();
        // `SSL_CERT_DIR` may be set for other programs, and name folders that don't exist.
        if needs_tls { self.tls.config().map(drop) } else { Ok(()) }
    }
}

/// Lists the agents that a request passed through, so that an agent detects a loop.
pub const AGENT_HEADER: http::HeaderName = http::HeaderName::from_static("x-opik-offline-agent");

/// A pool of blocking keep-alive connections to the server. Cheap to share between threads.
pub struct Upstream {
    agent: ureq::Agent,
    base_url: String,
    proxies: Proxies,
    /// The operator's additional headers, for this server only.
    own_headers: http::HeaderMap,
    answer_timeout: Duration,
    /// Deadline of sending stored requests.
    deadline: Option<Instant>,
    agent_mark: Option<http::HeaderValue>,
    /// The lane whose key and workspace the agent's own requests carry: ping and version.
    asks_as: Lane,
    /// How this agent describes itself to a hub.
    edge: Option<EdgeReport>,
    /// Whether the last ping was answered by a hub.
    is_behind_hub: AtomicBool,
}

/// Returns the value of [`EDGE_HEADER`](crate::protocol::hub::EDGE_HEADER) at the moment.
pub(crate) type EdgeReport = Arc<dyn Fn() -> Edge + Send + Sync>;

/// Limit and maximum age of idle connections; servers close them after 60 s or more.
const IDLE_CONNECTIONS_MAX: usize = 64;
pub(crate) const IDLE_AGE_MAX: Duration = Duration::from_secs(25);

/// The response to a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The status.
    pub status: u16,
    /// Its verdict. A 200 alone is no proof: sign-in pages return one too.
    pub presence: Presence,
    /// Latency from the first byte sent to the response.
    pub latency: Duration,
    /// The hub that answered, if it is one.
    pub hub: Option<Box<Hub>>,
}

impl Pong {
    fn of(answer: Answer, latency: Duration) -> Self {
        let presence = presence(answer.recognised, answer.status, &answer.text);
        let hub = answer.hub.filter(|_| presence == Presence::There);
        Self { status: answer.status, presence, latency, hub }
    }
}

impl Upstream {
    /// Creates a pool; opens no connection and reads no file yet.
    pub fn new(settings: &UpstreamSettings) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // [`Dialer`] knows the proxies.
            .proxy(None)
            .no_delay(true)
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_global(Some(settings.answer_timeout))
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .max_idle_age(IDLE_AGE_MAX)
            .user_agent(concat!("opik-offline/", env!("CARGO_PKG_VERSION")))
            .build();
        let proxies = settings.proxies.clone();
        let tls = Arc::new(TlsSource::new(settings.tls.clone()));
        let dialer = Dialer { proxies: proxies.clone(), tls, resolver: DefaultResolver::default() };
        Self {
            agent: ureq::Agent::with_parts(config, dialer, Unresolved),
            base_url: settings.base_url.clone(),
            proxies,
            own_headers: settings.headers.clone(),
            answer_timeout: settings.answer_timeout,
            deadline: None,
            agent_mark: None,
            asks_as: Lane::default(),
            edge: None,
            is_behind_hub: AtomicBool::new(false),
        }
    }

    /// Describes this agent in pings to the server, once that has shown that it is a hub: no Opik server is told the
    /// name of this machine.
    #[must_use]
    pub(crate) fn introducing(self, edge: EdgeReport) -> Self {
        Self { edge: Some(edge), ..self }
    }

    /// Sends the agent's own requests, above all the ping, with the key and workspace of this lane, like the SDK: some
    /// gateways require a key on every path.
    #[must_use]
    pub fn asking_as(self, asks_as: Lane) -> Self {
        Self { asks_as, ..self }
    }

    /// Adds this agent to [`AGENT_HEADER`] of every stored request.
    #[must_use]
    pub fn marked(self, agent_mark: http::HeaderValue) -> Self {
        Self { agent_mark: Some(agent_mark), ..self }
    }

    /// Sets a deadline for responses to stored requests (plus [`DEADLINE_GRACE`]).
    #[must_use]
    pub fn until(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }

    /// Returns the server's base URL.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Returns the server's base URL for error messages: with its proxy.
    pub fn described(&self) -> String {
        self.proxies.described(&self.base_url)
    }

    /// Returns the default timeout of a response.
    pub fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// Sends a stored request to this endpoint as its client would have.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a complete response.
    pub fn send(&self, lane: &Lane, endpoint: Endpoint, request: &Request) -> Result<Answer, SendFailure> {
        self.send_within(lane, endpoint, request, self.answer_timeout)
    }

    /// Like [`Upstream::send`] with another timeout.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a complete response.
    pub fn send_within(
        &self,
        lane: &Lane,
        endpoint: Endpoint,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, SendFailure> {
        let mut builder =
            http::Request::builder().method(request.method.as_str()).uri(format!("{}/{}", self.base_url, request.path));
        for (name, value) in request.headers.iter() {
            builder = builder.header(name, value);
        }
        if let Some(mark) = &self.agent_mark {
            builder = builder.header(AGENT_HEADER, mark);
        }
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()) + DEADLINE_GRACE);
        let timeout = left.map_or(timeout, |left| left.min(timeout));
        self.finish(with_lane(builder, lane), endpoint, &request.body.bytes, timeout, Answer::TEXT_BYTES_MAX)
    }

    /// Pings the server (`is-alive/ping`), like the SDK's connection monitor.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a response within `timeout`.
    pub fn ping(&self, timeout: Duration) -> Result<Pong, SendFailure> {
        let started = Instant::now();
        let answer = self.ask("is-alive/ping", Endpoint::Ping, timeout)?;
        Ok(Pong::of(answer, started.elapsed()))
    }

    /// Checks key and workspace at the server (`POST v1/private/auth`, empty body).
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a response within `timeout`.
    pub fn check_access(&self, lane: &Lane, timeout: Duration) -> Result<Answer, SendFailure> {
        let request = http::Request::builder()
            .method("POST")
            .uri(format!("{}/v1/private/auth", self.base_url))
            .header("content-type", "application/json");
        self.finish(with_lane(request, lane), Endpoint::Access, &[], timeout, Answer::TEXT_BYTES_MAX)
    }

    fn ask(&self, path: &str, endpoint: Endpoint, timeout: Duration) -> Result<Answer, SendFailure> {
        let request = http::Request::builder().method("GET").uri(format!("{}/{path}", self.base_url));
        self.finish(with_lane(request, &self.asks_as), endpoint, &[], timeout, Answer::TEXT_BYTES_MAX)
    }

    /// Reads a path below the base URL; the commands query a running agent with it.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a response within `timeout`.
    pub fn read(&self, path: &str, timeout: Duration) -> Result<Answer, SendFailure> {
        let request = http::Request::builder().method("GET").uri(format!("{}/{path}", self.base_url));
        self.finish(request, Endpoint::Read, &[], timeout, Answer::TEXT_BYTES_MAX)
    }

    /// Like [`Upstream::read`] with a limit of the response's size.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a complete response.
    pub fn read_whole(&self, path: &str, timeout: Duration, bytes_max: usize) -> Result<Answer, SendFailure> {
        let request = http::Request::builder().method("GET").uri(format!("{}/{path}", self.base_url));
        self.finish(request, Endpoint::Read, &[], timeout, bytes_max)
    }

    /// Reads entities of a lane back, by `GET` or by a `POST` with a JSON body; at most `bytes_max` of the response.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a complete response.
    pub fn read_back(&self, lane: &Lane, read: &Read, bytes_max: usize) -> Result<Answer, SendFailure> {
        let mut builder = http::Request::builder().method(read.method).uri(format!("{}/{}", self.base_url, read.path));
        if read.body.is_some() {
            builder = builder.header("content-type", "application/json");
        }
        let body = read.body.as_deref().unwrap_or_default();
        self.finish(with_lane(builder, lane), Endpoint::Read, body.as_bytes(), self.answer_timeout, bytes_max)
    }

    /// Returns the server's version (`is-alive/ver`), or `None` if it is unknown.
    pub fn version(&self, timeout: Duration) -> Option<String> {
        let answer = self.ask("is-alive/ver", Endpoint::Version, timeout).ok().filter(Answer::is_confirmed)?;
        let value: serde_json::Value = serde_json::from_str(&answer.text).ok()?;
        value.get("version")?.as_str().map(str::to_owned)
    }

    /// Sends a request and reads its response, at most `bytes_max` of it.
    ///
    /// A request that was truncated by a failed write is retried once with `Expect: 100-continue`:
    /// a server that rejects it by its head alone can respond then.
    fn finish(
        &self,
        builder: http::request::Builder,
        endpoint: Endpoint,
        body: &[u8],
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<Answer, SendFailure> {
        let head = self.head(self.with_own_headers(builder), timeout)?;
        let first = self.run(http::Request::from_parts(head.clone(), body), endpoint, timeout, bytes_max);
        let Err(failure) = first else { return first };
        if !heard::broke_off() {
            return Err(failure);
        }
        match self.run(http::Request::from_parts(expecting(head), body), endpoint, timeout, bytes_max) {
            // The pool does not know about `Expect`.
            Ok(Answer { status: 417, .. }) => Err(failure),
            second => second,
        }
    }

    fn head(&self, builder: http::request::Builder, timeout: Duration) -> Result<http::request::Parts, SendFailure> {
        let made = builder.body(()).map_err(|error| self.failure(&self.base_url, timeout, ureq::Error::Http(error)))?;
        Ok(made.into_parts().0)
    }

    /// Adds the operator's headers, which replace the client's of the same names.
    fn with_own_headers(&self, mut builder: http::request::Builder) -> http::request::Builder {
        if let Some(headers) = builder.headers_mut() {
            headers.extend(self.own_headers.clone());
        }
        builder
    }

    /// Returns the failure of a request to this URL, with the proxy in its text.
    fn failure(&self, url: &str, timeout: Duration, error: ureq::Error) -> SendFailure {
        failure(&self.proxies.described(url), timeout, error)
    }

    fn run(
        &self,
        request: http::Request<impl ureq::AsSendBody>,
        endpoint: Endpoint,
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<Answer, SendFailure> {
        heard::broke_off();
        let answer = self.exchange(request, endpoint, Timeouts { connect: None, whole: timeout }, bytes_max);
        answer.map_err(|error| self.failure(&self.base_url, timeout, error))
    }

    fn exchange(
        &self,
        request: http::Request<impl ureq::AsSendBody>,
        endpoint: Endpoint,
        timeouts: Timeouts,
        bytes_max: usize,
    ) -> Result<Answer, ureq::Error> {
        let mut config = self.agent.configure_request(request).timeout_global(Some(timeouts.whole));
        if timeouts.connect.is_some() {
            config = config.timeout_connect(timeouts.connect);
        }
        let mut response = self.agent.run(config.timeout_await_100(Some(AWAIT_100)).build())?;
        let headers = response.headers();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let asked = asked_wait(header("ratelimit-reset"), header("retry-after"), header("date"), SystemTime::now());
        let location = header("location").map(str::to_owned);
        let date_ms = header("date").and_then(date_ms);
        let content_type = header("content-type").map(str::to_owned);
        let is_hubs = headers.contains_key(ANSWER_HEADER);
        let hub = headers.get(HUB_HEADER).filter(|_| endpoint == Endpoint::Ping);
        let hub = hub.and_then(|value| Hub::of_header(value.as_bytes())).map(Box::new);
        let status = response.status().as_u16();
        // The rest of a longer body is not read, so the connection is closed instead of reused.
        let mut text = Vec::new();
        let reader = response.body_mut().as_reader();
        std::io::Read::read_to_end(&mut std::io::Read::take(reader, bytes_max as u64), &mut text)?;
        let seen = Seen {
            status,
            content_type: content_type.as_deref(),
            location: location.as_deref(),
            body: &text,
            is_cut: text.len() >= bytes_max,
            is_hubs,
        };
        let (recognised, partial) = judge(endpoint, &seen);
        let text = String::from_utf8_lossy(&text).into_owned();
        let partial = partial.map(Box::new);
        Ok(Answer { status, asked_wait: asked, location, date_ms, text, partial, recognised, hub })
    }
}

/// The timeouts of one request.
#[derive(Clone, Copy)]
struct Timeouts {
    /// Of opening a connection, if it is not the configured one.
    connect: Option<Duration>,
    /// Of the whole request.
    whole: Duration,
}

/// Timeout for `100 Continue`.
const AWAIT_100: Duration = Duration::from_secs(5);

/// Adds `Expect: 100-continue`.
fn expecting(mut head: http::request::Parts) -> http::request::Parts {
    head.headers.insert(http::header::EXPECT, http::HeaderValue::from_static("100-continue"));
    head
}

/// Adds the headers of the lane: workspace and credential, byte for byte as the client sent them.
fn with_lane(mut builder: http::request::Builder, lane: &Lane) -> http::request::Builder {
    for workspace in lane.workspace_headers() {
        builder = builder.header("Comet-Workspace", &*workspace);
    }
    if let Some(credential) = &lane.credential
        && let Ok(mut value) = http::HeaderValue::from_bytes(credential.reveal())
    {
        value.set_sensitive(true);
        let name = if value.to_str().is_ok() { "Authorization" } else { heard::STAND_IN };
        builder = builder.header(name, value);
    }
    builder
}

fn failure(url: &str, timeout: Duration, error: ureq::Error) -> SendFailure {
    let url = url.to_owned();
    let cause: &(dyn std::error::Error + 'static) = match &error {
        ureq::Error::Io(cause) => cause,
        ureq::Error::Rustls(cause) => cause,
        error => error,
    };
    let of_connecting = || ConnectFault::find(cause).map(ToString::to_string);
    if let Some(reason) = tls::reason(cause).or_else(of_connecting) {
        return SendFailure::Connect { url, reason };
    }
    match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            SendFailure::Connect { url, reason: "no connection within the time".to_owned() }
        }
        ureq::Error::Timeout(_) => SendFailure::Timeout { url, after: timeout },
        ureq::Error::Io(io) if is_connect_error(&io) => SendFailure::Connect { url, reason: words(&io.to_string()) },
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
            SendFailure::Connect { url, reason: error.to_string() }
        }
        other => SendFailure::Broken { url, reason: words(&other.to_string()) },
    }
}

fn is_connect_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable)
}
