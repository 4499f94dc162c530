//! Commands of people look at what anybody may have sent or written: what it takes to show it is bounded.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use opik_offline::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request};
use opik_offline::store::{self, Limits, OpenMode, WhenFull};

use crate::support::HANGS_AFTER;
use crate::support::agent::Home;

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
const MB: usize = 1 << 20;
/// Memory that a command may use for a body of 3 MB: some copies of it, and not tens of bytes for each.
const PEAK_MIB_MAX: u64 = 160;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

fn message(message_type: MessageType, content_type: &str, content: &[u8]) -> Message {
    Message {
        lane: Lane { server: None, workspace: None, credential: None },
        message_type,
        request: Request {
            method: "POST".into(),
            path: "v1/private/x".into(),
            headers: HeaderSet::new(vec![("content-type".into(), content_type.into())]),
            body: Body::new(gzip(content), Encoding::Gzip),
        },
        touches: Vec::new(),
        items: 1,
        project: None,
        accepted_at_ms: store::now_ms(),
    }
}

/// A protobuf field of this number with bytes in it.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut wire = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        wire.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    wire.push(length as u8);
    wire.extend(content);
    wire
}

/// Runs a command to its end, and returns its exit code, its peak of memory in MiB and how much it wrote.
fn peak_of(home: &Home, args: &[&str]) -> (Option<i32>, u64, usize) {
    let mut command = home.command(BINARY);
    let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it can be started");
    let mut stdout = child.stdout.take().expect("it is piped");
    let read = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let mut peak = 0;
    let started = Instant::now();
    while child.try_wait().expect("a child can be waited for").is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
        peak = peak.max(kib / 1024);
        if peak > 4 * PEAK_MIB_MAX || started.elapsed() > HANGS_AFTER {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let code = child.wait().expect("a child can be waited for").code();
    let written = read.join().expect("no panic").expect("it can be read");
    (code, peak, usize::try_from(written).expect("it fits"))
}

#[test]
fn a_small_body_that_is_large_when_decoded_is_shown_in_bounded_memory() {
    let size = 3 * MB;
    let brackets = ["[".repeat(size / 2), "]".repeat(size / 2)].concat();
    let objects = format!("[{}{{}}]", "{\"a\":[]},".repeat(size / 9));
    let text = format!("\"{}\"", "\u{1b}[2J".repeat(size / 9).replace('\u{1b}', "\\u001b"));
    let spans = "{},".repeat(size / 3);
    let otlp = format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{spans}{{}}]}}]}}]}}");
    let protobuf = field(1, &field(2, &field(2, &[]).repeat(size / 2)));
    let home = Home::new();
    let path = home.db();
    let limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
    let opened = store::open(&path, OpenMode::CreateIfMissing, limits).expect("a new store");
    let (json, binary) = ("application/json", "application/x-protobuf");
    let bodies = [
        ("brackets", message(MessageType::CreateTrace, json, brackets.as_bytes())),
        ("objects", message(MessageType::CreateTrace, json, objects.as_bytes())),
        ("a text", message(MessageType::CreateTrace, json, text.as_bytes())),
        ("no JSON", message(MessageType::CreateTrace, json, "\u{1b}".repeat(size).as_bytes())),
        ("spans as JSON", message(MessageType::OtlpTraces, json, otlp.as_bytes())),
        ("spans in protobuf", message(MessageType::OtlpTraces, binary, &protobuf)),
        ("one that is not shown", message(MessageType::CreateTrace, json, &vec![b' '; 70 * MB])),
    ];
    for (what, message) in &bodies {
        assert!(message.request.body.bytes.len() < 256 * 1024, "{what} is not small");
    }
    let ids = opened.register(&bodies.iter().map(|(_, message)| message.clone()).collect::<Vec<_>>()).expect("room");
    drop(opened);
    let db = path.to_string_lossy().into_owned();
    for format in ["table", "json", "yaml", "jsonl"] {
        for ((what, _), id) in bodies.iter().zip(&ids) {
            // Each format once with what costs it most, because a test build is slow.
            match format {
                "yaml" if !["a text", "no JSON"].contains(what) => continue,
                "jsonl" if *what != "objects" => continue,
                _ => {}
            }
            let args = ["inspect", &id.0.to_string(), "--format", format, "--db", &db];
            let (code, peak, written) = peak_of(&home, &args);
            eprintln!("{what} as {format}: {peak} MiB, {written} bytes written");
            assert!(peak < PEAK_MIB_MAX, "{what} as {format} took {peak} MiB");
            assert_eq!(code, Some(0), "{what} as {format}");
            let is_shown = !["spans in protobuf", "one that is not shown"].contains(what);
            assert_eq!(written > size / 2, is_shown, "{what} as {format}: {written} bytes");
        }
    }
    let (code, peak, _) = peak_of(&home, &["inspect", "--limit", "0", "--format", "jsonl", "--db", &db]);
    assert!(code == Some(0) && peak < 2 * PEAK_MIB_MAX, "the export took {peak} MiB: {code:?}");
}

#[test]
fn a_config_file_of_brackets_is_refused_at_once() {
    for (content, reason) in [
        ("[".repeat(200_000), "larger than 64KiB"),
        ("[".repeat(60_000), "too many brackets are open"),
        (format!("db: {}", "{a: ".repeat(15_000)), "too many brackets are open"),
        (format!("db: {}", "- ".repeat(30_000)), "config.yaml"),
        (format!("db: {}", "? ".repeat(30_000)), "config.yaml"),
        (format!("{}---\na: b\n", (0..4000).map(|n| format!("%TAG !{n}! t\n")).collect::<String>()), "config.yaml"),
        (format!("a: &a [x]\nb: [{}]\n", "*a,".repeat(15_000)), "config.yaml"),
    ] {
        let home = Home::new();
        let folder = home.path().join("config/opik-offline");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("config.yaml"), &content).expect("a file");
        let refused = home.cli(&["status", "--upstream", "http://127.0.0.1:9/api"]);
        assert_eq!(refused.code(), Some(2), "{refused:?}");
        assert!(refused.stderr.contains(reason), "{refused:?}");
    }
}
