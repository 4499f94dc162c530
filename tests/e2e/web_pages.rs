//! A page in a browser on this machine cannot use the agent: read by its own name, write, evict, or reach paths
//! that the agent does not see; and what programs, the agent's own page and followed links still can.

use std::io::{Read, Write};
use std::net::TcpStream;

use opik_offline::message::MessageType;
use opik_offline::protocol::operations::{Class, OPERATIONS};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request};
use crate::support::not_run::not_run;
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{assert_error, create, trace};

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
const JSON: &str = "Content-Type: application/json\r\n";
const TYPES_OF_FORMS: [&str; 3] =
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"];

/// Sends a request and returns the status and the whole answer. The agent closes the connection.
pub(crate) fn raw(agent: &Agent, request_line: &str, headers: &str, body: &str) -> (u16, String) {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let wire = format!("{request_line}\r\n{headers}{length}Connection: close\r\n\r\n{body}");
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(wire.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{request_line} {headers}: {answer:?}")), answer)
}

fn wait_until_it_is(state: &str, agent: &Agent) {
    wait_until("the agent knows how its server is", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == state
    });
}

/// Runs a check with the server there, and with the server away.
fn there_and_away(settings: &[(&str, &str)], check: impl Fn(&Agent)) {
    for away in [false, true] {
        let server = FakeOpik::start_new();
        let agent = settings
            .iter()
            .fold(Agent::builder(&server.url()).impatient(), |agent, (name, value)| agent.env(name, value));
        let agent = agent.start();
        if away {
            server.stop();
        }
        wait_until_it_is(if away { "unavailable" } else { "available" }, &agent);
        check(&agent);
        assert_eq!(agent.backlog(), 0, "away: {away}: something that was refused is stored");
        let arrived: Vec<_> = server.requests().into_iter().filter(|got| got.route() != "/is-alive/ping").collect();
        assert!(arrived.is_empty(), "it reached the server: {arrived:?}");
    }
}

