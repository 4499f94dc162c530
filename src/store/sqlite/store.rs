//! The open store: its connections, and how a read and a write begin and end.
//!
//! # Invariants
//!
//! - Every write goes through [`SqliteStore::write`]: it begins under the write lock with the checks of
//!   [`super::guard`], and its fault is mapped before anyone sees it, so that a failed sync makes the store unproven
//!   before the next write.
//! - What a replayer writes goes through [`SqliteStore::write_as`], which verifies the lease in the same transaction.
//! - New messages are acknowledged only after [`SqliteStore::verify_stored`]: they must be in the file that the path
//!   leads to.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tracing::warn;

use super::ahead::RecentCreates;
use super::ballast::Ballast;
use super::codec::Packer;
use super::fault::Fault;
use super::quick_reader::QuickReader;
use super::rejected_share::RejectedShare;
use super::seal::{self, KeyRing, Sealer, SealingState};
use super::stranded::Memo;
use super::unproven::UnprovenWatch;
use super::{attachments, guard, lease, open, shipped, space};
use crate::message::MessageId;
use crate::store::encryption::key::Keys;
use crate::store::error::StoreError;
use crate::store::identity::StoreIdentity;
use crate::store::limits::{Limits, OpenMode};
use crate::store::os::FileId;
use crate::store::rejected_room::RejectedRoom;
use crate::store::traits::Maintain;
use crate::store::view::Filter;
use crate::store::work::Lease;

/// A store in one SQLite file.
pub struct SqliteStore {
    pub(super) path: PathBuf,
    pub(super) file: FileId,
    pub(super) identity: StoreIdentity,
    pub(super) log: PathBuf,
    /// The disk space reserved for delivering from a full disk.
    pub(super) ballast: Ballast,
    /// Whether no other process can open the store, because the disk has no space for shared memory.
    pub(super) is_alone: bool,
    pub(super) watch: UnprovenWatch,
    pub(super) limits: Limits,
    pub(super) writer: Mutex<Connection>,
    /// Answers what intake asks about every write.
    pub(super) quick_reader: Mutex<QuickReader>,
    pub(super) reader: Mutex<Connection>,
    pub(super) packer: Packer,
    pub(super) keys: Arc<KeyRing>,
    /// The sealer of the generation that was seen last.
    pub(super) sealer: RwLock<Arc<Sealer>>,
    /// Creates that were seen confirmed.
    pub(super) recent: RecentCreates,
    /// Makes choosing and marking atomic for the threads of this process.
    pub(super) claiming: Mutex<()>,
    /// Whether the log may hold credentials that were erased from the file, including those of an earlier process.
    pub(super) log_is_unerased: AtomicBool,
    /// Where walks over lanes start.
    pub(super) memo: Memo,
    /// The share that rejected messages may keep.
    pub(super) rejected: RejectedShare,
    /// Whether the user of this handle makes marks in the depot.
    pub(super) makes_marks: AtomicBool,
}

impl SqliteStore {
    /// Opens the store at this path; see [`crate::store::open()`].
    ///
    /// # Errors
    ///
    /// As [`crate::store::open()`].
    pub fn open(path: &Path, mode: OpenMode, limits: Limits) -> Result<Self, StoreError> {
        Self::open_with(path, mode, limits, &Keys::default())
    }

    /// Opens the store at this path with these keys; see [`crate::store::open_with`].
    ///
    /// # Errors
    ///
    /// As [`crate::store::open_with`].
    pub fn open_with(path: &Path, mode: OpenMode, limits: Limits, keys: &Keys) -> Result<Self, StoreError> {
        let keys = Arc::new(KeyRing::new(keys));
        let store = Self::of(open::open(path, mode, limits.size_max, &keys)?, path, limits, keys);
        if mode.recovers() {
            store.tend_ballast();
        }
        Ok(store)
    }

