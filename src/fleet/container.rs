//! The layout that bundles and marks share: pieces that are compressed and checked one by one.
//!
//! ```text
//! start | piece* | start
//! start     = magic (8) | format u16 | program (text, padded to 32) | CRC-32 of these
//! piece     = sync (4) | kind u8 | raw length u32 | stored length u32 | CRC-32 of the head | CRC-32 of what is stored | stored
//! kinds     = 0 manifest (number of records u64, CRC-32 of the dictionary, JSON)   1 dictionary   2 record   3 end
//! ```
//!
//! All numbers are little-endian. Every piece is a zstd frame of its own. Those of records share a dictionary: a static
//! one of JSON names, followed by the first records of the same object, which is stored beside them. So an object is
//! nearly as small as if it were compressed as a whole, and a flipped bit costs one record: the reader finds the next
//! piece by its sync bytes. Start, manifest and dictionary are stored twice, at both ends. Every format begins with the
//! same start, so that a reader can name the version that it lacks.
//!
//! # Bounds
//!
//! A reader allocates at most the raw length of one piece, which must not exceed the limit of its kind, and decodes at
//! most [`ReadLimit::total`] bytes. A larger claim counts as corrupt. Searching for the next piece after damage is bounded, too: a
//! piece is checked only if the checksum of its head matches, and only [`CHECKED_FACTOR`] times the object's length
//! is ever checked.

use libdeflater::crc32;
use zstd::bulk::{Compressor, Decompressor};

/// The static part of the dictionary of records: the names in Opik's JSON. Never edited,
/// because objects depend on it; another one needs another format.
const DICTIONARY: &[u8] = include_bytes!("../store/sqlite/dictionary-1.json");
/// zstd's fastest level: what is shipped waits for the depot, not for the processor, and the agent shares its machine.
const LEVEL: i32 = 1;
/// How much of the first records becomes the dictionary of all, in bytes.
const SAMPLE_BYTES_MAX: usize = 16 * 1024;
/// With fewer records, a dictionary of their own would cost more than it saves.
const SAMPLED_RECORDS_MIN: usize = 16;

const SYNC: [u8; 4] = [0xf1, b'O', b'p', 0xe7];
const HEAD_BYTES: usize = 4 + 1 + 4 + 4 + 4 + 4;
/// How many times the length of an object its bytes are checked at most, in all.
const CHECKED_FACTOR: usize = 16;
/// The longest program version that is kept, in bytes.
const PROGRAM_BYTES_MAX: usize = 32;
const START_BYTES: usize = 8 + 2 + PROGRAM_BYTES_MAX + 4;

/// The limits of a reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadLimit {
    /// The largest piece, decoded, in bytes.
    pub(super) piece: usize,
    /// All pieces together, decoded, in bytes.
    pub(super) total: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PieceKind {
    Manifest = 0,
    Dictionary = 1,
    Record = 2,
    End = 3,
}

impl PieceKind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Manifest, Self::Dictionary, Self::Record, Self::End].into_iter().find(|kind| *kind as u8 == code)
    }
}

/// Why an object as a whole can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadObject {
    /// It is something else, or its first bytes are damaged.
    #[error("it is not {expected} of opik-offline, or its beginning is damaged")]
    NotOurs {
        /// The expected kind of object.
        expected: &'static str,
    },
    /// A newer version wrote it, in a format that this one can't read. It must be left as it is.
    #[error("it has format {format}, written by opik-offline {program}; this version reads formats up to {known}")]
    TooNew {
        /// Its format.
        format: u16,
        /// The version of opik-offline that wrote it, harmless to print.
        program: String,
        /// The newest format that this version reads.
        known: u16,
    },
    /// Nothing in it is readable, or it claims to be larger than any object is.
    #[error("it is damaged: {reason}")]
    Damaged {
        /// The reason.
        reason: &'static str,
    },
}

/// Identifies what an object is.
#[derive(Clone, Copy, Debug)]
pub(super) struct ObjectKind {
    pub(super) magic: [u8; 8],
    /// The newest format that this version reads, and the one that it writes.
    pub(super) format: u16,
    /// Its name with an article.
    pub(super) name: &'static str,
}

