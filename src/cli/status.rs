//! `opik-offline status`

use std::time::{Duration, Instant};

use clap::Args;

use super::fleet;
use super::selection::{duration, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, stop_on_signals, translate, upstream_or_none};
use crate::config::{ProcessEnvironment, is_utf8_locale};
use crate::figures::{count, separated, short_duration};
use crate::report::status::gather::gather;
use crate::report::status::watch::Watching;
use crate::report::status::{StatusReport, screen};
use crate::shutdown::Shutdown;
use crate::store::StoreError;

const AFTER_HELP: &str = "\
Examples:
  Is my data safe, is it moving, when will it be done:
    opik-offline status
  What is in the fleet's depot, and who delivers it:
    opik-offline status --fleet s3://BUCKET/PREFIX
  Alert from cron when more than 1000 messages wait, or one waits longer than an hour:
    opik-offline status --quiet --fail-if-backlog 1000 --fail-if-older-than 1h

Exit codes:
  0    Shown; no threshold is exceeded
  1    The store can't be read
  2    Invalid usage or configuration, or no store at --db
  3    With --fleet: the depot can't be reached
  4    A threshold is exceeded
  5    With --fleet: the depot refuses the credentials
  130  Interrupted (--watch)";

/// Show whether the data is safe, what is wrong and what mends it, and what is stored
///
/// It begins with a verdict and the problems with their remedies. It reads the store itself, so that it works with and without an agent running.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct StatusArgs {
    /// Show it again every 2 seconds until interrupted
    #[arg(long)]
    watch: bool,

    /// Show times in UTC instead of relative to now
    #[arg(long)]
    utc: bool,

    /// Exit with 4 when more than this many messages wait
    #[arg(long, value_name = "N")]
    fail_if_backlog: Option<u64>,

    /// Exit with 4 when a message has been waiting longer than this
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    fail_if_older_than: Option<Duration>,
}

/// How often `--watch` refreshes.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

pub(super) fn run(common: &Common, args: &StatusArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    if common.fleet.is_some() {
        let report = fleet::status(&config)?;
        if !common.quiet || args.fail_if_backlog.is_none() && args.fail_if_older_than.is_none() {
            renderer.result(&report, |renderer, report| report.text(renderer))?;
        }
        let (messages, oldest) = (report.waiting.messages, report.waiting.oldest_age_seconds);
        return exceeded(args, messages, oldest, FLEET_HINT);
    }
    translate::check_named_store(&config)?;
    let upstream = upstream_or_none(&config);
    if args.watch {
        let shutdown = Shutdown::new();
        stop_on_signals(&shutdown)?;
        let mut watching = Watching::new(is_utf8_locale(&ProcessEnvironment), args.utc);
        let started = Instant::now();
        loop {
            let gathered = gather(&config, &upstream, started);
            watching.show(&renderer, &StatusReport::of(&config, &gathered))?;
            if shutdown.sleep(WATCH_INTERVAL) {
                return Err(Failure::silent(Exit::Interrupted));
            }
        }
    }
    let gathered = gather(&config, &upstream, Instant::now());
    let report = StatusReport::of(&config, &gathered);
    let problem = gathered.store.err();
    if !common.quiet || problem.is_none() && args.fail_if_backlog.is_none() && args.fail_if_older_than.is_none() {
        renderer.result(&report, |renderer, report| {
            let mut shown = screen::overview(renderer, report, args.utc);
            shown.add(&screen::stored(renderer, report));
            shown
        })?;
    }
    check_thresholds(args, &report, problem)
}

/// The hint when a threshold is exceeded.
const HINT: &str = "`opik-offline status` shows what waits and why; without an agent `opik-offline replay` delivers it";

fn check_thresholds(args: &StatusArgs, report: &StatusReport, problem: Option<StoreError>) -> Result<(), Failure> {
    if let Some(problem) = problem {
        return Err(problem.into());
    }
    let Some(backlog) = &report.backlog else { return Ok(()) };
    // Messages that the agent holds in another store wait as well.
    let (others, others_age) =
        report.other_agent.as_ref().map_or((0, None), |other| (other.waiting.unwrap_or(0), other.oldest_age_seconds));
    exceeded(args, backlog.messages + others, backlog.oldest_age_seconds.max(others_age), HINT)
}

/// The hint when a threshold is exceeded by a depot.
const FLEET_HINT: &str = "`opik-offline replay --fleet URL` delivers the streams of agents that are gone";

fn exceeded(args: &StatusArgs, messages: u64, oldest_seconds: Option<u64>, hint: &str) -> Result<(), Failure> {
    if let Some(limit) = args.fail_if_backlog.filter(|limit| messages > *limit) {
        let wait = if messages == 1 { "waits" } else { "wait" };
        let waiting = count(messages, "message");
        return Err(Failure::new(
            Exit::Remaining,
            format!("{waiting} {wait}, more than {}", separated(limit)),
            Some(hint),
        ));
    }
    let oldest = oldest_seconds.map(Duration::from_secs);
    if let (Some(limit), Some(oldest)) = (args.fail_if_older_than, oldest)
        && oldest > limit
    {
        let (oldest, limit) = (short_duration(oldest), short_duration(limit));
        let text = format!("a message has been waiting for {oldest}, longer than {limit}");
        return Err(Failure::new(Exit::Remaining, text, Some(hint)));
    }
    Ok(())
}
