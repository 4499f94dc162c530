//! Answers that are not Opik's: sign-in pages, routers, gateways, the UI's web server. They confirm nothing, reject
//! nothing and are final for no client; an operator sees what answers in the server's place.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, FilesIn, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{assert_error, create, create_batch, update};

const SIGN_IN: &str = "<!doctype html><html><head><title>Sign in";
const KEY: &str = "made-up-key-0123456789";

fn page() -> Answer {
    Answer::raw(200, "text/html", SIGN_IN)
}

/// An agent whose server is away, with short waits.
fn storing() -> (FakeOpik, Agent) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url())
        .impatient()
        .arg("--retry-interval")
        .arg("500ms")
        .arg("--max-attempts")
        .arg("2")
        .start();
    (server, agent)
}

fn store_creates(agent: &Agent, count: usize) -> Vec<String> {
    let mut client = Client::new(&agent.url());
    let ids: Vec<String> = (0..count).map(|_| uuid7()).collect();
    for id in &ids {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    ids
}

fn status(agent: &Agent) -> serde_json::Value {
    agent.cli(&["status", "--format", "json"]).json()
}

fn rejected(agent: &Agent) -> u64 {
    status(agent)["rejected"]["messages"].as_u64().expect("a number")
}

#[track_caller]
fn assert_all_arrived(server: &FakeOpik, agent: &Agent, ids: &[String]) {
    agent.wait_until_delivered();
    let missing: Vec<&String> =
        ids.iter().filter(|id| server.entity("default", Kind::Trace, id).is_none_or(|e| e.record.is_none())).collect();
    assert!(missing.is_empty(), "{} acknowledged traces are lost: {missing:?}", missing.len());
    assert_eq!(rejected(agent), 0, "acknowledged and rejected for somebody else's answer");
    server.assert_no_violations();
}

#[test]
fn a_login_page_never_confirms() {
    let (server, mut agent) = storing();
    let mut ids = store_creates(&agent, 6);
    let sign_in = server.script(When::any(), Then::Answer(page()));
    server.start();
    let shown = "not Opik: 200 text/html \"Sign in\"";
    wait_until("status shows who answers", PATIENCE, || agent.cli(&["status"]).stdout.contains(shown));
    wait_until("the JSON shows it", PATIENCE, || {
        let told = Client::new(&agent.origin()).get("/-/status.json").json();
        let reason = told["server"]["reason"].as_str().unwrap_or_default().to_owned();
        told["server"]["connection"] == "unavailable" && reason.starts_with(shown)
    });
    let html = Client::new(&agent.origin()).get("/").text();
    assert!(html.contains("not Opik: 200 text/html"), "the page hides it");
    assert!(agent.stderr().contains(shown), "the log hides it: {}", agent.stderr());
    ids.extend(store_creates(&agent, 1));
    assert_eq!(agent.backlog(), 7);

    let health = agent.cli(&["healthcheck", "-q", "--smoke-test"]);
    assert_eq!(health.code(), Some(3), "{}", health.stdout);
    assert!(health.stdout.contains(shown) && health.stdout.contains("sign-in page"), "{}", health.stdout);
    assert!(!health.stdout.contains("this key has access to"), "{}", health.stdout);
    let replay = agent.cli(&["replay"]);
    assert_eq!(replay.code(), Some(3), "{}{}", replay.stdout, replay.stderr);
    assert!(replay.stderr.contains(shown) && replay.stderr.contains("--upstream"), "{}", replay.stderr);
    // Without an agent the commands ping the server directly.
    agent.terminate();
    let alone = agent.cli(&["status"]).stdout;
    assert!(alone.contains("unavailable") && alone.contains(shown), "{alone}");
    assert_eq!(agent.cli(&["replay", "--timeout", "1s"]).code(), Some(3));
    assert_eq!(agent.backlog(), 7);
    agent.restart_on_same_port();

    sign_in.clear();
    assert_all_arrived(&server, &agent, &ids);
}

/// Answers of fronts to writes while the ping still gets through, and how an operator sees it.
fn fronts() -> Vec<(Answer, &'static str)> {
    vec![
        (page(), "not Opik: 200 text/html \"Sign in\""),
        (Answer::json(200, &serde_json::json!({"code": 500, "message": "internal"})), "not Opik: 200 application/json"),
        (Answer::json(200, &serde_json::json!({"code": 500, "id": "7"})), "not Opik: 200 application/json"),
        (Answer::json(200, &serde_json::json!({"errors": ["x"]})), "not Opik: 200 application/json"),
        (Answer::raw(200, "text/plain", "Down for maintenance"), "not Opik: 200 text/plain \"Down for maintenance\""),
        (Answer::raw(404, "text/plain", "default backend - 404"), "not Opik: 404 text/plain \"default backend - 404\""),
        (Answer::empty(404).with("Server", "envoy"), "not Opik: 404 without a body"),
        (
            Answer::raw(405, "text/html", "<title>405 Not Allowed</title>"),
            "not Opik: 405 text/html \"405 Not Allowed\"",
        ),
        (Answer::raw(400, "text/html", "<title>400 Bad Request</title>"), "not Opik: 400 text/html"),
        (
            Answer::raw(403, "text/html", "<title>Just a moment...</title>"),
            "not Opik: 403 text/html \"Just a moment...\"",
        ),
        (Answer::json(422, &serde_json::json!({"detail": "no"})), "not Opik: 422 application/json"),
        (Answer::raw(500, "text/html", "<title>500</title>"), "not Opik: 500 text/html \"500\""),
        (Answer::empty(302).with("Location", "https://login.example/"), "https://login.example/"),
    ]
}

#[test]
fn no_front_confirms_or_rejects_while_pings_get_through() {
    for (answer, shown) in fronts() {
        let (server, mut agent) = storing();
        let mut ids = store_creates(&agent, 5);
        let mut client = Client::new(&agent.url());
        assert_eq!(client.expect(&update(&ids[0], 1)).status, 204);
        let batch: Vec<String> = (0..8).map(|_| uuid7()).collect();
        assert_eq!(client.expect(&create_batch(&batch)).status, 204);
        ids.extend(batch);
        let front = server.script(When::path("/v1/private/**"), Then::Answer(answer));
        server.start();
        wait_until("replay meets the front", PATIENCE, || front.hits() >= 4);
        // Whether it is tried on the server or not: the client's data is taken.
        ids.extend(store_creates(&agent, 1));
        wait_until("status shows who answers", PATIENCE, || agent.cli(&["status"]).stdout.contains(shown));
        agent.terminate();
        let replay = agent.cli(&["replay"]);
        let said = format!("{}{}", replay.stdout, replay.stderr);
        assert_eq!(replay.code(), Some(3), "{shown}: {said}");
        assert!(said.contains(shown), "{shown}: {said}");
        let left = status(&agent);
        assert_eq!(left["rejected"]["messages"], 0, "{shown}: {left}");
        assert_eq!(server.count("default", Kind::Trace), 0);
        agent.restart_on_same_port();
        front.clear();
        assert_all_arrived(&server, &agent, &ids);
    }
}

#[test]
fn a_live_client_never_gets_a_fronts_answer_to_a_write_that_can_be_kept() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let mut ids = Vec::new();
    for (answer, shown) in fronts() {
        if shown.contains("a part of") {
            continue;
        }
        wait_until("the agent is well", PATIENCE, || status(&agent)["server"]["connection"] == "available");
        agent.wait_until_delivered();
        let front = server.script(When::path("/v1/private/**"), Then::Answer(answer.clone()));
        let id = uuid7();
        let taken = client.expect(&create(&id));
        assert_eq!(taken.status, 201, "{shown}: {}", taken.text());
        ids.push(id);
        // A read is the client's own: it sees what everybody sees there.
        let read = client.get("/v1/private/projects");
        assert_eq!((read.status, read.text().as_bytes()), (answer.status, &answer.body[..]), "{shown}");
        front.clear();
    }
    assert_all_arrived(&server, &agent, &ids);
}

