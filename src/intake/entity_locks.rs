//! Order at intake: writes about one entity are decided in the order in which they arrived.
//!
//! A write that is in flight to the server is in no store yet, so the store can't defer the writes after it. Here a
//! later write about the same entity of the same lane waits until the earlier one is done: answered by the server, or
//! committed to the store. Only then the later one is admitted, and by then the store knows what it would overtake.
//!
//! ```text
//!                handed to the committer            a later one follows
//!   deciding ◀───────────────────────────▶ queued ───────────────────────▶ followed
//!      │     not stored, and not followed     │                               │
//!      └──────────────────▶ done ◀────────────┴───────────────────────────────┘
//! ```
//!
//! # Writes that follow
//!
//! An earlier write that was handed to the committer is *queued*. The committer stores in the order in which it was
//! handed messages, so a later write that is to be stored as well need not wait for that commit: it *follows*, and
//! they share one. Of the two, only the earlier one may fail to be stored; its client gets an error and still has it.
//! But it must not be sent to the server then, where it could arrive after its follower that is delivered from the
//! store: [`Ticket::take_back`] returns whether it may decide again. A write that may be forwarded never follows.
//!
//! # Invariants
//!
//! - *Order*: a write has its turn ([`Turn`]) only when every earlier conflicting write ([`Effect::conflicts`]) is
//!   done, or, if it follows, is done or queued. The place in the queue is taken when [`EntityLocks::enqueue`] or
//!   [`EntityLocks::lock`] is called, not when a future is first polled.
//! - *Done is done*: a write is done only once the earlier ones that it waited for or followed are, too. So a later
//!   write waits only for the last one before it. A ticket that is dropped earlier leaves its place to the next of them
//!   that is not done ([`Remains`]).
//! - *Duplicates are concurrent*: writes that are byte-identical have no order among themselves, even from different
//!   clients: they share their place. (A load test that posts one body over many connections would otherwise be
//!   serialized.)
//! - *No deadlock*: the places in the queues of all entities of a write are taken at once, so tickets can't wait for
//!   each other in a cycle.
//! - *Memory*: one entry per entity of a write in flight. A ticket that is dropped removes its entries.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::message::{Effect, EntityKey, Lane, Request, Touch};

/// The locks of all lanes.
#[derive(Clone, Default)]
pub(super) struct EntityLocks {
    queues: Arc<Mutex<LockQueues>>,
    hashing: RandomState,
}

/// Stands for a lane. Two lanes with one hash would wait for each other without need.
type LaneHash = u64;

/// The latest tickets.
#[derive(Default)]
struct LockQueues {
    /// Those about each entity of each lane.
    entities: HashMap<(LaneHash, EntityKey), EntityQueue>,
    /// The last one of each lane that is about all entities.
    lanes: HashMap<LaneHash, Arc<QueuePlace>>,
}

impl LockQueues {
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.entities.is_empty() && self.lanes.is_empty()
    }
}

/// The tickets about one entity that a later one may have to wait for; older ones are done before these are.
#[derive(Default)]
struct EntityQueue {
    /// The last ones that change or end it.
    change: Option<Duplicates>,
    /// The last one that ends it.
    end: Option<Arc<QueuePlace>>,
    /// Those that refer to it, since that one.
    references: Vec<Arc<QueuePlace>>,
}

impl EntityQueue {
    /// Appends a ticket, and returns the earlier ones that it must not overtake ([`Effect::conflicts`]).
    fn enqueue(
        &mut self,
        effect: Effect,
        place: &Arc<QueuePlace>,
        identity: Option<&Arc<RequestIdentity>>,
    ) -> Vec<Arc<QueuePlace>> {
        match effect {
            Effect::Refer => {
                self.references.push(place.clone());
                return self.end.iter().cloned().collect();
            }
            Effect::Create | Effect::Update | Effect::Annotate => {
                if let Some(duplicates) = &mut self.change
                    && identity.is_some()
                    && duplicates.identity.as_ref() == identity
                {
                    duplicates.tickets.push(place.clone());
                    return duplicates.behind.clone();
                }
            }
            Effect::End => self.end = Some(place.clone()),
        }
        let is_end = effect == Effect::End;
        let mut earlier = if is_end { std::mem::take(&mut self.references) } else { Vec::new() };
        earlier.extend(self.change.take().into_iter().flat_map(|duplicates| duplicates.tickets));
        let identity = identity.filter(|_| !is_end).cloned();
        self.change = Some(Duplicates { identity, tickets: vec![place.clone()], behind: earlier.clone() });
        earlier
    }

