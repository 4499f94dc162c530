//! Keys that are ready for use: sealing, opening and keyed digests.

use std::borrow::Cow;

use chacha20poly1305::aead::{Aead, AeadInOut, Payload};
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::context::{Lookup, SealContext};
use crate::store::encryption::key::{EncryptionKey, KeyId, Keys};
use crate::store::sqlite::fault::Fault;

const NONCE_BYTES: usize = 24;

const TAG_BYTES: usize = 16;

/// How many bytes sealing adds.
pub(crate) const SEAL_BYTES: usize = KeyId::LEN + NONCE_BYTES + TAG_BYTES;

/// The plain text of the check value in the row of `sealing`.
pub(super) const CHECK: &[u8] = b"opik-offline";

/// One key, ready for use. All secrets in it are zeroized when it is dropped.
pub(super) struct Cipher {
    pub(super) id: KeyId,
    aead: XChaCha20Poly1305,
    lookup: Zeroizing<[u8; 32]>,
}

impl Cipher {
    pub(super) fn new(key: &EncryptionKey) -> Self {
        let seal = Zeroizing::new(key.derive::<32>(b"seal"));
        let aead = XChaCha20Poly1305::new((&*seal).into());
        Self { id: key.id(), aead, lookup: Zeroizing::new(key.derive(b"look-up")) }
    }

    pub(super) fn seal(&self, place: &SealContext<'_>, plain: &[u8]) -> Result<Vec<u8>, Fault> {
        self.seal_joined(place, plain, &[])
    }

    /// Seals the concatenation of two byte strings.
    pub(super) fn seal_joined(&self, place: &SealContext<'_>, plain: &[u8], end: &[u8]) -> Result<Vec<u8>, Fault> {
        self.seal_filled(place, plain.len() + end.len(), |bytes| {
            bytes.extend_from_slice(plain);
            bytes.extend_from_slice(end);
            Ok(())
        })
    }

    /// Seals what `fill` writes into the one buffer that is returned: a body may be large.
    pub(super) fn seal_filled(
        &self,
        place: &SealContext<'_>,
        length: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>,
    ) -> Result<Vec<u8>, Fault> {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Fault::Sealing("the system provides no random numbers"))?;
        let mut bytes = Vec::with_capacity(SEAL_BYTES + length);
        bytes.extend(self.id.0);
        bytes.extend(nonce);
        fill(&mut bytes)?;
        let text = (&mut bytes[KeyId::LEN + NONCE_BYTES..]).into();
        let tag = self.aead.encrypt_inout_detached(&XNonce::from(nonce), &place.bytes(), text);
        bytes.extend(tag.map_err(|_| Fault::Sealing("it is too large to be sealed"))?);
        Ok(bytes)
    }

    /// Opens a value that was sealed with this key.
    pub(super) fn open(&self, place: &SealContext<'_>, sealed: Cow<'_, [u8]>) -> Result<Vec<u8>, Fault> {
        let changed =
            || Fault::Damaged(format!("the sealed {place} does not open: it was changed, or belongs to another row"));
        let sealed = match sealed {
            Cow::Borrowed(sealed) => sealed,
            // In place: it may be large.
            Cow::Owned(mut bytes) => {
                const HEAD: usize = KeyId::LEN + NONCE_BYTES;
                let (text, tag) = bytes.split_last_chunk_mut::<TAG_BYTES>().ok_or_else(changed)?;
                let (head, text) = text.split_first_chunk_mut::<HEAD>().ok_or_else(changed)?;
                let nonce = head.last_chunk::<NONCE_BYTES>().ok_or_else(changed)?;
                let (nonce, tag) = (XNonce::from(*nonce), Tag::from(*tag));
                let opened = self.aead.decrypt_inout_detached(&nonce, &place.bytes(), text.into(), &tag);
                opened.map_err(|_| changed())?;
                bytes.truncate(bytes.len() - TAG_BYTES);
                bytes.drain(..HEAD);
                return Ok(bytes);
            }
        };
        let opened = sealed.get(KeyId::LEN..).and_then(|rest| {
            let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
            self.aead.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &place.bytes() }).ok()
        });
        opened.ok_or_else(changed)
    }

    pub(super) fn digest(&self, of: Lookup, value: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.lookup[..]));
        context.update(&[of as u8]);
        context.update(value);
        context.sign().as_ref().to_vec()
    }

    pub(super) fn mark(&self) -> Result<KeyMark, Fault> {
        Ok(KeyMark { id: self.id, check: self.seal(&SealContext::Check, CHECK)? })
    }
}

/// The keys of this process.
pub(crate) struct KeyRing {
    pub(super) ciphers: Vec<Cipher>,
    current: Option<KeyId>,
}

impl KeyRing {
    pub(crate) fn new(keys: &Keys) -> Self {
        let ciphers = keys.current.iter().chain(&keys.previous).map(Cipher::new).collect();
        Self { ciphers, current: keys.current.as_ref().map(EncryptionKey::id) }
    }

    pub(super) fn get(&self, id: KeyId) -> Option<&Cipher> {
        self.ciphers.iter().find(|cipher| cipher.id == id)
    }

    /// Returns the key that new values are sealed with.
    pub(crate) fn current(&self) -> Option<KeyId> {
        self.current
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ciphers.is_empty()
    }

    /// Returns why a value cannot be opened that needs this key.
    pub(super) fn lacks(&self, needed: KeyId) -> Fault {
        match self.ciphers.first() {
            None => Fault::KeyMissing { needed },
            Some(given) => Fault::WrongKey { needed, given: given.id },
        }
    }
}

/// A key in the row of `sealing`.
#[derive(Clone, Debug)]
pub(super) struct KeyMark {
    pub(super) id: KeyId,
    /// A sealed value that only this key opens.
    pub(super) check: Vec<u8>,
}
