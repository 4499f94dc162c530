//! `opik-offline replay`

use std::ffi::OsString;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::progress::Progress;
use super::render::{count, short_duration};
use super::selection::{Selection, duration, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, existing_store, stop_on_signals, translate, upstream};
use crate::config::{Flags, LogLevel};
use crate::message::MessageStatus;
use crate::monitor::MonitorSettings;
use crate::monitor::connection::Connection;
use crate::replay::report::rate_and_eta;
use crate::replay::{DrainEnd, Probes, Replay, ReplaySettings, now_ms};
use crate::shutdown::Shutdown;
use crate::store::{Filter, Owner, Store, StoreError};
use crate::telemetry::metrics::Metrics;

const EXAMPLES: &str = "\
Examples:
  Deliver everything that is stored, 200 messages at a time:
    opik-offline replay --batch-size 200
  Try rejected messages again after the cause is mended:
    opik-offline replay --rejected
  From cron, for a minute at most:
    opik-offline replay --timeout 60s --quiet

It works beside a running agent: one of the two replays at a time, and the other waits. Interrupting it loses nothing.
Exit codes: 0 all delivered; 3 server unreachable; 4 messages remain or were rejected; 130 interrupted.";

/// Deliver stored messages to the Opik server
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct ReplayArgs {
    #[command(flatten)]
    selection: Selection,

    /// Replay this many messages, then pause; unset, replay starts at 50 and speeds up while the server keeps up
    #[arg(long, value_name = "N")]
    batch_size: Option<OsString>,

    /// Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up
    #[arg(long, value_name = "DURATION")]
    delay: Option<OsString>,

    /// Stop after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Keep trying for this long when lanes or messages have to wait; stop then, whatever is left
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,

    /// Show what would be replayed, and send nothing
    #[arg(long)]
    dry_run: bool,
}

/// What a replay did.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    dry_run: bool,
    delivered: u64,
    rejected: u64,
    remaining: u64,
    requests: u64,
    seconds: f64,
    /// Why messages remain, for people.
    reasons: Vec<String>,
}

