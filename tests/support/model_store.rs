//! The store's promises in memory, written to be obviously right: the oracle for the engines, and a fast double for
//! tests of the store's callers. It keeps everything in one list and scans it for every answer.

#![allow(dead_code, reason = "every test binary uses its own part of it")]

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opik_offline::message::{
    Attachment, Bucket, Buckets, Effect, EntityKey, Lane, Message, MessageId, MessageStatus, MessageType, Server,
    Sha256, Touch, Way, conflict,
};
use opik_offline::store::attachment::PIECE_BYTES;
use opik_offline::store::{
    AdoptionRecord, AgentRecord, Ahead, AttachmentId, Attachments, Backlog, BacklogGroup, BacklogSeen, Browse, Claim,
    ClaimLimits, Claimed, Condition, Filter, FullRecord, Hold, Holdable, Intake, LaneId, LaneListed, LanePage,
    LaneRange, LaneWork, LastAnswer, Lease, Listed, Maintain, Outcome, Owner, Page, Purged, Replay, ReplayHold,
    ReplayRecord, SalvagedRow, Shipped, ShippedMessage, Standing, StoreError, StoreIdentity, StoredMessage, Stranded,
    StreamRecord, UnshippedCount, WaitEnd, Whose,
};
use uuid::Uuid;

use crate::shipped_book::{ShippedBook, Stored};

const HOUR_MS: i64 = 60 * 60 * 1000;

/// Asked before every registration, so that a test can make it slow or let it fail.
pub(crate) type BeforeRegister = Box<dyn Fn(&[Message]) -> Result<(), StoreError> + Send + Sync>;

/// Messages in memory.
pub(crate) struct ModelStore {
    identity: StoreIdentity,
    state: Mutex<State>,
    before_register: Option<BeforeRegister>,
}

impl Default for ModelStore {
    fn default() -> Self {
        let identity = StoreIdentity::of(uuid::Uuid::now_v7().as_bytes());
        Self { identity, state: Mutex::default(), before_register: None }
    }
}

/// How a message may be sent, and what was updated before it was created.
type Admitted = (Way, Vec<EntityKey>, bool);

/// A hold, whether something passed since, and when it was made.
type Held = (Hold, bool, i64);

#[derive(Default)]
struct State {
    next_id: i64,
    messages: Vec<Record>,
    /// Uploads that have no message yet.
    uploads: BTreeMap<AttachmentId, Vec<u8>>,
    uploads_count: i64,
    salvaged: HashSet<Sha256>,
    lanes: Vec<(Lane, Option<Held>)>,
    /// The limits of lanes, each with when it was made.
    limits: BTreeMap<(LaneId, Bucket), (Hold, i64)>,
    /// Traces and spans of which an update reached the server before their create.
    updated_ahead: HashSet<(i64, EntityKey)>,
    unsure_before_ms: i64,
    /// Those whose create was seen confirmed.
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

#[derive(Clone)]
struct Record {
    id: i64,
    position: i64,
    lane: LaneId,
    status: MessageStatus,
    message: Message,
    attempts: u32,
    next_attempt_at_ms: i64,
    /// Of the lease under which it was claimed, until it is settled; 0 when it never was.
    epoch: i64,
    answer: Option<LastAnswer>,
    file: Option<(Attachment, Vec<u8>)>,
}

impl Record {
    fn bytes(&self) -> u64 {
        let file = self.file.as_ref().map_or(0, |(_, bytes)| bytes.len());
        (self.message.request.body.bytes.len() + file) as u64
    }

    fn is_waiting(&self) -> bool {
        self.status == MessageStatus::Failed
    }

    fn still_has_to_go(&self) -> bool {
        self.status.is_on_its_way()
    }

    fn does(&self, effect: Effect, entity: &EntityKey) -> bool {
        self.message.touches.iter().any(|touch| touch.effect == effect && touch.key == *entity)
    }

    fn changes_only_one_entity(&self) -> bool {
        self.message.touches.iter().filter(|touch| touch.effect != Effect::Refer).count() == 1
    }

    fn due_at_ms(&self, now_ms: i64) -> i64 {
        if self.next_attempt_at_ms - now_ms > HOUR_MS { now_ms } else { self.next_attempt_at_ms }
    }

    fn is_selected(&self, filter: &Filter) -> bool {
        fn any<T: PartialEq>(wanted: &[T], is: &T) -> bool {
            wanted.is_empty() || wanted.contains(is)
        }
        any(&filter.statuses, &self.status)
            && any(&filter.types, &self.message.message_type)
            && any(&filter.workspaces, &self.message.lane.workspace_name().to_owned())
            && (filter.servers.is_empty()
                || self.message.lane.server.as_ref().is_some_and(|server| filter.servers.contains(server)))
            && (filter.projects.is_empty()
                || self.message.project.as_ref().is_some_and(|project| filter.projects.contains(project)))
            && any(&filter.ids, &MessageId(self.id))
            && (filter.entities.is_empty()
                || self.message.touches.iter().any(|touch| filter.entities.contains(&touch.key)))
            && filter.accepted_before_ms.is_none_or(|before| self.message.accepted_at_ms < before)
            && filter.accepted_since_ms.is_none_or(|since| self.message.accepted_at_ms >= since)
    }

