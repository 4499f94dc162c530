//! Holds of lanes, and rate limits of one bucket of a lane.
//!
//! A hold stops a whole lane until a time: the server limits it, or a probe has to pass first. A limit stops one bucket
//! of it. Both survive the process, so that every replayer respects them.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::lanes::{self, LaneCache};
use super::queries;
use super::seal::Sealer;
use crate::message::{Bucket, Buckets, Lane};
use crate::store::clock::now_ms;
use crate::store::work::{Hold, LaneId};

/// A wall clock that is earlier than the hold's creation by more than this was set back since.
const CLOCK_STEP_MS_MAX: i64 = 60 * 1000;

/// Holds a lane or one of its buckets, or releases the lane's hold.
pub(super) fn hold(tx: &Transaction<'_>, lane: LaneId, hold: Option<&Hold>) -> Result<(), Fault> {
    match hold {
        Some(hold) if hold.bucket.is_some() => {
            if let Some(bucket) = hold.bucket {
                limit(tx, lane.0, bucket, hold)?;
            }
            0
        }
        Some(hold) => tx.prepare_cached(queries::HOLD_LANE)?.execute(params![
            lane.0,
            hold.until_ms,
            hold.reason,
            hold.probe,
            now_ms(),
            hold.status
        ])?,
        None => tx.prepare_cached(queries::LET_LANE_GO)?.execute([lane.0])?,
    };
    Ok(())
}

/// Ends a lane's hold, if it is this one. The next message is a probe.
pub(super) fn end(tx: &Transaction<'_>, lane: LaneId, held: &Hold, now_ms: i64) -> Result<(), Fault> {
    match hold_of(tx, lane.0, now_ms)? {
        Some(found) if found == *held => hold(tx, lane, Some(&Hold { until_ms: now_ms, ..found })),
        _ => Ok(()),
    }
}

/// Returns whether the clock was set back since the hold was made. How much of the hold has passed is unknown then, and
/// it counts as over: the lane asks the server, which can repeat its limit, instead of waiting for hours that nobody
/// asked for.
///
/// A step of less than [`CLOCK_STEP_MS_MAX`] is tolerated: the hold lasts longer by at most that. A store of an earlier
/// version does not record when a hold was made; there, a hold longer than any possible one indicates the same.
fn was_set_back(held_at_ms: Option<i64>, until_ms: i64, now_ms: i64) -> bool {
    match held_at_ms {
        Some(held_at_ms) => held_at_ms.saturating_sub(now_ms) > CLOCK_STEP_MS_MAX,
        None => until_ms.saturating_sub(now_ms) > HOLD_MS_MAX,
    }
}

/// Returns the hold of a lane that is in force, or has expired without a success since.
pub(super) fn hold_of(connection: &Connection, lane: i64, now_ms: i64) -> Result<Option<Hold>, Fault> {
    let found = connection
        .prepare_cached(queries::HOLD)?
        .query_row([lane], |row| {
            let hold = Hold {
                until_ms: row.get(0)?,
                reason: row.get(1)?,
                probe: row.get(2)?,
                status: row.get(5)?,
                bucket: None,
            };
            Ok((hold, row.get::<_, bool>(3)?, row.get::<_, Option<i64>>(4)?))
        })
        .optional()?;
    let Some((mut hold, passed, held_at_ms)) = found else { return Ok(None) };
    if was_set_back(held_at_ms, hold.until_ms, now_ms) {
        hold.until_ms = now_ms;
    }
    Ok((hold.until_ms > now_ms || !passed).then_some(hold))
}

/// Returns the lanes in which messages wait, and whose hold is in force or has expired without a success since.
pub(super) fn held(connection: &Connection, sealer: &Sealer, now_ms: i64) -> Result<Vec<(Lane, Hold)>, Fault> {
    let mut statement = connection.prepare_cached(queries::HELD_LANES)?;
    let lanes = statement.query_map([now_ms], |row| row.get(0))?;
    let mut lanes = lanes.collect::<rusqlite::Result<BTreeSet<i64>>>()?;
    let mut statement = connection.prepare_cached(queries::LIMITED_LANES)?;
    let limited = statement.query_map([now_ms], |row| row.get(0))?;
    lanes.extend(limited.collect::<rusqlite::Result<Vec<i64>>>()?);
    let mut names = LaneCache::default();
    let mut held = Vec::new();
    for lane in lanes {
        for hold in hold_of(connection, lane, now_ms)?.into_iter().chain(limits_of(connection, lane, now_ms)?) {
            held.push((lanes::without_secrets(connection, sealer, &mut names, lane)?, hold));
        }
    }
    Ok(held)
}

/// Returns the limits of a lane that are in force.
pub(super) fn limits_of(connection: &Connection, lane: i64, now_ms: i64) -> Result<Vec<Hold>, Fault> {
    let mut statement = connection.prepare_cached(queries::LIMITS)?;
    let mut found = statement.query([lane])?;
    let mut limits = Vec::new();
    while let Some(row) = found.next()? {
        let (until_ms, held_at_ms): (i64, i64) = (row.get(1)?, row.get(3)?);
        let Some(bucket) = Bucket::from_code(row.get(0)?) else { continue };
        if until_ms > now_ms && !was_set_back(Some(held_at_ms), until_ms, now_ms) {
            limits.push(Hold { until_ms, reason: row.get(2)?, probe: false, status: Some(429), bucket: Some(bucket) });
        }
    }
    Ok(limits)
}

/// Returns the buckets of these limits.
pub(super) fn buckets(limits: &[Hold]) -> Buckets {
    limits.iter().filter_map(|limit| limit.bucket).collect()
}

/// Limits a bucket, unless it is limited for longer already.
fn limit(tx: &Transaction<'_>, lane: i64, bucket: Bucket, hold: &Hold) -> Result<(), Fault> {
    let now_ms = now_ms();
    let known = limits_of(tx, lane, now_ms)?.into_iter().find(|limit| limit.bucket == Some(bucket));
    if known.is_none_or(|known| known.until_ms < hold.until_ms) {
        tx.prepare_cached(queries::LIMIT)?.execute(params![lane, bucket.code(), hold.until_ms, hold.reason, now_ms])?;
    }
    Ok(())
}

/// A hold that ends later than this comes from a wrong clock, and counts as over.
const HOLD_MS_MAX: i64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * 60 * 1000;

    #[test]
    fn a_hold_ends_if_the_clock_was_set_back() {
        let now = 100 * HOUR;
        for (held_at_ms, until_ms, expected, what) in [
            (Some(now), now + 10_000, false, "made just now"),
            (Some(now - HOUR), now + 10_000, false, "made an hour ago"),
            (Some(now), now + 48 * HOUR, false, "as long as the user's setting allows"),
            (Some(now + 30_000), now + 40_000, false, "the clock was set by half a minute, as time servers do"),
            (Some(now + 6 * HOUR), now + 6 * HOUR + 10_000, true, "the clock was set back by six hours"),
            (Some(now - 6 * HOUR), now - 5 * HOUR, false, "over: the clock was set forward, or time has passed"),
            (None, now + 10_000, false, "an earlier version's"),
            (None, now + 25 * HOUR, true, "an earlier version's, longer than any"),
        ] {
            assert_eq!(was_set_back(held_at_ms, until_ms, now), expected, "{what}");
        }
    }
}
