//! The private folder of a background agent.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::error::BackgroundError;

/// How much of a port file is read, in bytes.
const RECORD_BYTES_MAX: u64 = 64 * 1024;
/// A log that is larger than this is renamed when the next agent starts.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// A folder that only this user can enter.
#[derive(Debug)]
pub(super) struct RuntimeFolder {
    path: PathBuf,
}

impl RuntimeFolder {
    /// Opens `opik-offline/agents/NAME` in the folder for the state of programs, and creates it if it is not there.
    pub(super) fn open(state_dir: &Path, name: &str) -> Result<Self, BackgroundError> {
        let own = state_dir.join("opik-offline");
        let agents = own.join("agents");
        let path = agents.join(name);
        let unusable = |error: io::Error| BackgroundError::Unusable { path: path.clone(), reason: error.to_string() };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(unusable)?;
        for folder in [&own, &agents, &path] {
            ensure_private(folder)?;
        }
        Ok(Self { path })
    }

    /// Takes the lock, unless somebody holds it.
    pub(super) fn try_lock(&self) -> Result<Option<File>, BackgroundError> {
        let path = self.path.join("lock");
        let file = open_own(&path, OpenOptions::new().read(true).write(true).create(true))?;
        Ok(lock(&file, &path)?.then_some(file))
    }

    /// Ensures that an inherited file is the lock, and that this process holds it.
    pub(super) fn adopt_lock(&self, inherited: impl AsFd) -> Result<(), BackgroundError> {
        let path = self.path.join("lock");
        let known = std::fs::metadata(&path).map_err(|error| unusable(&path, &error))?;
        let found = rustix::fs::fstat(&inherited).map_err(|errno| unusable(&path, &errno.into()))?;
        #[allow(clippy::unnecessary_cast, reason = "the type differs between systems")]
        let is_it = (found.st_dev as u64, found.st_ino as u64) == (known.dev(), known.ino());
        match is_it && lock(inherited, &path)? {
            true => Ok(()),
            false => Err(BackgroundError::NoStarter),
        }
    }

    /// Returns the text of the port file, if there is one.
    pub(super) fn read_record(&self) -> Result<Option<String>, BackgroundError> {
        let path = self.path.join("agent.json");
        let Some(file) = open_own_if_there(&path, OpenOptions::new().read(true))? else { return Ok(None) };
        let mut text = String::new();
        match file.take(RECORD_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(unusable(&path, &error)),
        }
    }

    /// Replaces the port file. Only the holder of the lock may call it.
    pub(super) fn write_record(&self, text: &str) -> Result<(), BackgroundError> {
        let (path, new) = (self.path.join("agent.json"), self.path.join("agent.json.new"));
        // Of a process that was killed between the two steps.
        let _ = std::fs::remove_file(&new);
        let mut file = open_own(&new, OpenOptions::new().write(true).create_new(true))?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.and_then(|()| std::fs::rename(&new, &path)).map_err(|error| unusable(&path, &error))
    }

    /// Returns the path of the log.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("agent.log")
    }

    /// Opens the log for a new agent, and returns its length. Only the holder of the lock may call it.
    pub(super) fn open_log(&self) -> Result<(File, u64), BackgroundError> {
        let path = self.log();
        if std::fs::symlink_metadata(&path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
            std::fs::rename(&path, self.path.join("agent.log.old")).map_err(|error| unusable(&path, &error))?;
        }
        let file = open_own(&path, OpenOptions::new().append(true).create(true))?;
        let length = file.metadata().map_err(|error| unusable(&path, &error))?.len();
        Ok((file, length))
    }
}

/// Takes the lock of an open file; returns whether it has it.
fn lock(file: impl AsFd, path: &Path) -> Result<bool, BackgroundError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(unusable(path, &errno.into())),
    }
}

fn unusable(path: &Path, error: &io::Error) -> BackgroundError {
    BackgroundError::Unusable { path: path.to_owned(), reason: error.to_string() }
}

fn untrusted(path: &Path, reason: impl Into<String>) -> BackgroundError {
    BackgroundError::Untrusted { path: path.to_owned(), reason: reason.into() }
}

