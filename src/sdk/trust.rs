//! Trust: which leftover files are opened, and which files their rows may name.
//!
//! A leftover file of the Python SDK is in a folder that all users share, and its rows become requests with this user's
//! key. So another user must not be able to choose its content, or the files that it names.
//!
//! # Invariants
//!
//! - **The file** is a regular file of the user whose files are salvaged, or of root, and no other user can write to
//!   it. The same holds for its journals.
//! - **Its folder** belongs to that user or to root. If others can write to the folder, it is sticky: they can neither
//!   remove nor replace the file.
//! - **The path to it** has no links of other users ([`place::resolve`]). Every component is opened without following
//!   links, and the descriptor that was checked is the one that is read, not a name that may lead elsewhere a moment
//!   later.
//! - **An attachment** that a row names is a regular file of that user with one name, in a folder where the SDK puts
//!   its copies (Python's temporary folder, names that begin with `tmp`), or in one that the user named for it. It is
//!   never a file of the kernel (`/proc`, `/sys`, `/dev`).
//! - **Only a file that was opened is deleted**: the same inode, in the same folder, through the folder's descriptor.
//!
//! Root salvages only root's files, unless a user is named: then only the files of that user.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::store::os::FileId;
use crate::store::{OpenMode, place};

const ROOT: u32 = 0;
/// The mode bits that let group and others write.
const WRITABLE_FOR_OTHERS: u32 = 0o022;
/// Only the owner of an entry, of the folder, or root may remove or rename it there.
const STICKY: u32 = 0o1000;
/// The prefix of the names of the SDK's copies (Python's `tempfile`).
const COPY_PREFIX: &[u8] = b"tmp";
/// Where the kernel shows data as files: environments, memory, settings, devices.
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

    /// Returns the user with this name in /etc/passwd, or with this number.
    pub fn named(name: &str) -> Option<Self> {
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        name.parse().ok().or_else(|| user_id(&users, name)).map(Self::user)
    }

    /// Returns whether this process may salvage the files of this user: its own, or any user's if it runs as root.
    pub fn is_allowed(self) -> bool {
        self.user == self.salvager || self.salvager == ROOT
    }

    /// Returns whether a file of this owner is trusted. Root's files are, except when root salvages for another user:
    /// that user could make a hard link to one, and so choose what is delivered or deleted.
    fn trusts(self, owner: u32) -> bool {
        owner == self.user || owner == ROOT && self.user == self.salvager
    }
}

/// Returns the number of a user in a list of users (passwd(5)).
fn user_id(users: &str, name: &str) -> Option<u32> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let found = users.lines().map(fields).find(|fields| fields.first().is_some_and(|found| found == name))?;
    found.get(2)?.parse().ok()
}

/// Facts about an open file or folder.
#[derive(Clone, Copy, Debug)]
struct FileFacts {
    is_file: bool,
    owner: u32,
    mode: u32,
    names: u64,
}

impl FileFacts {
    fn of(metadata: &Metadata) -> Self {
        let names = metadata.nlink();
        Self { is_file: metadata.is_file(), owner: metadata.uid(), mode: metadata.mode(), names }
    }
}

/// Returns why a file is not trusted; `None` if it is.
fn mistrust_file(file: FileFacts, whose: FileOwner) -> Option<String> {
    if !file.is_file {
        return Some("it is not a regular file".into());
    }
    if !whose.trusts(file.owner) {
        return Some(format!("it belongs to user {}, not to user {}", file.owner, whose.user));
    }
    (file.mode & WRITABLE_FOR_OTHERS != 0)
        .then(|| format!("other users can write to it (mode {:03o}; chmod go-w)", file.mode & 0o777))
}

/// Returns why the files in a folder are not trusted; `None` if they are.
fn mistrust_folder(folder: FileFacts, whose: FileOwner) -> Option<String> {
    if folder.owner != ROOT && folder.owner != whose.user {
        return Some(format!("its folder belongs to user {}, not to user {}", folder.owner, whose.user));
    }
    let is_open = folder.mode & WRITABLE_FOR_OTHERS != 0 && folder.mode & STICKY == 0;
    is_open
        .then(|| format!("other users can replace it: its folder has mode {:04o} (chmod go-w)", folder.mode & 0o7777))
}

/// Returns why the file of an attachment is not trusted; `None` if it is.
fn mistrust_attachment(file: FileFacts, whose: FileOwner) -> Option<String> {
    match file {
        FileFacts { is_file: false, .. } => Some("it is not a regular file".into()),
        FileFacts { owner, .. } if owner != whose.user => {
            Some(format!("it belongs to user {owner}, not to user {}", whose.user))
        }
        // A hard link is how a file from elsewhere gets into a folder.
        FileFacts { names: 2.., .. } => Some("it has another name elsewhere (a hard link)".into()),
        _ => None,
    }
}

