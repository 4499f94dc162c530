//! Files of a depot in a folder: written aside, linked, renamed, locked, synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::super::Version;
use super::super::name::Name;

/// The depot's own folder, for locks and for files that have no name yet.
const OWN: &str = ".depot";
/// Files left by processes that were killed are removed after this time.
const LEFT_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest pause between two attempts to take a lock.
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Returns the version of a file, which changes with every swap: a file is replaced and never changed, and the time of
/// its last change only grows ([`Aside::make_newer_than`]).
pub(super) fn version(found: &fs::Metadata) -> Version {
    Version::new(format!("{:x}-{:x}-{:x}", changed_ns(found), found.ino(), found.len()))
}

fn changed_ns(found: &fs::Metadata) -> i128 {
    i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec())
}

/// A file without a name of its own yet; removed if it gets none.
#[derive(Debug)]
pub(super) struct Aside {
    file: File,
    path: PathBuf,
}

impl Aside {
    /// Writes and syncs a new file.
    pub(super) fn write(root: &Path, bytes: &[u8]) -> io::Result<Self> {
        let folder = root.join(OWN);
        make_folders(root, &folder)?;
        let path = folder.join(uuid::Uuid::now_v7().simple().to_string());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o660).open(&path)?;
        let mut aside = Self { file, path };
        aside.file.write_all(bytes)?;
        aside.file.sync_all()?;
        Ok(aside)
    }

    /// Returns the version that the file will be.
    pub(super) fn version(&self) -> io::Result<Version> {
        Ok(version(&self.file.metadata()?))
    }

    /// Makes the time of its last change later than another file's: clocks are set back, and tick slower than
    /// processes swap. File systems that count in seconds round down.
    pub(super) fn make_newer_than(&self, old: &fs::Metadata) -> io::Result<()> {
        let mut step = Duration::from_nanos(1);
        while changed_ns(&self.file.metadata()?) <= changed_ns(old) {
            if step > Duration::from_secs(10) {
                return Err(io::Error::new(ErrorKind::Unsupported, "it keeps no times of files"));
            }
            self.file.set_modified(old.modified()? + step)?;
            step *= 1000;
        }
        self.file.sync_all()
    }

    /// Gives it a name that no file has: of several callers one succeeds.
    pub(super) fn link_to(&self, path: &Path) -> io::Result<()> {
        let linked = fs::hard_link(&self.path, path);
        // The answer to a repeated request of an NFS client may be "exists" though it was this one.
        if matches!(&linked, Err(error) if error.kind() == ErrorKind::AlreadyExists)
            && fs::metadata(path)?.ino() == self.file.metadata()?.ino()
        {
            return Ok(());
        }
        // The answers of file systems without hard links.
        linked.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::MLINK | Errno::NOSYS | Errno::OPNOTSUPP) => {
                io::Error::new(ErrorKind::Unsupported, "hard links are refused")
            }
            _ => error,
        })
    }

    /// Gives it the name of another file.
    pub(super) fn rename_to(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.path);
    }
}

/// The right to swap or delete objects whose names share a digest's first byte.
#[derive(Debug)]
pub(super) struct NameLock {
    _file: File,
}

impl NameLock {
    /// Waits for the lock; `None` if another process has it until the end of the time.
    pub(super) fn take(root: &Path, name: &Name, until: Instant) -> io::Result<Option<Self>> {
        let folder = root.join(OWN);
        make_folders(root, &folder)?;
        let shard = digest(&SHA256, name.as_str().as_bytes());
        let path = folder.join(format!(".lock-{:02x}", shard.as_ref()[0]));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o660).open(path)?;
        let mut pause = Duration::from_micros(200);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self { _file: file })),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    return Err(io::Error::new(ErrorKind::Unsupported, "locks are refused"));
                }
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOCK_PAUSE_MAX);
        }
    }
}

/// Makes the folders from the root down to `folder`, durably. The root itself has to be there.
pub(super) fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let below = folder.strip_prefix(root).unwrap_or(folder);
    let mut made = root.to_owned();
    for part in below.components() {
        let parent = made.clone();
        made.push(part);
        match fs::DirBuilder::new().mode(0o770).create(&made) {
            Ok(()) => sync_folder(&parent)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder) {
        Ok(opened) => opened.sync_all(),
        // Another process deleted what was in it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the folders that a deleted file leaves empty, and files that killed processes left aside.
pub(super) fn remove_empty_folders(root: &Path, deleted: &Path) {
    for folder in deleted.ancestors().skip(1).take_while(|folder| *folder != root) {
        // It refuses folders that are not empty.
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
    remove_left(root);
}

fn remove_left(root: &Path) {
    let Ok(entries) = fs::read_dir(root.join(OWN)) else { return };
    for entry in entries.flatten() {
        let is_old = |found: fs::Metadata| found.modified().ok()?.elapsed().ok().map(|age| age > LEFT_AFTER);
        let is_lock = entry.file_name().to_string_lossy().starts_with('.');
        if !is_lock && entry.metadata().ok().and_then(is_old) == Some(true) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
