//! Requests and answers that stream between a client and the server.
//!
//! hyper's client and not ureq here: a proxy's answers must stream, and a thread per request in flight costs too much.
//! The commit that made this choice holds the measurement.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::{IDLE_AGE_MAX, UpstreamError, UpstreamSettings, tls, without_userinfo};
use crate::protocol::answers::SendFailure;

/// A body on its way to the server: held whole, or streamed from the client.
pub type ForwardBody = Either<Full<Bytes>, Incoming>;

/// Idle connections that are kept to the server.
const IDLE_CONNECTIONS_MAX: usize = 128;

/// Streaming connections to the server, kept alive between requests. Must be used within a tokio runtime.
pub struct Forwarder {
    client: ForwardClient,
    base_url: String,
}

enum ForwardClient {
    Direct(Client<HttpsConnector<HttpConnector>, ForwardBody>),
    Tunneled(Client<HttpsConnector<Tunnel<HttpConnector>>, ForwardBody>),
}

impl Forwarder {
    /// Returns connections with these settings; none is opened yet.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`] for a certificate file or a proxy that can't be used.
    pub fn new(settings: &UpstreamSettings) -> Result<Self, UpstreamError> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(settings.connect_timeout));
        connector.set_keepalive(Some(Duration::from_secs(60)));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls::for_rustls(settings)?)
            .https_or_http()
            .enable_http1();
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_idle_timeout(IDLE_AGE_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_timer(TokioTimer::new());
        let client = match &settings.proxy {
            None => ForwardClient::Direct(builder.build(https.wrap_connector(connector))),
            Some(url) => {
                let proxy = url
                    .parse::<http::Uri>()
                    .map_err(|error| UpstreamError::Proxy { url: without_userinfo(url), reason: error.to_string() })?;
                ForwardClient::Tunneled(builder.build(https.wrap_connector(Tunnel::new(proxy, connector))))
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
    pub async fn send(&self, request: http::Request<ForwardBody>) -> Result<http::Response<Incoming>, SendFailure> {
        let result = match &self.client {
            ForwardClient::Direct(client) => client.request(request).await,
            ForwardClient::Tunneled(client) => client.request(request).await,
        };
        result.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &ClientError) -> SendFailure {
        let url = self.base_url.clone();
        let reason = innermost(error);
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
