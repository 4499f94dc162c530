//! Rebuilding: a new store is created beside the damaged one, and filled with every intact message.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use tracing::{error, info};

use super::candidates::CandidateReader;
use crate::sqlite_format::record::ColumnValue;
use crate::store::clock::now_ms;
use crate::store::error::StoreError;
use crate::store::os::os_words;
use crate::store::sqlite::ballast;
use crate::store::sqlite::connect::immutable_uri;
use crate::store::sqlite::counters;
use crate::store::sqlite::damaged::{Damaged, log_is_intact};
use crate::store::sqlite::fault::BUSY_TIMEOUT;
use crate::store::sqlite::fault::Fault;
use crate::store::sqlite::files::log_of;
use crate::store::sqlite::queries;
use crate::store::sqlite::quick_check;
use crate::store::sqlite::schema;
use crate::store::sqlite::seal::{KeyRing, Sealer, SealingState};
use crate::store::sqlite::summary::CountChanges;

/// Messages copied in one transaction: the new file is worthless until it is complete, so this only bounds memory.
const STEP: usize = 1000;

/// Keeps other processes from writing to the file that is being read, if SQLite can still open it.
fn lock_writers(path: &Path) -> Option<Connection> {
    // An empty file would cost the log: SQLite deletes a log without a database.
    if fs::metadata(path).ok()?.len() == 0 {
        return None;
    }
    // On a full disk there is no space for shared memory: see [`crate::store::sqlite::open`].
    let alone = ballast::is_full(path).then(|| lock_writers_by(path, "EXCLUSIVE")).flatten();
    alone.or_else(|| lock_writers_by(path, "NORMAL"))
}

fn lock_writers_by(path: &Path, locking_mode: &str) -> Option<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).ok()?;
    connection.busy_timeout(BUSY_TIMEOUT).ok()?;
    connection.pragma_update(None, "locking_mode", locking_mode).ok()?;
    connection.execute_batch("BEGIN IMMEDIATE").ok()?;
    Some(connection)
}

/// Returns whether a log belongs to another database: complete in itself, but nonsense on top of a database that is
/// sound without it. Any other log is applied.
fn is_log_foreign(path: &Path, with_log: Option<&Connection>) -> bool {
    let is_whole = File::open(log_of(path)).and_then(|log| log_is_intact(&log)).unwrap_or(false);
    if !is_whole {
        return false;
    }
    let is_sound = |connection: &Connection| {
        let application: rusqlite::Result<i32> =
            connection.pragma_query_value(None, "application_id", |row| row.get(0));
        application.is_ok_and(|application| application == schema::APPLICATION_ID)
            && quick_check::problem(connection).is_ok_and(|problem| problem.is_none())
    };
    if with_log.is_some_and(is_sound) {
        return false;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(immutable_uri(path), flags).is_ok_and(|connection| is_sound(&connection))
}

/// Returns the root pages of a store's trees, as far as they can be known: from its own schema, or else from the layout
/// that every store has. Its tables are always created in the same order, and there is one other order, after `VACUUM`;
/// only what both agree on is known then.
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

/// Reads a copy of the row of `sealing`.
fn sealing(row: &[ColumnValue]) -> Option<SealingState> {
    let [generation, key, check, previous, previous_check, is_complete] = row else { return None };
    let marks = [key.blob(), check.blob(), previous.blob(), previous_check.blob()];
    SealingState::of(generation.integer()?, marks, is_complete.integer()? == 1)
}

fn prepare(connection: &mut Connection) -> Result<(), Fault> {
    connection.pragma_update(None, "page_size", schema::PAGE_BYTES)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    schema::migrate(connection)?;
    Ok(())
}

/// Creates an empty store without a journal: until it is complete it is worthless anyway.
fn create(path: &Path) -> Result<Connection, Fault> {
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(()))?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    prepare(&mut connection)?;
    Ok(connection)
}

/// The damaged store that messages are recovered from.
pub(super) struct DamagedSource<'a> {
    /// The damaged file, under its name until the recovery is complete.
    pub(super) pending: &'a Path,
    /// Its name afterwards.
    pub(super) set_aside: &'a Path,
    pub(super) reason: &'a str,
}

