//! Signals: what each of them means to a command.
//!
//! A dedicated thread receives them, so that nothing here runs inside a signal handler. Commands that only have to stop
//! use `ctrlc`; the agent has to know which signal came, and a wrapping agent who sent it, which only `signal-hook`
//! reports.
//!
//! | signal | a command | the agent | the agent with a wrapped command |
//! | --- | --- | --- | --- |
//! | SIGINT, SIGTERM | stops cleanly; the second one ends it at once | the same | passed on to the command; after its end, the first one stops the flush, the next one ends the agent |
//! | SIGHUP | the same as SIGTERM | reopens its log file; stops if its terminal has closed | reopens its log file; passed on |
//! | SIGQUIT, SIGUSR1, SIGUSR2 | the system's default | the same | passed on |

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use tracing::{info, warn};

use crate::shutdown::Shutdown;
use crate::telemetry::log::LogFile;

/// Why signals can't be handled.
#[derive(Debug, thiserror::Error)]
#[error("cannot handle signals: {0}")]
pub struct SignalError(String);

impl SignalError {
    pub(crate) fn new(error: &dyn fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal {
    /// Its number.
    pub number: i32,
    /// The sending process: 0 for one outside this container, `None` for the system itself, which sends what is typed
    /// at a terminal.
    pub sender: Option<i32>,
}

/// Handles these signals from now on, on a dedicated thread.
///
/// # Errors
///
/// Fails if the system has no room for handlers; then nothing was changed.
pub(crate) fn watch(numbers: &[i32], mut handle: impl FnMut(Signal) + Send + 'static) -> Result<(), SignalError> {
    let failed = |error: std::io::Error| SignalError::new(&error);
    let mut signals = SignalsInfo::<WithOrigin>::new(numbers).map_err(failed)?;
    let work = move || {
        for origin in signals.forever() {
            handle(Signal { number: origin.signal, sender: origin.process.map(|process| process.pid) });
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(work).map_err(failed)?;
    Ok(())
}

/// Requests a clean shutdown on SIGINT, SIGTERM and SIGHUP; a second signal calls `exit`, which ends the process at
/// once.
///
/// # Errors
///
/// Fails if the system has no room for handlers, or handlers are set already.
pub(crate) fn stop_on_signals(shutdown: &Shutdown, exit: fn()) -> Result<(), SignalError> {
    let shutdown = shutdown.clone();
    ctrlc::set_handler(move || stop(&shutdown, exit)).map_err(|error| SignalError::new(&error))
}

/// Does the same for an agent, to which SIGHUP means something else: see the module's head.
///
/// # Errors
///
/// Fails if the system has no room for handlers.
pub(crate) fn stop_agent_on_signals(shutdown: &Shutdown, log: LogFile, exit: fn()) -> Result<(), SignalError> {
    let shutdown = shutdown.clone();
    let is_hangup_ignored = ignored().contains(SIGHUP);
    watch(&[SIGINT, SIGTERM, SIGHUP], move |signal| match signal.number {
        // Under nohup the terminal may close.
        SIGHUP if is_hangup_ignored || !is_hangup(signal, session_leader(), has_terminal()) => reopen(&log),
        _ => stop(&shutdown, exit),
    })
}

fn stop(shutdown: &Shutdown, exit: fn()) {
    if shutdown.is_requested() {
        exit();
    }
    shutdown.request();
}

/// Turns a write beyond this process's file size limit (`ulimit -f`) into an error of that write instead of the end of
/// the process: the store then counts as unusable, and recovers when the limit is raised.
///
/// # Errors
///
/// Fails if the system has no room for handlers.
pub(crate) fn survive_size_limits() -> Result<(), SignalError> {
    let seen = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGXFSZ, seen).map(drop).map_err(|error| SignalError::new(&error))
}

/// Reopens the log file, for a program that rotates log files.
pub(crate) fn reopen(log: &LogFile) {
    match log.reopen() {
        Ok(true) => info!(target: "intake", "reopened the log file"),
        Ok(false) => info!(target: "intake", "no log file is configured, so none was reopened"),
        Err(error) => {
            warn!(target: "intake", "cannot reopen the log file, so logging continues in the open one: {error}")
        }
    }
}

/// Returns whether a SIGHUP means that the terminal has closed, rather than that the log file should be reopened.
///
/// When a terminal closes, the system sends it, or the shell sends it to its jobs. While there is a terminal, or from
/// any other sender, it asks a daemon to reopen its log.
fn is_hangup(signal: Signal, session_leader: Option<i32>, has_terminal: bool) -> bool {
    !has_terminal && signal.sender.is_none_or(|sender| session_leader == Some(sender))
}

/// Returns the leader of this process's session: the shell, for a process started from a terminal. `None` if the leader
/// is outside this container, as when a container was entered from outside; `getsid` then returns 0, which `rustix`
/// does not support. Only Linux has such containers, and `/proc`.
#[cfg(target_os = "linux")]
fn session_leader() -> Option<i32> {
    std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| session(&stat))
}

#[cfg(not(target_os = "linux"))]
fn session_leader() -> Option<i32> {
    rustix::process::getsid(None).ok().map(rustix::process::Pid::as_raw_pid)
}

/// Parses the field `session` of `/proc/self/stat` (`proc_pid_stat(5)`). The program name before it may hold anything.
#[cfg(any(target_os = "linux", test))]
fn session(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(3)?.parse().ok().filter(|pid| *pid > 0)
}

fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// The signals that this process was started to ignore, together with its children.
///
/// `nohup` starts a process so, and a shell without job control its background jobs. On exec, handled signals return to
/// their default and ignored ones stay ignored: so a signal that is ignored here must stay ignored for a wrapped
/// command. Only Linux reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ignored(u64);

impl Ignored {
    /// Returns whether this signal is ignored.
    pub(crate) fn contains(self, number: i32) -> bool {
        (1..=64).contains(&number) && self.0 >> (number - 1) & 1 == 1
    }

    /// Parses the line `SigIgn:` of `/proc/self/status` (proc(5)).
    fn read(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
    }
}

/// Returns the signals that are ignored now; call it before handlers are set.
pub(crate) fn ignored() -> Ignored {
    std::fs::read_to_string("/proc/self/status").map(|status| Ignored::read(&status)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_is_distinguished_from_a_request_to_reopen_the_log() {
        let from = |sender| Signal { number: SIGHUP, sender };
        let (shell, logrotate) = (Some(100), Some(200));
        for (sender, has_terminal, expected) in [
            (None, false, true),
            (shell, false, true),
            // The shell's own `kill`, typed by hand.
            (shell, true, false),
            (None, true, false),
            (logrotate, false, false),
            (logrotate, true, false),
            (Some(0), false, false),
        ] {
            assert_eq!(is_hangup(from(sender), Some(100), has_terminal), expected, "{sender:?} {has_terminal}");
        }
        // A sender outside this container is not mistaken for a shell outside this container.
        assert!(!is_hangup(from(Some(0)), None, false));
        assert!(is_hangup(from(None), None, false));
    }

    #[test]
    fn the_session_is_parsed_from_proc_stat() {
        assert_eq!(session("17 (a ) b (c) S 9 17 12 34816 17 4194560 231"), Some(12));
        // Its leader is outside this container.
        assert_eq!(session("1 (opik-offline) S 0 0 0 0 -1 4194560 231"), None);
        assert_eq!(session("no such line"), None);
    }

    #[test]
    fn ignored_signals_are_parsed_from_proc_status() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001003\nSigCgt:\t0000000000000000\n";
        let ignored = Ignored::read(status);
        assert!(ignored.contains(SIGHUP) && ignored.contains(SIGINT) && ignored.contains(13));
        assert!(!ignored.contains(SIGTERM) && !ignored.contains(0) && !ignored.contains(65));
        assert_eq!(Ignored::read("no such line"), Ignored::default());
    }
}
