//! Examining what is at the path of a store, without changing a byte of it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::create::{has_hot_journal, make_file, roll_back_creation};
use crate::store::error::StoreError;
use crate::store::limits::OpenMode;
use crate::store::os::os_words;
use crate::store::place;
use crate::store::sqlite::access::access_words;
use crate::store::sqlite::connect::{immutable, tables};
use crate::store::sqlite::fault::NO_DATABASE;
use crate::store::sqlite::queries;
use crate::store::sqlite::recovery;
use crate::store::sqlite::schema;

/// Bytes of the header of every SQLite database.
const HEADER_BYTES: u64 = 100;

/// Refuses a path where another user has set a trap, and returns the real path of the store.
pub(crate) fn vet(path: &Path, mode: OpenMode) -> Result<PathBuf, StoreError> {
    place::vet(path, mode).map_err(|trap| StoreError::Unusable {
        at: path.into(),
        reason: format!(
            "{} is not trusted: {}; look at it with `ls -ld`, and move it away if you did not make it",
            trap.path.display(),
            trap.reason
        ),
    })
}

pub(crate) fn create_or_examine(path: &Path, mode: OpenMode) -> Result<(), StoreError> {
    let unusable = |reason: String| StoreError::Unusable { at: path.into(), reason };
    let damaged = |reason: &str| StoreError::Damaged { at: path.into(), reason: reason.into() };
    let log_alone = "its file is missing or empty, and its write-ahead log is there";
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match mode {
            _ if recovery::has_log_alone(path) => Err(damaged(log_alone)),
            OpenMode::Existing | OpenMode::ExistingOrRecovered | OpenMode::WithoutKey => {
                Err(StoreError::Missing { at: path.into() })
            }
            OpenMode::CreateIfMissing => make_file(path),
        },
        Err(error) => Err(unusable(os_words(&error))),
        Ok(metadata) => {
            let not_a_store = |reason: &str| StoreError::NotAStore { at: path.into(), reason: reason.into() };
            let kind = metadata.file_type();
            if kind.is_dir() {
                return Err(not_a_store("it is a directory"));
            }
            if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
                return Err(not_a_store("it is not a regular file"));
            }
            if let Some(words) = access_words(path) {
                return Err(unusable(words));
            }
            let bytes = match (has_hot_journal(path), mode) {
                (false, _) => metadata.len(),
                (true, OpenMode::CreateIfMissing) => roll_back_creation(path)?,
                (true, OpenMode::Existing | OpenMode::ExistingOrRecovered | OpenMode::WithoutKey) => 0,
            };
            match bytes {
                0 if recovery::has_log_alone(path) => Err(damaged(log_alone)),
                // Left by a process that was killed while it created a store, or by `touch`: it is empty.
                0 if mode != OpenMode::CreateIfMissing => Err(StoreError::Missing { at: path.into() }),
                0 => fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                    .map_err(|error| unusable(os_words(&error))),
                // SQLite would treat a file of one byte as empty.
                1..HEADER_BYTES if recovery::has_log_alone(path) => Err(damaged("its file is cut off")),
                1..HEADER_BYTES => Err(not_a_store(NO_DATABASE)),
                _ => match examine(path) {
                    Err(StoreError::NotAStore { reason, .. }) if recovery::is_ours(path) => {
                        Err(damaged(&format!("its first page is damaged: {reason}")))
                    }
                    result => result,
                },
            }
        }
    }
}

/// Refuses a file that is not ours, without changing a byte of it.
///
/// Reads through an immutable connection: no lock, no log, no recovery. It may see an older state than the write-ahead
/// log holds, so only a clear "not ours" counts here, and [`super::super::open`] checks again.
fn examine(path: &Path) -> Result<(), StoreError> {
    let not_a_store = |reason: String| StoreError::NotAStore { at: path.into(), reason };
    let look = || -> rusqlite::Result<(i32, i64, Connection)> {
        let connection = immutable(path)?;
        let application_id = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version = schema::version(&connection)?;
        Ok((application_id, version, connection))
    };
    match look() {
        Ok((schema::APPLICATION_ID, found, _)) => schema::refuse_newer(path, found),
        Ok((0, 0, connection)) => match tables(&connection) {
            // Created by us a moment ago and still empty; or the log knows more.
            Ok(tables) if tables.is_empty() => Ok(()),
            Ok(tables) if tables == ["messages"] && has_sdk_columns(&connection) => Err(not_a_store(
                "it is a leftover file of the Opik Python SDK, which `replay --from` and `inspect --from` read".into(),
            )),
            Ok(_) | Err(_) => Err(not_a_store("it is the database of another program".into())),
        },
        Ok((application_id, _, _)) => {
            Err(not_a_store(format!("it is the database of another program (application_id {application_id:#x})")))
        }
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            Err(not_a_store(NO_DATABASE.into()))
        }
        // Perhaps it is intact only with its log.
        Err(_) => Ok(()),
    }
}

fn has_sdk_columns(connection: &Connection) -> bool {
    connection.prepare(queries::SDK_MESSAGES).is_ok()
}