/// Opens a file that belongs to this user alone and has one name; links are not followed.
fn open_own(path: &Path, options: &mut OpenOptions) -> Result<File, BackgroundError> {
    open_own_if_there(path, options)?.ok_or_else(|| unusable(path, &io::ErrorKind::NotFound.into()))
}

/// The same; `None` if it does not exist. Asked of the call that opens it: others create and replace it meanwhile.
fn open_own_if_there(path: &Path, options: &mut OpenOptions) -> Result<Option<File>, BackgroundError> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let file = match options.mode(0o600).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, &error)),
    };
    let found = file.metadata().map_err(|error| unusable(path, &error))?;
    check_owner(path, &found)?;
    if !found.is_file() || found.nlink() > 1 {
        return Err(untrusted(path, "it is not a file, or has another name as well"));
    }
    Ok(Some(file))
}

/// Ensures that a folder belongs to this user and nobody else can enter it. A link in its place is refused.
fn ensure_private(path: &Path) -> Result<(), BackgroundError> {
    let found = std::fs::symlink_metadata(path).map_err(|error| unusable(path, &error))?;
    if !found.is_dir() {
        return Err(untrusted(path, "it is not a folder"));
    }
    check_owner(path, &found)?;
    if found.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|error| unusable(path, &error))?;
    }
    Ok(())
}

fn check_owner(path: &Path, found: &Metadata) -> Result<(), BackgroundError> {
    let own = geteuid().as_raw();
    match found.uid() == own {
        true => Ok(()),
        false => Err(untrusted(path, format!("it belongs to user {}, and this process runs as {own}", found.uid()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(state: &Path) -> RuntimeFolder {
        RuntimeFolder::open(state, "name").expect("it can be created")
    }

    #[test]
    fn the_folder_and_its_files_are_private_even_if_they_were_not() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let own = state.path().join("opik-offline");
        std::fs::create_dir(&own).expect("a folder");
        std::fs::set_permissions(&own, Permissions::from_mode(0o777)).expect("it is ours");
        let folder = open(state.path());
        folder.write_record("{}").expect("it can be written");
        drop(folder.open_log().expect("it can be opened"));
        let _lock = folder.try_lock().expect("it can be locked");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!((mode(&own), mode(&folder.path)), (0o700, 0o700));
        for file in ["lock", "agent.json", "agent.log"] {
            assert_eq!(mode(&folder.path.join(file)), 0o600, "{file}: the secret is readable by others");
        }
    }

    #[test]
    fn links_in_place_of_the_folder_and_its_files_are_refused() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let folder = open(state.path());
        let other = state.path().join("other");
        std::fs::write(&other, "precious").expect("it can be written");
        for name in ["lock", "agent.json", "agent.log"] {
            std::os::unix::fs::symlink(&other, folder.path.join(name)).expect("a link");
        }
        assert!(folder.try_lock().is_err() && folder.read_record().is_err() && folder.open_log().is_err());
        folder.write_record("{}").expect("it replaces the link");
        assert_eq!(std::fs::read_to_string(&other).expect("it is there"), "precious");
        std::fs::remove_dir_all(state.path().join("opik-offline/agents")).expect("it is ours");
        std::os::unix::fs::symlink(state.path(), state.path().join("opik-offline/agents")).expect("a link");
        assert!(RuntimeFolder::open(state.path(), "name").is_err(), "somebody else may own what is behind it");
    }

    #[test]
    fn the_lock_passes_with_the_open_file_and_ends_with_it() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let folder = open(state.path());
        let lock = folder.try_lock().expect("it works").expect("nobody has it");
        let passed_on = lock.try_clone().expect("a second descriptor, as a child has it");
        drop(lock);
        assert!(folder.try_lock().expect("it works").is_none(), "two agents would start");
        folder.adopt_lock(&passed_on).expect("it is the lock");
        let other = File::open(state.path()).expect("a folder");
        assert!(matches!(folder.adopt_lock(&other), Err(BackgroundError::NoStarter)));
        drop(passed_on);
        assert!(folder.try_lock().expect("it works").is_some(), "a killed agent would hold it for ever");
    }
}
