//! Stored messages as documents: what `inspect` lists and shows, and the JSON lines of an export.
//!
//! An exported line has everything that a program needs to read a message: its headers, and its decoded body in the
//! tokens in which it was sent. Secrets stay out: of a header only the name is exported unless its value is known to be
//! harmless. A message is read and written one at a time, so that a list of a million messages is never in memory.

use std::io::Read;

use base64::Engine;
use memchr::memmem;
use serde::Serialize;
use serde_json::Value;

use crate::figures::time;
use crate::message::{Body, BodyFault, MessageId, MessageType};
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
/// A name is not looked for in bodies that are larger than this.
const NAMED_BYTES_MAX: u64 = 1024 * 1024;
/// A body is searched in pieces of this size.
const SEARCHED_BYTES: usize = 64 * 1024;
/// Bodies that are read together have at most this many bytes, unless one alone has more.
const READ_BYTES: u64 = 1024 * 1024;
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
    /// The status in the word that people read.
    #[serde(skip)]
    pub word: &'static str,
    /// Its subject; empty unless the list was asked for it, because that reads each body.
    #[serde(skip)]
    pub subject: MessageSubject,
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
    #[serde(skip)]
    pub next_attempt_at_ms: Option<i64>,
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
    #[serde(skip)]
    pub at_ms: i64,
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
    /// The name of the trace, span or other entity that its first item is about.
    pub name: Option<String>,
    /// The traces that it is about.
    pub trace_ids: Vec<String>,
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

/// The subject of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MessageSubject {
    /// The name of the trace, span or other entity that its first item is about.
    pub name: Option<String>,
    /// The traces that it is about.
    pub trace_ids: Vec<String>,
}

/// Returns what a message is about: its traces by what it touches, and the name by its body.
fn subject(message: &StoredMessage) -> MessageSubject {
    let content = message.request.body.decode(NAMED_BYTES_MAX).ok();
    let body: Option<Value> = content.and_then(|content| serde_json::from_slice(&content).ok());
    let item = body.as_ref().map(first_item);
    let text = |field| item.and_then(|item: &Value| item[field].as_str()).map(str::to_owned);
    let traces = message.touches.iter().filter_map(|touch| touch.key.trace_id());
    let mut trace_ids: Vec<String> = traces.chain(text("trace_id")).collect();
    trace_ids.sort_unstable();
    trace_ids.dedup();
    MessageSubject { name: text("name"), trace_ids }
}

/// Returns the first item of a batch, or the body itself.
fn first_item(body: &Value) -> &Value {
    let items = body.as_object().and_then(|fields| fields.values().find(|value| value.is_array()));
    let first = items.and_then(|items| items.get(0)).filter(|first| first.is_object());
    // A create has lists as well, such as its tags: those of objects are batches only where no name is beside them.
    first.filter(|_| body["name"].is_null()).unwrap_or(body)
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
    /// Only messages with this text in their body.
    pub search: Option<&'a BodySearch>,
    /// Whether [`ListedMessage::subject`] is wanted, which decrypts and parses each payload.
    pub has_subjects: bool,
}

impl<'a> MessagePages<'a> {
    /// Returns the pages of a filter.
    pub(crate) fn new(store: Option<&'a dyn Store>, filter: Filter, left: usize) -> Self {
        Self { store, filter, newest: false, left, after: None, search: None, has_subjects: false }
    }

    /// Returns the next page, `None` after the last one.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(crate) fn next_page(&mut self) -> Result<Option<Vec<ListedMessage>>, StoreError> {
        let Some(store) = self.store.filter(|_| self.left > 0) else { return Ok(None) };
        loop {
            let limit = if self.search.is_some() { PAGE_MESSAGES } else { self.left.min(PAGE_MESSAGES) };
            let page = Page { after: self.after, limit, newest_first: self.newest };
            let listed = store.list(&self.filter, &page)?;
            let Some(last) = listed.last() else { return Ok(None) };
            self.after = Some(last.id);
            let lines = self.lines(store, listed)?;
            self.left -= lines.len();
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }

    /// Returns the messages of a page whose bodies have the text that is searched for, as many as are left.
    fn lines(&mut self, store: &dyn Store, listed: Vec<Listed>) -> Result<Vec<ListedMessage>, StoreError> {
        let mut lines = Vec::with_capacity(listed.len().min(self.left));
        let mut rest = listed.into_iter().peekable();
        while rest.peek().is_some() {
            // Bodies are read together: a transaction for each of a million would take most of the time.
            let (mut batch, mut bytes) = (Vec::new(), 0_u64);
            while let Some(next) = rest.next_if(|next| batch.is_empty() || bytes + next.body_bytes <= READ_BYTES) {
                bytes += next.body_bytes;
                batch.push(next);
            }
            let read: Vec<MessageId> =
                batch.iter().filter(|listed| self.is_read(listed)).map(|listed| listed.id).collect();
            let bodies = if read.is_empty() { Vec::new() } else { store.whole(&read)? };
            let mut bodies = bodies.into_iter().peekable();
            for listed in batch {
                let id = listed.id;
                let body = bodies.next_if(|body| body.listed.id == id);
                lines.extend(self.line(listed, body.as_ref()));
                if lines.len() == self.left {
                    self.after = Some(id);
                    return Ok(lines);
                }
            }
        }
        Ok(lines)
    }

    /// Returns whether the body of a message is needed. The name of an attachment is in its body, which a list does not
    /// have.
    fn is_read(&self, listed: &Listed) -> bool {
        listed.attachment.is_some() || self.search.is_some() || self.has_subjects
    }

    /// Returns a message of the list, if its body has the text that is searched for.
    fn line(&self, listed: Listed, message: Option<&StoredMessage>) -> Option<ListedMessage> {
        if let Some(search) = self.search
            && !message.is_some_and(|message| search.is_in(&message.request.body))
        {
            return None;
        }
        let subject = message.filter(|_| self.has_subjects).map(subject).unwrap_or_default();
        let attachment = message.and_then(file);
        Some(ListedMessage { attachment, subject, ..listed_message(listed) })
    }
}

/// A text that is searched for in payloads.
pub(crate) struct BodySearch {
    /// The text in the forms in which a body may have it.
    needles: Vec<Vec<u8>>,
}

impl BodySearch {
    /// Returns the search for a text in a payload: as it is, and as JSON escapes it.
    pub(crate) fn new(text: &str) -> Self {
        let quoted = serde_json::to_string(text).unwrap_or_default();
        let escaped = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
        // Python's json writes ASCII only, with lower-case digits.
        let ascii = |is_upper: bool| -> String {
            let unit = |unit: &mut u16| if is_upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
            let character = |c: char| match c.is_ascii() {
                true => c.to_string(),
                false => c.encode_utf16(&mut [0; 2]).iter_mut().map(unit).collect(),
            };
            escaped.chars().map(character).collect()
        };
        let mut needles: Vec<Vec<u8>> = [text.to_owned(), ascii(false), ascii(true), escaped.to_owned()]
            .into_iter()
            .map(String::into_bytes)
            .collect();
        needles.sort_unstable();
        needles.dedup();
        Self { needles }
    }

