//! The decisions of people about the pace of a fleet and of a store, as a sender knows them.

use serde::{Deserialize, Serialize};

use crate::replay;
use crate::store::ReplayHold;

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

/// Returns a sentence with the deadline of a hold and the person who set it; `None` if nothing is held.
pub(crate) fn held_text(hold: Option<&ReplayHold>, now_ms: i64) -> Option<String> {
    hold.filter(|hold| hold.left(now_ms).is_some()).map(replay::held_text)
}

/// A hold of a fleet or of a store.
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

impl HoldOverview {
    /// Returns the hold of a store; `None` if it is over.
    pub(crate) fn of(hold: &ReplayHold, now_ms: i64) -> Option<Self> {
        let ms = |ms: i64| u64::try_from(ms).unwrap_or(0);
        Some(Self {
            seconds_left: hold.left(now_ms)?.as_secs(),
            until_ms: ms(hold.ends_at_ms()),
            by: hold.by.clone(),
            since_ms: ms(hold.since_ms),
        })
    }
}
