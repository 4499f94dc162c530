use super::*;
use crate::protocol::operations::{Class, OPERATIONS};
use crate::protocol::routes::classify;

const SERVERS: [&str; 3] = ["http://srv:5173/api", "https://www.comet.com/opik/api", "http://srv:8080"];

/// How an SDK derives an address from its `url_override`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Appended to it: requests of the API, and the redirects in printed links.
    Whole,
    /// Appended to it without `/api`: pages of the UI (`get_ui_url`).
    WithoutApi,
    /// Appended to its scheme and host (`get_base_url`): an intake token in its path is lost.
    Host,
    /// The same, for people: pages that are not below the base path.
    HostForPeople,
}

impl From {
    fn derive(self, url_override: &str, rest: &str) -> String {
        let base = url_override.trim_end_matches('/');
        let base = match self {
            Self::Whole => base,
            Self::WithoutApi => base.strip_suffix("/api").unwrap_or(base),
            Self::Host | Self::HostForPeople => {
                let authority = base.find("://").map_or(0, |at| at + 3);
                base[authority..].find('/').map_or(base, |end| &base[..authority + end])
            }
        };
        format!("{base}/{rest}")
    }

    fn is_for_people(self) -> bool {
        matches!(self, Self::WithoutApi | Self::HostForPeople)
    }
}

/// Every address that the SDKs derive: the Python SDK 2.2.122, the TypeScript SDK 2.0.40 and opik-mcp.
const DERIVED: &[(&str, From, &str)] = &[
    // url_helpers.py, healthcheck/connection_probe.py
    ("ping", From::Whole, "is-alive/ping"),
    ("version", From::Whole, "is-alive/ver"),
    // The generated clients of both SDKs.
    ("writes", From::Whole, "v1/private/traces/batch"),
    ("reads", From::Whole, "v1/private/traces?project_id=p&page=1"),
    ("internal", From::Whole, "v1/internal/usage/workspace-trace-counts"),
    ("a version to come", From::Whole, "v2/private/traces"),
    // api_objects/attachment/client.py, file_upload
    ("upload", From::Whole, "v1/private/attachment/upload-start"),
    ("files", From::Whole, "v1/private/attachment/list?path=eA=="),
    // cli/healthcheck: the workspace and permissions
    ("opik healthcheck", From::Whole, "v1/private/auth"),
    ("opik healthcheck", From::Whole, "v1/private/workspace-permissions"),
    // cli/exports, cli/imports
    ("opik export", From::Whole, "v1/private/datasets/items/stream"),
    ("opik import", From::Whole, "v1/private/experiments/items/bulk"),
    // cli/usage_report, configurator: keys and workspaces are requested from the host
    ("opik usage-report", From::Host, "api/rest/v2/workspaces"),
    ("opik configure", From::Host, "api/rest/v2/account-details"),
    ("opik configure", From::HostForPeople, "api/my/settings/"),
    // configurator/mcp/detection.py
    ("opik mcp", From::Host, ".well-known/oauth-authorization-server/opik"),
    ("opik mcp", From::Whole, "v1/mcp"),
    // config.py (guardrails_backend_host), guardrails/rest_api_client.py, guardrails/stored_policies.py
    ("guardrails", From::Host, "guardrails/api/v1/guardrails/validations"),
    ("guardrails", From::Host, "guardrails/api/v1/guardrails/custom/train"),
    ("guardrails", From::Host, "guardrails/api/v1/guardrails/custom/train/name"),
    ("policies", From::Whole, "v1/private/guardrails/policies/retrieve"),
    // Links: url_helpers.py, cli/configure.py, cli/local_runner/pairing.py, plugins/pytest/summary.py
    ("redirects", From::Whole, "v1/session/redirect/projects/?trace_id=t&path=eA=="),
    ("redirects", From::Whole, "v1/session/redirect/datasets/?dataset_id=d&path=eA=="),
    ("redirects", From::Whole, "v1/session/redirect/experiments/?experiment_id=e&path=eA=="),
    ("redirects", From::Whole, "v1/session/redirect/optimizations/?optimization_id=o&path=eA=="),
    ("pages", From::WithoutApi, "default/projects"),
    ("pages", From::WithoutApi, "my%20team/projects/01a20445-0b55-7feb-b47d-9a6087614672/"),
    ("pages", From::WithoutApi, "default/projects/p/datasets/d/items"),
    ("pages", From::WithoutApi, "default/projects/p/test-suites/s/items"),
    ("pages", From::WithoutApi, "default/projects/p/agent-playground"),
    ("pages", From::WithoutApi, "default/redirect/projects?name=Default%20Project"),
    ("pages", From::WithoutApi, "default/experiments/d/compare?experiments=%5B%22e%22%5D"),
    ("a workspace of that name", From::WithoutApi, "opik/projects/p"),
    ("pairing", From::HostForPeople, "opik/pair/v1?url=u&project=p&workspace=w"),
];

