//! Store-and-forward agent for Opik.
pub mod delivery;
pub mod message;
pub mod protocol;
pub mod store;
