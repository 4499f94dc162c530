//! Stores that were moved away under a running agent, with messages in them.
//!
//! Its messages are delivered when it is moved back, or named with `--db`. Until then live writes that may conflict
//! with them would overtake them, so their clients have to wait. A moved file is located by a descriptor that only
//! references it (`O_PATH`): closing that releases none of the locks that SQLite holds on the file.
//!
//! Known only to this process: after a restart the agent does not know about moved stores.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::open::BacklogView;
use super::os::FileId;
use super::view::BacklogSeen;
use crate::message::{Server, Touch};

/// Maximum number of watched stores; beyond it the oldest are forgotten.
const MOVED_MAX: usize = 8;

/// The watched stores that were moved away.
#[derive(Default)]
pub(super) struct MovedStores(Mutex<Vec<MovedStore>>);

struct MovedStore {
    name: FileName,
    file: FileId,
    /// Its path at the last check.
    path: PathBuf,
    view: BacklogView,
}

impl MovedStores {
    /// Starts to watch the file, which this process has open and which was moved from its path. If the system
    /// can't locate it, nothing is watched. Must be called before the file is closed.
    pub(super) fn watch(&self, file: FileId) {
        let Some((name, path)) = file.open_path().and_then(|path| Some((FileName::of(&path, file)?, path))) else {
            return;
        };
        let mut moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.iter().any(|moved| moved.file == file) {
            return;
        }
        if moved.len() >= MOVED_MAX {
            moved.remove(0);
        }
        moved.push(MovedStore { name, file, path, view: BacklogView::default() });
    }

    /// Returns the combined backlog of the watched stores for this server; `None` if there is none. `open` is the
    /// file in service: a store that was moved back is no longer watched.
    pub(super) fn seen(&self, open: Option<FileId>, server: &Server, touches: &[Touch]) -> Option<BacklogSeen> {
        let mut moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = None;
        moved.retain_mut(|moved| {
            let Some(found) = moved.look(open, server, touches) else { return false };
            seen = Some(seen.map_or(found, |seen: BacklogSeen| seen.and(found)));
            true
        });
        seen
    }

    /// Returns whether none is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Returns their paths.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        moved.iter().map(|moved| moved.path.clone()).collect()
    }
}

impl MovedStore {
    /// Returns its backlog, or `None` once it is empty, was deleted, or is in service again.
    fn look(&mut self, open: Option<FileId>, server: &Server, touches: &[Touch]) -> Option<BacklogSeen> {
        if open == Some(self.file) {
            return None;
        }
        let path = self.name.path(self.file)?;
        if path != self.path {
            // The log beside it there is another file.
            self.view.close();
            self.path = path;
        }
        let seen = self.view.look(&self.path, server, touches);
        // Connections of one process share their view of a file's log, even if it was opened at the previous path:
        // a connection kept open would never see that another process delivered the messages.
        self.view.release();
        match seen {
            BacklogSeen::Empty | BacklogSeen::NeverWas => None,
            seen => Some(seen),
        }
    }
}

/// A reference to a file that follows its moves.
#[cfg(target_os = "linux")]
struct FileName(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl FileName {
    fn of(path: &Path, file: FileId) -> Option<Self> {
        use rustix::fs::{Mode, OFlags, open};
        let name = open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).ok()?;
        (FileId::at(path) == Some(file)).then_some(Self(name))
    }

    /// Returns the file's current path, unless it was deleted.
    fn path(&self, file: FileId) -> Option<PathBuf> {
        use std::os::fd::AsRawFd as _;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())).ok()?;
        (FileId::at(&path) == Some(file)).then_some(path)
    }
}

#[cfg(not(target_os = "linux"))]
struct FileName;

#[cfg(not(target_os = "linux"))]
impl FileName {
    fn of(_path: &Path, _file: FileId) -> Option<Self> {
        None
    }

    fn path(&self, _file: FileId) -> Option<PathBuf> {
        None
    }
}
