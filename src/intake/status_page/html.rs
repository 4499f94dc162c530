//! The page for people: is my data safe, is it moving, when will it be done.
//!
//! One self-contained document that is complete without JavaScript. A few lines of script, if they may run, fetch the
//! page again and replace the parts that differ. The Content-Security-Policy allows style and script by their digests,
//! so that nothing else could run even if a value were not escaped; every value is ([`escaped`]).

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{self, HeaderName, HeaderValue};
use ring::digest::{SHA256, digest};

use super::plot::Plot;
use super::text::{ago, elided, escaped, moment, number, rate, since, size, words};
use crate::delivery::eta::{EtaState, in_words};
use crate::intake::forward::ClientAnswer;
use crate::overview::{EtaOverview, LaneOverview, LiveWrites, Overview, ReplayOverview};
use crate::telemetry::history::{COARSE_INTERVAL, FINE_INTERVAL, FINE_MAX};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// A dot: a browser that finds an icon here does not request one from the Opik server.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' r='6' fill='%232f6299'/%3E%3C/svg%3E";
/// How many lanes the page lists; `/-/status.json` has more.
const LANES_MAX: usize = 50;
/// How many edges it lists.
const EDGES_MAX: usize = 50;
/// How many rows of stored messages it lists.
const GROUPS_MAX: usize = 100;
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
    let (badge, verdict) = verdict(overview);
    let title = match overview.store.usable {
        true if overview.store.full.is_some() => "store full · opik-offline".to_owned(),
        true if overview.store.waiting > 0 => format!("{} waiting · opik-offline", number(overview.store.waiting)),
        true => "opik-offline".to_owned(),
        false => "store unusable · opik-offline".to_owned(),
    };
    let mut body = String::new();
    let mut part = |id: &str, html: String| {
        let _ = write!(body, r#"<div data-part id="{id}">{html}</div>"#);
    };
    part("tiles", tiles(overview));
    part("full", full(overview));
    part("plots", plots(overview));
    part("groups", groups(overview));
    part("lanes", lanes(overview));
    part("edges", edges(overview));
    part("rejected", rejected(overview));
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
<link rel="icon" href="{ICON}">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>opik-offline status</h1>
<div data-part id="verdict"><p class="verdict">{}{}</p></div>
</header>
<p id="lost" role="status" hidden></p>
<main>
{body}
</main>
<footer><div data-part id="at">As of {} UTC. Programs read <a href="status.json">status.json</a> and <a href="../metrics">metrics</a>, people with a terminal <code>opik-offline status</code>.</div></footer>
<script>{SCRIPT}</script>
</body>
</html>
"#,
        escaped(&title),
        badge.html(),
        escaped(&verdict),
        moment(overview.at_ms),
    )
}

/// A state as a shape and a colour, always beside a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Badge {
    Good,
    Warn,
    Bad,
}

impl Badge {
    fn html(self) -> &'static str {
        match self {
            Self::Good => {
                r#"<svg class="mark good" viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="5"/></svg>"#
            }
            Self::Warn => {
                r#"<svg class="mark warn" viewBox="0 0 10 10" aria-hidden="true"><path d="M5 0l5 10H0z"/></svg>"#
            }
            Self::Bad => {
                r#"<svg class="mark bad" viewBox="0 0 10 10" aria-hidden="true"><path d="M0 0h10v10H0z"/></svg>"#
            }
        }
    }
}

