//! `opik-offline inspect`

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::fleet::{self, FleetInspection};
use super::selection::{NamedMessage, SelectionArgs, named_message, number};
use super::{Common, Exit, Failure, configuration, stop_on_signals, translate};
use crate::config::{Config, ProcessEnvironment, pager};
use crate::export::{
    ExportedHeader, Follower, ListedAnswer, ListedMessage, MessagePages, WholeMessage, is_counted_slowly, json_line,
    whole,
};
use crate::figures::{count, short_duration, size};
use crate::hint;
use crate::message::{MessageId, MessageStatus};
use crate::printable::{elided, line as one_line, padded};
use crate::protocol::json::pretty_to;
use crate::shutdown::Shutdown;
use crate::store::{self, Filter, Page, Store, StoreError, StoredMessage, now_ms};
use crate::terminal::pager::Output;
use crate::terminal::progress;
use crate::terminal::render::{OutputFormat, Renderer, colored_json, nothing};
use crate::terminal::{OutputStream, Shown, yaml};

const AFTER_HELP: &str = "\
Examples:
  List the oldest stored messages, or the rejected ones:
    opik-offline inspect
    opik-offline inspect --rejected
  Show one message in full, with the server's last answer:
    opik-offline inspect 42
  List what a killed Python process left behind:
    opik-offline inspect --from /tmp/tmp1a2b3c4d/opik_messages.db
  Export everything about one trace, bodies included, as JSON lines:
    opik-offline inspect --trace UUID --limit 0 --format jsonl
  List the messages in the fleet's depot, or show one of them in full:
    opik-offline inspect --fleet s3://BUCKET/PREFIX --identity KEYFILE --workspace team
    opik-offline inspect --fleet s3://BUCKET/PREFIX --identity KEYFILE STREAM/ID
  Watch what an application writes during an outage:
    opik-offline inspect --follow --workspace team

JSON lines:
  --format jsonl writes one message per line with its headers and its decoded body: as JSON in body, or if it is not JSON \
(protobuf, a bare NaN) as base64 in body_base64. The bytes of attachments are not included. To deliver messages from \
another machine, copy the store, not this export.

Exit codes:
  0    Shown
  1    The message does not exist, or the store can't be read
  2    Invalid usage or configuration, or no store at --db
  3    With --fleet: the depot can't be reached
  5    With --fleet: the depot refuses the credentials
  130  Interrupted (--follow)

Environment:
  PAGER shows long results on a terminal [default: less -FRX]; empty or cat disables it.";

/// List stored messages, or show one in full
///
/// The oldest messages come first. API keys and tokens are never shown; header values are shown only if they are
/// harmless.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct InspectArgs {
    /// Show this message in full
    #[arg(value_name = "ID", value_parser = named_message, conflicts_with_all = ["status", "rejected", "types", "workspace", "server", "project", "ids", "trace", "older_than", "newer_than"])]
    id: Option<NamedMessage>,

    /// List what a Python process left behind in this file
    ///
    /// The file is not changed.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["id", "newest", "status", "rejected", "types", "workspace", "server", "project", "ids", "trace", "older_than", "newer_than"])]
    from: Option<PathBuf>,

    /// As root, read a file of this user (name or number)
    #[arg(long, value_name = "USER", requires = "from", hide_short_help = true, value_hint = clap::ValueHint::Username)]
    owner: Option<String>,

    /// List at most this many messages; 0 lists all [default: 50]
    #[arg(long, value_name = "N", value_parser = number)]
    limit: Option<u64>,

    /// List the newest messages first
    #[arg(long)]
    newest: bool,

    /// Show new messages as they are stored
    ///
    /// Runs until interrupted or until --limit is reached. A message that is delivered immediately may not be shown.
    #[arg(long, conflicts_with_all = ["id", "from", "newest", "older_than", "newer_than"])]
    follow: bool,

    /// Show long results without a pager
    #[arg(long, hide_short_help = true)]
    no_pager: bool,

    /// With --fleet: open what is sealed with the secret key in this file
    #[arg(long, value_name = "KEYFILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    identity: Vec<PathBuf>,

    #[command(flatten)]
    selection: SelectionArgs,
}

/// Bytes of JSON lines that are buffered for one write.
const WRITTEN_BYTES: usize = 64 * 1024;
/// Messages listed by default.
const LIMIT: usize = 50;
/// How often `--follow` polls for new messages: one look-up by the primary key.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// Bodies larger than this are not written as YAML, whose writer has several copies of a text in memory.
const YAML_BYTES_MAX: usize = 16 * 1024 * 1024;

