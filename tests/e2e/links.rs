//! Links that people follow and that an SDK derives lead to the server, with the agent as without it: printed links,
//! pages of the UI, and every address that the published SDK makes of its `url_override`.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::origin::{TOKEN, sent_to, wait_until_it_is};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::process::run;
use crate::support::tools::{OPIK_VERSION, python_sdk};
use crate::web_pages::raw;
use crate::writes::assert_error;

const NAVIGATES: &str = "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";

#[test]
fn a_printed_link_makes_the_server_build_a_link_to_itself() {
    let server = FakeOpik::start_new();
    let page = format!("{}/default/projects/p/traces", server.url().replace("/api", ""));
    let moved = Answer::empty(303).with("Location", &page);
    server.always(When::path("/v1/session/redirect/*"), Then::Answer(moved));
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN).start();
    wait_until_it_is("available", &agent);
    let servers = STANDARD.encode(format!("{}/", server.url()));
    for base in [format!("/-/token/{TOKEN}/api"), format!("/-/token/{TOKEN}//opik/api/")] {
        for url_override in [format!("{}{base}", agent.origin()), format!("http://localhost:{}{base}/", agent.port())] {
            for (kind, id) in [("projects", "trace_id"), ("datasets", "dataset_id"), ("experiments", "experiment_id")] {
                let agents = STANDARD.encode(&url_override);
                let path = format!("{base}/v1/session/redirect/{kind}/?{id}=T%20&path={agents}&workspace_name=w");
                let (status, answer) = raw(
                    &agent,
                    &format!("GET {path} HTTP/1.1"),
                    &format!("Host: localhost:{}\r\n{NAVIGATES}", agent.port()),
                    "",
                );
                assert_eq!(status, 303, "{answer}");
                assert!(answer.contains(&format!("{page}\r\n")), "the server's own word stays: {answer}");
                let got = sent_to(&server).pop().unwrap_or_default();
                let expected = format!("/v1/session/redirect/{kind}/?{id}=T%20&path={servers}&workspace_name=w");
                assert!(got.ends_with(&expected) && !got.contains(TOKEN), "{got}");
            }
        }
    }
    // Every path that is not the agent's own is the server's to judge.
    for query in ["trace_id=T&path=eA==", "trace_id=T", &format!("path={}", STANDARD.encode("http://evil.example/api"))]
    {
        let path = format!("/-/token/{TOKEN}/api/v1/session/redirect/projects?{query}");
        Client::new(&agent.origin()).get(&path);
        assert!(sent_to(&server).pop().is_some_and(|got| got.ends_with(&format!("projects?{query}"))), "{query}");
    }
    server.stop();
    wait_until_it_is("unavailable", &agent);
    let path = format!("/-/token/{TOKEN}/api/v1/session/redirect/projects/?trace_id=T&path=eA==");
    assert_error(&Client::new(&agent.origin()).get(&path), 503);
}

#[test]
fn a_browser_is_led_to_the_page_of_the_server_and_to_no_other_host() {
    for (base, ui) in [("/api", ""), ("/opik/api", "/opik")] {
        let server = FakeOpik::start_new();
        let origin = server.url().replace("/api", "");
        let agent =
            Agent::builder(&format!("{origin}{base}")).impatient().env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN).start();
        wait_until_it_is("available", &agent);
        for away in [false, true] {
            if away {
                server.stop();
                wait_until_it_is("unavailable", &agent);
            }
            for (asked, expected) in [
                ("/default/projects/p/?tab=a%20b&c", format!("{ui}/default/projects/p/?tab=a%20b&c")),
                (&format!("/-/token/{TOKEN}/default/projects"), format!("{ui}/default/projects")),
                ("/opik/pair/v1?url=u", "/opik/pair/v1?url=u".to_owned()),
                ("//evil.example/%0d%0aX-Evil:%201", format!("{ui}//evil.example/%0d%0aX-Evil:%201")),
                ("/\u{e9}quipe/projects", format!("{ui}/%C3%A9quipe/projects")),
                ("/\\evil.example", format!("{ui}/\\evil.example")),
                ("/@evil.example", format!("{ui}/@evil.example")),
                ("http://localhost//evil.example/x", format!("{ui}//evil.example/x")),
            ] {
                for headers in [NAVIGATES, "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n"] {
                    let (status, answer) =
                        raw(&agent, &format!("GET {asked} HTTP/1.1"), &format!("Host: localhost\r\n{headers}"), "");
                    assert_eq!(status, 302, "{asked}: {answer}");
                    let location = format!("location: {origin}{expected}\r\n");
                    assert!(answer.contains(&location), "{asked}: {answer} should have {location}");
                    assert_eq!(answer.to_lowercase().matches("x-evil").count(), answer.matches("%0aX-Evil").count());
                }
            }
        }
        // Pages of other sites still are not served.
        let (status, _) =
            raw(&agent, "GET /default/projects HTTP/1.1", &format!("Host: evil.example\r\n{NAVIGATES}"), "");
        assert_eq!(status, 403);
        // Requests of programs, and requests that change something, are not links, and need the token.
        for (method, headers) in
            [("GET", "Accept: */*\r\n"), ("POST", NAVIGATES), ("GET", "Sec-Fetch-Mode: cors\r\nAccept: text/html\r\n")]
        {
            let (status, answer) = raw(
                &agent,
                &format!("{method} /default/projects HTTP/1.1"),
                &format!("Host: localhost\r\n{headers}"),
                "",
            );
            assert_eq!(status, 401, "{answer}");
        }
        assert!(sent_to(&server).is_empty(), "{:?}", sent_to(&server));
    }
}

