//! One lane's worker: claim, send, settle, pause, until the lane is empty, held, or its turn is over.

use std::time::{Duration, Instant};

use tracing::{error, info};

use super::batch::{Batch, Halt};
use super::bounds;
use super::probes::WINDOW_AFTER_SILENCE;
use super::{Budget, CLAIMS_BYTES_MAX, Gate, LeaseKeeper, Replay, now_ms};
use crate::delivery::pacing::{BatchEnd, Pace};
use crate::memory::{Grant, Use};
use crate::message::{Claimed, MessageId};
use crate::store::{Claim, ClaimLimits, Hold, LaneId, LaneWork, Outcome, StoreError};

/// A worker comes back after this long even if more waits, so that more lanes than workers all get their turn.
const TURN: Duration = Duration::from_secs(1);
pub(super) struct LaneWorker<'a> {
    pub replay: &'a Replay<'a>,
    pub keeper: &'a LeaseKeeper<'a>,
    pub gate: &'a Gate,
    pub budget: &'a Budget,
    pub pace: Pace,
    /// Bytes of bodies that one claim takes at most, unless a single message is larger.
    pub claim_bytes_max: u64,
    /// Whether another worker of the lane waits for an answer.
    pub is_extra: bool,
    /// Whether messages were let go that another process had put back.
    pub has_made_due: bool,
    pub work: LaneWork,
}

pub(super) struct LaneEnd {
    pub lane: LaneId,
    pub pace: Pace,
    pub result: Result<(), StoreError>,
}

/// Whether the lane goes on after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    GoOn,
    LaneDone,
}

