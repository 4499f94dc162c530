//! What can go wrong inside the engine, and what of it callers see.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use super::{BUSY_TIMEOUT, proof};
use crate::store::StoreError;
use crate::store::key::KeyId;

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
    /// Why something can't be sealed.
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
    /// Sorts the fault by what the caller can do about it.
    ///
    /// Every fault of the engine passes here, so this is where a failed write or sync makes the store unproven.
    pub(super) fn at(self, path: &Path) -> StoreError {
        let path_buf = path.to_owned();
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

/// Says what the system holds against reading and writing this file and files beside it, or `None` when it allows both.
///
/// Asks without opening it: closing a second descriptor would drop the locks that SQLite holds in this process.
pub(super) fn access_words(path: &Path) -> Option<String> {
    use rustix::fs::{Access, access};
    if let Err(errno) = access(path, Access::READ_OK | Access::WRITE_OK) {
        return Some(os_words(&errno.into()));
    }
    // The write-ahead log is made there.
    let folder = folder_of(path);
    let errno = access(folder, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some(format!("its folder {}: {}", folder.display(), os_words(&errno.into())))
}

/// Returns the folder that a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns the system's words for an error as they stand inside a sentence.
pub(in crate::store) fn os_words(error: &io::Error) -> String {
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
