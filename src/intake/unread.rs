//! The writes of each lane that are in flight: the asynchronous side of [`crate::delivery::unread`], which has the rules.
//!
//! Each write holds an [`InFlight`] from the moment when it has its entity locks, or begins to be forwarded unread, until
//! its client is answered. One that is dropped undecided, by a panic, is removed from its window, so that nothing waits
//! for it.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::delivery::unread::{ENTRIES_MAX, Gate, LaneWindow, Locked, StoreTurn, Wakes};
use crate::message::{Lane, Message};
use crate::store::committer::COMMIT_MESSAGES_MAX;

// A write and all that is stored again behind it.
const _: () = assert!(ENTRIES_MAX <= COMMIT_MESSAGES_MAX);

/// Lanes past which those with nothing in flight are forgotten.
const LANES_MIN: usize = 64;

/// A create that is in flight unread.
pub(super) trait Unread: Send + Sync {
    /// Reads it.
    fn read(self: Arc<Self>) -> MessageRead;
}

/// Reads an unread create.
pub(super) type MessageRead = Pin<Box<dyn Future<Output = Result<ReadCreate, ReadFailure>> + Send>>;

/// A create that was forwarded unread, once it was read.
pub(super) struct ReadCreate {
    pub(super) message: Arc<Message>,
    /// Holds the memory for it.
    pub(super) memory: Arc<dyn Any + Send + Sync>,
}

/// Why a create can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFailure {
    /// No server could read it either.
    Unreadable,
    /// The agent can't now.
    NotNow,
}

/// A delivered write that has to be stored behind another one can't be read now, so neither is stored.
#[derive(Debug)]
pub(super) struct RepeatUnreadable;

/// What it takes to store a write that is in flight.
#[derive(Clone)]
pub(super) enum Kept {
    /// It has to be read first.
    Unread(Arc<dyn Unread>),
    /// Its message, and what holds the memory for it.
    Read(Arc<Message>, #[allow(dead_code, reason = "it is held, not used")] Arc<dyn Any + Send + Sync>),
}

/// The windows of all lanes.
pub(super) struct Windows {
    started: Instant,
    lanes: Mutex<LaneTable>,
    /// Whether any create was forwarded unread.
    has_unread: AtomicBool,
    /// Whether every create is read from now on.
    is_closed: AtomicBool,
}

struct LaneTable {
    flights: HashMap<Lane, Arc<LaneFlights>>,
    /// How many lanes there may be before those with nothing in flight are removed.
    purge_at: usize,
}

/// The writes of a lane that are in flight.
pub(super) struct LaneFlights {
    started: Instant,
    state: Mutex<FlightsState>,
    /// Held while unread creates are read.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct FlightsState {
    window: LaneWindow<Kept>,
    /// Writes that wait for a change, by number.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Default for Windows {
    fn default() -> Self {
        let lanes = LaneTable { flights: HashMap::new(), purge_at: LANES_MIN };
        Self {
            started: Instant::now(),
            lanes: Mutex::new(lanes),
            has_unread: AtomicBool::default(),
            is_closed: AtomicBool::default(),
        }
    }
}

impl Windows {
    /// Returns whether any create was forwarded unread, so that the server may have entities that nobody here saw
    /// created.
    pub(super) fn has_unread(&self) -> bool {
        self.has_unread.load(Ordering::Relaxed)
    }

    /// Records that a create is forwarded unread.
    pub(super) fn note_unread(&self) {
        if !self.has_unread() {
            self.has_unread.store(true, Ordering::Relaxed);
        }
    }

    /// Has every create read from now on. Once the agent stops, another one on its store may deliver writes that a
    /// repair here would overwrite.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Returns whether creates may be forwarded unread.
    pub(super) fn are_open(&self) -> bool {
        !self.is_closed.load(Ordering::Relaxed)
    }

    /// Returns the window of a lane.
    pub(super) fn of(&self, lane: &Lane) -> Arc<LaneFlights> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flights) = lanes.flights.get(lane) {
            return flights.clone();
        }
        if lanes.flights.len() >= lanes.purge_at {
            // One that somebody else holds may be about to be used.
            lanes.flights.retain(|_, flights| Arc::strong_count(flights) > 1 || !flights.state().window.is_empty());
            lanes.purge_at = LANES_MIN.max(2 * lanes.flights.len());
        }
        let flights = Arc::new(LaneFlights {
            started: self.started,
            state: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        });
        lanes.flights.insert(lane.clone(), flights.clone());
        flights
    }
}

impl LaneFlights {
    /// Begins to forward a create unread; `None` if it has to be read first. `kept` is not called then.
    pub(super) fn begin_unread(self: &Arc<Self>, kept: impl FnOnce() -> (Kept, usize)) -> Option<InFlight> {
        let now = self.now();
        let number = self.state().window.begin_unread(now, kept)?;
        Some(InFlight { flights: self.clone(), number, is_over: false })
    }

    /// Adds a write that has its entity locks, and waits until it may go on.
    pub(super) async fn arrive(self: &Arc<Self>, write: Locked) -> InFlight {
        let (number, gate) = {
            let now = self.now();
            let mut state = self.state();
            let number = state.window.arrive(now, write);
            (number, state.window.gate(number, now))
        };
        let flight = InFlight { flights: self.clone(), number, is_over: false };
        if gate != Gate::Open {
            flight.pass_gate().await;
        }
        flight
    }

