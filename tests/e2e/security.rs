//! A hostile client, page or server cannot smuggle a request past the agent, read its pages by a name of its own,
//! get at a key by a redirect.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::{Answer, FakeOpik, FilesIn, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, trace};

const PATH: &str = "/v1/private/traces";
const JSON: &str = "Content-Type: application/json\r\n";
const KEY: &str = "made-up-key-9876543210";

/// Sends these bytes and reads until the agent closes the connection.
fn raw(agent: &Agent, wire: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(wire).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn wait_until_it_is(state: &str, agent: &Agent) {
    wait_until("the agent knows how its server is", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == state
    });
}

/// A request that says in two ways where it ends, each followed by one that only one of the readings sees.
#[test]
fn a_request_that_can_be_read_in_two_ways_is_refused_and_carries_no_other_with_it() {
    for away in [false, true] {
        let server = FakeOpik::start_new();
        let agent = Agent::start(&server);
        if away {
            server.stop();
        }
        wait_until_it_is(if away { "unavailable" } else { "available" }, &agent);
        let body = trace(&uuid7(), "chat").to_string();
        let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let length = body.len();
        let smuggled = "GET /api/v1/private/smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
        let te = "Transfer-Encoding: chunked\r\n";
        for (what, headers, body) in [
            ("a length, then chunks", format!("Content-Length: 4\r\n{te}"), &chunked),
            ("chunks, then a length", format!("{te}Content-Length: 4\r\n"), &chunked),
            ("two lengths", format!("Content-Length: {length}\r\nContent-Length: 4\r\n"), &body),
            ("two equal lengths", format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"), &body),
            ("a list of lengths", format!("Content-Length: {length}, {length}\r\n"), &body),
            ("a negative length", "Content-Length: -1\r\n".into(), &body),
            ("a signed length", format!("Content-Length: +{length}\r\n"), &body),
            ("a length in hex", format!("Content-Length: 0x{length:x}\r\n"), &body),
            ("no length in it", "Content-Length:\r\n".into(), &body),
            ("2^64", "Content-Length: 18446744073709551616\r\n".into(), &body),
            ("2^64 - 1", "Content-Length: 18446744073709551615\r\n".into(), &body),
            ("chunks twice", format!("{te}{te}"), &chunked),
            ("chunks, and no chunks", format!("{te}Transfer-Encoding: identity\r\n"), &chunked),
            ("a coding before the chunks", "Transfer-Encoding: gzip, chunked\r\n".into(), &chunked),
            ("chunks by another name", "Transfer-Encoding: xchunked\r\n".into(), &chunked),
            ("chunks behind a tab", "Transfer-Encoding:\x0bchunked\r\n".into(), &chunked),
            ("a space before the colon", format!("Transfer-Encoding : chunked\r\nContent-Length: {length}\r\n"), &body),
            ("a folded header", format!("X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &body),
            ("a folded length", format!("Content-Length:\r\n {length}\r\n"), &body),
            ("a bare LF", format!("X: a\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &body),
            ("a bare CR", format!("X: a\rTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &body),
            ("a NUL", format!("X: a\0b\r\nContent-Length: {length}\r\n"), &body),
            ("a chunk of a negative size", te.into(), &"-1\r\nx\r\n0\r\n\r\n".to_owned()),
            ("a chunk of 2^64 bytes", te.into(), &"10000000000000000\r\nx\r\n0\r\n\r\n".to_owned()),
            ("a chunk size with a bare LF", te.into(), &format!("{:x}\n{body}\r\n0\r\n\r\n", body.len())),
            ("a chunk longer than it says", te.into(), &format!("1\r\n{body}\r\n0\r\n\r\n")),
            ("a chunk extension with a bare LF", te.into(), &format!("1;a\nb\r\n{body}\r\n0\r\n\r\n")),
        ] {
            let wire = format!("POST /api{PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{JSON}{headers}\r\n{body}{smuggled}");
            let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(wire.as_bytes()).unwrap();
            // A body that announces more than it contains ends here.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            // A reset after the answer: the agent has not read what it has refused.
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer);
            let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
            let is_refused = matches!(statuses[..], ["400" | "413" | "431"]);
            assert!(is_refused, "{what}, server away: {away}: {statuses:?} {answer}");
        }
        assert_eq!(agent.backlog(), 0, "something that was refused is stored");
        let arrived: Vec<_> = server.requests().into_iter().filter(|got| got.route() != "/is-alive/ping").collect();
        assert!(arrived.is_empty(), "it reached the server: {arrived:?}");
    }
}

#[test]
fn a_good_request_before_a_smuggled_one_is_answered_as_it_deserves() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let body = trace(&uuid7(), "chat").to_string();
    let good =
        format!("POST /api{PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{JSON}Content-Length: {}\r\n\r\n{body}", body.len());
    let bad = "GET /api/v1/private/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n";
    let answers = raw(&agent, format!("{good}{bad}{good}").as_bytes());
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["201", "400"], "{answers}");
    assert_eq!(server.requests_to("POST", PATH).len(), 1);
}

#[test]
fn what_goes_to_the_server_is_framed_anew() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let body = trace(&uuid7(), "chat").to_string();
    let (first, second) = body.split_at(20);
    // Extensions and trailers are allowed (RFC 9112, section 7.1), and end here.
    let wire = format!(
        "POST /api{PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{JSON}Connection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         14;name=\"value\"\r\n{first}\r\n{:X} ;x\r\n{second}\r\n0\r\nX-Sum: 1\r\n\r\n",
        second.len()
    );
    let answer = raw(&agent, wire.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let arrived = &server.requests_to("POST", PATH)[0];
    assert_eq!(&arrived.body[..], body.as_bytes());
    assert_eq!(arrived.header("Content-Length"), Some(&*body.len().to_string()));
    for name in ["Transfer-Encoding", "Trailer", "X-Sum"] {
        assert_eq!(arrived.header(name), None, "{name}");
    }
}

#[test]
fn what_belongs_to_one_connection_goes_no_further_in_either_direction() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let of_the_server = Answer::json(200, &json!({}))
        .with("Connection", "X-Theirs, keep-alive")
        .with("X-Theirs", "1")
        .with("Keep-Alive", "timeout=5")
        .with("Proxy-Authenticate", "Basic")
        .with("Upgrade", "h2c")
        .with("X-Kept", "yes");
    let _answer = server.script(When::path("/v1/private/**"), Then::Answer(of_the_server));
    let hop_by_hop = |request: Request| {
        request
            .header("Connection", "X-Mine, keep-alive")
            .header("X-Mine", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Proxy-Connection", "keep-alive")
            .header("Proxy-Authorization", "Basic bWU6c2VjcmV0")
            .header("TE", "trailers")
            .header("Upgrade", "h2c")
            .header("X-Kept", "yes")
    };
    let mut client = Client::new(&agent.url());
    for request in [Request::new("GET", "/v1/private/projects"), create(&uuid7())] {
        let answer = client.expect(&hop_by_hop(request));
        assert_eq!((answer.status, answer.header("X-Kept")), (200, Some("yes")));
        for name in ["X-Theirs", "Keep-Alive", "Proxy-Authenticate", "Upgrade"] {
            assert_eq!(answer.header(name), None, "{name} of the server's connection reached the client");
        }
    }
    // Stored and replayed, it is the same.
    server.clear_script();
    server.stop();
    assert_eq!(client.expect(&hop_by_hop(create(&uuid7()))).status, 201);
    server.start();
    agent.wait_until_delivered();
    let arrived: Vec<_> = server.requests().into_iter().filter(|got| got.header("X-Kept").is_some()).collect();
    assert_eq!(arrived.len(), 3);
    for request in arrived {
        for name in ["X-Mine", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "TE", "Upgrade"] {
            assert_eq!(request.header(name), None, "{name} of the client's connection reached the server");
        }
        let connection = request.header("Connection").unwrap_or("");
        assert!(!connection.contains("X-Mine"), "{connection}");
    }
}

#[test]
fn the_agents_pages_are_for_its_own_names_and_not_for_other_sites() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let port = agent.port();
    for page in ["/", "/-/ready", "/-/healthy", "/metrics"] {
        for (host, origin, status) in [
            (format!("127.0.0.1:{port}"), "", "200"),
            (format!("localhost:{port}"), "", "200"),
            (format!("rebound.evil.example:{port}"), "", "403"),
            ("evil.example".to_owned(), "", "403"),
            ("127.0.0.1.evil.example".to_owned(), "", "403"),
            ("\u{fc}".to_owned(), "", "403"),
            (format!("127.0.0.1:{port}"), "Origin: https://evil.example\r\n", "403"),
            (format!("127.0.0.1:{port}"), "Origin: null\r\n", "403"),
        ] {
            let wire = format!("GET {page} HTTP/1.1\r\nHost: {host}\r\n{origin}Connection: close\r\n\r\n");
            let answer = raw(&agent, wire.as_bytes());
            assert_eq!(&answer[9..12], status, "{page} {host} {origin}");
            assert!(!answer.to_lowercase().contains("access-control-"), "{answer}");
        }
    }
}

#[test]
fn an_address_that_others_can_reach_needs_a_token_and_a_token_is_asked_for() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let output = home.cli(&["agent", "--listen", address, "--upstream", &server.url()]);
        assert_eq!(output.code(), Some(2), "{address}: {}", output.stderr);
        assert!(output.stderr.contains("OPIK_OFFLINE_INTAKE_TOKEN"), "{address}: {}", output.stderr);
    }
    const TOKEN: &str = "made-up-token-13579";
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN).start();
    let status = |url: &str, token: &str| {
        let client = Client::new(url);
        let mut client = if token.is_empty() { client } else { client.with_header("X-Opik-Offline-Token", token) };
        client.expect(&create(&uuid7())).status
    };
    let (url, origin) = (agent.url(), agent.origin());
    for wrong in ["", "made-up-token-1357", "made-up-token-135790", "MADE-UP-TOKEN-13579"] {
        assert_eq!(status(&url, wrong), 401, "{wrong}");
    }
    assert_eq!(status(&format!("{origin}/-/token/wrong/api"), TOKEN), 401, "the one in the path counts");
    assert_eq!(status(&format!("{origin}/-/token/{TOKEN}/api"), ""), 201);
    assert_eq!(status(&url, TOKEN), 201);
    agent.wait_until_delivered();
    assert!(
        server.requests().iter().all(|request| !format!("{request:?}").contains(TOKEN)),
        "the token of the agent reached the server"
    );
}

