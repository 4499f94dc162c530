//! Which URLs lead to the Opik server, and the URLs that replace them so that they lead through the agent.
//!
//! `http://agent/X` means `http://server/X` for every path, the API's included, so a URL keeps its path, its query and its
//! trailing slash. With an intake token, the path begins with the token's prefix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::ServerUrl;

/// Where Opik accepts OTLP, below its base URL (protocol dossier, section d); exporters add `/v1/traces` to it.
pub(super) const OTLP_PATH: &str = "/v1/private/otel";
/// The prefix of a path that carries the intake token.
const TOKEN_PREFIX: &str = "/-/token/";
/// The characters that are encoded in a segment of a path: every one that some program might give a meaning.
const IN_A_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Rewrites URLs so that they lead through the agent.
#[derive(Clone, Debug)]
pub(super) struct Redirect {
    /// The host and port under which a program on this machine reaches the intake.
    pub(super) host: String,
    /// `/-/token/TOKEN`, or nothing.
    prefix: String,
    /// The path of the server's API: `/api`, `/opik/api`, or nothing.
    base_path: String,
    /// URLs of the server, the agent's own first.
    servers: Vec<ServerUrl>,
}

impl Redirect {
    /// `others` are more names of the server.
    pub(super) fn new(
        intake: SocketAddr,
        token: Option<&str>,
        upstream: &ServerUrl,
        others: impl IntoIterator<Item = ServerUrl>,
    ) -> Self {
        let encoded = |token| format!("{TOKEN_PREFIX}{}", utf8_percent_encode(token, IN_A_SEGMENT));
        Self {
            host: reachable(intake),
            prefix: token.map_or(String::new(), encoded),
            base_path: without_token(upstream.path()).to_owned(),
            servers: std::iter::once(upstream.clone()).chain(others).collect(),
        }
    }

    /// Returns the agent's address for the server's origin, without a trailing slash.
    pub(super) fn origin(&self) -> String {
        format!("http://{}{}", self.host, self.prefix)
    }

    /// Returns the agent's address for the server's API.
    pub(super) fn base(&self) -> String {
        format!("{}{}", self.origin(), self.base_path)
    }

    /// Returns the URL with the agent in between; `None` if it does not lead to the server.
    pub(super) fn through_agent(&self, url: &str) -> Option<String> {
        let (url, query) = url.trim().split_at(url.trim().find(['?', '#']).unwrap_or(url.trim().len()));
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split('/').next().unwrap_or_default();
        // Clients send the user as a header, which the agent passes on.
        let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
        let target: ServerUrl = format!("{scheme}://{}", &rest[user.len()..]).parse().ok()?;
        let server = self.servers.iter().find(|server| is_same_server(server, &target))?;

        let path = without_token(target.path());
        let below_base = below(path, without_token(server.path()));
        let path = below_base.map_or(path.to_owned(), |below| format!("{}{below}", self.base_path));
        let slash = if url.ends_with('/') { "/" } else { "" };
        Some(format!("http://{user}{}{}{path}{slash}{query}", self.host, self.prefix))
    }
}

/// Returns whether two URLs lead to the same server, without DNS: the same scheme, port and host.
pub(super) fn is_same_server(one: &ServerUrl, other: &ServerUrl) -> bool {
    one.is_https() == other.is_https() && one.port() == other.port() && host(one) == host(other)
}

/// Returns whether a URL's path is one under which Opik takes OTLP.
pub(super) fn is_otlp(url: &str) -> bool {
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let segments: Vec<&str> = path.split('/').skip(1).filter(|segment| !segment.is_empty()).collect();
    let wanted: Vec<&str> = OTLP_PATH.split('/').skip(1).collect();
    segments.windows(wanted.len()).any(|found| found == wanted)
}

/// Returns a URL's host in its canonical spelling. The usual names of the loopback interface are one host.
fn host(url: &ServerUrl) -> String {
    let name = url.host().trim_end_matches('.');
    match url.ip().map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) if ip == Ipv4Addr::LOCALHOST || ip.is_unspecified() => "localhost".to_owned(),
        Some(IpAddr::V6(ip)) if ip == Ipv6Addr::LOCALHOST || ip.is_unspecified() => "localhost".to_owned(),
        Some(ip) => ip.to_string(),
        None => name.to_ascii_lowercase(),
    }
}

/// Returns the rest of a path below a base. Paths of the API are below an empty base, the others are the origin's.
fn below<'path>(path: &'path str, base: &str) -> Option<&'path str> {
    let rest = path.strip_prefix(base)?;
    match base.is_empty() {
        true => rest.starts_with("/v1/").then_some(rest),
        false => (rest.is_empty() || rest.starts_with('/')).then_some(rest),
    }
}

/// Returns a path without the prefix that carries another agent's token.
fn without_token(path: &str) -> &str {
    let Some(rest) = path.strip_prefix(TOKEN_PREFIX) else { return path };
    rest.find('/').map_or("", |end| &rest[end..])
}

