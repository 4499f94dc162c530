//! One lane's worker: claim, send, settle, pause, until the lane is empty, held, or its turn is over.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};
use uuid::Uuid;

use super::{Budget, CLAIM_BYTES_MAX, Gate, LeaseKeeper, Replay, now_ms};
use crate::delivery::backoff;
use crate::delivery::coalesce::{Shipment, plan};
use crate::delivery::pacing::{BatchEnd, Pace};
use crate::delivery::split::{Divisible, Division, DivisionEnd};
use crate::delivery::verdict::{ReplayVerdict, replaying};
use crate::message::{Claimed, Footprint, MessageId, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::fallback::fallback;
use crate::protocol::inspection::inspect;
use crate::protocol::routes::Protected;
use crate::store::{ClaimLimits, Hold, LaneId, LaneWork, LastAnswer, Outcome, Part, StoreError};

/// A worker comes back after this long even if more waits, so that more lanes than workers all get their turn.
const TURN: Duration = Duration::from_secs(1);
/// After so many requests of one batch that time might heal, and none that passed, the server is taken to be failing
/// altogether: enough to halve a full batch down to one message, few enough not to storm a server in trouble.
const FALTERS_MAX: u32 = 12;
/// The longest that a message waits because it failed as a probe.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(30 * 60);

/// Contents larger than this are sent as they are only: not rewritten for an older server, not divided.
const CONTENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

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
            left: Footprint::default(),
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
        let rejected: usize = outcomes.iter().map(|(_, outcome)| outcome.rejected_messages()).sum();
        self.replay.metrics.messages_rejected.add(rejected as u64);
    }
}

