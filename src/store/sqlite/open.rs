//! Opening a store: what is at the path is examined, created, proven, migrated or recovered, and then connected to.
//!
//! Nothing here opens the database file except SQLite itself (and the one call that creates it): POSIX drops all of a
//! process's locks on a file when any descriptor of it is closed, including SQLite's locks.
//!
//! # Invariants
//!
//! - The folder's lock is held from the first look until the connections are open, so that no recovery moves the file
//!   in between ([`super::folder_lock`]).
//! - Nothing is written to a file before it is known to be ours, of a schema that we know, and readable with the
//!   configured keys.
//! - Symbolic links and files of other users are checked again after opening, before a message is written.

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
use super::unproven::{self, UnprovenWatch};
use super::{ballast, checkpoint, in_place, key_change, proof, quick_check, recovery, schema, upgrade};
use crate::hint;
use crate::store::error::StoreError;
use crate::store::limits::OpenMode;
use crate::store::os::{FileId, os_words};
use crate::store::place;

/// The oldest SQLite without the WAL-reset bug, which can corrupt a file that several processes write.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Makes checking for a store and creating it atomic for the threads of this process.
static OPENING: Mutex<()> = Mutex::new(());

/// The connections of an open store.
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) readers: [Connection; 2],
    pub(super) file: FileId,
    pub(super) sealer: Sealer,
    /// The write-ahead log. It is beside the file itself, even if the path is a symbolic link.
    pub(super) log: PathBuf,
    /// Whether no other process can open the store.
    pub(super) is_alone: bool,
    /// Checks whether a disk error made the store unproven.
    pub(super) watch: UnprovenWatch,
}

/// Opens the store at this path, creates it if the mode says so, and migrates its schema.
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

/// Sets aside a file that was found damaged while it was open, unless another process already did, and opens the
/// recovered store.
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

/// Clears the unproven flag: the store is a new file now, which was synced. Nothing of the old one is read again.
fn proven_by_recovery(path: &Path) -> Result<(), StoreError> {
    unproven::clear(path).map_err(|error| StoreError::Unusable { at: path.into(), reason: os_words(&error) })
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
    let mut no_recovery = examine_first(path, mode)?;
    if mode.recovers() {
        proof::prove_if_needed(path, Some(keys)).map_err(|fault| fault.at(path))?;
    }
    if upgrade::is_outdated(path, mode, keys).map_err(|fault| fault.at(path))? {
        // Migrating writes, which opening an unproven store to read it must not.
        let keys_needed = (mode != OpenMode::WithoutKey).then_some(keys.as_ref());
        proof::prove_if_needed(path, keys_needed).map_err(|fault| fault.at(path))?;
        drop(no_recovery);
        upgrade::upgrade(path)?;
        no_recovery = examine_first(path, mode)?;
    }
    let _no_recovery = no_recovery;
    let opened = match open_with_room(path, mode, size_max, keys) {
        // Its schema has to be created, which writes. Opening any other unproven store to read it writes nothing.
        Err(Fault::Store(StoreError::Unproven { .. })) => {
            let keys_needed = (mode != OpenMode::WithoutKey).then_some(keys.as_ref());
            proof::prove_if_needed(path, keys_needed).and_then(|()| open_with_room(path, mode, size_max, keys))
        }
        result => result,
    };
    let (mut writer, vfs) = opened.map_err(|fault| fault.at(path))?;
    if mode.recovers() {
        quick_check::quick_check_if_small(&writer, path).map_err(|fault| fault.at(path))?;
    }
    let watch = UnprovenWatch::new(path);
    let sealer = open_sealer(&mut writer, &watch, mode, keys).map_err(|fault| fault.at(path))?;
    if vfs.is_some() {
        warn!(
            target: "db_manager",
            "{} is open for this process only until its full disk has space: other processes find it busy",
            path.display()
        );
    }
    let readers = [open_reader_by(path, vfs)?, open_reader_by(path, vfs)?];
    // Checked again: now the store exists with all its files, and nobody can replace any of them. So a trap that was
    // placed between the first check and the creation is found before a message is written.
    let place = vet(path, mode)?;
    place::tighten(&place).map_err(|(open, error)| StoreError::Unusable {
        at: path.into(),
        reason: format!("other users can read {}, and that cannot be changed: {}", open.display(), os_words(&error)),
    })?;
    let removed = || StoreError::Unusable { at: path.into(), reason: "it was removed while it was opened".into() };
    let file = FileId::at(path).ok_or_else(removed)?;
    let mut log = fs::canonicalize(path).map_err(|_| removed())?.into_os_string();
    log.push("-wal");
    Ok(Opened { writer, readers, file, sealer, log: log.into(), is_alone: vfs.is_some(), watch })
}

