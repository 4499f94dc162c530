//! `opik-offline healthcheck`

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::render::{Mark, Renderer, count, hanging, size, time};
use super::selection::{duration, refuse_jsonl};
use super::status::RunningAgent;
use super::terminal::{Shown, Stream, Style};
use super::{
    Common, Exit, Failure, configuration, existing_store_without_key, progress, stop_on_signals, translate, upstream,
};
use crate::agent::files;
use crate::config::{Config, ConfigFile, Misconfiguration};
use crate::delivery::id_window;
use crate::intake::workers::Workers;
use crate::message::{Credential, Lane};
use crate::printable::{self, cells, padded};
use crate::protocol::answers::Answer;
use crate::protocol::recognise::{Presence, Recognised};
use crate::replay::near_id_window;
use crate::shutdown::Shutdown;
use crate::store::full_state::remedies;
use crate::store::{self, Filter, KeyState, Keys, OpenMode, Resealed, Resealing, StoreError, mount, now_ms, place};
use crate::upstream::Upstream;
use crate::upstream::smoke::SmokeFailure;

const AFTER_HELP: &str = "\
Examples:
  Look at everything once:
    opik-offline healthcheck
  Wait for the server in a start script:
    opik-offline healthcheck --wait 30s
  Encrypt what was stored before a key was set, or change the key:
    opik-offline healthcheck --reseal
  See a trace arrive at the server:
    opik-offline healthcheck --smoke-test

Exit codes:
  0    Healthy
  1    The store can't be used, or the smoke test failed
  2    Wrong usage or configuration
  3    The server can't be reached, or is not Opik
  5    The server does not accept the key or the workspace
  130  Interrupted";

/// Check the configuration, the Opik server, access to it, the store and its disk
///
/// It shows every setting with its origin, secrets masked, and what would keep data from being delivered: a line for each
/// check, with what to do where something is wrong. When several checks fail, the first one decides the exit code.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct HealthcheckArgs {
    /// Keep checking for this long until all is well
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,

    /// Read the store page by page even when it is large, which takes some 20 seconds a gigabyte
    #[arg(long)]
    full: bool,

    /// Write a trace with a span and an image to the server and read it back, when all else is well
    #[arg(long)]
    smoke_test: bool,

    /// Keep all that is stored as the settings ask for, encrypted or not, and leave nothing of before in the files; asks no
    /// server
    #[arg(long, conflicts_with_all = ["smoke_test", "wait"])]
    reseal: bool,

    /// The project that the smoke test writes to
    #[arg(long, value_name = "NAME", requires = "smoke_test", default_value = "smoke-test-project")]
    project_name: String,
}

/// Stores up to this size are read page by page without being asked to.
const SMALL_STORE_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Serialize)]
struct Report {
    schema_version: u32,
    healthy: bool,
    version: &'static str,
    files: Vec<File>,
    settings: Vec<Setting>,
    checks: Vec<Check>,
    /// `null` without `--smoke-test`, and when it did not come to it or failed.
    smoke_test: Option<SmokeTest>,
}

/// A smoke test that went well.
#[derive(Serialize)]
struct SmokeTest {
    project: String,
    trace_id: String,
    written_in_ms: u64,
    visible_after_ms: u64,
}

#[derive(Serialize)]
struct File {
    path: String,
    exists: bool,
}

#[derive(Serialize)]
struct Setting {
    key: &'static str,
    value: String,
    source: String,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    result: Mark,
    text: String,
    hint: Option<String>,
    #[serde(skip)]
    exit: Option<Exit>,
}

impl Check {
    fn good(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, result: Mark::Good, text: text.into(), hint: None, exit: None }
    }

    fn note(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, result: Mark::Note, text: text.into(), hint: None, exit: None }
    }

    fn warn(name: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, result: Mark::Warn, text: text.into(), hint: Some(hint.into()), exit: None }
    }

    fn with_hint(self, hint: &str) -> Self {
        Self { hint: Some(hint.to_owned()), ..self }
    }

    fn bad(name: &'static str, exit: Exit, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, result: Mark::Bad, text: text.into(), hint: Some(hint.into()), exit: Some(exit) }
    }

    fn failed(name: &'static str, failure: Failure) -> Self {
        Self { name, result: Mark::Bad, text: failure.message, hint: failure.hint, exit: Some(failure.exit) }
    }
}

