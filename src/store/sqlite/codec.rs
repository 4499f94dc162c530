//! How the bytes of a body are encoded on disk: as sent, or compressed if that makes them smaller.
//!
//! The Python SDK sends gzip, which is stored as it is. The TypeScript SDK, most OTLP exporters and curl send plain
//! text, which takes two to three times the space. Those bodies are compressed before the write lock is taken, and are
//! decoded byte for byte.
//!
//! zstd at level 1 with a dictionary: of what was measured on 2 KB spans (in one run: zstd, deflate and LZ4 at several
//! levels, each with and without a dictionary) it costs the least per byte saved, and a body that shrinks to a quarter
//! of a page also writes less to the log, which a commit waits for. A short body is mostly names, and the dictionary
//! knows the names: without it a 1 KB span keeps 56 % of its bytes, with it 34 %.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::stream::write::Encoder;

use super::fault::Fault;
use crate::message::{Body, Encoding};

/// The dictionary of every codec but the first. A dictionary that stored bodies may depend on is never edited: another
/// dictionary is another codec.
pub(super) const DICTIONARY_1: &[u8] = include_bytes!("dictionary-1.json");
/// Bodies shorter than this are not compressed: the saving is not worth it.
const BYTES_MIN: usize = 64;
/// Compressed bytes are stored only if they save at least this share, as a divisor: decoding costs as well.
const SAVED_SHARE: usize = 8;
/// Larger bodies are never in memory in compressed form: they are compressed once to learn the length, and once more
/// while they are written ([`super::large`]). That keeps the memory for compressed bytes below the size of a commit.
pub(super) const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The fastest level that still entropy-codes literals.
const LEVEL: i32 = 1;

/// How the bytes of a body are encoded; the values are those of `bodies.codec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As sent.
    Plain = 0,
    /// zstd with [`DICTIONARY_1`].
    Zstd1 = 1,
}

/// A body as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) codec: Codec,
    /// As stored, or as sent if the body is compressed while it is written.
    pub(super) bytes: Bytes,
    /// The compressed length, if it is compressed while it is written.
    streamed_bytes: Option<usize>,
}

impl Packed {
    /// Returns the number of bytes that are stored.
    pub(super) fn len(&self) -> usize {
        self.streamed_bytes.unwrap_or(self.bytes.len())
    }

    /// Returns whether the bytes have to be compressed by [`Packed::stream`] while they are written.
    pub(super) fn is_streamed(&self) -> bool {
        self.streamed_bytes.is_some()
    }

    /// Compresses the bytes into a writer that takes [`Packed::len`] of them.
    pub(super) fn stream(&self, into: impl Write) -> io::Result<()> {
        compress(&self.bytes, into).map(drop)
    }
}

