//! Streams that wait for an earlier one of the same store, whose messages are older.

use super::objects::name_of;
use super::selection::FleetReplaySelection;
use super::watch::{FreeStream, HeadWatch};
use crate::depot::{Depot, DepotError};
use crate::fleet::names::{ObjectName, StreamId};

/// A stream that waits for an earlier one of the same store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BehindStream {
    pub stream: StreamId,
    /// The first one that is not settled; where a person left that out, all of these.
    pub earlier: Vec<StreamId>,
    /// Whether a person left the earlier ones out.
    pub is_left_out: bool,
    /// How many messages its head says are waiting.
    pub waiting: u64,
}

impl BehindStream {
    /// Returns what a free stream waits for; `None` if it waits for nothing. `is_here` tells the streams whose lease
    /// is ours, which need not be waited for.
    ///
    /// # Errors
    ///
    /// If the depot can't be read.
    pub(super) fn of(
        free: &FreeStream,
        (depot, watch): (&dyn Depot, &HeadWatch),
        selection: &FleetReplaySelection,
        is_here: impl Fn(StreamId) -> bool,
    ) -> Result<Option<Self>, DepotError> {
        let Some((head, _)) = &free.head else { return Ok(None) };
        let mut left_out = Vec::new();
        let others = head.after.iter().filter(|earlier| **earlier != free.stream && !is_here(**earlier));
        for earlier in others {
            let has_head = depot.get(&name_of(&ObjectName::Head(*earlier)))?.is_some();
            if !has_head && !watch.is_headless(*earlier) {
                continue;
            }
            if selection.takes(*earlier) {
                let (stream, waiting) = (free.stream, head.waiting);
                return Ok(Some(Self { stream, earlier: vec![*earlier], is_left_out: false, waiting }));
            }
            left_out.push(*earlier);
        }
        let is_behind = !left_out.is_empty();
        let behind = || Self { stream: free.stream, earlier: left_out, is_left_out: true, waiting: head.waiting };
        Ok(is_behind.then(behind))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::depot::Version;
    use crate::depot::model::ModelDepot;
    use crate::fleet::head::{Head, HeadOwner, HeadState};
    use crate::fleet::samples::stream;

    /// The streams 1 to 3 of a store, of which the second is settled.
    fn depot() -> ModelDepot {
        let depot = ModelDepot::new();
        let head = Head::first(HeadState::Closed, HeadOwner::default());
        for number in [1, 3] {
            depot.create(&name_of(&ObjectName::Head(stream(number))), &head.encode()).expect("it answers");
        }
        depot
    }

    #[test]
    fn a_stream_that_waits_names_every_earlier_one_that_was_left_out() {
        let (depot, watch) = (depot(), HeadWatch::new(Duration::from_secs(90)));
        let after = vec![stream(1), stream(2), stream(3)];
        let head = Head { after, waiting: 7, ..Head::first(HeadState::Closed, HeadOwner::default()) };
        let free = FreeStream { stream: stream(4), head: Some((head, Version::new("1"))) };
        let behind = |selected: &[StreamId], here: &[StreamId]| {
            let selection = FleetReplaySelection { streams: selected.to_vec(), ..FleetReplaySelection::default() };
            let found = BehindStream::of(&free, (&depot, &watch), &selection, |stream| here.contains(&stream));
            found.expect("it answers").map(|behind| (behind.earlier, behind.is_left_out))
        };
        let (all, one) = (vec![stream(1), stream(3)], vec![stream(1)]);
        assert_eq!(behind(&[stream(4)], &[]), Some((all, true)), "the next replay would wait again");
        assert_eq!(behind(&[], &[]), Some((one.clone(), false)), "a later message would be sent first");
        assert_eq!(behind(&[stream(3), stream(4)], &[stream(3)]), Some((one, true)));
        assert_eq!(behind(&[], &[stream(1), stream(3)]), None, "it waits for ever");
    }
}
