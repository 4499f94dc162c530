//! One claim on its way: sent request by request, with an outcome for every message at the end.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::attachment;
use super::lane::LaneWorker;
use super::now_ms;
use crate::delivery::backoff;
use crate::delivery::blame::{self, Evidence, set_apart};
use crate::delivery::coalesce::{Shipment, plan};
use crate::delivery::split::{Divisible, Division, DivisionEnd};
use crate::delivery::verdict::{RATE_LIMITED, ReplayVerdict, replaying};
use crate::message::{Claimed, Effect, Footprint, MessageId, MessageType, Request};
use crate::monitor::lane_trouble::jitter;
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::fallback::fallback;
use crate::protocol::recognise::{Endpoint, NOT_OPIK, Recognised};
use crate::store::{Hold, LastAnswer, Outcome, Part, StoreError};

/// After so many requests in a row that time might heal, and none that passed, the server is taken to be failing
/// altogether: enough to halve a full batch down to one message, few enough not to storm a server in trouble.
const FALTERS_MAX: u32 = 12;
/// After so many requests in a row without an answer, and none that passed, the lane rests: each may take half a minute.
const SILENCES_MAX: u32 = 3;
/// A request that took so long before it failed is not worth many more of its kind: what it carried is divided into more
/// than two, which costs a few requests more and much less time.
const SILENCE_LONG: Duration = Duration::from_secs(2);
/// Into how many halves of halves: eighths.
const HALVINGS_AFTER_SILENCE: u32 = 3;
/// After so many pieces of a batch that failed in a way that time may heal, and none that passed, the rest is not tried.
const PIECES_FAILED_MAX: u32 = 4;
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
    /// Whether any request failed in a way that time may heal.
    pub faltered: bool,
    /// Requests that passed.
    passes: usize,
    /// Requests that failed in a way that time may heal, since one passed.
    falters: u32,
    /// Those of them that were not answered.
    silences: u32,
    pub halt: Option<Halt>,
}

/// A message that failed alone in a way that time may heal.
struct Failed {
    message: Claimed,
    falter: Falter,
    /// How many requests had passed when it failed first, be it with others in one request.
    passes: usize,
}

/// What became of one request.
enum Attempt {
    /// The server has it.
    Passed,
    /// The server refuses it; `items`: perhaps for one item of its body.
    Refused { items: bool, answer: LastAnswer },
    /// It failed in a way that time may heal, and the server is there.
    Faltered(Falter),
    /// Nothing more is to be sent. The answer, if it was sent at all.
    Halted(Option<LastAnswer>),
}

