//! The domain's vocabulary: message, entity, lane and payload.
//!
//! Everything here is a plain value. This room imports no other room, and uses no clock, socket, disk or log: all other
//! rooms may therefore depend on it.

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

/// Identifies a message in one store; ascending in the order of acceptance, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub i64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The status of a message.
///
/// The first three are the SDK's own (`opik/message_processing/replay/db_manager`, protocol dossier section e); the
/// other two are ours. A rejected message is known elsewhere as a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageStatus {
    /// In flight: claimed by a replay that has not settled it yet.
    Registered = 1,
    /// The server confirmed it. Never stored: a delivered message is deleted.
    Delivered = 2,
    /// Queued for the next replay.
    Failed = 3,
    /// The server rejected it permanently; kept as a dead letter until someone replays or purges it.
    Rejected = 4,
    /// The server rejected it only because the timestamp in its ids is outside the window that the server accepts. Kept
    /// like a rejected message and retried from time to time: the window is a setting of the server.
    Held = 5,
}

impl MessageStatus {
    /// The statuses of stored messages, in display order.
    pub const STORED: [MessageStatus; 4] =
        [MessageStatus::Failed, MessageStatus::Registered, MessageStatus::Held, MessageStatus::Rejected];

    /// Returns whether the message still has to reach the server: it is queued or in flight.
    pub fn is_on_its_way(self) -> bool {
        matches!(self, Self::Failed | Self::Registered)
    }

    /// Returns whether the message is rejected or held, so that messages that depend on it are stranded
    /// ([`crate::store`]).
    pub fn is_refused(self) -> bool {
        matches!(self, Self::Rejected | Self::Held)
    }

    /// Returns the number in the `status` column.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the status with this number, or `None` for an unknown one.
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

    /// Returns the word that people read: `failed` sounds like a loss, and its message is queued.
    pub fn word(self) -> &'static str {
        match self {
            Self::Registered => "sending",
            Self::Failed => "waiting",
            Self::Delivered | Self::Rejected | Self::Held => self.name(),
        }
    }

    /// Returns the status with this name or word, or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Registered, Self::Delivered, Self::Failed, Self::Rejected, Self::Held]
            .into_iter()
            .find(|status| status.name() == name || status.word() == name)
    }
}

impl fmt::Display for MessageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The HTTP request of a message, in the parts that a retry needs.
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

/// The headers that a retry sends again: names and values in wire order and case.
///
/// Clients send the same few sets with every request, so stores deduplicate them. Cheap to clone.
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

    /// Encodes the set for the wire: `name: value` lines that end with CR LF.
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

    /// Parses the output of [`HeaderSet::to_wire`]; lines without a colon are skipped.
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

/// One accepted write, as the client sent it, with the attributes that delivery needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its destination; messages are ordered within a lane.
    pub lane: Lane,
    /// The kind of write.
    pub message_type: MessageType,
    /// The request to send.
    pub request: Request,
    /// The entities that it creates, changes or refers to; keys are unique.
    pub touches: Vec<Touch>,
    /// How many traces, spans, scores ... it carries; 1 for single writes.
    pub items: u32,
    /// The project named by the first item that names one.
    pub project: Option<String>,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub accepted_at_ms: i64,
}

/// A message that a replay has claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its id.
    pub id: MessageId,
    /// The kind of write.
    pub message_type: MessageType,
    /// The request to send.
    pub request: Request,
    /// The entities that it touches.
    pub touches: Vec<Touch>,
    /// How many items it carries.
    pub items: u32,
    /// Failed attempts that counted against it.
    pub attempts: u32,
    /// Traces and spans that it creates and whose update may have reached the server earlier.
    pub ahead: Vec<EntityKey>,
    /// Whether nothing says that there were such updates, and only the notes that would say so are lost or elsewhere.
    pub is_unsure: bool,
    /// How it may be sent.
    pub way: Way,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_match_the_sdk() {
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
    fn header_sets_round_trip_byte_for_byte() {
        let set = HeaderSet::new(vec![
            ("content-type".into(), b"application/json".to_vec()),
            ("X-Odd".into(), vec![0xe4, b':', b' ']),
            ("X-Empty".into(), Vec::new()),
        ]);
        assert_eq!(HeaderSet::from_wire(&set.to_wire()), set);
        assert_eq!(set.get("CONTENT-TYPE"), Some(&b"application/json"[..]));
    }
}
