//! One lane's worker: claim, send, settle, pause, until the lane is empty, held, or its turn is over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};
use uuid::Uuid;

use super::{Budget, CLAIM_BYTES_MAX, Gate, LeaseKeeper, Replay, now_ms};
use crate::delivery::backoff;
use crate::delivery::coalesce::{Shipment, plan};
use crate::delivery::pacing::{BatchEnd, Pace};
use crate::delivery::verdict::{ReplayVerdict, replaying};
use crate::message::{Claimed, MessageId, Touch, conflict};
use crate::protocol::answers::{Answer, SendFailure};
use crate::store::{ClaimLimits, Hold, LaneId, LaneWork, LastAnswer, Outcome, StoreError};

/// A worker comes back after this long even if more waits, so that more lanes than workers all get their turn.
const TURN: Duration = Duration::from_secs(1);
/// After so many requests of one batch that time might heal, and none that passed, the server is taken to be failing
/// altogether: enough to halve a full batch down to one message, few enough not to storm a server in trouble.
const FALTERS_MAX: u32 = 12;
/// The longest that a message waits because it failed as a probe.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(30 * 60);

pub(super) struct LaneWorker<'a> {
    pub replay: &'a Replay<'a>,
    pub keeper: &'a LeaseKeeper<'a>,
    pub gate: &'a Gate,
    pub budget: &'a Budget,
    pub pace: Pace,
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

/// Why the rest of a batch is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    Unavailable,
    Held,
    Stopped,
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
        if replay.shutdown.sleep(self.gate.opens_in()) || !self.keeper.may_send() {
            return Ok(Step::LaneDone);
        }
        // A lane that was held for its key or its server lets one message try before the rest follows.
        let is_probe = self.work.hold.as_ref().is_some_and(|hold| hold.probe);
        let wanted = self.budget.take(if is_probe { 1 } else { self.pace.batch() });
        let limits = ClaimLimits { messages_max: wanted, bytes_max: CLAIM_BYTES_MAX };
        let claimed = match wanted {
            0 => Vec::new(),
            _ => replay.store.claim(&self.keeper.lease, self.work.id, &replay.settings.filter, limits, now_ms())?,
        };
        self.budget.give_back(wanted - claimed.len());
        if claimed.is_empty() {
            return Ok(Step::LaneDone);
        }

        let count = claimed.len();
        let mut batch = Batch {
            worker: self,
            is_probe,
            outcomes: Vec::new(),
            retries: Vec::new(),
            delivered: 0,
            falters: 0,
            halt: None,
        };
        batch.send_all(claimed)?;
        batch.count_retries()?;
        let (outcomes, delivered, halt) = (batch.outcomes, batch.delivered, batch.halt);
        replay.store.settle(&self.keeper.lease, &outcomes)?;
        self.count(&outcomes);

        if delivered > 0 {
            replay.probes.passed(self.work.id);
        }
        if delivered > 0 && self.work.hold.take().is_some() && halt != Some(Halt::Held) {
            replay.store.hold(&self.keeper.lease, self.work.id, None)?;
        }
        self.pace = self.pace.after(if halt.is_none() { BatchEnd::KeptUp } else { BatchEnd::Strained });
        if halt.is_some() {
            return Ok(Step::LaneDone);
        }
        self.pause(count);
        Ok(Step::GoOn)
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
        self.replay.metrics.messages_rejected.add(of(|outcome| matches!(outcome, Outcome::Rejected { .. })));
    }
}

/// One claim on its way.
struct Batch<'w, 'a> {
    worker: &'w LaneWorker<'a>,
    is_probe: bool,
    outcomes: Vec<(MessageId, Outcome)>,
    /// Messages that failed alone, with what the server said and how long it asked to wait.
    retries: Vec<(Claimed, LastAnswer, Option<Duration>)>,
    /// Messages delivered so far.
    delivered: usize,
    /// Requests that failed in a way that time may heal.
    falters: u32,
    halt: Option<Halt>,
}