impl LaneWorker<'_> {
    /// Runs, and survives a fault of our own: the lane is held and the others go on.
    ///
    /// What it had claimed stays in flight until the next round begins.
    pub fn run_caught(self) -> LaneEnd {
        let (replay, keeper, lane, pace) = (self.replay, self.keeper, self.work.id, self.pace);
        caught(|| self.run()).unwrap_or_else(|| {
            error!(target: "replay_manager", "replaying a lane failed by a fault of opik-offline's own, nothing is lost");
            let retry_interval = i64::try_from(replay.settings.retry_interval.as_millis()).unwrap_or(i64::MAX);
            let hold = Hold {
                until_ms: now_ms().saturating_add(retry_interval),
                reason: "opik-offline failed to replay it by a fault of its own, see its log".to_owned(),
                probe: true,
                status: None,
                bucket: None,
            };
            LaneEnd { lane, pace, result: replay.store.hold(&keeper.lease, lane, Some(&hold)) }
        })
    }

    fn run(mut self) -> LaneEnd {
        let started = Instant::now();
        let result = loop {
            match self.step() {
                Ok(Step::GoOn) if started.elapsed() < TURN => {}
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        LaneEnd { lane: self.work.id, pace: self.pace, result }
    }

    /// Replays one batch.
    fn step(&mut self) -> Result<Step, StoreError> {
        let replay = self.replay;
        replay.shutdown.beat();
        if replay.shutdown.sleep(self.gate.opens_in()) || !self.keeper.may_send() {
            return Ok(Step::LaneDone);
        }
        // A lane that was held for its key or its server lets one message try before the rest follows.
        let is_probe = self.work.hold.as_ref().is_some_and(|hold| hold.probe);
        let window = if is_probe { 1 } else { replay.probes.window(self.work.id).min(self.pace.batch()) };
        let window = if self.is_extra { window.min(WINDOW_AFTER_SILENCE) } else { window };
        // What a killed replayer had in flight is claimed as a whole, see `Store::interrupted`.
        let again = match replay.probes.may_be_interrupted(self.work.id) {
            true => replay.store.interrupted(self.work.id)?,
            false => 0,
        };
        let bytes_max = if again > 0 { CLAIMS_BYTES_MAX } else { self.claim_bytes_max };
        let wanted = self.budget.take(window.max(again));
        let (claimed, _memory) = match wanted {
            0 => (Vec::new(), None),
            _ => self.claim(wanted, bytes_max, again > 0)?,
        };
        if wanted > 0 {
            replay.probes.claimed(self.work.id);
        }
        self.budget.give_back(wanted - claimed.len());
        if claimed.is_empty() {
            return Ok(Step::LaneDone);
        }

        let count = claimed.len();
        let mut batch = Batch::new(self);
        batch.send_all(claimed)?;
        batch.count_retries()?;
        let Batch { outcomes, delivered, halt, faltered, limited, .. } = batch;
        self.settle(&outcomes)?;

        if delivered > 0 {
            if self.work.hold.take().is_some() && halt != Some(Halt::Held) {
                replay.store.hold(&self.keeper.lease, self.work.id, None)?;
            }
            let waiting = replay.probes.take_waiting(self.work.id);
            if !waiting.is_empty() || !self.has_made_due {
                replay.store.make_due(&self.keeper.lease, self.work.id, &waiting)?;
                self.has_made_due = true;
            }
        }
        if halt.is_none() && !faltered {
            replay.probes.batch_passed(self.work.id, self.pace.batch());
        }
        let keeps_up = halt.is_none() && limited.is_empty();
        self.pace = self.pace.after(if keeps_up { BatchEnd::KeptUp } else { BatchEnd::Strained });
        if halt.is_some() {
            return Ok(Step::LaneDone);
        }
        self.pause(count);
        Ok(Step::GoOn)
    }

    /// Claims messages, after memory was taken for them; what is not needed is given back at once.
    ///
    /// One that is larger than a claim may be stays in the store until there is memory for it alone. A worker does not
    /// wait for that longer than its turn lasts, so that lanes with small messages get theirs.
    fn claim(
        &self,
        messages_max: usize,
        bytes_max: u64,
        is_whole: bool,
    ) -> Result<(Vec<Claimed>, Option<Grant>), StoreError> {
        let replay = self.replay;
        let started = Instant::now();
        let stops = || replay.shutdown.is_requested() || !self.keeper.may_send() || started.elapsed() >= TURN;
        let wait = |bytes| replay.memory.take(Use::Replay, bytes).unless(stops);
        let (bytes_max, mut memory) = match is_whole {
            true => (bytes_max, wait(bounds::of_large(bytes_max))),
            false => {
                let (bytes, memory) = bounds::of_claim(bytes_max, replay.memory.bytes());
                match replay.memory.try_take(Use::Replay, memory) {
                    Some(memory) => (bytes, Some(memory)),
                    None => {
                        let (bytes, memory) = bounds::of_small_claim(bytes_max, replay.memory.bytes());
                        (bytes, wait(memory))
                    }
                }
            }
        };
        let mut limits = ClaimLimits { messages_max, bytes_max };
        while let Some(mut taken) = memory {
            let (lease, filter) = (&self.keeper.lease, &replay.settings.filter);
            match replay.store.claim_within(lease, self.work.id, filter, limits, now_ms())? {
                Claim::Taken(claimed) => {
                    let bytes = claimed.iter().map(|message| bounds::of_message(&message.request.body)).sum::<u64>();
                    taken.shrink_to(bytes);
                    // Bodies that are encoded so well that they take more than their claim: they are here already.
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

    /// Settles and counts. What the server has decided is remembered when the store can't take it: it is not sent again.
    pub fn settle(&self, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let replay = self.replay;
        if let Err(error) = replay.store.settle(&self.keeper.lease, outcomes) {
            replay.probes.decided(outcomes);
            return Err(error);
        }
        replay.probes.settled(outcomes);
        self.count(outcomes);
        if replay.probes.held_passed(self.work.id, outcomes) {
            let released = replay.store.release_held(&self.keeper.lease, self.work.id)?;
            info!(
                target: "replay_manager",
                lane = %self.work.lane, released,
                "the Opik server takes ids again that it had refused for their time: what was held is delivered"
            );
        }
        Ok(())
    }

    /// Pauses as the pace asks: everyone when the user set it, this lane alone otherwise.
    fn pause(&self, count: usize) {
        let pause = self.pace.pause_after(count);
        let settings = self.replay.settings.pace;
        if settings.batch.is_some() || settings.delay.is_some() {
            self.gate.close_for(pause);
        } else if !pause.is_zero() {
            self.replay.shutdown.sleep(pause);
        }
    }

    fn count(&self, outcomes: &[(MessageId, Outcome)]) {
        let of = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|(_, outcome)| wanted(outcome)).count() as u64;
        self.replay.metrics.messages_delivered.add(of(|outcome| matches!(outcome, Outcome::Delivered)));
        let rejected: usize = outcomes.iter().map(|(_, outcome)| outcome.rejected_messages()).sum();
        self.replay.metrics.messages_rejected.add(rejected as u64);
    }
}

/// Does this, or returns `None` when it panics. What it worked on is not used again.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}
