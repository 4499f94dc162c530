//! `opik-offline inspect`

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};

use super::fleet::{self, FleetInspection};
use super::selection::{SelectionArgs, number, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, stop_on_signals, translate};
use crate::config::{Config, ProcessEnvironment, pager};
use crate::export::{
    BodySearch, Follower, ListedMessage, MessagePages, WholeMessage, is_counted_slowly, json_line, whole,
};
use crate::figures::{Clock, count, separated};
use crate::message::MessageId;
use crate::protocol::json::pretty_to;
use crate::report::messages::{MessageColumns, column_names, followed, followed_heading, head};
use crate::report::totals::{TotalsBy, TotalsReport};
use crate::shutdown::Shutdown;
use crate::store::{self, Filter, Page, Store, StoreError, StoredMessage, now_ms};
use crate::takeover::named_message::NamedMessage;
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
  List what was written about a customer, with names, traces, items and attempts:
    opik-offline inspect --search 'ACME Ltd' -o wide
  Count the messages of each project:
    opik-offline inspect --totals project
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
    #[arg(value_name = "ID", value_parser = NamedMessage::parse, conflicts_with_all = ["status", "rejected", "types", "workspace", "server", "project", "ids", "trace", "older_than", "newer_than"])]
    id: Option<NamedMessage>,

    /// List what a Python process left behind in this file
    ///
    /// The file is not changed.
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["id", "newest", "status", "rejected", "types", "workspace", "server", "project", "ids", "trace", "older_than", "newer_than"])]
    from: Option<PathBuf>,

    /// As root, read a file of this user (name or number)
    #[arg(long, value_name = "USER", requires = "from", hide_short_help = true, value_hint = clap::ValueHint::Username)]
    owner: Option<String>,

    /// List at most this many; 0 lists all [default: 50]
    #[arg(long, value_name = "N", value_parser = number)]
    limit: Option<u64>,

    /// List the newest messages first
    #[arg(long)]
    newest: bool,

    /// List only messages with this text in their body
    ///
    /// Upper and lower case differ. Each selected body is decoded and read; the files of attachments are not.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), conflicts_with_all = ["id", "from", "follow"])]
    search: Option<String>,

    /// Show these columns of the list, separated by commas; -o wide shows more of them
    #[arg(long, value_name = "NAMES", value_delimiter = ',', hide_short_help = true, value_parser = PossibleValuesParser::new(column_names()), conflicts_with_all = ["id", "from", "follow"])]
    columns: Vec<String>,

    /// Count the selected messages by this instead of listing them
    #[arg(long, value_name = "BY", value_enum, hide_short_help = true, conflicts_with_all = ["id", "from", "follow", "limit", "newest", "search", "columns"])]
    totals: Option<TotalsBy>,

    /// Show times in UTC instead of relative to now
    #[arg(long, hide_short_help = true)]
    utc: bool,

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

impl ValueEnum for TotalsBy {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl InspectArgs {
    /// Rejects options that read a store, which a depot is not.
    fn refuse_local_options(&self) -> Result<(), Failure> {
        let local = [
            (self.search.is_some(), "--search"),
            (!self.columns.is_empty(), "--columns"),
            (self.totals.is_some(), "--totals"),
        ];
        match local.into_iter().find(|(is_given, _)| *is_given) {
            None => Ok(()),
            Some((_, option)) => Err(Failure::new(
                Exit::Usage,
                format!("{option} is for a store, and --fleet names a depot"),
                Some("leave one of them out"),
            )),
        }
    }

