//! `opik-offline status`

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::groups::{Group, groups, groups_text};
use super::render::{Renderer, count, short_duration, size, time};
use super::salvage::{OrphanLine, orphans};
use super::selection::{duration, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, existing_store, stop_on_signals, translate, upstream};
use crate::config::Config;
use crate::delivery::pacing::Pace;
use crate::shutdown::Shutdown;
use crate::store::{AgentRecord, Backlog, Condition, Filter, StoreError, now_ms};
use crate::upstream::Upstream;

const AFTER_HELP: &str = "\
Examples:
  Is my data safe, is it moving, when will it be done:
    opik-offline status
  Alert from cron when more than 1000 messages wait, or one waits longer than an hour:
    opik-offline status --quiet --fail-if-backlog 1000 --fail-if-older-than 1h

Exit codes:
  0    Shown; no threshold is exceeded
  1    The store can't be read
  2    Wrong usage or configuration
  4    A threshold is exceeded
  130  Interrupted (--watch)";

/// Show the connection, the agent and what is stored
///
/// It reads the store itself, so that it works with and without an agent running.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct StatusArgs {
    /// Show it again every 2 seconds until interrupted
    #[arg(long)]
    watch: bool,

    /// Exit with 4 when more than this many messages wait
    #[arg(long, value_name = "N")]
    fail_if_backlog: Option<u64>,

    /// Exit with 4 when a message has been waiting longer than this
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    fail_if_older_than: Option<Duration>,
}

/// Everything that `status` tells. Fields are only ever added within one schema version.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    server: Server,
    agent: Agent,
    /// `null` when the store can't be read: nobody knows.
    backlog: Option<Waiting>,
    rejected: Option<Rejected>,
    store: StoreReport,
    held: Vec<Held>,
    /// Stores that killed Python processes of this user left in the temporary folder.
    orphans: Vec<OrphanLine>,
    last_replay: Option<LastReplay>,
}

#[derive(Serialize)]
struct Server {
    url: String,
    /// `available` or `unavailable`; `unknown` when an agent has just started.
    connection: String,
    since: Option<String>,
    reason: Option<String>,
    latency_ms: Option<u64>,
}

#[derive(Serialize)]
struct Agent {
    running: bool,
    pid: Option<u64>,
    listen: Option<String>,
    version: Option<String>,
    uptime_seconds: Option<u64>,
    /// What the agent says of its store: differs from ours when it can't use it.
    store_problem: Option<String>,
}

#[derive(Serialize, Default)]
struct Waiting {
    messages: u64,
    items: u64,
    body_bytes: u64,
    oldest_accepted_at: Option<String>,
    oldest_age_seconds: Option<u64>,
    /// At the documented pace or the one that was set; replay is faster while the server keeps up.
    eta_seconds_max: f64,
    groups: Vec<Group>,
}

#[derive(Serialize, Default)]
struct Rejected {
    messages: u64,
    by_answer: Vec<RejectedBy>,
}

#[derive(Serialize)]
struct RejectedBy {
    status: Option<u16>,
    messages: u64,
}

#[derive(Serialize)]
struct StoreReport {
    path: String,
    /// `usable`, `none` (nothing was ever stored) or `unusable`.
    state: &'static str,
    reason: Option<String>,
    file_bytes: Option<u64>,
    size_max_bytes: Option<u64>,
    disk_free_bytes: Option<u64>,
    dropped_messages: u64,
    replaying: Option<String>,
}

#[derive(Serialize)]
struct Held {
    workspace: String,
    reason: String,
    until: String,
    /// Whether that time has come: the lane is tried again, and nothing of it has passed yet.
    is_over: bool,
}

#[derive(Serialize)]
struct LastReplay {
    by: String,
    started_at: String,
    ended_at: String,
    delivered: u64,
    rejected: u64,
    remaining: u64,
}

/// How long an agent on this machine may take to tell about itself.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often `--watch` looks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

