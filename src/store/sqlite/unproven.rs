//! The flag of an unproven store.

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

/// What is added to the name of a store that is unproven.
const SUFFIX: &str = "-unproven";

/// Bytes of a reason that are read from a flag.
const REASON_BYTES_MAX: usize = 500;

/// Stores that this process found unproven.
static KNOWN: Mutex<BTreeMap<PathBuf, FlagSeen>> = Mutex::new(BTreeMap::new());

/// Failed writes and syncs of this process.
static ERRORS: AtomicU64 = AtomicU64::new(0);

pub(super) struct FlagSeen {
    what: Unproven,
    /// Whether there is a flag file: another process that proves the store removes it.
    has_flag: bool,
}

pub(super) fn known() -> MutexGuard<'static, BTreeMap<PathBuf, FlagSeen>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns how many writes and syncs of stores failed in this process.
pub(crate) fn errors() -> u64 {
    ERRORS.load(Ordering::Relaxed)
}

/// Returns the flag of the store at this path. It is beside the file itself, also when the path is a link to it.
pub(super) fn flag_of(path: &Path) -> PathBuf {
    let mut flag = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).into_os_string();
    flag.push(SUFFIX);
    flag.into()
}

/// What a failed operation means for bytes that were written earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    /// Unless it is a quota that refused the write.
    Perhaps(&'static str),
    Yes(&'static str),
}

/// Sorts an extended result code of SQLite.
///
/// `SQLITE_FULL` is a write that did not happen, reads change nothing, and nothing in a `-shm` file has to survive.
fn lost_by(extended_code: i32) -> Lost {
    match extended_code {
        ffi::SQLITE_IOERR_WRITE => Lost::Perhaps("a write failed"),
        ffi::SQLITE_IOERR_FSYNC => Lost::Yes("a sync failed"),
        ffi::SQLITE_IOERR_DIR_FSYNC => Lost::Yes("a sync of its folder failed"),
        ffi::SQLITE_IOERR_TRUNCATE => Lost::Yes("a truncation failed"),
        _ => Lost::Nothing,
    }
}

/// Makes the store unproven if this error says that bytes may be lost, and returns the error for the caller then.
pub(super) fn judge(error: &rusqlite::Error, path: &Path) -> Option<StoreError> {
    let rusqlite::Error::SqliteFailure(code, _) = error else { return None };
    let (what, is_certain) = match lost_by(code.extended_code) {
        Lost::Nothing => return None,
        Lost::Perhaps(what) => (what, false),
        Lost::Yes(what) => (what, true),
    };
    // What the system refuses never was on the disk, and nothing is lost; but SQLite does not tell it from a broken disk.
    let why = access_words(path).map_or(String::new(), |words| format!(": {words}"));
    let reason = format!("{what} (SQLite error {}){why}", code.extended_code);
    mark(path, &reason, is_certain).then(|| StoreError::Unproven { path: path.to_owned(), reason })
}

/// Makes the store unproven, and returns whether it is. SQLite does not tell a quota from a broken disk; the flag's own
/// bytes do.
pub(super) fn mark(path: &Path, reason: &str, is_certain: bool) -> bool {
    ERRORS.fetch_add(1, Ordering::Relaxed);
    let flag = flag_of(path);
    if found(&flag).is_some() {
        return true;
    }
    // Remembered first: another thread must not write while the flag is made.
    let what = Unproven { since_ms: now_ms(), reason: reason.to_owned() };
    if known().insert(flag.clone(), FlagSeen { what, has_flag: false }).is_some() {
        return true;
    }
    let made = make_flag(&flag, reason);
    let is_quota = |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::DQUOT.raw_os_error());
    if !is_certain && made.as_ref().err().is_some_and(is_quota) {
        known().remove(&flag);
        // Nothing to say where it was not even made.
        let _ = fs::remove_file(&flag);
        return false;
    }
    if let Some(known) = known().get_mut(&flag) {
        known.has_flag = flag.exists();
    }
    error!(
        target: "db_manager",
        "the disk failed under the message store {}: {reason}; it is not used until its log was written anew and synced",
        path.display()
    );
    true
}

fn make_flag(flag: &Path, reason: &str) -> io::Result<()> {
    // Never through a link, and never over the flag of another process.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(flag) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(mut file) => file.write_all(reason.as_bytes()),
    }
}

/// Returns since when and why the store at this path is unproven.
pub(crate) fn unproven(path: &Path) -> Option<Unproven> {
    found(&flag_of(path))
}

/// Where to look whether an open store is unproven. One look is two look-ups, cheap enough for every commit.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    path: PathBuf,
    flag: PathBuf,
}

impl Watch {
    /// Watches the store at this path, which is there.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), flag: flag_of(path) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn unproven(&self) -> Option<Unproven> {
        found(&self.flag)
    }

    /// Fails if the store is unproven.
    pub(super) fn vet(&self) -> Result<(), StoreError> {
        match self.unproven() {
            Some(Unproven { reason, .. }) => Err(StoreError::Unproven { path: self.path.clone(), reason }),
            None => Ok(()),
        }
    }

    /// Lets a connection that is about to be closed write the log back, unless the store is unproven.
    pub(super) fn before_close(&self, connection: &Connection) {
        // What can't be set stays as it was when the connection was opened: nothing is written.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, self.unproven().is_some());
    }
}

fn found(flag: &Path) -> Option<Unproven> {
    let there = fs::symlink_metadata(flag).ok();
    let mut known = known();
    match (known.get(flag), there) {
        // Another process has proven it.
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

/// Reads the reason from a flag of another process. It may be a text of anybody, so it can't control a terminal.
fn reason_in(flag: &Path) -> String {
    let mut bytes = [0; REASON_BYTES_MAX];
    let options = OpenOptions::new().read(true).custom_flags(libc_nonblock()).open(flag);
    let read = options.and_then(|file| file.read_at(&mut bytes, 0)).unwrap_or(0);
    let text: String = String::from_utf8_lossy(&bytes[..read]).chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { "a write or a sync failed".into() } else { text }
}

/// A flag that is a pipe must not block.
fn libc_nonblock() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default()
}

/// Notes that the store at this path is proven.
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
