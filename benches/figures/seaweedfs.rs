//! SeaweedFS with its S3 gateway, as object storage to measure against. One node, which does not sync its disk.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use opik_offline::depot::{self, Depot, DepotAddress, DepotSettings, Name, ObjectService};

use crate::process::{Process, free_address};
use crate::tools;

const BUCKET: &str = "depot";
const PEOPLE: &str = r#"{"identities": [{"name": "figures", "actions": ["Admin", "Read", "Write", "List"],
  "credentials": [{"accessKey": "figures", "secretKey": "figures-secret"}]}]}"#;

/// A running SeaweedFS; stopped when dropped.
pub(crate) struct ObjectStorage(Process);

impl ObjectStorage {
    /// Installs it if need be, starts it in this folder and waits until it takes a write.
    pub(crate) fn start(home: &Path) -> Self {
        let (people, data) = (home.join("people.json"), home.join("data"));
        std::fs::write(&people, PEOPLE).expect("a file can be written");
        std::fs::create_dir(&data).expect("a folder can be made");
        let mut command = Command::new(tools::seaweedfs());
        command.env_clear().env("HOME", home).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(home.join("log")).expect("a file can be made"));
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=40", "-master.volumeSizeLimitMB=256"]);
        command.arg(format!("-dir={}", data.display())).arg(format!("-s3.config={}", people.display()));
        for port in ["master", "volume", "filer"] {
            command.arg(format!("-{port}.port={}", free_address().port()));
            command.arg(format!("-{port}.port.grpc={}", free_address().port()));
        }
        let address = free_address();
        command.arg(format!("-s3.port={}", address.port()));
        command.arg(format!("-s3.port.grpc={}", free_address().port()));
        let storage = Self(Process::start(command, address));
        let (depot, until) = (storage.open("ready"), Instant::now() + Duration::from_secs(60));
        while depot.create(&Name::new("v1/ready").expect("a name"), b"ready").is_err() {
            assert!(Instant::now() < until, "SeaweedFS takes no write");
            std::thread::sleep(Duration::from_millis(100));
        }
        storage
    }

    /// Returns the variables with which it is reached.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.0.address);
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "figures"),
            ("AWS_SECRET_ACCESS_KEY", "figures-secret"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Returns the URL of the depot below a prefix.
    pub(crate) fn url(prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Opens the depot below a prefix.
    pub(crate) fn open(&self, prefix: &str) -> Arc<dyn Depot> {
        let address =
            DepotAddress::Bucket { service: ObjectService::S3, bucket: BUCKET.to_owned(), prefix: prefix.to_owned() };
        let settings = DepotSettings { variables: self.variables(), ..DepotSettings::plain(address) };
        depot::open(&settings).expect("usable settings")
    }
}
