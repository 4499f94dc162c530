//! Text from elsewhere drives no terminal, forges no line and hides no column: names of projects, workspaces, types
//! and files, paths, server answers and versions go through every command on a pseudo-terminal, and through the log.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use opik_offline::message::{Body, Effect, Encoding, EntityKind, HeaderSet, Lane, Message, MessageType, Server};
use opik_offline::store::{ClaimLimits, Filter, LastAnswer, Outcome, Owner, ReplayRecord};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use crate::sandbox::{ACCEPTED_AT_MS, BINARY, NO_SERVER, TRACE, create_trace, message, open};
use crate::support::agent::Home;
use crate::support::process::run;
use crate::support::pty::OnTerminal;
use crate::support::{PATIENCE, uuid7, wait_until};

/// A mark that must be shown, or the command has not met the hostile text at all.
const MARK: &str = "0wned";
/// Every kind of text that a terminal obeys or that looks like another text.
const HOSTILE: &str = "a\u{1b}]0;0wned\u{7}b\u{1b}]8;;http://evil.example\u{1b}\\c\u{1b}[8;5md\u{9b}7me\u{9d}0;t\u{9c}\u{7f}\u{8}\
     f\nforged: all is delivered\r\n\u{85}g\u{2028}h\u{2029}i\u{202e}j\u{202d}k\u{2066}l\u{2067}m\u{2068}n\u{2069}\u{200e}\u{200f}\
     \u{61c}o\u{200b}p\u{200c}q\u{200d}r\u{2060}s\u{feff}t\u{ad}u\u{fff9}v\u{e0041}w\u{fffe}x\0\ty\
     z\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}";
/// The same where no line break and no control character of ASCII can be: in a header, in a variable.
const HOSTILE_HEADER: &str = "0wned\u{9b}7m\u{202e}\u{200b}\u{2028}\u{85}\u{feff}";

fn is_hostile(c: char) -> bool {
    let ranges = [
        ('\u{80}', '\u{9f}'),
        ('\u{ad}', '\u{ad}'),
        ('\u{61c}', '\u{61c}'),
        ('\u{200b}', '\u{200f}'),
        ('\u{2028}', '\u{202e}'),
        ('\u{2060}', '\u{206f}'),
        ('\u{feff}', '\u{feff}'),
        ('\u{fff9}', '\u{fffb}'),
        ('\u{fffe}', '\u{ffff}'),
        ('\u{e0000}', '\u{e0fff}'),
    ];
    c < ' ' && c != '\n' || c == '\u{7f}' || ranges.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// Takes away what we ourselves tell a terminal: colours, and how a bar or a watch is drawn.
fn without_our_own(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        let sequence = after.strip_prefix('[').and_then(|inside| {
            let end = inside.find(|c: char| !c.is_ascii_digit() && c != ';' && c != '?')?;
            let is_ours = match (&inside[..end], &inside[end..end + 1]) {
                // None of ours hides, inverts or blinks.
                (codes, "m") => codes.split(';').all(|code| !["5", "7", "8"].contains(&code)),
                ("?7", "l" | "h") | ("2", "K" | "J") | ("", "H" | "J") => true,
                (count, "A" | "B") => count.parse::<u16>().is_ok(),
                _ => false,
            };
            is_ours.then(|| &inside[end + 1..])
        });
        match sequence {
            Some(behind) => rest = behind,
            None => {
                plain.push('\u{1b}');
                rest = after;
            }
        }
    }
    plain + rest
}

/// Returns whether the hostile text was shown, if only its beginning in a narrow column.
fn is_met(text: &str) -> bool {
    text.contains(MARK) || text.contains("a\\u{")
}

/// Fails when a terminal would obey this, or when a stranger's text begins a line.
#[track_caller]
fn assert_harmless(what: &str, text: &str) {
    // A bar goes back to the begin of its line.
    let plain = without_our_own(text).replace("\r\n", "\n").replace("\u{1b}[1A", "").replace('\r', "");
    for line in plain.lines() {
        let found: Vec<String> =
            line.chars().filter(|c| is_hostile(*c)).map(|c| c.escape_unicode().to_string()).collect();
        assert!(found.is_empty(), "{what}: {found:?} reach the terminal in {line:?}\nof {plain:?}");
        assert!(!line.starts_with("forged"), "{what}: a line was forged in {plain:?}");
        assert!(!line.contains(&"\u{301}".repeat(10)), "{what}: marks are piled up in {line:?}");
    }
}

