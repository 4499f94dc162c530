//! One memory budget for bodies: those of clients, in flight to the server or the store, those that are inflated for
//! inspection, and those of replay. Waiting for the budget is the backpressure on all of them.
//!
//! A caller takes the bytes of a body before it allocates it; dropping the [`Grant`] returns them. The policy is in
//! [`shares`] and pure; this module queues and wakes the callers that wait.
//!
//! # Invariant: no deadlock
//!
//! A body of known size takes all of its bytes at once and holds nothing while it waits. A body that arrives in chunks
//! grows without waiting, or is refused ([`Grant::try_grow_up_to`]). Only callers that take [`Use::Inspection`] beside
//! [`Use::Intake`] or [`Use::Division`] beside [`Use::Replay`] wait while they hold memory, and the holder of one of
//! these never waits.
//!
//! # Invariant: no starvation
//!
//! Each use has a share of its own, and the rest is granted in the order in which large bodies came
//! ([`shares::QueuedAhead`]). One body without a Content-Length may grow to the largest body allowed: it can be read
//! to its end, no matter how many others begin.

pub(crate) mod limit;
pub(crate) mod shares;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use self::shares::Use;
use self::shares::{QueuedAhead, Shares, Usage};

/// How often a thread that waits for memory checks whether to stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// A client whose body was refused retries within this time.
const REFUSED_LATELY: Duration = Duration::from_secs(5);

/// The budget, shared by all holders of bodies.
pub struct Budget {
    shares: Shares,
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Default)]
struct BudgetState {
    held: Usage,
    /// The queues of waiting tickets, in order: for each use one of small and one of large bodies.
    queues: [[VecDeque<u64>; 2]; Use::COUNT],
    waiting: HashMap<u64, Waiter>,
    next_ticket: u64,
    /// Whether a growing body has taken memory for the largest size that it may reach.
    has_grower: bool,
    /// When a client's body was last refused memory.
    refused_at: Option<Instant>,
}

impl BudgetState {
    fn refused(&mut self, by: Use) {
        if by == Use::Intake {
            self.refused_at = Some(Instant::now());
        }
    }

    /// Returns which bodies are queued ahead of this ticket.
    fn ahead(&self, shares: Shares, by: Use, ticket: u64) -> QueuedAhead {
        let first = |of: Use| self.queues[of as usize][1].front().copied();
        let is_nested = matches!(by, Use::Inspection | Use::Division);
        let elsewhere =
            [Use::Intake, Use::Replay].into_iter().filter(|other| *other != by && !is_nested).any(|other| {
                let waiting = first(other).filter(|first| *first < ticket).and_then(|first| self.waiting.get(&first));
                waiting.is_some_and(|waiting| shares.waits_for_others(&self.held, other, waiting.bytes))
            });
        QueuedAhead { same_use: first(by).is_some(), elsewhere }
    }
}

struct Waiter {
    bytes: u64,
    is_granted: bool,
    waker: Option<Waker>,
}

