//! The settings of the network: who reads them, who gets the user's own headers, and what happens where one can't be
//! used.

use crate::networks::{cli, unwrapped};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::networks::{Age, Authority, ForwardProxy, Front};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::tls::state;
use crate::writes::create;

#[test]
fn configured_headers_reach_the_server_and_no_other_host() {
    let server = FakeOpik::start_new();
    let folder = crate::support::tempdir();
    let file = folder.path().join("headers");
    std::fs::write(&file, "# Cloudflare Access\nCF-Access-Client-Id: agent.access\nX-Both: of-the-file-ofthefile\n")
        .unwrap();
    let proxy = ForwardProxy::start(server.port(), None);
    let agent = Agent::builder("http://opik.test/api")
        .impatient()
        .env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG")
        .env("HTTP_PROXY", &format!("http://127.0.0.1:{}", proxy.port()))
        .env("OPIK_OFFLINE_UPSTREAM_HEADERS", "X-Gateway=secret-ofthegate%20x,X-Both=of-the-variable-ofthevariable")
        .arg("--upstream-headers-file")
        .arg(&file.to_string_lossy())
        .start();
    wait_until("a ping gets there", PATIENCE, || state(&agent)["connection"] == "available");
    let mut client = Client::new(&agent.url()).with_header("X-Gateway", "the-clients-own");
    client.get("/v1/private/projects");
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    server.stop();
    let replayed = uuid7();
    assert_eq!(client.expect(&create(&replayed)).status, 201);
    let upload = format!(
        "/v1/private/attachment/upload?file_name=a.pdf&mime_type=application%2Fpdf&entity_type=trace&entity_id={replayed}"
    );
    assert_eq!(client.expect(&Request::new("PUT", &upload).bytes("x".repeat(2000))).status, 204);
    // The headers are not kept with the messages.
    let database = std::fs::read(agent.db()).unwrap();
    let wal = std::fs::read(format!("{}-wal", agent.db().display())).unwrap_or_default();
    for secret in ["ofthefile", "ofthegate", "ofthevariable", "agent.access"] {
        let is_in = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!is_in(&database) && !is_in(&wal), "{secret} is stored");
        assert!(!agent.stderr().contains(secret), "{secret} is logged");
    }
    server.start();
    agent.wait_until_delivered();
    let requests = server.requests();
    assert!(requests.len() >= 7, "{}", requests.len());
    for request in &requests {
        let values = ["CF-Access-Client-Id", "X-Gateway", "X-Both"].map(|name| request.header(name));
        let expected = [Some("agent.access"), Some("secret-ofthegate x"), Some("of-the-variable-ofthevariable")];
        assert_eq!(values, expected, "{} {}", request.method, request.path);
    }
}

#[test]
fn a_message_for_another_server_goes_there_without_the_headers() {
    let (server, other) = (FakeOpik::start_new(), FakeOpik::start_new());
    let home = Home::new();
    other.stop();
    let elsewhere = Agent::builder(&other.url()).impatient().start();
    let id = uuid7();
    assert_eq!(Client::new(&elsewhere.url()).expect(&create(&id)).status, 201);
    let db = elsewhere.db().to_string_lossy().into_owned();
    other.start();
    wait_until("the other server gets it", PATIENCE, || {
        let variables = [
            ("OPIK_OFFLINE_UPSTREAM_HEADERS", "X-Gateway: secret-ofthegate"),
            ("OPIK_OFFLINE_UPSTREAM", &*server.url()),
        ];
        cli(&home, &["replay", "--db", &db], &variables);
        !other.sequence_for(&id).is_empty()
    });
    assert!(other.requests().iter().all(|request| request.header("X-Gateway").is_none()));
}