    fn listed(&self) -> Listed {
        Listed {
            id: MessageId(self.id),
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

impl State {
    fn lane(&mut self, lane: &Lane) -> LaneId {
        let place = self.lanes.iter().position(|(known, _)| known == lane).unwrap_or_else(|| {
            self.lanes.push((lane.clone(), None));
            self.lanes.len() - 1
        });
        LaneId(place as i64 + 1)
    }

    /// The lanes that are meant, whether anything is in them or not.
    fn lanes_of(&self, whose: &Whose) -> Vec<LaneId> {
        let is_meant = |lane: &Lane| match whose {
            Whose::Lane(of) => lane == of,
            Whose::Server(server) => lane.server.as_ref() == Some(server),
        };
        let lanes = self.lanes.iter().enumerate().filter(|(_, (lane, _))| is_meant(lane));
        lanes.map(|(place, _)| LaneId(place as i64 + 1)).collect()
    }

    fn move_early_updates(&mut self, create: &Record) {
        for touch in create.message.touches.iter().filter(|touch| touch.effect == Effect::Create) {
            let here = |record: &&Record| record.lane == create.lane && record.id != create.id;
            let first_create = self
                .messages
                .iter()
                .filter(here)
                .filter(|record| record.still_has_to_go() && record.does(Effect::Create, &touch.key))
                .map(|record| record.position)
                .min()
                .unwrap_or(i64::MAX);
            let early: Vec<i64> = self
                .messages
                .iter()
                .filter(here)
                .filter(|record| record.is_waiting() && record.does(Effect::Update, &touch.key))
                .filter(|record| record.position < first_create)
                .map(|record| record.id)
                .collect();
            let is_ended = |record: &Record| record.still_has_to_go() && record.does(Effect::End, &touch.key);
            if self.messages.iter().filter(here).any(is_ended) {
                continue;
            }
            let is_early = |record: &Record| early.contains(&record.id);
            if self.messages.iter().filter(|record| is_early(record)).all(Record::changes_only_one_entity) {
                for record in self.messages.iter_mut().filter(|record| early.contains(&record.id)) {
                    record.position = create.position + 1;
                }
            }
        }
    }

    /// The first refused message of the lane, before this place in its order, that makes one of these entities.
    fn refused_create(&self, lane: LaneId, touches: &[Touch], before: (i64, i64)) -> Option<i64> {
        let here = self.messages.iter().filter(|record| record.lane == lane && record.status.is_refused());
        let earlier = here.filter(|record| (record.position, record.id) < before);
        let makes = |record: &&Record| {
            let keys = touches.iter().map(|touch| touch.key).filter(EntityKey::can_strand);
            keys.into_iter().any(|key| record.does(Effect::Create, &key))
        };
        earlier.filter(makes).map(|record| record.id).min()
    }

    /// The refused create for which a message waits: of all that it touches but what it makes itself.
    fn stranding_create(&self, lane: LaneId, touches: &[Touch], before: (i64, i64)) -> Option<i64> {
        let depending: Vec<Touch> = touches.iter().copied().filter(Touch::can_be_stranded).collect();
        self.refused_create(lane, &depending, before)
    }

    /// The lane's failed messages that the filter selects, in delivery order, each with whether it may be claimed.
    fn queue(&self, lane: LaneId, filter: &Filter, now_ms: i64) -> Vec<(Record, Result<Admitted, Option<i64>>)> {
        let here = |record: &&Record| record.lane == lane;
        let is_created_in_flight = |key: EntityKey| {
            self.messages.iter().filter(here).any(|record| {
                let creates = |touch: &Touch| touch.key == key && touch.effect == Effect::Create;
                record.status == MessageStatus::Registered && record.message.touches.iter().any(creates)
            })
        };
        let mut left: Vec<Record> = self
            .messages
            .iter()
            .filter(here)
            .filter(|record| record.status == MessageStatus::Registered)
            .cloned()
            .collect();
        let limits = self.limits_of(lane, now_ms);
        let limited: Buckets = limits.iter().filter_map(|limit| limit.bucket).collect();
        let (mut updated, mut created): (HashSet<EntityKey>, HashSet<EntityKey>) = Default::default();
        let mut waiting: Vec<Record> =
            self.messages.iter().filter(here).filter(|record| record.is_waiting()).cloned().collect();
        waiting.sort_by_key(|record| (record.position, record.id));
        waiting
            .into_iter()
            .filter_map(|record| {
                if !record.is_selected(filter) {
                    left.push(record);
                    return None;
                }
                let place = (record.position, record.id);
                let blocked = self.shipped.is_handed_over(record.id)
                    || left.iter().any(|earlier| conflict(&earlier.message.touches, &record.message.touches))
                    || self.stranding_create(lane, &record.message.touches, place).is_some()
                    || record.message.touches.iter().any(|t| t.can_be_stranded() && is_created_in_flight(t.key));
                let due_at_ms = record.due_at_ms(now_ms);
                let (message_type, touches) = (record.message.message_type, &record.message.touches);
                let mut ahead: Vec<EntityKey> = Vec::new();
                let mut is_unsure = false;
                if message_type.is_single_create() || message_type.is_batch_create() {
                    let made = touches.iter().filter(|touch| touch.effect == Effect::Create).map(|touch| touch.key);
                    let place = record.message.lane.place();
                    let is_noted =
                        |key: &EntityKey| updated.contains(key) || self.updated_ahead.contains(&(place, *key));
                    ahead.extend(made.filter(|key| is_noted(key) || self.is_unsure(place, *key)));
                    is_unsure = !ahead.is_empty() && !ahead.iter().any(is_noted);
                }
                let verdict = match (blocked, due_at_ms <= now_ms) {
                    (false, true) => match Way::of(message_type, !ahead.is_empty(), limited) {
                        Some(way) => Ok((way, ahead, is_unsure)),
                        None => Err(limits.iter().map(|limit| limit.until_ms).min()),
                    },
                    (true, _) => Err(None),
                    (false, false) => Err(Some(due_at_ms)),
                };
                if verdict.is_ok() {
                    let unseen = self.unseen(&record.message.lane, message_type, touches);
                    updated.extend(unseen.into_iter().filter(|key| !created.contains(key)));
                    for touch in touches.iter().filter(|touch| touch.effect == Effect::Create) {
                        if !message_type.makes_partial_rows() {
                            updated.remove(&touch.key);
                            created.insert(touch.key);
                        }
                    }
                }
                if verdict.is_err() {
                    left.push(record.clone());
                }
                Some((record, verdict))
            })
            .collect()
    }

    /// The fields of all messages that copies depend on.
    fn stored(&self) -> Vec<Stored> {
        let stored = self.messages.iter().map(|record| Stored {
            id: record.id,
            position: record.position,
            status: record.status,
            body_bytes: record.bytes(),
            accepted_at_ms: record.message.accepted_at_ms,
        });
        stored.collect()
    }

    fn limits_of(&self, lane: LaneId, now_ms: i64) -> Vec<Hold> {
        let here = self.limits.range((lane, Bucket::Single)..=(lane, Bucket::Other));
        let in_force = |(hold, at): &&(Hold, i64)| hold.until_ms > now_ms && at - now_ms <= 60 * 1000;
        here.map(|(_, limit)| limit).filter(in_force).map(|(hold, _)| hold.clone()).collect()
    }

    fn limit(&mut self, lane: LaneId, bucket: Bucket, hold: &Hold) {
        let now_ms = opik_offline::store::now_ms();
        let known = self.limits_of(lane, now_ms).into_iter().find(|limit| limit.bucket == Some(bucket));
        if known.is_none_or(|known| known.until_ms < hold.until_ms) {
            self.limits.insert((lane, bucket), (hold.clone(), now_ms));
        }
    }

    fn is_unsure(&self, place: i64, key: EntityKey) -> bool {
        key.made_at_ms().is_some_and(|at| at < self.unsure_before_ms) && !self.created.contains(&(place, key))
    }

    fn unseen(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey> {
        let is_update = |touch: &&Touch| touch.effect == Effect::Update && touch.key.is_trace_or_span();
        let keys = touches.iter().filter(is_update).map(|touch| touch.key);
        let is_unseen = |key: &EntityKey| !self.created.contains(&(lane.place(), *key));
        if message_type.makes_partial_rows() { keys.filter(is_unseen).collect() } else { Vec::new() }
    }

    fn confirmed(&mut self, lane: &Lane, touches: &[Touch], is_batch: bool) {
        for touch in touches.iter().filter(|touch| touch.key.is_trace_or_span()) {
            let entity = (lane.place(), touch.key);
            match touch.effect {
                Effect::Create => drop(self.created.insert(entity)),
                Effect::End => drop(self.created.remove(&entity)),
                Effect::Update | Effect::Annotate | Effect::Refer => continue,
            }
            if !is_batch {
                self.updated_ahead.remove(&entity);
            }
        }
    }

    /// Takes in what of a message was delivered, or may have been.
    fn delivered(&mut self, lane: &Lane, message_type: MessageType, touches: &[Touch], for_certain: bool) {
        let unseen = self.unseen(lane, message_type, touches);
        self.updated_ahead.extend(unseen.into_iter().map(|key| (lane.place(), key)));
        if for_certain {
            self.confirmed(lane, touches, false);
        }
    }

    fn hold_of(&self, lane: LaneId, now_ms: i64) -> Option<Hold> {
        let (hold, passed, held_at_ms) = self.lanes[lane.0 as usize - 1].1.clone()?;
        // A hold that begins in the future was made before the clock was set back.
        let until_ms = if held_at_ms - now_ms > 60 * 1000 { now_ms } else { hold.until_ms };
        (until_ms > now_ms || !passed).then_some(Hold { until_ms, ..hold })
    }

    fn bytes(&self) -> u64 {
        self.messages.iter().map(Record::bytes).sum()
    }

    fn verify(&self, lease: &Lease) -> Result<(), StoreError> {
        match &self.lease {
            Some((current, _)) if current == lease => Ok(()),
            _ => Err(StoreError::LeaseLost),
        }
    }

    fn holder(&self) -> Option<Owner> {
        self.lease.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(lease, _)| lease.owner.clone())
    }
}

impl ModelStore {
    /// Returns a store that asks this before every registration.
    pub(crate) fn with_register(before_register: BeforeRegister) -> Self {
        Self { before_register: Some(before_register), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test continues after a panic in here")
    }

    /// Returns what is stored, or why it can't be used: it was closed.
    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.lock();
        match state.is_closed {
            true => Err(StoreError::Unproven { at: "memory".into(), reason: "it was closed".into() }),
            false => Ok(state),
        }
    }
}

impl Intake for ModelStore {
    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError> {
        if let Some(before_register) = &self.before_register {
            before_register(messages)?;
        }
        let mut state = self.state()?;
        let mut ids = Vec::new();
        for message in messages {
            state.next_id += 1;
            let id = state.next_id;
            let record = Record {
                id,
                position: 2 * id,
                lane: state.lane(&message.lane),
                status: MessageStatus::Failed,
                message: message.clone(),
                attempts: 0,
                next_attempt_at_ms: 0,
                epoch: 0,
                answer: None,
                file: None,
            };
            state.move_early_updates(&record);
            state.messages.push(record);
            ids.push(MessageId(id));
        }
        Ok(ids)
    }

    fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Result<Ahead, StoreError> {
        let state = self.state()?;
        let ahead: Vec<_> = state.messages.iter().filter(|r| r.message.lane == *lane && r.still_has_to_go()).collect();
        let lane_id = state.lanes.iter().position(|(known, _)| known == lane).map(|place| LaneId(place as i64 + 1));
        let stranded = lane_id.is_some_and(|id| state.stranding_create(id, touches, (i64::MAX, i64::MAX)).is_some());
        let Some(first) = ahead.first() else { return Ok(Ahead { conflicting: stranded, ..Ahead::default() }) };
        let held = !touches.is_empty() && state.hold_of(first.lane, opik_offline::store::now_ms()).is_some();
        let conflicting = stranded
            || touches.len() > Ahead::TOUCHES_MAX
            || touches.iter().any(|touch| touch.effect == Effect::End)
            || ahead.iter().any(|record| conflict(&record.message.touches, touches));
        let limited = match touches {
            [] => Vec::new(),
            _ => state.limits_of(first.lane, opik_offline::store::now_ms()),
        };
        let limited = limited.iter().filter_map(|limit| limit.bucket).collect();
        Ok(Ahead { messages: ahead.len() as u64, conflicting, held, limited })
    }

    fn is_clear(&self, lane: &Lane) -> Result<bool, StoreError> {
        Ok(self.state()?.messages.iter().all(|record| record.message.lane != *lane))
    }

    fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> Result<BacklogSeen, StoreError> {
        let state = self.state()?;
        let is_maybe_its = |record: &&Record| record.message.lane.server.as_ref().is_none_or(|of| of == server);
        let stored: Vec<&Record> = state.messages.iter().filter(is_maybe_its).collect();
        if stored.is_empty() {
            return Ok(BacklogSeen::Empty);
        }
        let waiting: Vec<&Record> = stored.iter().copied().filter(|record| record.still_has_to_go()).collect();
        let is_stranded = |touch: &Touch| {
            let strands = |record: &&Record| record.status.is_refused() && record.does(Effect::Create, &touch.key);
            touch.can_be_stranded() && stored.iter().any(strands)
        };
        let any_may_conflict = touches.is_empty()
            || touches.len() > Ahead::TOUCHES_MAX
            || touches.iter().any(|touch| touch.effect == Effect::End)
            || waiting.iter().any(|record| conflict(&record.message.touches, touches));
        let conflicting = !waiting.is_empty() && any_may_conflict || touches.iter().any(is_stranded);
        Ok(BacklogSeen::Holds { waiting: !waiting.is_empty(), conflicting })
    }

    fn limit(&self, lane: &Lane, hold: &Hold) -> Result<(), StoreError> {
        let mut state = self.state()?;
        let id = state.lane(lane);
        if let Some(bucket) = hold.bucket {
            state.limit(id, bucket, hold);
            return Ok(());
        }
        if state.hold_of(id, opik_offline::store::now_ms()).is_none_or(|held| held.until_ms < hold.until_ms) {
            state.lanes[id.0 as usize - 1].1 = Some((hold.clone(), false, opik_offline::store::now_ms()));
        }
        Ok(())
    }

    fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey> {
        self.lock().unseen(lane, message_type, touches)
    }

    fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)], unsure_before_ms: i64) -> Result<(), StoreError> {
        let mut state = self.state()?;
        state.updated_ahead.extend(updates.iter().map(|(lane, entity)| (lane.place(), *entity)));
        state.unsure_before_ms = state.unsure_before_ms.max(unsure_before_ms);
        Ok(())
    }

    fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Result<(), StoreError> {
        self.state()?.confirmed(lane, touches, message_type.is_batch_create());
        Ok(())
    }

    fn hasten(&self, whose: &Whose) -> Result<(), StoreError> {
        let mut state = self.state()?;
        let now_ms = opik_offline::store::now_ms();
        for lane in state.lanes_of(whose) {
            if let Some((hold, ..)) = state.lanes[lane.0 as usize - 1].1.as_mut().filter(|(hold, ..)| hold.probe) {
                hold.until_ms = hold.until_ms.min(now_ms);
            }
            for record in state.messages.iter_mut().filter(|record| record.lane == lane && record.is_waiting()) {
                record.next_attempt_at_ms = 0;
            }
        }
        Ok(())
    }

    fn salvage(&self, rows: &[SalvagedRow]) -> Result<Vec<Option<MessageId>>, StoreError> {
        let mut ids = Vec::new();
        for row in rows {
            if !self.state()?.salvaged.insert(row.row) {
                ids.push(None);
                continue;
            }
            let id = match &row.file {
                Some((attachment, file)) => self.register_attachment(*attachment, file, &row.message)?,
                None => self.register(std::slice::from_ref(&row.message))?[0],
            };
            let (status, answer) = row.status();
            let mut state = self.state()?;
            let record = state.messages.iter_mut().find(|record| record.id == id.0).expect("it was registered");
            (record.status, record.answer) = (status, answer.cloned());
            // Of a lease before any.
            record.epoch = i64::from(row.was_in_flight && status == MessageStatus::Failed);
            drop(state);
            ids.push(Some(id));
        }
        Ok(ids)
    }

