//! A person's hold of a store: in `status`, and after `replay --hold` and `--resume`.

use std::time::Duration;

use serde::Serialize;

use crate::figures::{count, short_duration, time};
use crate::hint;
use crate::overview::dial::HoldOverview;
use crate::store::ReplayHold;
use crate::terminal::Shown;

/// A hold in force, for programs.
#[derive(Serialize)]
pub(crate) struct ReplayHoldLine {
    pub until: String,
    pub seconds_left: u64,
    pub by: String,
    pub since: String,
}

impl ReplayHoldLine {
    pub(crate) fn of(hold: &HoldOverview) -> Self {
        let time_of = |ms: u64| time(i64::try_from(ms).unwrap_or(i64::MAX));
        Self {
            until: time_of(hold.until_ms),
            seconds_left: hold.seconds_left,
            by: hold.by.clone(),
            since: time_of(hold.since_ms),
        }
    }
}

/// The result of `replay --hold` and `replay --resume`.
#[derive(Serialize)]
pub(crate) struct ReplayHoldReport {
    schema_version: u32,
    /// The path of the store.
    db: String,
    /// The hold in force; `null` if nothing is held.
    hold: Option<ReplayHoldLine>,
    /// Messages that still have to reach their servers.
    waiting: u64,
}

impl ReplayHoldReport {
    pub(crate) fn of(db: String, hold: Option<&ReplayHold>, waiting: u64, now_ms: i64) -> Self {
        let hold = hold.and_then(|hold| HoldOverview::of(hold, now_ms));
        Self { schema_version: 1, db, hold: hold.as_ref().map(ReplayHoldLine::of), waiting }
    }

    /// Returns it for people.
    pub(crate) fn text(&self, was_held: bool) -> Shown {
        let wait = format!("{} {}", count(self.waiting, "message"), if self.waiting == 1 { "waits" } else { "wait" });
        Shown::line(&match (&self.hold, was_held) {
            (Some(ReplayHoldLine { until, seconds_left, by, .. }), _) => {
                let left = short_duration(Duration::from_secs(*seconds_left));
                format!(
                    "replay is held until {until} (for {left}) by {by}; {wait}, and stay in {}: \
                     {} ends that",
                    self.db,
                    hint::command("replay --resume")
                )
            }
            (None, true) => format!("the hold has ended; {wait} in {}", self.db),
            (None, false) => format!("nothing was held; {wait} in {}", self.db),
        })
    }
}
