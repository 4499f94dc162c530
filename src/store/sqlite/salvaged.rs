//! Salvaged rows of SDK files, and messages of other stores: each is stored once, even if a copy of the file has it too.

use rusqlite::{Connection, Transaction, params};

use super::codec::Packed;
use super::fault::Fault;
use super::seal::Sealer;
use super::summary::{CountChanges, CountGroup, Size};
use super::{attachments, queries, record, register};
use crate::message::{MessageId, MessageStatus, Sha256};
use crate::store::work::{LastAnswer, SalvagedRow};

/// Returns whether an earlier salvage stored a row.
pub(super) fn is_salvaged(connection: &Connection, row: &Sha256) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(queries::IS_SALVAGED)?.exists([&row.as_bytes()[..]])?)
}

/// Stores the rows that are new, with their packed bodies, and records their digests in the same transaction.
pub(super) fn salvage(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    rows: &[SalvagedRow],
    bodies: &[Packed],
) -> Result<Vec<Option<MessageId>>, Fault> {
    let mut ids = Vec::with_capacity(rows.len());
    // What waits and has no file is stored many at a time, up to the next one that is more than that.
    let mut plain: Vec<(usize, &SalvagedRow, &Packed)> = Vec::new();
    for (at, (row, body)) in rows.iter().zip(bodies).enumerate() {
        ids.push(None);
        let added = tx.prepare_cached(queries::ADD_SALVAGED)?.execute([&row.row.as_bytes()[..]])?;
        if added == 0 {
            continue;
        }
        if is_plain(row) {
            plain.push((at, row, body));
            continue;
        }
        register_plain(tx, sealer, &mut plain, &mut ids)?;
        ids[at] = Some(register_one(tx, sealer, row, body)?);
    }
    register_plain(tx, sealer, &mut plain, &mut ids)?;
    Ok(ids)
}

/// Returns whether a row is a message that waits, and nothing else.
fn is_plain(row: &SalvagedRow) -> bool {
    row.file.is_none() && !row.was_in_flight && row.status().1.is_none()
}

/// Stores rows that wait, and notes their ids at their places.
fn register_plain(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    plain: &mut Vec<(usize, &SalvagedRow, &Packed)>,
    ids: &mut [Option<MessageId>],
) -> Result<(), Fault> {
    if plain.is_empty() {
        return Ok(());
    }
    let messages = plain.iter().map(|(_, row, body)| (&row.message, *body, 0));
    let registered = register::register_each(tx, sealer, messages)?;
    for ((at, ..), id) in plain.drain(..).zip(registered) {
        ids[at] = Some(id);
    }
    Ok(())
}

/// Stores one row with its file and its status.
fn register_one(tx: &Transaction<'_>, sealer: &Sealer, row: &SalvagedRow, body: &Packed) -> Result<MessageId, Fault> {
    let file_bytes = row.file.as_ref().map_or(0, |(_, file)| file.bytes);
    let id = register::register_attachment(tx, sealer, &row.message, body, file_bytes)?;
    if let Some((attachment, file)) = &row.file {
        attachments::give(tx, sealer, *attachment, file, id)?;
    }
    if let (status, Some(answer)) = row.status() {
        refuse(tx, sealer, (id, row), status, answer)?;
    } else if row.was_in_flight {
        tx.prepare_cached(queries::SALVAGED_IN_FLIGHT)?.execute([id.0])?;
    }
    Ok(id)
}

/// Marks a message as *rejected* or *held* that this transaction stored as *failed*.
fn refuse(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    (id, row): (MessageId, &SalvagedRow),
    status: MessageStatus,
    answer: &LastAnswer,
) -> Result<(), Fault> {
    tx.prepare_cached(queries::REFUSE_SALVAGED)?.execute(params![id.0, status.code()])?;
    record::keep_answer(tx, sealer, id, answer)?;
    let (lane, body_bytes) =
        tx.prepare_cached(queries::LANE_AND_BYTES)?.query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let size = Size { items: row.message.items.into(), body_bytes };
    let group = CountGroup::new(lane, MessageStatus::Failed, row.message.message_type);
    let mut changes = CountChanges::default();
    changes.take(group, size);
    // Only rejected messages are counted by their answer.
    let answer_status = answer.status.filter(|_| status == MessageStatus::Rejected).unwrap_or(0);
    changes.add(CountGroup { status, answer_status, ..group }, size);
    changes.write(tx)
}
