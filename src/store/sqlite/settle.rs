//! What became of messages: delivered, failed, rejected, returned, purged, requeued.

use std::collections::{BTreeSet, HashSet};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, Transaction, params};

use super::ahead::{self, Recent};
use super::checksum::Covered;
use super::claim::HOLD_MS_MAX;
use super::codec::Packer;
use super::fault::Fault;
use super::limits;
use super::queries::{self, Selection};
use super::register::{Names, add_body_and_touches, is_looked_up};
use super::rows::{self, Lanes};
use super::seal::{Place, Sealer};
use super::stranded;
use super::summary::{Changes, Group, Size, counted};
use super::{attachments, lanes};
use crate::message::{Effect, EntityKey, Lane, MessageId, MessageStatus, MessageType, Touch};
use crate::store::{Filter, Hold, LaneId, LastAnswer, Outcome, Part, Purged, now_ms};

/// Messages of a lane among which those are looked for that were put back without a fault of their own. They were the first.
const SPARED_LOOK: i64 = 2000;
/// A wall clock that stands so much before the time at which a hold was made was set back since.
const CLOCK_STEP_MS_MAX: i64 = 60 * 1000;

/// Writes the outcomes of messages that were claimed under this epoch. One that is not there any more was purged.
pub(super) fn settle(
    tx: &Transaction<'_>,
    epoch: i64,
    outcomes: &[(MessageId, Outcome)],
    (packer, sealer): (&Packer, &Sealer),
    recent: &Recent,
) -> Result<(), Fault> {
    let now_ms = now_ms();
    let mut changes = Changes::default();
    let mut succeeded = BTreeSet::new();
    let mut delete = tx.prepare_cached(queries::DELETE_DELIVERED)?;
    for (id, outcome) in outcomes {
        match outcome {
            Outcome::Delivered => {
                if let Some((group, _, touches)) = delete_one(tx, &mut delete, params![id.0, epoch], &mut changes)? {
                    ahead::delivered(tx, recent, (group.lane, group.message_type), &touches, now_ms)?;
                    succeeded.insert(group.lane);
                }
            }
            Outcome::Failed { next_attempt_at_ms, counts, answer } => {
                let Some((group, size)) = claimed(tx, *id, epoch)? else { continue };
                if answer.as_ref().is_some_and(is_outcome_unknown) && group.message_type.makes_partial_rows() {
                    let touches = touches_of(tx, *id)?;
                    ahead::perhaps_delivered(tx, recent, (group.lane, group.message_type), &touches, now_ms)?;
                }
                tx.prepare_cached(queries::MARK_FAILED)?.execute(params![id.0, next_attempt_at_ms, counts])?;
                if let Some(answer) = answer {
                    keep_answer(tx, sealer, *id, answer)?;
                }
                changes.take(group, size);
                changes.add(Group { status: MessageStatus::Failed, ..group }, size);
            }
            Outcome::Rejected { answer } => {
                let Some((group, size)) = claimed(tx, *id, epoch)? else { continue };
                tx.prepare_cached(queries::MARK_REJECTED)?.execute([id.0])?;
                keep_answer(tx, sealer, *id, answer)?;
                changes.take(group, size);
                let answer_status = answer.status.unwrap_or(0);
                changes.add(Group { status: MessageStatus::Rejected, answer_status, ..group }, size);
            }
            Outcome::Held { answer } => {
                let Some((group, size)) = claimed(tx, *id, epoch)? else { continue };
                tx.prepare_cached(queries::MARK_HELD)?.execute([id.0])?;
                keep_answer(tx, sealer, *id, answer)?;
                changes.take(group, size);
                changes.add(Group { status: MessageStatus::Held, ..group }, size);
            }
            Outcome::Divided { parts } => {
                let Some((group, _)) = claimed(tx, *id, epoch)? else { continue };
                add_parts(tx, *id, group, parts, (packer, sealer), &mut changes)?;
                if let Some((.., touches)) = delete_one(tx, &mut delete, params![id.0, epoch], &mut changes)? {
                    let left: HashSet<EntityKey> =
                        parts.iter().flat_map(|part| part.touches.iter().map(|touch| touch.key)).collect();
                    let done: Vec<Touch> = touches.into_iter().filter(|touch| !left.contains(&touch.key)).collect();
                    ahead::delivered(tx, recent, (group.lane, group.message_type), &done, now_ms)?;
                }
            }
        }
    }
    for lane in succeeded {
        tx.prepare_cached(queries::NOTE_SUCCESS)?.execute([lane])?;
    }
    changes.write(tx)
}

