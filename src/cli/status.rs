//! `opik-offline status`

mod screen;
mod watch;

use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use self::watch::Watching;
use super::groups::{Group, groups};
use super::salvage::{OrphanLine, orphans};
use super::selection::{duration, refuse_jsonl};
use super::wrapped::store_option;
use super::{
    Common, Exit, Failure, configuration, existing_store_without_key, stop_on_signals, translate, upstream_or_none,
};
use crate::config::{Config, ProcessEnvironment, is_utf8_locale};
use crate::delivery::eta::{Situation, eta};
use crate::delivery::id_window;
use crate::delivery::pacing::Pace;
use crate::figures::{count, short_duration, time};
use crate::intake::status::{ElsewhereStatus, EtaStatus, LiveWrites, elsewhere, pace_of, rejected_body_bytes};
use crate::message::MessageStatus;
use crate::protocol::recognise::Presence;
use crate::replay::near_id_window;
use crate::shutdown::Shutdown;
use crate::store::full_state::remedies;
use crate::store::{
    AgentRecord, Backlog, BacklogGroup, Condition, Encryption, Filter, FullLimit, Hold, KeyState, Page, Store,
    StoreError, mount, now_ms,
};
use crate::telemetry::history::{Rates, Sample};
use crate::upstream::{Pong, Upstream};

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
    /// Messages whose ids lie outside the server's window; `null` when the store can't be read.
    held_ids: Option<HeldIds>,
    /// Messages that wait for a create that the server refused, by workspace; `null` when the store can't be read.
    stranded: Option<Vec<StrandedLine>>,
    /// What comes and goes; `null` when no agent tells.
    rates: Option<Rates>,
    /// When the backlog will have reached the server; `null` when the store can't be read.
    eta: Option<EtaStatus>,
    store: StoreReport,
    held: Vec<Held>,
    /// Messages that were accepted for other servers than `server`.
    elsewhere: Vec<ElsewhereStatus>,
    /// Which servers were given what earlier versions stored, which recorded no server.
    adopted: Vec<Adopted>,
    /// Stores that killed Python processes of this user left in the temporary folder.
    orphans: Vec<OrphanLine>,
    last_replay: Option<LastReplay>,
    /// What the agent has seen of late, for `--watch`; empty when none tells.
    #[serde(skip)]
    history: Vec<Sample>,
    /// What was seen now, for `--watch` without an agent.
    #[serde(skip)]
    reading: Sample,
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

#[derive(Serialize, Default)]
struct Agent {
    running: bool,
    pid: Option<u64>,
    listen: Option<String>,
    version: Option<String>,
    uptime_seconds: Option<u64>,
    /// What the agent says of its store: differs from ours when it can't use it.
    store_problem: Option<String>,
    /// What it does with live writes meanwhile: [`LiveWrites::word`].
    live_writes: Option<String>,
    /// What the agent has too few open files for, and what to do.
    files_problem: Option<String>,
}

impl Agent {
    /// Returns what it does with live writes, for people.
    fn does(&self) -> &'static str {
        LiveWrites::text_of(self.live_writes.as_deref().unwrap_or_default())
    }

    /// Returns that and why, for an agent that can't use its store.
    fn degraded(&self) -> Option<String> {
        let problem = self.store_problem.as_ref()?;
        Some(format!("{}: {problem}", self.does()))
    }
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
    /// The commonest answers among the newest of them, `reasons_of_newest` at most.
    reasons: Vec<Reason>,
    reasons_of_newest: u64,
}

/// An answer that refused messages.
#[derive(Serialize)]
struct Reason {
    status: Option<u16>,
    text: String,
    messages: u64,
}

/// Messages that the server refuses for the time in their ids.
#[derive(Serialize)]
struct HeldIds {
    messages: u64,
    /// What lets them in.
    remedy: &'static str,
    /// When the oldest create that still waits was accepted, if it comes near the default window of 24 hours.
    create_near_window_accepted_at: Option<String>,
}

