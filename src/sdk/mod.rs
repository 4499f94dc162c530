//! Files that killed processes of the Python SDK left behind, and how their messages get into our store.
//!
//! The SDK keeps messages that it could not send in an SQLite file of its own, in a temporary folder, and abandons the
//! file when its process is killed. No SDK reads it again. This room finds such a file, decides whether it may be
//! opened, and stores each of its rows as a message for replay:
//!
//! ```text
//! orphan ──▶ trust ──▶ file ──▶ rows, conversion ──▶ salvage ──▶ store
//! found      checked   copied,  the SDK's request    committed,  replayed like
//!            by fd     read     for the row          then the    any message
//!                                                    file is removed
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | [`orphan`] | finds stores that no living process has open |
//! | [`trust`] | decides which files are opened, and which files their rows may name |
//! | [`mod@file`] | opens a private copy and reads its rows, even if it is damaged |
//! | [`rows`] | converts a row to the request that the SDK would send; pure |
//! | [`conversion`] | makes the request a message, or keeps the row as rejected |
//! | [`salvage`] | commits the rows of one file, then removes it |
//! | [`sources`] | salvages the files that a person names (`replay --from`) |
//! | [`adoption`] | salvages orphans in the agent (`--adopt-orphans`) |
//!
//! A row is in the SDK's file or in our store at every moment, and never twice in ours: see the invariants of
//! [`salvage`].

pub(crate) mod adoption;
pub(crate) mod conversion;
pub mod file;
pub mod orphan;
pub mod rows;
pub(crate) mod salvage;
pub(crate) mod sources;
pub mod trust;
