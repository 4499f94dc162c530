//! The release binary as a process with a home of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, free_address};

/// The program under test: the binary that cargo built with the benches, or another one for a comparison of two
/// versions.
pub(crate) static BINARY: OnceLock<PathBuf> = OnceLock::new();
/// Nobody listens on this port.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:9/api";

/// Returns a folder on the disk that the build uses, which is one with a real fsync.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("figures-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be made")
}

/// Returns a command that inherits nothing but the search path, and pings often.
pub(crate) fn command(home: &Path) -> Command {
    let mut command = default_command(home);
    command.env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.2");
    command
}

/// Returns a command without any setting.
fn default_command(home: &Path) -> Command {
    let mut command = Command::new(BINARY.get().expect("main has set it"));
    command.env_clear().env("HOME", home).current_dir(home);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub(crate) fn store_path(home: &Path) -> PathBuf {
    home.join("opik_messages.db")
}

/// Returns whether the store of this home holds no message.
pub(crate) fn is_empty(home: &Path) -> bool {
    let mut command = command(home);
    command.args(["status", "--fail-if-backlog", "0", "--upstream", NOWHERE, "--db"]).arg(store_path(home));
    command.status().expect("the command runs").code() != Some(4)
}

/// A running agent; stopped when dropped.
pub(crate) struct Agent {
    process: Process,
    pub address: SocketAddr,
}

impl Agent {
    /// Starts an agent on the store of this home and waits until it listens.
    pub(crate) fn start(home: &Path, upstream: &str) -> Self {
        Self::listening(command(home), home, upstream)
    }

    /// Starts an agent whose user set nothing, and waits until it listens.
    pub(crate) fn start_default(home: &Path, upstream: &str) -> Self {
        Self::listening(default_command(home), home, upstream)
    }

    /// Starts an agent with more arguments and variables, and waits until it listens.
    pub(crate) fn start_with(home: &Path, upstream: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command(home);
        command.envs(variables.iter().copied());
        let address = free_address();
        let mut command = with_args(command, home, upstream, address);
        command.args(args);
        Self { process: Process::start(command, address), address }
    }

    fn listening(command: Command, home: &Path, upstream: &str) -> Self {
        let address = free_address();
        let process = Process::start(with_args(command, home, upstream, address), address);
        Self { process, address }
    }

    /// Starts an agent, which may not listen yet.
    pub(crate) fn spawn(home: &Path, upstream: &str) -> Self {
        let address = free_address();
        let process = Process::spawn(with_args(command(home), home, upstream, address), address);
        Self { process, address }
    }

    /// Returns a figure of /proc in MiB: `VmRSS`, `VmHWM`.
    pub(crate) fn memory_mib(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the agent runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel tells it");
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
        kib.expect("a number") / 1024.0
    }

    /// Returns the processor time that the agent took so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("the agent runs");
        // After the name, which may hold anything: utime and stime are the 12th and 13th, in hundredths of a second.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }
}

fn with_args(mut command: Command, home: &Path, upstream: &str, address: SocketAddr) -> Command {
    command.args(["agent", "--listen", &address.to_string(), "--upstream", upstream, "--db"]).arg(store_path(home));
    command
}
