//! `opik-offline agent --background` and `--stop`, and what a starting agent prints.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use super::agent::AgentArgs;
use super::{Common, Exit, Failure, exit_interrupted, translate};
use crate::agent::Agent;
use crate::agent::background::{self, Instance, LaunchEnvironment, Launched, StopEnd};
use crate::agent::wrapped::store_option;
use crate::config::{Config, ProcessEnvironment};
use crate::message::Server;
use crate::overview::asked::{AskedAgent, FoundAgents, OwnStore};
use crate::overview::dial::held_text;
use crate::report::launch::{EnvironmentReport, LaunchReport, OtherAgentLine, StopReport, announcement, exports};
use crate::report::refused::ForwardedRefusedReport;
use crate::shutdown::Shutdown;
use crate::signals::stop_agent_on_signals;
use crate::store::{Backlog, Filter, Store, now_ms};
use crate::terminal::progress::ProgressDisplay;
use crate::terminal::{OutputStream, Shown};

/// Finds or starts the background agent, and prints how it is reached.
pub(super) fn start(common: &Common, args: &AgentArgs, config: &Config) -> Result<ExitCode, Failure> {
    let instance = Instance::of(config, ProcessEnvironment.state_dir())?;
    let failed = |error: io::Error| {
        let hint = "it was replaced or removed while it started: run it again";
        Failure::new(Exit::Failure, format!("cannot find this program: {error}"), Some(hint))
    };
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
    let report = LaunchReport {
        started: is_new,
        log: Some(&log),
        pid: record.pid,
        version: &record.version,
        ..report(&environment, instance.server(), instance.store())
    };
    common.renderer().result(&report, |_, _| exports(&environment.set, &environment.unset))?;
    let (verb, pid) = (if is_new { "started" } else { "found" }, record.pid);
    let display = ProgressDisplay::new(common.quiet || !common.format.is_for_people());
    display.note(&format!("opik-offline: {verb} the background agent for {} (process {pid})", instance.server()));
    display.note(&format!("opik-offline: its page is {}, its log {}", environment.page, log.display()));
    let (listen, wanted) = (record.listen, config.listen.value);
    if config.listen.is_set() && listen != wanted && wanted.port() != 0 {
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
    // Only the agent knows, and only as long as it runs.
    let asked = instance.recorded().and_then(|record| AskedAgent::ask_at(&record.listen.to_string()));
    let refused = asked.and_then(|agent| Some((agent.overview.pid, agent.view().forwarded_refused?)));
    let pid = match background::stop(&instance)? {
        StopEnd::Process(pid) => Some(pid),
        StopEnd::None => None,
    };
    let refused = refused.filter(|(asked, _)| pid == Some(*asked));
    let refused = refused.map(|(_, refused)| ForwardedRefusedReport::of(&refused));
    let own = Filter::of_server(&Server::new(instance.server()));
    let opened = translate::existing_store_without_key(config);
    let store = opened.as_ref().ok().and_then(Option::as_deref);
    let hold = store.and_then(|store| store.replay_hold().ok()?);
    let other_agent = store.filter(|_| pid.is_none()).and_then(|store| running(config, store));
    // Nothing was ever stored where there is no store.
    let counted = opened.and_then(|store| match store {
        Some(store) => Ok((store.backlog(&own)?, store.backlog(&Filter::default())?)),
        None => Ok(Default::default()),
    });
    let counts =
        |(own, all): (Backlog, Backlog)| (own.waiting(), own.rejected(), all.waiting().saturating_sub(own.waiting()));
    let left = counted.ok().map(counts);
    let mut report = StopReport::new(pid, instance.server(), instance.store(), left);
    report.held = held_text(hold.as_ref(), now_ms());
    (report.forwarded_refused, report.other_agent) = (refused, other_agent);
    if common.prints_summary() {
        common.renderer().result(&report, |_, report| report.text(&store_option(config)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the agent that uses the store although none for the configured server runs in the background.
fn running(config: &Config, store: &dyn Store) -> Option<OtherAgentLine> {
    let records = store.condition().ok()?.agents;
    let own = OwnStore::new(Some(store.identity()), &config.db.value);
    let found = FoundAgents::find(&records, config.listen.value, &own, &translate::server(config));
    let agent = found.serving?;
    let (pid, server) = (agent.overview.pid, agent.server?.url);
    let instance = Instance::of_server(config, server.clone(), ProcessEnvironment.state_dir());
    let is_background = instance.ok().and_then(|instance| instance.recorded()).is_some_and(|record| record.pid == pid);
    Some(OtherAgentLine { pid, server, is_background })
}

/// Prints how an agent in the foreground is reached, on stdout. The intake token is not printed: the output of a
/// service is kept where others read it.
pub(super) fn announce(common: &Common, config: &Config, agent: &Agent) {
    if common.quiet {
        return;
    }
    let environment = LaunchEnvironment::without_token(config, agent.address());
    let server = config.upstream.value.to_string();
    let report = report(&environment, &server, &config.db.value);
    let has_token = config.intake_token.value.is_some();
    // The agent is needed even if nobody reads this.
    let _ = common.renderer().result(&report, |_, _| announcement(&environment.url, &environment.page, has_token));
}

fn report<'a>(environment: &'a LaunchEnvironment, server: &'a str, db: &'a std::path::Path) -> LaunchReport<'a> {
    let variables = EnvironmentReport::new(&environment.set, &environment.unset);
    LaunchReport::new((&environment.url, &environment.page), server, db, variables)
}
