//! Reading a backlog without a key and without writing.
//!
//! Ids, lanes and statuses are readable in every store ([`super::seal`]). They tell whether a live write may conflict
//! with stored messages, even while the store itself cannot be used: its key is missing or wrong, its disk accepts no
//! write, or an older version still uses it. Credentials are not readable, so every lane of the server is examined.
//!
//! Each view reads one current snapshot: other processes may store messages meanwhile. A backlog that cannot be read is
//! [`BacklogSeen::Unknown`], never empty.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use super::fault::Fault;
use super::store::lock;
use super::{ballast, proof, queries, quick_check, recovery, schema, unproven};
use crate::message::{Effect, Server, Touch};
use crate::store::limits::OpenMode;
use crate::store::os::FileId;
use crate::store::place;
use crate::store::view::BacklogSeen;
use crate::store::work::Ahead;

/// A view may run on a thread that serves clients, so it never waits long.
const BUSY_TIMEOUT: Duration = Duration::from_millis(200);
/// How long after a failed view, which may have waited several times, the next one is tried: views run one after the
/// other, and each blocks a thread that serves clients.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Before this schema version not all changes are indexed, and it is unknown of which messages.
const VERSION_MIN: i64 = 2;

/// Reads the backlog of a store that cannot be opened.
#[derive(Default)]
pub(crate) struct BacklogView(Mutex<View>);

#[derive(Default)]
struct View {
    reader: Option<ViewReader>,
    /// The file that was checked for corruption: that takes time, and is done once.
    sound: Option<FileId>,
    /// When this file could not be opened last.
    in_vain: Option<(Option<FileId>, Instant)>,
}

struct ViewReader {
    connection: Connection,
    file: FileId,
    /// Whether no other process can use the store while this is open.
    is_alone: bool,
}

impl BacklogView {
    /// Returns what can be read of the backlog of this server at this path.
    pub(crate) fn look(&self, path: &Path, server: &Server, touches: &[Touch]) -> BacklogSeen {
        let mut view = lock(&self.0);
        let View { reader, sound, in_vain } = &mut *view;
        let file = FileId::at(path);
        if reader.as_ref().map(|reader| reader.file) != file {
            *reader = None;
        }
        if reader.is_none() {
            if in_vain.is_some_and(|(of, at)| of == file && at.elapsed() < RETRY_AFTER) {
                return BacklogSeen::Unknown;
            }
            match open(path, file, sound) {
                Ok(opened) => *reader = Some(opened),
                Err(seen) => {
                    *in_vain = (seen == BacklogSeen::Unknown).then(|| (file, Instant::now()));
                    return seen;
                }
            }
        }
        let Some(ViewReader { connection, is_alone, .. }) = reader.as_mut() else { return BacklogSeen::Unknown };
        let is_alone = *is_alone;
        let (seen, is_current) = look(connection, server, touches).unwrap_or((BacklogSeen::Unknown, false));
        if !is_current || is_alone || unproven::unproven(path).is_some() {
            // An open connection would keep other processes from migrating or proving the store.
            *reader = None;
        }
        seen
    }

    /// Closes the file until the next view.
    pub(crate) fn release(&self) {
        lock(&self.0).reader = None;
    }

    /// Closes the file, and drops what was cached about it.
    pub(crate) fn close(&self) {
        *lock(&self.0) = View::default();
    }
}

