//! A store that is moved: the file of another store, or a sealed copy.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::error::MovingError;
use super::import::{Import, ImportError, Moved};
use super::scratch::{ScratchFolder, copy_private, named_like, with_suffix};
use super::sealed_copy::{COPY_LIMITS, HEAD, HEAD_START};
use crate::sdk::orphan::{Holder, holder_of};
use crate::sdk::salvage::SalvageTarget;
use crate::sdk::trust::{FileOwner, TrustedFile};
use crate::sealing::{Identity, OpenReader, SealError, is_sealed};
use crate::shutdown::Shutdown;
use crate::store::os::{FileId, folder_of, os_words};
use crate::store::sqlite::APPLICATION_ID;
use crate::store::{self, EncryptionKey, Keys, OpenMode, Owner, Store, StoreError, StoreSnapshot};

/// How a database of SQLite begins.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Where in it the number is that says whose it is.
const APPLICATION_ID_AT: usize = 68;
/// Files that a store has beside it, in the order in which they are set aside, from the last to the first.
const BESIDE: [&str; 4] = ["-wal", "-journal", "-shm", "-ballast"];
/// Those of them that have contents.
const LOGS: [&str; 2] = ["-wal", "-journal"];
/// How long the lease of a private copy is asked for.
const LEASE: Duration = Duration::from_secs(1);
/// The end of the name of a store that was moved, before the time.
const ASIDE: &str = ".moved-";

/// The kind of a named file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// A message store.
    Store,
    /// A sealed copy of one.
    Sealed,
    /// Anything else, perhaps a leftover file of an SDK.
    Other,
}

/// Returns the kind of the file at this path. A store is recognised however damaged, and where it was before it was moved.
pub(crate) fn kind_of(path: &Path, owner: FileOwner) -> SourceKind {
    let original = match TrustedFile::open(path, owner) {
        Ok(original) => original,
        Err(_) if set_aside(path).is_some() || is_recovering(path) => return SourceKind::Store,
        Err(_) => return SourceKind::Other,
    };
    let mut head = [0; APPLICATION_ID_AT + 4];
    let read = original.file.read_at(&mut head, 0).unwrap_or(0);
    if is_sealed(&head[..read]) {
        return SourceKind::Sealed;
    }
    let is_database = head.starts_with(MAGIC);
    let application_id: [u8; 4] = head[APPLICATION_ID_AT..].try_into().unwrap_or_default();
    if is_database && i32::from_be_bytes(application_id) == APPLICATION_ID {
        return SourceKind::Store;
    }
    let log = path.with_file_name(with_suffix(path.file_name().unwrap_or_default(), "-wal"));
    let has_log = log.metadata().is_ok_and(|log| log.len() > 0);
    // Of a new store only the log says whose it is, and of a damaged one only the pages behind the first.
    if read > 0 && (has_log || !is_database) && store::is_store(path) { SourceKind::Store } else { SourceKind::Other }
}

/// Returns where the store was set aside that was at this path, if it was moved: the last one, if several were.
fn set_aside(path: &Path) -> Option<PathBuf> {
    if std::fs::symlink_metadata(path).is_ok() {
        return None;
    }
    let aside = named_like(folder_of(path), &with_suffix(path.file_name()?, ASIDE));
    aside
        .into_iter()
        .rfind(|aside| !LOGS.iter().any(|log| aside.as_os_str().as_encoded_bytes().ends_with(log.as_bytes())))
}

/// Returns whether a recovery of the store at this path was interrupted before there was a new one.
fn is_recovering(path: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    !path.exists() && !named_like(folder_of(path), &with_suffix(name, ".recovering-")).is_empty()
}

/// The outcome for one file.
#[derive(Debug)]
pub(crate) struct MovedFile {
    /// The file.
    pub path: PathBuf,
    /// The outcome for its messages.
    pub moved: Moved,
    /// Where it is now, unless it has its name still.
    pub aside: Option<PathBuf>,
    /// Whether it was deleted.
    pub is_removed: bool,
    /// Why it was neither set aside nor deleted, though its messages are stored.
    pub problem: Option<MovingError>,
}

/// How files are moved in.
#[derive(Clone, Copy)]
pub(crate) struct MovingIn<'a> {
    /// The user who owns them.
    pub owner: FileOwner,
    /// The store that they are moved into.
    pub own: &'a Path,
    /// A folder for temporary files, where there is no such store yet in a dry run.
    pub temp_dir: &'a Path,
    /// The keys of that store, and of theirs.
    pub keys: &'a Keys,
    /// Open sealed copies.
    pub identities: &'a [Identity],
    /// Only counts.
    pub is_dry_run: bool,
    /// Deletes each file once its messages are safe, instead of setting it aside.
    pub removes: bool,
    /// Stops it.
    pub shutdown: &'a Shutdown,
}

