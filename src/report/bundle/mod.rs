//! The support bundle: what one attaches to an issue, in one archive.
//!
//! # Invariants
//!
//! - No payloads, no headers of clients and no keys. Every text in it passes [`Redaction`], which knows every secret of the
//!   configuration, every credential in the store, and what URLs and `Authorization` look like. Of a log file only lines
//!   of opik-offline are taken: an SDK may write to the same one.
//! - It is readable by its owner only, and never replaces a file.
//! - That a part can't be read is part of the bundle, not a failure: it is made where something is broken.

mod archive;
mod log_tail;
mod redaction;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use self::archive::Archive;
use self::redaction::Redaction;
use crate::agent::background::Instance;
use crate::config::{Config, ProcessEnvironment};
use crate::figures::time;
use crate::message::workspace_shown;
use crate::report::groups::groups;
use crate::report::status::StatusReport;
use crate::report::status::gather::gather;
use crate::store::{Condition, Filter, LaneListed, Store, StoreError, now_ms};
use crate::translate;
use crate::upstream::Upstream;

/// How many lanes are described.
const LANES_MAX: usize = 1000;

/// Why no bundle was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("{} exists already, and is not overwritten", .0.display())]
    Exists(PathBuf),
    #[error("cannot write the support bundle {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl BundleError {
    /// Returns what the user can do.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Exists(_) => "choose another name, or remove that file",
            Self::Write { .. } => "choose a file in a folder that you may write to, on a disk with some room",
        }
    }
}

/// Writes a support bundle. `checks` is the report of `healthcheck`, with the settings.
///
/// # Errors
///
/// Fails if the file exists or can't be written. Nothing is left behind then.
pub(crate) fn write(path: &Path, config: &Config, upstream: &Upstream, checks: &Value) -> Result<(), BundleError> {
    // Before anything is gathered, which may take seconds.
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => BundleError::Exists(path.to_owned()),
                _ => BundleError::Write { path: path.to_owned(), source },
            }
        })?;
    let written = gathered(config, upstream, checks).finish().and_then(|bytes| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    written.map_err(|source| {
        // It is ours, and incomplete.
        let _ = fs::remove_file(path);
        BundleError::Write { path: path.to_owned(), source }
    })
}

fn gathered(config: &Config, upstream: &Upstream, checks: &Value) -> Archive {
    let store = translate::existing_store(config).or_else(|_| translate::existing_store_without_key(config));
    let lanes = match &store {
        Ok(Some(store)) => store.lane_list(now_ms()).unwrap_or_default(),
        _ => Vec::new(),
    };
    let redaction = Redaction::of(config, &lanes);
    let gathered = gather(config, upstream, Instant::now());
    let status = serde_json::to_value(StatusReport::of(config, &gathered)).unwrap_or_else(|error| failed(&error));
    let agent = gathered.agent.as_ref().map_or(Value::Null, |agent| agent.document().unwrap_or(Value::Null));
    let mut archive = Archive::new("opik-offline-bundle", now_ms());
    archive.add("README.txt", README.as_bytes());
    for (name, document) in [
        ("versions.json", versions()),
        ("healthcheck.json", checks.clone()),
        ("status.json", status),
        ("agent-status.json", agent),
        ("store.json", described(&store, &lanes)),
    ] {
        let text = serde_json::to_string_pretty(&redaction.document(document)).unwrap_or_default();
        archive.add(name, format!("{text}\n").as_bytes());
    }
    let background = Instance::of(config, ProcessEnvironment.state_dir()).ok().map(|instance| instance.log());
    let logs = [("log.txt", Some(config.logging_file.value.clone())), ("background-log.txt", background)];
    for (name, path) in logs {
        if let Some(tail) = path.and_then(|path| log_tail::read(&path)) {
            archive.add(name, redaction.text(&tail).as_bytes());
        }
    }
    archive
}

const README: &str = "\
A support bundle of opik-offline, made by `opik-offline healthcheck --bundle`.

