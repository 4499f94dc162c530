//! The context of a sealed value: the associated data that it is sealed with.

use std::fmt;

/// The kind of a sealed value, and the row that it belongs to. Opening it in any other context fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SealContext<'a> {
    /// The body of a message, with its destination.
    Body { message: i64, codec: i64, encoding: i64, method: &'a str, path: &'a str },
    /// The path of a message.
    Path { message: i64 },
    /// The last answer to a message.
    Answer { message: i64 },
    /// A piece of an attachment, by its key.
    Piece { piece: i64 },
    /// The digest of an attachment, which ties the pieces to their message.
    Digest { message: i64, attachment: i64, bytes: i64 },
    /// A credential, by its digest.
    Credential { digest: &'a [u8] },
    /// A header set, by its digest.
    HeaderSet { digest: &'a [u8] },
    /// The check value of a key in the row of `sealing`.
    Check,
}

impl fmt::Display for SealContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body { message, .. } => write!(f, "body of message {message}"),
            Self::Path { message } => write!(f, "path of message {message}"),
            Self::Answer { message } => write!(f, "last answer to message {message}"),
            Self::Piece { piece } => write!(f, "piece {} of attachment {}", piece & 0xff_ffff, piece >> 24),
            Self::Digest { message, .. } => write!(f, "digest of the attachment of message {message}"),
            Self::Credential { .. } => f.write_str("credential of a lane"),
            Self::HeaderSet { .. } => f.write_str("header set of a message"),
            Self::Check => f.write_str("name of the key"),
        }
    }
}

impl SealContext<'_> {
    /// Returns the associated data: the kind, then numbers, then texts, each preceded by its length.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (kind, numbers, texts): (u8, &[i64], &[&[u8]]) = match self {
            Self::Body { message, codec, encoding, method, path } => {
                (1, &[*message, *codec, *encoding], &[method.as_bytes(), path.as_bytes()])
            }
            Self::Path { message } => (2, &[*message], &[]),
            Self::Answer { message } => (3, &[*message], &[]),
            Self::Piece { piece } => (4, &[*piece], &[]),
            Self::Digest { message, attachment, bytes } => (5, &[*message, *attachment, *bytes], &[]),
            Self::Credential { digest } => (6, &[], &[digest]),
            Self::HeaderSet { digest } => (7, &[], &[digest]),
            Self::Check => (8, &[], &[]),
        };
        let mut bytes = vec![kind];
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        for text in texts {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(*text);
        }
        bytes
    }
}

/// A kind of value that is looked up by a digest.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Lookup {
    Credential = 1,
    HeaderSet = 2,
}

pub(super) fn named(of: Lookup, digest: &[u8]) -> SealContext<'_> {
    match of {
        Lookup::Credential => SealContext::Credential { digest },
        Lookup::HeaderSet => SealContext::HeaderSet { digest },
    }
}

/// Where a body is sent, and how its bytes are encoded there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination<'a> {
    pub(crate) encoding: i64,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
}

impl<'a> Destination<'a> {
    pub(crate) fn place(&self, message: i64, codec: i64) -> SealContext<'a> {
        let Self { encoding, method, path } = *self;
        SealContext::Body { message, codec, encoding, method, path }
    }
}
