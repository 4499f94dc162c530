//! The lanes of an overview: how many messages wait in each, and whether and why it is held.

use std::time::Duration;

use serde::Serialize;

use crate::store::{Hold, LaneWork};

/// A lane with messages to deliver.
#[derive(Clone, Debug, Serialize)]
pub struct LaneOverview {
    pub workspace: String,
    /// At most the first four characters; `null` for clients that send none.
    pub key: Option<String>,
    pub waiting: u64,
    pub held: Option<HeldOverview>,
}

impl LaneOverview {
    pub(super) fn of(work: &LaneWork) -> Self {
        Self {
            workspace: work.lane.workspace_name().to_owned(),
            key: work.lane.credential.as_ref().map(ToString::to_string),
            waiting: work.failed,
            held: work.holds().next().map(|hold| HeldOverview {
                until_ms: hold.until_ms,
                reason: reasons(work, hold),
                is_key_refused: hold.is_credential_refused(),
            }),
        }
    }
}

/// Why a lane is held.
#[derive(Clone, Debug, Serialize)]
pub struct HeldOverview {
    /// In milliseconds since the Unix epoch; in the past once the lane is retried and nothing has passed yet.
    pub until_ms: i64,
    pub reason: String,
    /// Whether the server refused its key.
    #[serde(skip)]
    pub is_key_refused: bool,
}

/// The lanes that a page lists, of any number.
#[derive(Clone, Debug, Default)]
pub struct LargestLanes {
    /// Those with the most messages, and the largest of those that are held; the largest first.
    pub list: Vec<LaneOverview>,
    /// How many lanes there are.
    pub total: u64,
    /// How many of them are held.
    pub held: u64,
    /// Messages in lanes that are not listed.
    pub others_waiting: u64,
}

impl LargestLanes {
    /// How many of the largest lanes are listed.
    pub(crate) const LARGEST_MAX: usize = 20;
    /// How many of the largest held lanes are listed, if they are not among the largest.
    pub(crate) const HELD_MAX: usize = 10;

    pub(super) fn of(lanes: &[LaneWork]) -> Self {
        let mut largest: Vec<&LaneWork> = lanes.iter().collect();
        largest.sort_by_key(|work| std::cmp::Reverse(work.failed));
        let mut held_left = Self::HELD_MAX;
        let mut list = Vec::new();
        for (rank, work) in largest.iter().enumerate() {
            let is_held = work.holds().next().is_some();
            if rank < Self::LARGEST_MAX || is_held && held_left > 0 {
                held_left -= usize::from(is_held && held_left > 0);
                list.push(LaneOverview::of(work));
            }
        }
        let waiting = |count: u64, lane: &LaneOverview| count + lane.waiting;
        Self {
            total: lanes.len() as u64,
            held: lanes.iter().filter(|work| work.holds().next().is_some()).count() as u64,
            others_waiting: lanes
                .iter()
                .map(|work| work.failed)
                .sum::<u64>()
                .saturating_sub(list.iter().fold(0, waiting)),
            list,
        }
    }
}

/// Returns why a lane is held, with every bucket that is rate limited.
fn reasons(work: &LaneWork, first: &Hold) -> String {
    let others = work.holds().skip(1).filter_map(|hold| hold.bucket).map(|bucket| format!("; {}", bucket.name()));
    std::iter::once(first.reason.clone()).chain(others).collect()
}

/// Returns how long until the first of these lanes is retried, if all of them are held.
pub(super) fn held_for(lanes: &[LaneWork], now_ms: i64) -> Option<Duration> {
    let until =
        |work: &LaneWork| work.held_as_a_whole(now_ms).map(|hold| hold.until_ms).filter(|until| *until > now_ms);
    let untils = lanes.iter().map(until).collect::<Option<Vec<i64>>>()?;
    let first = untils.into_iter().min()?;
    Some(Duration::from_millis((first - now_ms).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Credential, Lane};
    use crate::store::LaneId;

    fn lane(until_ms: Option<i64>) -> LaneWork {
        let hold = until_ms.map(|until_ms| Hold {
            until_ms,
            reason: "429".into(),
            probe: false,
            status: Some(429),
            bucket: None,
        });
        let lane = Lane { credential: Some(Credential::new("made-up-key-0123456789")), ..Lane::default() };
        LaneWork {
            id: LaneId(1),
            lane,
            failed: 3,
            body_bytes: 6,
            due_at_ms: 0,
            hold,
            limits: Vec::new(),
            waits_for: None,
        }
    }

    #[test]
    fn a_backlog_is_held_only_if_every_lane_is() {
        for (name, lanes, expected) in [
            ("no lane", vec![], None),
            ("one is not held", vec![lane(Some(5000)), lane(None)], None),
            ("one is retried now", vec![lane(Some(5000)), lane(Some(900))], None),
            ("the first counts", vec![lane(Some(5000)), lane(Some(3000))], Some(Duration::from_secs(2))),
        ] {
            assert_eq!(held_for(&lanes, 1000), expected, "{name}");
        }
    }

    #[test]
    fn the_largest_lanes_are_listed_and_the_others_counted() {
        let lanes: Vec<LaneWork> =
            (1..=1000).map(|number| LaneWork { failed: number, ..lane((number % 100 == 0).then_some(5000)) }).collect();
        let found = LargestLanes::of(&lanes);
        assert_eq!((found.total, found.held), (1000, 10));
        let waiting: Vec<u64> = found.list.iter().map(|lane| lane.waiting).collect();
        let expected: Vec<u64> = (981..=1000).rev().chain((1..=9).rev().map(|hundred| hundred * 100)).collect();
        assert_eq!(waiting, expected, "the 20 largest, and the held ones behind them");
        assert_eq!(found.others_waiting, (1..=1000).sum::<u64>() - expected.iter().sum::<u64>());
        assert_eq!(LargestLanes::of(&[]).total, 0);
    }

    #[test]
    fn a_lane_shows_no_key() {
        let text = serde_json::to_string(&LaneOverview::of(&lane(None))).expect("plain values");
        assert!(text.contains(r#""key":"made***""#) && !text.contains("made-up"), "{text}");
    }
}
