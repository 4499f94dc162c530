//! One budget for the bodies that are in memory: those of clients, on their way to the server or into the store, those
//! that are inflated for a look, and those of replay.
//!
//! Whoever is about to hold a body takes its bytes first, and gives them back when it is dropped. [`shares`] is the policy
//! and pure; here is the waiting.
//!
//! # No deadlock
//!
//! A body whose size is known takes all of its bytes at once and holds nothing while it waits. One that comes in chunks
//! grows without waiting, or is refused ([`Grant::try_grow_up_to`]). The only ones that wait while they hold something are
//! those that take [`Use::Inspection`] beside [`Use::Intake`] or [`Use::Division`] beside [`Use::Replay`], and whoever holds
//! one of these waits for no memory.
//!
//! # No starving
//!
//! Each use has a share of its own, and what is left is handed out in the order in which large bodies came
//! ([`shares::QueuedAhead`]). Of the bodies without a Content-Length, one may use memory up to the largest body allowed: however
//! many more begin, that one can be read to its end.

pub mod limit;
pub mod shares;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use self::shares::Use;
use self::shares::{QueuedAhead, Shares, Usage};

/// How often a thread that waits for memory checks whether it still has to.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// A client that was refused memory comes again within this time.
const REFUSED_LATELY: Duration = Duration::from_secs(5);

/// The budget, shared by all that hold bodies.
pub struct Budget {
    shares: Shares,
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Default)]
struct BudgetState {
    held: Usage,
    /// Tickets that wait, in order: for each use those of small and those of large bodies.
    queues: [[VecDeque<u64>; 2]; Use::COUNT],
    waiting: HashMap<u64, Waiter>,
    next_ticket: u64,
    /// A body that grows has memory for the largest that it may become.
    has_grower: bool,
    /// When a body of a client got no memory and did not wait for it.
    refused_at: Option<Instant>,
}

impl BudgetState {
    fn refused(&mut self, by: Use) {
        if by == Use::Intake {
            self.refused_at = Some(Instant::now());
        }
    }

    /// Returns who waits and came before this ticket.
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

    /// Returns how many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.shares.total()
    }

    /// Returns how many bytes are taken.
    pub fn taken(&self) -> u64 {
        self.state().held.all()
    }

    /// Returns how much is free for this use, and how much it may have while others hold what they hold.
    pub fn free(&self, by: Use) -> (u64, u64) {
        self.shares.free(&self.state().held, by)
    }

    /// Returns whether a body of this size counts as a large one.
    pub fn is_large(&self, bytes: u64) -> bool {
        self.shares.is_large(bytes)
    }

    /// Returns whether bodies wait for memory of this use, or were refused it a moment ago.
    pub fn is_awaited(&self, by: Use) -> bool {
        let state = self.state();
        let waits = |of: Use| !state.queues[of as usize][1].is_empty();
        let others = || Use::ALL.into_iter().any(|other| other != by && waits(other));
        waits(by)
            || state.refused_at.is_some_and(|at| by == Use::Intake && at.elapsed() < REFUSED_LATELY)
            || self.shares.exceeds(&state.held, by) && others()
    }

    /// Takes memory for a body if it is free now, and nobody waits for it.
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

    /// Takes memory for a body, in turn.
    pub fn take(self: &Arc<Self>, by: Use, bytes: u64) -> Wait {
        let mut state = self.state();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.insert(ticket, Waiter { bytes, is_granted: false, waker: None });
        state.queues[by as usize][usize::from(self.shares.is_large(bytes))].push_back(ticket);
        self.serve(state);
        Wait { budget: self.clone(), by, ticket }
    }

    /// Gives memory to those that wait, as far as there is some, and tells them.
    fn serve(&self, mut guard: MutexGuard<'_, BudgetState>) {
        let state = &mut *guard;
        let mut wakers = Vec::new();
        let mut any = false;
        // One that is served may have been what another waited behind.
        loop {
            let mut served = false;
            for by in Use::ALL {
                // Large ones first: small ones have what is kept for them.
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
        // Nothing in the critical sections can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that waits for memory; dropping it leaves the queue.
pub struct Wait {
    budget: Arc<Budget>,
    by: Use,
    ticket: u64,
}

impl Wait {
    /// Waits on this thread, until there is memory or `stops` returns true: then `None`.
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

    /// Takes what was granted out of the state.
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
        // Gone when the grant was handed out.
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

/// Memory that was taken, given back when it is dropped.
pub struct Grant {
    budget: Arc<Budget>,
    by: Use,
    bytes: u64,
    /// Has memory for the largest that its body may become.
    is_grower: bool,
}

impl Grant {
    /// Returns how many bytes it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more, if it is free now. Never waits: two that hold something could wait for each other for ever.
    pub fn try_grow(&mut self, more: u64) -> bool {
        let budget = self.budget.clone();
        let mut state = budget.state();
        self.try_become(&mut state, self.bytes.saturating_add(more))
    }

    /// Takes memory for a body that grows to an unknown size, of which this much is known and that much is the most.
    ///
    /// As soon as it is a large one it takes the most, unless another one has done so: else two that grow could each keep
    /// the other from its end, and those that begin meanwhile both of them.
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
        // A buffer that grows is copied into one of twice its size.
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

    /// Returns unused memory to the budget. A body without a Content-Length is complete by then.
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
    fn one_that_no_longer_waits_leaves_no_trace() {
        let budget = Budget::new(32 * MIB);
        let held = budget.try_take(Use::Intake, 20 * MIB).expect("it fits");
        let waiting = budget.take(Use::Intake, 20 * MIB);
        let mut behind = budget.take(Use::Intake, 8 * MIB);
        drop(held);
        assert!(poll(&mut behind).is_none(), "the first was granted, and not picked up");
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
    fn a_grant_grows_as_far_as_there_is_memory_and_shrinks_for_others() {
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
    fn the_first_body_that_grows_comes_to_its_end_however_many_begin() {
        let budget = Budget::new(32 * MIB);
        let grower = || budget.try_take(Use::Intake, 0).expect("nothing is always there");
        let (mut first, mut second) = (grower(), grower());
        assert!(first.try_grow_up_to(MIB, 16 * MIB));
        assert!(second.try_grow_up_to(MIB, 16 * MIB), "there is room beside the largest that the first may become");
        assert!(!second.try_grow_up_to(8 * MIB, 16 * MIB));
        assert!(budget.is_awaited(Use::Intake), "a client that stalls would keep it from the other for ever");
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
    fn large_bodies_of_two_uses_that_do_not_fit_together_take_turns() {
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
        assert!(budget.take(Use::Inspection, 24 * MIB).unless(|| true).is_some(), "what is taken beside another");
        drop(held);
        assert!(poll(&mut next).is_some());
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn threads_that_take_and_wait_never_hold_more_than_there_is() {
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
