//! Claiming: which messages of a lane may be sent next.
//!
//! One [`walk`] over the waiting messages in delivery order answers that, for [`choose`] and [`lanes`] alike. It reads
//! a snapshot, outside the write lock, so that intake can commit meanwhile; [`mark`] then takes the messages that still
//! exist. Between the two, messages can only be registered, requeued, purged and settled, and each of these may just as
//! well have happened after the claim. Claims of one process do not overlap (see the verb `claim`), and the lease
//! excludes those of other processes.
//!
//! A filter restricts what is sent, not what is waited for: a selected message stays behind an earlier one about the
//! same entity whether or not that one is selected ([`narrowed`]).
//!
//! # Invariants
//!
//! - **Nothing is overtaken.** A message is taken only if it conflicts with no message that was left before it and with
//!   none in flight. The walk remembers the entities of every message that it leaves ([`Footprint`]).
//! - **Nothing goes ahead of its create**, if the claim asks for that: a message that the refusal of a create would
//!   strand ([`super::stranded`]) waits while that create is in flight.
//! - **Bounded memory.** The walk gives up after [`LEFT_MAX`] messages or [`BLOCKED_MAX`] entities; what comes behind
//!   them has to wait as well.
//! - **Only intact messages are sent.** The checksum is verified before a message is marked as in flight. A damaged one
//!   is rejected, but only by a reader that has every key of the store.
//! - **A claim names its epoch.** [`mark`] writes the lease's epoch, and an outcome is accepted only under that epoch
//!   ([`super::settle`]).

use std::collections::{HashSet, VecDeque};

use rusqlite::{Connection, Row, Transaction};
use tracing::error;

use super::ahead::{AheadLookup, Notes, RecentCreates};
use super::fault::Fault;
use super::lanes::LaneCache;
use super::queries::{self, SqlFilter, bind};
use super::request_reader::RequestReader;
use super::seal::Sealer;
use super::stranded::{self, Memo, Refused};
use super::summary::{CountChanges, CountGroup, Size};
use super::{hold, record, rows, shipped};
use crate::give_way::give_way;
use crate::hint;
use crate::message::Claimed;
use crate::message::{Buckets, Effect, EntityKey, Footprint, MessageId, MessageStatus, MessageType, Touch, Way};
use crate::store::clock::now_ms;
use crate::store::view::Filter;
use crate::store::work::{ClaimLimits, Hold, LaneId, LanePage, LaneRange, LaneWork, LastAnswer};

/// A next attempt later than this comes from a wrong clock, and counts as due.
const BACKOFF_MS_MAX: i64 = 60 * 60 * 1000;
/// How many messages one walk leaves before it gives up: everything behind them has to wait as well.
const LEFT_MAX: usize = 20_000;
/// How many entities of left messages one walk remembers, which bounds its memory (about 40 bytes each).
const BLOCKED_MAX: usize = 200_000;
/// Selected messages that are examined together where a filter leaves out others of the lane (about 200 bytes each).
pub(super) const WINDOW_MAX: usize = 20_000;

/// Returns when a message may be retried, by its own deadline.
fn due_at_ms(next_attempt_at_ms: i64, now_ms: i64) -> i64 {
    if next_attempt_at_ms.saturating_sub(now_ms) > BACKOFF_MS_MAX { now_ms } else { next_attempt_at_ms }
}

/// The input of a walk over a lane: one snapshot, and what this process knows in addition.
#[derive(Clone, Copy)]
pub(super) struct WalkScope<'a> {
    pub(super) connection: &'a Connection,
    pub(super) lane: i64,
    pub(super) now_ms: i64,
    pub(super) recent: &'a RecentCreates,
    pub(super) memo: &'a Memo,
    /// Selected messages that are examined together where a filter leaves out others of the lane.
    pub(super) window_max: usize,
    pub(super) facts: &'a StoreFacts,
}

