//! Streams that leave a replayer before they are settled: another process took them over, or a person purges them.
//!
//! Later streams of the same store are released together with an earlier one ([`follows`]): its new owner would otherwise
//! send older messages after newer ones.

use std::sync::PoisonError;

use tracing::{info, warn};

use super::error::TakeoverError;
use super::feeder::{Feeder, missing_keys};
use super::taken_stream::TakenStream;
use crate::fleet::names::StreamId;
use crate::store::{Filter, StoreError};

/// Messages that are dropped at once.
const DROP_STEP: usize = 500;

impl Feeder<'_> {
    /// Drops the messages of streams that another process took over, and releases those that a person purges.
    pub(super) fn let_go(&mut self) -> Result<(), TakeoverError> {
        let lost = self.holdings.lost();
        let held = || self.progress.streams.iter();
        let mut leaving = self.holdings.leaving();
        leaving.extend(held().map(|taken| taken.stream).filter(|stream| self.progress.wanted.has(*stream)));
        let first: Vec<StreamId> = lost.iter().chain(&leaving).copied().collect();
        leaving.extend(follows(held(), &first));
        leaving.retain(|stream| !lost.contains(stream));
        leaving.sort_unstable();
        leaving.dedup();
        if lost.is_empty() && leaving.is_empty() {
            return Ok(());
        }
        leaving.iter().for_each(|stream| self.holdings.leave(*stream));
        // No request begins until they are removed, so the round ends.
        let _round = self.state.round.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in lost {
            let messages = self.drop_messages(stream)?;
            self.ledger.forget(stream);
            self.holdings.forget(stream);
            self.progress.streams.retain(|taken| taken.stream != stream);
            self.progress.totals.lost += 1;
            warn!(target: "fleet", %stream, messages, "dropped the messages of a stream that was lost");
        }
        for stream in leaving {
            self.release_unsettled(stream)?;
        }
        Ok(())
    }

    /// Releases a stream of which nothing is in flight.
    fn release_unsettled(&mut self, stream: StreamId) -> Result<(), TakeoverError> {
        let Some(at) = self.progress.streams.iter().position(|taken| taken.stream == stream) else {
            self.holdings.give_back(stream, 0)?;
            return Ok(());
        };
        let waiting = self.waiting_of(&self.progress.streams[at]);
        self.drop_messages(stream)?;
        let taken = self.progress.streams.remove(at);
        self.ledger.forget(stream);
        self.progress.totals.given_back += 1;
        self.holdings.release(stream, waiting, Some(missing_keys(&taken.without_key)))?;
        info!(target: "fleet", %stream, waiting, "released a stream");
        Ok(())
    }

    /// Returns how many messages of a stream are not settled.
    pub(super) fn waiting_of(&self, taken: &TakenStream) -> u64 {
        let pending = taken.pending.iter().flatten().map(|bundle| u64::from(bundle.messages)).sum::<u64>();
        taken.left + self.ledger.outstanding(taken.stream) + pending
    }

    /// Deletes what is imported of a stream; returns how many messages that were.
    fn drop_messages(&self, stream: StreamId) -> Result<usize, StoreError> {
        let ids = self.ledger.ids_of(stream, self.store)?;
        for ids in ids.chunks(DROP_STEP) {
            let filter = Filter { ids: ids.to_vec(), ..Filter::default() };
            while self.store.purge(&filter, ids.len())?.messages > 0 {}
        }
        Ok(ids.len())
    }
}

/// Returns which of the streams that are held began after one of `first`, in the same store.
fn follows<'a>(held: impl Iterator<Item = &'a TakenStream>, first: &[StreamId]) -> Vec<StreamId> {
    // Each names all of the earlier ones, not only the last.
    let is_later = |taken: &&TakenStream| taken.after.iter().any(|earlier| first.contains(earlier));
    held.filter(is_later).map(|taken| taken.stream).collect()
}