fn metric(agent: &Agent, name: &str) -> u64 {
    let metrics = Client::new(&agent.origin()).get("/metrics").text();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

#[test]
fn a_page_of_another_site_neither_reads_nor_writes_on_any_path() {
    there_and_away(&[], |agent| {
        let port = agent.port();
        let own = format!("Host: 127.0.0.1:{port}\r\n");
        let body = trace(&uuid7(), "chat").to_string();
        let pages = [
            // Rebinding: for the browser, the agent is the page's own server.
            format!("Host: evil.example:{port}\r\n"),
            format!(
                "Host: evil.example:{port}\r\nOrigin: http://evil.example:{port}\r\nSec-Fetch-Site: same-origin\r\n"
            ),
            format!("Host: localhost.evil.example:{port}\r\n"),
            "Host: 127.0.0.1.evil.example\r\n".to_owned(),
            format!("Host: agent:{port}\r\n"),
            "Host: \r\n".to_owned(),
            "Host: me@localhost\r\n".to_owned(),
            "Host: 2130706433\r\n".to_owned(),
            // Requests across sites.
            format!("{own}Origin: https://evil.example\r\n"),
            format!("{own}Origin: null\r\n"),
            format!("{own}Origin: http://127.0.0.1:1\r\n"),
            format!("{own}Origin: http://localhost:{port}\r\n"),
            format!("{own}Origin: http://127.0.0.1:{port}\r\nOrigin: http://evil.example\r\n"),
            format!("{own}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n"),
            format!("{own}Sec-Fetch-Site: same-site\r\n"),
            format!("{own}Origin: https://evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"),
        ];
        let requests = [
            ("GET", "/api/v1/private/traces?project_name=p", "", ""),
            ("GET", "/v1/private/traces", "", ""),
            ("GET", "/opik/api/v1/private/projects", "", ""),
            ("GET", "/api/is-alive/ping", "", ""),
            ("GET", "/", "", ""),
            ("GET", "/-/", "", ""),
            ("GET", "//-/./status.json", "", ""),
            ("GET", "/%2d/status.json", "", ""),
            ("GET", "/-/status.json", "", ""),
            ("GET", "/-/healthy", "", ""),
            ("GET", "/-/ready", "", ""),
            ("GET", "/metrics", "", ""),
            ("POST", "/-/flush?timeout=1s", "", ""),
            ("POST", "/-//flush?timeout=1s", "", ""),
            ("GET", "/guardrails/x", "", ""),
            ("POST", "/guardrails/api/v1/guardrails/validations", JSON, "{}"),
            ("POST", "//api/v1/private/traces", JSON, &*body),
            ("POST", "/api/v1/private/traces", JSON, &*body),
            ("POST", "/api/v1/private/traces", "Content-Type: text/plain\r\n", &*body),
            ("POST", "/api/v1/private/traces/search", JSON, "{}"),
            ("DELETE", "/api/v1/private/traces/x", "", ""),
            ("OPTIONS", "/api/v1/private/traces", "Access-Control-Request-Method: POST\r\n", ""),
            ("PUT", "/api/v1/private/attachment/upload?file_name=a&mime_type=b", "", "a file"),
            ("GET", "/default/projects", "", ""),
        ];
        let mut sent = 0;
        for page in &pages {
            for (method, path, headers, body) in &requests {
                let (status, answer) =
                    raw(agent, &format!("{method} {path} HTTP/1.1"), &format!("{page}{headers}"), body);
                assert_eq!(status, 403, "{method} {path} {page}: {answer}");
                assert!(answer.contains("allowed_hosts"), "{answer}");
                assert!(!answer.to_lowercase().contains("access-control-allow"), "{answer}");
                sent += 1;
            }
        }
        let foreign = |by: &str| metric(agent, &format!("opik_offline_intake_foreign_total{{by=\"{by}\"}}"));
        assert_eq!((foreign("host"), foreign("page")), (sent / 2, sent / 2), "each is counted");
        let warnings = agent.stderr().matches("refused a request").count();
        assert_eq!(warnings, 1, "one warning a minute: {}", agent.stderr());
        // A request names its destination twice.
        for (target, host, expected) in [
            ("http://evil.example/api/v1/private/traces", "127.0.0.1", 403),
            ("http://127.0.0.1/api/v1/private/traces", "evil.example", 403),
            ("http://127.0.0.1/api/v1/private/traces", "localhost", 400),
            ("http://me@127.0.0.1/api/v1/private/traces", "127.0.0.1", 403),
        ] {
            let (status, answer) = raw(agent, &format!("GET {target} HTTP/1.1"), &format!("Host: {host}\r\n"), "");
            assert_eq!(status, expected, "{target} {host}: {answer}");
        }
        let two = "Host: 127.0.0.1\r\nHost: evil.example\r\n";
        assert_eq!(raw(agent, "GET /-/status.json HTTP/1.1", two, "").0, 400, "two hosts");
        assert_eq!(raw(agent, "GET /-/status.json HTTP/1.1", "", "").0, 400, "HTTP/1.1 without a Host");
    });
}

#[test]
fn programs_own_pages_and_followed_links_are_served() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let port = agent.port();
    let follows = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for host in
        [format!("127.0.0.1:{port}"), format!("LOCALHOST:{port}"), format!("[::1]:{port}"), "app.localhost.".into()]
    {
        for headers in [
            format!("Host: {host}\r\n"),
            format!("Host: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n"),
            // Node.js.
            format!("Host: {host}\r\nSec-Fetch-Mode: cors\r\n"),
        ] {
            let body = trace(&uuid7(), "chat").to_string();
            let (status, answer) =
                raw(&agent, "POST /api/v1/private/traces HTTP/1.1", &format!("{headers}{JSON}"), &body);
            assert_eq!(status, 201, "{headers}: {answer}");
            for page in ["/", "/-/", "/-/status.json", "/-/healthy", "/metrics", "/api/is-alive/ping"] {
                assert_eq!(raw(&agent, &format!("GET {page} HTTP/1.1"), &headers, "").0, 200, "{page} {headers}");
            }
        }
        let (status, answer) = raw(&agent, "GET / HTTP/1.1", &format!("Host: {host}\r\n{follows}"), "");
        assert!(status == 302 && answer.contains("location: /-/\r\n"), "a link to {host}: {answer}");
        assert_eq!(raw(&agent, "GET /-/ HTTP/1.1", &format!("Host: {host}\r\n{follows}"), "").0, 200, "the page");
        let redirect = "GET /api/v1/session/redirect/projects/?trace_id=x&path=eA== HTTP/1.1";
        let (status, answer) = raw(&agent, redirect, &format!("Host: {host}\r\n{follows}"), "");
        assert_ne!(status, 403, "a link that the SDK prints: {answer}");
    }
    // A probe of a load balancer.
    assert_eq!(raw(&agent, "GET /-/healthy HTTP/1.0", "", "").0, 200);
    server.assert_no_violations();
}

