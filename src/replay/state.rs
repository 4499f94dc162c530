//! A replayer's memory between its rounds: the health of each lane, outcomes that it could not settle, and the hold of
//! the store.
//!
//! In memory only: a new process starts empty. Messages and lanes are remembered by their ids, which are valid in one
//! store only, and the server's decision about a message is valid only while no other replayer works on the store. Both
//! are checked when a round begins ([`ReplayState::begin`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::hold_watch::HoldWatch;
use crate::delivery::id_window::{IdWindow, Outside};
use crate::delivery::lane_health::{BreakerSettings, Decision, Event, LaneHealth, LaneTurn};
use crate::delivery::pacing::Pace;
use crate::message::MessageId;
use crate::monitor::jitter;
use crate::store::{LaneId, LaneWork, LastAnswer, Outcome, ReplayRecord, StoreIdentity, since_boot};

/// With this many workers at work, no lane gets another one beside its own: a connection to the server and a batch in
/// memory each.
const SENDERS_TO_JOIN_MAX: usize = 8;
/// The most concurrent requests with an extended timeout: each may occupy a worker for minutes.
const PATIENT_MAX: usize = 8;
/// Unsettled outcomes remembered; messages beyond these are sent again, as upserts.
const UNSETTLED_MAX: usize = 10_000;

/// A replayer's memory between its rounds. One mutex; it is never held over I/O.
#[derive(Debug, Default)]
pub struct ReplayState {
    remembered: Mutex<Remembered>,
    hold: HoldWatch,
}

#[derive(Debug, Default)]
struct Remembered {
    /// The store of the last round, and the epoch of its lease.
    round: Option<(StoreIdentity, i64)>,
    lanes: HashMap<LaneId, LaneHealth>,
    /// Decisions of the server that the store could not settle.
    unsettled: HashMap<MessageId, Outcome>,
    /// Lanes that were claimed from since the last time that a replayer may have ended with messages in flight.
    resumed: HashSet<LaneId>,
    /// Workers at work in this round.
    senders: usize,
    /// Requests that have an extended timeout now.
    patient: usize,
    /// When the store was last asked for held messages.
    held_checked: Option<Instant>,
    /// How many outages had ended when their waits were last ended.
    outages_ended: u64,
    /// Sum of the rounds since the backlog began.
    backlog: Option<ReplayRecord>,
}

/// The right of one request to an extended timeout, until it is dropped.
pub(super) struct ExtendedTimeout<'a>(&'a ReplayState);

impl Drop for ExtendedTimeout<'_> {
    fn drop(&mut self) {
        self.0.lock().patient -= 1;
    }
}

impl ReplayState {
    /// Returns the watch over the store's hold.
    pub(super) fn hold(&self) -> &HoldWatch {
        &self.hold
    }

    /// Begins a round under the lease of this epoch.
    ///
    /// Forgets everything if it is another store. In the same store, an epoch that does not follow the previous one
    /// means that another replayer had the lease: it had the unsettled messages, and its outcomes, or a person's,
    /// count.
    pub(super) fn begin(&self, store: StoreIdentity, epoch: i64) {
        let mut remembered = self.lock();
        remembered.lanes.values_mut().for_each(LaneHealth::begin_round);
        remembered.senders = 0;
        let Some((earlier_store, earlier_epoch)) = remembered.round.replace((store, epoch)) else { return };
        if earlier_store != store {
            remembered.lanes.clear();
        }
        if earlier_store != store || earlier_epoch.checked_add(1) != Some(epoch) {
            remembered.unsettled.clear();
            remembered.resumed.clear();
        }
    }

    /// Notes that messages were found in flight whose replayer has ended.
    pub(super) fn interrupted(&self) {
        self.lock().resumed.clear();
    }

    /// Returns whether messages of a lane may wait that were in flight when a replayer ended.
    pub(super) fn may_be_interrupted(&self, lane: LaneId) -> bool {
        !self.lock().resumed.contains(&lane)
    }

    /// Notes that messages of a lane were claimed, with all that were in flight when a replayer ended.
    pub(super) fn claimed(&self, lane: LaneId) {
        self.lock().resumed.insert(lane);
    }

    /// Notes that claimed messages of a lane were given back unsent: what is said of the next claim counts.
    pub(super) fn gave_back(&self, lane: LaneId) {
        self.lock().resumed.remove(&lane);
    }

    /// Starts a worker's turn with a lane; `is_extra`: another worker of the lane waits for an answer.
    pub(super) fn begin_turn(
        &self,
        work: &LaneWork,
        start: Pace,
        settings: BreakerSettings,
        is_extra: bool,
    ) -> LaneTurn {
        let ended_hold = work.hold.as_ref().map(|hold| hold.probe);
        let mut remembered = self.lock();
        remembered.senders += 1;
        remembered.lanes.entry(work.id).or_default().begin_turn(settings, start, ended_hold, is_extra)
    }