#[test]
fn a_compressed_page_is_distinguished_from_a_compressed_refusal() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    wait_until("the agent is well", PATIENCE, || status(&agent)["server"]["connection"] == "available");
    let mut client = Client::new(&agent.url());
    let gzipped = |mut answer: Answer| {
        answer.body = crate::support::http::gzip(&answer.body);
        answer.with("Content-Encoding", "gzip")
    };
    let refusal = server.script(When::write(), Then::Answer(gzipped(Answer::error(422, "no"))));
    assert_eq!(client.expect(&create(&uuid7())).status, 422, "Opik's refusal is its client's");
    refusal.clear();
    let front = server.script(When::write(), Then::Answer(gzipped(Answer::raw(404, "application/json", "{\"x\":1}"))));
    let id = uuid7();
    assert_eq!(client.expect(&create(&id)).status, 201);
    front.clear();
    assert_all_arrived(&server, &agent, &[id]);
}

#[test]
fn a_router_that_loses_its_way_in_the_middle_of_a_replay_rejects_nothing() {
    let (server, agent) = storing();
    let mut ids = store_creates(&agent, 120);
    for id in ids.iter().take(20) {
        assert_eq!(Client::new(&agent.url()).expect(&update(id, 1)).status, 204);
    }
    // The first requests reach the server, the next ones don't.
    let no_route = Answer::raw(404, "text/plain; charset=utf-8", "default backend - 404");
    let seen = AtomicUsize::new(0);
    let later = When::write().and(move |_| seen.fetch_add(1, Ordering::Relaxed) >= 1);
    let router = server.script(later, Then::Answer(no_route));
    server.start();
    wait_until("replay meets the router", PATIENCE, || router.hits() >= 3);
    std::thread::sleep(Duration::from_secs(3));
    ids.extend(store_creates(&agent, 5));
    assert_eq!(rejected(&agent), 0);
    assert!(server.count("default", Kind::Trace) > 0, "it was in the middle of a replay");
    router.clear();
    assert_all_arrived(&server, &agent, &ids);
}

