//! The path that Opik's nginx passes to its server: decoded once, `.` and `..` resolved, slashes merged, and
//! encoded again where it has to be.

/// Returns the path as the server gets it, or `None` for one that nginx refuses.
pub(crate) fn resolved(path: &str) -> Option<String> {
    let mut decoded = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => u8::try_from(digit(bytes.next()?)? * 16 + digit(bytes.next()?)?).ok()?,
            byte => byte,
        });
    }
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut has_end = false;
    for segment in decoded.split(|byte| *byte == b'/') {
        has_end = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()?),
            name => segments.push(name),
        }
    }
    let mut resolved = String::new();
    for segment in &segments {
        resolved.push('/');
        for byte in *segment {
            match byte {
                0 => return None,
                1..=b' ' | b'#' | b'%' | b'?' | 0x7f.. => resolved += &format!("%{byte:02X}"),
                byte => resolved.push(char::from(*byte)),
            }
        }
    }
    if has_end {
        resolved.push('/');
    }
    Some(resolved)
}

fn digit(byte: u8) -> Option<u32> {
    char::from(byte).to_digit(16)
}
