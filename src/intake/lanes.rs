//! Order at the door: writes about one entity take their turns in the order in which they arrived.
//!
//! A write that is being forwarded is in no store yet, so the store can't hold back what comes after it. Here a later
//! write about the same entity of the same lane waits until the earlier one has its end: answered by the server, or
//! committed to the store. Only then is decided what happens to the later one, and by then the store knows.
//!
//! A turn is taken for all entities of a write at once, so turns can't wait for each other in a circle. A turn ends when
//! it is dropped. Memory: one entry per entity of a write in progress.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::message::{Effect, EntityKey, Lane, Touch};

/// The turns of all lanes.
#[derive(Clone, Default)]
pub struct Lanes {
    last: Arc<Mutex<LastTurns>>,
}

/// The latest turns about each entity of each lane.
type LastTurns = HashMap<(Arc<Lane>, EntityKey), Latest>;

/// The turns about one entity that a later one may have to wait for; earlier ones end before these do.
#[derive(Default)]
struct Latest {
    /// The last one that changes or ends it.
    change: Option<Ended>,
    /// The last one that ends it.
    end: Option<Ended>,
    /// Those that refer to it, since that one.
    references: Vec<Ended>,
}

impl Latest {
    /// Puts a turn behind those that it must not overtake, and returns them ([`Effect::conflicts`]).
    fn enqueue(&mut self, effect: Effect, ended: &Ended) -> Vec<Ended> {
        match effect {
            Effect::Refer => {
                self.references.push(ended.clone());
                self.end.iter().cloned().collect()
            }
            Effect::Create | Effect::Update | Effect::Annotate => {
                self.change.replace(ended.clone()).into_iter().collect()
            }
            Effect::End => {
                self.end = Some(ended.clone());
                let mut earlier = std::mem::take(&mut self.references);
                earlier.extend(self.change.replace(ended.clone()));
                earlier
            }
        }
    }

    /// Forgets a turn, and says whether nothing is left. A later turn that took its place still waits for it, and
    /// forgets itself.
    fn forget(&mut self, ended: &Ended) -> bool {
        self.change.take_if(|change| Arc::ptr_eq(change, ended));
        self.end.take_if(|end| Arc::ptr_eq(end, ended));
        self.references.retain(|reference| !Arc::ptr_eq(reference, ended));
        self.change.is_none() && self.end.is_none() && self.references.is_empty()
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
    /// The place in the queue is taken when this is called, not when it is first awaited.
    pub fn turn(&self, lane: &Lane, touches: &[Touch]) -> impl Future<Output = Turn> + Send + use<> {
        let lane = Arc::new(lane.clone());
        let ended: Ended = Arc::new(Semaphore::new(0));
        let mut earlier = Vec::new();
        let mut keys = Vec::with_capacity(touches.len());
        {
            let mut last = self.lock();
            for touch in touches {
                keys.push(touch.key);
                let latest = last.entry((lane.clone(), touch.key)).or_default();
                earlier.extend(latest.enqueue(touch.effect, &ended));
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

    fn lock(&self) -> MutexGuard<'_, LastTurns> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut last = self.lanes.lock();
        for key in self.keys.drain(..) {
            if let Entry::Occupied(mut entry) = last.entry((self.lane.clone(), key))
                && entry.get_mut().forget(&self.ended)
            {
                entry.remove();
            }
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
    use crate::message::EntityKind;

    fn touch(id: &str, effect: Effect) -> Touch {
        Touch { key: EntityKey::new(EntityKind::Trace, id), effect }
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
        let other_lane = Lane { workspace: Some("other".into()), credential: None };
        let first = lanes.turn(&lane, &[touch("a", Effect::Create), touch("b", Effect::Create)]).await;
        let mut second = Box::pin(lanes.turn(&lane, &[touch("b", Effect::Update)]));
        let mut third = Box::pin(lanes.turn(&lane, &[touch("b", Effect::Annotate), touch("c", Effect::Create)]));
        drop(lanes.turn(&lane, &[touch("d", Effect::Create), touch("b", Effect::Refer)]).await);
        drop(lanes.turn(&other_lane, &[touch("b", Effect::Create)]).await);
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
        let span = lanes.turn(&lane, &[touch("t", Effect::Refer), touch("s", Effect::Create)]).await;
        let update = lanes.turn(&lane, &[touch("t", Effect::Update)]).await;
        let mut delete = Box::pin(lanes.turn(&lane, &[touch("t", Effect::End)]));
        let mut late_span = Box::pin(lanes.turn(&lane, &[touch("t", Effect::Refer), touch("s2", Effect::Create)]));
        drop(update);
        assert!(is_ready(&mut delete).await.is_none(), "the deletion overtook a span of its trace");
        drop(span);
        let delete = is_ready(&mut delete).await.expect("nothing is before the deletion any more");
        assert!(is_ready(&mut late_span).await.is_none(), "a span overtook the deletion of its trace");
        drop(delete);
        drop(is_ready(&mut late_span).await.expect("the deletion has its end"));
        assert!(lanes.lock().is_empty(), "turns that ended are still remembered");
    }
}
