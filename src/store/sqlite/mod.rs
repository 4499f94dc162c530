//! The SQLite engine: a store in one file, beside its write-ahead log.
//!
//! # How it keeps its promises
//!
//! - **Durable**: WAL with `synchronous=FULL`, so a commit returns after an fsync of the log. The folder entry is synced
//!   when the file is made. Every commit of new messages looks whether the path still leads to the open file: a message
//!   in a deleted file is not stored.
//! - **Never in the way**: reads use connections of their own and don't wait for a commit; commits don't wait for reads.
//!   Writes are short, and what may be long (purge, compact) is cut into steps.
//! - **Constant cost**: the summary is kept in the transactions that change it, so counting doesn't scan. Claims walk an
//!   index that holds waiting messages only.
//! - **Bounded memory**: a few MiB of pages per connection, whatever the backlog; a claim is bounded by its limits.
//!
//! # Locking
//!
//! One writer and two readers, each behind a mutex of its own; the first reader answers [`Store::waiting`] only, so that
//! intake never waits for anybody's list. A thread takes at most one of these mutexes at a time, except that claims take
//! `claiming` first. Between processes SQLite's locks do the same; who waits longer than ten seconds is told so.

mod ahead;
mod attachments;
mod ballast;
mod checkpoint;
mod checksum;
mod claim;
mod codec;
mod damaged;
mod fault;
mod guard;
mod in_place;
mod lanes;
mod large;
mod lease;
mod limits;
mod open;
mod people;
mod proof;
mod queries;
mod recovery;
mod register;
mod rejected;
mod reseal;
mod rows;
mod salvaged;
mod schema;
mod seal;
mod settle;
mod space;
mod standing;
mod stranded;
mod summary;
mod upgrade;
mod view;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tracing::warn;

use self::ballast::Ballast;
use self::codec::Packer;
use self::fault::Fault;
pub(crate) use self::fault::os_words;
pub(in crate::store) use self::open::prove;
pub(crate) use self::open::{FileId, immutable_uri};
use self::proof::Watch;
pub(in crate::store) use self::proof::{errors as io_errors, unproven};
pub(in crate::store) use self::reseal::reseal;
pub(crate) use self::schema::APPLICATION_ID;
use self::seal::{KeyRing, Sealer, State};
pub(in crate::store) use self::view::BacklogView;
use super::full_state::USUAL_BYTES;
use super::key::Keys;
use super::rejected_room::RejectedRoom;
use super::room;
use super::{
    AgentRecord, Ahead, AttachmentId, Backlog, BacklogSeen, Claim, ClaimLimits, Claimed, Condition, Filter, Hold,
    LaneId, LaneListed, LaneWork, Lease, Limits, Listed, OpenMode, Outcome, Owner, Page, Purged, ReplayRecord,
    SalvagedRow, Standing, Store, StoreError, StoreIdentity, StoredMessage, Stranded, WhenFull, Whose,
};
use crate::message::{Attachment, EntityKey, Lane, Message, MessageId, MessageType, Server, Sha256, Touch};

/// How long a write waits for other processes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long emptying the log waits for those who read it.
const LOG_ERASURE_TIMEOUT: Duration = Duration::from_millis(100);

/// A store in one SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    file: FileId,
    identity: StoreIdentity,
    log: PathBuf,
    /// What is kept to deliver from a full disk.
    ballast: Ballast,
    /// Whether no other process can open it, because the disk has no room for the memory that they share.
    is_alone: bool,
    watch: Watch,
    limits: Limits,
    writer: Mutex<Connection>,
    /// Answers [`Store::waiting`].
    quick_reader: Mutex<Connection>,
    reader: Mutex<Connection>,
    packer: Packer,
    keys: Arc<KeyRing>,
    /// Of the generation of the row of `sealing` that was seen last.
    sealer: RwLock<Arc<Sealer>>,
    /// Creates that were seen confirmed.
    recent: ahead::Recent,
    /// Makes choosing and marking one step for the threads of this process.
    claiming: Mutex<()>,
    /// Whether the log may hold credentials that were erased from the file: also those of an earlier process.
    log_is_unerased: AtomicBool,
    /// Where walks over lanes begin.
    memo: stranded::Memo,
    /// What rejected messages may keep.
    rejected: rejected::Rejected,
}

