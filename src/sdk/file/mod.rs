//! A Python SDK's leftover file, read as it is, never changed.
//!
//! The file and what SQLite keeps beside it (`-journal`, `-wal`) are opened once, if they can be trusted
//! ([`crate::sdk::trust`]), and copied from these descriptors into a private folder by plain reads: no lock is ever
//! taken on the original, and SQLite opens nothing that was not checked. A journal that a killed process left is rolled back in the copy. The copy's names are
//! removed as soon as SQLite holds it open, so that nothing of it stays behind, whatever happens to this process.
//!
//! Rows come one at a time, in the order of their ids. Where SQLite meets damage, the pages are read without it
//! ([`pages`]). All of it ends soon after the shutdown is requested.

mod distrust;
mod pages;
mod queries;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use thiserror::Error;

use self::distrust::{Schema, distrust, schema_of};
use self::pages::{Pages, Place};
use super::orphan::{Holder, SDK_STORE_NAME, holder_of};
use super::trust::{AttachmentFolders, FileOwner, Refusal, TrustedFile};
use crate::shutdown::Shutdown;
use crate::store::sqlite::{immutable_uri, os_words};

/// Files that belong to an SQLite database.
const BESIDE: [&str; 2] = ["-journal", "-wal"];
const MAGIC: &[u8] = b"SQLite format 3\0";
/// How a rollback journal ends that names the journal of several databases (SQLite's "super-journal").
const SUPER_JOURNAL: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Bytes that are copied between two looks at the shutdown.
const COPY_BYTES: u64 = 16 * 1024 * 1024;
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
    /// It is no SQLite database.
    #[error("{path} is no SQLite database")]
    NotADatabase {
        /// The path.
        path: PathBuf,
    },
    /// It is a message store of ours, which needs no salvage: it is replayed where it is.
    #[error("{path} is a message store of opik-offline, no file that a Python process left")]
    OurStore {
        /// The path.
        path: PathBuf,
    },
    /// It is a database, but none of the SDK's.
    #[error("{path} is no store of the Opik Python SDK: {reason}")]
    OtherProgram {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The process that it belongs to lives.
    #[error("{path} is in use by process {pid}{}", if name.is_empty() { String::new() } else { format!(" ({name})") })]
    Live {
        /// The path.
        path: PathBuf,
        /// Who has it open.
        pid: u32,
        /// The name of that process, when it is known.
        name: String,
    },
    /// Another user may have chosen what is in it.
    #[error("{path} is not trusted: {reason}")]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The shutdown was requested.
    #[error("reading {path} was interrupted")]
    Interrupted {
        /// The path.
        path: PathBuf,
    },
    /// It can't be read, or not be copied.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

/// One row as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// The SDK's number for it.
    pub message_id: i64,
    /// 1 registered, 2 delivered, 3 failed.
    pub status: i64,
    /// The SDK's name for its type.
    pub message_type: String,
    /// Its text, `None` when the column holds none.
    pub json: Option<Vec<u8>>,
}

/// An SDK's file, open for reading.
pub struct SdkFile {
    path: PathBuf,
    original: TrustedFile,
    connection: Connection,
    copy: File,
    /// There is no table in it: its process was killed before it made one.
    is_empty: bool,
    shutdown: Shutdown,
    after: Option<i64>,
    damage: Option<Damage>,
    /// Why nobody can tell whether a process works with it.
    unseen: Option<String>,
}

/// How a damaged file is read.
struct Damage {
    pages: Pages,
    /// The next of the places to read.
    next: usize,
    /// Rows that are there and can't be read whole.
    unread: u64,
}

