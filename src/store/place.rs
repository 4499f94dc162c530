//! The path of an existing or future store: may this user write there, how much space is free, and has another user
//! set a trap along it? Creates nothing.
//!
//! # Traps
//!
//! In a folder that others may write to (`/tmp`, a shared volume), another user can plant a link, a folder or a file
//! where a store is expected: messages would be written to a file of theirs, or over a file of ours. So every entry on
//! the path in such a folder has to belong to this user, to root, or to the owner of the folder, who could do anything
//! there anyway. That is the kernel's rule for links in sticky folders (`fs.protected_symlinks`), extended to folders
//! that are not sticky, and to files and folders. A link in the user's own folder keeps working, for example to another
//! disk.
//!
//! Root accepts files and folders of others, if it only reads or delivers from an existing store, but not their
//! links.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, access, statvfs};

use super::limits::OpenMode;

/// Suffixes of files beside a SQLite file that are part of it, or ours: another user's ballast could become
/// the log, and their flag would keep the store unproven forever.
const BESIDE: [&str; 5] = ["-wal", "-shm", "-journal", "-ballast", "-unproven"];
/// Maximum number of links that are followed; the system's own limit.
const LINKS_MAX: usize = 40;
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;
/// The folder that opik-offline creates for its store in the user's data folder.
const OWN_FOLDER: &str = "opik-offline";

/// The relevant facts about an entry on the way to a store.
#[derive(Clone, Copy, Debug)]
struct FolderEntry {
    is_link: bool,
    owner: u32,
    mode: u32,
}

impl FolderEntry {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { is_link: metadata.is_symlink(), owner: metadata.uid(), mode: metadata.mode() }
    }
}

/// Something on the way to a store that another user may have put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    /// The entry.
    pub path: PathBuf,
    /// Why it is not trusted.
    pub reason: String,
}

/// Returns why this user can't trust an entry of a folder, if so.
fn mistrust(entry: FolderEntry, folder: FolderEntry, user: u32, mode: OpenMode) -> Option<&'static str> {
    const WRITABLE_FOR_OTHERS: u32 = 0o022;
    const ROOT: u32 = 0;
    let is_shared = folder.mode & WRITABLE_FOR_OTHERS != 0;
    let is_trusted = [user, ROOT, folder.owner].contains(&entry.owner);
    if !is_shared || is_trusted {
        return None;
    }
    match (entry.is_link, user == ROOT && mode == OpenMode::Existing) {
        (true, _) => Some("it is a symbolic link that another user made in a folder that others may write to"),
        (false, true) => None,
        (false, false) => Some("it belongs to another user, in a folder that others may write to"),
    }
}

/// Checks that everything on the way to a store may be trusted, as the module's head states, and returns where it
/// really is. Entries that don't exist yet, or can't be examined, are left to the process that opens the store.
///
/// # Errors
///
/// [`Trap`], which names what was found.
pub(crate) fn vet(path: &Path, mode: OpenMode) -> Result<PathBuf, Trap> {
    let user = rustix::process::geteuid().as_raw();
    let at = resolve(path, mode)?;
    let Some(folder) = at.parent().and_then(|folder| fs::symlink_metadata(folder).ok()) else { return Ok(at) };
    for beside in beside(&at) {
        let Ok(entry) = fs::symlink_metadata(&beside) else { continue };
        judge(&beside, &entry, &folder, user, mode)?;
        if !entry.is_file() {
            let reason = "it is not a regular file, and part of the store would be written to it".into();
            return Err(Trap { path: beside, reason });
        }
    }
    Ok(at)
}

