//! The connection for what intake asks about every write, and what it knows until something is committed.
//!
//! While the server is there, each write asks the same: does anything of its lane wait, was anything refused? The
//! answer changes only with a commit, so it is kept together with the version of the data that it was read from.
//!
//! # Invariants
//!
//! - The version is `PRAGMA data_version`, asked anew for every write: a read transaction that compares the header of
//!   the log's index with the one seen before, which is how SQLite itself decides that its page cache is still valid.
//!   A commit changes that header before it returns, whichever process or connection makes it, and before its client
//!   gets an answer. So does a migration or a change of the key.
//! - The version is read before the answer that is kept for it: an answer may be newer than its version, never older.
//! - Only answers that depend on nothing but the data are kept: that a lane has nothing at all, that there are no
//!   notes. What depends on the time or on a write's entities is looked up.
//! - A reader that was closed knows nothing.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::Connection;

use super::fault::Fault;
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
    known: Known,
}

/// What is known of one version of the data.
#[derive(Default)]
struct Known {
    version: Option<i64>,
    /// Lanes of which nothing waits and nothing was refused.
    clear: HashSet<Lane>,
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
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, known: Known::default() }
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Closes the file for good; see [`guard::close`].
    pub(super) fn close(&mut self, watch: &UnprovenWatch) {
        self.known = Known::default();
        guard::close(&mut self.connection, watch);
    }

    /// Counts the messages of a lane, or returns `None` if the sealer is of an older generation.
    pub(super) fn in_lane(&mut self, path: &Path, sealer: &Sealer, lane: &Lane) -> Result<Option<InLane>, Fault> {
        let version = self.version()?;
        let known = self.known.of(version);
        if known.clear.contains(lane) {
            return Ok(Some(InLane::default()));
        }
        let found = guard::look(&self.connection, path, |reader| queue_ahead::waiting(reader, sealer, lane))?;
        if found.is_some_and(InLane::is_clear) {
            if known.clear.len() >= LANES_MAX {
                known.clear.clear();
            }
            known.clear.insert(lane.clone());
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
    fn version(&self) -> Result<i64, Fault> {
        Ok(self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
    }
}
