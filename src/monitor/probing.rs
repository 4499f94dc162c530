//! When an unavailable server is pinged again: pure policy, without clock or socket.
//!
//! An interval that the user set is exact. Otherwise an available server is pinged once per interval, and an
//! unavailable one sooner: first after [`FIRST_WAIT`], then after an eighth of the outage so far, up to a bound that
//! depends on what the last ping met ([`Met`]), that is, on what it costs others:
//!
//! | it met | it costs | longest wait | while writes arrive |
//! | --- | --- | --- | --- |
//! | nobody | two packets, and no process of the server's host wakes up | 1.5 s | 0.5 s |
//! | somebody | a request to a front, a proxy or a resolver, maybe a TLS handshake | 2 s; after ten minutes growing with the outage up to the interval | half of it |
//! | silence | a connection to a server that hangs, for as long as the timeout of a ping | the interval | the interval |
//!
//! The first two bounds find a server within two seconds of its return, or within half a second while writes arrive.
//! 200 agents that wait for one server send it 180 connection requests a second; answered by a front, 130 small
//! requests a second, and a fifth of that from the end of the first hour on. An overloaded server, which answers
//! nothing in time, is pinged about as often as an available one, except in the first minute.
//!
//! Jitter subtracts up to half of every wait, so that agents that lost a server together don't ping it together. There
//! is one ping at a time ([`super::run`]), and writes only shorten the wait for it.

use std::time::Duration;

use crate::upstream::Met;

/// When to ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorSettings {
    /// Time between pings, `OPIK_CONNECTION_MONITOR_PING_INTERVAL`.
    pub ping_interval: Duration,
    /// Whether the user set it: then an unavailable server is not pinged more often.
    pub is_interval_set: bool,
    /// How long a ping may take, `OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT`.
    pub check_timeout: Duration,
}

/// How long after a ping the next one is due that a failed send asks for, however many fail.
pub const PING_DISTANCE_MIN: Duration = Duration::from_millis(500);
/// The wait after the first failed ping of an outage, before jitter.
pub const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The wait grows with the outage: it is this part of it.
const GROWTH: u32 = 8;
/// The longest wait after a ping that met nobody.
const NOBODY_WAIT_MAX: Duration = Duration::from_millis(1500);
/// The same while writes arrive.
const NOBODY_WANTED_WAIT_MAX: Duration = Duration::from_millis(500);
/// The longest wait after a ping that met somebody, in the first ten minutes.
const SOMEBODY_WAIT_MAX: Duration = Duration::from_secs(2);
/// After that the wait is this part of the outage.
const SOMEBODY_GROWTH: u32 = 300;
/// The timeout of opening a connection for a ping that comes before its regular time. A connection that is dropped on
/// its way is given up soon, because the next one may get through.
pub(super) const QUICK_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long after the last ping began the next one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waits {
    /// If nobody wants the server.
    pub idle: Duration,
    /// If a write or a read arrived since the last ping began.
    pub wanted: Duration,
}

impl Waits {
    /// Returns the waits without a failed ping.
    pub(super) fn regular(settings: &MonitorSettings) -> Self {
        Self { idle: settings.ping_interval, wanted: settings.ping_interval }
    }

    /// Returns the waits after a good ping of a flapping server that has to answer more of them.
    pub(super) fn returning(settings: &MonitorSettings) -> Self {
        let wait = if settings.is_interval_set { PING_DISTANCE_MIN } else { FIRST_WAIT };
        let wait = wait.min(settings.ping_interval);
        Self { idle: wait, wanted: wait }
    }

