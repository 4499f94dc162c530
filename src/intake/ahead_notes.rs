//! Notes about updates that are forwarded before their create was seen, many in one commit.
//!
//! The commit runs while the server processes the update, and the client is answered after both.
//!
//! A store whose encryption key is missing takes notes, too: they are not encrypted, and another agent may store the
//! create. For any other unusable store they wait in memory, and are written before this agent stores anything again.
//!
//! # Unread creates
//!
//! Nobody knows the entities of creates that are forwarded unread, so every later update of theirs looks like one that
//! is ahead of its create. Instead of a note for each, a *horizon* is raised: all creates of entities that are older
//! count as noted. It is written [`HORIZON_MARGIN_MS`] ahead, so that updates of new entities cost about one write a
//! second in all. The price is paid after an outage: creates of entities that are older than the horizon are sent one
//! by one.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tracing::{debug, warn};

use crate::message::{Effect, EntityKey, Lane, Message, Touch};
use crate::store::Store;
use crate::store::now_ms;
use crate::store::slot::StoreSlot;

/// Notes that wait in memory for a usable store; the oldest are dropped past this.
const PENDING_MAX: usize = 10_000;
/// Creates that are remembered while there is no store to remember them.
const CREATED_MAX: usize = 20_000;
/// How far past an updated entity's time the horizon is raised, and past the clock's an entity may be for that.
const HORIZON_MARGIN_MS: i64 = 1000;

/// Notes that are not written yet.
pub(super) struct AheadNotes {
    slot: Arc<StoreSlot>,
    pending: Mutex<VecDeque<(Lane, EntityKey)>>,
    horizon: Arc<Horizon>,
    writing: tokio::sync::Mutex<()>,
    /// By place, what was created while there was no store.
    created: Mutex<HashSet<(i64, EntityKey)>>,
}

/// The horizon of all workers. It has to be in each store in which this agent stores something.
#[derive(Default)]
pub(super) struct Horizon {
    wanted: AtomicI64,
    written: Mutex<WrittenHorizon>,
}

/// The horizon that this process wrote last, and in which store; `None` for one that can't be opened.
#[derive(Default)]
struct WrittenHorizon {
    store: Option<Weak<dyn Store>>,
    at: i64,
}

impl Horizon {
    /// Returns the horizon that is in this store.
    fn written(&self, store: Option<&Arc<dyn Store>>) -> i64 {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = match (&written.store, store) {
            (Some(of), Some(store)) => std::ptr::addr_eq(of.as_ptr(), Arc::as_ptr(store)),
            (None, None) => true,
            _ => false,
        };
        if is_there { written.at } else { 0 }
    }

    /// Returns the horizon if it has to be written to this store, else 0.
    fn to_write(&self, store: Option<&Arc<dyn Store>>) -> i64 {
        let wanted = self.wanted.load(Ordering::Acquire);
        if wanted > self.written(store) { wanted } else { 0 }
    }

    /// Records that a horizon was written to this store.
    fn wrote(&self, store: Option<&Arc<dyn Store>>, at: i64) {
        let at = at.max(self.written(store));
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        *written = WrittenHorizon { store: store.map(Arc::downgrade), at };
    }
}

impl AheadNotes {
    pub(super) fn new(slot: Arc<StoreSlot>, horizon: Arc<Horizon>) -> Self {
        Self {
            slot,
            pending: Mutex::default(),
            horizon,
            writing: tokio::sync::Mutex::default(),
            created: Mutex::default(),
        }
    }

    /// Begins to note that an update goes to the server before its create was seen; `None` when there is nothing to
    /// note. `has_unread`: creates were forwarded unread, maybe that of this update.
    pub(super) fn begin_noting(
        self: &Arc<Self>,
        message: &Message,
        has_unread: bool,
    ) -> Option<tokio::task::JoinHandle<()>> {
        if !message.message_type.makes_partial_rows() {
            return None;
        }
        let (lane, message_type, touches) = (&message.lane, message.message_type, &message.touches);
        let unseen = match self.slot.try_with(|store| Ok(store.unseen_creates(lane, message_type, touches))) {
            Ok(unseen) => unseen,
            Err(_) => self.unseen(lane, touches),
        };
        let (horizon, noted) = if has_unread { below_horizon(unseen, now_ms()) } else { (None, unseen) };
        let is_past = horizon.is_some_and(|at| at >= self.horizon.written(self.slot.try_get().ok().as_ref()));
        if let Some(at) = horizon.filter(|_| is_past) {
            self.horizon.wanted.fetch_max(at + HORIZON_MARGIN_MS, Ordering::AcqRel);
        }
        if noted.is_empty() && !is_past {
            return None;
        }
        self.pending().extend(noted.into_iter().map(|entity| (lane.clone(), entity)));
        Some(tokio::spawn(self.clone().write()))
    }

    /// Writes the notes that waited for a store. Call it before a message is stored that they may be about.
    pub(super) async fn write_pending(self: &Arc<Self>) {
        if !self.pending().is_empty() || self.horizon.to_write(self.slot.try_get().ok().as_ref()) > 0 {
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
        let store = self.slot.try_get().ok();
        let horizon = self.horizon.to_write(store.as_ref());
        if notes.is_empty() && horizon == 0 {
            return;
        }
        let slot = self.slot.clone();
        let written = tokio::task::spawn_blocking(move || {
            let notes = Vec::from(notes);
            let result = slot.note_updates_ahead(&notes, horizon);
            (notes, result)
        });
        let written = written.await;
        let is_same = || match (&store, &self.slot.try_get().ok()) {
            (Some(store), Some(now)) => Arc::ptr_eq(store, now),
            (None, None) => true,
            _ => false,
        };
        if horizon > 0 && matches!(written, Ok((_, Ok(())))) && is_same() {
            self.horizon.wrote(store.as_ref(), horizon);
        }
        drop(store);
        if let Ok((notes, Err(error))) = written {
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

/// Returns the latest time of the updated entities for which the horizon is raised, and those that get a note: their
/// ids have no time, or one in the future, from which on all creates would be sent one by one.
fn below_horizon(unseen: Vec<EntityKey>, now_ms: i64) -> (Option<i64>, Vec<EntityKey>) {
    let time = |entity: &EntityKey| entity.made_at_ms().filter(|at| *at <= now_ms + HORIZON_MARGIN_MS);
    let horizon = unseen.iter().filter_map(time).max();
    (horizon, unseen.into_iter().filter(|entity| time(entity).is_none()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::EntityKind;

    fn span(time_ms: i64, version: u8) -> EntityKey {
        let mut id = [0; 16];
        id[..6].copy_from_slice(&time_ms.to_be_bytes()[2..]);
        id[6] = version << 4;
        EntityKey::from_parts(EntityKind::Span, id)
    }

    #[test]
    fn only_entities_with_a_time_that_has_come_raise_the_horizon() {
        let now = 1_800_000_000_000;
        let (old, new) = (span(now - 5000, 7), span(now - 1, 7));
        let (timeless, future) = (span(now, 4), span(now + 3_600_000, 7));
        let (horizon, noted) = below_horizon(vec![new, timeless, old, future], now);
        assert_eq!((horizon, noted), (Some(now - 1), vec![timeless, future]));
        assert_eq!(below_horizon(vec![timeless], now), (None, vec![timeless]));
    }
}
