//! Making space by dropping rejected messages that exceed their share; see [`crate::store::rejected_room`].
//!
//! Only the deletion itself runs under the write lock: the messages to drop are chosen from a snapshot, and exported
//! first. Between export and deletion another process may requeue one, which then stays although it was exported; or
//! two processes export the same messages, and one of them deletes. A crash between export and deletion keeps both, and
//! the next export has them again: a line in two files is better than a line in none.

use std::collections::HashSet;
use std::io;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, Transaction, params};
use tracing::{debug, warn};

use super::delete::Deletion;
use super::fault::Fault;
use super::rejected_share::RejectedSeen;
use super::seal::Sealer;
use super::store::SqliteStore;
use super::summary::CountChanges;
use super::{attachments, counters, queries, rows, space, stranded};
use crate::message::{Effect, EntityKey, MessageId, MessageType, Touch};
use crate::store::clock::now_ms;
use crate::store::error::StoreError;
use crate::store::full_state::FullLimit;
use crate::store::limits::{Limits, WhenFull};
use crate::store::rejected_room::{ExportFile, excess, helps, share};
use crate::store::traits::{Attachments, Maintain, Store};

/// How long to wait after an attempt that freed nothing: each attempt scans rejected and waiting messages.
const PAUSE: Duration = Duration::from_secs(5);
/// Attempts per write. Bodies share pages, so deleting what is needed may free a little less.
const ROUNDS: usize = 4;
/// Messages exported to one file and dropped in one commit.
const STEP: usize = 500;
/// How many waiting messages are scanned for creates that they depend on; if there are more, no create is dropped.
const WAITING_SCAN_MAX: usize = 2_000_000;

/// The rejected messages when a write finds no space.
struct RejectedHeld {
    messages: u64,
    bytes: u64,
    share: u64,
    /// Why messages beyond the share were not dropped, if so.
    trouble: Option<String>,
}

impl SqliteStore {
    /// Does this work in one transaction once `needed` bytes fit into the limits, evicting messages if configured:
    /// first rejected ones beyond their share, then those that have waited longest.
    pub(super) fn write_with_room<T>(
        &self,
        needed: u64,
        work: impl Fn(&Transaction<'_>, &Sealer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let attempt = |limits: &Limits| {
            self.write(|tx, sealer| {
                space::make_room(tx, &self.path, &self.log, limits, needed)?;
                work(tx, sealer)
            })
        };
        let sparing = Limits { when_full: WhenFull::Refuse, ..self.limits };
        let mut held = None;
        let mut result = attempt(&sparing);
        for _ in 0..ROUNDS {
            let Err(StoreError::Full { limit, .. }) = &result else { return result };
            if needed > self.limits.size_max {
                return result;
            }
            let (found, dropped) = self.drop_rejected(needed)?;
            held = Some(found);
            if !dropped {
                break;
            }
            if *limit != FullLimit::MaxSize
                && let Err(error) = self.compact()
            {
                warn!(target: "db_manager", "cannot return the space of dropped messages to the disk yet: {error}");
            }
            result = attempt(&sparing);
        }
        if self.limits.when_full == WhenFull::DropOldest && matches!(result, Err(StoreError::Full { .. })) {
            result = attempt(&self.limits);
        }
        match (result, held) {
            (Err(StoreError::Full { at, limit, needed, reason }), Some(held)) if held.messages > 0 => {
                let limit = if held.trouble.is_some() { FullLimit::Rejected } else { limit };
                Err(StoreError::Full { at, limit, needed, reason: reason + &self.words(&held)? })
            }
            (result, _) => result,
        }
    }

    /// Returns what a refusal says about rejected messages.
    fn words(&self, held: &RejectedHeld) -> Result<String, StoreError> {
        let space = self.space()?;
        let used = space.file_bytes.saturating_sub(space.free_bytes);
        let trouble = held
            .trouble
            .as_ref()
            .map_or(String::new(), |trouble| format!(", more than their share of {} bytes, and {trouble}", held.share));
        Ok(format!(
            "; of {used} bytes, {} are rejected messages{trouble} (opik-offline inspect --status rejected; opik-offline \
             purge --status rejected)",
            held.bytes
        ))
    }

