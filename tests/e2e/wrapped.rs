//! `agent -- COMMAND`: an application with an agent of its own loses nothing, and notices nothing.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Request;
use crate::support::ledger::ClientLedger;
use crate::support::process::{Output, run};
use crate::support::sdk::{SdkApp, Using};
use crate::support::tools::OPIK_VERSION;
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{Told, create, trace, update};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");

/// Returns a command that wraps another, on the home's store. Signals that the tests' parent process ignores are
/// handled.
pub(crate) fn wrapping(home: &Home, db: &Path, server: &str, args: &[&str], inner: &[&str]) -> Command {
    let mut command = home.command("env");
    command.args(["--default-signal=HUP,INT,QUIT,TERM,USR1,USR2", BINARY, "agent", "--upstream", server, "--db"]);
    command.arg(db).args(args).arg("--").args(inner);
    command
}

fn wrapped(home: &Home, server: &str, args: &[&str], inner: &[&str]) -> Output {
    run(&mut wrapping(home, &home.db(), server, args, inner))
}

/// A wrapped command that runs until its standard input ends; the test is the application.
pub(crate) struct Running {
    child: Child,
    said: PathBuf,
    pub url: String,
    pub pid: i32,
}

impl Running {
    pub(crate) fn start(home: &Home, db: &Path, server: &str, args: &[&str], name: &str) -> Self {
        let (said, tells) = (home.path().join(format!("{name}.said")), home.path().join(format!("{name}.tells")));
        let script = format!("echo $$ $OPIK_URL_OVERRIDE . > {}; read line; exit 4", tells.display());
        let mut command = wrapping(home, db, server, args, &["sh", "-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        let child = command.spawn().unwrap();
        let told = || fs::read_to_string(&tells).unwrap_or_default();
        wait_until("the command runs", PATIENCE, || told().ends_with(" .\n"));
        let told = told();
        let mut words = told.split(' ');
        let pid = words.next().unwrap().parse().unwrap();
        Self { child, said, url: words.next().unwrap().to_owned(), pid }
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends the command, and returns the agent's exit code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the agent ends", PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when they have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn work(app: &mut SdkApp) {
    app.run("traces 4");
    app.run("manual 2");
    app.run("update");
    app.run("scores");
    app.flush();
}

#[test]
fn an_sdk_loses_nothing_in_an_outage_and_all_is_delivered_when_its_process_has_ended() {
    for using in [Using::Python(OPIK_VERSION), Using::TypeScript] {
        let server = FakeOpik::start_new();
        let mut app = SdkApp::start_wrapped(using, "wrapped", &server.url());
        work(&mut app);
        app.assert_all_on(&server);
        server.stop();
        work(&mut app);
        assert!(!app.missing_on(&server).is_empty());
        // Back just before the end: the next ping would be due long after it.
        server.start();
        app.quit();
        app.assert_all_on(&server);
        server.assert_no_violations();
        let said = fs::read_to_string(app.home().path().join("said")).unwrap();
        assert!(said.contains("opik-offline: nothing waits to be delivered: "), "{said}");
    }
}

#[test]
fn an_sdk_whose_server_is_away_ends_as_usual_and_its_traces_are_delivered_later() {
    for using in [Using::Python(OPIK_VERSION), Using::TypeScript] {
        let server = FakeOpik::new_stopped();
        let mut app = SdkApp::start_wrapped(using, "away", &server.url());
        work(&mut app);
        app.quit();
        let said = fs::read_to_string(app.home().path().join("said")).unwrap();
        assert!(said.contains("safely stored in ") && said.contains("the Opik server is away ("), "{said}");

        // The command that it names, word by word.
        server.start();
        let named = said.split('`').nth(1).unwrap_or_else(|| panic!("no command is named in {said}"));
        let words: Vec<&str> = named.split(' ').collect();
        assert_eq!(words[0], "opik-offline");
        let mut replay = app.home().command(BINARY);
        let replayed = run(replay.args(&words[1..]).env("OPIK_URL_OVERRIDE", server.url()));
        assert_eq!(replayed.code(), Some(0), "{}{}", replayed.stdout, replayed.stderr);
        app.assert_all_on(&server);
        server.assert_no_violations();
    }
}

#[test]
fn the_exit_code_is_the_commands() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let plain = home.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    for (inner, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-program"], 127),
        (&[plain.to_str().unwrap()], 126),
    ] {
        let output = wrapped(&home, &server.url(), &[], inner);
        assert_eq!(output.code(), Some(code), "{inner:?}: {}", output.stderr);
        assert_eq!(output.stderr.contains("\nhint: "), [126, 127].contains(&code), "{inner:?}: {}", output.stderr);
    }
}

#[test]
fn the_terminal_is_the_commands() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let mut command = wrapping(&home, &home.db(), &server.url(), &["-q"], &["sh", "-c", "cat; echo error >&2"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b"typed\n"[..], &b"error\n"[..]));
}

#[test]
fn the_command_keeps_its_environment_and_is_led_to_the_agent() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let env = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = wrapping(&home, &home.db(), &server.url(), args, &["env"]);
        let output = run(command.envs(variables.iter().copied()));
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        output
    };
    let value = |output: &Output, name: &str| {
        output.stdout.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    };
    let output = env(&[], &[("KEPT", "as it was"), ("OPIK_URL_OVERRIDE", "http://elsewhere.invalid/api")]);
    let url = value(&output, "OPIK_URL_OVERRIDE").unwrap();
    let port: u16 = url.strip_prefix("http://127.0.0.1:").unwrap().strip_suffix("/api").unwrap().parse().unwrap();
    assert_ne!(port, 6745, "a free port is taken, so that it works beside a running agent");
    assert!(!output.stdout.contains("OTEL_"), "nothing of OpenTelemetry led to Opik: {}", output.stdout);
    assert_eq!(value(&output, "KEPT").as_deref(), Some("as it was"));

    let output = env(&[], &[("OPIK_OFFLINE_INTAKE_TOKEN", "secret-4711"), ("HTTP_PROXY", "http://127.0.0.1:9")]);
    assert!(value(&output, "OPIK_URL_OVERRIDE").unwrap().ends_with("/-/token/secret-4711/api"));
    assert_eq!(value(&output, "NO_PROXY").as_deref(), Some("127.0.0.1"));
    assert!(!output.stderr.contains("secret-4711"), "{}", output.stderr);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = env(&[], &[("OPIK_OFFLINE_LISTEN", &taken)]);
    assert_eq!(value(&output, "OPIK_URL_OVERRIDE"), Some(format!("http://{taken}/api")), "the user's address");

    let collector = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.invalid:4318")];
    let output = env(&[], &collector);
    assert_eq!(value(&output, collector[0].0).as_deref(), Some(collector[0].1));
    assert!(output.stderr.contains("OTEL_EXPORTER_OTLP_ENDPOINT points elsewhere"), "{}", output.stderr);
}

