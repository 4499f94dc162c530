//! Which lane gets a worker, and how many at once. Pure: `now` is an argument.
//!
//! A lane has one worker, or shares some with other lanes that have a few messages; what joins a worker over a slow way
//! is bounded by [`super::state`]. A request may hang. Then the lane gets a few more workers, because a request that
//! hangs blocks only its own entities, and other lanes get workers beyond the normal number, up to a higher one.

use std::time::{Duration, Instant};

use crate::store::{LaneId, LaneWork, StoreError};

/// How many lanes are replayed concurrently.
const LANES_MAX: usize = 24;
/// The same, including those whose request has been open for longer than [`SLOW_AFTER`]: a server that hangs on some
/// lanes must not keep the others from being replayed.
const LANES_MAX_WITH_SLOW: usize = 48;
/// How many of these may be lanes whose last request failed.
const FAILING_LANES_MAX: usize = 36;
/// A worker that has been with its lane for this long waits for an answer: its turn is over after a second.
const SLOW_AFTER: Duration = Duration::from_secs(3);
/// How many workers a lane may have while its others wait for answers.
const WORKERS_OF_A_LANE_MAX: usize = 4;
/// How many such workers there are in all.
const EXTRA_WORKERS_MAX: usize = 16;

/// An event for the coordinator of a round.
pub(super) enum RoundEvent {
    /// A worker has ended, with this number and result.
    Ended(u64, Result<(), StoreError>),
    /// Fewer lanes wait than should while there are more.
    WantsLanes,
}

/// Which worker is with which lane.
pub(super) struct LaneWorkers {
    /// The most workers, including those that wait for answers.
    most: usize,
    /// The longest that a request takes, unless it is given more time than others.
    answer_timeout: Duration,
    busy: Vec<BusyWorker>,
    next_number: u64,
}

struct BusyWorker {
    number: u64,
    /// `None` for one that goes from lane to lane and is with none.
    lane: Option<LaneId>,
    since: Instant,
    is_failing: bool,
    is_extra: bool,
    /// Whether it goes from one lane with a few messages to the next.
    is_shared: bool,
}

impl LaneWorkers {
    /// Returns a set without busy workers, of this many at most.
    pub(super) fn new(most: usize, answer_timeout: Duration) -> Self {
        Self { most, answer_timeout, busy: Vec::new(), next_number: 0 }
    }

    /// Gives a due lane a worker if one more is allowed, and returns its number. `is_failing`: the lane's last request
    /// failed.
    pub(super) fn admit(&mut self, work: &LaneWork, is_failing: bool, now: Instant) -> Option<u64> {
        let is_slow = |worker: &BusyWorker| now.saturating_duration_since(worker.since) >= SLOW_AFTER;
        let count = |of: &dyn Fn(&BusyWorker) -> bool| self.busy.iter().filter(|worker| of(worker)).count();
        let here = count(&|worker| worker.lane == Some(work.id));
        let is_extra = here > 0;
        let may = if self.busy.len() >= self.most {
            false
        } else if is_extra {
            // A half-open lane has one message to send and no work for a second worker, unless that message is given
            // more time than others: the lane may have recovered meanwhile.
            let is_patient = |worker: &BusyWorker| now.saturating_duration_since(worker.since) > self.answer_timeout;
            here < WORKERS_OF_A_LANE_MAX
                && count(&|worker| worker.is_extra) < EXTRA_WORKERS_MAX
                && count(&|worker| worker.lane == Some(work.id) && !is_slow(worker)) == 0
                && (!work.hold.as_ref().is_some_and(|hold| hold.probe)
                    || count(&|worker| worker.lane == Some(work.id) && !is_patient(worker)) == 0)
        } else {
            self.may_have_lane(now) && !(is_failing && count(&|worker| worker.is_failing) >= FAILING_LANES_MAX)
        };
        let lane = Some(work.id);
        may.then(|| self.add(BusyWorker { number: 0, lane, since: now, is_failing, is_extra, is_shared: false }))
    }

    /// Admits a worker that goes from one lane with a few messages to the next, if one more is allowed, and returns its
    /// number. At most half of the places are for these, so that lanes that hang leave the other half to others.
    pub(super) fn admit_shared(&mut self, now: Instant) -> Option<u64> {
        let may = self.busy.len() < self.most && self.may_have_lane(now) && self.shared().count() < self.shared_max();
        let worker =
            BusyWorker { number: 0, lane: None, since: now, is_failing: false, is_extra: false, is_shared: true };
        may.then(|| self.add(worker))
    }

    /// Returns whether there are as many such workers as may be, and all of them wait for an answer that does not come.
    pub(super) fn are_shared_stuck(&self, now: Instant) -> bool {
        let waits =
            |worker: &BusyWorker| worker.lane.is_some() && now.saturating_duration_since(worker.since) >= SLOW_AFTER;
        self.shared().count() >= self.shared_max() && self.shared().all(waits)
    }

    fn shared(&self) -> impl Iterator<Item = &BusyWorker> {
        self.busy.iter().filter(|worker| worker.is_shared)
    }

    fn shared_max(&self) -> usize {
        (self.most.min(LANES_MAX_WITH_SLOW) / 2).max(1)
    }

