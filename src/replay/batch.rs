//! One claim on its way: sent request by request, with an outcome for every message at the end.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tracing::{debug, warn};
use uuid::Uuid;

use super::lane::LaneWorker;
use super::now_ms;
use crate::delivery::backoff;
use crate::delivery::blame::{self, Evidence};
use crate::delivery::coalesce::{Shipment, plan};
use crate::delivery::split::{Divisible, Division, DivisionEnd};
use crate::delivery::verdict::{ReplayVerdict, replaying};
use crate::message::{Claimed, Footprint, MessageId, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::fallback::fallback;
use crate::protocol::inspection::inspect;
use crate::protocol::routes::Protected;
use crate::store::{Hold, LastAnswer, Outcome, Part, StoreError};

/// After so many requests in a row that time might heal, and none that passed, the server is taken to be failing
/// altogether: enough to halve a full batch down to one message, few enough not to storm a server in trouble.
const FALTERS_MAX: u32 = 12;
/// The longest that a message waits because it failed as a probe; what a healed server may still wait for it.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(5 * 60);

/// Contents larger than this are sent as they are only: not rewritten for an older server, not divided.
const CONTENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why the rest of a batch is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    Unavailable,
    Held,
    Stopped,
}

/// One claim on its way.
pub(super) struct Batch<'w, 'a> {
    worker: &'w LaneWorker<'a>,
    pub outcomes: Vec<(MessageId, Outcome)>,
    /// Messages that failed alone.
    retries: Vec<Failed>,
    /// What messages are about that wait for another try: later ones of this batch must not overtake them.
    left: Footprint,
    /// Messages delivered so far.
    pub delivered: usize,
    /// Requests that passed.
    passes: usize,
    /// Requests that failed in a way that time may heal, since one passed.
    falters: u32,
    pub halt: Option<Halt>,
}

/// A message that failed alone in a way that time may heal.
struct Failed {
    message: Claimed,
    answer: LastAnswer,
    reason: String,
    /// How long the server asked to wait.
    asked: Option<Duration>,
    /// How many requests had passed when it failed first, be it with others in one request.
    passes: usize,
}

impl<'w, 'a> Batch<'w, 'a> {
    /// Returns a batch of which nothing was sent yet.
    pub fn new(worker: &'w LaneWorker<'a>) -> Self {
        Self {
            worker,
            outcomes: Vec::new(),
            retries: Vec::new(),
            left: Footprint::default(),
            delivered: 0,
            passes: 0,
            falters: 0,
            halt: None,
        }
    }

