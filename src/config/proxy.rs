//! The forward proxy between the agent and its servers, if any.
//!
//! `_OPIK_HTTP_PROXY` is the SDK's own variable and always wins. The standard variables are ignored for a server on
//! this machine, which no proxy can reach, and for hosts in `NO_PROXY`. Precedence is Python's,
//! because the SDK is Python: lower case before upper case, and an empty lower-case variable hides the other. curl
//! agrees on the first; Go prefers upper case.

use std::fmt;

use percent_encoding::percent_decode_str;

use super::error::ConfigError;
use super::no_proxy::{NoProxy, ProxyDestination};
use super::server_url::{ServerUrl, hide_user_info};
use super::setting::Setting;
use super::sources::{Layers, Raw, Source, Sourced};
use super::value::Value;
use super::wrapped::proxy_behind;

/// The protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyScheme {
    /// HTTP, in the clear.
    Http,
    /// HTTP over TLS.
    Https,
    /// SOCKS 4, which takes IPv4 addresses only.
    Socks4,
    /// SOCKS 4a, which resolves names itself.
    Socks4a,
    /// SOCKS 5, with names resolved here.
    Socks5,
    /// SOCKS 5, which resolves names itself.
    Socks5h,
}

impl ProxyScheme {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "https" => Self::Https,
            "socks4" => Self::Socks4,
            "socks4a" => Self::Socks4a,
            "socks5" => Self::Socks5,
            // The spelling that desktop environments use in all_proxy.
            "socks5h" | "socks" => Self::Socks5h,
            _ => return None,
        })
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            _ => 1080,
        }
    }
}

/// The address of a proxy. Its password is masked when displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    text: String,
    scheme: ProxyScheme,
    host: String,
    port: u16,
    user_info: Option<String>,
}

impl ProxyUrl {
    /// Returns the URL with its user name and password.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns the proxy's protocol.
    pub fn scheme(&self) -> ProxyScheme {
        self.scheme
    }

    /// Returns the host as in the URL: an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port, or the scheme's default port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns user name and password, for the connection itself; a name without a password has an empty one.
    pub fn credentials(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let user_info = self.user_info.as_ref()?;
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        Some((percent_decode_str(user).collect(), percent_decode_str(password).collect()))
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hide_user_info(&self.text))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

impl Value for ProxyUrl {
    fn parse(text: &str) -> Result<ProxyUrl, String> {
        // `proxy:3128` without a scheme is common; every client defaults to http.
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let scheme = ProxyScheme::parse(scheme).ok_or("not a proxy that speaks http, https, socks4 or socks5")?;
        // The last `@`, because a password may hold one.
        let (user_info, address) = match rest.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info.to_owned()).filter(|info| !info.is_empty()), address),
            None => (None, rest),
        };
        // Every client ignores a path here.
        let authority = address.split('/').next().unwrap_or_default();
        let checked: Result<ServerUrl, _> = format!("http://{authority}").parse();
        let checked = checked.map_err(|error| error.to_string())?;
        let names_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let port = if names_port { checked.port() } else { scheme.default_port() };
        let host = checked.host().to_owned();
        Ok(ProxyUrl { text, scheme, host, port, user_info })
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(text: &str) -> String {
        hide_user_info(text)
    }

    fn secrets(&self) -> Vec<String> {
        super::server_url::passwords_in(&self.text)
    }
}

/// The rules that select the proxy for a server.
#[derive(Clone, Default)]
pub struct ProxyRules {
    /// `_OPIK_HTTP_PROXY`, for all servers.
    fixed: Option<Raw>,
    for_http: Option<Raw>,
    for_https: Option<Raw>,
    no_proxy: NoProxy,
}

/// Omits the URLs, which may hold passwords.
impl fmt::Debug for ProxyRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyRules").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}

impl ProxyRules {
    pub(super) fn read(layers: &Layers<'_>, setting: &'static Setting) -> Self {
        // A web server that runs a CGI program passes a client's header `Proxy` as HTTP_PROXY (CVE-2016-5385).
        let is_cgi = layers.variable("REQUEST_METHOD").is_some();
        let upper_http = if is_cgi { None } else { Some("HTTP_PROXY") };
        let all = || layers.either_case("all_proxy", Some("ALL_PROXY"));
        let no_proxy = layers.either_case("no_proxy", Some("NO_PROXY"));
        Self {
            fixed: layers.find(setting).or_else(|| proxy_behind(layers)),
            for_http: layers.either_case("http_proxy", upper_http).or_else(all),
            for_https: layers.either_case("https_proxy", Some("HTTPS_PROXY")).or_else(all),
            no_proxy: no_proxy.map_or_else(NoProxy::default, |raw| NoProxy::parse(&raw.text.to_string_lossy())),
        }
    }

