//! The route to a server: direct, or through a proxy.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;

use super::fault::ConnectFault;

/// The protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP, plain or over TLS.
    Http {
        /// Whether the connection to the proxy itself is encrypted.
        over_tls: bool,
    },
    /// SOCKS 4; 4a where the proxy resolves names.
    Socks4 {
        /// Whether the proxy resolves names.
        resolves: bool,
    },
    /// SOCKS 5; `socks5h` where the proxy resolves names.
    Socks5 {
        /// Whether the proxy resolves names.
        resolves: bool,
    },
}

/// A proxy. `Display` omits the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its protocol.
    pub kind: ProxyKind,
    /// An IPv6 address is in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password.
    pub credentials: Option<(Vec<u8>, Vec<u8>)>,
}

impl Proxy {
    /// Returns the URL that connections are opened to.
    pub(super) fn address(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }

    /// Returns the value of `Proxy-Authorization` (RFC 7617).
    pub(super) fn authorization(&self) -> Option<String> {
        let (user, password) = self.credentials.as_ref()?;
        let plain = [user, &b":"[..], password].concat();
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain)))
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ProxyKind::Http { over_tls: false } => "http",
            ProxyKind::Http { over_tls: true } => "https",
            ProxyKind::Socks4 { resolves: false } => "socks4",
            ProxyKind::Socks4 { resolves: true } => "socks4a",
            ProxyKind::Socks5 { resolves: false } => "socks5",
            ProxyKind::Socks5 { resolves: true } => "socks5h",
        };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// The endpoint of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Whether it uses TLS.
    pub is_https: bool,
    /// An IPv6 address is in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl PeerAddress {
    /// Returns the endpoint of a URL; `None` if the URL has no host.
    pub fn of(uri: &http::Uri) -> Option<Self> {
        let is_https = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Some(Self { is_https, host: uri.host()?.to_owned(), port })
    }

    /// Returns the host without the brackets of an IPv6 address.
    pub(super) fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the host if it is an IP address.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.bare_host().parse().ok()
    }

    /// Returns `http://host` or `http://host:port`, the prefix of the path in absolute form.
    pub(super) fn origin(&self) -> String {
        let (scheme, own_port) = if self.is_https { ("https", 443) } else { ("http", 80) };
        match self.port == own_port {
            true => format!("{scheme}://{}", self.host),
            false => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// Rules that select the proxy for a server, supplied by the configuration.
#[derive(Clone)]
pub struct Proxies(Arc<Choose>);

type Choose = dyn Fn(&PeerAddress) -> Result<Option<Proxy>, String> + Send + Sync;

impl Proxies {
    /// Selects no proxy for any server.
    pub fn none() -> Self {
        Self::chosen_by(|_| Ok(None))
    }

    /// Selects with this function, which fails with the reason if the proxy's settings are unusable.
    pub fn chosen_by(choose: impl Fn(&PeerAddress) -> Result<Option<Proxy>, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(choose))
    }

    /// Returns the proxy for a server, or why its settings are unusable.
    pub(crate) fn choose(&self, target: &PeerAddress) -> Result<Option<Proxy>, String> {
        (self.0)(target)
    }

    /// Returns the route to a server.
    pub(super) fn route_to(&self, target: &PeerAddress) -> Result<ServerRoute, ConnectFault> {
        let proxy = self.choose(target).map_err(ConnectFault::new)?;
        let Some(proxy) = proxy else { return Ok(ServerRoute::Direct) };
        let leads = match proxy.kind {
            ProxyKind::Http { .. } if target.is_https => ProxyMode::ByTunnel,
            ProxyKind::Http { .. } => ProxyMode::ByAbsoluteForm,
            ProxyKind::Socks4 { .. } | ProxyKind::Socks5 { .. } => ProxyMode::ByTunnel,
        };
        Ok(ServerRoute::Through(Arc::new(proxy), leads))
    }

    /// Formats a URL for error messages: with its proxy.
    pub(super) fn described(&self, url: &str) -> String {
        let target = url.parse().ok().and_then(|uri| PeerAddress::of(&uri));
        match target.map(|target| self.route_to(&target)) {
            Some(Ok(ServerRoute::Through(proxy, _))) => format!("{url} through the proxy {proxy}"),
            _ => url.to_owned(),
        }
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies")
    }
}

/// The route to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerRoute {
    Direct,
    Through(Arc<Proxy>, ProxyMode),
}

