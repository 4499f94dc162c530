//! Rate limit buckets: the server counts writes in several, and a 429 is about one of them.

use super::MessageType;

/// What the server counts a request in.
///
/// Source: the `@RateLimited` annotations of Opik's resources, its `RateLimitInterceptor` and `config.yml` (pull request
/// 2860). Creates and updates of one trace or span count in `singleTracingOps`, per workspace, and in nothing else. Batches
/// and most other writes count in the general limit (per key) and in the workspace's. Deletions, comments and the opening
/// and closing of threads are not limited. Every limited answer carries an `Opik-<name>-Limit` header for each bucket that
/// the request counts in; none of them says which one is exhausted, and an operator may rename them, so the request decides.
/// Servers have moved endpoints between buckets: a wrong guess costs one more 429, which then holds that bucket, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Bucket {
    /// Creates and updates of one trace or span (`single_tracing_ops`).
    Single = 0,
    /// Batches and most other writes (`general_events`, `workspace_events`).
    Events = 1,
    /// Writes that Opik does not limit; a front or an object store may.
    Other = 2,
}

impl Bucket {
    /// All of them.
    pub const ALL: [Bucket; 3] = [Bucket::Single, Bucket::Events, Bucket::Other];

    /// Returns the number kept in a store.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the bucket with this number, or `None`.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|bucket| bucket.code() == code)
    }

    /// Returns what the bucket counts, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single creates and updates",
            Self::Events => "batches and scores",
            Self::Other => "deletions, comments and attachments",
        }
    }
}

impl MessageType {
    /// Returns the bucket that the server counts a request of this type in.
    pub fn bucket(self) -> Bucket {
        match self {
            Self::CreateTrace | Self::UpdateTrace | Self::CreateSpan | Self::UpdateSpan => Bucket::Single,
            Self::CreateAttachment
            | Self::DeleteAttachments
            | Self::DeleteTrace
            | Self::DeleteTraces
            | Self::DeleteSpan
            | Self::DeleteTraceScore
            | Self::DeleteSpanScore
            | Self::DeleteThreads
            | Self::DeleteThreadScores
            | Self::UpdateTraceComment
            | Self::UpdateSpanComment
            | Self::UpdateThreadComment
            | Self::DeleteTraceComments
            | Self::DeleteSpanComments
            | Self::DeleteThreadComments
            | Self::OpenThread
            | Self::CloseThreads
            | Self::UpdateThread => Bucket::Other,
            Self::CreateTraceBatch
            | Self::CreateSpansBatch
            | Self::AddTraceFeedbackScoresBatch
            | Self::AddSpanFeedbackScoresBatch
            | Self::AddThreadsFeedbackScoresBatch
            | Self::CreateExperimentItemsBatch
            | Self::GuardrailBatch
            | Self::AddAssertionResultsBatch
            | Self::OtlpTraces
            | Self::UpdateTraces
            | Self::UpdateSpans
            | Self::UpdateThreads
            | Self::ScoreTrace
            | Self::ScoreSpan
            | Self::CreateDataset
            | Self::PutDatasetItems
            | Self::UpdateDatasetItem
            | Self::UpdateDatasetItems
            | Self::DeleteDatasetItems
            | Self::CreateExperiment
            | Self::UpdateExperiment
            | Self::UpdateExperiments
            | Self::FinishExperiments
            | Self::DeleteExperiments
            | Self::PutExperimentItems
            | Self::DeleteExperimentItems
            | Self::CreateOptimization
            | Self::PutOptimization
            | Self::UpdateOptimization
            | Self::AddQueueItems
            | Self::RemoveQueueItems
            | Self::AppendJobLogs
            | Self::UnknownSdkRow => Bucket::Events,
        }
    }

    /// Returns whether the message creates one trace or span, which may share a batch with others.
    pub fn is_single_create(self) -> bool {
        matches!(self, Self::CreateTrace | Self::CreateSpan)
    }

    /// Returns whether the message creates traces or spans in a batch.
    pub fn is_batch_create(self) -> bool {
        matches!(self, Self::CreateTraceBatch | Self::CreateSpansBatch)
    }

