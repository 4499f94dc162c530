//! A lock on the folder of a store.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::fault::BUSY_TIMEOUT;
use crate::store::error::StoreError;
use crate::store::os::folder_of;

/// A lock on the folder of a store. Ends when dropped, or with its process.
pub(super) struct FolderLock(#[expect(dead_code, reason = "it is the lock")] Option<File>);

impl FolderLock {
    /// Keeps recoveries away while the store is opened.
    pub(super) fn shared(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, FlockOperation::NonBlockingLockShared)
    }

    /// Keeps all others away who would open the store.
    pub(super) fn exclusive(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self, StoreError> {
        // No folder, nothing to keep apart; one that only may be written is locked by nobody.
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
                    return Err(StoreError::Busy { path: path.to_owned(), waited_ms });
                }
                // A file system without locks is used by one machine at best; the names still tell the state.
                Err(_) => return Ok(Self(None)),
            }
        }
    }
}
