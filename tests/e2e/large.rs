//! Batches that are too large for memory, and bodies that can't be kept: what the server takes without the agent it
//! takes with it, and what the agent acknowledges it has.
//!
//! With a memory budget of 16 MiB a batch of more than 1 MiB is a large one. `OPIK_OFFLINE_LARGE_KIB` sets how large
//! each of a hundred spans is (200); the figure of the issue is 900.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request, Response};
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{assert_error, create, trace, update};

const BATCH: &str = "/v1/private/traces/batch";
const MIB: u64 = 1 << 20;

fn builder(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--memory-budget").arg("16MiB")
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|_| uuid7()).collect()
}

/// A batch with these traces, each with this many characters.
fn traces(ids: &[String], characters: usize) -> Vec<u8> {
    let text = noise(characters);
    let item = |id: &String| {
        let mut item = trace(id, "large");
        item["input"] = json!({ "text": text, "of": id });
        item.to_string()
    };
    let items: Vec<String> = ids.iter().map(item).collect();
    format!("{{ \"traces\" : [ {} ] }}", items.join(" ,\n")).into_bytes()
}

fn post(body: Vec<u8>) -> Request {
    Request::new("POST", BATCH).header("Content-Type", "application/json").bytes(body)
}

/// The bodies of all batches that the server was sent.
fn bodies(server: &FakeOpik) -> Vec<Vec<u8>> {
    server.requests_to("POST", BATCH).into_iter().map(|request| request.body.to_vec()).collect()
}

fn input_of(server: &FakeOpik, id: &str) -> Value {
    let record = server.entity("default", Kind::Trace, id).expect("it is there").record.expect("it is created");
    record.fields["input"].clone()
}

/// Each trace is there as it was sent.
#[track_caller]
fn assert_all(server: &FakeOpik, ids: &[String]) {
    let missing: Vec<_> = ids.iter().filter(|id| server.entity("default", Kind::Trace, id).is_none()).collect();
    assert!(missing.is_empty(), "{} of {} are missing", missing.len(), ids.len());
    for id in ids {
        assert_eq!(input_of(server, id)["of"], **id);
    }
    server.assert_no_violations();
}

fn metric(agent: &Agent, name: &str) -> u64 {
    let text = Client::new(&agent.origin()).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<f64>().unwrap() as u64
}

fn peak(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("there is a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn wait_until_connection(agent: &Agent, state: &str) {
    wait_until("the agent knows how its server is", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == state
    });
}

/// Returns how many files without a name the agent has open.
fn spools(agent: &Agent) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the agent runs");
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let store = agent.db().parent().expect("a folder").to_owned();
    targets.filter(|target| target.starts_with(&store) && target.to_string_lossy().ends_with("(deleted)")).count()
}

fn send(agent: &Agent, request: &Request) -> Response {
    Client::new(&agent.url()).expect(request)
}

#[test]
fn a_large_batch_reaches_the_server_byte_for_byte_in_one_request() {
    let server = FakeOpik::start_new();
    let agent = builder(&server).start();
    wait_until_connection(&agent, "available");
    let ids = ids(40);
    let body = traces(&ids, 100_000);
    assert_eq!(send(&agent, &post(body.clone())).status, 204);
    let chunked = traces(&ids, 90_000);
    assert_eq!(send(&agent, &post(chunked.clone()).chunked(64 * 1024)).status, 204);
    assert!(bodies(&server) == [body, chunked], "other bytes than the client's");
    assert_all(&server, &ids);
    assert_eq!((agent.backlog(), spools(&agent)), (0, 0));
}

#[test]
fn a_large_batch_in_an_outage_is_kept_and_delivered_in_order() {
    let server = FakeOpik::new_stopped();
    let agent = builder(&server).start();
    let before = ids(1);
    let mut all = ids(40);
    assert_eq!(send(&agent, &update(&all[7], 1)).status, 204);
    assert_eq!(send(&agent, &create(&before[0])).status, 201);
    assert_eq!(send(&agent, &post(traces(&all, 100_000)).chunked(10_000)).status, 204);
    assert_eq!(send(&agent, &update(&all[7], 2)).status, 204);
    assert_eq!(send(&agent, &update(&all[39], 3)).status, 204);
    assert!(agent.backlog() > 10, "one message of 4 MB is stored");
    server.start();
    agent.wait_until_delivered();
    assert_all(&server, &all);
    server.assert_no_update_before_create();
    server.assert_no_overlaps();
    for (id, n) in [(&all[7], 2), (&all[39], 3)] {
        let record = server.entity("default", Kind::Trace, id).unwrap().record.unwrap();
        assert_eq!(record.fields["output"], json!({ "n": n }));
    }
    all.push(before[0].clone());
    assert_eq!(server.count("default", Kind::Trace), all.len());
}

