//! Sending rejected messages again whose stream is finished: they are moved into a stream of their own, which is then
//! replayed like any other. Those of a stream that still exists are retried in their place in it, see `importer`.
//!
//! ```text
//! copies ─▶ files, bundles of the new stream ─▶ its head ─▶ delete the copies
//! ```
//!
//! A crash before the last step leaves both: then a message is sent twice, as after a crash at any other place.

use std::collections::HashSet;
use std::sync::Arc;

use tracing::info;
use uuid::Uuid;

use super::error::TakeoverError;
use super::keys::FleetKeys;
use super::objects::{delete_all, folder, list_all, name_of, read_whole};
use super::reading::{StreamReader, UnreadableObject};
use super::selection::FleetReplaySelection;
use super::session::ensure_exclusive;
use super::sweep::delete_folder;
use super::watch::{list_heads, streams_with_bundles};
use crate::depot::{Depot, DepotError, Name};
use crate::fleet::bundle::{BundleBuilder, Pushed};
use crate::fleet::head::{Head, HeadOwner, HeadState};
use crate::fleet::names::{self, ObjectName, StreamId};
use crate::fleet::record::{FleetRecord, MessageRef, RecordState, position_of_id};
use crate::message::Server;
use crate::sealing::SealError;

/// Messages of one new stream at most.
const MESSAGES_MAX: usize = 10_000;

/// A copy of a rejected message: its stream, its id there, which part of it, and its object.
type RejectedCopy = (StreamId, u64, u32, Name);

/// Records with their streams, and what can't be read.
type CopiedRecords = (Vec<(StreamId, FleetRecord)>, Vec<UnreadableObject>);

/// The new streams, and what could not be moved.
#[derive(Debug, Default)]
struct Resent {
    streams: Vec<StreamId>,
    unreadable: Vec<UnreadableObject>,
}

/// Moves copies of rejected messages into streams of their own, which are retried.
pub(crate) struct Resending<'a> {
    pub depot: &'a Arc<dyn Depot>,
    pub keys: &'a FleetKeys,
    pub owner: HeadOwner,
    /// Only messages for this server are moved.
    pub server: &'a Server,
    /// Whether nobody else replays this depot, for one that does not keep conditional writes.
    pub single_replayer: bool,
}

