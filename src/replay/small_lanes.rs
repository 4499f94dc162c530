//! Lanes with a few messages each, replayed together: claimed many in a commit, sent lane by lane by workers that they
//! share, settled many in a commit. A commit for each claim and each settle of every lane would cost thousands of syncs
//! for a backlog of thousands of lanes.
//!
//! ```text
//! waiting ─ claim (many lanes) ─▶ claimed ─ send (one lane) ─▶ answered ─ settle (many lanes) ─▶
//! ```
//!
//! # Invariants
//!
//! 1. *A lane is sent by one worker, as a batch of its own*: everything that [`Batch`] promises holds, and what must not
//!    be repeated is settled before its next request. Only the settle at the end of the batch waits for those of other
//!    lanes. Until then its messages are in flight, and the store gives out nothing that conflicts with them.
//! 2. *No lane waits for another's slow server*: a worker that waits for an answer holds its own lane only. The others
//!    are claimed, sent and settled by the other workers, and one more is added for each that waits
//!    ([`Stock::workers_wanted`]).
//! 3. *What is claimed is settled before the last worker ends*, unless the store fails.
//! 4. *A lane in trouble is replayed alone*, by a [`LaneWorker`](super::lane::LaneWorker): one that is held, limited or
//!    failed before, one that panicked, and one whose messages do not fit.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::error;

use super::batch::{Batch, Halt};
use super::bounds;
use super::context::Replayer;
use super::lane::{TURN, caught, hold_after_panic};
use super::lease::LeaseKeeper;
use super::sender::Sender;
use super::state::lock;
use crate::delivery::lane_health::{Decision, Event, LaneTurn};
use crate::delivery::pacing::{BATCH_DEFAULT, Pace};
use crate::memory::{Grant, Use};
use crate::message::{Claimed, MessageId};
use crate::monitor::Availability;
use crate::store::{ClaimLimits, LaneId, LaneWork, Outcome, StoreError, now_ms};

/// The most lanes of one claim: a commit of their messages takes some ten milliseconds.
const CLAIMED_MAX: usize = 128;
/// The most messages of one claim.
const MESSAGES_MAX: usize = 1000;
/// Bytes of bodies that one claim takes at most.
const BYTES_MAX: u64 = 1024 * 1024;
/// Claimed lanes with which the workers are busy while the next ones are claimed.
const AHEAD: usize = 64;
/// Answered lanes that are settled together even if others are still to be sent.
const SETTLED: usize = 128;
/// How many workers there are while the server answers at once. They have their places before other lanes get theirs.
pub(super) const WORKERS: usize = 4;
/// A worker that has waited for an answer for this long gets another one beside it.
const WAITS_AFTER: Duration = Duration::from_millis(10);
/// How often a worker that waits for the claim of another one looks whether to stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A lane whose messages are claimed. The memory is that of all lanes that were claimed with it.
struct ClaimedLane {
    work: LaneWork,
    claimed: Vec<Claimed>,
    _memory: Arc<Grant>,
}

/// A lane that was sent, and is not settled.
struct AnsweredLane<'r> {
    sender: Sender<'r>,
    turn: LaneTurn,
    outcomes: Vec<(MessageId, Outcome)>,
    settled: Event,
    /// Whether the claim left messages of the lane.
    has_more: bool,
    _memory: Arc<Grant>,
}

/// What a worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SharedStep {
    Claim,
    Send,
    Settle,
    /// Another worker claims.
    Wait,
    End,
}

/// How many lanes are where. Pure.
#[derive(Clone, Copy, Debug, Default)]
struct Stock {
    waiting: usize,
    claimed: usize,
    answered: usize,
    is_claiming: bool,
    is_settling: bool,
}

impl Stock {
    /// Returns what a worker does next; `may_claim`: its turn is not over, and nothing asks it to stop.
    fn next(&self, may_claim: bool) -> SharedStep {
        if self.answered >= SETTLED && !self.is_settling {
            SharedStep::Settle
        } else if may_claim && !self.is_claiming && self.waiting > 0 && self.claimed < AHEAD {
            SharedStep::Claim
        } else if self.claimed > 0 {
            SharedStep::Send
        } else if self.answered > 0 && !self.is_settling {
            SharedStep::Settle
        } else if may_claim && self.is_claiming {
            SharedStep::Wait
        } else {
            SharedStep::End
        }
    }

