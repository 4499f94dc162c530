//! The agent's page for people, and its figures for programs. How it looks is tested in a browser: `tests/page/check`.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
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
fn the_page_is_read_only_and_answers_only_to_this_machines_names() {
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

/// The file with what the plots show, beside the store.
fn history_of(home: &Home) -> PathBuf {
    let mut name = home.db().into_os_string();
    name.push("-history");
    name.into()
}

#[test]
fn the_plots_have_what_came_before_the_agent_was_killed() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.origin());
    for _ in 0..7 {
        assert_eq!(client.expect(&create(&uuid7()).header("Authorization", KEY)).status, 201);
    }
    let page = |agent: &Agent| Client::new(&agent.origin()).get("/-/").text();
    let file = history_of(agent.home());
    wait_until("the outage is plotted and on the disk", PATIENCE, || {
        page(&agent).contains("At most 7 waited") && std::fs::metadata(&file).is_ok_and(|file| file.len() > 0)
    });
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "others can read it");
    let bytes = std::fs::read(&file).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(!has(&KEY[4..]) && !has("start_time") && !has(&server.port().to_string()), "it names more than counts");

    agent.kill9();
    server.start();
    agent.restart_on_same_port();
    agent.wait_until_delivered();
    wait_until("nothing waits any more", PATIENCE, || page(&agent).contains("nothing waits"));
    let after = page(&agent);
    assert!(after.contains("At most 7 waited, at ") && after.contains("The server was away for "), "{after}");
    assert!(after.matches("<figure>").count() == 1, "a plot of the day shows no more than the last minutes");
}

#[test]
fn whatever_is_at_the_place_of_the_history_an_agent_starts_and_stores() {
    type Trap = fn(&PathBuf);
    let traps: [(&str, Trap); 3] = [
        ("a folder", |path| std::fs::create_dir(path).unwrap()),
        ("a link to nowhere", |path| std::os::unix::fs::symlink("/nowhere/at/all", path).unwrap()),
        ("somebody's notes", |path| std::fs::write(path, "notes").unwrap()),
    ];
    for (what, trap) in traps {
        let server = FakeOpik::new_stopped();
        let home = Home::new();
        trap(&history_of(&home));
        let agent = Agent::builder(&server.url()).home(home).impatient().start();
        assert_eq!(Client::new(&agent.origin()).expect(&create(&uuid7())).status, 201, "{what}");
        let page = || Client::new(&agent.origin()).get("/-/").text();
        wait_until("it samples", PATIENCE, || page().contains("At most 1 waited"));
        server.start();
        agent.wait_until_delivered();
        if what == "somebody's notes" {
            assert_eq!(std::fs::read_to_string(history_of(agent.home())).unwrap(), "notes");
        }
    }
}

#[test]
fn a_rejection_shows_the_servers_words_and_no_key() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let (good, bad) = (uuid7(), uuid7());
    for id in [&good, &bad] {
        let write = create(id).header("Authorization", KEY);
        assert_eq!(Client::new(&agent.origin()).expect(&write).status, 201);
    }
    let words = format!("<b>no such project</b> for {KEY}");
    server.script(When::ids([bad]), Then::Answer(Answer::error(400, &words)));
    server.start();
    let page = || Client::new(&agent.origin()).get("/-/").text();
    wait_until("the rejection is shown", PATIENCE, || page().contains("1 message was rejected by the server"));
    let text = page();
    for shown in [
        "&lt;b&gt;no such project&lt;/b&gt; for ***",
        "▲ 1 rejected · opik-offline",
        &format!("opik-offline replay --rejected --db {} --upstream {}", agent.db().display(), server.url()),
        "opik-offline purge --rejected --db ",
    ] {
        assert!(text.contains(shown), "{shown} is missing: {text}");
    }
    assert!(!text.contains(&KEY[4..]) && !text.contains("<b>"), "a key or markup of others: {text}");
    // A command of the page, as it is.
    let inspect = text.split("<code>opik-offline inspect ").nth(2).and_then(|rest| rest.split("</code>").next());
    let inspect: Vec<&str> = inspect.expect("a command that shows one").split(' ').collect();
    let output = agent.home().cli(&[&["inspect"], &inspect[..]].concat());
    assert!(output.stdout.contains("no such project"), "{}{}", output.stdout, output.stderr);
}

#[test]
fn a_thousand_lanes_and_projects_give_a_page_that_lists_the_largest() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.origin());
    for lane in 0..1000 {
        let mut write = create(&uuid7()).header("Comet-Workspace", &format!("workspace-{lane}"));
        if lane == 700 {
            write = write.header("Authorization", KEY);
        }
        assert_eq!(client.expect(&write).status, 201);
    }
    for _ in 0..3 {
        let write = create(&uuid7()).header("Comet-Workspace", "workspace-700").header("Authorization", KEY);
        assert_eq!(client.expect(&write).status, 201);
    }
    let page = || Client::new(&agent.origin()).get("/-/").text();
    wait_until("they are counted", PATIENCE, || {
        let page = page();
        page.contains("1,003 messages are safe on disk") && page.contains("smaller projects")
    });
    let text = page();
    assert!(text.len() < 64 * 1024, "{} bytes", text.len());
    assert!(text.contains("and 980 smaller lanes with 980 messages"), "{text}");
    let lanes = text.split(r#"id="c-lanes""#).nth(1).expect("the lanes");
    let first = lanes.find("workspace-").expect("a lane");
    assert!(lanes[first..].starts_with("workspace-700<"), "the largest is not the first");
}
