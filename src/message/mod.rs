//! The words of the domain: a message, what it is about, whose it is, and the bytes it carries.
//!
//! Everything here is a plain value. This room imports nothing of ours, and no clock, socket, disk or log: all other
//! rooms may therefore use its words freely.

mod attachment;
mod body;
mod bucket;
mod entity;
mod lane;
mod message_type;

pub use attachment::{Attachment, Sha256};
pub use body::{Body, BodyFault, Encoding};
pub use bucket::{Bucket, Buckets, Way};
pub use entity::{Effect, EntityKey, EntityKind, Footprint, Touch, conflict};
pub use lane::{Credential, Lane, Server, workspace_of_headers, workspace_shown, workspaces_named};
pub use message_type::MessageType;

use std::fmt;
use std::sync::Arc;

/// Identifies a message in one store; ascending in the order of acceptance, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub i64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What has become of a message so far.
///
/// The first three are the SDK's own (`opik/message_processing/replay/db_manager`, protocol dossier section e); the
/// other two are ours. A rejected message is elsewhere called a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageStatus {
    /// Being sent: claimed by a replay that has not settled it yet.
    Registered = 1,
    /// The server confirmed it. Never stored: a delivered message is deleted.
    Delivered = 2,
    /// Waits for the next replay.
    Failed = 3,
    /// The server refused it for good; kept until a person replays or purges it.
    Rejected = 4,
    /// The server refused it only because the time in its ids lies outside the window that the server accepts. Kept like
    /// a rejected one, and tried again now and then: a setting of the server lets it in.
    Held = 5,
}

impl MessageStatus {
    /// The statuses that a stored message can have, in the order in which people read them.
    pub const STORED: [MessageStatus; 4] =
        [MessageStatus::Failed, MessageStatus::Registered, MessageStatus::Held, MessageStatus::Rejected];

    /// Returns whether the message is on its way to the server: it waits for a replay, or is being sent.
    pub fn is_on_its_way(self) -> bool {
        matches!(self, Self::Failed | Self::Registered)
    }

    /// Returns whether the server refused the message, so that what depends on it waits ([`crate::store`]).
    pub fn is_refused(self) -> bool {
        matches!(self, Self::Rejected | Self::Held)
    }

    /// Returns the number kept in the `status` column.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the status with this number, or `None` when the SDK and we know none.
    pub fn from_code(code: i64) -> Option<Self> {
        match code {
            1 => Some(Self::Registered),
            2 => Some(Self::Delivered),
            3 => Some(Self::Failed),
            4 => Some(Self::Rejected),
            5 => Some(Self::Held),
            _ => None,
        }
    }

    /// Returns the word used on the command line and in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Held => "held",
        }
    }

    /// Returns the status with this name, or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Registered, Self::Delivered, Self::Failed, Self::Rejected, Self::Held]
            .into_iter()
            .find(|s| s.name() == name)
    }
}

impl fmt::Display for MessageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The HTTP request of a message, in the parts that a repeat needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, upper case.
    pub method: String,
    /// Path and query below the server's base, without a leading slash: `v1/private/traces?x=y`.
    pub path: String,
    /// The end-to-end headers as sent, except those that the lane or the connection carries.
    pub headers: HeaderSet,
    /// The body as sent.
    pub body: Body,
}

/// The headers that a repeat sends again: names and values in wire order and case.
///
/// Clients send the same few sets with every request, so a store keeps each set once. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeaderSet(Arc<[(String, Vec<u8>)]>);

impl HeaderSet {
    /// Returns a set of these headers, in this order.
    pub fn new(headers: Vec<(String, Vec<u8>)>) -> Self {
        Self(headers.into())
    }

    /// Returns the headers in wire order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Returns the first value of a header, whatever its case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns the set as it stands on the wire: `name: value` lines ended by CR LF.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::new();
        for (name, value) in self.iter() {
            wire.extend_from_slice(name.as_bytes());
            wire.extend_from_slice(b": ");
            wire.extend_from_slice(value);
            wire.extend_from_slice(b"\r\n");
        }
        wire
    }

    /// Returns the set that [`HeaderSet::to_wire`] wrote; lines without a colon are left out.
    pub fn from_wire(wire: &[u8]) -> Self {
        let mut headers = Vec::new();
        for line in wire.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            let value = line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]);
            headers.push((name, value.to_vec()));
        }
        Self(headers.into())
    }
}

/// One accepted write, as the client sent it, with what delivery needs to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whose it is: order holds inside a lane.
    pub lane: Lane,
    /// What kind of write it is.
    pub message_type: MessageType,
    /// What to send.
    pub request: Request,
    /// What it creates, changes or refers to; each key once.
    pub touches: Vec<Touch>,
    /// How many traces, spans, scores ... it carries; 1 for single writes.
    pub items: u32,
    /// The project named by the first item that names one.
    pub project: Option<String>,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub accepted_at_ms: i64,
}

/// A message taken for sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its id.
    pub id: MessageId,
    /// What kind it is.
    pub message_type: MessageType,
    /// What to send.
    pub request: Request,
    /// What it is about.
    pub touches: Vec<Touch>,
    /// How many items it carries.
    pub items: u32,
    /// Attempts that counted against it so far.
    pub attempts: u32,
    /// Traces and spans that it creates and of which an update may have reached the server before it.
    pub ahead: Vec<EntityKey>,
    /// How it may be sent.
    pub way: Way,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_keep_the_sdks_numbers() {
        for (status, code) in [
            (MessageStatus::Registered, 1),
            (MessageStatus::Delivered, 2),
            (MessageStatus::Failed, 3),
            (MessageStatus::Rejected, 4),
            (MessageStatus::Held, 5),
        ] {
            assert_eq!(i64::from(status.code()), code);
            assert_eq!(MessageStatus::from_code(code), Some(status));
            assert_eq!(MessageStatus::from_name(status.name()), Some(status));
        }
        assert_eq!(MessageStatus::from_code(0), None);
    }

    #[test]
    fn header_sets_survive_the_store_byte_for_byte() {
        let set = HeaderSet::new(vec![
            ("content-type".into(), b"application/json".to_vec()),
            ("X-Odd".into(), vec![0xe4, b':', b' ']),
            ("X-Empty".into(), Vec::new()),
        ]);
        assert_eq!(HeaderSet::from_wire(&set.to_wire()), set);
        assert_eq!(set.get("CONTENT-TYPE"), Some(&b"application/json"[..]));
    }
}
