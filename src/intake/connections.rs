//! How many connections are open, and which one is evicted when there are too many.
//!
//! The rule: when `max_connections` are open, the connection that has been idle for longest is evicted for a new one.
//! Idle means that none of its requests is being answered; a client that has sent half a head is idle, too. When every
//! connection is busy, the new one gets a 503 with `Retry-After` and is closed.
//!
//! So neither thousands of forgotten connections nor clients that send their heads byte by byte keep a live client out.
//! A client whose idle connection is evicted opens another one, as after any keep-alive timeout; no request is lost,
//! because none had begun.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// All connections are looked at once for the eviction of this part of them.
const CANDIDATES_SHARE: usize = 16;

/// The connections of a listener. The table is locked when a connection comes or goes, never for a request.
pub(super) struct Connections {
    max: usize,
    clock: Arc<IdleClock>,
    table: Mutex<ConnectionTable>,
}

/// Incremented when a connection becomes idle, so a smaller number is an older one.
#[derive(Default)]
struct IdleClock(AtomicU64);

impl IdleClock {
    fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Default)]
struct ConnectionTable {
    next_id: u64,
    open: HashMap<u64, Arc<OpenConnection>>,
    /// Those that were idle for longest when they were looked for: when that began, and their numbers, the longest last.
    candidates: Vec<(u64, u64)>,
}

struct OpenConnection {
    /// Requests that are being answered. HTTP/1.1 has one at a time; its answer may still be on its way when the next
    /// one begins.
    busy: AtomicUsize,
    /// The clock when it last became idle.
    idle_since: AtomicU64,
    clock: Arc<IdleClock>,
    is_evicted: AtomicBool,
    close: Notify,
}

/// The right to a connection, until it is dropped.
pub(super) struct Seat {
    connections: Arc<Connections>,
    id: u64,
    open: Arc<OpenConnection>,
}

/// A request that is being answered on a connection, until it is dropped.
pub(super) struct BusyGuard(Arc<OpenConnection>);

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
        Self { max, clock: Arc::default(), table: Mutex::default() }
    }

    /// Asks for a seat for a new connection.
    pub(super) fn admit(self: &Arc<Self>) -> SeatOffer {
        let mut table = self.lock();
        let mut is_from_idle = false;
        if table.open.len() >= self.max {
            let Some(evicted) = table.longest_idle() else { return SeatOffer::Full };
            evicted.is_evicted.store(true, Ordering::Release);
            evicted.close.notify_one();
            is_from_idle = true;
        }
        table.next_id += 1;
        let id = table.next_id;
        let open = Arc::new(OpenConnection {
            busy: AtomicUsize::new(0),
            idle_since: AtomicU64::new(self.clock.tick()),
            clock: self.clock.clone(),
            is_evicted: AtomicBool::new(false),
            close: Notify::new(),
        });
        table.open.insert(id, open.clone());
        let seat = Seat { connections: self.clone(), id, open };
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

impl OpenConnection {
    /// Returns the clock when it became idle; `None` if it is busy, or evicted already.
    fn idle_since(&self) -> Option<u64> {
        let is_idle = self.busy.load(Ordering::Acquire) == 0 && !self.is_evicted.load(Ordering::Acquire);
        is_idle.then(|| self.idle_since.load(Ordering::Relaxed))
    }
}

impl ConnectionTable {
    /// Returns the connection that has been idle for longest.
    ///
    /// All are looked at for many evictions together. Whatever becomes idle after that is younger than every candidate.
    fn longest_idle(&mut self) -> Option<Arc<OpenConnection>> {
        loop {
            while let Some((since, id)) = self.candidates.pop() {
                if let Some(open) = self.open.get(&id)
                    && open.idle_since() == Some(since)
                {
                    return Some(open.clone());
                }
            }
            let idle = self.open.iter().filter_map(|(id, open)| Some((open.idle_since()?, *id)));
            self.candidates = idle.collect();
            if self.candidates.is_empty() {
                return None;
            }
            self.candidates.sort_unstable();
            self.candidates.truncate(self.open.len().div_ceil(CANDIDATES_SHARE));
            self.candidates.reverse();
        }
    }
}

impl Seat {
    /// Waits until the connection is evicted. One on which a request began at the same moment may finish it.
    pub(super) async fn asked_to_close(&self) {
        loop {
            self.open.close.notified().await;
            if self.open.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            // It is idle again after its request, and may be evicted then.
            self.open.is_evicted.store(false, Ordering::Release);
        }
    }

    /// Returns what marks the connection as busy.
    pub(super) fn marker(&self) -> BusyMarker {
        BusyMarker(self.open.clone())
    }
}

/// Marks a connection as busy while requests are answered.
pub(super) struct BusyMarker(Arc<OpenConnection>);

impl BusyMarker {
    /// Begins a request, which ends when the guard is dropped.
    pub(super) fn begin(&self) -> BusyGuard {
        self.0.busy.fetch_add(1, Ordering::AcqRel);
        BusyGuard(self.0.clone())
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        // Before it counts as idle.
        self.0.idle_since.store(self.0.clock.tick(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.lock().open.remove(&self.id);
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