/// Returns whether the server may have processed what it did not confirm: no answer, or one that a proxy gave.
fn is_outcome_unknown(answer: &LastAnswer) -> bool {
    answer.status.is_none_or(|status| status >= 500)
}

fn touches_of(tx: &Transaction<'_>, id: MessageId) -> Result<Vec<Touch>, Fault> {
    let mut statement = tx.prepare_cached(queries::TOUCHES)?;
    let mut found = statement.query([id.0])?;
    found.next()?.map_or(Ok(Vec::new()), |row| rows::touches(row, 0))
}

/// Stores what is left of a message beside it; the message itself goes in the same transaction.
fn add_parts(
    tx: &Transaction<'_>,
    whole: MessageId,
    group: Group,
    parts: &[Part],
    (packer, sealer): (&Packer, &Sealer),
    changes: &mut Changes,
) -> Result<(), Fault> {
    let mut names = Names::default();
    // The table can't know what this very transaction has deleted, and no id is used twice.
    let next: i64 = tx.prepare_cached(queries::NEXT_ID)?.query_row([], |row| row.get(0))?;
    let first = next.max(changes.highest_deleted() + 1);
    let (message_type, lane, project, accepted_at_ms) =
        tx.prepare_cached(queries::WHOLE)?.query_row([whole.0], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, Option<String>>(2)?, row.get(3)?))
        })?;
    let lane = Lanes::default().get(tx, sealer, lane)?;
    let mut add_part = tx.prepare_cached(queries::ADD_PART)?;
    for (id, part) in (first..).zip(parts) {
        let (status, answer) = part.status();
        let is_rejected = status == MessageStatus::Rejected;
        let body = &part.request.body;
        add_part.execute(params![
            whole.0,
            id,
            status.code(),
            i64::from(is_rejected),
            answer.map(|answer| answer.at_ms),
            answer.and_then(|answer| answer.status),
            answer.map(|answer| sealer.keep_text(&Place::Answer { message: id }, answer.text_kept())).transpose()?,
            part.items,
            body.bytes.len() as i64,
            part.request.method,
            sealer.keep_path(id, &part.request.path)?,
            names.header_set(tx, sealer, &part.request.headers)?,
            rows::encoding_code(body.encoding),
            Touch::to_bytes(&part.touches),
        ])?;
        let covered = Covered {
            id,
            message_type: &message_type,
            lane: &lane,
            method: &part.request.method,
            path: &part.request.path,
            headers: &part.request.headers,
            encoding: body.encoding,
            touches: &part.touches,
            items: part.items,
            project: project.as_deref(),
            accepted_at_ms,
        };
        let packed = packer.pack(body);
        add_body_and_touches(tx, sealer, id, &part.request, &packed, covered.with(&body.bytes), &part.touches)?;
        let answer_status = answer.filter(|_| is_rejected).and_then(|answer| answer.status).unwrap_or(0);
        let size = Size { items: part.items.into(), body_bytes: body.bytes.len() as i64 };
        changes.add(Group { status, answer_status, ..group }, size);
    }
    Ok(())
}

fn claimed(tx: &Transaction<'_>, id: MessageId, epoch: i64) -> Result<Option<(Group, Size)>, Fault> {
    let mut statement = tx.prepare_cached(queries::CLAIMED_MESSAGE)?;
    let mut found = statement.query([id.0, epoch])?;
    let Some(row) = found.next()? else { return Ok(None) };
    let group = Group::new(row.get(0)?, MessageStatus::Registered, rows::message_type(row, 1)?);
    Ok(Some((group, Size { items: row.get(2)?, body_bytes: row.get(3)? })))
}

/// Keeps the last answer to a message.
pub(super) fn keep_answer(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    id: MessageId,
    answer: &LastAnswer,
) -> Result<(), Fault> {
    let text = sealer.keep_text(&Place::Answer { message: id.0 }, answer.text_kept())?;
    tx.prepare_cached(queries::KEEP_ANSWER)?.execute(params![id.0, answer.status, text, answer.at_ms])?;
    Ok(())
}