    /// Notes the lane that such a worker is with, and since when; `None`: with none.
    pub(super) fn moved(&mut self, number: u64, to: Option<(LaneId, Instant)>, now: Instant) {
        if let Some(worker) = self.busy.iter_mut().find(|worker| worker.number == number) {
            worker.lane = to.map(|(lane, _)| lane);
            worker.since = to.map_or(now, |(_, since)| since);
        }
    }

    /// Returns whether one more lane may have its first worker.
    fn may_have_lane(&self, now: Instant) -> bool {
        let is_slow = |worker: &BusyWorker| now.saturating_duration_since(worker.since) >= SLOW_AFTER;
        let count = |of: &dyn Fn(&BusyWorker) -> bool| self.busy.iter().filter(|worker| of(worker)).count();
        count(&|worker| !worker.is_extra && !is_slow(worker)) < LANES_MAX
            && count(&|worker| !worker.is_extra) < LANES_MAX_WITH_SLOW
    }

    fn add(&mut self, worker: BusyWorker) -> u64 {
        self.next_number += 1;
        self.busy.push(BusyWorker { number: self.next_number, ..worker });
        self.next_number
    }

    /// Notes that a worker's turn is over.
    pub(super) fn remove(&mut self, number: u64) {
        self.busy.retain(|worker| worker.number != number);
    }

    /// Returns whether a lane has a worker.
    pub(super) fn has(&self, lane: LaneId) -> bool {
        self.busy.iter().any(|worker| worker.lane == Some(lane))
    }

    /// Returns how many workers are busy.
    pub(super) fn len(&self) -> usize {
        self.busy.len()
    }

    /// Returns whether no worker is busy.
    pub(super) fn is_empty(&self) -> bool {
        self.busy.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Lane;
    use crate::store::Hold;

    fn work(lane: i64, is_half_open: bool) -> LaneWork {
        let hold = Hold { until_ms: 0, reason: String::new(), probe: true, status: None, bucket: None };
        LaneWork {
            id: LaneId(lane),
            lane: Lane::default(),
            failed: 1,
            body_bytes: 2,
            due_at_ms: 0,
            hold: is_half_open.then_some(hold),
            limits: Vec::new(),
            waits_for: None,
        }
    }

    fn admitted(workers: &mut LaneWorkers, lanes: std::ops::Range<i64>, is_failing: bool, now: Instant) -> usize {
        lanes.filter(|lane| workers.admit(&work(*lane, false), is_failing, now).is_some()).count()
    }

    #[test]
    fn lanes_that_wait_for_an_answer_keep_a_bounded_number_of_workers() {
        let start = Instant::now();
        let mut workers = LaneWorkers::new(100, Duration::from_secs(95));
        assert_eq!(admitted(&mut workers, 0..100, true, start), LANES_MAX);
        let later = start + SLOW_AFTER;
        assert_eq!(admitted(&mut workers, 100..200, true, later), FAILING_LANES_MAX - LANES_MAX);
        assert_eq!(admitted(&mut workers, 200..300, false, later), LANES_MAX_WITH_SLOW - FAILING_LANES_MAX);
        assert_eq!(admitted(&mut LaneWorkers::new(3, Duration::ZERO), 0..100, false, start), 3, "fewer if configured");
    }

    #[test]
    fn shared_workers_that_hang_leave_half_of_the_places_to_other_lanes() {
        let start = Instant::now();
        for (most, shared, others) in [(100, LANES_MAX_WITH_SLOW / 2, LANES_MAX_WITH_SLOW / 2), (5, 2, 3), (1, 1, 0)] {
            let mut workers = LaneWorkers::new(most, Duration::from_secs(95));
            let numbers: Vec<u64> = (0..100).filter_map(|_| workers.admit_shared(start)).collect();
            assert_eq!(numbers.len(), shared, "of {most}");
            let later = start + SLOW_AFTER;
            let lane_of = |number: u64| LaneId(1000 + i64::try_from(number).expect("a small number"));
            numbers[1..].iter().for_each(|number| workers.moved(*number, Some((lane_of(*number), start)), later));
            workers.moved(numbers[0], None, later);
            assert!(!workers.are_shared_stuck(later), "one is with no lane");
            workers.moved(numbers[0], Some((lane_of(numbers[0]), start)), later);
            assert!(workers.are_shared_stuck(later));
            assert_eq!(workers.admit_shared(later), None);
            assert_eq!(admitted(&mut workers, 0..100, false, later), others, "of {most}");
        }
    }

    #[test]
    fn a_lane_gets_another_worker_only_beside_requests_that_hang() {
        let start = Instant::now();
        let timeout = Duration::from_secs(95);
        let mut workers = LaneWorkers::new(100, timeout);
        let mut is_admitted = |is_half_open, now| workers.admit(&work(1, is_half_open), false, now).is_some();
        assert!(is_admitted(true, start));
        let slow = start + SLOW_AFTER;
        assert!(!is_admitted(false, start), "the first one gets answers");
        assert!(!is_admitted(true, slow), "a half-open lane has no work for a second one");
        assert!(is_admitted(true, start + timeout + SLOW_AFTER), "its probe is given more time than others");
    }
}
