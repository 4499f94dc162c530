//! Orphaned stores of SDK processes, as `status` and `healthcheck` report them.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::{ProcessEnvironment, temp_dir};
use crate::diagnosis::OrphanFacts;
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
    /// Returns it for a diagnosis.
    fn facts(&self) -> OrphanFacts {
        OrphanFacts {
            word: shell_word(self.file.as_os_str()),
            messages: self.rows,
            bytes: self.bytes,
            age_seconds: self.age_seconds,
        }
    }
}

/// Returns orphaned stores for a diagnosis.
pub(crate) fn facts(orphans: &[OrphanLine]) -> Vec<OrphanFacts> {
    orphans.iter().map(OrphanLine::facts).collect()
}

/// Returns the pattern of all files that [`orphans`] may find, as a word of a shell that `replay --from` expands.
pub(crate) fn pattern() -> String {
    shell_word(temp_dir(&ProcessEnvironment).join("tmp*").join(orphan::SDK_STORE_NAME).as_os_str())
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
