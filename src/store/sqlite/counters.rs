//! Counters that a store keeps about itself.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::queries;
use crate::store::replay_hold::ReplayHold;
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

/// The row of the store's hold: a text among numbers, which no version reads that does not know it.
///
/// It has when the hold ends, when it was set, and by whom. A recovery does not copy it: a recovered store delivers.
const REPLAY_HOLD: &str = "replay_hold";

/// Records the hold of the whole store, or that there is none.
pub(super) fn set_replay_hold(tx: &Transaction<'_>, hold: Option<&ReplayHold>) -> Result<(), Fault> {
    match hold {
        Some(ReplayHold { until_ms, since_ms, by }) => {
            let row = format!("{until_ms} {since_ms} {by}");
            tx.prepare_cached(queries::REPLACE_COUNTER)?.execute(params![REPLAY_HOLD, row])?;
        }
        None => drop(tx.prepare_cached(queries::DROP_COUNTER)?.execute([REPLAY_HOLD])?),
    }
    Ok(())
}

/// Returns what [`set_replay_hold`] recorded; a row that can't be parsed holds nothing.
pub(super) fn replay_hold(connection: &Connection) -> Result<Option<ReplayHold>, Fault> {
    let text = |row: &rusqlite::Row<'_>| Ok(row.get_ref(0)?.as_str().ok().map(str::to_owned));
    let row = connection.prepare_cached(queries::COUNTER)?.query_row([REPLAY_HOLD], text).optional()?;
    Ok(row.flatten().and_then(|row| {
        let mut words = row.splitn(3, ' ');
        let (until_ms, since_ms) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(ReplayHold { until_ms, since_ms, by: words.next()?.to_owned() })
    }))
}
