//! Space: the size limit, the disk reserve, eviction, expiry, and returning free pages to the disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction};

use super::codec::Packed;
use super::delete::Deletion;
use super::fault::BUSY_TIMEOUT;
use super::fault::Fault;
use super::summary::CountChanges;
use super::{attachments, queries, stranded};
use crate::message::{Message, Touch};
use crate::store::error::StoreError;
use crate::store::full_state::{FullLimit, Fullness};
use crate::store::limits::{Limits, WhenFull};
use crate::store::os::{folder_of, os_words};
use crate::store::room::OWN_NEEDS_BYTES;

/// The bytes of a message in addition to its body, path and touches: the row's other columns and its index entries.
pub(super) const ROW_BYTES: u64 = 160;
/// The bytes of a touch in the index.
const TOUCH_BYTES: u64 = Touch::LEN as u64 + 30;
/// Pages returned in one step, so that no writer waits long.
const PAGES_PER_STEP: u32 = 1000;
/// Eviction frees at least this share of the limit, as a divisor, so that the next message does not evict again.
pub(super) const ROOM_SHARE: u64 = 100;
/// The disk space of a commit in the log, as a multiple of the bytes stored: pages are logged whole.
const LOG_FACTOR: u64 = 2;

/// The space that a store uses and has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    /// Bytes of the database and its write-ahead log.
    pub(super) file_bytes: u64,
    /// Free bytes in the database that new messages can reuse.
    pub(super) free_bytes: u64,
    /// Free bytes on the disk for this user.
    pub(super) disk_free_bytes: u64,
    /// Bytes by which the database file grows when the log is checkpointed. A full disk without them cannot recover by
    /// delivering: the log grows with every record, and never shrinks.
    pub(super) owed_bytes: u64,
}

impl Space {
    /// Measures the store; cheap enough for every commit.
    pub(super) fn of(connection: &Connection, path: &Path, log: &Path) -> Result<Self, Fault> {
        let (least, page_bytes) = Self::least(connection, path, log)?;
        let free: i64 = connection.prepare_cached("PRAGMA freelist_count")?.query_row([], |row| row.get(0))?;
        Ok(Self {
            owed_bytes: fs::metadata(path).map_or(0, |metadata| least.owed_bytes.saturating_sub(metadata.len())),
            free_bytes: (free * page_bytes).unsigned_abs(),
            ..least
        })
    }

    /// Measures only what a store with much room has to know: as if it had no free page, and all of it were still owed.
    /// Also returns the size of a page.
    fn least(connection: &Connection, path: &Path, log: &Path) -> Result<(Self, i64), Fault> {
        let pages: i64 = connection.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
        let page_bytes: i64 = connection.prepare_cached("PRAGMA page_size")?.query_row([], |row| row.get(0))?;
        let log_bytes = fs::metadata(log).map_or(0, |metadata| metadata.len());
        let database_bytes = (pages * page_bytes).unsigned_abs();
        let least = Self {
            owed_bytes: database_bytes,
            file_bytes: database_bytes + log_bytes,
            free_bytes: 0,
            disk_free_bytes: disk_free_bytes(path)?,
        };
        Ok((least, page_bytes))
    }

    /// Returns the limit that storing `needed` bytes would exceed, if any.
    pub(super) fn fullness(&self, limits: &Limits, needed: u64) -> Option<Fullness> {
        limit_exceeded_by(self, limits, needed)
    }

    /// Returns how many bytes fit into the limits.
    pub(super) fn room(&self, limits: &Limits) -> u64 {
        let (mut fits, mut too_much) = (0, limits.size_max.saturating_add(1));
        if limit_exceeded_by(self, limits, 1).is_some() {
            return 0;
        }
        // A binary search: more bytes never fit where fewer do not.
        while too_much - fits > 1 {
            let middle = fits + (too_much - fits) / 2;
            match limit_exceeded_by(self, limits, middle) {
                None => fits = middle,
                Some(_) => too_much = middle,
            }
        }
        fits
    }

    /// Returns how many bytes must become free on the disk before it accepts `needed` bytes that go into free pages.
    pub(super) fn disk_lacks(&self, limits: &Limits, needed: u64) -> u64 {
        let to_get_out = self.owed_bytes.saturating_add(needed.saturating_mul(LOG_FACTOR)) + OWN_NEEDS_BYTES / 2;
        to_get_out.max(limits.disk_reserve.saturating_add(needed)).saturating_sub(self.disk_free_bytes)
    }

    /// Returns the capacity of the store: what it uses, and what the limits leave.
    pub(super) fn capacity(&self, limits: &Limits) -> u64 {
        let disk_left = self.disk_free_bytes.saturating_sub(limits.disk_reserve);
        limits.size_max.min(self.file_bytes.saturating_add(disk_left))
    }
}

