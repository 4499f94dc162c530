//! `opik-offline healthcheck`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::selection::{duration, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, stop_on_signals, translate, upstream};
use crate::agent::files;
use crate::agent::wrapped::store_option;
use crate::config::{Config, ConfigFile, Source};
use crate::depot::{self, DepotError, DepotSettings};
use crate::diagnosis::{HeldFacts, held_lanes, orphaned_files};
use crate::figures::count;
use crate::health::{
    Check, DeliveringAgent, DeliveryHolds, FailureCause, Finding, Health, HeldLanes, depot_checks, running_agent,
    stored_messages, until_healthy,
};
use crate::hint;
use crate::intake::workers::Workers;
use crate::message::{Lane, Server};
use crate::overview::asked::{AskedAgent, FoundAgents, OwnStore, degraded_text};
use crate::overview::dial::held_text;
use crate::printable;
use crate::report::bundle::{self, BundleError};
use crate::report::orphans::{self, orphans};
use crate::report::status::held_facts;
use crate::shutdown::Shutdown;
use crate::store::{Backlog, Condition, Filter, now_ms};
use crate::terminal::progress::{self, ProgressDisplay};
use crate::terminal::render::{Renderer, StatusMark, hanging, three_columns};
use crate::terminal::{OutputStream, Shown};
use crate::upstream::smoke::Passed;

const AFTER_HELP: &str = "\
Examples:
  Run every check once:
    opik-offline healthcheck
  Wait for the server in a startup script:
    opik-offline healthcheck --wait 30s
  Encrypt messages that were stored before a key was set, or rotate the key:
    opik-offline healthcheck --reseal
  Check that a trace reaches the server:
    opik-offline healthcheck --smoke-test
  Collect what one attaches to an issue, without keys and bodies:
    opik-offline healthcheck --bundle opik-offline.tar.gz
  Check the fleet's depot, and what these credentials may do there:
    opik-offline healthcheck --fleet s3://acme-opik-backlog/prod

Exit codes:
  0    Healthy
  1    The store can't be used, or the smoke test failed
  2    Invalid usage or configuration
  3    The server, or the agent's, fails or is not Opik, or the depot is away
  4    Messages wait and no agent delivers them, or were rejected
  5    A key (also of what waits), workspace, check or depot write is refused
  130  Interrupted";

/// Check the configuration, the Opik server, access to it, the store and its disk
///
/// Shows everything that would prevent delivery: a line for each check, with a hint if something is wrong; then the
/// settings that differ from their defaults with their sources, secrets masked (-v shows all). With --fleet also the depot, by writing, reading, listing and deleting small
/// objects there, several at once. If several checks fail, the first one determines the exit code.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct HealthcheckArgs {
    /// Retry for up to this long until all checks pass
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,

    /// Check every page of the store even if it is large, which takes about 20 seconds per gigabyte
    #[arg(long)]
    full: bool,

    /// Write a trace with a span and an image to the server and read it back, if all checks pass
    #[arg(long)]
    smoke_test: bool,

    /// Re-encrypt or decrypt the store to match the settings, and scrub old data; makes no network requests
    #[arg(long, conflicts_with_all = ["smoke_test", "wait"])]
    reseal: bool,

    /// Also write an archive to attach to an issue: checks, settings, status, counts, log; no bodies, no keys
    ///
    /// Secrets are masked, also in the lines of the log. The file is readable by you only, and never replaces another.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reseal"])]
    bundle: Option<PathBuf>,

    /// Project that the smoke test writes to
    #[arg(long, value_name = "NAME", requires = "smoke_test", default_value = "smoke-test-project")]
    project_name: String,
}

#[derive(Serialize)]
struct HealthReport {
    schema_version: u32,
    healthy: bool,
    version: &'static str,
    files: Vec<FileReport>,
    settings: Vec<SettingReport>,
    checks: Vec<CheckReport>,
    /// `null` without `--smoke-test`, and if it was not tried or failed.
    smoke_test: Option<SmokeTestReport>,
}

/// A smoke test that passed.
#[derive(Serialize)]
struct SmokeTestReport {
    project: String,
    trace_id: String,
    written_in_ms: u64,
    visible_after_ms: u64,
}

#[derive(Serialize)]
struct FileReport {
    path: String,
    exists: bool,
}

#[derive(Serialize)]
struct SettingReport {
    key: &'static str,
    value: String,
    source: String,
    #[serde(skip)]
    is_default: bool,
}

/// The result of one check.
#[derive(Serialize)]
struct CheckReport {
    name: &'static str,
    result: StatusMark,
    text: String,
    hint: Option<String>,
    #[serde(skip)]
    exit: Option<Exit>,
}

