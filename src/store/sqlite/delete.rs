//! Deleting a message with everything that belongs to it.

use rusqlite::{CachedStatement, Transaction, params};

use super::fault::Fault;
use super::summary::{CountChanges, CountGroup, Size, counted};
use super::{attachments, queries, rows, touch_index};
use crate::message::{MessageType, Touch};

/// Deletes a message with a statement that returns what it was, along with its body and its index entries.
///
/// The bytes of its file are only released: removing them takes longer than other writers should wait.
pub(super) fn delete_one(
    tx: &Transaction<'_>,
    delete: &mut CachedStatement<'_>,
    which: impl rusqlite::Params,
    changes: &mut CountChanges,
) -> Result<Option<(CountGroup, Size, Vec<Touch>)>, Fault> {
    let id;
    let gone = {
        let mut deleted = delete.query(which)?;
        let Some(row) = deleted.next()? else { return Ok(None) };
        let gone = (counted(row)?, rows::touches(row, 6)?);
        id = row.get::<_, i64>(7)?;
        // The statement has to be stepped until it is done, or the deletion is incomplete.
        while deleted.next()?.is_some() {}
        gone
    };
    let ((group, size), touches) = gone;
    tx.prepare_cached(queries::DELETE_BODY)?.execute([id])?;
    if group.message_type == MessageType::CreateAttachment {
        attachments::release(tx, id)?;
    }
    let mut drop_touch = tx.prepare_cached(queries::DROP_TOUCH)?;
    for touch in touches.iter().filter(|touch| touch_index::is_indexed(touch)) {
        drop_touch.execute(params![touch.effect as u8, &touch.key.as_bytes()[..], id])?;
    }
    changes.take(group, size);
    changes.delete(id);
    Ok(Some((group, size, touches)))
}
