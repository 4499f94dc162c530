//! The wrapped command of `agent -- COMMAND`: which signals reach it, how it ended. [`super::environment`] has what it finds in
//! its environment.
//!
//! # Signals
//!
//! The command stays in the agent's process group, so that it is in the foreground of a terminal as without the agent. What
//! is typed there (Ctrl-C, Ctrl-\) or follows from the terminal's end therefore reaches it without us, and is not sent a
//! second time; the system, not a process, is the sender of these. Whatever another process sends to the agent is passed
//! on, except what the command itself sent to its whole group.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child as Process, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use thiserror::Error;

use super::environment::EnvironmentChanges;

/// Says whether a signal that the agent got is to be passed on to the command; the module's head says why.
///
/// `typed` are the signals that a terminal sends. `sender` is `None` for the system itself.
pub fn is_passed_on(signal: i32, typed: &[i32], sender: Option<i32>, command: i32) -> bool {
    match sender {
        None => !typed.contains(&signal),
        Some(sender) => sender != command,
    }
}

/// Why a command could not be started.
#[derive(Debug, Error)]
pub enum ChildError {
    /// There is no such program.
    #[error("cannot start {program}: no such program")]
    NotFound {
        /// As it was given.
        program: String,
    },
    /// There is one, and the system does not run it.
    #[error("cannot start {program}: {source}")]
    NotExecutable {
        /// As it was given.
        program: String,
        /// What the system says.
        source: io::Error,
    },
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// A command that was started.
pub struct Child {
    pid: Pid,
    /// `None` once it has ended and its process id may be somebody else's.
    process: Mutex<Option<Process>>,
}

impl Child {
    /// Starts a command with the agent's standard input and output, in its process group.
    ///
    /// # Errors
    ///
    /// [`ChildError`]; nothing was started.
    pub fn start(program: &OsString, arguments: &[OsString], changes: &EnvironmentChanges) -> Result<Self, ChildError> {
        let mut command = Command::new(program);
        command.args(arguments);
        command.envs(changes.set.iter().map(|(name, value)| (name, value)));
        for name in &changes.unset {
            command.env_remove(name);
        }
        let process = command.spawn().map_err(|source| {
            let program = program.to_string_lossy().into_owned();
            match source.kind() {
                io::ErrorKind::NotFound => ChildError::NotFound { program },
                _ => ChildError::NotExecutable { program, source },
            }
        })?;
        Ok(Self { pid: Pid::from_child(&process), process: Mutex::new(Some(process)) })
    }

    /// Returns its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Sends it a signal; returns whether it was still there to get it.
    pub fn signal(&self, signal: i32) -> bool {
        let process = self.lock();
        let Some(signal) = Signal::from_named_raw(signal).filter(|_| process.is_some()) else { return false };
        kill_process(self.pid, signal).is_ok()
    }

    /// Waits until it ends, whatever the processes that it leaves behind do. To be called once.
    ///
    /// # Errors
    ///
    /// When the system does not tell how it ended.
    pub fn wait(&self) -> io::Result<CommandEnd> {
        // It stays a zombie until it can't be signalled any more: its process id is nobody else's so long.
        while let Err(error) = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let Some(mut process) = self.lock().take() else { return Err(io::Error::other("waited for twice")) };
        let status = process.wait()?;
        Ok(status.code().map_or_else(|| CommandEnd::Killed(status.signal().unwrap_or_default()), CommandEnd::Exited))
    }

    /// A panic elsewhere can't leave it half taken.
    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_reaches_a_command_once_and_what_is_sent_reaches_it_too() {
        let (interrupt, terminate, typed) = (2, 15, [2]);
        for (signal, sender, expected) in [
            (interrupt, None, false),
            (interrupt, Some(7), true),
            // From outside the container.
            (interrupt, Some(0), true),
            (interrupt, Some(100), false),
            (terminate, None, true),
            (terminate, Some(7), true),
            (terminate, Some(100), false),
        ] {
            assert_eq!(is_passed_on(signal, &typed, sender, 100), expected, "{signal} {sender:?}");
        }
    }

    #[test]
    fn a_command_ends_as_it_ended() {
        let start = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            Child::start(&"sh".into(), &arguments, &EnvironmentChanges::default()).expect("there is a shell")
        };
        let child = start(&["-c", "exit 7"]);
        assert_eq!(child.wait().expect("it ends"), CommandEnd::Exited(7));
        assert!(!child.signal(15), "its process id may be somebody else's by now");
        let child = start(&["-c", "while :; do sleep 1; done"]);
        assert!(child.signal(15));
        assert_eq!(child.wait().expect("it ends"), CommandEnd::Killed(15));
        let failed = |program: &str| Child::start(&program.into(), &[], &EnvironmentChanges::default()).err();
        assert!(matches!(failed("/no/such/program"), Some(ChildError::NotFound { .. })));
        assert!(matches!(failed("/"), Some(ChildError::NotExecutable { .. })));
    }
}
