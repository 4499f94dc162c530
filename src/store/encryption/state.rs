//! What is known of how a store is encrypted.

use super::key::KeyId;

/// How a store's contents are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// The key that new things are sealed with; `None` when they are kept as they are.
    pub sealed_with: Option<KeyId>,
    /// The key that things of before may be sealed with.
    pub previous: Option<KeyId>,
    /// Whether everything is kept like that, and nothing of before is left in the files.
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
