//! One agent in the background for a user, a server and a store: found, started, stopped.
//!
//! `agent --background` starts it if there is none, returns once it is ready, and may be called by any number of
//! processes at once: shell profiles, notebooks, test workers. Everything that they need to know is in one private
//! folder per server and store:
//!
//! | file | what it is |
//! | --- | --- |
//! | `lock` | locked (`flock`) by the agent for as long as it runs; empty |
//! | `agent.json` | the port file ([`record`]): address, secret, what it serves; replaced atomically |
//! | `agent.log` | what the agent logs; the previous one is `agent.log.old` once it has grown |
//!
//! # Exactly one agent
//!
//! 1. A starter takes the lock, without waiting. Only one can.
//! 2. It starts the agent with the locked file as its standard input, and closes its own copy. The lock belongs to the
//!    open file, so it passes to the agent with no moment in between in which anybody else could take it, and the kernel
//!    releases it when the agent ends, however it ends. There is nothing to clean up after `kill -9`.
//! 3. All others find the lock taken, and poll the port file until the agent answers, or until the lock is free again
//!    because the start failed: then the next one tries.
//!
//! A process id decides nothing. The port file is stale if the lock is free; it stays as a note of the last port, which
//! the next agent prefers, so that programs that have the address reach it again after a crash.
//!
//! # Whom a starter believes
//!
//! - The folder and its parents up to `opik-offline` belong to this user and nobody else can enter them; files are
//!   opened without following links. Another user's folder is refused.
//! - An address is the agent's only if it proves that it knows the port file's secret ([`crate::intake::presence`]): a
//!   stranger that got the port of a killed agent can't. An agent that is about to end says so, and is not reported.
//! - The folder's name covers server, store, host name and the namespaces of networks and processes: a home directory
//!   that several machines or containers share has one folder for each, because `127.0.0.1` is another place in each.
//!
//! The agent runs in a session of its own, without a terminal, in the directory of its starter, where relative paths in
//! settings mean what they meant. Descriptors above 2 that its starter leaves open stay open in it.

mod folder;
mod record;
mod serve;
mod start;
mod stop;

use std::path::{Path, PathBuf};

use rustix::system::uname;
use thiserror::Error;

use self::folder::RuntimeFolder;
pub(crate) use self::record::LaunchEnvironment;
pub(crate) use self::serve::{bind, enter};
pub(crate) use self::start::{Launched, start};
pub(crate) use self::stop::{StopEnd, stop};
use super::AgentError;
use crate::config::Config;
use crate::intake::presence;

/// Why an agent can't be started, found or stopped in the background.
#[derive(Debug, Error)]
pub enum BackgroundError {
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

/// The one background agent of this user for a server and a store, running or not.
#[derive(Debug)]
pub(crate) struct Instance {
    folder: RuntimeFolder,
    server: String,
    store: PathBuf,
}

impl Instance {
    /// Opens the folder of the agent for the configured server and store, and creates it if it is not there.
    ///
    /// # Errors
    ///
    /// [`BackgroundError`] if the folder can't be created or trusted.
    pub(crate) fn of(config: &Config, state_dir: Option<PathBuf>) -> Result<Self, BackgroundError> {
        let state_dir = state_dir.filter(|dir| dir.is_absolute()).ok_or(BackgroundError::NoFolder)?;
        let store = &config.db.value;
        let store = std::path::absolute(store).unwrap_or_else(|_| store.clone());
        let server = config.upstream.value.to_string();
        let folder = RuntimeFolder::open(&state_dir, &key(&server, &store))?;
        Ok(Self { folder, server, store })
    }

    /// Returns the base URL of its server.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Returns the path of its store.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Returns the path of its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.log()
    }
}

/// Returns the name of the folder for a server and a store as they are seen from here.
fn key(server: &str, store: &Path) -> String {
    let name = uname();
    // The same path in another spelling, as far as it exists.
    let real = store.parent().and_then(|folder| Some(folder.canonicalize().ok()?.join(store.file_name()?)));
    // Of a process outside, neither the port nor the process id means anything here.
    let namespace = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [
        server.trim_end_matches('/').as_bytes(),
        real.as_deref().unwrap_or(store).as_os_str().as_encoded_bytes(),
        name.nodename().to_bytes(),
        namespace("net").as_os_str().as_encoded_bytes(),
        namespace("pid").as_os_str().as_encoded_bytes(),
    ] {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    presence::hex(context.finish().as_ref().get(..8).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_and_store_has_its_own_agent() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = folder.path().join("store.db");
        let own = key("http://one/api", &store);
        assert_eq!(own, key("http://one/api/", &store));
        assert_eq!(own, key("http://one/api", &folder.path().join("./store.db")));
        assert_ne!(own, key("http://two/api", &store), "messages would go to another server");
        assert_ne!(own, key("http://one/api", &folder.path().join("other.db")), "messages would be in another store");
    }
}
