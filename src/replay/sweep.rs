//! Which lanes a round lists next: page by page, so that their number does not matter. Pure.
//!
//! Lanes whose last request failed come after all others, however many those are: a first pass over the lanes leaves
//! them out. If there were any, a second one takes every lane that is due by then.

use crate::store::{LaneId, LaneRange};

/// How many lanes are listed at once, which takes some milliseconds, and how many wait at least while there are more.
pub(super) const LANES_LISTED: usize = 512;

/// One pass, or two, over the lanes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sweep {
    pass: Pass,
    /// The lane behind which the next page begins.
    after: Option<LaneId>,
    /// Whether this pass left out any.
    has_left: bool,
    /// Whether no worker had a lane when it began.
    began_idle: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pass {
    WithoutFailing,
    Every,
    #[default]
    Over,
}

impl Sweep {
    /// Returns a sweep of which no page was listed yet; `is_idle`: no worker has a lane.
    pub(super) fn start(is_idle: bool) -> Self {
        Self { pass: Pass::WithoutFailing, began_idle: is_idle, ..Self::default() }
    }

    /// Returns whether a round may end with this sweep, if it found nothing due. A lane that a worker had when it began may
    /// have become due behind it.
    pub(super) fn is_conclusive(&self) -> bool {
        self.is_over() && self.began_idle
    }

    /// Returns whether every lane was listed.
    pub(super) fn is_over(&self) -> bool {
        self.pass == Pass::Over
    }

    /// Returns which lanes the next page has.
    pub(super) fn range(&self) -> LaneRange {
        LaneRange { after: self.after, most: Some(LANES_LISTED) }
    }

    /// Returns whether a listed lane is replayed in this pass; `is_failing`: its last request failed.
    pub(super) fn takes(&mut self, is_failing: bool) -> bool {
        let is_left = is_failing && self.pass == Pass::WithoutFailing;
        self.has_left |= is_left;
        !is_left
    }

    /// Notes that a page was listed; `next`: the lane behind which another one begins.
    pub(super) fn listed(&mut self, next: Option<LaneId>) {
        *self = match (next, self.has_left) {
            (Some(_), _) => Self { after: next, ..*self },
            (None, true) => Self { pass: Pass::Every, after: None, has_left: false, ..*self },
            (None, false) => Self { pass: Pass::Over, after: None, ..*self },
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_lane_is_listed_and_failing_ones_come_last(
            lanes in prop::collection::vec(any::<bool>(), 0..40), page in 1_usize..8,
        ) {
            let mut sweep = Sweep::start(true);
            let mut taken: Vec<usize> = Vec::new();
            let mut pages = 0;
            while !sweep.is_over() {
                let after = sweep.range().after.map_or(0, |lane| usize::try_from(lane.0).expect("a small number"));
                let found: Vec<usize> = (after + 1..=lanes.len()).take(page).collect();
                taken.extend(found.iter().filter(|lane| sweep.takes(lanes[**lane - 1])));
                let last = found.last().filter(|last| **last < lanes.len());
                sweep.listed(last.map(|last| LaneId(*last as i64)));
                pages += 1;
                prop_assert!(pages <= 2 * lanes.len().div_ceil(page).max(1));
            }
            let mut expected: Vec<usize> = (1..=lanes.len()).filter(|lane| !lanes[*lane - 1]).collect();
            if lanes.contains(&true) {
                expected.extend(1..=lanes.len());
            }
            prop_assert_eq!(taken, expected);
        }
    }

    #[test]
    fn a_lane_that_recovers_between_the_passes_is_not_forgotten() {
        let mut sweep = Sweep::start(true);
        assert!(!sweep.takes(true));
        sweep.listed(None);
        assert!(!sweep.is_over() && sweep.takes(false), "its messages wait for the next round");
        sweep.listed(None);
        assert!(sweep.is_over());
    }

    #[test]
    fn a_round_ends_only_with_a_sweep_that_began_without_workers() {
        for (is_idle, is_failing) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut sweep = Sweep::start(is_idle);
            assert!(!sweep.is_conclusive(), "no page was listed");
            sweep.takes(is_failing);
            sweep.listed(Some(LaneId(1)));
            sweep.listed(None);
            if is_failing {
                assert!(!sweep.is_conclusive(), "the failing lane was not listed");
                sweep.listed(None);
            }
            assert!(sweep.is_over());
            assert_eq!(sweep.is_conclusive(), is_idle, "its messages would be left: {is_failing}");
        }
    }
}
