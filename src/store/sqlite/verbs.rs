//! The verbs of [`SqliteStore`], trait by trait: each opens one transaction and hands it to the file of its subject.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tracing::debug;

use super::claim::{StoreFacts, WINDOW_MAX, WalkScope};
use super::fault::BUSY_TIMEOUT;
use super::fault::Fault;
use super::queries::SqlFilter;
use super::request_reader::RequestReader;
use super::seal::Sealer;
use super::settle::Settlement;
use super::store::{SqliteStore, lock};
use super::{
    ahead, attachments, browse, claim, connect, counters, erasure, guard, header_sets, hold, lease, queue_ahead,
    reassign, register, salvaged, schema, settle, shipped, space, standing, stranded, view,
};
use uuid::Uuid;

use crate::message::{Attachment, Claimed, EntityKey, Lane, Message, MessageId, MessageType, Server, Sha256, Touch};
use crate::store::clock::now_ms;
use crate::store::error::StoreError;
use crate::store::full_state::USUAL_BYTES;
use crate::store::identity::StoreIdentity;
use crate::store::limits::{Limits, WhenFull};
use crate::store::replay_hold::ReplayHold;
use crate::store::room;
use crate::store::stream::{ShippedMessage, StreamRecord, UnshippedCount};
use crate::store::traits::{Attachments, Browse, Holdable, Intake, Maintain, Replay, Shipped};
use crate::store::view::{
    AgentRecord, Backlog, BacklogSeen, Condition, Filter, LaneListed, Listed, Page, Purged, ReplayRecord, Standing,
    StoredMessage, Stranded, Whose,
};
use crate::store::work::{
    Ahead, AttachmentId, Claim, ClaimLimits, Hold, LaneId, LanePage, LaneRange, LaneWork, Lease, Outcome, Owner,
    SalvagedRow, WaitEnd,
};

/// How long truncating the log waits for readers.
const LOG_ERASURE_TIMEOUT: Duration = Duration::from_millis(100);

impl Intake for SqliteStore {
    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        // Takes time, so it is done before taking the write lock.
        let bodies: Vec<_> = messages.iter().map(|message| self.packer.pack(&message.request.body)).collect();
        let needed = messages.iter().zip(&bodies).map(|(message, body)| space::bytes_needed(message, body)).sum();
        let ids = self.write_with_room(needed, |tx, sealer| register::register(tx, sealer, messages, &bodies))?;
        self.verify_stored(&ids)?;
        debug!(target: "db_manager", messages = ids.len(), bytes = needed, "stored");
        Ok(ids)
    }

    fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Result<Ahead, StoreError> {
        let mut reader = lock(&self.quick_reader);
        // That is all while nothing waits. Only if something does, a snapshot of its own is examined more closely.
        let found = reader.in_lane(&self.path, &self.known_sealer(), lane).map_err(|fault| fault.at(&self.path))?;
        match found {
            Some(in_lane) if in_lane.is_clear() || touches.is_empty() => {
                Ok(Ahead { messages: in_lane.messages, ..Ahead::default() })
            }
            // Also after a key rotation: a lane is looked up by another value then.
            Some(_) | None => self.read_by(reader.connection(), |connection, sealer| {
                queue_ahead::ahead(connection, sealer, lane, touches)
            }),
        }
    }

    fn is_clear(&self, lane: &Lane) -> Result<bool, StoreError> {
        let mut reader = lock(&self.quick_reader);
        let found = reader.in_lane(&self.path, &self.known_sealer(), lane).map_err(|fault| fault.at(&self.path))?;
        match found {
            Some(in_lane) => Ok(in_lane.is_clear()),
            None => self.read_by(reader.connection(), |connection, sealer| {
                Ok(queue_ahead::waiting(connection, sealer, lane)?.is_some_and(queue_ahead::InLane::is_clear))
            }),
        }
    }

    fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> Result<BacklogSeen, StoreError> {
        let mut reader = lock(&self.quick_reader);
        let mut look = || {
            let tx = reader.connection().transaction_with_behavior(TransactionBehavior::Deferred)?;
            guard::refuse_newer(&tx, &self.path)?;
            let seen = view::seen(&tx, schema::known_version(), server, touches)?;
            tx.finish()?;
            Ok(seen)
        };
        look().map_err(|fault: Fault| fault.at(&self.path))
    }

    fn limit(&self, lane: &Lane, hold: &Hold) -> Result<(), StoreError> {
        self.write(|tx, sealer| register::limit(tx, sealer, lane, hold))
    }

    fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey> {
        ahead::unseen(&self.recent, lane.place(), message_type, touches).collect()
    }

    fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)], unsure_before_ms: i64) -> Result<(), StoreError> {
        let notes = || updates.iter().map(|(lane, entity)| (lane.place(), *entity));
        self.write(|tx, _| {
            ahead::note(tx, notes(), now_ms())?;
            ahead::set_unsure_before(tx, unsure_before_ms)
        })
    }

    fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Result<(), StoreError> {
        let place = lane.place();
        self.recent.confirmed(place, touches);
        // A batch create stays hidden behind a partial row, so the note stays, too.
        let removes = !message_type.is_batch_create() && touches.iter().any(ahead::ends_note);
        let has_note = || lock(&self.quick_reader).has_note(&self.path, place, touches);
        if removes && has_note().map_err(|fault| fault.at(&self.path))? {
            self.write(|tx, _| ahead::forget(tx, place, touches))?;
        }
        Ok(())
    }

    fn hasten(&self, whose: &Whose) -> Result<(), StoreError> {
        self.write(|tx, sealer| standing::hasten(tx, sealer, whose))
    }

    fn salvage(&self, rows: &[SalvagedRow]) -> Result<Vec<Option<MessageId>>, StoreError> {
        let limits = Limits { when_full: WhenFull::Refuse, ..self.limits };
        let bodies: Vec<_> = rows.iter().map(|row| self.packer.pack(&row.message.request.body)).collect();
        let ids = self.write(|tx, sealer| {
            let needed = rows.iter().zip(&bodies).map(|(row, body)| space::bytes_needed(&row.message, body)).sum();
            space::make_room(tx, &self.path, &self.log, &limits, needed)?;
            salvaged::salvage(tx, sealer, rows, &bodies)
        })?;
        self.verify_stored(&ids.iter().flatten().copied().collect::<Vec<_>>())?;
        Ok(ids)
    }

    fn is_salvaged(&self, row: &Sha256) -> Result<bool, StoreError> {
        self.read(&self.reader, |connection, _| salvaged::is_salvaged(connection, row))
    }

    fn note_full(&self, since_ms: Option<i64>, refused: u64) -> Result<(), StoreError> {
        self.write(|tx, _| counters::note_full(tx, since_ms, refused))
    }
}

