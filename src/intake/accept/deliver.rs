//! Admission: the decision to forward, store or refuse a write.
//!
//! It is taken once every earlier write that this one must not overtake is done ([`crate::intake::entity_locks`]), so
//! the store knows by then what this one would overtake.

use super::not_stored::NotStored;
use super::write::{Forwarded, WaitFor, Write};
use crate::delivery::admission::{Admission, LaneState, Reachability, admit, unprotected};
use crate::delivery::unprotected::{Passage, passage};
use crate::intake::forward::{self, ClientAnswer};
use crate::protocol::answers::unavailable;
use crate::protocol::inspection::NeedsAnswer;

impl Write {
    /// Waits for the writes that it must not overtake, then forwards or registers it.
    pub(super) async fn deliver(self) -> ClientAnswer {
        let shared = &self.shared;
        // A body that is not in memory is not compared with others.
        let request = self.large.is_none().then_some(&self.message.request);
        let ticket = shared.listener.entity_locks.lock(&self.message.lane, &self.message.touches, request).await;
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
        let answer = match admission {
            Admission::Register => match self.register().await {
                Ok(answer) => answer,
                Err(not_stored) => self.answer_unregistered(not_stored).await,
            },
            Admission::Forward => self.forward_or_register().await,
            Admission::ForwardOnly => self.forward_only().await,
            Admission::Refuse(why) => shared.refuse_unprotected(why),
        };
        drop(ticket);
        answer
    }

    /// Answers a write that could not be stored.
    async fn answer_unregistered(&self, not_stored: NotStored) -> ClientAnswer {
        let shared = &self.shared;
        shared.refresh_store().await;
        // The store failed during this write: the rules for an unusable store apply to it, too.
        if shared.slot.try_get().is_err() {
            return match passage(shared.backlog_known(&self.message.touches), false) {
                Passage::Refuse(why) => shared.refuse_unprotected(why),
                Passage::Pass => self.forward_only().await,
            };
        }
        match not_stored.may_be_sent {
            true => self.send_unstored(not_stored).await,
            false => not_stored.refuse(shared),
        }
    }

    /// Forwards a write, and stores it if the server does not decide.
    async fn forward_or_register(&self) -> ClientAnswer {
        match self.forward(WaitFor::AnswerOrOutage).await {
            Forwarded::Answered(answer) => answer,
            Forwarded::Keep { fallback } => match self.register().await {
                Ok(answer) => answer,
                Err(not_stored) => {
                    let refusal = not_stored.refuse(&self.shared);
                    fallback.unwrap_or(refusal)
                }
            },
        }
    }

    /// Forwards a write that can't be stored; its client gets any answer of the server's.
    async fn forward_only(&self) -> ClientAnswer {
        match self.forward(WaitFor::Answer).await {
            Forwarded::Answered(answer) | Forwarded::Keep { fallback: Some(answer) } => answer,
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
