//! The address of an Opik server.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::Uri;

/// The base URL of an Opik server's API, such as `https://www.comet.com/opik/api`.
///
/// Only `http` and `https`; no user, query or fragment; no trailing slash, so that a request's path can be
/// appended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    is_https: bool,
    /// An IPv6 address is in brackets.
    host: String,
    port: Option<u16>,
    /// Empty, or starting with a slash.
    path: String,
}

/// Why a text failed to parse as a server address. It does not quote the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerUrlError {
    #[error("not a URL that starts with http:// or https://")]
    NotHttp,
    #[error("not a valid URL")]
    Invalid,
    #[error("a user name or password is not allowed here")]
    UserInfo,
    #[error("a query or fragment is not allowed here")]
    QueryOrFragment,
}

impl ServerUrl {
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Returns the host as in the URL: an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port, or the scheme's default port.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.is_https { 443 } else { 80 })
    }

    /// Returns the path without a trailing slash: `/opik/api`, or empty.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the URL of a path and query below this base; `below` starts with a slash.
    pub fn join(&self, below: &str) -> String {
        format!("{self}{below}")
    }

    /// Returns whether this is Opik's cloud, by the Python SDK's rule.
    pub fn is_cloud(&self) -> bool {
        self.is_https && self.host == "www.comet.com" && self.port() == 443
    }

    /// Returns whether the SDK treats this as a local installation: by the word `localhost`, so `127.0.0.1` is not one.
    pub fn is_localhost(&self) -> bool {
        self.to_string().contains("localhost")
    }

    /// Returns whether the host is this machine, without a DNS query.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.ends_with(".localhost")
            || self.ip().is_some_and(|ip| ip.to_canonical().is_loopback())
    }

    /// Returns the host if it is an IP address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<ServerUrl, ServerUrlError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").ok_or(ServerUrlError::NotHttp)?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(ServerUrlError::NotHttp),
        };
        if authority(rest).contains('@') {
            return Err(ServerUrlError::UserInfo);
        }
        // `Uri` silently drops a fragment.
        if rest.contains(['?', '#']) {
            return Err(ServerUrlError::QueryOrFragment);
        }
        let uri: Uri = text.parse().map_err(|_| ServerUrlError::Invalid)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(ServerUrlError::Invalid)?.to_ascii_lowercase();
        // `Uri` parses `host:`, `host:0` and a port above 65535 as a host without a port.
        let after_host = authority(rest).get(host.len()..).ok_or(ServerUrlError::Invalid)?;
        let port = match after_host.strip_prefix(':') {
            Some(digits) => Some(digits.parse().ok().filter(|port| *port != 0).ok_or(ServerUrlError::Invalid)?),
            None if after_host.is_empty() => None,
            None => return Err(ServerUrlError::Invalid),
        };
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(ServerUrl { is_https, host, port, path })
    }
}

/// Returns the URL that was probably meant by a text without a scheme, such as `127.0.0.1:5173`; `None` if there is none,
/// or if the text may hold a password.
pub(crate) fn with_scheme(text: &str) -> Option<ServerUrl> {
    let text = text.trim();
    if text.contains("://") || text.contains(['@', '\\', ' ']) {
        return None;
    }
    let plain: ServerUrl = format!("http://{text}").parse().ok()?;
    let is_host = plain.is_loopback() || plain.port.is_some() || plain.host.contains('.');
    let is_https = plain.port.is_none() && plain.ip().is_none() && !plain.is_loopback();
    let url = ServerUrl { is_https, ..plain };
    let path = match (url.path.is_empty(), url.is_cloud()) {
        (true, true) => "/opik/api".to_owned(),
        (true, false) => "/api".to_owned(),
        (false, _) => url.path.clone(),
    };
    is_host.then_some(ServerUrl { path, ..url })
}

/// Returns why a text can't be used as the address of a server, and which address was probably meant.
pub(crate) fn explain(text: &str, error: ServerUrlError) -> String {
    match with_scheme(text).filter(|_| error == ServerUrlError::NotHttp) {
        Some(url) => format!("{error}; did you mean {url}?"),
        None => error.to_string(),
    }
}

