//! Finding out what stands at a path, making a new store there, and opening connections to it.
//!
//! Nothing here opens the database file except SQLite itself (and the one call that makes it): POSIX drops all of a
//! process's locks on a file when any descriptor of it is closed, and SQLite's locks are among them.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tracing::warn;

use super::connect::{ALONE, connect_by, open_reader_by, tables};
use super::fault::Fault;
use super::folder_lock::FolderLock;
use super::place::examine::{create_or_examine, vet};
use super::seal::{self, KeyRing, Sealer, SealingState};
use super::unproven::{self, Watch};
use super::{ballast, checkpoint, in_place, key_change, proof, quick_check, recovery, schema, upgrade};
use crate::store::error::StoreError;
use crate::store::os::{FileId, os_words};
use crate::store::{OpenMode, place};

/// The oldest SQLite without the WAL-reset fault, which can damage a file that several processes write.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Makes "is it there? make it" one step for the threads of this process.
static OPENING: Mutex<()> = Mutex::new(());

/// The connections of an open store.
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) readers: [Connection; 2],
    pub(super) file: FileId,
    pub(super) sealer: Sealer,
    /// The write-ahead log. It lies beside the file itself, also when the path is a symbolic link to it.
    pub(super) log: PathBuf,
    /// Whether no other process can open it.
    pub(super) is_alone: bool,
    /// Tells whether an error of the disk made it unproven.
    pub(super) watch: Watch,
}

/// Opens the store at this path, makes it when the mode says so, and brings its schema up to date.
pub(super) fn open(path: &Path, mode: OpenMode, size_max: u64, keys: &Arc<KeyRing>) -> Result<Opened, StoreError> {
    assert!(
        rusqlite::version_number() >= SQLITE_VERSION_MIN,
        "linked with SQLite {}, which several processes may not use on one file",
        rusqlite::version()
    );
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    vet(path, mode)?;
    match open_sound(path, mode, size_max, keys) {
        Err(StoreError::Damaged { reason, .. }) if mode.recovers() => {
            recovery::recover(path, None, &reason, keys)?;
            proven_by_recovery(path)?;
            open_sound(path, mode, size_max, keys)
        }
        result => result,
    }
}

/// Sets the file aside that was found damaged while it was open, unless another process did so, and opens the new store.
pub(super) fn open_recovered(
    path: &Path,
    failed: FileId,
    reason: &str,
    size_max: u64,
    keys: &Arc<KeyRing>,
) -> Result<Opened, StoreError> {
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    vet(path, OpenMode::CreateIfMissing)?;
    recovery::recover(path, Some(failed), reason, keys)?;
    proven_by_recovery(path)?;
    open_sound(path, OpenMode::CreateIfMissing, size_max, keys)
}

/// Notes that the store is a new file by now, which was synced. Nothing of the old one is read again.
fn proven_by_recovery(path: &Path) -> Result<(), StoreError> {
    unproven::clear(path).map_err(|error| StoreError::Unusable { path: path.to_owned(), reason: os_words(&error) })
}

/// Proves the store if it is unproven; see [`crate::store::prove`].
pub(crate) fn prove(path: &Path) -> Result<(), StoreError> {
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if unproven::unproven(path).is_none() {
        return Ok(());
    }
    let place = vet(path, OpenMode::Existing)?;
    let _no_recovery = FolderLock::shared(&place)?;
    match create_or_examine(path, OpenMode::Existing) {
        Err(StoreError::Missing { .. }) => return Ok(()),
        result => result?,
    }
    proof::prove_if_needed(path, None).map_err(|fault| fault.at(path))
}

fn open_sound(path: &Path, mode: OpenMode, size_max: u64, keys: &Arc<KeyRing>) -> Result<Opened, StoreError> {
    let mut no_recovery = look_first(path, mode)?;
    if mode.recovers() {
        proof::prove_if_needed(path, Some(keys)).map_err(|fault| fault.at(path))?;
    }
    if upgrade::is_outdated(path, mode, keys).map_err(|fault| fault.at(path))? {
        // Bringing it up to date writes, which a look at an unproven store does not.
        let keys_needed = (mode != OpenMode::WithoutKey).then_some(keys.as_ref());
        proof::prove_if_needed(path, keys_needed).map_err(|fault| fault.at(path))?;
        drop(no_recovery);
        upgrade::upgrade(path)?;
        no_recovery = look_first(path, mode)?;
    }
    let _no_recovery = no_recovery;
    let opened = match open_with_room(path, mode, size_max, keys) {
        // Its schema has to be made, which writes. A look at any other unproven store writes nothing.
        Err(Fault::Store(StoreError::Unproven { .. })) => {
            let keys_needed = (mode != OpenMode::WithoutKey).then_some(keys.as_ref());
            proof::prove_if_needed(path, keys_needed).and_then(|()| open_with_room(path, mode, size_max, keys))
        }
        result => result,
    };
    let (mut writer, vfs) = opened.map_err(|fault| fault.at(path))?;
    if mode.recovers() {
        quick_check::look_through(&writer, path).map_err(|fault| fault.at(path))?;
    }
    let watch = Watch::new(path);
    let sealer = open_seals(&mut writer, &watch, mode, keys).map_err(|fault| fault.at(path))?;
    if vfs.is_some() {
        warn!(
            target: "db_manager",
            "{} is open for this process alone until its full disk has room: other processes find it busy",
            path.display()
        );
    }
    let readers = [open_reader_by(path, vfs)?, open_reader_by(path, vfs)?];
    // Looked at again: by now it is there with all that belongs to it, and nobody else can put anything in its place. So
    // what was put there between the first look and its making is found before a message is written.
    let place = vet(path, mode)?;
    place::tighten(&place).map_err(|(open, error)| StoreError::Unusable {
        path: path.to_owned(),
        reason: format!("other users can read {}, and that cannot be changed: {}", open.display(), os_words(&error)),
    })?;
    let removed =
        || StoreError::Unusable { path: path.to_owned(), reason: "it was removed while it was opened".into() };
    let file = FileId::at(path).ok_or_else(removed)?;
    let mut log = fs::canonicalize(path).map_err(|_| removed())?.into_os_string();
    log.push("-wal");
    Ok(Opened { writer, readers, file, sealer, log: log.into(), is_alone: vfs.is_some(), watch })
}

