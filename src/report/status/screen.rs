//! The output of `status` for people: a list of sections, each of them lines with a label in front.

use std::time::Duration;

use super::StatusReport;
use crate::diagnosis::Severity;
use crate::figures::{Clock, count, separated, short_duration, size};
use crate::hint;
use crate::overview::edges::EdgeOverview;
use crate::overview::{FleetOverview, FleetReplayOverview};
use crate::printable::{self, name};
use crate::report::fleet::dial::{hold_words, pace_words};
use crate::report::groups::groups_text;
use crate::report::totals::TotalsRow;
use crate::terminal::render::{Renderer, StatusMark, hanging, wrapped};
use crate::terminal::{OutputStream, Shown};

/// A section returns its lines, or none if it has nothing to report.
type Section = fn(&StatusReport, Clock) -> Vec<StatusLine>;

/// The sections in the order in which they are shown. A new one is one more line here; what is wrong is a problem
/// ([`crate::diagnosis`]) and no section.
const SECTIONS: &[Section] = &[
    server,
    hub,
    agent,
    edges,
    fleet,
    copies,
    store,
    was_full,
    waiting,
    workspaces,
    rejected,
    adopted,
    rates,
    time_to_go,
    replaying,
    last_replay,
];

/// How many columns the label takes.
const INDENT: usize = 13;
/// How many edges are shown; `--format json` has 200.
const EDGES_SHOWN_MAX: usize = 10;
/// How many workspaces are shown; `inspect --totals workspace` shows all.
const WORKSPACES_MAX: usize = 3;
/// How many problems are shown; `--format json` has all.
const PROBLEMS_MAX: usize = 12;
/// Columns before the text of a problem.
const PROBLEM_INDENT: usize = 3;

