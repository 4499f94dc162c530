//! A second engine in memory, for tests: it keeps the same promises as the model over another data structure, and shows
//! that the traits ask for no file.
//!
//! Every lane has a shelf, an ordered map by place in the order of delivery, and one walk along it answers what may be
//! sent. The model keeps one list and scans all of it.

#![allow(dead_code, reason = "every test binary uses its own part of it")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use opik_offline::message::{
    Attachment, Bucket, Buckets, Effect, EntityKey, Footprint, Lane, Message, MessageId, MessageStatus, MessageType,
    Server, Sha256, Touch, Way,
};
use opik_offline::store::attachment::PIECE_BYTES;
use opik_offline::store::{
    AdoptionRecord, AgentRecord, Ahead, AttachmentId, Attachments, Backlog, BacklogGroup, BacklogSeen, Browse, Claim,
    ClaimLimits, Claimed, Condition, Filter, FullRecord, Hold, Holdable, Intake, LaneId, LaneListed, LanePage,
    LaneRange, LaneWork, LastAnswer, Lease, Listed, Location, Maintain, Outcome, Owner, Page, Purged, Replay,
    ReplayHold, ReplayRecord, SalvagedRow, Shipped, ShippedMessage, Standing, StoreError, StoreIdentity, StoredMessage,
    Stranded, StreamRecord, UnshippedCount, WaitEnd, Whose, now_ms,
};

use uuid::Uuid;

use crate::shipped_book::{ShippedBook, Stored};

const MINUTE_MS: i64 = 60 * 1000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// Rank, then id: parts of a divided message share its rank, and an early update ranks right behind its create.
type Place = (i64, i64);

/// A store that is gone with its process.
pub(crate) struct MemoryStore {
    identity: StoreIdentity,
    contents: Mutex<Contents>,
}

#[derive(Default)]
struct Contents {
    shelves: Vec<Shelf>,
    last_id: i64,
    uploads: HashMap<AttachmentId, Vec<u8>>,
    uploads_begun: i64,
    salvaged: HashSet<Sha256>,
    /// Of which entities, by lane, an update reached the server before the create.
    updated_ahead: HashSet<(i64, EntityKey)>,
    unsure_before_ms: i64,
    /// Whose create was seen confirmed.
    created: HashSet<(i64, EntityKey)>,
    lease: Option<(Lease, Instant)>,
    epoch: i64,
    agents: Vec<AgentRecord>,
    last_replay: Option<ReplayRecord>,
    expired: u64,
    adoptions: Vec<AdoptionRecord>,
    full: FullRecord,
    replay_hold: Option<ReplayHold>,
    is_closed: bool,
    shipped: ShippedBook,
}

struct Shelf {
    lane: Lane,
    items: BTreeMap<Place, Item>,
    hold: Option<Held>,
    limits: BTreeMap<Bucket, Held>,
}

#[derive(Clone)]
struct Held {
    hold: Hold,
    has_passed: bool,
    at_ms: i64,
}

#[derive(Clone)]
struct Item {
    message: Message,
    status: MessageStatus,
    attempts: u32,
    next_attempt_at_ms: i64,
    /// The epoch of the claim that was not settled yet.
    claimed_in: Option<i64>,
    answer: Option<LastAnswer>,
    file: Option<(Attachment, Vec<u8>)>,
}

/// Whether a waiting message may be claimed: how, or from when on.
enum Verdict {
    Ready(Way, Vec<EntityKey>, bool),
    NotBefore(i64),
    Blocked { by_create: Option<i64> },
}

impl Item {
    fn new(message: &Message) -> Self {
        Self {
            message: message.clone(),
            status: MessageStatus::Failed,
            attempts: 0,
            next_attempt_at_ms: 0,
            claimed_in: None,
            answer: None,
            file: None,
        }
    }

    fn bytes(&self) -> u64 {
        (self.message.request.body.bytes.len() + self.file.as_ref().map_or(0, |(_, bytes)| bytes.len())) as u64
    }

    fn waits(&self) -> bool {
        self.status.is_on_its_way()
    }

    fn does(&self, effect: Effect, key: EntityKey) -> bool {
        self.message.touches.contains(&Touch { key, effect })
    }

    /// Makes it *failed*, due at once.
    fn retry(&mut self) {
        (self.status, self.attempts, self.next_attempt_at_ms) = (MessageStatus::Failed, 0, 0);
    }

    fn is_selected(&self, id: i64, filter: &Filter) -> bool {
        let of = |list: &[String], name: Option<&str>| list.is_empty() || list.iter().any(|one| Some(&**one) == name);
        let Message { lane, message_type, touches, project, accepted_at_ms, .. } = &self.message;
        (filter.statuses.is_empty() || filter.statuses.contains(&self.status))
            && (filter.types.is_empty() || filter.types.contains(message_type))
            && of(&filter.workspaces, Some(lane.workspace_name()))
            && (filter.servers.is_empty() || lane.server.as_ref().is_some_and(|one| filter.servers.contains(one)))
            && of(&filter.projects, project.as_deref())
            && (filter.ids.is_empty() || filter.ids.contains(&MessageId(id)))
            && (filter.entities.is_empty() || touches.iter().any(|touch| filter.entities.contains(&touch.key)))
            && filter.accepted_before_ms.is_none_or(|before| *accepted_at_ms < before)
            && filter.accepted_since_ms.is_none_or(|since| *accepted_at_ms >= since)
    }

    fn listed(&self, id: i64) -> Listed {
        Listed {
            id: MessageId(id),
            status: self.status,
            message_type: self.message.message_type,
            lane: self.message.lane.clone(),
            project: self.message.project.clone(),
            method: self.message.request.method.clone(),
            path: self.message.request.path.clone(),
            items: self.message.items,
            body_bytes: self.bytes(),
            attachment: self.file.as_ref().map(|(file, _)| *file),
            accepted_at_ms: self.message.accepted_at_ms,
            attempts: self.attempts,
            next_attempt_at_ms: self.next_attempt_at_ms,
            answer: self.answer.clone(),
        }
    }
}

impl Shelf {
    fn hold(&self, now_ms: i64) -> Option<Hold> {
        let Held { hold, has_passed, at_ms } = self.hold.clone()?;
        // The clock was set back since.
        let until_ms = if at_ms - now_ms > MINUTE_MS { now_ms } else { hold.until_ms };
        (until_ms > now_ms || !has_passed).then_some(Hold { until_ms, ..hold })
    }

