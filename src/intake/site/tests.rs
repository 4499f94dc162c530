//! Which requests the policy accepts, by host, origin and the browser's own headers.

use super::*;
use crate::protocol::target::{ServerAddress, Target};

const LOOPBACK: &str = "127.0.0.1";
const NETWORK: &str = "0.0.0.0";

/// Judges `METHOD TARGET`, followed by headers, one per line.
fn judge(policy: &SitePolicy, has_token: bool, wire: &str) -> Result<(), ForeignRequest> {
    let mut lines = wire.split('\n');
    let (method, target) = lines.next().and_then(|line| line.split_once(' ')).expect("a method and a target");
    let mut request = http::Request::builder().method(method).uri(target);
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header");
        request = request.header(name, value.as_bytes());
    }
    let (head, ()) = request.body(()).expect("a request").into_parts();
    let target = Target::of(head.uri.path(), &ServerAddress::new("http://srv:5173/api"));
    policy.judge(&head, has_token, target.is_ok_and(|target| target.is_link_target()))
}

fn policy(listener: &str, allowed: &[&str]) -> SitePolicy {
    let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
    SitePolicy::new(listener.parse().expect("an address"), &allowed)
}

/// `expected`: whether the host is allowed on a loopback listener, on another one, and on that with the token.
#[test]
fn only_the_agents_own_hosts_are_accepted() {
    for (host, expected) in [
        ("127.0.0.1:6745", [true, true, true]),
        ("127.0.0.1", [true, true, true]),
        ("127.8.9.10:1", [true, true, true]),
        ("127.0.0.1:", [true, true, true]),
        ("[::1]:6745", [true, true, true]),
        ("[::1%25lo]:6745", [true, true, true]),
        ("[::ffff:127.0.0.1]:6745", [true, true, true]),
        ("[0:0:0:0:0:0:0:1]", [true, true, true]),
        ("localhost:6745", [true, true, true]),
        ("LocalHost", [true, true, true]),
        ("localhost.", [true, true, true]),
        ("app.localhost:6745", [true, true, true]),
        // Addresses of this or another machine, which don't lead to a loopback listener.
        ("192.168.1.5:6745", [false, true, true]),
        ("10.42.0.17:6745", [false, true, true]),
        ("[fd00::17]:6745", [false, true, true]),
        ("[fe80::1%25eth0]:6745", [false, true, true]),
        // Services of Docker Compose and of Kubernetes.
        ("opik-offline:6745", [false, true, true]),
        ("opik_offline:6745", [false, true, true]),
        ("opik-offline.tracing.svc:6745", [false, true, true]),
        ("opik-offline.tracing.svc.cluster.local:6745", [false, true, true]),
        ("host.docker.internal:6745", [false, true, true]),
        // Names that somebody can register.
        ("evil.example:6745", [false, false, true]),
        ("evil.example.", [false, false, true]),
        ("127.0.0.1.evil.example", [false, false, true]),
        ("localhost.evil.example", [false, false, true]),
        ("notlocalhost.example", [false, false, true]),
        ("opik-offline.tracing:6745", [false, false, true]),
        ("xlocal", [false, true, true]),
        ("evil.xlocal", [false, false, true]),
        (".localhost", [false, false, false]),
        ("a..localhost", [false, false, false]),
        // Not a host.
        ("", [false, false, false]),
        (":6745", [false, false, false]),
        (".", [false, false, false]),
        ("2130706433", [false, false, false]),
        ("0x7f000001:6745", [false, false, false]),
        ("0x7f.1", [false, false, false]),
        ("0177.0.0.1", [false, false, false]),
        ("127.1", [false, false, false]),
        ("127.0.0.1:x", [false, false, false]),
        ("127.0.0.1:99999", [false, false, false]),
        ("127.0.0.1:+80", [false, false, false]),
        ("::1", [false, false, false]),
        ("[::1", [false, false, false]),
        ("[::1]x", [false, false, false]),
        ("[localhost]", [false, false, false]),
        ("user@localhost", [false, false, false]),
        ("localhost@evil.example", [false, false, false]),
        ("localhost,evil.example", [false, false, false]),
        ("localhost evil.example", [false, false, false]),
        ("localhost/x", [false, false, false]),
        ("localhost#evil", [false, false, false]),
        ("localh\u{f6}st", [false, false, false]),
        ("\u{ff11}27.0.0.1", [false, false, false]),
    ] {
        let listeners = [(LOOPBACK, false), (NETWORK, false), (NETWORK, true)];
        let found = listeners.map(|(listener, has_token)| {
            judge(&policy(listener, &[]), has_token, &format!("GET /api/v1/private/traces\nhost: {host}")).is_ok()
        });
        assert_eq!(found, expected, "{host:?}");
    }
    // Its own address, if that is another loopback address or one of the network.
    for (listener, host) in [("127.0.0.9", "127.0.0.9:1"), ("::1", "[::1]:1"), ("::ffff:127.0.0.1", "127.0.0.1")] {
        assert_eq!(judge(&policy(listener, &[]), false, &format!("GET /\nhost: {host}")), Ok(()), "{host}");
    }
    // HTTP/1.0 has no Host, and browsers always send one.
    assert_eq!(judge(&policy(LOOPBACK, &[]), false, "GET /-/healthy"), Ok(()));
    // On a loopback listener a token does not make a foreign name an own one.
    assert!(judge(&policy(LOOPBACK, &[]), true, "GET /api/x\nhost: evil.example").is_err());
}

