//! Random histories: for any sequence of verbs, the engine answers like the model.
//!
//! After every step both stores list the same messages, count the same backlog and offer the same work; at the end the
//! engine's own books agree with its messages. A *crash* continues with a copy of the files as they are, without the
//! store being closed: what a killed process leaves behind.
//!
//! `OPIK_OFFLINE_CASES` sets how many histories are tried.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use opik_offline::message::{
    Body, Bucket, Effect, Encoding, EntityKind, Lane, Message, MessageId, MessageStatus, MessageType, Server, Touch,
};
use opik_offline::store::attachment::{AttachmentWriter, PIECE_BYTES};
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{
    Claim, ClaimLimits, Filter, Hold, Keys, LaneId, LaneRange, LaneWork, LastAnswer, Lease, Outcome, Owner, Page, Part,
    Store, StoreError, WaitEnd, Whose,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::memory_store::MemoryStore;
use crate::messages::{about_trace, attachment, file, lane, touch};
use crate::model_store::ModelStore;
use crate::story::{open_with, sealed_with};

const NOW_MS: i64 = 1_800_000_000_000;
const HOUR_MS: i64 = 60 * 60 * 1000;

fn cases() -> u32 {
    std::env::var("OPIK_OFFLINE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

fn lanes() -> [Lane; 3] {
    [lane("team"), Lane { workspace: None, ..lane("") }, Lane::default()]
}

#[derive(Clone, Debug)]
enum Step {
    Register(Vec<Message>),
    /// A file of this many bytes, registered or given up.
    Attach {
        trace: String,
        lane: usize,
        bytes: usize,
        is_whole: bool,
    },
    Claim {
        lane: usize,
        filter: Filter,
        limits: ClaimLimits,
        now_ms: i64,
    },
    Settle(Vec<(usize, Outcome)>),
    Hold {
        lane: usize,
        hold: Option<Hold>,
    },
    MakeDue {
        lane: usize,
        places: Vec<usize>,
    },
    /// `is_held`: with the hold that the lane has then.
    EndOutage {
        lane: usize,
        is_held: bool,
    },
    ChangeReplayer,
    ReturnInFlight,
    Adopt,
    Reassign {
        from: usize,
        to: usize,
        limit: usize,
    },
    Purge {
        filter: Filter,
        limit: usize,
    },
    Requeue(Filter),
    RetryHeld {
        before_ms: i64,
    },
    ReleaseHeld {
        lane: usize,
    },
    Compact,
    Reopen,
    Crash,
}

fn any_message() -> impl Strategy<Value = Message> {
    let effect = prop_oneof![
        4 => Just(Effect::Create),
        4 => Just(Effect::Update),
        2 => Just(Effect::Annotate),
        2 => Just(Effect::Refer),
    ];
    let touches = vec(("[a-d]", effect), 1..4);
    (0..3_usize, touches, 0..1000_i64, 0..6000_usize, 1..5_u32, prop::option::of("[pq]")).prop_map(
        |(lane, touches, accepted_at_ms, body_bytes, items, project)| {
            let (id, effect) = &touches[0];
            let mut message = about_trace(&lanes()[lane], id, *effect, accepted_at_ms);
            message.touches =
                Touch::distinct(touches.iter().map(|(id, effect)| touch(EntityKind::Trace, id, *effect)).collect());
            let encoding = if body_bytes % 2 == 0 { Encoding::Gzip } else { Encoding::Identity };
            message.request.body = Body::new(vec![b'x'; body_bytes], encoding);
            message.items = items;
            message.project = project;
            message
        },
    )
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let status = prop::sample::select(vec![
        MessageStatus::Registered,
        MessageStatus::Delivered,
        MessageStatus::Failed,
        MessageStatus::Rejected,
        MessageStatus::Held,
    ]);
    let message_type = prop::sample::select(vec![MessageType::CreateTrace, MessageType::UpdateTrace]);
    let workspace = prop::sample::select(vec!["team".to_owned(), "default".to_owned(), "nobody".to_owned()]);
    let entity = "[a-e]".prop_map(|id| touch(EntityKind::Trace, &id, Effect::Refer).key);
    let narrow = (
        vec(status, 0..3),
        vec(message_type, 0..2),
        vec(workspace, 0..2),
        vec("[pq]", 0..2),
        vec((1..30_i64).prop_map(MessageId), 0..6),
        vec(entity, 0..3),
        prop::option::of(0..1000_i64),
    );
    let narrow = narrow.prop_map(|(statuses, types, workspaces, projects, ids, entities, accepted_before_ms)| Filter {
        statuses,
        types,
        workspaces,
        servers: Vec::new(),
        projects,
        ids,
        entities,
        accepted_before_ms,
        accepted_since_ms: accepted_before_ms.map(|before| before / 2),
    });
    // Every condition alone is more telling than all at once, which selects nothing.
    (narrow, 0..10_u8).prop_map(|(narrow, which)| {
        let all = Filter::default();
        match which {
            0 => Filter { statuses: narrow.statuses, ..all },
            1 => Filter { types: narrow.types, ..all },
            2 => Filter { workspaces: narrow.workspaces, ..all },
            3 => Filter { projects: narrow.projects, ..all },
            4 => Filter { ids: narrow.ids, ..all },
            5 => Filter { entities: narrow.entities, statuses: narrow.statuses, ..all },
            6 => Filter::of_server(&Server::new("http://adopter.example")),
            7 => Filter {
                accepted_before_ms: narrow.accepted_before_ms,
                accepted_since_ms: narrow.accepted_since_ms,
                ..all
            },
            8 => Filter { accepted_before_ms: narrow.accepted_before_ms, types: narrow.types, ..all },
            _ => all,
        }
    })
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let status = prop::sample::select(vec![400, 401, 402, 403, 500, 502, 503, 504, 519, 520]);
    let answer = (prop::option::of(status), "[a-z ö]{0,9}", 0..9_i64);
    let answer = answer.prop_map(|(status, text, at_ms)| LastAnswer { status, text, at_ms });
    let next = prop::sample::select(vec![0, NOW_MS + 500, NOW_MS + 5000, NOW_MS + 2 * HOUR_MS]);
    let failed = (next, any::<bool>(), prop::option::of(answer.clone()));
    prop_oneof![
        3 => Just(Outcome::Delivered),
        3 => failed.prop_map(|(next_attempt_at_ms, counts, answer)| Outcome::Failed { next_attempt_at_ms, counts, answer }),
        2 => answer.clone().prop_map(|answer| Outcome::Rejected { answer }),
        2 => answer.clone().prop_map(|answer| Outcome::Held { answer }),
        2 => vec((any_message(), prop::option::of(answer), any::<bool>()), 1..3).prop_map(|parts| Outcome::Divided {
            parts: parts
                .into_iter()
                .map(|(message, answer, is_held)| Part {
                    request: message.request,
                    touches: message.touches,
                    items: message.items,
                    rejected: answer.clone().filter(|_| !is_held),
                    held: answer.filter(|_| is_held),
                })
                .collect(),
        }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let limits =
        (1..6_usize, 1..20_000_u64).prop_map(|(messages_max, bytes_max)| ClaimLimits { messages_max, bytes_max });
    let now = prop::sample::select(vec![NOW_MS, NOW_MS + 1000, NOW_MS + 10_000]);
    let bucket = prop::option::of(prop::sample::select(Bucket::ALL.to_vec()));
    let hold = (prop::sample::select(vec![0, NOW_MS + 2000, NOW_MS + 48 * HOUR_MS]), any::<bool>(), bucket).prop_map(
        |(until_ms, probe, bucket)| Hold {
            until_ms,
            reason: "busy".into(),
            probe: probe && bucket.is_none(),
            status: bucket.map(|_| 429),
            bucket,
        },
    );
    prop_oneof![
        8 => vec(any_message(), 1..6).prop_map(Step::Register),
        2 => ("[a-d]", 0..3_usize, prop::sample::select(vec![0, 900, PIECE_BYTES, PIECE_BYTES + 900]), 0..4_u8)
            .prop_map(|(trace, lane, bytes, dice)| Step::Attach { trace, lane, bytes, is_whole: dice > 0 }),
        8 => (0..3_usize, any_filter(), limits, now)
            .prop_map(|(lane, filter, limits, now_ms)| Step::Claim { lane, filter, limits, now_ms }),
        8 => vec((0..8_usize, any_outcome()), 1..6).prop_map(Step::Settle),
        2 => (0..3_usize, prop::option::of(hold)).prop_map(|(lane, hold)| Step::Hold { lane, hold }),
        1 => (0..3_usize, vec(0..8_usize, 1..4)).prop_map(|(lane, places)| Step::MakeDue { lane, places }),
        1 => (0..3_usize, any::<bool>()).prop_map(|(lane, is_held)| Step::EndOutage { lane, is_held }),
        1 => Just(Step::ChangeReplayer),
        2 => Just(Step::ReturnInFlight),
        1 => Just(Step::Adopt),
        1 => (0..3_usize, 0..3_usize, 1..9_usize).prop_map(|(from, to, limit)| Step::Reassign { from, to, limit }),
        1 => (any_filter(), 0..4_usize).prop_map(|(filter, limit)| Step::Purge { filter, limit }),
        1 => any_filter().prop_map(Step::Requeue),
        1 => (0..9_i64).prop_map(|before_ms| Step::RetryHeld { before_ms }),
        1 => (0..3_usize).prop_map(|lane| Step::ReleaseHeld { lane }),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

/// A store with its replayer.
struct Side {
    store: Box<dyn Store>,
    lease: Lease,
    earlier: Option<Lease>,
}

impl Side {
    fn new(store: Box<dyn Store>, owner: &Owner) -> Self {
        let lease = store.acquire(owner, Duration::from_secs(600)).expect("nobody else replays");
        Self { store, lease, earlier: None }
    }

    fn lane_id(&self, lane: usize) -> Option<LaneId> {
        let work = self.store.lanes(&Filter::default(), NOW_MS).expect("lanes can be read");
        work.into_iter().find(|work| work.lane == lanes()[lane]).map(|work| work.id)
    }

    /// Does the step and returns what it answered, in words that two stores have in common.
    fn take(&mut self, step: &Step, in_flight: &mut Vec<MessageId>, next_owner: &Owner) -> String {
        let (store, lease) = (&self.store, &self.lease);
        match step {
            Step::Register(messages) => format!("{:?}", store.register(messages).expect("there is room")),
            Step::Attach { trace, lane, bytes, is_whole } => {
                let mut writer = AttachmentWriter::begin(store.as_ref(), None).expect("there is room");
                writer.write(&file(*bytes as u64, *bytes)).expect("there is room");
                match is_whole {
                    true => {
                        format!("{:?}", writer.register(&attachment(&lanes()[*lane], trace, 7)).expect("there is room"))
                    }
                    false => "given up".into(),
                }
            }
            Step::Claim { lane, filter, limits, now_ms } => {
                let Some(lane) = self.lane_id(*lane) else { return "nothing waits".into() };
                let mut claimed = match store.claim(lease, lane, filter, *limits, *now_ms).expect("we have the lease") {
                    Claim::Taken(claimed) => claimed,
                    too_large @ Claim::TooLarge { .. } => return format!("{too_large:?}"),
                };
                // A process forgets which creates it saw when it ends, and the model does not.
                for message in &mut claimed {
                    (message.ahead, message.way) = Default::default();
                }
                in_flight.extend(claimed.iter().map(|message| message.id));
                format!("{claimed:?}")
            }
            Step::Settle(outcomes) => {
                // Some of these are in flight no more, or never were: nothing happens to them.
                let named = |place: &usize| in_flight.get(*place).copied().unwrap_or(MessageId(*place as i64));
                let outcomes: Vec<_> = outcomes.iter().map(|(place, what)| (named(place), what.clone())).collect();
                store.settle(lease, &outcomes).expect("we have the lease");
                in_flight.retain(|id| outcomes.iter().all(|(settled, _)| settled != id));
                if let Some(earlier) = &self.earlier {
                    let refused = store.settle(earlier, &outcomes);
                    assert!(matches!(refused, Err(StoreError::LeaseLost)), "an earlier replayer settled");
                }
                String::new()
            }
            Step::MakeDue { lane, places } => {
                let Some(lane) = self.lane_id(*lane) else { return "nothing waits".into() };
                let ids: Vec<_> = places.iter().map(|place| MessageId(*place as i64)).collect();
                store.make_due(lease, &[(lane, WaitEnd::Delivery(ids))], NOW_MS).expect("we have the lease");
                String::new()
            }
            Step::EndOutage { lane, is_held } => {
                let work = store.lanes(&Filter::default(), NOW_MS).expect("lanes can be read");
                let Some(work) = work.into_iter().find(|work| work.lane == lanes()[*lane]) else {
                    return "nothing waits".into();
                };
                let hold = match is_held {
                    true => work.hold,
                    false => work.hold.map(|hold| Hold { probe: !hold.probe, ..hold }),
                };
                store.make_due(lease, &[(work.id, WaitEnd::Outage(hold))], NOW_MS).expect("we have the lease");
                String::new()
            }
            Step::Hold { lane, hold } => {
                let Some(lane) = self.lane_id(*lane) else { return "nothing waits".into() };
                store.hold(lease, lane, hold.as_ref()).expect("we have the lease");
                String::new()
            }
            Step::ChangeReplayer => {
                store.release(lease).expect("it is ours");
                let next = store.acquire(next_owner, Duration::from_secs(600)).expect("it was released");
                self.earlier = Some(std::mem::replace(&mut self.lease, next));
                String::new()
            }
            Step::Adopt => {
                let adopted = store.adopt(&Server::new("http://adopter.example")).expect("it can be written");
                let adoptions = store.condition().expect("it can be read").adoptions;
                format!("{adopted} {:?}", adoptions.iter().map(|it| (&it.server, it.messages)).collect::<Vec<_>>())
            }
            Step::Reassign { from, to, limit } => {
                let Some(from) = self.lane_id(*from) else { return "nothing waits".into() };
                format!("{}", store.reassign(lease, from, &lanes()[*to], *limit).expect("we have the lease"))
            }
            Step::ReturnInFlight => format!("{}", store.return_in_flight(lease).expect("we have the lease")),
            Step::Purge { filter, limit } => format!("{:?}", store.purge(filter, *limit).expect("it can be purged")),
            Step::Requeue(filter) => format!("{}", store.requeue(filter).expect("it can be requeued")),
            Step::RetryHeld { before_ms } => {
                let mut retried = store.retry_held(lease, *before_ms).expect("we have the lease");
                retried.sort_by_key(|(_, message)| *message);
                format!("{:?}", retried.iter().map(|(_, message)| message).collect::<Vec<_>>())
            }
            Step::ReleaseHeld { lane } => {
                let Some(lane) = self.lane_id(*lane) else { return "nothing waits".into() };
                format!("{}", store.release_held(lease, lane).expect("we have the lease"))
            }
            Step::Compact => {
                store.compact().expect("it can be compacted");
                String::new()
            }
            Step::Reopen | Step::Crash => String::new(),
        }
    }

    /// Everything that can be seen of a store, in words.
    fn view(&self, filter: &Filter) -> Vec<String> {
        let store = &self.store;
        let mut view = Vec::new();
        for filter in [&Filter::default(), filter] {
            for newest_first in [false, true] {
                let page = Page { after: newest_first.then_some(MessageId(9)), limit: 12, newest_first };
                view.extend(store.list(filter, &page).expect("it can be listed").iter().map(|m| format!("{m:?}")));
            }
            view.push(format!("{:?}", store.backlog(filter).expect("it can be counted")));
            for now_ms in [NOW_MS, NOW_MS + 3000] {
                let work = store.lanes(filter, now_ms).expect("lanes can be read");
                let shown = |w: &LaneWork| {
                    let waits = w.waits_for.is_some();
                    format!("{:?} {} {} {:?} {:?} {waits}", w.lane, w.failed, w.due_at_ms, w.hold, w.limits)
                };
                view.extend(work.iter().map(shown));
                let mut by_id = work;
                by_id.sort_by_key(|work| work.id);
                assert_eq!(page_by_page(store.as_ref(), filter, now_ms), by_id, "lanes are lost between pages");
            }
            let mut listed = store.lane_list(NOW_MS).expect("lanes can be listed");
            listed.sort_by(|a, b| a.lane.cmp(&b.lane));
            view.extend(listed.iter().map(|l| format!("{:?} {} {} {:?}", l.lane, l.waiting, l.rejected, l.hold)));
        }
        view.extend(aheads(store.as_ref()));
        view.push(format!("{:?}", store.get(MessageId(3)).expect("it can be read")));
        view.push(format!("{:?}", store.newest().expect("it can be read")));
        let server = Server::new("http://adopter.example");
        let touches = [touch(EntityKind::Trace, "b", Effect::Update)];
        view.push(format!("{:?}", store.backlog_seen(&server, &touches).expect("it can be read")));
        for whose in lanes().map(Whose::Lane).into_iter().chain([Whose::Server(server)]) {
            view.push(format!("{:?}", store.standing(&whose, MessageId(5)).expect("it can be read")));
        }
        view
    }
}

/// The lanes, listed one at a time.
fn page_by_page(store: &dyn Store, filter: &Filter, now_ms: i64) -> Vec<LaneWork> {
    let mut lanes = Vec::new();
    let mut range = LaneRange::first(1);
    loop {
        let page = store.lane_page(filter, range, now_ms).expect("lanes can be read");
        lanes.extend(page.lanes);
        match page.next {
            Some(after) => range = LaneRange::behind(after, 1),
            None => return lanes,
        }
    }
}

/// The messages ahead of a new write, in words. They decide whether it may be forwarded: one that overtakes is
/// lost work.
fn aheads(store: &dyn Store) -> Vec<String> {
    let mut view = Vec::new();
    for lane in &lanes() {
        view.push(format!("{}", store.ahead(lane, &[]).expect("it can be counted").messages));
        view.push(format!("clear: {}", store.is_clear(lane).expect("it can be asked")));
        for effect in [Effect::End, Effect::Create, Effect::Annotate, Effect::Refer] {
            let write = [touch(EntityKind::Trace, "a", effect), touch(EntityKind::Trace, "d", Effect::Refer)];
            let ahead = store.ahead(lane, &Touch::distinct(write.to_vec())).expect("it can be asked");
            view.push(format!("{effect:?} {ahead:?}"));
        }
    }
    view
}

struct Engine {
    keys: Keys,
    folder: tempfile::TempDir,
    generation: u32,
}

impl Engine {
    fn path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.db", self.generation))
    }

    fn reopened(&mut self, crashed: bool) -> SqliteStore {
        if crashed {
            let before = self.path();
            self.generation += 1;
            for suffix in ["", "-wal"] {
                let beside = |path: &PathBuf| format!("{}{suffix}", path.display());
                fs::copy(beside(&before), beside(&self.path())).expect("the files can be copied");
            }
        }
        open_with(&self.path(), &self.keys)
    }
}

fn compare(keys: Keys, steps: &[Step], filter: &Filter) {
    let owner = Owner::this_process("agent");
    let mut engine =
        Engine { keys: keys.clone(), folder: tempfile::tempdir().expect("a temporary folder"), generation: 0 };
    let mut sqlite = Side::new(Box::new(open_with(&engine.path(), &keys)), &owner);
    let mut model = Side::new(Box::new(ModelStore::default()), &owner);
    let mut memory = Side::new(Box::new(MemoryStore::default()), &owner);
    // As another process: it writes nothing, and remembers what it saw until something is committed.
    let mut looker = open_with(&engine.path(), &keys);
    let (mut in_flight, mut in_flight_of_model, mut in_flight_of_memory) = (Vec::new(), Vec::new(), Vec::new());
    for (number, step) in steps.iter().enumerate() {
        let next_owner = Owner::this_process("replay");
        if matches!(step, Step::Crash | Step::Reopen) {
            let store = engine.reopened(matches!(step, Step::Crash));
            sqlite.store = Box::new(store);
            looker = open_with(&engine.path(), &keys);
        }
        let answer = sqlite.take(step, &mut in_flight, &next_owner);
        let expected = model.take(step, &mut in_flight_of_model, &next_owner);
        assert_eq!(answer, expected, "step {number}: {step:?}");
        let expected_view = model.view(filter);
        assert_eq!(sqlite.view(filter), expected_view, "after step {number}: {step:?}");
        for _ in 0..2 {
            assert_eq!(aheads(&looker), aheads(model.store.as_ref()), "for another, after step {number}: {step:?}");
        }
        let answer = memory.take(step, &mut in_flight_of_memory, &next_owner);
        assert_eq!(answer, expected, "in memory, step {number}: {step:?}");
        assert_eq!(memory.view(filter), expected_view, "in memory, after step {number}: {step:?}");
    }
    assert_eq!(sqlite.store.check().expect("it can be checked"), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_sqlite_answers_as_the_model_does(steps in vec(any_step(), 1..40), filter in any_filter()) {
        compare(Keys::default(), &steps, &filter);
    }

    #[test]
    fn whatever_happens_a_sealed_store_answers_as_the_model_does(steps in vec(any_step(), 1..40), filter in any_filter()) {
        compare(sealed_with(1), &steps, &filter);
    }
}
