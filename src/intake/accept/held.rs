//! What a write holds while it is decided about.

use std::sync::Arc;

use http::StatusCode;

use crate::intake::entity_locks::Ticket;
use crate::intake::unread::{InFlight, Kept};
use crate::memory::Grant;
use crate::message::Message;

/// The places of a write among others, until its client is answered.
pub(super) struct Held {
    /// Dropped before its entities are unlocked: those who wait for them see what became of it.
    pub(super) flight: InFlight,
    /// None for a create that went unread, and has no locks.
    pub(super) ticket: Option<Ticket>,
    /// For its body.
    pub(super) memory: Arc<Option<Grant>>,
}

impl Held {
    /// Records the server's answer to the write; see [`InFlight::answered`].
    pub(super) fn answered(&mut self, status: StatusCode, message: &Message) -> bool {
        let memory = &self.memory;
        let kept = || {
            let bytes = message.request.body.bytes.len();
            (Kept::Read(Arc::new(message.clone()), memory.clone()), bytes)
        };
        self.flight.answered(status.is_success(), kept)
    }

    /// The write was handed to the committer.
    pub(super) fn queued(&self) {
        if let Some(ticket) = &self.ticket {
            ticket.queued();
        }
    }
}
