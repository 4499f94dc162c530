//! The end of the write-ahead log, where the next commit will show: a look at it takes no lock.
//!
//! A commit appends its pages to the log as frames, each under a header with the salts of the log's generation. Once
//! the whole log is copied to the database, the next commit starts over: it writes a new header with other salts at the
//! beginning, then its frames behind that. Both are written before the commit is synced, and that is before its client
//! gets an answer. So while the header of the log is the same and no frame of its generation follows the last one,
//! nothing was committed, by any process (<https://sqlite.org/fileformat2.html#the_write_ahead_log>).
//!
//! Two short reads, where the shortest statement of SQLite takes and releases a lock among all processes.
//!
//! # Invariants
//!
//! - The number of frames comes from SQLite (`wal_checkpoint(NOOP)`), between two reads of the same header: frames that
//!   a killed or failed writer left behind may look committed, and the next commit overwrites them.
//! - Where a frame of this generation follows, committed or not, there is no end that could be watched. Nor is there in
//!   an empty log: it may be emptied again after a commit, and looks the same then.
//! - SQLite locks the database and the `-shm` file, never the log. So closing it here drops no lock.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::Connection;

use super::unproven::libc_nonblock;
use crate::sqlite_format::ReadAt;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// The log of a store.
pub(super) struct WriteAheadLog(File);

/// The end of the log at some moment.
pub(super) struct LogEnd {
    header: [u8; HEADER_BYTES],
    /// Where the next frame begins, unless the log starts over.
    next_at: u64,
    /// What is there: nothing, or a frame of an earlier generation.
    next: [u8; FRAME_HEADER_BYTES],
}

impl WriteAheadLog {
    /// Opens the log at this path, if there is one.
    pub(super) fn open(path: &Path) -> Option<Self> {
        // A pipe that somebody put there must not block.
        OpenOptions::new().read(true).custom_flags(libc_nonblock()).open(path).ok().map(Self)
    }

