//! Finding out what stands at a path, making a new store there, and opening connections to it.
//!
//! Nothing here opens the database file except SQLite itself (and the one call that makes it): POSIX drops all of a
//! process's locks on a file when any descriptor of it is closed, and SQLite's locks are among them.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tracing::warn;

use super::fault::{Fault, NO_DATABASE, access_words, folder_of, os_words};
use super::proof::Watch;
use super::recovery::{self, FolderLock};
use super::seal::{self, KeyRing, Sealer, State};
use super::{BUSY_TIMEOUT, ballast, checkpoint, in_place, proof, queries, schema, upgrade};
use crate::store::{OpenMode, StoreError, StoreIdentity, place};

/// The oldest SQLite without the WAL-reset fault, which can damage a file that several processes write.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Pages in the write-ahead log that make the committing connection write them back into the file.
const LOG_PAGES_MAX: u64 = 2000;
/// The same for a store whose size limit is small: the log is to stay a small part of it.
const LOG_PAGES_MIN: u64 = 100;
/// The part of the size limit that the log may take, as a divisor.
const LOG_SHARE: u64 = 16;
/// Bytes of the header that every SQLite database starts with.
const HEADER_BYTES: u64 = 100;
/// SQLite's way to a file for one process alone: it locks others out, and keeps in memory what they would share.
const ALONE: &CStr = c"unix-excl";
/// How long an opening alone waits for others to close the store.
const ALONE_TIMEOUT: Duration = Duration::from_millis(200);
/// Memory for pages of one connection, in KiB.
const CACHE_KIB: i32 = 4096;
/// Statements kept prepared by one connection; more than we have, filters in their variants included.
const STATEMENTS_KEPT: usize = 96;

/// Makes "is it there? make it" one step for the threads of this process.
static OPENING: Mutex<()> = Mutex::new(());

/// Tells a file from any other: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    /// Returns which file stands at this path, or `None` when none can be seen there.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::of(&metadata))
    }

    /// Returns which file this is.
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }

    /// Returns the identity of the store in this file, which stands at this path.
    pub(super) fn identity(self, path: &Path) -> StoreIdentity {
        let Self(device, number) = self;
        let made = fs::metadata(path).ok().filter(|found| Self(found.dev(), found.ino()) == self);
        let made = made.and_then(|found| found.created().ok()?.duration_since(UNIX_EPOCH).ok());
        StoreIdentity { device, number, made_at_ns: made.map(|made| made.as_nanos()) }
    }

    /// Says whether this file, which this process has open, has no name any more. Where that can't be known, it has one.
    ///
    /// Asked of the system's list of open files, because opening and closing the file would drop SQLite's locks on it.
    pub(crate) fn is_deleted(self) -> bool {
        let Ok(open) = fs::read_dir("/dev/fd") else { return false };
        let open = open.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
        open.filter(|file| Self(file.dev(), file.ino()) == self).any(|file| file.nlink() == 0)
    }

    /// Returns where this file is, which this process has open, as far as the system tells.
    pub(crate) fn open_path(self) -> Option<PathBuf> {
        let open = fs::read_dir("/dev/fd").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let mut paths =
            open.filter(|entry| Self::at(entry) == Some(self)).filter_map(|entry| fs::read_link(entry).ok());
        paths.find(|path| Self::at(path) == Some(self))
    }

    /// Says whether this file lies beside the store at this path as one that was found damaged.
    pub(crate) fn is_set_aside(self, path: &Path) -> bool {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
        let Ok(entries) = fs::read_dir(folder_of(path)) else { return false };
        entries.filter_map(Result::ok).any(|entry| {
            let found = entry.file_name();
            let kind = found.to_str().and_then(|found| found.strip_prefix(name));
            kind.is_some_and(|kind| kind.starts_with(".damaged-") || kind.starts_with(".recovering-"))
                && Self::at(&entry.path()) == Some(self)
        })
    }
}

/// The connections of an open store.
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) readers: [Connection; 2],
    pub(super) file: FileId,
    pub(super) sealer: Sealer,
    /// The write-ahead log. It lies beside the file itself, also when the path is a symbolic link to it.
    pub(super) log: PathBuf,
    /// Whether no other process can open it.
    pub(super) is_alone: bool,
    /// Tells whether an error of the disk made it unproven.
    pub(super) watch: Watch,
}