impl SdkFile {
    /// Copies the file and opens the copy. `scratch` is a folder for temporary files.
    ///
    /// # Errors
    ///
    /// [`SdkFileError`]; nothing was changed.
    pub fn open(path: &Path, scratch: &Path, whose: FileOwner, shutdown: &Shutdown) -> Result<Self, SdkFileError> {
        let unreadable = |reason: String| SdkFileError::Unreadable { path: path.to_owned(), reason };
        let in_words = |error: io::Error| unreadable(os_words(&error));
        let refused = |refusal: Refusal| match refusal {
            Refusal::Untrusted(reason) => SdkFileError::Untrusted { path: path.to_owned(), reason },
            Refusal::System(error) if error.kind() == io::ErrorKind::NotFound => {
                SdkFileError::Missing { path: path.to_owned() }
            }
            Refusal::System(error) => in_words(error),
        };
        let mut original = TrustedFile::open(path, whose).map_err(refused)?;
        let unseen = match holder_of(&original.file, path) {
            Holder::Nobody => None,
            Holder::Process { pid, name } => return Err(SdkFileError::Live { path: path.to_owned(), pid, name }),
            Holder::Unknown(why) => Some(why),
        };
        // A process that was killed before it wrote anything leaves an empty file.
        let bytes = original.file.metadata().map_err(in_words)?.len();
        let is_new = bytes == 0 && path.file_name().is_some_and(|name| name == SDK_STORE_NAME);
        if !is_new && !starts_as_database(&original.file) {
            return Err(SdkFileError::NotADatabase { path: path.to_owned() });
        }
        let no_copy = |error: io::Error| {
            unreadable(format!("no copy can be made in {}: {}", scratch.display(), os_words(&error)))
        };
        let folder = PrivateFolder::make(scratch).map_err(no_copy)?;
        let copy = folder.0.join("copy.db");
        copy_file(&original.file, &copy, shutdown).map_err(no_copy)?;
        for suffix in BESIDE {
            let Some(beside) = original.open_beside(suffix).map_err(refused)? else { continue };
            if ends_with_super_journal(&beside).map_err(in_words)? {
                // SQLite would delete the file that it names, once it is rolled back.
                let reason = format!("its {suffix} names a journal of several databases, which the SDK never has");
                return Err(SdkFileError::Untrusted { path: path.to_owned(), reason });
            }
            copy_file(&beside, &with_suffix(&copy, suffix), shutdown).map_err(no_copy)?;
        }
        // Nothing is read from it, and it goes with the others.
        original.open_beside("-shm").map_err(refused)?;
        if shutdown.is_requested() {
            return Err(SdkFileError::Interrupted { path: path.to_owned() });
        }
        let file = File::open(&copy).map_err(no_copy)?;
        let connection = open_copy(&copy, shutdown).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => SdkFileError::Interrupted { path: path.to_owned() },
            _ => unreadable(error.to_string()),
        })?;
        let mut file = Self {
            path: path.to_owned(),
            original,
            connection,
            copy: file,
            is_empty: false,
            shutdown: shutdown.clone(),
            after: None,
            damage: None,
            unseen,
        };
        file.recognise()?;
        Ok(file)
    }

    /// Returns the path of the original.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folders in which the files of its attachments are believed: `scratch` and `named` beside the SDK's own.
    pub fn attachment_folders(&self, scratch: &Path, named: &[PathBuf]) -> AttachmentFolders {
        AttachmentFolders::of(&self.original, scratch, named)
    }

    /// Deletes the original and what SQLite keeps beside it, if they are still the files that were opened, and their folder
    /// if it is the SDK's and empty.
    ///
    /// # Errors
    ///
    /// What the system says, with the name of the first file that stays.
    pub fn remove(&self) -> io::Result<()> {
        self.original.remove()
    }

    /// Returns why nobody can tell whether a process still works with the file; `None` when none does.
    pub fn unseen(&self) -> Option<&str> {
        self.unseen.as_deref()
    }

    /// Says whether the file is damaged, as far as it was read.
    pub fn is_damaged(&self) -> bool {
        self.damage.is_some()
    }

    /// Returns how many rows could not be read so far; an estimate, because pages that are gone can't be counted.
    pub fn unread(&self) -> u64 {
        self.damage.as_ref().map_or(0, |damage| damage.unread + damage.pages.lost)
    }

    /// Returns the next row, in the order of ids, or `None` at the end.
    ///
    /// # Errors
    ///
    /// [`SdkFileError::Unreadable`] when the copy itself can't be read.
    pub fn next_row(&mut self) -> Result<Option<StoredRow>, SdkFileError> {
        if self.shutdown.is_requested() {
            return Err(SdkFileError::Interrupted { path: self.path.clone() });
        }
        if self.is_empty {
            return Ok(None);
        }
        if self.damage.is_none() {
            match next_after(&self.connection, self.after) {
                Ok(None) => return Ok(None),
                // A broken tree may lead back to where we were.
                Ok(Some(row)) if self.after.is_some_and(|after| row.message_id <= after) => self.look_at_pages()?,
                Ok(Some(row)) => {
                    self.after = Some(row.message_id);
                    return Ok(Some(row));
                }
                Err(error) if is_damage(&error) => self.look_at_pages()?,
                Err(error) => return Err(self.failed(&error)),
            }
        }
        let Some(damage) = &mut self.damage else { return Ok(None) };
        while let Some(place) = damage.pages.places.get(damage.next).copied() {
            damage.next += 1;
            if self.shutdown.is_requested() {
                return Err(SdkFileError::Interrupted { path: self.path.clone() });
            }
            if self.after.is_some_and(|after| place.message_id <= after) {
                continue;
            }
            match row_at(&self.connection, &damage.pages, &self.copy, place) {
                Found::Row(row) => {
                    self.after = Some(row.message_id);
                    return Ok(Some(row));
                }
                Found::Deleted => {}
                Found::Broken => damage.unread += 1,
            }
        }
        Ok(None)
    }

    /// Starts again with the first row.
    pub fn rewind(&mut self) {
        self.after = None;
        self.damage = None;
    }

    fn unreadable(&self, reason: String) -> SdkFileError {
        SdkFileError::Unreadable { path: self.path.clone(), reason }
    }

    fn failed(&self, error: &rusqlite::Error) -> SdkFileError {
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => SdkFileError::Interrupted { path: self.path.clone() },
            _ => self.unreadable(error.to_string()),
        }
    }

    fn look_at_pages(&mut self) -> Result<(), SdkFileError> {
        let pages = Pages::read(&self.copy, &|| self.shutdown.is_requested());
        let pages = pages.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => SdkFileError::Interrupted { path: self.path.clone() },
            _ => self.unreadable(os_words(&error)),
        })?;
        self.damage = Some(Damage { pages, next: 0, unread: 0 });
        Ok(())
    }

    fn other(&self, reason: &str) -> SdkFileError {
        SdkFileError::OtherProgram { path: self.path.clone(), reason: reason.into() }
    }

    fn has_pages_besides_the_first(&self) -> bool {
        const PAGE_BYTES_MAX: u64 = 65_536;
        let page_bytes: i64 = self.connection.pragma_query_value(None, "page_size", |row| row.get(0)).unwrap_or(0);
        let page_bytes = u64::try_from(page_bytes).unwrap_or(0).clamp(512, PAGE_BYTES_MAX);
        self.copy.metadata().is_ok_and(|metadata| metadata.len() > page_bytes)
    }

    /// Where the first page is broken the rows tell whose file it is.
    fn recognise_by_pages(&mut self) -> Result<(), SdkFileError> {
        self.look_at_pages()?;
        let places = self.damage.as_ref().map_or(0, |damage| damage.pages.places.len());
        if places == 0 { Err(self.other("it is damaged, and no message can be found in it")) } else { Ok(()) }
    }

    /// Refuses what is not the SDK's.
    fn recognise(&mut self) -> Result<(), SdkFileError> {
        match schema_of(&self.connection) {
            // A first page that is broken lists no tables either, but there are others.
            Ok(Schema::Empty) if self.has_pages_besides_the_first() => self.recognise_by_pages(),
            // Killed before it made its table. Nothing can be read from it, and nothing is in it.
            Ok(Schema::Empty) => {
                self.is_empty = true;
                Ok(())
            }
            Ok(Schema::Sdk) => Ok(()),
            Ok(Schema::Ours) => Err(SdkFileError::OurStore { path: self.path.clone() }),
            Ok(Schema::Other(reason)) => Err(self.other(reason)),
            Err(error) if is_damage(&error) => self.recognise_by_pages(),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                Err(SdkFileError::NotADatabase { path: self.path.clone() })
            }
            Err(error) => Err(self.failed(&error)),
        }
    }
}