/// Follows the links on the way to a file or folder as far as they may be trusted, and returns where it really is.
///
/// # Errors
///
/// [`Trap`], which names what was found.
pub(crate) fn resolve(path: &Path, mode: OpenMode) -> Result<PathBuf, Trap> {
    let user = rustix::process::geteuid().as_raw();
    let Ok(absolute) = std::path::absolute(path) else { return Ok(path.to_owned()) };
    let mut ahead: VecDeque<OsString> = parts(&absolute);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let (Ok(entry), Ok(folder)) = (fs::symlink_metadata(&next), fs::symlink_metadata(&at)) else {
            at = next;
            continue;
        };
        judge(&next, &entry, &folder, user, mode)?;
        if !entry.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        let Ok(target) = fs::read_link(&next) else { return Ok(absolute) };
        if links > LINKS_MAX {
            return Ok(absolute);
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for part in parts(&target).into_iter().rev() {
            ahead.push_front(part);
        }
    }
    Ok(at)
}

fn judge(path: &Path, entry: &fs::Metadata, folder: &fs::Metadata, user: u32, mode: OpenMode) -> Result<(), Trap> {
    match mistrust(FolderEntry::of(entry), FolderEntry::of(folder), user, mode) {
        None => Ok(()),
        Some(reason) => Err(Trap { path: path.to_owned(), reason: reason.to_owned() }),
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

fn beside(path: &Path) -> impl Iterator<Item = PathBuf> {
    BESIDE.into_iter().map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    })
}

/// Removes the permissions of other users on an existing store: on its files, and on the folder that opik-offline
/// created for it. Other folders keep their permissions; the files in them are protected nonetheless.
///
/// # Errors
///
/// The file that others can still access, and the system's error.
pub(crate) fn tighten(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    let user = rustix::process::geteuid().as_raw();
    for file in beside(path).chain([path.to_owned()]) {
        let Ok(metadata) = fs::symlink_metadata(&file) else { continue };
        close(&file, &metadata, 0o600).map_err(|error| (file, error))?;
    }
    let folder = path.parent().filter(|folder| folder.file_name().is_some_and(|name| name == OWN_FOLDER));
    if let Some(folder) = folder
        && let Ok(metadata) = fs::symlink_metadata(folder)
        && metadata.uid() == user
    {
        close(folder, &metadata, 0o700).map_err(|error| (folder.to_owned(), error))?;
    }
    Ok(())
}

fn close(path: &Path, metadata: &fs::Metadata, mode: u32) -> io::Result<()> {
    let found = metadata.mode() & 0o777;
    if found & OTHERS == 0 {
        return Ok(());
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        // Removed by a process that closed the store a moment ago.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            let path = path.display();
            tracing::warn!(target: "db_manager", "{path} was open to other users ({found:03o}) and is now closed ({mode:03o})");
            Ok(())
        }
    }
}

/// The properties of a store's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file, or the nearest existing folder above it.
    pub found: PathBuf,
    /// Whether this user may write: the file, or into the folder.
    pub is_writable: bool,
    /// Free bytes for this user on its disk.
    pub free_bytes: u64,
}

