//! What people decided about the pace of a fleet, as a sender knows it.

use serde::{Deserialize, Serialize};

use crate::figures::{short_duration, time};
use crate::fleet::dial::{CeilingSet, Decided};
use crate::fleet::dial_reader::DialStanding;

/// The pace and the hold in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DialOverview {
    /// The ceiling of the whole fleet.
    pub pace: Option<PaceOverview>,
    /// The hold, while the fleet is held.
    pub hold: Option<HoldOverview>,
    /// This sender's share of the pace, in messages per second.
    pub share: Option<f64>,
    /// How many streams are being delivered, as the dial says.
    pub draining: u64,
    /// Why the dial in the depot can't be used; the last one stays in force.
    pub problem: Option<String>,
}

/// The ceiling of a fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PaceOverview {
    /// Messages per second.
    pub per_second: u64,
    /// Who set it.
    pub by: String,
    /// When, by their clock, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A hold of a fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoldOverview {
    /// How long it lasts from now, in seconds.
    pub seconds_left: u64,
    /// When it ends, in milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// Who set it.
    pub by: String,
    /// When, by their clock, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

impl PaceOverview {
    /// Returns a ceiling for people and programs.
    pub(crate) fn of(set: &CeilingSet) -> Self {
        let Decided { by, at_ms, .. } = set.decided.clone();
        Self { per_second: set.per_second, by, since_ms: at_ms }
    }

    /// Returns it in words: `at most 20000 a second since ... by ana`.
    pub(crate) fn text(&self) -> String {
        format!("at most {} a second since {} by {}", self.per_second, time_of(self.since_ms), self.by)
    }
}

impl HoldOverview {
    /// Returns it in words: `held until ... (for 29m30s) by ana`.
    pub(crate) fn text(&self) -> String {
        let left = short_duration(std::time::Duration::from_secs(self.seconds_left));
        format!("held until {} (for {left}) by {}", time_of(self.until_ms), self.by)
    }
}

impl DialOverview {
    /// Returns what a sender has in force.
    pub(crate) fn of(standing: &DialStanding, now_ms: i64) -> Self {
        let DialStanding { setting, held_for, share, problem } = standing;
        let hold = held_for.zip(setting.hold.as_ref()).map(|(left, hold)| HoldOverview {
            seconds_left: left.as_secs(),
            until_ms: u64::try_from(now_ms).unwrap_or(0).saturating_add(u64::try_from(left.as_millis()).unwrap_or(0)),
            by: hold.decided.by.clone(),
            since_ms: hold.decided.at_ms,
        });
        Self {
            pace: setting.ceiling.as_ref().map(PaceOverview::of),
            hold,
            share: *share,
            draining: setting.draining,
            problem: problem.clone(),
        }
    }
}

fn time_of(ms: u64) -> String {
    time(i64::try_from(ms).unwrap_or(i64::MAX))
}
