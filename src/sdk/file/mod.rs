//! A leftover file of the Python SDK, opened as a private copy and read row by row. The original is never changed.
//!
//! # Invariants
//!
//! - **Nothing untrusted is opened.** The file and what SQLite keeps beside it (`-journal`, `-wal`) are opened once,
//!   if [`super::trust`] trusts them. They are copied from these descriptors: what was checked is what is read, and
//!   SQLite opens nothing that was not checked.
//! - **The original is not locked**, not even for a moment. A hot journal that a killed process left is rolled back in
//!   the copy.
//! - **No copy survives.** Its names are removed as soon as SQLite has it open, so nothing stays in the temporary
//!   folder, even if this process is killed later.
//! - **A strange schema computes nothing** ([`mod@distrust`]).
//! - **Rows come in the order of their ids, each once.** Where SQLite finds the file corrupt, its pages are decoded
//!   without SQLite ([`pages`]).
//!
//! All of it stops soon after shutdown is requested.

mod copy;
mod distrust;
mod pages;
mod queries;
mod row;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

use self::copy::{CopyError, PrivateCopy};
use self::distrust::{Schema, distrust, schema_of};
use self::pages::ScannedRows;
pub use self::row::StoredRow;
use self::row::{is_damage, next_after, one_row};
use super::orphan::{Holder, SDK_STORE_NAME, holder_of};
use super::trust::{AttachmentFolders, FileOwner, Refusal, TrustedFile};
use crate::shutdown::Shutdown;
use crate::store::os::os_words;
use crate::store::sqlite::immutable_uri;

const MAGIC: &[u8] = b"SQLite format 3\0";
/// How long counting the rows of a file may take.
const COUNT_TIME_MAX: Duration = Duration::from_secs(2);

/// Why a file is not read. It was not changed.
#[derive(Debug, Error)]
pub enum SdkFileError {
    /// There is nothing at this path.
    #[error("there is no file {path}")]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It is not an SQLite database.
    #[error("{path} is not an SQLite database")]
    NotADatabase {
        /// The path.
        path: PathBuf,
    },
    /// It is a message store of ours, which needs no salvage: it is replayed where it is.
    #[error("{path} is a message store of opik-offline, not a file that a Python process left")]
    OurStore {
        /// The path.
        path: PathBuf,
    },
    /// It is a database of another program.
    #[error("{path} is not a store of the Opik Python SDK: {reason}")]
    OtherProgram {
        /// The path.
        path: PathBuf,
        /// How it differs.
        reason: String,
    },
    /// The process that it belongs to is alive.
    #[error("{path} is in use by process {pid}{}", if name.is_empty() { String::new() } else { format!(" ({name})") })]
    Live {
        /// The path.
        path: PathBuf,
        /// The process that has it open.
        pid: u32,
        /// The name of that process, if known.
        name: String,
    },
    /// Another user may have chosen its content.
    #[error("{path} is not trusted: {reason}")]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Shutdown was requested.
    #[error("reading {path} was interrupted")]
    Interrupted {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be read or copied.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The error of the operating system or of SQLite.
        reason: String,
    },
}

impl SdkFileError {
    fn unreadable(path: &Path, reason: impl Into<String>) -> Self {
        Self::Unreadable { path: path.to_owned(), reason: reason.into() }
    }

    fn system(path: &Path, error: &io::Error) -> Self {
        Self::unreadable(path, os_words(error))
    }

    fn refused(path: &Path, refusal: Refusal) -> Self {
        match refusal {
            Refusal::Untrusted(reason) => Self::Untrusted { path: path.to_owned(), reason },
            Refusal::System(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::Missing { path: path.to_owned() }
            }
            Refusal::System(error) => Self::system(path, &error),
        }
    }

    fn sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => Self::Interrupted { path: path.to_owned() },
            _ => Self::unreadable(path, error.to_string()),
        }
    }
}

