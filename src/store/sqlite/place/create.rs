//! Creating the file of a new store, and rolling back a creation that a power cut interrupted.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::store::error::StoreError;
use crate::store::os::{folder_of, os_words};
use crate::store::sqlite::connect::connect_with_room;
use crate::store::sqlite::fault::Fault;
use crate::store::sqlite::files::make_private;

/// Returns whether there is a hot journal from the creation of the file: power failed while its first pages were being
/// written. The journal was synced before the first byte of the file was written, so it is complete.
///
/// Its format: <https://sqlite.org/fileformat2.html#the_rollback_journal>.
pub(crate) fn has_hot_journal(path: &Path) -> bool {
    use std::io::Read as _;
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    let mut journal = path.as_os_str().to_owned();
    journal.push("-journal");
    let mut head = [0; 28];
    let is_read = fs::File::open(journal).and_then(|mut journal| journal.read_exact(&mut head)).is_ok();
    is_read && head[..8] == MAGIC && head[16..20] == [0; 4]
}

/// Lets SQLite roll back a first commit that was cut off, and returns the size of the file afterwards.
pub(crate) fn roll_back_creation(path: &Path) -> Result<u64, StoreError> {
    let undo = || connect_with_room(path)?.pragma_query_value(None, "schema_version", |_| Ok(()));
    undo().map_err(|error: rusqlite::Error| Fault::from(error).at(path))?;
    fs::metadata(path)
        .map(|metadata| metadata.len())
        .map_err(|error| StoreError::Unusable { at: path.into(), reason: os_words(&error) })
}

/// Creates an empty file, and the folders above it, that only this user can read.
pub(crate) fn make_file(path: &Path) -> Result<(), StoreError> {
    let unusable = |reason: String| StoreError::Unusable { at: path.into(), reason };
    let folder = folder_of(path);
    let in_folder = |error: io::Error| unusable(format!("its folder {}: {}", folder.display(), os_words(&error)));
    make_folder(folder).map_err(in_folder)?;
    match make_private(path) {
        Ok(()) => {}
        // Another process created it meanwhile, in the same way.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(os_words(&error))),
    }
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(in_folder)
}

/// Creates a folder, and the folders above it, that only this user can read; each entry is synced.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    make_folder(above)?;
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        // The umask can only clear permission bits, never set them.
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?,
        // Another process created it meanwhile; it may not be on disk yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) => return Err(error),
    }
    fs::File::open(above)?.sync_all()
}