/// Runs a command on a terminal of 80 columns and types what is asked for.
#[track_caller]
fn on_terminal(command: &mut Command, typed: &str) -> String {
    let what = format!("{:?}", command.get_args().collect::<Vec<_>>());
    let mut running = OnTerminal::start(command, 80);
    if !typed.is_empty() {
        running.wait_for("[y/N] ");
        running.type_in(typed);
    }
    let (status, text) = running.finish();
    assert!(status.code().is_some(), "{what}: {status}: {text:?}");
    assert_harmless(&what, &text);
    text
}

/// Takes every question with a hostile answer.
fn hostile_server(is_foreign: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                let (head, body_bytes) = loop {
                    match stream.read(&mut piece) {
                        Ok(read @ 1..) => request.extend_from_slice(&piece[..read]),
                        _ => return,
                    }
                    let text = String::from_utf8_lossy(&request).into_owned();
                    if let Some((head, _)) = text.split_once("\r\n\r\n") {
                        let length = head.lines().find_map(|line| {
                            line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse::<usize>().ok()
                        });
                        break (head.to_owned(), length.unwrap_or(0));
                    }
                };
                while request.len() < head.len() + 4 + body_bytes {
                    match stream.read(&mut piece) {
                        Ok(read @ 1..) => request.extend_from_slice(&piece[..read]),
                        _ => return,
                    }
                }
                let path = head.split(' ').nth(1).unwrap_or_default();
                let (status, kind, body) = if path.contains("-/ready") || path.contains("-/status") {
                    (200, "application/json", imposter().to_string())
                } else if is_foreign {
                    let page = format!("<html><title>{HOSTILE}</title>{HOSTILE}</html>");
                    (302, "text/html", page)
                } else if path.contains("is-alive/ver") {
                    (200, "application/json", json!({ "version": HOSTILE }).to_string())
                } else if path.contains("is-alive") {
                    (200, "application/json", json!({ "message": "Healthy Server", "healthy": true }).to_string())
                } else {
                    (
                        400,
                        "application/json",
                        json!({ "code": 400, "message": HOSTILE, "details": HOSTILE }).to_string(),
                    )
                };
                let location = if status == 302 { format!("Location: /{HOSTILE_HEADER}\r\n") } else { String::new() };
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: {kind}; {HOSTILE_HEADER}\r\n{location}Content-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
            });
        }
    });
    url
}

/// Answers of a program that listens on an agent's address.
fn imposter() -> Value {
    json!({
        "agent": { "pid": 1, "version": HOSTILE, "uptime_seconds": 1, "files_problem": HOSTILE },
        "store": { "usable": false, "reason": HOSTILE, "live_writes": HOSTILE, "full": HOSTILE },
        "server": { "url": HOSTILE, "connection": HOSTILE, "since_ms": 0, "reason": HOSTILE },
    })
}

/// A home in a folder with a hostile name, with a store full of hostile names.
struct Scene {
    home: Home,
    folder: PathBuf,
    upstream: String,
    listen: String,
}

impl Scene {
    fn new(upstream: &str) -> Self {
        let home = Home::new();
        // A file may be called anything but `/` and NUL; this one is not UTF-8 either.
        let name = [HOSTILE.replace(['/', '\0'], "").as_bytes(), b"\xff\xfe\x9b7m"].concat();
        let name = &name[..name.len().min(250)];
        let folder = home.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir(&folder).unwrap();
        let scene = Self { home, folder, upstream: upstream.to_owned(), listen: "127.0.0.1:7".to_owned() };
        scene.fill();
        scene
    }

    fn db(&self) -> PathBuf {
        self.folder.join("opik_messages.db")
    }

