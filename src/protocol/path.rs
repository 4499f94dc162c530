//! Segments of a path that lead somewhere else than they say.
//!
//! A program on the way (nginx, a load balancer, the server's own container) may resolve `..`, and each resolves another
//! spelling of it: `%2e%2e`, `..%2f`, `..\`, `..;x`. What the agent takes for one path would be another to the server: a
//! read that passes through could be a write, or leave the API. No client of Opik sends any of them.

/// How often a text is decoded: each program on the way may do it once.
const DECODINGS_MAX: usize = 4;

/// Returns whether a segment of a path is `.` or `..` to any program that could read it.
pub fn has_dot_segment(path: &str) -> bool {
    let mut text = path.as_bytes().to_vec();
    for _ in 0..=DECODINGS_MAX {
        // A program may cut parameters (`;x`) before or after it decodes, and some end a text at a control character.
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
    // Encoded more often than anybody does in earnest.
    true
}

fn is_dots(segment: &[u8]) -> bool {
    let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
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

/// Decodes once: `%2e`, IIS's `%u002e`, and the overlong UTF-8 of the three characters that matter.
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

/// Reads what follows a percent sign.
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
    fn every_spelling_of_a_dot_segment_is_found() {
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
                assert!(has_dot_segment(&path), "{path}");
            }
        }
    }

    #[test]
    fn dots_in_a_name_are_no_dot_segment() {
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
        fn any_path_is_judged_without_a_panic(path in "[/.%;\\\\20ec5fau\u{e9}]{0,40}") {
            let _ = has_dot_segment(&path);
        }
    }
}
