//! Admission: the decision to forward, store or refuse a write.
//!
//! It is taken once every earlier write that this one must not overtake is done ([`crate::intake::entity_locks`]), so
//! the store knows by then what this one would overtake. Behind one that is about to be stored there is nothing to
//! decide: this one is stored as well, mostly in the same commit.

use std::sync::Arc;

use super::held::Held;
use super::not_stored::NotStored;
use super::write::{Forwarded, WaitFor, Write};
use crate::delivery::admission::{Admission, LaneState, Reachability, admit, unprotected};
use crate::delivery::unprotected::{Passage, passage};
use crate::delivery::unread::{Concerns, Locked};
use crate::intake::entity_locks::Turn;
use crate::intake::forward::{self, ClientAnswer};
use crate::memory::Grant;
use crate::message::Effect;
use crate::protocol::answers::unavailable;
use crate::protocol::inspection::NeedsAnswer;

impl Write {
    /// Waits for the writes that it must not overtake, then forwards or registers it.
    /// `memory` is for its body.
    pub(super) async fn deliver(&self, memory: Arc<Option<Grant>>) -> ClientAnswer {
        let shared = &self.shared;
        // A body that is not in memory is not compared with others.
        let request = self.large.is_none().then_some(&self.message.request);
        let mut ticket = shared.listener.entity_locks.enqueue(&self.message.lane, &self.message.touches, request);
        let turn = ticket.turn_or_behind(|| self.may_follow()).await;
        let flight = shared.listener.windows.of(&self.message.lane).arrive(self.locked()).await;
        let mut held = Held { flight, ticket: Some(ticket), memory };
        match turn {
            Turn::Behind => Box::pin(self.register_or_send(&mut held)).await,
            Turn::First => self.decide(&mut held).await,
        }
    }

    /// Returns what others have to know about it that are in flight unread.
    fn locked(&self) -> Locked {
        let touches = &self.message.touches;
        Locked {
            concerns: Concerns::Entities(touches.as_slice().into()),
            bars: touches.iter().any(|touch| touch.effect == Effect::End),
            is_final: self.needs_answer.is_some()
                || self.large.is_some()
                || !self.message.message_type.repeat_is_harmless(),
        }
    }

    /// Returns whether it would be stored behind an earlier conflicting write that is about to be: it is neither
    /// forwarded then nor refused for a reason that may be gone after that commit. In a full store it would only keep
    /// the earlier one from being tried at the server.
    fn may_follow(&self) -> bool {
        let shared = &self.shared;
        self.needs_answer.is_none()
            && self.large.is_none()
            && shared.slot.try_get().is_ok()
            && !shared.collector.full().is_full()
            && shared.behind_moved(&self.message.touches, false).is_none()
    }

    /// Decides about a write whose turn it is.
    async fn decide(&self, held: &mut Held) -> ClientAnswer {
        let shared = &self.shared;
        shared.refresh_store().await;
        let reachability = shared.reachability();
        // During an outage every write is stored, whether or not earlier messages are queued: that is not worth
        // a query of the store, which costs more than parsing the request.
        let lane = match reachability {
            Reachability::Unavailable if self.needs_answer.is_none() && shared.slot.try_get().is_ok() => {
                LaneState::Clear
            }
            _ => match shared.lane_state(&self.message) {
                // The query itself may have found the store corrupt or replaced: then it is reopened at once.
                LaneState::StoreUnusable(known) => {
                    shared.refresh_store().await;
                    match shared.slot.try_get() {
                        Ok(_) => shared.lane_state(&self.message),
                        Err(_) => LaneState::StoreUnusable(known),
                    }
                }
                lane => lane,
            },
        };
        let follows_all = self.needs_answer.is_some_and(|needs| needs.follows_all);
        if let Some(why) = shared.behind_moved(&self.message.touches, follows_all) {
            return shared.refuse_unprotected(why);
        }
        let admission = match self.needs_answer {
            None => admit(reachability, lane),
            Some(NeedsAnswer { follows_all, .. }) if let LaneState::StoreUnusable(known) = lane => {
                unprotected(known, follows_all)
            }
            Some(NeedsAnswer { follows_all: true, .. }) if matches!(lane, LaneState::Waiting | LaneState::Disjoint) => {
                shared.metrics.intake_refused.add(1);
                let text = "earlier writes still wait for the Opik server, and this request depends on all of them";
                return forward::own_answer(unavailable(text, shared.retry_after()));
            }
            Some(_) => Admission::ForwardOnly,
        };
        match admission {
            Admission::Register => Box::pin(self.register_or_send(held)).await,
            Admission::Forward => self.forward_or_register(held).await,
            Admission::ForwardOnly => self.forward_only(held).await,
            Admission::Refuse(why) => shared.refuse_unprotected(why),
        }
    }

