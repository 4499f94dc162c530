//! Detects the version of HTTP that a client speaks from the first bytes of its connection, as nginx does.
//!
//! A client that speaks HTTP/2 without TLS and without an upgrade ("prior knowledge", RFC 9113, section 3.3) sends a
//! fixed preface first, which is not an HTTP/1 request.

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpVersion {
    /// HTTP/1, or something that is not HTTP at all.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Returns the version of a connection that begins with these bytes; `None` while they fit both.
pub(super) fn detect_version(begun: &[u8]) -> Option<HttpVersion> {
    if begun.starts_with(PREFACE) {
        return Some(HttpVersion::Http2);
    }
    (!PREFACE.starts_with(begun)).then_some(HttpVersion::Http1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_preface_is_http2() {
        for (begun, expected) in [
            (&b""[..], None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(HttpVersion::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Some(HttpVersion::Http2)),
            (b"PO", Some(HttpVersion::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nGET", Some(HttpVersion::Http1)),
            (b"PRI * HTTP/1.1\r\n", Some(HttpVersion::Http1)),
            (b"pri", Some(HttpVersion::Http1)),
            (b"\r\nPRI", Some(HttpVersion::Http1)),
            (b"GET / HTTP/1.1\r\n", Some(HttpVersion::Http1)),
            (b"\x16\x03\x01", Some(HttpVersion::Http1)),
        ] {
            assert_eq!(detect_version(begun), expected, "{:?}", String::from_utf8_lossy(begun));
        }
    }
}
