//! The release binary as a process with a home of its own.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The program under test: the binary that cargo built with the benches, or another one for a comparison of two
/// versions.
pub(crate) static BINARY: OnceLock<PathBuf> = OnceLock::new();
/// Nobody listens on this port.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:9/api";

/// Returns a folder on the disk that the build uses, which is one with a real fsync.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("figures-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be made")
}

/// Returns a command that inherits nothing but the search path.
pub(crate) fn command(home: &Path) -> Command {
    let mut command = Command::new(BINARY.get().expect("main has set it"));
    command.env_clear().env("HOME", home).env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.2").current_dir(home);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Returns an address on which nobody listens.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port")
}

pub(crate) fn store_path(home: &Path) -> PathBuf {
    home.join("opik_messages.db")
}

/// A running agent; stopped when dropped.
pub(crate) struct Agent {
    child: Child,
    pub address: SocketAddr,
}

impl Agent {
    /// Starts an agent on the store of this home and waits until it listens.
    pub(crate) fn start(home: &Path, upstream: &str) -> Self {
        let agent = Self::spawn(home, upstream);
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(agent.address).is_err() {
            assert!(Instant::now() < deadline, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        agent
    }

    /// Starts an agent, which may not listen yet.
    pub(crate) fn spawn(home: &Path, upstream: &str) -> Self {
        let address = free_address();
        let mut command = command(home);
        command.args(["agent", "--listen", &address.to_string(), "--upstream", upstream, "--db"]);
        let child = command.arg(store_path(home)).spawn().expect("the agent starts");
        Self { child, address }
    }

    /// Returns a figure of /proc in KiB: `VmRSS`, `VmHWM`.
    pub(crate) fn memory_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the agent runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel tells it");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Returns the processor time that the agent took so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the agent runs");
        // After the name, which may hold anything: utime and stime are the 12th and 13th, in hundredths of a second.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
