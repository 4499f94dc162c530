//! A panic inside opik-offline: it costs no acknowledged data and no other lane, and the agent continues. The rooms
//! are put together here by hand, because no process panics on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opik_offline::delivery::pacing::PaceSettings;
use opik_offline::message::{
    Attachment, Body, Claimed, Encoding, EntityKey, HeaderSet, Lane, Message, MessageId, MessageType, Request, Server,
    Sha256, Touch,
};
use opik_offline::monitor::MonitorSettings;
use opik_offline::monitor::connection::Connection;
use opik_offline::protocol::inspection::inspect;
use opik_offline::protocol::routes::Protected;
use opik_offline::replay::{ReplayManager, ReplaySettings};
use opik_offline::shutdown::Shutdown;
use opik_offline::store::committer::Committer;
use opik_offline::store::slot::StoreSlot;
use opik_offline::store::{
    AgentRecord, Ahead, AttachmentId, Attachments, Backlog, BacklogSeen, Browse, Claim, ClaimLimits, Condition, Filter,
    Hold, Holdable, Intake, LaneId, LaneListed, LanePage, LaneRange, LaneWork, Lease, Listed, Maintain, Outcome, Owner,
    Page, Purged, Replay, ReplayHold, ReplayRecord, SalvagedRow, Shipped, ShippedMessage, Standing, Store, StoreError,
    StoreIdentity, StoredMessage, Stranded, StreamRecord, UnshippedCount, WaitEnd, Whose,
};
use opik_offline::telemetry::metrics::Metrics;
use opik_offline::upstream::{Upstream, UpstreamSettings};
use uuid::Uuid;

use crate::model_store::ModelStore;
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create_batch, trace};

/// A store that panics the next `n` times.
struct Panicking {
    store: ModelStore,
    registering: AtomicUsize,
    /// When this lane's messages are claimed.
    claiming: AtomicUsize,
    lane: &'static str,
    /// How many settles fail, as on a disk in trouble, and how.
    unsettled: AtomicUsize,
    trouble: fn() -> StoreError,
    /// Commits of a replay: claims, settles, and what belongs to them.
    commits: AtomicUsize,
}

impl Panicking {
    fn new(lane: &'static str) -> Self {
        let (registering, claiming, unsettled) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let commits = AtomicUsize::new(0);
        Self { store: ModelStore::default(), registering, claiming, lane, unsettled, trouble: busy, commits }
    }

    fn panics(left: &AtomicUsize) {
        assert!(!Self::takes_one(left), "a panic that the test asked for");
    }

    fn takes_one(left: &AtomicUsize) -> bool {
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    /// Returns whether one of these is a message of the lane that panics.
    fn has_ours(&self, claimed: &[Claimed]) -> bool {
        let is_ours = |id: MessageId| {
            self.store.get(id).is_ok_and(|found| found.is_some_and(|m| m.listed.lane.workspace_name() == self.lane))
        };
        claimed.iter().any(|message| is_ours(message.id))
    }
}

fn busy() -> StoreError {
    StoreError::Busy { at: "/tmp/none.db".into(), waited_ms: 1 }
}

fn unusable() -> StoreError {
    StoreError::Unusable { at: "/tmp/none.db".into(), reason: "the disk failed, as the test asked for".into() }
}

macro_rules! delegate {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) -> $returns:ty;)*) => {
        $(fn $name(&self $(, $argument: $type)*) -> Result<$returns, StoreError> { self.store.$name($($argument),*) })*
    };
}

impl Intake for Panicking {
    fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey> {
        self.store.unseen_creates(lane, message_type, touches)
    }

    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError> {
        Self::panics(&self.registering);
        self.store.register(messages)
    }

