//! SQLite's own search for damage.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::fault::Fault;
use super::files::log_of;

/// Problems of a store that are small enough to be looked for whenever it is opened, in bytes.
const LOOKED_THROUGH_BYTES_MAX: u64 = 32 << 20;

/// Looks for damage in a store that is small enough for that.
pub(super) fn look_through(connection: &Connection, path: &Path) -> Result<(), Fault> {
    let bytes: u64 =
        [path.to_owned(), log_of(path)].iter().map(|file| fs::metadata(file).map_or(0, |file| file.len())).sum();
    if bytes > LOOKED_THROUGH_BYTES_MAX {
        return Ok(());
    }
    match problem(connection)? {
        Some(problem) => Err(Fault::Damaged(problem)),
        None => Ok(()),
    }
}

pub(super) fn problem(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((found != "ok").then_some(found))
}
