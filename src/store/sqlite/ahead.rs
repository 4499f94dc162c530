//! Notes about updates that reached the server before the create of their entity.
//!
//! Such an update leaves a partial row on the server, which hides a later *batch* create and is completed by a *single*
//! one (Opik issue 8121). A note says: an update of this trace or span reached the server, or may have, and no create
//! of it is known to have reached it before. Claims return the note with the create
//! ([`Claimed::ahead`](crate::message::Claimed::ahead)). It is removed once the create is confirmed.
//!
//! Normal traffic writes no notes: an update follows its create, and [`RecentCreates`] caches the creates that this
//! process saw confirmed. The number of notes is bounded by [`NOTES_MAX`]. When old ones are evicted, or lost with a
//! damaged file, `counters.updated_ahead_unsure_before` records it: creates with an older UUIDv7 are sent one at a
//! time.
//!
//! A note belongs to a place ([`Lane::place`]), not to a lane: another key of the workspace writes the same records.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::{lanes, queries};
use crate::message::{Effect, EntityKey, Lane, MessageType, Touch};

/// The most notes that are kept (about 60 bytes each on disk).
const NOTES_MAX: i64 = if cfg!(test) { 3000 } else { 200_000 };
/// How many notes are evicted together.
const EVICTED: i64 = 1000;
/// How many creates one generation of the cache holds; there are two (about 15 bytes per create).
const RECENT_MAX: usize = if cfg!(test) { 500 } else { 20_000 };

const NOTES: &str = "updated_ahead";
const UNSURE_BEFORE: &str = "updated_ahead_unsure_before";

/// A cache of the traces and spans whose create this process saw confirmed most recently.
///
/// An entity is kept as a hash under a key of this process, so that no client can make two equal. That two of some ten
/// thousand are equal by chance (1 in 10^14) would cost a note.
#[derive(Debug, Default)]
pub(super) struct RecentCreates {
    hasher: RandomState,
    generations: Mutex<Generations>,
}

/// Two sets: when the newer one is full, the older one is dropped.
#[derive(Debug, Default)]
struct Generations {
    newer: HashSet<u64, BuildHasherDefault<AsIs>>,
    older: HashSet<u64, BuildHasherDefault<AsIs>>,
}

/// The hash of a number that is a hash already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    /// Not used for numbers.
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
}

impl RecentCreates {
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, place: i64, entity: EntityKey) -> u64 {
        self.hasher.hash_one((place, entity))
    }

    pub(super) fn contains(&self, place: i64, entity: EntityKey) -> bool {
        let hash = self.hash(place, entity);
        let recent = self.lock();
        recent.newer.contains(&hash) || recent.older.contains(&hash)
    }

    /// Records what a confirmed write created and ended.
    pub(super) fn confirmed(&self, place: i64, touches: &[Touch]) {
        let mut recent = self.lock();
        for touch in touches.iter().filter(|touch| touch.key.is_trace_or_span()) {
            match touch.effect {
                Effect::Create => recent.insert(self.hash(place, touch.key)),
                Effect::End => recent.remove(self.hash(place, touch.key)),
                Effect::Update | Effect::Annotate | Effect::Refer => {}
            }
        }
    }
}

impl Generations {
    fn insert(&mut self, hash: u64) {
        if self.newer.len() >= RECENT_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(hash);
    }

    fn remove(&mut self, hash: u64) {
        self.newer.remove(&hash);
        self.older.remove(&hash);
    }
}

/// Returns the traces and spans that an update changes and whose create this process has not seen.
pub(super) fn unseen<'t>(
    recent: &'t RecentCreates,
    place: i64,
    message_type: MessageType,
    touches: &'t [Touch],
) -> impl Iterator<Item = EntityKey> + 't {
    touches
        .iter()
        .filter(move |touch| {
            message_type.makes_partial_rows()
                && touch.effect == Effect::Update
                && touch.key.is_trace_or_span()
                && !recent.contains(place, touch.key)
        })
        .map(|touch| touch.key)
}

fn counter(connection: &Connection, name: &str) -> Result<i64, Fault> {
    let value = connection.prepare_cached(queries::COUNTER)?.query_row([name], |row| row.get(0)).optional()?;
    Ok(value.unwrap_or(0))
}

