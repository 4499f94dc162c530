//! Stores that were moved away under a running agent, with messages in them.
//!
//! Whoever moved one has its messages: they are delivered when it is moved back, or named with `--db`. Until then live
//! writes that may conflict with them would overtake them, so their clients have to wait. A moved file is found again
//! by a descriptor that only names it (`O_PATH`): closing that drops none of the locks that SQLite holds on the file.
//!
//! Known to this process alone: after a restart a moved store is one that this agent was never told of.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::open::BacklogView;
use super::os::FileId;
use super::view::BacklogSeen;
use crate::message::{Server, Touch};

/// Moved stores that are watched; of more the oldest are forgotten.
const MOVED_MAX: usize = 8;

/// Where stores are that were moved away.
#[derive(Default)]
pub(super) struct MovedStores(Mutex<Vec<MovedStore>>);

struct MovedStore {
    name: Name,
    file: FileId,
    /// Where it was when it was looked at last.
    path: PathBuf,
    view: BacklogView,
}

impl MovedStores {
    /// Begins to watch the file, which this process has open and which is not at its path any more. Where the system
    /// can't tell where it is, nothing is watched. To be called before the file is closed.
    pub(super) fn watch(&self, file: FileId) {
        let Some((name, path)) = file.open_path().and_then(|path| Some((Name::of(&path, file)?, path))) else { return };
        let mut moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.iter().any(|moved| moved.file == file) {
            return;
        }
        if moved.len() >= MOVED_MAX {
            moved.remove(0);
        }
        moved.push(MovedStore { name, file, path, view: BacklogView::default() });
    }

    /// Returns what they hold for this server, all together; `None` when there is nothing to wait for. `open` is the
    /// file that is in service: one that was moved back is none of them any more.
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

    /// Returns where they are.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        moved.iter().map(|moved| moved.path.clone()).collect()
    }
}

impl MovedStore {
    /// Returns what it holds, or `None` once it holds nothing, was deleted, or is in service again.
    fn look(&mut self, open: Option<FileId>, server: &Server, touches: &[Touch]) -> Option<BacklogSeen> {
        if open == Some(self.file) {
            return None;
        }
        let path = self.name.path(self.file)?;
        if path != self.path {
            // The log beside it is another one there.
            self.view.close();
            self.path = path;
        }
        let seen = self.view.look(&self.path, server, touches);
        // Connections of one process share their view of a file's log, also of one that was opened where the file was
        // before: what is kept open would never see that another process delivered what the file holds.
        self.view.release();
        match seen {
            BacklogSeen::Empty | BacklogSeen::NeverWas => None,
            seen => Some(seen),
        }
    }
}

/// A name for a file that follows it.
#[cfg(target_os = "linux")]
struct Name(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl Name {
    fn of(path: &Path, file: FileId) -> Option<Self> {
        use rustix::fs::{Mode, OFlags, open};
        let name = open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).ok()?;
        (FileId::at(path) == Some(file)).then_some(Self(name))
    }

    /// Returns where the file is, unless it was deleted.
    fn path(&self, file: FileId) -> Option<PathBuf> {
        use std::os::fd::AsRawFd as _;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())).ok()?;
        (FileId::at(&path) == Some(file)).then_some(path)
    }
}

#[cfg(not(target_os = "linux"))]
struct Name;

#[cfg(not(target_os = "linux"))]
impl Name {
    fn of(_path: &Path, _file: FileId) -> Option<Self> {
        None
    }

    fn path(&self, _file: FileId) -> Option<PathBuf> {
        None
    }
}