#[test]
fn a_large_batch_that_the_server_fails_at_is_kept() {
    let server = FakeOpik::start_new();
    let agent = builder(&server).start();
    wait_until_connection(&agent, "available");
    let page = Answer::raw(200, "text/html", "<html>Sign in</html>");
    for then in [Then::status(503), Then::Answer(page), Then::Reset] {
        let failing = server.script_times(1, When::path(BATCH), then);
        let ids = ids(15);
        assert_eq!(send(&agent, &post(traces(&ids, 100_000))).status, 204);
        assert_eq!(failing.hits(), 1);
        agent.wait_until_delivered();
        assert_all(&server, &ids);
    }
    // The server's own word is the client's.
    let refusing = server.script(When::write().larger_than(1_000_000), Then::Answer(Answer::error(413, "too large")));
    assert_eq!(send(&agent, &post(traces(&ids(15), 100_000))).status, 413);
    assert_eq!((refusing.hits(), agent.backlog()), (1, 0));
}

#[test]
fn a_small_body_that_inflates_to_a_large_batch_is_bounded_too() {
    let server = FakeOpik::new_stopped();
    let agent = builder(&server).start();
    assert_eq!(send(&agent, &create(&uuid7())).status, 201);
    let before = peak(&agent);
    let ids = ids(40);
    let item = |id: &String| {
        let mut item = trace(id, "large");
        item["input"] = json!({ "text": " ".repeat(60_000), "of": id });
        item
    };
    let body = json!({ "traces": ids.iter().map(item).collect::<Vec<_>>() });
    let request = Request::new("POST", BATCH).json(&body).gzip();
    assert_eq!(send(&agent, &request).status, 204);
    let grown = peak(&agent) - before;
    eprintln!("2 MB out of a small body took {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < 5 * MIB, "2 MB out of a small body took {grown} bytes");
    server.start();
    agent.wait_until_delivered();
    assert_all(&server, &ids);
    // While the server is there it gets what the client sent.
    wait_until_connection(&agent, "available");
    assert_eq!(send(&agent, &request).status, 204);
    let last = server.requests_to("POST", BATCH).pop().expect("it came");
    assert_eq!(last.header("Content-Encoding"), Some("gzip"));
    assert!(last.body.len() < 1_000_000, "it was sent inflated");
}

#[test]
fn creates_without_ids_in_a_large_batch_get_one_and_are_made_once() {
    let server = FakeOpik::start_new();
    let agent = builder(&server).start();
    wait_until_connection(&agent, "available");
    let text = noise(100_000);
    let items: Vec<_> = (0..30)
        .map(|n| {
            let mut item = trace(&uuid7(), &format!("n{n}"));
            item["input"] = json!({ "text": text });
            if n % 3 != 0 {
                item["id"] = Value::Null;
            }
            item
        })
        .collect();
    // The server does it, and its answer is lost.
    let lost = server.script_times(1, When::path(BATCH), Then::ProcessThenReset);
    let request = Request::new("POST", BATCH).json(&json!({ "traces": items })).gzip();
    assert_eq!(send(&agent, &request).status, 204);
    assert_eq!(lost.hits(), 1);
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 30, "a repeat made others");
    server.assert_no_violations();
}

#[test]
fn an_acknowledged_batch_survives_a_kill_and_leaves_no_file() {
    let server = FakeOpik::new_stopped();
    let mut agent = builder(&server).start();
    let ids = ids(30);
    assert_eq!(send(&agent, &post(traces(&ids, 100_000))).status, 204);
    agent.kill9();
    let store = agent.db();
    let known = |name: &str| name.starts_with(&*store.file_name().unwrap().to_string_lossy());
    for entry in std::fs::read_dir(store.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        assert!(known(&entry.file_name().to_string_lossy()), "{:?} is left", entry.file_name());
    }
    agent.restart_on_same_port();
    server.start();
    agent.wait_until_delivered();
    assert_all(&server, &ids);
}

