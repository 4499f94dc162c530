//! A stream whose bundles are read one by one, in their order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::held_back::HeldBack;
use super::reading::{BundleContents, StreamReader, UnreadableObject};
use super::record_sorter::WithoutKey;
use crate::depot::DepotError;
use crate::fleet::head::Head;
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
    /// The epoch of its head.
    pub(super) epoch: u32,
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
    /// Streams of the same store that began earlier and may have older messages.
    pub(super) after: Vec<StreamId>,
    /// Whether none of it may be imported: its marks are unreadable.
    pub(super) is_closed_to_us: bool,
}

impl TakenStream {
    /// Reads the marks and the names of the bundles of a stream with this head; nothing is changed.
    pub(super) fn read(reader: &StreamReader, stream: StreamId, head: &Head) -> Result<PreparedStream, DepotError> {
        let (bundles, missing) = reader.all_bundles(stream, head.bundles)?;
        let messages = bundles.iter().map(|bundle| u64::from(bundle.messages)).sum();
        let mut settled = SettledMessages::new();
        let read = reader.marks(stream, head.epoch)?.and_then(|marks| {
            let object = || names::marks_of(&stream);
            let unreadable = |reason: String| UnreadableObject { object: object(), messages: 0, reason };
            marks.into_iter().try_for_each(|mark| settled.add(mark)).map_err(|fault| unreadable(fault.to_string()))
        });
        if let Some(finished) = reader.finished(stream)? {
            settled.add_finished(&finished);
        }
        let mut taken = Self {
            stream,
            epoch: head.epoch,
            plan: ImportPlan::new(settled),
            pending: VecDeque::new(),
            prefetched: None,
            planned: None,
            imported: BTreeSet::new(),
            left: missing.as_ref().map_or(0, |missing| missing.messages),
            back: HeldBack::default(),
            without_key: BTreeMap::new(),
            after: head.after.clone(),
            is_closed_to_us: false,
        };
        if let Err(unreadable) = read {
            taken.is_closed_to_us = true;
            // Later streams of the same store may be about the same.
            taken.back = HeldBack::unknown();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::depot::Depot;
    use crate::depot::model::ModelDepot;
    use crate::fleet::bundle::{BundleBuilder, Pushed};
    use crate::fleet::head::{HeadOwner, HeadState};
    use crate::fleet::marks::{Fate, Mark};
    use crate::fleet::names::ObjectName;
    use crate::fleet::record::MessageRef;
    use crate::fleet::samples::record;
    use crate::takeover::objects::name_of;
    use crate::takeover::sweep::delete_stream;

    fn put(depot: &ModelDepot, stream: StreamId, number: u32, messages: &[u64]) -> BundleName {
        let mut builder = BundleBuilder::new();
        for message in messages {
            assert_eq!(builder.push(&record(*message)), Ok(Pushed::Taken));
        }
        let bundle = builder.finish().expect("it has records");
        let name = bundle.manifest.name(number);
        depot.create(&name_of(&ObjectName::Bundle(stream, name)), &bundle.bytes).expect("it answers");
        name
    }

    #[test]
    fn a_bundle_that_arrives_after_its_stream_was_finished_repeats_nothing_that_was_settled() {
        let (depot, stream) = (Arc::new(ModelDepot::new()), StreamId::new(uuid::Uuid::now_v7()));
        let first = put(&depot, stream, 0, &[1, 2]);
        let mut settled = SettledMessages::new();
        // Its agent settled message 3 while the bundle with it was on its way.
        for message in [1, 2, 3] {
            let mark = Mark { reference: MessageRef::whole(message), fate: Fate::Delivered };
            settled.add(mark).expect("there is room");
        }
        let mut plan = ImportPlan::new(settled);
        assert_eq!(plan.next_bundle(vec![record(1), record(2)]), []);
        delete_stream(&*depot, stream, (&[first], &plan.finished()), |_| false).expect("it answers");
        put(&depot, stream, 1, &[3, 4]);
        let reader = StreamReader::new(depot.clone(), Arc::from([]));
        let (mut taken, unreadable) =
            TakenStream::read(&reader, stream, &Head::first(HeadState::Closed, HeadOwner::default()))
                .expect("it answers");
        assert_eq!(unreadable, None);
        let (records, _) = taken.read_next(&reader).expect("it answers");
        let messages: Vec<u64> = records.iter().map(|record| record.reference.message).collect();
        assert_eq!(messages, [4], "message 3 would be sent over newer writes, or 4 be lost");
    }
}
