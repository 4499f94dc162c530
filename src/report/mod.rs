//! The reports of commands: versioned documents for programs (`schemas/`), and the same as text for people.
//!
//! A report is made of values that a room returned; it decides nothing but how they are shown. Within a `schema_version`
//! fields are only added. Text from elsewhere goes through [`crate::terminal::Shown`], which escapes it.

pub mod groups;
pub mod orphans;
pub mod readback;
pub mod status;