#[test]
fn a_redirect_carries_no_key_to_another_host() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = FakeOpik::start_new();
        let server = FakeOpik::start_new();
        let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_RETRY_INTERVAL", "200ms").start();
        wait_until_it_is("available", &agent);
        let location = format!("{}/v1/private/traces", elsewhere.url());
        let to = Answer::empty(status).with("Location", &location);
        let writes = server.script(When::path("/v1/private/**"), Then::Answer(to.clone()));
        let mut client = Client::new(&agent.url()).with_header("Authorization", KEY);
        // Passed on as it is: the client decides whether to follow, and keeps its key.
        assert_eq!(client.get("/v1/private/projects").header("Location"), Some(&*location));
        let forwarded = client.expect(&create(&uuid7()));
        assert!([status, 201].contains(&forwarded.status), "{}", forwarded.text());
        // Stored: replay meets it, and so does the upload of a file.
        server.stop();
        assert_eq!(client.expect(&create(&uuid7())).status, 201);
        let upload = format!(
            "/v1/private/attachment/upload?file_name=a.pdf&mime_type=application%2Fpdf&entity_type=trace&entity_id={}",
            uuid7()
        );
        let answer = client.expect(&Request::new("PUT", &upload).bytes(vec![7; 10_000]));
        assert_eq!(answer.status, 204, "{}", answer.text());
        server.start();
        let hits = writes.hits();
        wait_until("replay meets the redirect", PATIENCE, || writes.hits() > hits + 1);
        writes.clear();
        // The ping and the commands.
        let pings = server.script(When::any(), Then::Answer(to));
        wait_until("a ping meets it", PATIENCE, || pings.hits() > 1);
        for command in [&["healthcheck"][..], &["replay", "--timeout", "1s"], &["healthcheck", "--smoke-test"]] {
            let mut command: Vec<&str> = command.to_vec();
            command.extend(["--no-color"]);
            agent.cli(&command);
        }
        pings.clear();
        agent.wait_until_delivered();
        let strays = elsewhere.requests();
        assert!(strays.is_empty(), "{status}: a redirect was followed: {strays:?}");
        assert!(server.requests().iter().any(|request| request.authorization.as_deref() == Some(KEY)));
    }
}

