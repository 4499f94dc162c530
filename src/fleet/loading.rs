//! Puts chosen messages of a store into the depot: their files first, then the bundles that name them.

use ring::digest::{SHA256, digest};
use uuid::Uuid;

use super::bundle::{BundleBuilder, PlainBundle, Pushed};
use super::names::{ObjectName, StreamId};
use super::object_names::depot_name;
use super::record::{
    FILE_PART_BYTES, FileContent, FleetRecord, INLINE_BODY_BYTES_MAX, MessageRef, RecordState, ShippedFile,
};
use super::reference::withhold;
use super::seals::Seals;
use crate::depot::{Depot, DepotError};
use crate::message::{Attachment, MessageId, MessageStatus, Sha256};
use crate::store::attachment::PIECE_BYTES;
use crate::store::{Store, StoreError, StoredMessage};

/// Messages that are read from the store at a time.
const READ_AT_ONCE: usize = 64;

/// Why messages could not be put into the depot.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The depot did not take an object.
    #[error("{error}")]
    Depot {
        /// The error.
        error: DepotError,
        /// Whether a bundle may be in the depot.
        may_be_there: bool,
    },
    /// One of the bundles is not in the depot, which was only looked at.
    #[error("it is not in the depot")]
    NotThere,
}

/// The result of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The number of the bundle after the last one.
    pub next_bundle: u32,
    /// Messages in the bundles.
    pub messages: u64,
}

/// Loads the messages of one stream.
pub struct Loader<'a> {
    /// Where the messages are.
    pub store: &'a dyn Store,
    /// Where they go.
    pub depot: &'a dyn Depot,
    /// How they are sealed.
    pub seals: &'a Seals,
    /// The stream.
    pub stream: StreamId,
    /// Whether nothing is put: it is looked whether the bundles are there.
    pub only_looks: bool,
    /// The fleet under whose id secrets are named instead of being shipped, if they are.
    pub names_secrets_in: Option<Uuid>,
}

