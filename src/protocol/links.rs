//! The links to traces, datasets and experiments that the SDKs print.
//!
//! A link asks the server for the address of a UI page: `v1/session/redirect/projects/?trace_id=...&path=...`, with the
//! base64 of the client's `url_override` in `path`. The server builds the page's address from that (protocol dossier,
//! corrections: origin). Through the agent that would be the agent's address, so the agent replaces it by the server's.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::Uri;
use percent_encoding::percent_decode_str;

/// Path of such links, below the server's base.
const REDIRECT_PATH: &str = "v1/session/redirect/";

/// Returns whether a normalised path below the server's base is one of the redirects.
pub(crate) fn is_redirect(path: &str) -> bool {
    path.starts_with(REDIRECT_PATH)
}

/// Replaces the agent's address in the query of a redirect by the server's; `None` if the query has no address
/// of the agent. `host` is the host by which the client reached the agent.
///
/// The rest of the query is unchanged, and so is a `path` that is not base64, not a URL, or another server's.
pub(crate) fn with_server_address(query: &str, host: &str, url_override: &str) -> Option<String> {
    let mut is_changed = false;
    let parameters = query.split('&').map(|parameter| {
        let leads_here = parameter
            .split_once('=')
            .filter(|(name, _)| decoded(name) == "path")
            .and_then(|(_, value)| named_url(value))
            .is_some_and(|url| is_agent(&url, host));
        if !leads_here {
            return Cow::Borrowed(parameter);
        }
        is_changed = true;
        // Encoded like the SDK: of the base64 alphabet, only the plus has another meaning in a query.
        let encoded = base64::engine::general_purpose::STANDARD.encode(url_override).replace('+', "%2B");
        Cow::Owned(format!("path={encoded}"))
    });
    let parameters: Vec<Cow<'_, str>> = parameters.collect();
    is_changed.then(|| parameters.join("&"))
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

/// Parses the base64 of a URL, with or without padding, in either alphabet. An unencoded plus arrives as a space.
fn named_url(value: &str) -> Option<Uri> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let text = decoded(value).replace(' ', "+");
    let text = text.trim_end_matches('=');
    let read = |alphabet: &Alphabet| GeneralPurpose::new(alphabet, LENIENT).decode(text).ok();
    let url = read(&STANDARD).or_else(|| read(&URL_SAFE))?;
    std::str::from_utf8(&url).ok()?.trim().parse().ok()
}

/// Returns whether a URL has the host by which the agent was reached. `localhost` and the loopback addresses are one
/// host.
fn is_agent(url: &Uri, host: &str) -> bool {
    let port_of_scheme = match url.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return false,
    };
    let Some(named) = url.authority() else { return false };
    if named.as_str().contains('@') {
        return false;
    }
    let Ok(own) = host.parse::<http::uri::Authority>() else { return false };
    let is_same_host =
        named.host().eq_ignore_ascii_case(own.host()) || is_loopback(named.host()) && is_loopback(own.host());
    is_same_host && named.port_u16().unwrap_or(port_of_scheme) == own.port_u16().unwrap_or(port_of_scheme)
}

fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<core::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

    use super::*;

    const SERVER: &str = "https://www.comet.com/opik/api/";

    #[test]
    fn redirects_get_the_servers_address() {
        let expected = STANDARD.encode(SERVER);
        for host_and_url in [
            ("127.0.0.1:6745", "http://127.0.0.1:6745/api/"),
            ("127.0.0.1:6745", "http://127.0.0.1:6745/api"),
            ("127.0.0.1:6745", "http://127.0.0.1:6745"),
            ("127.0.0.1:6745", "http://localhost:6745/api/"),
            ("localhost:6745", "http://127.0.0.1:6745/opik/api/"),
            ("LOCALHOST:6745", "http://[::1]:6745/api/"),
            ("127.0.0.1:6745", "http://127.0.0.1:6745/-/token/T/api/"),
            ("127.0.0.1:6745", "http://127.0.0.1:6745//api~~~//o?~~?/~~~"),
            ("opik-offline:6745", "http://Opik-Offline:6745/api/"),
            ("agent.example.org", "https://agent.example.org/api/"),
            ("agent.example.org:443", "https://agent.example.org/api/"),
        ] {
            let (host, url) = host_and_url;
            for spelling in [
                STANDARD.encode(url),
                STANDARD_NO_PAD.encode(url),
                URL_SAFE.encode(url),
                URL_SAFE_NO_PAD.encode(url),
                STANDARD.encode(url).replace('=', "%3D").replace('+', "%2B").replace('/', "%2f"),
                STANDARD.encode(url).replace('+', "%20"),
            ] {
                let query = format!("trace_id=T%20&&x=%70ath&path={spelling}&workspace_name=a+b");
                let found = with_server_address(&query, host, SERVER);
                let whole = format!("trace_id=T%20&&x=%70ath&path={expected}&workspace_name=a+b");
                assert_eq!(found.as_deref(), Some(&*whole), "{host} {url} {spelling}");
            }
        }
        let odd = "http://srv/\u{3ff}\u{3fe}/api/";
        let query = format!("p%61th={}", STANDARD.encode("http://a:1/"));
        let found = with_server_address(&query, "a:1", odd).unwrap_or_default();
        assert!(!found.contains('+'), "{found}");
        assert_eq!(decoded(found.trim_start_matches("path=")), STANDARD.encode(odd));
    }

    #[test]
    fn other_addresses_are_unchanged() {
        for url in [
            "http://srv:5173/api/",
            "http://127.0.0.1:5173/api/",
            "http://evil.example/api/",
            "http://127.0.0.1.evil.example:6745/api/",
            "http://me@127.0.0.1:6745/api/",
            "ftp://127.0.0.1:6745/api/",
            "127.0.0.1:6745/api",
            "/api",
            "",
            "\u{0}",
        ] {
            let query = format!("path={}&trace_id=T", STANDARD.encode(url));
            assert_eq!(with_server_address(&query, "127.0.0.1:6745", SERVER), None, "{url}");
        }
        for query in
            ["", "path", "path=", "path=!!", "path=eA==", "Path=aHR0cDovLzEyNy4wLjAuMTo2NzQ1Lw==", "&&", "x=path="]
        {
            assert_eq!(with_server_address(query, "127.0.0.1:6745", SERVER), None, "{query}");
        }
        assert_eq!(with_server_address("path=aHR0cDovLzEyNy4wLjAuMTo2NzQ1Lw==", "not a host", SERVER), None);
    }

    #[test]
    fn other_paths_are_unchanged() {
        for kind in ["projects", "datasets", "experiments", "optimizations"] {
            assert!(is_redirect(&format!("v1/session/redirect/{kind}")));
        }
        for path in ["v1/session/redirect", "v1/private/session/redirect/projects", "v1/private/attachment/list"] {
            assert!(!is_redirect(path), "{path}");
        }
    }
}
