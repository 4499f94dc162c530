//! The way to a server behind TLS and proxies, for both clients: hyper's forwards, ureq's pings, replays and uploads
//! files. Real TLS with an authority of the test's own; behind it the fake server, which sees what came through.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, FilesIn};
use crate::support::http::{Client, Request};
use crate::support::networks::{Age, Authority, ForwardProxy, Front};
use crate::support::process::run;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::create;

fn agent(host: &str, front: &Front, authority: Option<&Path>) -> AgentBuilder {
    let agent = Agent::builder(&format!("https://{host}:{}/api", front.port)).impatient();
    let agent = agent.env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG");
    match authority {
        Some(file) => agent.env("SSL_CERT_FILE", &file.to_string_lossy()),
        None => agent,
    }
}

pub(crate) fn state(agent: &Agent) -> serde_json::Value {
    Client::new(&agent.origin()).get("/-/ready").json()["server"].clone()
}

/// Everything that needs the server, by either client.
#[track_caller]
pub(crate) fn assert_everything_gets_there(agent: &Agent, server: &FakeOpik) {
    wait_until("a ping gets there", PATIENCE, || state(agent)["connection"] == "available");
    let mut client = Client::new(&agent.url());
    assert_eq!(client.get("/is-alive/ver").status, 200, "passing through");
    let (forwarded, replayed) = (uuid7(), uuid7());
    assert_eq!(client.expect(&create(&forwarded)).status, 201);
    assert_eq!(server.sequence_for(&forwarded).len(), 1, "it was forwarded");
    server.stop();
    assert_eq!(client.expect(&create(&replayed)).status, 201);
    for name in ["small.pdf", "other.pdf"] {
        let upload = format!(
            "/v1/private/attachment/upload?file_name={name}&mime_type=application%2Fpdf&entity_type=trace&entity_id={replayed}"
        );
        assert_eq!(client.expect(&Request::new("PUT", &upload).bytes(name.repeat(2000))).status, 204);
    }
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 2, "a replayed trace is lost");
    let rejected = agent.cli(&["inspect", "--rejected", "--format", "yaml"]).stdout;
    assert_eq!(server.files().len(), 2, "a file is lost: {rejected}");
    server.assert_no_violations();
}

#[test]
fn a_private_authority_is_trusted_when_its_file_is_named() {
    let authority = Authority::new();
    for files_in in [FilesIn::Itself, FilesIn::ObjectStore] {
        let server = FakeOpik::start_new();
        server.keep_files_in(files_in);
        let front = Front::tls(authority.server("localhost", Age::Valid), server.port());
        let agent = agent("localhost", &front, Some(&authority.file)).start();
        assert_everything_gets_there(&agent, &server);
    }
}

#[test]
fn a_certificate_that_cannot_be_trusted_is_refused_with_its_reason_and_what_to_do() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (what, host, age, trusted, words) in [
        ("built-in authorities only", "localhost", Age::Valid, None, ["signed by no authority", "SSL_CERT_FILE"]),
        ("another authority", "localhost", Age::Valid, Some(&other), ["signed by no authority", "SSL_CERT_FILE"]),
        ("expired", "localhost", Age::Expired, Some(&authority), ["has expired", "clock"]),
        ("another host", "opik.test", Age::Valid, Some(&authority), ["for another host", "name the server"]),
    ] {
        let server = FakeOpik::start_new();
        let front = Front::tls(authority.server(host, age), server.port());
        let trusted = trusted.map(|authority| &*authority.file);
        let agent = agent("localhost", &front, trusted).start();
        wait_until("a ping fails", PATIENCE, || state(&agent)["connection"] == "unavailable");
        let reason = state(&agent)["reason"].as_str().unwrap_or_default().to_owned();
        let mut client = Client::new(&agent.url());
        assert_eq!(client.get("/v1/private/projects").status, 503, "{what}: something passed through");
        // It waits for a certificate that can be trusted.
        assert_eq!(client.expect(&create(&uuid7())).status, 201, "{what}");
        let log = agent.stderr();
        let passed = log.lines().find(|line| line.contains("cannot pass a request through")).unwrap_or_default();
        let mut healthcheck = agent.home().command(env!("CARGO_BIN_EXE_opik-offline"));
        healthcheck.args(["healthcheck", "--upstream", &format!("https://localhost:{}/api", front.port)]);
        if let Some(file) = trusted {
            healthcheck.env("SSL_CERT_FILE", file);
        }
        let healthcheck = run(&mut healthcheck);
        assert_eq!(healthcheck.code(), Some(3), "{what}: {}", healthcheck.stdout);
        let unwrapped = healthcheck.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for (from, text) in [("the ping", &*reason), ("passing through", passed), ("healthcheck", &*unwrapped)] {
            for word in words {
                assert!(text.contains(word), "{what}: {from} does not say {word:?}: {text:?}");
            }
        }
        assert_eq!(agent.backlog(), 1, "{what}");
        assert!(server.requests().is_empty(), "{what}: a request was sent to an unverified server");
    }
}

