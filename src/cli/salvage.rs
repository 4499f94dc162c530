//! What `replay --from` and `inspect --from` share: finding the files of SDK processes, reading them, telling about
//! them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Common, Exit, Failure, stop_on_signals, translate};
use crate::config::{Config, ProcessEnvironment, temp_dir};
use crate::figures::{count, size};
use crate::message::Server;
use crate::protocol::sdk_rows::{SdkRow, convert};
use crate::replay::salvage::{SalvageError, Salvaged, Target, is_agent_at, remove_source, salvage};
use crate::shutdown::Shutdown;
use crate::store::foreign::{AttachmentFolders, AttachmentRefusal, FileOwner};
use crate::store::orphan::SDK_STORE_NAME;
use crate::store::{self, OpenMode, SdkFile, Store, StoredRow};
use crate::terminal::Shown;
use crate::terminal::pager::Output;
use crate::terminal::progress;
use crate::terminal::render::{OutputFormat, Renderer};

/// What became of one file.
#[derive(Serialize)]
pub struct Source {
    path: String,
    /// Messages that wait for the server now.
    messages: u64,
    /// Rows that can't be sent, kept as rejected.
    rejected: u64,
    /// Rows that were taken from this file or a copy of it before.
    known: u64,
    /// Rows that could not be read, about.
    unread: u64,
    removed: bool,
    /// Why it was not read, or not removed.
    problem: Option<String>,
}

impl Source {
    /// Says what became of the file in a line, without its end.
    pub fn text(&self, dry_run: bool) -> String {
        let verb = if dry_run { "would take" } else { "took" };
        let mut text = format!("{verb} {} from {}", count(self.messages, "message"), self.path);
        let mut add = |number: u64, what: &str| {
            if number > 0 {
                text.push_str(&format!(", {number} {what}"));
            }
        };
        add(self.rejected, "that cannot be sent kept as rejected");
        add(self.known, "known already");
        add(self.unread, "could not be read (about)");
        text.push_str(if self.removed { ", removed it" } else { "" });
        text
    }
}

/// What the command line says of files to take in.
pub struct Given<'a> {
    pub files: &'a [PathBuf],
    pub attachments: &'a [PathBuf],
    pub owner: Option<&'a str>,
    pub remove: bool,
}

/// Returns the user whose files are salvaged: this one, or the one that root names.
fn owner(named: Option<&str>) -> Result<FileOwner, Failure> {
    let Some(name) = named else { return Ok(FileOwner::this_user()) };
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some(user) = name.parse().ok().or_else(|| user_id(&users, name)) else {
        let hint = "give the number that `id -u USER` prints";
        return Err(Failure::new(Exit::Usage, format!("--owner: there is no user {name} in /etc/passwd"), Some(hint)));
    };
    let owner = FileOwner::user(user);
    if !owner.is_allowed() {
        let hint = "run it as that user, or as root";
        return Err(Failure::new(Exit::Usage, "--owner: only root salvages what belongs to somebody else", Some(hint)));
    }
    Ok(owner)
}

/// Finds a user's number in a list of users (passwd(5)).
fn user_id(users: &str, name: &str) -> Option<u32> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let found = users.lines().map(fields).find(|fields| fields.first().is_some_and(|found| found == name))?;
    found.get(2)?.parse().ok()
}

/// Takes the rows of these files into the store, or says what that would do. A file that can't be read costs the others
/// nothing; `failed` says whether there was one. A file that names another server than the configured one is not taken,
/// unless it names `readdress`.
pub fn take_in(
    config: &Config,
    given: &Given<'_>,
    readdress: Option<&Server>,
    dry_run: bool,
    shutdown: &Shutdown,
) -> Result<(Vec<Source>, bool), Failure> {
    let whose = owner(given.owner)?;
    let (paths, mut failed) = expand(given.files);
    let scratch = temp_dir(&ProcessEnvironment);
    let mut sources = Vec::new();
    let mut opened: Option<std::sync::Arc<dyn Store>> = None;
    let mut tell = |error: SalvageError| {
        failed = true;
        let failure = Failure::from(error);
        failure.print();
        failure.message
    };
    for path in paths {
        let mut file = match SdkFile::open(&path, &scratch, whose, shutdown).map_err(SalvageError::from) {
            Ok(file) => file,
            Err(error @ SalvageError::Interrupted { .. }) => return Err(interrupted(&error)),
            Err(error) => {
                tell(error);
                continue;
            }
        };
        if opened.is_none() {
            // Made only when there is something to put into it.
            opened = match dry_run {
                true => translate::existing_store(config)?,
                false => {
                    let (limits, keys) = (translate::store_limits(config), translate::store_keys(config)?);
                    Some(store::open_with(&config.db.value, OpenMode::CreateIfMissing, limits, &keys)?)
                }
            };
        }
        let target = match (&opened, dry_run) {
            (Some(store), false) => Target::Store(store.as_ref()),
            (store, _) => Target::Nowhere(store.as_deref()),
        };
        let is_same = |named: &Server| readdress == Some(named) || is_agent_at(named, config.listen.value);
        let folders = file.attachment_folders(&scratch, given.attachments);
        match salvage(target, &mut file, &folders, &translate::lane(config), &is_same, shutdown) {
            Ok(salvaged) => {
                let (mut removed, mut problem) = (false, None);
                if given.remove && !dry_run {
                    match remove_source(&file, &salvaged) {
                        Ok(()) => removed = true,
                        Err(error) => problem = Some(tell(error)),
                    }
                }
                let Salvaged { taken: messages, rejected, known, unread, .. } = salvaged;
                let path = path.display().to_string();
                sources.push(Source { path, messages, rejected, known, unread, removed, problem });
            }
            Err(error @ SalvageError::Interrupted { .. }) => return Err(interrupted(&error)),
            Err(error) => drop(tell(error)),
        }
    }
    Ok((sources, failed))
}

