//! What a replayer remembers of lanes that fail, between its rounds. In memory only: a new process finds out again.
//!
//! Messages and lanes are remembered by their numbers, which mean something in one store only, and what the server decided
//! of a message is what is to become of it only as long as nobody else works on it. Both are looked at when a round begins.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::lock;
use crate::delivery::blame::FAILING_MAX;
use crate::delivery::id_window::{IdWindow, Outside};
use crate::message::MessageId;
use crate::store::{LaneId, LastAnswer, Outcome, ReplayRecord, StoreIdentity};

/// Messages whose failure did not count and that are remembered; of others each failure looks like the first.
const SPARED_MAX: usize = 10_000;
/// How many messages a batch may have after a request hung, and one beside a request that hangs.
pub(super) const WINDOW_AFTER_SILENCE: usize = 8;
/// Requests that are given more time than others at once.
const PATIENT_MAX: usize = 8;
/// A refusal of ids for their time is believed of other messages for so long: long enough for a replay at full pace to ask
/// a handful of times, and too short for a person to change the server and to be answered out of our memory.
const ID_WINDOW_LIFE: Duration = Duration::from_secs(2);
/// Outcomes that could not be settled and are remembered; what more were decided is sent again, as upserts.
const UNSETTLED_MAX: usize = 10_000;

/// What went wrong in each lane.
#[derive(Debug, Default)]
pub struct Probes {
    /// The store of the last round, and the epoch of its lease.
    round: Mutex<Option<(StoreIdentity, i64)>>,
    lanes: Mutex<HashMap<LaneId, Trouble>>,
    /// What the server has decided and the store could not settle.
    unsettled: Mutex<HashMap<MessageId, Outcome>>,
    /// Lanes that were claimed from since a replayer was last known to have ended in the middle.
    resumed: Mutex<HashSet<LaneId>>,
    /// How often a message got no answer in time.
    timeouts: Mutex<HashMap<MessageId, u32>>,
    /// Requests that are given more time than others just now.
    patient: AtomicUsize,
    /// When held messages were looked for last.
    held_looked: Mutex<Option<Instant>>,
    /// What was replayed since the backlog began.
    episode: Mutex<Option<ReplayRecord>>,
}

/// The right to give one request more time than others, until it is dropped.
pub(super) struct Patient<'a>(&'a AtomicUsize);

impl Drop for Patient<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Trouble {
    /// Probes that failed since a message passed. A message that failed as a probe waits for longer the longer this
    /// lasts, so that the ones behind it get their turn as probes, however many bad ones stand before them.
    probes_failed: u32,
    /// Times that the lane was held since a message passed.
    holds: u32,
    /// How many messages a batch may have while the lane recovers; `None`: as many as the pace says.
    window: Option<usize>,
    /// Messages that failed since one passed, as many as are worth telling apart.
    failing: HashSet<MessageId>,
    /// How many requests passed, ever.
    passes: u64,
    /// Messages whose last failure did not count, with `passes` as it was then: when one passed since, the next counts.
    spared: HashMap<MessageId, u64>,
    /// Those of them that were told to wait behind the next probes.
    waiting: HashSet<MessageId>,
    /// Which ids the server refuses for their time, in what words, and since when that is known.
    id_window: Option<(IdWindow, LastAnswer, Instant)>,
    /// Held messages that are tried again on behalf of the lane's others.
    held_probes: HashSet<MessageId>,
}

impl Probes {
    /// Begins a round under the lease of this epoch.
    ///
    /// Forgets everything when it is another store than before. In the same store an epoch that does not follow ours was
    /// another replayer's: it had whatever we could not settle, and what it or a person made of that counts.
    pub(super) fn begin(&self, store: StoreIdentity, epoch: i64) {
        let Some((earlier_store, earlier_epoch)) = lock(&self.round).replace((store, epoch)) else { return };
        if earlier_store != store {
            lock(&self.lanes).clear();
            lock(&self.timeouts).clear();
        }
        if earlier_store != store || earlier_epoch.checked_add(1) != Some(epoch) {
            lock(&self.unsettled).clear();
            self.interrupted();
        }
    }

