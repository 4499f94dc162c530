//! `opik-offline purge`

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use super::groups::{Group, groups, groups_text};
use super::render::{Renderer, count, nothing, size};
use super::selection::{Selection, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, existing_store_without_key};
use crate::store::{Filter, Purged, Store, now_ms};

const AFTER_HELP: &str = "\
Examples:
  See what would go:
    opik-offline purge --rejected --older-than 7d --dry-run
  Delete it without a question, from cron:
    opik-offline purge --rejected --older-than 7d --yes

Exit codes:
  0  Deleted, or nothing was selected
  1  Failure, or the question was answered with no
  2  Wrong usage or configuration, or there was nobody to ask and no --yes";

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
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    dry_run: bool,
    messages: u64,
    items: u64,
    body_bytes: u64,
    /// What was selected, before anything was deleted.
    groups: Vec<Group>,
    /// Bytes of the store's files afterwards.
    file_bytes: Option<u64>,
}

/// Messages deleted in one commit: few enough that intake never waits for a purge.
const PURGE_STEP: usize = 1000;

pub fn run(common: &Common, args: &PurgeArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let config = configuration(&common.flags())?;
    let renderer = common.renderer();
    let filter = args.selection.filter(now_ms());
    let Some(store) = existing_store_without_key(&config)? else {
        let none = Report {
            schema_version: 1,
            dry_run: args.dry_run,
            messages: 0,
            items: 0,
            body_bytes: 0,
            groups: Vec::new(),
            file_bytes: None,
        };
        return Ok(renderer.result(&none, |_, _| format!("{}\n", nothing(true)))?);
    };
    let selected = store.backlog(&filter)?;
    let messages = selected.messages();
    let body_bytes = selected.groups.iter().map(|group| group.body_bytes).sum();
    let items = selected.groups.iter().map(|group| group.items).sum();
    let would = Report {
        schema_version: 1,
        dry_run: true,
        messages,
        items,
        body_bytes,
        groups: groups(&selected),
        file_bytes: None,
    };
    if args.dry_run || messages == 0 {
        let report = Report { dry_run: args.dry_run, ..would };
        return Ok(renderer.result(&report, |renderer, report| match report.messages {
            0 => format!("{}\n", nothing(filter == Filter::default())),
            _ => {
                let what = format!("{} ({})", count(report.messages, "message"), size(report.body_bytes));
                format!("would delete {what}\n\n{}", groups_text(renderer, &report.groups))
            }
        })?);
    }
    if !args.yes {
        ask(&renderer, &would)?;
    }
    let purged = purge_all(store.as_ref(), &filter)?;
    let file_bytes = store.compact()?;
    let would_messages = would.messages;
    let Purged { messages, items, body_bytes } = purged;
    let report = Report {
        schema_version: 1,
        dry_run: false,
        messages,
        items,
        body_bytes,
        groups: would.groups,
        file_bytes: Some(file_bytes),
    };
    if !common.tells_what_was_done() {
        return Ok(());
    }
    Ok(renderer.result(&report, |_, report| {
        let kept = match would_messages.saturating_sub(report.messages) {
            0 => String::new(),
            1 => "1 message left alone: a replay is sending it\n".to_owned(),
            kept => format!("{kept} messages left alone: a replay is sending them\n"),
        };
        let deleted = count(report.messages, "message");
        format!("deleted {deleted} ({}); the store takes {} now\n{kept}", size(report.body_bytes), size(file_bytes))
    })?)
}

/// Asks a person on a terminal; anything else than yes ends the command.
fn ask(renderer: &Renderer, would: &Report) -> Result<(), Failure> {
    let what = format!("{} ({})", count(would.messages, "message"), size(would.body_bytes));
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let message = format!("purge would delete {what}, and there is nobody to ask");
        return Err(Failure::new(Exit::Usage, message, Some("look with --dry-run, then give --yes")));
    }
    let mut stderr = io::stderr();
    write!(stderr, "{}\ndelete {what} for good? [y/N] ", groups_text(renderer, &would.groups))?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failure, "nothing was deleted", None)),
    }
}

fn purge_all(store: &dyn Store, filter: &Filter) -> Result<Purged, Failure> {
    let mut total = Purged::default();
    loop {
        let step = store.purge(filter, PURGE_STEP)?;
        if step.messages == 0 {
            return Ok(total);
        }
        total.messages += step.messages;
        total.items += step.items;
        total.body_bytes += step.body_bytes;
    }
}
