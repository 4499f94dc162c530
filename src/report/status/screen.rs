//! The output of `status` for people: a list of sections, each of them lines with a label in front.

use std::time::Duration;

use super::StatusReport;
use crate::figures::{count, short_duration, size};
use crate::overview::edges::EdgeOverview;
use crate::overview::{FleetOverview, FleetReplayOverview};
use crate::printable::{self, name};
use crate::report::fleet::dial::{hold_words, pace_words};
use crate::report::groups::groups_text;
use crate::terminal::render::{Renderer, StatusMark, wrapped};
use crate::terminal::{OutputStream, Shown};

/// A section returns its lines, or none if it has nothing to report.
type Section = fn(&StatusReport) -> Vec<StatusLine>;

/// The sections in the order in which they are shown. A new one is one more line here.
const SECTIONS: &[Section] = &[
    server,
    hub,
    agent,
    other_agent,
    edges,
    fleet,
    copies,
    store,
    full,
    waiting,
    elsewhere,
    adopted,
    rates,
    time_to_go,
    held,
    held_ids,
    near_window,
    rejected,
    stranded,
    dropped,
    recovered,
    replaying,
    last_replay,
    orphans,
];

/// How many columns the label takes.
const INDENT: usize = 13;
/// How many edges are shown; `--format json` has 200.
const EDGES_SHOWN_MAX: usize = 10;
/// How many of the server's answers are shown.
const REASONS_MAX: usize = 3;

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

