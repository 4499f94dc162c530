//! The room of rejected messages: they have a share of the store, and what they hold beyond it is live traffic's.
//!
//! Nobody delivers a rejected message until a person has seen to it, which may take weeks; meanwhile they must not end
//! the protection of what an application sends now. When a new message finds no room and rejected messages hold more
//! than their share, the oldest of them go: counted, and written to a folder before, if the user named one. *Held*
//! messages are not among them, because they are tried again by themselves.
//!
//! A rejected create for which waiting messages wait is never dropped: without it the server would make partial records
//! of them. What it keeps out is refused, with the reason and the command.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::view::StoredMessage;
use crate::message::MessageId;

/// The share of rejected messages, and where they go when they have to.
#[derive(Clone, Debug)]
pub struct RejectedRoom {
    /// How much of what the store can hold they may keep when room is needed, in percent.
    pub share_percent: u32,
    /// Where they are written before they are dropped.
    pub export: Option<RejectedExport>,
}

/// A quarter: three quarters are always there for what still has to be delivered.
pub const SHARE_PERCENT: u32 = 25;

impl Default for RejectedRoom {
    fn default() -> Self {
        Self { share_percent: SHARE_PERCENT, export: None }
    }
}

/// Returns how many bytes rejected messages may keep in a store that can hold `capacity`.
pub fn share(capacity: u64, percent: u32) -> u64 {
    (capacity / 100).saturating_mul(u64::from(percent))
}

/// Returns how many bytes of rejected messages are to go so that `needed` bytes find room: what is asked for and at
/// least `step`, so that not every message asks again, but nothing of their share.
pub fn excess(held: u64, share: u64, needed: u64, step: u64) -> u64 {
    needed.max(step).min(held.saturating_sub(share))
}

/// Returns whether dropping every rejected message beyond the share frees the `disk_lacks` bytes, together with the
/// bytes that are free in the file already. If not, another program has filled the disk, and dropping would not help.
pub fn helps(held: u64, share: u64, free_in_file: u64, disk_lacks: u64) -> bool {
    held.saturating_sub(share).saturating_add(free_in_file) >= disk_lacks
}

/// Where rejected messages are written before they are dropped, and how.
#[derive(Clone, Debug)]
pub struct RejectedExport {
    /// The folder.
    pub folder: PathBuf,
    /// Returns a message as a line, without its end.
    pub line: fn(StoredMessage) -> Result<String, String>,
}

/// Rejected messages on their way to a file of the export folder. The file appears whole, or not at all.
pub struct ExportFile<'a> {
    export: &'a RejectedExport,
    partial: PathBuf,
    /// Files of attachments, which go again unless it is finished.
    files: Vec<PathBuf>,
    lines: BufWriter<File>,
    first: MessageId,
    last: MessageId,
    at_ms: i64,
}

impl<'a> ExportFile<'a> {
    /// Begins a file.
    ///
    /// # Errors
    ///
    /// The system's.
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
    /// The system's, or why it can't be written as a line.
    pub fn add(&mut self, message: StoredMessage) -> io::Result<()> {
        self.last = message.listed.id;
        let line = (self.export.line)(message).map_err(io::Error::other)?;
        self.lines.write_all(line.as_bytes())?;
        self.lines.write_all(b"\n")
    }

    /// Writes the file of an attachment beside it, durably.
    ///
    /// # Errors
    ///
    /// The system's, or the one of `piece`.
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

    /// Makes the file durable and gives it its name, which is returned.
    ///
    /// # Errors
    ///
    /// The system's; then nothing may be dropped.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        self.lines.flush()?;
        self.lines.get_ref().sync_all()?;
        let name = format!("rejected-{}-{}-{}.jsonl", self.at_ms, self.first, self.last);
        let path = self.export.folder.join(name);
        fs::rename(&self.partial, &path)?;
        // Whatever happens from here on, the lines name them.
        self.files.clear();
        File::open(&self.export.folder)?.sync_all()?;
        Ok(path)
    }
}

impl Drop for ExportFile<'_> {
    fn drop(&mut self) {
        // Gone already when it was finished; else what is in them is still stored. Left behind, they would fill a disk
        // that was too full for them, with every attempt.
        for file in self.files.iter().chain([&self.partial]) {
            let _ = fs::remove_file(file);
        }
    }
}

/// Makes the folder, for this user only, and its entry durable.
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

/// Creates a file for this user only. One that is there, or a link, is somebody else's.
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