/// Deletes a message by a statement that returns what it was, with everything that hangs on it.
///
/// The bytes of its file are released only: removing them takes longer than others should wait.
pub(super) fn delete_one(
    tx: &Transaction<'_>,
    delete: &mut CachedStatement<'_>,
    which: impl rusqlite::Params,
    changes: &mut Changes,
) -> Result<Option<(Group, Size, Vec<Touch>)>, Fault> {
    let id;
    let gone = {
        let mut deleted = delete.query(which)?;
        let Some(row) = deleted.next()? else { return Ok(None) };
        let gone = (counted(row)?, rows::touches(row, 6)?);
        id = row.get::<_, i64>(7)?;
        // The statement has to run to its end for the deletion to be complete.
        while deleted.next()?.is_some() {}
        gone
    };
    let ((group, size), touches) = gone;
    tx.prepare_cached(queries::DELETE_BODY)?.execute([id])?;
    if group.message_type == MessageType::CreateAttachment {
        attachments::release(tx, id)?;
    }
    let mut drop_touch = tx.prepare_cached(queries::DROP_TOUCH)?;
    for touch in touches.iter().filter(|touch| is_looked_up(touch)) {
        drop_touch.execute(params![touch.effect as u8, &touch.key.as_bytes()[..], id])?;
    }
    changes.take(group, size);
    changes.delete(id);
    Ok(Some((group, size, touches)))
}

/// Makes *failed* again what was claimed under an earlier epoch.
///
/// Updates among them may have reached the server.
pub(super) fn return_in_flight(tx: &Transaction<'_>, epoch: i64, recent: &Recent) -> Result<u64, Fault> {
    let now_ms = now_ms();
    let mut left = Vec::new();
    {
        let mut statement = tx.prepare_cached(queries::LEFT_WRITES)?;
        let mut writes = statement.query([epoch])?;
        // An update was sent after its create, or in one request with it, where the create was in flight as well.
        let mut created: HashSet<(i64, EntityKey)> = HashSet::new();
        while let Some(row) = writes.next()? {
            let (lane, message_type) = (row.get::<_, i64>(0)?, rows::message_type(row, 1)?);
            let mut touches = rows::touches(row, 2)?;
            if message_type.makes_partial_rows() {
                touches.retain(|touch| !created.contains(&(lane, touch.key)));
                left.push((lane, message_type, touches));
                continue;
            }
            for touch in touches {
                match touch.effect {
                    Effect::Create => drop(created.insert((lane, touch.key))),
                    Effect::End => drop(created.remove(&(lane, touch.key))),
                    Effect::Update | Effect::Annotate | Effect::Refer => {}
                }
            }
        }
    }
    for (lane, message_type, touches) in left.iter().filter(|(.., touches)| !touches.is_empty()) {
        ahead::perhaps_delivered(tx, recent, (*lane, *message_type), touches, now_ms)?;
    }
    let mut changes = Changes::default();
    let mut statement = tx.prepare_cached(queries::LEFT_IN_FLIGHT)?;
    let returned = move_to_failed(statement.query([epoch])?, &mut changes)?;
    changes.write(tx)?;
    Ok(returned)
}

/// Messages of a lane that are looked at for those that were in flight: more than all its workers claim.
const INTERRUPTED_LOOK: usize = 8192;

/// Returns how far those reach that were in flight when their replayer ended.
pub(super) fn interrupted(connection: &Connection, lane: LaneId) -> Result<usize, Fault> {
    let mut statement = connection.prepare_cached(queries::INTERRUPTED)?;
    let mut rows = statement.query(params![lane.0, INTERRUPTED_LOOK as i64])?;
    let (mut looked, mut reach) = (0, 0);
    while let Some(row) = rows.next()? {
        looked += 1;
        if row.get(0)? {
            reach = looked;
        }
    }
    Ok(reach)
}

/// Makes rejected and held messages *failed* again.
pub(super) fn requeue(tx: &Transaction<'_>, filter: &Filter) -> Result<u64, Fault> {
    let selection = Selection::of(filter);
    let mut changes = Changes::default();
    let mut requeued = 0;
    for status in [MessageStatus::Rejected, MessageStatus::Held] {
        let mut statement = tx.prepare_cached(&queries::requeue(&selection, status))?;
        selection.bind(&mut statement)?;
        requeued += move_to_failed(statement.raw_query(), &mut changes)?;
    }
    if requeued > 0 {
        stranded::note_unstranded(tx)?;
    }
    changes.write(tx)?;
    Ok(requeued)
}

