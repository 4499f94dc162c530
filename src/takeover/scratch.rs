//! The scratch store: where the messages of streams that were taken over wait for their delivery.
//!
//! Its messages are in the depot as well, so it is emptied at every start, and removed at the end. It is in a folder that
//! only this user can read, and encrypted if a key is configured: messages and credentials are in plain text once a
//! bundle is opened.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::store::{self, Keys, Limits, Store, StoreError};

/// How many replayers of one user may work beside each other.
const FOLDERS_MAX: usize = 64;
/// The file that the process locks that uses a folder.
const LOCK: &str = "in-use";
/// The folder of the store in it, which is emptied.
const CONTENTS: &str = "store";

/// Why there is no scratch store.
#[derive(Debug, Error)]
pub enum ScratchError {
    /// The folder can't be made, locked or emptied.
    #[error("cannot prepare the folder {} for messages from the depot: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// Other replayers use all folders.
    #[error("{FOLDERS_MAX} replayers use the folder {} already", path.display())]
    TooMany {
        /// The folder that theirs are in.
        path: PathBuf,
    },
    /// The store in it can't be created.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store that is thrown away, in a folder that no other process uses.
pub(crate) struct ScratchStore {
    store: Arc<dyn Store>,
    folder: PathBuf,
    /// Held for as long as the folder is used.
    _lock: File,
}

impl ScratchStore {
    /// Creates an empty store in a folder below this one, and removes what a killed process left there.
    ///
    /// # Errors
    ///
    /// [`ScratchError`], when nothing was taken over yet.
    pub(crate) fn create(below: &Path, limits: Limits, keys: &Keys) -> Result<Self, ScratchError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| ScratchError::Folder { path, reason: error.to_string() }
        };
        for number in 1..=FOLDERS_MAX {
            let folder = below.join(number.to_string());
            make_private(&folder).map_err(failed(&folder))?;
            let lock = File::create(folder.join(LOCK)).map_err(failed(&folder))?;
            match lock.try_lock() {
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(failed(&folder)(error)),
                Ok(()) => {}
            }
            let contents = folder.join(CONTENTS);
            empty(&contents).map_err(failed(&folder))?;
            let file = contents.join("opik_messages.db");
            let store = store::open_scratch(&file, limits, keys)?;
            return Ok(Self { store, folder: contents, _lock: lock });
        }
        Err(ScratchError::TooMany { path: below.to_owned() })
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

impl Drop for ScratchStore {
    fn drop(&mut self) {
        self.store.close();
        // Otherwise the next start removes it.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

fn empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    make_private(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request};
    use crate::store::{Filter, WhenFull};

    fn create(below: &Path) -> ScratchStore {
        let limits = Limits { size_max: 1 << 24, disk_reserve: 0, when_full: WhenFull::Refuse };
        ScratchStore::create(below, limits, &Keys::default()).expect("a folder can be made")
    }

    fn message() -> Message {
        Message {
            lane: Lane::default(),
            message_type: MessageType::CreateTrace,
            request: Request {
                method: "POST".into(),
                path: "v1/private/traces".into(),
                headers: HeaderSet::default(),
                body: Body::new(b"{}".to_vec(), Encoding::Identity),
            },
            touches: Vec::new(),
            items: 1,
            project: None,
            accepted_at_ms: 1,
        }
    }

    #[test]
    fn leftovers_of_a_killed_replayer_are_removed_and_a_living_one_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = create(folder.path());
        first.store().register(&[message()]).expect("there is room");
        let second = create(folder.path());
        assert_ne!(first.folder, second.folder, "two replayers would empty each other's store");
        let mode = fs::metadata(folder.path().join("1")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "others can read messages and keys");
        // As SIGKILL leaves it: the lock is gone, the files are there.
        let left = first.folder.clone();
        first.store().close();
        let ScratchStore { _lock: lock, .. } = &first;
        lock.unlock().expect("it was locked");
        let next = create(folder.path());
        assert_eq!(next.folder, left);
        let backlog = next.store().backlog(&Filter::default()).expect("it can be read");
        assert_eq!(backlog.messages(), 0, "a message of an earlier run would be delivered without its stream");
    }
}
