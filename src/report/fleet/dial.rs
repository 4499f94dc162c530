//! What people decided about the pace of a fleet: in `status --fleet`, and after `replay --fleet --pace`.

use serde::Serialize;

use crate::figures::{count, time};
use crate::fleet::dial::{Decided, DialFault, DialSetting};
use crate::overview::dial::{HoldOverview, PaceOverview};
use crate::terminal::Shown;

/// The dial, for programs.
#[derive(Serialize, Default)]
pub(crate) struct DialReport {
    /// The ceiling of the whole fleet; `null` without one.
    pace: Option<PaceLine>,
    /// The hold in force, by the clock of this machine; `null` if the fleet is not held.
    hold: Option<HoldLine>,
    /// How many streams share the ceiling, as the dial says.
    draining: u64,
    /// Why the dial can't be read.
    problem: Option<String>,
    #[serde(skip)]
    words: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
struct PaceLine {
    messages_per_second: u64,
    by: String,
    since: String,
    order: String,
}

#[derive(Serialize)]
struct HoldLine {
    until: String,
    seconds_left: u64,
    by: String,
    since: String,
    order: String,
}

fn time_of(ms: u64) -> String {
    time(i64::try_from(ms).unwrap_or(i64::MAX))
}

impl DialReport {
    /// Returns what this dial says at this time.
    pub(crate) fn of(setting: &DialSetting, now_ms: u64) -> Self {
        let pace = setting.ceiling.as_ref();
        let pace_words = pace.map(|pace| ("pace", PaceOverview::of(pace).text()));
        let hold = setting.hold_at(now_ms);
        let hold_words = hold.map(|hold| {
            let Decided { by, at_ms, .. } = hold.decided.clone();
            let left = hold.until_ms().saturating_sub(now_ms) / 1000;
            let hold = HoldOverview { seconds_left: left, until_ms: hold.until_ms(), by, since_ms: at_ms };
            ("hold", hold.text())
        });
        Self {
            pace: pace.map(|pace| PaceLine {
                messages_per_second: pace.per_second,
                by: pace.decided.by.clone(),
                since: time_of(pace.decided.at_ms),
                order: pace.decided.order.to_string(),
            }),
            hold: hold.map(|hold| HoldLine {
                until: time_of(hold.until_ms()),
                seconds_left: hold.until_ms().saturating_sub(now_ms) / 1000,
                by: hold.decided.by.clone(),
                since: time_of(hold.decided.at_ms),
                order: hold.decided.order.to_string(),
            }),
            draining: setting.draining,
            problem: None,
            words: hold_words.into_iter().chain(pace_words).collect(),
        }
    }

    /// Returns that the dial can't be read.
    pub(crate) fn of_fault(fault: &DialFault) -> Self {
        let text = format!("{fault}; agents and replayers keep the pace and the hold that they know");
        Self { problem: Some(fault.to_string()), words: vec![("pace", text)], ..Self::default() }
    }

    /// Returns it for people, a line for each thing that is in force.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        self.words.iter().cloned()
    }
}

/// The result of `replay --fleet` with `--pace`, `--hold` or `--resume`, for programs.
#[derive(Serialize)]
pub(crate) struct FleetDialReport {
    schema_version: u32,
    depot: String,
    #[serde(flatten)]
    dial: DialReport,
}

impl FleetDialReport {
    pub(crate) fn of(depot: String, setting: &DialSetting, now_ms: u64) -> Self {
        Self { schema_version: 1, depot, dial: DialReport::of(setting, now_ms) }
    }

    /// Returns it for people, in one line.
    pub(crate) fn text(&self) -> Shown {
        let words: Vec<String> = self.dial.lines().map(|(_, text)| text).collect();
        let said = match words.is_empty() {
            true => "no pace is set, and nothing is held".to_owned(),
            false => words.join("; "),
        };
        let streams = count(self.dial.draining, "stream");
        let sharing = if self.dial.pace.is_some() { format!("; {streams} share it") } else { String::new() };
        Shown::line(&format!("{}: {said}{sharing}", self.depot))
    }
}
