//! What a store may use, what happens when it is full, and what opening one may do.

/// What a store may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the store may take at most.
    pub size_max: u64,
    /// Bytes that have to stay free on the disk.
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

/// What opening a store may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Create it, and its folder, if there is none.
    CreateIfMissing,
    /// [`super::StoreError::Missing`] if there is none. For readers: a damaged file stays where it is.
    Existing,
    /// The same, even if the key is missing or wrong: what is not encrypted can be read, counted and deleted, and
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
