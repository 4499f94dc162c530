//! Migrating the schema of an older version, with exclusive access.
//!
//! A released older version that has the file open does not check the schema again: it would continue with tables that
//! now mean something else, and report intact messages as damaged. So the schema is migrated only while no other
//! process has the file open. In WAL mode every connection holds a shared lock while it is open, so an exclusive lock
//! proves that, across containers as well, and keeps others out until the new schema is committed. An older version
//! that starts later refuses the newer schema.
//!
//! Processes of this version exclude each other with the folder's lock first; none of them keeps a file of an older
//! schema open.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use rustix::process::{Pid, test_kill_process};

use super::connect::{connect_with_room, immutable};
use super::fault::Fault;
use super::folder_lock::FolderLock;
use super::seal::{self, KeyRing};
use super::{browse, schema};
use crate::store::error::StoreError;
use crate::store::limits::OpenMode;

/// How often taking the lock is retried, and how long apart: a command that only reads is waited for, an agent is not.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(40);

/// Returns whether the schema of the file has to be migrated. A store whose keys are missing is not written to.
pub(super) fn is_outdated(path: &Path, mode: OpenMode, keys: &KeyRing) -> Result<bool, Fault> {
    // With its log, the file can only be newer.
    let at_least = immutable(path).and_then(|connection| schema::version(&connection));
    if at_least.is_ok_and(|version| version >= schema::known_version()) {
        return Ok(false);
    }
    let connection = connect_read_only(path)?;
    let application_id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let is_outdated = application_id == schema::APPLICATION_ID
        && (1..schema::known_version()).contains(&schema::version(&connection)?);
    if is_outdated && mode != OpenMode::WithoutKey {
        seal::verify_before_writing(&connection, keys)?;
    }
    Ok(is_outdated)
}

/// Migrates the schema, unless another process has the file open.
///
/// # Errors
///
/// [`StoreError::OlderInUse`] if one has.
pub(super) fn upgrade(path: &Path) -> Result<(), StoreError> {
    let _alone = FolderLock::exclusive(path)?;
    for attempt in 0..TRIES {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        match migrate_alone(path) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
            result => return result.map_err(|error| without_room(Fault::from(error).at(path))),
        }
    }
    let (found, pids) = users(path).unwrap_or_default();
    Err(StoreError::OlderInUse { at: path.into(), found, known: schema::known_version(), pids })
}

/// Describes what a full disk prevents: nothing is delivered meanwhile.
fn without_room(error: StoreError) -> StoreError {
    match error {
        StoreError::Full { at, reason, .. } => {
            let reason = format!("its schema cannot be migrated: {reason}; nothing is lost");
            StoreError::Unusable { at, reason }
        }
        error => error,
    }
}

/// Migrates under an exclusive lock on the file, from the first read until the connection is closed.
fn migrate_alone(path: &Path) -> rusqlite::Result<()> {
    let mut connection = connect_with_room(path)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    schema::migrate(&mut connection)
}

/// Returns the schema version, and the running agents that announced themselves.
fn users(path: &Path) -> rusqlite::Result<(i64, Vec<u32>)> {
    let connection = connect_read_only(path)?;
    let agents = browse::agents(&connection).unwrap_or_default();
    let pids = agents.into_iter().map(|agent| agent.pid).filter(|pid| *pid != std::process::id() && is_running(*pid));
    Ok((schema::version(&connection)?, pids.collect()))
}

/// Returns the schema version of a file that failed while it was open, if it can be read.
pub(super) fn version_of(path: &Path) -> rusqlite::Result<i64> {
    schema::version(&connect_read_only(path)?)
}

fn is_running(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    // A process of another user cannot be signalled.
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// Opens a connection that writes nothing, not even when it is closed.
fn connect_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect_with_room(path)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}
