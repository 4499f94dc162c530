//! Erasing credentials and header sets that nothing needs.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::queries;
use crate::store::clock::now_ms;

/// With more messages than this, header sets are not looked through: no index says which of them are needed.
const MESSAGES_LOOKED_THROUGH_MAX: i64 = 5000;

/// Returns whether something could be erased: a lane without messages, its credential, or a set of headers, which may hold
/// a cookie or the token of a gate.
pub(super) fn any_to_erase(connection: &Connection) -> Result<bool, Fault> {
    let any_lane = connection.prepare_cached(queries::ANY_EMPTY_LANE)?.exists([now_ms()])?;
    Ok(any_lane || any_unused(connection, queries::ANY_UNUSED_CREDENTIAL)? || any_unused_header_set(connection)?)
}

fn any_unused(connection: &Connection, sql: &str) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(sql)?.exists([])?)
}

fn any_unused_header_set(connection: &Connection) -> Result<bool, Fault> {
    let messages: i64 = connection.prepare_cached(queries::MESSAGES_IN_ALL)?.query_row([], |row| row.get(0))?;
    Ok(messages <= MESSAGES_LOOKED_THROUGH_MAX && any_unused(connection, queries::ANY_UNUSED_HEADER_SET)?)
}

/// Forgets lanes that hold nothing, and erases credentials and header sets that nothing needs; returns whether something
/// secret was erased, and may still be in the log. `secure_delete` is on: what SQLite frees, it overwrites with zeros.
pub(super) fn erase(tx: &Transaction<'_>) -> Result<bool, Fault> {
    tx.execute(queries::FORGET_LANES, [now_ms()])?;
    tx.execute(queries::FORGET_LIMITS, [])?;
    let mut is_erased = false;
    if any_unused(tx, queries::ANY_UNUSED_CREDENTIAL)? {
        let (used, put_back) = (queries::USED_CREDENTIALS, queries::PUT_CREDENTIAL_BACK);
        write_anew(tx, used, queries::CLEAR_CREDENTIALS, put_back)?;
        is_erased = true;
    }
    if any_unused_header_set(tx)? {
        let (used, put_back) = (queries::USED_HEADER_SETS, queries::PUT_HEADER_SET_BACK);
        write_anew(tx, used, queries::CLEAR_HEADER_SETS, put_back)?;
        is_erased = true;
    }
    Ok(is_erased)
}

/// Writes what is needed of a table anew, into cleared pages. Deleting single rows would leave copies of them where SQLite
/// has moved rows between pages.
fn write_anew(tx: &Transaction<'_>, used: &str, clear: &str, put_back: &str) -> Result<(), Fault> {
    type Kept = (i64, Vec<u8>, Option<Vec<u8>>);
    let used: Vec<Kept> = {
        let mut statement = tx.prepare_cached(used)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    tx.execute(clear, [])?;
    let mut put_back = tx.prepare_cached(put_back)?;
    for (id, value, sealed) in used {
        put_back.execute(params![id, value, sealed])?;
    }
    Ok(())
}

/// Empties the log, and returns whether that worked: another process that reads keeps it.
pub(super) fn empty_log(connection: &Connection) -> Result<bool, Fault> {
    let busy: Option<bool> = connection.query_row(queries::EMPTY_LOG, [], |row| row.get(0)).optional()?;
    Ok(busy == Some(false))
}
