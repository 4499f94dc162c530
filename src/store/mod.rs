//! Bytes that survive: messages that were acknowledged and are not on the server yet.
//!
//! The [`Store`] trait keeps promises about bytes and order and decides nothing: what an answer means, when to retry and
//! how fast to go are policy ([`crate::delivery`]), and neither room knows the other. No SQL, no row and no error of an
//! engine leaves this room; [`open`] is the only place that names one. Today there is one engine, [`sqlite`], and one
//! test double that keeps the same promises in memory.
//!
//! # Order
//!
//! Messages leave in the order in which they were accepted, per lane. The one exception helps the user: an *update* that
//! was accepted before the first create of its entity is put right after that create when the create arrives, because
//! the server would let the partial record of an early PATCH win (protocol dossier, section f, rule 2; design.md,
//! section 4). It moves only while it waits, only when no earlier create of the entity waits before it and no end of the
//! entity waits at all, and only when it changes nothing else: its place among the messages about another entity is as
//! good a promise. Updates of one entity keep their order, so one that may not move keeps the others. An *end* (deletion,
//! closing) keeps its place even to messages that only refer to its entity.
//!
//! # Refused creates
//!
//! While a message that makes an entity is refused (*rejected*, or *held* for the time in its ids), later messages of its
//! lane that touch the entity in any way are *stranded*: they wait with it, because the server would make a partial record
//! of an update or a score, and show children without their parent. Which messages those are follows from what is stored:
//! it is no state of theirs. They follow the create when it is requeued, and go free when it is purged, dropped or expired.
//! A trace of OpenTelemetry strands nothing ([`EntityKey::can_strand`]).
//!
//! Rejected messages have a share of the store ([`rejected_room`]). Beyond it the oldest go when a new message needs their
//! room, but never a create for which a message waits: that one would go free, and leave a partial record.
//!
//! A refused *repeat* of a create strands what was accepted after it as well: nothing in a store says that the entity is
//! on the server already, and the repeat may be the write that completes it.
//!
//! # Attachments
//!
//! The bytes of an attachment's file may be more than memory holds, so they come in *pieces*, each in a commit of its
//! own, and belong to no message until [`Store::register_attachment`] says so in the commit that makes the message:
//! there is no message without its bytes, and bytes of an upload that never came to its end are removed.
//! [`attachment`] reads and writes them as one stream.
//!
//! # Who may do what
//!
//! Anyone may register, read, purge and requeue at any time, from several processes at once. Claiming and settling need
//! the [`Lease`]: one replayer at a time per store. A lease ends by itself after its time to live, measured on a clock
//! that no one sets, so a killed replayer is replaced; a replayer that was stopped longer than that finds
//! [`StoreError::LeaseLost`] and writes nothing.

pub mod attachment;
pub mod committer;
pub mod full_state;
pub mod key;
pub mod mount;
mod moved;
pub mod place;
pub mod rejected_room;
mod rescue;
pub mod room;
mod said;
pub mod slot;
pub mod sqlite;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

pub use self::full_state::{FullLimit, Fullness};
pub use self::key::{EncryptionKey, KeyError, KeyId, Keys};
pub use crate::message::Claimed;
use crate::message::{
    Attachment, Bucket, Buckets, EntityKey, Lane, Message, MessageId, MessageStatus, MessageType, Request, Server,
    Sha256, Touch,
};

/// Messages that survive the process, and the right to replay them.
///
/// Every verb that writes is one commit: after a crash either all of it has happened or none of it, and once it
/// returned, it is on the disk.
pub trait Store: Send + Sync {
    /// Tells this store from any other, also from one that takes its place under the same path. One that is opened again
    /// keeps it. What is remembered by the number of a message or of a lane means something in this store only.
    fn identity(&self) -> StoreIdentity {
        StoreIdentity::default()
    }

