//! Import: which messages of a stream still have to be delivered, and in which order.
//!
//! First all marks of the stream, in the order of their names; then its bundles, ascending. The result is the work that
//! the last owner would have sent next:
//!
//! - a message that was delivered, deleted or expired is left out;
//! - a message that was rejected comes as rejected, with its answer: writes that depend on it wait for it;
//! - a message that was divided is replaced, in its place, by the parts that are not settled, and so is a part that was
//!   divided itself;
//! - a message that is in two bundles comes once: a crash may ship the same messages twice.
//!
//! # Which mark counts
//!
//! A mark that is final (delivered, deleted, expired) settles its message regardless of all other marks, because the
//! server's confirmation stays true. Otherwise the last mark counts: a message is divided again if
//! its owner crashed between the mark and its own commit, and then the parts of the last division are the ones that
//! exist. Marks of parts apply to the parts of the last division before them.
//!
//! Equal parts of one message are counted: each mark settles one of them.
//!
//! # Bounds
//!
//! Settled messages are kept as ranges of ids. Ranges, parts and answers have a budget; beyond it the marks are refused
//! and the stream can be imported in slices ([`SettledMessages::within`]). Bundles are read one at a time.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;

use super::finished::FinishedStream;
use super::marks::{Fate, Mark};
use super::record::{FleetRecord, MessageRef, RecordState, part_digest};
use crate::message::Sha256;
use crate::store::{LastAnswer, Part};

/// Ranges of settled messages that are kept at most.
const RANGES_MAX: usize = 400_000;
/// Bytes of parts and answers that are kept at most.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// The memory overhead of a part or an answer, in bytes.
const OVERHEAD_BYTES: usize = 256;

/// A stream has more marks than fit into memory at once: import it in slices ([`SettledMessages::within`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream has too many marks to be imported at once")]
pub struct TooManyMarks;

/// The state of a message, according to the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageStanding {
    /// It still has to be delivered, or parts of it have.
    Waiting,
    /// The server refused it, or its remaining parts: none of them waits.
    Rejected,
    /// Nothing is left of it.
    Done,
}

/// The settled messages of a stream, according to its marks.
#[derive(Clone, Debug)]
pub struct SettledMessages {
    within: RangeInclusive<u64>,
    done: IdRanges,
    /// Messages that are not done, with their last mark.
    open: BTreeMap<u64, OpenMessage>,
    bytes: usize,
    ranges_max: usize,
    bytes_max: usize,
}

#[derive(Clone, Debug)]
enum OpenMessage {
    Rejected(LastAnswer),
    Divided(Vec<OpenPart>),
}

#[derive(Clone, Debug)]
struct OpenPart {
    digest: Sha256,
    part: Part,
}

impl OpenPart {
    fn new(part: Part) -> Self {
        Self { digest: part_digest(&part.request), part }
    }

    fn bytes(&self) -> usize {
        let answers = [&self.part.rejected, &self.part.held];
        let text: usize = answers.into_iter().flatten().map(|answer| answer.text.len()).sum();
        let headers: usize = self.part.request.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        OVERHEAD_BYTES + self.part.request.body.bytes.len() + headers + text + self.part.touches.len() * 24
    }
}

impl OpenMessage {
    fn bytes(&self) -> usize {
        match self {
            Self::Rejected(answer) => OVERHEAD_BYTES + answer.text.len(),
            Self::Divided(parts) => parts.iter().map(OpenPart::bytes).sum(),
        }
    }
}

impl Default for SettledMessages {
    fn default() -> Self {
        Self::within(0..=u64::MAX)
    }
}

impl SettledMessages {
    /// Returns a set for all messages of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a set that ignores marks of messages outside this range.
    pub fn within(messages: RangeInclusive<u64>) -> Self {
        Self {
            within: messages,
            done: IdRanges::default(),
            open: BTreeMap::new(),
            bytes: 0,
            ranges_max: RANGES_MAX,
            bytes_max: BYTES_MAX,
        }
    }