/// Returns the path and the query of a URL of the agent.
fn of_agent(url: &str) -> (&str, Option<&str>) {
    let rest = url.strip_prefix("http://127.0.0.1:6745").expect("an address of the agent");
    rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)))
}

/// Returns the server address of a request to the agent, or of a link to it that a person follows.
fn at_server(url: &str, server: &ServerAddress, is_for_people: bool) -> Option<String> {
    let (path, query) = of_agent(url);
    let target = Target::of(path, server).expect("no dot segment");
    let found = if is_for_people { target.page_url(server) } else { target.url(server) }?;
    Some(query.map_or(found.clone(), |query| format!("{found}?{query}")))
}

#[test]
fn derived_addresses_reach_the_same_target_as_without_the_agent() {
    for base_url in SERVERS {
        let server = ServerAddress::new(base_url);
        for (what, from, rest) in DERIVED {
            let expected = from.derive(base_url, rest);
            for url_override in ["http://127.0.0.1:6745/api/", "http://127.0.0.1:6745/api", "http://127.0.0.1:6745"] {
                let asked = from.derive(url_override, rest);
                let found = at_server(&asked, &server, from.is_for_people());
                assert_eq!(found.as_deref(), Some(&*expected), "{what}: {asked} at {base_url}");
            }
            // With the token in its path; addresses derived from the host alone lack the token and get a 401.
            let asked = from.derive("http://127.0.0.1:6745/-/token/T/api/", rest);
            match from {
                From::Host | From::HostForPeople => assert!(!asked.contains("/-/token/"), "{asked}"),
                From::Whole | From::WithoutApi => {
                    let found = at_server(&asked.replace("/-/token/T/", "/"), &server, from.is_for_people());
                    assert_eq!(found.as_deref(), Some(&*expected), "{what}: {asked} at {base_url}");
                }
            }
        }
    }
}