    /// Keeps what is needed to deliver from a full disk, as far as there is room for it. Called every second by an agent.
    ///
    /// # Errors
    ///
    /// As every verb that writes.
    fn keep_room(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Closes the files of the store for good, whoever still holds it. What is asked of it afterwards fails with
    /// [`StoreError::Unproven`].
    fn close(&self) {}

    /// Returns whether the store was opened in a way that a full disk asked for, and the disk has room again.
    fn has_to_be_reopened(&self) -> bool {
        false
    }

    // For intake.

    /// Stores messages, in this order, as *failed*: waiting for the next replay.
    ///
    /// Returns their ids, ascending, only when all of them are durable: the caller may acknowledge them.
    ///
    /// # Errors
    ///
    /// On any error none of them is stored. [`StoreError::Full`] when a limit would be passed,
    /// [`StoreError::Unusable`] when the disk refuses.
    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError>;

    /// Returns what stands before a new write of this lane that touches these entities.
    ///
    /// Sees what other processes committed. Intake asks it before every forwarded write: one indexed look-up while nothing
    /// waits, else one per entity, up to [`Ahead::TOUCHES_MAX`] of them.
    fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Result<Ahead, StoreError>;

    /// Returns how many messages of the lane still have to reach the server (failed or registered, not rejected).
    fn waiting(&self, lane: &Lane) -> Result<u64, StoreError> {
        Ok(self.ahead(lane, &[])?.messages)
    }

    /// Returns whether a write to this server that touches these entities may conflict with what is stored, whatever its
    /// lane.
    ///
    /// Needs no key, takes nothing but a reader, and so often works where the store can't be used.
    fn backlog_seen(&self, _server: &Server, _touches: &[Touch]) -> Result<BacklogSeen, StoreError> {
        Ok(BacklogSeen::Unknown)
    }

    /// Keeps a lane, or one bucket of it ([`Hold::bucket`]), from being replayed until then, whoever replays: the server
    /// limits it, as a forwarded write was told.
    ///
    /// A hold in force that lasts longer stays. Asked for before the write is registered, so that no other process sends
    /// it meanwhile.
    fn limit(&self, lane: &Lane, hold: &Hold) -> Result<(), StoreError>;

    // For those who wait until something is delivered.

    /// Returns the newest message that was ever stored.
    fn newest(&self) -> Result<MessageId, StoreError> {
        Ok(MessageId(i64::MAX / 4))
    }

    /// Returns how a lane stands, or all lanes of a server together, with what was accepted up to a message.
    ///
    /// Whether any of that waits is an indexed look-up per lane, so that it can be asked again and again.
    fn standing(&self, whose: &Whose, _up_to: MessageId) -> Result<Standing, StoreError> {
        let waiting = match whose {
            Whose::Lane(lane) => self.waiting(lane)?,
            Whose::Server(server) => self.backlog(&Filter::of_server(server))?.waiting(),
        };
        Ok(Standing { waits: waiting > 0, waiting, rejected: 0 })
    }

    /// Makes a lane due at once, or all lanes of a server that have something to replay: one that is held to be tried by a probe is
    /// tried now, and of its first messages (some thousand) those that wait for their next attempt.
    ///
    /// A rate limit of the server's stays in force.
    fn hasten(&self, _whose: &Whose) -> Result<(), StoreError> {
        Ok(())
    }
    /// Returns the traces and spans that a write updates and whose create nobody in this process saw confirmed: of these
    /// the server may make partial rows. Memory only.
    fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey>;

    /// Notes durably that updates of these traces and spans reach the server, or may, before their create.
    ///
    /// Their creates are handed out with that note ([`Claimed::ahead`]) until one was confirmed. Asked for before the
    /// client of a forwarded update is answered.
    fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)]) -> Result<(), StoreError>;

    /// Takes in a forwarded write that the server confirmed: what it created needs no note any more.
    ///
    /// Writes only where a single create or an end meets a note.
    fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Result<(), StoreError>;

    // For attachments. Most callers use them through [`attachment`].

    /// Makes a place for the bytes of an attachment; they count in the store's limits from the first piece on.
    ///
    /// What an upload left that ended without a message is removed: at once where its process is gone, and after an hour
    /// without a new piece in any case. The same happens in [`Store::announce`], [`Store::return_in_flight`] and
    /// [`Store::compact`]. Nobody's living upload is touched.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] at once when `bytes_expected` would pass a limit.
    fn begin_attachment(&self, bytes_expected: Option<u64>) -> Result<AttachmentId, StoreError>;

    /// Adds a piece; `number` counts from 0. Every piece but the last has exactly [`attachment::PIECE_BYTES`].
    ///
    /// It is durable only with the message. Other writers wait no longer for it than for a commit of that size.
    ///
    /// # Errors
    ///
    /// [`StoreError::AttachmentGone`] when the upload was taken for dead and removed, [`StoreError::Full`].
    fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> Result<(), StoreError>;

    /// Stores a message with the bytes that were added, as *failed*: [`Store::register`] for an attachment.
    ///
    /// Returns its id only when message and bytes are durable. After a crash there are both or neither. From then on the
    /// bytes live as long as the message does, whoever deletes it, and count as bytes of its body.
    ///
    /// # Errors
    ///
    /// [`StoreError::AttachmentGone`] when the store does not hold `file.bytes` bytes for it; else as [`Store::register`].
    fn register_attachment(
        &self,
        attachment: AttachmentId,
        file: &Attachment,
        message: &Message,
    ) -> Result<MessageId, StoreError>;

    /// Removes the bytes of an upload that ended without a message. One that is gone already is no error.
    fn abandon_attachment(&self, attachment: AttachmentId) -> Result<(), StoreError>;

    /// Returns what is known of a message's file, or `None` when it has none or is gone.
    fn attachment(&self, message: MessageId) -> Result<Option<Attachment>, StoreError>;

    /// Returns a piece of a message's file as it was added, or `None` past the end and when the message is gone.
    fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError>;

    // For salvage.

    /// Stores rows of SDK files that were not stored before, in this order and in one commit with the fact that they were.
    ///
    /// Returns the id of each that is new, `None` for one that was salvaged earlier, from whatever file: a copy has the
    /// same rows. That is remembered for good, so that a row is never sent a second time because its file came back.
    ///
    /// A full store refuses rows whatever [`WhenFull`] says: their file still has them.
    ///
    /// # Errors
    ///
    /// On any error none of them is stored; else as [`Store::register_attachment`].
    fn salvage(&self, rows: &[SalvagedRow]) -> Result<Vec<Option<MessageId>>, StoreError>;

    /// Says whether the row with this digest was salvaged earlier.
    fn is_salvaged(&self, row: &Sha256) -> Result<bool, StoreError>;

    // For replay.

    /// Takes the right to replay this store for `time_to_live`, or longer by [`Store::renew`].
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseHeld`] while another owner has it.
    fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Result<Lease, StoreError>;

    /// Extends the lease to `time_to_live` from now.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] when somebody else took it since: stop sending at once.
    fn renew(&self, lease: &Lease, time_to_live: Duration) -> Result<(), StoreError>;

    /// Gives the lease back. A lease that was lost meanwhile is no error.
    fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Makes *failed* again whatever an earlier lease left in flight; returns how many messages that were.
    fn return_in_flight(&self, lease: &Lease) -> Result<u64, StoreError>;

    /// Returns how many of the lane's first failed messages, in delivery order, have to be claimed for all of those that
    /// were in flight when an earlier replayer ended, and that nobody settled since; 0 when there are none.
    ///
    /// Several of these may have been on their way in one request, which the server may have: taken together, they are in
    /// one request again. Taken one by one, the first of them would be an older write over a newer one.
    fn interrupted(&self, _lane: LaneId) -> Result<usize, StoreError> {
        Ok(0)
    }

    /// Returns the lanes with failed messages that the filter selects, in the order of their oldest message.
    fn lanes(&self, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, StoreError>;

    /// Makes messages due at once where they wait for their next attempt: what kept them waiting is over.
    ///
    /// These, and of the lane's first ones (some thousand) those that no failure counts against: they had made room for
    /// others to try in their place, and whoever put them back may be dead by now.
    fn make_due(&self, lease: &Lease, lane: LaneId, messages: &[MessageId]) -> Result<(), StoreError>;

    /// Keeps the lane, or one bucket of it, from being replayed until then, and says why; `None` lets the lane go again,
    /// and leaves limits of buckets to their time.
    fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> Result<(), StoreError>;

    /// Takes the next failed messages of a lane for sending and marks them *registered*.
    ///
    /// They come in delivery order. A message whose time has not come (`next_attempt_at_ms`) is left, and so is every
    /// later one that [`crate::message::conflict`]s with one that is left or still in flight: nothing is ever claimed
    /// while an earlier message about the same entity waits. A filter narrows what is taken, not what is waited for: an
    /// earlier message that it does not select holds back what conflicts with it all the same.
    fn claim(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Vec<Claimed>, StoreError>;

    /// As [`Store::claim`], but takes nothing that is larger: where the next message alone has more bytes than
    /// `bytes_max`, it is left in the store, and the caller is told how many they are.
    fn claim_within(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Claim, StoreError> {
        self.claim(lease, lane, filter, limits, now_ms).map(Claim::Taken)
    }

    /// Writes what became of claimed messages, in one commit.
    ///
    /// Delivered messages are deleted, failed ones wait for the next replay, rejected ones stay with the server's
    /// answer. A message that `outcomes` does not name stays in flight until [`Store::return_in_flight`].
    ///
    /// After a crash either all of this has happened or none of it. None means a second delivery, which is harmless:
    /// ids come from the client, so the server sees an upsert.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] if another process replays by now: nothing was written, stop at once.
    fn settle(&self, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError>;

    // For decisions about whole lanes.

    /// Returns every lane that has a message, in the order of their ids. Needs no key.
    fn lane_list(&self, now_ms: i64) -> Result<Vec<LaneListed>, StoreError>;

    /// Gives what an earlier version stored, which recorded no server, to this one; returns how many messages that were.
    ///
    /// Costs one look-up once all lanes have a server. Noted in [`Condition::adoptions`].
    fn adopt(&self, server: &Server) -> Result<u64, StoreError>;

    /// Gives up to `limit` messages of a lane to another lane; returns how many. 0 once only messages in flight are left.
    ///
    /// They keep their ids, their place in the order and what the server said of them. Where a lane is refused, held or
    /// waits for an attempt, the messages that leave it do not.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`]: what is being sent must not change its destination, so this needs the lease.
    fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> Result<u64, StoreError>;

    /// Erases credentials, and sets of headers, that no message needs: from the file's free space and from the log, too.
    /// Returns whether nothing of them is left. What is left, because another process reads the log, the next call erases.
    fn erase_credentials(&self) -> Result<bool, StoreError>;

    /// Makes one *held* message *failed* again in each lane where the server refused none since `answered_before_ms`: the
    /// one that was refused longest ago, the newest of several. Returns which.
    ///
    /// It is sent as any other; what became of it tells whether the server still refuses the others.
    fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, StoreError>;

    /// Makes all *held* messages of a lane *failed* again, with no attempts counted; returns how many.
    fn release_held(&self, lease: &Lease, lane: LaneId) -> Result<u64, StoreError>;

    // For people.

    /// Counts the messages that wait for a create that the server refused; see the module's head.
    ///
    /// Looks at the first waiting messages of each lane only (some ten thousand), so that it may count too few.
    fn stranded(&self) -> Result<Vec<Stranded>, StoreError>;

    /// Counts what the filter selects. Without conditions on age, id, project or entity it never scans messages.
    fn backlog(&self, filter: &Filter) -> Result<Backlog, StoreError>;

    /// Returns one page of what the filter selects, without bodies.
    fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Listed>, StoreError>;

    /// Returns one message whole, or `None` when there is none (any more).
    fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError>;

    /// Deletes up to `limit` of the messages that the filter selects, except those in flight under a living lease.
    fn purge(&self, filter: &Filter, limit: usize) -> Result<Purged, StoreError>;

    /// Drops up to `limit` of the oldest messages that were accepted before then, except those in flight; returns how many.
    ///
    /// They are counted ([`Condition::expired`]) in the same commit. Looks at the oldest messages only: where the first
    /// `limit` of them are younger than that, or in flight, it finds none.
    fn expire(&self, accepted_before_ms: i64, limit: usize) -> Result<u64, StoreError>;

    /// Makes rejected and held messages that the filter selects *failed* again, with no attempts counted; returns how many.
    ///
    /// A salvaged row that no request could be made of has no method, and stays rejected.
    fn requeue(&self, filter: &Filter) -> Result<u64, StoreError>;

    /// Looks for damage and for summary rows that don't agree with the messages; returns what is wrong, in words.
    ///
    /// Reads the whole store: some ten seconds for a gigabyte. Nobody else waits for it.
    fn check(&self) -> Result<Vec<String>, StoreError>;

    /// Gives space of deleted messages back to the file system; returns how many bytes the store takes now.
    fn compact(&self) -> Result<u64, StoreError>;

    /// Returns who works with the store, what is held and how it stands with its limits.
    fn condition(&self) -> Result<Condition, StoreError>;

    /// Records a running agent, or with `None` that this process runs none any more.
    fn announce(&self, agent: Option<&AgentRecord>) -> Result<(), StoreError>;

    /// Records how a replay ended, for `status`.
    fn note_replay(&self, record: &ReplayRecord) -> Result<(), StoreError>;

    /// Records since when the store is full, and adds to the count of writes that it refused. For people only: what is
    /// not noted before a crash is not counted.
    fn note_full(&self, _since_ms: Option<i64>, _refused: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Why a store can't do what it was asked, sorted by what the caller can do about it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no store at this path yet: nothing was ever stored, or it is the wrong path.
    #[error("there is no message store at {path}")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The path is no place for a store: a directory, another kind of file, somebody else's database.
    #[error("{path} is not a message store: {reason}")]
    NotAStore {
        /// The path given.
        path: PathBuf,
        /// What stands there instead.
        reason: String,
    },
    /// A newer opik-offline wrote it; it was left untouched.
    #[error("the message store {path} has schema version {found}, and this opik-offline knows versions up to {known}")]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its `user_version`.
        found: i64,
        /// The newest that we know.
        known: i64,
    },
    /// An older opik-offline uses it, which would misread what a newer one writes: its schema is left as it is until then.
    #[error(
        "the message store {path} has schema version {found} and is in use by an older opik-offline{}; it is brought up \
         to version {known} once that has ended", by_pids(.pids)
    )]
    OlderInUse {
        /// The file.
        path: PathBuf,
        /// Its `user_version`.
        found: i64,
        /// The version that it is to have.
        known: i64,
        /// The processes that announced themselves and run; empty where none can be seen.
        pids: Vec<u32>,
    },
    /// The file is damaged.
    #[error("the message store {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// It can't be read or written: permissions, a full disk, a failing disk.
    #[error("cannot use the message store {path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A write or a sync failed: what it holds has to be written anew and synced before it is used again.
    #[error(
        "cannot use the message store {path} after an error of the disk: {reason}; \
         it is used again once its log was written anew and synced"
    )]
    Unproven {
        /// The file.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A limit of ours would be passed.
    #[error("the message store {path} is full: {reason}")]
    Full {
        /// The file.
        path: PathBuf,
        /// Which limit.
        limit: FullLimit,
        /// How many bytes of the file were asked for.
        needed: u64,
        /// The limit with its figures.
        reason: String,
    },
    /// Other processes kept it locked for too long; try again.
    #[error("the message store {path} is busy: other processes kept it locked for {waited_ms} ms")]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// Another process replays this store.
    #[error("another process replays this store: {owner}")]
    LeaseHeld {
        /// Who has it.
        owner: Owner,
    },
    /// The bytes of an attachment that was not registered yet are not there any more.
    #[error("the attachment's bytes were removed from the message store before the upload was complete")]
    AttachmentGone,
    /// It is encrypted, and there is no key.
    #[error("the message store {path} is encrypted with key {needed}, and no key is set")]
    KeyMissing {
        /// The file.
        path: PathBuf,
        /// The key's name.
        needed: KeyId,
    },
    /// It is encrypted with another key.
    #[error("the message store {path} is encrypted with key {needed}, and the key that is set is {given}")]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// The name of the key that it needs.
        needed: KeyId,
        /// The name of the key that there is.
        given: KeyId,
    },
    /// An earlier change of its key has not come to its end.
    #[error("the key of the message store {path} can't be changed: an earlier change has not come to its end")]
    TooManyKeys {
        /// The file.
        path: PathBuf,
    },
    /// A key that was configured can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Our lease ended and somebody else took it.
    #[error("the replay lease was lost to another process")]
    LeaseLost,
}