    /// Sets aside the file that this store found damaged, and opens the one with what was recovered; see
    /// [`crate::store::recover`].
    ///
    /// # Errors
    ///
    /// As [`crate::store::open_with`].
    pub(crate) fn recover(
        path: &Path,
        failed: FileId,
        reason: &str,
        limits: Limits,
        keys: &Keys,
    ) -> Result<Self, StoreError> {
        let keys = Arc::new(KeyRing::new(keys));
        Ok(Self::of(open::open_recovered(path, failed, reason, limits.size_max, &keys)?, path, limits, keys))
    }

    pub(super) fn of(opened: open::Opened, path: &Path, limits: Limits, keys: Arc<KeyRing>) -> Self {
        let [quick_reader, reader] = opened.readers;
        let quick_reader = Mutex::new(QuickReader::new(quick_reader, &opened.log));
        Self {
            path: path.to_owned(),
            file: opened.file,
            identity: StoreIdentity::of(opened.file.identity(path).as_bytes()),
            is_alone: opened.is_alone,
            ballast: Ballast::of(path, &opened.log, limits.size_max),
            log: opened.log,
            watch: opened.watch,
            limits,
            writer: Mutex::new(opened.writer),
            quick_reader,
            reader: Mutex::new(reader),
            packer: Packer::new(),
            keys,
            sealer: RwLock::new(Arc::new(opened.sealer)),
            recent: RecentCreates::default(),
            claiming: Mutex::new(()),
            log_is_unerased: AtomicBool::new(true),
            memo: Memo::default(),
            rejected: RejectedShare::default(),
            makes_marks: AtomicBool::new(false),
        }
    }

    /// Sets the share that rejected messages may keep when space is needed.
    #[must_use]
    pub fn with_rejected_room(mut self, room: RejectedRoom) -> Self {
        self.rejected = RejectedShare::new(room);
        self
    }

    /// Trades durability for speed, for a store whose messages are all elsewhere as well: a commit is not synced, and
    /// bodies are not compressed. The log is still synced before each checkpoint, and the file after it, so that a
    /// failed write is found before pages that it left behind are read again.
    ///
    /// # Errors
    ///
    /// If SQLite refuses the setting.
    pub(crate) fn into_scratch(mut self) -> Result<Self, StoreError> {
        let set = lock(&self.writer).pragma_update(None, "synchronous", "NORMAL");
        set.map_err(|error| Fault::from(error).at(&self.path))?;
        self.packer = Packer::plain();
        Ok(self)
    }

    /// Returns the sealer of the generation that this transaction sees.
    pub(super) fn sealer(&self, connection: &Connection) -> Result<Arc<Sealer>, Fault> {
        let known = self.known_sealer();
        if known.generation() == seal::generation(connection)? {
            return Ok(known);
        }
        let sealer = Arc::new(Sealer::new(&self.keys, SealingState::read(connection)?)?);
        *self.sealer.write().unwrap_or_else(PoisonError::into_inner) = sealer.clone();
        Ok(sealer)
    }

    pub(super) fn known_sealer(&self) -> Arc<Sealer> {
        self.sealer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does this work in one transaction under the write lock, and commits it.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &Sealer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let mut connection = lock(&self.writer);
        let result = (|| {
            let tx = guard::begin(&mut connection, &self.watch)?;
            let result = work(&tx, self.sealer(&tx)?.as_ref())?;
            tx.commit()?;
            Ok(result)
        })();
        // Before anyone sees the error: a failed sync makes the store unproven, and nothing is written to it then.
        let found_no_room = result.as_ref().is_err_and(|fault: &Fault| fault.no_room(&self.path).is_some());
        let result = result.map_err(|fault| fault.at(&self.path));
        // Also after a failure: the reserved space is needed then.
        if self.watch.unproven().is_none() && !result.as_ref().is_err_and(StoreError::is_unproven) {
            self.ballast.tend(&connection, found_no_room);
        }
        result
    }

