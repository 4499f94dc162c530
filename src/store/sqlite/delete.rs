//! Deleting a message with everything that belongs to it.

use rusqlite::{CachedStatement, Transaction, params};

use super::fault::Fault;
use super::summary::{CountChanges, CountGroup, Size, counted};
use super::{attachments, queries, rows, touch_index};
use crate::message::{MessageType, Touch};

/// The statements that delete messages of one kind, each looked up once.
///
/// A message is found by one statement and deleted by another: `RETURNING` would make a table in memory for each.
pub(super) struct Deletion<'tx> {
    tx: &'tx Transaction<'tx>,
    find: CachedStatement<'tx>,
    delete: CachedStatement<'tx>,
    delete_body: CachedStatement<'tx>,
    drop_touch: CachedStatement<'tx>,
}

impl<'tx> Deletion<'tx> {
    /// Returns the deletion of what `find` returns: the columns that [`columns!`](super::schema::columns) lists as
    /// `deleted`, of one message.
    pub(super) fn of(tx: &'tx Transaction<'tx>, find: &str) -> Result<Self, Fault> {
        Ok(Self {
            tx,
            find: tx.prepare_cached(find)?,
            delete: tx.prepare_cached(queries::DELETE_MESSAGE)?,
            delete_body: tx.prepare_cached(queries::DELETE_BODY)?,
            drop_touch: tx.prepare_cached(queries::DROP_TOUCH)?,
        })
    }

    /// Deletes the message with these parameters, along with its body and its index entries; returns what it was.
    ///
    /// The bytes of its file are only released: removing them takes longer than other writers should wait.
    pub(super) fn delete(
        &mut self,
        which: impl rusqlite::Params,
        changes: &mut CountChanges,
    ) -> Result<Option<(CountGroup, Size, Vec<Touch>)>, Fault> {
        let (id, (group, size), touches) = {
            let mut found = self.find.query(which)?;
            let Some(row) = found.next()? else { return Ok(None) };
            (row.get::<_, i64>(7)?, counted(row)?, rows::touches(row, 6)?)
        };
        self.delete.execute([id])?;
        self.delete_body.execute([id])?;
        if group.message_type == MessageType::CreateAttachment {
            attachments::release(self.tx, id)?;
        }
        for touch in touches.iter().filter(|touch| touch_index::is_indexed(touch)) {
            self.drop_touch.execute(params![touch.effect as u8, &touch.key.as_bytes()[..], id])?;
        }
        changes.take(group, size);
        changes.delete(id);
        Ok(Some((group, size, touches)))
    }
}
