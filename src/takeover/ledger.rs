//! Which stream each message of the scratch store comes from, and the marks that say what became of it.
//!
//! The replayer settles an outcome only after a mark of it is durable in the depot: if it is killed between the two, its
//! successor does not repeat an older write over a newer one. Only final outcomes are marked. A message that the server
//! rejected is first copied to the folder of rejected messages, because its bundle will be deleted.
//!
//! # Parts
//!
//! The parts of a divided message get ids of their own in the scratch store, which nobody tells. They are recognised when
//! they are settled, by their lane and the digest of their request, which is also their name in the marks.
//!
//! # Concurrency
//!
//! Importing holds the lock from before the commit that stores messages until their origins are noted, so that an
//! outcome never meets a message whose origin is unknown. The lock is held over no request to the depot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::holdings::Holdings;
use super::key_folder::KeyFolder;
use super::keys::FleetKeys;
use super::rejected_copies::RejectedCopies;
use crate::depot::{Depot, DepotError};
use crate::fleet::mark_writer::MarkWriter;
use crate::fleet::marks::{Fate, Mark};
use crate::fleet::names::StreamId;
use crate::fleet::record::{FileContent, FleetRecord, MessageRef, RecordState, ShippedFile, part_digest};
use crate::fleet::seals::Seals;
use crate::fleet::spooled::{Removal, ShippedLedger};
use crate::message::{Lane, Message, MessageId, Sha256};
use crate::store::{LastAnswer, Lease, Outcome, Part, SalvagedRow, Store, StoreError, StoredMessage};

/// Where a message of the scratch store comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageOrigin {
    pub stream: StreamId,
    /// The number of its bundle.
    pub bundle: u32,
    /// Its name in the stream.
    pub reference: MessageRef,
}

/// A row of the scratch store, and where it comes from unless it is rejected.
pub(super) struct ImportRow {
    pub row: SalvagedRow,
    pub origin: Option<MessageOrigin>,
}

/// Messages of one bundle that are in the scratch store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outstanding {
    messages: u64,
    /// Bytes of all its messages, as its name says: they count until the last one is settled.
    bytes: u64,
}

/// The size of the scratch store's contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Staged {
    pub messages: u64,
    pub bytes: u64,
}

#[derive(Default)]
struct Origins {
    /// By the message's id in the scratch store.
    of: HashMap<i64, MessageOrigin>,
    /// Parts of divided messages whose ids are not known yet.
    parts: HashMap<(Lane, Sha256), Vec<MessageOrigin>>,
    bundles: BTreeMap<(StreamId, u32), Outstanding>,
    staged: Staged,
    /// Rejected messages, whose files are kept with them.
    files_kept: HashSet<(StreamId, u64)>,
}

/// The changes that follow from the outcomes of one commit.
#[derive(Default)]
struct Settling {
    settled: Vec<(MessageId, MessageOrigin)>,
    /// The parts of divided messages that wait.
    parts: Vec<(Lane, MessageOrigin)>,
    rejected: Vec<MessageOrigin>,
}

impl Origins {
    fn add(&mut self, id: MessageId, origin: MessageOrigin) {
        self.of.insert(id.0, origin);
        self.count(origin);
    }

    fn count(&mut self, origin: MessageOrigin) {
        self.bundles.entry((origin.stream, origin.bundle)).or_default().messages += 1;
        self.staged.messages += 1;
    }

    /// Notes that one message is gone from the scratch store.
    fn remove(&mut self, origin: MessageOrigin) {
        self.staged.messages = self.staged.messages.saturating_sub(1);
        if let Some(bundle) = self.bundles.get_mut(&(origin.stream, origin.bundle)) {
            bundle.messages = bundle.messages.saturating_sub(1);
            if bundle.messages == 0 {
                self.staged.bytes = self.staged.bytes.saturating_sub(bundle.bytes);
                bundle.bytes = 0;
            }
        }
    }

    fn add_part(&mut self, lane: &Lane, part: MessageOrigin) {
        let Some(digest) = part.reference.part else { return };
        self.parts.entry((lane.clone(), digest)).or_default().push(part);
        self.count(part);
    }