    /// Returns the waits after a failed ping that began when the server had been unavailable for `outage`. `jitter` is
    /// in 0.0 to 1.0.
    pub(super) fn after_failure(settings: &MonitorSettings, outage: Duration, met: Met, jitter: f64) -> Self {
        let interval = settings.ping_interval;
        if settings.is_interval_set {
            return Self::regular(settings);
        }
        let (idle_max, wanted_max) = match met {
            Met::Nobody => (NOBODY_WAIT_MAX, NOBODY_WANTED_WAIT_MAX),
            Met::Somebody => {
                let most = SOMEBODY_WAIT_MAX.max(outage / SOMEBODY_GROWTH).min(interval);
                (most, most / 2)
            }
            Met::Silence => (interval, interval),
        };
        let grown = (outage / GROWTH).max(FIRST_WAIT);
        let wait = |most: Duration| grown.min(most).min(interval).mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0));
        Self { idle: wait(idle_max), wanted: wait(wanted_max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);
    const ALL: [Met; 3] = [Met::Nobody, Met::Somebody, Met::Silence];

    fn settings(is_interval_set: bool) -> MonitorSettings {
        MonitorSettings { ping_interval: INTERVAL, is_interval_set, check_timeout: Duration::from_secs(5) }
    }

    /// Returns outages from a millisecond to a year.
    fn outages() -> impl Iterator<Item = Duration> {
        (0..45).map(|power| Duration::from_millis(1) * 2_u32.pow(power.min(31)) * 2_u32.pow(power.saturating_sub(31)))
    }

    /// Returns numbers in 0.0 to 1.0 that look random and are the same in every run.
    fn numbers(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f64::from((state >> 40) as u32) / f64::from(1_u32 << 24)
        }
    }

    #[test]
    fn an_interval_that_the_user_set_is_exact() {
        for (outage, met) in outages().flat_map(|outage| ALL.map(|met| (outage, met))) {
            for jitter in [0.0, 0.3, 1.0] {
                let waits = Waits::after_failure(&settings(true), outage, met, jitter);
                assert_eq!(waits, Waits { idle: INTERVAL, wanted: INTERVAL }, "{outage:?} {met:?}");
            }
        }
    }

    #[test]
    fn a_server_is_found_within_two_seconds_however_long_it_was_away() {
        for outage in outages() {
            let waits = Waits::after_failure(&settings(false), outage, Met::Nobody, 0.0);
            assert!(waits.idle <= Duration::from_millis(1500), "{outage:?}: {waits:?}");
            assert!(waits.wanted <= Duration::from_millis(500), "{outage:?}: {waits:?}");
            let waits = Waits::after_failure(&settings(false), outage.min(INTERVAL * 60), Met::Somebody, 0.0);
            assert!(waits.idle <= Duration::from_secs(2), "{outage:?}: {waits:?}");
            assert!(waits.wanted <= Duration::from_secs(1), "{outage:?}: {waits:?}");
        }
    }

    #[test]
    fn waits_start_short_never_shrink_and_never_exceed_the_interval() {
        for met in ALL {
            let at = |outage, jitter| Waits::after_failure(&settings(false), outage, met, jitter);
            assert_eq!(at(Duration::ZERO, 0.0), Waits { idle: FIRST_WAIT, wanted: FIRST_WAIT }, "{met:?}");
            let mut last = at(Duration::ZERO, 0.0);
            for outage in outages() {
                let (longest, shortest) = (at(outage, 0.0), at(outage, 1.0));
                assert!(longest.idle >= last.idle && longest.wanted >= last.wanted, "{outage:?} {met:?}");
                assert!(longest.wanted <= longest.idle && longest.idle <= INTERVAL, "{outage:?} {met:?}: {longest:?}");
                assert_eq!((shortest.idle, shortest.wanted), (longest.idle / 2, longest.wanted / 2), "{met:?}");
                last = longest;
            }
            let jitter_of_a_bug = at(Duration::ZERO, 7.0);
            assert_eq!(jitter_of_a_bug.idle, FIRST_WAIT / 2);
        }
        let short = MonitorSettings { ping_interval: Duration::from_millis(100), ..settings(false) };
        assert_eq!(Waits::after_failure(&short, INTERVAL, Met::Nobody, 0.0).idle, short.ping_interval);
    }

    #[test]
    fn the_costlier_a_ping_is_for_others_the_rarer_it_gets() {
        let hour = Duration::from_secs(3600);
        let [nobody, somebody, silence] = ALL.map(|met| Waits::after_failure(&settings(false), hour, met, 0.0));
        assert!(nobody.idle < somebody.idle && somebody.idle <= silence.idle, "{nobody:?} {somebody:?} {silence:?}");
        assert!(nobody.wanted < somebody.wanted && somebody.wanted < silence.wanted);
        assert_eq!((silence.idle, silence.wanted), (INTERVAL, INTERVAL));
    }

    #[test]
    fn agents_that_lost_a_server_together_do_not_ping_it_together() {
        const AGENTS: usize = 200;
        const SLOT: Duration = Duration::from_millis(50);
        for met in [Met::Nobody, Met::Somebody] {
            let mut slots = vec![0_usize; 1200];
            let mut pings = 0;
            for agent in 0..AGENTS {
                let mut jitter = numbers(agent as u64 + 1);
                let mut at = Duration::ZERO;
                while at < SLOT * 1200 {
                    slots[(at.as_millis() / SLOT.as_millis()) as usize] += 1;
                    pings += 1;
                    at += Waits::after_failure(&settings(false), at, met, jitter()).idle;
                }
            }
            assert!(pings <= AGENTS * 100, "{met:?}: {pings} pings of {AGENTS} agents in a minute");
            // All begin together; after ten seconds, no twentieth of a second has more than an eighth of them.
            let busiest = slots[200..].iter().max().expect("some");
            assert!(*busiest <= AGENTS / 8, "{met:?}: {busiest} of {AGENTS} agents ping at once");
        }
    }
}
