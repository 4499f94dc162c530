//! One claim in flight: sent request by request, with an outcome for every message at the end.
//!
//! ```text
//! claimed ─▶ coalesced, suspects apart ─▶ request ─▶ attempt ─┬─ passed ───────────────▶ delivered
//!                                            ▲                ├─ refused, several ─▶ parts ─┐
//!                                            └────────────────┼─ failed, several ──▶ parts ─┤
//!                                                             ├─ refused alone ───▶ rejected, held or divided
//!                                                             ├─ failed alone ────▶ conclude_failures
//!                                                             └─ halted ──────────▶ returned to the queue
//! ```
//!
//! # Invariants
//!
//! 1. *Every claimed message gets exactly one outcome* from [`Batch::send_all`] and [`Batch::conclude_failures`]
//!    together, unless the store fails: then the messages stay in flight until the next round requeues them.
//! 2. *A request is sent only after all that it conflicts with is settled* (`unsettled`): a crash then repeats the
//!    newest write of each entity only, never an older one over a newer one.
//! 3. *No message overtakes an earlier one that conflicts with it*: once a message is left for a later claim (`left`),
//!    the later ones about its entities are left, too.
//! 4. *What the server would not apply as an upsert a second time is settled after its own answer*
//!    ([`MessageType::repeat_is_harmless`]), before the next request.
//! 5. *No request begins* once the lease is short, shutdown is requested, a person holds the replay, the server is
//!    unavailable, the lane is held, or another of its workers deals with backpressure (`halt`).
//!
//! What an answer means is decided by [`verdict`](crate::delivery::verdict), what the lane may do after it by
//! [`lane_health`](crate::delivery::lane_health): this file sends, and keeps order.

mod answer;
mod attempt;
mod division;
mod failures;
mod partial_rows;
mod refused_ids;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tracing::{info, warn};

use super::bounds;
use super::otlp::KnownTraces;
use super::sender::Sender;
use super::state::is_final;
use crate::delivery::backoff;
use crate::delivery::batching::coalesce::{Shipment, plan, plan_in_steps};
use crate::delivery::batching::split::Divisible;
use crate::delivery::blame::set_apart;
use crate::delivery::generation::by_generation;
use crate::delivery::lane_health::{Event, LaneHealth, LaneTurn, TransientFailure};
use crate::delivery::verdict::{is_already_there, rate_limited};
use crate::give_way::give_way;
use crate::memory::{Grant, Use};
use crate::message::{Bucket, Buckets, Claimed, EntityKey, Footprint, MessageId, MessageType};
use crate::store::{Hold, LastAnswer, Outcome, StoreError, now_ms};

/// Why the rest of a batch is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    Unavailable,
    Held,
    Stopped,
    /// Another worker of the lane deals with backpressure.
    Yielded,
}

/// One claim in flight.
pub(super) struct Batch<'w, 'a> {
    sender: &'w Sender<'a>,
    /// The lane's circuit breaker.
    turn: &'w mut LaneTurn,
    pub outcomes: Vec<(MessageId, Outcome)>,
    /// Messages that failed in a request of their own.
    failed: Vec<FailedMessage>,
    /// Entities of messages that are left for a later claim.
    left: Footprint,
    /// Entities of messages that the server has decided and that are not settled yet.
    unsettled: Footprint,
    /// Entities whose create was refused: messages that depend on them wait with it.
    refused_creates: HashSet<EntityKey>,
    /// Messages delivered so far.
    pub delivered: usize,
    /// OTLP traces that the server had from an earlier attempt.
    known_traces: KnownTraces,
    pub halt: Option<Halt>,
    /// How long its requests waited for answers.
    pub waiting: Duration,
    /// Buckets that the server limited in this batch.
    pub limited: Buckets,
}

/// A message that failed in a request of its own.
struct FailedMessage {
    message: Claimed,
    failed: FailedAttempt,
    /// [`LaneTurn::passes`] when it first failed, alone or with others in one request.
    passes: usize,
}