    fn clock(&self) -> Clock {
        Clock { now_ms: now_ms(), is_utc: self.utc }
    }
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
        args.refuse_local_options()?;
        let (id, selection) = (args.id, &args.selection);
        let order = FleetInspection { id, selection, limit, newest: args.newest, identities: &args.identity };
        return match fleet::inspect(common, &config, &order)? {
            None => Ok(()),
            Some(message) => {
                let mut output = Output::direct();
                let shown = show_whole(&renderer, &mut output, message, args.clock());
                shown.and(output.finish().map_err(Failure::from))
            }
        };
    }
    if !args.follow {
        translate::check_named_store(&config)?;
    }
    let store = translate::existing_store(&config)?;
    if let Some(by) = args.totals {
        return totals(common, store.as_deref(), args, by);
    }
    if args.follow {
        if store.is_none() && !common.quiet {
            let path = config.db.value.display();
            progress::say(&format!("there is no message store at {path} yet: waiting for the first message in it"));
        }
        return follow(&renderer, &config, store, args.selection.filter(now_ms()), limit);
    }
    let is_paged = !args.no_pager && common.format.is_for_people();
    let mut output = Output::start(is_paged.then(|| pager(&ProcessEnvironment)).flatten())?;
    let shown = match args.id {
        Some(NamedMessage::Stored(id)) => {
            let message = stored(store.as_deref(), MessageId(id), &config);
            message.and_then(|message| show_whole(&renderer, &mut output, message, args.clock()))
        }
        Some(NamedMessage::InStream(..)) => {
            let hint = "name the depot: `opik-offline inspect --fleet URL STREAM/ID`";
            Err(Failure::new(Exit::Usage, "a message of a stream is in a depot", Some(hint)))
        }
        None => {
            let filter = args.selection.filter(now_ms());
            let columns = MessageColumns::of(&args.columns, common.format == OutputFormat::Wide, args.utc);
            let search = args.search.as_deref().map(BodySearch::new);
            let list =
                MessageList { renderer: &renderer, store: store.as_deref(), args, filter, limit, columns, search };
            list.write(&mut output)
        }
    };
    // No process waits for the store while its contents are read in a pager.
    drop(store);
    // Quitting a pager early is not an error, and an open pager is waited for in any case.
    let finished = output.finish().map_err(Failure::from);
    shown.and(finished)
}

/// `inspect --totals`
fn totals(common: &Common, store: Option<&dyn Store>, args: &InspectArgs, by: TotalsBy) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let report = TotalsReport::read(store, &args.selection.filter(now_ms()), by)?;
    let none = match store.filter(|_| report.is_empty()) {
        Some(store) => args.selection.nothing(store)?,
        None => nothing(true).to_owned(),
    };
    Ok(common.renderer().result(&report, |renderer, report| match report.is_empty() {
        true => Shown::line(&none),
        false => report.text(renderer),
    })?)
}

/// Returns a message of the store.
fn stored(store: Option<&dyn Store>, id: MessageId, config: &Config) -> Result<StoredMessage, Failure> {
    let message = store.map(|store| store.get(id)).transpose()?.flatten();
    message.ok_or_else(|| {
        let path = config.db.value.display();
        Failure::new(
            Exit::Failure,
            format!("there is no message {id} in {path}"),
            Some(
                "it was delivered or purged, or it is in another store (--db); `opik-offline inspect` lists the stored messages",
            ),
        )
    })
}

