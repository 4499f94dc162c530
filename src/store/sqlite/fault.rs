//! What can go wrong inside the engine, and what of it callers see.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;
use rustix::io::Errno;

use super::{BUSY_TIMEOUT, proof};
use crate::store::full_state::USUAL_BYTES;
use crate::store::key::KeyId;
use crate::store::room::{self, NoRoom};
use crate::store::{FullLimit, StoreError};

/// Why a file of another kind is refused.
pub(super) const NO_DATABASE: &str = "it is no SQLite database";

/// Why a step of ours failed, before the store puts its path to it.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite says so.
    Engine(rusqlite::Error),
    /// Rows that no version of ours writes.
    Damaged(String),
    /// A key is needed and none is there.
    KeyMissing { needed: KeyId },
    /// Another key is needed than those that are there.
    WrongKey { needed: KeyId, given: KeyId },
    /// Things are kept under two keys already, and a third one is given.
    TooManyKeys,
    /// Why something can't be sealed, or compressed.
    Sealing(&'static str),
    /// One message is not what was stored; the store around it is whole.
    Message(String),
    /// Already in the words of the trait.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    /// Returns whether others keep the store locked.
    pub(super) fn is_busy(&self) -> bool {
        let Self::Engine(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Returns what the disk has used up, when that is why the step failed.
    ///
    /// SQLite names the lack of bytes. A quota, and no room for the log or for the memory that processes share, are told
    /// apart from a fault of the disk by asking the system again. A failed sync is never one of these.
    pub(super) fn no_room(&self, path: &Path) -> Option<NoRoom> {
        const WRITE: i32 = 778;
        const SHARED_MEMORY: [i32; 3] = [4618, 4874, 5386];
        let Self::Engine(error) = self else { return None };
        let extended = error.sqlite_error().map_or(0, |error| error.extended_code);
        match error.sqlite_error_code()? {
            ErrorCode::DiskFull => Some(room::refusal(path).unwrap_or(NoRoom::Bytes)),
            ErrorCode::SystemIoFailure if extended == WRITE => {
                room::refusal(path).filter(|refusal| *refusal == NoRoom::Quota)
            }
            ErrorCode::SystemIoFailure if SHARED_MEMORY.contains(&extended) => room::refusal(path),
            ErrorCode::CannotOpen => room::refusal(path),
            _ => None,
        }
    }

    /// Sorts the fault by what the caller can do about it.
    ///
    /// Every fault of the engine passes here, so this is where a failed write or sync makes the store unproven.
    pub(super) fn at(self, path: &Path) -> StoreError {
        let path_buf = path.to_owned();
        if let Some(no_room) = self.no_room(path) {
            let reason = no_room.words().into();
            return StoreError::Full { path: path_buf, limit: FullLimit::Disk, needed: USUAL_BYTES, reason };
        }
        match self {
            Self::Store(error) => error,
            Self::Damaged(reason) | Self::Message(reason) => StoreError::Damaged { path: path_buf, reason },
            Self::KeyMissing { needed } => StoreError::KeyMissing { path: path_buf, needed },
            Self::WrongKey { needed, given } => StoreError::WrongKey { path: path_buf, needed, given },
            Self::TooManyKeys => StoreError::TooManyKeys { path: path_buf },
            Self::Sealing(reason) => StoreError::Unusable { path: path_buf, reason: reason.into() },
            Self::Engine(error) => {
                if let Some(unproven) = proof::judge(&error, path) {
                    return unproven;
                }
                let reason = words(&error);
                match error.sqlite_error_code() {
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                        StoreError::Busy { path: path_buf, waited_ms: BUSY_TIMEOUT.as_millis() as u64 }
                    }
                    Some(ErrorCode::DatabaseCorrupt) => StoreError::Damaged { path: path_buf, reason },
                    Some(ErrorCode::NotADatabase) => {
                        StoreError::NotAStore { path: path_buf, reason: NO_DATABASE.into() }
                    }
                    // What the file holds is not what this version wrote: a missing table, a column of another type.
                    None => StoreError::Damaged { path: path_buf, reason },
                    Some(ErrorCode::Unknown | ErrorCode::TypeMismatch | ErrorCode::ConstraintViolation) => {
                        StoreError::Damaged { path: path_buf, reason }
                    }
                    Some(_) => StoreError::Unusable { path: path_buf, reason: access_words(path).unwrap_or(reason) },
                }
            }
        }
    }
}

/// Returns the error of a file system that is read-only since it failed: the kernel then refuses what is opened to be
/// written, and not the question whether that is allowed. The file that is opened has no name and holds nothing.
#[cfg(target_os = "linux")]
fn became_read_only(folder: &Path) -> Option<Errno> {
    use rustix::fs::{Mode, OFlags, open};
    let opened = open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    opened.err().filter(|errno| *errno == Errno::ROFS)
}

#[cfg(not(target_os = "linux"))]
fn became_read_only(_folder: &Path) -> Option<Errno> {
    None
}

/// Says what the system holds against reading and writing this file and files beside it, or `None` when it allows both.
///
/// Asks without opening it: closing a second descriptor would drop the locks that SQLite holds in this process.
pub(super) fn access_words(path: &Path) -> Option<String> {
    use rustix::fs::{Access, access};
    if let Err(errno) = access(path, Access::READ_OK | Access::WRITE_OK) {
        return Some(room::access_words(errno));
    }
    for (suffix, what) in [("-wal", "its write-ahead log"), ("-shm", "its shared memory")] {
        let mut file = std::fs::canonicalize(path).ok()?.into_os_string();
        file.push(suffix);
        match access(Path::new(&file), Access::READ_OK | Access::WRITE_OK) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Some(format!("{what} {}: {}", Path::new(&file).display(), room::access_words(errno))),
        }
    }
    // The write-ahead log is made there.
    let folder = folder_of(path);
    let refused = access(folder, Access::WRITE_OK | Access::EXEC_OK).err().or_else(|| became_read_only(folder))?;
    Some(format!("its folder {}: {}", folder.display(), room::access_words(refused)))
}

/// Returns the folder that a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns the system's words for an error as they stand inside a sentence.
pub(crate) fn os_words(error: &io::Error) -> String {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or(&words);
    let mut letters = words.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

fn words(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, Some(message)) => {
            format!("{message} (SQLite error {})", code.extended_code)
        }
        other => other.to_string(),
    }
}
