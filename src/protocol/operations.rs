//! Every write of Opik's HTTP interface, and its class.
//!
//! One row per POST, PUT, PATCH and DELETE of the server's OpenAPI file; a test walks that file. The classes and
//! reasons are those of the protocol dossier's section i, except that creating a comment needs the response: the server
//! assigns its id.

use crate::message::MessageType;

/// A client's step of the attachment upload flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `POST upload-start`
    Start,
    /// `PUT upload`
    Put,
    /// `POST upload-complete`
    Complete,
}

/// How the agent handles a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Stored during an outage: one of the SDK's message types.
    Protected(MessageType),
    /// Stored as well: the client supplies every id and needs only the status of the response. If that depends on
    /// the payload, [`super::inspection`] decides for each request.
    Deferrable(MessageType),
    /// A step of the attachment upload flow.
    Upload(Step),
    /// Passed through, never stored: the client needs the server's response.
    NeedsAnswer,
}

/// One write of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The method, upper case.
    pub method: &'static str,
    /// The path below the server's base; `{...}` matches one segment.
    pub path: &'static str,
    /// How the agent handles it.
    pub class: Class,
    /// Why, for developers.
    pub why: &'static str,
}

const fn row(method: &'static str, path: &'static str, class: Class, why: &'static str) -> Operation {
    Operation { method, path, class, why }
}

const fn protected(method: &'static str, path: &'static str, message_type: MessageType) -> Operation {
    row(method, path, Class::Protected(message_type), "a message of the SDK")
}

const fn deferrable(
    method: &'static str,
    path: &'static str,
    message_type: MessageType,
    why: &'static str,
) -> Operation {
    row(method, path, Class::Deferrable(message_type), why)
}

const fn upload(method: &'static str, path: &'static str, step: Step) -> Operation {
    row(method, path, Class::Upload(step), "a step of CreateAttachmentMessage; the agent takes the flow over")
}

const fn ask(method: &'static str, path: &'static str, why: &'static str) -> Operation {
    row(method, path, Class::NeedsAnswer, why)
}

const AUTHENTICATION: &str = "authentication; the status is the answer";
const READ: &str = "a read sent as POST; the caller uses the rows";
const BLUEPRINT: &str = "blueprint version is assigned by the server; conflicts must be seen";
const ANSWER: &str = "the answer body is used";
const STARTS_JOB: &str = "starts a server job on current server state";
const PERSON: &str = "an administrative change made by a person, whom a silent delay would mislead";
const LOCK: &str = "lock; only meaningful now";
const MODEL_CALL: &str = "live model call";
const CURRENT: &str = "depends on the current version; conflicts must be seen";
const LIVE: &str = "live session with a running process";
const VERSIONED: &str = "server assigns version and commit, or edits shared prompt state";
const COMMENT: &str =
    "the server makes the id, and the client finds it in Location; a repeat would make a second comment";

