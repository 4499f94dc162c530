//! Reserved disk space, so that a store can recover from a full disk by delivering messages.
//!
//! A delivery has to be recorded before it can free space, and the record goes through the write-ahead log into the
//! database. On a disk without a free byte both succeed only if nothing new is allocated. So:
//!
//! - **The log keeps its blocks.** On a nearly full disk it is extended with zeros, which are not valid frames, and
//!   never truncated below that. Every commit is checkpointed at once, so that the next one starts at the beginning of
//!   the log again and overwrites existing blocks.
//! - **The database gets its blocks before they are needed**, for the same reason: nothing is owed to it.
//! - **A ballast file is beside the store** (`<db>-ballast`, all zeros) while there is no log: it is renamed to become
//!   the log before SQLite opens the store on a full disk. Renaming allocates nothing and is atomic, however fast
//!   another program writes. If a write fails anyway, the file is removed to make room for it.
//! - **A store that is closed on a full disk keeps its log**, unless the ballast is complete.
//!
//! File systems that never overwrite in place (ZFS) need new blocks for every write; there the ballast file, which is
//! removed at the first failed write, is all that helps. On btrfs the store's files are created so that they are
//! overwritten in place ([`super::in_place`]).

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tracing::{debug, info, warn};

use super::fault::Fault;
use super::{checkpoint, in_place};
use crate::store::room::Disk;

/// The largest ballast: room for the largest record of a batch.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The smallest ballast.
const BYTES_MIN: u64 = 256 * 1024;
/// The share of the disk that the ballast may take, as a divisor.
const DISK_SHARE: u64 = 64;
/// The share of `max_size` that the ballast may take, as a divisor.
const SIZE_SHARE: u64 = 16;
/// A disk with less free space is nearly full: another program could fill it before the next check.
const NEARLY_FULL_BYTES: u64 = 1024 * 1024 * 1024;
/// Free space that creating the ballast must leave.
const MARGIN_BYTES: u64 = 512 * 1024;
/// A disk with less free space is full: nothing is stored there.
const FULL_BYTES: u64 = 64 * 1024;
/// Released for the memory that processes share (`-shm`), which SQLite recreates.
const SHARED_BYTES: u64 = 64 * 1024;
/// How long a full disk must have had space before it counts as recovered: on btrfs the free space jumps.
const ROOM_LASTS: Duration = Duration::from_secs(5);
/// How long a disk counts as full after a write that found no space.
const SHORTAGE_LASTS: Duration = Duration::from_secs(30);

/// Returns how many bytes are reserved for delivering from a full disk.
fn ballast_bytes(disk_bytes: u64, size_max: u64) -> u64 {
    let bytes = (disk_bytes / DISK_SHARE).min(size_max / SIZE_SHARE).clamp(BYTES_MIN, BYTES_MAX);
    bytes.next_multiple_of(4096)
}

/// The reserved space of one store.
pub(super) struct Ballast {
    path: PathBuf,
    log: PathBuf,
    file: PathBuf,
    size_max: u64,
    /// Whether the log was told to keep its length.
    log_is_kept: AtomicBool,
    shortage: Mutex<Shortage>,
}

/// Whether the disk is full, as last logged.
#[derive(Default)]
struct Shortage {
    is_full: bool,
    /// When a write found no space.
    found_at: Option<Instant>,
    /// When the disk was last seen full.
    without_room_at: Option<Instant>,
}

/// Decides whether a disk counts as full. If its free bytes mean nothing (a quota), it counts as full for a while after
/// each write that found no space.
fn counts_as_full(was_full: bool, free_bytes: u64, found_no_room: bool, found_ago: Option<Duration>) -> bool {
    let is_recent = found_ago.is_some_and(|ago| ago < SHORTAGE_LASTS);
    found_no_room || is_recent || free_bytes < if was_full { MARGIN_BYTES } else { FULL_BYTES }
}

impl Ballast {
    pub(super) fn of(path: &Path, log: &Path, size_max: u64) -> Self {
        let (log_is_kept, shortage) = (AtomicBool::new(false), Mutex::default());
        Self { path: path.to_owned(), log: log.to_owned(), file: file_of(log), size_max, log_is_kept, shortage }
    }

    /// Prepares for a full disk, after a commit or when one failed.
    ///
    /// `connection` is the writer, outside a transaction. Errors cost space, never data, so they are only logged.
    pub(super) fn tend(&self, connection: &Connection, found_no_room: bool) {
        let Ok(disk) = Disk::of(&self.path) else { return };
        let is_short = self.note_room(disk, found_no_room);
        if disk.free_bytes >= NEARLY_FULL_BYTES && !is_short {
            self.keep_log(connection, None);
            return;
        }
        let bytes = ballast_bytes(disk.total_bytes, self.size_max);
        self.keep_log(connection, Some(bytes));
        if found_no_room {
            self.release(connection);
        }
        if length(&self.log) < bytes
            && let Err(error) = extend_log(connection, &self.log, bytes)
        {
            debug!(target: "db_manager", "cannot reserve space in the write-ahead log yet: {error}");
        }
        write_back(connection, &self.path);
    }

