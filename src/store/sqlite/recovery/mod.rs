//! Recovery: a damaged file is set aside, and every intact message is copied to a new store.
//!
//! ```text
//!  opik_messages.db{,-wal}                          the damaged store
//!        │ renamed, the log first
//!        ▼
//!  opik_messages.db.recovering-TIME{,-wal}          pending: the next process that opens the store resumes here
//!        │ read page by page (`damaged.rs`); intact messages are written to
//!        │ opik_messages.db.rebuilding              worthless until it is complete and synced, and then renamed to
//!        ▼
//!  opik_messages.db                                 the new store, with a row about its recovery
//!        │ renamed
//!        ▼
//!  opik_messages.db.damaged-TIME{,-wal}             until a person removes it
//! ```
//!
//! The names are the state: a crash between any two steps leaves one of these pictures, and the next recovery resumes
//! from it. The damaged file itself is only read and renamed. Nothing in it is given up before everything readable is
//! on disk in the new store.
//!
//! A message is copied if it is exactly what was stored: its checksum is valid or, if it was stored by a version
//! without checksums, its lengths match. It keeps its id and its place in the order; a message in flight is *failed*
//! again. Lanes, keys and header sets are in the file twice, in their table and in its index, and the copy that makes
//! the checksum valid is the right one. A delivered message comes back only if its deletion is no longer readable;
//! delivering it again is idempotent.
//!
//! # Sealed stores
//!
//! A sealed store is recovered only by a process that has its keys; any other gets the error that opening the store
//! would return, and only gives the file its pending name. So sealed values are opened and verified like everything
//! else, and sealed again for the same message in the new store, with the key that was in use. A single sealed value
//! that does not open is damage, and costs its message. The row of `sealing` names the keys of the store, and is in the
//! file twice as well; if both copies are lost and the configured keys open nothing, they count as wrong.
//!
//! # Concurrent processes
//!
//! Opening a store holds a shared lock on its folder, recovering it an exclusive one, so that no process opens one of
//! the pictures above but the last. A process that has the damaged file open notices at its next commit that the path
//! leads to another file, acknowledges nothing, and opens that one. Its commits before the rename are in the file
//! or its log, and both are read after the rename, under the write lock of the file if SQLite still grants one.
//!
//! # Invariants
//!
//! - The new store gets its final name only when it is complete and synced.
//! - The log is renamed before the file: a database is never left without its log.
//! - At most one recovery runs per store, across processes.

mod candidates;
mod rebuild;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tracing::{error, warn};

use self::rebuild::DamagedSource;
use super::damaged::Damaged;
use super::fault::Fault;
use super::files::make_private;
use super::files::{beside, log_of, move_if_there, remove_if_there, sync_folder};
use super::folder_lock::FolderLock;
use super::seal::KeyRing;
use super::{schema, upgrade};
use crate::store::error::StoreError;
use crate::store::os::{FileId, folder_of, os_words};

/// Returns whether there is a log that may hold messages while there is no database, or an empty one: SQLite would
/// delete it.
pub(super) fn has_log_alone(path: &Path) -> bool {
    const HEADER_AND_FRAME: u64 = 32 + 24 + 512;
    fs::metadata(log_of(path)).is_ok_and(|metadata| metadata.len() >= HEADER_AND_FRAME)
        && File::open(log_of(path))
            .and_then(|log| Damaged::read(None, Some(log), &HashMap::new()))
            .is_ok_and(|found| found.is_ours())
}

/// Returns when an unfinished recovery began.
pub(super) fn pending(path: &Path) -> Option<String> {
    let mut prefix = path.file_name()?.to_owned();
    prefix.push(".recovering-");
    let entries = fs::read_dir(folder_of(path)).ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let name = entry.file_name();
        let time = name.as_bytes().strip_prefix(prefix.as_bytes())?;
        let time = time.strip_suffix(b"-wal").or(time.strip_suffix(b"-shm")).unwrap_or(time);
        String::from_utf8(time.to_vec()).ok()
    })
}

/// Returns whether this file was set aside as damaged, beside the store at this path.
pub(crate) fn is_set_aside(file: FileId, path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let Ok(entries) = fs::read_dir(folder_of(path)) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let found = entry.file_name();
        let kind = found.to_str().and_then(|found| found.strip_prefix(name));
        kind.is_some_and(|kind| kind.starts_with(".damaged-") || kind.starts_with(".recovering-"))
            && FileId::at(&entry.path()) == Some(file)
    })
}

/// Returns whether a file that SQLite does not recognize, or takes for another program's, is a damaged store of ours.
pub(crate) fn is_ours(path: &Path) -> bool {
    let read = || Damaged::read(Some(File::open(path)?), File::open(log_of(path)).ok(), &HashMap::new());
    read().is_ok_and(|found: Damaged| found.is_ours())
}