impl SqliteStore {
    /// Claims what fits; `is_strict`: not even the first message may be larger.
    fn claim_some(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: (ClaimLimits, bool),
        now_ms: i64,
    ) -> Result<Claim, StoreError> {
        let _one_at_a_time = lock(&self.claiming);
        let (mut limits, is_strict) = limits;
        loop {
            let choose = |connection: &Connection, sealer: &Sealer| {
                let limits = (limits, is_strict);
                claim::choose(connection, sealer, (&self.recent, &self.memo), lane, filter, limits, now_ms)
            };
            let chosen = self.read(&self.reader, choose)?;
            if let Some(bytes) = chosen.too_large {
                return Ok(Claim::TooLarge { bytes });
            }
            match self.write_as(lease, |tx, sealer| claim::mark(tx, sealer, lease.epoch, chosen)) {
                // What a full disk has room for is noted in smaller steps.
                Err(StoreError::Full { .. }) if limits.messages_max > 1 => limits.messages_max /= 2,
                result => return result.map(Claim::Taken),
            }
        }
    }

    /// Opens the store at this path; see [`super::open`].
    ///
    /// # Errors
    ///
    /// As [`super::open`].
    pub fn open(path: &Path, mode: OpenMode, limits: Limits) -> Result<Self, StoreError> {
        Self::open_with(path, mode, limits, &Keys::default())
    }

    /// Opens the store at this path with these keys; see [`super::open_with`].
    ///
    /// # Errors
    ///
    /// As [`super::open_with`].
    pub fn open_with(path: &Path, mode: OpenMode, limits: Limits, keys: &Keys) -> Result<Self, StoreError> {
        let keys = Arc::new(KeyRing::new(keys));
        let store = Self::of(open::open(path, mode, limits.size_max, &keys)?, path, limits, keys);
        if mode.recovers() {
            store.keep_room();
        }
        Ok(store)
    }

    /// Sets aside the file that this store found damaged, and opens the one with what was recovered; see
    /// [`super::recover`].
    ///
    /// # Errors
    ///
    /// As [`super::open_with`].
    pub(in crate::store) fn recover(
        path: &Path,
        failed: FileId,
        reason: &str,
        limits: Limits,
        keys: &Keys,
    ) -> Result<Self, StoreError> {
        let keys = Arc::new(KeyRing::new(keys));
        Ok(Self::of(open::open_recovered(path, failed, reason, limits.size_max, &keys)?, path, limits, keys))
    }

    fn of(opened: open::Opened, path: &Path, limits: Limits, keys: Arc<KeyRing>) -> Self {
        let [quick_reader, reader] = opened.readers;
        Self {
            path: path.to_owned(),
            file: opened.file,
            identity: opened.file.identity(path),
            is_alone: opened.is_alone,
            ballast: Ballast::of(path, &opened.log, limits.size_max),
            log: opened.log,
            watch: opened.watch,
            limits,
            writer: Mutex::new(opened.writer),
            quick_reader: Mutex::new(quick_reader),
            reader: Mutex::new(reader),
            packer: Packer::new(),
            keys,
            sealer: RwLock::new(Arc::new(opened.sealer)),
            recent: ahead::Recent::default(),
            claiming: Mutex::new(()),
            log_is_unerased: AtomicBool::new(true),
            memo: stranded::Memo::default(),
            rejected: rejected::Rejected::default(),
        }
    }

    /// Sets what rejected messages may keep when room is needed.
    #[must_use]
    pub fn with_rejected_room(mut self, room: RejectedRoom) -> Self {
        self.rejected = rejected::Rejected::new(room);
        self
    }

    /// Returns the sealer of the generation that this transaction sees.
    fn sealer(&self, connection: &Connection) -> Result<Arc<Sealer>, Fault> {
        let known = self.known_sealer();
        if known.generation() == seal::generation(connection)? {
            return Ok(known);
        }
        let sealer = Arc::new(Sealer::new(&self.keys, State::read(connection)?)?);
        *self.sealer.write().unwrap_or_else(PoisonError::into_inner) = sealer.clone();
        Ok(sealer)
    }

