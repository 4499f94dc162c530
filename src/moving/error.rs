//! Why a store is not moved.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sdk::trust::Refusal;
use crate::sealing::SealError;
use crate::store::StoreError;
use crate::store::os::os_words;

/// Why a store is not moved, or not sealed. Unless its variant states otherwise, the source is unchanged and no message of it was stored.
#[derive(Debug, Error)]
pub(crate) enum MovingError {
    /// There is nothing at this path.
    #[error("there is no file {path}{}", and_aside(.aside.as_deref()))]
    Missing {
        /// The path.
        path: PathBuf,
        /// Where the store was set aside that was there and is moved already.
        aside: Option<PathBuf>,
    },
    /// A recovery of it was interrupted.
    #[error("the message store {path} is damaged, and its recovery is not finished")]
    Recovering {
        /// The path.
        path: PathBuf,
    },
    /// Another user may have chosen its content.
    #[error("{path} is not trusted: {reason}")]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It is the store that it would be moved into.
    #[error("{path} is the message store that everything else is moved into")]
    OwnStore {
        /// The path.
        path: PathBuf,
    },
    /// A process has it open.
    #[error("the message store {path} is in use{}", by_process(*pid, name))]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process, if it can be seen.
        pid: Option<u32>,
        /// Its name; empty if unknown.
        name: String,
    },
    /// It cannot be read or copied.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// No private copy of it can be made.
    #[error("cannot copy {path} into {folder} to read it: {reason}")]
    Scratch {
        /// The source.
        path: PathBuf,
        /// Where the copy would be.
        folder: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// The source cannot be read as a store. The error names the source, not its copy.
    #[error("{}", .error.to_string().replace(&*.copy.to_string_lossy(), &.path.to_string_lossy()))]
    Source {
        /// The source.
        path: PathBuf,
        /// Its private copy.
        copy: PathBuf,
        /// The error about the copy.
        error: StoreError,
    },
    /// The sealed copy does not open.
    #[error("cannot open the sealed copy {path}: {error}")]
    Sealed {
        /// The sealed copy.
        path: PathBuf,
        /// Why not.
        error: SealError,
    },
    /// The sealed contents are not a store, or are in the format of a newer version.
    #[error("the sealed copy {path} is not one that this opik-offline can move: {reason}")]
    NotACopy {
        /// The sealed copy.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The other store cannot take the messages. Those of earlier commits are stored, and recognised next time.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user stopped it. Messages of earlier commits are stored, and recognised next time.
    #[error("moving {path} was interrupted; nothing is lost, run it again to continue")]
    Interrupted {
        /// The source.
        path: PathBuf,
    },
    /// All of it is stored, but its file keeps its name.
    #[error("all messages of {path} are stored, but it cannot be set aside: {reason}")]
    NotSetAside {
        /// The source.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// There is a file where the sealed copy would be.
    #[error("there is a file {path} already, and it is not overwritten")]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The sealed copy cannot be written.
    #[error("cannot write the sealed copy {path}: {reason}")]
    Unwritable {
        /// The path.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
}

impl MovingError {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), reason: os_words(error) }
    }

    pub(super) fn refused(path: &Path, refusal: Refusal) -> Self {
        match refusal {
            Refusal::Untrusted(reason) => Self::Untrusted { path: path.to_owned(), reason },
            Refusal::System(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::Missing { path: path.to_owned(), aside: None }
            }
            Refusal::System(error) => Self::unreadable(path, &error),
        }
    }
}

fn and_aside(aside: Option<&Path>) -> String {
    aside.map_or_else(String::new, |aside| {
        format!("; a store of this name was moved before, and is set aside as {}", aside.display())
    })
}

fn by_process(pid: Option<u32>, name: &str) -> String {
    match pid {
        Some(pid) if name.is_empty() => format!(" by process {pid}"),
        Some(pid) => format!(" by process {pid} ({name})"),
        None => " by a process that cannot be seen from here".into(),
    }
}
