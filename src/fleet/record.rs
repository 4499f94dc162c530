//! One message as it is shipped: all that a successor needs to deliver it, and nothing that only one machine knows.
//!
//! ```text
//! u32 length of the header | header (JSON) | body, as the client sent it
//! ```
//!
//! The body keeps the content encoding that the client chose. It is not part of the JSON, so that it needs no escaping.

use ring::digest::{Context, SHA256};
use ring::hmac;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::json::{AnswerFields, RequestFields, digest_from_hex, from_base64, to_base64};
use super::secret_header::is_secret_header;
use crate::message::{
    Attachment, Credential, HeaderSet, Lane, Message, MessageId, MessageStatus, MessageType, Request, Server, Sha256,
};
use crate::store::LastAnswer;

/// The largest record, in bytes. A message with a larger body is shipped with its body as a file
/// ([`FileContent::Body`]).
pub const RECORD_BYTES_MAX: usize = 7 * 1024 * 1024;
/// Bodies larger than this have to be shipped as files, in bytes: the rest of the record needs room as well.
pub const INLINE_BODY_BYTES_MAX: usize = 6 * 1024 * 1024;
/// The largest part of a file, in bytes, before sealing.
pub const FILE_PART_BYTES: usize = 4 * 1024 * 1024;

/// Names a message of a stream, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageRef {
    /// The message's id in the store that accepted it; of a part, the id of the whole that was shipped.
    pub message: u64,
    /// The digest of a part's request ([`part_digest`]); `None` for a message that was not divided.
    pub part: Option<Sha256>,
}

impl MessageRef {
    /// Returns the reference of an undivided message.
    pub fn whole(message: u64) -> Self {
        Self { message, part: None }
    }

    /// Returns the reference of an undivided message by its id in the store that accepted it.
    pub fn of(id: MessageId) -> Self {
        Self::whole(u64::try_from(id.0).unwrap_or(0))
    }

    /// Returns the reference of a part of this message, whose request this is. A part of a part is a part of the whole.
    pub fn part(self, request: &Request) -> Self {
        Self { message: self.message, part: Some(part_digest(request)) }
    }

    /// Returns the name by which [`crate::store::Intake::salvage`] deduplicates what is imported of a stream that is owned in
    /// this epoch. A stream that was lost, and taken over again, is imported again. The name of a message that was not
    /// divided is no hash, so that those of a bundle are neighbours in the index.
    pub fn import_digest(&self, stream: Uuid, epoch: u32) -> Sha256 {
        if self.part.is_none() {
            let mut name = [0; Sha256::LEN];
            name[..16].copy_from_slice(stream.as_bytes());
            name[16..24].copy_from_slice(&self.message.to_be_bytes());
            name[24..28].copy_from_slice(&epoch.to_be_bytes());
            return Sha256::new(name);
        }
        let mut context = Context::new(&SHA256);
        context.update(b"opik-offline fleet import\0");
        context.update(stream.as_bytes());
        context.update(&self.message.to_be_bytes());
        context.update(&epoch.to_be_bytes());
        if let Some(part) = &self.part {
            context.update(part.as_bytes());
        }
        finished(context)
    }
}

/// Returns the digest that names a part of a divided message.
///
/// Two parts of one message with the same request have the same digest; marks of it count, see
/// [`super::import::SettledMessages`]. The values of secret headers are left out: a mark may hold them by reference, and
/// they may be replaced by others.
pub fn part_digest(request: &Request) -> Sha256 {
    let mut context = Context::new(&SHA256);
    let named = request.headers.iter().map(|(name, value)| {
        let value = if is_secret_header(name) { Vec::new() } else { value.to_vec() };
        (name.to_owned(), value)
    });
    let headers = HeaderSet::new(named.collect()).to_wire();
    let encoding = request.body.encoding.name();
    for field in [request.method.as_bytes(), request.path.as_bytes(), &headers, encoding.as_bytes()] {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field);
    }
    context.update(&request.body.bytes);
    finished(context)
}

/// Returns the fingerprint by which a record names a credential that is not inside it: its HMAC-SHA-256 under the
/// fleet's id, so that fingerprints of two fleets can't be matched.
pub fn fingerprint(fleet: Uuid, credential: &Credential) -> Sha256 {
    let key = hmac::Key::new(hmac::HMAC_SHA256, fleet.as_bytes());
    digest_of(hmac::sign(&key, credential.reveal()).as_ref())
}

