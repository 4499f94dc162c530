//! Importing a bundle: its records become messages of the scratch store, or stay in the depot.
//!
//! | record | what becomes of it |
//! | --- | --- |
//! | waiting or held, for our server | a message that waits or is held |
//! | rejected, and selected to be retried | a message that waits |
//! | rejected | copied to the folder of rejected messages, and stored as rejected: what depends on it waits |
//! | older than `max_age` | marked as expired |
//! | for another server, or not selected | stays: another replayer may deliver it |
//! | without its key | stays: it is delivered once its key is in the folder of keys |
//! | newer than one of these, and about the same | stays: it must not be overtaken later |
//! | its file can't be read | stays, and is named |
//!
//! Each is stored once, by the digest of its stream, epoch and message ([`crate::fleet::record::MessageRef::import_digest`]). Rows are stored some
//! hundred in a commit, in the order of delivery.

use super::error::TakeoverError;
use super::held_back::HeldBack;
use super::ledger::{ImportRow, MessageOrigin, ReplayerLedger};
use super::reading::{StreamReader, UnreadableObject};
use super::record_sorter::{LeftBehind, LeftReason, RecordSorter, is_rejected};
use crate::fleet::import::{MessageStanding, SettledMessages};
use crate::fleet::marks::{Fate, Mark};
use crate::fleet::names::StreamId;
use crate::fleet::record::{FileContent, FleetRecord, RecordState, ShippedFile};
use crate::message::Body;
use crate::store::attachment::AttachmentWriter;
use crate::store::{SalvagedRow, Store, StoreError};

/// Rows of one commit at most.
const ROWS_MAX: usize = 500;
/// Bytes of bodies in one commit, about.
const COMMIT_BYTES: usize = 4 << 20;

/// The bundle whose records are imported.
pub(super) struct ImportedBundle<'a> {
    pub stream: StreamId,
    /// The epoch in which this replayer owns the stream.
    pub epoch: u32,
    pub number: u32,
    /// Bytes of its records.
    pub bytes: u64,
    /// The settled messages of the stream.
    pub settled: &'a SettledMessages,
}

/// The result of importing a bundle.
#[derive(Debug, Default)]
pub(super) struct Imported {
    /// Messages that are new in the scratch store and wait.
    pub messages: u64,
    pub left: LeftBehind,
}

/// Imports bundles.
pub(super) struct Importer<'a> {
    pub reader: StreamReader,
    pub ledger: &'a ReplayerLedger,
    /// The scratch store, without marks.
    pub store: &'a dyn Store,
    /// Which messages are imported.
    pub sorter: RecordSorter<'a>,
}

/// Rows that are stored with the next commit.
#[derive(Default)]
struct RowBatch {
    rows: Vec<ImportRow>,
    bytes: usize,
}