    /// Returns all tickets that are not done, or are done before these are.
    fn all(&self) -> impl Iterator<Item = &Arc<QueuePlace>> {
        let changes = self.change.iter().flat_map(|duplicates| &duplicates.tickets);
        changes.chain(&self.end).chain(&self.references)
    }

    /// Removes a ticket, and returns whether none is left. A later ticket that took its place still waits for it, and
    /// removes itself.
    fn remove(&mut self, place: &Arc<QueuePlace>) -> bool {
        self.change.take_if(|duplicates| {
            duplicates.tickets.retain(|ticket| !Arc::ptr_eq(ticket, place));
            duplicates.tickets.is_empty()
        });
        self.end.take_if(|end| Arc::ptr_eq(end, place));
        self.references.retain(|reference| !Arc::ptr_eq(reference, place));
        self.change.is_none() && self.end.is_none() && self.references.is_empty()
    }
}

/// Tickets that share their place.
struct Duplicates {
    /// The request that all of them make; none for a ticket that shares with no other.
    identity: Option<Arc<RequestIdentity>>,
    /// Those that are not done.
    tickets: Vec<Arc<QueuePlace>>,
    /// The tickets that they wait for.
    behind: Vec<Arc<QueuePlace>>,
}

/// The parts of a request that make it a duplicate of another.
#[derive(PartialEq, Eq)]
struct RequestIdentity {
    method: String,
    path: String,
    body: Bytes,
}

impl RequestIdentity {
    fn of(request: &Request) -> Self {
        Self { method: request.method.clone(), path: request.path.clone(), body: request.body.bytes.clone() }
    }
}

/// The place of a write in the queues of its entities.
#[derive(Default)]
struct QueuePlace {
    state: Mutex<QueuePlaceState>,
    /// Wakes those who wait for another step.
    changed: Notify,
}

#[derive(Default)]
struct QueuePlaceState {
    step: TicketStep,
    /// What dropped tickets left that come after this one.
    heirs: Vec<Remains>,
}

/// How far a write is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TicketStep {
    /// It may reach the server at any time, or the store.
    #[default]
    Deciding,
    /// It was handed to the committer.
    Queued,
    /// The same, and a later one was, or will be, handed over behind it.
    Followed,
    Done,
}

impl QueuePlace {
    fn state(&self) -> MutexGuard<'_, QueuePlaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> TicketStep {
        self.state().step
    }

    /// Waits for a step of which this is true.
    async fn until(&self, is_over: impl Fn(TicketStep) -> bool) {
        loop {
            // Notices every change from here on.
            let changed = self.changed.notified();
            if is_over(self.step()) {
                return;
            }
            changed.await;
        }
    }

    fn queued(&self) {
        let mut state = self.state();
        if state.step == TicketStep::Deciding {
            state.step = TicketStep::Queued;
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Lets a later write follow, and returns whether it may.
    fn follow(&self) -> bool {
        let mut state = self.state();
        match state.step {
            TicketStep::Deciding => return false,
            TicketStep::Queued => state.step = TicketStep::Followed,
            TicketStep::Followed | TicketStep::Done => {}
        }
        true
    }

    fn take_back(&self) -> bool {
        let mut state = self.state();
        match state.step {
            TicketStep::Deciding => true,
            TicketStep::Queued => {
                state.step = TicketStep::Deciding;
                true
            }
            TicketStep::Followed | TicketStep::Done => false,
        }
    }

    /// Returns what waited for this place to be done.
    fn done(&self) -> Vec<Remains> {
        let heirs = {
            let mut state = self.state();
            state.step = TicketStep::Done;
            std::mem::take(&mut state.heirs)
        };
        self.changed.notify_waiters();
        heirs
    }

    /// Gives what a dropped ticket left to this place; returns it if this one is done.
    fn inherit(&self, remains: Remains) -> Result<(), Remains> {
        let mut state = self.state();
        if state.step == TicketStep::Done {
            return Err(remains);
        }
        state.heirs.push(remains);
        Ok(())
    }
}

/// What a write may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Anything: every earlier write that it must not overtake is done.
    First,
    /// Only be handed to the committer, or fail: earlier ones are queued there.
    Behind,
}