impl From<Check> for CheckReport {
    fn from(check: Check) -> Self {
        let exit = (!check.is_passed()).then_some(Exit::Failure);
        let name = check.name;
        let (result, text, hint, exit) = match check.finding {
            Finding::Good(text) => (StatusMark::Good, text, None, None),
            Finding::Note { text, hint } => (StatusMark::Note, text, hint, None),
            Finding::Warning { text, hint } => (StatusMark::Warn, text, Some(hint), None),
            Finding::Failed { cause, text, hint } => {
                let exit = match cause {
                    FailureCause::Failure => Exit::Failure,
                    FailureCause::Unreachable => Exit::Unreachable,
                    FailureCause::NotAuthorised => Exit::NotAuthorised,
                    FailureCause::Remaining => Exit::Remaining,
                };
                (StatusMark::Bad, text, Some(hint), Some(exit))
            }
            Finding::Error(error) => {
                let failure = Failure::from(error);
                let mark = if exit.is_some() { StatusMark::Bad } else { StatusMark::Warn };
                (mark, failure.message, failure.hint, exit.map(|_| failure.exit))
            }
        };
        let hint = hint.map(|hint| hint::completed(&hint).into_owned());
        Self { name, result, text, hint, exit }
    }
}

/// Columns before the text of a check.
const INDENT: usize = 17;

pub(super) fn run(common: &Common, args: &HealthcheckArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let upstream = upstream(&config)?;
    let depot = usable_depot(&config)?;
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;
    let keys = || translate::store_keys(&config);
    let health = || Health {
        store_path: &config.db.value,
        store_named_by: translate::store_named_by(&config),
        store_limits: translate::store_limits(&config),
        store_keys: &keys,
        store_flags: store_option(&config),
        full: args.full,
        upstream: &upstream,
        lane: Lane { server: None, ..translate::lane(&config) },
        timeout: config.connection_monitor_check_timeout.value,
    };
    let mut smoke_test = None;
    let checks = if args.reseal {
        let note = |text: &str| {
            if !common.quiet {
                progress::say(text);
            }
        };
        let resealed = health().reseal(&note, &|| !shutdown.is_requested());
        let resealed = resealed.map_err(|text| Failure::new(Exit::Interrupted, text, None))?;
        std::iter::once(resealed).chain(health().store_checks()).collect()
    } else {
        let checks = until_healthy(args.wait, &shutdown, || checks(&config, &health(), depot.as_ref()));
        let Some(mut checks) = checks else { return Err(Failure::silent(Exit::Interrupted)) };
        if args.smoke_test {
            let check = if checks.iter().all(Check::is_passed) {
                let (check, passed) = health().smoke_test(&args.project_name, &shutdown);
                smoke_test = passed.map(|passed| SmokeTestReport::of(passed, &args.project_name));
                check
            } else {
                Check::note("smoke test", "not tried while a check fails")
            };
            checks.push(check);
        }
        checks.extend(messages(&config, args.wait.is_some()));
        checks
    };
    let checks: Vec<CheckReport> = checks.into_iter().map(CheckReport::from).collect();
    let worst = checks.iter().find_map(|check| check.exit);
    let report = HealthReport::of(&config, checks, smoke_test);
    if let Some(path) = &args.bundle {
        let checks = serde_json::to_value(&report).unwrap_or_default();
        bundle::write(path, &config, &upstream, &checks).map_err(not_bundled)?;
        ProgressDisplay::new(common.quiet)
            .note(&format!("wrote {}: look through it before you send it", path.display()));
    }
    renderer.result(&report, |renderer, report| people(renderer, report, common))?;
    worst.map_or(Ok(()), |exit| Err(Failure::silent(exit)))
}

fn not_bundled(error: BundleError) -> Failure {
    let exit = match error {
        BundleError::Exists(_) => Exit::Usage,
        BundleError::Write { .. } => Exit::Failure,
    };
    Failure::new(exit, error.to_string(), Some(error.hint()))
}

impl SmokeTestReport {
    fn of(passed: Passed, project: &str) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            project: project.to_owned(),
            trace_id: passed.trace_id,
            written_in_ms: milliseconds(passed.written_in),
            visible_after_ms: milliseconds(passed.visible_after),
        }
    }
}

impl HealthReport {
    fn of(config: &Config, checks: Vec<CheckReport>, smoke_test: Option<SmokeTestReport>) -> Self {
        let file = |file: &ConfigFile| FileReport { path: file.path.display().to_string(), exists: file.is_present };
        let settings = config.settings().into_iter();
        let settings = settings.map(|setting| SettingReport {
            key: setting.key,
            value: setting.value,
            source: setting.source.to_string(),
            is_default: matches!(setting.source, Source::Default),
        });
        Self {
            schema_version: 1,
            healthy: checks.iter().all(|check| check.exit.is_none()),
            version: env!("CARGO_PKG_VERSION"),
            files: config.files.iter().map(file).collect(),
            settings: settings.collect(),
            checks,
            smoke_test,
        }
    }
}