/// Names processes inside a sentence.
fn by_pids(pids: &[u32]) -> String {
    match pids {
        [] => String::new(),
        pids => format!(" (pid {})", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

impl StoreError {
    /// Returns whether the store has to be written anew and synced before it is used again.
    pub fn is_unproven(&self) -> bool {
        matches!(self, Self::Unproven { .. })
    }

    /// Returns whether nothing is wrong with the store but that this process lacks a key of it.
    pub fn lacks_key(&self) -> bool {
        matches!(self, Self::KeyMissing { .. } | Self::WrongKey { .. } | Self::TooManyKeys { .. })
    }
}

/// Who holds a lease: shown to people, and different for every process and replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `agent` or `replay`.
    pub role: String,
    /// The process id.
    pub pid: u32,
    /// Tells owners with one process id apart.
    pub nonce: String,
}

impl Owner {
    /// Returns a new owner in this process.
    pub fn this_process(role: &str) -> Self {
        Self { role: role.to_owned(), pid: std::process::id(), nonce: uuid::Uuid::now_v7().simple().to_string() }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "opik-offline {} (pid {})", self.role, self.pid)
    }
}

/// Tells a store from any other on this machine; see [`Store::identity`].
///
/// A file's device, its number there, and when it was made: a number is given again once its file is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreIdentity {
    device: u64,
    number: u64,
    /// Nanoseconds since the Unix epoch; `None` where the file system does not say.
    made_at_ns: Option<u128>,
}