/// A file of the SDK, open for reading.
pub struct SdkFile {
    path: PathBuf,
    original: TrustedFile,
    connection: Connection,
    copy: Arc<File>,
    /// Whether it has no table: its process was killed before it made one.
    is_empty: bool,
    shutdown: Shutdown,
    /// Id of the last row that was returned.
    after: Option<i64>,
    scan: Option<PageScan>,
    /// Why it is unknown whether a process still uses it.
    unknown_holder: Option<String>,
}

/// How far the pages of a damaged file are read.
struct PageScan {
    found: ScannedRows,
    /// The index of the next row to read.
    next: usize,
    /// Rows that were found and cannot be read whole.
    unread: u64,
}

impl SdkFile {
    /// Copies the file and opens the copy. `scratch` is a folder for temporary files.
    ///
    /// # Errors
    ///
    /// [`SdkFileError`]; nothing was changed.
    pub fn open(path: &Path, scratch: &Path, whose: FileOwner, shutdown: &Shutdown) -> Result<Self, SdkFileError> {
        let mut original = TrustedFile::open(path, whose).map_err(|refusal| SdkFileError::refused(path, refusal))?;
        let unknown_holder = match holder_of(&original.file, path) {
            Holder::Nobody => None,
            Holder::Process { pid, name } => return Err(SdkFileError::Live { path: path.to_owned(), pid, name }),
            Holder::Unknown(why) => Some(why),
        };
        // A process that was killed before it wrote anything leaves an empty file.
        let bytes = original.file.metadata().map_err(|error| SdkFileError::system(path, &error))?.len();
        let is_new = bytes == 0 && path.file_name().is_some_and(|name| name == SDK_STORE_NAME);
        if !is_new && !starts_as_database(&original.file) {
            return Err(SdkFileError::NotADatabase { path: path.to_owned() });
        }
        let copy = PrivateCopy::make(&mut original, scratch, shutdown).map_err(|error| match error {
            CopyError::Scratch(error) => {
                let reason = format!("no copy can be made in {}: {}", scratch.display(), os_words(&error));
                SdkFileError::unreadable(path, reason)
            }
            CopyError::Source(refusal) => SdkFileError::refused(path, refusal),
            CopyError::Interrupted => SdkFileError::Interrupted { path: path.to_owned() },
        })?;
        let connection = copy.connect(shutdown).map_err(|error| SdkFileError::sqlite(path, &error))?;
        let mut file = Self {
            path: path.to_owned(),
            original,
            connection,
            copy: copy.file.clone(),
            is_empty: false,
            shutdown: shutdown.clone(),
            after: None,
            scan: None,
            unknown_holder,
        };
        file.check_schema()?;
        Ok(file)
    }

    /// Returns the path of the original.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folders from which its attachments may be read: the SDK's own, `scratch` and `named`.
    pub fn attachment_folders(&self, scratch: &Path, named: &[PathBuf]) -> AttachmentFolders {
        AttachmentFolders::of(&self.original, scratch, named)
    }

    /// Deletes the original and what SQLite keeps beside it, if they are still the files that were opened, and their
    /// folder if it is the SDK's and empty.
    ///
    /// # Errors
    ///
    /// The error of the operating system, with the name of the first file that was not deleted.
    pub fn remove(&self) -> io::Result<()> {
        self.original.remove()
    }

    /// Returns why it is unknown whether a process still uses the file; `None` if none does.
    pub fn unknown_holder(&self) -> Option<&str> {
        self.unknown_holder.as_deref()
    }

    /// Returns whether the file is damaged, as far as it was read.
    pub fn is_damaged(&self) -> bool {
        self.scan.is_some()
    }

    /// Returns how many rows could not be read so far; an estimate, because rows in lost pages cannot be counted.
    pub fn unread(&self) -> u64 {
        self.scan.as_ref().map_or(0, |scan| scan.unread.saturating_add(scan.found.lost))
    }