/// What walks over lanes need not look up for each lane, because it is the same for all of one snapshot.
pub(super) struct StoreFacts {
    notes: Notes,
    /// Whether the server refused any message that is still stored.
    any_refused: bool,
    /// Whether any lane has a limit.
    any_limits: bool,
    /// Messages that somebody else delivers: their stream was taken over.
    handed_over: HashSet<i64>,
}

impl StoreFacts {
    /// Reads them from a snapshot.
    pub(super) fn read(connection: &Connection) -> Result<Self, Fault> {
        let exists = |query| -> rusqlite::Result<bool> { connection.prepare_cached(query)?.exists([]) };
        Ok(Self {
            notes: Notes::read(connection)?,
            any_refused: exists(queries::ANY_REJECTED)? || exists(queries::ANY_HELD)?,
            any_limits: exists(queries::ANY_LIMIT)?,
            handed_over: shipped::handed_over(connection)?,
        })
    }

    /// Returns the limits of a lane that are in force.
    fn limits_of(&self, connection: &Connection, lane: i64, now_ms: i64) -> Result<Vec<Hold>, Fault> {
        if self.any_limits { hold::limits_of(connection, lane, now_ms) } else { Ok(Vec::new()) }
    }
}

/// A walk over the messages of a lane in delivery order.
struct Walk<'a, 'c> {
    now_ms: i64,
    look: &'a mut AheadLookup<'c>,
    limits: &'a [Hold],
    limited: Buckets,
    /// The entities of messages that are in flight or were left.
    blocked: Footprint,
    /// Entities whose create is in flight, if messages that depend on it are left.
    creating: HashSet<EntityKey>,
    left: usize,
    /// The first position of a message in flight.
    in_flight_from: i64,
    /// When the first message becomes due that was left only because of its deadline.
    soonest_ms: Option<i64>,
    handed_over: &'a HashSet<i64>,
}

/// How a message may be sent, and the entities of which an update may have reached the server before it
/// ([`AheadLookup::ahead`]).
type Admitted = (Way, (Vec<EntityKey>, bool));

impl<'a, 'c> Walk<'a, 'c> {
    fn start(scope: &WalkScope<'a>, look: &'a mut AheadLookup<'c>, limits: &'a [Hold]) -> Result<Self, Fault> {
        let WalkScope { connection, lane, now_ms, .. } = *scope;
        let mut walk = Self {
            now_ms,
            look,
            limits,
            limited: hold::buckets(limits),
            blocked: Footprint::default(),
            creating: HashSet::new(),
            left: 0,
            in_flight_from: i64::MAX,
            soonest_ms: None,
            handed_over: &scope.facts.handed_over,
        };
        let mut in_flight = connection.prepare_cached(queries::TOUCHES_IN_FLIGHT)?;
        let mut in_flight = in_flight.query([lane])?;
        while let Some(row) = in_flight.next()? {
            let touches = rows::touches(row, 0)?;
            walk.blocked.add(&touches);
            // The server may refuse it, and what depends on it would be stranded then.
            let creates = touches.iter().filter(|touch| touch.effect == Effect::Create && touch.key.can_strand());
            walk.creating.extend(creates.map(|touch| touch.key));
            walk.in_flight_from = walk.in_flight_from.min(row.get(1)?);
        }
        Ok(walk)
    }

    /// Returns how the next message may be sent. A message that may not be sent blocks later ones that conflict with
    /// it.
    ///
    /// Equivalent to checking [`crate::message::conflict`] against every message that was left, at the price of one
    /// look-up.
    fn admits(&mut self, message: &WaitingMessage) -> Result<Option<Admitted>, Fault> {
        let touches = &message.touches;
        if self.handed_over.contains(&message.id) {
            self.leave(touches);
            return Ok(None);
        }
        let mut due_at_ms = due_at_ms(message.next_attempt_at_ms, self.now_ms);
        let free = !self.blocked.conflicts(touches) && !self.is_behind_create(touches);
        if free && due_at_ms <= self.now_ms {
            let ahead = self.look.ahead(message.message_type, touches)?;
            if let Some(way) = Way::of(message.message_type, !ahead.0.is_empty(), self.limited) {
                self.look.take(message.message_type, touches)?;
                return Ok(Some((way, ahead)));
            }
            due_at_ms = self.limits.iter().map(|limit| limit.until_ms).min().unwrap_or(due_at_ms);
        }
        if free {
            self.soonest_ms = Some(self.soonest_ms.map_or(due_at_ms, |soonest| soonest.min(due_at_ms)));
        }
        self.leave(touches);
        Ok(None)
    }

