//! Many bodies with ids of their own, made in microseconds: only the ids differ from those of the same template.
//!
//! A gzip body starts with a block that is stored uncompressed, which holds the ids; what follows it was compressed once
//! for the template. Its size is within a hundred bytes of the same body compressed as a whole.

use std::io::Write as _;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use uuid::Uuid;

use crate::bodies::{self, Numbers, Sent};

/// Bodies of `spans/batch`, each of one span, that take turns.
pub(crate) struct Templates(Vec<Template>);

struct Template {
    /// The content after the ids, compressed.
    deflated: Vec<u8>,
    /// Of the content after the ids.
    crc: Crc,
}

/// A create with new ids.
pub(crate) struct Create {
    pub span: Uuid,
    pub trace: Uuid,
    /// gzip.
    pub body: Vec<u8>,
}

impl Templates {
    /// Makes this many templates of spans of about this many bytes.
    pub(crate) fn of_content(count: u64, bytes: usize) -> Self {
        Self((0..count).map(|seed| Template::new(seed, bytes)).collect())
    }

    /// Makes this many templates whose bodies have about this many bytes of gzip.
    pub(crate) fn of_gzip(count: u64, bytes: usize) -> Self {
        let mut content = bytes;
        while Template::new(0, content).deflated.len() < bytes {
            content += bytes / 20;
        }
        Self::of_content(count, content)
    }

    /// Returns the create with this number.
    pub(crate) fn create(&self, number: usize) -> Create {
        let (span, trace, parent) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        let body = self.body(number, &bodies::span_start(span, trace, parent));
        Create { span, trace, body }
    }

    /// Returns the whole request of the create with this number.
    pub(crate) fn request(&self, number: usize, sent: Sent) -> Vec<u8> {
        bodies::request(&self.create(number).body, sent)
    }

    fn body(&self, number: usize, start: &str) -> Vec<u8> {
        let template = &self.0[number % self.0.len()];
        let mut crc = Crc::new();
        crc.update(start.as_bytes());
        crc.combine(&template.crc);
        let length = u16::try_from(start.len()).expect("ids are short");
        // RFC 1952: magic, deflate, no flags, no time, no hint, unknown system. RFC 1951: not the last block, stored.
        let mut body = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 0];
        body.reserve(start.len() + template.deflated.len() + 12);
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(&(!length).to_le_bytes());
        body.extend_from_slice(start.as_bytes());
        body.extend_from_slice(&template.deflated);
        body.extend_from_slice(&crc.sum().to_le_bytes());
        body.extend_from_slice(&crc.amount().to_le_bytes());
        body
    }
}

impl Template {
    fn new(seed: u64, bytes: usize) -> Self {
        let content = bodies::span_rest(&mut Numbers::new(seed), bytes);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(content.as_bytes()).expect("memory can be written");
        let mut crc = Crc::new();
        crc.update(content.as_bytes());
        Self { deflated: encoder.finish().expect("memory can be written"), crc }
    }
}