fn show_whole(renderer: &Renderer, output: &mut Output, message: StoredMessage, clock: Clock) -> Result<(), Failure> {
    let mut whole = whole(message);
    if renderer.format() == OutputFormat::Yaml && whole.body.as_ref().is_some_and(|body| body.len() > YAML_BYTES_MAX) {
        whole.body = None;
        whole.body_problem = Some(format!("the body is larger than {YAML_BYTES_MAX} bytes; --format json shows it"));
    }
    match renderer.format() {
        OutputFormat::Table => {
            output.show(&head(renderer, &whole, clock))?;
            Ok(write_body(output, renderer, &whole)?)
        }
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
    columns: MessageColumns,
    search: Option<BodySearch>,
}

impl MessageList<'_> {
    fn write(&self, output: &mut Output) -> Result<(), Failure> {
        match self.renderer.format() {
            OutputFormat::Jsonl => self.write_json_lines(output)?,
            OutputFormat::Json => self.write_json(output)?,
            OutputFormat::Yaml => self.write_yaml(output)?,
            OutputFormat::Table | OutputFormat::Wide => self.write_table(output)?,
        }
        Ok(output.flush()?)
    }

    fn pages(&self) -> MessagePages<'_> {
        MessagePages {
            newest: self.args.newest,
            search: self.search.as_ref(),
            has_subjects: self.renderer.format() == OutputFormat::Table && self.columns.has_subjects(),
            ..MessagePages::new(self.store, self.filter.clone(), self.limit)
        }
    }

    /// Counts the selected messages, listed or not; of those that were searched for, only the listed ones are known.
    fn selected(&self, listed: usize) -> Result<u64, StoreError> {
        match self.store {
            Some(store) if self.search.is_none() => Ok(store.backlog(&self.filter)?.messages()),
            _ => Ok(listed as u64),
        }
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
        let mut listed = 0;
        let mut pages = self.pages();
        while let Some(lines) = pages.next_page()? {
            listed += lines.len();
            let mut page = String::new();
            for line in &lines {
                let line = serde_json::to_string_pretty(line).map_err(io::Error::other)?;
                page.extend([separator, "    ", &line.replace('\n', "\n    ")]);
                separator = ",\n";
            }
            output.machine(&page)?;
        }
        let end = if separator == "\n" { "" } else { "\n  " };
        Ok(output.machine(&format!("{end}],\n  \"selected\": {}\n}}\n", self.selected(listed)?))?)
    }

    fn write_yaml(&self, output: &mut Output) -> Result<(), Failure> {
        let mut head = "schema_version: 1\nmessages:\n";
        let mut listed = 0;
        let mut pages = self.pages();
        while let Some(lines) = pages.next_page()? {
            listed += lines.len();
            let lines = yaml::to_string(&lines).map_err(io::Error::other)?;
            output.machine(&(std::mem::take(&mut head).to_owned() + &lines))?;
        }
        let head = if head.is_empty() { "" } else { "schema_version: 1\nmessages: []\n" };
        Ok(output.machine(&format!("{head}selected: {}\n", self.selected(listed)?))?)
    }

    fn write_table(&self, output: &mut Output) -> Result<(), Failure> {
        let (mut shown, mut is_cut) = (0, false);
        let mut pages = self.pages();
        while let Some(lines) = pages.next_page()? {
            shown += lines.len();
            let (table, is_page_cut) = self.columns.table(self.renderer, &lines, self.args.clock());
            is_cut |= is_page_cut;
            output.show(&table)?;
        }
        if is_cut {
            output.show(&Shown::line("rows are cut at the edge of the terminal: --columns chooses what is shown"))?;
        }
        let more = "more with --limit, others with --newest or filters";
        let rest = match self.store {
            None => Some(nothing(true).to_owned()),
            Some(_) if shown == 0 && self.search.is_some() => Some("no selected body has this text".to_owned()),
            Some(store) if shown == 0 => Some(self.args.selection.nothing(store)?),
            Some(_) if shown < self.limit => None,
            Some(_) if self.search.is_some() => {
                Some(format!("the first {} with this text; {more}", count(shown as u64, "message")))
            }
            Some(store) if is_counted_slowly(&self.filter) => {
                let page = Page { after: pages.after, limit: 1, newest_first: self.args.newest };
                let is_complete = store.list(&self.filter, &page)?.is_empty();
                (!is_complete).then(|| format!("the first {}; {more}", count(shown as u64, "message")))
            }
            Some(_) => {
                let (shown, selected) = (shown as u64, self.selected(shown)?);
                (shown < selected).then(|| format!("{} of {}; {more}", separated(shown), count(selected, "message")))
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
    if renderer.format() == OutputFormat::Table {
        OutputStream::Out.show(&followed_heading(renderer))?;
    }
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

/// Writes the body of a message for people, piece by piece.
fn write_body(output: &mut Output, renderer: &Renderer, whole: &WholeMessage) -> io::Result<()> {
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
