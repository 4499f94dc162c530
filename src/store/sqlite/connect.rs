//! Opening connections to the file of a store, with the settings that its promises rest on.
//!
//! `synchronous=FULL` makes a commit durable. A connection does not checkpoint when it is closed unless the store is
//! proven ([`mod@super::unproven`]).

use std::ffi::CStr;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::fault::BUSY_TIMEOUT;
use super::fault::Fault;
use super::{ballast, queries, schema};
use crate::store::error::StoreError;

/// The VFS for exclusive use by one process: it locks others out, and keeps in memory what processes would share.
pub(super) const ALONE: &CStr = c"unix-excl";

/// How long exclusive opening waits for others to close the store.
const ALONE_TIMEOUT: Duration = Duration::from_millis(200);

/// Page cache of a connection that writes, in KiB. What a large transaction changes beyond it is written to the log
/// before the commit, which then takes less time at once.
const CACHE_KIB: i32 = 1024;

/// Page cache of a connection that only reads, in KiB. It is empty again after each commit, and what it reads is in the
/// system's cache.
const READER_CACHE_KIB: i32 = 512;

/// Prepared statements cached by one connection; more than there are, with all variants of filters.
const STATEMENTS_KEPT: usize = 96;

/// Opens the file without its log, without a lock and without writing a byte.
pub(super) fn immutable(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(immutable_uri(path), flags)
}

pub(super) fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(queries::TABLES)?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

pub(crate) fn immutable_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?immutable=1"
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    connect_by(path, None)
}

/// Opens a connection to a store that is not in use yet. On a full disk the connection is exclusive, unless others have
/// the store open: see [`super::open`].
pub(super) fn connect_with_room(path: &Path) -> rusqlite::Result<Connection> {
    if ballast::is_full(path) {
        let alone = connect_by(path, Some(ALONE))?;
        // Opens the file.
        if !schema::version(&alone).is_err_and(|error| Fault::from(error).is_busy()) {
            return Ok(alone);
        }
    }
    connect(path)
}

pub(super) fn connect_by(path: &Path, vfs: Option<&CStr>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
        None => Connection::open_with_flags(path, flags)?,
    };
    connection.busy_timeout(if vfs.is_some() { ALONE_TIMEOUT } else { BUSY_TIMEOUT })?;
    // An orderly close re-enables the checkpoint if the store is proven: an unproven one keeps its log.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Otherwise SQLite plans a statement again for every new value of a parameter that it compared with the condition of
    // a partial index. All such conditions are literals here.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "secure_delete", false)?;
    Ok(connection)
}

/// Opens a connection that only reads; `is_alone`: of a store that this process has exclusively.
pub(super) fn open_reader(path: &Path, is_alone: bool) -> Result<Connection, StoreError> {
    open_reader_by(path, is_alone.then_some(ALONE))
}

pub(super) fn open_reader_by(path: &Path, vfs: Option<&CStr>) -> Result<Connection, StoreError> {
    let reader = connect_by(path, vfs).and_then(|connection| {
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
        Ok(connection)
    });
    reader.map_err(|error| Fault::from(error).at(path))
}