impl Batch<'_, '_> {
    fn send_all(&mut self, claimed: Vec<Claimed>) -> Result<(), StoreError> {
        let mut queue: VecDeque<Shipment> = plan(claimed).into();
        while let Some(shipment) = queue.pop_front() {
            if self.halt.is_none() && (self.worker.replay.shutdown.is_requested() || !self.worker.keeper.may_send()) {
                self.halt = Some(Halt::Stopped);
            }
            if self.halt.is_some() || self.waits_for_a_retry(&shipment) {
                self.put_back(&shipment, None);
                continue;
            }
            let replay = self.worker.replay;
            replay.metrics.replay_requests.add(1);
            let result = replay.upstream.send(&self.worker.work.lane, &shipment.request());
            let verdict = replaying(shipment.message_type(), result.as_ref());
            debug!(target: "replay_manager", messages = shipment.len(), ?verdict, "sent");
            match verdict {
                ReplayVerdict::Delivered => self.delivered(&shipment)?,
                ReplayVerdict::Unavailable => {
                    let answer = last_answer(&result);
                    // A send that fails while pings pass would otherwise look like nothing at all.
                    replay.connection.send_failed(&answer.text);
                    self.halt = Some(Halt::Unavailable);
                    self.put_back(&shipment, Some(answer));
                }
                ReplayVerdict::HoldLane { asked, probe } => {
                    let answer = last_answer(&result);
                    self.hold(asked.unwrap_or(replay.settings.retry_interval), reason(&result), probe)?;
                    self.put_back(&shipment, Some(answer));
                }
                ReplayVerdict::Retry { asked } => {
                    self.falters += 1;
                    if self.delivered == 0 && self.falters >= FALTERS_MAX {
                        self.hold(replay.settings.retry_interval, reason(&result), true)?;
                        self.put_back(&shipment, Some(last_answer(&result)));
                        continue;
                    }
                    match shipment.halves() {
                        Ok((first, second)) => {
                            queue.push_front(second);
                            queue.push_front(first);
                        }
                        Err(single) => {
                            let answer = last_answer(&result);
                            self.retries
                                .extend(single.messages().map(|message| (message.clone(), answer.clone(), asked)));
                        }
                    }
                }
                ReplayVerdict::Refused => match shipment.halves() {
                    Ok((first, second)) => {
                        queue.push_front(second);
                        queue.push_front(first);
                    }
                    Err(single) => {
                        let answer = last_answer(&result);
                        for message in single.messages() {
                            warn!(
                                target: "replay_manager",
                                id = %message.id, message_type = %message.message_type, status = answer.status,
                                "the Opik server refused a message, it is kept as rejected"
                            );
                            self.outcomes.push((message.id, Outcome::Rejected { answer: answer.clone() }));
                        }
                    }
                },
            }
        }
        Ok(())
    }

    fn delivered(&mut self, shipment: &Shipment) -> Result<(), StoreError> {
        self.delivered += shipment.len();
        self.outcomes.extend(shipment.messages().map(|message| (message.id, Outcome::Delivered)));
        if shipment.messages().any(|message| !message.message_type.repeat_is_harmless()) {
            let outcomes = std::mem::take(&mut self.outcomes);
            self.worker.replay.store.settle(&self.worker.keeper.lease, &outcomes)?;
            self.worker.count(&outcomes);
        }
        Ok(())
    }

    /// Says whether an earlier message of this batch about the same entity waits for another attempt.
    fn waits_for_a_retry(&self, shipment: &Shipment) -> bool {
        let waits = |touches: &[Touch]| self.retries.iter().any(|(message, _, _)| conflict(&message.touches, touches));
        !self.retries.is_empty() && shipment.messages().any(|message| waits(&message.touches))
    }

    fn put_back(&mut self, shipment: &Shipment, answer: Option<LastAnswer>) {
        self.outcomes.extend(shipment.messages().map(|message| {
            (message.id, Outcome::Failed { next_attempt_at_ms: 0, counts: false, answer: answer.clone() })
        }));
    }

    fn hold(&mut self, time: Duration, reason: String, probe: bool) -> Result<(), StoreError> {
        warn!(
            target: "replay_manager",
            "{}: held for {} s, nothing is dropped: {reason}", self.worker.work.lane, time.as_secs_f64()
        );
        let until_ms = now_ms().saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        self.worker.replay.store.hold(
            &self.worker.keeper.lease,
            self.worker.work.id,
            Some(&Hold { until_ms, reason, probe }),
        )?;
        self.halt = Some(Halt::Held);
        Ok(())
    }