    /// Returns whether the disk is full, and logs it once when that changes.
    fn note_room(&self, disk: Disk, found_no_room: bool) -> bool {
        let mut shortage = self.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        let found_ago = shortage.found_at.map(|at| at.elapsed());
        if found_no_room {
            shortage.found_at = Some(Instant::now());
        }
        let measured = counts_as_full(shortage.is_full, disk.free_bytes, found_no_room, found_ago);
        if measured {
            shortage.without_room_at = Some(Instant::now());
        }
        let was_short = shortage.without_room_at.is_some_and(|at| at.elapsed() < ROOM_LASTS);
        let is_full = measured || shortage.is_full && was_short;
        if is_full != shortage.is_full {
            let path = self.path.display();
            if is_full {
                warn!(
                    target: "db_manager",
                    "the disk of {path} is full: new messages are not stored until space is freed there; what is stored \
                     is delivered"
                );
            } else {
                info!(target: "db_manager", "the disk of {path} has room again");
            }
        }
        shortage.is_full = is_full;
        is_full
    }

    /// Creates the ballast file, as far as there is space for it, and returns whether it is complete.
    pub(super) fn create(&self) -> bool {
        let Ok(disk) = Disk::of(&self.path) else { return false };
        let bytes = ballast_bytes(disk.total_bytes, self.size_max);
        let found = length(&self.file);
        if found >= bytes {
            return true;
        }
        if disk.free_bytes < (bytes - found).saturating_mul(2) + MARGIN_BYTES {
            return false;
        }
        match append_zeros(&self.file, bytes, true) {
            Ok(()) => true,
            Err(error) => {
                debug!(target: "db_manager", "cannot create {}: {error}", self.file.display());
                false
            }
        }
    }

    /// Returns whether the log may be truncated: on a nearly full disk its blocks would be lost.
    pub(super) fn may_cut_log(&self) -> bool {
        let Ok(disk) = Disk::of(&self.path) else { return true };
        disk.free_bytes >= 2 * ballast_bytes(disk.total_bytes, self.size_max) + MARGIN_BYTES
            && !self.shortage.lock().unwrap_or_else(PoisonError::into_inner).is_full
    }

    /// Makes closing these connections keep the log if a new one would find no space.
    pub(super) fn before_closing<'store>(&self, connections: impl IntoIterator<Item = &'store Connection>) {
        let is_whole = || {
            Disk::of(&self.path).is_ok_and(|disk| length(&self.file) >= ballast_bytes(disk.total_bytes, self.size_max))
        };
        if self.may_cut_log() || is_whole() {
            return;
        }
        for connection in connections {
            if let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
                debug!(target: "db_manager", "cannot keep the write-ahead log on a full disk: {error}");
            }
        }
    }

    /// Sets the length to which the log is truncated when it restarts; `None` restores the default.
    fn keep_log(&self, connection: &Connection, bytes: Option<u64>) {
        if self.log_is_kept.swap(bytes.is_some(), Ordering::Relaxed) == bytes.is_some() {
            return;
        }
        let limit = bytes.unwrap_or_else(|| checkpoint::log_bytes_kept(self.size_max));
        // This pragma returns the new limit as a row.
        let set = connection.pragma_update_and_check(None, "journal_size_limit", limit as i64, |_| Ok(()));
        if let Err(error) = set {
            debug!(target: "db_manager", "cannot set the length of the write-ahead log: {error}");
        }
    }

    /// Releases the ballast file: its blocks go to the log at once, and to anything else that SQLite needs.
    fn release(&self, connection: &Connection) {
        let bytes = length(&self.file);
        if bytes == 0 || fs::remove_file(&self.file).is_err() {
            return;
        }
        info!(target: "db_manager", "removed {} to deliver from a full disk", self.file.display());
        write_back(connection, &self.path);
        let wanted = length(&self.log) + bytes / 2;
        if let Err(error) = extend_log(connection, &self.log, wanted) {
            debug!(target: "db_manager", "cannot move the ballast into the write-ahead log: {error}");
        }
    }
}

/// Renames the ballast to become the log if there is no log and the disk has no space for one.
///
/// Called before SQLite opens the store. Never replaces an existing log.
pub(super) fn rename_to_log_if_needed(path: &Path) {
    let Ok(real) = fs::canonicalize(path) else { return };
    let mut log = real.clone().into_os_string();
    log.push("-wal");
    let log = PathBuf::from(log);
    let file = file_of(&log);
    let is_needed = fs::symlink_metadata(&log).is_err()
        && length(&real) > 0
        && Disk::of(&real).is_ok_and(|disk| disk.free_bytes < length(&file).saturating_mul(2) + MARGIN_BYTES);
    if !is_needed || !is_all_zeros(&file) {
        return;
    }
    // The shared memory for reading the log needs a little space as well; the rest becomes the log.
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let shared = fs::OpenOptions::new().write(true).custom_flags(no_link).open(&file);
    if let Ok(shared) = shared
        && shared.set_len(length(&file) - SHARED_BYTES.min(length(&file) / 2)).is_err()
    {
        debug!(target: "db_manager", "cannot make space for shared memory beside the write-ahead log");
    }
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, &file, CWD, &log, RenameFlags::NOREPLACE) {
        Ok(()) => {
            debug!(target: "db_manager", "the ballast of {} became its write-ahead log: the disk is full", path.display())
        }
        Err(errno) => debug!(target: "db_manager", "cannot use the ballast as the write-ahead log: {errno}"),
    }
}

