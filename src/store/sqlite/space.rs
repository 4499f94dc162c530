//! The size limit, the free-disk reserve, and giving space back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction};

use super::codec::Packed;
use super::delete::delete_one;
use super::fault::BUSY_TIMEOUT;
use super::fault::Fault;
use super::summary::CountChanges;
use super::{attachments, queries, stranded};
use crate::message::{Message, Touch};
use crate::store::error::StoreError;
use crate::store::full_state::{FullLimit, Fullness};
use crate::store::os::{folder_of, os_words};
use crate::store::room::OWN_NEEDS_BYTES;
use crate::store::{Limits, WhenFull};

/// What a message takes beside its body, path and entities: the row's other columns and its entries in the indexes.
pub(super) const ROW_BYTES: u64 = 160;
/// What an entity takes in the look-up.
const TOUCH_BYTES: u64 = Touch::LEN as u64 + 30;
/// Pages given back in one step, so that nobody waits long for the write lock.
const PAGES_PER_STEP: u32 = 1000;
/// When room is made, at least this share of the limit, so that it need not be made again with the next message.
pub(super) const ROOM_SHARE: u64 = 100;
/// What the log may take of the disk for a commit, as a multiple of the bytes that are stored: pages are logged whole.
const LOG_FACTOR: u64 = 2;

/// How much room a store has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    /// Bytes of the database and its write-ahead log.
    pub(super) file_bytes: u64,
    /// Bytes in the database that new messages can reuse.
    pub(super) free_bytes: u64,
    /// Bytes free on the disk for this user.
    pub(super) disk_free_bytes: u64,
    /// Bytes by which the database's file grows when the log is written back. A disk without them can't be left by
    /// delivering: the log grows with every note, and never gets shorter.
    pub(super) owed_bytes: u64,
}

impl Space {
    /// Measures the store; cheap enough for every commit.
    pub(super) fn of(connection: &Connection, path: &Path, log: &Path) -> Result<Self, Fault> {
        let pages: i64 = connection.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
        let free: i64 = connection.prepare_cached("PRAGMA freelist_count")?.query_row([], |row| row.get(0))?;
        let page_bytes: i64 = connection.prepare_cached("PRAGMA page_size")?.query_row([], |row| row.get(0))?;
        let log_bytes = fs::metadata(log).map_or(0, |metadata| metadata.len());
        let database_bytes = (pages * page_bytes).unsigned_abs();
        Ok(Self {
            owed_bytes: fs::metadata(path).map_or(0, |metadata| database_bytes.saturating_sub(metadata.len())),
            file_bytes: database_bytes + log_bytes,
            free_bytes: (free * page_bytes).unsigned_abs(),
            disk_free_bytes: disk_free_bytes(path)?,
        })
    }

    /// Returns the limit that storing this many bytes would pass, if there is one.
    pub(super) fn fullness(&self, limits: &Limits, needed: u64) -> Option<Fullness> {
        in_the_way(self, limits, needed)
    }

    /// Returns how many bytes find room within the limits.
    pub(super) fn room(&self, limits: &Limits) -> u64 {
        let (mut fits, mut too_much) = (0, limits.size_max.saturating_add(1));
        if in_the_way(self, limits, 1).is_some() {
            return 0;
        }
        // Whatever the limits are, more bytes never pass where fewer don't.
        while too_much - fits > 1 {
            let middle = fits + (too_much - fits) / 2;
            match in_the_way(self, limits, middle) {
                None => fits = middle,
                Some(_) => too_much = middle,
            }
        }
        fits
    }

    /// Returns how many bytes have to come free on the disk before it takes this many, where they go into free pages.
    pub(super) fn disk_lacks(&self, limits: &Limits, needed: u64) -> u64 {
        let to_get_out = self.owed_bytes.saturating_add(needed.saturating_mul(LOG_FACTOR)) + OWN_NEEDS_BYTES / 2;
        to_get_out.max(limits.disk_reserve.saturating_add(needed)).saturating_sub(self.disk_free_bytes)
    }

