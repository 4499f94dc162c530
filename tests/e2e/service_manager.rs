//! The agent under a service manager: the notifications that systemd gets from the real process.

use std::os::unix::net::UnixDatagram;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::{PATIENCE, uuid7};
use crate::writes::create;

/// A service manager that listens in the home of an agent.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    const SOCKET: &str = "notify";

    fn new(home: &Home) -> Self {
        let socket = UnixDatagram::bind(home.path().join(Self::SOCKET)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    fn name(home: &Home) -> String {
        home.path().join(Self::SOCKET).to_str().unwrap().to_owned()
    }

    fn hears(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("the agent tells its service manager something");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// Listens until a message has this in it.
    fn hears_of(&self, what: &str) -> String {
        std::iter::repeat_with(|| self.hears()).find(|heard| heard.contains(what)).unwrap()
    }
}

#[test]
fn systemd_is_told_ready_alive_what_waits_and_stopping() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    let manager = Manager::new(&home);
    let socket = Manager::name(&home);
    let mut agent = Agent::builder(&server.url())
        .impatient()
        .home(home)
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "90000")
        .start();
    let first = manager.hears();
    assert!(first.starts_with("READY=1\nSTATUS=nothing waits; "), "{first}");
    assert_eq!(Client::new(&agent.origin()).get("/-/healthy").status, 200, "ready was told too early");
    manager.hears_of("WATCHDOG=1");
    Client::new(&agent.url()).send(&create(&uuid7())).unwrap();
    let line = manager.hears_of("STATUS=1 waiting");
    assert!(line.ends_with("; the server is unavailable\n"), "{line}");
    manager.hears_of("WATCHDOG=1");
    assert!(agent.terminate().success());
    let last = manager.hears_of("STOPPING=1");
    assert!(last.contains("EXTEND_TIMEOUT_USEC="), "{last}");
    manager.socket.set_nonblocking(true).unwrap();
    assert!(manager.socket.recv(&mut [0; 64]).is_err(), "something was said after the last word");
}

#[test]
fn a_service_manager_that_is_not_there_stops_nobody() {
    let server = FakeOpik::start_new();
    for socket in ["/nowhere/notify", "vsock:2:1"] {
        let mut agent = Agent::builder(&server.url()).impatient().env("NOTIFY_SOCKET", socket).start();
        assert_eq!(Client::new(&agent.url()).send(&create(&uuid7())).unwrap().status, 201);
        assert!(agent.terminate().success());
        assert!(agent.stderr().contains("the service manager"), "a missing service manager is not reported");
    }
}

#[test]
fn a_watchdog_without_a_time_is_refused_with_its_source() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).env("NOTIFY_SOCKET", "/nowhere/notify").env("WATCHDOG_USEC", "soon");
    let refused = agent.refused();
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("environment WATCHDOG_USEC"), "{}", refused.stderr);
}
