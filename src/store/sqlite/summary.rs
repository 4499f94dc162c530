//! The summary: changes of the counts, collected while a transaction runs and written once at its end.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, Transaction, params};

use super::fault::Fault;
use super::queries;
use super::rows;
use crate::message::{MessageStatus, MessageType};

/// A group that messages are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CountGroup {
    pub(super) lane: i64,
    pub(super) status: MessageStatus,
    pub(super) message_type: MessageType,
    /// The status of the server's answer; 0 for none and for all messages that are not rejected.
    pub(super) answer_status: u16,
}

impl CountGroup {
    /// Returns the group of a message that the server has not refused.
    pub(super) fn new(lane: i64, status: MessageStatus, message_type: MessageType) -> Self {
        Self { lane, status, message_type, answer_status: 0 }
    }
}

/// The counted sizes of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) items: i64,
    pub(super) body_bytes: i64,
}

/// Reads group and size from the columns that [`columns!`](super::schema::columns) lists as `counted`.
pub(super) fn counted(row: &Row<'_>) -> Result<(CountGroup, Size), Fault> {
    let status = rows::status(row, 1)?;
    let answer: Option<u16> = if status == MessageStatus::Rejected { row.get(3)? } else { None };
    let message_type = rows::message_type(row, 2)?;
    let group = CountGroup { lane: row.get(0)?, status, message_type, answer_status: answer.unwrap_or(0) };
    Ok((group, Size { items: row.get(4)?, body_bytes: row.get(5)? }))
}

/// Changes of the counts in one transaction.
#[derive(Debug, Default)]
pub(super) struct CountChanges {
    groups: BTreeMap<CountGroup, (i64, Size)>,
    highest_deleted: i64,
}

impl CountChanges {
    /// Counts a message that is in this group now.
    pub(super) fn add(&mut self, group: CountGroup, size: Size) {
        self.change(group, 1, size);
    }

    /// Returns the highest id that was deleted so far.
    pub(super) fn highest_deleted(&self) -> i64 {
        self.highest_deleted
    }

    /// Counts a message that is no longer in this group.
    pub(super) fn take(&mut self, group: CountGroup, size: Size) {
        self.change(group, -1, Size { items: -size.items, body_bytes: -size.body_bytes });
    }

    /// Remembers that this id was used.
    pub(super) fn delete(&mut self, id: i64) {
        self.highest_deleted = self.highest_deleted.max(id);
    }

    /// Writes the changes; the last statement of a transaction.
    pub(super) fn write(self, tx: &Transaction<'_>) -> Result<(), Fault> {
        let mut add = tx.prepare_cached(queries::ADD_TO_SUMMARY)?;
        let mut drop = tx.prepare_cached(queries::DROP_FROM_SUMMARY)?;
        for (group, (messages, size)) in self.groups {
            if (messages, size) == (0, Size::default()) {
                continue;
            }
            let (status, message_type) = (group.status.code(), group.message_type.name());
            let key = (group.lane, status, message_type, group.answer_status);
            let mut drop = |most: i64| drop.execute(params![key.0, key.1, key.2, key.3, most]);
            // A replay usually takes all that there is of a small lane.
            if messages < 0 && drop(-messages)? > 0 {
                continue;
            }
            add.execute(params![key.0, key.1, key.2, key.3, messages, size.items, size.body_bytes])?;
            if messages < 0 {
                drop(0)?;
            }
        }
        if self.highest_deleted > 0 {
            tx.prepare_cached(queries::RAISE_COUNTER)?.execute(params!["deleted_id", self.highest_deleted])?;
        }
        Ok(())
    }

    fn change(&mut self, group: CountGroup, messages: i64, size: Size) {
        let change = self.groups.entry(group).or_default();
        change.0 += messages;
        change.1.items += size.items;
        change.1.body_bytes += size.body_bytes;
    }
}

/// Returns how many groups of the summary differ from a recount of the messages.
pub(super) fn wrong_groups(connection: &Connection) -> Result<usize, Fault> {
    let mut counts: BTreeMap<CountGroup, (i64, Size)> = BTreeMap::new();
    let mut count = |group, messages, size: Size| {
        let sum = counts.entry(group).or_default();
        *sum = (
            sum.0 + messages,
            Size { items: sum.1.items + size.items, body_bytes: sum.1.body_bytes + size.body_bytes },
        );
    };
    let mut messages = connection.prepare(queries::COUNTED)?;
    let mut messages = messages.query([])?;
    while let Some(row) = messages.next()? {
        let (group, size) = counted(row)?;
        count(group, 1, size);
    }
    let mut summary = connection.prepare(queries::SUMMARY)?;
    let mut summary = summary.query([])?;
    while let Some(row) = summary.next()? {
        let (group, size) = counted(row)?;
        count(group, -row.get::<_, i64>(6)?, Size { items: -size.items, body_bytes: -size.body_bytes });
    }
    Ok(counts.values().filter(|left| **left != (0, Size::default())).count())
}