    fn space(&self) -> Result<space::Space, StoreError> {
        self.read(&self.reader, |connection, _| space::Space::of(connection, &self.path, &self.log))
    }

    /// Drops the oldest rejected messages beyond their share, for as many bytes as are needed. Returns the state of
    /// those that are left, and whether any was dropped.
    fn drop_rejected(&self, needed: u64) -> Result<(RejectedHeld, bool), StoreError> {
        let mut seen = self.rejected.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (messages, bytes) = self.rejected_bytes(&mut seen)?;
        let space = self.space()?;
        let share = share(space.capacity(&self.limits), self.rejected.room.share_percent);
        let lacks = space.disk_lacks(&self.limits, needed);
        let wanted = match helps(bytes, share, space.free_bytes, lacks) {
            true => excess(bytes, share, needed.max(lacks), self.limits.size_max / space::ROOM_SHARE),
            false => 0,
        };
        let held = |trouble| RejectedHeld { messages, bytes, share, trouble };
        if wanted == 0 {
            return Ok((held(None), false));
        }
        if let Some((at, trouble)) = &seen.in_vain
            && at.elapsed() < PAUSE
        {
            return Ok((held(Some(trouble.clone())), false));
        }
        let trouble = match self.export_and_drop(wanted) {
            Ok((0, _)) => "messages that wait depend on them".to_owned(),
            Ok((dropped, bytes)) => {
                seen.in_vain = None;
                seen.told = None;
                warn!(
                    target: "db_manager",
                    "{dropped} rejected messages ({bytes} bytes) were dropped to make room: they held more than rejected_share \
                     ({} %){}",
                    self.rejected.room.share_percent,
                    self.rejected.room.export.as_ref().map_or(String::new(), |export| format!(
                        "; they are in {}", export.folder.display()
                    ))
                );
                return Ok((held(None), true));
            }
            Err(DropError::Export(error)) => {
                let folder = self.rejected.room.export.as_ref().map(|export| export.folder.display().to_string());
                let text = format!(
                    "rejected messages hold more than rejected_share and are not dropped: they cannot be exported to {}: {error}",
                    folder.unwrap_or_default()
                );
                if seen.told.as_ref() != Some(&text) {
                    warn!(target: "db_manager", "{text}");
                    seen.told = Some(text);
                }
                // The path and the system's error are for the operator; this text goes to clients.
                "they cannot be exported (rejected_export)".to_owned()
            }
            Err(DropError::Store(error)) => return Err(error),
        };
        seen.in_vain = Some((Instant::now(), trouble.clone()));
        Ok((held(Some(trouble)), false))
    }

    /// Returns how many rejected messages there are and how many bytes of the file they take.
    fn rejected_bytes(&self, seen: &mut RejectedSeen) -> Result<(u64, u64), StoreError> {
        self.read(&self.reader, |connection, _| {
            let summary: (i64, i64) = connection
                .prepare_cached(queries::REJECTED_SUMMARY)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if summary.0 <= 0 {
                return Ok((0, 0));
            }
            if let Some((of, bytes)) = seen.held
                && of == summary
            {
                return Ok((summary.0.unsigned_abs(), bytes));
            }
            let (bytes, messages): (i64, i64) = connection
                .prepare_cached(queries::REJECTED_BYTES)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let bytes = bytes.unsigned_abs() + messages.unsigned_abs() * space::ROW_BYTES;
            seen.held = Some((summary, bytes));
            Ok((messages.unsigned_abs(), bytes))
        })
    }