    fn is_behind_create(&self, touches: &[Touch]) -> bool {
        !self.creating.is_empty()
            && touches.iter().any(|touch| touch.can_be_stranded() && self.creating.contains(&touch.key))
    }

    /// Leaves a message: later ones that conflict with it have to wait.
    fn leave(&mut self, touches: &[Touch]) {
        self.blocked.add(touches);
        self.left += 1;
    }

    fn is_spent(&self) -> bool {
        self.left >= LEFT_MAX || self.blocked.len() >= BLOCKED_MAX
    }
}

/// A failed message as a walk reads it.
struct WaitingMessage {
    id: i64,
    next_attempt_at_ms: i64,
    touches: Vec<Touch>,
    message_type: MessageType,
    items: u32,
    body_bytes: i64,
    attempts: u32,
    position: i64,
}

impl WaitingMessage {
    fn read(row: &Row<'_>) -> Result<Self, Fault> {
        Ok(Self {
            id: row.get(0)?,
            next_attempt_at_ms: row.get(1)?,
            touches: rows::touches(row, 2)?,
            message_type: rows::message_type(row, 3)?,
            items: row.get(4)?,
            body_bytes: row.get(5)?,
            attempts: row.get(6)?,
            position: row.get(7)?,
        })
    }
}

/// Whether a walk continues after a message that may be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WalkStep {
    /// It is taken: later messages need not wait for it.
    Taken,
    /// The walk is finished.
    Stop,
}

/// The findings of a walk.
#[derive(Default)]
struct WalkResult {
    /// The first selected message.
    first: Option<i64>,
    /// When the first message becomes due that was left only because of its deadline.
    soonest_ms: Option<i64>,
    /// A refused create that a message waits for.
    waits_for: Option<i64>,
    /// Whether a message of the lane is in flight, or the walk gave up: others may become free once that is over.
    is_open: bool,
}

/// Calls `visit` with the selected messages of a lane that may be sent, in delivery order.
fn walk(
    scope: &WalkScope<'_>,
    limits: &[Hold],
    selection: &SqlFilter,
    mut visit: impl FnMut(WaitingMessage, Admitted) -> Result<WalkStep, Fault>,
) -> Result<WalkResult, Fault> {
    let WalkScope { connection, lane, now_ms, recent, memo, facts, .. } = *scope;
    let mut look = AheadLookup::of(connection, recent, lane, facts.notes);
    let mut refused = match facts.any_refused {
        true => Refused::of(connection, lane, Some(memo).filter(|_| !selection.divides_lanes()))?,
        false => Refused::none(lane),
    };
    let mut selected = connection.prepare_cached(&queries::waiting_in_order(selection))?;
    bind(&mut selected, ":lane", &lane)?;
    bind(&mut selected, ":position", &refused.begin().0)?;
    bind(&mut selected, ":after", &refused.begin().1)?;
    selection.bind(&mut selected)?;
    let mut selected = selected.raw_query();
    if selection.divides_lanes() {
        return narrowed(scope, (&mut look, limits, &refused), &mut selected, visit);
    }
    let mut walk = Walk::start(scope, &mut look, limits)?;
    let (first, waits_for) = refused.of_head();
    let mut seen = WalkResult { first, waits_for, ..WalkResult::default() };
    let mut at_head = true;
    let mut passed = 0;
    while !walk.is_spent() && passed < stranded::PASSED_MAX {
        let Some(row) = selected.next()? else { break };
        let message = WaitingMessage::read(row)?;
        seen.first = seen.first.or(Some(message.id));
        let place = (message.position, message.id);
        if let Some(create) = refused.strands(connection, place, &message.touches)? {
            seen.waits_for = seen.waits_for.or(Some(create));
            at_head &= message.position < walk.in_flight_from;
            if at_head && refused.pass(place, create) {
                passed += 1;
            } else {
                at_head = false;
                walk.leave(&message.touches);
            }
            continue;
        }
        at_head = false;
        if let Some(admitted) = walk.admits(&message)?
            && visit(message, admitted)? == WalkStep::Stop
        {
            break;
        }
    }
    refused.remember(memo);
    seen.soonest_ms = walk.soonest_ms;
    seen.is_open = walk.in_flight_from < i64::MAX || walk.is_spent();
    if passed >= stranded::PASSED_MAX {
        // The next walk starts where this one ended.
        seen.soonest_ms = Some(now_ms);
    }
    Ok(seen)
}