/// Makes one held message *failed* again in each lane where the server refused none since then.
pub(super) fn retry_held(tx: &Transaction<'_>, before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, Fault> {
    let mut changes = Changes::default();
    let mut retried = Vec::new();
    for lane in stranded::lanes_to_retry(tx, before_ms, now_ms())? {
        let Some(id) = stranded::to_retry(tx, lane.0)? else { continue };
        move_to_failed(tx.prepare_cached(queries::RETRY_HELD)?.query([id])?, &mut changes)?;
        retried.push((lane, MessageId(id)));
    }
    if !retried.is_empty() {
        stranded::note_unstranded(tx)?;
    }
    changes.write(tx)?;
    Ok(retried)
}

/// Makes up to `limit` held messages of a lane *failed* again.
pub(super) fn release_held(tx: &Transaction<'_>, lane: LaneId, limit: usize) -> Result<u64, Fault> {
    let mut changes = Changes::default();
    let mut statement = tx.prepare_cached(queries::RELEASE_HELD)?;
    let released = move_to_failed(statement.query(params![lane.0, limit as i64])?, &mut changes)?;
    if released > 0 {
        stranded::note_unstranded(tx)?;
    }
    changes.write(tx)?;
    Ok(released)
}

fn move_to_failed(mut updated: rusqlite::Rows<'_>, changes: &mut Changes) -> Result<u64, Fault> {
    let mut messages = 0;
    while let Some(row) = updated.next()? {
        let (group, size) = counted(row)?;
        changes.take(group, size);
        changes.add(Group { status: MessageStatus::Failed, answer_status: 0, ..group }, size);
        messages += 1;
    }
    Ok(messages)
}