    /// Decides what failed messages have to wait, and whether it counts against them.
    ///
    /// A fault that meets one message while others pass is the message's, and from then on that message is suspect
    /// (`attempts`): what it meets later counts, whoever passes or does not. When no other passes, it is the server's:
    /// then nothing counts, and the lane waits and lets another message try, so that a poisoned one can't keep it held.
    fn count_retries(&mut self) -> Result<(), StoreError> {
        let is_suspect = |message: &Claimed| message.attempts > 0;
        let unsuspected = self.retries.iter().filter(|(message, _, _)| !is_suspect(message)).count();
        let is_servers_fault = self.delivered == 0 && (unsuspected > 1 || (unsuspected == 1 && self.is_probe));
        let settings = self.worker.replay.settings;
        if is_servers_fault && self.halt.is_none() {
            let said = self.retries.first().map(|(_, answer, _)| answer.text.clone()).unwrap_or_default();
            self.hold(settings.retry_interval, format!("the server fails every message: {said}"), true)?;
        }
        let failed = if is_servers_fault { self.worker.replay.probes.failed(self.worker.work.id) } else { 0 };
        let behind = settings.retry_interval.saturating_mul(failed.saturating_add(2)).min(PROBE_WAIT_MAX);
        let behind_ms = i64::try_from(behind.as_millis()).unwrap_or(i64::MAX);
        for (index, (message, answer, asked)) in std::mem::take(&mut self.retries).into_iter().enumerate() {
            let attempts = message.attempts.saturating_add(1);
            let outcome = if is_servers_fault && !is_suspect(&message) {
                // Only the first one tried is moved behind the next probes.
                let wait = if index == 0 { behind_ms } else { 0 };
                let next_attempt_at_ms = if wait == 0 { 0 } else { now_ms().saturating_add(wait) };
                Outcome::Failed { next_attempt_at_ms, counts: false, answer: Some(answer) }
            } else if backoff::is_exhausted(attempts, settings.attempts_max) {
                warn!(
                    target: "replay_manager",
                    id = %message.id, message_type = %message.message_type, attempts,
                    "a message failed at every attempt, it is kept as rejected"
                );
                Outcome::Rejected { answer }
            } else {
                let wait = backoff::wait(attempts, jitter(), asked);
                let next_attempt_at_ms = now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
                Outcome::Failed { next_attempt_at_ms, counts: true, answer: Some(answer) }
            };
            self.outcomes.push((message.id, outcome));
        }
        Ok(())
    }
}

/// Does this, or returns `None` when it panics. What it worked on is not used again.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

fn last_answer(result: &Result<Answer, SendFailure>) -> LastAnswer {
    match result {
        Ok(answer) => LastAnswer { status: Some(answer.status), text: answer.text.clone(), at_ms: now_ms() },
        Err(failure) => LastAnswer { status: None, text: failure.to_string(), at_ms: now_ms() },
    }
}

/// Says for people why a lane is held.
fn reason(result: &Result<Answer, SendFailure>) -> String {
    match result {
        Ok(Answer { status, location: Some(location), .. }) if (300..400).contains(status) => {
            format!("the server redirects to {location}: set --upstream to where it is")
        }
        Ok(Answer { status: 429, .. }) => "the server limits the rate (429)".to_owned(),
        Ok(answer) if answer.text.trim().is_empty() => format!("the server answered {}", answer.status),
        Ok(answer) => format!("the server answered {}: {}", answer.status, first_line(&answer.text)),
        Err(failure) => failure.to_string(),
    }
}

/// The beginning of an answer as one line of a message.
fn first_line(text: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(CHARACTERS_MAX)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Returns a number in 0.0 to 1.0 that differs between messages and processes.
fn jitter() -> f64 {
    let bytes = Uuid::now_v7().into_bytes();
    f64::from(u16::from_be_bytes([bytes[14], bytes[15]])) / f64::from(u16::MAX)
}