/// Runs all checks: those of the configuration, of the server and the store, and of what else is on this machine.
fn checks(config: &Config, health: &Health<'_>, depot: Option<&DepotSettings>) -> Vec<Check> {
    let mut checks = files(config);
    checks.extend(misconfigurations(config));
    checks.extend(health.checks());
    if let Some(depot) = depot {
        checks.extend(depot_checks(depot, config.upstream.value.host()));
    }
    checks.push(agent(config));
    let orphaned = orphaned_files(&orphans::facts(&orphans()), &orphans::pattern());
    checks.extend(orphaned.map(|problem| Check::warning("orphaned", problem.text, problem.fixes.join("; "))));
    checks
}

/// Returns how the fleet's depot is reached, if there is one.
///
/// Settings that fit no depot end the command, like any other unusable setting; what the depot says is a check.
fn usable_depot(config: &Config) -> Result<Option<DepotSettings>, Failure> {
    let Some(settings) = translate::depot(config) else { return Ok(None) };
    match depot::open(&settings) {
        Err(error @ DepotError::Unusable { .. }) => Err(error.into()),
        _ => Ok(Some(settings)),
    }
}

/// The configuration files. An unreadable file has ended the command already.
fn files(config: &Config) -> Vec<Check> {
    let check = |file: &ConfigFile| {
        let path = file.path.display();
        match file.is_present {
            true => Check::good("file", format!("{path} was read")),
            false => Check::note("file", format!("{path} does not exist, and is optional")),
        }
    };
    config.files.iter().map(check).collect()
}

/// The known misconfigurations. They are warnings: data may flow nevertheless.
fn misconfigurations(config: &Config) -> Vec<Check> {
    const NAME: &str = "configuration";
    let found = config.scan();
    if found.is_empty() {
        return vec![Check::good(NAME, "no known mistakes")];
    }
    found.into_iter().map(|mistake| Check::warning(NAME, mistake.to_string(), mistake.hint())).collect()
}

/// Returns the agents that answer, and the stored messages and holds, if the store can be read.
fn agents(config: &Config) -> (FoundAgents, Option<(Backlog, DeliveryHolds)>) {
    let store = translate::existing_store_without_key(config).ok().flatten();
    let condition = store.as_ref().and_then(|store| store.condition().ok());
    let own = OwnStore::new(store.as_ref().map(|store| store.identity()), &config.db.value);
    let records = condition.as_ref().map_or(&[][..], |condition| &condition.agents);
    let server = translate::server(config);
    let agents = FoundAgents::find(records, config.listen.value, &own, &server);
    let backlog = store.and_then(|store| store.backlog(&Filter::default()).ok());
    (
        agents,
        backlog.map(|backlog| {
            (backlog, condition.as_ref().map(|condition| holds(condition, server.base_url())).unwrap_or_default())
        }),
    )
}

/// Returns the holds of the store and of its lanes; `server_url` is the server of this call.
fn holds(condition: &Condition, server_url: &str) -> DeliveryHolds {
    let now = now_ms();
    let held: Vec<HeldFacts> = condition.held.iter().map(|(lane, hold)| held_facts(lane, hold, server_url)).collect();
    let lanes = held_lanes(now, &held).into_iter().map(|(is_key_refused, problem)| HeldLanes {
        text: problem.text,
        hint: match is_key_refused {
            true => "`opik-offline replay --rekey` gives what waits the configured key, after a preview".to_owned(),
            false => "nothing is lost, and it is retried".to_owned(),
        },
        is_key_refused,
    });
    DeliveryHolds { by_person: held_text(condition.replay_hold.as_ref(), now), lanes: lanes.collect() }
}

/// Checks that somebody delivers what is stored. A script that waits for the server may be about to start the agent.
fn messages(config: &Config, is_startup: bool) -> Option<Check> {
    let (agents, backlog) = agents(config);
    // One that can't use the store delivers nothing of it.
    let serving = agents.serving.filter(|agent| agent.store_problem.is_none());
    let agent = serving.as_ref().and_then(delivering);
    let (backlog, holds) = backlog?;
    Some(stored_messages(&backlog, &holds, agent.as_ref(), &translate::server(config), is_startup))
}

/// Returns which server an agent delivers to; `None` if its version does not report it.
fn delivering(agent: &AskedAgent) -> Option<DeliveringAgent> {
    let server = agent.server.as_ref()?;
    Some(DeliveringAgent {
        listen: agent.overview.listen.clone(),
        server: Server::new(&server.url),
        is_available: match server.connection {
            "available" => Some(true),
            "unavailable" => Some(false),
            _ => None,
        },
        reason: server.reason.clone(),
    })
}

