//! An application that uses a published client (the scripts in `tests/sdk/`), as a real process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::PATIENCE;
use super::agent::Home;
use super::fake_opik::FakeOpik;
use super::fake_opik::check::{Fields, Key, Kind};
use super::json::parse_lenient;
use super::tools::{OPIK_VERSION, javascript_otlp, python_otlp, python_sdk, typescript_sdk};

/// How long one command may take; the SDK itself waits up to three seconds for its batches.
const COMMAND_PATIENCE: Duration = Duration::from_secs(180);

#[derive(Default)]
struct Expected {
    fields: Fields,
    scores: BTreeMap<String, Value>,
}

/// Which client the application uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Using {
    /// The Python SDK in this version.
    Python(&'static str),
    TypeScript,
    /// OpenTelemetry's exporter for Python.
    OtlpPython,
    /// OpenTelemetry's exporters for JavaScript, protobuf and JSON.
    OtlpJavaScript,
}

impl Using {
    fn command(self, home: &Home) -> Command {
        let script = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name);
        let with_node = |modules: PathBuf, name: &str| {
            let mut command = home.command("node");
            command.env("NODE_PATH", modules).arg(script(name));
            command
        };
        let with_python = |python: PathBuf, name: &str| {
            let mut command = home.command(python);
            command.arg(script(name));
            command
        };
        match self {
            Self::Python(version) => with_python(python_sdk(version), "app.py"),
            Self::TypeScript => with_node(typescript_sdk(), "app.cjs"),
            Self::OtlpPython => with_python(python_otlp(), "otlp.py"),
            Self::OtlpJavaScript => with_node(javascript_otlp(), "otlp.cjs"),
        }
    }
}

pub(crate) struct SdkApp {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    expected: BTreeMap<Key, Expected>,
    /// Entity id and name of each file, with its size and digest.
    files: BTreeMap<(String, String), (u64, String)>,
    home: Home,
}

impl SdkApp {
    /// Starts an application that sends to this base URL. `run` marks all it makes.
    #[track_caller]
    pub(crate) fn start(run: &str, url: &str) -> Self {
        Self::start_with(Using::Python(OPIK_VERSION), run, url)
    }

    /// Starts an application that looks for its server often, so that its own store is in use soon after an outage.
    #[track_caller]
    pub(crate) fn start_impatient(run: &str, url: &str) -> Self {
        Self::start_in(Using::Python(OPIK_VERSION), run, url, &[("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.5")])
    }

    /// Starts an application that uses another client.
    #[track_caller]
    pub(crate) fn start_with(using: Using, run: &str, url: &str) -> Self {
        Self::start_in(using, run, url, &[])
    }

    #[track_caller]
    fn start_in(using: Using, run: &str, url: &str, env: &[(&str, &str)]) -> Self {
        let home = Home::new();
        let mut command = using.command(&home);
        command.arg(run).envs(env.iter().copied());
        Self::start_command(command, home, url)
    }

    /// Starts an application within `agent -- COMMAND`, in an environment that names this server. The agent's store is
    /// the home's [`Home::db`]; what it says goes to `said` in the home.
    #[track_caller]
    pub(crate) fn start_wrapped(using: Using, run: &str, url: &str) -> Self {
        let home = Home::new();
        let inner = using.command(&home);
        let mut command = home.command(env!("CARGO_BIN_EXE_opik-offline"));
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.arg("agent").arg("--db").arg(home.db()).arg("--").arg(inner.get_program()).args(inner.get_args());
        command.arg(run).stderr(std::fs::File::create(home.path().join("said")).expect("a file can be made"));
        Self::start_command(command, home, url)
    }

    /// Starts an application by this command, which has an environment of its own; the SDK's files go to `home`.
    #[track_caller]
    pub(crate) fn start_command(mut command: Command, home: Home, url: &str) -> Self {
        command.env("OPIK_URL_OVERRIDE", url).env("TMPDIR", home.path());
        for name in ["OPIK_SENTRY_ENABLE", "OPIK_ANALYTICS_ENABLE"] {
            command.env(name, "false");
        }
        // The script flushes where an update must not overtake its create.
        command.env("OPIK_SUPPRESS_BATCHING_UPDATE_WARNING", "true");
        command.env("OPIK_CONSOLE_LOGGING_LEVEL", "WARNING").env("PYTHONUTF8", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python can be started");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let stdin = child.stdin.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut app = Self { child, stdin, lines, expected: BTreeMap::new(), files: BTreeMap::new(), home };
        app.read_until_done("start");
        app
    }

    /// Runs one command of the application (see `tests/sdk/app.py`) and notes what the server has to know from now on.
    #[track_caller]
    pub(crate) fn run(&mut self, command: &str) -> Value {
        writeln!(self.stdin, "{command}")
            .and_then(|()| self.stdin.flush())
            .expect("the application reads its commands");
        self.read_until_done(command.split(' ').next().expect("a command"))
    }

    /// Sends everything that is still in the SDK's queues.
    #[track_caller]
    pub(crate) fn flush(&mut self) {
        let done = self.run("flush");
        assert_eq!(done["flushed"], true, "the SDK reports that it could not send everything");
    }

    /// Ends the application and waits for it.
    #[track_caller]
    pub(crate) fn quit(&mut self) {
        self.run("quit");
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "the application ended with {status}");
    }

