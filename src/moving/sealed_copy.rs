//! A sealed copy: all messages of a store, encrypted for the holders of the private keys.
//!
//! ```text
//! age: "opik-offline store 1\n" | key (32) | the file of a store that is encrypted with this key
//! ```
//!
//! The store in it is a new one with the messages of one moment, so that nothing else of the old file travels, and it
//! can be opened by any later version, like every store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::MovingError;
use super::import::{Import, ImportError, Moved};
use super::scratch::{ScratchFolder, Unfinished, copy_all, with_suffix};
use crate::sdk::salvage::SalvageTarget;
use crate::sealing::{Recipient, SealError, SealWriter};
use crate::shutdown::Shutdown;
use crate::store::os::{folder_of, os_words};
use crate::store::{self, EncryptionKey, Keys, Limits, OpenMode, StoreError, StoreSnapshot, WhenFull};

/// How every sealed copy begins, inside.
pub(super) const HEAD_START: &[u8] = b"opik-offline store ";
/// How one of this version begins.
pub(super) const HEAD: &[u8; 21] = b"opik-offline store 1\n";
/// The limits of a store that is only a copy: the disk's.
pub(super) const COPY_LIMITS: Limits = Limits { size_max: 1 << 46, disk_reserve: 0, when_full: WhenFull::Refuse };

/// A sealed copy that was written.
#[derive(Debug)]
pub(crate) struct SealedCopy {
    /// Where it is.
    pub path: PathBuf,
    /// The messages in it.
    pub moved: Moved,
    /// Its size in bytes; 0 in a dry run.
    pub bytes: u64,
}

/// How a store is sealed.
#[derive(Clone, Copy)]
pub(crate) struct SealingJob<'a> {
    /// The store.
    pub own: &'a Path,
    /// Its limits.
    pub limits: Limits,
    /// Its keys.
    pub keys: &'a Keys,
    /// For whom.
    pub recipients: &'a [Recipient],
    /// Only counts.
    pub is_dry_run: bool,
    /// Stops it.
    pub shutdown: &'a Shutdown,
}

impl SealingJob<'_> {
    /// Writes a sealed copy of the store to a new file; `None` if the store has no messages. The store is not changed,
    /// and may be in use.
    ///
    /// # Errors
    ///
    /// [`MovingError`]; there is no such file then.
    pub(crate) fn write(&self, to: &Path) -> Result<Option<SealedCopy>, MovingError> {
        if fs::symlink_metadata(to).is_ok() {
            return Err(MovingError::Exists { path: to.to_owned() });
        }
        let mut snapshot = StoreSnapshot::open(self.own, OpenMode::Existing, self.limits, self.keys)?;
        let backlog = snapshot.backlog()?;
        if backlog.messages() == 0 {
            return Ok(None);
        }
        if self.is_dry_run {
            let (rejected, held) = (backlog.rejected(), backlog.held());
            let moved = Moved { taken: backlog.waiting(), rejected, held, ..Moved::default() };
            return Ok(Some(SealedCopy { path: to.to_owned(), moved, bytes: 0 }));
        }
        // First, because most mistakes are about it.
        let unwritable = |error: io::Error| self.unwritable(to, &error);
        let unfinished = Unfinished::for_path(to).map_err(unwritable)?;
        let no_scratch = |error: io::Error| MovingError::Scratch {
            path: self.own.to_owned(),
            folder: folder_of(self.own).to_owned(),
            reason: os_words(&error),
        };
        let scratch = ScratchFolder::beside(self.own).map_err(no_scratch)?;
        let copy = scratch.store();
        let key =
            EncryptionKey::random().ok_or(MovingError::Sealed { path: to.to_owned(), error: SealError::Random })?;
        let moved = self.fill(&mut snapshot, &copy, &key)?;
        drop(snapshot);
        self.seal(&copy, &key, &unfinished).map_err(unwritable)?;
        if self.shutdown.is_requested() {
            return Err(MovingError::Interrupted { path: self.own.to_owned() });
        }
        let bytes = unfinished.file.metadata().map_err(unwritable)?.len();
        unfinished.finish().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => MovingError::Exists { path: to.to_owned() },
            _ => self.unwritable(to, &error),
        })?;
        Ok(Some(SealedCopy { path: to.to_owned(), moved, bytes }))
    }

    fn unwritable(&self, to: &Path, error: &io::Error) -> MovingError {
        MovingError::Unwritable { path: to.to_owned(), reason: os_words(error) }
    }

    /// Makes a store with the messages of the snapshot, all of it in one file.
    fn fill(&self, from: &mut StoreSnapshot, copy: &Path, key: &EncryptionKey) -> Result<Moved, MovingError> {
        let keys = Keys { current: Some(key.clone()), previous: None };
        let source = |error| MovingError::Source { path: self.own.to_owned(), copy: copy.to_owned(), error };
        let store = store::open_with(copy, OpenMode::CreateIfMissing, COPY_LIMITS, &keys).map_err(source)?;
        let moved = Import::into(SalvageTarget::Store(&*store), self.shutdown).run(from);
        let moved = moved.map_err(|error| match error {
            ImportError::Source(error) => MovingError::Store(error),
            ImportError::Target(error) => source(error),
            ImportError::Interrupted => MovingError::Interrupted { path: self.own.to_owned() },
        })?;
        store.compact().map_err(source)?;
        drop(store);
        let log = copy.with_file_name(with_suffix(copy.file_name().unwrap_or_default(), "-wal"));
        if log.metadata().is_ok_and(|log| log.len() > 0) {
            let reason = "its log cannot be emptied: the disk is nearly full".to_owned();
            return Err(source(StoreError::Unusable { at: copy.into(), reason }));
        }
        Ok(moved)
    }

    fn seal(&self, copy: &Path, key: &EncryptionKey, to: &Unfinished) -> io::Result<()> {
        let mut writer = SealWriter::new(self.recipients, &to.file).map_err(io::Error::other)?;
        writer.write_all(HEAD)?;
        writer.write_all(key.reveal())?;
        copy_all(&mut File::open(copy)?, &mut writer, self.shutdown)?;
        writer.finish().map(drop)
    }
}
