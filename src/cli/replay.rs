//! `opik-offline replay`

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tracing::debug;

use super::groups::{Group, groups, oldest, preview_text, sums_text};
use super::progress::Progress;
use super::readback::Readback;
use super::reassign::{self, ReassignArgs, Reassigned, reassign};
use super::render::{Format, Renderer, count, short_duration};
use super::salvage::{self, Given, take_in};
use super::selection::{Selection, duration, number_from_one, refuse_jsonl};
use super::terminal::{Shown, Stream};
use super::{Common, Exit, Failure, configuration, existing_store, recovered_store, stop_on_signals, translate};
use crate::agent::files;
use crate::config::{Config, Flags, LogLevel, Source};
use crate::delivery::id_window::REMEDY;
use crate::memory::Budget;
use crate::message::{MessageStatus, Server};
use crate::monitor::connection::Connection;
use crate::monitor::{self, MonitorSettings};
use crate::protocol::recognise::{NOT_OPIK, Presence};
use crate::replay::report::rate_and_eta;
use crate::replay::verify::{Verified, Verifier};
use crate::replay::{DrainEnd, Observer, Replay, ReplaySettings, ReplayState};
use crate::shutdown::Shutdown;
use crate::store::{self, Filter, Owner, Page, Store, StoreError, now_ms};
use crate::telemetry::metrics::Metrics;
use crate::upstream::{Upstream, UpstreamSettings};

const AFTER_HELP: &str = "\
Examples:
  Deliver everything that is stored, 200 messages at a time:
    opik-offline replay --batch-size 200
  Try rejected messages again after the cause is mended:
    opik-offline replay --rejected
  Try messages again whose ids the server found too old, after its window was widened:
    opik-offline replay --status held
  Deliver everything, and make sure that the server shows it:
    opik-offline replay --verify
  Deliver to the new address what was accepted for a server that moved, after a preview:
    opik-offline replay --readdress http://old-host:5173/api --upstream http://new-host:5173/api
  Go on with the configured key where the server refuses the one that clients sent, after a preview:
    opik-offline replay --rekey
  Take in and deliver what killed Python processes left, then delete it:
    opik-offline replay --from '/tmp/tmp*/opik_messages.db' --remove-source
  From cron, for a minute at most:
    opik-offline replay --timeout 60s --quiet

Exit codes:
  0    All that was selected is delivered, or --limit was reached
  1    Failure, or a file of --from could not be read
  2    Wrong usage or configuration
  3    The server is away or not Opik, or --verify can't read from it
  4    Messages remain or were rejected, or --verify finds some missing
  130  Interrupted";

