//! The verbs of a store, one small trait per caller.
//!
//! Every engine implements every verb; there are no default implementations. Nothing here names a path, an inode or a
//! file: an engine may keep its bytes in a file, in memory, or in another store that it decorates.
//!
//! Every verb that writes is one commit: after a crash either all of it has happened or none of it, and once it
//! returned, it is on the disk. The invariants that hold between verbs are in the head of [`super`].

use std::time::Duration;

use super::error::StoreError;
use super::identity::StoreIdentity;
use super::replay_hold::ReplayHold;
use super::stream::{ShippedMessage, StreamRecord, UnshippedCount};
use super::view::{
    AgentRecord, Backlog, BacklogSeen, Condition, Filter, LaneListed, Listed, Page, Purged, ReplayRecord, Standing,
    StoredMessage, Stranded, Whose,
};
use super::work::{
    Ahead, AttachmentId, Claim, ClaimLimits, Hold, LaneId, LanePage, LaneRange, LaneWork, Lease, Outcome, Owner,
    SalvagedRow, WaitEnd,
};
use uuid::Uuid;

use crate::message::{Attachment, Claimed, EntityKey, Lane, Message, MessageId, MessageType, Server, Sha256, Touch};

/// Messages that survive the process, and the right to replay them: all verbs of a store together.
pub trait Store: Intake + Attachments + Replay + Browse + Maintain + Holdable + Shipped {
    /// Returns one message whole, or `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// As [`Browse::whole`].
    fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError> {
        Ok(self.whole(&[id])?.pop())
    }
}

impl<T: Intake + Attachments + Replay + Browse + Maintain + Holdable + Shipped> Store for T {}

/// Accepting messages, and what has to be known before a new one is forwarded.
pub trait Intake: Send + Sync {
    /// Stores messages, in this order, as *failed*: waiting for the next replay.
    ///
    /// Returns their ids, ascending, only when all of them are durable: the caller may acknowledge them.
    ///
    /// # Errors
    ///
    /// On any error none of them is stored. [`StoreError::Full`] when a limit would be exceeded,
    /// [`StoreError::Unusable`] when the disk refuses.
    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError>;

    /// Returns what is ahead of a new write of this lane that touches these entities. Without entities it only counts.
    ///
    /// Sees what other processes committed. Intake calls it before every forwarded write: while nothing waits and
    /// nothing is committed it costs no look-up, otherwise one per entity, up to [`Ahead::TOUCHES_MAX`] of them.
    fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Result<Ahead, StoreError>;

    /// Returns whether no write of this lane has anything ahead of it, whatever it touches: none of its messages waits,
    /// and the server refused none.
    ///
    /// Sees what other processes committed, and costs what [`Intake::ahead`] does.
    fn is_clear(&self, lane: &Lane) -> Result<bool, StoreError>;

    /// Returns whether a write to this server that touches these entities may conflict with what is stored, whatever
    /// its lane.
    ///
    /// Needs no key and only reads, so it often works where the store can't be used.
    fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> Result<BacklogSeen, StoreError>;

    /// Defers the replay of a lane, or of one bucket of it ([`Hold::bucket`]), for every replayer: the server rate
    /// limits it, as the answer to a forwarded write said.
    ///
    /// A hold in force that lasts longer stays. Called before the write is registered, so that no other process sends
    /// it meanwhile.
    fn limit(&self, lane: &Lane, hold: &Hold) -> Result<(), StoreError>;

    /// Returns the traces and spans that a write updates and whose create nobody in this process saw confirmed: of
    /// these the server may make partial rows. Memory only.
    fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey>;

