//! A damaged file set aside, and every message that is whole taken over into a new store.
//!
//! ```text
//!  opik_messages.db{,-wal}                          the damaged store
//!        │ renamed, the log first
//!        ▼
//!  opik_messages.db.recovering-TIME{,-wal}          pending: whoever opens the store next goes on here
//!        │ read page by page (`damaged.rs`), messages that are whole are written to
//!        │ opik_messages.db.rebuilding              worth nothing until it is complete and synced, and then renamed to
//!        ▼
//!  opik_messages.db                                 the new store, with a row about its recovery
//!        │ renamed
//!        ▼
//!  opik_messages.db.damaged-TIME{,-wal}             until a person removes it
//! ```
//!
//! The names are the state: a crash between any two steps leaves one of these pictures, and the next recovery goes on
//! from it. The damaged file itself is only read and renamed. Nothing in it is lost before what can be read of it is
//! on the disk in the new store.
//!
//! A message is taken over when it is exactly what was stored: its checksum is right, or, where it was stored by a
//! version that made none, its lengths are. It keeps its number and its place in the order; one that was in flight is
//! *failed* again. Lanes, keys and header sets lie in the file twice, in their table and in its index, and the copy
//! that makes the checksum right is the right one. A message that was delivered comes back only where its deletion can't
//! be read any more; delivering it again is an upsert.
//!
//! # Sealed stores
//!
//! A sealed store is recovered only by a process that has its keys; any other gets the error that opening the store would
//! give, and does nothing to the file but give it the pending name. So what was sealed is opened and looked at like
//! everything else, with its checksum, and is sealed anew under its own number in the new store, under the key that was in
//! use. One sealed thing that does not open is damage, and costs its message. Which keys the store uses is in its row of
//! `sealing`, which lies in the file twice, too; where both copies are gone, and nothing opens with the keys that are
//! there, they are taken for the wrong ones.
//!
//! # Several processes
//!
//! Opening a store holds a shared lock on its folder, recovering it an exclusive one, so that nobody opens one of the
//! pictures above but the last. A process that has the damaged file open notices at its next commit that its path leads
//! to another file, acknowledges nothing, and opens that one. What it committed before the rename is in the file or its
//! log, and both are read after the rename, under the write lock of the file where SQLite still gives one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ring::digest::{Context, SHA256};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use rustix::fs::{FlockOperation, flock};
use tracing::{error, info, warn};

use super::checksum::Covered;
use super::codec::Unpacker;
use super::damaged::{Damaged, FileRow, LookupKey, log_is_intact};
use super::fault::{Fault, folder_of, os_words};
use super::large;
use super::open::{FileId, immutable_uri};
use super::register::{Names, add_touches, move_early_updates, position};
use super::seal::{Destination, KeptBody, KeyRing, Lookup, Place, SEALED, Sealer, State};
use super::summary::{Changes, Group, Size};
use super::{BUSY_TIMEOUT, attachments, ballast, open, queries, rows, schema, upgrade};
use crate::message::{Credential, Effect, Encoding, HeaderSet, Lane, MessageStatus, MessageType, Server, Touch};
use crate::sqlite_format::record::ColumnValue;
use crate::store::attachment::PIECE_BYTES;
use crate::store::{LastAnswer, RecoveryRecord, StoreError, now_ms};

/// Messages that are taken over in one transaction: the new file is worth nothing before its end, so this bounds memory.
const STEP: usize = 1000;
/// Bytes of the digest that a sealed key or header set is looked up by.
const DIGEST_BYTES: usize = 32;
/// Problems of a store that are small enough to be looked for whenever it is opened, in bytes.
const LOOKED_THROUGH_BYTES_MAX: u64 = 32 << 20;

/// A lock on the folder of a store. Ends when dropped, or with its process.
pub(super) struct FolderLock(#[expect(dead_code, reason = "it is the lock")] Option<File>);

impl FolderLock {
    /// Keeps recoveries away while the store is opened.
    pub(super) fn shared(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, FlockOperation::NonBlockingLockShared)
    }

    /// Keeps all others away who would open the store.
    pub(super) fn exclusive(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self, StoreError> {
        // No folder, nothing to keep apart; one that only may be written is locked by nobody.
        let Ok(folder) = File::open(folder_of(path)) else { return Ok(Self(None)) };
        let since = Instant::now();
        loop {
            match flock(&folder, operation) {
                Ok(()) => return Ok(Self(Some(folder))),
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < BUSY_TIMEOUT => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let waited_ms = BUSY_TIMEOUT.as_millis() as u64;
                    return Err(StoreError::Busy { path: path.to_owned(), waited_ms });
                }
                // A file system without locks is used by one machine at best; the names still tell the state.
                Err(_) => return Ok(Self(None)),
            }
        }
    }
}

