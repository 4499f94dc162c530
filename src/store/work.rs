//! The values that intake and replay exchange with a store: leases, claims, outcomes, holds.

use crate::message::{
    Attachment, Bucket, Buckets, Claimed, Lane, Message, MessageId, MessageStatus, Request, Sha256, Touch,
};

/// The holder of a lease: shown to people, and different for every process and replay.
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

/// The right to replay one store. Invalid once [`super::StoreError::LeaseLost`] was returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its holder.
    pub owner: Owner,
    /// The fencing token: grows with every acquisition, and writes under an older one are refused.
    pub epoch: i64,
}

/// Identifies the bytes of an attachment in one store while they belong to no message; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(pub i64);

/// A row of an SDK's file, or a message of another store, in the form that is stored.
#[derive(Clone, Debug)]
pub struct SalvagedRow {
    /// The digest by which the row is deduplicated, in any file.
    pub row: Sha256,
    /// The message made of it.
    pub message: Message,
    /// Why it can't be sent, or why the server refused it permanently; `None` when it waits for replay.
    pub rejected: Option<LastAnswer>,
    /// The server's answer if it refused it for the timestamps in its ids: then it is *held*.
    pub held: Option<LastAnswer>,
    /// Whether it was in flight when its replayer ended ([`super::Replay::interrupted`]).
    pub was_in_flight: bool,
    /// The bytes of its file, for attachments.
    pub file: Option<(AttachmentId, Attachment)>,
}

impl SalvagedRow {
    /// Returns a row that waits for its first attempt, or was rejected.
    pub fn new(row: Sha256, message: Message, rejected: Option<LastAnswer>) -> Self {
        Self { row, message, rejected, held: None, was_in_flight: false, file: None }
    }

    /// Returns the status that it is stored with, and the server's answer to it.
    pub fn status(&self) -> (MessageStatus, Option<&LastAnswer>) {
        match (&self.rejected, &self.held) {
            (Some(answer), _) => (MessageStatus::Rejected, Some(answer)),
            (None, Some(answer)) => (MessageStatus::Held, Some(answer)),
            (None, None) => (MessageStatus::Failed, None),
        }
    }
}

/// Identifies a lane in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub i64);

/// The messages ahead of a new write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Messages of its lane that still have to reach the server.
    pub messages: u64,
    /// Whether one of them is, or may be, one that the write must not overtake ([`crate::message::conflict`]), or the
    /// write depends on a create that the server refused.
    pub conflicting: bool,
    /// Whether something waits, and the lane is held.
    pub held: bool,
    /// Buckets of the lane that are limited; none while nothing waits.
    pub limited: Buckets,
}

impl Ahead {
    /// A write that touches more entities than this counts as conflicting with every queued message.
    pub const TOUCHES_MAX: usize = 256;
}

/// Why a lane is not replayed, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// When it is retried, in milliseconds since the Unix epoch.
    pub until_ms: i64,
    /// Why, for people; names no key.
    pub reason: String,
    /// Whether one message has to probe the lane before the rest follows (an expired key), or all may go (a rate
    /// limit).
    pub probe: bool,
    /// The status of the answer that it is held for; `None` when none came, and for holds of earlier versions.
    pub status: Option<u16>,
    /// The rate-limited bucket, if not the whole lane is held. Such a hold expires with its time.
    pub bucket: Option<Bucket>,
}

impl Hold {
    /// Why a lane is held whose replay panicked. Such a hold is recognised by this text, which earlier versions stored as
    /// well: it must not be reworded.
    const AFTER_PANIC: &'static str = "internal error of opik-offline while replaying it, see its log";

    /// Returns the hold of a lane whose replay panicked.
    pub(crate) fn after_panic(until_ms: i64) -> Self {
        Self { until_ms, reason: Self::AFTER_PANIC.to_owned(), probe: true, status: None, bucket: None }
    }

    /// Returns whether the server refused the lane's credential: another one may be accepted.
    pub fn is_credential_refused(&self) -> bool {
        matches!(self.status, Some(401 | 403))
    }

    /// Returns whether the lane is held because no server answered ([`LastAnswer::is_unanswered`]).
    ///
    /// Such a hold asks for a probe. One without status that asks for none is an earlier version's rate limit.
    pub fn is_unanswered(&self) -> bool {
        self.bucket.is_none() && self.probe && self.reason != Self::AFTER_PANIC && is_unanswered(self.status)
    }
}

