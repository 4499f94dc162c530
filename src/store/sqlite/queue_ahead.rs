//! Messages queued ahead of a new write of their lane: the check that intake makes before it forwards a write.
//!
//! # Invariants
//!
//! - The check is conservative: a reference is in no index, so an end conflicts with everything that waits, and so does
//!   a write with more than [`Ahead::TOUCHES_MAX`] entities.
//! - With nothing queued it costs one indexed look-up, and none until the next commit ([`super::quick_reader`]).

use rusqlite::{Connection, params};

use super::fault::Fault;
use super::lanes::{base_url, lane_id, looked_up_by};
use super::seal::Sealer;
use super::{hold, queries, stranded};
use crate::message::{Buckets, Effect, Lane, Touch};
use crate::store::clock::now_ms;
use crate::store::work::Ahead;

/// How many messages of a lane matter to a new write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InLane {
    /// Messages that still have to be delivered.
    pub(super) messages: u64,
    /// Messages that the server refused.
    pub(super) refused: u64,
}

impl InLane {
    /// Returns whether no write of the lane has anything ahead of it, whatever it touches.
    pub(super) fn is_clear(self) -> bool {
        self.messages + self.refused == 0
    }
}

/// Counts the messages of a lane, or returns `None` if the sealer is of an older generation.
pub(super) fn waiting(connection: &Connection, sealer: &Sealer, lane: &Lane) -> Result<Option<InLane>, Fault> {
    let credential = looked_up_by(sealer, lane)?;
    let (messages, generation, refused): (i64, i64, i64) = connection
        .prepare_cached(queries::WAITING)?
        .query_row(params![lane.workspace, credential, base_url(lane)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let in_lane = InLane { messages: count(messages), refused: count(refused) };
    Ok((generation == sealer.generation()).then_some(in_lane))
}

/// Returns what is queued ahead of a new write of a lane. The connection is a snapshot, and the sealer is of its
/// generation.
pub(super) fn ahead(connection: &Connection, sealer: &Sealer, lane: &Lane, touches: &[Touch]) -> Result<Ahead, Fault> {
    let in_lane = waiting(connection, sealer, lane)?.unwrap_or_default();
    let InLane { messages, refused } = in_lane;
    if in_lane.is_clear() || touches.is_empty() {
        return Ok(Ahead { messages, ..Ahead::default() });
    }
    let Some(lane) = lane_id(connection, sealer, lane)? else { return Ok(Ahead::default()) };
    let held = messages > 0 && hold::hold_of(connection, lane, now_ms())?.is_some();
    let conflicting = messages > 0 && waits_behind(connection, lane, touches)?
        || refused > 0 && stranded::is_stranded(connection, lane, touches)?;
    let limited = match messages {
        0 => Buckets::default(),
        _ => hold::buckets(&hold::limits_of(connection, lane, now_ms())?),
    };
    Ok(Ahead { messages, conflicting, held, limited })
}

/// Returns whether a write has to wait behind a message of its lane, or may have to.
fn waits_behind(connection: &Connection, lane: i64, touches: &[Touch]) -> Result<bool, Fault> {
    if touches.len() > Ahead::TOUCHES_MAX
        // References are in no index, so an end goes behind everything.
        || touches.iter().any(|touch| touch.effect == Effect::End)
        || connection.prepare_cached(queries::WAITS_UNINDEXED)?.exists([lane])?
    {
        return Ok(true);
    }
    let mut ended = connection.prepare_cached(queries::WAITING_END)?;
    let mut changed = connection.prepare_cached(queries::WAITING_CHANGE)?;
    for touch in touches {
        let statement = if touch.effect == Effect::Refer { &mut ended } else { &mut changed };
        if statement.exists(params![&touch.key.as_bytes()[..], lane])? {
            return Ok(true);
        }
    }
    Ok(false)
}