/// Returns the path with this added to its last name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the write-ahead log of a database at this path.
pub(super) fn log_of(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// Says whether there is a log that may hold messages although there is no database, or an empty one: SQLite would
/// delete it.
pub(super) fn has_log_alone(path: &Path) -> bool {
    const HEADER_AND_FRAME: u64 = 32 + 24 + 512;
    fs::metadata(log_of(path)).is_ok_and(|metadata| metadata.len() >= HEADER_AND_FRAME)
        && File::open(log_of(path))
            .and_then(|log| Damaged::read(None, Some(log), &HashMap::new()))
            .is_ok_and(|found| found.is_ours())
}

/// Returns when a recovery began that did not come to its end.
pub(super) fn pending(path: &Path) -> Option<String> {
    let mut prefix = path.file_name()?.to_owned();
    prefix.push(".recovering-");
    let entries = fs::read_dir(folder_of(path)).ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let name = entry.file_name();
        let time = name.as_bytes().strip_prefix(prefix.as_bytes())?;
        let time = time.strip_suffix(b"-wal").or(time.strip_suffix(b"-shm")).unwrap_or(time);
        String::from_utf8(time.to_vec()).ok()
    })
}

/// Says whether a file that SQLite takes for no database, or for another program's, is a damaged store of ours.
pub(super) fn is_ours(path: &Path) -> bool {
    let read = || Damaged::read(Some(File::open(path)?), File::open(log_of(path)).ok(), &HashMap::new());
    read().is_ok_and(|found: Damaged| found.is_ours())
}

/// Looks for damage in a store that is small enough for that.
pub(super) fn look_through(connection: &Connection, path: &Path) -> Result<(), Fault> {
    let bytes: u64 =
        [path.to_owned(), log_of(path)].iter().map(|file| fs::metadata(file).map_or(0, |file| file.len())).sum();
    if bytes > LOOKED_THROUGH_BYTES_MAX {
        return Ok(());
    }
    match problem(connection)? {
        Some(problem) => Err(Fault::Damaged(problem)),
        None => Ok(()),
    }
}

fn problem(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((found != "ok").then_some(found))
}

/// Goes on with a recovery that did not come to its end, or sets the file aside and begins one.
///
/// With `failed`, does nothing when another file is at the path by now: somebody else was faster.
pub(super) fn recover(
    path: &Path,
    failed: Option<FileId>,
    reason: &str,
    keys: &Arc<KeyRing>,
) -> Result<(), StoreError> {
    let _alone = FolderLock::exclusive(path)?;
    let unusable = |error: io::Error| StoreError::Unusable {
        path: path.to_owned(),
        reason: format!("it is damaged and can't be recovered now: {}", os_words(&error)),
    };
    if let Some(time) = pending(path) {
        return Recovery { path, time, reason, keys }.go_on().map_err(|fault| fault_of(fault, path));
    }
    if failed.is_some() && FileId::at(path) != failed {
        return Ok(());
    }
    // A newer version may have changed tables under us: what fails then is the reader, and not the file. Asked while nobody
    // else may open it: a version that can't be seen because the file is in use is no damage.
    match failed.map(|_| upgrade::version_of(path).map_err(Fault::from)) {
        Some(Ok(found)) => open::refuse_newer(path, found)?,
        Some(Err(fault)) if fault.is_busy() => return Err(fault.at(path)),
        Some(Err(_)) | None => {}
    }
    error!(
        target: "db_manager",
        "the message store {} is damaged ({reason}): messages may be lost; it is set aside, and what can be read is recovered",
        path.display()
    );
    let recovery = Recovery { path, time: free_name(path), reason, keys };
    recovery.set_aside().map_err(unusable)?;
    recovery.go_on().map_err(|fault| fault_of(fault, path))
}