    fn lane(&self, workspace: &str) -> Lane {
        Lane { server: Some(Server::new(&self.upstream)), workspace: Some(workspace.to_owned()), credential: None }
    }

    fn hostile_message(&self, number: i64) -> Message {
        let id = format!("019b7c3f-5f20-7000-8000-0000000001{number:02}");
        let body =
            json!({ "id": id, "name": HOSTILE, "project_name": HOSTILE, "thread_id": HOSTILE, HOSTILE: [HOSTILE] });
        let path = format!("v1/private/traces/{HOSTILE}");
        let touches = [(EntityKind::Trace, id.as_str(), Effect::Create)];
        let mut hostile =
            message(number, &self.lane(HOSTILE), MessageType::CreateTrace, ("POST", &path), &touches, &body);
        hostile.project = Some(HOSTILE.to_owned());
        // Escapes of lone surrogates and raw characters side by side, as a client may send them.
        let raw = body.to_string().replacen("0wned", "0wned\\ud83d\u{9b}\u{202e}\u{7f}", 1);
        hostile.request.body = Body::new(raw, Encoding::Identity);
        hostile.request.headers = HeaderSet::new(vec![
            ("content-type".into(), HOSTILE_HEADER.as_bytes().to_vec()),
            ("user-agent".into(), b"0wned\x9b7m\xff\x1b[8m".to_vec()),
            (format!("x-{HOSTILE_HEADER}"), b"\x9b7m\xff".to_vec()),
        ]);
        hostile
    }

    fn fill(&self) {
        let store = open(&self.db());
        let lane = self.lane(HOSTILE);
        store.register(&[self.hostile_message(0)]).unwrap();
        let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(30)).unwrap();
        let id = store.lanes(&Filter::default(), ACCEPTED_AT_MS).unwrap()[0].id;
        let limits = ClaimLimits { messages_max: 1, bytes_max: 1 << 20 };
        let claimed = store.claim(&lease, id, &Filter::default(), limits, ACCEPTED_AT_MS).unwrap().into_messages();
        let answer = LastAnswer { status: Some(400), text: HOSTILE.to_owned(), at_ms: ACCEPTED_AT_MS + 60_000 };
        store.settle(&lease, &[(claimed[0].id, Outcome::Rejected { answer })]).unwrap();
        store.release(&lease).unwrap();
        let elsewhere = Lane { server: Some(Server::new(&format!("http://127.0.0.1:9/{HOSTILE}"))), ..lane };
        // A body that is not JSON is shown in the lines that it has: it comes last, and is what was asked for.
        let text = Body::new(HOSTILE.replace('\n', "\u{b}"), Encoding::Identity);
        let mut not_json = self.hostile_message(2);
        not_json.request.body = text;
        store
            .register(&[
                self.hostile_message(1),
                not_json,
                create_trace(3, &elsewhere, "019b7c3f-5f20-7000-8000-000000000009"),
                create_trace(4, &self.lane("default"), "019b7c3f-5f20-7000-8000-00000000000a"),
            ])
            .unwrap();
        let (started_at_ms, ended_at_ms) = (ACCEPTED_AT_MS, ACCEPTED_AT_MS + 1);
        let record =
            ReplayRecord { role: HOSTILE.into(), started_at_ms, ended_at_ms, delivered: 7, rejected: 1, remaining: 4 };
        store.note_replay(&record).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(BINARY);
        command.env("OPIK_OFFLINE_DB", self.db()).env("OPIK_OFFLINE_UPSTREAM", &self.upstream);
        command.env("OPIK_OFFLINE_LISTEN", &self.listen).env("PAGER", "cat").env("TERM", "xterm-256color");
        command.env("OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", "2").args(args);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        on_terminal(&mut self.command(args), "")
    }

    /// An SDK's leftover file with hostile rows.
    fn sdk_file(&self) -> PathBuf {
        let path = self.folder.join("sdk.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        let table = "CREATE TABLE messages (message_id INTEGER NOT NULL PRIMARY KEY, status INTEGER NOT NULL,
             message_type TEXT NOT NULL, message_json TEXT NOT NULL)";
        connection.execute_batch(table).unwrap();
        let attachment = json!({ "file_path": format!("/nowhere/{HOSTILE}"), "file_name": HOSTILE, "mime_type": HOSTILE,
            "entity_type": "trace", "entity_id": TRACE, "project_name": HOSTILE, "encoded_url_override": "" });
        for (number, (message_type, json)) in [
            (HOSTILE, HOSTILE.to_owned()),
            ("CreateTraceMessage", json!({ "trace_id": HOSTILE, "name": HOSTILE, HOSTILE: HOSTILE }).to_string()),
            ("UpdateTraceMessage", json!({ "trace_id": HOSTILE, "project_name": HOSTILE }).to_string()),
            ("CreateAttachmentMessage", attachment.to_string()),
        ]
        .into_iter()
        .enumerate()
        {
            let row = rusqlite::params![number as i64, 3, message_type, json];
            connection.execute("INSERT INTO messages VALUES (?1, ?2, ?3, ?4)", row).unwrap();
        }
        path
    }
}