    /// Fails with [`StoreError::InDepot`] if a message is outstanding in a depot and nobody here makes marks.
    pub(super) fn refuse_outstanding(&self, connection: &Connection) -> Result<(), Fault> {
        if self.makes_marks.load(Ordering::Relaxed) {
            return Ok(());
        }
        match shipped::depot(connection)? {
            Some(depot) => Err(StoreError::InDepot { at: self.path.as_path().into(), depot }.into()),
            None => Ok(()),
        }
    }

    /// Maintains the disk space reserved for delivering from a full disk: see [`Ballast`].
    pub(super) fn tend_ballast(&self) {
        let connection = lock(&self.writer);
        if self.watch.unproven().is_none() && !guard::is_closed(&connection) {
            self.ballast.tend(&connection, false);
            self.ballast.create();
        }
    }

    /// Does this work under the write lock after verifying the lease, and commits it.
    pub(super) fn write_as<T>(
        &self,
        lease: &Lease,
        work: impl FnOnce(&Transaction<'_>, &Sealer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.write(|tx, sealer| {
            lease::verify(tx, lease)?;
            work(tx, sealer)
        })
    }

    /// Checkpoints and truncates the log, unless its frames have to be kept for a proof.
    pub(super) fn truncate_log(&self, connection: &Connection) -> Result<(), StoreError> {
        self.watch.vet()?;
        space::truncate_log(connection).map_err(|error| Fault::from(error).at(&self.path))
    }

    /// Checks that committed messages are in the file that the path leads to, and removes them if not: they are not
    /// acknowledged, and messages in a deleted file are stored again.
    pub(super) fn verify_stored(&self, ids: &[MessageId]) -> Result<(), StoreError> {
        if FileId::at(&self.path) == Some(self.file) {
            return Ok(());
        }
        let stored = Filter { ids: ids.to_vec(), ..Filter::default() };
        if let Some(count) = Some(ids.len()).filter(|count| *count > 0)
            && let Err(error) = self.purge(&stored, count)
        {
            warn!(target: "db_manager", "cannot remove {count} unacknowledged messages from the old file: {error}");
        }
        let reason = "its file was removed or replaced while it was open".into();
        Err(StoreError::Unusable { at: self.path.as_path().into(), reason })
    }

    /// Removes the bytes of uploads that can no longer finish, and of deleted messages.
    pub(super) fn remove_unfinished(&self) -> Result<(), StoreError> {
        if !self.read(&self.reader, |connection, _| attachments::any_without_message(connection))? {
            return Ok(());
        }
        self.write(|tx, _| attachments::release_dead(tx))?;
        self.remove_released()
    }

    /// Removes the bytes of released attachments, in steps between which others may write.
    pub(super) fn remove_released(&self) -> Result<(), StoreError> {
        while self.write(|tx, _| attachments::remove_a_step(tx))? {}
        Ok(())
    }

    /// Removes the bytes that a commit released. That commit has succeeded, so a failure here is not its failure: the
    /// next caller removes them.
    pub(super) fn remove_soon(&self, released: bool) {
        if released && let Err(error) = self.remove_released() {
            warn!(target: "db_manager", "cannot remove the bytes of deleted attachments yet: {error}");
        }
    }

    /// Does this work on one snapshot of the store.
    pub(super) fn read<T>(
        &self,
        connection: &Mutex<Connection>,
        work: impl FnOnce(&Connection, &Sealer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.read_by(&mut lock(connection), work)
    }

    /// Does this work on one snapshot that this connection sees.
    pub(super) fn read_by<T>(
        &self,
        connection: &mut Connection,
        work: impl FnOnce(&Connection, &Sealer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
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
        let quick_reader = self.quick_reader.get_mut().unwrap_or_else(PoisonError::into_inner).connection();
        let [writer, reader] =
            [&mut self.writer, &mut self.reader].map(|it| it.get_mut().unwrap_or_else(PoisonError::into_inner));
        let connections = [&*writer, &*quick_reader, &*reader];
        for connection in connections {
            self.watch.before_close(connection);
        }
        // This only ever keeps a log that would be removed.
        self.ballast.before_closing(connections);
    }
}

/// A panic in another thread rolled its transaction back, so its connection is usable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
