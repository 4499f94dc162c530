//! Bringing what is stored to the key that is asked for, and removing what is left of before.
//!
//! ```text
//! change the key, with the credentials ─▶ the rest, some rows per commit ─▶ write the file anew ─▶ empty the log ─▶ note it
//! ```
//!
//! From the first commit on everybody stores under the new key, so that what is left to do only shrinks; and every row
//! says how it is kept, so that a process that was killed anywhere in this is followed by one that goes on. Nothing is
//! done twice, and nothing depends on a cursor.
//!
//! A file in which every row is sealed still holds plain text: in free pages, in the unused parts of pages in use, and in
//! the log. SQLite clears the first two only by writing the file anew (`VACUUM`), which keeps writers out for as long as it
//! takes. That is well below the time for which they wait ([`BUSY_TIMEOUT`]) for a file of [`REWRITTEN_BYTES_MAX`]; a
//! larger one is not written anew while an agent is there.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::fault::BUSY_TIMEOUT;
use super::fault::Fault;
use super::seal::{self, KeyRing, SealContext, Sealer, SealingState};
use super::unproven::Watch;
use super::{attachments, guard, header_sets, key_change, open, people, queries, record, space};
use crate::store::error::StoreError;
use crate::store::key::Keys;
use crate::store::{Limits, OpenMode, Resealed, Resealing};

/// Rows of one commit at most.
const STEP_ROWS: usize = 500;
/// Bytes of one commit, about: some ten milliseconds.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// A file up to this size is written anew beside an agent: that takes a second or two.
const REWRITTEN_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How often the log is tried to be emptied, each time for [`BUSY_TIMEOUT`].
const TRUNCATE_TRIES: u32 = 3;

/// Keeps everything as the keys ask for; see [`crate::store::reseal`].
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
    watch: Watch,
    ring: Arc<KeyRing>,
    done: Resealing,
}

/// A kind of rows that are kept sealed, or not.
struct SealedRows {
    /// Selects keys and sizes of rows to look at: after ?1, not kept under ?2, at most ?3.
    next: &'static str,
    /// Keeps a row as it is to be.
    keep: fn(&Transaction<'_>, &Sealer, i64) -> Result<(), Fault>,
}

const SEALED_ROWS: [SealedRows; 5] = [
    SealedRows { next: queries::HEADER_SETS_TO_RESEAL, keep: header_sets::keep_header_set },
    SealedRows { next: queries::TEXTS_TO_RESEAL, keep: record::reseal_texts },
    SealedRows { next: queries::BODIES_TO_RESEAL, keep: record::reseal_body },
    SealedRows { next: queries::PIECES_TO_RESEAL, keep: keep_piece },
    SealedRows { next: queries::DIGESTS_TO_RESEAL, keep: keep_digest },
];

/// How a walk over the rows ended.
enum Walked {
    All,
    Stopped,
    /// The key was changed by another process.
    Changed,
}

impl Work<'_> {
    fn run(&mut self, on_progress: &mut dyn FnMut(Resealing) -> bool) -> Result<Resealed, Fault> {
        // What is overwritten is cleared at once, should it not come to writing the file anew.
        self.connection.pragma_update(None, "secure_delete", true)?;
        let target = self.ring.current();
        key_change::change_key(&mut self.connection, &self.watch, &self.ring, target)?;
        loop {
            let state = SealingState::read(&self.connection)?;
            if state.key() != target {
                let reason = "another process changes its key to another one; run it again when that has ended".into();
                return Err(StoreError::Unusable { path: self.path.to_owned(), reason }.into());
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
            // What is kept as it is need not be hidden.
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

    /// Keeps every row as the sealer does.
    fn walk(&mut self, sealer: &Sealer, on_progress: &mut dyn FnMut(Resealing) -> bool) -> Result<Walked, Fault> {
        let key = sealer.state().key().map(|id| id.0.to_vec());
        let mut damaged = None;
        let tx = guard::begin(&mut self.connection, &self.watch)?;
        tx.execute(queries::FORGET_RELEASED_DIGESTS, [])?;
        tx.commit()?;
        for kind in &SEALED_ROWS {
            let mut after = i64::MIN;
            loop {
                // Looked for outside the write lock: there may be a million that are done already.
                let rows = self.next(kind, after, key.as_deref())?;
                let Some((last, _)) = rows.last() else { break };
                after = *last;
                let tx = guard::begin(&mut self.connection, &self.watch)?;
                if seal::generation(&tx)? != sealer.generation() {
                    return Ok(Walked::Changed);
                }
                for (id, bytes) in rows {
                    match (kind.keep)(&tx, sealer, id) {
                        Ok(()) => self.done.done += 1,
                        // One that does not open must not keep the others from being sealed.
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

    /// Returns the keys and sizes of the rows of the next step.
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

    /// Removes what is left of deleted and changed rows from the files; says why that can't be done now.
    fn remove_remnants(&mut self) -> Result<Option<String>, Fault> {
        guard::refuse_newer(&self.connection, self.path)?;
        self.watch.vet()?;
        while space::shrink_a_step(&self.connection)? {}
        let space = space::Space::of(&self.connection, self.path, self.log)?;
        if space.file_bytes > REWRITTEN_BYTES_MAX && people::agents(&self.connection)?.iter().any(is_running) {
            return Ok(Some(format!(
                "a file of {} bytes can't be written anew while an agent uses it, which would have to wait too long; \
                 stop the agent, or let it deliver what is stored",
                space.file_bytes
            )));
        }
        // Once in the temporary folder, which may be on this disk, and once in the log.
        let needed = space.file_bytes.saturating_mul(2);
        if space.disk_free_bytes < needed {
            let free = space.disk_free_bytes;
            return Ok(Some(format!("to write the file anew takes {needed} bytes, and the disk has {free} free")));
        }
        // Writing anew takes a copy, which memory may not hold. Only now: what a temporary file gets is sealed.
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
        Ok(Some(format!("the log can't be emptied: another process has been reading it for {waited} s")))
    }
}

/// A process number that was given to another process counts, too: then the file is written anew some other time.
fn is_running(agent: &crate::store::view::AgentRecord) -> bool {
    let pid = i32::try_from(agent.pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

fn keep_piece(tx: &Transaction<'_>, sealer: &Sealer, id: i64) -> Result<(), Fault> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found: Option<(Vec<u8>, bool)> =
        tx.prepare_cached(queries::PIECE_TO_RESEAL)?.query_row([id], read).optional()?;
    let Some((kept, is_sealed)) = found else { return Ok(()) };
    let place = SealContext::Piece { piece: id };
    let piece = if is_sealed { sealer.open(&place, &kept)? } else { kept };
    let (kept, is_sealed) = sealer.keep(&place, &piece)?;
    tx.prepare_cached(queries::SET_PIECE)?.execute(params![id, &kept[..], is_sealed])?;
    Ok(())
}

fn keep_digest(tx: &Transaction<'_>, sealer: &Sealer, id: i64) -> Result<(), Fault> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let found: Option<(Vec<u8>, i64, i64)> =
        tx.prepare_cached(queries::DIGEST_TO_RESEAL)?.query_row([id], read).optional()?;
    let Some((kept, message, bytes)) = found else { return Ok(()) };
    let place = SealContext::Digest { message, attachment: id, bytes };
    let digest = attachments::opened_digest(sealer, &place, &kept)?;
    let (kept, _) = sealer.keep(&place, &digest)?;
    tx.prepare_cached(queries::SET_DIGEST)?.execute(params![id, &kept[..]])?;
    Ok(())
}