/// Columns in front of what a check says.
const INDENT: usize = 17;
/// How often a long change of the encryption is told of.
const RESEAL_TOLD_EVERY: Duration = Duration::from_secs(5);
/// How often `--wait` looks again.
const WAIT_INTERVAL: Duration = Duration::from_millis(500);
/// How long the smoke test waits for the server to show what it took: as long as the SDK's own.
const SMOKE_PATIENCE: Duration = Duration::from_secs(20);
/// From here on, in hundredths of the largest size, a store counts as nearly full.
const NEARLY_FULL_PERCENT: u64 = 90;

pub fn run(common: &Common, args: &HealthcheckArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let upstream = upstream(&config)?;
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;
    let started = Instant::now();
    loop {
        let mut checks = match args.reseal {
            true => {
                vec![reseal(&config, common, &shutdown)?, store(&config, args.full), encryption(&config), disk(&config)]
            }
            false => checks(&config, &upstream, args.full),
        };
        let is_well = |checks: &[Check]| checks.iter().all(|check| check.exit.is_none());
        let time_left = args.wait.is_some_and(|wait| started.elapsed() < wait);
        if !is_well(&checks) && time_left {
            if shutdown.sleep(WAIT_INTERVAL) {
                return Err(Failure::silent(Exit::Interrupted));
            }
            continue;
        }
        let mut smoke_test = None;
        if args.smoke_test {
            let check = if is_well(&checks) {
                let (check, passed) = try_it(&config, &upstream, &args.project_name, &shutdown);
                smoke_test = passed;
                check
            } else {
                Check::note("smoke test", "not tried while a check fails")
            };
            checks.push(check);
        }
        let worst = checks.iter().find_map(|check| check.exit);
        let report = Report {
            schema_version: 1,
            healthy: worst.is_none(),
            version: env!("CARGO_PKG_VERSION"),
            files: config
                .files
                .iter()
                .map(|file| File { path: file.path.display().to_string(), exists: file.is_present })
                .collect(),
            settings: settings(&config),
            checks,
            smoke_test,
        };
        renderer.result(&report, |renderer, report| people(renderer, report, common.quiet))?;
        return worst.map_or(Ok(()), |exit| Err(Failure::silent(exit)));
    }
}

fn settings(config: &Config) -> Vec<Setting> {
    let lines = config.settings().into_iter();
    lines.map(|line| Setting { key: line.key, value: line.value, source: line.source.to_string() }).collect()
}

/// Looks at everything; the order is that of what depends on what.
fn checks(config: &Config, upstream: &Upstream, full: bool) -> Vec<Check> {
    let mut checks = files(config);
    checks.extend(scan(config));
    let timeout = config.connection_monitor_check_timeout.value;
    let is_there = match upstream.ping(timeout) {
        Ok(pong) if pong.presence == Presence::There => {
            let version = upstream.version(timeout).map_or(String::new(), |version| format!(", version {version}"));
            let text = format!("{} answers in {} ms{version}", upstream.base_url(), pong.latency.as_millis());
            checks.push(Check::good("server", text));
            true
        }
        Ok(pong) => {
            let (exit, hint) = match &pong.presence {
                Presence::Unauthorised(_) => (Exit::NotAuthorised, "check OPIK_API_KEY and OPIK_WORKSPACE"),
                Presence::Foreign(foreign) => (Exit::Unreachable, foreign.hint()),
                Presence::There | Presence::Unhealthy(_) => {
                    (Exit::Unreachable, "name the API with --upstream, such as http://127.0.0.1:5173/api")
                }
            };
            checks.push(Check::bad("server", exit, pong.presence.sentence(&upstream.described()), hint));
            matches!(pong.presence, Presence::Unauthorised(_))
        }
        Err(failure) => {
            let hint = "start the server, check the network, or name another server with --upstream";
            checks.push(Check::bad("server", Exit::Unreachable, failure.to_string(), hint));
            false
        }
    };
    checks.push(if is_there {
        access(config, upstream)
    } else {
        Check::note("access", "not checked without a server")
    });
    checks.push(store(config, full));
    checks.push(encryption(config));
    checks.push(disk(config));
    checks.extend(file_system(config));
    checks.push(agent(config));
    checks.extend(super::salvage::orphans().into_iter().map(|orphan| Check {
        name: "orphaned",
        result: Mark::Warn,
        text: orphan.text(),
        hint: Some(orphan.hint()),
        exit: None,
    }));
    checks
}