    fn known_sealer(&self) -> Arc<Sealer> {
        self.sealer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does this work in one transaction under the write lock, and commits it.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>, &Sealer) -> Result<T, Fault>) -> Result<T, StoreError> {
        let mut connection = lock(&self.writer);
        let result = (|| {
            let tx = guard::begin(&mut connection, &self.watch)?;
            let result = work(&tx, self.sealer(&tx)?.as_ref())?;
            tx.commit()?;
            Ok(result)
        })();
        // Before the error is told to anybody: a failed sync makes the store unproven, and nothing is written to it then.
        let found_no_room = result.as_ref().is_err_and(|fault: &Fault| fault.no_room(&self.path).is_some());
        let result = result.map_err(|fault| fault.at(&self.path));
        // Also after a failure: what is kept for a full disk is needed then.
        if self.watch.unproven().is_none() && !result.as_ref().is_err_and(StoreError::is_unproven) {
            self.ballast.tend(&connection, found_no_room);
        }
        result
    }

    /// Keeps what is needed to deliver from a full disk: see [`Ballast`].
    fn keep_room(&self) {
        let connection = lock(&self.writer);
        if self.watch.unproven().is_none() && !guard::is_closed(&connection) {
            self.ballast.tend(&connection, false);
            self.ballast.make();
        }
    }

    /// Does this work under the write lock after the lease has been verified, and commits it.
    fn write_as<T>(
        &self,
        lease: &Lease,
        work: impl FnOnce(&Transaction<'_>, &Sealer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.write(|tx, sealer| {
            lease::verify(tx, lease)?;
            work(tx, sealer)
        })
    }

    /// Writes the log back and cuts it, unless its frames have to be kept for a proof.
    fn truncate_log(&self, connection: &Connection) -> Result<(), StoreError> {
        self.watch.vet()?;
        space::truncate_log(connection).map_err(|error| Fault::from(error).at(&self.path))
    }

    /// Says whether messages that were committed are in the file that stands at the path, and takes them back if not:
    /// they are not acknowledged, and what a deleted file holds is stored again.
    fn verify_stored(&self, ids: &[MessageId]) -> Result<(), StoreError> {
        if FileId::at(&self.path) == Some(self.file) {
            return Ok(());
        }
        let stored = Filter { ids: ids.to_vec(), ..Filter::default() };
        if let Some(count) = Some(ids.len()).filter(|count| *count > 0)
            && let Err(error) = self.purge(&stored, count)
        {
            warn!(target: "db_manager", "{count} messages that are not acknowledged stay in the old file: {error}");
        }
        let reason = "its file was removed or replaced while it was open".into();
        Err(StoreError::Unusable { path: self.path.clone(), reason })
    }

    /// Removes the bytes of uploads that can't come to their end any more, and of messages that are gone.
    fn remove_unfinished(&self) -> Result<(), StoreError> {
        if !self.read(&self.reader, |connection, _| attachments::any_without_message(connection))? {
            return Ok(());
        }
        self.write(|tx, _| attachments::release_dead(tx))?;
        self.remove_released()
    }

    /// Removes the bytes of attachments that are nobody's any more, in steps between which others may write.
    fn remove_released(&self) -> Result<(), StoreError> {
        while self.write(|tx, _| attachments::remove_a_step(tx))? {}
        Ok(())
    }

    /// Removes the bytes that a commit released. That commit has happened, so a failure of this is not its failure: the
    /// next one who looks for such bytes removes them.
    fn remove_soon(&self, released: bool) {
        if released && let Err(error) = self.remove_released() {
            warn!(target: "db_manager", "the bytes of deleted attachments stay for now: {error}");
        }
    }

    /// Does this work on one snapshot of the store.
    fn read<T>(
        &self,
        connection: &Mutex<Connection>,
        work: impl FnOnce(&Connection, &Sealer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let mut connection = lock(connection);
        let result = (|| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            guard::refuse_newer(&tx, &self.path)?;
            let result = work(&tx, self.sealer(&tx)?.as_ref())?;
            tx.finish()?;
            Ok(result)
        })();
        result.map_err(|fault: Fault| fault.at(&self.path))
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        for connection in [&mut self.writer, &mut self.quick_reader, &mut self.reader] {
            self.watch.before_close(connection.get_mut().unwrap_or_else(PoisonError::into_inner));
        }
        // Only ever keeps a log that would be removed.
        let connections = [&self.writer, &self.quick_reader, &self.reader].map(lock);
        self.ballast.before_closing(connections.iter().map(|connection| &**connection));
    }
}

