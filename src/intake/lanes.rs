//! Order at the door: writes about one entity take their turns in the order in which they arrived.
//!
//! A write that is being forwarded is in no store yet, so the store can't hold back what comes after it. Here a later
//! write about the same entity of the same lane waits until the earlier one has its end: answered by the server, or
//! committed to the store. Only then is decided what happens to the later one, and by then the store knows.
//!
//! A turn is taken for all entities of a write at once, so turns can't wait for each other in a circle. A turn ends when
//! it is dropped. Memory: one entry per entity of a write in progress.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::message::{Effect, EntityKey, Lane, Touch};

/// The turns of all lanes.
#[derive(Clone, Default)]
pub struct Lanes {
    last: Arc<Mutex<LastTurns>>,
}

/// The latest turn about each entity of each lane.
type LastTurns = HashMap<(Arc<Lane>, EntityKey), Ended>;

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
    /// Waits until every earlier write about these entities of the lane has its end.
    ///
    /// References need no order and are passed over. The place in the queue is taken when this is called, not when it is
    /// first awaited.
    pub fn turn(&self, lane: &Lane, touches: &[Touch]) -> impl Future<Output = Turn> + Send + use<> {
        let lane = Arc::new(lane.clone());
        let ended: Ended = Arc::new(Semaphore::new(0));
        let mut earlier = Vec::new();
        let mut keys = Vec::new();
        {
            let mut last = self.lock();
            for touch in touches.iter().filter(|touch| touch.effect != Effect::Refer) {
                keys.push(touch.key);
                earlier.extend(last.insert((lane.clone(), touch.key), ended.clone()));
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
            let entry = (self.lane.clone(), key);
            // A later turn has taken the entry over and still waits for us; it takes it away itself.
            if last.get(&entry).is_some_and(|ended| Arc::ptr_eq(ended, &self.ended)) {
                last.remove(&entry);
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
}