#[test]
fn an_upstream_without_api_keeps_everything_and_says_so() {
    let server = FakeOpik::start_new();
    let below_api = |wanted: bool| When::any().and(move |got| got.path.starts_with("/api/") == wanted);
    let _posts = server.always(
        below_api(false).and(|got| got.method != "GET"),
        Then::Answer(Answer::raw(405, "text/html", "<html><head><title>405 Not Allowed</title></head></html>")),
    );
    let _pages = server.always(
        below_api(false).method("GET"),
        Then::Answer(Answer::raw(
            200,
            "text/html",
            "<!DOCTYPE html><html><head><title>Comet Opik</title></head></html>",
        )),
    );
    let home = Home::new();
    let mut agent = Agent::builder(server.url().trim_end_matches("/api")).impatient().home(home).start();
    let ids = store_creates(&agent, 4);
    wait_until("status says what it is", PATIENCE, || {
        let status = agent.cli(&["status"]).stdout;
        status.contains("not Opik: 200 text/html \"Comet Opik\"") && status.contains("API's path")
    });
    let health = agent.cli(&["healthcheck", "-q"]);
    assert_eq!(health.code(), Some(3), "{}", health.stdout);
    assert!(!health.stdout.contains("ok server") && health.stdout.contains("--upstream"), "{}", health.stdout);
    let replay = agent.cli(&["replay"]);
    assert_eq!(replay.code(), Some(3));
    assert_eq!((agent.backlog(), rejected(&agent)), (4, 0));
    agent.terminate();
    let db = agent.db();
    // It was accepted for an address that is not a server: a person names the right one.
    let wrong = server.url().trim_end_matches("/api").to_owned();
    let readdress = ["replay", "--readdress", &wrong, "--yes", "--db", &db.display().to_string()];
    let delivered = agent.home().cli(&[&readdress[..], &["--upstream", &server.url()]].concat());
    assert_eq!(delivered.code(), Some(0), "{}", delivered.stderr);
    assert_eq!(server.count("default", Kind::Trace), ids.len());
}

