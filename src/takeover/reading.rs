//! Reading a stream: its marks, its bundles, the files of its messages.
//!
//! Unreadable objects are reported and left in the depot: a flipped bit costs the records that it is in, a bundle of a
//! newer version or for another identity is skipped as a whole, and marks that can't be read keep the whole stream from
//! being replayed, because what they settled would be sent again over newer writes.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{Context, SHA256};

use super::objects::{folder, list_all, name_of, read_whole};
use crate::depot::{Depot, DepotError, Name};
use crate::fleet::bundle::BundleReader;
use crate::fleet::finished::FinishedStream;
use crate::fleet::marks::{Mark, MarksReader};
use crate::fleet::names::{self, BundleName, ObjectName, StreamId};
use crate::fleet::parallel::in_parallel;
use crate::fleet::record::{FleetRecord, ShippedFile};
use crate::hint;
use crate::sealing::{Identity, OpenReader, SealError, is_sealed};

/// How often bundles are listed until all that were shipped are there, and the pause between: a listing may lag behind.
const LISTS_MAX: usize = 6;
const LIST_PAUSE: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };
/// Objects of one stream that are read at a time.
const READS_AT_ONCE: usize = 4;

/// How many epochs before the last one are asked for marks that no listing shows: more than a stream can have owners in
/// the time by which a listing lags behind.
const EPOCHS_MAX: u32 = 1000;
/// How many numbers of an epoch are asked for that are missing in a listing below the last number.
const GAPS_MAX: usize = 1000;

/// The epoch and number of an object of marks, and its marks, or why they can't be read.
type MarksObject = ((u32, u32), Result<Vec<Mark>, UnreadableObject>);

/// Something in the depot that can't be read. It stays there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnreadableObject {
    /// Its name.
    pub object: String,
    /// How many messages it hides, at least.
    pub messages: u64,
    /// Why it can't be read, for people.
    pub reason: String,
}

/// The bytes of an object after it was opened.
struct OpenedObject {
    plain: Vec<u8>,
    /// Why its end is missing, if it is.
    fault: Option<String>,
}

/// The contents of a bundle.
#[derive(Debug, Default)]
pub(super) struct BundleContents {
    /// The records that can be read, in their order.
    pub records: Vec<FleetRecord>,
    /// Why others can't.
    pub unreadable: Option<UnreadableObject>,
}

/// Reads streams with these keys.
#[derive(Clone)]
pub(super) struct StreamReader {
    depot: Arc<dyn Depot>,
    identities: Arc<[Identity]>,
}

impl StreamReader {
    pub(super) fn new(depot: Arc<dyn Depot>, identities: Arc<[Identity]>) -> Self {
        Self { depot, identities }
    }

    /// Returns the names of a stream's bundles, in their order.
    pub(super) fn bundles(&self, stream: StreamId) -> Result<Vec<BundleName>, DepotError> {
        let listed = list_all(&*self.depot, &folder(&names::bundles_of(&stream)))?;
        let bundle = |name: &Name| match ObjectName::parse(name.as_str()) {
            Some(ObjectName::Bundle(_, bundle)) => Some(bundle),
            _ => None,
        };
        let mut bundles: Vec<BundleName> = listed.iter().filter_map(|entry| bundle(&entry.name)).collect();
        bundles.sort_unstable();
        Ok(bundles)
    }

    /// Returns the names of a stream's bundles, and what is missing of the bundles with numbers below `shipped`, which its
    /// owner says are there. Waits for a listing that lags behind.
    pub(super) fn all_bundles(
        &self,
        stream: StreamId,
        shipped: u32,
    ) -> Result<(Vec<BundleName>, Option<UnreadableObject>), DepotError> {
        let mut lists = 1;
        loop {
            let bundles = self.bundles(stream)?;
            let listed: BTreeSet<u32> = bundles.iter().map(|bundle| bundle.number).collect();
            let missing: Vec<u32> = (0..shipped).filter(|number| !listed.contains(number)).collect();
            let Some(first) = missing.first() else { return Ok((bundles, None)) };
            if self.is_finished(stream)? {
                // Its replayer was ended while it deleted the stream.
                return Ok((bundles, None));
            }
            if lists == LISTS_MAX {
                let object = format!("{}/{first}", names::bundles_of(&stream));
                let messages = missing.len() as u64;
                let purge = hint::command(&format!("purge --fleet URL --stream {stream}"));
                let reason = format!(
                    "{} of {shipped} that were shipped are not there, or the listing does not show them; if they were \
                     deleted, their messages are lost: {purge} deletes the rest",
                    crate::figures::count(messages, "bundle")
                );
                return Ok((bundles, Some(UnreadableObject { object, messages, reason })));
            }
            std::thread::sleep(LIST_PAUSE);
            lists += 1;
        }
    }

    fn is_finished(&self, stream: StreamId) -> Result<bool, DepotError> {
        Ok(self.finished(stream)?.is_some())
    }