impl Budget {
    /// Returns a budget of this many bytes.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { shares: Shares::of(bytes), state: Mutex::default(), changed: Condvar::new() })
    }

    /// Returns the size of the budget.
    pub fn bytes(&self) -> u64 {
        self.shares.total()
    }

    /// Returns how many bytes are in use.
    pub fn taken(&self) -> u64 {
        self.state().held.all()
    }

    /// Returns how many bytes are free for this use, and its limit while the other uses hold what they hold.
    pub fn free(&self, by: Use) -> (u64, u64) {
        self.shares.free(&self.state().held, by)
    }

    /// Returns whether a body of this size counts as a large one.
    pub fn is_large(&self, bytes: u64) -> bool {
        self.shares.is_large(bytes)
    }

    /// Returns whether there is backpressure: bodies of this use wait for memory, or were refused it recently.
    pub fn is_awaited(&self, by: Use) -> bool {
        let state = self.state();
        let waits = |of: Use| !state.queues[of as usize][1].is_empty();
        let others = || Use::ALL.into_iter().any(|other| other != by && waits(other));
        waits(by)
            || state.refused_at.is_some_and(|at| by == Use::Intake && at.elapsed() < REFUSED_LATELY)
            || self.shares.exceeds(&state.held, by) && others()
    }

    /// Takes memory if it is free now and no other body waits for it.
    pub fn try_take(self: &Arc<Self>, by: Use, bytes: u64) -> Option<Grant> {
        let mut state = self.state();
        let is_large = self.shares.is_large(bytes);
        let ahead = state.ahead(self.shares, by, u64::MAX);
        let may = bytes == 0
            || state.queues[by as usize][usize::from(is_large)].is_empty()
                && self.shares.admit(&state.held, by, bytes, ahead);
        may.then(|| {
            state.held.add(by, is_large, bytes);
            Grant { budget: self.clone(), by, bytes, is_grower: false }
        })
        .or_else(|| {
            state.refused(by);
            None
        })
    }

    /// Queues for memory for a body.
    pub fn take(self: &Arc<Self>, by: Use, bytes: u64) -> Wait {
        let mut state = self.state();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.insert(ticket, Waiter { bytes, is_granted: false, waker: None });
        state.queues[by as usize][usize::from(self.shares.is_large(bytes))].push_back(ticket);
        self.serve(state);
        Wait { budget: self.clone(), by, ticket }
    }

    /// Grants memory to queued bodies, as far as it is free, and wakes their callers.
    fn serve(&self, mut guard: MutexGuard<'_, BudgetState>) {
        let state = &mut *guard;
        let mut wakers = Vec::new();
        let mut any = false;
        // A granted ticket may have blocked another queue.
        loop {
            let mut served = false;
            for by in Use::ALL {
                // Large ones first: small ones have a reserve of their own.
                for is_large in [true, false] {
                    while let Some(ticket) = state.queues[by as usize][usize::from(is_large)].front().copied() {
                        let ahead = state.ahead(self.shares, by, ticket);
                        let Some(waiting) = state.waiting.get_mut(&ticket) else { break };
                        if !self.shares.admit(&state.held, by, waiting.bytes, ahead) {
                            break;
                        }
                        waiting.is_granted = true;
                        wakers.extend(waiting.waker.take());
                        served = true;
                        state.held.add(by, is_large, waiting.bytes);
                        state.queues[by as usize][usize::from(is_large)].pop_front();
                    }
                }
            }
            any |= served;
            if !served {
                break;
            }
        }
        drop(guard);
        if any {
            self.changed.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, BudgetState> {
        // No critical section can panic half way, so the invariants hold even after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that is queued for memory; dropping it leaves the queue.
pub struct Wait {
    budget: Arc<Budget>,
    by: Use,
    ticket: u64,
}

impl Wait {
    /// Blocks this thread until memory is granted; returns `None` once `stops` returns true.
    pub fn unless(self, stops: impl Fn() -> bool) -> Option<Grant> {
        let mut state = self.budget.state();
        loop {
            if let Some(bytes) = self.granted(&mut state) {
                return Some(Grant { budget: self.budget.clone(), by: self.by, bytes, is_grower: false });
            }
            if stops() {
                return None;
            }
            let waited = self.budget.changed.wait_timeout(state, STOP_CHECK_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the grant out of the state, if there is one.
    fn granted(&self, state: &mut BudgetState) -> Option<u64> {
        let is_granted = state.waiting.get(&self.ticket).is_some_and(|waiting| waiting.is_granted);
        is_granted.then(|| state.waiting.remove(&self.ticket)).flatten().map(|waiting| waiting.bytes)
    }
}

impl Future for Wait {
    type Output = Grant;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Grant> {
        let mut state = self.budget.state();
        if let Some(bytes) = self.granted(&mut state) {
            return Poll::Ready(Grant { budget: self.budget.clone(), by: self.by, bytes, is_grower: false });
        }
        if let Some(waiting) = state.waiting.get_mut(&self.ticket) {
            waiting.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        // It is no longer there once the grant was handed out.
        let Some(waiting) = state.waiting.remove(&self.ticket) else { return };
        let is_large = self.budget.shares.is_large(waiting.bytes);
        if waiting.is_granted {
            state.held.remove(self.by, is_large, waiting.bytes);
        } else {
            state.queues[self.by as usize][usize::from(is_large)].retain(|ticket| *ticket != self.ticket);
        }
        self.budget.serve(state);
    }
}

/// Memory in use; dropping it returns it to the budget.
pub struct Grant {
    budget: Arc<Budget>,
    by: Use,
    bytes: u64,
    /// Whether it has memory for the largest size that its body may reach.
    is_grower: bool,
}

impl Grant {
    /// Returns how many bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more, if it is free. Never waits: two concurrent holders could wait for each other for ever.
    pub fn try_grow(&mut self, more: u64) -> bool {
        let budget = self.budget.clone();
        let mut state = budget.state();
        self.try_become(&mut state, self.bytes.saturating_add(more))
    }

    /// Grows the grant of a body of unknown size that has reached `bytes` and may grow to `most`.
    ///
    /// Once it counts as large it takes `most`, unless another growing body has: otherwise two growing bodies could
    /// keep each other from finishing, and newer ones could keep both from it.
    pub fn try_grow_up_to(&mut self, bytes: u64, most: u64) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        let budget = self.budget.clone();
        let mut state = budget.state();
        if budget.shares.is_large(bytes) && !state.has_grower && self.try_become(&mut state, most.max(bytes)) {
            state.has_grower = true;
            self.is_grower = true;
            return true;
        }
        // A growing buffer is copied into one of twice its size.
        let wanted = self.bytes.saturating_mul(2).min(most).max(bytes);
        let may = self.try_become(&mut state, wanted);
        if !may {
            state.refused(self.by);
        }
        may
    }

    fn try_become(&mut self, state: &mut BudgetState, bytes: u64) -> bool {
        let shares = self.budget.shares;
        state.held.remove(self.by, shares.is_large(self.bytes), self.bytes);
        let ahead = state.ahead(shares, self.by, u64::MAX);
        let may = shares.admit(&state.held, self.by, bytes, ahead);
        if may {
            self.bytes = bytes;
        }
        state.held.add(self.by, shares.is_large(self.bytes), self.bytes);
        may
    }

    /// Returns unused memory to the budget, once the body is complete.
    pub fn shrink_to(&mut self, bytes: u64) {
        if bytes >= self.bytes && !self.is_grower {
            return;
        }
        let shares = self.budget.shares;
        let mut state = self.budget.state();
        if std::mem::take(&mut self.is_grower) {
            state.has_grower = false;
        }
        if bytes >= self.bytes {
            return;
        }
        state.held.remove(self.by, shares.is_large(self.bytes), self.bytes);
        state.held.add(self.by, shares.is_large(bytes), bytes);
        self.bytes = bytes;
        self.budget.serve(state);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.has_grower &= !self.is_grower;
        state.held.remove(self.by, self.budget.shares.is_large(self.bytes), self.bytes);
        self.budget.serve(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn poll(wait: &mut Wait) -> Option<Grant> {
        match Pin::new(wait).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(grant) => Some(grant),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_body_larger_than_the_budget_goes_alone_and_never_starves() {
        let budget = Budget::new(32 * MIB);
        let small: Vec<Grant> = (0..16).filter_map(|_| budget.try_take(Use::Replay, MIB / 4)).collect();
        let first = budget.try_take(Use::Replay, 8 * MIB).expect("it fits");
        let mut huge = budget.take(Use::Replay, 500 * MIB);
        assert!(poll(&mut huge).is_none());
        assert!(budget.try_take(Use::Replay, 8 * MIB).is_none(), "a later large one overtakes it");
        assert!(budget.is_awaited(Use::Replay));
        drop((small, first));
        let huge = poll(&mut huge).expect("nothing else is held");
        assert!(budget.try_take(Use::Replay, MIB / 4).is_some(), "small ones pass beside it");
        assert!(budget.try_take(Use::Intake, 6 * MIB).is_some(), "intake is starved by replay");
        assert!(budget.try_take(Use::Replay, 8 * MIB).is_none());
        drop(huge);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn a_dropped_wait_leaves_the_queue() {
        let budget = Budget::new(32 * MIB);
        let held = budget.try_take(Use::Intake, 20 * MIB).expect("it fits");
        let waiting = budget.take(Use::Intake, 20 * MIB);
        let mut behind = budget.take(Use::Intake, 8 * MIB);
        drop(held);
        assert!(poll(&mut behind).is_none(), "the first was granted, and has not taken its grant");
        drop(waiting);
        assert!(poll(&mut behind).is_some());
        assert_eq!((budget.taken(), budget.state().waiting.len()), (0, 0));
        assert!(budget.take(Use::Intake, 500 * MIB).unless(|| true).is_some(), "it is free at once");
        let held = budget.try_take(Use::Intake, 20 * MIB);
        assert!(budget.take(Use::Intake, 20 * MIB).unless(|| true).is_none());
        drop(held);
        assert_eq!((budget.taken(), budget.state().waiting.len()), (0, 0));
    }

    #[test]
    fn a_grant_grows_only_into_free_memory_and_shrinks_for_others() {
        let budget = Budget::new(32 * MIB);
        let mut grant = budget.try_take(Use::Intake, 1000).expect("it fits");
        assert!(grant.try_grow(12 * MIB));
        let third = budget.try_take(Use::Intake, 5 * MIB).expect("it fits");
        let mut other = budget.take(Use::Intake, 8 * MIB);
        assert!(poll(&mut other).is_none());
        assert!(!grant.try_grow(2 * MIB));
        assert_eq!(grant.bytes(), 12 * MIB + 1000);
        grant.shrink_to(1000);
        assert!(poll(&mut other).is_some());
        drop((grant, third, other));
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn the_first_growing_body_can_finish_while_others_begin() {
        let budget = Budget::new(32 * MIB);
        let grower = || budget.try_take(Use::Intake, 0).expect("zero bytes are always free");
        let (mut first, mut second) = (grower(), grower());
        assert!(first.try_grow_up_to(MIB, 16 * MIB));
        assert!(second.try_grow_up_to(MIB, 16 * MIB), "there is room beside the largest size of the first");
        assert!(!second.try_grow_up_to(8 * MIB, 16 * MIB));
        assert!(budget.is_awaited(Use::Intake), "a client that stalls would block the other for ever");
        for mib in 2..=16 {
            assert!(grower().try_grow_up_to(MIB / 4, 16 * MIB));
            assert!(first.try_grow_up_to(mib * MIB, 16 * MIB), "{mib}");
        }
        first.shrink_to(16 * MIB);
        drop(first);
        assert!(second.try_grow_up_to(8 * MIB, 16 * MIB), "now it is the first");
        assert_eq!(second.bytes(), 16 * MIB);
        second.shrink_to(8 * MIB);
        assert_eq!(budget.taken(), 8 * MIB);
        drop(second);
        let mut alone = grower();
        assert!(alone.try_grow_up_to(MIB, 500 * MIB), "larger than the budget, and alone");
    }

    #[test]
    fn large_bodies_of_two_uses_take_turns_if_they_do_not_fit_together() {
        let budget = Budget::new(32 * MIB);
        let replayed = budget.try_take(Use::Replay, 24 * MIB).expect("it is alone");
        let mut written = budget.take(Use::Intake, 24 * MIB);
        let mut next = budget.take(Use::Replay, 24 * MIB);
        assert!(poll(&mut written).is_none() && poll(&mut next).is_none());
        assert!(budget.is_awaited(Use::Replay));
        drop(replayed);
        assert!(poll(&mut next).is_none(), "it came later");
        let held = poll(&mut written).expect("it was first");
        assert!(budget.try_take(Use::Replay, MIB / 4).is_some(), "small ones of replay pass");
        assert!(budget.take(Use::Inspection, 24 * MIB).unless(|| true).is_some(), "an inspection beside a body");
        drop(held);
        assert!(poll(&mut next).is_some());
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn concurrent_threads_never_hold_more_than_the_budget() {
        let budget = Budget::new(32 * MIB);
        std::thread::scope(|scope| {
            for number in 0..8_u64 {
                let budget = &budget;
                scope.spawn(move || {
                    for round in 0..50 {
                        let by = if number % 2 == 0 { Use::Intake } else { Use::Replay };
                        let bytes = ((number * 7 + round * 3) % 12 + 1) * MIB;
                        let grant = budget.take(by, bytes).unless(|| false).expect("it is granted in the end");
                        assert!(budget.taken() <= 32 * MIB, "{}", budget.taken());
                        drop(grant);
                    }
                });
            }
        });
        assert_eq!(budget.taken(), 0);
    }
}
