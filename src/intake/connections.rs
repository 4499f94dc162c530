//! How many connections there are, and who has to go when there are too many.
//!
//! The rule: when `max_connections` are open, the one that has been idle for longest is closed to make room for a new one.
//! Idle means that no request of it is being answered; a client that has sent half a head is idle, too. When every
//! connection is busy, the new one gets a 503 with `Retry-After`, and is closed.
//!
//! So neither thousands of forgotten connections nor clients that send their heads drop by drop keep a live client out.
//! A client that meets the close of its idle connection opens another one, as for any keep-alive that has ended; no
//! request is lost by it, because none had begun.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connections of a listener.
pub(super) struct Connections {
    max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Grows with every change, so a smaller number is an older one.
    clock: u64,
    open: HashMap<u64, Open>,
    /// Idle connections by the time since when they are.
    idle: BTreeMap<u64, u64>,
}

struct Open {
    /// Requests that are being answered. HTTP/1.1 has one at a time; its answer may still be on its way when it ends.
    busy: usize,
    idle_since: Option<u64>,
    close: Arc<Notify>,
}

/// The right to a connection, given back when it is dropped.
pub(super) struct Seat {
    connections: Arc<Connections>,
    id: u64,
    close: Arc<Notify>,
}

/// A request that is being answered on a connection.
pub(super) struct Busy {
    connections: Arc<Connections>,
    id: u64,
}

/// Whether a new connection may stay.
pub(super) enum Admission {
    /// It may.
    Taken(Seat),
    /// It may, and an idle one is closed for it.
    TakenFromIdle(Seat),
    /// It may not: every connection is busy.
    Full,
}

impl Connections {
    pub(super) fn new(max: usize) -> Self {
        Self { max, inner: Mutex::default() }
    }

    /// Asks for a place for a new connection.
    pub(super) fn admit(self: &Arc<Self>) -> Admission {
        let mut inner = self.lock();
        let mut is_taken_from_idle = false;
        if inner.open.len() >= self.max {
            let Some((_, id)) = inner.idle.pop_first() else { return Admission::Full };
            if let Some(open) = inner.open.get_mut(&id) {
                open.idle_since = None;
                open.close.notify_one();
            }
            is_taken_from_idle = true;
        }
        let id = inner.tick();
        let close = Arc::new(Notify::new());
        inner.idle.insert(id, id);
        inner.open.insert(id, Open { busy: 0, idle_since: Some(id), close: close.clone() });
        let seat = Seat { connections: self.clone(), id, close };
        if is_taken_from_idle { Admission::TakenFromIdle(seat) } else { Admission::Taken(seat) }
    }

    /// Returns how many connections there are.
    pub(super) fn open(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Seat {
    /// Returns when the connection has to make room. One that took up a request in the same moment may finish it.
    pub(super) async fn asked_to_close(&self) {
        loop {
            self.close.notified().await;
            if self.connections.lock().open.get(&self.id).is_none_or(|open| open.busy == 0) {
                return;
            }
        }
    }

    /// Returns what makes the connection busy for as long as it is kept.
    pub(super) fn marker(&self) -> Marker {
        Marker { connections: self.connections.clone(), id: self.id }
    }
}

/// Tells that requests begin on a connection.
#[derive(Clone)]
pub(super) struct Marker {
    connections: Arc<Connections>,
    id: u64,
}

impl Marker {
    /// A request has begun; it lasts until the value is dropped.
    pub(super) fn begin(&self) -> Busy {
        let mut inner = self.connections.lock();
        let since = inner.open.get_mut(&self.id).and_then(|open| {
            open.busy += 1;
            open.idle_since.take()
        });
        if let Some(since) = since {
            inner.idle.remove(&since);
        }
        Busy { connections: self.connections.clone(), id: self.id }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut inner = self.connections.lock();
        let now = inner.tick();
        let Some(open) = inner.open.get_mut(&self.id) else { return };
        open.busy -= 1;
        if open.busy == 0 {
            open.idle_since = Some(now);
            inner.idle.insert(now, self.id);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.connections.lock();
        if let Some(since) = inner.open.remove(&self.id).and_then(|open| open.idle_since) {
            inner.idle.remove(&since);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn seat(connections: &Arc<Connections>) -> (Seat, bool) {
        match connections.admit() {
            Admission::Taken(seat) => (seat, false),
            Admission::TakenFromIdle(seat) => (seat, true),
            Admission::Full => panic!("there was room"),
        }
    }

    fn has_to_go(seat: &Seat) -> bool {
        let asked = std::pin::pin!(seat.asked_to_close());
        asked.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn the_longest_idle_makes_room_and_the_busy_stay() {
        let connections = Arc::new(Connections::new(3));
        let [(first, _), (second, _), (third, _)] = [(); 3].map(|()| seat(&connections));
        let at_work = second.marker().begin();
        // Idle again, but only since now.
        drop(first.marker().begin());
        let (fourth, is_taken) = seat(&connections);
        assert!(is_taken && has_to_go(&third), "the third has been idle for longest");
        assert!(!has_to_go(&first) && !has_to_go(&second));
        drop(third);
        let _also_at_work = [first.marker().begin(), fourth.marker().begin()];
        assert!(matches!(connections.admit(), Admission::Full), "a busy connection is never closed for another");
        drop(at_work);
        assert!(matches!(connections.admit(), Admission::TakenFromIdle(_)));
        assert!(has_to_go(&second));
        drop((first, second, fourth));
        assert_eq!(connections.open(), 0);
        assert!(connections.lock().idle.is_empty());
    }

    #[test]
    fn a_connection_that_is_asked_to_go_while_a_request_begins_finishes_it() {
        let connections = Arc::new(Connections::new(1));
        let (first, _) = seat(&connections);
        let (second, is_taken) = seat(&connections);
        assert!(is_taken);
        let request = first.marker().begin();
        assert!(!has_to_go(&first), "its request would be cut off");
        drop(request);
        let (_third, is_taken) = seat(&connections);
        assert!(is_taken && has_to_go(&second) && !has_to_go(&first), "the second has been idle for longer now");
    }
}
