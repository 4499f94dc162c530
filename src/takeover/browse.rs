//! Reading the messages of streams for people.
//!
//! A stream's messages go through a scratch store, so that a filter selects in a depot exactly what it selects in a store.
//! One stream at a time: what is read is bounded by the largest stream.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::error::TakeoverError;
use super::keys::FleetKeys;
use super::objects::{folder, list_all, read_whole};
use super::reading::{StreamReader, UnreadableObject};
use super::scratch::ScratchStore;
use crate::depot::{Depot, Name};
use crate::fleet::import::{ImportPlan, SettledMessages};
use crate::fleet::names::{self, ObjectName, StreamId};
use crate::fleet::record::{FleetRecord, MessageRef, RecordState};
use crate::message::{MessageId, MessageStatus, Sha256};
use crate::store::{BacklogGroup, Filter, Keys, Limits, Listed, Page, SalvagedRow, StoredMessage};

/// Where a message of the scratch store comes from: its stream, its place there, and its copy if it is rejected.
type BrowsedOrigin = (StreamId, MessageRef, Option<Name>);

/// A message, if it was found, and what can't be read where it could be.
pub(crate) type FoundWhole = (Option<StoredMessage>, Vec<UnreadableObject>);

/// Rows of one commit.
const ROWS: usize = 500;

/// A message of a depot.
#[derive(Clone, Debug)]
pub(crate) struct FleetMessage {
    pub stream: StreamId,
    pub reference: MessageRef,
    /// As a list shows it; its id is that of the scratch store.
    pub listed: Listed,
    /// Its copy among the rejected messages, if it is there.
    pub rejected_copy: Option<Name>,
}

/// The messages that a filter selects of a stream, or of the rejected messages.
#[derive(Debug, Default)]
pub(crate) struct FleetSelection {
    pub messages: Vec<FleetMessage>,
    /// The selected messages, counted.
    pub groups: Vec<BacklogGroup>,
    /// Messages that are not selected.
    pub others: u64,
    pub unreadable: Vec<UnreadableObject>,
}

/// Reads the messages of streams.
pub(crate) struct FleetBrowser {
    depot: Arc<dyn Depot>,
    reader: StreamReader,
    scratch: ScratchStore,
}

impl FleetBrowser {
    /// Prepares the scratch store.
    ///
    /// # Errors
    ///
    /// If there can't be one.
    pub(crate) fn new(
        depot: Arc<dyn Depot>,
        keys: &FleetKeys,
        scratch_folder: &Path,
        (limits, store_keys): (Limits, &Keys),
    ) -> Result<Self, TakeoverError> {
        let scratch = ScratchStore::create(scratch_folder, limits, store_keys)?;
        let reader = StreamReader::new(depot.clone(), keys.identities.clone());
        Ok(Self { depot, reader, scratch })
    }

    /// Returns what a filter selects of a stream. The ids of the filter are those of the stream.
    ///
    /// # Errors
    ///
    /// If the depot or the scratch store can't be used.
    pub(crate) fn select(&self, stream: StreamId, filter: &Filter) -> Result<FleetSelection, TakeoverError> {
        let (records, unreadable) = self.records(stream)?;
        let records = records.into_iter().map(|record| (stream, record, None)).collect();
        Ok(FleetSelection { unreadable, ..self.selected(records, filter)? })
    }

    /// Returns what a filter selects of the messages that the server rejected.
    ///
    /// # Errors
    ///
    /// As [`FleetBrowser::select`].
    pub(crate) fn rejected(&self, filter: &Filter) -> Result<FleetSelection, TakeoverError> {
        if !filter.statuses.is_empty() && !filter.statuses.contains(&MessageStatus::Rejected) {
            return Ok(FleetSelection::default());
        }
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for entry in list_all(&*self.depot, &folder(&names::rejected()))? {
            let Some(ObjectName::Rejected { stream, .. }) = ObjectName::parse(entry.name.as_str()) else { continue };
            let Some(bytes) = read_whole(&*self.depot, &entry.name)? else { continue };
            let contents = self.reader.records_of(&entry.name, 1, &bytes);
            unreadable.extend(contents.unreadable);
            let copy = |record| (stream, record, Some(entry.name.clone()));
            records.extend(contents.records.into_iter().map(copy));
        }
        Ok(FleetSelection { unreadable, ..self.selected(records, filter)? })
    }

    /// Returns one message whole, with its body unless that is a file; and what can't be read where it could be.
    ///
    /// # Errors
    ///
    /// As [`FleetBrowser::select`].
    pub(crate) fn whole(&self, stream: StreamId, message: u64) -> Result<FoundWhole, TakeoverError> {
        let (records, mut unreadable) = self.records(stream)?;
        let mut records: Vec<_> = records.into_iter().map(|record| (stream, record, None)).collect();
        records.retain(|(_, record, _)| record.reference.message == message);
        records.truncate(1);
        if records.is_empty() {
            let copies = self.rejected(&Filter::default())?;
            let is_it = |found: &&FleetMessage| found.stream == stream && found.reference.message == message;
            unreadable.extend(copies.unreadable);
            let Some(copy) = copies.messages.iter().find(is_it).and_then(|found| found.rejected_copy.clone()) else {
                return Ok((None, unreadable));
            };
            let Some(bytes) = read_whole(&*self.depot, &copy)? else { return Ok((None, unreadable)) };
            let contents = self.reader.records_of(&copy, 1, &bytes);
            records.extend(contents.records.into_iter().map(|record| (stream, record, None)));
        }
        let stored = self.store(records)?;
        let found = stored.keys().next().map(|id| self.scratch.store().get(MessageId(*id))).transpose()?;
        self.empty()?;
        Ok((found.flatten(), unreadable))
    }