fn open(path: &Path, file: Option<FileId>, sound: &mut Option<FileId>) -> Result<ViewReader, BacklogSeen> {
    let is_away = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    // A proof would drop the locks of the connection that is opened here.
    let _no_proof = proof::no_proof_runs().ok_or(BacklogSeen::Unknown)?;
    if recovery::pending(path).is_some() {
        return Err(BacklogSeen::Unknown);
    }
    // A log whose database is missing or empty still holds messages.
    let without_file = |seen| if recovery::has_log_alone(path) { BacklogSeen::Unknown } else { seen };
    match fs::metadata(path) {
        Err(error) if is_away(&error) => return Err(without_file(BacklogSeen::NeverWas)),
        Err(_) => return Err(BacklogSeen::Unknown),
        // No store was ever in place of a folder; another kind of file is never opened.
        Ok(found) if found.is_dir() => return Err(BacklogSeen::NeverWas),
        Ok(found) if !found.is_file() => return Err(BacklogSeen::Unknown),
        Ok(found) if found.len() == 0 => return Err(without_file(BacklogSeen::Empty)),
        Ok(_) => {}
    }
    if place::vet(path, OpenMode::WithoutKey).is_err() {
        return Err(BacklogSeen::Unknown);
    }
    let file = file.ok_or(BacklogSeen::Unknown)?;
    // A full disk has no space for shared memory: a single process can work without it. If others have the store open,
    // that memory exists.
    let is_full = ballast::is_full(path);
    let ways = [
        (OpenFlags::SQLITE_OPEN_READ_WRITE, is_full),
        (OpenFlags::SQLITE_OPEN_READ_WRITE, !is_full),
        // A disk that was remounted read-only.
        (OpenFlags::SQLITE_OPEN_READ_ONLY, false),
    ];
    let opened =
        ways.into_iter().find_map(|(access, is_alone)| Some((connect(path, access, is_alone).ok()?, is_alone)));
    let (connection, is_alone) = opened.ok_or(BacklogSeen::Unknown)?;
    if *sound != Some(file) {
        // Damaged pages may read as empty.
        quick_check::quick_check_if_small(&connection, path).map_err(|_| BacklogSeen::Unknown)?;
        *sound = Some(file);
    }
    Ok(ViewReader { connection, file, is_alone })
}

/// Opens the file. The caller keeps proofs out ([`proof::no_proof_runs`]) until it has its lock.
fn connect(path: &Path, access: OpenFlags, is_alone: bool) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    if is_alone {
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    connection.pragma_update(None, "query_only", true)?;
    // Closing it must not checkpoint.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Opens the file.
    schema::version(&connection)?;
    Ok(connection)
}

/// Returns what the snapshot shows, and whether the schema is of this version.
fn look(connection: &mut Connection, server: &Server, touches: &[Touch]) -> Result<(BacklogSeen, bool), Fault> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
    let application_id: i32 = tx.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version = schema::version_seen(&tx)?;
    if application_id != schema::APPLICATION_ID || !(VERSION_MIN..=schema::known_version()).contains(&version) {
        return Ok((BacklogSeen::Unknown, false));
    }
    let seen = seen(&tx, version, server, touches)?;
    tx.finish()?;
    Ok((seen, version == schema::known_version()))
}

/// Returns what a snapshot of this schema version shows. Entities of a write with more than [`Ahead::TOUCHES_MAX`] are
/// not looked up, nor are references, which are in no index: both conflict with anything that waits.
pub(super) fn seen(
    connection: &Connection,
    version: i64,
    server: &Server,
    touches: &[Touch],
) -> Result<BacklogSeen, Fault> {
    let sql = queries::BacklogQueries::of(version);
    let url = server.base_url();
    let (waiting, stored): (i64, i64) =
        connection.prepare_cached(&sql.counts)?.query_row([url], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if stored == 0 {
        return Ok(BacklogSeen::Empty);
    }
    let waiting = waiting > 0;
    let mut conflicting = waiting
        && (touches.is_empty()
            || touches.len() > Ahead::TOUCHES_MAX
            || touches.iter().any(|touch| touch.effect == Effect::End)
            || connection.prepare_cached(&sql.unindexed)?.exists([url])?);
    for touch in touches {
        if conflicting {
            break;
        }
        let key = &touch.key.as_bytes()[..];
        let waits_for = if touch.effect == Effect::Refer { &sql.end } else { &sql.change };
        conflicting = waiting && connection.prepare_cached(waits_for)?.exists(params![url, key])?
            || touch.can_be_stranded() && connection.prepare_cached(&sql.refused_create)?.exists(params![url, key])?;
    }
    Ok(BacklogSeen::Holds { waiting, conflicting })
}
