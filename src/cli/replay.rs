//! `opik-offline replay`

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::groups::{Group, groups, oldest, preview_text, sums_text};
use super::progress::Progress;
use super::readback::Readback;
use super::render::{Format, Renderer, count, short_duration};
use super::salvage::{Source, take_in};
use super::selection::{Selection, duration, number_from_one, refuse_jsonl};
use super::{
    Common, Exit, Failure, configuration, existing_store, recovered_store, stop_on_signals, translate, upstream,
};
use crate::config::{Config, Flags, LogLevel};
use crate::message::MessageStatus;
use crate::monitor::connection::Connection;
use crate::monitor::{self, MonitorSettings};
use crate::protocol::recognise::{NOT_OPIK, Presence};
use crate::replay::report::rate_and_eta;
use crate::replay::verify::Verifier;
use crate::replay::{DrainEnd, Observer, Probes, Replay, ReplaySettings};
use crate::shutdown::Shutdown;
use crate::store::{self, Filter, Owner, Page, Store, StoreError, now_ms};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;

const AFTER_HELP: &str = "\
Examples:
  Deliver everything that is stored, 200 messages at a time:
    opik-offline replay --batch-size 200
  Try rejected messages again after the cause is mended:
    opik-offline replay --rejected
  Deliver everything, and make sure that the server shows it:
    opik-offline replay --verify
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

    /// Delete each file of --from, and the SDK's temporary copies of attachments, once every message in it is stored
    #[arg(long, requires = "from", hide_short_help = true)]
    remove_source: bool,

    /// Show what would be replayed, and send nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    selection: Selection,
}

