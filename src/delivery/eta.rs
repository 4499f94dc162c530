//! Estimated time until a backlog has reached the server.
//!
//! An estimate is a range, and it is silent until it has a basis: a wrong time is worse than none. The basis is the
//! measured throughput, which includes the server's latency; while delivery does not run, that of the last replay. Only
//! a configured pace is known before any measurement: its pauses are exact, and each batch takes at least one round trip
//! and at most one for each of its messages. The condition is always named: "about 40 s" while the server is unavailable
//! would be wrong.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pacing::PaceSettings;
use crate::figures::time_range;

/// Measured throughput.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Throughput {
    /// Messages per second.
    pub per_second: f64,
    /// By which share of it the throughput may be lower or higher.
    pub spread: f64,
}

/// The state of a backlog and of its replay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Situation {
    /// Messages that are waiting.
    pub waiting: u64,
    /// Whether the server is available; `None` if unknown.
    pub available: Option<bool>,
    /// Whether an agent or a `replay` is running.
    pub is_replayed: bool,
    /// The configured pace.
    pub pace: PaceSettings,
    /// Throughput while messages left the backlog; `None` until it was measured for long enough.
    pub drained: Option<Throughput>,
    /// Recent arrivals: messages stored per second.
    pub stored_per_second: f64,
    /// Throughput of the last replay that delivered anything.
    pub last_per_second: Option<f64>,
    /// How long the server takes to answer a ping.
    pub latency: Option<Duration>,
    /// How long until the first lane is retried, if every lane with waiting messages is held.
    pub held_for: Option<Duration>,
    /// Whether no message has left for a while although nothing is held.
    pub is_stalled: bool,
}

/// The condition of an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EtaState {
    /// The backlog is empty.
    Nothing,
    /// Messages are being delivered.
    Moving,
    /// The server is unavailable: the time runs once it is back.
    ServerAway,
    /// No process replays: the time runs once one does.
    Idle,
    /// Every lane with waiting messages is held: the time runs once one is retried.
    Held,
    /// More messages are stored than delivered: there is no end in sight.
    Growing,
    /// The server is available, and no message is delivered.
    Stalled,
}

/// The basis of an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The configured batch size and delay.
    Set,
    /// The measured throughput.
    Measured,
    /// The throughput of the last replay.
    LastReplay,
    /// The pace at which replay starts; only agents of earlier versions report it.
    Start,
}

/// Estimated time until a backlog has reached the server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eta {
    /// Its condition.
    pub state: EtaState,
    /// Seconds that delivery takes once it runs; `None` if unknown.
    pub seconds: Option<f64>,
    /// At least this many seconds; `None` if unknown.
    #[serde(default)]
    pub seconds_min: Option<f64>,
    /// At most this many seconds; `None` if unknown.
    #[serde(default)]
    pub seconds_max: Option<f64>,
    /// The basis of the seconds.
    pub basis: Option<Basis>,
    /// Seconds until delivery may run, for [`EtaState::Held`].
    pub waits_seconds: Option<f64>,
}

impl Eta {
    /// Returns an estimate without a time.
    pub(crate) fn silent(state: EtaState) -> Self {
        Self { state, seconds: None, seconds_min: None, seconds_max: None, basis: None, waits_seconds: None }
    }

    /// Returns the time for people; `None` if it is unknown.
    pub(crate) fn time(&self) -> Option<String> {
        let seconds = self.seconds?;
        // An agent of an earlier version reports no range.
        let max = if self.seconds_min.is_some() { self.seconds_max } else { Some(seconds) };
        Some(time_range(self.seconds_min.unwrap_or(seconds), max))
    }
}

/// The throughput of the last replay may differ from that of the next one by this share.
const LAST_SPREAD: f64 = 0.4;

/// Estimates the time until a backlog has reached the server.
pub(crate) fn eta(now: &Situation) -> Eta {
    if now.waiting == 0 {
        return Eta::silent(EtaState::Nothing);
    }
    let state = match now {
        Situation { available: Some(false), .. } => EtaState::ServerAway,
        Situation { is_replayed: false, .. } => EtaState::Idle,
        Situation { held_for: Some(_), .. } => EtaState::Held,
        Situation { is_stalled: true, .. } => return Eta::silent(EtaState::Stalled),
        _ => EtaState::Moving,
    };
    let waits = now.held_for.filter(|_| state == EtaState::Held).map(|waits| waits.as_secs_f64());
    let silent = Eta { waits_seconds: waits, ..Eta::silent(state) };
    let estimate = match (state, now.drained) {
        (EtaState::Moving, Some(drained)) => at_throughput(now, drained, Basis::Measured),
        _ => match (Configured::of(now.pace), now.last_per_second) {
            (Some(pace), _) => Some(pace.takes(now)),
            // A replay that has just begun is still speeding up: its rate is soon known.
            (None, Some(last)) if state != EtaState::Moving => {
                let last = Throughput { per_second: last, spread: LAST_SPREAD };
                at_throughput(&Situation { stored_per_second: 0.0, ..*now }, last, Basis::LastReplay)
            }
            (None, _) => return silent,
        },
    };
    match estimate {
        Some(estimate) => Eta { state, waits_seconds: waits, ..estimate },
        None => Eta::silent(EtaState::Growing),
    }
}