/// Returns the free bytes for this user on the disk of this path.
fn disk_free_bytes(path: &Path) -> Result<u64, StoreError> {
    // A file that was deleted while open still has a disk.
    match rustix::fs::statvfs(path).or_else(|_| rustix::fs::statvfs(folder_of(path))) {
        Ok(disk) => Ok(disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(errno) => Err(StoreError::Unusable { at: path.into(), reason: os_words(&errno.into()) }),
    }
}

/// Ensures that `needed` bytes fit into the limits, evicting the oldest messages if configured. Fails with
/// [`StoreError::Full`] and the exceeded limit otherwise.
pub(super) fn make_room(
    tx: &Transaction<'_>,
    path: &Path,
    log: &Path,
    limits: &Limits,
    needed: u64,
) -> Result<(), Fault> {
    if limit_exceeded_by(&Space::least(tx, path, log)?.0, limits, needed).is_none() {
        return Ok(());
    }
    let space = Space::of(tx, path, log)?;
    let Some(Fullness { limit, reason }) = limit_exceeded_by(&space, limits, needed) else { return Ok(()) };
    let full = |reason| Fault::from(StoreError::Full { at: path.into(), limit, needed, reason });
    if limits.when_full == WhenFull::Refuse || needed > limits.size_max {
        return Err(full(reason));
    }
    // Evicted messages leave free pages, and messages in free pages grow neither the file nor the disk usage.
    let missing = needed.saturating_sub(space.free_bytes).max(limits.size_max / ROOM_SHARE);
    if needed <= space.free_bytes || drop_oldest(tx, missing)? { Ok(()) } else { Err(full(reason)) }
}

/// Returns the limit that storing `needed` bytes would exceed.
fn limit_exceeded_by(space: &Space, limits: &Limits, needed: u64) -> Option<Fullness> {
    let full = |limit, reason| Some(Fullness { limit, reason });
    let growth = needed.saturating_sub(space.free_bytes);
    if space.file_bytes.saturating_add(growth) > limits.size_max && growth > 0 {
        let used = space.file_bytes - space.free_bytes.min(space.file_bytes);
        let reason = format!("it holds {used} bytes, and max_size is {} bytes", limits.size_max);
        return full(FullLimit::MaxSize, reason);
    }
    let free = space.disk_free_bytes;
    // Bytes in free pages need less, or a disk that was full once would stay full forever.
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

/// Returns approximately how many bytes of the file a message takes with its encoded body, without its attachment.
pub(super) fn bytes_needed(message: &Message, body: &Packed) -> u64 {
    (body.len() + message.request.path.len()) as u64 + ROW_BYTES + message.touches.len() as u64 * TOUCH_BYTES
}

/// Evicts the oldest waiting messages until `bytes` are free; returns whether there were enough.
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
    let mut deletion = Deletion::of(tx, queries::TO_DELETE)?;
    for id in &oldest {
        deletion.delete([*id], &mut changes)?;
    }
    // The space is needed now, so the pieces of their files are removed at once.
    while attachments::remove_a_step(tx)? {}
    tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(rusqlite::params!["dropped", oldest.len() as i64])?;
    stranded::note_unstranded(tx)?;
    changes.write(tx)?;
    Ok(true)
}

/// Returns the oldest messages that were accepted before this time.
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

/// Deletes expired messages, unless they are in flight now, and counts them.
pub(super) fn drop_expired(tx: &Transaction<'_>, ids: &[i64]) -> Result<u64, Fault> {
    let mut changes = CountChanges::default();
    let mut deletion = Deletion::of(tx, queries::NOT_IN_FLIGHT)?;
    let mut dropped = 0;
    for id in ids {
        dropped += i64::from(deletion.delete([*id], &mut changes)?.is_some());
    }
    tx.prepare_cached(queries::ADD_TO_COUNTER)?.execute(rusqlite::params!["expired", dropped])?;
    stranded::note_unstranded(tx)?;
    changes.write(tx)?;
    Ok(dropped.unsigned_abs())
}

/// Returns some free pages to the file system; returns whether there are more.
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

/// Checkpoints and truncates the log, unless other processes are reading: this waits for no one, and the next
/// compaction does it.
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
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn fits(space: &Space, needed: u64) -> bool {
        let limits = Limits { size_max: 1 << 40, disk_reserve: 0, when_full: WhenFull::Refuse };
        limit_exceeded_by(space, &limits, needed).is_none()
    }

    #[test]
    fn a_disk_keeps_the_space_that_delivering_needs() {
        let space = Space { file_bytes: 4 * MIB, free_bytes: 0, disk_free_bytes: 2 * MIB, owed_bytes: MIB };
        assert!(fits(&space, 1000));
        assert!(!fits(&space, MIB / 2), "its log and its growth would take what the log's writing back needs");
        assert!(!fits(&Space { owed_bytes: 2 * MIB, ..space }, 1), "the log could not be written back");
        assert!(!fits(&Space { disk_free_bytes: 0, owed_bytes: 0, ..space }, 1));
    }

    proptest! {
        #[test]
        fn the_short_check_never_admits_more_than_the_whole_one(
            (database, log, free) in (0..64 * MIB, 0..8 * MIB, 0..64 * MIB),
            (disk_free, written) in (0..512 * MIB, 0..64 * MIB),
            (size_max, disk_reserve, needed) in (0..128 * MIB, 0..256 * MIB, 0..32 * MIB),
        ) {
            let (file_bytes, free_bytes) = (database + log, free.min(database));
            let space = Space {
                file_bytes,
                free_bytes,
                disk_free_bytes: disk_free,
                owed_bytes: database.saturating_sub(written),
            };
            let least = Space { free_bytes: 0, owed_bytes: database, ..space };
            let limits = Limits { size_max, disk_reserve, when_full: WhenFull::Refuse };
            if limit_exceeded_by(&least, &limits, needed).is_none() {
                prop_assert!(limit_exceeded_by(&space, &limits, needed).is_none(), "{space:?} {limits:?} {needed}");
            }
        }
    }

    #[test]
    fn free_pages_are_reused_where_the_file_may_not_grow() {
        let space = Space { file_bytes: 3 * MIB, free_bytes: 0, disk_free_bytes: MIB / 2, owed_bytes: 0 };
        assert!(!fits(&space, 10_000));
        assert!(fits(&Space { free_bytes: 2 * MIB, ..space }, 10_000), "what was delivered has made no room");
    }
}
