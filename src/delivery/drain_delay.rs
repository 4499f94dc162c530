//! How long an edge waits before it replays to a hub that is back.
//!
//! When a hub restarts, all its edges see it within two seconds of each other, each with the backlog of the same
//! outage. Without a delay they would all begin at once, and the hub would spend its first seconds refusing
//! connections and bodies. Live writes don't wait: they are forwarded as soon as the hub is there.

use std::time::Duration;

/// The longest delay: a store that is sent ten seconds later is as safe as before.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(10);
/// The delays are spread over this part of the outage: what has gathered for a minute may begin within two seconds.
const SPREAD: u32 = 30;

/// Returns how long to wait after an outage of the hub that took this long. `jitter` is in 0.0 to 1.0.
///
/// A restart of a second or two costs nothing that anybody notices; after five minutes and more, the edges begin at
/// random moments of [`DELAY_MAX`].
pub(crate) fn drain_delay(outage: Duration, jitter: f64) -> Duration {
    (outage / SPREAD).min(DELAY_MAX).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_delays_no_edge_and_no_outage_delays_one_for_long() {
        for jitter in [0.0, 0.5, 1.0, 7.0, -1.0] {
            assert!(drain_delay(Duration::from_secs(2), jitter) <= Duration::from_millis(70));
            assert!(drain_delay(Duration::from_secs(3600 * 24 * 365), jitter) <= DELAY_MAX);
        }
        assert_eq!(drain_delay(Duration::MAX, 1.0), DELAY_MAX);
        assert_eq!(drain_delay(Duration::from_secs(3600), 0.0), Duration::ZERO);
    }

    #[test]
    fn edges_that_lost_a_hub_together_do_not_return_together() {
        const EDGES: u32 = 1000;
        let hour = Duration::from_secs(3600);
        let mut seconds = [0_u32; 11];
        for edge in 0..EDGES {
            let jitter = f64::from(edge.wrapping_mul(2_654_435_761) >> 8) / f64::from(1_u32 << 24);
            seconds[drain_delay(hour, jitter).as_secs() as usize] += 1;
        }
        let busiest = seconds.iter().max().expect("some");
        assert!(*busiest <= EDGES / 8, "{busiest} of {EDGES} edges begin within one second: {seconds:?}");
    }
}