/// A panic in another thread rolled its transaction back, so its connection is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for SqliteStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn keep_room(&self) -> Result<(), StoreError> {
        self.keep_room();
        Ok(())
    }

    fn close(&self) {
        for connection in [&self.writer, &self.quick_reader, &self.reader] {
            guard::close(&mut lock(connection), &self.watch);
        }
    }

    fn has_to_be_reopened(&self) -> bool {
        self.is_alone && self.ballast.may_cut_log()
    }

    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        // Takes time, so it is done before the write lock is.
        let bodies: Vec<_> = messages.iter().map(|message| self.packer.pack(&message.request.body)).collect();
        let needed = messages.iter().zip(&bodies).map(|(message, body)| space::bytes_needed(message, body)).sum();
        let ids = self.write_with_room(needed, |tx, sealer| register::register(tx, sealer, messages, &bodies))?;
        self.verify_stored(&ids)?;
        Ok(ids)
    }

    fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Result<Ahead, StoreError> {
        // That is all while nothing waits. Only when something does, it is looked at more closely, in a snapshot of its own.
        let quick = || {
            let reader = lock(&self.quick_reader);
            guard::look(&reader, &self.path, |reader| register::waiting(reader, &self.known_sealer(), lane))
        };
        match quick().map_err(|fault: Fault| fault.at(&self.path))? {
            Some(register::InLane { messages, refused }) if messages + refused == 0 || touches.is_empty() => {
                Ok(Ahead { messages, ..Ahead::default() })
            }
            // Also when the key was changed: what a lane is looked up by is another one then.
            Some(_) | None => {
                self.read(&self.quick_reader, |connection, sealer| register::ahead(connection, sealer, lane, touches))
            }
        }
    }

    fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> Result<BacklogSeen, StoreError> {
        let mut reader = lock(&self.quick_reader);
        let mut look = || {
            let tx = reader.transaction_with_behavior(TransactionBehavior::Deferred)?;
            guard::refuse_newer(&tx, &self.path)?;
            let seen = view::seen(&tx, schema::known_version(), server, touches)?;
            tx.finish()?;
            Ok(seen)
        };
        look().map_err(|fault: Fault| fault.at(&self.path))
    }

    fn newest(&self) -> Result<MessageId, StoreError> {
        self.read(&self.reader, |connection, _| standing::newest(connection))
    }

    fn standing(&self, whose: &Whose, up_to: MessageId) -> Result<Standing, StoreError> {
        self.read(&self.reader, |connection, sealer| standing::standing(connection, sealer, whose, up_to))
    }

    fn hasten(&self, whose: &Whose) -> Result<(), StoreError> {
        self.write(|tx, sealer| standing::hasten(tx, sealer, whose))
    }

    fn limit(&self, lane: &Lane, hold: &Hold) -> Result<(), StoreError> {
        self.write(|tx, sealer| register::limit(tx, sealer, lane, hold))
    }

    fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey> {
        ahead::unseen(&self.recent, lane.place(), message_type, touches).collect()
    }

    fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)]) -> Result<(), StoreError> {
        let notes = || updates.iter().map(|(lane, entity)| (lane.place(), *entity));
        self.write(|tx, _| ahead::note(tx, notes(), super::now_ms()))
    }

    fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Result<(), StoreError> {
        let place = lane.place();
        self.recent.confirmed(place, touches);
        // A batch create stays hidden behind a partial row, so the note stays, too.
        let removes = !message_type.is_batch_create();
        let has_note = || {
            let reader = lock(&self.quick_reader);
            guard::look(&reader, &self.path, |reader| ahead::has_any(reader, place, touches))
        };
        if removes && has_note().map_err(|fault| fault.at(&self.path))? {
            self.write(|tx, _| ahead::forget(tx, place, touches))?;
        }
        Ok(())
    }

    fn begin_attachment(&self, bytes_expected: Option<u64>) -> Result<AttachmentId, StoreError> {
        self.remove_unfinished()?;
        self.write_with_room(bytes_expected.unwrap_or(0), |tx, _| attachments::begin(tx))
    }

    fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> Result<(), StoreError> {
        self.write_with_room(piece.len() as u64, |tx, sealer| {
            attachments::add_piece(tx, sealer, attachment, number, piece)
        })
    }

    fn register_attachment(
        &self,
        attachment: AttachmentId,
        file: &Attachment,
        message: &Message,
    ) -> Result<MessageId, StoreError> {
        let body = self.packer.pack(&message.request.body);
        let id = self.write_with_room(space::bytes_needed(message, &body), |tx, sealer| {
            let id = register::register_attachment(tx, sealer, message, &body, file.bytes)?;
            attachments::give(tx, sealer, attachment, file, id)?;
            Ok(id)
        })?;
        self.verify_stored(&[id])?;
        Ok(id)
    }

    fn abandon_attachment(&self, attachment: AttachmentId) -> Result<(), StoreError> {
        self.write(|tx, _| attachments::abandon(tx, attachment))?;
        self.remove_soon(true);
        Ok(())
    }

    fn attachment(&self, message: MessageId) -> Result<Option<Attachment>, StoreError> {
        self.read(&self.reader, |connection, sealer| attachments::of(connection, sealer, message))
    }

    fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(&self.reader, |connection, sealer| attachments::piece(connection, sealer, message, number))
    }

    fn salvage(&self, rows: &[SalvagedRow]) -> Result<Vec<Option<MessageId>>, StoreError> {
        let limits = Limits { when_full: WhenFull::Refuse, ..self.limits };
        let bodies: Vec<_> = rows.iter().map(|row| self.packer.pack(&row.message.request.body)).collect();
        let ids = self.write(|tx, sealer| {
            let needed = rows.iter().zip(&bodies).map(|(row, body)| space::bytes_needed(&row.message, body)).sum();
            space::make_room(tx, &self.path, &self.log, &limits, needed)?;
            salvaged::salvage(tx, sealer, rows, &bodies)
        })?;
        self.verify_stored(&ids.iter().flatten().copied().collect::<Vec<_>>())?;
        Ok(ids)
    }

    fn is_salvaged(&self, row: &Sha256) -> Result<bool, StoreError> {
        self.read(&self.reader, |connection, _| salvaged::is_salvaged(connection, row))
    }

    fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Result<Lease, StoreError> {
        self.write(|tx, _| lease::acquire(tx, owner, time_to_live))
    }

    fn renew(&self, lease: &Lease, time_to_live: Duration) -> Result<(), StoreError> {
        self.write(|tx, _| lease::renew(tx, lease, time_to_live))
    }

    fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.write(|tx, _| lease::release(tx, lease))
    }

    fn return_in_flight(&self, lease: &Lease) -> Result<u64, StoreError> {
        self.remove_unfinished()?;
        self.write_as(lease, |tx, _| settle::return_in_flight(tx, lease.epoch, &self.recent))
    }

    fn interrupted(&self, lane: LaneId) -> Result<usize, StoreError> {
        self.read(&self.reader, |connection, _| settle::interrupted(connection, lane))
    }

    fn lanes(&self, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, StoreError> {
        let known = (&self.recent, &self.memo);
        self.read(&self.reader, |connection, sealer| claim::lanes(connection, sealer, known, filter, now_ms))
    }

    fn make_due(&self, lease: &Lease, lane: LaneId, messages: &[MessageId]) -> Result<(), StoreError> {
        self.write_as(lease, |tx, _| settle::make_due(tx, lane, messages))
    }

    fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> Result<(), StoreError> {
        self.write_as(lease, |tx, _| settle::hold(tx, lane, hold))
    }

    fn claim(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Vec<Claimed>, StoreError> {
        match self.claim_some(lease, lane, filter, (limits, false), now_ms)? {
            Claim::Taken(claimed) => Ok(claimed),
            Claim::TooLarge { .. } => Ok(Vec::new()),
        }
    }

    fn claim_within(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Claim, StoreError> {
        self.claim_some(lease, lane, filter, (limits, true), now_ms)
    }

    fn settle(&self, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let settled = self.write_as(lease, |tx, sealer| {
            settle::settle(tx, lease.epoch, outcomes, (&self.packer, sealer), &self.recent)?;
            attachments::any_released(tx)
        });
        match settled {
            Ok(released) => {
                self.remove_soon(released);
                Ok(())
            }
            // What a full disk has room for is noted in smaller steps. In order: after a crash between them the later
            // ones are sent again, never an older one alone.
            Err(StoreError::Full { .. }) if outcomes.len() > 1 => {
                let (first, second) = outcomes.split_at(outcomes.len() / 2);
                self.settle(lease, first)?;
                self.settle(lease, second)
            }
            Err(error) => Err(error),
        }
    }

    fn lane_list(&self, now_ms: i64) -> Result<Vec<LaneListed>, StoreError> {
        self.read(&self.reader, |connection, sealer| lanes::list(connection, sealer, now_ms))
    }

    fn adopt(&self, server: &Server) -> Result<u64, StoreError> {
        if !self.read(&self.reader, |connection, _| lanes::any_without_server(connection))? {
            return Ok(0);
        }
        self.write(|tx, _| lanes::adopt(tx, server))
    }

    fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> Result<u64, StoreError> {
        self.write_as(lease, |tx, sealer| lanes::reassign(tx, sealer, from, to, limit))
    }

    fn erase_credentials(&self) -> Result<bool, StoreError> {
        if self.read(&self.reader, |connection, _| lanes::any_to_erase(connection))? {
            let is_erased = self.write(|tx, _| {
                tx.pragma_update(None, "secure_delete", true)?;
                let erased = lanes::erase(tx);
                tx.pragma_update(None, "secure_delete", false)?;
                erased
            })?;
            self.log_is_unerased.fetch_or(is_erased, Ordering::Relaxed);
        }
        if !self.log_is_unerased.load(Ordering::Relaxed) {
            return Ok(true);
        }
        if !self.ballast.may_cut_log() {
            // They are in blocks that nobody else gets, until there is room to do without them.
            return Ok(false);
        }
        let connection = lock(&self.writer);
        let emptied = || -> Result<bool, Fault> {
            guard::refuse_newer(&connection, &self.path)?;
            self.watch.vet()?;
            // Whoever reads for long must not keep writers waiting for this.
            connection.busy_timeout(LOG_ERASURE_TIMEOUT)?;
            let emptied = lanes::empty_log(&connection);
            connection.busy_timeout(BUSY_TIMEOUT)?;
            emptied
        };
        let is_erased = emptied().map_err(|fault| fault.at(&self.path))?;
        self.log_is_unerased.store(!is_erased, Ordering::Relaxed);
        Ok(is_erased)
    }

    fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, StoreError> {
        self.write_as(lease, |tx, _| settle::retry_held(tx, answered_before_ms))
    }

    fn release_held(&self, lease: &Lease, lane: LaneId) -> Result<u64, StoreError> {
        /// As many as others wait for gladly.
        const STEP: usize = 2000;
        let mut released = 0;
        loop {
            let step = self.write_as(lease, |tx, _| settle::release_held(tx, lane, STEP))?;
            released += step;
            if step < STEP as u64 {
                return Ok(released);
            }
        }
    }

    fn stranded(&self) -> Result<Vec<Stranded>, StoreError> {
        self.read(&self.reader, |connection, sealer| stranded::count(connection, sealer, &self.memo))
    }

    fn backlog(&self, filter: &Filter) -> Result<Backlog, StoreError> {
        self.read(&self.reader, |connection, _| people::backlog(connection, filter))
    }

    fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Listed>, StoreError> {
        self.read(&self.reader, |connection, sealer| people::list(connection, sealer, filter, page))
    }

    fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError> {
        self.read(&self.reader, |connection, sealer| people::get(connection, sealer, id))
    }

    fn purge(&self, filter: &Filter, limit: usize) -> Result<Purged, StoreError> {
        let (purged, released) = self.write(|tx, _| {
            let nobody_replays = lease::holder(tx)?.is_none();
            let purged = settle::purge(tx, filter, limit, nobody_replays)?;
            Ok((purged, attachments::any_released(tx)?))
        })?;
        self.remove_soon(released);
        Ok(purged)
    }

    fn expire(&self, accepted_before_ms: i64, limit: usize) -> Result<u64, StoreError> {
        // Looked for outside the write lock: most of the time there is nothing.
        let old = self.read(&self.reader, |connection, _| space::expired(connection, accepted_before_ms, limit))?;
        if old.is_empty() {
            return Ok(0);
        }
        let (dropped, released) = self.write(|tx, _| {
            let dropped = space::drop_expired(tx, &old)?;
            Ok((dropped, attachments::any_released(tx)?))
        })?;
        self.remove_soon(released);
        Ok(dropped)
    }

    fn requeue(&self, filter: &Filter) -> Result<u64, StoreError> {
        self.write(|tx, _| settle::requeue(tx, filter))
    }

    fn check(&self) -> Result<Vec<String>, StoreError> {
        // It takes long, so it has a connection of its own.
        let reader = Mutex::new(open::open_reader(&self.path, self.is_alone)?);
        match self.read(&reader, people::check) {
            Err(StoreError::Damaged { reason, .. }) => Ok(vec![reason]),
            result => result,
        }
    }

    fn compact(&self) -> Result<u64, StoreError> {
        self.remove_unfinished()?;
        self.write(|tx, _| register::forget_header_sets(tx))?;
        self.erase_credentials()?;
        let shrink = || -> Result<bool, Fault> {
            let connection = lock(&self.writer);
            guard::refuse_newer(&connection, &self.path)?;
            self.watch.vet()?;
            Ok(space::shrink_a_step(&connection)?)
        };
        while shrink().map_err(|fault| fault.at(&self.path))? {}
        let connection = lock(&self.writer);
        let truncate = || -> Result<u64, Fault> {
            if self.ballast.may_cut_log() {
                self.truncate_log(&connection)?;
            }
            Ok(space::Space::of(&connection, &self.path, &self.log)?.file_bytes)
        };
        truncate().map_err(|fault| fault.at(&self.path))
    }

    fn condition(&self) -> Result<Condition, StoreError> {
        let now_ms = super::now_ms();
        self.read(&self.reader, |connection, sealer| {
            let space = space::Space::of(connection, &self.path, &self.log)?;
            Ok(Condition {
                file_bytes: space.file_bytes,
                free_bytes: space.free_bytes,
                size_max: Some(self.limits.size_max),
                disk_free_bytes: Some(space.disk_free_bytes),
                capacity_bytes: Some(room::capacity(space.file_bytes, space.disk_free_bytes, &self.limits)),
                schema_version: schema::version(connection)?,
                lease: lease::holder(connection)?,
                agents: people::agents(connection)?,
                last_replay: people::last_replay(connection)?,
                held: settle::held(connection, sealer, now_ms)?,
                adoptions: lanes::adoptions(connection)?,
                dropped: people::counter(connection, "dropped")?,
                expired: people::counter(connection, "expired")?,
                rejected_dropped: people::counter(connection, rejected::DROPPED)?,
                full: match self.limits.when_full {
                    WhenFull::Refuse => space.fullness(&self.limits, USUAL_BYTES),
                    WhenFull::DropOldest => None,
                },
                room_bytes: match self.limits.when_full {
                    WhenFull::Refuse => space.room(&self.limits),
                    WhenFull::DropOldest => u64::MAX,
                },
                full_record: people::full_record(connection)?,
                recoveries: recovery::recoveries(connection)?,
                encryption: sealer.encryption(),
                unproven: self.watch.unproven(),
            })
        })
    }

    fn announce(&self, agent: Option<&AgentRecord>) -> Result<(), StoreError> {
        self.write(|tx, _| people::announce(tx, agent))?;
        if agent.is_some() {
            self.remove_unfinished()?;
        }
        Ok(())
    }

    fn note_replay(&self, record: &ReplayRecord) -> Result<(), StoreError> {
        self.write(|tx, _| people::note_replay(tx, record))
    }

    fn note_full(&self, since_ms: Option<i64>, refused: u64) -> Result<(), StoreError> {
        self.write(|tx, _| people::note_full(tx, since_ms, refused))
    }
}