/// Opens the writer, and says by which VFS.
///
/// The memory that processes share is a file beside the store. Without room for it one process alone can go on. SQLite
/// writes a byte to each 4 KiB of that file, and where blocks are smaller the rest is found missing only when it is
/// written to, by a SIGBUS. So on a full disk the store is opened alone, unless others have it open: then the file is there.
fn open_with_room(
    path: &Path,
    mode: OpenMode,
    size_max: u64,
    keys: &KeyRing,
) -> Result<(Connection, Option<&'static CStr>), Fault> {
    let alone = || open_writer(path, mode, size_max, keys, Some(ALONE)).map(|writer| (writer, Some(ALONE)));
    if ballast::is_full(path) {
        match alone() {
            Err(fault) if fault.is_busy() => {}
            result => return result,
        }
    }
    match open_writer(path, mode, size_max, keys, None) {
        Err(fault) if fault.no_room(path).is_some() => alone(),
        result => result.map(|writer| (writer, None)),
    }
}

/// Keeps recoveries away, and finds out whether there is a store, or makes an empty file.
fn look_first(path: &Path, mode: OpenMode) -> Result<FolderLock, StoreError> {
    let no_recovery = FolderLock::shared(path)?;
    if recovery::pending(path).is_some() {
        let how = if ballast::is_full(path) { "; its disk is full, free some space there" } else { "" };
        let reason =
            format!("its recovery did not come to its end; the agent and `opik-offline replay` go on with it{how}");
        return Err(StoreError::Damaged { path: path.to_owned(), reason });
    }
    ballast::put_in_place(path);
    create_or_examine(path, mode)?;
    in_place::prepare(path);
    Ok(no_recovery)
}

/// Looks whether the keys are those of the store, and where a store is made or taken into service, sees to it that new
/// things are kept under the key that is asked for.
fn open_seals(writer: &mut Connection, watch: &Watch, mode: OpenMode, keys: &Arc<KeyRing>) -> Result<Sealer, Fault> {
    if let (OpenMode::CreateIfMissing, Some(key)) = (mode, keys.current()) {
        key_change::change_key(writer, watch, keys, Some(key))?;
    }
    let sealer = Sealer::new(keys, SealingState::read(writer)?)?;
    if mode != OpenMode::WithoutKey {
        sealer.unlocked()?;
    }
    Ok(sealer)
}

fn open_writer(
    path: &Path,
    mode: OpenMode,
    size_max: u64,
    keys: &KeyRing,
    vfs: Option<&CStr>,
) -> Result<Connection, Fault> {
    let mut connection = connect_by(path, vfs)?;
    let log_pages = checkpoint::log_pages(size_max);
    checkpoint::install(&mut connection, path, log_pages)?;
    connection.pragma_update(None, "journal_size_limit", checkpoint::log_bytes_kept(size_max) as i64)?;
    let application_id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application_id != schema::APPLICATION_ID && !tables(&connection)?.is_empty() {
        // The file was ours when it was examined without its log.
        return Err(Fault::Damaged("its write-ahead log is that of another database".into()));
    }
    let version = schema::version(&connection)?;
    schema::refuse_newer(path, version)?;
    if mode != OpenMode::WithoutKey {
        seal::verify_before_writing(&connection, keys)?;
    }
    if version == 0 {
        connection.pragma_update(None, "page_size", schema::PAGE_BYTES)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        let reason = "this file system allows no write-ahead log; choose a local disk".into();
        return Err(StoreError::Unusable { path: path.to_owned(), reason }.into());
    }
    if schema::version(&connection)? != schema::known_version() {
        Watch::new(path).vet()?;
    }
    schema::migrate(&mut connection)?;
    schema::refuse_newer(path, schema::version(&connection)?)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Keys;

    #[test]
    fn what_is_laid_beside_a_store_after_the_first_look_is_found_before_a_message_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.db");
        let keys = Arc::new(KeyRing::new(&Keys::default()));
        let look_and_open = || open_sound(&path, OpenMode::CreateIfMissing, 1 << 30, &keys).map(drop);
        look_and_open().expect("nothing is in the way");
        // As if it came between the first look, which is not part of this, and the opening. SQLite passes it over.
        std::os::unix::fs::symlink("elsewhere", folder.path().join("store.db-journal")).expect("a link");
        let error = look_and_open().expect_err("it is a trap").to_string();
        assert!(error.contains("store.db-journal is not trusted"), "{error}");
    }
}