    /// Returns the records of a stream that are not settled, and what of it can't be read.
    fn records(&self, stream: StreamId) -> Result<(Vec<FleetRecord>, Vec<UnreadableObject>), TakeoverError> {
        let mut unreadable = Vec::new();
        let mut settled = SettledMessages::new();
        match self.reader.marks(stream, 0)? {
            Err(object) => unreadable.push(object),
            Ok(marks) => {
                let too_many = marks.into_iter().try_for_each(|mark| settled.add(mark)).err();
                unreadable.extend(too_many.map(|fault| UnreadableObject {
                    object: names::marks_of(&stream),
                    messages: 0,
                    reason: fault.to_string(),
                }));
            }
        }
        let mut plan = ImportPlan::new(settled);
        let mut records = Vec::new();
        let mut bundles = self.reader.bundles(stream)?.into_iter().peekable();
        while let Some(bundle) = bundles.next() {
            let mut contents = self.reader.bundle(stream, bundle)?;
            unreadable.extend(contents.unreadable.take());
            while let Some(same) = bundles.next_if(|next| next.number == bundle.number) {
                let more = self.reader.bundle(stream, same)?;
                contents.records.extend(more.records);
                unreadable.extend(more.unreadable);
            }
            records.extend(plan.next_bundle(contents.records));
        }
        Ok((records, unreadable))
    }

    fn selected(
        &self,
        records: Vec<(StreamId, FleetRecord, Option<Name>)>,
        filter: &Filter,
    ) -> Result<FleetSelection, TakeoverError> {
        let all = records.len() as u64;
        let stored = self.store(records)?;
        let ids: Vec<u64> = filter.ids.iter().map(|id| u64::try_from(id.0).unwrap_or(0)).collect();
        let mut filter = Filter { ids: Vec::new(), ..filter.clone() };
        if !ids.is_empty() {
            let named = stored.iter().filter(|(_, (_, reference, _))| ids.contains(&reference.message));
            filter.ids = named.map(|(id, _)| MessageId(*id)).collect();
            if filter.ids.is_empty() {
                self.empty()?;
                return Ok(FleetSelection { others: all, ..FleetSelection::default() });
            }
        }
        let store = self.scratch.store();
        let mut messages = Vec::new();
        let mut after = None;
        loop {
            let page = store.list(&filter, &Page { after, limit: ROWS, newest_first: false })?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            messages.extend(page.into_iter().filter_map(|listed| {
                let (stream, reference, rejected_copy) = stored.get(&listed.id.0)?.clone();
                Some(FleetMessage { stream, reference, listed, rejected_copy })
            }));
        }
        let groups = store.backlog(&filter)?.groups;
        self.empty()?;
        let others = all.saturating_sub(messages.len() as u64);
        Ok(FleetSelection { messages, groups, others, unreadable: Vec::new() })
    }

    /// Stores records in the scratch store; returns where each came from, by its id there.
    fn store(
        &self,
        records: Vec<(StreamId, FleetRecord, Option<Name>)>,
    ) -> Result<HashMap<i64, BrowsedOrigin>, TakeoverError> {
        let mut stored = HashMap::with_capacity(records.len());
        for records in records.chunks(ROWS) {
            let rows: Vec<SalvagedRow> = records.iter().map(|(_, record, _)| row(record)).collect();
            for (id, (stream, record, copy)) in self.scratch.store().salvage(&rows)?.into_iter().zip(records) {
                if let Some(id) = id {
                    stored.insert(id.0, (*stream, record.reference, copy.clone()));
                }
            }
        }
        Ok(stored)
    }

    fn empty(&self) -> Result<(), TakeoverError> {
        while self.scratch.store().purge(&Filter::default(), 10 * ROWS)?.messages > 0 {}
        Ok(())
    }
}

/// Adds messages to the group of their kind.
pub(super) fn add_group(groups: &mut Vec<BacklogGroup>, group: BacklogGroup) {
    let is_same = |other: &&mut BacklogGroup| {
        (other.status, other.message_type, &other.workspace, &other.server)
            == (group.status, group.message_type, &group.workspace, &group.server)
    };
    match groups.iter_mut().find(is_same) {
        None => groups.push(group),
        Some(sum) => {
            sum.messages += group.messages;
            sum.items += group.items;
            sum.body_bytes += group.body_bytes;
        }
    }
}

fn row(record: &FleetRecord) -> SalvagedRow {
    let (rejected, held) = match &record.state {
        RecordState::Rejected(answer) => (Some(answer.clone()), None),
        RecordState::Held(answer) => (None, Some(answer.clone())),
        RecordState::Waiting => (None, None),
    };
    SalvagedRow { held, ..SalvagedRow::new(unique(), record.message.clone(), rejected) }
}

/// Returns a digest that no row has: a stream may be read more than once.
fn unique() -> Sha256 {
    let mut bytes = [0; Sha256::LEN];
    bytes[..16].copy_from_slice(uuid::Uuid::now_v7().as_bytes());
    bytes[16..].copy_from_slice(uuid::Uuid::now_v7().as_bytes());
    Sha256::new(bytes)
}
