//! Estimated time until a backlog has reached the server.
//!
//! A configured pace is exact, so the time follows from it, unless the measured throughput is lower. The automatic
//! pace is the measured throughput; before any measurement it is that of the last replay; and before any replay it is
//! the pace at which replay starts, the slowest automatic one. An estimate always names its basis and its condition:
//! "about 40 s" while the server is unavailable would be wrong.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pacing::{Pace, PaceSettings};

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
    /// Recent throughput: messages that left the backlog per second.
    pub drained_per_second: Option<f64>,
    /// Recent arrivals: messages stored per second.
    pub stored_per_second: f64,
    /// Throughput of the last replay that delivered anything.
    pub last_per_second: Option<f64>,
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
    /// The pace at which replay starts: an upper bound of its pauses.
    Start,
}

/// Estimated time until a backlog has reached the server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eta {
    /// Its condition.
    pub state: EtaState,
    /// Seconds that delivery takes once it runs; `None` if unknown.
    pub seconds: Option<f64>,
    /// The basis of the seconds.
    pub basis: Option<Basis>,
    /// Seconds until delivery may run, for [`EtaState::Held`].
    pub waits_seconds: Option<f64>,
}

/// Estimates the time until a backlog has reached the server.
pub(crate) fn eta(now: &Situation) -> Eta {
    let none = |state| Eta { state, seconds: None, basis: None, waits_seconds: None };
    if now.waiting == 0 {
        return none(EtaState::Nothing);
    }
    let state = match now {
        Situation { available: Some(false), .. } => EtaState::ServerAway,
        Situation { is_replayed: false, .. } => EtaState::Idle,
        Situation { held_for: Some(_), .. } => EtaState::Held,
        Situation { is_stalled: true, .. } => return none(EtaState::Stalled),
        _ => EtaState::Moving,
    };
    // Messages that arrive meanwhile are delivered as well. While delivery does not run, their number is unknown.
    let joining = if state == EtaState::Moving { now.stored_per_second } else { 0.0 };
    let (per_second, basis) = match pace_set(now.pace) {
        Some(set) => match now.drained_per_second.filter(|measured| state == EtaState::Moving && *measured < set) {
            Some(measured) => (measured, Basis::Measured),
            None => (set, Basis::Set),
        },
        None => match (now.drained_per_second, now.last_per_second) {
            (Some(measured), _) if state == EtaState::Moving => (measured, Basis::Measured),
            (Some(last), _) | (None, Some(last)) => (last, Basis::LastReplay),
            (None, None) => {
                let pauses = Pace::start(now.pace).pauses_for(now.waiting).as_secs_f64();
                return Eta { seconds: Some(pauses), basis: Some(Basis::Start), ..held(none(state), now) };
            }
        },
    };
    let net = per_second - joining;
    if net <= 0.0 {
        return none(EtaState::Growing);
    }
    Eta { seconds: Some(now.waiting as f64 / net), basis: Some(basis), ..held(none(state), now) }
}

fn held(eta: Eta, now: &Situation) -> Eta {
    let waits = now.held_for.filter(|_| eta.state == EtaState::Held);
    Eta { waits_seconds: waits.map(|waits| waits.as_secs_f64()), ..eta }
}

/// Returns the messages per second of the configured batch and delay; `None` if the pace is automatic, or if there is
/// no pause.
fn pace_set(pace: PaceSettings) -> Option<f64> {
    let (batch, delay) = (pace.batch?, pace.delay?.as_secs_f64());
    (delay > 0.0).then(|| batch.max(1) as f64 / delay)
}

impl fmt::Display for Eta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = self.seconds.map(about);
        let pace = match self.basis {
            Some(Basis::Set) => " at the pace that is set",
            Some(Basis::Measured) => " at the present pace",
            Some(Basis::LastReplay) => " at the last pace",
            Some(Basis::Start) => " of pauses at most",
            None => "",
        };
        let takes = about.map_or("nobody can tell how long it takes".to_owned(), |about| format!("{about}{pace}"));
        match self.state {
            EtaState::Nothing => f.write_str("nothing waits"),
            EtaState::Moving => f.write_str(&takes),
            EtaState::ServerAway => write!(f, "when the server is back: {takes}"),
            EtaState::Idle => write!(f, "nobody delivers it: start the agent or `opik-offline replay`; {takes}"),
            EtaState::Held => {
                let waits = about_in(self.waits_seconds.unwrap_or(0.0));
                write!(f, "held, tried again {waits}; then {takes}")
            }
            EtaState::Growing => f.write_str("no end in sight: more is stored than delivered"),
            EtaState::Stalled => {
                f.write_str("nothing gets through although the server is there: see `opik-offline inspect`")
            }
        }
    }
}