    /// Returns how many workers there should be, if this many wait for an answer.
    fn workers_wanted(&self, waiting_for_answers: usize) -> usize {
        match self.waiting + self.claimed {
            0 => 0,
            lanes => WORKERS.min(lanes) + waiting_for_answers,
        }
    }
}

#[derive(Default)]
struct LanesByStep<'r> {
    waiting: VecDeque<LaneWork>,
    claimed: VecDeque<ClaimedLane>,
    answered: Vec<AnsweredLane<'r>>,
    is_claiming: bool,
    is_settling: bool,
    /// The lane that each worker sends, and since when.
    sending: HashMap<u64, (LaneId, Instant)>,
    /// Lanes that have to be replayed alone in this round.
    alone: HashSet<LaneId>,
}

impl LanesByStep<'_> {
    fn stock(&self) -> Stock {
        Stock {
            waiting: self.waiting.len(),
            claimed: self.claimed.len(),
            answered: self.answered.len(),
            is_claiming: self.is_claiming,
            is_settling: self.is_settling,
        }
    }
}

/// The lanes of a round that are replayed together. One mutex; it is never held over I/O.
pub(super) struct SmallLanes<'r> {
    replay: &'r Replayer<'r>,
    keeper: &'r LeaseKeeper<'r>,
    shared: Mutex<LanesByStep<'r>>,
    /// Notified when a claim ends.
    claimed: Condvar,
}

impl<'r> SmallLanes<'r> {
    /// Returns none yet.
    pub(super) fn new(replay: &'r Replayer<'r>, keeper: &'r LeaseKeeper<'r>) -> Self {
        Self { replay, keeper, shared: Mutex::default(), claimed: Condvar::new() }
    }

    /// Takes a due lane, if it has a few messages and no trouble; returns it otherwise.
    ///
    /// A limit on the number of messages, and a pace that the user set, apply to each lane as it is claimed.
    pub(super) fn take(&self, work: LaneWork) -> Option<LaneWork> {
        let settings = self.replay.settings;
        let is_small = work.failed < BATCH_DEFAULT as u64 && work.body_bytes <= BYTES_MAX / 8;
        let is_free = settings.limit.is_none() && settings.pace.batch.is_none() && settings.pace.delay.is_none();
        let is_well = work.holds().next().is_none()
            && !self.replay.connection.lanes().is_failing(&work.lane)
            && self.replay.state.is_carefree(work.id);
        let mut shared = lock(&self.shared);
        if !(is_small && is_free && is_well) || shared.alone.contains(&work.id) {
            return Some(work);
        }
        shared.waiting.push_back(work);
        None
    }

    /// Returns whether lanes wait to be claimed.
    pub(super) fn any_waiting(&self) -> bool {
        !lock(&self.shared).waiting.is_empty()
    }

    /// Returns the lane that each worker sends, and since when.
    pub(super) fn sending(&self) -> HashMap<u64, (LaneId, Instant)> {
        lock(&self.shared).sending.clone()
    }

    /// Returns how many workers there should be.
    pub(super) fn workers_wanted(&self, now: Instant) -> usize {
        let shared = lock(&self.shared);
        let waits = |since: Instant| now.saturating_duration_since(since) >= WAITS_AFTER;
        let waiting = shared.sending.values().filter(|(_, since)| waits(*since)).count();
        shared.stock().workers_wanted(waiting)
    }

    /// Works until nothing is left to do, or for a turn; then others claim.
    ///
    /// # Errors
    ///
    /// What keeps the store from being used.
    pub(super) fn work(&self, number: u64) -> Result<(), StoreError> {
        let started = Instant::now();
        loop {
            self.replay.shutdown.beat();
            match self.next(started) {
                SharedStep::Claim => self.claim(started)?,
                SharedStep::Send => self.send(number)?,
                SharedStep::Settle => self.settle()?,
                SharedStep::Wait | SharedStep::End => return Ok(()),
            }
        }
    }

    /// Settles what no worker settles, because all of them wait for answers.
    ///
    /// # Errors
    ///
    /// What keeps the store from being used.
    pub(super) fn settle_leftovers(&self) -> Result<(), StoreError> {
        match lock(&self.shared).stock() {
            Stock { answered: 0, .. } | Stock { is_settling: true, .. } => return Ok(()),
            _ => {}
        }
        self.settle()
    }