    fn is_salvaged(&self, row: &Sha256) -> Result<bool, StoreError> {
        Ok(self.state()?.salvaged.contains(row))
    }

    fn note_full(&self, since_ms: Option<i64>, refused: u64) -> Result<(), StoreError> {
        let mut state = self.state()?;
        state.full = FullRecord { since_ms, refused: state.full.refused + refused };
        Ok(())
    }
}

impl Attachments for ModelStore {
    fn begin_attachment(&self, _bytes_expected: Option<u64>) -> Result<AttachmentId, StoreError> {
        let mut state = self.state()?;
        state.uploads_count += 1;
        let id = AttachmentId(state.uploads_count);
        state.uploads.insert(id, Vec::new());
        Ok(id)
    }

    fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> Result<(), StoreError> {
        let mut state = self.state()?;
        let bytes = state.uploads.get_mut(&attachment).ok_or(StoreError::AttachmentGone)?;
        if bytes.len() != number as usize * PIECE_BYTES {
            return Err(StoreError::AttachmentGone);
        }
        bytes.extend_from_slice(piece);
        Ok(())
    }

    fn register_attachment(
        &self,
        attachment: AttachmentId,
        file: &Attachment,
        message: &Message,
    ) -> Result<MessageId, StoreError> {
        let whole = self.state()?.uploads.get(&attachment).map(Vec::len);
        if whole != usize::try_from(file.bytes).ok() {
            return Err(StoreError::AttachmentGone);
        }
        let id = self.register(std::slice::from_ref(message))?[0];
        let mut state = self.state()?;
        let bytes = state.uploads.remove(&attachment).expect("looked at above");
        let record = state.messages.iter_mut().find(|record| record.id == id.0).expect("registered above");
        record.file = Some((*file, bytes));
        Ok(id)
    }

    fn abandon_attachment(&self, attachment: AttachmentId) -> Result<(), StoreError> {
        self.state()?.uploads.remove(&attachment);
        Ok(())
    }

    fn attachment(&self, message: MessageId) -> Result<Option<Attachment>, StoreError> {
        let state = self.state()?;
        let record = state.messages.iter().find(|record| record.id == message.0);
        Ok(record.and_then(|record| record.file.as_ref()).map(|(file, _)| *file))
    }

    fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let state = self.state()?;
        let record = state.messages.iter().find(|record| record.id == message.0);
        let Some((_, bytes)) = record.and_then(|record| record.file.as_ref()) else { return Ok(None) };
        Ok(bytes.chunks(PIECE_BYTES).nth(number as usize).map(<[u8]>::to_vec))
    }
}

impl Replay for ModelStore {
    fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Result<Lease, StoreError> {
        let mut state = self.state()?;
        state.shipped.refuse_outstanding()?;
        if let Some(holder) = state.holder().filter(|holder| holder != owner) {
            return Err(StoreError::LeaseHeld { owner: holder });
        }
        state.epoch += 1;
        let lease = Lease { owner: owner.clone(), epoch: state.epoch };
        state.lease = Some((lease.clone(), Instant::now() + time_to_live));
        Ok(lease)
    }

    fn renew(&self, lease: &Lease, time_to_live: Duration) -> Result<(), StoreError> {
        let mut state = self.state()?;
        state.verify(lease)?;
        state.lease = Some((lease.clone(), Instant::now() + time_to_live));
        Ok(())
    }

    fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut state = self.state()?;
        if state.verify(lease).is_ok() {
            state.lease = None;
        }
        Ok(())
    }

    fn return_in_flight(&self, lease: &Lease) -> Result<u64, StoreError> {
        let mut state = self.state()?;
        state.verify(lease)?;
        let mut returned = 0;
        let is_left = |r: &&Record| r.status == MessageStatus::Registered && r.epoch < lease.epoch;
        let left: Vec<Message> = state.messages.iter().filter(is_left).map(|r| r.message.clone()).collect();
        for message in left {
            state.delivered(&message.lane, message.message_type, &message.touches, false);
        }
        for record in &mut state.messages {
            if record.status == MessageStatus::Registered && record.epoch < lease.epoch {
                record.status = MessageStatus::Failed;
                returned += 1;
            }
        }
        Ok(returned)
    }

    fn interrupted(&self, lane: LaneId) -> Result<usize, StoreError> {
        let state = self.state()?;
        let mut waiting: Vec<&Record> =
            state.messages.iter().filter(|record| record.lane == lane && record.is_waiting()).collect();
        waiting.sort_by_key(|record| (record.position, record.id));
        Ok(waiting.iter().rposition(|record| record.epoch > 0).map_or(0, |last| last + 1))
    }

    fn make_due(&self, lease: &Lease, lanes: &[(LaneId, WaitEnd)], now_ms: i64) -> Result<(), StoreError> {
        let mut state = self.state()?;
        state.verify(lease)?;
        for (lane, end) in lanes {
            if let WaitEnd::Outage(Some(held)) = end
                && state.hold_of(*lane, now_ms).as_ref() == Some(held)
            {
                let ended = Hold { until_ms: now_ms, ..held.clone() };
                state.lanes[lane.0 as usize - 1].1 = Some((ended, false, opik_offline::store::now_ms()));
            }
            for record in state.messages.iter_mut().filter(|record| record.is_waiting()) {
                let is_deferred = record.lane == *lane && record.attempts == 0;
                let is_due = match end {
                    WaitEnd::Delivery(messages) => is_deferred || messages.contains(&MessageId(record.id)),
                    WaitEnd::Outage(_) => is_deferred && record.answer.as_ref().is_none_or(LastAnswer::is_unanswered),
                };
                if is_due {
                    record.next_attempt_at_ms = 0;
                }
            }
        }
        Ok(())
    }

    fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> Result<(), StoreError> {
        let mut state = self.state()?;
        state.verify(lease)?;
        if let Some((hold, bucket)) = hold.and_then(|hold| Some((hold, hold.bucket?))) {
            state.limit(lane, bucket, hold);
            return Ok(());
        }
        if let Some((_, held)) = state.lanes.get_mut(lane.0 as usize - 1) {
            *held = hold.map(|hold| (hold.clone(), false, opik_offline::store::now_ms()));
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
        let mut state = self.state()?;
        state.verify(lease)?;
        let mut bytes = 0;
        let mut claimed: Vec<Claimed> = Vec::new();
        for (record, verdict) in state.queue(lane, filter, now_ms) {
            let Ok((way, ahead, is_unsure)) = verdict else { continue };
            bytes += record.bytes();
            if claimed.len() >= limits.messages_max || (bytes > limits.bytes_max && !claimed.is_empty()) {
                break;
            }
            // A file is read as it is sent: it takes no memory.
            if record.message.message_type != MessageType::CreateAttachment && record.bytes() > limits.bytes_max {
                return Ok(Claim::TooLarge { bytes: record.bytes() });
            }
            claimed.push(Claimed {
                id: MessageId(record.id),
                message_type: record.message.message_type,
                request: record.message.request,
                touches: record.message.touches,
                items: record.message.items,
                attempts: record.attempts,
                ahead,
                is_unsure,
                way,
            });
        }
        for record in &mut state.messages {
            if claimed.iter().any(|message| message.id.0 == record.id) {
                record.status = MessageStatus::Registered;
                record.epoch = lease.epoch;
            }
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
                let queue = self.state()?.queue(*lane, filter, now_ms).into_iter();
                let sizes: Vec<u64> = queue.filter(|(_, verdict)| verdict.is_ok()).map(|(it, _)| it.bytes()).collect();
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
        let mut state = self.state()?;
        state.verify(lease)?;
        for (id, outcome) in outcomes {
            let in_flight =
                |r: &Record| r.id == id.0 && r.status == MessageStatus::Registered && r.epoch == lease.epoch;
            let Some(place) = state.messages.iter().position(in_flight) else { continue };
            state.messages[place].epoch = 0;
            let keep = |answer: &LastAnswer| Some(LastAnswer { text: answer.text_kept().to_owned(), ..answer.clone() });
            match outcome {
                Outcome::Delivered => {
                    let Record { lane, message, .. } = state.messages.remove(place);
                    state.delivered(&message.lane, message.message_type, &message.touches, true);
                    if let Some((_, passed, _)) = &mut state.lanes[lane.0 as usize - 1].1 {
                        *passed = true;
                    }
                }
                Outcome::Failed { next_attempt_at_ms, counts, answer } => {
                    if answer.as_ref().is_some_and(|answer| answer.status.is_none_or(|status| status >= 500)) {
                        let message = state.messages[place].message.clone();
                        state.delivered(&message.lane, message.message_type, &message.touches, false);
                    }
                    let record = &mut state.messages[place];
                    record.status = MessageStatus::Failed;
                    record.next_attempt_at_ms = *next_attempt_at_ms;
                    record.attempts += u32::from(*counts);
                    record.answer = answer.as_ref().map_or(record.answer.take(), keep);
                }
                Outcome::Rejected { answer } => {
                    let record = &mut state.messages[place];
                    record.status = MessageStatus::Rejected;
                    record.next_attempt_at_ms = 0;
                    record.attempts += 1;
                    record.answer = keep(answer);
                }
                Outcome::Held { answer } => {
                    let record = &mut state.messages[place];
                    record.status = MessageStatus::Held;
                    record.next_attempt_at_ms = 0;
                    record.answer = keep(answer);
                }
                Outcome::Divided { parts } => {
                    let whole = state.messages.remove(place);
                    let is_left =
                        |touch: &Touch| parts.iter().any(|part| part.touches.iter().any(|t| t.key == touch.key));
                    let done: Vec<Touch> = whole.message.touches.iter().filter(|t| !is_left(t)).copied().collect();
                    state.delivered(&whole.message.lane, whole.message.message_type, &done, true);
                    for part in parts {
                        state.next_id += 1;
                        let mut record = Record { id: state.next_id, file: None, ..whole.clone() };
                        record.message.request = part.request.clone();
                        record.message.touches = part.touches.clone();
                        record.message.items = part.items;
                        record.status = part.status().0;
                        record.attempts += u32::from(part.rejected.is_some());
                        record.next_attempt_at_ms = 0;
                        record.answer = part.status().1.and_then(keep);
                        if record.status != MessageStatus::Rejected {
                            state.shipped.divided(id.0, record.id);
                        }
                        state.messages.push(record);
                    }
                }
            }
        }
        state.shipped.settled(outcomes);
        Ok(())
    }

    fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, StoreError> {
        let mut state = self.state()?;
        state.verify(lease)?;
        let mut retried = Vec::new();
        for lane in (1..=state.lanes.len() as i64).map(LaneId) {
            let is_held = |record: &&Record| record.lane == lane && record.status == MessageStatus::Held;
            let at = |record: &Record| record.answer.as_ref().map(|answer| answer.at_ms);
            let held: Vec<&Record> = state.messages.iter().filter(is_held).collect();
            let Some(last) = held.iter().map(|record| at(record)).max() else { continue };
            if last.is_some_and(|last| last > answered_before_ms && last <= opik_offline::store::now_ms()) {
                continue;
            }
            let longest = held.into_iter().min_by_key(|record| (at(record), std::cmp::Reverse(record.id)));
            let Some(mut chosen) = longest else { continue };
            while let Some(earlier) = state.refused_create(lane, &chosen.message.touches, (chosen.position, chosen.id))
                && let Some(earlier) = state.messages.iter().find(|record| record.id == earlier)
                && earlier.status == MessageStatus::Held
            {
                chosen = earlier;
            }
            let id = chosen.id;
            for record in state.messages.iter_mut().filter(|record| record.id == id) {
                record.status = MessageStatus::Failed;
            }
            retried.push((lane, MessageId(id)));
        }
        Ok(retried)
    }

    fn release_held(&self, lease: &Lease, lane: LaneId) -> Result<u64, StoreError> {
        let mut state = self.state()?;
        state.verify(lease)?;
        let is_held = |record: &&mut Record| record.lane == lane && record.status == MessageStatus::Held;
        let mut released = 0;
        for record in state.messages.iter_mut().filter(is_held) {
            record.status = MessageStatus::Failed;
            record.attempts = 0;
            released += 1;
        }
        Ok(released)
    }
}

impl Browse for ModelStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn backlog(&self, filter: &Filter) -> Result<Backlog, StoreError> {
        let state = self.state()?;
        let selected: Vec<&Record> = state.messages.iter().filter(|record| record.is_selected(filter)).collect();
        let mut groups = BTreeMap::new();
        let mut answers: BTreeMap<Option<u16>, u64> = BTreeMap::new();
        // Per lane the first message that waits, and every message in flight.
        let mut oldest: Vec<i64> = Vec::new();
        let mut first: BTreeMap<LaneId, (i64, i64, i64)> = BTreeMap::new();
        for record in &selected {
            let listed = record.listed();
            let place = MessageStatus::STORED.iter().position(|status| *status == record.status);
            let workspace = listed.lane.workspace_name().to_owned();
            let key = (place, listed.message_type, workspace, listed.lane.server.clone());
            let group = groups.entry(key).or_insert_with(|| BacklogGroup {
                status: record.status,
                message_type: listed.message_type,
                workspace: listed.lane.workspace_name().to_owned(),
                server: listed.lane.server.clone(),
                messages: 0,
                items: 0,
                body_bytes: 0,
            });
            group.messages += 1;
            group.items += u64::from(listed.items);
            group.body_bytes += listed.body_bytes;
            match record.status {
                MessageStatus::Rejected => {
                    *answers.entry(record.answer.as_ref().and_then(|answer| answer.status)).or_default() += 1;
                }
                MessageStatus::Held => {}
                MessageStatus::Registered => oldest.push(listed.accepted_at_ms),
                MessageStatus::Failed | MessageStatus::Delivered => {
                    let at = (record.position, record.id, listed.accepted_at_ms);
                    let earliest = first.entry(record.lane).or_insert(at);
                    *earliest = at.min(*earliest);
                }
            }
        }
        oldest.extend(first.values().map(|(_, _, accepted_at_ms)| *accepted_at_ms));
        let mut rejected_by_answer: Vec<_> = answers.into_iter().collect();
        rejected_by_answer.sort_by_key(|(answer, messages)| (std::cmp::Reverse(*messages), *answer));
        Ok(Backlog {
            groups: groups.into_values().collect(),
            oldest_accepted_at_ms: oldest.into_iter().min(),
            rejected_by_answer,
        })
    }

    fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Listed>, StoreError> {
        let state = self.state()?;
        let mut listed: Vec<Listed> =
            state.messages.iter().filter(|record| record.is_selected(filter)).map(Record::listed).collect();
        if page.newest_first {
            listed.reverse();
        }
        listed.retain(|message| match page.after {
            Some(after) if page.newest_first => message.id < after,
            Some(after) => message.id > after,
            None => true,
        });
        listed.truncate(page.limit);
        Ok(listed)
    }

    fn whole(&self, ids: &[MessageId]) -> Result<Vec<StoredMessage>, StoreError> {
        let state = self.state()?;
        let stored = |id: &MessageId| {
            let record = state.messages.iter().find(|record| record.id == id.0)?;
            Some(StoredMessage {
                listed: record.listed(),
                request: record.message.request.clone(),
                touches: record.message.touches.clone(),
                position: record.position,
            })
        };
        Ok(ids.iter().filter_map(stored).collect())
    }

    fn lane_page(&self, filter: &Filter, range: LaneRange, now_ms: i64) -> Result<LanePage, StoreError> {
        Ok(LanePage::of(self.lanes(filter, now_ms)?, range))
    }

    fn lanes(&self, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, StoreError> {
        let state = self.state()?;
        let mut work = Vec::new();
        for (place, (lane, _)) in state.lanes.iter().enumerate() {
            let id = LaneId(place as i64 + 1);
            let queue = state.queue(id, filter, now_ms);
            let Some((first, _)) = queue.first() else { continue };
            let due_at_ms = if queue.iter().any(|(_, verdict)| verdict.is_ok()) {
                now_ms
            } else {
                queue
                    .iter()
                    .filter_map(|(_, verdict)| verdict.as_ref().err().copied().flatten())
                    .min()
                    .unwrap_or(i64::MAX)
            };
            let hold = state.hold_of(id, now_ms);
            let due_at_ms = due_at_ms.max(hold.as_ref().map_or(i64::MIN, |hold| hold.until_ms));
            let is_any_sent =
                state.messages.iter().any(|record| record.lane == id && record.status == MessageStatus::Registered);
            let is_late = queue.iter().all(|(_, verdict)| *verdict == Err(None)) && !is_any_sent;
            let stranded = |(record, _): &(Record, _)| {
                state.stranding_create(id, &record.message.touches, (record.position, record.id)).map(MessageId)
            };
            let waits_for = if is_late { queue.iter().find_map(stranded) } else { None };
            let limits = state.limits_of(id, now_ms);
            let (failed, lane) = (queue.len() as u64, lane.clone());
            let body_bytes = queue.iter().map(|(record, _)| record.bytes()).sum();
            let first = first.id;
            work.push((first, LaneWork { id, lane, failed, body_bytes, due_at_ms, hold, limits, waits_for }));
        }
        work.sort_by_key(|(first, _)| *first);
        Ok(work.into_iter().map(|(_, lane_work)| lane_work).collect())
    }

    fn lane_list(&self, now_ms: i64) -> Result<Vec<LaneListed>, StoreError> {
        let state = self.state()?;
        let mut listed = Vec::new();
        for (place, (lane, _)) in state.lanes.iter().enumerate() {
            let id = LaneId(place as i64 + 1);
            let count = |rejected| {
                let of = |record: &&Record| record.lane == id && record.still_has_to_go() != rejected;
                state.messages.iter().filter(of).count() as u64
            };
            let (waiting, rejected) = (count(false), count(true));
            if waiting + rejected > 0 {
                let hold = state.hold_of(id, now_ms);
                listed.push(LaneListed { id, lane: lane.clone(), waiting, rejected, hold });
            }
        }
        Ok(listed)
    }

    fn stranded(&self) -> Result<Vec<Stranded>, StoreError> {
        let state = self.state()?;
        let mut counted = Vec::new();
        for (place, (lane, _)) in state.lanes.iter().enumerate() {
            let id = LaneId(place as i64 + 1);
            let mut left: Vec<Record> = Vec::new();
            let mut waiting: Vec<&Record> =
                state.messages.iter().filter(|record| record.lane == id && record.is_waiting()).collect();
            waiting.sort_by_key(|record| (record.position, record.id));
            let mut first = None;
            for record in waiting {
                let create = state.stranding_create(id, &record.message.touches, (record.position, record.id));
                first = first.or(create);
                if create.is_some() {
                    left.push(record.clone());
                }
            }
            let Some(create) = first else { continue };
            let status = state.messages.iter().find(|record| record.id == create).map(|record| record.status);
            let status = status.unwrap_or(MessageStatus::Rejected);
            counted.push(Stranded {
                lane: lane.clone(),
                messages: left.len() as u64,
                create: MessageId(create),
                status,
            });
        }
        Ok(counted)
    }

    fn newest(&self) -> Result<MessageId, StoreError> {
        Ok(MessageId(self.state()?.next_id))
    }

    fn standing(&self, whose: &Whose, up_to: MessageId) -> Result<Standing, StoreError> {
        let state = self.state()?;
        let lanes = state.lanes_of(whose);
        let count = |of: &dyn Fn(&Record) -> bool| {
            state.messages.iter().filter(|record| lanes.contains(&record.lane) && of(record)).count() as u64
        };
        let was_accepted = |record: &Record| record.id <= up_to.0 || record.position <= 2 * up_to.0 + 1;
        let waiting = count(&|record| record.still_has_to_go());
        let rejected = count(&|record| record.status == MessageStatus::Rejected);
        let waits = count(&|record| record.still_has_to_go() && was_accepted(record)) > 0;
        Ok(Standing { waits, waiting, rejected })
    }

    fn condition(&self) -> Result<Condition, StoreError> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let state = self.state()?;
        let holds = (1..=state.lanes.len() as i64).map(LaneId);
        Ok(Condition {
            file_bytes: state.bytes(),
            full_record: state.full,
            replay_hold: state.replay_hold.clone(),
            room_bytes: u64::MAX,
            lease: state.holder(),
            agents: state.agents.clone(),
            last_replay: state.last_replay.clone(),
            held: holds
                .flat_map(|id| {
                    let lane = state.lanes[id.0 as usize - 1].0.clone();
                    let limits = state.limits_of(id, now_ms);
                    let waits = |r: &Record| r.lane == id && r.still_has_to_go();
                    let is_shown = |hold: &Hold| hold.until_ms > now_ms || state.messages.iter().any(waits);
                    let hold = state.hold_of(id, now_ms).filter(is_shown);
                    hold.into_iter().chain(limits).map(|hold| (lane.clone(), hold)).collect::<Vec<_>>()
                })
                .collect(),
            expired: state.expired,
            adoptions: state.adoptions.clone(),
            ..Condition::default()
        })
    }

    fn check(&self) -> Result<Vec<String>, StoreError> {
        let state = self.state()?;
        let mut problems = Vec::new();
        for (place, record) in state.messages.iter().enumerate() {
            if state.messages[..place].iter().any(|earlier| earlier.id == record.id) {
                problems.push(format!("two messages have the id {}", record.id));
            }
            if state.lanes.get(record.lane.0 as usize - 1).is_none_or(|(lane, _)| *lane != record.message.lane) {
                problems.push(format!("message {} is not in its lane", record.id));
            }
        }
        Ok(problems)
    }
}

