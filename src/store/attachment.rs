//! The bytes of an attachment as one stream: written piece by piece while they arrive, read from any place.
//!
//! Knows no engine, and holds one piece in memory however large the file is.

use std::io;
use std::ops::{Deref, Range};

use ring::digest::{Context, SHA256};
use tracing::warn;

use super::error::StoreError;
use super::traits::{Attachments, Store};
use super::work::AttachmentId;
use crate::message::{Attachment, Message, MessageId, Sha256};

/// Bytes of a piece: large enough that a file of 500 MB costs a thousand commits, small enough that nobody waits for
/// one.
pub const PIECE_BYTES: usize = 512 * 1024;

/// Writes the bytes of an attachment while they arrive. Dropped before it was registered, it removes them.
///
/// `S` is what the store is reached by: `&dyn Store` or `Arc<dyn Store>`.
pub struct AttachmentWriter<S>
where
    S: Deref,
    S::Target: Attachments,
{
    store: S,
    attachment: AttachmentId,
    /// The bytes received since the last whole piece.
    rest: Vec<u8>,
    pieces: u32,
    bytes: u64,
    digest: Context,
    is_registered: bool,
}

impl<S> AttachmentWriter<S>
where
    S: Deref,
    S::Target: Attachments,
{
    /// Begins an attachment of `bytes_expected` bytes, if that is known.
    ///
    /// # Errors
    ///
    /// As [`Attachments::begin_attachment`].
    pub fn begin(store: S, bytes_expected: Option<u64>) -> Result<Self, StoreError> {
        let attachment = store.begin_attachment(bytes_expected)?;
        let digest = Context::new(&SHA256);
        Ok(Self { store, attachment, rest: Vec::new(), pieces: 0, bytes: 0, digest, is_registered: false })
    }

    /// Adds the next bytes, as many as there are.
    ///
    /// # Errors
    ///
    /// As [`Attachments::add_piece`]. The attachment is then unusable.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.bytes += bytes.len() as u64;
        self.digest.update(bytes);
        while self.rest.len() + bytes.len() >= PIECE_BYTES {
            let (now, later) = bytes.split_at(PIECE_BYTES - self.rest.len());
            self.rest.extend_from_slice(now);
            self.add_rest()?;
            bytes = later;
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// Returns how many bytes were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores the message whose file this is; both are durable when this returns.
    ///
    /// # Errors
    ///
    /// As [`Attachments::register_attachment`]; the bytes are removed.
    pub fn register(self, message: &Message) -> Result<MessageId, StoreError> {
        self.register_by(|store, attachment, file| store.register_attachment(attachment, file, message))
    }

    /// The same by another verb of the store.
    ///
    /// # Errors
    ///
    /// Those of `register`; the bytes are removed.
    pub fn register_by<T>(
        mut self,
        register: impl FnOnce(&S::Target, AttachmentId, &Attachment) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if !self.rest.is_empty() {
            self.add_rest()?;
        }
        let mut sha256 = [0; Sha256::LEN];
        sha256.copy_from_slice(self.digest.clone().finish().as_ref());
        let file = Attachment { bytes: self.bytes, sha256: Sha256::new(sha256) };
        let registered = register(&self.store, self.attachment, &file)?;
        self.is_registered = true;
        Ok(registered)
    }

    fn add_rest(&mut self) -> Result<(), StoreError> {
        self.store.add_piece(self.attachment, self.pieces, &self.rest)?;
        self.pieces += 1;
        self.rest.clear();
        Ok(())
    }
}

impl<S> Drop for AttachmentWriter<S>
where
    S: Deref,
    S::Target: Attachments,
{
    fn drop(&mut self) {
        if self.is_registered {
            return;
        }
        if let Err(error) = self.store.abandon_attachment(self.attachment) {
            // Nothing is lost by it: the store removes them itself after a while.
            warn!(target: "db_manager", "the bytes of an unfinished upload stay for now: {error}");
        }
    }
}

/// Reads a range of an attachment's bytes.
///
/// A failure of the store is an [`io::Error`] for the reader; [`AttachmentReader::failure`] returns the store's own
/// error.
pub struct AttachmentReader<'s> {
    store: &'s dyn Store,
    message: MessageId,
    left: Range<u64>,
    piece: Option<(u64, Vec<u8>)>,
    failure: Option<StoreError>,
}

impl<'s> AttachmentReader<'s> {
    /// Returns a reader of these bytes of a message's file.
    pub fn new(store: &'s dyn Store, message: MessageId, range: Range<u64>) -> Self {
        Self { store, message, left: range, piece: None, failure: None }
    }

    /// Returns why reading ended before the end of the range, if it did.
    pub fn failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    fn fill(&mut self) -> Result<&[u8], StoreError> {
        let piece_bytes = PIECE_BYTES as u64;
        let number = self.left.start / piece_bytes;
        if self.piece.as_ref().is_none_or(|(current, _)| *current != number) {
            let wanted = u32::try_from(number).map_err(|_| StoreError::AttachmentGone)?;
            let piece = self.store.piece(self.message, wanted)?.ok_or(StoreError::AttachmentGone)?;
            self.piece = Some((number, piece));
        }
        let start = usize::try_from(self.left.start % piece_bytes).expect("smaller than a piece");
        let piece = self.piece.as_ref().map_or(&[][..], |(_, piece)| piece.as_slice());
        match piece.get(start..) {
            Some(rest) if !rest.is_empty() => Ok(rest),
            _ => Err(StoreError::AttachmentGone),
        }
    }
}

impl io::Read for AttachmentReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.left.end.saturating_sub(self.left.start);
        if left == 0 || into.is_empty() {
            return Ok(0);
        }
        let wanted = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = match self.fill() {
            Ok(rest) => {
                let read = rest.len().min(wanted);
                into[..read].copy_from_slice(&rest[..read]);
                read
            }
            Err(error) => {
                let words = io::Error::other(error.to_string());
                self.failure = Some(error);
                return Err(words);
            }
        };
        self.left.start += read as u64;
        Ok(read)
    }
}