/// Notes every signal that it gets in a file, and ends with 9 at the second SIGTERM.
const LISTENER: &str = "
import os, signal, sys
notes = os.open(sys.argv[1], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
terminated = 0
def note(number, frame):
    global terminated
    os.write(notes, f'{signal.Signals(number).name}\\n'.encode())
    terminated += number == signal.SIGTERM
    if terminated == 2:
        os._exit(9)
for name in ('HUP', 'INT', 'QUIT', 'TERM', 'USR1', 'USR2'):
    signal.signal(getattr(signal, 'SIG' + name), note)
os.write(notes, b'ready\\n')
while True:
    signal.pause()
";

#[test]
fn signals_are_passed_on_and_the_agent_outlives_the_command() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let notes = home.path().join("notes");
    let inner = ["python3", "-c", LISTENER, notes.to_str().unwrap()];
    let mut child = wrapping(&home, &home.db(), &server.url(), &[], &inner).spawn().unwrap();
    let noted = || fs::read_to_string(&notes).unwrap_or_default();
    let mut expected = "ready\n".to_owned();
    wait_until("the command runs", PATIENCE, || noted() == expected);
    for (signal, name) in [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::INT, "SIGINT"),
        (Signal::TERM, "SIGTERM"),
        (Signal::TERM, "SIGTERM"),
    ] {
        assert_eq!(child.try_wait().unwrap(), None, "the agent ended before its command");
        kill_process(Pid::from_child(&child), signal).unwrap();
        expected += &format!("{name}\n");
        wait_until(&format!("the command gets {name}"), PATIENCE, || noted() == expected);
    }
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_signal_that_is_ignored_as_under_nohup_is_ignored_by_the_command_too() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let how = "import signal; print(*[signal.getsignal(s).name for s in (signal.SIGHUP, signal.SIGTERM)])";
    for (ignored, seen) in [("--ignore-signal=HUP", "SIG_IGN SIG_DFL\n"), ("--default-signal=HUP", "SIG_DFL SIG_DFL\n")]
    {
        let mut command = home.command("env");
        command.args(["--default-signal=TERM", ignored, BINARY, "agent", "--upstream", &server.url(), "--db"]);
        let output = run(command.arg(home.db()).args(["--", "python3", "-c", how]));
        assert_eq!(output.stdout, seen, "{}", output.stderr);
    }
}