/// How a proxy is used for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyMode {
    /// Absolute form: the proxy gets the request with the whole URL (RFC 9112, section 3.2.2); for plain HTTP. Many
    /// proxies open tunnels to port 443 only.
    ByAbsoluteForm,
    /// A tunnel: the proxy connects and relays bytes: `CONNECT` or SOCKS.
    ByTunnel,
}

/// Rewrites a request's head to absolute form, and adds the proxy's authorization.
///
/// `None` if it is not a request's head in origin form.
pub(super) fn in_absolute_form(head: &[u8], target: &PeerAddress, authorization: Option<&str>) -> Option<Vec<u8>> {
    let path = head.iter().position(|byte| *byte == b' ')? + 1;
    let line_end = head.windows(2).position(|pair| pair == b"\r\n")? + 2;
    if head.get(path) != Some(&b'/') || path > line_end {
        return None;
    }
    let origin = target.origin();
    let authorization = authorization.map_or(String::new(), |value| format!("Proxy-Authorization: {value}\r\n"));
    let pieces = [&head[..path], origin.as_bytes(), &head[path..line_end], authorization.as_bytes(), &head[line_end..]];
    Some(pieces.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(kind: ProxyKind) -> Proxy {
        let credentials = Some((b"me".to_vec(), b"secret-4717".to_vec()));
        Proxy { kind, host: "proxy".into(), port: 3128, credentials }
    }

    #[test]
    fn plain_http_uses_absolute_form_and_tls_a_tunnel() {
        let target = |url: &str| PeerAddress::of(&url.parse().expect(url)).expect(url);
        for (kind, url, expected) in [
            (ProxyKind::Http { over_tls: false }, "http://opik/api", ProxyMode::ByAbsoluteForm),
            (ProxyKind::Http { over_tls: true }, "http://opik/api", ProxyMode::ByAbsoluteForm),
            (ProxyKind::Http { over_tls: false }, "https://opik/api", ProxyMode::ByTunnel),
            (ProxyKind::Socks5 { resolves: true }, "http://opik/api", ProxyMode::ByTunnel),
            (ProxyKind::Socks4 { resolves: false }, "https://opik/api", ProxyMode::ByTunnel),
        ] {
            let proxies = Proxies::chosen_by(move |_| Ok(Some(proxy(kind))));
            let way = proxies.route_to(&target(url)).expect("usable");
            assert!(matches!(&way, ServerRoute::Through(_, leads) if *leads == expected), "{kind:?} {url}: {way:?}");
        }
        assert_eq!(Proxies::none().route_to(&target("http://opik")).expect("usable"), ServerRoute::Direct);
    }

    #[test]
    fn errors_name_the_proxy_without_its_password() {
        let proxies = Proxies::chosen_by(|_| Ok(Some(proxy(ProxyKind::Socks5 { resolves: true }))));
        assert_eq!(proxies.described("http://h/api"), "http://h/api through the proxy socks5h://proxy:3128");
        assert_eq!(Proxies::none().described("http://h/api"), "http://h/api");
        assert!(!format!("{:?}", proxy(ProxyKind::Http { over_tls: true })).contains("4717"));
    }

    #[test]
    fn heads_are_rewritten_to_absolute_form() {
        let target = PeerAddress { is_https: false, host: "opik.test".into(), port: 80 };
        let other = PeerAddress { port: 8080, ..target.clone() };
        for (head, target, authorization, expected) in [
            (
                "GET /api?q=a%20b HTTP/1.1\r\nhost: opik.test\r\n\r\n",
                &target,
                None,
                Some("GET http://opik.test/api?q=a%20b HTTP/1.1\r\nhost: opik.test\r\n\r\n"),
            ),
            (
                "POST / HTTP/1.1\r\n\r\n",
                &other,
                Some("Basic x"),
                Some("POST http://opik.test:8080/ HTTP/1.1\r\nProxy-Authorization: Basic x\r\n\r\n"),
            ),
            ("GET http://opik.test/ HTTP/1.1\r\n\r\n", &target, None, None),
            ("{\"a\": 1}\r\n", &target, None, None),
            ("GET /api HTTP/1.1", &target, None, None),
        ] {
            let found = in_absolute_form(head.as_bytes(), target, authorization);
            assert_eq!(found.as_deref().map(String::from_utf8_lossy).as_deref(), expected, "{head}");
        }
    }
}