#[cfg(test)]
impl StoreIdentity {
    /// Returns one of a store that is on no disk.
    pub(crate) fn of_a_test(number: u64) -> Self {
        Self { number, ..Self::default() }
    }
}

/// The right to replay one store. Worth nothing once [`StoreError::LeaseLost`] was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Who has it.
    pub owner: Owner,
    /// Grows with every acquisition; what an older one writes is refused.
    pub epoch: i64,
}

/// Names the bytes of an attachment in one store while they belong to no message; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(pub i64);

/// A row of an SDK's file, as it is to be stored.
#[derive(Clone, Debug)]
pub struct SalvagedRow {
    /// The digest by which the row is recognised, in whatever file it lies.
    pub row: Sha256,
    /// What is stored of it.
    pub message: Message,
    /// Why it can't be sent; `None` when it waits for replay.
    pub rejected: Option<LastAnswer>,
    /// The bytes of its file, for attachments.
    pub file: Option<(AttachmentId, Attachment)>,
}

/// Names a lane in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub i64);

/// What stands before a new write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Messages of its lane that still have to reach the server.
    pub messages: u64,
    /// Whether one of them is, or may be, one that the write must not overtake ([`crate::message::conflict`]), or the write
    /// depends on a create that the server refused.
    pub conflicting: bool,
    /// Whether something waits, and the lane is held.
    pub held: bool,
    /// Buckets of the lane that are limited; none while nothing waits.
    pub limited: Buckets,
}

