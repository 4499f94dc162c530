//! Makes files that are overwritten in place even on a copy-on-write file system (btrfs).
//!
//! On such a file system a full disk, or an exhausted quota, accepts no change at all: not even the note that a message
//! was delivered, which would free space. Worse, the memory that processes share (`-shm`) is a mapped file, and
//! touching a page that gets no new block kills the process with SIGBUS. A file with the NOCOW flag keeps its blocks.
//! The flag can be set only while a file is empty, so the files that SQLite would create itself are created here first.
//!
//! The cost is the file system's checksums for these files. Messages and the log have their own checksums, and SQLite's
//! guarantees assume files that are overwritten in place anyway.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tracing::debug;

/// The magic number of btrfs in `statfs(2)`.
#[cfg(target_os = "linux")]
const BTRFS: u32 = 0x9123_683e;

/// Sets a new, empty file to be overwritten in place, where the file system needs to be told.
pub(super) fn overwrite_in_place(file: &fs::File) {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};
        if !fstatfs(file).is_ok_and(|found| found.f_type as u32 == BTRFS) {
            return;
        }
        let set = ioctl_getflags(file).and_then(|flags| ioctl_setflags(file, flags | IFlags::NOCOW));
        if let Err(errno) = set {
            debug!(target: "db_manager", "cannot set a file of the store to be overwritten in place: {errno}");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Creates the log and the shared memory file of the store at this path on a copy-on-write file system. Both are empty,
/// which SQLite treats as missing.
pub(super) fn prepare(path: &Path) {
    #[cfg(target_os = "linux")]
    {
        let Ok(real) = fs::canonicalize(path) else { return };
        if !rustix::fs::statfs(&real).is_ok_and(|found| found.f_type as u32 == BTRFS) {
            return;
        }
        for suffix in ["-wal", "-shm"] {
            let file = beside(&real, suffix);
            if fs::symlink_metadata(&file).is_err()
                && let Err(error) = make_empty(&file)
            {
                debug!(target: "db_manager", "cannot create {} in advance: {error}", file.display());
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = path;
}

/// Creates an empty file under this name, unless one exists.
///
/// It is closed before it gets its name: closing a descriptor of a file drops the locks that SQLite in this process
/// holds on it.
#[cfg(target_os = "linux")]
fn make_empty(path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let new = beside(path, &format!(".new-{}", std::process::id()));
    overwrite_in_place(&fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?);
    let renamed = renameat_with(CWD, &new, CWD, path, RenameFlags::NOREPLACE).map_err(io::Error::from);
    if renamed.is_err() {
        fs::remove_file(&new)?;
    }
    renamed
}

#[cfg(target_os = "linux")]
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_created_and_existing_files_are_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.db-wal");
        make_empty(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().len(), 0);
        fs::write(&file, "frames").unwrap();
        assert!(make_empty(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "frames");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
    }
}