versions.json      the version, the operating system
healthcheck.json   the checks; every setting with its source, secrets masked
status.json        what `opik-offline status` shows
agent-status.json  what the running agent reports, or null
store.json         the schema's version, counts, lanes with masked keys
log.txt            the last lines of the log file, if there is one
background-log.txt the same of the background agent

It contains names of workspaces, projects, files and hosts, and words of the
server's answers. It contains no bodies of messages, no headers and no keys:
known keys are replaced by ***. Look through it before you send it.
";

fn failed(error: &dyn std::error::Error) -> Value {
    json!({ "problem": error.to_string() })
}

fn versions() -> Value {
    let system = rustix::system::uname();
    json!({
        "schema_version": 1,
        "opik_offline": env!("CARGO_PKG_VERSION"),
        "made_at": time(now_ms()),
        "system": system.sysname().to_string_lossy(),
        "release": system.release().to_string_lossy(),
        "machine": system.machine().to_string_lossy(),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
    })
}

/// Returns the schema's version, the counts and the state of the store, as one snapshot.
fn described(store: &Result<Option<std::sync::Arc<dyn Store>>, StoreError>, lanes: &[LaneListed]) -> Value {
    let store = match store {
        Ok(Some(store)) => store,
        Ok(None) => return Value::Null,
        Err(error) => return failed(error),
    };
    let condition = match store.condition() {
        Ok(condition) => described_condition(&condition),
        Err(error) => failed(&error),
    };
    let backlog = match store.backlog(&Filter::default()) {
        Ok(backlog) => json!({
            "groups": groups(&backlog),
            "oldest_accepted_at": backlog.oldest_accepted_at_ms.map(time),
            "rejected_by_answer": backlog.rejected_by_answer,
        }),
        Err(error) => failed(&error),
    };
    let lane = |lane: &LaneListed| {
        json!({
            "id": lane.id.0,
            "server": lane.lane.server.as_ref().map(ToString::to_string),
            "workspace": workspace_shown(lane.lane.workspace_name()),
            "key": lane.lane.credential.as_ref().map(ToString::to_string),
            "waiting": lane.waiting,
            "rejected": lane.rejected,
            "held_until": lane.hold.as_ref().map(|hold| time(hold.until_ms)),
            "held_because": lane.hold.as_ref().map(|hold| hold.reason.clone()),
        })
    };
    json!({
        "condition": condition,
        "backlog": backlog,
        "lanes": lanes.iter().take(LANES_MAX).map(lane).collect::<Vec<_>>(),
        "lanes_total": lanes.len(),
    })
}

fn described_condition(condition: &Condition) -> Value {
    let record = |recovery: &crate::store::RecoveryRecord| {
        json!({
            "at": time(recovery.at_ms),
            "reason": recovery.reason,
            "recovered": recovery.recovered,
            "lost": recovery.lost,
        })
    };
    json!({
        "store_schema_version": condition.schema_version,
        "file_bytes": condition.file_bytes,
        "free_bytes": condition.free_bytes,
        "size_max": condition.size_max,
        "disk_free_bytes": condition.disk_free_bytes,
        "capacity_bytes": condition.capacity_bytes,
        "replaying": condition.lease.as_ref().map(ToString::to_string),
        "agents": condition.agents.iter().map(|agent| json!({
            "pid": agent.pid,
            "listen": agent.listen,
            "upstream": agent.upstream,
            "started_at": time(agent.started_at_ms),
        })).collect::<Vec<_>>(),
        "dropped": condition.dropped,
        "expired": condition.expired,
        "rejected_dropped": condition.rejected_dropped,
        "full": condition.full.as_ref().map(|full| full.reason.clone()),
        "refused_writes": condition.full_record.refused,
        "recoveries": condition.recoveries.iter().map(record).collect::<Vec<_>>(),
        "is_encrypted": condition.encryption.sealed_with.is_some(),
        "unproven": condition.unproven.as_ref().map(|unproven| unproven.reason.clone()),
    })
}
