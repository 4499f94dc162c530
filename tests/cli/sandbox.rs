//! A home of its own with a store in it, and output made comparable.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use opik_offline::message::{
    Body, Credential, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageType, Request, Server,
    Touch,
};
use opik_offline::store::{
    self, ClaimLimits, Filter, LastAnswer, Limits, OpenMode, Outcome, Owner, ReplayRecord, Store, WhenFull,
};
use serde_json::{Value, json};

use crate::support::agent::Home;
use crate::support::fake_opik::FakeOpik;
use crate::support::process::{Output, run};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");

/// Nothing of this may ever be printed.
pub(crate) const CREDENTIAL: &str = "credential-of-a-client-4711";
pub(crate) const HEADER_SECRET: &str = "header-of-a-client-4712";
pub(crate) const API_KEY: &str = "key-in-the-environment-4713";
pub(crate) const TOKEN: &str = "token-of-the-intake-4714";

/// Nobody listens there.
pub(crate) const NO_SERVER: &str = "http://127.0.0.1:9/api";

/// 2026-01-02T03:04:05Z
pub(crate) const ACCEPTED_AT_MS: i64 = 1_767_323_045_000;

pub(crate) const TRACE: &str = "019b7c3f-5f20-7000-8000-000000000001";
pub(crate) const OTHER_TRACE: &str = "019b7c3f-5f20-7000-8000-000000000002";
pub(crate) const BAD_TRACE: &str = "019b7c3f-5f20-7000-8000-000000000003";
pub(crate) const SPANS: [&str; 3] = [
    "019b7c3f-5f20-7000-8000-000000000011",
    "019b7c3f-5f20-7000-8000-000000000012",
    "019b7c3f-5f20-7000-8000-000000000013",
];

pub(crate) fn team() -> Lane {
    team_of(NO_SERVER)
}

pub(crate) fn team_of(url: &str) -> Lane {
    Lane {
        server: Some(Server::new(url)),
        workspace: Some("team".into()),
        credential: Some(Credential::new(CREDENTIAL)),
    }
}

pub(crate) fn open(path: &Path) -> std::sync::Arc<dyn Store> {
    let limits = Limits { size_max: 1 << 40, disk_reserve: 0, when_full: WhenFull::Refuse };
    store::open(path, OpenMode::CreateIfMissing, limits).unwrap()
}

/// A message of these items, the `number`th to be accepted.
pub(crate) fn message(
    number: i64,
    lane: &Lane,
    message_type: MessageType,
    (method, path): (&str, &str),
    touches: &[(EntityKind, &str, Effect)],
    body: &Value,
) -> Message {
    let headers = HeaderSet::new(vec![
        ("content-type".into(), b"application/json".to_vec()),
        ("x-private".into(), HEADER_SECRET.as_bytes().to_vec()),
    ]);
    let body = Body::new(body.to_string(), Encoding::Identity);
    Message {
        lane: lane.clone(),
        message_type,
        request: Request { method: method.into(), path: path.into(), headers, body },
        touches: touches
            .iter()
            .map(|(kind, id, effect)| Touch { key: EntityKey::new(*kind, id), effect: *effect })
            .collect(),
        items: u32::try_from(touches.len()).unwrap(),
        project: Some("demo".into()),
        accepted_at_ms: ACCEPTED_AT_MS + number * 1000,
    }
}

/// A trace that waits.
pub(crate) fn create_trace(number: i64, lane: &Lane, id: &str) -> Message {
    let body = json!({ "id": id, "name": "question", "project_name": "demo", "start_time": "2026-01-02T03:04:05Z" });
    let touches = [(EntityKind::Trace, id, Effect::Create)];
    message(number, lane, MessageType::CreateTrace, ("POST", "v1/private/traces"), &touches, &body)
}

