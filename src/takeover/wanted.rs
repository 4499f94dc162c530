//! The streams that a person purges. A replayer releases them, and takes none of them over, so that the person's command
//! can.

use std::collections::HashMap;
use std::time::Duration;

use super::objects::{folder, list_all};
use crate::depot::{Depot, DepotError};
use crate::fleet::names::{self, ObjectName, StreamId};
use crate::fleet::stream_purge::PATIENCE_MIN;
use crate::store::since_boot;

/// The streams that are reserved for purges.
pub(super) struct WantedStreams {
    /// When each was first listed, by [`since_boot`].
    since: HashMap<StreamId, Duration>,
    /// The longest reservation: the command may have been killed.
    at_most: Duration,
}

impl WantedStreams {
    /// A command waits for a share of the time to a takeover, or for [`PATIENCE_MIN`]. A reservation that ends before that
    /// returns the stream to the replayer in the moment of its release.
    pub(super) fn new(takeover_after: Duration) -> Self {
        Self { since: HashMap::new(), at_most: takeover_after.max(PATIENCE_MIN * 2) }
    }

    /// Lists the purges.
    ///
    /// # Errors
    ///
    /// If the depot can't be listed: the reservations stay as they were.
    pub(super) fn look(&mut self, depot: &dyn Depot) -> Result<(), DepotError> {
        let now = since_boot();
        let listed = list_all(depot, &folder(&names::purges()))?;
        let wanted: Vec<StreamId> = listed
            .iter()
            .filter_map(|entry| match ObjectName::parse(entry.name.as_str()) {
                Some(ObjectName::Purge(stream)) => Some(stream),
                _ => None,
            })
            .collect();
        self.since.retain(|stream, _| wanted.contains(stream));
        for stream in wanted {
            self.since.entry(stream).or_insert(now);
        }
        Ok(())
    }

    /// Returns how many streams are reserved.
    pub(super) fn count(&self) -> usize {
        self.since.keys().filter(|stream| self.has(**stream)).count()
    }

    /// Returns whether a stream is reserved.
    pub(super) fn has(&self, stream: StreamId) -> bool {
        self.since.get(&stream).is_some_and(|since| since_boot().saturating_sub(*since) < self.at_most)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use uuid::Uuid;

    use super::*;
    use crate::depot::model::ModelDepot;
    use crate::fleet::stream_purge::StreamPurge;
    use crate::store::faked;

    /// A depot in which a stream was just asked for, and the clock that decides for how long.
    fn asked_for() -> (ModelDepot, StreamId, Arc<AtomicU64>) {
        let clock = Arc::new(AtomicU64::new(10_000_000));
        faked::set(clock.clone());
        let (depot, stream) = (ModelDepot::new(), StreamId::new(Uuid::now_v7()));
        StreamPurge::of_all(Uuid::now_v7(), String::new()).leave(&depot, stream, Duration::ZERO).expect("it answers");
        (depot, stream, clock)
    }

    #[test]
    fn a_command_that_was_killed_keeps_a_stream_from_replayers_for_a_while_only() {
        let (depot, stream, clock) = asked_for();
        let mut wanted = WantedStreams::new(Duration::from_secs(90));
        assert!(!wanted.has(stream));
        wanted.look(&depot).expect("it answers");
        assert!(wanted.has(stream), "a replayer takes the stream before the command can");
        clock.fetch_add(91_000, Ordering::SeqCst);
        wanted.look(&depot).expect("it answers");
        assert!(!wanted.has(stream), "the stream is never delivered");
        StreamPurge::withdraw(&depot, stream).expect("it answers");
        wanted.look(&depot).expect("it answers");
        StreamPurge::of_all(Uuid::now_v7(), String::new()).leave(&depot, stream, Duration::ZERO).expect("it answers");
        wanted.look(&depot).expect("it answers");
        assert!(wanted.has(stream), "the next command can't have it");
    }

    #[test]
    fn a_stream_is_reserved_for_as_long_as_its_command_waits() {
        let (depot, stream, clock) = asked_for();
        let mut wanted = WantedStreams::new(Duration::from_secs(3));
        wanted.look(&depot).expect("it answers");
        clock.fetch_add(16_000, Ordering::SeqCst);
        assert!(wanted.has(stream), "the replayer takes a stream again that it released for a person");
    }
}