    /// Registers a write, and sends it to the server if it could not be stored and overtakes nothing there.
    async fn register_or_send(&self, held: &mut Held) -> ClientAnswer {
        let not_stored = match self.register(held).await {
            Ok(answer) => return answer,
            Err(not_stored) => not_stored,
        };
        if let Some(ticket) = &mut held.ticket {
            if !ticket.take_back() {
                return not_stored.refuse_unsent(&self.shared, "later writes about the same thing are stored");
            }
            // It may have followed others that are not answered yet.
            ticket.turn().await;
        }
        Box::pin(self.answer_unregistered(not_stored, held)).await
    }

    /// Answers a write that could not be stored.
    async fn answer_unregistered(&self, not_stored: NotStored, held: &mut Held) -> ClientAnswer {
        let shared = &self.shared;
        shared.refresh_store().await;
        // The store failed during this write: the rules for an unusable store apply to it, too.
        if shared.slot.try_get().is_err() {
            return match passage(shared.backlog_known(&self.message.touches), false) {
                Passage::Refuse(why) => shared.refuse_unprotected(why),
                Passage::Pass => self.forward_only(held).await,
            };
        }
        match not_stored.may_be_sent {
            true => {
                let answer = self.send_unstored(not_stored).await;
                self.settle(answer, held).await
            }
            false => not_stored.refuse(shared),
        }
    }

    /// Forwards a write, and stores it if the server does not decide.
    async fn forward_or_register(&self, held: &mut Held) -> ClientAnswer {
        let fallback = match self.forward(WaitFor::AnswerOrOutage).await {
            Forwarded::Answered(answer) => return self.settle(answer, held).await,
            Forwarded::Keep { fallback } => fallback,
        };
        match self.register(held).await {
            Ok(answer) => answer,
            Err(not_stored) => {
                let refusal = not_stored.refuse(&self.shared);
                fallback.unwrap_or(refusal)
            }
        }
    }

    /// Returns what the client gets for the server's answer. If an earlier write was stored meanwhile that would
    /// overwrite this one, this one is stored behind it first.
    async fn settle(&self, answer: ClientAnswer, held: &mut Held) -> ClientAnswer {
        if !held.answered(answer.status(), &self.message) {
            return answer;
        }
        match self.register(held).await {
            Ok(_) => answer,
            // The earlier one was not stored either.
            Err(_) if !held.answered(answer.status(), &self.message) => answer,
            Err(not_stored) => not_stored.refuse(&self.shared),
        }
    }

    /// Forwards a write that can't be stored; its client gets any answer of the server's.
    async fn forward_only(&self, held: &mut Held) -> ClientAnswer {
        match self.forward(WaitFor::Answer).await {
            Forwarded::Answered(answer) => self.settle(answer, held).await,
            Forwarded::Keep { fallback: Some(answer) } => {
                self.shared.metrics.answered_at_once(answer.status());
                self.settle(answer, held).await
            }
            Forwarded::Keep { fallback: None } => {
                self.shared.metrics.intake_refused.add(1);
                let text = match self.needs_answer {
                    None => "the Opik server cannot be reached, and opik-offline cannot store this write",
                    Some(_) => "the Opik server cannot be reached, and this request needs its answer",
                };
                forward::own_answer(unavailable(text, self.shared.retry_after()))
            }
        }
    }
}