    /// Adds the next mark, in the order of the names of their objects and of the marks in each.
    ///
    /// # Errors
    ///
    /// [`TooManyMarks`] when the budget is used up: what was added so far must not be used.
    pub fn add(&mut self, mark: Mark) -> Result<(), TooManyMarks> {
        let message = mark.reference.message;
        if !self.within.contains(&message) || self.done.contains(message) {
            return Ok(());
        }
        match (mark.reference.part, mark.fate) {
            (None, fate) if fate.is_final() => {
                self.set(message, None);
                self.done.insert(message);
            }
            (None, Fate::Rejected(answer)) => self.set(message, Some(OpenMessage::Rejected(answer))),
            (None, Fate::Divided(parts)) => {
                let parts = parts.into_iter().map(OpenPart::new).collect();
                self.set(message, Some(OpenMessage::Divided(parts)));
            }
            (Some(digest), fate) => self.settle_part(message, digest, fate),
            (None, Fate::Delivered | Fate::Deleted | Fate::Expired) => {}
        }
        let is_within_budget = self.done.len() <= self.ranges_max && self.bytes <= self.bytes_max;
        if is_within_budget { Ok(()) } else { Err(TooManyMarks) }
    }

    /// Adds what an earlier owner had settled when it finished the stream: its marks are deleted, and a bundle that
    /// arrived late may have these messages once more.
    pub fn add_finished(&mut self, finished: &FinishedStream) {
        finished.ranges().for_each(|range| self.done.insert_range(range));
    }

    fn set(&mut self, message: u64, open: Option<OpenMessage>) {
        self.bytes += open.as_ref().map_or(0, OpenMessage::bytes);
        let replaced = match open {
            Some(open) => self.open.insert(message, open),
            None => self.open.remove(&message),
        };
        self.bytes -= replaced.map_or(0, |replaced| replaced.bytes());
    }

    fn settle_part(&mut self, message: u64, digest: Sha256, fate: Fate) {
        let Entry::Occupied(mut entry) = self.open.entry(message) else { return };
        let OpenMessage::Divided(parts) = entry.get_mut() else { return };
        // Of equal parts, one that waits: a rejected one was marked before.
        let of_digest = |open: &OpenPart| open.digest == digest;
        let waiting = parts.iter().position(|open| of_digest(open) && open.part.rejected.is_none());
        let Some(at) = waiting.or_else(|| parts.iter().position(of_digest)) else { return };
        self.bytes -= parts[at].bytes();
        match fate {
            Fate::Delivered | Fate::Deleted | Fate::Expired => drop(parts.remove(at)),
            Fate::Rejected(answer) => {
                parts[at].part.rejected = Some(answer);
                parts[at].part.held = None;
                self.bytes += parts[at].bytes();
            }
            Fate::Divided(smaller) => {
                let smaller: Vec<OpenPart> = smaller.into_iter().map(OpenPart::new).collect();
                self.bytes += smaller.iter().map(OpenPart::bytes).sum::<usize>();
                parts.splice(at..=at, smaller);
            }
        }
        if parts.is_empty() {
            entry.remove();
            self.done.insert(message);
        }
    }

    /// Returns what is known about a message of the stream.
    pub fn standing(&self, message: u64) -> MessageStanding {
        if self.done.contains(message) {
            return MessageStanding::Done;
        }
        match self.open.get(&message) {
            None => MessageStanding::Waiting,
            Some(OpenMessage::Rejected(_)) => MessageStanding::Rejected,
            Some(OpenMessage::Divided(parts)) => match parts.iter().all(|open| open.part.rejected.is_some()) {
                true => MessageStanding::Rejected,
                false => MessageStanding::Waiting,
            },
        }
    }

    /// Returns what is left of a message, in order; nothing if it is done.
    pub fn remaining(&self, record: FleetRecord) -> Vec<FleetRecord> {
        let message = record.reference.message;
        if self.done.contains(message) {
            return Vec::new();
        }
        match self.open.get(&message) {
            _ if record.reference.part.is_some() => vec![record],
            None => vec![record],
            Some(OpenMessage::Rejected(answer)) => {
                vec![FleetRecord { state: RecordState::Rejected(answer.clone()), ..record }]
            }
            Some(OpenMessage::Divided(parts)) => parts.iter().map(|open| part_of(&record, open)).collect(),
        }
    }
}

