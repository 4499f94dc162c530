//! Storing messages, and the one exception to their order.

use std::borrow::Cow;
use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::checksum::Covered;
use super::codec::Packed;
use super::fault::Fault;
use super::seal::{Destination, KeptBody, Lookup, Sealer};
use super::summary::{Changes, Group, Size};
use super::{lanes, large, limits, queries, rows, settle, stranded};
use crate::message::{
    Buckets, Credential, Effect, EntityKey, HeaderSet, Lane, Message, MessageId, MessageStatus, Request, Server, Touch,
};
use crate::store::{Ahead, Hold, LaneId, now_ms};

/// Header sets that may be there without a message that uses them.
const HEADER_SETS_KEPT: i64 = 256;

/// How many messages a lane has that matter to a new write of it.
#[derive(Clone, Copy, Default)]
pub(super) struct InLane {
    /// That it still has to deliver.
    pub(super) messages: u64,
    /// That the server refused.
    pub(super) refused: u64,
}

/// Counts what a lane has, or returns `None` when the sealer is not of this generation any more.
pub(super) fn waiting(connection: &Connection, sealer: &Sealer, lane: &Lane) -> Result<Option<InLane>, Fault> {
    let credential = looked_up_by(sealer, lane)?;
    let (messages, generation, refused): (i64, i64, i64) = connection
        .prepare_cached(queries::WAITING)?
        .query_row(params![lane.workspace, credential, server(lane)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let in_lane = InLane { messages: count(messages), refused: count(refused) };
    Ok((generation == sealer.generation()).then_some(in_lane))
}

/// Returns what the credential of a lane is looked up by.
fn looked_up_by<'a>(sealer: &Sealer, lane: &'a Lane) -> Result<Option<Cow<'a, [u8]>>, Fault> {
    lane.credential.as_ref().map(|credential| sealer.lookup(Lookup::Credential, credential.reveal())).transpose()
}

/// Returns what stands before a new write of a lane. The caller gives one snapshot, and a sealer that is of its generation.
pub(super) fn ahead(connection: &Connection, sealer: &Sealer, lane: &Lane, touches: &[Touch]) -> Result<Ahead, Fault> {
    let InLane { messages, refused } = waiting(connection, sealer, lane)?.unwrap_or_default();
    if messages + refused == 0 || touches.is_empty() {
        return Ok(Ahead { messages, ..Ahead::default() });
    }
    let Some(lane) = lane_id(connection, sealer, lane)? else { return Ok(Ahead::default()) };
    let held = messages > 0 && settle::hold_of(connection, lane, now_ms())?.is_some();
    let conflicting = messages > 0 && waits_behind(connection, lane, touches)?
        || refused > 0 && stranded::is_stranded(connection, lane, touches)?;
    let limited = match messages {
        0 => Buckets::default(),
        _ => limits::buckets(&limits::of(connection, lane, now_ms())?),
    };
    Ok(Ahead { messages, conflicting, held, limited })
}

