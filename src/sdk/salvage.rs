//! Messages of an SDK's leftover file into the normal replay.
//!
//! Rows are stored in the order of their ids, registered and failed ones alike: what a killed process was sending may or may
//! not have arrived, and sending it again does no harm. Each commit holds rows together with the digests by which they are
//! recognised later, so a salvage that is killed anywhere is simply run again. What no request can be made of is kept as
//! rejected, with the row's text as its body. Bytes of attachments are copied at once: they lie in a temporary folder.
//!
//! A row may name any file of this machine. Only those are read that the SDK itself may have put there for it
//! ([`crate::sdk::trust`]); the text of the row is kept as rejected, and its source stays.
//!
//! Nothing of the original is touched before every row is safe; then, and only when asked to, [`remove_source`] deletes it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use thiserror::Error;
use uuid::Uuid;

use super::file::{SdkFile, SdkFileError, StoredRow};
use super::rows::{CONTENT_TYPE, SdkAttachment, SdkRow, SdkWrite, convert, sdk_type};
use super::trust::{AttachedFile, AttachmentFolders, AttachmentRefusal, TemporaryCopy};
use crate::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request, Server, Sha256};
use crate::protocol::attachment::{START_PATH, Subject};
use crate::protocol::inspection::{inspect, with_ids};
use crate::protocol::routes::Protected;
use crate::shutdown::Shutdown;
use crate::store::attachment::AttachmentWriter;
use crate::store::{LastAnswer, SalvagedRow, Store, StoreError, now_ms};

/// Rows in one commit.
const COMMIT_ROWS_MAX: usize = 256;
/// Bytes of bodies in one commit, unless one row has more.
const COMMIT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a file that are copied at a time.
const COPY_BYTES: usize = 256 * 1024;
/// The header under which a row of an unknown type keeps the name of its type.
pub const TYPE_HEADER: &str = "x-sdk-message-type";

/// The SDK's statuses.
const REGISTERED: i64 = 1;
const DELIVERED: i64 = 2;
const FAILED: i64 = 3;

