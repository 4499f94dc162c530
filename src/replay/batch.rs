//! One claim on its way: sent request by request, with an outcome for every message at the end.

mod refused_ids;

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::attachment;
use super::bounds;
use super::lane::LaneWorker;
use super::now_ms;
use super::otlp::{self, Begun, Completed};
use crate::delivery::backoff;
use crate::delivery::batching::coalesce::{Shipment, plan};
use crate::delivery::batching::split::{Divisible, Division, DivisionEnd};
use crate::delivery::blame::{self, Evidence, set_apart};
use crate::delivery::generation::by_generation;
use crate::delivery::id_window;
use crate::delivery::verdict::{ReplayVerdict, is_already_there, is_begun, rate_limited, replaying};
use crate::memory::{Grant, Use};
use crate::message::{Bucket, Buckets, Claimed, Effect, EntityKey, Footprint, MessageId, MessageType, Request};
use crate::monitor::lane_trouble::jitter;
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::fallback::fallback;
use crate::protocol::readback;
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

/// Entities of one batch that are asked for before they are taken out of it.
const READS_MAX: usize = 50;
/// Bytes of such an answer that are read.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Contents larger than this are sent as they are only: not rewritten for an older server, not divided.
pub(super) const CONTENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

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
    /// What messages are about that the server has decided and that are not settled yet: nothing that conflicts with
    /// them is sent before they are, or a crash would repeat an older write over a newer one.
    unsettled: Footprint,
    /// Entities whose create was refused: what depends on them waits with it.
    refused_creates: HashSet<EntityKey>,
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
    /// Traces of OTLP that the server has from before.
    begun: Begun,
    pub halt: Option<Halt>,
    /// Buckets that the server limited in this batch.
    pub limited: Buckets,
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
    /// The server refuses it, or threw a part of it away; `items`: perhaps for one item of its body.
    Refused { items: bool, thrown_away: u64, answer: LastAnswer, server_ms: Option<i64> },
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
            unsettled: Footprint::default(),
            refused_creates: HashSet::new(),
            delivered: 0,
            faltered: false,
            passes: 0,
            falters: 0,
            silences: 0,
            begun: Begun::default(),
            halt: None,
            limited: Buckets::default(),
        }
    }

    /// Sends everything, or as much as the server and our lease allow; what is not sent is put back.
    pub fn send_all(&mut self, mut claimed: Vec<Claimed>) -> Result<(), StoreError> {
        let probes = self.worker.replay.probes;
        claimed.retain(|message| match probes.decision(message.id) {
            Some(outcome) => {
                self.unsettled.add(&message.touches);
                self.outcomes.push((message.id, outcome));
                false
            }
            None => true,
        });
        let (first, suspects) = set_apart(claimed, |message| self.is_suspect(message));
        let suspects = suspects.into_iter().flat_map(|message| plan(std::iter::once(message)));
        // With each shipment: how many requests had passed when it first failed, as a part of a larger one.
        let first = by_generation(plan(first), |shipment, look| {
            shipment.messages().for_each(|message| look(&message.touches));
        });
        let mut queue: VecDeque<(Shipment, Option<usize>)> =
            first.into_iter().chain(suspects).map(|shipment| (shipment, None)).collect();
        while let Some((shipment, first_failed)) = queue.pop_front() {
            let bucket = shipment.message_type().bucket();
            if !self.may_send()
                || self.waits_for_an_earlier(&shipment)
                || self.is_stranded(&shipment)
                || self.limited.contains(bucket)
            {
                self.put_back(&shipment, None);
                continue;
            }
            let Some(shipment) = self.hold_outside_window(shipment) else { continue };
            if shipment.has_no_way() {
                self.put_back_until(&shipment, self.single_creates_at_ms(), None);
                continue;
            }
            if shipment.messages().any(|message| self.unsettled.conflicts(&message.touches)) {
                self.settle_decided()?;
            }
            if let Some(message) = shipment.only()
                && !message.ahead.is_empty()
                && let Some((divisible, _memory)) = self.batch_of(message)
            {
                let message = Claimed { ahead: self.not_known_whole(&message.ahead), ..message.clone() };
                if !message.ahead.is_empty() {
                    if let Some(outcome) = self.divide(&message, &divisible, None)? {
                        self.conclude(&message, outcome);
                    }
                    continue;
                }
            }
            if let Some(message) = shipment.only()
                && self.is_suspect(message)
            {
                // What else it carries must not wait for one bad item, nor does it have to fail as a whole once more.
                if let Some((divisible, _memory)) = self.divisible(message) {
                    if message.message_type == MessageType::OtlpTraces && self.repeat_whole(&shipment, message)? {
                        continue;
                    }
                    if let Some(outcome) = self.divide(message, &divisible, None)? {
                        self.conclude(message, outcome);
                    }
                    self.settle_if_repeat_hurts(&shipment)?;
                    continue;
                }
            }
            let attempt =
                self.attempt(shipment.message_type(), &shipment.request(), shipment.messages(), shipment.only())?;
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
                Attempt::Refused { items, thrown_away, answer, server_ms } => {
                    let (sent, is_about_ids) = (shipment.len(), self.learn_id_window(&answer, server_ms));
                    let Some(shipment) = self.hold_outside_window(shipment) else { continue };
                    if is_about_ids && shipment.len() < sent {
                        queue.push_front((shipment, first_failed));
                        continue;
                    }
                    match shipment.parts() {
                        Ok(parts) => parts.into_iter().rev().for_each(|part| queue.push_front((part, first_failed))),
                        Err(single) => {
                            self.worker.replay.metrics.items_rejected_in_success.add(thrown_away);
                            for message in single.messages() {
                                self.refused(message, &answer, items)?;
                            }
                            self.settle_if_repeat_hurts(&single)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends OTLP that failed before as a whole once more, and says whether that decided it.
    ///
    /// The server looks at spans side by side: it takes usage out of parents whose children stand beside them, and names
    /// the integration by all scopes. In pieces the spans of a first attempt that was processed would be overwritten.
    fn repeat_whole(&mut self, shipment: &Shipment, message: &Claimed) -> Result<bool, StoreError> {
        match self.attempt(message.message_type, &message.request, std::iter::once(message), Some(message))? {
            Attempt::Passed => self.delivered(shipment)?,
            Attempt::Halted(answer) => self.put_back(shipment, answer),
            Attempt::Refused { items, thrown_away, answer, .. } => {
                self.worker.replay.metrics.items_rejected_in_success.add(thrown_away);
                self.refused(message, &answer, items)?;
            }
            Attempt::Faltered(_) => return Ok(false),
        }
        Ok(true)
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
    fn attempt<'m>(
        &mut self,
        message_type: MessageType,
        request: &Request,
        messages: impl Iterator<Item = &'m Claimed> + Clone,
        alone: Option<&Claimed>,
    ) -> Result<Attempt, StoreError> {
        let (replay, work) = (self.worker.replay, &self.worker.work);
        let sent = Instant::now();
        let timeouts = messages.clone().map(|message| replay.probes.timeouts(message.id).max(message.attempts)).max();
        let first = replay.upstream.answer_timeout();
        let patient =
            timeouts.filter(|timeouts| *timeouts > 0).and_then(|timeouts| Some((replay.probes.patient()?, timeouts)));
        let patience = patient.as_ref().map_or(first, |(_, timeouts)| backoff::patience(first, *timeouts));
        let result = match alone.filter(|message| message.message_type == MessageType::CreateAttachment) {
            Some(message) => attachment::upload(self.worker, message, patience),
            None => match (message_type == MessageType::OtlpTraces).then(|| self.begun.attach(request)).flatten() {
                Some(attached) => self.send(message_type, &attached, patience),
                None => self.send(message_type, request, patience),
            },
        };
        drop(patient);
        let took = sent.elapsed();
        if matches!(result, Err(SendFailure::Timeout { .. })) {
            replay.probes.timed_out(messages.map(|message| message.id));
        }
        let mut decided = None;
        let result = match result {
            Ok(answer) if is_begun(message_type, &answer.recognised, answer.status, &answer.text) => {
                match otlp::complete(self.worker, request, answer, &mut self.begun) {
                    Completed::Answer(result) => result,
                    Completed::AlreadyThere(answer) => {
                        decided = Some(ReplayVerdict::Delivered);
                        Ok(answer)
                    }
                    Completed::NotShown(answer) => {
                        decided = Some(ReplayVerdict::Retry { asked: None, unanswered: false });
                        Ok(answer)
                    }
                }
            }
            result => result,
        };
        let verdict = decided.unwrap_or_else(|| replaying(message_type, result.as_ref()));
        debug!(target: "replay_manager", %message_type, ?verdict, "sent");
        if let Some(foreign) = result.as_ref().ok().and_then(|answer| answer.recognised.foreign()) {
            replay.connection.met_foreign(foreign);
        }
        Ok(match verdict {
            ReplayVerdict::Delivered => {
                if let Some(observer) = replay.observer {
                    observer.delivered(&work.lane, message_type, request);
                }
                if result.as_ref().is_ok_and(|answer| answer.status == 409) {
                    self.already_there(message_type);
                }
                self.passed();
                Attempt::Passed
            }
            ReplayVerdict::Refused { items } => {
                let server_ms = result.as_ref().ok().and_then(|answer| answer.date_ms);
                let mut thrown_away = 0;
                if let Ok(Answer { status, partial: Some(partial), .. }) = &result {
                    thrown_away = partial.rejected.unwrap_or(1);
                    warn!(
                        target: "replay_manager", %message_type, status,
                        "the Opik server took only a part of a request, what it threw away is looked for: {partial}"
                    );
                    self.passed();
                }
                Attempt::Refused { items, thrown_away, answer: last_answer(&result), server_ms }
            }
            ReplayVerdict::Unavailable => {
                // A send that fails while pings pass would otherwise look like nothing at all.
                replay.connection.send_failed(&last_answer(&result).text);
                self.halt = Some(Halt::Unavailable);
                Attempt::Halted(Some(last_answer(&result)))
            }
            ReplayVerdict::HoldLane { asked, probe } => {
                replay.connection.lanes().failed(&work.lane);
                // A key is not renewed within seconds.
                self.hold(u32::MAX, asked, (reason(&result), status_of(&result)), probe)?;
                Attempt::Halted(Some(last_answer(&result)))
            }
            ReplayVerdict::Limited { asked } => {
                // A rate limit without a time is tried again soon.
                self.limit(message_type.bucket(), replay.probes.held(work.id, false), asked)?;
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
                    self.hold(holds, asked, (reason(&result), status_of(&result)), true)?;
                    return Ok(Attempt::Halted(Some(answer)));
                }
                Attempt::Faltered(Falter { answer, reason: reason(&result), asked, unanswered, took })
            }
        })
    }

    /// Sends a request, and where the server is too old for it what says the same.
    fn send(&self, message_type: MessageType, request: &Request, patience: Duration) -> Result<Answer, SendFailure> {
        let replay = self.worker.replay;
        replay.metrics.replay_requests.add(1);
        let endpoint = Endpoint::Write(message_type);
        let result = replay.upstream.send_within(&self.worker.work.lane, endpoint, request, patience);
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
        replay.upstream.send_within(&self.worker.work.lane, endpoint, &other, patience)
    }

    /// Finds the items of a batch, after memory was taken for its content and its pieces.
    fn divisible(&self, message: &Claimed) -> Option<(Divisible, Option<Grant>)> {
        let memory = self.memory_to_divide(message);
        Some((Divisible::of(message.message_type, &message.request)?, memory))
    }

    /// The same for the items of a batch create, also of one only.
    fn batch_of(&self, message: &Claimed) -> Option<(Divisible, Option<Grant>)> {
        if !message.message_type.is_batch_create() {
            return None;
        }
        let memory = self.memory_to_divide(message);
        Some((Divisible::of_any(message.message_type, &message.request)?, memory))
    }

    /// Waits until others that divide large bodies are done, which shutdown hastens; small ones are counted as they are.
    fn memory_to_divide(&self, message: &Claimed) -> Option<Grant> {
        let bytes = bounds::of_division(&message.request.body);
        let is_large = bytes > bounds::of_message(&message.request.body);
        is_large.then(|| self.worker.replay.memory.take(Use::Division, bytes).unless(|| false)).flatten()
    }

    /// Rejects a message, or those of its items that the server refuses.
    fn refused(&mut self, message: &Claimed, answer: &LastAnswer, items: bool) -> Result<(), StoreError> {
        let divisible = if items { self.divisible(message) } else { None };
        let outcome = match divisible {
            Some((divisible, _memory)) => match self.divide(message, &divisible, Some(answer))? {
                Some(outcome) => outcome,
                None => return Ok(()),
            },
            None if self.is_there(message.message_type, message.items == 1, answer) => {
                self.delivered += 1;
                Outcome::Delivered
            }
            None => Outcome::Rejected { answer: answer.clone() },
        };
        self.conclude(message, outcome);
        Ok(())
    }

    /// Says whether a refusal means that what was to be made is there already, and notes it.
    fn is_there(&self, message_type: MessageType, alone: bool, answer: &LastAnswer) -> bool {
        let is_there = is_already_there(message_type, alone, answer.status.unwrap_or(0), &answer.text);
        if is_there {
            self.already_there(message_type);
        }
        is_there
    }

    fn already_there(&self, message_type: MessageType) {
        self.worker.replay.metrics.items_already_there.add(1);
        info!(target: "replay_manager", %message_type, "the Opik server has this already (409), it counts as delivered");
    }

    /// Notes what became of a message that was refused or divided, and says so.
    fn conclude(&mut self, message: &Claimed, outcome: Outcome) {
        let outcome = self.held_instead(outcome);
        self.note_refused_creates(message, &outcome);
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
            Outcome::Delivered | Outcome::Failed { .. } | Outcome::Held { .. } => {}
        }
        if !matches!(outcome, Outcome::Failed { .. }) {
            self.unsettled.add(&message.touches);
        }
        self.outcomes.push((message.id, outcome));
    }

    /// Sends a batch in pieces until each bad item stands alone: one that was refused as a `whole`, or a suspect.
    ///
    /// All of it is settled at once, afterwards: a crash in the middle repeats pieces, which are upserts. So a piece is
    /// kept for later, with those behind it, where one of its items is about an entity of a piece that passed: repeated
    /// after a crash, that one would be an older write over a newer one. Returns `None` when the message waits for another
    /// attempt as a whole, like one that the server could not answer for.
    fn divide(
        &mut self,
        message: &Claimed,
        divisible: &Divisible,
        whole: Option<&LastAnswer>,
    ) -> Result<Option<Outcome>, StoreError> {
        let changes = message.touches.iter().filter(|touch| touch.effect != Effect::Refer).count();
        // Created singly: updates of these may have reached the server before.
        let alone = match &*message.ahead {
            [] => Vec::new(),
            ahead => divisible.creating(message.message_type, &message.request, ahead),
        };
        let mut division = match &*alone {
            [] => Division::of(divisible.len()),
            alone => Division::cut(divisible.len(), alone),
        };
        let mut last_refusal = None;
        let mut faltered = None;
        let mut falters = 0;
        let mut goes_on = true;
        // Spans of OTLP have no order among themselves.
        let is_disjoint = changes == divisible.len() || message.message_type == MessageType::OtlpTraces;
        let mut passed = Footprint::default();
        while let Some(items) = division.next() {
            if !goes_on || !self.may_send() {
                division.keep(items);
                continue;
            }
            let piece = divisible.piece(&message.request, items.clone());
            let touches = match is_disjoint {
                true => Vec::new(),
                false => divisible.touches(message.message_type, &piece).unwrap_or_else(|| message.touches.clone()),
            };
            if passed.conflicts(&touches) {
                goes_on = false;
                division.keep(items);
                continue;
            }
            let single = Some(items.start)
                .filter(|index| items.len() == 1 && alone.contains(index))
                .and_then(|index| divisible.single_create(message.message_type, &message.request, index));
            let (message_type, request) = single.unwrap_or((message.message_type, piece));
            if self.limited.contains(message_type.bucket()) {
                division.keep(items);
                continue;
            }
            match self.attempt(message_type, &request, std::iter::once(message), None)? {
                Attempt::Passed => {
                    passed.add(&touches);
                    division.passed(items);
                }
                Attempt::Refused { answer, .. } if self.is_there(message_type, items.len() == 1, &answer) => {
                    passed.add(&touches);
                    division.passed(items);
                }
                Attempt::Refused { answer, .. } => {
                    last_refusal = Some(answer.clone());
                    division.refused(items, answer);
                }
                Attempt::Halted(_) => division.keep(items),
                Attempt::Faltered(falter) => {
                    faltered = Some(Failed { message: message.clone(), falter, passes: self.passes });
                    falters += 1;
                    // Two items about one entity keep their order, so no later one may pass this one; spans have none.
                    // And a server that fails at the first pieces of a batch is not asked about all of them.
                    goes_on = is_disjoint && (division.anything_passed() || falters < PIECES_FAILED_MAX);
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
        shipment.messages().for_each(|message| self.unsettled.add(&message.touches));
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
            self.settle_decided()?;
        }
        Ok(())
    }

    /// Settles what the server has decided so far. What only waits for another try is settled at the end.
    fn settle_decided(&mut self) -> Result<(), StoreError> {
        let is_decided = |outcome: &Outcome| !matches!(outcome, Outcome::Failed { .. });
        let (decided, waiting) = std::mem::take(&mut self.outcomes).into_iter().partition(|(_, o)| is_decided(o));
        self.outcomes = waiting;
        let decided: Vec<_> = decided;
        if !decided.is_empty() {
            self.worker.settle(&decided)?;
        }
        self.unsettled = Footprint::default();
        Ok(())
    }

    /// Says whether an earlier message of this batch about the same entity waits for another attempt.
    fn waits_for_an_earlier(&self, shipment: &Shipment) -> bool {
        !self.left.is_empty() && shipment.messages().any(|message| self.left.conflicts(&message.touches))
    }

    fn put_back(&mut self, shipment: &Shipment, answer: Option<LastAnswer>) {
        self.put_back_until(shipment, 0, answer);
    }

    fn put_back_until(&mut self, shipment: &Shipment, next_attempt_at_ms: i64, answer: Option<LastAnswer>) {
        shipment.messages().for_each(|message| self.left.add(&message.touches));
        self.outcomes.extend(shipment.messages().map(|message| {
            (message.id, Outcome::Failed { next_attempt_at_ms, counts: false, answer: answer.clone() })
        }));
    }

    /// Returns those of these traces and spans that the server may know by an update only.
    ///
    /// A single create leaves a whole record alone, where the item of a batch may replace it. So an item is taken out of its
    /// batch only if the server does not show that a create arrived before the update after all.
    fn not_known_whole(&mut self, entities: &[EntityKey]) -> Vec<EntityKey> {
        let mut left = entities.to_vec();
        if entities.len() > READS_MAX {
            return left;
        }
        for entity in entities {
            let Some(read) = readback::of_trace_or_span(entity) else { continue };
            if !self.may_send() {
                break;
            }
            match self.worker.replay.upstream.read_back(&self.worker.work.lane, &read, READ_BYTES_MAX) {
                Ok(answer) if answer.status == 200 && answer.is_confirmed() => {
                    if readback::shown(answer.text.as_bytes()).is_some_and(|shown| !shown.is_partial) {
                        left.retain(|other| other != entity);
                    }
                }
                Ok(answer) if answer.status == 404 && answer.recognised == Recognised::Refused => {}
                // Not to be read now: a single create is right for all but a record that was created twice.
                Ok(_) | Err(_) => break,
            }
        }
        left
    }

    /// Returns when single creates are taken again, as far as this worker knows.
    fn single_creates_at_ms(&self) -> i64 {
        let limits = &self.worker.work.limits;
        let limit = limits.iter().find(|limit| limit.bucket == Some(Bucket::Single));
        limit.map_or_else(|| in_ms(Duration::from_secs(1)), |limit| limit.until_ms)
    }

    /// Limits a bucket of the lane, for longer the more often that happened since something passed; the rest goes on.
    fn limit(&mut self, bucket: Bucket, holds: u32, asked: Option<Duration>) -> Result<(), StoreError> {
        let time = backoff::lane_wait(holds, jitter(), asked, self.worker.replay.settings.retry_interval);
        let reason = rate_limited(bucket);
        warn!(
            target: "replay_manager",
            "{}: held for {:.1} s, nothing is dropped: {reason}", self.worker.work.lane, time.as_secs_f64()
        );
        let hold = Hold { until_ms: in_ms(time), reason, probe: false, status: Some(429), bucket: Some(bucket) };
        self.worker.replay.store.hold(&self.worker.keeper.lease, self.worker.work.id, Some(&hold))?;
        self.limited.insert(bucket);
        Ok(())
    }

    /// Holds the lane, for longer the more often that happened since something passed.
    fn hold(
        &mut self,
        holds: u32,
        asked: Option<Duration>,
        (reason, status): (String, Option<u16>),
        probe: bool,
    ) -> Result<(), StoreError> {
        let time = backoff::lane_wait(holds, jitter(), asked, self.worker.replay.settings.retry_interval);
        warn!(
            target: "replay_manager",
            "{}: held for {:.1} s, nothing is dropped: {reason}", self.worker.work.lane, time.as_secs_f64()
        );
        let hold = Hold { until_ms: in_ms(time), reason, probe, status, bucket: None };
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
            self.hold(holds, asked, (reason, first.falter.answer.status), true)?;
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
    let is_held = |answer: &LastAnswer| id_window::read(answer.status, &answer.text).is_some();
    let (held, rejected) = if rejected.as_ref().is_some_and(is_held) { (rejected, None) } else { (None, rejected) };
    Part { request, touches, items: count, rejected, held }
}

fn last_answer(result: &Result<Answer, SendFailure>) -> LastAnswer {
    match result {
        Ok(answer) => {
            let text = match (&answer.partial, answer.recognised.foreign()) {
                (Some(partial), _) => partial.to_string(),
                (None, Some(foreign)) => foreign.to_string(),
                (None, None) => answer.text.clone(),
            };
            LastAnswer { status: Some(answer.status), text, at_ms: now_ms() }
        }
        Err(failure) => LastAnswer { status: None, text: failure.to_string(), at_ms: now_ms() },
    }
}

/// Returns the status that the server itself said: a front's 403 is no word about a key.
fn status_of(result: &Result<Answer, SendFailure>) -> Option<u16> {
    result.as_ref().ok().filter(|answer| answer.recognised.foreign().is_none()).map(|answer| answer.status)
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
        Ok(Answer { recognised: Recognised::Foreign(foreign), .. }) => foreign.to_string(),
        Ok(Answer { partial: Some(partial), .. }) => partial.to_string(),
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
