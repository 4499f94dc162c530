//! The decisions of people about the pace of a fleet: in `status --fleet`, and after `replay --fleet --pace`.

use std::time::Duration;

use serde::Serialize;

use crate::figures::{count, short_duration, time};
use crate::fleet::dial::{DialFault, DialSetting};
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

/// Returns a pace in words: `at most 20000 a second since ... by ana`.
pub(crate) fn pace_words(per_second: u64, since_ms: u64, by: &str) -> String {
    format!("at most {per_second} a second since {} by {by}", time_of(since_ms))
}

/// Returns a hold in words: `held until ... (for 29m30s) by ana`.
pub(crate) fn hold_words(until_ms: u64, seconds_left: u64, by: &str) -> String {
    let left = short_duration(Duration::from_secs(seconds_left));
    format!("held until {} (for {left}) by {by}", time_of(until_ms))
}

impl DialReport {
    /// Returns what this dial says at this time.
    pub(crate) fn of(setting: &DialSetting, now_ms: u64) -> Self {
        let pace = setting.ceiling.as_ref();
        let hold = setting.hold_at(now_ms);
        let left = hold.map_or(0, |hold| hold.until_ms().saturating_sub(now_ms) / 1000);
        let of_pace = pace.map(|pace| {
            let words = pace_words(pace.per_second, pace.decided.at_ms, &pace.decided.by);
            ("pace", words)
        });
        let of_hold = hold.map(|hold| ("hold", hold_words(hold.until_ms(), left, &hold.decided.by)));
        Self {
            pace: pace.map(|pace| PaceLine {
                messages_per_second: pace.per_second,
                by: pace.decided.by.clone(),
                since: time_of(pace.decided.at_ms),
                order: pace.decided.order.to_string(),
            }),
            hold: hold.map(|hold| HoldLine {
                until: time_of(hold.until_ms()),
                seconds_left: left,
                by: hold.decided.by.clone(),
                since: time_of(hold.decided.at_ms),
                order: hold.decided.order.to_string(),
            }),
            draining: setting.draining,
            problem: None,
            words: of_hold.into_iter().chain(of_pace).collect(),
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