/// Estimates from a throughput; `None` if the backlog grows as fast. Messages that arrive meanwhile are delivered as
/// well; while delivery does not run, their number is unknown.
fn at_throughput(now: &Situation, throughput: Throughput, basis: Basis) -> Option<Eta> {
    let takes = |per_second: f64| {
        let net = per_second - now.stored_per_second;
        (net > 0.0).then(|| now.waiting as f64 / net)
    };
    let at = |factor: f64| takes(throughput.per_second * factor);
    let spread = throughput.spread.clamp(0.0, 1.0);
    Some(Eta {
        seconds: Some(at(1.0)?),
        seconds_min: at(1.0 + spread),
        seconds_max: at(1.0 - spread),
        basis: Some(basis),
        ..Eta::silent(EtaState::Moving)
    })
}

/// A configured pace with a pause.
#[derive(Clone, Copy)]
struct Configured {
    batch: u64,
    delay: Duration,
}

impl Configured {
    /// Returns the configured pace; `None` if the pace is automatic, or if there is no pause.
    fn of(pace: PaceSettings) -> Option<Self> {
        let (batch, delay) = (pace.batch?.max(1) as u64, pace.delay?);
        (!delay.is_zero()).then_some(Self { batch, delay })
    }

    /// Estimates before any measurement. The messages of a batch share between one request and one request each.
    fn takes(self, now: &Situation) -> Eta {
        let latency = now.latency.unwrap_or_default().as_secs_f64();
        let pauses = now.waiting as f64 / self.batch as f64 * self.delay.as_secs_f64();
        let min = pauses + now.waiting.div_ceil(self.batch) as f64 * latency;
        let max = pauses + now.waiting as f64 * latency;
        Eta {
            seconds: Some(f64::midpoint(min, max)),
            seconds_min: Some(min),
            seconds_max: Some(max),
            basis: Some(Basis::Set),
            ..Eta::silent(EtaState::Moving)
        }
    }
}

impl fmt::Display for Eta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pace = match self.basis {
            Some(Basis::Set) => " at the configured pace",
            Some(Basis::Measured) => " at the present pace",
            Some(Basis::LastReplay) => " at the last pace",
            Some(Basis::Start) => " of pauses at most",
            None => "",
        };
        let takes = self.time().map(|time| format!("{time}{pace}"));
        let then = |before: &str| takes.as_ref().map_or(String::new(), |takes| format!("{before}{takes}"));
        match self.state {
            EtaState::Nothing => f.write_str("nothing waits"),
            EtaState::Moving => f.write_str(takes.as_deref().unwrap_or("not known yet: the rate is being measured")),
            EtaState::ServerAway => write!(f, "begins when the server is back{}", then("; then ")),
            EtaState::Idle => {
                write!(f, "nobody delivers it: start the agent or `opik-offline replay`{}", then("; then "))
            }
            EtaState::Held => {
                write!(f, "held, retried {}{}", about_in(self.waits_seconds.unwrap_or(0.0)), then("; then "))
            }
            EtaState::Growing => f.write_str("no end in sight: more is stored than delivered"),
            EtaState::Stalled => {
                f.write_str("nothing gets through although the server is there: see `opik-offline inspect`")
            }
        }
    }
}

fn about_in(seconds: f64) -> String {
    if seconds < 1.0 { "now".to_owned() } else { format!("in {}", in_words(seconds)) }
}