fn text_of(path: &Path) -> std::ffi::OsString {
    path.as_os_str().to_owned()
}

#[test]
fn no_command_that_shows_what_is_stored_lets_a_name_drive_the_terminal() {
    let scene = Scene::new(NO_SERVER);
    for args in [
        &["status"][..],
        &["status", "-v"],
        &["healthcheck"],
        &["healthcheck", "-v"],
        &["inspect"],
        &["inspect", "--newest"],
        &["inspect", "1"],
        &["inspect", "2"],
        &["inspect", "3"],
        &["purge", "--dry-run"],
        &["replay", "--dry-run"],
        &["inspect", "--workspace", "nobody"],
        &["replay", "--workspace", "nobody", "--dry-run"],
    ] {
        for more in [&[][..], &["--no-color"], &["--format", "json"], &["--format", "yaml"]] {
            let shown = scene.run(&[args, more].concat());
            let is_shown = is_met(&shown);
            // Only people see which names exist if nothing is selected.
            let is_nothing = args.contains(&"--workspace") && more.contains(&"--format");
            assert!(is_shown || is_nothing, "{args:?} {more:?} did not show it: {shown}");
        }
    }
    let lines = scene.run(&["inspect", "--format", "jsonl"]);
    assert!(lines.matches(MARK).count() > 4, "{lines}");
    for (word, typed) in [("delete", "n\n"), ("destination", "n\n")] {
        let args: &[&str] = match word {
            "delete" => &["purge"],
            _ => &["replay", "--readdress", NO_SERVER, "--upstream", "http://127.0.0.1:1/api"],
        };
        let shown = on_terminal(&mut scene.command(args), typed);
        assert!(is_met(&shown) && shown.contains(word), "{args:?}: {shown}");
    }
    let shown = scene.run(&["replay", "--readdress", NO_SERVER, "--upstream", "http://127.0.0.1:1/api", "--dry-run"]);
    assert!(is_met(&shown), "{shown}");
    let watch = OnTerminal::start(&mut scene.command(&["status", "--watch"]), 80);
    watch.wait_for("more lines)");
    kill_process(Pid::from_raw(i32::try_from(watch.pid()).unwrap()).unwrap(), Signal::INT).unwrap();
    let (_, shown) = watch.finish();
    assert!(shown.contains(MARK), "{shown}");
    assert_harmless("status --watch", &shown);
    let shown = scene.run(&["purge", "--yes"]);
    assert!(shown.contains("deleted"), "{shown}");
}

#[test]
fn following_shows_a_hostile_message_harmlessly() {
    let scene = Scene::new(NO_SERVER);
    for format in ["table", "jsonl"] {
        let follow =
            OnTerminal::start(&mut scene.command(&["inspect", "--follow", "--format", format, "--limit", "1"]), 80);
        let store = open(&scene.db());
        wait_until("a message is shown", PATIENCE, || {
            store.register(&[scene.hostile_message(9)]).unwrap();
            follow.text().contains(MARK)
        });
        let (_, shown) = follow.finish();
        assert_harmless("inspect --follow", &shown);
    }
}

