//! Finds the background agent, or starts it: see [`super`].

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Child as Process, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::BackgroundError;
use super::instance::Instance;
use super::record::{InstanceRecord, InstanceState};
use crate::printable;

/// The timeout of a starter that waits for the agent. One that opens a large store of an older version may take longer; it is left
/// running then.
const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(5);
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(100);
/// Timeout for the shutdown of an agent that can't use its store.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How much of the log is read to find out why an agent ended, and how much of that is shown.
const LOG_BYTES_READ: u64 = 64 * 1024;
const SAID_CELLS_MAX: usize = 1000;

/// A background agent that is ready.
#[derive(Clone, Debug)]
pub(crate) struct Launched {
    pub(crate) record: InstanceRecord,
    /// Whether this call started it.
    pub(crate) is_new: bool,
}

/// Returns the agent that runs, or starts one with this program and these arguments, and waits until it is ready.
///
/// # Errors
///
/// [`BackgroundError`]; an agent that this call started and that can't store anything was stopped again.
pub(crate) fn start(instance: &Instance, program: &Path, arguments: &[OsString]) -> Result<Launched, BackgroundError> {
    let mut deadline = ReadyDeadline::new();
    loop {
        if let Some(lock) = instance.folder.try_lock()? {
            return launch(instance, program, arguments, lock, deadline);
        }
        match observe(instance)? {
            (Some(record), InstanceState::Ready { pid }) => {
                return Ok(Launched { record: InstanceRecord { pid, ..record }, is_new: false });
            }
            (_, InstanceState::Unprotected { reason, .. }) => return Err(BackgroundError::Unprotected { reason }),
            (_, InstanceState::Absent(reason)) => deadline.wait(instance, reason)?,
            (None, InstanceState::Ready { .. }) => {}
        }
    }
}

/// Returns the port file and what the agent says.
fn observe(instance: &Instance) -> Result<(Option<InstanceRecord>, InstanceState), BackgroundError> {
    Ok(match InstanceRecord::read(instance)? {
        None => (None, InstanceState::Absent("it has not started to listen".to_owned())),
        Some(record) => {
            let state = record.state();
            (Some(record), state)
        }
    })
}

/// Starts the agent, which takes over the lock.
fn launch(
    instance: &Instance,
    program: &Path,
    arguments: &[OsString],
    lock: File,
    mut deadline: ReadyDeadline,
) -> Result<Launched, BackgroundError> {
    let (log, log_start) = instance.folder.open_log()?;
    let not_started = |error: std::io::Error| BackgroundError::NotStarted { reason: error.to_string() };
    let mut command = Command::new(program);
    command.args(arguments).stdin(lock).stdout(log.try_clone().map_err(not_started)?).stderr(log);
    // It is no service of the manager that started us.
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    let mut process = command.spawn().map_err(not_started)?;
    // Its copy of the lock's file ends here as well: the agent alone holds the lock.
    drop(command);
    loop {
        if let Some(status) = process.try_wait().map_err(not_started)? {
            let said = last_said(&instance.log(), log_start);
            return Err(BackgroundError::Ended { code: status.code(), said });
        }
        match observe(instance)? {
            (Some(record), InstanceState::Ready { pid }) if pid == process.id() => {
                return Ok(Launched { record: InstanceRecord { pid, ..record }, is_new: true });
            }
            (_, InstanceState::Unprotected { pid, reason }) if pid == process.id() => {
                end(&mut process);
                return Err(BackgroundError::Unprotected { reason });
            }
            (_, InstanceState::Absent(reason)) => deadline.wait(instance, reason)?,
            _ => deadline.wait(instance, "another agent answers".to_owned())?,
        }
    }
}

/// Ends an agent that nobody was told of.
fn end(process: &mut Process) {
    let started = Instant::now();
    // It fails only if it has ended already.
    let _ = kill_process(Pid::from_child(process), Signal::TERM);
    while matches!(process.try_wait(), Ok(None)) && started.elapsed() < END_WITHIN {
        std::thread::sleep(POLL_INTERVAL_MAX);
    }
}

/// Returns the last lines that an agent logged, on one line.
fn last_said(log: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_BYTES_READ))))?;
        let mut text = Vec::new();
        file.take(LOG_BYTES_READ).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error = lines.iter().rposition(|line| line.starts_with("error:")).unwrap_or(lines.len().saturating_sub(1));
    let said = lines.get(error..).unwrap_or_default().join("; ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    match printable::elided(&printable::line(said), SAID_CELLS_MAX).into_owned() {
        said if said.is_empty() => "it logged nothing".to_owned(),
        said => said,
    }
}

/// The deadline until which a starter retries.
struct ReadyDeadline {
    started: Instant,
    pause: Duration,
}

impl ReadyDeadline {
    fn new() -> Self {
        Self { started: Instant::now(), pause: POLL_INTERVAL_MIN }
    }

    /// Backs off, longer for each retry; fails once the deadline has expired.
    fn wait(&mut self, instance: &Instance, reason: String) -> Result<(), BackgroundError> {
        if self.started.elapsed() >= READY_WITHIN {
            let seconds = READY_WITHIN.as_secs();
            return Err(BackgroundError::NotReady { seconds, reason, log: instance.log() });
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(POLL_INTERVAL_MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_why_an_agent_ended_is_its_last_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("agent.log");
        let old = "error: of an earlier agent\n";
        for (logged, expected) in [
            ("INFO starting\nerror: cannot listen\nhint: choose\n\u{1b}[2Janother\n", "cannot listen; hint: choose"),
            ("INFO one\nWARN two\n", "WARN two"),
            ("", "it logged nothing"),
        ] {
            std::fs::write(&log, format!("{old}{logged}")).expect("it can be written");
            let said = last_said(&log, old.len() as u64);
            assert!(said.starts_with(expected) && !said.contains('\u{1b}'), "{said}");
        }
    }
}
