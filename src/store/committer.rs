//! Group commit: takes all queued registrations, commits them together, then answers. Independent of the engine.
//!
//! ```text
//!   submit ─┐
//!   submit ─┼─▶ queue (bounded) ─▶ one thread: take all ─▶ register (one fsync) ─▶ answer each ─┐
//!   submit ─┘                          ▲                                                        │
//!                                      └────────────────────────────────────────────────────────┘
//! ```
//!
//! There is no artificial delay: a single message is committed alone, and while that commit runs the next batch
//! accumulates in the queue. (Waiting for the clients that were just answered gave fewer, larger commits, but also fewer
//! of their messages per second: intake prepares messages while a commit waits for the disk.) Callbacks run after the
//! commit, never before, and at most once. Then each thread that waits for any of them is woken, once.
//!
//! # Order
//!
//! Messages are stored in the order in which they were submitted: a later one is never stored before an earlier one,
//! and gets a higher id. So a write may be submitted behind a conflicting one that is not committed yet. An earlier one
//! may fail alone; its client then has it, and whoever submitted it must not send it past the later one.
//!
//! # Limits
//!
//! The queue holds at most [`QUEUE_MESSAGES_MAX`] messages and [`QUEUE_BYTES_MAX`] bytes of payload; beyond that
//! (backpressure) a message is rejected at once ([`CommitError::Busy`]), and the client still has it. One commit takes
//! at most [`COMMIT_MESSAGES_MAX`] messages and [`COMMIT_BYTES_MAX`] bytes, or a single message of any size.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::error;

use super::error::StoreError;
use super::slot::StoreSlot;
use super::traits::Store;
use crate::message::{Message, MessageId};

/// Maximum number of queued messages.
pub const QUEUE_MESSAGES_MAX: usize = 4096;
/// Maximum payload bytes of queued messages.
pub const QUEUE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Maximum number of messages in one commit.
pub const COMMIT_MESSAGES_MAX: usize = 256;
/// Maximum payload bytes in one commit.
pub const COMMIT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a message was not stored. It must not be acknowledged.
#[derive(Clone, Debug, Error)]
pub enum CommitError {
    /// The queue is full; retry shortly.
    #[error("too many messages wait to be written to the message store")]
    Busy,
    /// The committer has stopped.
    #[error("the message store takes no more messages: the agent is stopping")]
    Stopped,
    /// Earlier messages that it may conflict with are in a store that was moved away.
    #[error(
        "earlier writes wait in a message store that was moved away from opik-offline; this request must not overtake \
         them, send it again later"
    )]
    BehindMoved,
    /// The store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

/// Called with the message's id once it is durable, or with the error. Of several messages it is the first one's id.
///
/// Dropped without a call on an internal error: the message must not be acknowledged then. It runs on
/// the committing thread, so it must only pass the result on. The waker that it returns is called once all results of
/// the commit are passed on; of equal ones only one.
pub type OnDone = Box<dyn FnOnce(Result<MessageId, CommitError>) -> Option<Waker> + Send>;

/// Batches the registrations of many threads into few commits.
///
/// Dropping it has the effect of [`Committer::stop`].
pub struct Committer {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Starts the committing thread.
    ///
    /// # Errors
    ///
    /// The system's error if it can't start a thread.
    pub fn start(stores: Arc<StoreSlot>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let thread = std::thread::Builder::new().name("committer".into()).spawn({
            let queue = Arc::clone(&queue);
            move || {
                // No caller may wait forever, no matter how this thread ends.
                let _closes = CloseOnExit(&queue);
                while let Some(batch) = queue.take_batch() {
                    // A panic costs this batch, whose clients get an error, but not the agent's store.
                    if catch_unwind(AssertUnwindSafe(|| commit(&stores, batch))).is_err() {
                        error!(target: "db_manager", "internal error while storing a batch");
                    }
                }
            }
        })?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a message for the next commit, behind all that were queued before; the callback gets the result.
    ///
    /// Never blocks. If the queue is full or closed, the callback is called at once, on this thread. Returns whether the
    /// message was queued.
    pub fn submit(&self, message: Message, on_done: OnDone) -> bool {
        self.submit_all(vec![message], on_done)
    }

    /// Queues messages that are stored together or not at all, in this order; otherwise as [`Committer::submit`].
    ///
    /// Without a message there is nothing to store, and the callback is dropped.
    pub fn submit_all(&self, messages: Vec<Message>, on_done: OnDone) -> bool {
        if messages.is_empty() {
            return false;
        }
        match self.queue.push(Waiting { messages, on_done }) {
            None => true,
            Some((on_done, error)) => {
                if let Some(waker) = on_done(Err(error)) {
                    waker.wake();
                }
                false
            }
        }
    }

    /// Stores a message and waits for the commit.
    ///
    /// # Errors
    ///
    /// The same as for the callback of [`Committer::submit`].
    pub fn store(&self, message: Message) -> Result<MessageId, CommitError> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let on_done = move |result| {
            answer.send(result).expect("the receiver below lives until it has its one answer");
            None
        };
        self.submit(message, Box::new(on_done));
        answered.recv().unwrap_or(Err(CommitError::Stopped))
    }

