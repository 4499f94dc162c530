//! Throughput of a replay, and the remaining time.

use std::time::{Duration, Instant};

/// Returns messages per second since `started`, and how long `remaining` messages take at that rate.
pub(crate) fn rate_and_eta(delivered: u64, remaining: u64, started: Instant, now: Instant) -> (f64, Option<Duration>) {
    let seconds = now.saturating_duration_since(started).as_secs_f64();
    if delivered == 0 || seconds <= 0.0 {
        return (0.0, None);
    }
    let rate = delivered as f64 / seconds;
    (rate, Duration::try_from_secs_f64(remaining as f64 / rate).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remaining_time_follows_from_the_throughput_so_far() {
        let started = Instant::now();
        let now = started + Duration::from_secs(10);
        assert_eq!(rate_and_eta(100, 50, started, now), (10.0, Some(Duration::from_secs(5))));
        assert_eq!(rate_and_eta(0, 50, started, now), (0.0, None));
        assert_eq!(rate_and_eta(5, 0, started, started), (0.0, None));
    }
}
