//! Streams in a depot, as agents that are gone have left them: made from a store that a real agent has filled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use opik_offline::depot::folder::FolderDepot;
use opik_offline::depot::{Created, Depot, Name};
use opik_offline::fleet::bundle::{BundleBuilder, Pushed};
use opik_offline::fleet::fleet_file::FleetFile;
use opik_offline::fleet::head::{Head, HeadOwner, HeadState};
use opik_offline::fleet::marks::MarksReader;
use opik_offline::fleet::names::{self, ObjectName, StreamId};
use opik_offline::fleet::record::{FILE_PART_BYTES, FileContent, FleetRecord, ShippedFile};
use opik_offline::message::{
    Body, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageId, MessageType, Server, Touch,
};
use opik_offline::sealing::{Recipient, make_identity, open, read_identities, seal};
use opik_offline::store::attachment::PIECE_BYTES;
use opik_offline::store::{self, Filter, Limits, OpenMode, Page, Store, StoredMessage, WhenFull};
use serde_json::Value;

use crate::support::agent::{Agent, Home, program};
use crate::support::fake_opik::FakeOpik;
use crate::support::ledger::ClientLedger;
use crate::support::process::{Output, run};
use crate::support::{tempdir, uuid7};
use crate::writes::{Told, create, score, span, update};

/// How long a head has to be silent in the tests.
pub(crate) const TAKEOVER_AFTER: &str = "3s";

/// A depot in a folder, with the keys of its replayers.
pub(crate) struct TestFleet {
    folder: tempfile::TempDir,
    pub depot: FolderDepot,
    pub identity: PathBuf,
    recipients: Vec<Recipient>,
}

