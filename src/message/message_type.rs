//! The kinds of write: the SDK's message types under the SDK's names, and the other writes that can be stored.

use std::fmt;

/// Defines the types with their names, so that the list of all types is always complete.
macro_rules! message_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The kind of write that a message is.
        ///
        /// The first 13 are the SDK's, with the names that the Python SDK keeps in its `message_type` column (protocol
        /// dossier, section a), plural and singular as they are there; they end in `Message`. The others are writes
        /// that the SDK does not keep; their names have no such ending, so people see which are which.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MessageType {
            $($(#[$doc])* $variant,)*
        }

        impl MessageType {
            /// All types, in the order in which people read them.
            pub const ALL: &[MessageType] = &[$(Self::$variant,)*];

            /// Returns the name in the `message_type` column.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

message_types! {
    /// `POST v1/private/traces`
    CreateTrace = "CreateTraceMessage",
    /// `PATCH v1/private/traces/{id}`
    UpdateTrace = "UpdateTraceMessage",
    /// `POST v1/private/traces/batch`
    CreateTraceBatch = "CreateTraceBatchMessage",
    /// `POST v1/private/spans`
    CreateSpan = "CreateSpanMessage",
    /// `PATCH v1/private/spans/{id}`
    UpdateSpan = "UpdateSpanMessage",
    /// `POST v1/private/spans/batch`
    CreateSpansBatch = "CreateSpansBatchMessage",
    /// `PUT v1/private/traces/feedback-scores`
    AddTraceFeedbackScoresBatch = "AddTraceFeedbackScoresBatchMessage",
    /// `PUT v1/private/spans/feedback-scores`
    AddSpanFeedbackScoresBatch = "AddSpanFeedbackScoresBatchMessage",
    /// `PUT v1/private/traces/threads/feedback-scores`
    AddThreadsFeedbackScoresBatch = "AddThreadsFeedbackScoresBatchMessage",
    /// `POST v1/private/experiments/items`
    CreateExperimentItemsBatch = "CreateExperimentItemsBatchMessage",
    /// `POST v1/private/guardrails`
    GuardrailBatch = "GuardrailBatchMessage",
    /// `PUT v1/private/assertion-results`
    AddAssertionResultsBatch = "AddAssertionResultsBatchMessage",
    /// The attachment upload flow.
    CreateAttachment = "CreateAttachmentMessage",

    // Not among the SDK's: named after what they do, without the SDK's ending.
    /// `POST v1/private/otel/v1/traces`: spans of OpenTelemetry exporters
    OtlpTraces = "OtlpTraces",
    /// `PATCH v1/private/traces/batch`
    UpdateTraces = "UpdateTraces",
    /// `DELETE v1/private/traces/{id}`
    DeleteTrace = "DeleteTrace",
    /// `POST v1/private/traces/delete`
    DeleteTraces = "DeleteTraces",
    /// `PUT v1/private/traces/{id}/feedback-scores`
    ScoreTrace = "ScoreTrace",
    /// `POST v1/private/traces/{id}/feedback-scores/delete`
    DeleteTraceScore = "DeleteTraceScore",
    /// `PATCH v1/private/traces/comments/{commentId}`
    UpdateTraceComment = "UpdateTraceComment",
    /// `POST v1/private/traces/comments/delete`
    DeleteTraceComments = "DeleteTraceComments",
    /// `PATCH v1/private/spans/batch`
    UpdateSpans = "UpdateSpans",
    /// `DELETE v1/private/spans/{id}`
    DeleteSpan = "DeleteSpan",
    /// `PUT v1/private/spans/{id}/feedback-scores`
    ScoreSpan = "ScoreSpan",
    /// `POST v1/private/spans/{id}/feedback-scores/delete`
    DeleteSpanScore = "DeleteSpanScore",
    /// `PATCH v1/private/spans/comments/{commentId}`
    UpdateSpanComment = "UpdateSpanComment",
    /// `POST v1/private/spans/comments/delete`
    DeleteSpanComments = "DeleteSpanComments",
    /// `PUT v1/private/traces/threads/open`
    OpenThread = "OpenThread",
    /// `PUT v1/private/traces/threads/close`
    CloseThreads = "CloseThreads",
    /// `PATCH v1/private/traces/threads/{threadModelId}`
    UpdateThread = "UpdateThread",
    /// `PATCH v1/private/traces/threads/batch`
    UpdateThreads = "UpdateThreads",
    /// `POST v1/private/traces/threads/delete`
    DeleteThreads = "DeleteThreads",
    /// `POST v1/private/traces/threads/feedback-scores/delete`
    DeleteThreadScores = "DeleteThreadScores",
    /// `PATCH v1/private/traces/threads/comments/{commentId}`
    UpdateThreadComment = "UpdateThreadComment",
    /// `POST v1/private/traces/threads/comments/delete`
    DeleteThreadComments = "DeleteThreadComments",
    /// `POST v1/private/datasets`, with an id
    CreateDataset = "CreateDataset",
    /// `PUT v1/private/datasets/items`
    PutDatasetItems = "PutDatasetItems",
    /// `PATCH v1/private/datasets/items/{itemId}`
    UpdateDatasetItem = "UpdateDatasetItem",
    /// `PATCH v1/private/datasets/items/batch`, by ids
    UpdateDatasetItems = "UpdateDatasetItems",
    /// `POST v1/private/datasets/items/delete`, by ids
    DeleteDatasetItems = "DeleteDatasetItems",
    /// `POST v1/private/experiments`, with an id
    CreateExperiment = "CreateExperiment",
    /// `PATCH v1/private/experiments/{id}`
    UpdateExperiment = "UpdateExperiment",
    /// `PATCH v1/private/experiments/batch`
    UpdateExperiments = "UpdateExperiments",
    /// `POST v1/private/experiments/finish`
    FinishExperiments = "FinishExperiments",
    /// `POST v1/private/experiments/delete`
    DeleteExperiments = "DeleteExperiments",
    /// `PUT v1/private/experiments/items/bulk`, with all ids
    PutExperimentItems = "PutExperimentItems",
    /// `POST v1/private/experiments/items/delete`
    DeleteExperimentItems = "DeleteExperimentItems",
    /// `POST v1/private/optimizations`, with an id
    CreateOptimization = "CreateOptimization",
    /// `PUT v1/private/optimizations`, with an id
    PutOptimization = "PutOptimization",
    /// `PUT v1/private/optimizations/{id}`
    UpdateOptimization = "UpdateOptimization",
    /// `POST v1/private/annotation-queues/{id}/items/add`
    AddQueueItems = "AddQueueItems",
    /// `POST v1/private/annotation-queues/{id}/items/delete`
    RemoveQueueItems = "RemoveQueueItems",
    /// `POST v1/private/attachment/delete`
    DeleteAttachments = "DeleteAttachments",
    /// `POST v1/private/local-runners/jobs/{jobId}/logs`
    AppendJobLogs = "AppendJobLogs",
    /// No write: a row of an SDK's file whose type is unknown, kept as rejected
    UnknownSdkRow = "UnknownSdkRow",
}

impl MessageType {
    /// How many of [`MessageType::ALL`], from its beginning, are the SDK's.
    pub const SDK_COUNT: usize = 13;

    /// Returns the type with this name; the `Message` at its end may be left out, and case does not matter.
    pub fn from_name(name: &str) -> Option<Self> {
        // As every stored message names it.
        let exact = Self::ALL.iter().copied().find(|t| t.name() == name);
        exact.or_else(|| {
            Self::ALL.iter().copied().find(|t| {
                let full = t.name();
                name.eq_ignore_ascii_case(full) || name.eq_ignore_ascii_case(full.trim_end_matches("Message"))
            })
        })
    }

    /// Returns whether the message creates entities, so that a 409 for a single one means "already there".
    pub fn is_create(self) -> bool {
        matches!(
            self,
            Self::CreateTrace
                | Self::CreateTraceBatch
                | Self::CreateSpan
                | Self::CreateSpansBatch
                | Self::CreateExperimentItemsBatch
                | Self::CreateDataset
                | Self::CreateExperiment
                | Self::CreateOptimization
        )
    }

    /// Returns whether the write is idempotent: delivering it twice leaves the server in the same state.
    ///
    /// Guardrail results get their row id from the server, so a retry may add a second result, and lines of a job's log
    /// are appended (protocol dossier, sections f and i). Replay settles such a message before it sends the next one,
    /// which keeps the window for duplicates small. A repeated OTLP export is rejected if its trace exists; replay then
    /// sends the missing spans without creating the trace again.
    pub fn repeat_is_harmless(self) -> bool {
        !matches!(self, Self::GuardrailBatch | Self::AppendJobLogs)
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
    fn types_parse_from_long_and_short_names() {
        for message_type in MessageType::ALL.iter().copied() {
            let name = message_type.name();
            assert_eq!(MessageType::from_name(name), Some(message_type));
            assert_eq!(MessageType::from_name(&name.trim_end_matches("Message").to_lowercase()), Some(message_type));
        }
        assert_eq!(MessageType::from_name("CreateSpan Message"), None);
    }

    #[test]
    fn sdk_types_come_first_and_only_they_end_in_message() {
        for (index, message_type) in MessageType::ALL.iter().enumerate() {
            let is_sdks = index < MessageType::SDK_COUNT;
            assert_eq!(message_type.name().ends_with("Message"), is_sdks, "{message_type}");
        }
    }
}