/// What a replay did.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    dry_run: bool,
    /// The files that were taken in (--from).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<Source>,
    delivered: u64,
    rejected: u64,
    remaining: u64,
    /// What was selected, before anything was sent.
    groups: Vec<Group>,
    /// When the oldest of them was accepted.
    oldest_accepted_at: Option<String>,
    requests: u64,
    seconds: f64,
    /// Why messages remain, for people.
    reasons: Vec<String>,
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
        (sources, source_failed) = take_in(&config, &args.from, args.dry_run, args.remove_source, &shutdown)?;
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
    sources: Vec<Source>,
) -> Result<(), Failure> {
    let renderer = common.renderer();
    let opened = if args.dry_run { existing_store(config) } else { recovered_store(config) };
    let Some(store) = opened? else {
        return Ok(renderer.result(&Report { sources, ..Report::of_nothing(args.dry_run) }, people)?);
    };
    let filter = selected(args.selection.filter(now_ms()));
    let backlog = store.backlog(&filter)?;
    let waiting = backlog.messages();
    if waiting == 0 {
        let why = match args.selection.nothing(store.as_ref())? {
            why if why.contains("there are:") => vec![why],
            _ => Vec::new(),
        };
        let report = Report { sources, reasons: why, ..Report::of_nothing(args.dry_run) };
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
        progress.note(source.text(false).trim_end());
    }
    if io::stderr().is_terminal() {
        let groups = groups(&backlog);
        // Whoever sits there sees what is about to be sent, and may still interrupt it.
        let preview = preview_text(&Renderer::new(renderer.format(), false), &groups, oldest_accepted_at.as_deref());
        progress.note(&format!("replaying {}\n\n{preview}", sums_text(&groups)));
    }
    let upstream = upstream(config)?.until(args.timeout.map(|timeout| Instant::now() + timeout));
    let monitor_settings = MonitorSettings {
        ping_interval: config.connection_monitor_ping_interval.value,
        check_timeout: config.connection_monitor_check_timeout.value,
    };
    let pinged = ping(&upstream, monitor_settings.check_timeout);
    let notice = match pinged {
        Ok(notice) => notice,
        Err(failure) => {
            if common.format != Format::Table {
                // Programs learn what remains; people are told by the error.
                let reasons = vec![failure.message.clone()];
                let groups = groups(&backlog);
                let nothing = Report::of_nothing(false);
                let report = Report { sources, remaining: waiting, groups, oldest_accepted_at, reasons, ..nothing };
                renderer.result(&report, people)?;
            }
            return Err(failure);
        }
    };
    if let Some(notice) = notice.as_deref().filter(|_| !common.quiet) {
        progress.note(&format!("the Opik server is there, but {notice}"));
    }
    let connection = Connection::new(monitor_settings);
    connection.pinged(true, notice, Instant::now());
    if args.from.is_empty() {
        stop_on_signals(shutdown)?;
    }

    let is_only_rejected = filter.statuses == [MessageStatus::Rejected];
    let Some(filter) = requeue(store.as_ref(), filter, args.limit)? else {
        return Ok(renderer.result(&Report { sources, ..Report::of_nothing(false) }, people)?);
    };
    let untried = match (is_only_rejected, args.limit) {
        (true, None) => waiting.saturating_sub(filter.ids.len() as u64),
        _ => 0,
    };
    let settings = ReplaySettings {
        filter: filter.clone(),
        limit: args.limit,
        pace: translate::pace(config),
        retry_interval: config.retry_interval.value,
        attempts_max: config.max_attempts.value,
    };
    let metrics = Metrics::default();
    let is_time_over = AtomicBool::new(false);
    let started = Instant::now();
    let verifier = args.verify.then(|| Verifier::new(&upstream));
    progress.start(args.limit.map_or(waiting, |limit| limit.min(waiting)));
    let end = {
        let replay = Replay {
            store: store.as_ref(),
            upstream: &upstream,
            connection: &connection,
            settings: &settings,
            metrics: &metrics,
            probes: &Probes::default(),
            observer: verifier.as_ref().map(|verifier| verifier as &dyn Observer),
            shutdown,
        };
        let drained = Shutdown::new();
        // Ends the round as an interruption does: what is in flight gets its answer.
        std::thread::scope(|scope| {
            let shown = &*progress;
            scope.spawn({
                let (drained, metrics, shutdown, is_time_over) = (drained.clone(), &metrics, shutdown, &is_time_over);
                move || {
                    while !drained.sleep(Duration::from_millis(100)) {
                        shown.at(metrics.messages_delivered.get() + metrics.messages_rejected.get(), waiting);
                        if args.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
                            is_time_over.store(true, Ordering::Relaxed);
                            shutdown.request();
                        }
                    }
                }
            });
            scope.spawn({
                let (connection, upstream, drained) = (&connection, &upstream, drained.clone());
                move || monitor::run(connection, upstream, monitor_settings, &drained)
            });
            let end = drain(&replay, shown, started, args.timeout);
            drained.request();
            connection.wake();
            end
        })
    };
    progress.finish();
    if let Err(StoreError::Damaged { reason, .. }) = &end {
        let (path, limits) = (&config.db.value, translate::store_limits(config));
        drop(store);
        store::recover(path, reason, limits, &translate::store_keys(config)?)?;
        let message = format!("the message store {} was damaged: {reason}", path.display());
        let hint = "what could be read was recovered, see `opik-offline status`; run the replay again to go on";
        return Err(Failure::new(Exit::Failure, message, Some(hint)));
    }
    let end = end?;
    let is_time_over = is_time_over.into_inner() && end == DrainEnd::Stopped;
    let remaining = waiting_now(store.as_ref(), &filter)? + untried;
    let mut report = Report {
        schema_version: 1,
        dry_run: false,
        sources,
        delivered: metrics.messages_delivered.get(),
        rejected: metrics.messages_rejected.get(),
        remaining,
        groups: groups(&backlog),
        oldest_accepted_at,
        requests: metrics.replay_requests.get(),
        seconds: started.elapsed().as_secs_f64(),
        reasons: match is_time_over {
            true => vec!["the time given with --timeout is over; run it again to go on".to_owned()],
            false => reasons(&end, store.as_ref(), &connection)?,
        },
        verified: None,
    };
    if let Some(verifier) = verifier {
        // --timeout has stopped the replay through the same value; what was delivered is still read back.
        let stop = if is_time_over { Shutdown::new() } else { shutdown.clone() };
        if end != DrainEnd::Stopped || is_time_over {
            progress.note("reading back what was delivered");
        }
        let mut readback = Readback::of(verifier.finish(args.verify_timeout, &stop));
        readback.delivered_elsewhere = waiting.saturating_sub(report.delivered + report.rejected + remaining);
        report.verified = Some(readback);
    }
    let left = remaining - untried;
    if end == DrainEnd::Empty && left > 0 && filter != Filter::default() {
        let verb = if left == 1 { "waits" } else { "wait" };
        let waiting = count(left, "message");
        report.reasons.push(format!("{waiting} {verb} for earlier ones that the filter does not select"));
    }
    if untried > 0 {
        report.reasons.push(format!("{REQUEUED_MAX} rejected messages are tried at a time; run it again for the rest"));
    }
    if report.delivered + report.rejected + report.remaining == 0 {
        report.reasons.push("another process has replayed what was selected".to_owned());
    }
    if common.tells_what_was_done() {
        renderer.result(&report, people)?;
    }
    // Met by this replay, or by another a moment ago: then the lane is held.
    let is_foreign = connection.foreign_count() > 0 || report.reasons.iter().any(|reason| reason.contains(NOT_OPIK));
    match end {
        DrainEnd::Stopped if !is_time_over => Err(Failure::silent(Exit::Interrupted)),
        DrainEnd::Unavailable => Err(Failure::silent(Exit::Unreachable)),
        _ if report.verified.as_ref().is_some_and(Readback::misses_something) => Err(Failure::silent(Exit::Remaining)),
        _ if report.verified.as_ref().is_some_and(Readback::is_cut_short) => Err(Failure::silent(Exit::Unreachable)),
        DrainEnd::LimitReached if report.rejected == 0 => Ok(()),
        DrainEnd::Empty | DrainEnd::LimitReached | DrainEnd::Stopped | DrainEnd::NotDue { .. } => {
            match (report.remaining, report.rejected) {
                (0, 0) => Ok(()),
                // Whatever waits for a key or its time besides: what answered was not Opik.
                (1.., _) if is_foreign => Err(Failure::silent(Exit::Unreachable)),
                _ => Err(Failure::silent(Exit::Remaining)),
            }
        }
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
/// even if it was rejected.
fn selected(filter: Filter) -> Filter {
    if !filter.statuses.is_empty() || !filter.ids.is_empty() {
        return filter;
    }
    Filter { statuses: vec![MessageStatus::Failed, MessageStatus::Registered], ..filter }
}

/// Makes the selected rejected messages *failed* again and returns which messages to replay, `None` when there is none.
///
/// Their status no longer tells them from others that wait. Where only rejected ones were asked for they are therefore
/// named one by one, [`REQUEUED_MAX`] at a time, so that nothing else is sent and a limit leaves the rest as it is.
fn requeue(store: &dyn Store, mut filter: Filter, limit: Option<u64>) -> Result<Option<Filter>, Failure> {
    if filter.statuses == [MessageStatus::Rejected] {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(REQUEUED_MAX).min(REQUEUED_MAX);
        let listed = store.list(&filter, &Page { after: None, limit, newest_first: false })?;
        if listed.is_empty() {
            // Gone since they were counted; a filter without ids would select everything.
            return Ok(None);
        }
        filter.ids = listed.into_iter().map(|listed| listed.id).collect();
    }
    if filter.statuses.is_empty() || filter.statuses.contains(&MessageStatus::Rejected) {
        store.requeue(&filter)?;
    }
    Ok(Some(Filter { statuses: Vec::new(), ..filter }))
}

/// Counts what still waits of the messages to replay.
fn waiting_now(store: &dyn Store, filter: &Filter) -> Result<u64, StoreError> {
    Ok(store.backlog(filter)?.waiting())
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
            remaining: 0,
            groups: Vec::new(),
            oldest_accepted_at: None,
            requests: 0,
            seconds: 0.0,
            reasons: Vec::new(),
            verified: None,
        }
    }
}

