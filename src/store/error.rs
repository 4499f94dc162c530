//! Errors of a store.

use thiserror::Error;

use super::encryption::key::{KeyError, KeyId};
use super::full_state::FullLimit;
use super::location::Location;
use super::work::Owner;

/// An error of a store, classified by what the caller can do about it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no store yet: nothing was ever stored, or the location is wrong.
    #[error("there is no message store at {at}")]
    Missing {
        /// The location.
        at: Location,
    },
    /// There is something else: a directory, another kind of file, another program's database.
    #[error("{at} is not a message store: {reason}")]
    NotAStore {
        /// The location.
        at: Location,
        /// The reason.
        reason: String,
    },
    /// A newer opik-offline wrote it; it was left untouched.
    #[error("the message store {at} has schema version {found}, and this opik-offline knows versions up to {known}")]
    NewerSchema {
        /// The file.
        at: Location,
        /// Its `user_version`.
        found: i64,
        /// The newest supported version.
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
        /// The engine's error.
        reason: String,
    },
    /// It can't be read or written: permissions, a full disk, a failing disk.
    #[error("cannot use the message store {at}: {reason}")]
    Unusable {
        /// The file.
        at: Location,
        /// The system's error.
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
        /// The failed operation.
        reason: String,
    },
    /// A limit of ours would be exceeded.
    #[error("the message store {at} is full: {reason}")]
    Full {
        /// The file.
        at: Location,
        /// The limit.
        limit: FullLimit,
        /// The bytes needed.
        needed: u64,
        /// The limit with its figures.
        reason: String,
    },
    /// Other processes kept it locked for too long; retry.
    #[error("the message store {at} is busy: other processes kept it locked for {waited_ms} ms")]
    Busy {
        /// The file.
        at: Location,
        /// The time waited, in milliseconds.
        waited_ms: u64,
    },
    /// Another process replays this store.
    #[error("another process replays this store: {owner}")]
    LeaseHeld {
        /// The owner of the lease.
        owner: Owner,
    },
    /// The payload of an unregistered attachment was removed (its upload expired).
    #[error("the attachment's bytes were removed from the message store before the upload was complete")]
    AttachmentGone,
    /// It is encrypted, and no key is configured.
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
    #[error("the key of the message store {at} can't be changed: an earlier change is not finished")]
    TooManyKeys {
        /// The file.
        at: Location,
    },
    /// A configured key is unusable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The depot, where messages have copies, can't be told what becomes of them, or has not confirmed a copy: retry.
    #[error("{reason}")]
    DepotAway {
        /// The failure, and the depot.
        reason: String,
    },
    /// Messages of this store have copies in a depot, and this process does not tell the depot what becomes of them.
    #[error(
        "messages of the message store {at} are in the depot {depot} as well, which delivers them if their agent is gone"
    )]
    InDepot {
        /// The store.
        at: Location,
        /// The depot's URL, without secrets.
        depot: String,
    },
    /// Our lease expired and another process acquired it.
    #[error("the replay lease was lost to another process")]
    LeaseLost,
}

/// Formats process ids for use inside a sentence.
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

    /// Returns whether the only problem is that this process lacks a key of the store.
    pub fn lacks_key(&self) -> bool {
        matches!(self, Self::KeyMissing { .. } | Self::WrongKey { .. } | Self::TooManyKeys { .. })
    }
}
