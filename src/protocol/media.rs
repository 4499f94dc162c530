//! The content types that Opik's server accepts.
//!
//! Its resources are annotated `@Consumes(application/json)` by class, with few exceptions; its OpenAPI file is made
//! from the same annotations. JAX-RS answers 415 to every other type, and to a payload without a type, because no
//! reader parses `application/octet-stream` into an object. Parameters such as the charset don't matter, and an empty
//! body needs no type (read in Jersey's `MethodSelectingRouter` and `ReaderInterceptorExecutor`).

use super::operations::Class;
use super::otlp;
use super::routes::operation;
use crate::message::MessageType;

/// Writes whose payload is not JSON, or that have none: the server validates it.
const NOT_JSON: [(&str, &str); 31] = [
    ("POST", "oauth/revoke"),
    ("POST", "oauth/token"),
    ("POST", "opik/auth-oauth"),
    ("POST", "v1/private/agent-configs/blueprints/projects/{project_id}/masks/{mask_id}"),
    ("DELETE", "v1/private/agent-configs/blueprints/environments/{env_name}/projects/{project_id}"),
    ("POST", "v1/private/agent-insights/jobs/{projectId}"),
    ("POST", "v1/private/agent-insights/jobs/{projectId}/trigger"),
    ("PUT", "v1/private/annotation-queues/{queueId}/items/{itemId}/lock"),
    ("PUT", "v1/private/attachment/upload"),
    ("DELETE", "v1/private/dashboards/{dashboardId}"),
    ("POST", "v1/private/datasets/items/from-csv"),
    ("POST", "v1/private/datasets/items/from-json"),
    ("DELETE", "v1/private/datasets/{id}"),
    ("PUT", "v1/private/datasets/export-jobs/{jobId}/mark-viewed"),
    ("POST", "v1/private/datasets/{id}/export"),
    ("DELETE", "v1/private/datasets/{id}/versions/{versionHash}/tags/{tag}"),
    ("DELETE", "v1/private/feedback-definitions/{id}"),
    ("DELETE", "v1/private/insights-views/{insightsViewId}"),
    ("POST", "v1/private/local-runners/jobs/{jobId}/cancel"),
    ("DELETE", "v1/private/local-runners/{runnerId}"),
    ("POST", "v1/private/local-runners/{runnerId}/jobs/next"),
    ("PUT", "v1/private/ollie/state"),
    ("DELETE", "v1/private/ollie/state"),
    ("DELETE", "v1/private/projects/{id}"),
    ("DELETE", "v1/private/prompts/{id}"),
    ("POST", "v1/private/prompts/{promptId}/versions/{versionId}/restore"),
    ("POST", "v1/private/projects/{projectId}/reports/generate"),
    ("DELETE", "v1/private/retention/rules/{ruleId}"),
    ("DELETE", "v1/private/spans/{id}"),
    ("DELETE", "v1/private/traces/{id}"),
    ("DELETE", "v1/private/workspaces/configurations"),
];