/// Says whether a write has to wait behind a message of its lane, or may have to.
fn waits_behind(connection: &Connection, lane: i64, touches: &[Touch]) -> Result<bool, Fault> {
    if touches.len() > Ahead::TOUCHES_MAX
        // References are in no index: an end goes behind everything.
        || touches.iter().any(|touch| touch.effect == Effect::End)
        || connection.prepare_cached(queries::WAITS_UNINDEXED)?.exists([lane])?
    {
        return Ok(true);
    }
    let mut ended = connection.prepare_cached(queries::WAITING_END)?;
    let mut changed = connection.prepare_cached(queries::WAITING_CHANGE)?;
    for touch in touches {
        let statement = if touch.effect == Effect::Refer { &mut ended } else { &mut changed };
        if statement.exists(params![&touch.key.as_bytes()[..], lane])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the server of a lane as it is kept.
fn server(lane: &Lane) -> Option<&str> {
    lane.server.as_ref().map(Server::base_url)
}

/// Returns the number of a lane, or `None` when it never had a message.
pub(super) fn lane_id(connection: &Connection, sealer: &Sealer, lane: &Lane) -> Result<Option<i64>, Fault> {
    let credential = looked_up_by(sealer, lane)?;
    let mut statement = connection.prepare_cached(queries::LANE_ID)?;
    Ok(statement.query_row(params![lane.workspace, credential, server(lane)], |row| row.get(0)).optional()?)
}

/// Holds a lane, which may have no message yet, unless it is held for longer.
pub(super) fn limit(tx: &Transaction<'_>, sealer: &Sealer, lane: &Lane, hold: &Hold) -> Result<(), Fault> {
    let id = Names::default().lane(tx, sealer, lane)?;
    if hold.bucket.is_some() {
        return settle::hold(tx, LaneId(id), Some(hold));
    }
    match settle::hold_of(tx, id, now_ms())? {
        Some(held) if held.until_ms >= hold.until_ms => Ok(()),
        _ => settle::hold(tx, LaneId(id), Some(hold)),
    }
}

/// Stores messages as *failed*, in this order, with their bodies as they are to be kept.
pub(super) fn register(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    messages: &[Message],
    bodies: &[Packed],
) -> Result<Vec<MessageId>, Fault> {
    register_with_files(tx, sealer, messages, bodies, 0)
}

/// Stores a message as *failed*, and counts the bytes of its file as its own.
pub(super) fn register_attachment(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    message: &Message,
    body: &Packed,
    file_bytes: u64,
) -> Result<MessageId, Fault> {
    let file_bytes = i64::try_from(file_bytes).unwrap_or(i64::MAX);
    let ids = register_with_files(tx, sealer, std::slice::from_ref(message), std::slice::from_ref(body), file_bytes)?;
    Ok(ids[0])
}

fn register_with_files(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    messages: &[Message],
    bodies: &[Packed],
    file_bytes: i64,
) -> Result<Vec<MessageId>, Fault> {
    let mut names = Names::default();
    let mut changes = Changes::default();
    let first: i64 = tx.prepare_cached(queries::NEXT_ID)?.query_row([], |row| row.get(0))?;
    let mut updates_exist = tx.prepare_cached(queries::ANY_UPDATE)?.exists([])?;
    let mut add_message = tx.prepare_cached(queries::ADD_MESSAGE)?;
    let mut ids = Vec::with_capacity(messages.len());
    for (id, (message, packed)) in (first..).zip(messages.iter().zip(bodies)) {
        let lane = names.lane(tx, sealer, &message.lane)?;
        let header_set = names.header_set(tx, sealer, &message.request.headers)?;
        let body = &message.request.body;
        let body_bytes = body.bytes.len() as i64 + file_bytes;
        add_message.execute(params![
            id,
            message.message_type.name(),
            lane,
            position(id),
            message.accepted_at_ms,
            message.items,
            body_bytes,
            message.project,
            message.request.method,
            sealer.keep_path(id, &message.request.path)?,
            header_set,
            rows::encoding_code(body.encoding),
            Touch::to_bytes(&message.touches),
        ])?;
        let covered = Covered {
            id,
            message_type: message.message_type.name(),
            lane: &message.lane,
            method: &message.request.method,
            path: &message.request.path,
            headers: &message.request.headers,
            encoding: body.encoding,
            touches: &message.touches,
            items: message.items,
            project: message.project.as_deref(),
            accepted_at_ms: message.accepted_at_ms,
        };
        add_body_and_touches(tx, sealer, id, &message.request, packed, covered.with(&body.bytes), &message.touches)?;
        if updates_exist {
            for touch in message.touches.iter().filter(|touch| touch.effect == Effect::Create) {
                move_early_updates(tx, lane, id, &touch.key)?;
            }
        }
        updates_exist |= message.touches.iter().any(|touch| touch.effect == Effect::Update);
        let size = Size { items: message.items.into(), body_bytes };
        changes.add(Group::new(lane, MessageStatus::Failed, message.message_type), size);
        ids.push(MessageId(id));
    }
    changes.write(tx)?;
    Ok(ids)
}

/// Stores what hangs on the row of a message.
pub(super) fn add_body_and_touches(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    id: i64,
    request: &Request,
    body: &Packed,
    checksum: i64,
    touches: &[Touch],
) -> Result<(), Fault> {
    let encoding = i64::from(rows::encoding_code(request.body.encoding));
    let to = Destination { encoding, method: &request.method, path: &request.path };
    let mut add_body = tx.prepare_cached(queries::ADD_BODY)?;
    let kept = match body.is_streamed() {
        true => match sealer.keep_streamed(id, &to, body, checksum)? {
            Some(kept) => kept,
            None => {
                let none: Option<i64> = None;
                add_body.execute(params![id, large::room_of_stream(body), body.codec as i64, none])?;
                large::stream(tx, id, body, checksum)?;
                return add_touches(tx, id, touches);
            }
        },
        false => {
            let bytes = body.bytes.as_ref().into();
            let plain = KeptBody { bytes, codec: body.codec as i64, checksum: Some(checksum) };
            sealer.keep_body(id, &to, plain)?
        }
    };
    match large::is_large(&kept.bytes) {
        true => {
            let room = large::room_of(kept.bytes.len());
            add_body.execute(params![id, room, kept.codec, kept.checksum])?;
            large::write(tx, id, &kept.bytes)?;
        }
        false => {
            add_body.execute(params![id, &kept.bytes[..], kept.codec, kept.checksum])?;
        }
    }
    add_touches(tx, id, touches)
}

/// Stores by what a message is found.
pub(super) fn add_touches(tx: &Transaction<'_>, id: i64, touches: &[Touch]) -> Result<(), Fault> {
    let mut add_touch = tx.prepare_cached(queries::ADD_TOUCH)?;
    for touch in touches.iter().filter(|touch| is_looked_up(touch)) {
        add_touch.execute(params![touch.effect as u8, &touch.key.as_bytes()[..], id])?;
    }
    Ok(())
}

/// Says whether messages are found by this touch.
pub(super) fn is_looked_up(touch: &Touch) -> bool {
    touch.effect != Effect::Refer
}

/// Where a message stands in its lane unless it is an early update. Leaves one place free behind every message.
pub(super) fn position(id: i64) -> i64 {
    2 * id
}

/// Puts updates that wait before the first create of their entity right behind it.
///
/// Only an update that changes nothing but this entity moves: another one would leave its place in the order of its
/// other entities. And if one can't move, none does, because updates of one entity keep their own order; nor do they pass
/// the entity's end.
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
            move_to.execute([id, position(create) + 1])?;
        }
    }
    Ok(())
}

