//! Streaming requests and responses between clients and the server.
//!
//! This uses hyper's client instead of ureq: a proxy has to stream responses, and a thread per in-flight request costs
//! too much. The commit that made this choice has the measurement.

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

use self::dial::{DirectConnector, ProxyConnector, tcp_connector};
use super::fault::ConnectFault;
use super::fault::words;
use super::half_open::HalfOpen;
use super::route::{PeerAddress, ProxyMode, ServerRoute};
use super::tls::TlsSource;
use super::{IDLE_AGE_MAX, UpstreamSettings, tls};
use crate::protocol::answers::SendFailure;

/// Why a streamed body was cut short.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;
/// A request body: buffered, or streamed from the client.
pub(crate) type ForwardBody = Either<Full<Bytes>, BoxBody<Bytes, BoxError>>;

/// Limits of a response's head: number of headers, bytes.
const ANSWER_HEADERS_MAX: usize = 1024;
const ANSWER_HEAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A pool of streaming keep-alive connections to the server. Must be used within one tokio runtime.
pub struct Forwarder {
    client: ForwardClient,
    base_url: String,
    /// The base URL, and its proxy.
    described: String,
    /// The operator's additional headers.
    own_headers: http::HeaderMap,
}

enum ForwardClient {
    Direct(Client<HalfOpen<DirectConnector>, ForwardBody>),
    Proxied {
        client: Box<Client<HalfOpen<ProxyConnector>, ForwardBody>>,
        /// `Proxy-Authorization` for requests in absolute form.
        authorization: Option<HeaderValue>,
    },
    /// The proxy settings are unusable.
    Unusable(String),
}

impl Forwarder {
    /// Returns `count` forwarders with separate connection pools that keep at most `idle_max` idle connections each;
    /// opens no connection and reads no file yet.
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
            // A server that responds has processed the request, even if the response is too large for us: it must not
            // be retried.
            .http1_max_headers(ANSWER_HEADERS_MAX)
            .http1_max_buf_size(ANSWER_HEAD_BYTES_MAX);
        let dialer = DirectConnector { http: tcp_connector(settings.connect_timeout), tls: tls.clone() };
        let target = settings.base_url.parse().ok().and_then(|uri| PeerAddress::of(&uri));
        let way = match &target {
            Some(target) => settings.proxies.route_to(target),
            None => Err(ConnectFault::new("this is no URL of a server")),
        };
        let client = match (way, target) {
            (Err(fault), _) => ForwardClient::Unusable(fault.to_string()),
            (Ok(ServerRoute::Through(proxy, leads)), Some(target)) => {
                let authorization = proxy.authorization().filter(|_| leads == ProxyMode::ByAbsoluteForm);
                let authorization = authorization.and_then(|value| HeaderValue::try_from(value).ok());
                let authorization = authorization.map(|mut value| {
                    value.set_sensitive(true);
                    value
                });
                let dialer = ProxyConnector { dialer, proxy, leads, target, timeout: settings.connect_timeout };
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

    /// Returns the server's base URL for error messages: with its proxy.
    pub fn described(&self) -> &str {
        &self.described
    }

    /// Sends a request and returns as soon as the response's head has arrived; the body streams.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a response head.
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

/// Returns the text of the root cause of an error chain: the outer errors only say "error".
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
