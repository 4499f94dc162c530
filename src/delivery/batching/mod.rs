//! Batching: which stored messages share a request, and how a refused batch is divided.
//!
//! - [`coalesce`]: many small creates become one batch create.
//! - [`fold`]: updates go with the batch create of their entity.
//! - [`split`]: a refused batch is cut into pieces, also inside one stored body.

pub mod coalesce;
pub(crate) mod fold;
pub mod split;