/// Deliver stored messages to the Opik server
///
/// It works beside a running agent: one of the two replays at a time, and the other waits. A message leaves the store when
/// the server has confirmed it, so that interrupting a replay loses nothing. Messages that the server refuses are kept as
/// rejected; they are replayed only with --rejected, --status rejected or their --id.
///
/// What is selected keeps its place in the order of delivery: it is not sent while an earlier message about the same trace,
/// span or other entity is stored, selected or not. Such messages are left, and the summary counts them.
///
/// Each message goes to the server that it was accepted for. With --upstream only what is for that server is replayed.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct ReplayArgs {
    /// Replay this many messages, then pause
    ///
    /// Unset, replay starts at 50 and speeds up while the server keeps up.
    #[arg(long, value_name = "N")]
    batch_size: Option<OsString>,

    /// Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    delay: Option<OsString>,

    /// Stop after this many messages
    #[arg(long, value_name = "N", value_parser = number_from_one)]
    limit: Option<u64>,

    /// Stop after this long, and keep trying until then
    ///
    /// Without it, replay ends when what is left has to wait: for a lane that is held, or for its next try.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,

    /// Read back what was delivered, report what is missing
    ///
    /// Traces, spans, experiments and their items, datasets and their items, optimizations, and feedback scores by name
    /// are asked for by their ids, in pages where the server has them. What can't be read back is counted: OTLP spans,
    /// whose ids the server makes, guardrail and assertion results, comments, attachments. What another process delivers
    /// is not read back.
    #[arg(long)]
    verify: bool,

    /// Ask again for what the server does not show yet, until this long after the delivery
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s", requires = "verify", hide_short_help = true)]
    verify_timeout: Duration,

    /// Take in what a Python process left, then deliver
    ///
    /// A file, a folder, or a pattern; may be given more than once.
    ///
    /// It is read from a private copy. What was taken in before is recognised, also in a copied file, so that running this
    /// again sends nothing twice. Messages get the configured workspace and API key, because the file names none.
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = clap::ValueHint::AnyPath)]
    from: Vec<PathBuf>,

    /// As root, take in the files of this user, a name or a number
    ///
    /// A file is taken only if it and its folder belong to the user who runs this, or to root, and nobody else can write
    /// to it. Root says with this whose files it means: then they have to belong to that user.
    #[arg(long, value_name = "USER", requires = "from", hide_short_help = true, value_hint = clap::ValueHint::Username)]
    owner: Option<String>,

    /// Also send attachments whose files are below this folder
    ///
    /// Without it only the temporary copies that the SDK makes are sent, from the temporary folder. May be given more than
    /// once.
    #[arg(long, value_name = "FOLDER", requires = "from", hide_short_help = true, value_hint = clap::ValueHint::DirPath)]
    attachments_from: Vec<PathBuf>,

    /// Delete each file of --from, and the SDK's temporary copies of attachments, once every message in it is stored
    #[arg(long, requires = "from", hide_short_help = true)]
    remove_source: bool,

    /// Show what would be replayed, and send nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    reassign: ReassignArgs,
}

/// What a replay did.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    dry_run: bool,
    /// The files that were taken in (--from).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<salvage::Source>,
    delivered: u64,
    rejected: u64,
    /// Held at the end because the server refuses the time in their ids, whatever was selected.
    held: u64,
    remaining: u64,
    /// What was selected, before anything was sent.
    groups: Vec<Group>,
    /// When the oldest of them was accepted.
    oldest_accepted_at: Option<String>,
    requests: u64,
    seconds: f64,
    /// Why messages remain, for people.
    reasons: Vec<String>,
    /// Lanes that got another server or key (--readdress, --rekey), or would.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reassigned: Vec<Reassigned>,
    /// What `--verify` found.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Readback>,
}

/// How long to wait between two looks at a store that another process replays.
const LEASE_LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Rejected messages that one replay tries again.
const REQUEUED_MAX: usize = 10_000;

pub fn run(common: &Common, args: &ReplayArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let flags = Flags {
        replay_batch_size: args.batch_size.clone(),
        replay_batch_replay_delay: args.delay.clone(),
        ..common.flags()
    };
    let config = configuration(&flags)?;
    common.start_logging(&config, Some(LogLevel::Error))?;
    let mut progress = Progress::new(common.quiet);
    let shutdown = Shutdown::new();
    let mut sources = Vec::new();
    let mut source_failed = false;
    if !args.from.is_empty() {
        stop_on_signals(&shutdown)?;
        let readdress = args.reassign.readdress.as_ref();
        let given = Given {
            files: &args.from,
            attachments: &args.attachments_from,
            owner: args.owner.as_deref(),
            remove: args.remove_source,
        };
        (sources, source_failed) = take_in(&config, &given, readdress, args.dry_run, &shutdown)?;
        if sources.is_empty() {
            // Every one of them was told about; what else waits was not asked for.
            return Err(Failure::silent(Exit::Failure));
        }
    }
    match deliver(common, args, &config, &mut progress, &shutdown, sources) {
        Err(failure) if source_failed && failure.exit != Exit::Interrupted => {
            Err(Failure { exit: Exit::Failure, ..failure })
        }
        Ok(()) if source_failed => Err(Failure::silent(Exit::Failure)),
        result => result,
    }
}