    fn limits(&self, now_ms: i64) -> Vec<Hold> {
        let in_force = |held: &&Held| held.hold.until_ms > now_ms && held.at_ms - now_ms <= MINUTE_MS;
        self.limits.values().filter(in_force).map(|held| held.hold.clone()).collect()
    }

    /// Sets a hold for the lane or a bucket of it. With `only_longer`, one in force that lasts longer stays.
    fn set_hold(&mut self, hold: &Hold, only_longer: bool) {
        let now_ms = now_ms();
        let held = Held { hold: hold.clone(), has_passed: false, at_ms: now_ms };
        let known = match hold.bucket {
            Some(_) => self.limits(now_ms).into_iter().find(|limit| limit.bucket == hold.bucket),
            None => self.hold(now_ms).filter(|_| only_longer),
        };
        if known.is_some_and(|known| known.until_ms >= hold.until_ms) {
            return;
        }
        match hold.bucket {
            Some(bucket) => drop(self.limits.insert(bucket, held)),
            None => self.hold = Some(held),
        }
    }

    /// Puts a message with a new id at the end. Updates that came before this create of their entity follow it.
    fn add(&mut self, id: i64, item: Item) {
        let place = (2 * id, id);
        for Touch { key, .. } in item.message.touches.iter().filter(|touch| touch.effect == Effect::Create) {
            let waiting = || self.items.iter().filter(|(_, item)| item.waits());
            if waiting().any(|(_, item)| item.does(Effect::End, *key)) {
                continue;
            }
            let earlier = waiting().find(|(_, item)| item.does(Effect::Create, *key));
            let earlier = earlier.map_or(i64::MAX, |((rank, _), _)| *rank);
            let is_early = |(place, item): &(&Place, &Item)| {
                item.status == MessageStatus::Failed && item.does(Effect::Update, *key) && place.0 < earlier
            };
            let early: Vec<Place> = waiting().filter(is_early).map(|(place, _)| *place).collect();
            let changes = |place: &Place| {
                let touches = &self.items[place].message.touches;
                touches.iter().filter(|touch| touch.effect != Effect::Refer).count()
            };
            if early.iter().all(|place| changes(place) == 1) {
                for early in early {
                    let update = self.items.remove(&early).expect("it was found");
                    self.items.insert((place.0 + 1, early.1), update);
                }
            }
        }
        self.items.insert(place, item);
    }

    /// Returns the refused create that keeps a message behind it from being sent, if any.
    fn refused_create(&self, touches: &[Touch], before: Place) -> Option<i64> {
        let refused = self.items.range(..before).filter(|(_, item)| item.status.is_refused());
        let makes =
            |item: &Item| touches.iter().any(|touch| touch.can_be_stranded() && item.does(Effect::Create, touch.key));
        refused.filter(|(_, item)| makes(item)).map(|((_, id), _)| *id).min()
    }
}

impl Contents {
    fn shelf(&mut self, lane: &Lane) -> &mut Shelf {
        let number = self.shelves.iter().position(|shelf| shelf.lane == *lane).unwrap_or_else(|| {
            let shelf = Shelf { lane: lane.clone(), items: BTreeMap::new(), hold: None, limits: BTreeMap::new() };
            self.shelves.push(shelf);
            self.shelves.len() - 1
        });
        &mut self.shelves[number]
    }

    fn at(&mut self, lane: LaneId) -> &mut Shelf {
        &mut self.shelves[lane.0 as usize - 1]
    }

    fn numbered(&self) -> impl Iterator<Item = (LaneId, &Shelf)> {
        self.shelves.iter().enumerate().map(|(number, shelf)| (LaneId(number as i64 + 1), shelf))
    }

    /// The fields of all messages that copies depend on.
    fn stored(&self) -> Vec<Stored> {
        let items = self.shelves.iter().flat_map(|shelf| &shelf.items);
        let stored = items.map(|((rank, id), item)| Stored {
            id: *id,
            position: *rank,
            status: item.status,
            body_bytes: item.bytes(),
            accepted_at_ms: item.message.accepted_at_ms,
        });
        stored.collect()
    }

    /// All messages, by id.
    fn by_id(&self) -> BTreeMap<i64, &Item> {
        self.shelves.iter().flat_map(|shelf| &shelf.items).map(|((_, id), item)| (*id, item)).collect()
    }

    fn items_mut(&mut self) -> impl Iterator<Item = (i64, &mut Item)> {
        self.shelves.iter_mut().flat_map(|shelf| &mut shelf.items).map(|((_, id), item)| (*id, item))
    }

    /// Deletes the messages with these ids.
    fn delete(&mut self, ids: &HashSet<i64>) {
        self.shelves.iter_mut().for_each(|shelf| shelf.items.retain(|(_, id), _| !ids.contains(id)));
    }

    fn register(&mut self, message: &Message, edit: impl FnOnce(&mut Item)) -> MessageId {
        self.last_id += 1;
        let id = self.last_id;
        let mut item = Item::new(message);
        edit(&mut item);
        self.shelf(&message.lane).add(id, item);
        MessageId(id)
    }

    fn take_upload(&mut self, attachment: AttachmentId, file: &Attachment) -> Result<Vec<u8>, StoreError> {
        match self.uploads.get(&attachment) {
            Some(bytes) if bytes.len() as u64 == file.bytes => {
                Ok(self.uploads.remove(&attachment).expect("it was found"))
            }
            _ => Err(StoreError::AttachmentGone),
        }
    }