/// The place of a write, until it is dropped: the right to decide about it, once it has its turn.
pub(super) struct Ticket {
    remains: Option<Remains>,
}

/// What a ticket consists of. It outlives a ticket that is dropped before the earlier ones are done.
struct Remains {
    locks: EntityLocks,
    lane: LaneHash,
    keys: Vec<EntityKey>,
    place: Arc<QueuePlace>,
    /// The places that it must not overtake, as far as they are not known to be done.
    earlier: Vec<Arc<QueuePlace>>,
}

impl EntityLocks {
    /// Takes the place of a write behind all earlier ones that it must not overtake ([`crate::message::conflict`]).
    ///
    /// `request` is all that the write sends to the server, if that is one request in memory.
    pub(super) fn enqueue(&self, lane: &Lane, touches: &[Touch], request: Option<&Request>) -> Ticket {
        let identity = request.map(|request| Arc::new(RequestIdentity::of(request)));
        let lane = self.hashing.hash_one(lane);
        let place = Arc::<QueuePlace>::default();
        let mut earlier = Vec::new();
        let mut keys = Vec::with_capacity(touches.len());
        {
            let mut queues = self.queues();
            earlier.extend(queues.lanes.get(&lane).cloned());
            for touch in touches {
                keys.push(touch.key);
                let queue = queues.entities.entry((lane, touch.key)).or_default();
                earlier.extend(queue.enqueue(touch.effect, &place, identity.as_ref()));
            }
        }
        Ticket { remains: Some(Remains { locks: self.clone(), lane, keys, place, earlier }) }
    }

    /// Waits until every earlier write that must not be overtaken is done; as [`EntityLocks::enqueue`].
    ///
    /// The place in the queue is taken when this is called, not when its future is first polled.
    pub(super) fn lock(
        &self,
        lane: &Lane,
        touches: &[Touch],
        request: Option<&Request>,
    ) -> impl Future<Output = Ticket> + Send + use<> {
        self.enqueue(lane, touches, request).at_its_turn()
    }

    /// Waits until every earlier write of the lane that names an entity is done; later ones wait for this ticket.
    ///
    /// For a write whose entities are unknown. The place in the queue is taken when this is called.
    pub(super) fn lock_lane(&self, lane: &Lane) -> impl Future<Output = Ticket> + Send + use<> {
        let lane = self.hashing.hash_one(lane);
        let place = Arc::<QueuePlace>::default();
        let mut earlier = Vec::new();
        {
            let mut queues = self.queues();
            let of_lane = queues.entities.iter().filter(|((of, _), _)| *of == lane);
            earlier.extend(of_lane.flat_map(|(_, queue)| queue.all()).cloned());
            earlier.extend(queues.lanes.insert(lane, place.clone()));
        }
        Ticket { remains: Some(Remains { locks: self.clone(), lane, keys: Vec::new(), place, earlier }) }.at_its_turn()
    }

