//! `agent -- COMMAND`: a command runs with an agent beside it, which flushes and ends after the command.
//!
//! The listener is bound first, then signals are handled, then the command starts, then the agent: no signal ends the
//! agent and leaves the command behind, and what the command sends before the agent runs waits in the listener's queue.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;

use super::child::{Child, ChildError, CommandEnd};
use super::environment::{EnvironmentChanges, Wrapping};
use super::files::SoftLimit;
use super::flush::{Flush, FlushEnd};
use super::relay::Relay;
use super::{Agent, AgentError, AgentSettings, RunEnd};
use crate::config::units::print_duration;
use crate::config::{Config, ProcessEnvironment, Source, WhenFull, url_in_home_file};
use crate::figures::count;
use crate::hint;
use crate::printable::shell_word;
use crate::shutdown::Shutdown;
use crate::signals::SignalError;
use crate::store::full_state::remedies;
use crate::telemetry::log::LogFile;
use crate::upstream::{Upstream, UpstreamSettings};

/// How long an agent on this machine may take to answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(1);

/// A command, and the agent that wraps it.
pub(crate) struct Wrapped<'a> {
    pub config: &'a Config,
    pub settings: AgentSettings,
    /// The limit on open files that the command gets.
    pub limit: SoftLimit,
    pub program: &'a OsString,
    pub arguments: &'a [OsString],
    pub log: LogFile,
    /// Ends the process at once with an exit code.
    pub exit: fn(u8),
    /// Receives what people read.
    pub listener: &'a dyn WrappedListener,
}

/// Receives notes, and the progress of the flush.
pub(crate) trait WrappedListener: Sync {
    /// Takes a sentence for people.
    fn note(&self, text: &str);
    /// Takes how many messages wait when the flush starts.
    fn flush_started(&self, waiting: u64);
    /// Takes how many of `total` messages are flushed.
    fn flush_progress(&self, done: u64, total: u64);
    /// The flush has ended.
    fn flush_finished(&self);
}

/// Why a command was not run to its end.
#[derive(Debug, Error)]
pub enum WrappedError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Signals(#[from] SignalError),
    #[error("nobody knows how {name} ended: {error}")]
    Lost { name: String, error: std::io::Error },
}

