//! Shared by `replay --from` and `inspect --from`: naming the files of SDK processes, and reporting on them.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::moving::{GivenStores, move_in};
use super::{Common, Exit, Failure, stop_on_signals, translate};
use crate::config::{Config, ProcessEnvironment, temp_dir};
use crate::figures::{count, size};
use crate::hint;
use crate::message::{MessageStatus, Server};
use crate::moving::{Moved, SourceKind, kind_of};
use crate::printable::shell_word;
use crate::sdk::conversion::{RowSummary, describe, status_name};
use crate::sdk::file::{SdkFile, StoredRow};
use crate::sdk::salvage::{SalvageError, is_agent_at};
use crate::sdk::sources::{SalvagedFile, SourceFiles, SourcesError, files_named, without_repeats};
use crate::sdk::trust::{AttachmentFolders, FileOwner};
use crate::shutdown::Shutdown;
use crate::store::{self, OpenMode};
use crate::terminal::Shown;
use crate::terminal::pager::Output;
use crate::terminal::progress;
use crate::terminal::render::{OutputFormat, Renderer};

/// The outcome for one file.
#[derive(Serialize)]
pub(super) struct SourceReport {
    path: String,
    /// Messages that were queued.
    messages: u64,
    /// Rows that cannot be sent, kept as rejected.
    rejected: u64,
    /// Rows that were stored earlier, from this file or from a copy of it.
    known: u64,
    /// Rows that could not be read; an estimate.
    unread: u64,
    /// Of a store: messages that are held, and stay so.
    held: u64,
    removed: bool,
    /// Of a store: its new name, which shows that its messages were moved.
    set_aside: Option<String>,
    /// Why it was not read, not removed or not set aside.
    problem: Option<String>,
}

impl From<SalvagedFile> for SourceReport {
    fn from(file: SalvagedFile) -> Self {
        let SalvagedFile { path, salvaged, is_removed, problem } = file;
        Self {
            path: path.display().to_string(),
            messages: salvaged.taken,
            rejected: salvaged.rejected,
            known: salvaged.known,
            unread: salvaged.unread,
            held: 0,
            removed: is_removed,
            set_aside: None,
            problem,
        }
    }
}

impl SourceReport {
    /// Returns the outcome for a whole store.
    pub(super) fn of_store(
        path: &Path,
        moved: Moved,
        aside: Option<PathBuf>,
        is_removed: bool,
        problem: Option<String>,
    ) -> Self {
        let Moved { taken, rejected, held, known, unread } = moved;
        let set_aside = aside.map(|aside| aside.display().to_string());
        let path = path.display().to_string();
        Self { path, messages: taken, rejected, known, unread, held, removed: is_removed, set_aside, problem }
    }

    /// Returns how many messages were queued, or would be.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// Returns what happened to the file as a line, without its end.
    pub(super) fn text(&self, dry_run: bool) -> String {
        let verb = if dry_run { "would take" } else { "took" };
        let mut text = format!("{verb} {} from {}", count(self.messages, "message"), self.path);
        let mut add = |number: u64, what: &str| {
            if number > 0 {
                text.push_str(&format!(", {number} {what}"));
            }
        };
        add(self.rejected, "that cannot be sent kept as rejected");
        add(self.held, "kept as held");
        add(self.known, "known already");
        add(self.unread, "could not be read (about)");
        text.push_str(if self.removed { ", removed it" } else { "" });
        if let Some(aside) = &self.set_aside {
            text.push_str(&format!(", set it aside as {aside}"));
        }
        text
    }
}

/// The files to salvage, as the command line names them.
pub(super) struct Given<'a> {
    pub files: &'a [PathBuf],
    pub attachments: &'a [PathBuf],
    pub owner: Option<&'a str>,
    pub identities: &'a [PathBuf],
    pub remove: bool,
}

/// Returns the user whose files are salvaged: this one, or the one that root names.
fn owner(named: Option<&str>) -> Result<FileOwner, Failure> {
    let Some(name) = named else { return Ok(FileOwner::this_user()) };
    let Some(owner) = FileOwner::named(name) else {
        let hint = "give the number that `id -u USER` prints";
        return Err(Failure::new(Exit::Usage, format!("--owner: there is no user {name} in /etc/passwd"), Some(hint)));
    };
    if !owner.is_allowed() {
        let hint = "run it as that user, or as root";
        return Err(Failure::new(Exit::Usage, "--owner: only root salvages the files of another user", Some(hint)));
    }
    Ok(owner)
}