/// Delivers what is selected, and tells of it.
fn deliver(
    common: &Common,
    args: &ReplayArgs,
    config: &Config,
    progress: &mut Progress,
    shutdown: &Shutdown,
    sources: Vec<salvage::Source>,
) -> Result<(), Failure> {
    let renderer = common.renderer();
    let opened = if args.dry_run { existing_store(config) } else { recovered_store(config) };
    let Some(store) = opened? else {
        return Ok(renderer.result(&Report { sources, ..Report::of_nothing(args.dry_run) }, people)?);
    };
    let mut reassigned = Vec::new();
    // With --from it says that the files' server has moved; what is stored for it may be nothing.
    if args.reassign.is_asked() && args.from.is_empty() {
        stop_on_signals(shutdown)?;
        let workspaces = &args.selection.workspace;
        let moved = reassign(store.as_ref(), config, &args.reassign, workspaces, args.dry_run, progress, shutdown);
        reassigned = moved?;
        if args.dry_run {
            let report = Report { reassigned, ..Report::of_nothing(true) };
            return Ok(renderer.result(&report, people)?);
        }
        progress.note(&format!("gave {} another destination", reassign::sum(&reassigned)));
    }
    let mut filter = selected(args.selection.filter(now_ms()));
    let all = store.backlog(&filter)?;
    let is_unassigned = all.groups.iter().any(|group| group.server.is_none());
    // A dry run changes nothing, so what an earlier version stored is still nobody's.
    if matches!(config.upstream.source, Source::Flag { .. }) && !(args.dry_run && is_unassigned) {
        filter.servers = vec![translate::server(config)];
    }
    if is_unassigned && !args.dry_run {
        adopt(store.as_ref(), config)?;
    }
    let servers = servers(store.as_ref(), &filter)?;
    let backlog = store.backlog(&filter)?;
    let waiting = backlog.messages();
    let mut elsewhere = Vec::new();
    if all.messages() > waiting {
        let others = all.messages() - waiting;
        let verb = if others == 1 { "is" } else { "are" };
        elsewhere.push(format!("{} {verb} for other servers: run it without --upstream", count(others, "message")));
    }
    if waiting == 0 {
        let why = match args.selection.nothing(store.as_ref())? {
            _ if !elsewhere.is_empty() => elsewhere,
            why if why.contains("there are:") => vec![why],
            _ => Vec::new(),
        };
        let report = Report { sources, reasons: why, reassigned, ..Report::of_nothing(args.dry_run) };
        return Ok(renderer.result(&report, people)?);
    }
    let oldest_accepted_at = oldest(store.as_ref(), &filter)?;
    if args.dry_run {
        let groups = groups(&backlog);
        let report =
            Report { remaining: waiting, groups, oldest_accepted_at, sources, ..Report::of_nothing(args.dry_run) };
        return Ok(renderer.result(&report, people)?);
    }

    for source in sources.iter().filter(|_| !common.quiet) {
        // Told before the server is asked, because they are safe now whatever it says.
        progress.note(&source.text(false));
    }
    if Stream::Err.is_terminal() {
        let groups = groups(&backlog);
        // Whoever sits there sees what is about to be sent, and may still interrupt it.
        let mut preview = Shown::line(&format!("replaying {}", sums_text(&groups)));
        preview.end_line();
        let plain = Renderer::new(renderer.format(), false);
        preview.add(&preview_text(&plain, &groups, oldest_accepted_at.as_deref()));
        progress.note_shown(&preview);
    }
    let monitor_settings = MonitorSettings {
        ping_interval: config.connection_monitor_ping_interval.value,
        check_timeout: config.connection_monitor_check_timeout.value,
    };
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut there = Vec::new();
    let mut away = Vec::new();
    for server in servers {
        let upstream = upstream_of(config, &server)?.until(deadline);
        match ping(&upstream, monitor_settings.check_timeout) {
            Ok(notice) => {
                if let Some(notice) = notice.as_deref().filter(|_| !common.quiet) {
                    progress.note(&format!("the Opik server is there, but {notice}"));
                }
                there.push((server, upstream, notice));
            }
            Err(failure) => away.push(failure),
        }
    }
    if there.is_empty()
        && let Some(failure) = away.first()
    {
        if common.format != Format::Table {
            // Programs learn what remains; people are told by the error.
            let reasons = away.iter().map(|failure| failure.message.clone()).collect();
            let groups = groups(&backlog);
            let nothing = Report::of_nothing(false);
            let remaining = waiting;
            let report = Report { sources, remaining, groups, oldest_accepted_at, reasons, reassigned, ..nothing };
            renderer.result(&report, people)?;
        }
        return Err(failure.clone());
    }
    if args.from.is_empty() && !args.reassign.is_asked() {
        stop_on_signals(shutdown)?;
    }

    let is_only_refused = is_only_refused(&filter);
    let Some(filter) = requeue(store.as_ref(), filter, args.limit)? else {
        return Ok(renderer.result(&Report { sources, reassigned, ..Report::of_nothing(false) }, people)?);
    };
    let untried = match (is_only_refused, args.limit) {
        (true, None) => waiting.saturating_sub(filter.ids.len() as u64),
        _ => 0,
    };
    let metrics = Metrics::default();
    let started = Instant::now();
    progress.start(args.limit.map_or(waiting, |limit| limit.min(waiting)));
    let mut ends = Vec::new();
    let mut why: Vec<String> = away.iter().map(|failure| failure.message.clone()).collect();
    let mut verified: Option<Verified> = None;
    let mut is_time_over = false;
    let mut met_foreign = false;
    for (server, upstream, notice) in &there {
        let done = metrics.messages_delivered.get() + metrics.messages_rejected.get();
        let limit = args.limit.map(|limit| limit.saturating_sub(done));
        if limit == Some(0) {
            ends.push(DrainEnd::LimitReached);
            continue;
        }
        let settings = ReplaySettings {
            filter: Filter { servers: vec![server.clone()], ..filter.clone() },
            limit,
            pace: translate::pace(config),
            retry_interval: config.retry_interval.value,
            attempts_max: config.max_attempts.value,
        };
        let memory = Budget::new(translate::memory_budget(config));
        let files = files::share(files::allowed(), 1, 0);
        let delivery = Delivery {
            store: store.as_ref(),
            upstream,
            settings: &settings,
            monitor_settings,
            metrics: &metrics,
            memory: &memory,
            workers_max: usize::try_from(files.replay_workers).unwrap_or(usize::MAX),
            progress: &*progress,
            started,
            timeout: args.timeout,
            waiting,
            shutdown,
        };
        let connection = Connection::new(monitor_settings);
        let verifier = args.verify.then(|| Verifier::new(upstream));
        connection.pinged(true, notice.clone(), Instant::now());
        let (end, time_over) = delivery.run(&connection, verifier.as_ref());
        met_foreign |= connection.foreign_count() > 0;
        if let Err(StoreError::Damaged { reason, .. }) = &end {
            progress.finish();
            let (path, limits) = (&config.db.value, translate::store_limits(config));
            drop(store);
            store::recover(path, reason, limits, &translate::store_keys(config)?)?;
            let message = format!("the message store {} was damaged: {reason}", path.display());
            let hint = "what could be read was recovered, see `opik-offline status`; run the replay again to go on";
            return Err(Failure::new(Exit::Failure, message, Some(hint)));
        }
        let end = end?;
        is_time_over |= time_over && end == DrainEnd::Stopped;
        if !is_time_over {
            why.extend(reasons(&end, store.as_ref(), &connection)?);
        }
        if let Some(verifier) = verifier {
            // --timeout has stopped the replay through the same value; what was delivered is still read back.
            let stop = if is_time_over { Shutdown::new() } else { shutdown.clone() };
            if end != DrainEnd::Stopped || is_time_over {
                progress.note("reading back what was delivered");
            }
            verified.get_or_insert_default().add(verifier.finish(args.verify_timeout, &stop));
        }
        ends.push(end);
    }
    progress.finish();
    if let Err(error) = store.erase_credentials() {
        debug!(target: "db_manager", "credentials that are not needed are not erased yet: {error}");
    }
    let remaining = waiting_now(store.as_ref(), &filter)? + untried;
    if is_time_over {
        why.push("the time given with --timeout is over; run it again to go on".to_owned());
    }
    why.extend(elsewhere);
    let mut report = Report {
        schema_version: 1,
        dry_run: false,
        sources,
        delivered: metrics.messages_delivered.get(),
        rejected: metrics.messages_rejected.get(),
        held: held_now(store.as_ref())?,
        remaining,
        groups: groups(&backlog),
        oldest_accepted_at,
        requests: metrics.replay_requests.get(),
        seconds: started.elapsed().as_secs_f64(),
        reasons: why,
        reassigned,
        verified: None,
    };
    if let Some(verified) = verified {
        let mut readback = Readback::of(verified);
        readback.delivered_elsewhere = waiting.saturating_sub(report.delivered + report.rejected + remaining);
        report.verified = Some(readback);
    }
    let left = remaining - untried;
    let is_drained = away.is_empty() && ends.iter().all(|end| *end == DrainEnd::Empty);
    let waits_for_create = report.reasons.iter().any(|reason| reason.contains(WAIT_FOR_CREATE));
    if is_drained && left > 0 && filter != Filter::default() && !waits_for_create {
        let verb = if left == 1 { "waits" } else { "wait" };
        let waiting = count(left, "message");
        report.reasons.push(format!("{waiting} {verb} for earlier ones that the filter does not select"));
    }
    report.reasons.extend(stranded(store.as_ref())?);
    if untried > 0 {
        report.reasons.push(format!("{REQUEUED_MAX} refused messages are tried at a time; run it again for the rest"));
    }
    if report.delivered + report.rejected + report.remaining == 0 {
        report.reasons.push("another process has replayed what was selected".to_owned());
    }
    if common.tells_what_was_done() {
        renderer.result(&report, people)?;
    }
    let any = |wanted: DrainEnd| ends.contains(&wanted);
    if any(DrainEnd::Stopped) && !is_time_over {
        return Err(Failure::silent(Exit::Interrupted));
    }
    if any(DrainEnd::Unavailable) || !away.is_empty() {
        return Err(Failure::silent(Exit::Unreachable));
    }
    if report.verified.as_ref().is_some_and(Readback::misses_something) {
        return Err(Failure::silent(Exit::Remaining));
    }
    if report.verified.as_ref().is_some_and(Readback::is_cut_short) {
        return Err(Failure::silent(Exit::Unreachable));
    }
    // Met by this replay, or by another a moment ago: then the lane is held.
    let is_foreign = met_foreign || report.reasons.iter().any(|reason| reason.contains(NOT_OPIK));
    let is_limited = any(DrainEnd::LimitReached);
    match (report.remaining, report.rejected, report.held) {
        (0, 0, 0) => Ok(()),
        (_, 0, _) if is_limited => Ok(()),
        // Whatever waits for a key or its time besides: what answered was not Opik.
        (1.., _, _) if is_foreign => Err(Failure::silent(Exit::Unreachable)),
        _ => Err(Failure::silent(Exit::Remaining)),
    }
}

