//! After a failed write or sync, the store is *unproven* until its whole log has been rewritten and synced.
//!
//! A kernel that cannot write a page to disk reports that once, at the next sync, and marks the page clean: the page
//! reads as written, is never written again, and is not on the disk. Two things must not happen then. The log must not
//! be appended to by a process that opens it anew, because SQLite takes the failed commit's frames in the page cache
//! for committed, and everything after such a hole is lost in a power cut. And the log must not restart, because pages
//! that a checkpoint wrote to the database may be among the lost ones.
//!
//! ```text
//!   in use ── a write, sync or truncation fails ──▶ unproven: flag file, no write, no checkpoint, everyone closes it
//!      ▲                                                 │ no other process has it open
//!      │                                                 ▼
//!      └── flag removed ◀── whole log checkpointed and synced ◀── page cache of both files dropped
//! ```
//!
//! - **The flag** is `<store>-unproven`, beside the store. It tells other processes, which check for it in every write
//!   and once a second, and later starts. It is not synced: after a power cut the page cache is gone, so reads return
//!   what is on disk. If it cannot be created, this process remembers.
//! - **The proof** first drops the pages of both files from the page cache: from then on it reads what a power cut
//!   would have left ([`forget_cached`] explains why ext4 needs that for writing as well). It opens the store
//!   exclusively: with `locking_mode=EXCLUSIVE` before the first read, SQLite fails while any other connection has it
//!   open, uses no `-shm` file, and rebuilds the log's index, in which no frame counts as checkpointed. The log's bytes
//!   are rewritten in place and synced, for file systems whose cache cannot be dropped. Then `wal_checkpoint(TRUNCATE)`
//!   writes each page of the log to the database, syncs it, and truncates the log.
//! - No proof runs while a connection of *this* process has the store open: closing a descriptor that SQLite did not
//!   open drops SQLite's locks on the file. Code that only reads calls [`no_proof_runs`] first.
//! - **At every start** a log that was left behind is proven in the same way: a process may have been killed between
//!   the failure and the flag.
//! - Connections to an unproven store neither checkpoint nor delete the log when they are closed.
//!
//! # What this guarantees
//!
//! Everything acknowledged before the failure is in the log or in the database, and synced; everything acknowledged
//! afterwards was written after the proof. The failed commit itself may or may not be there, as its client was told.
//!
//! If the kernel, or the proof, evicts a page that the kernel failed to write, the old content is read from the disk.
//! In the log that breaks the chain of checksums, and the log ends there: everything acknowledged comes before that
//! point. In the database, readers that start before the failure is known may see an old page that a checkpoint counted
//! as written; the proof writes it again. A *write* based on such a page, in the moments between the eviction and the
//! next sync, is not excluded. Nor is this sequence: one process has the store open, a second is killed between the
//! failure and the flag, and a third opens the store after that.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use tracing::info;

use super::access::access_words;
use super::fault::Fault;
use super::files::log_of;
use super::seal::{self, KeyRing};
use super::unproven::{clear, unproven};
use super::{ballast, connect, queries, quick_check, schema};
use crate::store::error::StoreError;
use crate::store::os::{folder_of, os_words};
use crate::store::room;
use crate::store::view::Unproven;

/// How long a proof waits for other processes to close the store before it is retried later.
const ALONE_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes rewritten at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// A database up to this size is rewritten as well: its very first commit, which is in no log, may have failed.
const DATABASE_BYTES_MAX: u64 = 1 << 20;

/// Held while a proof has descriptors of its own: closing one drops every lock of this process on the file, so no other
/// thread may open one meanwhile.
static PROVING: RwLock<()> = RwLock::new(());

/// Proves the store at this path if necessary: if it is unproven, or if its log was left behind.
///
/// With `keys`, a store that they do not open is left unchanged.
pub(super) fn prove_if_needed(path: &Path, keys: Option<&KeyRing>) -> Result<(), Fault> {
    let before = unproven(path);
    let log = log_of(&fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
    let is_left_behind = fs::metadata(&log).is_ok_and(|log| log.len() > 0);
    if before.is_none() && !is_left_behind {
        return Ok(());
    }
    let timeout = if before.is_some() { ALONE_TIMEOUT } else { Duration::ZERO };
    let result = prove(path, &log, keys, timeout);
    let is_busy = matches!(&result, Err(Fault::Engine(error))
        if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)));
    match (result, before) {
        (Ok(()), Some(Unproven { reason, .. })) => {
            clear(path).map_err(|error| unusable(path, &error))?;
            info!(
                target: "db_manager",
                "the message store {} is proven after {reason}: its log was rewritten and synced", path.display()
            );
            Ok(())
        }
        // Another process has proven the store meanwhile.
        (Err(_), Some(_)) if is_busy && unproven(path).is_none() => Ok(()),
        (Err(_), Some(Unproven { reason, .. })) if is_busy => {
            let reason = format!("{reason}, and another process still has it open");
            Err(StoreError::Unproven { at: path.into(), reason }.into())
        }
        // The store is in use, and its users know what they wrote.
        (Err(_), None) if is_busy => Ok(()),
        (result, _) => result,
    }
}