/// Fills the new store; returns how many messages were recovered and how many are lost.
pub(super) fn fill(new: &Path, origin: &DamagedSource<'_>, keys: &Arc<KeyRing>) -> Result<(u64, u64), Fault> {
    let pending = origin.pending;
    let unreadable =
        |error: io::Error| Fault::from(StoreError::Unusable { at: pending.into(), reason: os_words(&error) });
    let held = lock_writers(pending);
    let log = match is_log_foreign(pending, held.as_ref()) {
        true => {
            error!(target: "db_manager", "{} belongs to another file and is ignored", log_of(pending).display());
            None
        }
        false => File::open(log_of(pending)).ok(),
    };
    let old = Damaged::read(Some(File::open(pending).map_err(unreadable)?), log, &roots(pending, held.as_ref())?)
        .map_err(unreadable)?;
    let states: Vec<SealingState> = old.sealing.iter().filter_map(|row| sealing(row)).collect();
    let sealer = Sealer::recovering(keys, &states)?;
    let mut connection = create(new)?;
    let (recovered, lost) = copy_messages(&old, &sealer, &mut connection)?;
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    sealer.write_state(&tx)?;
    copy_counters(&old, &tx)?;
    copy_history(&old, &tx)?;
    let aside = std::path::absolute(origin.set_aside).unwrap_or_else(|_| origin.set_aside.to_owned());
    let counts = (recovered as i64, lost as i64);
    tx.prepare_cached(queries::ADD_RECOVERY)?.execute(params![
        now_ms(),
        aside.as_os_str().as_bytes(),
        origin.reason,
        counts.0,
        counts.1
    ])?;
    tx.commit()?;
    info!(target: "db_manager", recovered, lost, "the new message store is complete");
    connection.close().map_err(|(_, error)| error)?;
    drop(old);
    drop(held);
    Ok((recovered, lost))
}

/// Copies every message that is intact; returns how many those are and how many are lost.
fn copy_messages(old: &Damaged, sealer: &Sealer, connection: &mut Connection) -> Result<(u64, u64), Fault> {
    let mut reader = CandidateReader::new(old, sealer);
    let (mut recovered, mut lost) = (0_u64, 0_u64);
    for step in ids(old).chunks(STEP) {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut changes = CountChanges::default();
        for id in step {
            match reader.find_intact(*id) {
                Some(message) if reader.insert(&tx, &message, &mut changes)? => recovered += 1,
                _ => lost += 1,
            }
        }
        changes.write(&tx)?;
        tx.commit()?;
    }
    if let Some(fault) = reader.into_lacking() {
        return Err(fault);
    }
    // Messages without any trace are known from the old store's own count, as far as that is readable.
    Ok((recovered, lost.max(old.counted.saturating_sub(recovered))))
}

/// Returns the ids of all messages with any trace, ascending.
fn ids(old: &Damaged) -> Vec<i64> {
    let traces: BTreeSet<i64> = old.messages.iter().chain(&old.bodies).map(|place| place.key).collect();
    traces.into_iter().collect()
}

/// Copies the counters that survive a recovery.
fn copy_counters(old: &Damaged, tx: &Transaction<'_>) -> Result<(), Fault> {
    for name in ["dropped", "expired", "deleted_id"] {
        let value = old.counters.get(name).copied().unwrap_or(0).max(0);
        tx.prepare_cached(queries::SET_COUNTER)?.execute(params![name, value])?;
    }
    for name in [counters::REJECTED_DROPPED, counters::FULL_REFUSED] {
        if let Some(value) = old.counters.get(name).filter(|value| **value > 0) {
            tx.prepare_cached(queries::ADD_TO_ANY_COUNTER)?.execute(params![name, value])?;
        }
    }
    // Notes are not recovered. If the old store may have had any, older creates are sent one at a time.
    let (notes, unsure_before) = ("updated_ahead", "updated_ahead_unsure_before");
    let unsure_before_ms = match old.counters.get(notes) {
        Some(0) => old.counters.get(unsure_before).copied().unwrap_or(0),
        Some(_) | None => now_ms(),
    };
    tx.prepare_cached(queries::RAISE_COUNTER)?.execute(params![unsure_before, unsure_before_ms])?;
    let highest = ids(old).last().copied().unwrap_or(0).clamp(0, i64::MAX / 4);
    tx.prepare_cached(queries::RAISE_COUNTER)?.execute(params!["deleted_id", highest])?;
    Ok(())
}

/// Copies the digests of salvaged rows and the history of earlier recoveries.
fn copy_history(old: &Damaged, tx: &Transaction<'_>) -> Result<(), Fault> {
    for digest in &old.salvaged {
        tx.prepare_cached(queries::ADD_SALVAGED)?.execute([digest])?;
    }
    let mut add = tx.prepare_cached(queries::ADD_RECOVERY)?;
    for row in &old.recoveries {
        if let [_, at_ms, set_aside, reason, earlier, lost] = &row[..]
            && let (Some(at_ms), Some(set_aside)) = (at_ms.integer(), set_aside.blob())
        {
            let count = |value: &ColumnValue| value.integer().unwrap_or(0).max(0);
            add.execute(params![at_ms, set_aside, reason.text().unwrap_or_default(), count(earlier), count(lost)])?;
        }
    }
    Ok(())
}
