//! How long one of many agents waits before it replays to a server that is back: an edge to its hub, an agent of a fleet to
//! the Opik server.
//!
//! When a hub restarts, all its edges see it within two seconds of each other, each with the backlog of the same
//! outage. Without a delay they would all begin at once, and the hub would spend its first seconds refusing
//! connections and bodies. Live writes don't wait: they are forwarded as soon as the hub is there.

use std::time::Duration;

/// The longest delay: a store that is sent ten seconds later is as safe as before.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(10);
/// The longest delay in a fleet of more than [`LARGE_FLEET`] agents.
const DELAY_MAX_LARGE: Duration = Duration::from_secs(60);
const LARGE_FLEET: u64 = 1000;
/// The delays are spread over this part of the outage: what has gathered for a minute may begin within two seconds.
const SPREAD: u32 = 30;

/// Returns how long to defer the first batch after an outage that took this long, if this many agents drain, as far as
/// known. `jitter` is
/// in 0.0 to 1.0.
///
/// A restart of a second or two costs nothing that anybody notices; after five minutes and more, the agents begin at
/// random moments of [`DELAY_MAX`], and those of a large fleet, after half an hour, at random moments of a minute.
pub(crate) fn drain_delay(outage: Duration, agents: u64, jitter: f64) -> Duration {
    let longest = if agents > LARGE_FLEET { DELAY_MAX_LARGE } else { DELAY_MAX };
    (outage / SPREAD).min(longest).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_delays_no_edge_and_no_outage_delays_one_for_long() {
        for jitter in [0.0, 0.5, 1.0, 7.0, -1.0] {
            assert!(drain_delay(Duration::from_secs(2), 1, jitter) <= Duration::from_millis(70));
            assert!(drain_delay(Duration::from_secs(3600 * 24 * 365), 1000, jitter) <= DELAY_MAX);
        }
        assert_eq!(drain_delay(Duration::MAX, 0, 1.0), DELAY_MAX);
        assert_eq!(drain_delay(Duration::from_secs(3600), 1, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_large_fleet_begins_within_a_minute_and_not_within_ten_seconds() {
        assert_eq!(drain_delay(Duration::from_secs(3600), 5000, 0.5), Duration::from_secs(30));
        assert_eq!(drain_delay(Duration::from_secs(60), 5000, 1.0), Duration::from_secs(2));
    }

    #[test]
    fn edges_that_lost_a_hub_together_do_not_return_together() {
        const EDGES: u32 = 1000;
        let hour = Duration::from_secs(3600);
        let mut seconds = [0_u32; 11];
        for edge in 0..EDGES {
            let jitter = f64::from(edge.wrapping_mul(2_654_435_761) >> 8) / f64::from(1_u32 << 24);
            seconds[drain_delay(hour, 1, jitter).as_secs() as usize] += 1;
        }
        let busiest = seconds.iter().max().expect("some");
        assert!(*busiest <= EDGES / 8, "{busiest} of {EDGES} edges begin within one second: {seconds:?}");
    }
}