#[test]
fn the_operator_allows_names_and_origins() {
    let server = FakeOpik::start_new();
    let allowed = "agent.example.org, *.apps.example, https://opik.example";
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_ALLOWED_HOSTS", allowed).start();
    wait_until_it_is("available", &agent);
    let port = agent.port();
    for (headers, expected) in [
        ("Host: agent.example.org:80\r\n".to_owned(), 201),
        ("Host: a.apps.example\r\n".to_owned(), 201),
        ("Host: a.apps.example\r\nOrigin: https://a.apps.example\r\n".to_owned(), 201),
        (format!("Host: localhost:{port}\r\nOrigin: https://opik.example\r\nSec-Fetch-Site: cross-site\r\n"), 201),
        (format!("Host: localhost:{port}\r\nOrigin: https://agent.example.org\r\n"), 201),
        ("Host: opik.example\r\n".to_owned(), 403),
        ("Host: apps.example\r\n".to_owned(), 403),
        (format!("Host: localhost:{port}\r\nOrigin: https://evil.example\r\n"), 403),
    ] {
        let body = trace(&uuid7(), "chat").to_string();
        let (status, answer) = raw(&agent, "POST /api/v1/private/traces HTTP/1.1", &format!("{headers}{JSON}"), &body);
        assert_eq!(status, expected, "{headers}: {answer}");
    }
    for (wrong, says) in [("http://a/b", "path"), ("fd00::1", "brackets"), ("a:x", "port"), ("a@b", "valid host")] {
        let output = Agent::builder(&server.url()).arg("--allowed-hosts").arg(wrong).refused();
        assert_eq!(output.code(), Some(2), "{wrong}: {}", output.stderr);
        assert!(output.stderr.contains("allowed_hosts") && output.stderr.contains(says), "{wrong}: {}", output.stderr);
    }
}

