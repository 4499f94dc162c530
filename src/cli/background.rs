//! `opik-offline agent --background` and `--stop`, and what a starting agent prints.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::agent::AgentArgs;
use super::{Common, Exit, Failure, exit_interrupted, translate};
use crate::agent::Agent;
use crate::agent::background::{self, Instance, LaunchEnvironment, Launched, StopEnd};
use crate::config::{Config, ProcessEnvironment};
use crate::figures::count;
use crate::message::Server;
use crate::printable::shell_word;
use crate::shutdown::Shutdown;
use crate::signals::stop_agent_on_signals;
use crate::store::{Backlog, Filter};
use crate::terminal::progress::ProgressDisplay;
use crate::terminal::render::OutputFormat;
use crate::terminal::{OutputStream, Shown};

/// An agent, as a program that sends to it has to know it.
#[derive(Serialize)]
struct AgentReport<'a> {
    schema_version: u32,
    /// Whether this command started it.
    started: bool,
    url: &'a str,
    page: &'a str,
    server: &'a str,
    db: &'a Path,
    /// `None` for an agent in the foreground.
    log: Option<&'a Path>,
    pid: u32,
    version: &'a str,
    environment: EnvironmentReport,
}

/// What leads a process to the agent.
#[derive(Serialize)]
struct EnvironmentReport {
    set: BTreeMap<&'static str, String>,
    unset: Vec<&'static str>,
}

/// What `--stop` did, and what is left.
#[derive(Serialize)]
struct StopReport<'a> {
    schema_version: u32,
    stopped: bool,
    pid: Option<u32>,
    server: &'a str,
    db: &'a Path,
    /// Messages that wait for the server; `None` if the store can't be read.
    waiting: Option<u64>,
    rejected: Option<u64>,
}

