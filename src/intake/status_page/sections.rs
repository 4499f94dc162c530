//! The sections of the page: what hurts and the command that helps, then what there is.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::badge::Badge;
use super::command::{LENGTH_MAX, ShownCommand, with_commands};
use super::table::{HtmlCell, HtmlTable, short};
use super::text::{ago, elided, escaped, moment, number, rate, since, size, words};
use crate::delivery::eta::in_words;
use crate::diagnosis::{Problem, Severity};
use crate::overview::rejections::RejectionOverview;
use crate::overview::{LaneOverview, Overview, ReplayOverview};

/// How many edges the page lists.
const EDGES_MAX: usize = 50;
/// How many problems it lists.
const PROBLEMS_MAX: usize = 12;
/// How many corrupt files that the store was recovered from it lists.
const RECOVERIES_MAX: usize = 5;
/// How many statuses of the server's answers it lists.
const STATUSES_MAX: usize = 8;

/// Messages, items and bytes of each type.
type SumsByType<'a> = BTreeMap<&'a str, (u64, u64, u64)>;

/// The problems that need a person, each with the commands that help. Those that have a section of their own are left
/// out.
pub(super) fn problems(overview: &Overview, problems: &[Problem]) -> String {
    let options = &overview.page.options;
    let mut items = String::new();
    let mut item = |badge: Badge, text: &str, fixes: &[String]| {
        let _ = write!(items, "<li><p>{}{}</p>", badge.html(), escaped(&elided_words(text)));
        for fix in fixes.iter().filter(|fix| fix.len() <= LENGTH_MAX) {
            let _ = write!(items, "<p>{}</p>", with_commands(fix, options));
        }
        items.push_str("</li>");
    };
    let problems: Vec<&Problem> = problems
        .iter()
        .filter(|problem| !["full", "rejected", "dropped", "recovered"].contains(&problem.name))
        .collect();
    for problem in problems.iter().take(PROBLEMS_MAX) {
        let badge = if problem.level == Severity::Failed { Badge::Bad } else { Badge::Warn };
        item(badge, &problem.text, &problem.fixes);
    }
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    if more > 0 {
        let text =
            format!("{} more are not listed: `opik-offline status --format json` lists them", number(more as u64));
        item(Badge::Warn, "There is more.", &[text]);
    }
    if let Some(problem) = overview.fleet.as_ref().and_then(|fleet| fleet.problem.as_ref()) {
        item(Badge::Warn, &format!("Nothing can be copied to the depot: {problem}"), &[]);
    }
    if items.is_empty() {
        return items;
    }
    format!(
        r#"<section aria-labelledby="h-problems"><h2 id="h-problems">Needs attention</h2><ul class="problems">{items}</ul></section>"#
    )
}

