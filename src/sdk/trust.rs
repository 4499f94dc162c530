//! Files that other programs left, and whose they are: they are opened only if they can be trusted.
//!
//! A leftover file of the Python SDK is in a folder that everybody shares, and what is in it becomes requests with this
//! user's key. So another user must not be able to choose what is in it, or which files it names:
//!
//! - **The file** is a regular file of the user whose files are salvaged, or of root, that nobody else can write. The same
//!   holds for what SQLite keeps beside it.
//! - **Its folder** belongs to that user or to root. If others can write to it, it is sticky: they can neither remove nor
//!   replace the file.
//! - **The way to it** has no links of other users ([`place::resolve`]). Every step is opened without following links, and
//!   what is checked is the descriptor that is read, not a name that may lead elsewhere a moment later.
//! - **An attachment** that a row names is a regular file of that user with one name, in a folder where the SDK puts its
//!   copies (Python's temporary folder, names that begin with `tmp`), or in one that the user named for it. It is never a
//!   file of the kernel (`/proc`, `/sys`, `/dev`).
//! - **Only what was opened is deleted**: the same inode, in the same folder, by the folder's descriptor.
//!
//! Root salvages root's files only, unless it is told whose: then only that user's.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::store::sqlite::FileId;
use crate::store::{OpenMode, place};

const ROOT: u32 = 0;
/// What group and others may write.
const WRITABLE_FOR_OTHERS: u32 = 0o022;
/// Only the owner of an entry, of the folder, or root may remove or rename it there.
const STICKY: u32 = 0o1000;
/// What the names of the SDK's copies begin with (Python's `tempfile`).
const COPY_PREFIX: &[u8] = b"tmp";
/// Where the kernel shows files that are none: environments, memory, settings, devices.
const KERNEL_FOLDERS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The user whose files are salvaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOwner {
    user: u32,
    salvager: u32,
}

impl FileOwner {
    /// Returns the user of this process.
    pub fn this_user() -> Self {
        Self::user(rustix::process::geteuid().as_raw())
    }

    /// Returns the user with this id.
    pub fn user(user: u32) -> Self {
        Self { user, salvager: rustix::process::geteuid().as_raw() }
    }

    /// Returns whether this process may salvage the files of this user: its own, and for root those of anyone.
    pub fn is_allowed(self) -> bool {
        self.user == self.salvager || self.salvager == ROOT
    }

    /// Returns whether a file of this owner is trusted. Root's are, but not for root who acts for somebody else: a user who
    /// can make a hard link to one would choose what is delivered, or deleted.
    fn trusts(self, owner: u32) -> bool {
        owner == self.user || owner == ROOT && self.user == self.salvager
    }
}

/// What is known of an open file or folder.
#[derive(Clone, Copy, Debug)]
struct Entry {
    is_file: bool,
    owner: u32,
    mode: u32,
    names: u64,
}

impl Entry {
    fn of(metadata: &Metadata) -> Self {
        let names = metadata.nlink();
        Self { is_file: metadata.is_file(), owner: metadata.uid(), mode: metadata.mode(), names }
    }
}

/// Returns why a file is not trusted, if it is not.
fn mistrust_file(file: Entry, whose: FileOwner) -> Option<String> {
    if !file.is_file {
        return Some("it is not a regular file".into());
    }
    if !whose.trusts(file.owner) {
        return Some(format!("it belongs to user {}, not to user {}", file.owner, whose.user));
    }
    (file.mode & WRITABLE_FOR_OTHERS != 0)
        .then(|| format!("other users can write to it (mode {:03o}; chmod go-w)", file.mode & 0o777))
}

