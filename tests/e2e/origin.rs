//! The whole origin of the server is available through the agent: its API in every spelling, the services beside it
//! (the pages are in [`crate::links`]). A write is protected however its path is spelled, and nothing of the agent's
//! own is reached past its checks.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opik_offline::protocol::routes::{Route, classify};
use opik_offline::protocol::target::{ServerAddress, Target};
use proptest::prelude::*;
use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fake_opik::attachments::sha256;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::front::resolved;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::web_pages::raw;
use crate::writes::{assert_error, create, create_batch, update};

/// Prefixes and spellings of the API's root, as clients concatenate them.
const ROOTS: [&str; 8] = ["/api/", "/api/.", "//api", "/opik//api", "/", "/%61pi/.//", "/api;a=b", "/api/%2E/%2e"];
pub(crate) const TOKEN: &str = "made-up-token-13579";

pub(crate) fn wait_until_it_is(state: &str, agent: &Agent) {
    wait_until("the agent knows how its server is", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == state
    });
}

/// Returns the paths and queries of what the server received, as sent, without pings.
pub(crate) fn sent_to(server: &FakeOpik) -> Vec<String> {
    let requests = server.requests().into_iter().filter(|got| got.route() != "/is-alive/ping");
    requests
        .map(|got| format!("{}{}", got.path, got.query.map_or_else(String::new, |query| format!("?{query}"))))
        .collect()
}

fn respelled(request: Request, root: &str) -> Request {
    let path = format!("{root}{}", request.path);
    request.to(&path)
}

#[test]
fn a_write_is_kept_in_an_outage_however_its_path_is_spelled() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    wait_until_it_is("unavailable", &agent);
    let mut client = Client::new(&agent.origin());
    let mut ids = Vec::new();
    for root in ROOTS {
        let (one, two) = (uuid7(), uuid7());
        let answer = client.expect(&respelled(create(&one), root));
        assert_eq!(answer.status, 201, "{root}: {}", answer.text());
        let location = answer.header("Location").unwrap_or_default().to_owned();
        assert_eq!(client.expect(&respelled(create_batch([&two]), root)).status, 204, "{root}");
        ids.push((one, two, location));
    }
    for path in [
        "/api/v1/private/traces/",
        "/api/%76%31/private/tr%61ces",
        "/api/v1//private///traces//",
        "/api/v1/private/traces/.",
    ] {
        let id = uuid7();
        assert_eq!(client.expect(&create(&id).to(path)).status, 201, "{path}");
        ids.push((id, String::new(), String::new()));
    }
    // A path that no server reads is not kept to fail later.
    for path in ["/api/v1/private/traces/%zz", "/api/v1/private/traces/%", "/api/v1/private/traces/%00x"] {
        assert_error(&client.expect(&update("x", 1).to(path)), 400);
    }
    let kept = agent.backlog();
    server.start();
    agent.wait_until_delivered();
    let delivered: Vec<_> = ids.iter().flat_map(|(one, two, _)| [one, two]).filter(|id| !id.is_empty()).collect();
    assert_eq!(kept, delivered.len() as u64);
    for id in &delivered {
        assert!(server.entity("default", Kind::Trace, id).is_some(), "{id} is lost");
    }
    // Through another front it may have to reach the same endpoint.
    for path in sent_to(&server) {
        assert!(["/api/v1/private/traces", "/api/v1/private/traces/batch"].contains(&&*path), "replayed to {path}");
    }
    for (id, _, location) in ids.iter().filter(|(_, _, location)| !location.is_empty()) {
        let path = location.strip_prefix(&agent.origin()).unwrap_or_else(|| panic!("{location} leads elsewhere"));
        assert!(path.ends_with(&format!("v1/private/traces/{id}")), "{location}");
        assert_eq!(Client::new(&agent.origin()).get(path).status, 200, "{location} leads back in");
    }
    server.assert_no_violations();
}