/// Gives what an earlier version stored to the configured server. The default, Opik Cloud, is nobody's decision.
fn adopt(store: &dyn Store, config: &Config) -> Result<(), Failure> {
    if !config.upstream.is_set() {
        let message = "these messages were stored by an earlier version, which did not record their server";
        let hint = "name the server that they were accepted for with --upstream; it is remembered";
        return Err(Failure::new(Exit::Usage, message, Some(hint)));
    }
    store.adopt(&translate::server(config))?;
    Ok(())
}

/// Returns the servers that the selected messages are for, the one with the most first.
fn servers(store: &dyn Store, filter: &Filter) -> Result<Vec<Server>, Failure> {
    let mut messages: BTreeMap<Server, u64> = BTreeMap::new();
    for group in store.backlog(filter)?.groups {
        if let Some(server) = group.server {
            *messages.entry(server).or_default() += group.messages;
        }
    }
    let mut servers: Vec<(Server, u64)> = messages.into_iter().collect();
    servers.sort_by_key(|(_, messages)| std::cmp::Reverse(*messages));
    Ok(servers.into_iter().map(|(server, _)| server).collect())
}

/// Returns the way to a server, with the configured certificates, proxy and timeouts.
fn upstream_of(config: &Config, server: &Server) -> Result<Upstream, Failure> {
    let own = translate::lane(config);
    let is_own = own.server.as_ref() == Some(server);
    let mut settings =
        UpstreamSettings { base_url: server.base_url().to_owned(), ..translate::upstream_settings(config)? };
    // The configured key and headers are for the configured server only.
    if !is_own {
        settings.headers.clear();
    }
    let upstream = Upstream::new(&settings);
    Ok(if is_own { upstream.asking_as(own) } else { upstream })
}