/// The configuration files. One that can't be read has ended the command before.
fn files(config: &Config) -> Vec<Check> {
    let check = |file: &ConfigFile| {
        let path = file.path.display();
        match file.is_present {
            true => Check::good("file", format!("{path} is read")),
            false => Check::note("file", format!("{path} is not there, and need not be")),
        }
    };
    config.files.iter().map(check).collect()
}

/// The known misconfigurations. They are warnings: traffic may flow all the same.
fn scan(config: &Config) -> Vec<Check> {
    let found = config.scan();
    if found.is_empty() {
        return vec![Check::good("configuration", "no known mistake")];
    }
    let check = |mistake: Misconfiguration| Check {
        name: "configuration",
        result: Mark::Warn,
        text: mistake.to_string(),
        hint: Some(mistake.hint().to_owned()),
        exit: None,
    };
    found.into_iter().map(check).collect()
}

/// Whose data the configuration would send.
fn lane(config: &Config) -> Lane {
    let credential = config.api_key.value.as_ref().map(|key| Credential::new(key.expose()));
    Lane { server: None, workspace: Some(config.workspace.value.clone()), credential }
}

fn access(config: &Config, upstream: &Upstream) -> Check {
    let workspace = &config.workspace.value;
    match upstream.check_access(&lane(config), config.connection_monitor_check_timeout.value) {
        Ok(answer) if answer.is_confirmed() => {
            Check::good("access", format!("workspace {workspace} is open to this key"))
        }
        Ok(Answer { recognised: Recognised::Foreign(foreign), .. }) => {
            let exit = if matches!(foreign.status, 401..=403) { Exit::NotAuthorised } else { Exit::Unreachable };
            Check::bad("access", exit, format!("the access check gets an answer that is {foreign}"), foreign.hint())
        }
        Ok(answer) if answer.status == 404 => {
            Check::note("access", "the server has no access check; local servers need none")
        }
        Ok(answer) if (401..=403).contains(&answer.status) => {
            let text = format!("the server answers {} for workspace {workspace}", answer.status);
            Check::bad("access", Exit::NotAuthorised, text, "check OPIK_API_KEY and OPIK_WORKSPACE")
        }
        Ok(answer) => {
            let text = format!("the server answers {} to the access check", answer.status);
            Check::bad("access", Exit::Failure, text, "look at the server's log")
        }
        Err(failure) => Check::failed("access", failure.into()),
    }
}

