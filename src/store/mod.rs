//! The durable queue: messages that were acknowledged and are not on the server yet.
//!
//! [`Store`] keeps promises about bytes and order and decides nothing: what an answer means, when to retry and how fast
//! to go are policy ([`crate::delivery`]), and neither room knows the other. It is seven small traits, one per caller:
//! [`Intake`], [`Attachments`], [`Replay`], [`Browse`], [`Maintain`], [`Holdable`] and [`Shipped`]. No SQL, row, path or error of an engine
//! crosses them; [`open()`] is the only function that names one. There is one engine, [`sqlite`]; tests have two more in
//! memory.
//!
//! ```text
//!   intake ──▶ committer ─┐                        ┌─ open ──▶ sqlite
//!   replay ───────────────┼─▶ slot (a store, or    │
//!   status, upkeep ───────┘    why there is none) ─┘
//! ```
//!
//! # Invariants
//!
//! - **Durable**: once a verb that writes has returned, its effect is on the disk. After a crash either all of a verb's
//!   effect is there or none of it.
//! - **Ordered**: in a lane, no message is claimed while an earlier one about the same entity is left or in flight.
//! - **Exclusive**: only the holder of the [`Lease`] claims and settles. Every acquisition raises its epoch, a fencing
//!   token: writes under an older epoch fail with [`StoreError::LeaseLost`].
//! - **Complete**: a message and the bytes of its attachment are stored, and deleted, in the same commit.
//! - **Isolated**: a message changes its lane only by [`Maintain::reassign`], which a person or `rekey_refused` asks
//!   for, and once by [`Maintain::adopt`], if an earlier version stored it without a server.
//! - **Deduplicated**: a salvaged row is stored at most once, from however many copies of its file.
//!
//! # Order
//!
//! Messages leave in the order in which they were accepted, per lane, with one exception. An *update* that was accepted
//! before the first create of its entity moves right behind that create when the create arrives, because the server
//! would let the partial record of an early PATCH win (protocol dossier, section f, rule 2).
//!
//! It moves only while it waits, only if no earlier create of the entity is ahead of it and no end of the entity waits,
//! and only if it changes no other entity: its position among the messages about another entity must be kept as well.
//! Updates of one entity keep their order, so one that may not move keeps the others in place. An *end*
//! (deletion, closing) keeps its position even relative to messages that only refer to its entity.
//!
//! # Refused creates
//!
//! While a message that creates an entity is refused (*rejected*, or *held* for the time in its ids), later messages of
//! its lane that touch the entity in any way are *stranded*: they wait with it, because the server would make a partial
//! record of an update or a score, and show children without their parent. Which messages are stranded is derived from
//! what is stored; it is not a status. They follow the create when it is requeued, and become free when it is
//! purged, dropped or expired. An OpenTelemetry trace strands nothing ([`crate::message::EntityKey::can_strand`]).
//!
//! Rejected messages have a share of the store ([`rejected_room`]). Beyond it the oldest are evicted when a new message
//! needs their space, but never a create that another message waits for: that message would become free and leave a
//! partial record.
//!
//! A refused *second* create of an entity strands the messages behind it as well: the store does not record that the
//! entity is on the server already, and the second create may be the write that completes it.
//!
//! # Attachments
//!
//! A file may be larger than memory, so its bytes come in *pieces*, each in a commit of its own. They belong to no
//! message until [`Attachments::register_attachment`] links them in the commit that stores the message; the bytes of an
//! upload that never finished are removed. [`attachment`] reads and writes them as one stream.
//!
//! # Concurrency
//!
//! Any process may register, read, purge and requeue at any time. Claiming and settling need the [`Lease`]: one
//! replayer at a time per store. A lease expires after its time to live, measured on a monotonic clock that counts
//! suspended time, so a killed replayer is replaced; a replayer that was stopped for longer gets
//! [`StoreError::LeaseLost`] and writes nothing.

pub mod attachment;
mod clock;
pub mod committer;
pub(crate) mod encryption;
mod error;
pub(crate) mod full_state;
mod identity;
mod limits;
mod location;
pub(crate) mod mount;
mod moved;
mod open;
pub(crate) mod os;
pub(crate) mod place;
pub mod rejected_room;
mod replay_hold;
mod rescue;
pub(crate) mod room;
mod said;
pub mod slot;
pub mod sqlite;
mod stream;
mod traits;
mod view;
mod work;

#[cfg(test)]
pub(crate) use self::clock::faked;
pub use self::clock::{now_ms, since_boot};
pub use self::encryption::key::{EncryptionKey, KeyError, KeyId, Keys};
pub use self::encryption::reseal::{Resealed, Resealing};
pub use self::encryption::state::{Encryption, KeyState};
pub use self::error::StoreError;
pub use self::full_state::{FullLimit, Fullness};
pub use self::identity::StoreIdentity;
pub use self::limits::{Limits, OpenMode, WhenFull};
pub use self::location::Location;
pub(crate) use self::open::is_store;
pub use self::open::{io_errors, open, open_scratch, open_with, prove, recover, reseal, unproven};
pub use self::replay_hold::{REPLAY_HOLD_MAX, ReplayHold};
pub use self::sqlite::{SnapshotMessage, SnapshotStep, StoreSnapshot};
pub use self::stream::{ShippedMessage, StreamRecord, StreamState, UnshippedCount};
pub use self::traits::{Attachments, Browse, Holdable, Intake, Maintain, Replay, Shipped, Store};
pub use self::view::{
    AdoptionRecord, AgentRecord, Backlog, BacklogGroup, BacklogSeen, Condition, Filter, FullRecord, LaneListed, Listed,
    Page, Purged, RecoveryRecord, ReplayRecord, Standing, StoredMessage, Stranded, Unproven, Whose,
};
pub use self::work::{
    Ahead, AttachmentId, Claim, ClaimLimits, Hold, LaneId, LanePage, LaneRange, LaneWork, LastAnswer, Lease, Outcome,
    Owner, Part, SalvagedRow, WaitEnd,
};
pub use crate::message::Claimed;