/// Opens the store at this path, makes it when the mode says so, and brings its schema up to date.
pub(super) fn open(path: &Path, mode: OpenMode, size_max: u64, keys: &Arc<KeyRing>) -> Result<Opened, StoreError> {
    assert!(
        rusqlite::version_number() >= SQLITE_VERSION_MIN,
        "linked with SQLite {}, which several processes may not use on one file",
        rusqlite::version()
    );
    let _one_at_a_time = OPENING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    vet(path, mode)?;
    match open_sound(path, mode, size_max, keys) {
        Err(StoreError::Damaged { reason, .. }) if mode.recovers() => {
            recovery::recover(path, None, &reason, keys)?;
            proven_by_recovery(path)?;
            open_sound(path, mode, size_max, keys)
        }
        result => result,
    }
}

/// Sets the file aside that was found damaged while it was open, unless another process did so, and opens the new store.
pub(super) fn open_recovered(
    path: &Path,
    failed: FileId,
    reason: &str,
    size_max: u64,
    keys: &Arc<KeyRing>,
) -> Result<Opened, StoreError> {
    let _one_at_a_time = OPENING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    vet(path, OpenMode::CreateIfMissing)?;
    recovery::recover(path, Some(failed), reason, keys)?;
    proven_by_recovery(path)?;
    open_sound(path, OpenMode::CreateIfMissing, size_max, keys)
}

/// Notes that the store is a new file by now, which was synced. Nothing of the old one is read again.
fn proven_by_recovery(path: &Path) -> Result<(), StoreError> {
    proof::clear(path).map_err(|error| StoreError::Unusable { path: path.to_owned(), reason: os_words(&error) })
}

/// Proves the store if it is unproven; see [`crate::store::prove`].
pub(in crate::store) fn prove(path: &Path) -> Result<(), StoreError> {
    let _one_at_a_time = OPENING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if proof::unproven(path).is_none() {
        return Ok(());
    }
    let place = vet(path, OpenMode::Existing)?;
    let _no_recovery = FolderLock::shared(&place)?;
    match make_or_examine(path, OpenMode::Existing) {
        Err(StoreError::Missing { .. }) => return Ok(()),
        result => result?,
    }
    proof::prove_if_needed(path, None).map_err(|fault| fault.at(path))
}

fn open_sound(path: &Path, mode: OpenMode, size_max: u64, keys: &Arc<KeyRing>) -> Result<Opened, StoreError> {
    let mut no_recovery = look_first(path, mode)?;
    if mode.recovers() {
        proof::prove_if_needed(path, Some(keys)).map_err(|fault| fault.at(path))?;
    }
    if upgrade::is_outdated(path, mode, keys).map_err(|fault| fault.at(path))? {
        // Bringing it up to date writes, which a look at an unproven store does not.
        let keys_needed = (mode != OpenMode::WithoutKey).then_some(keys.as_ref());
        proof::prove_if_needed(path, keys_needed).map_err(|fault| fault.at(path))?;
        drop(no_recovery);
        upgrade::upgrade(path)?;
        no_recovery = look_first(path, mode)?;
    }
    let _no_recovery = no_recovery;
    let opened = match open_with_room(path, mode, size_max, keys) {
        // Its schema has to be made, which writes. A look at any other unproven store writes nothing.
        Err(Fault::Store(StoreError::Unproven { .. })) => {
            let keys_needed = (mode != OpenMode::WithoutKey).then_some(keys.as_ref());
            proof::prove_if_needed(path, keys_needed).and_then(|()| open_with_room(path, mode, size_max, keys))
        }
        result => result,
    };
    let (mut writer, vfs) = opened.map_err(|fault| fault.at(path))?;
    if mode.recovers() {
        recovery::look_through(&writer, path).map_err(|fault| fault.at(path))?;
    }
    let watch = Watch::new(path);
    let sealer = open_seals(&mut writer, &watch, mode, keys).map_err(|fault| fault.at(path))?;
    if vfs.is_some() {
        warn!(
            target: "db_manager",
            "{} is open for this process alone until its full disk has room: other processes find it busy",
            path.display()
        );
    }
    let readers = [open_reader_by(path, vfs)?, open_reader_by(path, vfs)?];
    // Looked at again: by now it is there with all that belongs to it, and nobody else can put anything in its place. So
    // what was put there between the first look and its making is found before a message is written.
    let place = vet(path, mode)?;
    place::tighten(&place).map_err(|(open, error)| StoreError::Unusable {
        path: path.to_owned(),
        reason: format!("other users can read {}, and that cannot be changed: {}", open.display(), os_words(&error)),
    })?;
    let removed =
        || StoreError::Unusable { path: path.to_owned(), reason: "it was removed while it was opened".into() };
    let file = FileId::at(path).ok_or_else(removed)?;
    let mut log = fs::canonicalize(path).map_err(|_| removed())?.into_os_string();
    log.push("-wal");
    Ok(Opened { writer, readers, file, sealer, log: log.into(), is_alone: vfs.is_some(), watch })
}