impl TestFleet {
    pub(crate) fn new() -> Self {
        let folder = tempdir();
        let root = folder.path().join("depot");
        std::fs::create_dir(&root).unwrap();
        let identity = folder.path().join("identity");
        let recipients = vec![make_identity(&identity).unwrap()];
        let depot = FolderDepot::open(&root, Duration::from_secs(30)).unwrap();
        let file = FleetFile { fleet: uuid::Uuid::now_v7(), recipients: vec![recipients[0].to_string()] };
        let fleet = Self { folder, depot, identity, recipients };
        fleet.put(&ObjectName::FleetFile, &file.encode());
        fleet
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("depot")
    }

    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.root().display())
    }

    pub(crate) fn put(&self, name: &ObjectName, bytes: &[u8]) {
        let name = Name::new(&name.to_string()).unwrap();
        assert_eq!(self.depot.create(&name, bytes).unwrap(), Created::New, "{name}");
    }

    pub(crate) fn put_sealed(&self, name: &ObjectName, plain: &[u8]) {
        self.put(name, &seal(&self.recipients, plain).unwrap());
    }

    /// Returns how many messages of a stream are marked.
    pub(crate) fn marked(&self, stream: StreamId) -> u64 {
        let identities = read_identities(&self.identity).unwrap();
        let mut marked = 0;
        for name in self.names(&names::marks_of(&stream)) {
            let (sealed, _) = self.depot.get(&Name::new(&name).unwrap()).unwrap().expect("it was listed");
            let plain = open(&identities, &sealed).unwrap();
            marked += MarksReader::open(&plain).unwrap().count() as u64;
        }
        marked
    }

    /// Returns the names below a folder.
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

    pub(crate) fn head(&self, stream: StreamId) -> Option<Head> {
        let name = Name::new(&ObjectName::Head(stream).to_string()).unwrap();
        self.depot.get(&name).unwrap().map(|(bytes, _)| Head::decode(&bytes).unwrap())
    }

    /// Writes a head over the present one, as a living agent does.
    pub(crate) fn renew(&self, stream: StreamId, change: impl FnOnce(Head) -> Head) {
        let name = Name::new(&ObjectName::Head(stream).to_string()).unwrap();
        let (bytes, version) = self.depot.get(&name).unwrap().expect("the stream has a head");
        let head = Head::decode(&bytes).unwrap();
        let head = change(Head { renewed: head.renewed + 1, ..head });
        self.depot.swap(&name, Some(&version), &head.encode()).expect("nobody else writes it");
    }

    /// Closes the streams of an agent that was killed: nobody has to wait until their heads are silent.
    pub(crate) fn close_all(&self) {
        for name in self.names("v1/heads") {
            let stream = name.rsplit('/').next().and_then(StreamId::parse).expect("the head of a stream");
            self.renew(stream, |head| Head { state: HeadState::Closed, ..head });
        }
    }

    /// Ships messages as a stream of their own, with this many messages in a bundle.
    pub(crate) fn ship(&self, records: &[FleetRecord], state: HeadState, in_bundle: usize) -> StreamId {
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let mut number = 0;
        for records in records.chunks(in_bundle) {
            let mut builder = BundleBuilder::new();
            for record in records {
                assert_eq!(builder.push(record).unwrap(), Pushed::Taken);
            }
            let bundle = builder.finish().expect("it has records");
            self.put_sealed(&ObjectName::Bundle(stream, bundle.manifest.name(number)), &bundle.bytes);
            number += 1;
        }
        self.put(&ObjectName::Head(stream), &head(state, number, records.len() as u64).encode());
        stream
    }

    /// Ships the files of these messages, which are in this store.
    fn ship_files(&self, stream: StreamId, store: &dyn Store, records: &[FleetRecord]) {
        for record in records {
            let Some(file) = &record.file else { continue };
            let message = record.reference.message;
            let id = MessageId(i64::try_from(message).unwrap());
            let pieces = (0..).map_while(|number| store.piece(id, number).unwrap());
            let bytes = pieces.flatten().collect::<Vec<u8>>();
            assert!(PIECE_BYTES < FILE_PART_BYTES && bytes.len() as u64 == file.attachment.bytes);
            for (number, part) in (0..).zip(bytes.chunks(FILE_PART_BYTES)) {
                self.put_sealed(&ObjectName::File { stream, message, number }, part);
            }
        }
    }

    /// Ships what is in a store as streams: `which` tells the stream of each message, by any name.
    pub(crate) fn ship_store(
        &self,
        db: &Path,
        state: HeadState,
        which: impl Fn(&StoredMessage) -> usize,
    ) -> Vec<StreamId> {
        let limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
        let store = store::open(db, OpenMode::Existing, limits).unwrap();
        let mut streams: BTreeMap<usize, Vec<FleetRecord>> = BTreeMap::new();
        let mut after = None;
        loop {
            let page = Page { after, limit: 500, newest_first: false };
            let listed = store.list(&Filter::default(), &page).unwrap();
            let Some(last) = listed.last() else { break };
            after = Some(last.id);
            for listed in listed {
                let stored = store.get(listed.id).unwrap().expect("it was listed");
                streams.entry(which(&stored)).or_default().push(record(&*store, stored));
            }
        }
        let ship = |records: Vec<FleetRecord>| {
            let stream = self.ship(&records, state, 20);
            self.ship_files(stream, &*store, &records);
            stream
        };
        streams.into_values().map(ship).collect()
    }

    /// Returns a command that replays this depot for a server.
    pub(crate) fn replayer(&self, home: &Home, upstream: &str) -> Command {
        let mut command = home.command(program());
        command.args(["replay", "--fleet", &self.url(), "--upstream", upstream, "--identity"]).arg(&self.identity);
        command.env("OPIK_OFFLINE_DB", home.db()).env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", TAKEOVER_AFTER);
        command.env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.2").env("OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", "5");
        command
    }

    /// Replays until nothing is free.
    pub(crate) fn replay(&self, server: &FakeOpik, args: &[&str]) -> Output {
        let home = Home::new();
        run(self.replayer(&home, &server.url()).args(args))
    }

    /// Replays until nothing is free, and returns the result for programs.
    #[track_caller]
    pub(crate) fn replayed(&self, server: &FakeOpik, args: &[&str]) -> Value {
        let output = self.replay(server, &[args, &["--format", "json"]].concat());
        assert!(matches!(output.code(), Some(0 | 4)), "{:?}: {}{}", output.code(), output.stdout, output.stderr);
        output.json()
    }

    /// Starts a replayer that runs beside the test.
    pub(crate) fn spawn(&self, home: &Home, server: &FakeOpik, args: &[&str]) -> Child {
        let mut command = self.replayer(home, &server.url());
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("the replayer can be started")
    }
}

/// Returns how many messages are in bundles of these names.
pub(crate) fn messages_in(names: &[String]) -> u64 {
    let messages = |name: &String| match ObjectName::parse(name) {
        Some(ObjectName::Bundle(_, bundle)) => u64::from(bundle.messages),
        _ => 0,
    };
    names.iter().map(messages).sum()
}