/// The result of one request.
enum Attempt {
    /// The server has it.
    Passed,
    /// The server refuses it, or threw a part of it away; `items`: perhaps for one item of its body.
    Refused { items: bool, thrown_away: u64, answer: LastAnswer, server_ms: Option<i64> },
    /// It failed transiently, and the server is available.
    Failed(FailedAttempt),
    /// Nothing more is sent. The answer, if it was sent at all.
    Halted(Option<LastAnswer>),
}

/// A transient failure.
#[derive(Clone)]
struct FailedAttempt {
    answer: LastAnswer,
    reason: String,
    failure: TransientFailure,
    /// How often its messages are halved before they are sent again.
    halvings: u32,
}

/// Requests to send, each with [`LaneTurn::passes`] as it was when it first failed as a part of a larger one.
type RequestQueue = VecDeque<(Shipment, Option<usize>)>;

impl<'w, 'a> Batch<'w, 'a> {
    /// Returns a batch of which nothing was sent yet.
    pub(super) fn new(sender: &'w Sender<'a>, turn: &'w mut LaneTurn) -> Self {
        Self {
            sender,
            turn,
            outcomes: Vec::new(),
            failed: Vec::new(),
            left: Footprint::default(),
            unsettled: Footprint::default(),
            refused_creates: HashSet::new(),
            delivered: 0,
            known_traces: KnownTraces::default(),
            halt: None,
            waiting: Duration::ZERO,
            limited: Buckets::default(),
        }
    }

