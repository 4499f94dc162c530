//! Decoding single columns into domain types.

use rusqlite::Row;

use super::fault::Fault;
use crate::message::{Encoding, MessageStatus, MessageType, Touch};

/// Returns the stored code of an encoding.
pub(super) fn encoding_code(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Identity => 0,
        Encoding::Gzip => 1,
        Encoding::Deflate => 2,
    }
}

/// Returns the encoding with this stored code.
pub(super) fn encoding_of(code: i64) -> Option<Encoding> {
    match code {
        0 => Some(Encoding::Identity),
        1 => Some(Encoding::Gzip),
        2 => Some(Encoding::Deflate),
        _ => None,
    }
}

pub(super) fn encoding(row: &Row<'_>, column: usize) -> Result<Encoding, Fault> {
    let code = row.get(column)?;
    encoding_of(code).ok_or_else(|| Fault::Damaged(format!("a message has encoding {code}, which does not exist")))
}

pub(super) fn status(row: &Row<'_>, column: usize) -> Result<MessageStatus, Fault> {
    let code = row.get(column)?;
    MessageStatus::from_code(code)
        .ok_or_else(|| Fault::Damaged(format!("a message has status {code}, which does not exist")))
}

pub(super) fn message_type(row: &Row<'_>, column: usize) -> Result<MessageType, Fault> {
    let name = row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
    MessageType::from_name(name)
        .ok_or_else(|| Fault::Damaged(format!("a message has the type {name:?}, which does not exist")))
}

pub(super) fn touches(row: &Row<'_>, column: usize) -> Result<Vec<Touch>, Fault> {
    let bytes = row.get_ref(column)?.as_blob().map_err(rusqlite::Error::from)?;
    Touch::from_bytes(bytes).ok_or_else(|| Fault::Damaged("the entities of a message are unreadable".into()))
}

/// Reads a number that is never negative.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, Fault> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| Fault::Damaged(format!("a count is {number}")))
}
