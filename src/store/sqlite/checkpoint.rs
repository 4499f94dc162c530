//! Our own checkpoints: the write-ahead log is copied back into the database, and the result is checked.
//!
//! SQLite's automatic checkpoint ignores errors. That loses messages: a checkpoint that a reader cuts short writes
//! pages without a sync and counts their frames as checkpointed. If the kernel then fails to write such a page, the
//! sync of the next complete checkpoint reports it, once. A second checkpoint finds those frames already counted,
//! succeeds, and the log restarts over pages that never reached the disk. So every connection that commits has a hook
//! here instead, and a failed checkpoint makes the store *unproven* ([`mod@super::unproven`]).
//!
//! It runs when and where the automatic one would: in the commit that leaves more frames in the log than the threshold.
//! It is `PASSIVE` and waits for no one, so under a permanent reader the log grows as it did before. The commit itself
//! was synced earlier, so it succeeds even if its checkpoint fails.

use std::path::Path;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode};
use tracing::warn;

use super::fault::Fault;
use super::schema;
use super::unproven::UnprovenWatch;
use crate::store::error::StoreError;

/// Makes this connection checkpoint once a commit leaves `pages` pages in the log.
pub(super) fn install(connection: &mut Connection, path: &Path, pages: u64) -> rusqlite::Result<()> {
    // The pragma installs a hook as well, so it runs first.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    let (path, watch) = (path.to_owned(), UnprovenWatch::new(path));
    connection.wal_hook(Some(move |log: &mut Wal, frames: std::ffi::c_int| {
        if u64::try_from(frames).is_ok_and(|frames| frames >= pages) && watch.unproven().is_none() {
            run(&path, log);
        }
        Ok(())
    }))
}

fn run(path: &Path, log: &mut Wal) {
    let Err(error) = log.checkpoint() else { return };
    // Another connection is checkpointing, or the disk is full, which `ballast.rs` handles. The frames stay in the log.
    let waits = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked, ErrorCode::DiskFull];
    if error.sqlite_error_code().is_some_and(|code| waits.contains(&code)) {
        return;
    }
    match Fault::from(error).at(path) {
        // Already logged.
        StoreError::Unproven { .. } => {}
        error => warn!(target: "db_manager", "cannot checkpoint the message store: {error}"),
    }
}

/// Pages in the write-ahead log from which on the committing connection runs a checkpoint.
const LOG_PAGES_MAX: u64 = 1000;

/// The same for a store with a small size limit, whose log must stay a small part of it.
const LOG_PAGES_MIN: u64 = 100;

/// The share of the size limit that the log may take, as a divisor.
const LOG_SHARE: u64 = 16;

/// Returns how many pages in the log trigger a checkpoint.
pub(super) fn log_pages(size_max: u64) -> u64 {
    (size_max / LOG_SHARE / u64::from(schema::PAGE_BYTES)).clamp(LOG_PAGES_MIN, LOG_PAGES_MAX)
}

/// Returns the length to which a log is truncated that grew beyond it, under a long reader or through a large commit.
pub(super) fn log_bytes_kept(size_max: u64) -> u64 {
    2 * log_pages(size_max) * u64::from(schema::PAGE_BYTES)
}