/// Why a file was not salvaged, or not to its end. What was stored so far is stored, and the original is as it was.
#[derive(Debug, Error)]
pub enum SalvageError {
    /// The file can't be read.
    #[error(transparent)]
    File(SdkFileError),
    /// The store can't take its rows.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user or the agent ended it.
    #[error("the salvage of {path} was interrupted; nothing is lost, run it again to go on")]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// Its rows name another server than the one that they would be stored for.
    #[error("{path} is for {named}, and the configured server is {configured}")]
    OtherServer {
        /// The file.
        path: PathBuf,
        /// The server that its attachments name.
        named: Server,
        /// The server that its messages would have gone to.
        configured: Server,
    },
    /// Its rows are safe, but it can't be removed.
    #[error("all of {path} is stored, but it cannot be removed: {reason}")]
    NotRemoved {
        /// The file.
        path: PathBuf,
        /// What the system says.
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

/// What became of a file's rows.
#[derive(Clone, Debug, Default)]
pub struct Salvaged {
    /// Rows that wait for replay now.
    pub taken: u64,
    /// Rows that no request can be made of, kept as rejected now.
    pub rejected: u64,
    /// Rows that an earlier salvage stored.
    pub known: u64,
    /// Rows that could not be read; an estimate.
    pub unread: u64,
    /// The file is damaged.
    pub is_damaged: bool,
    /// Why nobody can tell whether a process still works with the file.
    pub unseen: Option<String>,
    /// Attachments whose files are not ones that a row may name. Their rows are kept as rejected.
    pub mistrusted: u64,
    /// Temporary copies that the SDK made for attachments, with rows that are safe.
    pub temporary_files: Vec<TemporaryCopy>,
}

impl Salvaged {
    /// Says why the original has to stay although its rows are stored; `None` when nothing is lost with it.
    pub fn keeps_source(&self) -> Option<String> {
        match &self.unseen {
            Some(why) => Some(format!("it may be in use: {why}")),
            None if self.is_damaged => Some("it is damaged, and may hold more than could be read".to_owned()),
            None if self.mistrusted > 0 => {
                Some(format!("attachments in it name files that are not sent ({})", self.mistrusted))
            }
            None => None,
        }
    }
}

/// Takes every row of a file into the store, or says without one what that would do.
///
/// `folders` has the files of attachments. `lane` is where the messages belong: the SDK's file names neither
/// workspace nor key. It names its server only where it has an attachment; a file that names another one than the lane's
/// is refused whole, unless `is_same` takes it for the lane's (an agent in front of it, an earlier address).
///
/// # Errors
///
/// [`SalvageError`]; rows of earlier commits are stored and recognised next time.
pub fn salvage(
    target: Target<'_>,
    file: &mut SdkFile,
    folders: &AttachmentFolders,
    lane: &Lane,
    is_same: &dyn Fn(&Server) -> bool,
    shutdown: &Shutdown,
) -> Result<Salvaged, SalvageError> {
    let path = &file.path().to_owned();
    if let Some(configured) = &lane.server {
        for named in named_servers(file)? {
            if named != *configured && !is_same(&named) {
                return Err(SalvageError::OtherServer { path: path.to_owned(), named, configured: configured.clone() });
            }
        }
        file.rewind();
    }
    let mut salvaged = Salvaged { unseen: file.unseen().map(str::to_owned), ..Salvaged::default() };
    let mut batch = Batch { target, rows: Vec::new(), bytes: 0 };
    let source = Source { path, folders, lane, shutdown };
    while let Some(stored) = file.next_row()? {
        if shutdown.is_requested() {
            return Err(SalvageError::Interrupted { path: path.to_owned() });
        }
        if stored.status == DELIVERED {
            continue;
        }
        let row = digest(&stored);
        let is_known = batch.target.knows(&row)?;
        match read_row(&stored) {
            RowRead::Attachment(attachment) => {
                batch.take_attachment(row, is_known, &stored, &attachment, &source, &mut salvaged)?;
            }
            _ if is_known => salvaged.known += 1,
            RowRead::Write(write) => batch.add(written(row, write, lane), &mut salvaged)?,
            RowRead::Refused(reason) => batch.add(refused(row, &stored, reason, path, lane), &mut salvaged)?,
        }
    }
    batch.commit(&mut salvaged)?;
    salvaged.unread = file.unread();
    salvaged.is_damaged = file.is_damaged();
    Ok(salvaged)
}

/// Returns the servers that a file's attachments name: those of the SDK's client, which has one file and one server.
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

/// Returns whether a server's URL leads to an agent that listens there, whatever base path its client used.
pub fn is_agent_at(server: &Server, listen: SocketAddr) -> bool {
    let Ok(url) = server.base_url().parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let is_listening = host.parse::<IpAddr>().is_ok_and(|ip| ip == listen.ip());
    let reaches_loopback = listen.ip().is_loopback() || listen.ip().is_unspecified();
    url.scheme_str() == Some("http")
        && url.port_u16() == Some(listen.port())
        && (is_listening || is_loopback && reaches_loopback)
}

/// Where rows go.
#[derive(Clone, Copy)]
pub enum Target<'s> {
    /// Into this store.
    Store(&'s dyn Store),
    /// Nowhere: what is new to this store, or to none, is only counted.
    Nowhere(Option<&'s dyn Store>),
}

impl Target<'_> {
    fn knows(&self, row: &Sha256) -> Result<bool, StoreError> {
        match self {
            Self::Store(store) | Self::Nowhere(Some(store)) => store.is_salvaged(row),
            Self::Nowhere(None) => Ok(false),
        }
    }
}

/// What is the same for all rows of a file.
struct Source<'a> {
    path: &'a Path,
    folders: &'a AttachmentFolders,
    lane: &'a Lane,
    shutdown: &'a Shutdown,
}

/// Rows that go into one commit.
struct Batch<'s> {
    target: Target<'s>,
    rows: Vec<SalvagedRow>,
    bytes: usize,
}