fn agent(config: &Config) -> Check {
    let (agents, _) = agents(config);
    if let (None, Some(other)) = (&agents.serving, &agents.other) {
        return Check::warning("agent", other.other_store_text(), "use its store with --db, or give both the same one");
    }
    let delivering = agents.serving.as_ref().and_then(delivering);
    match agents.serving.map(RunningAgent::of) {
        Some(RunningAgent { listen, store_problem: Some(problem), .. }) => {
            let text = format!("NOT PROTECTED: running on {listen}, but it {problem}");
            Check::warning("agent", text, "repair the store; the agent retries on its own")
        }
        Some(RunningAgent { listen, store_full: Some(reason), .. }) => {
            let text = format!("running on {listen}, and its store is full: {reason}");
            Check::failed("agent", FailureCause::Failure, text, "`opik-offline status` shows what to do")
        }
        Some(RunningAgent { listen, files_problem: Some(files), .. }) => {
            let (problem, hint) = files.split_once("; ").unwrap_or((&files, "raise the hard limit on open files"));
            Check::warning("agent", format!("running on {listen}, but {problem}"), hint)
        }
        Some(RunningAgent { listen, .. }) => match delivering {
            Some(agent) => running_agent(&agent, &translate::server(config)),
            None => Check::good("agent", format!("running on {listen}")),
        },
        None if few_files(config).is_some() => {
            let (problem, hint) = few_files(config).unwrap_or_default();
            Check::note_with_hint("agent", format!("not running; started from here, {problem}"), hint)
        }
        None => Check::note_with_hint(
            "agent",
            "not running",
            "start it with `opik-offline agent`, or in front of a command: `opik-offline agent -- COMMAND`",
        ),
    }
}

/// Fewer possible connections than this are reported before an agent is started.
const FEW_CONNECTIONS: u64 = 256;

/// Returns what the open files allowed here are too few for if an agent is started, and what to do.
fn few_files(config: &Config) -> Option<(String, String)> {
    let (wanted, workers) = (u64::from(config.max_connections.value), Workers::count() as u64);
    let problem = files::problem(files::allowed_at_most(), wanted.min(FEW_CONNECTIONS), workers)?;
    Some((problem, files::hint(wanted, workers)))
}

fn people(renderer: &Renderer, report: &HealthReport, common: &Common) -> Shown {
    let columns = OutputStream::Out.columns();
    let mut shown = Shown::default();
    for check in &report.checks {
        renderer.add_mark(&mut shown, check.result);
        let said = hanging(&printable::line(&check.text), columns, INDENT);
        shown.add_lines(&format!(" {:<13} {said}\n", check.name));
        if let Some(hint) = &check.hint {
            let said = hanging(&format!("hint: {}", printable::line(hint)), columns, INDENT);
            shown.add_lines(&format!("{:INDENT$}{said}\n", ""));
        }
    }
    if !common.quiet {
        shown.end_line();
        shown.add(&settings(renderer, &report.settings, common.verbose));
    }
    shown
}

/// Returns the settings that differ from their defaults, or all.
fn settings(renderer: &Renderer, settings: &[SettingReport], all: bool) -> Shown {
    let row = |setting: &SettingReport| [setting.key.to_owned(), setting.value.clone(), setting.source.clone()];
    let shown_ones = settings.iter().filter(|setting| all || !setting.is_default);
    let rows: Vec<_> =
        std::iter::once(["setting", "value", "from"].map(str::to_owned)).chain(shown_ones.map(row)).collect();
    let others = settings.len() + 1 - rows.len();
    let mut shown = Shown::default();
    if rows.len() > 1 {
        shown.add(&three_columns(renderer, &rows, OutputStream::Out.columns()));
    }
    if others > 0 {
        let settings = count(others as u64, "setting");
        let all = hint::command("healthcheck -v");
        shown.add_line(&format!("{settings} with the default value: {all} shows all"));
    }
    shown
}

/// A running agent, as `healthcheck` sees it.
struct RunningAgent {
    /// Where it listens.
    listen: String,
    /// Why it can't use its store, if so.
    store_problem: Option<String>,
    /// Why its store is full, if it is.
    store_full: Option<String>,
    /// The limits that follow from too few file descriptors, and what to do.
    files_problem: Option<String>,
}

impl RunningAgent {
    fn of(agent: AskedAgent) -> Self {
        Self {
            store_problem: degraded_text(agent.live_writes.as_deref(), agent.store_problem.as_deref()),
            listen: agent.overview.listen,
            store_full: agent.store_full,
            files_problem: agent.overview.files_problem,
        }
    }
}
