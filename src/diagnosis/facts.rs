//! The facts of a diagnosis: a snapshot of server, agent and store as plain values.

use serde::Serialize;

use crate::delivery::eta::Eta;

/// The facts about a server, an agent and a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// In milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// The command that delivers what waits.
    pub deliver: String,
    pub server_url: String,
    /// Whether the server is available; `None` if unknown.
    pub available: Option<bool>,
    /// Why it is unavailable.
    pub server_reason: Option<String>,
    /// Whether an agent runs.
    pub has_agent: bool,
    /// How the agent handles live writes because it can't use its store, and why; it follows "it".
    pub agent_problem: Option<String>,
    /// The limits that follow from too few file descriptors, and what to do.
    pub files_problem: Option<String>,
    /// A request of a client that the agent can't serve, with the remedy.
    pub client_problem: Option<String>,
    /// Writes of applications that the server refused since the agent started; `None` if there are none.
    pub refused: Option<RefusedFacts>,
    /// That an agent at the configured address uses another store, and what waits there.
    pub other_agent: Option<String>,
    pub store: StoreSituation,
    /// Messages that still have to reach the server.
    pub waiting: u64,
    /// Messages that the server rejected: the dead letters.
    pub rejected: u64,
    /// The most frequent answers to them, in words.
    pub rejected_reasons: Vec<String>,
    /// Messages whose ids are outside the server's window.
    pub held_ids: u64,
    /// The change that makes the server accept them when they are retried.
    pub held_ids_remedy: &'static str,
    /// When the oldest create was accepted that comes near that window.
    pub near_window_since_ms: Option<i64>,
    /// `None` if the store can't be read.
    pub eta: Option<Eta>,
    /// A person's hold of the replay, while it lasts.
    pub replay_hold: Option<ReplayHoldFacts>,
    /// Lanes that are held: by a rate limit, a refused key, or to back off.
    pub held: Vec<HeldFacts>,
    /// Messages for other servers.
    pub elsewhere: Vec<ElsewhereFacts>,
    /// Messages that wait for a create that the server refused.
    pub stranded: Vec<StrandedFacts>,
    /// Stores that ended Python processes left behind, to be salvaged.
    pub orphans: Vec<OrphanFacts>,
    /// A pattern that matches all of them, as a word of a shell.
    pub orphans_pattern: String,
}

/// The facts about the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StoreSituation {
    /// Why it can't be used, if so.
    pub problem: Option<String>,
    pub unproven: Option<UnprovenFacts>,
    pub full: Option<FullFacts>,
    /// Why its file system is less durable than a disk of this machine, if it is.
    pub file_system: Option<FileSystemFacts>,
    /// Stores that were moved away under the running agent, with messages in them.
    pub moved: Vec<String>,
    pub dropped: DroppedFacts,
    /// Corrupt files that it was recovered from, until they are deleted.
    pub recoveries: Vec<RecoveryFacts>,
    /// Free bytes of its disk, and the size that the store can reach there, if that is less than its limit.
    pub narrow_disk: Option<(u64, u64)>,
}

/// A write or sync that failed: the store proves itself with a complete checkpoint before it is used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnprovenFacts {
    pub since_ms: i64,
    pub reason: String,
}

/// Why the store is full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FullFacts {
    pub since_ms: Option<i64>,
    pub reason: String,
    /// Writes refused since then; `None` if unknown.
    pub refused: Option<u64>,
    /// Writes that the server took at once instead; `None` if unknown.
    pub passed_on: Option<u64>,
    /// Writes refused since the store was created.
    pub refused_ever: u64,
    pub remedies: Vec<String>,
}

/// A file system that keeps less than a store promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSystemFacts {
    pub problem: String,
    pub remedy: String,
}

/// Messages that were evicted or have expired, since the store was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DroppedFacts {
    pub full: u64,
    pub rejected: u64,
    pub expired: u64,
}

/// A recovery from a corrupt file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecoveryFacts {
    pub at_ms: i64,
    pub recovered: u64,
    pub lost: u64,
    /// The corrupt file; `None` where its path is not shown.
    pub set_aside: Option<String>,
}

/// A person's hold of the replay of the whole store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplayHoldFacts {
    pub until_ms: i64,
    /// Who set it.
    pub by: String,
}

/// Writes that the server refused while the agent forwarded them: the applications were told, and nothing is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefusedFacts {
    pub writes: u64,
    /// The status of the last of these answers, and when it came.
    pub last_status: u16,
    pub last_at_ms: i64,
}

impl RefusedFacts {
    /// Returns whether the last answer was about the key or the workspace.
    pub(super) fn is_about_access(self) -> bool {
        matches!(self.last_status, 401 | 403)
    }
}

/// A lane that is held until it is retried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeldFacts {
    pub workspace: String,
    /// The beginning of its key.
    pub key: Option<String>,
    pub reason: String,
    pub until_ms: i64,
    /// Whether the server refuses the key.
    pub is_key_refused: bool,
    /// Its server, if that is another one than [`Facts::server_url`].
    pub elsewhere: Option<String>,
}

/// Messages that were accepted for another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ElsewhereFacts {
    /// `None` for messages of an earlier version.
    pub server: Option<String>,
    pub waiting: u64,
}

/// Messages of one workspace that wait for a create that the server refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StrandedFacts {
    pub workspace: String,
    /// There are at least this many.
    pub messages: u64,
    /// The refused message that the first of them waits for.
    pub create: i64,
    /// `held` or `rejected`.
    pub status: &'static str,
}

/// A store that an ended Python process left behind, to be salvaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrphanFacts {
    /// The file as a word of a shell.
    pub word: String,
    /// Its messages; `None` if they can't be counted.
    pub messages: Option<u64>,
    pub bytes: u64,
    pub age_seconds: u64,
}