/// Returns the page in one sentence.
fn verdict(overview: &Overview) -> (Badge, String) {
    let store = &overview.store;
    let is_away = overview.server.connection == "unavailable";
    if !store.usable {
        return match is_away {
            true => (Badge::Bad, "The Opik server is away, and the store can’t be used: writes are refused".into()),
            false => {
                (Badge::Bad, format!("The store can’t be used: the agent {}", LiveWrites::text_of(store.live_writes)))
            }
        };
    }
    let state = overview.eta.as_ref().map_or(EtaState::Nothing, |eta| eta.eta.state);
    let messages = messages(store.waiting);
    if let Some(full) = &store.full {
        let refused = match full.refused_writes {
            0 => String::new(),
            refused => format!("; {} refused", words(refused, "write")),
        };
        return match is_away {
            true => (Badge::Bad, format!("The store is full and the Opik server is away{refused}")),
            false => (Badge::Bad, format!("The store is full: writes only go straight to the Opik server{refused}")),
        };
    }
    match (is_away, state) {
        (true, EtaState::Nothing) => (Badge::Warn, "The Opik server is away; nothing waits for it yet".into()),
        (true, _) => (Badge::Warn, format!("The Opik server is away; {messages} safe on disk")),
        (false, EtaState::Nothing) if store.rejected > 0 => {
            (Badge::Warn, format!("Nothing waits; the server refused {}", words(store.rejected, "message")))
        }
        (false, EtaState::Nothing) if overview.server.connection == "unknown" => {
            (Badge::Warn, "The agent has just started and looks for the Opik server".into())
        }
        (false, EtaState::Nothing) => (Badge::Good, "The Opik server takes everything; nothing waits".into()),
        (false, EtaState::Held) => (Badge::Warn, format!("{messages} safe on disk; every lane is held")),
        (false, EtaState::Stalled) => (Badge::Bad, format!("{messages} safe on disk, and nothing gets through")),
        (false, EtaState::Growing) => (Badge::Warn, format!("{messages} safe on disk, and the backlog grows")),
        (false, _) => (Badge::Good, format!("The Opik server is back; {messages} being delivered")),
    }
}

/// `1 message is`, `3 messages are`.
fn messages(count: u64) -> String {
    let is = if count == 1 { "is" } else { "are" };
    format!("{} {is}", words(count, "message"))
}

fn tiles(overview: &Overview) -> String {
    let tiles = [server_tile(overview), waiting_tile(overview), rates_tile(overview), eta_tile(overview)].concat();
    format!(r#"<div class="tiles">{tiles}</div>"#)
}

fn tile(id: &str, name: &str, badge: Option<Badge>, big: &str, lines: &[String]) -> String {
    let mut html = format!(
        r#"<section aria-labelledby="{id}"><h2 id="{id}">{name}</h2><p class="big">{}{}</p>"#,
        badge.map_or("", Badge::html),
        escaped(big)
    );
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let _ = write!(html, "<p>{}</p>", escaped(line));
    }
    html.push_str("</section>");
    html
}

fn server_tile(overview: &Overview) -> String {
    let server = &overview.server;
    let (badge, word) = match server.connection {
        "available" => (Badge::Good, "Available"),
        "unavailable" => (Badge::Bad, "Unavailable"),
        _ => (Badge::Warn, "Not known yet"),
    };
    let since = server.since_ms.map_or(String::new(), |since_ms| {
        format!("for {}, since {} UTC", ago(overview.at_ms, since_ms), since(overview.at_ms, since_ms))
    });
    let hub = server.hub.as_ref().map_or(String::new(), |hub| {
        let url = hub.server_url.as_deref().unwrap_or("its server");
        let waiting = hub.waiting.map_or(String::new(), |waiting| format!(", {} there", words(waiting, "message")));
        format!("a hub; behind it {url} is {}{waiting}", hub.connection)
    });
    tile("t-server", "Opik server", Some(badge), word, &[since, hub, server.reason.clone().unwrap_or_default()])
}

fn waiting_tile(overview: &Overview) -> String {
    let (id, name, store) = ("t-waiting", "Messages waiting, safe on disk", &overview.store);
    if !store.usable {
        let mut lines = vec![store.reason.clone().unwrap_or_default()];
        if store.refused_while_unusable > 0 {
            lines.push(format!("{} refused since, to be sent again", words(store.refused_while_unusable, "write")));
        }
        return tile(id, name, Some(Badge::Bad), "Store unusable", &lines);
    }
    let mut lines = match store.oldest_accepted_at_ms {
        None => vec!["nothing has to be delivered".to_owned()],
        Some(oldest) => vec![
            format!("with {} in {}", words(store.items, "item"), size(store.body_bytes)),
            format!("the oldest for {}", ago(overview.at_ms, oldest)),
        ],
    };
    let moved = store.moved_stores.iter().map(|path| format!("more in {path}, which was moved away: move it back"));
    lines.extend(moved);
    tile(id, name, None, &number(store.waiting), &lines)
}

