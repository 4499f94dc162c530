//! Limits of a store, the policy when it is full, and the modes of opening it.

/// Limits of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the store may take at most.
    pub size_max: u64,
    /// Bytes that have to stay free on the disk.
    pub disk_reserve: u64,
    /// The policy when a limit is reached.
    pub when_full: WhenFull,
}

/// The policy for new messages when the store is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Rejects them ([`super::StoreError::Full`]): the client still has them.
    Refuse,
    /// Evicts the oldest messages and counts them as dropped: first rejected ones beyond their share
    /// ([`super::rejected_room`]), then queued ones.
    DropOldest,
}

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Creates it, and its folder, if there is none.
    CreateIfMissing,
    /// [`super::StoreError::Missing`] if there is none. For readers: a damaged file stays where it is.
    Existing,
    /// The same, even if the key is missing or wrong: unencrypted values can be read, counted and deleted, and
    /// everything else fails as opening would.
    WithoutKey,
    /// The same as [`OpenMode::Existing`], and a damaged file is recovered.
    ExistingOrRecovered,
}

impl OpenMode {
    /// Returns whether a damaged file is set aside and salvaged, as by the agent and `replay`.
    pub fn recovers(self) -> bool {
        match self {
            Self::CreateIfMissing | Self::ExistingOrRecovered => true,
            Self::Existing | Self::WithoutKey => false,
        }
    }
}