    /// Notes that messages were found in flight that nobody works on any more.
    pub(super) fn interrupted(&self) {
        lock(&self.resumed).clear();
    }

    /// Returns whether messages of a lane may wait that were in flight when a replayer ended.
    pub(super) fn may_be_interrupted(&self, lane: LaneId) -> bool {
        !lock(&self.resumed).contains(&lane)
    }

    /// Notes that the next messages of a lane were claimed, with all that were in flight when a replayer ended.
    pub(super) fn claimed(&self, lane: LaneId) {
        lock(&self.resumed).insert(lane);
    }

    pub(super) fn probe_failed(&self, lane: LaneId) -> u32 {
        self.with(lane, |trouble| {
            trouble.probes_failed = trouble.probes_failed.saturating_add(1);
            trouble.probes_failed
        })
    }

    /// Notes that the lane is held until something else is known, and returns how often it was since something passed.
    pub(super) fn held(&self, lane: LaneId, slowly: bool) -> u32 {
        self.with(lane, |trouble| {
            trouble.holds = trouble.holds.saturating_add(1);
            if slowly {
                trouble.window = Some(1);
            }
            trouble.holds
        })
    }

    /// Notes that a request hung: what else is claimed with one that does waits as long, so it is not to be much.
    pub(super) fn hung(&self, lane: LaneId) {
        self.with(lane, |trouble| {
            trouble.window = Some(trouble.window.map_or(WINDOW_AFTER_SILENCE, |known| known.min(WINDOW_AFTER_SILENCE)));
        });
    }

    /// Returns how many messages the next batch of a lane may have at most.
    pub(super) fn window(&self, lane: LaneId) -> usize {
        self.with(lane, |trouble| trouble.window.unwrap_or(usize::MAX))
    }

    /// Notes that a whole batch passed: a lane that recovers may send twice as many with the next, up to its pace.
    pub(super) fn batch_passed(&self, lane: LaneId, pace: usize) {
        self.with(lane, |trouble| {
            trouble.window = trouble.window.map(|window| window.saturating_mul(2)).filter(|window| *window < pace);
        });
    }

    /// Adds messages that failed, and returns how many have since one passed.
    pub(super) fn failing(&self, lane: LaneId, messages: impl Iterator<Item = MessageId>) -> usize {
        self.with(lane, |trouble| {
            for message in messages {
                if trouble.failing.len() <= FAILING_MAX {
                    trouble.failing.insert(message);
                }
            }
            trouble.failing.len()
        })
    }

    /// Notes that a message's failure does not count for now, and whether it was told to wait.
    pub(super) fn spare(&self, lane: LaneId, message: MessageId, waits: bool) {
        self.with(lane, |trouble| {
            if trouble.spared.len() < SPARED_MAX {
                trouble.spared.insert(message, trouble.passes);
                if waits {
                    trouble.waiting.insert(message);
                }
            }
        });
    }

    /// Says whether the message failed before, and nobody knows yet whose fault it was.
    pub(super) fn is_spared(&self, lane: LaneId, message: MessageId) -> bool {
        lock(&self.lanes).get(&lane).is_some_and(|trouble| trouble.spared.contains_key(&message))
    }

    /// Says whether something passed since a message was spared, and forgets that it was.
    pub(super) fn passed_since_spared(&self, lane: LaneId, message: MessageId) -> bool {
        self.with(lane, |trouble| trouble.spared.remove(&message).is_some_and(|passes| trouble.passes > passes))
    }

    /// Notes that a request passed: whatever troubled the lane before, it is not all of it.
    pub(super) fn passed(&self, lane: LaneId) {
        self.with(lane, |trouble| {
            trouble.probes_failed = 0;
            trouble.holds = 0;
            trouble.failing.clear();
            trouble.passes += 1;
        });
    }

    /// Returns the messages that wait only because the lane failed at everything, once it does no more.
    pub(super) fn take_waiting(&self, lane: LaneId) -> Vec<MessageId> {
        self.with(lane, |trouble| match trouble.probes_failed {
            0 => trouble.waiting.drain().collect(),
            _ => Vec::new(),
        })
    }