/// Returns the place of a lane.
pub(super) fn place_of(connection: &Connection, lane: i64) -> Result<i64, Fault> {
    let mut statement = connection.prepare_cached(queries::LANE_PLACE)?;
    let mut found = statement.query([lane])?;
    let Some(row) = found.next()? else { return Ok(Lane::default().place()) };
    Ok(Lane { server: lanes::server(row, 1)?, workspace: row.get(0)?, credential: None }.place())
}

/// Adds notes, and evicts the oldest if there are too many.
pub(super) fn note(
    tx: &Transaction<'_>,
    notes: impl IntoIterator<Item = (i64, EntityKey)>,
    now_ms: i64,
) -> Result<(), Fault> {
    let mut add = tx.prepare_cached(queries::ADD_NOTE)?;
    let mut added = 0;
    for (place, entity) in notes {
        added += add.execute(params![&entity.as_bytes()[..], place, now_ms])? as i64;
    }
    if added == 0 {
        return Ok(());
    }
    tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(params![NOTES, added])?;
    let mut count = counter(tx, NOTES)?;
    while count > NOTES_MAX {
        let evicted = evict(tx)?;
        if evicted == 0 {
            break;
        }
        count -= evicted;
    }
    Ok(())
}

fn evict(tx: &Transaction<'_>) -> Result<i64, Fault> {
    let mut evicted = 0;
    let mut unsure_before = 0;
    {
        let mut statement = tx.prepare_cached(queries::EVICT_NOTES)?;
        let mut rows = statement.query([EVICTED])?;
        while let Some(row) = rows.next()? {
            evicted += 1;
            let entity = EntityKey::from_bytes(row.get_ref(0)?.as_blob().unwrap_or_default());
            unsure_before = unsure_before.max(entity.and_then(|entity| entity.made_at_ms()).map_or(0, |at| at + 1));
        }
    }
    tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(params![NOTES, -evicted])?;
    set_unsure_before(tx, unsure_before)?;
    Ok(evicted)
}

/// Records that creates of entities older than this may have lost their note.
pub(super) fn set_unsure_before(tx: &Transaction<'_>, at_ms: i64) -> Result<(), Fault> {
    tx.prepare_cached(queries::RAISE_COUNTER)?.execute(params![UNSURE_BEFORE, at_ms])?;
    Ok(())
}

/// Returns before which time an entity that was made may have lost its note.
pub(super) fn unsure_before(connection: &Connection) -> Result<i64, Fault> {
    counter(connection, UNSURE_BEFORE)
}

/// Returns whether the note about this entity is removed once such a write is confirmed.
pub(super) fn ends_note(touch: &Touch) -> bool {
    matches!(touch.effect, Effect::Create | Effect::End) && touch.key.is_trace_or_span()
}

/// Removes the notes of entities whose create was confirmed, or that were ended.
pub(super) fn forget(tx: &Transaction<'_>, place: i64, touches: &[Touch]) -> Result<(), Fault> {
    if !are_there(tx)? {
        return Ok(());
    }
    let mut drop = tx.prepare_cached(queries::DROP_NOTE)?;
    let mut dropped = 0;
    for touch in touches.iter().filter(|touch| ends_note(touch)) {
        dropped += drop.execute(params![&touch.key.as_bytes()[..], place])? as i64;
    }
    if dropped > 0 {
        tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(params![NOTES, -dropped])?;
    }
    Ok(())
}

/// Returns whether there are any notes.
pub(super) fn are_there(connection: &Connection) -> Result<bool, Fault> {
    Ok(counter(connection, NOTES)? > 0)
}

