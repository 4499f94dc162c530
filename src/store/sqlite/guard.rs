//! How every transaction begins: the checks that must hold before it reads or writes.
//!
//! Since the file was opened, another process may have migrated the schema, changed the key or found the disk failing.
//! So every write checks again, under the write lock, which keeps all of it unchanged until the write commits.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tracing::warn;

use super::fault::Fault;
use super::schema;
use super::unproven::UnprovenWatch;
use crate::store::error::StoreError;

/// The schema version of the placeholder for a closed file. No real store has it.
const CLOSED: i64 = -1_000_000_000;

/// Closes the file of a connection for good, even while others hold the connection: a store that is open cannot be
/// proven. Later calls on the connection fail.
pub(super) fn close(connection: &mut Connection, watch: &UnprovenWatch) {
    watch.before_close(connection);
    let nothing = || -> rusqlite::Result<Connection> {
        let nothing = Connection::open_in_memory()?;
        nothing.pragma_update(None, "user_version", CLOSED)?;
        Ok(nothing)
    };
    match nothing() {
        Ok(nothing) => drop(std::mem::replace(connection, nothing)),
        Err(error) => {
            warn!(target: "db_manager", "cannot close the message store, which must be closed to be proven: {error}")
        }
    }
}

/// Returns whether the connection was closed by [`close`].
pub(super) fn is_closed(connection: &Connection) -> bool {
    schema::version_seen(connection).is_ok_and(|version| version == CLOSED)
}

/// Begins a write under the write lock, after checking that the schema is this version's and the store is proven.
pub(super) fn begin<'c>(connection: &'c mut Connection, watch: &UnprovenWatch) -> Result<Transaction<'c>, Fault> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    refuse_newer(&tx, watch.path())?;
    // A log with a hole must not be appended to.
    watch.vet()?;
    Ok(tx)
}

/// Fails if a newer version has migrated the schema since the file was opened. Checked in every transaction, because
/// the tables may mean something else now.
pub(super) fn refuse_newer(connection: &Connection, path: &Path) -> Result<(), Fault> {
    let version = schema::version_seen(connection)?;
    if version == CLOSED {
        let reason = "it was closed, so that it can be proven".to_owned();
        return Err(StoreError::Unproven { at: path.into(), reason }.into());
    }
    Ok(schema::refuse_newer(path, version)?)
}

/// Runs one read-only statement, which is a snapshot without the cost of a transaction. The version is checked
/// afterwards: versions only grow, so if it is still ours, the result was read from our schema. Under a newer schema a
/// failure means nothing.
pub(super) fn look<T>(
    connection: &Connection,
    path: &Path,
    work: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let found = work(connection);
    refuse_newer(connection, path)?;
    found
}