/// What keeps a recovery from its end is not the damage: it is tried again.
fn fault_of(fault: Fault, path: &Path) -> StoreError {
    match fault.at(path) {
        StoreError::Damaged { path, reason } => StoreError::Unusable { path, reason },
        StoreError::Full { path, reason, .. } => {
            let reason = format!("it is damaged and can't be recovered now: {reason}; the damaged file is kept");
            StoreError::Unusable { path, reason }
        }
        error => error,
    }
}

/// Returns a time by which no file is named yet.
fn free_name(path: &Path) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
    let numbered = (2..).map(|number| format!("{now}-{number}"));
    let is_free = |time: &String| {
        [".damaged-", ".recovering-"].iter().all(|kind| {
            let name = beside(path, &format!("{kind}{time}"));
            !name.exists() && !log_of(&name).exists()
        })
    };
    std::iter::once(now.clone()).chain(numbered).find(is_free).unwrap_or(now)
}

struct Recovery<'a> {
    path: &'a Path,
    time: String,
    reason: &'a str,
    keys: &'a Arc<KeyRing>,
}

impl Recovery<'_> {
    fn pending(&self) -> PathBuf {
        beside(self.path, &format!(".recovering-{}", self.time))
    }

    fn set_aside_name(&self) -> PathBuf {
        beside(self.path, &format!(".damaged-{}", self.time))
    }

    /// Moves the file away, its log first: once the file itself is away, nothing of it is left behind.
    fn set_aside(&self) -> io::Result<()> {
        for suffix in ["-wal", "-shm", ""] {
            move_if_there(&beside(self.path, suffix), &beside(&self.pending(), suffix))?;
            if suffix == "-wal" {
                sync_folder(self.path)?;
            }
        }
        let pending = self.pending();
        if !pending.exists() {
            // There was a log alone.
            File::create_new(&pending)?;
        }
        fs::set_permissions(&pending, fs::Permissions::from_mode(0o600))?;
        sync_folder(self.path)
    }

    fn go_on(&self) -> Result<(), Fault> {
        let io = |error: io::Error| {
            Fault::from(StoreError::Unusable {
                path: self.path.to_owned(),
                reason: format!("it is damaged and can't be recovered now: {}", os_words(&error)),
            })
        };
        let pending = self.pending();
        if !pending.exists() {
            // A crash between the log and the file.
            self.set_aside().map_err(io)?;
        }
        if !self.path.exists() {
            let (recovered, lost) = self.rebuild()?;
            let aside = self.set_aside_name();
            let hint = "remove it when nothing in it is needed any more";
            if lost > 0 {
                error!(
                    target: "db_manager",
                    "{recovered} messages were recovered from the damaged message store, {lost} are lost; it lies in {}: {hint}",
                    aside.display()
                );
            } else if recovered == 0 {
                error!(
                    target: "db_manager",
                    "no message could be found in the damaged message store, and how many were in it can't be known; it lies in {}: {hint}",
                    aside.display()
                );
            } else {
                error!(
                    target: "db_manager",
                    "{recovered} messages were recovered from the damaged message store, none is known to be lost; it lies in {}: {hint}",
                    aside.display()
                );
            }
        }
        for suffix in ["-wal", ""] {
            move_if_there(&beside(&pending, suffix), &beside(&self.set_aside_name(), suffix)).map_err(io)?;
        }
        remove_if_there(&beside(&pending, "-shm")).map_err(io)?;
        sync_folder(self.path).map_err(io)
    }

    /// Makes the new store from what is left in the old one; says how many messages were recovered and how many not.
    fn rebuild(&self) -> Result<(u64, u64), Fault> {
        let new = beside(self.path, ".rebuilding");
        let unusable =
            |error: io::Error| Fault::from(StoreError::Unusable { path: new.clone(), reason: os_words(&error) });
        for suffix in ["-journal", "-wal", "-shm", ""] {
            remove_if_there(&beside(&new, suffix)).map_err(unusable)?;
        }
        super::open::make_private(&new).map_err(unusable)?;
        let result = self.fill(&new);
        if result.is_err() {
            // Room that is needed more elsewhere.
            if let Err(error) = remove_if_there(&new) {
                warn!(target: "db_manager", "{} stays behind: {error}", new.display());
            }
        }
        let counts = result?;
        File::open(&new).and_then(|file| file.sync_all()).map_err(unusable)?;
        fs::rename(&new, self.path).and_then(|()| sync_folder(self.path)).map_err(unusable)?;
        Ok(counts)
    }

    fn fill(&self, new: &Path) -> Result<(u64, u64), Fault> {
        let pending = self.pending();
        let unreadable =
            |error: io::Error| Fault::from(StoreError::Unusable { path: pending.clone(), reason: os_words(&error) });
        let held = hold(&pending);
        let log = match is_log_foreign(&pending, held.as_ref()) {
            true => {
                error!(target: "db_manager", "{} belongs to another file and is left out", log_of(&pending).display());
                None
            }
            false => File::open(log_of(&pending)).ok(),
        };
        let old = Damaged::read(Some(File::open(&pending).map_err(unreadable)?), log, &roots(&pending, held.as_ref())?)
            .map_err(unreadable)?;
        let sealing: Vec<State> = old.sealing.iter().filter_map(|row| sealing(row)).collect();
        let sealer = Sealer::recovering(self.keys, &sealing)?;
        let mut connection = make(new)?;
        let counts = take_over(&old, &sealer, &mut connection, self)?;
        connection.close().map_err(|(_, error)| error)?;
        drop(old);
        drop(held);
        Ok(counts)
    }
}