    delegate! {
        fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Ahead;
        fn is_clear(&self, lane: &Lane) -> bool;
        fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> BacklogSeen;
        fn limit(&self, lane: &Lane, hold: &Hold) -> ();
        fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)], unsure_before_ms: i64) -> ();
        fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> ();
        fn hasten(&self, whose: &Whose) -> ();
        fn salvage(&self, rows: &[SalvagedRow]) -> Vec<Option<MessageId>>;
        fn is_salvaged(&self, row: &Sha256) -> bool;
        fn note_full(&self, since_ms: Option<i64>, refused: u64) -> ();
    }
}

impl Attachments for Panicking {
    delegate! {
        fn begin_attachment(&self, bytes_expected: Option<u64>) -> AttachmentId;
        fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> ();
        fn register_attachment(&self, attachment: AttachmentId, file: &Attachment, message: &Message) -> MessageId;
        fn abandon_attachment(&self, attachment: AttachmentId) -> ();
        fn attachment(&self, message: MessageId) -> Option<Attachment>;
        fn piece(&self, message: MessageId, number: u32) -> Option<Vec<u8>>;
    }
}

impl Replay for Panicking {
    fn claim(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Claim, StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let claim = self.store.claim(lease, lane, filter, limits, now_ms)?;
        if let Claim::Taken(claimed) = &claim
            && self.has_ours(claimed)
        {
            Self::panics(&self.claiming);
        }
        Ok(claim)
    }

    fn claim_lanes(
        &self,
        lease: &Lease,
        lanes: &[LaneId],
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Vec<(LaneId, Vec<Claimed>)>, StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let taken = self.store.claim_lanes(lease, lanes, filter, limits, now_ms)?;
        if taken.iter().any(|(_, claimed)| self.has_ours(claimed)) {
            Self::panics(&self.claiming);
        }
        Ok(taken)
    }

    fn make_due(&self, lease: &Lease, lanes: &[(LaneId, WaitEnd)], now_ms: i64) -> Result<(), StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.store.make_due(lease, lanes, now_ms)
    }

    fn settle(&self, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        if Self::takes_one(&self.unsettled) {
            return Err((self.trouble)());
        }
        self.store.settle(lease, outcomes)
    }

    delegate! {
        fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Lease;
        fn renew(&self, lease: &Lease, time_to_live: Duration) -> ();
        fn release(&self, lease: &Lease) -> ();
        fn return_in_flight(&self, lease: &Lease) -> u64;
        fn interrupted(&self, lane: LaneId) -> usize;
        fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> ();
        fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Vec<(LaneId, MessageId)>;
        fn release_held(&self, lease: &Lease, lane: LaneId) -> u64;
    }
}

impl Browse for Panicking {
    fn identity(&self) -> StoreIdentity {
        self.store.identity()
    }

    delegate! {
        fn backlog(&self, filter: &Filter) -> Backlog;
        fn list(&self, filter: &Filter, page: &Page) -> Vec<Listed>;
        fn whole(&self, ids: &[MessageId]) -> Vec<StoredMessage>;
        fn lanes(&self, filter: &Filter, now_ms: i64) -> Vec<LaneWork>;
        fn lane_page(&self, filter: &Filter, range: LaneRange, now_ms: i64) -> LanePage;
        fn lane_list(&self, now_ms: i64) -> Vec<LaneListed>;
        fn stranded(&self) -> Vec<Stranded>;
        fn newest(&self) -> MessageId;
        fn standing(&self, whose: &Whose, up_to: MessageId) -> Standing;
        fn condition(&self) -> Condition;
        fn check(&self) -> Vec<String>;
    }
}

impl Maintain for Panicking {
    fn has_to_be_reopened(&self) -> bool {
        self.store.has_to_be_reopened()
    }

    fn close(&self) {
        self.store.close();
    }

    delegate! {
        fn adopt(&self, server: &Server) -> u64;
        fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> u64;
        fn purge(&self, filter: &Filter, limit: usize) -> Purged;
        fn expire(&self, accepted_before_ms: i64, limit: usize) -> u64;
        fn requeue(&self, filter: &Filter) -> u64;
        fn erase_credentials(&self) -> bool;
        fn compact(&self) -> u64;
        fn keep_room(&self) -> ();
        fn announce(&self, agent: Option<&AgentRecord>) -> ();
        fn note_replay(&self, record: &ReplayRecord) -> ();
    }
}