/// A failure that time may heal.
#[derive(Clone)]
struct Falter {
    answer: LastAnswer,
    reason: String,
    /// How long the server asked to wait.
    asked: Option<Duration>,
    /// Whether nothing said that the server is alive: then no number of attempts is the last.
    unanswered: bool,
    /// How long the request took.
    took: Duration,
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
            faltered: false,
            passes: 0,
            falters: 0,
            silences: 0,
            halt: None,
        }
    }

    /// Sends everything, or as much as the server and our lease allow; what is not sent is put back.
    pub fn send_all(&mut self, mut claimed: Vec<Claimed>) -> Result<(), StoreError> {
        let probes = self.worker.replay.probes;
        claimed.retain(|message| match probes.decision(message.id) {
            Some(outcome) => {
                self.outcomes.push((message.id, outcome));
                false
            }
            None => true,
        });
        let (first, suspects) = set_apart(claimed, |message| self.is_suspect(message));
        let suspects = suspects.into_iter().flat_map(|message| plan(std::iter::once(message)));
        // With each shipment: how many requests had passed when it first failed, as a part of a larger one.
        let mut queue: VecDeque<(Shipment, Option<usize>)> =
            plan(first).into_iter().chain(suspects).map(|shipment| (shipment, None)).collect();
        while let Some((shipment, first_failed)) = queue.pop_front() {
            if !self.may_send() || self.waits_for_an_earlier(&shipment) {
                self.put_back(&shipment, None);
                continue;
            }
            if let Some(message) = shipment.only()
                && self.is_suspect(message)
            {
                // What else it carries must not wait for one bad item, nor does it have to fail as a whole once more.
                if let Some(divisible) = Divisible::of(message.message_type, &message.request) {
                    if let Some(outcome) = self.divide(message, &divisible, None)? {
                        self.conclude(message, outcome);
                    }
                    self.settle_if_repeat_hurts(&shipment)?;
                    continue;
                }
            }
            let attempt = self.attempt(shipment.message_type(), &shipment.request(), shipment.only())?;
            match attempt {
                Attempt::Passed => self.delivered(&shipment)?,
                Attempt::Halted(answer) => self.put_back(&shipment, answer),
                Attempt::Faltered(falter) => {
                    let passes = first_failed.unwrap_or(self.passes);
                    probes.failing(self.worker.work.id, shipment.messages().map(|message| message.id));
                    let halvings = if falter.took >= SILENCE_LONG { HALVINGS_AFTER_SILENCE } else { 1 };
                    match pieces(shipment, halvings) {
                        Ok(pieces) => {
                            for piece in pieces.into_iter().rev() {
                                queue.push_front((piece, Some(passes)));
                            }
                        }
                        Err(single) => {
                            for message in single.messages() {
                                self.left.add(&message.touches);
                                let (message, falter) = (message.clone(), falter.clone());
                                self.retries.push(Failed { message, falter, passes });
                            }
                        }
                    }
                }
                Attempt::Refused { items, answer } => match shipment.parts() {
                    Ok(parts) => parts.into_iter().rev().for_each(|part| queue.push_front((part, first_failed))),
                    Err(single) => {
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

    /// Says whether a message failed before, alone, in a way that time may heal.
    fn is_suspect(&self, message: &Claimed) -> bool {
        message.attempts > 0 || self.worker.replay.probes.is_spared(self.worker.work.id, message.id)
    }

    /// Says whether the next request may be sent.
    fn may_send(&mut self) -> bool {
        if self.halt.is_none() && (self.worker.replay.shutdown.is_requested() || !self.worker.keeper.may_send()) {
            self.halt = Some(Halt::Stopped);
        }
        self.halt.is_none()
    }

    /// Sends one request, and sees to what its answer means for the lane and for the connection. `alone` is the message
    /// whose request it is, if it is one's: an attachment takes several.
    fn attempt(
        &mut self,
        message_type: MessageType,
        request: &Request,
        alone: Option<&Claimed>,
    ) -> Result<Attempt, StoreError> {
        let (replay, work) = (self.worker.replay, &self.worker.work);
        let sent = Instant::now();
        let result = match alone.filter(|message| message.message_type == MessageType::CreateAttachment) {
            Some(message) => attachment::upload(self.worker, message),
            None => self.send(message_type, request),
        };
        let took = sent.elapsed();
        let verdict = replaying(message_type, result.as_ref());
        debug!(target: "replay_manager", %message_type, ?verdict, "sent");
        if let Some(foreign) = result.as_ref().ok().and_then(|answer| answer.recognised.foreign()) {
            replay.connection.met_foreign(foreign);
        }
        Ok(match verdict {
            ReplayVerdict::Delivered => {
                if let Some(observer) = replay.observer {
                    observer.delivered(&work.lane, message_type, request);
                }
                self.passed();
                Attempt::Passed
            }
            ReplayVerdict::Refused { items } => Attempt::Refused { items, answer: last_answer(&result) },
            ReplayVerdict::Unavailable => {
                // A send that fails while pings pass would otherwise look like nothing at all.
                replay.connection.send_failed(&last_answer(&result).text);
                self.halt = Some(Halt::Unavailable);
                Attempt::Halted(Some(last_answer(&result)))
            }
            ReplayVerdict::HoldLane { asked, probe } => {
                replay.connection.lanes().failed(&work.lane);
                // A rate limit without a time is tried again soon; a key is not renewed within seconds.
                let holds = if probe { u32::MAX } else { replay.probes.held(work.id, false) };
                self.hold(holds, asked, reason(&result), probe)?;
                Attempt::Halted(Some(last_answer(&result)))
            }
            ReplayVerdict::Retry { asked, unanswered } => {
                replay.connection.lanes().failed(&work.lane);
                let answer = last_answer(&result);
                if unanswered && replay.shutdown.is_requested() {
                    // Cut short by us, perhaps: nobody is to blame.
                    self.halt = Some(Halt::Stopped);
                    return Ok(Attempt::Halted(Some(answer)));
                }
                if unanswered && !replay.connection.is_there_after_all(replay.shutdown) {
                    self.halt = Some(Halt::Unavailable);
                    return Ok(Attempt::Halted(Some(answer)));
                }
                self.faltered = true;
                self.falters += 1;
                self.silences += u32::from(unanswered);
                if took >= SILENCE_LONG {
                    replay.probes.hung(work.id);
                }
                if self.falters >= FALTERS_MAX || (self.passes == 0 && self.silences >= SILENCES_MAX) {
                    let holds = replay.probes.held(work.id, true);
                    self.hold(holds, asked, reason(&result), true)?;
                    return Ok(Attempt::Halted(Some(answer)));
                }
                Attempt::Faltered(Falter { answer, reason: reason(&result), asked, unanswered, took })
            }
        })
    }

    /// Sends a request, and where the server is too old for it what says the same.
    fn send(&self, message_type: MessageType, request: &Request) -> Result<Answer, SendFailure> {
        let replay = self.worker.replay;
        replay.metrics.replay_requests.add(1);
        let endpoint = Endpoint::Write(message_type);
        let result = replay.upstream.send(&self.worker.work.lane, endpoint, request);
        // A router that doesn't know the way is no server that is too old.
        let Some(answer) = result.as_ref().ok().filter(|answer| answer.recognised == Recognised::Refused) else {
            return result;
        };
        let Some(other) = fallback(message_type, request, answer.status, CONTENT_BYTES_MAX) else { return result };
        if !self.worker.keeper.may_send() {
            return result;
        }
        debug!(target: "replay_manager", "the Opik server takes assertion results as feedback scores only");
        replay.metrics.replay_requests.add(1);
        replay.upstream.send(&self.worker.work.lane, endpoint, &other)
    }

    /// Rejects a message, or those of its items that the server refuses.
    fn refused(&mut self, message: &Claimed, answer: &LastAnswer, items: bool) -> Result<(), StoreError> {
        let divisible = if items { Divisible::of(message.message_type, &message.request) } else { None };
        let outcome = match divisible {
            Some(divisible) => match self.divide(message, &divisible, Some(answer))? {
                Some(outcome) => outcome,
                None => return Ok(()),
            },
            None => Outcome::Rejected { answer: answer.clone() },
        };
        self.conclude(message, outcome);
        Ok(())
    }

    /// Notes what became of a message that was refused or divided, and says so.
    fn conclude(&mut self, message: &Claimed, outcome: Outcome) {
        match &outcome {
            Outcome::Rejected { answer } => warn!(
                target: "replay_manager",
                id = %message.id, message_type = %message.message_type, status = answer.status,
                "the Opik server refused a message, it is kept as rejected"
            ),
            Outcome::Divided { parts } => warn!(
                target: "replay_manager",
                id = %message.id, message_type = %message.message_type, items = message.items, parts = parts.len(),
                "a batch was refused or failed, and was divided: what passed is delivered, the rest is kept"
            ),
            Outcome::Delivered | Outcome::Failed { .. } => {}
        }
        self.outcomes.push((message.id, outcome));
    }

    /// Sends a batch in pieces until each bad item stands alone: one that was refused as a `whole`, or a suspect.
    ///
    /// All of it is settled at once, afterwards: a crash in the middle repeats pieces, which are upserts. Returns `None`
    /// when the message waits for another attempt as a whole, like one that the server could not answer for.
    fn divide(
        &mut self,
        message: &Claimed,
        divisible: &Divisible,
        whole: Option<&LastAnswer>,
    ) -> Result<Option<Outcome>, StoreError> {
        let changes = message.touches.iter().filter(|touch| touch.effect != Effect::Refer).count();
        let mut division = Division::of(divisible.len());
        let mut last_refusal = None;
        let mut faltered = None;
        let mut falters = 0;
        let mut goes_on = true;
        while let Some(items) = division.next() {
            if !goes_on || !self.may_send() {
                division.keep(items);
                continue;
            }
            match self.attempt(message.message_type, &divisible.piece(&message.request, items.clone()), None)? {
                Attempt::Passed => division.passed(items),
                Attempt::Refused { answer, .. } => {
                    last_refusal = Some(answer.clone());
                    division.refused(items, answer);
                }
                Attempt::Halted(_) => division.keep(items),
                Attempt::Faltered(falter) => {
                    faltered = Some(Failed { message: message.clone(), falter, passes: self.passes });
                    falters += 1;
                    // Two items about one entity keep their order, so no later one may pass this one. And a server that
                    // fails at the first pieces of a batch is not asked about all of them.
                    goes_on = changes == divisible.len() && (division.anything_passed() || falters < PIECES_FAILED_MAX);
                    if goes_on { division.faltered(items) } else { division.keep(items) }
                }
            }
        }
        if division.anything_passed() {
            self.delivered += 1;
        }
        if division.has_kept() {
            self.left.add(&message.touches);
        }
        Ok(Some(match division.end() {
            DivisionEnd::AllPassed => Outcome::Delivered,
            DivisionEnd::AllRefused => match whole.cloned().or(last_refusal) {
                Some(answer) => Outcome::Rejected { answer },
                None => Outcome::Failed { next_attempt_at_ms: 0, counts: false, answer: None },
            },
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
        self.delivered += shipment.len();
        self.outcomes.extend(shipment.messages().map(|message| (message.id, Outcome::Delivered)));
        self.settle_if_repeat_hurts(shipment)
    }

    /// Notes that a request passed: whatever troubled the lane before, it is not the server as a whole.
    fn passed(&mut self) {
        self.passes += 1;
        self.falters = 0;
        self.silences = 0;
        self.worker.replay.probes.passed(self.worker.work.id);
        self.worker.replay.connection.confirmed();
        self.worker.replay.connection.lanes().passed(&self.worker.work.lane);
    }

    /// Settles at once what the server would not take as an upsert a second time.
    fn settle_if_repeat_hurts(&mut self, shipment: &Shipment) -> Result<(), StoreError> {
        if shipment.messages().any(|message| !message.message_type.repeat_is_harmless()) {
            let outcomes = std::mem::take(&mut self.outcomes);
            self.worker.settle(&outcomes)?;
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

    /// Holds the lane, for longer the more often that happened since something passed.
    fn hold(&mut self, holds: u32, asked: Option<Duration>, reason: String, probe: bool) -> Result<(), StoreError> {
        let time = backoff::lane_wait(holds, jitter(), asked, self.worker.replay.settings.retry_interval);
        warn!(
            target: "replay_manager",
            "{}: held for {:.1} s, nothing is dropped: {reason}", self.worker.work.lane, time.as_secs_f64()
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
        for Failed { message, falter, .. } in blamed {
            let attempts = message.attempts.saturating_add(1);
            let outcome = if !falter.unanswered && backoff::is_exhausted(attempts, settings.attempts_max) {
                warn!(
                    target: "replay_manager",
                    id = %message.id, message_type = %message.message_type, attempts,
                    "a message failed at every attempt, it is kept as rejected"
                );
                Outcome::Rejected { answer: falter.answer }
            } else {
                let next_attempt_at_ms = in_ms(backoff::wait(attempts, jitter(), falter.asked, falter.took));
                Outcome::Failed { next_attempt_at_ms, counts: true, answer: Some(falter.answer) }
            };
            self.outcomes.push((message.id, outcome));
        }
        let Some(first) = spared.first() else { return Ok(()) };
        if self.halt.is_none() {
            let reason = match &first.falter.reason {
                reason if reason.starts_with(NOT_OPIK) => reason.clone(),
                reason => format!("the server fails at everything: {reason}"),
            };
            let (holds, asked) = (replay.probes.held(lane, true), first.falter.asked);
            self.hold(holds, asked, reason, true)?;
        }
        let probes_failed = replay.probes.probe_failed(lane);
        let behind = settings.retry_interval.saturating_mul(probes_failed.saturating_add(2)).min(PROBE_WAIT_MAX);
        for (index, Failed { message, falter, .. }) in spared.into_iter().enumerate() {
            // Only the first one tried is moved behind the next probes.
            let waits = index == 0;
            replay.probes.spare(lane, message.id, waits);
            let next_attempt_at_ms = if waits { in_ms(behind) } else { 0 };
            let answer = Some(falter.answer);
            self.outcomes.push((message.id, Outcome::Failed { next_attempt_at_ms, counts: false, answer }));
        }
        Ok(())
    }
}

/// Returns a shipment divided so many times, or the shipment itself when it can't be.
fn pieces(shipment: Shipment, divisions: u32) -> Result<Vec<Shipment>, Shipment> {
    let parts = shipment.parts()?;
    if divisions <= 1 {
        return Ok(parts);
    }
    Ok(parts.into_iter().flat_map(|part| pieces(part, divisions - 1).unwrap_or_else(|whole| vec![whole])).collect())
}

/// Returns the time after this wait, in milliseconds since the Unix epoch.
fn in_ms(wait: Duration) -> i64 {
    now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}

/// Returns a part of a divided message as the store keeps it.
fn part(message: &Claimed, divisible: &Divisible, items: Range<usize>, rejected: Option<LastAnswer>) -> Part {
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
    let request = divisible.piece(&message.request, items);
    // Cut out of what was read before; were it not, the whole message's entities are a safe answer.
    let touches = divisible.touches(message.message_type, &request).unwrap_or_else(|| message.touches.clone());
    Part { request, touches, items: count, rejected }
}

fn last_answer(result: &Result<Answer, SendFailure>) -> LastAnswer {
    match result {
        Ok(answer) => {
            let text = answer.recognised.foreign().map_or_else(|| answer.text.clone(), ToString::to_string);
            LastAnswer { status: Some(answer.status), text, at_ms: now_ms() }
        }
        Err(failure) => LastAnswer { status: None, text: failure.to_string(), at_ms: now_ms() },
    }
}

/// Says for people why a lane is held.
fn reason(result: &Result<Answer, SendFailure>) -> String {
    match result {
        Ok(Answer { status, recognised: Recognised::Foreign(foreign), .. }) if (300..400).contains(status) => {
            format!("{foreign}: set --upstream to where it is")
        }
        Ok(Answer { status, location: Some(location), .. }) if (300..400).contains(status) => {
            format!("the server redirects to {location}: set --upstream to where it is")
        }
        Ok(Answer { status: 429, .. }) => RATE_LIMITED.to_owned(),
        Ok(Answer { recognised: Recognised::Foreign(foreign), .. }) => foreign.to_string(),
        Ok(Answer { recognised: Recognised::Partial, .. }) => "the server took only a part of a request".to_owned(),
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
