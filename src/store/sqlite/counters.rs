//! Counters that a store keeps about itself.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::queries;
use crate::store::view::FullRecord;

/// Returns a counter; 0 if nothing was ever added to it.
pub(super) fn counter(connection: &Connection, name: &str) -> Result<u64, Fault> {
    let count: Option<i64> =
        connection.prepare_cached(queries::COUNTER)?.query_row([name], |row| row.get(0)).optional()?;
    Ok(count.unwrap_or(0).unsigned_abs())
}

/// The counters of [`FullRecord`].
pub(super) const FULL_REFUSED: &str = "full_refused";

const FULL_SINCE: &str = "full_since_ms";

/// Records since when the store is full, and how many writes it refused.
pub(super) fn note_full(tx: &Transaction<'_>, since_ms: Option<i64>, refused: u64) -> Result<(), Fault> {
    let mut add = tx.prepare_cached(queries::ADD_TO_ANY_COUNTER)?;
    add.execute(params![FULL_REFUSED, i64::try_from(refused).unwrap_or(i64::MAX)])?;
    add.execute(params![FULL_SINCE, 0])?;
    tx.prepare_cached(queries::SET_COUNTER)?.execute(params![FULL_SINCE, since_ms.unwrap_or(0)])?;
    Ok(())
}

/// Returns what [`note_full`] recorded.
pub(super) fn full_record(connection: &Connection) -> Result<FullRecord, Fault> {
    let since_ms = counter(connection, FULL_SINCE)?;
    let since_ms = i64::try_from(since_ms).ok().filter(|since_ms| *since_ms > 0);
    Ok(FullRecord { since_ms, refused: counter(connection, FULL_REFUSED)? })
}

/// The counter of rejected messages that were dropped.
pub(super) const REJECTED_DROPPED: &str = "rejected_dropped";

/// Writes a commit to a log that was emptied: only the end of a log that has one can be watched ([`super::log_end`]).
pub(super) fn begin_log(tx: &Transaction<'_>) -> Result<(), Fault> {
    // Counted because a page that is not changed is not written.
    tx.prepare_cached(queries::ADD_TO_ANY_COUNTER)?.execute(params!["logs_begun", 1])?;
    Ok(())
}