/// Returns the sections as text.
pub(crate) fn sections(renderer: &Renderer, report: &StatusReport) -> Shown {
    let columns = OutputStream::Out.columns();
    let mut shown = Shown::default();
    for StatusLine { name, text, painted } in SECTIONS.iter().flat_map(|section| section(report)) {
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

fn server(report: &StatusReport) -> Vec<StatusLine> {
    let server = &report.server;
    let mut text = format!("{}, {}", server.url, server.connection);
    if let Some(since) = &server.since {
        text.push_str(&format!(" since {since}"));
    }
    if let Some(latency) = server.latency_ms {
        text.push_str(&format!(" ({latency} ms)"));
    }
    let first = match server.connection {
        "available" => line("server", text).painted(StatusMark::Good, "available"),
        "unavailable" => line("server", text).painted(StatusMark::Bad, "unavailable"),
        _ => line("server", text).painted(StatusMark::Warn, "unknown"),
    };
    std::iter::once(first).chain(server.reason.as_ref().map(|reason| line("", reason))).collect()
}

/// An agent that holds messages in another store than the one that is shown.
fn other_agent(report: &StatusReport) -> Vec<StatusLine> {
    report.other_agent.iter().map(|other| line("", &other.text).painted(StatusMark::Warn, "another store")).collect()
}

/// The second hop: what is behind a server that is a hub.
fn hub(report: &StatusReport) -> Vec<StatusLine> {
    let Some(hub) = &report.server.hub else { return Vec::new() };
    let version = hub.version.as_ref().map_or(String::new(), |version| format!(" {version}"));
    let url = hub.server_url.as_deref().unwrap_or("its server");
    let since = hub.since.as_ref().map_or(String::new(), |since| format!(" since {since}"));
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
fn edges(report: &StatusReport) -> Vec<StatusLine> {
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
        let waiting = edge.waiting.map_or("unknown".to_owned(), |waiting| waiting.to_string());
        line("", format!("{}: version {version}, {waiting} waiting, heard from {silent} ago", name(host)))
    };
    let more = edges.known.saturating_sub(EDGES_SHOWN_MAX as u64);
    let more = (more > 0).then(|| line("", format!("and {more} more")));
    std::iter::once(line("edges", first)).chain(edges.list.iter().take(EDGES_SHOWN_MAX).map(edge)).chain(more).collect()
}

fn agent(report: &StatusReport) -> Vec<StatusLine> {
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
    let problem = agent.degraded_text();
    let problem =
        problem.map(|problem| line("", format!("it {problem}")).painted(StatusMark::Bad, agent.live_writes_text()));
    let files = agent.files_problem.as_ref();
    let files =
        files.map(|problem| line("", format!("few open files: {problem}")).painted(StatusMark::Warn, "few open files"));
    let client = agent.client_problem.as_ref().map(|problem| line("", problem).painted(StatusMark::Warn, "gRPC"));
    std::iter::once(first).chain(problem).chain(files).chain(client).collect()
}

/// Returns the depot, and what of the backlog has no copy in it.
fn fleet(report: &StatusReport) -> Vec<StatusLine> {
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
        let resume = format!("`opik-offline replay --fleet {depot} --resume` ends that");
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
fn copies(report: &StatusReport) -> Vec<StatusLine> {
    report.copies.as_ref().and_then(|copies| copies.text()).map(|text| line("depot", text)).into_iter().collect()
}

fn store(report: &StatusReport) -> Vec<StatusLine> {
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
    let unproven = store.unproven_since.as_ref().map(|since| {
        let reason = store.unproven_reason.as_deref().unwrap_or_default();
        let text =
            format!("unproven since {since}: {reason}; it is used again once its log was written anew and synced");
        line("", text).painted(StatusMark::Bad, "unproven")
    });
    let capacity = store.capacity_bytes.filter(|capacity| store.size_max_bytes.is_some_and(|max| *capacity < max));
    let capacity = capacity.map(|capacity| {
        let free = store.disk_free_bytes.unwrap_or(0);
        let text = format!("its disk has {} free, and room for a store of {}", size(free), size(capacity));
        line("", text).painted(StatusMark::Warn, "its disk")
    });
    let moved = store.moved_stores.iter().map(|path| {
        let text = format!(
            "moved away while it was in use: {path}; writes that may conflict with what it holds are refused; move it back, \
             or deliver it with `opik-offline replay --db {path}`"
        );
        line("", text).painted(StatusMark::Bad, "moved away")
    });
    std::iter::once(line("store", text)).chain(unproven).chain(moved).chain(capacity).chain(encryption).collect()
}

/// Why the store is full, and what to do; or that it was full.
fn full(report: &StatusReport) -> Vec<StatusLine> {
    let store = &report.store;
    let writes = |count: u64| if count == 1 { "1 write was".to_owned() } else { format!("{count} writes were") };
    let Some(full) = &store.full else {
        let refused = (store.refused_writes > 0).then(|| {
            let text = format!("{} refused when the store was full, since it was made", writes(store.refused_writes));
            line("refused", text)
        });
        return refused.into_iter().collect();
    };
    let since = full.since.as_ref().map_or(String::new(), |since| format!(" since {since}"));
    let refused = match (full.refused_writes, full.passed_on_writes) {
        (Some(refused), Some(0)) => format!(", {} refused", writes(refused)),
        (Some(refused), Some(passed)) => {
            format!(", {} refused and {passed} went straight to the server", writes(refused))
        }
        _ if store.refused_writes > 0 => format!(", {} refused since it was made", writes(store.refused_writes)),
        _ => String::new(),
    };
    let first = line("full", format!("the store takes no more{since}{refused}: {}", full.reason));
    let first = first.painted(StatusMark::Bad, "takes no more");
    std::iter::once(first).chain(full.remedies.iter().map(|remedy| line("", remedy))).collect()
}

/// The backlog in one sentence.
fn waiting(report: &StatusReport) -> Vec<StatusLine> {
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

/// Messages for other servers than the one above, and how they get there.
fn elsewhere(report: &StatusReport) -> Vec<StatusLine> {
    let others = report.elsewhere.iter().filter(|other| other.waiting > 0);
    let lines = others.map(|other| {
        let messages = count(other.waiting, "message");
        match &other.server {
            Some(url) => line(
                "elsewhere",
                format!(
                    "{messages} for {url}: `opik-offline replay --upstream {url}` or an agent for it delivers them; if it has \
                     another address now: `opik-offline replay --readdress {url} --upstream URL`"
                ),
            ),
            None => line(
                "elsewhere",
                format!("{messages} of an earlier version, which recorded no server: they go to the first agent's"),
            ),
        }
    });
    lines.collect()
}

/// The server that messages of earlier versions were assigned to, as long as messages wait.
fn adopted(report: &StatusReport) -> Vec<StatusLine> {
    if report.backlog.as_ref().is_none_or(|backlog| backlog.messages == 0) {
        return Vec::new();
    }
    let lines = report.adopted.iter().map(|it| {
        let messages = count(it.messages, "message");
        line("adopted", format!("{messages} of an earlier version are for {} since {}", it.server, it.at))
    });
    lines.collect()
}

fn rates(report: &StatusReport) -> Vec<StatusLine> {
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

fn time_to_go(report: &StatusReport) -> Vec<StatusLine> {
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

fn held(report: &StatusReport) -> Vec<StatusLine> {
    let lines = report.held.iter().map(|held| {
        let until = if held.is_over { "tried again now".to_owned() } else { format!("until {}", held.until) };
        line("held", format!("workspace {} {until}: {}", name(&held.workspace), held.reason))
    });
    let hint = "`opik-offline replay --rekey` gives these messages the configured key, after a preview";
    let is_refused = report.held.iter().any(|held| held.is_key_refused);
    lines.chain(is_refused.then(|| line("", hint))).collect()
}

fn rejected(report: &StatusReport) -> Vec<StatusLine> {
    let Some(rejected) = report.rejected.as_ref().filter(|rejected| rejected.messages > 0) else { return Vec::new() };
    let answers = rejected.by_answer.iter().map(|by| match by.status {
        Some(status) => format!("{} x {status}", by.messages),
        None => format!("{} x no answer", by.messages),
    });
    let answers = answers.collect::<Vec<_>>().join(", ");
    let messages = count(rejected.messages, "message");
    let text = format!("{messages} ({answers}): see `opik-offline inspect --rejected`");
    let of_newest = match rejected.reasons_of_newest {
        newest if newest < rejected.messages => format!("of the newest {newest}: "),
        _ => String::new(),
    };
    let reasons = rejected.reasons.iter().take(REASONS_MAX).map(|reason| {
        let status = reason.status.map_or(String::new(), |status| format!("{status} "));
        line("", format!("{of_newest}{} x {status}{}", reason.messages, reason.text))
    });
    std::iter::once(line("rejected", text)).chain(reasons).collect()
}

fn held_ids(report: &StatusReport) -> Vec<StatusLine> {
    let Some(held) = report.held_ids.as_ref().filter(|held| held.messages > 0) else { return Vec::new() };
    let messages = count(held.messages, "message");
    let text = format!(
        "{messages} with ids outside the server's window: {}; see `opik-offline inspect --status held`",
        held.remedy
    );
    vec![line("held", text).painted(StatusMark::Warn, "outside the server's window")]
}

fn near_window(report: &StatusReport) -> Vec<StatusLine> {
    let Some(at) = report.held_ids.as_ref().and_then(|held| held.create_near_window_accepted_at.as_ref()) else {
        return Vec::new();
    };
    let text = format!("a create waits since {at}: servers with UUID_VALIDATION_ENABLED refuse ids older than 24h");
    vec![line("window", text).painted(StatusMark::Warn, "refuse ids older than 24h")]
}

fn stranded(report: &StatusReport) -> Vec<StatusLine> {
    let lines = report.stranded.iter().flatten().map(|stranded| {
        let verb = if stranded.messages == 1 { "waits" } else { "wait" };
        let messages = count(stranded.messages, "message");
        let of = match report.stranded.iter().flatten().count() {
            1 => String::new(),
            _ => format!(" of workspace {}", name(&stranded.workspace)),
        };
        let what = format!("{messages}{of} {verb} for a create that is {}", stranded.status);
        let status = stranded.status;
        let todo =
            format!("see `opik-offline inspect {}`, then `replay --status {status}` or `purge` it", stranded.create);
        line("stranded", format!("{what}: {todo}"))
    });
    lines.collect()
}

fn dropped(report: &StatusReport) -> Vec<StatusLine> {
    let store = &report.store;
    let mut lines = Vec::new();
    for (dropped, why) in [
        (store.dropped_messages, "because the store was full"),
        (store.rejected_dropped_messages, "because rejected ones held more than rejected_share"),
        (store.expired_messages, "because they were older than max_age"),
    ] {
        if dropped > 0 {
            let text = format!("{} {why}", count(dropped, "message"));
            lines.push(line("dropped", text).painted(StatusMark::Bad, why));
        }
    }
    lines
}

fn recovered(report: &StatusReport) -> Vec<StatusLine> {
    let mut lines = Vec::new();
    for recovery in &report.store.recoveries {
        let (recovered, lost) = (count(recovery.recovered_messages, "message"), recovery.lost_messages);
        lines.push(line("recovered", format!("{}: {recovered} of a damaged file, {lost} lost", recovery.at)));
        let hint = "delete it once you no longer need it";
        lines.push(line("", format!("the damaged file is {}; {hint}", recovery.set_aside)));
    }
    lines
}

fn replaying(report: &StatusReport) -> Vec<StatusLine> {
    report.store.replaying.iter().map(|who| line("replaying", who)).collect()
}

fn last_replay(report: &StatusReport) -> Vec<StatusLine> {
    let lines = report.last_replay.iter().map(|last| {
        let text = format!(
            "{}: {} delivered, {} rejected, {} remaining",
            last.ended_at, last.delivered, last.rejected, last.remaining
        );
        line("last replay", text)
    });
    lines.collect()
}

fn orphans(report: &StatusReport) -> Vec<StatusLine> {
    report.orphans.iter().flat_map(|orphan| [line("orphaned", orphan.text()), line("", orphan.hint())]).collect()
}

/// Returns a rate as people read it.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 0.1 => "<0.1".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}
