//! Watches whether the store is full: the failures of writes and the room that an overview measures go into a state
//! machine ([`FullState`]); its transitions go to the log, the metrics, the overview and, for later agents, into the
//! store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::hint;
use crate::store::full_state::{FullChange, FullEpisode, FullState};
use crate::store::slot::StoreSlot;
use crate::store::{Condition, FullLimit, Fullness, StoreError, now_ms};
use crate::telemetry::metrics::{Counter, Metrics};

/// How often the counts of a store that stays full are recorded in it: each record is a commit on a disk that may be
/// nearly full.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Whether the store is full, and how many writes that has cost.
pub struct FullWatch {
    metrics: Arc<Metrics>,
    watched: Mutex<FullWatched>,
}

#[derive(Default)]
struct FullWatched {
    state: FullState,
    /// Writes refused since the agent started.
    refused: u64,
    /// Why the store was full when the last of them was refused.
    last: Option<Fullness>,
    /// How many of them are not recorded in the store yet.
    unnoted: u64,
    /// The largest count of refused writes since the store was created that this agent has seen.
    since_made: u64,
    /// Whether the start of the episode that is recorded in the store is outdated.
    is_since_unnoted: bool,
    noted_at: Option<Instant>,
}

impl FullWatch {
    /// Returns the watch of an agent that starts now.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, watched: Mutex::default() }
    }

    /// Returns whether writes found no room, and none was made since.
    pub fn is_full(&self) -> bool {
        self.lock().state.episode().is_some()
    }

    /// Records the failure of a write; returns the limit that it hit, if the store is full.
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
                 until there is room; {} says what to do",
                hint::command("status")
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

    /// Records how much room the store has, and writes counts into it that it does not have yet.
    pub fn measured(&self, slot: &StoreSlot, condition: &Condition) {
        let mut watched = self.lock();
        let change = watched.state.measured(condition.room_bytes, Instant::now());
        let is_full = watched.state.episode().is_some() || condition.full.is_some();
        self.metrics.store_full.set(f64::from(u8::from(is_full)));
        // An agent that was killed while the store was full could not record the end.
        let is_stale = condition.full_record.since_ms.is_some() && !is_full;
        watched.is_since_unnoted |= is_stale || matches!(change, FullChange::Ended(_));
        let is_due = watched.noted_at.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY);
        let notes = watched.is_since_unnoted || watched.unnoted > 0 && is_due;
        drop(watched);
        if let FullChange::Ended(episode) = &change {
            info!(target: "db_manager", "the message store takes messages again: {}", in_words(episode));
        }
        if notes {
            // The store was open a moment ago, when its condition was read; intake's threads must not open it.
            self.note(|unnoted, since_ms| slot.try_with(|store| store.note_full(since_ms, unnoted)));
        }
    }

    /// Logs and records the state when the agent stops.
    pub fn close(&self, slot: &StoreSlot) {
        let (episode, is_unnoted) = {
            let watched = self.lock();
            (watched.state.episode().cloned(), watched.is_since_unnoted || watched.unnoted > 0)
        };
        if let Some(episode) = &episode {
            warn!(target: "db_manager", "the message store is still full: {}", in_words(episode));
        }
        if is_unnoted {
            self.note(|unnoted, since_ms| slot.with(|store| store.note_full(since_ms, unnoted)));
        }
    }

    /// Records the counts and the start of the episode with `write`; counts that it can't record are kept for later.
    fn note(&self, write: impl FnOnce(u64, Option<i64>) -> Result<(), Arc<StoreError>>) {
        let (since_ms, unnoted) = {
            let mut watched = self.lock();
            watched.is_since_unnoted = false;
            watched.noted_at = Some(Instant::now());
            let since_ms = watched.state.episode().map(|episode| episode.since_ms);
            (since_ms, std::mem::take(&mut watched.unnoted))
        };
        if let Err(error) = write(unnoted, since_ms) {
            debug!(target: "db_manager", "cannot record the refused writes in the store yet: {error}");
            self.lock().unnoted += unnoted;
        }
    }

    /// Returns the episode in progress.
    pub fn episode(&self) -> Option<FullEpisode> {
        self.lock().state.episode().cloned()
    }

    /// Returns how many writes were refused since the agent started, and why the store was full at the last one.
    pub fn total(&self) -> (u64, Option<Fullness>) {
        let watched = self.lock();
        (watched.refused, watched.last.clone())
    }

    /// Returns how many writes were refused since the store was created, as far as this agent knows. Call it before
    /// [`FullWatch::measured`], which may record in the store what `condition` does not have.
    pub fn since_made(&self, condition: &Condition) -> u64 {
        let mut watched = self.lock();
        // Counts that were recorded after the condition was read are in neither number.
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

    /// Each count changes in one step, so the counts are valid even after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, FullWatched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns for people what an episode has cost.
fn in_words(episode: &FullEpisode) -> String {
    let seconds = now_ms().saturating_sub(episode.since_ms).max(0) / 1000;
    let FullEpisode { refused, passed_on, .. } = episode;
    let writes = if *refused == 1 { "write was" } else { "writes were" };
    format!("in {seconds} s, {refused} {writes} refused, and {passed_on} went straight to the Opik server")
}