/// Finds or starts the background agent, and prints how it is reached.
pub(super) fn start(common: &Common, args: &AgentArgs, config: &Config) -> Result<ExitCode, Failure> {
    let instance = Instance::of(config, ProcessEnvironment.state_dir())?;
    let failed = |error: io::Error| Failure::new(Exit::Failure, format!("cannot find this program: {error}"), None);
    let program = std::env::current_exe().map_err(failed)?;
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    arguments.push("--detached".into());
    let Launched { record, is_new } = background::start(&instance, &program, &arguments)?;
    let environment = LaunchEnvironment::of(config, record.listen);
    if args.print_url {
        OutputStream::Out.show(&Shown::line(&environment.url))?;
        return Ok(ExitCode::SUCCESS);
    }
    let log = instance.log();
    let report = AgentReport {
        started: is_new,
        server: instance.server(),
        db: instance.store(),
        log: Some(&log),
        pid: record.pid,
        version: &record.version,
        ..report(config, &environment)
    };
    common.renderer().result(&report, |_, _| exports(&environment))?;
    let (verb, pid) = (if is_new { "started" } else { "found" }, record.pid);
    let display = ProgressDisplay::new(common.quiet || common.format != OutputFormat::Table);
    display.note(&format!("opik-offline: {verb} the background agent for {} (process {pid})", instance.server()));
    display.note(&format!("opik-offline: its page is {}, its log {}", environment.page, log.display()));
    if config.listen.is_set() && record.listen != config.listen.value && config.listen.value.port() != 0 {
        let (listen, wanted) = (record.listen, config.listen.value);
        display
            .note(&format!("opik-offline: it listens on {listen}, not on {wanted}: settings are those of its start"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs as the background agent.
pub(super) fn run(common: &Common, config: &Config) -> Result<ExitCode, Failure> {
    let instance = Instance::of(config, ProcessEnvironment.state_dir())?;
    background::enter(&instance)?;
    let log = common.start_logging(config, None)?;
    translate::raise_files_allowed(config);
    let settings = super::agent::settings(config, None)?;
    let agent = background::bind(&instance, settings, config.listen.is_set())?;
    let shutdown = Shutdown::new();
    stop_agent_on_signals(&shutdown, log, exit_interrupted)?;
    agent.run(&shutdown, None)?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the background agent, and prints what is left in its store.
pub(super) fn stop(common: &Common, config: &Config) -> Result<ExitCode, Failure> {
    let instance = Instance::of(config, ProcessEnvironment.state_dir())?;
    let stopped = background::stop(&instance)?;
    let own = Filter::of_server(&Server::new(instance.server()));
    let opened = translate::existing_store_without_key(config);
    // Nothing was ever stored where there is no store.
    let backlog = opened.and_then(|store| store.map_or(Ok(Backlog::default()), |store| store.backlog(&own))).ok();
    let pid = match stopped {
        StopEnd::Process(pid) => Some(pid),
        StopEnd::None => None,
    };
    let report = StopReport {
        schema_version: 1,
        stopped: pid.is_some(),
        pid,
        server: instance.server(),
        db: instance.store(),
        waiting: backlog.as_ref().map(|backlog| backlog.waiting()),
        rejected: backlog.as_ref().map(|backlog| backlog.rejected()),
    };
    if common.prints_summary() {
        common.renderer().result(&report, |_, report| stop_lines(report, config))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn stop_lines(report: &StopReport<'_>, config: &Config) -> Shown {
    let (server, db) = (report.server, report.db.display());
    let mut shown = match report.pid {
        Some(pid) => Shown::line(&format!("stopped the background agent for {server} (process {pid})")),
        None => Shown::line(&format!("no background agent for {server} and {db} runs")),
    };
    match report.waiting {
        Some(0) => shown.add_line(&format!("nothing waits in {db}")),
        Some(waiting) => {
            let stays = if waiting == 1 { "stays" } else { "stay" };
            let option = crate::agent::wrapped::store_option(config);
            let stored = count(waiting, "message");
            shown.add_line(&format!("{stored} {stays} safely stored in {db}: `opik-offline replay{option}` delivers"));
        }
        None if report.pid.is_some() => shown.add_line(&format!("cannot read {db}: what waits in it is unknown")),
        None => {}
    }
    shown
}

/// Prints how an agent in the foreground is reached, on stdout. The intake token is not printed: the output of a
/// service is kept where others read it.
pub(super) fn announce(common: &Common, config: &Config, agent: &Agent) {
    if common.quiet {
        return;
    }
    let environment = LaunchEnvironment::without_token(config, agent.address());
    let server = config.upstream.value.to_string();
    let report =
        AgentReport { server: &server, db: &config.db.value, pid: std::process::id(), ..report(config, &environment) };
    // The agent is needed even if nobody reads this.
    let _ = common.renderer().result(&report, |_, _| {
        let mut shown = Shown::line(&export(OsStr::new("OPIK_URL_OVERRIDE"), OsStr::new(&environment.url)));
        if config.intake_token.value.is_some() {
            shown.add_line("# with the intake token in the path: http://HOST:PORT/-/token/TOKEN/...");
        }
        shown.add_line(&format!("# status page: {}", environment.page));
        shown
    });
}

fn report<'a>(config: &'a Config, environment: &'a LaunchEnvironment) -> AgentReport<'a> {
    let set = environment.set.iter().map(|(name, value)| (*name, value.to_string_lossy().into_owned()));
    AgentReport {
        schema_version: 1,
        started: true,
        url: &environment.url,
        page: &environment.page,
        server: "",
        db: &config.db.value,
        log: None,
        pid: 0,
        version: env!("CARGO_PKG_VERSION"),
        environment: EnvironmentReport { set: set.collect(), unset: environment.unset.clone() },
    }
}

/// Returns the commands of a shell that lead its programs to the agent.
fn exports(environment: &LaunchEnvironment) -> Shown {
    let mut shown = Shown::default();
    for (name, value) in &environment.set {
        shown.add_line(&export(OsStr::new(name), value));
    }
    for name in &environment.unset {
        shown.add_line(&format!("unset {name}"));
    }
    shown
}

fn export(name: &OsStr, value: &OsStr) -> String {
    format!("export {}={}", name.to_string_lossy(), shell_word(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_exports_as_they_are() {
        assert_eq!(export(OsStr::new("A"), OsStr::new("http://127.0.0.1:1/api")), "export A=http://127.0.0.1:1/api");
        assert_eq!(export(OsStr::new("A"), OsStr::new("a b'$c")), r"export A='a b'\''$c'");
    }
}