fn finished(context: Context) -> Sha256 {
    digest_of(context.finish().as_ref())
}

fn digest_of(bytes: &[u8]) -> Sha256 {
    let mut digest = [0; Sha256::LEN];
    digest.copy_from_slice(bytes);
    Sha256::new(digest)
}

/// The state in which a message was shipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// It waits for its delivery. Messages in flight wait as well: nobody knows whether they arrived.
    Waiting,
    /// The server refused it for the timestamps in its ids.
    Held(LastAnswer),
    /// The server refused it permanently.
    Rejected(LastAnswer),
}

impl RecordState {
    /// Returns the status that it is stored with.
    pub fn status(&self) -> MessageStatus {
        match self {
            Self::Waiting => MessageStatus::Failed,
            Self::Held(_) => MessageStatus::Held,
            Self::Rejected(_) => MessageStatus::Rejected,
        }
    }

    /// Returns the answer that refused it.
    pub fn answer(&self) -> Option<&LastAnswer> {
        match self {
            Self::Waiting => None,
            Self::Held(answer) | Self::Rejected(answer) => Some(answer),
        }
    }
}

/// The kind of a message's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileContent {
    /// The attachment that the message uploads.
    Attachment,
    /// The message's body, which is too large for a record: the record's own body is empty.
    Body,
}

/// A file of a message, shipped as numbered parts before the bundle that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippedFile {
    /// Its kind.
    pub content: FileContent,
    /// Its size and digest.
    pub attachment: Attachment,
    /// The number of its parts, each of [`FILE_PART_BYTES`] but the last.
    pub parts: u32,
}

impl ShippedFile {
    /// Returns the description of a file of this size and digest.
    pub fn new(content: FileContent, attachment: Attachment) -> Self {
        let parts = attachment.bytes.div_ceil(FILE_PART_BYTES as u64).max(1);
        Self { content, attachment, parts: u32::try_from(parts).unwrap_or(u32::MAX) }
    }
}

/// A message as it is shipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetRecord {
    /// Its name in the stream.
    pub reference: MessageRef,
    /// Its position in the delivery order of the store that shipped it ([`position_of_id`] where nothing moved it): a
    /// part keeps that of its whole, and an early update is behind its create.
    pub position: i64,
    /// The message. Without its credential where `fingerprint` names it, and with an empty body where `file` holds it.
    pub message: Message,
    /// Names the credential of its lane, which is not in the record ([`fingerprint`]).
    pub fingerprint: Option<Sha256>,
    /// Attempts that counted against it.
    pub attempts: u32,
    /// Its state when it was shipped.
    pub state: RecordState,
    /// Its file.
    pub file: Option<ShippedFile>,
}

impl FleetRecord {
    /// Returns the record of a waiting message with no attempts and no file.
    pub fn waiting(message_id: u64, message: Message) -> Self {
        Self {
            reference: MessageRef::whole(message_id),
            position: position_of_id(message_id),
            message,
            fingerprint: None,
            attempts: 0,
            state: RecordState::Waiting,
            file: None,
        }
    }

    /// Returns the key by which records are delivered in order: the position, then the id.
    pub fn order(&self) -> (i64, u64) {
        (self.position, self.reference.message)
    }
}

/// Returns the position of a message that nothing moved, as stores assign it.
pub fn position_of_id(message: u64) -> i64 {
    i64::try_from(message).unwrap_or(i64::MAX).saturating_mul(2)
}

/// The header of a record. No `Debug`: it may hold a credential.
#[derive(Serialize, Deserialize)]
struct RecordFields {
    message: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    position: Option<i64>,
    #[serde(rename = "type")]
    message_type: String,
    #[serde(flatten)]
    request: RequestFields,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    accepted_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workspace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(default)]
    attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<AnswerFields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<AnswerFields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<FileFields>,
}

#[derive(Serialize, Deserialize)]
struct FileFields {
    content: String,
    bytes: u64,
    sha256: String,
}

impl FileFields {
    fn of(file: &ShippedFile) -> Self {
        let content = match file.content {
            FileContent::Attachment => "attachment",
            FileContent::Body => "body",
        };
        Self { content: content.to_owned(), bytes: file.attachment.bytes, sha256: file.attachment.sha256.to_string() }
    }

