//! Which version of HTTP a client speaks: told by the first bytes of its connection, as nginx does it.
//!
//! A client that speaks HTTP/2 without TLS and without asking ("prior knowledge", RFC 9113, section 3.3) begins with a
//! fixed text that is no request of HTTP/1.

/// What a connection of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// HTTP/1, or what is no HTTP at all.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Returns what a connection that begins with these bytes speaks; `None` as long as they tell nothing.
pub(super) fn spoken(begun: &[u8]) -> Option<Spoken> {
    if begun.starts_with(PREFACE) {
        return Some(Spoken::Http2);
    }
    (!PREFACE.starts_with(begun)).then_some(Spoken::Http1)
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
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Spoken::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Some(Spoken::Http2)),
            (b"PO", Some(Spoken::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nGET", Some(Spoken::Http1)),
            (b"PRI * HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"pri", Some(Spoken::Http1)),
            (b"\r\nPRI", Some(Spoken::Http1)),
            (b"GET / HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"\x16\x03\x01", Some(Spoken::Http1)),
        ] {
            assert_eq!(spoken(begun), expected, "{:?}", String::from_utf8_lossy(begun));
        }
    }
}
