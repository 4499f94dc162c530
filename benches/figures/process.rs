//! Processes that are measured, and servers that they are measured beside.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// A process with an address; stopped when dropped.
pub(crate) struct Process {
    child: Child,
    pub address: SocketAddr,
}

impl Process {
    /// Starts a process, which may not listen yet.
    pub(crate) fn spawn(mut command: Command, address: SocketAddr) -> Self {
        let child = command.spawn().unwrap_or_else(|why| panic!("{command:?} does not start: {why}"));
        Self { child, address }
    }

    /// Starts a process and waits until it listens.
    pub(crate) fn start(command: Command, address: SocketAddr) -> Self {
        let process = Self::spawn(command, address);
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "nobody listens at {address}");
            std::thread::sleep(Duration::from_millis(1));
        }
        process
    }

    /// Starts one of the servers in this program, which must run apart from the thread of the load generator.
    pub(crate) fn start_own(home: &Path, server: &str, args: &[&str]) -> Self {
        let address = free_address();
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(server).arg(address.to_string()).args(args).current_dir(home).stdin(Stdio::null());
        Self::start(command, address)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// Makes a server in this program end with the process that measures.
pub(crate) fn end_with_parent() {
    set_parent_process_death_signal(Some(Signal::KILL)).expect("the kernel takes it");
}

/// Returns an address on which nobody listens.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port")
}
