//! Liveness: which part of the agent has stalled.
//!
//! `/-/healthy` for Kubernetes and the watchdog of a service manager share this one verdict. It is about this process
//! alone: the agent is made for an unavailable server, a full disk and an unusable store, and a restart would mend none
//! of them.
//!
//! Each part has a limit for the time between two heartbeats. The limits are far above what slow disks and slow servers
//! cause, because the cure, a restart, costs the requests in progress. A part that is stuck for good is still found.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

/// The time of the last heartbeat of one part.
#[derive(Debug)]
pub struct Heartbeat(Mutex<Instant>);

impl Default for Heartbeat {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Heartbeat {
    /// Records that the part is alive now.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns the time since the last heartbeat.
    pub fn silent_for(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// The liveness check of one part of the agent.
pub struct LivenessCheck {
    /// The name of the part in logs.
    pub name: &'static str,
    /// How long the part may be silent.
    pub silence_max: Duration,
    /// Returns how long the part has been silent. Never blocks.
    pub silent_for: Box<dyn Fn() -> Duration + Send + Sync>,
}

/// A part whose last heartbeat is too old.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the {name} has stalled: no heartbeat for more than {} s", silence_max.as_secs())]
pub struct Stalled {
    /// The name of the part.
    pub name: &'static str,
    /// How long it may be silent.
    pub silence_max: Duration,
}

/// The liveness checks of all parts of an agent.
#[derive(Default)]
pub struct Liveness(Vec<LivenessCheck>);

impl Liveness {
    /// Returns the liveness that these checks decide, asked in this order.
    pub fn of(checks: Vec<LivenessCheck>) -> Self {
        Self(checks)
    }

    /// Checks that every part is alive.
    ///
    /// # Errors
    ///
    /// The first part that has stalled.
    pub fn check(&self) -> Result<(), Stalled> {
        let stalled = self.0.iter().find(|part| (part.silent_for)() > part.silence_max);
        stalled.map_or(Ok(()), |part| Err(Stalled { name: part.name, silence_max: part.silence_max }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &'static str, silent_for: Duration) -> LivenessCheck {
        LivenessCheck { name, silence_max: Duration::from_secs(60), silent_for: Box::new(move || silent_for) }
    }

    #[test]
    fn one_stalled_part_is_enough_and_is_named() {
        let limit = Duration::from_secs(60);
        assert_eq!(Liveness::default().check(), Ok(()));
        assert_eq!(Liveness::of(vec![part("intake", Duration::ZERO), part("committer", limit)]).check(), Ok(()));
        let stalled = Liveness::of(vec![part("intake", Duration::ZERO), part("committer", Duration::MAX)])
            .check()
            .expect_err("the committer is silent");
        assert_eq!(
            stalled.to_string(),
            "the committer has stalled: no heartbeat for more than 60 s",
            "an operator could not tell which part is stuck"
        );
    }

    #[test]
    fn a_heartbeat_ends_the_silence() {
        let heartbeat = Heartbeat(Mutex::new(Instant::now()));
        let before = heartbeat.silent_for();
        heartbeat.beat();
        assert!(heartbeat.silent_for() <= before + Duration::from_secs(60));
    }
}
