//! Hosts, authorities and origins, parsed strictly into the one form in which they are compared.

use std::net::{IpAddr, Ipv6Addr};

use http::Uri;

/// A host with its port, in the one form in which it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Ip(IpAddr),
    /// In lower case, without a trailing dot.
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) scheme: String,
    pub(super) authority: Authority,
}

impl Authority {
    /// Parses `host[:port]` strictly; `None` for everything else, including user information.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (ip, rest) = rest.split_once(']')?;
                // A zone names an interface, not a host.
                let ip: Ipv6Addr = ip.split('%').next()?.parse().ok()?;
                let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
                (Host::Ip(IpAddr::V6(ip).to_canonical()), port)
            }
            None => {
                let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                (Host::parse(host)?, port)
            }
        };
        let port = match port {
            None | Some("") => None,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { host, port })
    }
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        const NAME_BYTES_MAX: usize = 253;
        const LABEL_BYTES_MAX: usize = 63;

        let text = text.strip_suffix('.').unwrap_or(text);
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self::Ip(ip.to_canonical()));
        }
        let name = text.to_ascii_lowercase();
        let is_label = |label: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(is_plain)
        };
        let last = name.rsplit('.').next().unwrap_or("");
        // `2130706433`, `0x7f.1`, `0177.1`: addresses to some programs, and never names.
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        let is_name = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label) && !is_number;
        is_name.then_some(Self::Name(name))
    }
}

impl Origin {
    /// Parses an `Origin` header: `scheme://host[:port]`. `null` is not an origin.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (scheme, rest) = std::str::from_utf8(text).ok()?.split_once("://")?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
            return None;
        }
        Some(Self { scheme: scheme.to_ascii_lowercase(), authority: Authority::parse(rest.as_bytes())? })
    }

    /// Returns the origin of an absolute URL.
    pub(super) fn of_url(url: &[u8]) -> Option<Self> {
        let url = std::str::from_utf8(url).ok()?;
        let uri: Uri = url.parse().ok()?;
        // The authority may have user information, which is not part of an origin.
        let authority = uri.authority()?.as_str();
        let host = authority.rsplit('@').next().unwrap_or(authority);
        Some(Self { scheme: uri.scheme_str()?.to_ascii_lowercase(), authority: Authority::parse(host.as_bytes())? })
    }

    pub(super) fn is_web(&self) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
    }

    fn default_port(&self) -> Option<u16> {
        match self.scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        }
    }

    /// Returns the authority with its port, even if that is the default one.
    pub(super) fn full(&self) -> Authority {
        Authority { port: self.authority.port.or(self.default_port()), ..self.authority.clone() }
    }

    /// Returns whether this is the origin of pages that the agent itself serves under this name. A proxy in front of
    /// it may terminate TLS.
    pub(super) fn is_at(&self, own: &Authority) -> bool {
        let own = Authority { port: own.port.or(self.default_port()), ..own.clone() };
        self.is_web() && self.full() == own
    }
}

/// Returns whether a name is a subdomain of another: `a.b` of `b`.
pub(super) fn is_below(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}