#[test]
fn allowed_hosts_add_hosts_and_origins() {
    let allowed = ["Agent.example.org", "10.0.0.7:6745", "*.corp.example", "https://opik.example:8443", "app://x"];
    let policy = policy(LOOPBACK, &allowed);
    for (headers, expected) in [
        ("host: agent.example.org", true),
        ("host: agent.example.org:1", true),
        ("host: x.agent.example.org", false),
        ("host: 10.0.0.7:6745", true),
        ("host: 10.0.0.7", false),
        ("host: a.b.corp.example:1", true),
        ("host: corp.example", false),
        ("host: evilcorp.example", false),
        // An origin is not a name of the agent.
        ("host: opik.example:8443", false),
        ("host: localhost\norigin: https://opik.example:8443", true),
        ("host: localhost\norigin: http://opik.example:8443", false),
        ("host: localhost\norigin: https://opik.example", false),
        ("host: localhost\norigin: https://opik.example:8443\nsec-fetch-site: cross-site", true),
        ("host: localhost\norigin: https://agent.example.org", true),
        ("host: localhost\norigin: http://agent.example.org:3000", true),
        ("host: localhost\norigin: app://x", true),
        ("host: localhost\norigin: file://agent.example.org", false),
    ] {
        assert_eq!(
            judge(&policy, false, &format!("POST /api/v1/private/traces\n{headers}")).is_ok(),
            expected,
            "{headers}"
        );
    }
    let every = super::tests::policy(LOOPBACK, &["*"]);
    assert_eq!(judge(&every, false, "POST /x\nhost: any.example\norigin: https://other.example"), Ok(()));
    assert!(judge(&every, false, "POST /x\nhost: a b").is_err(), "it is not a host");
}