/// One claim on its way.
struct Batch<'w, 'a> {
    worker: &'w LaneWorker<'a>,
    is_probe: bool,
    outcomes: Vec<(MessageId, Outcome)>,
    /// Messages that failed alone, with what the server said and how long it asked to wait.
    retries: Vec<(Claimed, LastAnswer, Option<Duration>)>,
    /// What messages are about that wait for another try: later ones of this batch must not overtake them.
    left: Footprint,
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
            if self.halt.is_some() || self.waits_for_an_earlier(&shipment) {
                self.put_back(&shipment, None);
                continue;
            }
            let replay = self.worker.replay;
            let result = self.send(shipment.message_type(), &shipment.request());
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
                            single.messages().for_each(|message| self.left.add(&message.touches));
                            self.retries
                                .extend(single.messages().map(|message| (message.clone(), answer.clone(), asked)));
                        }
                    }
                }
                ReplayVerdict::Refused { items } => match shipment.halves() {
                    Ok((first, second)) => {
                        queue.push_front(second);
                        queue.push_front(first);
                    }
                    Err(single) => {
                        let answer = last_answer(&result);
                        for message in single.messages() {
                            self.refused(message, &answer, items)?;
                        }
                        self.settle_if_repeat_hurts(&single)?;
                    }
                },
            }
        }
        Ok(())
    }

    /// Sends a request, and where the server is too old for it what says the same.
    fn send(&self, message_type: MessageType, request: &Request) -> Result<Answer, SendFailure> {
        let replay = self.worker.replay;
        replay.metrics.replay_requests.add(1);
        let result = replay.upstream.send(&self.worker.work.lane, request);
        let Ok(answer) = &result else { return result };
        let Some(other) = fallback(message_type, request, answer.status, CONTENT_BYTES_MAX) else { return result };
        debug!(target: "replay_manager", "the Opik server takes assertion results as feedback scores only");
        replay.metrics.replay_requests.add(1);
        replay.upstream.send(&self.worker.work.lane, &other)
    }

    /// Rejects a message, or those of its items that the server refuses.
    fn refused(&mut self, message: &Claimed, answer: &LastAnswer, items: bool) -> Result<(), StoreError> {
        let divisible = if items { Divisible::of(message.message_type, &message.request) } else { None };
        let outcome = match divisible {
            Some(divisible) => match self.divide(message, &divisible, answer)? {
                Some(outcome) => outcome,
                None => return Ok(()),
            },
            None => Outcome::Rejected { answer: answer.clone() },
        };
        match &outcome {
            Outcome::Rejected { answer } => warn!(
                target: "replay_manager",
                id = %message.id, message_type = %message.message_type, status = answer.status,
                "the Opik server refused a message, it is kept as rejected"
            ),
            Outcome::Divided { parts } => warn!(
                target: "replay_manager",
                id = %message.id, message_type = %message.message_type, items = message.items, parts = parts.len(),
                "the Opik server refused a batch, it was divided: what passed is delivered, the rest is kept"
            ),
            Outcome::Delivered | Outcome::Failed { .. } => {}
        }
        self.outcomes.push((message.id, outcome));
        Ok(())
    }

    /// Sends a refused batch in pieces until each bad item stands alone.
    ///
    /// All of it is settled at once, afterwards: a crash in the middle repeats pieces, which are upserts. Returns `None`
    /// when the message waits for another attempt as a whole, like one that the server could not answer for.
    fn divide(
        &mut self,
        message: &Claimed,
        divisible: &Divisible,
        whole: &LastAnswer,
    ) -> Result<Option<Outcome>, StoreError> {
        let mut division = Division::of(divisible.len());
        let mut faltered = None;
        while let Some(items) = division.next() {
            let replay = self.worker.replay;
            if self.halt.is_none() && (replay.shutdown.is_requested() || !self.worker.keeper.may_send()) {
                self.halt = Some(Halt::Stopped);
            }
            if self.halt.is_some() {
                division.keep(items);
                continue;
            }
            let piece = divisible.piece(&message.request, items.clone());
            let result = self.send(message.message_type, &piece);
            match replaying(message.message_type, result.as_ref()) {
                ReplayVerdict::Delivered => division.passed(items),
                ReplayVerdict::Refused { .. } => division.refused(items, last_answer(&result)),
                ReplayVerdict::Retry { asked } => {
                    faltered = Some((last_answer(&result), asked));
                    division.keep(items);
                }
                ReplayVerdict::Unavailable => {
                    replay.connection.send_failed(&last_answer(&result).text);
                    self.halt = Some(Halt::Unavailable);
                    division.keep(items);
                }
                ReplayVerdict::HoldLane { asked, probe } => {
                    self.hold(asked.unwrap_or(replay.settings.retry_interval), reason(&result), probe)?;
                    division.keep(items);
                }
            }
        }
        self.delivered += usize::from(division.anything_passed());
        if division.has_kept() {
            self.left.add(&message.touches);
        }
        Ok(Some(match division.end() {
            DivisionEnd::AllPassed => Outcome::Delivered,
            DivisionEnd::AllRefused => Outcome::Rejected { answer: whole.clone() },
            DivisionEnd::NothingDecided => {
                if let (Some((answer, asked)), None) = (faltered, self.halt) {
                    self.retries.push((message.clone(), answer, asked));
                    return Ok(None);
                }
                Outcome::Failed { next_attempt_at_ms: 0, counts: false, answer: None }
            }
            DivisionEnd::Parts(parts) => Outcome::Divided {
                parts: parts.into_iter().map(|(items, answer)| part(message, divisible, items, answer)).collect(),
            },
        }))
    }

    fn delivered(&mut self, shipment: &Shipment) -> Result<(), StoreError> {
        self.delivered += shipment.len();
        self.outcomes.extend(shipment.messages().map(|message| (message.id, Outcome::Delivered)));
        self.settle_if_repeat_hurts(shipment)
    }

    /// Settles at once what the server would not take as an upsert a second time.
    fn settle_if_repeat_hurts(&mut self, shipment: &Shipment) -> Result<(), StoreError> {
        if shipment.messages().any(|message| !message.message_type.repeat_is_harmless()) {
            let outcomes = std::mem::take(&mut self.outcomes);
            self.worker.replay.store.settle(&self.worker.keeper.lease, &outcomes)?;
            self.worker.count(&outcomes);
        }
        Ok(())
    }

    /// Says whether an earlier message of this batch about the same entity waits for another attempt.
    fn waits_for_an_earlier(&self, shipment: &Shipment) -> bool {
        !self.left.is_empty() && shipment.messages().any(|message| self.left.conflicts(&message.touches))
    }

    fn put_back(&mut self, shipment: &Shipment, answer: Option<LastAnswer>) {
        shipment.messages().for_each(|message| self.left.add(&message.touches));
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

/// Returns a part of a divided message as the store keeps it.
fn part(message: &Claimed, divisible: &Divisible, items: Range<usize>, rejected: Option<LastAnswer>) -> Part {
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
    let request = divisible.piece(&message.request, items);
    let route = Protected { message_type: message.message_type, path_id: None };
    // Cut out of JSON that was read before; were it not, the whole message's entities are a safe answer.
    let touches = inspect(&route, &request.body.bytes).map_or_else(|_| message.touches.clone(), |found| found.touches);
    Part { request, touches, items: count, rejected }
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