impl Ahead {
    /// A write that touches more entities than this is taken to conflict with whatever waits.
    pub const TOUCHES_MAX: usize = 256;
}

/// What can be seen of the backlog of a store, also of one that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BacklogSeen {
    /// There is no store: nothing was ever kept.
    NeverWas,
    /// Nothing of the server is stored.
    Empty,
    /// Something of the server is stored.
    Holds {
        /// Messages still have to reach the server.
        waiting: bool,
        /// The write that was asked about must not pass, or may have to wait for one of them.
        conflicting: bool,
    },
    /// Nothing can be seen.
    Unknown,
}

impl BacklogSeen {
    /// Returns what can be seen of two files together.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Holds { waiting, conflicting }, Self::Holds { waiting: also, conflicting: too }) => {
                Self::Holds { waiting: waiting || also, conflicting: conflicting || too }
            }
            (one, other) => one.max(other),
        }
    }
}

/// Whose messages are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of one lane.
    Lane(Lane),
    /// Those of all lanes of a server.
    Server(Server),
}

/// How a lane stands, see [`Store::standing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether anything accepted up to the message that was asked about still has to reach the server.
    pub waits: bool,
    /// How many messages still have to reach the server, whenever they were accepted.
    pub waiting: u64,
    /// How many messages the server refused.
    pub rejected: u64,
}

/// Why a lane is not replayed, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// When it is tried again, in milliseconds since the Unix epoch.
    pub until_ms: i64,
    /// Why, for people; names no key.
    pub reason: String,
    /// Whether one message is to try the lane before the rest follows (an expired key), or all may go (a rate limit).
    pub probe: bool,
    /// The status of the answer that it is held for; `None` when none came, and for holds of earlier versions.
    pub status: Option<u16>,
    /// What is held of the lane, where it is not all: the bucket of a rate limit. Over once its time is.
    pub bucket: Option<Bucket>,
}

impl Hold {
    /// Returns whether the server refused the lane's credential: another one may be let in.
    pub fn is_credential_refused(&self) -> bool {
        matches!(self.status, Some(401 | 403))
    }
}

/// A lane that has messages, for people and for decisions about all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneListed {
    /// Its name in this store.
    pub id: LaneId,
    /// Where its messages belong. Without its credential where the store's key is missing.
    pub lane: Lane,
    /// Messages that still have to reach the server.
    pub waiting: u64,
    /// Messages that the server refused, for good or for the time in their ids.
    pub rejected: u64,
    /// The hold in force, or the last one that ended without a success since.
    pub hold: Option<Hold>,
}

/// That a server was given the messages of an earlier version, which recorded no server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptionRecord {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The server.
    pub server: Server,
    /// How many messages.
    pub messages: u64,
}

/// A lane with messages to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneWork {
    /// Its name in this store.
    pub id: LaneId,
    /// Whose messages they are.
    pub lane: Lane,
    /// How many failed messages the filter selects.
    pub failed: u64,
    /// The earliest time at which one of them may be claimed, in milliseconds since the Unix epoch; past or now when
    /// one may be at once, `i64::MAX` when all wait for what is in flight or for what the filter does not select. Takes
    /// the hold into account.
    pub due_at_ms: i64,
    /// The hold in force, or the last one that ended without a success since.
    pub hold: Option<Hold>,
    /// The rate limits in force, one for each bucket at most.
    pub limits: Vec<Hold>,
    /// A refused create for which all of them wait, when nothing else keeps them: no message of the lane is in flight, and
    /// time alone frees none.
    pub waits_for: Option<MessageId>,
}

impl LaneWork {
    /// Returns why messages of the lane wait: its hold, then its limits.
    pub fn holds(&self) -> impl Iterator<Item = &Hold> {
        self.hold.iter().chain(&self.limits)
    }

    /// Returns why the whole lane waits, if it does.
    ///
    /// A limit of one bucket holds the lane only while nothing else of it may be sent.
    pub fn held_as_a_whole(&self, now_ms: i64) -> Option<&Hold> {
        let limit = || self.limits.iter().max_by_key(|limit| limit.until_ms).filter(|_| self.due_at_ms > now_ms);
        self.hold.as_ref().or_else(limit)
    }
}

/// Messages of one lane that wait for a create that the server refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// Whose messages they are.
    pub lane: Lane,
    /// How many, or the least that there are.
    pub messages: u64,
    /// The refused create that the first of them waits for.
    pub create: MessageId,
    /// Whether that one is *held* or *rejected*.
    pub status: MessageStatus,
}

/// How much one claim may take. At least one message is always taken, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimLimits {
    /// Messages at most.
    pub messages_max: usize,
    /// Bytes of bodies at most.
    pub bytes_max: u64,
}

