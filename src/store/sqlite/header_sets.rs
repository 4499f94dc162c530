//! Header sets: the distinct sets of request headers, each stored once.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::fault::Fault;
use super::queries;
use super::seal::{Lookup, Sealer};
use crate::message::HeaderSet;

/// Re-encrypts or decrypts a header set to match the sealer.
pub(super) fn reseal_header_set(tx: &Transaction<'_>, sealer: &Sealer, id: i64) -> Result<(), Fault> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found: Option<(Vec<u8>, Option<Vec<u8>>)> =
        tx.prepare_cached(queries::HEADER_SET_TO_RESEAL)?.query_row([id], read).optional()?;
    let Some((by, sealed)) = found else { return Ok(()) };
    let value = sealer.value(Lookup::HeaderSet, by, sealed.as_deref())?;
    let (by, sealed) = sealer.seal_value(Lookup::HeaderSet, &value)?;
    // A message that arrived after the change of the key may have stored the same set.
    let twin: Option<i64> = tx.prepare_cached(queries::HEADER_SET_ID)?.query_row([&by], |row| row.get(0)).optional()?;
    match twin.filter(|twin| *twin != id) {
        // The older one belongs to more messages.
        Some(twin) => {
            let (kept, dropped) = (id.min(twin), id.max(twin));
            tx.prepare_cached(queries::REPLACE_HEADER_SET)?.execute([dropped, kept])?;
            tx.prepare_cached(queries::DROP_HEADER_SET)?.execute([dropped])?;
            tx.prepare_cached(queries::SET_HEADER_SET)?.execute(params![kept, by, sealed])?;
        }
        None => {
            tx.prepare_cached(queries::SET_HEADER_SET)?.execute(params![id, by, sealed])?;
        }
    }
    Ok(())
}

/// Re-encrypts the first header sets: all of them, where clients send the same few.
pub(super) fn reseal_first_header_sets(tx: &Transaction<'_>, sealer: &Sealer) -> Result<(), Fault> {
    let key = sealer.state().key().map(|id| id.0.to_vec());
    let mut statement = tx.prepare(queries::HEADER_SETS_TO_RESEAL)?;
    let ids = statement.query_map(params![i64::MIN, key, FIRST_MAX], |row| row.get(0))?;
    for id in ids.collect::<rusqlite::Result<Vec<i64>>>()? {
        reseal_header_set(tx, sealer, id)?;
    }
    Ok(())
}

/// Header sets that are re-encrypted together with a change of the key.
const FIRST_MAX: i64 = 500;
/// Header sets that may exist without a message that uses them.
const HEADER_SETS_KEPT: i64 = 256;

/// Removes unused header sets once in a while.
///
/// Clients send the same few sets, and for those this costs nothing. A client that sends a new set with every request
/// would let the table grow without bound; the next sweep runs when the table has doubled, so that all sweeps together
/// cost as much as adding the sets.
fn sweep_header_sets_if_due(tx: &Transaction<'_>) -> Result<(), Fault> {
    let highest: i64 = tx.prepare_cached(queries::HIGHEST_HEADER_SET)?.query_row([], |row| row.get(0))?;
    let sweep_at: i64 = tx.prepare_cached(queries::COUNTER)?.query_row(["header_sets_swept_next"], |row| row.get(0))?;
    if highest >= sweep_at {
        sweep_header_sets(tx)?;
    }
    Ok(())
}

/// Removes the header sets that no message uses.
pub(super) fn sweep_header_sets(tx: &Transaction<'_>) -> Result<(), Fault> {
    tx.execute(queries::FORGET_HEADER_SETS, [])?;
    let (highest, left): (i64, i64) = tx.query_row(queries::HEADER_SETS, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let next = highest + left.max(HEADER_SETS_KEPT);
    tx.execute(queries::SET_COUNTER, params!["header_sets_swept_next", next])?;
    Ok(())
}

/// Returns the row id of a header set, which is stored if it is new.
pub(super) fn find_or_add(tx: &Transaction<'_>, sealer: &Sealer, headers: &HeaderSet) -> Result<i64, Fault> {
    let wire = headers.to_wire();
    let by = sealer.lookup(Lookup::HeaderSet, &wire)?;
    let known = tx.prepare_cached(queries::HEADER_SET_ID)?.query_row([&by], |row| row.get(0)).optional()?;
    match known {
        Some(id) => Ok(id),
        None => {
            sweep_header_sets_if_due(tx)?;
            let (by, sealed) = sealer.seal_value(Lookup::HeaderSet, &wire)?;
            Ok(tx.prepare_cached(queries::ADD_HEADER_SET)?.query_row(params![by, sealed], |row| row.get(0))?)
        }
    }
}
