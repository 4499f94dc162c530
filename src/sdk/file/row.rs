//! Rows of the SDK's table, read through SQLite.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OptionalExtension};

use super::queries;

/// One row as the SDK stored it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// The SDK's id of the message.
    pub message_id: i64,
    /// 1 registered, 2 delivered, 3 failed.
    pub status: i64,
    /// The SDK's name for its type.
    pub message_type: String,
    /// Its JSON text; `None` if the column holds neither text nor a blob.
    pub json: Option<Vec<u8>>,
}

/// Reads the row with the lowest id after this one.
pub(super) fn next_after(connection: &Connection, after: Option<i64>) -> rusqlite::Result<Option<StoredRow>> {
    match after {
        None => connection.prepare_cached(queries::SDK_FIRST)?.query_row([], stored_row).optional(),
        Some(after) => connection.prepare_cached(queries::SDK_NEXT)?.query_row([after], stored_row).optional(),
    }
}

/// Reads the row with this id.
pub(super) fn one_row(connection: &Connection, message_id: i64) -> rusqlite::Result<Option<StoredRow>> {
    connection.prepare_cached(queries::SDK_ONE)?.query_row([message_id], stored_row).optional()
}

/// Accepts any type in any column: a strange file may hold anything.
fn stored_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredRow> {
    let bytes = |value: ValueRef<'_>| match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.to_vec()),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    };
    let status = match row.get_ref(1)? {
        ValueRef::Integer(status) => status,
        _ => 0,
    };
    let message_type = bytes(row.get_ref(2)?).unwrap_or_default();
    Ok(StoredRow {
        message_id: row.get(0)?,
        status,
        message_type: String::from_utf8_lossy(&message_type).into_owned(),
        json: bytes(row.get_ref(3)?),
    })
}

/// Returns whether an error of SQLite means that the file is corrupt.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::SystemIoFailure | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            true
        }
        Some(_) => false,
        None => true,
    }
}