    /// Drops the oldest rejected messages of `wanted` bytes in total, step by step; returns how many messages and bytes
    /// were dropped. Each step is exported before it is deleted, if configured.
    fn export_and_drop(&self, wanted: u64) -> Result<(u64, u64), DropError> {
        let (mut messages, mut bytes) = (0, 0);
        let mut after = 0;
        while bytes < wanted {
            let Some(mut step) = self.read(&self.reader, |tx, _| DropStep::choose(tx, after, wanted - bytes))? else {
                break;
            };
            after = step.last;
            self.export(&mut step)?;
            let dropped = self.write(|tx, _| step.drop(tx))?;
            messages += dropped.0;
            bytes += dropped.1;
        }
        Ok((messages, bytes))
    }

    /// Writes the messages of a step to a file in the export folder, and removes those from the step that cannot be
    /// read.
    fn export(&self, step: &mut DropStep) -> Result<(), DropError> {
        let (Some(export), Some(first)) = (&self.rejected.room.export, step.candidates.first()) else { return Ok(()) };
        let mut file = ExportFile::begin(export, first.id, now_ms()).map_err(DropError::Export)?;
        let mut exported = Vec::with_capacity(step.candidates.len());
        for candidate in step.candidates.drain(..) {
            let message = match self.get(candidate.id) {
                Ok(Some(message)) => message,
                // Purged meanwhile.
                Ok(None) => continue,
                Err(error) => {
                    debug!(target: "db_manager", "cannot export message {}, which is kept: {error}", candidate.id);
                    continue;
                }
            };
            if candidate.has_file {
                let piece = |number| self.piece(candidate.id, number).map_err(io::Error::other);
                file.add_file(candidate.id, piece).map_err(DropError::Export)?;
            }
            file.add(message).map_err(DropError::Export)?;
            exported.push(candidate);
        }
        step.candidates = exported;
        file.finish().map_err(DropError::Export)?;
        Ok(())
    }
}

/// Why messages were not dropped.
enum DropError {
    Export(io::Error),
    Store(StoreError),
}

impl From<StoreError> for DropError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Rejected messages that are dropped together.
struct DropStep {
    candidates: Vec<Candidate>,
    /// The last rejected message that was examined.
    last: i64,
    /// The newest message of the snapshot that they were chosen from.
    newest: i64,
    /// The value of the counter `unstranded` in it.
    unstranded: i64,
}

impl DropStep {
    /// Chooses the oldest rejected messages after this one with `wanted` bytes in total that no undelivered message
    /// depends on. Returns `None` if no rejected message is left.
    fn choose(connection: &Connection, after: i64, wanted: u64) -> Result<Option<Self>, Fault> {
        let newest = connection.prepare_cached(queries::NEXT_ID)?.query_row([], |row| row.get::<_, i64>(0))? - 1;
        let mut step = Self { candidates: Vec::new(), last: after, newest, unstranded: unstranded(connection)? };
        let mut bytes = 0;
        let mut rejected = connection.prepare_cached(queries::REJECTED)?;
        let mut rejected = rejected.query([after])?;
        while bytes < wanted && step.candidates.len() < STEP {
            let Some(row) = rejected.next()? else { break };
            let candidate = Candidate::read(row)?;
            step.last = candidate.id.0;
            bytes += candidate.bytes;
            step.candidates.push(candidate);
        }
        if step.candidates.is_empty() {
            return Ok(None);
        }
        let made = step.made();
        let mut awaited = HashSet::new();
        let mut left = WAITING_SCAN_MAX;
        for lane in made.iter().map(|(lane, _)| *lane).collect::<HashSet<_>>() {
            // A reference is in no index, so everything that waits in the lane is read.
            let mut waiting = connection.prepare_cached(queries::TOUCHES_ON_THEIR_WAY)?;
            let mut waiting = waiting.query([lane])?;
            while let Some(row) = waiting.next()? {
                if left == 0 {
                    awaited.extend(made.iter().filter(|(of, _)| *of == lane));
                    break;
                }
                left -= 1;
                awaited.extend(awaits(lane, &rows::touches(row, 0)?, &made));
            }
        }
        step.spare(&awaited);
        Ok(Some(step))
    }