#[test]
fn clients_need_not_know_the_servers_base_path() {
    let [local, cloud, bare] = SERVERS;
    let nested = "https://corp.example/tools/opik/api";
    for (base_url, asked, expected) in [
        // The API under any prefix: `opik configure` for a self-hosted Comet, opik-mcp with COMET_URL_OVERRIDE, OTLP.
        (local, "/opik/api/v1/private/projects", "http://srv:5173/api/v1/private/projects"),
        (local, "/v1/private/otel/v1/traces", "http://srv:5173/api/v1/private/otel/v1/traces"),
        (bare, "/opik/api/v1/private/projects", "http://srv:8080/v1/private/projects"),
        (bare, "/api/v1/session/redirect/projects/", "http://srv:8080/v1/session/redirect/projects/"),
        (cloud, "/api/v1/private/traces", "https://www.comet.com/opik/api/v1/private/traces"),
        (cloud, "/v1/private/traces", "https://www.comet.com/opik/api/v1/private/traces"),
        (nested, "/tools/opik/api/v1/private/traces", "https://corp.example/tools/opik/api/v1/private/traces"),
        (nested, "/opik/api/v1/private/traces", "https://corp.example/tools/opik/api/v1/private/traces"),
        (nested, "/api/is-alive/ver", "https://corp.example/tools/opik/api/is-alive/ver"),
        // All other paths by origin.
        (cloud, "/api/rest/v2/workspaces", "https://www.comet.com/api/rest/v2/workspaces"),
        (local, "/api/rest/v2/workspaces", "http://srv:5173/api/rest/v2/workspaces"),
        (local, "/opik/api/rest/v2/workspaces", "http://srv:5173/opik/api/rest/v2/workspaces"),
        (cloud, "/guardrails/api/v1/private/x", "https://www.comet.com/guardrails/api/v1/private/x"),
        (cloud, "/x/api/v1/private/x", "https://www.comet.com/x/api/v1/private/x"),
        (cloud, "/apis/v1/private/x", "https://www.comet.com/apis/v1/private/x"),
        (local, "/version/x", "http://srv:5173/version/x"),
        (local, "/api", "http://srv:5173/api"),
        (local, "*", "http://srv:5173/*"),
        // Verbatim.
        (local, "/api//v1/private/traces/", "http://srv:5173/api//v1/private/traces/"),
        (cloud, "/%61pi/./%76%31//private/traces", "https://www.comet.com/opik/api/./%76%31//private/traces"),
        (cloud, "//opik///api/v1/private/traces", "https://www.comet.com/opik/api/v1/private/traces"),
        (local, "//v1/private/traces", "http://srv:5173/api//v1/private/traces"),
        (cloud, "/api%2Fv1/private%2Ftraces", "https://www.comet.com/opik/api/v1/private/traces"),
        (local, "//guardrails/./x/", "http://srv:5173//guardrails/./x/"),
        (local, "//evil.example/x", "http://srv:5173//evil.example/x"),
        (local, "/@evil.example/x", "http://srv:5173/@evil.example/x"),
    ] {
        let server = ServerAddress::new(base_url);
        let target = Target::of(asked, &server).expect("no dot segment");
        assert_eq!(target.url(&server).as_deref(), Some(expected), "{asked} at {base_url}: {target:?}");
    }
}

#[test]
fn all_spellings_of_a_write_have_one_target() {
    let server = ServerAddress::new("http://srv:5173/api");
    for path in [
        "/api/v1/private/spans/x",
        "/api//v1/private/spans/x",
        "//api/v1/private/spans//x/",
        "/v1/./private/%73pans/%78",
        "/opik%2fapi/v1/private/spans/x",
        "/api/v1/private/spans;a=b/x;c",
    ] {
        let target = Target::of(path, &server).expect("no dot segment");
        assert!(matches!(&target, Target::Api { path, .. } if path == "v1/private/spans/x"), "{path}: {target:?}");
    }
}

#[test]
fn all_operations_are_recognised_in_every_spelling() {
    let server = ServerAddress::new("https://www.comet.com/opik/api");
    let others = OPERATIONS.iter().filter(|operation| !operation.path.starts_with("v1/"));
    assert!(others.clone().all(|operation| operation.class == Class::NeedsAnswer) && others.count() < 10);
    // The others are for signing in. They are requested at the server's address, and never stored.
    for operation in OPERATIONS.iter().filter(|operation| operation.path.starts_with("v1/")) {
        let id = "01a20445-0b55-7feb-b47d-9a6087614672";
        let plain: Vec<&str> =
            operation.path.split('/').map(|part| if part.starts_with('{') { id } else { part }).collect();
        let expected = classify(operation.method, &plain.join("/"));
        let encoded: String = plain.join("/").bytes().map(|byte| format!("%{byte:02x}")).collect();
        for spelled in [
            plain.join("/"),
            plain.join("//") + "/",
            plain.join("/./"),
            plain.join("/%2e//"),
            plain.join("%2F"),
            plain.join(";a=b/;c/"),
            encoded.replace("%2f", "/"),
            encoded,
        ] {
            for prefix in ["", "/api", "//api/", "/opik/api", "/opik/./%61pi/"] {
                let path = format!("{prefix}/{spelled}");
                let Ok(Target::Api { path: below, .. }) = Target::of(&path, &server) else { panic!("{path} is lost") };
                assert_eq!(classify(operation.method, &below), expected, "{} {path}", operation.method);
            }
        }
    }
}

