//! `opik-offline healthcheck`

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::render::{Mark, Renderer, size, table_text};
use super::selection::{duration, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, existing_store, translate, upstream};
use crate::config::{Config, Misconfiguration};
use crate::message::{Credential, Lane};
use crate::shutdown::Shutdown;
use crate::store::{self, OpenMode, StoreError};
use crate::upstream::Upstream;

const AFTER_HELP: &str = "\
Examples:
  Look at everything once:
    opik-offline healthcheck
  Wait for the server in a start script:
    opik-offline healthcheck --wait 30s

Exit codes:
  0  Healthy
  1  The store can't be used
  2  Wrong usage or configuration
  3  The server can't be reached
  5  The server does not accept the key or the workspace";

/// Check the configuration, the Opik server, access to it and the store
///
/// It shows every setting with its origin, secrets masked, and what would keep data from being delivered. When
/// several checks fail, the first one decides the exit code.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct HealthcheckArgs {
    /// Keep checking for this long until all is well
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,

    /// Read the store page by page even when it is large, which takes some 20 seconds a gigabyte
    #[arg(long)]
    full: bool,
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

    fn bad(name: &'static str, exit: Exit, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, result: Mark::Bad, text: text.into(), hint: Some(hint.into()), exit: Some(exit) }
    }

    fn failed(name: &'static str, failure: Failure) -> Self {
        Self { name, result: Mark::Bad, text: failure.message, hint: failure.hint, exit: Some(failure.exit) }
    }
}

/// How often `--wait` looks again.
const WAIT_INTERVAL: Duration = Duration::from_millis(500);

pub fn run(common: &Common, args: &HealthcheckArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let upstream = upstream(&config)?;
    let shutdown = Shutdown::new();
    let started = Instant::now();
    loop {
        let checks = checks(&config, &upstream, args.full);
        let worst = checks.iter().find_map(|check| check.exit);
        let time_left = args.wait.is_some_and(|wait| started.elapsed() < wait);
        if worst.is_some() && time_left {
            shutdown.sleep(WAIT_INTERVAL);
            continue;
        }
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
    let mut checks = scan(config);
    let timeout = config.connection_monitor_check_timeout.value;
    let is_there = match upstream.ping(timeout) {
        Ok(pong) if pong.status == 200 => {
            let version = upstream.version(timeout).map_or(String::new(), |version| format!(", version {version}"));
            let text = format!("{} answers in {} ms{version}", upstream.base_url(), pong.latency.as_millis());
            checks.push(Check::good("server", text));
            true
        }
        Ok(pong) => {
            let text = format!("{} answers its ping with {}", upstream.base_url(), pong.status);
            let hint = "name the API with --upstream, such as http://127.0.0.1:5173/api";
            checks.push(Check::bad("server", Exit::Unreachable, text, hint));
            false
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

fn access(config: &Config, upstream: &Upstream) -> Check {
    let workspace = config.workspace.value.clone();
    let credential = config.api_key.value.as_ref().map(|key| Credential::new(key.expose()));
    let lane = Lane { workspace: Some(workspace.clone()), credential };
    match upstream.check_access(&lane, config.connection_monitor_check_timeout.value) {
        Ok(answer) if (200..300).contains(&answer.status) => {
            Check::good("access", format!("workspace {workspace} is open to this key"))
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
    let opened = store::open(&config.db.value, OpenMode::Existing, translate::store_limits(config));
    let looked = opened.and_then(|store| {
        let condition = store.condition()?;
        let is_read = full || condition.file_bytes <= SMALL_STORE_BYTES;
        Ok((if is_read { Some(store.check()?) } else { None }, condition))
    });
    match looked {
        Err(StoreError::Missing { .. }) => Check::note("store", format!("{path}: nothing was stored yet")),
        Err(error) => Check::failed("store", error.into()),
        Ok((problems, condition)) if problems.as_ref().is_none_or(Vec::is_empty) => {
            let free =
                condition.disk_free_bytes.map_or(String::new(), |free| format!(", {} free on its disk", size(free)));
            let looked = if problems.is_some() { "sound" } else { "can be opened (--full reads every page)" };
            Check::good("store", format!("{path}: {looked}, {}{free}", size(condition.file_bytes)))
        }
        Ok((problems, _)) => {
            let problems = problems.unwrap_or_default();
            let text = format!("{path}: {}", problems.join("; "));
            Check::bad("store", Exit::Failure, text, "keep a copy of the file, and replay what can be read")
        }
    }
}

fn agent(config: &Config) -> Check {
    let records = existing_store(config).ok().flatten().and_then(|store| store.condition().ok());
    let records = records.map(|condition| condition.agents).unwrap_or_default();
    match super::status::running_agent(config, &records) {
        Some(text) => Check::good("agent", text),
        None => Check::note("agent", "not running; start it with `opik-offline agent`"),
    }
}

fn people(renderer: &Renderer, report: &Report, quiet: bool) -> String {
    let mut text = String::new();
    if !quiet {
        for file in &report.files {
            text.push_str(&format!("file {}{}\n", file.path, if file.exists { "" } else { " (not there)" }));
        }
        let mut table = renderer.table(&["setting", "~value", "~from"]);
        for setting in &report.settings {
            table.add_row([setting.key, &setting.value, &setting.source]);
        }
        text.push('\n');
        text.push_str(&table_text(&table));
        text.push('\n');
    }
    for check in &report.checks {
        text.push_str(&format!("{} {:<13} {}\n", renderer.mark(check.result), check.name, check.text));
        if let Some(hint) = &check.hint {
            text.push_str(&format!("   {:<13} hint: {hint}\n", ""));
        }
    }
    text
}