fn update_trace(number: i64, lane: &Lane, id: &str) -> Message {
    let body = json!({ "project_name": "demo", "end_time": "2026-01-02T03:04:09Z" });
    let touches = [(EntityKind::Trace, id, Effect::Update)];
    let path = format!("v1/private/traces/{id}");
    message(number, lane, MessageType::UpdateTrace, ("PATCH", &path), &touches, &body)
}

fn create_spans(number: i64, lane: &Lane) -> Message {
    let span = |id: &&str| json!({ "id": id, "trace_id": TRACE, "name": "step", "start_time": "2026-01-02T03:04:06Z" });
    let body = json!({ "spans": SPANS.iter().map(span).collect::<Vec<_>>() });
    let touches = SPANS.map(|id| (EntityKind::Span, id, Effect::Create));
    message(number, lane, MessageType::CreateSpansBatch, ("POST", "v1/private/spans/batch"), &touches, &body)
}

/// Four messages that wait in two workspaces, and a rejected one.
pub(crate) fn fill(path: &Path) {
    let store = open(path);
    let nobody = Lane { server: Some(Server::new(NO_SERVER)), ..Lane::default() };
    store.register(&[create_trace(0, &team(), BAD_TRACE)]).unwrap();
    let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(30)).unwrap();
    let lane = store.lanes(&Filter::default(), ACCEPTED_AT_MS).unwrap()[0].id;
    let limits = ClaimLimits { messages_max: 1, bytes_max: 1 << 20 };
    let claimed = store.claim(&lease, lane, &Filter::default(), limits, ACCEPTED_AT_MS).unwrap().into_messages();
    let answer = LastAnswer {
        status: Some(400),
        text: r#"{"code":400,"message":"start_time must not be null"}"#.into(),
        at_ms: ACCEPTED_AT_MS + 60_000,
    };
    store.settle(&lease, &[(claimed[0].id, Outcome::Rejected { answer })]).unwrap();
    store.release(&lease).unwrap();
    store
        .register(&[
            create_trace(1, &team(), TRACE),
            create_spans(2, &team()),
            update_trace(3, &team(), TRACE),
            create_trace(4, &nobody, OTHER_TRACE),
        ])
        .unwrap();
    let (started_at_ms, ended_at_ms) = (ACCEPTED_AT_MS + 59_000, ACCEPTED_AT_MS + 60_000);
    let record =
        ReplayRecord { role: "agent".into(), started_at_ms, ended_at_ms, delivered: 7, rejected: 1, remaining: 4 };
    store.note_replay(&record).unwrap();
}

/// A home, and the server of its commands.
pub(crate) struct Sandbox {
    pub home: Home,
    upstream: String,
    env: Vec<(String, String)>,
    /// Whether a variable names the store.
    names_db: bool,
}

impl Sandbox {
    /// A home without a store, and a server that is not there.
    pub(crate) fn new() -> Self {
        Self { home: Home::new(), upstream: NO_SERVER.into(), env: Vec::new(), names_db: true }
    }

    /// A home whose commands use the default store, which is not there.
    pub(crate) fn without_store() -> Self {
        Self { names_db: false, ..Self::new() }
    }

    /// A home with the messages of [`fill`].
    pub(crate) fn filled() -> Self {
        let sandbox = Self::new();
        fill(&sandbox.home.db());
        sandbox
    }

