//! Notes about updates that are forwarded before their create was seen, many in one commit.
//!
//! The commit runs while the server processes the update, and the client is answered after both.
//!
//! A store whose encryption key is missing takes notes, too: they are not encrypted, and another agent may store the
//! create. For any other unusable store they wait in memory, and are written before this agent stores anything again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{debug, warn};

use crate::message::{Effect, EntityKey, Lane, Message, Touch};
use crate::store::slot::StoreSlot;

/// Notes that wait in memory for a usable store; the oldest are dropped past this.
const PENDING_MAX: usize = 10_000;
/// Creates that are remembered while there is no store to remember them.
const CREATED_MAX: usize = 20_000;

/// Notes that are not written yet.
pub(super) struct AheadNotes {
    slot: Arc<StoreSlot>,
    pending: Mutex<VecDeque<(Lane, EntityKey)>>,
    writing: tokio::sync::Mutex<()>,
    /// By place, what was created while there was no store.
    created: Mutex<HashSet<(i64, EntityKey)>>,
}

impl AheadNotes {
    pub(super) fn new(slot: Arc<StoreSlot>) -> Self {
        Self { slot, pending: Mutex::default(), writing: tokio::sync::Mutex::default(), created: Mutex::default() }
    }

    /// Begins to note that an update goes to the server before its create was seen; `None` when there is nothing to
    /// note.
    pub(super) fn begin_noting(self: &Arc<Self>, message: &Message) -> Option<tokio::task::JoinHandle<()>> {
        if !message.message_type.makes_partial_rows() {
            return None;
        }
        let (lane, message_type, touches) = (&message.lane, message.message_type, &message.touches);
        let unseen = match self.slot.try_with(|store| Ok(store.unseen_creates(lane, message_type, touches))) {
            Ok(unseen) => unseen,
            Err(_) => self.unseen(lane, touches),
        };
        if unseen.is_empty() {
            return None;
        }
        self.pending().extend(unseen.into_iter().map(|entity| (lane.clone(), entity)));
        Some(tokio::spawn(self.clone().write()))
    }

    /// Writes the notes that waited for a store. Call it before a message is stored that they may be about.
    pub(super) async fn write_pending(self: &Arc<Self>) {
        if !self.pending().is_empty() {
            self.clone().write().await;
        }
    }

    /// Records a forwarded write that the server confirmed.
    pub(super) fn note_confirmed(&self, message: &Message) {
        if !message.touches.iter().any(|touch| touch.key.is_trace_or_span()) {
            return;
        }
        let (lane, message_type) = (&message.lane, message.message_type);
        if let Err(error) = self.slot.try_with(|store| store.confirmed(lane, message_type, &message.touches)) {
            self.remember_created(lane, &message.touches);
            // A superfluous note costs one create that is sent alone, no data.
            debug!(target: "db_manager", "cannot remove a note about an early update: {error}");
        }
    }

    /// Writes the pending notes. Once it returns, all notes that were pending before are written, unless the store
    /// refused them.
    async fn write(self: Arc<Self>) {
        let _guard = self.writing.lock().await;
        let notes = {
            let mut pending = self.pending();
            if !self.slot.may_note() {
                drop_oldest(&mut pending);
                return;
            }
            std::mem::take(&mut *pending)
        };
        if notes.is_empty() {
            return;
        }
        let slot = self.slot.clone();
        let written = tokio::task::spawn_blocking(move || {
            let notes = Vec::from(notes);
            let result = slot.note_updates_ahead(&notes);
            (notes, result)
        });
        if let Ok((notes, Err(error))) = written.await {
            warn!(target: "db_manager", "cannot note {} updates that were forwarded before their create: {error}", notes.len());
            let mut pending = self.pending();
            notes.into_iter().rev().for_each(|note| pending.push_front(note));
            drop_oldest(&mut pending);
        }
    }

    /// Returns the entities that an update changes whose create was not seen while there was no store.
    fn unseen(&self, lane: &Lane, touches: &[Touch]) -> Vec<EntityKey> {
        let (place, created) = (lane.place(), self.created());
        let is_unseen = |touch: &&Touch| {
            touch.effect == Effect::Update && touch.key.is_trace_or_span() && !created.contains(&(place, touch.key))
        };
        touches.iter().filter(is_unseen).map(|touch| touch.key).collect()
    }

    /// Remembers what a confirmed write created, and forgets what it ended, while there is no store.
    fn remember_created(&self, lane: &Lane, touches: &[Touch]) {
        let (place, mut created) = (lane.place(), self.created());
        for touch in touches.iter().filter(|touch| touch.key.is_trace_or_span()) {
            match touch.effect {
                Effect::Create => {
                    if created.len() >= CREATED_MAX {
                        // A forgotten create costs a superfluous note.
                        created.clear();
                    }
                    created.insert((place, touch.key));
                }
                Effect::End => drop(created.remove(&(place, touch.key))),
                Effect::Update | Effect::Annotate | Effect::Refer => {}
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<(Lane, EntityKey)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn created(&self) -> MutexGuard<'_, HashSet<(i64, EntityKey)>> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_oldest(pending: &mut VecDeque<(Lane, EntityKey)>) {
    let excess = pending.len().saturating_sub(PENDING_MAX);
    pending.drain(..excess);
}