    /// Returns the next row, in the order of ids, or `None` at the end.
    ///
    /// # Errors
    ///
    /// [`SdkFileError::Unreadable`] if the copy itself cannot be read, [`SdkFileError::Interrupted`] after shutdown was
    /// requested.
    pub fn next_row(&mut self) -> Result<Option<StoredRow>, SdkFileError> {
        self.check_shutdown()?;
        if self.is_empty {
            return Ok(None);
        }
        if self.scan.is_none() {
            match next_after(&self.connection, self.after) {
                Ok(None) => return Ok(None),
                // A corrupt tree may lead back to an earlier row.
                Ok(Some(row)) if self.after.is_some_and(|after| row.message_id <= after) => self.scan_pages()?,
                Ok(Some(row)) => {
                    self.after = Some(row.message_id);
                    return Ok(Some(row));
                }
                Err(error) if is_damage(&error) => self.scan_pages()?,
                Err(error) => return Err(SdkFileError::sqlite(&self.path, &error)),
            }
        }
        self.next_scanned_row()
    }

    /// Returns the next row that the pages hold.
    fn next_scanned_row(&mut self) -> Result<Option<StoredRow>, SdkFileError> {
        let Some(scan) = &mut self.scan else { return Ok(None) };
        while let Some(location) = scan.found.rows.get(scan.next).copied() {
            scan.next += 1;
            if self.shutdown.is_requested() {
                return Err(SdkFileError::Interrupted { path: self.path.clone() });
            }
            if self.after.is_some_and(|after| location.key <= after) {
                continue;
            }
            let row = match one_row(&self.connection, location.key) {
                Ok(Some(row)) => row,
                // The tree is intact there and has no such row: the one in the page was deleted.
                Ok(None) => continue,
                Err(_) => match scan.found.row(location) {
                    Some(row) => row,
                    None => {
                        scan.unread += 1;
                        continue;
                    }
                },
            };
            self.after = Some(row.message_id);
            return Ok(Some(row));
        }
        Ok(None)
    }

    /// Starts again with the first row.
    pub fn rewind(&mut self) {
        self.after = None;
        self.scan = None;
    }

    fn check_shutdown(&self) -> Result<(), SdkFileError> {
        match self.shutdown.is_requested() {
            true => Err(SdkFileError::Interrupted { path: self.path.clone() }),
            false => Ok(()),
        }
    }

    fn scan_pages(&mut self) -> Result<(), SdkFileError> {
        let found = ScannedRows::scan(&self.copy, &|| self.shutdown.is_requested());
        let found = found.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => SdkFileError::Interrupted { path: self.path.clone() },
            _ => SdkFileError::system(&self.path, &error),
        })?;
        self.scan = Some(PageScan { found, next: 0, unread: 0 });
        Ok(())
    }

    /// Refuses a file that is not the SDK's.
    fn check_schema(&mut self) -> Result<(), SdkFileError> {
        match schema_of(&self.connection) {
            // A corrupt first page lists no tables either, but there are more pages.
            Ok(Schema::Empty) if self.has_more_than_one_page() => self.check_scanned_rows(),
            // Killed before it made its table: there is no message in it.
            Ok(Schema::Empty) => {
                self.is_empty = true;
                Ok(())
            }
            Ok(Schema::Sdk) => Ok(()),
            Ok(Schema::Ours) => Err(SdkFileError::OurStore { path: self.path.clone() }),
            Ok(Schema::Other(reason)) => Err(self.other_program(reason)),
            Err(error) if is_damage(&error) => self.check_scanned_rows(),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                Err(SdkFileError::NotADatabase { path: self.path.clone() })
            }
            Err(error) => Err(SdkFileError::sqlite(&self.path, &error)),
        }
    }

    /// Refuses a file in whose pages no row of the SDK is left. Where the first page is corrupt, only they tell.
    fn check_scanned_rows(&mut self) -> Result<(), SdkFileError> {
        self.scan_pages()?;
        match self.scan.as_ref().is_none_or(|scan| scan.found.rows.is_empty()) {
            true => Err(self.other_program("it is damaged, and no message can be found in it")),
            false => Ok(()),
        }
    }

    fn other_program(&self, reason: &str) -> SdkFileError {
        SdkFileError::OtherProgram { path: self.path.clone(), reason: reason.into() }
    }

    fn has_more_than_one_page(&self) -> bool {
        const PAGE_BYTES_MAX: u64 = 65_536;
        let page_bytes: i64 = self.connection.pragma_query_value(None, "page_size", |row| row.get(0)).unwrap_or(0);
        let page_bytes = u64::try_from(page_bytes).unwrap_or(0).clamp(512, PAGE_BYTES_MAX);
        self.copy.metadata().is_ok_and(|metadata| metadata.len() > page_bytes)
    }
}

