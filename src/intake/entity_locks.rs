//! Order at the door: writes about one entity take their turns in the order in which they arrived.
//!
//! A write that is being forwarded is in no store yet, so the store can't hold back what comes after it. Here a later
//! write about the same entity of the same lane waits until the earlier one has its end: answered by the server, or
//! committed to the store. Only then is decided what happens to the later one, and by then the store knows.
//!
//! Writes that say the same to the byte have no order among themselves, whoever sent them: they take their turn together.
//! (A load test that posts one body over many connections would otherwise be let in one by one.)
//!
//! A turn is taken for all entities of a write at once, so turns can't wait for each other in a circle. A turn ends when
//! it is dropped. Memory: one entry per entity of a write in progress.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use bytes::Bytes;

use crate::message::{Effect, EntityKey, Lane, Request, Touch};

/// The turns of all lanes.
#[derive(Clone, Default)]
pub struct Lanes {
    last: Arc<Mutex<LastTurns>>,
}

/// The latest turns.
#[derive(Default)]
struct LastTurns {
    /// Those about each entity of each lane.
    entities: HashMap<(Arc<Lane>, EntityKey), Latest>,
    /// The last one of each lane that is about all entities.
    whole: HashMap<Arc<Lane>, Ended>,
}

impl LastTurns {
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.entities.is_empty() && self.whole.is_empty()
    }
}

/// The turns about one entity that a later one may have to wait for; earlier ones end before these do.
#[derive(Default)]
struct Latest {
    /// The last ones that change or end it.
    change: Option<Alike>,
    /// The last one that ends it.
    end: Option<Ended>,
    /// Those that refer to it, since that one.
    references: Vec<Ended>,
}

impl Latest {
    /// Puts a turn behind those that it must not overtake, and returns them ([`Effect::conflicts`]).
    fn enqueue(&mut self, effect: Effect, ended: &Ended, words: Option<&Arc<Words>>) -> Vec<Ended> {
        match effect {
            Effect::Refer => {
                self.references.push(ended.clone());
                return self.end.iter().cloned().collect();
            }
            Effect::Create | Effect::Update | Effect::Annotate => {
                if let Some(alike) = &mut self.change
                    && words.is_some()
                    && alike.words.as_ref() == words
                {
                    alike.turns.push(ended.clone());
                    return alike.behind.clone();
                }
            }
            Effect::End => self.end = Some(ended.clone()),
        }
        let is_end = effect == Effect::End;
        let mut earlier = if is_end { std::mem::take(&mut self.references) } else { Vec::new() };
        earlier.extend(self.change.take().into_iter().flat_map(|alike| alike.turns));
        let words = words.filter(|_| !is_end).cloned();
        self.change = Some(Alike { words, turns: vec![ended.clone()], behind: earlier.clone() });
        earlier
    }

    /// Returns all that have not ended, or end before these do.
    fn all(&self) -> impl Iterator<Item = &Ended> {
        let changes = self.change.iter().flat_map(|alike| &alike.turns);
        changes.chain(&self.end).chain(&self.references)
    }

    /// Forgets a turn, and says whether nothing is left. A later turn that took its place still waits for it, and
    /// forgets itself.
    fn forget(&mut self, ended: &Ended) -> bool {
        self.change.take_if(|alike| {
            alike.turns.retain(|turn| !Arc::ptr_eq(turn, ended));
            alike.turns.is_empty()
        });
        self.end.take_if(|end| Arc::ptr_eq(end, ended));
        self.references.retain(|reference| !Arc::ptr_eq(reference, ended));
        self.change.is_none() && self.end.is_none() && self.references.is_empty()
    }
}

/// Turns that are taken together.
struct Alike {
    /// What all of them say; none for a turn that shares with no other.
    words: Option<Arc<Words>>,
    /// Those that have not ended.
    turns: Vec<Ended>,
    /// What they wait for.
    behind: Vec<Ended>,
}

/// What a write says to the server.
#[derive(PartialEq, Eq)]
struct Words {
    method: String,
    path: String,
    body: Bytes,
}

impl Words {
    fn of(request: &Request) -> Self {
        Self { method: request.method.clone(), path: request.path.clone(), body: request.body.bytes.clone() }
    }
}

/// Closed when a turn has ended: whoever waits for a permit is told at once, and there never is a permit.
type Ended = Arc<Semaphore>;

