//! Large bodies, written and read in place.
//!
//! A statement copies each value that is bound to it and builds the whole row beside that; a row that is read is in
//! memory beside the buffer it is copied to. For a body of 60 MB that meant three times its size on the way in and
//! twice on the way out. A blob handle has no copy of its own: bytes go from the caller's buffer straight into pages,
//! and from pages into the caller's buffer.
//!
//! # Reserving space without bytes
//!
//! A row is stored with space for its body (`zeroblob`). SQLite allocates that twice, once for the value and once for
//! the row, unless no later column has bytes: NULL has none, and neither have 0 and 1. So the row of a streamed body
//! has no checksum; the checksum follows the compressed bytes in a frame that every zstd decoder skips (RFC 8878,
//! section 3.1.2), including those of earlier releases, which deliver such a body without verifying it. The codec of a
//! sealed body is another number: an encrypted store needs that memory.

use std::io::{self, BufReader, BufWriter, Read, Write};

use rusqlite::blob::{Blob, ZeroBlob};
use rusqlite::{Connection, MAIN_DB, Transaction};
use zstd::stream::read::Decoder;

use super::codec::{Codec, DICTIONARY_1, Packed};
use super::fault::Fault;
use super::seal::KeptBody;

/// Bodies larger than this are large. [`super::record::SELECT_WITH_BODY`] has the same number.
const BYTES_MIN: usize = 256 * 1024;
/// The header of a skippable frame of eight bytes, which holds our checksum.
const CHECKSUM_FRAME: [u8; 8] = [0x5b, 0x2a, 0x4d, 0x18, 8, 0, 0, 0];
/// How much of a compressed body is read at once.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) fn is_large(bytes: &[u8]) -> bool {
    bytes.len() > BYTES_MIN
}

/// Returns the placeholder that [`fn@write`] or [`stream`] fills.
pub(super) fn room_of(bytes: usize) -> ZeroBlob {
    ZeroBlob(bytes as u64)
}

/// Fills the body of a message that was stored with space for it.
pub(super) fn write(tx: &Transaction<'_>, id: i64, bytes: &[u8]) -> Result<(), Fault> {
    let mut blob = tx.blob_open(MAIN_DB, c"bodies", c"body", id, false)?;
    blob.write_at(bytes, 0)?;
    Ok(blob.close()?)
}

/// Returns the placeholder that [`stream`] fills.
pub(super) fn room_of_stream(packed: &Packed) -> ZeroBlob {
    room_of(packed.len() + CHECKSUM_FRAME.len() + size_of::<i64>())
}

/// Returns the checksum of a body that is not sealed, from its column or from behind it.
pub(super) fn checksum_of(body: &KeptBody<'_>) -> Option<i64> {
    let is_compressed = body.codec == Codec::Zstd1 as i64;
    body.checksum.or_else(|| checksum_behind(&body.bytes).filter(|_| is_compressed))
}

fn checksum_behind(kept: &[u8]) -> Option<i64> {
    let (frame, checksum) = kept.last_chunk::<16>()?.split_first_chunk::<8>()?;
    (frame == &CHECKSUM_FRAME).then_some(checksum).and_then(|bytes| Some(i64::from_le_bytes(bytes.try_into().ok()?)))
}

/// Compresses a body into its row, with its checksum, without ever having the result whole in memory.
pub(super) fn stream(tx: &Transaction<'_>, id: i64, packed: &Packed, checksum: i64) -> Result<(), Fault> {
    let mut blob = Filled { blob: tx.blob_open(MAIN_DB, c"bodies", c"body", id, false)?, at: 0, failed: None };
    let streamed = {
        let mut pieces = BufWriter::with_capacity(PIECE_BYTES, &mut blob);
        packed.stream(&mut pieces).and_then(|()| {
            pieces.write_all(&CHECKSUM_FRAME)?;
            pieces.write_all(&checksum.to_le_bytes())?;
            pieces.flush()
        })
    };
    match (streamed, blob.failed.take()) {
        (_, Some(error)) => Err(error.into()),
        (Err(_), None) => Err(Fault::Sealing("a body cannot be compressed again")),
        // The result differs from the first run.
        (Ok(()), None) if blob.at != blob.blob.len() => {
            Err(Fault::Sealing("a body is compressed to another length than before"))
        }
        (Ok(()), None) => Ok(blob.blob.close()?),
    }
}

/// A blob that is written from its beginning. Keeps the engine's own error, which tells a full disk.
struct Filled<'c> {
    blob: Blob<'c>,
    at: usize,
    failed: Option<rusqlite::Error>,
}

impl Write for Filled<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.blob.write_at(bytes, self.at) {
            Ok(()) => {
                self.at += bytes.len();
                Ok(bytes.len())
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the body of a message as it is stored.
pub(super) fn read(connection: &Connection, id: i64) -> Result<Vec<u8>, Fault> {
    let blob = open(connection, id)?;
    let mut bytes = vec![0; blob.len()];
    blob.read_at_exact(&mut bytes, 0)?;
    Ok(bytes)
}

/// Decompresses a body to the `bytes_sent` bytes that were sent, without ever having the compressed form whole in
/// memory, and returns the checksum behind it.
///
/// # Errors
///
/// [`Fault::Damaged`] if it cannot be decompressed, or has another length.
pub(super) fn unpack(connection: &Connection, id: i64, bytes_sent: u64) -> Result<(bytes::Bytes, Option<i64>), Fault> {
    let damaged = || Fault::Damaged("a compressed body is unreadable".into());
    let length =
        usize::try_from(bytes_sent).ok().filter(|length| i32::try_from(*length).is_ok()).ok_or_else(damaged)?;
    let blob = open(connection, id)?;
    let mut end = [0; 16];
    let checksum = match blob.len().checked_sub(end.len()) {
        Some(at) => {
            blob.read_at_exact(&mut end, at)?;
            checksum_behind(&end)
        }
        None => None,
    };
    let pieces = BufReader::with_capacity(PIECE_BYTES, blob);
    let decoder = Decoder::with_dictionary(pieces, DICTIONARY_1).map_err(|_| damaged())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length + 1).map_err(|_| damaged())?;
    decoder.take(bytes_sent + 1).read_to_end(&mut bytes).map_err(|_| damaged())?;
    if bytes.len() == length { Ok((bytes.into(), checksum)) } else { Err(damaged()) }
}

fn open(connection: &Connection, id: i64) -> Result<Blob<'_>, Fault> {
    Ok(connection.blob_open(MAIN_DB, c"bodies", c"body", id, true)?)
}
