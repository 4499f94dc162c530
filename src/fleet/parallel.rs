//! Several requests at a time: a depot answers in milliseconds and has many connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Does the same work for each of these, a few at a time; the results are in their order.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < 2 || is_sequential() {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                while let Some((at, item)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    items.get(at).map(|item| (at, item))
                } {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Does two things in threads of their own and a third one here, at the same time.
pub(crate) fn all_three<A: Send, B: Send, C>(
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
    here: impl FnOnce() -> C,
) -> (A, B, C) {
    if is_sequential() {
        return (first(), second(), here());
    }
    std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(first), scope.spawn(second));
        let here = here();
        (join(first), join(second), here)
    })
}

/// Returns what a thread returned, or panics as it did.
pub(crate) fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns whether one thing is done after the other: where a test sets the clock, it decides what happens when.
fn is_sequential() -> bool {
    #[cfg(test)]
    return crate::store::faked::now().is_some();
    #[cfg(not(test))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallel_results_keep_the_order_of_their_items() {
        let items: Vec<u64> = (0..100).collect();
        let doubled = in_parallel(&items, 8, |item| {
            std::thread::yield_now();
            item * 2
        });
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<u64>>());
        assert!(in_parallel(&[] as &[u64], 8, |item| *item).is_empty());
    }
}
