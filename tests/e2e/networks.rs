//! Corporate networks: forward proxies, SOCKS, client certificates, certificates that are renewed, gateways that want
//! headers, names that can't be resolved. Both clients are tested in every case: hyper's forwards, ureq's pings and
//! replays.

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::support::agent::{Agent, AgentBuilder, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::networks::{Age, Authority, ForwardProxy, Front, SocksServer};
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::tls::{assert_everything_gets_there, state};
use crate::writes::create;

/// Runs a command of the agent's in a home of its own, with these variables.
pub(crate) fn cli(home: &Home, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = home.command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(args).envs(variables.iter().copied());
    run(&mut command)
}

pub(crate) fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until a ping has failed, and returns the reason that the agent gives.
fn reason(agent: &Agent) -> String {
    wait_until("a ping fails", PATIENCE, || state(agent)["connection"] == "unavailable");
    state(agent)["reason"].as_str().unwrap_or_default().to_owned()
}

/// Returns the log line about a request that could not be passed on; logging at DEBUG.
fn passing_failed(agent: &Agent) -> String {
    let found =
        || agent.stderr().lines().find(|line| line.contains("cannot pass a request through")).map(str::to_owned);
    wait_until("the failure is logged", PATIENCE, || found().is_some());
    found().unwrap_or_default()
}

fn with_all(builder: AgentBuilder, variables: &[(&str, &str)]) -> AgentBuilder {
    variables.iter().fold(builder, |builder, (name, value)| builder.env(name, value))
}

#[test]
fn a_proxy_that_goes_away_is_an_outage_like_any_other() {
    let server = FakeOpik::start_new();
    let proxy = ForwardProxy::start(server.port(), None);
    let agent = Agent::builder("http://opik.test/api").impatient();
    let agent = agent.env("http_proxy", &format!("127.0.0.1:{}", proxy.port())).start();
    wait_until("a ping gets there", PATIENCE, || state(&agent)["connection"] == "available");
    let mut client = Client::new(&agent.url());
    let ids: Vec<String> = (0..6).map(|_| uuid7()).collect();
    assert_eq!(client.expect(&create(&ids[0])).status, 201);
    proxy.set_away(true);
    for id in &ids[1..3] {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    assert_eq!(agent.backlog(), 2, "nothing was stored");
    let why = reason(&agent);
    assert!(
        why.contains(&format!("http://opik.test/api through the proxy http://127.0.0.1:{}", proxy.port())),
        "{why}"
    );
    proxy.set_away(false);
    agent.wait_until_delivered();
    // A proxy's own page is not an answer of the server.
    for status in [403, 502, 407] {
        proxy.refuse_with(Some(status));
        assert_eq!(client.expect(&create(&ids[3])).status, 201, "{status}");
        assert_eq!(agent.backlog(), 1, "{status}");
        proxy.refuse_with(None);
        agent.wait_until_delivered();
    }
    for id in &ids[..4] {
        assert!(!server.sequence_for(id).is_empty(), "{id} is lost");
    }
    assert!(proxy.take_asked().iter().all(|asked| !asked.line().starts_with("CONNECT")));
}

#[test]
fn a_request_in_absolute_form_carries_the_body_and_the_next_one_its_own_head() {
    let server = FakeOpik::start_new();
    let proxy = ForwardProxy::start(server.port(), Some("Basic bWU6cHc="));
    let home = Home::new();
    let url = format!("http://me:pw@127.0.0.1:{}", proxy.port());
    let variables = [("HTTP_PROXY", &*url), ("OPIK_OFFLINE_UPSTREAM", "http://opik.test:8080/api")];
    let smoke = cli(&home, &["healthcheck", "--smoke-test"], &variables);
    assert_eq!(smoke.code(), Some(0), "{} {}", smoke.stdout, smoke.stderr);
    let asked = proxy.take_asked();
    assert!(asked.len() >= 6, "{asked:?}");
    for asked in &asked {
        assert!(asked.line().contains(" http://opik.test:8080/api/"), "{asked:?}");
    }
    assert!(server.requests().iter().all(|request| request.header("Host") == Some("opik.test:8080")));
    server.assert_no_violations();
    // A page of the proxy is attributed to the proxy.
    proxy.refuse_with(Some(502));
    let page = unwrapped(&cli(&home, &["healthcheck"], &variables).stdout);
    let words = format!("through the proxy http://127.0.0.1:{} is not Opik: 502 text/html", proxy.port());
    assert!(page.contains(&words), "{page}");
}

#[test]
fn a_proxys_refusal_is_reported_once_in_its_own_words() {
    let authority = Authority::new();
    let server = FakeOpik::start_new();
    let front = Front::tls(authority.server("opik.test", Age::Valid), server.port());
    let proxy = ForwardProxy::start(front.port, Some("Basic bWU6cHc="));
    let url = format!("http://me:wrong-hushed@127.0.0.1:{}", proxy.port());
    let shown = format!("through the proxy http://127.0.0.1:{}", proxy.port());
    for (status, upstream, words) in [
        (None, "https://opik.test/api", "the proxy answers 407 Proxy Authentication Required"),
        (Some(403), "https://opik.test/api", "the proxy answers 403 Forbidden"),
        (None, "https://opik.test:8443/api", "the proxy answers 407 Proxy Authentication Required"),
    ] {
        proxy.refuse_with(status);
        let variables = [("HTTPS_PROXY", &*url), ("OPIK_OFFLINE_UPSTREAM", upstream)];
        let agent = Agent::builder(upstream).impatient().env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG");
        let agent = with_all(agent, &variables).start();
        let why = reason(&agent);
        assert_eq!(Client::new(&agent.url()).get("/v1/private/projects").status, 503);
        let passed = passing_failed(&agent);
        let healthcheck = cli(&Home::new(), &["healthcheck"], &variables);
        assert_eq!(healthcheck.code(), Some(3), "{}", healthcheck.stdout);
        for (from, text) in [("ping", why), ("passing", passed), ("healthcheck", unwrapped(&healthcheck.stdout))] {
            assert_eq!(text.matches(words).count(), 1, "{from}: {text}");
            assert!(text.contains(&shown), "{from}: {text}");
            assert!(!text.contains("hushed"), "{from}: {text}");
        }
    }
}

#[test]
fn a_proxy_that_speaks_tls_leads_to_both_kinds_of_server() {
    let authority = Authority::new();
    let server = FakeOpik::start_new();
    let front = Front::tls(authority.server("opik.test", Age::Valid), server.port());
    for (scheme, behind) in [("http", server.port()), ("https", front.port)] {
        let inner = ForwardProxy::start(behind, None);
        let proxy = Front::tls(authority.server("localhost", Age::Valid), inner.port());
        let agent = Agent::builder(&format!("{scheme}://opik.test/api")).impatient();
        let agent = agent.env("SSL_CERT_FILE", &authority.file.to_string_lossy());
        let agent = agent.env("ALL_PROXY", &format!("https://localhost:{}", proxy.port)).start();
        wait_until("a ping gets there", PATIENCE, || state(&agent)["connection"] == "available");
        let id = uuid7();
        assert_eq!(Client::new(&agent.url()).expect(&create(&id)).status, 201);
        assert_eq!(server.sequence_for(&id).len(), 1, "{scheme}");
        assert!(!inner.take_asked().is_empty());
    }
}

#[test]
fn socks_servers_lead_both_clients() {
    let authority = Authority::new();
    for (proxy, scheme, host, credentials, expected) in [
        ("socks5h", "http", "opik.test", None, "opik.test:80"),
        ("socks5h", "https", "opik.test", Some(("me", "p@ss")), "opik.test:443"),
        ("socks5", "http", "opik.invalid", Some(("me", "p@ss")), ""),
        ("socks4a", "https", "opik.test", None, "opik.test:443"),
        ("socks4", "http", "10.9.8.7", None, "10.9.8.7:80"),
        ("socks5", "http", "[fd00::7]", None, "fd00::7:80"),
    ] {
        let server = FakeOpik::start_new();
        let front = Front::tls(authority.server("opik.test", Age::Valid), server.port());
        let behind = if scheme == "https" { front.port } else { server.port() };
        let socks = SocksServer::start(behind, credentials);
        let user_info = credentials.map_or("", |_| "me:p%40ss@");
        let agent = Agent::builder(&format!("{scheme}://{host}/api")).impatient();
        let agent = agent.env("SSL_CERT_FILE", &authority.file.to_string_lossy());
        let agent = agent.env("ALL_PROXY", &format!("{proxy}://{user_info}127.0.0.1:{}", socks.port())).start();
        if expected.is_empty() {
            // Only the machine itself would know this name, and it does not.
            let why = reason(&agent);
            assert!(why.contains("cannot resolve opik.invalid"), "{why}");
            assert!(socks.take_asked().is_empty(), "the proxy was asked for a name");
            continue;
        }
        assert_everything_gets_there(&agent, &server);
        let asked = socks.take_asked();
        assert!(asked.len() >= 2 && asked.iter().all(|asked| asked == expected), "{proxy}: {asked:?}");
        // Through an outage of the proxy.
        socks.front.set_away(true);
        let id = uuid7();
        assert_eq!(Client::new(&agent.url()).expect(&create(&id)).status, 201);
        assert_eq!(agent.backlog(), 1, "{proxy}");
        socks.front.set_away(false);
        agent.wait_until_delivered();
        assert_eq!(server.sequence_for(&id).len(), 1, "{proxy}");
        assert!(!agent.stderr().contains("p%40ss") && !agent.stderr().contains("p@ss"));
    }
}

#[test]
fn a_socks_servers_refusal_is_reported() {
    let server = FakeOpik::start_new();
    let socks = SocksServer::start(server.port(), Some(("me", "right")));
    for (user_info, words) in [
        ("", "the proxy wants a user and a password"),
        ("me:wrong-hidden@", "the proxy refuses the user or the password"),
    ] {
        let agent = Agent::builder("http://opik.test/api").impatient();
        let agent = agent.env("all_proxy", &format!("socks5h://{user_info}127.0.0.1:{}", socks.port())).start();
        let why = reason(&agent);
        assert!(why.contains(words) && why.contains("through the proxy socks5h://127.0.0.1:"), "{why}");
        assert!(!agent.stderr().contains("hidden"));
    }
}

#[test]
fn a_name_that_cannot_be_resolved_is_named_by_both_clients() {
    let agent = Agent::builder("http://no-such-host.invalid/api").impatient();
    let agent = agent.env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG").start();
    let why = reason(&agent);
    assert!(why.starts_with("cannot connect to http://no-such-host.invalid/api: cannot resolve no-such-host.invalid"));
    let mut client = Client::new(&agent.url());
    assert_eq!(client.get("/v1/private/projects").status, 503);
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    let passed = passing_failed(&agent);
    assert!(passed.contains("cannot resolve no-such-host.invalid") && !passed.contains(" broke"), "{passed}");
    let variables = [("OPIK_OFFLINE_UPSTREAM", "http://no-such-host.invalid/api")];
    let healthcheck = cli(agent.home(), &["healthcheck"], &variables);
    assert!(unwrapped(&healthcheck.stdout).contains("cannot resolve no-such-host.invalid"), "{}", healthcheck.stdout);
    let status = cli(agent.home(), &["status"], &variables);
    assert!(unwrapped(&status.stdout).contains("cannot resolve no-such-host.invalid"), "{}", status.stdout);
    // The proxy's own name.
    let proxied = [("http_proxy", "no-such-proxy.invalid:3128"), ("OPIK_OFFLINE_UPSTREAM", "http://opik.test/api")];
    let healthcheck = unwrapped(&cli(&Home::new(), &["healthcheck"], &proxied).stdout);
    assert!(healthcheck.contains("no connection to the proxy: cannot resolve no-such-proxy.invalid"), "{healthcheck}");
}

#[test]
fn a_folder_of_authorities_is_trusted_as_a_file_is() {
    let (authority, server) = (Authority::new(), FakeOpik::start_new());
    std::fs::write(authority.folder().join("README"), "not a certificate").unwrap();
    let front = Front::tls(authority.server("localhost", Age::Valid), server.port());
    let upstream = format!("https://localhost:{}/api", front.port);
    let folders = format!("/no/such/folder/at/all/..:{}", authority.folder().display());
    let healthcheck = |name: &str, value: &str| {
        cli(&Home::new(), &["healthcheck"], &[(name, value), ("OPIK_OFFLINE_UPSTREAM", &upstream)])
    };
    let folder = authority.folder().to_string_lossy().into_owned();
    let agent = Agent::builder(&upstream).impatient().env("SSL_CERT_DIR", &folder).start();
    assert_everything_gets_there(&agent, &server);
    assert_eq!(healthcheck("SSL_CERT_DIR", &folder).code(), Some(0));
    assert_eq!(healthcheck("SSL_CERT_DIR", &folders).code(), Some(0), "one folder of several is missing");
    let missing = healthcheck("SSL_CERT_DIR", "/no/such/folder");
    assert_eq!(missing.code(), Some(2), "{}", missing.stdout);
    assert!(missing.stderr.contains("cannot read the certificates in /no/such/folder"), "{}", missing.stderr);
    let plain = server.url();
    let variables = [("SSL_CERT_DIR", "/no/such/folder"), ("OPIK_OFFLINE_UPSTREAM", &plain)];
    assert_eq!(cli(&Home::new(), &["healthcheck"], &variables).code(), Some(0), "nothing of TLS is needed");
}

#[test]
fn a_renewed_authority_is_trusted_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let server = FakeOpik::start_new();
    let config = Arc::new(Mutex::new(Arc::new(old.server("localhost", Age::Valid))));
    let front = Front::renewable_tls(config.clone(), server.port());
    let agent = Agent::builder(&format!("https://localhost:{}/api", front.port)).impatient();
    let agent = agent.env("SSL_CERT_FILE", &old.file.to_string_lossy()).start();
    wait_until("a ping gets there", PATIENCE, || state(&agent)["connection"] == "available");
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create(&uuid7())).status, 201);

    // The server has its new certificate before the agent knows the authority.
    *config.lock().unwrap() = Arc::new(new.server("localhost", Age::Valid));
    front.set_away(true);
    assert!(!reason(&agent).is_empty());
    front.set_away(false);
    let waiting = uuid7();
    assert_eq!(client.expect(&create(&waiting)).status, 201);
    wait_until("the new certificate is met", PATIENCE, || reason(&agent).contains("signed by no authority"));
    // An unusable file changes nothing, and is reported.
    std::fs::write(&old.file, "no certificate").unwrap();
    wait_until("a warning", PATIENCE, || agent.stderr().contains("the earlier ones stay in force"));
    let renewed = old.folder().join("renewed.pem");
    std::fs::copy(&new.file, &renewed).unwrap();
    std::fs::rename(&renewed, &old.file).unwrap();
    agent.wait_until_delivered();
    assert_eq!(server.sequence_for(&waiting).len(), 1, "the waiting message");
    let live = uuid7();
    assert_eq!(client.expect(&create(&live)).status, 201);
    assert_eq!(server.sequence_for(&live).len(), 1, "it was not forwarded");
}

