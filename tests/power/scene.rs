//! A short life of an agent on a disk that fails or dies: it starts, stores, delivers, divides and stops.

use std::collections::BTreeSet;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

use crate::layer::{Counter, Layer};
use crate::promises::Promises;
use crate::support::PATIENCE;
use crate::support::agent::Home;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::process::{Written, listening_port};
use crate::support::uuid7;
use crate::writes::{create, create_batch, update};

pub(crate) struct Scene {
    pub layer: Arc<Layer>,
    pub promises: Promises,
    refused: BTreeSet<String>,
    server: FakeOpik,
    home: Home,
}

/// How a scene ended.
pub(crate) struct End {
    pub status: ExitStatus,
    pub stderr: String,
    /// Writes that the server accepts, that were promised, and that did not reach it.
    pub missing: usize,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let (layer, server) = (Arc::new(Layer::new()), FakeOpik::new_stopped());
        Self { layer, promises: Promises::default(), refused: BTreeSet::new(), server, home: Home::new() }
    }

    /// Plays it with this in the agent's environment; it ends when the agent died, or when it stopped as it was asked
    /// to.
    pub(crate) fn play(&mut self, env: &[(&'static str, String)]) -> End {
        let mut command = self.home.command(env!("CARGO_BIN_EXE_opik-offline"));
        command
            .args(["agent", "--listen", "127.0.0.1:0", "--upstream", &self.server.url(), "--db"])
            .arg(self.layer.db());
        command.env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.1").env("OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", "1");
        command.envs(self.layer.env()).envs(env.iter().cloned());
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started");
        let mut agent = Running { child, status: None };
        let written = Written::default();
        let reading = written.follow(agent.child.stderr.take().expect("it is piped"));
        let deadline = Instant::now() + PATIENCE;
        let port = loop {
            if let Some(port) = listening_port(&written.text()) {
                break Some(port);
            }
            if agent.has_ended() {
                break None;
            }
            assert!(Instant::now() < deadline, "the agent neither listens nor ends; it wrote:\n{}", written.text());
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        if let Some(port) = port {
            self.write(&mut Client::new(&format!("http://127.0.0.1:{port}/api")));
            self.deliver(&mut agent, port, deadline);
            agent.terminate();
        }
        reading.join().expect("the reading thread did not panic");
        let status = agent.status.expect("it has ended");
        End { status, stderr: written.text(), missing: self.promises.missing(&self.refused) }
    }

    /// Sends what an application sends; each write may be refused or stay unanswered, and the rest is sent anyway.
    fn write(&mut self, client: &mut Client) {
        let ids: Vec<String> = (0..5).map(|_| uuid7()).collect();
        self.refused = BTreeSet::from([ids[2].clone()]);
        let requests = [create(&ids[4]), create_batch(&ids[..4]), update(&ids[4], 1), create(&uuid7())];
        for request in requests {
            self.send(client, &request);
        }
    }

    /// Returns the status of its answer.
    fn send(&self, client: &mut Client, request: &Request) -> Option<u16> {
        match client.send(request) {
            Ok(answer) if (200..300).contains(&answer.status) => {
                self.promises.note(&self.layer, request);
                Some(answer.status)
            }
            // The client was told, and still has it. Data of a failed sync in the log may be read anyway.
            Ok(answer) => {
                self.promises.unanswered(request);
                Some(answer.status)
            }
            Err(_) => {
                client.disconnect();
                self.promises.unanswered(request);
                None
            }
        }
    }

    /// Starts the server and waits until it has what was promised. Where the disk failed for good that may never be;
    /// then new writes go through the agent, or are refused because nobody can see what waits before them.
    fn deliver(&self, agent: &mut Running, port: u16, deadline: Instant) {
        let refusal = Then::Answer(Answer::error(422, "must not be negative"));
        self.server.script(When::ids(self.refused.iter()), refusal);
        self.promises.watch(&self.layer, &self.server, &self.refused);
        self.server.start();
        let mut client = Client::new(&format!("http://127.0.0.1:{port}/api"));
        let (mut acknowledged, mut refused) = (false, false);
        while !agent.has_ended() {
            let failed = self.layer.count(Counter::Failed);
            let is_for_good = failed > 1;
            if acknowledged && (is_for_good || self.promises.missing(&self.refused) == 0) || refused && is_for_good {
                return;
            }
            if !acknowledged {
                let status = self.send(&mut client, &create(&uuid7()));
                acknowledged = status.is_some_and(|status| (200..300).contains(&status));
                refused = status == Some(503);
            }
            assert!(
                Instant::now() < deadline,
                "after {failed} errors of the disk, new writes were taken: {acknowledged}; not delivered: {}",
                self.promises.missing(&self.refused)
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

struct Running {
    child: Child,
    status: Option<ExitStatus>,
}

impl Running {
    fn has_ended(&mut self) -> bool {
        self.status = self.status.or(self.child.try_wait().expect("a child can be waited for"));
        self.status.is_some()
    }

    fn terminate(&mut self) {
        if !self.has_ended() {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our own child can be signalled");
            crate::support::wait_until("the agent stops", PATIENCE, || self.has_ended());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Both fail only if it has already ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
