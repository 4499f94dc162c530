//! Watches whether the store is full: what writes meet and what a look measures goes into the state machine
//! ([`FullState`]), and what it says goes to the log, the metrics, the status and, for later, into the store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::store::full_state::{FullChange, FullEpisode, FullState};
use crate::store::slot::StoreSlot;
use crate::store::{Condition, FullLimit, Fullness, StoreError, now_ms};
use crate::telemetry::metrics::{Counter, Metrics};

/// How often the counts of a store that stays full are noted in it: each note is a commit on a disk that may be short.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Whether the store is full, and what that has cost.
pub struct FullWatch {
    metrics: Arc<Metrics>,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    state: FullState,
    /// Writes that were refused since the agent started.
    refused: u64,
    /// Why the last of them was.
    last: Option<Fullness>,
    /// How many of them are not noted in the store.
    unnoted: u64,
    /// The most that were known to have been refused since the store was made.
    since_made: u64,
    /// Whether the store notes another beginning than is so.
    is_since_unnoted: bool,
    noted_at: Option<Instant>,
}

impl FullWatch {
    /// Returns the watch of an agent that starts now.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, watched: Mutex::default() }
    }

    /// Takes the failure of a write; returns which limit it met, if the store is full.
    pub fn found_no_room(&self, error: &StoreError) -> Option<FullLimit> {
        let StoreError::Full { limit, needed, reason, .. } = error else { return None };
        let fullness = Fullness { limit: *limit, reason: reason.clone() };
        let mut watched = self.lock();
        let change = watched.state.found_no_room(*needed, fullness, Instant::now(), now_ms());
        watched.is_since_unnoted |= change == FullChange::Began;
        drop(watched);
        if change == FullChange::Began {
            self.metrics.store_full.set(1.0);
            warn!(
                target: "db_manager",
                "the message store is full: {reason}. Writes that the Opik server does not take at once are refused with 503 \
                 until there is room; `opik-offline status` says what to do"
            );
        }
        Some(*limit)
    }

    /// Counts a write that was refused because the store is full.
    pub fn refused(&self, limit: FullLimit) {
        self.refused_by(limit).add(1);
        let mut watched = self.lock();
        watched.state.refused();
        watched.refused += 1;
        watched.unnoted += 1;
        watched.last = watched.state.episode().map(|episode| episode.fullness.clone()).or(watched.last.take());
    }

    /// Counts a write that the server took although the store could not.
    pub fn passed_on(&self) {
        self.lock().state.passed_on();
    }

    /// Takes how the store was found, and notes in it what it has not yet.
    pub fn looked(&self, slot: &StoreSlot, condition: &Condition) {
        let mut watched = self.lock();
        let change = watched.state.measured(condition.room_bytes, Instant::now());
        let is_full = watched.state.episode().is_some() || condition.full.is_some();
        self.metrics.store_full.set(f64::from(u8::from(is_full)));
        // One that was killed while the store was full could not note the end.
        let is_stale = condition.full_record.since_ms.is_some() && !is_full;
        watched.is_since_unnoted |= is_stale || matches!(change, FullChange::Ended(_));
        let is_due = watched.noted_at.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY);
        let notes = watched.is_since_unnoted || watched.unnoted > 0 && is_due;
        drop(watched);
        if let FullChange::Ended(episode) = &change {
            info!(target: "db_manager", "the message store takes messages again: {}", in_words(episode));
        }
        if notes {
            self.note(slot);
        }
    }

    /// Says and notes how it ended, when the agent stops.
    pub fn close(&self, slot: &StoreSlot) {
        let (episode, is_unnoted) = {
            let watched = self.lock();
            (watched.state.episode().cloned(), watched.is_since_unnoted || watched.unnoted > 0)
        };
        if let Some(episode) = &episode {
            warn!(target: "db_manager", "the message store is still full: {}", in_words(episode));
        }
        if is_unnoted {
            self.note(slot);
        }
    }

    fn note(&self, slot: &StoreSlot) {
        let (since_ms, unnoted) = {
            let mut watched = self.lock();
            watched.is_since_unnoted = false;
            watched.noted_at = Some(Instant::now());
            let since_ms = watched.state.episode().map(|episode| episode.since_ms);
            (since_ms, std::mem::take(&mut watched.unnoted))
        };
        if let Err(error) = slot.with(|store| store.note_full(since_ms, unnoted)) {
            debug!(target: "db_manager", "the refused writes are not noted in the store yet: {error}");
            self.lock().unnoted += unnoted;
        }
    }

    /// Returns the episode that has not ended.
    pub fn episode(&self) -> Option<FullEpisode> {
        self.lock().state.episode().cloned()
    }

    /// Returns how many writes were refused since the agent started, and why the last one was.
    pub fn total(&self) -> (u64, Option<Fullness>) {
        let watched = self.lock();
        (watched.refused, watched.last.clone())
    }

    /// Returns how many writes were refused since the store was made, as far as this agent knows. To be asked before
    /// [`FullWatch::looked`], which may note in the store what `condition` does not have.
    pub fn since_made(&self, condition: &Condition) -> u64 {
        let mut watched = self.lock();
        // What was noted after the condition was read is in neither of both.
        watched.since_made = watched.since_made.max(condition.full_record.refused + watched.unnoted);
        watched.since_made
    }

    fn refused_by(&self, limit: FullLimit) -> &Counter {
        match limit {
            FullLimit::MaxSize => &self.metrics.refused_by_max_size,
            FullLimit::DiskReserve => &self.metrics.refused_by_disk_reserve,
            FullLimit::Disk => &self.metrics.refused_by_disk,
            FullLimit::Rejected => &self.metrics.refused_by_rejected,
        }
    }

    /// A panic elsewhere leaves counts that are true.
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what an episode cost.
fn in_words(episode: &FullEpisode) -> String {
    let seconds = now_ms().saturating_sub(episode.since_ms).max(0) / 1000;
    let FullEpisode { refused, passed_on, .. } = episode;
    let writes = if *refused == 1 { "write was" } else { "writes were" };
    format!("in {seconds} s, {refused} {writes} refused, and {passed_on} went straight to the Opik server")
}
