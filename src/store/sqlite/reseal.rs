//! Re-encrypting or decrypting what is stored to match the settings, and scrubbing older data.
//!
//! ```text
//! change the key, with the credentials ─▶ the rest, some rows per commit ─▶ VACUUM ─▶ truncate the log ─▶ record it
//! ```
//!
//! From the first commit on, every process stores with the new key, so the remaining work only shrinks. Every row
//! records how it is sealed, so a process that was killed at any point is followed by one that resumes. No row is done
//! twice, and there is no cursor to lose.
//!
//! A file in which every row is sealed still contains plain text: in free pages, in unused parts of pages, and in the
//! log. SQLite clears the first two only with `VACUUM`, which blocks writers while it runs. For a file of
//! [`REWRITTEN_BYTES_MAX`] that is well below the time that writers wait ([`BUSY_TIMEOUT`]); a larger one is not
//! rewritten while an agent is running.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::fault::BUSY_TIMEOUT;
use super::fault::Fault;
use super::seal::{self, KeyRing, SealContext, Sealer, SealingState};
use super::unproven::UnprovenWatch;
use super::{attachments, browse, guard, header_sets, key_change, open, queries, record, space};
use crate::store::encryption::key::Keys;
use crate::store::encryption::reseal::{Resealed, Resealing};
use crate::store::error::StoreError;
use crate::store::limits::{Limits, OpenMode};
use crate::store::view::AgentRecord;

/// The most rows in one commit.
const STEP_ROWS: usize = 500;
/// The approximate size of one commit: about ten milliseconds.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// A file up to this size is rewritten beside a running agent: that takes a second or two.
const REWRITTEN_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How often truncating the log is attempted, each time for [`BUSY_TIMEOUT`].
const TRUNCATE_TRIES: u32 = 3;

/// Re-encrypts or decrypts everything to match the keys; see [`crate::store::reseal`].
pub(crate) fn reseal(
    path: &Path,
    limits: Limits,
    keys: &Keys,
    on_progress: &mut dyn FnMut(Resealing) -> bool,
) -> Result<Resealed, StoreError> {
    let ring = Arc::new(KeyRing::new(keys));
    open::prove(path)?;
    let opened = open::open(path, OpenMode::Existing, limits.size_max, &ring)?;
    drop(opened.readers);
    let mut work = Work {
        path,
        log: &opened.log,
        connection: opened.writer,
        watch: opened.watch,
        ring,
        done: Resealing::default(),
    };
    let result = work.run(on_progress).map_err(|fault| fault.at(path));
    work.watch.before_close(&work.connection);
    result
}

struct Work<'a> {
    path: &'a Path,
    log: &'a Path,
    connection: Connection,
    watch: UnprovenWatch,
    ring: Arc<KeyRing>,
    done: Resealing,
}

/// A table or column whose values are sealed.
struct SealedRows {
    /// Selects ids and sizes of rows after ?1 that are not sealed with ?2, at most ?3.
    next: &'static str,
    /// Seals or opens one row to match the sealer.
    reseal: fn(&Transaction<'_>, &Sealer, i64) -> Result<(), Fault>,
}

const SEALED_ROWS: [SealedRows; 5] = [
    SealedRows { next: queries::HEADER_SETS_TO_RESEAL, reseal: header_sets::reseal_header_set },
    SealedRows { next: queries::TEXTS_TO_RESEAL, reseal: record::reseal_texts },
    SealedRows { next: queries::BODIES_TO_RESEAL, reseal: record::reseal_body },
    SealedRows { next: queries::PIECES_TO_RESEAL, reseal: reseal_piece },
    SealedRows { next: queries::DIGESTS_TO_RESEAL, reseal: reseal_digest },
];

/// The result of a walk over the rows.
enum Walked {
    All,
    Stopped,
    /// Another process changed the key.
    Changed,
}

impl Work<'_> {
    fn run(&mut self, on_progress: &mut dyn FnMut(Resealing) -> bool) -> Result<Resealed, Fault> {
        // Overwritten values are cleared at once, in case the file cannot be rewritten.
        self.connection.pragma_update(None, "secure_delete", true)?;
        let target = self.ring.current();
        key_change::change_key(&mut self.connection, &self.watch, &self.ring, target)?;
        loop {
            let state = SealingState::read(&self.connection)?;
            if state.key() != target {
                let reason =
                    "another process is changing its key to another one; run this again when it has finished".into();
                return Err(StoreError::Unusable { at: self.path.into(), reason }.into());
            }
            if state.is_complete() {
                return Ok(Resealed::Complete(self.done));
            }
            let sealer = Sealer::new(&self.ring, state)?;
            sealer.unlocked()?;
            match self.walk(&sealer, on_progress)? {
                Walked::All => {}
                Walked::Stopped => return Ok(Resealed::Stopped(self.done)),
                Walked::Changed => continue,
            }
            // Plain text need not be scrubbed.
            if target.is_some()
                && let Some(reason) = self.remove_remnants()?
            {
                return Ok(Resealed::Remnants { done: self.done, reason });
            }
            if key_change::note_complete(&mut self.connection, &self.watch, sealer.generation())? {
                return Ok(Resealed::Complete(self.done));
            }
        }
    }