/// What came of [`Store::claim_within`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// These messages are to be sent now; none when nothing is due.
    Taken(Vec<Claimed>),
    /// The next message is larger than what may be taken.
    TooLarge {
        /// The bytes of its body, as sent.
        bytes: u64,
    },
}

/// What became of one claimed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server confirmed it: it is deleted.
    Delivered,
    /// It waits for another try, not before `next_attempt_at_ms` (Unix epoch; 0: at once).
    Failed {
        /// When it may be claimed again.
        next_attempt_at_ms: i64,
        /// Whether this counts as an attempt of its own; it does not when the fault was the connection's or the lane's.
        counts: bool,
        /// The server's answer or the failure, for people; `None` when the message was not sent.
        answer: Option<LastAnswer>,
    },
    /// The server refused it for good: kept until a person replays or purges it.
    Rejected {
        /// The server's words.
        answer: LastAnswer,
    },
    /// The server refused it for the time in its ids: kept, and tried again now and then.
    Held {
        /// The server's words.
        answer: LastAnswer,
    },
    /// It was divided. What these parts don't carry was delivered; each of them takes the message's place in the order,
    /// as a message with an id of its own.
    Divided {
        /// What is left of it, in the order of its items; at least one.
        parts: Vec<Part>,
    },
}

impl Outcome {
    /// Returns how many messages this leaves rejected.
    pub fn rejected_messages(&self) -> usize {
        match self {
            Self::Rejected { .. } => 1,
            Self::Divided { parts } => parts.iter().filter(|part| part.rejected.is_some()).count(),
            Self::Delivered | Self::Failed { .. } | Self::Held { .. } => 0,
        }
    }

    /// Returns how many messages this leaves held.
    pub fn held_messages(&self) -> usize {
        match self {
            Self::Held { .. } => 1,
            Self::Divided { parts } => parts.iter().filter(|part| part.held.is_some()).count(),
            Self::Delivered | Self::Failed { .. } | Self::Rejected { .. } => 0,
        }
    }
}

/// A part of a message that was divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What to send.
    pub request: Request,
    /// What it is about.
    pub touches: Vec<Touch>,
    /// How many items it carries.
    pub items: u32,
    /// The server's words when it refused this part for good; `None` when it waits for another try.
    pub rejected: Option<LastAnswer>,
    /// The server's words when it refused this part for the time in its ids, which is then its status.
    pub held: Option<LastAnswer>,
}

impl Part {
    /// Returns the status that it is stored with, and the server's words to it.
    pub fn status(&self) -> (MessageStatus, Option<&LastAnswer>) {
        match (&self.rejected, &self.held) {
            (Some(answer), _) => (MessageStatus::Rejected, Some(answer)),
            (None, Some(answer)) => (MessageStatus::Held, Some(answer)),
            (None, None) => (MessageStatus::Failed, None),
        }
    }
}

/// The last answer to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAnswer {
    /// The status, or `None` when no answer came.
    pub status: Option<u16>,
    /// The body's beginning, or what failed. At most [`LastAnswer::TEXT_BYTES_MAX`] bytes are kept.
    pub text: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
}

impl LastAnswer {
    /// How much of an answer is kept, in bytes.
    pub const TEXT_BYTES_MAX: usize = 4096;

    /// Returns the part of the text that is kept: whole characters, at most [`LastAnswer::TEXT_BYTES_MAX`] bytes.
    pub fn text_kept(&self) -> &str {
        let mut end = self.text.len().min(Self::TEXT_BYTES_MAX);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        &self.text[..end]
    }
}

/// Selects messages; every condition that is set must hold. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these statuses; empty: any.
    pub statuses: Vec<MessageStatus>,
    /// One of these types; empty: any.
    pub types: Vec<MessageType>,
    /// In one of these workspaces, by [`Lane::workspace_name`]; empty: any.
    pub workspaces: Vec<String>,
    /// For one of these servers; empty: any. Never selects what has no server yet.
    pub servers: Vec<Server>,
    /// One of these projects; empty: any.
    pub projects: Vec<String>,
    /// One of these ids; empty: any.
    pub ids: Vec<MessageId>,
    /// About one of these entities, references included; empty: any.
    pub entities: Vec<EntityKey>,
    /// Accepted before this time, in milliseconds since the Unix epoch.
    pub accepted_before_ms: Option<i64>,
    /// Accepted at this time or later, in milliseconds since the Unix epoch.
    pub accepted_since_ms: Option<i64>,
}

impl Filter {
    /// Returns the filter of everything that was accepted for this server.
    pub fn of_server(server: &Server) -> Self {
        Self { servers: vec![server.clone()], ..Self::default() }
    }
}

/// Which part of a list to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Continue after this message.
    pub after: Option<MessageId>,
    /// Messages at most.
    pub limit: usize,
    /// The newest first instead of the oldest.
    pub newest_first: bool,
}

/// A message as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: MessageId,
    /// What has become of it.
    pub status: MessageStatus,
    /// What kind it is.
    pub message_type: MessageType,
    /// Whose it is.
    pub lane: Lane,
    /// The project that it names.
    pub project: Option<String>,
    /// The method and path that it goes to.
    pub method: String,
    /// Path and query below the server's base.
    pub path: String,
    /// How many items it carries.
    pub items: u32,
    /// Bytes of its body as sent, and of its file.
    pub body_bytes: u64,
    /// What is known of its file, for attachments.
    pub attachment: Option<Attachment>,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub accepted_at_ms: i64,
    /// Attempts that counted against it.
    pub attempts: u32,
    /// When it may be tried again, in milliseconds since the Unix epoch; 0: at once.
    pub next_attempt_at_ms: i64,
    /// The last answer to it.
    pub answer: Option<LastAnswer>,
}

