//! Streaming requests and responses between clients and the server.
//!
//! This uses hyper's client instead of ureq: a proxy has to stream responses, and a thread per in-flight request costs
//! too much. The commit that made this choice has the measurement.

mod dial;
mod direct;
mod pool;

use std::error::Error;
use std::sync::Arc;

use http::uri::Uri;
use http::{HeaderValue, Request, Response};

use self::dial::ServerDialer;
use self::pool::{NotSent, Pool, ServerConnection};
use super::fault::{ConnectFault, words};
use super::half_open::HalfOpen;
use super::route::{PeerAddress, ProxyMode, ServerRoute};
use super::tls::TlsSource;
use super::{UpstreamSettings, tls};
use crate::protocol::answers::SendFailure;

pub(crate) use self::direct::ForwardBody;
pub(crate) use self::pool::ServerBody;
pub(crate) use super::fault::{BoxError, innermost};

/// Streams requests over its own keep-alive connections to the server. Must be used within one tokio runtime.
pub struct Forwarder {
    pool: Arc<Pool>,
    /// Opens connections; the reason if the proxy settings are unusable.
    dialer: Result<Arc<ServerDialer>, String>,
    /// Whether requests go in absolute form to a proxy, and its `Proxy-Authorization`.
    absolute_form: Option<Option<HeaderValue>>,
    base_url: String,
    /// The base URL, and its proxy.
    described: String,
    /// The operator's additional headers.
    own_headers: http::HeaderMap,
}

impl Forwarder {
    /// Returns `count` forwarders with separate connection pools that keep at most `idle_max` idle connections each;
    /// opens no connection and reads no file yet.
    pub fn several(settings: &UpstreamSettings, count: usize, idle_max: usize) -> Vec<Self> {
        let tls = Arc::new(TlsSource::new(settings.tls.clone()));
        (0..count).map(|_| Self::with(settings, &tls, idle_max)).collect()
    }

    fn with(settings: &UpstreamSettings, tls: &Arc<TlsSource>, idle_max: usize) -> Self {
        let target = settings.base_url.parse().ok().and_then(|uri| PeerAddress::of(&uri));
        let target = target.ok_or_else(|| ConnectFault::new("this is no URL of a server"));
        let route = target.and_then(|target| Ok((settings.proxies.route_to(&target)?, target)));
        let absolute_form = match &route {
            Ok((ServerRoute::Through(proxy, ProxyMode::ByAbsoluteForm), _)) => {
                let authorization = proxy.authorization().and_then(|value| HeaderValue::try_from(value).ok());
                Some(authorization.map(|mut value| {
                    value.set_sensitive(true);
                    value
                }))
            }
            _ => None,
        };
        let dialer = route
            .map(|(route, target)| Arc::new(ServerDialer::new(target, route, settings.connect_timeout, tls.clone())))
            .map_err(|fault| fault.to_string());
        Self {
            pool: Pool::new(idle_max),
            dialer,
            absolute_form,
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
    /// A request of which a reused connection took no byte, because the server had closed it, is sent again.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] without a response head.
    pub(crate) async fn send(&self, mut request: Request<ForwardBody>) -> Result<Response<ServerBody>, SendFailure> {
        if !self.own_headers.is_empty() {
            request.headers_mut().extend(self.own_headers.clone());
        }
        match &self.absolute_form {
            None => {
                let path = request.uri().path_and_query().cloned();
                *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
            }
            Some(None) => {}
            Some(Some(authorization)) => {
                request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, authorization.clone());
            }
        }
        loop {
            let connection = match self.pool.take(&request) {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            match connection.send(request, &self.pool).await {
                Ok(answer) => return Ok(answer),
                Err(NotSent::Unused(again)) => request = *again,
                Err(NotSent::Failed(error)) => {
                    return Err(SendFailure::Broken { url: self.described.clone(), reason: reason(&error) });
                }
            }
        }
    }

    /// Opens a connection, or takes the one of another request that ends before it is open.
    async fn connect(&self) -> Result<ServerConnection, SendFailure> {
        let failure = |reason: String| SendFailure::Connect { url: self.described.clone(), reason };
        let dialer = self.dialer.clone().map_err(failure)?;
        let mut connecting = Box::pin(open(dialer));
        tokio::select! {
            biased;
            Ok(connection) = self.pool.wait() => {
                let pool = self.pool.clone();
                pool::spawn(async move {
                    if let Ok(connection) = connecting.await {
                        pool.keep(connection);
                    }
                });
                Ok(connection)
            }
            connected = connecting.as_mut() => connected.map_err(|error| failure(reason(&*error))),
        }
    }
}

/// Opens a connection.
async fn open(dialer: Arc<ServerDialer>) -> Result<ServerConnection, BoxError> {
    Ok(ServerConnection::new(Box::new(HalfOpen::new(dialer.connect().await?))))
}

/// Returns why a connection or a request failed, in words for people.
fn reason(error: &(dyn Error + 'static)) -> String {
    let fault = ConnectFault::find(error).map(ToString::to_string);
    fault.or_else(|| tls::reason(error)).unwrap_or_else(|| words(&innermost(error)))
}
