//! The reports of commands: versioned documents for programs (`schemas/`), and the same as text for people.
//!
//! A report is made of values that a room returned; it decides nothing but how they are shown. Within a `schema_version`
//! fields are only added. Text from elsewhere goes through [`crate::terminal::Shown`], which escapes it.

pub(crate) mod bundle;
pub(crate) mod fleet;
pub(crate) mod groups;
pub(crate) mod launch;
pub(crate) mod messages;
pub(crate) mod orphans;
pub(crate) mod readback;
pub(crate) mod refused;
pub(crate) mod replay_hold;
pub(crate) mod status;
pub(crate) mod totals;