/// A message whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// What a list shows of it.
    pub listed: Listed,
    /// What would be sent.
    pub request: Request,
    /// What it is about.
    pub touches: Vec<Touch>,
}

/// Counts of stored messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// One row per status, type and workspace.
    pub groups: Vec<BacklogGroup>,
    /// When the oldest message that still has to reach the server was accepted, in milliseconds since the Unix epoch.
    /// The first message in a lane's order of delivery stands for those behind it.
    pub oldest_accepted_at_ms: Option<i64>,
    /// How many rejected messages per status of the server's answer, the commonest first.
    pub rejected_by_answer: Vec<(Option<u16>, u64)>,
}

/// One row of a backlog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogGroup {
    /// Their status.
    pub status: MessageStatus,
    /// Their type.
    pub message_type: MessageType,
    /// Their workspace, by [`Lane::workspace_name`].
    pub workspace: String,
    /// Their server; `None` for what an earlier version stored.
    pub server: Option<Server>,
    /// How many.
    pub messages: u64,
    /// Items in them.
    pub items: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
}

impl Backlog {
    /// Returns how many messages still have to reach the server.
    pub fn waiting(&self) -> u64 {
        self.count(MessageStatus::is_on_its_way)
    }

    /// Returns how many messages the server refused.
    pub fn rejected(&self) -> u64 {
        self.count(|status| status == MessageStatus::Rejected)
    }

    /// Returns how many messages the server refused for the time in their ids.
    pub fn held(&self) -> u64 {
        self.count(|status| status == MessageStatus::Held)
    }

    /// Returns how many messages were counted, whatever their status.
    pub fn messages(&self) -> u64 {
        self.count(|_| true)
    }

    fn count(&self, of: impl Fn(MessageStatus) -> bool) -> u64 {
        self.groups.iter().filter(|group| of(group.status)).map(|group| group.messages).sum()
    }
}

/// What a purge took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Messages deleted.
    pub messages: u64,
    /// Items in them.
    pub items: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
}

/// Who works with a store, and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Bytes of the store's files.
    pub file_bytes: u64,
    /// Bytes in those files that new messages can reuse.
    pub free_bytes: u64,
    /// The limit in force for this process, in bytes.
    pub size_max: Option<u64>,
    /// Bytes free on the disk.
    pub disk_free_bytes: Option<u64>,
    /// Bytes that the store's files can reach: the limit, or less where the disk has no room for that.
    pub capacity_bytes: Option<u64>,
    /// The schema's version.
    pub schema_version: i64,
    /// Who replays right now.
    pub lease: Option<Owner>,
    /// Agents that announced themselves; one that was killed may still stand here.
    pub agents: Vec<AgentRecord>,
    /// How the last replay ended.
    pub last_replay: Option<ReplayRecord>,
    /// Lanes on hold, and those that are tried again after one.
    pub held: Vec<(Lane, Hold)>,
    /// Which servers were given messages of earlier versions.
    pub adoptions: Vec<AdoptionRecord>,
    /// Messages dropped because the store was full, since it was made.
    pub dropped: u64,
    /// Messages dropped because they had become too old, since it was made.
    pub expired: u64,
    /// Rejected messages dropped because they held more than their share and room was needed, since it was made.
    pub rejected_dropped: u64,
    /// Why it has no room for a message of the usual size, if so. Where [`WhenFull::DropOldest`] makes room, it has.
    pub full: Option<Fullness>,
    /// Bytes of the file for which there is room.
    pub room_bytes: u64,
    /// What agents noted of writes that found it full.
    pub full_record: FullRecord,
    /// The damaged files that this store was recovered from, the oldest first.
    pub recoveries: Vec<RecoveryRecord>,
    /// Whether it is encrypted, and whether we have the key.
    pub encryption: Encryption,
    /// Since when and why it has to be written anew and synced before it is used again.
    pub unproven: Option<Unproven>,
}

/// That a write or a sync of a store failed, and it was not written anew and synced since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// When, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// What failed.
    pub reason: String,
}

/// How a store's contents are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// The key that new things are sealed with; `None` when they are kept as they are.
    pub sealed_with: Option<KeyId>,
    /// The key that things of before may be sealed with.
    pub previous: Option<KeyId>,
    /// Whether everything is kept like that, and nothing of before is left in the files.
    pub is_complete: bool,
    /// Whether we have the keys that it needs.
    pub key: KeyState,
}

impl Default for Encryption {
    fn default() -> Self {
        Self { sealed_with: None, previous: None, is_complete: true, key: KeyState::Usable }
    }
}

/// Whether we have the keys that a store needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// All of them, or it needs none.
    Usable,
    /// There is none.
    Missing,
    /// There are others.
    Wrong,
}

/// How a store was recovered from a damaged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryRecord {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Where the damaged file lies.
    pub set_aside: PathBuf,
    /// Whether it still lies there: whoever removes it has seen what happened.
    pub is_kept: bool,
    /// What was wrong with it, in the engine's words.
    pub reason: String,
    /// Messages that are in the new store.
    pub recovered: u64,
    /// Messages that are known to have been in it and could not be read whole.
    pub lost: u64,
}

/// What is noted of a store that is or was full, for those who look when no agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FullRecord {
    /// Since when it is full, in milliseconds since the Unix epoch; `None` when it takes messages.
    pub since_ms: Option<i64>,
    /// Writes that were refused because it was full, since it was made.
    pub refused: u64,
}