    /// Returns the record of a stream that was finished once: it is there again if a bundle arrived late.
    pub(super) fn finished(&self, stream: StreamId) -> Result<Option<FinishedStream>, DepotError> {
        let bytes = read_whole(&*self.depot, &name_of(&ObjectName::Finished(stream)))?;
        Ok(bytes.map(|bytes| FinishedStream::decode(&bytes)))
    }

    /// Returns all marks of a stream, in the order in which they were written; or which of their objects can't be read.
    ///
    /// A listing may lag behind, and marks that it hides would be sent again over newer writes. So objects that it does
    /// not show are asked for by name, which finds what exists: those of every epoch up to this one.
    pub(super) fn marks(
        &self,
        stream: StreamId,
        last_epoch: u32,
    ) -> Result<Result<Vec<Mark>, UnreadableObject>, DepotError> {
        let listed = list_all(&*self.depot, &folder(&names::marks_of(&stream)))?;
        let numbers = |name: &Name| match ObjectName::parse(name.as_str()) {
            Some(ObjectName::Marks { epoch, number, .. }) => Some((epoch, number)),
            _ => None,
        };
        let listed: BTreeSet<(u32, u32)> = listed.iter().filter_map(|entry| numbers(&entry.name)).collect();
        let mut objects: Vec<MarksObject> = Vec::new();
        let names: Vec<(u32, u32)> = listed.iter().copied().collect();
        for read in in_parallel(&names, READS_AT_ONCE, |at| self.marks_in(stream, *at)) {
            objects.extend(read?);
        }
        let mut epochs: BTreeSet<u32> = listed.iter().map(|(epoch, _)| *epoch).collect();
        // The first epoch of a stream is 1.
        epochs.extend(last_epoch.saturating_sub(EPOCHS_MAX).max(1)..=last_epoch);
        let epochs: Vec<u32> = epochs.into_iter().collect();
        for read in in_parallel(&epochs, READS_AT_ONCE, |epoch| self.hidden_marks(stream, *epoch, &listed)) {
            objects.extend(read?);
        }
        objects.sort_unstable_by_key(|(at, _)| *at);
        let marks: Result<Vec<_>, _> = objects.into_iter().map(|(_, marks)| marks).collect();
        Ok(marks.map(|marks| marks.into_iter().flatten().collect()))
    }

    /// Returns the objects of marks of an epoch that exist and were not listed.
    ///
    /// Their writers leave no gaps ([`crate::fleet::mark_writer`]): behind the first number that is missing there is
    /// nothing that was confirmed. Numbers below a listed one are missing in a stream that is being deleted or that an
    /// earlier version wrote: the highest of these are asked for as well.
    fn hidden_marks(
        &self,
        stream: StreamId,
        epoch: u32,
        listed: &BTreeSet<(u32, u32)>,
    ) -> Result<Vec<MarksObject>, DepotError> {
        let last = listed.range((epoch, 0)..=(epoch, u32::MAX)).next_back().map(|(_, number)| *number);
        let below = (0..last.unwrap_or(0)).rev().filter(|number| !listed.contains(&(epoch, *number)));
        let mut found = Vec::new();
        for number in below.take(GAPS_MAX) {
            found.extend(self.marks_in(stream, (epoch, number))?);
        }
        for number in last.map_or(0, |last| last.saturating_add(1))..u32::MAX {
            let Some(object) = self.marks_in(stream, (epoch, number))? else { break };
            found.push(object);
        }
        Ok(found)
    }

    /// Reads an object of marks; `None` if it does not exist.
    fn marks_in(&self, stream: StreamId, (epoch, number): (u32, u32)) -> Result<Option<MarksObject>, DepotError> {
        let name = name_of(&ObjectName::Marks { stream, epoch, number });
        let bytes = read_whole(&*self.depot, &name)?;
        Ok(bytes.map(|bytes| ((epoch, number), self.marks_of(&name, &bytes))))
    }