#[test]
fn a_page_never_deletes_the_bytes_of_an_attachment() {
    let upload = "/v1/private/attachment/upload";
    for (files_in, path) in [
        (FilesIn::Itself, "/v1/private/attachment/upload-start"),
        (FilesIn::Itself, upload),
        (FilesIn::ObjectStore, "/v1/private/attachment/upload-complete"),
    ] {
        let (server, agent) = storing();
        server.keep_files_in(files_in);
        let ids = store_creates(&agent, 1);
        let put =
            format!("{upload}?file_name=a.pdf&mime_type=application%2Fpdf&entity_type=trace&entity_id={}", ids[0]);
        let mut client = Client::new(&agent.url());
        assert_eq!(client.expect(&Request::new("PUT", &put).bytes(vec![7; 10_000])).status, 204);
        let front = server.script(When::path(path), Then::Answer(page()));
        server.start();
        wait_until("the upload meets the page", PATIENCE, || front.hits() >= 3);
        assert_eq!(agent.backlog(), 1, "{path}: the page was believed");
        front.clear();
        agent.wait_until_delivered();
        assert_eq!(server.files().len(), 1, "{path}: the file is lost");
        assert_eq!(rejected(&agent), 0);
    }
    // A page of an object store, with an ETag as pages have.
    let (server, agent) = storing();
    server.keep_files_in(FilesIn::ObjectStore);
    let ids = store_creates(&agent, 1);
    let put = format!("{upload}?file_name=a.pdf&mime_type=application%2Fpdf&entity_type=trace&entity_id={}", ids[0]);
    assert_eq!(Client::new(&agent.url()).expect(&Request::new("PUT", &put).bytes(vec![7; 10_000])).status, 204);
    let parts = When::any().and(|got| got.path.starts_with("/object-store/"));
    let front = server.script(parts, Then::Answer(page().with("ETag", "\"page\"")));
    server.start();
    wait_until("a part meets the page", PATIENCE, || front.hits() >= 2);
    assert_eq!(agent.backlog(), 1);
    front.clear();
    agent.wait_until_delivered();
    assert_eq!(server.files().len(), 1);
}

/// Refuses everything without the key, the ping included, as Opik's own auth gate does.
fn gate(server: &FakeOpik) {
    let refusal = Answer::raw(403, "application/octet-stream", "Access denied: Invalid API key");
    let keyless = When::any().and(|got| got.authorization.as_deref() != Some(KEY));
    let _always = server.always(keyless, Then::Answer(refusal));
}

#[test]
fn a_gate_that_wants_the_key_on_every_path_gets_it() {
    let server = FakeOpik::new_stopped();
    gate(&server);
    let home = Home::new();
    fs::write(home.path().join(".opik.config"), format!("[opik]\napi_key = {KEY}\nworkspace = team\n")).unwrap();
    let agent = Agent::builder(&server.url()).impatient().home(home).start();
    let mut client = Client::new(&agent.url()).with_header("Authorization", KEY).with_header("Comet-Workspace", "team");
    for id in (0..5).map(|_| uuid7()) {
        assert_eq!(client.expect(&create(&id)).status, 201);
    }
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("team", Kind::Trace), 5);
    let pings = server.requests_to("GET", "/is-alive/ping");
    assert!(pings.iter().all(|ping| ping.authorization.as_deref() == Some(KEY) && ping.workspace == "team"));
    let health = agent.cli(&["healthcheck", "-q"]);
    assert_eq!(health.code(), Some(0), "{}", health.stdout);
    assert!(health.stdout.contains("version 2.2.0"), "the gate wants the key for the version, too: {}", health.stdout);
}

