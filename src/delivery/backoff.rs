//! How long a message waits after a bad attempt, and how long an attempt may take: growing, bounded.

use std::time::Duration;

/// The wait after the first bad attempt, before jitter.
pub const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(300);

/// Returns how long to wait after this many bad attempts (1 or more).
///
/// Doubles from [`FIRST_WAIT`] to [`WAIT_MAX`]; `jitter` in 0.0 to 1.0 takes up to half of it away, so that messages that
/// failed together don't come back together. A server that asked for longer is obeyed. An attempt that took long is paid
/// for: the wait is twice as long at least, and longer with every attempt, so that messages which hang don't take all the
/// time of those that deliver.
pub fn wait(attempts: u32, jitter: f64, asked: Option<Duration>, took: Duration) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let grown = FIRST_WAIT.saturating_mul(1 << doublings).min(WAIT_MAX);
    let jittered = grown.mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0));
    let paid = took.saturating_mul(attempts.saturating_add(1).clamp(2, 20)).min(WAIT_MAX.max(took));
    jittered.max(paid).max(asked.unwrap_or(Duration::ZERO))
}

/// The longest that the answer to one request is waited for, unless the user asked for more.
pub const PATIENCE_MAX: Duration = Duration::from_secs(600);

/// Returns how long an answer may take to a message that got none in time so many times.
///
/// It doubles from `first`, the configured time, to [`PATIENCE_MAX`]: a server that is healthy and needs longer for this
/// one message confirms it in the end, where the same patience every time would repeat it for ever.
pub fn patience(first: Duration, timeouts: u32) -> Duration {
    first.saturating_mul(1 << timeouts.min(16)).min(PATIENCE_MAX.max(first))
}

/// Returns how long a lane waits that was held so many times (1 or more) since something passed.
///
/// A wait that the server asked for is obeyed. Without one it doubles from [`FIRST_WAIT`] to `retry_interval`, so that a
/// short trouble costs a second and a long one no storm. `jitter` in 0.0 to 1.0 adds up to a tenth, at most a second: of a
/// thousand lanes that were held together not all come back together, and none comes too early.
pub fn lane_wait(holds: u32, jitter: f64, asked: Option<Duration>, retry_interval: Duration) -> Duration {
    let doublings = holds.saturating_sub(1).min(16);
    let grown = FIRST_WAIT.saturating_mul(1 << doublings).min(retry_interval);
    let wait = asked.unwrap_or(grown);
    wait + wait.mul_f64(0.1 * jitter.clamp(0.0, 1.0)).min(Duration::from_secs(1))
}

/// Says whether a message has had its last attempt.
pub fn is_exhausted(attempts: u32, attempts_max: u32) -> bool {
    attempts >= attempts_max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_obey_the_server() {
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
    fn an_attempt_that_took_long_is_paid_for() {
        for (attempts, took, expected) in [(1, 30, 60), (4, 30, 150), (20, 30, 300), (1, 600, 600), (5, 1, 16)] {
            let wait = wait(attempts, 0.0, None, Duration::from_secs(took));
            assert_eq!(wait, Duration::from_secs(expected), "attempt {attempts} of {took} s");
        }
    }

    #[test]
    fn lanes_come_back_soon_at_first_never_too_early_and_not_together() {
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
    fn patience_grows_with_every_timeout_and_is_bounded() {
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
