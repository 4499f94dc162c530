//! Agents and replayers on the real engines of a depot: what agents acknowledged is delivered in order after they were
//! killed and their folders removed.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use opik_offline::depot::{Depot, DepotError, Name, open};
use opik_offline::sealing::make_identity;
use rustix::process::Signal;
use serde_json::Value;

use crate::fleet_streams::{TAKEOVER_AFTER, messages_in};
use crate::postgres_servers::{self, Servers};
use crate::support::agent::{Agent, AgentBuilder, Home, program};
use crate::support::depots::{Azurite, BUCKET, Person, SeaweedFs, Variables};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, tempdir, uuid7, wait_until};
use crate::writes::{Told, create, score, span, update};

/// A depot of a real engine, with different rights for pods and for replayers.
pub(crate) struct EngineFleet {
    folder: tempfile::TempDir,
    url: String,
    pods: Variables,
    replayers: Variables,
    recipient: String,
    /// With all rights.
    pub(crate) depot: Arc<dyn Depot>,
}

impl EngineFleet {
    pub(crate) fn new(url: &str, pods: Variables, replayers: Variables, depot: Arc<dyn Depot>) -> Self {
        let folder = tempdir();
        let recipient = make_identity(&folder.path().join("identity")).unwrap().to_string();
        Self { folder, url: url.to_owned(), pods, replayers, recipient, depot }
    }

    /// A depot below this prefix of SeaweedFS; pods reach it there, and may neither list nor delete.
    pub(crate) fn on_seaweedfs(storage: &SeaweedFs, prefix: &str) -> Self {
        let depot = open(&storage.settings(Person::Replayer, prefix)).unwrap();
        let (pods, replayers) = (storage.variables(Person::Confined), storage.variables(Person::Replayer));
        Self::new(&format!("s3://{BUCKET}/{prefix}"), pods, replayers, depot)
    }

    /// A depot below this prefix of Azurite, which knows one account.
    pub(crate) fn on_azurite(storage: &Azurite, prefix: &str) -> Self {
        let (depot, variables) = (open(&storage.settings(prefix)).unwrap(), storage.variables());
        Self::new(&format!("az://{BUCKET}/{prefix}"), variables.clone(), variables, depot)
    }

    /// A depot in PostgreSQL with the rights that docs/depots.md asks for: pods may not delete.
    pub(crate) fn on_postgresql(servers: &Servers) -> Self {
        let url = servers.url();
        let depot: Arc<dyn Depot> = Arc::new(servers.depot(Duration::from_secs(30)));
        // Makes the tables.
        assert_eq!(depot.get(&Name::new("v1/fleet.json").unwrap()).unwrap(), None);
        servers.sql(
            "CREATE ROLE pod LOGIN PASSWORD 'pod'; GRANT SELECT ON depot_schema TO pod; \
             GRANT SELECT, INSERT, UPDATE ON depot_object TO pod",
        );
        let login = |user: &str, password: &str| {
            vec![("PGUSER".to_owned(), user.to_owned()), ("PGPASSWORD".to_owned(), password.to_owned())]
        };
        // Both name the same depot.
        let url = format!("postgres://{}", url.split('@').nth(1).expect("it has a user"));
        let owner = login(postgres_servers::USER, postgres_servers::PASSWORD);
        Self::new(&url, login("pod", "pod"), owner, depot)
    }

    /// Puts something between the depot and the pods, and maybe the replayers.
    pub(crate) fn through(mut self, url: &str, replayers_as_well: bool) -> Self {
        let others: &mut [&mut Variables] =
            if replayers_as_well { &mut [&mut self.pods, &mut self.replayers] } else { &mut [&mut self.pods] };
        for variables in others {
            for (name, value) in variables.iter_mut() {
                if name == "AWS_ENDPOINT_URL" {
                    url.clone_into(value);
                }
            }
        }
        self
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.folder.path().join("identity")
    }

