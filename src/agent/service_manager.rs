//! What the service manager that started the agent is told: ready, stopping, alive, and one line for people.
//!
//! The protocol is that of `sd_notify(3)`: lines in one datagram. It is written here and not taken from a crate, because
//! the crates read the environment by themselves, where only `config` does in this house.
//!
//! *Alive* means what it means at `/-/healthy` ([`crate::pulse`]): intake takes connections and works on requests, the
//! committer is not stuck with a commit, monitor and replay go round. When that no longer holds, nothing is said any
//! more, and the service manager's own watchdog ends and restarts the process. Nothing acknowledged is lost by that, as
//! by any other crash.
//!
//! A service manager that can't be told is a warning and no more: the agent does its work without it.

use std::ffi::OsStr;
use std::io;
#[cfg(unix)]
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::config::ServiceManager;
use crate::message::Server;
use crate::monitor::Availability;
use crate::monitor::connection::{Connection, ConnectionState};
use crate::printable;
use crate::pulse::Pulses;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{Backlog, Filter, StoreError, now_ms};

/// How often the line for people is looked after.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How often at most of all the time the backlog is counted for it, as one part in so many.
const STATUS_SHARE: u32 = 50;
/// How long the service manager may take to take a datagram.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// What is told, and where it is looked for.
pub(super) struct Teller {
    pub(super) manager: ServiceManager,
    pub(super) pulses: Arc<Pulses>,
    pub(super) slot: Arc<StoreSlot>,
    /// The server whose messages are told about.
    pub(super) server: Server,
    pub(super) connection: Arc<Connection>,
    /// How long stopping may take.
    pub(super) stopping_max: Duration,
    pub(super) shutdown: Shutdown,
}

impl Teller {
    /// Tells that the agent is ready, and goes on in a thread of its own until shutdown.
    ///
    /// To be called when the agent takes requests.
    /// Returns the thread, which ends soon after shutdown was requested: when that was told.
    pub(super) fn start(self) -> io::Result<Option<JoinHandle<()>>> {
        match Line::open(&self.manager.socket) {
            Err(error) => {
                let socket = self.manager.socket.to_string_lossy();
                warn!(target: "opik_offline", "the service manager at {socket} is not told how the agent is: {error}");
                Ok(None)
            }
            Ok(line) => {
                let telling = std::thread::Builder::new().name("service-manager".into());
                telling.spawn(move || self.run(line)).map(Some)
            }
        }
    }

    fn run(self, mut line: Line) {
        let mut shown = self.status();
        line.say(&format!("READY=1\nSTATUS={shown}\n"));
        let interval = self.manager.watchdog.map_or(STATUS_INTERVAL, |watchdog| (watchdog / 3).min(STATUS_INTERVAL));
        let mut next_status = Instant::now() + STATUS_INTERVAL;
        let mut was_alive = true;
        loop {
            if self.manager.watchdog.is_some() {
                match self.pulses.check() {
                    Ok(()) => line.say("WATCHDOG=1\n"),
                    Err(silence) if was_alive => {
                        error!(target: "opik_offline", "{silence}; the service manager may end and restart the agent")
                    }
                    Err(_) => {}
                }
                was_alive = self.pulses.check().is_ok();
            }
            let began = Instant::now();
            if began >= next_status {
                let status = self.status();
                if status != shown {
                    line.say(&format!("STATUS={status}\n"));
                    shown = status;
                }
                // With millions of messages counting takes its time, and delivering them is worth more.
                next_status = Instant::now() + STATUS_INTERVAL.max(began.elapsed() * STATUS_SHARE);
            }
            if self.shutdown.sleep(interval) {
                break;
            }
        }
        let extend = self.stopping_max.as_micros();
        line.say(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={extend}\nSTATUS=stopping; before: {shown}\n"));
    }

    fn status(&self) -> String {
        let backlog = self.slot.with(|store| store.backlog(&Filter::of_server(&self.server)));
        status_line(&self.connection.state(), &backlog, now_ms())
    }
}

/// Returns one line for people: what waits, since when, and whether the server is there.
fn status_line(connection: &ConnectionState, backlog: &Result<Backlog, Arc<StoreError>>, now_ms: i64) -> String {
    let server = match connection.availability {
        Availability::Unknown => "the server was not asked yet".to_owned(),
        Availability::Available => "the server is available".to_owned(),
        Availability::Unavailable => "the server is unavailable".to_owned(),
    };
    let waiting = match backlog {
        Err(error) => format!("nothing can be stored: {error}"),
        Ok(backlog) => {
            let oldest = backlog.oldest_accepted_at_ms.map_or(0, |oldest| now_ms.saturating_sub(oldest).max(0));
            let rejected = match backlog.rejected() {
                0 => String::new(),
                rejected => format!(", {rejected} rejected"),
            };
            match backlog.waiting() {
                0 => format!("nothing waits{rejected}"),
                waiting => format!("{waiting} waiting, the oldest for {} s{rejected}", oldest / 1000),
            }
        }
    };
    // One line, whatever an error says.
    printable::line(&format!("{waiting}; {server}")).into_owned()
}

/// The way to the service manager.
struct Line {
    #[cfg(unix)]
    socket: UnixDatagram,
    #[cfg(unix)]
    address: SocketAddr,
    has_failed: bool,
}

impl Line {
    #[cfg(unix)]
    fn open(name: &OsStr) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { socket, address: address(name)?, has_failed: false })
    }

    #[cfg(not(unix))]
    fn open(_name: &OsStr) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Says this. That it is not heard is told once; the next one may be.
    fn say(&mut self, text: &str) {
        #[cfg(unix)]
        let said = self.socket.send_to_addr(text.as_bytes(), &self.address).map(|_| ());
        #[cfg(not(unix))]
        let said: io::Result<()> = Err(io::Error::new(io::ErrorKind::Unsupported, text.to_owned()));
        if let Err(error) = said
            && !std::mem::replace(&mut self.has_failed, true)
        {
            warn!(target: "opik_offline", "the service manager can't be told how the agent is: {error}");
        }
    }
}