/// One server's part of a replay.
struct Delivery<'a> {
    store: &'a dyn Store,
    upstream: &'a Upstream,
    settings: &'a ReplaySettings,
    monitor_settings: MonitorSettings,
    metrics: &'a Metrics,
    memory: &'a Arc<Budget>,
    workers_max: usize,
    progress: &'a Progress,
    started: Instant,
    timeout: Option<Duration>,
    /// Messages to deliver to all servers.
    waiting: u64,
    shutdown: &'a Shutdown,
}

impl Delivery<'_> {
    /// Delivers; returns how that ended, and whether it was ended by the timeout.
    fn run(&self, connection: &Connection, verifier: Option<&Verifier<'_>>) -> (Result<DrainEnd, StoreError>, bool) {
        let is_time_over = AtomicBool::new(false);
        let replay = Replay {
            memory: self.memory,
            workers_max: self.workers_max,
            store: self.store,
            upstream: self.upstream,
            connection,
            settings: self.settings,
            metrics: self.metrics,
            state: &ReplayState::default(),
            observer: verifier.map(|verifier| verifier as &dyn Observer),
            shutdown: self.shutdown,
        };
        let drained = Shutdown::new();
        // Ends the round as an interruption does: what is in flight gets its answer.
        let end = std::thread::scope(|scope| {
            scope.spawn({
                let (drained, is_time_over) = (drained.clone(), &is_time_over);
                move || {
                    while !drained.sleep(Duration::from_millis(100)) {
                        let done = self.metrics.messages_delivered.get() + self.metrics.messages_rejected.get();
                        self.progress.at(done, self.waiting);
                        if self.timeout.is_some_and(|timeout| self.started.elapsed() >= timeout) {
                            is_time_over.store(true, Ordering::Relaxed);
                            self.shutdown.request();
                        }
                    }
                }
            });
            scope.spawn({
                let drained = drained.clone();
                move || monitor::run(connection, self.upstream, self.monitor_settings, &drained)
            });
            let end = drain(&replay, self.progress, self.started, self.timeout);
            drained.request();
            connection.wake();
            end
        });
        (end, is_time_over.into_inner())
    }
}

