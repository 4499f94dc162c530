//! What an operator can watch: the log, the counters, and how they went of late.
//!
//! They take plain values and know nothing else of ours, so that every room but the pure ones may use them. A body, an
//! API key or a token never gets here; and nothing is logged per message, because a backlog of a million would be a
//! log of a million.

pub mod history;
pub mod log;
pub mod metrics;
