//! The setting that a reader of the dial has in force, and until when.
//!
//! # The deadline of a hold
//!
//! A hold is a duration, and clocks of two machines may differ by hours. A reader that was watching when the hold
//! appeared measures it on its own clock that nobody sets, from when it first saw it. A reader that finds it at its first look, because it
//! has just started or had nothing to deliver, can't know how old it is: it takes the wall clocks for comparable, but
//! never waits for longer than the hold's whole duration. So a wrong clock neither holds a fleet for ever, nor takes
//! the brake from an agent that was there when it was set.
//!
//! # A dial that can't be read
//!
//! While the depot is away, and when the dial is corrupt or of a newer schema, the cached one stays in force, until its
//! hold expires.

use std::time::Duration;

use uuid::Uuid;

use super::dial::{DialFault, DialSetting};

/// A reader that looked no longer ago than this was watching.
const WATCHING: Duration = Duration::from_secs(90);

/// The time of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookedAt {
    /// By a clock that nobody sets.
    pub since_boot: Duration,
    /// By the wall clock, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// The knowledge of one reader.
#[derive(Clone, Debug, Default)]
pub struct DialWatch {
    known: Option<DialSetting>,
    /// The hold's order, and its deadline by the reader's clock.
    hold_ends: Option<(Uuid, Duration)>,
    looked: Option<Duration>,
    fault: Option<DialFault>,
}

impl DialWatch {
    /// Takes what a look found: no dial, a dial, or something that can't be read. Returns a fault that is new.
    pub fn looked(&mut self, found: Option<Result<DialSetting, DialFault>>, at: LookedAt) -> Option<DialFault> {
        let was_watching = self.looked.is_some_and(|looked| at.since_boot.saturating_sub(looked) <= WATCHING);
        self.looked = Some(at.since_boot);
        match found {
            Some(Err(fault)) => {
                let is_new = self.fault.replace(fault.clone()).as_ref() != Some(&fault);
                return is_new.then_some(fault);
            }
            Some(Ok(setting)) => {
                self.hold_ends = setting.hold.as_ref().map(|hold| {
                    let order = hold.decided.order;
                    if let Some((known, ends)) = self.hold_ends
                        && known == order
                    {
                        return (order, ends);
                    }
                    let left_ms = if was_watching { u64::MAX } else { hold.until_ms().saturating_sub(at.unix_ms) };
                    (order, at.since_boot.saturating_add(hold.lasts().min(Duration::from_millis(left_ms))))
                });
                self.known = Some(setting);
            }
            None => (self.known, self.hold_ends) = (None, None),
        }
        self.fault = None;
        None
    }

    /// Returns the last dial that could be read.
    pub fn known(&self) -> Option<&DialSetting> {
        self.known.as_ref()
    }

    /// Returns why the dial that is there can't be read.
    pub fn fault(&self) -> Option<&DialFault> {
        self.fault.as_ref()
    }

    /// Returns until when nothing is sent, by the reader's clock; it may be over.
    pub fn held_until(&self) -> Option<Duration> {
        self.hold_ends.map(|(_, ends)| ends)
    }
}

/// Returns how long to wait after a look until the next one. `jitter` is a random number from 0 to 1: a fleet does not
/// ask its depot all at once. `silence` is how long owners have to be silent, by which everything in a fleet is timed.
pub fn look_interval(silence: Duration, jitter: f64) -> Duration {
    let shortest = (silence / 9).clamp(Duration::from_millis(100), Duration::from_secs(10));
    shortest + (shortest * 2).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::dial::{CeilingSet, Decided, HoldSet};

    const MINUTE: Duration = Duration::from_secs(60);

    fn decided(order: u128) -> Decided {
        Decided { order: Uuid::from_u128(order), by: "ana".to_owned(), at_ms: 10_000_000 }
    }

    fn held(order: u128, minutes: u64) -> DialSetting {
        let hold = HoldSet { for_ms: minutes * 60_000, decided: decided(order) };
        DialSetting { hold: Some(hold), ..DialSetting::default() }
    }

    fn at(minutes: u32, unix_ms: u64) -> LookedAt {
        LookedAt { since_boot: MINUTE * minutes, unix_ms }
    }

    #[test]
    fn a_hold_that_appears_lasts_its_duration_by_the_readers_own_clock() {
        for wrong_clock in [0, 10_000_000, u64::MAX] {
            let mut watch = DialWatch::default();
            watch.looked(None, at(100, wrong_clock));
            watch.looked(Some(Ok(held(1, 30))), at(101, wrong_clock));
            assert_eq!(watch.held_until(), Some(MINUTE * 131), "a clock that is wrong decides");
            // It is written again because something else changed: that prolongs nothing.
            let again = DialSetting { draining: 7, writes: 2, ..held(1, 30) };
            watch.looked(Some(Ok(again)), at(102, wrong_clock));
            assert_eq!(watch.held_until(), Some(MINUTE * 131), "a hold that is written again never ends");
            watch.looked(Some(Ok(held(2, 30))), at(103, wrong_clock));
            assert_eq!(watch.held_until(), Some(MINUTE * 133), "a new hold does not count");
            watch.looked(Some(Ok(DialSetting::default())), at(104, wrong_clock));
            assert_eq!(watch.held_until(), None, "a hold that was ended goes on");
        }
    }

    #[test]
    fn a_hold_that_is_found_ends_when_it_says_and_not_later_than_its_duration() {
        for (unix_ms, minutes) in [(10_000_000, 30), (10_000_000 + 20 * 60_000, 10), (0, 30), (u64::MAX, 0)] {
            let mut watch = DialWatch::default();
            watch.looked(Some(Ok(held(1, 30))), at(100, unix_ms));
            assert_eq!(watch.held_until(), Some(MINUTE * (100 + minutes)), "at {unix_ms}");
        }
    }

    #[test]
    fn an_unreadable_dial_leaves_the_last_one_in_force_and_is_logged_once() {
        let mut watch = DialWatch::default();
        let ceiling = CeilingSet { per_second: 20, decided: decided(9) };
        watch.looked(None, at(100, 10_000_000));
        watch.looked(Some(Ok(held(1, 30).paced(Some(ceiling.clone())))), at(101, 10_000_000));
        let too_new = || Some(Err(DialFault::TooNew(2)));
        assert_eq!(watch.looked(too_new(), at(102, 10_000_000)), Some(DialFault::TooNew(2)), "nobody is told");
        assert_eq!(watch.looked(too_new(), at(103, 10_000_000)), None, "it is said again and again");
        assert_eq!(watch.held_until(), Some(MINUTE * 131));
        assert_eq!(watch.known().and_then(|dial| dial.ceiling.clone()), Some(ceiling), "the last pace is dropped");
        assert!(watch.fault().is_some());
        watch.looked(Some(Ok(DialSetting::default())), at(104, 10_000_000));
        assert_eq!((watch.fault(), watch.held_until()), (None, None));
    }

    #[test]
    fn looks_are_ten_to_thirty_seconds_apart() {
        let silence = Duration::from_secs(90);
        assert_eq!(look_interval(silence, 0.0), Duration::from_secs(10));
        assert_eq!(look_interval(silence, 1.0), Duration::from_secs(30));
        assert_eq!(look_interval(Duration::from_secs(86_400), 7.0), Duration::from_secs(30));
        assert_eq!(look_interval(Duration::ZERO, 0.0), Duration::from_millis(100));
    }
}