/// All of them.
#[rustfmt::skip]
pub const OPERATIONS: &[Operation] = &[
    // The SDK's message types (protocol dossier, section a).
    protected("PUT", "v1/private/assertion-results", MessageType::AddAssertionResultsBatch),
    protected("POST", "v1/private/experiments/items", MessageType::CreateExperimentItemsBatch),
    protected("POST", "v1/private/guardrails", MessageType::GuardrailBatch),
    protected("POST", "v1/private/spans/batch", MessageType::CreateSpansBatch),
    protected("POST", "v1/private/spans", MessageType::CreateSpan),
    protected("PATCH", "v1/private/spans/{id}", MessageType::UpdateSpan),
    protected("PUT", "v1/private/spans/feedback-scores", MessageType::AddSpanFeedbackScoresBatch),
    protected("POST", "v1/private/traces/batch", MessageType::CreateTraceBatch),
    protected("POST", "v1/private/traces", MessageType::CreateTrace),
    protected("PATCH", "v1/private/traces/{id}", MessageType::UpdateTrace),
    protected("PUT", "v1/private/traces/threads/feedback-scores", MessageType::AddThreadsFeedbackScoresBatch),
    protected("PUT", "v1/private/traces/feedback-scores", MessageType::AddTraceFeedbackScoresBatch),

    // The attachment upload flow.
    upload("POST", "v1/private/attachment/upload-complete", Step::Complete),
    upload("POST", "v1/private/attachment/upload-start", Step::Start),
    upload("PUT", "v1/private/attachment/upload", Step::Put),

    // Other writes that can be stored.
    deferrable("POST", "v1/private/annotation-queues/{id}/items/add", MessageType::AddQueueItems, "ids are given and form a set"),
    deferrable("POST", "v1/private/annotation-queues/{id}/items/delete", MessageType::RemoveQueueItems, "ids are given; repeatable"),
    deferrable("POST", "v1/private/attachment/delete", MessageType::DeleteAttachments, "names are given; repeatable"),
    deferrable("PATCH", "v1/private/datasets/items/batch", MessageType::UpdateDatasetItems, "kept when it names ids; a filter may match other rows later"),
    deferrable("POST", "v1/private/datasets", MessageType::CreateDataset, "kept when the client gives the id"),
    deferrable("PUT", "v1/private/datasets/items", MessageType::PutDatasetItems, "an upsert by item id, which is added where it is missing; not when it copies another dataset"),
    deferrable("POST", "v1/private/datasets/items/delete", MessageType::DeleteDatasetItems, "kept when it names ids; a filter may match other rows later"),
    deferrable("PATCH", "v1/private/datasets/items/{itemId}", MessageType::UpdateDatasetItem, "the last write wins"),
    deferrable("PATCH", "v1/private/experiments/batch", MessageType::UpdateExperiments, "ids are given; the last write wins"),
    deferrable("POST", "v1/private/experiments", MessageType::CreateExperiment, "kept when the client gives the id, as the SDKs do"),
    deferrable("POST", "v1/private/experiments/items/delete", MessageType::DeleteExperimentItems, "ids are given; repeatable"),
    deferrable("POST", "v1/private/experiments/delete", MessageType::DeleteExperiments, "ids are given; repeatable"),
    deferrable("PUT", "v1/private/experiments/items/bulk", MessageType::PutExperimentItems, "kept when the experiment and all traces and spans have ids; otherwise a repeat duplicates"),
    deferrable("POST", "v1/private/experiments/finish", MessageType::FinishExperiments, "ids are given; after the items"),
    deferrable("PATCH", "v1/private/experiments/{id}", MessageType::UpdateExperiment, "the last write wins; after the create"),
    deferrable("POST", "v1/private/local-runners/jobs/{jobId}/logs", MessageType::AppendJobLogs, "lines are appended and nothing is answered"),
    deferrable("POST", "v1/private/otel/v1/traces", MessageType::OtlpTraces, "ids come from the exporter, and it ignores the answer's body"),
    deferrable("PUT", "v1/private/optimizations", MessageType::PutOptimization, "an upsert; kept when the client gives the id"),
    deferrable("POST", "v1/private/optimizations", MessageType::CreateOptimization, "kept when the client gives the id"),
    deferrable("PUT", "v1/private/optimizations/{id}", MessageType::UpdateOptimization, "the last write wins; after the create"),
    deferrable("PUT", "v1/private/spans/{id}/feedback-scores", MessageType::ScoreSpan, "an upsert by entity and name"),
    deferrable("PATCH", "v1/private/spans/batch", MessageType::UpdateSpans, "ids are given; the last write wins"),
    deferrable("DELETE", "v1/private/spans/{id}", MessageType::DeleteSpan, "the id is given; servers may answer 501"),
    deferrable("POST", "v1/private/spans/comments/delete", MessageType::DeleteSpanComments, "ids are given; repeatable"),
    deferrable("POST", "v1/private/spans/{id}/feedback-scores/delete", MessageType::DeleteSpanScore, "repeatable; after the score that it removes"),
    deferrable("PATCH", "v1/private/spans/comments/{commentId}", MessageType::UpdateSpanComment, "the last write wins"),
    deferrable("PUT", "v1/private/traces/{id}/feedback-scores", MessageType::ScoreTrace, "an upsert by entity and name"),
    deferrable("PATCH", "v1/private/traces/batch", MessageType::UpdateTraces, "ids are given; the last write wins"),
    deferrable("PATCH", "v1/private/traces/threads/batch", MessageType::UpdateThreads, "ids are given; the last write wins"),
    deferrable("PUT", "v1/private/traces/threads/close", MessageType::CloseThreads, "threads are named; after their traces"),
    deferrable("DELETE", "v1/private/traces/{id}", MessageType::DeleteTrace, "the id is given; after every write of that trace"),
    deferrable("POST", "v1/private/traces/threads/comments/delete", MessageType::DeleteThreadComments, "ids are given; repeatable"),
    deferrable("POST", "v1/private/traces/threads/feedback-scores/delete", MessageType::DeleteThreadScores, "repeatable; after the score that it removes"),
    deferrable("POST", "v1/private/traces/comments/delete", MessageType::DeleteTraceComments, "ids are given; repeatable"),
    deferrable("POST", "v1/private/traces/{id}/feedback-scores/delete", MessageType::DeleteTraceScore, "repeatable; after the score that it removes"),
    deferrable("POST", "v1/private/traces/threads/delete", MessageType::DeleteThreads, "threads are named; repeatable"),
    deferrable("POST", "v1/private/traces/delete", MessageType::DeleteTraces, "ids are given; after every write of those traces"),
    deferrable("PUT", "v1/private/traces/threads/open", MessageType::OpenThread, "the thread is named; in order with its close"),
    deferrable("PATCH", "v1/private/traces/threads/{threadModelId}", MessageType::UpdateThread, "the last write wins"),
    deferrable("PATCH", "v1/private/traces/threads/comments/{commentId}", MessageType::UpdateThreadComment, "the last write wins"),
    deferrable("PATCH", "v1/private/traces/comments/{commentId}", MessageType::UpdateTraceComment, "the last write wins"),

    // Writes that need the server's response.
    ask("POST", "oauth/authorize", AUTHENTICATION),
    ask("POST", "oauth/register", AUTHENTICATION),
    ask("POST", "oauth/revoke", AUTHENTICATION),
    ask("POST", "oauth/token", AUTHENTICATION),
    ask("POST", "opik/auth-oauth", AUTHENTICATION),
    ask("POST", "v1/private/auth", AUTHENTICATION),
    ask("POST", "v1/internal/analytics-queries/projects/{projectId}", READ),
    ask("POST", "v1/private/datasets/retrieve", READ),
    ask("POST", "v1/private/datasets/items/stream", READ),
    ask("POST", "v1/private/datasets/{id}/versions/retrieve", READ),
    ask("POST", "v1/private/experiments/items/stream", READ),
    ask("POST", "v1/private/experiments/stream", READ),
    ask("POST", "v1/private/projects/{id}/kpi-cards", READ),
    ask("POST", "v1/private/projects/{id}/metrics", READ),
    ask("POST", "v1/private/projects/retrieve", READ),
    ask("POST", "v1/private/prompts/retrieve-by-commits", READ),
    ask("POST", "v1/private/prompts/versions/retrieve", READ),
    ask("POST", "v1/private/prompts/versions/retrieve-by-ids", READ),
    ask("POST", "v1/private/spans/search", READ),
    ask("POST", "v1/private/traces/threads/retrieve", READ),
    ask("POST", "v1/private/traces/threads/search", READ),
    ask("POST", "v1/private/traces/search", READ),
    ask("POST", "v1/private/workspaces/costs/summaries", READ),
    ask("POST", "v1/private/workspaces/costs", READ),
    ask("POST", "v1/private/workspaces/metrics", READ),
    ask("POST", "v1/private/workspaces/metrics/spans", READ),
    ask("POST", "v1/private/workspaces/metrics/summaries", READ),
    ask("POST", "v1/private/agent-configs/blueprints", BLUEPRINT),
    ask("PATCH", "v1/private/agent-configs/blueprints", BLUEPRINT),
    ask("POST", "v1/private/agent-configs/blueprints/projects/{project_id}/masks/{mask_id}", BLUEPRINT),
    ask("POST", "v1/private/agent-configs/blueprints/environments", BLUEPRINT),
    ask("PUT", "v1/private/agent-configs/blueprints/environments/{env_name}/projects/{project_id}", BLUEPRINT),
    ask("DELETE", "v1/private/agent-configs/blueprints/environments/{env_name}/projects/{project_id}", BLUEPRINT),
    ask("POST", "v1/private/agent-configs/blueprints/remove-keys", BLUEPRINT),
    ask("POST", "v1/private/agent-insights/jobs/{projectId}", ANSWER),
    ask("PATCH", "v1/private/agent-insights/jobs/{projectId}", ANSWER),
    ask("POST", "v1/private/alerts/webhooks/tests", ANSWER),
    ask("POST", "v1/private/dashboards", ANSWER),
    ask("PATCH", "v1/private/dashboards/{dashboardId}", ANSWER),
    ask("POST", "v1/private/insights-views", ANSWER),
    ask("PATCH", "v1/private/insights-views/{insightsViewId}", ANSWER),
    ask("PUT", "v1/private/projects/{projectId}/reports/preferences", ANSWER),
    ask("POST", "v1/private/retention/rules", ANSWER),
    ask("PUT", "v1/private/workspaces/configurations", ANSWER),
    ask("POST", "v1/private/agent-insights/jobs/{projectId}/trigger", STARTS_JOB),
    ask("POST", "v1/private/datasets/items/from-csv", STARTS_JOB),
    ask("POST", "v1/private/datasets/items/from-json", STARTS_JOB),
    ask("POST", "v1/private/datasets/{dataset_id}/items/from-spans", STARTS_JOB),
    ask("POST", "v1/private/datasets/{dataset_id}/items/from-traces", STARTS_JOB),
    ask("POST", "v1/private/datasets/{id}/expansions", STARTS_JOB),
    ask("PUT", "v1/private/datasets/export-jobs/{jobId}/mark-viewed", STARTS_JOB),
    ask("POST", "v1/private/datasets/{id}/export", STARTS_JOB),
    ask("POST", "v1/private/experiments/execute", STARTS_JOB),
    ask("POST", "v1/private/manual-evaluation/spans", STARTS_JOB),
    ask("POST", "v1/private/manual-evaluation/threads", STARTS_JOB),
    ask("POST", "v1/private/manual-evaluation/traces", STARTS_JOB),
    ask("POST", "v1/private/projects/{projectId}/reports/generate", STARTS_JOB),
    ask("POST", "v1/private/agent-insights/issues", PERSON),
    ask("PATCH", "v1/private/agent-insights/issues/{issue_id}", PERSON),
    ask("POST", "v1/private/alerts", PERSON),
    ask("POST", "v1/private/alerts/delete", PERSON),
    ask("PUT", "v1/private/alerts/{id}", PERSON),
    ask("POST", "v1/private/annotation-queues", PERSON),
    ask("POST", "v1/private/annotation-queues/batch", PERSON),
    ask("POST", "v1/private/annotation-queues/delete", PERSON),
    ask("PATCH", "v1/private/annotation-queues/{id}", PERSON),
    ask("POST", "v1/private/automations/evaluators", PERSON),
    ask("POST", "v1/private/automations/evaluators/delete", PERSON),
    ask("PATCH", "v1/private/automations/evaluators/{id}", PERSON),
    ask("DELETE", "v1/private/dashboards/{dashboardId}", PERSON),
    ask("POST", "v1/private/dashboards/delete-batch", PERSON),
    ask("PUT", "v1/private/datasets/{id}", PERSON),
    ask("DELETE", "v1/private/datasets/{id}", PERSON),
    ask("POST", "v1/private/datasets/delete", PERSON),
    ask("POST", "v1/private/datasets/delete-batch", PERSON),
    ask("POST", "v1/private/environments", PERSON),
    ask("POST", "v1/private/environments/delete", PERSON),
    ask("PATCH", "v1/private/environments/{id}", PERSON),
    ask("POST", "v1/private/feedback-definitions", PERSON),
    ask("PUT", "v1/private/feedback-definitions/{id}", PERSON),
    ask("DELETE", "v1/private/feedback-definitions/{id}", PERSON),
    ask("POST", "v1/private/feedback-definitions/delete", PERSON),
    ask("DELETE", "v1/private/insights-views/{insightsViewId}", PERSON),
    ask("POST", "v1/private/insights-views/delete-batch", PERSON),
    ask("POST", "v1/private/llm-provider-key/delete", PERSON),
    ask("POST", "v1/private/llm-provider-key", PERSON),
    ask("PATCH", "v1/private/llm-provider-key/{id}", PERSON),
    ask("PUT", "v1/private/ollie/state", PERSON),
    ask("DELETE", "v1/private/ollie/state", PERSON),
    ask("POST", "v1/private/optimizations/delete", PERSON),
    ask("POST", "v1/private/projects", PERSON),
    ask("DELETE", "v1/private/projects/{id}", PERSON),
    ask("PATCH", "v1/private/projects/{id}", PERSON),
    ask("POST", "v1/private/projects/delete", PERSON),
    ask("POST", "v1/private/report-failures", PERSON),
    ask("POST", "v1/private/projects/{projectId}/reports/{reportId}/complete", PERSON),
    ask("DELETE", "v1/private/retention/rules/{ruleId}", PERSON),
    ask("POST", "v1/private/welcome-wizard", PERSON),
    ask("DELETE", "v1/private/workspaces/configurations", PERSON),
    ask("PUT", "v1/private/annotation-queues/{queueId}/items/{itemId}/lock", LOCK),
    ask("POST", "v1/private/chat/completions", MODEL_CALL),
    ask("POST", "v1/private/ollama/models", MODEL_CALL),
    ask("POST", "v1/private/ollama/test-connection", MODEL_CALL),
    ask("POST", "v1/private/datasets/{id}/items/changes", CURRENT),
    ask("POST", "v1/private/datasets/{id}/versions/hash/{versionHash}/tags", CURRENT),
    ask("DELETE", "v1/private/datasets/{id}/versions/{versionHash}/tags/{tag}", CURRENT),
    ask("POST", "v1/private/datasets/{id}/versions/restore", CURRENT),
    ask("PATCH", "v1/private/datasets/{id}/versions/hash/{versionHash}", CURRENT),
    ask("POST", "v1/private/local-runners/jobs/{jobId}/cancel", LIVE),
    ask("POST", "v1/private/local-runners/{runnerId}/bridge/commands", LIVE),
    ask("POST", "v1/private/local-runners/jobs", LIVE),
    ask("DELETE", "v1/private/local-runners/{runnerId}", LIVE),
    ask("POST", "v1/private/local-runners/{runnerId}/heartbeats", LIVE),
    ask("POST", "v1/private/local-runners/{runnerId}/bridge/commands/next", LIVE),
    ask("POST", "v1/private/local-runners/{runnerId}/jobs/next", LIVE),
    ask("PATCH", "v1/private/local-runners/{runnerId}/checklist", LIVE),
    ask("PUT", "v1/private/local-runners/{runnerId}/agents", LIVE),
    ask("POST", "v1/private/local-runners/{runnerId}/bridge/commands/{commandId}/results", LIVE),
    ask("POST", "v1/private/local-runners/jobs/{jobId}/results", LIVE),
    ask("POST", "v1/private/pairing/sessions/{sessionId}/activate", LIVE),
    ask("POST", "v1/private/pairing/sessions", LIVE),
    ask("POST", "v1/private/prompts", VERSIONED),
    ask("POST", "v1/private/prompts/versions", VERSIONED),
    ask("PATCH", "v1/private/prompts/versions", VERSIONED),
    ask("PUT", "v1/private/prompts/{id}", VERSIONED),
    ask("DELETE", "v1/private/prompts/{id}", VERSIONED),
    ask("POST", "v1/private/prompts/delete", VERSIONED),
    ask("POST", "v1/private/prompts/{promptId}/versions/{versionId}/restore", VERSIONED),
    ask("PATCH", "v1/private/prompts/versions/{versionId}/environments", VERSIONED),
    ask("POST", "v1/private/spans/{id}/comments", COMMENT),
    ask("POST", "v1/private/traces/threads/{id}/comments", COMMENT),
    ask("POST", "v1/private/traces/{id}/comments", COMMENT),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Returns method and path of every write in the OpenAPI file: paths are keys indented by two, methods by four.
    fn writes_of_the_openapi_file() -> BTreeSet<(String, String)> {
        let file = include_str!("../../tests/fixtures/openapi.yaml");
        let paths = file.lines().skip_while(|line| *line != "paths:").skip(1);
        let paths = paths.take_while(|line| line.is_empty() || line.starts_with(' '));
        let mut path = String::new();
        let mut writes = BTreeSet::new();
        for line in paths {
            let indent = line.len() - line.trim_start().len();
            let key = line.trim().trim_end_matches(':');
            match indent {
                2 => path = key.trim_matches(['"', '\'', '/']).to_owned(),
                4 if ["post", "put", "patch", "delete"].contains(&key) => {
                    writes.insert((key.to_uppercase(), path.clone()));
                }
                _ => {}
            }
        }
        writes
    }

    #[test]
    fn the_table_has_exactly_the_writes_of_the_openapi_file() {
        let file = writes_of_the_openapi_file();
        assert_eq!(file.len(), 188);
        let table: Vec<_> = OPERATIONS.iter().map(|o| (o.method.to_owned(), o.path.to_owned())).collect();
        let distinct: BTreeSet<_> = table.iter().cloned().collect();
        assert_eq!(distinct.len(), table.len(), "an operation is in the table twice");
        assert_eq!(file.difference(&distinct).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
        assert_eq!(distinct.difference(&file).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
        assert!(OPERATIONS.iter().all(|operation| !operation.why.is_empty()));
    }

    #[test]
    fn every_message_type_but_attachments_has_one_endpoint() {
        for (index, message_type) in MessageType::ALL.iter().enumerate() {
            let of_type = |class: &Class| match class {
                Class::Protected(found) => found == message_type && index < MessageType::SDK_COUNT,
                Class::Deferrable(found) => found == message_type && index >= MessageType::SDK_COUNT,
                Class::Upload(_) | Class::NeedsAnswer => false,
            };
            let found = OPERATIONS.iter().filter(|operation| of_type(&operation.class)).count();
            let has_none = [MessageType::CreateAttachment, MessageType::UnknownSdkRow].contains(message_type);
            assert_eq!(found, usize::from(!has_none), "{message_type}");
        }
    }
}
