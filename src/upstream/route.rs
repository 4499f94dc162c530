//! Which way leads to a server: directly, or through which proxy and how.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;

use super::fault::ConnectFault;

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP, in the clear or over TLS.
    Http {
        /// Whether the connection to the proxy itself is encrypted.
        over_tls: bool,
    },
    /// SOCKS 4; 4a where the proxy resolves names.
    Socks4 {
        /// Who resolves names.
        resolves: bool,
    },
    /// SOCKS 5; `socks5h` where the proxy resolves names.
    Socks5 {
        /// Who resolves names.
        resolves: bool,
    },
}

/// A proxy. Its display leaves the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What it speaks.
    pub kind: ProxyKind,
    /// An IPv6 address is in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password.
    pub credentials: Option<(Vec<u8>, Vec<u8>)>,
}

impl Proxy {
    /// Returns the URL under which it is connected to.
    pub(super) fn address(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }

    /// Returns what it asks for in `Proxy-Authorization` (RFC 7617).
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

/// A server, by what a connection to it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether it speaks TLS.
    pub is_https: bool,
    /// An IPv6 address is in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Target {
    /// Returns the server of a URL; `None` where it names none.
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

    /// Returns the host when it is an IP address.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.bare_host().parse().ok()
    }

    /// Returns `http://host` or `http://host:port`, which stands before the path in a request to a proxy.
    fn origin(&self) -> String {
        let (scheme, own_port) = if self.is_https { ("https", 443) } else { ("http", 80) };
        match self.port == own_port {
            true => format!("{scheme}://{}", self.host),
            false => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// Which proxy leads to which server; who knows the environment decides.
#[derive(Clone)]
pub struct Proxies(Arc<Choose>);

type Choose = dyn Fn(&Target) -> Result<Option<Proxy>, String> + Send + Sync;

impl Proxies {
    /// Leads to every server directly.
    pub fn none() -> Self {
        Self::chosen_by(|_| Ok(None))
    }

    /// Asks this function, which fails with the reason why the proxy can't be used.
    pub fn chosen_by(choose: impl Fn(&Target) -> Result<Option<Proxy>, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(choose))
    }

    /// Returns the way to a server.
    pub(super) fn way_to(&self, target: &Target) -> Result<Way, ConnectFault> {
        let proxy = (self.0)(target).map_err(ConnectFault::new)?;
        let Some(proxy) = proxy else { return Ok(Way::Direct) };
        let leads = match proxy.kind {
            ProxyKind::Http { .. } if target.is_https => Leads::ByTunnel,
            ProxyKind::Http { .. } => Leads::ByAbsoluteForm,
            ProxyKind::Socks4 { .. } | ProxyKind::Socks5 { .. } => Leads::ByTunnel,
        };
        Ok(Way::Through(Arc::new(proxy), leads))
    }

    /// Returns a URL as errors name it: with the proxy that leads there.
    pub(super) fn described(&self, url: &str) -> String {
        let target = url.parse().ok().and_then(|uri| Target::of(&uri));
        match target.map(|target| self.way_to(&target)) {
            Some(Ok(Way::Through(proxy, _))) => format!("{url} through the proxy {proxy}"),
            _ => url.to_owned(),
        }
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies")
    }
}

/// The way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Through(Arc<Proxy>, Leads),
}

/// How a proxy leads to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// The proxy gets the request itself, with the whole URL (RFC 9112, section 3.2.2): plain HTTP. Many proxies open
    /// tunnels to port 443 only.
    ByAbsoluteForm,
    /// The proxy connects, and then passes bytes: `CONNECT` or SOCKS.
    ByTunnel,
}

/// Returns the head of a request in the form for a proxy: with the whole URL, and the proxy's own authorization.
///
/// `None` when this is no head of a request in origin form.
pub(super) fn in_absolute_form(head: &[u8], target: &Target, authorization: Option<&str>) -> Option<Vec<u8>> {
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
    fn plain_http_goes_by_absolute_form_and_tls_by_a_tunnel() {
        let target = |url: &str| Target::of(&url.parse().expect(url)).expect(url);
        for (kind, url, expected) in [
            (ProxyKind::Http { over_tls: false }, "http://opik/api", Leads::ByAbsoluteForm),
            (ProxyKind::Http { over_tls: true }, "http://opik/api", Leads::ByAbsoluteForm),
            (ProxyKind::Http { over_tls: false }, "https://opik/api", Leads::ByTunnel),
            (ProxyKind::Socks5 { resolves: true }, "http://opik/api", Leads::ByTunnel),
            (ProxyKind::Socks4 { resolves: false }, "https://opik/api", Leads::ByTunnel),
        ] {
            let proxies = Proxies::chosen_by(move |_| Ok(Some(proxy(kind))));
            let way = proxies.way_to(&target(url)).expect("usable");
            assert!(matches!(&way, Way::Through(_, leads) if *leads == expected), "{kind:?} {url}: {way:?}");
        }
        assert_eq!(Proxies::none().way_to(&target("http://opik")).expect("usable"), Way::Direct);
    }

    #[test]
    fn errors_name_the_proxy_without_its_password() {
        let proxies = Proxies::chosen_by(|_| Ok(Some(proxy(ProxyKind::Socks5 { resolves: true }))));
        assert_eq!(proxies.described("http://h/api"), "http://h/api through the proxy socks5h://proxy:3128");
        assert_eq!(Proxies::none().described("http://h/api"), "http://h/api");
        assert!(!format!("{:?}", proxy(ProxyKind::Http { over_tls: true })).contains("4717"));
    }

    #[test]
    fn a_head_is_put_into_absolute_form() {
        let target = Target { is_https: false, host: "opik.test".into(), port: 80 };
        let other = Target { port: 8080, ..target.clone() };
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