#[test]
fn an_object_store_and_its_redirects_get_no_key() {
    let server = FakeOpik::start_new();
    server.keep_files_in(FilesIn::ObjectStore);
    let elsewhere = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until_it_is("available", &agent);
    let to = Answer::empty(307).with("Location", &format!("{}/object-store/x", elsewhere.url()));
    let parts = server.script(When::any().and(|got| got.path.starts_with("/object-store/")), Then::Answer(to));
    let id = uuid7();
    let mut client = Client::new(&agent.url()).with_header("Authorization", KEY);
    assert_eq!(client.expect(&create(&id)).status, 201);
    let upload = format!(
        "/v1/private/attachment/upload?file_name=a.pdf&mime_type=application%2Fpdf&entity_type=trace&entity_id={id}"
    );
    assert_eq!(client.expect(&Request::new("PUT", &upload).bytes(vec![7; 10_000])).status, 204);
    wait_until("the object store redirects", PATIENCE, || parts.hits() > 0);
    parts.clear();
    agent.wait_until_delivered();
    assert!(elsewhere.requests().is_empty(), "a redirect was followed");
    let at_the_store: Vec<_> =
        server.requests().into_iter().filter(|got| got.path.starts_with("/object-store/")).collect();
    assert!(at_the_store.len() > 1);
    for request in at_the_store {
        assert!(!format!("{:?}", request.headers).contains(KEY), "{request:?}");
        let named = ["authorization", "comet-workspace", "x-opik-offline-agent"];
        let found = named.iter().find(|name| request.header(name).is_some());
        assert_eq!(found, None, "the object store got what is for the server only");
    }
    server.assert_no_violations();
}
