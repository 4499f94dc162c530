//! Health checks: whether the server, access to it, the store and its disk would let data through.
//!
//! A check returns a value; the caller shows it and turns the first failure into an exit code. A check runs after those
//! that it depends on: without a server there is no access to check.
//!
//! Checks write nothing, except that a store whose last sync failed is rewritten before it is opened. Only
//! [`Health::reseal`], [`Health::smoke_test`] and [`depot_checks`] write by design.

mod check;
mod depot;
mod messages;
mod server;
mod storage;

use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) use self::check::{Check, CheckError, FailureCause, Finding};
pub(crate) use self::depot::depot_checks;
pub(crate) use self::messages::{DeliveringAgent, DeliveryHolds, HeldLanes, running_agent, stored_messages};
use crate::message::Lane;
use crate::shutdown::Shutdown;
use crate::store::{KeyError, Keys, Limits};
use crate::upstream::Upstream;
use server::ServerChecks;

/// How often [`until_healthy`] repeats the checks.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The subjects of the checks.
pub(crate) struct Health<'a> {
    /// The store's file.
    pub store_path: &'a Path,
    /// The flag or the variable that names it, if one does.
    pub store_named_by: Option<String>,
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