    /// Sends everything, or as much as the server and our lease allow; what is not sent is put back.
    pub fn send_all(&mut self, claimed: Vec<Claimed>) -> Result<(), StoreError> {
        // With each shipment: how many requests had passed when it first failed, as a part of a larger one.
        let mut queue: VecDeque<(Shipment, Option<usize>)> = plan(claimed).into_iter().map(|s| (s, None)).collect();
        while let Some((shipment, first_failed)) = queue.pop_front() {
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
                    let passes = first_failed.unwrap_or(self.passes);
                    replay.probes.failing(self.worker.work.id, shipment.messages().map(|message| message.id));
                    if self.falters >= FALTERS_MAX {
                        self.hold(replay.settings.retry_interval, reason(&result), true)?;
                        self.put_back(&shipment, Some(last_answer(&result)));
                        continue;
                    }
                    match shipment.halves() {
                        Ok((first, second)) => {
                            queue.push_front((second, Some(passes)));
                            queue.push_front((first, Some(passes)));
                        }
                        Err(single) => {
                            for message in single.messages() {
                                self.left.add(&message.touches);
                                self.retries.push(Failed {
                                    message: message.clone(),
                                    answer: last_answer(&result),
                                    reason: reason(&result),
                                    asked,
                                    passes,
                                });
                            }
                        }
                    }
                }
                ReplayVerdict::Refused { items } => match shipment.halves() {
                    Ok((first, second)) => {
                        queue.push_front((second, first_failed));
                        queue.push_front((first, first_failed));
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
                    faltered = Some(Failed {
                        message: message.clone(),
                        answer: last_answer(&result),
                        reason: reason(&result),
                        asked,
                        passes: self.passes,
                    });
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
        if division.anything_passed() {
            self.passed(1);
        }
        if division.has_kept() {
            self.left.add(&message.touches);
        }
        Ok(Some(match division.end() {
            DivisionEnd::AllPassed => Outcome::Delivered,
            DivisionEnd::AllRefused => Outcome::Rejected { answer: whole.clone() },
            DivisionEnd::NothingDecided => {
                if let (Some(failed), None) = (faltered, self.halt) {
                    self.worker.replay.probes.failing(self.worker.work.id, std::iter::once(message.id));
                    self.retries.push(failed);
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
        self.passed(shipment.len());
        self.outcomes.extend(shipment.messages().map(|message| (message.id, Outcome::Delivered)));
        self.settle_if_repeat_hurts(shipment)
    }

    /// Notes that a request passed: whatever troubled the lane before, it is not the server as a whole.
    fn passed(&mut self, messages: usize) {
        self.delivered += messages;
        self.passes += 1;
        self.falters = 0;
        self.worker.replay.probes.passed(self.worker.work.id);
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
        let hold = Hold { until_ms: in_ms(time), reason, probe };
        self.worker.replay.store.hold(&self.worker.keeper.lease, self.worker.work.id, Some(&hold))?;
        self.halt = Some(Halt::Held);
        Ok(())
    }

    /// Decides what failed messages have to wait, and whether it counts against them ([`blame`]).
    ///
    /// What does not count is the server's trouble: the lane waits and lets another message try, so that a poisoned one
    /// can't keep it held.
    pub fn count_retries(&mut self) -> Result<(), StoreError> {
        let (replay, lane) = (self.worker.replay, self.worker.work.id);
        let settings = replay.settings;
        let failing = replay.probes.failing(lane, std::iter::empty());
        let (blamed, spared): (Vec<Failed>, Vec<Failed>) =
            std::mem::take(&mut self.retries).into_iter().partition(|failed| {
                let was_spared_before_a_pass = replay.probes.passed_since_spared(lane, failed.message.id);
                blame::counts(Evidence {
                    passed_since: self.passes > failed.passes || was_spared_before_a_pass,
                    passed_beside: self.passes > 0,
                    is_suspect: failed.message.attempts > 0,
                    failing,
                })
            });
        for Failed { message, answer, asked, .. } in blamed {
            let attempts = message.attempts.saturating_add(1);
            let outcome = if backoff::is_exhausted(attempts, settings.attempts_max) {
                warn!(
                    target: "replay_manager",
                    id = %message.id, message_type = %message.message_type, attempts,
                    "a message failed at every attempt, it is kept as rejected"
                );
                Outcome::Rejected { answer }
            } else {
                let next_attempt_at_ms = in_ms(backoff::wait(attempts, jitter(), asked));
                Outcome::Failed { next_attempt_at_ms, counts: true, answer: Some(answer) }
            };
            self.outcomes.push((message.id, outcome));
        }
        let Some(first) = spared.first() else { return Ok(()) };
        if self.halt.is_none() {
            let reason = format!("the server fails at everything: {}", first.reason);
            self.hold(settings.retry_interval, reason, true)?;
        }
        let probes_failed = replay.probes.probe_failed(lane);
        let behind = settings.retry_interval.saturating_mul(probes_failed.saturating_add(2)).min(PROBE_WAIT_MAX);
        for (index, Failed { message, answer, .. }) in spared.into_iter().enumerate() {
            replay.probes.spare(lane, message.id);
            // Only the first one tried is moved behind the next probes.
            let next_attempt_at_ms = if index == 0 { in_ms(behind) } else { 0 };
            self.outcomes
                .push((message.id, Outcome::Failed { next_attempt_at_ms, counts: false, answer: Some(answer) }));
        }
        Ok(())
    }
}

/// Returns the time after this wait, in milliseconds since the Unix epoch.
fn in_ms(wait: Duration) -> i64 {
    now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
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
