//! Signs of life: which part of the agent has given none for too long.
//!
//! What `/-/healthy` says to Kubernetes and what the watchdog of a service manager is told are one judgement, made here.
//! It is about this process alone: a server that is away, a full disk and a store that can't be used are what the agent
//! is made for, and starting it again would mend none of them.
//!
//! Each part says how long it may be silent. The limits are far above what slow disks and slow servers cause, because
//! the cure, a restart, costs the requests in progress; a part that is stuck for good is found all the same.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

/// A clock hand that somebody moves who is alive.
#[derive(Debug)]
pub struct Beat(Mutex<Instant>);

impl Default for Beat {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Beat {
    /// Gives a sign of life.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns how long ago the last sign was.
    pub fn silent_for(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// A part of the agent that can be listened to.
pub struct Pulse {
    /// What the part is called in logs.
    pub name: &'static str,
    /// How long it may be silent.
    pub silence_max: Duration,
    /// Returns how long it has been silent. Never waits.
    pub silent_for: Box<dyn Fn() -> Duration + Send + Sync>,
}

/// A part that has been silent for too long.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the {name} gives no sign of life, and may be silent for {} s at most", silence_max.as_secs())]
pub struct Silence {
    /// Which part.
    pub name: &'static str,
    /// How long it may be silent.
    pub silence_max: Duration,
}

/// All parts of an agent that have to be alive.
#[derive(Default)]
pub struct Pulses(Vec<Pulse>);

impl Pulses {
    /// Returns the pulses of these parts.
    pub fn of(parts: Vec<Pulse>) -> Self {
        Self(parts)
    }

    /// Says whether every part is alive.
    ///
    /// # Errors
    ///
    /// The first part that is not.
    pub fn check(&self) -> Result<(), Silence> {
        let silent = self.0.iter().find(|part| (part.silent_for)() > part.silence_max);
        silent.map_or(Ok(()), |part| Err(Silence { name: part.name, silence_max: part.silence_max }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &'static str, silent_for: Duration) -> Pulse {
        Pulse { name, silence_max: Duration::from_secs(60), silent_for: Box::new(move || silent_for) }
    }

    #[test]
    fn one_silent_part_is_enough_and_is_named() {
        let limit = Duration::from_secs(60);
        assert_eq!(Pulses::default().check(), Ok(()));
        assert_eq!(Pulses::of(vec![part("intake", Duration::ZERO), part("committer", limit)]).check(), Ok(()));
        let silence = Pulses::of(vec![part("intake", Duration::ZERO), part("committer", Duration::MAX)])
            .check()
            .expect_err("the committer is silent");
        assert_eq!(
            silence.to_string(),
            "the committer gives no sign of life, and may be silent for 60 s at most",
            "an operator could not tell what is stuck"
        );
    }

    #[test]
    fn a_beat_ends_the_silence() {
        let beat = Beat(Mutex::new(Instant::now()));
        let before = beat.silent_for();
        beat.beat();
        assert!(beat.silent_for() <= before + Duration::from_secs(60));
    }
}