    fn queues(&self) -> MutexGuard<'_, LockQueues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    async fn at_its_turn(mut self) -> Self {
        self.turn().await;
        self
    }

    /// Waits until every earlier write that must not be overtaken is done.
    pub(super) async fn turn(&mut self) {
        self.turn_or_behind(|| false).await;
    }

    /// Waits as [`Ticket::turn`] does, but only until the earlier writes are done or queued while `may_follow`: the
    /// write will only be handed to the committer.
    pub(super) async fn turn_or_behind(&mut self, may_follow: impl Fn() -> bool) -> Turn {
        let Some(Remains { earlier, .. }) = &mut self.remains else { return Turn::First };
        loop {
            for place in &*earlier {
                place.until(|step| step == TicketStep::Done || step != TicketStep::Deciding && may_follow()).await;
            }
            earlier.retain(|place| place.step() != TicketStep::Done);
            if earlier.is_empty() {
                return Turn::First;
            }
            // One that was taken back meanwhile is waited for again.
            if may_follow() && earlier.iter().all(|place| place.follow()) {
                return Turn::Behind;
            }
        }
    }

    /// The write was handed to the committer, behind all that it must not overtake: later ones may follow.
    pub(super) fn queued(&self) {
        if let Some(remains) = &self.remains {
            remains.place.queued();
        }
    }

    /// The write was not stored. Returns whether no later one follows it: only then anything else may be decided about
    /// it, once it has its [`Ticket::turn`].
    pub(super) fn take_back(&self) -> bool {
        self.remains.as_ref().is_some_and(|remains| remains.place.take_back())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (mut next, mut others) = (self.remains.take(), Vec::new());
        while let Some(remains) = next {
            if let Some(remains) = remains.leave_to_earlier() {
                others.extend(remains.end());
            }
            next = others.pop();
        }
    }
}

impl Remains {
    /// Leaves itself to an earlier place that is not done; returns itself if all are.
    fn leave_to_earlier(mut self) -> Option<Self> {
        while let Some(place) = self.earlier.pop() {
            match place.inherit(self) {
                Ok(()) => return None,
                Err(remains) => self = remains,
            }
        }
        Some(self)
    }

