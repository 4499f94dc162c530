//! Notes about updates that are forwarded before their create was seen, many in one commit.
//!
//! The commit runs while the server works on the update, and the client is answered after both.
//!
//! A store whose key is not there takes notes, too: they are not sealed, and another agent may store the create. For any
//! other store that can't be used they wait in memory, and are written before this agent stores anything again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::Shared;
use crate::message::{Effect, EntityKey, Lane, Message, Touch};

/// Notes that wait for a store that can be written again; of more than these the oldest are lost.
const PENDING_MAX: usize = 10_000;
/// Creates that are remembered while there is no store to remember them.
const CREATED_MAX: usize = 20_000;

/// Notes that are not written yet.
#[derive(Default)]
pub(super) struct AheadNotes {
    pending: Mutex<VecDeque<(Lane, EntityKey)>>,
    writing: tokio::sync::Mutex<()>,
    /// By place, what was created while there was no store.
    created: Mutex<HashSet<(i64, EntityKey)>>,
}

impl AheadNotes {
    fn pending(&self) -> MutexGuard<'_, VecDeque<(Lane, EntityKey)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn created(&self) -> MutexGuard<'_, HashSet<(i64, EntityKey)>> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what an update changes whose create was not seen either while there was no store.
    fn unseen(&self, lane: &Lane, touches: &[Touch]) -> Vec<EntityKey> {
        let (place, created) = (lane.place(), self.created());
        let is_unseen = |touch: &&Touch| {
            touch.effect == Effect::Update && touch.key.is_trace_or_span() && !created.contains(&(place, touch.key))
        };
        touches.iter().filter(is_unseen).map(|touch| touch.key).collect()
    }

    /// Takes in what a confirmed write made and ended while there was no store.
    fn confirmed(&self, lane: &Lane, touches: &[Touch]) {
        let (place, mut created) = (lane.place(), self.created());
        for touch in touches.iter().filter(|touch| touch.key.is_trace_or_span()) {
            match touch.effect {
                Effect::Create => {
                    if created.len() >= CREATED_MAX {
                        // A create that is forgotten costs a note.
                        created.clear();
                    }
                    created.insert((place, touch.key));
                }
                Effect::End => drop(created.remove(&(place, touch.key))),
                Effect::Update | Effect::Annotate | Effect::Refer => {}
            }
        }
    }
}

impl Shared {
    /// Begins to note that an update goes to the server before its create was seen; `None` when there is nothing to note.
    pub(super) fn note_ahead(self: &Arc<Self>, message: &Message) -> Option<tokio::task::JoinHandle<()>> {
        if !message.message_type.makes_partial_rows() {
            return None;
        }
        let (lane, message_type, touches) = (&message.lane, message.message_type, &message.touches);
        let unseen = match self.slot.with(|store| Ok(store.unseen_creates(lane, message_type, touches))) {
            Ok(unseen) => unseen,
            Err(_) => self.ahead_notes.unseen(lane, touches),
        };
        if unseen.is_empty() {
            return None;
        }
        self.ahead_notes.pending().extend(unseen.into_iter().map(|entity| (lane.clone(), entity)));
        Some(tokio::spawn(self.clone().write_notes()))
    }

    /// Writes the notes that waited for a store, before what they are about is stored.
    pub(super) async fn write_notes_left(self: &Arc<Self>) {
        if !self.ahead_notes.pending().is_empty() {
            self.clone().write_notes().await;
        }
    }

    /// Writes the notes that wait. Once it returns, those that waited before are written, unless the store refused them.
    async fn write_notes(self: Arc<Self>) {
        let _turn = self.ahead_notes.writing.lock().await;
        let notes = {
            let mut pending = self.ahead_notes.pending();
            if !self.slot.may_note() {
                let excess = pending.len().saturating_sub(PENDING_MAX);
                pending.drain(..excess);
                return;
            }
            std::mem::take(&mut *pending)
        };
        if notes.is_empty() {
            return;
        }
        let shared = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let notes = Vec::from(notes);
            let result = shared.slot.note_updates_ahead(&notes);
            (notes, result)
        });
        if let Ok((notes, Err(error))) = written.await {
            warn!(target: "db_manager", "cannot note {} updates that were forwarded before their create: {error}", notes.len());
            let mut pending = self.ahead_notes.pending();
            notes.into_iter().rev().for_each(|note| pending.push_front(note));
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
            self.ahead_notes.confirmed(lane, &message.touches);
            // A note that stays costs a single create, no data.
            tracing::debug!(target: "db_manager", "a note about an early update stays: {error}");
        }
    }
}
