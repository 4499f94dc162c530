//! The background agent of a home.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

use super::agent::{Home, program};
use super::process::{Output, run};
use super::{PATIENCE, wait_until};

/// A home whose background agents are ended with it.
pub(crate) struct BackgroundHome {
    pub(crate) home: Home,
    pub(crate) server: String,
}

impl BackgroundHome {
    pub(crate) fn new(server: &str) -> Self {
        Self { home: Home::new(), server: server.to_owned() }
    }

    /// Returns a command of this home whose SDK would send to the server.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.home.command(program);
        command.env("OPIK_URL_OVERRIDE", &self.server).env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.2");
        command
    }

    pub(crate) fn agent(&self, args: &[&str]) -> Output {
        run(self.command(program()).arg("agent").args(args))
    }

    /// Starts the agent, or finds it, and returns what it says about itself.
    #[track_caller]
    pub(crate) fn launch(&self, args: &[&str]) -> Value {
        let output = self.agent(&[&["--background", "--format", "json"][..], args].concat());
        assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
        output.json()
    }

    #[track_caller]
    pub(crate) fn stop(&self) -> Value {
        let output = self.agent(&["--stop", "--format", "json"]);
        assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
        output.json()
    }

    /// Returns the one folder that the agent has.
    #[track_caller]
    pub(crate) fn folder(&self) -> PathBuf {
        let agents = self.home.path().join("state/opik-offline/agents");
        let mut folders = std::fs::read_dir(agents).expect("an agent was started").flatten().map(|entry| entry.path());
        let folder = folders.next().expect("an agent was started");
        assert!(folders.next().is_none(), "more than one agent has a folder");
        folder
    }

    /// Returns what all its agents logged.
    pub(crate) fn log(&self) -> String {
        let agents = self.home.path().join("state/opik-offline/agents");
        let folders = std::fs::read_dir(agents).into_iter().flatten().flatten();
        folders.filter_map(|entry| std::fs::read_to_string(entry.path().join("agent.log")).ok()).collect()
    }
}

impl Drop for BackgroundHome {
    fn drop(&mut self) {
        let agents = self.home.path().join("state/opik-offline/agents");
        for entry in std::fs::read_dir(agents).into_iter().flatten().flatten() {
            let Ok(text) = std::fs::read_to_string(entry.path().join("agent.json")) else { continue };
            let Ok(record) = serde_json::from_str::<Value>(&text) else { continue };
            let pid = record["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
            // Whoever has this number now is the agent only if it has this home's store open.
            if let Some(pid) = pid.filter(|pid| is_of(*pid, &entry.path())) {
                signal(pid, Signal::KILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Returns whether this process has the lock of this folder as its standard input.
fn is_of(pid: u32, folder: &std::path::Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|file| file == folder.join("lock"))
}

pub(crate) fn pid_of(report: &Value) -> u32 {
    report["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id")
}

/// Sends a signal to a process, unless it is gone.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until a process is gone, or is only a zombie whose parent does not ask for it.
#[track_caller]
pub(crate) fn wait_until_gone(pid: u32) {
    wait_until("the agent to be gone", PATIENCE, || {
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        test_kill_process(process).is_err() || state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
    });
}

/// Takes the port of a killed agent, which reported this, and answers every request as the agent answered `/-/ready` (for the
/// same server, with the same process id) and a flush that delivered everything. Ends with the test process.
#[track_caller]
pub(crate) fn imitate(report: &Value) {
    let url = report["url"].as_str().expect("a URL");
    let address = url.strip_prefix("http://").and_then(|url| url.strip_suffix("/api")).expect("an address");
    let mut listener = None;
    wait_until("the port is free", PATIENCE, || {
        listener = TcpListener::bind(address).ok();
        listener.is_some()
    });
    let listener = listener.expect("it was waited for");
    let answer = json!({
        "agent": { "pid": report["pid"], "version": env!("CARGO_PKG_VERSION") },
        "server": { "url": report["server"], "connection": "available" },
        "store": { "usable": true, "waiting": 0 },
        "proof": "00".repeat(32),
        "delivered": true,
        "remaining": 0,
        "rejected": 0,
    });
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let head = BufReader::new(&connection).lines();
            head.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let answer = answer.to_string();
            let _ = write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        }
    });
}