/// The right to decide about a write. Ends when dropped.
pub struct Turn {
    lanes: Lanes,
    lane: Arc<Lane>,
    keys: Vec<EntityKey>,
    ended: Ended,
}

impl Lanes {
    /// Waits until every earlier write that must not be overtaken has its end ([`crate::message::conflict`]).
    ///
    /// `says` is the whole of what the write tells the server, if that is all in one request.
    ///
    /// The place in the queue is taken when this is called, not when it is first awaited.
    pub fn turn(
        &self,
        lane: &Lane,
        touches: &[Touch],
        says: Option<&Request>,
    ) -> impl Future<Output = Turn> + Send + use<> {
        let words = says.map(|request| Arc::new(Words::of(request)));
        let lane = Arc::new(lane.clone());
        let ended: Ended = Arc::new(Semaphore::new(0));
        let mut earlier = Vec::new();
        let mut keys = Vec::with_capacity(touches.len());
        {
            let mut last = self.lock();
            earlier.extend(last.whole.get(&lane).cloned());
            for touch in touches {
                keys.push(touch.key);
                let latest = last.entities.entry((lane.clone(), touch.key)).or_default();
                earlier.extend(latest.enqueue(touch.effect, &ended, words.as_ref()));
            }
        }
        let turn = Turn { lanes: self.clone(), lane, keys, ended };
        async move {
            for ended in earlier {
                // Always an error: the semaphore is closed, which is what we wait for.
                let _ = ended.acquire().await;
            }
            turn
        }
    }

    /// Waits until every earlier write of the lane that names an entity has its end; later ones wait for this turn.
    ///
    /// For a write whose entities are unknown. The place in the queue is taken when this is called.
    pub fn turn_of_lane(&self, lane: &Lane) -> impl Future<Output = Turn> + Send + use<> {
        let lane = Arc::new(lane.clone());
        let ended: Ended = Arc::new(Semaphore::new(0));
        let mut earlier = Vec::new();
        {
            let mut last = self.lock();
            let of_lane = last.entities.iter().filter(|((of, _), _)| *of == lane);
            earlier.extend(of_lane.flat_map(|(_, latest)| latest.all()).cloned());
            earlier.extend(last.whole.insert(lane.clone(), ended.clone()));
        }
        let turn = Turn { lanes: self.clone(), lane, keys: Vec::new(), ended };
        async move {
            for ended in earlier {
                let _ = ended.acquire().await;
            }
            turn
        }
    }

    fn lock(&self) -> MutexGuard<'_, LastTurns> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut last = self.lanes.lock();
        for key in self.keys.drain(..) {
            if let Entry::Occupied(mut entry) = last.entities.entry((self.lane.clone(), key))
                && entry.get_mut().forget(&self.ended)
            {
                entry.remove();
            }
        }
        if last.whole.get(&self.lane).is_some_and(|ended| Arc::ptr_eq(ended, &self.ended)) {
            last.whole.remove(&self.lane);
        }
        drop(last);
        self.ended.close();
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