/// Messages of one workspace that wait for a create that the server refused.
#[derive(Serialize)]
struct StrandedLine {
    workspace: String,
    /// The least that there are.
    messages: u64,
    /// The refused message that the first of them waits for.
    create: i64,
    /// `held` or `rejected`.
    status: &'static str,
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
    /// Since when it has to be written anew and synced before it is used again, because a write or a sync failed.
    unproven_since: Option<String>,
    /// What failed.
    unproven_reason: Option<String>,
    file_bytes: Option<u64>,
    size_max_bytes: Option<u64>,
    /// Why the file system under it keeps less than a disk of this machine, if it does.
    file_system_problem: Option<String>,
    disk_free_bytes: Option<u64>,
    /// What its files can reach: the limit, or less where the disk has no room for that.
    capacity_bytes: Option<u64>,
    /// How it is full; `null` while it takes messages, and when it can't be read.
    full: Option<FullReport>,
    /// Writes that agents refused because it was full, since it was made.
    refused_writes: u64,
    /// Bytes of the bodies and files of rejected messages.
    rejected_body_bytes: u64,
    /// Rejected messages dropped because they held more than `rejected_share` and room was needed.
    rejected_dropped_messages: u64,
    dropped_messages: u64,
    /// Dropped because they were older than `max_age`.
    expired_messages: u64,
    /// Damaged files that this store was recovered from, as long as they lie there.
    recoveries: Vec<Recovery>,
    /// Stores that were moved away under the running agent, with messages in them.
    moved_stores: Vec<String>,
    replaying: Option<String>,
    /// `null` when there is no store, or none that can be read.
    encryption: Option<EncryptionReport>,
}

/// How the store is full.
#[derive(Serialize)]
struct FullReport {
    /// `null` when no agent has found it full.
    since: Option<String>,
    /// `max_size`, `disk_reserve`, `disk` or `rejected`.
    limit: String,
    reason: String,
    /// Writes that the running agent refused since then; `null` when none tells.
    refused_writes: Option<u64>,
    /// Writes that the server took at once instead; `null` when no agent tells.
    passed_on_writes: Option<u64>,
    remedies: Vec<String>,
}

impl FullReport {
    /// What the running agent tells, or what the store says by itself.
    fn of(config: &Config, told: Option<&ToldFull>, backlog: &Backlog, condition: &Condition) -> Option<Self> {
        let (limit, reason) = match (told, &condition.full) {
            (Some(told), _) => (told.limit.clone(), told.reason.clone()),
            (None, Some(full)) => (full.limit.name().to_owned(), full.reason.clone()),
            (None, None) => return None,
        };
        let since_ms = told.map_or(condition.full_record.since_ms, |told| told.since_ms);
        let options = store_option(config);
        let known = FullLimit::ALL.into_iter().find(|known| known.name() == limit);
        Some(Self {
            since: since_ms.map(time),
            refused_writes: told.map(|told| told.refused_writes),
            passed_on_writes: told.map(|told| told.passed_on_writes),
            remedies: known
                .map(|limit| remedies(limit, backlog.waiting(), backlog.rejected(), &options))
                .unwrap_or_default(),
            limit,
            reason,
        })
    }
}

/// Whether the store is encrypted; this is known without the key.
#[derive(Serialize)]
struct EncryptionReport {
    /// `on`, `off`, or `changing` while something of before may be in the files as it was.
    state: &'static str,
    /// The name of the key that new messages are sealed with.
    key: Option<String>,
    /// Whether this command was given the keys that the store needs: `usable`, `missing` or `wrong`.
    key_state: &'static str,
}

impl EncryptionReport {
    fn of(encryption: &Encryption) -> Self {
        let state = match (encryption.is_complete, encryption.sealed_with) {
            (false, _) => "changing",
            (true, Some(_)) => "on",
            (true, None) => "off",
        };
        let key_state = match encryption.key {
            KeyState::Usable => "usable",
            KeyState::Missing => "missing",
            KeyState::Wrong => "wrong",
        };
        Self { state, key: encryption.sealed_with.map(|key| key.to_string()), key_state }
    }

