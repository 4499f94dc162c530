//! Importing: the messages of a snapshot, in order, each once.

use ring::digest::{Context, SHA256};

use crate::message::{Attachment, MessageStatus, Sha256};
use crate::sdk::salvage::SalvageTarget;
use crate::shutdown::Shutdown;
use crate::store::attachment::AttachmentWriter;
use crate::store::{SalvagedRow, SnapshotMessage, SnapshotStep, Store, StoreError, StoreSnapshot, StoredMessage};

/// Messages in one commit.
const COMMIT_MESSAGES_MAX: usize = 256;
/// Bytes of bodies in one commit, unless one message has more.
const COMMIT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The outcome, by messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Messages that wait for replay.
    pub taken: u64,
    /// Messages that the server had rejected; they stay rejected.
    pub rejected: u64,
    /// Messages that were held; they stay held.
    pub held: u64,
    /// Messages that were moved before, from this file or from a copy of it.
    pub known: u64,
    /// Messages that are damaged; an estimate.
    pub unread: u64,
}

impl Moved {
    /// Returns how many messages are new.
    pub(crate) fn new_messages(&self) -> u64 {
        self.taken + self.rejected + self.held
    }
}

/// Why an import ended early.
pub(super) enum ImportError {
    /// The source cannot be read on.
    Source(StoreError),
    /// The other store cannot take a message.
    Target(StoreError),
    /// Shutdown was requested.
    Interrupted,
}

/// An import from one snapshot.
pub(super) struct Import<'a> {
    target: SalvageTarget<'a>,
    shutdown: &'a Shutdown,
    rows: Vec<SalvagedRow>,
    bytes: usize,
    moved: Moved,
    /// New messages of earlier runs, which the next run knows.
    stored: u64,
}

impl<'a> Import<'a> {
    pub(super) fn into(target: SalvageTarget<'a>, shutdown: &'a Shutdown) -> Self {
        Self { target, shutdown, rows: Vec::new(), bytes: 0, moved: Moved::default(), stored: 0 }
    }

    /// Stores every message of the snapshot that is not stored yet, or counts them in a dry run.
    ///
    /// After an error it may be run again, on another snapshot of the same messages.
    pub(super) fn run(&mut self, from: &mut StoreSnapshot) -> Result<Moved, ImportError> {
        self.rows.clear();
        self.bytes = 0;
        self.stored = if matches!(self.target, SalvageTarget::Store(_)) { self.moved.new_messages() } else { 0 };
        (self.moved.known, self.moved.unread) = (0, 0);
        if self.stored == 0 {
            self.moved = Moved::default();
        }
        if let SalvageTarget::Store(store) = self.target {
            // Before any create that they are about.
            let (updates, unsure_before_ms) = from.updates_ahead().map_err(ImportError::Source)?;
            if !updates.is_empty() || unsure_before_ms > 0 {
                store.note_updates_ahead(&updates, unsure_before_ms).map_err(ImportError::Target)?;
            }
        }
        loop {
            if self.shutdown.is_requested() {
                return Err(ImportError::Interrupted);
            }
            match from.next_step().map_err(ImportError::Source)? {
                SnapshotStep::Message(message) => self.take(from, *message)?,
                SnapshotStep::Unreadable(..) => self.moved.unread += 1,
                SnapshotStep::End => break,
            }
        }
        self.commit().map_err(ImportError::Target)?;
        Ok(Moved { known: self.moved.known.saturating_sub(self.stored), ..self.moved })
    }