#[test]
fn the_status_page_has_a_place_where_it_collides_with_nothing() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let get = |path: &str, headers: &str| {
        raw(&agent, &format!("GET {path} HTTP/1.1"), &format!("Host: localhost\r\n{headers}"), "")
    };
    for headers in [NAVIGATES, "Accept: text/html\r\n"] {
        for (path, expected) in [
            ("/", "/-/"),
            ("/-", "/-/"),
            ("//", "/-/"),
            ("/-/token/t%2F/", "/-/token/t%2F/-/"),
            ("/-/token/t", "/-/token/t/-/"),
        ] {
            let (status, answer) = get(path, headers);
            assert_eq!(status, 302, "{path}: {answer}");
            assert!(answer.contains(&format!("location: {expected}\r\n")), "{path}: {answer}");
        }
        for path in ["/-/", "/-/token/t/-/"] {
            let (status, answer) = get(path, headers);
            assert!(status == 200 && answer.contains("opik-offline status"), "{path}: {answer}");
            assert!(answer.contains(r#"href="status.json""#) && answer.contains(r#"href="../metrics""#), "{path}");
        }
    }
    for path in ["/", "/-/", "/-"] {
        let (status, answer) = get(path, "Accept: */*\r\n");
        assert!(status == 200 && answer.contains("opik-offline status"), "as ever for programs: {answer}");
    }
    for path in ["/-/nothing", "/-/api/v1/private/traces", "//-//nothing", "/-/token/t/-/token/u/api"] {
        for method in ["GET", "POST", "DELETE"] {
            let (status, answer) = raw(&agent, &format!("{method} {path} HTTP/1.1"), "Host: localhost\r\n", "");
            assert_eq!(status, 404, "{method} {path}: {answer}");
        }
    }
    assert!(sent_to(&server).is_empty(), "{:?}", sent_to(&server));
}

/// Lets the published SDK ask for all that it derives from this address, and returns what it was told.
fn told_to_the_sdk(url_override: &str) -> String {
    let home = Home::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/addresses.py");
    let mut command = home.command(python_sdk(OPIK_VERSION));
    for name in ["OPIK_SENTRY_ENABLE", "OPIK_ANALYTICS_ENABLE"] {
        command.env(name, "false");
    }
    command.arg(script).env("OPIK_URL_OVERRIDE", url_override).env("PYTHONUTF8", "1");
    let output = run(&mut command);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    output.stdout
}

#[test]
fn the_sdk_gets_the_same_from_every_address_with_the_agent_as_without() {
    let server = FakeOpik::start_new();
    let always = |path: &str, body: Value| {
        server.always(When::path(path), Then::Answer(Answer::json(200, &body)));
    };
    always("/guardrails/api/v1/guardrails/validations", json!({ "validation_passed": true, "validations": [] }));
    always("/guardrails/api/v1/guardrails/custom/train/name", json!({ "status": "trained" }));
    // The fake server removes /api from every path.
    always("/rest/v2/account-details", json!({ "userName": "somebody" }));
    always("/rest/v2/workspaces", json!({ "workspaceNames": ["team"] }));
    always("/.well-known/oauth-authorization-server/opik", json!({ "authorization_endpoint": "x" }));
    always("/v1/private/workspace-permissions", json!({ "permissions": [] }));
    always("/v1/private/projects", json!({ "content": [{ "name": "of the server" }] }));
    let moved = Answer::empty(303).with("Location", "http://ui.example/team/projects/p/traces");
    server.always(When::path("/v1/session/redirect/projects"), Then::Answer(moved));
    server.always(When::path("/team/*"), Then::Answer(Answer::raw(200, "text/html", "a page of the UI")));
    let without = told_to_the_sdk(&format!("{}/", server.url()));
    let expected = sent_to(&server);
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let asked_before = sent_to(&server).len();
    let with = told_to_the_sdk(&format!("{}/", agent.url()));
    assert_eq!(with, without);
    // The agent says of itself that it is alive; everything else reached the same address.
    assert_eq!(sent_to(&server).split_off(asked_before), expected);
    for said in ["of the server", "a page of the UI", "validation_passed=True", "trained", "ui.example"] {
        assert!(with.contains(said), "{said} is missing: {with}");
    }
    assert!(!with.contains("Error") && with.matches(", \"True\"]").count() >= 4, "{with}");
}
