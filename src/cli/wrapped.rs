//! `opik-offline agent -- COMMAND`

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use super::{Common, Failure};
use crate::agent::child::{Child, Ended};
use crate::agent::environment::{Changes, Wrapping};
use crate::agent::files::SoftLimit;
use crate::agent::flush::{Flush, FlushEnd};
use crate::agent::relay::Relay;
use crate::agent::{Agent, AgentError, AgentSettings, RunEnd};
use crate::config::units::print_duration;
use crate::config::{Config, ProcessEnvironment, Source, WhenFull, url_in_home_file};
use crate::figures::count;
use crate::printable::is_hazardous;
use crate::shutdown::Shutdown;
use crate::store::full_state::remedies;
use crate::telemetry::log::LogFile;
use crate::terminal::progress::Progress;
use crate::upstream::{Upstream, UpstreamSettings};

/// How long an agent on this machine may take to answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs a command with an agent beside it, and returns the command's exit code.
pub(super) fn run(
    common: &Common,
    config: &Config,
    mut settings: AgentSettings,
    (limit, command): (SoftLimit, &[OsString]),
    log: LogFile,
) -> Result<ExitCode, Failure> {
    let Some((program, arguments)) = command.split_first() else { return Ok(ExitCode::SUCCESS) };
    if !config.listen.is_set() {
        settings.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    }
    let token = settings.intake_token.clone();
    let (agent, left) = bind(config, settings)?;
    let changes = changes(config, agent.address(), token.as_deref());
    let (shutdown, flush_stop) = (Shutdown::new(), Shutdown::new());
    // Before the command starts, so that no signal ends the agent and leaves the command behind.
    let relay = Relay::start(&flush_stop, log, |code| std::process::exit(i32::from(code)))?;
    // What the command sends before the agent runs waits in the listener's queue.
    let child = limit.as_before(|| Child::start(program, arguments, &changes))?;
    let child = relay.attach(child);

    let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let progress = Mutex::new((Progress::new(common.quiet), None));
    let note = |text: &str| lock(&progress).0.note(&format!("opik-offline: {text}"));
    for line in said_at_start(&name, config, &changes, left) {
        note(&line);
    }
    let watch = |waiting: u64| {
        let mut shown = lock(&progress);
        let (progress, total) = &mut *shown;
        if total.is_none() {
            let time = print_duration(config.flush_timeout.value);
            let stored = count(waiting, "stored message");
            progress.note(&format!("opik-offline: {name} has ended, delivering {stored} for up to {time}"));
            progress.start(waiting);
        }
        let total = (*total.get_or_insert(waiting)).max(waiting);
        progress.at(total - waiting, total);
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
            // Nobody takes what the command sends: better that it doesn't go on as if somebody did.
            child.signal(signal_hook::consts::SIGTERM);
        }
        (run, waiting.join())
    });
    lock(&progress).0.finish();
    let run = run?;
    for line in summary(&name, &run, config) {
        note(&line);
    }
    match ended {
        Ok(Ok(ended)) => Ok(ExitCode::from(exit_code(ended))),
        Ok(Err(error)) => Err(Failure::of_child_lost(&name, &error)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Starts to listen. Unless a flag names the address, one that an agent which stays has, or would have if it ran, is
/// left to that agent, and a free port is used. Returns the address that was left as well.
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

/// Works out what is different in the command's environment.
fn changes(config: &Config, intake: SocketAddr, token: Option<&str>) -> Changes {
    // The command may run in another folder.
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
    Changes::leading_to(&wrapping, &ProcessEnvironment)
}

/// Says where the command sends to, and what does not go through the agent.
fn said_at_start(name: &str, config: &Config, changes: &Changes, left: Option<SocketAddr>) -> Vec<String> {
    let mut lines = vec![format!("{name} sends to {}, which passes on to {}", changes.base, config.upstream.value)];
    if let Some(left) = left {
        lines
            .push(format!("{left} ({}) is another agent's or program's, so a free port is used", config.listen.source));
    }
    if let Some(replaced) = &changes.replaced {
        lines.push(format!(
            "OPIK_URL_OVERRIDE named {replaced}: what {name} sends there goes to {} now",
            config.upstream.value
        ));
    }
    lines.extend(changes.left.iter().map(|variable| format!("{variable} leads elsewhere and stays as it is")));
    if let Some(variable) = changes.grpc {
        lines.push(format!("{variable} is grpc: the agent takes traces by http/protobuf or http/json only"));
    }
    lines
}

/// Returns whether a flag said it: the environment and the files say it to other commands as well.
fn is_flag(source: &Source) -> bool {
    matches!(source, Source::Flag { .. })
}

/// Returns the exit code that a shell would tell: the command's own, and 128 and the number of the signal that ended it.
fn exit_code(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        Ended::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }
}

/// Says what became of all that the command sent.
fn summary(name: &str, run: &RunEnd, config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let store = config.db.value.display();
    match (&run.flush, run.waiting) {
        (Some(FlushEnd::NoStore { reason }), _) => {
            let passed_on = count(run.forwarded, "write");
            lines.push(format!("nothing could be stored: {reason}"));
            lines.push(format!("{passed_on} went straight to the server; what it did not take was refused"));
        }
        (_, Some(0)) if run.forwarded + run.stored + run.delivered == 0 => {
            lines.push(format!("{name} sent nothing to Opik, and nothing waits to be delivered"));
        }
        (_, Some(0)) => {
            let receiver = receiver(config, run);
            let mut parts = vec![format!("{} went straight to {receiver}", count(run.forwarded, "write"))];
            if run.stored + run.delivered > 0 {
                parts.push(format!("{} stored first", count(run.stored, "message")));
                parts.push(format!("{} delivered from the store", run.delivered));
            }
            let by_others = run.stored.saturating_sub(run.delivered + run.rejected);
            // None of them can have been dropped.
            if by_others > 0 && config.max_age.value.is_none() && config.when_full.value == WhenFull::Refuse {
                parts.push(format!("{by_others} of them by another agent on this store"));
            }
            lines.push(format!("nothing waits to be delivered: {}", parts.join(", ")));
        }
        (_, None) => lines.push(format!("{store} cannot be read, so nobody knows what waits in it")),
        (end, Some(waiting)) => {
            let stay = if waiting == 1 { "stays" } else { "stay" };
            let stored = count(waiting, "message");
            lines.push(format!("{stored} {stay} safely stored in {store}: {}", why(end.as_ref(), config)));
            lines.push(format!("deliver later with `{}`, or by any agent on this store", replay_command(config)));
        }
    }
    if run.refused_while_away > 0 {
        let refused = count(run.refused_while_away, "write");
        lines.push(format!(
            "the agent refused {refused}, because {store} could not be used and earlier ones may wait in it: \
             what the application did not send again is lost"
        ));
    }
    if run.refused > 0 {
        let reason = run.full.as_ref().map_or("", |full| full.reason.as_str());
        let (writes, was) = (count(run.refused, "write"), if run.refused == 1 { "was" } else { "were" });
        lines.push(format!("{writes} {was} refused, because the store was full: {reason}"));
        if let Some(full) = &run.full {
            let waiting = run.waiting.unwrap_or(0);
            lines.extend(remedies(full.limit, waiting, run.rejected, &store_option(config)));
        }
    }
    if run.rejected > 0 {
        let rejected = count(run.rejected, "message");
        lines.push(format!("the server refused {rejected}: see `opik-offline inspect --rejected`"));
    }
    lines
}

/// Names who took the writes: an agent that stays, where `OPIK_URL_OVERRIDE` names it, may keep them for its server.
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
            format!("the agent at {}:{}, which keeps what its server does not take", upstream.host(), upstream.port())
        }
        false => "the server".to_owned(),
    }
}

