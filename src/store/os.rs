//! Facts of the operating system: its errors in words, the identity of a file, the folder of a file.
//!
//! Knows nothing of stores, so that every file of the room may use it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::sqlite_format::ReadAt;

/// Tells a file from any other: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    /// Returns which file is at this path, or `None` if none is visible there.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::of(&metadata))
    }

    /// Returns which file this is.
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }

    /// Returns which file these facts are about.
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    pub(crate) fn of_stat(stat: &rustix::fs::Stat) -> Self {
        Self(stat.st_dev as u64, stat.st_ino as u64)
    }

    /// Returns what identifies this file, which is at this path, for as long as it exists.
    ///
    /// The file's device, its number there, and when it was made: a number is given again once its file is gone.
    pub(crate) fn identity(self, path: &Path) -> String {
        let Self(device, number) = self;
        let made = fs::metadata(path).ok().filter(|found| Self(found.dev(), found.ino()) == self);
        let made = made.and_then(|found| found.created().ok()?.duration_since(UNIX_EPOCH).ok());
        format!("{device} {number} {:?}", made.map(|made| made.as_nanos()))
    }

    /// Returns whether this file, which this process has open, was deleted. False if that can't be known.
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
}

/// Returns the folder of a path.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns the system's words for an error in the form used inside a sentence.
pub(crate) fn os_words(error: &io::Error) -> String {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or(&words);
    let mut letters = words.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Reads retry when a signal interrupts them.
impl ReadAt for fs::File {
    fn byte_len(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_at(&mut buffer[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}
