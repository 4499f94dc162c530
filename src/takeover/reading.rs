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

use super::objects::{folder, in_parallel, list_all, name_of, read_whole};
use crate::depot::{Depot, DepotError, Name};
use crate::fleet::bundle::BundleReader;
use crate::fleet::marks::{Mark, MarksReader};
use crate::fleet::names::{self, BundleName, ObjectName, StreamId};
use crate::fleet::record::{FleetRecord, ShippedFile};
use crate::sealing::{Identity, OpenReader, SealError, is_sealed};

/// How often bundles are listed until all that were shipped are there, and the pause between: a listing may lag behind.
const LISTS_MAX: usize = 6;
const LIST_PAUSE: Duration = Duration::from_secs(1);
/// Objects of one stream that are read at a time.
const READS_AT_ONCE: usize = 4;

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
                let reason = format!(
                    "{} of {shipped} that were shipped are not there, or the listing does not show them; if they were \
                     deleted, their messages are lost: `opik-offline purge --fleet URL --stream {stream}` deletes the rest",
                    crate::figures::count(messages, "bundle")
                );
                return Ok((bundles, Some(UnreadableObject { object, messages, reason })));
            }
            std::thread::sleep(LIST_PAUSE);
            lists += 1;
        }
    }

    fn is_finished(&self, stream: StreamId) -> Result<bool, DepotError> {
        Ok(self.depot.get(&name_of(&ObjectName::Finished(stream)))?.is_some())
    }

    /// Returns all marks of a stream, in the order in which they were written; or which of their objects can't be read.
    pub(super) fn marks(&self, stream: StreamId) -> Result<Result<Vec<Mark>, UnreadableObject>, DepotError> {
        let listed = list_all(&*self.depot, &folder(&names::marks_of(&stream)))?;
        let is_ours = |name: &Name| matches!(ObjectName::parse(name.as_str()), Some(ObjectName::Marks { .. }));
        let objects: Vec<Name> = listed.into_iter().map(|entry| entry.name).filter(is_ours).collect();
        let mut marks = Vec::new();
        for read in in_parallel(&objects, READS_AT_ONCE, |name| self.marks_in(name)) {
            match read? {
                Ok(more) => marks.extend(more),
                Err(unreadable) => return Ok(Err(unreadable)),
            }
        }
        Ok(Ok(marks))
    }

    fn marks_in(&self, name: &Name) -> Result<Result<Vec<Mark>, UnreadableObject>, DepotError> {
        let Some(bytes) = read_whole(&*self.depot, name)? else { return Ok(Ok(Vec::new())) };
        let unreadable = |reason: String| UnreadableObject { object: name.to_string(), messages: 0, reason };
        let opened = match self.open(&bytes) {
            Ok(OpenedObject { plain, fault: None }) => plain,
            Ok(OpenedObject { fault: Some(fault), .. }) => return Ok(Err(unreadable(fault))),
            Err(error) => return Ok(Err(unreadable(error.to_string()))),
        };
        let read = MarksReader::open(&opened).map_err(|fault| fault.to_string());
        let marks = read.and_then(|marks| marks.collect::<Result<Vec<_>, _>>().map_err(|fault| fault.to_string()));
        Ok(marks.map_err(unreadable))
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
