//! Checkpoints of our own: the log is written back into the database, and the result is looked at.
//!
//! SQLite's automatic checkpoint ignores its errors. That loses messages: a checkpoint that a reader cuts short writes
//! pages without a sync and counts their frames as written back. When the kernel then fails to write such a page, the sync
//! of the next complete checkpoint reports it, once. A second checkpoint finds its frames counted already, passes, and
//! the log starts anew over pages that never reached the disk. So every connection that commits has a hook here instead,
//! and a checkpoint that fails makes the store *unproven* ([`super::unproven`]).
//!
//! It runs when and where the automatic one would: in the commit that leaves more frames in the log than the threshold.
//! It waits for nobody (`PASSIVE`), so a log under a permanent reader grows as far as it did before.
//! The commit itself was synced before: it succeeds whatever becomes of its checkpoint.

use std::path::Path;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode};
use tracing::warn;

use super::fault::Fault;
use super::schema;
use super::unproven::Watch;
use crate::store::error::StoreError;

/// Makes this connection write the log back once a commit leaves `pages` pages in the log.
pub(super) fn install(connection: &mut Connection, path: &Path, pages: u64) -> rusqlite::Result<()> {
    // The pragma sets a hook, too, so it goes first.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    let (path, watch) = (path.to_owned(), Watch::new(path));
    connection.wal_hook(Some(move |log: &mut Wal, frames: std::ffi::c_int| {
        if u64::try_from(frames).is_ok_and(|frames| frames >= pages) && watch.unproven().is_none() {
            run(&path, log);
        }
        Ok(())
    }))
}

fn run(path: &Path, log: &mut Wal) {
    let Err(error) = log.checkpoint() else { return };
    // Another connection is at it; or the disk is full, which `ballast.rs` deals with. The frames stay in the log.
    let waits = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked, ErrorCode::DiskFull];
    if error.sqlite_error_code().is_some_and(|code| waits.contains(&code)) {
        return;
    }
    match Fault::from(error).at(path) {
        // Said already.
        StoreError::Unproven { .. } => {}
        error => warn!(target: "db_manager", "cannot write the log back into the message store: {error}"),
    }
}

/// Pages in the write-ahead log that make the committing connection write them back into the file.
const LOG_PAGES_MAX: u64 = 2000;

/// The same for a store whose size limit is small: the log is to stay a small part of it.
const LOG_PAGES_MIN: u64 = 100;

/// The part of the size limit that the log may take, as a divisor.
const LOG_SHARE: u64 = 16;

/// Returns the pages in the log that make the committing connection write them back.
pub(super) fn log_pages(size_max: u64) -> u64 {
    (size_max / LOG_SHARE / u64::from(schema::PAGE_BYTES)).clamp(LOG_PAGES_MIN, LOG_PAGES_MAX)
}

/// Returns the length to which a log is cut back that grew further (under a long reader, by a large commit).
pub(super) fn log_bytes_kept(size_max: u64) -> u64 {
    2 * log_pages(size_max) * u64::from(schema::PAGE_BYTES)
}
