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
//!    ([`Stock::workers_wanted`]). Once there are as many as may be, and all of them wait, the others are replayed alone
//!    ([`SmallLanes::give_back`]).
//! 3. *What is claimed is settled or given back unsent before the round ends*, unless the store fails. Then the server's
//!    decisions are remembered ([`ReplayState::keep_unsettled`](super::state::ReplayState::keep_unsettled)).
//! 4. *A lane in trouble is replayed alone*, by a [`LaneWorker`](super::lane::LaneWorker): one that is held, limited or
//!    failed before, one that panicked, and one whose messages do not fit.
//! 5. *A lane is claimed once at a time*: until it is sent it is `unsent`, from then until it is settled it has a turn,
//!    and in between it gets no other worker. A message that arrives meanwhile does not pass a create that the server
//!    may refuse.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tracing::error;

use super::batch::{Batch, Halt};
use super::bounds;
use super::context::Replayer;
use super::lane::{TURN, caught, hold_after_panic};
use super::lease::LeaseKeeper;
use super::sender::Sender;
use super::state::lock;
use super::sweep::LANES_LISTED;
use super::workers::RoundEvent;
use crate::delivery::lane_health::{Decision, Event, LaneTurn};
use crate::delivery::pacing::{BATCH_DEFAULT, Pace};
use crate::memory::{Grant, Use};
use crate::message::{Claimed, MessageId};
use crate::monitor::Availability;
use crate::store::{ClaimLimits, LaneId, LaneWork, Outcome, StoreError, WaitEnd, now_ms};

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
/// The workers claim less while others have waited for an answer for this long.
const HANGS_AFTER: Duration = TURN;
/// How long an answered lane waits for others to be settled with.
const SETTLES_AFTER: Duration = Duration::from_millis(100);
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
    /// Workers, and how many of them have waited for an answer for [`HANGS_AFTER`].
    workers: usize,
    hanging: usize,
    /// How long the first answered lane has waited to be settled.
    answered_for: Duration,
}

impl Stock {
    /// Returns what a worker does next; `may_send`: its turn is not over, and nothing asks it to stop. What is claimed
    /// then is left to others, or given back, and what is answered is settled with it.
    fn next(&self, may_send: bool) -> SharedStep {
        if self.answered >= SETTLED && !self.is_settling {
            SharedStep::Settle
        } else if may_send && !self.is_claiming && self.waiting > 0 && self.claimed < self.share_of(AHEAD) {
            SharedStep::Claim
        } else if self.claimed > 0 {
            if may_send { SharedStep::Send } else { SharedStep::End }
        } else if self.answered > 0 && !self.is_settling {
            SharedStep::Settle
        } else if may_send && self.is_claiming {
            SharedStep::Wait
        } else {
            SharedStep::End
        }
    }

    /// Returns this number, or as much less as the share of the workers that hang: claimed lanes are in flight, and only
    /// the others send them.
    fn share_of(&self, most: usize) -> usize {
        let workers = self.workers.max(1);
        (most * workers.saturating_sub(self.hanging) / workers).max(1)
    }

    /// Returns whether the coordinator settles what no worker has settled so far.
    fn is_left_over(&self) -> bool {
        self.answered > 0 && !self.is_settling && self.answered_for >= SETTLES_AFTER
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
    /// When the first of the answered lanes was.
    answered_since: Option<Instant>,
    workers: usize,
    /// The lane that each worker sends, and since when.
    sending: HashMap<u64, (LaneId, Instant)>,
    /// Lanes that wait, are being claimed, or are claimed: their turn has not begun.
    unsent: HashSet<LaneId>,
    /// Lanes that have to be replayed alone in this round.
    alone: HashSet<LaneId>,
}

impl<'r> LanesByStep<'r> {
    fn stock(&self, now: Instant) -> Stock {
        let hangs = |since: Instant| now.saturating_duration_since(since) >= HANGS_AFTER;
        Stock {
            waiting: self.waiting.len(),
            claimed: self.claimed.len(),
            answered: self.answered.len(),
            is_claiming: self.is_claiming,
            is_settling: self.is_settling,
            workers: self.workers,
            hanging: self.sending.values().filter(|(_, since)| hangs(*since)).count(),
            answered_for: self.answered_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
        }
    }

