//! The purge of a stream whose owner is alive: a person selects messages, and the owner deletes them.
//!
//! The person's command writes one object for each stream, and deletes it when it ends. An agent reads it after each
//! renewal of its head, deletes the messages from its store, writes marks, and answers in its head ([`PurgeAnswer`]). A
//! replayer releases the stream instead, and the command deletes the messages itself. So agents and replayers never write
//! these objects, and a bucket policy can deny it to them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::json::order_id;
use super::names::{ObjectName, StreamId};
use super::object_names::depot_name;
use crate::depot::{Created, Depot, DepotError};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The largest purge that is read, in bytes.
pub const BYTES_MAX: usize = 4 * 1024 * 1024;
/// The shortest timeout of a command that waits for owners. A replayer learns at the next renewal of its
/// lease, after up to five seconds, that it may send no more, and then waits for the answers to its requests.
pub const PATIENCE_MIN: Duration = Duration::from_secs(15);
/// How long after its order a purge is valid: its command waits for a part of that at most, and may have been killed.
const VALID_FOR: Duration = Duration::from_secs(3600);
/// The longest name of a person, in characters; longer ones are cut.
const NAME_CHARS_MAX: usize = 256;
/// Ranges of a purge: as many as fit for certain.
const RANGES_MAX: usize = 90_000;

/// The messages that the owner of a stream has to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPurge {
    /// The person's order ([`super::orders`]): the answer names it.
    pub order: Uuid,
    /// Who ordered it, as the order says.
    pub by: String,
    /// Ranges of ids in the origin store, ascending, each with its last id.
    messages: Vec<(u64, u64)>,
}

/// The answer of an owner to a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeAnswer {
    /// The id of the order.
    #[serde(with = "order_id")]
    pub order: Uuid,
    /// Deleted messages; the depot has their marks.
    pub deleted: u64,
    /// Selected messages in flight, which were kept.
    pub kept: u64,
}

#[derive(Serialize, Deserialize)]
struct PurgeFields {
    format: u16,
    #[serde(with = "order_id")]
    order: Uuid,
    #[serde(default)]
    by: String,
    messages: Vec<(u64, u64)>,
}

