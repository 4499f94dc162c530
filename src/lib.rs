//! Store-and-forward agent for Opik.

pub mod config;
pub mod telemetry;
