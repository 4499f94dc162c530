//! Links that people follow to the agent: SDKs print them below the URL that they are configured with.
//!
//! A browser that requests a page of the Opik UI is redirected to the server, where its user is logged in. Requests of
//! programs pass through. The SDKs' redirects are answered by the server; the agent only puts the server's address into
//! them ([`crate::protocol::links`]).

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use percent_encoding::{CONTROLS, utf8_percent_encode};

use super::forward::{self, ClientAnswer};
use super::status_page;
use crate::protocol::answers::Reply;
use crate::protocol::links::{is_redirect, with_server_address};
use crate::protocol::target::{ServerAddress, Target};

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// The kind of client that sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// A browser whose user navigates, according to its headers.
    Navigation,
    /// A client that prefers HTML.
    PrefersHtml,
    Program,
}

impl Asker {
    /// Browsers say in `Sec-Fetch-Mode` that they navigate. Old ones, and all of them if the agent's address is
    /// neither `https` nor loopback, only say in `Accept` that they prefer HTML.
    fn of(headers: &HeaderMap) -> Self {
        if let Some(mode) = headers.get(SEC_FETCH_MODE) {
            return if mode == "navigate" { Self::Navigation } else { Self::Program };
        }
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut types = accepted.flat_map(|value| value.split(','));
        let wants_page = types.any(|kind| {
            let essence = kind.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("text/html") || essence.eq_ignore_ascii_case("application/xhtml+xml")
        });
        if wants_page { Self::PrefersHtml } else { Self::Program }
    }
}

/// Returns the URL of the server's page that a browser is redirected to, or `None` for a request that goes to the
/// server.
pub(super) fn page_of(head: &Parts, target: &Target, server: &ServerAddress) -> Option<String> {
    if ![Method::GET, Method::HEAD].contains(&head.method) {
        return None;
    }
    let is_page = match Asker::of(&head.headers) {
        Asker::Navigation => true,
        Asker::PrefersHtml => target.is_page(server),
        Asker::Program => false,
    };
    let page = target.page_url(server).filter(|_| is_page)?;
    Some(match head.uri.query() {
        Some(query) => format!("{page}?{query}"),
        None => page,
    })
}

/// Returns whether a browser that requests the status page by this path is redirected to the canonical one, because
/// the page's links are relative. Programs still get it at `/`.
pub(super) fn leads_to_status_page(normal: &str, path: &str, headers: &HeaderMap) -> bool {
    let is_there = path.ends_with('/') && status_page::PATH.strip_suffix('/') == Some(normal);
    !is_there && Asker::of(headers) != Asker::Program
}

/// Returns a temporary redirect.
pub(super) fn redirect(location: &str) -> ClientAnswer {
    // A header holds ASCII only.
    let location = utf8_percent_encode(location, CONTROLS).to_string();
    let mut answer = forward::own_answer(Reply { location: Some(location), ..Reply::empty(302) });
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The agent's URL may contain its token.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

/// Returns the URL of a request at the server with its query. In the query of an SDK's redirect to the UI, the agent's
/// address is replaced by the server's.
pub(super) fn with_query(url: String, target: &Target, head: &Parts, host: &str, server: &ServerAddress) -> String {
    let Some(query) = head.uri.query() else { return url };
    let named = match target {
        Target::Api { path, .. } if is_redirect(path) => with_server_address(query, host, &server.url_override()),
        _ => None,
    };
    format!("{url}?{}", named.as_deref().unwrap_or(query))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, target: &str, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn browsers_are_redirected_to_the_page_and_programs_are_not() {
        let server = ServerAddress::new("https://www.comet.com/opik/api");
        let page = Some("https://www.comet.com/opik/team/projects/p/?a=%20&b");
        let rest = Some("https://www.comet.com/api/rest/v2/workspaces");
        let navigates = [("sec-fetch-mode", "navigate"), ("accept", "text/html")];
        let old = [("accept", "application/xhtml+xml;q=0.9, Text/HTML ;q=1, */*")];
        let fetches = [("sec-fetch-mode", "cors"), ("accept", "text/html")];
        // The default of `java.net.HttpURLConnection`.
        let java = [("accept", "text/html, image/gif, image/jpeg, */*; q=0.2"), ("user-agent", "Java/21")];
        let any = [("accept", "*/*")];
        for (method, path, headers, expected) in [
            ("GET", "/team/projects/p/?a=%20&b", &navigates[..], page),
            ("HEAD", "/team/projects/p/?a=%20&b", &navigates, page),
            ("GET", "/team/projects/p/?a=%20&b", &old, page),
            ("GET", "/team/projects/p/?a=%20&b", &any, None),
            ("GET", "/team/projects/p/?a=%20&b", &fetches, None),
            ("GET", "/team/projects/p/?a=%20&b", &[], None),
            ("POST", "/team/projects/p/?a=%20&b", &navigates, None),
            ("GET", "/api/rest/v2/workspaces", &navigates, rest),
            ("GET", "/api/rest/v2/workspaces", &java, None),
            ("GET", "/guardrails/api/v1/guardrails/x", &java, None),
            ("GET", "/api/v1/private/traces", &navigates, None),
            ("GET", "/api/v1/session/redirect/projects/?trace_id=t", &navigates, None),
            ("GET", "/-/status.json", &navigates, None),
            ("GET", "/metrics", &navigates, None),
        ] {
            let head = asked(method, path, headers);
            let target = Target::of(head.uri.path(), &server).expect("no dot segment");
            assert_eq!(page_of(&head, &target, &server).as_deref(), expected, "{method} {path} {headers:?}");
        }
    }

    #[test]
    fn the_status_page_has_one_canonical_path_for_browsers() {
        let browser = asked("GET", "/", &[("accept", "text/html")]).headers;
        let program = asked("GET", "/", &[("accept", "*/*")]).headers;
        for (normal, path, expected) in
            [("/", "/", true), ("/", "/%2e/", true), ("/-", "/-", true), ("/-", "/-/", false), ("/-", "//%2d//", false)]
        {
            assert_eq!(leads_to_status_page(normal, path, &browser), expected, "{path}");
            assert!(!leads_to_status_page(normal, path, &program), "{path}");
        }
    }

    #[test]
    fn only_redirects_get_the_servers_address() {
        let server = ServerAddress::new("http://srv:5173/api");
        // http://127.0.0.1:6745/api/ and http://srv:5173/api/
        let (agents, servers) = ("aHR0cDovLzEyNy4wLjAuMTo2NzQ1L2FwaS8=", "aHR0cDovL3Nydjo1MTczL2FwaS8=");
        for (path, expected) in [
            ("/api/v1/session/redirect/projects/", servers),
            ("/opik/api//v1/session/redirect/datasets", servers),
            ("/api/v1/session/redir%65ct/experiments", servers),
            ("/api/v1/private/attachment/list", agents),
            ("/x/v1/session/redirect/projects/", agents),
        ] {
            let head = asked("GET", &format!("{path}?trace_id=t&path={agents}"), &[]);
            let target = Target::of(path, &server).expect("no dot segment");
            let found = with_query(String::new(), &target, &head, "127.0.0.1:6745", &server);
            assert_eq!(found, format!("?trace_id=t&path={expected}"), "{path}");
        }
    }
}
