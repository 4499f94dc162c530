//! Stores that processes of the Python SDK left behind: where they lie, and whether a process still works with one.
//!
//! The SDK keeps its store in a folder of its own, `<temp dir>/tmpXXXXXXXX/opik_messages.db`, for as long as its process
//! lives; it holds the file open all that time and locks it only within a statement. So an open file handle tells a living
//! store from an orphaned one, and a lock tells nothing. A second reader that locks a living store for some seconds makes
//! the SDK give its store up (protocol dossier, section e): nothing here ever opens one.
//!
//! Only processes that this user may look at can be seen, and only those of this machine: two containers that share a
//! temporary folder don't see each other's.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::store::sqlite::FileId;

/// The name of the SDK's store in its folder.
pub const SDK_STORE_NAME: &str = "opik_messages.db";
/// What the names of those folders start with (Python's `tempfile.mkdtemp`).
const FOLDER_PREFIX: &str = "tmp";

/// Who works with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No living process has it open.
    Nobody,
    /// This process has.
    Process {
        /// Its id.
        pid: u32,
        /// Its name, as far as it is known.
        name: String,
    },
    /// That can't be seen, and why.
    Unknown(String),
}

/// A store that no process works with any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was changed last, in milliseconds since the Unix epoch.
    pub changed_at_ms: i64,
    /// Tells it from any other file, and from itself after a change.
    pub mark: OrphanMark,
}

/// Tells one state of one file from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrphanMark(FileId, u64, i64);

/// Returns the orphaned SDK stores of this user below a temporary folder, the oldest first.
///
/// What can't be looked at is left out: it is nobody's orphan that could be salvaged.
pub fn find(temp_dir: &Path) -> Vec<Orphan> {
    let Ok(entries) = fs::read_dir(temp_dir) else { return Vec::new() };
    let user = rustix::process::geteuid().as_raw();
    let mut found: Vec<Orphan> = Vec::new();
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(FOLDER_PREFIX.as_bytes()) {
            continue;
        }
        // Neither may be a link: a temporary folder is open to everybody.
        let folder = entry.path();
        let is_ours = |metadata: &fs::Metadata| metadata.uid() == user;
        if !fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_dir() && is_ours(&metadata)) {
            continue;
        }
        let path = folder.join(SDK_STORE_NAME);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let Some(file) = FileId::at(&path).filter(|_| metadata.is_file() && is_ours(&metadata)) else { continue };
        let changed_at_ms = changed_at_ms(&metadata);
        let mark = OrphanMark(file, metadata.len(), changed_at_ms);
        found.push(Orphan { path, bytes: metadata.len(), changed_at_ms, mark });
    }
    if found.is_empty() {
        return found;
    }
    let holders = holders(&found.iter().map(|orphan| orphan.mark.0).collect::<Vec<_>>(), &found[0].path, None);
    let mut holders = holders.into_iter();
    found.retain(|_| holders.next() == Some(Holder::Nobody));
    found.sort_by(|a, b| (a.changed_at_ms, &a.path).cmp(&(b.changed_at_ms, &b.path)));
    found
}

/// Returns who works with an open file, which is at this path. That this process has it open for the question does not count.
pub(super) fn holder_of(file: &fs::File, path: &Path) -> Holder {
    let Ok(metadata) = file.metadata() else { return Holder::Unknown("it can't be looked at".into()) };
    let asking = Asking { pid: std::process::id(), descriptor: file.as_raw_fd() };
    let found = holders(&[FileId::of(&metadata)], path, Some(asking)).pop().unwrap_or(Holder::Nobody);
    let user = rustix::process::geteuid().as_raw();
    match found {
        Holder::Nobody if metadata.uid() != user && user != 0 => {
            Holder::Unknown("it belongs to another user, whose processes can't be looked at".into())
        }
        found => found,
    }
}

/// An open descriptor that is there only to ask who else has one.
#[derive(Clone, Copy)]
struct Asking {
    pid: u32,
    descriptor: RawFd,
}

fn changed_at_ms(metadata: &fs::Metadata) -> i64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Returns who has each of these files open; `path` is one of them, for systems that have to be asked by name.
fn holders(files: &[FileId], path: &Path, asking: Option<Asking>) -> Vec<Holder> {
    match in_proc(files, asking) {
        Ok(open) => files.iter().map(|file| open.get(file).cloned().unwrap_or(Holder::Nobody)).collect(),
        Err(_) if files.len() == 1 => vec![by_lsof(path, asking)],
        Err(_) => vec![Holder::Unknown("this system does not tell which files are open".into()); files.len()],
    }
}

/// Looks through the open files of every process that can be seen (Linux).
fn in_proc(files: &[FileId], asking: Option<Asking>) -> io::Result<HashMap<FileId, Holder>> {
    let proc = Path::new("/proc");
    // Without our own process in it this is no /proc as we know it.
    fs::read_dir(proc.join("self/fd"))?;
    let mut open = HashMap::new();
    for process in fs::read_dir(proc)?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that has ended since, or that is another user's.
        let Ok(handles) = fs::read_dir(process.path().join("fd")) else { continue };
        let own = asking.filter(|asking| asking.pid == pid).map(|asking| asking.descriptor.to_string());
        for handle in handles.flatten() {
            if own.as_deref().is_some_and(|own| handle.file_name() == own) {
                continue;
            }
            // Asking what a handle leads to is cheap; only files are looked at closer.
            if !fs::read_link(handle.path()).is_ok_and(|target| target.is_absolute()) {
                continue;
            }
            let Some(file) = FileId::at(&handle.path()).filter(|file| files.contains(file)) else { continue };
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default().trim().to_owned();
            open.insert(file, Holder::Process { pid, name });
        }
    }
    Ok(open)
}

/// Asks `lsof`, where there is no /proc.
fn by_lsof(path: &Path, asking: Option<Asking>) -> Holder {
    match std::process::Command::new("lsof").arg("-t").arg("--").arg(path).output() {
        Ok(output) => {
            let pids = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut pids = pids.lines().filter_map(|line| line.trim().parse().ok());
            match pids.find(|pid| asking.is_none_or(|asking| asking.pid != *pid)) {
                Some(pid) => Holder::Process { pid, name: String::new() },
                None => Holder::Nobody,
            }
        }
        Err(_) => Holder::Unknown("this system has neither /proc nor lsof to tell which files are open".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_process_holds_is_no_orphan() {
        let temp = tempfile::tempdir().expect("a folder");
        for folder in ["tmpheld", "tmpleft", "other"] {
            fs::create_dir(temp.path().join(folder)).expect("a folder");
            fs::write(temp.path().join(folder).join(SDK_STORE_NAME), b"x").expect("a file");
        }
        std::os::unix::fs::symlink(temp.path().join("other"), temp.path().join("tmplink")).expect("a link");
        let held = fs::File::open(temp.path().join("tmpheld").join(SDK_STORE_NAME)).expect("a file");
        let names = || find(temp.path()).into_iter().map(|orphan| orphan.path).collect::<Vec<_>>();
        assert_eq!(names(), [temp.path().join("tmpleft").join(SDK_STORE_NAME)]);
        let pid = std::process::id();
        let path = temp.path().join("tmpheld").join(SDK_STORE_NAME);
        let asking = fs::File::open(&path).expect("a file");
        assert!(matches!(holder_of(&asking, &path), Holder::Process { pid: found, .. } if found == pid));
        drop(held);
        assert_eq!(holder_of(&asking, &path), Holder::Nobody);
        drop(asking);
        assert_eq!(names().len(), 2);
    }
}