fn store(config: &Config, full: bool) -> Check {
    let path = config.db.value.display();
    let (limits, keys) = (translate::store_limits(config), translate::store_keys(config));
    let open = |keys: Keys| store::open_with(&config.db.value, OpenMode::Existing, limits, &keys);
    let looked =
        store::prove(&config.db.value).and_then(|()| keys.map_err(StoreError::from)).and_then(open).and_then(|store| {
            let condition = store.condition()?;
            let is_read = full || condition.file_bytes <= SMALL_STORE_BYTES;
            let backlog = store.backlog(&Filter::default())?;
            let counts = (backlog.waiting(), backlog.rejected());
            let ids = (backlog.held(), near_id_window(store.as_ref(), now_ms())?, counts);
            Ok((if is_read { Some(store.check()?) } else { None }, condition, ids))
        });
    match looked {
        Err(StoreError::Missing { .. }) => Check::note("store", format!("{path}: nothing was stored yet")),
        Err(error @ StoreError::Busy { .. }) => {
            let failure = Failure::from(error);
            Check::warn("store", failure.message, failure.hint.unwrap_or_default())
        }
        Err(error) => Check::failed("store", error.into()),
        Ok((problems, condition, (held, near, (waiting, rejected)))) if problems.as_ref().is_none_or(Vec::is_empty) => {
            let looked = if problems.is_some() { "sound" } else { "can be opened (--full reads every page)" };
            let (used, max) = (condition.file_bytes, config.max_size.value.bytes());
            let mut text = format!("{path}: {looked}, {} of at most {}", size(used), size(max));
            for (dropped, why) in [
                (condition.dropped, "the store was full"),
                (condition.rejected_dropped, "rejected ones held more than rejected_share"),
                (condition.expired, "they were older than max_age"),
            ] {
                if dropped > 0 {
                    text.push_str(&format!("; {dropped} messages were dropped because {why}"));
                }
            }
            if held > 0 {
                text.push_str(&format!(
                    "; {held} messages are held, because their ids lie outside the server's window"
                ));
            } else if let Some(at_ms) = near {
                text.push_str(&format!(
                    "; a create waits since {}: servers may refuse ids older than 24h",
                    time(at_ms)
                ));
            }
            if condition.full_record.refused > 0 {
                let refused = count(condition.full_record.refused, "write");
                text.push_str(&format!("; {refused} found it full and got a 503"));
            }
            if let Some(full) = &condition.full {
                let since =
                    condition.full_record.since_ms.map_or(String::new(), |at_ms| format!(" since {}", time(at_ms)));
                text.push_str(&format!("; it is full{since}: {}", full.reason));
                let remedies = remedies(full.limit, waiting, rejected, &super::wrapped::store_option(config));
                return Check::bad("store", Exit::Failure, text, remedies.join("; "));
            }
            let recovered: Vec<_> = condition.recoveries.iter().filter(|recovery| recovery.is_kept).collect();
            if let Some(last) = recovered.last() {
                let (recovered, lost) = (last.recovered, last.lost);
                text.push_str(&format!("; its file was damaged: {recovered} messages were recovered, {lost} are lost"));
                let aside = &last.set_aside;
                return Check::warn(
                    "store",
                    text,
                    format!("see to the disk; remove {aside} when you need nothing of it"),
                );
            }
            // What messages that were deleted left behind is used again before the file grows.
            let is_nearly_full = used.saturating_sub(condition.free_bytes) > max / 100 * NEARLY_FULL_PERCENT;
            match is_nearly_full {
                true => Check::warn("store", text, "replay or purge messages, or raise OPIK_OFFLINE_MAX_SIZE"),
                false if held > 0 || near.is_some() => Check::warn("store", text, id_window::REMEDY),
                false => Check::good("store", text),
            }
        }
        Ok((problems, ..)) => {
            let problems = problems.unwrap_or_default();
            let text = format!("{path}: {}", problems.join("; "));
            Check::bad("store", Exit::Failure, text, "keep a copy of the file, and replay what can be read")
        }
    }
}