    /// Seals or opens every row to match the sealer.
    fn walk(&mut self, sealer: &Sealer, on_progress: &mut dyn FnMut(Resealing) -> bool) -> Result<Walked, Fault> {
        let key = sealer.state().key().map(|id| id.0.to_vec());
        let mut damaged = None;
        let tx = guard::begin(&mut self.connection, &self.watch)?;
        tx.execute(queries::FORGET_RELEASED_DIGESTS, [])?;
        tx.commit()?;
        for kind in &SEALED_ROWS {
            let mut after = i64::MIN;
            loop {
                // Selected outside the write lock: there may be a million rows that are done already.
                let rows = self.next(kind, after, key.as_deref())?;
                let Some((last, _)) = rows.last() else { break };
                after = *last;
                let tx = guard::begin(&mut self.connection, &self.watch)?;
                if seal::generation(&tx)? != sealer.generation() {
                    return Ok(Walked::Changed);
                }
                for (id, bytes) in rows {
                    match (kind.reseal)(&tx, sealer, id) {
                        Ok(()) => self.done.done += 1,
                        // A row that does not open must not keep the others from being sealed.
                        Err(Fault::Damaged(reason)) => damaged = damaged.or(Some(reason)),
                        Err(fault) => return Err(fault),
                    }
                    self.done.bytes += bytes;
                }
                tx.commit()?;
                if !on_progress(self.done) {
                    return Ok(Walked::Stopped);
                }
            }
        }
        damaged.map_or(Ok(Walked::All), |reason| Err(Fault::Damaged(reason)))
    }

    /// Returns the ids and sizes of the rows of the next step.
    fn next(&self, kind: &SealedRows, after: i64, key: Option<&[u8]>) -> Result<Vec<(i64, u64)>, Fault> {
        let mut statement = self.connection.prepare_cached(kind.next)?;
        let mut found = statement.query(params![after, key, STEP_ROWS as i64])?;
        let (mut rows, mut sum) = (Vec::new(), 0);
        while let Some(row) = found.next()? {
            let bytes = row.get::<_, i64>(1)?.unsigned_abs();
            rows.push((row.get(0)?, bytes));
            sum += bytes;
            if sum >= STEP_BYTES {
                break;
            }
        }
        Ok(rows)
    }

    /// Scrubs the remnants of deleted and changed rows from the files; returns why that is impossible now, if so.
    fn remove_remnants(&mut self) -> Result<Option<String>, Fault> {
        guard::refuse_newer(&self.connection, self.path)?;
        self.watch.vet()?;
        while space::shrink_a_step(&self.connection)? {}
        let space = space::Space::of(&self.connection, self.path, self.log)?;
        if space.file_bytes > REWRITTEN_BYTES_MAX
            && browse::agents(&self.connection)?.iter().any(AgentRecord::is_running)
        {
            return Ok(Some(format!(
                "a file of {} bytes cannot be rewritten while an agent uses it, which would have to wait too long; \
                 stop the agent, or let it deliver what is stored",
                space.file_bytes
            )));
        }
        // Once in the temporary folder, which may be on this disk, and once in the log.
        let needed = space.file_bytes.saturating_mul(2);
        if space.disk_free_bytes < needed {
            let free = space.disk_free_bytes;
            return Ok(Some(format!("rewriting the file takes {needed} bytes, and the disk has {free} free")));
        }
        // `VACUUM` needs a copy, which memory may not hold. Only now: everything that reaches a temporary file is
        // sealed.
        self.connection.pragma_update(None, "temp_store", "FILE")?;
        self.connection.execute_batch(queries::WRITE_ANEW)?;
        for _ in 0..TRUNCATE_TRIES {
            self.watch.vet()?;
            let is_busy: bool = self.connection.query_row(queries::EMPTY_LOG, [], |row| row.get(0))?;
            if !is_busy {
                return Ok(None);
            }
        }
        let waited = BUSY_TIMEOUT.as_secs() * u64::from(TRUNCATE_TRIES);
        Ok(Some(format!("the log cannot be truncated: another process has been reading it for {waited} s")))
    }
}

fn reseal_piece(tx: &Transaction<'_>, sealer: &Sealer, id: i64) -> Result<(), Fault> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found: Option<(Vec<u8>, bool)> =
        tx.prepare_cached(queries::PIECE_TO_RESEAL)?.query_row([id], read).optional()?;
    let Some((kept, is_sealed)) = found else { return Ok(()) };
    let place = SealContext::Piece { piece: id };
    let piece = if is_sealed { sealer.open(&place, &kept)? } else { kept };
    let (kept, is_sealed) = sealer.seal(&place, &piece)?;
    tx.prepare_cached(queries::SET_PIECE)?.execute(params![id, &kept[..], is_sealed])?;
    Ok(())
}

fn reseal_digest(tx: &Transaction<'_>, sealer: &Sealer, id: i64) -> Result<(), Fault> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let found: Option<(Vec<u8>, i64, i64)> =
        tx.prepare_cached(queries::DIGEST_TO_RESEAL)?.query_row([id], read).optional()?;
    let Some((kept, message, bytes)) = found else { return Ok(()) };
    let place = SealContext::Digest { message, attachment: id, bytes };
    let digest = attachments::opened_digest(sealer, &place, &kept)?;
    let (kept, _) = sealer.seal(&place, &digest)?;
    tx.prepare_cached(queries::SET_DIGEST)?.execute(params![id, &kept[..]])?;
    Ok(())
}