#[test]
fn headers_are_masked_and_those_of_the_request_itself_refused() {
    let (server, home) = (FakeOpik::start_new(), Home::new());
    let variables =
        [("OPIK_OFFLINE_UPSTREAM_HEADERS", "X-Gateway: secret-ofthegate"), ("OPIK_OFFLINE_UPSTREAM", &*server.url())];
    let shown = cli(&home, &["healthcheck", "-v"], &variables).stdout;
    assert!(shown.contains("x-gateway: ***") && !shown.contains("ofthegate"), "{shown}");
    let variables = [("OPIK_OFFLINE_UPSTREAM_HEADERS", "Authorization: secret-ofthegate")];
    let refused = cli(&home, &["healthcheck"], &variables);
    assert_eq!(refused.code(), Some(2));
    assert!(refused.stderr.contains("authorization is not for the user to set"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("ofthegate"), "{}", refused.stderr);
}

/// Settings of the network that can't be used.
const BROKEN: [&[(&str, &str)]; 6] = [
    &[("HTTP_PROXY", "gopher://me:secret-unspoken@127.0.0.1:1")],
    &[("ALL_PROXY", "http://")],
    &[("OPIK_CHECK_TLS_CERTIFICATE", "maybe")],
    &[("OPIK_OFFLINE_UPSTREAM_HEADERS", "no header")],
    &[("OPIK_OFFLINE_UPSTREAM_HEADERS_FILE", "/no/such/file")],
    &[("SSL_CERT_FILE", "/no/such/file"), ("OPIK_OFFLINE_CLIENT_CERT_FILE", "/no/such/file")],
];

#[test]
fn commands_that_need_no_network_do_not_read_its_settings() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    server.stop();
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    let (listen, db) = (format!("127.0.0.1:{}", agent.port()), agent.db().display().to_string());
    for broken in BROKEN {
        let mut variables = vec![("OPIK_OFFLINE_UPSTREAM", "http://opik.test/api"), ("OPIK_OFFLINE_LISTEN", &*listen)];
        variables.push(("OPIK_OFFLINE_DB", &db));
        variables.extend(broken);
        let status = cli(agent.home(), &["status", "--format", "json"], &variables);
        assert_eq!(status.code(), Some(0), "{broken:?}: {}", status.stderr);
        assert_eq!(status.json()["agent"]["running"], true, "{broken:?}: {}", status.stdout);
        let inspect = cli(agent.home(), &["inspect"], &variables);
        assert_eq!(inspect.code(), Some(0), "{broken:?}: {}", inspect.stderr);
        let purge = cli(agent.home(), &["purge", "--dry-run"], &variables);
        assert_eq!(purge.code(), Some(0), "{broken:?}: {}", purge.stderr);
        for output in [&status, &inspect, &purge] {
            assert!(!output.stderr.contains("secret-unspoken"), "{}", output.stderr);
        }
        // A command that contacts the server needs them, and names the invalid one.
        let healthcheck = cli(agent.home(), &["healthcheck"], &variables);
        assert_eq!(healthcheck.code(), Some(2), "{broken:?}: {} {}", healthcheck.stdout, healthcheck.stderr);
        assert!(!healthcheck.stderr.contains("secret-unspoken"), "{}", healthcheck.stderr);
    }
}

#[test]
fn a_wrapped_command_runs_with_a_broken_network_and_nothing_bypasses_the_agent() {
    let server = FakeOpik::start_new();
    let script = "echo ran; curl -s --noproxy '*' -o /dev/null -w '%{http_code}' -H 'Content-Type: application/json' \
                  -d '{\"id\":\"@@\",\"start_time\":\"2026-03-01T04:00:16Z\"}' \"$OPIK_URL_OVERRIDE/v1/private/traces\"; exit 7";
    // An address of this machine that counts as another's.
    let upstream = format!("http://localtest.invalid:{}/api", server.port());
    for broken in BROKEN {
        let home = Home::new();
        let mut variables = vec![("OPIK_OFFLINE_UPSTREAM", &*upstream)];
        variables.extend(broken);
        let script = script.replace("@@", &uuid7());
        let wrapped = cli(&home, &["agent", "--flush-timeout", "1s", "--", "sh", "-c", &script], &variables);
        assert_eq!(wrapped.code(), Some(7), "{broken:?}: {}", wrapped.stderr);
        assert!(wrapped.stdout.starts_with("ran\n201"), "{broken:?}: {}", wrapped.stdout);
        let told = unwrapped(&wrapped.stderr);
        assert!(told.contains("warning: cannot connect to the Opik server"), "{broken:?}: {}", wrapped.stderr);
        assert!(told.contains("1 message stays safely stored"), "{broken:?}: {told}");
        assert!(!told.contains("secret-unspoken"), "{told}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn certificates_that_come_later_end_the_outage_of_a_wrapped_command() {
    let (authority, server) = (Authority::new(), FakeOpik::start_new());
    let front = Front::tls(authority.server("localhost", Age::Valid), server.port());
    let later = authority.folder().join("later.pem");
    let home = Home::new();
    let script = format!(
        "curl -s --noproxy '*' -o /dev/null -H 'Content-Type: application/json' \
         -d '{{\"id\":\"{}\",\"start_time\":\"2026-03-01T04:00:16Z\"}}' \"$OPIK_URL_OVERRIDE/v1/private/traces\"; cp {} {}",
        uuid7(),
        authority.file.display(),
        later.display(),
    );
    let upstream = format!("https://localhost:{}/api", front.port);
    let variables = [
        ("OPIK_OFFLINE_UPSTREAM", &*upstream),
        ("SSL_CERT_FILE", &*later.to_string_lossy()),
        ("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.1"),
    ];
    let wrapped = cli(&home, &["agent", "--flush-timeout", "20s", "--", "sh", "-c", &script], &variables);
    assert_eq!(wrapped.code(), Some(0), "{}", wrapped.stderr);
    assert!(server.requests().iter().any(|request| request.path.ends_with("/traces")), "{}", wrapped.stderr);
}