impl Attachments for SqliteStore {
    fn begin_attachment(&self, bytes_expected: Option<u64>) -> Result<AttachmentId, StoreError> {
        self.remove_unfinished()?;
        self.write_with_room(bytes_expected.unwrap_or(0), |tx, _| attachments::begin(tx))
    }

    fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> Result<(), StoreError> {
        self.write_with_room(piece.len() as u64, |tx, sealer| {
            attachments::add_piece(tx, sealer, attachment, number, piece)
        })
    }

    fn register_attachment(
        &self,
        attachment: AttachmentId,
        file: &Attachment,
        message: &Message,
    ) -> Result<MessageId, StoreError> {
        let body = self.packer.pack(&message.request.body);
        let id = self.write_with_room(space::bytes_needed(message, &body), |tx, sealer| {
            let id = register::register_attachment(tx, sealer, message, &body, file.bytes)?;
            attachments::give(tx, sealer, attachment, file, id)?;
            Ok(id)
        })?;
        self.verify_stored(&[id])?;
        Ok(id)
    }

    fn abandon_attachment(&self, attachment: AttachmentId) -> Result<(), StoreError> {
        self.write(|tx, _| attachments::abandon(tx, attachment))?;
        self.remove_soon(true);
        Ok(())
    }

    fn attachment(&self, message: MessageId) -> Result<Option<Attachment>, StoreError> {
        self.read(&self.reader, |connection, sealer| attachments::of(connection, sealer, message))
    }

    fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(&self.reader, |connection, sealer| attachments::piece(connection, sealer, message, number))
    }
}

impl Replay for SqliteStore {
    fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Result<Lease, StoreError> {
        self.write(|tx, _| {
            self.refuse_outstanding(tx)?;
            lease::acquire(tx, owner, time_to_live)
        })
    }

    fn renew(&self, lease: &Lease, time_to_live: Duration) -> Result<(), StoreError> {
        self.write(|tx, _| lease::renew(tx, lease, time_to_live))
    }

    fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.write(|tx, _| lease::release(tx, lease))
    }

    fn return_in_flight(&self, lease: &Lease) -> Result<u64, StoreError> {
        self.remove_unfinished()?;
        self.write_as(lease, |tx, _| settle::return_in_flight(tx, lease.epoch, &self.recent))
    }

    fn interrupted(&self, lane: LaneId) -> Result<usize, StoreError> {
        self.read(&self.reader, |connection, _| settle::interrupted(connection, lane))
    }

    fn make_due(&self, lease: &Lease, lanes: &[(LaneId, WaitEnd)], now_ms: i64) -> Result<(), StoreError> {
        self.write_as(lease, |tx, _| {
            lanes.iter().try_for_each(|(lane, end)| match end {
                WaitEnd::Delivery(messages) => settle::make_due(tx, *lane, messages),
                WaitEnd::Outage(held) => {
                    held.iter().try_for_each(|held| hold::end(tx, *lane, held, now_ms))?;
                    settle::make_unanswered_due(tx, *lane)
                }
            })
        })
    }

    fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> Result<(), StoreError> {
        self.write_as(lease, |tx, _| hold::hold(tx, lane, hold))
    }

    fn claim(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        mut limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Claim, StoreError> {
        let _one_at_a_time = lock(&self.claiming);
        loop {
            let choose = |connection: &Connection, sealer: &Sealer| {
                let (recent, memo) = (&self.recent, &self.memo);
                let window_max = WINDOW_MAX;
                let facts = &StoreFacts::read(connection)?;
                let scope = WalkScope { connection, lane: lane.0, now_ms, recent, memo, window_max, facts };
                claim::choose(&scope, sealer, &SqlFilter::of(filter), limits, &mut RequestReader::default())
            };
            let chosen = self.read(&self.reader, choose)?;
            if let Some(bytes) = chosen.too_large {
                return Ok(Claim::TooLarge { bytes });
            }
            match self.write_as(lease, |tx, sealer| claim::mark(tx, sealer, lease.epoch, chosen)) {
                // A full disk has room for smaller commits.
                Err(StoreError::Full { .. }) if limits.messages_max > 1 => limits.messages_max /= 2,
                result => {
                    let claimed = result?;
                    debug!(target: "db_manager", messages = claimed.len(), lane = lane.0, "claimed");
                    return Ok(Claim::Taken(claimed));
                }
            }
        }
    }

    fn claim_lanes(
        &self,
        lease: &Lease,
        lanes: &[LaneId],
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Vec<(LaneId, Vec<Claimed>)>, StoreError> {
        let _one_at_a_time = lock(&self.claiming);
        let mut lanes = lanes;
        loop {
            let choose = |connection: &Connection, sealer: &Sealer| {
                let (recent, memo) = (&self.recent, &self.memo);
                let (mut requests, mut left, mut choices) = (RequestReader::default(), limits, Vec::new());
                let window_max = WINDOW_MAX;
                let (facts, selection) = (&StoreFacts::read(connection)?, &SqlFilter::of(filter));
                for LaneId(lane) in lanes.iter().copied() {
                    let scope = WalkScope { connection, lane, now_ms, recent, memo, window_max, facts };
                    let choice = claim::choose(&scope, sealer, selection, left, &mut requests)?;
                    if choice.is_cut {
                        break;
                    }
                    let (messages, bytes) = choice.size();
                    left.messages_max = left.messages_max.saturating_sub(messages);
                    left.bytes_max = left.bytes_max.saturating_sub(bytes);
                    choices.push((LaneId(lane), choice));
                }
                Ok(choices)
            };
            let choices = self.read(&self.reader, choose)?;
            let mark = |tx: &Transaction<'_>, sealer: &Sealer| {
                let marked = choices
                    .into_iter()
                    .map(|(lane, choice)| claim::mark(tx, sealer, lease.epoch, choice).map(|claimed| (lane, claimed)));
                marked.collect()
            };
            match self.write_as(lease, mark) {
                // A full disk has room for smaller commits.
                Err(StoreError::Full { .. }) if !lanes.is_empty() => lanes = &lanes[..lanes.len() / 2],
                result => {
                    let claimed: Vec<(LaneId, Vec<Claimed>)> = result?;
                    let messages: usize = claimed.iter().map(|(_, messages)| messages.len()).sum();
                    debug!(target: "db_manager", messages, lanes = claimed.len(), "claimed");
                    return Ok(claimed);
                }
            }
        }
    }

    fn settle(&self, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let settled = self.write_as(lease, |tx, sealer| {
            let settlement = Settlement { tx, sealer, packer: &self.packer, recent: &self.recent };
            settle::settle(&settlement, lease.epoch, outcomes)?;
            attachments::any_released(tx)
        });
        match settled {
            Ok(released) => {
                self.remove_soon(released);
                let of = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|(_, outcome)| is(outcome)).count();
                let delivered = of(|outcome| matches!(outcome, Outcome::Delivered));
                let rejected = of(|outcome| matches!(outcome, Outcome::Rejected { .. }));
                let put_back = outcomes.len() - delivered - rejected;
                debug!(target: "db_manager", delivered, rejected, put_back, "settled");
                Ok(())
            }
            // A full disk has space for smaller commits. In order: after a crash in between, later messages are sent
            // again, never an older one alone.
            Err(StoreError::Full { .. }) if outcomes.len() > 1 => {
                let (first, second) = outcomes.split_at(outcomes.len() / 2);
                self.settle(lease, first)?;
                self.settle(lease, second)
            }
            Err(error) => Err(error),
        }
    }

    fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, StoreError> {
        self.write_as(lease, |tx, _| settle::retry_held(tx, answered_before_ms))
    }

    fn release_held(&self, lease: &Lease, lane: LaneId) -> Result<u64, StoreError> {
        /// A commit of this many is short.
        const STEP: usize = 2000;
        let mut released = 0;
        loop {
            let step = self.write_as(lease, |tx, _| settle::release_held(tx, lane, STEP))?;
            released += step;
            if step < STEP as u64 {
                return Ok(released);
            }
        }
    }
}

