//! The blocking client for other services than the Opik server: the same connections, TLS and proxies, without its
//! headers and without a judgement of the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use thiserror::Error;
use ureq::unversioned::resolver::DefaultResolver;

use super::dial::{Dialer, Unresolved};
use super::fault::words;
use super::route::Proxies;
use super::tls::{TlsSettings, TlsSource};
use super::{AWAIT_100, IDLE_AGE_MAX, IDLE_CONNECTIONS_MAX, failure, heard};
use crate::protocol::answers::SendFailure;

/// Bytes of the two buffers of a connection, which idle ones keep: a quarter of what the client takes by default.
const BUFFER_BYTES: usize = 32 * 1024;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub(crate) struct WebFailure {
    /// How far it got.
    pub(crate) stage: WebStage,
    /// The reason, in words.
    pub(crate) reason: String,
}

/// How far an exchange got before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WebStage {
    /// Nothing was sent.
    Connecting,
    /// The request may have arrived; there is no answer.
    Waiting,
    /// The head of the answer arrived, and its body not whole.
    Reading,
}

/// How the client connects.
#[derive(Clone, Debug)]
pub(crate) struct WebSettings {
    pub(crate) tls: TlsSettings,
    pub(crate) proxies: Proxies,
    /// Timeout for connecting.
    pub(crate) connect_timeout: Duration,
    /// Timeout from the first byte sent to the last byte read.
    pub(crate) timeout: Duration,
    /// The longest body of an answer, in bytes.
    pub(crate) bytes_max: usize,
}

/// A pool of blocking keep-alive connections to any server.
#[derive(Debug)]
pub(crate) struct WebClient {
    agent: ureq::Agent,
    settings: WebSettings,
}

impl WebClient {
    /// Creates a pool; opens no connection and reads no file yet.
    pub(crate) fn new(settings: WebSettings) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .no_delay(true)
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_global(Some(settings.timeout))
            .timeout_await_100(Some(AWAIT_100))
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .max_idle_age(IDLE_AGE_MAX)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .user_agent(concat!("opik-offline/", env!("CARGO_PKG_VERSION")))
            .build();
        let tls = Arc::new(TlsSource::new(settings.tls.clone()));
        let dialer = Dialer { proxies: settings.proxies.clone(), tls, resolver: DefaultResolver::default() };
        Self { agent: ureq::Agent::with_parts(config, dialer, Unresolved), settings }
    }

    /// Sends a request whose body is in memory, and reads the whole answer.
    ///
    /// # Errors
    ///
    /// [`WebFailure`] without a whole answer.
    pub(crate) fn exchange<B>(&self, request: http::Request<B>) -> Result<http::Response<Bytes>, WebFailure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (head, body) = request.into_parts();
        let fail = |stage, reason: &str| WebFailure { stage, reason: reason.to_owned() };
        let body = in_memory(body).ok_or_else(|| fail(WebStage::Connecting, "the body is not in memory"))?;
        let url = head.uri.to_string();
        heard::broke_off();
        let sent = self.agent.run(http::Request::from_parts(head, &*body));
        let response = sent.map_err(|error| match failure(&url, self.settings.timeout, error) {
            SendFailure::Connect { reason, .. } => fail(WebStage::Connecting, &reason),
            SendFailure::Timeout { after, .. } => {
                fail(WebStage::Waiting, &format!("no answer within {} s", after.as_secs()))
            }
            // A request that was cut short was not processed.
            SendFailure::Broken { reason, .. } if heard::broke_off() => fail(WebStage::Connecting, &reason),
            SendFailure::Broken { reason, .. } => fail(WebStage::Waiting, &reason),
        })?;
        let (head, mut body) = response.into_parts();
        let expected =
            head.headers.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let mut bytes = Vec::with_capacity(expected.unwrap_or(0).min(self.settings.bytes_max));
        let reader = body.as_reader();
        std::io::Read::read_to_end(&mut std::io::Read::take(reader, self.settings.bytes_max as u64 + 1), &mut bytes)
            .map_err(|error| fail(WebStage::Reading, &words(&error.to_string())))?;
        if bytes.len() > self.settings.bytes_max {
            return Err(fail(WebStage::Reading, &format!("it is larger than {} bytes", self.settings.bytes_max)));
        }
        Ok(http::Response::from_parts(head, bytes.into()))
    }
}

/// Returns the bytes of a body that waits for nothing; `None` for another one.
fn in_memory<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Option<Bytes> {
    let mut context = Context::from_waker(Waker::noop());
    let mut whole: Option<Bytes> = None;
    loop {
        match Pin::new(&mut body).poll_frame(&mut context) {
            Poll::Ready(None) => return Some(whole.unwrap_or_default()),
            Poll::Ready(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                whole = Some(match whole {
                    None => data,
                    Some(before) => [before, data].concat().into(),
                });
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => return None,
        }
    }
}

/// Returns the addresses of a host; none if it can't be resolved.
pub(crate) fn addresses(host: &str) -> Vec<std::net::IpAddr> {
    use std::net::ToSocketAddrs as _;
    (host, 443)
        .to_socket_addrs()
        .map(|found| found.map(|address| address.ip().to_canonical()).collect())
        .unwrap_or_default()
}