/// Returns why the server would answer 415 to a write, or `None` if it would accept it.
///
/// `path` is below the server's base. `content_types` are the values of every `Content-Type` header; one that is not
/// text is `None`. Reads, and writes unknown to the agent, are left to the server.
pub(crate) fn unsupported<'a>(
    method: &str,
    path: &str,
    has_body: bool,
    content_types: impl Iterator<Item = Option<&'a str>>,
) -> Option<String> {
    let operation = operation(method, path.trim_end_matches('/'))?;
    let is_kept = operation.class != Class::NeedsAnswer;
    let is_otlp = operation.class == Class::Deferrable(MessageType::OtlpTraces);
    let is_json = !NOT_JSON.contains(&(operation.method, operation.path));
    let is_read = |content_type: &str| {
        let essence = content_type.split(';').next().unwrap_or("").trim();
        essence.eq_ignore_ascii_case("application/json")
            || is_otlp && otlp::Format::from_content_type(content_type).is_some()
    };
    let expected = if is_otlp { "application/x-protobuf or application/json" } else { "application/json" };
    // Protected deletions have no body; the server still validates a type that they declare.
    let is_typed_by_class = is_json || matches!(operation.class, Class::Protected(_) | Class::Deferrable(_));
    if !is_typed_by_class {
        return None;
    }
    let mut is_typed = false;
    for content_type in content_types {
        is_typed = true;
        if !content_type.is_some_and(is_read) {
            let named = content_type.unwrap_or("(unreadable)");
            let named: String = named.chars().filter(|c| !c.is_control()).take(100).collect();
            return Some(format!("Content-Type {named} is not supported, use {expected}"));
        }
    }
    let is_missing = has_body && is_json && is_kept && !is_typed;
    is_missing.then(|| format!("a body without Content-Type is not supported, use {expected}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::operations::OPERATIONS;

    fn judge(method: &str, path: &str, content_type: Option<&str>) -> bool {
        unsupported(method, path, true, content_type.into_iter().map(Some)).is_none()
    }

    #[test]
    fn content_types_are_rejected_as_by_the_server() {
        const TRACES: &str = "v1/private/traces";
        const OTLP: &str = "v1/private/otel/v1/traces";
        for (content_type, json, otlp) in [
            (Some("application/json"), true, true),
            (Some("application/json; charset=utf-8"), true, true),
            (Some("Application/JSON;charset=UTF-8"), true, true),
            (Some(" application/json ;x"), true, true),
            (Some("application/x-protobuf"), false, true),
            (None, false, false),
            (Some(""), false, false),
            (Some("text/plain"), false, false),
            (Some("text/plain;application/json"), false, false),
            (Some("text/json"), false, false),
            (Some("application/x-www-form-urlencoded"), false, false),
            (Some("multipart/form-data; boundary=x"), false, false),
            (Some("application/octet-stream"), false, false),
            (Some("application/vnd.api+json"), false, false),
            (Some("application/json, text/plain"), false, false),
            (Some("application/*"), false, false),
            (Some("*/*"), false, false),
            (Some("application/protobuf"), false, false),
        ] {
            for (method, path) in [("POST", TRACES), ("POST", "v1/private/traces/"), ("PATCH", "v1/private/traces/x")] {
                assert_eq!(judge(method, path, content_type), json, "{method} {path} {content_type:?}");
            }
            for path in [
                "v1/private/attachment/upload-start",
                "v1/private/attachment/upload-complete",
                "v1/private/spans/batch",
            ] {
                assert_eq!(judge("POST", path, content_type), json, "{path} {content_type:?}");
            }
            assert_eq!(judge("POST", OTLP, content_type), otlp, "OTLP {content_type:?}");
            // Left to the server.
            for (method, path) in [
                ("GET", TRACES),
                ("PUT", "v1/private/attachment/upload"),
                ("POST", "v1/private/new"),
                ("DELETE", "v1/private/prompts/x"),
            ] {
                assert!(judge(method, path, content_type), "{method} {path} {content_type:?}");
            }
            let deletion = judge("DELETE", "v1/private/traces/x", content_type);
            assert_eq!(deletion, json || content_type.is_none(), "a deletion with {content_type:?}");
            // A pass-through request without a type is left to the server.
            let search = judge("POST", "v1/private/traces/search", content_type);
            assert_eq!(search, json || content_type.is_none(), "a search with {content_type:?}");
        }
        assert_eq!(unsupported("POST", TRACES, false, std::iter::empty()), None, "no body needs no type");
        let two = [Some("application/json"), Some("text/plain")];
        assert!(unsupported("POST", TRACES, true, two.into_iter()).is_some());
        assert!(unsupported("POST", TRACES, true, [None].into_iter()).is_some());
    }

    /// Returns method and path of the writes in the OpenAPI file whose body has another type than JSON, or none.
    fn not_json_in_the_openapi_file() -> BTreeSet<(String, String)> {
        let file = include_str!("../../tests/fixtures/openapi.yaml");
        let paths = file.lines().skip_while(|line| *line != "paths:").skip(1);
        let (mut path, mut method, mut is_body) = (String::new(), String::new(), false);
        let mut types: std::collections::BTreeMap<(String, String), Vec<String>> = Default::default();
        for line in paths.take_while(|line| line.is_empty() || line.starts_with(' ')) {
            let indent = line.len() - line.trim_start().len();
            let key = line.trim().trim_end_matches(':');
            match indent {
                2 => path = key.trim_matches(['"', '\'', '/']).to_owned(),
                4 => {
                    (method, is_body) = (key.to_uppercase(), false);
                    if ["POST", "PUT", "PATCH", "DELETE"].contains(&&*method) {
                        types.insert((method.clone(), path.clone()), Vec::new());
                    }
                }
                6 => is_body = key == "requestBody",
                10 if is_body => {
                    if let Some(known) = types.get_mut(&(method.clone(), path.clone())) {
                        known.push(key.to_owned());
                    }
                }
                _ => {}
            }
        }
        types.into_iter().filter(|(_, types)| *types != ["application/json"]).map(|(operation, _)| operation).collect()
    }

    #[test]
    fn routes_without_json_match_the_openapi_file() {
        let mut expected = not_json_in_the_openapi_file();
        // The server's source has a second method for JSON, which the file leaves out.
        assert!(expected.remove(&("POST".to_owned(), "v1/private/otel/v1/traces".to_owned())));
        let known: BTreeSet<_> =
            NOT_JSON.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
        assert_eq!(known, expected);
        let table: BTreeSet<_> = OPERATIONS.iter().map(|o| (o.method.to_owned(), o.path.to_owned())).collect();
        assert!(known.is_subset(&table));
    }
}