#[test]
fn no_server_and_no_imposter_drives_the_terminal() {
    for is_foreign in [false, true] {
        let mut scene = Scene::new(&hostile_server(is_foreign));
        for args in [
            &["status"][..],
            &["healthcheck"],
            &["healthcheck", "--smoke-test", "--project-name", HOSTILE_HEADER],
            &["replay", "-v", "--verify", "--verify-timeout", "1s"],
            &["status"],
            &["inspect", "1"],
            &["inspect"],
            &["status", "--format", "json"],
            &["status", "--format", "yaml"],
        ] {
            let shown = scene.run(args);
            assert!(is_met(&shown), "{args:?}: {shown}");
        }
        scene.listen = scene.upstream.trim_start_matches("http://").trim_end_matches("/api").to_owned();
        for args in [&["status"][..], &["healthcheck"], &["healthcheck", "--format", "yaml"]] {
            let shown = scene.run(args);
            assert!(shown.contains(MARK), "{args:?}: {shown}");
        }
    }
}

#[test]
fn no_file_of_another_process_drives_the_terminal() {
    let scene = Scene::new(NO_SERVER);
    let file = scene.sdk_file();
    let from = |args: &[&str], after: &[&str]| {
        let mut command = scene.command(args);
        command.arg("--from").arg(text_of(&file)).args(after);
        let shown = on_terminal(&mut command, "");
        assert!(shown.contains(MARK), "{args:?}: {shown}");
    };
    from(&["inspect"], &[]);
    from(&["inspect"], &["--format", "json"]);
    from(&["inspect"], &["--format", "jsonl"]);
    from(&["inspect"], &["--format", "yaml"]);
    from(&["replay", "--dry-run"], &[]);
    from(&["replay", "-v"], &["--remove-source"]);
    let missing = scene.folder.join("nothing-here.db");
    for args in [&["inspect"][..], &["replay"]] {
        let mut command = scene.command(args);
        command.arg("--from").arg(&missing);
        assert!(on_terminal(&mut command, "").contains("error: "));
    }
}

#[test]
fn no_error_drives_the_terminal() {
    let scene = Scene::new(NO_SERVER);
    std::fs::write(scene.folder.join("diary.db"), "dear diary").unwrap();
    for (name, args) in [
        ("diary.db", &["status"][..]),
        ("diary.db", &["healthcheck"]),
        ("diary.db", &["inspect"]),
        ("diary.db", &["purge", "--yes"]),
        ("diary.db", &["replay"]),
        ("none/none.db", &["inspect", "1"]),
        ("none/none.db", &["status"]),
    ] {
        let mut command = scene.command(args);
        command.env("OPIK_OFFLINE_DB", scene.folder.join(name));
        let shown = on_terminal(&mut command, "");
        assert!(shown.contains("diary") || shown.contains("none"), "{args:?}: {shown}");
    }
    // Names come from scripts, too.
    let c1 = "0wned\u{9b}7m\u{202e}\u{1b}[8m\u{1b}]0;t\u{7}\nforged";
    for args in [
        &["inspect", c1][..],
        &["inspect", "--type", c1],
        &["inspect", "--status", c1],
        &["inspect", "--older-than", c1],
        &["replay", "--server", c1],
        &[c1],
        &["agent", c1],
        &["agent", "--", c1],
        &["agent", "--listen", c1],
        &["agent", "--max-size", c1],
        &["agent", "--log-format", c1],
        &["healthcheck", "--upstream", c1],
        &["inspect", "--workspace", c1],
    ] {
        let shown = scene.run(args);
        assert!(shown.contains(MARK), "{args:?}: {shown}");
    }
    for (name, value) in
        [("OPIK_OFFLINE_NOTHING_0wned\u{1b}[8m", "x"), ("OPIK_OFFLINE_UPSTREAM", c1), ("OPIK_WORKSPACE", c1)]
    {
        let shown = on_terminal(scene.command(&["healthcheck"]).env(name, value), "");
        assert!(shown.contains(MARK), "{name:?}: {shown}");
    }
    std::fs::create_dir_all(scene.home.path().join("config/opik-offline")).unwrap();
    for text in [
        format!("{HOSTILE_HEADER}\u{9b}: 1\n"),
        format!("upstream: \"{HOSTILE_HEADER}\\e[8m\"\n"),
        "{{0wned\u{9b}".into(),
    ] {
        std::fs::write(scene.home.path().join("config/opik-offline/config.yaml"), text).unwrap();
        let mut command = scene.command(&["status"]);
        command.env_remove("OPIK_OFFLINE_UPSTREAM");
        on_terminal(&mut command, "");
    }
}