    /// Ends the application by a signal that it does not handle, and waits until it is gone.
    pub(crate) fn kill(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child can be signalled");
        self.child.wait().expect("a child can be waited for");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the stores that the SDK has made so far.
    pub(crate) fn stores(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home.path()).expect("the application's home").flatten();
        let folders = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("tmp"));
        folders.map(|folder| folder.path().join("opik_messages.db")).filter(|path| path.exists()).collect()
    }

    /// Returns how many traces, spans and threads the server has to know.
    pub(crate) fn expected_count(&self, kind: Kind) -> usize {
        self.expected.keys().filter(|key| key.kind == kind).count()
    }

    /// Returns the folders in which the SDK keeps its own store.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Returns what the server lacks of that which the application sent.
    pub(crate) fn missing_on(&self, server: &FakeOpik) -> Vec<String> {
        let mut missing = Vec::new();
        for (key, expected) in &self.expected {
            let entity = server.entity("default", key.kind, &key.id).unwrap_or_default();
            let actual = entity.record.map(|record| record.fields);
            if actual.is_none() && !expected.fields.is_empty() {
                missing.push(format!("{key} is lost"));
                continue;
            }
            for (name, value) in &expected.fields {
                let found = actual.as_ref().and_then(|actual| actual.get(name));
                if found != Some(value) && !value.is_null() {
                    missing.push(format!("{key}: {name} is {found:?}, the application sent {value}"));
                }
            }
            for (name, value) in &expected.scores {
                let found = entity.scores.get(name).map(|score| &score["value"]);
                if found != Some(value) {
                    missing.push(format!("{key}: score {name} is {found:?}, the application sent {value}"));
                }
            }
        }
        let files = server.files();
        for ((id, name), (bytes, digest)) in &self.files {
            match files.get(&("default".to_owned(), id.clone(), name.clone())) {
                None => missing.push(format!("file {name:?} of {id} is lost")),
                Some(file) if file.bytes != *bytes || file.sha256 != *digest => {
                    missing.push(format!("file {name:?} of {id} is another"));
                }
                Some(_) => {}
            }
        }
        missing
    }

    /// Waits until the server has everything that the application sent, and reports the losses if that does not happen.
    #[track_caller]
    pub(crate) fn wait_until_all_on(&self, server: &FakeOpik) {
        let deadline = Instant::now() + PATIENCE;
        while !self.missing_on(server).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.assert_all_on(server);
    }

    /// Checks that the server knows all that the application sent, and no trace or span besides.
    #[track_caller]
    pub(crate) fn assert_all_on(&self, server: &FakeOpik) {
        let missing = self.missing_on(server);
        let shown: Vec<&str> = missing.iter().take(20).map(String::as_str).collect();
        assert!(
            missing.is_empty(),
            "{} differences to what the application sent:\n{}",
            missing.len(),
            shown.join("\n")
        );
        for kind in [Kind::Trace, Kind::Span, Kind::OtelSpan] {
            assert_eq!(server.count("default", kind), self.expected_count(kind), "{kind:?} records that nobody sent");
        }
    }

    #[track_caller]
    fn read_until_done(&mut self, command: &str) -> Value {
        loop {
            let line = self.lines.recv_timeout(COMMAND_PATIENCE);
            let line = line.unwrap_or_else(|why| panic!("the application did not finish {command:?}: {why}"));
            // The SDK prints hints for people as well.
            let Ok(line) = parse_lenient(line.as_bytes()) else { continue };
            if line.get("done").is_some_and(|done| done == command) {
                return line;
            }
            self.note(&line);
        }
    }

    fn note(&mut self, line: &Value) {
        if let Some(name) = line["file"].as_str() {
            let key = (line["id"].as_str().expect("an id").to_owned(), name.to_owned());
            let digest = line["sha256"].as_str().expect("a digest").to_owned();
            self.files.insert(key, (line["bytes"].as_u64().expect("a size"), digest));
            return;
        }
        let kind = match line["kind"].as_str() {
            Some("trace") => Kind::Trace,
            Some("span") => Kind::Span,
            Some("thread") => Kind::Thread,
            Some("otel") => Kind::OtelSpan,
            _ => panic!("the application said {line}"),
        };
        let key = Key { kind, id: line["id"].as_str().expect("an id").to_owned() };
        let expected = self.expected.entry(key).or_default();
        if let Some(fields) = line["fields"].as_object() {
            expected.fields.extend(fields.clone());
        }
        if let Some(score) = line["score"].as_str() {
            expected.scores.insert(score.to_owned(), line["value"].clone());
        }
    }
}

impl Drop for SdkApp {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
