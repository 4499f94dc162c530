//! `opik-offline inspect`

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use clap::Args;
use serde::Serialize;

use super::selection::{Selection, id, number};
use super::{Common, Exit, Failure, configuration, existing_store, stop_on_signals};
use crate::config::{Config, ProcessEnvironment, pager};
use crate::figures::{count, short_duration, size, time};
use crate::message::{BodyFault, MessageId, MessageStatus, MessageType};
use crate::printable::{elided, json, line as one_line, padded};
use crate::protocol::attachment::Subject;
use crate::protocol::json::{compact, pretty_to};
use crate::protocol::otlp;
use crate::shutdown::Shutdown;
use crate::store::{self, Filter, Listed, Page, Store, StoreError, StoredMessage, now_ms};
use crate::terminal::pager::Output;
use crate::terminal::render::{OutputFormat, Renderer, colored_json, nothing};
use crate::terminal::yaml;
use crate::terminal::{Shown, Stream};

const AFTER_HELP: &str = "\
Examples:
  The oldest messages that are stored, and those that were refused:
    opik-offline inspect
    opik-offline inspect --rejected
  One message whole, with the server's last answer:
    opik-offline inspect 42
  What a killed Python process left:
    opik-offline inspect --from /tmp/tmp1a2b3c4d/opik_messages.db
  Everything about one trace, bodies included, as JSON lines:
    opik-offline inspect --trace UUID --limit 0 --format jsonl
  Watch what an application writes during an outage:
    opik-offline inspect --follow --workspace team

JSON lines:
  --format jsonl writes a message a line with its headers and its decoded body: as JSON in body, and where it is none \
(protobuf, a bare NaN) as base64 in body_base64. A file's bytes are not part of it. To deliver messages from another \
machine copy the store, not this export.

Exit codes:
  0    Shown
  1    There is no such message, or the store can't be read
  2    Wrong usage or configuration
  130  Interrupted (--follow)

Environment:
  PAGER shows a long result on a terminal [default: less -FRX]; empty or cat: none.";

/// List stored messages, or show one whole
///
/// The oldest come first. API keys and tokens are never shown; of a message's headers only harmless ones are.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct InspectArgs {
    /// Show this message whole
    #[arg(value_name = "ID", value_parser = id, conflicts_with_all = ["status", "rejected", "types", "workspace", "server", "project", "ids", "trace", "older_than", "newer_than"])]
    id: Option<i64>,

    /// List what a Python process left in this file
    ///
    /// The file is not changed.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["id", "newest", "status", "rejected", "types", "workspace", "server", "project", "ids", "trace", "older_than", "newer_than"])]
    from: Option<PathBuf>,

    /// As root, look into a file of this user, a name or a number
    #[arg(long, value_name = "USER", requires = "from", hide_short_help = true, value_hint = clap::ValueHint::Username)]
    owner: Option<String>,

    /// List this many messages at most; 0 lists all [default: 50]
    #[arg(long, value_name = "N", value_parser = number)]
    limit: Option<u64>,

    /// List the newest first
    #[arg(long)]
    newest: bool,

    /// Show messages as they are stored, from now on
    ///
    /// It ends when interrupted, or after --limit. A message that is delivered at once may never be seen.
    #[arg(long, conflicts_with_all = ["id", "from", "newest", "older_than", "newer_than"])]
    follow: bool,

    /// Show a long result on a terminal without a pager
    #[arg(long, hide_short_help = true)]
    no_pager: bool,

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
    /// The server that it was accepted for; `null` for what an earlier version stored.
    server: Option<String>,
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

/// One message as a line of JSON. A body that is JSON follows as `body`, in the tokens in which it was sent.
#[derive(Serialize)]
struct JsonLine {
    schema_version: u32,
    #[serde(flatten)]
    line: Line,
    headers: Vec<Header>,
    /// The decoded body where it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_problem: Option<String>,
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
/// Bytes of JSON lines that are gathered for one write.
const WRITTEN_BYTES: usize = 64 * 1024;
/// Messages listed unless something else is asked for.
const LIMIT: usize = 50;
/// How often `--follow` looks for new messages: one look-up by the primary key.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// Rows of a table that share one computation of column widths.
const TABLE_ROWS: usize = PAGE;
/// Bodies longer than this when decoded are not shown: some KB may say that they are any length.
const SHOWN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The same for YAML, whose writer has several copies of a text in memory.
const YAML_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Values of a protobuf request that are shown: each may take hundreds of bytes as JSON.
const PROTOBUF_VALUES_MAX: usize = 200_000;
/// The services of OTLP requests longer than this are not looked for: a request may be nothing but empty spans.
const SERVICES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a file is called takes no more than this.
const FILE_BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Bodies longer than this when decoded are exported as they were sent: an agent has little memory.
const EXPORTED_BYTES_MAX: u64 = 16 * 1024 * 1024;
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
    crate::sdk::conversion::TYPE_HEADER,
];