    /// Returns what to do next, and waits while another worker claims.
    fn next(&self, started: Instant) -> SharedStep {
        let mut shared = lock(&self.shared);
        loop {
            let may_claim = started.elapsed() < TURN && !self.stops();
            match shared.stock().next(may_claim) {
                SharedStep::Wait => {
                    let waited = self.claimed.wait_timeout(shared, STOP_CHECK_INTERVAL);
                    shared = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                step => return step,
            }
        }
    }

    /// Returns whether nothing more is sent.
    fn stops(&self) -> bool {
        self.replay.shutdown.is_requested() || !self.keeper.may_send() || self.is_unavailable()
    }

    fn is_unavailable(&self) -> bool {
        self.replay.connection.availability() == Availability::Unavailable
    }

    /// Claims the next lanes. If that panics, they are replayed alone: then one lane is to blame.
    fn claim(&self, started: Instant) -> Result<(), StoreError> {
        let (bytes_max, bytes_in_memory) = bounds::of_small_claim(BYTES_MAX, self.replay.memory.bytes());
        let limits = ClaimLimits { messages_max: MESSAGES_MAX, bytes_max, behind_creates: false };
        let lanes = {
            let mut shared = lock(&self.shared);
            if shared.is_claiming {
                return Ok(());
            }
            shared.is_claiming = true;
            first_within(&mut shared.waiting, limits)
        };
        let stops = || started.elapsed() >= TURN || self.stops();
        let memory = self.replay.memory.take(Use::Replay, bytes_in_memory).unless(stops);
        let ids: Vec<LaneId> = lanes.iter().map(|work| work.id).collect();
        let (store, lease) = (self.replay.store, &self.keeper.lease);
        let claim = || store.claim_lanes(lease, &ids, &self.replay.settings.filter, limits, now_ms());
        let claimed = memory.is_some().then(|| caught(claim));

        let mut shared = lock(&self.shared);
        shared.is_claiming = false;
        self.claimed.notify_all();
        let claimed = match claimed {
            None => {
                lanes.into_iter().rev().for_each(|work| shared.waiting.push_front(work));
                return Ok(());
            }
            Some(None) => {
                error!(target: "replay_manager", "internal error while claiming; the lanes are replayed one by one");
                Vec::new()
            }
            Some(Some(claimed)) => claimed?,
        };
        let is_first_too_much = claimed.is_empty();
        shared.alone.extend(ids.first().filter(|_| is_first_too_much));
        self.distribute(&mut shared, lanes, claimed, memory);
        Ok(())
    }

    /// Gives claimed lanes to the workers; those that were not come to wait again.
    fn distribute(
        &self,
        shared: &mut LanesByStep<'r>,
        lanes: Vec<LaneWork>,
        claimed: Vec<(LaneId, Vec<Claimed>)>,
        memory: Option<Grant>,
    ) {
        let Some(mut memory) = memory else { return };
        let bodies = claimed.iter().flat_map(|(_, claimed)| claimed);
        let bytes = bodies.map(|message| bounds::of_message(&message.request.body)).sum::<u64>();
        memory.shrink_to(bytes);
        // Bodies compressed so well that they take more than their claim: they are in memory already.
        memory.try_grow(bytes.saturating_sub(memory.bytes()));
        let memory = Arc::new(memory);
        let mut claimed = claimed.into_iter();
        let mut left = Vec::new();
        for work in lanes {
            match claimed.next() {
                Some((id, claimed)) => {
                    self.replay.state.claimed(id);
                    if !claimed.is_empty() {
                        shared.claimed.push_back(ClaimedLane { work, claimed, _memory: memory.clone() });
                    }
                }
                None => left.push(work),
            }
        }
        left.retain(|work| !shared.alone.contains(&work.id));
        left.into_iter().rev().for_each(|work| shared.waiting.push_front(work));
    }

    /// Sends the next claimed lane.
    fn send(&self, number: u64) -> Result<(), StoreError> {
        let lane = {
            let mut shared = lock(&self.shared);
            let Some(lane) = shared.claimed.pop_front() else { return Ok(()) };
            shared.sending.insert(number, (lane.work.id, Instant::now()));
            lane
        };
        let id = lane.work.id;
        let answered = caught(|| self.send_lane(lane));
        let mut shared = lock(&self.shared);
        shared.sending.remove(&number);
        match answered {
            Some(answered) => {
                shared.answered.push(answered?);
                Ok(())
            }
            None => {
                shared.alone.insert(id);
                drop(shared);
                hold_after_panic(self.replay, self.keeper, id)
            }
        }
    }

    fn send_lane(&self, lane: ClaimedLane) -> Result<AnsweredLane<'r>, StoreError> {
        let ClaimedLane { work, claimed, _memory } = lane;
        let (replay, keeper) = (self.replay, self.keeper);
        let settings = replay.settings;
        let mut turn = replay.state.begin_turn(&work, Pace::start(settings.pace), settings.breaker(), false);
        let has_more = (claimed.len() as u64) < work.failed;
        let sender = Sender { replay, keeper, work };
        turn.begin_batch(claimed.len());
        let mut batch = Batch::new(&sender, &mut turn);
        if self.is_unavailable() {
            batch.halt = Some(Halt::Unavailable);
        }
        batch.send_all(claimed)?;
        batch.conclude_failures()?;
        let Batch { outcomes, delivered, halt, limited, .. } = batch;
        let (halted, limited) = (halt.is_some(), !limited.is_empty());
        let settled = Event::BatchSettled { delivered: delivered > 0, halted, limited };
        Ok(AnsweredLane { sender, turn, outcomes, settled, has_more, _memory })
    }

