//! Salvage: the rows of an SDK's leftover file become messages of the store.
//!
//! # Invariants
//!
//! - **In the order of their ids**, registered and failed rows alike. The message that a killed process was sending may
//!   have arrived or not; sending it again is idempotent.
//! - **Each row once.** Rows are deduplicated by digest, and a transaction commits rows together with their digests. So
//!   a salvage that is killed at any point is simply retried, on the same file or on a copy of it.
//! - **No row is dropped.** A row that no request can be made of is kept as rejected, with its text as the body.
//! - **Bytes of attachments are copied at once**: they are in a temporary folder.
//! - **A row may name any file of this machine, and only files that the SDK put there for it are read**
//!   ([`super::trust`]). For any other, the text of the row is kept as rejected and the source stays.
//! - **The original is untouched** until every row is committed; then, and only on request, [`remove_source`] deletes
//!   it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::conversion::{self, DELIVERED, RowRequest};
use super::file::{SdkFile, SdkFileError, StoredRow};
use super::rows::{SdkAttachment, SdkRow, convert, sdk_type};
use super::trust::{AttachedFile, AttachmentFolders, AttachmentRefusal, TemporaryCopy};
use crate::message::{Lane, Message, MessageType, Server, Sha256};
use crate::shutdown::Shutdown;
use crate::store::attachment::AttachmentWriter;
use crate::store::{SalvagedRow, Store, StoreError};

/// Rows in one commit.
const COMMIT_ROWS_MAX: usize = 256;
/// Bytes of bodies in one commit, unless one row has more.
const COMMIT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many bytes of an attachment's file are copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// Why a file was not salvaged, or only in part. Rows of earlier commits stay stored, and the original is unchanged.
#[derive(Debug, Error)]
pub enum SalvageError {
    /// The file cannot be read.
    #[error(transparent)]
    File(SdkFileError),
    /// The store cannot take its rows.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user or the agent stopped it.
    #[error("the salvage of {path} was interrupted; nothing is lost, run it again to continue")]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// Its rows name another server than the lane's.
    #[error("{path} is for {named}, and the configured server is {configured}")]
    OtherServer {
        /// The file.
        path: PathBuf,
        /// The server that its attachments name.
        named: Server,
        /// The server that its messages would have been sent to.
        configured: Server,
    },
    /// Its rows are safe, but it cannot be removed.
    #[error("all of {path} is stored, but it cannot be removed: {reason}")]
    NotRemoved {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
}

impl From<SdkFileError> for SalvageError {
    fn from(error: SdkFileError) -> Self {
        match error {
            SdkFileError::Interrupted { path } => Self::Interrupted { path },
            error => Self::File(error),
        }
    }
}

/// The outcome of a salvage, by rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Salvaged {
    /// Rows that were queued for replay.
    pub taken: u64,
    /// Rows that no request can be made of, kept as rejected.
    pub rejected: u64,
    /// Duplicates: rows that an earlier salvage stored.
    pub known: u64,
    /// Rows that could not be read; an estimate.
    pub unread: u64,
    /// The file is damaged.
    pub is_damaged: bool,
    /// Why it is unknown whether a process still uses the file.
    pub unknown_holder: Option<String>,
    /// Attachments whose rows name files that they may not name. The rows are kept as rejected.
    pub untrusted: u64,
    /// Temporary copies that the SDK made for attachments whose rows are safe.
    pub temporary_files: Vec<TemporaryCopy>,
}

impl Salvaged {
    /// Returns why the original has to stay although its rows are stored; `None` if nothing is lost with it.
    pub(crate) fn keeps_source(&self) -> Option<String> {
        match &self.unknown_holder {
            Some(why) => Some(format!("it may be in use: {why}")),
            None if self.is_damaged => Some("it is damaged, and may hold more than could be read".to_owned()),
            None if self.untrusted > 0 => {
                Some(format!("attachments in it name files that are not sent ({})", self.untrusted))
            }
            None => None,
        }
    }
}

/// Where rows are stored.
#[derive(Clone, Copy)]
pub(crate) enum SalvageTarget<'s> {
    /// In this store.
    Store(&'s dyn Store),
    /// Nowhere: rows are only counted, as far as they are new to this store.
    DryRun(Option<&'s dyn Store>),
}

impl SalvageTarget<'_> {
    /// Returns whether the row with this digest was salvaged earlier.
    pub(crate) fn knows(&self, row: &Sha256) -> Result<bool, StoreError> {
        match self {
            Self::Store(store) | Self::DryRun(Some(store)) => store.is_salvaged(row),
            Self::DryRun(None) => Ok(false),
        }
    }
}

