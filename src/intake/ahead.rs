//! Notes about updates that are forwarded before their create was seen, many in one commit.
//!
//! The commit runs while the server works on the update, and the client is answered after both.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::Shared;
use crate::message::{EntityKey, Lane, Message};

/// Notes that wait for a store that can be written again; of more than these the oldest are lost.
const PENDING_MAX: usize = 10_000;

/// Notes that are not written yet.
#[derive(Default)]
pub(super) struct AheadNotes {
    pending: Mutex<Vec<(Lane, EntityKey)>>,
    writing: tokio::sync::Mutex<()>,
}

impl AheadNotes {
    fn pending(&self) -> MutexGuard<'_, Vec<(Lane, EntityKey)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Begins to note that an update goes to the server before its create was seen; `None` when there is nothing to note.
    pub(super) fn note_ahead(self: &Arc<Self>, message: &Message) -> Option<tokio::task::JoinHandle<()>> {
        if !message.message_type.makes_partial_rows() {
            return None;
        }
        let (lane, message_type, touches) = (&message.lane, message.message_type, &message.touches);
        let unseen = self.slot.with(|store| Ok(store.unseen_creates(lane, message_type, touches))).ok()?;
        if unseen.is_empty() {
            return None;
        }
        self.ahead_notes.pending().extend(unseen.into_iter().map(|entity| (lane.clone(), entity)));
        let shared = self.clone();
        Some(tokio::spawn(async move { shared.write_notes().await }))
    }

    /// Writes the notes that wait. Once it returns, those that waited before are written, unless the store refused them.
    async fn write_notes(self: Arc<Self>) {
        let _turn = self.ahead_notes.writing.lock().await;
        let notes = std::mem::take(&mut *self.ahead_notes.pending());
        if notes.is_empty() {
            return;
        }
        let shared = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let result = shared.slot.with(|store| store.note_updates_ahead(&notes));
            (notes, result)
        });
        if let Ok((notes, Err(error))) = written.await {
            warn!(target: "db_manager", "cannot note {} updates that were forwarded before their create: {error}", notes.len());
            let mut pending = self.ahead_notes.pending();
            pending.splice(0..0, notes);
            let excess = pending.len().saturating_sub(PENDING_MAX);
            pending.drain(..excess);
        }
    }

    /// Takes in a forwarded write that the server confirmed.
    pub(super) fn note_confirmed(&self, message: &Message) {
        if !message.touches.iter().any(|touch| touch.key.is_trace_or_span()) {
            return;
        }
        let (lane, message_type) = (&message.lane, message.message_type);
        if let Err(error) = self.slot.with(|store| store.confirmed(lane, message_type, &message.touches)) {
            // A note that stays costs a single create, no data.
            tracing::debug!(target: "db_manager", "a note about an early update stays: {error}");
        }
    }
}
