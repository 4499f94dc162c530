//! Real object storage on loopback ports of its own: SeaweedFS, which speaks S3 and keeps conditions, and Azurite,
//! which speaks Azure's interface.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use opik_offline::depot::{DepotAddress, DepotSettings, ObjectService};
use tempfile::TempDir;

use super::agent::Home;
use super::http::{Client, Request};
use super::{PATIENCE, reserve_port, tempdir, tools, wait_until};

/// The bucket or container of every test.
pub(crate) const BUCKET: &str = "depot";

/// Variables of an environment.
pub(crate) type Variables = Vec<(String, String)>;

/// A server of object storage, stopped when it is dropped.
pub(crate) struct Storage {
    child: Child,
    port: u16,
    _home: Home,
    _data: TempDir,
    _reservations: Vec<tokio::net::TcpSocket>,
}

impl Storage {
    /// Returns where it answers.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Kills it; what it promised stays on its disk.
    pub(crate) fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A user of a [`SeaweedFs`], with their permissions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Person {
    /// Everything.
    Replayer,
    /// Everything but listing.
    Pod,
    /// The rights that docs/depots.md gives an agent: no listing, no deleting, and no writing of what people order.
    Confined,
    /// Reading and listing.
    Reader,
    /// Nobody that it knows.
    Stranger,
}

/// SeaweedFS with its S3 gateway; one node, which keeps conditions.
pub(crate) struct SeaweedFs(Storage);

impl SeaweedFs {
    /// Installs SeaweedFS if need be, starts it and waits until it takes requests.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (home, data) = (Home::new(), tempdir());
        let people = data.path().join("people.json");
        std::fs::write(&people, people_and_policies()).expect("a temporary file can be written");
        let folder = data.path().join("data");
        std::fs::create_dir(&folder).expect("a folder can be made");
        let reservations: Vec<_> = (0..8).map(|_| reserve_port(0).expect("a free port")).collect();
        let port = |number: usize| reservations[number].local_addr().expect("it is bound").port();
        let mut command = home.command(tools::seaweedfs());
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20", "-master.volumeSizeLimitMB=64"]);
        command.arg(format!("-dir={}", folder.display())).arg(format!("-s3.config={}", people.display()));
        let flags = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port.grpc",
            "s3.port",
        ];
        for (number, flag) in flags.into_iter().enumerate() {
            command.arg(format!("-{flag}={}", port(number)));
        }
        let log = std::fs::File::create(data.path().join("log")).expect("a file can be made");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("weed can be started");
        let port = port(7);
        let seaweedfs = Self(Storage { child, port, _home: home, _data: data, _reservations: reservations });
        let depot = opik_offline::depot::open(&seaweedfs.settings(Person::Replayer, "ready")).expect("usable settings");
        let ready = opik_offline::depot::Name::new("v1/ready").expect("a name");
        // The first write of somebody who may do everything makes the bucket.
        wait_until("SeaweedFS takes a write", PATIENCE, || depot.create(&ready, b"ready").is_ok());
        seaweedfs
    }

    /// Returns where it answers.
    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    /// Returns the port at which it answers.
    pub(crate) fn port(&self) -> u16 {
        self.0.port
    }

    /// Returns the variables with which this person reaches it.
    pub(crate) fn variables(&self, person: Person) -> Variables {
        let name = match person {
            Person::Replayer => "replayer",
            Person::Pod => "pod",
            Person::Confined => "confined",
            Person::Reader => "reader",
            Person::Stranger => "stranger",
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            pair("AWS_ENDPOINT_URL", &self.url()),
            pair("AWS_ACCESS_KEY_ID", name),
            pair("AWS_SECRET_ACCESS_KEY", &format!("{name}-secret")),
        ]
    }

    /// Returns how this person reaches a depot below a prefix.
    pub(crate) fn settings(&self, person: Person, prefix: &str) -> DepotSettings {
        settings(ObjectService::S3, prefix, self.variables(person))
    }

    /// Kills it; what it promised stays on its disk.
    pub(crate) fn kill9(&mut self) {
        self.0.kill9();
    }
}