/// Why something was not opened.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is not trusted, and why.
    Untrusted(String),
    /// The operating system refused.
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

/// An open folder, reached without a link of another user.
#[derive(Debug)]
struct Folder {
    handle: File,
    /// Its path without links.
    path: PathBuf,
}

/// How the folders of a path are opened: on Linux without the permission to list them, which traversal does not need.
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

    /// Opens a file for reading, but not a link, a device, or a pipe, on which it would block.
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

    /// Renames the file with this name if it is still the file that was opened. A missing file is not an error.
    fn rename(&self, name: &OsStr, id: FileId, to: &OsStr) -> io::Result<()> {
        let found = match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            found => found?,
        };
        if FileId::of_stat(&found) != id {
            return Err(io::Error::other("another file has its name now"));
        }
        Ok(rustix::fs::renameat(&self.handle, name, &self.handle, to)?)
    }

    /// Deletes the file with this name if it is still the file that was opened.
    fn remove(&self, name: &OsStr, id: FileId) -> io::Result<()> {
        let found = match self.file(name) {
            Ok((_, metadata)) => FileId::of(&metadata),
            Err(Refusal::System(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(Refusal::System(error)) => return Err(error),
            Err(Refusal::Untrusted(reason)) => return Err(io::Error::other(reason)),
        };
        if found != id {
            return Err(io::Error::other("another file has its name now"));
        }
        Ok(unlinkat(&self.handle, name, AtFlags::empty())?)
    }
}

/// A file that passed the checks, with the files that SQLite keeps beside it.
#[derive(Debug)]
pub(crate) struct TrustedFile {
    pub(crate) file: File,
    folder: Arc<Folder>,
    name: OsString,
    whose: FileOwner,
    /// The files that belong to it, itself last.
    parts: Vec<(OsString, FileId)>,
}

impl TrustedFile {
    /// Opens a file if it is trusted.
    pub(crate) fn open(path: &Path, whose: FileOwner) -> Result<Self, Refusal> {
        let Some(name) = path.file_name() else { return Err(Refusal::Untrusted("it is not a regular file".into())) };
        let folder = Folder::open(path.parent().unwrap_or(Path::new("/")))?;
        let (file, metadata) = folder.file(name)?;
        if let Some(reason) = mistrust_file(FileFacts::of(&metadata), whose)
            .or(mistrust_folder(FileFacts::of(&folder.handle.metadata()?), whose))
        {
            return Err(Refusal::Untrusted(reason));
        }
        let parts = vec![(name.to_owned(), FileId::of(&metadata))];
        Ok(Self { file, folder: Arc::new(folder), name: name.to_owned(), whose, parts })
    }

    /// Opens the file with this suffix in its name, under the same rules; `None` if there is none.
    pub(crate) fn open_beside(&mut self, suffix: &str) -> Result<Option<File>, Refusal> {
        let mut name = self.name.clone();
        name.push(suffix);
        let (file, metadata) = match self.folder.file(&name) {
            Err(Refusal::System(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(Refusal::Untrusted(reason)) => return Err(Refusal::Untrusted(format!("{}: {reason}", name.display()))),
            result => result?,
        };
        if let Some(reason) = mistrust_file(FileFacts::of(&metadata), self.whose) {
            return Err(Refusal::Untrusted(format!("{}: {reason}", name.display())));
        }
        self.parts.insert(0, (name, FileId::of(&metadata)));
        Ok(Some(file))
    }

    /// Deletes the files that were opened, the database last, and then their folder if it is the SDK's and empty.
    ///
    /// # Errors
    ///
    /// The error of the operating system, with the name of the first file that was not deleted.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for (name, id) in &self.parts {
            let failed = |error| io::Error::other(format!("{}: {error}", self.folder.path.join(name).display()));
            self.folder.remove(name, *id).map_err(failed)?;
        }
        if self.is_in_folder_of_sdk() && self.remove_folder().is_err() {
            // A folder that is not empty has files of another program.
            tracing::debug!(target: "replay_manager", "the folder {} is kept: it cannot be removed", self.folder.path.display());
        }
        Ok(())
    }

    /// Renames the files that were opened, so that their names have `ending` behind the database's: its journals first,
    /// the database last. Returns the new name.
    ///
    /// # Errors
    ///
    /// The error of the operating system, with the name of the first file that was not renamed.
    pub(crate) fn set_aside(&self, ending: &str) -> io::Result<PathBuf> {
        let aside = |name: &OsStr| {
            let mut aside = self.name.clone();
            aside.push(ending);
            aside.push(OsStr::from_bytes(&name.as_encoded_bytes()[self.name.len()..]));
            aside
        };
        for (name, id) in &self.parts {
            let failed = |error| io::Error::other(format!("{}: {error}", self.folder.path.join(name).display()));
            // These hold no message.
            let is_spare =
                ["-shm", "-ballast"].iter().any(|suffix| name.as_encoded_bytes().ends_with(suffix.as_bytes()));
            match is_spare {
                true => self.folder.remove(name, *id),
                false => self.folder.rename(name, *id, &aside(name)),
            }
            .map_err(failed)?;
        }
        // Opened anew: the folder's own descriptor may only be for traversing it.
        File::open(&self.folder.path)?.sync_all()?;
        Ok(self.folder.path.join(aside(&self.name)))
    }

    /// Returns whether the folder has a name as the SDK gives it to its own (Python's `tempfile.mkdtemp`).
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

/// The folders from which files of attachments may be read.
#[derive(Debug)]
pub struct AttachmentFolders {
    whose: FileOwner,
    /// Where the SDK puts its copies.
    temporary: Vec<Arc<Folder>>,
    /// Other folders, with everything below them.
    named: Vec<Folder>,
}

/// Why the file of an attachment is not sent.
#[derive(Debug)]
pub enum AttachmentRefusal {
    /// A row may not name it, and why.
    Untrusted(String),
    /// It cannot be opened.
    Unreadable(io::Error),
}

/// The file of an attachment, open.
#[derive(Debug)]
pub struct AttachedFile {
    /// The open file.
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
    /// Deletes it if it is still the file that was opened. It is not an error if it is gone already.
    ///
    /// # Errors
    ///
    /// The error of the operating system, with the name of the file.
    pub fn remove(&self) -> io::Result<()> {
        let failed = |error| io::Error::other(format!("{}: {error}", self.folder.path.join(&self.name).display()));
        self.folder.remove(&self.name, self.id).map_err(failed)
    }
}

impl AttachmentFolders {
    /// Returns the folders for the attachments of a file: the SDK's temporary folder, which is the parent of the file's
    /// own folder, our temporary folder, and `named`.
    pub(super) fn of(file: &TrustedFile, temp_dir: &Path, named: &[PathBuf]) -> Self {
        let above = file.folder.path.parent().filter(|_| file.is_in_folder_of_sdk());
        // If a folder cannot be opened, neither can a file in it.
        let temporary = above.into_iter().chain([temp_dir]).filter_map(|path| Folder::open(path).ok().map(Arc::new));
        let named = named.iter().filter_map(|path| Folder::open(path).ok());
        Self { whose: file.whose, temporary: temporary.collect(), named: named.collect() }
    }

    /// Opens the file that a row names.
    ///
    /// # Errors
    ///
    /// [`AttachmentRefusal`], before any of it was read.
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
        // The error reveals nothing about files elsewhere, not even whether they exist.
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
        if let Some(reason) = mistrust_attachment(FileFacts::of(&metadata), self.whose) {
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

/// Returns whether an open file is on a virtual file system of the kernel, under any mount point.
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
    // A file whose file system is unknown is not trusted.
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

    const fn entry(owner: u32, mode: u32) -> FileFacts {
        FileFacts { is_file: true, owner, mode, names: 1 }
    }

    #[test]
    fn a_file_is_trusted_if_no_other_user_can_choose_its_content() {
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
            (mine, FileFacts { is_file: false, ..entry(ME, 0o600) }, entry(ME, 0o700), false),
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
            (FileFacts { names: 2, ..entry(ME, 0o600) }, false),
            (FileFacts { is_file: false, ..entry(ME, 0o600) }, false),
        ] {
            assert_eq!(mistrust_attachment(file, mine).is_none(), is_trusted, "{file:?}");
        }
        assert!(FileOwner { user: ME, salvager: ROOT }.is_allowed() && mine.is_allowed());
        assert!(!FileOwner { user: STRANGER, salvager: ME }.is_allowed());
        assert!(!FileOwner { user: ROOT, salvager: ME }.is_allowed());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn virtual_files_of_the_kernel_are_recognised() {
        let open = |path: &str| File::open(path).expect("it is there");
        assert!(is_kernel_file(&open("/proc/self/environ")));
        assert!(!is_kernel_file(&open("/proc/self/exe")), "the program itself is a file");
    }
}