    fn marks_of(&self, name: &Name, bytes: &[u8]) -> Result<Vec<Mark>, UnreadableObject> {
        let unreadable = |reason: String| UnreadableObject { object: name.to_string(), messages: 0, reason };
        let opened = match self.open(bytes) {
            Ok(OpenedObject { plain, fault: None }) => plain,
            Ok(OpenedObject { fault: Some(fault), .. }) => return Err(unreadable(fault)),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let read = MarksReader::open(&opened).map_err(|fault| fault.to_string());
        let marks = read.and_then(|marks| marks.collect::<Result<Vec<_>, _>>().map_err(|fault| fault.to_string()));
        marks.map_err(unreadable)
    }

    /// Reads a bundle. One that is gone has no records: it was settled as a whole.
    pub(super) fn bundle(&self, stream: StreamId, bundle: BundleName) -> Result<BundleContents, DepotError> {
        let name = name_of(&ObjectName::Bundle(stream, bundle));
        let Some(bytes) = read_whole(&*self.depot, &name)? else { return Ok(BundleContents::default()) };
        Ok(self.records_of(&name, bundle.messages.into(), &bytes))
    }

    /// Returns the records of a bundle with these bytes; `messages` is how many its name promises.
    pub(super) fn records_of(&self, name: &Name, messages: u64, bytes: &[u8]) -> BundleContents {
        let unreadable = |messages, reason| UnreadableObject { object: name.to_string(), messages, reason };
        let all =
            |reason: String| BundleContents { records: Vec::new(), unreadable: Some(unreadable(messages, reason)) };
        let opened = match self.open(bytes) {
            Ok(opened) => opened,
            Err(error) => return all(error.to_string()),
        };
        let reader = match BundleReader::open(&opened.plain) {
            Ok(reader) => reader,
            Err(fault) => return all(opened.fault.unwrap_or_else(|| fault.to_string())),
        };
        let mut fault = opened.fault.clone();
        let mut records = Vec::new();
        for record in reader {
            match record {
                Ok(record) => records.push(record),
                Err(bad) => fault = fault.or_else(|| Some(bad.to_string())),
            }
        }
        let missing = messages.saturating_sub(records.len() as u64).max(1);
        BundleContents { records, unreadable: fault.map(|reason| unreadable(missing, reason)) }
    }

    /// Reads the file of a message in its parts, and hands each on. Returns why it can't be used, if so.
    pub(super) fn file<E: From<DepotError>>(
        &self,
        stream: StreamId,
        message: u64,
        file: &ShippedFile,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), UnreadableObject>, E> {
        let mut context = Context::new(&SHA256);
        let mut bytes = 0;
        let name_at = |number| name_of(&ObjectName::File { stream, message, number });
        let unreadable = |number: u32, reason: &str| {
            let object = name_at(number).to_string();
            Ok(Err(UnreadableObject { object, messages: 1, reason: reason.to_owned() }))
        };
        for number in 0..file.parts {
            let Some(sealed) = read_whole(&*self.depot, &name_at(number))? else {
                return unreadable(number, "a part of the file is missing");
            };
            let part = match self.open(&sealed) {
                Ok(OpenedObject { plain, fault: None }) => plain,
                Ok(OpenedObject { fault: Some(fault), .. }) => return unreadable(number, &fault),
                Err(error) => return unreadable(number, &error.to_string()),
            };
            context.update(&part);
            bytes += part.len() as u64;
            take(&part)?;
        }
        let is_whole = bytes == file.attachment.bytes && context.finish().as_ref() == file.attachment.sha256.as_bytes();
        if is_whole { Ok(Ok(())) } else { unreadable(0, "the file is not the one that was shipped") }
    }

    /// Opens what was sealed; what is in plain is returned as it is. Damage behind the beginning keeps what is before it.
    fn open(&self, bytes: &[u8]) -> Result<OpenedObject, SealError> {
        if !is_sealed(bytes) {
            return Ok(OpenedObject { plain: bytes.to_vec(), fault: None });
        }
        let mut reader = OpenReader::new(&self.identities, bytes)?;
        let mut plain = Vec::with_capacity(bytes.len());
        let read = reader.read_to_end(&mut plain);
        Ok(OpenedObject { plain, fault: read.err().map(|error| SealError::from_io(error).to_string()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::{ModelDepot, ModelFault, Verb};
    use crate::fleet::mark_writer::MarkWriter;
    use crate::fleet::marks::Fate;
    use crate::fleet::record::MessageRef;
    use crate::fleet::seals::Seals;

    fn mark(message: u64) -> Mark {
        Mark { reference: MessageRef::whole(message), fate: Fate::Delivered }
    }

    /// Writes marks of messages 1 to 6 under epochs 1 and 3, with an error in between.
    fn marked(depot: &Arc<ModelDepot>) -> StreamId {
        let (writer, stream) = (MarkWriter::new(depot.clone()), StreamId::new(uuid::Uuid::now_v7()));
        for message in 1..=6 {
            let epoch = if message < 5 { 1 } else { 3 };
            let write = || writer.mark(&Seals::Plain, stream, epoch, vec![mark(message)]);
            if message == 3 {
                depot.fail_next(Verb::Create, ModelFault::NotDoneUnanswered);
                write().expect_err("no answer");
            }
            write().expect("the depot is well");
        }
        stream
    }

    #[test]
    fn marks_that_a_listing_does_not_show_are_found() {
        let depot = Arc::new(ModelDepot::new());
        let stream = marked(&depot);
        let reader = StreamReader::new(depot.clone(), Arc::new([]));
        let expected: Vec<Mark> = (1..=6).map(mark).collect();
        for hidden in 0..=depot.names().len() {
            depot.set(|faults| faults.listing_lags_by = hidden);
            let found = reader.marks(stream, 3).expect("the depot is there");
            assert_eq!(found, Ok(expected.clone()), "settled messages are sent again: {hidden} are not listed");
        }
        depot.set(|faults| faults.refused = vec![Verb::Get]);
        reader.marks(stream, 3).expect_err("an unknown answer counts as no marks");
    }
}
