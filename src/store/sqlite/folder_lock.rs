//! Locks the folder of a store, so that opening and recovering it exclude each other.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::fault::BUSY_TIMEOUT;
use crate::store::error::StoreError;
use crate::store::os::folder_of;

/// A lock on the folder of a store. Released when dropped, or when its process ends.
pub(super) struct FolderLock(#[expect(dead_code, reason = "it is the lock")] Option<File>);

impl FolderLock {
    /// Takes the shared lock, which keeps recoveries out while the store is being opened.
    pub(super) fn shared(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, FlockOperation::NonBlockingLockShared)
    }

    /// Takes the exclusive lock, which keeps every other process from opening the store.
    pub(super) fn exclusive(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self, StoreError> {
        // Without a folder there is nothing to lock, and a folder that cannot be read cannot be locked.
        let Ok(folder) = File::open(folder_of(path)) else { return Ok(Self(None)) };
        let since = Instant::now();
        loop {
            match flock(&folder, operation) {
                Ok(()) => return Ok(Self(Some(folder))),
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < BUSY_TIMEOUT => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let waited_ms = BUSY_TIMEOUT.as_millis() as u64;
                    return Err(StoreError::Busy { at: path.into(), waited_ms });
                }
                // A file system without locks is used by a single machine; the file names still record the state of a
                // recovery.
                Err(_) => return Ok(Self(None)),
            }
        }
    }
}
