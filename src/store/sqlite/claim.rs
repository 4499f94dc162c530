//! Which message of a lane may be sent next.
//!
//! One walk over the waiting messages in delivery order answers it, for [`choose`] and for [`lanes`] alike. It reads a
//! snapshot, outside the write lock, so that intake commits meanwhile; [`mark`] then takes what is still there. What
//! happens between the two can only be registering, requeueing, purging and settling, and each of them may as well have
//! happened after the claim. Claims of one process don't overlap (see `SqliteStore::claim`), and the lease keeps those
//! of others away.

use rusqlite::{Connection, Transaction};

use super::fault::Fault;
use super::queries::{self, Selection, bind};
use super::rows::{self, HeaderSets, Lanes};
use super::settle;
use super::summary::{Changes, Group, Size};
use crate::message::{Footprint, MessageId, MessageStatus, Touch};
use crate::store::{ClaimLimits, Claimed, Filter, Hold, LaneId, LaneWork};

/// A next attempt further away than this comes from a clock that was wrong, and counts as due.
const BACKOFF_MS_MAX: i64 = 60 * 60 * 1000;
/// A hold further away than this comes from a clock that was wrong, and counts as over.
pub(super) const HOLD_MS_MAX: i64 = 24 * 60 * 60 * 1000;
/// Messages that one walk leaves before it gives up: what waits behind so many has to wait too.
const LEFT_MAX: usize = 20_000;
/// Entities of messages that one walk left, which bounds its memory (about 40 bytes each).
const BLOCKED_MAX: usize = 200_000;

/// Says when a message may be tried again, as far as its own time tells.
fn due_at_ms(next_attempt_at_ms: i64, now_ms: i64) -> i64 {
    if next_attempt_at_ms.saturating_sub(now_ms) > BACKOFF_MS_MAX { now_ms } else { next_attempt_at_ms }
}

/// A walk over the messages of a lane in delivery order.
struct Walk {
    now_ms: i64,
    /// What messages in flight, or left on the way, are about.
    blocked: Footprint,
    left: usize,
    /// When the first of those becomes due that were left only for their time.
    soonest_ms: Option<i64>,
}

impl Walk {
    fn start(connection: &Connection, lane: i64, now_ms: i64) -> Result<Self, Fault> {
        let mut walk = Self { now_ms, blocked: Footprint::default(), left: 0, soonest_ms: None };
        let mut in_flight = connection.prepare_cached(queries::TOUCHES_IN_FLIGHT)?;
        let mut in_flight = in_flight.query([lane])?;
        while let Some(row) = in_flight.next()? {
            walk.blocked.add(&rows::touches(row, 0)?);
        }
        Ok(walk)
    }

    /// Says whether the next message may be sent; one that may not holds back those behind it that conflict with it.
    ///
    /// The same as asking [`crate::message::conflict`] about every message that was left, at the price of one look-up.
    fn admits(&mut self, touches: &[Touch], next_attempt_at_ms: i64) -> bool {
        let due_at_ms = due_at_ms(next_attempt_at_ms, self.now_ms);
        let free = !self.blocked.conflicts(touches);
        if free && due_at_ms <= self.now_ms {
            return true;
        }
        if free {
            self.soonest_ms = Some(self.soonest_ms.map_or(due_at_ms, |soonest| soonest.min(due_at_ms)));
        }
        self.blocked.add(touches);
        self.left += 1;
        false
    }

    fn is_spent(&self) -> bool {
        self.left >= LEFT_MAX || self.blocked.len() >= BLOCKED_MAX
    }
}

/// A message that a walk chose, with its place in the counts.
pub(super) struct Chosen {
    claimed: Claimed,
    group: Group,
    size: Size,
}