/// The lanes and header sets of one batch, each looked up once.
#[derive(Default)]
pub(super) struct Names<'batch> {
    lanes: HashMap<&'batch Lane, i64>,
    header_sets: HashMap<&'batch HeaderSet, i64>,
}

impl<'batch> Names<'batch> {
    pub(super) fn lane(&mut self, tx: &Transaction<'_>, sealer: &Sealer, lane: &'batch Lane) -> Result<i64, Fault> {
        if let Some(id) = self.lanes.get(lane) {
            return Ok(*id);
        }
        let id = match lane_id(tx, sealer, lane)? {
            Some(id) => id,
            None => {
                let keep = |credential: &Credential| sealer.keep_value(Lookup::Credential, credential.reveal());
                let credential = lane.credential.as_ref().map(keep).transpose()?;
                if let Some((by, sealed)) = &credential {
                    tx.prepare_cached(queries::KEEP_CREDENTIAL)?.execute(params![by, sealed])?;
                }
                let by = credential.map(|(by, _)| by);
                tx.prepare_cached(queries::ADD_LANE)?.query_row(
                    params![lane.workspace, by, server(lane), server(lane).map(lanes::server_check)],
                    |row| row.get(0),
                )?
            }
        };
        self.lanes.insert(lane, id);
        Ok(id)
    }

    pub(super) fn header_set(
        &mut self,
        tx: &Transaction<'_>,
        sealer: &Sealer,
        headers: &'batch HeaderSet,
    ) -> Result<i64, Fault> {
        if let Some(id) = self.header_sets.get(headers) {
            return Ok(*id);
        }
        let wire = headers.to_wire();
        let by = sealer.lookup(Lookup::HeaderSet, &wire)?;
        let known = tx.prepare_cached(queries::HEADER_SET_ID)?.query_row([&by], |row| row.get(0)).optional()?;
        let id = match known {
            Some(id) => id,
            None => {
                forget_header_sets_sometimes(tx)?;
                let (by, sealed) = sealer.keep_value(Lookup::HeaderSet, &wire)?;
                tx.prepare_cached(queries::ADD_HEADER_SET)?.query_row(params![by, sealed], |row| row.get(0))?
            }
        };
        self.header_sets.insert(headers, id);
        Ok(id)
    }
}

/// Forgets header sets that no message uses, once in a while.
///
/// Clients send the same few sets, and for those this costs nothing. One that sends another set with every request would
/// let the table grow for ever; the next sweep comes when the table has doubled, so that all sweeps together cost as much
/// as the sets that were added.
fn forget_header_sets_sometimes(tx: &Transaction<'_>) -> Result<(), Fault> {
    let highest: i64 = tx.prepare_cached(queries::HIGHEST_HEADER_SET)?.query_row([], |row| row.get(0))?;
    let sweep_at: i64 = tx.prepare_cached(queries::COUNTER)?.query_row(["header_sets_swept_next"], |row| row.get(0))?;
    if highest >= sweep_at {
        forget_header_sets(tx)?;
    }
    Ok(())
}

/// Forgets header sets that no message uses.
pub(super) fn forget_header_sets(tx: &Transaction<'_>) -> Result<(), Fault> {
    tx.execute(queries::FORGET_HEADER_SETS, [])?;
    let (highest, left): (i64, i64) = tx.query_row(queries::HEADER_SETS, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let next = highest + left.max(HEADER_SETS_KEPT);
    tx.execute(queries::SET_COUNTER, params!["header_sets_swept_next", next])?;
    Ok(())
}
