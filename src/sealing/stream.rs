//! The payload of the `age` format: chunks of 64 KiB, each encrypted, numbered, and the last one marked.

use std::io::{self, BufReader, Read, Write};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use zeroize::Zeroizing;

use super::error::SealError;
use super::header::{self, FileKey};
use super::keys::{Identity, Recipient, random};

/// Bytes of contents in a chunk; only the last one may have fewer.
const CHUNK_BYTES: usize = 64 * 1024;
const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 16;

/// Returns how many bytes sealed contents have, without the header.
pub(super) fn sealed_bytes(plain: usize) -> usize {
    NONCE_BYTES + plain + plain.div_ceil(CHUNK_BYTES).max(1) * TAG_BYTES
}

/// Returns the nonce of a chunk: its number in 11 bytes, and whether it is the last one.
fn chunk_nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = u8::from(is_last);
    nonce.into()
}

/// Seals what is written to it. Holds one chunk in memory.
///
/// [`finish`](Self::finish) writes the end: without it, nothing of the last chunk is written, and what was written
/// does not open.
pub struct SealWriter<W: Write> {
    writer: W,
    cipher: ChaCha20Poly1305,
    /// Contents of the chunk that is being filled.
    chunk: Zeroizing<Vec<u8>>,
    number: u64,
}

impl<W: Write> SealWriter<W> {
    /// Writes the header, which seals for these recipients.
    ///
    /// # Errors
    ///
    /// [`SealError::NoRecipients`], [`SealError::TooManyRecipients`], [`SealError::Recipient`],
    /// [`SealError::Random`], and [`SealError::Io`] if it cannot be written.
    pub fn new(recipients: &[Recipient], mut writer: W) -> Result<Self, SealError> {
        let key = FileKey::random()?;
        let head = header::written(recipients, &key)?;
        let nonce = random::<NONCE_BYTES>()?;
        writer.write_all(&head).and_then(|()| writer.write_all(&nonce[..])).map_err(SealError::Io)?;
        let cipher = key.payload(&nonce[..]);
        // With room for the tag: a chunk that grows would leave a copy of its contents in memory.
        let chunk = Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES));
        Ok(Self { writer, cipher, chunk, number: 0 })
    }

    /// Writes the last chunk, and returns the writer, which is not flushed.
    ///
    /// # Errors
    ///
    /// If it cannot be written: what there is does not open.
    pub fn finish(mut self) -> io::Result<W> {
        self.write_chunk(true)?;
        Ok(self.writer)
    }

    fn write_chunk(&mut self, is_last: bool) -> io::Result<()> {
        let nonce = chunk_nonce(self.number, is_last);
        let tag = self.cipher.encrypt_inout_detached(&nonce, b"", (&mut self.chunk[..]).into());
        self.chunk.extend(tag.expect("a chunk is not too large for an AEAD"));
        self.number += 1;
        let written = self.writer.write_all(&self.chunk);
        self.chunk.clear();
        written
    }
}

impl<W: Write> Write for SealWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not before there is more: a full chunk may be the last one, which is marked.
        if self.chunk.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.write_chunk(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Flushes the writer below; the chunk that is being filled stays here.
    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Opens what it reads. Holds one chunk in memory, and returns nothing of a chunk before it is proved unchanged.
///
/// Only the end of the contents (a read of 0 bytes) proves that they are complete: a caller that acts on parts before
/// must be able to roll back. Errors of the contents are [`SealError`]s inside an [`io::Error`]; [`SealError::from_io`]
/// takes them out again. After an error every read fails.
pub struct OpenReader<R: Read> {
    reader: BufReader<R>,
    cipher: ChaCha20Poly1305,
    /// An opened chunk, and behind it what was read beyond it.
    chunk: Zeroizing<Vec<u8>>,
    /// The range of `chunk` that is decrypted and not returned yet.
    opened: std::ops::Range<usize>,
    number: u64,
    state: OpenState,
}

/// How far the contents are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenState {
    Within,
    /// The last chunk is opened.
    Ended,
    /// A chunk did not open.
    Failed,
}

impl<R: Read> OpenReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`SealError::NotSealed`], [`SealError::Armoured`], [`SealError::TooNew`], [`SealError::Header`],
    /// [`SealError::HeaderChanged`], [`SealError::NoIdentity`], [`SealError::Truncated`], and [`SealError::Io`].
    pub fn new(identities: &[Identity], reader: R) -> Result<Self, SealError> {
        let mut reader = BufReader::new(reader);
        let key = header::opened(&mut reader, identities)?;
        let nonce = header::payload_nonce(&mut reader)?;
        let chunk = Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES + 1));
        let (cipher, state) = (key.payload(&nonce), OpenState::Within);
        Ok(Self { reader, cipher, chunk, opened: 0..0, number: 0, state })
    }

    /// Opens the next chunk.
    fn next_chunk(&mut self) -> Result<(), SealError> {
        const SEALED: usize = CHUNK_BYTES + TAG_BYTES;
        // One byte beyond a full chunk was read: only the last chunk has none behind it.
        let beyond = self.chunk.get(SEALED).copied();
        self.chunk.clear();
        self.chunk.extend(beyond);
        let missing = (SEALED + 1 - self.chunk.len()) as u64;
        self.reader.by_ref().take(missing).read_to_end(&mut self.chunk).map_err(SealError::Io)?;
        let is_last = self.chunk.len() <= SEALED;
        let end = self.chunk.len().min(SEALED);
        let text = end.checked_sub(TAG_BYTES).ok_or(SealError::Truncated)?;
        let tag = Tag::try_from(&self.chunk[text..end]).expect("it has the length of a tag");
        let changed = SealError::Changed { at: self.number.saturating_mul(CHUNK_BYTES as u64) };
        if self.opens(text, &tag, is_last) {
            // Only empty contents have an empty last chunk: otherwise the one before would have been the last.
            if is_last && text == 0 && self.number > 0 {
                return Err(changed);
            }
            self.opened = 0..text;
            self.number += 1;
            self.state = if is_last { OpenState::Ended } else { OpenState::Within };
            return Ok(());
        }
        // The end was cut off exactly between two chunks.
        let is_cut = is_last && text == CHUNK_BYTES && self.opens(text, &tag, false);
        Err(if is_cut { SealError::Truncated } else { changed })
    }

    /// Opens this many bytes in place, or leaves them as they are.
    fn opens(&mut self, text: usize, tag: &Tag, is_last: bool) -> bool {
        let nonce = chunk_nonce(self.number, is_last);
        self.cipher.decrypt_inout_detached(&nonce, b"", (&mut self.chunk[..text]).into(), tag).is_ok()
    }
}

impl<R: Read> Read for OpenReader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.opened.is_empty() {
            match self.state {
                OpenState::Ended => return Ok(0),
                OpenState::Failed => return Err(io::Error::other("a part of it before did not open")),
                OpenState::Within => {}
            }
            if let Err(error) = self.next_chunk() {
                self.state = OpenState::Failed;
                return Err(match error {
                    SealError::Io(error) => error,
                    error => io::Error::new(io::ErrorKind::InvalidData, error),
                });
            }
        }
        let taken = bytes.len().min(self.opened.len());
        let from = self.opened.start;
        bytes[..taken].copy_from_slice(&self.chunk[from..from + taken]);
        self.opened.start += taken;
        Ok(taken)
    }
}
