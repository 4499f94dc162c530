//! The state of a store's encryption.

use super::key::KeyId;

/// How a store is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// The key that new values are encrypted with; `None` if they are not encrypted.
    pub sealed_with: Option<KeyId>,
    /// The key that older values may be encrypted with.
    pub previous: Option<KeyId>,
    /// True once every value is encrypted like that and no free page holds older data.
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
