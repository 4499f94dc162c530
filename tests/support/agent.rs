//! The agent as a real process, in a home of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::fake_opik::FakeOpik;
use super::process::{Output, Written, listening_port, run};
use super::{PATIENCE, reserve_port, tempdir, wait_until};

/// The binary under test, or another build of it that the tests are to run against: what an earlier version did.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("OPIK_OFFLINE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_opik-offline").into()).into()
}

/// A home directory that no other test and no user shares, and the environment that goes with it.
pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: tempdir() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn db(&self) -> PathBuf {
        self.path().join("opik_messages.db")
    }

    /// Returns a command that inherits nothing but the search path.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.path()).current_dir(self.path());
        for (name, folder) in [("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data"), ("XDG_STATE_HOME", "state")] {
            command.env(name, self.path().join(folder));
        }
        // Files that other tests leave in the machine's own are not this home's.
        command.env("TMPDIR", self.path());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs the command line tool, with `args` as they are.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        run(self.command(program()).args(args))
    }
}

/// How an agent is started.
pub(crate) struct AgentBuilder {
    home: Home,
    program: PathBuf,
    upstream: String,
    port: u16,
    /// Whether the store's file is named on the command line.
    names_db: bool,
    /// A command that starts the one that follows it, and leaves it its process.
    within: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl AgentBuilder {
    #[must_use]
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes the connection monitor look often, so that a test need not wait for the default ten seconds.
    #[must_use]
    pub(crate) fn impatient(self) -> Self {
        self.env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.2").env("OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", "1")
    }

    /// Listens on this port instead of any free one.
    #[must_use]
    pub(crate) fn on_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Leaves it to the environment where the store is.
    #[must_use]
    pub(crate) fn without_db(self) -> Self {
        Self { names_db: false, ..self }
    }

    /// Starts the agent and its other commands by this one, which becomes the command that it is given.
    #[must_use]
    pub(crate) fn within(mut self, command: &[String]) -> Self {
        self.within = command.to_vec();
        self
    }

    /// Runs this build instead of the one under test.
    #[must_use]
    pub(crate) fn program(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    #[must_use]
    pub(crate) fn home(mut self, home: Home) -> Self {
        self.home = home;
        self
    }

    /// Starts the agent and waits until it listens.
    #[track_caller]
    pub(crate) fn start(self) -> Agent {
        let port = self.port;
        let mut agent = Agent { setup: self, child: None, stderr: Written::default(), port, reservation: None };
        agent.launch();
        agent
    }

    /// Runs an agent that is expected to refuse to start, and returns how it ended.
    pub(crate) fn refused(self) -> Output {
        run(&mut self.command(0))
    }

    /// Returns a command of the binary, without arguments.
    fn binary(&self) -> Command {
        let Some((first, others)) = self.within.split_first() else { return self.home.command(&self.program) };
        let mut command = self.home.command(first);
        command.args(others).arg(&self.program);
        command
    }

    fn command(&self, port: u16) -> Command {
        let mut command = self.binary();
        command.args(["agent", "--listen", &format!("127.0.0.1:{port}"), "--upstream", &self.upstream]);
        if self.names_db {
            command.arg("--db").arg(self.home.db());
        }
        command.args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

pub(crate) struct Agent {
    setup: AgentBuilder,
    child: Option<Child>,
    stderr: Written,
    port: u16,
    /// Keeps the port ours while no agent listens on it.
    reservation: Option<tokio::net::TcpSocket>,
}

impl Agent {
    /// Prepares an agent in front of the server at this base URL.
    pub(crate) fn builder(upstream: &str) -> AgentBuilder {
        AgentBuilder {
            home: Home::new(),
            program: program(),
            upstream: upstream.to_owned(),
            port: 0,
            names_db: true,
            within: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Starts an agent in front of `server` that looks for it often.
    #[track_caller]
    pub(crate) fn start(server: &FakeOpik) -> Self {
        Self::builder(&server.url()).impatient().start()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the base URL for clients: `http://127.0.0.1:PORT/api`.
    pub(crate) fn url(&self) -> String {
        format!("{}/api", self.origin())
    }

    /// Returns the URL without a path: `http://127.0.0.1:PORT`.
    pub(crate) fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn home(&self) -> &Home {
        &self.setup.home
    }

    /// Returns the path of its store.
    pub(crate) fn db(&self) -> PathBuf {
        let AgentBuilder { names_db, args, env, .. } = &self.setup;
        if *names_db {
            return self.home().db();
        }
        let flag = args.iter().position(|arg| arg == "--db").and_then(|at| args.get(at + 1));
        let variable = || env.iter().rfind(|(name, _)| name == "OPIK_OFFLINE_DB").map(|(_, value)| value);
        flag.or_else(variable).map_or_else(|| self.home().db(), PathBuf::from)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// Returns what the agent has written to standard error so far, over all its starts.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Runs a subcommand on this agent's store and server.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        let db = self.db();
        let mut command = self.setup.binary();
        run(command.args(args).arg("--db").arg(db).args(["--upstream", &self.setup.upstream]))
    }

    /// Returns how many messages still have to reach the server.
    #[track_caller]
    pub(crate) fn backlog(&self) -> u64 {
        let output = self.cli(&["status", "--format", "json"]);
        let status = output.json();
        status["backlog"]["messages"].as_u64().unwrap_or_else(|| panic!("no backlog.messages in {status}"))
    }

    #[track_caller]
    pub(crate) fn wait_until_delivered(&self) {
        wait_until("the agent's backlog is empty", PATIENCE, || self.backlog() == 0);
    }

    /// Kills the agent as a power cut would, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Asks the agent to stop (SIGTERM) and returns how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Asks the agent to stop as Ctrl-C does (SIGINT) and returns how it ended.
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.wait()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the agent runs");
        kill_process(Pid::from_child(child), signal).expect("our own child can be signalled");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("a child can be waited for").is_none())
    }

    /// Waits until the agent has ended.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the agent runs");
        let mut status = None;
        wait_until("the agent ends", PATIENCE, || {
            status = child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        self.reservation = reserve_port(self.port);
        status.expect("it has ended")
    }

    /// Starts the agent again after it ended, on the same port and the same store.
    #[track_caller]
    pub(crate) fn restart_on_same_port(&mut self) {
        assert!(self.child.is_none(), "end the agent before it is started again");
        self.reservation = None;
        self.launch();
    }

    /// Starts the agent again after it ended, by this command, on the same store.
    #[track_caller]
    pub(crate) fn again_within(mut self, command: Vec<String>) -> Self {
        self.setup.within = command;
        self.restart_on_same_port();
        self
    }

    #[track_caller]
    fn launch(&mut self) {
        let mut command = self.setup.command(self.port);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the agent can be started");
        let start = self.stderr().len();
        let mut reading = Some(self.stderr.follow(child.stderr.take().expect("it is piped")));
        self.child = Some(child);
        wait_until("the agent says where it listens", PATIENCE, || {
            let running = self.is_running();
            if let Some(reading) = reading.take_if(|_| !running) {
                reading.join().expect("the reading thread did not panic");
            }
            let written = self.stderr();
            let port = listening_port(&written[start..]);
            let status = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(port.is_some() || running, "the agent ended before it listened, {status:?}; it wrote:\n{written}");
            self.port = port.unwrap_or(self.port);
            port.is_some()
        });
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it has already ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- standard error of the agent ---\n{}---", self.stderr());
        }
    }
}
