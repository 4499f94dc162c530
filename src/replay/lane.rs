//! One lane's worker: claim, send, settle, pause, until the lane is empty or held, or the worker's turn is over.
//!
//! While the lane delivers and waits for the network more than it works, the worker is joined by others, each with a
//! batch of its own ([`concurrency`](crate::delivery::concurrency)). All of them end with the turn.

use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use tracing::error;

use super::batch::Batch;
use super::bounds;
use super::context::Replayer;
use super::lease::LeaseKeeper;
use super::sender::Sender;
use super::state::lock;
use super::throttle::{MessageQuota, PauseGate};
use crate::delivery::concurrency::{BatchTime, share_of};
use crate::delivery::fleet_dial::DialTake;
use crate::delivery::lane_health::{Decision, Event, LaneTurn};
use crate::memory::{Grant, Use};
use crate::message::Claimed;
use crate::store::{Claim, ClaimLimits, Hold, LaneId, Outcome, StoreError, WaitEnd, now_ms, since_boot};

/// A worker returns after this time even if messages are left, so that more lanes than workers all get their turn.
pub(super) const TURN: Duration = Duration::from_secs(1);
/// Bytes of bodies that one claim takes at most, unless a single message is larger.
const CLAIM_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Bytes of bodies that all claims take together, about: the more workers, the less each takes.
const CLAIMS_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The least that a claim may take.
const CLAIM_BYTES_MIN: u64 = 512 * 1024;

/// Returns how many bytes of bodies one claim takes at most beside this many workers.
pub(super) fn claim_bytes_max(workers: usize) -> u64 {
    (CLAIMS_BYTES_MAX / workers.max(1) as u64).clamp(CLAIM_BYTES_MIN, CLAIM_BYTES_MAX)
}

/// One worker's turn with a lane.
pub(super) struct LaneWorker<'a> {
    pub sender: Sender<'a>,
    pub gate: &'a PauseGate,
    pub quota: &'a MessageQuota,
    /// The lane's circuit breaker.
    pub turn: LaneTurn,
    /// Bytes of bodies that one claim takes at most, unless a single message is larger.
    pub claim_bytes_max: u64,
}