/// Examines a store's path.
///
/// # Errors
///
/// The system's error if it can't be examined.
pub(crate) fn look_at(path: &Path) -> io::Result<Place> {
    let absolute = std::path::absolute(path)?;
    let found = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
    let needed = if found.is_dir() { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
    let is_blocked = found != absolute && !found.is_dir();
    let disk = statvfs(&found)?;
    Ok(Place {
        is_writable: !is_blocked && access(&found, needed).is_ok(),
        free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        found,
    })
}

/// Returns why no store can be at this path, whatever becomes of the disk and of permissions; `None` if one may be.
pub(crate) fn unfit(path: &Path) -> Option<String> {
    // Of `folder/`, too, which need not exist.
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir() {
        return Some("it is a directory".to_owned());
    }
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Some("it is not a file".to_owned());
    }
    let above = path.ancestors().skip(1).find(|above| !above.as_os_str().is_empty() && above.exists())?;
    (!above.is_dir()).then(|| format!("{} is not a directory", above.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = 1000;
    const STRANGER: u32 = 1001;
    const ROOT: u32 = 0;

    #[test]
    fn a_path_that_can_hold_no_file_is_unfit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "").expect("it can be written");
        fs::create_dir(path("sub")).expect("it can be made");
        for (name, expected) in [
            ("file", None),
            ("new.db", None),
            ("sub/new.db", None),
            ("not/there/new.db", None),
            ("sub", Some("it is a directory".to_owned())),
            ("new/", Some("it is a directory".to_owned())),
            ("file/x/new.db", Some(format!("{} is not a directory", path("file").display()))),
        ] {
            assert_eq!(unfit(&path(name)), expected, "{name}");
        }
        assert_eq!(unfit(Path::new("new.db")), None);
        assert_eq!(unfit(Path::new("/dev/null")), Some("it is not a file".to_owned()));
    }

    #[test]
    fn what_another_user_put_into_a_shared_folder_is_a_trap() {
        let folder = |owner, mode| FolderEntry { is_link: false, owner, mode };
        let (sticky, open, group) = (folder(ROOT, 0o1777), folder(ROOT, 0o777), folder(ROOT, 0o775));
        let (theirs, mine) = (folder(STRANGER, 0o777), folder(ME, 0o700));
        for (owner, within, user, is_link_trusted, is_file_trusted) in [
            (STRANGER, sticky, ME, false, false),
            (STRANGER, open, ME, false, false),
            (STRANGER, group, ME, false, false),
            (STRANGER, sticky, ROOT, false, false),
            (ME, sticky, ME, true, true),
            (ROOT, sticky, ME, true, true),
            // The owner of a folder can do anything in it.
            (STRANGER, theirs, ME, true, true),
            // Only root can have created it.
            (ME, mine, ME, true, true),
            (STRANGER, mine, ME, true, true),
        ] {
            let trusted =
                |is_link, mode| mistrust(FolderEntry { is_link, owner, mode: 0o777 }, within, user, mode).is_none();
            let found = (trusted(true, OpenMode::CreateIfMissing), trusted(false, OpenMode::CreateIfMissing));
            assert_eq!(found, (is_link_trusted, is_file_trusted), "{owner} in {within:?} for {user}");
            assert_eq!(trusted(true, OpenMode::Existing), is_link_trusted, "root follows no trap either");
            assert_eq!(trusted(false, OpenMode::Existing), is_file_trusted || user == ROOT);
        }
    }

    #[test]
    fn a_users_own_links_are_followed_to_the_store() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().canonicalize().expect("it is there");
        fs::create_dir_all(folder.join("disk/deep")).expect("folders");
        std::os::unix::fs::symlink("disk/deep/../deep", folder.join("data")).expect("a link");
        std::os::unix::fs::symlink(folder.join("data/there.db"), folder.join("store.db")).expect("a link");
        for mode in [OpenMode::Existing, OpenMode::CreateIfMissing] {
            assert_eq!(vet(&folder.join("store.db"), mode), Ok(folder.join("disk/deep/there.db")));
        }
        // A loop of links is reported when it is opened.
        std::os::unix::fs::symlink("loop", folder.join("loop")).expect("a link");
        assert!(vet(&folder.join("loop"), OpenMode::Existing).is_ok());
        // SQLite would write its log through it.
        std::os::unix::fs::symlink("elsewhere", folder.join("disk/deep/there.db-wal")).expect("a link");
        let trap = vet(&folder.join("store.db"), OpenMode::Existing).expect_err("its log is a link");
        assert_eq!(trap.path, folder.join("disk/deep/there.db-wal"));
    }

    #[test]
    fn a_place_is_the_nearest_thing_that_is_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = look_at(&folder.path().join("not/yet/there.db")).expect("it can be looked at");
        assert_eq!((&*place.found, place.is_writable), (folder.path(), true));
        assert!(place.free_bytes > 0);
        assert!(!folder.path().join("not").exists(), "looking makes nothing");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert_eq!(look_at(&file).expect("it can be looked at").found, file);
        let below = look_at(&file.join("below.db")).expect("it can be looked at");
        assert!(!below.is_writable, "a file is no folder");
    }
}
