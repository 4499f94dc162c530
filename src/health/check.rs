//! The result of a check.

use thiserror::Error;

use crate::protocol::answers::SendFailure;
use crate::store::{KeyError, StoreError};

/// The result of one check.
#[derive(Debug)]
pub(crate) struct Check {
    /// The name of the check.
    pub name: &'static str,
    pub finding: Finding,
}

/// The finding of a check.
#[derive(Debug)]
pub(crate) enum Finding {
    /// As it should be.
    Good(String),
    /// For information.
    Note { text: String, hint: Option<String> },
    /// Works, but needs attention.
    Warning { text: String, hint: String },
    /// Does not work.
    Failed { cause: FailureCause, text: String, hint: String },
    /// The check itself failed.
    Error(CheckError),
}

/// The kind of problem behind a failed check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// Something on this machine, or a server that answers with errors.
    Failure,
    /// The server can't be reached, or is not Opik.
    Unreachable,
    /// The credential or the workspace.
    NotAuthorised,
    /// Messages wait and nobody delivers them, or were rejected.
    Remaining,
}

/// Why a check could not be made.
#[derive(Debug, Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Send(#[from] SendFailure),
}

impl Check {
    pub(crate) fn good(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, finding: Finding::Good(text.into()) }
    }

    pub(crate) fn note(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, finding: Finding::Note { text: text.into(), hint: None } }
    }

    pub(crate) fn note_with_hint(name: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, finding: Finding::Note { text: text.into(), hint: Some(hint.into()) } }
    }

    pub(crate) fn warning(name: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, finding: Finding::Warning { text: text.into(), hint: hint.into() } }
    }

    pub(crate) fn failed(
        name: &'static str,
        cause: FailureCause,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { name, finding: Finding::Failed { cause, text: text.into(), hint: hint.into() } }
    }

    pub(super) fn error(name: &'static str, error: impl Into<CheckError>) -> Self {
        Self { name, finding: Finding::Error(error.into()) }
    }

    /// Returns whether the check passed, warnings included.
    pub(crate) fn is_passed(&self) -> bool {
        match &self.finding {
            Finding::Good(_) | Finding::Note { .. } | Finding::Warning { .. } => true,
            // A busy store works, and another process is writing to it.
            Finding::Error(CheckError::Store(StoreError::Busy { .. })) => true,
            Finding::Failed { .. } | Finding::Error(_) => false,
        }
    }
}
