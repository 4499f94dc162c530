//! How a store is opened, recovered and re-encrypted: the one place that names an engine.

use std::path::Path;
use std::sync::Arc;

use super::key::Keys;
use super::os::FileId;
use super::view::Unproven;
use super::{Store, StoreError, sqlite};

/// What a store may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the store's files at most.
    pub size_max: u64,
    /// Bytes that stay free on the disk.
    pub disk_reserve: u64,
    /// What happens to new messages when a limit is reached.
    pub when_full: WhenFull,
}

/// What happens to new messages when the store is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// They are refused ([`StoreError::Full`]): the client still has them.
    Refuse,
    /// The oldest messages make room and are counted as dropped: first rejected ones beyond their share
    /// ([`rejected_room`]), then those that wait.
    DropOldest,
}

/// Whether opening may make a new store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Make it, and its folder, when there is none.
    CreateIfMissing,
    /// [`StoreError::Missing`] when there is none. For those who only look: a damaged file stays where it is.
    Existing,
    /// The same, also when there is no key or another one: what is not sealed can be read, counted and deleted, and all
    /// else fails as opening would.
    WithoutKey,
    /// The same as [`OpenMode::Existing`], and a damaged file is recovered.
    ExistingOrRecovered,
}

impl OpenMode {
    /// Says whether a damaged file is set aside and what can be read is recovered, as the agent and `replay` do it.
    pub fn recovers(self) -> bool {
        match self {
            Self::CreateIfMissing | Self::ExistingOrRecovered => true,
            Self::Existing | Self::WithoutKey => false,
        }
    }
}

/// Opens the store at this path.
///
/// # Errors
///
/// [`StoreError::Missing`], [`StoreError::NotAStore`], [`StoreError::NewerSchema`], [`StoreError::Damaged`],
/// [`StoreError::Unusable`] or [`StoreError::Busy`]; the file is as it was. A mode that recovers knows no
/// [`StoreError::Damaged`] but that of a file that can't be read at all.
pub fn open(path: &Path, mode: OpenMode, limits: Limits) -> Result<Arc<dyn Store>, StoreError> {
    open_with(path, mode, limits, &Keys::default())
}

/// Opens the store at this path with these keys.
///
/// With a current key and [`OpenMode::CreateIfMissing`], everything is sealed with that key from now on. What was stored
/// before stays as it is until [`reseal`].
///
/// # Errors
///
/// As [`open`], and [`StoreError::KeyMissing`], [`StoreError::WrongKey`] or [`StoreError::TooManyKeys`].
pub fn open_with(path: &Path, mode: OpenMode, limits: Limits, keys: &Keys) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(sqlite::SqliteStore::open_with(path, mode, limits, keys)?))
}

/// Writes a store anew and syncs it, where an earlier write or sync of it failed. Opening it with a mode that recovers does
/// the same; this is for those who open it with another one.
///
/// # Errors
///
/// [`StoreError::Unproven`] while another process has it open, and what keeps it from being written.
pub fn prove(path: &Path) -> Result<(), StoreError> {
    sqlite::prove(path)
}

/// Returns since when and why the store at this path has to be written anew and synced before it is used again.
pub fn unproven(path: &Path) -> Option<Unproven> {
    sqlite::unproven(path)
}

/// Returns how many writes and syncs of stores failed in this process.
pub fn io_errors() -> u64 {
    sqlite::io_errors()
}

/// How far [`reseal`] has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resealing {
    /// Things that were sealed, opened or sealed anew.
    pub done: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Keeps everything in the store as the keys ask for: sealed with the current one, or without any where there is only a
/// previous one. Then removes from its files whatever is left of before.
///
/// Others may use the store meanwhile, agents that have both keys included: what it writes, it writes in small steps. Only
/// the last one, which writes the file anew, keeps writers waiting for as long as that takes. It may be ended at any time,
/// however hard, and then be done again; `on_progress` is called after every step and ends it by returning `false`.
///
/// Returns what was done, and the size of the file where it could not be written anew because an agent uses it.
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

/// How [`reseal`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resealed {
    /// Everything is kept as asked, and nothing of before is left.
    Complete(Resealing),
    /// Everything is kept as asked, and what is left of before in unused parts of the files could not be removed.
    Remnants {
        /// What was done.
        done: Resealing,
        /// Why.
        reason: String,
    },
    /// It was ended by its caller.
    Stopped(Resealing),
}

/// Sets aside the file at this path, which was found damaged while it was in use, and opens the store with what was
/// recovered. Where another process did so meanwhile, that costs nothing but time.
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
