//! Store-and-forward agent for Opik.
pub mod delivery;
pub mod message;
pub mod monitor;
pub mod protocol;
pub mod shutdown;
pub mod store;
pub mod upstream;