#[test]
fn no_log_line_is_forged_and_none_drives_the_terminal() {
    for format in ["text", "json"] {
        let scene = Scene::new(&hostile_server(false));
        let mut command = scene.command(&["agent", "--listen", "127.0.0.1:0", "--log-format", format, "-v"]);
        let log = scene.folder.join("agent.log");
        command.env("OPIK_FILE_LOGGING_LEVEL", "DEBUG").env("OPIK_LOGGING_FILE", &log);
        command.env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.2");
        let agent = OnTerminal::start(&mut command, 80);
        wait_until("what is stored is refused", PATIENCE, || agent.text().contains(MARK));
        agent.wait_for("listening on http://");
        let address = agent.text();
        let port = crate::support::process::listening_port(&without_our_own(&address)).expect("it listens");
        let get = |path: &str| {
            let mut client = crate::support::http::Client::new(&format!("http://127.0.0.1:{port}"));
            client.get(path).text()
        };
        // A client's headers and paths are a stranger's, too; what HTTP does not take is refused.
        for (name, value) in
            [("Comet-Workspace", HOSTILE_HEADER), ("User-Agent", HOSTILE_HEADER), ("Host", HOSTILE_HEADER)]
        {
            for path in ["/api/v1/private/traces", "/api/v1/private/\u{9b}7m\u{202e}", "/api/%1b%5b8m%c2%9b/%0aforged"]
            {
                let mut client =
                    crate::support::http::Client::new(&format!("http://127.0.0.1:{port}")).with_header(name, value);
                let trace = json!({ "id": uuid7(), "start_time": "2026-01-02T03:04:05Z", "name": HOSTILE });
                let request = crate::support::http::Request::new("POST", path).json(&trace);
                if let Ok(answer) = client.send(&request) {
                    assert_ne!(answer.status, 500, "{name} {path}: {}", answer.text());
                }
            }
        }
        for path in ["/", "/-/status.json", "/-/ready", "/metrics", "/-/healthy"] {
            assert_harmless(path, &get(path));
        }
        kill_process(Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap(), Signal::TERM).unwrap();
        let (_, shown) = agent.finish();
        assert_harmless("agent", &shown);
        let written = std::fs::read_to_string(log).unwrap();
        assert!(written.contains(MARK), "{written}");
        assert_harmless("the log file", &written);
        if format == "json" {
            for line in written.lines() {
                serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line:?}"));
            }
        }
    }
}

#[test]
fn no_answer_of_the_agent_drives_the_terminal_of_its_client() {
    let scene = Scene::new(NO_SERVER);
    let diary = scene.folder.join("diary.db");
    std::fs::write(&diary, "dear diary").unwrap();
    let mut command = scene.command(&["agent", "--listen", "127.0.0.1:0"]);
    let agent = OnTerminal::start(command.env("OPIK_OFFLINE_DB", &diary), 80);
    agent.wait_for("listening on http://");
    let port = crate::support::process::listening_port(&without_our_own(&agent.text())).expect("it listens");
    let mut client = crate::support::http::Client::new(&format!("http://127.0.0.1:{port}"));
    let trace = json!({ "id": uuid7(), "start_time": "2026-01-02T03:04:05Z" });
    let answers = [
        client.post("/api/v1/private/traces", &trace).text(),
        client.expect(&crate::support::http::Request::new("POST", "/-/flush")).text(),
        client.get("/-/ready").text(),
        client.get("/-/status.json").text(),
        client.get("/").text(),
    ];
    for answer in &answers {
        assert_harmless("an answer of the agent", answer);
    }
    assert!(answers.iter().filter(|answer| answer.contains(MARK)).count() >= 3, "{answers:#?}");
}

