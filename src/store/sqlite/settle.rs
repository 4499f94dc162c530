//! Settling: writing the outcome of each claimed message, and returning, requeueing and purging messages.
//!
//! # Invariants
//!
//! - **An outcome belongs to a claim.** It is written only if the message is still in flight under the epoch of the
//!   caller's lease; a message that was purged, or claimed under a newer epoch, is left alone. Settling the same
//!   outcome twice is therefore idempotent.
//! - **A delivered message is deleted in the same transaction that records its delivery**, with its body, index entries
//!   and counts. A crash before the commit sends it again, and the server deduplicates by id.
//! - **A divided message is replaced atomically**: its parts are stored, in its position, in the transaction that
//!   deletes it.
//! - **Every change of a status changes the summary** in the same transaction ([`super::summary`]).
//! - **Anything that may free a stranded message raises `unstranded`** ([`super::stranded`]).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use rusqlite::{Connection, Row, Transaction, params};

use super::ahead::{self, Deliveries, RecentCreates};
use super::codec::Packer;
use super::delete::Deletion;
use super::fault::Fault;
use super::lanes::{BatchKeys, LaneCache};
use super::queries::{self, SqlFilter};
use super::record::{Inherited, Inserter, MessageContent, Record, RowKeys, keep_answer};
use super::seal::Sealer;
use super::summary::{CountChanges, CountGroup, Size, counted};
use super::{rows, shipped, stranded};
use crate::give_way::give_way;
use crate::message::{Effect, EntityKey, Lane, MessageId, MessageStatus, Touch};
use crate::store::clock::now_ms;
use crate::store::view::{Filter, Purged};
use crate::store::work::{LaneId, LastAnswer, Outcome, Part};

/// How many messages from the head of the lane are scanned for deferred ones.
const DEFERRED_SCAN_MAX: i64 = 2000;

/// The tools for writing outcomes.
pub(super) struct Settlement<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) sealer: &'a Sealer,
    pub(super) packer: &'a Packer,
    pub(super) recent: &'a RecentCreates,
}

/// Writes the outcomes of messages that were claimed under this epoch. A message that no longer exists was purged.
pub(super) fn settle(with: &Settlement<'_>, epoch: i64, outcomes: &[(MessageId, Outcome)]) -> Result<(), Fault> {
    let Settlement { tx, recent, .. } = *with;
    let now_ms = now_ms();
    let mut changes = CountChanges::default();
    let mut deliveries = Deliveries::begin(tx, recent, now_ms)?;
    let mut succeeded = BTreeSet::new();
    let mut deletion = Deletion::of(tx, queries::DELIVERED)?;
    for (id, outcome) in outcomes {
        give_way();
        if *outcome == Outcome::Delivered {
            if let Some((group, _, touches)) = deletion.delete(params![id.0, epoch], &mut changes)? {
                deliveries.add(group.lane, group.message_type, &touches)?;
                succeeded.insert(group.lane);
            }
            continue;
        }
        let Some((group, size)) = claimed(tx, *id, epoch)? else { continue };
        if let Outcome::Divided { parts } = outcome {
            add_parts(with, *id, group, parts, &mut changes)?;
            if let Some((.., touches)) = deletion.delete(params![id.0, epoch], &mut changes)? {
                let left: HashSet<EntityKey> =
                    parts.iter().flat_map(|part| part.touches.iter().map(|touch| touch.key)).collect();
                let done: Vec<Touch> = touches.into_iter().filter(|touch| !left.contains(&touch.key)).collect();
                deliveries.add(group.lane, group.message_type, &done)?;
            }
            continue;
        }
        let settled = keep(with, *id, group, outcome)?;
        deliveries.noted();
        changes.take(group, size);
        changes.add(settled, size);
    }
    for lane in succeeded {
        tx.prepare_cached(queries::NOTE_SUCCESS)?.execute([lane])?;
    }
    shipped::settled(tx, outcomes)?;
    changes.write(tx)
}

