//! Signals: what each of them means to a command.
//!
//! A thread of its own takes them, so that nothing here runs inside a signal handler. Commands that only have to stop
//! leave that to `ctrlc`; the agent has to know which signal it was, and a wrapped command's who sent it, which only
//! `signal-hook` tells.
//!
//! | signal | a command | the agent | the agent with a wrapped command |
//! | --- | --- | --- | --- |
//! | SIGINT, SIGTERM | stops cleanly; the second one ends it at once | the same | passed on to the command; once that has ended, the flush stops, and the next one ends the agent |
//! | SIGHUP | the same as SIGTERM | opens its log file again; stops when its terminal has gone | opens its log file again; passed on |
//! | SIGQUIT, SIGUSR1, SIGUSR2 | the system's default | the same | passed on |

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use tracing::{info, warn};

use super::{Exit, Failure};
use crate::agent::child::{Child, is_passed_on};
use crate::shutdown::Shutdown;
use crate::telemetry::log::LogFile;

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signal {
    /// Its number.
    pub number: i32,
    /// Who sent it: 0 for a process that can't be seen from here (another container), `None` for the system itself,
    /// which sends what is typed at a terminal.
    pub sender: Option<i32>,
}

/// Handles these signals from now on, on a thread of its own.
///
/// # Errors
///
/// When the system has no room for handlers; then nothing was changed.
pub(super) fn watch(numbers: &[i32], mut handle: impl FnMut(Signal) + Send + 'static) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::of_signals(&error);
    let mut signals = SignalsInfo::<WithOrigin>::new(numbers).map_err(failed)?;
    let work = move || {
        for origin in signals.forever() {
            handle(Signal { number: origin.signal, sender: origin.process.map(|process| process.pid) });
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(work).map_err(failed)?;
    Ok(())
}

/// Asks for a clean end on SIGINT, SIGTERM and SIGHUP; a second signal ends the process at once.
pub(super) fn stop_on_signals(shutdown: &Shutdown) -> Result<(), Failure> {
    let shutdown = shutdown.clone();
    ctrlc::set_handler(move || stop(&shutdown)).map_err(|error| Failure::of_signals(&error))
}

/// The same for an agent, to which SIGHUP means something else: see the module's head.
pub(super) fn stop_agent_on_signals(shutdown: &Shutdown, log: LogFile) -> Result<(), Failure> {
    let shutdown = shutdown.clone();
    let is_hangup_ignored = ignored().contains(SIGHUP);
    watch(&[SIGINT, SIGTERM, SIGHUP], move |signal| match signal.number {
        // Under nohup the terminal may go.
        SIGHUP if is_hangup_ignored || !is_hangup(signal, session_leader(), has_terminal()) => reopen(&log),
        _ => stop(&shutdown),
    })
}

fn stop(shutdown: &Shutdown) {
    if shutdown.is_requested() {
        std::process::exit(i32::from(Exit::Interrupted as u8));
    }
    shutdown.request();
}

/// Signals that a wrapped command gets when the agent gets them.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
/// Of these, those that a terminal sends by itself to all in its foreground.
const TYPED: [i32; 3] = [SIGHUP, SIGINT, SIGQUIT];

/// Passes signals on to a wrapped command, and ends the flush that follows it.
pub(super) struct Relay {
    stage: Arc<Mutex<Stage>>,
}

enum Stage {
    /// The command is being started. What came meanwhile is kept for it.
    Before(Vec<i32>),
    Running(Arc<Child>),
    /// The command has ended, with this exit code for the agent.
    After(u8),
}

impl Relay {
    /// Handles signals from now on. A signal that is ignored stays so, for the command as well.
    pub(super) fn start(flush_stop: &Shutdown, log: LogFile) -> Result<Self, Failure> {
        let stage = Arc::new(Mutex::new(Stage::Before(Vec::new())));
        let ignored = ignored();
        let numbers: Vec<i32> = PASSED_ON.into_iter().filter(|number| !ignored.contains(*number)).collect();
        let (shared, flush_stop) = (stage.clone(), flush_stop.clone());
        watch(&numbers, move |signal| {
            if signal.number == SIGHUP {
                reopen(&log);
            }
            match &mut *lock(&shared) {
                Stage::Before(kept) => kept.push(signal.number),
                Stage::Running(child) => {
                    let is_passed_on = is_passed_on(signal.number, &TYPED, signal.sender, child.pid());
                    if is_passed_on && !child.signal(signal.number) && matches!(signal.number, SIGINT | SIGTERM) {
                        // It has ended a moment ago, so this is meant for what follows.
                        flush_stop.request();
                    }
                }
                Stage::After(code) if matches!(signal.number, SIGINT | SIGTERM) => {
                    if flush_stop.is_requested() {
                        std::process::exit(i32::from(*code));
                    }
                    flush_stop.request();
                }
                Stage::After(_) => {}
            }
        })?;
        Ok(Self { stage })
    }

    /// Takes the command that was started, and passes on what was kept for it.
    pub(super) fn attach(&self, child: Child) -> Arc<Child> {
        let child = Arc::new(child);
        let before = std::mem::replace(&mut *lock(&self.stage), Stage::Running(child.clone()));
        if let Stage::Before(kept) = before {
            for number in kept {
                child.signal(number);
            }
        }
        child
    }

    /// Notes that the command has ended, and what exit code that means.
    pub(super) fn ended(&self, code: u8) {
        *lock(&self.stage) = Stage::After(code);
    }
}

fn lock(stage: &Mutex<Stage>) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the log file again, for a program that moves log files away.
pub(super) fn reopen(log: &LogFile) {
    match log.reopen() {
        Ok(true) => info!(target: "intake", "the log file was opened again"),
        Ok(false) => info!(target: "intake", "there is no log file to open again"),
        Err(error) => warn!(target: "intake", "the log goes on in the file that was open: {error}"),
    }
}

/// Says whether a SIGHUP tells that the terminal has gone, rather than asking for the log to be opened again.
///
/// The system sends it then, or the shell to its jobs, after the system told the shell. While there is a terminal, or from
/// anybody else, it is the daemon's signal.
fn is_hangup(signal: Signal, session_leader: Option<i32>, has_terminal: bool) -> bool {
    !has_terminal && signal.sender.is_none_or(|sender| session_leader == Some(sender))
}

/// Returns the leader of this process's session: for what was started from a terminal, its shell. `None` where it can't
/// be seen from here, as in a container that was entered from outside; `getsid` then says 0, which `rustix` does not
/// allow for. Only Linux has such containers, and `/proc`.
#[cfg(target_os = "linux")]
fn session_leader() -> Option<i32> {
    std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| session(&stat))
}

#[cfg(not(target_os = "linux"))]
fn session_leader() -> Option<i32> {
    rustix::process::getsid(None).ok().map(rustix::process::Pid::as_raw_pid)
}

/// Reads the field `session` of `/proc/self/stat` (`proc_pid_stat(5)`). The name in front of it may hold anything.
#[cfg(any(target_os = "linux", test))]
fn session(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(3)?.parse().ok().filter(|pid| *pid > 0)
}

fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// The signals that whoever started this process wants it, and all that it starts, not to heed.
///
/// `nohup` says so, and a shell without job control of what it runs in the background. A program that is started gets the
/// default back where its parent had a handler, and goes on ignoring where its parent ignored: so a signal that is ignored
/// here must stay so for a wrapped command. Only Linux tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ignored(u64);

impl Ignored {
    /// Says whether this signal is ignored.
    pub fn contains(self, number: i32) -> bool {
        (1..=64).contains(&number) && self.0 >> (number - 1) & 1 == 1
    }

    /// Reads the line `SigIgn:` of `/proc/self/status` (proc(5)).
    fn read(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
    }
}

/// Returns the signals that are ignored now; to be asked before handlers are set.
pub(super) fn ignored() -> Ignored {
    std::fs::read_to_string("/proc/self/status").map(|status| Ignored::read(&status)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_is_told_from_a_request_to_open_the_log_again() {
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
        // Who is not to be seen is not taken for a shell that is not to be seen.
        assert!(!is_hangup(from(Some(0)), None, false));
        assert!(is_hangup(from(None), None, false));
    }

    #[test]
    fn the_session_is_read_from_what_the_system_tells() {
        assert_eq!(session("17 (a ) b (c) S 9 17 12 34816 17 4194560 231"), Some(12));
        // Its leader is outside this container.
        assert_eq!(session("1 (opik-offline) S 0 0 0 0 -1 4194560 231"), None);
        assert_eq!(session("no such line"), None);
    }

    #[test]
    fn what_a_process_ignores_is_read_from_its_status() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001003\nSigCgt:\t0000000000000000\n";
        let ignored = Ignored::read(status);
        assert!(ignored.contains(SIGHUP) && ignored.contains(SIGINT) && ignored.contains(13));
        assert!(!ignored.contains(SIGTERM) && !ignored.contains(0) && !ignored.contains(65));
        assert_eq!(Ignored::read("no such line"), Ignored::default());
    }
}
