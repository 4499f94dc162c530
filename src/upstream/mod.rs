//! The only room that opens connections to the Opik server.
//!
//! Two clients, for two jobs, with one set of TLS and proxy settings ([`tls`]):
//!
//! - [`Upstream`] is blocking (ureq) and serves whoever has a thread of its own: replay, the connection monitor, the
//!   commands. It sends one request and reads one bounded answer.
//! - [`forward::Forwarder`] is asynchronous (hyper) and serves intake: requests and answers stream through it.
//!
//! Neither follows redirects (a redirect would carry the key to another host), neither decides what an answer means, and
//! neither retries.

mod dial;
mod fault;
pub mod forward;
mod half_open;
mod handshake;
mod heard;
pub mod route;
pub mod smoke;
pub mod tls;
pub mod upload;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;
use ureq::unversioned::resolver::DefaultResolver;

use self::dial::{Dialer, Unresolved};
use self::fault::ConnectFault;
use self::route::Proxies;
use self::tls::{TlsSettings, TlsSource};
use crate::message::{Lane, Request};
use crate::protocol::answers::{Answer, SendFailure, asked_wait, date_ms};
use crate::protocol::partial::judge;
use crate::protocol::readback::Read;
use crate::protocol::recognise::{Endpoint, Presence, Seen, presence};

/// How much later than its deadline a request may end: what is on its way has this long to be answered.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(1);

/// How to reach the server.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// The server's base URL without a slash at its end: `http://127.0.0.1:5173/api`.
    pub base_url: String,
    /// Certificates.
    pub tls: TlsSettings,
    /// Proxies to go through.
    pub proxies: Proxies,
    /// Headers of the user's own that every request to this server gets.
    pub headers: http::HeaderMap,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long an answer may take, from the first byte sent to the last byte read.
    pub answer_timeout: Duration,
}

impl UpstreamSettings {
    /// Returns the settings for a server without a proxy, certificates or headers of its own; both times are `timeout`.
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

    /// Checks that connections can be made with these settings: reads the certificates.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`] for a file that can't be used.
    pub fn check(&self) -> Result<(), UpstreamError> {
        let needs_tls = self.base_url.starts_with("https:") || !self.tls.has_only_folders();
        // `SSL_CERT_DIR` may be there for other programs, with folders that are not.
        if needs_tls { self.tls.config().map(drop) } else { Ok(()) }
    }
}

/// Settings that no connection can be made with.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// A file or folder of authorities can't be read.
    #[error("cannot read the certificates in {path}: {reason}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The file or folder of authorities has none.
    #[error("{path} holds no certificate in PEM form")]
    NoCertificates {
        /// The file.
        path: PathBuf,
    },
    /// The client certificate or its key can't be used.
    #[error("cannot use the client certificate {path}: {reason}")]
    ClientCertificate {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The TLS library refuses its settings.
    #[error("cannot set up TLS: {reason}")]
    Tls {
        /// What it says.
        reason: String,
    },
}

/// Names the agents that a request came through, so that one that meets itself again notices.
pub const AGENT_HEADER: http::HeaderName = http::HeaderName::from_static("x-opik-offline-agent");

/// Blocking connections to the server, kept alive between requests. Cheap to share between threads.
pub struct Upstream {
    agent: ureq::Agent,
    base_url: String,
    proxies: Proxies,
    /// Headers of the user's own, for this server only.
    own_headers: http::HeaderMap,
    answer_timeout: Duration,
    /// When the sending of stored requests is to end.
    deadline: Option<Instant>,
    agent_mark: Option<http::HeaderValue>,
    /// Whose key and workspace its own questions carry: the ping and the version.
    asks_as: Lane,
}

/// Idle connections that are kept, and for how long: shorter than the 60 s and more after which servers close them.
const IDLE_CONNECTIONS_MAX: usize = 16;
pub(crate) const IDLE_AGE_MAX: Duration = Duration::from_secs(25);

/// A ping that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The status.
    pub status: u16,
    /// What it says. A 200 alone says nothing: every sign-in page has one.
    pub presence: Presence,
    /// From the first byte sent to the answer.
    pub latency: Duration,
}