    /// Notes durably that updates of these traces and spans reach the server, or may, before their create.
    ///
    /// Their creates are handed out with that note ([`crate::message::Claimed::ahead`]) until one was confirmed. Called
    /// before the client of a forwarded update is answered.
    ///
    /// In the same commit, all entities whose UUIDv7 is of an earlier time than `unsure_before_ms` count as noted,
    /// except those whose create this process saw confirmed: for updates of entities whose creates nobody reads. 0
    /// changes nothing.
    fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)], unsure_before_ms: i64) -> Result<(), StoreError>;

    /// Records that the server confirmed a forwarded write: notes about what it created are removed.
    ///
    /// Writes only where a single create or an end meets a note.
    fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Result<(), StoreError>;

    /// Makes a lane due at once, or all lanes of a server that have something to replay: a lane that is held until a
    /// probe is tried now, and so are those of its first messages (some thousand) that wait for their next attempt.
    ///
    /// A rate limit of the server stays in force.
    fn hasten(&self, whose: &Whose) -> Result<(), StoreError>;

    /// Stores rows of SDK files that were not stored before, in this order and in one commit with the fact that they
    /// were.
    ///
    /// Returns the id of each that is new, `None` if it was salvaged earlier, from any file: a copy has the same rows.
    /// That is remembered permanently, so that a row is never sent again because its file came back.
    ///
    /// A full store refuses rows, also under [`super::WhenFull::DropOldest`]: their file still has them.
    ///
    /// # Errors
    ///
    /// On any error none of them is stored; otherwise as [`Attachments::register_attachment`].
    fn salvage(&self, rows: &[SalvagedRow]) -> Result<Vec<Option<MessageId>>, StoreError>;

    /// Returns whether the row with this digest was salvaged earlier.
    fn is_salvaged(&self, row: &Sha256) -> Result<bool, StoreError>;

    /// Records since when the store is full, and adds to the count of writes that it refused. For people only: what is
    /// not noted before a crash is not counted.
    fn note_full(&self, since_ms: Option<i64>, refused: u64) -> Result<(), StoreError>;
}

/// The bytes of attachments, in pieces. Most callers use them as one stream, through [`super::attachment`].
pub trait Attachments: Send + Sync {
    /// Begins the upload of an attachment; its bytes count against the store's limits from the first piece on.
    ///
    /// An upload that ended without a message is removed: at once if its process is gone, and after an hour without a
    /// new piece in any case. The same happens in [`Maintain::announce`], [`Replay::return_in_flight`] and
    /// [`Maintain::compact`]. A living upload is never touched.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] at once when `bytes_expected` would exceed a limit.
    fn begin_attachment(&self, bytes_expected: Option<u64>) -> Result<AttachmentId, StoreError>;

    /// Adds a piece; `number` counts from 0. Every piece but the last has exactly [`super::attachment::PIECE_BYTES`].
    ///
    /// It is durable only with the message. Other writers wait no longer for it than for a commit of that size.
    ///
    /// # Errors
    ///
    /// [`StoreError::AttachmentGone`] when the upload counted as dead and was removed, [`StoreError::Full`].
    fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> Result<(), StoreError>;

    /// Stores a message with the bytes that were added, as *failed*: [`Intake::register`] for an attachment.
    ///
    /// Returns its id only when message and bytes are durable. After a crash there are both or neither. From then on
    /// the bytes live as long as the message does, and count as bytes of its body.
    ///
    /// # Errors
    ///
    /// [`StoreError::AttachmentGone`] when the store does not hold `attachment.bytes` bytes for it; otherwise as
    /// [`Intake::register`].
    fn register_attachment(
        &self,
        upload: AttachmentId,
        attachment: &Attachment,
        message: &Message,
    ) -> Result<MessageId, StoreError>;

    /// Removes the bytes of an upload that ended without a message. Idempotent.
    fn abandon_attachment(&self, attachment: AttachmentId) -> Result<(), StoreError>;

    /// Returns what is known of a message's file, or `None` when it has none or is gone.
    fn attachment(&self, message: MessageId) -> Result<Option<Attachment>, StoreError>;

    /// Returns a piece of a message's file as it was added, or `None` past the end and when the message is gone.
    fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Sending what is stored, under the lease.
pub trait Replay: Send + Sync {
    /// Acquires the right to replay this store for `time_to_live`; [`Replay::renew`] extends it.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseHeld`] while another owner has it.
    fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Result<Lease, StoreError>;

    /// Extends the lease to `time_to_live` from now.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] when another process acquired it since: stop sending at once.
    fn renew(&self, lease: &Lease, time_to_live: Duration) -> Result<(), StoreError>;