/// Compresses a body in pieces; the result is the same every time.
fn compress<W: Write>(bytes: &[u8], into: W) -> io::Result<W> {
    // Incompressible data is stored in raw blocks: three bytes per 128 KiB.
    let mut encoder = Encoder::with_dictionary(into, LEVEL, DICTIONARY_1)?;
    // The decoder checks the length against it.
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Counts the bytes that are written.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses bodies, one at a time; its tables are allocated once.
pub(super) struct Packer(Mutex<Option<Compressor<'static>>>);

impl Packer {
    /// Returns a packer. Without memory for its tables it stores bodies as they are.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Compressor::with_dictionary(LEVEL, DICTIONARY_1).ok()))
    }

    /// Returns a packer that stores bodies as they are, unless they are very large.
    pub(super) fn plain() -> Self {
        Self(Mutex::new(None))
    }

    /// Encodes a body for storing: compressed if its client did not compress it and it gets smaller. A very large one
    /// is always compressed, so that it can be written in pieces ([`super::large`]).
    pub(super) fn pack(&self, body: &Body) -> Packed {
        let plain = || Packed { codec: Codec::Plain, bytes: body.bytes.clone(), streamed_bytes: None };
        if body.bytes.len() > HELD_BYTES_MAX {
            return match compress(&body.bytes, Count(0)) {
                Ok(Count(length)) => {
                    Packed { codec: Codec::Zstd1, bytes: body.bytes.clone(), streamed_bytes: Some(length) }
                }
                Err(_) => plain(),
            };
        }
        if body.encoding != Encoding::Identity || body.bytes.len() < BYTES_MIN {
            return plain();
        }
        // A buffer that is too small for an output not worth storing: compression ends there.
        let bytes_max = body.bytes.len() - body.bytes.len() / SAVED_SHARE;
        let mut compressor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::with_capacity(bytes_max);
        let compressed = compressor.as_mut().map(|compressor| compressor.compress_to_buffer(&body.bytes, &mut bytes));
        match compressed {
            Some(Ok(_)) => Packed { codec: Codec::Zstd1, bytes: bytes.into(), streamed_bytes: None },
            // Not smaller, or no memory for it: storing it as sent is always correct.
            Some(Err(_)) | None => plain(),
        }
    }
}

/// Decodes bodies to the bytes that were sent; its tables are allocated on first use.
#[derive(Default)]
pub(super) struct Unpacker(Option<Decompressor<'static>>);

impl Unpacker {
    /// Returns the bytes as sent, `bytes_sent` of them.
    ///
    /// # Errors
    ///
    /// [`Fault::Damaged`] for an unknown codec, bytes that do not decode, or another length.
    pub(super) fn unpack(&mut self, codec: i64, kept: Cow<'_, [u8]>, bytes_sent: u64) -> Result<Bytes, Fault> {
        const PLAIN: i64 = Codec::Plain as i64;
        const ZSTD_1: i64 = Codec::Zstd1 as i64;
        match codec {
            PLAIN => Ok(kept.into_owned().into()),
            ZSTD_1 => {
                let damaged = || Fault::Damaged("a compressed body is unreadable".into());
                let length = usize::try_from(bytes_sent).map_err(|_| damaged())?;
                // The frame states the length of its content, so that damage elsewhere does not allocate memory.
                if !matches!(zstd::zstd_safe::get_frame_content_size(&kept), Ok(Some(length)) if length == bytes_sent) {
                    return Err(damaged());
                }
                let bytes = self.decompressor().and_then(|d| d.decompress(&kept, length)).map_err(|_| damaged())?;
                if bytes.len() == length { Ok(bytes.into()) } else { Err(damaged()) }
            }
            unknown => Err(Fault::Damaged(format!("a body has codec {unknown}, which does not exist"))),
        }
    }

    fn decompressor(&mut self) -> io::Result<&mut Decompressor<'static>> {
        if self.0.is_none() {
            self.0 = Some(Decompressor::with_dictionary(DICTIONARY_1)?);
        }
        self.0.as_mut().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain_text(bytes: impl Into<Bytes>) -> Body {
        Body::new(bytes, Encoding::Identity)
    }

    #[test]
    fn compressed_and_incompressible_bodies_are_stored_as_sent() {
        let packer = Packer::new();
        let text = br#"{"spans":[{"id":"01a20440-760f-72f8-b5dd-31cb6adc731c","name":"llm","type":"llm"}]}"#.repeat(9);
        let noise: Vec<u8> = (0..700_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        for (body, codec) in [
            (plain_text(text.clone()), Codec::Zstd1),
            (Body::new(text.clone(), Encoding::Gzip), Codec::Plain),
            (Body::new(text, Encoding::Deflate), Codec::Plain),
            (plain_text(noise), Codec::Plain),
            (plain_text(&br#"{"name":"a"}"#[..]), Codec::Plain),
            (plain_text(&b""[..]), Codec::Plain),
        ] {
            let packed = packer.pack(&body);
            assert_eq!(packed.codec, codec, "{body:?}");
            assert!(packed.bytes.len() <= body.bytes.len());
        }
    }

    #[test]
    fn a_very_large_body_is_streamed_and_comes_back_unchanged() {
        let noise = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        let noise: Bytes = (0..HELD_BYTES_MAX as u64 + 1).map(noise).collect();
        for body in [plain_text(vec![b' '; HELD_BYTES_MAX + 1]), Body::new(noise, Encoding::Gzip)] {
            let packed = Packer::new().pack(&body);
            assert!(packed.is_streamed() && packed.codec == Codec::Zstd1);
            let mut kept = Vec::new();
            packed.stream(&mut kept).expect("there is memory");
            assert_eq!(kept.len(), packed.len());
            let back = Unpacker::default().unpack(packed.codec as i64, kept.into(), body.bytes.len() as u64);
            assert!(back.expect("it is whole") == body.bytes);
        }
    }

    #[test]
    fn a_damaged_body_is_reported_as_damage() {
        let body = plain_text(vec![b' '; 5000]);
        let packed = Packer::new().pack(&body);
        let mut unpacker = Unpacker::default();
        let codec = packed.codec as i64;
        assert!(unpacker.unpack(codec, packed.bytes[..].into(), 5000).is_ok());
        assert!(unpacker.unpack(codec, packed.bytes[..].into(), 4999).is_err(), "another length than its message says");
        assert!(unpacker.unpack(codec, packed.bytes[..].into(), u64::MAX).is_err(), "a length that exceeds memory");
        assert!(unpacker.unpack(codec, packed.bytes[..packed.bytes.len() - 1].into(), 5000).is_err(), "cut short");
        assert!(unpacker.unpack(2, packed.bytes[..].into(), 5000).is_err(), "a codec that does not exist");
    }

    #[test]
    fn the_dictionary_is_unchanged() {
        // Made with `zstd -1 --no-check -D dictionary-1.json`.
        const KEPT: [u8; 32] = [
            0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x53, 0xbd, 0x00, 0x00, 0x40, 0x22, 0x6c, 0x6c, 0x6d, 0x22, 0x7d, 0x5d, 0x7d,
            0x04, 0x40, 0x00, 0x97, 0xe4, 0xcc, 0x23, 0xdb, 0x12, 0x75, 0xab, 0xeb, 0x14, 0x01,
        ];
        const SENT: &[u8] = br#"{"spans":[{"id":"01a20440-760f-72f8-b5dd-31cb6adc731c","name":"llm","type":"llm"}]}"#;
        let back = Unpacker::default().unpack(Codec::Zstd1 as i64, KEPT[..].into(), SENT.len() as u64);
        assert_eq!(back.expect("bodies that an earlier release stored are readable"), SENT);
    }

    proptest! {
        #[test]
        fn every_body_comes_back_byte_for_byte(bytes in proptest::collection::vec(any::<u8>(), 0..3000), repeat in 1_usize..20) {
            let body = plain_text(bytes.repeat(repeat));
            let packed = Packer::new().pack(&body);
            let back = Unpacker::default().unpack(packed.codec as i64, packed.bytes[..].into(), body.bytes.len() as u64);
            prop_assert_eq!(back.ok(), Some(body.bytes));
        }
    }
}
