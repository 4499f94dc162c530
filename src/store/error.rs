//! Why a store can't do what it was asked.

use thiserror::Error;

use super::encryption::key::{KeyError, KeyId};
use super::full_state::FullLimit;
use super::location::Location;
use super::work::Owner;

/// Why a store can't do what it was asked, sorted by what the caller can do about it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no store at this path yet: nothing was ever stored, or it is the wrong path.
    #[error("there is no message store at {at}")]
    Missing {
        /// Where it was looked for.
        at: Location,
    },
    /// There is something else: a directory, another kind of file, another program's database.
    #[error("{at} is not a message store: {reason}")]
    NotAStore {
        /// The path given.
        at: Location,
        /// What is there instead.
        reason: String,
    },
    /// A newer opik-offline wrote it; it was left untouched.
    #[error("the message store {at} has schema version {found}, and this opik-offline knows versions up to {known}")]
    NewerSchema {
        /// The file.
        at: Location,
        /// Its `user_version`.
        found: i64,
        /// The newest that we know.
        known: i64,
    },
    /// An older opik-offline uses it and would misread what a newer one writes: it is migrated once that one has ended.
    #[error(
        "the message store {at} has schema version {found} and is in use by an older opik-offline{}; it is brought up \
         to version {known} once that has ended", by_pids(.pids)
    )]
    OlderInUse {
        /// The file.
        at: Location,
        /// Its `user_version`.
        found: i64,
        /// The version that it will be migrated to.
        known: i64,
        /// The running processes that announced themselves; empty if none can be seen.
        pids: Vec<u32>,
    },
    /// The file is damaged.
    #[error("the message store {at} is damaged: {reason}")]
    Damaged {
        /// The file.
        at: Location,
        /// What the engine says.
        reason: String,
    },
    /// It can't be read or written: permissions, a full disk, a failing disk.
    #[error("cannot use the message store {at}: {reason}")]
    Unusable {
        /// The file.
        at: Location,
        /// What the system says.
        reason: String,
    },
    /// A write or a sync failed: the store has to be rewritten and synced before it is used again.
    #[error(
        "cannot use the message store {at} after an error of the disk: {reason}; \
         it is used again once its log was written anew and synced"
    )]
    Unproven {
        /// The file.
        at: Location,
        /// What failed.
        reason: String,
    },
    /// A limit of ours would be exceeded.
    #[error("the message store {at} is full: {reason}")]
    Full {
        /// The file.
        at: Location,
        /// Which limit.
        limit: FullLimit,
        /// How many bytes were needed.
        needed: u64,
        /// The limit with its figures.
        reason: String,
    },
    /// Other processes kept it locked for too long; retry.
    #[error("the message store {at} is busy: other processes kept it locked for {waited_ms} ms")]
    Busy {
        /// The file.
        at: Location,
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
    #[error("the message store {at} is encrypted with key {needed}, and no key is set")]
    KeyMissing {
        /// The file.
        at: Location,
        /// The key's name.
        needed: KeyId,
    },
    /// It is encrypted with another key.
    #[error("the message store {at} is encrypted with key {needed}, and the key that is set is {given}")]
    WrongKey {
        /// The file.
        at: Location,
        /// The name of the key that it needs.
        needed: KeyId,
        /// The name of the key that there is.
        given: KeyId,
    },
    /// An earlier key rotation has not finished.
    #[error("the key of the message store {at} can't be changed: an earlier change has not come to its end")]
    TooManyKeys {
        /// The file.
        at: Location,
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
    /// Returns whether the store has to be rewritten and synced before it is used again.
    pub fn is_unproven(&self) -> bool {
        matches!(self, Self::Unproven { .. })
    }

    /// Returns whether nothing is wrong with the store but that this process lacks a key of it.
    pub fn lacks_key(&self) -> bool {
        matches!(self, Self::KeyMissing { .. } | Self::WrongKey { .. } | Self::TooManyKeys { .. })
    }
}