impl Maintain for ModelStore {
    fn adopt(&self, server: &Server) -> Result<u64, StoreError> {
        let mut state = self.state()?;
        let mut adopted = 0;
        for place in 0..state.messages.len() {
            if state.messages[place].message.lane.server.is_none() {
                let lane = Lane { server: Some(server.clone()), ..state.messages[place].message.lane.clone() };
                let id = state.lane(&lane);
                state.messages[place].lane = id;
                state.messages[place].message.lane = lane;
                adopted += 1;
            }
        }
        // Nobody knows which server asked for a hold of what had no server.
        for place in 0..state.lanes.len() {
            if state.lanes[place].0.server.is_none() {
                state.lanes[place].1 = None;
                state.limits.retain(|(lane, _), _| *lane != LaneId(place as i64 + 1));
            }
        }
        if adopted > 0 {
            let at_ms = opik_offline::store::now_ms();
            state.adoptions.push(AdoptionRecord { at_ms, server: server.clone(), messages: adopted });
        }
        Ok(adopted)
    }

    fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> Result<u64, StoreError> {
        let mut state = self.state()?;
        state.verify(lease)?;
        let target = state.lane(to);
        if target == from {
            return Ok(0);
        }
        let movable = |record: &&mut Record| record.lane == from && record.status != MessageStatus::Registered;
        let mut moved = 0;
        for record in state.messages.iter_mut().filter(movable).take(limit) {
            record.lane = target;
            record.message.lane = to.clone();
            record.next_attempt_at_ms = 0;
            moved += 1;
        }
        Ok(moved)
    }

