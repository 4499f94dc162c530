//! `agent -- COMMAND`: of OpenTelemetry's signals and of the clients of Opik, only what led to the server is led
//! through the agent.

use std::path::Path;

use crate::support::agent::Home;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::process::{Output, run};
use crate::support::tools::python_otlp;
use crate::wrapped::wrapping;

const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const OTLP: &str = "/api/v1/private/otel";
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Wraps a command that has these variables.
fn wrapped(home: &Home, server: &str, args: &[&str], variables: &[(&str, &str)], inner: &[&str]) -> Output {
    let output = run(wrapping(home, &home.db(), server, args, inner).envs(variables.iter().copied()));
    assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    output
}

/// The environment of a wrapped command.
fn environment(home: &Home, server: &str, args: &[&str], variables: &[(&str, &str)]) -> (Output, String) {
    let output = wrapped(home, server, args, variables, &["env"]);
    let agent = value(&output, "OPIK_URL_OVERRIDE").expect("it is always set");
    let origin = agent.strip_suffix("/api").expect("the server's base").to_owned();
    (output, origin)
}

fn value(output: &Output, name: &str) -> Option<String> {
    output.stdout.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// A collector of all signals, and its address.
fn collector() -> (FakeOpik, String) {
    let collector = FakeOpik::start_new();
    collector.always(When::any(), Then::Answer(Answer::json(200, &serde_json::json!({}))));
    let address = collector.url().strip_suffix("/api").expect("its path").to_owned();
    (collector, address)
}

/// The paths of what was sent, without those of pings, in alphabetical order.
fn sent_to(server: &FakeOpik) -> Vec<String> {
    let requests = server.requests();
    let writes = requests.iter().filter(|request| request.method == "POST");
    let mut paths: Vec<String> = writes.map(|request| request.path.clone()).collect();
    paths.sort_unstable();
    paths
}

#[test]
fn a_real_exporters_metrics_logs_and_foreign_traces_go_where_they_went_before() {
    let all: &[&str] = &["/v1/logs", "/v1/metrics", "/v1/traces"];
    let others = &all[..2];
    for (args, traces_to_opik, at_collector) in
        [(&[][..], false, all), (&[][..], true, others), (&["--all-otlp-traces"][..], false, others)]
    {
        let (home, server, (collector, address)) = (Home::new(), FakeOpik::new_stopped(), collector());
        let opiks = format!("{}/v1/private/otel/v1/traces", server.url());
        let mut variables = vec![(GENERAL, &*address)];
        variables.push(("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "projectName=demo,Comet-Workspace=default"));
        variables.extend(traces_to_opik.then_some((TRACES, &*opiks)));
        let python = python_otlp();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/otlp_signals.py");
        let inner = [python.to_str().unwrap(), script.to_str().unwrap()];
        let output = wrapped(&home, &server.url(), args, &variables, &inner);
        assert_eq!(sent_to(&collector), at_collector, "{}", output.stderr);

        // Opik's data was stored during the outage.
        let is_kept = output.stderr.contains("1 message stays safely stored in ");
        assert_eq!(is_kept, at_collector == others, "{}", output.stderr);
        server.start();
        let db = home.db();
        let replayed = home.cli(&["replay", "--db", db.to_str().unwrap(), "--upstream", &server.url()]);
        assert_eq!(replayed.code(), Some(0), "{}{}", replayed.stdout, replayed.stderr);
        let (spans, expected) = (server.otel_spans("default").len(), usize::from(is_kept));
        assert_eq!(spans, expected, "{:?}", sent_to(&server));
    }
}

#[test]
fn metrics_and_logs_that_went_to_opik_are_refused_by_it_as_before() {
    let (home, server) = (Home::new(), FakeOpik::start_new());
    let opiks = format!("{}/v1/private/otel", server.url());
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "projectName=demo,Comet-Workspace=default");
    let python = python_otlp();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/otlp_signals.py");
    let inner = [python.to_str().unwrap(), script.to_str().unwrap()];
    let output = wrapped(&home, &server.url(), &[], &[(GENERAL, &opiks), headers], &inner);
    let otlp = |signal: &str| format!("{OTLP}/v1/{signal}");
    assert_eq!(sent_to(&server), ["logs", "metrics", "traces"].map(otlp), "{}", output.stderr);
    assert_eq!(server.otel_spans("default").len(), 1);
    let only_traces = format!("nothing waits to be delivered: 1 write went straight to {}", server.url());
    assert!(output.stderr.contains(&only_traces), "{}", output.stderr);
}

#[test]
fn each_signal_of_opentelemetry_is_decided_for_itself() {
    let (home, server) = (Home::new(), FakeOpik::start_new());
    let opiks = format!("{}/v1/private/otel", server.url());
    // The server by another name of this machine.
    let named = opiks.replace("127.0.0.1", "localhost");
    let collector = "http://collector.invalid:4318";
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    for (variables, is_led, left) in [
        (&[][..], false, None),
        (&[(GENERAL, &*opiks)], true, None),
        (&[(GENERAL, &*named)], true, None),
        (&[(GENERAL, collector)], false, Some(GENERAL)),
        (&[(GENERAL, collector), (TRACES, &*opiks)], true, Some(GENERAL)),
        (&[(GENERAL, &*opiks), (TRACES, collector)], false, Some(TRACES)),
        (&[grpc], false, None),
    ] {
        let (output, origin) = environment(&home, &server.url(), &[], variables);
        let led = value(&output, TRACES).filter(|url| url.starts_with(&origin));
        assert_eq!(led.is_some(), is_led, "{variables:?} {led:?}");
        let general = variables.iter().find(|(name, _)| *name == GENERAL).map(|(_, url)| *url);
        let expected = general.map(|url| if url == collector { url.to_owned() } else { format!("{origin}{OTLP}") });
        assert_eq!(value(&output, GENERAL), expected, "{variables:?}");
        assert_eq!(value(&output, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"), None);
        let elsewhere = |name| format!("opik-offline: {name} points elsewhere and is left unchanged\n");
        assert_eq!(output.stderr.matches("points elsewhere").count(), usize::from(left.is_some()), "{}", output.stderr);
        assert!(left.is_none_or(|name| output.stderr.contains(&elsewhere(name))), "{}", output.stderr);
    }
    let (output, origin) = environment(&home, &server.url(), &["--all-otlp-traces"], &[(GENERAL, collector)]);
    assert_eq!(value(&output, TRACES), Some(format!("{origin}/api/v1/private/otel/v1/traces")));
    assert_eq!(value(&output, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").as_deref(), Some("http/protobuf"));
    let (output, _) = environment(&home, &server.url(), &["--all-otlp-traces"], &[grpc]);
    assert_eq!(value(&output, TRACES), None);
    assert!(output.stderr.contains("OTEL_EXPORTER_OTLP_PROTOCOL is grpc"), "{}", output.stderr);
}

#[test]
fn other_clients_of_the_server_are_led_through_the_agent() {
    let (home, server) = (Home::new(), FakeOpik::start_new());
    let origin = server.url().strip_suffix("/api").unwrap().replace("127.0.0.1", "LocalHost");
    let (guardrails, base) = (format!("{origin}/guardrails/"), format!("{origin}/api"));
    let variables = [
        ("OPIK_GUARDRAILS_URL_OVERRIDE", &*guardrails),
        ("OPIK_URL", &*base),
        ("OPIK_BASE_URL", &*base),
        ("COMET_URL_OVERRIDE", &*origin),
        ("OPIK_API_BASE_URL", "https://elsewhere.invalid/api"),
    ];
    let (output, agent) = environment(&home, &server.url(), &[], &variables);
    assert_eq!(value(&output, "OPIK_GUARDRAILS_URL_OVERRIDE"), Some(format!("{agent}/guardrails/")));
    assert_eq!(value(&output, "OPIK_URL"), Some(format!("{agent}/api")));
    assert_eq!(value(&output, "OPIK_BASE_URL"), Some(format!("{agent}/api")));
    assert_eq!(value(&output, "COMET_URL_OVERRIDE"), Some(agent));
    assert_eq!(value(&output, "OPIK_API_BASE_URL").as_deref(), Some("https://elsewhere.invalid/api"));
    assert!(output.stderr.contains("OPIK_API_BASE_URL points elsewhere"), "{}", output.stderr);
}

#[test]
fn a_client_that_reads_only_the_file_in_the_home_is_led_through_the_agent() {
    let (home, server) = (Home::new(), FakeOpik::start_new());
    let file = |url: &str| {
        let text = format!("[opik]\nurl_override = {url}\napi_key = file-key-4711\n");
        std::fs::write(home.path().join(".opik.config"), text).unwrap();
    };
    file(&format!("{}/", server.url()));
    // As the Claude Code plugin does: its variable, else the file, independent of OPIK_URL_OVERRIDE.
    let plugin = "
url=${OPIK_BASE_URL:-$(sed -n 's/^url_override = //p' ~/.opik.config)}
curl -sf -o /dev/null \"${url%/}/v1/private/traces\" -H 'Content-Type: application/json' \
    -d '{\"start_time\": \"2026-01-02T03:04:05Z\", \"project_name\": \"claude-code\"}'";
    let output = wrapped(&home, &server.url(), &[], &[], &["sh", "-c", plugin]);
    assert!(
        output.stderr.contains(&format!("1 write went straight to {}", server.url())),
        "past the agent: {}",
        output.stderr
    );

    file("https://elsewhere.invalid/api");
    let (output, _) = environment(&home, &server.url(), &[], &[]);
    assert_eq!(value(&output, "OPIK_BASE_URL"), None, "the file leads to another server");
}
