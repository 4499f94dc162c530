//! The scenarios that every client goes through, and what has to be the same in all of them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::compare::{Scrubber, difference, state};
use crate::links;
use crate::reads;
use crate::support::agent::{Agent, Home, program};
use crate::support::fake_opik::FakeOpik;

/// How long one run of a client may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// A client prints this after the first half of its work, and maybe once more at its end; it continues after a line on
/// its standard input.
const HALFWAY: &str = "halfway";

/// Which address a client is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// `OPIK_URL_OVERRIDE` with a slash at its end, as `opik configure` writes it.
    OpikUrl,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    OtlpEndpoint,
    /// `OPIK_URL`, of Opik's MCP server.
    McpUrl,
}

/// A program that uses a client library, or the client itself.
pub(crate) struct Client {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(&'static str, String)>,
    pub reads: Reads,
    /// Members of what it sends that differ from run to run.
    pub volatile: &'static [&'static str],
    /// Lines that it prints only sometimes, even without an agent.
    pub chatter: &'static [&'static str],
    /// Whether the server knows something before the client comes.
    pub seeded: bool,
}

impl Client {
    /// A script in `apps/`, run by this interpreter.
    pub(crate) fn script(interpreter: PathBuf, name: &str) -> Self {
        let script = crate::install::here(&format!("apps/{name}")).display().to_string();
        Self::program(interpreter, vec![script])
    }

    /// A program that is given its server as the Opik SDKs are.
    pub(crate) fn program(program: PathBuf, args: Vec<String>) -> Self {
        Self { program, args, env: Vec::new(), reads: Reads::OpikUrl, volatile: &[], chatter: &[], seeded: false }
    }

    #[must_use]
    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    #[must_use]
    pub(crate) fn volatile(self, volatile: &'static [&'static str]) -> Self {
        Self { volatile, ..self }
    }

    /// Lets the server know something before the client comes.
    #[must_use]
    pub(crate) fn seeded(self) -> Self {
        Self { seeded: true, ..self }
    }

    #[must_use]
    pub(crate) fn reading(self, reads: Reads) -> Self {
        Self { reads, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Without an agent.
    Direct,
    /// With a standing agent, and the server is there.
    Online,
    /// The server is away for as long as the client runs.
    Outage,
    /// The server goes away in the middle, and the agent is killed before the server comes back.
    Middle,
    /// The agent runs the client, and the server is there.
    Wrapped,
    /// The agent runs the client, and the server comes back only after both have ended.
    WrappedOutage,
}

impl Scenario {
    /// The results that must equal those without an agent.
    pub(crate) const WITH_AGENT: [Self; 5] =
        [Self::Online, Self::Outage, Self::Middle, Self::Wrapped, Self::WrappedOutage];

    fn is_server_away(self) -> bool {
        matches!(self, Self::Outage | Self::WrappedOutage)
    }
}

/// The results of a run.
struct Outcome {
    state: Vec<String>,
    said: Vec<String>,
    /// Where the links that it printed lead; `None` if nothing answers there.
    links: Option<BTreeSet<String>>,
    status: ExitStatus,
    /// Requests that the server refused.
    refused: Vec<String>,
    /// Modifying requests that bypassed the agent.
    past_the_agent: BTreeSet<String>,
    /// Requests for data that the server does not have.
    unknown: Vec<String>,
    took: Duration,
}

/// One client in one scenario, with a server and a home of its own.
struct Stage<'a> {
    client: &'a Client,
    scenario: Scenario,
    server: FakeOpik,
    agent: Option<Agent>,
    home: Home,
    /// How many requests came before the client.
    seeded: usize,
    /// Where the links led that the client had printed when it last waited.
    followed: Option<BTreeSet<String>>,
}

/// Runs a client in every scenario and compares each with the run without an agent.
#[track_caller]
pub(crate) fn is_as_without_an_agent(client: &Client) {
    is_as_without_an_agent_in(client, &Scenario::WITH_AGENT);
}

