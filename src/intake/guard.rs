//! Access to the agent: the intake token, and what the head of a request must have. For web pages see [`super::site`].

use std::borrow::Cow;

use http::request::Parts;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{HeaderMap, Version};

pub use crate::protocol::hub::TOKEN_HEADER;
use crate::protocol::path::below;

/// The path prefix that carries it for clients that can't send headers: `/-/token/<token>/api/...`, percent-encoded.
pub const TOKEN_PREFIX: &str = "/-/token/";

/// Splits the token off a path that has one; returns it as it is encoded there, and the rest of the path.
///
/// The slashes of a token need not be encoded: it has as many segments as `expected`. Any spelling of the prefix is
/// found, so a token is never sent to the server.
pub fn split_token<'path>(path: &'path str, expected: Option<&str>) -> (Option<&'path str>, &'path str) {
    let prefix = TOKEN_PREFIX.trim_end_matches('/');
    let Some(rest) = below(path, prefix).and_then(|rest| rest.strip_prefix('/')) else { return (None, path) };
    let slashes = |text: &[u8]| text.iter().filter(|byte| **byte == b'/').count();
    let expected = expected.map_or(0, |expected| slashes(expected.as_bytes()));
    let (mut from, mut found) = (0, 0);
    loop {
        let Some(end) = rest[from..].find('/').map(|at| from + at) else { return (Some(rest), "/") };
        found += slashes(&decoded(&rest[from..end]));
        if found >= expected {
            return (Some(&rest[..end]), &rest[end..]);
        }
        found += 1;
        from = end + 1;
    }
}

/// Returns whether a request has the expected token: in a header, or in its path, percent-encoded or not.
pub fn is_allowed(expected: Option<&str>, in_path: Option<&str>, headers: &HeaderMap) -> bool {
    let Some(expected) = expected else { return true };
    let in_header = headers.get(TOKEN_HEADER).map(HeaderValue::as_bytes);
    match in_path {
        // Both are compared in any case, so that the time reveals nothing.
        Some(token) => same(token.as_bytes(), expected.as_bytes()) | same(&decoded(token), expected.as_bytes()),
        None => in_header.is_some_and(|given| same(given, expected.as_bytes())),
    }
}

fn decoded(text: &str) -> Cow<'_, [u8]> {
    percent_encoding::percent_decode_str(text).into()
}

/// Compares in constant time for given lengths, so that a token can't be guessed byte by byte.
fn same(a: &[u8], b: &[u8]) -> bool {
    let mut difference = u8::from(a.len() != b.len());
    for (index, byte) in b.iter().enumerate() {
        difference |= byte ^ a.get(index).copied().unwrap_or(0);
    }
    std::hint::black_box(difference) == 0
}

/// Returns what is wrong with a request's head that hyper does not check (RFC 9112, section 3.2; with a second
/// `Authorization`, programs that read the first and the last would see different clients, and nginx refuses it, too).
pub fn head_fault(head: &Parts) -> Option<&'static str> {
    let hosts = head.headers.get_all(HOST).iter().count();
    let is_missing = hosts == 0 && head.version >= Version::HTTP_11;
    if hosts > 1 || is_missing {
        return Some("the request needs exactly one Host header");
    }
    let credentials = head.headers.get_all(AUTHORIZATION).iter().count();
    (credentials > 1).then_some("the request has more than one Authorization header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_static(value))])
    }

    #[test]
    fn a_token_is_read_from_header_or_path_and_compared_whole() {
        let none = HeaderMap::new();
        assert!(is_allowed(None, None, &none));
        assert!(is_allowed(Some("secret"), Some("secret"), &none));
        assert!(is_allowed(Some("secret"), None, &headers(TOKEN_HEADER, "secret")));
        for wrong in ["", "secre", "secrets", "Secret"] {
            assert!(!is_allowed(Some("secret"), Some(wrong), &none), "{wrong}");
        }
        assert!(!is_allowed(Some("secret"), None, &none));
        assert_eq!(split_token("/-/token/abc/api/v1/private/traces", None), (Some("abc"), "/api/v1/private/traces"));
        assert_eq!(split_token("/-/token/abc", Some("abc")), (Some("abc"), "/"));
        assert_eq!(split_token("/api/x", Some("a/b")), (None, "/api/x"));
        for path in
            ["//-/token/abc//api//x", "/./-//token/abc//api//x", "/%2d/t%6Fken/abc//api//x", "/-;y/token/abc//api//x"]
        {
            assert_eq!(split_token(path, Some("abc")), (Some("abc"), "//api//x"), "{path}");
        }
        assert_eq!(split_token("/-/token", None), (None, "/-/token"));
        assert_eq!(split_token("/-/tokens/abc/x", None), (None, "/-/tokens/abc/x"));
    }

    #[test]
    fn a_token_of_any_visible_characters_is_parsed_in_every_encoding() {
        for (token, written) in [
            ("q8/Xk+0a==", "q8%2FXk%2B0a%3D%3D"),
            ("q8/Xk+0a==", "q8/Xk+0a=="),
            ("q8/Xk+0a==", "q8%2fXk+0a=="),
            ("a//b/", "a//b/"),
            ("a//b/", "a%2F/b%2F"),
            ("/", "%2F"),
            ("50%", "50%25"),
            ("50%", "50%"),
            ("a%2Fb", "a%252Fb"),
            ("a%2Fb", "a%2Fb"),
            ("a?b#c", "a%3Fb%23c"),
            ("plain", "pl%61in"),
        ] {
            let path = format!("/-/token/{written}/api/v1/private/traces");
            let (found, rest) = split_token(&path, Some(token));
            assert_eq!((found, rest), (Some(written), "/api/v1/private/traces"), "{token}");
            assert!(is_allowed(Some(token), found, &HeaderMap::new()), "{token} as {written}");
        }
        for wrong in ["q8", "q8/", "q8/Xk+0a=", "q8%2FXk%2B0a%3D%3D%3D", "q8/Xk 0a==", "Q8/Xk+0a=="] {
            let path = format!("/-/token/{wrong}/api/v1/private/traces");
            let (found, _) = split_token(&path, Some("q8/Xk+0a=="));
            assert!(!is_allowed(Some("q8/Xk+0a=="), found, &HeaderMap::new()), "{wrong}");
        }
    }
}