    /// Returns how many bytes the store could hold: what it has, and what the limits leave.
    pub(super) fn capacity(&self, limits: &Limits) -> u64 {
        let disk_left = self.disk_free_bytes.saturating_sub(limits.disk_reserve);
        limits.size_max.min(self.file_bytes.saturating_add(disk_left))
    }
}

/// Returns the bytes free for this user on the disk that holds the path.
fn disk_free_bytes(path: &Path) -> Result<u64, StoreError> {
    // A file that was deleted while it is open still has a disk.
    match rustix::fs::statvfs(path).or_else(|_| rustix::fs::statvfs(folder_of(path))) {
        Ok(disk) => Ok(disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(errno) => Err(StoreError::Unusable { path: path.to_owned(), reason: os_words(&errno.into()) }),
    }
}

/// Sees to it that so many bytes fit into the limits, or says which one is in the way.
pub(super) fn make_room(
    tx: &Transaction<'_>,
    path: &Path,
    log: &Path,
    limits: &Limits,
    needed: u64,
) -> Result<(), Fault> {
    let space = Space::of(tx, path, log)?;
    let Some(Fullness { limit, reason }) = in_the_way(&space, limits, needed) else { return Ok(()) };
    let full = |reason| Fault::from(StoreError::Full { path: path.to_owned(), limit, needed, reason });
    if limits.when_full == WhenFull::Refuse || needed > limits.size_max {
        return Err(full(reason));
    }
    // What is dropped leaves free pages, and messages in free pages let neither the file grow nor the disk fill up.
    let missing = needed.saturating_sub(space.free_bytes).max(limits.size_max / ROOM_SHARE);
    if needed <= space.free_bytes || drop_oldest(tx, missing)? { Ok(()) } else { Err(full(reason)) }
}

/// Names the limit that storing so many bytes would pass.
fn in_the_way(space: &Space, limits: &Limits, needed: u64) -> Option<Fullness> {
    let full = |limit, reason| Some(Fullness { limit, reason });
    let growth = needed.saturating_sub(space.free_bytes);
    if space.file_bytes.saturating_add(growth) > limits.size_max && growth > 0 {
        let used = space.file_bytes - space.free_bytes.min(space.file_bytes);
        let reason = format!("it holds {used} bytes, and max_size is {} bytes", limits.size_max);
        return full(FullLimit::MaxSize, reason);
    }
    let free = space.disk_free_bytes;
    // What goes into free pages needs less, or a disk that was full once would be it for ever.
    let own_needs = if growth > 0 { growth.saturating_add(OWN_NEEDS_BYTES) } else { OWN_NEEDS_BYTES / 2 };
    let logged = needed.saturating_mul(LOG_FACTOR);
    let to_get_out = space.owed_bytes.saturating_add(logged).saturating_add(own_needs);
    if free < to_get_out {
        let reason = format!("the disk has {free} bytes free, which are needed to deliver what is stored");
        return full(FullLimit::Disk, reason);
    }
    if free < limits.disk_reserve.saturating_add(needed) {
        let reason = format!("the disk has {free} bytes free, and {} bytes are reserved", limits.disk_reserve);
        return full(FullLimit::DiskReserve, reason);
    }
    None
}

/// Returns about how many bytes of the file a message takes with its body as it is kept, without its attachment.
pub(super) fn bytes_needed(message: &Message, body: &Packed) -> u64 {
    (body.len() + message.request.path.len()) as u64 + ROW_BYTES + message.touches.len() as u64 * TOUCH_BYTES
}

/// Deletes the oldest waiting messages until so many bytes are free; says whether there were enough of them.
fn drop_oldest(tx: &Transaction<'_>, bytes: u64) -> Result<bool, Fault> {
    let mut oldest = Vec::new();
    let mut found = 0;
    {
        let mut statement = tx.prepare_cached(queries::OLDEST_WAITING)?;
        let mut waiting = statement.query([])?;
        while found < bytes {
            let Some(row) = waiting.next()? else { return Ok(false) };
            oldest.push(row.get::<_, i64>(0)?);
            found += row.get::<_, i64>(1)?.unsigned_abs() + ROW_BYTES;
        }
    }
    let mut changes = CountChanges::default();
    let mut delete = tx.prepare_cached(queries::DELETE_MESSAGE)?;
    for id in &oldest {
        delete_one(tx, &mut delete, [*id], &mut changes)?;
    }
    // The room is needed now, so the bytes of their files go at once.
    while attachments::remove_a_step(tx)? {}
    tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(rusqlite::params!["dropped", oldest.len() as i64])?;
    stranded::note_unstranded(tx)?;
    changes.write(tx)?;
    Ok(true)
}

/// Returns those of the oldest messages that were accepted before then.
pub(super) fn expired(connection: &Connection, accepted_before_ms: i64, limit: usize) -> Result<Vec<i64>, Fault> {
    let mut statement = connection.prepare_cached(queries::OLDEST)?;
    let mut oldest = statement.query([limit as i64])?;
    let mut expired = Vec::new();
    while let Some(row) = oldest.next()? {
        if row.get::<_, i64>(1)? < accepted_before_ms {
            expired.push(row.get(0)?);
        }
    }
    Ok(expired)
}

/// Deletes messages that have become too old, unless they are in flight by now, and counts them.
pub(super) fn drop_expired(tx: &Transaction<'_>, ids: &[i64]) -> Result<u64, Fault> {
    let mut changes = CountChanges::default();
    let mut delete = tx.prepare_cached(queries::DELETE_EXPIRED)?;
    let mut dropped = 0;
    for id in ids {
        dropped += i64::from(delete_one(tx, &mut delete, [*id], &mut changes)?.is_some());
    }
    tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(rusqlite::params!["expired", dropped])?;
    stranded::note_unstranded(tx)?;
    changes.write(tx)?;
    Ok(dropped.unsigned_abs())
}

/// Gives some free pages back to the file system; says whether there are more.
pub(super) fn shrink_a_step(connection: &Connection) -> rusqlite::Result<bool> {
    let free = |connection: &Connection| -> rusqlite::Result<i64> {
        connection.pragma_query_value(None, "freelist_count", |row| row.get(0))
    };
    let before = free(connection)?;
    let mut step = connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES_PER_STEP})"))?;
    let mut rows = step.query([])?;
    while rows.next()?.is_some() {}
    drop(rows);
    let after = free(connection)?;
    Ok(after > 0 && after < before)
}

