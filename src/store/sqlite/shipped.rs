//! Messages with a copy in a depot: see [`crate::store::Shipped`].
//!
//! # Invariants
//!
//! - **Intent before the copy**: a message is in `shipped` before its copy can be in the depot.
//! - **Marked or outstanding**: a row of `shipped` is deleted with the settle that follows its mark, or by
//!   [`note_marked`]. A message that is deleted in any other way leaves its row, which [`outstanding_and_gone`] finds.
//! - **Parts are copies as well**: the parts of an outstanding message are outstanding from the commit that stores them.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::fault::Fault;
use super::queries;
use crate::message::MessageId;
use crate::store::stream::{ShippedMessage, StreamRecord, StreamState, UnshippedCount};
use crate::store::work::{ClaimLimits, Outcome};

/// A stream's row, as far as its bundles need it.
struct StreamRow {
    id: i64,
    next_bundle: i64,
    shipped_through: i64,
}

impl StreamRow {
    fn find(connection: &Connection, stream: Uuid) -> Result<Option<Self>, Fault> {
        let read = |row: &Row<'_>| Ok(Self { id: row.get(0)?, next_bundle: row.get(1)?, shipped_through: row.get(2)? });
        Ok(connection.prepare_cached(queries::STREAM)?.query_row([&stream.as_bytes()[..]], read).optional()?)
    }
}

fn uuid(row: &Row<'_>, column: usize) -> Result<Uuid, Fault> {
    let bytes: Vec<u8> = row.get(column)?;
    Uuid::from_slice(&bytes).map_err(|_| Fault::Damaged("the name of a stream is not a UUID".into()))
}

/// Returns the streams that are not finished.
pub(super) fn streams(connection: &Connection) -> Result<Vec<StreamRecord>, Fault> {
    let mut statement = connection.prepare_cached(queries::STREAMS)?;
    let mut found = statement.query([])?;
    let mut streams = Vec::new();
    while let Some(row) = found.next()? {
        streams.push(StreamRecord {
            stream: uuid(row, 0)?,
            depot: row.get(1)?,
            state: if row.get::<_, i64>(2)? == 1 { StreamState::Open } else { StreamState::HandedOver },
            epoch: row.get(3)?,
            next_bundle: row.get(4)?,
            shipped_through: MessageId(row.get(5)?),
            began_at_ms: row.get(6)?,
            is_outstanding: row.get(7)?,
        });
    }
    Ok(streams)
}

/// Records a stream.
pub(super) fn note_stream(tx: &Transaction<'_>, record: &StreamRecord) -> Result<(), Fault> {
    tx.prepare_cached(queries::NOTE_STREAM)?.execute(params![
        &record.stream.as_bytes()[..],
        record.depot,
        if record.state == StreamState::Open { 1 } else { 2 },
        record.epoch,
        record.next_bundle,
        record.shipped_through.0,
        record.began_at_ms,
    ])?;
    Ok(())
}

/// Forgets a stream and its messages.
pub(super) fn end_stream(tx: &Transaction<'_>, stream: Uuid) -> Result<(), Fault> {
    if let Some(row) = StreamRow::find(tx, stream)? {
        tx.prepare_cached(queries::FORGET_MESSAGES_OF_STREAM)?.execute([row.id])?;
        tx.prepare_cached(queries::FORGET_STREAM)?.execute([row.id])?;
    }
    Ok(())
}

/// Chooses the messages of the next bundle, unless they are chosen already.
pub(super) fn begin_bundle(tx: &Transaction<'_>, stream: Uuid, limits: ClaimLimits) -> Result<Vec<MessageId>, Fault> {
    let Some(row) = StreamRow::find(tx, stream)? else { return Ok(Vec::new()) };
    let chosen: Vec<MessageId> = {
        let mut statement = tx.prepare_cached(queries::OPEN_BUNDLE)?;
        let ids = statement.query_map([row.id, row.next_bundle], |row| row.get(0).map(MessageId))?;
        ids.collect::<rusqlite::Result<_>>()?
    };
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let chosen = choose(tx, &row, limits)?;
    let mut add = tx.prepare_cached(queries::ADD_SHIPPED)?;
    for id in &chosen {
        add.execute(params![id.0, row.id, row.next_bundle])?;
    }
    Ok(chosen)
}

