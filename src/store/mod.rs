//! Bytes that survive: messages that were acknowledged and are not on the server yet.
//!
//! The [`Store`] trait keeps promises about bytes and order and decides nothing: what an answer means, when to retry and
//! how fast to go are policy ([`crate::delivery`]), and neither room knows the other. No SQL, no row and no error of an
//! engine leaves this room; [`open`] is the only place that names one. Today there is one engine, [`sqlite`], and one
//! test double that keeps the same promises in memory.
//!
//! # Order
//!
//! Messages leave in the order in which they were accepted, per lane. The one exception helps the user: an *update* that
//! was accepted before the first create of its entity is put right after that create when the create arrives, because
//! the server would let the partial record of an early PATCH win (protocol dossier, section f, rule 2; design.md,
//! section 4). It moves only while it waits, only when no earlier create of the entity waits before it and no end of the
//! entity waits at all, and only when it changes nothing else: its place among the messages about another entity is as
//! good a promise. Updates of one entity keep their order, so one that may not move keeps the others. An *end* (deletion,
//! closing) keeps its place even to messages that only refer to its entity.
//!
//! # Refused creates
//!
//! While a message that makes an entity is refused (*rejected*, or *held* for the time in its ids), later messages of its
//! lane that touch the entity in any way are *stranded*: they wait with it, because the server would make a partial record
//! of an update or a score, and show children without their parent. Which messages those are follows from what is stored:
//! it is no state of theirs. They follow the create when it is requeued, and go free when it is purged, dropped or expired.
//! A trace of OpenTelemetry strands nothing ([`EntityKey::can_strand`]).
//!
//! Rejected messages have a share of the store ([`rejected_room`]). Beyond it the oldest go when a new message needs their
//! room, but never a create for which a message waits: that one would go free, and leave a partial record.
//!
//! A refused *repeat* of a create strands what was accepted after it as well: nothing in a store says that the entity is
//! on the server already, and the repeat may be the write that completes it.
//!
//! # Attachments
//!
//! The bytes of an attachment's file may be more than memory holds, so they come in *pieces*, each in a commit of its
//! own, and belong to no message until [`Attachments::register_attachment`] says so in the commit that makes the message:
//! there is no message without its bytes, and bytes of an upload that never came to its end are removed.
//! [`attachment`] reads and writes them as one stream.
//!
//! # Who may do what
//!
//! Anyone may register, read, purge and requeue at any time, from several processes at once. Claiming and settling need
//! the [`Lease`]: one replayer at a time per store. A lease ends by itself after its time to live, measured on a clock
//! that no one sets, so a killed replayer is replaced; a replayer that was stopped longer than that finds
//! [`StoreError::LeaseLost`] and writes nothing.

pub mod attachment;
mod clock;
pub mod committer;
pub mod encryption;
mod error;
pub mod full_state;
mod limits;
mod location;
pub mod mount;
mod moved;
mod open;
pub(crate) mod os;
pub mod place;
pub mod rejected_room;
mod rescue;
pub mod room;
mod said;
pub mod slot;
pub mod sqlite;
mod traits;
mod view;
mod work;

pub use self::clock::{now_ms, since_boot};
pub use self::encryption::key::{EncryptionKey, KeyError, KeyId, Keys};
pub use self::encryption::reseal::{Resealed, Resealing};
pub use self::encryption::state::{Encryption, KeyState};
pub use self::error::StoreError;
pub use self::full_state::{FullLimit, Fullness};
pub use self::limits::{Limits, OpenMode, WhenFull};
pub use self::location::Location;
pub use self::open::{io_errors, open, open_with, prove, recover, reseal, unproven};
pub use self::traits::{Attachments, Browse, Intake, Maintain, Replay, Store};
pub use self::view::{
    AdoptionRecord, AgentRecord, Backlog, BacklogGroup, BacklogSeen, Condition, Filter, FullRecord, LaneListed, Listed,
    Page, Purged, RecoveryRecord, ReplayRecord, Standing, StoreIdentity, StoredMessage, Stranded, Unproven, Whose,
};
pub use self::work::{
    Ahead, AttachmentId, Claim, ClaimLimits, Hold, LaneId, LaneWork, LastAnswer, Lease, Outcome, Owner, Part,
    SalvagedRow,
};
pub use crate::message::Claimed;