    fn take_answered(&mut self) -> Vec<AnsweredLane<'r>> {
        self.answered_since = None;
        std::mem::take(&mut self.answered)
    }
}

/// The lanes of a round that are replayed together. One mutex; it is never held over I/O.
pub(super) struct SmallLanes<'r> {
    replay: &'r Replayer<'r>,
    keeper: &'r LeaseKeeper<'r>,
    shared: Mutex<LanesByStep<'r>>,
    /// Notified when a claim ends.
    claimed: Condvar,
    /// Told when few lanes wait.
    coordinator: mpsc::Sender<RoundEvent>,
}

impl<'r> SmallLanes<'r> {
    /// Returns none yet.
    pub(super) fn new(
        replay: &'r Replayer<'r>,
        keeper: &'r LeaseKeeper<'r>,
        coordinator: mpsc::Sender<RoundEvent>,
    ) -> Self {
        Self { replay, keeper, shared: Mutex::default(), claimed: Condvar::new(), coordinator }
    }

    /// Takes a due lane, if it has a few messages and no trouble; returns it otherwise. One that is here already is not
    /// taken again, and not returned. `may_take`: whether it gets a worker here soon.
    ///
    /// A limit on the number of messages, a pace that all lanes share, and the fleet's dial apply to each lane as it is
    /// claimed.
    pub(super) fn take(&self, work: LaneWork, may_take: bool) -> Option<LaneWork> {
        let settings = self.replay.settings;
        let is_small = work.failed < BATCH_DEFAULT as u64 && work.body_bytes <= BYTES_MAX / 8;
        let is_free = settings.limit.is_none() && !settings.pace.is_shared() && !self.replay.is_limited();
        let is_well = work.holds().next().is_none() && !self.replay.connection.lanes().is_failing(&work.lane);
        let mut shared = lock(&self.shared);
        if shared.unsent.contains(&work.id) {
            return None;
        }
        // A turn begins under the lock.
        let is_carefree = self.replay.state.is_carefree(work.id) && !shared.alone.contains(&work.id);
        if !(may_take && is_small && is_free && is_well && is_carefree) {
            return Some(work);
        }
        shared.unsent.insert(work.id);
        shared.waiting.push_back(work);
        None
    }