impl Browse for SqliteStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn backlog(&self, filter: &Filter) -> Result<Backlog, StoreError> {
        self.read(&self.reader, |connection, _| browse::backlog(connection, filter))
    }

    fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Listed>, StoreError> {
        self.read(&self.reader, |connection, sealer| browse::list(connection, sealer, filter, page))
    }

    fn whole(&self, ids: &[MessageId]) -> Result<Vec<StoredMessage>, StoreError> {
        self.read(&self.reader, |connection, sealer| browse::whole(connection, sealer, ids))
    }

    fn lanes(&self, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, StoreError> {
        Ok(self.lane_page(filter, LaneRange::default(), now_ms)?.lanes)
    }

    fn lane_page(&self, filter: &Filter, range: LaneRange, now_ms: i64) -> Result<LanePage, StoreError> {
        let (known, some) = ((&self.recent, &self.memo), (filter, range));
        self.read(&self.reader, |connection, sealer| claim::lanes(connection, sealer, known, some, now_ms))
    }

    fn lane_list(&self, now_ms: i64) -> Result<Vec<LaneListed>, StoreError> {
        self.read(&self.reader, |connection, sealer| reassign::list(connection, sealer, now_ms))
    }

    fn stranded(&self) -> Result<Vec<Stranded>, StoreError> {
        self.read(&self.reader, |connection, sealer| stranded::count(connection, sealer, &self.memo))
    }

    fn newest(&self) -> Result<MessageId, StoreError> {
        self.read(&self.reader, |connection, _| standing::newest(connection))
    }

    fn standing(&self, whose: &Whose, up_to: MessageId) -> Result<Standing, StoreError> {
        self.read(&self.reader, |connection, sealer| standing::standing(connection, sealer, whose, up_to))
    }

    fn condition(&self) -> Result<Condition, StoreError> {
        let now_ms = now_ms();
        self.read(&self.reader, |connection, sealer| {
            let space = space::Space::of(connection, &self.path, &self.log)?;
            Ok(Condition {
                file_bytes: space.file_bytes,
                free_bytes: space.free_bytes,
                size_max: Some(self.limits.size_max),
                disk_free_bytes: Some(space.disk_free_bytes),
                capacity_bytes: Some(room::capacity(space.file_bytes, space.disk_free_bytes, &self.limits)),
                schema_version: schema::version(connection)?,
                lease: lease::holder(connection)?,
                agents: browse::agents(connection)?,
                last_replay: browse::last_replay(connection)?,
                held: hold::held(connection, sealer, now_ms)?,
                replay_hold: counters::replay_hold(connection)?,
                adoptions: reassign::adoptions(connection)?,
                dropped: counters::counter(connection, "dropped")?,
                expired: counters::counter(connection, "expired")?,
                rejected_dropped: counters::counter(connection, counters::REJECTED_DROPPED)?,
                full: match self.limits.when_full {
                    WhenFull::Refuse => space.fullness(&self.limits, USUAL_BYTES),
                    WhenFull::DropOldest => None,
                },
                room_bytes: match self.limits.when_full {
                    WhenFull::Refuse => space.room(&self.limits),
                    WhenFull::DropOldest => u64::MAX,
                },
                full_record: counters::full_record(connection)?,
                recoveries: browse::recoveries(connection)?,
                encryption: sealer.encryption(),
                unproven: self.watch.unproven(),
            })
        })
    }

    fn check(&self) -> Result<Vec<String>, StoreError> {
        // It takes long, so it has its own connection.
        let reader = Mutex::new(connect::open_reader(&self.path, self.is_alone)?);
        match self.read(&reader, browse::check) {
            Err(StoreError::Damaged { reason, .. }) => Ok(vec![reason]),
            result => result,
        }
    }
}

