//! The share of rejected messages: they are guaranteed part of the store, and beyond it they yield to live traffic.
//!
//! A rejected message (dead letter) is not delivered until someone handles it, which may take weeks; meanwhile it must
//! not end the protection of live traffic. If there is no capacity for a new message and rejected messages hold more
//! than their share, the oldest of them are evicted: counted, and exported to a folder first, if the user named one.
//! *Held* messages are exempt, because they are retried automatically.
//!
//! A rejected create with stranded messages is never evicted: without it the server would create partial records
//! from them. New messages are then refused, with the reason and the command.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::view::StoredMessage;
use crate::message::MessageId;

/// The share of rejected messages, and the export before eviction.
#[derive(Clone, Debug)]
pub struct RejectedRoom {
    /// Their share of the store's capacity when space is needed, in percent.
    pub share_percent: u32,
    /// The export before eviction.
    pub export: Option<RejectedExport>,
}

/// A quarter: three quarters always remain for the backlog.
pub const SHARE_PERCENT: u32 = 25;

impl Default for RejectedRoom {
    fn default() -> Self {
        Self { share_percent: SHARE_PERCENT, export: None }
    }
}

/// Returns the share of rejected messages in a store with this capacity, in bytes.
pub fn share(capacity: u64, percent: u32) -> u64 {
    (capacity / 100).saturating_mul(u64::from(percent))
}

/// Returns how many bytes of rejected messages to evict for `needed` bytes: these and at
/// least `step`, so that not every message evicts again, but nothing of their share.
pub fn excess(held: u64, share: u64, needed: u64, step: u64) -> u64 {
    needed.max(step).min(held.saturating_sub(share))
}

/// Returns whether dropping every rejected message beyond the share frees the `disk_lacks` bytes, together with the
/// bytes that are free in the file already. If not, another program has filled the disk, and dropping would not help.
pub fn helps(held: u64, share: u64, free_in_file: u64, disk_lacks: u64) -> bool {
    held.saturating_sub(share).saturating_add(free_in_file) >= disk_lacks
}

/// Export of rejected messages before eviction.
#[derive(Clone, Debug)]
pub struct RejectedExport {
    /// The folder.
    pub folder: PathBuf,
    /// Formats a message as a line, without its line end.
    pub line: fn(StoredMessage) -> Result<String, String>,
}

/// A file of the export folder that is being written. It appears atomically: complete, or not at all.
pub struct ExportFile<'a> {
    export: &'a RejectedExport,
    partial: PathBuf,
    /// Files of attachments, which are deleted unless it is finished.
    files: Vec<PathBuf>,
    lines: BufWriter<File>,
    first: MessageId,
    last: MessageId,
    at_ms: i64,
}

impl<'a> ExportFile<'a> {
    /// Starts a file.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn begin(export: &'a RejectedExport, first: MessageId, at_ms: i64) -> io::Result<Self> {
        make_folder(&export.folder)?;
        let partial = export.folder.join(format!(".rejected-{at_ms}-{first}-{}.partial", std::process::id()));
        let lines = BufWriter::new(create(&partial)?);
        Ok(Self { export, partial, files: Vec::new(), lines, first, last: first, at_ms })
    }

    /// Adds a message.
    ///
    /// # Errors
    ///
    /// The system's error, or why the message can't be formatted as a line.
    pub fn add(&mut self, message: StoredMessage) -> io::Result<()> {
        self.last = message.listed.id;
        let line = (self.export.line)(message).map_err(io::Error::other)?;
        self.lines.write_all(line.as_bytes())?;
        self.lines.write_all(b"\n")
    }

    /// Writes the file of an attachment durably into the same folder.
    ///
    /// # Errors
    ///
    /// The system's error, or the one of `piece`.
    pub fn add_file(
        &mut self,
        message: MessageId,
        mut piece: impl FnMut(u32) -> io::Result<Option<Vec<u8>>>,
    ) -> io::Result<()> {
        let path = self.export.folder.join(format!("rejected-{}-{message}.file", self.at_ms));
        let mut file = create(&path)?;
        self.files.push(path);
        let mut number = 0;
        while let Some(bytes) = piece(number)? {
            file.write_all(&bytes)?;
            number += 1;
        }
        file.sync_all()
    }

    /// Syncs the file and renames it to its final name, which is returned.
    ///
    /// # Errors
    ///
    /// The system's error; then nothing may be evicted.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        self.lines.flush()?;
        self.lines.get_ref().sync_all()?;
        let name = format!("rejected-{}-{}-{}.jsonl", self.at_ms, self.first, self.last);
        let path = self.export.folder.join(name);
        fs::rename(&self.partial, &path)?;
        // From here on the lines refer to them.
        self.files.clear();
        File::open(&self.export.folder)?.sync_all()?;
        Ok(path)
    }
}

impl Drop for ExportFile<'_> {
    fn drop(&mut self) {
        // Already renamed if it was finished; otherwise their messages are still stored. Left behind, they would fill a
        // disk that has no space for them, with every attempt.
        for file in self.files.iter().chain([&self.partial]) {
            let _ = fs::remove_file(file);
        }
    }
}

/// Creates the folder, for this user only, and syncs its entry.
fn make_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    match folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Creates a file for this user only. Fails on an existing file or link, which may be another user's.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_that_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let export = RejectedExport { folder: folder.path().join("rejected"), line: |_| Err("no".into()) };
        let mut file = ExportFile::begin(&export, MessageId(1), 5).expect("it can be made");
        let mut pieces = vec![Err(io::Error::other("the disk is full")), Ok(Some(vec![1; 1000]))];
        file.add_file(MessageId(1), |_| pieces.pop().unwrap_or(Ok(None))).expect_err("its disk is full");
        assert_eq!(fs::read_dir(&export.folder).expect("it is there").count(), 2);
        drop(file);
        assert_eq!(fs::read_dir(&export.folder).expect("it is there").count(), 0);
    }

    #[test]
    fn rejected_messages_give_what_is_needed_and_keep_their_share() {
        for (name, held, share, needed, step, expected) in [
            ("within the share", 20, 25, 5, 1, 0),
            ("exactly the share", 25, 25, 5, 1, 0),
            ("what is asked for", 90, 25, 10, 1, 10),
            ("a step at least", 90, 25, 1, 5, 5),
            ("never of the share", 30, 25, 50, 1, 5),
            ("a share of nothing", 30, 0, 50, 1, 30),
        ] {
            assert_eq!(excess(held, share, needed, step), expected, "{name}");
        }
        for (held, free_in_file, disk_lacks, expected) in
            [(90, 0, 0, true), (90, 0, 65, true), (90, 0, 66, false), (90, 10, 75, true), (0, 0, 1, false)]
        {
            assert_eq!(helps(held, 25, free_in_file, disk_lacks), expected, "{held} {free_in_file} {disk_lacks}");
        }
        for (capacity, percent, expected) in
            [(1000, 25, 250), (1000, 0, 0), (1000, 100, 1000), (u64::MAX, 100, u64::MAX - 15)]
        {
            assert_eq!(super::share(capacity, percent), expected);
        }
    }
}