/// Whether what is stored can be read from its files, and whether we have the key.
fn encryption(config: &Config) -> Check {
    const NAME: &str = "encryption";
    const RESEAL: &str = "run `opik-offline healthcheck --reseal`";
    let keys = match translate::store_keys(config) {
        Ok(keys) => keys,
        Err(error) => return Check::failed(NAME, error.into()),
    };
    let condition = existing_store_without_key(config).ok().flatten().and_then(|store| store.condition().ok());
    let Some(encryption) = condition.map(|condition| condition.encryption) else {
        return match &keys.current {
            Some(key) => Check::good(NAME, format!("on for the store that will be made, with key {}", key.id())),
            None => Check::note(NAME, "off"),
        };
    };
    match (encryption.sealed_with, encryption.key) {
        (_, KeyState::Missing | KeyState::Wrong) => {
            let needed = [encryption.sealed_with, encryption.previous].into_iter().flatten();
            let needed = needed.map(|key| key.to_string()).collect::<Vec<_>>().join(" and ");
            let given = [&keys.current, &keys.previous].into_iter().flatten();
            let given = given.map(|key| key.id().to_string()).collect::<Vec<_>>().join(" and ");
            let text = match given.is_empty() {
                true => format!("the store needs key {needed}, and none is set"),
                false => format!("the store needs key {needed}, and {given} is set"),
            };
            Check::bad(NAME, Exit::Failure, text, "set the key with that name; status and purge work without it")
        }
        (Some(key), KeyState::Usable) if !encryption.is_complete => {
            let text = format!("on, with key {key}; what was stored before may still be in the files as it was");
            Check::warn(NAME, text, RESEAL)
        }
        (Some(key), KeyState::Usable) if keys.current.as_ref().is_some_and(|current| current.id() != key) => {
            Check::warn(NAME, format!("on, with the previous key {key}"), RESEAL)
        }
        (Some(key), KeyState::Usable) => Check::good(NAME, format!("on, with key {key}")),
        (None, KeyState::Usable) if !encryption.is_complete => {
            Check::warn(NAME, "off; what was stored before may still be encrypted", RESEAL)
        }
        (None, KeyState::Usable) if keys.current.is_some() => {
            Check::warn(NAME, "off, although a key is set: the store is older than the setting", RESEAL)
        }
        (None, KeyState::Usable) => Check::note(NAME, "off"),
    }
}

/// Keeps all that is stored as the settings ask for.
fn reseal(config: &Config, common: &Common, shutdown: &Shutdown) -> Result<Check, Failure> {
    const NAME: &str = "reseal";
    let done = |done: Resealing| format!("{} ({})", count(done.done, "thing"), size(done.bytes));
    let keys = match translate::store_keys(config) {
        Ok(keys) => keys,
        Err(error) => return Ok(Check::failed(NAME, error.into())),
    };
    let limits = translate::store_limits(config);
    let mut told = Instant::now();
    let mut on_progress = |so_far: Resealing| {
        if told.elapsed() >= RESEAL_TOLD_EVERY && !common.quiet {
            told = Instant::now();
            progress::say(&format!("resealed {} so far", done(so_far)));
        }
        !shutdown.is_requested()
    };
    let again = "what was done stays done; run it again to go on";
    Ok(match store::reseal(&config.db.value, limits, &keys, &mut on_progress) {
        Ok(Resealed::Complete(Resealing { done: 0, .. })) => Check::good(NAME, "everything is kept as it should be"),
        Ok(Resealed::Complete(all)) => {
            Check::good(NAME, format!("resealed {}; nothing of before is left in the files", done(all)))
        }
        Ok(Resealed::Remnants { done: all, reason }) => {
            let text =
                format!("resealed {}; unused parts of the files may still hold what was there: {reason}", done(all));
            Check::bad(NAME, Exit::Failure, text, again)
        }
        Ok(Resealed::Stopped(so_far)) => {
            let text = format!("interrupted after {}; {again}", done(so_far));
            return Err(Failure::new(Exit::Interrupted, text, None));
        }
        Err(StoreError::Missing { .. }) => Check::note(NAME, "nothing was stored yet"),
        Err(error) => Check::failed(NAME, error.into()),
    })
}

/// The place where the store is or will be. A store that stands open may hide that nothing more fits.
fn disk(config: &Config) -> Check {
    let place = match place::look_at(&config.db.value) {
        Ok(place) => place,
        Err(error) => {
            let text = format!("{} cannot be looked at: {error}", config.db.value.display());
            return Check::bad("disk", Exit::Failure, text, "name another file with --db");
        }
    };
    let reserved = translate::disk_reserve(config);
    let (found, free, reserve) = (place.found.display(), size(place.free_bytes), size(reserved));
    if !place.is_writable {
        let text = format!("{found} cannot be written by this user");
        return Check::bad("disk", Exit::Failure, text, "give this user write access, or name another file with --db");
    }
    if place.free_bytes <= reserved {
        let text = format!("{free} free, and {reserve} stay free: nothing new can be stored");
        let hint = "free disk space, lower OPIK_OFFLINE_FREE_DISK_RESERVE, or name a file on another disk with --db";
        return Check::bad("disk", Exit::Failure, text, hint);
    }
    Check::good("disk", format!("{free} free, of which {reserve} stay free"))
}

