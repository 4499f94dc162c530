//! The page for people: is my data safe, is it moving, when will it be done.
//!
//! One self-contained document that is whole without JavaScript; a few lines of it, when they may run, ask for the page
//! again and put in the parts that differ. Style and script are named by their digests in the Content-Security-Policy, so
//! that nothing else could run even if a value were not escaped; every value is ([`escaped`]).

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{self, HeaderName, HeaderValue};
use ring::digest::{SHA256, digest};

use super::plain;
use super::plot::Plot;
use crate::delivery::eta::{State, in_words};
use crate::intake::forward::ClientAnswer;
use crate::overview::{LaneOverview, LiveWrites, Overview, ReplayOverview};
use crate::printable;
use crate::telemetry::history::{COARSE_INTERVAL, FINE_INTERVAL, FINE_MAX};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// A dot: a browser that is told of an icon does not ask the Opik server for one.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' r='6' fill='%232f6299'/%3E%3C/svg%3E";
/// Lanes that the page lists; `/-/status.json` has more.
const LANES_MAX: usize = 50;
/// Rows of what is stored that it lists.
const GROUPS_MAX: usize = 100;
/// How often a browser without JavaScript loads the page again, in seconds.
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

/// Returns the page as an answer.
pub(super) fn page(status: &Overview) -> ClientAnswer {
    let mut answer = plain("text/html; charset=utf-8", document(status));
    let headers = answer.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    answer
}

/// Returns the whole document.
fn document(status: &Overview) -> String {
    let (mark, verdict) = verdict(status);
    let title = match status.store.usable {
        true if status.store.full.is_some() => "store full · opik-offline".to_owned(),
        true if status.store.waiting > 0 => format!("{} waiting · opik-offline", number(status.store.waiting)),
        true => "opik-offline".to_owned(),
        false => "store unusable · opik-offline".to_owned(),
    };
    let mut body = String::new();
    let mut part = |id: &str, html: String| {
        let _ = write!(body, r#"<div data-part id="{id}">{html}</div>"#);
    };
    part("tiles", tiles(status));
    part("full", full(status));
    part("plots", plots(status));
    part("groups", groups(status));
    part("lanes", lanes(status));
    part("rejected", rejected(status));
    part("replays", replays(status));
    part("facts", facts(status));
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
        mark.html(),
        escaped(&verdict),
        moment(status.at_ms),
    )
}

/// How something stands: a shape and a colour, always beside a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Good,
    Warn,
    Bad,
}

