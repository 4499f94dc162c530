//! Sealing for recipients: what leaves this machine can be read only by who holds a private key.
//!
//! The format is `age`, version 1 (<https://age-encryption.org/v1>), with X25519 recipients. A file or an object is
//! sealed for one or more *recipients* (`age1...`, public) and opened with one *identity* of theirs
//! (`AGE-SECRET-KEY-1...`, secret), so that a machine that seals can open nothing, not even its own work. The tools
//! `age`, `rage` and `age-keygen` open these files and make these keys, so that nobody depends on this program to
//! read them.
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 <share>                     one for each recipient: the file key, encrypted for it
//! <file key, encrypted>
//! -> opik-offline-recipients age1...    for people who hold another identity; age ignores it
//!
//! --- <HMAC of the header>
//! <nonce> <chunk of 64 KiB> <chunk> ... <last chunk>
//! ```
//!
//! Each chunk is encrypted with ChaCha20-Poly1305. Its nonce is its number and whether it is the last one: a chunk
//! that is changed, moved, left out or cut off is found when it is read, and none of its bytes is returned.
//! [`SealWriter`] and [`OpenReader`] hold one chunk in memory; [`seal`] and [`open`] are for small values.
//!
//! The header names the recipients, which age alone does not, because "no identity matches" helps nobody: with the
//! public key, the right one can be found. Sealed contents do not authenticate their sender: everybody who has the
//! public key can seal.
//!
//! Limits: [`RECIPIENTS_MAX`] recipients, a header of 64 KiB. Not supported: passphrases, SSH keys, plugins, ASCII
//! armour. Keys are zeroized when they are dropped.

mod error;
mod header;
mod key_file;
mod keys;
mod stream;

use std::io::{Read, Write};

pub(crate) use self::error::NOT_OPENED;
pub use self::error::SealError;
pub use self::key_file::{make_identity, read_identities, read_recipients};
pub use self::keys::{Identity, RECIPIENTS_MAX, Recipient};
pub use self::stream::{OpenReader, SealWriter};

/// Returns whether this is the beginning of something sealed, in any version of the format. The first 19 bytes are
/// enough.
pub fn is_sealed(head: &[u8]) -> bool {
    head.starts_with(header::VERSION_START) || head.starts_with(header::ARMOUR_START)
}

/// Seals a value that is in memory.
///
/// # Errors
///
/// [`SealError::NoRecipients`], [`SealError::TooManyRecipients`], [`SealError::Recipient`] if a public key is one of
/// those that hide nothing, and [`SealError::Random`].
pub fn seal(recipients: &[Recipient], plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let sealed = Vec::with_capacity(header::bytes_for(recipients.len()) + stream::sealed_bytes(plain.len()));
    let mut writer = SealWriter::new(recipients, sealed)?;
    writer.write_all(plain).map_err(SealError::from_io)?;
    writer.finish().map_err(SealError::from_io)
}

/// Opens a sealed value that is in memory.
///
/// # Errors
///
/// See [`OpenReader::new`], and [`SealError::Changed`] or [`SealError::Truncated`] if the contents are not as they
/// were sealed: nothing is returned then.
pub fn open(identities: &[Identity], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut plain = Vec::with_capacity(sealed.len());
    OpenReader::new(identities, sealed)?.read_to_end(&mut plain).map_err(SealError::from_io)?;
    Ok(plain)
}

#[cfg(test)]
mod tests;