#[test]
fn terminal_input_reaches_the_command_once() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let notes = home.path().join("notes");
    let in_a_terminal = "
import os, pty, signal, sys, threading, time
pid, terminal = pty.fork()
if pid == 0:
    for name in ('HUP', 'INT', 'QUIT', 'TERM'):
        signal.signal(getattr(signal, 'SIG' + name), signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
def noted(lines):
    while True:
        try:
            if len(open(sys.argv[1]).readlines()) >= lines:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.01)
def read():
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        pass
threading.Thread(target=read, daemon=True).start()
noted(1)
for lines, typed in enumerate([b'\\x03', b'\\x1c', b'\\x03'], 2):
    os.write(terminal, typed)
    noted(lines)
for lines in (5, 6):
    os.kill(pid, signal.SIGTERM)
    noted(lines)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    let mut command = home.command("python3");
    command.args(["-c", in_a_terminal]).arg(&notes);
    command.args([BINARY, "agent", "--upstream", &server.url(), "--db"]).arg(home.db());
    let output = run(command.args(["--", "python3", "-c", LISTENER]).arg(&notes));
    let noted = fs::read_to_string(&notes).unwrap();
    assert_eq!(noted, "ready\nSIGINT\nSIGQUIT\nSIGINT\nSIGTERM\nSIGTERM\n", "{}", output.stderr);
    assert_eq!(output.stdout, "9\n", "{}", output.stderr);
}

#[test]
fn a_process_that_the_command_leaves_behind_does_not_keep_the_agent() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let (left, said) = (home.path().join("left"), File::create(home.path().join("said")).unwrap());
    let script = format!("sleep 1000 & echo $! > {}; exit 3", left.display());
    let mut command = wrapping(&home, &home.db(), &server.url(), &[], &["sh", "-c", &script]);
    let mut child = command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
    let mut status = None;
    wait_until("the agent ends", PATIENCE, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let left = fs::read_to_string(left).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).expect("it still runs");
    assert_eq!(status.unwrap().code(), Some(3));
}

#[test]
fn a_killed_agent_leaves_the_store_whole() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    let mut running = Running::start(&home, &home.db(), &server.url(), &[], "killed");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&running.url, &ledger);
    for _ in 0..20 {
        let id = uuid7();
        app.acknowledged(create(&id), 201);
        app.acknowledged(update(&id, 1), 204);
    }
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), None);
    let child = Pid::from_raw(running.pid).unwrap();
    kill_process(child, Signal::KILL).expect("the command continues without its agent");

    server.start();
    let (db, url) = (home.db(), server.url());
    let replay = ["replay", "--db", db.to_str().unwrap(), "--upstream", &url];
    let replayed = home.cli(&replay);
    assert_eq!(replayed.code(), Some(0), "{}{}", replayed.stdout, replayed.stderr);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
}

