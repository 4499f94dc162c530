//! User input: the SDKs' INI file, durations, sizes, addresses, keys.

use opik_offline::config::ServerUrl;
use opik_offline::config::ini::read_section;
use opik_offline::config::server_url::inside_api_key;
use opik_offline::config::units::{ByteSize, parse_duration, print_duration};

/// A text that is tried as an INI file, and its first line as everything else.
pub(crate) fn settings(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match read_section(text, "opik") {
        Ok(keys) => {
            let lowered = text.to_lowercase();
            // The oracle itself scans the whole text for each.
            for (key, value) in keys.iter().take(64) {
                assert!(!key.is_empty() && key.trim() == key, "a key has space around it: {key:?}");
                assert!(lowered.contains(key.as_str()), "a key is invented: {key:?}");
                assert_eq!(value.trim(), value, "a value has space around it");
                assert!(value.lines().all(|line| text.contains(line.trim())), "a value is invented");
            }
        }
        Err(error) => assert!(error.line >= 1 && error.line <= text.split(['\n', '\r']).count(), "{error} is nowhere"),
    }

    let line = text.lines().next().unwrap_or_default();
    if let Ok(duration) = parse_duration(line) {
        assert_eq!(parse_duration(&print_duration(duration)), Ok(duration), "a duration changes when printed");
    }
    if let Ok(size) = line.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size), "a size changes when printed");
    }
    if let Ok(url) = line.parse::<ServerUrl>() {
        server_url(&url);
    }
    if let Ok(Some(url)) = inside_api_key(line) {
        server_url(&url);
    }
}

fn server_url(url: &ServerUrl) {
    let text = url.to_string();
    assert_eq!(text.parse().as_ref(), Ok(url), "an address changes when printed: {text}");
    assert!(url.port() != 0 && !url.host().is_empty() && !url.path().ends_with('/'), "{text} is not an address");
    assert!(url.path().is_empty() || url.path().starts_with('/'), "a path is appended to the host: {text}");
    assert!(!text.contains(['?', '#', ' ']), "a request's path can't be appended to {text}");
    assert!(!text[..text.len() - url.path().len()].contains('@'), "a password is in {text}");
}