/// Returns the beginning of a text from elsewhere that may be of any length.
fn elided_words(text: &str) -> String {
    const CHARS_MAX: usize = 500;
    match text.char_indices().nth(CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Why the server rejected messages, in its own words.
pub(super) fn rejected(overview: &Overview) -> String {
    let (store, options, rejections) = (&overview.store, &overview.page.options, &overview.page.rejections);
    if store.rejected == 0 {
        return String::new();
    }
    let heads = ["Answer", "The server’s words", ">Messages", "Which", "Newest ids"];
    let mut table = HtmlTable::new("c-rejected", "Rejected by the Opik server", &heads);
    for rejection in &rejections.list {
        let answer = rejection.status.map_or("no answer".to_owned(), |code| code.to_string());
        table.row(&[
            HtmlCell::Html(format!("{}{answer}", Badge::Bad.html())),
            HtmlCell::Words(&rejection.words),
            short(number(rejection.messages)),
            HtmlCell::Long(&which(rejection)),
            HtmlCell::Html(ids(rejection)),
        ]);
    }
    let by_answer = store.rejected_by_answer.iter().take(STATUSES_MAX).map(|by| {
        let answer = by.status.map_or("no answer".to_owned(), |code| code.to_string());
        format!("{} with {answer}", number(by.messages))
    });
    let all = format!("{} in all: {}.", number(store.rejected), by_answer.collect::<Vec<_>>().join(", "));
    let read = match rejections.read {
        0 => "Their answers can’t be read here.".to_owned(),
        read if read < store.rejected => format!("The table is about the newest {}.", number(read)),
        _ => String::new(),
    };
    let others = match rejections.others {
        0 => String::new(),
        others => format!("{} with other words are not listed.", number(others)),
    };
    let note = [all, read, others].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    let newest = rejections.list.iter().filter_map(|rejection| rejection.ids.first()).max();
    let server = &options.server;
    let mut commands = String::new();
    let mut command = |what: &str, command: ShownCommand| {
        let _ = write!(commands, "<dt>{what}</dt><dd>{}</dd>", command.html());
    };
    command("List them", ShownCommand::new("inspect --rejected", options));
    if let Some(id) = newest {
        command("Show one whole", ShownCommand::new(&format!("inspect {id}"), options));
    }
    let again = ShownCommand::new("replay --rejected", options).with_server("--upstream", server);
    command("Send them again, once the cause is mended", again);
    let purge = ShownCommand::new("purge --rejected", options).with_server("--server", server);
    command("Delete them, after a question", purge);
    table.end_with(&[note], &format!(r#"<dl class="commands">{commands}</dl>"#))
}

/// Returns which messages were rejected with some words.
fn which(rejection: &RejectionOverview) -> String {
    let types = rejection.message_types.iter().map(|name| name.trim_end_matches("Message")).collect::<Vec<_>>();
    let workspaces = rejection.workspaces.iter().map(String::as_str).collect::<Vec<_>>();
    format!("{} in {}", types.join(", "), workspaces.join(", "))
}

fn ids(rejection: &RejectionOverview) -> String {
    let mut html = String::new();
    for id in &rejection.ids {
        let _ = write!(html, "<code>{id}</code> ");
    }
    if rejection.messages > rejection.ids.len() as u64 {
        html.push('…');
    }
    html
}

/// The stored messages by state and type: that many rows at most.
pub(super) fn groups(overview: &Overview) -> String {
    if overview.store.groups.is_empty() {
        return String::new();
    }
    let mut sums: Vec<(&str, SumsByType<'_>)> = Vec::new();
    for group in &overview.store.groups {
        let types = match sums.iter_mut().position(|(status, _)| *status == group.status) {
            Some(known) => &mut sums[known].1,
            None => {
                sums.push((group.status, BTreeMap::new()));
                let last = sums.len() - 1;
                &mut sums[last].1
            }
        };
        let sum = types.entry(group.message_type).or_default();
        *sum = (sum.0 + group.messages, sum.1 + group.items, sum.2 + group.body_bytes);
    }
    let heads = ["State", "Type", ">Messages", ">Items", ">Size"];
    let mut table = HtmlTable::new("c-groups", "What is stored", &heads);
    for (status, types) in &sums {
        for (message_type, (messages, items, body_bytes)) in types {
            table.row(&[
                short(state_word(status)),
                short(message_type.trim_end_matches("Message")),
                short(number(*messages)),
                short(number(*items)),
                short(size(*body_bytes)),
            ]);
        }
    }
    table.end(&[])
}

/// Returns the word that people read for a status.
fn state_word(status: &str) -> &str {
    match status {
        "failed" => "waiting",
        "registered" => "sending",
        other => other,
    }
}

/// The largest lanes with messages to deliver.
pub(super) fn lanes(overview: &Overview) -> String {
    let lanes = &overview.page.lanes;
    if lanes.list.is_empty() {
        return String::new();
    }
    let heads = ["Workspace", "Key", ">Waiting", "State", "Why"];
    let mut table = HtmlTable::new("c-lanes", "Lanes", &heads);
    for lane in &lanes.list {
        let (badge, word) = lane_state(lane, overview.at_ms);
        table.row(&[
            HtmlCell::Long(&lane.workspace),
            short(lane.key.as_deref().unwrap_or("none")),
            short(number(lane.waiting)),
            HtmlCell::Html(format!("{}{}", badge.map_or(String::new(), Badge::html), escaped(&word))),
            HtmlCell::Words(&elided(lane.held.as_ref().map_or("", |held| held.reason.as_str()))),
        ]);
    }
    let more = lanes.total.saturating_sub(lanes.list.len() as u64);
    let listed_held = lanes.list.iter().filter(|lane| lane.held.is_some()).count() as u64;
    let held = match lanes.held.saturating_sub(listed_held) {
        0 => String::new(),
        held => format!("; {} of them held", number(held)),
    };
    let more = match more {
        0 => String::new(),
        more => format!("and {} with {}{held}", words(more, "smaller lane"), words(lanes.others_waiting, "message")),
    };
    table.end(&["A lane is a workspace with the key of its clients.".to_owned(), more])
}

fn lane_state(lane: &LaneOverview, now_ms: i64) -> (Option<Badge>, String) {
    match &lane.held {
        None => (None, "in turn".to_owned()),
        Some(held) if held.until_ms <= now_ms => (Some(Badge::Warn), "tried again now".to_owned()),
        Some(held) => (Some(Badge::Warn), format!("held for {}", ago(held.until_ms, now_ms))),
    }
}

/// The projects with the most messages.
pub(super) fn projects(overview: &Overview) -> String {
    let projects = &overview.page.projects;
    if overview.store.waiting + overview.store.rejected == 0 || !overview.store.usable {
        return String::new();
    }
    let heads = ["Project", "Workspace", ">Waiting", ">Rejected", ">Size"];
    let mut table = HtmlTable::new("c-projects", "Projects", &heads);
    for project in &projects.list {
        table.row(&[
            HtmlCell::Long(project.project.as_deref().unwrap_or("(none named)")),
            HtmlCell::Long(&project.workspace),
            short(number(project.waiting)),
            short(number(project.rejected)),
            short(size(project.body_bytes)),
        ]);
    }
    let more = match projects.total.saturating_sub(projects.list.len() as u64) {
        0 => String::new(),
        more => {
            format!("and {} with {}", words(more, "smaller project"), words(projects.others_waiting, "waiting message"))
        }
    };
    let counted = match (projects.counted, projects.is_partial) {
        (0, _) => "Being counted; this takes a few seconds.".to_owned(),
        (counted, true) => format!("Counted among the oldest {}.", words(counted, "message")),
        _ => String::new(),
    };
    table.end(&[more, counted])
}

/// Agents that send through this one.
pub(super) fn edges(overview: &Overview) -> String {
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
    table.end(&[format!(
        "{} heard from within 5 minutes; {} waiting at all of them{more}",
        words(edges.recent, "edge"),
        words(edges.waiting_messages, "message")
    )])
}

/// Why the store is full, and what to do about it.
pub(super) fn full(overview: &Overview) -> String {
    let Some(full) = &overview.store.full else { return String::new() };
    let since = full.since_ms.map_or("not met by a write yet".to_owned(), |since_ms| {
        format!("for {}, since {} UTC", ago(overview.at_ms, since_ms), since(overview.at_ms, since_ms))
    });
    let mut table = HtmlTable::new("c-full", "The store is full", &["What", "How"]);
    let mut row = |name: &str, text: String| table.row(&[short(name), HtmlCell::Words(&text)]);
    row("Full", since);
    row("Why", full.reason.clone());
    row("Writes refused", number(full.refused_writes));
    row("Writes that went straight to the server", number(full.passed_on_writes));
    for remedy in &full.remedies {
        row("What to do", remedy.clone());
    }
    table.end(&["A refused write got a 503 with Retry-After: its client still has it.".to_owned()])
}

pub(super) fn replays(overview: &Overview) -> String {
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
    table.end(&[])
}

pub(super) fn facts(overview: &Overview) -> String {
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
        for recovery in store.recoveries.iter().rev().take(RECOVERIES_MAX) {
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