/// Runs a client in these scenarios and compares each with the run without an agent.
#[track_caller]
pub(crate) fn is_as_without_an_agent_in(client: &Client, scenarios: &[Scenario]) {
    let direct = Stage::set(client, Scenario::Direct).run();
    assert!(direct.status.success(), "the client fails without an agent, too ({}):\n{direct}", direct.status);
    assert!(!direct.state.is_empty(), "the client sends nothing, even without an agent:\n{direct}");
    if !direct.unknown.is_empty() {
        eprintln!("the fake server answers with 404: {}", direct.unknown.join(", "));
    }
    assert!(direct.refused.is_empty(), "the fake server does not know this client:\n{}", direct.refused.join("\n"));
    eprintln!("Direct: {} entities in {:?}", direct.state.len(), direct.took);
    let mut differences = Vec::new();
    for scenario in scenarios {
        let outcome = Stage::set(client, *scenario).run();
        eprintln!("{scenario:?}: {} entities in {:?}", outcome.state.len(), outcome.took);
        let mut differs = |what: &str, text: String| differences.push(format!("=== {scenario:?}, {what}\n{text}"));
        if outcome.status != direct.status {
            differs("how it ended", format!("{}, without the agent {}", outcome.status, direct.status));
        }
        for (what, without, with) in [
            ("what the server knows", &direct.state, &outcome.state),
            ("what the client prints", &direct.said, &outcome.said),
            ("what the server refused", &direct.refused, &outcome.refused),
        ] {
            if let Some(text) = difference(without, with) {
                differs(what, text);
            }
        }
        if !outcome.past_the_agent.is_empty() {
            differs("what went past the agent", format!("{:?}", outcome.past_the_agent));
        }
        if outcome.links.as_ref().is_some_and(|links| Some(links) != direct.links.as_ref()) {
            let told = |links: &Option<BTreeSet<String>>| format!("{:?}", links.iter().flatten().collect::<Vec<_>>());
            let text = format!("{}\nwithout the agent: {}", told(&outcome.links), told(&direct.links));
            differs("where its links lead", text);
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

impl<'a> Stage<'a> {
    fn set(client: &'a Client, scenario: Scenario) -> Self {
        let server = FakeOpik::start_new();
        reads::serve(&server);
        if client.seeded {
            reads::seed(&server);
        }
        let seeded = server.requests().len();
        if scenario.is_server_away() {
            server.stop();
        }
        let stands = matches!(scenario, Scenario::Online | Scenario::Outage | Scenario::Middle);
        let agent = stands.then(|| Agent::start(&server));
        Self { client, scenario, server, agent, home: Home::new(), seeded, followed: None }
    }

    fn run(mut self) -> Outcome {
        let began = Instant::now();
        let (status, said) = self.run_client();
        let took = began.elapsed();
        let scrubber = self.scrubber();
        self.deliver();
        let links = match self.scenario {
            // Its agent has ended, so the links were followed while it ran.
            Scenario::Wrapped => self.followed.take(),
            Scenario::WrappedOutage => None,
            _ => Some(links::lead_to(&links::of(&said), &self.server.url())),
        };
        let lines = said.lines().filter(|line| !self.client.chatter.iter().any(|chatter| line.contains(chatter)));
        let unknown = self.server.requests().into_iter().filter(|request| request.answered_status == Some(404));
        let unknown: BTreeSet<String> = unknown.map(|it| format!("{} {}", it.method, it.path)).collect();
        let past_the_agent = self.past_the_agent();
        let mut refused = self.server.violations();
        refused.extend(self.server.conflicts());
        Outcome {
            state: state(&self.server, &scrubber),
            said: lines.map(|line| scrubber.text(&links::without_addresses(line))).collect(),
            links: links.map(|links| links.iter().map(|link| scrubber.text(link)).collect()),
            status,
            refused: refused.iter().map(|line| scrubber.text(line)).collect(),
            past_the_agent,
            unknown: unknown.into_iter().collect(),
            took,
        }
    }

    fn past_the_agent(&self) -> BTreeSet<String> {
        let requests = self.server.requests().into_iter().skip(self.seeded);
        let changes = requests.filter(|request| {
            let is_read = ["/search", "/retrieve"].iter().any(|end| request.route().ends_with(end));
            request.method != "GET" && !is_read && request.header("X-Opik-Offline-Agent").is_none()
        });
        changes.map(|request| format!("{} {}", request.method, request.route())).collect()
    }

    /// Values of this run alone: addresses and folders.
    fn scrubber(&self) -> Scrubber {
        let server = format!("127.0.0.1:{}", self.server.port());
        let home = self.home.path().display().to_string();
        Scrubber::new(self.client.volatile, vec![(server, "<server>"), (home, "<home>")])
    }

    /// The client's own command, or that of an agent that runs it. Its standard error is in a file.
    fn command(&self) -> Command {
        let quiet = |command: &mut Command| {
            for name in ["OPIK_SENTRY_ENABLE", "OPIK_ANALYTICS_ENABLE"] {
                command.env(name, "false");
            }
            // Variables for the machine's own agents or proxies are not for this client.
            command.env("PYTHONUTF8", "1").env("NO_COLOR", "1").env("COLUMNS", "200");
        };
        let inner = ["-c", "exec \"$0\" \"$@\" 2>>said"];
        let mut command = if matches!(self.scenario, Scenario::Wrapped | Scenario::WrappedOutage) {
            let mut command = self.home.command(program());
            command.args(["agent", "--upstream", &self.server.url(), "--db"]).arg(self.home.db()).args(["--", "sh"]);
            command
        } else {
            self.home.command("sh")
        };
        command.args(inner).arg(&self.client.program).args(&self.client.args);
        quiet(&mut command);
        let url = self.agent.as_ref().map_or_else(|| self.server.url(), Agent::url);
        match self.client.reads {
            Reads::OpikUrl => command.env("OPIK_URL_OVERRIDE", format!("{url}/")),
            Reads::OtlpEndpoint => command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{url}/v1/private/otel")),
            Reads::McpUrl => command.env("OPIK_URL", &url),
        };
        command.envs(self.client.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the client to its end, and returns what it wrote to standard output and error.
    fn run_client(&mut self) -> (ExitStatus, String) {
        let mut command = self.command();
        let wrapper = File::create(self.home.path().join("agent-said")).expect("a file can be made");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(wrapper);
        let mut child = command.spawn().unwrap_or_else(|why| panic!("cannot start {command:?}: {why}"));
        let (stdout, mut stdin) = (child.stdout.take().expect("it is piped"), child.stdin.take().expect("it is piped"));
        let killer = Killer::after(PATIENCE, &child);
        let mut said = String::new();
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if line == HALFWAY {
                self.halfway(&said);
                // Fails when it has ended, which its status tells.
                let _ = stdin.write_all(b"\n");
            } else {
                said.push_str(&line);
                said.push('\n');
            }
        }
        drop(stdin);
        let status = child.wait().expect("a child can be waited for");
        killer.stand_down();
        if !status.success() {
            let agent = fs::read_to_string(self.home.path().join("agent-said")).unwrap_or_default();
            eprintln!("{:?}: {status}; the wrapping agent wrote:\n{agent}", self.scenario);
        }
        said.push_str(&self.said());
        (status, said)
    }

    fn halfway(&mut self, said: &str) {
        match self.scenario {
            Scenario::Middle => self.server.stop(),
            Scenario::Wrapped => {
                let said = format!("{said}{}", self.said());
                self.followed = Some(links::lead_to(&links::of(&said), &self.server.url()));
            }
            _ => {}
        }
    }

    /// The client's standard error so far.
    fn said(&self) -> String {
        fs::read_to_string(self.home.path().join("said")).unwrap_or_default()
    }

    /// Brings the server back and waits until an agent has delivered all that it kept.
    fn deliver(&mut self) {
        match self.scenario {
            Scenario::Direct => return,
            Scenario::Middle => {
                let agent = self.agent.as_mut().expect("it stands");
                agent.kill9();
                agent.restart_on_same_port();
            }
            Scenario::Wrapped | Scenario::WrappedOutage => {
                let home = std::mem::replace(&mut self.home, Home::new());
                self.agent = Some(Agent::builder(&self.server.url()).impatient().home(home).start());
            }
            Scenario::Online | Scenario::Outage => {}
        }
        self.server.start();
        self.agent.as_ref().expect("it stands").wait_until_delivered();
    }
}

/// Ends a client that takes too long, so that a test fails instead of hanging.
struct Killer(std::sync::mpsc::Sender<()>);

impl Killer {
    fn after(patience: Duration, child: &std::process::Child) -> Self {
        let pid = rustix::process::Pid::from_child(child);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if receiver.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the client takes longer than {patience:?} and is ended");
                // Fails when it ended this moment.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        });
        Self(sender)
    }

    fn stand_down(self) {
        // The thread is gone when it ended the client.
        let _ = self.0.send(());
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.said.join("\n"))
    }
}
