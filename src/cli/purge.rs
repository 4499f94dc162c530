//! `opik-offline purge`

use clap::Args;
use serde::Serialize;

use super::groups::{Group, groups, oldest, preview_text, sums_text};
use super::selection::{Selection, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, confirm, existing_store_without_key, stop_on_signals};
use crate::figures::{count, size};
use crate::shutdown::Shutdown;
use crate::store::{self, Filter, Purged, Store, StoreError, now_ms};
use crate::terminal::progress::Progress;
use crate::terminal::render::{Renderer, nothing};
use crate::terminal::{Shown, is_interactive};

const AFTER_HELP: &str = "\
Examples:
  See what would go:
    opik-offline purge --rejected --older-than 7d --dry-run
  Delete it without a question, from cron:
    opik-offline purge --rejected --older-than 7d --yes

Exit codes:
  0    Deleted, or nothing was selected
  1    Failure, or the question was answered with no
  2    Wrong usage or configuration, or there was nobody to ask and no --yes
  130  Interrupted; what was not deleted yet is still there";

/// Delete stored messages for good
///
/// Without a filter everything is selected. On a terminal it asks first; elsewhere it needs --yes. Messages that a replay
/// is sending right now are left alone. The space is given back to the disk.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct PurgeArgs {
    /// Show what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,

    /// Delete without asking
    #[arg(short, long)]
    yes: bool,

    #[command(flatten)]
    selection: Selection,
}

/// What was deleted, or would be.
#[derive(Serialize, Default)]
struct Report {
    schema_version: u32,
    dry_run: bool,
    messages: u64,
    items: u64,
    body_bytes: u64,
    /// What was selected, before anything was deleted.
    groups: Vec<Group>,
    /// When the oldest of them was accepted.
    oldest_accepted_at: Option<String>,
    /// What was selected and is still stored.
    remaining: u64,
    /// Bytes of the store's files afterwards.
    file_bytes: Option<u64>,
    /// Whether messages wait for a refused create, which may be among what is deleted.
    #[serde(skip)]
    frees_others: bool,
}

/// Messages deleted in one commit: few enough that intake never waits for a purge.
const PURGE_STEP: usize = 1000;

pub fn run(common: &Common, args: &PurgeArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let filter = args.selection.filter(now_ms());
    let nothing_done = Report { schema_version: 1, dry_run: args.dry_run, ..Report::default() };
    // What is deleted is written, so the store has to be proven.
    if !args.dry_run {
        store::prove(&config.db.value)?;
    }
    let Some(store) = existing_store_without_key(&config)? else {
        return Ok(renderer.result(&nothing_done, |_, _| Shown::line(nothing(true)))?);
    };
    let selected = store.backlog(&filter)?;
    let messages = selected.messages();
    if messages == 0 {
        let why = args.selection.nothing(store.as_ref())?;
        return Ok(renderer.result(&nothing_done, |_, _| Shown::line(&why))?);
    }
    let oldest_accepted_at = match oldest(store.as_ref(), &filter) {
        // Whoever lost the key can still make room.
        Err(StoreError::KeyMissing { .. } | StoreError::WrongKey { .. }) => None,
        oldest => oldest?,
    };
    let would = Report {
        schema_version: 1,
        dry_run: true,
        messages,
        items: selected.groups.iter().map(|group| group.items).sum(),
        body_bytes: selected.groups.iter().map(|group| group.body_bytes).sum(),
        groups: groups(&selected),
        oldest_accepted_at,
        remaining: messages,
        file_bytes: None,
        frees_others: selected.rejected() + selected.held() > 0
            && store.stranded().is_ok_and(|stranded| !stranded.is_empty()),
    };
    if args.dry_run {
        return Ok(renderer.result(&would, preview)?);
    }
    if !args.yes {
        ask(&renderer, &would)?;
    }
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;
    let mut progress = Progress::new(common.quiet);
    progress.start(messages);
    let purged = purge_all(store.as_ref(), &filter, messages, &progress, &shutdown);
    progress.finish();
    let purged = purged?;
    let was_interrupted = shutdown.is_requested();
    // Asked for at once: giving the space back may take a while, and nothing is lost without.
    let file_bytes = if was_interrupted { None } else { Some(store.compact()?) };
    let remaining = store.backlog(&filter)?.messages();
    let report = Report {
        dry_run: false,
        messages: purged.messages,
        items: purged.items,
        body_bytes: purged.body_bytes,
        remaining,
        file_bytes,
        ..would
    };
    if common.tells_what_was_done() {
        renderer.result(&report, |_, report| summary(report, was_interrupted))?;
    }
    if was_interrupted { Err(Failure::silent(Exit::Interrupted)) } else { Ok(()) }
}

fn preview(renderer: &Renderer, would: &Report) -> Shown {
    let mut shown = Shown::line(&format!("would delete {}", sums_text(&would.groups)));
    shown.end_line();
    shown.add(&preview_text(renderer, &would.groups, would.oldest_accepted_at.as_deref()));
    shown.add_lines(freed(would));
    shown
}

/// Says what becomes of messages that wait for what is deleted.
fn freed(would: &Report) -> &'static str {
    match would.frees_others {
        true => "\nupdates, scores and spans that wait for these creates will be sent without them\n",
        false => "",
    }
}

fn summary(report: &Report, was_interrupted: bool) -> Shown {
    let deleted = format!("deleted {} ({})", count(report.messages, "message"), size(report.body_bytes));
    let takes = report.file_bytes.map_or(String::new(), |bytes| format!("; the store takes {} now", size(bytes)));
    let left = match report.remaining {
        0 => String::new(),
        left if was_interrupted => {
            format!("interrupted: {} of the selection still stored; run it again to go on\n", count(left, "message"))
        }
        left => format!(
            "{} left alone: a replay is sending {}, or {} came meanwhile; look with `opik-offline status`\n",
            count(left, "message"),
            if left == 1 { "it" } else { "them" },
            if left == 1 { "it" } else { "they" },
        ),
    };
    Shown::lines(&format!("{deleted}{takes}\n{left}"))
}

/// Asks a person on a terminal; anything else than yes ends the command.
fn ask(renderer: &Renderer, would: &Report) -> Result<(), Failure> {
    let what = sums_text(&would.groups);
    if !is_interactive() {
        let message = format!("purge would delete {what}, and there is nobody to ask");
        return Err(Failure::new(Exit::Usage, message, Some("look with --dry-run, then give --yes")));
    }
    let mut question = preview_text(renderer, &would.groups, would.oldest_accepted_at.as_deref());
    question.add_lines(freed(would));
    question.end_line();
    question.add_text(&format!("delete {what} for good? [y/N] "));
    confirm(&question, Failure::new(Exit::Failure, "nothing was deleted", Some("answer y to delete it")))
}

/// Deletes step by step, each a commit of its own, until nothing more can be deleted or the user has enough.
fn purge_all(
    store: &dyn Store,
    filter: &Filter,
    messages: u64,
    progress: &Progress,
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
