//! Depots filled without agents: streams of agents that are gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opik_offline::depot::folder::FolderDepot;
use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::bundle::BundleBuilder;
use opik_offline::fleet::fleet_file::FleetFile;
use opik_offline::fleet::head::{Head, HeadOwner, HeadState};
use opik_offline::fleet::names::{ObjectName, StreamId};
use opik_offline::fleet::record::FleetRecord;
use opik_offline::message::{
    Body, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageType, Request, Server, Touch,
};
use opik_offline::sealing::{Recipient, make_identity, seal};
use opik_offline::store::{self, Limits, OpenMode, WhenFull};
use uuid::Uuid;

use crate::agent::store_path;
use crate::seaweedfs::ObjectStorage;

/// Threads that fill a depot: object storage answers in milliseconds.
const FILLERS: usize = 8;
/// Messages of one commit of a local store.
const COMMIT: usize = 1_000;
/// When all messages were accepted.
const ACCEPTED_AT_MS: i64 = 1_790_000_000_000;

/// A depot with the keys of its replayers.
pub(crate) struct FilledDepot {
    pub depot: Arc<dyn Depot>,
    pub url: String,
    /// With which processes reach it.
    pub variables: Vec<(String, String)>,
    pub identity: PathBuf,
    recipient: Recipient,
}

impl FilledDepot {
    /// Makes a depot in a folder below `home`.
    pub(crate) fn in_folder(home: &Path, name: &str) -> Self {
        let root = home.join(name);
        std::fs::create_dir(&root).expect("a folder can be made");
        let depot = FolderDepot::open(&root, Duration::from_secs(30)).expect("it is there");
        Self::new(home, name, Arc::new(depot), format!("file://{}", root.display()), Vec::new())
    }

    /// Makes a depot in object storage.
    pub(crate) fn in_storage(home: &Path, name: &str, storage: &ObjectStorage) -> Self {
        Self::new(home, name, storage.open(name), ObjectStorage::url(name), storage.variables())
    }

    fn new(home: &Path, name: &str, depot: Arc<dyn Depot>, url: String, variables: Vec<(String, String)>) -> Self {
        let identity = home.join(format!("{name}.identity"));
        let recipient = make_identity(&identity).expect("a file can be written");
        let filled = Self { depot, url, variables, identity, recipient };
        let file = FleetFile { fleet: Uuid::now_v7(), recipients: vec![filled.recipient.to_string()] };
        filled.put(&ObjectName::FleetFile, &file.encode());
        filled
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) {
        self.depot.create(&Name::new(&name.to_string()).expect("a name"), bytes).expect("the depot takes it");
    }

    pub(crate) fn recipient(&self) -> String {
        self.recipient.to_string()
    }

    /// Ships this many streams, each with one bundle of this many messages for this server; returns the bytes of all
    /// bundles.
    pub(crate) fn ship(&self, streams: usize, messages: u64, server: &str) -> usize {
        let bytes = AtomicUsize::new(0);
        in_threads(streams, |_| {
            let mut builder = BundleBuilder::new();
            for id in 1..=messages {
                builder.push(&FleetRecord::waiting(id, trace(server))).expect("it fits");
            }
            let bundle = builder.finish().expect("it has records");
            let sealed = seal(std::slice::from_ref(&self.recipient), &bundle.bytes).expect("memory");
            let stream = StreamId::new(Uuid::now_v7());
            self.put(&ObjectName::Bundle(stream, bundle.manifest.name(0)), &sealed);
            self.put(&ObjectName::Head(stream), &head(1, messages).encode());
            bytes.fetch_add(sealed.len(), Ordering::Relaxed);
        });
        bytes.into_inner()
    }

    /// Makes this many heads of streams whose bundles are gone.
    pub(crate) fn add_heads(&self, count: usize) {
        in_threads(count, |_| self.put(&ObjectName::Head(StreamId::new(Uuid::now_v7())), &head(0, 0).encode()));
    }
}

/// Does something this often, in a few threads.
pub(crate) fn in_threads(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..FILLERS {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < count) {
                    work(number);
                }
            });
        }
    });
}

fn head(bundles: u32, messages: u64) -> Head {
    let owner = HeadOwner { host: "pod".to_owned(), nonce: Uuid::now_v7().to_string(), ..HeadOwner::default() };
    Head {
        bundles,
        shipped: messages,
        waiting: messages,
        oldest_ms: u64::try_from(ACCEPTED_AT_MS).ok(),
        renewed: 1,
        ..Head::first(HeadState::Closed, owner)
    }
}

/// Returns the create of a trace of about 1 KB, as the Python SDK sends it: replay joins those of one lane.
fn trace(server: &str) -> Message {
    let id = Uuid::now_v7().to_string();
    // Not to be compressed to nothing.
    let noise: String = (0..26).map(|_| Uuid::now_v7().simple().to_string()).collect();
    let body = format!(
        r#"{{"traces":[{{"id":"{id}","name":"request","start_time":"2026-03-01T04:00:16Z","input":{{"question":"{noise}"}}}}]}}"#
    );
    Message {
        lane: Lane { server: Some(Server::new(server)), workspace: Some("default".to_owned()), credential: None },
        message_type: MessageType::CreateTraceBatch,
        request: Request {
            method: "POST".to_owned(),
            path: "v1/private/traces/batch".to_owned(),
            headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
            body: Body::new(body.into_bytes(), Encoding::Identity),
        },
        touches: vec![Touch { key: EntityKey::new(EntityKind::Trace, &id), effect: Effect::Create }],
        items: 1,
        project: None,
        accepted_at_ms: ACCEPTED_AT_MS,
    }
}

/// Stores the same messages in a local store.
pub(crate) fn store_traces(home: &Path, server: &str, count: usize) {
    let limits = Limits { size_max: 100 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
    let store = store::open(&store_path(home), OpenMode::CreateIfMissing, limits).expect("a new store");
    for first in (0..count).step_by(COMMIT) {
        let messages: Vec<Message> = (first..count.min(first + COMMIT)).map(|_| trace(server)).collect();
        store.register(&messages).expect("there is room");
    }
}