/// The file system under the store, where it keeps less than a disk of this machine.
fn file_system(config: &Config) -> Option<Check> {
    let path = config.db.value.display();
    let found = mount::look_at(&config.db.value)?;
    Some(Check::warn("file system", format!("{path} is on {}: {}", found.name, found.problem()), found.hint()))
}

fn agent(config: &Config) -> Check {
    let records = existing_store_without_key(config).ok().flatten().and_then(|store| store.condition().ok());
    let records = records.map(|condition| condition.agents).unwrap_or_default();
    match super::status::running_agent(config, &records) {
        Some(RunningAgent { listen, store_problem: Some(problem), .. }) => {
            let text = format!("running on {listen}, but it {problem}");
            Check::warn("agent", text, "see to the store; the agent tries it again by itself")
        }
        Some(RunningAgent { listen, store_full: Some(reason), .. }) => {
            let text = format!("running on {listen}, and its store is full: {reason}");
            Check::bad("agent", Exit::Failure, text, "`opik-offline status` says what to do")
        }
        Some(RunningAgent { listen, files_problem: Some(files), .. }) => {
            let (problem, hint) = files.split_once("; ").unwrap_or((&files, "raise the hard limit on open files"));
            Check::warn("agent", format!("running on {listen}, but {problem}"), hint)
        }
        Some(RunningAgent { listen, .. }) => Check::good("agent", format!("running on {listen}")),
        None if few_files(config).is_some() => {
            let (problem, hint) = few_files(config).unwrap_or_default();
            Check::note("agent", format!("not running; started from here, {problem}")).with_hint(&hint)
        }
        None => Check::note("agent", "not running")
            .with_hint("start it with `opik-offline agent`, or in front of a command: `opik-offline agent -- COMMAND`"),
    }
}

/// Room for fewer connections than this is worth a word before an agent is started.
const FEW_CONNECTIONS: u64 = 256;

/// What an agent that is started as this command was would have too few open files for, and what to do.
fn few_files(config: &Config) -> Option<(String, String)> {
    let (wanted, workers) = (u64::from(config.max_connections.value), Workers::count() as u64);
    let problem = files::problem(files::allowed_at_most(), wanted.min(FEW_CONNECTIONS), workers)?;
    Some((problem, files::hint(wanted, workers)))
}

/// Sends a trace through the real server and reads it back.
fn try_it(config: &Config, upstream: &Upstream, project: &str, shutdown: &Shutdown) -> (Check, Option<SmokeTest>) {
    let lane = lane(config);
    let failure = match upstream.smoke_test(&lane, project, SMOKE_PATIENCE, shutdown) {
        Ok(passed) => {
            let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let passed = SmokeTest {
                project: project.to_owned(),
                trace_id: passed.trace_id,
                written_in_ms: milliseconds(passed.written_in),
                visible_after_ms: milliseconds(passed.visible_after),
            };
            let SmokeTest { project, trace_id, written_in_ms, visible_after_ms } = &passed;
            let text = format!(
                "trace {trace_id} with a span and an image, written in {written_in_ms} ms and read back after {visible_after_ms} ms, \
                 project {project}"
            );
            return (Check::good("smoke test", text), Some(passed));
        }
        Err(failure) => failure,
    };
    let (exit, hint) = match &failure {
        SmokeFailure::Send(_) => (Exit::Unreachable, "the server went away in between; try again"),
        SmokeFailure::Refused { answer, .. } => match answer.recognised.foreign() {
            _ if (401..=403).contains(&answer.status) => {
                (Exit::NotAuthorised, "check OPIK_API_KEY, OPIK_WORKSPACE, and that they may write to the project")
            }
            Some(foreign) => (Exit::Unreachable, foreign.hint()),
            None => (Exit::Failure, "look at the server's log"),
        },
        SmokeFailure::NotVisible { .. } => {
            (Exit::Failure, "the server takes data and does not show it: look at its database (ClickHouse) and its log")
        }
    };
    let failed = Check::bad("smoke test", exit, failure.to_string(), hint);
    (failed, None)
}