    /// Starts the turn of one more worker of a lane beside this one, if the lane may have another batch in flight and
    /// fewer than `senders_max` workers are at work.
    pub(super) fn join(&self, lane: LaneId, beside: &LaneTurn, senders_max: usize) -> Option<LaneTurn> {
        let mut remembered = self.lock();
        if remembered.senders >= senders_max.min(SENDERS_TO_JOIN_MAX) {
            return None;
        }
        let turn = remembered.lanes.entry(lane).or_default().join(beside)?;
        remembered.senders += 1;
        Some(turn)
    }

    /// Ends a worker's turn.
    pub(super) fn end_turn(&self, lane: LaneId, turn: &LaneTurn) {
        let mut remembered = self.lock();
        remembered.senders = remembered.senders.saturating_sub(1);
        remembered.lanes.entry(lane).or_default().end_turn(turn);
    }

    /// Returns whether a lane has no trouble that its next turn depends on.
    pub(super) fn is_carefree(&self, lane: LaneId) -> bool {
        self.lock().lanes.get(&lane).is_none_or(LaneHealth::is_carefree)
    }

    /// Notes that a worker sends nothing more in a turn that is still to be settled: the worker is free for others.
    pub(super) fn answered(&self) {
        let mut remembered = self.lock();
        remembered.senders = remembered.senders.saturating_sub(1);
    }

    /// Ends the only turn that a lane with a few messages has, after [`ReplayState::answered`]: without trouble, nothing
    /// is remembered of it, so that any number of such lanes takes no memory.
    pub(super) fn end_only_turn(&self, lane: LaneId, turn: &LaneTurn) {
        let mut remembered = self.lock();
        remembered.lanes.entry(lane).or_default().end_turn(turn);
        if remembered.lanes.get(&lane).is_some_and(LaneHealth::is_carefree) {
            remembered.lanes.remove(&lane);
        }
    }

    /// Takes what happened to a lane in this turn, and returns what to do.
    pub(super) fn on(&self, lane: LaneId, turn: &mut LaneTurn, event: Event) -> Decision {
        self.with(lane, |health| health.on(turn, event, jitter()))
    }

    /// Calls `visit` with the health of a lane.
    pub(super) fn with<T>(&self, lane: LaneId, visit: impl FnOnce(&mut LaneHealth) -> T) -> T {
        visit(self.lock().lanes.entry(lane).or_default())
    }

    /// Learns which ids the server refuses for their time.
    pub(super) fn note_refused_ids(
        &self,
        lane: LaneId,
        outside: &Outside,
        server_ms: Option<i64>,
        answer: &LastAnswer,
    ) {
        let answer = (&*answer.text, answer.at_ms);
        self.with(lane, |health| health.note_refused_ids(outside, server_ms, answer, since_boot()));
    }

    /// Returns which ids the server refuses for their time, and its answer, if it said so a moment ago.
    pub(super) fn refused_ids(&self, lane: LaneId) -> Option<(IdWindow, LastAnswer)> {
        let remembered = self.lock();
        let refused = remembered.lanes.get(&lane)?.refused_ids(since_boot())?;
        let answer = LastAnswer { status: Some(400), text: refused.answer.clone(), at_ms: refused.at_ms };
        Some((refused.window, answer))
    }

    /// Returns whether it is time to ask the store for held messages to probe.
    pub(super) fn is_held_check_due(&self, interval: Duration) -> bool {
        self.lock().held_checked.is_none_or(|checked| checked.elapsed() >= interval / 4)
    }

    /// Notes that the store was asked for held messages, and which of them are sent again as probes.
    pub(super) fn held_checked(&self, probes: &[(LaneId, MessageId)]) {
        self.lock().held_checked = Some(Instant::now());
        for (lane, message) in probes {
            self.with(*lane, |health| health.probe_held(*message));
        }
    }

    /// Returns whether an outage has ended whose waits were not ended since; `outages` have ended so far.
    pub(super) fn is_outage_ended(&self, outages: u64) -> bool {
        self.lock().outages_ended != outages
    }

    /// Notes that the waits of these outages are ended.
    pub(super) fn outages_noted(&self, outages: u64) {
        self.lock().outages_ended = outages;
    }

    /// Remembers the server's decisions that the store could not settle.
    pub(super) fn keep_unsettled(&self, outcomes: &[(MessageId, Outcome)]) {
        let mut remembered = self.lock();
        for (message, outcome) in outcomes {
            if is_final(outcome) && remembered.unsettled.len() < UNSETTLED_MAX {
                remembered.unsettled.insert(*message, outcome.clone());
            }
        }
    }

    /// Returns the unsettled outcome of a message.
    pub(super) fn unsettled(&self, message: MessageId) -> Option<Outcome> {
        self.lock().unsettled.get(&message).cloned()
    }