/// Counts the rows of an orphaned file for people, without a copy: no lock is taken, and nothing is written.
///
/// A transaction that a killed process left half done may be counted in. `None` when it can't be read that way, or not
/// within a moment.
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

/// What stands at a place of a damaged file.
enum Found {
    Row(StoredRow),
    /// The tree is whole there and has no such row: what the page holds was deleted.
    Deleted,
    Broken,
}

fn row_at(connection: &Connection, pages: &Pages, copy: &File, place: Place) -> Found {
    match one_row(connection, place.message_id) {
        Ok(Some(row)) => Found::Row(row),
        Ok(None) => Found::Deleted,
        Err(_) => pages.row(copy, place).map_or(Found::Broken, Found::Row),
    }
}

fn next_after(connection: &Connection, after: Option<i64>) -> rusqlite::Result<Option<StoredRow>> {
    match after {
        None => connection.prepare_cached(queries::SDK_FIRST)?.query_row([], stored_row).optional(),
        Some(after) => connection.prepare_cached(queries::SDK_NEXT)?.query_row([after], stored_row).optional(),
    }
}

fn one_row(connection: &Connection, message_id: i64) -> rusqlite::Result<Option<StoredRow>> {
    connection.prepare_cached(queries::SDK_ONE)?.query_row([message_id], stored_row).optional()
}