    fn purge(&self, filter: &Filter, limit: usize) -> Result<Purged, StoreError> {
        let mut state = self.state()?;
        state.shipped.refuse_outstanding()?;
        let nobody_replays = state.holder().is_none();
        let mut purged = Purged::default();
        state.messages.retain(|record| {
            let spared = record.status == MessageStatus::Registered && !nobody_replays;
            if spared || !record.is_selected(filter) || purged.messages as usize >= limit {
                return true;
            }
            let listed = record.listed();
            purged.messages += 1;
            purged.items += u64::from(listed.items);
            purged.body_bytes += listed.body_bytes;
            false
        });
        Ok(purged)
    }

    fn expire(&self, accepted_before_ms: i64, limit: usize) -> Result<u64, StoreError> {
        let mut state = self.state()?;
        let mut oldest: Vec<(i64, i64)> = state
            .messages
            .iter()
            .filter(|record| record.status != MessageStatus::Registered)
            .map(|record| (record.id, record.message.accepted_at_ms))
            .collect();
        oldest.sort_unstable();
        oldest.truncate(limit);
        oldest.retain(|(_, accepted_at_ms)| *accepted_at_ms < accepted_before_ms);
        if !oldest.is_empty() {
            state.shipped.refuse_outstanding()?;
        }
        state.messages.retain(|record| !oldest.iter().any(|(id, _)| *id == record.id));
        state.expired += oldest.len() as u64;
        Ok(oldest.len() as u64)
    }