    /// Learns which ids the server refuses for their time.
    pub(super) fn learn_id_window(&self, lane: LaneId, outside: &Outside, server_ms: Option<i64>, answer: &LastAnswer) {
        let known = self.id_window(lane).map(|(window, _)| window);
        self.with(lane, |trouble| {
            let mut window = known.unwrap_or_default();
            window.learn(outside, server_ms);
            trouble.id_window = Some((window, answer.clone(), Instant::now()));
        });
    }

    /// Returns which ids the server refuses for their time, and its words, if it said so a moment ago.
    pub(super) fn id_window(&self, lane: LaneId) -> Option<(IdWindow, LastAnswer)> {
        let lanes = lock(&self.lanes);
        let (window, answer, since) = lanes.get(&lane)?.id_window.as_ref()?;
        (since.elapsed() < ID_WINDOW_LIFE).then(|| (*window, answer.clone()))
    }

    /// Returns whether it is time to look for held messages that are to be tried again.
    pub(super) fn may_look_for_held(&self, interval: Duration) -> bool {
        lock(&self.held_looked).is_none_or(|looked| looked.elapsed() >= interval / 4)
    }

    /// Notes that held messages were looked for, and which of them are tried again.
    pub(super) fn retries_held(&self, retried: &[(LaneId, MessageId)]) {
        *lock(&self.held_looked) = Some(Instant::now());
        for (lane, message) in retried {
            self.with(*lane, |trouble| {
                trouble.id_window = None;
                // Those of earlier times were answered since, or wait in the lane like any other.
                trouble.held_probes = HashSet::from([*message]);
            });
        }
    }

    /// Returns whether one of these outcomes is the delivery of a held message that was tried again: the server's window
    /// lets it in, and perhaps the others.
    pub(super) fn held_passed(&self, lane: LaneId, outcomes: &[(MessageId, Outcome)]) -> bool {
        self.with(lane, |trouble| {
            if trouble.held_probes.is_empty() {
                return false;
            }
            let is_delivered = |(message, outcome): &(MessageId, Outcome)| {
                *outcome == Outcome::Delivered && trouble.held_probes.contains(message)
            };
            let passed = outcomes.iter().any(is_delivered);
            if passed {
                trouble.held_probes.clear();
            }
            passed
        })
    }

    /// Remembers what the server has decided and the store could not settle.
    pub(super) fn decided(&self, outcomes: &[(MessageId, Outcome)]) {
        let mut unsettled = lock(&self.unsettled);
        for (message, outcome) in outcomes {
            let is_final = !matches!(outcome, Outcome::Failed { .. });
            if is_final && unsettled.len() < UNSETTLED_MAX {
                unsettled.insert(*message, outcome.clone());
            }
        }
    }

    /// Returns what the server has decided of a message before.
    pub(super) fn decision(&self, message: MessageId) -> Option<Outcome> {
        lock(&self.unsettled).get(&message).cloned()
    }

    /// Forgets messages that are settled now. Costs nothing while none was left unsettled or got no answer.
    pub(super) fn settled(&self, outcomes: &[(MessageId, Outcome)]) {
        let mut timeouts = lock(&self.timeouts);
        if !timeouts.is_empty() {
            let is_final = |outcome: &Outcome| !matches!(outcome, Outcome::Failed { .. });
            outcomes.iter().filter(|(_, o)| is_final(o)).for_each(|(message, _)| {
                timeouts.remove(message);
            });
        }
        drop(timeouts);
        let mut unsettled = lock(&self.unsettled);
        if !unsettled.is_empty() {
            outcomes.iter().for_each(|(message, _)| drop(unsettled.remove(message)));
        }
    }

    /// Notes that messages got no answer in time.
    pub(super) fn timed_out(&self, messages: impl Iterator<Item = MessageId>) {
        let mut timeouts = lock(&self.timeouts);
        for message in messages {
            if timeouts.len() < SPARED_MAX || timeouts.contains_key(&message) {
                let count = timeouts.entry(message).or_default();
                *count = count.saturating_add(1);
            }
        }
    }

    /// Returns how often a message got no answer in time, as far as that is remembered.
    pub(super) fn timeouts(&self, message: MessageId) -> u32 {
        lock(&self.timeouts).get(&message).copied().unwrap_or(0)
    }

