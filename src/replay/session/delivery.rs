//! One server's part of a session: rounds of replay, with a thread for progress and the timeout, and a thread for
//! pings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::ProgressListener;
use crate::monitor::{self, MonitorSettings};
use crate::replay::{DrainEnd, Replayer};
use crate::shutdown::Shutdown;
use crate::store::{Owner, StoreError, now_ms};

/// How often to retry while another process holds the replay lease.
const LEASE_LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often to ask for a hold while nothing is due.
const HOLD_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often progress is reported and the timeout is checked.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// One server's part of a replay.
pub(super) struct Delivery<'a> {
    pub replay: Replayer<'a>,
    pub monitor: MonitorSettings,
    pub listener: &'a dyn ProgressListener,
    /// When the whole replay started.
    pub started: Instant,
    /// How long the whole replay may take.
    pub timeout: Option<Duration>,
    /// Messages to deliver to all servers.
    pub total: u64,
}

impl Delivery<'_> {
    /// Delivers; returns how that ended, and whether the timeout ended it.
    pub(super) fn run(&self) -> (Result<DrainEnd, StoreError>, bool) {
        let is_time_over = AtomicBool::new(false);
        let drained = Shutdown::new();
        let end = std::thread::scope(|scope| {
            scope.spawn({
                let (drained, is_time_over) = (drained.clone(), &is_time_over);
                move || self.report_progress(&drained, is_time_over)
            });
            scope.spawn({
                let drained = drained.clone();
                move || monitor::run(self.replay.connection, self.replay.upstream, self.monitor, &drained)
            });
            let end = self.drain();
            drained.request();
            self.replay.connection.wake();
            end
        });
        (end, is_time_over.into_inner())
    }

    /// Reports progress until everything is drained. Once the time is over it ends the round as an interruption does:
    /// requests in flight get their answers.
    fn report_progress(&self, drained: &Shutdown, is_time_over: &AtomicBool) {
        let metrics = self.replay.metrics;
        while !drained.sleep(PROGRESS_INTERVAL) {
            let done = metrics.messages_delivered.get() + metrics.messages_rejected.get();
            self.listener.progress(done, self.total);
            if self.timeout.is_some_and(|timeout| self.started.elapsed() >= timeout) {
                is_time_over.store(true, Ordering::Relaxed);
                self.replay.shutdown.request();
            }
        }
    }

    /// Waits until messages are due, or for less if a person holds the store: the next round says so.
    fn wait_until_due(&self, until_due: Duration) -> Result<(), StoreError> {
        let started = Instant::now();
        loop {
            let left = until_due.saturating_sub(started.elapsed());
            if left.is_zero() || self.replay.shutdown.sleep(left.min(HOLD_LOOK_INTERVAL)) {
                return Ok(());
            }
            if self.replay.store.replay_hold()?.is_some_and(|hold| hold.left(now_ms()).is_some()) {
                return Ok(());
            }
        }
    }

    /// Replays until nothing is left, or nothing more can be done in the time given.
    fn drain(&self) -> Result<DrainEnd, StoreError> {
        let owner = Owner::this_process("replay");
        let mut is_wait_noted = false;
        loop {
            let time_left =
                self.timeout.map_or(Duration::ZERO, |timeout| timeout.saturating_sub(self.started.elapsed()));
            match self.replay.drain(&owner) {
                Ok(DrainEnd::NotDue { next_due_at_ms }) if !time_left.is_zero() => {
                    let until_due = Duration::from_millis(u64::try_from(next_due_at_ms - now_ms()).unwrap_or(0));
                    if until_due > time_left {
                        return Ok(DrainEnd::NotDue { next_due_at_ms });
                    }
                    self.wait_until_due(until_due)?;
                }
                Ok(end) => return Ok(end),
                Err(StoreError::LeaseHeld { owner }) => {
                    if !is_wait_noted {
                        self.listener.note(&format!("waiting: {owner} replays this store"));
                        is_wait_noted = true;
                    }
                    if self.replay.store.backlog(&self.replay.settings.filter)?.waiting() == 0 {
                        return Ok(DrainEnd::Empty);
                    }
                    if self.replay.shutdown.sleep(LEASE_LOOK_INTERVAL) {
                        return Ok(DrainEnd::Stopped);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