/// Returns the settings of a depot in [`BUCKET`].
pub(crate) fn settings(service: ObjectService, prefix: &str, variables: Variables) -> DepotSettings {
    let address = DepotAddress::Bucket { service, bucket: BUCKET.to_owned(), prefix: prefix.to_owned() };
    DepotSettings { variables, ..DepotSettings::plain(address) }
}

const PEOPLE: &str = r#"{"identities": [
  {"name": "replayer", "credentials": [{"accessKey": "replayer", "secretKey": "replayer-secret"}],
   "actions": ["Admin", "Read", "Write", "List"]},
  {"name": "pod", "credentials": [{"accessKey": "pod", "secretKey": "pod-secret"}],
   "actions": ["Write:depot", "Read:depot"]},
  {"name": "confined", "credentials": [{"accessKey": "confined", "secretKey": "confined-secret"}],
   "policyNames": ["agent"]},
  {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}],
   "actions": ["Read:depot", "List:depot"]}
]}"#;

/// The policy of an agent, as it is for S3.
const AGENT_POLICY: &str = r#"{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::depot/*/v1/*"},
  {"Effect": "Deny", "Action": "s3:PutObject", "Resource": [
    "arn:aws:s3:::depot/*/v1/purges/*", "arn:aws:s3:::depot/*/v1/orders/*",
    "arn:aws:s3:::depot/*/v1/dial", "arn:aws:s3:::depot/*/v1/fleet.json"]}
]}"#;

fn people_and_policies() -> String {
    let mut people: serde_json::Value = serde_json::from_str(PEOPLE).expect("it is JSON");
    people["policies"] = serde_json::json!([{ "name": "agent", "content": AGENT_POLICY }]);
    people.to_string()
}

/// Azurite, Microsoft's own emulator of Azure Blob Storage.
pub(crate) struct Azurite(Storage);

/// The account and key of every Azurite; they are public.
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

impl Azurite {
    /// Installs Azurite if need be, starts it, waits until it listens, and makes the container.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (home, data) = (Home::new(), tempdir());
        let reservation = reserve_port(0).expect("a free port");
        let port = reservation.local_addr().expect("it is bound").port();
        let mut command = home.command(tools::azurite());
        command.args(["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1"]);
        command.arg("--blobPort").arg(port.to_string()).arg("--location").arg(data.path());
        let log = std::fs::File::create(home.path().join("log")).expect("a file can be made");
        let child =
            command.stdout(log.try_clone().expect("a file")).stderr(log).spawn().expect("azurite can be started");
        let azurite = Self(Storage { child, port, _home: home, _data: data, _reservations: vec![reservation] });
        wait_until("Azurite listens", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        azurite.make_container();
        azurite
    }

    /// Makes the container, which needs a signed request of its own: a depot does not make what it is put into.
    fn make_container(&self) {
        let date = httpdate::fmt_http_date(std::time::SystemTime::now());
        let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06\n");
        let resource = format!("/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/{BUCKET}\nrestype:container");
        let signed = format!("PUT\n\n\n\n\n\n\n\n\n\n\n\n{headers}{resource}");
        let key = BASE64.decode(AZURITE_KEY).expect("the key is base64");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        let signature = BASE64.encode(ring::hmac::sign(&key, signed.as_bytes()));
        let request = Request::new("PUT", &format!("/{AZURITE_ACCOUNT}/{BUCKET}?restype=container"))
            .untyped()
            .header("x-ms-date", &date)
            .header("x-ms-version", "2021-08-06")
            .header("authorization", &format!("SharedKey {AZURITE_ACCOUNT}:{signature}"));
        let answer = Client::new(&self.0.url()).send(&request).expect("Azurite answers");
        assert_eq!(answer.status, 201, "the container can be made: {}", answer.text());
    }

    /// Returns how a depot below a prefix is reached.
    pub(crate) fn settings(&self, prefix: &str) -> DepotSettings {
        settings(ObjectService::Azure, prefix, self.variables())
    }

    /// Returns the variables with which it is reached.
    pub(crate) fn variables(&self) -> Variables {
        [
            ("AZURE_STORAGE_ENDPOINT", format!("{}/{AZURITE_ACCOUNT}", self.0.url())),
            ("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// Returns a folder for a depot that is removed with the value.
pub(crate) fn folder() -> (TempDir, PathBuf) {
    let folder = tempdir();
    let path = folder.path().to_owned();
    (folder, path)
}
