//! How a store is opened, recovered and re-encrypted: the one place that names an engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::encryption::key::Keys;
use super::encryption::reseal::{Resealed, Resealing};
use super::error::StoreError;
use super::limits::{Limits, OpenMode};
use super::os::FileId;
use super::rejected_room::RejectedRoom;
use super::sqlite;
pub(super) use super::sqlite::{BacklogView, is_set_aside};
use super::traits::Store;
use super::view::Unproven;

/// How a slot opens its store, as often as it has to.
#[derive(Clone)]
pub(super) struct SlotOpener {
    pub(super) path: PathBuf,
    pub(super) limits: Limits,
    pub(super) keys: Keys,
    pub(super) rejected: RejectedRoom,
}

impl SlotOpener {
    /// Opens the store, creating it if there is none.
    pub(super) fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        let Self { path, limits, keys, .. } = self;
        self.ready(sqlite::SqliteStore::open_with(path, OpenMode::CreateIfMissing, *limits, keys)?)
    }

    /// Sets aside the file that was found damaged, unless another process did so, and opens what was recovered.
    pub(super) fn recover(&self, failed: FileId, reason: &str) -> Result<Arc<dyn Store>, StoreError> {
        self.ready(sqlite::SqliteStore::recover(&self.path, failed, reason, self.limits, &self.keys)?)
    }

    /// Opens the store without a key of it.
    pub(super) fn open_without_key(&self) -> Result<Arc<dyn Store>, StoreError> {
        open(&self.path, OpenMode::WithoutKey, self.limits)
    }

    fn ready(&self, store: sqlite::SqliteStore) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(store.with_rejected_room(self.rejected.clone())))
    }
}

/// Opens the store at this path.
///
/// # Errors
///
/// [`StoreError::Missing`], [`StoreError::NotAStore`], [`StoreError::NewerSchema`], [`StoreError::Damaged`],
/// [`StoreError::Unusable`] or [`StoreError::Busy`]; the file is as it was. A mode that recovers returns
/// [`StoreError::Damaged`] only for a file that can't be read at all.
pub fn open(path: &Path, mode: OpenMode, limits: Limits) -> Result<Arc<dyn Store>, StoreError> {
    open_with(path, mode, limits, &Keys::default())
}

/// Opens the store at this path with these keys.
///
/// With a current key and [`OpenMode::CreateIfMissing`], everything is encrypted with that key from now on. Older
/// messages stay as they are until [`reseal`].
///
/// # Errors
///
/// As [`open`], and [`StoreError::KeyMissing`], [`StoreError::WrongKey`] or [`StoreError::TooManyKeys`].
pub fn open_with(path: &Path, mode: OpenMode, limits: Limits, keys: &Keys) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(sqlite::SqliteStore::open_with(path, mode, limits, keys)?))
}

/// Creates a store for messages that are all elsewhere as well: a power cut may take its last commits.
///
/// # Errors
///
/// As [`open_with`].
pub fn open_scratch(path: &Path, limits: Limits, keys: &Keys) -> Result<Arc<dyn Store>, StoreError> {
    let store = sqlite::SqliteStore::open_with(path, OpenMode::CreateIfMissing, limits, keys)?;
    Ok(Arc::new(store.into_scratch()?))
}

/// Rewrites and syncs a store if an earlier write or sync of it failed. Opening it with a mode that recovers does the
/// same; this is for callers that open it in another mode.
///
/// # Errors
///
/// [`StoreError::Unproven`] while another process has it open, and any error that keeps it from being written.
pub fn prove(path: &Path) -> Result<(), StoreError> {
    sqlite::prove(path)
}

/// Returns since when and why the store at this path has to be rewritten and synced before it is used again.
pub fn unproven(path: &Path) -> Option<Unproven> {
    sqlite::unproven(path)
}

/// Returns whether the file at this path is a message store, however damaged. Reads it without an engine, and changes
/// nothing.
pub(crate) fn is_store(path: &Path) -> bool {
    sqlite::is_ours(path)
}

/// Returns how many writes and syncs of stores failed in this process.
pub fn io_errors() -> u64 {
    sqlite::io_errors()
}

/// Re-encrypts the whole store with the current key, or decrypts it if there is only a previous one. Then scrubs older
/// data from its files.
///
/// Other processes may use the store concurrently, including agents that have both keys: it writes in small steps. Only
/// the last one, which rewrites the file, blocks writers for as long as that takes. It may be killed at any time and is
/// idempotent; `on_progress` is called after every step and ends it by returning `false`.
///
/// Returns what was done, and why older data is left if the file could not be rewritten because an agent uses it.
///
/// # Errors
///
/// As [`open_with`].
pub fn reseal(
    path: &Path,
    limits: Limits,
    keys: &Keys,
    on_progress: &mut dyn FnMut(Resealing) -> bool,
) -> Result<Resealed, StoreError> {
    sqlite::reseal(path, limits, keys, on_progress)
}

/// Sets aside the file at this path, which was found damaged while it was in use, and opens the store with what was
/// recovered. Idempotent: if another process did so meanwhile, it only costs time.
///
/// # Errors
///
/// As [`open_with`].
pub fn recover(path: &Path, reason: &str, limits: Limits, keys: &Keys) -> Result<Arc<dyn Store>, StoreError> {
    match FileId::at(path) {
        Some(file) => Ok(Arc::new(sqlite::SqliteStore::recover(path, file, reason, limits, keys)?)),
        None => open_with(path, OpenMode::ExistingOrRecovered, limits, keys),
    }
}
