//! Rate limits: holds of one bucket of a lane, beside the lane's own hold.

use rusqlite::{Connection, Transaction, params};

use super::fault::Fault;
use super::{queries, settle};
use crate::message::{Bucket, Buckets};
use crate::store::{Hold, now_ms};

/// Returns the limits of a lane that are in force.
pub(super) fn of(connection: &Connection, lane: i64, now_ms: i64) -> Result<Vec<Hold>, Fault> {
    let mut statement = connection.prepare_cached(queries::LIMITS)?;
    let mut found = statement.query([lane])?;
    let mut limits = Vec::new();
    while let Some(row) = found.next()? {
        let (until_ms, held_at_ms): (i64, i64) = (row.get(1)?, row.get(3)?);
        let Some(bucket) = Bucket::from_code(row.get(0)?) else { continue };
        if until_ms > now_ms && !settle::was_set_back(Some(held_at_ms), until_ms, now_ms) {
            limits.push(Hold { until_ms, reason: row.get(2)?, probe: false, status: Some(429), bucket: Some(bucket) });
        }
    }
    Ok(limits)
}

/// Returns the buckets of these limits.
pub(super) fn buckets(limits: &[Hold]) -> Buckets {
    limits.iter().filter_map(|limit| limit.bucket).collect()
}

/// Limits a bucket, unless it is limited for longer.
pub(super) fn limit(tx: &Transaction<'_>, lane: i64, bucket: Bucket, hold: &Hold) -> Result<(), Fault> {
    let now_ms = now_ms();
    let known = of(tx, lane, now_ms)?.into_iter().find(|limit| limit.bucket == Some(bucket));
    if known.is_none_or(|known| known.until_ms < hold.until_ms) {
        tx.prepare_cached(queries::LIMIT)?.execute(params![lane, bucket.code(), hold.until_ms, hold.reason, now_ms])?;
    }
    Ok(())
}
