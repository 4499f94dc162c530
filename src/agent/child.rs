//! The wrapped command of `agent -- COMMAND`: what it finds in its environment, which signals reach it, how it ended.
//!
//! # Environment
//!
//! The command keeps the whole environment, but for what leads its client to the agent:
//!
//! - `OPIK_URL_OVERRIDE` names the agent. Whatever it named before is the agent's own server by now.
//! - `OTEL_EXPORTER_OTLP_ENDPOINT` does, too. One that leads elsewhere stays as it is: it is not Opik's, and what goes there
//!   (metrics, logs, another backend's traces) must go on doing so. So does everything when the exporters are told to
//!   speak gRPC, which neither Opik nor the agent understands.
//! - `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is changed only where it is set and leads to the Opik server. It wins over the
//!   other one, so it must not go past the agent; unset, the other one says the same already.
//! - `NO_PROXY` gets the agent's address where a proxy is configured, which could not reach it; and `_OPIK_HTTP_PROXY`,
//!   which knows no exceptions, is taken out. The agent itself goes on using the proxy.
//!
//! # Signals
//!
//! The command stays in the agent's process group, so that it is in the foreground of a terminal as without the agent. What
//! is typed there (Ctrl-C, Ctrl-\) or follows from the terminal's end therefore reaches it without us, and is not sent a
//! second time; the system, not a process, is the sender of these. Whatever another process sends to the agent is passed
//! on, except what the command itself sent to its whole group.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child as Process, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use thiserror::Error;

use crate::config::{Environment, ServerUrl};

const URL: &str = "OPIK_URL_OVERRIDE";
const OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const OTLP_TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// What makes an OpenTelemetry exporter speak gRPC.
const OTLP_PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// Where Opik takes OTLP, below its base URL (protocol dossier, section d); exporters add `/v1/traces` to it.
const OTLP_PATH: &str = "/v1/private/otel";
/// The variables that lead a plain HTTP connection through a proxy.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// What is encoded in a segment of a path: everything that any program might take for something else.
const IN_A_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is different in the wrapped command's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Variables with their new values. A value may hold the intake token.
    pub set: Vec<(&'static str, String)>,
    /// Variables that are taken out.
    pub unset: Vec<&'static str>,
    /// Variables of OpenTelemetry that lead elsewhere and are left.
    pub left: Vec<&'static str>,
}

impl Changes {
    /// Works out what leads the command's clients to the agent at `intake`. The module's head says why.
    pub fn leading_to(
        intake: SocketAddr,
        token: Option<&str>,
        upstream: &ServerUrl,
        environment: &dyn Environment,
    ) -> Self {
        let variable = |name: &str| environment.variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let host = reachable(intake);
        let prefix =
            token.map_or(String::new(), |token| format!("/-/token/{}", utf8_percent_encode(token, IN_A_SEGMENT)));
        let base = format!("http://{host}{prefix}/api");
        let mut changes = Self { set: vec![(URL, base.clone())], ..Self::default() };

        let own: Vec<ServerUrl> = text(URL).and_then(|url| url.parse().ok()).into_iter().collect();
        let is_opiks = |url: &str| {
            let Ok(url) = url.parse::<ServerUrl>() else { return false };
            let servers = own.iter().chain([upstream]);
            url.path().contains(OTLP_PATH)
                && servers.into_iter().any(|server| server.host() == url.host() && server.port() == url.port())
        };
        let speaks_grpc = OTLP_PROTOCOLS.iter().find_map(|name| text(name)).is_some_and(|name| name.trim() == "grpc");
        for (name, value) in [
            (OTLP_ENDPOINT, format!("{base}{OTLP_PATH}")),
            (OTLP_TRACES_ENDPOINT, format!("{base}{OTLP_PATH}/v1/traces")),
        ] {
            match text(name) {
                Some(url) if is_opiks(&url) => changes.set.push((name, value)),
                Some(_) => changes.left.push(name),
                None if name == OTLP_ENDPOINT && !speaks_grpc => changes.set.push((name, value)),
                None => {}
            }
        }

        if PROXIES.iter().any(|name| variable(name).is_some()) {
            let name = host.rsplit_once(':').map_or(&*host, |(name, _)| name);
            let name = name.trim_start_matches('[').trim_end_matches(']');
            let known = text("no_proxy").or_else(|| text("NO_PROXY"));
            let list = known.map_or(name.to_owned(), |known| format!("{known},{name}"));
            // Some programs read the one, some the other.
            changes.set.extend([("no_proxy", list.clone()), ("NO_PROXY", list)]);
        }
        if variable("_OPIK_HTTP_PROXY").is_some() {
            changes.unset.push("_OPIK_HTTP_PROXY");
        }
        changes
    }
}