#[test]
fn the_agents_own_paths_never_reach_the_server() {
    for base_url in SERVERS {
        let server = ServerAddress::new(base_url);
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/./", "/"),
            ("/metrics", "/metrics"),
            ("//metrics/", "/metrics"),
            ("/m%65trics", "/metrics"),
            ("/-", "/-"),
            ("/-/", "/-"),
            ("//-/status.json", "/-/status.json"),
            ("/./-/status.json", "/-/status.json"),
            ("/%2d/status%2Ejson", "/-/status.json"),
            ("/%2D%2Fflush", "/-/flush"),
            ("/-;x/flush;y/", "/-/flush"),
            ("/-/token/T/api/v1/private/traces", "/-/token/T/api/v1/private/traces"),
            ("/-/anything", "/-/anything"),
            ("/api/-/token/T/v1/private/traces", "/api/-/token/T/v1/private/traces"),
            ("/x//-/./token/T", "/x/-/token/T"),
        ] {
            let target = Target::of(path, &server);
            assert_eq!(target, Ok(Target::Own { path: expected.to_owned() }), "{path}");
            assert_eq!(target.expect("its own").url(&server), None, "{path}");
        }
        // They are at the root, and no other path is the agent's.
        for path in ["/api/-/flush", "/api//-/flush", "/api/metrics", "/metrics/x", "/-x", "/x/-/flush"] {
            assert!(matches!(Target::of(path, &server), Ok(Target::Origin { .. })), "{path}");
        }
    }
}

#[test]
fn links_lead_to_the_ui_and_to_no_other_host() {
    let [local, cloud, bare] = SERVERS;
    let nested = "https://corp.example/tools/opik/api";
    let odd = "https://gateway.example/opik-backend";
    for (base_url, asked, expected) in [
        (local, "/default/projects/p/", "http://srv:5173/default/projects/p/"),
        (cloud, "/team/projects/p/", "https://www.comet.com/opik/team/projects/p/"),
        (cloud, "/opik/team/projects/p/", "https://www.comet.com/opik/team/projects/p/"),
        (nested, "/team/projects", "https://corp.example/tools/opik/team/projects"),
        (nested, "/tools/opik/team/projects", "https://corp.example/tools/opik/team/projects"),
        (odd, "/team/projects", "https://gateway.example/opik-backend/team/projects"),
        (odd, "/opik-backend/team/projects", "https://gateway.example/opik-backend/team/projects"),
        (bare, "/default/projects", "http://srv:8080/default/projects"),
        // A client whose `url_override` ends in /opik/api, in front of a server whose address does not.
        (local, "/opik/default/projects/p", "http://srv:5173/default/projects/p"),
        (nested, "/opik/team/projects", "https://corp.example/tools/opik/team/projects"),
        (local, "/opik/projects/p", "http://srv:5173/opik/projects/p"),
        (local, "/opik", "http://srv:5173/"),
        (cloud, "/opik/projects/p", "https://www.comet.com/opik/opik/projects/p"),
        (nested, "/opik/pair/v1", "https://corp.example/opik/pair/v1"),
        (cloud, "/opik", "https://www.comet.com/opik"),
        (cloud, "/opikx/projects", "https://www.comet.com/opik/opikx/projects"),
        // For people, but not part of the UI.
        (cloud, "/api/my/settings/", "https://www.comet.com/api/my/settings/"),
        (cloud, "/guardrails/docs", "https://www.comet.com/guardrails/docs"),
        // In any spelling, the host is the server's.
        (local, "//evil.example/x", "http://srv:5173//evil.example/x"),
        (cloud, "//evil.example/x", "https://www.comet.com/opik//evil.example/x"),
        (local, "/@evil.example/x", "http://srv:5173/@evil.example/x"),
        (local, "/opik//evil.example/x", "http://srv:5173//evil.example/x"),
        (local, "/opik%2F%2Fevil.example/x", "http://srv:5173/opik%2F%2Fevil.example/x"),
        (local, "/:80/x", "http://srv:5173/:80/x"),
    ] {
        let server = ServerAddress::new(base_url);
        let target = Target::of(asked, &server).expect("no dot segment");
        assert_eq!(target.page_url(&server).as_deref(), Some(expected), "{asked} at {base_url}: {target:?}");
        assert!(target.is_link_target(), "{asked}");
    }
    // Browsers treat a backslash as a slash, which would start a host.
    assert!(matches!(Target::of("/opik/\\evil.example", &ServerAddress::new(local)), Ok(target)
        if target.page_url(&ServerAddress::new(local)).is_some_and(|url| url.starts_with("http://srv:5173/"))));
    for path in ["/api/v1/private/traces", "/v1/session/redirect/projects/", "/-/flush", "/metrics"] {
        let target = Target::of(path, &ServerAddress::new(local)).expect("no dot segment");
        assert_eq!(target.page_url(&ServerAddress::new(local)), None, "{path}");
    }
}