fn rates_tile(overview: &Overview) -> String {
    let (id, name) = ("t-rates", "Messages a second");
    let Some(rates) = &overview.rates else {
        return tile(id, name, None, "Measuring", &["needs a few seconds".to_owned()]);
    };
    let window = in_words(rates.window_seconds);
    let lines = [
        format!("{} forwarded at once", rate(rates.forwarded_per_second)),
        format!("{} stored", rate(rates.stored_per_second)),
        format!("{} delivered from the store", rate(rates.delivered_per_second)),
        format!("over the last {}", if window == "1m" { "minute" } else { &window }),
    ];
    let big = format!("{} in, {} out", rate(rates.in_per_second), rate(rates.out_per_second));
    tile(id, name, None, &big, &lines)
}

fn eta_tile(overview: &Overview) -> String {
    let (badge, big, line) = match &overview.eta {
        None => (Some(Badge::Bad), "Unknown".to_owned(), String::new()),
        Some(EtaOverview { eta, text }) => {
            let time = eta.seconds.map(|seconds| in_words(seconds.max(1.0)));
            match eta.state {
                EtaState::Nothing => (None, "Nothing to do".to_owned(), String::new()),
                EtaState::Growing => (Some(Badge::Warn), "Not in sight".to_owned(), text.clone()),
                EtaState::Stalled => (Some(Badge::Bad), "Stuck".to_owned(), text.clone()),
                EtaState::Moving => (None, time.unwrap_or_default(), text.clone()),
                EtaState::Held => (Some(Badge::Warn), "Held".to_owned(), text.clone()),
                EtaState::ServerAway | EtaState::Idle => (None, "After the outage".to_owned(), text.clone()),
            }
        }
    };
    tile("t-eta", "Done in", badge, &big, &[line])
}

fn plots(overview: &Overview) -> String {
    let recent = Plot {
        id: "recent",
        title: "Last 15 minutes",
        begin: "15 min ago",
        span: FINE_INTERVAL * FINE_MAX as u32,
        interval: FINE_INTERVAL,
        samples: &overview.history,
        now_ms: overview.at_ms,
    };
    let day = Plot {
        id: "day",
        title: "Last 24 hours",
        begin: "24 h ago",
        span: Duration::from_secs(24 * 3600),
        interval: COARSE_INTERVAL,
        samples: &overview.day,
        now_ms: overview.at_ms,
    };
    format!(
        r#"<section aria-labelledby="h-plots"><h2 id="h-plots">Messages waiting</h2><div class="plots">{}{}</div></section>"#,
        recent.render(),
        day.render()
    )
}

/// A table in a section. A head that begins with `>` marks a column of numbers.
struct HtmlTable {
    html: String,
    numbers: Vec<bool>,
}