/// Takes whatever the columns hold: a file of strangers may hold anything in any of them.
fn stored_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredRow> {
    let bytes = |value: ValueRef<'_>| match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.to_vec()),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    };
    let status = match row.get_ref(1)? {
        ValueRef::Integer(status) => status,
        _ => 0,
    };
    let message_type = bytes(row.get_ref(2)?).unwrap_or_default();
    Ok(StoredRow {
        message_id: row.get(0)?,
        status,
        message_type: String::from_utf8_lossy(&message_type).into_owned(),
        json: bytes(row.get_ref(3)?),
    })
}

fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::SystemIoFailure | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            true
        }
        Some(_) => false,
        None => true,
    }
}

fn starts_as_database(file: &File) -> bool {
    let mut header = [0; 100];
    file.read_exact_at(&mut header, 0).is_ok() && header.starts_with(MAGIC)
}

/// Returns whether a rollback journal names a file that SQLite would delete after it.
fn ends_with_super_journal(journal: &File) -> io::Result<bool> {
    let mut end = [0; SUPER_JOURNAL.len()];
    match journal.metadata()?.len().checked_sub(end.len() as u64) {
        // Shorter than a journal with a page, which begins with these bytes, too.
        None => Ok(false),
        Some(at) => journal.read_exact_at(&mut end, at).map(|()| at > 0 && end == SUPER_JOURNAL),
    }
}

/// Opens a private copy for reading.
fn open_copy(copy: &Path, shutdown: &Shutdown) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(copy, flags)?;
    // Lets a file be read that is shorter than its header says. (The pragma would read the file first.)
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
    let shutdown = shutdown.clone();
    distrust(&mut connection, move || shutdown.is_requested())?;
    // Rolls the journal back: from here on its name is not needed. What is damaged says so later.
    let tables = connection.query_row(queries::TABLES, [], |_| Ok(()));
    match tables {
        Ok(()) | Err(rusqlite::Error::QueryReturnedNoRows) => {}
        Err(error) if is_damage(&error) => {}
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {}
        Err(error) => return Err(error),
    }
    Ok(connection)
}

/// A folder that only this user can look into, removed when dropped.
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    fn make(scratch: &Path) -> io::Result<Self> {
        let path = scratch.join(format!("opik-offline-{}", uuid::Uuid::now_v7().simple()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(target: "db_manager", "the private copy {} stays behind: {error}", self.0.display());
        }
    }
}

/// Copies an open file, from its beginning, until the shutdown is requested.
fn copy_file(from: &File, to: &Path, shutdown: &Shutdown) -> io::Result<()> {
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    while !shutdown.is_requested() && io::copy(&mut from.take(COPY_BYTES), &mut to)? > 0 {}
    Ok(())
}