    /// An agent of a pod, which ships at once.
    pub(crate) fn agent(&self, server: &FakeOpik) -> AgentBuilder {
        let mut agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&self.url);
        agent = agent.arg("--fleet-recipients").arg(&self.recipient);
        agent = agent.env("OPIK_OFFLINE_FLEET_DELAY", "0s").env("OPIK_OFFLINE_FLEET_INTERVAL_MAX", "1s");
        self.pods.iter().fold(agent, |agent, (name, value)| agent.env(name, value))
    }

    /// A command of a replayer's host for this server.
    pub(crate) fn command(&self, home: &Home, server: &FakeOpik, args: &[&str]) -> Command {
        let mut command = home.command(program());
        command.args(args).args(["--fleet", &self.url]).envs(self.replayers.iter().map(|(name, value)| (name, value)));
        command.env("OPIK_URL_OVERRIDE", server.url()).env("OPIK_OFFLINE_DB", home.db());
        command.env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", TAKEOVER_AFTER);
        command.env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.2").env("OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", "5");
        command
    }

    pub(crate) fn replayer(&self, home: &Home, server: &FakeOpik, args: &[&str]) -> Command {
        let mut command = self.command(home, server, &["replay"]);
        command.arg("--identity").arg(self.identity()).args(args);
        command
    }

    pub(crate) fn replay(&self, server: &FakeOpik, args: &[&str]) -> Output {
        run(self
            .replayer(&Home::new(), server, &[args, &["--format", "json"]].concat())
            .env("OPIK_OFFLINE_LOG", "warn"))
    }

    /// Replays until nothing is free, and returns the report.
    #[track_caller]
    pub(crate) fn replayed(&self, server: &FakeOpik, args: &[&str]) -> Value {
        let output = self.replay(server, args);
        assert!(matches!(output.code(), Some(0 | 4)), "{:?}: {}{}", output.code(), output.stdout, output.stderr);
        output.json()
    }

    pub(crate) fn names(&self, under: &str) -> Vec<String> {
        let listed = self.depot.list(&Name::new(under).unwrap(), None, 100_000).unwrap();
        listed.into_iter().map(|entry| entry.name.to_string()).collect()
    }

    /// Returns how many messages are in bundles, by the names of these.
    pub(crate) fn shipped(&self) -> u64 {
        messages_in(&self.names("v1/bundles"))
    }

    /// Returns what is left of streams.
    pub(crate) fn left(&self) -> Vec<String> {
        ["v1/heads", "v1/bundles", "v1/marks", "v1/files"].iter().flat_map(|under| self.names(under)).collect()
    }
}

/// Sends writes of all kinds about a few traces, each of which has to be acknowledged.
#[track_caller]
pub(crate) fn write_mixed(agent: &Agent, ledger: &ClientLedger, traces: usize) {
    let mut app = Told::new(&agent.url(), ledger);
    let ids: Vec<String> = (0..traces).map(|_| uuid7()).collect();
    for round in 0..3 {
        for id in &ids {
            match round {
                0 => app.acknowledged(create(id), 201),
                1 => app.acknowledged(span(&uuid7(), id), 201),
                _ => app.acknowledged(score(id, 0.5), 204),
            };
            app.acknowledged(update(id, round), 204);
        }
    }
}