#[test]
fn pages_are_distinguished_from_paths_for_programs() {
    for (base_url, path, expected) in [
        ("http://srv:5173/api", "/default/projects", true),
        ("http://srv:5173/api", "/api/rest/v2/workspaces", false),
        ("http://srv:5173/api", "/api/my/settings/", false),
        ("http://srv:5173/api", "//guardrails/x", false),
        ("http://srv:5173/api", "/guardrailsx", true),
        ("http://srv:5173/api", "/.well-known/oauth-authorization-server/opik", false),
        ("http://srv:5173/api", "/opik/api/rest/x", false),
        ("http://srv:5173/api", "/api/v1/private/traces", false),
        ("http://srv:5173/api", "/-/status.json", false),
        ("https://corp.example/tools/opik/api", "/tools/opik/api/x", false),
        ("https://corp.example/tools/opik/api", "/tools/opik/team", true),
        ("http://srv:8080", "/default/projects", true),
    ] {
        let server = ServerAddress::new(base_url);
        assert_eq!(Target::of(path, &server).expect("no dot segment").is_page(&server), expected, "{path} {base_url}");
    }
    assert_eq!(ServerAddress::new("https://www.comet.com/opik/api").url_override(), "https://www.comet.com/opik/api/");
    assert_eq!(ServerAddress::new("http://srv:8080").url_override(), "http://srv:8080/");
}

proptest::proptest! {
    #[test]
    fn paths_never_lead_to_another_host(path in "/[/.%;@:?#\\\\a-c2f-]{0,24}") {
        for base_url in SERVERS {
            let server = ServerAddress::new(base_url);
            let Ok(target) = Target::of(&path, &server) else { continue };
            for url in [target.url(&server), target.page_url(&server)].into_iter().flatten() {
                let begins = url.strip_prefix(&*server.origin).is_some_and(|rest| rest.starts_with('/'));
                proptest::prop_assert!(begins, "{} leads to {}", path, url);
            }
        }
    }
}

#[test]
fn a_hub_is_flushed_at_its_origin_with_the_token_of_its_path() {
    let url = |base: &str| ServerAddress::new(base).flush_url(std::time::Duration::from_millis(1500));
    for (base, expected) in [
        ("http://hub:6745/api", "http://hub:6745/-/flush?timeout=1500ms"),
        ("http://hub:6745", "http://hub:6745/-/flush?timeout=1500ms"),
        ("https://hub/opik/api", "https://hub/-/flush?timeout=1500ms"),
        ("http://hub:6745/-/token/t%2Fk/api", "http://hub:6745/-/token/t%2Fk/-/flush?timeout=1500ms"),
    ] {
        assert_eq!(url(base), expected);
    }
}
