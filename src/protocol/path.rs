//! Path normalisation, as done by the front of an Opik server.
//!
//! Clients concatenate addresses: `url_override` ends in a slash and `/v1/...` is appended, which results in
//! `/api//v1/...`. Opik's nginx decodes a path once, merges slashes and drops `.` segments, and the server behind it
//! ignores parameters (`;x=1`) and a trailing slash. [`normalise`] does the same, so that a write is recognised in
//! every spelling that reaches its endpoint. If the front does not decode (a server without nginx rejects an encoded
//! slash), the agent protects a write that the server would have rejected, and the server still rejects it.
//!
//! A stored message has the normalised path: replay may reach the server through another front, and the
//! normalised spelling means the same endpoint to all of them. A live request is forwarded verbatim.
//!
//! # Dot segments
//!
//! `..` is rejected in every spelling. A program between agent and server (nginx, a load balancer, the servlet
//! container) may resolve it, and each resolves other spellings: `%2e%2e`, `..%2f`, `..\`, `..;x`. The path that the
//! agent validates would differ from the server's: a pass-through read could be a write, or leave the API. No client of
//! Opik sends any of them. A `.`, plain or encoded once, means the same to all of them and is dropped; other spellings
//! (`.;x`, `%252e`) are rejected as well.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// Characters that are percent-encoded in a normalised path: all except those of a path segment (RFC 3986, `pchar`).
/// A semicolon would begin a parameter.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Why a path is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It has a dot segment that a program on the way could resolve.
    #[error("the path holds a segment that is . or .. in some spelling, which leads elsewhere than it says")]
    DotSegment,
    /// No server parses it: nginx and Opik's own server answer 400.
    #[error("the path holds a percent sign that encodes no character")]
    Malformed,
}

/// Normalises a path for comparison and storage: the result has a leading and no trailing slash.
///
/// # Errors
///
/// [`PathFault`] for a path with dot segments, or one that no server parses.
pub fn normalise(path: &str) -> Result<String, PathFault> {
    // Mostly it is normalised already.
    match path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_plain)) {
        true => Ok(path.to_owned()),
        false => normalise_any(path),
    }
}

/// Returns whether a segment means the same to every program: it is not empty, and has no character that is encoded or
/// that could be part of a dot segment or a parameter.
fn is_plain(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn normalise_any(path: &str) -> Result<String, PathFault> {
    let is_encoded = |after: &str| {
        let digits = after.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit) && digits != b"00")
    };
    if !path.split('%').skip(1).all(is_encoded) {
        // Of two faults, the dot segment is reported.
        return Err(if has_dot_segment(path) { PathFault::DotSegment } else { PathFault::Malformed });
    }
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    let segments: Vec<&[u8]> = significant(&decoded).collect();
    if has_dot_segment(segments.join(&b'/')) {
        return Err(PathFault::DotSegment);
    }
    let mut normal = String::with_capacity(path.len());
    for name in segments.into_iter().map(without_parameters).filter(|name| !name.is_empty()) {
        normal.push('/');
        normal.extend(percent_encode(name, ENCODED));
    }
    if normal.is_empty() {
        normal.push('/');
    }
    Ok(normal)
}

/// Returns the rest of a path below a prefix, verbatim: empty, or with a leading slash. `prefix` is
/// normalised, or empty.
///
/// Returns `None` if the path is not below the prefix, or if an encoded slash obscures the end of the prefix.
pub fn below<'path>(path: &'path str, prefix: &str) -> Option<&'path str> {
    let mut rest = path;
    for wanted in prefix.split('/').filter(|segment| !segment.is_empty()) {
        loop {
            let start = rest.strip_prefix('/')?;
            let end = start.find('/').unwrap_or(start.len());
            let (segment, after) = start.split_at(end);
            rest = after;
            let normal = if is_plain(segment) { Cow::Borrowed(segment) } else { normalise_any(segment).ok()?.into() };
            match normal.strip_prefix('/').or(Some(&normal)) {
                Some("") => {}
                Some(name) if name == wanted => break,
                _ => return None,
            }
        }
    }
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Returns the segments of a decoded path except empty ones and `.`.
fn significant(decoded: &[u8]) -> impl Iterator<Item = &[u8]> {
    decoded.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty() && *segment != b".")
}

fn without_parameters(segment: &[u8]) -> &[u8] {
    segment.split(|byte| *byte == b';').next().unwrap_or_default()
}

/// Maximum number of decodings: each program on the way may decode once.
const DECODINGS_MAX: usize = 4;

/// Returns whether a segment of a path is `.` or `..` to any program that could read it.
pub fn has_dot_segment(path: impl Into<Vec<u8>>) -> bool {
    let mut text = path.into();
    for _ in 0..=DECODINGS_MAX {
        // A program may strip parameters (`;x`) before or after decoding, and some truncate at a control character.
        let mut segments = text.split(|byte| matches!(byte, b'/' | b'\\'));
        if segments.any(is_dots) {
            return true;
        }
        let decoded = decode(&text);
        if decoded == text {
            return false;
        }
        text = decoded;
    }
    // Encoded more often than any legitimate client does.
    true
}