    /// Walks along the waiting messages of a lane that the filter selects, in delivery order.
    fn walk(&self, shelf: &Shelf, filter: &Filter, now_ms: i64) -> Vec<(Place, Verdict)> {
        let mut left = Footprint::default();
        let mut creating: HashSet<EntityKey> = HashSet::new();
        for item in shelf.items.values().filter(|item| item.status == MessageStatus::Registered) {
            left.add(&item.message.touches);
            creating.extend(creates(&item.message.touches));
        }
        let is_early = |touches: &[Touch]| touches.iter().any(|t| t.can_be_stranded() && creating.contains(&t.key));
        let limits = shelf.limits(now_ms);
        let limited: Buckets = limits.iter().filter_map(|limit| limit.bucket).collect();
        let place_of_lane = shelf.lane.place();
        let (mut updated, mut created) = (HashSet::new(), HashSet::new());
        let mut verdicts = Vec::new();
        for (place, item) in shelf.items.iter().filter(|(_, item)| item.status == MessageStatus::Failed) {
            let Message { message_type, touches, .. } = &item.message;
            if !item.is_selected(place.1, filter) {
                left.add(touches);
                continue;
            }
            let by_create = shelf.refused_create(touches, *place);
            let due_at_ms = match item.next_attempt_at_ms {
                // The clock was set back since.
                far if far - now_ms > HOUR_MS => now_ms,
                due => due,
            };
            let is_noted =
                |key: &EntityKey| updated.contains(key) || self.updated_ahead.contains(&(place_of_lane, *key));
            let is_ahead = |key: &EntityKey| {
                let is_unsure = key.made_at_ms().is_some_and(|at| at < self.unsure_before_ms);
                is_noted(key) || is_unsure && !self.created.contains(&(place_of_lane, *key))
            };
            let ahead: Vec<EntityKey> = match message_type.is_single_create() || message_type.is_batch_create() {
                true => creates(touches).filter(is_ahead).collect(),
                false => Vec::new(),
            };
            let is_unsure = !ahead.is_empty() && !ahead.iter().any(is_noted);
            let verdict = match Way::of(*message_type, !ahead.is_empty(), limited) {
                _ if self.shipped.is_handed_over(place.1) => Verdict::Blocked { by_create: None },
                _ if by_create.is_some() || left.conflicts(touches) || is_early(touches) => {
                    Verdict::Blocked { by_create }
                }
                _ if due_at_ms > now_ms => Verdict::NotBefore(due_at_ms),
                Some(way) => Verdict::Ready(way, ahead, is_unsure),
                None => Verdict::NotBefore(limits.iter().map(|limit| limit.until_ms).min().unwrap_or(now_ms)),
            };
            match &verdict {
                Verdict::Ready(..) => {
                    let unseen = self.unseen(&shelf.lane, *message_type, touches);
                    updated.extend(unseen.into_iter().filter(|key| !created.contains(key)));
                    for key in creates(touches).filter(|_| !message_type.makes_partial_rows()) {
                        updated.remove(&key);
                        created.insert(key);
                    }
                }
                Verdict::NotBefore(_) | Verdict::Blocked { .. } => left.add(touches),
            }
            verdicts.push((*place, verdict));
        }
        verdicts
    }

    fn unseen(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey> {
        let is_unseen = |touch: &&Touch| {
            let is_update = touch.effect == Effect::Update && touch.key.is_trace_or_span();
            is_update && message_type.makes_partial_rows() && !self.created.contains(&(lane.place(), touch.key))
        };
        touches.iter().filter(is_unseen).map(|touch| touch.key).collect()
    }

    fn confirmed(&mut self, lane: &Lane, touches: &[Touch], keeps_notes: bool) {
        for touch in touches.iter().filter(|touch| touch.key.is_trace_or_span()) {
            let entity = (lane.place(), touch.key);
            let is_known = match touch.effect {
                Effect::Create => {
                    self.created.insert(entity);
                    true
                }
                Effect::End => {
                    self.created.remove(&entity);
                    true
                }
                Effect::Update | Effect::Annotate | Effect::Refer => false,
            };
            if is_known && !keeps_notes {
                self.updated_ahead.remove(&entity);
            }
        }
    }

    /// Records what of a message reached the server, or may have.
    fn reached(&mut self, message: &Message, touches: &[Touch], is_certain: bool) {
        let unseen = self.unseen(&message.lane, message.message_type, touches);
        self.updated_ahead.extend(unseen.into_iter().map(|key| (message.lane.place(), key)));
        if is_certain {
            self.confirmed(&message.lane, touches, false);
        }
    }

    fn settle(&mut self, id: i64, outcome: &Outcome, epoch: i64) {
        let keep = |answer: &LastAnswer| LastAnswer { text: answer.text_kept().to_owned(), ..answer.clone() };
        let is_it = |(place, item): (&Place, &Item)| {
            let is_claimed = item.status == MessageStatus::Registered && item.claimed_in == Some(epoch);
            (place.1 == id && is_claimed).then_some(*place)
        };
        let found =
            self.shelves.iter().enumerate().find_map(|(at, shelf)| Some((at, shelf.items.iter().find_map(is_it)?)));
        let Some((at, place)) = found else { return };
        let mut item = self.shelves[at].items.remove(&place).expect("it was found");
        item.claimed_in = None;
        match outcome {
            Outcome::Delivered => {
                self.reached(&item.message, &item.message.touches, true);
                self.shelves[at].hold.iter_mut().for_each(|held| held.has_passed = true);
                return;
            }
            Outcome::Failed { next_attempt_at_ms, counts, answer } => {
                if answer.as_ref().is_some_and(|answer| answer.status.is_none_or(|status| status >= 500)) {
                    self.reached(&item.message, &item.message.touches, false);
                }
                item.status = MessageStatus::Failed;
                item.next_attempt_at_ms = *next_attempt_at_ms;
                item.attempts += u32::from(*counts);
                item.answer = answer.as_ref().map(keep).or(item.answer);
            }
            Outcome::Rejected { answer } => {
                (item.status, item.next_attempt_at_ms) = (MessageStatus::Rejected, 0);
                item.attempts += 1;
                item.answer = Some(keep(answer));
            }
            Outcome::Held { answer } => {
                (item.status, item.next_attempt_at_ms) = (MessageStatus::Held, 0);
                item.answer = Some(keep(answer));
            }
            Outcome::Divided { parts } => {
                let is_done =
                    |touch: &&Touch| !parts.iter().any(|part| part.touches.iter().any(|t| t.key == touch.key));
                let done: Vec<Touch> = item.message.touches.iter().filter(is_done).copied().collect();
                self.reached(&item.message, &done, true);
                for part in parts {
                    self.last_id += 1;
                    let mut rest = Item { file: None, next_attempt_at_ms: 0, ..item.clone() };
                    rest.message.request = part.request.clone();
                    rest.message.touches = part.touches.clone();
                    rest.message.items = part.items;
                    rest.status = part.status().0;
                    rest.attempts += u32::from(part.rejected.is_some());
                    rest.answer = part.status().1.map(keep);
                    if rest.status != MessageStatus::Rejected {
                        self.shipped.divided(id, self.last_id);
                    }
                    self.shelves[at].items.insert((place.0, self.last_id), rest);
                }
                return;
            }
        }
        self.shelves[at].items.insert(place, item);
    }

    /// Returns the place of a held create that the message at this place waits for.
    fn held_create_before<'s>(&self, shelf: &'s Shelf, place: &Place) -> Option<&'s Place> {
        let touches = &shelf.items.get(place)?.message.touches;
        // Also of what it makes itself: the older create decides.
        let makes =
            |item: &Item| touches.iter().any(|touch| touch.key.can_strand() && item.does(Effect::Create, touch.key));
        let refused = shelf.items.range(..place).filter(|(_, item)| item.status.is_refused() && makes(item));
        let (create, item) = refused.min_by_key(|((_, id), _)| *id)?;
        (item.status == MessageStatus::Held).then_some(create)
    }

    fn verify(&self, lease: &Lease) -> Result<(), StoreError> {
        match &self.lease {
            Some((held, _)) if held == lease => Ok(()),
            _ => Err(StoreError::LeaseLost),
        }
    }

    fn holder(&self) -> Option<&Owner> {
        self.lease.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(lease, _)| &lease.owner)
    }

    fn lanes_of(&self, whose: &Whose) -> Vec<LaneId> {
        let is_meant = |lane: &Lane| match whose {
            Whose::Lane(meant) => lane == meant,
            Whose::Server(server) => lane.server.as_ref() == Some(server),
        };
        self.numbered().filter(|(_, shelf)| is_meant(&shelf.lane)).map(|(id, _)| id).collect()
    }
}