pub fn run(common: &Common, args: &InspectArgs) -> Result<(), Failure> {
    if args.follow && matches!(common.format, OutputFormat::Json | OutputFormat::Yaml) {
        return Err(Failure::new(
            Exit::Usage,
            "--follow has no end, and one document has one",
            Some("use --format jsonl, which is a document a line"),
        ));
    }
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let limit = match args.limit {
        Some(0) => usize::MAX,
        None if args.follow => usize::MAX,
        limit => limit.map_or(LIMIT, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
    };
    if let Some(file) = &args.from {
        return super::salvage::list(common, file, args.owner.as_deref(), limit);
    }
    let store = existing_store(&config)?;
    if args.follow {
        return follow(&renderer, &config, store, args, limit);
    }
    let is_paged = !args.no_pager && common.format == OutputFormat::Table;
    let mut output = Output::start(is_paged.then(|| pager(&ProcessEnvironment)).flatten())?;
    let shown = match args.id {
        Some(id) => show(&renderer, &mut output, store.as_deref(), MessageId(id), &config),
        None => list(&renderer, &mut output, store.as_deref(), args, limit),
    };
    // While a pager is read, nobody has to wait for the store.
    drop(store);
    // A pager that was quit early is no error, and one that is still open is waited for in any case.
    let finished = output.finish().map_err(Failure::from);
    shown.and(finished)
}

fn show(
    renderer: &Renderer,
    output: &mut Output,
    store: Option<&dyn Store>,
    id: MessageId,
    config: &Config,
) -> Result<(), Failure> {
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
    let whole = whole(message, renderer.format());
    match renderer.format() {
        OutputFormat::Table => Ok(write_whole(output, renderer, &whole)?),
        _ => Ok(renderer.result_to(output, &whole, |_, _| Shown::default())?),
    }
}

fn list(
    renderer: &Renderer,
    output: &mut Output,
    store: Option<&dyn Store>,
    args: &InspectArgs,
    limit: usize,
) -> Result<(), Failure> {
    let filter = args.selection.filter(now_ms());
    let selected =
        |filter: &Filter| store.map_or(Ok(0), |store| store.backlog(filter).map(|backlog| backlog.messages()));
    let mut pages = Pages { store, filter: filter.clone(), newest: args.newest, left: limit, after: None };
    match renderer.format() {
        OutputFormat::Jsonl => {
            while let Some(lines) = pages.next()? {
                // Not a write for each of a million lines, and not a page of bodies in memory.
                let mut pending = String::new();
                for line in lines {
                    match exported(store, line) {
                        Ok(line) => pending.extend([&line, "\n"]),
                        Err(failure) => {
                            output.machine(&pending)?;
                            return Err(failure);
                        }
                    }
                    if pending.len() > WRITTEN_BYTES {
                        output.machine(&std::mem::take(&mut pending))?;
                    }
                }
                output.machine(&pending)?;
            }
        }
        // Written piece by piece as serde_json and serde_yaml would write the whole: a list may be long.
        OutputFormat::Json => {
            output.machine("{\n  \"schema_version\": 1,\n  \"messages\": [")?;
            let mut separator = "\n";
            while let Some(lines) = pages.next()? {
                let mut page = String::new();
                for line in &lines {
                    let line = serde_json::to_string_pretty(line).map_err(io::Error::other)?;
                    page.extend([separator, "    ", &line.replace('\n', "\n    ")]);
                    separator = ",\n";
                }
                output.machine(&page)?;
            }
            let end = if separator == "\n" { "" } else { "\n  " };
            output.machine(&format!("{end}],\n  \"selected\": {}\n}}\n", selected(&filter)?))?;
        }
        OutputFormat::Yaml => {
            let mut head = "schema_version: 1\nmessages:\n";
            while let Some(lines) = pages.next()? {
                let lines = yaml::to_string(&lines).map_err(io::Error::other)?;
                output.machine(&(std::mem::take(&mut head).to_owned() + &lines))?;
            }
            let head = if head.is_empty() { "" } else { "schema_version: 1\nmessages: []\n" };
            output.machine(&format!("{head}selected: {}\n", selected(&filter)?))?;
        }
        OutputFormat::Table => {
            let mut shown = 0;
            while let Some(lines) = pages.next()? {
                shown += lines.len();
                output.show(&lines_text(renderer, &lines))?;
            }
            let more = "more with --limit, others with --newest or filters";
            match store {
                None => output.show(&Shown::line(nothing(true)))?,
                Some(store) if shown == 0 => output.show(&Shown::line(&args.selection.nothing(store)?))?,
                Some(_) if shown < limit => {}
                // Counting these takes a look at every message: only whether there is one more.
                Some(store) if counts_slowly(&filter) => {
                    let page = Page { after: pages.after, limit: 1, newest_first: args.newest };
                    if !store.list(&filter, &page)?.is_empty() {
                        let first = format!("the first {}; {more}", count(shown as u64, "message"));
                        output.show(&Shown::line(&first))?;
                    }
                }
                Some(_) => {
                    let selected = selected(&filter)?;
                    if (shown as u64) < selected {
                        output.show(&Shown::line(&format!("{shown} of {selected} messages; {more}")))?;
                    }
                }
            }
        }
    }
    Ok(output.flush()?)
}

/// Says whether the store has no count of what this selects at hand.
fn counts_slowly(filter: &Filter) -> bool {
    let coarse = Filter {
        statuses: filter.statuses.clone(),
        types: filter.types.clone(),
        workspaces: filter.workspaces.clone(),
        ..Filter::default()
    };
    *filter != coarse
}

/// Shows messages as they are stored, until interrupted.
fn follow(
    renderer: &Renderer,
    config: &Config,
    store: Option<Arc<dyn Store>>,
    args: &InspectArgs,
    limit: usize,
) -> Result<(), Failure> {
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;
    let filter = args.selection.filter(now_ms());
    let newest = |store: &dyn Store| -> Result<Option<MessageId>, StoreError> {
        let page = Page { after: None, limit: 1, newest_first: true };
        Ok(store.list(&Filter::default(), &page)?.first().map(|listed| listed.id))
    };
    let mut store = store;
    let mut after = store.as_deref().map(newest).transpose()?.flatten();
    let mut left = limit;
    while left > 0 {
        // Nobody can prove it while it is open here.
        let is_unproven = store::unproven(&config.db.value).is_some();
        store = match store {
            Some(_) if is_unproven => None,
            None if !is_unproven => existing_store(config)?,
            as_before => as_before,
        };
        if let Some(store) = store.as_deref() {
            // What is stored from here on is for the next look, so that no look begins further back than this.
            let until = newest(store)?;
            let mut pages = Pages { store: Some(store), filter: filter.clone(), newest: false, left, after };
            while let Some(lines) = pages.next()? {
                for line in lines {
                    match renderer.format() {
                        OutputFormat::Jsonl => Stream::Out.machine(&(exported(Some(store), line)? + "\n"))?,
                        _ => Stream::Out.show(&followed(&line))?,
                    }
                }
            }
            left = pages.left;
            after = after.max(pages.after).max(until);
        }
        if left > 0 && shutdown.sleep(FOLLOW_INTERVAL) {
            return Err(Failure::silent(Exit::Interrupted));
        }
    }
    Ok(())
}

/// One message as a line in columns that need not know the other lines.
fn followed(line: &Line) -> Shown {
    /// Cells of a name on a terminal.
    const NAME_MAX: usize = 40;
    let project = line.project.as_deref().unwrap_or_default();
    let is_short = Stream::Out.is_terminal();
    let name = |text: &str| {
        let text = one_line(text);
        if is_short { elided(&text, NAME_MAX).into_owned() } else { text.into_owned() }
    };
    let text = format!(
        "{}  {:>8}  {:<10}  {}  {:>9}  {}  {}",
        line.accepted_at,
        line.id,
        line.status,
        padded(&name(&type_text(line)), 20),
        size(line.body_bytes),
        name(&line.workspace),
        name(project)
    );
    Shown::line(text.trim_end())
}

/// One message as a line of JSON with its body.
fn exported(store: Option<&dyn Store>, line: Line) -> Result<String, Failure> {
    let message = store.map(|store| store.get(MessageId(line.id))).transpose()?.flatten();
    Ok(json_line(message.as_ref(), line, Undecoded::LeftOut)?)
}

/// One message as a line of JSON, for the export of messages that are about to be dropped.
pub(super) fn export_line(message: StoredMessage) -> Result<String, String> {
    let line = Line { attachment: file(&message), ..line(message.listed.clone()) };
    let exported = json_line(Some(&message), line, Undecoded::AsSent).map_err(|error| error.to_string())?;
    // The file is for people with a terminal, too.
    Ok(json(&exported).into_owned())
}

/// What becomes of a body that can't be decoded, or is too large for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Undecoded {
    /// People are told why.
    LeftOut,
    /// It is in the line as it was sent: the line is all that is left of the message.
    AsSent,
}