impl Importer<'_> {
    /// Imports these records of a bundle, in this order.
    ///
    /// # Errors
    ///
    /// If the depot or the scratch store can't be used: a repeat stores what is missing.
    pub(super) fn import(
        &self,
        bundle: ImportedBundle<'_>,
        records: &[FleetRecord],
        (back, room): (&mut HeldBack, usize),
    ) -> Result<Imported, TakeoverError> {
        let mut imported = Imported::default();
        let mut batch = RowBatch::default();
        let mut marks = Vec::new();
        for record in records {
            match self.sorter.sort(bundle.stream, record, (back, room)) {
                Err(reason) => {
                    if matches!(reason, LeftReason::Expired) {
                        marks.push(Mark { reference: record.reference, fate: Fate::Expired });
                    }
                    imported.left.add(record, &reason);
                }
                Ok(whole) => {
                    if is_rejected(record) && !is_rejected(&whole) {
                        self.ledger.retry(bundle.stream, record);
                    }
                    marks.extend(self.put_aside(&bundle, &whole)?);
                    self.add(&bundle, &whole, &mut batch, &mut imported)?;
                }
            }
        }
        self.flush(&mut batch, &mut imported)?;
        self.ledger.add_bytes(bundle.stream, bundle.number, bundle.bytes);
        self.ledger.mark(bundle.stream, marks)?;
        Ok(imported)
    }

    /// Copies a rejected message, which its bundle will not outlive; returns the mark that it needs.
    fn put_aside(&self, bundle: &ImportedBundle<'_>, record: &FleetRecord) -> Result<Option<Mark>, TakeoverError> {
        let RecordState::Rejected(answer) = &record.state else { return Ok(None) };
        self.ledger.put_aside(bundle.stream, record)?;
        let is_marked = bundle.settled.standing(record.reference.message) == MessageStanding::Rejected;
        let mark = Mark { reference: record.reference, fate: Fate::Rejected(answer.clone()) };
        Ok((!is_marked && record.reference.part.is_none()).then_some(mark))
    }

    fn add(
        &self,
        bundle: &ImportedBundle<'_>,
        record: &FleetRecord,
        batch: &mut RowBatch,
        imported: &mut Imported,
    ) -> Result<(), TakeoverError> {
        let (rejected, held) = match &record.state {
            RecordState::Rejected(answer) => (Some(answer.clone()), None),
            RecordState::Held(answer) => (None, Some(answer.clone())),
            RecordState::Waiting => (None, None),
        };
        let mut row = SalvagedRow {
            held,
            ..SalvagedRow::new(
                record.reference.import_digest(bundle.stream.uuid(), bundle.epoch),
                record.message.clone(),
                rejected,
            )
        };
        let origin = MessageOrigin { stream: bundle.stream, bundle: bundle.number, reference: record.reference };
        let origin = row.rejected.is_none().then_some(origin);
        match &record.file {
            None => {}
            Some(file) if file.content == FileContent::Body => match self.body(bundle, record, file)? {
                Ok(body) => row.message.request.body = body,
                Err(unreadable) => {
                    imported.left.unreadable.push(unreadable);
                    return Ok(());
                }
            },
            Some(file) => {
                self.flush(batch, imported)?;
                match self.attach(bundle, record, file, ImportRow { row, origin })? {
                    Ok(new) => imported.messages += new,
                    Err(unreadable) => imported.left.unreadable.push(unreadable),
                }
                return Ok(());
            }
        }
        batch.bytes += row.message.request.body.bytes.len();
        batch.rows.push(ImportRow { row, origin });
        if batch.rows.len() >= ROWS_MAX || batch.bytes >= COMMIT_BYTES {
            self.flush(batch, imported)?;
        }
        Ok(())
    }

    fn flush(&self, batch: &mut RowBatch, imported: &mut Imported) -> Result<(), TakeoverError> {
        let rows = std::mem::take(batch).rows;
        if !rows.is_empty() {
            imported.messages += self.ledger.import(rows, self.store)?;
        }
        Ok(())
    }

    /// Returns a body that is a file.
    fn body(
        &self,
        bundle: &ImportedBundle<'_>,
        record: &FleetRecord,
        file: &ShippedFile,
    ) -> Result<Result<Body, UnreadableObject>, TakeoverError> {
        let mut bytes = Vec::new();
        let read = self.reader.file(bundle.stream, record.reference.message, file, |part| {
            bytes.extend_from_slice(part);
            Ok::<(), TakeoverError>(())
        })?;
        Ok(read.map(|()| Body::new(bytes, record.message.request.body.encoding)))
    }

    /// Stores a message with the file that it uploads; returns whether it was new.
    fn attach(
        &self,
        bundle: &ImportedBundle<'_>,
        record: &FleetRecord,
        file: &ShippedFile,
        row: ImportRow,
    ) -> Result<Result<u64, UnreadableObject>, TakeoverError> {
        if self.store.is_salvaged(&row.row.row)? {
            return Ok(Ok(0));
        }
        let mut writer = AttachmentWriter::begin(self.store, Some(file.attachment.bytes))?;
        let read = self.reader.file(bundle.stream, record.reference.message, file, |part| {
            writer.write(part).map_err(TakeoverError::from)
        })?;
        if let Err(unreadable) = read {
            return Ok(Err(unreadable));
        }
        let new = writer.register_by(|store, upload, attachment| -> Result<u64, StoreError> {
            let mut row = row;
            row.row.file = Some((upload, *attachment));
            self.ledger.import(vec![row], store)
        })?;
        Ok(Ok(new))
    }
}