fn creates(touches: &[Touch]) -> impl Iterator<Item = EntityKey> {
    touches.iter().filter(|touch| touch.effect == Effect::Create).map(|touch| touch.key)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { identity: StoreIdentity::of(uuid::Uuid::now_v7().as_bytes()), contents: Mutex::default() }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("no test continues after a panic in here")
    }

    fn open(&self) -> Result<MutexGuard<'_, Contents>, StoreError> {
        let contents = self.lock();
        match contents.is_closed {
            true => Err(StoreError::Unproven { at: Location::new("memory"), reason: "it was closed".into() }),
            false => Ok(contents),
        }
    }

    fn leased(&self, lease: &Lease) -> Result<MutexGuard<'_, Contents>, StoreError> {
        let contents = self.open()?;
        contents.verify(lease)?;
        Ok(contents)
    }
}

impl Intake for MemoryStore {
    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError> {
        let mut contents = self.open()?;
        Ok(messages.iter().map(|message| contents.register(message, |_| ())).collect())
    }

    fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Result<Ahead, StoreError> {
        let contents = self.open()?;
        let Some(shelf) = contents.shelves.iter().find(|shelf| shelf.lane == *lane) else {
            return Ok(Ahead::default());
        };
        let is_stranded = shelf.refused_create(touches, (i64::MAX, i64::MAX)).is_some();
        let mut waiting = Footprint::default();
        let mut messages = 0;
        for item in shelf.items.values().filter(|item| item.waits()) {
            waiting.add(&item.message.touches);
            messages += 1;
        }
        if messages == 0 || touches.is_empty() {
            return Ok(Ahead { messages, conflicting: is_stranded, ..Ahead::default() });
        }
        let ends = touches.iter().any(|touch| touch.effect == Effect::End);
        let is_in_way = touches.len() > Ahead::TOUCHES_MAX || ends || waiting.conflicts(touches);
        let limited = shelf.limits(now_ms()).iter().filter_map(|limit| limit.bucket).collect();
        Ok(Ahead { messages, conflicting: is_stranded || is_in_way, held: shelf.hold(now_ms()).is_some(), limited })
    }

    fn is_clear(&self, lane: &Lane) -> Result<bool, StoreError> {
        Ok(self.open()?.shelves.iter().all(|shelf| shelf.lane != *lane || shelf.items.is_empty()))
    }

    fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> Result<BacklogSeen, StoreError> {
        let contents = self.open()?;
        let (mut footprint, mut is_any, mut waiting, mut is_stranded) = (Footprint::default(), false, false, false);
        for shelf in contents.shelves.iter().filter(|shelf| shelf.lane.server.as_ref().is_none_or(|of| of == server)) {
            is_any |= !shelf.items.is_empty();
            is_stranded |= shelf.refused_create(touches, (i64::MAX, i64::MAX)).is_some();
            for item in shelf.items.values().filter(|item| item.waits()) {
                waiting = true;
                footprint.add(&item.message.touches);
            }
        }
        let is_broad = touches.is_empty() || touches.len() > Ahead::TOUCHES_MAX;
        let ends = touches.iter().any(|touch| touch.effect == Effect::End);
        let conflicting = waiting && (is_broad || ends || footprint.conflicts(touches)) || is_stranded;
        Ok(if is_any { BacklogSeen::Holds { waiting, conflicting } } else { BacklogSeen::Empty })
    }

    fn limit(&self, lane: &Lane, hold: &Hold) -> Result<(), StoreError> {
        self.open()?.shelf(lane).set_hold(hold, true);
        Ok(())
    }

    fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey> {
        self.lock().unseen(lane, message_type, touches)
    }

    fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)], unsure_before_ms: i64) -> Result<(), StoreError> {
        let mut contents = self.open()?;
        contents.updated_ahead.extend(updates.iter().map(|(lane, entity)| (lane.place(), *entity)));
        contents.unsure_before_ms = contents.unsure_before_ms.max(unsure_before_ms);
        Ok(())
    }

    fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Result<(), StoreError> {
        self.open()?.confirmed(lane, touches, message_type.is_batch_create());
        Ok(())
    }

    fn hasten(&self, whose: &Whose) -> Result<(), StoreError> {
        let mut contents = self.open()?;
        for lane in contents.lanes_of(whose) {
            let shelf = contents.at(lane);
            for held in shelf.hold.iter_mut().filter(|held| held.hold.probe) {
                held.hold.until_ms = held.hold.until_ms.min(now_ms());
            }
            let waiting = shelf.items.values_mut().filter(|item| item.status == MessageStatus::Failed);
            waiting.for_each(|item| item.next_attempt_at_ms = 0);
        }
        Ok(())
    }

    fn salvage(&self, rows: &[SalvagedRow]) -> Result<Vec<Option<MessageId>>, StoreError> {
        let mut contents = self.open()?;
        let mut ids = Vec::new();
        for row in rows {
            if contents.salvaged.contains(&row.row) {
                ids.push(None);
                continue;
            }
            let file = match &row.file {
                Some((attachment, file)) => Some((*file, contents.take_upload(*attachment, file)?)),
                None => None,
            };
            contents.salvaged.insert(row.row);
            ids.push(Some(contents.register(&row.message, |item| {
                item.file = file;
                let (status, answer) = row.status();
                (item.status, item.answer) = (status, answer.cloned());
                item.claimed_in = (row.was_in_flight && status == MessageStatus::Failed).then_some(0);
            })));
        }
        Ok(ids)
    }

    fn is_salvaged(&self, row: &Sha256) -> Result<bool, StoreError> {
        Ok(self.open()?.salvaged.contains(row))
    }

    fn note_full(&self, since_ms: Option<i64>, refused: u64) -> Result<(), StoreError> {
        let mut contents = self.open()?;
        contents.full = FullRecord { since_ms, refused: contents.full.refused + refused };
        Ok(())
    }
}