/// Opens the writer, and says by which VFS.
///
/// The memory that processes share is a file beside the store. Without room for it one process alone can go on. SQLite
/// writes a byte to each 4 KiB of that file, and where blocks are smaller the rest is found missing only when it is
/// written to, by a SIGBUS. So on a full disk the store is opened alone, unless others have it open: then the file is there.
fn open_with_room(
    path: &Path,
    mode: OpenMode,
    size_max: u64,
    keys: &KeyRing,
) -> Result<(Connection, Option<&'static CStr>), Fault> {
    let alone = || open_writer(path, mode, size_max, keys, Some(ALONE)).map(|writer| (writer, Some(ALONE)));
    if ballast::is_full(path) {
        match alone() {
            Err(fault) if fault.is_busy() => {}
            result => return result,
        }
    }
    match open_writer(path, mode, size_max, keys, None) {
        Err(fault) if fault.no_room(path).is_some() => alone(),
        result => result.map(|writer| (writer, None)),
    }
}

/// Keeps recoveries away, and finds out whether there is a store, or makes an empty file.
fn look_first(path: &Path, mode: OpenMode) -> Result<FolderLock, StoreError> {
    let no_recovery = FolderLock::shared(path)?;
    if recovery::pending(path).is_some() {
        let how = if ballast::is_full(path) { "; its disk is full, free some space there" } else { "" };
        let reason =
            format!("its recovery did not come to its end; the agent and `opik-offline replay` go on with it{how}");
        return Err(StoreError::Damaged { path: path.to_owned(), reason });
    }
    ballast::put_in_place(path);
    make_or_examine(path, mode)?;
    in_place::prepare(path);
    Ok(no_recovery)
}

/// Refuses a place where another user has laid a trap, and returns where the store really is.
fn vet(path: &Path, mode: OpenMode) -> Result<PathBuf, StoreError> {
    place::vet(path, mode).map_err(|trap| StoreError::Unusable {
        path: path.to_owned(),
        reason: format!(
            "{} is not trusted: {}; look at it with `ls -ld`, and move it away if you did not make it",
            trap.path.display(),
            trap.reason
        ),
    })
}

fn make_or_examine(path: &Path, mode: OpenMode) -> Result<(), StoreError> {
    let unusable = |reason: String| StoreError::Unusable { path: path.to_owned(), reason };
    let damaged = |reason: &str| StoreError::Damaged { path: path.to_owned(), reason: reason.into() };
    let log_alone = "its file is missing or empty, and its write-ahead log is there";
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match mode {
            _ if recovery::has_log_alone(path) => Err(damaged(log_alone)),
            OpenMode::Existing | OpenMode::ExistingOrRecovered | OpenMode::WithoutKey => {
                Err(StoreError::Missing { path: path.to_owned() })
            }
            OpenMode::CreateIfMissing => make_file(path),
        },
        Err(error) => Err(unusable(os_words(&error))),
        Ok(metadata) => {
            let not_a_store = |reason: &str| StoreError::NotAStore { path: path.to_owned(), reason: reason.into() };
            let kind = metadata.file_type();
            if kind.is_dir() {
                return Err(not_a_store("it is a directory"));
            }
            if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
                return Err(not_a_store("it is no regular file"));
            }
            if let Some(words) = access_words(path) {
                return Err(unusable(words));
            }
            let bytes = match (was_being_made(path), mode) {
                (false, _) => metadata.len(),
                (true, OpenMode::CreateIfMissing) => take_back(path)?,
                (true, OpenMode::Existing | OpenMode::ExistingOrRecovered | OpenMode::WithoutKey) => 0,
            };
            match bytes {
                0 if recovery::has_log_alone(path) => Err(damaged(log_alone)),
                // What a process left that was killed while it made a store, or what `touch` made: nothing is in it.
                0 if mode != OpenMode::CreateIfMissing => Err(StoreError::Missing { path: path.to_owned() }),
                0 => fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                    .map_err(|error| unusable(os_words(&error))),
                // SQLite would take a file of one byte for an empty one.
                1..HEADER_BYTES if recovery::has_log_alone(path) => Err(damaged("its file is cut off")),
                1..HEADER_BYTES => Err(not_a_store(NO_DATABASE)),
                _ => match examine(path) {
                    Err(StoreError::NotAStore { reason, .. }) if recovery::is_ours(path) => {
                        Err(damaged(&format!("its first page says that {reason}")))
                    }
                    result => result,
                },
            }
        }
    }
}