    fn take(&mut self, from: &StoreSnapshot, message: SnapshotMessage) -> Result<(), ImportError> {
        let row = digest(&message.stored);
        if self.target.knows(&row).map_err(ImportError::Target)? {
            self.moved.known += 1;
            return Ok(());
        }
        let id = message.stored.listed.id;
        let file = message.stored.listed.attachment;
        let row = row_of(row, message);
        let Some(file) = file else {
            self.bytes += row.message.request.body.bytes.len();
            self.rows.push(row);
            if self.rows.len() >= COMMIT_MESSAGES_MAX || self.bytes >= COMMIT_BYTES_MAX {
                self.commit().map_err(ImportError::Target)?;
            }
            return Ok(());
        };
        // Its bytes have a commit of their own, which must not overtake earlier messages.
        self.commit().map_err(ImportError::Target)?;
        let SalvageTarget::Store(store) = self.target else {
            self.count(&row, true);
            return Ok(());
        };
        let mut writer = AttachmentWriter::begin(store, Some(file.bytes)).map_err(ImportError::Target)?;
        for number in 0.. {
            if self.shutdown.is_requested() {
                return Err(ImportError::Interrupted);
            }
            let piece = match from.piece(id, number) {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                // It costs this message and no other.
                Err(StoreError::Damaged { .. }) if writer.bytes() < file.bytes => break,
                Err(error) => return Err(ImportError::Source(error)),
            };
            writer.write(&piece).map_err(ImportError::Target)?;
        }
        self.attach(writer, file, row)
    }

    /// Stores a message with the file that was written, if that is the file that was stored.
    fn attach(
        &mut self,
        writer: AttachmentWriter<&dyn Store>,
        expected: Attachment,
        row: SalvagedRow,
    ) -> Result<(), ImportError> {
        let mut is_damaged = false;
        let stored = writer.register_by(|store, id, file| {
            is_damaged = *file != expected;
            match is_damaged {
                true => Err(StoreError::AttachmentGone),
                false => store.salvage(&[SalvagedRow { file: Some((id, *file)), ..row.clone() }]),
            }
        });
        match stored {
            Ok(ids) => self.count(&row, ids.iter().all(Option::is_some)),
            Err(_) if is_damaged => self.moved.unread += 1,
            Err(error) => return Err(ImportError::Target(error)),
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let is_new: Vec<bool> = match self.target {
            SalvageTarget::Store(store) => store.salvage(&rows)?.into_iter().map(|id| id.is_some()).collect(),
            SalvageTarget::DryRun(_) => vec![true; rows.len()],
        };
        rows.iter().zip(is_new).for_each(|(row, is_new)| self.count(row, is_new));
        Ok(())
    }

    fn count(&mut self, row: &SalvagedRow, is_new: bool) {
        let moved = &mut self.moved;
        let counter = match (is_new, row.status().0) {
            // Another process moves the same store at the same time.
            (false, _) => &mut moved.known,
            (true, MessageStatus::Rejected) => &mut moved.rejected,
            (true, MessageStatus::Held) => &mut moved.held,
            (true, _) => &mut moved.taken,
        };
        *counter += 1;
    }
}

fn row_of(row: Sha256, message: SnapshotMessage) -> SalvagedRow {
    let SnapshotMessage { stored, was_in_flight } = message;
    SalvagedRow { was_in_flight, ..stored.into_salvaged(row) }
}

/// Returns what identifies a message in its store and in every copy of that store.
///
/// A store has no name that a copy shares, so the digest is that of the message itself: its id, when it was accepted,
/// where it goes, and what is sent. The credential is not part of it: another key makes it no other message.
fn digest(stored: &StoredMessage) -> Sha256 {
    let StoredMessage { listed, request, .. } = stored;
    let server = listed.lane.server.as_ref().map_or("", |server| server.base_url());
    let mut digest = Context::new(&SHA256);
    digest.update(b"message of a moved store\0");
    digest.update(&listed.id.0.to_le_bytes());
    digest.update(&listed.accepted_at_ms.to_le_bytes());
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(server.as_bytes());
    part(listed.lane.workspace.as_deref().unwrap_or_default().as_bytes());
    part(listed.message_type.name().as_bytes());
    part(request.method.as_bytes());
    part(request.path.as_bytes());
    part(&request.headers.to_wire());
    part(&request.body.bytes);
    part(listed.attachment.as_ref().map_or(&[][..], |file| file.sha256.as_bytes()));
    let mut bytes = [0; Sha256::LEN];
    bytes.copy_from_slice(digest.finish().as_ref());
    Sha256::new(bytes)
}
