//! The wrapped command of `agent -- COMMAND`: which signals reach it, and how it ended. Its environment is in
//! [`super::environment`].
//!
//! # Signals
//!
//! The command stays in the agent's process group, so that it is in the foreground of a terminal as without the agent.
//! Signals that are typed there (Ctrl-C, Ctrl-\) or sent when the terminal closes therefore reach it without us, and
//! are not sent a second time; their sender is the system, not a process. A signal that another process sends to the
//! agent is passed on, unless it is the command itself that sent it to its whole group.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child as Process, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use thiserror::Error;

use super::environment::EnvironmentChanges;

/// Returns whether a signal that the agent received is passed on to the command, by the rules at the head of the
/// module.
///
/// `typed` lists the signals that a terminal sends. `sender` is `None` for the system itself.
pub(crate) fn is_passed_on(signal: i32, typed: &[i32], sender: Option<i32>, command: i32) -> bool {
    match sender {
        None => !typed.contains(&signal),
        Some(sender) => sender != command,
    }
}

/// Why a command can't be started.
#[derive(Debug, Error)]
pub enum ChildError {
    /// The program does not exist.
    #[error("cannot start {program}: no such program")]
    NotFound {
        /// The program, as the user gave it.
        program: String,
    },
    /// The program exists, and the system refuses to run it.
    #[error("cannot start {program}: {source}")]
    NotExecutable {
        /// The program, as the user gave it.
        program: String,
        /// The system's error.
        source: io::Error,
    },
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandEnd {
    /// It exited with this code.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// A command that is running, or has ended.
pub(crate) struct Child {
    pid: Pid,
    /// `None` once it has ended and its process id may belong to another process.
    process: Mutex<Option<Process>>,
}

impl Child {
    /// Starts a command with the agent's standard input and output, in the agent's process group.
    ///
    /// # Errors
    ///
    /// [`ChildError`]; nothing was started.
    pub(crate) fn start(
        program: &OsString,
        arguments: &[OsString],
        changes: &EnvironmentChanges,
    ) -> Result<Self, ChildError> {
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
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Sends it a signal; returns whether it was still running.
    pub(crate) fn signal(&self, signal: i32) -> bool {
        let process = self.lock();
        let Some(signal) = Signal::from_named_raw(signal).filter(|_| process.is_some()) else { return false };
        kill_process(self.pid, signal).is_ok()
    }

    /// Waits until it ends; processes that it leaves behind are not waited for. Call it once.
    ///
    /// # Errors
    ///
    /// If the system can't report how it ended.
    pub(crate) fn wait(&self) -> io::Result<CommandEnd> {
        // It stays a zombie until we can no longer signal it, so that its process id is not reused before.
        while let Err(error) = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let Some(mut process) = self.lock().take() else { return Err(io::Error::other("waited for twice")) };
        let status = process.wait()?;
        Ok(status.code().map_or_else(|| CommandEnd::Killed(status.signal().unwrap_or_default()), CommandEnd::Exited))
    }

    /// Taking the process is one step, so the value is whole even after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_signals_are_not_sent_twice_and_others_are_passed_on() {
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
    fn exit_codes_and_signals_of_a_command_are_reported() {
        let start = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            Child::start(&"sh".into(), &arguments, &EnvironmentChanges::default()).expect("there is a shell")
        };
        let child = start(&["-c", "exit 7"]);
        assert_eq!(child.wait().expect("it ends"), CommandEnd::Exited(7));
        assert!(!child.signal(15), "its process id may belong to another process by now");
        let child = start(&["-c", "while :; do sleep 1; done"]);
        assert!(child.signal(15));
        assert_eq!(child.wait().expect("it ends"), CommandEnd::Killed(15));
        let failed = |program: &str| Child::start(&program.into(), &[], &EnvironmentChanges::default()).err();
        assert!(matches!(failed("/no/such/program"), Some(ChildError::NotFound { .. })));
        assert!(matches!(failed("/"), Some(ChildError::NotExecutable { .. })));
    }
}
