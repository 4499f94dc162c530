//! When a backlog will have reached the server, as far as anybody can tell.
//!
//! A pace that the user set is exact, so the time follows from it, unless the server is seen to be slower. The automatic
//! pace is what was measured; before anything was, it is the last replay's; and before any replay it is the pace at
//! which replay starts, which is the slowest that it ever goes by itself. An estimate always says what it rests on and
//! what it waits for: "about 40 s" of a server that is away would be a lie.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pacing::{Pace, PaceSettings};

/// What is known of a backlog and of who works on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Situation {
    /// Messages that still have to reach the server.
    pub waiting: u64,
    /// Whether the server is there; `None` when nobody knows yet.
    pub available: Option<bool>,
    /// Whether an agent or a `replay` is at work.
    pub is_replayed: bool,
    /// What the user asked for.
    pub pace: PaceSettings,
    /// Messages that left the backlog per second lately.
    pub drained_per_second: Option<f64>,
    /// Messages that joined it per second lately.
    pub stored_per_second: f64,
    /// Messages per second of the last replay that delivered anything.
    pub last_per_second: Option<f64>,
    /// How long until the first lane is tried again, when every lane that has something waiting is held.
    pub held_for: Option<Duration>,
    /// Whether nothing has left for a while although it could.
    pub is_stalled: bool,
}

/// What an estimate waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing waits.
    Nothing,
    /// It is being delivered.
    Moving,
    /// The server is away: the time runs once it is back.
    ServerAway,
    /// Nobody replays: the time runs once somebody does.
    Idle,
    /// Every lane with something waiting is held: the time runs once one is tried again.
    Held,
    /// More is stored than delivered: there is no end in sight.
    Growing,
    /// The server is there, and nothing gets through.
    Stalled,
}

/// Which pace an estimate rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The user's batch size and delay.
    Set,
    /// What was delivered a moment ago.
    Measured,
    /// What the last replay did.
    LastReplay,
    /// The pace at which replay starts: an upper bound of its pauses.
    Start,
}

/// When a backlog will have reached the server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eta {
    /// What it waits for.
    pub state: State,
    /// Seconds that delivering takes once it moves; `None` when nobody can tell.
    pub seconds: Option<f64>,
    /// What the seconds rest on.
    pub basis: Option<Basis>,
    /// Seconds until it may move, for [`State::Held`].
    pub waits_seconds: Option<f64>,
}

/// Estimates when a backlog will have reached the server.
pub fn eta(now: &Situation) -> Eta {
    let none = |state| Eta { state, seconds: None, basis: None, waits_seconds: None };
    if now.waiting == 0 {
        return none(State::Nothing);
    }
    let state = match now {
        Situation { available: Some(false), .. } => State::ServerAway,
        Situation { is_replayed: false, .. } => State::Idle,
        Situation { held_for: Some(_), .. } => State::Held,
        Situation { is_stalled: true, .. } => return none(State::Stalled),
        _ => State::Moving,
    };
    // What joins meanwhile is delivered as well. While nothing moves, it is not known how much that will be.
    let joining = if state == State::Moving { now.stored_per_second } else { 0.0 };
    let (per_second, basis) = match pace_set(now.pace) {
        Some(set) => match now.drained_per_second.filter(|measured| state == State::Moving && *measured < set) {
            Some(measured) => (measured, Basis::Measured),
            None => (set, Basis::Set),
        },
        None => match (now.drained_per_second, now.last_per_second) {
            (Some(measured), _) if state == State::Moving => (measured, Basis::Measured),
            (Some(last), _) | (None, Some(last)) => (last, Basis::LastReplay),
            (None, None) => {
                let pauses = Pace::start(now.pace).pauses_for(now.waiting).as_secs_f64();
                return Eta { seconds: Some(pauses), basis: Some(Basis::Start), ..held(none(state), now) };
            }
        },
    };
    let net = per_second - joining;
    if net <= 0.0 {
        return none(State::Growing);
    }
    Eta { seconds: Some(now.waiting as f64 / net), basis: Some(basis), ..held(none(state), now) }
}

fn held(eta: Eta, now: &Situation) -> Eta {
    let waits = now.held_for.filter(|_| eta.state == State::Held);
    Eta { waits_seconds: waits.map(|waits| waits.as_secs_f64()), ..eta }
}

