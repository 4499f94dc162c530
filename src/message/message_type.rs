//! The SDK's message types, under the SDK's names.

use std::fmt;

/// What kind of write a message is.
///
/// Names are those that the Python SDK keeps in its `message_type` column (protocol dossier, section a), plural and
/// singular as they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageType {
    /// `POST v1/private/traces`
    CreateTrace,
    /// `PATCH v1/private/traces/{id}`
    UpdateTrace,
    /// `POST v1/private/traces/batch`
    CreateTraceBatch,
    /// `POST v1/private/spans`
    CreateSpan,
    /// `PATCH v1/private/spans/{id}`
    UpdateSpan,
    /// `POST v1/private/spans/batch`
    CreateSpansBatch,
    /// `PUT v1/private/traces/feedback-scores`
    AddTraceFeedbackScoresBatch,
    /// `PUT v1/private/spans/feedback-scores`
    AddSpanFeedbackScoresBatch,
    /// `PUT v1/private/traces/threads/feedback-scores`
    AddThreadsFeedbackScoresBatch,
    /// `POST v1/private/experiments/items`
    CreateExperimentItemsBatch,
    /// `POST v1/private/guardrails`
    GuardrailBatch,
    /// `PUT v1/private/assertion-results`
    AddAssertionResultsBatch,
    /// The attachment upload flow.
    CreateAttachment,
}

impl MessageType {
    /// All types, in the order in which people read them.
    pub const ALL: [MessageType; 13] = [
        Self::CreateTrace,
        Self::UpdateTrace,
        Self::CreateTraceBatch,
        Self::CreateSpan,
        Self::UpdateSpan,
        Self::CreateSpansBatch,
        Self::AddTraceFeedbackScoresBatch,
        Self::AddSpanFeedbackScoresBatch,
        Self::AddThreadsFeedbackScoresBatch,
        Self::CreateExperimentItemsBatch,
        Self::GuardrailBatch,
        Self::AddAssertionResultsBatch,
        Self::CreateAttachment,
    ];

    /// Returns the SDK's name, as it stands in its `message_type` column and in ours.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateTrace => "CreateTraceMessage",
            Self::UpdateTrace => "UpdateTraceMessage",
            Self::CreateTraceBatch => "CreateTraceBatchMessage",
            Self::CreateSpan => "CreateSpanMessage",
            Self::UpdateSpan => "UpdateSpanMessage",
            Self::CreateSpansBatch => "CreateSpansBatchMessage",
            Self::AddTraceFeedbackScoresBatch => "AddTraceFeedbackScoresBatchMessage",
            Self::AddSpanFeedbackScoresBatch => "AddSpanFeedbackScoresBatchMessage",
            Self::AddThreadsFeedbackScoresBatch => "AddThreadsFeedbackScoresBatchMessage",
            Self::CreateExperimentItemsBatch => "CreateExperimentItemsBatchMessage",
            Self::GuardrailBatch => "GuardrailBatchMessage",
            Self::AddAssertionResultsBatch => "AddAssertionResultsBatchMessage",
            Self::CreateAttachment => "CreateAttachmentMessage",
        }
    }

    /// Returns the type with this name; the `Message` at its end may be left out, and case does not matter.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| {
            let full = t.name();
            name.eq_ignore_ascii_case(full) || name.eq_ignore_ascii_case(full.trim_end_matches("Message"))
        })
    }

    /// Says whether the message makes new entities, so that a 409 means "already there" (design.md, section 4).
    pub fn is_create(self) -> bool {
        match self {
            Self::CreateTrace | Self::CreateTraceBatch | Self::CreateSpan | Self::CreateSpansBatch => true,
            Self::CreateExperimentItemsBatch => true,
            Self::UpdateTrace | Self::UpdateSpan | Self::GuardrailBatch | Self::AddAssertionResultsBatch => false,
            Self::AddTraceFeedbackScoresBatch | Self::AddSpanFeedbackScoresBatch => false,
            Self::AddThreadsFeedbackScoresBatch | Self::CreateAttachment => false,
        }
    }

    /// Says whether the server ends in the same state when it receives the message twice.
    ///
    /// Guardrails get their row id from the server, so a repeat may add a second result (protocol dossier, section f).
    /// Replay settles such a message before it sends the next one, which keeps the window for a repeat small.
    pub fn repeat_is_harmless(self) -> bool {
        !matches!(self, Self::GuardrailBatch)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_name_long_or_short() {
        for message_type in MessageType::ALL {
            let name = message_type.name();
            assert_eq!(MessageType::from_name(name), Some(message_type));
            assert_eq!(MessageType::from_name(&name.trim_end_matches("Message").to_lowercase()), Some(message_type));
        }
        assert_eq!(MessageType::from_name("CreateSpan Message"), None);
    }
}
