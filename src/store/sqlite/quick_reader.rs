//! The connection for what intake asks about every write, and what it knows until something is committed.
//!
//! While the server is there, each write asks the same: does anything of its lane wait, was anything refused? The
//! answer changes only with a commit, so it is kept together with the version of the data that it was read from.
//!
//! # Invariants
//!
//! - The version is `PRAGMA data_version`: a read transaction that compares the header of the log's index with the one
//!   seen before, which is how SQLite itself decides that its page cache is still valid. A commit changes that header
//!   before it returns, whichever process or connection makes it, and before its client gets an answer. So does a
//!   migration or a change of the key.
//! - It is current for every write, because what was committed before a write arrived counts. It is asked anew, unless
//!   nothing was appended to the log since ([`super::log_end`]).
//! - The version is read after the end of the log that stands for it, and before the answer that is kept for it: an
//!   answer may be newer than its version, never older.
//! - Only answers that depend on nothing but the data are kept: how much a lane has, that there are no notes. What
//!   depends on the time or on a write's entities is looked up.
//! - A reader that was closed knows nothing.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::Connection;

use super::fault::Fault;
use super::log_end::{LogEnd, WriteAheadLog};
use super::queue_ahead::{self, InLane};
use super::seal::Sealer;
use super::unproven::UnprovenWatch;
use super::{ahead, guard};
use crate::message::{Lane, Touch};

/// The most lanes that are remembered (about 200 bytes each); beyond that all are looked up again.
const LANES_MAX: usize = if cfg!(test) { 4 } else { 1024 };

/// A reader that remembers what it saw.
pub(super) struct QuickReader {
    connection: Connection,
    log: Option<WriteAheadLog>,
    /// The version that the last look saw.
    version: Option<i64>,
    /// The end of the log at which the data has that version.
    end: Option<LogEnd>,
    known: Known,
}

/// Known facts about one version of the data.
#[derive(Default)]
struct Known {
    version: Option<i64>,
    /// Counts of waiting and of refused messages of lanes.
    lanes: HashMap<Lane, InLane>,
    has_no_notes: bool,
}

impl Known {
    /// Returns what is known of this version, and forgets any other.
    fn of(&mut self, version: i64) -> &mut Self {
        if self.version != Some(version) {
            *self = Self { version: Some(version), ..Self::default() };
        }
        self
    }
}

impl QuickReader {
    /// Returns the reader on this connection to a store that is open and has this log.
    pub(super) fn new(connection: Connection, log: &Path) -> Self {
        Self { connection, log: WriteAheadLog::open(log), version: None, end: None, known: Known::default() }
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Closes the file for good; see [`guard::close`].
    pub(super) fn close(&mut self, watch: &UnprovenWatch) {
        (self.log, self.version, self.end, self.known) = Default::default();
        guard::close(&mut self.connection, watch);
    }

    /// Counts the messages of a lane, or returns `None` if the sealer is of an older generation.
    pub(super) fn in_lane(&mut self, path: &Path, sealer: &Sealer, lane: &Lane) -> Result<Option<InLane>, Fault> {
        let version = self.version()?;
        let known = self.known.of(version);
        if let Some(in_lane) = known.lanes.get(lane) {
            return Ok(Some(*in_lane));
        }
        let found = guard::look(&self.connection, path, |reader| queue_ahead::waiting(reader, sealer, lane))?;
        if let Some(in_lane) = found {
            if known.lanes.len() >= LANES_MAX {
                known.lanes.clear();
            }
            known.lanes.insert(lane.clone(), in_lane);
        }
        Ok(found)
    }

    /// Returns whether there is a note that a confirmed single create or an end with these touches removes.
    pub(super) fn has_note(&mut self, path: &Path, place: i64, touches: &[Touch]) -> Result<bool, Fault> {
        let version = self.version()?;
        let known = self.known.of(version);
        if !known.has_no_notes {
            known.has_no_notes = !guard::look(&self.connection, path, ahead::are_there)?;
        }
        if known.has_no_notes {
            return Ok(false);
        }
        guard::look(&self.connection, path, |reader| ahead::has_any(reader, place, touches))
    }

    /// Returns the version of the newest data.
    fn version(&mut self) -> Result<i64, Fault> {
        if let (Some(log), Some(end), Some(version)) = (&self.log, &self.end, self.version)
            && log.is_still(end)
        {
            return Ok(version);
        }
        self.end = None;
        let mut version = self.data_version()?;
        // Finding the end costs more than asking, and is in vain where one commit follows the other.
        if self.version == Some(version)
            && let Some(log) = &self.log
        {
            self.end = log.end(&self.connection);
            version = self.data_version()?;
        }
        self.version = Some(version);
        Ok(version)
    }

    fn data_version(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::OpenFlags;

    use super::*;
    use crate::store::sqlite::files::log_of;
    use crate::store::sqlite::schema;

    fn lane(number: usize) -> Lane {
        Lane { workspace: Some(format!("w{number}")), ..Lane::default() }
    }

    /// Returns a connection that writes, and a reader of the same file.
    fn pair(path: &Path) -> (Connection, QuickReader) {
        let mut writer = Connection::open(path).expect("a database");
        writer.pragma_update(None, "journal_mode", "WAL").expect("a log");
        schema::migrate(&mut writer).expect("a schema");
        let reader = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("a database");
        (writer, QuickReader::new(reader, &log_of(path)))
    }

    #[test]
    fn the_cache_is_bounded_and_cleared_by_the_next_commit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store.db");
        let (writer, mut reader) = pair(&path);
        let sealer = Sealer::off();
        let mut count = |number| reader.in_lane(&path, &sealer, &lane(number)).expect("it can be read");
        for number in 0..3 * LANES_MAX {
            assert_eq!(count(number), Some(InLane::default()));
        }
        assert!((1..=LANES_MAX).contains(&reader.known.lanes.len()), "{}", reader.known.lanes.len());

        let one = "INSERT INTO lanes (lane_id, workspace, credential_id) VALUES (1, 'w0', 0);
            INSERT INTO summary (lane_id, status, message_type, answer_status, messages, items, body_bytes)
            VALUES (1, 4, 0, 0, 1, 1, 1)";
        writer.execute_batch(one).expect("a refused message");
        let mut count = |number| reader.in_lane(&path, &sealer, &lane(number)).expect("it can be read");
        for _ in 0..2 {
            assert_eq!(count(0), Some(InLane { messages: 0, refused: 1 }));
            assert_eq!(count(1), Some(InLane::default()));
        }
        let known = [(lane(0), InLane { messages: 0, refused: 1 }), (lane(1), InLane::default())];
        assert_eq!(reader.known.lanes, HashMap::from(known));
        writer.execute_batch("DELETE FROM summary").expect("it is purged");
        assert_eq!(reader.in_lane(&path, &sealer, &lane(0)).expect("it can be read"), Some(InLane::default()));
        writer.pragma_update(None, "user_version", schema::known_version() + 1).expect("a migration");
        assert!(reader.in_lane(&path, &sealer, &lane(0)).is_err(), "the schema is unknown");
    }

    #[test]
    fn a_reader_that_was_closed_answers_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store.db");
        let (_writer, mut reader) = pair(&path);
        assert!(reader.in_lane(&path, &Sealer::off(), &lane(0)).expect("it can be read").is_some());
        reader.close(&UnprovenWatch::new(&path));
        for _ in 0..2 {
            assert!(reader.in_lane(&path, &Sealer::off(), &lane(0)).is_err());
            assert!(reader.has_note(&path, 7, &[]).is_err());
        }
    }
}
