//! The header of the `age` format: for whom the file key is sealed.

use std::io::{self, BufRead, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, AeadInOut};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::hmac;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::error::SealError;
use super::keys::{Identity, KEY_BYTES, RECIPIENTS_MAX, Recipient, random};

const VERSION_LINE: &[u8] = b"age-encryption.org/v1\n";
pub(super) const VERSION_START: &[u8] = b"age-encryption.org/";
pub(super) const ARMOUR_START: &[u8] = b"-----BEGIN AGE";

const FILE_KEY_BYTES: usize = 16;
/// Bytes of the code that authenticates the header.
const MAC_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// Maximum bytes of a header. Strangers write headers too: reading one must cost little.
const HEADER_BYTES_MAX: u64 = 64 * 1024;
/// Characters of a full line of a stanza's body; a shorter one ends the body.
const COLUMNS: usize = 64;

const X25519: &str = "X25519";
/// The only member of a header that it is in.
const PASSPHRASE: &str = "scrypt";
/// Ours: names the recipients. Any `age` skips a stanza that it does not know.
const NAMES: &str = "opik-offline-recipients";
/// The context of the key that a file key is wrapped with.
const WRAP: &[u8] = b"age-encryption.org/v1/X25519";

/// The random key of one sealed file, from which the keys of header and payload derive.
pub(super) struct FileKey(Zeroizing<[u8; FILE_KEY_BYTES]>);

impl FileKey {
    pub(super) fn random() -> Result<Self, SealError> {
        Ok(Self(random()?))
    }

    /// Returns the cipher of the payload behind this nonce.
    pub(super) fn payload(&self, nonce: &[u8]) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new((&*derived(nonce, &self.0[..], b"payload")).into())
    }

    fn mac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &derived(&[], &self.0[..], b"header")[..])
    }
}

/// Returns about how many bytes a header for this many recipients has.
pub(super) fn bytes_for(recipients: usize) -> usize {
    160 + 170 * recipients
}

/// Returns the header that seals this key for these recipients.
pub(super) fn written(recipients: &[Recipient], key: &FileKey) -> Result<Vec<u8>, SealError> {
    if recipients.is_empty() {
        return Err(SealError::NoRecipients);
    }
    if recipients.len() > RECIPIENTS_MAX {
        return Err(SealError::TooManyRecipients { given: recipients.len() });
    }
    let mut text = String::from_utf8_lossy(VERSION_LINE).into_owned();
    for recipient in recipients {
        let secret = StaticSecret::from(*random::<KEY_BYTES>()?);
        let share = PublicKey::from(&secret).to_bytes();
        let hides_nothing = SealError::Recipient { reason: "its key hides nothing" };
        let shared = recipient.agree(&secret).ok_or(hides_nothing)?;
        let cipher = wrap_cipher(&share, recipient, shared.as_bytes());
        let wrapped = cipher.encrypt(&Nonce::default(), &key.0[..]);
        let wrapped = wrapped.expect("16 bytes are not too many for an AEAD");
        text.push_str(&format!("-> {X25519} {}\n", STANDARD_NO_PAD.encode(share)));
        text.push_str(&format!("{}\n", STANDARD_NO_PAD.encode(wrapped)));
    }
    text.push_str(&format!("-> {NAMES}"));
    recipients.iter().for_each(|recipient| text.push_str(&format!(" {recipient}")));
    text.push_str("\n\n---");
    let mac = hmac::sign(&key.mac(), text.as_bytes());
    text.push_str(&format!(" {}\n", STANDARD_NO_PAD.encode(mac)));
    Ok(text.into_bytes())
}

/// Reads the header to its end, and returns the file key that one of these identities opens.
pub(super) fn opened<R: BufRead>(reader: &mut R, identities: &[Identity]) -> Result<FileKey, SealError> {
    let mut lines = Lines { reader, read: Vec::new() };
    lines.version()?;
    let mut stanzas = Vec::new();
    let mac = loop {
        let line = lines.next()?;
        if let Some(stanza) = line.strip_prefix("-> ") {
            stanzas.push(lines.stanza(stanza)?);
        } else if let Some(mac) = line.strip_prefix("--- ") {
            let mac = decoded(mac, "the code at its end is not valid")?;
            break <[u8; MAC_BYTES]>::try_from(mac)
                .map_err(|_| SealError::Header { reason: "the code at its end has a wrong length" })?;
        } else {
            return Err(SealError::Header { reason: "a line of it is neither a recipient nor its end" });
        }
    };
    // The code covers the header to the three hyphens of its last line.
    let covered = lines.read.len() - "\n".len() - (mac.len() * 4).div_ceil(3) - " ".len();
    let key = unwrapped(&stanzas, identities)?;
    hmac::verify(&key.mac(), &lines.read[..covered], &mac).map_err(|_| SealError::HeaderChanged)?;
    Ok(key)
}

/// One recipient's part of a header.
struct Stanza {
    kind: String,
    arguments: Vec<String>,
    body: Vec<u8>,
}

/// The lines of a header, within its bound.
struct Lines<'a, R> {
    reader: &'a mut R,
    /// The bytes of the header so far.
    read: Vec<u8>,
}