/// Encodes an object of these records.
pub(super) fn write(kind: ObjectKind, manifest: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let start = start_of(kind, env!("CARGO_PKG_VERSION"));
    let mut bytes = start.clone();
    let sample = sample_of(records);
    let manifest = [&(records.len() as u64).to_le_bytes()[..], &crc32(&sample).to_le_bytes(), manifest].concat();
    let mut around = PieceWriter::new(&[]);
    let mut ends = |bytes: &mut Vec<u8>| {
        around.write(bytes, PieceKind::Manifest, &manifest);
        if !sample.is_empty() {
            around.write(bytes, PieceKind::Dictionary, &sample);
        }
    };
    ends(&mut bytes);
    let mut inner = PieceWriter::new(&sample);
    for record in records {
        inner.write(&mut bytes, PieceKind::Record, record);
    }
    ends(&mut bytes);
    around.write(&mut bytes, PieceKind::End, &[]);
    bytes.extend_from_slice(&start);
    bytes
}

/// Returns the first and last bytes of an object.
fn start_of(kind: ObjectKind, program: &str) -> Vec<u8> {
    let mut start = kind.magic.to_vec();
    start.extend_from_slice(&kind.format.to_le_bytes());
    start.extend(program.bytes().take(PROGRAM_BYTES_MAX));
    start.resize(START_BYTES - 4, 0);
    let checksum = crc32(&start);
    start.extend_from_slice(&checksum.to_le_bytes());
    start
}

/// Returns the beginning of the first records, from which the others can be compressed.
fn sample_of(records: &[Vec<u8>]) -> Vec<u8> {
    let mut sample = Vec::new();
    if records.len() < SAMPLED_RECORDS_MIN {
        return sample;
    }
    for record in records {
        let room = SAMPLE_BYTES_MAX - sample.len();
        sample.extend_from_slice(&record[..record.len().min(room).min(SAMPLE_BYTES_MAX / 4)]);
        if sample.len() == SAMPLE_BYTES_MAX {
            break;
        }
    }
    sample
}

fn dictionary_with(sample: &[u8]) -> Vec<u8> {
    [DICTIONARY, sample].concat()
}