#[cfg(unix)]
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    use std::os::unix::ffi::OsStrExt;

    match name.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "neither an absolute path nor an abstract name")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::message::{MessageStatus, MessageType};
    use crate::store::BacklogGroup;

    fn connection(availability: Availability) -> ConnectionState {
        ConnectionState { availability, since: SystemTime::UNIX_EPOCH, reason: None }
    }

    fn backlog(groups: &[(MessageStatus, u64)]) -> Backlog {
        let group = |(status, messages): &(MessageStatus, u64)| BacklogGroup {
            status: *status,
            message_type: MessageType::CreateTrace,
            workspace: "default".into(),
            server: None,
            messages: *messages,
            items: *messages,
            body_bytes: 1,
        };
        Backlog {
            groups: groups.iter().map(group).collect(),
            oldest_accepted_at_ms: Some(1_000),
            rejected_by_answer: Vec::new(),
        }
    }

    #[test]
    fn the_line_says_what_waits_and_whether_the_server_is_there() {
        use MessageStatus::{Failed, Registered, Rejected};
        let read_only = Arc::new(StoreError::Unusable {
            at: "/store".into(),
            reason: "read\nSTOPPING=1\r\u{1b}[8m\u{202e}only".into(),
        });
        for (availability, read, expected) in [
            (Availability::Unknown, Ok(backlog(&[])), "nothing waits; the server was not asked yet"),
            (
                Availability::Unavailable,
                Ok(backlog(&[(Failed, 3), (Registered, 2)])),
                "5 waiting, the oldest for 9 s; the server is unavailable",
            ),
            (
                Availability::Available,
                Ok(backlog(&[(Rejected, 1)])),
                "nothing waits, 1 rejected; the server is available",
            ),
        ] {
            assert_eq!(status_line(&connection(availability), &read, 10_000), expected);
        }
        let line = status_line(&connection(Availability::Available), &Err(read_only), 10_000);
        assert!(line.starts_with("nothing can be stored: ") && !line.contains(printable::is_hazardous), "{line}");
    }

    /// Starts to tell a service manager about an agent of one part, which is silent for so long.
    #[cfg(unix)]
    fn teller(folder: &std::path::Path, silent_for: impl Fn() -> Duration + Send + Sync + 'static) -> Teller {
        let limits =
            crate::store::Limits { size_max: u64::MAX, disk_reserve: 0, when_full: crate::store::WhenFull::Refuse };
        let pings = crate::monitor::MonitorSettings { ping_interval: Duration::ZERO, check_timeout: Duration::ZERO };
        let silence_max = Duration::from_secs(60);
        Teller {
            manager: ServiceManager {
                socket: folder.join("notify").into_os_string(),
                watchdog: Some(Duration::from_millis(3)),
            },
            pulses: Arc::new(Pulses::of(vec![crate::pulse::Pulse {
                name: "committer",
                silence_max,
                silent_for: Box::new(silent_for),
            }])),
            slot: Arc::new(StoreSlot::at(&folder.join("store.db"), limits)),
            server: Server::new("http://127.0.0.1:5173/api"),
            connection: Arc::new(Connection::new(pings)),
            stopping_max: Duration::from_secs(20),
            shutdown: Shutdown::new(),
        }
    }

    #[cfg(unix)]
    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).expect("the service manager is told something");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[cfg(unix)]
    #[test]
    fn the_watchdog_is_fed_while_every_part_is_alive() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let teller = teller(folder.path(), || Duration::from_secs(60));
        let shutdown = teller.shutdown.clone();
        let telling = teller.start().expect("a thread").expect("a service manager");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=nothing waits; the server was not asked yet\n");
        for _ in 0..3 {
            assert_eq!(heard(&socket), "WATCHDOG=1\n", "a healthy agent would be ended");
        }
        shutdown.request();
        let last = std::iter::repeat_with(|| heard(&socket)).find(|text| text != "WATCHDOG=1\n").expect("a last word");
        assert!(last.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000\nSTATUS=stopping"), "{last}");
        telling.join().expect("no panic");
    }

    #[cfg(unix)]
    #[test]
    fn a_stuck_part_lets_the_watchdog_starve() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        let (looked, looks) = std::sync::mpsc::channel();
        let teller = teller(folder.path(), move || {
            // Nobody listens any more once the test has seen enough.
            let _ = looked.send(());
            Duration::from_secs(61)
        });
        let shutdown = teller.shutdown.clone();
        let telling = teller.start().expect("a thread").expect("a service manager");
        for _ in 0..10 {
            looks.recv().expect("the parts are looked after");
        }
        shutdown.request();
        telling.join().expect("no panic");
        assert!(heard(&socket).starts_with("READY=1\n"));
        assert!(
            heard(&socket).starts_with("STOPPING=1\n"),
            "an agent that commits nothing any more is never restarted"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_a_path_or_an_abstract_name() {
        assert!(address(OsStr::new("/run/systemd/notify")).is_ok());
        #[cfg(target_os = "linux")]
        assert!(address(OsStr::new("@/org/freedesktop/systemd1/notify")).is_ok());
        assert!(address(OsStr::new("notify")).is_err());
        assert!(address(OsStr::new("vsock:2:1")).is_err());
    }
}