impl<'a> LaneWorker<'a> {
    /// Runs, and survives a panic: the lane is held and the others are replayed.
    ///
    /// The claimed messages stay in flight until the next round begins.
    ///
    /// # Errors
    ///
    /// The error that keeps the store from being used.
    pub(super) fn run_caught(self) -> Result<(), StoreError> {
        let crew = Crew { started: Instant::now(), failed: Mutex::new(None) };
        let result = std::thread::scope(|scope| self.work_caught(scope, &crew));
        result.and(crew.failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err))
    }

    fn work_caught<'s>(self, scope: &'s Scope<'s, '_>, crew: &'s Crew) -> Result<(), StoreError>
    where
        'a: 's,
    {
        let (replay, keeper, lane, turn) =
            (self.sender.replay, self.sender.keeper, self.sender.work.id, self.turn.clone());
        caught(|| self.work(scope, crew)).unwrap_or_else(|| {
            replay.state.end_turn(lane, &turn);
            hold_after_panic(replay, keeper, lane)
        })
    }

    fn work<'s>(mut self, scope: &'s Scope<'s, '_>, crew: &'s Crew) -> Result<(), StoreError>
    where
        'a: 's,
    {
        let result = loop {
            match self.replay_batch() {
                Ok(Continue(())) if crew.started.elapsed() < TURN => self.be_joined(scope, crew),
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.sender.replay.state.end_turn(self.sender.work.id, &self.turn);
        result
    }

    /// Starts as many workers beside this one as the lane may have. A pace that all lanes share is for one.
    fn be_joined<'s>(&self, scope: &'s Scope<'s, '_>, crew: &'s Crew)
    where
        'a: 's,
    {
        if self.is_pace_shared() {
            return;
        }
        let (replay, keeper, work) = (self.sender.replay, self.sender.keeper, &self.sender.work);
        while let Some(turn) = replay.state.join(work.id, &self.turn, replay.workers_max) {
            let sender = Sender { replay, keeper, work: work.clone() };
            let joined = turn.clone();
            let worker = LaneWorker { sender, turn, ..*self };
            let started = std::thread::Builder::new().spawn_scoped(scope, move || {
                if let Err(error) = worker.work_caught(scope, crew) {
                    lock(&crew.failed).get_or_insert(error);
                }
            });
            if started.is_err() {
                // The system has no thread for it, and this one goes on alone.
                return replay.state.end_turn(work.id, &joined);
            }
        }
    }

    /// Replays one batch, and returns whether the lane may have another one.
    fn replay_batch(&mut self) -> Result<ControlFlow<()>, StoreError> {
        let replay = self.sender.replay;
        replay.shutdown.beat();
        if replay.pause(self.gate.opens_in()) || !self.sender.keeper.may_send() {
            return Ok(Break(()));
        }
        let started = Instant::now();
        let (most, turns) =
            replay.state.with(self.sender.work.id, |health| (health.batch_max(&self.turn), health.turns()));
        let taken = match replay.settings.dial.as_ref().map(|dial| dial.take(share_of(most, turns), since_boot())) {
            Some(DialTake::Wait(wait)) => return Ok(self.wait_for_dial(wait)),
            Some(DialTake::May(taken)) => taken,
            None => most,
        };
        // The memory is held until the batch is settled.
        let claim = self.claim_next(most.min(taken), turns);
        let count = claim.as_ref().map_or(0, |(claimed, _)| claimed.len());
        if let Some(dial) = &replay.settings.dial {
            dial.correct(taken, count);
        }
        let (claimed, _memory) = claim?;
        if claimed.is_empty() {
            return Ok(Break(()));
        }
        self.turn.begin_batch(most);
        let mut batch = Batch::new(&self.sender, &mut self.turn);
        if let Err(error) = batch.send_all(claimed).and_then(|()| batch.conclude_failures()) {
            // What the server has decided is not sent again.
            replay.state.keep_unsettled(&batch.outcomes);
            return Err(error);
        }
        let Batch { outcomes, delivered, halt, limited, waiting, .. } = batch;
        self.sender.settle(&outcomes)?;
        // What waits for a key, or for its next attempt, uses nothing of the user's limit.
        self.quota.give_back(outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed { .. })).count());

        let time = BatchTime { total: started.elapsed(), waiting };
        replay.state.with(self.sender.work.id, |health| {
            health.timed(&self.turn, time);
            health.answered(&mut self.turn, waiting, count);
        });
        let (halted, limited) = (halt.is_some(), !limited.is_empty());
        let settled = Event::BatchSettled { delivered: delivered > 0, halted, limited };
        if let Decision::Recover { closes, releases } = self.sender.on(&mut self.turn, settled) {
            if closes {
                self.sender.hold(None)?;
            }
            if let Some(deferred) = releases {
                let due = [(self.sender.work.id, WaitEnd::Delivery(deferred))];
                replay.store.make_due(&self.sender.keeper.lease, &due, now_ms())?;
            }
        }
        if halted {
            return Ok(Break(()));
        }
        self.pause(count);
        Ok(Continue(()))
    }

    /// Claims the next batch, of `most` messages at most, and the memory for it. `turns` workers share the lane's.
    fn claim_next(&self, most: usize, turns: usize) -> Result<(Vec<Claimed>, Option<Grant>), StoreError> {
        let (replay, lane) = (self.sender.replay, self.sender.work.id);
        // Messages that a killed replayer had in flight are claimed together, see `store::Replay::interrupted`.
        let interrupted = match replay.state.may_be_interrupted(lane) {
            true => replay.store.interrupted(lane)?,
            false => 0,
        };
        let share = (self.claim_bytes_max / turns.max(1) as u64).max(CLAIM_BYTES_MIN);
        let bytes_max = if interrupted > 0 { CLAIMS_BYTES_MAX } else { share };
        let wanted = self.quota.take(share_of(most, turns).max(interrupted), interrupted);
        if wanted == 0 {
            return Ok((Vec::new(), None));
        }
        let limits = ClaimLimits { messages_max: wanted, bytes_max };
        let (claimed, memory) = self.claim(limits, interrupted > 0)?;
        // Without memory nothing was claimed: the interrupted messages wait, and are still claimed together.
        if memory.is_some() {
            replay.state.claimed(lane);
        }
        self.quota.give_back(wanted - claimed.len());
        Ok((claimed, memory))
    }

    /// Claims messages once there is memory for them; what is not needed is returned at once.
    ///
    /// A message larger than a claim may be stays in the store until there is memory for it alone. A worker does not
    /// wait for that longer than its turn lasts, so that lanes with small messages get theirs.
    fn claim(&self, mut limits: ClaimLimits, is_whole: bool) -> Result<(Vec<Claimed>, Option<Grant>), StoreError> {
        let Sender { replay, keeper, work } = &self.sender;
        let started = Instant::now();
        let stops = || replay.shutdown.is_requested() || !keeper.may_send() || started.elapsed() >= TURN;
        let wait = |bytes| replay.memory.take(Use::Replay, bytes).unless(stops);
        let wanted = limits.bytes_max;
        let mut memory = match is_whole {
            true => wait(bounds::of_large(wanted)),
            false => {
                let (bytes, memory) = bounds::of_claim(wanted, replay.memory.bytes());
                limits.bytes_max = bytes;
                replay.memory.try_take(Use::Replay, memory).or_else(|| {
                    let (bytes, memory) = bounds::of_small_claim(wanted, replay.memory.bytes());
                    limits.bytes_max = bytes;
                    wait(memory)
                })
            }
        };
        while let Some(mut taken) = memory {
            let filter = &replay.settings.filter;
            match replay.store.claim(&keeper.lease, work.id, filter, limits, now_ms())? {
                Claim::Taken(claimed) => {
                    let bytes = claimed.iter().map(|message| bounds::of_message(&message.request.body)).sum::<u64>();
                    taken.shrink_to(bytes);
                    // Bodies compressed so well that they take more than their claim: they are in memory already.
                    taken.try_grow(bytes.saturating_sub(taken.bytes()));
                    return Ok((claimed, Some(taken)));
                }
                Claim::TooLarge { bytes } => {
                    drop(taken);
                    limits.bytes_max = bytes;
                    memory = wait(bounds::of_large(bytes));
                }
            }
        }
        Ok((Vec::new(), None))
    }

    /// Pauses as the pace asks: every lane if they share the pace, this lane alone otherwise.
    fn pause(&self, count: usize) {
        let pause = self.turn.pace().pause_after(count);
        if self.is_pace_shared() {
            self.gate.close_for(pause);
        } else if !pause.is_zero() {
            self.sender.replay.pause(pause);
        }
    }

    /// Waits for the fleet's dial, not longer than a turn lasts: it may change meanwhile.
    fn wait_for_dial(&self, wait: Duration) -> ControlFlow<()> {
        let stops = self.sender.replay.shutdown.sleep(wait.min(TURN));
        if stops || wait > TURN { Break(()) } else { Continue(()) }
    }

    fn is_pace_shared(&self) -> bool {
        self.sender.replay.settings.pace.is_shared()
    }
}

/// The workers of one turn.
struct Crew {
    started: Instant,
    /// The first error of the store that one met who joined.
    failed: Mutex<Option<StoreError>>,
}

/// Holds a lane whose replay panicked: it is retried later, and the others go on.
///
/// # Errors
///
/// The error that keeps the store from being used.
pub(super) fn hold_after_panic(
    replay: &Replayer<'_>,
    keeper: &LeaseKeeper<'_>,
    lane: LaneId,
) -> Result<(), StoreError> {
    error!(target: "replay_manager", "internal error while replaying a lane; its messages are kept");
    let retry_interval = i64::try_from(replay.settings.retry_interval.as_millis()).unwrap_or(i64::MAX);
    let hold = Hold::after_panic(now_ms().saturating_add(retry_interval));
    replay.store.hold(&keeper.lease, lane, Some(&hold))
}

/// Calls `work`, and returns `None` when it panics. Its values are not used again.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}