    /// Returns how long the committing thread has been busy with its current batch: zero while it is idle, and
    /// forever if it ended without being stopped.
    pub fn silent_for(&self) -> Duration {
        let state = self.queue.state();
        match state.taken_at {
            _ if state.is_lost => Duration::MAX,
            Some(taken_at) => taken_at.elapsed(),
            None => Duration::ZERO,
        }
    }

    /// Closes the queue, commits the queued messages, answers them and joins the thread.
    pub fn stop(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            error!(target: "db_manager", "the committing thread panicked; its queued messages were rejected");
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Messages that are stored together or not at all.
struct Waiting {
    messages: Vec<Message>,
    on_done: OnDone,
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.request.body.bytes.len()).sum()
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Waiting>,
    messages: usize,
    bytes: usize,
    /// Whether the committing thread waits to be woken.
    sleeps: bool,
    closed: bool,
    /// When the batch in progress was taken.
    taken_at: Option<Instant>,
    /// The committing thread died.
    is_lost: bool,
}

impl Queue {
    /// Queues a message, or returns its callback with the error.
    fn push(&self, waiting: Waiting) -> Option<(OnDone, CommitError)> {
        let mut state = self.state();
        if state.closed {
            return Some((waiting.on_done, CommitError::Stopped));
        }
        let (messages, bytes) = (waiting.messages.len(), waiting.bytes());
        let full = state.messages.saturating_add(messages) > QUEUE_MESSAGES_MAX
            || state.bytes.saturating_add(bytes) > QUEUE_BYTES_MAX;
        // A single message is always queued: intake limits its size.
        if full && !state.waiting.is_empty() {
            return Some((waiting.on_done, CommitError::Busy));
        }
        state.messages += messages;
        state.bytes += bytes;
        state.waiting.push_back(waiting);
        // Notifying is a system call, even if nobody waits.
        let wakes = std::mem::take(&mut state.sleeps);
        drop(state);
        if wakes {
            self.changed.notify_one();
        }
        None
    }

    /// Waits for messages and returns the batch of the next commit; `None` once closed and empty.
    fn take_batch(&self) -> Option<Vec<Waiting>> {
        let mut state = self.state();
        state.taken_at = None;
        state.sleeps = true;
        let mut state = self
            .changed
            .wait_while(state, |state| state.waiting.is_empty() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.sleeps = false;
        let (mut messages, mut bytes) = (0, 0);
        let take = state
            .waiting
            .iter()
            .take_while(|waiting| {
                messages += waiting.messages.len();
                bytes += waiting.bytes();
                messages <= COMMIT_MESSAGES_MAX && bytes <= COMMIT_BYTES_MAX
            })
            .count()
            .max(1)
            .min(state.waiting.len());
        let batch: Vec<Waiting> = state.waiting.drain(..take).collect();
        state.messages -= batch.iter().map(|waiting| waiting.messages.len()).sum::<usize>();
        state.bytes -= batch.iter().map(Waiting::bytes).sum::<usize>();
        state.taken_at = (!batch.is_empty()).then(Instant::now);
        (!batch.is_empty()).then_some(batch)
    }

    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        // No critical section can panic halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct CloseOnExit<'thread>(&'thread Queue);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.0.state();
            state.is_lost = !state.closed;
        }
        self.0.close();
        let left = std::mem::take(&mut self.0.state().waiting);
        answer(left.into_iter().map(|waiting| (waiting.on_done, Err(CommitError::Stopped))));
    }
}