impl MovingIn<'_> {
    /// Moves the messages of one file. `open` opens the store that they are moved into; in a dry run there may be none.
    ///
    /// # Errors
    ///
    /// [`MovingError`]; the file is unchanged.
    pub(crate) fn run(
        &self,
        path: &Path,
        kind: SourceKind,
        open: &mut dyn FnMut() -> Result<Option<Arc<dyn Store>>, StoreError>,
    ) -> Result<MovedFile, MovingError> {
        let mut original = self.original(path)?;
        let lock = if kind == SourceKind::Sealed { None } else { locked(path, &original)? };
        let into = open()?;
        let beside =
            if folder_of(self.own).is_dir() { self.own.to_owned() } else { self.temp_dir.join("opik-offline") };
        let scratch_failed = |error: io::Error| self.no_scratch(path, &beside, &error);
        let scratch = ScratchFolder::beside(&beside).map_err(scratch_failed)?;
        let copy = scratch.store();
        let keys = match kind {
            SourceKind::Sealed => self.unseal(path, &original.file, &copy)?,
            SourceKind::Store | SourceKind::Other => {
                self.copy(path, &mut original, &copy)?;
                self.keys.clone()
            }
        };
        if self.shutdown.is_requested() {
            return Err(MovingError::Interrupted { path: path.to_owned() });
        }
        let target = match into.as_deref() {
            Some(store) if !self.is_dry_run => SalvageTarget::Store(store),
            store => SalvageTarget::DryRun(store),
        };
        let moved = self.import(path, &copy, &keys, target)?;
        drop(scratch);
        let mut file = MovedFile { path: path.to_owned(), moved, aside: None, is_removed: false, problem: None };
        if !self.is_dry_run {
            self.put_away(&original, &mut file);
        }
        // Until its name is gone nobody may start on it.
        drop(lock);
        Ok(file)
    }

    fn original(&self, path: &Path) -> Result<TrustedFile, MovingError> {
        let original = TrustedFile::open(path, self.owner).map_err(|refusal| MovingError::refused(path, refusal));
        let original = original.map_err(|error| match error {
            MovingError::Missing { path, .. } if is_recovering(&path) => MovingError::Recovering { path },
            MovingError::Missing { path, .. } => MovingError::Missing { aside: set_aside(&path), path },
            error => error,
        })?;
        let metadata = original.file.metadata().map_err(|error| MovingError::unreadable(path, &error))?;
        if FileId::at(self.own) == Some(FileId::of(&metadata)) {
            return Err(MovingError::OwnStore { path: path.to_owned() });
        }
        Ok(original)
    }

    fn no_scratch(&self, path: &Path, beside: &Path, error: &io::Error) -> MovingError {
        let folder = folder_of(beside).to_owned();
        MovingError::Scratch { path: path.to_owned(), folder, reason: os_words(error) }
    }

    /// Copies a store and what SQLite keeps beside it.
    fn copy(&self, path: &Path, original: &mut TrustedFile, to: &Path) -> Result<(), MovingError> {
        let failed = |error: io::Error| self.no_scratch(path, self.own, &error);
        copy_private(&mut &original.file, to, self.shutdown).map_err(failed)?;
        for suffix in BESIDE {
            let beside = original.open_beside(suffix).map_err(|refusal| MovingError::refused(path, refusal))?;
            if let Some(beside) = beside.filter(|_| LOGS.contains(&suffix)) {
                let name = with_suffix(to.file_name().unwrap_or_default(), suffix);
                copy_private(&mut &beside, &to.with_file_name(name), self.shutdown).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Opens a sealed copy to its end; returns the key of the store in it.
    fn unseal(&self, path: &Path, sealed: &File, to: &Path) -> Result<Keys, MovingError> {
        let failed = |error: SealError| MovingError::Sealed { path: path.to_owned(), error };
        let other = |reason| MovingError::NotACopy { path: path.to_owned(), reason };
        let mut reader = OpenReader::new(self.identities, sealed).map_err(failed)?;
        let (mut head, mut key) = ([0; HEAD.len()], Zeroizing::new([0; EncryptionKey::BYTES]));
        let read = reader.read_exact(&mut head).and_then(|()| reader.read_exact(&mut key[..]));
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(other("it holds no store")),
            read => read.map_err(|error| failed(SealError::from_io(error)))?,
        }
        if head != *HEAD {
            let is_newer = head.starts_with(HEAD_START);
            return Err(other(if is_newer { "a newer opik-offline sealed it" } else { "it holds something else" }));
        }
        copy_private(&mut reader, to, self.shutdown).map_err(|error| {
            match error.get_ref().is_some_and(|inner| inner.is::<SealError>()) {
                true => failed(SealError::from_io(error)),
                false => self.no_scratch(path, self.own, &error),
            }
        })?;
        Ok(Keys { current: Some(EncryptionKey::from_bytes(key)), previous: None })
    }

    /// Imports from a private copy. A copy that turns out to be damaged is recovered, and imported again.
    fn import(&self, path: &Path, copy: &Path, keys: &Keys, target: SalvageTarget<'_>) -> Result<Moved, MovingError> {
        let source = |error| MovingError::Source { path: path.to_owned(), copy: copy.to_owned(), error };
        vet(copy, keys).map_err(source)?;
        let open = || StoreSnapshot::open(copy, OpenMode::ExistingOrRecovered, COPY_LIMITS, keys);
        let mut snapshot = open().map_err(source)?;
        let mut import = Import::into(target, self.shutdown);
        let mut moved = import.run(&mut snapshot);
        if let Err(ImportError::Source(StoreError::Damaged { reason, .. })) = &moved {
            drop(snapshot);
            drop(store::recover(copy, reason, COPY_LIMITS, keys).map_err(source)?);
            snapshot = open().map_err(source)?;
            moved = import.run(&mut snapshot);
        }
        let mut moved = moved.map_err(|error| match error {
            ImportError::Source(error) => source(error),
            ImportError::Target(error) => MovingError::Store(error),
            ImportError::Interrupted => MovingError::Interrupted { path: path.to_owned() },
        })?;
        let recoveries = snapshot.condition().map_err(source)?.recoveries;
        let here = copy.to_string_lossy();
        let here = recoveries.iter().filter(|recovery| recovery.set_aside.as_str().starts_with(&*here));
        moved.unread += here.map(|recovery| recovery.lost).sum::<u64>();
        Ok(moved)
    }

    /// Sets a file aside whose messages are stored, or deletes it. A damaged one is never deleted.
    fn put_away(&self, original: &TrustedFile, file: &mut MovedFile) {
        let done = if self.removes && file.moved.unread == 0 {
            original.remove().map(|()| file.is_removed = true)
        } else {
            original.set_aside(&free_ending(&file.path)).map(|aside| file.aside = Some(aside))
        };
        if let Err(error) = done {
            let (path, reason) = (file.path.clone(), error.to_string());
            file.problem = Some(MovingError::NotSetAside { path, reason });
        }
    }
}

/// Refuses a store whose messages may not be replayed by this process, for another reason than a lease: that of a killed
/// process may be in force for some seconds, and nobody has the store open.
fn vet(copy: &Path, keys: &Keys) -> Result<(), StoreError> {
    let store = store::open_with(copy, OpenMode::ExistingOrRecovered, COPY_LIMITS, keys)?;
    match store.acquire(&Owner::this_process("move"), LEASE) {
        Ok(lease) => store.release(&lease),
        Err(StoreError::LeaseHeld { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns the ending of a name that no file has yet.
fn free_ending(path: &Path) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
    let is_free = |ending: &String| {
        let aside = path.with_file_name(with_suffix(path.file_name().unwrap_or_default(), ending));
        std::fs::symlink_metadata(aside).is_err()
    };
    let first = format!("{ASIDE}{now}");
    let numbered = (2..).map(|number| format!("{first}-{number}"));
    std::iter::once(first.clone()).chain(numbered).find(is_free).unwrap_or(first)
}

/// Takes SQLite's locks of a store, so that no process can open it. `None` where its file system is read-only or has no
/// locks.
fn locked(path: &Path, original: &TrustedFile) -> Result<Option<File>, MovingError> {
    let in_use = |pid, name| MovingError::InUse { path: path.to_owned(), pid, name };
    if let Holder::Process { pid, name } = holder_of(&original.file, path) {
        return Err(in_use(Some(pid), name));
    }
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) else { return Ok(None) };
    let id = |file: &File| file.metadata().map(|metadata| FileId::of(&metadata));
    let is_same = id(&file).and_then(|found| Ok(found == id(&original.file)?));
    if !is_same.map_err(|error| MovingError::unreadable(path, &error))? {
        let reason = "another file took its name just now".into();
        return Err(MovingError::Unreadable { path: path.to_owned(), reason });
    }
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        // In another container, where its process cannot be seen.
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Err(in_use(None, String::new())),
        Err(_) => Ok(None),
    }
}
