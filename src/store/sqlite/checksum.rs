//! Whether a message is still the one that was stored.
//!
//! SQLite finds damage of its own structure, not of what lies in it: one flipped bit in a body or a path goes unnoticed.
//! So every message has a CRC-32 of all that reaches the server and of all that decides where it goes and when, put
//! down when it is stored and looked at when it is claimed or recovered. It covers the body as sent, not as it is kept,
//! and no number of a lane or header set but what stands there: whoever packs bodies anew or copies a store changes
//! nothing of it. What changes while a message waits (status, attempts, answer, position) is not covered.
//!
//! It finds accidents, not forgers: who can write the file can write the checksum.

use libdeflater::Crc;

use crate::message::{Encoding, HeaderSet, Lane, Touch};

/// What a checksum covers beside the body.
pub(super) struct Covered<'a> {
    pub(super) id: i64,
    pub(super) message_type: &'a str,
    pub(super) lane: &'a Lane,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) headers: &'a HeaderSet,
    pub(super) encoding: Encoding,
    pub(super) touches: &'a [Touch],
    pub(super) items: u32,
    pub(super) project: Option<&'a str>,
    pub(super) accepted_at_ms: i64,
}

impl Covered<'_> {
    /// Returns the checksum of the message with this body, as sent.
    pub(super) fn with(&self, body: &[u8]) -> i64 {
        let mut crc = Crc::new();
        let mut part = |bytes: Option<&[u8]>| {
            // Lengths keep the end of one part from being taken for the beginning of the next.
            crc.update(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
            crc.update(bytes.unwrap_or_default());
        };
        part(Some(&self.id.to_le_bytes()));
        part(Some(self.message_type.as_bytes()));
        part(self.lane.workspace.as_deref().map(str::as_bytes));
        part(self.lane.credential.as_ref().map(|credential| credential.reveal()));
        part(Some(self.method.as_bytes()));
        part(Some(self.path.as_bytes()));
        part(Some(&self.headers.to_wire()));
        part(Some(&[super::rows::encoding_code(self.encoding)]));
        part(Some(&Touch::to_bytes(self.touches)));
        part(Some(&self.items.to_le_bytes()));
        part(self.project.map(str::as_bytes));
        part(Some(&self.accepted_at_ms.to_le_bytes()));
        part(Some(body));
        i64::from(crc.sum())
    }
}