/// Returns whether there is a note that a confirmed single create or an end with these touches removes.
pub(super) fn has_any(connection: &Connection, place: i64, touches: &[Touch]) -> Result<bool, Fault> {
    let mut known = connection.prepare_cached(queries::HAS_NOTE)?;
    for touch in touches.iter().filter(|touch| ends_note(touch)) {
        if known.exists(params![&touch.key.as_bytes()[..], place])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The messages that one settle records as delivered. What is the same for all of them is looked up once.
pub(super) struct Deliveries<'a> {
    tx: &'a Transaction<'a>,
    recent: &'a RecentCreates,
    now_ms: i64,
    /// By lane.
    places: BTreeMap<i64, i64>,
    /// Whether there are notes, or may be.
    may_have_notes: bool,
}

impl<'a> Deliveries<'a> {
    pub(super) fn begin(tx: &'a Transaction<'a>, recent: &'a RecentCreates, now_ms: i64) -> Result<Self, Fault> {
        Ok(Self { tx, recent, now_ms, places: BTreeMap::new(), may_have_notes: are_there(tx)? })
    }

    /// Records a message of a lane that was delivered under a lease; `touches` are those of the delivered part.
    pub(super) fn add(&mut self, lane: i64, message_type: MessageType, touches: &[Touch]) -> Result<(), Fault> {
        if !touches.iter().any(|touch| touch.key.is_trace_or_span() && touch.effect != Effect::Refer) {
            return Ok(());
        }
        let (tx, recent) = (self.tx, self.recent);
        let place = match self.places.get(&lane) {
            Some(place) => *place,
            None => place_of(tx, lane).inspect(|place| _ = self.places.insert(lane, *place))?,
        };
        recent.confirmed(place, touches);
        if message_type.makes_partial_rows() {
            self.noted();
            return note(tx, unseen(recent, place, message_type, touches).map(|entity| (place, entity)), self.now_ms);
        }
        if self.may_have_notes { forget(tx, place, touches) } else { Ok(()) }
    }

    /// Takes into account that others may have added notes in this transaction.
    pub(super) fn noted(&mut self) {
        self.may_have_notes = true;
    }
}

/// Adds notes for an update whose outcome is unknown.
pub(super) fn perhaps_delivered(
    tx: &Transaction<'_>,
    recent: &RecentCreates,
    (lane, message_type): (i64, MessageType),
    touches: &[Touch],
    now_ms: i64,
) -> Result<(), Fault> {
    if !message_type.makes_partial_rows() {
        return Ok(());
    }
    let place = place_of(tx, lane)?;
    note(tx, unseen(recent, place, message_type, touches).map(|entity| (place, entity)), now_ms)
}

/// The updates ahead of creates as one walk over a lane sees them: the notes, and the updates that the walk takes
/// itself.
pub(super) struct AheadLookup<'a> {
    connection: &'a Connection,
    recent: &'a RecentCreates,
    lane: i64,
    /// The place of the lane, once it is needed.
    place: OnceCell<i64>,
    notes: Notes,
    /// Updated by a message that this walk took, and not created by an earlier one.
    updated: HashSet<EntityKey>,
    created: HashSet<EntityKey>,
}

/// Which notes a snapshot has, of any place.
#[derive(Clone, Copy)]
pub(super) struct Notes {
    any: bool,
    unsure_before_ms: i64,
}

impl Notes {
    pub(super) fn read(connection: &Connection) -> Result<Self, Fault> {
        Ok(Self { any: are_there(connection)?, unsure_before_ms: counter(connection, UNSURE_BEFORE)? })
    }
}

impl<'a> AheadLookup<'a> {
    pub(super) fn of(connection: &'a Connection, recent: &'a RecentCreates, lane: i64, notes: Notes) -> Self {
        let (place, updated, created) = (OnceCell::new(), HashSet::new(), HashSet::new());
        Self { connection, recent, lane, place, notes, updated, created }
    }

    fn place(&self) -> Result<i64, Fault> {
        match self.place.get() {
            Some(place) => Ok(*place),
            None => {
                let place = place_of(self.connection, self.lane)?;
                Ok(*self.place.get_or_init(|| place))
            }
        }
    }

    /// Returns the entities that a message creates and of which an update may have reached the server before, and
    /// whether no note says so of any of them.
    pub(super) fn ahead(&self, message_type: MessageType, touches: &[Touch]) -> Result<(Vec<EntityKey>, bool), Fault> {
        let (mut ahead, mut any_noted) = (Vec::new(), false);
        if !(message_type.is_single_create() || message_type.is_batch_create())
            || (!self.notes.any && self.notes.unsure_before_ms == 0 && self.updated.is_empty())
        {
            return Ok((ahead, false));
        }
        let place = self.place()?;
        let mut known = self.connection.prepare_cached(queries::HAS_NOTE)?;
        for touch in touches.iter().filter(|touch| touch.effect == Effect::Create && touch.key.is_trace_or_span()) {
            let entity = touch.key;
            let is_unsure = || {
                entity.made_at_ms().is_some_and(|at| at < self.notes.unsure_before_ms)
                    && !self.recent.contains(place, entity)
                    && !self.created.contains(&entity)
            };
            let is_noted = self.updated.contains(&entity)
                || (self.notes.any && known.exists(params![&entity.as_bytes()[..], place])?);
            any_noted |= is_noted;
            if is_noted || is_unsure() {
                ahead.push(entity);
            }
        }
        let is_unsure = !any_noted && !ahead.is_empty();
        Ok((ahead, is_unsure))
    }

