//! What a store may use, what happens when it is full, and what opening one may do.

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
    /// They are refused ([`super::StoreError::Full`]): the client still has them.
    Refuse,
    /// The oldest messages make room and are counted as dropped: first rejected ones beyond their share
    /// ([`super::rejected_room`]), then those that wait.
    DropOldest,
}

/// Whether opening may make a new store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Make it, and its folder, when there is none.
    CreateIfMissing,
    /// [`super::StoreError::Missing`] when there is none. For those who only look: a damaged file stays where it is.
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
