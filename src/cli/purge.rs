//! `opik-offline purge`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::fleet::{self, FleetPurgeOrder};
use super::selection::{SelectionArgs, refuse_jsonl, stream};
use super::{Common, Exit, Failure, configuration, confirm, stop_on_signals, translate};
use crate::figures::{count, size};
use crate::fleet::names::StreamId;
use crate::hint;
use crate::printable;
use crate::report::groups::{GroupRow, groups, oldest, preview_text, servers_text, sums_text};
use crate::shutdown::Shutdown;
use crate::store::{self, Filter, Purged, Store, StoreError, now_ms};
use crate::takeover::purging::PurgeSelection;
use crate::terminal::progress::ProgressDisplay;
use crate::terminal::render::{Renderer, nothing};
use crate::terminal::{Shown, is_interactive};

const AFTER_HELP: &str = "\
Examples:
  See what would be deleted:
    opik-offline purge --rejected --older-than 7d --dry-run
  Delete messages of the fleet's depot, and of the agents and replayers that own them:
    opik-offline purge --fleet s3://BUCKET/PREFIX --identity KEYFILE --workspace scratch --dry-run
  Delete it without confirmation, from cron:
    opik-offline purge --rejected --older-than 7d --yes

Exit codes:
  0    Deleted, or nothing was selected
  1    Failure, or the deletion was not confirmed
  2    Invalid usage, no store at --db, or no terminal to ask on and no --yes
  3    With --fleet: the depot can't be reached
  5    With --fleet: the depot refuses the credentials
  130  Interrupted; messages not deleted yet are still stored";

/// Delete stored messages permanently
///
/// Without a filter, all messages are selected. On a terminal it asks first; elsewhere --yes is required. Messages that
/// a replay is sending at the moment are kept. The freed space is returned to the file system.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct PurgeArgs {
    /// Show what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,

    /// Delete without asking
    #[arg(short, long)]
    yes: bool,

    /// With --fleet: only messages of this stream; without another filter all of it, readable or not
    #[arg(long, value_name = "STREAM", value_parser = stream, hide_short_help = true)]
    stream: Vec<StreamId>,

    /// With --fleet: open what is sealed with the secret key in this file
    #[arg(long, value_name = "KEYFILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    identity: Vec<PathBuf>,

    #[command(flatten)]
    selection: SelectionArgs,
}

/// The result of a purge or its dry run.
#[derive(Serialize, Default)]
struct PurgeReport {
    schema_version: u32,
    dry_run: bool,
    messages: u64,
    items: u64,
    body_bytes: u64,
    /// The selected messages, before anything was deleted.
    groups: Vec<GroupRow>,
    /// When the oldest of them was accepted.
    oldest_accepted_at: Option<String>,
    /// Selected messages that are still stored.
    remaining: u64,
    /// Size of the store's files afterwards, in bytes.
    file_bytes: Option<u64>,
    /// Whether messages wait for a refused create, which may be among the deleted messages.
    #[serde(skip)]
    frees_others: bool,
}

/// Messages deleted per commit: few enough that intake never waits for a purge.
const PURGE_STEP: usize = 1000;

pub(super) fn run(common: &Common, args: &PurgeArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    if common.fleet.is_some() {
        let asked_ms = now_ms();
        let filter = args.selection.filter(asked_ms);
        let selection = PurgeSelection { streams: args.stream.clone(), filter, asked_ms };
        let order = FleetPurgeOrder { selection, identities: &args.identity, dry_run: args.dry_run, yes: args.yes };
        return fleet::purge(common, &config, &order);
    }
    if !args.stream.is_empty() || !args.identity.is_empty() {
        let hint = "name the depot: --fleet s3://BUCKET/PREFIX";
        return Err(Failure::new(Exit::Usage, "--stream and --identity are for a depot", Some(hint)));
    }
    translate::check_named_store(&config)?;
    let renderer = common.renderer();
    let filter = args.selection.filter(now_ms());
    let nothing_done = PurgeReport { schema_version: 1, dry_run: args.dry_run, ..PurgeReport::default() };
    // Deleting writes to the store, so it has to be proven.
    if !args.dry_run {
        store::prove(&config.db.value)?;
    }
    let Some(store) = translate::existing_store_without_key(&config)? else {
        return Ok(renderer.result(&nothing_done, |_, _| Shown::line(nothing(true)))?);
    };
    let would = selected(store.as_ref(), &filter)?;
    if would.messages == 0 {
        let why = args.selection.nothing(store.as_ref())?;
        return Ok(renderer.result(&nothing_done, |_, _| Shown::line(&why))?);
    }
    if args.dry_run {
        return Ok(renderer.result(&would, preview)?);
    }
    if !args.yes {
        ask(&renderer, &would)?;
    }
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;
    let mut progress = ProgressDisplay::new(common.quiet);
    progress.start(would.messages);
    let purged = purge_all(store.as_ref(), &filter, would.messages, &progress, &shutdown);
    progress.finish();
    let purged = purged?;
    let was_interrupted = shutdown.is_requested();
    // Skipped after an interruption: compacting may take a while, and nothing is lost without it.
    let file_bytes = if was_interrupted { None } else { Some(store.compact()?) };
    let remaining = store.backlog(&filter)?.messages();
    let report = PurgeReport {
        dry_run: false,
        messages: purged.messages,
        items: purged.items,
        body_bytes: purged.body_bytes,
        remaining,
        file_bytes,
        ..would
    };
    if common.prints_summary() {
        renderer.result(&report, |_, report| summary(report, was_interrupted))?;
    }
    if was_interrupted { Err(Failure::silent(Exit::Interrupted)) } else { Ok(()) }
}