/// An agent that other machines can reach, in a network of its own, where the test's script is its only client.
#[test]
fn a_public_listener_answers_to_addresses_services_and_valid_tokens() {
    const SCRIPT: &str = r#"
import http.client, os, time
def status(host, path, token):
    for _ in range(100):
        try:
            connection = http.client.HTTPConnection('127.0.0.1', 6745, timeout=10)
            headers = {'Host': host} | ({'X-Opik-Offline-Token': token} if token else {})
            connection.request('GET', path, headers=headers)
            return connection.getresponse().status
        except ConnectionRefusedError:
            time.sleep(0.1)
token = os.environ.get('OPIK_OFFLINE_INTAKE_TOKEN')
for host in ['10.42.0.17:6745', 'opik-offline:6745', 'opik-offline.a.svc.cluster.local:6745', 'agent.example.org:6745']:
    print(host, *(status(host, path, None) for path in ['/-/healthy', '/metrics', '/-/status.json', '/api/is-alive/ping']),
          status(host, '/api/is-alive/ping', token))
"#;
    let home = Home::new();
    let wrapped = |args: &[&str]| {
        let mut command = home.command("unshare");
        command.args([
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            r#"ip link set lo up 2>/dev/null || python3 -c '
import fcntl, socket, struct
up = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(up, 0x8914, struct.pack("16sh", b"lo", 1))'
exec "$@""#,
            "sh",
            BINARY,
            "agent",
            "--listen",
            "0.0.0.0:6745",
            "--upstream",
            "http://127.0.0.1:9/api",
        ]);
        command.arg("--db").arg(home.db()).args(args).args(["--", "python3", "-c", SCRIPT]);
        command
    };
    let probe = home.command("unshare").args(["--map-root-user", "--net", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return not_run("this system allows no network namespace (unshare --map-root-user --net)");
    }
    let output = run(&mut wrapped(&["--insecure-listen"]));
    // Health, metrics, status, the interface without the token and with it. Probes and scrapers have no token.
    let expected = "10.42.0.17:6745 200 200 200 200 200\nopik-offline:6745 200 200 200 200 200\n\
                    opik-offline.a.svc.cluster.local:6745 200 200 200 200 200\n\
                    agent.example.org:6745 200 403 403 403 403\n";
    assert_eq!(output.stdout, expected, "{}", output.stderr);
    let output = run(wrapped(&[]).env("OPIK_OFFLINE_INTAKE_TOKEN", "made-up-token-13579"));
    let expected = "10.42.0.17:6745 200 200 200 401 200\nopik-offline:6745 200 200 200 401 200\n\
                    opik-offline.a.svc.cluster.local:6745 200 200 200 401 200\n\
                    agent.example.org:6745 200 200 403 403 200\n";
    assert_eq!(output.stdout, expected, "{}", output.stderr);
}

#[test]
fn a_web_page_evicts_nothing_from_a_full_store() {
    let server = FakeOpik::new_stopped();
    let args = ["--max-size", "1MiB", "--when-full", "drop_oldest"];
    let agent = args.iter().fold(Agent::builder(&server.url()).impatient(), |agent, arg| agent.arg(arg)).start();
    let mut client = Client::new(&agent.url());
    let ids: Vec<String> = (0..5).map(|_| uuid7()).collect();
    for id in &ids {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    let mut large = trace(&uuid7(), "evil");
    large["input"] = noise(100_000).into();
    let body = large.to_string();
    for at in 0..40 {
        let origin = if at % 2 == 0 { "Origin: https://evil.example\r\n" } else { "" };
        let headers = format!("Host: 127.0.0.1:{}\r\n{origin}Content-Type: text/plain;charset=UTF-8\r\n", agent.port());
        let (status, answer) = raw(&agent, "POST /api/v1/private/traces HTTP/1.1", &headers, &body);
        assert_eq!(status, if at % 2 == 0 { 403 } else { 415 }, "{answer}");
    }
    assert_eq!(agent.backlog(), 5, "a page has evicted what was acknowledged");
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 5);
}

#[test]
fn a_content_type_that_the_server_would_not_read_is_refused_at_once_on_every_route() {
    there_and_away(&[], |agent| {
        let mut client = Client::new(&agent.url());
        for operation in OPERATIONS {
            let is_otlp = operation.class == Class::Deferrable(MessageType::OtlpTraces);
            let is_file = operation.path.ends_with("/upload");
            let has_no_body = operation.method == "DELETE";
            if operation.class == Class::NeedsAnswer || is_file {
                continue;
            }
            let path: Vec<&str> = operation.path.split('/').collect();
            let id = uuid7();
            let path: Vec<&str> =
                path.into_iter().map(|part| if part.starts_with('{') { &*id } else { part }).collect();
            let request = || Request::new(operation.method, &format!("/{}", path.join("/"))).bytes(*b"{}");
            for wrong in TYPES_OF_FORMS.iter().chain(&["application/octet-stream", "application/xml", ""]) {
                let answer = client.expect(&request().header("Content-Type", wrong));
                assert_error(&answer, 415);
                let text = answer.text();
                assert!(text.contains("application/json"), "{} {wrong}: {text}", operation.path);
                assert_eq!(is_otlp, text.contains("x-protobuf"), "{text}");
            }
            if !has_no_body {
                assert_error(&client.expect(&request().untyped()), 415);
                assert_error(&client.expect(&request().untyped().chunked(1)), 415);
            }
            let answer = client.expect(&request().header("Content-Type", "application/x-protobuf"));
            assert_eq!(answer.status == 415, !is_otlp, "{}: {}", operation.path, answer.text());
        }
        // Routes that pass through: the agent knows what their bodies are, too.
        for path in ["/v1/private/traces/search", "/v1/private/prompts", "/v1/private/spans/x/comments"] {
            let answer = client.expect(&Request::new("POST", path).header("Content-Type", "text/plain").bytes(*b"{}"));
            assert_error(&answer, 415);
        }
    });
}

#[test]
fn dot_segments_never_reach_the_server() {
    there_and_away(&[("OPIK_OFFLINE_INTAKE_TOKEN", "made-up-token-13579")], |agent| {
        let body = trace(&uuid7(), "chat").to_string();
        for path in [
            "/api/../secret",
            "/api/v1/private/%2e%2e/%2E./%2e/secret",
            "/api/v1/private/traces/..%2f..%2fsecret",
            "/api/v1/private/traces/..%5c..%5csecret",
            "/api/v1/private/traces/..\\secret",
            "/api/v1/private/..;/secret",
            "/api/v1/private/..;x=1/secret",
            "/api/v1/private/%252e%252e/secret",
            "/api/v1/.;x/private/traces",
            "/api/v1/private/traces/%252e",
            "/v1/private/traces/..?x=1",
            "/../api/v1/private/traces",
            "/-/../api/v1/private/traces",
            "/api/v1/private/%c0%ae%c0%ae/secret",
            "/-/token/made-up-token-13579/../api/v1/private/traces",
            "/-/token/made-up-token-13579/api/%2e%2e/x",
        ] {
            for (method, headers, body) in
                [("GET", "", ""), ("POST", JSON, &*body), ("PATCH", JSON, "{}"), ("DELETE", "", "")]
            {
                let headers = format!("Host: localhost\r\nX-Opik-Offline-Token: made-up-token-13579\r\n{headers}");
                let (status, answer) = raw(agent, &format!("{method} {path} HTTP/1.1"), &headers, body);
                assert_eq!(status, 400, "{method} {path}: {answer}");
                assert!(answer.contains("segment"), "{answer}");
            }
        }
    });
    // Dots in names are part of the name, and a query is not a path.
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    for path in ["/api/v1/private/files/a..b/v1.2/...", "/api/v1/private/files?path=../../x&y=%2e%2e"] {
        let (status, answer) = raw(&agent, &format!("GET {path} HTTP/1.1"), "Host: localhost\r\n", "");
        assert_ne!(status, 400, "{path}: {answer}");
        let path = path.split('?').next().unwrap().trim_start_matches("/api");
        assert_eq!(server.requests_to("GET", path).len(), 1, "{path}");
    }
}

#[test]
fn no_connection_is_made_for_others() {
    there_and_away(&[], |agent| {
        for (target, host) in
            [("evil.example:443", "evil.example:443"), ("127.0.0.1:80", "127.0.0.1:80"), ("localhost:80", "localhost")]
        {
            let (status, answer) = raw(agent, &format!("CONNECT {target} HTTP/1.1"), &format!("Host: {host}\r\n"), "");
            assert_eq!(status, 405, "{target}: {answer}");
            assert!(answer.to_lowercase().contains("\r\nallow: get, "), "{answer}");
        }
    });
}

/// Sends as clients of each kind do, and prints the status and, for a create, where it is.
const SENDER: &str = r#"
import json, os, urllib.parse, urllib.request
def send(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {'Content-Type': 'application/json'})
    try:
        answer = urllib.request.urlopen(request)
        return answer.status, answer.headers.get('Location')
    except urllib.error.HTTPError as error:
        return error.code, None
base, otlp = os.environ['OPIK_URL_OVERRIDE'], os.environ['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT']
body = {'name': 'wrapped', 'start_time': '2026-01-02T03:04:05Z', 'project_name': 'p'}
status, location = send(base + '/v1/private/traces', body)
print(status, location.startswith(base + '/v1/private/traces/'))
print(send(otlp, {'resourceSpans': []})[0])
wrong = base.replace('/api', 'x/api')
print(send(wrong + '/v1/private/traces', body)[0])
raw = urllib.parse.unquote(base)
if not set(raw) & set(' ?#%'):
    print(send(raw + '/v1/private/traces', body)[0])
"#;

#[test]
fn a_wrapped_command_is_accepted_with_any_characters_in_the_token() {
    for (token, more) in [
        ("q8/Xk+0a==", "201\n"),
        ("50%/a?b#c&d", ""),
        ("a%2Fb//c", ""),
        ("~!@$^*(){}[]|\\:;\"'<>,.`", "201\n"),
        ("plain", "201\n"),
    ] {
        for away in [false, true] {
            let server = FakeOpik::start_new();
            if away {
                server.stop();
            }
            let home = Home::new();
            let mut command = home.command(BINARY);
            command.args(["agent", "--upstream", &server.url(), "--flush-timeout", "1s", "--db"]).arg(home.db());
            command.args(["--", "python3", "-c", SENDER]).env("OPIK_OFFLINE_INTAKE_TOKEN", token);
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{}/v1/private/otel", server.url()));
            let output: Output = run(&mut command);
            // `<>"` and the like are not allowed in a URL, but Python and others send them anyway.
            let more = if token.starts_with('~') { "" } else { more };
            assert!(
                output.stdout.starts_with(&format!("201 True\n200\n401\n{more}")),
                "{token}, away: {away}: {} {}",
                output.stdout,
                output.stderr
            );
            if !away {
                let writes = server.count("default", Kind::Trace);
                assert!(writes >= 1, "nothing reached the server");
                for request in server.requests() {
                    assert!(!format!("{} {:?}", request.path, request.headers).contains("/-/token/"), "{request:?}");
                }
            }
        }
    }
}

#[test]
fn a_token_that_clients_cannot_send_is_refused_at_start() {
    for token in ["two words", "caf\u{e9}-au-lait", "..", "\u{1f511}"] {
        let output = Agent::builder("http://127.0.0.1:9/api").env("OPIK_OFFLINE_INTAKE_TOKEN", token).refused();
        assert_eq!(output.code(), Some(2), "{token}: {}", output.stderr);
        assert!(output.stderr.contains("intake_token") && output.stderr.contains("hint: "), "{}", output.stderr);
        assert!(!output.stderr.contains(token) || token == "..", "{}", output.stderr);
    }
}

#[test]
fn a_key_is_never_kept_among_a_messages_headers() {
    const KEY: &str = "made-up-key-9876543210";
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url()).with_header("Authorization", KEY).with_header("X-Kept", "yes");
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    let upload = format!(
        "/v1/private/attachment/upload?file_name=a.pdf&mime_type=application%2Fpdf&entity_type=trace&entity_id={}",
        uuid7()
    );
    assert_eq!(client.expect(&Request::new("PUT", &upload).bytes(vec![7; 1000])).status, 204);
    let lines = agent.cli(&["inspect", "--format", "jsonl"]).stdout;
    assert_eq!(lines.lines().count(), 2, "{lines}");
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let names: Vec<&str> =
            line["headers"].as_array().unwrap().iter().map(|header| header["name"].as_str().unwrap()).collect();
        assert!(names.iter().any(|name| name.eq_ignore_ascii_case("x-kept")), "{names:?}");
        for name in ["authorization", "host", "content-length", "comet-workspace", "x-opik-offline-token"] {
            assert!(!names.iter().any(|kept| kept.eq_ignore_ascii_case(name)), "{name} is kept: {names:?}");
        }
    }
    server.start();
    agent.wait_until_delivered();
    assert!(
        server.requests_to("POST", "/v1/private/traces").iter().all(|got| got.authorization.as_deref() == Some(KEY))
    );
}