/// Resumes an unfinished recovery, or sets the file aside and begins one.
///
/// With `failed`, does nothing if another file is at the path now: another process was faster.
pub(super) fn recover(
    path: &Path,
    failed: Option<FileId>,
    reason: &str,
    keys: &Arc<KeyRing>,
) -> Result<(), StoreError> {
    let _alone = FolderLock::exclusive(path)?;
    let unusable = |error: io::Error| StoreError::Unusable {
        at: path.into(),
        reason: format!("it is damaged and cannot be recovered now: {}", os_words(&error)),
    };
    if let Some(time) = pending(path) {
        return RecoveryRun { path, time, reason, keys }.resume().map_err(|fault| postponed(fault, path));
    }
    if failed.is_some() && FileId::at(path) != failed {
        return Ok(());
    }
    // A newer version may have changed the tables: then the reader is wrong, not the file. Checked while no other
    // process may open it: a version that cannot be read because the file is in use is not damage.
    match failed.map(|_| upgrade::version_of(path).map_err(Fault::from)) {
        Some(Ok(found)) => schema::refuse_newer(path, found)?,
        Some(Err(fault)) if fault.is_busy() => return Err(fault.at(path)),
        Some(Err(_)) | None => {}
    }
    error!(
        target: "db_manager",
        "the message store {} is damaged ({reason}): messages may be lost; it is set aside, and what can be read is recovered",
        path.display()
    );
    let recovery = RecoveryRun { path, time: free_name(path), reason, keys };
    recovery.set_aside().map_err(unusable)?;
    recovery.resume().map_err(|fault| postponed(fault, path))
}

/// A recovery that fails is not more damage: it is retried.
fn postponed(fault: Fault, path: &Path) -> StoreError {
    match fault.at(path) {
        StoreError::Damaged { at, reason } => StoreError::Unusable { at, reason },
        StoreError::Full { at, reason, .. } => {
            let reason = format!("it is damaged and cannot be recovered now: {reason}; the damaged file is kept");
            StoreError::Unusable { at, reason }
        }
        error => error,
    }
}

/// Returns a timestamp that no file is named by yet.
fn free_name(path: &Path) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
    let numbered = (2..).map(|number| format!("{now}-{number}"));
    let is_free = |time: &String| {
        [".damaged-", ".recovering-"].iter().all(|kind| {
            let name = beside(path, &format!("{kind}{time}"));
            !name.exists() && !log_of(&name).exists()
        })
    };
    std::iter::once(now.clone()).chain(numbered).find(is_free).unwrap_or(now)
}

struct RecoveryRun<'a> {
    path: &'a Path,
    time: String,
    reason: &'a str,
    keys: &'a Arc<KeyRing>,
}

impl RecoveryRun<'_> {
    fn pending(&self) -> PathBuf {
        beside(self.path, &format!(".recovering-{}", self.time))
    }

    fn set_aside_name(&self) -> PathBuf {
        beside(self.path, &format!(".damaged-{}", self.time))
    }

    /// Renames the files, the log first: once the database has moved, no part of the store is left behind.
    fn set_aside(&self) -> io::Result<()> {
        for suffix in ["-wal", "-shm", ""] {
            move_if_there(&beside(self.path, suffix), &beside(&self.pending(), suffix))?;
            if suffix == "-wal" {
                sync_folder(self.path)?;
            }
        }
        let pending = self.pending();
        if !pending.exists() {
            // There was only a log.
            File::create_new(&pending)?;
        }
        fs::set_permissions(&pending, fs::Permissions::from_mode(0o600))?;
        sync_folder(self.path)
    }

    fn resume(&self) -> Result<(), Fault> {
        let io = |error: io::Error| {
            Fault::from(StoreError::Unusable {
                at: self.path.into(),
                reason: format!("it is damaged and cannot be recovered now: {}", os_words(&error)),
            })
        };
        let pending = self.pending();
        if !pending.exists() {
            // A crash between renaming the log and the file.
            self.set_aside().map_err(io)?;
        }
        if !self.path.exists() {
            let (recovered, lost) = self.rebuild()?;
            let aside = self.set_aside_name();
            let hint = "remove it when you no longer need anything in it";
            if lost > 0 {
                error!(
                    target: "db_manager",
                    "recovered {recovered} messages from the damaged message store, {lost} are lost; it is kept in {}: {hint}",
                    aside.display()
                );
            } else if recovered == 0 {
                error!(
                    target: "db_manager",
                    "found no message in the damaged message store, and the number of lost messages is unknown; it is kept in {}: {hint}",
                    aside.display()
                );
            } else {
                error!(
                    target: "db_manager",
                    "recovered {recovered} messages from the damaged message store, none is known to be lost; it is kept in {}: {hint}",
                    aside.display()
                );
            }
        }
        for suffix in ["-wal", ""] {
            move_if_there(&beside(&pending, suffix), &beside(&self.set_aside_name(), suffix)).map_err(io)?;
        }
        remove_if_there(&beside(&pending, "-shm")).map_err(io)?;
        sync_folder(self.path).map_err(io)
    }

    /// Builds the new store from what is left of the old one; returns how many messages were recovered and how many are
    /// lost.
    fn rebuild(&self) -> Result<(u64, u64), Fault> {
        let new = beside(self.path, ".rebuilding");
        let unusable =
            |error: io::Error| Fault::from(StoreError::Unusable { at: (&*new).into(), reason: os_words(&error) });
        for suffix in ["-journal", "-wal", "-shm", ""] {
            remove_if_there(&beside(&new, suffix)).map_err(unusable)?;
        }
        make_private(&new).map_err(unusable)?;
        let origin = DamagedSource { pending: &self.pending(), set_aside: &self.set_aside_name(), reason: self.reason };
        let result = rebuild::fill(&new, &origin, self.keys);
        if result.is_err() {
            // Frees its space.
            if let Err(error) = remove_if_there(&new) {
                warn!(target: "db_manager", "cannot remove {}: {error}", new.display());
            }
        }
        let counts = result?;
        File::open(&new).and_then(|file| file.sync_all()).map_err(unusable)?;
        fs::rename(&new, self.path).and_then(|()| sync_folder(self.path)).map_err(unusable)?;
        Ok(counts)
    }
}