    /// Releases the lease. A lease that was lost meanwhile is not an error.
    fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Returns messages that earlier leases left in flight to the queue (*failed*); returns how many.
    fn return_in_flight(&self, lease: &Lease) -> Result<u64, StoreError>;

    /// Returns how many of the lane's first failed messages, in delivery order, have to be claimed to claim all of
    /// those that were in flight when an earlier replayer ended and were not settled since; 0 when there are none.
    ///
    /// Several of these may have been in one request, which the server may have applied: claimed together, they are in
    /// one request again. One by one, the first of them would be an older write over a newer one.
    fn interrupted(&self, lane: LaneId) -> Result<usize, StoreError>;

    /// Makes messages of these lanes due at once that wait for their next attempt: the cause of the wait is over.
    ///
    /// These are, of a lane's first ones (some thousand), those that no failure counts against: they were deferred so
    /// that others could be tried in their place, maybe by a process that has ended. [`WaitEnd`] says which others, and
    /// which not.
    fn make_due(&self, lease: &Lease, lanes: &[(LaneId, WaitEnd)], now_ms: i64) -> Result<(), StoreError>;

    /// Holds the lane, or one bucket of it, until then, and records why; `None` ends the hold of the lane and leaves
    /// limits of buckets to expire.
    fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> Result<(), StoreError>;