pub fn run(common: &Common, args: &StatusArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let upstream = upstream(&config)?;
    let shutdown = Shutdown::new();
    if args.watch {
        stop_on_signals(&shutdown)?;
    }
    loop {
        let (report, problem) = gather(&config, &upstream);
        if args.watch {
            renderer.clear_screen()?;
        }
        if !common.quiet || problem.is_none() && args.fail_if_backlog.is_none() && args.fail_if_older_than.is_none() {
            renderer.result(&report, people)?;
        }
        if !args.watch {
            return end(args, &report, problem);
        }
        if shutdown.sleep(WATCH_INTERVAL) {
            return Err(Failure::silent(Exit::Interrupted));
        }
    }
}

fn end(args: &StatusArgs, report: &Report, problem: Option<StoreError>) -> Result<(), Failure> {
    if let Some(problem) = problem {
        return Err(problem.into());
    }
    let Some(backlog) = &report.backlog else { return Ok(()) };
    if let Some(limit) = args.fail_if_backlog.filter(|limit| backlog.messages > *limit) {
        let wait = if backlog.messages == 1 { "waits" } else { "wait" };
        let waiting = count(backlog.messages, "message");
        return Err(Failure::new(Exit::Remaining, format!("{waiting} {wait}, more than {limit}"), None));
    }
    let oldest = backlog.oldest_age_seconds.map(Duration::from_secs);
    if let (Some(limit), Some(oldest)) = (args.fail_if_older_than, oldest)
        && oldest > limit
    {
        let (oldest, limit) = (short_duration(oldest), short_duration(limit));
        let text = format!("a message has been waiting for {oldest}, longer than {limit}");
        return Err(Failure::new(Exit::Remaining, text, None));
    }
    Ok(())
}

/// Asks store, agent and server. What can't be asked is part of the answer.
fn gather(config: &Config, upstream: &Upstream) -> (Report, Option<StoreError>) {
    let now = now_ms();
    let read = existing_store(config).and_then(|store| match store {
        None => Ok(None),
        Some(store) => Ok(Some((store.backlog(&Filter::default())?, store.condition()?))),
    });
    let (backlog, condition, problem) = match read {
        Ok(Some((backlog, condition))) => (Some(backlog), Some(condition), None),
        Ok(None) => (Some(Backlog::default()), None, None),
        Err(error) => (None, None, Some(error)),
    };
    let agents = condition.as_ref().map_or(&[][..], |condition| &condition.agents);
    let (agent, seen) = ask_agent(config, agents);
    let report = Report {
        schema_version: 1,
        server: server(config, upstream, seen),
        agent,
        backlog: backlog.as_ref().map(|backlog| waiting(config, backlog, now)),
        rejected: backlog.as_ref().map(rejected),
        store: store_report(config, condition.as_ref(), problem.as_ref()),
        held: condition
            .iter()
            .flat_map(|condition| &condition.held)
            .map(|(lane, hold)| Held {
                workspace: lane.workspace_name().to_owned(),
                reason: hold.reason.clone(),
                until: time(hold.until_ms),
                is_over: hold.until_ms <= now,
            })
            .collect(),
        orphans: orphans(),
        last_replay: condition.and_then(|condition| condition.last_replay).map(|record| LastReplay {
            by: record.role,
            started_at: time(record.started_at_ms),
            ended_at: time(record.ended_at_ms),
            delivered: record.delivered,
            rejected: record.rejected,
            remaining: record.remaining,
        }),
    };
    (report, problem)
}

