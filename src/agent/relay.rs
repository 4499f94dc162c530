//! Signals of an agent that wraps a command: passed on to the command, and after its end they stop the flush.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use super::child::{Child, is_passed_on};
use crate::shutdown::Shutdown;
use crate::signals::{SignalError, ignored, reopen, watch};
use crate::telemetry::log::LogFile;

/// Signals that are passed on to a wrapped command.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
/// The subset that a terminal itself sends to its whole foreground process group.
const TYPED: [i32; 3] = [SIGHUP, SIGINT, SIGQUIT];

/// Passes signals on to a wrapped command, and ends the flush that follows it.
pub(crate) struct Relay {
    stage: Arc<Mutex<Stage>>,
}

enum Stage {
    /// The command is being started. Signals are buffered for it.
    Before(Vec<i32>),
    Running(Arc<Child>),
    /// The command has ended, with this exit code for the agent.
    After(u8),
}

impl Relay {
    /// Handles signals from now on. An ignored signal stays ignored, for the command as well.
    ///
    /// `exit` ends the process with an exit code: a second signal that comes after the command has ended calls it.
    ///
    /// # Errors
    ///
    /// Fails if the system has no room for handlers.
    pub(crate) fn start(flush_stop: &Shutdown, log: LogFile, exit: fn(u8)) -> Result<Self, SignalError> {
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
                        // The command has just ended, so the signal is for the flush.
                        flush_stop.request();
                    }
                }
                Stage::After(code) if matches!(signal.number, SIGINT | SIGTERM) => {
                    if flush_stop.is_requested() {
                        exit(*code);
                    }
                    flush_stop.request();
                }
                Stage::After(_) => {}
            }
        })?;
        Ok(Self { stage })
    }

    /// Attaches the started command, and passes the buffered signals on to it.
    pub(crate) fn attach(&self, child: Child) -> Arc<Child> {
        let child = Arc::new(child);
        let before = std::mem::replace(&mut *lock(&self.stage), Stage::Running(child.clone()));
        if let Stage::Before(kept) = before {
            for number in kept {
                child.signal(number);
            }
        }
        child
    }

    /// Records that the command has ended, with its exit code.
    pub(crate) fn ended(&self, code: u8) {
        *lock(&self.stage) = Stage::After(code);
    }
}

fn lock(stage: &Mutex<Stage>) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}
