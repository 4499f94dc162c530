//! The store of an overview: counts, limits and problems, read in one go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::dial::HoldOverview;
use crate::message::{MessageStatus, Server};
use crate::store::slot::{SlotState, StoreSlot};
use crate::store::{Backlog, BacklogSeen, Condition, RecoveryRecord, now_ms};

/// The state of the store. Without `usable` only `reason` and what follows from it mean anything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreOverview {
    pub usable: bool,
    pub reason: Option<String>,
    /// How protected writes are treated: [`LiveWrites::word`].
    pub live_writes: &'static str,
    /// Writes refused since the store became unusable, because they may conflict with what waits in it.
    pub refused_while_unusable: u64,
    /// Since when it has to be rewritten and synced before it is used again, because a write or a sync failed.
    pub unproven_since_ms: Option<i64>,
    /// Messages that still have to reach the server.
    pub waiting: u64,
    pub items: u64,
    pub body_bytes: u64,
    pub rejected: u64,
    pub oldest_accepted_at_ms: Option<i64>,
    pub groups: Vec<GroupOverview>,
    pub rejected_by_answer: Vec<RejectedOverview>,
    pub file_bytes: u64,
    pub size_max_bytes: Option<u64>,
    pub disk_free_bytes: Option<u64>,
    /// The size that its files can reach: the limit, or less if the disk has no room for that.
    pub capacity_bytes: Option<u64>,
    /// Why it is full; `null` while it accepts messages.
    pub full: Option<FullOverview>,
    /// Writes refused because it was full, since it was created.
    pub refused_writes: u64,
    /// Bytes of the bodies and files of rejected messages.
    pub rejected_body_bytes: u64,
    /// Rejected messages evicted because they took more than `rejected_share` and room was needed.
    pub rejected_dropped_messages: u64,
    pub dropped_messages: u64,
    /// Messages that expired: they were older than `max_age`.
    pub expired_messages: u64,
    /// Corrupt files that this store was recovered from, until they are deleted.
    pub recoveries: Vec<RecoveryOverview>,
    /// The process that replays now.
    pub replaying: Option<String>,
    /// A person's hold of the replay, while it lasts.
    pub replay_hold: Option<HoldOverview>,
    /// Messages in the store that were accepted for other servers: this agent does not deliver them.
    pub elsewhere: Vec<ElsewhereOverview>,
    /// Stores that were moved away with messages in them while they were in use. Writes that may conflict with those
    /// are refused until the stores are moved back, or delivered from their new place.
    pub moved_stores: Vec<String>,
}

impl StoreOverview {
    /// Returns the overview of a usable store. `full`, `elsewhere` and `moved_stores` are for the caller to add.
    pub fn usable(backlog: &Backlog, condition: &Condition) -> Self {
        let (waiting, items, body_bytes) = waiting_sums(backlog);
        let answers = backlog.rejected_by_answer.iter();
        Self {
            usable: true,
            reason: None,
            live_writes: LiveWrites::Stored.word(),
            refused_while_unusable: 0,
            unproven_since_ms: condition.unproven.as_ref().map(|unproven| unproven.since_ms),
            waiting,
            items,
            body_bytes,
            rejected: backlog.rejected(),
            oldest_accepted_at_ms: backlog.oldest_accepted_at_ms,
            groups: groups(backlog),
            rejected_by_answer: answers
                .map(|(status, messages)| RejectedOverview { status: *status, messages: *messages })
                .collect(),
            file_bytes: condition.file_bytes,
            size_max_bytes: condition.size_max,
            disk_free_bytes: condition.disk_free_bytes,
            capacity_bytes: condition.capacity_bytes,
            full: None,
            refused_writes: condition.full_record.refused,
            rejected_body_bytes: rejected_body_bytes(backlog),
            rejected_dropped_messages: condition.rejected_dropped,
            dropped_messages: condition.dropped,
            expired_messages: condition.expired,
            recoveries: (condition.recoveries.iter().filter(|recovery| recovery.is_kept))
                .map(RecoveryOverview::of)
                .collect(),
            replaying: condition.lease.as_ref().map(ToString::to_string),
            replay_hold: condition.replay_hold.as_ref().and_then(|hold| HoldOverview::of(hold, now_ms())),
            elsewhere: Vec::new(),
            moved_stores: Vec::new(),
        }
    }
}

/// How protected writes are treated, as far as the store decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LiveWrites {
    /// They are stored if the server can't take them.
    Stored,
    /// They are only passed on: nothing waits that they could overtake.
    PassedOn,
    /// Those that may conflict with waiting messages are refused, and the others are only passed on.
    RefusedIfConflicting,
    /// All are refused: it is unknown what waits.
    Refused,
}

impl LiveWrites {
    /// Returns how writes to this server are treated.
    pub(crate) fn of(slot: &StoreSlot, server: &Server) -> Self {
        match slot.state() {
            SlotState::Open => Self::Stored,
            SlotState::Unavailable { .. } => match slot.backlog_seen(server, &[]) {
                BacklogSeen::NeverWas | BacklogSeen::Empty => Self::PassedOn,
                BacklogSeen::Holds { .. } => Self::RefusedIfConflicting,
                BacklogSeen::Unknown => Self::Refused,
            },
        }
    }

