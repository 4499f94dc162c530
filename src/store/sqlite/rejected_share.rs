//! What rejected messages may keep, and what was measured of them.

use std::sync::Mutex;
use std::time::Instant;

use crate::store::rejected_room::RejectedRoom;

/// What rejected messages may keep, and what was seen of them.
#[derive(Default)]
pub(super) struct RejectedShare {
    pub(super) room: RejectedRoom,
    /// One thread at a time makes room.
    pub(super) seen: Mutex<RejectedSeen>,
}

#[derive(Default)]
pub(super) struct RejectedSeen {
    /// Messages and bytes as the summary counts them, and their bytes in the file: worth a walk once.
    pub(super) held: Option<((i64, i64), u64)>,
    /// When room could not be made, and why.
    pub(super) in_vain: Option<(Instant, String)>,
    /// The trouble that was logged last.
    pub(super) told: Option<String>,
}

impl RejectedShare {
    pub(super) fn new(room: RejectedRoom) -> Self {
        Self { room, seen: Mutex::default() }
    }
}