impl Attachments for MemoryStore {
    fn begin_attachment(&self, _bytes_expected: Option<u64>) -> Result<AttachmentId, StoreError> {
        let mut contents = self.open()?;
        contents.uploads_begun += 1;
        let id = AttachmentId(contents.uploads_begun);
        contents.uploads.insert(id, Vec::new());
        Ok(id)
    }

    fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> Result<(), StoreError> {
        let mut contents = self.open()?;
        match contents.uploads.get_mut(&attachment) {
            Some(bytes) if bytes.len() == number as usize * PIECE_BYTES => {
                bytes.extend_from_slice(piece);
                Ok(())
            }
            _ => Err(StoreError::AttachmentGone),
        }
    }

    fn register_attachment(
        &self,
        attachment: AttachmentId,
        file: &Attachment,
        message: &Message,
    ) -> Result<MessageId, StoreError> {
        let mut contents = self.open()?;
        let bytes = contents.take_upload(attachment, file)?;
        Ok(contents.register(message, |item| item.file = Some((*file, bytes))))
    }

    fn abandon_attachment(&self, attachment: AttachmentId) -> Result<(), StoreError> {
        self.open()?.uploads.remove(&attachment);
        Ok(())
    }

    fn attachment(&self, message: MessageId) -> Result<Option<Attachment>, StoreError> {
        let contents = self.open()?;
        Ok(contents.by_id().get(&message.0).and_then(|item| item.file.as_ref()).map(|(file, _)| *file))
    }

    fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let contents = self.open()?;
        let items = contents.by_id();
        let Some((_, bytes)) = items.get(&message.0).and_then(|item| item.file.as_ref()) else { return Ok(None) };
        Ok(bytes.chunks(PIECE_BYTES).nth(number as usize).map(<[u8]>::to_vec))
    }
}

impl Replay for MemoryStore {
    fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Result<Lease, StoreError> {
        let mut contents = self.open()?;
        contents.shipped.refuse_outstanding()?;
        if let Some(holder) = contents.holder().filter(|holder| *holder != owner) {
            return Err(StoreError::LeaseHeld { owner: holder.clone() });
        }
        contents.epoch += 1;
        let lease = Lease { owner: owner.clone(), epoch: contents.epoch };
        contents.lease = Some((lease.clone(), Instant::now() + time_to_live));
        Ok(lease)
    }

    fn renew(&self, lease: &Lease, time_to_live: Duration) -> Result<(), StoreError> {
        self.leased(lease)?.lease = Some((lease.clone(), Instant::now() + time_to_live));
        Ok(())
    }

    fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.open()?.lease.take_if(|(held, _)| held == lease);
        Ok(())
    }

    fn return_in_flight(&self, lease: &Lease) -> Result<u64, StoreError> {
        let mut contents = self.leased(lease)?;
        let mut returned = Vec::new();
        for (_, item) in contents.items_mut() {
            let is_earlier = item.claimed_in.is_some_and(|epoch| epoch < lease.epoch);
            if item.status == MessageStatus::Registered && is_earlier {
                item.status = MessageStatus::Failed;
                returned.push(item.message.clone());
            }
        }
        returned.iter().for_each(|message| contents.reached(message, &message.touches, false));
        Ok(returned.len() as u64)
    }

    fn interrupted(&self, lane: LaneId) -> Result<usize, StoreError> {
        let mut contents = self.open()?;
        let items = contents.at(lane).items.values().filter(|item| item.status == MessageStatus::Failed);
        let left = items.enumerate().filter(|(_, item)| item.claimed_in.is_some());
        Ok(left.last().map_or(0, |(number, _)| number + 1))
    }

    fn make_due(&self, lease: &Lease, lanes: &[(LaneId, WaitEnd)], now_ms: i64) -> Result<(), StoreError> {
        let mut contents = self.leased(lease)?;
        for (lane, end) in lanes {
            let shelf = contents.at(*lane);
            if let WaitEnd::Outage(Some(held)) = end
                && shelf.hold(now_ms).as_ref() == Some(held)
            {
                shelf.set_hold(&Hold { until_ms: now_ms, ..held.clone() }, false);
            }
            let is_due = |item: &Item| match end {
                WaitEnd::Delivery(_) => true,
                WaitEnd::Outage(_) => item.answer.as_ref().is_none_or(LastAnswer::is_unanswered),
            };
            let deferred = shelf.items.iter().filter(|(_, item)| item.attempts == 0 && is_due(item));
            let mut due: HashSet<i64> = deferred.map(|((_, id), _)| *id).collect();
            if let WaitEnd::Delivery(messages) = end {
                due.extend(messages.iter().map(|message| message.0));
            }
            for (id, item) in contents.items_mut().filter(|(_, item)| item.status == MessageStatus::Failed) {
                if due.contains(&id) {
                    item.next_attempt_at_ms = 0;
                }
            }
        }
        Ok(())
    }

    fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> Result<(), StoreError> {
        let mut contents = self.leased(lease)?;
        match hold {
            Some(hold) => contents.at(lane).set_hold(hold, false),
            None => contents.at(lane).hold = None,
        }
        Ok(())
    }

    fn claim(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Claim, StoreError> {
        let mut contents = self.leased(lease)?;
        let shelf = &contents.shelves[lane.0 as usize - 1];
        let verdicts = contents.walk(shelf, filter, now_ms);
        let shelf = contents.at(lane);
        let (mut claimed, mut bytes) = (Vec::new(), 0);
        for (place, verdict) in verdicts {
            let Verdict::Ready(way, ahead, is_unsure) = verdict else { continue };
            let item = shelf.items.get_mut(&place).expect("it was walked past");
            bytes += item.bytes();
            if claimed.len() >= limits.messages_max || bytes > limits.bytes_max && !claimed.is_empty() {
                break;
            }
            // A file is read as it is sent: it takes no memory.
            if item.message.message_type != MessageType::CreateAttachment && item.bytes() > limits.bytes_max {
                return Ok(Claim::TooLarge { bytes: item.bytes() });
            }
            (item.status, item.claimed_in) = (MessageStatus::Registered, Some(lease.epoch));
            let Message { message_type, request, touches, items, .. } = item.message.clone();
            let (id, attempts) = (MessageId(place.1), item.attempts);
            claimed.push(Claimed { id, message_type, request, touches, items, attempts, ahead, is_unsure, way });
        }
        Ok(Claim::Taken(claimed))
    }

    fn claim_lanes(
        &self,
        lease: &Lease,
        lanes: &[LaneId],
        filter: &Filter,
        mut limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Vec<(LaneId, Vec<Claimed>)>, StoreError> {
        let mut taken = Vec::new();
        for lane in lanes {
            let (messages, bytes) = {
                let contents = self.leased(lease)?;
                let shelf = &contents.shelves[lane.0 as usize - 1];
                let ready = contents.walk(shelf, filter, now_ms).into_iter();
                let ready = ready.filter(|(_, verdict)| matches!(verdict, Verdict::Ready(..)));
                let sizes: Vec<u64> = ready.map(|(place, _)| shelf.items[&place].bytes()).collect();
                (sizes.len(), sizes.iter().sum::<u64>())
            };
            if messages >= limits.messages_max || bytes > limits.bytes_max {
                break;
            }
            taken.push((*lane, self.claim(lease, *lane, filter, limits, now_ms)?.into_messages()));
            limits.messages_max -= messages;
            limits.bytes_max -= bytes;
        }
        Ok(taken)
    }

    fn settle(&self, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let mut contents = self.leased(lease)?;
        outcomes.iter().for_each(|(id, outcome)| contents.settle(id.0, outcome, lease.epoch));
        contents.shipped.settled(outcomes);
        Ok(())
    }

    fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, StoreError> {
        let mut contents = self.leased(lease)?;
        let mut retried = Vec::new();
        for (lane, shelf) in contents.numbered() {
            let held = || shelf.items.iter().filter(|(_, item)| item.status == MessageStatus::Held);
            let answered = |item: &Item| item.answer.as_ref().map(|answer| answer.at_ms);
            let last = held().filter_map(|(_, item)| answered(item)).max();
            if last.is_some_and(|last| last > answered_before_ms && last <= now_ms()) {
                continue;
            }
            let oldest = held().min_by_key(|((_, id), item)| (answered(item), std::cmp::Reverse(*id)));
            let Some((mut place, _)) = oldest else { continue };
            // A held create that it depends on goes first.
            while let Some(create) = contents.held_create_before(shelf, place) {
                place = create;
            }
            retried.push((lane, *place));
        }
        for (lane, place) in &retried {
            contents.at(*lane).items.get_mut(place).expect("it was found").status = MessageStatus::Failed;
        }
        Ok(retried.into_iter().map(|(lane, (_, id))| (lane, MessageId(id))).collect())
    }

    fn release_held(&self, lease: &Lease, lane: LaneId) -> Result<u64, StoreError> {
        let mut contents = self.leased(lease)?;
        let held = contents.at(lane).items.values_mut().filter(|item| item.status == MessageStatus::Held);
        Ok(held.map(|item| (item.status, item.attempts) = (MessageStatus::Failed, 0)).count() as u64)
    }
}

impl Browse for MemoryStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn backlog(&self, filter: &Filter) -> Result<Backlog, StoreError> {
        let contents = self.open()?;
        let mut groups: BTreeMap<_, BacklogGroup> = BTreeMap::new();
        let mut answers: BTreeMap<Option<u16>, u64> = BTreeMap::new();
        let mut oldest: Vec<i64> = Vec::new();
        for shelf in &contents.shelves {
            let selected = || shelf.items.iter().filter(|((_, id), item)| item.is_selected(*id, filter));
            // The first message that waits stands for those behind it.
            let first = selected().find(|(_, item)| item.status == MessageStatus::Failed);
            let sent = selected().filter(|(_, item)| item.status == MessageStatus::Registered);
            oldest.extend(first.into_iter().chain(sent).map(|(_, item)| item.message.accepted_at_ms));
            for (_, item) in selected() {
                let Message { lane, message_type, items, .. } = &item.message;
                let order = MessageStatus::STORED.iter().position(|status| *status == item.status);
                let workspace = lane.workspace_name().to_owned();
                let group = groups.entry((order, *message_type, workspace.clone(), lane.server.clone()));
                let group = group.or_insert_with(|| BacklogGroup {
                    status: item.status,
                    message_type: *message_type,
                    workspace,
                    server: lane.server.clone(),
                    messages: 0,
                    items: 0,
                    body_bytes: 0,
                });
                group.messages += 1;
                group.items += u64::from(*items);
                group.body_bytes += item.bytes();
                if item.status == MessageStatus::Rejected {
                    *answers.entry(item.answer.as_ref().and_then(|answer| answer.status)).or_default() += 1;
                }
            }
        }
        let mut rejected_by_answer: Vec<_> = answers.into_iter().collect();
        rejected_by_answer.sort_by_key(|(answer, messages)| (std::cmp::Reverse(*messages), *answer));
        let groups = groups.into_values().collect();
        Ok(Backlog { groups, oldest_accepted_at_ms: oldest.into_iter().min(), rejected_by_answer })
    }

    fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Listed>, StoreError> {
        let contents = self.open()?;
        let items = contents.by_id();
        let selected = items.iter().filter(|(id, item)| item.is_selected(**id, filter));
        let is_on_page = |(id, _): &(&i64, _)| match page.after {
            None => true,
            Some(MessageId(after)) => {
                if page.newest_first {
                    **id < after
                } else {
                    **id > after
                }
            }
        };
        let listed = selected.filter(is_on_page).map(|(id, item)| item.listed(*id));
        Ok(match page.newest_first {
            true => listed.rev().take(page.limit).collect(),
            false => listed.take(page.limit).collect(),
        })
    }

    fn whole(&self, ids: &[MessageId]) -> Result<Vec<StoredMessage>, StoreError> {
        let contents = self.open()?;
        let by_id = contents.by_id();
        let stored = |id: &MessageId| {
            let item = by_id.get(&id.0)?;
            Some(StoredMessage {
                listed: item.listed(id.0),
                request: item.message.request.clone(),
                touches: item.message.touches.clone(),
                position: contents.stored().iter().find(|it| it.id == id.0).map_or(0, |it| it.position),
            })
        };
        Ok(ids.iter().filter_map(stored).collect())
    }

    fn lane_page(&self, filter: &Filter, range: LaneRange, now_ms: i64) -> Result<LanePage, StoreError> {
        Ok(LanePage::of(self.lanes(filter, now_ms)?, range))
    }

    fn lanes(&self, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, StoreError> {
        let contents = self.open()?;
        let mut work = Vec::new();
        for (id, shelf) in contents.numbered() {
            let verdicts = contents.walk(shelf, filter, now_ms);
            let Some(((_, first), _)) = verdicts.first() else { continue };
            let due_at_ms = verdicts.iter().map(|(_, verdict)| match verdict {
                Verdict::Ready(..) => now_ms,
                Verdict::NotBefore(due_at_ms) => *due_at_ms,
                Verdict::Blocked { .. } => i64::MAX,
            });
            let hold = shelf.hold(now_ms);
            let due_at_ms = due_at_ms.min().unwrap_or(i64::MAX).max(hold.as_ref().map_or(i64::MIN, |it| it.until_ms));
            let is_any_sent = shelf.items.values().any(|item| item.status == MessageStatus::Registered);
            let are_all_blocked = verdicts.iter().all(|(_, verdict)| matches!(verdict, Verdict::Blocked { .. }));
            let create = verdicts.iter().find_map(|(_, verdict)| match verdict {
                Verdict::Blocked { by_create } => *by_create,
                Verdict::Ready(..) | Verdict::NotBefore(_) => None,
            });
            let waits_for = create.filter(|_| are_all_blocked && !is_any_sent).map(MessageId);
            let (failed, limits) = (verdicts.len() as u64, shelf.limits(now_ms));
            let body_bytes = verdicts.iter().map(|(place, _)| shelf.items[place].bytes()).sum();
            let lane = shelf.lane.clone();
            work.push((*first, LaneWork { id, lane, failed, body_bytes, due_at_ms, hold, limits, waits_for }));
        }
        work.sort_by_key(|(first, _)| *first);
        Ok(work.into_iter().map(|(_, work)| work).collect())
    }

    fn lane_list(&self, now_ms: i64) -> Result<Vec<LaneListed>, StoreError> {
        let contents = self.open()?;
        let listed = contents.numbered().filter(|(_, shelf)| !shelf.items.is_empty()).map(|(id, shelf)| {
            let waiting = shelf.items.values().filter(|item| item.waits()).count() as u64;
            let rejected = shelf.items.len() as u64 - waiting;
            LaneListed { id, lane: shelf.lane.clone(), waiting, rejected, hold: shelf.hold(now_ms) }
        });
        Ok(listed.collect())
    }

    fn stranded(&self) -> Result<Vec<Stranded>, StoreError> {
        let contents = self.open()?;
        let mut counted = Vec::new();
        for shelf in &contents.shelves {
            let waiting = shelf.items.iter().filter(|(_, item)| item.status == MessageStatus::Failed);
            let creates: Vec<i64> =
                waiting.filter_map(|(place, item)| shelf.refused_create(&item.message.touches, *place)).collect();
            let Some(create) = creates.first() else { continue };
            let status = contents.by_id()[create].status;
            let (lane, messages) = (shelf.lane.clone(), creates.len() as u64);
            counted.push(Stranded { lane, messages, create: MessageId(*create), status });
        }
        Ok(counted)
    }

    fn newest(&self) -> Result<MessageId, StoreError> {
        Ok(MessageId(self.open()?.last_id))
    }

    fn standing(&self, whose: &Whose, up_to: MessageId) -> Result<Standing, StoreError> {
        let mut contents = self.open()?;
        let mut standing = Standing::default();
        for lane in contents.lanes_of(whose) {
            for ((rank, id), item) in &contents.at(lane).items {
                standing.rejected += u64::from(item.status == MessageStatus::Rejected);
                standing.waiting += u64::from(item.waits());
                standing.waits |= item.waits() && (*id <= up_to.0 || *rank <= 2 * up_to.0 + 1);
            }
        }
        Ok(standing)
    }

    fn condition(&self) -> Result<Condition, StoreError> {
        let contents = self.open()?;
        let now_ms = now_ms();
        let mut held = Vec::new();
        for shelf in &contents.shelves {
            let waits = shelf.items.values().any(Item::waits);
            let hold = shelf.hold(now_ms).filter(|hold| hold.until_ms > now_ms || waits);
            held.extend(hold.into_iter().chain(shelf.limits(now_ms)).map(|hold| (shelf.lane.clone(), hold)));
        }
        Ok(Condition {
            file_bytes: contents.by_id().values().map(|item| item.bytes()).sum(),
            room_bytes: u64::MAX,
            full_record: contents.full,
            replay_hold: contents.replay_hold.clone(),
            lease: contents.holder().cloned(),
            agents: contents.agents.clone(),
            last_replay: contents.last_replay.clone(),
            held,
            expired: contents.expired,
            adoptions: contents.adoptions.clone(),
            ..Condition::default()
        })
    }

    fn check(&self) -> Result<Vec<String>, StoreError> {
        let contents = self.open()?;
        let misplaced = contents.shelves.iter().flat_map(|shelf| {
            let is_elsewhere = |item: &Item| item.message.lane != shelf.lane;
            shelf.items.iter().filter(move |(_, item)| is_elsewhere(item)).map(|((_, id), _)| *id)
        });
        Ok(misplaced.map(|id| format!("message {id} is not in its lane")).collect())
    }
}

impl Maintain for MemoryStore {
    fn adopt(&self, server: &Server) -> Result<u64, StoreError> {
        let mut contents = self.open()?;
        let mut adopted = 0;
        for number in 0..contents.shelves.len() {
            let from = &mut contents.shelves[number];
            if from.lane.server.is_some() {
                continue;
            }
            from.hold = None;
            from.limits.clear();
            let to = Lane { server: Some(server.clone()), ..from.lane.clone() };
            let mut items = std::mem::take(&mut from.items);
            adopted += items.len() as u64;
            items.values_mut().for_each(|item| item.message.lane = to.clone());
            if !items.is_empty() {
                contents.shelf(&to).items.extend(items);
            }
        }
        if adopted > 0 {
            contents.adoptions.push(AdoptionRecord { at_ms: now_ms(), server: server.clone(), messages: adopted });
        }
        Ok(adopted)
    }

    fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> Result<u64, StoreError> {
        let mut contents = self.leased(lease)?;
        contents.shelf(to);
        if contents.at(from).lane == *to {
            return Ok(0);
        }
        let movable = contents.at(from).items.iter().filter(|(_, item)| item.status != MessageStatus::Registered);
        let mut movable: Vec<Place> = movable.map(|(place, _)| *place).collect();
        movable.sort_by_key(|(_, id)| *id);
        movable.truncate(limit);
        for place in &movable {
            let mut item = contents.at(from).items.remove(place).expect("it was found");
            item.message.lane = to.clone();
            item.next_attempt_at_ms = 0;
            contents.shelf(to).items.insert(*place, item);
        }
        Ok(movable.len() as u64)
    }

    fn purge(&self, filter: &Filter, limit: usize) -> Result<Purged, StoreError> {
        let mut contents = self.open()?;
        contents.shipped.refuse_outstanding()?;
        let is_replayed = contents.holder().is_some();
        let items = contents.by_id();
        let is_spared = |item: &Item| item.status == MessageStatus::Registered && is_replayed;
        let selected = items.iter().filter(|(id, item)| !is_spared(item) && item.is_selected(**id, filter)).take(limit);
        let (mut purged, mut ids) = (Purged::default(), HashSet::new());
        for (id, item) in selected {
            ids.insert(*id);
            purged.messages += 1;
            purged.items += u64::from(item.message.items);
            purged.body_bytes += item.bytes();
        }
        contents.delete(&ids);
        Ok(purged)
    }

    fn expire(&self, accepted_before_ms: i64, limit: usize) -> Result<u64, StoreError> {
        let mut contents = self.open()?;
        let items = contents.by_id();
        let oldest = items.iter().filter(|(_, item)| item.status != MessageStatus::Registered).take(limit);
        let old = oldest.filter(|(_, item)| item.message.accepted_at_ms < accepted_before_ms);
        let old: HashSet<i64> = old.map(|(id, _)| *id).collect();
        if !old.is_empty() {
            contents.shipped.refuse_outstanding()?;
        }
        contents.delete(&old);
        contents.expired += old.len() as u64;
        Ok(old.len() as u64)
    }

    fn requeue(&self, filter: &Filter) -> Result<u64, StoreError> {
        let mut contents = self.open()?;
        let refused =
            contents.items_mut().filter(|(id, item)| item.status.is_refused() && item.is_selected(*id, filter));
        let sendable = refused.filter(|(_, item)| !item.message.request.method.is_empty());
        Ok(sendable.map(|(_, item)| item.retry()).count() as u64)
    }

    fn erase_credentials(&self) -> Result<bool, StoreError> {
        let mut contents = self.open()?;
        for shelf in contents.shelves.iter_mut().filter(|shelf| shelf.items.is_empty()) {
            shelf.hold.take_if(|held| held.hold.until_ms <= now_ms());
        }
        Ok(true)
    }

    fn compact(&self) -> Result<u64, StoreError> {
        self.erase_credentials()?;
        Ok(self.condition()?.file_bytes)
    }

    fn keep_room(&self) -> Result<(), StoreError> {
        // Memory has no disk that could be full.
        self.open().map(drop)
    }

    fn announce(&self, agent: Option<&AgentRecord>) -> Result<(), StoreError> {
        let mut contents = self.open()?;
        let pid = agent.map_or(std::process::id(), |agent| agent.pid);
        let is_other = |known: &AgentRecord| known.pid != pid && agent.is_none_or(|it| it.listen != known.listen);
        contents.agents.retain(is_other);
        contents.agents.extend(agent.cloned());
        Ok(())
    }

    fn note_replay(&self, record: &ReplayRecord) -> Result<(), StoreError> {
        self.open()?.last_replay = Some(record.clone());
        Ok(())
    }

    fn has_to_be_reopened(&self) -> bool {
        // It was opened without a full disk.
        false
    }

    fn close(&self) {
        self.lock().is_closed = true;
    }
}

impl Holdable for MemoryStore {
    fn set_replay_hold(&self, hold: Option<&ReplayHold>) -> Result<(), StoreError> {
        self.open()?.replay_hold = hold.cloned();
        Ok(())
    }

    fn replay_hold(&self) -> Result<Option<ReplayHold>, StoreError> {
        Ok(self.open()?.replay_hold.clone())
    }
}

impl Shipped for MemoryStore {
    fn makes_marks(&self) {
        self.lock().shipped.makes_marks();
    }

    fn streams(&self) -> Result<Vec<StreamRecord>, StoreError> {
        Ok(self.open()?.shipped.streams())
    }

    fn note_stream(&self, record: &StreamRecord) -> Result<(), StoreError> {
        self.open()?.shipped.note_stream(record);
        Ok(())
    }

    fn end_stream(&self, stream: Uuid) -> Result<(), StoreError> {
        self.open()?.shipped.end_stream(stream);
        Ok(())
    }

    fn begin_bundle(&self, stream: Uuid, limits: ClaimLimits) -> Result<Vec<MessageId>, StoreError> {
        let mut contents = self.open()?;
        let stored = contents.stored();
        Ok(contents.shipped.begin_bundle(stream, &stored, limits))
    }

    fn confirm_bundle(&self, stream: Uuid, next_bundle: u32) -> Result<(), StoreError> {
        let mut contents = self.open()?;
        let stored = contents.stored();
        contents.shipped.confirm_bundle(stream, next_bundle, &stored);
        Ok(())
    }

    fn withdraw_bundle(&self, stream: Uuid) -> Result<(), StoreError> {
        self.open()?.shipped.withdraw_bundle(stream);
        Ok(())
    }

    fn outstanding(&self, ids: &[MessageId]) -> Result<Vec<ShippedMessage>, StoreError> {
        Ok(self.open()?.shipped.outstanding(ids))
    }

    fn outstanding_and_gone(&self, limit: usize) -> Result<Vec<ShippedMessage>, StoreError> {
        let contents = self.open()?;
        Ok(contents.shipped.outstanding_and_gone(&contents.stored(), limit))
    }

    fn note_marked(&self, ids: &[MessageId]) -> Result<(), StoreError> {
        self.open()?.shipped.note_marked(ids);
        Ok(())
    }

    fn unshipped(&self) -> Result<UnshippedCount, StoreError> {
        let contents = self.open()?;
        Ok(contents.shipped.unshipped(&contents.stored()))
    }

    fn hand_over(&self, stream: Uuid) -> Result<Vec<MessageId>, StoreError> {
        Ok(self.open()?.shipped.hand_over(stream))
    }
}