#[test]
fn a_ping_that_is_not_authorised_keeps_no_lane_with_a_good_key_waiting() {
    let server = FakeOpik::new_stopped();
    gate(&server);
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("500ms").start();
    let send = |key: &str| {
        let id = uuid7();
        assert_eq!(Client::new(&agent.url()).with_header("Authorization", key).expect(&create(&id)).status, 201);
        id
    };
    let good: Vec<String> = (0..3).map(|_| send(KEY)).collect();
    let bad = send("revoked");
    server.start();
    wait_until("messages with a valid key arrive", PATIENCE, || server.count("default", Kind::Trace) == good.len());
    wait_until("what has none is kept", PATIENCE, || agent.backlog() == 1);
    assert_eq!(rejected(&agent), 0);
    assert!(server.entity("default", Kind::Trace, &bad).is_none());
    let shown = agent.cli(&["status"]).stdout;
    assert!(shown.contains("its ping is not authorised: 403: Access denied: Invalid API key"), "{shown}");
    assert!(shown.contains("held"), "{shown}");
    let health = agent.cli(&["healthcheck", "-q"]);
    assert_eq!(health.code(), Some(5), "{}", health.stdout);
    assert!(health.stdout.contains("does not authorise its ping: 403"), "{}", health.stdout);
    let replay = agent.cli(&["replay"]);
    assert_eq!(replay.code(), Some(5), "the key is what is wrong: {}", replay.stdout);
    // Live: with the key it is forwarded, without it the gate's own words are the client's.
    let id = uuid7();
    assert_eq!(Client::new(&agent.url()).with_header("Authorization", KEY).expect(&create(&id)).status, 201);
    assert!(server.entity("default", Kind::Trace, &id).is_some());
    let refused = Client::new(&agent.url()).with_header("Authorization", "unknown").expect(&create(&uuid7()));
    assert_eq!((refused.status, refused.text()), (403, "Access denied: Invalid API key".to_owned()));
}

#[test]
fn a_redirect_says_everywhere_where_it_leads() {
    let (server, agent) = storing();
    let ids = store_creates(&agent, 3);
    let elsewhere = FakeOpik::start_new();
    let location = format!("{}/is-alive/ping", elsewhere.url().replace("http://", "https://"));
    let moved = server.script(When::any(), Then::Answer(Answer::empty(308).with("Location", &location)));
    server.start();
    let shown = format!("not Opik: 308, redirects to {location}");
    wait_until("status says where it leads", PATIENCE, || agent.cli(&["status"]).stdout.contains(&shown));
    assert!(agent.stderr().contains(&shown), "{}", agent.stderr());
    let health = agent.cli(&["healthcheck", "-q"]);
    assert_eq!(health.code(), Some(3));
    assert!(health.stdout.replace('\n', " ").contains("redirects to") && health.stdout.contains(&location));
    let replay = agent.cli(&["replay"]);
    assert_eq!(replay.code(), Some(3));
    assert!(replay.stderr.contains(&shown) && replay.stderr.contains("--upstream"), "{}", replay.stderr);
    assert!(elsewhere.requests().is_empty(), "a redirect was followed");
    moved.clear();
    assert_all_arrived(&server, &agent, &ids);
}

#[test]
fn a_page_never_confirms_a_write_that_cannot_be_kept() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    fs::create_dir(home.db()).unwrap();
    let db = home.db().display().to_string();
    let agent = Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &db).home(home).start();
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create(&uuid7())).status, 201, "a plain proxy");
    let front = server.script(When::path("/v1/private/**"), Then::Answer(page()));
    assert_error(&client.expect(&create(&uuid7())), 503);
    let put = format!("/v1/private/attachment/upload?file_name=a&entity_type=trace&entity_id={}", uuid7());
    assert_error(&client.expect(&Request::new("PUT", &put).bytes(vec![7; 1000])), 503);
    front.clear();
    let _router = server.script(When::path("/v1/private/**"), Then::Answer(Answer::raw(404, "text/plain", "no route")));
    let answer = client.expect(&create(&uuid7()));
    assert_eq!((answer.status, answer.text()), (404, "no route".to_owned()), "the client sees what everybody sees");
}

#[test]
fn a_page_on_verification_counts_neither_as_present_nor_as_missing() {
    let (server, mut agent) = storing();
    store_creates(&agent, 3);
    agent.terminate();
    server.start();
    for answer in [page(), Answer::raw(404, "text/plain", "default backend - 404")] {
        let agent = agent.home();
        let front = server.script(
            When::any()
                .and(|got| got.method == "GET" && got.path.contains("/v1/private/") || got.path.ends_with("/search")),
            Then::Answer(answer),
        );
        let db = agent.db().display().to_string();
        let found =
            agent.cli(&["replay", "--verify", "--verify-timeout", "1s", "--db", &db, "--upstream", &server.url()]);
        let said = format!("{}{}", found.stdout, found.stderr);
        if said.contains("nothing to replay") {
            continue;
        }
        assert_eq!(found.code(), Some(3), "{said}");
        assert!(said.contains("not Opik") && !said.contains("does not show"), "{said}");
        front.clear();
    }
}