#[test]
fn a_live_request_is_sent_as_it_came() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let mut client = Client::new(&agent.origin());
    let id = uuid7();
    for (asked, sent) in [
        ("/api//v1/./private/%74races/?x=%2e%2E&y=a+b", "/api//v1/./private/%74races/?x=%2e%2E&y=a+b"),
        ("//v1/private/traces", "/api//v1/private/traces"),
        ("/opik/api/v1/private/traces//", "/api/v1/private/traces//"),
    ] {
        let id = uuid7();
        let answer = client.expect(&create(&id).to(asked));
        assert_eq!(answer.status, 201, "{asked}: {}", answer.text());
        assert_eq!(sent_to(&server).last().map(String::as_str), Some(sent), "{asked}");
        assert!(server.entity("default", Kind::Trace, &id).is_some(), "{asked}");
    }
    client.expect(&create_at("/api", &id));
    for (asked, sent) in [
        (
            format!("//api//v1/private/./traces/{id}?truncate=%74rue"),
            format!("/api//v1/private/./traces/{id}?truncate=%74rue"),
        ),
        ("//guardrails//./x/?a=%41".to_owned(), "//guardrails//./x/?a=%41".to_owned()),
    ] {
        client.get(&asked);
        assert_eq!(sent_to(&server).last(), Some(&sent), "{asked}");
    }
}

fn create_at(root: &str, id: &str) -> Request {
    respelled(create(id), root)
}

#[test]
fn an_update_does_not_overtake_its_create_by_another_spelling() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    wait_until_it_is("unavailable", &agent);
    let id = uuid7();
    let mut client = Client::new(&agent.origin());
    assert_eq!(client.expect(&create_at("/api/", &id)).status, 201);
    assert_eq!(client.expect(&respelled(update(&id, 1), "/opik/api")).status, 204);
    // The create waits although the server is there.
    let busy = server.script(When::path("/v1/private/traces*").method("POST"), Then::status(503));
    server.start();
    wait_until("the create was tried", PATIENCE, || busy.hits() > 0);
    wait_until_it_is("available", &agent);
    for (n, root) in (2..).zip(ROOTS) {
        assert_eq!(client.expect(&respelled(update(&id, n), root)).status, 204, "{root}");
    }
    let last = update(&id, 100).to(&format!("/api/v1/private/traces//%{:02X}{}/", id.as_bytes()[0], &id[1..]));
    assert_eq!(client.expect(&last).status, 204);
    assert!(server.requests_to("PATCH", &format!("/v1/private/traces/{id}")).is_empty(), "an update went ahead");
    busy.clear();
    // Makes the lane due, which waits after its failures.
    assert_eq!(client.expect(&Request::new("POST", "/-/flush?timeout=60s")).status, 200);
    server.assert_no_update_before_create();
    let record = server.entity("default", Kind::Trace, &id).and_then(|entity| entity.record).expect("it is there");
    assert_eq!(record.fields["output"], json!({ "n": 100 }), "an older update won");
}

#[test]
fn services_beside_the_api_are_reached_by_the_servers_origin() {
    for base in ["/api", "/opik/api"] {
        let server = FakeOpik::start_new();
        let said = |name: &'static str| Then::Answer(Answer::json(200, &json!({ "said_by": name })));
        server.always(When::path("/guardrails/*"), said("guardrails"));
        server.always(When::any().and(|got| got.path.ends_with("/api/rest/v2/account-details")), said("account"));
        let agent = Agent::builder(&server.url().replace("/api", base)).impatient().start();
        wait_until_it_is("available", &agent);
        let mut client = Client::new(&agent.origin());
        let validation =
            Request::new("POST", "/guardrails/api/v1/guardrails/validations").json(&json!({ "text": "x" }));
        let answer = client.expect(&validation);
        assert_eq!((answer.status, &answer.json()["said_by"]), (200, &"guardrails".into()), "{base}");
        let got = server.requests_to("POST", "/guardrails/api/v1/guardrails/validations");
        assert_eq!(got.len(), 1, "{base}: {:?}", sent_to(&server));
        assert_eq!(got[0].path, "/guardrails/api/v1/guardrails/validations", "{base}");
        assert_eq!(got[0].json.as_deref(), Some(&json!({ "text": "x" })));
        // A type that the API would not read is the service's to judge.
        let other = Request::new("PUT", "/guardrails/x").header("Content-Type", "text/plain").bytes(*b"x");
        assert_eq!(client.expect(&other).status, 200);
        assert_eq!(client.get("/api/rest/v2/account-details").json()["said_by"], "account", "{base}");
        assert_eq!(sent_to(&server).last().map(String::as_str), Some("/api/rest/v2/account-details"), "{base}");

        server.stop();
        wait_until_it_is("unavailable", &agent);
        let answer = client.expect(&validation);
        assert_error(&answer, 503);
        assert!(answer.header("Retry-After").is_some(), "{base}");
        assert_eq!(agent.backlog(), 0);
    }
}

