//! Store-and-forward agent for Opik.
pub mod message;
pub mod store;