    fn text(&self) -> String {
        let key = self.key.as_ref().map_or_else(|| "no key".to_owned(), |key| format!("key {key}"));
        match (self.state, self.key_state) {
            ("on", "wrong") => format!("on ({key}), and another key is set"),
            ("on", _) => format!("on ({key})"),
            ("off", _) => "off".to_owned(),
            _ => format!("being changed to {key}: finish it with `opik-offline healthcheck --reseal`"),
        }
    }
}

#[derive(Serialize)]
struct Recovery {
    at: String,
    reason: String,
    recovered_messages: u64,
    lost_messages: u64,
    set_aside: String,
}

#[derive(Serialize)]
struct Adopted {
    at: String,
    server: String,
    messages: u64,
}

#[derive(Serialize)]
struct Held {
    workspace: String,
    /// `null` for what an earlier version stored.
    server: Option<String>,
    /// At most the first four characters of the key; `null` for clients that send none.
    key: Option<String>,
    /// The status of the answer that it is held for.
    status: Option<u16>,
    /// Whether the server refuses the key, so that another one may be let in.
    is_key_refused: bool,
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
/// Bytes of what it tells at most: its lists are bounded, but for the rows of what is stored.
const TOLD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Rejected messages whose answers are looked at.
const REASONS_OF_NEWEST: usize = 200;
/// Different answers that are told.
const REASONS_MAX: usize = 10;
/// Characters of an answer that are told.
const REASON_CHARS_MAX: usize = 200;
/// How often `--watch` looks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

pub fn run(common: &Common, args: &StatusArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let upstream = upstream_or_none(&config);
    if args.watch {
        let shutdown = Shutdown::new();
        stop_on_signals(&shutdown)?;
        let mut watching = Watching::new(is_utf8_locale(&ProcessEnvironment));
        let started = Instant::now();
        loop {
            let (report, _) = gather(&config, &upstream, started);
            watching.show(&renderer, &report)?;
            if shutdown.sleep(WATCH_INTERVAL) {
                return Err(Failure::silent(Exit::Interrupted));
            }
        }
    }
    let (report, problem) = gather(&config, &upstream, Instant::now());
    if !common.quiet || problem.is_none() && args.fail_if_backlog.is_none() && args.fail_if_older_than.is_none() {
        renderer.result(&report, |renderer, report| {
            let mut shown = screen::sections(renderer, report);
            shown.add(&screen::stored(renderer, report));
            shown
        })?;
    }
    end(args, &report, problem)
}

/// What to do when a threshold is exceeded.
const LOOK: &str = "`opik-offline status` says what waits and why; without an agent `opik-offline replay` delivers it";

fn end(args: &StatusArgs, report: &Report, problem: Option<StoreError>) -> Result<(), Failure> {
    if let Some(problem) = problem {
        return Err(problem.into());
    }
    let Some(backlog) = &report.backlog else { return Ok(()) };
    if let Some(limit) = args.fail_if_backlog.filter(|limit| backlog.messages > *limit) {
        let wait = if backlog.messages == 1 { "waits" } else { "wait" };
        let waiting = count(backlog.messages, "message");
        return Err(Failure::new(Exit::Remaining, format!("{waiting} {wait}, more than {limit}"), Some(LOOK)));
    }
    let oldest = backlog.oldest_age_seconds.map(Duration::from_secs);
    if let (Some(limit), Some(oldest)) = (args.fail_if_older_than, oldest)
        && oldest > limit
    {
        let (oldest, limit) = (short_duration(oldest), short_duration(limit));
        let text = format!("a message has been waiting for {oldest}, longer than {limit}");
        return Err(Failure::new(Exit::Remaining, text, Some(LOOK)));
    }
    Ok(())
}

/// Asks store, agent and server. What can't be asked is part of the answer.
fn gather(config: &Config, upstream: &Upstream, started: Instant) -> (Report, Option<StoreError>) {
    let now = now_ms();
    let read = existing_store_without_key(config).and_then(|store| match store {
        None => Ok(None),
        Some(store) => {
            let backlog = store.backlog(&Filter::default())?;
            let condition = store.condition()?;
            // What the server said is sealed, too.
            let is_told = backlog.rejected() > 0 && condition.encryption.key == KeyState::Usable;
            let reasons = if is_told { reasons(store.as_ref())? } else { Vec::new() };
            let near = near_id_window(store.as_ref(), now)?;
            let stranded = store.stranded()?;
            Ok(Some((backlog, reasons, condition, near, stranded)))
        }
    });
    let (near, stranded) = match &read {
        Ok(Some((.., near, stranded))) => (*near, Some(stranded.clone())),
        Ok(None) => (None, Some(Vec::new())),
        Err(_) => (None, None),
    };
    let (backlog, reasons, condition, problem) = match read {
        Ok(Some((backlog, reasons, condition, ..))) => (Some(backlog), reasons, Some(condition), None),
        Ok(None) => (Some(Backlog::default()), Vec::new(), None, None),
        Err(error) => (None, Vec::new(), None, Some(error)),
    };
    let agents = condition.as_ref().map_or(&[][..], |condition| &condition.agents);
    let (agent, seen) = ask_agent(config, agents);
    let told = agent.listen.as_deref().and_then(ask_for_history).unwrap_or_default();
    let server = server(config, upstream, seen);
    let eta = backlog.as_ref().map(|backlog| match told.eta {
        // The agent has seen how it went; what it does not know of is a store of which it says nothing.
        Some(eta) if agent.store_problem.is_none() => eta,
        _ => eta(&situation(config, backlog, condition.as_ref(), &server.connection, now)).into(),
    });
    let own = crate::message::Server::new(&server.url);
    let elsewhere = backlog.as_ref().map_or_else(Vec::new, |backlog| elsewhere(backlog, &own));
    let report = Report {
        schema_version: 1,
        server,
        agent,
        rates: told.rates,
        eta,
        reading: Sample {
            at_ms: now,
            uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            waiting: backlog.as_ref().map(Backlog::waiting),
            ..Sample::default()
        },
        history: told.history,
        backlog: backlog.as_ref().map(|backlog| waiting(config, backlog, now)),
        rejected: backlog.as_ref().map(|backlog| rejected(backlog, reasons)),
        held_ids: backlog.as_ref().map(|backlog| HeldIds {
            messages: backlog.held(),
            remedy: id_window::REMEDY,
            create_near_window_accepted_at: near.map(time),
        }),
        stranded: stranded.map(|lanes| {
            let lanes = lanes.iter().map(|stranded| StrandedLine {
                workspace: stranded.lane.workspace_name().to_owned(),
                messages: stranded.messages,
                create: stranded.create.0,
                status: stranded.status.name(),
            });
            lanes.collect()
        }),
        store: StoreReport {
            full: backlog
                .as_ref()
                .zip(condition.as_ref())
                .and_then(|(backlog, condition)| FullReport::of(config, told.store.full.as_ref(), backlog, condition)),
            refused_writes: told
                .store
                .refused_writes
                .unwrap_or_else(|| condition.as_ref().map_or(0, |condition| condition.full_record.refused)),
            rejected_body_bytes: backlog.as_ref().map_or(0, rejected_body_bytes),
            moved_stores: told.store.moved_stores,
            ..store_report(config, condition.as_ref(), problem.as_ref())
        },
        held: condition
            .iter()
            .flat_map(|condition| &condition.held)
            .map(|(lane, hold)| Held {
                workspace: lane.workspace_name().to_owned(),
                server: lane.server.as_ref().map(ToString::to_string),
                key: lane.credential.as_ref().map(ToString::to_string),
                status: hold.status,
                is_key_refused: hold.is_credential_refused(),
                reason: hold.reason.clone(),
                until: time(hold.until_ms),
                is_over: hold.until_ms <= now,
            })
            .collect(),
        elsewhere,
        adopted: condition
            .iter()
            .flat_map(|condition| &condition.adoptions)
            .map(|it| Adopted { at: time(it.at_ms), server: it.server.to_string(), messages: it.messages })
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
        let agent = Upstream::new(&crate::upstream::UpstreamSettings::plain(base_url, AGENT_TIMEOUT));
        let Ok(answer) = agent.read("-/ready", AGENT_TIMEOUT) else { continue };
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
            live_writes: ready["store"]["live_writes"].as_str().map(str::to_owned),
            files_problem: told["files_problem"].as_str().map(str::to_owned),
        };
        return (agent, Some(ready));
    }
    (Agent::default(), None)
}

