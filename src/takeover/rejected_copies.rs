//! Copies of messages that the server rejected: their bundles will be deleted, and the copies stay until somebody retries
//! them or deletes them.
//!
//! A copy of a message that is retried goes once its mark is durable; if the server rejects it again, the new answer
//! replaces the old one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest::{SHA256, digest};

use super::key_folder::KeyFolder;
use super::keys::FleetKeys;
use super::objects::name_of;
use crate::depot::{Created, Depot, DepotError};
use crate::fleet::bundle::{RecordTooLarge, encode_bundle};
use crate::fleet::names::{ObjectName, StreamId, WorkspaceName};
use crate::fleet::record::{FILE_PART_BYTES, FileContent, FleetRecord, MessageRef, ShippedFile};
use crate::fleet::seals::Seals;
use crate::message::{Attachment, Body, Sha256};
use crate::sealing::SealError;

/// Encrypts, writes and deletes copies of rejected messages.
pub(super) struct RejectedCopies {
    depot: Arc<dyn Depot>,
    seals: Seals,
    folder: Arc<KeyFolder>,
    /// The copies of messages that are being retried.
    retried: Mutex<HashMap<(StreamId, MessageRef), ObjectName>>,
}

impl RejectedCopies {
    pub(super) fn new(depot: Arc<dyn Depot>, keys: &FleetKeys) -> Self {
        Self { depot, seals: keys.seals.clone(), folder: keys.folder.clone(), retried: Mutex::default() }
    }

    fn retried(&self) -> MutexGuard<'_, HashMap<(StreamId, MessageRef), ObjectName>> {
        self.retried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sealed<'bytes>(&self, plain: &'bytes [u8]) -> Result<Cow<'bytes, [u8]>, DepotError> {
        let unusable =
            |error: SealError| DepotError::Unusable { at: self.depot.describe().url, reason: error.to_string() };
        self.seals.seal(plain).map_err(unusable)
    }

    /// Copies a rejected message.
    ///
    /// # Errors
    ///
    /// If the depot can't be used: a retry is safe.
    pub(super) fn keep(&self, stream: StreamId, mut record: FleetRecord) -> Result<(), DepotError> {
        self.folder.withhold(&mut record);
        let name = copy_name(stream, &record);
        let plain = match encode_bundle(std::slice::from_ref(&record)) {
            Ok(Some(bundle)) => bundle.bytes,
            Ok(None) => return Ok(()),
            Err(RecordTooLarge { .. }) => match self.with_file(stream, &record)? {
                Some(bytes) => bytes,
                None => return Ok(()),
            },
        };
        self.put(&name, &self.sealed(&plain)?)?;
        let replaced = self.retried().remove(&(stream, record.reference));
        match replaced.filter(|old| *old != name) {
            Some(old) => self.depot.delete(&[name_of(&old)]),
            None => Ok(()),
        }
    }

    /// Writes a copy; over an earlier one of the same name, whose message was retried.
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), DepotError> {
        let is_replaced = self.retried().values().any(|old| old == name);
        let name = name_of(name);
        if self.depot.create(&name, bytes)? == Created::AlreadyThere
            && is_replaced
            && let Some((_, version)) = self.depot.get(&name)?
        {
            match self.depot.swap(&name, Some(&version), bytes) {
                // Whoever was faster has written an answer to the same message.
                Ok(_) | Err(DepotError::Lost { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Copies the body of a message that is too large for a bundle: as a file, in parts. Returns the rest as a bundle.
    fn with_file(&self, stream: StreamId, record: &FleetRecord) -> Result<Option<Vec<u8>>, DepotError> {
        let body = &record.message.request.body;
        let message = record.reference.message;
        for (number, part) in (0..).zip(body.bytes.chunks(FILE_PART_BYTES)) {
            let part_name = name_of(&ObjectName::File { stream, message, number });
            // The agent may have shipped it as the same file.
            self.depot.create(&part_name, &self.sealed(part)?)?;
        }
        let digest = digest(&SHA256, &body.bytes);
        let mut sha256 = [0; Sha256::LEN];
        sha256.copy_from_slice(digest.as_ref());
        let file = Attachment { bytes: body.bytes.len() as u64, sha256: Sha256::new(sha256) };
        let mut small = record.clone();
        small.message.request.body = Body::new(Vec::new(), body.encoding);
        small.file = Some(ShippedFile::new(FileContent::Body, file));
        Ok(encode_bundle(&[small]).ok().flatten().map(|bundle| bundle.bytes))
    }

    /// Notes that a rejected message is retried. Idempotent.
    pub(super) fn retry(&self, stream: StreamId, record: &FleetRecord) {
        self.retried().insert((stream, record.reference), copy_name(stream, record));
    }

    /// Deletes the copy of a message that was retried, and whose mark is durable.
    ///
    /// # Errors
    ///
    /// If the depot can't be used: a retry is safe.
    pub(super) fn settled(&self, stream: StreamId, reference: &MessageRef) -> Result<(), DepotError> {
        let name = self.retried().get(&(stream, *reference)).cloned();
        if let Some(name) = name {
            self.depot.delete(&[name_of(&name)])?;
            self.retried().remove(&(stream, *reference));
        }
        Ok(())
    }

    /// Forgets the messages of a stream.
    pub(super) fn forget(&self, stream: StreamId) {
        self.retried().retain(|(of, _), _| *of != stream);
    }
}

/// Returns the name of the copy of a rejected message.
fn copy_name(stream: StreamId, record: &FleetRecord) -> ObjectName {
    ObjectName::Rejected {
        workspace: WorkspaceName::of(&record.message.lane),
        stream,
        number: part_number(&record.reference),
        status: record.state.answer().and_then(|answer| answer.status).unwrap_or(0),
        message: record.reference.message,
    }
}

/// Returns the number that tells parts of one message apart among the rejected ones: of a part the beginning of its
/// digest, so that a retry writes the same name.
fn part_number(reference: &MessageRef) -> u32 {
    reference.part.map_or(0, |part| {
        let mut number = [0; 4];
        number.copy_from_slice(&part.as_bytes()[..4]);
        u32::from_be_bytes(number).max(1)
    })
}