/// Runs a command with an agent beside it, and returns the exit code that a shell would report for the command.
///
/// # Errors
///
/// Fails if the agent or the command can't be started, and if the agent fails.
pub(crate) fn run(wrapped: Wrapped<'_>) -> Result<u8, WrappedError> {
    let Wrapped { config, mut settings, limit, program, arguments, log, exit, listener } = wrapped;
    if !config.listen.is_set() {
        settings.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    }
    let token = settings.intake_token.clone();
    let (agent, left) = bind(config, settings)?;
    let changes = changes(config, agent.address(), token.as_deref());
    let (shutdown, flush_stop) = (Shutdown::new(), Shutdown::new());
    let relay = Relay::start(&flush_stop, log, exit)?;
    let child = limit.as_before(|| Child::start(program, arguments, &changes))?;
    let child = relay.attach(child);

    let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let note = |text: &str| listener.note(&format!("opik-offline: {text}"));
    start_notes(&name, config, &changes, left).iter().for_each(|line| note(line));
    let total = Mutex::new(None);
    let watch = |waiting: u64| {
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        if total.is_none() {
            let time = print_duration(config.flush_timeout.value);
            note(&format!("{name} has ended, delivering {} for up to {time}", count(waiting, "stored message")));
            listener.flush_started(waiting);
        }
        let total = (*total.get_or_insert(waiting)).max(waiting);
        listener.flush_progress(total - waiting, total);
    };
    let flush = Flush { timeout: config.flush_timeout.value, stop: &flush_stop, watch: &watch };
    let (run, ended) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let ended = child.wait();
            if let Ok(ended) = &ended {
                relay.ended(exit_code(*ended));
            }
            shutdown.request();
            ended
        });
        let run = agent.run(&shutdown, Some(&flush));
        if run.is_err() {
            // The command's writes would be lost: better that it stops than that it continues unprotected.
            child.signal(signal_hook::consts::SIGTERM);
        }
        (run, waiting.join())
    });
    listener.flush_finished();
    let run = run?;
    summary(&name, &run, config).iter().for_each(|line| note(line));
    match ended {
        Ok(Ok(ended)) => Ok(exit_code(ended)),
        Ok(Err(error)) => Err(WrappedError::Lost { name, error }),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Binds the listener. Unless a flag sets the address, an address that a standalone agent uses, or would use if it ran,
/// is left to that agent, and a free port is used. Also returns the address that was left.
fn bind(config: &Config, mut settings: AgentSettings) -> Result<(Agent, Option<SocketAddr>), AgentError> {
    let is_optional = !is_flag(&config.listen.source);
    let bound = match Agent::bind(settings.clone()) {
        Err(AgentError::Listen { source, .. }) if is_optional && source.kind() == ErrorKind::AddrInUse => None,
        Err(AgentError::UpstreamIsSelf { .. }) if is_optional => None,
        bound => Some(bound?),
    };
    if let Some(agent) = bound {
        return Ok((agent, None));
    }
    let left = settings.listen;
    settings.listen.set_port(0);
    Ok((Agent::bind(settings)?, Some(left)))
}

/// Returns the changes to the command's environment.
fn changes(config: &Config, intake: SocketAddr, token: Option<&str>) -> EnvironmentChanges {
    // The command may change its working directory.
    let store = is_flag(&config.db.source).then(|| std::path::absolute(&config.db.value).ok()).flatten();
    let in_home_file = url_in_home_file(&ProcessEnvironment);
    let wrapping = Wrapping {
        intake,
        token,
        upstream: &config.upstream.value,
        in_home_file: in_home_file.as_deref(),
        all_otlp_traces: config.all_otlp_traces.value,
        store,
    };
    EnvironmentChanges::leading_to(&wrapping, &ProcessEnvironment)
}

/// Returns notes on where the command sends to, and which data bypasses the agent.
fn start_notes(name: &str, config: &Config, changes: &EnvironmentChanges, left: Option<SocketAddr>) -> Vec<String> {
    let mut lines = vec![format!("{name} sends to {}, which forwards to {}", changes.base, config.upstream.value)];
    if let Some(left) = left {
        lines.push(format!(
            "{left} ({}) is in use by another agent or program, so a free port is used",
            config.listen.source
        ));
    }
    if let Some(replaced) = &changes.replaced {
        lines.push(format!(
            "OPIK_URL_OVERRIDE was {replaced}: what {name} sends there now goes to {}",
            config.upstream.value
        ));
    }
    lines.extend(changes.left.iter().map(|variable| format!("{variable} points elsewhere and is left unchanged")));
    if let Some(variable) = changes.grpc {
        lines.push(format!("{variable} is grpc: the agent accepts traces over http/protobuf or http/json only"));
    }
    lines
}

/// Returns whether the setting comes from a flag: the environment and the files apply to other commands as well.
fn is_flag(source: &Source) -> bool {
    matches!(source, Source::Flag { .. })
}

/// Returns the exit code that a shell would report: the command's own, or 128 plus the number of the signal that killed
/// it.
fn exit_code(ended: CommandEnd) -> u8 {
    match ended {
        CommandEnd::Exited(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        CommandEnd::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }
}

/// Returns notes on what became of the command's writes.
fn summary(name: &str, run: &RunEnd, config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let store = config.db.value.display();
    match (&run.flush, run.waiting) {
        (Some(FlushEnd::NoStore { reason }), _) => {
            let accepted = count(accepted(run), "write");
            lines.push(format!("NOT PROTECTED: nothing could be stored: {reason}"));
            lines.push(format!(
                "{accepted} went straight to {}; writes that it did not accept were refused",
                config.upstream.value
            ));
        }
        (_, Some(0)) if run.forwarded + run.stored + run.delivered == 0 => {
            lines.push(format!("{name} sent nothing to Opik, and nothing waits to be delivered"));
        }
        (_, Some(0)) => lines.push(drained(run, config)),
        (_, None) => lines.push(format!("cannot read {store}, so the number of waiting messages is unknown")),
        (end, Some(waiting)) => {
            let stay = if waiting == 1 { "stays" } else { "stay" };
            let stored = count(waiting, "message");
            lines.push(format!("{stored} {stay} safely stored in {store}: {}", why(end.as_ref(), config)));
            if !matches!(end, Some(FlushEnd::Held { .. })) {
                let replay = hint::command("replay");
                lines.push(format!("deliver later with {replay}, or with an agent for that server"));
            }
        }
    }
    if let (Some(fleet), Some(1..)) = (&run.fleet, run.waiting) {
        lines.push(match fleet.unshipped.messages {
            0 => format!("they are in the fleet's depot {} as well: a replayer delivers them", fleet.depot),
            unshipped => format!(
                "{} not in the fleet's depot {}, only in {store}: {}",
                if unshipped == 1 { "1 message is".to_owned() } else { format!("{} are", count(unshipped, "message")) },
                fleet.depot,
                fleet.problem.as_deref().unwrap_or("there was not enough time")
            ),
        });
    }
    if run.forwarded_refused.writes > 0 {
        let writes = run.forwarded_refused.writes;
        lines.push(format!(
            "{} refused {} ({}), as {name} was told; {} not stored",
            config.upstream.value,
            count(writes, "write"),
            run.forwarded_refused.statuses(),
            if writes == 1 { "it is" } else { "they are" }
        ));
    }
    if run.refused_while_away > 0 {
        let refused = count(run.refused_while_away, "write");
        lines.push(format!(
            "the agent refused {refused}, because {store} could not be used and earlier ones may wait in it: \
             what the application did not retry is lost"
        ));
    }
    if run.refused > 0 {
        let reason = run.full.as_ref().map_or("", |full| full.reason.as_str());
        let (writes, was) = (count(run.refused, "write"), if run.refused == 1 { "was" } else { "were" });
        lines.push(format!("{writes} {was} refused, because the store was full: {reason}"));
        if let Some(full) = &run.full {
            let waiting = run.waiting.unwrap_or(0);
            let remedies = remedies(full.limit, waiting, run.rejected, &store_option(config));
            lines.extend(remedies.iter().map(|remedy| hint::completed(remedy).into_owned()));
        }
    }
    if run.rejected > 0 {
        let rejected = count(run.rejected, "message");
        let see = hint::command("inspect --rejected");
        lines.push(format!("{} refused {rejected}: see {see}", config.upstream.value));
    }
    lines
}

/// Returns the note on a run after which nothing waits.
fn drained(run: &RunEnd, config: &Config) -> String {
    let mut parts = Vec::new();
    if accepted(run) > 0 || run.stored + run.delivered > 0 {
        parts.push(format!("{} went straight to {}", count(accepted(run), "write"), receiver(config, run)));
    }
    if run.stored + run.delivered > 0 {
        parts.push(format!("{} stored first", count(run.stored, "message")));
        parts.push(format!("{} delivered from the store", run.delivered));
    }
    let by_others = run.stored.saturating_sub(run.delivered + run.rejected);
    // Certain only if no message can have been dropped.
    if by_others > 0 && config.max_age.value.is_none() && config.when_full.value == WhenFull::Refuse {
        parts.push(format!("{by_others} of them by another agent on this store"));
    }
    let colon = if parts.is_empty() { "" } else { ": " };
    format!("nothing waits to be delivered{colon}{}", parts.join(", "))
}

/// Returns how many writes the server took at once.
fn accepted(run: &RunEnd) -> u64 {
    run.forwarded.saturating_sub(run.forwarded_refused.writes)
}

/// Returns what accepted the writes: a standalone agent, if `OPIK_URL_OVERRIDE` is its URL, may store them for its
/// server.
fn receiver(config: &Config, run: &RunEnd) -> String {
    let upstream = &config.upstream.value;
    let is_agent = || {
        let url = upstream.to_string();
        let base_url = url.strip_suffix(upstream.path()).unwrap_or(&url).to_owned();
        let settings = UpstreamSettings::plain(base_url, AGENT_TIMEOUT);
        let answer = Upstream::new(&settings).read("-/ready", AGENT_TIMEOUT).ok()?;
        let ready: serde_json::Value = serde_json::from_str(&answer.text).ok()?;
        ready.get("agent").map(|_| ())
    };
    match run.forwarded > 0 && upstream.is_loopback() && is_agent().is_some() {
        true => {
            format!(
                "the agent at {}:{}, which stores what its server does not accept",
                upstream.host(),
                upstream.port()
            )
        }
        false => upstream.to_string(),
    }
}

/// Returns why messages remain.
fn why(end: Option<&FlushEnd>, config: &Config) -> String {
    match end {
        Some(FlushEnd::ServerAway { reason }) => match reason {
            Some(reason) => format!("the Opik server is away ({reason})"),
            None => "the Opik server is away".to_owned(),
        },
        Some(FlushEnd::Held { held }) => format!("{held}: {}", hint::command("replay --resume")),
        Some(FlushEnd::NotDue { reason }) => {
            reason.clone().unwrap_or_else(|| "they wait for their next attempt".to_owned())
        }
        Some(FlushEnd::TimeOver { replayer }) => {
            let over = format!("--flush-timeout {} is over", print_duration(config.flush_timeout.value));
            let replaying = |owner| format!("{over}, and {owner} is replaying this store");
            replayer.as_ref().map_or(over.clone(), replaying)
        }
        Some(FlushEnd::Stopped) => "interrupted".to_owned(),
        Some(FlushEnd::Empty | FlushEnd::NoStore { .. }) | None => "another process stored them".to_owned(),
    }
}

/// Returns the flag that makes another command use this store, with a leading space; empty if it uses it by default.
pub(crate) fn store_option(config: &Config) -> String {
    match config.db.is_set() {
        true => format!(" --db {}", shell_word(config.db.value.as_os_str())),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_that_a_shell_reports() {
        for (ended, code) in [
            (CommandEnd::Exited(0), 0),
            (CommandEnd::Exited(255), 255),
            (CommandEnd::Killed(2), 130),
            (CommandEnd::Killed(15), 143),
        ] {
            assert_eq!(exit_code(ended), code, "{ended:?}");
        }
    }
}