/// A running agent, as `healthcheck` sees it.
pub(super) struct RunningAgent {
    /// Where it listens.
    pub(super) listen: String,
    /// Why it can't use its store, if so.
    pub(super) store_problem: Option<String>,
    /// Why its store is full, if it is.
    pub(super) store_full: Option<String>,
    /// What it has too few open files for, and what to do.
    pub(super) files_problem: Option<String>,
}

/// Returns the running agent, if there is one.
pub(super) fn running_agent(config: &Config, records: &[AgentRecord]) -> Option<RunningAgent> {
    let (agent, ready) = ask_agent(config, records);
    let store_full = ready.as_ref().and_then(|ready| ready["store"]["full"].as_str()).map(str::to_owned);
    let store_problem = agent.degraded();
    let Agent { listen, files_problem, .. } = agent;
    Some(RunningAgent { listen: listen?, store_problem, store_full, files_problem })
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
        Ok(Pong { presence, latency, .. }) => {
            let word = match presence {
                Presence::There | Presence::Unauthorised(_) => "available",
                Presence::Unhealthy(_) | Presence::Foreign(_) => "unavailable",
            };
            (word, presence.reason(), Some(latency))
        }
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
    let sum = |of: fn(&Group) -> u64| {
        groups.iter().filter(|group| ["failed", "registered"].contains(&group.status)).map(of).sum()
    };
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

/// What the running agent has seen, as far as it tells: one that is older than this command does not.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Told {
    rates: Option<Rates>,
    eta: Option<EtaStatus>,
    history: Vec<Sample>,
    store: ToldStore,
}