    /// Returns the word for programs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::PassedOn => "passed_on",
            Self::RefusedIfConflicting => "refused_if_conflicting",
            Self::Refused => "refused",
        }
    }

    /// Returns for people what an agent does that reports this word: it follows "it".
    pub(crate) fn text_of(word: &str) -> &'static str {
        match word {
            "refused_if_conflicting" => {
                "refuses live writes that may conflict with what waits, and only passes others on"
            }
            "refused" => "refuses live writes, because nobody can see what waits",
            _ => "only passes writes on",
        }
    }
}

/// Why a store is full, and what that has cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FullOverview {
    /// Since when, in milliseconds since the Unix epoch; `null` if no write has found it full.
    pub since_ms: Option<i64>,
    /// `max_size`, `disk_reserve`, `disk` or `rejected`.
    pub limit: String,
    /// The limit with its figures.
    pub reason: String,
    /// Writes refused since then.
    pub refused_writes: u64,
    /// Writes that the server took at once instead.
    pub passed_on_writes: u64,
    /// Remedies, with commands.
    #[serde(default)]
    pub remedies: Vec<String>,
}

/// Messages that were accepted for another server. Everything else in an agent's overview is about its own server.
#[derive(Clone, Debug, Serialize)]
pub struct ElsewhereOverview {
    /// The base URL of its API; `null` for messages of an earlier version.
    pub server: Option<String>,
    /// Messages that still have to reach it.
    pub waiting: u64,
    /// Messages that it refused.
    pub rejected: u64,
}

/// Returns the sums of other servers than this one, in the order of their URLs.
pub(crate) fn elsewhere(all: &Backlog, own: &Server) -> Vec<ElsewhereOverview> {
    let mut servers: BTreeMap<&Option<Server>, (u64, u64)> = BTreeMap::new();
    for group in all.groups.iter().filter(|group| group.server.as_ref() != Some(own)) {
        let sums = servers.entry(&group.server).or_default();
        match group.status.is_on_its_way() {
            true => sums.0 += group.messages,
            false => sums.1 += group.messages,
        }
    }
    let overview = |(server, (waiting, rejected)): (&Option<Server>, _)| ElsewhereOverview {
        server: server.as_ref().map(ToString::to_string),
        waiting,
        rejected,
    };
    servers.into_iter().map(overview).collect()
}

/// How the store was recovered from a corrupt file.
#[derive(Clone, Debug, Serialize)]
pub struct RecoveryOverview {
    pub at_ms: i64,
    /// Why the file counted as corrupt.
    pub reason: String,
    pub recovered_messages: u64,
    /// Messages that are known to have been in it and could not be read whole.
    pub lost_messages: u64,
    /// The corrupt file. Its path is for people on this machine, never for a page.
    #[serde(skip)]
    pub set_aside: String,
}

impl RecoveryOverview {
    fn of(recovery: &RecoveryRecord) -> Self {
        Self {
            at_ms: recovery.at_ms,
            reason: recovery.reason.clone(),
            recovered_messages: recovery.recovered,
            lost_messages: recovery.lost,
            set_aside: recovery.set_aside.to_string(),
        }
    }
}

/// Messages of one status, type and workspace.
#[derive(Clone, Debug, Serialize)]
pub struct GroupOverview {
    pub status: &'static str,
    pub message_type: &'static str,
    pub workspace: String,
    pub messages: u64,
    pub items: u64,
    pub body_bytes: u64,
}

fn groups(backlog: &Backlog) -> Vec<GroupOverview> {
    let overview = |group: &crate::store::BacklogGroup| GroupOverview {
        status: group.status.name(),
        message_type: group.message_type.name(),
        workspace: group.workspace.clone(),
        messages: group.messages,
        items: group.items,
        body_bytes: group.body_bytes,
    };
    backlog.groups.iter().map(overview).collect()
}

/// Rejected messages with the same answer.
#[derive(Clone, Debug, Serialize)]
pub struct RejectedOverview {
    /// The status of the server's answer; `null` if none came.
    pub status: Option<u16>,
    pub messages: u64,
}

/// Returns how many messages wait, with their items and bytes.
pub(super) fn waiting_sums(backlog: &Backlog) -> (u64, u64, u64) {
    let waiting = backlog.groups.iter().filter(|group| group.status.is_on_its_way());
    waiting.fold((0, 0, 0), |sum, group| (sum.0 + group.messages, sum.1 + group.items, sum.2 + group.body_bytes))
}

/// Returns the bytes of the bodies and files of rejected messages.
fn rejected_body_bytes(backlog: &Backlog) -> u64 {
    let rejected = backlog.groups.iter().filter(|group| group.status == MessageStatus::Rejected);
    rejected.map(|group| group.body_bytes).sum()
}
