//! Stored messages as documents: what `inspect` lists and shows, and the JSON lines of an export.
//!
//! An exported line has everything that a program needs to read a message: its headers, and its decoded body in the
//! tokens in which it was sent. Secrets stay out: of a header only the name is exported unless its value is known to be
//! harmless. A message is read and written one at a time, so that a list of a million messages is never in memory.

use base64::Engine;
use serde::Serialize;

use crate::figures::time;
use crate::message::{BodyFault, MessageId, MessageType};
use crate::printable;
use crate::protocol::attachment::Subject;
use crate::protocol::json::compact;
use crate::protocol::otlp;
use crate::store::{Filter, Listed, Page, Store, StoreError, StoredMessage};

/// Messages read from the store at a time; a table computes its column widths for as many rows.
const PAGE_MESSAGES: usize = 500;
/// Bodies larger than this when decoded are not shown: a few KB may inflate to any size.
const SHOWN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Protobuf requests with more values than this are not shown: each value may take hundreds of bytes as JSON.
const PROTOBUF_VALUES_MAX: usize = 200_000;
/// OTLP requests larger than this are not parsed for services: a request may consist of empty spans only.
const SERVICES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The body that names an attachment is not larger than this.
const FILE_BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Bodies larger than this when decoded are exported as they were sent: an agent has little memory.
const EXPORTED_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Headers whose values are not secret; only the names of all other headers are shown.
const SHOWN_HEADERS: [&str; 9] = [
    "content-type",
    "content-encoding",
    "user-agent",
    "accept",
    "x-fern-language",
    "x-opik-debug-sdk-version",
    "x-opik-debug-py-version",
    "projectname",
    crate::sdk::conversion::TYPE_HEADER,
];

/// One message of a list.
#[derive(Serialize)]
pub(crate) struct ListedMessage {
    pub id: i64,
    pub status: &'static str,
    pub message_type: &'static str,
    pub workspace: String,
    /// The server that it was accepted for; `null` for messages of an earlier version.
    pub server: Option<String>,
    pub project: Option<String>,
    pub method: String,
    pub path: String,
    pub items: u32,
    pub body_bytes: u64,
    pub accepted_at: String,
    #[serde(skip)]
    pub accepted_at_ms: i64,
    pub attempts: u32,
    pub next_attempt_at: Option<String>,
    pub answer: Option<ListedAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachment: Option<ListedFile>,
}

/// The server's last answer to a message.
#[derive(Serialize)]
pub(crate) struct ListedAnswer {
    pub status: Option<u16>,
    pub text: String,
    pub at: String,
}

/// The file of an attachment.
#[derive(Serialize)]
pub(crate) struct ListedFile {
    pub name: String,
    pub mime_type: Option<String>,
    pub bytes: u64,
    pub sha256: String,
    /// `trace` or `span`.
    pub entity_type: String,
    pub entity_id: String,
}

/// One message as a JSON line. A JSON body follows as `body`, in the tokens in which it was sent.
#[derive(Serialize)]
struct ExportedMessage {
    schema_version: u32,
    #[serde(flatten)]
    line: ListedMessage,
    headers: Vec<ExportedHeader>,
    /// The decoded body if it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_problem: Option<String>,
}

/// A header of a message.
#[derive(Serialize)]
pub(crate) struct ExportedHeader {
    pub name: String,
    /// `***` unless the header is known to be harmless.
    pub value: String,
}

/// One message with its headers and its body.
#[derive(Serialize)]
pub(crate) struct WholeMessage {
    pub schema_version: u32,
    #[serde(flatten)]
    pub line: ListedMessage,
    pub headers: Vec<ExportedHeader>,
    /// The services that an OTLP request's spans come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<String>>,
    /// Decoded, an OTLP request as OTLP's JSON; `None` when it can't be decoded or is not text.
    pub body: Option<String>,
    pub body_problem: Option<String>,
}

/// Returns whether counting the messages of this filter reads all of them, because the store keeps no such count.
pub(crate) fn is_counted_slowly(filter: &Filter) -> bool {
    let counted = Filter {
        statuses: filter.statuses.clone(),
        types: filter.types.clone(),
        workspaces: filter.workspaces.clone(),
        ..Filter::default()
    };
    *filter != counted
}