/// Writes the outcome of a message that stays in the store, and returns the group that it is counted in from now on.
fn keep(with: &Settlement<'_>, id: MessageId, group: CountGroup, outcome: &Outcome) -> Result<CountGroup, Fault> {
    let Settlement { tx, sealer, recent, .. } = *with;
    match outcome {
        Outcome::Failed { next_attempt_at_ms, counts, answer } => {
            if answer.as_ref().is_some_and(is_outcome_unknown) && group.message_type.makes_partial_rows() {
                let touches = touches_of(tx, id)?;
                ahead::perhaps_delivered(tx, recent, (group.lane, group.message_type), &touches, now_ms())?;
            }
            tx.prepare_cached(queries::MARK_FAILED)?.execute(params![id.0, next_attempt_at_ms, counts])?;
            if let Some(answer) = answer {
                keep_answer(tx, sealer, id, answer)?;
            }
            Ok(CountGroup { status: MessageStatus::Failed, ..group })
        }
        Outcome::Rejected { answer } => {
            tx.prepare_cached(queries::MARK_REJECTED)?.execute([id.0])?;
            keep_answer(tx, sealer, id, answer)?;
            let answer_status = answer.status.unwrap_or(0);
            Ok(CountGroup { status: MessageStatus::Rejected, answer_status, ..group })
        }
        Outcome::Held { answer } => {
            tx.prepare_cached(queries::MARK_HELD)?.execute([id.0])?;
            keep_answer(tx, sealer, id, answer)?;
            Ok(CountGroup { status: MessageStatus::Held, ..group })
        }
        // They leave the store: see [`settle`].
        Outcome::Delivered | Outcome::Divided { .. } => Ok(group),
    }
}

/// Returns whether the server may have processed a write that it did not confirm: there was no answer, or a proxy's.
fn is_outcome_unknown(answer: &LastAnswer) -> bool {
    answer.status.is_none_or(|status| status >= 500)
}

fn touches_of(tx: &Transaction<'_>, id: MessageId) -> Result<Vec<Touch>, Fault> {
    let mut statement = tx.prepare_cached(queries::TOUCHES)?;
    let mut found = statement.query([id.0])?;
    found.next()?.map_or(Ok(Vec::new()), |row| rows::touches(row, 0))
}

/// Stores the parts of a divided message, which is deleted in the same transaction.
fn add_parts(
    with: &Settlement<'_>,
    whole: MessageId,
    group: CountGroup,
    parts: &[Part],
    changes: &mut CountChanges,
) -> Result<(), Fault> {
    let Settlement { tx, sealer, packer, .. } = *with;
    let mut batch = BatchKeys::default();
    // The table does not show what this transaction has deleted already, and no id is reused.
    let next: i64 = tx.prepare_cached(queries::NEXT_ID)?.query_row([], |row| row.get(0))?;
    let first = next.max(changes.highest_deleted() + 1);
    let inherited = Inherited::read(tx, whole)?;
    let lane = LaneCache::default().get(tx, sealer, inherited.lane)?;
    let mut inserter = Inserter::new(tx, sealer)?;
    for (id, part) in (first..).zip(parts) {
        let body = &part.request.body;
        let keys = RowKeys { lane: inherited.lane, header_set: batch.header_set(tx, sealer, &part.request.headers)? };
        let record = part_record(id, part, &inherited, &lane);
        inserter.insert(&record, keys, &packer.pack(body), &body.bytes)?;
        let is_rejected = record.status == MessageStatus::Rejected;
        if !is_rejected {
            // That a part is rejected is in the mark of the division.
            shipped::divided(tx, whole, id)?;
        }
        let answer_status = record.answer.filter(|_| is_rejected).and_then(|answer| answer.status).unwrap_or(0);
        let size = Size { items: part.items.into(), body_bytes: record.body_bytes };
        changes.add(CountGroup { status: record.status, answer_status, ..group }, size);
    }
    Ok(())
}

/// Returns the record of a part, at the position of the whole.
fn part_record<'a>(id: i64, part: &'a Part, inherited: &'a Inherited, lane: &'a Lane) -> Record<'a> {
    let (status, answer) = part.status();
    let request = &part.request;
    let content = MessageContent {
        id,
        message_type: Cow::Borrowed(&inherited.message_type),
        lane: Cow::Borrowed(lane),
        method: Cow::Borrowed(&request.method),
        path: Cow::Borrowed(&request.path),
        headers: Cow::Borrowed(&request.headers),
        encoding: request.body.encoding,
        touches: Cow::Borrowed(&part.touches),
        items: part.items,
        project: inherited.project.as_deref().map(Cow::Borrowed),
        accepted_at_ms: inherited.accepted_at_ms,
    };
    Record {
        content,
        status,
        position: inherited.position,
        attempts: inherited.attempts + i64::from(status == MessageStatus::Rejected),
        answer: answer.map(Cow::Borrowed),
        body_bytes: request.body.bytes.len() as i64,
    }
}

fn claimed(tx: &Transaction<'_>, id: MessageId, epoch: i64) -> Result<Option<(CountGroup, Size)>, Fault> {
    let mut statement = tx.prepare_cached(queries::CLAIMED_MESSAGE)?;
    let mut found = statement.query([id.0, epoch])?;
    let Some(row) = found.next()? else { return Ok(None) };
    let group = CountGroup::new(row.get(0)?, MessageStatus::Registered, rows::message_type(row, 1)?);
    Ok(Some((group, Size { items: row.get(2)?, body_bytes: row.get(3)? })))
}