    /// Returns the end of the log, as this connection of its store sees it; `None` where it can't be told.
    pub(super) fn end(&self, connection: &Connection) -> Option<LogEnd> {
        let header = self.read_at(0)?;
        let frames: i64 =
            connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)").ok()?.query_row([], |row| row.get(1)).ok()?;
        let frames = u64::try_from(frames).ok()?;
        let page_bytes = u32::from_be_bytes(*header.get(8..12)?.first_chunk()?);
        let frame_bytes = FRAME_HEADER_BYTES as u64 + u64::from(page_bytes);
        let next_at = HEADER_BYTES as u64 + frames * frame_bytes;
        let next: [u8; FRAME_HEADER_BYTES] = self.read_at(next_at)?;
        let salts = header.get(16..24);
        // The last frame shows that this is the log that the connection uses.
        let is_its_log = frames == 0 || self.read_at::<FRAME_HEADER_BYTES>(next_at - frame_bytes)?.get(8..16) == salts;
        let is_end = header != [0; HEADER_BYTES] && next.get(8..16) != salts;
        let end = LogEnd { header, next_at, next };
        (is_its_log && is_end && self.read_at(0)? == end.header).then_some(end)
    }

    /// Returns whether this is still the end: nothing was committed since.
    pub(super) fn is_still(&self, end: &LogEnd) -> bool {
        self.read_at(end.next_at) == Some(end.next) && self.read_at(0) == Some(end.header)
    }

    /// Reads some bytes; those past the end of the file are 0.
    fn read_at<const BYTES: usize>(&self, offset: u64) -> Option<[u8; BYTES]> {
        let mut bytes = [0; BYTES];
        self.0.fill_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::store::sqlite::files::log_of;

    #[derive(Clone, Debug)]
    enum Step {
        Commit {
            by: usize,
            rows: usize,
        },
        /// More than the page cache holds, so that frames are written before the transaction is rolled back.
        RollBack {
            by: usize,
        },
        Checkpoint {
            by: usize,
            how: &'static str,
        },
        /// Frames that a writer left which was killed before its commit was complete.
        Leave {
            frames: u64,
        },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let how = prop::sample::select(vec!["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
        prop_oneof![
            5 => (0..2_usize, 1..40_usize).prop_map(|(by, rows)| Step::Commit { by, rows }),
            1 => (0..2_usize).prop_map(|by| Step::RollBack { by }),
            3 => (0..2_usize, how).prop_map(|(by, how)| Step::Checkpoint { by, how }),
            1 => (1..4_u64).prop_map(|frames| Step::Leave { frames }),
        ]
    }

    const ADD: &str = "INSERT INTO rows (value) VALUES (randomblob(500))";

    fn take(step: &Step, writers: &[Connection], path: &Path) {
        match step {
            Step::Commit { by, rows } => {
                writers[*by]
                    .execute_batch(&format!("BEGIN; {}; COMMIT", vec![ADD; *rows].join(";")))
                    .expect("a commit");
            }
            Step::RollBack { by } => {
                writers[*by].execute_batch(&format!("BEGIN; {}; ROLLBACK", vec![ADD; 300].join(";"))).expect("none");
            }
            Step::Checkpoint { by, how } => {
                let sql = format!("PRAGMA wal_checkpoint({how})");
                writers[*by].query_row(&sql, [], |_| Ok(())).expect("a checkpoint");
            }
            Step::Leave { frames } => {
                let log = OpenOptions::new().read(true).write(true).open(log_of(path)).expect("a log");
                let sql = "PRAGMA wal_checkpoint(NOOP)";
                let last: i64 = writers[0].query_row(sql, [], |row| row.get(1)).expect("a length");
                let mut header = [0; HEADER_BYTES];
                if log.read_exact_at(&mut header, 0).is_err() {
                    return;
                }
                let mut frame = [7; FRAME_HEADER_BYTES + 1024];
                frame[8..16].copy_from_slice(&header[16..24]);
                for number in 0..*frames {
                    let at = HEADER_BYTES as u64 + (last as u64 + number) * frame.len() as u64;
                    log.write_all_at(&frame, at).expect("space");
                }
            }
        }
    }

    fn connect(path: &Path) -> Connection {
        let connection = Connection::open(path).expect("a database");
        let settings = "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
            PRAGMA cache_size = 20; PRAGMA journal_size_limit = 30000; PRAGMA wal_autocheckpoint = 60";
        connection.execute_batch(settings).expect("settings");
        connection
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn while_the_end_of_the_log_is_the_same_nothing_is_committed(steps in vec(any_step(), 1..40)) {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("store.db");
            let writers = [connect(&path), connect(&path)];
            writers[0].execute_batch("CREATE TABLE rows (id INTEGER PRIMARY KEY, value BLOB)").expect("a table");
            let reader = connect(&path);
            // Each commit adds some.
            let count = || -> i64 {
                reader.query_row("SELECT count(*) FROM rows", [], |row| row.get(0)).expect("a count")
            };
            let log = WriteAheadLog::open(&log_of(&path)).expect("a log");
            // Ends of any age, each with what was read after it.
            let mut ends = Vec::new();
            for step in &steps {
                ends.extend(log.end(&reader).map(|end| (end, count())));
                let now = count();
                for (end, then) in &ends {
                    prop_assert!(!log.is_still(end) || *then == now, "before {step:?}");
                }
                take(step, &writers, &path);
                let now = count();
                for (end, then) in &ends {
                    prop_assert!(!log.is_still(end) || *then == now, "after {step:?}");
                }
            }
            // Not so careful that it never finds one.
            take(&Step::Checkpoint { by: 0, how: "TRUNCATE" }, &writers, &path);
            prop_assert!(log.end(&reader).is_none(), "an empty log");
            take(&Step::Commit { by: 1, rows: 1 }, &writers, &path);
            let end = log.end(&reader).expect("nothing follows the first commit");
            prop_assert!(log.is_still(&end));
            take(&Step::Commit { by: 0, rows: 1 }, &writers, &path);
            prop_assert!(!log.is_still(&end));
        }
    }
}
