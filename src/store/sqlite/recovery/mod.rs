//! A damaged file set aside, and every message that is whole taken over into a new store.
//!
//! ```text
//!  opik_messages.db{,-wal}                          the damaged store
//!        │ renamed, the log first
//!        ▼
//!  opik_messages.db.recovering-TIME{,-wal}          pending: whoever opens the store next goes on here
//!        │ read page by page (`damaged.rs`), messages that are whole are written to
//!        │ opik_messages.db.rebuilding              worth nothing until it is complete and synced, and then renamed to
//!        ▼
//!  opik_messages.db                                 the new store, with a row about its recovery
//!        │ renamed
//!        ▼
//!  opik_messages.db.damaged-TIME{,-wal}             until a person removes it
//! ```
//!
//! The names are the state: a crash between any two steps leaves one of these pictures, and the next recovery goes on
//! from it. The damaged file itself is only read and renamed. Nothing in it is lost before what can be read of it is
//! on the disk in the new store.
//!
//! A message is taken over when it is exactly what was stored: its checksum is right, or, where it was stored by a
//! version that made none, its lengths are. It keeps its number and its place in the order; one that was in flight is
//! *failed* again. Lanes, keys and header sets lie in the file twice, in their table and in its index, and the copy
//! that makes the checksum right is the right one. A message that was delivered comes back only where its deletion can't
//! be read any more; delivering it again is an upsert.
//!
//! # Sealed stores
//!
//! A sealed store is recovered only by a process that has its keys; any other gets the error that opening the store would
//! give, and does nothing to the file but give it the pending name. So what was sealed is opened and looked at like
//! everything else, with its checksum, and is sealed anew under its own number in the new store, under the key that was in
//! use. One sealed thing that does not open is damage, and costs its message. Which keys the store uses is in its row of
//! `sealing`, which lies in the file twice, too; where both copies are gone, and nothing opens with the keys that are
//! there, they are taken for the wrong ones.
//!
//! # Several processes
//!
//! Opening a store holds a shared lock on its folder, recovering it an exclusive one, so that nobody opens one of the
//! pictures above but the last. A process that has the damaged file open notices at its next commit that its path leads
//! to another file, acknowledges nothing, and opens that one. What it committed before the rename is in the file or its
//! log, and both are read after the rename, under the write lock of the file where SQLite still gives one.

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

use self::rebuild::Origin;
use super::damaged::Damaged;
use super::fault::Fault;
use super::files::make_private;
use super::files::{beside, log_of, move_if_there, remove_if_there, sync_folder};
use super::folder_lock::FolderLock;
use super::seal::KeyRing;
use super::{schema, upgrade};
use crate::store::error::StoreError;
use crate::store::os::{FileId, folder_of, os_words};

/// Says whether there is a log that may hold messages although there is no database, or an empty one: SQLite would
/// delete it.
pub(super) fn has_log_alone(path: &Path) -> bool {
    const HEADER_AND_FRAME: u64 = 32 + 24 + 512;
    fs::metadata(log_of(path)).is_ok_and(|metadata| metadata.len() >= HEADER_AND_FRAME)
        && File::open(log_of(path))
            .and_then(|log| Damaged::read(None, Some(log), &HashMap::new()))
            .is_ok_and(|found| found.is_ours())
}

/// Returns when a recovery began that did not come to its end.
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

/// Returns whether this file is beside the store at this path as one that was found damaged.
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

/// Says whether a file that SQLite takes for no database, or for another program's, is a damaged store of ours.
pub(super) fn is_ours(path: &Path) -> bool {
    let read = || Damaged::read(Some(File::open(path)?), File::open(log_of(path)).ok(), &HashMap::new());
    read().is_ok_and(|found: Damaged| found.is_ours())
}

