//! What a write holds while it is decided about.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use crate::intake::entity_locks::Ticket;
use crate::intake::unread::{InFlight, Kept};
use crate::memory::Grant;
use crate::message::Message;

/// Bytes of a body below which it is copied to be kept. hyper reads into buffers of some such size.
const SHARED_BUFFER_BYTES: usize = 64 * 1024;

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
            let mut message = message.clone();
            message.request.body.bytes = unshared(message.request.body.bytes);
            let bytes = message.request.body.bytes.len();
            (Kept::Read(Arc::new(message), memory.clone()), bytes)
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

/// Returns a body that may be kept after its answer. Only its own bytes are counted, and a small one would keep the
/// whole buffer from which its connection read it.
pub(super) fn unshared(bytes: Bytes) -> Bytes {
    if bytes.len() < SHARED_BUFFER_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes }
}
