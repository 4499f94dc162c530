//! The private copy of a file: in a folder that only this user can enter, and nameless as soon as SQLite has it open.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::distrust::distrust;
use super::queries;
use super::row::is_damage;
use crate::private_folder::PrivateFolder;
use crate::sdk::trust::{Refusal, TrustedFile};
use crate::shutdown::Shutdown;

/// Files beside a database that SQLite needs to read it.
const JOURNALS: [&str; 2] = ["-journal", "-wal"];
/// How a rollback journal ends that names the journal of several databases (SQLite's "super-journal").
const SUPER_JOURNAL: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// How the names of folders with a copy begin.
const NAME: &str = "opik-offline-copy-";
/// How many bytes are copied between two checks for the shutdown.
const COPY_BYTES: u64 = 16 * 1024 * 1024;

/// Why there is no copy.
pub(super) enum CopyError {
    /// The copy cannot be written.
    Scratch(io::Error),
    /// The original cannot be read or trusted.
    Source(Refusal),
    /// Shutdown was requested.
    Interrupted,
}

/// A copy of a database and its journals. Dropping it removes their names; a connection keeps its files.
pub(super) struct PrivateCopy {
    path: PathBuf,
    /// The copy, open for reading.
    pub(super) file: Arc<File>,
    _folder: PrivateFolder,
}

impl PrivateCopy {
    /// Copies an open file and what SQLite keeps beside it, if that is trusted too. `scratch` is a folder for temporary
    /// files.
    pub(super) fn make(original: &mut TrustedFile, scratch: &Path, shutdown: &Shutdown) -> Result<Self, CopyError> {
        let folder = PrivateFolder::make(scratch, OsStr::new(NAME)).map_err(CopyError::Scratch)?;
        let path = folder.path().join("copy.db");
        copy_file(&original.file, &path, shutdown).map_err(CopyError::Scratch)?;
        for suffix in JOURNALS {
            let Some(journal) = original.open_beside(suffix).map_err(CopyError::Source)? else { continue };
            if names_super_journal(&journal).map_err(|error| CopyError::Source(error.into()))? {
                // SQLite would delete the file that it names once it is rolled back.
                let reason = format!("its {suffix} names a journal of several databases, which the SDK never has");
                return Err(CopyError::Source(Refusal::Untrusted(reason)));
            }
            copy_file(&journal, &with_suffix(&path, suffix), shutdown).map_err(CopyError::Scratch)?;
        }
        // Nothing is read from it, but it is deleted with the others.
        original.open_beside("-shm").map_err(CopyError::Source)?;
        if shutdown.is_requested() {
            return Err(CopyError::Interrupted);
        }
        let file = File::open(&path).map_err(CopyError::Scratch)?;
        Ok(Self { path, file: Arc::new(file), _folder: folder })
    }

    /// Opens a connection that reads the copy, and rolls its journal back. Corruption is reported by later reads.
    pub(super) fn connect(&self, shutdown: &Shutdown) -> rusqlite::Result<Connection> {
        let flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        // Allows a file to be read that is shorter than its header says. (The pragma would read the file first.)
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
        let shutdown = shutdown.clone();
        distrust(&mut connection, move || shutdown.is_requested())?;
        // The first read rolls the journal back: from here on, its name is not needed.
        match connection.query_row(queries::TABLES, [], |_| Ok(())) {
            Ok(()) | Err(rusqlite::Error::QueryReturnedNoRows) => {}
            Err(error) if is_damage(&error) => {}
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {}
            Err(error) => return Err(error),
        }
        Ok(connection)
    }
}

/// Copies an open file from its beginning, until shutdown is requested.
fn copy_file(from: &File, to: &Path, shutdown: &Shutdown) -> io::Result<()> {
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    while !shutdown.is_requested() && io::copy(&mut from.take(COPY_BYTES), &mut to)? > 0 {}
    Ok(())
}

/// Returns whether a rollback journal names a file that SQLite would delete after it.
fn names_super_journal(journal: &File) -> io::Result<bool> {
    let mut end = [0; SUPER_JOURNAL.len()];
    match journal.metadata()?.len().checked_sub(end.len() as u64) {
        // Shorter than a journal with a page, which begins with these bytes too.
        None => Ok(false),
        Some(at) => journal.read_exact_at(&mut end, at).map(|()| at > 0 && end == SUPER_JOURNAL),
    }
}

/// Appends a suffix to the last name of a path.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_this_user_can_read_a_private_copy() {
        let scratch = tempfile::tempdir().expect("a folder");
        let copy = scratch.path().join("copy.db");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store/all-types.db");
        copy_file(&File::open(fixture).expect("a fixture"), &copy, &Shutdown::new()).expect("a copy");
        let mode = fs::metadata(&copy).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "others can read messages and keys");
    }
}