    /// Gives up the place, and returns what waited for that.
    fn end(self) -> Vec<Self> {
        let mut queues = self.locks.queues();
        for key in self.keys {
            if let Entry::Occupied(mut entry) = queues.entities.entry((self.lane, key))
                && entry.get_mut().remove(&self.place)
            {
                entry.remove();
            }
        }
        if queues.lanes.get(&self.lane).is_some_and(|place| Arc::ptr_eq(place, &self.place)) {
            queues.lanes.remove(&self.lane);
        }
        drop(queues);
        self.place.done()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;
    use crate::message::{Body, Encoding, EntityKind, HeaderSet};

    fn touch(id: &str, effect: Effect) -> Touch {
        Touch { key: EntityKey::new(EntityKind::Trace, id), effect }
    }

    /// Takes a ticket that shares its place with no other.
    fn lock(locks: &EntityLocks, lane: &Lane, touches: &[Touch]) -> impl Future<Output = Ticket> + Send + use<> {
        locks.lock(lane, touches, None)
    }

    fn request(body: &str) -> Request {
        let body = Body::new(body.to_owned(), Encoding::Identity);
        Request { method: "POST".into(), path: "v1/private/traces".into(), headers: HeaderSet::default(), body }
    }

    async fn is_ready<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn writes_about_one_entity_are_serialized_and_others_are_not() {
        let locks = EntityLocks::default();
        let lane = Lane::default();
        let other_lane = Lane { workspace: Some("other".into()), ..Lane::default() };
        let first = lock(&locks, &lane, &[touch("a", Effect::Create), touch("b", Effect::Create)]).await;
        let mut second = Box::pin(lock(&locks, &lane, &[touch("b", Effect::Update)]));
        let mut third = Box::pin(lock(&locks, &lane, &[touch("b", Effect::Annotate), touch("c", Effect::Create)]));
        drop(lock(&locks, &lane, &[touch("d", Effect::Create), touch("b", Effect::Refer)]).await);
        drop(lock(&locks, &other_lane, &[touch("b", Effect::Create)]).await);
        assert!(is_ready(&mut third).await.is_none() && is_ready(&mut second).await.is_none());
        drop(first);
        assert!(is_ready(&mut third).await.is_none(), "the third write overtook the second");
        let second = is_ready(&mut second).await.expect("the first write is done");
        drop(second);
        let third = is_ready(&mut third).await.expect("the second write is done");
        drop(third);
        assert!(locks.queues().is_empty(), "tickets that are done are still remembered");
    }

    #[tokio::test]
    async fn a_deletion_waits_for_earlier_references_and_later_ones_wait_for_it() {
        let locks = EntityLocks::default();
        let lane = Lane::default();
        let span = lock(&locks, &lane, &[touch("t", Effect::Refer), touch("s", Effect::Create)]).await;
        let update = lock(&locks, &lane, &[touch("t", Effect::Update)]).await;
        let mut delete = Box::pin(lock(&locks, &lane, &[touch("t", Effect::End)]));
        let mut late_span = Box::pin(lock(&locks, &lane, &[touch("t", Effect::Refer), touch("s2", Effect::Create)]));
        drop(update);
        assert!(is_ready(&mut delete).await.is_none(), "the deletion overtook a span of its trace");
        drop(span);
        let delete = is_ready(&mut delete).await.expect("nothing is ahead of the deletion");
        assert!(is_ready(&mut late_span).await.is_none(), "a span overtook the deletion of its trace");
        drop(delete);
        drop(is_ready(&mut late_span).await.expect("the deletion is done"));
        assert!(locks.queues().is_empty(), "tickets that are done are still remembered");
    }

    #[tokio::test]
    async fn duplicates_are_concurrent_and_others_wait_for_all_of_them() {
        let locks = EntityLocks::default();
        let lane = Lane::default();
        let (create, other) = (request("create"), request("other"));
        let of_a = [touch("a", Effect::Create)];
        let before = lock(&locks, &lane, &[touch("a", Effect::Update)]).await;
        let mut first = Box::pin(locks.lock(&lane, &of_a, Some(&create)));
        let mut second = Box::pin(locks.lock(&lane, &of_a, Some(&create)));
        assert!(is_ready(&mut second).await.is_none(), "a duplicate overtook what the first one waits for");
        drop(before);
        let second = is_ready(&mut second).await.expect("duplicates have no order among themselves");
        let mut different = Box::pin(locks.lock(&lane, &of_a, Some(&other)));
        drop(second);
        assert!(is_ready(&mut different).await.is_none(), "a later write overtook one of two duplicates");
        let mut late = Box::pin(locks.lock(&lane, &of_a, Some(&create)));
        drop(is_ready(&mut first).await.expect("nothing is ahead of it"));
        assert!(is_ready(&mut late).await.is_none(), "a late duplicate overtook a write in between");
        drop(is_ready(&mut different).await.expect("both are done"));
        drop(is_ready(&mut late).await.expect("it is the last"));

        let end = [touch("a", Effect::End)];
        let first = locks.lock(&lane, &end, Some(&create)).await;
        let mut second = Box::pin(locks.lock(&lane, &end, Some(&create)));
        assert!(is_ready(&mut second).await.is_none(), "ends share their place with no other");
        drop(first);
        drop(is_ready(&mut second).await);
        assert!(locks.queues().is_empty(), "tickets that are done are still remembered");
    }

    #[tokio::test]
    async fn a_lane_lock_waits_for_all_earlier_writes_and_later_ones_wait_for_it() {
        let (locks, lane) = (EntityLocks::default(), Lane::default());
        let other = Lane { workspace: Some("other".into()), ..Lane::default() };
        let refer = lock(&locks, &lane, &[touch("a", Effect::Refer)]).await;
        let create = lock(&locks, &lane, &[touch("b", Effect::Create)]).await;
        let mut whole = Box::pin(locks.lock_lane(&lane));
        let mut later = Box::pin(lock(&locks, &lane, &[touch("c", Effect::Create)]));
        let mut last = Box::pin(locks.lock_lane(&lane));
        assert!(is_ready(&mut Box::pin(lock(&locks, &other, &[touch("b", Effect::Create)]))).await.is_some());
        drop(refer);
        assert!(is_ready(&mut whole).await.is_none(), "it overtakes the create");
        assert!(is_ready(&mut later).await.is_none(), "it overtakes the lock of the lane");
        drop(create);
        let whole = is_ready(&mut whole).await.expect("all ahead of it are done");
        assert!(is_ready(&mut later).await.is_none());
        drop(whole);
        assert!(is_ready(&mut last).await.is_none(), "it overtakes earlier writes");
        drop(is_ready(&mut later).await.expect("all ahead of it are done"));
        drop(is_ready(&mut last).await.expect("all ahead of it are done"));
        assert!(locks.queues().is_empty(), "tickets that are done are still remembered");
    }

    #[tokio::test]
    async fn a_write_to_be_stored_follows_one_that_is_queued_and_no_other_does() {
        let (locks, lane) = (EntityLocks::default(), Lane::default());
        let enqueue = |effect| locks.enqueue(&lane, &[touch("a", effect)], None);
        let (first, mut second, mut third) =
            (enqueue(Effect::Create), enqueue(Effect::Update), enqueue(Effect::Annotate));
        {
            let mut waiting = Box::pin(second.turn_or_behind(|| true));
            assert!(is_ready(&mut waiting).await.is_none(), "the first write is not queued");
            first.queued();
            assert_eq!(is_ready(&mut waiting).await, Some(Turn::Behind));
        }
        assert!(!first.take_back(), "the first write could be sent after the second one");
        second.queued();
        {
            let mut waiting = Box::pin(third.turn());
            assert!(is_ready(&mut waiting).await.is_none(), "two earlier writes are not committed");
            drop(second);
            assert!(is_ready(&mut waiting).await.is_none(), "the second write is done before the first one");
            drop(first);
            assert!(is_ready(&mut waiting).await.is_some());
        }
        third.queued();
        assert!(third.take_back(), "no write follows it");
        let mut fourth = enqueue(Effect::Update);
        assert!(is_ready(&mut Box::pin(fourth.turn_or_behind(|| true))).await.is_none(), "it is decided again");
        drop((third, fourth));
        assert!(locks.queues().is_empty(), "tickets that are done are still remembered");
    }

    /// What happened to a write so far.
    enum Life {
        Waiting(std::pin::Pin<Box<dyn Future<Output = (Ticket, Turn)>>>),
        Forwarding(Ticket),
        /// In the committer's queue.
        Queued(Ticket),
        Stored(Ticket),
        Over,
    }

    /// Writes on their way, a committer and a store.
    struct Model {
        locks: EntityLocks,
        may_follow: Arc<std::sync::atomic::AtomicBool>,
        writes: Vec<(Vec<Touch>, Life)>,
        queue: std::collections::VecDeque<usize>,
        stored: Vec<usize>,
    }

    impl Model {
        fn arrive(&mut self, touches: Vec<Touch>) {
            let mut ticket = self.locks.enqueue(&Lane::default(), &touches, None);
            let may_follow = self.may_follow.clone();
            let waiting = async move {
                let turn = ticket.turn_or_behind(|| may_follow.load(std::sync::atomic::Ordering::Relaxed)).await;
                (ticket, turn)
            };
            self.writes.push((touches, Life::Waiting(Box::pin(waiting))));
        }

        fn conflict(&self, a: usize, b: usize) -> bool {
            crate::message::conflict(&self.writes[a].0, &self.writes[b].0)
        }

        fn forward_or_end(&mut self, number: usize, ticket: Ticket) -> Life {
            if self.stored.iter().any(|stored| self.conflict(*stored, number)) {
                return Life::Over;
            }
            for (other, (_, life)) in self.writes.iter().enumerate() {
                let is_settled = match life {
                    Life::Waiting(_) => other >= number,
                    Life::Forwarding(_) | Life::Queued(_) => other == number,
                    Life::Stored(_) | Life::Over => true,
                };
                assert!(is_settled || !self.conflict(other, number), "write {number} is sent beside {other}");
            }
            Life::Forwarding(ticket)
        }

        fn submit(&mut self, number: usize, ticket: Ticket) -> Life {
            for other in 0..number {
                let is_ahead = !matches!(self.writes[other].1, Life::Waiting(_) | Life::Forwarding(_));
                assert!(is_ahead || !self.conflict(other, number), "write {number} is stored before {other}");
            }
            let later =
                self.queue.iter().chain(&self.stored).find(|other| **other > number && self.conflict(**other, number));
            assert!(later.is_none(), "write {number} is stored after {later:?}");
            self.queue.push_back(number);
            ticket.queued();
            Life::Queued(ticket)
        }

        /// Takes the next step of a write; `choice` chooses where there are several.
        fn step(&mut self, number: usize, choice: bool) {
            let life = std::mem::replace(&mut self.writes[number].1, Life::Over);
            self.writes[number].1 = match life {
                Life::Waiting(mut future) => {
                    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
                        Poll::Pending => Life::Waiting(future),
                        Poll::Ready((ticket, Turn::Behind)) => self.submit(number, ticket),
                        Poll::Ready((ticket, Turn::First)) if choice => self.submit(number, ticket),
                        Poll::Ready((ticket, Turn::First)) => self.forward_or_end(number, ticket),
                    }
                }
                // Answered, or kept.
                Life::Forwarding(ticket) if choice => self.submit(number, ticket),
                Life::Queued(ticket) => Life::Queued(ticket),
                Life::Forwarding(ticket) | Life::Stored(ticket) => {
                    drop(ticket);
                    Life::Over
                }
                Life::Over => Life::Over,
            };
        }

        /// Commits the first message that is queued, or fails to.
        fn commit(&mut self, succeeds: bool) {
            let Some(number) = self.queue.pop_front() else { return };
            let Life::Queued(mut ticket) = std::mem::replace(&mut self.writes[number].1, Life::Over) else {
                panic!("a write is queued twice")
            };
            if succeeds {
                self.stored.push(number);
                self.writes[number].1 = Life::Stored(ticket);
            } else if ticket.take_back() {
                let waiting = async move {
                    ticket.turn().await;
                    (ticket, Turn::First)
                };
                self.writes[number].1 = Life::Waiting(Box::pin(waiting));
            }
        }
    }

