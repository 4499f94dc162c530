//! Order at intake: writes about one entity are decided in the order in which they arrived.
//!
//! A write that is in flight to the server is in no store yet, so the store can't defer the writes after it. Here a
//! later write about the same entity of the same lane waits until the earlier one is done: answered by the server, or
//! committed to the store. Only then the later one is admitted, and by then the store knows what it would overtake.
//!
//! # Invariants
//!
//! - *Order*: a [`Ticket`] is given out only when every earlier conflicting write ([`Effect::conflicts`]) is done. The
//!   place in the queue is taken when [`EntityLocks::lock`] is called, not when its future is first polled.
//! - *Duplicates are concurrent*: writes that are byte-identical have no order among themselves, even from different
//!   clients: they share their place. (A load test that posts one body over many connections would otherwise be
//!   serialized.)
//! - *No deadlock*: the locks for all entities of a write are taken at once, so tickets can't wait for each other in a
//!   cycle.
//! - *Memory*: one entry per entity of a write in flight. A ticket that is dropped removes its entries.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use bytes::Bytes;

use crate::message::{Effect, EntityKey, Lane, Request, Touch};

/// The locks of all lanes.
#[derive(Clone, Default)]
pub(super) struct EntityLocks {
    queues: Arc<Mutex<LockQueues>>,
}

/// The latest tickets.
#[derive(Default)]
struct LockQueues {
    /// Those about each entity of each lane.
    entities: HashMap<(Arc<Lane>, EntityKey), EntityQueue>,
    /// The last one of each lane that is about all entities.
    lanes: HashMap<Arc<Lane>, Done>,
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
    end: Option<Done>,
    /// Those that refer to it, since that one.
    references: Vec<Done>,
}

impl EntityQueue {
    /// Appends a ticket, and returns the earlier ones that it must not overtake ([`Effect::conflicts`]).
    fn enqueue(&mut self, effect: Effect, done: &Done, identity: Option<&Arc<RequestIdentity>>) -> Vec<Done> {
        match effect {
            Effect::Refer => {
                self.references.push(done.clone());
                return self.end.iter().cloned().collect();
            }
            Effect::Create | Effect::Update | Effect::Annotate => {
                if let Some(duplicates) = &mut self.change
                    && identity.is_some()
                    && duplicates.identity.as_ref() == identity
                {
                    duplicates.tickets.push(done.clone());
                    return duplicates.behind.clone();
                }
            }
            Effect::End => self.end = Some(done.clone()),
        }
        let is_end = effect == Effect::End;
        let mut earlier = if is_end { std::mem::take(&mut self.references) } else { Vec::new() };
        earlier.extend(self.change.take().into_iter().flat_map(|duplicates| duplicates.tickets));
        let identity = identity.filter(|_| !is_end).cloned();
        self.change = Some(Duplicates { identity, tickets: vec![done.clone()], behind: earlier.clone() });
        earlier
    }

    /// Returns all tickets that are not done, or are done before these are.
    fn all(&self) -> impl Iterator<Item = &Done> {
        let changes = self.change.iter().flat_map(|duplicates| &duplicates.tickets);
        changes.chain(&self.end).chain(&self.references)
    }

    /// Removes a ticket, and returns whether none is left. A later ticket that took its place still waits for it, and
    /// removes itself.
    fn remove(&mut self, done: &Done) -> bool {
        self.change.take_if(|duplicates| {
            duplicates.tickets.retain(|ticket| !Arc::ptr_eq(ticket, done));
            duplicates.tickets.is_empty()
        });
        self.end.take_if(|end| Arc::ptr_eq(end, done));
        self.references.retain(|reference| !Arc::ptr_eq(reference, done));
        self.change.is_none() && self.end.is_none() && self.references.is_empty()
    }
}

/// Tickets that share their place.
struct Duplicates {
    /// The request that all of them make; none for a ticket that shares with no other.
    identity: Option<Arc<RequestIdentity>>,
    /// Those that are not done.
    tickets: Vec<Done>,
    /// The tickets that they wait for.
    behind: Vec<Done>,
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

/// Closed when a ticket is dropped, which wakes everyone who waits for a permit. There never is a permit.
type Done = Arc<Semaphore>;

/// The right to decide about a write, until it is dropped.
pub(super) struct Ticket {
    locks: EntityLocks,
    lane: Arc<Lane>,
    keys: Vec<EntityKey>,
    done: Done,
}

impl EntityLocks {
    /// Waits until every earlier write that must not be overtaken is done ([`crate::message::conflict`]).
    ///
    /// `request` is all that the write sends to the server, if that is one request in memory.
    ///
    /// The place in the queue is taken when this is called, not when its future is first polled.
    pub(super) fn lock(
        &self,
        lane: &Lane,
        touches: &[Touch],
        request: Option<&Request>,
    ) -> impl Future<Output = Ticket> + Send + use<> {
        let identity = request.map(|request| Arc::new(RequestIdentity::of(request)));
        let lane = Arc::new(lane.clone());
        let done: Done = Arc::new(Semaphore::new(0));
        let mut earlier = Vec::new();
        let mut keys = Vec::with_capacity(touches.len());
        {
            let mut queues = self.queues();
            earlier.extend(queues.lanes.get(&lane).cloned());
            for touch in touches {
                keys.push(touch.key);
                let queue = queues.entities.entry((lane.clone(), touch.key)).or_default();
                earlier.extend(queue.enqueue(touch.effect, &done, identity.as_ref()));
            }
        }
        Ticket { locks: self.clone(), lane, keys, done }.after(earlier)
    }

    /// Waits until every earlier write of the lane that names an entity is done; later ones wait for this ticket.
    ///
    /// For a write whose entities are unknown. The place in the queue is taken when this is called.
    pub(super) fn lock_lane(&self, lane: &Lane) -> impl Future<Output = Ticket> + Send + use<> {
        let lane = Arc::new(lane.clone());
        let done: Done = Arc::new(Semaphore::new(0));
        let mut earlier = Vec::new();
        {
            let mut queues = self.queues();
            let of_lane = queues.entities.iter().filter(|((of, _), _)| *of == lane);
            earlier.extend(of_lane.flat_map(|(_, queue)| queue.all()).cloned());
            earlier.extend(queues.lanes.insert(lane.clone(), done.clone()));
        }
        Ticket { locks: self.clone(), lane, keys: Vec::new(), done }.after(earlier)
    }

    fn queues(&self) -> MutexGuard<'_, LockQueues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits until these earlier tickets are done.
    async fn after(self, earlier: Vec<Done>) -> Self {
        for done in earlier {
            // Always an error: the semaphore is closed, which is what we wait for.
            let _ = done.acquire().await;
        }
        self
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queues = self.locks.queues();
        for key in self.keys.drain(..) {
            if let Entry::Occupied(mut entry) = queues.entities.entry((self.lane.clone(), key))
                && entry.get_mut().remove(&self.done)
            {
                entry.remove();
            }
        }
        if queues.lanes.get(&self.lane).is_some_and(|done| Arc::ptr_eq(done, &self.done)) {
            queues.lanes.remove(&self.lane);
        }
        drop(queues);
        self.done.close();
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
}