    /// Tells the commands of another server; what is stored is for that one, too.
    #[must_use]
    pub(crate) fn with_server(mut self, server: &FakeOpik) -> Self {
        self.upstream = server.url();
        if self.home.db().exists() {
            let store = open(&self.home.db());
            let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(30)).unwrap();
            for listed in store.lane_list(ACCEPTED_AT_MS).unwrap() {
                let lane = Lane { server: Some(Server::new(&self.upstream)), ..listed.lane };
                store.reassign(&lease, listed.id, &lane, 1000).unwrap();
            }
            store.release(&lease).unwrap();
        }
        self
    }

    #[must_use]
    pub(crate) fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(BINARY);
        command.env("OPIK_OFFLINE_UPSTREAM", &self.upstream);
        if self.names_db {
            command.env("OPIK_OFFLINE_DB", self.home.db());
        }
        command.env("OPIK_OFFLINE_LISTEN", "127.0.0.1:7");
        command.envs(self.env.iter().map(|(name, value)| (name, value))).args(args);
        command
    }

    /// Runs a command and returns everything that can be seen of it, masked: stdout, `--- stderr` and the exit code.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let Output { status, stdout, stderr } = run(&mut self.command(args));
        let code = status.code().map_or("killed".to_owned(), |code| code.to_string());
        let stderr = if stderr.is_empty() { String::new() } else { format!("--- stderr\n{stderr}") };
        self.masked(&format!("{stdout}{stderr}--- exit {code}\n"))
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        run(&mut self.command(args))
    }

    /// Puts words where runs differ: HOME, SERVER, AGE, MS, SIZE, PID, PORT.
    fn masked(&self, text: &str) -> String {
        let text = text.replace(&*self.home.path().to_string_lossy(), "HOME").replace(&self.upstream, "SERVER");
        let mut masked = String::new();
        for line in text.split_inclusive('\n') {
            let line = masked_after(line, "the oldest for ", "AGE", |c| c.is_alphanumeric());
            let line = masked_after(&line, "a create was accepted ", "AGE", |c| c.is_alphanumeric());
            let line = masked_after(&line, "last replay  ", "AGE", |c| c.is_alphanumeric());
            let line = masked_after(&line, "accepted      ", "AGE", |c| c.is_alphanumeric());
            let line = masked_after(&line, "last answer   400, ", "AGE", |c| c.is_alphanumeric());
            let line = masked_after(&line, "has been waiting for ", "AGE", |c| c.is_alphanumeric());
            let line = masked_after(&line, "answers in ", "N", |c| c.is_ascii_digit());
            let line = masked_after(&line, "available (", "N", |c| c.is_ascii_digit());
            let line = masked_after(&line, "HOME/opik_messages.db, ", "SIZE", |c| c != '\n');
            let line = masked_after(&line, "sound, ", "SIZE", |c| c != '\n');
            let line = masked_after(&line, "the store takes ", "SIZE", |c| c != '\n');
            let line = masked_after(&line, " in ", "N", |c| c.is_ascii_digit() || c == '.');
            let line = masked_after(&line, " s (", "N", |c| c.is_ascii_digit());
            let line = masked_after(&line, "disk          ", "N", |c| c.is_ascii_digit() || c == '.');
            let line = masked_after(&line, "disk          N ", "UNIT", |c| c.is_alphabetic());
            let line = masked_after(&line, "smoke test    trace ", "ID", |c| c != ' ');
            let line = masked_after(&line, "read back after ", "N", |c| c.is_ascii_digit());
            let line = masked_after(&line, "sends to http://127.0.0.1:", "PORT", |c| c.is_ascii_digit());
            let line = masked_after(&line, "due in ", "N", |c| c.is_ascii_digit());
            masked.push_str(&line);
        }
        masked
    }
}

/// Replaces what follows a text as long as `is_masked` says so; nothing when nothing does.
fn masked_after(line: &str, after: &str, mask: &str, is_masked: impl Fn(char) -> bool) -> String {
    let Some(at) = line.find(after) else { return line.to_owned() };
    let (before, rest) = line.split_at(at + after.len());
    let end = rest.find(|c| !is_masked(c)).unwrap_or(rest.len());
    if end == 0 { line.to_owned() } else { format!("{before}{mask}{}", &rest[end..]) }
}

/// Compares whole texts and shows both when they differ.
#[track_caller]
pub(crate) fn assert_text(found: &str, expected: &str) {
    let expected = expected.strip_prefix('\n').unwrap_or(expected);
    assert!(found == expected, "--- found\n{found}--- expected\n{expected}");
}
