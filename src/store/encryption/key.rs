//! The encryption key of a store: parsing and validating it, and never displaying it.
//!
//! A key is 32 random bytes, encoded as base64 or hexadecimal digits, in a file of its own or in the environment.
//! Its copies in memory are zeroized on drop.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::store::os::os_words;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Maximum size of a key file, which is a single line.
const FILE_BYTES_MAX: u64 = 4096;
/// Permission bits that are rejected: others may not read a key file, and only its owner may change it. The
/// group may read it, because Kubernetes passes secrets to non-root processes that way.
const MODE_REFUSED: u32 = 0o027;
/// Domain separation from other uses of the same key.
const SALT: &[u8] = b"opik-offline encryption at rest, version 1";

/// Why a key is unusable.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// The named file has no valid key, is unreadable, or has unsafe permissions.
    #[error("cannot use the encryption key file {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The text is not a valid key.
    #[error("cannot use the encryption key from {origin}: {reason}")]
    Text {
        /// The source.
        origin: String,
        /// The reason; never quotes the text.
        reason: String,
    },
}

/// The fingerprint of a key, from which the key can't be derived; displayed as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub(crate) [u8; KeyId::LEN]);

impl KeyId {
    /// Bytes of a fingerprint.
    pub(crate) const LEN: usize = 8;

    /// Parses a fingerprint; `None` if the length is wrong.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A key. Displays only its fingerprint.
#[derive(Clone)]
pub struct EncryptionKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncryptionKey({})", self.id())
    }
}

impl EncryptionKey {
    /// Parses a key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Text`] with the reason, never with the text.
    pub fn parse(text: &str, origin: &str) -> Result<Self, KeyError> {
        Self::read_text(text).map_err(|reason| KeyError::Text { origin: origin.to_owned(), reason })
    }

    /// Reads a key from its file.
    ///
    /// # Errors
    ///
    /// [`KeyError::File`] if it is unreadable, has unsafe permissions, or has no valid key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::read_file(path).map_err(|reason| KeyError::File { path: path.to_owned(), reason })
    }

    fn read_file(path: &Path) -> Result<Self, String> {
        let words = |error: io::Error| os_words(&error);
        // A pipe or a device could block forever.
        if !fs::metadata(path).map_err(words)?.is_file() {
            return Err("it is not a regular file".into());
        }
        let file = fs::File::open(path).map_err(words)?;
        let metadata = file.metadata().map_err(words)?;
        let mode = metadata.mode() & 0o777;
        if mode & MODE_REFUSED != 0 {
            return Err(format!("its mode is {mode:04o}, so others can read or change it; `chmod 600` it"));
        }
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user && metadata.uid() != 0 {
            return Err(format!("it belongs to another user (uid {})", metadata.uid()));
        }
        // Allocated at its maximum size, so that growing leaves no copy of the key in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(words)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) if bytes.len() as u64 <= FILE_BYTES_MAX => Self::read_text(text),
            Ok(_) | Err(_) => Err(not_a_key("it is not a line of text")),
        }
    }

    fn read_text(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let decoded = Zeroizing::new(decode(text).ok_or_else(|| match text {
            "" => not_a_key("it is empty"),
            _ => not_a_key("it is neither base64 nor hexadecimal digits"),
        })?);
        let bytes: [u8; KEY_BYTES] = decoded[..]
            .try_into()
            .map_err(|_| not_a_key(&format!("it has {} bytes, not {KEY_BYTES}", decoded.len())))?;
        let key = Self(Zeroizing::new(bytes));
        if key.0.iter().all(|byte| *byte == key.0[0]) {
            return Err(not_a_key("all its bytes are the same"));
        }
        Ok(key)
    }

    /// Returns a new key for a store that is only a copy; `None` if the system gives no random numbers.
    pub(crate) fn random() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; Self::BYTES]);
        SystemRandom::new().fill(&mut bytes[..]).ok()?;
        Some(Self(bytes))
    }

    /// Bytes of a key.
    pub(crate) const BYTES: usize = KEY_BYTES;

    /// Returns the key with these bytes.
    pub(crate) fn from_bytes(bytes: Zeroizing<[u8; Self::BYTES]>) -> Self {
        Self(bytes)
    }

    /// Returns the secret itself, to be sealed.
    pub(crate) fn reveal(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Returns the key's fingerprint.
    pub fn id(&self) -> KeyId {
        KeyId(self.derive(b"name"))
    }

    /// Derives bytes for this purpose, from which neither the key nor the bytes for another purpose can be derived.
    pub(crate) fn derive<const LEN: usize>(&self, purpose: &[u8]) -> [u8; LEN] {
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let derived: Prk = Salt::new(HKDF_SHA256, SALT).extract(&self.0[..]);
        let mut bytes = [0; LEN];
        let purpose = [purpose];
        let expanded = derived.expand(&purpose, Length(LEN)).and_then(|okm| okm.fill(&mut bytes));
        expanded.expect("HKDF gives up to 255 times the 32 bytes of its hash, and we ask for 32 at most");
        bytes
    }
}

