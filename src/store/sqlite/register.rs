//! Registering: storing new messages, and the one exception to their order.
//!
//! # Invariants
//!
//! - **Ids grow with acceptance** and are never reused: the next id is above every message that exists or existed
//!   (`counters.deleted_id`).
//! - **One transaction stores all messages of a call**, their bodies, index entries and counts. When it commits, the
//!   caller may acknowledge all of them; if it fails, none exists.
//! - **A message keeps its place.** The only one that moves is an update that waits before the first create of its
//!   entity, and only if it changes nothing else ([`move_early_updates`]).
//! - **A crash before the commit** loses messages that nobody acknowledged; the clients still have them.

use std::borrow::Cow;

use rusqlite::{Transaction, params};

use super::codec::Packed;
use super::fault::Fault;
use super::lanes::BatchKeys;
use super::record::{Inserter, MessageContent, Record, RowKeys, position_of};
use super::seal::Sealer;
use super::summary::{CountChanges, CountGroup, Size};
use super::{hold, queries, rows, stranded};
use crate::message::{Effect, EntityKey, Lane, Message, MessageId, MessageStatus};
use crate::store::clock::now_ms;
use crate::store::work::{Hold, LaneId};

/// Holds a lane, which may have no message yet, unless it is held for longer already.
pub(super) fn limit(tx: &Transaction<'_>, sealer: &Sealer, lane: &Lane, hold: &Hold) -> Result<(), Fault> {
    let id = BatchKeys::default().lane(tx, sealer, lane)?;
    if hold.bucket.is_some() {
        return hold::hold(tx, LaneId(id), Some(hold));
    }
    match hold::hold_of(tx, id, now_ms())? {
        Some(held) if held.until_ms >= hold.until_ms => Ok(()),
        _ => hold::hold(tx, LaneId(id), Some(hold)),
    }
}

/// Stores messages as *failed*, in this order, with bodies that were packed already.
pub(super) fn register(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    messages: &[Message],
    bodies: &[Packed],
) -> Result<Vec<MessageId>, Fault> {
    register_each(tx, sealer, messages.iter().zip(bodies).map(|(message, body)| (message, body, 0)))
}

/// Stores a message as *failed*, and counts the bytes of its file as its own.
pub(super) fn register_attachment(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    message: &Message,
    body: &Packed,
    file_bytes: u64,
) -> Result<MessageId, Fault> {
    let ids = register_each(tx, sealer, [(message, body, file_bytes)])?;
    Ok(ids[0])
}

/// Stores messages as *failed*, in this order, each with its packed body and the bytes of its file.
pub(super) fn register_each<'message>(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    messages: impl IntoIterator<Item = (&'message Message, &'message Packed, u64)>,
) -> Result<Vec<MessageId>, Fault> {
    let mut batch = BatchKeys::default();
    let mut changes = CountChanges::default();
    let first: i64 = tx.prepare_cached(queries::NEXT_ID)?.query_row([], |row| row.get(0))?;
    let mut updates_exist = tx.prepare_cached(queries::ANY_UPDATE)?.exists([])?;
    let mut ids = Vec::new();
    let mut inserter = Inserter::new(tx, sealer)?;
    let mut last: Option<(&Message, RowKeys)> = None;
    for (id, (message, packed, file_bytes)) in (first..).zip(messages) {
        // Most messages come from one client.
        let keys = match last {
            Some((other, keys)) if other.lane == message.lane && other.request.headers == message.request.headers => {
                keys
            }
            _ => RowKeys {
                lane: batch.lane(tx, sealer, &message.lane)?,
                header_set: batch.header_set(tx, sealer, &message.request.headers)?,
            },
        };
        last = Some((message, keys));
        let RowKeys { lane, .. } = keys;
        let record = record_of(id, message, i64::try_from(file_bytes).unwrap_or(i64::MAX));
        inserter.insert(&record, keys, packed, &message.request.body.bytes)?;
        if updates_exist {
            for touch in message.touches.iter().filter(|touch| touch.effect == Effect::Create) {
                move_early_updates(tx, lane, id, &touch.key)?;
            }
        }
        updates_exist |= message.touches.iter().any(|touch| touch.effect == Effect::Update);
        let size = Size { items: message.items.into(), body_bytes: record.body_bytes };
        changes.add(CountGroup::new(lane, MessageStatus::Failed, message.message_type), size);
        ids.push(MessageId(id));
    }
    changes.write(tx)?;
    Ok(ids)
}

/// Returns the record of a message that waits for its first attempt.
fn record_of(id: i64, message: &Message, file_bytes: i64) -> Record<'_> {
    let request = &message.request;
    let content = MessageContent {
        id,
        message_type: Cow::Borrowed(message.message_type.name()),
        lane: Cow::Borrowed(&message.lane),
        method: Cow::Borrowed(&request.method),
        path: Cow::Borrowed(&request.path),
        headers: Cow::Borrowed(&request.headers),
        encoding: request.body.encoding,
        touches: Cow::Borrowed(&message.touches),
        items: message.items,
        project: message.project.as_deref().map(Cow::Borrowed),
        accepted_at_ms: message.accepted_at_ms,
    };
    let body_bytes = request.body.bytes.len() as i64 + file_bytes;
    Record { content, status: MessageStatus::Failed, position: position_of(id), attempts: 0, answer: None, body_bytes }
}

/// Moves updates that wait before the first create of their entity right behind it.
///
/// Only an update that changes no other entity moves: others would leave their place in the order of those entities.
/// And if one cannot move, none does, because updates of one entity keep their own order; nor do they pass the end of
/// the entity.
pub(super) fn move_early_updates(
    tx: &Transaction<'_>,
    lane: i64,
    create: i64,
    entity: &EntityKey,
) -> Result<(), Fault> {
    let entity = &entity.as_bytes()[..];
    let mut early = Vec::new();
    {
        let mut waiting = tx.prepare_cached(queries::WAITING_UPDATES)?;
        let mut waiting = waiting.query(params![entity, lane])?;
        while let Some(row) = waiting.next()? {
            let changes = rows::touches(row, 2)?.iter().filter(|touch| touch.effect != Effect::Refer).count();
            early.push((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, changes == 1));
        }
    }
    if early.is_empty() || tx.prepare_cached(queries::WAITING_END)?.exists(params![entity, lane])? {
        return Ok(());
    }
    let first_create: Option<i64> =
        tx.prepare_cached(queries::FIRST_CREATE)?.query_row(params![entity, lane, create], |row| row.get(0))?;
    early.retain(|(_, position, _)| first_create.is_none_or(|create| *position < create));
    if early.iter().all(|(_, _, movable)| *movable) {
        if !early.is_empty() {
            stranded::note_unstranded(tx)?;
        }
        let mut move_to = tx.prepare_cached(queries::MOVE_TO)?;
        for (id, _, _) in early {
            move_to.execute([id, position_of(create) + 1])?;
        }
    }
    Ok(())
}
