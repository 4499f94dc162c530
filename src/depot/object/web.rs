//! The crate's HTTP requests through the house's client.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

use crate::upstream::route::{PeerAddress, Proxies};
use crate::upstream::web::{WebClient, WebFailure, WebStage};

/// The longest part of a refusal that is kept, in bytes.
const REFUSAL_BYTES_MAX: usize = 4096;

/// How the last request of this thread ended. The crate's errors have it only as text.
#[derive(Clone, Debug)]
pub(super) struct LastExchange {
    /// Scheme, host and port.
    pub(super) origin: String,
    /// Whether the request was for credentials and not for an object.
    pub(super) is_for_credentials: bool,
    /// The status and the beginning of what it says, or why there is none.
    pub(super) ending: Result<(u16, String), WebFailure>,
}

thread_local! {
    static LAST: RefCell<Option<LastExchange>> = const { RefCell::new(None) };
}

/// Forgets the last request of this thread.
pub(super) fn forget() {
    LAST.with(|last| last.replace(None));
}

/// Returns how the last request of this thread ended, if it made one since [`forget`].
pub(super) fn last() -> Option<LastExchange> {
    LAST.with(|last| last.borrow().clone())
}

/// Returns whether a host is this machine, or its platform's service for credentials, which is always plain HTTP.
pub(super) fn may_be_plain(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host == "localhost" || host.ends_with(".localhost") || host == "metadata.google.internal" {
        return true;
    }
    host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback() || is_of_platform(address))
}

fn is_of_platform(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        // fd00:ec2::254 and fd00:ec2::23.
        IpAddr::V6(address) => address.segments()[..2] == [0xfd00, 0x0ec2],
    }
}

/// Returns rules that never send requests for the platform's credentials through a proxy.
pub(super) fn beside_the_platform(proxies: Proxies) -> Proxies {
    Proxies::chosen_by(move |target: &PeerAddress| match may_be_plain(&target.host) {
        true => Ok(None),
        false => proxies.choose(target),
    })
}

/// Makes the crate's clients; all share one pool of connections.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) client: Arc<WebClient>,
    pub(super) is_insecure: bool,
    /// How many clients were made. The crate makes that of the bucket last.
    pub(super) made: Arc<AtomicUsize>,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(HttpClient::new(Service { connector: self.clone(), number }))
    }
}

struct Service {
    connector: Connector,
    number: usize,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

impl HttpService for Service {
    // The signature that the crate's macro generates. It is done before the future is polled.
    fn call<'me, 'call>(
        &'me self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'call>>
    where
        'me: 'call,
        Self: 'call,
    {
        Box::pin(ready(self.exchange(request)))
    }
}

impl Service {
    fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = request.uri().clone();
        let host = uri.host().unwrap_or_default();
        let origin = format!(
            "{}://{}",
            uri.scheme_str().unwrap_or_default(),
            uri.authority().map_or(host, |authority| authority.as_str())
        );
        let answer = match uri.scheme_str() {
            Some("http") if !self.connector.is_insecure && !may_be_plain(host) => Err(WebFailure {
                stage: WebStage::Connecting,
                reason: format!("{origin} has no TLS; use https, or --fleet-insecure"),
            }),
            _ => self.connector.client.exchange(request),
        };
        let ending = match &answer {
            Ok(response) if response.status().is_success() => Ok((response.status().as_u16(), String::new())),
            Ok(response) => {
                let body = response.body();
                let said = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)]).into_owned();
                Ok((response.status().as_u16(), said))
            }
            Err(failure) => Err(failure.clone()),
        };
        let is_for_credentials = self.number != self.connector.made.load(Ordering::Relaxed);
        LAST.with(|last| last.replace(Some(LastExchange { origin, is_for_credentials, ending })));
        match answer {
            Ok(response) => Ok(response.map(HttpResponseBody::from)),
            Err(failure) => Err(HttpError::new(HttpErrorKind::Unknown, failure)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_its_platform_are_reached_without_tls() {
        for plain in ["127.0.0.1", "[::1]", "localhost", "169.254.169.254", "169.254.170.23", "[fd00:ec2::254]"] {
            assert!(may_be_plain(plain), "{plain}");
        }
        for other in ["10.0.0.1", "minio", "example.org", "[fd00::1]", "localhost.example.org"] {
            assert!(!may_be_plain(other), "the keys of {other} would be readable on the network");
        }
    }
}
