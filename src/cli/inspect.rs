//! `opik-offline inspect`

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::render::{Format, Renderer, count, nothing, short_duration, size, table_text_cut, time};
use super::selection::{Selection, id, number};
use super::{Common, Exit, Failure, configuration, existing_store};
use crate::config::Config;
use crate::message::{BodyFault, MessageId, MessageType};
use crate::protocol::attachment::Subject;
use crate::protocol::json::pretty;
use crate::protocol::otlp;
use crate::store::{Filter, Listed, Page, Store, StoreError, StoredMessage, now_ms};

const AFTER_HELP: &str = "\
Examples:
  The oldest messages that are stored, and those that were refused:
    opik-offline inspect
    opik-offline inspect --rejected
  One message whole, with the server's last answer:
    opik-offline inspect 42
  What a killed Python process left:
    opik-offline inspect --from /tmp/tmp1a2b3c4d/opik_messages.db
  Everything about one trace, as JSON lines:
    opik-offline inspect --trace 01a20445-0b53-7443-881b-86277651b909 --limit 0 --format jsonl

Exit codes:
  0  Shown
  1  There is no such message, or the store can't be read
  2  Wrong usage or configuration";

/// List stored messages, or show one whole
///
/// The oldest come first. API keys and tokens are never shown; of a message's headers only harmless ones are.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct InspectArgs {
    /// Show this message whole
    #[arg(value_name = "ID", value_parser = id, conflicts_with_all = ["status", "rejected", "types", "workspace", "project", "ids", "trace", "older_than"])]
    id: Option<i64>,

    /// List what a Python process left in this file, without changing it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["id", "newest", "status", "rejected", "types", "workspace", "project", "ids", "trace", "older_than"])]
    from: Option<PathBuf>,

    /// List this many messages at most; 0 lists all
    #[arg(long, value_name = "N", default_value = "50", value_parser = number)]
    limit: u64,

    /// List the newest first
    #[arg(long)]
    newest: bool,

    #[command(flatten)]
    selection: Selection,
}

/// One message of a list.
#[derive(Serialize)]
struct Line {
    id: i64,
    status: &'static str,
    message_type: &'static str,
    workspace: String,
    project: Option<String>,
    method: String,
    path: String,
    items: u32,
    body_bytes: u64,
    accepted_at: String,
    #[serde(skip)]
    accepted_at_ms: i64,
    attempts: u32,
    next_attempt_at: Option<String>,
    answer: Option<Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attachment: Option<File>,
}

#[derive(Serialize)]
struct Answer {
    status: Option<u16>,
    text: String,
    at: String,
}

/// The file of an attachment.
#[derive(Serialize)]
struct File {
    name: String,
    mime_type: Option<String>,
    bytes: u64,
    sha256: String,
    /// `trace` or `span`.
    entity_type: String,
    entity_id: String,
}

/// One message as a line of JSON.
#[derive(Serialize)]
struct JsonLine {
    schema_version: u32,
    #[serde(flatten)]
    line: Line,
}

#[derive(Serialize)]
struct List {
    schema_version: u32,
    messages: Vec<Line>,
    /// How many the filter selects in all.
    selected: u64,
}

#[derive(Serialize)]
struct Header {
    name: String,
    /// `***` unless the header is known to be harmless.
    value: String,
}

#[derive(Serialize)]
struct Whole {
    schema_version: u32,
    #[serde(flatten)]
    line: Line,
    headers: Vec<Header>,
    /// The services that an OTLP request's spans come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<Vec<String>>,
    /// Decoded, an OTLP request as OTLP's JSON; `None` when it can't be decoded or is not text.
    body: Option<String>,
    body_problem: Option<String>,
}

/// Messages read from the store at a time: a list of a million is never in memory.
const PAGE: usize = 500;
/// Rows of a table that share one computation of column widths.
const TABLE_ROWS: usize = PAGE;
/// Bodies longer than this when decoded are not shown.
const SHOWN_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Headers whose values hold no secret; of all others only the name is shown.
const SHOWN_HEADERS: [&str; 9] = [
    "content-type",
    "content-encoding",
    "user-agent",
    "accept",
    "x-fern-language",
    "x-opik-debug-sdk-version",
    "x-opik-debug-py-version",
    "projectname",
    crate::replay::salvage::TYPE_HEADER,
];

pub fn run(common: &Common, args: &InspectArgs) -> Result<(), Failure> {
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    if let Some(file) = &args.from {
        let limit = if args.limit == 0 { usize::MAX } else { usize::try_from(args.limit).unwrap_or(usize::MAX) };
        return super::salvage::list(common, file, limit);
    }
    let store = existing_store(&config)?;
    match args.id {
        Some(id) => show(&renderer, store.as_deref(), MessageId(id), &config),
        None => list(&renderer, store.as_deref(), args),
    }
}