impl Maintain for SqliteStore {
    fn adopt(&self, server: &Server) -> Result<u64, StoreError> {
        if !self.read(&self.reader, |connection, _| reassign::any_without_server(connection))? {
            return Ok(0);
        }
        self.write(|tx, _| reassign::adopt(tx, server))
    }

    fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> Result<u64, StoreError> {
        self.write_as(lease, |tx, sealer| reassign::reassign(tx, sealer, from, to, limit))
    }

    fn purge(&self, filter: &Filter, limit: usize) -> Result<Purged, StoreError> {
        let (purged, released) = self.write(|tx, _| {
            self.refuse_outstanding(tx)?;
            let nobody_replays = lease::holder(tx)?.is_none();
            let purged = settle::purge(tx, filter, limit, nobody_replays)?;
            Ok((purged, attachments::any_released(tx)?))
        })?;
        self.remove_soon(released);
        Ok(purged)
    }

    fn expire(&self, accepted_before_ms: i64, limit: usize) -> Result<u64, StoreError> {
        // Searched outside the write lock: usually there is nothing.
        let old = self.read(&self.reader, |connection, _| space::expired(connection, accepted_before_ms, limit))?;
        if old.is_empty() {
            return Ok(0);
        }
        let (dropped, released) = self.write(|tx, _| {
            self.refuse_outstanding(tx)?;
            let dropped = space::drop_expired(tx, &old)?;
            Ok((dropped, attachments::any_released(tx)?))
        })?;
        self.remove_soon(released);
        Ok(dropped)
    }

    fn requeue(&self, filter: &Filter) -> Result<u64, StoreError> {
        self.write(|tx, _| settle::requeue(tx, filter))
    }

    fn erase_credentials(&self) -> Result<bool, StoreError> {
        if self.read(&self.reader, |connection, _| erasure::any_to_erase(connection))? {
            let is_erased = self.write(|tx, _| {
                tx.pragma_update(None, "secure_delete", true)?;
                let erased = erasure::erase(tx);
                tx.pragma_update(None, "secure_delete", false)?;
                erased
            })?;
            self.log_is_unerased.fetch_or(is_erased, Ordering::Relaxed);
        }
        if !self.log_is_unerased.load(Ordering::Relaxed) {
            return Ok(true);
        }
        if !self.ballast.may_cut_log() {
            // They are in blocks that no other program gets, until there is space to do without them.
            return Ok(false);
        }
        let connection = lock(&self.writer);
        let emptied = || -> Result<bool, Fault> {
            guard::refuse_newer(&connection, &self.path)?;
            self.watch.vet()?;
            // A long read must not block writers through this.
            connection.busy_timeout(LOG_ERASURE_TIMEOUT)?;
            let emptied = erasure::empty_log(&connection);
            connection.busy_timeout(BUSY_TIMEOUT)?;
            emptied
        };
        let is_erased = emptied().map_err(|fault| fault.at(&self.path))?;
        self.log_is_unerased.store(!is_erased, Ordering::Relaxed);
        drop(connection);
        match is_erased.then(|| self.write(|tx, _| counters::begin_log(tx))) {
            // Nothing was written.
            Some(Err(error @ (StoreError::Full { .. } | StoreError::Busy { .. }))) => {
                debug!(target: "db_manager", "the next commit begins the log: {error}");
            }
            // Like that of any other commit: what a failed sync leaves of the log must not be built upon.
            Some(Err(error)) => return Err(error),
            Some(Ok(())) | None => {}
        }
        Ok(is_erased)
    }