/// Makes sure that the server is there before anything is touched, and returns what is odd about its answer.
fn ping(upstream: &Upstream, timeout: Duration) -> Result<Option<String>, Failure> {
    let pong = upstream.ping(timeout)?;
    let hint = match &pong.presence {
        // What waits has keys of its own.
        Presence::There | Presence::Unauthorised(_) => return Ok(pong.presence.reason()),
        Presence::Foreign(foreign) => foreign.hint(),
        Presence::Unhealthy(_) => "check that --upstream names the API, such as http://127.0.0.1:5173/api",
    };
    let message = format!("the Opik server {}", pong.presence.sentence(upstream.base_url()));
    Err(Failure::new(Exit::Unreachable, message, Some(hint)))
}

/// Says which messages a replay is about when no status was asked for: those that wait, and one that is named by its id
/// even if it was rejected or is held.
fn selected(filter: Filter) -> Filter {
    if !filter.statuses.is_empty() || !filter.ids.is_empty() {
        return filter;
    }
    Filter { statuses: vec![MessageStatus::Failed, MessageStatus::Registered], ..filter }
}

/// Returns whether only messages are selected that the server refused.
fn is_only_refused(filter: &Filter) -> bool {
    !filter.statuses.is_empty() && filter.statuses.iter().all(|status| status.is_refused())
}