pub(super) fn run(common: &Common, args: &InspectArgs) -> Result<(), Failure> {
    if args.follow && matches!(common.format, OutputFormat::Json | OutputFormat::Yaml) {
        return Err(Failure::new(
            Exit::Usage,
            "--follow never ends, so it can't write a single document",
            Some("use --format jsonl, which writes one document per line"),
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
    if common.fleet.is_some() {
        let (id, selection) = (args.id, &args.selection);
        let order = FleetInspection { id, selection, limit, newest: args.newest, identities: &args.identity };
        return match fleet::inspect(common, &config, &order)? {
            None => Ok(()),
            Some(message) => {
                let mut output = Output::direct();
                let shown = show_whole(&renderer, &mut output, message);
                shown.and(output.finish().map_err(Failure::from))
            }
        };
    }
    if !args.follow {
        translate::check_named_store(&config)?;
    }
    let store = translate::existing_store(&config)?;
    if args.follow {
        if store.is_none() && !common.quiet {
            let path = config.db.value.display();
            progress::say(&format!("there is no message store at {path} yet: waiting for the first message in it"));
        }
        return follow(&renderer, &config, store, args.selection.filter(now_ms()), limit);
    }
    let is_paged = !args.no_pager && common.format == OutputFormat::Table;
    let mut output = Output::start(is_paged.then(|| pager(&ProcessEnvironment)).flatten())?;
    let shown = match args.id {
        Some(NamedMessage::Stored(id)) => show(&renderer, &mut output, store.as_deref(), MessageId(id), &config),
        Some(NamedMessage::InStream(..)) => {
            let hint = "name the depot: `opik-offline inspect --fleet URL STREAM/ID`";
            Err(Failure::new(Exit::Usage, "a message of a stream is in a depot", Some(hint)))
        }
        None => {
            let filter = args.selection.filter(now_ms());
            let list = MessageList { renderer: &renderer, store: store.as_deref(), args, filter, limit };
            list.write(&mut output)
        }
    };
    // No process waits for the store while its contents are read in a pager.
    drop(store);
    // Quitting a pager early is not an error, and an open pager is waited for in any case.
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
                "it was delivered or purged, or it is in another store (--db); `opik-offline inspect` lists the stored messages",
            ),
        ));
    };
    show_whole(renderer, output, message)
}

fn show_whole(renderer: &Renderer, output: &mut Output, message: StoredMessage) -> Result<(), Failure> {
    let mut whole = whole(message);
    if renderer.format() == OutputFormat::Yaml && whole.body.as_ref().is_some_and(|body| body.len() > YAML_BYTES_MAX) {
        whole.body = None;
        whole.body_problem = Some(format!("the body is larger than {YAML_BYTES_MAX} bytes; --format json shows it"));
    }
    match renderer.format() {
        OutputFormat::Table => Ok(write_whole(output, renderer, &whole)?),
        _ => Ok(renderer.result_to(output, &whole, |_, _| Shown::default())?),
    }
}

/// A list of messages in one of the formats. JSON and YAML are written piece by piece as their serializers would write
/// the whole document, because a list may be long.
struct MessageList<'a> {
    renderer: &'a Renderer,
    store: Option<&'a dyn Store>,
    args: &'a InspectArgs,
    filter: Filter,
    limit: usize,
}

impl<'a> MessageList<'a> {
    fn write(&self, output: &mut Output) -> Result<(), Failure> {
        match self.renderer.format() {
            OutputFormat::Jsonl => self.write_json_lines(output)?,
            OutputFormat::Json => self.write_json(output)?,
            OutputFormat::Yaml => self.write_yaml(output)?,
            OutputFormat::Table => self.write_table(output)?,
        }
        Ok(output.flush()?)
    }