impl Loader<'_> {
    /// Puts these messages into the depot, in this order, in bundles from this number on. Those that the store no longer
    /// has are left out.
    ///
    /// # Errors
    ///
    /// [`LoadError`]: the call is idempotent, a retry is safe.
    pub fn load(&self, ids: &[MessageId], first: u32) -> Result<Loaded, LoadError> {
        let mut loaded = Loaded { next_bundle: first, messages: 0 };
        let mut builder = BundleBuilder::new();
        for message in ids.chunks(READ_AT_ONCE).flat_map(|ids| self.read(ids)) {
            let message = message?;
            let record = self.record(message, loaded.next_bundle > first)?;
            let taken = match builder.push(&record) {
                Ok(Pushed::Full) => {
                    let full = std::mem::take(&mut builder);
                    self.put_bundle(full.finish(), first, &mut loaded)?;
                    builder.push(&record).map(|_| ())
                }
                pushed => pushed.map(|_| ()),
            };
            if let Err(error) = taken {
                let error = DepotError::Unusable { at: self.depot.describe().url, reason: error.to_string() };
                return Err(LoadError::Depot { error, may_be_there: loaded.next_bundle > first });
            }
        }
        self.put_bundle(builder.finish(), first, &mut loaded)?;
        Ok(loaded)
    }

    /// Returns messages whole: some from each snapshot, because each may have a large body.
    fn read(&self, ids: &[MessageId]) -> Vec<Result<StoredMessage, StoreError>> {
        match self.store.whole(ids) {
            Ok(messages) => messages.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        }
    }

    fn put_bundle(&self, bundle: Option<PlainBundle>, first: u32, loaded: &mut Loaded) -> Result<(), LoadError> {
        let Some(bundle) = bundle else { return Ok(()) };
        let name = ObjectName::Bundle(self.stream, bundle.manifest.name(loaded.next_bundle));
        self.put(&name, &bundle.bytes, loaded.next_bundle > first)?;
        loaded.messages += u64::from(bundle.manifest.messages);
        loaded.next_bundle = loaded.next_bundle.saturating_add(1);
        Ok(())
    }

    /// Puts an object. That it is there already is a repeat after an unknown outcome, or after a crash.
    fn put(&self, name: &ObjectName, plain: &[u8], was_put: bool) -> Result<(), LoadError> {
        let failed = |error: DepotError| {
            let is_unknown = matches!(error, DepotError::UnknownOutcome { .. });
            let is_bundle = matches!(name, ObjectName::Bundle(..));
            LoadError::Depot { error, may_be_there: was_put || is_unknown && is_bundle }
        };
        if self.only_looks {
            return self.look_for(name);
        }
        let unsealed = |error: crate::sealing::SealError| {
            failed(DepotError::Unusable { at: self.depot.describe().url, reason: error.to_string() })
        };
        let sealed = self.seals.seal(plain).map_err(unsealed)?;
        let name = depot_name(name).map_err(failed)?;
        self.depot.create(&name, &sealed).map_err(failed)?;
        Ok(())
    }

    /// Finds a bundle that a process has put before it was ended. Its name tells it: records of the same messages have
    /// the same sizes and times. Files are put before their bundle.
    fn look_for(&self, name: &ObjectName) -> Result<(), LoadError> {
        let failed = |error| LoadError::Depot { error, may_be_there: true };
        if !matches!(name, ObjectName::Bundle(..)) {
            return Ok(());
        }
        let found = self.depot.get(&depot_name(name).map_err(failed)?);
        match found {
            Ok(Some(_)) => Ok(()),
            // What is missing is refused to clients without a right to list.
            Ok(None) | Err(DepotError::NotAuthorised { .. }) => Err(LoadError::NotThere),
            // It is there, whatever became of it.
            Err(DepotError::Damaged { .. } | DepotError::TooNew { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Returns the record of a message whose file, if it has one, is in the depot by now.
    fn record(&self, mut stored: StoredMessage, was_put: bool) -> Result<FleetRecord, LoadError> {
        let StoredMessage { listed, request, position, .. } = &mut stored;
        let (position, attempts) = (*position, listed.attempts);
        let reference = MessageRef::of(listed.id);
        let file = match listed.attachment.take() {
            Some(attachment) => Some(self.put_attachment(listed.id, reference.message, attachment, was_put)?),
            None if request.body.bytes.len() > INLINE_BODY_BYTES_MAX => {
                Some(self.put_body(reference.message, &std::mem::take(&mut request.body.bytes), was_put)?)
            }
            None => None,
        };
        let state = match (listed.status, listed.answer.take()) {
            (MessageStatus::Held, Some(answer)) => RecordState::Held(answer),
            (MessageStatus::Rejected, Some(answer)) => RecordState::Rejected(answer),
            _ => RecordState::Waiting,
        };
        let message = stored.into_message();
        let mut record = FleetRecord { reference, position, message, fingerprint: None, attempts, state, file };
        if let Some(fleet) = self.names_secrets_in {
            withhold(fleet, &mut record, |_| true);
        }
        Ok(record)
    }

    fn put_attachment(
        &self,
        id: MessageId,
        message: u64,
        attachment: Attachment,
        was_put: bool,
    ) -> Result<ShippedFile, LoadError> {
        let file = ShippedFile::new(FileContent::Attachment, attachment);
        let pieces_each = (FILE_PART_BYTES / PIECE_BYTES) as u32;
        for number in 0..file.parts {
            let mut part = Vec::with_capacity(FILE_PART_BYTES);
            for piece in number * pieces_each..(number + 1) * pieces_each {
                match self.store.piece(id, piece)? {
                    Some(bytes) => part.extend_from_slice(&bytes),
                    None => break,
                }
            }
            self.put(&ObjectName::File { stream: self.stream, message, number }, &part, was_put)?;
        }
        Ok(file)
    }

    fn put_body(&self, message: u64, body: &[u8], was_put: bool) -> Result<ShippedFile, LoadError> {
        let mut sha256 = [0; Sha256::LEN];
        sha256.copy_from_slice(digest(&SHA256, body).as_ref());
        let attachment = Attachment { bytes: body.len() as u64, sha256: Sha256::new(sha256) };
        let file = ShippedFile::new(FileContent::Body, attachment);
        for (number, part) in (0..).zip(body.chunks(FILE_PART_BYTES)) {
            self.put(&ObjectName::File { stream: self.stream, message, number }, part, was_put)?;
        }
        Ok(file)
    }
}