    /// Records a message that is sent before those that the walk reaches later.
    pub(super) fn take(&mut self, message_type: MessageType, touches: &[Touch]) -> Result<(), Fault> {
        if message_type.makes_partial_rows() {
            let unseen = unseen(self.recent, self.place()?, message_type, touches);
            let created = &self.created;
            self.updated.extend(unseen.filter(|entity| !created.contains(entity)));
            return Ok(());
        }
        for touch in touches.iter().filter(|touch| touch.effect == Effect::Create && touch.key.is_trace_or_span()) {
            self.updated.remove(&touch.key);
            self.created.insert(touch.key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::EntityKind;
    use crate::store::sqlite::schema;

    fn trace(number: u32) -> EntityKey {
        let mut id = [0; 16];
        id[2..6].copy_from_slice(&number.to_be_bytes());
        id[6] = 0x70;
        EntityKey::from_parts(EntityKind::Trace, id)
    }

    fn store() -> Connection {
        let mut connection = Connection::open_in_memory().expect("memory");
        schema::migrate(&mut connection).expect("a schema");
        connection
    }

    #[test]
    fn creates_whose_note_was_evicted_are_sent_singly() {
        let mut connection = store();
        let tx = connection.transaction().expect("a transaction");
        let all = u32::try_from(NOTES_MAX).expect("it fits") + 1;
        note(&tx, (0..all).map(|number| (7, trace(number))), 5).expect("they are noted");
        let kept = NOTES_MAX + 1 - EVICTED;
        assert_eq!(counter(&tx, NOTES).expect("a counter"), kept);
        let rows: i64 = tx.query_row("SELECT count(*) FROM updated_ahead", [], |row| row.get(0)).expect("a count");
        assert_eq!(rows, kept, "the counter does not say how many there are");
        let recent = RecentCreates::default();
        let look = AheadLookup {
            connection: &tx,
            recent: &recent,
            lane: 1,
            place: OnceCell::from(7),
            notes: Notes::read(&tx).expect("counters"),
            updated: HashSet::new(),
            created: HashSet::new(),
        };
        let create = |entity| [Touch { key: entity, effect: Effect::Create }];
        for (number, expected) in [(0, true), (all - 1, true), (all + 5, false)] {
            let (ahead, _) = look.ahead(MessageType::CreateTrace, &create(trace(number))).expect("it can be asked");
            assert_eq!(!ahead.is_empty(), expected, "{number}");
        }
        recent.confirmed(7, &create(trace(0)));
        let (ahead, _) = look.ahead(MessageType::CreateTrace, &create(trace(0))).expect("it can be asked");
        assert!(ahead.is_empty());
    }

    #[test]
    fn a_confirmed_create_needs_no_note_until_its_entity_ends() {
        let recent = RecentCreates::default();
        let touch = |effect| [Touch { key: trace(1), effect }];
        let is_noted = |touches: &[Touch]| unseen(&recent, 7, MessageType::UpdateTrace, touches).next().is_some();
        assert!(is_noted(&touch(Effect::Update)));
        recent.confirmed(7, &touch(Effect::Create));
        assert!(!is_noted(&touch(Effect::Update)));
        assert!(recent.contains(7, trace(1)) && !recent.contains(8, trace(1)), "another workspace has its own");
        recent.confirmed(7, &touch(Effect::End));
        assert!(is_noted(&touch(Effect::Update)));
        for number in 0..RECENT_MAX as u32 * 3 {
            recent.confirmed(7, &[Touch { key: trace(number), effect: Effect::Create }]);
        }
        let kept = {
            let recent = recent.lock();
            recent.newer.len() + recent.older.len()
        };
        assert!(kept <= 2 * RECENT_MAX, "{kept} are kept");
        assert!(recent.contains(7, trace(RECENT_MAX as u32 * 3 - 1)) && !recent.contains(7, trace(0)));
    }
}