    fn drop_part(&mut self, lane: &Lane, part: MessageOrigin) {
        let Some(parts) = part.reference.part.and_then(|digest| self.parts.get_mut(&(lane.clone(), digest))) else {
            return;
        };
        if let Some(at) = parts.iter().position(|known| *known == part) {
            parts.swap_remove(at);
            self.remove(part);
        }
    }

    /// Removes and returns the origin of a part of this lane with this digest.
    fn take_part(&mut self, lane: &Lane, digest: Sha256) -> Option<MessageOrigin> {
        let key = (lane.clone(), digest);
        let parts = self.parts.get_mut(&key)?;
        let origin = parts.pop();
        if parts.is_empty() {
            self.parts.remove(&key);
        }
        origin
    }
}

/// The origins of a replayer's messages, and its marks.
pub(super) struct ReplayerLedger {
    holdings: Arc<Holdings>,
    marks: MarkWriter,
    seals: Seals,
    folder: Arc<KeyFolder>,
    copies: RejectedCopies,
    origins: Mutex<Origins>,
}

impl ReplayerLedger {
    pub(super) fn new(depot: Arc<dyn Depot>, holdings: Arc<Holdings>, keys: &FleetKeys) -> Self {
        let (marks, seals, folder) = (MarkWriter::new(depot.clone()), keys.seals.clone(), keys.folder.clone());
        let copies = RejectedCopies::new(depot, keys);
        Self { holdings, marks, seals, folder, copies, origins: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Origins> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores rows in the scratch store and notes where they come from; returns how many were new and wait.
    ///
    /// # Errors
    ///
    /// As [`crate::store::Intake::salvage`]: none of them is stored.
    pub(super) fn import(&self, imports: Vec<ImportRow>, store: &dyn Store) -> Result<u64, StoreError> {
        let (rows, origins): (Vec<_>, Vec<_>) = imports.into_iter().map(|import| (import.row, import.origin)).unzip();
        let mut known = self.lock();
        let ids = store.salvage(&rows)?;
        let mut new = 0;
        for (id, origin) in ids.into_iter().zip(origins) {
            if let (Some(id), Some(origin)) = (id, origin) {
                known.add(id, origin);
                new += 1;
            }
        }
        Ok(new)
    }

    /// Notes the size of a bundle that was imported: it counts until its last message is settled.
    pub(super) fn add_bytes(&self, stream: StreamId, bundle: u32, bytes: u64) {
        let mut known = self.lock();
        // All of it may be settled already.
        let Some(outstanding) = known.bundles.get_mut(&(stream, bundle)).filter(|bundle| bundle.messages > 0) else {
            return;
        };
        outstanding.bytes += bytes;
        known.staged.bytes += bytes;
    }

    /// Returns how much of the scratch store is in use.
    pub(super) fn staged(&self) -> Staged {
        self.lock().staged
    }

    /// Returns how many messages of a stream are not settled.
    pub(super) fn outstanding(&self, stream: StreamId) -> u64 {
        let known = self.lock();
        known.bundles.range((stream, 0)..=(stream, u32::MAX)).map(|(_, bundle)| bundle.messages).sum()
    }

    /// Returns whether the file of a message is kept when its stream is deleted, because it was rejected.
    pub(super) fn keeps_file(&self, stream: StreamId, message: u64) -> bool {
        self.lock().files_kept.contains(&(stream, message))
    }

    /// Forgets a stream of which the scratch store holds nothing.
    pub(super) fn forget(&self, stream: StreamId) {
        self.copies.forget(stream);
        let mut known = self.lock();
        known.files_kept.retain(|(of, _)| *of != stream);
        known.of.retain(|_, origin| origin.stream != stream);
        known.parts.retain(|_, parts| {
            parts.retain(|origin| origin.stream != stream);
            !parts.is_empty()
        });
        let bundles: Vec<_> = known.bundles.range((stream, 0)..=(stream, u32::MAX)).map(|(key, _)| *key).collect();
        for key in bundles {
            if let Some(Outstanding { messages, bytes }) = known.bundles.remove(&key) {
                known.staged.messages = known.staged.messages.saturating_sub(messages);
                known.staged.bytes = known.staged.bytes.saturating_sub(bytes);
            }
        }
    }

    /// Returns the messages of a stream that are in the scratch store, by their ids there; parts included.
    pub(super) fn ids_of(&self, stream: StreamId, store: &dyn Store) -> Result<Vec<MessageId>, StoreError> {
        self.name_parts(store)?;
        let known = self.lock();
        let mut ids: Vec<MessageId> =
            known.of.iter().filter(|(_, origin)| origin.stream == stream).map(|(id, _)| MessageId(*id)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Finds the ids of all parts.
    fn name_parts(&self, store: &dyn Store) -> Result<(), StoreError> {
        use crate::store::{Filter, Page};
        let mut after = None;
        while !self.lock().parts.is_empty() {
            let page = store.list(&Filter::default(), &Page { after, limit: 500, newest_first: false })?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for listed in page {
                if !self.lock().of.contains_key(&listed.id.0)
                    && let Some(stored) = store.get(listed.id)?
                {
                    self.name_part(listed.id, &stored);
                }
            }
        }
        Ok(())
    }

    /// Notes the id of a part; returns its origin.
    fn name_part(&self, id: MessageId, stored: &StoredMessage) -> Option<MessageOrigin> {
        let digest = part_digest(&stored.request);
        let mut known = self.lock();
        let origin = known.take_part(&stored.listed.lane, digest)?;
        known.of.insert(id.0, origin);
        Some(origin)
    }

    /// Returns where a message comes from.
    fn origin(&self, store: &dyn Store, id: MessageId) -> Result<MessageOrigin, StoreError> {
        if let Some(origin) = self.lock().of.get(&id.0) {
            return Ok(*origin);
        }
        let part = store.get(id)?.and_then(|stored| self.name_part(id, &stored));
        // Nothing else stores messages here. Unsettled it is only delivered again.
        part.ok_or_else(|| StoreError::DepotAway { reason: format!("message {id} comes from no stream") })
    }

    /// Keeps a record that was rejected before it was imported.
    pub(super) fn put_aside(&self, stream: StreamId, record: &FleetRecord) -> Result<(), DepotError> {
        self.copies.keep(stream, record.clone())?;
        self.lock().files_kept.insert((stream, record.reference.message));
        Ok(())
    }

    /// Notes that a rejected message is imported as one that waits: its copy goes once it is settled.
    pub(super) fn retry(&self, stream: StreamId, record: &FleetRecord) {
        self.copies.retry(stream, record);
    }

    /// Marks messages that are not delivered, and will not be.
    pub(super) fn mark(&self, stream: StreamId, marks: Vec<Mark>) -> Result<(), DepotError> {
        self.mark_all([(stream, marks)])
    }

    /// Makes marks durable. A stream that was lost meanwhile is its new owner's, who may have deleted it.
    fn mark_all(&self, marks: impl IntoIterator<Item = (StreamId, Vec<Mark>)>) -> Result<(), DepotError> {
        let held = marks.into_iter().filter_map(|(stream, mut marks)| {
            self.folder.withhold_from(&mut marks);
            self.holdings.epoch(stream).map(|epoch| ((stream, epoch), marks))
        });
        self.marks.mark_all(&self.seals, held.collect())
    }

    /// Makes marks of the final ones of these outcomes durable; returns what changes with them.
    fn mark_outcomes(&self, store: &dyn Store, outcomes: &[(MessageId, Outcome)]) -> Result<Settling, StoreError> {
        let mut marks: BTreeMap<StreamId, Vec<Mark>> = BTreeMap::new();
        let mut settling = Settling::default();
        for (id, outcome) in outcomes {
            if matches!(outcome, Outcome::Failed { .. } | Outcome::Held { .. }) {
                continue;
            }
            let origin = self.origin(store, *id)?;
            let fate = match outcome {
                Outcome::Rejected { answer } => {
                    self.reject(store, *id, origin, answer)?;
                    settling.rejected.push(origin);
                    Fate::Rejected(answer.clone())
                }
                Outcome::Divided { parts } => {
                    self.divide(store, (*id, origin), parts, &mut settling)?;
                    Fate::Divided(parts.clone())
                }
                _ => Fate::Delivered,
            };
            marks.entry(origin.stream).or_default().push(Mark { reference: origin.reference, fate });
            settling.settled.push((*id, origin));
        }
        self.mark_all(marks).map_err(away)?;
        for (_, origin) in &settling.settled {
            if !settling.rejected.contains(origin) {
                self.copies.settled(origin.stream, &origin.reference).map_err(away)?;
            }
        }
        Ok(settling)
    }

    fn reject(
        &self,
        store: &dyn Store,
        id: MessageId,
        origin: MessageOrigin,
        answer: &LastAnswer,
    ) -> Result<(), StoreError> {
        let Some(stored) = store.get(id)? else { return Ok(()) };
        let file = store.attachment(id)?.map(|file| ShippedFile::new(FileContent::Attachment, file));
        let record = FleetRecord {
            reference: origin.reference,
            attempts: stored.listed.attempts,
            state: RecordState::Rejected(answer.clone()),
            file,
            ..FleetRecord::waiting(origin.reference.message, stored.into_message())
        };
        self.copies.keep(origin.stream, record).map_err(away)
    }

    /// Notes the parts of a divided message that wait, and copies those that were rejected.
    fn divide(
        &self,
        store: &dyn Store,
        (id, origin): (MessageId, MessageOrigin),
        parts: &[Part],
        settling: &mut Settling,
    ) -> Result<(), StoreError> {
        let Some(whole) = store.get(id)?.map(StoredMessage::into_message) else { return Ok(()) };
        for part in parts {
            let reference = origin.reference.part(&part.request);
            let Some(answer) = &part.rejected else {
                settling.parts.push((whole.lane.clone(), MessageOrigin { reference, ..origin }));
                continue;
            };
            let (request, touches) = (part.request.clone(), part.touches.clone());
            let message = Message { request, touches, items: part.items, ..whole.clone() };
            let record = FleetRecord {
                reference,
                state: RecordState::Rejected(answer.clone()),
                ..FleetRecord::waiting(reference.message, message)
            };
            self.copies.keep(origin.stream, record).map_err(away)?;
        }
        Ok(())
    }

    /// Commits outcomes whose marks are durable. The parts are known before the commit, because another thread may
    /// settle them right behind it.
    fn commit(
        &self,
        store: &dyn Store,
        lease: &Lease,
        outcomes: &[(MessageId, Outcome)],
        settling: Settling,
    ) -> Result<(), StoreError> {
        {
            let mut known = self.lock();
            for (lane, part) in &settling.parts {
                known.add_part(lane, *part);
            }
        }
        let committed = store.settle(lease, outcomes);
        let mut known = self.lock();
        match &committed {
            Ok(()) => {
                for (id, origin) in settling.settled {
                    known.of.remove(&id.0);
                    known.remove(origin);
                }
                known.files_kept.extend(settling.rejected.iter().map(|at| (at.stream, at.reference.message)));
            }
            // It is settled again in the next round.
            Err(_) => {
                for (lane, part) in &settling.parts {
                    known.drop_part(lane, *part);
                }
            }
        }
        committed
    }
}

/// Returns the store's error for a depot that can't be written: nothing was settled.
fn away(error: DepotError) -> StoreError {
    StoreError::DepotAway { reason: error.to_string() }
}

impl ShippedLedger for ReplayerLedger {
    fn may_send(&self, _: &dyn Store) -> Result<(), StoreError> {
        self.holdings.may_send()
    }

    fn settle(&self, store: &dyn Store, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let settling = self.mark_outcomes(store, outcomes)?;
        self.commit(store, lease, outcomes, settling)
    }

    fn registered(&self, _: &dyn Store, ids: &[MessageId]) -> Result<(), StoreError> {
        // Only imports store messages here, under the lock.
        if !ids.is_empty() {
            warn!(target: "fleet", "messages were stored that come from no stream");
        }
        Ok(())
    }

    fn deleted(&self, _: &dyn Store, _: Removal) {
        // Messages are deleted here because their stream was lost: what becomes of them is its new owner's.
    }
}
