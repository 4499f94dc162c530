//! A request's payload as sent, its encoding, and bounded decoding.

use std::cell::RefCell;
use std::io::Read;

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use flate2::bufread::GzDecoder;
use libdeflater::Decompressor;
use memchr::memmem;
use thiserror::Error;

/// The content encoding of a payload (`Content-Encoding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// No encoding: the bytes are the content.
    Identity,
    /// RFC 1952; what the Python SDK sends for bodies of 256 bytes or more.
    Gzip,
    /// RFC 1950 (zlib), which HTTP calls `deflate`.
    Deflate,
}

impl Encoding {
    /// Parses a `Content-Encoding` value; an absent or empty one is [`Encoding::Identity`].
    ///
    /// Returns `None` for an encoding, or a chain of encodings, that no Opik server decodes.
    pub fn from_header(value: Option<&str>) -> Option<Self> {
        let value = value.unwrap_or("").trim();
        if value.is_empty() || value.eq_ignore_ascii_case("identity") {
            Some(Self::Identity)
        } else if value.eq_ignore_ascii_case("gzip") || value.eq_ignore_ascii_case("x-gzip") {
            Some(Self::Gzip)
        } else if value.eq_ignore_ascii_case("deflate") {
            Some(Self::Deflate)
        } else {
            None
        }
    }
}

impl Encoding {
    /// Returns a streaming decoder: it buffers no more than it hands out.
    ///
    /// Truncated or corrupt input fails with an error whose kind is not [`std::io::ErrorKind::Other`].
    pub fn decoder(self, encoded: impl Read + Send + 'static) -> Box<dyn Read + Send> {
        match self {
            Self::Identity => Box::new(encoded),
            // Members may follow each other, as in [`Body::decode`].
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(encoded)),
            Self::Deflate => Box::new(flate2::read::ZlibDecoder::new(encoded)),
        }
    }

    /// Returns the name in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

/// Why a body can't be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BodyFault {
    /// The bytes are corrupt, truncated, or encoded differently from what `Content-Encoding` claims.
    #[error("the {0} body is damaged or ends too early")]
    Damaged(&'static str),
    /// The content is larger than this many bytes.
    #[error("the body is larger than {0} bytes when decoded")]
    TooLarge(u64),
}

/// The payload of a request as the client sent it; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The bytes on the wire.
    pub bytes: Bytes,
    /// Their encoding.
    pub encoding: Encoding,
}

impl Body {
    /// Returns a body of these bytes.
    pub fn new(bytes: impl Into<Bytes>, encoding: Encoding) -> Self {
        Self { bytes: bytes.into(), encoding }
    }

    /// Returns whether the payload has to be decoded to get its content.
    pub fn is_encoded(&self) -> bool {
        self.encoding != Encoding::Identity
    }

    /// Returns the decoded size that the payload declares, if it declares one. A payload that decodes to another size
    /// is corrupt.
    pub fn announced_bytes(&self) -> Option<u64> {
        match self.encoding {
            Encoding::Identity => Some(self.bytes.len() as u64),
            Encoding::Gzip => self.trailing_length(),
            Encoding::Deflate => None,
        }
    }

    /// Returns an upper bound of the decoded size, without decoding.
    pub fn content_bytes_max(&self) -> u64 {
        self.announced_bytes().unwrap_or(self.bytes.len() as u64 * INFLATION_MAX)
    }

    /// Returns the length at the end of a gzip member that no other one follows: a body that inflates to another length
    /// is corrupt. No body is inflated to the 4 GiB at which it wraps.
    fn trailing_length(&self) -> Option<u64> {
        // All of the bytes are searched for another member.
        let is_one = !may_have_more_members(&self.bytes);
        is_one.then(|| self.bytes.last_chunk().map_or(0, |length| u32::from_le_bytes(*length).into()))
    }

    /// Parses the payload. At most `bytes_max` bytes are ever buffered, even if a small body inflates to far more.
    ///
    /// # Errors
    ///
    /// [`BodyFault::Damaged`] for corrupt or truncated input, [`BodyFault::TooLarge`] past the bound.
    pub fn decode(&self, bytes_max: u64) -> Result<Bytes, BodyFault> {
        let (allowed, bytes_max) = (bytes_max, bytes_max.min(self.content_bytes_max()));
        let (decoded, name): (Result<Vec<u8>, std::io::Error>, _) = match self.encoding {
            Encoding::Identity if self.bytes.len() as u64 > allowed => return Err(BodyFault::TooLarge(bytes_max)),
            Encoding::Identity => return Ok(self.bytes.clone()),
            Encoding::Gzip => match gunzip_whole(&self.bytes, bytes_max) {
                Some(content) => return Ok(content.into()),
                None => (gunzip(&self.bytes, bytes_max), "gzip"),
            },
            Encoding::Deflate => {
                (read_bounded(flate2::bufread::ZlibDecoder::new(&self.bytes[..]), bytes_max), "deflate")
            }
        };
        let content = decoded.map_err(|_| BodyFault::Damaged(name))?;
        match content.len() as u64 > bytes_max {
            false => Ok(content.into()),
            true if allowed == bytes_max => Err(BodyFault::TooLarge(allowed)),
            // Larger than the length in its own trailer.
            true => Err(BodyFault::Damaged(name)),
        }
    }
}

