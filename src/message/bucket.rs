//! Rate-limit buckets: the server throttles writes by several counters, and a 429 means that one of them is exhausted.

use super::MessageType;

/// The server's rate-limit counter that a request draws from.
///
/// Source: the `@RateLimited` annotations of Opik's resources, its `RateLimitInterceptor` and `config.yml` (pull
/// request 2860). Single creates and updates of a trace or span draw only from `singleTracingOps`, per workspace.
/// Batches and most other writes draw from the general limit (per key) and from the workspace's. Deletions, comments
/// and opening and closing threads are not rate limited. Every answer to a limited request has an `Opik-<name>-Limit`
/// header for each bucket of the request; no header names the exhausted one, and operators may rename them, so the
/// bucket follows from the request. Servers have moved endpoints between buckets: a wrong guess costs one more 429,
/// which then throttles that bucket too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Bucket {
    /// Creates and updates of one trace or span (`single_tracing_ops`).
    Single = 0,
    /// Batches and most other writes (`general_events`, `workspace_events`).
    Events = 1,
    /// Writes that Opik does not rate limit; a front or an object store may.
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

    /// Returns the description of the bucket that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single creates and updates",
            Self::Events => "batches and scores",
            Self::Other => "deletions, comments and attachments",
        }
    }
}

impl MessageType {
    /// Returns the rate-limit bucket of requests of this type.
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

    /// Returns whether the message creates a single trace or span, which replay may coalesce into a batch.
    pub fn is_single_create(self) -> bool {
        matches!(self, Self::CreateTrace | Self::CreateSpan)
    }

    /// Returns whether the message creates traces or spans in a batch.
    pub fn is_batch_create(self) -> bool {
        matches!(self, Self::CreateTraceBatch | Self::CreateSpansBatch)
    }

    /// Returns whether the message makes the server create a partial record of each trace or span that it changes and
    /// that does not exist yet.
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
    /// Returns how a message of this type may be sent while these buckets are throttled, or `None` if it has to wait.
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