    fn into_file(self) -> Result<ShippedFile, &'static str> {
        let content = match self.content.as_str() {
            "attachment" => FileContent::Attachment,
            "body" => FileContent::Body,
            _ => return Err("unknown kind of file"),
        };
        let sha256 = digest_from_hex(&self.sha256).ok_or("unreadable digest")?;
        Ok(ShippedFile::new(content, Attachment { bytes: self.bytes, sha256 }))
    }
}

impl RecordFields {
    fn of(record: &FleetRecord) -> Self {
        let FleetRecord { reference, message, state, .. } = record;
        let answer = |wanted| state.answer().filter(|_| state.status() == wanted).map(AnswerFields::of);
        Self {
            message: reference.message,
            part: reference.part.map(|part| part.to_string()),
            position: (record.position != position_of_id(reference.message)).then_some(record.position),
            message_type: message.message_type.name().to_owned(),
            request: RequestFields::of(&message.request, &message.touches, message.items),
            project: message.project.clone(),
            accepted_at_ms: message.accepted_at_ms,
            server: message.lane.server.as_ref().map(|server| server.base_url().to_owned()),
            workspace: message.lane.workspace.clone(),
            credential: message.lane.credential.as_ref().map(|credential| to_base64(credential.reveal())),
            fingerprint: record.fingerprint.map(|fingerprint| fingerprint.to_string()),
            attempts: record.attempts,
            held: answer(MessageStatus::Held),
            rejected: answer(MessageStatus::Rejected),
            file: record.file.as_ref().map(FileFields::of),
        }
    }

    fn into_record(self, body: Vec<u8>) -> Result<FleetRecord, &'static str> {
        let digest = |text: Option<String>| match text {
            Some(text) => digest_from_hex(&text).map(Some).ok_or("unreadable digest"),
            None => Ok(None),
        };
        let credential = match self.credential {
            Some(text) => Some(Credential::new(from_base64(&text).ok_or("unreadable credential")?)),
            None => None,
        };
        let lane = Lane { server: self.server.as_deref().map(Server::new), workspace: self.workspace, credential };
        let message_type = MessageType::ALL.iter().copied().find(|known| known.name() == self.message_type);
        let (request, touches, items) = self.request.into_request(body)?;
        let state = match (self.rejected, self.held) {
            (Some(answer), _) => RecordState::Rejected(answer.into_answer()),
            (None, Some(answer)) => RecordState::Held(answer.into_answer()),
            (None, None) => RecordState::Waiting,
        };
        let message = Message {
            lane,
            message_type: message_type.ok_or("unknown message type: a newer version wrote it")?,
            request,
            touches,
            items,
            project: self.project,
            accepted_at_ms: self.accepted_at_ms,
        };
        Ok(FleetRecord {
            reference: MessageRef { message: self.message, part: digest(self.part)? },
            position: self.position.unwrap_or_else(|| position_of_id(self.message)),
            message,
            fingerprint: digest(self.fingerprint)?,
            attempts: self.attempts,
            state,
            file: self.file.map(FileFields::into_file).transpose()?,
        })
    }
}

/// Encodes a record.
pub(super) fn encode(record: &FleetRecord) -> Vec<u8> {
    with_header(&RecordFields::of(record), &[&record.message.request.body.bytes])
}

/// Parses a record; the reason, and the message's id where it is known, if it can't be used.
pub(super) fn decode(piece: &[u8]) -> Result<FleetRecord, (Option<u64>, &'static str)> {
    #[derive(Deserialize)]
    struct OnlyMessage {
        message: u64,
    }
    let (header, body) = header_and_rest(piece).ok_or((None, "its header is cut short"))?;
    let message = || serde_json::from_slice::<OnlyMessage>(header).ok().map(|fields| fields.message);
    let fields: RecordFields =
        serde_json::from_slice(header).map_err(|_| (message(), "its header is not understood"))?;
    let message = Some(fields.message);
    fields.into_record(body.to_vec()).map_err(|reason| (message, reason))
}

/// Returns a header, preceded by its length, and what follows it.
pub(super) fn with_header(header: &impl Serialize, rest: &[&[u8]]) -> Vec<u8> {
    // Plain structures without maps: serialising them can't fail.
    let header = serde_json::to_vec(header).unwrap_or_default();
    let mut bytes = Vec::with_capacity(4 + header.len() + rest.iter().map(|part| part.len()).sum::<usize>());
    bytes.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&header);
    rest.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Splits the output of [`with_header`]; `None` if it is cut short.
pub(super) fn header_and_rest(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}
