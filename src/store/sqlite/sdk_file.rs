//! A Python SDK's leftover file, read as it is, never changed.
//!
//! The file and what SQLite keeps beside it (`-journal`, `-wal`) are copied into a private folder by plain reads: no lock is
//! ever taken on the original. A journal that a killed process left is rolled back in the copy. The copy's names are
//! removed as soon as SQLite holds it open, so that nothing of it stays behind, whatever happens to this process.
//!
//! Rows come one at a time, in the order of their ids. Where SQLite meets damage, the pages are read without it
//! ([`super::sdk_pages`]).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use thiserror::Error;

use super::fault::os_words;
use super::open::immutable_uri;
use super::sdk_pages::{Pages, Place};
use super::{queries, schema};
use crate::store::orphan::{Holder, SDK_STORE_NAME, holder};

/// Files that belong to an SQLite database.
const BESIDE: [&str; 2] = ["-journal", "-wal"];
const MAGIC: &[u8] = b"SQLite format 3\0";

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
    connection: Connection,
    copy: File,
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
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, SdkFileError> {
        let unreadable = |reason: String| SdkFileError::Unreadable { path: path.to_owned(), reason };
        let in_words = |error: io::Error| unreadable(os_words(&error));
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SdkFileError::Missing { path: path.to_owned() });
            }
            Err(error) => return Err(in_words(error)),
        };
        if !metadata.is_file() {
            return Err(unreadable("it is no regular file".into()));
        }
        let unseen = match holder(path) {
            Holder::Nobody => None,
            Holder::Process { pid, name } => return Err(SdkFileError::Live { path: path.to_owned(), pid, name }),
            Holder::Unknown(why) => Some(why),
        };
        // A process that was killed before it wrote anything leaves an empty file.
        let is_empty = metadata.len() == 0 && path.file_name().is_some_and(|name| name == SDK_STORE_NAME);
        if !is_empty && !starts_as_database(path).map_err(in_words)? {
            return Err(SdkFileError::NotADatabase { path: path.to_owned() });
        }
        let folder = PrivateFolder::make(scratch).map_err(|error| {
            unreadable(format!("no copy can be made in {}: {}", scratch.display(), os_words(&error)))
        })?;
        let (connection, copy) = folder.open_copy_of(path).map_err(|fault| match fault {
            CopyFault::System(error) => {
                unreadable(format!("no copy can be made in {}: {}", scratch.display(), os_words(&error)))
            }
            CopyFault::Engine(error) => unreadable(error.to_string()),
        })?;
        let mut file = Self { path: path.to_owned(), connection, copy, after: None, damage: None, unseen };
        file.recognise()?;
        Ok(file)
    }

    /// Returns the path of the original.
    pub fn path(&self) -> &Path {
        &self.path
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
                Err(error) => return Err(self.unreadable(error.to_string())),
            }
        }
        let Some(damage) = &mut self.damage else { return Ok(None) };
        while let Some(place) = damage.pages.places.get(damage.next).copied() {
            damage.next += 1;
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

    fn look_at_pages(&mut self) -> Result<(), SdkFileError> {
        let pages = Pages::read(&self.copy).map_err(|error| self.unreadable(os_words(&error)))?;
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
        let tables = self
            .connection
            .prepare(queries::TABLES)
            .and_then(|mut tables| tables.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>());
        match tables {
            // A first page that is broken lists no tables either, but there are others.
            Ok(tables) if tables.is_empty() && self.has_pages_besides_the_first() => self.recognise_by_pages(),
            Ok(tables) if tables.is_empty() => {
                // Killed before it made its table. Nothing can be read from it, and nothing is in it.
                self.connection
                    .execute_batch(queries::EMPTY_SDK_STORE)
                    .map_err(|error| self.unreadable(error.to_string()))
            }
            Ok(tables) => {
                let application: i32 =
                    self.connection.pragma_query_value(None, "application_id", |row| row.get(0)).unwrap_or(0);
                if application == schema::APPLICATION_ID {
                    return Err(SdkFileError::OurStore { path: self.path.clone() });
                }
                let has_columns = self.connection.prepare(queries::SDK_MESSAGES).is_ok();
                if tables.iter().any(|table| table == "messages") && has_columns {
                    return Ok(());
                }
                Err(self.other("it is the database of another program"))
            }
            Err(error) if is_damage(&error) => self.recognise_by_pages(),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                Err(SdkFileError::NotADatabase { path: self.path.clone() })
            }
            Err(error) => Err(self.unreadable(error.to_string())),
        }
    }
}