/// How a file is salvaged.
#[derive(Clone, Copy)]
pub(crate) struct Salvage<'a> {
    /// Where its rows are stored.
    pub target: SalvageTarget<'a>,
    /// Where the files of its attachments may be.
    pub folders: &'a AttachmentFolders,
    /// The lane of its messages: the SDK's file names neither workspace nor key.
    pub lane: &'a Lane,
    /// Returns whether a server that the file names is the lane's under another address (an agent in front of it, an
    /// earlier address).
    pub is_same_server: &'a dyn Fn(&Server) -> bool,
    /// Stops it.
    pub shutdown: &'a Shutdown,
}

impl Salvage<'_> {
    /// Stores every row of a file, or counts them in a dry run.
    ///
    /// A file names its server only where it has an attachment. If it names another server than the lane's, all of it
    /// is refused.
    ///
    /// # Errors
    ///
    /// [`SalvageError`]; rows of earlier commits are stored, and recognised next time.
    pub(crate) fn run(&self, file: &mut SdkFile) -> Result<Salvaged, SalvageError> {
        let path = &file.path().to_owned();
        self.check_server(path, file)?;
        let salvaged = Salvaged { unknown_holder: file.unknown_holder().map(str::to_owned), ..Salvaged::default() };
        let mut pending = PendingRows { salvage: self, path, rows: Vec::new(), bytes: 0, salvaged };
        while let Some(stored) = file.next_row()? {
            if self.shutdown.is_requested() {
                return Err(SalvageError::Interrupted { path: path.to_owned() });
            }
            if stored.status == DELIVERED {
                continue;
            }
            pending.take(&stored)?;
        }
        pending.commit()?;
        let unread = file.unread();
        Ok(Salvaged { unread, is_damaged: file.is_damaged(), ..pending.salvaged })
    }

    /// Refuses a file that names another server than the lane's, before any of it is stored.
    fn check_server(&self, path: &Path, file: &mut SdkFile) -> Result<(), SalvageError> {
        let Some(configured) = &self.lane.server else { return Ok(()) };
        for named in named_servers(file)? {
            if named != *configured && !(self.is_same_server)(&named) {
                return Err(SalvageError::OtherServer { path: path.to_owned(), named, configured: configured.clone() });
            }
        }
        file.rewind();
        Ok(())
    }
}

/// Returns the servers that a file's attachments name: usually one, the server of the SDK's client.
fn named_servers(file: &mut SdkFile) -> Result<BTreeSet<Server>, SdkFileError> {
    let mut named = BTreeSet::new();
    while let Some(stored) = file.next_row()? {
        let is_attachment = sdk_type(&stored.message_type) == Some(MessageType::CreateAttachment);
        let json = stored.json.as_deref().filter(|_| is_attachment).unwrap_or_default();
        if let Ok(SdkRow::Attachment(SdkAttachment { server: Some(url), .. })) = convert(&stored.message_type, json) {
            named.insert(Server::new(&url));
        }
    }
    Ok(named)
}

/// Returns whether a server's URL leads to an agent that listens at this address, under any base path.
pub(crate) fn is_agent_at(server: &Server, listen: SocketAddr) -> bool {
    let Ok(url) = server.base_url().parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let is_listening = host.parse::<IpAddr>().is_ok_and(|ip| ip == listen.ip());
    let reaches_loopback = listen.ip().is_loopback() || listen.ip().is_unspecified();
    url.scheme_str() == Some("http")
        && url.port_u16() == Some(listen.port())
        && (is_listening || is_loopback && reaches_loopback)
}

/// The batch of rows for the next commit.
struct PendingRows<'a> {
    salvage: &'a Salvage<'a>,
    path: &'a Path,
    rows: Vec<SalvagedRow>,
    bytes: usize,
    /// The outcome so far.
    salvaged: Salvaged,
}

