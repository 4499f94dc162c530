//! Health checks: whether the server, access to it, the store and its disk would let data through.
//!
//! A check returns a value; the caller shows it and turns the first failure into an exit code. A check runs after those
//! that it depends on: without a server there is no access to check.
//!
//! Checks write nothing, except that a store whose last sync failed is rewritten before it is opened. Only
//! [`Health::reseal`], [`Health::smoke_test`] and [`depot_checks`] write by design.

mod depot;
mod server;
mod storage;

use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;

pub(crate) use self::depot::depot_checks;
use crate::message::Lane;
use crate::protocol::answers::SendFailure;
use crate::shutdown::Shutdown;
use crate::store::{KeyError, Keys, Limits, StoreError};
use crate::upstream::Upstream;
use server::ServerChecks;

/// How often [`until_healthy`] repeats the checks.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The subjects of the checks.
pub(crate) struct Health<'a> {
    /// The store's file.
    pub store_path: &'a Path,
    /// The size limits of the store.
    pub store_limits: Limits,
    /// Reads the keys that the store is encrypted with.
    pub store_keys: &'a dyn Fn() -> Result<Keys, KeyError>,
    /// Flags that make another command use the same store, for hints.
    pub store_flags: String,
    /// Whether every page of a large store is read.
    pub full: bool,
    /// The server.
    pub upstream: &'a Upstream,
    /// The workspace and credential whose access is checked.
    pub lane: Lane,
    /// The timeout of a request.
    pub timeout: Duration,
}

/// The result of one check.
#[derive(Debug)]
pub(crate) struct Check {
    /// The name of the check.
    pub name: &'static str,
    pub finding: Finding,
}

/// The finding of a check.
#[derive(Debug)]
pub(crate) enum Finding {
    /// As it should be.
    Good(String),
    /// For information.
    Note { text: String, hint: Option<String> },
    /// Works, but needs attention.
    Warning { text: String, hint: String },
    /// Does not work.
    Failed { cause: FailureCause, text: String, hint: String },
    /// The check itself failed.
    Error(CheckError),
}

/// The kind of problem behind a failed check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// Something on this machine, or a server that answers with errors.
    Failure,
    /// The server can't be reached, or is not Opik.
    Unreachable,
    /// The credential or the workspace.
    NotAuthorised,
}

/// Why a check could not be made.
#[derive(Debug, Error)]
pub enum CheckError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Send(#[from] SendFailure),
}

impl Check {
    pub(crate) fn good(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, finding: Finding::Good(text.into()) }
    }

    pub(crate) fn note(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, finding: Finding::Note { text: text.into(), hint: None } }
    }

    pub(crate) fn note_with_hint(name: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, finding: Finding::Note { text: text.into(), hint: Some(hint.into()) } }
    }

    pub(crate) fn warning(name: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, finding: Finding::Warning { text: text.into(), hint: hint.into() } }
    }

    pub(crate) fn failed(
        name: &'static str,
        cause: FailureCause,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { name, finding: Finding::Failed { cause, text: text.into(), hint: hint.into() } }
    }

    fn error(name: &'static str, error: impl Into<CheckError>) -> Self {
        Self { name, finding: Finding::Error(error.into()) }
    }

    /// Returns whether the check passed, warnings included.
    pub(crate) fn is_passed(&self) -> bool {
        match &self.finding {
            Finding::Good(_) | Finding::Note { .. } | Finding::Warning { .. } => true,
            // A busy store works, and another process is writing to it.
            Finding::Error(CheckError::Store(StoreError::Busy { .. })) => true,
            Finding::Failed { .. } | Finding::Error(_) => false,
        }
    }
}

impl Health<'_> {
    /// Runs all checks.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let ServerChecks { server, behind, is_available } = self.server();
        let access = if is_available { self.access() } else { Check::note("access", "not checked without a server") };
        let mut checks = vec![server];
        checks.extend(behind);
        checks.push(access);
        checks.extend(self.store_checks());
        checks.extend(self.file_system());
        checks
    }

    /// Runs the checks of the store and its disk.
    pub(crate) fn store_checks(&self) -> [Check; 3] {
        [self.store(), self.encryption(), self.disk()]
    }
}

/// Repeats the checks until all pass or `wait` is over; returns the last results, `None` after an interruption.
pub(crate) fn until_healthy(
    wait: Option<Duration>,
    shutdown: &Shutdown,
    mut checks: impl FnMut() -> Vec<Check>,
) -> Option<Vec<Check>> {
    let started = Instant::now();
    loop {
        let results = checks();
        let is_time_left = wait.is_some_and(|wait| started.elapsed() < wait);
        if results.iter().all(Check::is_passed) || !is_time_left {
            return Some(results);
        }
        if shutdown.sleep(RETRY_INTERVAL) {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_repeat_until_they_pass_or_the_time_is_over() {
        let failed = || vec![Check::failed("server", FailureCause::Unreachable, "away", "start it")];
        let mut runs = 0;
        let results = until_healthy(Some(Duration::from_secs(60)), &Shutdown::new(), || {
            runs += 1;
            if runs < 2 { failed() } else { vec![Check::good("server", "there")] }
        });
        assert!(results.is_some_and(|checks| checks[0].is_passed()) && runs == 2);
        let results = until_healthy(None, &Shutdown::new(), failed);
        assert!(results.is_some_and(|checks| !checks[0].is_passed()), "without --wait it tries once");
        let shutdown = Shutdown::new();
        shutdown.request();
        assert!(until_healthy(Some(Duration::from_secs(60)), &shutdown, failed).is_none(), "it was interrupted");
    }
}