    fn find(&self, target: ProxyDestination<'_>) -> Option<&Raw> {
        if self.fixed.is_some() {
            return self.fixed.as_ref();
        }
        if target.is_loopback() || self.no_proxy.names(target) {
            return None;
        }
        if target.is_https { self.for_https.as_ref() } else { self.for_http.as_ref() }
    }

    /// Returns the rules of the standard variables, for other services than the Opik server.
    #[must_use]
    pub fn without_the_servers_own(&self) -> Self {
        Self { fixed: None, ..self.clone() }
    }

    /// Returns the proxy for a server; `None` for a direct connection.
    ///
    /// # Errors
    ///
    /// The variable that failed to parse and the reason, without the password that it may hold.
    pub fn proxy_for(&self, is_https: bool, host: &str, port: u16) -> Result<Option<ProxyUrl>, String> {
        let Some(raw) = self.find(ProxyDestination { is_https, host, port }) else { return Ok(None) };
        Option::<ProxyUrl>::read(&raw.text, None).map_err(|reason| {
            let shown = hide_user_info(raw.text.to_string_lossy().trim());
            let place = match &raw.source {
                Source::Environment { name } => (*name).to_owned(),
                other => other.to_string(),
            };
            format!("cannot use the proxy {} of {place}: {reason}", shown.escape_debug())
        })
    }
}

/// Resolves the proxy for the configured server.
pub(super) fn resolve(
    layers: &Layers<'_>,
    setting: &'static Setting,
    upstream: &ServerUrl,
) -> Result<Sourced<Option<ProxyUrl>>, ConfigError> {
    let rules = ProxyRules::read(layers, setting);
    if let Some(raw) = rules.fixed {
        return layers.parse(setting, raw);
    }
    let target = ProxyDestination { is_https: upstream.is_https(), host: upstream.host(), port: upstream.port() };
    match rules.find(target) {
        Some(raw) => layers.parse(setting, raw.clone()),
        None => layers.default(setting),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_urls_parse_and_mask_their_password() {
        let proxy = ProxyUrl::parse("http://user:p@ss@proxy:3128").expect("valid");
        assert_eq!(proxy.expose(), "http://user:p@ss@proxy:3128");
        assert_eq!(format!("{proxy} {proxy:?}"), "http://***@proxy:3128 ProxyUrl(http://***@proxy:3128)");
        assert_eq!(proxy.credentials(), Some((b"user".to_vec(), b"p@ss".to_vec())));
        assert_eq!(ProxyUrl::parse("proxy:3128").expect("valid").expose(), "http://proxy:3128");
        for bad in ["ftp://proxy:1080", "http://", "http://proxy:99999", "socks6://proxy", "socks5://:1080"] {
            assert!(ProxyUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_parts_of_a_proxy_url_are_parsed() {
        for (text, scheme, host, port, credentials) in [
            ("http://proxy/", ProxyScheme::Http, "proxy", 80, None),
            ("https://proxy", ProxyScheme::Https, "proxy", 443, None),
            ("SOCKS5://proxy", ProxyScheme::Socks5, "proxy", 1080, None),
            ("socks5h://me@[::1]:9", ProxyScheme::Socks5h, "[::1]", 9, Some(("me", ""))),
            ("socks://[::1]", ProxyScheme::Socks5h, "[::1]", 1080, None),
            ("socks4://me:x@10.0.0.1:1", ProxyScheme::Socks4, "10.0.0.1", 1, Some(("me", "x"))),
            ("socks4a://h", ProxyScheme::Socks4a, "h", 1080, None),
            ("http://a%40b:c%2Fd:e@h:1", ProxyScheme::Http, "h", 1, Some(("a@b", "c/d:e"))),
            ("http://a:b/c@h:1", ProxyScheme::Http, "h", 1, Some(("a", "b/c"))),
            ("http://@h:1", ProxyScheme::Http, "h", 1, None),
        ] {
            let proxy = ProxyUrl::parse(text).expect(text);
            assert_eq!((proxy.scheme(), proxy.host(), proxy.port()), (scheme, host, port), "{text}");
            let expected = credentials.map(|(user, password)| (user.into(), password.into()));
            assert_eq!(proxy.credentials(), expected, "{text}");
        }
    }
}