/// A running agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its process id.
    pub pid: u32,
    /// Where it listens: `127.0.0.1:6745`.
    pub listen: String,
    /// The Opik server that it delivers to.
    pub upstream: String,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_at_ms: i64,
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRecord {
    /// Who replayed.
    pub role: String,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_at_ms: i64,
    /// When it ended.
    pub ended_at_ms: i64,
    /// Messages that the server confirmed.
    pub delivered: u64,
    /// Messages that it refused.
    pub rejected: u64,
    /// Messages left waiting at the end.
    pub remaining: u64,
}

/// What a store may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the store's files at most.
    pub size_max: u64,
    /// Bytes that stay free on the disk.
    pub disk_reserve: u64,
    /// What happens to new messages when a limit is reached.
    pub when_full: WhenFull,
}

/// What happens to new messages when the store is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// They are refused ([`StoreError::Full`]): the client still has them.
    Refuse,
    /// The oldest messages make room and are counted as dropped: first rejected ones beyond their share
    /// ([`rejected_room`]), then those that wait.
    DropOldest,
}

/// Whether opening may make a new store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Make it, and its folder, when there is none.
    CreateIfMissing,
    /// [`StoreError::Missing`] when there is none. For those who only look: a damaged file stays where it is.
    Existing,
    /// The same, also when there is no key or another one: what is not sealed can be read, counted and deleted, and all
    /// else fails as opening would.
    WithoutKey,
    /// The same as [`OpenMode::Existing`], and a damaged file is recovered.
    ExistingOrRecovered,
}

impl OpenMode {
    /// Says whether a damaged file is set aside and what can be read is recovered, as the agent and `replay` do it.
    pub fn recovers(self) -> bool {
        match self {
            Self::CreateIfMissing | Self::ExistingOrRecovered => true,
            Self::Existing | Self::WithoutKey => false,
        }
    }
}

/// Opens the store at this path.
///
/// # Errors
///
/// [`StoreError::Missing`], [`StoreError::NotAStore`], [`StoreError::NewerSchema`], [`StoreError::Damaged`],
/// [`StoreError::Unusable`] or [`StoreError::Busy`]; the file is as it was. A mode that recovers knows no
/// [`StoreError::Damaged`] but that of a file that can't be read at all.
pub fn open(path: &Path, mode: OpenMode, limits: Limits) -> Result<Arc<dyn Store>, StoreError> {
    open_with(path, mode, limits, &Keys::default())
}

/// Opens the store at this path with these keys.
///
/// With a current key and [`OpenMode::CreateIfMissing`], everything is sealed with that key from now on. What was stored
/// before stays as it is until [`reseal`].
///
/// # Errors
///
/// As [`open`], and [`StoreError::KeyMissing`], [`StoreError::WrongKey`] or [`StoreError::TooManyKeys`].
pub fn open_with(path: &Path, mode: OpenMode, limits: Limits, keys: &Keys) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(sqlite::SqliteStore::open_with(path, mode, limits, keys)?))
}

/// Writes a store anew and syncs it, where an earlier write or sync of it failed. Opening it with a mode that recovers does
/// the same; this is for those who open it with another one.
///
/// # Errors
///
/// [`StoreError::Unproven`] while another process has it open, and what keeps it from being written.
pub fn prove(path: &Path) -> Result<(), StoreError> {
    sqlite::prove(path)
}

/// Returns since when and why the store at this path has to be written anew and synced before it is used again.
pub fn unproven(path: &Path) -> Option<Unproven> {
    sqlite::unproven(path)
}

/// Returns how many writes and syncs of stores failed in this process.
pub fn io_errors() -> u64 {
    sqlite::io_errors()
}

/// How far [`reseal`] has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resealing {
    /// Things that were sealed, opened or sealed anew.
    pub done: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Keeps everything in the store as the keys ask for: sealed with the current one, or without any where there is only a
/// previous one. Then removes from its files whatever is left of before.
///
/// Others may use the store meanwhile, agents that have both keys included: what it writes, it writes in small steps. Only
/// the last one, which writes the file anew, keeps writers waiting for as long as that takes. It may be ended at any time,
/// however hard, and then be done again; `on_progress` is called after every step and ends it by returning `false`.
///
/// Returns what was done, and the size of the file where it could not be written anew because an agent uses it.
///
/// # Errors
///
/// As [`open_with`].
pub fn reseal(
    path: &Path,
    limits: Limits,
    keys: &Keys,
    on_progress: &mut dyn FnMut(Resealing) -> bool,
) -> Result<Resealed, StoreError> {
    sqlite::reseal(path, limits, keys, on_progress)
}

/// How [`reseal`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resealed {
    /// Everything is kept as asked, and nothing of before is left.
    Complete(Resealing),
    /// Everything is kept as asked, and what is left of before in unused parts of the files could not be removed.
    Remnants {
        /// What was done.
        done: Resealing,
        /// Why.
        reason: String,
    },
    /// It was ended by its caller.
    Stopped(Resealing),
}

/// Sets aside the file at this path, which was found damaged while it was in use, and opens the store with what was
/// recovered. Where another process did so meanwhile, that costs nothing but time.
///
/// # Errors
///
/// As [`open_with`].
pub fn recover(path: &Path, reason: &str, limits: Limits, keys: &Keys) -> Result<Arc<dyn Store>, StoreError> {
    match sqlite::FileId::at(path) {
        Some(file) => Ok(Arc::new(sqlite::SqliteStore::recover(path, file, reason, limits, keys)?)),
        None => open_with(path, OpenMode::ExistingOrRecovered, limits, keys),
    }
}

/// Returns a reading of the clock that leases are measured on: nobody sets it, and it runs on while the machine sleeps
/// (`CLOCK_BOOTTIME`). [`std::time::Instant`] stands still then, so that whoever measured a lease on it would believe in
/// one that ended in the night. Systems other than Linux have no such clock; there the monotonic one stands in.
pub fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns the time as a store's records have it: the wall clock, in milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