/// Returns what would be deleted.
fn selected(store: &dyn Store, filter: &Filter) -> Result<PurgeReport, StoreError> {
    let selected = store.backlog(filter)?;
    let messages = selected.messages();
    if messages == 0 {
        return Ok(PurgeReport::default());
    }
    let oldest_accepted_at = match oldest(store, filter) {
        // Messages can be purged without the key, to free space.
        Err(StoreError::KeyMissing { .. } | StoreError::WrongKey { .. }) => None,
        oldest => oldest?,
    };
    let is_refused_selected = selected.rejected() + selected.held() > 0;
    Ok(PurgeReport {
        schema_version: 1,
        dry_run: true,
        messages,
        items: selected.groups.iter().map(|group| group.items).sum(),
        body_bytes: selected.groups.iter().map(|group| group.body_bytes).sum(),
        groups: groups(&selected),
        oldest_accepted_at,
        remaining: messages,
        file_bytes: None,
        frees_others: is_refused_selected && store.stranded().is_ok_and(|stranded| !stranded.is_empty()),
    })
}

fn preview(renderer: &Renderer, would: &PurgeReport) -> Shown {
    let mut shown =
        Shown::line(&format!("would delete {} for {}", sums_text(&would.groups), servers_text(&would.groups)));
    shown.end_line();
    shown.add(&preview_text(renderer, &would.groups, would.oldest_accepted_at.as_deref()));
    shown.add_lines(freed(would));
    shown
}

/// Returns what becomes of messages that wait for deleted ones.
fn freed(would: &PurgeReport) -> &'static str {
    match would.frees_others {
        true => "\nupdates, scores and spans that wait for these creates will be sent without them\n",
        false => "",
    }
}

fn summary(report: &PurgeReport, was_interrupted: bool) -> Shown {
    let (messages, server) = (count(report.messages, "message"), servers_text(&report.groups));
    let deleted = format!("deleted {messages} ({}) for {}", size(report.body_bytes), printable::line(&server));
    let takes = report.file_bytes.map_or(String::new(), |bytes| format!("; the store takes {} now", size(bytes)));
    let left = match report.remaining {
        0 => String::new(),
        left if was_interrupted => {
            format!("interrupted: {} of the selection still stored; run it again to continue\n", count(left, "message"))
        }
        left => format!(
            "{} kept: a replay is sending {}, or {} arrived in the meantime; see {}\n",
            count(left, "message"),
            if left == 1 { "it" } else { "them" },
            if left == 1 { "it" } else { "they" },
            hint::command("status"),
        ),
    };
    Shown::lines(&format!("{deleted}{takes}\n{left}"))
}

/// Asks for confirmation on a terminal; fails unless the answer is yes.
fn ask(renderer: &Renderer, would: &PurgeReport) -> Result<(), Failure> {
    let what = format!("{} for {}", sums_text(&would.groups), servers_text(&would.groups));
    if !is_interactive() {
        let message = format!("purge would delete {what}, and there is no terminal to ask on");
        return Err(Failure::new(Exit::Usage, message, Some("check with --dry-run, then add --yes")));
    }
    let mut question = preview_text(renderer, &would.groups, would.oldest_accepted_at.as_deref());
    question.add_lines(freed(would));
    question.end_line();
    question.add(&super::question(&format!("permanently delete {what}? [y/N] ")));
    confirm(&question, Failure::new(Exit::Failure, "nothing was deleted", Some("answer y to delete")))
}

/// Deletes in steps of one commit each, until no selected message is left or the user interrupts.
fn purge_all(
    store: &dyn Store,
    filter: &Filter,
    messages: u64,
    progress: &ProgressDisplay,
    shutdown: &Shutdown,
) -> Result<Purged, Failure> {
    let mut total = Purged::default();
    while !shutdown.is_requested() {
        let step = store.purge(filter, PURGE_STEP)?;
        if step.messages == 0 {
            break;
        }
        total.messages += step.messages;
        total.items += step.items;
        total.body_bytes += step.body_bytes;
        progress.at(total.messages, messages);
    }
    Ok(total)
}
