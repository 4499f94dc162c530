//! Bytes as sent, their encoding, and decoding them within a bound.

use std::io::Read;

use bytes::Bytes;
use thiserror::Error;

/// How a body's bytes are encoded (`Content-Encoding`).
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
    /// Reads a `Content-Encoding` value; an absent or empty one is [`Encoding::Identity`].
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

/// Why a body can't be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BodyFault {
    /// The bytes are not what `Content-Encoding` says, or end too early.
    #[error("the {0} body is damaged or ends too early")]
    Damaged(&'static str),
    /// The content is larger than this many bytes.
    #[error("the body is larger than {0} bytes when decoded")]
    TooLarge(u64),
}

/// The bytes of a request as the client sent them; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The bytes on the wire.
    pub bytes: Bytes,
    /// What they are encoded as.
    pub encoding: Encoding,
}

impl Body {
    /// Returns a body of these bytes.
    pub fn new(bytes: impl Into<Bytes>, encoding: Encoding) -> Self {
        Self { bytes: bytes.into(), encoding }
    }

    /// Returns the content, at most `bytes_max` bytes of it: no more is ever held, however small the encoded body is.
    ///
    /// # Errors
    ///
    /// [`BodyFault::Damaged`] for bytes that don't decode to their end, [`BodyFault::TooLarge`] past the bound.
    pub fn decode(&self, bytes_max: u64) -> Result<Bytes, BodyFault> {
        let (decoded, name): (Result<Vec<u8>, std::io::Error>, _) = match self.encoding {
            Encoding::Identity if self.bytes.len() as u64 > bytes_max => return Err(BodyFault::TooLarge(bytes_max)),
            Encoding::Identity => return Ok(self.bytes.clone()),
            // Members may follow each other (RFC 1952 section 2.2), and a server's GZIPInputStream reads them all.
            Encoding::Gzip => (read_bounded(flate2::bufread::MultiGzDecoder::new(&self.bytes[..]), bytes_max), "gzip"),
            Encoding::Deflate => {
                (read_bounded(flate2::bufread::ZlibDecoder::new(&self.bytes[..]), bytes_max), "deflate")
            }
        };
        let content = decoded.map_err(|_| BodyFault::Damaged(name))?;
        if content.len() as u64 > bytes_max {
            return Err(BodyFault::TooLarge(bytes_max));
        }
        Ok(content.into())
    }
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
    fn a_small_body_that_inflates_past_the_bound_is_refused_without_being_held() {
        let body = Body::new(gzip(&vec![b' '; 1_000_000]), Encoding::Gzip);
        assert!(body.bytes.len() < 10_000);
        assert_eq!(body.decode(999_999), Err(BodyFault::TooLarge(999_999)));
        assert_eq!(body.decode(1_000_000).expect("at the bound").len(), 1_000_000);
    }

    #[test]
    fn truncated_and_mislabelled_bodies_are_faults() {
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