#[test]
fn no_spelling_of_the_agents_own_paths_gets_past_its_checks() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN).start();
    wait_until_it_is("available", &agent);
    let follows = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for page in ["status.json", "healthy", "ready", "flush"] {
        for spelled in ["/-/", "//-/", "/./-//", "/%2d/", "/%2D/./", "/-;x/", "/-%2F"] {
            let (path, method) = (format!("{spelled}{page}"), if page == "flush" { "POST" } else { "GET" });
            let ask = |headers: &str| raw(&agent, &format!("{method} {path} HTTP/1.1"), headers, "");
            assert_eq!(ask("Host: evil.example\r\n").0, 403, "{path}");
            assert_eq!(ask(&format!("Host: localhost\r\n{follows}")).0, 403, "{path}");
            assert_eq!(ask("Host: localhost\r\nOrigin: http://evil.example\r\n").0, 403, "{path}");
            let expected = if page == "flush" { 401 } else { 200 };
            assert_eq!(ask("Host: localhost\r\n").0, expected, "{path}");
        }
    }
    for path in ["/metrics/", "//metrics", "/m%65trics"] {
        assert_eq!(
            raw(&agent, &format!("GET {path} HTTP/1.1"), &format!("Host: localhost\r\n{follows}"), "").0,
            403,
            "{path}"
        );
        let (status, answer) = raw(&agent, &format!("GET {path} HTTP/1.1"), "Host: localhost\r\n", "");
        assert!(status == 200 && answer.contains("opik_offline_"), "{path}");
    }
    // Services that are asked at the host are asked with the token in their own address.
    let with_token = format!("/-/token/{TOKEN}/guardrails/x");
    let (status, answer) = raw(&agent, &format!("GET {with_token} HTTP/1.1"), "Host: localhost\r\n", "");
    assert!(status == 404 && sent_to(&server) == ["/guardrails/x"], "{answer}");
    // The token counts in every spelling of its prefix, and never reaches the server.
    for (path, expected) in [
        (format!("/-/token/{TOKEN}//api//v1/private/traces/x"), 404),
        (format!("//-//token/{TOKEN}/api/v1/private/traces/x"), 404),
        (format!("/%2d/token/{TOKEN}/api/./v1/private/traces/x"), 404),
        (format!("/./-/token/{TOKEN}/api/v1/private/traces/x"), 404),
        ("//-/token/wrong/api/v1/private/traces/x".to_owned(), 401),
        (format!("/-%2Ftoken%2F{TOKEN}/api/v1/private/traces/x"), 404),
        (format!("/api/-/token/{TOKEN}/v1/private/traces/x"), 404),
        ("/api//v1/private/traces/x".to_owned(), 401),
        ("//guardrails/x".to_owned(), 401),
        ("/api/rest/v2/workspaces".to_owned(), 401),
    ] {
        let (status, answer) = raw(&agent, &format!("GET {path} HTTP/1.1"), "Host: localhost\r\n", "");
        assert_eq!(status, expected, "{path}: {answer}");
    }
    let got = sent_to(&server).split_off(1);
    assert_eq!(got.len(), 4, "{got:?}");
    assert!(got.iter().all(|path| path.contains("traces/x") && !path.contains("token")), "{got:?}");
}