/// How long to wait between two looks at a store that another process replays.
const LEASE_LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub fn run(common: &Common, args: &ReplayArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let flags = Flags {
        replay_batch_size: args.batch_size.clone(),
        replay_batch_replay_delay: args.delay.clone(),
        ..common.flags()
    };
    let config = configuration(&flags)?;
    common.start_logging(&config, Some(LogLevel::Error))?;
    let renderer = common.renderer();
    let mut progress = Progress::new(common.quiet);
    let Some(store) = existing_store(&config)? else {
        return Ok(renderer.result(&Report::of_nothing(args.dry_run), people)?);
    };
    let filter = args.selection.filter(now_ms());
    let waiting = selected(store.as_ref(), &filter)?;
    if args.dry_run || waiting == 0 {
        let report = Report { remaining: waiting, ..Report::of_nothing(args.dry_run) };
        return Ok(renderer.result(&report, people)?);
    }

    let upstream = upstream(&config)?;
    let monitor = MonitorSettings {
        ping_interval: config.connection_monitor_ping_interval.value,
        check_timeout: config.connection_monitor_check_timeout.value,
    };
    let pong = upstream.ping(monitor.check_timeout)?;
    if pong.status != 200 {
        let message = format!("the Opik server {} answers its ping with {}", upstream.base_url(), pong.status);
        return Err(Failure::new(
            Exit::Unreachable,
            message,
            Some("check that --upstream names the API, such as http://127.0.0.1:5173/api"),
        ));
    }
    let connection = Connection::new(monitor);
    connection.pinged(true, None, Instant::now());
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;

    if filter.statuses.contains(&MessageStatus::Rejected) {
        store.requeue(&filter)?;
    }
    // What was rejected is failed again now, and rejected ones of before are not selected by a status any more.
    let filter = Filter { statuses: Vec::new(), ..filter };
    let settings = ReplaySettings {
        filter: filter.clone(),
        limit: args.limit,
        pace: translate::pace(&config),
        retry_interval: config.retry_interval.value,
        attempts_max: config.max_attempts.value,
    };
    let metrics = Metrics::default();
    let started = Instant::now();
    progress.start(args.limit.map_or(waiting, |limit| limit.min(waiting)));
    let end = {
        let replay = Replay {
            store: store.as_ref(),
            upstream: &upstream,
            connection: &connection,
            settings: &settings,
            metrics: &metrics,
            probes: &Probes::default(),
            shutdown: &shutdown,
        };
        let drained = Shutdown::new();
        std::thread::scope(|scope| {
            let shown = &progress;
            scope.spawn({
                let (drained, metrics) = (drained.clone(), &metrics);
                move || {
                    while !drained.sleep(Duration::from_millis(100)) {
                        shown.at(metrics.messages_delivered.get() + metrics.messages_rejected.get(), waiting);
                    }
                }
            });
            let end = drain(&replay, &progress, started, args.timeout);
            drained.request();
            end
        })
    };
    progress.finish();
    let end = end?;
    let remaining = selected(store.as_ref(), &filter)?;
    let report = Report {
        schema_version: 1,
        dry_run: false,
        delivered: metrics.messages_delivered.get(),
        rejected: metrics.messages_rejected.get(),
        remaining,
        requests: metrics.replay_requests.get(),
        seconds: started.elapsed().as_secs_f64(),
        reasons: reasons(&end, store.as_ref(), &connection)?,
    };
    renderer.result(&report, people)?;
    match end {
        DrainEnd::Stopped => Err(Failure::silent(Exit::Interrupted)),
        DrainEnd::Unavailable => Err(Failure::silent(Exit::Unreachable)),
        DrainEnd::LimitReached => Ok(()),
        DrainEnd::Empty | DrainEnd::NotDue { .. } => match (report.remaining, report.rejected) {
            (0, 0) => Ok(()),
            _ => Err(Failure::silent(Exit::Remaining)),
        },
    }
}

/// Counts what a replay with this filter would send.
fn selected(store: &dyn Store, filter: &Filter) -> Result<u64, Failure> {
    let mut filter = filter.clone();
    if filter.statuses.is_empty() {
        filter.statuses = vec![MessageStatus::Failed, MessageStatus::Registered];
    }
    Ok(store.backlog(&filter)?.messages())
}

/// Replays until nothing is left, or nothing more can be done in the time given.
fn drain(
    replay: &Replay<'_>,
    progress: &Progress,
    started: Instant,
    timeout: Option<Duration>,
) -> Result<DrainEnd, Failure> {
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
                if selected(replay.store, &replay.settings.filter)? == 0 {
                    return Ok(DrainEnd::Empty);
                }
                if timeout.is_some() && time_left.is_zero() {
                    return Err(StoreError::LeaseHeld { owner }.into());
                }
                if replay.shutdown.sleep(LEASE_LOOK_INTERVAL) {
                    return Ok(DrainEnd::Stopped);
                }
            }
            Err(error) => return Err(error.into()),
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
            delivered: 0,
            rejected: 0,
            remaining: 0,
            requests: 0,
            seconds: 0.0,
            reasons: Vec::new(),
        }
    }
}

fn people(_: &super::render::Renderer, report: &Report) -> String {
    if report.dry_run {
        return match report.remaining {
            0 => "nothing to replay\n".to_owned(),
            waiting => format!("would replay {}\n", count(waiting, "message")),
        };
    }
    if report.delivered + report.rejected + report.remaining == 0 {
        return "nothing to replay\n".to_owned();
    }
    let started = Instant::now() - Duration::try_from_secs_f64(report.seconds).unwrap_or_default();
    let (rate, _) = rate_and_eta(report.delivered, report.remaining, started, Instant::now());
    let mut text = format!(
        "delivered {} in {:.1} s ({} a second, {})\n",
        count(report.delivered, "message"),
        report.seconds,
        rate.round(),
        count(report.requests, "request")
    );
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
    text
}
