//! Recipients and identities: the public and the secret half of a key pair.

use std::fmt;
use std::str::FromStr;

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use ring::rand::{SecureRandom, SystemRandom};
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use super::error::SealError;

/// Bytes of a public key, of a secret key, and of what they agree on.
pub(super) const KEY_BYTES: usize = 32;

/// How many recipients something may be sealed for. Everything that is sealed pays for each of them.
pub const RECIPIENTS_MAX: usize = 64;

const RECIPIENT_PREFIX: &str = "age";
const IDENTITY_PREFIX: &str = "AGE-SECRET-KEY-";

/// A public key: whom something is sealed for. Displays as `age1...`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recipient(pub(super) [u8; KEY_BYTES]);

impl Recipient {
    /// Agrees on a secret with this recipient; `None` if its key is one of those with which everybody agrees.
    pub(super) fn agree(&self, secret: &StaticSecret) -> Option<SharedSecret> {
        let shared = secret.diffie_hellman(&PublicKey::from(self.0));
        shared.was_contributory().then_some(shared)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoded(RECIPIENT_PREFIX, &self.0))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

impl FromStr for Recipient {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let refused = |reason| SealError::Recipient { reason };
        if text.get(..IDENTITY_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(IDENTITY_PREFIX)) {
            return Err(refused("it is an identity, which is secret: `age-keygen -y FILE` prints its recipient"));
        }
        if text.starts_with("ssh-") {
            return Err(refused("SSH keys are not supported"));
        }
        if text.starts_with("age1pq1") || text.starts_with("age1tag") {
            return Err(refused("only X25519 keys are supported, as `age-keygen` makes them without options"));
        }
        let key = decoded(RECIPIENT_PREFIX, text).map_err(refused)?;
        let recipient = Self(*key);
        // A key with which everybody agrees hides nothing. No `age-keygen` makes one.
        match recipient.agree(&StaticSecret::from([1; KEY_BYTES])) {
            Some(_) => Ok(recipient),
            None => Err(refused("its key hides nothing")),
        }
    }
}

/// A secret key: opens what was sealed for its recipient. Zeroized when it is dropped, and never shown.
#[derive(Clone)]
pub struct Identity(StaticSecret);

impl Identity {
    /// Returns a new identity.
    ///
    /// # Errors
    ///
    /// [`SealError::Random`].
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self(StaticSecret::from(*random::<KEY_BYTES>()?)))
    }

    /// Returns whom to seal for, so that this identity opens it.
    pub fn recipient(&self) -> Recipient {
        Recipient(PublicKey::from(&self.0).to_bytes())
    }

    /// Returns the secret as `AGE-SECRET-KEY-1...`, for a file that only its owner reads.
    pub(super) fn secret_text(&self) -> Zeroizing<String> {
        Zeroizing::new(encoded(IDENTITY_PREFIX, self.0.as_bytes()).to_ascii_uppercase())
    }

    /// Agrees on a secret with who holds the secret key of this share; `None` if everybody could.
    pub(super) fn agree(&self, share: &Recipient) -> Option<SharedSecret> {
        share.agree(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.recipient())
    }
}

impl FromStr for Identity {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let refused = |reason| SealError::Identity { reason };
        if text.starts_with("age1") {
            return Err(refused("it is a recipient, which is public"));
        }
        if text.starts_with("AGE-SECRET-KEY-PQ-") || text.starts_with("AGE-PLUGIN-") {
            return Err(refused("only X25519 keys are supported, as `age-keygen` makes them without options"));
        }
        if text.starts_with("-----BEGIN") {
            return Err(refused("SSH keys and encrypted identities are not supported"));
        }
        let key = decoded(IDENTITY_PREFIX, text).map_err(refused)?;
        Ok(Self(StaticSecret::from(*key)))
    }
}

/// Returns random bytes.
pub(super) fn random<const BYTES: usize>() -> Result<Zeroizing<[u8; BYTES]>, SealError> {
    let mut bytes = Zeroizing::new([0; BYTES]);
    SystemRandom::new().fill(&mut bytes[..]).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

fn encoded(prefix: &str, key: &[u8; KEY_BYTES]) -> String {
    let prefix = Hrp::parse(prefix).expect("both prefixes are valid");
    bech32::encode::<Bech32>(prefix, key).expect("32 bytes are short enough for Bech32")
}

/// Parses a key. Only the one spelling that [`encoded`] gives is valid, in the case of its prefix.
fn decoded(prefix: &str, text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if !text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('1')) {
        return Err("it begins in another way");
    }
    let checked = CheckedHrpstring::new::<Bech32>(text).map_err(|_| "it is incomplete or misspelt")?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let mut bytes = checked.byte_iter();
    for byte in key.iter_mut() {
        *byte = bytes.next().ok_or("it is too short")?;
    }
    if bytes.next().is_some() {
        return Err("it is too long");
    }
    let spelt = Zeroizing::new(encoded(prefix, &key));
    if !spelt.eq_ignore_ascii_case(text) { Err("it is incomplete or misspelt") } else { Ok(key) }
}