impl<R: BufRead> Lines<'_, R> {
    fn version(&mut self) -> Result<(), SealError> {
        let mut line = Vec::new();
        self.reader.by_ref().take(COLUMNS as u64).read_until(b'\n', &mut line).map_err(SealError::Io)?;
        if line == VERSION_LINE {
            self.read = line;
            return Ok(());
        }
        if line.starts_with(ARMOUR_START) {
            return Err(SealError::Armoured);
        }
        match line.strip_prefix(VERSION_START) {
            Some(version) => {
                Err(SealError::TooNew { version: String::from_utf8_lossy(version).trim().escape_debug().to_string() })
            }
            None => Err(SealError::NotSealed),
        }
    }

    /// Returns the next line without its end.
    fn next(&mut self) -> Result<String, SealError> {
        let before = self.read.len();
        let rest = HEADER_BYTES_MAX.saturating_sub(before as u64);
        self.reader.by_ref().take(rest).read_until(b'\n', &mut self.read).map_err(SealError::Io)?;
        match self.read[before..].strip_suffix(b"\n") {
            Some(line) => match std::str::from_utf8(line) {
                Ok(line) if line.is_ascii() => Ok(line.to_owned()),
                _ => Err(SealError::Header { reason: "it is not ASCII text" }),
            },
            None if self.read.len() as u64 >= HEADER_BYTES_MAX => {
                Err(SealError::Header { reason: "it is longer than 64 KiB" })
            }
            None => Err(SealError::Truncated),
        }
    }

    /// Returns the stanza of this first line, without its arrow, and of the lines of its body.
    fn stanza(&mut self, line: &str) -> Result<Stanza, SealError> {
        let mut arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let is_word = |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
        if !arguments.iter().all(is_word) {
            return Err(SealError::Header { reason: "a recipient's line is not valid" });
        }
        let kind = arguments.remove(0);
        let mut body = Vec::new();
        loop {
            let line = self.next()?;
            if line.len() > COLUMNS {
                return Err(SealError::Header { reason: "a line of a recipient is too long" });
            }
            body.extend(decoded(&line, "the body of a recipient is not valid")?);
            if line.len() < COLUMNS {
                return Ok(Stanza { kind, arguments, body });
            }
        }
    }
}

/// Returns the file key that one of the identities opens.
fn unwrapped(stanzas: &[Stanza], identities: &[Identity]) -> Result<FileKey, SealError> {
    let passphrase = stanzas.iter().any(|stanza| stanza.kind == PASSPHRASE);
    if passphrase && stanzas.len() > 1 {
        return Err(SealError::Header { reason: "a passphrase must be alone, and there are other recipients" });
    }
    let wrapped: Vec<(Recipient, &[u8])> =
        stanzas.iter().filter(|stanza| stanza.kind == X25519).map(shared_file_key).collect::<Result<_, _>>()?;
    for identity in identities {
        let recipient = identity.recipient();
        for (share, wrapped) in &wrapped {
            let zero = SealError::Header { reason: "a recipient's share hides nothing" };
            let shared = identity.agree(share).ok_or(zero)?;
            let cipher = wrap_cipher(&share.0, &recipient, shared.as_bytes());
            let (mut key, mut tag) = (Zeroizing::new([0; FILE_KEY_BYTES]), [0; TAG_BYTES]);
            key.copy_from_slice(&wrapped[..FILE_KEY_BYTES]);
            tag.copy_from_slice(&wrapped[FILE_KEY_BYTES..]);
            let text = (&mut key[..]).into();
            if cipher.decrypt_inout_detached(&Nonce::default(), b"", text, &tag.into()).is_ok() {
                return Ok(FileKey(key));
            }
        }
    }
    let names = stanzas.iter().filter(|stanza| stanza.kind == NAMES).flat_map(|stanza| &stanza.arguments);
    Err(SealError::NoIdentity {
        named: names.filter_map(|name| name.parse().ok()).take(RECIPIENTS_MAX).collect(),
        recipients: stanzas.iter().filter(|stanza| stanza.kind != NAMES).count(),
        passphrase,
    })
}

/// Returns the share and the sealed file key of an X25519 recipient.
fn shared_file_key(stanza: &Stanza) -> Result<(Recipient, &[u8]), SealError> {
    let [share] = &stanza.arguments[..] else {
        return Err(SealError::Header { reason: "a recipient's line is not valid" });
    };
    let share = decoded(share, "a recipient's share is not valid")?;
    let share = share.try_into().map_err(|_| SealError::Header { reason: "a recipient's share has a wrong length" })?;
    if stanza.body.len() != FILE_KEY_BYTES + TAG_BYTES {
        return Err(SealError::Header { reason: "a recipient's file key has a wrong length" });
    }
    Ok((Recipient(share), &stanza.body))
}

/// Returns the cipher that wraps a file key. A key wraps one file key only: the nonce may be zero.
fn wrap_cipher(share: &[u8; KEY_BYTES], recipient: &Recipient, shared: &[u8; KEY_BYTES]) -> ChaCha20Poly1305 {
    let salt = [&share[..], &recipient.0[..]].concat();
    ChaCha20Poly1305::new((&*derived(&salt, shared, WRAP)).into())
}

/// Decodes base64 without padding; only the canonical spelling is valid.
fn decoded(text: &str, reason: &'static str) -> Result<Vec<u8>, SealError> {
    STANDARD_NO_PAD.decode(text).map_err(|_| SealError::Header { reason })
}

/// Derives a key with HKDF-SHA-256.
fn derived(salt: &[u8], secret: &[u8], purpose: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
    struct KeyLength;
    impl KeyType for KeyLength {
        fn len(&self) -> usize {
            KEY_BYTES
        }
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    let purpose = [purpose];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let expanded = extracted.expand(&purpose, KeyLength).and_then(|expanded| expanded.fill(&mut bytes[..]));
    expanded.expect("HKDF gives up to 255 times the 32 bytes of its hash, and we ask for 32");
    bytes
}

/// Reads the nonce of the payload.
pub(super) fn payload_nonce(reader: &mut impl Read) -> Result<[u8; 16], SealError> {
    let mut nonce = [0; 16];
    match reader.read_exact(&mut nonce) {
        Ok(()) => Ok(nonce),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(SealError::Truncated),
        Err(error) => Err(SealError::Io(error)),
    }
}