/// A cell: text that may wrap, text that may not, or HTML of our own.
enum HtmlCell<'a> {
    Long(&'a str),
    Short(Cow<'a, str>),
    Html(String),
}

impl HtmlTable {
    fn new(id: &str, caption: &str, heads: &[&str]) -> Self {
        let mut html = format!(
            r#"<section><div class="scroll" role="region" aria-labelledby="{id}" tabindex="0"><table><caption id="{id}">{caption}</caption><thead><tr>"#
        );
        for head in heads {
            let class = if head.starts_with('>') { r#" class="n""# } else { "" };
            let _ = write!(html, r#"<th scope="col"{class}>{}</th>"#, head.trim_start_matches('>'));
        }
        html.push_str("</tr></thead><tbody>");
        Self { html, numbers: heads.iter().map(|head| head.starts_with('>')).collect() }
    }

    fn row(&mut self, cells: &[HtmlCell<'_>]) {
        self.html.push_str("<tr>");
        for (cell, is_number) in cells.iter().zip(&self.numbers) {
            let _ = match cell {
                HtmlCell::Long(text) => write!(self.html, r#"<td class="wrap">{}</td>"#, escaped(&elided(text))),
                HtmlCell::Short(text) if *is_number => write!(self.html, r#"<td class="n">{}</td>"#, escaped(text)),
                HtmlCell::Short(text) => write!(self.html, "<td>{}</td>", escaped(text)),
                HtmlCell::Html(html) => write!(self.html, "<td>{html}</td>"),
            };
        }
        self.html.push_str("</tr>");
    }

    fn end(mut self, note: &str) -> String {
        self.html.push_str("</tbody></table></div>");
        if !note.is_empty() {
            let _ = write!(self.html, r#"<p class="note">{note}</p>"#);
        }
        self.html.push_str("</section>");
        self.html
    }
}

fn short(text: impl Into<String>) -> HtmlCell<'static> {
    HtmlCell::Short(Cow::Owned(text.into()))
}

fn groups(overview: &Overview) -> String {
    if overview.store.groups.is_empty() {
        return String::new();
    }
    let mut table = HtmlTable::new(
        "c-groups",
        "What is stored",
        &["Overview", "Type", "Workspace", ">Messages", ">Items", ">Size"],
    );
    for group in overview.store.groups.iter().take(GROUPS_MAX) {
        table.row(&[
            short(group.status),
            short(group.message_type.trim_end_matches("Message")),
            HtmlCell::Long(&group.workspace),
            short(number(group.messages)),
            short(number(group.items)),
            short(size(group.body_bytes)),
        ]);
    }
    let more = overview.store.groups.len().saturating_sub(GROUPS_MAX) as u64;
    table.end(&if more == 0 { String::new() } else { format!("and {} more rows", number(more)) })
}

fn lanes(overview: &Overview) -> String {
    if overview.lanes.is_empty() {
        return String::new();
    }
    let mut table = HtmlTable::new("c-lanes", "Lanes", &["Workspace", "Key", ">Waiting", "State", "Why"]);
    for lane in overview.lanes.iter().take(LANES_MAX) {
        let (badge, word) = lane_state(lane, overview.at_ms);
        table.row(&[
            HtmlCell::Long(&lane.workspace),
            short(lane.key.as_deref().unwrap_or("none")),
            short(number(lane.waiting)),
            HtmlCell::Html(format!("{}{}", badge.map_or("", Badge::html), escaped(&word))),
            HtmlCell::Long(lane.held.as_ref().map_or("", |held| held.reason.as_str())),
        ]);
    }
    let more = overview.lanes_total.saturating_sub(LANES_MAX.min(overview.lanes.len()) as u64);
    let more = if more == 0 { String::new() } else { format!("and {} more, whose messages are younger", number(more)) };
    table.end(&more)
}

/// Agents that send through this one.
fn edges(overview: &Overview) -> String {
    let edges = &overview.edges;
    if edges.known == 0 {
        return String::new();
    }
    let mut table = HtmlTable::new("c-edges", "Edges", &["Host", "Version", ">Waiting", ">Heard from"]);
    for edge in edges.list.iter().take(EDGES_MAX) {
        table.row(&[
            HtmlCell::Long(edge.host.as_deref().unwrap_or("unnamed")),
            short(edge.version.as_deref().unwrap_or("unknown").to_owned()),
            short(edge.waiting.map_or("unknown".to_owned(), number)),
            short(format!("{} ago", in_words(edge.silent_seconds as f64))),
        ]);
    }
    let more = edges.known.saturating_sub(EDGES_MAX.min(edges.list.len()) as u64);
    let more = if more == 0 { String::new() } else { format!("; {} more are not listed", number(more)) };
    table.end(&format!(
        "{} heard from within 5 minutes; {} waiting at all of them{more}",
        words(edges.recent, "edge"),
        words(edges.waiting_messages, "message")
    ))
}

fn lane_state(lane: &LaneOverview, now_ms: i64) -> (Option<Badge>, String) {
    match &lane.held {
        None => (None, "in turn".to_owned()),
        Some(held) if held.until_ms <= now_ms => (Some(Badge::Warn), "tried again now".to_owned()),
        Some(held) => (Some(Badge::Warn), format!("held for {}", ago(held.until_ms, now_ms))),
    }
}

/// Why the store is full, and what to do about it.
fn full(overview: &Overview) -> String {
    let Some(full) = &overview.store.full else { return String::new() };
    let since = full.since_ms.map_or("not met by a write yet".to_owned(), |since_ms| {
        format!("for {}, since {} UTC", ago(overview.at_ms, since_ms), since(overview.at_ms, since_ms))
    });
    let mut table = HtmlTable::new("c-full", "The store is full", &["What", "How"]);
    let mut row = |name: &str, text: String| table.row(&[short(name), HtmlCell::Html(escaped(&text).into_owned())]);
    row("Full", since);
    row("Why", full.reason.clone());
    row("Writes refused", number(full.refused_writes));
    row("Writes that went straight to the server", number(full.passed_on_writes));
    for remedy in &full.remedies {
        row("What to do", remedy.clone());
    }
    table.end("A refused write got a 503 with Retry-After: its client still has it.")
}

fn rejected(overview: &Overview) -> String {
    if overview.store.rejected_by_answer.is_empty() {
        return String::new();
    }
    let mut table = HtmlTable::new("c-rejected", "Rejected by the server", &["Answer", ">Messages"]);
    for by in &overview.store.rejected_by_answer {
        let answer = by.status.map_or("no answer".to_owned(), |code| code.to_string());
        table.row(&[HtmlCell::Html(format!("{}{answer}", Badge::Bad.html())), short(number(by.messages))]);
    }
    table.end(
        "They are kept. See why with <code>opik-offline inspect --rejected</code>, try them again with \
         <code>opik-offline replay --rejected</code>.",
    )
}

fn replays(overview: &Overview) -> String {
    if overview.replays.is_empty() {
        return String::new();
    }
    let heads = ["Ended (UTC)", "By", ">Delivered", ">Rejected", ">Left", ">Took", ">Per second"];
    let mut table = HtmlTable::new("c-replays", "Recent replays", &heads);
    for replay in &overview.replays {
        let ReplayOverview { by, started_at_ms, ended_at_ms, delivered, rejected, remaining } = replay;
        let seconds = (ended_at_ms - started_at_ms).max(1) as f64 / 1000.0;
        table.row(&[
            short(moment(*ended_at_ms)),
            short(by.as_str()),
            short(number(*delivered)),
            short(number(*rejected)),
            short(number(*remaining)),
            short(if seconds < 1.0 { "< 1s".to_owned() } else { in_words(seconds) }),
            short(rate(*delivered as f64 / seconds)),
        ]);
    }
    table.end("")
}

fn facts(overview: &Overview) -> String {
    let mut html = r#"<section aria-labelledby="h-facts"><h2 id="h-facts">Agent and store</h2><dl>"#.to_owned();
    let mut fact = |name: &str, value: String| {
        let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
    };
    let agent = &overview.agent;
    fact("Server", overview.server.url.clone());
    fact("Agent", format!("version {}, process {}, on {}", agent.version, agent.pid, agent.listen));
    fact("Running for", in_words(agent.uptime_seconds as f64));
    let store = &overview.store;
    if store.usable {
        let max = store.size_max_bytes.map_or(String::new(), |max| format!(" of at most {}", size(max)));
        fact("Store", format!("{}{max}", size(store.file_bytes)));
        if let Some(free) = store.disk_free_bytes {
            fact("Free on disk", size(free));
            if let Some(capacity) =
                store.capacity_bytes.filter(|held| store.size_max_bytes.is_some_and(|max| *held < max))
            {
                fact("Room on disk", format!("for a store of {}", size(capacity)));
            }
        }
        if store.dropped_messages > 0 {
            fact("Dropped", format!("{}, because the store was full", words(store.dropped_messages, "message")));
        }
        if store.rejected_dropped_messages > 0 {
            let dropped = words(store.rejected_dropped_messages, "rejected message");
            fact("Rejected, dropped", format!("{dropped}, because they held more than rejected_share"));
        }
        if store.refused_writes > 0 {
            fact("Refused", format!("{}, because the store was full", words(store.refused_writes, "write")));
        }
        if store.expired_messages > 0 {
            let expired = words(store.expired_messages, "message");
            fact("Expired", format!("{expired}, because of an age over max_age"));
        }
        for recovery in &store.recoveries {
            let (recovered, lost) = (words(recovery.recovered_messages, "message"), number(recovery.lost_messages));
            let at = moment(recovery.at_ms);
            let why = elided(&recovery.reason);
            fact("Recovered", format!("{recovered} of a damaged file, {lost} lost, at {at} UTC ({why})"));
        }
        if let Some(replaying) = &store.replaying {
            fact("Replaying", replaying.clone());
        }
    }
    html.push_str("</dl></section>");
    html
}

#[cfg(test)]
mod tests;