    /// Sends everything, or as much as the server and the lease allow; the rest is returned to the queue.
    ///
    /// # Errors
    ///
    /// The error that keeps the store from being used.
    pub(super) fn send_all(&mut self, mut claimed: Vec<Claimed>) -> Result<(), StoreError> {
        self.ask_about_unsure(&mut claimed);
        let mut requests = self.requests(claimed);
        while let Some((shipment, first_failed)) = requests.pop_front() {
            let shipment = match shipment.unpack() {
                Ok(shipment) => shipment,
                Err(again) => {
                    again.into_iter().rev().for_each(|shipment| requests.push_front((shipment, first_failed)));
                    continue;
                }
            };
            let Some(mut shipment) = self.admit(shipment) else { continue };
            if shipment.messages().any(|message| self.unsettled.conflicts(&message.touches)) {
                self.settle_decided()?;
            }
            if self.send_in_pieces(&shipment)? {
                continue;
            }
            let request = shipment.pack(&give_way);
            let attempt = self.attempt(shipment.message_type(), &request, shipment.messages(), shipment.only())?;
            drop(request);
            match attempt {
                Attempt::Passed => self.delivered(&shipment)?,
                Attempt::Halted(answer) => self.leave(&shipment, answer),
                Attempt::Failed(failed) => self.divide_failed(shipment, failed, first_failed, &mut requests),
                Attempt::Refused { items, thrown_away, answer, server_ms } => {
                    let (sent, is_about_ids) = (shipment.len(), self.learn_id_window(&answer, server_ms));
                    let Some(shipment) = self.hold_outside_window(shipment) else { continue };
                    if is_about_ids && shipment.len() < sent {
                        requests.push_front((shipment, first_failed));
                        continue;
                    }
                    match shipment.parts() {
                        Ok(parts) => parts.into_iter().rev().for_each(|part| requests.push_front((part, first_failed))),
                        Err(single) => {
                            self.sender.replay.metrics.items_rejected_in_success.add(thrown_away);
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

    /// Puts claimed messages into requests: suspects each in their own, behind the others. A message about which the
    /// server decided in an earlier round, and the store could not settle it, is not sent again.
    fn requests(&mut self, mut claimed: Vec<Claimed>) -> RequestQueue {
        claimed.retain(|message| match self.sender.replay.state.unsettled(message.id) {
            Some(outcome) => {
                self.unsettled.add(&message.touches);
                self.note_refused_creates(message, &outcome);
                self.outcomes.push((message.id, outcome));
                false
            }
            None => true,
        });
        let (first, suspects) = set_apart(claimed, |message| self.is_suspect(message));
        let suspects = suspects.into_iter().flat_map(|message| plan(std::iter::once(message)));
        let first = by_generation(plan_in_steps(first, &give_way), |shipment, look| {
            shipment.messages().for_each(|message| look(&message.touches));
        });
        first.into_iter().chain(suspects).map(|shipment| (shipment, None)).collect()
    }

    /// Returns a request that may be sent now, or leaves its messages for a later claim.
    fn admit(&mut self, shipment: Shipment) -> Option<Shipment> {
        let bucket = shipment.message_type().bucket();
        if !self.may_send()
            || self.waits_for_an_earlier(&shipment)
            || self.is_stranded(&shipment)
            || self.limited.contains(bucket)
        {
            self.leave(&shipment, None);
            return None;
        }
        let shipment = self.hold_outside_window(shipment)?;
        if shipment.has_no_way() {
            self.leave_until(&shipment, self.single_creates_at_ms(), None);
            return None;
        }
        Some(shipment)
    }

    /// Sends a batch in pieces where it must not be sent whole; returns whether that decided it.
    ///
    /// That applies if an update of one of its entities may have reached the server before it, or if it is a suspect:
    /// its other items must not wait for one bad item, and it need not fail as a whole again.
    fn send_in_pieces(&mut self, shipment: &Shipment) -> Result<bool, StoreError> {
        let Some(message) = shipment.only() else { return Ok(false) };
        if !message.ahead.is_empty()
            && let Some((divisible, _memory)) = self.batch_of(message)
        {
            let message = Claimed { ahead: self.not_known_whole(&message.ahead), ..message.clone() };
            if !message.ahead.is_empty() {
                if let Some(outcome) = self.divide(&message, &divisible, None)? {
                    self.conclude(&message, outcome);
                }
                return Ok(true);
            }
        }
        if !self.is_suspect(message) {
            return Ok(false);
        }
        let Some((divisible, _memory)) = self.divisible(message) else { return Ok(false) };
        if message.message_type == MessageType::OtlpTraces && self.repeat_whole(shipment, message)? {
            return Ok(true);
        }
        if let Some(outcome) = self.divide(message, &divisible, None)? {
            self.conclude(message, outcome);
        }
        self.settle_if_repeat_hurts(shipment)?;
        Ok(true)
    }

    /// Divides a request that failed, to be sent again at once, or notes which message failed alone.
    fn divide_failed(
        &mut self,
        shipment: Shipment,
        failed: FailedAttempt,
        first_failed: Option<usize>,
        requests: &mut RequestQueue,
    ) {
        let passes = first_failed.unwrap_or(self.turn.passes());
        self.note_failed(shipment.messages().map(|message| message.id));
        match pieces(shipment, failed.halvings) {
            Ok(pieces) => {
                for piece in pieces.into_iter().rev() {
                    requests.push_front((piece, Some(passes)));
                }
            }
            Err(single) => {
                for message in single.messages() {
                    self.left.add(&message.touches);
                    let (message, failed) = (message.clone(), failed.clone());
                    self.failed.push(FailedMessage { message, failed, passes });
                }
            }
        }
    }

    /// Retries OTLP that failed before as a whole, and returns whether that decided it.
    ///
    /// The server processes the spans of a request together: it removes usage from parents whose children are in the
    /// same request, and derives the integration from all scopes. Pieces would overwrite the spans of a first attempt
    /// that was processed.
    fn repeat_whole(&mut self, shipment: &Shipment, message: &Claimed) -> Result<bool, StoreError> {
        match self.attempt(message.message_type, &message.request, std::iter::once(message), Some(message))? {
            Attempt::Passed => self.delivered(shipment)?,
            Attempt::Halted(answer) => self.leave(shipment, answer),
            Attempt::Refused { items, thrown_away, answer, .. } => {
                self.sender.replay.metrics.items_rejected_in_success.add(thrown_away);
                self.refused(message, &answer, items)?;
            }
            Attempt::Failed(_) => return Ok(false),
        }
        Ok(true)
    }

    /// Returns whether a message failed before, alone, in a way that may pass.
    fn is_suspect(&self, message: &Claimed) -> bool {
        let (state, lane) = (self.sender.replay.state, self.sender.work.id);
        message.attempts > 0 || state.with(lane, |health| health.is_deferred(message.id))
    }

    /// Returns whether the next request may be sent; if not, the rest of the batch is left.
    fn may_send(&mut self) -> bool {
        if self.halt.is_none() && (self.sender.replay.is_stopped() || !self.sender.keeper.may_send()) {
            self.halt = Some(Halt::Stopped);
        }
        if self.halt.is_none() && !self.with_health(|health, turn| health.may_send(turn)) {
            self.halt = Some(Halt::Yielded);
        }
        self.halt.is_none()
    }

    fn with_health<T>(&self, visit: impl FnOnce(&mut LaneHealth, &LaneTurn) -> T) -> T {
        self.sender.replay.state.with(self.sender.work.id, |health| visit(health, &*self.turn))
    }

    /// Notes that a request passed: the server does not fail as a whole.
    fn passed(&mut self) {
        self.sender.on(self.turn, Event::Passed);
        self.sender.replay.connection.confirmed();
        self.sender.replay.connection.lanes().passed(&self.sender.work.lane);
    }

    /// Notes messages that failed since a request passed.
    fn note_failed(&self, messages: impl Iterator<Item = MessageId>) {
        self.sender.replay.state.with(self.sender.work.id, |health| health.note_failed(messages));
    }

    /// Finds the items of a batch, with the memory for its content and its pieces.
    fn divisible(&self, message: &Claimed) -> Option<(Divisible, Option<Grant>)> {
        let memory = self.memory_to_divide(message);
        Some((Divisible::of(message.message_type, &message.request)?, memory))
    }

    /// The same for the items of a batch create, also of one with a single item.
    fn batch_of(&self, message: &Claimed) -> Option<(Divisible, Option<Grant>)> {
        if !message.message_type.is_batch_create() {
            return None;
        }
        let memory = self.memory_to_divide(message);
        Some((Divisible::of_any(message.message_type, &message.request)?, memory))
    }

    /// Waits until others that divide large bodies are done, which shutdown hastens; small ones are counted already.
    fn memory_to_divide(&self, message: &Claimed) -> Option<Grant> {
        let bytes = bounds::of_division(&message.request.body);
        let is_large = bytes > bounds::of_message(&message.request.body);
        is_large.then(|| self.sender.replay.memory.take(Use::Division, bytes).unless(|| false)).flatten()
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

    /// Returns whether a refusal means that the server already has what the request creates, and notes it.
    fn is_there(&self, message_type: MessageType, alone: bool, answer: &LastAnswer) -> bool {
        let is_there = is_already_there(message_type, alone, answer.status.unwrap_or(0), &answer.text);
        if is_there {
            self.already_there(message_type);
        }
        is_there
    }

    fn already_there(&self, message_type: MessageType) {
        self.sender.replay.metrics.items_already_there.add(1);
        info!(target: "replay_manager", %message_type, "the Opik server has this already (409), it counts as delivered");
    }

    /// Notes and logs the outcome of a message that was refused or divided.
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
                "a batch was refused or failed, and was divided: the items that passed are delivered, the rest is kept"
            ),
            Outcome::Delivered | Outcome::Failed { .. } | Outcome::Held { .. } => {}
        }
        if is_final(&outcome) {
            self.unsettled.add(&message.touches);
        }
        self.outcomes.push((message.id, outcome));
    }

    fn delivered(&mut self, shipment: &Shipment) -> Result<(), StoreError> {
        self.delivered += shipment.len();
        shipment.messages().for_each(|message| self.unsettled.add(&message.touches));
        self.outcomes.extend(shipment.messages().map(|message| (message.id, Outcome::Delivered)));
        self.settle_if_repeat_hurts(shipment)
    }

    /// Settles at once what the server would not apply as an upsert a second time.
    fn settle_if_repeat_hurts(&mut self, shipment: &Shipment) -> Result<(), StoreError> {
        if shipment.messages().any(|message| !message.message_type.repeat_is_harmless()) {
            self.settle_decided()?;
        }
        Ok(())
    }

    /// Settles what the server has decided so far. Messages that only wait for a retry are settled at the end.
    fn settle_decided(&mut self) -> Result<(), StoreError> {
        let (decided, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.outcomes).into_iter().partition(|(_, outcome)| is_final(outcome));
        self.outcomes = waiting;
        if !decided.is_empty() {
            self.sender.settle(&decided)?;
        }
        self.unsettled = Footprint::default();
        Ok(())
    }

    /// Returns whether an earlier message of this batch about the same entity waits for another attempt.
    fn waits_for_an_earlier(&self, shipment: &Shipment) -> bool {
        !self.left.is_empty() && shipment.messages().any(|message| self.left.conflicts(&message.touches))
    }

    /// Returns messages to the queue, due at once.
    fn leave(&mut self, shipment: &Shipment, answer: Option<LastAnswer>) {
        self.leave_until(shipment, 0, answer);
    }

    fn leave_until(&mut self, shipment: &Shipment, next_attempt_at_ms: i64, answer: Option<LastAnswer>) {
        shipment.messages().for_each(|message| self.left.add(&message.touches));
        self.outcomes.extend(shipment.messages().map(|message| {
            (message.id, Outcome::Failed { next_attempt_at_ms, counts: false, answer: answer.clone() })
        }));
    }

    /// Returns when single creates are accepted again, as far as this worker knows.
    fn single_creates_at_ms(&self) -> i64 {
        let limits = &self.sender.work.limits;
        let limit = limits.iter().find(|limit| limit.bucket == Some(Bucket::Single));
        limit.map_or_else(|| in_ms(backoff::FIRST_WAIT), |limit| limit.until_ms)
    }

    /// Limits a bucket of the lane; the other buckets are sent.
    fn limit(&mut self, bucket: Bucket, wait: Duration) -> Result<(), StoreError> {
        self.hold(wait, Hold { reason: rate_limited(bucket), ..hold_of(Some(429), Some(bucket)) })?;
        self.limited.insert(bucket);
        Ok(())
    }

    /// Opens the lane's circuit breaker for this long: nothing more of the batch is sent, and the hold is persisted.
    fn open(&mut self, wait: Duration, (reason, status): (String, Option<u16>)) -> Result<(), StoreError> {
        self.hold(wait, Hold { reason, probe: true, ..hold_of(status, None) })?;
        self.halt = Some(Halt::Held);
        Ok(())
    }

    fn hold(&self, wait: Duration, hold: Hold) -> Result<(), StoreError> {
        warn!(
            target: "replay_manager",
            "{}: held for {:.1} s, nothing is dropped: {}", self.sender.work.lane, wait.as_secs_f64(), hold.reason
        );
        self.sender.hold(Some(&Hold { until_ms: in_ms(wait), ..hold }))
    }
}

fn hold_of(status: Option<u16>, bucket: Option<Bucket>) -> Hold {
    Hold { until_ms: 0, reason: String::new(), probe: false, status, bucket }
}

/// Returns a shipment halved this many times, or the shipment itself if it has one message.
fn pieces(shipment: Shipment, halvings: u32) -> Result<Vec<Shipment>, Shipment> {
    let parts = shipment.parts()?;
    if halvings <= 1 {
        return Ok(parts);
    }
    Ok(parts.into_iter().flat_map(|part| pieces(part, halvings - 1).unwrap_or_else(|whole| vec![whole])).collect())
}

/// Returns the time after this wait, in milliseconds since the Unix epoch.
fn in_ms(wait: Duration) -> i64 {
    now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}