    /// Returns whether the message leaves a partial row of each trace or span that it changes and that does not exist yet.
    pub fn makes_partial_rows(self) -> bool {
        matches!(self, Self::UpdateTrace | Self::UpdateSpan | Self::UpdateTraces | Self::UpdateSpans)
    }
}

/// A set of buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets(u8);

impl Buckets {
    /// Adds a bucket.
    pub fn insert(&mut self, bucket: Bucket) {
        self.0 |= 1 << bucket.code();
    }

    /// Returns whether a bucket is in the set.
    pub fn contains(self, bucket: Bucket) -> bool {
        self.0 & (1 << bucket.code()) != 0
    }

    /// Returns whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Bucket> for Buckets {
    fn from_iter<T: IntoIterator<Item = Bucket>>(buckets: T) -> Self {
        let mut set = Self::default();
        buckets.into_iter().for_each(|bucket| set.insert(bucket));
        set
    }
}

/// How a create of one trace or span may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// As itself or as an item of a batch.
    #[default]
    Any,
    /// As itself only: an update may have reached the server before it, or batches are limited.
    Single,
    /// As an item of a batch only: single creates are limited.
    Batch,
}

impl Way {
    /// Returns how a message of this type may be sent while these buckets are limited, or `None` if it has to wait.
    /// `has_ahead`: an update of an entity that it creates may have reached the server before it.
    ///
    /// A batch create with such an entity needs both buckets: the entity is taken out and created singly.
    pub fn of(message_type: MessageType, has_ahead: bool, limited: Buckets) -> Option<Self> {
        let is_free = |bucket| !limited.contains(bucket);
        let (single, batch) = (is_free(Bucket::Single), is_free(Bucket::Events));
        if message_type.is_single_create() {
            return match (has_ahead, single, batch) {
                (true, true, _) | (false, true, false) => Some(Self::Single),
                (false, true, true) => Some(Self::Any),
                (false, false, true) => Some(Self::Batch),
                (true, false, _) | (false, false, false) => None,
            };
        }
        let takes_out = message_type.is_batch_create() && has_ahead;
        (is_free(message_type.bucket()) && (!takes_out || single)).then_some(Self::Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_survives_the_store() {
        for bucket in Bucket::ALL {
            assert_eq!(Bucket::from_code(bucket.code()), Some(bucket));
        }
        assert_eq!(Bucket::from_code(3), None);
    }

    #[test]
    fn a_limit_holds_only_requests_of_its_bucket() {
        use MessageType as T;
        let none = Buckets::default();
        let [single, events, other] = Bucket::ALL.map(|bucket| Buckets::from_iter([bucket]));
        let both = Buckets::from_iter([Bucket::Single, Bucket::Events]);
        for (message_type, has_ahead, limited, expected) in [
            (T::CreateSpan, false, none, Some(Way::Any)),
            (T::CreateSpan, false, single, Some(Way::Batch)),
            (T::CreateSpan, false, events, Some(Way::Single)),
            (T::CreateSpan, false, both, None),
            (T::CreateSpan, true, none, Some(Way::Single)),
            (T::CreateSpan, true, events, Some(Way::Single)),
            (T::CreateSpan, true, single, None),
            (T::UpdateTrace, false, single, None),
            (T::UpdateTrace, false, events, Some(Way::Any)),
            (T::CreateSpansBatch, false, single, Some(Way::Any)),
            (T::CreateSpansBatch, true, single, None),
            (T::CreateSpansBatch, true, none, Some(Way::Any)),
            (T::CreateSpansBatch, false, events, None),
            (T::OtlpTraces, false, events, None),
            (T::DeleteTrace, false, both, Some(Way::Any)),
            (T::DeleteTrace, false, other, None),
            (T::CreateAttachment, false, both, Some(Way::Any)),
        ] {
            assert_eq!(Way::of(message_type, has_ahead, limited), expected, "{message_type} {has_ahead} {limited:?}");
        }
    }
}
