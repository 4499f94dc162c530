//! Backoff: how long a message or lane waits before a retry, and how long an attempt may take. Growing, bounded.

use std::time::Duration;

/// The wait after the first failed attempt, before jitter.
pub(crate) const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(300);

/// Returns how long a message backs off after this many failed attempts (1 or more).
///
/// Doubles from [`FIRST_WAIT`] to [`WAIT_MAX`]; `jitter` in 0.0 to 1.0 subtracts up to half of it, so that messages
/// that failed together are not retried together. A longer wait that the server asked for is respected. After a slow
/// attempt the wait is at least twice as long as the attempt, and longer with every attempt, so that messages which
/// time out don't take all the time of those that deliver.
pub(crate) fn wait(attempts: u32, jitter: f64, asked: Option<Duration>, took: Duration) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let grown = FIRST_WAIT.saturating_mul(1 << doublings).min(WAIT_MAX);
    let jittered = grown.mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0));
    let paid = took.saturating_mul(attempts.saturating_add(1).clamp(2, 20)).min(WAIT_MAX.max(took));
    jittered.max(paid).max(asked.unwrap_or(Duration::ZERO))
}

/// The longest timeout of one request, unless the user configured a longer one.
pub(crate) const PATIENCE_MAX: Duration = Duration::from_secs(600);

/// Returns the timeout for a message that has already timed out `timeouts` times.
///
/// It doubles from `first`, the configured timeout, to [`PATIENCE_MAX`]: a healthy server that needs longer for this
/// one message confirms it in the end, where a constant timeout would retry it forever.
pub(crate) fn patience(first: Duration, timeouts: u32) -> Duration {
    first.saturating_mul(1 << timeouts.min(16)).min(PATIENCE_MAX.max(first))
}

/// Returns how long a lane is held after `holds` holds (1 or more) since a request passed.
///
/// A wait that the server asked for is respected. Without one it doubles from [`FIRST_WAIT`] to `retry_interval`, so
/// that a short outage costs a second and a long one causes no retry storm. `jitter` in 0.0 to 1.0 adds up to a tenth,
/// at most a second: a thousand lanes held together are not all retried together, and none too early.
pub(crate) fn lane_wait(holds: u32, jitter: f64, asked: Option<Duration>, retry_interval: Duration) -> Duration {
    let doublings = holds.saturating_sub(1).min(16);
    let grown = FIRST_WAIT.saturating_mul(1 << doublings).min(retry_interval);
    let wait = asked.unwrap_or(grown);
    wait + wait.mul_f64(0.1 * jitter.clamp(0.0, 1.0)).min(Duration::from_secs(1))
}

/// Returns whether a message has had its last attempt.
pub(crate) fn is_exhausted(attempts: u32, attempts_max: u32) -> bool {
    attempts >= attempts_max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_bound_and_respects_the_server() {
        let seconds = |s: f64| Duration::from_secs_f64(s);
        for (attempts, jitter, asked, expected) in [
            (1, 0.0, None, 1.0),
            (2, 0.0, None, 2.0),
            (5, 0.0, None, 16.0),
            (10, 0.0, None, 300.0),
            (u32::MAX, 0.0, None, 300.0),
            (5, 1.0, None, 8.0),
            (5, 7.0, None, 8.0),
            (0, 0.0, None, 1.0),
            (1, 0.0, Some(30.0), 30.0),
            (9, 0.0, Some(1.0), 256.0),
        ] {
            let wait = wait(attempts, jitter, asked.map(seconds), Duration::ZERO);
            assert_eq!(wait, seconds(expected), "attempt {attempts}");
        }
    }

    #[test]
    fn backoff_is_longer_after_a_slow_attempt() {
        for (attempts, took, expected) in [(1, 30, 60), (4, 30, 150), (20, 30, 300), (1, 600, 600), (5, 1, 16)] {
            let wait = wait(attempts, 0.0, None, Duration::from_secs(took));
            assert_eq!(wait, Duration::from_secs(expected), "attempt {attempts} of {took} s");
        }
    }

    #[test]
    fn lanes_are_retried_soon_at_first_never_too_early_and_not_together() {
        let seconds = |s: f64| Duration::from_secs_f64(s);
        for (holds, jitter, asked, expected) in [
            (1, 0.0, None, 1.0),
            (3, 0.0, None, 4.0),
            (5, 0.0, None, 10.0),
            (u32::MAX, 0.0, None, 10.0),
            (1, 1.0, None, 1.1),
            (1, 0.0, Some(60.0), 60.0),
            (9, 1.0, Some(60.0), 61.0),
            (9, 0.0, Some(0.0), 0.0),
        ] {
            let wait = lane_wait(holds, jitter, asked.map(seconds), seconds(10.0));
            assert_eq!(wait, seconds(expected), "hold {holds}");
        }
    }

    #[test]
    fn the_timeout_grows_with_every_timeout_and_is_bounded() {
        for (first, timeouts, expected) in [
            (95, 0, 95),
            (95, 1, 190),
            (95, 2, 380),
            (95, 3, 600),
            (95, u32::MAX, 600),
            (3600, 0, 3600),
            (3600, 9, 3600),
        ] {
            let patience = patience(Duration::from_secs(first), timeouts);
            assert_eq!(patience, Duration::from_secs(expected), "{first} s, {timeouts} timeouts");
        }
    }

    #[test]
    fn the_last_attempt_is_the_configured_one() {
        assert!(!is_exhausted(9, 10));
        assert!(is_exhausted(10, 10));
    }
}