fn people(renderer: &Renderer, report: &Report, quiet: bool) -> Shown {
    let columns = Stream::Out.columns();
    let mut shown = Shown::default();
    if !quiet {
        shown.add(&settings_text(renderer, &report.settings, columns));
        shown.end_line();
    }
    for check in &report.checks {
        renderer.add_mark(&mut shown, check.result);
        let said = hanging(&printable::line(&check.text), columns, INDENT);
        shown.add_lines(&format!(" {:<13} {said}\n", check.name));
        if let Some(hint) = &check.hint {
            let said = hanging(&format!("hint: {}", printable::line(hint)), columns, INDENT);
            shown.add_lines(&format!("{:INDENT$}{said}\n", ""));
        }
    }
    shown
}

/// Returns the settings in columns. Where a value leaves its origin no room in the line, that stands below it: a path or a
/// URL is to be copied whole.
fn settings_text(renderer: &Renderer, settings: &[Setting], columns: usize) -> Shown {
    const GAP: usize = 2;
    let settings: Vec<_> = settings
        .iter()
        .map(|setting| (setting.key, printable::line(&setting.value), printable::line(&setting.source)))
        .collect();
    let key_width = settings.iter().map(|(key, ..)| cells(key)).max().unwrap_or(0) + GAP;
    let room = columns.saturating_sub(key_width);
    let fits = |value_width: usize, source: &str| value_width + cells(source) <= room;
    let widths = settings.iter().filter_map(|(_, value, source)| {
        let width = cells(value) + GAP;
        fits(width, source).then_some(width)
    });
    let value_width = widths.max().unwrap_or(0).max("value".len() + GAP);
    let row = |key: &str, value: &str, source: &str| {
        let is_beside = fits(value_width.max(cells(value) + GAP), source);
        match is_beside {
            true => format!("{key:<key_width$}{}{source}\n", padded(value, value_width)),
            false => format!("{key:<key_width$}{value}\n{:key_width$}{source}\n", ""),
        }
    };
    let head = row("setting", "value", "from");
    let mut shown = Shown::default();
    shown.add_styled(renderer.style(Style::Bold), head.trim_end());
    shown.end_line();
    settings.iter().for_each(|(key, value, source)| shown.add_lines(&row(key, value, source)));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::Format;

    #[test]
    fn a_value_that_is_too_long_for_its_line_stays_whole() {
        let setting = |key, value: &str, source: &str| Setting { key, value: value.into(), source: source.into() };
        let settings = [
            setting("db", "/home/somebody/a/long/way/opik_messages.db", "default"),
            setting("max_size", "10GiB", "default"),
            setting("upstream", "http://127.0.0.1:5173/api", "environment OPIK_OFFLINE_UPSTREAM"),
        ];
        let renderer = Renderer::new(Format::Table, false);
        let narrow = "\
setting   value  from
db        /home/somebody/a/long/way/opik_messages.db
          default
max_size  10GiB  default
upstream  http://127.0.0.1:5173/api
          environment OPIK_OFFLINE_UPSTREAM
";
        assert_eq!(settings_text(&renderer, &settings, 50).as_str(), narrow);
        let wide = "\
setting   value                                       from
db        /home/somebody/a/long/way/opik_messages.db  default
max_size  10GiB                                       default
upstream  http://127.0.0.1:5173/api                   environment OPIK_OFFLINE_UPSTREAM
";
        assert_eq!(settings_text(&renderer, &settings, usize::MAX).as_str(), wide);
    }
}
