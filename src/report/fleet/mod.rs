//! The reports of commands that work with a fleet's depot.

pub(crate) mod dial;
pub(crate) mod list;
pub(crate) mod purge;
pub(crate) mod replay;
pub(crate) mod status;