    /// Returns how many lanes wait to be claimed.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.shared).waiting.len()
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
        shared.stock(now).workers_wanted(waiting)
    }

    /// Works until nothing is left to do, or for a turn; then others claim and send.
    ///
    /// # Errors
    ///
    /// The error that keeps the store from being used.
    pub(super) fn work(&self, number: u64) -> Result<(), StoreError> {
        lock(&self.shared).workers += 1;
        let result = self.work_for_a_turn(number);
        lock(&self.shared).workers -= 1;
        result
    }

    fn work_for_a_turn(&self, number: u64) -> Result<(), StoreError> {
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
    /// The error that keeps the store from being used.
    pub(super) fn settle_leftovers(&self, now: Instant) -> Result<(), StoreError> {
        let is_left_over = lock(&self.shared).stock(now).is_left_over();
        if is_left_over { self.settle() } else { Ok(()) }
    }

    /// Gives back unsent what is claimed, and returns the lanes that were to be sent.
    ///
    /// # Errors
    ///
    /// The error that keeps the store from being used: then the messages are in flight until the next round begins.
    pub(super) fn give_back(&self) -> Result<Vec<LaneWork>, StoreError> {
        let (claimed, waiting) = {
            let mut shared = lock(&self.shared);
            (std::mem::take(&mut shared.claimed), std::mem::take(&mut shared.waiting))
        };
        let unsent = || Outcome::Failed { next_attempt_at_ms: 0, counts: false, answer: None };
        let messages = claimed.iter().flat_map(|lane| &lane.claimed);
        let outcomes: Vec<_> = messages.map(|message| (message.id, unsent())).collect();
        claimed.iter().for_each(|lane| self.replay.state.gave_back(lane.work.id));
        let given = match outcomes.is_empty() {
            true => Some(Ok(())),
            false => caught(|| self.replay.store.settle(&self.keeper.lease, &outcomes)),
        };
        let lanes: Vec<LaneWork> = claimed.into_iter().map(|lane| lane.work).chain(waiting).collect();
        let mut shared = lock(&self.shared);
        for work in &lanes {
            shared.unsent.remove(&work.id);
        }
        given.unwrap_or_else(|| {
            error!(target: "replay_manager", "internal error; claimed messages wait for the next replay");
            Ok(())
        })?;
        Ok(lanes)
    }

    /// Settles what is answered and gives back what is claimed, once no worker is left. If the store fails, the
    /// server's decisions are remembered.
    ///
    /// # Errors
    ///
    /// The error that keeps the store from being used.
    pub(super) fn finish(&self) -> Result<(), StoreError> {
        let settled = self.settle();
        settled.and(self.give_back().map(drop))
    }

    /// Returns what to do next, and waits while another worker claims.
    fn next(&self, started: Instant) -> SharedStep {
        let mut shared = lock(&self.shared);
        loop {
            let may_send = started.elapsed() < TURN && !self.stops();
            match shared.stock(Instant::now()).next(may_send) {
                SharedStep::Wait => {
                    let waited = self.claimed.wait_timeout(shared, STOP_CHECK_INTERVAL);
                    shared = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                step => return step,
            }
        }
    }

    /// Returns whether nothing more is sent: a person may limit or hold it at any time, and then each lane is sent alone.
    fn stops(&self) -> bool {
        self.replay.shutdown.is_requested()
            || !self.keeper.may_send()
            || self.is_unavailable()
            || self.replay.is_limited()
    }

    fn is_unavailable(&self) -> bool {
        self.replay.connection.availability() == Availability::Unavailable
    }

    /// Claims the next lanes. If that panics, they are replayed alone: then one lane is to blame.
    fn claim(&self, started: Instant) -> Result<(), StoreError> {
        let (bytes_max, bytes_in_memory) = bounds::of_small_claim(BYTES_MAX, self.replay.memory.bytes());
        // A message may have arrived after an earlier one of its lane was sent.
        let limits = ClaimLimits { messages_max: MESSAGES_MAX, bytes_max };
        let lanes = {
            let mut shared = lock(&self.shared);
            if shared.is_claiming {
                return Ok(());
            }
            shared.is_claiming = true;
            let most = shared.stock(Instant::now()).share_of(CLAIMED_MAX);
            first_within(&mut shared.waiting, limits, most)
        };
        if self.waiting() < LANES_LISTED {
            // The coordinator has ended only when no worker is left.
            let _ = self.coordinator.send(RoundEvent::WantsLanes);
        }
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
                    if claimed.is_empty() {
                        shared.unsent.remove(&id);
                    } else {
                        shared.claimed.push_back(ClaimedLane { work, claimed, _memory: memory.clone() });
                    }
                }
                None => left.push(work),
            }
        }
        left.retain(|work| !shared.alone.contains(&work.id));
        let LanesByStep { unsent, alone, .. } = shared;
        unsent.retain(|lane| !alone.contains(lane));
        left.into_iter().rev().for_each(|work| shared.waiting.push_front(work));
    }

    /// Sends the next claimed lane.
    fn send(&self, number: u64) -> Result<(), StoreError> {
        let (state, settings) = (self.replay.state, self.replay.settings);
        let (lane, turn) = {
            let mut shared = lock(&self.shared);
            let Some(lane) = shared.claimed.pop_front() else { return Ok(()) };
            let turn = state.begin_turn(&lane.work, Pace::start(settings.pace), settings.breaker(), false);
            shared.unsent.remove(&lane.work.id);
            shared.sending.insert(number, (lane.work.id, Instant::now()));
            (lane, turn)
        };
        let id = lane.work.id;
        let answered = caught(|| self.send_lane(lane, turn.clone()));
        state.answered();
        let mut shared = lock(&self.shared);
        shared.sending.remove(&number);
        match answered {
            Some(Ok(answered)) => {
                shared.answered_since.get_or_insert_with(Instant::now);
                shared.answered.push(answered);
                Ok(())
            }
            Some(Err(error)) => {
                state.end_only_turn(id, &turn);
                Err(error)
            }
            None => {
                shared.alone.insert(id);
                drop(shared);
                state.end_only_turn(id, &turn);
                hold_after_panic(self.replay, self.keeper, id)
            }
        }
    }

    fn send_lane(&self, lane: ClaimedLane, mut turn: LaneTurn) -> Result<AnsweredLane<'r>, StoreError> {
        let ClaimedLane { work, claimed, _memory } = lane;
        let (replay, keeper) = (self.replay, self.keeper);
        let has_more = (claimed.len() as u64) < work.failed;
        let sender = Sender { replay, keeper, work };
        turn.begin_batch(claimed.len());
        let mut batch = Batch::new(&sender, &mut turn);
        if self.is_unavailable() {
            batch.halt = Some(Halt::Unavailable);
        }
        if let Err(error) = batch.send_all(claimed).and_then(|()| batch.conclude_failures()) {
            replay.state.keep_unsettled(&batch.outcomes);
            return Err(error);
        }
        let Batch { outcomes, delivered, halt, limited, .. } = batch;
        let (halted, limited) = (halt.is_some(), !limited.is_empty());
        let settled = Event::BatchSettled { delivered: delivered > 0, halted, limited };
        Ok(AnsweredLane { sender, turn, outcomes, settled, has_more, _memory })
    }

    /// Settles everything that is answered.
    fn settle(&self) -> Result<(), StoreError> {
        let answered = {
            let mut shared = lock(&self.shared);
            if shared.is_settling || shared.answered.is_empty() {
                return Ok(());
            }
            shared.is_settling = true;
            shared.take_answered()
        };
        let settled = caught(|| self.settle_lanes(answered));
        lock(&self.shared).is_settling = false;
        settled.unwrap_or_else(|| {
            error!(target: "replay_manager", "internal error while settling; the messages are sent again");
            Ok(())
        })
    }

    /// Settles these lanes in one commit, or one by one if that panics: then one of them is to blame, and is held.
    ///
    /// What a lane needs after the commit is done for all of them, whatever fails for one; the first error is returned.
    fn settle_lanes(&self, answered: Vec<AnsweredLane<'r>>) -> Result<(), StoreError> {
        let (store, lease, state) = (self.replay.store, &self.keeper.lease, self.replay.state);
        let mut outcomes = Vec::new();
        let mut lanes = Vec::with_capacity(answered.len());
        for mut lane in answered {
            let begin = outcomes.len();
            outcomes.append(&mut lane.outcomes);
            lanes.push((lane, begin..outcomes.len()));
        }
        let together = caught(|| store.settle(lease, &outcomes));
        if let Some(Err(error)) = together {
            state.keep_unsettled(&outcomes);
            lanes.iter().for_each(|(lane, _)| state.end_only_turn(lane.sender.work.id, &lane.turn));
            return Err(error);
        }
        let is_settled = together.is_some();
        let mut result = Ok(());
        for (mut lane, its) in lanes {
            let (id, its) = (lane.sender.work.id, &outcomes[its]);
            let concluded = caught(|| conclude(&mut lane, its, is_settled)).unwrap_or_else(|| {
                // What the server has decided is not sent again. Once it is settled, nothing is left to remember.
                if !is_settled {
                    state.keep_unsettled(its);
                }
                lock(&self.shared).alone.insert(id);
                hold_after_panic(self.replay, self.keeper, id)
            });
            state.end_only_turn(id, &lane.turn);
            result = result.and(concluded);
        }
        result
    }
}