    /// Returns the entities that these messages create, by lane.
    fn made(&self) -> HashSet<(i64, EntityKey)> {
        let made = |candidate: &Candidate| candidate.makes.iter().map(|key| (candidate.lane, *key)).collect::<Vec<_>>();
        self.candidates.iter().flat_map(made).collect()
    }

    /// Keeps the messages that create one of these entities: dropping them would leave partial records on the server.
    fn spare(&mut self, awaited: &HashSet<(i64, EntityKey)>) {
        let is_awaited =
            |candidate: &Candidate| candidate.makes.iter().any(|key| awaited.contains(&(candidate.lane, *key)));
        self.candidates.retain(|candidate| !is_awaited(candidate));
    }

    /// Deletes those that are still rejected, with everything that belongs to them, and counts them; returns messages
    /// and bytes.
    fn drop(&mut self, tx: &Transaction<'_>) -> Result<(u64, u64), Fault> {
        // A message was requeued since, which may depend on one of them: the next attempt sees it.
        if unstranded(tx)? != self.unstranded {
            return Ok((0, 0));
        }
        let made = self.made();
        if !made.is_empty() {
            let mut awaited = HashSet::new();
            let mut since = tx.prepare_cached(queries::TOUCHES_SINCE)?;
            let mut since = since.query([self.newest])?;
            while let Some(row) = since.next()? {
                awaited.extend(awaits(row.get(0)?, &rows::touches(row, 1)?, &made));
            }
            self.spare(&awaited);
        }
        let mut changes = CountChanges::default();
        let mut deletion = Deletion::of(tx, queries::STILL_REJECTED)?;
        let (mut messages, mut bytes) = (0, 0);
        for candidate in &self.candidates {
            if deletion.delete([candidate.id.0], &mut changes)?.is_some() {
                messages += 1;
                bytes += candidate.bytes;
            }
        }
        // The space is needed now, so the pieces of their files are removed at once.
        while attachments::remove_a_step(tx)? {}
        let count = i64::try_from(messages).unwrap_or(i64::MAX);
        tx.prepare_cached(queries::ADD_TO_ANY_COUNTER)?.execute(params![counters::REJECTED_DROPPED, count])?;
        stranded::note_unstranded(tx)?;
        changes.write(tx)?;
        Ok((messages, bytes))
    }
}

/// A rejected message that may be dropped.
struct Candidate {
    id: MessageId,
    lane: i64,
    bytes: u64,
    has_file: bool,
    /// The entities that it creates and that later messages may wait for.
    makes: Vec<EntityKey>,
}

impl Candidate {
    fn read(row: &Row<'_>) -> Result<Self, Fault> {
        let touches = rows::touches(row, 4)?;
        let makes = |touch: &&Touch| touch.effect == Effect::Create && touch.key.can_strand();
        // Nothing waits for those; see [`super::stranded`].
        let is_otlp = rows::message_type(row, 2)? == MessageType::OtlpTraces;
        Ok(Self {
            id: MessageId(row.get(0)?),
            lane: row.get(1)?,
            bytes: row.get::<_, i64>(3)?.unsigned_abs() + space::ROW_BYTES,
            has_file: row.get(5)?,
            makes: touches.iter().filter(makes).filter(|_| !is_otlp).map(|touch| touch.key).collect(),
        })
    }
}

/// Returns those of these entities that a message with these touches waits for.
fn awaits(lane: i64, touches: &[Touch], made: &HashSet<(i64, EntityKey)>) -> Vec<(i64, EntityKey)> {
    let keys = touches.iter().filter(|touch| touch.can_be_stranded()).map(|touch| (lane, touch.key));
    keys.filter(|key| made.contains(key)).collect()
}

fn unstranded(connection: &Connection) -> Result<i64, Fault> {
    Ok(connection.prepare_cached(queries::COUNTER)?.query_row(["unstranded"], |row| row.get(0))?)
}