/// Masks user name and password in the authority of `text`.
pub(super) fn hide_user_info(text: &str) -> String {
    let scheme_bytes = text.find("://").map_or(0, |start| start + "://".len());
    let (scheme, rest) = text.split_at(scheme_bytes);
    // Up to the last `@` before the path, or of the whole text if a `/` may be part of the password.
    match rest.rfind('@') {
        Some(at) => format!("{scheme}***{}", &rest[at..]),
        None => text.to_owned(),
    }
}

fn authority(after_scheme: &str) -> &str {
    after_scheme.split(['/', '?', '#', '\\']).next().unwrap_or_default()
}

/// Why the address inside an API key can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyUrlError {
    #[error("what follows the * is not base64 of JSON")]
    NotJson,
    #[error("the baseUrl inside the key: {0}")]
    Url(#[from] ServerUrlError),
}

/// Extracts the server address from an API key of the form `<key>*<base64 of {"baseUrl": ...}>`.
///
/// Like the SDK: padding is optional; nothing after the `*`, or more than one `*`, means no address; and the address is
/// joined as a URL, so that `https://host/base` becomes `https://host/opik/api`.
pub fn inside_api_key(key: &str) -> Result<Option<ServerUrl>, ApiKeyUrlError> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);

    let mut parts = key.split('*').skip(1);
    let (Some(attributes), None) = (parts.next(), parts.next()) else {
        return Ok(None);
    };
    let attributes = attributes.trim();
    if attributes.is_empty() {
        return Ok(None);
    }
    let json = BASE64.decode(attributes.trim_end_matches('=')).map_err(|_| ApiKeyUrlError::NotJson)?;
    let attributes: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&json).map_err(|_| ApiKeyUrlError::NotJson)?;
    match attributes.get("baseUrl") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(base)) => {
            let is_host_only = base.split_once("://").is_none_or(|(_, rest)| !rest.contains('/'));
            let folder =
                if is_host_only { format!("{base}/") } else { base[..=base.rfind('/').unwrap_or(0)].to_owned() };
            Ok(Some(format!("{folder}opik/api/").parse()?))
        }
        Some(_) => Err(ApiKeyUrlError::NotJson),
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

    use super::*;

    fn url(text: &str) -> ServerUrl {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn trailing_slashes_are_dropped() {
        let cases = [
            ("https://www.comet.com/opik/api/", "https://www.comet.com/opik/api", 443),
            ("HTTP://LocalHost:5173/api", "http://localhost:5173/api", 5173),
            ("http://opik", "http://opik", 80),
            ("http://opik//", "http://opik", 80),
            ("http://[::1]:8080/api/", "http://[::1]:8080/api", 8080),
            (" http://127.0.0.1:6745 ", "http://127.0.0.1:6745", 6745),
            ("https://h/a%20b", "https://h/a%20b", 443),
        ];
        for (text, shown, port) in cases {
            assert_eq!(url(text).to_string(), shown);
            assert_eq!(url(text).port(), port, "{text}");
            assert_eq!(url(shown), url(text), "what is shown reads back");
        }
        assert_eq!(url("http://h/api/").join("/is-alive/ping"), "http://h/api/is-alive/ping");
    }

    #[test]
    fn invalid_server_urls_are_rejected() {
        let cases = [
            ("", ServerUrlError::NotHttp),
            ("localhost:5173/api", ServerUrlError::NotHttp),
            ("ftp://h/", ServerUrlError::NotHttp),
            ("http://", ServerUrlError::Invalid),
            ("http:///api", ServerUrlError::Invalid),
            ("http://h:70000/", ServerUrlError::Invalid),
            ("http://h:/", ServerUrlError::Invalid),
            ("http://h:0/", ServerUrlError::Invalid),
            ("http://h:x/", ServerUrlError::Invalid),
            ("http://a b/", ServerUrlError::Invalid),
            ("http://user:secret@h/", ServerUrlError::UserInfo),
            ("http://h/?a=b", ServerUrlError::QueryOrFragment),
            ("http://h/#a", ServerUrlError::QueryOrFragment),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<ServerUrl>(), Err(error), "{text}");
        }
    }

    #[test]
    fn an_address_without_a_scheme_is_offered_one() {
        for (text, offered) in [
            ("127.0.0.1:21600", Some("http://127.0.0.1:21600/api")),
            ("localhost:5173/api", Some("http://localhost:5173/api")),
            ("localhost", Some("http://localhost/api")),
            ("opik.example/opik/api/", Some("https://opik.example/opik/api")),
            ("www.comet.com", Some("https://www.comet.com/opik/api")),
            ("opik.example:8080", Some("http://opik.example:8080/api")),
            ("ftp://h/", None),
            ("user:secret@h:80", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(with_scheme(text).map(|url| url.to_string()).as_deref(), offered, "{text}");
        }
        let words = explain("127.0.0.1:21600", ServerUrlError::NotHttp);
        assert_eq!(words, "not a URL that starts with http:// or https://; did you mean http://127.0.0.1:21600/api?");
        assert_eq!(explain("http://h:0", ServerUrlError::Invalid), "not a valid URL");
    }

    #[test]
    fn passwords_are_masked_in_any_position() {
        assert_eq!(hide_user_info("http://user:pa@ss@h/x"), "http://***@h/x");
        assert_eq!(hide_user_info("http://user:pa/ss@h"), "http://***@h");
        assert_eq!(hide_user_info("user:secret@h"), "***@h");
        assert_eq!(hide_user_info("http://h/x"), "http://h/x");
    }

    #[test]
    fn cloud_and_localhost_detection_matches_the_sdk() {
        assert!(url("https://www.comet.com/opik/api/").is_cloud());
        assert!(!url("http://www.comet.com/opik/api/").is_cloud());
        assert!(url("http://localhost:5173/api").is_localhost());
        assert!(!url("http://127.0.0.1:5173/api").is_localhost());
        for text in ["http://localhost/", "http://127.0.0.9/", "http://[::1]/", "http://[::ffff:127.0.0.1]/"] {
            assert!(url(text).is_loopback(), "{text}");
        }
        assert!(!url("http://10.0.0.1/").is_loopback());
    }

    #[test]
    fn api_keys_may_embed_a_server_address() {
        let key = |json: &str| format!("abc*{}", STANDARD.encode(json));
        let cases = [
            (r#"{"baseUrl":"https://opik.example"}"#, "https://opik.example/opik/api"),
            (r#"{"baseUrl":"https://opik.example/"}"#, "https://opik.example/opik/api"),
            (r#"{"baseUrl":"https://opik.example/base"}"#, "https://opik.example/opik/api"),
            (r#"{"baseUrl":"https://opik.example/base/"}"#, "https://opik.example/base/opik/api"),
        ];
        for (json, expected) in cases {
            assert_eq!(inside_api_key(&key(json)), Ok(Some(url(expected))), "{json}");
            let unpadded = format!("abc*{}", STANDARD_NO_PAD.encode(json));
            assert_eq!(inside_api_key(&unpadded), Ok(Some(url(expected))), "{json}");
        }
        for plain in ["abc", "abc*", "a*b*c", &key("{}"), &key(r#"{"baseUrl":null}"#)] {
            assert_eq!(inside_api_key(plain), Ok(None), "{plain}");
        }
        for bad in ["abc*!!", &key("not json"), &key("[]"), &key(r#"{"baseUrl":1}"#)] {
            assert_eq!(inside_api_key(bad), Err(ApiKeyUrlError::NotJson), "{bad}");
        }
        assert_eq!(inside_api_key(&key(r#"{"baseUrl":"x"}"#)), Err(ApiKeyUrlError::Url(ServerUrlError::NotHttp)));
    }
}