fn identity(folder: &Path, name: &str, authority: &Authority) -> (String, String) {
    let (certificate, key) = authority.client();
    let (certificate_file, key_file) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&certificate_file, certificate).unwrap();
    std::fs::write(&key_file, key).unwrap();
    (certificate_file.to_string_lossy().into_owned(), key_file.to_string_lossy().into_owned())
}

#[test]
fn a_client_certificate_is_shown_and_a_renewed_one_without_a_restart() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let server = FakeOpik::start_new();
    let wanting = |clients: &Authority| Arc::new(authority.server_wanting("localhost", Age::Valid, Some(clients)));
    let config = Arc::new(Mutex::new(wanting(&clients)));
    let front = Front::renewable_tls(config.clone(), server.port());
    let upstream = format!("https://localhost:{}/api", front.port);
    let folder = crate::support::tempdir();
    let (certificate, key) = identity(folder.path(), "agent", &clients);
    let trusted = authority.file.to_string_lossy().into_owned();

    let bare = [("SSL_CERT_FILE", &*trusted), ("OPIK_OFFLINE_UPSTREAM", &*upstream)];
    let refused = cli(&Home::new(), &["healthcheck"], &bare);
    assert_eq!(refused.code(), Some(3), "{}", refused.stdout);
    let told = unwrapped(&refused.stdout);
    assert!(told.contains("it wants a certificate from its clients") && told.contains("CLIENT_CERT_FILE"), "{told}");

    let agent = Agent::builder(&upstream).impatient().env("SSL_CERT_FILE", &trusted);
    let agent = agent.arg("--client-cert-file").arg(&certificate).arg("--client-key-file").arg(&key).start();
    assert_everything_gets_there(&agent, &server);

    // The server takes certificates of another authority from now on.
    *config.lock().unwrap() = wanting(&others);
    front.set_away(true);
    let mut client = Client::new(&agent.url());
    let waiting = uuid7();
    assert_eq!(client.expect(&create(&waiting)).status, 201);
    front.set_away(false);
    wait_until("the refusal", PATIENCE, || reason(&agent).contains("does not take the client certificate"));
    // First the certificate, which does not fit the key yet.
    let (renewed, renewed_key) = identity(folder.path(), "renewed", &others);
    std::fs::rename(renewed, &certificate).unwrap();
    wait_until("a warning", PATIENCE, || agent.stderr().contains("it does not belong to the key"));
    std::fs::rename(renewed_key, &key).unwrap();
    agent.wait_until_delivered();
    assert_eq!(server.sequence_for(&waiting).len(), 1);
    let live = uuid7();
    assert_eq!(client.expect(&create(&live)).status, 201);
    assert_eq!(server.sequence_for(&live).len(), 1, "it was not forwarded");

    // Both in one file.
    let both = folder.path().join("both.pem");
    let text = [&*certificate, &*key].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&both, text).unwrap();
    let both = both.to_string_lossy().into_owned();
    let healthcheck =
        cli(&Home::new(), &["healthcheck"], &[bare[0], bare[1], ("OPIK_OFFLINE_CLIENT_CERT_FILE", &both)]);
    assert_eq!(healthcheck.code(), Some(0), "{} {}", healthcheck.stdout, healthcheck.stderr);
}