/// Returns why what is in a folder is not trusted, if it is not.
fn mistrust_folder(folder: Entry, whose: FileOwner) -> Option<String> {
    if folder.owner != ROOT && folder.owner != whose.user {
        return Some(format!("its folder belongs to user {}, not to user {}", folder.owner, whose.user));
    }
    let is_open = folder.mode & WRITABLE_FOR_OTHERS != 0 && folder.mode & STICKY == 0;
    is_open
        .then(|| format!("other users can replace it: its folder has mode {:04o} (chmod go-w)", folder.mode & 0o7777))
}

/// Returns why the file of an attachment is not trusted, if it is not.
fn mistrust_attachment(file: Entry, whose: FileOwner) -> Option<String> {
    match file {
        Entry { is_file: false, .. } => Some("it is not a regular file".into()),
        Entry { owner, .. } if owner != whose.user => {
            Some(format!("it belongs to user {owner}, not to user {}", whose.user))
        }
        // A second name is how a file from elsewhere gets into a folder.
        Entry { names: 2.., .. } => Some("it has another name elsewhere (a hard link)".into()),
        _ => None,
    }
}

/// Why something was not opened.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It can't be trusted, and why.
    Untrusted(String),
    /// The system refused.
    System(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// An open folder, reached without a link of anybody else.
#[derive(Debug)]
pub(super) struct Folder {
    handle: File,
    /// Where it really is.
    path: PathBuf,
}

/// How folders on the way are opened: on Linux without the right to list them, which a way through needs not.
#[cfg(any(target_os = "linux", target_os = "android"))]
const AS_FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const AS_FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Folder {
    fn open(path: &Path) -> Result<Self, Refusal> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let real = place::resolve(path, OpenMode::Existing)
            .map_err(|trap| Refusal::Untrusted(format!("{}: {}", trap.path.display(), trap.reason)))?;
        let mut at = File::from(rustix::fs::open("/", AS_FOLDER, Mode::empty())?);
        for part in real.components() {
            match part {
                Component::RootDir => {}
                Component::Normal(name) => at = File::from(openat(&at, name, AS_FOLDER, Mode::empty())?),
                _ => return Err(io::Error::from(io::ErrorKind::InvalidInput).into()),
            }
        }
        Ok(Self { handle: at, path: real })
    }

    fn id(&self) -> io::Result<FileId> {
        self.handle.metadata().map(|metadata| FileId::of(&metadata))
    }

    /// Opens a file for reading: no link, no device, and no pipe that nobody writes to.
    fn file(&self, name: &OsStr) -> Result<(File, Metadata), Refusal> {
        let found = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match rustix::fs::FileType::from_raw_mode(found.st_mode) {
            rustix::fs::FileType::RegularFile => {}
            rustix::fs::FileType::Symlink => return Err(Refusal::Untrusted("it is a symbolic link".into())),
            _ => return Err(Refusal::Untrusted("it is not a regular file".into())),
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.handle, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) => return Err(Refusal::Untrusted("it is a symbolic link".into())),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        Ok((file, metadata))
    }

    /// Deletes the file with this name if it is still the one that was opened.
    fn remove(&self, name: &OsStr, id: FileId) -> io::Result<()> {
        let found = match self.file(name) {
            Ok((_, metadata)) => FileId::of(&metadata),
            Err(Refusal::System(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(Refusal::System(error)) => return Err(error),
            Err(Refusal::Untrusted(reason)) => return Err(io::Error::other(reason)),
        };
        if found != id {
            return Err(io::Error::other("another file has its name by now"));
        }
        Ok(unlinkat(&self.handle, name, AtFlags::empty())?)
    }
}

/// A file that passed the checks, with those that SQLite keeps beside it.
#[derive(Debug)]
pub(super) struct TrustedFile {
    pub(super) file: File,
    folder: Arc<Folder>,
    name: OsString,
    whose: FileOwner,
    /// All that belongs to it, itself last.
    parts: Vec<(OsString, FileId)>,
}

impl TrustedFile {
    /// Opens a file if the module's rules trust it.
    pub(super) fn open(path: &Path, whose: FileOwner) -> Result<Self, Refusal> {
        let Some(name) = path.file_name() else { return Err(Refusal::Untrusted("it is not a regular file".into())) };
        let folder = Folder::open(path.parent().unwrap_or(Path::new("/")))?;
        let (file, metadata) = folder.file(name)?;
        if let Some(reason) =
            mistrust_file(Entry::of(&metadata), whose).or(mistrust_folder(Entry::of(&folder.handle.metadata()?), whose))
        {
            return Err(Refusal::Untrusted(reason));
        }
        let parts = vec![(name.to_owned(), FileId::of(&metadata))];
        Ok(Self { file, folder: Arc::new(folder), name: name.to_owned(), whose, parts })
    }

    /// Opens the file whose name has this added, under the same rules; `None` if there is none.
    pub(super) fn open_beside(&mut self, suffix: &str) -> Result<Option<File>, Refusal> {
        let mut name = self.name.clone();
        name.push(suffix);
        let (file, metadata) = match self.folder.file(&name) {
            Err(Refusal::System(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(Refusal::Untrusted(reason)) => return Err(Refusal::Untrusted(format!("{}: {reason}", name.display()))),
            result => result?,
        };
        if let Some(reason) = mistrust_file(Entry::of(&metadata), self.whose) {
            return Err(Refusal::Untrusted(format!("{}: {reason}", name.display())));
        }
        self.parts.insert(0, (name, FileId::of(&metadata)));
        Ok(Some(file))
    }

    /// Deletes what was opened, the file itself last, and then its folder if it is the SDK's and empty.
    ///
    /// # Errors
    ///
    /// What the system says, with the name of the first file that stays.
    pub(super) fn remove(&self) -> io::Result<()> {
        for (name, id) in &self.parts {
            let failed = |error| io::Error::other(format!("{}: {error}", self.folder.path.join(name).display()));
            self.folder.remove(name, *id).map_err(failed)?;
        }
        if self.is_in_folder_of_sdk() && self.remove_folder().is_err() {
            // A folder that is not empty holds something of somebody else's.
            tracing::debug!(target: "replay_manager", "the folder {} stays", self.folder.path.display());
        }
        Ok(())
    }

    /// Returns whether the folder has a name that the SDK gives to its own (Python's `tempfile.mkdtemp`).
    fn is_in_folder_of_sdk(&self) -> bool {
        let name = self.folder.path.file_name().unwrap_or_default().as_encoded_bytes();
        name.starts_with(COPY_PREFIX) && name.len() > COPY_PREFIX.len()
    }

    fn remove_folder(&self) -> Result<(), Refusal> {
        let (Some(above), Some(name)) = (self.folder.path.parent(), self.folder.path.file_name()) else {
            return Ok(());
        };
        let above = Folder::open(above)?;
        let found = File::from(openat(&above.handle, name, AS_FOLDER, Mode::empty())?).metadata()?;
        if FileId::of(&found) == self.folder.id()? {
            unlinkat(&above.handle, name, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }
}

/// The folders in which the files of attachments are believed.
#[derive(Debug)]
pub struct AttachmentFolders {
    whose: FileOwner,
    /// Where the SDK puts its copies.
    temporary: Vec<Arc<Folder>>,
    /// Others, with everything below them.
    named: Vec<Folder>,
}

/// Why the file of an attachment is not sent.
#[derive(Debug)]
pub enum AttachmentRefusal {
    /// It is not one that a row may name, and why.
    Untrusted(String),
    /// It can't be opened.
    Unreadable(io::Error),
}

/// The file of an attachment, open.
#[derive(Debug)]
pub struct AttachedFile {
    /// What is read.
    pub file: File,
    /// Set if it is in a folder of the SDK's copies.
    pub copy: Option<TemporaryCopy>,
}

/// A temporary copy that the SDK made.
#[derive(Clone, Debug)]
pub struct TemporaryCopy {
    folder: Arc<Folder>,
    name: OsString,
    id: FileId,
}

impl TemporaryCopy {
    /// Deletes it if it is still the file that was opened. One that is gone is no error.
    ///
    /// # Errors
    ///
    /// What the system says, with its name.
    pub fn remove(&self) -> io::Result<()> {
        let failed = |error| io::Error::other(format!("{}: {error}", self.folder.path.join(&self.name).display()));
        self.folder.remove(&self.name, self.id).map_err(failed)
    }
}

impl AttachmentFolders {
    /// Returns the folders for the attachments of a file: the SDK's temporary folder, which is the one that its store's own
    /// folder is in, our temporary folder, and `named`.
    pub(super) fn of(file: &TrustedFile, temp_dir: &Path, named: &[PathBuf]) -> Self {
        let above = file.folder.path.parent().filter(|_| file.is_in_folder_of_sdk());
        // A folder that can't be opened has no file that could be.
        let temporary = above.into_iter().chain([temp_dir]).filter_map(|path| Folder::open(path).ok().map(Arc::new));
        let named = named.iter().filter_map(|path| Folder::open(path).ok());
        Self { whose: file.whose, temporary: temporary.collect(), named: named.collect() }
    }

    /// Opens the file that a row names.
    ///
    /// # Errors
    ///
    /// [`AttachmentRefusal`], before anything of it was read.
    pub fn open(&self, path: &Path) -> Result<AttachedFile, AttachmentRefusal> {
        self.try_open(path).map_err(|refusal| match refusal {
            Refusal::Untrusted(reason) => AttachmentRefusal::Untrusted(reason),
            Refusal::System(error) => AttachmentRefusal::Unreadable(error),
        })
    }

    fn try_open(&self, path: &Path) -> Result<AttachedFile, Refusal> {
        const ELSEWHERE: &str = "it is not in a folder where the SDK puts its copies";
        let elsewhere = || Refusal::Untrusted(ELSEWHERE.into());
        let (Some(folder), Some(name)) = (path.parent().filter(|_| path.is_absolute()), path.file_name()) else {
            return Err(elsewhere());
        };
        // Nothing is said of files elsewhere, not even whether they exist.
        let folder = Folder::open(folder).map_err(|refusal| match refusal {
            Refusal::System(_) => elsewhere(),
            untrusted => untrusted,
        })?;
        if KERNEL_FOLDERS.iter().any(|kernel| folder.path.starts_with(kernel)) {
            return Err(Refusal::Untrusted("it is a file of the kernel".into()));
        }
        let id = folder.id()?;
        let is_copy_name = name.as_encoded_bytes().starts_with(COPY_PREFIX) && name.len() > COPY_PREFIX.len();
        let temporary = self.temporary.iter().find(|it| is_copy_name && it.id().is_ok_and(|known| known == id));
        if temporary.is_none() && !self.named.iter().any(|named| folder.path.starts_with(&named.path)) {
            return Err(elsewhere());
        }
        let (file, metadata) = folder.file(name)?;
        if let Some(reason) = mistrust_attachment(Entry::of(&metadata), self.whose) {
            return Err(Refusal::Untrusted(reason));
        }
        if is_kernel_file(&file) {
            return Err(Refusal::Untrusted("it is a file of the kernel".into()));
        }
        let copy = |folder: &Arc<Folder>| TemporaryCopy {
            folder: folder.clone(),
            name: name.to_owned(),
            id: FileId::of(&metadata),
        };
        Ok(AttachedFile { file, copy: temporary.map(copy) })
    }
}

/// Returns whether an open file is on a file system that the kernel makes up, wherever that is mounted.
#[cfg(target_os = "linux")]
fn is_kernel_file(file: &File) -> bool {
    // proc, sysfs, devpts, debugfs, tracefs, securityfs, cgroup, cgroup2, bpf, efivarfs (linux/magic.h).
    const KERNEL: [u32; 10] = [
        0x9fa0,
        0x6265_6572,
        0x1cd1,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0x27_e0eb,
        0x6367_7270,
        0xcafe_4a11,
        0xde5e_81e4,
    ];
    // What can't be asked is not believed.
    rustix::fs::fstatfs(file).map_or(true, |found| KERNEL.contains(&(found.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn is_kernel_file(_file: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = 1000;
    const STRANGER: u32 = 1001;

    const fn entry(owner: u32, mode: u32) -> Entry {
        Entry { is_file: true, owner, mode, names: 1 }
    }

    #[test]
    fn a_file_is_trusted_if_nobody_else_can_have_chosen_what_is_in_it() {
        let mine = FileOwner { user: ME, salvager: ME };
        let root = FileOwner { user: ROOT, salvager: ROOT };
        let for_me = FileOwner { user: ME, salvager: ROOT };
        for (whose, file, folder, is_trusted) in [
            (mine, entry(ME, 0o600), entry(ME, 0o700), true),
            (mine, entry(ME, 0o644), entry(ME, 0o755), true),
            (mine, entry(ROOT, 0o644), entry(ROOT, 0o755), true),
            (mine, entry(ME, 0o600), entry(ROOT, 0o1777), true),
            (mine, entry(STRANGER, 0o600), entry(ME, 0o700), false),
            (mine, entry(ME, 0o600), entry(STRANGER, 0o755), false),
            (mine, entry(ME, 0o620), entry(ME, 0o700), false),
            (mine, entry(ME, 0o602), entry(ME, 0o700), false),
            (mine, entry(ME, 0o600), entry(ME, 0o777), false),
            (mine, entry(ME, 0o600), entry(ME, 0o770), false),
            (mine, Entry { is_file: false, ..entry(ME, 0o600) }, entry(ME, 0o700), false),
            (root, entry(ROOT, 0o600), entry(ROOT, 0o700), true),
            (root, entry(ME, 0o600), entry(ME, 0o700), false),
            (root, entry(ROOT, 0o600), entry(ME, 0o700), false),
            (for_me, entry(ME, 0o600), entry(ME, 0o700), true),
            (for_me, entry(ME, 0o600), entry(ROOT, 0o1777), true),
            (for_me, entry(ROOT, 0o600), entry(ME, 0o700), false),
            (for_me, entry(STRANGER, 0o600), entry(ME, 0o700), false),
        ] {
            let found = mistrust_file(file, whose).or(mistrust_folder(folder, whose));
            assert_eq!(found.is_none(), is_trusted, "{file:?} in {folder:?} for {whose:?}: {found:?}");
        }
    }

    #[test]
    fn an_attachment_is_a_file_of_the_user_with_one_name() {
        let mine = FileOwner { user: ME, salvager: ME };
        for (file, is_trusted) in [
            (entry(ME, 0o600), true),
            (entry(ME, 0o664), true),
            (entry(ROOT, 0o644), false),
            (entry(STRANGER, 0o644), false),
            (Entry { names: 2, ..entry(ME, 0o600) }, false),
            (Entry { is_file: false, ..entry(ME, 0o600) }, false),
        ] {
            assert_eq!(mistrust_attachment(file, mine).is_none(), is_trusted, "{file:?}");
        }
        assert!(FileOwner { user: ME, salvager: ROOT }.is_allowed() && mine.is_allowed());
        assert!(!FileOwner { user: STRANGER, salvager: ME }.is_allowed());
        assert!(!FileOwner { user: ROOT, salvager: ME }.is_allowed());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn files_that_the_kernel_makes_up_are_known_wherever_they_are_mounted() {
        let open = |path: &str| File::open(path).expect("it is there");
        assert!(is_kernel_file(&open("/proc/self/environ")));
        assert!(!is_kernel_file(&open("/proc/self/exe")), "the program itself is a file");
    }
}
