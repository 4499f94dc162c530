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
        NEXT.set(Some(back + STRETCH.max(back - now)));
    }
}