impl StreamPurge {
    /// Returns the purge of these messages, and the number of those that exceed its size limit: the ones with the highest ids.
    pub fn of(order: Uuid, by: String, messages: &BTreeSet<u64>) -> (Self, u64) {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut rest = 0;
        for message in messages {
            let has_room = ranges.len() < RANGES_MAX;
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(*message) => *last = *message,
                _ if has_room => ranges.push((*message, *message)),
                _ => rest += 1,
            }
        }
        (Self { order, by, messages: ranges }, rest)
    }

    /// Returns the purge of all messages of the stream at the time of its execution.
    pub fn of_all(order: Uuid, by: String) -> Self {
        Self { order, by, messages: vec![(0, u64::MAX)] }
    }

    /// Returns whether a message is selected.
    pub fn has(&self, message: u64) -> bool {
        let at = self.messages.partition_point(|(_, last)| *last < message);
        self.messages.get(at).is_some_and(|(first, _)| *first <= message)
    }

    /// Returns whether it has expired, because its command ended long ago: what was stored since then is not what the
    /// person has seen. By the time of its order and this one, since the Unix epoch.
    pub fn is_outdated(&self, now: Duration) -> bool {
        self.ordered_at().is_none_or(|ordered| now.saturating_sub(ordered) > VALID_FOR)
    }

    /// Returns the time of its order since the Unix epoch, by the clock of its person's machine.
    pub fn ordered_at(&self) -> Option<Duration> {
        self.order.get_timestamp().map(|at| Duration::from_secs(at.to_unix().0))
    }

    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        let Self { order, by, messages } = self.clone();
        serde_json::to_vec(&PurgeFields { format: FORMAT, order, by, messages }).unwrap_or_default()
    }

    /// Parses it; `None` if it is invalid or of a newer format: then nothing is deleted.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > BYTES_MAX {
            return None;
        }
        let PurgeFields { format, order, by, messages } = serde_json::from_slice(bytes).ok()?;
        let is_ascending = messages.iter().all(|(first, last)| first <= last)
            && messages.windows(2).all(|pair| matches!(pair, [(_, last), (first, _)] if last < first));
        let by = by.chars().take(NAME_CHARS_MAX).collect();
        (format <= FORMAT && is_ascending).then_some(Self { order, by, messages })
    }

    /// Reads the purge of a stream; `None` if there is none that this version can read.
    ///
    /// # Errors
    ///
    /// If the depot can't be read. Object storage answers that for a missing object to agents without a right to list.
    pub fn read(depot: &dyn Depot, stream: StreamId) -> Result<Option<Self>, DepotError> {
        let found = depot.get(&depot_name(&ObjectName::Purge(stream))?)?;
        Ok(found.and_then(|(bytes, _)| Self::decode(&bytes)))
    }

    /// Writes it for the owner of the stream, in place of one that is outdated at this time since the Unix epoch. Returns
    /// whether there is no other one.
    ///
    /// # Errors
    ///
    /// If the depot can't be written to.
    pub fn leave(&self, depot: &dyn Depot, stream: StreamId, now: Duration) -> Result<bool, DepotError> {
        let (name, bytes) = (depot_name(&ObjectName::Purge(stream))?, self.encode());
        if depot.create(&name, &bytes)? == Created::New {
            return Ok(true);
        }
        let Some((found, version)) = depot.get(&name)? else { return Ok(false) };
        if found == bytes {
            // By an earlier attempt of this call.
            return Ok(true);
        }
        if Self::decode(&found).is_some_and(|other| !other.is_outdated(now)) {
            return Ok(false);
        }
        match depot.swap(&name, Some(&version), &bytes) {
            Ok(_) => Ok(true),
            Err(DepotError::Lost { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the purge of a stream.
    ///
    /// # Errors
    ///
    /// If the depot can't be written to.
    pub fn withdraw(depot: &dyn Depot, stream: StreamId) -> Result<(), DepotError> {
        depot.delete(&[depot_name(&ObjectName::Purge(stream))?])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::depot::model::ModelDepot;

    fn purge(messages: &[u64]) -> StreamPurge {
        StreamPurge::of(Uuid::now_v7(), "ana (uid 1000 on host-a)".to_owned(), &messages.iter().copied().collect()).0
    }

    #[test]
    fn one_purge_of_a_stream_waits_at_a_time() {
        let (depot, stream) = (ModelDepot::new(), StreamId::new(Uuid::now_v7()));
        let (first, second) = (purge(&[1, 2, 5]), purge(&[9]));
        let now = Duration::from_millis(u64::try_from(crate::store::now_ms()).expect("it is after 1970"));
        assert_eq!(first.leave(&depot, stream, now), Ok(true));
        assert_eq!(first.leave(&depot, stream, now), Ok(true), "its answer may have been lost");
        assert_eq!(second.leave(&depot, stream, now), Ok(false), "the other person's order is gone");
        assert_eq!(StreamPurge::read(&depot, stream), Ok(Some(first.clone())));
        assert!(!first.is_outdated(now) && !first.is_outdated(Duration::ZERO), "clocks differ");
        let later = now + VALID_FOR * 2;
        assert!(first.is_outdated(later), "messages would be deleted that nobody has seen");
        assert_eq!(second.leave(&depot, stream, later), Ok(true), "a command that was killed blocks all others");
        assert_eq!(StreamPurge::read(&depot, stream), Ok(Some(second)));
        StreamPurge::withdraw(&depot, stream).expect("it answers");
        assert_eq!(StreamPurge::read(&depot, stream), Ok(None));
        depot.create(&depot_name(&ObjectName::Purge(stream)).expect("a name"), b"garbage").expect("it answers");
        assert_eq!(StreamPurge::read(&depot, stream), Ok(None), "garbage deletes something");
        assert_eq!(first.leave(&depot, stream, now), Ok(true), "garbage blocks every purge");
    }

    #[test]
    fn the_largest_purge_can_be_read_and_says_what_it_leaves_out() {
        let messages: BTreeSet<u64> = (0..RANGES_MAX as u64 + 7).map(|number| (1 << 62) + 2 * number).collect();
        let (purge, rest) = StreamPurge::of(Uuid::now_v7(), "a".repeat(64), &messages);
        assert_eq!((rest, StreamPurge::decode(&purge.encode())), (7, Some(purge)));
    }

    #[test]
    fn a_purge_that_cannot_be_read_deletes_nothing() {
        let id = Uuid::now_v7();
        let with =
            |format: u16, messages: &str| format!(r#"{{"format":{format},"order":"{id}","messages":{messages}}}"#);
        assert!(StreamPurge::decode(with(1, "[[1,2]]").as_bytes()).is_some_and(|purge| purge.has(2)));
        for text in [with(2, "[[1,2]]"), with(1, "[[2,1]]"), with(1, "[[5,9],[9,11]]"), "{}".to_owned(), String::new()]
        {
            assert_eq!(StreamPurge::decode(text.as_bytes()), None, "{text}");
        }
        assert!(StreamPurge::of_all(id, String::new()).has(u64::MAX));
    }

    proptest! {
        #[test]
        fn it_has_exactly_the_messages_that_it_was_made_of(messages in prop::collection::btree_set(0_u64..60, 0..40)) {
            let (purge, rest) = StreamPurge::of(Uuid::now_v7(), String::new(), &messages);
            prop_assert_eq!(rest, 0);
            let read = StreamPurge::decode(&purge.encode()).expect("it was just written");
            for message in 0..70 {
                prop_assert_eq!(read.has(message), messages.contains(&message), "message {}", message);
            }
        }

        #[test]
        fn no_bytes_make_an_owner_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = StreamPurge::decode(&bytes);
        }
    }
}
