//! Garage with three nodes and three copies of everything: replicated, and without conditional writes.
//!
//! It takes half an hour to build, so its tests run where `OPIK_OFFLINE_GARAGE` names its program
//! (`cargo install garage --locked`), and report elsewhere that they did not.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use super::depots::{BUCKET, Variables};
use super::not_run::not_run;
use super::process::run;
use super::{PATIENCE, reserve_port, tempdir, wait_until};

struct GarageNode {
    child: Mutex<Option<Child>>,
    config: PathBuf,
    port: u16,
    /// The ports stay reserved while it is away.
    _ports: Vec<tokio::net::TcpSocket>,
}

/// A cluster on loopback ports of its own.
pub(crate) struct Garage {
    program: PathBuf,
    nodes: Vec<GarageNode>,
    key: (String, String),
    _folder: TempDir,
}

impl Garage {
    /// Starts three nodes; `None`, with a report, where there is no Garage.
    #[track_caller]
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("OPIK_OFFLINE_GARAGE") else {
            not_run("OPIK_OFFLINE_GARAGE does not name the program `garage`: cargo install garage --locked");
            return None;
        };
        let folder = tempdir();
        let nodes = (0..3).map(|number| node(folder.path(), number)).collect();
        let (program, key) = (program.into(), Default::default());
        let mut garage = Self { program, nodes, key, _folder: folder };
        for number in 0..3 {
            garage.launch(number);
        }
        garage.set_up();
        Some(garage)
    }

    fn launch(&self, number: usize) {
        let node = &self.nodes[number];
        let log = std::fs::File::options().create(true).append(true).open(node.config.with_extension("log"));
        let log = log.expect("a log can be written");
        let mut command = self.command(number, &["server"]);
        let child = command.stdout(log.try_clone().expect("a file")).stderr(log).stdin(Stdio::null()).spawn();
        *node.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child.expect("garage can be started"));
        wait_until("a node answers", PATIENCE, || self.try_said(number, &["status"]).is_some());
    }

    fn command(&self, number: usize, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.nodes[number].config).args(args).env("RUST_LOG", "garage=info");
        command
    }

    fn try_said(&self, number: usize, args: &[&str]) -> Option<String> {
        let output = run(&mut self.command(number, args));
        output.status.success().then_some(output.stdout)
    }

    #[track_caller]
    fn said(&self, number: usize, args: &[&str]) -> String {
        let output = run(&mut self.command(number, args));
        assert!(output.status.success(), "garage {args:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Connects the nodes, gives each a third of the data and makes the bucket and a key.
    fn set_up(&mut self) {
        let ids: Vec<String> =
            (0..3).map(|number| self.said(number, &["node", "id", "-q"]).trim().to_owned()).collect();
        for id in &ids[1..] {
            self.said(0, &["node", "connect", id]);
        }
        for id in &ids {
            let id = id.split('@').next().unwrap_or_default().to_owned();
            wait_until("the nodes know each other", PATIENCE, || {
                self.try_said(0, &["layout", "assign", "-z", "here", "-c", "1G", &id]).is_some()
            });
        }
        self.said(0, &["layout", "apply", "--version", "1"]);
        let made = self.said(0, &["json-api", "CreateKey", r#"{"name": "fleet"}"#]);
        let made: serde_json::Value = serde_json::from_str(&made).expect("a key");
        let field = |name: &str| made[name].as_str().expect("a key has it").to_owned();
        self.key = (field("accessKeyId"), field("secretAccessKey"));
        self.said(0, &["bucket", "create", BUCKET]);
        self.said(0, &["bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", &self.key.0]);
    }

    /// Returns the variables with which the cluster is reached through a node.
    pub(crate) fn variables(&self, number: usize) -> Variables {
        [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.nodes[number].port)),
            ("AWS_REGION", "garage".to_owned()),
            ("AWS_ACCESS_KEY_ID", self.key.0.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.key.1.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Kills a node; what it promised stays on its disk.
    pub(crate) fn kill9(&self, number: usize) {
        let child = self.nodes[number].child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a node again, and waits until those of the others that are alive know it.
    pub(crate) fn revive(&self, number: usize) {
        self.launch(number);
        let id = self.said(number, &["node", "id", "-q"]);
        let is_alive = |other: &usize| {
            self.nodes[*other].child.lock().unwrap_or_else(PoisonError::into_inner).is_some() && *other != number
        };
        let others: Vec<usize> = (0..3).filter(is_alive).collect();
        wait_until("the node is back", PATIENCE, || {
            others.iter().all(|other| {
                let status = self.try_said(*other, &["status"]).unwrap_or_default();
                // Nodes that are away are listed behind the healthy ones.
                status.split("FAILED NODES").next().is_some_and(|healthy| healthy.contains(&id[..16]))
            })
        });
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        (0..3).for_each(|number| self.kill9(number));
    }
}

fn node(folder: &std::path::Path, number: usize) -> GarageNode {
    let ports: Vec<_> = (0..3).map(|_| reserve_port(0).expect("a free port")).collect();
    let port = |at: usize| ports[at].local_addr().expect("it is bound").port();
    let own = folder.join(format!("node-{number}"));
    std::fs::create_dir(&own).expect("a folder can be made");
    let config = own.join("garage.toml");
    let text = format!(
        r#"
metadata_dir = "{own}/meta"
data_dir = "{own}/data"
db_engine = "sqlite"
replication_factor = 3
metadata_fsync = true
data_fsync = true
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "c3ea8cb80333d04e208d136698b1a01ae370d463f0d435ab2177510b3478bf44"
rpc_timeout_msec = 5000
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:{s3}"
root_domain = ".s3.garage"
[admin]
api_bind_addr = "127.0.0.1:{admin}"
"#,
        own = own.display(),
        rpc = port(0),
        s3 = port(1),
        admin = port(2)
    );
    std::fs::write(&config, text).expect("a file can be written");
    GarageNode { child: Mutex::default(), config, port: port(1), _ports: ports }
}
