//! Requests and answers that stream between a client and the server.
//!
//! hyper's client and not ureq here: a proxy's answers must stream, and a thread per request in flight costs too much.
//! The commit that made this choice holds the measurement.

mod dial;

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::combinators::BoxBody;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use self::dial::{Dialer, ProxyDialer, tcp_connector};
use super::fault::ConnectFault;
use super::half_open::HalfOpen;
use super::route::{Leads, Target, Way};
use super::tls::TlsSource;
use super::{IDLE_AGE_MAX, UpstreamSettings, tls, words};
use crate::protocol::answers::SendFailure;

/// Why a streamed body ended too early.
pub type BoxError = Box<dyn Error + Send + Sync>;
/// A body on its way to the server: held whole, or streamed from the client.
pub type ForwardBody = Either<Full<Bytes>, BoxBody<Bytes, BoxError>>;

/// Headers of an answer, and bytes of its head, at most.
const ANSWER_HEADERS_MAX: usize = 1024;
const ANSWER_HEAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Streaming connections to the server, kept alive between requests. Must be used within one tokio runtime.
pub struct Forwarder {
    client: ForwardClient,
    base_url: String,
    /// The base URL, and the proxy that leads there.
    described: String,
    /// Headers of the user's own.
    own_headers: http::HeaderMap,
}

enum ForwardClient {
    Direct(Client<HalfOpen<Dialer>, ForwardBody>),
    Proxied {
        client: Box<Client<HalfOpen<ProxyDialer>, ForwardBody>>,
        /// What the proxy asks for with every request, where it gets these itself.
        authorization: Option<HeaderValue>,
    },
    /// The settings name no usable way.
    Unusable(String),
}

impl Forwarder {
    /// Returns so many forwarders with these settings, each with connections of its own, of which it keeps this many idle;
    /// none is opened yet, and no file is read.
    pub fn several(settings: &UpstreamSettings, count: usize, idle_max: usize) -> Vec<Self> {
        let tls = Arc::new(TlsSource::new(settings.tls.clone()));
        (0..count).map(|_| Self::with(settings, &tls, idle_max)).collect()
    }

    fn with(settings: &UpstreamSettings, tls: &Arc<TlsSource>, idle_max: usize) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_idle_timeout(IDLE_AGE_MAX)
            .pool_max_idle_per_host(idle_max)
            .pool_timer(TokioTimer::new())
            // What has answered has done what was asked, however much it says: it must not be asked again.
            .http1_max_headers(ANSWER_HEADERS_MAX)
            .http1_max_buf_size(ANSWER_HEAD_BYTES_MAX);
        let dialer = Dialer { http: tcp_connector(settings.connect_timeout), tls: tls.clone() };
        let target = settings.base_url.parse().ok().and_then(|uri| Target::of(&uri));
        let way = match &target {
            Some(target) => settings.proxies.way_to(target),
            None => Err(ConnectFault::new("this is no URL of a server")),
        };
        let client = match (way, target) {
            (Err(fault), _) => ForwardClient::Unusable(fault.to_string()),
            (Ok(Way::Through(proxy, leads)), Some(target)) => {
                let authorization = proxy.authorization().filter(|_| leads == Leads::ByAbsoluteForm);
                let authorization = authorization.and_then(|value| HeaderValue::try_from(value).ok());
                let authorization = authorization.map(|mut value| {
                    value.set_sensitive(true);
                    value
                });
                let dialer = ProxyDialer { dialer, proxy, leads, target, timeout: settings.connect_timeout };
                ForwardClient::Proxied { client: Box::new(builder.build(HalfOpen(dialer))), authorization }
            }
            (Ok(_), _) => ForwardClient::Direct(builder.build(HalfOpen(dialer))),
        };
        Self {
            client,
            base_url: settings.base_url.clone(),
            described: settings.proxies.described(&settings.base_url),
            own_headers: settings.headers.clone(),
        }
    }

    /// Returns the server's base URL.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Returns the server's base URL as errors name it: with the proxy that leads there.
    pub fn described(&self) -> &str {
        &self.described
    }

    /// Sends a request and returns the answer's head as soon as it is there; its body streams.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no answer began.
    pub async fn send(&self, mut request: http::Request<ForwardBody>) -> Result<http::Response<Incoming>, SendFailure> {
        if !self.own_headers.is_empty() {
            request.headers_mut().extend(self.own_headers.clone());
        }
        let result = match &self.client {
            ForwardClient::Direct(client) => client.request(request).await,
            ForwardClient::Proxied { client, authorization } => {
                if let Some(value) = authorization {
                    request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, value.clone());
                }
                client.request(request).await
            }
            ForwardClient::Unusable(reason) => {
                return Err(SendFailure::Connect { url: self.described.clone(), reason: reason.clone() });
            }
        };
        result.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &ClientError) -> SendFailure {
        let url = self.described.clone();
        let fault = ConnectFault::find(error).map(ToString::to_string);
        let reason = fault.or_else(|| tls::reason(error)).unwrap_or_else(|| words(&innermost(error)));
        if error.is_connect() { SendFailure::Connect { url, reason } } else { SendFailure::Broken { url, reason } }
    }
}

/// Returns the words of the cause that started a chain of errors: the outer ones only say "error".
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
