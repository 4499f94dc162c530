//! The log of what the server received.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

use super::check::{Key, Write};

/// One request, as it arrived and as it was answered.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// Counts requests in the order in which they were read whole.
    pub seq: usize,
    pub at: Instant,
    pub method: String,
    /// The path as sent, with its prefix.
    pub path: String,
    /// The path as the server reads it behind its nginx, without a slash at its end.
    pub resolved: String,
    pub query: Option<String>,
    /// In the order and case of the wire.
    pub headers: Vec<(String, String)>,
    /// The bytes as sent, maybe compressed.
    pub body: Bytes,
    /// The body, decompressed and read leniently; `None` if it is not JSON.
    pub json: Option<Arc<Value>>,
    pub workspace: String,
    pub authorization: Option<String>,
    /// Its writes; empty for reads and for refused requests.
    pub writes: Vec<Write>,
    /// `None` when no answer was sent.
    pub answered_status: Option<u16>,
    /// The server's state changed, whether or not the client heard of it.
    pub processed: bool,
    /// When it ended, in steps of the server's own counter; see [`super::FakeOpik::overlaps`].
    pub(super) began_step: u64,
    pub(super) ended_step: Option<u64>,
}

impl Received {
    /// Returns the path after `/api` or `/opik/api`; the whole path when it has no such prefix.
    pub(crate) fn route(&self) -> &str {
        route(&self.resolved).unwrap_or(&self.resolved)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn touches(&self, key: &Key) -> bool {
        self.writes.iter().any(|write| write.key == *key)
    }

    pub(crate) fn touches_id(&self, id: &str) -> bool {
        self.writes.iter().any(|write| write.key.id == id)
    }
}

/// Strips the prefix under which Opik is served.
pub(super) fn route(path: &str) -> Option<&str> {
    ["/opik/api", "/api"].iter().find_map(|prefix| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/')))
}

/// An update that reached the server before the create of its entity.
#[derive(Clone, Debug)]
pub(crate) struct EarlyUpdate {
    pub seq: usize,
    pub workspace: String,
    pub key: Key,
}

/// Two requests that were in flight at once and write the same entity.
#[derive(Clone, Debug)]
pub(crate) struct Overlap {
    pub first: usize,
    pub second: usize,
    pub workspace: String,
    pub key: Key,
}