impl Holdable for Panicking {
    delegate! {
        fn set_replay_hold(&self, hold: Option<&ReplayHold>) -> ();
        fn replay_hold(&self) -> Option<ReplayHold>;
    }
}

impl Shipped for Panicking {
    fn makes_marks(&self) {
        self.store.makes_marks();
    }

    delegate! {
        fn streams(&self) -> Vec<StreamRecord>;
        fn note_stream(&self, record: &StreamRecord) -> ();
        fn end_stream(&self, stream: Uuid) -> ();
        fn begin_bundle(&self, stream: Uuid, limits: ClaimLimits) -> Vec<MessageId>;
        fn confirm_bundle(&self, stream: Uuid, next_bundle: u32) -> ();
        fn withdraw_bundle(&self, stream: Uuid) -> ();
        fn outstanding(&self, ids: &[MessageId]) -> Vec<ShippedMessage>;
        fn outstanding_and_gone(&self, limit: usize) -> Vec<ShippedMessage>;
        fn note_marked(&self, ids: &[MessageId]) -> ();
        fn unshipped(&self) -> UnshippedCount;
        fn hand_over(&self, stream: Uuid) -> Vec<MessageId>;
    }
}

fn message(workspace: &str) -> Message {
    Message {
        lane: Lane { workspace: Some(workspace.to_owned()), ..Lane::default() },
        message_type: MessageType::CreateTrace,
        request: Request {
            method: "POST".into(),
            path: "v1/private/traces".into(),
            headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
            body: Body::new(trace(&uuid7(), "chat").to_string(), Encoding::Identity),
        },
        touches: Vec::new(),
        items: 1,
        project: None,
        accepted_at_ms: 1,
    }
}

#[test]
fn a_panic_while_storing_acknowledges_nothing_and_storing_continues() {
    let store = Arc::new(Panicking::new(""));
    let committer = Committer::start(Arc::new(StoreSlot::holding(store.clone()))).unwrap();
    committer.store(message("team")).unwrap();
    store.registering.store(1, Ordering::SeqCst);
    assert!(committer.store(message("team")).is_err(), "a write that was not stored was acknowledged");
    committer.store(message("team")).expect("the store is as good as before");
    assert_eq!(store.backlog(&Filter::default()).unwrap().waiting(), 2);
}

/// Replays everything in this store to this server, as the agent does.
fn replay_all(store: &Arc<Panicking>, server: &FakeOpik) {
    let slot = StoreSlot::holding(store.clone());
    let second = Duration::from_secs(1);
    let settings = UpstreamSettings { connect_timeout: second, ..UpstreamSettings::plain(server.url(), PATIENCE) };
    let upstream = Upstream::new(&settings);
    let connection =
        Connection::new(MonitorSettings { ping_interval: second, is_interval_set: true, check_timeout: second });
    connection.pinged(Ok(()), None, std::time::Instant::now());
    let (metrics, shutdown) = (Metrics::default(), Shutdown::new());
    let memory = opik_offline::memory::Budget::new(64 << 20);
    let manager = ReplayManager {
        slot: &slot,
        upstream: &upstream,
        connection: &connection,
        settings: ReplaySettings {
            filter: Filter::default(),
            limit: None,
            pace: PaceSettings::default(),
            dial: None,
            retry_interval: Duration::from_millis(200),
            attempts_max: 10,
        },
        tick_interval: Duration::from_millis(20),
        metrics: &metrics,
        memory: &memory,
        workers_max: 64,
        shutdown: &shutdown,
        owner: Owner::this_process("agent"),
        rekey: None,
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| manager.run());
        wait_until("every lane is delivered", PATIENCE, || store.backlog(&Filter::default()).unwrap().waiting() == 0);
        shutdown.request();
        connection.wake();
        running.join().expect("the replay survives");
    });
}