/// Returns the host and port under which a program on this machine reaches the intake.
fn reachable(intake: SocketAddr) -> String {
    let ip = match intake.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, intake.port()).to_string()
}

/// Says whether a signal that the agent got is to be passed on to the command; the module's head says why.
///
/// `typed` are the signals that a terminal sends. `sender` is `None` for the system itself.
pub fn is_passed_on(signal: i32, typed: &[i32], sender: Option<i32>, command: i32) -> bool {
    match sender {
        None => !typed.contains(&signal),
        Some(sender) => sender != command,
    }
}

/// Why a command could not be started.
#[derive(Debug, Error)]
pub enum ChildError {
    /// There is no such program.
    #[error("cannot start {program}: no such program")]
    NotFound {
        /// As it was given.
        program: String,
    },
    /// There is one, and the system does not run it.
    #[error("cannot start {program}: {source}")]
    NotExecutable {
        /// As it was given.
        program: String,
        /// What the system says.
        source: io::Error,
    },
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// A command that was started.
pub struct Child {
    pid: Pid,
    /// `None` once it has ended and its process id may be somebody else's.
    process: Mutex<Option<Process>>,
}

impl Child {
    /// Starts a command with the agent's standard input and output, in its process group.
    ///
    /// # Errors
    ///
    /// [`ChildError`]; nothing was started.
    pub fn start(program: &OsString, arguments: &[OsString], changes: &Changes) -> Result<Self, ChildError> {
        let mut command = Command::new(program);
        command.args(arguments);
        command.envs(changes.set.iter().map(|(name, value)| (name, value)));
        for name in &changes.unset {
            command.env_remove(name);
        }
        let process = command.spawn().map_err(|source| {
            let program = program.to_string_lossy().into_owned();
            match source.kind() {
                io::ErrorKind::NotFound => ChildError::NotFound { program },
                _ => ChildError::NotExecutable { program, source },
            }
        })?;
        Ok(Self { pid: Pid::from_child(&process), process: Mutex::new(Some(process)) })
    }

    /// Returns its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Sends it a signal; returns whether it was still there to get it.
    pub fn signal(&self, signal: i32) -> bool {
        let process = self.lock();
        let Some(signal) = Signal::from_named_raw(signal).filter(|_| process.is_some()) else { return false };
        kill_process(self.pid, signal).is_ok()
    }

    /// Waits until it ends, whatever the processes that it leaves behind do. To be called once.
    ///
    /// # Errors
    ///
    /// When the system does not tell how it ended.
    pub fn wait(&self) -> io::Result<Ended> {
        // It stays a zombie until it can't be signalled any more: its process id is nobody else's so long.
        while let Err(error) = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let Some(mut process) = self.lock().take() else { return Err(io::Error::other("waited for twice")) };
        let status = process.wait()?;
        Ok(status.code().map_or_else(|| Ended::Killed(status.signal().unwrap_or_default()), Ended::Exited))
    }

    /// A panic elsewhere can't leave it half taken.
    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    struct Variables(BTreeMap<String, String>);

    impl Environment for Variables {
        fn variable(&self, name: &str) -> Option<OsString> {
            self.0.get(name).map(OsString::from)
        }

        fn home_dir(&self) -> Option<PathBuf> {
            None
        }

        fn config_dir(&self) -> Option<PathBuf> {
            None
        }

        fn data_dir(&self) -> Option<PathBuf> {
            None
        }
    }

    const OPIK: &str = "https://opik.example/api";

    fn changes(variables: &[(&str, &str)]) -> Changes {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = Variables(variables.collect());
        let intake = "127.0.0.1:4000".parse().expect("an address");
        Changes::leading_to(intake, None, &OPIK.parse().expect("a URL"), &environment)
    }

    fn set<'a>(changes: &'a Changes, name: &str) -> Option<&'a str> {
        changes.set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_command_is_led_to_the_agent() {
        let plain = changes(&[]);
        assert_eq!(
            plain.set,
            [
                (URL, "http://127.0.0.1:4000/api".to_owned()),
                (OTLP_ENDPOINT, "http://127.0.0.1:4000/api/v1/private/otel".to_owned())
            ]
        );
        assert_eq!((plain.unset, plain.left), (vec![], vec![]));
        for (intake, token, expected) in [
            ("0.0.0.0:80", Some("secret"), "http://127.0.0.1:80/-/token/secret/api"),
            ("127.0.0.1:80", Some("q8/Xk+0a=="), "http://127.0.0.1:80/-/token/q8%2FXk%2B0a%3D%3D/api"),
            ("127.0.0.1:80", Some("50%-_.~?#"), "http://127.0.0.1:80/-/token/50%25-_.~%3F%23/api"),
            ("[::]:80", None, "http://[::1]:80/api"),
            ("10.0.0.1:80", None, "http://10.0.0.1:80/api"),
        ] {
            let (intake, upstream) = (intake.parse().expect("an address"), OPIK.parse().expect("a URL"));
            let changes = Changes::leading_to(intake, token, &upstream, &Variables(BTreeMap::new()));
            assert_eq!(set(&changes, URL), Some(expected));
        }
    }