/// Makes the selected rejected and held messages *failed* again and returns which messages to replay, `None` when there is none.
///
/// Their status no longer tells them from others that wait. Where only refused ones were asked for they are therefore
/// named one by one, [`REQUEUED_MAX`] at a time, so that nothing else is sent and a limit leaves the rest as it is.
fn requeue(store: &dyn Store, mut filter: Filter, limit: Option<u64>) -> Result<Option<Filter>, Failure> {
    if is_only_refused(&filter) {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(REQUEUED_MAX).min(REQUEUED_MAX);
        let listed = store.list(&filter, &Page { after: None, limit, newest_first: false })?;
        if listed.is_empty() {
            // Gone since they were counted; a filter without ids would select everything.
            return Ok(None);
        }
        filter.ids = listed.into_iter().map(|listed| listed.id).collect();
    }
    if filter.statuses.is_empty() || filter.statuses.iter().any(|status| status.is_refused()) {
        store.requeue(&filter)?;
    }
    Ok(Some(Filter { statuses: Vec::new(), ..filter }))
}

/// Counts what still waits of the messages to replay.
fn waiting_now(store: &dyn Store, filter: &Filter) -> Result<u64, StoreError> {
    Ok(store.backlog(filter)?.waiting())
}

/// Counts what the server refuses for the time in its ids.
fn held_now(store: &dyn Store) -> Result<u64, StoreError> {
    let held = Filter { statuses: vec![MessageStatus::Held], ..Filter::default() };
    Ok(store.backlog(&held)?.messages())
}

/// Part of what is said of messages that wait for a refused create.
const WAIT_FOR_CREATE: &str = "for a create that the server refused";

/// Says how many messages wait for a create that the server refused, and for which.
fn stranded(store: &dyn Store) -> Result<Vec<String>, StoreError> {
    let lanes = store.stranded()?.into_iter();
    let lanes = lanes.map(|stranded| {
        let verb = if stranded.messages == 1 { "waits" } else { "wait" };
        let messages = count(stranded.messages, "message");
        let (create, status) = (stranded.create, stranded.status);
        format!("{messages} {verb} {WAIT_FOR_CREATE} ({status}): opik-offline inspect {create}")
    });
    Ok(lanes.collect())
}