fn not_a_key(what: &str) -> String {
    format!("{what}; a key is {KEY_BYTES} random bytes in base64 or hexadecimal digits (`openssl rand -base64 32`)")
}

/// Decodes hexadecimal digits or base64, in either alphabet, with or without padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() {
        return None;
    }
    // A key in base64 has 43 characters, or ends with `=`: no text is valid in both encodings.
    if text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect();
    }
    let any_padding = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabets = [alphabet::STANDARD, alphabet::URL_SAFE];
    alphabets.iter().find_map(|alphabet| GeneralPurpose::new(alphabet, any_padding).decode(text).ok())
}

/// The configured keys of a process.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Encrypts new values.
    pub current: Option<EncryptionKey>,
    /// Decrypts values from before a key rotation.
    pub previous: Option<EncryptionKey>,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn parse(text: &str) -> Result<EncryptionKey, String> {
        EncryptionKey::parse(text, "a test").map_err(|error| error.to_string())
    }

    #[test]
    fn one_key_may_be_written_in_several_ways() {
        let id = parse(HEX).expect("a key").id();
        for text in [BASE64, BASE64.trim_end_matches('='), &HEX.to_uppercase(), &format!("  {BASE64}\r\n")] {
            assert_eq!(parse(text).expect(text).id(), id, "{text}");
        }
        assert_ne!(parse(&HEX.replace("1f", "ff")).expect("a key").id(), id);
    }

    #[test]
    fn invalid_keys_are_rejected_without_being_shown() {
        for (text, reason) in [
            ("", "it is empty"),
            ("correct horse battery staple", "neither base64 nor hexadecimal"),
            (&HEX[..62], "not 32"),
            (&BASE64[..40], "it has 30 bytes, not 32"),
            (&"ab".repeat(32), "all its bytes are the same"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(reason) && refused.contains("openssl rand -base64 32"), "{refused}");
            assert!(text.is_empty() || !refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn a_key_shows_its_name_only() {
        let key = parse(BASE64).expect("a key");
        let shown = format!("{:?}", Keys { current: Some(key.clone()), previous: None });
        assert!(shown.contains(&key.id().to_string()), "{shown}");
        assert!(!shown.contains("0, 1, 2") && !shown.contains("0001") && !shown.contains("AAEC"), "{shown}");
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("key");
        fs::write(&path, BASE64).expect("a file");
        for (mode, is_fine) in [(0o600, true), (0o400, true), (0o440, true), (0o644, false), (0o660, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
            let read = EncryptionKey::read(&path);
            assert_eq!(read.is_ok(), is_fine, "{mode:o}: {read:?}");
        }
        let refused = EncryptionKey::read(&path).expect_err("others may change it").to_string();
        assert!(refused.contains("0660") && refused.contains("chmod 600"), "{refused}");
        let missing = EncryptionKey::read(&folder.path().join("nothing")).expect_err("it is not there").to_string();
        assert!(missing.contains("no such file"), "{missing}");
        assert!(EncryptionKey::read(folder.path()).is_err(), "a folder is no key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        for text in [vec![0xff; 32], vec![b'A'; 5000]] {
            fs::write(&path, text).expect("a file");
            let refused = EncryptionKey::read(&path).expect_err("it holds no key").to_string();
            assert!(refused.contains("openssl"), "{refused}");
        }
    }
}
