//! The main job: published clients through the agent, with the server away in the middle and the agent killed while it
//! is away. The application sees no error, and everything it sent is on the server afterwards.

use crate::support::agent::Agent;
use crate::support::fake_opik::{FakeOpik, Received};
use crate::support::prism::Prism;
use crate::support::sdk::{SdkApp, Using};
use crate::support::tools::{OPIK_VERSION, OPIK_VERSION_OLDER};

/// Everything that the application does, once.
fn work(app: &mut SdkApp, traces: usize) {
    app.run(&format!("traces {traces}"));
    app.run("manual 3");
    app.run("update");
    app.run("scores");
}

/// Takes an application through an outage in which the agent is killed as well.
fn through_an_outage(using: Using, work: impl Fn(&mut SdkApp)) -> FakeOpik {
    let server = FakeOpik::start_new();
    let mut agent = Agent::start(&server);
    let mut app = SdkApp::start_with(using, "outage", &agent.url());

    work(&mut app);
    app.flush();
    app.wait_until_all_on(&server);
    agent.wait_until_delivered();

    // The client's unsent messages meet a server that is down.
    app.run("traces 10");
    server.stop();
    work(&mut app);
    app.flush();
    let kept = agent.backlog();
    assert!(kept > 0, "the server is away, so the agent holds what it acknowledged");

    agent.kill9();
    agent.restart_on_same_port();
    assert_eq!(agent.backlog(), kept, "what was acknowledged survives SIGKILL");
    work(&mut app);
    app.flush();
    assert!(!app.missing_on(&server).is_empty());

    server.start();
    app.wait_until_all_on(&server);
    agent.wait_until_delivered();
    app.quit();

    app.assert_all_on(&server);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    server.assert_no_overlaps();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
    assert_eq!(agent.backlog(), 0);
    assert!(agent.terminate().success());
    server
}

#[test]
fn an_outage_and_a_killed_agent_cost_the_python_sdk_nothing() {
    through_an_outage(Using::Python(OPIK_VERSION), |app| work(app, 10));
}

#[test]
fn an_outage_and_a_killed_agent_cost_an_older_python_sdk_nothing() {
    through_an_outage(Using::Python(OPIK_VERSION_OLDER), |app| work(app, 10));
}

#[test]
fn an_outage_and_a_killed_agent_cost_the_typescript_sdk_nothing() {
    through_an_outage(Using::TypeScript, |app| work(app, 10));
}

#[test]
fn what_the_typescript_sdk_made_and_updated_in_an_outage_arrives_in_a_handful_of_requests() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--batch-size").arg("1000").start();
    let mut app = SdkApp::start_with(Using::TypeScript, "folded", &agent.url());
    app.run("manual 20");
    app.run("update");
    app.flush();
    let kept = agent.backlog();
    assert!(kept >= 60, "{kept} messages: the SDK sends an update for each of 20 traces and 40 spans");
    server.start();
    app.wait_until_all_on(&server);
    agent.wait_until_delivered();
    app.quit();
    app.assert_all_on(&server);
    let sent = server.requests().into_iter().filter(|request| !request.writes.is_empty()).count();
    assert!(sent <= 8, "{sent} requests for {kept} messages");
    server.assert_no_violations();
    server.assert_no_update_before_create();
}

#[test]
fn an_outage_and_a_killed_agent_cost_otlp_exporters_nothing() {
    for using in [Using::OtlpPython, Using::OtlpJavaScript] {
        let server = through_an_outage(using, |app| drop(app.run("traces 8")));
        let requests = server.requests_to("POST", "/v1/private/otel/v1/traces");
        let sent = |content_type: &str, encoding: Option<&str>| {
            let is_such = |request: &&Received| {
                request.header("Content-Type") == Some(content_type) && request.header("Content-Encoding") == encoding
            };
            requests.iter().filter(is_such).count()
        };
        let json = if using == Using::OtlpJavaScript { "application/json" } else { "application/x-protobuf" };
        for content_type in ["application/x-protobuf", json] {
            for encoding in [None, Some("gzip")] {
                assert!(sent(content_type, encoding) > 0, "{using:?} sent no {content_type} {encoding:?}");
            }
        }
        assert!(requests.iter().all(|request| request.header("projectName") == Some("sdk-test")));
    }
}

#[test]
fn people_see_the_spans_and_services_of_otlp_requests() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    for (using, service) in [(Using::OtlpPython, "python-app"), (Using::OtlpJavaScript, "javascript-app")] {
        let mut app = SdkApp::start_with(using, "seen", &agent.url());
        app.run("traces 4");
        app.flush();
        app.quit();
        let list = agent.cli(&["inspect", "--type", "OtlpTraces", "--newest", "--format", "json"]).json();
        let message = &list["messages"][0];
        assert_eq!(message["project"], "sdk-test");
        assert_eq!(message["workspace"], "default");
        assert!(message["items"].as_u64().is_some_and(|spans| spans >= 3 && spans % 3 == 0), "{message}");
        let id = message["id"].to_string();
        let shown = agent.cli(&["inspect", &id]).stdout;
        assert!(shown.contains(&format!("services      {service}")), "{shown}");
        for text in
            ["\"traceId\": \"", "\"name\": \"retrieve\"", "startTimeUnixNano", "Grüße 你好", "\"gen_ai.system\""]
        {
            assert!(shown.contains(text), "{text} is missing in {shown}");
        }
        let whole = agent.cli(&["inspect", &id, "--format", "json"]).json();
        assert_eq!(whole["services"], serde_json::json!([service]));
    }
    let purged = agent.cli(&["purge", "--type", "otlptraces", "--yes", "--format", "json"]);
    assert_eq!(purged.code(), Some(0), "{}", purged.stderr);
    assert_eq!(agent.backlog(), 0);
}

#[test]
fn what_the_agent_forwards_and_replays_fits_opiks_openapi_file() {
    for using in [Using::Python(OPIK_VERSION), Using::TypeScript] {
        let mut prism = Prism::start();
        let agent = Agent::builder(&prism.url()).impatient().start();
        let mut app = SdkApp::start_with(using, "prism", &agent.url());
        work(&mut app, 5);
        app.flush();
        let forwarded = prism.checked().iter().filter(|checked| checked.is_write()).count();
        assert!(forwarded > 0);

        prism.stop();
        work(&mut app, 5);
        app.flush();
        assert!(agent.backlog() > 0);
        prism.resume();
        agent.wait_until_delivered();
        app.quit();

        prism.assert_all_writes_valid();
        assert!(prism.checked().iter().filter(|checked| checked.is_write()).count() > forwarded);
    }
}
