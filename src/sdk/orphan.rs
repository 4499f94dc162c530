//! Orphaned stores: where processes of the Python SDK left them, and whether a process still uses one.
//!
//! The SDK has its store in a folder of its own, `<temp dir>/tmpXXXXXXXX/opik_messages.db`, as long as its process
//! lives. It has the file open all that time, and locks it only within a statement. So an open descriptor tells a live
//! store from an orphaned one, and a lock does not. A second reader that locks a live store for some seconds makes the
//! SDK abandon its store (protocol dossier, section e): nothing here ever opens one.
//!
//! Only processes that this user may inspect are visible, and only those of this machine: two containers that share a
//! temporary folder do not see each other's processes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::store::os::FileId;

/// The name of the SDK's store in its folder.
pub const SDK_STORE_NAME: &str = "opik_messages.db";
/// The prefix of the names of those folders (Python's `tempfile.mkdtemp`).
const FOLDER_PREFIX: &str = "tmp";

/// The process that has a file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No process.
    Nobody,
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// Its name; empty if unknown.
        name: String,
    },
    /// It cannot be found out, and why.
    Unknown(String),
}

/// A store that no process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The time of its last change, in milliseconds since the Unix epoch.
    pub changed_at_ms: i64,
    /// Identifies it until its next change.
    pub mark: OrphanMark,
}

/// Identifies one version of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrphanMark(FileId, u64, i64);

/// Returns the orphaned SDK stores of this user in a temporary folder, the oldest first.
///
/// Files that cannot be inspected are left out: they could not be salvaged either.
pub fn find(temp_dir: &Path) -> Vec<Orphan> {
    let Ok(entries) = fs::read_dir(temp_dir) else { return Vec::new() };
    let user = rustix::process::geteuid().as_raw();
    let mut found: Vec<Orphan> = Vec::new();
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(FOLDER_PREFIX.as_bytes()) {
            continue;
        }
        // Neither may be a link: every user can write to a temporary folder.
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

/// Returns the process that has a file open. The descriptor `file` itself, which asks, does not count.
pub(crate) fn holder_of(file: &fs::File, path: &Path) -> Holder {
    let Ok(metadata) = file.metadata() else { return Holder::Unknown("it cannot be inspected".into()) };
    let own = OwnDescriptor { pid: std::process::id(), descriptor: file.as_raw_fd() };
    let found = holders(&[FileId::of(&metadata)], path, Some(own)).pop().unwrap_or(Holder::Nobody);
    let user = rustix::process::geteuid().as_raw();
    match found {
        Holder::Nobody if metadata.uid() != user && user != 0 => {
            Holder::Unknown("it belongs to another user, whose processes cannot be inspected".into())
        }
        found => found,
    }
}

/// A descriptor that is open only to ask which other process has one.
#[derive(Clone, Copy)]
struct OwnDescriptor {
    pid: u32,
    descriptor: RawFd,
}

fn changed_at_ms(metadata: &fs::Metadata) -> i64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the process that has each of these files open. `path` is one of them, for systems that only know names.
fn holders(files: &[FileId], path: &Path, own: Option<OwnDescriptor>) -> Vec<Holder> {
    match in_proc(files, own) {
        Ok(open) => files.iter().map(|file| open.get(file).cloned().unwrap_or(Holder::Nobody)).collect(),
        Err(_) if files.len() == 1 => vec![by_lsof(path, own)],
        Err(_) => vec![Holder::Unknown("this system does not show which files are open".into()); files.len()],
    }
}

/// Searches the open descriptors of every visible process (Linux).
fn in_proc(files: &[FileId], own: Option<OwnDescriptor>) -> io::Result<HashMap<FileId, Holder>> {
    let proc = Path::new("/proc");
    // Without our own process in it, this is not Linux's /proc.
    fs::read_dir(proc.join("self/fd"))?;
    let mut open = HashMap::new();
    for process in fs::read_dir(proc)?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Fails for a process that has ended since, or that belongs to another user.
        let Ok(handles) = fs::read_dir(process.path().join("fd")) else { continue };
        let own = own.filter(|own| own.pid == pid).map(|own| own.descriptor.to_string());
        for handle in handles.flatten() {
            if own.as_deref().is_some_and(|own| handle.file_name() == own) {
                continue;
            }
            // Reading the link of a descriptor is cheap; only those of files are examined further.
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

/// Asks `lsof`, for systems without /proc.
fn by_lsof(path: &Path, own: Option<OwnDescriptor>) -> Holder {
    match std::process::Command::new("lsof").arg("-t").arg("--").arg(path).output() {
        Ok(output) => {
            let pids = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut pids = pids.lines().filter_map(|line| line.trim().parse().ok());
            match pids.find(|pid| own.is_none_or(|own| own.pid != *pid)) {
                Some(pid) => Holder::Process { pid, name: String::new() },
                None => Holder::Nobody,
            }
        }
        Err(_) => Holder::Unknown("this system has neither /proc nor lsof to show which files are open".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_not_an_orphan() {
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
        let own = fs::File::open(&path).expect("a file");
        assert!(matches!(holder_of(&own, &path), Holder::Process { pid: found, .. } if found == pid));
        drop(held);
        assert_eq!(holder_of(&own, &path), Holder::Nobody);
        drop(own);
        assert_eq!(names().len(), 2);
    }
}