    /// A turn that is shared with no other.
    fn turn(lanes: &Lanes, lane: &Lane, touches: &[Touch]) -> impl Future<Output = Turn> + Send + use<> {
        lanes.turn(lane, touches, None)
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
    async fn writes_about_one_entity_wait_for_each_other_and_others_do_not() {
        let lanes = Lanes::default();
        let lane = Lane::default();
        let other_lane = Lane { workspace: Some("other".into()), ..Lane::default() };
        let first = turn(&lanes, &lane, &[touch("a", Effect::Create), touch("b", Effect::Create)]).await;
        let mut second = Box::pin(turn(&lanes, &lane, &[touch("b", Effect::Update)]));
        let mut third = Box::pin(turn(&lanes, &lane, &[touch("b", Effect::Annotate), touch("c", Effect::Create)]));
        drop(turn(&lanes, &lane, &[touch("d", Effect::Create), touch("b", Effect::Refer)]).await);
        drop(turn(&lanes, &other_lane, &[touch("b", Effect::Create)]).await);
        assert!(is_ready(&mut third).await.is_none() && is_ready(&mut second).await.is_none());
        drop(first);
        assert!(is_ready(&mut third).await.is_none(), "the third write overtook the second");
        let second = is_ready(&mut second).await.expect("the first write has its end");
        drop(second);
        let third = is_ready(&mut third).await.expect("the second write has its end");
        drop(third);
        assert!(lanes.lock().is_empty(), "turns that ended are still remembered");
    }

    #[tokio::test]
    async fn a_deletion_waits_for_what_names_its_entity_and_holds_back_what_names_it_later() {
        let lanes = Lanes::default();
        let lane = Lane::default();
        let span = turn(&lanes, &lane, &[touch("t", Effect::Refer), touch("s", Effect::Create)]).await;
        let update = turn(&lanes, &lane, &[touch("t", Effect::Update)]).await;
        let mut delete = Box::pin(turn(&lanes, &lane, &[touch("t", Effect::End)]));
        let mut late_span = Box::pin(turn(&lanes, &lane, &[touch("t", Effect::Refer), touch("s2", Effect::Create)]));
        drop(update);
        assert!(is_ready(&mut delete).await.is_none(), "the deletion overtook a span of its trace");
        drop(span);
        let delete = is_ready(&mut delete).await.expect("nothing is before the deletion any more");
        assert!(is_ready(&mut late_span).await.is_none(), "a span overtook the deletion of its trace");
        drop(delete);
        drop(is_ready(&mut late_span).await.expect("the deletion has its end"));
        assert!(lanes.lock().is_empty(), "turns that ended are still remembered");
    }

    #[tokio::test]
    async fn writes_that_say_the_same_go_together_and_others_wait_for_all_of_them() {
        let lanes = Lanes::default();
        let lane = Lane::default();
        let (create, other) = (request("create"), request("other"));
        let of_a = [touch("a", Effect::Create)];
        let before = turn(&lanes, &lane, &[touch("a", Effect::Update)]).await;
        let mut first = Box::pin(lanes.turn(&lane, &of_a, Some(&create)));
        let mut second = Box::pin(lanes.turn(&lane, &of_a, Some(&create)));
        assert!(is_ready(&mut second).await.is_none(), "a twin overtook what its twin waits for");
        drop(before);
        let second = is_ready(&mut second).await.expect("the same words have no order among themselves");
        let mut different = Box::pin(lanes.turn(&lane, &of_a, Some(&other)));
        drop(second);
        assert!(is_ready(&mut different).await.is_none(), "a later write overtook one of two that say the same");
        let mut late = Box::pin(lanes.turn(&lane, &of_a, Some(&create)));
        drop(is_ready(&mut first).await.expect("nothing is before it"));
        assert!(is_ready(&mut late).await.is_none(), "the same words overtook what was said since");
        drop(is_ready(&mut different).await.expect("both have their end"));
        drop(is_ready(&mut late).await.expect("it is the last"));

        let end = [touch("a", Effect::End)];
        let first = lanes.turn(&lane, &end, Some(&create)).await;
        let mut second = Box::pin(lanes.turn(&lane, &end, Some(&create)));
        assert!(is_ready(&mut second).await.is_none(), "ends are alone");
        drop(first);
        drop(is_ready(&mut second).await);
        assert!(lanes.lock().is_empty(), "turns that ended are still remembered");
    }

    #[tokio::test]
    async fn a_turn_of_the_lane_waits_for_all_before_it_and_all_behind_it_wait() {
        let (lanes, lane) = (Lanes::default(), Lane::default());
        let other = Lane { workspace: Some("other".into()), ..Lane::default() };
        let refer = turn(&lanes, &lane, &[touch("a", Effect::Refer)]).await;
        let create = turn(&lanes, &lane, &[touch("b", Effect::Create)]).await;
        let mut whole = Box::pin(lanes.turn_of_lane(&lane));
        let mut later = Box::pin(turn(&lanes, &lane, &[touch("c", Effect::Create)]));
        let mut last = Box::pin(lanes.turn_of_lane(&lane));
        assert!(is_ready(&mut Box::pin(turn(&lanes, &other, &[touch("b", Effect::Create)]))).await.is_some());
        drop(refer);
        assert!(is_ready(&mut whole).await.is_none(), "it overtakes the create");
        assert!(is_ready(&mut later).await.is_none(), "it overtakes the turn of the lane");
        drop(create);
        let whole = is_ready(&mut whole).await.expect("all before it have their end");
        assert!(is_ready(&mut later).await.is_none());
        drop(whole);
        assert!(is_ready(&mut last).await.is_none(), "it overtakes what came before it");
        drop(is_ready(&mut later).await.expect("it is its turn"));
        drop(is_ready(&mut last).await.expect("it is its turn"));
        assert!(lanes.lock().is_empty(), "turns that ended are still remembered");
    }
}
