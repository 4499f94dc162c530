//! Why a write is not stored. Its client still has it.

use crate::intake::forward::{self, ClientAnswer};
use crate::intake::shared::{BUSY_TEXT, STORE_RETRY_AFTER, Shared};
use crate::protocol::answers::{Reply, unavailable};
use crate::store::committer::CommitError;
use crate::store::{FullLimit, StoreError};

/// Why a write is not stored.
pub(in crate::intake) struct NotStored {
    text: String,
    /// The limit that the store has reached.
    full: Option<FullLimit>,
    /// Whether it may be in the store all the same.
    pub(super) is_uncertain: bool,
    /// Whether the server may take it instead: the store works, and knows what the write would overtake.
    pub(super) may_be_sent: bool,
}

impl NotStored {
    /// Other bodies take the memory that is needed to store this one.
    pub(super) fn busy() -> Self {
        Self { text: BUSY_TEXT.to_owned(), full: None, is_uncertain: false, may_be_sent: true }
    }

    /// The spooled body can't be read.
    pub(super) fn unreadable() -> Self {
        let text = "opik-offline cannot read this body from its disk".to_owned();
        Self { text, full: None, is_uncertain: false, may_be_sent: false }
    }

    /// It would overwrite a delivered write that can't be read now.
    pub(super) fn unreadable_repeat() -> Self {
        let text = "opik-offline cannot read a later write now that this one must not overtake".to_owned();
        Self { text, full: None, is_uncertain: false, may_be_sent: false }
    }

    /// The committer stopped before it answered.
    pub(super) fn stopping() -> Self {
        let text = "opik-offline is stopping".to_owned();
        Self { text, full: None, is_uncertain: true, may_be_sent: false }
    }

    /// The store failed. If it is full, this is recorded for the status.
    pub(in crate::intake) fn record(shared: &Shared, failure: &CommitError) -> Self {
        let mut full = None;
        let text = match failure {
            CommitError::Busy => "opik-offline takes as many writes as its disk can".to_owned(),
            CommitError::Stopped => "opik-offline is stopping".to_owned(),
            CommitError::BehindMoved => failure.to_string(),
            CommitError::Store(error) => {
                full = shared.collector.full().found_no_room(error);
                match error.as_ref() {
                    StoreError::Full { reason, .. } => format!("opik-offline's store is full: {reason}"),
                    StoreError::Busy { .. } => "another process keeps opik-offline's store locked".to_owned(),
                    StoreError::DepotAway { .. } => {
                        "the depot of opik-offline's fleet has no copy of this write".to_owned()
                    }
                    // Paths and system errors are for the operator: they are in `status` and in the log.
                    _ => "opik-offline cannot store this write, and the Opik server cannot be reached".to_owned(),
                }
            }
        };
        let may_be_sent = match failure {
            CommitError::Busy => true,
            CommitError::Stopped | CommitError::BehindMoved => false,
            CommitError::Store(error) => matches!(**error, StoreError::Full { .. } | StoreError::Busy { .. }),
        };
        let is_uncertain = matches!(failure, CommitError::Store(error) if error.is_unproven());
        Self { text, full, is_uncertain, may_be_sent }
    }

    /// Returns the answer to the client.
    pub(in crate::intake) fn reply(&self) -> Reply {
        unavailable(&self.text, STORE_RETRY_AFTER)
    }

    /// Counts the write as refused.
    pub(in crate::intake) fn count(&self, shared: &Shared) {
        shared.metrics.intake_refused.add(1);
        if let Some(limit) = self.full {
            shared.collector.full().refused(limit);
        }
    }

    /// Counts the write as refused, and returns the answer to the client.
    pub(super) fn refuse(self, shared: &Shared) -> ClientAnswer {
        self.count(shared);
        forward::own_answer(self.reply())
    }

    /// The same, with the reason why the write was not sent to the server either.
    pub(super) fn refuse_unsent(mut self, shared: &Shared, why: &str) -> ClientAnswer {
        self.text.push_str(&format!("; the write was not sent on, because {why}"));
        self.refuse(shared)
    }
}
