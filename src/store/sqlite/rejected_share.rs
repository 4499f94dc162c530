//! The share of rejected messages: what is configured, and what was measured last.

use std::sync::Mutex;
use std::time::Instant;

use crate::store::rejected_room::RejectedRoom;

/// The share of the store that rejected messages may keep, and what was measured of them.
#[derive(Default)]
pub(super) struct RejectedShare {
    pub(super) room: RejectedRoom,
    /// One thread at a time makes space.
    pub(super) seen: Mutex<RejectedSeen>,
}

#[derive(Default)]
pub(super) struct RejectedSeen {
    /// Messages and bytes in the summary, and their bytes in the file, which takes a scan to measure.
    pub(super) held: Option<((i64, i64), u64)>,
    /// When no space could be made, and why.
    pub(super) in_vain: Option<(Instant, String)>,
    /// The problem that was logged last.
    pub(super) told: Option<String>,
}

impl RejectedShare {
    pub(super) fn new(room: RejectedRoom) -> Self {
        Self { room, seen: Mutex::default() }
    }
}
