//! When a bundle is shipped.
//!
//! As long as the server is there, the store is empty before anything is old enough, and nothing is ever shipped. In an
//! outage the first bundle goes out after [`ShippingSettings::delay`]; then the interval doubles, so that a long outage
//! makes few, large bundles. A full bundle does not wait, and neither does a process that is about to end.

use std::time::Duration;

/// How often an agent ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippingSettings {
    /// How old a message has to be before it is shipped.
    pub delay: Duration,
    /// The interval between the first two bundles of an outage.
    pub interval_min: Duration,
    /// The longest interval.
    pub interval_max: Duration,
}

impl Default for ShippingSettings {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(2),
            interval_min: Duration::from_secs(1),
            interval_max: Duration::from_secs(30),
        }
    }
}

/// The messages that wait to be shipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unshipped {
    /// How long ago the oldest of them was accepted; `None` if there is none.
    pub oldest_age: Option<Duration>,
    /// Whether they fill a bundle.
    pub fills_a_bundle: bool,
    /// Whether somebody waits for them: an acknowledgement, or the end of the process.
    pub is_urgent: bool,
}

/// The decision of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShipNext {
    /// Ship a bundle.
    Now,
    /// Look again after this time, or when something is stored.
    After(Duration),
    /// There is nothing to ship.
    Nothing,
}

/// Decides when to ship. All times are readings of one monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippingSchedule {
    settings: ShippingSettings,
    interval: Duration,
    not_before: Option<Duration>,
    failures: u32,
}

impl ShippingSchedule {
    /// Returns the schedule of an agent that has shipped nothing.
    pub fn new(settings: ShippingSettings) -> Self {
        Self { settings, interval: settings.interval_min, not_before: None, failures: 0 }
    }

    /// Returns what to do now.
    pub fn next(&self, unshipped: Unshipped, now: Duration) -> ShipNext {
        let Some(age) = unshipped.oldest_age else { return ShipNext::Nothing };
        let pause = self.not_before.map_or(Duration::ZERO, |until| until.saturating_sub(now));
        if self.failures > 0 && !pause.is_zero() {
            // The depot is away: urgency does not bring it back sooner. A single retry a second is enough.
            let pause = if unshipped.is_urgent { pause.min(self.settings.interval_min) } else { pause };
            return ShipNext::After(pause);
        }
        if unshipped.is_urgent || unshipped.fills_a_bundle {
            return ShipNext::Now;
        }
        let wait = pause.max(self.settings.delay.saturating_sub(age));
        if wait.is_zero() { ShipNext::Now } else { ShipNext::After(wait) }
    }

    /// Records a bundle that the depot has.
    pub fn shipped(&mut self, now: Duration) {
        self.failures = 0;
        self.not_before = Some(now.saturating_add(self.interval));
        self.interval = self.interval.saturating_mul(2).min(self.settings.interval_max);
    }

    /// Records that the depot did not take a bundle. `jitter` is a random number from 0 to 1, so that a fleet does not
    /// return to its depot all at once.
    pub fn failed(&mut self, now: Duration, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        let doubled = self.settings.interval_min.saturating_mul(1 << self.failures.min(16));
        let longest = doubled.min(self.settings.interval_max);
        let pause = longest.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.not_before = Some(now.saturating_add(pause));
    }

    /// Records the end of an outage: nothing that was shipped is waiting.
    pub fn outage_ended(&mut self) {
        *self = Self::new(self.settings);
    }
}

/// Returns a number from 0 to 1 that differs between agents.
pub(super) fn jitter() -> f64 {
    f64::from(uuid::Uuid::now_v7().as_bytes()[15]) / 255.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn aged(age: u64) -> Unshipped {
        Unshipped { oldest_age: Some(seconds(age)), ..Unshipped::default() }
    }

    #[test]
    fn nothing_is_shipped_before_the_delay() {
        let schedule = ShippingSchedule::new(ShippingSettings::default());
        assert_eq!(schedule.next(Unshipped::default(), seconds(9)), ShipNext::Nothing);
        assert_eq!(schedule.next(aged(0), seconds(9)), ShipNext::After(seconds(2)));
        assert_eq!(schedule.next(aged(2), seconds(9)), ShipNext::Now);
    }

    #[test]
    fn the_interval_doubles_to_thirty_seconds_during_an_outage() {
        let mut schedule = ShippingSchedule::new(ShippingSettings::default());
        let (mut now, mut intervals) = (seconds(100), Vec::new());
        for _ in 0..8 {
            schedule.shipped(now);
            let ShipNext::After(wait) = schedule.next(aged(60), now) else { panic!("bundles follow without a pause") };
            intervals.push(wait.as_secs());
            now += wait;
            assert_eq!(schedule.next(aged(60), now), ShipNext::Now);
        }
        assert_eq!(intervals, [1, 2, 4, 8, 16, 30, 30, 30]);
        schedule.outage_ended();
        schedule.shipped(now);
        assert_eq!(
            schedule.next(aged(60), now),
            ShipNext::After(seconds(1)),
            "the next outage begins with long intervals"
        );
    }

    #[test]
    fn a_full_bundle_and_the_end_of_the_process_do_not_wait() {
        let mut schedule = ShippingSchedule::new(ShippingSettings::default());
        schedule.shipped(seconds(100));
        assert_eq!(schedule.next(Unshipped { fills_a_bundle: true, ..aged(0) }, seconds(100)), ShipNext::Now);
        assert_eq!(schedule.next(Unshipped { is_urgent: true, ..aged(0) }, seconds(100)), ShipNext::Now);
    }

    #[test]
    fn a_depot_that_is_away_is_not_asked_more_often_than_once_a_second() {
        let mut schedule = ShippingSchedule::new(ShippingSettings::default());
        for _ in 0..6 {
            schedule.failed(seconds(100), 1.0);
        }
        let urgent = Unshipped { is_urgent: true, fills_a_bundle: true, ..aged(60) };
        assert_eq!(schedule.next(urgent, seconds(100)), ShipNext::After(seconds(1)));
        assert_eq!(schedule.next(aged(60), seconds(100)), ShipNext::After(seconds(30)));
        assert_eq!(schedule.next(urgent, seconds(130)), ShipNext::Now);
        schedule.shipped(seconds(130));
        assert_eq!(schedule.next(urgent, seconds(130)), ShipNext::Now, "the depot is back");
    }

    proptest! {
        #[test]
        fn no_message_waits_longer_than_the_longest_interval(
            shipped in prop::collection::vec(0_u64..5, 0..20),
            failed in 0_u32..40,
            jitter in 0.0_f64..1.0,
        ) {
            let mut schedule = ShippingSchedule::new(ShippingSettings::default());
            let mut now = seconds(1000);
            for pause in shipped {
                now += seconds(pause);
                schedule.shipped(now);
            }
            (0..failed).for_each(|_| schedule.failed(now, jitter));
            if let ShipNext::After(wait) = schedule.next(aged(5), now) {
                prop_assert!(wait <= seconds(30), "{wait:?}");
                prop_assert_eq!(schedule.next(aged(5), now + wait), ShipNext::Now);
            }
        }
    }
}