/// Settles a lane, unless that is done, counts its outcomes, and takes their consequences for the lane.
fn conclude(
    lane: &mut AnsweredLane<'_>,
    outcomes: &[(MessageId, Outcome)],
    is_settled: bool,
) -> Result<(), StoreError> {
    let AnsweredLane { sender, turn, settled, has_more, .. } = lane;
    let counted = match is_settled {
        true => sender.settled(outcomes),
        false => sender.settle(outcomes),
    };
    counted.and(recover(sender, turn, *settled, *has_more))
}

/// Ends the hold of a lane that delivers again, and makes due what was deferred.
fn recover(sender: &Sender<'_>, turn: &mut LaneTurn, settled: Event, has_more: bool) -> Result<(), StoreError> {
    let Decision::Recover { closes, releases } = sender.on(turn, settled) else { return Ok(()) };
    if closes {
        sender.hold(None)?;
    }
    // Nothing else of the lane waited.
    match releases.filter(|deferred| has_more || !deferred.is_empty()) {
        Some(deferred) => {
            let ends = [(sender.work.id, WaitEnd::Delivery(deferred))];
            sender.replay.store.make_due(&sender.keeper.lease, &ends, now_ms())
        }
        None => Ok(()),
    }
}

/// Takes the first of these lanes, as many as fit: the messages that they had when they were listed.
fn first_within(waiting: &mut VecDeque<LaneWork>, limits: ClaimLimits, most: usize) -> Vec<LaneWork> {
    let (mut messages, mut bytes) = (0, 0);
    let fits = |work: &&LaneWork| {
        messages += work.failed;
        bytes += work.body_bytes;
        messages < limits.messages_max as u64 && bytes <= limits.bytes_max
    };
    let count = waiting.iter().take(most).take_while(fits).count();
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
        let limits = ClaimLimits { messages_max: 10, bytes_max: 100 };
        for (lanes, expected, what) in [
            (vec![(3, 10), (3, 10), (3, 10), (3, 10)], 3, "too many messages"),
            (vec![(1, 60), (1, 60)], 1, "too many bytes"),
            (vec![(20, 200), (1, 1)], 1, "one that does not fit is tried alone"),
            (vec![], 0, "none"),
        ] {
            let mut waiting: VecDeque<LaneWork> = (1_i64..).zip(lanes).map(|(id, (n, b))| work(id, n, b)).collect();
            let all = waiting.len();
            let taken = first_within(&mut waiting, limits, CLAIMED_MAX);
            assert_eq!((taken.len(), waiting.len()), (expected, all - expected), "{what}");
            assert!(taken.iter().zip(1..).all(|(work, id)| work.id == LaneId(id)), "{what}");
        }
        let mut many: VecDeque<LaneWork> = (0..1000).map(|id| work(id, 1, 1)).collect();
        let limits = ClaimLimits { messages_max: MESSAGES_MAX, bytes_max: BYTES_MAX };
        assert_eq!(first_within(&mut many, limits, CLAIMED_MAX).len(), CLAIMED_MAX);
        assert_eq!(first_within(&mut many, limits, 3).len(), 3);
    }

    #[test]
    fn a_worker_is_added_for_each_that_waits_for_an_answer() {
        let stock = Stock { waiting: 1000, claimed: 50, ..Stock::default() };
        assert_eq!((stock.workers_wanted(0), stock.workers_wanted(4)), (WORKERS, WORKERS + 4));
        assert_eq!(Stock { claimed: 2, ..Stock::default() }.workers_wanted(0), 2, "no more than lanes");
        assert_eq!(Stock { answered: 9, ..Stock::default() }.workers_wanted(5), 0, "nothing is left to send");
    }

    #[test]
    fn workers_claim_less_the_more_of_them_hang_and_nothing_when_their_turn_is_over() {
        let stock = |claimed, hanging| Stock { waiting: 9, claimed, workers: 8, hanging, ..Stock::default() };
        for (claimed, hanging, expected) in [
            (AHEAD - 1, 0, SharedStep::Claim),
            (AHEAD, 0, SharedStep::Send),
            (AHEAD / 2 - 1, 4, SharedStep::Claim),
            (AHEAD / 2, 4, SharedStep::Send),
            (0, 8, SharedStep::Claim),
            (1, 8, SharedStep::Send),
        ] {
            assert_eq!(stock(claimed, hanging).next(true), expected, "{claimed} claimed, {hanging} hang");
            assert_eq!(stock(claimed, hanging).next(false), SharedStep::End, "{claimed} claimed, {hanging} hang");
        }
    }

    #[test]
    fn an_answered_lane_is_settled_soon_even_if_others_hang() {
        let stock = Stock { answered: 1, answered_for: SETTLES_AFTER, ..Stock::default() };
        assert!(stock.is_left_over());
        assert!(!Stock { is_settling: true, ..stock }.is_left_over());
        assert!(!Stock { answered: 0, ..stock }.is_left_over());
        assert!(!Stock { answered_for: SETTLES_AFTER / 2, ..stock }.is_left_over(), "a worker settles it with others");
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
            // The coordinator starts others, or settles what is answered and gives back what is claimed.
            prop_assert!(stock.answered == 0 || stock.claimed > 0, "answered lanes are left in flight");
            prop_assert_eq!(settled + stock.waiting + stock.claimed + stock.answered, lanes);
            prop_assert!(commits <= 2 + 2 * lanes.div_ceil(CLAIMED_MAX) * (workers + 1), "{} commits", commits);
        }
    }
}
