//! The values of [`super::Shipped`]: which messages of a store have copies in a depot.

use uuid::Uuid;

use crate::message::MessageId;

/// A stream: the messages of one outage that were copied to a depot. It ends when all of them are settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRecord {
    /// Its name in the depot.
    pub stream: Uuid,
    /// The depot's URL, without secrets: for people, and to tell it from other depots.
    pub depot: String,
    /// Whether this store still delivers it.
    pub state: StreamState,
    /// The fencing token: raised by every process that continues with the stream.
    pub epoch: u32,
    /// The number of the next bundle; bundles with lower numbers are in the depot.
    pub next_bundle: u32,
    /// The highest id of a message that was chosen for a bundle that is in the depot.
    pub shipped_through: MessageId,
    /// When its first bundle was begun, in milliseconds since the Unix epoch.
    pub began_at_ms: i64,
    /// Whether any of its messages is outstanding; ignored by [`super::Shipped::note_stream`].
    pub is_outstanding: bool,
}

/// The owner of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamState {
    /// The processes that use this store.
    Open,
    /// A replayer, for good: none of its messages is claimed here again.
    HandedOver,
}

/// A message that has, or may have, a copy in a depot, and whose fate is not recorded there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippedMessage {
    /// Its id in this store.
    pub id: MessageId,
    /// The stream that has the copy.
    pub stream: Uuid,
    /// The id of the message that was copied: another one for a part of a divided message.
    pub origin: u64,
    /// Whether it is a part of that message, which its request's digest names.
    pub is_part: bool,
}

/// Messages without a copy in a depot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnshippedCount {
    /// How many messages wait for the server and have no copy that is known to be in the depot.
    pub messages: u64,
    /// The bytes of their bodies.
    pub body_bytes: u64,
    /// When the first of them was accepted, in milliseconds since the Unix epoch.
    pub oldest_accepted_at_ms: Option<i64>,
}
