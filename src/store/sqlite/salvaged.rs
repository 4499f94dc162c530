//! Salvaged rows of SDK files: each is stored once, even if a copy of the file has it too.

use rusqlite::{Connection, Transaction};

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
    for (row, body) in rows.iter().zip(bodies) {
        let added = tx.prepare_cached(queries::ADD_SALVAGED)?.execute([&row.row.as_bytes()[..]])?;
        if added == 0 {
            ids.push(None);
            continue;
        }
        let file_bytes = row.file.as_ref().map_or(0, |(_, file)| file.bytes);
        let id = register::register_attachment(tx, sealer, &row.message, body, file_bytes)?;
        if let Some((attachment, file)) = &row.file {
            attachments::give(tx, sealer, *attachment, file, id)?;
        }
        if let Some(answer) = &row.rejected {
            reject(tx, sealer, id, row, answer)?;
        }
        ids.push(Some(id));
    }
    Ok(ids)
}

/// Marks a message as *rejected* that this transaction stored as *failed*.
fn reject(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    id: MessageId,
    row: &SalvagedRow,
    answer: &LastAnswer,
) -> Result<(), Fault> {
    tx.prepare_cached(queries::REJECT_SALVAGED)?.execute([id.0])?;
    record::keep_answer(tx, sealer, id, answer)?;
    let (lane, body_bytes) =
        tx.prepare_cached(queries::LANE_AND_BYTES)?.query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let size = Size { items: row.message.items.into(), body_bytes };
    let group = CountGroup::new(lane, MessageStatus::Failed, row.message.message_type);
    let mut changes = CountChanges::default();
    changes.take(group, size);
    let answer_status = answer.status.unwrap_or(0);
    changes.add(CountGroup { status: MessageStatus::Rejected, answer_status, ..group }, size);
    changes.write(tx)
}