/// Salvages these files, and moves in what is a store, or reports what that would do. Also returns whether a file
/// failed, which costs the others nothing. A file of an SDK that names another server than the configured one is refused, unless it names `readdress`.
pub(super) fn take_in(
    config: &Config,
    given: &Given<'_>,
    readdress: Option<&Server>,
    dry_run: bool,
    shutdown: &Shutdown,
) -> Result<(Vec<SourceReport>, bool), Failure> {
    let owner = owner(given.owner)?;
    let (paths, mut failed) = expand(given.files);
    let kinds = paths.into_iter().map(|path| (kind_of(&path, owner), path));
    let (stores, paths): (Vec<_>, Vec<_>) = kinds.partition(|(kind, _)| *kind != SourceKind::Other);
    let (stores, paths): (Vec<_>, Vec<_>) = (
        stores.into_iter().map(|(kind, path)| (path, kind)).collect(),
        paths.into_iter().map(|(_, path)| path).collect(),
    );
    let given_stores = GivenStores { owner, identities: given.identities, removes: given.remove, is_dry_run: dry_run };
    let (mut reports, stores_failed) = move_in(config, &given_stores, &stores, shutdown)?;
    failed |= stores_failed;
    let sources = SourceFiles {
        owner,
        scratch: &temp_dir(&ProcessEnvironment),
        attachments: given.attachments,
        lane: &translate::lane(config),
        is_same_server: &|named: &Server| readdress == Some(named) || is_agent_at(named, config.listen.value),
        is_dry_run: dry_run,
        removes: given.remove,
        shutdown,
    };
    let open = || {
        if dry_run {
            return translate::existing_store(config);
        }
        let (limits, keys) = (translate::store_limits(config), translate::store_keys(config)?);
        store::open_with(&config.db.value, OpenMode::CreateIfMissing, limits, &keys).map(Some)
    };
    let salvaged = sources.salvage(paths, &open, &mut |error| {
        failed = true;
        Failure::from(error).print();
    });
    match salvaged {
        Ok(files) => {
            reports.extend(files.into_iter().map(SourceReport::from));
            Ok((reports, failed))
        }
        Err(SourcesError::Store(error)) => Err(error.into()),
        Err(SourcesError::Interrupted(error)) => Err(Failure::new(Exit::Interrupted, error.to_string(), None)),
    }
}

fn failure(error: SalvageError) -> Failure {
    if matches!(error, SalvageError::Interrupted { .. }) { Failure::silent(Exit::Interrupted) } else { error.into() }
}

/// Returns the files that these names mean, and whether a name means none. That is reported.
fn expand(given: &[PathBuf]) -> (Vec<PathBuf>, bool) {
    let mut paths = Vec::new();
    let mut failed = false;
    for name in given {
        let found = files_named(name);
        if found.is_empty() {
            failed = true;
            let message = format!("there is no store of an SDK at {}", name.display());
            let hint = "name files such as /tmp/tmp*/opik_messages.db; `opik-offline status` lists the orphaned stores";
            Failure::new(Exit::Failure, message, Some(hint)).print();
        }
        paths.extend(found);
    }
    (without_repeats(paths), failed)
}

/// A row of an SDK's file, for people.
#[derive(Serialize)]
struct Row {
    message_id: i64,
    status: String,
    message_type: String,
    /// `None` if no request can be made of it.
    method: Option<&'static str>,
    path: Option<String>,
    json_bytes: u64,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Rows {
    schema_version: u32,
    file: String,
    rows: Vec<Row>,
    /// Rows that could not be read; an estimate.
    unread: u64,
}

fn row(stored: &StoredRow, folders: &AttachmentFolders) -> Row {
    let RowSummary { method, path, problem } = describe(stored, folders);
    Row {
        message_id: stored.message_id,
        status: status_name(stored.status),
        message_type: stored.message_type.clone(),
        method,
        path,
        json_bytes: stored.json.as_deref().unwrap_or_default().len() as u64,
        problem,
    }
}

/// Lists the rows of one file.
pub(super) fn list(common: &Common, path: &Path, named: Option<&str>, limit: usize) -> Result<(), Failure> {
    let renderer = common.renderer();
    // Nothing is stored here; a signal is handled only so that the folder of the copy is removed.
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown)?;
    let scratch = temp_dir(&ProcessEnvironment);
    let opened = SdkFile::open(path, &scratch, owner(named)?, &shutdown);
    let mut file = opened.map_err(|error| failure(error.into()))?;
    let folders = file.attachment_folders(&scratch, &[]);
    let mut rows = Vec::new();
    let (mut shown, mut more) = (0, 0_u64);
    let mut output = Output::direct();
    while let Some(stored) = file.next_row().map_err(|error| failure(error.into()))? {
        if shutdown.is_requested() {
            return Err(Failure::silent(Exit::Interrupted));
        }
        if shown == limit {
            more += 1;
            continue;
        }
        shown += 1;
        match renderer.format() {
            OutputFormat::Jsonl => {
                let line = serde_json::to_string(&row(&stored, &folders)).map_err(io::Error::other)?;
                output.machine(&(line + "\n"))?;
            }
            _ => rows.push(row(&stored, &folders)),
        }
    }
    let unread = file.unread();
    if renderer.format() != OutputFormat::Jsonl {
        let report = Rows { schema_version: 1, file: path.display().to_string(), rows, unread };
        renderer.result(&report, |renderer, report| {
            let mut text = rows_text(renderer, &report.rows);
            if more > 0 {
                text.add_line(&format!("{shown} of {} messages; more with --limit", shown as u64 + more));
            }
            text
        })?;
    }
    if shown > 0 && !common.quiet && renderer.format() == OutputFormat::Table {
        let file = shell_word(path.as_os_str());
        progress::say(&format!("{} delivers them", hint::command(&format!("replay --from {file}"))));
    }
    if file.is_damaged() && !common.quiet {
        progress::say(&format!("the file is damaged: about {} could not be read", count(unread, "message")));
    }
    Ok(())
}

fn rows_text(renderer: &Renderer, rows: &[Row]) -> Shown {
    if rows.is_empty() {
        return Shown::line("no messages in it");
    }
    let mut table = renderer.table(&[">id", "status", "…type", "…request", ">size", "~problem"]);
    for row in rows {
        let request = match (row.method, &row.path) {
            (Some(method), Some(path)) => format!("{method} {path}"),
            _ => String::new(),
        };
        table.add_row([
            row.message_id.to_string(),
            MessageStatus::from_name(&row.status).map_or(&*row.status, |status| status.word()).to_owned(),
            row.message_type.trim_end_matches("Message").to_owned(),
            request,
            size(row.json_bytes),
            row.problem.clone().unwrap_or_default(),
        ]);
    }
    table.shown()
}