#[test]
fn pages_of_other_sites_are_refused_and_navigation_is_not() {
    const WRITE: &str = "POST /api/v1/private/traces";
    const READ: &str = "GET /api/v1/private/traces";
    const LINK: &str = "GET /api/v1/session/redirect/projects/?trace_id=1&path=x";
    let follows = "sec-fetch-mode: navigate\nsec-fetch-dest: document";
    for (request, headers, expected) in [
        // Programs. Node.js sends the mode.
        (WRITE, "", true),
        (WRITE, "sec-fetch-mode: cors", true),
        // The agent's own page, and the Opik UI through the agent.
        (WRITE, "origin: http://localhost:6745", true),
        (WRITE, "origin: http://LOCALHOST:6745", true),
        (READ, "sec-fetch-site: same-origin\nsec-fetch-mode: cors", true),
        ("GET /", "sec-fetch-site: none\nsec-fetch-mode: navigate", true),
        // Other sites, ports and schemes.
        (WRITE, "origin: http://evil.example", false),
        (WRITE, "origin: http://localhost:3000", false),
        (WRITE, "origin: http://localhost", false),
        (WRITE, "origin: https://localhost", false),
        (WRITE, "origin: http://127.0.0.1:6745", false),
        (WRITE, "origin: null", false),
        (WRITE, "origin: ", false),
        (WRITE, "origin: file://", false),
        (WRITE, "origin: file://localhost:6745", false),
        (WRITE, "origin: http://user@localhost:6745", false),
        (WRITE, "origin: http://localhost:6745/", false),
        (WRITE, "origin: http://localhost:6745 http://evil.example", false),
        (WRITE, "origin: http://localhost:6745\norigin: http://evil.example", false),
        (WRITE, "origin: chrome-extension://abcdef", false),
        ("OPTIONS /api/v1/private/traces", "origin: http://evil.example\naccess-control-request-method: POST", false),
        (READ, "origin: http://evil.example\nupgrade: websocket\nconnection: upgrade", false),
        (READ, "sec-fetch-site: cross-site", false),
        (READ, "sec-fetch-site: same-site", false),
        (READ, "sec-fetch-site: Cross-Site", false),
        (READ, "sec-fetch-site: some-new-word", false),
        (READ, "sec-fetch-site: none\nsec-fetch-site: cross-site", false),
        (WRITE, "sec-fetch-site: cross-site", false),
        // `Sec-Fetch-Site` does not make a foreign origin one of the agent's.
        (WRITE, "origin: http://evil.example\nsec-fetch-site: same-origin", false),
        // Links that people follow, and requests that only look like it.
        (LINK, &format!("sec-fetch-site: cross-site\n{follows}"), true),
        ("GET /", &format!("sec-fetch-site: same-site\n{follows}"), true),
        ("GET /default/projects", &format!("sec-fetch-site: cross-site\n{follows}"), true),
        (READ, &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET /v1//private/traces", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET /-/", &format!("sec-fetch-site: cross-site\n{follows}"), true),
        ("GET //api/./v1/priv%61te/traces", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET /-/status.json", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET //-/status.json", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET /%2d/./status.json", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET //metrics/", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET /../metrics", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET /metrics", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("POST /", &format!("sec-fetch-site: cross-site\n{follows}"), false),
        ("GET /", "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: iframe", false),
        ("GET /", "sec-fetch-site: cross-site\nsec-fetch-mode: no-cors\nsec-fetch-dest: document", false),
        ("GET /", "sec-fetch-site: cross-site", false),
        // Old browsers.
        (WRITE, "referer: http://evil.example/page", false),
        (WRITE, "referer: http://me@evil.example/page", false),
        (WRITE, "referer: http://localhost:6745/page?x", true),
        (WRITE, "referer: about:blank", true),
        (READ, "referer: http://evil.example/page", true),
    ] {
        let wire = format!("{request}\nhost: localhost:6745\n{headers}");
        let found = judge(&policy(LOOPBACK, &[]), false, wire.trim_end_matches('\n'));
        assert_eq!(found.is_ok(), expected, "{wire}: {found:?}");
        // The token is for clients: it does not allow pages of other sites.
        let found = judge(&policy(NETWORK, &[]), true, wire.trim_end_matches('\n'));
        assert_eq!(found.is_ok(), expected, "with the token: {wire}: {found:?}");
    }
    let behind_tls = "POST /api/x\nhost: opik-offline\norigin: https://opik-offline";
    assert_eq!(judge(&policy(NETWORK, &[]), false, behind_tls), Ok(()));
    assert!(judge(&policy(LOOPBACK, &[]), false, "POST /x\norigin: http://localhost").is_err(), "without a Host");
}

#[test]
fn an_absolute_target_is_judged_as_a_host() {
    for (target, host, expected) in [
        ("http://localhost:6745/api/x", "localhost:6745", Ok(())),
        ("http://localhost:6745/api/x", "evil.example", Err(403)),
        ("http://evil.example/api/x", "localhost:6745", Err(403)),
        ("http://me@localhost/api/x", "localhost", Err(403)),
        ("http://localhost/api/x", "127.0.0.1", Err(400)),
    ] {
        let found = judge(&policy(LOOPBACK, &[]), false, &format!("GET {target}\nhost: {host}"));
        assert_eq!(found.map_err(|foreign| foreign.status()), expected, "{target} {host}");
    }
}

#[test]
fn a_refusal_names_the_setting_and_escapes_the_host() {
    let host = format!("host: {}\u{1b}[31m\u{202e}", "x".repeat(500));
    let wire = format!("GET /api/x\n{host}").replace('\u{1b}', "");
    let text = judge(&policy(LOOPBACK, &[]), false, &wire).expect_err("it is foreign").to_string();
    assert!(text.contains("OPIK_OFFLINE_ALLOWED_HOSTS") && text.contains("xxx...\""), "{text}");
    assert!(text.len() < 400 && text.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{text}");
}

#[test]
fn plainly_local_requests_are_judged_like_parsed_ones() {
    let head = |host: &str, more: Option<&str>| {
        let mut request = http::Request::post("/api/x").header("host", host);
        if let Some(more) = more {
            request = request.header(more, "null");
        }
        request.body(()).expect("a request").into_parts().0
    };
    for host in ["localhost", "localhost:", "localhost:6745", "127.0.0.1", "127.0.0.1:80"] {
        assert!(is_plainly_own(&head(host, None)), "{host}");
        for listener in [LOOPBACK, NETWORK, "10.0.0.7", "::1"] {
            let authority = Authority::parse(host.as_bytes()).expect("a host");
            assert!(policy(listener, &[]).is_own_name(&authority, false), "{host} at {listener}");
        }
    }
    for host in ["localhosts", "localhost.evil.example", "127.0.0.10", "localhost:x", "localhost:99999", "127.1", ""] {
        assert!(!is_plainly_own(&head(host, None)), "{host}");
    }
    for of_page in ["origin", "referer", "sec-fetch-site"] {
        assert!(!is_plainly_own(&head("localhost", Some(of_page))), "{of_page}");
    }
}