#[test]
fn a_panic_in_one_lane_stops_no_other_and_loses_nothing() {
    let server = FakeOpik::start_new();
    let store = Arc::new(Panicking::new("cursed"));
    for workspace in ["cursed", "a", "b"] {
        for _ in 0..5 {
            store.register(&[message(workspace)]).unwrap();
        }
    }
    store.claiming.store(3, Ordering::SeqCst);
    replay_all(&store, &server);
    assert_eq!(store.claiming.load(Ordering::SeqCst), 0, "nothing panicked");
    for workspace in ["cursed", "a", "b"] {
        assert_eq!(server.count(workspace, Kind::Trace), 5, "{workspace}");
    }
    assert_eq!(store.backlog(&Filter::default()).unwrap().rejected(), 0);
}

#[test]
fn a_disk_error_does_not_resend_confirmed_messages() {
    for (what, trouble) in [("busy", busy as fn() -> StoreError), ("unusable", unusable)] {
        eprintln!("the store is {what}");
        let server = FakeOpik::start_new();
        let store = Arc::new(Panicking { trouble, ..Panicking::new("") });
        let messages: Vec<Message> = (0..40).map(|n| message(if n % 2 == 0 { "a" } else { "b" })).collect();
        store.register(&messages).unwrap();
        store.unsettled.store(4, Ordering::SeqCst);
        replay_all(&store, &server);
        assert_eq!(store.unsettled.load(Ordering::SeqCst), 0, "no settle failed");
        let sent: usize = server.requests().iter().map(|request| request.writes.len()).sum();
        assert_eq!(sent, 40, "a confirmed message was sent again");
        assert_eq!(server.count("a", Kind::Trace) + server.count("b", Kind::Trace), 40);
        assert_eq!(store.backlog(&Filter::default()).unwrap().rejected(), 0);
    }
}

#[test]
fn a_division_that_cannot_be_settled_is_not_sent_again_and_again() {
    let server = FakeOpik::start_new();
    let store = Arc::new(Panicking::new(""));
    let ids: Vec<String> = (0..64).map(|_| uuid7()).collect();
    let body = create_batch(&ids).body;
    let route = Protected { message_type: MessageType::CreateTraceBatch, path_id: None };
    let whole = message("a");
    let batch = Message {
        message_type: MessageType::CreateTraceBatch,
        touches: inspect(&route, &body).unwrap().touches,
        items: 64,
        request: Request {
            path: "v1/private/traces/batch".into(),
            body: Body::new(body, Encoding::Identity),
            ..whole.request.clone()
        },
        ..whole
    };
    store.register(&[batch]).unwrap();
    store.unsettled.store(4, Ordering::SeqCst);
    server.reject_ids([&ids[20]]);
    replay_all(&store, &server);
    assert_eq!(store.backlog(&Filter::default()).unwrap().rejected(), 1);
    assert_eq!(server.count("a", Kind::Trace), 63);
    // Once with the whole, once in each of the halves that hold it, and once more because the settle failed.
    let passed = ids
        .iter()
        .filter(|id| **id != ids[20])
        .map(|id| server.sequence_for(id).iter().filter(|request| request.processed).count());
    let most = passed.max().unwrap();
    assert!(most <= 2, "an item that the server had confirmed was sent {most} times, for each settle that failed");
}

#[test]
fn lanes_with_a_few_messages_share_their_commits() {
    const LANES: usize = 300;
    let server = FakeOpik::start_new();
    let store = Arc::new(Panicking::new(""));
    let messages: Vec<Message> = (0..3 * LANES).map(|n| message(&format!("team-{}", n % LANES))).collect();
    store.register(&messages).unwrap();
    replay_all(&store, &server);
    for lane in 0..LANES {
        assert_eq!(server.count(&format!("team-{lane}"), Kind::Trace), 3, "lane {lane}");
    }
    let commits = store.commits.load(Ordering::SeqCst);
    assert!(commits < LANES / 2, "{commits} commits for {LANES} lanes: a disk takes a millisecond for each");
}