/// Goes on with a recovery that did not come to its end, or sets the file aside and begins one.
///
/// With `failed`, does nothing when another file is at the path by now: somebody else was faster.
pub(super) fn recover(
    path: &Path,
    failed: Option<FileId>,
    reason: &str,
    keys: &Arc<KeyRing>,
) -> Result<(), StoreError> {
    let _alone = FolderLock::exclusive(path)?;
    let unusable = |error: io::Error| StoreError::Unusable {
        path: path.to_owned(),
        reason: format!("it is damaged and can't be recovered now: {}", os_words(&error)),
    };
    if let Some(time) = pending(path) {
        return RecoveryRun { path, time, reason, keys }.resume().map_err(|fault| blocked(fault, path));
    }
    if failed.is_some() && FileId::at(path) != failed {
        return Ok(());
    }
    // A newer version may have changed tables under us: what fails then is the reader, and not the file. Asked while nobody
    // else may open it: a version that can't be seen because the file is in use is no damage.
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
    recovery.resume().map_err(|fault| blocked(fault, path))
}

/// What keeps a recovery from its end is not the damage: it is tried again.
fn blocked(fault: Fault, path: &Path) -> StoreError {
    match fault.at(path) {
        StoreError::Damaged { path, reason } => StoreError::Unusable { path, reason },
        StoreError::Full { path, reason, .. } => {
            let reason = format!("it is damaged and can't be recovered now: {reason}; the damaged file is kept");
            StoreError::Unusable { path, reason }
        }
        error => error,
    }
}

/// Returns a time by which no file is named yet.
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

    /// Moves the file away, its log first: once the file itself is away, nothing of it is left behind.
    fn set_aside(&self) -> io::Result<()> {
        for suffix in ["-wal", "-shm", ""] {
            move_if_there(&beside(self.path, suffix), &beside(&self.pending(), suffix))?;
            if suffix == "-wal" {
                sync_folder(self.path)?;
            }
        }
        let pending = self.pending();
        if !pending.exists() {
            // There was a log alone.
            File::create_new(&pending)?;
        }
        fs::set_permissions(&pending, fs::Permissions::from_mode(0o600))?;
        sync_folder(self.path)
    }

    fn resume(&self) -> Result<(), Fault> {
        let io = |error: io::Error| {
            Fault::from(StoreError::Unusable {
                path: self.path.to_owned(),
                reason: format!("it is damaged and can't be recovered now: {}", os_words(&error)),
            })
        };
        let pending = self.pending();
        if !pending.exists() {
            // A crash between the log and the file.
            self.set_aside().map_err(io)?;
        }
        if !self.path.exists() {
            let (recovered, lost) = self.rebuild()?;
            let aside = self.set_aside_name();
            let hint = "remove it when nothing in it is needed any more";
            if lost > 0 {
                error!(
                    target: "db_manager",
                    "{recovered} messages were recovered from the damaged message store, {lost} are lost; it lies in {}: {hint}",
                    aside.display()
                );
            } else if recovered == 0 {
                error!(
                    target: "db_manager",
                    "no message could be found in the damaged message store, and how many were in it can't be known; it lies in {}: {hint}",
                    aside.display()
                );
            } else {
                error!(
                    target: "db_manager",
                    "{recovered} messages were recovered from the damaged message store, none is known to be lost; it lies in {}: {hint}",
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

    /// Makes the new store from what is left in the old one; says how many messages were recovered and how many not.
    fn rebuild(&self) -> Result<(u64, u64), Fault> {
        let new = beside(self.path, ".rebuilding");
        let unusable =
            |error: io::Error| Fault::from(StoreError::Unusable { path: new.clone(), reason: os_words(&error) });
        for suffix in ["-journal", "-wal", "-shm", ""] {
            remove_if_there(&beside(&new, suffix)).map_err(unusable)?;
        }
        make_private(&new).map_err(unusable)?;
        let origin = Origin { pending: &self.pending(), set_aside: &self.set_aside_name(), reason: self.reason };
        let result = rebuild::fill(&new, &origin, self.keys);
        if result.is_err() {
            // Room that is needed more elsewhere.
            if let Err(error) = remove_if_there(&new) {
                warn!(target: "db_manager", "{} stays behind: {error}", new.display());
            }
        }
        let counts = result?;
        File::open(&new).and_then(|file| file.sync_all()).map_err(unusable)?;
        fs::rename(&new, self.path).and_then(|()| sync_folder(self.path)).map_err(unusable)?;
        Ok(counts)
    }
}