fn people(renderer: &Renderer, report: &Report) -> String {
    if report.dry_run {
        let sources: String = report.sources.iter().map(|source| source.text(true)).collect();
        return sources
            + &match report.remaining {
                0 => nothing_to_replay(report),
                _ => {
                    let table = preview_text(renderer, &report.groups, report.oldest_accepted_at.as_deref());
                    format!("would replay {}\n\n{table}", sums_text(&report.groups))
                }
            };
    }
    let readback = report.verified.as_ref().map_or_else(String::new, Readback::text);
    if report.delivered + report.rejected + report.remaining == 0 {
        return nothing_to_replay(report) + &readback;
    }
    let mut text = if report.delivered == 0 {
        "delivered nothing\n".to_owned()
    } else {
        let started = Instant::now() - Duration::try_from_secs_f64(report.seconds).unwrap_or_default();
        let (rate, _) = rate_and_eta(report.delivered, report.remaining, started, Instant::now());
        format!(
            "delivered {} in {:.1} s ({} a second, {})\n",
            count(report.delivered, "message"),
            report.seconds,
            rate.round(),
            count(report.requests, "request")
        )
    };
    if report.rejected > 0 {
        text.push_str(&format!(
            "rejected  {}: see why with `opik-offline inspect --rejected`\n",
            count(report.rejected, "message")
        ));
    }
    if report.remaining > 0 {
        text.push_str(&format!("remaining {}\n", count(report.remaining, "message")));
        for reason in &report.reasons {
            text.push_str(&format!("  {reason}\n"));
        }
    }
    text.push_str(&readback);
    text
}

fn nothing_to_replay(report: &Report) -> String {
    let why = report.reasons.first().map_or(String::new(), |reason| format!(": {reason}"));
    format!("nothing to replay{why}\n")
}
