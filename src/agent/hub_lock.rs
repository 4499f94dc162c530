//! One hub per store: `agent --hub` holds a lock on a file beside the store for as long as it runs.
//!
//! Two ordinary agents may share a store on one machine: one of them replays, and both accept. Two hubs on one volume
//! are a mistake, mostly a second replica or a second deployment: edges would be balanced over both, whose writes about
//! one entity then wait in two processes that don't see each other's requests in flight. So the second one is refused
//! at its start, before anything has changed.
//!
//! # Scope of the lock
//!
//! It is the kernel's (`flock`): it ends with its process, however that ends, and needs no clean-up and no timeout. It
//! holds between processes of one kernel, in any containers. It does **not** hold between machines that mount one
//! network file system without working locks; there a `ReadWriteOncePod` block volume keeps the second pod out, which is
//! what `contrib/kubernetes/hub.yaml` uses. Where the file system reports that it has no locks, the hub does not start.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::system::uname;
use thiserror::Error;

use crate::printable;

/// How much of another hub's note is read, in bytes.
const NOTE_BYTES_MAX: u64 = 256;

/// Why a hub can't have its store for itself.
#[derive(Debug, Error)]
pub enum HubLockError {
    /// Another hub has it.
    #[error("another hub, {holder}, has the store {}", store.display())]
    Held {
        /// The store.
        store: PathBuf,
        /// The other hub, as it noted itself.
        holder: String,
    },
    /// The lock's file can't be created or locked.
    #[error("cannot lock {}: {reason}", path.display())]
    NoLock {
        /// The file.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
}

/// The lock of a running hub. Released when it is dropped, or when its process ends.
#[derive(Debug)]
pub(crate) struct HubLock(#[expect(dead_code, reason = "it is the lock")] File);

impl HubLock {
    /// Takes the lock of the store at this path.
    ///
    /// # Errors
    ///
    /// [`HubLockError`] if another hub holds it, or if the file can't be locked; nothing was changed but the lock's file.
    pub(crate) fn take(store: &Path) -> Result<Self, HubLockError> {
        let path = path_of(store);
        let no_lock = |error: io::Error| HubLockError::NoLock { path: path.clone(), reason: error.to_string() };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(no_lock)?;
        }
        let flags = OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let mut file = options.open(&path).map_err(no_lock)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(HubLockError::Held { store: store.to_owned(), holder: holder(&mut file) });
            }
            Err(errno) => return Err(no_lock(errno.into())),
        }
        // Only for people: a note that can't be written takes nothing from the lock. A file that has another name as well,
        // or more in it than a note, is not ours to overwrite.
        let is_ours = |found: Metadata| found.is_file() && found.nlink() == 1 && found.len() <= NOTE_BYTES_MAX;
        if file.metadata().is_ok_and(is_ours) {
            let _ = file.set_len(0).and_then(|()| file.write_all(note().as_bytes()));
        }
        Ok(Self(file))
    }
}

/// Returns the file that is locked. It stays when the hub ends: removing it would let two hubs lock two files.
fn path_of(store: &Path) -> PathBuf {
    let mut name = store.file_name().unwrap_or_default().to_owned();
    name.push("-hub");
    store.with_file_name(name)
}

fn note() -> String {
    format!("process {} on {}", std::process::id(), uname().nodename().to_string_lossy())
}

/// Returns the other hub's note: of another user, perhaps.
fn holder(file: &mut File) -> String {
    let mut noted = Vec::new();
    // Without a note, the message is as clear.
    let _ = file.take(NOTE_BYTES_MAX).read_to_end(&mut noted);
    match printable::line(String::from_utf8_lossy(&noted).trim()).into_owned() {
        noted if noted.is_empty() => "which has just started".to_owned(),
        noted => noted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_hub_is_refused_by_name_until_the_first_ends() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = folder.path().join("new/folder/store.db");
        let first = HubLock::take(&store).expect("nobody has it");
        let refused = HubLock::take(&store).expect_err("two hubs would share a store").to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("new/folder/store.db"), "{refused}");
        drop(HubLock::take(&folder.path().join("other.db")).expect("another store is another hub's"));
        drop(first);
        drop(HubLock::take(&store).expect("the first has ended"));
    }

    #[test]
    fn a_note_of_another_program_drives_no_terminal() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = folder.path().join("store.db");
        let _first = HubLock::take(&store).expect("nobody has it");
        std::fs::write(path_of(&store), format!("\u{1b}[2J{}", "x".repeat(5000))).expect("it is ours");
        let refused = HubLock::take(&store).expect_err("it is held").to_string();
        assert!(!refused.contains('\u{1b}') && refused.len() < 700, "{refused}");
    }

    #[test]
    fn a_link_in_place_of_the_lock_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (store, other) = (folder.path().join("store.db"), folder.path().join("other"));
        std::fs::write(&other, "precious").expect("it can be written");
        std::os::unix::fs::symlink(&other, path_of(&store)).expect("a link");
        let refused = HubLock::take(&store).expect_err("the link leads elsewhere");
        assert!(matches!(refused, HubLockError::NoLock { .. }), "{refused}");
        assert_eq!(std::fs::read_to_string(&other).expect("it is there"), "precious");
        std::fs::remove_file(path_of(&store)).expect("the link");
        std::fs::hard_link(&other, path_of(&store)).expect("a second name");
        let _lock = HubLock::take(&store).expect("it can be locked");
        assert_eq!(std::fs::read_to_string(&other).expect("it is there"), "precious", "the note overwrote a file");
    }
}
