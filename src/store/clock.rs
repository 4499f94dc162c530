//! The clocks that a store's records and leases are measured on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns a reading of the clock that leases are measured on: nobody sets it, and it runs on while the machine sleeps
/// (`CLOCK_BOOTTIME`). [`std::time::Instant`] stops then, so a process that measured a lease on it would believe in one
/// that expired in the night. Systems other than Linux have no such clock; there the monotonic one is used.
pub fn since_boot() -> Duration {
    #[cfg(test)]
    if let Some(now) = faked::now() {
        return now;
    }
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns the time as a store's records have it: the wall clock, in milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A clock that a test sets, for the threads that it names: hours pass in no time, and a thread can stand still.
#[cfg(test)]
pub(crate) mod faked {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    thread_local! {
        static CLOCK: RefCell<Option<Arc<AtomicU64>>> = const { RefCell::new(None) };
    }

    /// Makes [`super::since_boot`] return the milliseconds of this clock in this thread, and in no other.
    pub(crate) fn set(clock: Arc<AtomicU64>) {
        CLOCK.with_borrow_mut(|current| *current = Some(clock));
    }

    /// Returns the time of this thread's clock, if a test has set it.
    pub(crate) fn now() -> Option<Duration> {
        CLOCK.with_borrow(|clock| clock.as_ref().map(|clock| Duration::from_millis(clock.load(Ordering::SeqCst))))
    }
}