/// Returns messages to the queue that were claimed under an earlier epoch.
///
/// Updates among them may have reached the server, and are noted.
pub(super) fn return_in_flight(tx: &Transaction<'_>, epoch: i64, recent: &RecentCreates) -> Result<u64, Fault> {
    let now_ms = now_ms();
    let mut left = Vec::new();
    {
        let mut statement = tx.prepare_cached(queries::LEFT_WRITES)?;
        let mut writes = statement.query([epoch])?;
        // An update was sent after its create, or in one request with it, if the create was in flight as well.
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
    let mut changes = CountChanges::default();
    let mut statement = tx.prepare_cached(queries::LEFT_IN_FLIGHT)?;
    let returned = move_to_failed(statement.query([epoch])?, &mut changes)?;
    changes.write(tx)?;
    Ok(returned)
}

/// How many messages of a lane are scanned for interrupted ones: more than all its workers claim.
const INTERRUPTED_SCAN_MAX: usize = 8192;

/// Returns how many of the lane's first messages have to be claimed for all of those that were in flight when their
/// replayer ended.
pub(super) fn interrupted(connection: &Connection, lane: LaneId) -> Result<usize, Fault> {
    let mut statement = connection.prepare_cached(queries::INTERRUPTED)?;
    let mut rows = statement.query(params![lane.0, INTERRUPTED_SCAN_MAX as i64])?;
    let (mut looked, mut reach) = (0, 0);
    while let Some(row) = rows.next()? {
        looked += 1;
        if row.get(0)? {
            reach = looked;
        }
    }
    Ok(reach)
}

/// Requeues rejected and held messages.
pub(super) fn requeue(tx: &Transaction<'_>, filter: &Filter) -> Result<u64, Fault> {
    let selection = SqlFilter::of(filter);
    let mut changes = CountChanges::default();
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

/// Requeues one held message in each lane where the server refused none since then.
pub(super) fn retry_held(tx: &Transaction<'_>, before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, Fault> {
    let mut changes = CountChanges::default();
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

/// Requeues up to `limit` held messages of a lane.
pub(super) fn release_held(tx: &Transaction<'_>, lane: LaneId, limit: usize) -> Result<u64, Fault> {
    let mut changes = CountChanges::default();
    let mut statement = tx.prepare_cached(queries::RELEASE_HELD)?;
    let released = move_to_failed(statement.query(params![lane.0, limit as i64])?, &mut changes)?;
    if released > 0 {
        stranded::note_unstranded(tx)?;
    }
    changes.write(tx)?;
    Ok(released)
}

fn move_to_failed(mut updated: rusqlite::Rows<'_>, changes: &mut CountChanges) -> Result<u64, Fault> {
    let mut messages = 0;
    while let Some(row) = updated.next()? {
        let (group, size) = counted(row)?;
        changes.take(group, size);
        changes.add(CountGroup { status: MessageStatus::Failed, answer_status: 0, ..group }, size);
        messages += 1;
    }
    Ok(messages)
}

/// Deletes up to `limit` of the messages that the filter selects; those in flight only if no process replays.
pub(super) fn purge(tx: &Transaction<'_>, filter: &Filter, limit: usize, in_flight_too: bool) -> Result<Purged, Fault> {
    let selection = SqlFilter::of(filter);
    let ids: Vec<i64> = {
        let mut statement = tx.prepare_cached(&queries::to_purge(&selection, in_flight_too))?;
        selection.bind(&mut statement)?;
        queries::bind(&mut statement, ":limit", &(limit as i64))?;
        statement.raw_query().mapped(|row: &Row<'_>| row.get(0)).collect::<rusqlite::Result<_>>()?
    };
    let mut changes = CountChanges::default();
    let mut purged = Purged::default();
    let mut deletion = Deletion::of(tx, queries::TO_DELETE)?;
    for id in ids {
        if let Some((_, size, _)) = deletion.delete([id], &mut changes)? {
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

/// Makes deferred messages due: these, and among the first of the lane those that no failure counts against.
pub(super) fn make_due(tx: &Transaction<'_>, lane: LaneId, messages: &[MessageId]) -> Result<(), Fault> {
    tx.prepare_cached(queries::MAKE_DEFERRED_DUE)?.execute(params![lane.0, DEFERRED_SCAN_MAX])?;
    let mut make_due = tx.prepare_cached(queries::MAKE_DUE)?;
    for id in messages {
        make_due.execute([id.0])?;
    }
    Ok(())
}

/// Makes deferred messages of a lane due to which no server answered: of its first ones, those that no failure counts
/// against.
pub(super) fn make_unanswered_due(tx: &Transaction<'_>, lane: LaneId) -> Result<(), Fault> {
    tx.prepare_cached(queries::MAKE_UNANSWERED_DUE)?.execute(params![lane.0, DEFERRED_SCAN_MAX])?;
    Ok(())
}