    #[test]
    fn an_exporter_is_led_to_the_agent_when_it_would_send_to_opik_and_only_then() {
        let opiks = [
            (OTLP_ENDPOINT, "https://opik.example/api/v1/private/otel"),
            (OTLP_TRACES_ENDPOINT, "https://opik.example/api/v1/private/otel/v1/traces"),
        ];
        let all = changes(&opiks);
        assert_eq!(set(&all, OTLP_ENDPOINT), Some("http://127.0.0.1:4000/api/v1/private/otel"));
        assert_eq!(set(&all, OTLP_TRACES_ENDPOINT), Some("http://127.0.0.1:4000/api/v1/private/otel/v1/traces"));

        let collector = changes(&[(OTLP_ENDPOINT, "http://collector:4318")]);
        assert_eq!((set(&collector, OTLP_ENDPOINT), &*collector.left), (None, &[OTLP_ENDPOINT][..]));
        let another = changes(&[(OTLP_ENDPOINT, "https://staging.example/api/v1/private/otel")]);
        assert_eq!(set(&another, OTLP_ENDPOINT), None, "that is another Opik");
        let mixed = changes(&[(OTLP_ENDPOINT, "http://collector:4318"), opiks[1]]);
        assert_eq!(mixed.left, [OTLP_ENDPOINT]);
        assert!(set(&mixed, OTLP_TRACES_ENDPOINT).is_some());

        // The environment of another agent.
        let through =
            [(URL, "http://127.0.0.1:6745/api"), (OTLP_ENDPOINT, "http://127.0.0.1:6745/api/v1/private/otel")];
        assert_eq!(set(&changes(&through), OTLP_ENDPOINT), Some("http://127.0.0.1:4000/api/v1/private/otel"));

        for name in OTLP_PROTOCOLS {
            assert_eq!(set(&changes(&[(name, "grpc")]), OTLP_ENDPOINT), None);
            assert!(set(&changes(&[(name, "http/protobuf")]), OTLP_ENDPOINT).is_some());
        }
    }

    #[test]
    fn no_proxy_stands_between_a_command_and_the_agent() {
        let proxied = changes(&[("HTTP_PROXY", "http://proxy:3128"), ("NO_PROXY", "intranet")]);
        for name in ["no_proxy", "NO_PROXY"] {
            assert_eq!(set(&proxied, name), Some("intranet,127.0.0.1"));
        }
        assert_eq!(set(&changes(&[("all_proxy", "http://proxy:3128")]), "NO_PROXY"), Some("127.0.0.1"));
        // Nothing of this machine goes through a proxy for https alone.
        assert_eq!(set(&changes(&[("HTTPS_PROXY", "http://proxy:3128")]), "NO_PROXY"), None);
        assert_eq!(changes(&[("_OPIK_HTTP_PROXY", "http://proxy:3128")]).unset, ["_OPIK_HTTP_PROXY"]);
    }

    #[test]
    fn what_is_typed_reaches_a_command_once_and_what_is_sent_reaches_it_too() {
        let (interrupt, terminate, typed) = (2, 15, [2]);
        for (signal, sender, expected) in [
            (interrupt, None, false),
            (interrupt, Some(7), true),
            // From outside the container.
            (interrupt, Some(0), true),
            (interrupt, Some(100), false),
            (terminate, None, true),
            (terminate, Some(7), true),
            (terminate, Some(100), false),
        ] {
            assert_eq!(is_passed_on(signal, &typed, sender, 100), expected, "{signal} {sender:?}");
        }
    }

    #[test]
    fn a_command_ends_as_it_ended() {
        let start = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            Child::start(&"sh".into(), &arguments, &Changes::default()).expect("there is a shell")
        };
        let child = start(&["-c", "exit 7"]);
        assert_eq!(child.wait().expect("it ends"), Ended::Exited(7));
        assert!(!child.signal(15), "its process id may be somebody else's by now");
        let child = start(&["-c", "while :; do sleep 1; done"]);
        assert!(child.signal(15));
        assert_eq!(child.wait().expect("it ends"), Ended::Killed(15));
        let failed = |program: &str| Child::start(&program.into(), &[], &Changes::default()).err();
        assert!(matches!(failed("/no/such/program"), Some(ChildError::NotFound { .. })));
        assert!(matches!(failed("/"), Some(ChildError::NotExecutable { .. })));
    }
}