    fn requeue(&self, filter: &Filter) -> Result<u64, StoreError> {
        let mut state = self.state()?;
        let mut requeued = 0;
        for record in &mut state.messages {
            if record.status.is_refused() && record.is_selected(filter) && !record.message.request.method.is_empty() {
                record.status = MessageStatus::Failed;
                record.attempts = 0;
                record.next_attempt_at_ms = 0;
                requeued += 1;
            }
        }
        Ok(requeued)
    }

    fn erase_credentials(&self) -> Result<bool, StoreError> {
        let mut state = self.state()?;
        let now_ms = opik_offline::store::now_ms();
        for place in 0..state.lanes.len() {
            let is_empty = state.messages.iter().all(|record| record.lane != LaneId(place as i64 + 1));
            state.lanes[place].1.take_if(|(hold, ..)| is_empty && hold.until_ms <= now_ms);
        }
        Ok(true)
    }

    fn compact(&self) -> Result<u64, StoreError> {
        self.erase_credentials()?;
        Ok(self.state()?.bytes())
    }

    fn keep_room(&self) -> Result<(), StoreError> {
        // Memory has no disk that could be full.
        self.state().map(drop)
    }

    fn announce(&self, agent: Option<&AgentRecord>) -> Result<(), StoreError> {
        let mut state = self.state()?;
        let pid = agent.map_or(std::process::id(), |agent| agent.pid);
        state.agents.retain(|known| known.pid != pid && agent.is_none_or(|agent| agent.listen != known.listen));
        state.agents.extend(agent.cloned());
        Ok(())
    }

    fn note_replay(&self, record: &ReplayRecord) -> Result<(), StoreError> {
        self.state()?.last_replay = Some(record.clone());
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

impl Holdable for ModelStore {
    fn set_replay_hold(&self, hold: Option<&ReplayHold>) -> Result<(), StoreError> {
        self.state()?.replay_hold = hold.cloned();
        Ok(())
    }

    fn replay_hold(&self) -> Result<Option<ReplayHold>, StoreError> {
        Ok(self.state()?.replay_hold.clone())
    }
}

impl Shipped for ModelStore {
    fn makes_marks(&self) {
        self.lock().shipped.makes_marks();
    }

    fn streams(&self) -> Result<Vec<StreamRecord>, StoreError> {
        Ok(self.state()?.shipped.streams())
    }

    fn note_stream(&self, record: &StreamRecord) -> Result<(), StoreError> {
        self.state()?.shipped.note_stream(record);
        Ok(())
    }

    fn end_stream(&self, stream: Uuid) -> Result<(), StoreError> {
        self.state()?.shipped.end_stream(stream);
        Ok(())
    }

    fn begin_bundle(&self, stream: Uuid, limits: ClaimLimits) -> Result<Vec<MessageId>, StoreError> {
        let mut state = self.state()?;
        let stored = state.stored();
        Ok(state.shipped.begin_bundle(stream, &stored, limits))
    }

    fn confirm_bundle(&self, stream: Uuid, next_bundle: u32) -> Result<(), StoreError> {
        let mut state = self.state()?;
        let stored = state.stored();
        state.shipped.confirm_bundle(stream, next_bundle, &stored);
        Ok(())
    }

    fn withdraw_bundle(&self, stream: Uuid) -> Result<(), StoreError> {
        self.state()?.shipped.withdraw_bundle(stream);
        Ok(())
    }

    fn outstanding(&self, ids: &[MessageId]) -> Result<Vec<ShippedMessage>, StoreError> {
        Ok(self.state()?.shipped.outstanding(ids))
    }

    fn outstanding_and_gone(&self, limit: usize) -> Result<Vec<ShippedMessage>, StoreError> {
        let state = self.state()?;
        Ok(state.shipped.outstanding_and_gone(&state.stored(), limit))
    }

    fn note_marked(&self, ids: &[MessageId]) -> Result<(), StoreError> {
        self.state()?.shipped.note_marked(ids);
        Ok(())
    }

    fn unshipped(&self) -> Result<UnshippedCount, StoreError> {
        let state = self.state()?;
        Ok(state.shipped.unshipped(&state.stored()))
    }

    fn hand_over(&self, stream: Uuid) -> Result<Vec<MessageId>, StoreError> {
        Ok(self.state()?.shipped.hand_over(stream))
    }
}
