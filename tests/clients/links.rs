//! The links that a client prints, and where a browser ends up that follows them.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::http::{Client, Request};

const REDIRECTS_MAX: usize = 5;

/// Returns the addresses on this machine in what a client printed.
pub(crate) fn of(said: &str) -> Vec<String> {
    let ends = |c: char| c.is_whitespace() || "\"'<>()[]{}|,".contains(c);
    let starts = said.match_indices("http://127.0.0.1:").map(|(at, _)| &said[at..]);
    let links = starts.map(|rest| &rest[..rest.find(ends).unwrap_or(rest.len())]);
    links.map(|link| link.trim_end_matches(['.', ':', ';']).to_owned()).collect()
}

/// Follows links as a browser does, up to the server's user interface.
pub(crate) fn lead_to(links: &[String], server: &str) -> BTreeSet<String> {
    // The API itself is for programs.
    let is_api = |link: &&String| link.contains("/api") && !link.contains("/session/redirect/");
    links.iter().filter(|link| !is_api(link)).map(|link| follow(link, server)).collect()
}

fn follow(link: &str, server: &str) -> String {
    let origin = |url: &str| url.split('/').take(3).collect::<Vec<_>>().join("/");
    let mut link = link.to_owned();
    for _ in 0..REDIRECTS_MAX {
        let origin_here = origin(&link);
        let path = &link[origin_here.len()..];
        let is_redirect = path.contains("/session/redirect/");
        if origin_here == origin(server) && !is_redirect {
            return link;
        }
        let request = Request::new("GET", path).header("Accept", "text/html").header("Sec-Fetch-Mode", "navigate");
        let answer = match Client::new(&origin_here).send(&request) {
            Ok(answer) => answer,
            Err(why) => return format!("{link}: {why}"),
        };
        match answer.header("Location").filter(|_| (300..400).contains(&answer.status)) {
            Some(next) if next.starts_with('/') => link = format!("{origin_here}{next}"),
            Some(next) => link = next.to_owned(),
            None => return format!("{} from {}", answer.status, without_addresses(&link)),
        }
    }
    format!("{link}: more than {REDIRECTS_MAX} redirects")
}

/// Replaces every address of this machine in a line, also within the `path` of a link, which is in base64.
pub(crate) fn without_addresses(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("http://127.0.0.1:") {
        let port = &rest[at + "http://127.0.0.1:".len()..];
        let end = port.find(|c: char| !c.is_ascii_digit()).unwrap_or(port.len());
        text.push_str(&rest[..at]);
        text.push_str("<origin>");
        rest = &port[end..];
    }
    text.push_str(rest);
    // With or without a slash at its end, a base URL leads to the same place.
    for end in [" ", "."] {
        text = text.replace(&format!("<origin>/api/{end}"), &format!("<origin>/api{end}"));
    }
    if let Some(start) = text.strip_suffix("<origin>/api/") {
        text = format!("{start}<origin>/api");
    }
    let Some(at) = text.find("path=") else { return text };
    let value = &text[at + 5..];
    let end = value.find(|c: char| !c.is_ascii_alphanumeric() && !"+/=%_-".contains(c)).unwrap_or(value.len());
    let encoded = value[..end].replace("%3D", "=");
    match STANDARD.decode(&encoded).ok().and_then(|path| String::from_utf8(path).ok()) {
        // With or without a slash at its end, it leads to the same place.
        Some(path) => {
            let path = without_addresses(path.trim_end_matches('/'));
            format!("{}path={path}{}", &text[..at], &value[end..])
        }
        None => text,
    }
}
