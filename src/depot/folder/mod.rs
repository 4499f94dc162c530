//! A depot in a folder: for tests, for one machine, and for a shared file system.
//!
//! An object is a file. It is written aside, synced and then linked (create) or renamed (swap) to its name, and the
//! folder is synced, so a name never shows half of an object. Linking fails if the name exists, which decides between
//! creators on any file system. Swaps and deletes of a name hold a lock file, so two never decide by the same version.
//!
//! The limits: it is as durable as its file system. On NFS the locks are those of the server (version 4, or a lock
//! daemon that works), and the server must sync before it answers (export option `sync`). File systems without hard
//! links or locks are refused by [`super::prove()`]. Nobody is kept out but by the permissions of the folder.

mod files;
mod walk;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::files::{Aside, NameLock, make_folders, sync_folder, version};
use super::error::DepotError;
use super::name::Name;
use super::{Created, Depot, DepotDescription, Entry, OBJECT_BYTES_MAX, Version};

/// A depot in a folder.
#[derive(Debug)]
pub struct FolderDepot {
    root: PathBuf,
    /// The longest wait for another process's lock.
    timeout: Duration,
}

/// Attempts to create an object while another process removes its empty folder.
const FOLDER_ATTEMPTS: u32 = 10;

impl FolderDepot {
    /// Opens a depot in a folder that exists. It is not created: a missing one may be a volume that is not mounted.
    ///
    /// # Errors
    ///
    /// [`DepotError::Missing`] if there is no such folder.
    pub fn open(root: &Path, timeout: Duration) -> Result<Self, DepotError> {
        let depot = Self { root: root.to_owned(), timeout };
        match fs::metadata(root) {
            Ok(found) if found.is_dir() => Ok(depot),
            Ok(_) => Err(DepotError::Missing { at: depot.at(), reason: "it is not a folder".to_owned() }),
            Err(error) => Err(depot.failure("read", &error)),
        }
    }

    fn at(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Returns an error of an operation after which nothing has changed.
    fn failure(&self, action: &'static str, error: &io::Error) -> DepotError {
        let (at, reason) = (self.at(), words(error));
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => DepotError::Missing { at, reason },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                DepotError::NotAuthorised { at, action, reason }
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DepotError::Full { at, reason },
            ErrorKind::Unsupported | ErrorKind::CrossesDevices => {
                let reason = format!("its file system lacks what a depot needs: {reason}");
                DepotError::Unusable { at, reason }
            }
            ErrorKind::IsADirectory => {
                DepotError::Unusable { at, reason: format!("a folder has the name of an object: {reason}") }
            }
            _ => DepotError::Unreachable { at, reason },
        }
    }

    fn unknown(&self, name: &Name, error: &io::Error) -> DepotError {
        DepotError::UnknownOutcome { at: self.at(), name: name.clone(), reason: words(error) }
    }

    fn check_size(&self, name: &Name, bytes: &[u8]) -> Result<(), DepotError> {
        if bytes.len() <= OBJECT_BYTES_MAX {
            return Ok(());
        }
        Err(DepotError::TooLarge { at: self.at(), name: name.clone(), bytes: bytes.len(), max: OBJECT_BYTES_MAX })
    }

    fn lock(&self, name: &Name) -> Result<NameLock, DepotError> {
        let until = Instant::now() + self.timeout;
        match NameLock::take(&self.root, name, until) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(DepotError::Unreachable {
                at: self.at(),
                reason: format!("another process kept it locked for {} s", self.timeout.as_secs()),
            }),
            Err(error) => Err(self.failure("write", &error)),
        }
    }

    /// Links a file that was written aside to its name. The folder of the name may be removed meanwhile, because it
    /// was empty.
    fn link(&self, aside: &Aside, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        let mut result = Ok(());
        for _ in 0..FOLDER_ATTEMPTS {
            make_folders(&self.root, folder)?;
            result = aside.link_to(path);
            if !matches!(&result, Err(error) if error.kind() == ErrorKind::NotFound) {
                break;
            }
        }
        result
    }

    /// Returns the version of an object, from its file's attributes.
    fn version_of(&self, name: &Name) -> Result<Option<Version>, DepotError> {
        match fs::metadata(self.path(name)) {
            Ok(found) if found.is_file() => Ok(Some(version(&found))),
            Ok(_) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failure("read", &error)),
        }
    }
}