/// Returns the messages per second that the user's batch and delay come to; `None` when replay finds its own pace, or when
/// there is no pause.
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
            State::Nothing => f.write_str("nothing waits"),
            State::Moving => f.write_str(&takes),
            State::ServerAway => write!(f, "when the server is back: {takes}"),
            State::Idle => write!(f, "nobody delivers it: start the agent or `opik-offline replay`; {takes}"),
            State::Held => {
                let waits = about_in(self.waits_seconds.unwrap_or(0.0));
                write!(f, "held, tried again {waits}; then {takes}")
            }
            State::Growing => f.write_str("no end in sight: more is stored than delivered"),
            State::Stalled => {
                f.write_str("nothing gets through although the server is there: see `opik-offline inspect`")
            }
        }
    }
}

/// Returns seconds as people say them of something that nobody knows exactly.
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
pub fn in_words(seconds: f64) -> String {
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

    const SET: PaceSettings = PaceSettings { batch: Some(50), delay: Some(Duration::from_millis(500)) };

    #[test]
    fn an_estimate_says_what_it_rests_on_and_what_it_waits_for() {
        let there = Situation { waiting: 1000, available: Some(true), is_replayed: true, ..Situation::default() };
        let away = Situation { available: Some(false), ..there };
        for (name, situation, state, seconds, basis, text) in [
            ("nothing waits", Situation { waiting: 0, ..away }, State::Nothing, None, None, "nothing waits"),
            (
                "a pace that is set is exact",
                Situation { pace: SET, ..there },
                State::Moving,
                Some(10.0),
                Some(Basis::Set),
                "about 10s at the pace that is set",
            ),
            (
                "a faster moment does not make a pace that is set faster",
                Situation { pace: SET, drained_per_second: Some(500.0), ..there },
                State::Moving,
                Some(10.0),
                Some(Basis::Set),
                "about 10s at the pace that is set",
            ),
            (
                "a slow server does make it slower",
                Situation { pace: SET, drained_per_second: Some(10.0), ..there },
                State::Moving,
                Some(100.0),
                Some(Basis::Measured),
                "about 1m40s at the present pace",
            ),
            (
                "the automatic pace is measured",
                Situation { drained_per_second: Some(200.0), last_per_second: Some(9.0), ..there },
                State::Moving,
                Some(5.0),
                Some(Basis::Measured),
                "about 5s at the present pace",
            ),
            (
                "what joins meanwhile is delivered as well",
                Situation { drained_per_second: Some(200.0), stored_per_second: 100.0, ..there },
                State::Moving,
                Some(10.0),
                Some(Basis::Measured),
                "about 10s at the present pace",
            ),
            (
                "it may never end",
                Situation { drained_per_second: Some(100.0), stored_per_second: 100.0, ..there },
                State::Growing,
                None,
                None,
                "no end in sight: more is stored than delivered",
            ),
            (
                "before anything was measured, the last replay tells",
                Situation { last_per_second: Some(10.0), ..there },
                State::Moving,
                Some(100.0),
                Some(Basis::LastReplay),
                "about 1m40s at the last pace",
            ),
            (
                "before the first replay, the slowest pace is known",
                there,
                State::Moving,
                Some(10.0),
                Some(Basis::Start),
                "about 10s of pauses at most",
            ),
            (
                "an outage: what joins has no end, so it is left out",
                Situation { drained_per_second: Some(25.0), stored_per_second: 90.0, ..away },
                State::ServerAway,
                Some(40.0),
                Some(Basis::LastReplay),
                "when the server is back: about 40s at the last pace",
            ),
            (
                "nobody works on it",
                Situation { is_replayed: false, pace: SET, ..there },
                State::Idle,
                Some(10.0),
                Some(Basis::Set),
                "nobody delivers it: start the agent or `opik-offline replay`; about 10s at the pace that is set",
            ),
            (
                "every lane is held",
                Situation { held_for: Some(Duration::from_secs(90)), pace: SET, is_stalled: true, ..there },
                State::Held,
                Some(10.0),
                Some(Basis::Set),
                "held, tried again in 1m30s; then about 10s at the pace that is set",
            ),
            (
                "nothing gets through",
                Situation { is_stalled: true, last_per_second: Some(10.0), ..there },
                State::Stalled,
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
    fn durations_are_said_in_two_units() {
        let said = [0.0, 0.4, 59.6, 60.0, 200.0, 3900.0, 90_061.0, f64::INFINITY].map(in_words);
        assert_eq!(said[..7], ["0s", "0s", "1m", "1m", "3m20s", "1h5m", "1d1h"]);
        assert!(said[7].ends_with('d') || said[7].ends_with('h'), "{}", said[7]);
    }
}