/// Says why messages are left.
fn why(end: Option<&FlushEnd>, config: &Config) -> String {
    match end {
        Some(FlushEnd::ServerAway { reason }) => match reason {
            Some(reason) => format!("the Opik server is away ({reason})"),
            None => "the Opik server is away".to_owned(),
        },
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

/// Returns the option that leads a command to this store, with a space in front; nothing where it is found without.
pub(super) fn store_option(config: &Config) -> String {
    match config.db.is_set() {
        true => format!(" --db {}", quoted(config.db.value.as_os_str())),
        false => String::new(),
    }
}

/// Returns the command that delivers what is left. What a flag said has to be said again.
fn replay_command(config: &Config) -> String {
    let mut command = "opik-offline replay".to_owned();
    command.push_str(&store_option(config));
    if is_flag(&config.upstream.source) {
        command.push_str(&format!(" --upstream {}", config.upstream.value));
    }
    command
}

/// Returns a path as a shell reads it as one word, harmless on a terminal.
pub(super) fn quoted(path: &OsStr) -> String {
    let text = match path.to_str() {
        Some(text) if !text.contains(is_hazardous) => text,
        _ => return quoted_bytes(path.as_encoded_bytes()),
    };
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Returns any path as bash, zsh and ksh read it as one word, and the next POSIX.
fn quoted_bytes(path: &[u8]) -> String {
    let mut word = "$'".to_owned();
    let escape = |word: &mut String, bytes: &[u8]| {
        word.extend(bytes.iter().map(|byte| format!("\\{byte:03o}")));
    };
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '\'' => word.extend(['\\', c]),
                c if is_hazardous(c) => escape(&mut word, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => word.push(c),
            }
        }
        escape(&mut word, chunk.invalid());
    }
    word + "'"
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_becomes_the_exit_code_that_a_shell_tells() {
        for (ended, code) in
            [(Ended::Exited(0), 0), (Ended::Exited(255), 255), (Ended::Killed(2), 130), (Ended::Killed(15), 143)]
        {
            assert_eq!(exit_code(ended), code, "{ended:?}");
        }
    }

    #[test]
    fn a_path_is_one_word_of_a_command() {
        use std::os::unix::ffi::OsStrExt;

        let quoted = |text: &str| super::quoted(text.as_ref());
        assert_eq!(quoted("/a/b.db"), "/a/b.db");
        assert_eq!(super::quoted(OsStr::from_bytes(b"/a\xff b")), r"$'/a\377 b'");
        assert_eq!(quoted("/a\u{1b}[8m\n\u{202e}'b"), r"$'/a\033[8m\012\342\200\256\'b'");
        assert_eq!(quoted("/my files/it's.db"), r"'/my files/it'\''s.db'");
    }
}
