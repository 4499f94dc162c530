//! Links that people follow to the agent: SDKs print them below the address that they were given.
//!
//! A browser that asks for a page of the Opik UI is redirected to the server, where its user is logged in. What programs
//! ask streams through. The redirects of the SDKs are the server's to answer; the agent only names the server in them
//! ([`crate::protocol::links`]).

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

/// How somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// A browser that goes somewhere with its user, by its own word.
    Navigation,
    /// Somebody who would like a page.
    ForPage,
    Program,
}

impl Asker {
    /// Browsers say in `Sec-Fetch-Mode` that they navigate; old ones, and all where the agent's address is neither
    /// `https` nor this machine, only that they want a page.
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
        if wants_page { Self::ForPage } else { Self::Program }
    }
}

/// Returns the server's page that a browser is to be shown, or `None` for what goes to the server itself.
pub(super) fn page_of(head: &Parts, target: &Target, server: &ServerAddress) -> Option<String> {
    let is_page = match Asker::of(&head.headers) {
        Asker::Navigation => true,
        Asker::ForPage => target.is_page(server),
        Asker::Program => false,
    };
    let is_read = [Method::GET, Method::HEAD].contains(&head.method);
    let page = target.page_url(server).filter(|_| is_read && is_page)?;
    Some(match head.uri.query() {
        Some(query) => format!("{page}?{query}"),
        None => page,
    })
}

/// Returns whether somebody who asks for the status page by this path is sent to its own, because its links are relative.
/// Programs have always got it at `/`.
pub(super) fn leads_to_status_page(normal: &str, path: &str, headers: &HeaderMap) -> bool {
    let is_there = path.ends_with('/') && status_page::PATH.strip_suffix('/') == Some(normal);
    !is_there && Asker::of(headers) != Asker::Program
}

/// Sends somebody elsewhere, for now.
pub(super) fn redirect(location: &str) -> ClientAnswer {
    // What is not ASCII has no place in a header.
    let location = utf8_percent_encode(location, CONTROLS).to_string();
    let mut answer = forward::own_answer(Reply { location: Some(location), ..Reply::empty(302) });
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The address of the agent may hold its token.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

/// Returns the URL of a request at the server with its query, in which a redirect to a page of the UI names the server.
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
    fn browsers_are_led_to_the_page_and_programs_get_their_answer() {
        let server = ServerAddress::new("https://www.comet.com/opik/api");
        let page = Some("https://www.comet.com/opik/team/projects/p/?a=%20&b");
        let rest = Some("https://www.comet.com/api/rest/v2/workspaces");
        let navigates = [("sec-fetch-mode", "navigate"), ("accept", "text/html")];
        let old = [("accept", "application/xhtml+xml;q=0.9, Text/HTML ;q=1, */*")];
        let fetches = [("sec-fetch-mode", "cors"), ("accept", "text/html")];
        // `java.net.HttpURLConnection` when it is asked for nothing.
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
    fn the_status_page_has_one_place_for_people() {
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
    fn only_the_redirects_get_another_query() {
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
