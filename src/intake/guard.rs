//! Who may talk to the agent: the intake token, the `Host` of whoever reads the agent's own pages.

use std::net::IpAddr;

use http::request::Parts;
use hyper::header::{HOST, HeaderValue, ORIGIN};
use hyper::{HeaderMap, Version};

/// The header that carries the intake token.
pub const TOKEN_HEADER: &str = "x-opik-offline-token";
/// The path prefix that carries it for clients that can't send headers: `/-/token/<token>/api/...`.
pub const TOKEN_PREFIX: &str = "/-/token/";

/// Takes the token off a path that carries one; returns it and the path that is left.
pub fn split_token(path: &str) -> (Option<&str>, &str) {
    let Some(rest) = path.strip_prefix(TOKEN_PREFIX) else { return (None, path) };
    match rest.find('/') {
        Some(slash) => (Some(&rest[..slash]), &rest[slash..]),
        None => (Some(rest), "/"),
    }
}

/// Says whether a request carries the token that is asked for.
pub fn is_allowed(expected: Option<&str>, in_path: Option<&str>, headers: &HeaderMap) -> bool {
    let Some(expected) = expected else { return true };
    let in_header = headers.get(TOKEN_HEADER).map(HeaderValue::as_bytes);
    in_path.map(str::as_bytes).or(in_header).is_some_and(|given| same(given, expected.as_bytes()))
}

/// Compares in a time that depends on the lengths only, so that a token can't be guessed byte by byte.
fn same(a: &[u8], b: &[u8]) -> bool {
    let mut difference = u8::from(a.len() != b.len());
    for (index, byte) in b.iter().enumerate() {
        difference |= byte ^ a.get(index).copied().unwrap_or(0);
    }
    std::hint::black_box(difference) == 0
}

/// Says what is wrong with a request's head that hyper leaves to its user (RFC 9112, section 3.2).
pub fn head_fault(head: &Parts) -> Option<&'static str> {
    let hosts = head.headers.get_all(HOST).iter().count();
    let is_missing = hosts == 0 && head.version == Version::HTTP_11;
    (hosts > 1 || is_missing).then_some("the request needs exactly one Host header")
}

/// Says whether the agent's own pages may be shown for this `Host`: an address, or `localhost`.
///
/// A page in a browser could otherwise read them by a name of its own that it points at the loopback address.
pub fn is_own_host(headers: &HeaderMap, listen_host: &str) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.eq_ignore_ascii_case(listen_host) || name.parse::<IpAddr>().is_ok()
}

/// Says whether a request comes from no web page, or from one that the `Host` itself has served: a browser names the page
/// in `Origin` whenever a script of another site asks.
pub fn is_own_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let place = origin.as_bytes().strip_prefix(b"http://").or_else(|| origin.as_bytes().strip_prefix(b"https://"));
    place.is_some_and(|place| headers.get(HOST).is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_pages_are_not_shown_to_pages_of_other_sites() {
        let from = |origin: Option<&'static str>| {
            let mut headers = headers("host", "127.0.0.1:6745");
            headers.extend(origin.map(|origin| (ORIGIN, HeaderValue::from_static(origin))));
            is_own_origin(&headers)
        };
        assert!(from(None), "no browser");
        assert!(from(Some("http://127.0.0.1:6745")));
        for other in ["http://evil.example", "http://127.0.0.1:5173", "null", "", "file://127.0.0.1:6745"] {
            assert!(!from(Some(other)), "{other}");
        }
    }

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_static(value))])
    }

    #[test]
    fn a_token_is_taken_from_header_or_path_and_compared_whole() {
        let none = HeaderMap::new();
        assert!(is_allowed(None, None, &none));
        assert!(is_allowed(Some("secret"), Some("secret"), &none));
        assert!(is_allowed(Some("secret"), None, &headers(TOKEN_HEADER, "secret")));
        for wrong in ["", "secre", "secrets", "Secret"] {
            assert!(!is_allowed(Some("secret"), Some(wrong), &none), "{wrong}");
        }
        assert!(!is_allowed(Some("secret"), None, &none));
        assert_eq!(split_token("/-/token/abc/api/v1/private/traces"), (Some("abc"), "/api/v1/private/traces"));
        assert_eq!(split_token("/-/token/abc"), (Some("abc"), "/"));
        assert_eq!(split_token("/api/x"), (None, "/api/x"));
    }

    #[test]
    fn the_agents_pages_are_shown_to_addresses_only() {
        for (host, expected) in [
            ("127.0.0.1:6745", true),
            ("[::1]:6745", true),
            ("localhost", true),
            ("LOCALHOST:6745", true),
            ("agent.internal:6745", true),
            ("evil.example", false),
            ("evil.example:6745", false),
            ("127.0.0.1.evil.example", false),
        ] {
            assert_eq!(is_own_host(&headers("host", host), "agent.internal"), expected, "{host}");
        }
    }
}