/// Counts the rows of an orphaned file for people, without a copy: no lock is taken, and nothing is written.
///
/// A transaction that a killed process left half done may be counted in. `None` when it can't be read that way.
pub fn count_rows(path: &Path) -> Option<u64> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0) {
        return Some(0);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(immutable_uri(path), flags).ok()?;
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
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::SystemIoFailure | ErrorCode::TypeMismatch) => true,
        Some(_) => false,
        None => true,
    }
}

fn starts_as_database(path: &Path) -> io::Result<bool> {
    use std::io::Read as _;
    let mut header = Vec::new();
    File::open(path)?.take(100).read_to_end(&mut header)?;
    Ok(header.len() == 100 && header.starts_with(MAGIC))
}

enum CopyFault {
    System(io::Error),
    Engine(rusqlite::Error),
}

/// A folder that only this user can look into, removed when dropped.
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    fn make(scratch: &Path) -> io::Result<Self> {
        let path = scratch.join(format!("opik-offline-{}", uuid::Uuid::now_v7().simple()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn open_copy_of(&self, original: &Path) -> Result<(Connection, File), CopyFault> {
        let copy = self.0.join("copy.db");
        copy_file(original, &copy).map_err(CopyFault::System)?;
        for suffix in BESIDE {
            let beside = with_suffix(original, suffix);
            match copy_file(&beside, &with_suffix(&copy, suffix)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(CopyFault::System(error)),
            }
        }
        let file = File::open(&copy).map_err(CopyFault::System)?;
        let open = || -> rusqlite::Result<Connection> {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&copy, flags)?;
            // Lets a file be read that is shorter than its header says. (The pragma would read the file first.)
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
            // Rolls the journal back: from here on its name is not needed. What is damaged says so later.
            let tables = connection.query_row(queries::TABLES, [], |_| Ok(()));
            match tables {
                Ok(()) | Err(rusqlite::Error::QueryReturnedNoRows) => {}
                Err(error) if is_damage(&error) => {}
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {}
                Err(error) => return Err(error),
            }
            Ok(connection)
        };
        open().map(|connection| (connection, file)).map_err(CopyFault::Engine)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(target: "db_manager", "the private copy {} stays behind: {error}", self.0.display());
        }
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut from, &mut to).map(drop)
}

/// Returns the path with this added to its last name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the files that belong to the store at this path, itself last.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    let beside = BESIDE.iter().chain(&["-shm"]).map(|suffix| with_suffix(path, suffix));
    beside.filter(|file| file.exists()).chain([path.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store").join(name)
    }

    fn read(path: &Path) -> Result<(Vec<StoredRow>, u64), SdkFileError> {
        let scratch = tempfile::tempdir().expect("a folder");
        let mut file = SdkFile::open(path, scratch.path())?;
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
        assert!(matches!(read(folder.path()), Err(SdkFileError::Unreadable { .. })));
        let other = folder.path().join("other.db");
        Connection::open(&other)
            .and_then(|connection| connection.execute_batch("CREATE TABLE messages (message_id INTEGER, body TEXT)"))
            .expect("another program's");
        assert!(matches!(read(&other), Err(SdkFileError::OtherProgram { .. })));
        let empty = folder.path().join(SDK_STORE_NAME);
        fs::write(&empty, b"").expect("a file");
        assert_eq!(read(&empty).expect("a store of nothing").0, []);
    }
}
