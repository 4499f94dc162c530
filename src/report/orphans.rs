//! Orphaned stores of SDK processes, as `status` and `healthcheck` report them.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::config::{ProcessEnvironment, temp_dir};
use crate::figures::{count, short_duration, size};
use crate::printable::shell_word;
use crate::sdk::file::count_rows;
use crate::sdk::orphan;
use crate::store::now_ms;

/// An orphaned store, for `status` and `healthcheck`.
#[derive(Serialize)]
pub(crate) struct OrphanLine {
    pub path: String,
    /// The path itself, which need not be UTF-8.
    #[serde(skip)]
    file: PathBuf,
    /// `None` if the rows can't be counted without a salvage.
    pub rows: Option<u64>,
    pub bytes: u64,
    pub age_seconds: u64,
}

impl OrphanLine {
    /// Returns the orphan as a line for people.
    pub(crate) fn text(&self) -> String {
        let rows = self
            .rows
            .map_or("an unknown number of messages (it may be damaged)".to_owned(), |rows| count(rows, "message"));
        let age = short_duration(Duration::from_secs(self.age_seconds));
        format!("{}: {rows}, {}, left {age} ago by a Python process", self.path, size(self.bytes))
    }

    /// Returns how to deliver its messages.
    pub(crate) fn hint(&self) -> String {
        format!("deliver them with `opik-offline replay --from {}`", shell_word(self.file.as_os_str()))
    }
}

/// Finds the orphaned stores of this user.
pub(crate) fn orphans() -> Vec<OrphanLine> {
    let found = orphan::find(&temp_dir(&ProcessEnvironment));
    let line = |orphan: orphan::Orphan| OrphanLine {
        rows: count_rows(&orphan.path),
        path: orphan.path.display().to_string(),
        file: orphan.path,
        bytes: orphan.bytes,
        age_seconds: u64::try_from((now_ms() - orphan.changed_at_ms) / 1000).unwrap_or(0),
    };
    found.into_iter().map(line).collect()
}