fn show(renderer: &Renderer, store: Option<&dyn Store>, id: MessageId, config: &Config) -> Result<(), Failure> {
    let message = store.map(|store| store.get(id)).transpose()?.flatten();
    let Some(message) = message else {
        let path = config.db.value.display();
        return Err(Failure::new(
            Exit::Failure,
            format!("there is no message {id} in {path}"),
            Some(
                "it was delivered or purged, or it is in another store (--db); `opik-offline inspect` lists what is there",
            ),
        ));
    };
    Ok(renderer.result(&whole(message), whole_text)?)
}

fn list(renderer: &Renderer, store: Option<&dyn Store>, args: &InspectArgs) -> Result<(), Failure> {
    let filter = args.selection.filter(now_ms());
    let selected = store.map_or(Ok(0), |store| store.backlog(&filter).map(|backlog| backlog.messages()))?;
    let is_any = filter == Filter::default();
    let limit = if args.limit == 0 { usize::MAX } else { usize::try_from(args.limit).unwrap_or(usize::MAX) };
    let mut pages = Pages { store, filter, newest: args.newest, left: limit, after: None };
    let mut stdout = io::stdout().lock();
    match renderer.format() {
        Format::Jsonl => {
            while let Some(lines) = pages.next()? {
                for line in lines {
                    let text =
                        serde_json::to_string(&JsonLine { schema_version: 1, line }).map_err(io::Error::other)?;
                    writeln!(stdout, "{text}")?;
                }
            }
            stdout.flush()?;
        }
        Format::Json | Format::Yaml => {
            drop(stdout);
            let mut messages = Vec::new();
            while let Some(lines) = pages.next()? {
                messages.extend(lines);
            }
            renderer.result(&List { schema_version: 1, messages, selected }, |_, _| String::new())?;
        }
        Format::Table => {
            let mut shown = 0;
            while let Some(lines) = pages.next()? {
                shown += lines.len() as u64;
                stdout.write_all(lines_text(renderer, &lines).as_bytes())?;
            }
            match (shown, selected) {
                (0, _) => writeln!(stdout, "{}", nothing(is_any))?,
                (shown, selected) if shown < selected => {
                    writeln!(
                        stdout,
                        "{shown} of {selected} messages; more with --limit, others with --newest or filters"
                    )?;
                }
                _ => {}
            }
            stdout.flush()?;
        }
    }
    Ok(())
}

/// Pages through a list of any length.
struct Pages<'a> {
    store: Option<&'a dyn Store>,
    filter: Filter,
    newest: bool,
    left: usize,
    after: Option<MessageId>,
}

impl Pages<'_> {
    fn next(&mut self) -> Result<Option<Vec<Line>>, StoreError> {
        let Some(store) = self.store.filter(|_| self.left > 0) else { return Ok(None) };
        let page = Page { after: self.after, limit: self.left.min(PAGE.min(TABLE_ROWS)), newest_first: self.newest };
        let listed = store.list(&self.filter, &page)?;
        self.left -= listed.len();
        match listed.last() {
            None => return Ok(None),
            Some(last) => self.after = Some(last.id),
        }
        let mut lines = Vec::with_capacity(listed.len());
        for listed in listed {
            // What a file is called is in the body, which a list does not have.
            let message = if listed.attachment.is_some() { store.get(listed.id)? } else { None };
            lines.push(Line { attachment: message.as_ref().and_then(file), ..line(listed) });
        }
        Ok(Some(lines))
    }
}

fn line(listed: Listed) -> Line {
    Line {
        id: listed.id.0,
        status: listed.status.name(),
        message_type: listed.message_type.name(),
        workspace: listed.lane.workspace_name().to_owned(),
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
        answer: listed.answer.map(|answer| Answer { status: answer.status, text: answer.text, at: time(answer.at_ms) }),
    }
}

/// Returns what is known of a message's file; `None` for messages that have none.
fn file(message: &StoredMessage) -> Option<File> {
    let attachment = message.listed.attachment?;
    let content = message.request.body.decode(SHOWN_BYTES_MAX).ok()?;
    let subject = Subject::from_body(&content).ok()?;
    let (entity_type, entity_id) = subject.entity();
    Some(File {
        name: subject.file_name().to_owned(),
        mime_type: subject.mime_type().map(str::to_owned),
        bytes: attachment.bytes,
        sha256: attachment.sha256.to_string(),
        entity_type: entity_type.to_owned(),
        entity_id: entity_id.to_owned(),
    })
}

fn lines_text(renderer: &Renderer, lines: &[Line]) -> String {
    let now = now_ms();
    let mut table = renderer.table(&[">id", "status", "type", "workspace", "project", ">size", ">age", "last answer"]);
    for line in lines {
        let age = u64::try_from(now.saturating_sub(line.accepted_at_ms)).unwrap_or(0);
        table.add_row([
            line.id.to_string(),
            line.status.to_owned(),
            type_text(line),
            line.workspace.clone(),
            line.project.clone().unwrap_or_default(),
            size(line.body_bytes),
            short_duration(Duration::from_millis(age)),
            line.answer.as_ref().map(answer_text).unwrap_or_default(),
        ]);
    }
    table_text_cut(&table)
}

