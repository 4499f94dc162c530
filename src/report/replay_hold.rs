//! A person's hold of a store: in `status`, and after `replay --hold` and `--resume`.

use std::time::Duration;

use serde::Serialize;

use crate::figures::{count, short_duration, time};
use crate::hint;
use crate::overview::dial::HoldOverview;
use crate::printable;
use crate::store::ReplayHold;
use crate::terminal::render::wrapped;
use crate::terminal::{OutputStream, Shown};

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
    /// The earlier hold that it replaces; `null` if nothing was held.
    replaced: Option<ReplayHoldLine>,
    /// Messages that still have to reach their servers.
    waiting: u64,
}

impl ReplayHoldReport {
    /// Takes the hold that is set, if one is, and the one that was in force before.
    pub(crate) fn of(
        db: String,
        (hold, earlier): (Option<&ReplayHold>, Option<&ReplayHold>),
        waiting: u64,
        now_ms: i64,
    ) -> Self {
        let line = |hold: Option<&ReplayHold>| {
            hold.and_then(|hold| HoldOverview::of(hold, now_ms)).as_ref().map(ReplayHoldLine::of)
        };
        Self { schema_version: 1, db, hold: line(hold), replaced: line(earlier.filter(|_| hold.is_some())), waiting }
    }

    /// Returns it for people.
    pub(crate) fn text(&self, was_held: bool) -> Shown {
        Shown::lines(&format!("{}\n", wrapped(&printable::line(&self.sentence(was_held)), OutputStream::Out.columns())))
    }

    fn sentence(&self, was_held: bool) -> String {
        let (wait, stay) = if self.waiting == 1 { ("waits", "stays") } else { ("wait", "stay") };
        let wait = format!("{} {wait}", count(self.waiting, "message"));
        match (&self.hold, was_held) {
            (Some(ReplayHoldLine { until, seconds_left, by, .. }), _) => {
                let left = short_duration(Duration::from_secs(*seconds_left));
                let replaces = self.replaced.as_ref().map_or(String::new(), |earlier| {
                    format!("; this replaces the hold of {} until {}", earlier.by, earlier.until)
                });
                format!(
                    "replay is held until {until} (for {left}) by {by}{replaces}; {wait}, and {stay} in {}: {} ends that",
                    self.db,
                    hint::command("replay --resume")
                )
            }
            (None, true) => format!("the hold has ended; {wait} in {}", self.db),
            (None, false) => format!("nothing was held; {wait} in {}", self.db),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_says_whose_place_it_takes() {
        let hold = |by: &str| ReplayHold { until_ms: 90_000, since_ms: 0, by: by.to_owned() };
        let (ana, bob) = (hold("ana"), hold("bob"));
        let report = |waiting, earlier| ReplayHoldReport::of("/m.db".to_owned(), (Some(&bob), earlier), waiting, 0);
        let end = "in /m.db: `opik-offline replay --resume` ends that";
        let begin = "replay is held until 1970-01-01T00:01:30Z (for 1m30s) by bob";
        assert_eq!(report(1, None).sentence(false), format!("{begin}; 1 message waits, and stays {end}"));
        assert_eq!(
            report(2, Some(&ana)).sentence(true),
            format!(
                "{begin}; this replaces the hold of ana until 1970-01-01T00:01:30Z; 2 messages wait, and stay {end}"
            )
        );
    }
}