#[test]
fn a_client_that_hangs_up_half_way_leaves_nothing() {
    let server = FakeOpik::new_stopped();
    let agent = builder(&server).start();
    let body = traces(&ids(40), 100_000);
    let mut client = Client::new(&agent.url());
    let part = client.send_part(&post(body), 3_000_000).expect("it is taken");
    wait_until("some of it is spooled", PATIENCE, || spools(&agent) == 1);
    part.hang_up();
    wait_until("the spool is gone", PATIENCE, || spools(&agent) == 0);
    assert_eq!(agent.backlog(), 0);
}

#[test]
fn large_batches_at_once_stay_within_the_memory_budget() {
    let server = FakeOpik::new_stopped();
    let agent = builder(&server).start();
    assert_eq!(send(&agent, &create(&uuid7())).status, 201);
    let before = peak(&agent);
    let sets: Vec<_> = (0..6).map(|_| ids(20)).collect();
    std::thread::scope(|scope| {
        for ids in &sets {
            scope.spawn(|| assert_eq!(send(&agent, &post(traces(ids, 400_000))).status, 204));
        }
    });
    let grown = peak(&agent) - before;
    eprintln!("6 batches of 8 MB at once took {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < 30 * MIB, "6 batches of 8 MB at once took {grown} bytes");
    server.start();
    agent.wait_until_delivered();
    sets.iter().for_each(|ids| assert_all(&server, ids));
}

#[test]
fn a_body_that_can_not_be_kept_streams_through_to_a_reachable_server() {
    for (argument, size, refused) in
        [("--max-body-size", "2MiB", 413), ("--max-size", "2MiB", 413), ("--free-disk-reserve", "1000000GiB", 503)]
    {
        let server = FakeOpik::start_new();
        let agent = builder(&server).arg(argument).arg(size).start();
        wait_until_connection(&agent, "available");
        for chunked in [false, true] {
            let ids = ids(40);
            let body = traces(&ids, 100_000);
            let request = post(body.clone());
            let request = if chunked { request.chunked(100_000) } else { request };
            assert_eq!(send(&agent, &request).status, 204, "{argument} {chunked}");
            assert!(bodies(&server).last() == Some(&body), "{argument} {chunked}: other bytes than the client's");
            assert_all(&server, &ids);
        }
        if argument == "--max-body-size" {
            let mut single = trace(&uuid7(), "large");
            single["input"] = json!({ "text": noise(3_000_000) });
            let id = single["id"].as_str().unwrap().to_owned();
            assert_eq!(send(&agent, &Request::new("POST", "/v1/private/traces").json(&single)).status, 201);
            let change = Request::new("PATCH", &format!("/v1/private/traces/{id}"));
            let output = json!({ "output": { "text": noise(3_000_000) } });
            assert_eq!(send(&agent, &change.json(&output).chunked(50_000)).status, 204);
            let record = server.entity("default", Kind::Trace, &id).unwrap().record.unwrap();
            assert_eq!(record.fields["output"], output["output"]);
        }
        // A page is not a success, and the server's own refusal goes to the client.
        let page = Answer::raw(200, "text/html", "<html>Sign in</html>");
        server.script_times(1, When::path(BATCH), Then::Answer(page));
        assert_error(&send(&agent, &post(traces(&ids(40), 100_000))), 503);
        server.script_times(1, When::path(BATCH), Then::Answer(Answer::error(400, "no")));
        assert_error(&send(&agent, &post(traces(&ids(40), 100_000))), 400);
        server.stop();
        wait_until_connection(&agent, "unavailable");
        let away = send(&agent, &post(traces(&ids(40), 100_000)));
        assert_error(&away, refused);
        assert_eq!(away.header("Retry-After").is_some(), refused == 503, "{away:?}");
        assert_eq!((agent.backlog(), spools(&agent)), (0, 0));
    }
}

#[test]
fn a_streamed_body_overtakes_nothing() {
    let server = FakeOpik::start_new();
    let agent = builder(&server).arg("--max-body-size").arg("2MiB").arg("--retry-interval").arg("1s").start();
    wait_until_connection(&agent, "available");
    let ids = ids(40);
    // An earlier write waits, which it may be about.
    let failing = server.script(When::path("/v1/private/traces").method("POST"), Then::status(503));
    assert_eq!(send(&agent, &create(&uuid7())).status, 201);
    let kept_back = send(&agent, &post(traces(&ids, 100_000)));
    assert_error(&kept_back, 503);
    assert!(kept_back.header("Retry-After").is_some());
    failing.clear();
    agent.wait_until_delivered();
    assert_eq!(send(&agent, &post(traces(&ids, 100_000))).status, 204);
    assert_all(&server, &ids);
    // A later write waits for its end.
    let held = server.script(When::path(BATCH), Then::Hold);
    std::thread::scope(|scope| {
        let large = scope.spawn(|| send(&agent, &post(traces(&ids, 100_001))).status);
        wait_until("it is at the server", PATIENCE, || held.hits() == 1);
        let later = scope.spawn(|| send(&agent, &update(&ids[3], 2)).status);
        std::thread::sleep(std::time::Duration::from_millis(200));
        let patches = || server.requests_to("PATCH", &format!("/v1/private/traces/{}", ids[3])).len();
        let before = patches();
        assert!(!later.is_finished(), "it overtakes the batch");
        held.clear();
        assert_eq!((large.join().unwrap(), later.join().unwrap()), (204, 204));
        assert!(patches() > before);
    });
}

#[test]
fn a_slow_upload_keeps_no_write_of_its_lane_waiting() {
    let server = FakeOpik::start_new();
    let agent = builder(&server).arg("--client-timeout").arg("2s").arg("--max-body-size").arg("100MiB").start();
    wait_until_connection(&agent, "available");
    // A body that can be spooled, and a larger one. The least pace is asked for after one longest pause.
    for bytes in [70 * MIB, 101 * MIB] {
        let mut slow = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
        let head = format!(
            "POST /api/v1/private/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: \
             {bytes}\r\n\r\n{{"
        );
        slow.write_all(head.as_bytes()).unwrap();
        std::thread::scope(|scope| {
            let write = scope.spawn(|| send(&agent, &create(&uuid7())).status);
            // A byte now and then avoids too long a pause.
            wait_until("a slow upload holds up another write of its lane", PATIENCE, || {
                let _ = slow.write_all(b" ");
                write.is_finished()
            });
            assert_eq!(write.join().unwrap(), 201);
        });
    }
}

#[test]
fn a_store_that_is_unusable_or_full_keeps_no_large_batch_from_the_server() {
    // The store's folder can't be written, so that there is neither a store nor a spool.
    let server = FakeOpik::start_new();
    let agent = builder(&server).without_db().env("OPIK_OFFLINE_DB", "/proc/none/store.db").start();
    wait_until_connection(&agent, "available");
    let large = ids(40);
    assert_eq!(send(&agent, &post(traces(&large, 100_000))).status, 204);
    assert_all(&server, &large);
    // A store that is full while other traces wait: what this one is about is known.
    let server = FakeOpik::start_new();
    let agent = builder(&server).arg("--max-size").arg("6MiB").start();
    wait_until_connection(&agent, "available");
    let refusing = server.script(When::write().workspace("other"), Then::status(503));
    let fill = |_| {
        let mut body = trace(&uuid7(), "fill");
        body["input"] = json!({ "text": noise(900_000) });
        let request = Request::new("POST", "/v1/private/traces").header("Comet-Workspace", "other").json(&body);
        Client::new(&agent.url()).expect(&request).status
    };
    assert!((0..12).map(fill).any(|status| status == 503), "the store is not full");
    let large = ids(40);
    assert_eq!(send(&agent, &post(traces(&large, 100_000))).status, 204);
    assert_all(&server, &large);
    refusing.clear();
    agent.wait_until_delivered();
}

#[test]
fn odd_bodies_are_judged_as_small_ones_are() {
    let server = FakeOpik::new_stopped();
    let agent = builder(&server).start();
    let space = " ".repeat(1_100_000);
    for (body, status) in [
        (format!("{{{space}}}"), 204),
        (format!("{{\"traces\":{space}[]}}"), 204),
        (format!("{{\"traces\":[{space}]}}"), 204),
        (format!("{{\"traces\":[],{space}\"traces\":[]}}"), 204),
        (format!("{{\"traces\":[NaN{space},\"a\",{{\"id\":null}}]}}"), 204),
        (format!("{{\"traces\":[{{}}{space},]}}"), 400),
        (format!("{{\"traces\":[{{}}{space}]"), 400),
        (format!("{{\"traces\":[{{\"a\":nul}}]{space}}}"), 400),
        (format!("{{\"traces\":[{{\"a\":1]}}]{space}}}"), 400),
        (format!("{{\"traces\":[1],\"b\":tru{space}}}"), 400),
        (format!("{space}x"), 400),
        (space.clone(), 400),
    ] {
        let request = post(body.clone().into_bytes());
        let shown: String = body.split_whitespace().collect();
        assert_eq!(send(&agent, &request).status, status, "{shown}");
        assert_eq!(send(&agent, &request.clone().gzip()).status, status, "{shown}, compressed");
        let mut small = body.replace(&space, "");
        small.insert(0, ' ');
        assert_eq!(send(&agent, &post(small.into_bytes())).status, status, "{shown}, small");
    }
    // zlib, which says nothing about its size.
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(&traces(&ids(12), 100_000)).unwrap();
    let deflated = post(zlib.finish().unwrap()).header("Content-Encoding", "deflate");
    assert_eq!(send(&agent, &deflated.chunked(9_999)).status, 204);
    let whole = crate::support::http::gzip(&traces(&ids(40), 100_000));
    let cut = post(whole[..whole.len() - 5].to_vec()).header("Content-Encoding", "gzip");
    assert_error(&send(&agent, &cut), 400);
    assert_error(&send(&agent, &post(vec![b'x'; 1_100_000]).header("Content-Encoding", "gzip")), 400);
    assert_error(&send(&agent, &post(whole).header("Content-Encoding", "br")), 415);
    assert_eq!(spools(&agent), 0);
}

#[test]
fn a_large_body_that_is_shorter_than_it_says_is_not_kept() {
    let server = FakeOpik::new_stopped();
    let agent = builder(&server).start();
    let body = traces(&ids(40), 100_000);
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /api{BATCH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len() + 10
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    // It may be cut off before it has read why.
    let _ = stream.read_to_string(&mut answer);
    assert!(!answer.contains(" 204 "), "{answer}");
    assert_eq!((agent.backlog(), spools(&agent)), (0, 0));
}

#[test]
fn a_hundred_large_spans_are_all_delivered_whatever_the_server_does() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().start();
    wait_until_connection(&agent, "available");
    let kib = std::env::var("OPIK_OFFLINE_LARGE_KIB").ok().and_then(|kib| kib.parse().ok()).unwrap_or(200);
    let text = noise(kib * 1024);
    let batch = || {
        let (ids, trace_id) = (ids(100), uuid7());
        let start = "2026-03-01T04:00:16Z";
        let item = |id: &String| {
            format!(
                r#"{{"id":"{id}","trace_id":"{trace_id}","name":"s","start_time":"{start}","input":{{"t":"{text}"}}}}"#
            )
        };
        let body = format!("{{\"spans\":[{}]}}", ids.iter().map(item).collect::<Vec<_>>().join(","));
        let request = Request::new("POST", "/v1/private/spans/batch").header("Content-Type", "application/json");
        (ids, request.bytes(body))
    };
    let before = peak(&agent);
    let missing = |ids: &[String]| ids.iter().filter(|id| server.entity("default", Kind::Span, id).is_none()).count();
    let (online, request) = batch();
    assert_eq!(send(&agent, &request).status, 204);
    assert_eq!(missing(&online), 0, "online");
    server.stop();
    let (away, request) = batch();
    assert_eq!(send(&agent, &request).status, 204);
    let grown = peak(&agent) - before;
    eprintln!("100 spans of {kib} KiB took {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < 32 * MIB, "100 spans of {kib} KiB took {grown} bytes");
    drop(request);
    server.start();
    agent.wait_until_delivered();
    assert_eq!(missing(&away), 0, "in the outage");
    assert!(metric(&agent, "opik_offline_messages_registered_total") > 1);
}
