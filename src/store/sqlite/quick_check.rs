//! SQLite's own check for corruption.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::fault::Fault;
use super::files::log_of;

/// Stores up to this many bytes are checked whenever they are opened.
const CHECKED_BYTES_MAX: u64 = 32 << 20;

/// Checks a store for corruption if it is small enough for that.
pub(super) fn quick_check_if_small(connection: &Connection, path: &Path) -> Result<(), Fault> {
    let bytes: u64 =
        [path.to_owned(), log_of(path)].iter().map(|file| fs::metadata(file).map_or(0, |file| file.len())).sum();
    if bytes > CHECKED_BYTES_MAX {
        return Ok(());
    }
    match problem(connection)? {
        Some(problem) => Err(Fault::Damaged(problem)),
        None => Ok(()),
    }
}

/// Returns the first problem that `PRAGMA quick_check` finds.
pub(super) fn problem(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((found != "ok").then_some(found))
}