#[test]
fn a_file_is_kept_by_any_spelling_of_its_upload() {
    for root in ["/api/", "//api", "/opik/api/."] {
        let server = FakeOpik::new_stopped();
        let agent = Agent::start(&server);
        wait_until_it_is("unavailable", &agent);
        let mut client = Client::new(&agent.origin());
        let id = uuid7();
        assert_eq!(client.expect(&create_at(root, &id)).status, 201);
        let start = json!({
            "file_name": "a.txt", "num_of_file_parts": 1, "mime_type": "text/plain", "entity_type": "trace",
            "entity_id": id, "path": STANDARD.encode(format!("{}{root}/", agent.origin())),
        });
        let answer = client.post(&format!("{root}/v1/private/attachment/upload-start/"), &start);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let url = answer.json()["pre_sign_urls"][0].as_str().expect("a URL").to_owned();
        let path = url.strip_prefix(&agent.origin()).unwrap_or_else(|| panic!("{url} leads elsewhere"));
        let answer = client.expect(&Request::new("PUT", path).bytes(*b"a file"));
        assert_eq!(answer.status, 204, "{url}: {}", answer.text());
        server.start();
        agent.wait_until_delivered();
        let files = server.files();
        assert_eq!(files.len(), 1, "{root}: the file is lost");
        assert!(files.into_values().all(|file| file.sha256 == sha256(b"a file")));
    }
}

/// Returns what Opik's server makes of a URL: nginx resolves its path, and the server strips parameters, the slash at
/// the end, and segments that hold nothing else.
fn route_at_server(method: &str, url: &str, base: &str) -> Option<Route> {
    let (_, rest) = url.split_once("://")?;
    let path = resolved(&rest[rest.find('/')?..])?;
    let below = path.strip_prefix(base)?.strip_prefix('/')?;
    let names = below.split('/').map(|name| name.split(';').next().unwrap_or_default());
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    Some(classify(method, &names.join("/")))
}

proptest! {
    /// For every spelling of a path, the agent and the server behind nginx see the same request: a write that
    /// the agent passes through would be lost in an outage, and one that it makes up would be delivered later.
    #[test]
    fn the_agent_and_the_server_read_a_path_alike(
        method in prop::sample::select(vec!["POST", "PATCH", "PUT", "DELETE"]),
        pieces in prop::collection::vec(prop::sample::select(vec![
            "/", "/", "//", "/./", "%2F", "/%2e/", "/..", "/%2E.", ";a", "%3bx=1", "api", "opik", "%61pi", "v1", "v%31", "private",
            "priv%61te", "traces", "tr%61ces", "spans", "batch", "feedback-scores", "x", "01a2", "-", "token", "guardrails",
            ".", "%", "%25", "%20", "a b", "metrics",
        ]), 1..14),
        opens in prop::sample::select(vec!["/api/v1/private/traces", "//api//v1/private", "/opik/api/v1/private/", "/v1/private/", "/"]),
    ) {
        let path = format!("{opens}{}", pieces.concat());
        for base in ["/api", "/opik/api", ""] {
            let server = ServerAddress::new(&format!("http://srv:5173{base}"));
            // Segments that lead up are refused, and so is everything that nginx refuses.
            let Ok(target) = Target::of(&path, &server) else { continue };
            let Some(url) = target.url(&server) else { continue };
            let own = match &target {
                Target::Api { path, .. } => classify(method, path),
                _ => Route::PassThrough,
            };
            prop_assert!(resolved(&path).is_some(), "{} is taken, and no server takes it", path);
            let servers = route_at_server(method, &url, base).unwrap_or(Route::PassThrough);
            prop_assert_eq!(&own, &servers, "{} {} sent as {}", method, path, url);
            if let Target::Api { path, .. } = &target {
                let replayed = route_at_server(method, &format!("http://srv:5173{base}/{path}"), base);
                prop_assert_eq!(Some(own), replayed, "{} {} replayed to {}", method, url, path);
            }
        }
    }
}