fn move_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Keeps other processes from writing into the file that is read, where SQLite can still open it.
fn hold(path: &Path) -> Option<Connection> {
    // An empty file would cost the log: SQLite deletes one that has no database.
    if fs::metadata(path).ok()?.len() == 0 {
        return None;
    }
    // On a full disk the memory that processes share can't be had: see `open_with_room`.
    let alone = ballast::is_full(path).then(|| hold_by(path, "EXCLUSIVE")).flatten();
    alone.or_else(|| hold_by(path, "NORMAL"))
}

fn hold_by(path: &Path, locking_mode: &str) -> Option<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).ok()?;
    connection.busy_timeout(BUSY_TIMEOUT).ok()?;
    connection.pragma_update(None, "locking_mode", locking_mode).ok()?;
    connection.execute_batch("BEGIN IMMEDIATE").ok()?;
    Some(connection)
}

/// Says whether a log is not the one of its database: whole in itself, and nonsense on top of a database that makes
/// sense without it. Any other log is applied.
fn is_log_foreign(path: &Path, with_log: Option<&Connection>) -> bool {
    let is_whole = File::open(log_of(path)).and_then(|log| log_is_intact(&log)).unwrap_or(false);
    if !is_whole {
        return false;
    }
    let is_sound = |connection: &Connection| {
        let application: rusqlite::Result<i32> =
            connection.pragma_query_value(None, "application_id", |row| row.get(0));
        application.is_ok_and(|application| application == schema::APPLICATION_ID)
            && problem(connection).is_ok_and(|problem| problem.is_none())
    };
    if with_log.is_some_and(is_sound) {
        return false;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(immutable_uri(path), flags).is_ok_and(|connection| is_sound(&connection))
}

/// Returns where the trees of a store stand, as far as that can be known: as its own schema says, or else where every
/// store of ours has them. Its tables are always made in the same order, and there is one other order, in which they are
/// once the file was written anew; only what both agree on is known then.
fn roots(path: &Path, held: Option<&Connection>) -> Result<HashMap<u32, String>, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let own = held.and_then(|connection| roots_in(connection).ok());
    let own = own.or_else(|| roots_in(&Connection::open_with_flags(immutable_uri(path), flags).ok()?).ok());
    let is_ours = |roots: &HashMap<u32, String>| {
        ["messages", "bodies", "summary"].iter().all(|table| roots.values().any(|root| root == table))
    };
    if let Some(own) = own.filter(is_ours) {
        return Ok(own);
    }
    let mut connection = Connection::open_in_memory()?;
    prepare(&mut connection)?;
    let mut roots = roots_in(&connection)?;
    connection.execute_batch(queries::WRITE_ANEW)?;
    let anew = roots_in(&connection)?;
    roots.retain(|page, table| anew.get(page) == Some(table));
    Ok(roots)
}

fn roots_in(connection: &Connection) -> rusqlite::Result<HashMap<u32, String>> {
    let mut statement = connection.prepare(queries::ROOTS)?;
    let roots = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    roots.collect()
}

/// Reads what is left of a row of `sealing`.
fn sealing(row: &[ColumnValue]) -> Option<State> {
    let [generation, key, check, previous, previous_check, is_complete] = row else { return None };
    let marks = [key.blob(), check.blob(), previous.blob(), previous_check.blob()];
    State::of(generation.integer()?, marks, is_complete.integer()? == 1)
}

