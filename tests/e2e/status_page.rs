//! The agent's page for people, and its figures for programs. How it looks is tested in a browser: `tests/page/check`.

use std::io::{Read, Write};

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{assert_error, create};

const PAGES: [&str; 3] = ["/", "/-/", "/-/status.json"];
const KEY: &str = "key-of-a-client-4715-and-some-more";

#[test]
fn the_page_tells_of_an_outage_without_keys_payloads_or_markup_of_others() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.origin());
    let write = create(&uuid7()).header("Comet-Workspace", "<script>x</script>").header("Authorization", KEY);
    assert_eq!(client.expect(&write).status, 201);
    let status = || Client::new(&agent.origin()).get("/-/status.json").json();
    wait_until("the outage is reported", PATIENCE, || {
        status()["server"]["connection"] == "unavailable" && status()["lanes"].as_array().map(Vec::len) == Some(1)
    });
    let status = status();
    assert_eq!((&status["schema_version"], &status["store"]["waiting"]), (&1.into(), &1.into()));
    assert_eq!(status["eta"]["state"], "server_away");
    assert_eq!(
        (&status["lanes"][0]["workspace"], &status["lanes"][0]["key"]),
        (&"<script>x</script>".into(), &"key-***".into())
    );

    let page = client.get("/");
    let policy = page.header("Content-Security-Policy").expect("a policy").to_owned();
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("Cache-Control"), Some("no-store"));
    let text = page.text();
    assert!(text.contains("1 message is safe on disk"), "{text}");
    assert!(text.contains("&lt;script&gt;x&lt;/script&gt;") && !text.contains("<script>x"), "a value is markup");
    for shown in [text, status.to_string()] {
        assert!(!shown.contains(&KEY[4..]), "a key is shown: {shown}");
        assert!(!shown.contains("start_time"), "a payload is shown: {shown}");
    }
}

#[test]
fn the_page_is_read_only_and_for_those_who_name_this_machine() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    for path in PAGES {
        assert_eq!(Client::new(&agent.origin()).get(path).status, 200, "{path}");
        assert_error(&Client::new(&agent.origin()).expect(&Request::new("POST", path)), 405);
        let mut rebound = std::net::TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
        write!(rebound, "GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        rebound.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{path} is shown to a page of somebody else's: {answer}");
    }
}
