//! Erasing credentials and header sets that no message needs any longer, from the file and from the log.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::queries;
use crate::store::clock::now_ms;

/// With more messages than this, unused header sets are not searched for: no index tells which sets are in use.
const MESSAGES_SCANNED_MAX: i64 = 5000;

/// Returns whether something can be erased: a lane without messages, its credential, or a header set, which may contain
/// a cookie or a gateway's token.
pub(super) fn any_to_erase(connection: &Connection) -> Result<bool, Fault> {
    let any_lane = connection.prepare_cached(queries::ANY_EMPTY_LANE)?.exists([now_ms()])?;
    Ok(any_lane || any_unused(connection, queries::ANY_UNUSED_CREDENTIAL)? || any_unused_header_set(connection)?)
}

fn any_unused(connection: &Connection, sql: &str) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(sql)?.exists([])?)
}

fn any_unused_header_set(connection: &Connection) -> Result<bool, Fault> {
    let messages: i64 = connection.prepare_cached(queries::MESSAGES_IN_ALL)?.query_row([], |row| row.get(0))?;
    Ok(messages <= MESSAGES_SCANNED_MAX && any_unused(connection, queries::ANY_UNUSED_HEADER_SET)?)
}

/// Removes lanes without messages, and erases credentials and header sets that nothing uses. Returns whether a secret
/// was erased that may still be in the log. `secure_delete` is on: SQLite overwrites freed pages with zeros.
pub(super) fn erase(tx: &Transaction<'_>) -> Result<bool, Fault> {
    tx.execute(queries::FORGET_LANES, [now_ms()])?;
    tx.execute(queries::FORGET_LIMITS, [])?;
    let mut is_erased = false;
    if any_unused(tx, queries::ANY_UNUSED_CREDENTIAL)? {
        let (used, put_back) = (queries::USED_CREDENTIALS, queries::PUT_CREDENTIAL_BACK);
        rewrite_table(tx, used, queries::CLEAR_CREDENTIALS, put_back)?;
        is_erased = true;
    }
    if any_unused_header_set(tx)? {
        let (used, put_back) = (queries::USED_HEADER_SETS, queries::PUT_HEADER_SET_BACK);
        rewrite_table(tx, used, queries::CLEAR_HEADER_SETS, put_back)?;
        is_erased = true;
    }
    Ok(is_erased)
}

/// Rewrites the rows in use of a table into cleared pages. Deleting single rows would leave copies where SQLite has
/// moved rows between pages.
fn rewrite_table(tx: &Transaction<'_>, used: &str, clear: &str, put_back: &str) -> Result<(), Fault> {
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

/// Truncates the log, and returns whether that succeeded: another process that is reading prevents it.
pub(super) fn empty_log(connection: &Connection) -> Result<bool, Fault> {
    let busy: Option<bool> = connection.query_row(queries::EMPTY_LOG, [], |row| row.get(0)).optional()?;
    Ok(busy == Some(false))
}