/// Deletes up to `limit` of the messages that the filter selects; those in flight only when nobody replays.
pub(super) fn purge(tx: &Transaction<'_>, filter: &Filter, limit: usize, in_flight_too: bool) -> Result<Purged, Fault> {
    let selection = Selection::of(filter);
    let ids: Vec<i64> = {
        let mut statement = tx.prepare_cached(&queries::to_purge(&selection, in_flight_too))?;
        selection.bind(&mut statement)?;
        queries::bind(&mut statement, ":limit", &(limit as i64))?;
        statement.raw_query().mapped(|row: &Row<'_>| row.get(0)).collect::<rusqlite::Result<_>>()?
    };
    let mut changes = Changes::default();
    let mut purged = Purged::default();
    let mut delete = tx.prepare_cached(queries::DELETE_MESSAGE)?;
    for id in ids {
        if let Some((_, size, _)) = delete_one(tx, &mut delete, [id], &mut changes)? {
            purged.messages += 1;
            purged.items += size.items.unsigned_abs();
            purged.body_bytes += size.body_bytes.unsigned_abs();
        }
    }
    if purged.messages > 0 {
        stranded::note_unstranded(tx)?;
    }
    changes.write(tx)?;
    Ok(purged)
}

/// Lets messages go that wait for their next attempt: these, and those of the lane that no failure counts against.
pub(super) fn make_due(tx: &Transaction<'_>, lane: LaneId, messages: &[MessageId]) -> Result<(), Fault> {
    tx.prepare_cached(queries::MAKE_SPARED_DUE)?.execute(params![lane.0, SPARED_LOOK])?;
    let mut make_due = tx.prepare_cached(queries::MAKE_DUE)?;
    for id in messages {
        make_due.execute([id.0])?;
    }
    Ok(())
}

/// Keeps a lane back, or lets it go.
pub(super) fn hold(tx: &Transaction<'_>, lane: LaneId, hold: Option<&Hold>) -> Result<(), Fault> {
    match hold {
        Some(hold) if hold.bucket.is_some() => {
            if let Some(bucket) = hold.bucket {
                limits::limit(tx, lane.0, bucket, hold)?;
            }
            0
        }
        Some(hold) => tx.prepare_cached(queries::HOLD_LANE)?.execute(params![
            lane.0,
            hold.until_ms,
            hold.reason,
            hold.probe,
            now_ms(),
            hold.status
        ])?,
        None => tx.prepare_cached(queries::LET_LANE_GO)?.execute([lane.0])?,
    };
    Ok(())
}

/// Says whether the clock was set back since a hold was made. How much of the hold has passed can't be known then, and it
/// counts as over: the lane asks the server, which can repeat its limit, instead of waiting for hours that nobody asked for.
///
/// A step by less than [`CLOCK_STEP_MS_MAX`] is borne: the hold lasts so much longer at most. A store of an earlier version
/// does not say when a hold was made; there one that is longer than any can be shows the same.
pub(super) fn was_set_back(held_at_ms: Option<i64>, until_ms: i64, now_ms: i64) -> bool {
    match held_at_ms {
        Some(held_at_ms) => held_at_ms.saturating_sub(now_ms) > CLOCK_STEP_MS_MAX,
        None => until_ms.saturating_sub(now_ms) > HOLD_MS_MAX,
    }
}

/// Returns the hold of a lane that is in force, or that ended without a success since.
pub(super) fn hold_of(connection: &Connection, lane: i64, now_ms: i64) -> Result<Option<Hold>, Fault> {
    let found = connection
        .prepare_cached(queries::HOLD)?
        .query_row([lane], |row| {
            let hold = Hold {
                until_ms: row.get(0)?,
                reason: row.get(1)?,
                probe: row.get(2)?,
                status: row.get(5)?,
                bucket: None,
            };
            Ok((hold, row.get::<_, bool>(3)?, row.get::<_, Option<i64>>(4)?))
        })
        .optional()?;
    let Some((mut hold, passed, held_at_ms)) = found else { return Ok(None) };
    if was_set_back(held_at_ms, hold.until_ms, now_ms) {
        hold.until_ms = now_ms;
    }
    Ok((hold.until_ms > now_ms || !passed).then_some(hold))
}

/// Returns a lane for people: without its credential where the key is missing. Which lanes there are is no secret.
pub(super) fn for_people(
    connection: &Connection,
    sealer: &Sealer,
    names: &mut Lanes,
    lane: i64,
) -> Result<Lane, Fault> {
    match names.get(connection, sealer, lane) {
        Err(Fault::KeyMissing { .. } | Fault::WrongKey { .. }) => {
            let mut statement = connection.prepare_cached(queries::LANE)?;
            let mut found = statement.query([lane])?;
            let Some(row) = found.next()? else { return Ok(Lane::default()) };
            Ok(Lane { server: lanes::server(row, 3)?, workspace: row.get(0)?, credential: None })
        }
        lane => lane,
    }
}

/// Returns the lanes whose hold is in force, or over without a success since.
pub(super) fn held(connection: &Connection, sealer: &Sealer, now_ms: i64) -> Result<Vec<(Lane, Hold)>, Fault> {
    let mut statement = connection.prepare_cached(queries::HELD_LANES)?;
    let held_lanes = statement.query_map([now_ms], |row| row.get(0))?;
    let mut held_lanes = held_lanes.collect::<rusqlite::Result<BTreeSet<i64>>>()?;
    let mut statement = connection.prepare_cached(queries::LIMITED_LANES)?;
    let limited = statement.query_map([now_ms], |row| row.get(0))?;
    held_lanes.extend(limited.collect::<rusqlite::Result<Vec<i64>>>()?);
    let mut names = Lanes::default();
    let mut held = Vec::new();
    for lane in held_lanes {
        for hold in hold_of(connection, lane, now_ms)?.into_iter().chain(limits::of(connection, lane, now_ms)?) {
            held.push((for_people(connection, sealer, &mut names, lane)?, hold));
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * 60 * 1000;

    #[test]
    fn a_hold_ends_when_the_clock_was_set_back_and_lasts_as_long_as_asked_otherwise() {
        let now = 100 * HOUR;
        for (held_at_ms, until_ms, expected, what) in [
            (Some(now), now + 10_000, false, "made just now"),
            (Some(now - HOUR), now + 10_000, false, "made an hour ago"),
            (Some(now), now + 48 * HOUR, false, "as long as the user's own setting has it"),
            (Some(now + 30_000), now + 40_000, false, "the clock was set by half a minute, as time servers do"),
            (Some(now + 6 * HOUR), now + 6 * HOUR + 10_000, true, "the clock was set back by six hours"),
            (Some(now - 6 * HOUR), now - 5 * HOUR, false, "over: the clock was set forward, or time has passed"),
            (None, now + 10_000, false, "an earlier version's"),
            (None, now + 25 * HOUR, true, "an earlier version's, longer than any"),
        ] {
            assert_eq!(was_set_back(held_at_ms, until_ms, now), expected, "{what}");
        }
    }
}