impl PendingRows<'_> {
    fn take(&mut self, stored: &StoredRow) -> Result<(), SalvageError> {
        let row = conversion::digest(stored);
        let is_known = self.salvage.target.knows(&row)?;
        match conversion::request_of(stored) {
            RowRequest::Attachment(attachment) => return self.take_attachment(row, is_known, stored, &attachment),
            _ if is_known => self.salvaged.known += 1,
            RowRequest::Write(write) => self.add(conversion::write(row, write, self.salvage.lane))?,
            RowRequest::Invalid(reason) => self.reject(row, stored, &reason)?,
        }
        Ok(())
    }

    fn add(&mut self, row: SalvagedRow) -> Result<(), StoreError> {
        self.bytes += row.message.request.body.bytes.len();
        self.rows.push(row);
        if self.rows.len() >= COMMIT_ROWS_MAX || self.bytes >= COMMIT_BYTES_MAX {
            self.commit()?;
        }
        Ok(())
    }

    fn reject(&mut self, row: Sha256, stored: &StoredRow, reason: &str) -> Result<(), StoreError> {
        self.add(conversion::rejected(row, stored, reason, self.path, self.salvage.lane))
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let ids = match self.salvage.target {
            SalvageTarget::Store(store) => store.salvage(&rows)?.into_iter().map(|id| id.is_some()).collect(),
            SalvageTarget::DryRun(_) => vec![true; rows.len()],
        };
        for (row, is_new) in rows.iter().zip(ids) {
            match (is_new, &row.rejected) {
                (true, None) => self.salvaged.taken += 1,
                (true, Some(_)) => self.salvaged.rejected += 1,
                // The same row twice in one file, or another process that salvages the same file.
                (false, _) => self.salvaged.known += 1,
            }
        }
        Ok(())
    }

    /// Stores an attachment if its file is one that a row may name.
    fn take_attachment(
        &mut self,
        row: Sha256,
        is_known: bool,
        stored: &StoredRow,
        attachment: &SdkAttachment,
    ) -> Result<(), SalvageError> {
        let name = &attachment.file_path;
        let opened = self.salvage.folders.open(Path::new(name));
        if let Ok(AttachedFile { copy: Some(copy), .. }) = &opened
            && attachment.delete_after_upload
        {
            self.salvaged.temporary_files.push(copy.clone());
        }
        if is_known {
            self.salvaged.known += 1;
            return Ok(());
        }
        let file = match opened {
            Ok(AttachedFile { file, .. }) => file,
            Err(AttachmentRefusal::Unreadable(error)) => {
                return Ok(self.reject(row, stored, &format!("its file {name} cannot be read: {error}"))?);
            }
            Err(AttachmentRefusal::Untrusted(reason)) => {
                self.salvaged.untrusted += 1;
                // Under a digest of its own: the row itself can still be salvaged once its file may be sent.
                let row = conversion::digest_of_refusal(&row);
                if self.salvage.target.knows(&row)? {
                    self.salvaged.known += 1;
                    return Ok(());
                }
                let reason = format!(
                    "its file {name} is not sent: {reason}; name its folder with `replay --from FILE --attachments-from FOLDER` if it should be"
                );
                return Ok(self.reject(row, stored, &reason)?);
            }
        };
        match conversion::attachment(attachment, self.salvage.lane) {
            Ok(message) => {
                // Its bytes have a commit of their own, which must not overtake earlier rows.
                self.commit()?;
                self.attach(row, message, file, name)
            }
            Err(reason) => Ok(self.reject(row, stored, &reason)?),
        }
    }

    /// Stores an attachment with its bytes, in a commit of its own.
    fn attach(&mut self, row: Sha256, message: Message, mut bytes: File, name: &str) -> Result<(), SalvageError> {
        let SalvageTarget::Store(store) = self.salvage.target else {
            self.salvaged.taken += 1;
            return Ok(());
        };
        let expected = bytes.metadata().ok().map(|metadata| metadata.len());
        let mut writer = AttachmentWriter::begin(store, expected)?;
        let mut piece = vec![0; COPY_BYTES];
        loop {
            if self.salvage.shutdown.is_requested() {
                return Err(SalvageError::Interrupted { path: self.path.to_owned() });
            }
            match bytes.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => writer.write(&piece[..read])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Unlike a missing file, this is not the row's fault: a retry may succeed.
                Err(error) => {
                    return Err(SdkFileError::Unreadable { path: name.into(), reason: error.to_string() }.into());
                }
            }
        }
        let ids = writer.register_by(|store, id, file| {
            store.salvage(&[SalvagedRow { file: Some((id, *file)), ..SalvagedRow::new(row, message, None) }])
        })?;
        match ids.first() {
            Some(Some(_)) => self.salvaged.taken += 1,
            _ => self.salvaged.known += 1,
        }
        Ok(())
    }
}

/// Deletes a file whose rows are all stored, what SQLite keeps beside it, temporary copies of its attachments, and its
/// folder if that is the SDK's and empty. Each of them only if it is the file that was read.
///
/// # Errors
///
/// [`SalvageError::NotRemoved`], for the first of them that cannot be deleted.
pub(crate) fn remove_source(file: &SdkFile, salvaged: &Salvaged) -> Result<(), SalvageError> {
    let not_removed = |reason: String| SalvageError::NotRemoved { path: file.path().to_owned(), reason };
    if let Some(why) = salvaged.keeps_source() {
        return Err(not_removed(why));
    }
    // The database is deleted last: as long as it is there, the next run knows the others.
    let copies = salvaged.temporary_files.iter().try_for_each(TemporaryCopy::remove);
    copies.and_then(|()| file.remove()).map_err(|error| not_removed(error.to_string()))
}