/// Returns a message as a JSON line with its body, for an export before the message is dropped.
///
/// # Errors
///
/// Fails with a sentence for people if it can't be written as JSON.
pub(crate) fn export_line(message: StoredMessage) -> Result<String, String> {
    let line = ListedMessage { attachment: file(&message), ..listed_message(message.listed.clone()) };
    let exported = exported(Some(&message), line, Undecoded::AsSent).map_err(|error| error.to_string())?;
    // People open the file on a terminal, too.
    Ok(printable::json(&exported).into_owned())
}

/// How to export a body that can't be decoded, or is too large to decode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Undecoded {
    /// Left out, with the reason.
    LeftOut,
    /// Exported as it was sent: the line is all that is left of the message.
    AsSent,
}

/// Returns a message as a JSON line with its body; `message` is `None` if it is no longer stored.
///
/// # Errors
///
/// Fails if it can't be written as JSON.
pub(crate) fn json_line(message: Option<&StoredMessage>, line: ListedMessage) -> serde_json::Result<String> {
    exported(message, line, Undecoded::LeftOut)
}

fn exported(message: Option<&StoredMessage>, line: ListedMessage, undecoded: Undecoded) -> serde_json::Result<String> {
    let in_base64 = |bytes: &[u8]| Some(base64::engine::general_purpose::STANDARD.encode(bytes));
    let decoded_bytes_max = match undecoded {
        Undecoded::LeftOut => SHOWN_BYTES_MAX,
        Undecoded::AsSent => EXPORTED_BYTES_MAX,
    };
    let mut headers = Vec::new();
    let mut body_base64 = None;
    let mut body_problem = None;
    let mut body = None;
    match message {
        None => body_problem = Some("the message was delivered or purged meanwhile".to_owned()),
        Some(message) => {
            headers = exported_headers(message);
            match message.request.body.decode(decoded_bytes_max) {
                Err(fault) => {
                    body_problem = Some(fault.to_string());
                    if undecoded == Undecoded::AsSent {
                        body_base64 = in_base64(&message.request.body.bytes);
                    }
                }
                Ok(content) => {
                    body = std::str::from_utf8(&content).ok().and_then(compact);
                    if body.is_none() {
                        body_base64 = in_base64(&content);
                    }
                }
            }
        }
    }
    let line = ExportedMessage { schema_version: 1, line, headers, body_base64, body_problem };
    let mut text = serde_json::to_string(&line)?;
    if let Some(body) = body {
        // As text, because a `serde_json::Value` would lose digits and lone surrogates.
        text.pop();
        text.extend([",\"body\":", &body, "}"]);
    }
    Ok(text)
}

/// Reads a list of any length page by page.
pub(crate) struct MessagePages<'a> {
    pub store: Option<&'a dyn Store>,
    pub filter: Filter,
    pub newest: bool,
    /// Messages that the list may still have.
    pub left: usize,
    /// The last message that was read.
    pub after: Option<MessageId>,
}

impl MessagePages<'_> {
    /// Returns the next page, `None` after the last one.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(crate) fn next_page(&mut self) -> Result<Option<Vec<ListedMessage>>, StoreError> {
        let Some(store) = self.store.filter(|_| self.left > 0) else { return Ok(None) };
        let page = Page { after: self.after, limit: self.left.min(PAGE_MESSAGES), newest_first: self.newest };
        let listed = store.list(&self.filter, &page)?;
        self.left -= listed.len();
        match listed.last() {
            None => return Ok(None),
            Some(last) => self.after = Some(last.id),
        }
        let mut lines = Vec::with_capacity(listed.len());
        for listed in listed {
            // The name of an attachment is in its body, which a list does not have.
            let message = if listed.attachment.is_some() { store.get(listed.id)? } else { None };
            lines.push(ListedMessage { attachment: message.as_ref().and_then(file), ..listed_message(listed) });
        }
        Ok(Some(lines))
    }
}

/// Reads messages as they are stored.
pub(crate) struct Follower {
    filter: Filter,
    /// Messages that may still follow.
    pub left: usize,
    after: Option<MessageId>,
}

impl Follower {
    /// Returns a follower of messages that are stored from now on, `left` at most.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(crate) fn new(store: Option<&dyn Store>, filter: Filter, left: usize) -> Result<Self, StoreError> {
        Ok(Self { filter, left, after: store.map(newest).transpose()?.flatten() })
    }

    /// Calls `each` with the messages that were stored since the last call.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read, and with the error of `each`.
    pub(crate) fn poll<E: From<StoreError>>(
        &mut self,
        store: &dyn Store,
        mut each: impl FnMut(ListedMessage) -> Result<(), E>,
    ) -> Result<(), E> {
        // Messages stored from here on are for the next poll, so that no poll begins further back than this.
        let until = newest(store)?;
        let (filter, after) = (self.filter.clone(), self.after);
        let mut pages = MessagePages { store: Some(store), filter, newest: false, left: self.left, after };
        while let Some(page) = pages.next_page()? {
            page.into_iter().try_for_each(&mut each)?;
        }
        self.left = pages.left;
        self.after = after.max(pages.after).max(until);
        Ok(())
    }
}

