//! How a write begins.
//!
//! Another process may have brought the schema up to date, changed the key or found the disk failing since the file was
//! opened. So every write looks again, under the write lock: nobody changes any of it until the write is committed.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tracing::warn;

use super::fault::Fault;
use super::schema;
use super::unproven::Watch;
use crate::store::error::StoreError;

/// The version of what stands in the place of a file that was closed. No file of ours has it.
const CLOSED: i64 = -1_000_000_000;

/// Closes the file of a connection that others may still hold, for good: as long as it is open nobody can prove it. What
/// is tried with the connection afterwards fails.
pub(super) fn close(connection: &mut Connection, watch: &Watch) {
    watch.before_close(connection);
    let nothing = || -> rusqlite::Result<Connection> {
        let nothing = Connection::open_in_memory()?;
        nothing.pragma_update(None, "user_version", CLOSED)?;
        Ok(nothing)
    };
    match nothing() {
        Ok(nothing) => drop(std::mem::replace(connection, nothing)),
        Err(error) => warn!(target: "db_manager", "the message store stays open, and can't be proven: {error}"),
    }
}

/// Returns whether the connection was closed by [`close`].
pub(super) fn is_closed(connection: &Connection) -> bool {
    schema::version_seen(connection).is_ok_and(|version| version == CLOSED)
}

/// Begins a write under the write lock. Its tables are those of this version, and the store is proven.
pub(super) fn begin<'c>(connection: &'c mut Connection, watch: &Watch) -> Result<Transaction<'c>, Fault> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    refuse_newer(&tx, watch.path())?;
    // Nobody continues a log that has a hole.
    watch.vet()?;
    Ok(tx)
}

/// Fails when a newer version has brought the schema up to date since the file was opened. Asked in every transaction,
/// so that nothing is done to tables that may mean something else by now.
pub(super) fn refuse_newer(connection: &Connection, path: &Path) -> Result<(), Fault> {
    let version = schema::version_seen(connection)?;
    if version == CLOSED {
        let reason = "it was closed, so that it can be proven".to_owned();
        return Err(StoreError::Unproven { path: path.to_owned(), reason }.into());
    }
    Ok(schema::refuse_newer(path, version)?)
}

/// Looks something up in one statement, which is a snapshot without the cost of a transaction around it. Versions only
/// grow: what was seen a moment ago was seen in the schema of this version. Of a newer one a failure says nothing.
pub(super) fn look<T>(
    connection: &Connection,
    path: &Path,
    work: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let found = work(connection);
    refuse_newer(connection, path)?;
    found
}
