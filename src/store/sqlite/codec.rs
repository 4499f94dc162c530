//! How the bytes of a body lie on the disk: as sent, or compressed where that makes them smaller.
//!
//! The Python SDK sends gzip, which is kept as it is. The TypeScript SDK, most OTLP exporters and curl send plain text,
//! which takes two to three times the room. Those bodies are compressed before the write lock is taken, and come out
//! again byte for byte.
//!
//! zstd at level 1 with a dictionary: of what was measured on 2 KB spans (in one run: zstd, deflate and LZ4 at several
//! levels, each with and without a dictionary) it costs the least per byte saved, and a body that shrinks to a quarter of
//! a page also writes less into the log, which a commit waits for. A short body is mostly names, and names are what the
//! dictionary knows: without it a 1 KB span keeps 56 % of its bytes, with it 34 %.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::stream::write::Encoder;

use super::fault::Fault;
use crate::message::{Body, Encoding};

/// What every codec but the first stands on. A dictionary that a store may hold bodies of is never edited: another one is
/// another codec.
pub(super) const DICTIONARY_1: &[u8] = include_bytes!("dictionary-1.json");
/// Bodies shorter than this are left alone: nothing that could be saved is worth a look.
const BYTES_MIN: usize = 64;
/// Compressed bytes are kept only when they save at least this part, as a divisor: reading them back costs, too.
const SAVED_SHARE: usize = 8;
/// Larger bodies are never in memory as they are kept: they are compressed once to see how long that is, and once more
/// while they are written ([`super::large`]). What is compressed beside its body stays below a commit's bytes that way.
pub(super) const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The fastest level that still codes literals by their frequency.
const LEVEL: i32 = 1;

/// How the bytes of a body are kept; the numbers are those of `bodies.codec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As sent.
    Plain = 0,
    /// zstd with [`DICTIONARY_1`].
    Zstd1 = 1,
}

/// A body as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) codec: Codec,
    /// As kept, or as sent where the body is compressed while it is written.
    pub(super) bytes: Bytes,
    /// What it is compressed to while it is written.
    streamed_bytes: Option<usize>,
}

impl Packed {
    /// Returns the number of bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.streamed_bytes.unwrap_or(self.bytes.len())
    }

    /// Returns whether the bytes have to be compressed by [`Packed::stream`] while they are written.
    pub(super) fn is_streamed(&self) -> bool {
        self.streamed_bytes.is_some()
    }

    /// Compresses the bytes into a place that takes [`Packed::len`] of them.
    pub(super) fn stream(&self, into: impl Write) -> io::Result<()> {
        compress(&self.bytes, into).map(drop)
    }
}

/// Compresses a body in pieces; what comes of it is the same each time.
fn compress<W: Write>(bytes: &[u8], into: W) -> io::Result<W> {
    // What does not shrink is kept in blocks as it is: three bytes for 128 KiB.
    let mut encoder = Encoder::with_dictionary(into, LEVEL, DICTIONARY_1)?;
    // What is read back is checked against it.
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Counts what is written.
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

/// Compresses bodies, one at a time; its tables are made once.
pub(super) struct Packer(Mutex<Option<Compressor<'static>>>);

impl Packer {
    /// Returns a packer. One that can't have the memory for its tables keeps bodies as they are.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Compressor::with_dictionary(LEVEL, DICTIONARY_1).ok()))
    }

    /// Returns a body as it is to be kept: compressed if its client did not do so and it gets smaller. A very large one
    /// always is, so that it can be written in pieces ([`super::large`]).
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
        // No room for more than is worth keeping: what does not shrink ends there.
        let bytes_max = body.bytes.len() - body.bytes.len() / SAVED_SHARE;
        let mut compressor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::with_capacity(bytes_max);
        let compressed = compressor.as_mut().map(|compressor| compressor.compress_to_buffer(&body.bytes, &mut bytes));
        match compressed {
            Some(Ok(_)) => Packed { codec: Codec::Zstd1, bytes: bytes.into(), streamed_bytes: None },
            // Not smaller, or no memory for it: as sent is always right.
            Some(Err(_)) | None => plain(),
        }
    }
}

/// Gives bodies back as they were sent; its tables are made when they are needed first.
#[derive(Default)]
pub(super) struct Unpacker(Option<Decompressor<'static>>);

impl Unpacker {
    /// Returns the bytes as sent, `bytes_sent` of them.
    ///
    /// # Errors
    ///
    /// Damage: an unknown codec, bytes that don't decode, or another length.
    pub(super) fn unpack(&mut self, codec: i64, kept: Cow<'_, [u8]>, bytes_sent: u64) -> Result<Bytes, Fault> {
        const PLAIN: i64 = Codec::Plain as i64;
        const ZSTD_1: i64 = Codec::Zstd1 as i64;
        match codec {
            PLAIN => Ok(kept.into_owned().into()),
            ZSTD_1 => {
                let damaged = || Fault::Damaged("a compressed body is unreadable".into());
                let length = usize::try_from(bytes_sent).map_err(|_| damaged())?;
                // The frame says how long its content is, so damage elsewhere does not ask for memory.
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
    fn what_a_client_compressed_and_what_does_not_shrink_is_kept_as_it_is() {
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
    fn a_very_large_body_is_compressed_in_pieces_and_comes_back_whatever_it_is() {
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
    fn a_damaged_body_is_named_and_not_delivered() {
        let body = plain_text(vec![b' '; 5000]);
        let packed = Packer::new().pack(&body);
        let mut unpacker = Unpacker::default();
        let codec = packed.codec as i64;
        assert!(unpacker.unpack(codec, packed.bytes[..].into(), 5000).is_ok());
        assert!(unpacker.unpack(codec, packed.bytes[..].into(), 4999).is_err(), "another length than its message says");
        assert!(unpacker.unpack(codec, packed.bytes[..].into(), u64::MAX).is_err(), "a length that no memory holds");
        assert!(unpacker.unpack(codec, packed.bytes[..packed.bytes.len() - 1].into(), 5000).is_err(), "cut short");
        assert!(unpacker.unpack(2, packed.bytes[..].into(), 5000).is_err(), "a codec that does not exist");
    }

    #[test]
    fn the_dictionary_is_still_the_one_that_stores_were_written_with() {
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