#[test]
fn no_program_that_is_wrapped_and_no_completion_drives_the_terminal() {
    let scene = Scene::new(NO_SERVER);
    let program = scene.folder.join("0wned\u{1b}[8m\u{202e}\nforged");
    std::os::unix::fs::symlink("/bin/true", &program).unwrap();
    let mut command = scene.command(&["agent", "--listen", "127.0.0.1:0", "--flush-timeout", "1s", "--"]);
    command.arg(&program);
    let shown = on_terminal(&mut command, "");
    assert!(shown.contains("\\nforged sends to"), "{shown}");
    for kind in ["workspaces", "projects"] {
        let mut command = scene.command(&["__values", kind]);
        let shown = on_terminal(&mut command, "");
        assert!(!shown.contains(MARK), "an escaped name would match nothing: {shown}");
    }
    // A hint can be copied, for any name of the folder.
    let told = scene.run(&["status"]);
    let stays = "deliver later with `opik-offline replay --db $'";
    let mut command = scene.command(&["agent", "--listen", "127.0.0.1:0", "--flush-timeout", "1s", "--db"]);
    command.arg(scene.db()).args(["--", "true"]);
    let shown = on_terminal(&mut command, "");
    assert!(shown.replace('\n', " ").replace("      ", "").contains(stays), "{shown}{told}");
}

#[test]
fn a_machine_reads_the_true_names() {
    let scene = Scene::new(NO_SERVER);
    let listed = |args: &[&str]| run(&mut scene.command(args)).stdout;
    let json: Value = serde_json::from_str(&listed(&["inspect", "--format", "json"])).unwrap();
    let yaml: Value = serde_yaml::from_str(&listed(&["inspect", "--format", "yaml"])).unwrap();
    assert_eq!(json["messages"], yaml["messages"]);
    assert_eq!(json["messages"][1]["workspace"], HOSTILE);
    assert_eq!(json["messages"][1]["project"], HOSTILE);
    assert_eq!(json["messages"][0]["answer"]["text"], HOSTILE);
    let status: Value = serde_json::from_str(&listed(&["status", "--format", "json"])).unwrap();
    assert_eq!(status["last_replay"]["by"], HOSTILE);
}

/// Every row fits, and the last columns are there.
#[test]
fn a_long_name_and_wide_characters_hide_no_column_at_80_columns() {
    let home = Home::new();
    let scene =
        Scene { folder: home.path().to_owned(), home, upstream: NO_SERVER.into(), listen: "127.0.0.1:7".into() };
    let store = open(&scene.db());
    let names = [
        "日本語のとても長いプロジェクト名はどこまでも続いていく".to_owned(),
        "👩🏽‍🚀🚀🇩🇪❤️".repeat(20),
        "e\u{301}".repeat(200),
        "x".repeat(5000),
        "한국어 프로젝트".to_owned(),
    ];
    for (number, name) in names.iter().enumerate() {
        let mut message =
            create_trace(number as i64, &scene.lane(name), &format!("019b7c3f-5f20-7000-8000-0000000000{number:02}"));
        message.project = Some(name.clone());
        store.register(&[message]).unwrap();
    }
    for args in [&["inspect", "--no-color"][..], &["status"], &["purge", "--dry-run"], &["replay", "--dry-run"]] {
        let shown = scene.run(args);
        let table: Vec<&str> = shown.lines().filter(|line| line.contains("CreateTrace")).collect();
        assert_eq!(table.len(), names.len(), "{args:?}: {shown}");
        for line in table {
            assert!(line.width() <= 80, "{args:?}: {} cells: {line}", line.width());
            assert!(line.contains(" B"), "{args:?}: the size is hidden: {line}");
        }
        if args[0] == "inspect" {
            let head = shown.lines().next().unwrap();
            assert!(head.contains("last answer") && head.contains("age"), "{head}");
        }
    }
}
