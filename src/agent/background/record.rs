//! The port file, and whether the agent that wrote it answers.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::error::BackgroundError;
use super::instance::Instance;
use crate::agent::environment::{EnvironmentChanges, Wrapping};
use crate::agent::redirect::{Redirect, reachable};
use crate::config::{Config, ProcessEnvironment, Source, url_in_home_file};
use crate::intake::identity;
use crate::upstream::{Upstream, UpstreamSettings};

/// Timeout for the answer of an agent on this machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the port file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    /// The address that the agent listens on.
    pub(crate) listen: SocketAddr,
    /// Its process, for people.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// The base URL of its server.
    pub(crate) server: String,
    /// The key of its proofs, in hexadecimal.
    pub(super) secret: String,
}

/// What an agent answers about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum InstanceState {
    /// It is the one, and it stores what it must.
    Ready { pid: u32 },
    /// It is the one, and its store is unusable.
    Unprotected { pid: u32, reason: String },
    /// It is not there, not yet or no more.
    Absent(String),
}

#[derive(Deserialize)]
struct InstanceAnswer {
    proof: String,
    pid: u32,
    is_closing: bool,
    problem: Option<String>,
}

impl InstanceRecord {
    /// Returns the record of this process.
    pub(super) fn of_this_process(listen: SocketAddr, server: &str) -> Result<Self, BackgroundError> {
        Ok(Self {
            listen,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            server: server.to_owned(),
            secret: random_text()?,
        })
    }

    /// Returns the last agent's record, if it can be read. It may be stale.
    pub(super) fn read(instance: &Instance) -> Result<Option<Self>, BackgroundError> {
        let Some(text) = instance.folder.read_record()? else { return Ok(None) };
        // Of an other version, or cut: then its agent is found by no one, and its successor replaces it.
        let record: Option<Self> = serde_json::from_str(&text).ok();
        Ok(record.filter(|record| record.server == instance.server))
    }

    /// Asks who listens at the address.
    pub(super) fn state(&self) -> InstanceState {
        let absent = |reason: &str| InstanceState::Absent(reason.to_owned());
        let Ok(nonce) = random_text() else { return absent("the system has no random numbers") };
        let origin = format!("http://{}", reachable(self.listen));
        let agent = Upstream::new(&UpstreamSettings::plain(origin, ANSWER_TIMEOUT));
        let answer = match agent.read(&format!("-/instance?nonce={nonce}"), ANSWER_TIMEOUT) {
            Ok(answer) => answer.text,
            Err(error) => return InstanceState::Absent(error.to_string()),
        };
        match serde_json::from_str::<InstanceAnswer>(&answer) {
            Ok(answer) if !identity::is_proof(self.secret.as_bytes(), &nonce, &answer.proof) => {
                absent("another program listens at its address")
            }
            Ok(answer) if answer.is_closing => absent("it is about to end"),
            Ok(InstanceAnswer { pid, problem: None, .. }) => InstanceState::Ready { pid },
            Ok(InstanceAnswer { pid, problem: Some(reason), .. }) => InstanceState::Unprotected { pid, reason },
            Err(_) => absent("another program listens at its address"),
        }
    }
}

/// The changes to an environment that lead its programs to the agent, and the addresses for people.
#[derive(Clone, Debug)]
pub(crate) struct LaunchEnvironment {
    /// The agent's address for the server's API, with the intake token if there is one.
    pub(crate) url: String,
    /// The address of its status page.
    pub(crate) page: String,
    /// Variables with their new values.
    pub(crate) set: Vec<(&'static str, OsString)>,
    /// Variables that are removed.
    pub(crate) unset: Vec<&'static str>,
}

impl LaunchEnvironment {
    /// Returns what leads this process's environment to an agent at this address.
    pub(crate) fn of(config: &Config, listen: SocketAddr) -> Self {
        Self::with(config, listen, config.intake_token.value.as_ref().map(|token| token.expose().to_owned()))
    }

    /// The same without the intake token, for places that others read.
    pub(crate) fn without_token(config: &Config, listen: SocketAddr) -> Self {
        Self::with(config, listen, None)
    }

    fn with(config: &Config, listen: SocketAddr, token: Option<String>) -> Self {
        let in_home_file = url_in_home_file(&ProcessEnvironment);
        let store = matches!(config.db.source, Source::Flag { .. });
        let wrapping = Wrapping {
            intake: listen,
            token: token.as_deref(),
            upstream: &config.upstream.value,
            in_home_file: in_home_file.as_deref(),
            all_otlp_traces: false,
            store: store.then(|| std::path::absolute(&config.db.value).ok()).flatten(),
        };
        let EnvironmentChanges { set, unset, .. } = EnvironmentChanges::leading_to(&wrapping, &ProcessEnvironment);
        let url = Redirect::new(listen, token.as_deref(), &config.upstream.value, []).base();
        let page = format!("http://{}/-/", reachable(listen));
        Self { url, page, set, unset }
    }
}

/// Returns 32 random bytes in hexadecimal.
fn random_text() -> Result<String, BackgroundError> {
    let mut bytes = [0; 32];
    let failed = |_| BackgroundError::NotStarted { reason: "the system has no random numbers".to_owned() };
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(identity::hex(&bytes))
}
