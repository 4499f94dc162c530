//! Why an agent can't be started, found or stopped in the background.

use std::path::PathBuf;

use thiserror::Error;

use crate::agent::AgentError;

/// Why an agent can't be started, found or stopped in the background.
#[derive(Debug, Error)]
pub(crate) enum BackgroundError {
    /// There is no folder for the state of programs.
    #[error("cannot find a folder for the background agent: neither XDG_STATE_HOME nor HOME is set")]
    NoFolder,
    /// The folder may be under somebody else's control.
    #[error("cannot trust {}: {reason}", path.display())]
    Untrusted {
        /// The folder or file.
        path: PathBuf,
        /// Why it is not trusted.
        reason: String,
    },
    /// A file can't be used.
    #[error("cannot use {}: {reason}", path.display())]
    Unusable {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// The agent's process can't be created.
    #[error("cannot start the background agent: {reason}")]
    NotStarted {
        /// The system's error.
        reason: String,
    },
    /// The agent ended before it was ready.
    #[error("the background agent ended before it was ready: {said}")]
    Ended {
        /// Its exit code, if it was not killed.
        code: Option<i32>,
        /// The last that it logged.
        said: String,
    },
    /// The agent did not become ready in time; it is left running.
    #[error("the background agent is not ready after {seconds} s: {reason}; see {}", log.display())]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
        /// The last observation.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
    /// The agent runs and can't store anything.
    #[error("NOT PROTECTED: the background agent can't use its store: {reason}")]
    Unprotected {
        /// Why.
        reason: String,
    },
    /// It was asked to run in the background by somebody else than a starter.
    #[error("--detached is for `agent --background` alone")]
    NoStarter,
    /// The agent does not stop.
    #[error("the background agent{} does not stop: {reason}", pid.map_or(String::new(), |pid| format!(" (process {pid})")))]
    Stuck {
        /// Its process, as it noted itself.
        pid: Option<u32>,
        /// The last observation.
        reason: String,
    },
    /// The agent can't listen or run.
    #[error(transparent)]
    Agent(#[from] AgentError),
}