/// What the running agent says of its store.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ToldStore {
    full: Option<ToldFull>,
    refused_writes: Option<u64>,
    moved_stores: Vec<String>,
}

#[derive(Deserialize)]
struct ToldFull {
    since_ms: Option<i64>,
    limit: String,
    reason: String,
    refused_writes: u64,
    passed_on_writes: u64,
}

fn ask_for_history(listen: &str) -> Option<Told> {
    let base_url = format!("http://{listen}");
    let agent = Upstream::new(&crate::upstream::UpstreamSettings::plain(base_url, AGENT_TIMEOUT));
    let answer = agent.read_whole("-/status.json", AGENT_TIMEOUT, TOLD_BYTES_MAX).ok()?;
    serde_json::from_str(&answer.text).ok()
}

/// What the store alone says about when it will be empty.
fn situation(
    config: &Config,
    backlog: &Backlog,
    condition: Option<&Condition>,
    connection: &str,
    now: i64,
) -> Situation {
    let held = condition.map_or(&[][..], |condition| &condition.held);
    let mut waiting = backlog.groups.iter().filter(|group| group.status.is_on_its_way());
    // A single create may go as a batch while single writes are limited, and the other way round.
    let meets = |hold: &Hold, group: &BacklogGroup| {
        let message_type = group.message_type;
        hold.bucket.is_none_or(|bucket| bucket == message_type.bucket() && !message_type.is_single_create())
    };
    let is_held = |group: &BacklogGroup| {
        let mut holds =
            held.iter().filter(|(lane, hold)| lane.workspace_name() == group.workspace && hold.until_ms > now);
        holds.any(|(_, hold)| meets(hold, group))
    };
    let first = held.iter().map(|(_, hold)| hold.until_ms).filter(|until| *until > now).min();
    let first = first.filter(|_| waiting.all(is_held));
    Situation {
        waiting: backlog.waiting(),
        available: match connection {
            "available" => Some(true),
            "unavailable" => Some(false),
            _ => None,
        },
        is_replayed: condition.is_some_and(|condition| condition.lease.is_some()),
        pace: translate::pace(config),
        drained_per_second: None,
        stored_per_second: 0.0,
        last_per_second: condition.and_then(|condition| condition.last_replay.as_ref()).and_then(pace_of),
        held_for: first.map(|until| Duration::from_millis((until - now).unsigned_abs())),
        is_stalled: false,
    }
}