    /// Reads all unread creates of the lane. What can't be read now may be about anything.
    async fn read_unread(&self) {
        let _guard = self.reading.lock().await;
        let unread = self.state().window.unread();
        for (number, kept) in unread {
            let Kept::Unread(create) = kept else { continue };
            match create.read().await {
                Ok(ReadCreate { message, memory }) => {
                    let bytes = message.request.body.bytes.len();
                    let touches = message.touches.as_slice().into();
                    let kept = Some((Kept::Read(message, memory), bytes));
                    self.change(number, |window| window.read(number, touches, kept));
                }
                Err(ReadFailure::Unreadable) => self.change(number, |window| window.read(number, Arc::default(), None)),
                Err(ReadFailure::NotNow) => self.change(number, |window| window.not_readable_now(number)),
            }
            // Each takes a tenth of a millisecond, and others of this thread wait.
            tokio::task::yield_now().await;
        }
    }

    /// Changes a write in the window, and wakes those who may wait for that.
    fn change<T>(&self, number: u64, change: impl FnOnce(&mut LaneWindow<Kept>) -> T) -> T {
        let mut state = self.state();
        let (waits_for_room, before) = (state.window.waits_for_room(number), state.window.wakes());
        let result = change(&mut state.window);
        if waits_for_room != Some(false) && !state.waiting.is_empty() {
            let wakes = match (waits_for_room, before) {
                (Some(_), _) => state.window.with_room(),
                (None, Wakes::All) => Wakes::All,
                (None, Wakes::Below(_)) => state.window.wakes(),
            };
            let mut woken = state.waiting.split_off(&number);
            if let Wakes::Below(end) = wakes {
                let mut others = woken.split_off(&end.max(number));
                state.waiting.append(&mut others);
            }
            drop(state);
            for wake in woken.into_values() {
                // It has gone if it is read meanwhile.
                let _ = wake.send(());
            }
        }
        result
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, FlightsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A write that is in flight, until it is dropped.
pub(super) struct InFlight {
    flights: Arc<LaneFlights>,
    number: u64,
    is_over: bool,
}

impl InFlight {
    async fn pass_gate(&self) {
        loop {
            let waiting = {
                let mut state = self.flights.state();
                let now = self.flights.now();
                match state.window.gate(self.number, now) {
                    Gate::Open => return,
                    Gate::Read => None,
                    Gate::Wait(until) => Some((state.wait(self.number), until.map(|until| until.saturating_sub(now)))),
                }
            };
            match waiting {
                None => self.flights.read_unread().await,
                // A sender is only dropped for another one of the same write.
                Some((woken, None)) => drop(woken.await),
                Some((woken, Some(pause))) => drop(tokio::time::timeout(pause, woken).await),
            }
        }
    }

    /// Records the server's answer: whether it has the write now. Returns whether the write has to be stored all the
    /// same before its client gets the answer, because an earlier one was stored meanwhile that would overwrite it.
    pub(super) fn answered(&mut self, is_applied: bool, kept: impl FnOnce() -> (Kept, usize)) -> bool {
        let must_be_stored = self.flights.change(self.number, |window| window.answered(self.number, is_applied, kept));
        self.is_over = !must_be_stored;
        must_be_stored
    }

    /// Records that the write has to be stored.
    pub(super) fn keep(&self) {
        self.flights.change(self.number, |window| window.keep(self.number));
    }

    /// Waits until the write may be stored, and returns the messages that are stored behind it in the same commit.
    ///
    /// # Errors
    ///
    /// It must not be stored: it would overwrite one that can't be stored behind it.
    pub(super) async fn store_turn(&self) -> Result<Vec<Arc<Message>>, RepeatUnreadable> {
        self.keep();
        loop {
            let woken = {
                let mut state = self.flights.state();
                match state.window.turn(self.number) {
                    StoreTurn::Store(behind) => Some(Err(behind)),
                    StoreTurn::Read => None,
                    StoreTurn::Wait => Some(Ok(state.wait(self.number))),
                }
            };
            match woken {
                None => self.flights.read_unread().await,
                Some(Ok(woken)) => drop(woken.await),
                Some(Err(behind)) => return messages_of(behind).await,
            }
        }
    }

    /// Records that the write certainly was not stored.
    pub(super) fn not_stored(&self) {
        self.flights.change(self.number, |window| window.not_stored(self.number));
    }

    /// Records that the write was stored or refused, or is not forwarded after all.
    pub(super) fn end(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.flights.change(self.number, |window| window.remove(self.number));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.end();
    }
}

impl FlightsState {
    fn wait(&mut self, number: u64) -> oneshot::Receiver<()> {
        let (wake, woken) = oneshot::channel();
        self.waiting.insert(number, wake);
        woken
    }
}

/// Returns the messages to store again, without those that no server could read.
async fn messages_of(repeated: Vec<Kept>) -> Result<Vec<Arc<Message>>, RepeatUnreadable> {
    let mut messages = Vec::new();
    for kept in repeated {
        match kept {
            Kept::Read(message, _) => messages.push(message),
            // It could not be read before.
            Kept::Unread(create) => match create.read().await {
                Ok(ReadCreate { message, .. }) => messages.push(message),
                Err(ReadFailure::Unreadable) => {}
                Err(ReadFailure::NotNow) => return Err(RepeatUnreadable),
            },
        }
    }
    Ok(messages)
}