/// Replays until nothing is left, or nothing more can be done in the time given.
fn drain(
    replay: &Replay<'_>,
    progress: &Progress,
    started: Instant,
    timeout: Option<Duration>,
) -> Result<DrainEnd, StoreError> {
    let owner = Owner::this_process("replay");
    let mut said = false;
    loop {
        let time_left = timeout.map_or(Duration::ZERO, |timeout| timeout.saturating_sub(started.elapsed()));
        match replay.drain(&owner) {
            Ok(DrainEnd::NotDue { next_due_at_ms }) if !time_left.is_zero() => {
                let until_due = Duration::from_millis(u64::try_from(next_due_at_ms - now_ms()).unwrap_or(0));
                if until_due > time_left {
                    return Ok(DrainEnd::NotDue { next_due_at_ms });
                }
                replay.shutdown.sleep(until_due);
            }
            Ok(end) => return Ok(end),
            Err(StoreError::LeaseHeld { owner }) => {
                if !said {
                    progress.note(&format!("waiting: {owner} replays this store"));
                    said = true;
                }
                if waiting_now(replay.store, &replay.settings.filter)? == 0 {
                    return Ok(DrainEnd::Empty);
                }
                if replay.shutdown.sleep(LEASE_LOOK_INTERVAL) {
                    return Ok(DrainEnd::Stopped);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Says why messages remain.
fn reasons(end: &DrainEnd, store: &dyn Store, connection: &Connection) -> Result<Vec<String>, Failure> {
    let mut reasons = Vec::new();
    match end {
        DrainEnd::Unavailable => {
            let reason = connection.state().reason.unwrap_or_else(|| "no reason known".to_owned());
            reasons.push(format!("the Opik server went away: {reason}"));
        }
        DrainEnd::Stopped => reasons.push("interrupted; nothing is lost, run it again to go on".to_owned()),
        DrainEnd::LimitReached => reasons.push("the limit was reached".to_owned()),
        DrainEnd::NotDue { next_due_at_ms } => {
            for (lane, hold) in store.condition()?.held {
                reasons.push(format!("{lane}: {}", hold.reason));
            }
            let wait = Duration::from_millis(u64::try_from(next_due_at_ms - now_ms()).unwrap_or(0));
            reasons.push(format!("the next attempt is due in {}", short_duration(wait)));
        }
        DrainEnd::Empty => {}
    }
    Ok(reasons)
}

impl Report {
    fn of_nothing(dry_run: bool) -> Self {
        Self {
            schema_version: 1,
            dry_run,
            sources: Vec::new(),
            delivered: 0,
            rejected: 0,
            held: 0,
            remaining: 0,
            groups: Vec::new(),
            oldest_accepted_at: None,
            requests: 0,
            seconds: 0.0,
            reasons: Vec::new(),
            reassigned: Vec::new(),
            verified: None,
        }
    }
}

fn people(renderer: &Renderer, report: &Report) -> Shown {
    let mut shown = Shown::default();
    if report.dry_run && !report.reassigned.is_empty() {
        shown.add_line(&format!("would give {} another destination", reassign::sum(&report.reassigned)));
        shown.end_line();
        shown.add(&reassign::text(renderer, &report.reassigned));
        return shown;
    }
    if report.dry_run {
        report.sources.iter().for_each(|source| shown.add_line(&source.text(true)));
        match report.remaining {
            0 => shown.add_line(&nothing_to_replay(report)),
            _ => {
                shown.add_line(&format!("would replay {}", sums_text(&report.groups)));
                shown.end_line();
                shown.add(&preview_text(renderer, &report.groups, report.oldest_accepted_at.as_deref()));
            }
        }
        return shown;
    }
    let readback = report.verified.as_ref().map_or_else(Shown::default, Readback::text);
    if report.delivered + report.rejected + report.held + report.remaining == 0 {
        shown.add_line(&nothing_to_replay(report));
        shown.add(&readback);
        return shown;
    }
    shown.add_line(&if report.delivered == 0 {
        "delivered nothing".to_owned()
    } else {
        let started = Instant::now() - Duration::try_from_secs_f64(report.seconds).unwrap_or_default();
        let (rate, _) = rate_and_eta(report.delivered, report.remaining, started, Instant::now());
        format!(
            "delivered {} in {:.1} s ({} a second, {})",
            count(report.delivered, "message"),
            report.seconds,
            rate.round(),
            count(report.requests, "request")
        )
    });
    if report.rejected > 0 {
        let rejected = count(report.rejected, "message");
        shown.add_line(&format!("rejected  {rejected}: see why with `opik-offline inspect --rejected`"));
    }
    if report.held > 0 {
        shown.add_line(&format!(
            "held      {}: their ids lie outside the server's window; see `opik-offline inspect --status held`, and {REMEDY}",
            count(report.held, "message")
        ));
    }
    if report.remaining > 0 {
        shown.add_line(&format!("remaining {}", count(report.remaining, "message")));
        report.reasons.iter().for_each(|reason| shown.add_line(&format!("  {reason}")));
    }
    shown.add(&readback);
    shown
}

fn nothing_to_replay(report: &Report) -> String {
    let why = report.reasons.first().map_or(String::new(), |reason| format!(": {reason}"));
    format!("nothing to replay{why}")
}