impl Mark {
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

/// The page in a sentence.
fn verdict(status: &Overview) -> (Mark, String) {
    let store = &status.store;
    let is_away = status.server.connection == "unavailable";
    if !store.usable {
        return match is_away {
            true => (Mark::Bad, "The Opik server is away, and the store can’t be used: writes are refused".into()),
            false => {
                (Mark::Bad, format!("The store can’t be used: the agent {}", LiveWrites::text_of(store.live_writes)))
            }
        };
    }
    let state = status.eta.as_ref().map_or(State::Nothing, |eta| eta.eta.state);
    let messages = messages(store.waiting);
    if let Some(full) = &store.full {
        let refused = match full.refused_writes {
            0 => String::new(),
            refused => format!("; {} refused", words(refused, "write")),
        };
        return match is_away {
            true => (Mark::Bad, format!("The store is full and the Opik server is away{refused}")),
            false => (Mark::Bad, format!("The store is full: writes only go straight to the Opik server{refused}")),
        };
    }
    match (is_away, state) {
        (true, State::Nothing) => (Mark::Warn, "The Opik server is away; nothing waits for it yet".into()),
        (true, _) => (Mark::Warn, format!("The Opik server is away; {messages} safe on disk")),
        (false, State::Nothing) if store.rejected > 0 => {
            (Mark::Warn, format!("Nothing waits; the server refused {}", words(store.rejected, "message")))
        }
        (false, State::Nothing) if status.server.connection == "unknown" => {
            (Mark::Warn, "The agent has just started and looks for the Opik server".into())
        }
        (false, State::Nothing) => (Mark::Good, "The Opik server takes everything; nothing waits".into()),
        (false, State::Held) => (Mark::Warn, format!("{messages} safe on disk; every lane is held")),
        (false, State::Stalled) => (Mark::Bad, format!("{messages} safe on disk, and nothing gets through")),
        (false, State::Growing) => (Mark::Warn, format!("{messages} safe on disk, and the backlog grows")),
        (false, _) => (Mark::Good, format!("The Opik server is back; {messages} being delivered")),
    }
}

/// `1 message is`, `3 messages are`.
fn messages(count: u64) -> String {
    let is = if count == 1 { "is" } else { "are" };
    format!("{} {is}", words(count, "message"))
}

fn tiles(status: &Overview) -> String {
    let mut html = r#"<div class="tiles">"#.to_owned();
    let mut tile = |id: &str, name: &str, mark: Option<Mark>, big: &str, lines: &[String]| {
        let _ = write!(
            html,
            r#"<section aria-labelledby="{id}"><h2 id="{id}">{name}</h2><p class="big">{}{}</p>"#,
            mark.map_or("", Mark::html),
            escaped(big)
        );
        for line in lines.iter().filter(|line| !line.is_empty()) {
            let _ = write!(html, "<p>{}</p>", escaped(line));
        }
        html.push_str("</section>");
    };
    let server = &status.server;
    let (mark, word) = match server.connection {
        "available" => (Mark::Good, "Available"),
        "unavailable" => (Mark::Bad, "Unavailable"),
        _ => (Mark::Warn, "Not known yet"),
    };
    let since =
        format!("for {}, since {} UTC", ago(status.at_ms, server.since_ms), since(status.at_ms, server.since_ms));
    tile("t-server", "Opik server", Some(mark), word, &[since, server.reason.clone().unwrap_or_default()]);

    let store = &status.store;
    if store.usable {
        let lines = match store.oldest_accepted_at_ms {
            None => vec!["nothing has to be delivered".to_owned()],
            Some(oldest) => vec![
                format!("with {} in {}", words(store.items, "item"), size(store.body_bytes)),
                format!("the oldest for {}", ago(status.at_ms, oldest)),
            ],
        };
        let moved = store.moved_stores.iter().map(|path| format!("more in {path}, which was moved away: move it back"));
        let lines: Vec<String> = lines.into_iter().chain(moved).collect();
        tile("t-waiting", "Messages waiting, safe on disk", None, &number(store.waiting), &lines);
    } else {
        let reason = store.reason.clone().unwrap_or_default();
        let mut lines = vec![reason];
        if store.refused_while_unusable > 0 {
            lines.push(format!("{} refused since, to be sent again", words(store.refused_while_unusable, "write")));
        }
        tile("t-waiting", "Messages waiting, safe on disk", Some(Mark::Bad), "Store unusable", &lines);
    }

    match &status.rates {
        None => tile("t-rates", "Messages a second", None, "Measuring", &["needs a few seconds".to_owned()]),
        Some(rates) => {
            let window = in_words(rates.window_seconds);
            let lines = [
                format!("{} forwarded at once", rate(rates.forwarded_per_second)),
                format!("{} stored", rate(rates.stored_per_second)),
                format!("{} delivered from the store", rate(rates.delivered_per_second)),
                format!("over the last {}", if window == "1m" { "minute" } else { &window }),
            ];
            let big = format!("{} in, {} out", rate(rates.in_per_second), rate(rates.out_per_second));
            tile("t-rates", "Messages a second", None, &big, &lines);
        }
    }

    let (mark, big, line) = match &status.eta {
        None => (Some(Mark::Bad), "Unknown".to_owned(), String::new()),
        Some(told) => {
            let time = told.eta.seconds.map(|seconds| in_words(seconds.max(1.0)));
            match told.eta.state {
                State::Nothing => (None, "Nothing to do".to_owned(), String::new()),
                State::Growing => (Some(Mark::Warn), "Not in sight".to_owned(), told.text.clone()),
                State::Stalled => (Some(Mark::Bad), "Stuck".to_owned(), told.text.clone()),
                State::Moving => (None, time.unwrap_or_default(), told.text.clone()),
                State::Held => (Some(Mark::Warn), "Held".to_owned(), told.text.clone()),
                State::ServerAway | State::Idle => (None, "After the outage".to_owned(), told.text.clone()),
            }
        }
    };
    tile("t-eta", "Done in", mark, &big, &[line]);
    html.push_str("</div>");
    html
}

fn plots(status: &Overview) -> String {
    let recent = Plot {
        id: "recent",
        title: "Last 15 minutes",
        begin: "15 min ago",
        span: FINE_INTERVAL * FINE_MAX as u32,
        interval: FINE_INTERVAL,
        samples: &status.history,
        now_ms: status.at_ms,
    };
    let day = Plot {
        id: "day",
        title: "Last 24 hours",
        begin: "24 h ago",
        span: Duration::from_secs(24 * 3600),
        interval: COARSE_INTERVAL,
        samples: &status.day,
        now_ms: status.at_ms,
    };
    format!(
        r#"<section aria-labelledby="h-plots"><h2 id="h-plots">Messages waiting</h2><div class="plots">{}{}</div></section>"#,
        recent.render(),
        day.render()
    )
}

/// A table in a section. Heads that begin with `>` are of columns of numbers.
struct Table {
    html: String,
    numbers: Vec<bool>,
}

/// A cell: text that may be broken into lines, a text that is not, or HTML of our own.
enum Cell<'a> {
    Long(&'a str),
    Short(Cow<'a, str>),
    Html(String),
}

impl Table {
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

    fn row(&mut self, cells: &[Cell<'_>]) {
        self.html.push_str("<tr>");
        for (cell, is_number) in cells.iter().zip(&self.numbers) {
            let _ = match cell {
                Cell::Long(text) => write!(self.html, r#"<td class="wrap">{}</td>"#, escaped(&elided(text))),
                Cell::Short(text) if *is_number => write!(self.html, r#"<td class="n">{}</td>"#, escaped(text)),
                Cell::Short(text) => write!(self.html, "<td>{}</td>", escaped(text)),
                Cell::Html(html) => write!(self.html, "<td>{html}</td>"),
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

fn short(text: impl Into<String>) -> Cell<'static> {
    Cell::Short(Cow::Owned(text.into()))
}

fn groups(status: &Overview) -> String {
    if status.store.groups.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new("c-groups", "What is stored", &["Overview", "Type", "Workspace", ">Messages", ">Items", ">Size"]);
    for group in status.store.groups.iter().take(GROUPS_MAX) {
        table.row(&[
            short(group.status),
            short(group.message_type.trim_end_matches("Message")),
            Cell::Long(&group.workspace),
            short(number(group.messages)),
            short(number(group.items)),
            short(size(group.body_bytes)),
        ]);
    }
    let more = status.store.groups.len().saturating_sub(GROUPS_MAX) as u64;
    table.end(&if more == 0 { String::new() } else { format!("and {} more rows", number(more)) })
}

fn lanes(status: &Overview) -> String {
    if status.lanes.is_empty() {
        return String::new();
    }
    let mut table = Table::new("c-lanes", "Lanes", &["Workspace", "Key", ">Waiting", "State", "Why"]);
    for lane in status.lanes.iter().take(LANES_MAX) {
        let (mark, word) = lane_state(lane, status.at_ms);
        table.row(&[
            Cell::Long(&lane.workspace),
            short(lane.key.as_deref().unwrap_or("none")),
            short(number(lane.waiting)),
            Cell::Html(format!("{}{}", mark.map_or("", Mark::html), escaped(&word))),
            Cell::Long(lane.held.as_ref().map_or("", |held| held.reason.as_str())),
        ]);
    }
    let more = status.lanes_total.saturating_sub(LANES_MAX.min(status.lanes.len()) as u64);
    let more = if more == 0 { String::new() } else { format!("and {} more, whose messages are younger", number(more)) };
    table.end(&more)
}

fn lane_state(lane: &LaneOverview, now_ms: i64) -> (Option<Mark>, String) {
    match &lane.held {
        None => (None, "in turn".to_owned()),
        Some(held) if held.until_ms <= now_ms => (Some(Mark::Warn), "tried again now".to_owned()),
        Some(held) => (Some(Mark::Warn), format!("held for {}", ago(held.until_ms, now_ms))),
    }
}

/// How the store is full, and what to do about it.
fn full(status: &Overview) -> String {
    let Some(full) = &status.store.full else { return String::new() };
    let since = full.since_ms.map_or("not met by a write yet".to_owned(), |since_ms| {
        format!("for {}, since {} UTC", ago(status.at_ms, since_ms), since(status.at_ms, since_ms))
    });
    let mut table = Table::new("c-full", "The store is full", &["What", "How"]);
    let mut row = |name: &str, text: String| table.row(&[short(name), Cell::Html(escaped(&text).into_owned())]);
    row("Full", since);
    row("Why", full.reason.clone());
    row("Writes refused", number(full.refused_writes));
    row("Writes that went straight to the server", number(full.passed_on_writes));
    for remedy in &full.remedies {
        row("What to do", remedy.clone());
    }
    table.end("A refused write got a 503 with Retry-After: its client still has it.")
}

fn rejected(status: &Overview) -> String {
    if status.store.rejected_by_answer.is_empty() {
        return String::new();
    }
    let mut table = Table::new("c-rejected", "Rejected by the server", &["Answer", ">Messages"]);
    for by in &status.store.rejected_by_answer {
        let answer = by.status.map_or("no answer".to_owned(), |code| code.to_string());
        table.row(&[Cell::Html(format!("{}{answer}", Mark::Bad.html())), short(number(by.messages))]);
    }
    table.end(
        "They are kept. See why with <code>opik-offline inspect --rejected</code>, try them again with \
         <code>opik-offline replay --rejected</code>.",
    )
}

fn replays(status: &Overview) -> String {
    if status.replays.is_empty() {
        return String::new();
    }
    let heads = ["Ended (UTC)", "By", ">Delivered", ">Rejected", ">Left", ">Took", ">Per second"];
    let mut table = Table::new("c-replays", "Recent replays", &heads);
    for replay in &status.replays {
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

fn facts(status: &Overview) -> String {
    let mut html = r#"<section aria-labelledby="h-facts"><h2 id="h-facts">Agent and store</h2><dl>"#.to_owned();
    let mut fact = |name: &str, value: String| {
        let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
    };
    let agent = &status.agent;
    fact("Server", status.server.url.clone());
    fact("Agent", format!("version {}, process {}, on {}", agent.version, agent.pid, agent.listen));
    fact("Running for", in_words(agent.uptime_seconds as f64));
    let store = &status.store;
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

/// Returns a text with what means something in HTML, or turns the text around it, written so that it does not.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    let text = printable::line(text);
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return text;
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Returns the beginning and the end of a text that would fill the page.
fn elided(text: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 120;
    const END_CHARS: usize = 40;
    let count = text.chars().count();
    if count <= CHARS_MAX {
        return Cow::Borrowed(text);
    }
    let (begin, end) = (text.chars().take(CHARS_MAX - END_CHARS), text.chars().skip(count - END_CHARS));
    Cow::Owned(begin.chain(['…']).chain(end).collect())
}

/// Returns a number with its thousands apart.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn words(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", number(count), if count == 1 { "" } else { "s" })
}

fn size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 0.1 => "< 0.1".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => number(rate.round() as u64),
    }
}

/// Returns how long it was from then to now.
fn ago(now_ms: i64, then_ms: i64) -> String {
    in_words(now_ms.saturating_sub(then_ms).max(0) as f64 / 1000.0)
}

/// Returns the time of day of what was within a day, else the date with it.
fn since(now_ms: i64, then_ms: i64) -> String {
    if (0..86_400_000).contains(&(now_ms - then_ms)) { clock(then_ms) } else { moment(then_ms) }
}

/// Returns a time in UTC: `2026-11-22 20:07:08`.
fn moment(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string();
    text.trim_end_matches('Z').replace('T', " ")
}

/// Returns the time of day in UTC.
pub(super) fn clock(ms: i64) -> String {
    moment(ms).split_once(' ').map_or(String::new(), |(_, clock)| clock.to_owned())
}

#[cfg(test)]
mod tests;