    /// Returns whether a decrypted payload has the text. The payload is decoded in pieces, so that it takes little memory
    /// whatever its size is; one that can't be decoded is searched as far as it can.
    fn is_in(&self, body: &Body) -> bool {
        let longest = self.needles.iter().map(Vec::len).max().unwrap_or(0);
        let mut decoded = body.encoding.decoder(std::io::Cursor::new(body.bytes.clone()));
        let mut window = Vec::with_capacity(SEARCHED_BYTES + longest);
        loop {
            let before = window.len();
            let read = decoded.by_ref().take(SEARCHED_BYTES as u64).read_to_end(&mut window);
            if self.needles.iter().any(|needle| memmem::find(&window, needle).is_some()) {
                return true;
            }
            if read.is_err() || window.len() == before {
                return false;
            }
            // The text may begin in this piece and end in the next one.
            window.drain(..window.len().saturating_sub(longest));
        }
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
        let after = self.after;
        let mut pages = MessagePages { after, ..MessagePages::new(Some(store), self.filter.clone(), self.left) };
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
        word: listed.status.word(),
        subject: MessageSubject::default(),
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
        next_attempt_at_ms: Some(listed.next_attempt_at_ms).filter(|at_ms| *at_ms > 0),
        attachment: None,
        answer: listed.answer.map(|answer| ListedAnswer {
            status: answer.status,
            text: answer.text,
            at: time(answer.at_ms),
            at_ms: answer.at_ms,
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
    let MessageSubject { name, trace_ids } = subject(&message);
    let line = ListedMessage { attachment, ..listed_message(message.listed) };
    WholeMessage { schema_version: 1, headers, name, trace_ids, line, services, body, body_problem }
}

fn exported_headers(message: &StoredMessage) -> Vec<ExportedHeader> {
    let shown = |(name, value): (&str, &[u8])| {
        let is_shown = SHOWN_HEADERS.contains(&name.to_ascii_lowercase().as_str());
        let value = if is_shown { String::from_utf8_lossy(value).into_owned() } else { "***".to_owned() };
        ExportedHeader { name: name.to_owned(), value }
    };
    message.request.headers.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::message::Encoding;

    #[test]
    fn a_text_is_found_in_every_form_in_which_a_body_may_have_it() {
        let gzip = |text: &str| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).expect("memory takes everything");
            encoder.finish().expect("memory takes everything")
        };
        for (text, body, is_found) in [
            ("müller", r#"{"name":"müller"}"#, true),
            ("müller", r#"{"name":"m\u00fcller"}"#, true),
            ("müller", r#"{"name":"m\u00FCller"}"#, true),
            ("🚀", r#"{"name":"\ud83d\ude80"}"#, true),
            (r#""quoted""#, r#"{"name":"\"quoted\""}"#, true),
            ("two\nlines", r#"{"name":"two\nlines"}"#, true),
            ("\"name\":", r#"{"name":"x"}"#, true),
            ("Müller", r#"{"name":"müller"}"#, false),
            ("muller", r#"{"name":"müller"}"#, false),
        ] {
            let search = BodySearch::new(text);
            assert_eq!(search.is_in(&Body::new(body.to_owned(), Encoding::Identity)), is_found, "{text} in {body}");
            assert_eq!(search.is_in(&Body::new(gzip(body), Encoding::Gzip)), is_found, "{text} in {body}, compressed");
        }
        // It begins in one piece and ends in the next.
        let apart = "x".repeat(SEARCHED_BYTES - 3) + "needle" + &"y".repeat(3 * SEARCHED_BYTES);
        assert!(BodySearch::new("needle").is_in(&Body::new(gzip(&apart), Encoding::Gzip)));
        assert!(!BodySearch::new("needles").is_in(&Body::new(gzip(&apart), Encoding::Gzip)));
        let mut damaged = gzip(&("needle".to_owned() + &apart));
        damaged.truncate(damaged.len() - 9);
        assert!(
            BodySearch::new("needle").is_in(&Body::new(damaged, Encoding::Gzip)),
            "a body that can be decoded is searched"
        );
    }

    #[test]
    fn the_first_item_of_a_batch_names_it() {
        let name = |body: &str| {
            let body: Value = serde_json::from_str(body).expect("JSON");
            first_item(&body)["name"].as_str().map(str::to_owned)
        };
        assert_eq!(name(r#"{"spans":[{"name":"step"},{"name":"other"}]}"#).as_deref(), Some("step"));
        assert_eq!(name(r#"{"name":"question","tags":["a"]}"#).as_deref(), Some("question"));
        assert_eq!(name(r#"{"name":"question","usage":[{"name":"x"}]}"#).as_deref(), Some("question"));
        assert_eq!(name(r#"{"end_time":"2026"}"#), None);
        assert_eq!(name("[]"), None);
    }
}