/// Writes the log back into the database and cuts it to nothing, unless other processes are reading: nobody waits for
/// them here, and the next compaction gets it.
pub(super) fn truncate_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::ZERO)?;
    let truncated = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    match truncated {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn fits(space: &Space, needed: u64) -> bool {
        let limits = Limits { size_max: 1 << 40, disk_reserve: 0, when_full: WhenFull::Refuse };
        in_the_way(space, &limits, needed).is_none()
    }

    #[test]
    fn a_disk_keeps_what_the_store_needs_to_deliver_whatever_is_reserved() {
        let space = Space { file_bytes: 4 * MIB, free_bytes: 0, disk_free_bytes: 2 * MIB, owed_bytes: MIB };
        assert!(fits(&space, 1000));
        assert!(!fits(&space, MIB / 2), "its log and its growth would take what the log's writing back needs");
        assert!(!fits(&Space { owed_bytes: 2 * MIB, ..space }, 1), "the log could not be written back");
        assert!(!fits(&Space { disk_free_bytes: 0, owed_bytes: 0, ..space }, 1));
    }

    #[test]
    fn free_pages_are_used_again_on_a_disk_where_the_file_may_not_grow() {
        let space = Space { file_bytes: 3 * MIB, free_bytes: 0, disk_free_bytes: MIB / 2, owed_bytes: 0 };
        assert!(!fits(&space, 10_000));
        assert!(fits(&Space { free_bytes: 2 * MIB, ..space }, 10_000), "what was delivered has made no room");
    }
}