/// Says whether the file's first pages were being written when power failed: a rollback journal lies beside it, by which
/// it was empty before. The journal was synced before a byte of the file was written, so it is whole.
///
/// Its format: <https://sqlite.org/fileformat2.html#the_rollback_journal>.
fn was_being_made(path: &Path) -> bool {
    use std::io::Read as _;
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    let mut journal = path.as_os_str().to_owned();
    journal.push("-journal");
    let mut head = [0; 28];
    let is_read = fs::File::open(journal).and_then(|mut journal| journal.read_exact(&mut head)).is_ok();
    is_read && head[..8] == MAGIC && head[16..20] == [0; 4]
}

/// Lets SQLite undo a first commit that was cut off, and returns how many bytes the file has then.
fn take_back(path: &Path) -> Result<u64, StoreError> {
    let undo = || connect_with_room(path)?.pragma_query_value(None, "schema_version", |_| Ok(()));
    undo().map_err(|error: rusqlite::Error| Fault::from(error).at(path))?;
    fs::metadata(path)
        .map(|metadata| metadata.len())
        .map_err(|error| StoreError::Unusable { path: path.to_owned(), reason: os_words(&error) })
}

/// Makes an empty file, and folders down to it, that only this user can read.
fn make_file(path: &Path) -> Result<(), StoreError> {
    let unusable = |reason: String| StoreError::Unusable { path: path.to_owned(), reason };
    let folder = folder_of(path);
    let in_folder = |error: io::Error| unusable(format!("its folder {}: {}", folder.display(), os_words(&error)));
    make_folder(folder).map_err(in_folder)?;
    match make_private(path) {
        Ok(()) => {}
        // Another process was faster; it makes the same.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(os_words(&error))),
    }
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(in_folder)
}

/// Makes a folder, and folders down to it, that only this user can read; each has its name on the disk.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    make_folder(above)?;
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        // The umask may have taken bits from it; it never adds any.
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?,
        // Another process was faster; whether it is on the disk yet is not known.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) => return Err(error),
    }
    fs::File::open(above)?.sync_all()
}

/// Makes an empty file that only this user can read.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    in_place::overwrite_in_place(&file);
    // The umask may have taken bits from it; it never adds any.
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

/// Refuses what is not ours, without changing a byte of it.
///
/// Looks through an immutable connection: no lock, no log, no recovery. What it sees may therefore be older than what
/// the write-ahead log says, so only a clear "not ours" counts here and [`open_writer`] looks again.
fn examine(path: &Path) -> Result<(), StoreError> {
    let not_a_store = |reason: String| StoreError::NotAStore { path: path.to_owned(), reason };
    let look = || -> rusqlite::Result<(i32, i64, Connection)> {
        let connection = immutable(path)?;
        let application_id = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version = schema::version(&connection)?;
        Ok((application_id, version, connection))
    };
    match look() {
        Ok((schema::APPLICATION_ID, found, _)) => refuse_newer(path, found),
        Ok((0, 0, connection)) => match tables(&connection) {
            // Made by us a moment ago and not filled yet; or the log knows more.
            Ok(tables) if tables.is_empty() => Ok(()),
            Ok(tables) if tables == ["messages"] && has_sdk_columns(&connection) => Err(not_a_store(
                "it is a leftover file of the Opik Python SDK, which `replay --from` and `inspect --from` read".into(),
            )),
            Ok(_) | Err(_) => Err(not_a_store("it is the database of another program".into())),
        },
        Ok((application_id, _, _)) => {
            Err(not_a_store(format!("it is the database of another program (application_id {application_id:#x})")))
        }
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            Err(not_a_store(NO_DATABASE.into()))
        }
        // Perhaps only the log makes it whole.
        Err(_) => Ok(()),
    }
}

/// Opens the file as it is without its log, with no lock and no byte written.
pub(super) fn immutable(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(immutable_uri(path), flags)
}

pub(super) fn refuse_newer(path: &Path, found: i64) -> Result<(), StoreError> {
    let known = schema::known_version();
    if found > known { Err(StoreError::NewerSchema { path: path.to_owned(), found, known }) } else { Ok(()) }
}

pub(super) fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(queries::TABLES)?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

fn has_sdk_columns(connection: &Connection) -> bool {
    connection.prepare(queries::SDK_MESSAGES).is_ok()
}

pub(crate) fn immutable_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?immutable=1"
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    connect_by(path, None)
}