/// Returns whether the disk of the store at this path is full: it may have no space for the memory that processes
/// share.
pub(super) fn is_full(path: &Path) -> bool {
    Disk::of(path).is_ok_and(|disk| disk.free_bytes < MARGIN_BYTES)
}

/// Returns whether the log of the store at this path has to keep its blocks: the disk is nearly full.
pub(super) fn keeps_log(path: &Path) -> bool {
    Disk::of(path).is_ok_and(|disk| disk.free_bytes < 2 * BYTES_MAX + MARGIN_BYTES)
}

/// Returns the path of the ballast file of the store with this log.
fn file_of(log: &Path) -> PathBuf {
    let name = log.as_os_str().as_encoded_bytes();
    let mut file =
        std::ffi::OsString::from(String::from_utf8_lossy(name.strip_suffix(b"-wal").unwrap_or(name)).into_owned());
    file.push("-ballast");
    file.into()
}

fn length(path: &Path) -> u64 {
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map_or(0, |found| found.size())
}

/// Returns whether there is a file without anything that SQLite could mistake for a log.
fn is_all_zeros(path: &Path) -> bool {
    length(path) > 0
        && fs::read(path).is_ok_and(|bytes| bytes.len() as u64 <= BYTES_MAX && bytes.iter().all(|b| *b == 0))
}

/// Extends the log behind its last frame. No other connection appends to it or truncates it meanwhile: both need the
/// write lock.
///
/// SQLite takes no lock on the log file itself, so closing a descriptor of it drops none.
fn extend_log(connection: &Connection, log: &Path, bytes: u64) -> io::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE").map_err(io::Error::other)?;
    let extended = append_zeros(log, bytes, false);
    connection.execute_batch("ROLLBACK").map_err(io::Error::other)?;
    extended
}

/// Appends zeros until the file has this length, as far as there is space.
fn append_zeros(path: &Path, bytes: u64, make: bool) -> io::Result<()> {
    const CHUNK: usize = 64 * 1024;
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut file = fs::OpenOptions::new().append(true).create(make).mode(0o600).custom_flags(flags).open(path)?;
    let found = file.metadata()?.len();
    if found == 0 {
        in_place::overwrite_in_place(&file);
    }
    let mut missing = bytes.saturating_sub(found);
    while missing > 0 {
        let chunk = CHUNK.min(usize::try_from(missing).unwrap_or(CHUNK));
        let written = file.write(&[0; CHUNK][..chunk])?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        missing -= written as u64;
    }
    file.sync_all()
}

/// Checkpoints without waiting for readers, so that the log restarts.
fn write_back(connection: &Connection, path: &Path) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        // Mapped like every fault of the engine: on a failing disk the store becomes unproven.
        let error = Fault::from(error).at(path);
        debug!(target: "db_manager", "cannot checkpoint the write-ahead log yet: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_ballast_is_a_small_share_of_disk_and_store() {
        for (disk, size_max, expected) in [
            (1 << 40, 1 << 30, 4 * MIB),
            (64 * MIB, 1 << 30, MIB),
            (4 * MIB, 1 << 30, 256 * 1024),
            (1 << 40, 16 * MIB, MIB),
            (1 << 40, 0, 256 * 1024),
            (u64::MAX, u64::MAX, 4 * MIB),
        ] {
            assert_eq!(ballast_bytes(disk, size_max), expected, "{disk} {size_max}");
        }
    }

    #[test]
    fn a_disk_stays_full_until_it_has_a_margin() {
        let ago = |seconds| Some(Duration::from_secs(seconds));
        for (was_full, free, found_no_room, found_ago, expected) in [
            (false, 0, false, None, true),
            (false, 100_000, false, None, false),
            (true, 100_000, false, None, true),
            (true, MIB, false, None, false),
            (false, 1 << 40, true, None, true),
            (true, 1 << 40, false, ago(5), true),
            (true, 1 << 40, false, ago(31), false),
        ] {
            let found = counts_as_full(was_full, free, found_no_room, found_ago);
            assert_eq!(found, expected, "{was_full} {free} {found_no_room} {found_ago:?}");
        }
    }

    #[test]
    fn only_a_file_of_zeros_becomes_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.db-ballast");
        assert!(!is_all_zeros(&file));
        append_zeros(&file, 100_000, true).unwrap();
        assert_eq!(length(&file), 100_000);
        assert!(is_all_zeros(&file));
        fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"x").unwrap();
        assert!(!is_all_zeros(&file));
    }
}