fn json_line(message: Option<&StoredMessage>, line: Line, undecoded: Undecoded) -> io::Result<String> {
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
            headers = shown_headers(message);
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
    let line = JsonLine { schema_version: 1, line, headers, body_base64, body_problem };
    let mut text = serde_json::to_string(&line).map_err(io::Error::other)?;
    if let Some(body) = body {
        // As text, because a value of serde_json's would lose digits and lone surrogates.
        text.pop();
        text.extend([",\"body\":", &body, "}"]);
    }
    Ok(text)
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
        answer: listed.answer.map(|answer| Answer { status: answer.status, text: answer.text, at: time(answer.at_ms) }),
    }
}

/// Returns what is known of a message's file; `None` for messages that have none.
fn file(message: &StoredMessage) -> Option<File> {
    let attachment = message.listed.attachment?;
    let content = message.request.body.decode(FILE_BODY_BYTES_MAX).ok()?;
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

fn lines_text(renderer: &Renderer, lines: &[Line]) -> Shown {
    let now = now_ms();
    let mut table =
        renderer.table(&[">id", "status", "…type", "…workspace", "…project", ">size", ">age", "<last answer"]);
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
    table.shown()
}

/// The type, and of an attachment the name of its file.
fn type_text(line: &Line) -> String {
    let name = line.message_type.trim_end_matches("Message");
    match &line.attachment {
        Some(file) => format!("{name} {}", file.name),
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

fn whole(message: StoredMessage, format: OutputFormat) -> Whole {
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
        Ok(Some(text)) if format == OutputFormat::Yaml && text.len() > YAML_BYTES_MAX => {
            (None, Some(format!("the body is larger than {YAML_BYTES_MAX} bytes; --format json shows it")))
        }
        Ok(Some(text)) => (Some(text), None),
        Ok(None) => (None, Some("the body is not text".to_owned())),
        Err(problem) => (None, Some(problem)),
    };
    let headers = shown_headers(&message);
    let attachment = file(&message);
    let line = Line { attachment, ..line(message.listed) };
    Whole { schema_version: 1, headers, line, services, body, body_problem }
}

fn shown_headers(message: &StoredMessage) -> Vec<Header> {
    let shown = |(name, value): (&str, &[u8])| {
        let is_shown = SHOWN_HEADERS.contains(&name.to_ascii_lowercase().as_str());
        let value = if is_shown { String::from_utf8_lossy(value).into_owned() } else { "***".to_owned() };
        Header { name: name.to_owned(), value }
    };
    message.request.headers.iter().map(shown).collect()
}

/// Writes a message for people, its body piece by piece.
fn write_whole(output: &mut Output, renderer: &Renderer, whole: &Whole) -> io::Result<()> {
    output.show(&head(whole))?;
    match (&whole.body, &whole.body_problem) {
        (Some(body), _) => {
            let written = pretty_to(body, |piece| {
                let mut shown = Shown::default();
                // A pipe gets what was sent; a terminal would obey what is in it.
                match () {
                    () if renderer.is_colored() && !piece.is_cut => shown.add(&colored_json(piece.text)),
                    () if Stream::Out.is_terminal() => shown.add_json(piece.text),
                    () => shown.add_as_sent(piece.text),
                }
                output.show(&shown)
            });
            let as_sent = |output: &mut Output, piece: &str| {
                let mut shown = Shown::default();
                shown.add_as_sent(piece);
                output.show(&shown)
            };
            match written {
                Some(result) => result?,
                None => pieces(body).try_for_each(|piece| as_sent(output, piece))?,
            }
        }
        (None, problem) => {
            let mut shown = Shown::default();
            shown.add_text(problem.as_deref().unwrap_or("no body"));
            output.show(&shown)?;
        }
    }
    let mut end = Shown::default();
    end.end_line();
    output.show(&end)?;
    output.flush()
}

/// Returns a text in pieces of some KB.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    const PIECE_BYTES: usize = 64 * 1024;
    std::iter::from_fn(move || {
        let end = (0..=PIECE_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn head(whole: &Whole) -> Shown {
    let line = &whole.line;
    let mut shown = Shown::default();
    let mut row = |name: &str, value: &str| shown.add_line(&format!("{name:<13} {value}"));
    row("id", &line.id.to_string());
    row("status", line.status);
    row("type", line.message_type);
    row("request", &format!("{} {}", line.method, line.path));
    if let Some(server) = &line.server {
        row("server", server);
    }
    row("workspace", &line.workspace);
    if let Some(project) = &line.project {
        row("project", project);
    }
    if let Some(services) = whole.services.as_ref().filter(|services| !services.is_empty()) {
        row("services", &services.join(", "));
    }
    if let Some(file) = &line.attachment {
        row("file", &file.name);
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
        // As many lines as the server sent, each of them in its column.
        answer.text.lines().for_each(|words| row("", words));
    }
    if line.status == MessageStatus::Rejected.name() {
        let id = line.id;
        row("what to do", &format!("when the cause is mended: `opik-offline replay --id {id}`"));
        row("", &format!("to give it up: `opik-offline purge --id {id}`"));
    }
    for Header { name, value } in &whole.headers {
        row("header", &format!("{name}: {value}"));
    }
    shown.end_line();
    shown
}
