//! Requests and answers that stream between a client and the server.
//!
//! hyper's client and not ureq here: a proxy's answers must stream, and a thread per request in flight costs too much.
//! The commit that made this choice holds the measurement.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::half_open::HalfOpen;
use super::{IDLE_AGE_MAX, UpstreamError, UpstreamSettings, tls, without_userinfo};
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
}

enum ForwardClient {
    Direct(Client<HalfOpen<HttpsConnector<HttpConnector>>, ForwardBody>),
    Tunneled(Box<Client<HalfOpen<HttpsConnector<TunnelConnector>>, ForwardBody>>),
}

/// Leads through a proxy, which may itself speak TLS.
type TunnelConnector = Tunnel<HttpsConnector<HttpConnector>>;

impl Forwarder {
    /// Returns so many forwarders with these settings, each with connections of its own, of which it keeps this many idle;
    /// none is opened yet.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`] for a certificate file or a proxy that can't be used.
    pub fn several(settings: &UpstreamSettings, count: usize, idle_max: usize) -> Result<Vec<Self>, UpstreamError> {
        let tls_config = tls::for_rustls(settings)?;
        (0..count).map(|_| Self::with(settings, &tls_config, idle_max)).collect()
    }

    fn with(
        settings: &UpstreamSettings,
        tls_config: &rustls::ClientConfig,
        idle_max: usize,
    ) -> Result<Self, UpstreamError> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(settings.connect_timeout));
        connector.set_keepalive(Some(Duration::from_secs(60)));
        let https = || {
            let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls_config.clone());
            builder.https_or_http().enable_http1()
        };
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_idle_timeout(IDLE_AGE_MAX)
            .pool_max_idle_per_host(idle_max)
            .pool_timer(TokioTimer::new())
            // What has answered has done what was asked, however much it says: it must not be asked again.
            .http1_max_headers(ANSWER_HEADERS_MAX)
            .http1_max_buf_size(ANSWER_HEAD_BYTES_MAX);
        let client = match &settings.proxy {
            None => ForwardClient::Direct(builder.build(HalfOpen(https().wrap_connector(connector)))),
            Some(url) => {
                let unusable = |reason: String| UpstreamError::Proxy { url: without_userinfo(url), reason };
                let proxy = url.parse::<http::Uri>().map_err(|error| unusable(error.to_string()))?;
                // The proxy itself may speak TLS, with the same authorities.
                let mut tunnel = Tunnel::new(proxy.clone(), https().wrap_connector(connector));
                if let Some(credentials) = proxy_credentials(&proxy) {
                    let credentials =
                        credentials.map_err(|()| unusable("its user or password is unreadable".into()))?;
                    tunnel = tunnel.with_auth(credentials);
                }
                ForwardClient::Tunneled(Box::new(builder.build(HalfOpen(https().wrap_connector(tunnel)))))
            }
        };
        Ok(Self { client, base_url: settings.base_url.clone() })
    }

    /// Returns the server's base URL.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Sends a request and returns the answer's head as soon as it is there; its body streams.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when no answer began.
    pub async fn send(&self, mut request: http::Request<ForwardBody>) -> Result<http::Response<Incoming>, SendFailure> {
        if matches!(self.client, ForwardClient::Tunneled(_)) {
            name_the_port(request.uri_mut());
        }
        let result = match &self.client {
            ForwardClient::Direct(client) => client.request(request).await,
            ForwardClient::Tunneled(client) => client.request(request).await,
        };
        result.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &ClientError) -> SendFailure {
        let url = self.base_url.clone();
        let reason = tls::reason(error).unwrap_or_else(|| innermost(error));
        if error.is_connect() { SendFailure::Connect { url, reason } } else { SendFailure::Broken { url, reason } }
    }
}

/// Names the port of a plain URL: a tunnel takes one without for 443, whatever its scheme.
fn name_the_port(uri: &mut http::Uri) {
    let (Some("http"), Some(host), None) = (uri.scheme_str(), uri.host(), uri.port()) else { return };
    let authority = format!("{host}:80");
    let mut parts = uri.clone().into_parts();
    parts.authority = authority.parse().ok();
    // Unchanged, it goes where it always went.
    if let Ok(named) = http::Uri::from_parts(parts) {
        *uri = named;
    }
}

/// Returns what a proxy asks for in `Proxy-Authorization`, from the user and password of its URL, which hyper leaves there.
fn proxy_credentials(proxy: &http::Uri) -> Option<Result<http::HeaderValue, ()>> {
    use base64::Engine as _;
    let (userinfo, _) = proxy.authority()?.as_str().rsplit_once('@')?;
    let plain: Vec<u8> = percent_encoding::percent_decode_str(userinfo).collect();
    // A user without a password has an empty one (RFC 7617).
    let plain = if userinfo.contains(':') { plain } else { [&plain[..], b":"].concat() };
    let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain));
    Some(http::HeaderValue::try_from(value).map_err(drop))
}

/// Returns the words of the cause that started a chain of errors: the outer ones only say "error".
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