/// Returns an approximate duration for people.
fn about(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.0 => "about a second".to_owned(),
        seconds => format!("about {}", in_words(seconds)),
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

    #[test]
    fn an_estimate_names_its_basis_and_its_condition() {
        let there = Situation { waiting: 1000, available: Some(true), is_replayed: true, ..Situation::default() };
        let away = Situation { available: Some(false), ..there };
        for (name, situation, state, seconds, basis, text) in [
            ("nothing waits", Situation { waiting: 0, ..away }, EtaState::Nothing, None, None, "nothing waits"),
            (
                "a pace that is set is exact",
                Situation { pace: SET, ..there },
                EtaState::Moving,
                Some(10.0),
                Some(Basis::Set),
                "about 10s at the pace that is set",
            ),
            (
                "a faster moment does not make a pace that is set faster",
                Situation { pace: SET, drained_per_second: Some(500.0), ..there },
                EtaState::Moving,
                Some(10.0),
                Some(Basis::Set),
                "about 10s at the pace that is set",
            ),
            (
                "a slow server does make it slower",
                Situation { pace: SET, drained_per_second: Some(10.0), ..there },
                EtaState::Moving,
                Some(100.0),
                Some(Basis::Measured),
                "about 1m40s at the present pace",
            ),
            (
                "the automatic pace is measured",
                Situation { drained_per_second: Some(200.0), last_per_second: Some(9.0), ..there },
                EtaState::Moving,
                Some(5.0),
                Some(Basis::Measured),
                "about 5s at the present pace",
            ),
            (
                "messages that arrive meanwhile are delivered as well",
                Situation { drained_per_second: Some(200.0), stored_per_second: 100.0, ..there },
                EtaState::Moving,
                Some(10.0),
                Some(Basis::Measured),
                "about 10s at the present pace",
            ),
            (
                "it may never end",
                Situation { drained_per_second: Some(100.0), stored_per_second: 100.0, ..there },
                EtaState::Growing,
                None,
                None,
                "no end in sight: more is stored than delivered",
            ),
            (
                "before any measurement, the last replay's throughput counts",
                Situation { last_per_second: Some(10.0), ..there },
                EtaState::Moving,
                Some(100.0),
                Some(Basis::LastReplay),
                "about 1m40s at the last pace",
            ),
            (
                "before the first replay, the slowest pace is known",
                there,
                EtaState::Moving,
                Some(10.0),
                Some(Basis::Start),
                "about 10s of pauses at most",
            ),
            (
                "an outage: what joins has no end, so it is left out",
                Situation { drained_per_second: Some(25.0), stored_per_second: 90.0, ..away },
                EtaState::ServerAway,
                Some(40.0),
                Some(Basis::LastReplay),
                "when the server is back: about 40s at the last pace",
            ),
            (
                "no process replays it",
                Situation { is_replayed: false, pace: SET, ..there },
                EtaState::Idle,
                Some(10.0),
                Some(Basis::Set),
                "nobody delivers it: start the agent or `opik-offline replay`; about 10s at the pace that is set",
            ),
            (
                "every lane is held",
                Situation { held_for: Some(Duration::from_secs(90)), pace: SET, is_stalled: true, ..there },
                EtaState::Held,
                Some(10.0),
                Some(Basis::Set),
                "held, tried again in 1m30s; then about 10s at the pace that is set",
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
    fn durations_have_two_units() {
        let said = [0.0, 0.4, 59.6, 60.0, 200.0, 3900.0, 90_061.0, f64::INFINITY].map(in_words);
        assert_eq!(said[..7], ["0s", "0s", "1m", "1m", "3m20s", "1h5m", "1d1h"]);
        assert!(said[7].ends_with('d') || said[7].ends_with('h'), "{}", said[7]);
    }
}