impl Depot for FolderDepot {
    fn create(&self, name: &Name, bytes: &[u8]) -> Result<Created, DepotError> {
        self.check_size(name, bytes)?;
        let path = self.path(name);
        if self.version_of(name)?.is_some() {
            // It may have been linked by a process that was killed before it synced the folder.
            sync_folder(path.parent().unwrap_or(&self.root)).map_err(|error| self.unknown(name, &error))?;
            return Ok(Created::AlreadyThere);
        }
        let aside = Aside::write(&self.root, bytes).map_err(|error| self.failure("write", &error))?;
        let linked = self.link(&aside, &path);
        drop(aside);
        let created = match linked {
            Ok(()) => Created::New,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Created::AlreadyThere,
            Err(error) => return Err(self.failure("write", &error)),
        };
        sync_folder(path.parent().unwrap_or(&self.root)).map_err(|error| self.unknown(name, &error))?;
        Ok(created)
    }

    fn get(&self, name: &Name) -> Result<Option<(Vec<u8>, Version)>, DepotError> {
        let read = || -> io::Result<(Vec<u8>, fs::Metadata)> {
            let mut file = File::open(self.path(name))?;
            let found = file.metadata()?;
            let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0).min(OBJECT_BYTES_MAX));
            file.by_ref().take(OBJECT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
            Ok((bytes, found))
        };
        let (bytes, found) = match read() {
            Ok(read) => read,
            Err(error) if is_absent(&error) || error.kind() == ErrorKind::IsADirectory => {
                // Without its root it is not the object that is missing.
                return fs::metadata(&self.root).map(|_| None).map_err(|error| self.failure("read", &error));
            }
            Err(error) => return Err(self.failure("read", &error)),
        };
        // A file is never changed in place, so another length is damage.
        if bytes.len() as u64 != found.len() {
            let reason = format!("{} of its {} bytes could be read", bytes.len(), found.len());
            return Err(DepotError::Damaged { at: self.at(), name: name.clone(), reason });
        }
        Ok(Some((bytes, version(&found))))
    }

    fn swap(&self, name: &Name, expected: Option<&Version>, bytes: &[u8]) -> Result<Version, DepotError> {
        self.check_size(name, bytes)?;
        let _lock = self.lock(name)?;
        let lost = || DepotError::Lost { at: self.at(), name: name.clone() };
        let current = self.version_of(name)?;
        if current.as_ref() != expected {
            return Err(lost());
        }
        let path = self.path(name);
        let folder = path.parent().unwrap_or(&self.root);
        let aside = Aside::write(&self.root, bytes).map_err(|error| self.failure("write", &error))?;
        if expected.is_some() {
            let old = fs::metadata(&path).map_err(|error| self.failure("read", &error))?;
            aside.make_newer_than(&old).map_err(|error| self.failure("write", &error))?;
        }
        let made = aside.version().map_err(|error| self.failure("write", &error))?;
        let placed = if expected.is_some() { aside.rename_to(&path) } else { self.link(&aside, &path) };
        match placed {
            Ok(()) => {}
            // Creates hold no lock.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(lost()),
            Err(error) => return Err(self.failure("write", &error)),
        }
        sync_folder(folder).map_err(|error| self.unknown(name, &error))?;
        Ok(made)
    }

    fn list(&self, under: &Name, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, DepotError> {
        fs::metadata(&self.root).map_err(|error| self.failure("list", &error))?;
        walk::list(&self.root, under, after, limit).map_err(|error| self.failure("list", &error))
    }

    fn delete(&self, names: &[Name]) -> Result<(), DepotError> {
        for name in names {
            let _lock = self.lock(name)?;
            let path = self.path(name);
            match fs::remove_file(&path) {
                Ok(()) => files::remove_empty_folders(&self.root, &path),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(self.failure("delete", &error)),
            }
        }
        Ok(())
    }

    fn describe(&self) -> DepotDescription {
        DepotDescription { url: self.at(), engine: "folder", host: None }
    }

    fn weaknesses(&self) -> Result<Vec<String>, DepotError> {
        Ok(vec!["it is as durable as the disk or file server that it is on".to_owned()])
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Formats a system error for use inside a sentence: without its number, in lower case.
fn words(error: &io::Error) -> String {
    let reason = error.to_string();
    let reason = reason.split(" (os error").next().unwrap_or_default();
    let mut chars = reason.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
}
