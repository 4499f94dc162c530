//! A folder for private copies, and files that get their name only when they are complete.
//!
//! Both carry a lock for as long as their process lives, so that the next one recognises and removes what a killed one
//! left.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, RenameFlags, flock};
use rustix::io::Errno;

use crate::private_folder::PrivateFolder;
use crate::shutdown::Shutdown;
use crate::store::os::folder_of;

/// How many bytes are copied between two checks for the shutdown.
const COPY_BYTES: u64 = 16 * 1024 * 1024;
/// A private folder for the copy of a store, beside that store.
pub(super) struct ScratchFolder(PrivateFolder);

impl ScratchFolder {
    /// Makes a folder beside a store, and removes those that killed processes left there.
    pub(super) fn beside(store: &Path) -> io::Result<Self> {
        let name = store.file_name().unwrap_or(OsStr::new("opik-offline"));
        PrivateFolder::make(folder_of(store), &with_suffix(name, ".moving-")).map(Self)
    }

    /// Returns the path of a store in it.
    pub(super) fn store(&self) -> PathBuf {
        self.0.path().join("copy.db")
    }
}

/// A file that has another name until it is complete, and is removed if it never is.
pub(super) struct Unfinished {
    pub(super) file: File,
    path: PathBuf,
    to: PathBuf,
    is_kept: bool,
}

impl Unfinished {
    /// Makes a file that only this user can read, and removes those that killed processes left.
    pub(super) fn for_path(to: &Path) -> io::Result<Self> {
        let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let prefix = with_suffix(name, ".writing-");
        for left in named_like(folder_of(to), &prefix) {
            let is_dead = |file: File| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if OpenOptions::new().read(true).custom_flags(nofollow()).open(&left).is_ok_and(is_dead) {
                fs::remove_file(&left)?;
            }
        }
        let path = folder_of(to).join(with_suffix(&prefix, &uuid::Uuid::now_v7().simple().to_string()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        // A file system without locks leaves remains to people.
        let _locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { file, path, to: to.to_owned(), is_kept: false })
    }

    /// Makes it durable under its name, unless something has that name.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let renamed =
            rustix::fs::renameat_with(rustix::fs::CWD, &self.path, rustix::fs::CWD, &self.to, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => {}
            // A file system that cannot promise it: then it is only checked.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if fs::symlink_metadata(&self.to).is_err() => {
                fs::rename(&self.path, &self.to)?;
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) => return Err(error.into()),
        }
        self.is_kept = true;
        File::open(folder_of(&self.to))?.sync_all()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_kept {
            let _removed = fs::remove_file(&self.path);
        }
    }
}

/// Copies what is left of a file into a new one that only this user can read, until shutdown is requested.
pub(super) fn copy_private(from: &mut impl Read, to: &Path, shutdown: &Shutdown) -> io::Result<()> {
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    copy_all(from, &mut to, shutdown)
}

/// Copies what is left of one to the other, until shutdown is requested.
pub(super) fn copy_all(from: &mut impl Read, to: &mut impl Write, shutdown: &Shutdown) -> io::Result<()> {
    while !shutdown.is_requested() && io::copy(&mut from.by_ref().take(COPY_BYTES), to)? > 0 {}
    Ok(())
}

/// Appends a suffix to a name.
pub(super) fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}

/// Returns the entries of a folder whose names begin like this, in their order.
pub(super) fn named_like(folder: &Path, prefix: &OsStr) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_like = |name: &OsString| name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
    let mut found: Vec<PathBuf> =
        entries.flatten().filter(|entry| is_like(&entry.file_name())).map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn nofollow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}