fn prepare(connection: &mut Connection) -> Result<(), Fault> {
    connection.pragma_update(None, "page_size", schema::PAGE_BYTES)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    schema::migrate(connection)?;
    Ok(())
}

/// Makes an empty store that is not kept from harm by a journal: it is worth nothing before it is complete.
fn make(path: &Path) -> Result<Connection, Fault> {
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(()))?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    prepare(&mut connection)?;
    Ok(connection)
}

/// A message that is exactly what was stored.
struct Whole {
    id: i64,
    status: MessageStatus,
    message_type: MessageType,
    lane: Lane,
    accepted_at_ms: i64,
    attempts: u32,
    answer: Option<LastAnswer>,
    items: u32,
    body_bytes: u64,
    project: Option<String>,
    method: String,
    path: String,
    headers: HeaderSet,
    encoding: Encoding,
    touches: Vec<Touch>,
    /// Not sealed.
    body: KeptBody<'static>,
    file: Option<FileRow>,
}

fn take_over(
    old: &Damaged,
    sealer: &Sealer,
    connection: &mut Connection,
    recovery: &Recovery<'_>,
) -> Result<(u64, u64), Fault> {
    let mut reader = Reader { old, sealer, unpacker: Unpacker::default(), has_opened: false, lacking: None };
    let traces: BTreeSet<i64> = old.messages.iter().chain(&old.bodies).map(|place| place.key).collect();
    let ids: Vec<i64> = traces.iter().copied().collect();
    let (mut recovered, mut lost) = (0_u64, 0_u64);
    for step in ids.chunks(STEP) {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut changes = Changes::default();
        for id in step {
            match reader.find_whole(*id) {
                Some(message) if reader.add(&tx, &message, &mut changes)? => recovered += 1,
                _ => lost += 1,
            }
        }
        changes.write(&tx)?;
        tx.commit()?;
    }
    // With another key it would be another store: one that can be recovered whole.
    if let (Some(fault), false) = (reader.lacking, reader.has_opened) {
        return Err(fault);
    }
    // Messages of which no trace is left are known by the old store's own count, as far as that can be read.
    let lost = lost.max(old.counted.saturating_sub(recovered));
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    sealer.put_down(&tx)?;
    for digest in &old.salvaged {
        tx.prepare_cached(queries::ADD_SALVAGED)?.execute([digest])?;
    }
    for name in ["dropped", "expired", "deleted_id"] {
        let value = old.counters.get(name).copied().unwrap_or(0).max(0);
        tx.prepare_cached(queries::SET_COUNTER)?.execute(params![name, value])?;
    }
    for name in [super::rejected::DROPPED, super::people::FULL_REFUSED] {
        if let Some(value) = old.counters.get(name).filter(|value| **value > 0) {
            tx.prepare_cached(queries::ADD_TO_ANY_COUNTER)?.execute(params![name, value])?;
        }
    }
    // Notes are not recovered. Where the old store may have had any, older creates are sent singly.
    let (notes, unsure_before) = ("updated_ahead", "updated_ahead_unsure_before");
    let unsure_before_ms = match old.counters.get(notes) {
        Some(0) => old.counters.get(unsure_before).copied().unwrap_or(0),
        Some(_) | None => now_ms(),
    };
    tx.prepare_cached(queries::RAISE_COUNTER)?.execute(params![unsure_before, unsure_before_ms])?;
    let highest = ids.last().copied().unwrap_or(0).clamp(0, i64::MAX / 4);
    tx.prepare_cached(queries::RAISE_COUNTER)?.execute(params!["deleted_id", highest])?;
    let mut add = tx.prepare_cached(queries::ADD_RECOVERY)?;
    for row in &old.recoveries {
        if let [_, at_ms, set_aside, reason, earlier, lost] = &row[..]
            && let (Some(at_ms), Some(set_aside)) = (at_ms.integer(), set_aside.blob())
        {
            let count = |value: &ColumnValue| value.integer().unwrap_or(0).max(0);
            add.execute(params![at_ms, set_aside, reason.text().unwrap_or_default(), count(earlier), count(lost)])?;
        }
    }
    let aside = recovery.set_aside_name();
    let aside = std::path::absolute(&aside).unwrap_or(aside);
    add.execute(params![now_ms(), aside.as_os_str().as_bytes(), recovery.reason, recovered as i64, lost as i64])?;
    drop(add);
    tx.commit()?;
    info!(target: "db_manager", recovered, lost, "the new message store is complete");
    Ok((recovered, lost))
}