/// Returns the head of an agent's stream.
pub(crate) fn head(state: HeadState, bundles: u32, messages: u64) -> Head {
    let owner = HeadOwner { host: "pod-host".to_owned(), nonce: uuid7(), ..HeadOwner::default() };
    Head {
        bundles,
        shipped: messages,
        waiting: messages,
        oldest_ms: Some(1_700_000_000_000),
        renewed: 1,
        ..Head::first(state, owner)
    }
}

/// Returns a stored message as it is shipped.
fn record(store: &dyn Store, stored: StoredMessage) -> FleetRecord {
    let id = stored.listed.id;
    let file = store.attachment(id).unwrap();
    let message = stored.into_message();
    let file = file.map(|file| ShippedFile::new(FileContent::Attachment, file));
    FleetRecord { file, ..FleetRecord::waiting(u64::try_from(id.0).unwrap(), message) }
}

/// Writes of clients during an outage, in the store of a pod's agent that is gone.
pub(crate) struct Outage {
    pub ledger: ClientLedger,
    pub db: PathBuf,
    /// The traces, in groups that belong together.
    pub groups: Vec<Vec<String>>,
    /// Holds the store for as long as it is needed.
    _home: Home,
}

impl Outage {
    /// Writes traces with spans, updates and scores in this many groups to an agent whose server is away.
    pub(crate) fn new(server: &FakeOpik, groups: usize, traces: usize) -> Self {
        let mut agent = Agent::builder(&server.url()).impatient().start();
        let ledger = ClientLedger::new();
        let groups: Vec<Vec<String>> = (0..groups).map(|_| (0..traces).map(|_| uuid7()).collect()).collect();
        {
            let mut app = Told::new(&agent.url(), &ledger);
            for round in 0..4 {
                for id in groups.iter().flatten() {
                    match round {
                        0 => app.acknowledged(create(id), 201),
                        1 => app.acknowledged(span(&uuid7(), id), 201),
                        2 => app.acknowledged(update(id, 1), 204),
                        _ => app.acknowledged(score(id, 0.5), 204),
                    };
                }
                for id in groups.iter().flatten() {
                    app.acknowledged(update(id, 2 + round), 204);
                }
            }
        }
        agent.kill9();
        let home = Home::new();
        let db = home.db();
        for end in ["", "-wal", "-shm"] {
            let from = PathBuf::from(format!("{}{end}", agent.db().display()));
            if from.exists() {
                std::fs::copy(&from, format!("{}{end}", db.display())).unwrap();
            }
        }
        Self { ledger, db, groups, _home: home }
    }

    /// Returns the group whose trace a message is about.
    pub(crate) fn group(&self, stored: &StoredMessage) -> usize {
        let body = stored.request.body.decode(1 << 20).expect("it decodes");
        let text = format!("{} {}", stored.request.path, String::from_utf8_lossy(&body));
        let about = |ids: &Vec<String>| ids.iter().any(|id| text.contains(id.as_str()));
        self.groups.iter().position(about).expect("every message is about one of the traces")
    }

    /// Ships each group as a stream.
    pub(crate) fn ship(&self, fleet: &TestFleet, state: HeadState) -> Vec<StreamId> {
        fleet.ship_store(&self.db, state, |stored| self.group(stored))
    }

    pub(crate) fn messages(&self) -> u64 {
        self.groups.iter().map(|ids| ids.len() as u64 * 8).sum()
    }
}

/// Returns the folder of a stream's bundles in the file system.
pub(crate) fn bundle_folder(fleet: &TestFleet, stream: StreamId) -> PathBuf {
    fleet.root().join(names::bundles_of(&stream))
}

/// Returns a create of a trace of about 1 kB, for figures.
pub(crate) fn synthetic(id: u64, server: &str) -> FleetRecord {
    let trace = uuid7();
    let body =
        serde_json::json!({ "id": trace, "start_time": "2026-03-01T04:00:16Z", "input": { "q": "x".repeat(900) } });
    let message = Message {
        lane: Lane { server: Some(Server::new(server)), workspace: Some("default".to_owned()), credential: None },
        message_type: MessageType::CreateTrace,
        request: opik_offline::message::Request {
            method: "POST".to_owned(),
            path: "v1/private/traces".to_owned(),
            headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
            body: Body::new(body.to_string().into_bytes(), Encoding::Identity),
        },
        touches: vec![Touch { key: EntityKey::new(EntityKind::Trace, &trace), effect: Effect::Create }],
        items: 1,
        project: None,
        accepted_at_ms: 1_790_000_000_000,
    };
    FleetRecord::waiting(id, message)
}
