//! A folder that only this user can enter, for copies of messages and keys. It is removed when it is dropped.
//!
//! It carries a lock for as long as its process lives, so that the next process recognises and removes what a killed one
//! left. The lock is made first and removed last: a folder in which nothing is locked has no living process, whatever the
//! moment at which its process was killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

/// The file in it that is locked.
const LOCK: &str = "lock";
/// How often another process may take a new folder for one that was left.
const ATTEMPTS: u32 = 5;

/// A folder of this process.
pub(crate) struct PrivateFolder {
    path: PathBuf,
    _lock: File,
}

impl PrivateFolder {
    /// Makes a folder whose name begins like this, and removes those that killed processes left there.
    ///
    /// # Errors
    ///
    /// If the folder can't be made. That one of a killed process can't be removed is only logged.
    pub(crate) fn make(parent: &Path, prefix: &OsStr) -> io::Result<Self> {
        for left in left_in(parent, prefix) {
            remove_left(&left).unwrap_or_else(|error| warn_left(&left, &error));
        }
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut name = prefix.to_owned();
            name.push(uuid::Uuid::now_v7().simple().to_string());
            let path = parent.join(name);
            DirBuilder::new().mode(0o700).create(&path)?;
            match lock_new(&path) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(error) if is_taken(&error) && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        remove_folder(&self.path).unwrap_or_else(|error| warn_left(&self.path, &error));
    }
}

fn warn_left(folder: &Path, error: &io::Error) {
    let folder = folder.display();
    tracing::warn!(target: "db_manager", "cannot remove the private copy {folder} (the next process tries again): {error}");
}

/// Returns the folders of this user with such a name: the prefix and the id of a process.
fn left_in(parent: &Path, prefix: &OsStr) -> Vec<PathBuf> {
    let is_ours = |name: &OsString| {
        let rest = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        rest.is_some_and(|rest| rest.len() == 32 && rest.iter().all(u8::is_ascii_hexdigit))
    };
    let user = rustix::process::geteuid().as_raw();
    // Not the target of a link.
    let is_folder = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|it| it.is_dir() && it.uid() == user);
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let named = entries.flatten().filter(|entry| is_ours(&entry.file_name()));
    let mut found: Vec<PathBuf> = named.map(|entry| entry.path()).filter(is_folder).collect();
    found.sort();
    found
}

/// Locks a new folder; fails if another process has removed it in between.
fn lock_new(folder: &Path) -> io::Result<File> {
    let path = folder.join(LOCK);
    let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    fs::symlink_metadata(&path).map(|_| lock)
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock)
}

/// Removes a folder that a killed process left, unless its process lives.
fn remove_left(folder: &Path) -> io::Result<()> {
    match open_lock(folder) {
        Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() => remove_folder(folder),
        // An empty folder may be of a process that begins at this moment: it notices, and makes another.
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => remove_without_lock(folder),
            _ => Ok(()),
        },
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Removes a folder with files and without a lock, as versions left it that removed the lock first.
fn remove_without_lock(folder: &Path) -> io::Result<()> {
    match open_lock(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => remove_folder(folder),
        // It was made in between.
        _ => Ok(()),
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(flags).open(folder.join(LOCK))
}

/// Removes a folder, the lock last: the next process recognises what a process leaves that is killed in between.
fn remove_folder(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    fs::remove_dir_all(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PREFIX: &str = "store.db.moving-";

    fn make(parent: &Path) -> PrivateFolder {
        let folder = PrivateFolder::make(parent, OsStr::new(PREFIX)).expect("a folder can be made");
        fs::write(folder.path().join("copy.db"), b"messages and keys").expect("there is room");
        folder
    }

    #[test]
    fn only_this_user_can_enter_it_and_it_is_removed() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let folder = make(parent.path());
        let mode = fs::metadata(folder.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "others can read messages and keys");
        drop(folder);
        assert_eq!(fs::read_dir(parent.path()).expect("it is there").count(), 0, "a copy is left for others to find");
    }

    #[test]
    fn a_copy_is_removed_whenever_its_process_was_killed_and_a_living_one_is_left_alone() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let left = |id: &str, files: &[&str]| {
            let left = parent.path().join(format!("{PREFIX}{id:0>32}"));
            fs::create_dir(&left).expect("a folder can be made");
            files.iter().for_each(|file| fs::write(left.join(file), b"messages and keys").expect("there is room"));
        };
        left("a", &[LOCK, "copy.db", "copy.db-wal"]);
        left("b", &["copy.db"]);
        left("c", &[LOCK]);
        left("d", &[]);
        // Those of others, and of people.
        let other = parent.path().join(format!("{PREFIX}of-the-team"));
        fs::create_dir(&other).expect("a folder can be made");
        let target = tempfile::tempdir().expect("a temporary folder");
        fs::write(target.path().join("copy.db"), b"theirs").expect("there is room");
        let link = parent.path().join(format!("{PREFIX}{:0>32}", "e"));
        std::os::unix::fs::symlink(target.path(), &link).expect("a link can be made");
        let living = make(parent.path());
        let next = make(parent.path());
        let mut expected = vec![living.path().to_owned(), next.path().to_owned()];
        expected.sort();
        assert_eq!(left_in(parent.path(), OsStr::new(PREFIX)), expected, "a private copy is left behind");
        assert!(living.path().join("copy.db").exists(), "the copy of a living process was removed");
        assert!(other.exists() && target.path().join("copy.db").exists(), "files of others were removed");
    }

    #[test]
    fn two_processes_never_share_a_folder() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let folder = parent.path().join("new");
        fs::create_dir(&folder).expect("a folder can be made");
        let lock = lock_new(&folder).expect("nobody else has it");
        assert!(lock_new(&folder).is_err(), "two processes use one folder");
        remove_left(&folder).expect("it lives");
        assert!(folder.join(LOCK).exists(), "the lock of a living process was removed");
        drop(lock);
        remove_left(&folder).expect("it is dead");
        assert!(!folder.exists());
        // Another process removed it before it was locked.
        assert!(lock_new(&folder).is_err_and(|error| is_taken(&error)));
    }
}
