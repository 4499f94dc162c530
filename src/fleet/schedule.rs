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

/// What waits to be shipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unshipped {
    /// How long ago the oldest of them was accepted; `None` if there is none.
    pub oldest_age: Option<Duration>,
    /// Whether they fill a bundle.
    pub fills_a_bundle: bool,
    /// Whether somebody waits for them: an acknowledgement, or the end of the process.
    pub is_urgent: bool,
}

/// What to do now.
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

    /// Records the end of an outage: nothing that was shipped waits any more.
    pub fn outage_ended(&mut self) {
        *self = Self::new(self.settings);
    }
}