    fn compact(&self) -> Result<u64, StoreError> {
        self.remove_unfinished()?;
        self.write(|tx, _| header_sets::sweep_header_sets(tx))?;
        self.erase_credentials()?;
        let shrink = || -> Result<bool, Fault> {
            let connection = lock(&self.writer);
            guard::refuse_newer(&connection, &self.path)?;
            self.watch.vet()?;
            Ok(space::shrink_a_step(&connection)?)
        };
        while shrink().map_err(|fault| fault.at(&self.path))? {}
        let connection = lock(&self.writer);
        let truncate = || -> Result<u64, Fault> {
            if self.ballast.may_cut_log() {
                self.truncate_log(&connection)?;
            }
            Ok(space::Space::of(&connection, &self.path, &self.log)?.file_bytes)
        };
        truncate().map_err(|fault| fault.at(&self.path))
    }

    fn keep_room(&self) -> Result<(), StoreError> {
        self.tend_ballast();
        Ok(())
    }

    fn announce(&self, agent: Option<&AgentRecord>) -> Result<(), StoreError> {
        self.write(|tx, _| browse::announce(tx, agent))?;
        if agent.is_some() {
            self.remove_unfinished()?;
        }
        Ok(())
    }

    fn note_replay(&self, record: &ReplayRecord) -> Result<(), StoreError> {
        self.write(|tx, _| browse::note_replay(tx, record))
    }

    fn has_to_be_reopened(&self) -> bool {
        self.is_alone && self.ballast.may_cut_log()
    }

    fn close(&self) {
        lock(&self.quick_reader).close(&self.watch);
        for connection in [&self.writer, &self.reader] {
            guard::close(&mut lock(connection), &self.watch);
        }
    }
}

impl Holdable for SqliteStore {
    fn set_replay_hold(&self, hold: Option<&ReplayHold>) -> Result<(), StoreError> {
        self.write(|tx, _| counters::set_replay_hold(tx, hold))
    }

    fn replay_hold(&self) -> Result<Option<ReplayHold>, StoreError> {
        self.read(&self.reader, |connection, _| counters::replay_hold(connection))
    }
}

impl Shipped for SqliteStore {
    fn makes_marks(&self) {
        self.makes_marks.store(true, Ordering::Relaxed);
    }

    fn streams(&self) -> Result<Vec<StreamRecord>, StoreError> {
        self.read(&self.reader, |connection, _| shipped::streams(connection))
    }

    fn note_stream(&self, record: &StreamRecord) -> Result<(), StoreError> {
        self.write(|tx, _| shipped::note_stream(tx, record))
    }

    fn end_stream(&self, stream: Uuid) -> Result<(), StoreError> {
        self.write(|tx, _| shipped::end_stream(tx, stream))
    }

    fn begin_bundle(&self, stream: Uuid, limits: ClaimLimits) -> Result<Vec<MessageId>, StoreError> {
        self.write(|tx, _| shipped::begin_bundle(tx, stream, limits))
    }

    fn confirm_bundle(&self, stream: Uuid, next_bundle: u32) -> Result<(), StoreError> {
        self.write(|tx, _| shipped::confirm_bundle(tx, stream, next_bundle))
    }

    fn withdraw_bundle(&self, stream: Uuid) -> Result<(), StoreError> {
        self.write(|tx, _| shipped::withdraw_bundle(tx, stream))
    }

    fn outstanding(&self, ids: &[MessageId]) -> Result<Vec<ShippedMessage>, StoreError> {
        self.read(&self.reader, |connection, _| shipped::outstanding(connection, ids))
    }

    fn outstanding_and_gone(&self, limit: usize) -> Result<Vec<ShippedMessage>, StoreError> {
        self.read(&self.reader, |connection, _| shipped::outstanding_and_gone(connection, limit))
    }

    fn note_marked(&self, ids: &[MessageId]) -> Result<(), StoreError> {
        self.write(|tx, _| shipped::note_marked(tx, ids))
    }

    fn unshipped(&self) -> Result<UnshippedCount, StoreError> {
        self.read(&self.reader, |connection, _| shipped::unshipped(connection))
    }

    fn hand_over(&self, stream: Uuid) -> Result<Vec<MessageId>, StoreError> {
        self.write(|tx, _| shipped::hand_over(tx, stream))
    }
}
