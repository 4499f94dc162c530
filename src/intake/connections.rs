//! How many connections are open, and which one is evicted when there are too many.
//!
//! The rule: when `max_connections` are open, the connection that has been idle for longest is evicted for a new one.
//! Idle means that none of its requests is being answered; a client that has sent half a head is idle, too. When every
//! connection is busy, the new one gets a 503 with `Retry-After` and is closed.
//!
//! So neither thousands of forgotten connections nor clients that send their heads byte by byte keep a live client out.
//! A client whose idle connection is evicted opens another one, as after any keep-alive timeout; no request is lost,
//! because none had begun.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connections of a listener.
pub(super) struct Connections {
    max: usize,
    table: Mutex<ConnectionTable>,
}

#[derive(Default)]
struct ConnectionTable {
    /// Incremented with every change, so a smaller number is an older one.
    clock: u64,
    open: HashMap<u64, OpenConnection>,
    /// Idle connections by the time since when they are.
    idle: BTreeMap<u64, u64>,
}

struct OpenConnection {
    /// Requests that are being answered. HTTP/1.1 has one at a time; its answer may still be on its way when the next
    /// one begins.
    busy: usize,
    idle_since: Option<u64>,
    close: Arc<Notify>,
}

/// The right to a connection, until it is dropped.
pub(super) struct Seat {
    connections: Arc<Connections>,
    id: u64,
    close: Arc<Notify>,
}

/// A request that is being answered on a connection, until it is dropped.
pub(super) struct BusyGuard {
    connections: Arc<Connections>,
    id: u64,
}

/// Whether a new connection may stay.
pub(super) enum SeatOffer {
    /// It may.
    Free(Seat),
    /// It may, and an idle one is evicted for it.
    FromIdle(Seat),
    /// It may not: every connection is busy.
    Full,
}

impl Connections {
    pub(super) fn new(max: usize) -> Self {
        Self { max, table: Mutex::default() }
    }

    /// Asks for a seat for a new connection.
    pub(super) fn admit(self: &Arc<Self>) -> SeatOffer {
        let mut table = self.lock();
        let mut is_from_idle = false;
        if table.open.len() >= self.max {
            let Some((_, id)) = table.idle.pop_first() else { return SeatOffer::Full };
            if let Some(open) = table.open.get_mut(&id) {
                open.idle_since = None;
                open.close.notify_one();
            }
            is_from_idle = true;
        }
        let id = table.tick();
        let close = Arc::new(Notify::new());
        table.idle.insert(id, id);
        table.open.insert(id, OpenConnection { busy: 0, idle_since: Some(id), close: close.clone() });
        let seat = Seat { connections: self.clone(), id, close };
        if is_from_idle { SeatOffer::FromIdle(seat) } else { SeatOffer::Free(seat) }
    }

    /// Returns how many connections are open.
    pub(super) fn open(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionTable {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Seat {
    /// Waits until the connection is evicted. One on which a request began at the same moment may finish it.
    pub(super) async fn asked_to_close(&self) {
        loop {
            self.close.notified().await;
            if self.connections.lock().open.get(&self.id).is_none_or(|open| open.busy == 0) {
                return;
            }
        }
    }

    /// Returns what marks the connection as busy.
    pub(super) fn marker(&self) -> BusyMarker {
        BusyMarker { connections: self.connections.clone(), id: self.id }
    }
}

/// Marks a connection as busy while requests are answered.
#[derive(Clone)]
pub(super) struct BusyMarker {
    connections: Arc<Connections>,
    id: u64,
}

impl BusyMarker {
    /// Begins a request, which ends when the guard is dropped.
    pub(super) fn begin(&self) -> BusyGuard {
        let mut table = self.connections.lock();
        let since = table.open.get_mut(&self.id).and_then(|open| {
            open.busy += 1;
            open.idle_since.take()
        });
        if let Some(since) = since {
            table.idle.remove(&since);
        }
        BusyGuard { connections: self.connections.clone(), id: self.id }
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        let mut table = self.connections.lock();
        let now = table.tick();
        let Some(open) = table.open.get_mut(&self.id) else { return };
        open.busy -= 1;
        if open.busy == 0 {
            open.idle_since = Some(now);
            table.idle.insert(now, self.id);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.connections.lock();
        if let Some(since) = table.open.remove(&self.id).and_then(|open| open.idle_since) {
            table.idle.remove(&since);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn seat(connections: &Arc<Connections>) -> (Seat, bool) {
        match connections.admit() {
            SeatOffer::Free(seat) => (seat, false),
            SeatOffer::FromIdle(seat) => (seat, true),
            SeatOffer::Full => panic!("there was room"),
        }
    }

    fn is_asked_to_close(seat: &Seat) -> bool {
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
        let (fourth, is_from_idle) = seat(&connections);
        assert!(is_from_idle && is_asked_to_close(&third), "the third has been idle for longest");
        assert!(!is_asked_to_close(&first) && !is_asked_to_close(&second));
        drop(third);
        let _also_at_work = [first.marker().begin(), fourth.marker().begin()];
        assert!(matches!(connections.admit(), SeatOffer::Full), "a busy connection is never closed for another");
        drop(at_work);
        assert!(matches!(connections.admit(), SeatOffer::FromIdle(_)));
        assert!(is_asked_to_close(&second));
        drop((first, second, fourth));
        assert_eq!(connections.open(), 0);
        assert!(connections.lock().idle.is_empty());
    }

    #[test]
    fn a_connection_that_is_asked_to_close_as_a_request_begins_finishes_it() {
        let connections = Arc::new(Connections::new(1));
        let (first, _) = seat(&connections);
        let (second, is_from_idle) = seat(&connections);
        assert!(is_from_idle);
        let request = first.marker().begin();
        assert!(!is_asked_to_close(&first), "its request would be cut off");
        drop(request);
        let (_third, is_from_idle) = seat(&connections);
        assert!(
            is_from_idle && is_asked_to_close(&second) && !is_asked_to_close(&first),
            "the second has been idle for longer now"
        );
    }
}
