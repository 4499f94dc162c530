//! Encryption at rest: the keys, and what is known of how a store is encrypted. The engine encrypts.

pub(crate) mod key;
pub(super) mod reseal;
pub(super) mod state;