/// Asks agents that announced themselves in the store, then the configured address.
fn ask_agent(config: &Config, records: &[AgentRecord]) -> (Agent, Option<serde_json::Value>) {
    let configured = config.listen.value.to_string();
    let known = records.iter().map(|record| record.listen.clone());
    for listen in known.chain([configured]) {
        let base_url = format!("http://{listen}");
        let settings =
            crate::upstream::UpstreamSettings { base_url, proxy: None, ..translate::upstream_settings(config) };
        let Some(answer) = Upstream::new(&settings).ok().and_then(|agent| agent.read("-/ready", AGENT_TIMEOUT).ok())
        else {
            continue;
        };
        let Ok(ready) = serde_json::from_str::<serde_json::Value>(&answer.text) else { continue };
        let Some(told) = ready.get("agent") else { continue };
        let store_problem = ready["store"]["reason"].as_str().map(str::to_owned);
        let agent = Agent {
            running: true,
            pid: told["pid"].as_u64(),
            listen: Some(listen),
            version: told["version"].as_str().map(str::to_owned),
            uptime_seconds: told["uptime_seconds"].as_u64(),
            store_problem,
        };
        return (agent, Some(ready));
    }
    let agent =
        Agent { running: false, pid: None, listen: None, version: None, uptime_seconds: None, store_problem: None };
    (agent, None)
}

/// Returns where the running agent listens, if there is one, and what is wrong with its store, for `healthcheck`.
pub(super) fn running_agent(config: &Config, records: &[AgentRecord]) -> Option<(String, Option<String>)> {
    let (agent, _) = ask_agent(config, records);
    Some((agent.listen?, agent.store_problem))
}