#[test]
fn a_user_who_wants_no_check_gets_none() {
    let (authority, server) = (Authority::new(), FakeOpik::start_new());
    let front = Front::tls(authority.server("opik.test", Age::Expired), server.port());
    let agent = agent("localhost", &front, None).env("OPIK_CHECK_TLS_CERTIFICATE", "false").start();
    assert_everything_gets_there(&agent, &server);
}

#[test]
fn a_server_without_tls_is_named() {
    let front = Front::serving(|mut client| async move {
        client.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await?;
        client.read(&mut [0; 1024]).await.map(drop)
    });
    let agent = Agent::builder(&format!("https://localhost:{}/api", front.port)).impatient().start();
    wait_until("a ping fails", PATIENCE, || state(&agent)["connection"] == "unavailable");
    let reason = state(&agent)["reason"].to_string();
    assert!(reason.contains("speaks no TLS"), "{reason}");
}

#[test]
fn the_usual_proxy_variables_lead_both_clients_through_the_proxy() {
    let authority = Authority::new();
    let credentials = "Basic bWU6cEBzcw==";
    for (scheme, port, variable) in [("https", 443, "HTTPS_PROXY"), ("http", 80, "HTTP_PROXY")] {
        let server = FakeOpik::start_new();
        let front = Front::tls(authority.server("opik.test", Age::Valid), server.port());
        let behind = if scheme == "https" { front.port } else { server.port() };
        let proxy = ForwardProxy::start(behind, Some(credentials));
        // No such host: what is not led through the proxy gets nowhere.
        let builder = || {
            Agent::builder(&format!("{scheme}://opik.test/api"))
                .impatient()
                .env("SSL_CERT_FILE", &authority.file.to_string_lossy())
                .env(variable, &format!("http://me:p%40ss@127.0.0.1:{}", proxy.port()))
        };
        let agent = builder().start();
        assert_everything_gets_there(&agent, &server);
        assert!(!agent.stderr().contains("p%40ss") && !agent.stderr().contains("p@ss"), "{}", agent.stderr());
        let asked = proxy.take_asked();
        assert!(asked.len() >= 2, "each client has a connection of its own: {asked:?}");
        for asked in &asked {
            let expected =
                if scheme == "https" { format!("CONNECT opik.test:{port}") } else { "http://opik.test/api/".into() };
            assert!(asked.line().contains(&expected), "{asked:?}");
            assert!(scheme == "http" || !asked.has("authorization"), "the proxy got a key: {asked:?}");
        }
        assert!(
            server.requests().iter().all(|request| request.header("Proxy-Authorization").is_none()),
            "the proxy's password reached the server"
        );
        // Its pings would be attributed to the next one.
        drop(agent);
        proxy.take_asked();
        let exempt = builder().env("NO_PROXY", "example.com, .test").start();
        wait_until("a ping fails", PATIENCE, || state(&exempt)["connection"] == "unavailable");
        assert_eq!(Client::new(&exempt.url()).get("/v1/private/projects").status, 503);
        assert!(proxy.take_asked().is_empty(), "NO_PROXY is not obeyed");
    }
}