impl Upstream {
    /// Returns connections with these settings; none is opened yet, and no file is read.
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
        let tls = std::sync::Arc::new(TlsSource::new(settings.tls.clone()));
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
        }
    }

    /// Asks its own questions, the ping above all, with the key and the workspace of this lane, as the SDK does: there are
    /// gates that want a key on every path.
    #[must_use]
    pub fn asking_as(self, asks_as: Lane) -> Self {
        Self { asks_as, ..self }
    }

    /// Names this agent in every stored request that is sent ([`AGENT_HEADER`]).
    #[must_use]
    pub fn marked(self, agent_mark: http::HeaderValue) -> Self {
        Self { agent_mark: Some(agent_mark), ..self }
    }

    /// Waits for no answer to a stored request for much longer than until then ([`DEADLINE_GRACE`]).
    #[must_use]
    pub fn until(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }

    /// Returns the server's base URL.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Returns the server's base URL, with the proxy that leads there.
    pub fn described(&self) -> String {
        self.proxies.described(&self.base_url)
    }

    /// Returns how long an answer may take, as far as nothing else was said for a request.
    pub fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// Sends a stored request to this endpoint as its client would have sent it.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no whole answer came.
    pub fn send(&self, lane: &Lane, endpoint: Endpoint, request: &Request) -> Result<Answer, SendFailure> {
        self.send_within(lane, endpoint, request, self.answer_timeout)
    }

    /// The same with another time for the answer.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no whole answer came.
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

    /// Asks the server whether it is there (`is-alive/ping`), as the SDK's connection monitor does.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no answer came within `timeout`.
    pub fn ping(&self, timeout: Duration) -> Result<Pong, SendFailure> {
        let started = Instant::now();
        let answer = self.ask("is-alive/ping", Endpoint::Ping, timeout)?;
        let presence = presence(answer.recognised, answer.status, &answer.text);
        Ok(Pong { status: answer.status, presence, latency: started.elapsed() })
    }

    /// Asks the server whether it knows the key and the workspace (`POST v1/private/auth`, empty body).
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no answer came within `timeout`.
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

    /// Reads a path below the base URL; how the commands ask a running agent.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no answer came within `timeout`.
    pub fn read(&self, path: &str, timeout: Duration) -> Result<Answer, SendFailure> {
        let request = http::Request::builder().method("GET").uri(format!("{}/{path}", self.base_url));
        self.finish(request, Endpoint::Read, &[], timeout, Answer::TEXT_BYTES_MAX)
    }

    /// The same with this much of the answer at most.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no whole answer came.
    pub fn read_whole(&self, path: &str, timeout: Duration, bytes_max: usize) -> Result<Answer, SendFailure> {
        let request = http::Request::builder().method("GET").uri(format!("{}/{path}", self.base_url));
        self.finish(request, Endpoint::Read, &[], timeout, bytes_max)
    }

    /// Reads what the server has of a lane, by `GET` or by a `POST` with a JSON body; at most `bytes_max` of the answer.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no whole answer came.
    pub fn read_back(&self, lane: &Lane, read: &Read, bytes_max: usize) -> Result<Answer, SendFailure> {
        let mut builder = http::Request::builder().method(read.method).uri(format!("{}/{}", self.base_url, read.path));
        if read.body.is_some() {
            builder = builder.header("content-type", "application/json");
        }
        let body = read.body.as_deref().unwrap_or_default();
        self.finish(with_lane(builder, lane), Endpoint::Read, body.as_bytes(), self.answer_timeout, bytes_max)
    }

    /// Returns the server's version (`is-alive/ver`), or `None` when it doesn't tell.
    pub fn version(&self, timeout: Duration) -> Option<String> {
        let answer = self.ask("is-alive/ver", Endpoint::Version, timeout).ok().filter(Answer::is_confirmed)?;
        let value: serde_json::Value = serde_json::from_str(&answer.text).ok()?;
        value.get("version")?.as_str().map(str::to_owned)
    }

    /// Sends a request and reads its answer, at most `bytes_max` of it.
    ///
    /// One that broke off while its body was being sent is sent once more, and its body only when the server asks for it:
    /// a server that refuses it by its head alone is heard then.
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
            // It knows nothing of that.
            Ok(Answer { status: 417, .. }) => Err(failure),
            second => second,
        }
    }

    fn head(&self, builder: http::request::Builder, timeout: Duration) -> Result<http::request::Parts, SendFailure> {
        let made = builder.body(()).map_err(|error| self.failure(&self.base_url, timeout, ureq::Error::Http(error)))?;
        Ok(made.into_parts().0)
    }

    /// Adds the headers of the user's own, in place of what the client sent under their names.
    fn with_own_headers(&self, mut builder: http::request::Builder) -> http::request::Builder {
        if let Some(headers) = builder.headers_mut() {
            headers.extend(self.own_headers.clone());
        }
        builder
    }

    /// Returns why a request to this URL got no answer, with the proxy that it went through.
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
        let failed = |error: ureq::Error| self.failure(&self.base_url, timeout, error);
        let request = self.agent.configure_request(request).timeout_global(Some(timeout));
        let request = request.timeout_await_100(Some(AWAIT_100)).build();
        let mut response = self.agent.run(request).map_err(failed)?;
        let headers = response.headers();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let asked = asked_wait(header("ratelimit-reset"), header("retry-after"), header("date"), SystemTime::now());
        let location = header("location").map(str::to_owned);
        let date_ms = header("date").and_then(date_ms);
        let content_type = header("content-type").map(str::to_owned);
        let status = response.status().as_u16();
        // The rest of a longer body is not read: the connection is then closed instead of kept.
        let mut text = Vec::new();
        let reader = response.body_mut().as_reader();
        std::io::Read::read_to_end(&mut std::io::Read::take(reader, bytes_max as u64), &mut text)
            .map_err(|error| failed(ureq::Error::from(error)))?;
        let seen = Seen {
            status,
            content_type: content_type.as_deref(),
            location: location.as_deref(),
            body: &text,
            is_cut: text.len() >= bytes_max,
        };
        let (recognised, partial) = judge(endpoint, &seen);
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Answer { status, asked_wait: asked, location, date_ms, text, partial: partial.map(Box::new), recognised })
    }
}

/// How long a server may take to say that it wants the body that was announced to it.
const AWAIT_100: Duration = Duration::from_secs(5);

/// Announces the body of a request instead of sending it at once.
fn expecting(mut head: http::request::Parts) -> http::request::Parts {
    head.headers.insert(http::header::EXPECT, http::HeaderValue::from_static("100-continue"));
    head
}

/// Adds what names the lane: workspace and credential, exactly as the client sent them.
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

/// Returns the system's words as they stand inside a sentence, without a number that says the same to fewer people.
fn words(reason: &str) -> String {
    let reason = reason.strip_prefix("io: ").unwrap_or(reason);
    let reason = reason.split(" (os error").next().unwrap_or(reason);
    let mut chars = reason.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
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