/// Returns a duration in its two largest units, from seconds up: `42s`, `3m20s`, `1h5m`, `2d3h`.
pub(crate) fn in_words(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.round().clamp(0.0, 1e12) as u64 } else { 1_000_000_000_000 };
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(units.len() - 1);
    let mut rest = seconds;
    let mut text = String::new();
    for (size, unit) in units.iter().skip(first).take(2) {
        if rest >= *size || text.is_empty() {
            text.push_str(&format!("{}{unit}", rest / size));
        }
        rest %= size;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: PaceSettings = PaceSettings { batch: Some(50), delay: Some(Duration::from_millis(500)), fleet: None };

    fn measured(per_second: f64, spread: f64) -> Option<Throughput> {
        Some(Throughput { per_second, spread })
    }

    #[test]
    fn an_estimate_names_its_basis_and_its_condition() {
        let there = Situation { waiting: 1000, available: Some(true), is_replayed: true, ..Situation::default() };
        let away = Situation { available: Some(false), ..there };
        for (name, situation, state, seconds, basis, text) in [
            ("nothing waits", Situation { waiting: 0, ..away }, EtaState::Nothing, None, None, "nothing waits"),
            (
                "a configured pace is exact but for the latency",
                Situation { pace: SET, ..there },
                EtaState::Moving,
                Some(10.0),
                Some(Basis::Set),
                "about 10s at the configured pace",
            ),
            (
                "a measured pace includes the latency",
                Situation { pace: SET, drained: measured(10.0, 0.0), ..there },
                EtaState::Moving,
                Some(100.0),
                Some(Basis::Measured),
                "about 1m40s at the present pace",
            ),
            (
                "the automatic pace is measured",
                Situation { drained: measured(200.0, 0.0), last_per_second: Some(9.0), ..there },
                EtaState::Moving,
                Some(5.0),
                Some(Basis::Measured),
                "about 5s at the present pace",
            ),
            (
                "messages that arrive meanwhile are delivered as well",
                Situation { drained: measured(200.0, 0.0), stored_per_second: 100.0, ..there },
                EtaState::Moving,
                Some(10.0),
                Some(Basis::Measured),
                "about 10s at the present pace",
            ),
            (
                "it may never end",
                Situation { drained: measured(100.0, 0.0), stored_per_second: 100.0, ..there },
                EtaState::Growing,
                None,
                None,
                "no end in sight: more is stored than delivered",
            ),
            (
                "a replay that speeds up is no basis, and neither is the last one",
                Situation { last_per_second: Some(10.0), ..there },
                EtaState::Moving,
                None,
                None,
                "not known yet: the rate is being measured",
            ),
            (
                "an outage: what joins has no end, so it is left out",
                Situation { last_per_second: Some(25.0), stored_per_second: 90.0, ..away },
                EtaState::ServerAway,
                Some(40.0),
                Some(Basis::LastReplay),
                "begins when the server is back; then 25s to 1m10s at the last pace",
            ),
            (
                "an outage before the first replay",
                away,
                EtaState::ServerAway,
                None,
                None,
                "begins when the server is back",
            ),
            (
                "no process replays it",
                Situation { is_replayed: false, pace: SET, ..there },
                EtaState::Idle,
                Some(10.0),
                Some(Basis::Set),
                "nobody delivers it: start the agent or `opik-offline replay`; then about 10s at the configured pace",
            ),
            (
                "every lane is held",
                Situation { held_for: Some(Duration::from_secs(90)), pace: SET, is_stalled: true, ..there },
                EtaState::Held,
                Some(10.0),
                Some(Basis::Set),
                "held, retried in 1m30s; then about 10s at the configured pace",
            ),
            (
                "nothing gets through",
                Situation { is_stalled: true, last_per_second: Some(10.0), ..there },
                EtaState::Stalled,
                None,
                None,
                "nothing gets through although the server is there: see `opik-offline inspect`",
            ),
        ] {
            let found = eta(&situation);
            assert_eq!((found.state, found.seconds, found.basis), (state, seconds, basis), "{name}");
            assert_eq!(found.to_string(), text, "{name}");
        }
    }

    #[test]
    fn an_estimate_is_as_wide_as_its_basis_is_uncertain() {
        let there = Situation { waiting: 20_000, available: Some(true), is_replayed: true, ..Situation::default() };
        for (name, situation, range, text) in [
            (
                "an even pace",
                Situation { drained: measured(100.0, 0.15), ..there },
                (174, Some(235)),
                "2m50s to 4m at the present pace",
            ),
            (
                "an uneven one",
                Situation { drained: measured(100.0, 0.5), ..there },
                (133, Some(400)),
                "2m10s to 7m at the present pace",
            ),
            (
                "its slow moments are slower than what arrives",
                Situation { drained: measured(100.0, 0.5), stored_per_second: 60.0, ..there },
                (222, None),
                "at least 3m30s at the present pace",
            ),
            (
                "a server that takes 20 ms for each request",
                Situation { pace: SET, latency: Some(Duration::from_millis(20)), ..there },
                (208, Some(600)),
                "3m to 10m at the configured pace",
            ),
        ] {
            let found = eta(&situation);
            let whole = |seconds: Option<f64>| seconds.map(|seconds| seconds.round() as u64);
            assert_eq!((whole(found.seconds_min), whole(found.seconds_max)), (Some(range.0), range.1), "{name}");
            assert!(found.seconds >= found.seconds_min, "{name}");
            assert_eq!(found.to_string(), text, "{name}");
        }
    }

    #[test]
    fn an_agent_of_an_earlier_version_reports_no_range() {
        let told = r#"{"state":"moving","seconds":10.0,"basis":"start","waits_seconds":null}"#;
        let eta: Eta = serde_json::from_str(told).expect("fields are only added");
        assert_eq!(eta.to_string(), "about 10s of pauses at most");
    }

    #[test]
    fn durations_have_two_units() {
        let said = [0.0, 0.4, 59.6, 60.0, 200.0, 3900.0, 90_061.0, f64::INFINITY].map(in_words);
        assert_eq!(said[..7], ["0s", "0s", "1m", "1m", "3m20s", "1h5m", "1d1h"]);
        assert!(said[7].ends_with('d') || said[7].ends_with('h'), "{}", said[7]);
    }
}