/// Calls callbacks with their results, and then each different waker once.
fn answer(results: impl Iterator<Item = (OnDone, Result<MessageId, CommitError>)>) {
    let mut wakers: Vec<Waker> = Vec::new();
    for (on_done, result) in results {
        if let Some(waker) = on_done(result)
            && !wakers.iter().any(|other| other.will_wake(&waker))
        {
            wakers.push(waker);
        }
    }
    wakers.into_iter().for_each(Waker::wake);
}

/// Commits a batch and calls its callbacks.
fn commit(stores: &StoreSlot, batch: Vec<Waiting>) {
    let (mut messages, mut units, mut callbacks) = (Vec::new(), Vec::new(), Vec::new());
    for waiting in batch {
        units.push(waiting.messages.len());
        messages.extend(waiting.messages);
        callbacks.push(waiting.on_done);
    }
    let results = register(stores, &messages, &units);
    answer(callbacks.into_iter().zip(results));
}

/// Stores messages and returns one result for each unit, in order. `units` has the numbers of messages that are stored
/// together or not at all.
fn register(stores: &StoreSlot, messages: &[Message], units: &[usize]) -> Vec<Result<MessageId, CommitError>> {
    let refused = |error: Arc<StoreError>| vec![Err(CommitError::Store(error)); units.len()];
    let store = match stores.get() {
        Ok(store) => store,
        Err(error) => return refused(error),
    };
    // Checked after the slot, which detects that a store was moved.
    if !stores.moved().is_empty() {
        return register_behind_moved(stores, &store, messages, units);
    }
    match register_in(&store, messages) {
        Ok(ids) => first_ids(&ids, units),
        // A limit that rejects the batch may admit its first messages, in order, until it rejects one.
        Err(error) if matches!(*error, StoreError::Full { .. }) && units.len() > 1 => {
            let (first, second) = units.split_at(units.len() / 2);
            let (of_first, of_second) = messages.split_at(first.iter().sum());
            let mut results = register(stores, of_first, first);
            results.extend(register(stores, of_second, second));
            results
        }
        Err(error) => {
            if error.is_unproven() {
                stores.note_uncertain(messages);
            }
            stores.report(&store, &error);
            // A store whose file was replaced is reopened at once, and holds nothing of this batch.
            match stores.get() {
                Ok(other) if !Arc::ptr_eq(&other, &store) && !stores.moved().is_empty() => {
                    register_behind_moved(stores, &other, messages, units)
                }
                Ok(other) if !Arc::ptr_eq(&other, &store) => match register_in(&other, messages) {
                    Ok(ids) => first_ids(&ids, units),
                    Err(error) => {
                        stores.report(&other, &error);
                        refused(error)
                    }
                },
                Ok(_) | Err(_) => refused(error),
            }
        }
    }
}

/// Returns the first message's id of each unit.
fn first_ids(ids: &[MessageId], units: &[usize]) -> Vec<Result<MessageId, CommitError>> {
    let mut left = ids;
    let first_of = |count: &usize| {
        let (unit, rest) = left.split_at(*count);
        left = rest;
        Ok(unit[0])
    };
    units.iter().map(first_of).collect()
}

/// Stores each unit that can't conflict with messages in a store that was moved away.
fn register_behind_moved(
    stores: &StoreSlot,
    store: &Arc<dyn Store>,
    messages: &[Message],
    units: &[usize],
) -> Vec<Result<MessageId, CommitError>> {
    let mut left = messages;
    let register_unit = |count: &usize| {
        let (unit, rest) = left.split_at(*count);
        left = rest;
        if unit.iter().any(|message| stores.is_behind_moved(message)) {
            return Err(CommitError::BehindMoved);
        }
        match register_in(store, unit) {
            Ok(ids) => Ok(ids[0]),
            Err(error) => {
                stores.report(store, &error);
                Err(CommitError::Store(error))
            }
        }
    };
    units.iter().map(register_unit).collect()
}

fn register_in(store: &Arc<dyn Store>, messages: &[Message]) -> Result<Vec<MessageId>, Arc<StoreError>> {
    let ids = store.register(messages).map_err(Arc::new)?;
    assert_eq!(ids.len(), messages.len(), "a store names every message that it registered");
    Ok(ids)
}