impl Batch<'_> {
    fn add(&mut self, row: SalvagedRow, salvaged: &mut Salvaged) -> Result<(), StoreError> {
        self.bytes += row.message.request.body.bytes.len();
        self.rows.push(row);
        if self.rows.len() >= COMMIT_ROWS_MAX || self.bytes >= COMMIT_BYTES_MAX {
            self.commit(salvaged)?;
        }
        Ok(())
    }

    fn commit(&mut self, salvaged: &mut Salvaged) -> Result<(), StoreError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let ids = match self.target {
            Target::Store(store) => store.salvage(&rows)?.into_iter().map(|id| id.is_some()).collect(),
            Target::Nowhere(_) => vec![true; rows.len()],
        };
        for (row, is_new) in rows.iter().zip(ids) {
            match (is_new, &row.rejected) {
                (true, None) => salvaged.taken += 1,
                (true, Some(_)) => salvaged.rejected += 1,
                // A row twice in one file, or another process that salvages the same.
                (false, _) => salvaged.known += 1,
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
        source: &Source<'_>,
        salvaged: &mut Salvaged,
    ) -> Result<(), SalvageError> {
        let refused = |row, reason| refused(row, stored, reason, source.path, source.lane);
        let name = &attachment.file_path;
        let opened = source.folders.open(Path::new(name));
        if let Ok(AttachedFile { copy: Some(copy), .. }) = &opened
            && attachment.delete_after_upload
        {
            salvaged.temporary_files.push(copy.clone());
        }
        if is_known {
            salvaged.known += 1;
            return Ok(());
        }
        let file = match opened {
            Ok(AttachedFile { file, .. }) => file,
            Err(AttachmentRefusal::Unreadable(error)) => {
                return Ok(self.add(refused(row, format!("its file {name} cannot be read: {error}")), salvaged)?);
            }
            Err(AttachmentRefusal::Untrusted(reason)) => {
                salvaged.mistrusted += 1;
                // By a digest of its own: the row itself is still to be taken once its file may be sent.
                let row = digest_of_refusal(&row);
                if self.target.knows(&row)? {
                    salvaged.known += 1;
                    return Ok(());
                }
                let reason = format!(
                    "its file {name} is not sent: {reason}; name its folder with `replay --from FILE --attachments-from FOLDER` if it should be"
                );
                return Ok(self.add(refused(row, reason), salvaged)?);
            }
        };
        match attached(attachment, source.lane) {
            Ok(message) => {
                // Its bytes have a commit of their own, and it keeps its place.
                self.commit(salvaged)?;
                self.attach(row, message, file, name, source, salvaged)
            }
            Err(reason) => Ok(self.add(refused(row, reason), salvaged)?),
        }
    }

    /// Stores an attachment with its bytes, in a commit of its own.
    fn attach(
        &mut self,
        row: Sha256,
        message: Message,
        mut bytes: File,
        name: &str,
        source: &Source<'_>,
        salvaged: &mut Salvaged,
    ) -> Result<(), SalvageError> {
        let Target::Store(store) = self.target else {
            salvaged.taken += 1;
            return Ok(());
        };
        let expected = bytes.metadata().ok().map(|metadata| metadata.len());
        let mut writer = AttachmentWriter::begin(store, expected)?;
        let mut piece = vec![0; COPY_BYTES];
        loop {
            if source.shutdown.is_requested() {
                return Err(SalvageError::Interrupted { path: source.path.to_owned() });
            }
            match bytes.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => writer.write(&piece[..read])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not the row's fault, as a missing file is: a disk that fails now may not the next time.
                Err(error) => {
                    return Err(SdkFileError::Unreadable { path: name.into(), reason: error.to_string() }.into());
                }
            }
        }
        let ids = writer.register_by(|store, id, file| {
            store.salvage(&[SalvagedRow { row, message, rejected: None, file: Some((id, *file)) }])
        })?;
        match ids.first() {
            Some(Some(_)) => salvaged.taken += 1,
            _ => salvaged.known += 1,
        }
        Ok(())
    }
}

/// What a row is.
enum RowRead {
    Write(SdkWrite),
    Attachment(SdkAttachment),
    Refused(String),
}

fn read_row(stored: &StoredRow) -> RowRead {
    if !matches!(stored.status, REGISTERED | FAILED) {
        return RowRead::Refused(format!("its status {} is unknown", stored.status));
    }
    let Some(json) = &stored.json else { return RowRead::Refused("its message_json is no text".into()) };
    match convert(&stored.message_type, json) {
        Ok(SdkRow::Write(write)) => RowRead::Write(write),
        Ok(SdkRow::Attachment(attachment)) => RowRead::Attachment(attachment),
        Err(fault) => RowRead::Refused(fault.to_string()),
    }
}

/// Returns the digest by which a row is recognised in whatever file: all that it is, but not its status, which changes.
fn digest(row: &StoredRow) -> Sha256 {
    let mut digest = Context::new(&SHA256);
    digest.update(&row.message_id.to_be_bytes());
    digest.update(&(row.message_type.len() as u64).to_be_bytes());
    digest.update(row.message_type.as_bytes());
    digest.update(row.json.as_deref().unwrap_or_default());
    let mut bytes = [0; Sha256::LEN];
    bytes.copy_from_slice(digest.finish().as_ref());
    Sha256::new(bytes)
}