impl Resending<'_> {
    /// Moves what is selected, if rejected messages are; the new streams are part of the selection then. Returns what is
    /// unreadable.
    ///
    /// # Errors
    ///
    /// If the depot can't be used: what was moved is in a stream, and the rest is where it was.
    pub(crate) fn run(&self, selection: &mut FleetReplaySelection) -> Result<Vec<UnreadableObject>, TakeoverError> {
        if !selection.retries_rejected() {
            return Ok(Vec::new());
        }
        ensure_exclusive(&**self.depot, self.single_replayer)?;
        let mut copies = self.copies(selection)?;
        copies.sort_unstable();
        let mut resent = Resent::default();
        for copies in copies.chunks(MESSAGES_MAX) {
            self.move_some(copies, selection, &mut resent)?;
        }
        selection.moved = resent.streams;
        Ok(resent.unreadable)
    }

    /// Returns the records of copies that [`Resending::run`] would move, and what is unreadable. Nothing is changed.
    ///
    /// # Errors
    ///
    /// If the depot can't be read.
    pub(super) fn records(&self, selection: &FleetReplaySelection) -> Result<CopiedRecords, TakeoverError> {
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        if !selection.retries_rejected() {
            return Ok((records, unreadable));
        }
        let reader = StreamReader::new(self.depot.clone(), self.keys.identities.clone());
        for copy in self.copies(selection)? {
            let Some(record) = self.read(&reader, &copy, selection, &mut unreadable)? else { continue };
            records.push((copy.0, FleetRecord { state: RecordState::Waiting, ..record }));
        }
        Ok((records, unreadable))
    }

    /// Returns the record of a copy; `None` if it is gone, not selected, for another server, or can't be read.
    fn read(
        &self,
        reader: &StreamReader,
        (.., name): &RejectedCopy,
        selection: &FleetReplaySelection,
        unreadable: &mut Vec<UnreadableObject>,
    ) -> Result<Option<FleetRecord>, TakeoverError> {
        let Some(bytes) = read_whole(&**self.depot, name)? else { return Ok(None) };
        let contents = reader.records_of(name, 1, &bytes);
        unreadable.extend(contents.unreadable);
        let is_meant = |record: &FleetRecord| {
            record.message.lane.server.as_ref() == Some(self.server) && selection.selects(record)
        };
        Ok(contents.records.into_iter().next().filter(is_meant))
    }

    /// Returns the copies whose streams are finished.
    fn copies(&self, selection: &FleetReplaySelection) -> Result<Vec<RejectedCopy>, DepotError> {
        let mut existing: HashSet<StreamId> = streams_with_bundles(&**self.depot)?;
        existing.extend(list_heads(&**self.depot)?.into_iter().map(|(stream, _)| stream));
        let mut copies = Vec::new();
        for entry in list_all(&**self.depot, &folder(&names::rejected()))? {
            if let Some(ObjectName::Rejected { stream, message, number, .. }) = ObjectName::parse(entry.name.as_str())
                && selection.takes(stream)
                && !existing.contains(&stream)
            {
                copies.push((stream, message, number, entry.name));
            }
        }
        Ok(copies)
    }

    fn move_some(
        &self,
        copies: &[RejectedCopy],
        selection: &FleetReplaySelection,
        resent: &mut Resent,
    ) -> Result<(), TakeoverError> {
        let reader = StreamReader::new(self.depot.clone(), self.keys.identities.clone());
        let stream = StreamId::new(Uuid::now_v7());
        let mut builder = BundleBuilder::new();
        let (mut bundles, mut moved, mut ids) = (0, Vec::new(), 0);
        for copy in copies {
            let unreadable = &mut resent.unreadable;
            let Some(record) = self.read(&reader, copy, selection, unreadable)? else { continue };
            ids += 1;
            let Some(record) = self.renamed(copy, record, (stream, ids), resent)? else { continue };
            let mut pushed = builder.push(&record);
            if pushed == Ok(Pushed::Full) {
                self.put(stream, std::mem::take(&mut builder), &mut bundles)?;
                pushed = builder.push(&record);
            }
            // The copy of a record that no bundle can hold stays where it is.
            if pushed == Ok(Pushed::Taken) {
                moved.push(copy);
            }
        }
        self.put(stream, builder, &mut bundles)?;
        if moved.is_empty() {
            return Ok(());
        }
        let head = Head {
            bundles,
            shipped: moved.len() as u64,
            waiting: moved.len() as u64,
            renewed: 1,
            ..Head::first(HeadState::Closed, self.owner.clone())
        };
        self.depot.create(&name_of(&ObjectName::Head(stream)), &head.encode())?;
        let gone: Vec<Name> = moved.iter().map(|(.., name)| name.clone()).collect();
        delete_all(&**self.depot, &gone)?;
        for (of, message, ..) in &moved {
            delete_folder(&**self.depot, &names::files_of(of, *message), |name| {
                matches!(name, ObjectName::File { .. })
            })?;
        }
        info!(target: "fleet", %stream, messages = moved.len(), "rejected messages are retried as a stream");
        resent.streams.push(stream);
        Ok(())
    }

    /// Returns the record as a waiting message of the new stream, with its file there; `None` if a part of that is gone.
    fn renamed(
        &self,
        (of, message, _, _): &RejectedCopy,
        record: FleetRecord,
        (stream, id): (StreamId, u64),
        resent: &mut Resent,
    ) -> Result<Option<FleetRecord>, TakeoverError> {
        for number in 0..record.file.map_or(0, |file| file.parts) {
            let old = name_of(&ObjectName::File { stream: *of, message: *message, number });
            let Some(bytes) = read_whole(&**self.depot, &old)? else {
                let reason = "a part of the file is missing".to_owned();
                resent.unreadable.push(UnreadableObject { object: old.to_string(), messages: 1, reason });
                return Ok(None);
            };
            self.depot.create(&name_of(&ObjectName::File { stream, message: id, number }), &bytes)?;
        }
        let reference = MessageRef::whole(id);
        let position = position_of_id(id);
        Ok(Some(FleetRecord { reference, position, attempts: 0, state: RecordState::Waiting, ..record }))
    }

    fn put(&self, stream: StreamId, builder: BundleBuilder, bundles: &mut u32) -> Result<(), TakeoverError> {
        let Some(bundle) = builder.finish() else { return Ok(()) };
        let unusable =
            |error: SealError| DepotError::Unusable { at: self.depot.describe().url, reason: error.to_string() };
        let sealed = self.keys.seals.seal(&bundle.bytes).map_err(unusable)?;
        self.depot.create(&name_of(&ObjectName::Bundle(stream, bundle.manifest.name(*bundles))), &sealed)?;
        *bundles += 1;
        Ok(())
    }
}