/// The type, and of an attachment the name of its file.
fn type_text(line: &Line) -> String {
    let name = line.message_type.trim_end_matches("Message");
    match &line.attachment {
        Some(file) => format!("{name} {}", file.name.replace(char::is_control, " ")),
        None => name.to_owned(),
    }
}

/// The beginning of an answer, in one line: of Opik's errors (`{"code":400,"message":"..."}`) the message.
fn answer_text(answer: &Answer) -> String {
    const CHARACTERS_MAX: usize = 60;
    let error: Option<serde_json::Value> = serde_json::from_str(&answer.text).ok();
    let message = error.as_ref().and_then(|error| error["message"].as_str());
    let text = message.unwrap_or(&answer.text);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARACTERS_MAX).collect();
    match answer.status {
        Some(status) => format!("{status} {text}").trim_end().to_owned(),
        None => text,
    }
}

fn whole(message: StoredMessage) -> Whole {
    let decoded = message.request.body.decode(SHOWN_BYTES_MAX).map_err(|fault: BodyFault| fault.to_string());
    let content_type = message.request.headers.get("content-type").map(String::from_utf8_lossy).unwrap_or_default();
    let otlp = (message.listed.message_type == MessageType::OtlpTraces)
        .then(|| otlp::Format::from_content_type(&content_type))
        .flatten();
    let services = match (otlp, &decoded) {
        (Some(format), Ok(content)) => otlp::Traces::read(format, content).map(|traces| traces.services).ok(),
        _ => None,
    };
    let shown = decoded.map(|content| match otlp {
        Some(otlp::Format::Protobuf) => otlp::to_json(&content).map(|json| json.to_string()),
        Some(otlp::Format::Json) | None => String::from_utf8(content.to_vec()).ok(),
    });
    let (body, body_problem) = match shown {
        Ok(Some(text)) => (Some(text), None),
        Ok(None) => (None, Some("the body is not text".to_owned())),
        Err(problem) => (None, Some(problem)),
    };
    let headers = message.request.headers.iter().map(|(name, value)| {
        let is_shown = SHOWN_HEADERS.contains(&name.to_ascii_lowercase().as_str());
        let shown = if is_shown { String::from_utf8_lossy(value).into_owned() } else { "***".to_owned() };
        Header { name: name.to_owned(), value: shown }
    });
    let headers = headers.collect();
    let attachment = file(&message);
    let line = Line { attachment, ..line(message.listed) };
    Whole { schema_version: 1, headers, line, services, body, body_problem }
}

fn whole_text(_: &Renderer, whole: &Whole) -> String {
    let line = &whole.line;
    let mut text = String::new();
    let mut row = |name: &str, value: &str| text.push_str(&format!("{name:<13} {value}\n"));
    row("id", &line.id.to_string());
    row("status", line.status);
    row("type", line.message_type);
    row("request", &format!("{} {}", line.method, line.path));
    row("workspace", &line.workspace);
    if let Some(project) = &line.project {
        row("project", project);
    }
    if let Some(services) = whole.services.as_ref().filter(|services| !services.is_empty()) {
        row("services", &services.join(", "));
    }
    if let Some(file) = &line.attachment {
        row("file", &file.name.replace(char::is_control, " "));
        if let Some(mime_type) = &file.mime_type {
            row("mime type", mime_type);
        }
        row("file size", &format!("{} ({} bytes)", size(file.bytes), file.bytes));
        row("sha-256", &file.sha256);
        row("belongs to", &format!("{} {}", file.entity_type, file.entity_id));
    }
    row("accepted", &line.accepted_at);
    row("body", &format!("{}, {}", count(line.items.into(), "item"), size(line.body_bytes)));
    row("attempts", &line.attempts.to_string());
    if let Some(next) = &line.next_attempt_at {
        row("next attempt", next);
    }
    if let Some(answer) = &line.answer {
        let status = answer.status.map_or("no answer".to_owned(), |status| status.to_string());
        row("last answer", &format!("{status} at {}", answer.at));
        if !answer.text.is_empty() {
            row("", &answer.text);
        }
    }
    for Header { name, value } in &whole.headers {
        row("header", &format!("{name}: {value}"));
    }
    text.push('\n');
    match (&whole.body, &whole.body_problem) {
        (Some(body), _) => text.push_str(pretty(body).as_deref().unwrap_or(body)),
        (None, problem) => text.push_str(problem.as_deref().unwrap_or("no body")),
    }
    text.push('\n');
    text
}