    use proptest::prelude::*;

    fn any_touches() -> impl Strategy<Value = Vec<Touch>> {
        let any_touch = (0_u8..3, 0_u8..5).prop_map(|(id, code)| {
            let key = EntityKey::from_parts(EntityKind::Span, [id; 16]);
            Touch { key, effect: Effect::from_code(code).expect("it exists") }
        });
        prop::collection::vec(any_touch, 1..3).prop_map(Touch::distinct)
    }

    proptest! {
        #[test]
        fn whatever_fails_no_write_overtakes_another(
            events in prop::collection::vec((0_u8..12, 0_usize..8, any::<bool>(), any_touches()), 0..80),
        ) {
            let (locks, may_follow) = (EntityLocks::default(), Arc::default());
            let mut model =
                Model { locks, may_follow, writes: Vec::new(), queue: Default::default(), stored: Vec::new() };
            for (event, number, choice, touches) in events {
                match event {
                    0..3 => model.arrive(touches),
                    3..8 if number < model.writes.len() => {
                        let number = model.writes.len() - 1 - number;
                        model.step(number, choice);
                    }
                    8 | 9 => model.commit(choice),
                    10 if !model.stored.is_empty() => drop(model.stored.remove(0)),
                    // The task of a write ends before its time.
                    11 if number == 0 && !model.writes.is_empty() => {
                        let last = model.writes.len() - 1;
                        if !matches!(model.writes[last].1, Life::Queued(_)) {
                            model.writes[last].1 = Life::Over;
                        }
                    }
                    _ => model.may_follow.store(choice, std::sync::atomic::Ordering::Relaxed),
                }
            }
            model.may_follow.store(false, std::sync::atomic::Ordering::Relaxed);
            for _ in 0..4 * model.writes.len() + 4 {
                (0..model.writes.len()).for_each(|number| model.step(number, true));
                model.commit(true);
            }
            prop_assert!(model.writes.iter().all(|(_, life)| matches!(life, Life::Over)), "a write waits forever");
            prop_assert!(model.locks.queues().is_empty(), "tickets that are done are still remembered");
        }
    }
}