/// A line: a label (empty if it continues a section), its text, and the word of it that is coloured.
struct StatusLine {
    name: &'static str,
    text: String,
    painted: Option<(StatusMark, &'static str)>,
}

fn line(name: &'static str, text: impl Into<String>) -> StatusLine {
    StatusLine { name, text: text.into(), painted: None }
}

impl StatusLine {
    fn painted(self, mark: StatusMark, word: &'static str) -> Self {
        Self { painted: Some((mark, word)), ..self }
    }
}

/// Returns the verdict, the problems with their remedies, and the sections as text.
pub(crate) fn overview(renderer: &Renderer, report: &StatusReport, is_utc: bool) -> Shown {
    let mut shown = verdict(renderer, report);
    shown.end_line();
    if !report.problems.is_empty() {
        shown.add(&problems(renderer, report));
        shown.end_line();
    }
    shown.add(&sections(renderer, report, Clock { now_ms: report.now_ms, is_utc }));
    shown
}

fn mark(level: Severity) -> StatusMark {
    match level {
        Severity::Failed => StatusMark::Bad,
        Severity::Warning => StatusMark::Warn,
        Severity::Ok => StatusMark::Good,
    }
}

fn verdict(renderer: &Renderer, report: &StatusReport) -> Shown {
    let mut shown = Shown::default();
    let sentence = printable::line(&report.verdict.sentence);
    for line in wrapped(&sentence, OutputStream::Out.columns()).lines() {
        renderer.add_painted(&mut shown, mark(report.verdict.level), line);
        shown.end_line();
    }
    shown
}

fn problems(renderer: &Renderer, report: &StatusReport) -> Shown {
    let columns = OutputStream::Out.columns();
    let mut shown = Shown::default();
    let indented = |text: &str| hanging(&printable::line(text), columns, PROBLEM_INDENT);
    for problem in report.problems.iter().take(PROBLEMS_MAX) {
        renderer.add_mark(&mut shown, mark(problem.level));
        shown.add_lines(&format!(" {}\n", indented(&problem.text)));
        for fix in &problem.fixes {
            shown.add_lines(&format!("{:PROBLEM_INDENT$}{}\n", "", indented(fix)));
        }
    }
    let more = report.problems.len().saturating_sub(PROBLEMS_MAX);
    if more > 0 {
        let all = hint::command("status --format json");
        shown.add_line(&format!("   and {more} more: {all} lists them"));
    }
    shown
}

fn sections(renderer: &Renderer, report: &StatusReport, clock: Clock) -> Shown {
    let columns = OutputStream::Out.columns();
    let mut shown = Shown::default();
    for StatusLine { name, text, painted } in SECTIONS.iter().flat_map(|section| section(report, clock)) {
        let said = wrapped(&printable::line(&text), columns.saturating_sub(INDENT));
        let said = said.replace('\n', &format!("\n{:INDENT$}", ""));
        let is_word = |at: &usize| !said[..*at].ends_with(|c: char| c.is_alphanumeric() || "/.-".contains(c));
        let painted = painted.and_then(|(mark, word)| {
            let at = said.match_indices(word).map(|(at, _)| at).find(is_word)?;
            Some((mark, at, at + word.len()))
        });
        shown.add_text(&format!("{name:<12} "));
        match painted {
            Some((mark, from, to)) => {
                shown.add_lines(&said[..from]);
                renderer.add_painted(&mut shown, mark, &said[from..to]);
                shown.add_lines(&said[to..]);
            }
            None => shown.add_lines(&said),
        }
        shown.end_line();
    }
    shown
}

/// Returns the table of stored messages after an empty line; nothing if there are none.
pub(crate) fn stored(renderer: &Renderer, report: &StatusReport) -> Shown {
    let mut shown = Shown::default();
    if let Some(backlog) = report.backlog.as_ref().filter(|backlog| !backlog.groups.is_empty()) {
        shown.end_line();
        shown.add(&groups_text(renderer, &backlog.groups));
    }
    shown
}

fn server(report: &StatusReport, clock: Clock) -> Vec<StatusLine> {
    let server = &report.server;
    let mut text = format!("{}, {}", server.url, server.connection);
    if let Some(since_ms) = server.since_ms {
        text.push_str(&format!(" {}", clock.since(since_ms)));
    }
    if let Some(latency) = server.latency_ms {
        text.push_str(&format!(" ({latency} ms)"));
    }
    let first = match server.connection {
        "available" => line("server", text).painted(StatusMark::Good, "available"),
        "unavailable" => line("server", text).painted(StatusMark::Bad, "unavailable"),
        _ => line("server", text).painted(StatusMark::Warn, "unknown"),
    };
    // Why it is unavailable is a problem, and has a remedy.
    let notice = server.reason.as_ref().filter(|_| server.connection != "unavailable");
    std::iter::once(first).chain(notice.map(|notice| line("", notice))).collect()
}

/// The second hop: what is behind a server that is a hub.
fn hub(report: &StatusReport, clock: Clock) -> Vec<StatusLine> {
    let Some(hub) = &report.server.hub else { return Vec::new() };
    let version = hub.version.as_ref().map_or(String::new(), |version| format!(" {version}"));
    let url = hub.server_url.as_deref().unwrap_or("its server");
    let since = hub.since_ms.map_or(String::new(), |since_ms| format!(" {}", clock.since(since_ms)));
    let waiting = hub.waiting.map_or(String::new(), |waiting| {
        format!("; {} {} there", count(waiting, "message"), if waiting == 1 { "waits" } else { "wait" })
    });
    let text = format!("opik-offline{version}; behind it {url}, {}{since}{waiting}", hub.connection);
    let line = line("hub", text);
    vec![match hub.connection.as_str() {
        "available" => line.painted(StatusMark::Good, "available"),
        "unavailable" => line.painted(StatusMark::Bad, "unavailable"),
        _ => line.painted(StatusMark::Warn, "unknown"),
    }]
}

/// Agents that send through this one.
fn edges(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let edges = &report.edges;
    if edges.known == 0 {
        return Vec::new();
    }
    let first = format!(
        "{} known, {} heard from within 5 minutes, {} waiting at them",
        edges.known,
        edges.recent,
        count(edges.waiting_messages, "message")
    );
    let edge = |edge: &EdgeOverview| {
        let host = edge.host.as_deref().unwrap_or("unnamed");
        let version = edge.version.as_deref().unwrap_or("unknown");
        let silent = short_duration(Duration::from_secs(edge.silent_seconds));
        let waiting = edge.waiting.map_or("unknown".to_owned(), separated);
        line("", format!("{}: version {version}, {waiting} waiting, heard from {silent} ago", name(host)))
    };
    let more = edges.known.saturating_sub(EDGES_SHOWN_MAX as u64);
    let more = (more > 0).then(|| line("", format!("and {more} more")));
    std::iter::once(line("edges", first)).chain(edges.list.iter().take(EDGES_SHOWN_MAX).map(edge)).chain(more).collect()
}

fn agent(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let agent = &report.agent;
    let first = match (agent.running, &agent.listen, agent.pid, agent.uptime_seconds) {
        (true, Some(listen), Some(pid), Some(uptime)) => {
            let uptime = short_duration(Duration::from_secs(uptime));
            line("agent", format!("running on {listen} for {uptime} (pid {pid})")).painted(StatusMark::Good, "running")
        }
        (true, ..) => line("agent", "running").painted(StatusMark::Good, "running"),
        (false, ..) if report.store.state == "unusable" => {
            line("agent", "unknown: the store, which records where it listens, can't be read")
                .painted(StatusMark::Warn, "unknown")
        }
        (false, ..) => line("agent", "not running").painted(StatusMark::Warn, "not running"),
    };
    vec![first]
}

/// Returns the depot, and what of the backlog has no copy in it.
fn fleet(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let Some(fleet) = &report.fleet else { return Vec::new() };
    let state = match (&fleet.problem, &fleet.stream, fleet.unshipped_messages) {
        (Some(_), ..) => "cannot be used".to_owned(),
        (None, None, 0) => "nothing to copy".to_owned(),
        (None, _, 0) => "has copies of all that waits".to_owned(),
        (None, _, unshipped) => format!("{} without a copy yet", count(unshipped, "message")),
    };
    let first = line("depot", format!("{}, {state}", fleet.depot));
    let first = match &fleet.problem {
        Some(_) => first.painted(StatusMark::Bad, "cannot be used"),
        None => first,
    };
    let only_here = fleet.problem.as_ref().map(|problem| {
        line("", format!("{} only in the local store: {problem}", count(fleet.unshipped_messages, "message")))
    });
    let taken = (fleet.handed_over > 0).then(|| {
        line("", format!("{} taken over by a replayer, which delivers it", count(fleet.handed_over, "stream")))
    });
    [Some(first), only_here, taken, replay(fleet)].into_iter().flatten().chain(dial(fleet)).collect()
}

/// Returns what the agent does with streams of agents that are gone, if it replays them.
fn replay(fleet: &FleetOverview) -> Option<StatusLine> {
    let FleetReplayOverview { problem, streams, delivered, rejected } = fleet.replay.as_ref()?;
    if let Some(problem) = problem {
        let text = format!("streams of other agents are not replayed: {problem}");
        return Some(line("", text).painted(StatusMark::Bad, "not replayed"));
    }
    let (held, delivered) = (count(*streams, "stream"), count(*delivered, "message"));
    let rejected = if *rejected > 0 { format!(", {rejected} rejected") } else { String::new() };
    Some(line("", format!("replays agents that are gone: {held} held, {delivered} delivered{rejected}")))
}

/// Returns what people decided about the pace of the fleet: why nothing moves, or not faster.
fn dial(fleet: &FleetOverview) -> impl Iterator<Item = StatusLine> {
    let (dial, depot) = (&fleet.dial, &fleet.depot);
    let hold = dial.hold.as_ref().map(|hold| {
        let resume = format!("{} ends that", hint::command(&format!("replay --fleet {depot} --resume")));
        let held = hold_words(hold.until_ms, hold.seconds_left, &hold.by);
        let text = format!("{held}: nothing that waits is delivered; {resume}");
        line("fleet", text).painted(StatusMark::Warn, "held")
    });
    let name = if hold.is_some() { "" } else { "fleet" };
    let share = dial.share.map_or(String::new(), |share| format!(", of which {share:.1} are for this agent"));
    let pace = dial.pace.as_ref().map(|pace| {
        let words = pace_words(pace.per_second, pace.since_ms, &pace.by);
        line(name, format!("pace {words}{share}"))
    });
    let problem = dial.problem.as_ref().map(|problem| line("", format!("{problem}; the last one stays in force")));
    [hold, pace, problem].into_iter().flatten()
}

/// Messages with copies in a depot that nobody delivers.
fn copies(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    report.copies.as_ref().and_then(|copies| copies.text()).map(|text| line("depot", text)).into_iter().collect()
}

fn store(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let store = &report.store;
    let text = match (store.state, store.file_bytes) {
        ("none", _) => format!("{} (nothing was stored yet)", store.path),
        (_, Some(bytes)) => match store.size_max_bytes {
            Some(max) => format!("{}, {} of at most {}", store.path, size(bytes), size(max)),
            None => format!("{}, {}", store.path, size(bytes)),
        },
        _ => {
            return vec![
                line("store", format!("{} cannot be used", store.path)).painted(StatusMark::Bad, "cannot be used"),
            ];
        }
    };
    let encryption = store.encryption.as_ref().map(|encryption| line("encryption", encryption.text()));
    std::iter::once(line("store", text)).chain(encryption).collect()
}

/// That the store was full, and what that has cost.
fn was_full(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let store = &report.store;
    if store.full.is_some() || store.refused_writes == 0 {
        return Vec::new();
    }
    let was = if store.refused_writes == 1 { "was" } else { "were" };
    let writes = count(store.refused_writes, "write");
    vec![line("refused", format!("{writes} {was} refused when the store was full, since it was made"))]
}

/// The backlog in one sentence.
fn waiting(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let Some(backlog) = &report.backlog else {
        return vec![line("waiting", "unknown: the store can't be read").painted(StatusMark::Bad, "unknown")];
    };
    if backlog.messages == 0 {
        // Not "all is delivered": some messages may have been rejected, dropped or purged.
        return vec![line("waiting", "nothing")];
    }
    let oldest = Duration::from_secs(backlog.oldest_age_seconds.unwrap_or(0));
    let text = format!(
        "{} with {} ({}), the oldest for {}",
        count(backlog.messages, "message"),
        count(backlog.items, "item"),
        size(backlog.body_bytes),
        short_duration(oldest),
    );
    vec![line("waiting", text)]
}

/// Whose messages are stored, if they are of several workspaces.
fn workspaces(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let rows = report.backlog.as_ref().map_or(&[][..], |backlog| &backlog.workspaces);
    if rows.len() < 2 {
        return Vec::new();
    }
    let row = |row: &TotalsRow| {
        let counts = [(row.waiting, "waiting"), (row.rejected, "rejected"), (row.held, "held")];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let counts: Vec<String> = counts.map(|(count, word)| format!("{} {word}", separated(count))).collect();
        format!("{} {}", name(row.name.as_deref().unwrap_or("none")), counts.join(", "))
    };
    let more = match rows.len().saturating_sub(WORKSPACES_MAX) {
        0 => String::new(),
        more => format!("; {} more: `opik-offline inspect --totals workspace`", separated(more as u64)),
    };
    let shown: Vec<String> = rows.iter().take(WORKSPACES_MAX).map(row).collect();
    vec![line("workspaces", format!("{}{more}", shown.join("; ")))]
}

/// The server that messages of earlier versions were assigned to, as long as messages wait.
fn adopted(report: &StatusReport, clock: Clock) -> Vec<StatusLine> {
    if report.backlog.as_ref().is_none_or(|backlog| backlog.messages == 0) {
        return Vec::new();
    }
    let lines = report.adopted.iter().map(|it| {
        let messages = count(it.messages, "message");
        line("adopted", format!("{messages} of an earlier version are for {} {}", it.server, clock.since(it.at_ms)))
    });
    lines.collect()
}

fn rates(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let Some(rates) = &report.rates else { return Vec::new() };
    let window = short_duration(Duration::from_secs_f64(rates.window_seconds.max(0.0).round()));
    let text = format!(
        "{}/s in, {}/s out over the last {} ({}/s forwarded at once, {}/s stored, {}/s delivered from the store)",
        rate(rates.in_per_second),
        rate(rates.out_per_second),
        if window == "1m" { "minute" } else { &window },
        rate(rates.forwarded_per_second),
        rate(rates.stored_per_second),
        rate(rates.delivered_per_second),
    );
    vec![line("rates", text)]
}

fn time_to_go(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    use crate::delivery::eta::EtaState;
    let Some(eta) = report.eta.as_ref().filter(|eta| eta.eta.state != EtaState::Nothing) else { return Vec::new() };
    let line = line("time to go", &eta.text);
    vec![match eta.eta.state {
        EtaState::Stalled => line.painted(StatusMark::Bad, "nothing gets through"),
        EtaState::Growing => line.painted(StatusMark::Warn, "no end in sight"),
        EtaState::Idle => line.painted(StatusMark::Warn, "nobody delivers it"),
        EtaState::Held => line.painted(StatusMark::Warn, "held"),
        EtaState::Nothing | EtaState::Moving | EtaState::ServerAway => line,
    }]
}

fn rejected(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    let Some(rejected) = report.rejected.as_ref().filter(|rejected| rejected.messages > 0) else { return Vec::new() };
    let answers = rejected.by_answer.iter().map(|by| match by.status {
        Some(status) => format!("{} x {status}", separated(by.messages)),
        None => format!("{} x no answer", separated(by.messages)),
    });
    let answers = answers.collect::<Vec<_>>().join(", ");
    vec![line("rejected", format!("{} ({answers})", count(rejected.messages, "message")))]
}

fn replaying(report: &StatusReport, _: Clock) -> Vec<StatusLine> {
    report.store.replaying.iter().map(|who| line("replaying", who)).collect()
}

fn last_replay(report: &StatusReport, clock: Clock) -> Vec<StatusLine> {
    let lines = report.last_replay.iter().map(|last| {
        // What remains now is above.
        let text = format!(
            "{}: {} delivered, {} rejected, {} remained then",
            clock.at(last.ended_at_ms),
            separated(last.delivered),
            separated(last.rejected),
            separated(last.remaining)
        );
        line("last replay", text)
    });
    lines.collect()
}

/// Returns a rate as people read it.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 0.1 => "<0.1".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => separated(rate.round() as u64),
    }
}
