//! Stranded messages: those that wait for a create that the server refused (see [`crate::store`]).
//!
//! A message is stranded if it touches an entity that an earlier refused message of its lane creates. One look-up per
//! entity in the index of creates tells; lanes without a refused create skip even that. A message that conflicts with a
//! stranded one waits behind it as behind any other that is left.
//!
//! # A million stranded messages
//!
//! Stranded messages may wait for a person for weeks, and more arrive. A walk must neither read all of them again each
//! time nor give up before it reaches the free messages behind them. So a walk that finds the first waiting messages of
//! a lane stranded remembers where they end ([`Memo`]), and the next one starts behind them. Everything that a message
//! behind that position has to wait for is then looked up in the index instead of being collected in memory.
//!
//! That position stays valid while nothing before it becomes free: the counter `unstranded` changes in every
//! transaction that might free a message, in any process. No message starts to wait before it unnoticed: one in flight
//! keeps the remembered position in front of it, and a new one goes to the end of the lane.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::lanes::{self, LaneCache};
use super::queries;
use super::rows;
use super::seal::Sealer;
use crate::message::{Effect, Footprint, MessageId, MessageStatus, MessageType, Touch};
use crate::store::view::Stranded;
use crate::store::work::LaneId;

/// How many stranded messages one walk skips at the head of a lane before it lets others use the connection.
pub(super) const PASSED_MAX: usize = 50_000;
/// How many waiting messages of a lane are examined to count stranded ones behind the head.
const COUNTED_MAX: usize = 10_000;

/// A point in delivery order: position and id.
type OrderKey = (i64, i64);

/// Where the stranded messages at the head of each lane end.
#[derive(Default)]
pub(super) struct Memo(Mutex<HashMap<i64, StrandedHead>>);

/// The stranded messages at the head of a lane.
#[derive(Clone, Copy)]
struct StrandedHead {
    /// The value of the counter `unstranded`.
    counter: i64,
    /// The last of them.
    through: OrderKey,
    /// The first of them.
    first: i64,
    /// The refused create that the first one waits for.
    create: i64,
}

/// The refused creates of one lane, for one walk over its waiting messages.
pub(super) struct Refused {
    lane: i64,
    /// Whether the lane has any refused create.
    any: bool,
    counter: i64,
    head: Option<StrandedHead>,
    /// Not all changes of messages up to this id are indexed, so they cannot be looked up.
    unindexed_until: i64,
}

impl Refused {
    /// Returns those of a lane of a store that has no refused message.
    pub(super) fn none(lane: i64) -> Self {
        Self { lane, any: false, counter: 0, head: None, unindexed_until: 0 }
    }

    /// Reads the refused creates of this lane from the snapshot of the walk.
    pub(super) fn of(connection: &Connection, lane: i64, memo: Option<&Memo>) -> Result<Self, Fault> {
        let mut refused = Self::none(lane);
        let mut types = connection.prepare_cached(queries::REFUSED_TYPES)?;
        let mut types = types.query([lane])?;
        while let Some(row) = types.next()? {
            refused.any |= may_create(rows::message_type(row, 0)?);
        }
        if refused.any {
            let mut counter = connection.prepare_cached(queries::COUNTER)?;
            refused.counter = counter.query_row(["unstranded"], |row| row.get(0))?;
            refused.unindexed_until = counter.query_row(["annotations_indexed_after"], |row| row.get(0))?;
            let known = memo.and_then(|memo| lock(memo).get(&lane).copied());
            refused.head = known.filter(|head| head.counter == refused.counter);
        }
        Ok(refused)
    }

    /// Returns the point after which a walk starts.
    pub(super) fn begin(&self) -> OrderKey {
        self.head.map_or((i64::MIN, i64::MIN), |head| head.through)
    }

    /// Returns the first of the stranded messages at the head of the lane, and the refused create that it waits for.
    pub(super) fn of_head(&self) -> (Option<i64>, Option<i64>) {
        (self.head.map(|head| head.first), self.head.map(|head| head.create))
    }