/// Returns the host and port under which a program on this machine reaches the intake.
pub(super) fn reachable(intake: SocketAddr) -> String {
    let ip = match intake.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, intake.port()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ServerUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn spellings_of_one_server_are_equal_and_other_servers_differ() {
        for (one, other) in [
            ("https://opik.example/api", "https://OPIK.example:443/api/"),
            ("https://opik.example/api", "HTTPS://opik.example./guardrails"),
            ("http://opik.example/api", "http://opik.example:80"),
            ("http://localhost:5173/api", "http://127.0.0.1:5173/api"),
            ("http://localhost:5173/api", "http://[::1]:5173/api"),
            ("http://127.0.0.1:5173/api", "http://[::ffff:127.0.0.1]:5173/"),
            ("http://0.0.0.0:5173/api", "http://LocalHost:5173/"),
            ("http://10.0.0.1/api", "http://[::ffff:10.0.0.1]/api"),
            ("http://[2001:db8::1]/api", "http://[2001:DB8:0::1]/api"),
        ] {
            assert!(is_same_server(&url(one), &url(other)), "{one} {other}");
            assert!(is_same_server(&url(other), &url(one)), "{other} {one}");
        }
        for (one, other) in [
            ("https://opik.example/api", "http://opik.example/api"),
            ("https://opik.example/api", "https://opik.example:8443/api"),
            ("https://opik.example/api", "https://staging.opik.example/api"),
            ("https://opik.example/api", "https://opik.example.evil/api"),
            ("http://localhost:5173/api", "http://localhost:4318/api"),
            ("http://localhost:5173/api", "http://127.0.0.2:5173/api"),
            ("http://localhost:5173/api", "http://opik.localhost:5173/api"),
            ("http://localhost:5173/api", "http://10.0.0.1:5173/api"),
        ] {
            assert!(!is_same_server(&url(one), &url(other)), "{one} {other}");
        }
    }

    #[test]
    fn a_url_keeps_its_path_query_and_user_on_its_way_through_the_agent() {
        let redirect = |upstream: &str, token: Option<&str>| {
            let others = [url("http://127.0.0.1:6745/-/token/other/api")];
            Redirect::new("127.0.0.1:40".parse().expect("an address"), token, &url(upstream), others)
        };
        let (plain, cloud) = ("https://opik.example/api", "https://www.comet.com/opik/api");
        for (upstream, token, given, expected) in [
            (plain, None, "https://opik.example/api", "http://127.0.0.1:40/api"),
            (plain, None, " https://opik.example/api/ ", "http://127.0.0.1:40/api/"),
            (plain, None, "https://opik.example", "http://127.0.0.1:40"),
            (plain, None, "https://opik.example/", "http://127.0.0.1:40/"),
            (plain, None, "https://opik.example/guardrails", "http://127.0.0.1:40/guardrails"),
            (plain, None, "https://opik.example/apifoo", "http://127.0.0.1:40/apifoo"),
            (plain, None, "https://opik.example?a=/b", "http://127.0.0.1:40?a=/b"),
            (plain, None, "https://u:p@opik.example/x?y#z", "http://u:p@127.0.0.1:40/x?y#z"),
            (plain, Some("t/1"), "https://opik.example/guardrails/", "http://127.0.0.1:40/-/token/t%2F1/guardrails/"),
            (cloud, None, "https://www.comet.com", "http://127.0.0.1:40"),
            (cloud, None, "https://www.comet.com/opik/api", "http://127.0.0.1:40/opik/api"),
            (cloud, Some("t"), "https://www.comet.com/opik/api/", "http://127.0.0.1:40/-/token/t/opik/api/"),
            // A URL of another agent in front of the server: its base is the server's.
            (cloud, None, "http://localhost:6745/-/token/other/api/v1/x", "http://127.0.0.1:40/opik/api/v1/x"),
            (cloud, Some("t"), "http://127.0.0.1:6745/guardrails", "http://127.0.0.1:40/-/token/t/guardrails"),
            (
                "https://opik.example",
                None,
                "https://opik.example/v1/private/otel",
                "http://127.0.0.1:40/v1/private/otel",
            ),
        ] {
            assert_eq!(redirect(upstream, token).through_agent(given).as_deref(), Some(expected), "{upstream} {given}");
        }
        for elsewhere in ["https://other.example/api", "http://opik.example/api", "opik.example/api", "", "https://"] {
            assert_eq!(redirect(plain, None).through_agent(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn only_opiks_path_accepts_otlp() {
        for path in ["/api/v1/private/otel", "/opik/api//v1/private/otel/v1/traces", "/v1/private/otel/?x"] {
            assert!(is_otlp(&format!("https://opik.example{path}")), "{path}");
        }
        for path in ["", "/v1/traces", "/api/v1/private/oteltest", "/otel?to=/v1/private/otel"] {
            assert!(!is_otlp(&format!("https://opik.example{path}")), "{path}");
        }
    }
}