/// Chooses the next messages of a lane from a snapshot.
pub(super) fn choose(
    connection: &Connection,
    lane: LaneId,
    filter: &Filter,
    limits: ClaimLimits,
    now_ms: i64,
) -> Result<Vec<Chosen>, Fault> {
    let selection = Selection::of(filter);
    let mut walk = Walk::start(connection, lane.0, now_ms)?;
    let mut header_sets = HeaderSets::default();
    let mut chosen = Vec::new();
    let mut bytes = 0;
    let mut waiting = connection.prepare_cached(&queries::waiting_in_order(&selection))?;
    bind(&mut waiting, ":lane", &lane.0)?;
    selection.bind(&mut waiting)?;
    let mut waiting = waiting.raw_query();
    while chosen.len() < limits.messages_max && !walk.is_spent() {
        let Some(row) = waiting.next()? else { break };
        let touches = rows::touches(row, 2)?;
        if !walk.admits(&touches, row.get(1)?) {
            continue;
        }
        let size = Size { items: row.get(4)?, body_bytes: row.get(5)? };
        bytes += size.body_bytes.unsigned_abs();
        if bytes > limits.bytes_max && !chosen.is_empty() {
            break;
        }
        let id = MessageId(row.get(0)?);
        let message_type = rows::message_type(row, 3)?;
        let Some(request) = header_sets.request(connection, id)? else { continue };
        let claimed = Claimed { id, message_type, request, touches, items: row.get(4)?, attempts: row.get(6)? };
        chosen.push(Chosen { claimed, group: Group::new(lane.0, MessageStatus::Failed, message_type), size });
    }
    Ok(chosen)
}

/// Marks what was chosen as in flight, and returns what is still there.
pub(super) fn mark(tx: &Transaction<'_>, epoch: i64, chosen: Vec<Chosen>) -> Result<Vec<Claimed>, Fault> {
    let mut changes = Changes::default();
    let mut mark = tx.prepare_cached(queries::MARK_CLAIMED)?;
    let mut claimed = Vec::with_capacity(chosen.len());
    for message in chosen {
        if mark.execute([message.claimed.id.0, epoch])? == 1 {
            changes.take(message.group, message.size);
            changes.add(Group { status: MessageStatus::Registered, ..message.group }, message.size);
            claimed.push(message.claimed);
        }
    }
    changes.write(tx)?;
    Ok(claimed)
}

/// Returns the lanes that have failed messages, the one with the oldest first.
pub(super) fn lanes(connection: &Connection, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, Fault> {
    let selection = Selection::of(filter);
    let mut names = Lanes::default();
    let mut work = Vec::new();
    for (lane, failed) in failed_by_lane(connection, &selection)? {
        let mut walk = Walk::start(connection, lane, now_ms)?;
        let mut waiting = connection.prepare_cached(&queries::waiting_in_order(&selection))?;
        bind(&mut waiting, ":lane", &lane)?;
        selection.bind(&mut waiting)?;
        let mut waiting = waiting.raw_query();
        let mut oldest: Option<i64> = None;
        let mut may_go = false;
        while !may_go && !walk.is_spent() {
            let Some(row) = waiting.next()? else { break };
            oldest = oldest.or(Some(row.get(0)?));
            may_go = walk.admits(&rows::touches(row, 2)?, row.get(1)?);
        }
        let Some(oldest) = oldest else { continue };
        let hold = settle::hold_of(connection, lane, now_ms)?;
        let due_at_ms = if may_go { now_ms } else { walk.soonest_ms.unwrap_or(i64::MAX) };
        let held_until_ms = hold.as_ref().map_or(i64::MIN, |hold: &Hold| hold.until_ms);
        let lane_work = LaneWork {
            id: LaneId(lane),
            lane: names.get(connection, lane)?,
            failed,
            due_at_ms: due_at_ms.max(held_until_ms),
            hold,
        };
        work.push((oldest, lane_work));
    }
    work.sort_by_key(|(oldest, _)| *oldest);
    Ok(work.into_iter().map(|(_, lane_work)| lane_work).collect())
}

fn failed_by_lane(connection: &Connection, selection: &Selection) -> Result<Vec<(i64, u64)>, Fault> {
    let mut statement = connection.prepare_cached(&queries::failed_by_lane(selection))?;
    selection.bind(&mut statement)?;
    let mut found = statement.raw_query();
    let mut lanes = Vec::new();
    while let Some(row) = found.next()? {
        lanes.push((row.get(0)?, rows::unsigned(row, 1)?));
    }
    Ok(lanes)
}