/// What the running agent knows of the server, or a ping of our own.
fn server(config: &Config, upstream: &Upstream, seen: Option<serde_json::Value>) -> Server {
    if let Some(server) = seen.as_ref().and_then(|ready| ready.get("server")) {
        return Server {
            url: server["url"].as_str().unwrap_or_default().to_owned(),
            connection: server["connection"].as_str().unwrap_or("unknown").to_owned(),
            since: server["since_ms"].as_i64().map(time),
            reason: server["reason"].as_str().map(str::to_owned),
            latency_ms: None,
        };
    }
    let (connection, reason, latency) = match upstream.ping(config.connection_monitor_check_timeout.value) {
        Ok(pong) if pong.status == 200 => ("available", None, Some(pong.latency)),
        Ok(pong) => ("unavailable", Some(format!("the ping was answered with {}", pong.status)), Some(pong.latency)),
        Err(failure) => ("unavailable", Some(failure.to_string()), None),
    };
    Server {
        url: upstream.base_url().to_owned(),
        connection: connection.to_owned(),
        since: None,
        reason,
        latency_ms: latency.map(|latency| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn waiting(config: &Config, backlog: &Backlog, now: i64) -> Waiting {
    let groups = groups(backlog);
    let sum = |of: fn(&Group) -> u64| groups.iter().filter(|group| group.status != "rejected").map(of).sum();
    let oldest = backlog.oldest_accepted_at_ms;
    let messages = backlog.waiting();
    Waiting {
        messages,
        items: sum(|group| group.items),
        body_bytes: sum(|group| group.body_bytes),
        oldest_accepted_at: oldest.map(time),
        oldest_age_seconds: oldest.map(|oldest| u64::try_from(now.saturating_sub(oldest) / 1000).unwrap_or(0)),
        eta_seconds_max: Pace::start(translate::pace(config)).pauses_for(messages).as_secs_f64(),
        groups,
    }
}

fn rejected(backlog: &Backlog) -> Rejected {
    let by_answer = backlog.rejected_by_answer.iter();
    Rejected {
        messages: backlog.rejected(),
        by_answer: by_answer.map(|(status, messages)| RejectedBy { status: *status, messages: *messages }).collect(),
    }
}

fn store_report(config: &Config, condition: Option<&Condition>, problem: Option<&StoreError>) -> StoreReport {
    StoreReport {
        path: config.db.value.display().to_string(),
        state: match (condition, problem) {
            (Some(_), _) => "usable",
            (None, Some(_)) => "unusable",
            (None, None) => "none",
        },
        reason: problem.map(ToString::to_string),
        file_bytes: condition.map(|condition| condition.file_bytes),
        size_max_bytes: condition.and_then(|condition| condition.size_max),
        disk_free_bytes: condition.and_then(|condition| condition.disk_free_bytes),
        dropped_messages: condition.map_or(0, |condition| condition.dropped),
        replaying: condition.and_then(|condition| condition.lease.as_ref()).map(ToString::to_string),
    }
}

fn people(renderer: &Renderer, report: &Report) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<12} {value}\n"));
    let server = &report.server;
    let mut connection = format!("{}, {}", server.url, server.connection);
    if let Some(since) = &server.since {
        connection.push_str(&format!(" since {since}"));
    }
    if let Some(latency) = server.latency_ms {
        connection.push_str(&format!(" ({latency} ms)"));
    }
    row("server", connection);
    if let Some(reason) = &server.reason {
        row("", reason.clone());
    }
    let agent = &report.agent;
    row(
        "agent",
        match (agent.running, &agent.listen, agent.pid, agent.uptime_seconds) {
            (true, Some(listen), Some(pid), Some(uptime)) => {
                format!("running on {listen} for {} (pid {pid})", short_duration(Duration::from_secs(uptime)))
            }
            (true, ..) => "running".to_owned(),
            (false, ..) => "not running".to_owned(),
        },
    );
    if let Some(problem) = &agent.store_problem {
        row("", format!("it only passes writes on: {problem}"));
    }
    let store = &report.store;
    row(
        "store",
        match (store.state, store.file_bytes) {
            ("none", _) => format!("{} (nothing was stored yet)", store.path),
            (_, Some(bytes)) => match store.size_max_bytes {
                Some(max) => format!("{}, {} of at most {}", store.path, size(bytes), size(max)),
                None => format!("{}, {}", store.path, size(bytes)),
            },
            _ => format!("{} cannot be used", store.path),
        },
    );
    row("waiting", waiting_text(report));
    if let Some(rejected) = report.rejected.as_ref().filter(|rejected| rejected.messages > 0) {
        let answers = rejected.by_answer.iter().map(|by| match by.status {
            Some(status) => format!("{} x {status}", by.messages),
            None => format!("{} x no answer", by.messages),
        });
        let answers = answers.collect::<Vec<_>>().join(", ");
        let messages = count(rejected.messages, "message");
        row("rejected", format!("{messages} ({answers}): see `opik-offline inspect --rejected`"));
    }
    if store.dropped_messages > 0 {
        row("dropped", format!("{} because the store was full", count(store.dropped_messages, "message")));
    }
    for held in &report.held {
        let until = if held.is_over { "tried again now".to_owned() } else { format!("until {}", held.until) };
        row("held", format!("workspace {} {until}: {}", held.workspace, held.reason));
    }
    if let Some(replaying) = &store.replaying {
        row("replaying", replaying.clone());
    }
    if let Some(last) = &report.last_replay {
        row(
            "last replay",
            format!(
                "{}: {} delivered, {} rejected, {} remaining",
                last.ended_at, last.delivered, last.rejected, last.remaining
            ),
        );
    }
    for orphan in &report.orphans {
        row("orphaned", orphan.text());
        row("", orphan.hint());
    }
    if let Some(backlog) = report.backlog.as_ref().filter(|backlog| !backlog.groups.is_empty()) {
        text.push('\n');
        text.push_str(&groups_text(renderer, &backlog.groups));
    }
    text
}

/// What still has to reach the server, in a sentence.
fn waiting_text(report: &Report) -> String {
    let Some(backlog) = &report.backlog else { return "unknown: the store can't be read".to_owned() };
    if backlog.messages == 0 {
        // Not "all is delivered": some may have been rejected, dropped or purged.
        return "nothing".to_owned();
    }
    let oldest = Duration::from_secs(backlog.oldest_age_seconds.unwrap_or(0));
    let mut text = format!(
        "{} with {} ({}), the oldest for {}",
        count(backlog.messages, "message"),
        count(backlog.items, "item"),
        size(backlog.body_bytes),
        short_duration(oldest),
    );
    let pauses = Duration::try_from_secs_f64(backlog.eta_seconds_max.ceil()).unwrap_or_default();
    if !pauses.is_zero() {
        text.push_str(&format!("; replay pauses for {} at most", short_duration(pauses)));
    }
    text
}