    /// Returns the refused create that a message at this point has to wait for, directly or behind a message at the
    /// head of the lane.
    pub(super) fn strands(
        &self,
        connection: &Connection,
        place: OrderKey,
        touches: &[Touch],
    ) -> Result<Option<i64>, Fault> {
        if !self.any {
            return Ok(None);
        }
        let mut before = connection.prepare_cached(queries::REFUSED_CREATE_BEFORE)?;
        for touch in touches.iter().filter(|touch| touch.can_be_stranded()) {
            let found = before
                .query_row(params![&touch.key.as_bytes()[..], self.lane, place.0, place.1], |row| row.get(0))
                .optional()?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let Some(StrandedHead { through, create, .. }) = self.head else { return Ok(None) };
        for touch in touches {
            let query = match touch.effect {
                Effect::End => queries::TOUCHED_UP_TO,
                Effect::Refer => queries::ENDED_UP_TO,
                Effect::Create | Effect::Update | Effect::Annotate => queries::CHANGED_UP_TO,
            };
            let key = &touch.key.as_bytes()[..];
            if connection.prepare_cached(query)?.exists(params![key, self.lane, through.0, through.1])? {
                return Ok(Some(create));
            }
        }
        Ok(None)
    }

    /// Adds a stranded message to the head of the lane: everything that waits before it is stranded, and nothing before
    /// it is in flight. Returns whether that can be remembered.
    pub(super) fn pass(&mut self, place: OrderKey, create: i64) -> bool {
        if place.1 <= self.unindexed_until {
            return false;
        }
        let head = self.head.unwrap_or(StrandedHead { counter: self.counter, through: place, first: place.1, create });
        self.head = Some(StrandedHead { through: place, ..head });
        true
    }

    /// Remembers the head of the lane for the next walk.
    pub(super) fn remember(&self, memo: &Memo) {
        let mut known = lock(memo);
        match self.head {
            Some(head) => {
                let is_newer = |known: &StrandedHead| (known.counter, known.through) < (head.counter, head.through);
                if known.get(&self.lane).is_none_or(is_newer) {
                    known.insert(self.lane, head);
                }
            }
            None if !self.any => drop(known.remove(&self.lane)),
            None => {}
        }
    }
}

/// Returns whether messages of this type may create entities that strand others.
fn may_create(message_type: MessageType) -> bool {
    // The others are refused too rarely to justify a list that could miss one.
    message_type != MessageType::OtlpTraces
}

/// Returns whether a new write of the lane depends on a create that the server refused.
pub(super) fn is_stranded(connection: &Connection, lane: i64, touches: &[Touch]) -> Result<bool, Fault> {
    let mut refused = connection.prepare_cached(queries::REFUSED_CREATE)?;
    for touch in touches.iter().filter(|touch| touch.can_be_stranded()) {
        if refused.exists(params![&touch.key.as_bytes()[..], lane])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Records that a waiting message may have become free.
pub(super) fn note_unstranded(tx: &Transaction<'_>) -> Result<(), Fault> {
    tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(params!["unstranded", 1])?;
    Ok(())
}

/// Returns the held message of a lane to retry next: the one refused longest ago, or the earliest held message
/// that it has to follow.
pub(super) fn to_retry(tx: &Transaction<'_>, lane: i64) -> Result<Option<i64>, Fault> {
    /// How many creates of one entity are followed back.
    const EARLIER_MAX: usize = 1000;
    let longest = tx.prepare_cached(queries::HELD_LONGEST)?.query_row([lane], |row| row.get::<_, i64>(0)).optional()?;
    let Some(mut chosen) = longest else { return Ok(None) };
    let refused = Refused::of(tx, lane, None)?;
    for _ in 0..EARLIER_MAX {
        let (position, touches) =
            tx.prepare_cached(queries::PLACE)?.query_row([chosen], |row| Ok((row.get(0)?, rows::touches(row, 1))))?;
        let Some(earlier) = refused.strands(tx, (position, chosen), &touches?)? else { break };
        if status_of(tx, earlier)? != Some(MessageStatus::Held) {
            break;
        }
        chosen = earlier;
    }
    Ok(Some(chosen))
}

fn status_of(connection: &Connection, id: i64) -> Result<Option<MessageStatus>, Fault> {
    let mut statement = connection.prepare_cached(queries::STATUS_OF)?;
    let mut found = statement.query([id])?;
    found.next()?.map(|row| rows::status(row, 0)).transpose()
}

/// Counts the stranded messages of every lane, as far as that is cheap.
pub(super) fn count(connection: &Connection, sealer: &Sealer, memo: &Memo) -> Result<Vec<Stranded>, Fault> {
    let mut lanes = connection.prepare_cached(queries::LANES_WAITING)?;
    let lanes = lanes.query_map([], |row| row.get::<_, i64>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut names = LaneCache::default();
    let mut counted = Vec::new();
    for lane in lanes {
        let refused = Refused::of(connection, lane, Some(memo))?;
        if !refused.any {
            continue;
        }
        let begin = refused.begin();
        let mut messages: u64 = match refused.head {
            Some(StrandedHead { through, .. }) => connection
                .prepare_cached(queries::WAITING_UP_TO)?
                .query_row([lane, through.0, through.1], |row| row.get::<_, i64>(0))?
                .unsigned_abs(),
            None => 0,
        };
        let (_, mut create) = refused.of_head();
        let mut waiting = connection.prepare_cached(queries::WAITING_BEHIND)?;
        let mut waiting = waiting.query(params![lane, begin.0, begin.1, COUNTED_MAX as i64])?;
        // Messages behind a stranded one wait with it.
        let mut stranded = Footprint::default();
        while let Some(row) = waiting.next()? {
            let touches = rows::touches(row, 2)?;
            let found = refused.strands(connection, (row.get(1)?, row.get(0)?), &touches)?;
            if found.is_some() || stranded.conflicts(&touches) {
                messages += 1;
                create = create.or(found);
                stranded.add(&touches);
            }
        }
        let Some(create) = create else { continue };
        let Some(status) = status_of(connection, create)? else { continue };
        let lane = lanes::without_secrets(connection, sealer, &mut names, lane)?;
        counted.push(Stranded { lane, messages, create: MessageId(create), status });
    }
    Ok(counted)
}

/// Returns the lanes whose held messages were all refused before then, or later than now, because the clock was set
/// back.
pub(super) fn lanes_to_retry(tx: &Transaction<'_>, before_ms: i64, now_ms: i64) -> Result<Vec<LaneId>, Fault> {
    let mut lanes = tx.prepare_cached(queries::LANES_WITH_HELD)?;
    let lanes = lanes.query_map([], |row| row.get::<_, i64>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut due = Vec::new();
    for lane in lanes {
        let last: Option<i64> = tx.prepare_cached(queries::HELD_LAST)?.query_row([lane], |row| row.get(0))?;
        if last.is_none_or(|last| last <= before_ms || last > now_ms) {
            due.push(LaneId(lane));
        }
    }
    Ok(due)
}

/// A panic elsewhere never leaves a half-written entry.
fn lock(memo: &Memo) -> std::sync::MutexGuard<'_, HashMap<i64, StrandedHead>> {
    memo.0.lock().unwrap_or_else(PoisonError::into_inner)
}
