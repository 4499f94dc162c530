//! Large bodies, written and read in place.
//!
//! A statement copies a value that it is given, and builds the whole row beside that; a row that is read stands in memory
//! beside what it is copied to. For a body of 60 MB that was three times its size on the way in and twice on the way out.
//! A blob handle has no copy of its own: the bytes go from the caller's buffer into pages, and from pages into the
//! caller's.

use std::io::{BufReader, Read};

use rusqlite::blob::{Blob, ZeroBlob};
use rusqlite::{Connection, MAIN_DB, Transaction};
use zstd::stream::read::Decoder;

use super::codec::DICTIONARY_1;
use super::fault::Fault;

/// Larger bodies are. [`super::queries::REQUEST`] has the same number.
const BYTES_MIN: usize = 256 * 1024;
/// What is read at once of a compressed body.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) fn is_large(bytes: &[u8]) -> bool {
    bytes.len() > BYTES_MIN
}

/// Returns what a row is stored with that [`fn@write`] fills.
pub(super) fn room_for(bytes: &[u8]) -> ZeroBlob {
    ZeroBlob(bytes.len() as u64)
}

/// Fills the body of a message that was stored with room for it.
pub(super) fn write(tx: &Transaction<'_>, id: i64, bytes: &[u8]) -> Result<(), Fault> {
    let mut blob = tx.blob_open(MAIN_DB, c"bodies", c"body", id, false)?;
    blob.write_at(bytes, 0)?;
    Ok(blob.close()?)
}

/// Reads the body of a message as it is kept.
pub(super) fn read(connection: &Connection, id: i64) -> Result<Vec<u8>, Fault> {
    let blob = open(connection, id)?;
    let mut bytes = vec![0; blob.len()];
    blob.read_at_exact(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads a compressed body as it was sent, `bytes_sent` of it, without ever having it whole as it is kept.
///
/// # Errors
///
/// [`Fault::Damaged`] when it can't be decompressed, or has another length.
pub(super) fn unpack(connection: &Connection, id: i64, bytes_sent: u64) -> Result<bytes::Bytes, Fault> {
    let damaged = || Fault::Damaged("a compressed body is unreadable".into());
    let length =
        usize::try_from(bytes_sent).ok().filter(|length| i32::try_from(*length).is_ok()).ok_or_else(damaged)?;
    let pieces = BufReader::with_capacity(PIECE_BYTES, open(connection, id)?);
    let decoder = Decoder::with_dictionary(pieces, DICTIONARY_1).map_err(|_| damaged())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length + 1).map_err(|_| damaged())?;
    decoder.take(bytes_sent + 1).read_to_end(&mut bytes).map_err(|_| damaged())?;
    if bytes.len() == length { Ok(bytes.into()) } else { Err(damaged()) }
}

fn open(connection: &Connection, id: i64) -> Result<Blob<'_>, Fault> {
    Ok(connection.blob_open(MAIN_DB, c"bodies", c"body", id, true)?)
}