/// Chooses messages without a copy, in an order in which they may be delivered.
fn choose(tx: &Transaction<'_>, stream: &StreamRow, limits: ClaimLimits) -> Result<Vec<MessageId>, Fault> {
    /// A stream that is shipped to meets only parts of messages that were divided within seconds.
    const PARTS_SCAN_MAX: i64 = 5000;
    let (through, scanned) = (stream.shipped_through, if stream.next_bundle == 0 { -1 } else { PARTS_SCAN_MAX });
    let last_part: Option<i64> =
        tx.prepare_cached(queries::LAST_PART_UNSHIPPED)?.query_row([through, scanned], |row| row.get(0))?;
    if let Some(position) = last_part {
        // All up to it: what was accepted behind its whole has a lower id than the part.
        let mut statement = tx.prepare_cached(queries::UNSHIPPED_UP_TO)?;
        let ids = statement.query_map([through, position], |row| row.get(0).map(MessageId))?;
        return Ok(ids.collect::<rusqlite::Result<_>>()?);
    }
    let mut statement = tx.prepare_cached(queries::UNSHIPPED)?;
    let mut found = statement.query([through])?;
    let (mut chosen, mut bytes) = (Vec::new(), 0_u64);
    while chosen.len() < limits.messages_max
        && let Some(row) = found.next()?
    {
        bytes = bytes.saturating_add(row.get::<_, i64>(1)?.unsigned_abs());
        // A single message may be larger.
        if bytes > limits.bytes_max && !chosen.is_empty() {
            break;
        }
        chosen.push(MessageId(row.get(0)?));
    }
    Ok(chosen)
}

/// Records that the bundle is in the depot.
pub(super) fn confirm_bundle(tx: &Transaction<'_>, stream: Uuid, next_bundle: u32) -> Result<(), Fault> {
    if let Some(row) = StreamRow::find(tx, stream)? {
        tx.prepare_cached(queries::CONFIRM_BUNDLE)?.execute(params![row.id, next_bundle])?;
    }
    Ok(())
}

/// Records that the bundle is not in the depot.
pub(super) fn withdraw_bundle(tx: &Transaction<'_>, stream: Uuid) -> Result<(), Fault> {
    if let Some(row) = StreamRow::find(tx, stream)? {
        tx.prepare_cached(queries::WITHDRAW_BUNDLE)?.execute([row.id, row.next_bundle])?;
    }
    Ok(())
}

fn shipped_message(row: &Row<'_>) -> Result<ShippedMessage, Fault> {
    let origin: i64 = row.get(2)?;
    Ok(ShippedMessage {
        id: MessageId(row.get(0)?),
        stream: uuid(row, 1)?,
        origin: origin.unsigned_abs(),
        is_part: row.get(3)?,
    })
}

fn any_stream(connection: &Connection) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(queries::ANY_STREAM)?.exists([])?)
}

/// Returns which of these messages are outstanding.
pub(super) fn outstanding(connection: &Connection, ids: &[MessageId]) -> Result<Vec<ShippedMessage>, Fault> {
    if !any_stream(connection)? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare_cached(queries::OUTSTANDING)?;
    let mut messages = Vec::new();
    for id in ids {
        if let Some(row) = statement.query([id.0])?.next()? {
            messages.push(shipped_message(row)?);
        }
    }
    Ok(messages)
}