/// The walk for a filter that leaves out messages of the lane which others may have to wait for.
///
/// It reads a window of selected messages, notes their entities, and scans the whole lane up to the last of them: of
/// messages that are left out, and of those that earlier windows left, it remembers only entities of the window. A
/// filter that selects a few of a million messages therefore costs memory for the few. If all selected messages have to
/// wait, the lane is scanned once per [`WINDOW_MAX`] of them.
fn narrowed(
    scope: &WalkScope<'_>,
    (look, limits, refused): (&mut AheadLookup<'_>, &[Hold], &Refused),
    selected: &mut rusqlite::Rows<'_>,
    mut visit: impl FnMut(WaitingMessage, Admitted) -> Result<WalkStep, Fault>,
) -> Result<WalkResult, Fault> {
    let WalkScope { connection, lane, window_max, .. } = *scope;
    let mut seen = WalkResult::default();
    let mut taken: HashSet<i64> = HashSet::new();
    loop {
        let mut window: VecDeque<WaitingMessage> = VecDeque::new();
        let mut entities: HashSet<EntityKey> = HashSet::new();
        while window.len() < window_max && entities.len() < BLOCKED_MAX {
            let Some(row) = selected.next()? else { break };
            let message = WaitingMessage::read(row)?;
            entities.extend(message.touches.iter().map(|touch| touch.key));
            window.push_back(message);
        }
        let Some(first) = window.front() else { return Ok(seen) };
        seen.first = seen.first.or(Some(first.id));
        let mut walk = Walk::start(scope, look, limits)?;
        let mut all = connection.prepare_cached(queries::WAITING_TOUCHES)?;
        let mut all = all.query([lane])?;
        // Both are in delivery order and from one snapshot, so the scan reaches every message of the window.
        while let (Some(next), Some(row)) = (window.front(), all.next()?) {
            let id: i64 = row.get(0)?;
            if next.id != id {
                if !taken.contains(&id) {
                    let mut touches = rows::touches(row, 1)?;
                    touches.retain(|touch| entities.contains(&touch.key));
                    walk.blocked.add(&touches);
                }
            } else if let Some(message) = window.pop_front() {
                if let Some(create) = refused.strands(connection, (message.position, id), &message.touches)? {
                    seen.waits_for = seen.waits_for.or(Some(create));
                    walk.leave(&message.touches);
                } else if let Some(admitted) = walk.admits(&message)? {
                    taken.insert(id);
                    if visit(message, admitted)? == WalkStep::Stop {
                        return Ok(seen);
                    }
                }
            }
        }
        seen.is_open |= walk.in_flight_from < i64::MAX;
        let soonest_ms = walk.soonest_ms.into_iter().chain(seen.soonest_ms).min();
        seen.soonest_ms = soonest_ms;
    }
}

/// A message that a walk chose, with its group in the counts.
pub(super) struct Chosen {
    claimed: Claimed,
    group: CountGroup,
    size: Size,
}

/// A message that cannot be sent, because it is no longer what was stored.
pub(super) struct Broken {
    id: MessageId,
    reason: String,
    group: CountGroup,
    size: Size,
}

/// The choice of a walk.
#[derive(Default)]
pub(super) struct Choice {
    chosen: Vec<Chosen>,
    broken: Vec<Broken>,
    /// The generation of the keys that it was read with.
    generation: i64,
    /// The size of the first message, if it exceeds the limit.
    pub(super) too_large: Option<u64>,
    /// Whether more could be sent, or perhaps could, than the limits allow.
    pub(super) is_cut: bool,
}

impl Choice {
    /// Returns how many messages were chosen, and the bytes of their bodies.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.chosen.len(), self.chosen.iter().map(|message| message.size.body_bytes.unsigned_abs()).sum())
    }
}

