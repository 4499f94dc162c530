//! Whether the creates of a client carry ids, as far as its connection shows.
//!
//! The server would make up an id for a create without one, and a retry would create it again. So a create without ids
//! gets them before it is sent, and has to be read for that. A client that sends ids sends them always: once a create
//! of its connection was read and every item had one, the next ones are taken to have ids, too, and only one in
//! [`UNREAD_MAX`] is read to confirm that. No header counts as evidence, because anybody may send it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::message::MessageType;

/// Creates of a connection that are taken to carry ids after one that was read and did.
const UNREAD_MAX: u32 = 200;
/// A create came without an id: no later one changes that, also not one that was read at the same time.
const NEVER: u32 = u32::MAX;

/// What a connection has shown, for each type of create: how many are still taken to carry ids.
#[derive(Debug, Default)]
pub(super) struct CreateEvidence([AtomicU32; 2]);

impl CreateEvidence {
    /// Returns whether a create of this type, which nobody read, may be taken to carry ids. Counts it.
    pub(super) fn is_trusted(&self, message_type: MessageType) -> bool {
        let Some(left) = self.of(message_type) else { return false };
        let take_one = |left: u32| if left == NEVER { None } else { left.checked_sub(1) };
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_one).is_ok()
    }

    /// Records a create that was read: how many items it has, and whether all of them carried ids.
    pub(super) fn read(&self, message_type: MessageType, items: u32, had_ids: bool) {
        let Some(left) = self.of(message_type) else { return };
        match had_ids {
            false => left.store(NEVER, Ordering::Relaxed),
            true if items == 0 => {}
            true => {
                let trust = |left| (left != NEVER).then_some(UNREAD_MAX);
                // Not once one came without an id.
                let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, trust);
            }
        }
    }

    fn of(&self, message_type: MessageType) -> Option<&AtomicU32> {
        let index = match message_type {
            MessageType::CreateTraceBatch => 0,
            MessageType::CreateSpansBatch => 1,
            _ => return None,
        };
        self.0.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creates_are_trusted_after_one_with_ids_for_a_while_and_until_one_without() {
        let evidence = CreateEvidence::default();
        let of = MessageType::CreateTraceBatch;
        assert!(!evidence.is_trusted(of), "nothing was read");
        evidence.read(of, 0, true);
        assert!(!evidence.is_trusted(of), "it had no items");
        evidence.read(of, 1, true);
        assert!(!evidence.is_trusted(MessageType::CreateSpansBatch), "it was of another type");
        let trusted = (0..).take_while(|_| evidence.is_trusted(of)).count();
        assert_eq!(trusted, UNREAD_MAX as usize);
        evidence.read(of, 1, true);
        assert!(evidence.is_trusted(of));
        evidence.read(of, 1, false);
        assert!(!evidence.is_trusted(of), "one came without an id");
        evidence.read(of, 1, true);
        assert!(!evidence.is_trusted(of), "one that was read at the same time undid it");
        evidence.read(MessageType::UpdateTrace, 1, true);
        assert!(!evidence.is_trusted(MessageType::UpdateTrace), "it is not a create");
    }
}