/// Why messages of a lane need not wait any longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// A message of the lane was delivered. These are due as well.
    Delivery(Vec<MessageId>),
    /// A server that gave no answer is there again. The hold ends as well, if it is still the lane's. Messages stay
    /// deferred to which the server itself answered last ([`LastAnswer::is_unanswered`]).
    Outage(Option<Hold>),
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
    /// The bytes of their bodies, as sent.
    pub body_bytes: u64,
    /// The earliest time at which one of them may be claimed, in milliseconds since the Unix epoch; past or now when
    /// one may be at once, `i64::MAX` when all wait for what is in flight or for what the filter does not select. Takes
    /// the hold into account.
    pub due_at_ms: i64,
    /// The hold in force, or the last one that ended without a success since.
    pub hold: Option<Hold>,
    /// The rate limits in force, one for each bucket at most.
    pub limits: Vec<Hold>,
    /// A refused create for which all of them wait, when nothing else keeps them: no message of the lane is in flight,
    /// and time alone frees none.
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

/// Which lanes are listed, in the order of their ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneRange {
    /// Those behind this one.
    pub after: Option<LaneId>,
    /// This many at most.
    pub most: Option<usize>,
}

impl LaneRange {
    /// Returns the first of all lanes.
    pub fn first(most: usize) -> Self {
        Self { after: None, most: Some(most) }
    }

    /// Returns the next lanes behind this one.
    pub fn behind(after: LaneId, most: usize) -> Self {
        Self { after: Some(after), most: Some(most) }
    }
}

/// Some of the lanes with messages to replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LanePage {
    /// In the order of their oldest message.
    pub lanes: Vec<LaneWork>,
    /// The lane behind which the next page begins, unless this is the last one.
    pub next: Option<LaneId>,
}

impl LanePage {
    /// Returns a page of these lanes, for a store that has all of them in memory.
    pub fn of(mut lanes: Vec<LaneWork>, range: LaneRange) -> Self {
        let mut ids: Vec<LaneId> = lanes.iter().map(|work| work.id).filter(|id| Some(*id) > range.after).collect();
        ids.sort_unstable();
        let most = range.most.unwrap_or(usize::MAX);
        let is_last = ids.len() <= most;
        ids.truncate(most);
        lanes.retain(|work| ids.binary_search(&work.id).is_ok());
        Self { lanes, next: ids.last().copied().filter(|_| !is_last) }
    }
}

/// How much one claim may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimLimits {
    /// Messages at most.
    pub messages_max: usize,
    /// Bytes of bodies at most.
    pub bytes_max: u64,
}

/// The result of [`super::Replay::claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// These messages are claimed; none when nothing is due.
    Taken(Vec<Claimed>),
    /// The next message is larger than what may be taken.
    TooLarge {
        /// The bytes of its body, as sent.
        bytes: u64,
    },
}

impl Claim {
    /// Returns the messages that were claimed.
    pub fn into_messages(self) -> Vec<Claimed> {
        match self {
            Self::Taken(messages) => messages,
            Self::TooLarge { .. } => Vec::new(),
        }
    }
}

/// The outcome of one claimed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server confirmed it: it is deleted.
    Delivered,
    /// It is retried, not before `next_attempt_at_ms` (Unix epoch; 0: at once).
    Failed {
        /// When it may be claimed again.
        next_attempt_at_ms: i64,
        /// Whether this counts as an attempt of the message; it does not when the connection or the lane failed.
        counts: bool,
        /// The server's answer or the failure, for people; `None` when the message was not sent.
        answer: Option<LastAnswer>,
    },
    /// The server refused it permanently: kept until a person replays or purges it.
    Rejected {
        /// The server's answer.
        answer: LastAnswer,
    },
    /// The server refused it for the timestamps in its ids: kept, and retried periodically.
    Held {
        /// The server's answer.
        answer: LastAnswer,
    },
    /// It was divided. Items outside these parts were delivered; each part takes the message's position in the order,
    /// as a message with an id of its own.
    Divided {
        /// The remaining parts, in the order of their items; at least one.
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
    /// The request to send.
    pub request: Request,
    /// The entities that it touches.
    pub touches: Vec<Touch>,
    /// How many items it carries.
    pub items: u32,
    /// The server's answer if it refused this part permanently; `None` if it waits for a retry.
    pub rejected: Option<LastAnswer>,
    /// The server's answer if it refused this part for the timestamps in its ids: then the part is *held*.
    pub held: Option<LastAnswer>,
}

impl Part {
    /// Returns the status that it is stored with, and the server's answer to it.
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
    /// Returns whether no server answered: no answer came, or a gateway gave its own. A 503 is not such an answer: it
    /// may name a wait, which is kept.
    pub fn is_unanswered(&self) -> bool {
        is_unanswered(self.status)
    }

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

fn is_unanswered(status: Option<u16>) -> bool {
    matches!(status, None | Some(502 | 504 | 520..))
}