    /// Settles everything that is answered.
    fn settle(&self) -> Result<(), StoreError> {
        let answered = {
            let mut shared = lock(&self.shared);
            if shared.is_settling {
                return Ok(());
            }
            shared.is_settling = true;
            std::mem::take(&mut shared.answered)
        };
        let settled = caught(|| self.settle_lanes(answered));
        lock(&self.shared).is_settling = false;
        settled.unwrap_or_else(|| {
            error!(target: "replay_manager", "internal error while settling; the messages are sent again");
            Ok(())
        })
    }

    fn settle_lanes(&self, answered: Vec<AnsweredLane<'r>>) -> Result<(), StoreError> {
        let (store, lease, state) = (self.replay.store, &self.keeper.lease, self.replay.state);
        let mut outcomes = Vec::new();
        let mut lanes = Vec::with_capacity(answered.len());
        for mut lane in answered {
            let begin = outcomes.len();
            outcomes.append(&mut lane.outcomes);
            lanes.push((lane, begin..outcomes.len()));
        }
        if let Err(error) = store.settle(lease, &outcomes) {
            state.keep_unsettled(&outcomes);
            return Err(error);
        }
        for (lane, its) in lanes {
            let AnsweredLane { sender, mut turn, settled, has_more, .. } = lane;
            sender.settled(&outcomes[its])?;
            if let Decision::Recover { closes, releases } = sender.on(&mut turn, settled) {
                if closes {
                    sender.hold(None)?;
                }
                // Nothing else of the lane waited.
                if let Some(deferred) = releases.filter(|deferred| has_more || !deferred.is_empty()) {
                    store.make_due(lease, sender.work.id, &deferred)?;
                }
            }
            state.end_only_turn(sender.work.id, &turn);
        }
        Ok(())
    }
}