/// Opens the writer, and returns its VFS.
///
/// The memory that processes share is a file beside the store. Without space for it, a single process can still work.
/// SQLite writes one byte to each 4 KiB of that file; where blocks are smaller, missing blocks are noticed only when
/// they are written to, by a SIGBUS. So on a full disk the store is opened exclusively, unless others have it open:
/// then the file exists already.
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

/// Keeps recoveries out, and examines the path or creates an empty file.
fn examine_first(path: &Path, mode: OpenMode) -> Result<FolderLock, StoreError> {
    let no_recovery = FolderLock::shared(path)?;
    if recovery::pending(path).is_some() {
        let how = if ballast::is_full(path) { "; its disk is full, free some space there" } else { "" };
        let replay = hint::command("replay");
        let reason = format!("its recovery is not finished; the agent and {replay} resume it{how}");
        return Err(StoreError::Damaged { at: path.into(), reason });
    }
    ballast::rename_to_log_if_needed(path);
    create_or_examine(path, mode)?;
    in_place::prepare(path);
    Ok(no_recovery)
}

/// Checks the keys against the store; where a store is created or put into use, makes the configured key the current
/// one.
fn open_sealer(
    writer: &mut Connection,
    watch: &UnprovenWatch,
    mode: OpenMode,
    keys: &Arc<KeyRing>,
) -> Result<Sealer, Fault> {
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
        // Without its log, the file was ours.
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
    if !begin_log_mode(&connection)?.eq_ignore_ascii_case("wal") {
        let reason = "this file system allows no write-ahead log; choose a local disk".into();
        return Err(StoreError::Unusable { at: path.into(), reason }.into());
    }
    if schema::version(&connection)? != schema::known_version() {
        UnprovenWatch::new(path).vet()?;
    }
    schema::migrate(&mut connection)?;
    schema::refuse_newer(path, schema::version(&connection)?)?;
    Ok(connection)
}

/// Switches to a write-ahead log, and returns the mode that the store has then.
///
/// The statement returns its row before it commits: whoever reads only that misses a failure to commit, and the store
/// would be used with a rollback journal, whose removal SQLite doesn't sync.
fn begin_log_mode(connection: &Connection) -> rusqlite::Result<String> {
    let mut statement = connection.prepare("PRAGMA journal_mode = WAL")?;
    let mut rows = statement.query([])?;
    let mut mode = String::new();
    while let Some(row) = rows.next()? {
        mode = row.get(0)?;
    }
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Keys;

    #[test]
    fn a_trap_placed_during_opening_is_found_before_a_message_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.db");
        let keys = Arc::new(KeyRing::new(&Keys::default()));
        let open_again = || open_sound(&path, OpenMode::CreateIfMissing, 1 << 30, &keys).map(drop);
        open_again().expect("nothing is in the way");
        // As if it appeared between the first check, which is not part of this, and the opening. SQLite follows it
        // silently.
        std::os::unix::fs::symlink("elsewhere", folder.path().join("store.db-journal")).expect("a link");
        let error = open_again().expect_err("it is a trap").to_string();
        assert!(error.contains("store.db-journal is not trusted"), "{error}");
    }
}