/// Counts the server's answers to the newest rejected messages, the commonest first: in a store of any size that takes a
/// moment.
fn reasons(store: &dyn Store) -> Result<Vec<Reason>, StoreError> {
    let filter = Filter { statuses: vec![MessageStatus::Rejected], ..Filter::default() };
    let page = Page { after: None, limit: REASONS_OF_NEWEST, newest_first: true };
    let mut reasons: Vec<Reason> = Vec::new();
    for answer in store.list(&filter, &page)?.into_iter().filter_map(|message| message.answer) {
        let text = first_words(&answer.text);
        match reasons.iter_mut().find(|known| known.status == answer.status && known.text == text) {
            Some(known) => known.messages += 1,
            None => reasons.push(Reason { status: answer.status, text, messages: 1 }),
        }
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.messages));
    reasons.truncate(REASONS_MAX);
    Ok(reasons)
}

/// Returns the beginning of an answer in one line; of Opik's errors the message and the details.
fn first_words(text: &str) -> String {
    let error: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let said = |field| error.as_ref().and_then(|error: &serde_json::Value| error[field].as_str());
    let message = match (said("message"), said("details")) {
        (Some(message), Some(details)) => format!("{message}: {details}"),
        (Some(message), None) => message.to_owned(),
        (None, _) => text.to_owned(),
    };
    // What a server sends must not drive the terminal.
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_long = words.chars().count() > REASON_CHARS_MAX;
    if is_long { words.chars().take(REASON_CHARS_MAX - 1).chain(['…']).collect() } else { words }
}

fn rejected(backlog: &Backlog, reasons: Vec<Reason>) -> Rejected {
    let by_answer = backlog.rejected_by_answer.iter();
    Rejected {
        messages: backlog.rejected(),
        reasons,
        reasons_of_newest: REASONS_OF_NEWEST as u64,
        by_answer: by_answer.map(|(status, messages)| RejectedBy { status: *status, messages: *messages }).collect(),
    }
}

fn store_report(config: &Config, condition: Option<&Condition>, problem: Option<&StoreError>) -> StoreReport {
    let unproven = crate::store::unproven(&config.db.value);
    StoreReport {
        path: config.db.value.display().to_string(),
        state: match (condition, problem) {
            (Some(_), _) => "usable",
            (None, Some(_)) => "unusable",
            (None, None) => "none",
        },
        reason: problem.map(ToString::to_string),
        unproven_since: unproven.as_ref().map(|unproven| time(unproven.since_ms)),
        unproven_reason: unproven.map(|unproven| unproven.reason),
        file_bytes: condition.map(|condition| condition.file_bytes),
        file_system_problem: mount::look_at(&config.db.value)
            .map(|found| format!("on {}: {}", found.name, found.problem())),
        size_max_bytes: condition.and_then(|condition| condition.size_max),
        disk_free_bytes: condition.and_then(|condition| condition.disk_free_bytes),
        capacity_bytes: condition.and_then(|condition| condition.capacity_bytes),
        full: None,
        refused_writes: 0,
        rejected_body_bytes: 0,
        moved_stores: Vec::new(),
        rejected_dropped_messages: condition.map_or(0, |condition| condition.rejected_dropped),
        dropped_messages: condition.map_or(0, |condition| condition.dropped),
        encryption: condition.map(|condition| EncryptionReport::of(&condition.encryption)),
        expired_messages: condition.map_or(0, |condition| condition.expired),
        recoveries: condition
            .iter()
            .flat_map(|condition| &condition.recoveries)
            .filter(|recovery| recovery.is_kept)
            .map(|recovery| Recovery {
                at: time(recovery.at_ms),
                reason: recovery.reason.clone(),
                recovered_messages: recovery.recovered,
                lost_messages: recovery.lost,
                set_aside: recovery.set_aside.to_string(),
            })
            .collect(),
        replaying: condition.and_then(|condition| condition.lease.as_ref()).map(ToString::to_string),
    }
}