    fn pages(&self) -> MessagePages<'a> {
        let (filter, newest) = (self.filter.clone(), self.args.newest);
        MessagePages { store: self.store, filter, newest, left: self.limit, after: None }
    }

    /// Counts the selected messages, listed or not.
    fn selected(&self) -> Result<u64, StoreError> {
        self.store.map_or(Ok(0), |store| store.backlog(&self.filter).map(|backlog| backlog.messages()))
    }

    fn write_json_lines(&self, output: &mut Output) -> Result<(), Failure> {
        let mut pages = self.pages();
        while let Some(lines) = pages.next_page()? {
            // Neither a write for each of a million lines, nor a page of bodies in memory.
            let mut pending = String::new();
            for line in lines {
                match exported(self.store, line) {
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
        Ok(())
    }

    fn write_json(&self, output: &mut Output) -> Result<(), Failure> {
        output.machine("{\n  \"schema_version\": 1,\n  \"messages\": [")?;
        let mut separator = "\n";
        let mut pages = self.pages();
        while let Some(lines) = pages.next_page()? {
            let mut page = String::new();
            for line in &lines {
                let line = serde_json::to_string_pretty(line).map_err(io::Error::other)?;
                page.extend([separator, "    ", &line.replace('\n', "\n    ")]);
                separator = ",\n";
            }
            output.machine(&page)?;
        }
        let end = if separator == "\n" { "" } else { "\n  " };
        Ok(output.machine(&format!("{end}],\n  \"selected\": {}\n}}\n", self.selected()?))?)
    }

    fn write_yaml(&self, output: &mut Output) -> Result<(), Failure> {
        let mut head = "schema_version: 1\nmessages:\n";
        let mut pages = self.pages();
        while let Some(lines) = pages.next_page()? {
            let lines = yaml::to_string(&lines).map_err(io::Error::other)?;
            output.machine(&(std::mem::take(&mut head).to_owned() + &lines))?;
        }
        let head = if head.is_empty() { "" } else { "schema_version: 1\nmessages: []\n" };
        Ok(output.machine(&format!("{head}selected: {}\n", self.selected()?))?)
    }

    fn write_table(&self, output: &mut Output) -> Result<(), Failure> {
        let mut shown = 0;
        let mut pages = self.pages();
        while let Some(lines) = pages.next_page()? {
            shown += lines.len();
            output.show(&lines_text(self.renderer, &lines))?;
        }
        let more = "more with --limit, others with --newest or filters";
        let rest = match self.store {
            None => Some(nothing(true).to_owned()),
            Some(store) if shown == 0 => Some(self.args.selection.nothing(store)?),
            Some(_) if shown < self.limit => None,
            Some(store) if is_counted_slowly(&self.filter) => {
                let page = Page { after: pages.after, limit: 1, newest_first: self.args.newest };
                let is_complete = store.list(&self.filter, &page)?.is_empty();
                (!is_complete).then(|| format!("the first {}; {more}", count(shown as u64, "message")))
            }
            Some(_) => {
                let selected = self.selected()?;
                ((shown as u64) < selected).then(|| format!("{shown} of {selected} messages; {more}"))
            }
        };
        rest.map_or(Ok(()), |rest| Ok(output.show(&Shown::line(&rest))?))
    }
}

/// Shows messages as they are stored, until interrupted or until there were enough.
fn follow(
    renderer: &Renderer,
    config: &Config,
    mut store: Option<Arc<dyn Store>>,
    filter: Filter,
    limit: usize,
) -> Result<(), Failure> {
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;
    let mut follower = Follower::new(store.as_deref(), filter, limit)?;
    while follower.left > 0 {
        // No other process can prove the store while this one has it open.
        let is_unproven = store::unproven(&config.db.value).is_some();
        store = match store {
            Some(_) if is_unproven => None,
            None if !is_unproven => translate::existing_store(config)?,
            as_before => as_before,
        };
        if let Some(store) = store.as_deref() {
            follower.poll(store, |line| -> Result<(), Failure> {
                match renderer.format() {
                    OutputFormat::Jsonl => Ok(OutputStream::Out.machine(&(exported(Some(store), line)? + "\n"))?),
                    _ => Ok(OutputStream::Out.show(&followed(&line))?),
                }
            })?;
        }
        if follower.left > 0 && shutdown.sleep(FOLLOW_INTERVAL) {
            return Err(Failure::silent(Exit::Interrupted));
        }
    }
    Ok(())
}

/// Returns a message as a JSON line with its body.
fn exported(store: Option<&dyn Store>, line: ListedMessage) -> Result<String, Failure> {
    let message = store.map(|store| store.get(MessageId(line.id))).transpose()?.flatten();
    Ok(json_line(message.as_ref(), line).map_err(io::Error::other)?)
}

/// Returns a message as a line whose columns don't depend on other lines.
fn followed(line: &ListedMessage) -> Shown {
    /// Maximum width of a name on a terminal, in cells.
    const NAME_MAX: usize = 40;
    let project = line.project.as_deref().unwrap_or_default();
    let is_short = OutputStream::Out.is_terminal();
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

fn lines_text(renderer: &Renderer, lines: &[ListedMessage]) -> Shown {
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

/// Returns the type, and the file name of an attachment.
fn type_text(line: &ListedMessage) -> String {
    let name = line.message_type.trim_end_matches("Message");
    match &line.attachment {
        Some(file) => format!("{name} {}", file.name),
        None => name.to_owned(),
    }
}

/// Returns the beginning of an answer in one line; of Opik's errors (`{"code":400,"message":"..."}`) the message.
fn answer_text(answer: &ListedAnswer) -> String {
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

/// Writes a message for people, its body piece by piece.
fn write_whole(output: &mut Output, renderer: &Renderer, whole: &WholeMessage) -> io::Result<()> {
    output.show(&head(whole))?;
    match (&whole.body, &whole.body_problem) {
        (Some(body), _) => {
            let written = pretty_to(body, |piece| {
                let mut shown = Shown::default();
                // A pipe gets the body as sent; a terminal would interpret its escape sequences.
                match () {
                    () if renderer.is_colored() && !piece.is_cut => shown.add(&colored_json(piece.text)),
                    () if OutputStream::Out.is_terminal() => shown.add_json(piece.text),
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

/// Splits a text into pieces of at most 64 KiB.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    const PIECE_BYTES: usize = 64 * 1024;
    std::iter::from_fn(move || {
        let end = (0..=PIECE_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn head(whole: &WholeMessage) -> Shown {
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
        // Keeps the server's line breaks, in the second column.
        answer.text.lines().for_each(|words| row("", words));
    }
    if line.status == MessageStatus::Rejected.name() {
        let id = line.id;
        row("what to do", &format!("when the cause is fixed: {}", hint::command(&format!("replay --id {id}"))));
        row("", &format!("to discard it: {}", hint::command(&format!("purge --id {id}"))));
    }
    for ExportedHeader { name, value } in &whole.headers {
        row("header", &format!("{name}: {value}"));
    }
    shown.end_line();
    shown
}