fn is_dots(segment: &[u8]) -> bool {
    let name = without_parameters(segment);
    let mut dots = 0;
    for byte in name {
        match byte {
            b'.' => dots += 1,
            0..=b' ' | 0x7f => {}
            _ => return false,
        }
    }
    (1..=2).contains(&dots)
}

/// Decodes once: `%2e`, IIS's `%u002e`, and overlong UTF-8 of the three relevant characters.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let found = (first == b'%').then(|| hex(after)).flatten();
        let (byte, after) = found.unwrap_or((first, after));
        rest = after;
        match (decoded.last(), byte) {
            (Some(0xc0), 0xae) => overlong(&mut decoded, b'.'),
            (Some(0xc0), 0xaf) => overlong(&mut decoded, b'/'),
            (Some(0xc1), 0x9c) => overlong(&mut decoded, b'\\'),
            _ => decoded.push(byte),
        }
    }
    decoded
}

fn overlong(decoded: &mut Vec<u8>, byte: u8) {
    decoded.pop();
    decoded.push(byte);
}

/// Parses the escape after a percent sign.
fn hex(text: &[u8]) -> Option<(u8, &[u8])> {
    let digit = |at: usize| text.get(at).and_then(|byte| (*byte as char).to_digit(16));
    let pair = |at: usize| Some(u8::try_from(digit(at)? * 16 + digit(at + 1)?).unwrap_or_default());
    match text.first() {
        Some(b'u' | b'U') if pair(1) == Some(0) => Some((pair(3)?, text.get(5..)?)),
        _ => Some((pair(0)?, text.get(2..)?)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dot_segments_are_detected_in_every_spelling() {
        for segment in [
            "..",
            ".",
            "%2e%2e",
            "%2E.",
            ".%2e",
            "%2e",
            "%252e%252e",
            "%25252e.",
            "..;",
            "..;x=1",
            ".;a",
            "..%3bx",
            "%2e%2e;x",
            "..%00",
            "..%20",
            "%09..",
            "%u002e%u002e",
            "%c0%ae%c0%ae",
            "%252525252525252e",
        ] {
            for path in [
                format!("/api/{segment}"),
                format!("/api/{segment}/x"),
                format!("/{segment}/"),
                format!("/api/v1/private/traces/{segment}/{segment}/spans"),
                format!("/api/x%2f{segment}%2Fy"),
                format!("/api/x\\{segment}\\y"),
                format!("/api/x%5c{segment}%5Cy"),
                format!("/api/x%c0%af{segment}"),
                format!("/api/x%252f{segment}"),
                format!("/api;x/{segment}/y"),
            ] {
                assert!(has_dot_segment(&*path), "{path}");
            }
        }
    }

    #[test]
    fn dots_inside_names_are_allowed() {
        for path in [
            "/",
            "//",
            "/api/v1/private/traces",
            "/api/...",
            "/api/a..b",
            "/api/..a",
            "/api/a..",
            "/.well-known/x",
            "/api/v1.2/x",
            "/api/tags/a%2Fb",
            "/api/tags/50%25",
            "/api/tags/%",
            "/api/tags/%2",
            "/api/tags/%zz",
            "/api/tags/%20",
            "/api/;/x",
            "/api/tags/%f0%9f%98%80",
            "/api/x;..",
            "/api/%u00",
            "/api/tags/100%25.5",
        ] {
            assert!(!has_dot_segment(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_path_that_needs_no_closer_look_is_normalised_as_any(path in "[/a-z0-9._;%25-]{0,20}") {
            prop_assert_eq!(normalise(&path), normalise_any(&path));
        }

        #[test]
        fn a_prefix_has_the_same_subpath_in_every_spelling(rest in "(/[a-z0-9._-]{0,8}){0,3}", dot in any::<bool>()) {
            let spelled = if dot { "/./%61pi" } else { "/api" };
            let path = format!("{spelled}{rest}");
            prop_assert_eq!(below(&path, "/api"), Some(&*rest));
            prop_assert_eq!(below(&path, "/apis"), None);
        }
    }

    #[test]
    fn all_spellings_of_a_path_normalise_to_one() {
        for (normal, spellings) in [
            ("/", &["", "/", "//", "/.", "/./", "/%2e", "/%2E//", "%2F", "/;x=1/"][..]),
            (
                "/api/v1/private/traces/batch",
                &[
                    "/api/v1/private/traces/batch",
                    "/api/v1/private/traces/batch/",
                    "/api//v1/private/traces/batch",
                    "//api/v1/private///traces/batch//",
                    "/api/./v1/private/./traces/batch/.",
                    "/api/%2e/v1/private/traces/%2E/batch",
                    "/api/%76%31/private/traces/batch",
                    "/api/v1/private/tr%61ces/%62%61tch",
                    "/%61%70%69/v1/private/traces/batch",
                    "/api%2Fv1%2fprivate/traces/batch",
                    "/api/v1/private/traces;a=b/batch;c",
                    "/api/v1/private/traces%3Ba/batch%3b",
                    "/api/;/v1/private/traces/batch",
                ],
            ),
            ("/api/v1/private/files/a..b/...", &["/api/v1/private/files/a..b/...", "//api/v1/private/files/a..b/..."]),
            ("/tags/a%20b", &["/tags/a%20b", "/tags/a b", "/t%61gs//a%20b"]),
            ("/tags/%C3%A9", &["/tags/%c3%a9", "/tags/\u{e9}"]),
            ("/tags/50%25", &["/tags/50%25", "/tags//50%25/"]),
            ("/tags/%252Fx", &["/tags/%252Fx", "/tags/%252%46x"]),
            ("/tags/%0D%0Ax", &["/tags/%0d%0ax"]),
            ("/tags/a%3Fb%23c", &["/tags/a%3fb%23c"]),
            ("/a!$&'()*+,=:@-._~", &["/a!$&'()*+,=:@-._~", "/a%21%24%26%27%28%29%2A%2B%2C%3D%3A%40%2D%2E%5F%7E"]),
            ("/Api/V1", &["/Api/V1"]),
        ] {
            for spelling in spellings {
                assert_eq!(normalise(spelling).as_deref(), Ok(normal), "{spelling}");
            }
            assert_eq!(normalise(normal).as_deref(), Ok(normal), "what is normal stays");
        }
    }

    #[test]
    fn parent_segments_are_rejected_in_every_spelling() {
        for path in [
            "/api/../secret",
            "/api/v1/%2e%2e/x",
            "/api/.%2E/x",
            "/api/v1/private/traces/..%2f..%2fsecret",
            "/api/v1/..;/x",
            "/api/v1/..;x=1/x",
            "/api/..%3bx/y",
            "/api/v1/..\\x",
            "/api/v1/.\\x",
            "/api/v1/%252e%252e/x",
            "/api/%25252525252e/x",
            "/api/%252525252525252e",
            "/api/.;x/v1",
            "/api/%252e/v1",
            "/api/.%00/v1",
            "/api/.%20/v1",
            "/api/%u002e/v1",
            "/api/%c0%ae/v1",
            "/api/./../v1",
            "/api/x%2f../y",
            "/api/%2e%2f%2e%2e/y",
        ] {
            assert_eq!(normalise(path), Err(PathFault::DotSegment), "{path}");
        }
    }

    #[test]
    fn unparsable_paths_are_rejected() {
        for path in
            ["/%", "/tags/50%", "/tags/%2", "/tags/%zz", "/tags/%2g/x", "/%%32%35", "/tags/%00", "/%u0041", "/%\u{e9}"]
        {
            assert_eq!(normalise(path), Err(PathFault::Malformed), "{path}");
        }
    }

    #[test]
    fn paths_below_a_prefix_keep_their_spelling() {
        for (path, prefix, expected) in [
            ("/api/v1/x", "/api", Some("/v1/x")),
            ("/api//v1/x/", "/api", Some("//v1/x/")),
            ("//api/./v1/%78", "/api", Some("/./v1/%78")),
            ("/./%61pi/v1", "/api", Some("/v1")),
            ("/api;x/v1", "/api", Some("/v1")),
            ("/opik//api/v1", "/opik/api", Some("/v1")),
            ("/api", "/api", Some("")),
            ("/apis/v1", "/api", None),
            ("/x/api/v1", "/api", None),
            ("/api%2Fv1", "/api", None),
            ("//v1/x", "", Some("//v1/x")),
            ("", "", Some("")),
            ("v1/x", "", None),
            ("/-/token/a%2Fb/./c/", "/-/token", Some("/a%2Fb/./c/")),
            ("//-/./token//..", "/-/token", Some("//..")),
            ("/../api/v1", "/api", None),
        ] {
            assert_eq!(below(path, prefix), expected, "{path} {prefix}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_paths_never_panic(path in "[/.%;\\\\20ec5fau\u{e9}]{0,40}") {
            let _ = has_dot_segment(&*path);
            let Ok(normal) = normalise(&path) else { return Ok(()) };
            prop_assert_eq!(normalise(&normal), Ok(normal.clone()), "normalised twice");
        }

        #[test]
        fn prefix_and_rest_concatenate_to_the_path(path in "/[/.%;2fap]{0,20}") {
            if let (Some(rest), Ok(normal)) = (below(&path, "/a"), normalise(&path)) {
                let again = normalise(&format!("/a{rest}"));
                prop_assert_eq!(again, Ok(normal));
            }
        }
    }
}
