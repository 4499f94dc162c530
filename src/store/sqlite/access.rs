//! File permissions: what the system refuses about the files of a store.

use std::path::Path;

use rustix::io::Errno;

use crate::store::os::folder_of;
use crate::store::room;

/// Returns the error of a file system that was remounted read-only after a failure: the kernel then refuses to open a
/// file for writing, while `access(2)` still says yes. The file opened here has no name and no content.
#[cfg(target_os = "linux")]
fn became_read_only(folder: &Path) -> Option<Errno> {
    use rustix::fs::{Mode, OFlags, open};
    let opened = open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    opened.err().filter(|errno| *errno == Errno::ROFS)
}

#[cfg(not(target_os = "linux"))]
fn became_read_only(_folder: &Path) -> Option<Errno> {
    None
}

/// Returns why the system refuses to read and write this file or the files beside it, or `None` if it allows both.
///
/// Checks without opening the file: closing a second descriptor would drop the locks that SQLite holds in this process.
pub(super) fn access_words(path: &Path) -> Option<String> {
    use rustix::fs::{Access, access};
    if let Err(errno) = access(path, Access::READ_OK | Access::WRITE_OK) {
        return Some(room::access_words(errno));
    }
    for (suffix, what) in [("-wal", "its write-ahead log"), ("-shm", "its shared memory")] {
        let mut file = std::fs::canonicalize(path).ok()?.into_os_string();
        file.push(suffix);
        match access(Path::new(&file), Access::READ_OK | Access::WRITE_OK) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Some(format!("{what} {}: {}", Path::new(&file).display(), room::access_words(errno))),
        }
    }
    // The write-ahead log is created in the folder.
    let folder = folder_of(path);
    let refused = access(folder, Access::WRITE_OK | Access::EXEC_OK).err().or_else(|| became_read_only(folder))?;
    Some(format!("its folder {}: {}", folder.display(), room::access_words(refused)))
}