/// Chooses the next messages of a lane from a snapshot. Not even the first one may exceed the limit.
pub(super) fn choose(
    scope: &WalkScope<'_>,
    sealer: &Sealer,
    selection: &SqlFilter,
    limits: ClaimLimits,
    requests: &mut RequestReader,
) -> Result<Choice, Fault> {
    let WalkScope { connection, lane, now_ms, .. } = *scope;
    let mut choice = Choice { generation: sealer.generation(), ..Choice::default() };
    let mut bytes = 0;
    let limited = scope.facts.limits_of(connection, lane, now_ms)?;
    walk(scope, &limited, selection, |message, (way, (ahead, is_unsure))| {
        let WaitingMessage { id, touches, message_type, items, body_bytes, attempts, .. } = message;
        // The file of an attachment is streamed when it is sent, so it takes no memory.
        let held_bytes = match message_type {
            MessageType::CreateAttachment => 0,
            _ => body_bytes.unsigned_abs(),
        };
        bytes += body_bytes.unsigned_abs();
        let taken = choice.chosen.len() + choice.broken.len();
        let is_full = taken >= limits.messages_max || (bytes > limits.bytes_max && taken > 0);
        choice.is_cut = is_full || taken + 1 >= limits.messages_max || held_bytes > limits.bytes_max;
        if is_full {
            return Ok(WalkStep::Stop);
        }
        if held_bytes > limits.bytes_max {
            choice.too_large = Some(held_bytes);
            return Ok(WalkStep::Stop);
        }
        give_way();
        let id = MessageId(id);
        let size = Size { items: items.into(), body_bytes };
        let group = CountGroup::new(lane, MessageStatus::Failed, message_type);
        match requests.verified(connection, sealer, id) {
            Ok(Some(request)) => {
                let claimed = Claimed { id, message_type, request, touches, items, attempts, ahead, is_unsure, way };
                choice.chosen.push(Chosen { claimed, group, size });
            }
            // It was deleted meanwhile.
            Ok(None) => {}
            Err(Fault::Message(reason)) => {
                // A reader that lacks a key of the store cannot tell damage from a value that it may not read.
                sealer.unlocked()?;
                choice.broken.push(Broken { id, reason, group, size });
            }
            Err(fault) => return Err(fault),
        }
        // Stopping here, not at the next message, spares a filtered claim the scan to that message, which may cross the
        // whole lane.
        Ok(if taken + 1 < limits.messages_max { WalkStep::Taken } else { WalkStep::Stop })
    })?;
    Ok(choice)
}