struct PieceWriter(Option<Compressor<'static>>);

impl PieceWriter {
    fn new(sample: &[u8]) -> Self {
        Self(Compressor::with_dictionary(LEVEL, &dictionary_with(sample)).ok())
    }

    fn write(&mut self, bytes: &mut Vec<u8>, kind: PieceKind, raw: &[u8]) {
        let compressed = self.0.as_mut().and_then(|compressor| compressor.compress(raw).ok());
        // Without memory for the compressor's tables: a zstd frame without a dictionary, of raw blocks.
        let stored = compressed.unwrap_or_else(|| uncompressed_frame(raw));
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(&SYNC);
        head.push(kind as u8);
        head.extend_from_slice(&(raw.len() as u32).to_le_bytes());
        head.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        let of_head = crc32(&head);
        head.extend_from_slice(&of_head.to_le_bytes());
        head.extend_from_slice(&crc32(&stored).to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&stored);
    }
}

/// Returns a zstd frame of raw blocks (RFC 8878 section 3.1.1): correct without any memory for tables.
fn uncompressed_frame(raw: &[u8]) -> Vec<u8> {
    const BLOCK_BYTES_MAX: usize = 128 * 1024;
    // Magic number, then a single segment with a content size of 8 bytes.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    frame.extend_from_slice(&(raw.len() as u64).to_le_bytes());
    let mut rest = raw;
    loop {
        let (block, behind) = rest.split_at(rest.len().min(BLOCK_BYTES_MAX));
        let head = (block.len() as u32) << 3 | u32::from(behind.is_empty());
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
        rest = behind;
        if rest.is_empty() {
            return frame;
        }
    }
}

/// A piece of an object, checked but still compressed.
struct StoredPiece {
    kind: PieceKind,
    raw_bytes: usize,
    /// Where its stored bytes are.
    at: std::ops::Range<usize>,
}

/// A record that can't be used: it was damaged, or a newer version wrote it. The others of its object are unaffected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {position} can't be read: {reason}")]
pub struct BadRecord {
    /// Its position among the records of its object, from 0; where damage hides several, that of the first.
    pub position: u64,
    /// Its message's id, where that is readable.
    pub message: Option<u64>,
    /// Why, for people; contains nothing of the message.
    pub reason: &'static str,
}

/// One record of an object, or the damage in its place.
pub(super) enum ContainerRecord {
    /// The decoded bytes.
    Whole(Vec<u8>),
    /// One or more records are unreadable here.
    Bad(&'static str),
}

/// Reads the records of an object one by one.
pub(super) struct ContainerReader<'bytes> {
    bytes: &'bytes [u8],
    manifest: Vec<u8>,
    decoder: Option<Decompressor<'static>>,
    limit: ReadLimit,
    at: usize,
    /// Bytes that may still be decoded.
    decodable: usize,
    /// Bytes that may still be checked.
    checkable: usize,
    /// Records of which nothing was seen yet, as far as the manifest knows.
    unseen: u64,
    was_damaged: bool,
    has_ended: bool,
    /// Records and damaged places that were returned.
    position: u64,
}

impl<'bytes> ContainerReader<'bytes> {
    /// Opens an object.
    ///
    /// # Errors
    ///
    /// [`BadObject`] when it is another kind of object, a newer format, or when both copies of its manifest or of its
    /// dictionary are damaged.
    pub(super) fn open(kind: ObjectKind, bytes: &'bytes [u8], limit: ReadLimit) -> Result<Self, BadObject> {
        let start = read_start(kind, bytes)?;
        let mut reader = Self {
            bytes,
            manifest: Vec::new(),
            decoder: None,
            limit,
            at: start,
            decodable: limit.total,
            checkable: bytes.len().saturating_mul(CHECKED_FACTOR),
            unseen: 0,
            was_damaged: false,
            has_ended: false,
            position: 0,
        };
        let (manifest, samples) = reader.read_ends()?;
        let damaged = |reason| BadObject::Damaged { reason };
        let (records, rest) = manifest.split_first_chunk().ok_or(damaged("its manifest is cut short"))?;
        let (checksum, manifest) = rest.split_first_chunk().ok_or(damaged("its manifest is cut short"))?;
        reader.unseen = u64::from_le_bytes(*records);
        reader.manifest = manifest.to_vec();
        // With another dictionary, records would decode to something else.
        let is_right = |sample: &Vec<u8>| crc32(sample) == u32::from_le_bytes(*checksum);
        let sample = samples.into_iter().chain([Vec::new()]).find(is_right);
        reader.decoder = Some(decoder(&sample.ok_or(damaged("its dictionary is unreadable"))?)?);
        reader.at = start;
        reader.checkable = bytes.len().saturating_mul(CHECKED_FACTOR);
        Ok(reader)
    }

    /// Returns the first manifest that is readable, and the dictionaries.
    fn read_ends(&mut self) -> Result<(Vec<u8>, Vec<Vec<u8>>), BadObject> {
        let mut around = decoder(&[])?;
        let (mut manifest, mut samples) = (None, Vec::new());
        while let Some((piece, _)) = self.next_piece() {
            match piece.kind {
                PieceKind::Manifest if manifest.is_none() => {
                    manifest = self.decode(&mut around, &piece, self.limit.piece);
                }
                PieceKind::Dictionary if samples.len() < 2 => {
                    samples.extend(self.decode(&mut around, &piece, SAMPLE_BYTES_MAX));
                }
                PieceKind::Record if manifest.is_some() && !samples.is_empty() => break,
                PieceKind::Manifest | PieceKind::Dictionary | PieceKind::Record | PieceKind::End => {}
            }
        }
        let manifest = manifest.ok_or(BadObject::Damaged { reason: "its manifest is unreadable" })?;
        Ok((manifest, samples))
    }

    /// Returns the manifest.
    pub(super) fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// Returns the next record, decoded, or why that is not possible; `None` at the end.
    pub(super) fn next_decoded<T>(
        &mut self,
        decode: impl FnOnce(&[u8]) -> Result<T, (Option<u64>, &'static str)>,
    ) -> Option<Result<T, BadRecord>> {
        let piece = self.next()?;
        let position = self.position;
        self.position += 1;
        Some(match piece {
            ContainerRecord::Bad(reason) => Err(BadRecord { position, message: None, reason }),
            ContainerRecord::Whole(bytes) => {
                decode(&bytes).map_err(|(message, reason)| BadRecord { position, message, reason })
            }
        })
    }

    /// Returns the next record; `None` at the end. Damage is reported once where it is, and reading continues behind it.
    pub(super) fn next(&mut self) -> Option<ContainerRecord> {
        while !self.has_ended {
            let Some((piece, skipped)) = self.next_piece() else {
                self.has_ended = true;
                return Some(ContainerRecord::Bad("the object ends too early"));
            };
            if skipped {
                // The piece itself is read by the next call.
                self.at = piece.at.start - HEAD_BYTES;
                self.was_damaged = true;
                return Some(ContainerRecord::Bad("its bytes are damaged"));
            }
            match piece.kind {
                PieceKind::Manifest | PieceKind::Dictionary => {}
                PieceKind::Record => {
                    self.unseen = self.unseen.saturating_sub(1);
                    let mut decoder = self.decoder.take()?;
                    let raw = self.decode(&mut decoder, &piece, self.limit.piece);
                    self.decoder = Some(decoder);
                    return Some(raw.map_or(
                        ContainerRecord::Bad("it does not decode, or claims to be too large"),
                        ContainerRecord::Whole,
                    ));
                }
                PieceKind::End => {
                    self.has_ended = true;
                    if self.unseen > 0 && !self.was_damaged {
                        return Some(ContainerRecord::Bad("records are missing"));
                    }
                }
            }
        }
        None
    }

    /// Returns the next piece whose checksums are right, and whether bytes were skipped to find it.
    fn next_piece(&mut self) -> Option<(StoredPiece, bool)> {
        let begin = self.at;
        let mut from = begin;
        loop {
            let at = from + memchr::memmem::find(self.bytes.get(from..)?, &SYNC)?;
            if let Some(piece) = self.piece_at(at) {
                self.at = piece.at.end;
                return Some((piece, at != begin));
            }
            from = at + 1;
        }
    }

    fn piece_at(&mut self, at: usize) -> Option<StoredPiece> {
        let head: &[u8; HEAD_BYTES] = self.bytes.get(at..)?.first_chunk()?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (raw, stored, of_head, of_stored) = (number(5), number(9), number(13), number(17));
        let start = at + HEAD_BYTES;
        let end = start.checked_add(usize::try_from(stored).ok()?)?;
        let stored = self.bytes.get(start..end)?;
        if crc32(&head[..13]) != of_head {
            return None;
        }
        self.checkable = self.checkable.checked_sub(stored.len())?;
        let kind = PieceKind::from_code(head[4])?;
        let raw_bytes = usize::try_from(raw).ok()?;
        (crc32(stored) == of_stored).then_some(StoredPiece { kind, raw_bytes, at: start..end })
    }

    /// Parses a piece; `None` if it claims more than `raw_max` bytes or does not decode to what it claims.
    fn decode(&mut self, decoder: &mut Decompressor<'static>, piece: &StoredPiece, raw_max: usize) -> Option<Vec<u8>> {
        if piece.raw_bytes > raw_max {
            return None;
        }
        self.decodable = self.decodable.checked_sub(piece.raw_bytes)?;
        let raw = decoder.decompress(&self.bytes[piece.at.clone()], piece.raw_bytes).ok()?;
        (raw.len() == piece.raw_bytes).then_some(raw)
    }
}

fn decoder(sample: &[u8]) -> Result<Decompressor<'static>, BadObject> {
    let no_memory = |_| BadObject::Damaged { reason: "there is no memory to decode it" };
    Decompressor::with_dictionary(&dictionary_with(sample)).map_err(no_memory)
}

/// Checks the first bytes of an object, or the last ones if those are damaged; returns where its pieces begin.
fn read_start(kind: ObjectKind, bytes: &[u8]) -> Result<usize, BadObject> {
    let starts = [bytes.first_chunk::<START_BYTES>(), bytes.last_chunk::<START_BYTES>()];
    let found = starts.into_iter().flatten().find_map(|start| {
        let (content, checksum) = start.split_last_chunk::<4>()?;
        let rest = content.strip_prefix(&kind.magic)?;
        (crc32(content) == u32::from_le_bytes(*checksum)).then_some(rest)?.split_first_chunk::<2>()
    });
    let (format, program) = found.ok_or(BadObject::NotOurs { expected: kind.name })?;
    let format = u16::from_le_bytes(*format);
    if format > kind.format {
        let is_harmless = |byte: &&u8| byte.is_ascii_alphanumeric() || b".-+".contains(byte);
        let program = program.iter().filter(is_harmless).map(|byte| char::from(*byte)).collect();
        return Err(BadObject::TooNew { format, program, known: kind.format });
    }
    Ok(START_BYTES)
}

#[cfg(test)]
mod tests;
