//! One request: sent, judged, and what its answer means for the lane and for the connection.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::answer::{last_answer, reason, reason_and_status};
use super::{Attempt, Batch, FailedAttempt, Halt};
use crate::delivery::backoff;
use crate::delivery::lane_health::{Decision, Event, TransientFailure};
use crate::delivery::verdict::{ReplayVerdict, is_begun, replaying};
use crate::message::{Claimed, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::replay::attachment;
use crate::replay::otlp::{self, Completed};
use crate::store::StoreError;

impl Batch<'_, '_> {
    /// Sends one request, and applies what its answer means for the lane and for the connection. `alone` is the message
    /// whose request it is, if it is one's: an attachment takes several.
    pub(super) fn attempt<'m>(
        &mut self,
        message_type: MessageType,
        request: &Request,
        messages: impl Iterator<Item = &'m Claimed> + Clone,
        alone: Option<&Claimed>,
    ) -> Result<Attempt, StoreError> {
        let sent = Instant::now();
        let result = self.send_once(message_type, request, messages.clone(), alone);
        let took = sent.elapsed();
        self.waiting += took;
        if matches!(result, Err(SendFailure::Timeout { .. })) {
            let (state, lane) = (self.sender.replay.state, self.sender.work.id);
            state.with(lane, |health| health.note_timeouts(messages.map(|message| message.id)));
        }
        let (result, decided) = self.complete_begun(message_type, request, result);
        let verdict = decided.unwrap_or_else(|| replaying(message_type, result.as_ref()));
        debug!(target: "replay_manager", %message_type, ?verdict, "sent");
        if let Some(foreign) = result.as_ref().ok().and_then(|answer| answer.recognised.foreign()) {
            self.sender.replay.connection.met_foreign(foreign);
        }
        if verdict == ReplayVerdict::Delivered
            && let Some(observer) = self.sender.replay.observer
        {
            observer.delivered(&self.sender.work.lane, message_type, request);
        }
        self.apply(verdict, message_type, &result, took)
    }

    /// Sends a request. One whose messages got no answer in time before is given more time, as long as few are.
    fn send_once<'m>(
        &mut self,
        message_type: MessageType,
        request: &Request,
        messages: impl Iterator<Item = &'m Claimed>,
        alone: Option<&Claimed>,
    ) -> Result<Answer, SendFailure> {
        let (replay, lane) = (self.sender.replay, self.sender.work.id);
        let timeouts = replay.state.with(lane, |health| {
            messages.map(|message| health.timeouts(message.id).max(message.attempts)).max().unwrap_or(0)
        });
        let first = replay.upstream.answer_timeout();
        let patience = if timeouts > 0 { replay.state.patience() } else { None };
        let timeout = if patience.is_some() { backoff::patience(first, timeouts) } else { first };
        if let Some(message) = alone.filter(|message| message.message_type == MessageType::CreateAttachment) {
            return attachment::upload(self.sender, message, timeout);
        }
        match (message_type == MessageType::OtlpTraces).then(|| self.known_traces.attach(request)).flatten() {
            Some(attached) => self.sender.send(message_type, &attached, timeout),
            None => self.sender.send(message_type, request, timeout),
        }
    }

    /// Delivers the missing spans of OTLP whose trace the server had from an earlier attempt; returns the verdict if
    /// that gave one.
    fn complete_begun(
        &mut self,
        message_type: MessageType,
        request: &Request,
        result: Result<Answer, SendFailure>,
    ) -> (Result<Answer, SendFailure>, Option<ReplayVerdict>) {
        match result {
            Ok(answer) if is_begun(message_type, &answer.recognised, answer.status, &answer.text) => {
                match otlp::complete(self.sender, request, answer, &mut self.known_traces) {
                    Completed::Answer(result) => (result, None),
                    Completed::AlreadyThere(answer) => (Ok(answer), Some(ReplayVerdict::Delivered)),
                    Completed::NotShown(answer) => {
                        (Ok(answer), Some(ReplayVerdict::Retry { asked: None, unanswered: false }))
                    }
                }
            }
            result => (result, None),
        }
    }

    /// Applies a verdict: to the circuit breaker, to the store where the lane is held, and to the connection.
    fn apply(
        &mut self,
        verdict: ReplayVerdict,
        message_type: MessageType,
        result: &Result<Answer, SendFailure>,
        took: Duration,
    ) -> Result<Attempt, StoreError> {
        let (replay, lane) = (self.sender.replay, &self.sender.work.lane);
        let answer = || last_answer(result);
        match verdict {
            ReplayVerdict::Delivered => {
                if result.as_ref().is_ok_and(|answer| answer.status == 409) {
                    self.already_there(message_type);
                }
                self.passed();
                Ok(Attempt::Passed)
            }
            ReplayVerdict::Refused { items } => {
                let server_ms = result.as_ref().ok().and_then(|answer| answer.date_ms);
                let mut thrown_away = 0;
                if let Ok(Answer { status, partial: Some(partial), .. }) = result {
                    thrown_away = partial.rejected.unwrap_or(1);
                    warn!(
                        target: "replay_manager", %message_type, status,
                        "the Opik server accepted only a part of a request, its items are sent one by one: {partial}"
                    );
                    self.passed();
                }
                Ok(Attempt::Refused { items, thrown_away, answer: answer(), server_ms })
            }
            ReplayVerdict::Unavailable => {
                self.with_health(|health, turn| health.strain(turn));
                // A send that fails while pings pass would leave no trace otherwise.
                replay.connection.send_failed(&answer().text);
                self.halt = Some(Halt::Unavailable);
                Ok(Attempt::Halted(Some(answer())))
            }
            ReplayVerdict::HoldLane { asked } => {
                replay.connection.lanes().failed(lane);
                if let Decision::Open { wait } = self.sender.on(self.turn, Event::LaneRefused { asked }) {
                    self.open(wait, reason_and_status(result))?;
                }
                Ok(Attempt::Halted(Some(answer())))
            }
            ReplayVerdict::Limited { asked } => {
                if let Decision::Limit { wait } = self.sender.on(self.turn, Event::RateLimited { asked }) {
                    self.limit(message_type.bucket(), wait)?;
                }
                Ok(Attempt::Halted(Some(answer())))
            }
            ReplayVerdict::Retry { asked, unanswered } => {
                replay.connection.lanes().failed(lane);
                self.failed(TransientFailure { asked, is_unanswered: unanswered, took }, result)
            }
        }
    }

    /// Applies a transient failure, unless it is the whole server's or shutdown's.
    fn failed(
        &mut self,
        failure: TransientFailure,
        result: &Result<Answer, SendFailure>,
    ) -> Result<Attempt, StoreError> {
        let (replay, answer) = (self.sender.replay, last_answer(result));
        if failure.is_unanswered && replay.shutdown.is_requested() {
            // Interrupted by shutdown, perhaps: no message is to blame.
            self.halt = Some(Halt::Stopped);
            return Ok(Attempt::Halted(Some(answer)));
        }
        // Already before the ping that decides whether it is the server.
        self.with_health(|health, turn| health.strain(turn));
        if failure.is_unanswered && !replay.connection.is_there_after_all(replay.shutdown) {
            self.halt = Some(Halt::Unavailable);
            return Ok(Attempt::Halted(Some(answer)));
        }
        let halvings = match self.sender.on(self.turn, Event::TransientFailure(failure)) {
            Decision::Open { wait } => {
                self.open(wait, reason_and_status(result))?;
                return Ok(Attempt::Halted(Some(answer)));
            }
            Decision::Yield => {
                self.halt = Some(Halt::Yielded);
                return Ok(Attempt::Halted(Some(answer)));
            }
            Decision::Divide { halvings } => halvings,
            _ => 1,
        };
        Ok(Attempt::Failed(FailedAttempt { answer, reason: reason(result), failure, halvings }))
    }
}