/// Reads messages of a damaged store, and opens what is sealed of them.
struct Reader<'a> {
    old: &'a Damaged,
    /// Opens what was sealed in the old store, and seals for the new one.
    sealer: &'a Sealer,
    unpacker: Unpacker,
    /// Whether anything was sealed and could be opened.
    has_opened: bool,
    /// Which key something was sealed with that can't be opened.
    lacking: Option<Fault>,
}

impl Reader<'_> {
    /// Returns a message if there is a version of it that is whole.
    fn find_whole(&mut self, id: i64) -> Option<Whole> {
        let old = self.old;
        if id <= 0 || id > i64::MAX / 4 {
            return None;
        }
        let bodies: Vec<Vec<ColumnValue>> = old.bodies_of(id).collect();
        let file = old.files.get(&id).into_iter().flatten().find(|file| self.is_file_whole(id, file));
        old.rows_of(&old.messages, id).find_map(|row| bodies.iter().find_map(|body| self.whole(id, &row, body, file)))
    }

    /// Returns what was opened, and notes what there is no key for.
    fn opened<T>(&mut self, opened: Result<T, Fault>) -> Option<T> {
        match opened {
            Ok(opened) => Some(opened),
            Err(fault @ (Fault::KeyMissing { .. } | Fault::WrongKey { .. })) => {
                self.lacking = Some(fault);
                None
            }
            Err(_) => None,
        }
    }

    fn whole(&mut self, id: i64, row: &[ColumnValue], body: &[ColumnValue], file: Option<&FileRow>) -> Option<Whole> {
        let [
            _,
            status,
            message_type,
            lane_id,
            _position,
            accepted_at_ms,
            attempts,
            _next_attempt,
            _epoch,
            answer_at_ms,
            answer_status,
            answer_text,
            items,
            body_bytes,
            project,
            method,
            path,
            header_set_id,
            encoding,
            touches,
        ] = row
        else {
            return None;
        };
        let message_type = MessageType::from_name(message_type.text()?)?;
        let body_bytes = u64::try_from(body_bytes.integer()?).ok()?;
        let encoding_code = encoding.integer()?;
        let encoding = match encoding_code {
            0 => Encoding::Identity,
            1 => Encoding::Gzip,
            2 => Encoding::Deflate,
            _ => return None,
        };
        let sealer = self.sealer;
        let method = method.text()?;
        let path = self.opened(sealer.path(id, path.as_column()))?;
        let kept = KeptBody {
            bytes: body.get(1)?.blob()?.into(),
            codec: body.get(2).and_then(ColumnValue::integer).unwrap_or(0),
            checksum: body.get(3).and_then(ColumnValue::integer),
        };
        let is_sealed = kept.codec >= SEALED;
        let to = Destination { encoding: encoding_code, method, path: &path };
        let packed = self.opened(sealer.open_body(id, &to, kept))?;
        self.has_opened |= is_sealed;
        let file = file.filter(|_| message_type == MessageType::CreateAttachment);
        let bytes_sent = body_bytes.checked_sub(file.map_or(0, |file| file.bytes))?;
        let sent = self.unpacker.unpack(packed.codec, packed.bytes[..].into(), bytes_sent).ok()?;
        if sent.len() as u64 != bytes_sent {
            return None;
        }
        let touches = Touch::from_bytes(touches.blob()?)?;
        let (items, accepted_at_ms) = (u32::try_from(items.integer()?).ok()?, accepted_at_ms.integer()?);
        let project = match project {
            ColumnValue::Null => None,
            project => Some(project.text()?),
        };
        let checksum = large::checksum_of(&packed);
        let has_checksum = checksum.is_some();
        let header_sets = self.old.header_sets.get(&header_set_id.integer()?)?;
        let header_sets = self.values(Lookup::HeaderSet, header_sets, has_checksum);
        for lane in self.lanes(lane_id.integer()?, has_checksum) {
            for wire in &header_sets {
                let headers = HeaderSet::from_wire(wire);
                let covered = Covered {
                    id,
                    message_type: message_type.name(),
                    lane: &lane,
                    method,
                    path: &path,
                    headers: &headers,
                    encoding,
                    touches: &touches,
                    items,
                    project,
                    accepted_at_ms,
                };
                let found = covered.with(&sent);
                if checksum.is_some_and(|checksum| checksum != found) {
                    continue;
                }
                let answer = answer_at_ms.integer().map(|at_ms| LastAnswer {
                    at_ms,
                    status: answer_status.integer().and_then(|status| u16::try_from(status).ok()),
                    text: sealer
                        .text(&Place::Answer { message: id }, answer_text.as_column())
                        .ok()
                        .flatten()
                        .unwrap_or_default(),
                });
                let status = match status.integer().and_then(MessageStatus::from_code) {
                    Some(refused @ (MessageStatus::Rejected | MessageStatus::Held)) => refused,
                    _ => MessageStatus::Failed,
                };
                return Some(Whole {
                    id,
                    status,
                    message_type,
                    lane: lane.clone(),
                    accepted_at_ms,
                    attempts: attempts.integer().and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(0),
                    answer,
                    items,
                    body_bytes,
                    project: project.map(str::to_owned),
                    method: method.to_owned(),
                    path,
                    headers,
                    encoding,
                    touches,
                    body: KeptBody {
                        bytes: packed.bytes.into_owned().into(),
                        codec: packed.codec,
                        checksum: Some(found),
                    },
                    file: file.cloned(),
                });
            }
        }
        None
    }

    /// Returns what a lane may have been.
    fn lanes(&mut self, lane: i64, has_checksum: bool) -> Vec<Lane> {
        let mut lanes = Vec::new();
        for (workspace, credential, server) in self.old.lanes.get(&lane).into_iter().flatten() {
            let (workspace, server) = (workspace.clone(), server.as_deref().map(Server::new));
            if *credential == 0 {
                lanes.push(Lane { server, workspace, credential: None });
                continue;
            }
            let Some(names) = self.old.credentials.get(credential) else { continue };
            for value in self.values(Lookup::Credential, names, has_checksum) {
                let credential = Some(Credential::new(value));
                lanes.push(Lane { server: server.clone(), workspace: workspace.clone(), credential });
            }
        }
        // A page of before the server was recorded must not make the message anybody's.
        if lanes.iter().any(|lane| lane.server.is_some()) {
            lanes.retain(|lane| lane.server.is_some());
        }
        lanes
    }

    /// Returns what a key or header set may have been: what opens, and where values are kept as they are, that.
    fn values(&mut self, of: Lookup, names: &HashSet<LookupKey>, has_checksum: bool) -> Vec<Vec<u8>> {
        let sealer = self.sealer;
        let any_sealed = sealer.is_in_use();
        let mut values = Vec::new();
        for (by, sealed) in names {
            // The digest alone is in an index. Only a checksum tells it from a value of that length.
            if sealed.is_none() && any_sealed && by.len() == DIGEST_BYTES && !has_checksum {
                continue;
            }
            values.extend(self.opened(sealer.value(of, by.clone(), sealed.as_deref())));
        }
        values
    }

    /// Returns the pieces of a file in their order, `None` where one is missing.
    fn pieces<'file>(&self, file: &'file FileRow) -> impl Iterator<Item = (i64, Option<Vec<u8>>)> + use<'_, 'file> {
        let (old, sealer) = (self.old, self.sealer);
        let count = file.bytes.div_ceil(PIECE_BYTES as u64);
        (0..count).map(|number| {
            let id = attachments::piece_id(file.attachment, u32::try_from(number).unwrap_or(u32::MAX));
            let left = file.bytes - number * PIECE_BYTES as u64;
            let expected = left.min(PIECE_BYTES as u64) as usize;
            let piece = old.rows_of(&old.pieces, id).find_map(|row| {
                let piece = row.get(1)?.blob()?;
                let piece = match row.get(2).and_then(ColumnValue::integer) {
                    Some(1) => sealer.open(&Place::Piece { piece: id }, piece).ok()?,
                    _ => piece.to_vec(),
                };
                (piece.len() == expected).then_some(piece)
            });
            (id, piece)
        })
    }

    fn is_file_whole(&self, message: i64, file: &FileRow) -> bool {
        let Some(expected) = self.digest(message, file) else { return false };
        let mut digest = Context::new(&SHA256);
        for (_, piece) in self.pieces(file) {
            let Some(piece) = piece else { return false };
            digest.update(&piece);
        }
        digest.finish().as_ref() == expected
    }

    fn digest(&self, message: i64, file: &FileRow) -> Option<[u8; 32]> {
        attachments::opened_digest(self.sealer, &digest_place(message, file), &file.sha256).ok()
    }

    /// Stores a message under its own number; says whether that could be done.
    fn add(&self, tx: &Transaction<'_>, message: &Whole, changes: &mut Changes) -> Result<bool, Fault> {
        let sealer = self.sealer;
        if let Some(file) = &message.file {
            let Some(digest) = self.digest(message.id, file) else { return Ok(false) };
            let (digest, _) = sealer.keep(&digest_place(message.id, file), &digest)?;
            for (id, piece) in self.pieces(file) {
                // It was there a moment ago; a disk that loses it now costs this message.
                let Some(piece) = piece else { return Ok(false) };
                let (piece, is_sealed) = sealer.keep(&Place::Piece { piece: id }, &piece)?;
                tx.prepare_cached(queries::ADD_PIECE)?.execute(params![id, &piece[..], is_sealed])?;
            }
            let bytes = i64::try_from(file.bytes).unwrap_or(i64::MAX);
            tx.prepare_cached(queries::ADD_RECOVERED_ATTACHMENT)?.execute(params![
                file.attachment,
                message.id,
                bytes,
                &digest[..]
            ])?;
        }
        let mut names = Names::default();
        let lane = names.lane(tx, sealer, &message.lane)?;
        let header_set = names.header_set(tx, sealer, &message.headers)?;
        let answer = message.answer.as_ref();
        tx.prepare_cached(queries::ADD_RECOVERED)?.execute(params![
            message.id,
            message.status.code(),
            message.message_type.name(),
            lane,
            position(message.id),
            message.accepted_at_ms,
            message.attempts,
            answer.map(|answer| answer.at_ms),
            answer.and_then(|answer| answer.status),
            answer
                .map(|answer| sealer.keep_text(&Place::Answer { message: message.id }, answer.text_kept()))
                .transpose()?,
            message.items,
            i64::try_from(message.body_bytes).unwrap_or(i64::MAX),
            message.project,
            message.method,
            sealer.keep_path(message.id, &message.path)?,
            header_set,
            rows::encoding_code(message.encoding),
            Touch::to_bytes(&message.touches),
        ])?;
        let encoding = i64::from(rows::encoding_code(message.encoding));
        let to = Destination { encoding, method: &message.method, path: &message.path };
        let body = sealer.keep_body(message.id, &to, message.body.borrowed())?;
        tx.prepare_cached(queries::ADD_BODY)?.execute(params![
            message.id,
            &body.bytes[..],
            body.codec,
            body.checksum
        ])?;
        add_touches(tx, message.id, &message.touches)?;
        if message.status == MessageStatus::Failed {
            for touch in message.touches.iter().filter(|touch| touch.effect == Effect::Create) {
                move_early_updates(tx, lane, message.id, &touch.key)?;
            }
        }
        let answer_status = match message.status {
            MessageStatus::Rejected => answer.and_then(|answer| answer.status).unwrap_or(0),
            _ => 0,
        };
        let group = Group { answer_status, ..Group::new(lane, message.status, message.message_type) };
        let size =
            Size { items: message.items.into(), body_bytes: i64::try_from(message.body_bytes).unwrap_or(i64::MAX) };
        changes.add(group, size);
        Ok(true)
    }
}

fn digest_place(message: i64, file: &FileRow) -> Place<'static> {
    Place::Digest { message, attachment: file.attachment, bytes: i64::try_from(file.bytes).unwrap_or(i64::MAX) }
}

/// Returns the recoveries that this store went through.
pub(super) fn recoveries(connection: &Connection) -> Result<Vec<RecoveryRecord>, Fault> {
    let mut statement = connection.prepare_cached(queries::RECOVERIES)?;
    let mut found = statement.query([])?;
    let mut recoveries = Vec::new();
    while let Some(row) = found.next()? {
        let set_aside = PathBuf::from(OsString::from_vec(row.get(1)?));
        recoveries.push(RecoveryRecord {
            at_ms: row.get(0)?,
            is_kept: set_aside.exists(),
            set_aside,
            reason: row.get(2)?,
            recovered: rows::unsigned(row, 3)?,
            lost: rows::unsigned(row, 4)?,
        });
    }
    Ok(recoveries)
}
