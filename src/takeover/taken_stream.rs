//! A stream whose bundles are read one by one, in their order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::held_back::HeldBack;
use super::reading::{BundleContents, StreamReader, UnreadableObject};
use super::record_sorter::WithoutKey;
use crate::depot::DepotError;
use crate::fleet::import::{ImportPlan, SettledMessages};
use crate::fleet::names::{self, BundleName, StreamId};
use crate::fleet::record::FleetRecord;

/// Bundles of at most this many bytes are read when their stream is taken.
const PREFETCH_BYTES: u64 = 1 << 20;
/// Entities of messages that stay behind, at most: beyond it, the rest of a stream stays as well.
pub(super) const HELD_BACK_MAX: usize = 500_000;

/// A stream that was read, and what of it can't be.
pub(super) type PreparedStream = (TakenStream, Option<UnreadableObject>);

/// A stream that this replayer holds, or that a dry run looks at.
pub(super) struct TakenStream {
    pub(super) stream: StreamId,
    pub(super) plan: ImportPlan,
    /// Bundles that are not imported yet; those with one number come together.
    pub(super) pending: VecDeque<Vec<BundleName>>,
    /// The contents of the first of them, if they were read already.
    prefetched: Option<BundleContents>,
    /// The records to import from the first of them, if that began already.
    pub(super) planned: Option<Vec<FleetRecord>>,
    pub(super) imported: BTreeSet<BundleName>,
    /// Messages that can't be delivered here.
    pub(super) left: u64,
    /// Their entities.
    pub(super) back: HeldBack,
    /// How many of them wait for which key, by workspace and the key's fingerprint.
    pub(super) without_key: WithoutKey,
    /// Whether none of it may be imported: its marks are unreadable.
    pub(super) is_closed_to_us: bool,
}

impl TakenStream {
    /// Reads the marks and the names of the bundles of a stream whose head has this epoch and number of bundles; nothing
    /// is changed.
    pub(super) fn read(
        reader: &StreamReader,
        stream: StreamId,
        (epoch, shipped): (u32, u32),
    ) -> Result<PreparedStream, DepotError> {
        let (bundles, missing) = reader.all_bundles(stream, shipped)?;
        let messages = bundles.iter().map(|bundle| u64::from(bundle.messages)).sum();
        let mut settled = SettledMessages::new();
        let read = reader.marks(stream, epoch)?.and_then(|marks| {
            let object = || names::marks_of(&stream);
            let unreadable = |reason: String| UnreadableObject { object: object(), messages: 0, reason };
            marks.into_iter().try_for_each(|mark| settled.add(mark)).map_err(|fault| unreadable(fault.to_string()))
        });
        let mut taken = Self {
            stream,
            plan: ImportPlan::new(settled),
            pending: VecDeque::new(),
            prefetched: None,
            planned: None,
            imported: BTreeSet::new(),
            left: missing.as_ref().map_or(0, |missing| missing.messages),
            back: HeldBack::default(),
            without_key: BTreeMap::new(),
            is_closed_to_us: false,
        };
        if let Err(unreadable) = read {
            taken.is_closed_to_us = true;
            taken.left = messages;
            return Ok((taken, Some(UnreadableObject { messages, ..unreadable })));
        }
        taken.take_new(bundles);
        if let Some([only]) = taken.pending.front().map(Vec::as_slice)
            && only.bytes <= PREFETCH_BYTES
        {
            taken.prefetched = Some(reader.bundle(stream, *only)?);
        }
        Ok((taken, missing))
    }

    /// Decrypts and parses the next bundle; returns its messages that are not settled, in order, and its corrupt objects.
    pub(super) fn read_next(
        &mut self,
        reader: &StreamReader,
    ) -> Result<(Vec<FleetRecord>, Vec<UnreadableObject>), DepotError> {
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for bundle in self.pending.front().into_iter().flatten() {
            let contents = match self.prefetched.take() {
                Some(contents) => contents,
                None => reader.bundle(self.stream, *bundle)?,
            };
            records.extend(contents.records);
            unreadable.extend(contents.unreadable);
        }
        Ok((self.plan.next_bundle(records), unreadable))
    }

    /// Returns whether everything of it is imported.
    pub(super) fn is_imported(&self) -> bool {
        self.pending.is_empty() || self.is_closed_to_us
    }

    pub(super) fn take_new(&mut self, listed: Vec<BundleName>) {
        let mut groups: BTreeMap<u32, Vec<BundleName>> = BTreeMap::new();
        for bundle in listed.into_iter().filter(|bundle| !self.imported.contains(bundle)) {
            groups.entry(bundle.number).or_default().push(bundle);
        }
        self.pending = groups.into_values().collect();
    }
}