/// Marks the chosen messages as in flight, and returns those that still exist. Damaged ones are *rejected* with the
/// reason, but only by a reader that has the keys of the store as they are in this transaction: after a key rotation
/// they are chosen again.
pub(super) fn mark(tx: &Transaction<'_>, sealer: &Sealer, epoch: i64, choice: Choice) -> Result<Vec<Claimed>, Fault> {
    let Choice { chosen, mut broken, generation, .. } = choice;
    if generation != sealer.generation() || sealer.is_locked() {
        broken.clear();
    }
    let mut changes = CountChanges::default();
    let mut mark = tx.prepare_cached(queries::MARK_CLAIMED)?;
    let mut claimed = Vec::with_capacity(chosen.len());
    for message in chosen {
        give_way();
        if mark.execute([message.claimed.id.0, epoch])? == 1 {
            changes.take(message.group, message.size);
            changes.add(CountGroup { status: MessageStatus::Registered, ..message.group }, message.size);
            claimed.push(message.claimed);
        }
    }
    for Broken { id, reason, group, size } in broken {
        if mark.execute([id.0, epoch])? == 1 {
            let text = format!("damaged in the message store, and not sent: {reason}");
            let inspect = hint::command(&format!("inspect {id}"));
            error!(target: "db_manager", "message {id} is rejected, see {inspect}: {text}");
            tx.prepare_cached(queries::MARK_REJECTED)?.execute([id.0])?;
            record::keep_answer(tx, sealer, id, &LastAnswer { status: None, text, at_ms: now_ms() })?;
            changes.take(group, size);
            changes.add(CountGroup { status: MessageStatus::Rejected, ..group }, size);
        }
    }
    changes.write(tx)?;
    Ok(claimed)
}

/// Returns some of the lanes that have failed messages, ordered by their oldest message.
pub(super) fn lanes(
    connection: &Connection,
    sealer: &Sealer,
    (recent, memo): (&RecentCreates, &Memo),
    (filter, range): (&Filter, LaneRange),
    now_ms: i64,
) -> Result<LanePage, Fault> {
    let selection = SqlFilter::of(filter);
    let mut names = LaneCache::default();
    let mut work = Vec::new();
    let (facts, window_max) = (&StoreFacts::read(connection)?, WINDOW_MAX);
    let found = failed_by_lane(connection, &selection, range)?;
    let next = found.last().map(|(lane, ..)| LaneId(*lane)).filter(|_| range.most == Some(found.len()));
    for (lane, failed, body_bytes) in found {
        let mut may_go = false;
        let scope = WalkScope { connection, lane, now_ms, recent, memo, window_max, facts };
        let limits = facts.limits_of(connection, lane, now_ms)?;
        let seen = walk(&scope, &limits, &selection, |_, _| {
            may_go = true;
            Ok(WalkStep::Stop)
        })?;
        let Some(oldest) = seen.first else { continue };
        let hold = hold::hold_of(connection, lane, now_ms)?;
        let due_at_ms = if may_go { now_ms } else { seen.soonest_ms.unwrap_or(i64::MAX) };
        let held_until_ms = hold.as_ref().map_or(i64::MIN, |hold: &Hold| hold.until_ms);
        let lane_work = LaneWork {
            id: LaneId(lane),
            lane: names.get(connection, sealer, lane)?,
            failed,
            body_bytes,
            due_at_ms: due_at_ms.max(held_until_ms),
            hold,
            limits,
            waits_for: seen.waits_for.filter(|_| !may_go && !seen.is_open && seen.soonest_ms.is_none()).map(MessageId),
        };
        work.push((oldest, lane_work));
    }
    work.sort_by_key(|(oldest, _)| *oldest);
    Ok(LanePage { lanes: work.into_iter().map(|(_, lane_work)| lane_work).collect(), next })
}