#[test]
fn wrapped_commands_and_an_agent_share_a_store() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::start(&server);
    let ledger = ClientLedger::new();
    let start = |name| Running::start(agent.home(), &agent.db(), &server.url(), &[], name);
    let mut running = [start("first"), start("second")];
    let urls = [running[0].url.clone(), running[1].url.clone(), agent.url()];
    assert!(urls[0] != urls[1] && urls[1] != urls[2]);
    let mut ids = Vec::new();
    for url in &urls {
        let mut app = Told::new(url, &ledger);
        for _ in 0..20 {
            let id = uuid7();
            app.acknowledged(create(&id), 201);
            ids.push(id);
        }
    }
    // Each process continues what another one began.
    for (number, id) in ids.iter().enumerate() {
        Told::new(&urls[(number + 1) % 3], &ledger).acknowledged(update(id, 1), 204);
    }
    server.start();
    for running in &mut running {
        assert_eq!(running.end(), Some(4), "{}", running.said());
        assert!(running.said().contains("nothing waits to be delivered"), "{}", running.said());
    }
    assert_eq!(server.count("default", Kind::Trace), ids.len(), "a flush claims wrongly that all is delivered");
    assert_eq!(agent.backlog(), 0);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    assert!(agent.terminate().success());
}

#[test]
fn a_flush_ends_on_timeout_or_interruption() {
    for (timeout, interrupted, says) in
        [("500ms", false, "--flush-timeout 500ms is over"), ("10m", true, "interrupted")]
    {
        let server = FakeOpik::new_stopped();
        let home = Home::new();
        let args = ["--flush-timeout", timeout, "--shutdown-timeout", "500ms", "--forward-timeout", "10m"];
        let mut running = Running::start(&home, &home.db(), &server.url(), &args, "flushing");
        let ledger = ClientLedger::new();
        let mut app = Told::new(&running.url, &ledger);
        for _ in 0..5 {
            app.acknowledged(create(&uuid7()), 201);
        }
        let hang = server.script(When::write(), Then::Hang);
        server.start();
        drop(running.child.stdin.take());
        if interrupted {
            wait_until("it delivers", PATIENCE, || hang.hits() > 0);
            running.signal(Signal::INT);
        }
        assert_eq!(running.wait(), Some(4), "the exit code is the command's: {}", running.said());
        let said = running.said();
        assert!(said.contains("5 messages stay safely stored in ") && said.contains(says), "{said}");
        hang.clear();
        let (db, url) = (home.db(), server.url());
        let replayed = home.cli(&["replay", "--db", db.to_str().unwrap(), "--upstream", &url]);
        assert_eq!(replayed.code(), Some(0), "{}{}", replayed.stdout, replayed.stderr);
        server.assert_equals(&ledger);
    }
}

#[test]
fn a_flush_does_not_wait_for_a_lane_that_is_held_longer() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    let args = ["--flush-timeout", "5m", "--retry-interval", "1h"];
    let mut running = Running::start(&home, &home.db(), &server.url(), &args, "held");
    let ledger = ClientLedger::new();
    Told::new(&running.url, &ledger).acknowledged(create(&uuid7()), 201);
    server.script(When::write(), Then::status(401));
    server.start();
    assert_eq!(running.end(), Some(4));
    let said = running.said();
    assert!(said.contains("1 message stays safely stored in ") && said.contains("401"), "{said}");
}

#[test]
fn a_wrapped_command_reports_the_writes_that_a_full_store_refused() {
    let (home, server) = (Home::new(), FakeOpik::new_stopped());
    let args = ["--max-size", "1MiB", "--free-disk-reserve", "0"];
    let mut running = Running::start(&home, &home.db(), &server.url(), &args, "full");
    let ledger = ClientLedger::new();
    let mut app = Told::new(&running.url, &ledger);
    let mut refused = 0;
    while refused < 3 {
        let mut body = trace(&uuid7(), "large");
        body["input"] = noise(60_000).into();
        let answer = app.send(Request::new("POST", "/v1/private/traces").json(&body)).unwrap();
        refused += u64::from(answer.status == 503);
    }
    assert_eq!(running.end(), Some(4), "the command's own exit code");
    let said = running.said();
    assert!(said.contains("3 writes were refused, because the store was full: it holds "), "{said}");
    assert!(said.contains("`opik-offline replay --db "), "nothing to paste: {said}");
}