    /// Returns the right to give one request more time than others, or `None` while as many have it as may: each may
    /// keep a worker for minutes.
    pub(super) fn patient(&self) -> Option<Patient<'_>> {
        let taken = self
            .patient
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < PATIENT_MAX).then_some(count + 1));
        taken.is_ok().then_some(Patient(&self.patient))
    }

    /// Adds a round to what was replayed since the backlog began, and returns the sum.
    pub(super) fn add_round(&self, round: ReplayRecord) -> ReplayRecord {
        let mut episode = lock(&self.episode);
        let sum = match episode.take() {
            Some(before) => ReplayRecord {
                started_at_ms: before.started_at_ms,
                delivered: before.delivered + round.delivered,
                rejected: before.rejected + round.rejected,
                ..round
            },
            None => round,
        };
        if sum.remaining > 0 {
            *episode = Some(sum.clone());
        }
        sum
    }

    fn with<T>(&self, lane: LaneId, change: impl FnOnce(&mut Trouble) -> T) -> T {
        change(lock(&self.lanes).entry(lane).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: LaneId = LaneId(1);

    #[test]
    fn a_lane_that_recovers_sends_one_message_then_two_then_as_many_as_its_pace() {
        let probes = Probes::default();
        assert_eq!(probes.window(LANE), usize::MAX);
        probes.held(LANE, true);
        let mut windows = Vec::new();
        while probes.window(LANE) < usize::MAX {
            windows.push(probes.window(LANE));
            probes.batch_passed(LANE, 50);
        }
        assert_eq!(windows, [1, 2, 4, 8, 16, 32]);
        probes.held(LANE, false);
        assert_eq!(probes.window(LANE), usize::MAX, "a rate limit is no reason to be careful afterwards");
    }

    #[test]
    fn what_waits_for_the_lane_is_let_go_when_the_lane_passes() {
        let probes = Probes::default();
        probes.probe_failed(LANE);
        probes.spare(LANE, MessageId(7), true);
        probes.spare(LANE, MessageId(8), false);
        assert_eq!(probes.take_waiting(LANE), [], "the lane still fails at everything");
        probes.passed(LANE);
        assert_eq!(probes.take_waiting(LANE), [MessageId(7)]);
        assert_eq!(probes.take_waiting(LANE), []);
    }

    #[test]
    fn what_the_server_decided_is_not_believed_of_another_store_or_after_another_replayer() {
        const MESSAGE: MessageId = MessageId(7);
        let store = StoreIdentity::default();
        let decided = || {
            let probes = Probes::default();
            probes.begin(store, 3);
            probes.decided(&[(MESSAGE, Outcome::Delivered)]);
            probes.spare(LANE, MESSAGE, false);
            probes
        };
        let probes = decided();
        probes.begin(store, 4);
        assert_eq!(probes.decision(MESSAGE), Some(Outcome::Delivered), "the server is asked again");
        probes.begin(store, 6);
        assert_eq!(probes.decision(MESSAGE), None, "a message that was tried again by somebody else is not sent");
        assert!(probes.is_spared(LANE, MESSAGE), "the lane is still the same");
        let probes = decided();
        probes.begin(StoreIdentity::of(b"another"), 4);
        assert_eq!(probes.decision(MESSAGE), None, "a message of another store is deleted unsent");
        assert!(!probes.is_spared(LANE, MESSAGE));
    }

    #[test]
    fn the_record_of_a_replay_is_of_the_whole_backlog() {
        let probes = Probes::default();
        let round = |started_at_ms, delivered, remaining| ReplayRecord {
            role: "agent".into(),
            started_at_ms,
            ended_at_ms: started_at_ms + 1,
            delivered,
            rejected: 1,
            remaining,
        };
        probes.add_round(round(10, 5, 20));
        let sum = probes.add_round(round(20, 19, 0));
        assert_eq!((sum.started_at_ms, sum.ended_at_ms, sum.delivered, sum.rejected), (10, 21, 24, 2));
        assert_eq!(probes.add_round(round(30, 1, 0)).delivered, 1, "the next backlog is counted by itself");
    }
}