/// Counts the rows of an orphaned file for a report, without a copy: it takes no lock and writes nothing.
///
/// A transaction that a killed process did not commit may be counted too. `None` if the file cannot be read that way,
/// or not within two seconds.
pub fn count_rows(path: &Path) -> Option<u64> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0) {
        return Some(0);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(immutable_uri(path), flags).ok()?;
    distrust(&mut connection, distrust::after(COUNT_TIME_MAX)).ok()?;
    if schema_of(&connection).ok()? != Schema::Sdk {
        return None;
    }
    let rows: i64 = connection.query_row(queries::SDK_ROWS, [], |row| row.get(0)).ok()?;
    u64::try_from(rows).ok()
}

fn starts_as_database(file: &File) -> bool {
    let mut header = [0; 100];
    file.read_exact_at(&mut header, 0).is_ok() && header.starts_with(MAGIC)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rusqlite::config::DbConfig;

    use super::copy::with_suffix;
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store").join(name)
    }

    /// Copies a file and its journals, for this user alone whatever the modes of the sources are.
    fn private(path: &Path) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let copy = folder.path().join(path.file_name().expect("a name"));
        for suffix in ["", "-journal", "-wal"] {
            let (from, to) = (with_suffix(path, suffix), with_suffix(&copy, suffix));
            if from.is_file() {
                fs::copy(&from, &to).expect("a copy");
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
            }
        }
        (folder, copy)
    }

    fn read(path: &Path) -> Result<(Vec<StoredRow>, u64), SdkFileError> {
        let scratch = tempfile::tempdir().expect("a folder");
        let (_folder, copy) = private(path);
        let path = if path.is_file() { copy.as_path() } else { path };
        let mut file = SdkFile::open(path, scratch.path(), FileOwner::this_user(), &Shutdown::new())?;
        assert_eq!(fs::read_dir(scratch.path()).expect("a folder").count(), 0, "a copy is left for others to find");
        let mut rows = Vec::new();
        while let Some(row) = file.next_row()? {
            rows.push(row);
        }
        Ok((rows, file.unread()))
    }

    fn ids(rows: &[StoredRow]) -> Vec<i64> {
        rows.iter().map(|row| row.message_id).collect()
    }

    #[test]
    fn rows_of_an_intact_file_come_in_order() {
        let (rows, unread) = read(&fixture("all-types.db")).expect("it can be read");
        assert_eq!((ids(&rows), unread), ((0..25).collect(), 0));
        assert!(rows.iter().all(|row| row.status == 3 && row.json.is_some()));
    }

    #[test]
    fn a_hot_journal_is_rolled_back_in_the_copy_only() {
        let before = fs::read(fixture("killed-hot-journal.db-journal")).expect("a journal");
        let (rows, unread) = read(&fixture("killed-hot-journal.db")).expect("it can be read");
        assert_eq!((rows.len(), unread), (12, 0), "a row that was never committed is read");
        assert_eq!(fs::read(fixture("killed-hot-journal.db-journal")).ok(), Some(before));
    }

    #[test]
    fn a_truncated_file_yields_the_rows_that_are_left_and_counts_the_others() {
        let (rows, unread) = read(&fixture("truncated.db")).expect("its head is there");
        // The intact file had 1003 rows; this is two fifths of it.
        assert!(rows.len() > 350, "only {} rows", rows.len());
        let counted = rows.len() as u64 + unread;
        assert!(counted.abs_diff(1003) <= 3, "{counted} rows are counted");
        assert!(ids(&rows).is_sorted());
        assert!(
            rows.iter()
                .all(|row| serde_json::from_slice::<serde_json::Value>(row.json.as_deref().unwrap_or(b"")).is_ok())
        );
    }

    #[test]
    fn rows_behind_corrupt_pages_are_read() {
        let (whole, _) = read(&fixture("killed-mid-flight.db")).expect("it is whole");
        let (rows, unread) = read(&fixture("corrupt-pages.db")).expect("most of it is there");
        assert!(rows.len() > 12, "only {} rows", rows.len());
        assert_eq!(rows.len() as u64 + unread, whole.len() as u64);
        assert!(rows.iter().all(|row| whole.contains(row)), "a row was read that was never stored");
    }

    #[test]
    fn rows_are_found_without_the_tree_and_the_schema() {
        let (whole, _) = read(&fixture("killed-mid-flight.db")).expect("it is whole");
        let folder = tempfile::tempdir().expect("a folder");
        for broken in [100..4096, 4096..8192] {
            let mut bytes = fs::read(fixture("killed-mid-flight.db")).expect("a fixture");
            bytes[broken].fill(0xa5);
            let path = folder.path().join("broken.db");
            fs::write(&path, bytes).expect("a file");
            let (rows, _) = read(&path).expect("its leaves are there");
            assert_eq!(rows, whole);
        }
    }

    #[test]
    fn files_of_other_programs_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(matches!(read(&fixture("not-a-database.db")), Err(SdkFileError::NotADatabase { .. })));
        assert!(matches!(read(&folder.path().join("none.db")), Err(SdkFileError::Missing { .. })));
        assert!(matches!(read(folder.path()), Err(SdkFileError::Untrusted { .. })));
        let other = folder.path().join("other.db");
        Connection::open(&other)
            .and_then(|connection| connection.execute_batch("CREATE TABLE messages (message_id INTEGER, body TEXT)"))
            .expect("a database of another program");
        assert!(matches!(read(&other), Err(SdkFileError::OtherProgram { .. })));
        let empty = folder.path().join(SDK_STORE_NAME);
        fs::write(&empty, b"").expect("a file");
        assert_eq!(read(&empty).expect("a store of nothing").0, []);
    }

    #[test]
    fn reading_ends_when_shutdown_is_requested() {
        let scratch = tempfile::tempdir().expect("a folder");
        for name in ["all-types.db", "corrupt-pages.db"] {
            let (_folder, path) = private(&fixture(name));
            let shutdown = Shutdown::new();
            let mut file = SdkFile::open(&path, scratch.path(), FileOwner::this_user(), &shutdown).expect("it is read");
            // A damaged file is read until its pages are scanned.
            while name == "corrupt-pages.db" && !file.is_damaged() {
                assert!(file.next_row().expect("a row").is_some());
            }
            shutdown.request();
            let is_over = |result| matches!(result, Err(SdkFileError::Interrupted { .. }));
            assert!(is_over(file.next_row().map(drop)), "{name}");
            drop(file);
            let again = SdkFile::open(&path, scratch.path(), FileOwner::this_user(), &shutdown).map(drop);
            assert!(is_over(again), "{name}");
        }
        let mut connection = Connection::open_in_memory().expect("a database");
        connection
            .execute_batch(
                "CREATE TABLE messages (message_id INTEGER PRIMARY KEY, status, message_type, message_json);
                 WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 50000)
                 INSERT INTO messages SELECT x, 3, 'a', 'b' FROM n",
            )
            .expect("rows");
        distrust(&mut connection, || true).expect("it can be read with distrust");
        let found = connection.query_row("SELECT message_id FROM messages WHERE status = 4", [], |_| Ok(()));
        assert_eq!(found.expect_err("it is over").sqlite_error_code(), Some(ErrorCode::OperationInterrupted));
    }

    #[test]
    fn only_the_file_that_was_read_is_deleted() {
        let scratch = tempfile::tempdir().expect("a folder");
        let temp = tempfile::tempdir().expect("a folder");
        let path = temp.path().join("tmpabcdefgh/opik_messages.db");
        fs::create_dir(temp.path().join("tmpabcdefgh")).expect("a folder");
        let make = || {
            let bytes = fs::read(fixture("all-types.db")).expect("a fixture");
            fs::write(&path, bytes).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
        };
        let open =
            || SdkFile::open(&path, scratch.path(), FileOwner::this_user(), &Shutdown::new()).expect("it can be read");
        make();
        let file = open();
        let kept = temp.path().join("kept.db");
        fs::rename(&path, &kept).expect("it is ours");
        make();
        let error = file.remove().expect_err("another file has its name");
        assert!(error.to_string().contains("another file has its name"), "{error}");
        assert!(path.exists() && kept.exists());
        // A link in its place is not followed, and the folder is the one that it was read from.
        fs::remove_file(&path).expect("it is ours");
        std::os::unix::fs::symlink(&kept, &path).expect("a link");
        file.remove().expect_err("a link has its name");
        assert!(path.symlink_metadata().is_ok() && kept.exists());
        fs::remove_file(&path).expect("it is ours");
        fs::rename(&kept, &path).expect("it is ours");
        fs::rename(temp.path().join("tmpabcdefgh"), temp.path().join("tmpmoved000")).expect("it is ours");
        fs::create_dir(temp.path().join("tmpabcdefgh")).expect("a folder");
        make();
        file.remove().expect("it is removed where it is");
        assert!(path.exists(), "a file that was never read was deleted");
        assert!(!temp.path().join("tmpmoved000/opik_messages.db").exists());
    }

    #[test]
    fn a_distrusted_connection_reads_the_sdks_table_and_nothing_else() {
        let mut connection = Connection::open_in_memory().expect("a database");
        connection
            .execute_batch(
                "CREATE TABLE messages (message_id INTEGER PRIMARY KEY, status, message_type, message_json, more);
                 CREATE TABLE others (a); CREATE VIEW v AS SELECT message_id FROM messages",
            )
            .expect("tables");
        distrust(&mut connection, || false).expect("it can be read with distrust");
        for good in [queries::SDK_FIRST, queries::SDK_NEXT, queries::SDK_ONE, queries::SDK_ROWS, queries::TABLES] {
            connection.prepare(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in [
            "SELECT more FROM messages",
            "SELECT a FROM others",
            "SELECT message_id FROM v",
            "SELECT hex(message_json) FROM messages",
            "SELECT message_id FROM messages WHERE message_type = \"text\"",
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x FROM n",
            "DELETE FROM messages",
            "CREATE TABLE t (a)",
            "CREATE TEMP TABLE t (a)",
            "ATTACH 'x' AS y",
            "PRAGMA writable_schema = ON",
            "SELECT * FROM pragma_database_list",
        ] {
            assert!(connection.prepare(bad).is_err(), "{bad} is allowed");
        }
        let on = |config| connection.db_config(config).expect("it can be read");
        for config in [
            DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA,
            DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW,
            DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER,
            DbConfig::SQLITE_DBCONFIG_DQS_DML,
            DbConfig::SQLITE_DBCONFIG_DQS_DDL,
        ] {
            assert!(!on(config), "{config:?} is on");
        }
        let limit = connection.limit(rusqlite::limits::Limit::SQLITE_LIMIT_LENGTH).expect("it can be read");
        assert_eq!(limit, distrust::ROW_BYTES_MAX as i32);
    }
}
