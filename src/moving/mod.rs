//! Moving: the messages of a whole store become messages of another one.
//!
//! A dead pod's volume, a laptop's backlog, an air-gapped machine: what one store accepted is delivered from another.
//! Either the file is there ([`source`]), or a copy of it that was sealed for the way ([`sealed_copy`]).
//!
//! # Invariants
//!
//! - **In order**: messages come in the delivery order of their store, rejected and held ones in their place, each with
//!   its server, workspace, credential, headers, file, and the server's answer.
//! - **Exactly once.** A commit stores messages together with their digests ([`import`]). So a move that is killed at
//!   any moment is simply repeated, on the same file or on a copy of it.
//! - **The source is not changed** until every message of it is durable in the other store: it is read from a private
//!   copy, in which an old schema is migrated and a damaged file recovered. Then it is set aside under another name, so
//!   that nothing is delivered from two places.
//! - **Nobody else has it open.** A running agent is named and refused. Meanwhile none can start on it: SQLite's locks
//!   are taken from it.
//! - **No secret reaches a disk in plain.** A private copy is as encrypted as the store. The store inside a sealed copy
//!   is encrypted with a key of its own, which is in the sealed part as well: neither side ever writes it down.
//! - **A sealed copy is verified to its end** before the first message of it is stored.
//!
//! Messages that are moved twice along different ways (a store into a second one, then both into a third) are delivered
//! twice. That is idempotent where the client chose the ids: the server sees an upsert.

mod error;
mod import;
mod scratch;
mod sealed_copy;
mod source;

pub(crate) use self::error::MovingError;
pub(crate) use self::import::Moved;
pub(crate) use self::sealed_copy::{SealedCopy, SealingJob};
pub(crate) use self::source::{MovedFile, MovingIn, SourceKind, kind_of};