    /// Forgets messages of a lane that are settled now. Returns whether a held message that was sent as a probe for the
    /// lane's others was delivered.
    pub(super) fn settled(&self, lane: LaneId, outcomes: &[(MessageId, Outcome)]) -> bool {
        let mut remembered = self.lock();
        if !remembered.unsettled.is_empty() {
            outcomes.iter().for_each(|(message, _)| drop(remembered.unsettled.remove(message)));
        }
        let of = |wanted: fn(&Outcome) -> bool| -> Vec<MessageId> {
            outcomes.iter().filter(|(_, outcome)| wanted(outcome)).map(|(message, _)| *message).collect()
        };
        let delivered = of(|outcome| *outcome == Outcome::Delivered);
        remembered.lanes.entry(lane).or_default().settled(&of(is_final), &delivered)
    }

    /// Returns the right to an extended timeout, or `None` while [`PATIENT_MAX`] requests have it.
    pub(super) fn patience(&self) -> Option<ExtendedTimeout<'_>> {
        let mut remembered = self.lock();
        if remembered.patient >= PATIENT_MAX {
            return None;
        }
        remembered.patient += 1;
        Some(ExtendedTimeout(self))
    }

    /// Adds a round to what was replayed since the backlog began, and returns the sum.
    pub(super) fn add_round(&self, round: ReplayRecord) -> ReplayRecord {
        let mut remembered = self.lock();
        let sum = match remembered.backlog.take() {
            Some(earlier) => ReplayRecord {
                started_at_ms: earlier.started_at_ms,
                delivered: earlier.delivered + round.delivered,
                rejected: earlier.rejected + round.rejected,
                ..round
            },
            None => round,
        };
        if sum.remaining > 0 {
            remembered.backlog = Some(sum.clone());
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        lock(&self.remembered)
    }
}

/// Returns whether the server has decided about a message.
pub(super) fn is_final(outcome: &Outcome) -> bool {
    !matches!(outcome, Outcome::Failed { .. })
}

/// Locks a value that a panic elsewhere can't leave half written.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: LaneId = LaneId(1);
    const MESSAGE: MessageId = MessageId(7);

    #[test]
    fn unsettled_outcomes_are_discarded_for_another_store_or_after_another_replayer() {
        let store = StoreIdentity::of(b"store");
        let with_outcome = || {
            let state = ReplayState::default();
            state.begin(store, 3);
            state.keep_unsettled(&[(MESSAGE, Outcome::Delivered)]);
            state.with(LANE, |health| health.note_timeouts([MESSAGE]));
            state
        };
        let timeouts = |state: &ReplayState| state.with(LANE, |health| health.timeouts(MESSAGE));
        let state = with_outcome();
        state.begin(store, 4);
        assert_eq!(state.unsettled(MESSAGE), Some(Outcome::Delivered), "the server is asked again");
        state.begin(store, 6);
        assert_eq!(state.unsettled(MESSAGE), None, "a message that another replayer requeued is not sent");
        assert_eq!(timeouts(&state), 1, "the lane is still the same");
        let state = with_outcome();
        state.begin(StoreIdentity::of(b"another"), 4);
        assert_eq!(state.unsettled(MESSAGE), None, "a message of another store is deleted unsent");
        assert_eq!(timeouts(&state), 0);
    }

    #[test]
    fn a_lane_that_is_answered_and_not_settled_occupies_no_worker() {
        let state = ReplayState::default();
        let settings = BreakerSettings { retry_interval: Duration::from_secs(1), attempts_max: 1 };
        let work = LaneWork {
            id: LANE,
            lane: crate::message::Lane::default(),
            failed: 1,
            body_bytes: 1,
            due_at_ms: 0,
            hold: None,
            limits: Vec::new(),
            waits_for: None,
        };
        let start = Pace::start(crate::delivery::pacing::PaceSettings::default());
        let seen = || {
            let senders = state.lock().senders;
            (senders, state.is_carefree(LANE))
        };
        let turn = state.begin_turn(&work, start, settings, false);
        assert_eq!(seen(), (1, false));
        state.answered();
        assert_eq!(seen(), (0, false), "its turn lasts until it is settled");
        state.end_only_turn(LANE, &turn);
        assert_eq!(seen(), (0, true));
    }

    #[test]
    fn a_bounded_number_of_requests_has_an_extended_timeout() {
        let state = ReplayState::default();
        let mut patient: Vec<_> = (0..PATIENT_MAX).map(|_| state.patience().expect("one more may wait")).collect();
        assert!(state.patience().is_none());
        patient.pop();
        assert!(state.patience().is_some());
    }

    #[test]
    fn the_record_of_a_replay_covers_the_whole_backlog() {
        let state = ReplayState::default();
        let round = |started_at_ms, delivered, remaining| ReplayRecord {
            role: "agent".into(),
            started_at_ms,
            ended_at_ms: started_at_ms + 1,
            delivered,
            rejected: 1,
            remaining,
        };
        state.add_round(round(10, 5, 20));
        let sum = state.add_round(round(20, 19, 0));
        assert_eq!((sum.started_at_ms, sum.ended_at_ms, sum.delivered, sum.rejected), (10, 21, 24, 2));
        assert_eq!(state.add_round(round(30, 1, 0)).delivered, 1, "the next backlog is counted separately");
    }
}
