//! Notifies the service manager that started the agent: ready, alive, stopping, and a status line for people.
//!
//! The protocol is `sd_notify(3)`: lines in one datagram. It is implemented here because the crates for it read the
//! environment, which only `config` may do.
//!
//! *Alive* means the same as at `/-/healthy` ([`crate::liveness`]): intake accepts connections and works on requests,
//! the committer is not stuck in a commit, and the loops of monitor and replay turn. As soon as a component has
//! stalled, the heartbeat stops, and the service manager's watchdog kills and restarts the process. No acknowledged
//! message is lost by that, as by any other crash.
//!
//! If the service manager can't be notified, the agent logs a warning and works without it.

use std::ffi::OsStr;
use std::io;
#[cfg(unix)]
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::config::ServiceManager;
use crate::liveness::Liveness;
use crate::message::Server;
use crate::monitor::Availability;
use crate::monitor::connection::{Connection, ConnectionState};
use crate::printable;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{Backlog, Filter, StoreError, now_ms};

/// How often the status line is updated.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// Counting the backlog for the status line takes at most one part in this many of the time.
const STATUS_SHARE: u32 = 50;
/// How long sending a datagram may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends notifications, and reads what they report.
pub(super) struct Notifier {
    pub(super) manager: ServiceManager,
    pub(super) liveness: Arc<Liveness>,
    pub(super) slot: Arc<StoreSlot>,
    /// The server whose backlog is reported.
    pub(super) server: Server,
    pub(super) connection: Arc<Connection>,
    /// How long stopping may take.
    pub(super) stopping_max: Duration,
    pub(super) shutdown: Shutdown,
}

impl Notifier {
    /// Sends that the agent is ready, then continues in a thread of its own until shutdown.
    ///
    /// Call it once the agent accepts requests. Returns the thread; it ends after it has sent that the agent is
    /// stopping, soon after the request to stop.
    pub(super) fn start(self) -> io::Result<Option<JoinHandle<()>>> {
        match NotifySocket::open(&self.manager.socket) {
            Err(error) => {
                let socket = self.manager.socket.to_string_lossy();
                warn!(target: "opik_offline", "cannot notify the service manager at {socket}: {error}");
                Ok(None)
            }
            Ok(socket) => {
                let notifying = std::thread::Builder::new().name("service-manager".into());
                notifying.spawn(move || self.run(socket)).map(Some)
            }
        }
    }

    fn run(self, mut socket: NotifySocket) {
        let mut shown = self.status();
        socket.send(&format!("READY=1\nSTATUS={shown}\n"));
        let interval = self.manager.watchdog.map_or(STATUS_INTERVAL, |watchdog| (watchdog / 3).min(STATUS_INTERVAL));
        let mut next_status = Instant::now() + STATUS_INTERVAL;
        let mut was_alive = true;
        loop {
            if self.manager.watchdog.is_some() {
                match self.liveness.check() {
                    Ok(()) => socket.send("WATCHDOG=1\n"),
                    Err(stalled) if was_alive => {
                        error!(target: "opik_offline", "{stalled}; the service manager may end and restart the agent")
                    }
                    Err(_) => {}
                }
                was_alive = self.liveness.check().is_ok();
            }
            let began = Instant::now();
            if began >= next_status {
                let status = self.status();
                if status != shown {
                    socket.send(&format!("STATUS={status}\n"));
                    shown = status;
                }
                // Counting millions of messages takes long, and delivering them is more important.
                next_status = Instant::now() + STATUS_INTERVAL.max(began.elapsed() * STATUS_SHARE);
            }
            if self.shutdown.sleep(interval) {
                break;
            }
        }
        let extend = self.stopping_max.as_micros();
        socket.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={extend}\nSTATUS=stopping; before: {shown}\n"));
    }

    fn status(&self) -> String {
        let backlog = self.slot.with(|store| store.backlog(&Filter::of_server(&self.server)));
        status_line(&self.connection.state(), &backlog, now_ms())
    }
}

/// Returns the status line: the size and age of the backlog, and whether the server is available.
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
    // The text of an error may have several lines.
    printable::line(&format!("{waiting}; {server}")).into_owned()
}

/// The socket to the service manager.
struct NotifySocket {
    #[cfg(unix)]
    socket: UnixDatagram,
    #[cfg(unix)]
    address: SocketAddr,
    has_failed: bool,
}

impl NotifySocket {
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

    /// Sends a notification. The first failure is logged; later ones may succeed.
    fn send(&mut self, text: &str) {
        #[cfg(unix)]
        let sent = self.socket.send_to_addr(text.as_bytes(), &self.address).map(|_| ());
        #[cfg(not(unix))]
        let sent: io::Result<()> = Err(io::Error::new(io::ErrorKind::Unsupported, text.to_owned()));
        if let Err(error) = sent
            && !std::mem::replace(&mut self.has_failed, true)
        {
            warn!(target: "opik_offline", "cannot notify the service manager: {error}");
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
    fn the_status_line_shows_the_backlog_and_the_server() {
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

    /// Returns the notifier of an agent with one component, whose last heartbeat is this old.
    #[cfg(unix)]
    fn notifier(folder: &std::path::Path, silent_for: impl Fn() -> Duration + Send + Sync + 'static) -> Notifier {
        let limits =
            crate::store::Limits { size_max: u64::MAX, disk_reserve: 0, when_full: crate::store::WhenFull::Refuse };
        let pings = crate::monitor::MonitorSettings {
            ping_interval: Duration::ZERO,
            is_interval_set: true,
            check_timeout: Duration::ZERO,
        };
        let silence_max = Duration::from_secs(60);
        Notifier {
            manager: ServiceManager {
                socket: folder.join("notify").into_os_string(),
                watchdog: Some(Duration::from_millis(3)),
            },
            liveness: Arc::new(Liveness::of(vec![crate::liveness::LivenessCheck {
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
        let length = socket.recv(&mut bytes).expect("a notification");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[cfg(unix)]
    #[test]
    fn the_watchdog_gets_heartbeats_while_every_component_is_alive() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let notifier = notifier(folder.path(), || Duration::from_secs(60));
        let shutdown = notifier.shutdown.clone();
        let notifying = notifier.start().expect("a thread").expect("a service manager");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=nothing waits; the server was not asked yet\n");
        for _ in 0..3 {
            assert_eq!(heard(&socket), "WATCHDOG=1\n", "a healthy agent would be killed");
        }
        shutdown.request();
        let last =
            std::iter::repeat_with(|| heard(&socket)).find(|text| text != "WATCHDOG=1\n").expect("a last notification");
        assert!(last.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000\nSTATUS=stopping"), "{last}");
        notifying.join().expect("no panic");
    }

    #[cfg(unix)]
    #[test]
    fn a_stalled_component_stops_the_heartbeats_to_the_watchdog() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        let (checked, checks) = std::sync::mpsc::channel();
        let notifier = notifier(folder.path(), move || {
            // The receiver is dropped once the test has seen enough.
            let _ = checked.send(());
            Duration::from_secs(61)
        });
        let shutdown = notifier.shutdown.clone();
        let notifying = notifier.start().expect("a thread").expect("a service manager");
        for _ in 0..10 {
            checks.recv().expect("liveness is checked");
        }
        shutdown.request();
        notifying.join().expect("no panic");
        assert!(heard(&socket).starts_with("READY=1\n"));
        assert!(heard(&socket).starts_with("STOPPING=1\n"), "an agent whose committer has stalled is never restarted");
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
