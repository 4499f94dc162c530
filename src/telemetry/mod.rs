//! Observability for operators: the log, the metrics, and their recent history.
//!
//! They take plain values and import no other room but `printable`, so that every room but the pure ones may use them.
//! Payloads, API keys and tokens never get here. Nothing is logged per message: a backlog of a million would be a log
//! of a million lines.

pub(crate) mod history;
pub(crate) mod history_file;
pub(crate) mod log;
pub mod metrics;
pub(crate) mod refusals;