/// Returns the digest by which it is remembered that the file of a row's attachment was not sent.
fn digest_of_refusal(row: &Sha256) -> Sha256 {
    let mut digest = Context::new(&SHA256);
    digest.update(b"its file was not sent");
    digest.update(row.as_bytes());
    let mut bytes = [0; Sha256::LEN];
    bytes.copy_from_slice(digest.finish().as_ref());
    Sha256::new(bytes)
}

fn json_headers() -> HeaderSet {
    HeaderSet::new(vec![("content-type".into(), CONTENT_TYPE.into())])
}

fn written(row: Sha256, write: SdkWrite, lane: &Lane) -> SalvagedRow {
    let route = Protected { message_type: write.message_type, path_id: write.path_id };
    let mut body = write.body;
    // The scanner has read all of it before.
    let mut inspection = inspect(&route, &body).unwrap_or_default();
    if !inspection.missing_ids.is_empty() {
        body = with_ids(&body, &inspection.missing_ids, || Uuid::now_v7().to_string());
        inspection = inspect(&route, &body).unwrap_or_default();
    }
    let request = Request {
        method: write.method.to_owned(),
        path: write.path,
        headers: json_headers(),
        body: Body::new(body, Encoding::Identity),
    };
    let message = Message {
        lane: lane.clone(),
        message_type: write.message_type,
        request,
        touches: inspection.touches,
        items: inspection.items,
        project: inspection.project,
        accepted_at_ms: now_ms(),
    };
    SalvagedRow { row, message, rejected: None, file: None }
}

/// Returns the message of an attachment, or what the server would have against it.
fn attached(attachment: &SdkAttachment, lane: &Lane) -> Result<Message, String> {
    let members = [
        ("file_name", Some(&attachment.file_name)),
        ("mime_type", attachment.mime_type.as_ref()),
        ("project_name", attachment.project_name.as_ref()),
        ("entity_type", Some(&attachment.entity_type)),
        ("entity_id", Some(&attachment.entity_id)),
    ];
    let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.as_str().into())));
    let body = serde_json::Value::Object(given.collect()).to_string().into_bytes();
    let subject = Subject::from_body(&body)?;
    Ok(Message {
        lane: lane.clone(),
        message_type: MessageType::CreateAttachment,
        request: Request {
            method: "POST".into(),
            path: START_PATH.into(),
            headers: HeaderSet::default(),
            body: Body::new(subject.to_body(), Encoding::Identity),
        },
        touches: subject.touches(),
        items: 1,
        project: subject.project().map(str::to_owned),
        accepted_at_ms: now_ms(),
    })
}

/// Keeps a row that can't be sent: its text as the body, and the reason where others have the server's answer.
fn refused(row: Sha256, stored: &StoredRow, reason: String, path: &Path, lane: &Lane) -> SalvagedRow {
    let name: String = stored.message_type.chars().filter(|c| !c.is_control()).take(200).collect();
    let message = Message {
        lane: lane.clone(),
        message_type: sdk_type(&stored.message_type).unwrap_or(MessageType::UnknownSdkRow),
        request: Request {
            // Without a method it can't be sent, whoever asks for it.
            method: String::new(),
            path: String::new(),
            headers: HeaderSet::new(vec![(TYPE_HEADER.into(), name.into())]),
            body: Body::new(stored.json.clone().unwrap_or_default(), Encoding::Identity),
        },
        touches: Vec::new(),
        items: 1,
        project: None,
        accepted_at_ms: now_ms(),
    };
    let text = format!("row {} of {}: {reason}", stored.message_id, path.display());
    let answer = LastAnswer { status: None, text, at_ms: now_ms() };
    SalvagedRow { row, message, rejected: Some(answer), file: None }
}

/// Deletes a file whose rows are all stored, what SQLite keeps beside it, temporary copies of its attachments, and its
/// folder when that is the SDK's and empty. Each of them only if it is the file that was read.
///
/// # Errors
///
/// [`SalvageError::NotRemoved`], for the first of them that stays.
pub fn remove_source(file: &SdkFile, salvaged: &Salvaged) -> Result<(), SalvageError> {
    let not_removed = |reason: String| SalvageError::NotRemoved { path: file.path().to_owned(), reason };
    if let Some(why) = salvaged.keeps_source() {
        return Err(not_removed(why));
    }
    // The database goes last: as long as it is there, the next run knows of the others.
    let copies = salvaged.temporary_files.iter().try_for_each(TemporaryCopy::remove);
    copies.and_then(|()| file.remove()).map_err(|error| not_removed(error.to_string()))
}
