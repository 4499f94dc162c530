//! PLACEHOLDER
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::in_place;
use crate::store::StoreIdentity;

/// Returns the folder that a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns the system's words for an error as they stand inside a sentence.
pub(crate) fn os_words(error: &io::Error) -> String {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or(&words);
    let mut letters = words.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Tells a file from any other: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    /// Returns which file stands at this path, or `None` when none can be seen there.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::of(&metadata))
    }

    /// Returns which file this is.
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }

    /// Returns the identity of the store in this file, which is at this path.
    ///
    /// The file's device, its number there, and when it was made: a number is given again once its file is gone.
    pub(super) fn identity(self, path: &Path) -> StoreIdentity {
        let Self(device, number) = self;
        let made = fs::metadata(path).ok().filter(|found| Self(found.dev(), found.ino()) == self);
        let made = made.and_then(|found| found.created().ok()?.duration_since(UNIX_EPOCH).ok());
        StoreIdentity::of(format!("{device} {number} {:?}", made.map(|made| made.as_nanos())).as_bytes())
    }

    /// Says whether this file, which this process has open, has no name any more. Where that can't be known, it has one.
    ///
    /// Asked of the system's list of open files, because opening and closing the file would drop SQLite's locks on it.
    pub(crate) fn is_deleted(self) -> bool {
        let Ok(open) = fs::read_dir("/dev/fd") else { return false };
        let open = open.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
        open.filter(|file| Self(file.dev(), file.ino()) == self).any(|file| file.nlink() == 0)
    }

    /// Returns where this file is, which this process has open, as far as the system tells.
    pub(crate) fn open_path(self) -> Option<PathBuf> {
        let open = fs::read_dir("/dev/fd").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let mut paths =
            open.filter(|entry| Self::at(entry) == Some(self)).filter_map(|entry| fs::read_link(entry).ok());
        paths.find(|path| Self::at(path) == Some(self))
    }

    /// Says whether this file lies beside the store at this path as one that was found damaged.
    pub(crate) fn is_set_aside(self, path: &Path) -> bool {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
        let Ok(entries) = fs::read_dir(folder_of(path)) else { return false };
        entries.filter_map(Result::ok).any(|entry| {
            let found = entry.file_name();
            let kind = found.to_str().and_then(|found| found.strip_prefix(name));
            kind.is_some_and(|kind| kind.starts_with(".damaged-") || kind.starts_with(".recovering-"))
                && Self::at(&entry.path()) == Some(self)
        })
    }
}

/// Makes an empty file that only this user can read.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    in_place::overwrite_in_place(&file);
    // The umask may have taken bits from it; it never adds any.
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

/// How long a write waits for other processes.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