/// Returns the path with this added to its last name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store").join(name)
    }

    /// Copies a file with what is beside it, for this user alone whatever the modes of the sources are.
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
    fn a_whole_file_gives_its_rows_in_order() {
        let (rows, unread) = read(&fixture("all-types.db")).expect("it can be read");
        assert_eq!((ids(&rows), unread), ((0..25).collect(), 0));
        assert!(rows.iter().all(|row| row.status == 3 && row.json.is_some()));
    }

    #[test]
    fn a_hot_journal_is_rolled_back_in_the_copy_only() {
        let before = fs::read(fixture("killed-hot-journal.db-journal")).expect("a journal");
        let (rows, unread) = read(&fixture("killed-hot-journal.db")).expect("it can be read");
        assert_eq!((rows.len(), unread), (12, 0), "a row that was never committed is no row");
        assert_eq!(fs::read(fixture("killed-hot-journal.db-journal")).ok(), Some(before));
    }

    #[test]
    fn a_truncated_file_gives_the_rows_that_are_left_and_counts_the_others() {
        let (rows, unread) = read(&fixture("truncated.db")).expect("its head is there");
        // 1003 rows were in the whole file, of which this is two fifths.
        assert!(rows.len() > 350, "only {} rows", rows.len());
        let told = rows.len() as u64 + unread;
        assert!(told.abs_diff(1003) <= 3, "it tells of {told}");
        assert!(ids(&rows).is_sorted());
        assert!(
            rows.iter()
                .all(|row| serde_json::from_slice::<serde_json::Value>(row.json.as_deref().unwrap_or(b"")).is_ok())
        );
    }

    #[test]
    fn rows_behind_overwritten_pages_are_read() {
        let (whole, _) = read(&fixture("killed-mid-flight.db")).expect("it is whole");
        let (rows, unread) = read(&fixture("corrupt-pages.db")).expect("most of it is there");
        assert!(rows.len() > 12, "only {} rows", rows.len());
        assert_eq!(rows.len() as u64 + unread, whole.len() as u64);
        assert!(rows.iter().all(|row| whole.contains(row)), "a row was read that is none");
    }

    #[test]
    fn without_its_tree_and_its_schema_a_file_still_gives_its_rows() {
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
    fn what_is_no_store_of_the_sdk_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(matches!(read(&fixture("not-a-database.db")), Err(SdkFileError::NotADatabase { .. })));
        assert!(matches!(read(&folder.path().join("none.db")), Err(SdkFileError::Missing { .. })));
        assert!(matches!(read(folder.path()), Err(SdkFileError::Untrusted { .. })));
        let other = folder.path().join("other.db");
        Connection::open(&other)
            .and_then(|connection| connection.execute_batch("CREATE TABLE messages (message_id INTEGER, body TEXT)"))
            .expect("another program's");
        assert!(matches!(read(&other), Err(SdkFileError::OtherProgram { .. })));
        let empty = folder.path().join(SDK_STORE_NAME);
        fs::write(&empty, b"").expect("a file");
        assert_eq!(read(&empty).expect("a store of nothing").0, []);
    }

    #[test]
    fn a_private_copy_is_in_a_folder_that_only_this_user_can_enter() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = PrivateFolder::make(scratch.path()).expect("it can be made");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(&folder.0), 0o700);
        let from = File::open(fixture("all-types.db")).expect("a fixture");
        copy_file(&from, &folder.0.join("copy.db"), &Shutdown::new()).expect("a copy");
        assert_eq!(mode(&folder.0.join("copy.db")), 0o600);
        let path = folder.0.clone();
        drop(folder);
        assert!(!path.exists(), "a copy is left for others to find");
    }

    #[test]
    fn reading_ends_when_the_shutdown_is_requested() {
        let scratch = tempfile::tempdir().expect("a folder");
        for name in ["all-types.db", "corrupt-pages.db"] {
            let (_folder, path) = private(&fixture(name));
            let shutdown = Shutdown::new();
            let mut file = SdkFile::open(&path, scratch.path(), FileOwner::this_user(), &shutdown).expect("it is read");
            // Of a damaged file, until its pages are read without SQLite.
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
        // A link in its place leads nowhere, and the folder is the one that it was read from.
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
