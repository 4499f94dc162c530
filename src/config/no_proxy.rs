//! `NO_PROXY`: the hosts that bypass the proxy.
//!
//! There is no standard. The table in the test records the behaviour of Go's `httpproxy`, Python's `requests` and
//! `httpx`, and curl; where they differ, we parse an entry as most of them do, or in the only way that makes sense. An
//! entry that none of them understands matches nothing, so the proxy is used.

use std::net::IpAddr;

/// The hosts that bypass the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NoProxy(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// `*`
    Everything,
    /// `10.0.0.0/8`
    Network {
        ip: IpAddr,
        bits: u8,
    },
    Host(HostEntry),
}

/// One host or domain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostEntry {
    /// Only for URLs with this scheme (httpx): `https://opik.example`.
    scheme: Option<String>,
    /// In lower case, without the punctuation of its form.
    name: String,
    /// `*.example.com` matches subdomains, and not the domain itself.
    is_below_only: bool,
    port: Option<u16>,
}

/// The destination of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub is_https: bool,
    /// An IPv6 address may be in brackets.
    pub host: &'a str,
    pub port: u16,
}

impl Target<'_> {
    /// Returns the host when it is an IP address; an IPv4 address in the form of IPv6 is the IPv4 address.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        bare(self.host).parse().ok().map(|ip: IpAddr| ip.to_canonical())
    }

    /// Returns whether the host is this machine, without a DNS query.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.ends_with(".localhost") || self.ip().is_some_and(|ip| ip.is_loopback())
    }
}

impl NoProxy {
    /// Parses the list; entries that no client understands are skipped.
    pub(super) fn parse(list: &str) -> Self {
        let entries = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        Self(entries.filter_map(Entry::parse).collect())
    }

    /// Returns whether an entry matches the target.
    pub(super) fn names(&self, target: Target<'_>) -> bool {
        self.0.iter().any(|entry| entry.names(target))
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Everything);
        }
        let text = text.to_ascii_lowercase();
        if let Some((ip, bits)) = text.split_once('/')
            && let (Ok(ip), Ok(bits)) = (bare(ip).parse::<IpAddr>(), bits.parse::<u8>())
        {
            let bits_max = if ip.is_ipv4() { 32 } else { 128 };
            return (bits <= bits_max).then_some(Self::Network { ip, bits });
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_owned()).filter(|scheme| scheme != "all"), rest),
            None => (None, &*text),
        };
        let (name, port) = host_and_port(rest);
        let (name, is_below_only) = match name.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (name.strip_prefix('.').unwrap_or(name), false),
        };
        let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['*', '/']);
        is_name.then(|| Self::Host(HostEntry { scheme, name: name.to_owned(), is_below_only, port }))
    }

    fn names(&self, target: Target<'_>) -> bool {
        match self {
            Self::Everything => true,
            Self::Network { ip, bits } => target.ip().is_some_and(|host| is_within(host, *ip, *bits)),
            Self::Host(entry) => entry.names(target),
        }
    }
}

impl HostEntry {
    fn names(&self, target: Target<'_>) -> bool {
        let is_scheme =
            self.scheme.as_ref().is_none_or(|scheme| scheme == if target.is_https { "https" } else { "http" });
        if !is_scheme || self.port.is_some_and(|port| port != target.port) {
            return false;
        }
        if let Some(ip) = target.ip() {
            return self.name.parse().is_ok_and(|named: IpAddr| named.to_canonical() == ip);
        }
        let host = target.host.to_ascii_lowercase();
        let is_below = || host.strip_suffix(&self.name).is_some_and(|rest| rest.ends_with('.'));
        (host == self.name && !self.is_below_only) || is_below()
    }
}

/// Splits host and port; an IPv6 address without brackets has no port.
fn host_and_port(text: &str) -> (&str, Option<u16>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (bare(host), port.parse().ok()),
        _ => (bare(text), None),
    }
}

/// Returns an IPv6 address without its brackets, and every other host as it is.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn is_within(host: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            host.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(host), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            host.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::ServerUrl;

    use super::*;

    /// Each row: the list, the URL, what Go 1.26 (`golang.org/x/net` 0.62), requests 2.34, httpx 0.28 and curl 7.88
    /// did when they were run, `y` for bypass, `n` for the proxy, `-` where httpx fails; and our decision.
    #[test]
    fn no_proxy_agrees_with_go_requests_httpx_and_curl() {
        let rows = include_str!("no_proxy_oracle.txt").lines().filter(|line| !line.starts_with('#'));
        let mut read = 0;
        for row in rows {
            let columns: Vec<&str> = row.split('|').collect();
            let [list, url, answers, ours] = columns[..] else { panic!("{row}") };
            let url: ServerUrl = url.parse().expect(row);
            let target = Target { is_https: url.is_https(), host: url.host(), port: url.port() };
            assert_eq!(NoProxy::parse(list).names(target), ours == "y", "{row}");
            let alike = |answer: char| answers.chars().filter(|given| *given == answer).count();
            if alike('y') == 4 || alike('n') == 4 {
                assert!(answers.starts_with(ours), "all of them agree, and it is read otherwise here: {row}");
            }
            read += 1;
        }
        assert!(read >= 60, "only {read} rows");
    }
}
