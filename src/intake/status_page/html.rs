//! The page for people: is my data safe, is it moving, when will it be done.
//!
//! One self-contained document that is complete without JavaScript. A few lines of script, if they may run, fetch the
//! page again and replace the parts that differ. The Content-Security-Policy allows style and script by their digests,
//! so that nothing else could run even if a value were not escaped; every value is ([`escaped`]).
//!
//! Its size is bounded, whatever is stored: every list has a maximum and says how much more there is.

use std::fmt::Write;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{self, HeaderName, HeaderValue};
use ring::digest::{SHA256, digest};

use super::badge::Badge;
use super::plot::plots;
use super::sections::{edges, facts, full, groups, lanes, problems, projects, rejected, replays};
use super::text::{escaped, moment};
use super::tiles::tiles;
use super::verdict::PageVerdict;
use crate::intake::forward::ClientAnswer;
use crate::overview::Overview;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// How often a browser without JavaScript reloads the page, in seconds.
const RELOAD_SECONDS: u32 = 10;

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let named = |text: &str| BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        named(STYLE),
        named(SCRIPT)
    )
});

/// Adds the headers that keep a browser from running anything but the page's own style and script.
pub(super) fn secured(mut answer: ClientAnswer) -> ClientAnswer {
    let headers = answer.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    answer
}

/// Returns the page as a whole document.
pub(super) fn document(overview: &Overview) -> String {
    let verdict = PageVerdict::of(overview);
    let mut body = String::new();
    let mut part = |id: &str, html: String| {
        let _ = write!(body, r#"<div data-part id="{id}">{html}</div>"#);
    };
    part("tiles", tiles(overview));
    part("full", full(overview));
    part("problems", problems(overview, &verdict.diagnosis.problems));
    part("plots", plots(overview));
    part("rejected", rejected(overview));
    part("lanes", lanes(overview));
    part("projects", projects(overview));
    part("groups", groups(overview));
    part("edges", edges(overview));
    part("replays", replays(overview));
    part("facts", facts(overview));
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<noscript><meta http-equiv="refresh" content="{RELOAD_SECONDS}"></noscript>
<title>{}</title>
<link rel="icon" href="{}" data-lost="{}">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>opik-offline status</h1>
<div data-part id="verdict">{}</div>
</header>
<p id="lost" role="status" hidden></p>
<p id="said" class="unseen" role="status"></p>
<main>
{body}
</main>
<footer><div data-part id="at">As of {} UTC. Programs read <a href="status.json">status.json</a> and <a href="../metrics">metrics</a>, people with a terminal <code>opik-offline status</code>.</div></footer>
<script>{SCRIPT}</script>
</body>
</html>
"#,
        escaped(&verdict.title()),
        verdict.badge.icon(),
        Badge::Bad.icon(),
        verdict.html(&overview.page.options),
        moment(overview.at_ms),
    )
}

#[cfg(test)]
mod tests;
