//! The proxy in front of the Opik server, if any.

use std::fmt;

use super::error::ConfigError;
use super::server_url::{ServerUrl, hide_user_info};
use super::settings::{self, Setting};
use super::sources::{Layers, Sourced};
use super::value::Value;

/// The address of an HTTP proxy. A password in it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(String);

impl ProxyUrl {
    /// Returns the URL with its user name and password, for the connection itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hide_user_info(&self.0))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

impl Value for ProxyUrl {
    fn parse(text: &str) -> Result<ProxyUrl, String> {
        // `proxy:3128` is how these variables are often written; every reader of them takes it for http.
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
            return Err("not a proxy that speaks http or https".to_owned());
        }
        // The last `@`, because a password may hold one.
        let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
        let checked: Result<ServerUrl, _> = format!("{scheme}://{address}").parse();
        checked.map(|_| ProxyUrl(text)).map_err(|error| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(text: &str) -> String {
        hide_user_info(text)
    }
}

/// Finds the proxy for the server that is configured.
///
/// `_OPIK_HTTP_PROXY` is the SDK's own and always wins. The variables that every client knows are left out for a
/// server on this machine, where no proxy could reach it, and for a host that `NO_PROXY` names.
pub(super) fn resolve(
    layers: &Layers<'_>,
    setting: &'static Setting,
) -> Result<Sourced<Option<ProxyUrl>>, ConfigError> {
    if let Some(raw) = layers.find(setting, None) {
        return layers.understand(setting, raw);
    }
    let upstream = settings::upstream(layers)?.value;
    if upstream.is_loopback() || is_exempt(layers, &upstream) {
        return layers.default(setting);
    }
    // Lower case first, as curl and Python do.
    let names: &[&'static str] =
        if upstream.is_https() { &["https_proxy", "HTTPS_PROXY"] } else { &["http_proxy", "HTTP_PROXY"] };
    let mut names = names.iter().chain(&["all_proxy", "ALL_PROXY"]);
    match names.find_map(|name| layers.variable(name)) {
        Some(raw) => layers.understand(setting, raw),
        None => layers.default(setting),
    }
}

fn is_exempt(layers: &Layers<'_>, upstream: &ServerUrl) -> bool {
    let Some(raw) = layers.variable("no_proxy").or_else(|| layers.variable("NO_PROXY")) else {
        return false;
    };
    let list = raw.text.to_string_lossy().to_ascii_lowercase();
    list.split(',').map(str::trim).any(|entry| is_named(upstream, entry))
}

/// Says whether an entry of `NO_PROXY` names the host: `*`, the host, a parent domain, each with a port or without.
fn is_named(upstream: &ServerUrl, entry: &str) -> bool {
    let entry = entry.strip_suffix(&format!(":{}", upstream.port())).unwrap_or(entry);
    let domain = entry.trim_start_matches('*').trim_start_matches('.');
    if domain.is_empty() {
        return entry == "*";
    }
    let host = upstream.host().trim_start_matches('[').trim_end_matches(']');
    let is_below = || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    host == domain || upstream.host() == domain || (upstream.ip().is_none() && is_below())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_and_its_password_hidden() {
        let proxy = ProxyUrl::parse("http://user:p@ss@proxy:3128").expect("valid");
        assert_eq!(proxy.expose(), "http://user:p@ss@proxy:3128");
        assert_eq!(format!("{proxy} {proxy:?}"), "http://***@proxy:3128 ProxyUrl(http://***@proxy:3128)");
        assert_eq!(ProxyUrl::parse("proxy:3128").expect("valid").expose(), "http://proxy:3128");
        for bad in ["socks5://proxy:1080", "http://", "http://proxy:99999"] {
            assert!(ProxyUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_proxy_names_hosts_and_their_domains() {
        let cases = [
            ("http://opik.example.com/", "*", true),
            ("http://opik.example.com/", "opik.example.com", true),
            ("http://opik.example.com/", "example.com", true),
            ("http://opik.example.com/", ".example.com", true),
            ("http://opik.example.com/", "*.example.com", true),
            ("http://opik.example.com:81/", "example.com:81", true),
            ("http://opik.example.com:81/", "example.com:82", false),
            ("http://badexample.com/", "example.com", false),
            ("http://10.0.0.1/", "10.0.0.1", true),
            ("http://10.0.0.1/", "0.1", false),
            ("http://[fd00::1]/", "fd00::1", true),
            ("http://h/", "", false),
        ];
        for (url, entry, expected) in cases {
            assert_eq!(is_named(&url.parse().expect("valid"), entry), expected, "{url} {entry}");
        }
    }
}