/// Returns outstanding messages that this store does not deliver.
pub(super) fn outstanding_and_gone(connection: &Connection, limit: usize) -> Result<Vec<ShippedMessage>, Fault> {
    if !any_stream(connection)? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare_cached(queries::OUTSTANDING_AND_GONE)?;
    let mut found = statement.query([i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut messages = Vec::new();
    while let Some(row) = found.next()? {
        messages.push(shipped_message(row)?);
    }
    Ok(messages)
}

/// Records that the depot has marks of these.
pub(super) fn note_marked(tx: &Transaction<'_>, ids: &[MessageId]) -> Result<(), Fault> {
    let mut forget = tx.prepare_cached(queries::FORGET_SHIPPED)?;
    for id in ids {
        forget.execute([id.0])?;
    }
    Ok(())
}

/// Records, in the transaction of a settle, that final outcomes were marked before it.
pub(super) fn settled(tx: &Transaction<'_>, outcomes: &[(MessageId, Outcome)]) -> Result<(), Fault> {
    if !any_stream(tx)? {
        return Ok(());
    }
    let is_final = |outcome: &Outcome| match outcome {
        Outcome::Delivered | Outcome::Rejected { .. } | Outcome::Divided { .. } => true,
        Outcome::Failed { .. } | Outcome::Held { .. } => false,
    };
    let ids: Vec<MessageId> = outcomes.iter().filter(|(_, outcome)| is_final(outcome)).map(|(id, _)| *id).collect();
    note_marked(tx, &ids)
}

/// Records that a part of a message, if that is outstanding, has its copy in the mark of the division.
pub(super) fn divided(tx: &Transaction<'_>, whole: MessageId, part: i64) -> Result<(), Fault> {
    tx.prepare_cached(queries::ADD_SHIPPED_PART)?.execute([part, whole.0])?;
    Ok(())
}

/// Returns the depot in which a message is outstanding, if any is.
pub(super) fn depot(connection: &Connection) -> Result<Option<String>, Fault> {
    Ok(connection.prepare_cached(queries::OUTSTANDING_DEPOT)?.query_row([], |row| row.get(0)).optional()?)
}

/// Counts what has no copy in the depot yet.
pub(super) fn unshipped(connection: &Connection) -> Result<UnshippedCount, Fault> {
    if !connection.prepare_cached(queries::ANY_ON_ITS_WAY)?.exists([])? {
        return Ok(UnshippedCount::default());
    }
    let through: i64 = connection.prepare_cached(queries::SHIPPED_THROUGH)?.query_row([], |row| row.get(0))?;
    let counted = connection.prepare_cached(queries::COUNT_UNSHIPPED)?.query_row([through], |row| {
        Ok(UnshippedCount {
            messages: row.get::<_, i64>(0)?.unsigned_abs(),
            body_bytes: row.get::<_, i64>(1)?.unsigned_abs(),
            oldest_accepted_at_ms: row.get(2)?,
        })
    })?;
    Ok(counted)
}

/// Records that somebody else delivers the stream; returns its outstanding messages.
pub(super) fn hand_over(tx: &Transaction<'_>, stream: Uuid) -> Result<Vec<MessageId>, Fault> {
    let Some(row) = StreamRow::find(tx, stream)? else { return Ok(Vec::new()) };
    // Whether these are there is unknown: nobody else may have them.
    tx.prepare_cached(queries::WITHDRAW_BUNDLE)?.execute([row.id, row.next_bundle])?;
    tx.prepare_cached(queries::HAND_OVER)?.execute([row.id])?;
    let mut statement = tx.prepare_cached(queries::MESSAGES_OF_STREAM)?;
    let ids = statement.query_map([row.id], |row| row.get(0).map(MessageId))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

/// Returns the messages that somebody else delivers.
pub(super) fn handed_over(connection: &Connection) -> Result<HashSet<i64>, Fault> {
    if !any_stream(connection)? {
        return Ok(HashSet::new());
    }
    let mut statement = connection.prepare_cached(queries::HANDED_OVER)?;
    let ids = statement.query_map([], |row| row.get(0))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}
