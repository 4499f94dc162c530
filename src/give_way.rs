//! Giving way: background work that computes for long lets other threads run between its steps.
//!
//! The kernel may leave a thread that computes on its core until the next tick, 4 ms later with 250 Hz: a thread that
//! is woken meanwhile waits behind it, even where another core is idle (measured with the trace of the scheduler). A
//! live write wakes five threads, so this was most of what it cost to write during a replay. A lower priority would
//! keep locks for long on a busy machine. Yielding costs less than a microsecond where no other thread is waiting.
//!
//! Where others compute, too, a yield costs a turn of theirs. The next stretch is then as long as that took, so that a
//! thread which gives way gets about half of a core, and holds a lock not much longer.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a thread computes before it gives way.
const STRETCH: Duration = Duration::from_micros(150);

thread_local! {
    /// When this thread gives way again.
    static NEXT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Lets other threads run if this one has computed for long. Call it between two steps of work in the background.
pub(crate) fn give_way() {
    let now = Instant::now();
    if NEXT.get().is_none_or(|next| now >= next) {
        std::thread::yield_now();
        let back = Instant::now();
        NEXT.set(Some(back + stretch_after(back - now)));
    }
}

/// Returns how long a thread computes after a yield that took this long.
fn stretch_after(yielded: Duration) -> Duration {
    STRETCH.max(yielded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_half_of_a_busy_core_and_yields_often_on_an_idle_one() {
        for (yielded_us, expected_us) in [(0, 150), (1, 150), (150, 150), (4_000, 4_000), (40_000, 40_000)] {
            let stretch = stretch_after(Duration::from_micros(yielded_us));
            assert_eq!(stretch, Duration::from_micros(expected_us), "{yielded_us}");
        }
    }
}
