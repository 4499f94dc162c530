//! The values that readers exchange with a store: filters, pages, counts, records.

use super::encryption::state::Encryption;
use super::full_state::Fullness;
use super::location::Location;
use super::replay_hold::ReplayHold;
use super::work::{Hold, LaneId, LastAnswer, Owner, SalvagedRow};
use crate::message::{
    Attachment, EntityKey, Lane, Message, MessageId, MessageStatus, MessageType, Request, Server, Sha256, Touch,
};

/// The visible part of a store's backlog, also if the store can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BacklogSeen {
    /// There is no store: nothing was ever stored.
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

/// The progress of a lane, see [`super::Browse::standing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether anything accepted up to the message that was asked about still has to reach the server.
    pub waits: bool,
    /// How many messages still have to reach the server, whenever they were accepted.
    pub waiting: u64,
    /// How many messages the server refused.
    pub rejected: u64,
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
    /// Its status.
    pub status: MessageStatus,
    /// Its type.
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
    /// The description of its file, for attachments.
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
    /// Its row in a list.
    pub listed: Listed,
    /// The request to send.
    pub request: Request,
    /// The entities that it touches.
    pub touches: Vec<Touch>,
    /// Its place in the delivery order of its lane: parts of a divided message have that of the whole.
    pub position: i64,
}

impl StoredMessage {
    /// Returns the message as it was registered.
    pub fn into_message(self) -> Message {
        let Self { listed, request, touches, .. } = self;
        Message {
            lane: listed.lane,
            message_type: listed.message_type,
            request,
            touches,
            items: listed.items,
            project: listed.project,
            accepted_at_ms: listed.accepted_at_ms,
        }
    }

    /// Returns the row by which another store takes the message, with the status that it has here.
    pub fn into_salvaged(self, row: Sha256) -> SalvagedRow {
        let (status, at_ms) = (self.listed.status, self.listed.accepted_at_ms);
        let answer = self.listed.answer.clone().unwrap_or(LastAnswer { status: None, text: String::new(), at_ms });
        let rejected = (status == MessageStatus::Rejected).then(|| answer.clone());
        let held = (status == MessageStatus::Held).then_some(answer);
        SalvagedRow { held, ..SalvagedRow::new(row, self.into_message(), rejected) }
    }
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

    /// Returns how many messages were counted, of any status.
    pub fn messages(&self) -> u64 {
        self.count(|_| true)
    }

    fn count(&self, of: impl Fn(MessageStatus) -> bool) -> u64 {
        self.groups.iter().filter(|group| of(group.status)).map(|group| group.messages).sum()
    }
}

/// The counts of deleted messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Messages deleted.
    pub messages: u64,
    /// Items in them.
    pub items: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
}

/// The processes that use a store, its limits and its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Bytes that the engine uses for the store.
    pub file_bytes: u64,
    /// Of these, the bytes that new messages can reuse.
    pub free_bytes: u64,
    /// The limit in force for this process, in bytes.
    pub size_max: Option<u64>,
    /// Bytes free on the disk.
    pub disk_free_bytes: Option<u64>,
    /// Bytes that the store's files can reach: the limit, or less where the disk has no room for that.
    pub capacity_bytes: Option<u64>,
    /// The schema's version.
    pub schema_version: i64,
    /// The current replayer.
    pub lease: Option<Owner>,
    /// Agents that announced themselves, possibly also killed ones.
    pub agents: Vec<AgentRecord>,
    /// How the last replay ended.
    pub last_replay: Option<ReplayRecord>,
    /// Lanes on hold in which messages wait, and those that are retried after one.
    pub held: Vec<(Lane, Hold)>,
    /// The last hold of the whole store that nobody has ended; it may be over.
    pub replay_hold: Option<ReplayHold>,
    /// Which servers were given messages of earlier versions.
    pub adoptions: Vec<AdoptionRecord>,
    /// Messages dropped because the store was full, since it was made.
    pub dropped: u64,
    /// Messages that expired, since it was created.
    pub expired: u64,
    /// Rejected messages dropped because they held more than their share and room was needed, since it was made.
    pub rejected_dropped: u64,
    /// Why it has no room for a message of the usual size, if so. Where [`super::WhenFull::DropOldest`] makes room, it has.
    pub full: Option<Fullness>,
    /// Bytes of the file for which there is room.
    pub room_bytes: u64,
    /// Recorded writes that were refused because it was full.
    pub full_record: FullRecord,
    /// The damaged files that this store was recovered from, the oldest first.
    pub recoveries: Vec<RecoveryRecord>,
    /// Whether it is encrypted, and whether we have the key.
    pub encryption: Encryption,
    /// Since when and why it has to be rewritten and synced before it is used again.
    pub unproven: Option<Unproven>,
}

/// Records that a write or a sync of a store failed, and that it was not rewritten and synced since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// When, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// The failure.
    pub reason: String,
}

/// How a store was recovered from a damaged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryRecord {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Where the damaged file is.
    pub set_aside: Location,
    /// Whether it still exists: a person who removed it knows of the recovery.
    pub is_kept: bool,
    /// The damage, in the engine's words.
    pub reason: String,
    /// Messages that are in the new store.
    pub recovered: u64,
    /// Messages that are known to have been in it and could not be read whole.
    pub lost: u64,
}

/// The record of a store that is or was full, readable when no agent runs.
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

impl AgentRecord {
    /// Returns whether a process with its id runs; a reused id counts as running.
    pub(crate) fn is_running(&self) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    }
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRecord {
    /// The replayer's role.
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