    /// Takes the next failed messages of a lane for sending and marks them *registered*.
    ///
    /// They come in delivery order. A message that is not due yet (`next_attempt_at_ms`) is left, and so is every later
    /// one that [`crate::message::conflict`]s with one that is left or still in flight: nothing is ever claimed while
    /// an earlier message about the same entity waits. A filter narrows what is claimed, not what is waited for: an
    /// earlier message that it does not select still blocks conflicting ones.
    ///
    /// Takes nothing beyond `limits`: where the next message alone has more bytes, it stays queued, and
    /// [`Claim::TooLarge`] says how many.
    fn claim(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Claim, StoreError>;

    /// Claims from several lanes in one commit, so that lanes with a few messages each cost no commit each: of each
    /// lane everything that [`Replay::claim`] would take of it without a limit, in this order, as long as all of it
    /// stays below `limits`.
    ///
    /// Returns what it took of the first of these lanes, which may be nothing. A lane that does not fit, and those
    /// behind it, are not claimed from: this never divides what was in flight together ([`Replay::interrupted`]). On a
    /// full disk fewer are.
    fn claim_lanes(
        &self,
        lease: &Lease,
        lanes: &[LaneId],
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Vec<(LaneId, Vec<Claimed>)>, StoreError>;

    /// Records the outcomes of claimed messages, of any lanes, in one commit.
    ///
    /// Delivered messages are deleted, failed ones wait for the next replay, rejected ones stay with the server's
    /// answer. A message that `outcomes` does not name stays in flight until [`Replay::return_in_flight`].
    ///
    /// After a crash either all of this has happened or none of it. None means a second delivery, which is harmless:
    /// ids come from the client, so the server sees an upsert.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] if another process replays by now: nothing was written, stop at once.
    fn settle(&self, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError>;

    /// Makes one *held* message *failed* again in each lane where the server refused none since `answered_before_ms`:
    /// the message refused longest ago, the newest of several. Returns which.
    ///
    /// It is sent like any other; its outcome is a probe for the others.
    fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, StoreError>;

    /// Makes all *held* messages of a lane *failed* again, with no attempts counted; returns how many.
    fn release_held(&self, lease: &Lease, lane: LaneId) -> Result<u64, StoreError>;
}

/// Reading stored messages, for people and for callers that wait for a delivery. Read-only.
pub trait Browse: Send + Sync {
    /// Identifies this store, even against one that replaces it under the same name. A reopened store keeps
    /// it. Ids of messages and lanes are valid in this store only.
    fn identity(&self) -> StoreIdentity;

    /// Counts what the filter selects. Without conditions on age, id, project or entity it never scans messages.
    fn backlog(&self, filter: &Filter) -> Result<Backlog, StoreError>;

    /// Returns one page of what the filter selects, without bodies.
    fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Listed>, StoreError>;

    /// Returns these messages whole, in this order, from one snapshot. Those that do not exist are left out.
    fn whole(&self, ids: &[MessageId]) -> Result<Vec<StoredMessage>, StoreError>;

    /// Returns the lanes with failed messages that the filter selects, in the order of their oldest message.
    fn lanes(&self, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, StoreError>;

    /// Returns these lanes in this range of their ids. However many lanes there are, this takes the time and the memory of
    /// those in the range.
    fn lane_page(&self, filter: &Filter, range: LaneRange, now_ms: i64) -> Result<LanePage, StoreError>;

    /// Returns every lane that has a message, in the order of their ids. Needs no key.
    fn lane_list(&self, now_ms: i64) -> Result<Vec<LaneListed>, StoreError>;

    /// Counts the messages that wait for a create that the server refused; see the head of [`super`].
    ///
    /// Scans the first waiting messages of each lane only (some ten thousand), so it may count too few.
    fn stranded(&self) -> Result<Vec<Stranded>, StoreError>;

    /// Returns the newest message that was ever stored.
    fn newest(&self) -> Result<MessageId, StoreError>;

    /// Returns the progress of a lane, or of all lanes of a server together, with the messages accepted up to one.
    ///
    /// Whether any of that waits is an indexed look-up per lane, so that it can be polled.
    fn standing(&self, whose: &Whose, up_to: MessageId) -> Result<Standing, StoreError>;

    /// Returns who works with the store, what is held and how close it is to its limits.
    fn condition(&self) -> Result<Condition, StoreError>;

    /// Checks for corruption and for counts that disagree with the messages; returns the problems as text.
    ///
    /// Reads the whole store: some ten seconds for a gigabyte. Nobody else waits for it.
    fn check(&self) -> Result<Vec<String>, StoreError>;
}

/// Maintenance: decisions about whole lanes, deletion, space, records, closing.
pub trait Maintain: Send + Sync {
    /// Assigns messages that an earlier version stored without a server to this one; returns how many.
    ///
    /// Costs one look-up once all lanes have a server. Recorded in [`Condition::adoptions`].
    fn adopt(&self, server: &Server) -> Result<u64, StoreError>;

    /// Moves up to `limit` messages of a lane to another lane; returns how many. 0 once only messages in flight are
    /// left.
    ///
    /// They keep their ids, their place in the order and the server's last answer. Where a lane is refused, held or
    /// waits for an attempt, the messages that leave it do not.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`]: what is being sent must not change its destination, so this needs the lease.
    fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> Result<u64, StoreError>;

    /// Deletes up to `limit` of the messages that the filter selects, except those in flight under a living lease.
    fn purge(&self, filter: &Filter, limit: usize) -> Result<Purged, StoreError>;

    /// Drops up to `limit` of the oldest messages that were accepted before then, except those in flight; returns how
    /// many.
    ///
    /// They are counted ([`Condition::expired`]) in the same commit. Scans the oldest messages only: where the first
    /// `limit` of them are younger than that, or in flight, it finds none.
    fn expire(&self, accepted_before_ms: i64, limit: usize) -> Result<u64, StoreError>;

    /// Makes rejected and held messages that the filter selects *failed* again, with no attempts counted; returns how
    /// many.
    ///
    /// A salvaged row that no request could be made of has no method, and stays rejected.
    fn requeue(&self, filter: &Filter) -> Result<u64, StoreError>;

    /// Erases credentials, and sets of headers, that no message needs, without a trace in what the engine keeps.
    ///
    /// Returns whether all are erased. Those that another process still reads are erased by the next call.
    fn erase_credentials(&self) -> Result<bool, StoreError>;

    /// Returns free pages to the file system; returns the store's size in bytes.
    fn compact(&self) -> Result<u64, StoreError>;

    /// Reserves what is needed to deliver from a full disk, as far as there is room for it. Called every second by an
    /// agent.
    ///
    /// # Errors
    ///
    /// As every verb that writes.
    fn keep_room(&self) -> Result<(), StoreError>;

    /// Records a running agent, or with `None` that this process has stopped its agent.
    fn announce(&self, agent: Option<&AgentRecord>) -> Result<(), StoreError>;

    /// Records how a replay ended, for `status`.
    fn note_replay(&self, record: &ReplayRecord) -> Result<(), StoreError>;

    /// Returns whether the store was opened in a way that a full disk required, and the disk has room again.
    fn has_to_be_reopened(&self) -> bool;

    /// Closes the store for good, for all its holders. Every later call fails with [`StoreError::Unproven`].
    fn close(&self);
}

/// The hold of a whole store, for all its replayers: a decision of a person.
pub trait Holdable: Send + Sync {
    /// Holds the replay of everything that waits, in place of an earlier hold, or ends the hold. Needs no key.
    fn set_replay_hold(&self, hold: Option<&ReplayHold>) -> Result<(), StoreError>;

    /// Returns the last hold that nobody has ended; it may be over ([`ReplayHold::left`]). Costs one look-up.
    fn replay_hold(&self) -> Result<Option<ReplayHold>, StoreError>;
}

/// The record of what was copied to a depot, where copies outlive this store.
///
/// A message with a copy is *outstanding* until the depot has a mark of its fate: until then a successor may deliver it.
/// So the mark comes before the local settle, and a process that makes no marks must not deliver or delete it.
pub trait Shipped: Send + Sync {
    /// Declares that this handle's user makes the marks. Without it, [`Replay::acquire`], [`Maintain::purge`] and
    /// [`Maintain::expire`] fail with [`StoreError::InDepot`] while a message is outstanding.
    fn makes_marks(&self);

    /// Returns the streams that are not finished, the oldest first.
    fn streams(&self) -> Result<Vec<StreamRecord>, StoreError>;

    /// Records a stream, or replaces the record with the same name.
    fn note_stream(&self, record: &StreamRecord) -> Result<(), StoreError>;

    /// Forgets a stream and which messages it has.
    fn end_stream(&self, stream: Uuid) -> Result<(), StoreError>;

    /// Chooses the messages of a stream's next bundle and records, in one commit, that they may be in the depot from
    /// now on; returns them in an order in which they may be delivered.
    ///
    /// Those are the first messages that still have to reach the server and have no copy. If an earlier call was
    /// neither confirmed nor withdrawn, they are what is left of its choice. More than `limits` allows where parts of
    /// divided messages have to keep their place.
    fn begin_bundle(&self, stream: Uuid, limits: ClaimLimits) -> Result<Vec<MessageId>, StoreError>;

    /// Records that the chosen messages are in the depot, in bundles with numbers below `next_bundle`.
    fn confirm_bundle(&self, stream: Uuid, next_bundle: u32) -> Result<(), StoreError>;

    /// Records that the bundle is certainly not in the depot: its messages have no copy again.
    fn withdraw_bundle(&self, stream: Uuid) -> Result<(), StoreError>;

    /// Returns which of these messages are outstanding. Costs one look-up while no stream is recorded.
    fn outstanding(&self, ids: &[MessageId]) -> Result<Vec<ShippedMessage>, StoreError>;

    /// Returns up to `limit` outstanding messages that this store no longer has: each still needs a mark. Of a divided
    /// message only once all its parts are gone; then the mark of the whole says it.
    fn outstanding_and_gone(&self, limit: usize) -> Result<Vec<ShippedMessage>, StoreError>;

    /// Records that the depot has marks of these.
    fn note_marked(&self, ids: &[MessageId]) -> Result<(), StoreError>;

    /// Counts what has no copy in the depot yet. Costs one look-up while nothing waits.
    fn unshipped(&self) -> Result<UnshippedCount, StoreError>;

    /// Records that a replayer delivers a stream by now: none of its messages is claimed here again, and later
    /// messages about the same entities wait behind them.
    ///
    /// Messages of a bundle that was not confirmed have no copy from now on: nobody else may have them. Returns the ids
    /// of the others, so that they can be deleted once they were delivered. Idempotent.
    fn hand_over(&self, stream: Uuid) -> Result<Vec<MessageId>, StoreError>;
}
