//! The place of a store: what is at its path, and making a new store there.

pub(super) mod create;
pub(super) mod examine;