/// Keeps proofs of this process out while a connection is opened outside of [`super::open`]. Returns `None` while a
/// proof runs.
pub(super) fn no_proof_runs() -> Option<RwLockReadGuard<'static, ()>> {
    match PROVING.try_read() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn unusable(path: &Path, error: &io::Error) -> Fault {
    let errno = rustix::io::Errno::from_io_error(error);
    let words = access_words(path).or_else(|| errno.map(room::access_words)).unwrap_or_else(|| os_words(error));
    unprovable(path, &words)
}

fn unprovable(path: &Path, words: &str) -> Fault {
    let reason = format!("it cannot be proven after a disk error or an unclean shutdown: {words}");
    StoreError::Unusable { at: path.into(), reason }.into()
}

/// Opens the store as [`open_exclusively`] does, and takes the lock that keeps other processes out.
fn lock_exclusively(path: &Path, timeout: Duration) -> Result<Connection, Fault> {
    let alone = open_exclusively(path, timeout)?;
    alone.pragma_query_value(None, "application_id", |_| Ok(()))?;
    Ok(alone)
}

fn prove(path: &Path, log_path: &Path, keys: Option<&KeyRing>, timeout: Duration) -> Result<(), Fault> {
    let failed = |error: io::Error| unusable(path, &error);
    let open_to_write = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let _no_other_opens = PROVING.write().unwrap_or_else(PoisonError::into_inner);
    // Through SQLite first: if another connection of this process had the file open, closing a descriptor here would
    // drop its lock and let other processes prove the store at the same time.
    let alone = lock_exclusively(path, timeout).map_err(|fault| match access_words(path) {
        Some(words) if !fault.is_busy() => unprovable(path, &words),
        _ => fault,
    })?;
    // Closed after the connection, when this process holds no lock on the file.
    let file = open_to_write(path).map_err(failed)?;
    let log = match open_to_write(log_path) {
        Ok(log) => Some(log),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    for file in std::iter::once(&file).chain(&log) {
        forget_cached(file).map_err(failed)?;
    }
    // It may have read pages before they were dropped from the cache.
    drop(alone);
    let connection = open_exclusively(path, timeout)?;
    let application_id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version = schema::version(&connection)?;
    if application_id != schema::APPLICATION_ID && !connect::tables(&connection)?.is_empty() {
        return Err(Fault::Damaged("its write-ahead log is that of another database".into()));
    }
    schema::refuse_newer(path, version)?;
    if let Some(keys) = keys {
        seal::verify_before_writing(&connection, keys)?;
    }
    quick_check::quick_check_if_small(&connection, path)?;
    if file.metadata().map_err(failed)?.len() <= DATABASE_BYTES_MAX {
        rewrite_in_place(&file).map_err(failed)?;
    }
    if let Some(log) = &log {
        rewrite_in_place(log).map_err(failed)?;
    }
    // On a nearly full disk the log keeps its blocks: its frames were rewritten, so it may be appended to.
    let write_back = if ballast::keeps_log(path) { queries::WRITE_LOG_BACK } else { queries::EMPTY_LOG };
    let is_busy: bool = connection.query_row(write_back, [], |row| row.get(0))?;
    if is_busy {
        let busy = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None);
        return Err(busy.into());
    }
    file.sync_all().map_err(failed)?;
    if let Some(log) = log {
        log.sync_all().map_err(failed)?;
    }
    File::open(folder_of(log_path)).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Opens the store for this process only. The locking mode has to be set before the first read.
fn open_exclusively(path: &Path, timeout: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(timeout)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

/// Drops a file's pages from the page cache, so that the next read returns what the disk has.
///
/// ext4 needs that for the next write as well. A block that is new to a file stays marked as unwritten when its first
/// write fails, but the cached page has forgotten that: when it is written again, its bytes reach the block and the
/// mark stays. After a power cut such a block reads as zeros. A page that is read again knows about the mark. A file
/// system without a disk keeps its pages, which is fine.
fn forget_cached(file: &File) -> io::Result<()> {
    file.sync_all()?;
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)
}

/// Rewrites every byte of a file in place, and syncs it.
fn rewrite_in_place(file: &File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut chunk, at) {
            Ok(0) => return file.sync_all(),
            Ok(read) => {
                file.write_all_at(&chunk[..read], at)?;
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request};
    use crate::store::slot::StoreSlot;
    use crate::store::sqlite::SqliteStore;
    use crate::store::sqlite::unproven::{flag_of, known, mark};
    use crate::store::{Browse, Filter, Intake, Limits, Maintain, OpenMode, Store, WhenFull};

    const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };

    fn message() -> Message {
        let body = Body::new("{}".to_owned(), Encoding::Identity);
        let (method, path, headers) = ("POST".into(), "v1/private/traces".into(), HeaderSet::default());
        let request = Request { method, path, headers, body };
        let (lane, message_type) = (Lane::default(), MessageType::CreateTrace);
        Message { lane, message_type, request, touches: Vec::new(), items: 1, project: None, accepted_at_ms: 1 }
    }

    fn open(path: &Path, mode: OpenMode) -> Result<SqliteStore, StoreError> {
        SqliteStore::open(path, mode, LIMITS)
    }

    fn stored(store: &dyn Store) -> u64 {
        store.backlog(&Filter::default()).expect("it can be read").messages()
    }

    fn log_bytes(path: &Path) -> u64 {
        fs::metadata(log_of(path)).map_or(0, |log| log.len())
    }

    #[test]
    fn an_unproven_store_is_read_only_until_it_is_proven() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let flag = flag_of(&path);
        let store = open(&path, OpenMode::CreateIfMissing).expect("a new store");
        store.register(&[message()]).expect("it is proven");
        let database = fs::read(&path).expect("it is there");
        assert!(mark(&path, "a sync failed", true));
        assert!(flag.exists(), "other processes are not told");
        let refused = store.register(&[message()]).expect_err("the log may have a hole");
        assert!(refused.is_unproven(), "{refused}");
        assert!(store.erase_credentials().is_err(), "the log was cut");
        assert!(store.compact().is_err(), "the log was cut");
        assert_eq!(stored(&store), 1);
        let unproven = store.condition().expect("it can be read").unproven.expect("it says so");
        assert_eq!(unproven.reason, "a sync failed");
        drop(store);
        let left = log_bytes(&path);
        assert!(left > 0, "closing it deleted the log");
        let looked = open(&path, OpenMode::Existing).expect("it can be looked at");
        assert_eq!(stored(&looked), 1);
        assert!(looked.register(&[message()]).is_err());
        drop(looked);
        assert_eq!((log_bytes(&path), fs::read(&path).expect("it is there")), (left, database), "looking wrote");
        // As in a process that starts now.
        known().remove(&flag_of(&path));
        let again = open(&path, OpenMode::CreateIfMissing).expect("it can be proven");
        assert!(!flag.exists());
        assert_eq!((log_bytes(&path), stored(&again)), (0, 1));
        again.register(&[message()]).expect("it is proven");
        assert_eq!(stored(&again), 2);
    }

    #[test]
    fn a_log_left_behind_is_rewritten_at_the_next_start() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, copy) = (folder.path().join("opik_messages.db"), folder.path().join("killed.db"));
        let store = open(&path, OpenMode::CreateIfMissing).expect("a new store");
        store.register(&[message()]).expect("it is proven");
        for suffix in ["", "-wal"] {
            let name = |path: &Path| {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                PathBuf::from(name)
            };
            fs::copy(name(&path), name(&copy)).expect("it is there");
        }
        assert!(log_bytes(&copy) > 0);
        let next = open(&copy, OpenMode::CreateIfMissing).expect("it can be opened");
        assert_eq!((log_bytes(&copy), stored(&next)), (0, 1));
        // While it is in use, it is not truncated.
        let in_use = log_bytes(&path);
        open(&path, OpenMode::CreateIfMissing).expect("two may have it open");
        assert_eq!(log_bytes(&path), in_use);
    }

    #[test]
    fn a_proof_waits_until_every_process_has_closed_the_store() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        let slot = || StoreSlot::at(&path, LIMITS);
        let slots = [slot(), slot()];
        for slot in &slots {
            slot.with(|store| store.register(&[message()])).expect("it is open");
        }
        let in_the_way = open(&path, OpenMode::Existing).expect("it can be looked at");
        assert!(mark(&path, "a sync failed", true));
        let deadline = Instant::now() + Duration::from_secs(60);
        for slot in &slots {
            let refused = slot.with(|store| store.register(&[message()])).expect_err("it is unproven");
            assert!(refused.is_unproven(), "{refused}");
            let again = slot.retry().err().expect("another one has it open");
            assert!(again.is_unproven(), "{again}");
        }
        assert!(flag_of(&path).exists());
        drop(in_the_way);
        for slot in &slots {
            while let Err(error) = slot.get() {
                assert!(Instant::now() < deadline, "it does not come back: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        assert!(!flag_of(&path).exists());
        for slot in &slots {
            slot.with(|store| store.register(&[message()])).expect("it is proven");
        }
        let store: Arc<dyn Store> = slots[0].get().expect("it is open");
        assert_eq!(stored(store.as_ref()), 4);
    }
}
