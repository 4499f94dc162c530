//! The flag of an unproven store: set after a failed write or sync, checked in every commit, cleared by a proof.
//!
//! [`super::proof`] explains what it means and how a store is proven again.
//!
//! # Invariants
//!
//! - Every error of the engine passes through [`judge`] before its caller sees it, so that no write follows a failed
//!   sync.
//! - This process remembers a failure before it creates the flag file: another thread must not write in between, and
//!   the flag may be impossible to create.
//! - The flag of another process is never overwritten and never followed through a link.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ffi};
use tracing::error;

use super::access::access_words;
use crate::store::clock::now_ms;
use crate::store::error::StoreError;
use crate::store::view::Unproven;

/// The suffix of the flag file's name.
const SUFFIX: &str = "-unproven";

/// How many bytes of a reason are read from a flag.
const REASON_BYTES_MAX: usize = 500;

/// Stores that this process found unproven, by the path of their flag.
static KNOWN: Mutex<BTreeMap<PathBuf, FlagSeen>> = Mutex::new(BTreeMap::new());

/// Failed writes and syncs in this process.
static ERRORS: AtomicU64 = AtomicU64::new(0);

pub(super) struct FlagSeen {
    what: Unproven,
    /// Whether the flag file exists. If so, its removal means that another process has proven the store.
    has_flag: bool,
}

pub(super) fn known() -> MutexGuard<'static, BTreeMap<PathBuf, FlagSeen>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns how many writes and syncs of stores failed in this process.
pub(crate) fn errors() -> u64 {
    ERRORS.load(Ordering::Relaxed)
}

/// Returns the flag file of the store at this path. It is beside the file itself, even when the path is a link.
pub(super) fn flag_of(path: &Path) -> PathBuf {
    let mut flag = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).into_os_string();
    flag.push(SUFFIX);
    flag.into()
}

/// The effect of a failed operation on bytes that were written earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    /// Lost, unless a quota refused the write.
    Perhaps(&'static str),
    Yes(&'static str),
}

/// Classifies an extended result code of SQLite.
///
/// `SQLITE_FULL` is a write that did not happen, reads change nothing, and nothing in a `-shm` file has to survive a
/// crash.
fn lost_by(extended_code: i32) -> Lost {
    match extended_code {
        ffi::SQLITE_IOERR_WRITE => Lost::Perhaps("a write failed"),
        ffi::SQLITE_IOERR_FSYNC => Lost::Yes("a sync failed"),
        ffi::SQLITE_IOERR_DIR_FSYNC => Lost::Yes("a sync of its folder failed"),
        ffi::SQLITE_IOERR_TRUNCATE => Lost::Yes("a truncation failed"),
        _ => Lost::Nothing,
    }
}

/// Makes the store unproven if this error means that bytes may be lost, and if so returns the error for the caller.
pub(super) fn judge(error: &rusqlite::Error, path: &Path) -> Option<StoreError> {
    let rusqlite::Error::SqliteFailure(code, _) = error else { return None };
    let (what, is_certain) = match lost_by(code.extended_code) {
        Lost::Nothing => return None,
        Lost::Perhaps(what) => (what, false),
        Lost::Yes(what) => (what, true),
    };
    // A refused write never reached the disk, so nothing is lost; but SQLite reports it like a failing disk.
    let why = access_words(path).map_or(String::new(), |words| format!(": {words}"));
    let reason = format!("{what} (SQLite error {}){why}", code.extended_code);
    mark(path, &reason, is_certain).then(|| StoreError::Unproven { at: path.into(), reason })
}

/// Marks the store as unproven, and returns whether it is. SQLite cannot tell an exhausted quota from a failing disk;
/// writing the flag file can.
pub(super) fn mark(path: &Path, reason: &str, is_certain: bool) -> bool {
    ERRORS.fetch_add(1, Ordering::Relaxed);
    let flag = flag_of(path);
    if found(&flag).is_some() {
        return true;
    }
    // Remembered first: another thread must not write while the flag is being created.
    let what = Unproven { since_ms: now_ms(), reason: reason.to_owned() };
    if known().insert(flag.clone(), FlagSeen { what, has_flag: false }).is_some() {
        return true;
    }
    let made = make_flag(&flag, reason);
    let is_quota = |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::DQUOT.raw_os_error());
    if !is_certain && made.as_ref().err().is_some_and(is_quota) {
        known().remove(&flag);
        // It may not even have been created.
        let _ = fs::remove_file(&flag);
        return false;
    }
    if let Some(known) = known().get_mut(&flag) {
        known.has_flag = flag.exists();
    }
    error!(
        target: "db_manager",
        "the disk failed under the message store {}: {reason}; the store is not used until its log is rewritten and synced",
        path.display()
    );
    true
}