thread_local! {
    /// Cached streaming gzip decoder of this thread. Allocating its tables and window takes longer than decoding a body
    /// of a few KB. decode.
    static GUNZIP: RefCell<GzDecoder<Reader<Bytes>>> = RefCell::new(GzDecoder::new(Bytes::new().reader()));
    /// Cached one-shot gzip decompressor of this thread.
    static GUNZIP_WHOLE: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// Upper bound of the buffer that is allocated up front for a declared size, in bytes. Beyond it, the buffer grows as
/// content arrives.
const ANNOUNCED_BYTES_MAX: usize = 1024 * 1024;
/// Upper bound of deflate's compression ratio (1032, according to zlib).
const INFLATION_MAX: u64 = 1040;
/// Magic number and compression method at the start of a gzip member (RFC 1952 section 2.3.1).
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Decodes gzip with a single member and a truthful length, which is what clients send. Returns `None` for any other
/// input: [`gunzip`] then decodes or rejects it.
///
/// A one-shot decoder takes half the time of a streaming one.
fn gunzip_whole(encoded: &[u8], bytes_max: u64) -> Option<Vec<u8>> {
    let trailer: &[u8; 8] = encoded.last_chunk()?;
    let announced = usize::try_from(u32::from_le_bytes([trailer[4], trailer[5], trailer[6], trailer[7]])).ok()?;
    // The decoder stops after the first member without reporting its position.
    if may_have_more_members(encoded)
        || announced == 0
        || announced > ANNOUNCED_BYTES_MAX
        || announced as u64 > bytes_max
    {
        return None;
    }
    let mut content = vec![0; announced];
    let decoded = GUNZIP_WHOLE.with_borrow_mut(|decoder| decoder.gzip_decompress(encoded, &mut content)).ok()?;
    // If length and checksum match the trailer, the trailer belongs to this member: there are no bytes between them.
    (decoded == announced && libdeflater::crc32(&content).to_le_bytes() == trailer[..4]).then_some(content)
}

/// Returns whether a second gzip member may follow the first.
fn may_have_more_members(encoded: &[u8]) -> bool {
    encoded.get(GZIP_MAGIC.len()..).is_none_or(|rest| memmem::find(rest, &GZIP_MAGIC).is_some())
}

/// Decodes gzip, at most one byte more than `bytes_max`.
///
/// Members may follow each other (RFC 1952 section 2.2), and a server's GZIPInputStream reads them all.
fn gunzip(encoded: &Bytes, bytes_max: u64) -> Result<Vec<u8>, std::io::Error> {
    let mut left = bytes_max.saturating_add(1);
    // The last four bytes are the length of the last member, modulo 4 GiB (section 2.3.1): a hint.
    let announced = encoded.last_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    let mut content = Vec::with_capacity(announced.min(ANNOUNCED_BYTES_MAX) + 1);
    GUNZIP.with_borrow_mut(|decoder| {
        let mut rest = encoded.clone();
        let result = loop {
            decoder.reset(rest.reader());
            let read = match decoder.by_ref().take(left).read_to_end(&mut content) {
                Ok(read) => read,
                Err(error) => break Err(error),
            };
            left -= read as u64;
            rest = decoder.reset(Bytes::new().reader()).into_inner();
            if rest.is_empty() || left == 0 {
                break Ok(());
            }
        };
        // The cached decoder must not retain a client's data.
        decoder.reset(Bytes::new().reader());
        result
    })?;
    Ok(content)
}

fn read_bounded(decoder: impl Read, bytes_max: u64) -> Result<Vec<u8>, std::io::Error> {
    let mut content = Vec::new();
    decoder.take(bytes_max.saturating_add(1)).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).expect("writing to memory");
        encoder.finish().expect("writing to memory")
    }

    #[test]
    fn decompression_bombs_are_rejected_without_being_buffered() {
        let body = Body::new(gzip(&vec![b' '; 1_000_000]), Encoding::Gzip);
        assert!(body.bytes.len() < 10_000);
        assert_eq!(body.decode(999_999), Err(BodyFault::TooLarge(999_999)));
        assert_eq!(body.decode(1_000_000).expect("at the bound").len(), 1_000_000);
    }

    #[test]
    fn cached_decoders_keep_no_state_between_bodies() {
        let good = Body::new(gzip(b"first"), Encoding::Gzip);
        let members = Body::new([gzip(b"one "), gzip(b""), gzip(b"two")].concat(), Encoding::Gzip);
        let cut_short = Body::new(gzip(&[b'x'; 5000])[..20].to_vec(), Encoding::Gzip);
        let huge = Body::new(gzip(&[b'x'; 5000]), Encoding::Gzip);
        let trailed = Body::new([&gzip(b"first")[..], b"no gzip"].concat(), Encoding::Gzip);
        let alike = Body::new([gzip(b"one "), gzip(b"one ")].concat(), Encoding::Gzip);
        let mut flipped = gzip(b"first");
        flipped[12] ^= 1;
        let flipped = Body::new(flipped, Encoding::Gzip);
        for _ in 0..2 {
            assert_eq!(good.decode(100).expect("it is whole"), "first");
            assert_eq!(cut_short.decode(9000), Err(BodyFault::Damaged("gzip")));
            assert_eq!(members.decode(7).expect("it is whole"), "one two");
            assert_eq!(members.decode(6), Err(BodyFault::TooLarge(6)));
            assert_eq!(huge.decode(100), Err(BodyFault::TooLarge(100)));
            assert_eq!(trailed.decode(100), Err(BodyFault::Damaged("gzip")));
            assert_eq!(alike.decode(8).expect("it is whole"), "one one ");
            assert_eq!(flipped.decode(100), Err(BodyFault::Damaged("gzip")));
            assert_eq!(Body::new(Bytes::new(), Encoding::Gzip).decode(100), Err(BodyFault::Damaged("gzip")));
        }
    }

    #[test]
    fn streaming_and_one_shot_decoding_agree() {
        let zlib = || {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(b"some text").expect("writing to memory");
            encoder.finish().expect("writing to memory")
        };
        let mut flipped = gzip(b"first");
        flipped[12] ^= 1;
        for (bytes, encoding) in [
            (gzip(b"first"), Encoding::Gzip),
            ([gzip(b"one "), gzip(b""), gzip(b"two")].concat(), Encoding::Gzip),
            ([&gzip(b"first")[..], b"no gzip"].concat(), Encoding::Gzip),
            (gzip(&[b'x'; 5000])[..20].to_vec(), Encoding::Gzip),
            (flipped, Encoding::Gzip),
            (Vec::new(), Encoding::Gzip),
            (zlib(), Encoding::Deflate),
            (zlib()[..8].to_vec(), Encoding::Deflate),
            (b"{}".to_vec(), Encoding::Deflate),
            (b"{}".to_vec(), Encoding::Identity),
        ] {
            let whole = Body::new(bytes.clone(), encoding).decode(10_000).ok();
            let mut read = Vec::new();
            let result = encoding.decoder(std::io::Cursor::new(bytes)).read_to_end(&mut read);
            assert_eq!(result.as_ref().ok().map(|_| &read[..]), whole.as_deref(), "{encoding:?}");
        }
    }

    #[test]
    fn truncated_and_mislabelled_bodies_are_rejected() {
        let whole = gzip(b"{\"traces\": []}");
        for cut in [0, 1, 10, whole.len() - 1] {
            let body = Body::new(whole[..cut].to_vec(), Encoding::Gzip);
            assert_eq!(body.decode(100), Err(BodyFault::Damaged("gzip")), "cut at {cut}");
        }
        assert_eq!(Body::new(&b"{}"[..], Encoding::Gzip).decode(100), Err(BodyFault::Damaged("gzip")));
        assert_eq!(Body::new(&b"{}"[..], Encoding::Deflate).decode(100), Err(BodyFault::Damaged("deflate")));
    }

    #[test]
    fn members_that_follow_each_other_are_one_body() {
        let mut bytes = gzip(b"{\"a\":");
        bytes.extend(gzip(b"1}"));
        assert_eq!(&Body::new(bytes, Encoding::Gzip).decode(100).expect("both members")[..], b"{\"a\":1}");
    }

    #[test]
    fn encodings_are_read_without_case_and_unknown_ones_are_none() {
        for (value, encoding) in [
            (None, Some(Encoding::Identity)),
            (Some(""), Some(Encoding::Identity)),
            (Some("GZip"), Some(Encoding::Gzip)),
            (Some(" x-gzip "), Some(Encoding::Gzip)),
            (Some("deflate"), Some(Encoding::Deflate)),
            (Some("br"), None),
            (Some("gzip, gzip"), None),
        ] {
            assert_eq!(Encoding::from_header(value), encoding, "{value:?}");
        }
    }
}
