//! Messages that failed in a request of their own: retried later, rejected, or deferred with their lane.

use tracing::warn;

use super::{Batch, FailedMessage, in_ms};
use crate::delivery::lane_health::{Decision, Event, FailedAlone};
use crate::protocol::recognise::NOT_OPIK;
use crate::store::{Outcome, StoreError};

impl Batch<'_, '_> {
    /// Gives every message that failed alone its outcome, and holds the lane where the failures are the server's.
    ///
    /// # Errors
    ///
    /// The error that keeps the store from taking the hold.
    pub(crate) fn conclude_failures(&mut self) -> Result<(), StoreError> {
        for FailedMessage { message, failed, passes } in std::mem::take(&mut self.failed) {
            let halted = self.halt.is_some();
            let (id, attempts, failure) = (message.id, message.attempts, failed.failure);
            let event = Event::FailedAlone(FailedAlone { message: id, attempts, passes, failure, halted });
            let (wait, counts) = match self.sender.on(self.turn, event) {
                Decision::Reject => {
                    warn!(
                        target: "replay_manager",
                        %id, message_type = %message.message_type, attempts = attempts.saturating_add(1),
                        "a message failed at every attempt, it is kept as rejected"
                    );
                    self.outcomes.push((id, Outcome::Rejected { answer: failed.answer }));
                    continue;
                }
                Decision::Defer { wait, opens } => {
                    if let Some(opens) = opens {
                        let reason = match failed.reason {
                            reason if reason.starts_with(NOT_OPIK) => reason,
                            reason => format!("the server fails at everything: {reason}"),
                        };
                        self.open(opens, (reason, failed.answer.status))?;
                    }
                    (wait, false)
                }
                Decision::Retry { wait } => (wait, true),
                _ => continue,
            };
            let next_attempt_at_ms = if wait.is_zero() { 0 } else { in_ms(wait) };
            let outcome = Outcome::Failed { next_attempt_at_ms, counts, answer: Some(failed.answer) };
            self.outcomes.push((id, outcome));
        }
        Ok(())
    }
}
