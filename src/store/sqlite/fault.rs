//! Errors inside the engine, and how they are mapped to those of the trait.

use std::path::Path;
use std::time::Duration;

use rusqlite::ErrorCode;

use super::access::access_words;
use super::unproven;
use crate::store::encryption::key::KeyId;
use crate::store::error::StoreError;
use crate::store::full_state::FullLimit;
use crate::store::full_state::USUAL_BYTES;
use crate::store::room::{self, NoRoom};

/// How long a write waits for other processes.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Why a file that is not a database is refused.
pub(super) const NO_DATABASE: &str = "it is not an SQLite database";

/// Why a step of the engine failed, before the store adds its path.
#[derive(Debug)]
pub(super) enum Fault {
    /// An error of SQLite.
    Engine(rusqlite::Error),
    /// Rows that no version writes.
    Damaged(String),
    /// A key is needed, and none is configured.
    KeyMissing { needed: KeyId },
    /// A key is needed that is not among the configured ones.
    WrongKey { needed: KeyId, given: KeyId },
    /// Two keys are in use already, and a third is configured.
    TooManyKeys,
    /// Why a value cannot be sealed or compressed.
    Sealing(&'static str),
    /// One message is not what was stored; the rest of the store is intact.
    Message(String),
    /// Already an error of the trait.
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
    /// Returns whether other connections keep the store locked.
    pub(super) fn is_busy(&self) -> bool {
        let Self::Engine(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Returns which resource of the disk is exhausted, if that is why the step failed.
    ///
    /// SQLite reports a lack of bytes. An exhausted quota, and a lack of space for the log or for the memory that
    /// processes share, are distinguished from a failing disk by asking the system again. A failed sync is never one of
    /// these.
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

    /// Maps the fault to what the caller can do about it.
    ///
    /// Every fault of the engine passes through here, so this is where a failed write or sync makes the store unproven.
    pub(super) fn at(self, path: &Path) -> StoreError {
        let path_buf = path.to_owned();
        if let Some(no_room) = self.no_room(path) {
            let reason = no_room.words().into();
            return StoreError::Full { at: path_buf.into(), limit: FullLimit::Disk, needed: USUAL_BYTES, reason };
        }
        match self {
            Self::Store(error) => error,
            Self::Damaged(reason) | Self::Message(reason) => StoreError::Damaged { at: path_buf.into(), reason },
            Self::KeyMissing { needed } => StoreError::KeyMissing { at: path_buf.into(), needed },
            Self::WrongKey { needed, given } => StoreError::WrongKey { at: path_buf.into(), needed, given },
            Self::TooManyKeys => StoreError::TooManyKeys { at: path_buf.into() },
            Self::Sealing(reason) => StoreError::Unusable { at: path_buf.into(), reason: reason.into() },
            Self::Engine(error) => {
                if let Some(unproven) = unproven::judge(&error, path) {
                    return unproven;
                }
                let reason = words(&error);
                match error.sqlite_error_code() {
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                        StoreError::Busy { at: path_buf.into(), waited_ms: BUSY_TIMEOUT.as_millis() as u64 }
                    }
                    Some(ErrorCode::DatabaseCorrupt) => StoreError::Damaged { at: path_buf.into(), reason },
                    Some(ErrorCode::NotADatabase) => {
                        StoreError::NotAStore { at: path_buf.into(), reason: NO_DATABASE.into() }
                    }
                    // The content of the file is not what this version wrote: a missing table, a column of another
                    // type.
                    None => StoreError::Damaged { at: path_buf.into(), reason },
                    Some(ErrorCode::Unknown | ErrorCode::TypeMismatch | ErrorCode::ConstraintViolation) => {
                        StoreError::Damaged { at: path_buf.into(), reason }
                    }
                    Some(_) => {
                        StoreError::Unusable { at: path_buf.into(), reason: access_words(path).unwrap_or(reason) }
                    }
                }
            }
        }
    }
}

fn words(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, Some(message)) => {
            format!("{message} (SQLite error {})", code.extended_code)
        }
        other => other.to_string(),
    }
}