/// Opens a connection to a store that is not in service yet. On a full disk it is alone, unless others have it open: see
/// [`open_with_room`].
pub(super) fn connect_with_room(path: &Path) -> rusqlite::Result<Connection> {
    if ballast::is_full(path) {
        let alone = connect_by(path, Some(ALONE))?;
        // Opens the file.
        if !schema::version(&alone).is_err_and(|error| Fault::from(error).is_busy()) {
            return Ok(alone);
        }
    }
    connect(path)
}

fn connect_by(path: &Path, vfs: Option<&CStr>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
        None => Connection::open_with_flags(path, flags)?,
    };
    connection.busy_timeout(if vfs.is_some() { ALONE_TIMEOUT } else { BUSY_TIMEOUT })?;
    // Whoever closes it in order allows it, where the store is proven: an unproven one keeps its log.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "secure_delete", false)?;
    Ok(connection)
}

/// Opens a connection that only reads; `is_alone`: of a store that this process has for itself.
pub(super) fn open_reader(path: &Path, is_alone: bool) -> Result<Connection, StoreError> {
    open_reader_by(path, is_alone.then_some(ALONE))
}

fn open_reader_by(path: &Path, vfs: Option<&CStr>) -> Result<Connection, StoreError> {
    let reader = connect_by(path, vfs).and_then(|connection| {
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    });
    reader.map_err(|error| Fault::from(error).at(path))
}

/// Looks whether the keys are those of the store, and where a store is made or taken into service, sees to it that new
/// things are kept under the key that is asked for.
fn open_seals(writer: &mut Connection, watch: &Watch, mode: OpenMode, keys: &Arc<KeyRing>) -> Result<Sealer, Fault> {
    if let (OpenMode::CreateIfMissing, Some(key)) = (mode, keys.current()) {
        seal::change_key(writer, watch, keys, Some(key))?;
    }
    let sealer = Sealer::new(keys, State::read(writer)?)?;
    if mode != OpenMode::WithoutKey {
        sealer.unlocked()?;
    }
    Ok(sealer)
}

/// Returns the pages in the log that make the committing connection write them back.
fn log_pages(size_max: u64) -> u64 {
    (size_max / LOG_SHARE / u64::from(schema::PAGE_BYTES)).clamp(LOG_PAGES_MIN, LOG_PAGES_MAX)
}

/// Returns the length to which a log is cut back that grew further (under a long reader, by a large commit).
pub(super) fn log_bytes_kept(size_max: u64) -> u64 {
    2 * log_pages(size_max) * u64::from(schema::PAGE_BYTES)
}

fn open_writer(
    path: &Path,
    mode: OpenMode,
    size_max: u64,
    keys: &KeyRing,
    vfs: Option<&CStr>,
) -> Result<Connection, Fault> {
    let mut connection = connect_by(path, vfs)?;
    let log_pages = log_pages(size_max);
    checkpoint::install(&mut connection, path, log_pages)?;
    connection.pragma_update(None, "journal_size_limit", log_bytes_kept(size_max) as i64)?;
    let application_id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application_id != schema::APPLICATION_ID && !tables(&connection)?.is_empty() {
        // The file was ours when it was examined without its log.
        return Err(Fault::Damaged("its write-ahead log is that of another database".into()));
    }
    let version = schema::version(&connection)?;
    refuse_newer(path, version)?;
    if mode != OpenMode::WithoutKey {
        seal::verify_before_writing(&connection, keys)?;
    }
    if version == 0 {
        connection.pragma_update(None, "page_size", schema::PAGE_BYTES)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        let reason = "this file system allows no write-ahead log; choose a local disk".into();
        return Err(StoreError::Unusable { path: path.to_owned(), reason }.into());
    }
    if schema::version(&connection)? != schema::known_version() {
        Watch::new(path).vet()?;
    }
    schema::migrate(&mut connection)?;
    refuse_newer(path, schema::version(&connection)?)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Keys;

    #[test]
    fn what_is_laid_beside_a_store_after_the_first_look_is_found_before_a_message_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.db");
        let keys = Arc::new(KeyRing::new(&Keys::default()));
        let look_and_open = || open_sound(&path, OpenMode::CreateIfMissing, 1 << 30, &keys).map(drop);
        look_and_open().expect("nothing is in the way");
        // As if it came between the first look, which is not part of this, and the opening. SQLite passes it over.
        std::os::unix::fs::symlink("elsewhere", folder.path().join("store.db-journal")).expect("a link");
        let error = look_and_open().expect_err("it is a trap").to_string();
        assert!(error.contains("store.db-journal is not trusted"), "{error}");
    }
}