/// Returns the record of a part: what it does not say itself is the whole's.
fn part_of(whole: &FleetRecord, open: &OpenPart) -> FleetRecord {
    let OpenPart { digest, part } = open;
    let state = match (&part.rejected, &part.held) {
        (Some(answer), _) => RecordState::Rejected(answer.clone()),
        (None, Some(answer)) => RecordState::Held(answer.clone()),
        (None, None) => RecordState::Waiting,
    };
    let mut message = whole.message.clone();
    message.request = part.request.clone();
    message.touches = part.touches.clone();
    message.items = part.items;
    FleetRecord {
        reference: MessageRef { message: whole.reference.message, part: Some(*digest) },
        position: whole.position,
        message,
        fingerprint: whole.fingerprint,
        attempts: 0,
        state,
        file: None,
    }
}

/// Plans the import of a stream, bundle by bundle.
#[derive(Clone, Debug, Default)]
pub struct ImportPlan {
    settled: SettledMessages,
    seen: IdRanges,
}

impl ImportPlan {
    /// Returns the plan of a stream of which these are all marks.
    pub fn new(settled: SettledMessages) -> Self {
        Self { settled, seen: IdRanges::default() }
    }

    /// Returns what to import of the next bundle, in order: waiting, held and rejected messages, as their state says.
    ///
    /// Bundles come in the order of their numbers. Bundles with one number, which a crash can leave, come together: the
    /// records of all of them in one call.
    pub fn next_bundle(&mut self, mut records: Vec<FleetRecord>) -> Vec<FleetRecord> {
        records.sort_by_key(FleetRecord::order);
        let mut parts = HashSet::new();
        records.retain(|record| match record.reference.part {
            None => self.seen.insert(record.reference.message),
            Some(part) => parts.insert((record.reference.message, part)),
        });
        records.into_iter().flat_map(|record| self.settled.remaining(record)).collect()
    }

    /// Returns the record of the stream, once it is finished: the messages of all bundles so far, and those that are
    /// settled by a mark, whose bundle may still be on its way.
    pub fn finished(&self) -> FinishedStream {
        let mut had = self.seen.clone();
        self.settled.done.ranges().for_each(|range| had.insert_range(range));
        FinishedStream::with(had.ranges())
    }

    /// Returns what the marks say.
    pub fn settled(&self) -> &SettledMessages {
        &self.settled
    }

    /// Adds a mark that was written during the import, as [`SettledMessages::add`].
    ///
    /// # Errors
    ///
    /// As [`SettledMessages::add`].
    pub fn add(&mut self, mark: Mark) -> Result<(), TooManyMarks> {
        self.settled.add(mark)
    }
}

/// A set of ids, as ranges: ids of settled messages are mostly adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct IdRanges(BTreeMap<u64, u64>);

impl IdRanges {
    fn contains(&self, id: u64) -> bool {
        self.0.range(..=id).next_back().is_some_and(|(_, last)| *last >= id)
    }

    /// Adds an id; returns whether it is new.
    fn insert(&mut self, id: u64) -> bool {
        if self.contains(id) {
            return false;
        }
        let last = id.checked_add(1).and_then(|next| self.0.remove(&next)).unwrap_or(id);
        let before = id
            .checked_sub(1)
            .and_then(|previous| self.0.range_mut(..=previous).next_back().filter(|(_, end)| **end == previous));
        match before {
            Some((_, end)) => *end = last,
            None => drop(self.0.insert(id, last)),
        }
        true
    }

    /// Adds all ids of a range; nothing if its last one is below its first.
    fn insert_range(&mut self, (mut first, mut last): (u64, u64)) {
        if first > last {
            return;
        }
        while let Some((known_first, known_last)) =
            self.0.range(..=last.saturating_add(1)).next_back().map(|(first, last)| (*first, *last))
            && known_last.saturating_add(1) >= first
        {
            self.0.remove(&known_first);
            (first, last) = (first.min(known_first), last.max(known_last));
        }
        self.0.insert(first, last);
    }

    /// Returns the ranges, ascending, each with its last id.
    fn ranges(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// Returns the number of ranges.
    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests;