fn make_flag(flag: &Path, reason: &str) -> io::Result<()> {
    // Never follows a link, and never overwrites the flag of another process.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(flag) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(mut file) => file.write_all(reason.as_bytes()),
    }
}

/// Returns since when and why the store at this path is unproven, or `None` if it is proven.
pub(crate) fn unproven(path: &Path) -> Option<Unproven> {
    found(&flag_of(path))
}

/// Checks whether an open store is unproven. One check is two look-ups, cheap enough for every commit.
#[derive(Clone, Debug)]
pub(super) struct UnprovenWatch {
    path: PathBuf,
    flag: PathBuf,
}

impl UnprovenWatch {
    /// Returns the watch of the store at this path, which must exist.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), flag: flag_of(path) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn unproven(&self) -> Option<Unproven> {
        found(&self.flag)
    }

    /// Fails with [`StoreError::Unproven`] if the store is unproven.
    pub(super) fn vet(&self) -> Result<(), StoreError> {
        match self.unproven() {
            Some(Unproven { reason, .. }) => Err(StoreError::Unproven { at: self.path.as_path().into(), reason }),
            None => Ok(()),
        }
    }

    /// Lets a connection checkpoint when it is closed, unless the store is unproven.
    pub(super) fn before_close(&self, connection: &Connection) {
        // If this fails, the setting stays as at opening: closing writes nothing.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, self.unproven().is_some());
    }
}

fn found(flag: &Path) -> Option<Unproven> {
    let there = fs::symlink_metadata(flag).ok();
    let mut known = known();
    match (known.get(flag), there) {
        // Another process has proven the store.
        (Some(FlagSeen { has_flag: true, .. }), None) => {
            known.remove(flag);
            None
        }
        (Some(FlagSeen { what, .. }), _) => Some(what.clone()),
        (None, None) => None,
        (None, Some(metadata)) => {
            let since = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let since_ms = since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or_default();
            Some(Unproven { since_ms, reason: reason_in(flag) })
        }
    }
}

/// Reads the reason from the flag of another process. Anyone may have written it, so control characters are removed.
fn reason_in(flag: &Path) -> String {
    let mut bytes = [0; REASON_BYTES_MAX];
    let options = OpenOptions::new().read(true).custom_flags(libc_nonblock()).open(flag);
    let read = options.and_then(|file| file.read_at(&mut bytes, 0)).unwrap_or(0);
    let text: String = String::from_utf8_lossy(&bytes[..read]).chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { "a write or a sync failed".into() } else { text }
}

/// Opening a flag that is a pipe must not block.
pub(super) fn libc_nonblock() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default()
}

/// Clears the flag: the store at this path is proven.
pub(super) fn clear(path: &Path) -> io::Result<()> {
    let flag = flag_of(path);
    match fs::remove_file(&flag) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    known().remove(&flag);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failed_writes_and_syncs_make_a_store_unproven() {
        for (code, lost) in [
            (ffi::SQLITE_IOERR_WRITE, Some(false)),
            (ffi::SQLITE_IOERR_FSYNC, Some(true)),
            (ffi::SQLITE_IOERR_DIR_FSYNC, Some(true)),
            (ffi::SQLITE_IOERR_TRUNCATE, Some(true)),
            (ffi::SQLITE_IOERR_READ, None),
            (ffi::SQLITE_IOERR_SHMSIZE, None),
            (ffi::SQLITE_FULL, None),
            (ffi::SQLITE_BUSY, None),
            (ffi::SQLITE_CORRUPT, None),
        ] {
            let found = match lost_by(code) {
                Lost::Nothing => None,
                Lost::Perhaps(_) => Some(false),
                Lost::Yes(_) => Some(true),
            };
            assert_eq!(found, lost, "{code}");
        }
    }
}