/// Takes the first of these lanes, as many as fit: the messages that they had when they were listed.
fn first_within(waiting: &mut VecDeque<LaneWork>, limits: ClaimLimits) -> Vec<LaneWork> {
    let (mut messages, mut bytes) = (0, 0);
    let fits = |work: &&LaneWork| {
        messages += work.failed;
        bytes += work.body_bytes;
        messages < limits.messages_max as u64 && bytes <= limits.bytes_max
    };
    let count = waiting.iter().take(CLAIMED_MAX).take_while(fits).count();
    waiting.drain(..count.max(1).min(waiting.len())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Lane;

    fn work(lane: i64, failed: u64, body_bytes: u64) -> LaneWork {
        LaneWork {
            id: LaneId(lane),
            lane: Lane::default(),
            failed,
            body_bytes,
            due_at_ms: 0,
            hold: None,
            limits: Vec::new(),
            waits_for: None,
        }
    }

    #[test]
    fn a_claim_takes_lanes_in_order_as_far_as_they_fit() {
        let limits = ClaimLimits { messages_max: 10, bytes_max: 100, behind_creates: false };
        for (lanes, expected, what) in [
            (vec![(3, 10), (3, 10), (3, 10), (3, 10)], 3, "too many messages"),
            (vec![(1, 60), (1, 60)], 1, "too many bytes"),
            (vec![(20, 200), (1, 1)], 1, "one that does not fit is tried alone"),
            (vec![], 0, "none"),
        ] {
            let mut waiting: VecDeque<LaneWork> = (1_i64..).zip(lanes).map(|(id, (n, b))| work(id, n, b)).collect();
            let all = waiting.len();
            let taken = first_within(&mut waiting, limits);
            assert_eq!((taken.len(), waiting.len()), (expected, all - expected), "{what}");
            assert!(taken.iter().zip(1..).all(|(work, id)| work.id == LaneId(id)), "{what}");
        }
        let mut many: VecDeque<LaneWork> = (0..1000).map(|id| work(id, 1, 1)).collect();
        let limits = ClaimLimits { messages_max: MESSAGES_MAX, bytes_max: BYTES_MAX, behind_creates: false };
        assert_eq!(first_within(&mut many, limits).len(), CLAIMED_MAX);
    }

    #[test]
    fn a_worker_is_added_for_each_that_waits_for_an_answer() {
        let stock = Stock { waiting: 1000, claimed: 50, ..Stock::default() };
        assert_eq!((stock.workers_wanted(0), stock.workers_wanted(4)), (WORKERS, WORKERS + 4));
        assert_eq!(Stock { claimed: 2, ..Stock::default() }.workers_wanted(0), 2, "no more than lanes");
        assert_eq!(Stock { answered: 9, ..Stock::default() }.workers_wanted(5), 0, "nothing is left to send");
    }

    /// A worker in the middle of a step, with the lanes that it has.
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Idle,
        In(SharedStep, usize),
        Ended,
    }

    proptest! {
        #[test]
        fn whatever_worker_is_faster_every_claimed_lane_is_settled(
            lanes in 0_usize..1000,
            workers in 1_usize..6,
            picks in prop::collection::vec((0_usize..6, 0_u8..8), 0..2000),
        ) {
            let mut stock = Stock { waiting: lanes, ..Stock::default() };
            let mut at = vec![At::Idle; workers];
            let (mut settled, mut commits) = (0, 0);
            let all_in_turn = (0..100_000_usize).map(|n| (n, 1));
            for (pick, luck) in picks.into_iter().chain(all_in_turn) {
                if at.iter().all(|worker| *worker == At::Ended) {
                    break;
                }
                // The turn of some is over.
                let worker = &mut at[pick % workers];
                *worker = match *worker {
                    At::Idle => match stock.next(luck > 0) {
                        SharedStep::Claim => {
                            let count = stock.waiting.min(CLAIMED_MAX);
                            (stock.waiting, stock.is_claiming) = (stock.waiting - count, true);
                            At::In(SharedStep::Claim, count)
                        }
                        SharedStep::Send => {
                            stock.claimed -= 1;
                            At::In(SharedStep::Send, 1)
                        }
                        SharedStep::Settle => {
                            prop_assert!(!stock.is_settling, "two workers settle the same");
                            stock.is_settling = true;
                            At::In(SharedStep::Settle, std::mem::take(&mut stock.answered))
                        }
                        SharedStep::Wait => At::Idle,
                        SharedStep::End => At::Ended,
                    },
                    At::In(step, count) => {
                        match step {
                            SharedStep::Claim => (stock.claimed, stock.is_claiming) = (stock.claimed + count, false),
                            SharedStep::Send => stock.answered += count,
                            _ => (settled, stock.is_settling) = (settled + count, false),
                        }
                        commits += usize::from(step != SharedStep::Send);
                        At::Idle
                    }
                    At::Ended => At::Ended,
                };
            }
            prop_assert!(at.iter().all(|worker| *worker == At::Ended), "a worker waits for ever");
            prop_assert_eq!((stock.claimed, stock.answered), (0, 0), "claimed lanes are left in flight");
            prop_assert_eq!(settled + stock.waiting, lanes);
            prop_assert!(commits <= 2 + 2 * lanes.div_ceil(CLAIMED_MAX) * (workers + 1), "{} commits", commits);
        }
    }
}