fn failure(error: SalvageError) -> Failure {
    if matches!(error, SalvageError::Interrupted { .. }) { Failure::silent(Exit::Interrupted) } else { error.into() }
}

fn interrupted(error: &SalvageError) -> Failure {
    Failure::new(Exit::Interrupted, error.to_string(), None)
}

/// Returns the files that these names mean: files themselves, folders with such files in them, patterns. Says so where
/// one means nothing.
fn expand(given: &[PathBuf]) -> (Vec<PathBuf>, bool) {
    let mut paths = Vec::new();
    let mut failed = false;
    for name in given {
        let found = match name.to_str().filter(|text| text.contains(['*', '?', '[']) && !name.exists()) {
            Some(pattern) => match glob::glob(pattern) {
                Ok(matching) => matching
                    .flatten()
                    .flat_map(|path| if path.is_dir() { in_folder(&path) } else { vec![path] })
                    .collect(),
                Err(_) => Vec::new(),
            },
            None if name.is_dir() => in_folder(name),
            None => vec![name.clone()],
        };
        if found.is_empty() {
            failed = true;
            let message = format!("there is no store of an SDK at {}", name.display());
            let hint = "name files such as /tmp/tmp*/opik_messages.db; `opik-offline status` lists what was found";
            Failure::new(Exit::Failure, message, Some(hint)).print();
        }
        paths.extend(found);
    }
    let mut seen = std::collections::HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    (paths, failed)
}

/// Returns the databases in a folder, and the SDK's stores in the folders in it.
fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| match path.is_dir() {
            true => Some(path.join(SDK_STORE_NAME)).filter(|path| path.is_file()),
            false => path.extension().is_some_and(|extension| extension == "db").then_some(path),
        })
        .collect();
    found.sort();
    found
}

/// A row of an SDK's file, for people.
#[derive(Serialize)]
struct Row {
    message_id: i64,
    status: String,
    message_type: String,
    /// `None` when no request can be made of it.
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
    /// Rows that could not be read, about.
    unread: u64,
}

fn row(stored: &StoredRow, folders: &AttachmentFolders) -> Row {
    let json = stored.json.as_deref().unwrap_or_default();
    let (method, path, problem) = match convert(&stored.message_type, json) {
        Ok(SdkRow::Write(write)) => (Some(write.method), Some(write.path), None),
        Ok(SdkRow::Attachment(file)) => {
            let problem = match folders.open(Path::new(&file.file_path)) {
                Ok(_) => None,
                Err(AttachmentRefusal::Unreadable(_)) => Some(format!("its file {} is gone", file.file_path)),
                Err(AttachmentRefusal::Untrusted(why)) => {
                    Some(format!("its file {} is not sent: {why}", file.file_path))
                }
            };
            (Some("POST"), Some("v1/private/attachment/upload-start".to_owned()), problem)
        }
        Err(fault) => (None, None, Some(fault.to_string())),
    };
    let status = match stored.status {
        1 => "registered".to_owned(),
        2 => "delivered".to_owned(),
        3 => "failed".to_owned(),
        other => other.to_string(),
    };
    let json_bytes = json.len() as u64;
    Row {
        message_id: stored.message_id,
        status,
        message_type: stored.message_type.clone(),
        method,
        path,
        json_bytes,
        problem,
    }
}

/// Lists the rows of one file.
pub fn list(common: &Common, path: &Path, named: Option<&str>, limit: usize) -> Result<(), Failure> {
    let renderer = common.renderer();
    // Nothing has to be kept or finished: a signal may end this process at once, but for the copy's folder.
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
            row.status.clone(),
            row.message_type.trim_end_matches("Message").to_owned(),
            request,
            size(row.json_bytes),
            row.problem.clone().unwrap_or_default(),
        ]);
    }
    table.shown()
}