/// Checks that the server has everything, each entity in its order.
#[track_caller]
pub(crate) fn assert_all_delivered(server: &FakeOpik, ledger: &ClientLedger) {
    server.assert_equals(ledger);
    server.assert_order(ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
}

pub(crate) fn fleet_status(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/status.json").json()["fleet"].clone()
}

/// Several agents acknowledge writes in an outage and lose their machines; a replayer delivers all of it.
fn assert_acknowledged_writes_outlive_their_machines(fleet: &EngineFleet) {
    let server = FakeOpik::new_stopped();
    let ledger = ClientLedger::new();
    let agents: Vec<Agent> = (0..3).map(|_| fleet.agent(&server).arg("--acknowledge").arg("fleet").start()).collect();
    std::thread::scope(|scope| {
        for agent in &agents {
            scope.spawn(|| write_mixed(agent, &ledger, 4));
        }
    });
    for mut agent in agents {
        // Its folder goes with it.
        agent.kill9();
    }
    server.start();
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_all_delivered(&server, &ledger);
    assert_eq!((&report["streams"]["finished"], &report["delivered"]), (&3.into(), &72.into()), "{report}");
    assert_eq!(fleet.left(), Vec::<String>::new(), "delivered messages are kept and paid for");
}

/// An agent without the right to list can't tell a head that is gone from one that it may not read.
fn assert_an_agent_gets_on_after_its_stream_was_finished(fleet: &EngineFleet) {
    let server = FakeOpik::new_stopped();
    let ledger = ClientLedger::new();
    let mut agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    write_mixed(&agent, &ledger, 2);
    agent.kill9();
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    let before = server.requests().len();
    agent.restart_on_same_port();
    agent.wait_until_delivered();
    let repeated = server.requests().into_iter().skip(before).filter(|request| !request.writes.is_empty()).count();
    assert_eq!(repeated, 0, "old writes were sent over what came after the takeover");
    // It ships and delivers again.
    server.stop();
    wait_until("the agent sees that the server is away", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/status.json").json()["server"]["connection"] != "available"
    });
    write_mixed(&agent, &ledger, 2);
    assert_eq!(fleet.names("v1/heads").len(), 1, "nothing is shipped any more: {}", fleet_status(&agent));
    server.start();
    agent.wait_until_delivered();
    assert_all_delivered(&server, &ledger);
}

#[test]
fn a_fleet_on_s3_outlives_its_machines_with_pods_that_may_neither_list_nor_delete() {
    let storage = SeaweedFs::start();
    let pod = open(&storage.settings(Person::Confined, "rights")).unwrap();
    let listed = pod.list(&Name::new("v1/heads").unwrap(), None, 1);
    assert!(matches!(listed, Err(DepotError::NotAuthorised { .. })), "the pods of this test may list: {listed:?}");
    let deleted = pod.delete(&[Name::new("v1/heads/any").unwrap()]);
    assert!(matches!(deleted, Err(DepotError::NotAuthorised { .. })), "the pods of this test may delete: {deleted:?}");
    assert_acknowledged_writes_outlive_their_machines(&EngineFleet::on_seaweedfs(&storage, "outlive/prod"));
    assert_an_agent_gets_on_after_its_stream_was_finished(&EngineFleet::on_seaweedfs(&storage, "finished/prod"));
}

#[test]
fn a_fleet_on_azure_outlives_its_machines() {
    assert_acknowledged_writes_outlive_their_machines(&EngineFleet::on_azurite(&Azurite::start(), "prod"));
}

/// A machine that was suspended while its stream was taken over and finished.
#[test]
fn a_suspended_agent_that_may_not_list_gets_on_after_its_stream_was_finished() {
    let storage = SeaweedFs::start();
    let fleet = EngineFleet::on_seaweedfs(&storage, "suspended/prod");
    let server = FakeOpik::new_stopped();
    let ledger = ClientLedger::new();
    let agent = fleet.agent(&server).arg("--acknowledge").arg("fleet").start();
    write_mixed(&agent, &ledger, 2);
    agent.signal(Signal::STOP);
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["streams"]["finished"], 1, "{report}");
    // Longer than its lease and its last renewal hold together.
    std::thread::sleep(Duration::from_secs(62));
    let before = server.requests().len();
    agent.signal(Signal::CONT);
    let id = uuid7();
    Told::new(&agent.url(), &ledger).acknowledged(create(&id), 201);
    wait_until("the agent gets on", PATIENCE, || agent.backlog() == 0);
    let late = server.requests().into_iter().skip(before).flat_map(|request| request.writes);
    assert!(late.into_iter().all(|write| write.key.id == id), "messages of a finished stream were sent once more");
    assert_all_delivered(&server, &ledger);
}

#[test]
fn a_fleet_on_postgresql_outlives_its_machines_with_a_role_that_may_not_delete() {
    let Some(servers) = Servers::start_pair() else { return };
    assert_acknowledged_writes_outlive_their_machines(&EngineFleet::on_postgresql(&servers));
}