/// Returns the newest message.
fn newest(store: &dyn Store) -> Result<Option<MessageId>, StoreError> {
    let page = Page { after: None, limit: 1, newest_first: true };
    Ok(store.list(&Filter::default(), &page)?.first().map(|listed| listed.id))
}

pub(crate) fn listed_message(listed: Listed) -> ListedMessage {
    ListedMessage {
        id: listed.id.0,
        status: listed.status.name(),
        message_type: listed.message_type.name(),
        workspace: listed.lane.workspace_name().to_owned(),
        server: listed.lane.server.as_ref().map(ToString::to_string),
        project: listed.project,
        method: listed.method,
        path: listed.path,
        items: listed.items,
        body_bytes: listed.body_bytes,
        accepted_at: time(listed.accepted_at_ms),
        accepted_at_ms: listed.accepted_at_ms,
        attempts: listed.attempts,
        next_attempt_at: (listed.next_attempt_at_ms > 0).then(|| time(listed.next_attempt_at_ms)),
        attachment: None,
        answer: listed.answer.map(|answer| ListedAnswer {
            status: answer.status,
            text: answer.text,
            at: time(answer.at_ms),
        }),
    }
}

/// Returns the attachment of a message, if it has one.
fn file(message: &StoredMessage) -> Option<ListedFile> {
    let attachment = message.listed.attachment?;
    let content = message.request.body.decode(FILE_BODY_BYTES_MAX).ok()?;
    let subject = Subject::from_body(&content).ok()?;
    let (entity_type, entity_id) = subject.entity();
    Some(ListedFile {
        name: subject.file_name().to_owned(),
        mime_type: subject.mime_type().map(str::to_owned),
        bytes: attachment.bytes,
        sha256: attachment.sha256.to_string(),
        entity_type: entity_type.to_owned(),
        entity_id: entity_id.to_owned(),
    })
}

/// Returns a message with its headers and its decoded body.
pub(crate) fn whole(message: StoredMessage) -> WholeMessage {
    let decoded = message.request.body.decode(SHOWN_BYTES_MAX).map_err(|fault: BodyFault| fault.to_string());
    let content_type = message.request.headers.get("content-type").map(String::from_utf8_lossy).unwrap_or_default();
    let otlp = (message.listed.message_type == MessageType::OtlpTraces)
        .then(|| otlp::Format::from_content_type(&content_type))
        .flatten();
    let services = match (otlp, &decoded) {
        (Some(format), Ok(content)) if content.len() <= SERVICES_BYTES_MAX => {
            otlp::Traces::read(format, content).map(|traces| traces.services).ok()
        }
        _ => None,
    };
    let shown = decoded.and_then(|content| match otlp {
        Some(otlp::Format::Protobuf) if !otlp::has_at_most(PROTOBUF_VALUES_MAX, &content) => {
            Err(format!("the body has more than {PROTOBUF_VALUES_MAX} values"))
        }
        Some(otlp::Format::Protobuf) => Ok(otlp::to_json(&content).map(|json| json.to_string())),
        Some(otlp::Format::Json) | None => Ok(String::from_utf8(content.into()).ok()),
    });
    let (body, body_problem) = match shown {
        Ok(Some(text)) => (Some(text), None),
        Ok(None) => (None, Some("the body is not text".to_owned())),
        Err(problem) => (None, Some(problem)),
    };
    let headers = exported_headers(&message);
    let attachment = file(&message);
    let line = ListedMessage { attachment, ..listed_message(message.listed) };
    WholeMessage { schema_version: 1, headers, line, services, body, body_problem }
}

fn exported_headers(message: &StoredMessage) -> Vec<ExportedHeader> {
    let shown = |(name, value): (&str, &[u8])| {
        let is_shown = SHOWN_HEADERS.contains(&name.to_ascii_lowercase().as_str());
        let value = if is_shown { String::from_utf8_lossy(value).into_owned() } else { "***".to_owned() };
        ExportedHeader { name: name.to_owned(), value }
    };
    message.request.headers.iter().map(shown).collect()
}