fn failed_by_lane(
    connection: &Connection,
    selection: &SqlFilter,
    range: LaneRange,
) -> Result<Vec<(i64, u64, u64)>, Fault> {
    let mut statement = connection.prepare_cached(&queries::failed_by_lane(selection))?;
    selection.bind(&mut statement)?;
    bind(&mut statement, ":after", &range.after.map_or(i64::MIN, |lane| lane.0))?;
    // A negative limit is none.
    bind(&mut statement, ":most", &range.most.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX)))?;
    let mut found = statement.raw_query();
    let mut lanes = Vec::new();
    while let Some(row) = found.next()? {
        lanes.push((row.get(0)?, rows::unsigned(row, 1)?, rows::unsigned(row, 2)?));
    }
    Ok(lanes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Body, Encoding, EntityKind, HeaderSet, Lane, Message, Request, conflict};
    use crate::store::sqlite::{register, schema};

    fn message(message_type: MessageType, touches: Vec<Touch>) -> Message {
        let body = Body::new("{}".to_owned(), Encoding::Identity);
        let (method, path, headers) = ("POST".into(), "v1/private/traces".into(), HeaderSet::default());
        let request = Request { method, path, headers, body };
        let lane = Lane::default();
        Message { lane, message_type, request, touches, items: 1, project: None, accepted_at_ms: 0 }
    }

    /// Returns a lane with these messages, the first with id 1.
    fn lane_with(messages: &[Message]) -> (Connection, i64) {
        let mut connection = Connection::open_in_memory().expect("memory");
        schema::migrate(&mut connection).expect("a schema");
        let tx = connection.transaction().expect("a transaction");
        let packer = super::super::codec::Packer::new();
        let bodies: Vec<_> = messages.iter().map(|message| packer.pack(&message.request.body)).collect();
        register::register(&tx, &Sealer::off(), messages, &bodies).expect("they are stored");
        tx.commit().expect("a commit");
        let lane = connection.query_row("SELECT lane_id FROM lanes", [], |row| row.get(0)).expect("a lane");
        (connection, lane)
    }

    fn of_type(message_type: MessageType) -> SqlFilter {
        SqlFilter::of(&Filter { types: vec![message_type], ..Filter::default() })
    }

    fn free(connection: &Connection, lane: i64, selection: &SqlFilter, window_max: usize) -> Vec<i64> {
        let mut ids = Vec::new();
        let (recent, memo) = (RecentCreates::default(), Memo::default());
        let (recent, memo) = (&recent, &memo);
        let facts = &StoreFacts::read(connection).expect("it can be read");
        let scope = WalkScope { connection, lane, now_ms: 0, recent, memo, window_max, facts };
        walk(&scope, &[], selection, |message, _| {
            ids.push(message.id);
            Ok(WalkStep::Taken)
        })
        .expect("the lane can be walked");
        ids
    }

    fn any_message() -> impl Strategy<Value = Message> {
        // No creates: they would move earlier updates, which is another rule.
        let effect = prop::sample::select(vec![Effect::End, Effect::Update, Effect::Annotate, Effect::Refer]);
        let touch = (0_u8..6, effect).prop_map(|(id, effect)| {
            let key = EntityKey::from_parts(EntityKind::Trace, [id; 16]);
            Touch { key, effect }
        });
        let message_type = prop::sample::select(vec![MessageType::UpdateTrace, MessageType::ScoreTrace]);
        (message_type, prop::collection::vec(touch, 1..3).prop_map(Touch::distinct))
            .prop_map(|(message_type, touches)| message(message_type, touches))
    }

    proptest! {
        #[test]
        fn windows_of_any_size_find_every_free_message(messages in prop::collection::vec(any_message(), 1..25)) {
            let (connection, lane) = lane_with(&messages);
            let mut left: Vec<&[Touch]> = Vec::new();
            let mut expected = Vec::new();
            for (id, message) in (1_i64..).zip(&messages) {
                let is_blocked = left.iter().any(|earlier| conflict(earlier, &message.touches));
                if message.message_type == MessageType::UpdateTrace && !is_blocked {
                    expected.push(id);
                } else {
                    left.push(&message.touches);
                }
            }
            for window_max in [1, 2, 3, WINDOW_MAX] {
                let selection = of_type(MessageType::UpdateTrace);
                prop_assert_eq!(free(&connection, lane, &selection, window_max), &expected[..], "{}", window_max);
            }
        }
    }

    #[test]
    fn a_free_message_is_found_behind_more_blocked_ones_than_a_window() {
        let touch = |id: u32, effect| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&id.to_be_bytes());
            vec![Touch { key: EntityKey::from_parts(EntityKind::Trace, bytes), effect }]
        };
        let count = WINDOW_MAX as u32 + 10;
        let mut messages: Vec<Message> =
            (0..count).map(|id| message(MessageType::ScoreTrace, touch(id, Effect::Annotate))).collect();
        messages.extend((0..count + 1).map(|id| message(MessageType::UpdateTrace, touch(id, Effect::Update))));
        let (connection, lane) = lane_with(&messages);
        let found = free(&connection, lane, &of_type(MessageType::UpdateTrace), WINDOW_MAX);
        assert_eq!(found, [messages.len() as i64], "a message that waits for nothing is never sent");
    }

    /// Rejects the first message of a lane, which creates trace 0, and stores updates of it before a free message.
    fn lane_with_stranded(count: u32) -> (Connection, i64) {
        let touch = |id: u8, effect| Touch { key: EntityKey::from_parts(EntityKind::Trace, [id; 16]), effect };
        let mut messages = vec![message(MessageType::CreateTrace, vec![touch(0, Effect::Create)])];
        messages.extend((0..count).map(|_| message(MessageType::UpdateTrace, vec![touch(0, Effect::Update)])));
        messages.push(message(MessageType::UpdateTrace, vec![touch(1, Effect::Update)]));
        let (connection, lane) = lane_with(&messages);
        connection
            .execute_batch(
                "UPDATE messages SET status = 4 WHERE message_id = 1;
                 INSERT INTO summary VALUES (1, 4, 'CreateTraceMessage', 400, 1, 1, 2)",
            )
            .expect("it is rejected");
        (connection, lane)
    }

    #[test]
    fn free_messages_are_found_behind_any_number_of_stranded_ones() {
        let count = stranded::PASSED_MAX as u32 + 10;
        let (connection, lane) = lane_with_stranded(count);
        let (recent, memo) = (RecentCreates::default(), Memo::default());
        let facts = &StoreFacts::read(&connection).expect("it can be read");
        let scope = WalkScope {
            connection: &connection,
            lane,
            now_ms: 0,
            recent: &recent,
            memo: &memo,
            window_max: WINDOW_MAX,
            facts,
        };
        let all = SqlFilter::of(&Filter::default());
        let mut steps = Vec::new();
        for _ in 0..3 {
            let started = std::time::Instant::now();
            let mut found = Vec::new();
            let seen = walk(&scope, &[], &all, |message, _| {
                found.push(message.id);
                Ok(WalkStep::Taken)
            })
            .expect("the lane can be walked");
            assert_eq!(seen.first, Some(2));
            assert_eq!(seen.waits_for, Some(1));
            steps.push((found, started.elapsed()));
        }
        let free = i64::from(count) + 2;
        assert!(steps[0].0.is_empty(), "one walk passes that many at most");
        assert_eq!((&*steps[1].0, &*steps[2].0), (&[free][..], &[free][..]), "free messages are never sent");
        assert!(steps[2].1 < steps[0].1 / 10, "each walk reads all that is stranded again: {steps:?}");
        let counted = stranded::count(&connection, &Sealer::off(), &memo).expect("it can be counted");
        assert_eq!((counted[0].messages, counted[0].create), (u64::from(count), MessageId(1)));

        // Once the create is purged, everything is free, and the remembered position is dropped.
        connection
            .execute_batch(
                "DELETE FROM messages WHERE message_id = 1; DELETE FROM message_touches WHERE message_id = 1;
                 DELETE FROM summary WHERE status = 4; UPDATE counters SET value = value + 1 WHERE name = 'unstranded'",
            )
            .expect("it is purged");
        let mut first = None;
        walk(&scope, &[], &all, |message, _| {
            first = first.or(Some(message.id));
            Ok(WalkStep::Stop)
        })
        .expect("the lane can be walked");
        assert_eq!(first, Some(2));
    }
}
